"""A look at finished crops: their faults, near-duplicates across splits, what tells X from Y, the contact sheet."""
import math
from collections import Counter, defaultdict
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from crops.annotations import Photo
from crops.cutting import hull_of, in_parallel, open_annotated
from crops.index import FOLDERS, JOURNAL, SPLITS, read_index
from crops.rules import edges_of, name_hash, overlaps, share_outside
from images import OBJECT, UNREADABLE, VOID, UserError, list_images, open_image, open_lazily, printable, written_whole

NEAR = 16  # of 256 bits: hashes that differ in at most so many belong to near-duplicates
ALIKE = 0.3, 0.7  # P(X > Y) between these: no discriminator can live on it
COLOURS = {"the object's box": "lime", "its crop": "yellow", "other boxes": "red", "backgrounds": "deepskyblue"}


def check_crops(dataroot, num_workers=0) -> tuple:
    """Look through all splits, print what they hold and how X and Y compare.

    Returns (problems: texts, remarks: {what tells X from Y: [where it does, and how well]}). UserError without a split.
    """
    problems, remarks, indices = [], defaultdict(list), {}
    for split in SPLITS:
        if Path(dataroot, split).is_dir():
            indices[split], faults, x, y = check_split(dataroot, split, num_workers)
            problems += faults
            print(printable(describe_split(split, indices[split])))
            for feature, chance, line in compare(indices[split], x, y):
                print(line)
                if tells(chance):
                    remarks[feature].append(f"{split}: P {chance:.2f}")
    if not indices:
        raise UserError(f"no folder {', '.join(SPLITS)} in {dataroot}: give the folder that --out named")
    for one, other in combinations(indices, 2):
        a, b = indices[one]["images"], indices[other]["images"]
        same = {image["path"] for image in a} & {image["path"] for image in b}
        problems += [f"{path}: serves {one} and {other}" for path in sorted(same)]
        pairs = near_duplicates(a, b)
        print(f"near-duplicates in {one} and {other}: {len(pairs)}")
        for first, second, bits in pairs[:10]:
            print(printable(f"  {one} {first}  {other} {second}  ({bits} of 256 bits differ)"))
    return problems, dict(remarks)


def describe_split(split, index) -> str:
    """One line of what a split holds."""
    classes = Counter({name: entry["objects"] for name, entry in index["classes"].items()})
    common = ", ".join(f"{name} {n}" for name, n in classes.most_common(8))
    reflected = sum("outside" in crop for crop in index["objects"].values())
    return (f"{split}: {len(index['objects'])} objects ({index['counts'].get('masks', 0)} masks; "
            f"{common or 'no class'}{f'; {reflected} leave their image' * bool(reflected)}), "
            f"{len(index['backgrounds'])} backgrounds from {len(index['images'])} images")


# --- faults ---


def check_split(dataroot, split: str, num_workers: int):
    """Look through one split. Returns (index, problems as texts, and [(sharpness, brightness), ...] of X and of Y)."""
    from tqdm import tqdm  # here: prepare.py --help need not wait for it

    index, folder = read_index(dataroot, split), Path(dataroot, split)
    problems = []
    if (folder / JOURNAL).exists():
        problems.append(f"{folder / JOURNAL}: preparing was interrupted, run the same command again")
    sizes = {entry["crop_size"] for entry in index["rules"]}
    if not sizes:
        problems.append(f"{folder / 'crops.json'}: not there, or empty: without it there is nothing to check")
    elif len(sizes) > 1:
        problems.append(f"{folder / 'crops.json'}: crops of sizes {sorted(sizes)}, expected one size")
    core = max((entry["object_size"] for entry in index["rules"]), default=0)
    tasks = [(stem, crop if kind == "objects" else None)
             for kind in ("objects", "backgrounds") for stem, crop in index[kind].items()]
    work = partial(check_crop, folder=str(folder), size=max(sizes, default=0), core=core)
    looks = {"objects": [], "backgrounds": []}
    results = tqdm(in_parallel(work, tasks, num_workers), total=len(tasks), desc=f"check {split}", unit="crop",
                   disable=None)
    for (_, crop), (faults, look) in zip(tasks, results, strict=True):
        problems += faults
        if look is not None:
            looks["objects" if crop else "backgrounds"].append(look)
    problems += unlisted_files(folder, index) + misplaced_windows(folder, index)
    return index, problems, looks["objects"], looks["backgrounds"]


def check_crop(task, folder: str, size: int, core: int):
    """Decode the files of one crop. task: (stem, its entry if an object, None if a background). Returns (faults as
    texts, (sharpness, brightness) of the surroundings or None). Having no masks is no fault."""
    (stem, entry), folder, look, faults = task, Path(folder), None, []
    places = {folder / ("backgrounds" if entry is None else "objects"): ("RGB", (size, size))}
    if entry is not None and any((folder / kind / f"{stem}.png").exists() for kind in ("masks", "masks_source")):
        left, top, right, bottom = hull_of(entry["source_window"], entry["source_size"])
        places[folder / "masks"] = "L", (size, size)
        if (folder / "masks_source").is_dir():  # a drawn set has none
            places[folder / "masks_source"] = "L", (right - left, bottom - top)
    for place, (mode, expected) in places.items():
        path = place / f"{stem}.png"
        pixels, why = decode(path, mode, expected)
        if pixels is None:
            faults.append(why)
        elif mode == "RGB":
            look = surroundings(pixels, core)
        elif strange := set(np.unique(pixels).tolist()) - {0, VOID, OBJECT}:
            faults.append(f"{path}: values {sorted(strange)[:5]}, expected 0, {VOID} and {OBJECT}")
        elif not (pixels == OBJECT).any():
            faults.append(f"{path}: no pixel of the object ({OBJECT})")
    return faults, look


def decode(path, mode, size):
    """(pixels, "") of an image that decodes fully, of this mode and (width, height); else (None, why)."""
    try:
        with open_lazily(path) as image:
            if image.mode != mode or image.size != size:
                return None, (f"{path}: {image.mode} of {image.size[0]} x {image.size[1]}, "
                              f"expected {mode} of {size[0]} x {size[1]}")
            return np.array(image), ""
    except UNREADABLE as error:
        return None, f"{path}: {error}".splitlines()[0]


def unlisted_files(folder, index) -> list:
    """Images in the folders that crops.json does not list: training would take them for data."""
    if not (folder / "crops.json").exists():
        return []
    return [f"{folder / kind / name}: not in crops.json" for kind in FOLDERS for name in list_images(folder / kind)
            if name.removesuffix(".png") not in index["backgrounds" if kind == "backgrounds" else "objects"]]


def misplaced_windows(folder, index) -> list:
    """Windows that leave their image against their rules, or touch a box that is not their own object's."""
    boxes = {(image["origin"], image["file"]): edges_of(image["boxes"]) for image in index["images"]}
    faults = []
    for kind in ("objects", "backgrounds"):
        for stem, crop in index[kind].items():
            (x0, y0, w, h), size = crop["source_window"], crop["source_size"]
            share, rules = share_outside(crop["source_window"], *size), index["rules"][crop["origin"]]
            reflects = kind == "objects" and rules.get("outside") == "reflect"
            if share > (rules.get("max_outside", 0) if reflects else 0):
                faults.append(f"{folder / kind / stem}.png: its window leaves the image, with {share:.0%} of its area")
            around = boxes.get((crop["origin"], crop["source"]), np.zeros((0, 4)))
            slack = 1e-6 * max(size)
            inner = (x0 + slack, y0 + slack, w - 2 * slack, h - 2 * slack)
            others = int(overlaps(inner, around).sum()) - (kind == "objects")
            if others > 0:
                faults.append(f"{folder / kind / stem}.png: {others} other boxes of {crop['source']} reach into it")
    return faults


# --- what a discriminator could tell X from Y by (§4.2: both must look alike but for the object) ---


def surroundings(pixels: np.ndarray, core: int):
    """(sharpness, brightness) of a crop outside its central core x core pixels, where X shows no object.

    Sharpness: mean absolute Laplacian of the grey values 0..255; brightness: their mean.
    """
    grey = pixels.astype(np.float32).mean(axis=2)
    neighbours = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    laplacian = np.abs(4 * grey[1:-1, 1:-1] - neighbours)
    outside = np.ones(grey.shape, bool)
    if core < len(grey) - 2:  # else the object may be everywhere: the whole crop
        low = (len(grey) - core) // 2
        outside[low:low + core, low:low + core] = False
    return float(laplacian[outside[1:-1, 1:-1]].mean()), float(grey[outside].mean())


def separability(a, b) -> float:
    """Probability that a value of `a` exceeds one of `b` (ties half): 0.5 = alike, 0 or 1 = told apart."""
    a, b = np.sort(np.asarray(a, float)), np.sort(np.asarray(b, float))
    below = np.searchsorted(b, a, "left") + np.searchsorted(b, a, "right")
    return float(below.sum() / (2 * a.size * b.size))


def tells(chance: float) -> bool:
    """Whether a discriminator can live on a feature of this `separability`."""
    return not ALIKE[0] <= chance <= ALIKE[1]


def compare(index, x, y) -> list:
    """How X's surroundings and windows compare with Y's: [(feature, `separability`, line of text)].

    x, y: [(sharpness, brightness), ...]
    """
    if not x or not y:
        return []
    sharpness, brightness = ([[look[i] for look in part] for part in (x, y)] for i in (0, 1))
    sides = [[math.sqrt(np.prod(crop["source_window"][2:])) for crop in index[kind].values()]
             for kind in ("objects", "backgrounds")]
    found = []
    for feature, unit, (a, b) in (("sharpness", "", sharpness), ("brightness", "", brightness),
                                  ("window size", ", source px", sides)):
        chance = separability(a, b)
        line = (f"  {feature + unit:22} X median {np.median(a):7.1f}   Y median {np.median(b):7.1f}   "
                f"P(X > Y) {chance:.2f}" + tells(chance) * "  <- a discriminator can tell them apart by this")
        found.append((feature, chance, line))
    return found


def verdict(remarks: dict) -> str:
    """The last line of a check without problems. remarks: see `check_crops`."""
    if not remarks:
        return "no problems"
    features = ", ".join(f"{feature} ({', '.join(splits)})" for feature, splits in remarks.items())
    remedy = ("larger photographs without objects leave room for backgrounds of X's sizes (--y_from DIR"
              if "window size" in remarks else "take Y from photographs like X's (--y_from same, or --y_from DIR")
    return (f"no faults, but X and Y can be told apart by {features}, which the discriminators may learn before "
            f"anything about objects: {remedy}; --backgrounds of `folder`)")


# --- near-duplicates ---


def near_duplicates(train: list, test: list) -> list:
    """Pairs (train file, test file, bits) of source images whose hashes differ in at most NEAR bits.

    Both: the "images" of an index. In blocks, so that memory stays small for any number of images.
    """
    found, block = [], 2048
    for i in range(0, len(train), block):
        a = np.stack([signs(image["hash"]) for image in train[i:i + block]])
        for j in range(0, len(test), block):
            b = np.stack([signs(image["hash"]) for image in test[j:j + block]])
            bits = (a.shape[1] - a @ b.T) / 2
            found += [(i + k, j + n, int(bits[k, n])) for k, n in np.argwhere(bits <= NEAR).tolist()]
    return [(train[i]["file"], test[j]["file"], bits) for i, j, bits in sorted(found)]


def signs(digest: str) -> np.ndarray:
    """A hexadecimal hash as -1 and 1, float32: the product of two counts equal bits less unequal ones."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(digest), np.uint8)).astype(np.float32) * 2 - 1


# --- contact sheet ---


def make_sheet(dataroot, split: str, objects=24, backgrounds=20) -> Path:
    """Write DATAROOT/SPLIT/sheet.jpg: sources with what was cut from them, crops, masks; then backgrounds.

    Which crops are shown depends on their names alone.
    """
    index, folder = read_index(dataroot, split), Path(dataroot, split)
    shown_x, shown_y = (sorted(index[kind], key=name_hash)[:n]
                        for kind, n in (("objects", objects), ("backgrounds", backgrounds)))
    windows = defaultdict(list)
    for crop in index["backgrounds"].values():
        windows[crop["origin"], crop["source"]].append(crop["source_window"])
    images = {(image["origin"], image["file"]): image for image in index["images"]}
    side, step, legend = 128, 132, 16
    top_y = legend + math.ceil(len(shown_x) / 3) * step  # three objects a row, ten backgrounds
    sheet = Image.new("RGB", (10 * step, max(top_y + math.ceil(len(shown_y) / 10) * step, legend + step)))
    left = 4
    for meaning, colour in COLOURS.items():
        ImageDraw.Draw(sheet).text((left, 2), meaning, fill=colour)
        left += ImageDraw.Draw(sheet).textlength(meaning) + 16
    for number, stem in enumerate(shown_x):
        place = number % 3 * 440, legend + number // 3 * step
        crop = index["objects"][stem]
        key = (crop["origin"], crop["source"])
        sheet.paste(draw_source(images.get(key), crop, windows[key], (168, side)), place)
        paste_crop(sheet, folder / "objects" / f"{stem}.png", side, (place[0] + 172, place[1]))
        paste_crop(sheet, folder / "masks" / f"{stem}.png", side, (place[0] + 304, place[1]))
    for number, stem in enumerate(shown_y):
        place = number % 10 * step, top_y + number // 10 * step
        paste_crop(sheet, folder / "backgrounds" / f"{stem}.png", side, place)
    with written_whole(folder / "sheet.jpg") as file:
        sheet.save(file, "JPEG", quality=90)
    return folder / "sheet.jpg"


def paste_crop(sheet, path, side, place):
    """Put the image at `path`, if there is one, on the sheet."""
    if path.exists():
        sheet.paste(open_image(path).resize((side, side)), place)


def draw_source(image_entry, crop, windows, size) -> Image.Image:
    """A thumbnail of a source image with its boxes and windows in COLOURS; grey when the image is no longer there."""
    try:
        (width, height), (x0, y0, w, h) = crop["source_size"], crop["source_window"]
        photo = open_annotated(Photo("", image_entry["path"], width, height, [], image_entry["upright"]))
        left, top = min(math.floor(x0), 0), min(math.floor(y0), 0)
        thumbnail = photo.crop((left, top, max(math.ceil(x0 + w), width), max(math.ceil(y0 + h), height)))
    except UNREADABLE:  # it is gone; it was none, of a drawn set
        return Image.new("RGB", size, "grey")
    whole = thumbnail.width
    thumbnail.thumbnail(size)
    draw, scale = ImageDraw.Draw(thumbnail), thumbnail.width / whole
    own, its_crop, others, backgrounds = COLOURS.values()
    for colour, boxes in ((others, image_entry["boxes"]), (backgrounds, windows), (its_crop, [crop["source_window"]]),
                          (own, [crop["source_box"]])):
        for x, y, w, h in boxes:
            right = min((x + w - left) * scale, thumbnail.width - 1)
            bottom = min((y + h - top) * scale, thumbnail.height - 1)
            draw.rectangle([(x - left) * scale, (y - top) * scale, right, bottom], outline=colour)
    return thumbnail
