"""Which photographs `python photo.py` works on, with which boxes or masks, what is done with each, and where it goes:

    OUT/KIND/NAME.png, OUT/KIND/NAME_2.png, ...

of a photograph's first object, its second and so on. KIND is one of KINDS; NAME is the photograph's whole name, below
the folders that it has in --images: OUT/cut/sub/dog.jpg.png. With --out FILE.png the result is that file, what comes
with it goes beside it: FILE_mask.png. `args` are the options of photo.py.
"""
import os
import sys
from typing import NamedTuple

from PIL import Image, ImageChops
from tqdm import tqdm

from crops import annotations, formats
from crops.rules import name_hash
from crops.values import refuse_shares
from images import UNREADABLE, UserError, list_images, open_mask, printable, stored_size
from photos import edit, files

KINDS = {"cut": ("cut", "cut_mask"), "remove": ("removed", "removed_mask"),
         "paste": ("pasted", "coarse", "pasted_mask"), "move": ("moved", "moved_mask")}


class Job(NamedTuple):
    """One photograph to work on."""

    file: str  # its name in messages and of its results
    path: str
    boxes: list | None  # x, y, w, h each, upright; None = the detector's, or there are masks
    photo: annotations.Photo | None = None  # from an annotation file, whose boxes may have to be turned
    masks: tuple = ()  # paths of the user's own, one an object, in place of boxes


class Problems(list):
    """What readers of annotation files cannot use, a line each, in place of `annotations.Skips`."""

    def add(self, reason, example, n=1):
        self.append(f"{example} ({reason})")


def arrange(args):
    """Settle what is worked on: `image` is one photograph or None; `only`, the names of several that were given, is
    None for all of `images`; `file` is the one result where --out names a file, None where it names a folder."""
    paths, args.only, args.file = args.image, None, None
    args.image = paths[0] if len(paths) == 1 and args.boxes in (None, "detect") else None
    if paths and not args.image:
        if args.box or args.mask:
            raise UserError(f"--{'box' if args.box else 'mask'} is for one photograph, got {len(paths)}: for several "
                            "give --boxes FILE, detect, or --masks DIR")
        folders = sorted({os.path.dirname(path) or "." for path in paths})
        if len(folders) > 1:
            raise UserError(f"several photographs must be of one folder, got {folders[0]} and {folders[1]}: give "
                            "--images with the folder of both")
        args.images, args.only = folders[0], list(dict.fromkeys(map(os.path.basename, paths)))
    if files.format_of(args.out) and not os.path.isdir(args.out):
        if not args.image:
            raise UserError(f"--out {args.out} is one file: name a folder for the results of several photographs")
        args.file, args.format, args.out = args.out, files.format_of(args.out), os.path.dirname(args.out) or "."


def check(args):
    """UserError for options that contradict each other, which argparse cannot see."""
    if args.images and (args.box or args.mask):
        raise UserError("--box and --mask are for one photograph: a folder --images takes --boxes FILE, detect, or "
                        "--masks")
    if args.image and os.path.isdir(args.image):
        raise UserError(f"{args.image} is a folder: give it as --images, with --boxes FILE or detect")
    for path in (args.image, *(args.mask or ()), getattr(args, "background", None)):  # before a model is loaded
        if path and not os.path.exists(path):
            raise FileNotFoundError(f"no image {path}")
    if args.image and args.masks:
        raise UserError("--masks is for a folder --images: one photograph takes --mask FILE")
    refuse_shares(args.box or [], "--box")
    if args.out and os.path.lexists(args.out) and not os.path.isdir(args.out):
        raise UserError(f"--out {args.out} is a file, and none of an image: name a folder, or a file that ends in "
                        f"{', '.join(files.FORMATS)}")
    for option, folder, what in (("images", args.images, "photographs"), ("masks", args.masks, "masks")):
        if folder and not os.path.isdir(folder):
            raise FileNotFoundError(f"no folder {folder}: --{option} takes a folder of {what}")
    if args.masks and os.path.samefile(args.images, args.masks):
        raise UserError(f"--masks {args.masks} is the folder of the photographs: put the masks in another")
    for folder in (args.out, *(os.path.join(args.out, kind) for kind in KINDS[args.command])):
        if args.images and not args.only and os.path.isdir(folder) and os.path.samefile(folder, args.images):
            raise UserError(f"--out {args.out} would put results among the photographs of --images: choose another")


def find_jobs(args):
    """The photographs to work on, and lines about what an annotation file holds that cannot be used."""
    if args.image:
        return [Job(os.path.basename(args.image), args.image, args.box, masks=tuple(args.mask or ()))], []
    if args.masks:
        return find_masks(args)
    if args.boxes == "detect":
        return [Job(name, f"{args.images}/{name}", None)
                for name in args.only or photographs(args.images, args.out)], []
    if not os.path.exists(args.boxes):
        raise FileNotFoundError(f"no file {args.boxes}: --boxes takes a file or a folder of boxes, or detect")
    jobs, problems = [], Problems()
    kind, photos = formats.read_boxes(args.images, args.boxes, problems)
    print(printable(f"{args.boxes}: read as {formats.KINDS[kind]}"))
    least = args.score if kind == "detections" else 0
    for photo in photos:
        boxes = [box[:4] for box in photo.boxes if not box.crowd and box.score >= least
                 and (not args.classes or box.name in args.classes)]
        if boxes and photo.file in (args.only or [photo.file]):
            jobs.append(Job(photo.file, photo.path, boxes, photo=photo))
    if not jobs:
        raise UserError(f"{args.boxes} has no box" + f" for {', '.join(args.only or [])}" * bool(args.only)
                        + f" of class {', '.join(args.classes)}" * bool(args.classes)
                        + f" with a score of {least} or more: lower --score" * bool(least)
                        + "".join(f" ({problem})" for problem in problems[:1]))
    done = {job.file for job in jobs}
    return jobs, problems + [f"{name}: {args.boxes} has no such box for it" for name in args.only or ()
                             if name not in done]


def find_masks(args):
    """`find_jobs` for --masks. A photograph's mask has its name, its ending replaced by any image's or followed by it:
    dog.png or dog.jpg.png. As photo.py writes the latter, dog.jpg_2.png is then that of a second object."""
    known, jobs, problems = {}, [], []
    for name in list_images(args.masks, below=True):
        known.setdefault(os.path.splitext(name)[0], []).append(name)
    for photo in args.only or photographs(args.images, args.out, args.masks):
        stem = os.path.splitext(photo)[0]
        found = known.get(photo) or known.get(stem) or []
        if len(found) != 1:
            problems.append(f"{photo}: {args.masks} has {' and '.join(found) or 'no mask of it'}, and not one of "
                            f"{stem}.png or {photo}.png")
            continue
        number = 2
        while more := known.get(f"{photo}_{number}"):
            found, number = found + more[:1], number + 1
        jobs.append(Job(photo, f"{args.images}/{photo}", None,
                        masks=tuple(f"{args.masks}/{name}" for name in found)))
    if not jobs:
        raise UserError(f"no mask for any photograph: {problems[0]}")
    return jobs, problems


def photographs(folder, *without):
    """Names of the image files below `folder` but those below folders `without`, such as results of earlier runs.
    UserError if none."""
    return annotations.photo_files(folder, {os.path.realpath(path) for path in without})


def upright_boxes(job):
    """The boxes of `job` in its photograph turned upright, which annotation files mean, unless the size that they give
    is that of the pixels as stored alone. UserError where neither has that size."""
    if job.photo is None:
        return job.boxes
    try:
        size, orientation = stored_size(job.path)
    except FileNotFoundError:
        raise FileNotFoundError(f"no image {job.path}") from None
    except UNREADABLE as error:
        raise OSError(f"cannot read the image {job.path} ({error})") from error
    annotated = (job.photo.width, job.photo.height)
    if annotated in ((0, 0), size[::-1] if orientation > 4 else size):
        return job.boxes
    if annotated == size:
        return [turn(box, orientation, size) for box in job.boxes]
    raise UserError(f"{job.path} has {size[0]} x {size[1]} pixels, its annotation says {annotated[0]} x {annotated[1]}")


def turn(box, orientation, size):
    """A box in pixels as stored -> in the image turned upright. orientation: of EXIF, 1 to 8; size: as stored."""
    x, y, w, h = box
    if orientation in (2, 3, 7, 8):
        x = size[0] - x - w  # seen from the right
    if orientation in (3, 4, 6, 7):
        y = size[1] - y - h  # seen from below
    return (y, x, h, w) if orientation in (5, 6, 7, 8) else (x, y, w, h)


def read_masks(paths, size):
    """The user's own masks of a photograph of `size`, mode L. UserError for those that cannot be of it."""
    masks = [open_mask(path, soft=True) for path in paths]
    for path, mask in zip(paths, masks, strict=True):
        if problem := edit.mask_problem(mask, size):
            raise UserError(f"{path}: {problem}")
    return masks


def check_boxes(boxes, size):
    """UserError that names every box without an area in a photograph of `size`."""
    bad = {i: problem for i, box in enumerate(boxes, 1) if (problem := edit.box_problem(box, size))}
    if bad:
        raise UserError("; ".join(f"box {i} of {len(boxes)}: " * (len(boxes) > 1) + text for i, text in bad.items()))


class Worker:
    """One command with its model, its detector where it has one, and its backgrounds, for all photographs."""

    def __init__(self, args, model, detector=None):
        self.args, self.model, self.detector, self.backgrounds = args, model, detector, []
        self.dilate = -args.erode if args.erode is not None else args.dilate
        if args.command == "paste":
            drawn_from = args.background
            self.backgrounds = [drawn_from] if not os.path.isdir(drawn_from) else [
                os.path.join(drawn_from, name) for name in photographs(drawn_from, args.out)]

    def run(self, job):
        """Do one photograph. True if written, False if all its results exist. UserError or OSError if it fails."""
        image = files.open_photo(job.path) if job.boxes is None and not job.masks else None
        boxes = self.detected(image) if image else job.masks or upright_boxes(job)
        targets = self.targets(job, len(boxes))
        kept = self.kept(job, [path for paths in targets for path in paths])
        if kept.issuperset(path for paths in targets for path in paths):
            return False
        image = image or files.open_photo(job.path)
        if job.masks:  # all of them are checked before anything is written
            objects = [(None, mask) for mask in read_masks(job.masks, image.size)]
        else:
            check_boxes(boxes, image.size)
            objects = [(box, None) for box in boxes]
        for i, paths in enumerate(targets):
            if kept.issuperset(paths):
                continue
            results = self.results(job, image, objects, i)
            if results[-1].getextrema()[1] < 128:
                tqdm.write(f"photo.py: {job.file}: no pixel of the mask {paths[-1]} reaches ½: check the box, or train "
                           "longer", file=sys.stderr)
            for path, result in zip(paths, results, strict=True):
                if path not in kept:
                    files.save(result, path)
        return True

    def detected(self, image):
        boxes = [box[:4] for box in edit.detect(self.detector, image, self.args.score, self.args.classes)]
        if not boxes:
            raise UserError(f"no object found with a score of {self.args.score} or more: lower --score, or give a box")
        return boxes

    def targets(self, job, count):
        """Paths of the results for `count` boxes, a tuple each; one tuple where all objects are removed."""
        args, kinds = self.args, KINDS[self.args.command]
        if args.file:
            stem, ending = os.path.splitext(args.file)
            parts = ["" if kind == kinds[0] else "_mask" if "mask" in kind else f"_{kind}" for kind in kinds]
            return [tuple(f"{stem}{part}{number}{'.png' if part == '_mask' else ending}" for part in parts)
                    for number in self.numbers(count)]
        return [tuple(os.path.join(args.out, kind, f"{job.file}{number}.{'png' if 'mask' in kind else args.format}")
                      for kind in kinds)
                for number in self.numbers(count)]

    def numbers(self, count):
        """What tells the results for `count` boxes apart: "", "_2" and so on."""
        return ["", *(f"_{i}" for i in range(2, count + 1) if self.args.command != "remove")]

    def kept(self, job, paths):
        """Those of the results' `paths` that exist and are to stay, as of a folder's run that was stopped."""
        existing = [path for path in paths if os.path.exists(path)]
        for path in existing:
            if any(os.path.samefile(path, taken) for taken in (job.path, *job.masks, *self.backgrounds)):
                raise UserError(f"the result {path} would replace an input: choose another --out")
        if existing and self.args.image and not self.args.overwrite:
            raise UserError(f"{existing[0]} exists: choose another --out, or --overwrite")
        return set() if self.args.overwrite else set(existing)

    def results(self, job, image, objects, i):
        """The images of result number `i`, in the order of `KINDS`. objects: of each its box or its mask."""
        args, model, (box, mask) = self.args, self.model, objects[i]
        if args.command == "cut":
            return edit.cut(model, image, box, self.dilate or 0, args.refine, mask)
        if args.command == "paste":
            name = job.file.encode(errors="backslashreplace").decode()  # a name that is no text has a hash too
            drawn = self.backgrounds[name_hash(f"{name}/{i}", args.seed) % len(self.backgrounds)]
            background = files.open_photo(drawn)
            return edit.paste(model, image, box, background, args.at, args.seed, self.dilate or 0, args.raw,
                              args.refine, mask)
        if args.command == "move":
            return edit.move(model, image, box, args.at, args.seed, self.dilate, args.refine, args.detail, mask)
        touched = Image.new("L", image.size)
        for box, mask in objects:  # one after the other: each hole is filled beside the earlier fills
            image, reached = edit.remove(model, image, box, args.seed, self.dilate, args.raw, args.refine, args.detail,
                                         mask)
            touched = ImageChops.lighter(touched, reached)
        return image, touched
