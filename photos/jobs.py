"""Which photographs `python photo.py` works on, with which boxes, and what its results are called.

`args` are its parsed options.
"""
import os
import posixpath
import re
from collections import Counter
from typing import NamedTuple

from PIL import ExifTags, Image

from crops import annotations as sources
from crops.rules import name_hash
from photos import files as photofile


class Job(NamedTuple):
    """One photograph to work on."""

    file: str  # name in messages and, without its ending, of the results
    path: str
    boxes: list | None  # x, y, w, h each, upright; None = the detector's
    photo: sources.Photo | None = None  # from an annotation file, whose boxes may have to be turned


class Problems(sources.Skips):
    """What the readers of annotation files could not use, one by one."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def add(self, reason, example, n=1):
        super().add(reason, example, n)
        self.lines.append(f"{example} ({reason})")


def check(args):
    """One line for what argparse cannot see."""
    if (args.image is None) == (args.images is None):
        raise ValueError("give either one photograph with --box, or --images DIR with --boxes")
    if args.image and bool(args.box) == (args.boxes is not None):
        raise ValueError("one photograph takes --box X,Y,W,H, or --boxes detect")
    if args.image and args.boxes not in (None, "detect"):
        raise ValueError(f"--boxes {args.boxes} goes with --images DIR; one photograph takes --box or --boxes detect")
    if args.images and (args.box or not args.boxes):
        raise ValueError("--images takes --boxes FILE or --boxes detect, not --box")
    if args.images and not os.path.isdir(args.images):
        raise FileNotFoundError(f"no folder {args.images}: --images takes a folder of photographs")
    if args.images and os.path.isdir(args.out) and os.path.samefile(args.out, args.images):
        raise ValueError(f"--out is the folder of --images, {args.images}: choose another")
    if not 0 <= args.score <= 1:
        raise ValueError(f"--score must be from 0 to 1, got {args.score}")
    for name in ("dilate", "erode"):
        if (getattr(args, name) or 0) < 0:
            raise ValueError(f"--{name} must be at least 0, got {getattr(args, name)}")
    if args.command == "cut" and args.format == "jpg":
        raise ValueError("--format jpg has no transparency: cut takes png, tiff or webp")


def find_jobs(args):
    """The photographs to work on, and lines about what an annotation file holds that cannot be used."""
    problems = Problems()
    if args.image:
        return [Job(os.path.basename(args.image), args.image, args.box)], []
    if args.boxes == "detect":
        names = sources.list_images(args.images, {os.path.realpath(args.out)})  # results of earlier runs are no input
        return [Job(name, f"{args.images}/{name}", None) for name in names], []
    readers = {".json": sources.read_coco, ".csv": sources.read_csv, ".jsonl": sources.read_detections}
    read = readers.get(os.path.splitext(args.boxes)[1].lower())
    if read is None:
        raise ValueError(f"--boxes must be detect or a file that ends in {', '.join(readers)}, got {args.boxes!r}")
    if not os.path.isfile(args.boxes):
        raise FileNotFoundError(f"no file {args.boxes}: --boxes takes one with boxes, or detect")
    least = args.score if read is sources.read_detections else 0
    jobs = []
    for photo in read(args.images, args.boxes, problems):
        boxes = [box[:4] for box in photo.boxes if not box.crowd and box.score >= least
                 and (not args.classes or box.name in args.classes)]
        if boxes:
            jobs.append(Job(photo.file, photo.path, boxes, photo))
    if not jobs:
        raise ValueError(f"{args.boxes} has no box" + f" of class {', '.join(args.classes)}" * bool(args.classes)
                         + f" with a score of {least} or more: lower --score" * bool(least))
    return jobs, problems.lines


def names_of_results(jobs, numbered=True):
    """{file: name of its results}: without the ending, with it where results would be called alike on some system,
    and with a hash where even that does not help.

    numbered: several objects of a photograph have a result each, NAME_1, NAME_2 and so on.
    """
    attempts = dict.fromkeys((job.file for job in jobs), 0)
    several = {job.file for job in jobs if numbered and (job.boxes is None or len(job.boxes) > 1)}
    while True:
        names = {file: name_of_results(file, n) for file, n in attempts.items()}
        plain = {file: name.casefold() for file, name in names.items()}
        count, series = Counter(plain.values()), {plain[file] for file in several}
        unclear = []
        for file, name in plain.items():
            head = re.fullmatch(r"(.+)_[1-9][0-9]*", name, re.DOTALL)
            if count[name] > 1 or head and head[1] in series:
                unclear.append(file)
        if not unclear:
            return names
        for file in unclear:
            attempts[file] += 1


def name_of_results(file, attempt):
    """dog, dog_jpg, then dog_jpg_1c0ffee5 and on."""
    path = posixpath.normpath(file)
    if attempt == 0:
        return os.path.splitext(path)[0]
    return path.replace(".", "_") + (f"_{name_hash(file, attempt):016x}"[:9] if attempt > 1 else "")


def upright_boxes(job):
    """The boxes of `job` in its photograph turned upright. Annotation files mean the pixels as stored, unless
    the size they give fits the upright photograph only. ValueError where neither has that size."""
    if job.photo is None or job.photo.upright:
        return job.boxes
    try:
        with Image.open(job.path) as image:
            size, orientation = image.size, image.getexif().get(ExifTags.Base.Orientation, 1)
            if image.format == "TIFF":  # Pillow gives the size as turned
                size = image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {job.path}") from None
    except photofile.BROKEN as error:
        raise ValueError(f"cannot read {job.path} as a photograph: {error}") from error
    annotated = (job.photo.width, job.photo.height)
    if annotated == size:
        return [turn(box, orientation, size) for box in job.boxes]
    if annotated == size[::-1] and orientation in (5, 6, 7, 8):
        return job.boxes
    raise ValueError(f"{job.path} has {size[0]} x {size[1]} pixels, its annotation says "
                     f"{annotated[0]} x {annotated[1]}")


def turn(box, orientation, size):
    """A box in pixels as stored -> in the image turned upright. orientation: of EXIF, 1 to 8; size: as stored."""
    x, y, w, h = box
    if orientation in (2, 3, 7, 8):
        x = size[0] - x - w  # seen from the right
    if orientation in (3, 4, 6, 7):
        y = size[1] - y - h  # seen from below
    return (y, x, h, w) if orientation in (5, 6, 7, 8) else (x, y, w, h)
