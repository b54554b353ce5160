"""`python prepare.py`, whose commands make crops from images and boxes (§4.1, §4.2).

    coco, voc, cityscapes, csv, detect    images with boxes -> crops, masks where annotated
    folder                                crops that exist already
    check                                 look through finished crops

`add_commands` adds them to a parser; each sets `run`, a function of the parsed arguments. Errors that a
user can mend are ValueError or OSError with a message of one line.
"""
import argparse
import dataclasses
import math
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from tqdm import tqdm

from crops import annotations as sources
from crops import demo, detector
from crops.check import check, make_sheet, near_duplicates
from crops.index import (
    SPLITS,
    cut_jobs,
    describe_background,
    describe_object,
    drop_journal,
    make_stem,
    plan_hash,
    read_index,
    remove_crops,
    write_index,
    written,
)
from crops.rules import DROPS, PRESETS, Job, Piece, Rules, find_backgrounds, find_objects, name_hash

# --- options ---


def whole(low: int, high: int):
    """An argparse type: an int from low to high."""
    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, got {text!r}")
        return value
    return parse


def number(low: float, high: float):
    """An argparse type: a float from low to high."""
    def parse(text):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be a number from {low:g} to {high:g}, got {text!r}")
        return value
    return parse


def names(text: str) -> tuple:
    """An argparse type: names separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def add_output_options(parser):
    group = parser.add_argument_group("output")
    group.add_argument("--out", required=True, metavar="DATAROOT",
                       help="folder for the crops; further sources are appended to what it holds")
    group.add_argument("--split", choices=(*SPLITS, "auto"), default="train",
                       help="where the crops go; auto: by a hash of each image's name [train]")
    group.add_argument("--test_fraction", type=number(0, 1), default=0.1, metavar="F",
                       help="share of the images that --split auto sends to test, 0..1 [0.1]")
    group.add_argument("--num_workers", type=whole(0, 256), default=min(os.cpu_count() or 1, 16), metavar="N",
                       help="processes that decode and cut; the crops are the same [one a core, at most 16]")


def add_rule_options(parser):
    """The crop rules. Their defaults stay None here, so that the preset fills what is not given."""
    group = parser.add_argument_group("crop rules (a preset, and what differs from it)")
    group.add_argument("--preset", choices=tuple(PRESETS), default="coco",
                       help="dogs: 64 px objects (§4.1); coco: 100 px objects (§4.2) [coco]")
    add_crop_options(group, "dogs 64, coco 100",
                     "warp: the box becomes a square; keep: its aspect stays, long side = object_size")
    group.add_argument("--min_side", type=number(0, 1e5), metavar="PX",
                       help="the box's smaller side must exceed this, source pixels [dogs 60, coco 20]")
    group.add_argument("--max_fraction", type=number(0, 1), metavar="F",
                       help="the box's longer side / the image's longer side at most; 0 or 1 = off [0.4]")
    group.add_argument("--min_aspect", type=number(0, 1), metavar="F",
                       help="the box's smaller / larger side must exceed this [dogs 0, coco 0.4]")
    group.add_argument("--classes", type=names, metavar="A,B", help="only these classes become objects [all]")
    group.add_argument("--exclude", type=names, metavar="A,B", help="these never become objects [none]")
    group.add_argument("--min_score", type=number(0, 1), metavar="F",
                       help="a detection's score, 0..1, from which it may be an object; every box keeps "
                            "crops away [detect 0.8, else 0]")
    group.add_argument("--y_per_x", type=number(0, 100), metavar="R", help="backgrounds per object [2]")
    group.add_argument("--y_per_image", type=whole(1, 1000), metavar="N",
                       help="most backgrounds from one image [8]")
    group.add_argument("--y_from", metavar="same|any|DIR",
                       help="backgrounds from: same = images that give an object; any = all annotated "
                            "images; DIR = a folder of images without objects [any]")
    group.add_argument("--seed", type=whole(0, 2**31 - 1), metavar="N", help="of background positions [0]")


def add_crop_options(group, object_size: str, fit: str):
    """What a crop is like. object_size: its default; fit: what the choices mean."""
    group.add_argument("--crop_size", type=whole(8, 2048), metavar="PX", help="side of a crop, pixels [128]")
    group.add_argument("--object_size", type=whole(4, 2048), metavar="PX",
                       help=f"side of the object's box in the crop, pixels [{object_size}]")
    group.add_argument("--fit", choices=("warp", "keep"), help=f"{fit} [warp]")


def rules_from(args, **defaults) -> Rules:
    """Rules of the preset, then `defaults`, then the flags given. ValueError when they contradict."""
    values = {**PRESETS.get(vars(args).get("preset"), {}), **defaults}
    for field in dataclasses.fields(Rules):
        given = vars(args).get(field.name)
        if given is not None:
            values[field.name] = given
    rules = Rules(**values)
    if rules.object_size > rules.crop_size:
        raise ValueError(f"--object_size must be at most --crop_size {rules.crop_size}, "
                         f"got {rules.object_size}")
    if rules.y_from not in ("same", "any") and not Path(rules.y_from).is_dir():
        raise ValueError(f"--y_from must be same, any or a folder of images, got {rules.y_from!r}")
    both = set(rules.classes) & set(rules.exclude)
    if both:
        raise ValueError(f"--classes and --exclude both name {sorted(both)[0]!r}: keep it in one of them")
    return rules


# --- from photos to crops ---


def prepare(photos, rules: Rules, args, images: str, annotations: str, skips):
    """Cut the crops of `photos` into args.out, split by split, and print what became of the annotations.

    images, annotations: where the source came from. With the command they tell it from other sources;
    crops that the same source gave before are replaced.
    """
    origin = origin_of(args.source, images, annotations)
    photos = existing(photos, images, annotations, skips)
    known = {box.name for photo in photos for box in photo.boxes if box.name}
    if rules.classes and not known & set(rules.classes):
        raise ValueError(f"--classes {','.join(rules.classes)}: none of them is annotated; there are "
                         f"{', '.join(sorted(known)[:80]) or 'no classes'}")
    by_split = {split: [] for split in splits_of(args)}
    for photo in photos:
        by_split[split_of(photo, args)].append(photo)
    for split, part in by_split.items():
        prepare_split(part, rules, args, origin, skips, split)


def splits_of(args) -> tuple:
    return ("train", "test") if args.split == "auto" else (args.split,)


def split_of(photo, args) -> str:
    return auto_split(photo.file, args.test_fraction) if args.split == "auto" else args.split


def auto_split(file: str, test_fraction: float) -> str:
    """The split of an image, a function of its name alone, so that it stays when images are added."""
    return "test" if name_hash(file) < test_fraction * 2**63 else "train"


def existing(photos, images, annotations, skips):
    """The photos whose image file is there; the others are counted. ValueError when none is."""
    missing = [photo for photo in photos if not os.path.isfile(photo.path)]
    if not photos:
        why = f" ({next(iter(skips.examples.values()))})" if skips.examples else ""
        raise ValueError(f"no image is annotated in {annotations}{why}")
    if len(missing) == len(photos):
        raise ValueError(f"none of the {len(missing)} annotated images is in {images} "
                         f"(first: {missing[0].file}): check the folder")
    if missing:
        skips.add("image_missing", missing[0].path, len(missing))
        absent = {photo.file for photo in missing}
        return [photo for photo in photos if photo.file not in absent]
    return photos


def prepare_split(photos, rules, args, origin, skips, split):
    """Plan and write one split of one source."""
    index = read_index(args.out, split)
    here = origin_number(index, origin, rules, args.out)
    photos = outside_other_splits(photos, args.out, split, skips)
    dropped = Counter()
    found = {photo.file: find_objects(photo, rules, dropped) for photo in photos}
    sizes = [window[2:] for pairs in found.values() for _, window in pairs]
    y_photos = background_photos(photos, found, rules, split, args, skips)
    windows, y_counts = find_backgrounds(y_photos, sizes, rules)
    jobs = plan_jobs(photos, y_photos, found, windows, index, here)
    counts = {"images": len(photos), "boxes": sum(len(photo.boxes) for photo in photos),
              "dropped": {rule: dropped[rule] for rule in DROPS if dropped[rule]},
              "backgrounds_planned": dict(y_counts)}
    write_split(jobs, index, here, rules, args, origin, skips, split, counts)


def write_split(jobs, index, here, rules, args, origin, skips, split, counts):
    """Cut what is planned, list it in crops.json, draw the contact sheet, print the summary.

    Crops that the same source gave before are replaced, unless they are these already.
    """
    plan = plan_hash(jobs, rules.crop_size)
    if index["rules"][here]["plan"] == plan:
        drop_journal(Path(args.out, split), plan)  # left where the command was killed after the last file
        print(f"{split}: these crops are complete already, nothing to do")
        return
    drop_origin(index, args.out, split, here)
    lines = cut_jobs(jobs, plan, Path(args.out, split), rules.crop_size, args.num_workers, split)
    counts = {**counts, **list_crops(index, jobs, lines, rules.crop_size, here, skips)}
    counts["skipped"] = dict(skips.counts)
    # then a later run tries these images again
    failed = any("problem" in line or set(line["masks"].values()) - {"ok"} for line in lines)
    index["rules"][here] = {**origin, **dataclasses.asdict(rules), "plan": "" if failed else plan,
                            "counts": counts}
    write_index(args.out, split, index)
    drop_journal(Path(args.out, split), plan)
    print(summary(split, counts, index, here, skips))
    print(f"  to look at       {make_sheet(args.out, split)}")
    for other in others(split):
        pairs = near_duplicates(index["images"], read_index(args.out, other)["images"])
        if pairs:
            print(f"  near-duplicates  {len(pairs)} pairs with {other}, e.g. {pairs[0][0]} and {pairs[0][1]}; "
                  f"`prepare.py check {args.out}` lists them")


def origin_of(command, images, annotations) -> dict:
    """What tells a source from others: the command and its paths, however and wherever they were typed."""
    is_word = command in ("voc", "pets") or command == "cityscapes" and annotations in sources.CITYSCAPES_BOXES
    return {"command": command, "images": os.path.abspath(images),
            "annotations": annotations if is_word else os.path.abspath(annotations)}


def is_origin(entry, number, origin, index) -> bool:
    """Whether an entry of "rules" is of this source. Earlier versions wrote paths as they were typed, perhaps in
    another folder than today's: there the source is the same if some of its images are where today's are."""
    if any(value not in (entry.get(key), os.path.abspath(entry.get(key) or "")) for key, value in origin.items()):
        return False
    if os.path.isabs(entry["images"]):
        return True
    places = [image["path"] for image in index["images"] if image["origin"] == number]
    return not places or any(Path(place).is_relative_to(origin["images"]) for place in places)


def origin_number(index, origin, rules, out) -> int:
    """Where in index["rules"] this source stands; a new one is appended. ValueError on another crop size."""
    for number, entry in enumerate(index["rules"]):
        known = is_origin(entry, number, origin, index)
        if entry["crop_size"] != rules.crop_size and not (known and len(index["rules"]) == 1):
            raise ValueError(f"--crop_size {rules.crop_size} differs from the {entry['crop_size']} of the "
                             f"crops in {out}: all crops of a dataset must be of one size, choose another "
                             "--out")
        if known:
            return number
    index["rules"].append({**origin, **dataclasses.asdict(rules), "plan": "", "counts": {}})
    return len(index["rules"]) - 1


def drop_origin(index, out, split, here):
    """Take the crops that source `here` gave before off the list, then delete their files."""
    old = {kind: [stem for stem, crop in index[kind].items() if crop["origin"] == here]
           for kind in ("objects", "backgrounds")}
    if old["objects"] or old["backgrounds"]:
        for kind, stems in old.items():
            for stem in stems:
                del index[kind][stem]
        index["images"] = [image for image in index["images"] if image["origin"] != here]
        index["rules"][here].update(plan="", counts={})
        write_index(out, split, index)
        remove_crops(Path(out, split), old["objects"], old["backgrounds"])


def others(split) -> tuple:
    return tuple(other for other in SPLITS if other != split)


def outside_other_splits(photos, out, split, skips):
    """The photos that no other split uses; the others are counted."""
    for other in others(split):
        used = {image["path"] for image in read_index(out, other)["images"]}
        free = [photo for photo in photos if os.path.abspath(photo.path) not in used]
        if len(free) < len(photos):
            skips.add("image_in_other_split", f"{other} uses it", len(photos) - len(free))
        photos = free
    return photos


def background_photos(photos, found, rules, split, args, skips):
    """The images that backgrounds may come from, as --y_from says. Images of a folder are divided between train and
    the other splits by their names, and none serves two; one that is annotated keeps its boxes."""
    if rules.y_from == "any":
        return photos
    if rules.y_from == "same":
        return [photo for photo in photos if found[photo.file]]
    part = "train" if split == "train" else "test"
    prefix = f"{Path(rules.y_from).name}/"
    folder = [photo for photo in sources.read_folder(rules.y_from, skips, prefix, written(args.out))
              if auto_split(photo.file, args.test_fraction) == part]
    annotated = {os.path.abspath(photo.path): photo for photo in photos}
    # a name that an annotated image has too is told from it by "../", with which none of theirs begins
    named = [photo._replace(file=f"../{photo.file}") if photo.file in found else photo for photo in folder]
    return [annotated.get(os.path.abspath(photo.path), photo)
            for photo in outside_other_splits(named, args.out, split, skips)]


def plan_jobs(photos, y_photos, found, windows, index, here) -> list:
    """One Job for each image that gives a crop, with file names unlike those of the other sources."""
    taken = {kind: {stem.lower() for stem, crop in index[kind].items() if crop["origin"] != here}
             for kind in ("objects", "backgrounds")}
    jobs = []
    for photo in {photo.file: photo for photo in [*photos, *y_photos]}.values():
        objects = [Piece(make_stem(photo.file, box.id, taken["objects"]), window, box)
                   for box, window in found.get(photo.file, [])]
        backgrounds = [Piece(make_stem(photo.file, f"bg{k}", taken["backgrounds"]), window)
                       for k, window in enumerate(windows.get(photo.file, []))]
        if objects or backgrounds:
            jobs.append(Job(photo._replace(boxes=[box[:4] for box in photo.boxes]), objects, backgrounds))
    return jobs


def list_crops(index, jobs, lines, size, here, skips) -> dict:
    """Enter all crops that were cut into `index`; returns their counts and adds what failed to `skips`."""
    counts = {"objects": 0, "masks": 0, "backgrounds": 0}
    for job, line in zip(jobs, lines, strict=True):
        if "problem" in line:
            skips.add(line["problem"], line["example"])
            continue
        for piece in job.objects:
            index["objects"][piece.stem] = describe_object(piece, job.photo, size, here)
        for piece in job.backgrounds:
            index["backgrounds"][piece.stem] = describe_background(piece, job.photo, here)
        for state in line["masks"].values():
            if state != "ok":
                skips.add("bad_mask", state)
        counts["objects"] += len(job.objects)
        counts["backgrounds"] += len(job.backgrounds)
        counts["masks"] += sum(state == "ok" for state in line["masks"].values())
        index["images"].append({"file": job.photo.file, "path": os.path.abspath(job.photo.path),
                                "origin": here, "hash": line["hash"], "boxes": job.photo.boxes,
                                "upright": job.photo.upright})
    return counts


def summary(split, counts, index, here, skips) -> str:
    """What became of the boxes of one source, as a few lines of text."""
    planned = counts["backgrounds_planned"]
    classes = Counter(crop["class"] for crop in index["objects"].values() if crop["origin"] == here)
    dropped = ", ".join(f"{rule} {n}" for rule, n in counts["dropped"].items())
    common = ", ".join(f"{name} {n}" for name, n in classes.most_common(8))
    lines = [f"{split}: {counts['boxes']} boxes in {counts['images']} images",
             f"  objects (X)      {counts['objects']}, {counts['masks']} with a mask",
             f"  dropped by rule  {sum(counts['dropped'].values())}" + (f" ({dropped})" if dropped else ""),
             f"  backgrounds (Y)  {counts['backgrounds']} of {planned['wanted']} wanted; "
             f"{planned['smaller']} smaller than drawn from X, {planned['missing']} found no place",
             f"  classes of X     {len(classes)}" + (f" ({common})" if common else "")]
    lines += [f"  skipped          {reason} {n} (first: {skips.examples[reason]})"
              for reason, n in skips.counts.items()]
    if counts["objects"] == 0:
        lines.append("  no object meets the rules: see which rule dropped most, and loosen it")
    return "\n".join(lines)


# --- crops that exist already ---


def prepare_folder(args, rules, skips):
    """Take whole images of --objects and --backgrounds for crops; --masks holds masks of the same stems."""
    for folder in (args.objects, args.backgrounds, args.masks):
        if folder and any(Path(folder).resolve().is_relative_to(Path(args.out, split).resolve()) for split in SPLITS):
            raise ValueError(f"{folder} lies where --out {args.out} would put the crops, which would replace the "
                             "pictures they are made from: name another --out")
    origin = origin_of("folder", args.objects, args.backgrounds)
    own = written(args.out)
    objects = sources.read_folder(args.objects, skips, "objects/", own)
    backgrounds = sources.read_folder(args.backgrounds, skips, "backgrounds/", own)
    masks = {os.path.splitext(name)[0]: f"{args.masks}/{name}"
             for name in (sources.list_images(args.masks, own) if args.masks else [])}
    for split in splits_of(args):
        index = read_index(args.out, split)
        here = origin_number(index, origin, rules, args.out)
        taken = {kind: {stem.lower() for stem, crop in index[kind].items() if crop["origin"] != here}
                 for kind in ("objects", "backgrounds")}
        jobs = []
        for photo in outside_other_splits(objects, args.out, split, skips):
            if split_of(photo, args) == split:
                window = whole_window(photo, rules.fit)
                name = os.path.splitext(photo.file)[0].removeprefix("objects/")
                mask = ("png", masks[name], None, 128) if name in masks else None
                box = sources.Box(*centred_box(window, rules), args.name, 0, mask=mask)
                piece = Piece(make_stem(photo.file, "", taken["objects"]), window, box)
                jobs.append(Job(photo._replace(boxes=[box[:4]]), [piece], []))
        wanted = len(jobs)
        for photo in outside_other_splits(backgrounds, args.out, split, skips):
            if split_of(photo, args) == split:
                piece = Piece(make_stem(photo.file, "", taken["backgrounds"]), whole_window(photo, rules.fit))
                jobs.append(Job(photo, [], [piece]))
        counts = {"images": len(jobs), "boxes": wanted, "dropped": {},
                  "backgrounds_planned": dict.fromkeys(("wanted", "exact"), len(jobs) - wanted)
                  | {"smaller": 0, "missing": 0}}
        write_split(jobs, index, here, rules, args, origin, skips, split, counts)


def whole_window(photo, fit) -> tuple:
    """The window of a whole image (warp), or of its largest centred square (keep)."""
    if fit == "warp":
        return 0.0, 0.0, float(photo.width), float(photo.height)
    side = min(photo.width, photo.height)
    return (photo.width - side) / 2, (photo.height - side) / 2, float(side), float(side)


def centred_box(window, rules) -> tuple:
    """The object's box in a finished crop: its middle."""
    x0, y0, w, h = window
    part = rules.object_size / rules.crop_size
    return x0 + w * (1 - part) / 2, y0 + h * (1 - part) / 2, w * part, h * part


# --- the commands ---


def run_coco(args):
    skips, rules = sources.Skips(), rules_from(args)
    photos = sources.read_coco(args.images, args.annotations, skips)
    prepare(photos, rules, args, args.images, args.annotations, skips)


def run_csv(args):
    skips, rules = sources.Skips(), rules_from(args)
    photos = sources.read_csv(args.images, args.annotations, skips)
    prepare(photos, rules, args, args.images, args.annotations, skips)


def run_voc(args):
    skips, rules = sources.Skips(), rules_from(args)
    root = download_voc(args.root, args.download) if args.download else args.root
    photos = sources.read_voc(root, args.image_set, skips)
    prepare(photos, rules, args, root, args.image_set or "all", skips)


def run_pets(args):
    skips, rules = sources.Skips(), rules_from(args)
    root = download_pets(args.root) if args.download else args.root
    photos = sources.read_pets(root, args.image_set, skips)
    prepare(photos, rules, args, root, args.image_set, skips)


def run_cityscapes(args):
    skips, rules = sources.Skips(), rules_from(args, **({"min_score": 0.8} if args.detections else {}))
    if args.detections:
        images = f"{args.root}/leftImg8bit_sequence/{args.image_set}"
        read = sources.read_detections if args.detections.endswith(".jsonl") else sources.read_coco
        photos, boxes = read(images, args.detections, skips), args.detections
    else:
        images, boxes = f"{args.root}/leftImg8bit/{args.image_set}", args.boxes
        photos = sources.read_cityscapes(args.root, args.image_set, boxes, skips)
    prepare(photos, rules, args, images, boxes, skips)


def run_folder(args):
    whole_crop = args.crop_size or Rules.crop_size  # the box, unless --object_size says better
    rules = rules_from(args, object_size=whole_crop, min_side=0.0, max_fraction=0.0, min_aspect=0.0, y_per_x=0.0)
    prepare_folder(args, rules, sources.Skips())


def run_detect(args):
    skips, rules = sources.Skips(), rules_from(args, min_score=0.8)
    device = args.device
    path = Path(args.boxes or Path(args.out, f"detections_{args.split}.jsonl"))
    model = detector.load_detector(args.detector_weights, device)
    detect = partial(detector.detect_boxes, model, names=detector.category_names(), device=device)
    progress = partial(tqdm, desc="detect", unit="image", disable=None)
    detector.detect_folder(args.images, path, detect, progress, skips, written(args.out))
    photos = sources.read_detections(args.images, path, skips)
    prepare(photos, rules, args, args.images, str(path), skips)


def run_check(args):
    problems = check(args.dataroot, args.num_workers)
    print(*problems[:50], sep="\n", end="\n" if problems else "")
    if problems:
        raise ValueError(f"{len(problems)} problems in {args.dataroot}, the first of them listed above")
    print("no problems")


def download_voc(root, name) -> str:
    """Download Pascal VOC of a year with torchvision; returns the folder that holds Annotations."""
    from torchvision.datasets import VOCDetection

    year = name.removeprefix("voc")
    with_clear_errors(name, partial(VOCDetection, root, year=year, image_set="trainval", download=True))
    return f"{root}/{'TrainVal/' if year == '2011' else ''}VOCdevkit/VOC{year}"


def download_pets(root) -> str:
    """Download Oxford-IIIT Pet with torchvision; returns the folder that holds images and annotations."""
    from torchvision.datasets import OxfordIIITPet

    with_clear_errors("oxford-pets", partial(OxfordIIITPet, root, target_types="segmentation", download=True))
    return f"{root}/oxford-iiit-pet"


def with_clear_errors(name, download):
    """Run a torchvision download; ValueError in one line when it fails."""
    try:
        download()
    except (OSError, RuntimeError) as error:
        why = str(error).splitlines()[0] if str(error) else repr(error)
        raise ValueError(f"{name} cannot be downloaded ({why}): fetch it elsewhere and give its folder "
                         "as --root without --download") from None


def add_commands(subparsers):
    """Add the sub-commands to `subparsers` (argparse); each sets run=function(args)."""
    def add(name, run, text):
        parser = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        parser.set_defaults(run=run, source=name)
        return parser

    coco = add("coco", run_coco, "crops from images and a COCO instances file")
    coco.add_argument("--images", required=True, metavar="DIR", help="folder that the file names refer to")
    coco.add_argument("--annotations", required=True, metavar="FILE", help="COCO instances JSON")

    table = add("csv", run_csv, "crops from images and a CSV of boxes")
    table.add_argument("--images", required=True, metavar="DIR", help="folder that the file names refer to")
    table.add_argument("--annotations", required=True, metavar="FILE",
                       help="CSV with a header: file, x,y,w,h or xmin,ymin,xmax,ymax; optional class, id, "
                            "score, crowd, mask")

    detect = add("detect", run_detect, "crops from photographs without boxes, by a pretrained Faster R-CNN")
    detect.add_argument("--images", required=True, metavar="DIR", help="folder of photographs")
    detect.add_argument("--detector_weights", metavar="FILE",
                        help="state dict of torchvision's fasterrcnn_resnet50_fpn [downloaded]")
    detect.add_argument("--boxes", metavar="FILE",
                        help="keeps detections, to go on from later [DATAROOT/detections_SPLIT.jsonl]")
    detect.add_argument("--device", default="cpu", metavar="cpu|cuda", help="where the detector runs [cpu]")

    folder = add("folder", run_folder, "a dataset from crops that exist already")
    folder.add_argument("--objects", required=True, metavar="DIR", help="images with an object (X)")
    folder.add_argument("--backgrounds", required=True, metavar="DIR", help="images without objects (Y)")
    folder.add_argument("--masks", metavar="DIR",
                        help="masks with the objects' file stems: above 127 object, 128 void")
    folder.add_argument("--name", default="object", help="class of the objects [object]")
    add_output_options(folder)
    add_crop_options(folder, "--crop_size: the object may be anywhere",
                     "warp: the image becomes a square; keep: the largest square in its middle is taken")
    for parser in (coco, table, detect, *add_datasets(add)):
        add_output_options(parser)
        add_rule_options(parser)

    looked = add("check", run_check, "look through finished crops for faults")
    looked.add_argument("dataroot", metavar="DATAROOT")
    looked.add_argument("--num_workers", type=whole(0, 256), default=min(os.cpu_count() or 1, 16),
                        metavar="N", help="processes [one a core, at most 16]")


def add_datasets(add) -> list:
    """Add the commands for data sets that come in a layout of their own; returns their parsers."""
    voc = add("voc", run_voc, "crops from Pascal VOC")
    voc.add_argument("--root", required=True, metavar="DIR",
                     help="holds Annotations and JPEGImages, e.g. VOCdevkit/VOC2012; where to put a download")
    voc.add_argument("--image_set", metavar="NAME",
                     help="list below ImageSets without .txt, e.g. Segmentation/train [every XML file]")
    voc.add_argument("--download", choices=tuple(f"voc{year}" for year in range(2007, 2013)),
                     help="download this year's first, to --root")

    pets = add("pets", run_pets, "crops from Oxford-IIIT Pet: cats and dogs with masks")
    pets.add_argument("--root", required=True, metavar="DIR",
                      help="holds images and annotations; or where to put a download")
    pets.add_argument("--image_set", choices=("trainval", "test"), default="trainval",
                      help="list of images [trainval]")
    pets.add_argument("--download", choices=("oxford-pets",), help="download it first, to --root")

    cityscapes = add("cityscapes", run_cityscapes, "crops from Cityscapes")
    cityscapes.add_argument("--root", required=True, metavar="DIR", help="holds gtFine and leftImg8bit")
    cityscapes.add_argument("--image_set", choices=("train", "val"), default="train",
                            help="Cityscapes' own split; test has no annotations [train]")
    cityscapes.add_argument("--boxes", choices=tuple(sources.CITYSCAPES_BOXES), default="gtFine",
                            help="boxes of the gtFine polygons, or of gtBboxCityPersons / gtBbox3d [gtFine]")
    cityscapes.add_argument("--detections", metavar="FILE",
                            help="take leftImg8bit_sequence/IMAGE_SET with these boxes: .jsonl of `detect`, "
                                 "or COCO .json")
    return [voc, pets, cityscapes]


def main(argv=None):
    """`python prepare.py COMMAND ...`. Returns the exit code."""

    parser = argparse.ArgumentParser(prog="prepare.py", description="Prepare crops of objects and of backgrounds.")
    commands = parser.add_subparsers(dest="command", required=True)
    add_commands(commands)
    add = commands.add_parser("demo", help="make the procedural demo set",
                              formatter_class=argparse.ArgumentDefaultsHelpFormatter).add_argument
    add("--out", required=True, help="DATAROOT to write")
    add("--seed", type=int, default=0, help="of the pictures")
    args = parser.parse_args(argv)
    try:
        if args.command == "demo":
            demo.make_demo(args.out, args.seed)
            return 0
        return args.run(args) or 0
    except (ValueError, OSError) as error:
        print(f"prepare.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare.py: stopped: the same command goes on where it was", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
