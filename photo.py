"""On one's own photographs: cut an object out, remove it, paste it elsewhere, at the photographs' own size.

    python photo.py cut dog.jpg --name dogs --box 820,410,600,450
    python photo.py remove dog.jpg --name dogs --box 820,410,600,450
    python photo.py paste dog.jpg --name dogs --box 820,410,600,450 --background beach.jpg --at 100,900
    python photo.py cut --images photos --boxes detect --name dogs --out cutouts
    python photo.py export --name dogs --out exported            # the generators for other programs

Each command writes its picture as STEM_cut, STEM_removed or STEM_pasted (and STEM_coarse, z), with its mask beside it
as STEM_cut_mask.png and so on. From Python:

    model = SEIGAN.load("checkpoints/dogs/best.pt", device="cuda")
    cutout, mask = photo.cut(model, Image.open("dog.jpg"), (820, 410, 600, 450))

Boxes are x, y, width, height in pixels of the photograph as viewers show it (turned as its EXIF orientation
says). The networks see a crop around the box, cut by the rule of their training and resized to their size;
what they give is carried back: masks are upsampled guided by the photograph, changes are upsampled as
differences, so that detail stays, and only what fills the hole is as coarse as the networks.
"""
import argparse
import math
import os
import sys
import time
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from crops.annotations import list_images
from crops.detector import category_names, detect_boxes, load_detector
from crops.rules import Rules, name_hash, object_window
from photos import export, matting
from photos import files as photofile
from photos.jobs import check, find_jobs, names_of_results, upright_boxes
from prepare import names
from seigan import SEIGAN, paste_coarse, pick_device

RULE = {"fit": "warp", "object_size": 100, "crop_size": 128}  # of a model that does not know its own (§4.2)


# --- the library ---


class Cut(NamedTuple):
    image: Image.Image  # the object alone, RGBA, as large as the photograph
    mask: Image.Image  # m, mode L, 255 = object


class Removal(NamedTuple):
    image: Image.Image  # x_hat: the photograph without the object
    mask: Image.Image  # where it was changed, mode L; where this is 0, every pixel is the photograph's


class Paste(NamedTuple):
    image: Image.Image  # y_hat: the object on the background
    coarse: Image.Image  # z = m*x + (1-m)*y, before G_enh
    mask: Image.Image  # m on the background, mode L; where this is 0, every pixel of z is the background's


class Crop(NamedTuple):
    """What the networks see of a photograph, and where it lies."""

    rgb: np.ndarray  # the photograph's colours, transparency over white, (H, W, 3) uint8
    window: tuple  # of the crop, see `matting`
    region: tuple  # the photograph's pixels in it
    x: torch.Tensor  # (1, 3, S, S) in [-1, 1]
    m: torch.Tensor  # G_seg(x), (1, 1, S, S) in [0, 1]
    alpha: np.ndarray  # m at the photograph's resolution over `region`, uint8


def cut(model: SEIGAN, image: Image.Image, box, dilate: int = 0) -> Cut:
    """Cut out the object in `box`: soft mask, and edge colours freed of the surroundings.

    Args:
        model: as `SEIGAN.load` gives it; runs on its own device.
        image: of any mode; not changed.
        box: x, y, w, h in pixels of the upright image; may cross its border.
        dilate: widen the mask by this many pixels; negative = narrow it.

    Raises ValueError for a box without area or outside the image.
    """
    image = photofile.normalise(image)
    rgb, transparency = photofile.split(image)
    part = _segment(model, photofile.over_white(rgb, transparency), box, dilate)
    place = matting.inside(part.region, (0, 0))
    colours, alpha = np.zeros_like(rgb), np.zeros(rgb.shape[:2], np.uint8)
    colours[place], alpha[place] = _foreground(part), part.alpha
    if transparency is not None:
        alpha[place] = part.alpha * (transparency[place] / 255) + 0.5
    return Cut(photofile.merge(colours, alpha, image), Image.fromarray(alpha))


def remove(model: SEIGAN, image: Image.Image, box, seed: int = 0, dilate: int | None = None,
           raw: bool = False) -> Removal:
    """Remove the object in `box`: x_hat = G_inp((1-m)*x) in its place.

    Args:
        model, image, box: as for `cut`.
        seed: of the noise; the same seed gives the same picture.
        dilate: widen the hole by this many pixels, negative = narrow it; default one pixel of the networks' crop.
        raw: change the whole crop as G_inp does, not only the hole and its rim.

    Returns:
        The image, grey if it was grey, transparent where it was; and the mask of its changes.

    Raises ValueError as `cut`, and for a model of a mode that trains no G_inp.
    """
    image = photofile.normalise(image)
    rgb, transparency = photofile.split(image)
    part = _segment(model, photofile.over_white(rgb, transparency), box)
    cell = max(part.window[2:]) / model.size  # one pixel of the crop, in the photograph's
    # what counts half as object goes entirely: a half-removed object is a ghost
    core = np.clip(part.alpha.astype(np.int16) * 4 - 255, 0, 255).astype(np.uint8)
    core = matting.grow(core, math.ceil(cell) if dilate is None else dilate)
    hole = matting.feather(core, math.ceil(1.5 * cell))
    fill, change = _inpaint(model, part, hole, seed, raw)

    # at the crop's border the hole must not end abruptly, even if the object reaches it
    size, (_, _, w, h) = rgb.shape[1::-1], part.window
    down, across = matting.taper(part.region, size, 2 * cell, 2 * cell)
    down_raw, across_raw = matting.taper(part.region, size, 0.1 * w, 0.1 * h)
    out, touched = rgb.copy(), np.zeros(rgb.shape[:2], np.uint8)
    for strip in matting.strips(part.region):
        local, place = matting.inside(strip, part.region), matting.inside(strip, (0, 0))
        weight = hole[local] / np.float32(255) * down[local[0]] * across
        pixels, reached = out[place].astype(np.float32), weight
        if raw:
            everywhere = down_raw[local[0]] * across_raw
            pixels += everywhere[..., None] * change.at(strip)  # the photograph's detail stays
            reached = np.maximum(weight, everywhere)
        pixels += weight[..., None] * (fill.at(strip) - pixels)
        out[place] = np.clip(pixels + 0.5, 0, 255)
        touched[place] = np.ceil(reached * 255)
    grey = "L" if image.mode in ("L", "LA") else None
    return Removal(photofile.merge(out, transparency, image, grey), Image.fromarray(touched))


def paste(model: SEIGAN, image: Image.Image, box, background: Image.Image, at=None, seed: int = 0,
          dilate: int = 0, raw: bool = False) -> Paste:
    """Paste the object in `box` onto `background`: y_hat = G_enh(z), z = m*x + (1-m)*y.

    Args:
        model, image, box, dilate: as for `cut`.
        background: y, of any mode and size; not changed.
        at: x, y of the object's box on the background, pixels, and its w, h if it is to be resized; it may
            cross the border. Default: in the middle, made smaller if it does not fit.
        seed: of the noise; the same seed gives the same picture.
        raw: change the whole crop of the background as G_enh does, not only the object.

    Raises ValueError as `cut`, and for an `at` outside the background.
    """
    background = photofile.normalise(background)
    image = photofile.to_profile(photofile.normalise(image), background.info.get("icc_profile"))
    rgb, transparency = photofile.split(image)
    part = _segment(model, photofile.over_white(rgb, transparency), box, dilate)
    alpha = part.alpha
    if transparency is not None:
        alpha = (alpha * (transparency[matting.inside(part.region, (0, 0))] / 255) + 0.5).astype(np.uint8)
    at = _position(at, box, background.size)
    window, region, cutout = _move(np.dstack([_foreground(part), alpha]), part, box, at, background.size)

    out, backing = photofile.split(background)
    seen = photofile.over_white(out, backing)
    z = paste_coarse(part.x, _tensor(matting.crop(seen, window, model.size, model.size), part.x), part.m)
    change = matting.Planes(_planes(model.enhance(z, seed) - z) * 127.5, window)  # y_hat - z
    out, coarse, mask = out.copy(), out.copy(), np.zeros(out.shape[:2], np.uint8)
    backing = None if backing is None else backing.copy()
    down, across = matting.taper(region, background.size, 0.1 * window[2], 0.1 * window[3])
    for strip in matting.strips(region):
        local, place = matting.inside(strip, region), matting.inside(strip, (0, 0))
        m = cutout[local][..., 3:] / np.float32(255)
        share = m  # of the object in what is seen; less than all of it on a transparent background
        if backing is not None:
            total = m[..., 0] + backing[place] / np.float32(255) * (1 - m[..., 0])
            share = m / np.maximum(total, 1e-6)[..., None]
            backing[place] = total * 255 + 0.5
        pixels = share * cutout[local][..., :3] + (1 - share) * out[place]
        coarse[place] = pixels + 0.5
        weight = (down[local[0]] * across)[..., None] if raw else m
        out[place] = np.clip(pixels + weight * change.at(strip) + 0.5, 0, 255)
        mask[place] = cutout[local][..., 3]
    return Paste(photofile.merge(out, backing, background), photofile.merge(coarse, backing, background),
                 Image.fromarray(mask))


def detect(detector, image: Image.Image, score: float = 0.8, classes=()) -> list:
    """Boxes of what a detector finds, best first: [x, y, w, h, class, score] each, pixels of the upright image.

    Args:
        detector: with the interface of torchvision's detection models, e.g. `detector.load_detector`.
        score: least score, 0 to 1; classes: names of COCO to keep, () = all.
    """
    image = photofile.normalise(image)
    seen = Image.fromarray(photofile.over_white(*photofile.split(image)))
    device = next(iter(detector.parameters()), torch.empty(0)).device
    found = detect_boxes(detector, seen, category_names(), device, score)
    return [box for box in found if not classes or box[4] in classes]


# --- between the photograph and the networks ---


def _segment(model, rgb, box, dilate=0) -> Crop:
    """Cut the crop around `box`, segment it, and carry the mask back."""
    box = _checked(box, rgb.shape[1::-1], "the picture")
    window = object_window(box, Rules(**(model.config.get("crop_rule") or RULE)))
    region = matting.hull(window, *rgb.shape[1::-1])
    x = _tensor(matting.crop(rgb, window, model.size, model.size), model.box)
    fractions = [(box[0] - window[0]) / window[2], (box[1] - window[1]) / window[3],
                 box[2] / window[2], box[3] / window[3]]
    m = model.segment(x, fractions)
    alpha = matting.upsample_mask(rgb, m[0, 0].cpu().numpy(), window, region)
    if dilate:
        alpha = matting.grow(alpha, dilate)
        m = _shrink(alpha, window, region, m)
    return Crop(rgb, window, region, x, m, alpha)


def _inpaint(model, part, hole, seed, raw):
    """G_inp's fill of the hole, and its change of what surrounds it, as `Planes` of pixel values 0..255."""
    m = torch.maximum(part.m, _shrink(hole, part.window, part.region, part.m))
    x_hat = model.inpaint((1 - m) * part.x, seed)
    change = _planes(x_hat - part.x) * 127.5
    # What G_inp changes where there is no hole is its error, in the hole too: a smooth surface through that
    # error is taken off the fill, which so meets the photograph at the rim.
    error = 0 if raw else matting.membrane(change, m[0, 0].cpu().numpy() < 0.02)
    fill = np.clip(_planes(x_hat + 1) * 127.5 - error, 0, 255)
    return matting.Planes(fill, part.window), matting.Planes(change, part.window)


def _foreground(part):
    return matting.foreground(part.rgb, part.alpha, part.window, part.region, *(4 * n for n in part.m.shape[-2:]))


def _shrink(alpha, window, region, like):
    """`alpha` over `region` as the networks' mask (1, 1, S, S)."""
    local = (window[0] - region[0], window[1] - region[1], *window[2:])
    small = matting.crop(alpha, local, *like.shape[:-3:-1])
    return torch.from_numpy(small / np.float32(255)).to(like)[None, None]


def _tensor(pixels, like):
    """(S, S, 3) uint8 -> (1, 3, S, S) in [-1, 1], float32 on the device of `like`."""
    return (torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()).float() / 127.5 - 1).to(like.device)


def _planes(image):
    """(1, C, S, S) -> numpy (C, S, S)."""
    return image[0].float().cpu().numpy()


def _checked(box, size, where):
    """`box` as four floats. ValueError unless it has an area and part of it lies within `size`."""
    box = tuple(float(v) for v in box)
    if len(box) != 4 or not all(map(math.isfinite, box)) or min(box[2:]) <= 0:
        raise ValueError(f"a box must be x, y, width, height in pixels with a width and height above 0, got {box}")
    if box[0] >= size[0] or box[1] >= size[1] or box[0] + box[2] <= 0 or box[1] + box[3] <= 0:
        raise ValueError(f"the box {box} lies outside {where} of {size[0]} x {size[1]} pixels")
    return box


def _position(at, box, size):
    """`at` as the object's whole box on a background of `size`."""
    if at is None:
        scale = min(1, 0.8 * size[0] / box[2], 0.8 * size[1] / box[3])
        w, h = (box[2], box[3]) if scale == 1 else (scale * box[2], scale * box[3])
        at = ((size[0] - w) / 2, (size[1] - h) / 2, w, h)
    elif len(at) == 2:
        at = (*at, *box[2:])
    return _checked(at, size, "the background")


def _move(cutout, part, box, at, size):
    """The cut-out (h, w, 4) over part.region, moved from `box` to `at` on a background of `size`.

    Returns the crop's window there, the region in it, and the cut-out over that region. Without a change of
    size it is moved by whole pixels and stays as it is.
    """
    x0, y0, w, h = part.window
    scale_x, scale_y = at[2] / box[2], at[3] / box[3]
    if scale_x == scale_y == 1:
        window = (x0 + round(at[0] - box[0]), y0 + round(at[1] - box[1]), w, h)
    else:
        window = (at[0] + (x0 - box[0]) * scale_x, at[1] + (y0 - box[1]) * scale_y, w * scale_x, h * scale_y)
    left, top, right, bottom = region = matting.hull(window, *size)
    source = ((left - window[0]) / scale_x + x0 - part.region[0], (top - window[1]) / scale_y + y0 - part.region[1],
              (right - left) / scale_x, (bottom - top) / scale_y)
    if scale_x == scale_y == 1:
        source = (round(source[0]), round(source[1]), *source[2:])
    return window, region, matting.crop(cutout, source, right - left, bottom - top, beyond="zero")


# --- the command ---


def numbers(*counts):
    """An argparse type: so many numbers, separated by commas."""
    def parse(text):
        try:
            values = tuple(float(part) for part in text.split(","))
        except ValueError:
            values = ()
        if len(values) not in counts:
            expected = " or ".join(map(str, counts))
            raise argparse.ArgumentTypeError(f"must be {expected} numbers separated by commas, got {text!r}")
        return values
    return parse


def get_args_parser():
    parser = argparse.ArgumentParser(prog="photo.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, text in (("cut", "the object alone, with soft edges, and its mask"),
                          ("remove", "the photograph without the object"),
                          ("paste", "the object on a background")):
        add_options(commands.add_parser(command, help=text, allow_abbrev=False,
                                        formatter_class=argparse.ArgumentDefaultsHelpFormatter), command)
    export.add_command(commands)
    return parser


def add_options(parser, command):
    add = parser.add_argument_group("photographs").add_argument
    add("image", nargs="?", help="the photograph")
    add("--box", type=numbers(4), action="append", metavar="X,Y,W,H",
        help="around the object, pixels of the upright photograph; give it again for further objects")
    add("--images", metavar="DIR", help="a folder of photographs in place of one")
    add("--boxes", metavar="FILE|detect",
        help="boxes for --images: COCO .json, .csv, or .jsonl of `prepare.py detect`; detect = look for objects")
    add("--classes", type=names, default=(), metavar="A,B",
        help="only objects of these classes")
    add("--score", type=float, default=0.8, help="least score of a detected object, also of a .jsonl's, 0..1")
    add("--detector_weights", metavar="FILE", help="of torchvision's Faster R-CNN (default: downloaded once)")
    if command == "paste":
        add("--background", required=True, metavar="FILE|DIR",
            help="what to paste onto; from a folder one is drawn for each object")
        add("--at", type=numbers(2, 4), metavar="X,Y[,W,H]",
            help="the object's box on the background, pixels (default: in the middle, as large as it is)")
    add = parser.add_argument_group("model").add_argument
    add("--name", required=True, help="the run's name: its folder under --checkpoints_dir")
    add("--checkpoint", choices=("latest", "best"), default="latest", help="which of the run's checkpoints")
    add("--checkpoints_dir", default="checkpoints", help="folder of the runs")
    add("--gpu", type=int, help="number of the GPU; -1 = CPU (default: the first GPU if there is one)")
    add("--seed", type=int, default=0, help="of the noise and of the choice of backgrounds")

    add = parser.add_argument_group("result").add_argument
    add("--out", metavar="DIR", help="folder for the results (default: results/NAME/photos)")
    add("--format", choices=tuple(photofile.FORMATS), default="png", help="of pictures; jpg loses detail everywhere")
    add("--overwrite", action="store_true", help="replace results that exist")
    only = parser.add_argument_group("mask").add_mutually_exclusive_group()
    only.add_argument("--dilate", type=int, metavar="PX",
                      help="widen the mask, pixels of the photograph (default: 0; remove: one pixel of the crop)")
    only.add_argument("--erode", type=int, metavar="PX", help="narrow the mask, pixels of the photograph")
    if command != "cut":
        only = parser.add_mutually_exclusive_group()
        only.add_argument("--composite", action="store_false", dest="raw", default=False,
                          help="change nothing but the object's place (default)")
        only.add_argument("--raw", action="store_true", help="change the whole crop as the network does")


class Worker:
    """One command with its model, detector and backgrounds, loaded once for all photographs."""

    KINDS = {"cut": ("cut", "cut_mask"), "remove": ("removed", "removed_mask"),
             "paste": ("pasted", "coarse", "pasted_mask")}  # endings of the results: no two commands share one

    def __init__(self, args):
        self.args = args
        device = pick_device(args.gpu)
        self.model = SEIGAN.load(os.path.join(args.checkpoints_dir, args.name, f"{args.checkpoint}.pt"), device)
        if args.command == "remove":
            self.model.require_inpainting()
        self.detector = load_detector(args.detector_weights, device) if args.boxes == "detect" else None
        self.backgrounds = []
        if args.command == "paste":
            self.backgrounds = [args.background]
            if os.path.isdir(args.background):
                listed = list_images(args.background, {os.path.realpath(args.out)})
                self.backgrounds = [os.path.join(args.background, name) for name in listed]
        self.dilate = -args.erode if args.erode is not None else args.dilate

    def targets(self, stem, count):
        """Paths of the results of a photograph with `count` boxes, a tuple a result."""
        one = count == 1 or self.args.command == "remove"  # all objects are removed from the same photograph
        ending = {kind: "png" if kind.endswith("mask") else self.args.format for kind in self.KINDS[self.args.command]}
        return [tuple(os.path.join(self.args.out, f"{stem}{number}_{kind}.{ending[kind]}") for kind in ending)
                for number in ([""] if one else [f"_{i + 1}" for i in range(count)])]

    def run(self, job, stem):
        """Do one photograph. True if written, False if all its results exist. ValueError or OSError if it fails."""
        image = None
        if job.boxes is None:
            image = photofile.open_photo(job.path)
            boxes = [box[:4] for box in detect(self.detector, image, self.args.score, self.args.classes)]
            if not boxes:
                raise ValueError(f"no object found with a score of {self.args.score} or more: lower --score, "
                                 "or give a box")
        else:
            boxes = upright_boxes(job)
        targets = self.targets(stem, len(boxes))
        existing = [path for paths in targets for path in paths if os.path.exists(path)]
        for path in existing:
            if any(os.path.samefile(path, taken) for taken in (job.path, *self.backgrounds)):
                raise ValueError(f"the result {path} would replace an input: choose another --out")
        if existing and self.args.image and not self.args.overwrite:
            raise ValueError(f"{existing[0]} exists: choose another --out, or --overwrite")
        kept = set() if self.args.overwrite else set(existing)  # of a folder, as of a run that was stopped
        if kept.issuperset(path for paths in targets for path in paths):
            return False
        image = image or photofile.open_photo(job.path)
        _check_boxes(boxes, image.size)  # all of them before anything is written
        for i, paths in enumerate(targets):
            if kept.issuperset(paths):
                continue
            for path, picture in zip(paths, self.result(job, image, boxes, i), strict=True):
                if path not in kept:
                    photofile.save(picture, path)
        return True

    def result(self, job, image, boxes, i):
        """The pictures of result number `i`, in the order of `KINDS`."""
        args, model = self.args, self.model
        if args.command == "cut":
            return cut(model, image, boxes[i], self.dilate or 0)
        if args.command == "paste":
            drawn = self.backgrounds[name_hash(f"{job.file}/{i}", args.seed) % len(self.backgrounds)]
            background = photofile.open_photo(drawn)
            return paste(model, image, boxes[i], background, args.at, args.seed, self.dilate or 0, args.raw)
        touched = np.zeros(image.size[::-1], np.uint8)
        for box in boxes:  # one after the other: each hole is filled beside the earlier fills
            image, mask = remove(model, image, box, args.seed, self.dilate, args.raw)
            touched = np.maximum(touched, np.asarray(mask))
        return image, Image.fromarray(touched)


def _check_boxes(boxes, size):
    """ValueError that names every box without an area in a photograph of `size`."""
    bad = []
    for i, box in enumerate(boxes, 1):
        try:
            _checked(box, size, "the picture")
        except ValueError as error:
            bad.append(f"box {i} of {len(boxes)}: {error}" if len(boxes) > 1 else str(error))
    if bad:
        raise ValueError("; ".join(bad))


def run(args):
    """Work through the photographs; returns the exit code: 1 if some failed."""
    started = time.perf_counter()
    args.out = args.out or os.path.join("results", args.name, "photos")
    check(args)
    jobs, failures = find_jobs(args)
    worker, stems = Worker(args), names_of_results(jobs, numbered=args.command != "remove")
    counts = {True: 0, False: 0}  # written, kept
    for job in tqdm(jobs, desc=args.command, unit="photo", disable=None if len(jobs) > 1 else True):
        try:
            counts[worker.run(job, stems[job.file])] += 1
        except photofile.BROKEN as error:
            if args.image:
                raise
            failures.append(f"{job.file}: {str(error).splitlines()[0]}")
    print(f"{counts[True]} of {len(jobs)} photographs in {time.perf_counter() - started:.1f} s; see {args.out}"
          + f"; {counts[False]} had their results already (--overwrite does them anew)" * bool(counts[False]))
    if failures:
        print(f"photo.py: {len(failures)} failed:", *failures, sep="\n  ", file=sys.stderr)
    return 1 if failures else 0


def main(argv=None):
    """`python photo.py COMMAND ...`. Returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for i in range(len(argv) - 1, 0, -1):  # argparse would take -40,200 for an option
        if argv[i - 1] in ("--box", "--at") and argv[i][:1] == "-":
            argv[i - 1:i + 1] = [f"{argv[i - 1]}={argv[i]}"]
    args = get_args_parser().parse_args(argv)
    try:
        return export.run(args) if args.command == "export" else run(args)
    except photofile.BROKEN as error:
        print(f"photo.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("photo.py: stopped: what was finished stays", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
