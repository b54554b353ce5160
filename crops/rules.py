"""From boxes to crops (§3.4, §4.1, §4.2): which objects become X, where Y's backgrounds lie, how to cut.

A window (x0, y0, w, h) is the part of a source image that a crop shows, floats in source pixels; it is
never rounded. Masks: 255 = object, 0 = background, 128 = void. Nothing here depends on the number of
processes or on the order of the images. This file needs numpy and Pillow only.
"""
import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from crops.annotations import Box, Photo
from crops.coco_masks import decode_mask
from images import load_tiff, to_rgb

PRESETS = {  # §4.1 (i) and (iv); §4.2
    "dogs": {"object_size": 64, "crop_size": 128, "min_side": 60.0, "max_fraction": 0.4, "min_aspect": 0.0},
    "coco": {"object_size": 100, "crop_size": 128, "min_side": 20.0, "max_fraction": 0.4, "min_aspect": 0.4},
}
DROPS = ("unplaced", "class", "score", "crowd", "min_side", "max_fraction", "min_aspect", "outside",
         "neighbours")
# by EXIF orientation: from upright to how such an image is stored
TURNED_BACK = {5: Image.TRANSPOSE, 6: Image.ROTATE_90, 7: Image.TRANSVERSE, 8: Image.ROTATE_270}
OVERLAP = 0.25  # of its area: the most that a background shares with an earlier one of the same image


@dataclass(frozen=True)
class Rules:
    """Which boxes become crops. Sides and sizes in pixels; 0 switches a rule off."""

    crop_size: int = 128  # side of a crop
    object_size: int = 100  # side of the object's box in the crop
    min_side: float = 20.0  # the box's smaller source side must exceed it
    max_fraction: float = 0.4  # largest (box's longer side / image's longer side); 0 or 1 = off
    min_aspect: float = 0.4  # smaller / larger side of the box must exceed it
    fit: str = "warp"  # warp: box to a square (the paper's); keep: the box keeps its aspect
    min_score: float = 0.0  # a detector's score from which a box may be an object; all boxes keep crops away
    classes: tuple = ()  # only these become objects; () = all
    exclude: tuple = ()  # these never do
    y_per_x: float = 2.0  # backgrounds per object (§4.2: at least twice as many)
    y_per_image: int = 8  # most backgrounds from one image
    y_from: str = "any"  # same: only images that give an object; any: all annotated images; else a folder
    seed: int = 0


class Piece(NamedTuple):
    """One crop to cut: of an object (box set) or of background (box None)."""

    stem: str  # file name without .png
    window: tuple  # x0, y0, w, h in source pixels
    box: Box = None


class Job(NamedTuple):
    """Everything to cut from one image; `photo` comes with bare boxes (x, y, w, h)."""

    photo: Photo
    objects: list
    backgrounds: list


# --- the rules (§4.1, §4.2) ---


def object_window(box, rules: Rules):
    """The window (x0, y0, w, h) that shows `box` = (x, y, w, h, ...) centred, object_size of crop_size px.

    `warp` scales both sides of the box to object_size; `keep` the longer one.
    """
    x, y, w, h = box[:4]
    ratio = rules.crop_size / rules.object_size
    width, height = (w * ratio, h * ratio) if rules.fit == "warp" else (max(w, h) * ratio,) * 2
    return x + w / 2 - width / 2, y + h / 2 - height / 2, width, height


def first_failing(box: Box, photo: Photo, rules: Rules):
    """Name of the first rule but `neighbours` that `box` fails (see DROPS), None when it meets all."""
    short, long = sorted((box.w, box.h))
    limit = rules.max_fraction if 0 < rules.max_fraction < 1 else math.inf
    if not box.name or box.name in rules.exclude or rules.classes and box.name not in rules.classes:
        return "class"
    if box.crowd:
        return "crowd"
    if box.score < rules.min_score:
        return "score"
    if short <= rules.min_side:
        return "min_side"
    if long > limit * max(photo.width, photo.height):
        return "max_fraction"
    if short <= rules.min_aspect * long:
        return "min_aspect"
    x0, y0, w, h = object_window(box, rules)
    slack = 1e-6 * max(photo.width, photo.height)  # rounding of the sums, nothing more
    if x0 >= -slack and y0 >= -slack and x0 + w <= photo.width + slack and y0 + h <= photo.height + slack:
        return None
    return "outside"


def find_objects(photo: Photo, rules: Rules, dropped: Counter):
    """The (box, window) pairs of `photo` that meet every rule; adds to `dropped` the rule that each other
    box fails first. An image with an object of unknown place gives nothing ("unplaced")."""
    if photo.unplaced:
        dropped["unplaced"] += len(photo.boxes)
        return []
    found, edges = [], None
    for index, box in enumerate(photo.boxes):
        rule = first_failing(box, photo, rules)
        if rule is None:
            window = object_window(box, rules)
            edges = np.array([b[:4] for b in photo.boxes]) if edges is None else edges
            touched = overlaps(window, edges)
            touched[index] = False
            if not touched.any():
                found.append((box, window))
                continue
            rule = "neighbours"
        dropped[rule] += 1
    return found


def overlaps(window, boxes: np.ndarray) -> np.ndarray:
    """Which of `boxes` (n, 4) share more than an edge with `window`; both as x, y, w, h. bool (n,)."""
    x0, y0, w, h = window
    x, y, bw, bh = boxes.T
    return (x < x0 + w) & (x0 < x + bw) & (y < y0 + h) & (y0 < y + bh)


# --- backgrounds: windows that touch no box (§4.1 "background-only regions") ---


def free_position(width, height, w, h, obstacles: np.ndarray, rng):
    """Draw (x0, y0) of a w x h window uniformly among all places inside the image that overlap no obstacle.

    obstacles: (n, 4) as x, y, w, h. None when there is no such place. Exact: the window overlaps
    (x, y, bw, bh) if and only if x - w < x0 < x + bw and y - h < y0 < y + bh, so the lines of these edges
    divide all positions into cells that are entirely free or entirely not.
    """
    if w >= width or h >= height:
        return None
    x, y, bw, bh = obstacles.T
    low_x, high_x = np.clip(x - w, 0, width - w), np.clip(x + bw, 0, width - w)
    low_y, high_y = np.clip(y - h, 0, height - h), np.clip(y + bh, 0, height - h)
    xs = np.unique(np.concatenate([[0, width - w], low_x, high_x]))
    ys = np.unique(np.concatenate([[0, height - h], low_y, high_y]))
    area = np.diff(ys)[:, None] * np.diff(xs)[None, :]
    bounds = (np.searchsorted(ys, low_y), np.searchsorted(ys, high_y),
              np.searchsorted(xs, low_x), np.searchsorted(xs, high_x))
    for top, bottom, left, right in zip(*bounds, strict=True):
        area[top:bottom, left:right] = 0
    total = np.cumsum(area)
    if total[-1] <= 0:
        return None
    cell = min(int(np.searchsorted(total, rng.random() * total[-1], side="right")), area.size - 1)
    row, column = divmod(cell, xs.size - 1)
    return float(rng.uniform(xs[column], xs[column + 1])), float(rng.uniform(ys[row], ys[row + 1]))


class FreeSpace:
    """Where in a list of images backgrounds still fit. Images take turns, so that windows spread evenly."""

    def __init__(self, photos, rules: Rules):
        order = sorted((p for p in photos if not p.unplaced), key=lambda p: name_hash(p.file, rules.seed))
        self.photos = order
        self.rules = rules
        self.obstacles = [np.array([b[:4] for b in p.boxes]).reshape(-1, 4) for p in order]
        self.taken = [[] for _ in order]
        self.failed = []  # the smallest sizes that found no place; room only shrinks, so larger ones will not
        self.turn = 0
        # The widest and highest gap beside each image's largest box: a window fits past that box only if
        # one of them holds it. A quick test that spares most exact ones.
        self.gaps = np.zeros((len(order), 4))
        for i, (photo, boxes) in enumerate(zip(order, self.obstacles, strict=True)):
            beside, above = photo.width, photo.height
            if len(boxes):
                x, y, w, h = boxes[np.argmax(boxes[:, 2] * boxes[:, 3])]
                beside, above = max(x, photo.width - x - w), max(y, photo.height - y - h)
            self.gaps[i] = photo.width, photo.height, beside, above
        self.full = np.zeros(len(order), bool)

    def place(self, size, tries=300):
        """Place one window of `size` = (w, h) in the next image that has room for it.

        Returns True when placed (see `taken`), False when `tries` images that looked promising had no room.
        """
        w, h = size
        if any(w >= wide and h >= high for wide, high in self.failed):
            return False
        for i in self.promising(w, h, tries):
            photo = self.photos[i]
            # an earlier background may be overlapped at its rim: only its middle is an obstacle
            middles = [(x + OVERLAP * a, y + OVERLAP * b, a - 2 * OVERLAP * a, b - 2 * OVERLAP * b)
                       for x, y, a, b in self.taken[i]]
            obstacles = np.concatenate([self.obstacles[i], np.reshape(middles, (-1, 4))])
            rng = np.random.default_rng([name_hash(photo.file, self.rules.seed), len(middles)])
            position = free_position(photo.width, photo.height, w, h, obstacles, rng)
            if position is not None:
                self.taken[i].append((*position, w, h))
                self.full[i] = len(self.taken[i]) >= self.rules.y_per_image
                self.turn = (i + 1) % len(self.photos)
                return True
        self.failed = [(a, b) for a, b in self.failed if a < w or b < h] + [size]
        return False

    def promising(self, w, h, tries, block=512):
        """Up to `tries` indices of images that may hold w x h, from the image whose turn it is on."""
        for start in range(0, len(self.photos), block):
            index = (np.arange(start, min(start + block, len(self.photos))) + self.turn) % len(self.photos)
            width, height, beside, above = self.gaps[index].T
            fits = ~self.full[index] & (w < width) & (h < height) & ((w <= beside) | (h <= above))
            yield from index[fits][:tries].tolist()
            tries -= int(fits.sum())
            if tries <= 0:
                return


def find_backgrounds(photos, sizes, rules: Rules):
    """Windows for Y in `photos`, y_per_x for each of X's source window `sizes` [(w, h), ...].

    Sizes are X's own, so that resampling leaves the same traces in both. The largest, hardest to place, go
    first; where one fits nowhere a smaller one drawn from X replaces it. Returns {file: [window, ...]} and
    Counter(wanted, exact, smaller, missing).
    """
    space = FreeSpace(photos, rules)
    wanted = round(len(sizes) * rules.y_per_x)
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size), reverse=True)
    counts = Counter(wanted=wanted, exact=0, smaller=0, missing=0)
    rng = np.random.default_rng([rules.seed, wanted])
    unplaced = []
    for index in range(wanted):
        size = int(index * len(ordered) / wanted)
        if space.place(ordered[size]):
            counts["exact"] += 1
        else:
            unplaced.append(size)
    for size in unplaced:
        # the largest of a few draws that fits; should none fit, down through X's sizes to the smallest
        draws = np.sort(rng.integers(size, len(ordered), 8))
        descent = np.linspace(size, len(ordered) - 1, 16).astype(int)
        placed = any(space.place(ordered[draw]) for draw in [*draws, *descent])
        counts["smaller" if placed else "missing"] += 1
    return {p.file: taken for p, taken in zip(space.photos, space.taken, strict=True) if taken}, counts


def name_hash(name: str, seed: int = 0) -> int:
    """A number below 2**63 that depends on nothing but its arguments."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1


# --- cutting ---


def open_photo(photo: Photo) -> Image.Image:
    """Decode a source image to 8-bit RGB in the orientation that its boxes refer to.

    Boxes of annotation files refer to the pixels as stored, as COCO's and torchvision's readers take them;
    if the annotated size fits only the image turned by its EXIF orientation, that one is meant. Plain
    photographs (`photo.upright`) are turned. ValueError when no orientation has the annotated size.
    TIFFs are always turned, by Pillow, and turned back where the annotated size fits only then.
    """
    with Image.open(photo.path) as image:
        size, back = (photo.width, photo.height), TURNED_BACK.get(image.getexif().get(0x0112))
        load_tiff(image)
        if image.format == "TIFF" and back is not None and not photo.upright and image.size == size[::-1] != size:
            return to_rgb(image.transpose(back))
        if photo.upright or photo.width and image.size != size:
            image = ImageOps.exif_transpose(image)
        if photo.width and image.size != size:
            raise ValueError(f"{photo.path} has {image.size[0]} x {image.size[1]} pixels, "
                             f"its annotation says {size[0]} x {size[1]}")
        return to_rgb(image)


def cut(image: Image.Image, window, size: int) -> Image.Image:
    """Resample `window` of an RGB image to size x size in one antialiased bicubic step."""
    return image.resize((size, size), Image.BICUBIC, box=clamp(window, image.size))


def clamp(window, image_size):
    """(left, top, right, bottom) of a window, rounding errors beyond the image's edges taken off."""
    x0, y0, w, h = window
    return max(x0, 0.0), max(y0, 0.0), min(x0 + w, float(image_size[0])), min(y0 + h, float(image_size[1]))


def cut_mask(mask, photo: Photo, window, size: int):
    """An object's mask for its crop and at source resolution, both uint8 with 255 = object, 128 = void.

    mask: as packed in `masks`. Returns (size, size), thresholded at half coverage after antialiased
    resampling, and the mask over the window's integer hull: rows floor(y0)..ceil(y0+h), columns
    floor(x0)..ceil(x0+w). ValueError when the annotation does not fit the image.
    """
    left, top, right, bottom = clamp(window, (photo.width, photo.height))
    hull = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
    # resampling reads a little beyond the window
    margin = math.ceil(max(window[2:]) / size) + 1
    x0, y0 = max(hull[0] - margin, 0), max(hull[1] - margin, 0)
    x1, y1 = min(hull[2] + margin, photo.width), min(hull[3] + margin, photo.height)
    part = decode_mask(mask, photo.width, photo.height, (x0, y0, x1, y1))
    box = (left - x0, top - y0, right - x0, bottom - y0)
    crop = resize_mask(part, size, box)
    return crop, part[hull[1] - y0:hull[3] - y0, hull[0] - x0:hull[2] - x0]


def resize_mask(mask: np.ndarray, size: int, box) -> np.ndarray:
    """Resample `box` of a mask (255 = object, 128 = void) to (size, size): void where at least half is void,
    else object where at least half of the rest is."""
    def coverage(where):
        image = Image.fromarray(where.astype(np.uint8) * 255)
        return np.asarray(image.resize((size, size), Image.BILINEAR, box=box)).astype(np.int32)

    void = coverage(mask == 128) if (mask == 128).any() else 0
    object_ = coverage(mask == 255)
    return np.where(2 * void >= 255, 128, np.where(2 * object_ >= 255 - void, 255, 0)).astype(np.uint8)


def box_in_crop(box: Box, window, size: int) -> list:
    """The object's box [x, y, w, h] in pixels of its size x size crop."""
    x0, y0, w, h = window
    return [(box.x - x0) * size / w, (box.y - y0) * size / h, box.w * size / w, box.h * size / h]
