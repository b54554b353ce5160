"""Looking at finished crops: `check` for their faults, near-duplicates across the split, the contact sheet.

Masks: 255 = object, 128 = void, 0 = background. This file needs numpy, Pillow and tqdm only.
"""
import math
import os
from collections import Counter, defaultdict
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from crops.annotations import EXTENSIONS, UNREADABLE, Photo
from crops.index import FOLDERS, JOURNAL, SPLITS, in_parallel, read_index
from crops.rules import clamp, name_hash, open_photo, overlaps

NEAR = 16  # of 256 bits: hashes that differ in at most so many belong to near-duplicates
SHARPNESS, BRIGHTNESS = 0, 1  # columns of the statistics

# --- faults ---


def check_split(dataroot, split: str, num_workers: int):
    """Look through one split. Returns (index, problems as texts, {stem: statistics} of X, the same of Y)."""
    index, folder = read_index(dataroot, split), Path(dataroot, split)
    problems = []
    if (folder / JOURNAL).exists():
        problems.append(f"{folder / JOURNAL}: preparing was interrupted, run the same command again")
    sizes = {entry["crop_size"] for entry in index["rules"]}
    if not sizes:
        problems.append(f"{folder / 'crops.json'}: not there, or empty: without it there is nothing to check")
    elif len(sizes) > 1:
        problems.append(f"{folder / 'crops.json'}: crops of sizes {sorted(sizes)}, expected one size")
    size = max(sizes, default=0)
    core = max((entry["object_size"] for entry in index["rules"]), default=0)
    tasks = [(stem, crop if kind == "objects" else None)
             for kind in ("objects", "backgrounds") for stem, crop in index[kind].items()]
    work = partial(check_crop, folder=str(folder), size=size, core=core)
    statistics = {"objects": {}, "backgrounds": {}}
    results = tqdm(in_parallel(work, tasks, num_workers), total=len(tasks), desc=f"check {split}", unit="crop",
                   disable=None)
    for (stem, crop), (faults, numbers) in zip(tasks, results, strict=True):
        problems += faults
        if numbers is not None:
            statistics["objects" if crop else "backgrounds"][stem] = numbers
    problems += unlisted_files(folder, index) + misplaced_windows(folder, index)
    return index, problems, statistics["objects"], statistics["backgrounds"]


def check_crop(task, folder: str, size: int, core: int):
    """Decode the files of one crop. task: (stem, its entry if an object, None if a background).

    Returns (faults as texts, (sharpness, brightness) of the surroundings or None).
    """
    stem, entry = task
    folder = Path(folder)
    path = folder / ("backgrounds" if entry is None else "objects") / f"{stem}.png"
    pixels, faults = decode(path, "RGB", (size, size))
    faults += check_masks(folder, stem, entry, size) if entry is not None else []
    return faults, None if pixels is None else surroundings(pixels, core)


def decode(path, mode, size):
    """(pixels, []) of an image that decodes fully, of this mode and (width, height); else (None, [why])."""
    try:
        with Image.open(path) as image:
            if image.mode != mode or image.size != size:
                return None, [f"{path}: {image.mode} of {image.size[0]} x {image.size[1]}, "
                              f"expected {mode} of {size[0]} x {size[1]}"]
            return np.array(image), []
    except UNREADABLE as error:
        return None, [f"{path}: {error}".splitlines()[0]]


def check_masks(folder, stem, entry, size) -> list:
    """Faults of an object's two masks; having none is none."""
    x0, y0, x1, y1 = clamp(entry["source_window"], entry["source_size"])
    source_size = (math.ceil(x1) - math.floor(x0), math.ceil(y1) - math.floor(y0))
    places = {folder / "masks" / f"{stem}.png": (size, size),
              folder / "masks_source" / f"{stem}.png": source_size}
    if not any(path.exists() for path in places):
        return []
    faults = []
    for path, expected in places.items():
        pixels, why = decode(path, "L", expected)
        faults += why
        if pixels is not None:
            strange = set(np.unique(pixels).tolist()) - {0, 128, 255}
            if strange:
                faults.append(f"{path}: values {sorted(strange)[:5]}, expected 0, 128 and 255")
            elif not (pixels == 255).any():
                faults.append(f"{path}: no pixel of the object (255)")
    return faults


def unlisted_files(folder, index) -> list:
    """Images in the folders that crops.json does not list: training would take them for data."""
    if not (folder / "crops.json").exists():
        return []
    listed = {"objects": index["objects"], "backgrounds": index["backgrounds"],
              "masks": index["objects"], "masks_source": index["objects"]}
    return [f"{entry.path}: not in crops.json" for kind in FOLDERS if (folder / kind).is_dir()
            for entry in os.scandir(folder / kind) if entry.name.lower().endswith(EXTENSIONS)
            and not entry.name.startswith(".") and entry.name.removesuffix(".png") not in listed[kind]]


def misplaced_windows(folder, index) -> list:
    """Windows that leave their image, or touch a box that is not their own object's."""
    boxes = {(image["origin"], image["file"]): np.reshape(image["boxes"], (-1, 4))
             for image in index["images"]}
    faults = []
    for kind in ("objects", "backgrounds"):
        for stem, crop in index[kind].items():
            x0, y0, w, h = crop["source_window"]
            width, height = crop["source_size"]
            slack = 1e-6 * max(width, height)
            if not (x0 >= -slack and y0 >= -slack and x0 + w <= width + slack and y0 + h <= height + slack):
                faults.append(f"{folder / kind / stem}.png: its window leaves the image")
            around = boxes.get((crop.get("origin"), crop["source"]), np.zeros((0, 4)))
            inner = (x0 + slack, y0 + slack, w - 2 * slack, h - 2 * slack)
            touched = int(overlaps(inner, around).sum())
            if touched > (kind == "objects"):
                faults.append(f"{folder / kind / stem}.png: {touched - (kind == 'objects')} other boxes of "
                              f"{crop['source']} reach into it")
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


def compare(index, x, y) -> list:
    """Lines of text: sharpness, brightness and source size of X's surroundings against Y's."""
    if not x or not y:
        return ["  X against Y: nothing to compare"]
    columns = {
        "sharpness": [[values[SHARPNESS] for values in part.values()] for part in (x, y)],
        "brightness": [[values[BRIGHTNESS] for values in part.values()] for part in (x, y)],
        "window, source px": [[math.sqrt(np.prod(crop["source_window"][2:])) for crop in index[kind].values()]
                              for kind in ("objects", "backgrounds")],
    }
    lines = []
    for name, (a, b) in columns.items():
        chance = separability(a, b)
        remark = "  <- a discriminator can tell them apart by this" if not 0.3 <= chance <= 0.7 else ""
        lines.append(f"  {name:18} X median {np.median(a):7.1f}   Y median {np.median(b):7.1f}   "
                     f"P(X > Y) {chance:.2f}{remark}")
    return lines


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


def leaks(indices: dict, one: str, other: str) -> tuple:
    """(problems: images that serve both splits; lines: near-duplicates across them). indices: {split: its index}."""
    a, b = indices[one]["images"], indices[other]["images"]
    same = {image["path"] for image in a} & {image["path"] for image in b}
    pairs = near_duplicates(a, b)
    lines = [f"near-duplicates in {one} and {other}: {len(pairs)}"]
    lines += [f"  {one} {a}  {other} {b}  ({bits} of 256 bits differ)" for a, b, bits in pairs[:10]]
    return [f"{path}: serves {one} and {other}" for path in sorted(same)], lines


# --- contact sheet ---


def make_sheet(dataroot, split: str, objects=24, backgrounds=20) -> Path:
    """Write DATAROOT/SPLIT/sheet.jpg: sources with what was cut from them, crops, masks; then backgrounds.

    On the sources: the object's box green, its window yellow, other boxes red, backgrounds blue. Which
    crops are shown depends on their names alone.
    """
    index, folder = read_index(dataroot, split), Path(dataroot, split)
    shown = {kind: sorted(index[kind], key=name_hash)[:n] for kind, n in
             (("objects", objects), ("backgrounds", backgrounds))}
    windows = defaultdict(list)
    for crop in index["backgrounds"].values():
        windows[crop["origin"], crop["source"]].append(crop["source_window"])
    images = {(image["origin"], image["file"]): image for image in index["images"]}
    side, step, columns, per_row = 128, 132, 3, 10
    rows = math.ceil(len(shown["objects"]) / columns)
    y_rows = math.ceil(len(shown["backgrounds"]) / per_row)
    sheet = Image.new("RGB", (columns * 440, max(rows + y_rows, 1) * step))
    for number, stem in enumerate(shown["objects"]):
        left, top = number % columns * 440, number // columns * step
        crop = index["objects"][stem]
        key = (crop["origin"], crop["source"])
        sheet.paste(draw_source(images.get(key), crop, windows[key], (168, side)), (left, top))
        for offset, kind in ((172, "objects"), (304, "masks")):
            path = folder / kind / f"{stem}.png"
            if path.exists():
                with Image.open(path) as image:
                    sheet.paste(image.convert("RGB").resize((side, side)), (left + offset, top))
    for number, stem in enumerate(shown["backgrounds"]):
        with Image.open(folder / "backgrounds" / f"{stem}.png") as image:
            place = (number % per_row * step, (rows + number // per_row) * step)
            sheet.paste(image.resize((side, side)), place)
    sheet.save(folder / "sheet.jpg", quality=90)
    return folder / "sheet.jpg"


def draw_source(image_entry, crop, windows, size) -> Image.Image:
    """A thumbnail of a source image with its boxes and windows; grey when the image is no longer there."""
    try:
        width, height = crop["source_size"]
        thumbnail = open_photo(Photo("", image_entry["path"], width, height, [], image_entry.get("upright", False)))
    except UNREADABLE:
        return Image.new("RGB", size, "grey")
    thumbnail.thumbnail(size)
    draw, scale = ImageDraw.Draw(thumbnail), thumbnail.width / width
    colours = [(box, "red") for box in image_entry["boxes"]] + [(window, "deepskyblue") for window in windows]
    for (x, y, w, h), colour in [*colours, (crop["source_window"], "yellow"), (crop["source_box"], "lime")]:
        draw.rectangle([x * scale, y * scale, (x + w) * scale, (y + h) * scale], outline=colour)
    return thumbnail


def describe(split, index) -> str:
    """One line of what a split holds."""
    masks = index["counts"].get("masks", 0)
    classes = Counter({name: entry["objects"] for name, entry in index["classes"].items()})
    common = ", ".join(f"{name} {n}" for name, n in classes.most_common(8))
    return (f"{split}: {len(index['objects'])} objects ({masks} masks; {common or 'no class'}), "
            f"{len(index['backgrounds'])} backgrounds from {len(index['images'])} images")


def check(dataroot, num_workers=0) -> list:
    """Look through all splits, print what they hold and how X and Y compare; returns the problems."""
    problems, indices = [], {}
    for split in SPLITS:
        if Path(dataroot, split).is_dir():
            index, faults, x, y = check_split(dataroot, split, num_workers)
            indices[split] = index
            problems += faults
            print("\n".join([describe(split, index), *compare(index, x, y)]))
    if not indices:
        raise ValueError(f"no folder {', '.join(SPLITS)} in {dataroot}: give the folder that --out named")
    for one, other in combinations(indices, 2):
        shared, lines = leaks(indices, one, other)
        problems += shared
        print("\n".join(lines))
    return problems
