"""From a source of photographs and boxes to splits of crops: what goes where, cutting it, and what became of it."""
import dataclasses
import hashlib
import json
import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from crops import index as dataroot
from crops.annotations import Box, Skips, read_folder
from crops.check import make_sheet, near_duplicates
from crops.cutting import CutJob, Piece, cut_job, in_parallel
from crops.index import SPLITS, describe_piece, make_stem, read_index
from crops.rules import DROPS, Rules, find_backgrounds, find_objects, most_dropping, name_hash, remedy
from images import UserError, open_image, printable


class Source(NamedTuple):
    """Photographs and their boxes. By the first three it is known when it comes again: its crops are then replaced."""

    command: str  # of prepare.py
    images: str  # folder
    annotations: str  # absolute path of a file, or the data set's word for which of its photographs
    photos: list
    skips: Skips  # what was left out, by its reader and here


class Output(NamedTuple):
    """Where crops go."""

    dataroot: str
    split: str = "train"  # or val, test; or auto: each image by a hash of its name
    test_fraction: float = 0.1  # of the images, that auto sends to test
    val_fraction: float = 0.1
    num_workers: int = 0  # processes that decode and cut, 0 = this one; the crops are the same

    def parts(self, photos):
        """[(split, those of the photographs that go there), ...]"""
        if self.split != "auto":
            return [(self.split, photos)]
        found = [(photo, auto_split(photo.file, self.test_fraction, self.val_fraction)) for photo in photos]
        return [(split, [photo for photo, its in found if its == split]) for split in SPLITS]


def auto_split(file: str, test_fraction: float, val_fraction: float = 0.0) -> str:
    """The split of an image, a function of its name alone, so that it stays when images are added."""
    place = name_hash(file)
    if place < test_fraction * 2**63:
        return "test"
    return "val" if place < (test_fraction + val_fraction) * 2**63 else "train"


# --- photographs and boxes ---


def build(source: Source, rules: Rules, output: Output):
    """Cut what the rules choose of a source, split by split, and print what became of its boxes. UserError where
    nothing of it can be used, or where it does not fit what output.dataroot holds."""
    photos = existing(source)
    known = {box.name for photo in photos for box in photo.boxes if box.name}
    if rules.classes and not known & set(rules.classes):
        raise UserError(f"--classes {','.join(rules.classes)}: none of them is annotated; there are "
                        f"{', '.join(sorted(known)[:80]) or 'no classes'}")
    for split, part in output.parts(photos):
        build_split(SplitBuild(source, rules, output, split), part)


def existing(source) -> list:
    """The source's photographs whose file is there; the others are counted. UserError when none is."""
    photos, missing, skips = [], [], source.skips
    for photo in source.photos:
        (photos if os.path.isfile(photo.path) else missing).append(photo)
    if not source.photos:
        why = f" ({next(iter(skips.examples.values()))})" if skips.examples else ""
        raise UserError(f"no image is annotated in {source.annotations}{why}")
    if not photos:
        raise UserError(f"none of the {len(missing)} annotated images is in {source.images} (first: "
                        f"{missing[0].file}): check the folder")
    if missing:
        skips.add("image_missing", missing[0].path, len(missing))
    return photos


def build_split(target, photos):
    """Plan and write one split. target: a `SplitBuild`."""
    photos, rules = target.unused(photos), target.rules
    dropped, jobs, taken = Counter(), [], target.stems()
    found = {photo.file: find_objects(photo, rules, dropped) for photo in photos}
    if target.is_needed and not any(found.values()):
        raise UserError(no_objects(target, photos, dropped))
    y_photos = background_photos(target, photos, found)
    windows, placed = find_backgrounds(y_photos, [window[2:] for pairs in found.values() for _, window in pairs], rules)
    if target.is_needed and rules.y_per_x and not windows and not target.stems()["backgrounds"]:
        raise UserError(f"{target.split}: no background found a place: {more_room(target, y_photos)}")
    boxes = sum(len(photo.boxes) for photo in photos)
    hints = []
    if rule := most_dropping(dropped, boxes):
        hints.append(f"more than half   dropped by {rule}: {remedy(rule, photos, rules)}")
    if 2 * placed["missing"] > placed["wanted"]:
        hints.append(f"few backgrounds  {more_room(target, y_photos)}")
    for photo in {photo.file: photo for photo in [*photos, *y_photos]}.values():
        objects = [Piece(make_stem(photo.file, box.id, taken["objects"]), window, box)
                   for box, window in found.get(photo.file, [])]
        backgrounds = [Piece(make_stem(photo.file, f"bg{k}", taken["backgrounds"]), window)
                       for k, window in enumerate(windows.get(photo.file, []))]
        if objects or backgrounds:
            jobs.append(CutJob(photo._replace(boxes=[box[:4] for box in photo.boxes]), objects, backgrounds))
    target.write(jobs, {"images": len(photos), "boxes": boxes,
                        "dropped": {rule: dropped[rule] for rule in DROPS if dropped[rule]},
                        "backgrounds_planned": dict(placed)}, hints)


def no_objects(target, photos, dropped) -> str:
    """Why a source gives no object, and what to do."""
    boxes = sum(len(photo.boxes) for photo in photos)
    if not photos:
        return f"{target.split}: no image is left for it{target.skipped()}"
    if not boxes:
        return f"{target.split}: no box in its {len(photos)} images{target.skipped()}"
    rule = most_dropping(dropped, boxes, half=False)
    return (f"{target.split}: none of the {boxes} boxes becomes an object, {rule} alone drops {dropped[rule]}: "
            f"{remedy(rule, photos, target.rules)}")


def is_of_split(target) -> bool:
    """Whether --y_from is a folder that is named as the --split, as backgrounds/test: then all in it is its."""
    return Path(target.rules.y_from).resolve().name == target.output.split


def more_room(target, y_photos) -> str:
    """Where backgrounds of X's sizes could come from, when `y_photos` have no room for them."""
    y_from, share = target.rules.y_from, int(target.split != "train")
    divided = "" if is_of_split(target) else f" (they are divided by their names, --test_fraction {share} takes all)"
    if y_from in ("same", "any"):
        return (f"objects leave too little room in their photographs (at most --y_per_image {target.rules.y_per_image} "
                "each): --y_from DIR takes backgrounds from photographs without objects")
    if not y_photos:
        return f"no image of --y_from {y_from} is for {target.split}{divided}{target.skipped()}"
    return (f"the {len(y_photos)} images of --y_from {y_from} for {target.split}{divided} are too few, or too small "
            "for the objects' windows: add more and larger ones")


def background_photos(target, photos, found) -> list:
    """The images that backgrounds may come from, as --y_from says. Those of a folder are divided by their names,
    between all splits if --split is auto, else between train and the others, unless the folder is named as the split;
    what is annotated keeps its boxes."""
    rules, output = target.rules, target.output
    if rules.y_from == "any":
        return photos
    if rules.y_from == "same":
        return [photo for photo in photos if found[photo.file]]
    prefix = f"{Path(rules.y_from).name}/"
    folder = read_folder(rules.y_from, target.source.skips, prefix, dataroot.own_files(output.dataroot))
    if output.split == "auto":
        folder = dict(output.parts(folder))[target.split]
    elif not is_of_split(target):
        part = "train" if target.split == "train" else "test"
        folder = [photo for photo in folder if auto_split(photo.file, output.test_fraction) == part]
    annotated = {os.path.abspath(photo.path): photo for photo in target.source.photos}
    # a name that an annotated image has too is told from it by "../", with which none of theirs begins
    named = [photo._replace(file=f"../{photo.file}") if photo.file in found else photo for photo in folder]
    return [annotated.get(os.path.abspath(photo.path), photo) for photo in target.unused(named)]


# --- crops that exist already ---


def build_finished(source: Source, backgrounds: list, masks: dict, name: str, rules: Rules, output: Output):
    """Take whole images for crops: the source's photographs for objects, of the class `name`, and `backgrounds`.

    masks: {stem of an object: path of its mask}.
    """
    y_parts = dict(output.parts(backgrounds))
    for split, x_part in output.parts(source.photos):
        target, jobs = SplitBuild(source, rules, output, split), []
        taken = target.stems()
        for photo in target.unused(x_part):
            window = whole_window(photo, rules.fit)
            path = masks.get(os.path.splitext(photo.file)[0].removeprefix("objects/"))
            box = Box(*centred_box(window, rules), name, 0, mask=path and ("mask", path))
            piece = Piece(make_stem(photo.file, "", taken["objects"]), window, box)
            jobs.append(CutJob(photo._replace(boxes=[box[:4]]), [piece], []))
        boxes = len(jobs)
        if target.is_needed and not boxes:
            raise UserError(f"{split}: no image of {source.images} is left for it{target.skipped()}")
        for photo in target.unused(y_parts[split]):
            piece = Piece(make_stem(photo.file, "", taken["backgrounds"]), whole_window(photo, rules.fit))
            jobs.append(CutJob(photo, [], [piece]))
        planned = {"wanted": len(jobs) - boxes, "exact": len(jobs) - boxes, "smaller": 0, "missing": 0}
        target.write(jobs, {"images": len(jobs), "boxes": boxes, "dropped": {}, "backgrounds_planned": planned})


def whole_window(photo, fit) -> tuple:
    """The window of a whole image (warp), or of its largest centred square (keep)."""
    width, height = float(photo.width), float(photo.height)
    w, h = (width, height) if fit == "warp" else (min(width, height),) * 2
    return (width - w) / 2, (height - h) / 2, w, h


def centred_box(window, rules) -> tuple:
    """The object's box in a finished crop: its middle."""
    x0, y0, w, h = window
    part = rules.object_size / rules.crop_size
    return x0 + w * (1 - part) / 2, y0 + h * (1 - part) / 2, w * part, h * part


# --- one split ---


class SplitBuild:
    """One source on its way into one split. UserError when its crops would be of another size than those there."""

    def __init__(self, source: Source, rules: Rules, output: Output, split: str):
        self.source, self.rules, self.output, self.split = source, rules, output, split
        self.folder, self.index = Path(output.dataroot, split), read_index(output.dataroot, split)
        self.others = {name: read_index(output.dataroot, name)["images"] for name in SPLITS if name != split}
        self.identity = {"command": source.command, "images": os.path.abspath(source.images),
                         "annotations": source.annotations}
        entries = self.index["rules"]
        known = [number for number, entry in enumerate(entries) if self.identity.items() <= entry.items()]
        self.number = known[0] if known else len(entries)  # its place in "rules"
        for number, entry in enumerate(entries):
            if entry["crop_size"] != rules.crop_size and number != self.number:
                raise UserError(f"--crop_size {rules.crop_size} differs from the {entry['crop_size']} of the crops in "
                                f"{output.dataroot}: all crops of a dataset must be of one size, choose another --out")

    def unused(self, photos) -> list:
        """The photographs that no other split uses; the others are counted."""
        for other, images in self.others.items():
            used = {image["path"] for image in images}
            free = [photo for photo in photos if os.path.abspath(photo.path) not in used]
            if len(free) < len(photos):
                self.source.skips.add("image_in_other_split", f"{other} uses it", len(photos) - len(free))
            photos = free
        return photos

    @property
    def is_needed(self) -> bool:
        """Whether nothing for it is a mistake: `auto` may leave out test and val."""
        return self.split == "train" or self.output.split != "auto"

    def skipped(self) -> str:
        """The reasons for which images and boxes were left out, in brackets."""
        skips = self.source.skips
        return "".join(f" ({reason} {n}, first: {skips.examples[reason]})" for reason, n in skips.counts.items())

    def stems(self) -> dict:
        """{kind: file names, in lower case, that other sources have taken}."""
        return {kind: {stem.lower() for stem, crop in self.index[kind].items() if crop["origin"] != self.number}
                for kind in ("objects", "backgrounds")}

    def write(self, jobs, counts, hints=()):
        """Cut what is planned, list it in crops.json, draw the contact sheet, print the summary with `hints`.

        Crops that the same source gave before are replaced, unless they are these already. UserError when no object, or
        no background, could be cut.
        """
        if not jobs and self.output.split == "auto" and not self.folder.exists():
            print(f"{self.split}: no crop falls into it, so it is left out")
            return
        entries, plan = self.index["rules"], plan_hash(jobs, self.rules)
        if self.number < len(entries) and entries[self.number]["plan"] == plan:
            dataroot.drop_journal(self.folder, plan, self.index)  # left by a command killed after the last file
            print(f"{self.split}: these crops are complete already, nothing to do")
            try:
                open_image(self.folder / "sheet.jpg")
            except OSError:  # killed before it was drawn
                print(f"  to look at       {make_sheet(self.output.dataroot, self.split)}")
            return
        self.drop_earlier()
        lines = cut_jobs(jobs, plan, self.folder, self.rules.crop_size, self.output.num_workers, self.split, self.index)
        counts |= self.list_crops(jobs, lines)
        counts["skipped"] = dict(self.source.skips.counts)
        # then a later run tries these images again
        failed = any("problem" in line or set(line["masks"].values()) - {"ok"} for line in lines)
        entries[self.number:self.number + 1] = [{**self.identity, **dataclasses.asdict(self.rules),
                                                 "plan": "" if failed else plan, "counts": counts}]
        (self.folder / "sheet.jpg").unlink(missing_ok=True)  # of other crops: a kill before the next must not leave it
        dataroot.save_index(self.folder, self.index)
        dataroot.drop_journal(self.folder, plan, self.index)
        print(self.summary(counts, hints))
        print(f"  to look at       {make_sheet(self.output.dataroot, self.split)}")
        for other, images in self.others.items():
            pairs = near_duplicates(self.index["images"], images)
            if pairs:
                print(printable(f"  near-duplicates  {len(pairs)} pairs with {other}, e.g. {pairs[0][0]} and "
                                f"{pairs[0][1]}; `prepare.py check {self.output.dataroot}` lists them"))
        for kind in ("objects", "backgrounds"):
            if any(getattr(job, kind) for job in jobs) and not counts[kind]:
                raise UserError(f"{self.split}: none of the {kind} could be cut{self.skipped()}")

    def drop_earlier(self):
        """Take the crops that this source gave before off the list, then delete their files."""
        old = {kind: [stem for stem, crop in self.index[kind].items() if crop["origin"] == self.number]
               for kind in ("objects", "backgrounds")}
        # also where none of its crops is listed: a command may have been killed between sources.json and crops.json
        self.index["images"] = [image for image in self.index["images"] if image["origin"] != self.number]
        if any(old.values()):
            print(f"{self.split}: replaces the {len(old['objects'])} objects and {len(old['backgrounds'])} backgrounds "
                  "that the same annotations gave before")
            dataroot.plan_removal(self.folder, old, self.index)
            for kind, stems in old.items():
                for stem in stems:
                    del self.index[kind][stem]
            self.index["rules"][self.number].update(plan="", counts={})
            dataroot.save_index(self.folder, self.index)
            dataroot.remove_crops(self.folder, old, self.index)

    def list_crops(self, jobs, lines) -> dict:
        """Enter all crops that were cut into the index; returns their counts, and counts what failed."""
        counts, skips = {"objects": 0, "masks": 0, "backgrounds": 0}, self.source.skips
        for (photo, *pieces), line in zip(jobs, lines, strict=True):
            if "problem" in line:
                skips.add(line["problem"], line["example"])
                continue
            for kind, part in zip(("objects", "backgrounds"), pieces, strict=True):
                counts[kind] += len(part)
                for piece in part:
                    self.index[kind][piece.stem] = describe_piece(piece, photo, self.rules.crop_size, self.number)
            for state in line["masks"].values():
                if state == "ok":
                    counts["masks"] += 1
                else:
                    skips.add("bad_mask", state)
            self.index["images"].append({"file": photo.file, "path": os.path.abspath(photo.path), "origin": self.number,
                                         "hash": line["hash"], "boxes": photo.boxes, "upright": photo.upright})
        return counts

    def summary(self, counts, hints) -> str:
        """What became of the source's boxes, as a few lines of text."""
        planned, dropped, boxes = counts["backgrounds_planned"], counts["dropped"], counts["boxes"]
        mine = [crop for crop in self.index["objects"].values() if crop["origin"] == self.number]
        reflected = [crop["outside"] for crop in mine if "outside" in crop]
        classes = Counter(crop["class"] for crop in mine)
        rules = ", ".join(f"{rule} {n}" for rule, n in dropped.items())
        common = ", ".join(f"{name} {n}" for name, n in classes.most_common(8))
        lines = [f"{self.split}: {boxes} boxes in {counts['images']} images",
                 f"  objects (X)      {counts['objects']}, {counts['masks']} with a mask",
                 f"  dropped by rule  {sum(dropped.values())}" + (f" ({rules})" if rules else "")]
        if reflected:
            lines.append(f"  reflected        {len(reflected)} objects' crops leave the image, with a median of "
                         f"{np.median(reflected):.0%} of their area")
        lines += [f"  backgrounds (Y)  {counts['backgrounds']} of {planned['wanted']} wanted; "
                  f"{planned['smaller']} smaller than drawn from X, {planned['missing']} found no place",
                  f"  classes of X     {len(classes)}" + (f" ({common})" if common else "")]
        lines += [f"  skipped          {reason} {n} (first: {self.source.skips.examples[reason]})"
                  for reason, n in self.source.skips.counts.items()]
        return "\n".join(map(printable, [*lines, *(f"  {hint}" for hint in hints)]))


# --- cutting ---


def plan_hash(jobs, rules: Rules) -> str:
    """A name for exactly these crops, wherever the command is typed."""
    jobs = [job._replace(photo=job.photo._replace(path=os.path.abspath(job.photo.path))) for job in jobs]
    return hashlib.sha256(repr((rules.crop_size, rules.outside, jobs)).encode()).hexdigest()


def cut_jobs(jobs, plan: str, folder, size: int, num_workers: int, label="", index=dataroot.EMPTY) -> list:
    """Cut `jobs` (of one split and source) into `folder`; returns their journal lines in the same order.

    plan: `plan_hash` of the jobs. index: what the split holds already. Goes on where a run of the same plan was
    interrupted.
    """
    from tqdm import tqdm  # here: prepare.py --help need not wait for it

    done = dataroot.open_journal(Path(folder), plan, jobs, index)
    todo = [job for job in jobs if job.photo.file not in done]
    work = partial(cut_job, folder=str(folder), size=size)
    chunk = max(1, min(16, len(todo) // (4 * max(1, num_workers))))
    lines = tqdm(in_parallel(work, todo, num_workers, chunk), total=len(jobs), initial=len(done), desc=label,
                 unit="image", disable=None)
    with open(Path(folder, dataroot.JOURNAL), "a", encoding="utf-8") as journal:
        for line in lines:
            done[line["file"]] = line
            journal.write(json.dumps(line) + "\n")
            journal.flush()
    return [done[job.photo.file] for job in jobs]
