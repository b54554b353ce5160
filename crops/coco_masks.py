"""Object masks as annotation files give them, to pixels: OBJECT (255), VOID (128) and 0 for background.

A mask is packed in a tuple, so that a million of them fit in memory:

    ("polygons", [x0, y0, x1, y1, ... each])
    ("rle", height, width, counts)      COCO's run lengths: a list, or its compressed string
    ("png", path, value, void)          pixels of a label image: `value` is the object, `void` (None: nothing) void
    ("mask", path)                      a mask file, see `images.open_mask`

Polygons and run lengths give exactly the pixels that COCO's own tools give.
"""
from array import array
from functools import lru_cache

import numpy as np

from images import OBJECT, VOID, open_lazily, open_mask

LONGEST = 30  # an object's outlines, in (width + height) of its image; memory and time grow with it


def pack_segmentation(segmentation):
    """COCO's segmentation in compact form (numbers as C arrays), None where there is none.

    Lists of polygons, uncompressed RLE (counts a list) and compressed RLE (counts a string). Errors here and in
    `decode_mask` mean that the mask is unusable: TypeError, ValueError, OverflowError, and OSError for files.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        return ("polygons", [array("d", polygon) for polygon in segmentation])
    if not isinstance(segmentation, dict):
        raise TypeError("a segmentation is a list of polygons or run lengths")
    height, width = segmentation.get("size", (0, 0))
    counts = segmentation.get("counts")
    return ("rle", height, width, counts if isinstance(counts, str) else array("Q", counts))


def decode_mask(mask, width: int, height: int, region) -> np.ndarray:
    """The part `region` = (left, top, right, bottom) of an object's mask in a width x height image.

    Returns uint8 (bottom-top, right-left) of OBJECT, VOID and 0. ValueError when the annotation does not fit the image.
    """
    left, top, right, bottom = region
    if mask[0] == "polygons":
        columns, outlines = np.zeros((right - left, height), bool), [np.array(polygon) for polygon in mask[1]]
        if sum(outline_length(xy, width, height) for xy in outlines) > LONGEST * (width + height):
            raise ValueError(f"polygons whose outlines are longer than {LONGEST} times the image's width and height")
        for xy in outlines:
            columns |= fill_polygon(xy, width, height, left, right)
        return columns[:, top:bottom].T.astype(np.uint8) * OBJECT
    if mask[0] == "rle":
        if (mask[1], mask[2]) != (height, width):
            raise ValueError(f"RLE of size {mask[1:3]} in an image of {height} x {width}")
        return decode_rle(mask[3], width, height)[left:right, top:bottom].T.astype(np.uint8) * OBJECT
    labels = read_labels(mask[1]) if mask[0] == "png" else np.asarray(open_mask(mask[1]))
    if labels.shape != (height, width):
        raise ValueError(f"{mask[1]} has the size {labels.shape}, its image {height} x {width}")
    part = labels[top:bottom, left:right]
    if mask[0] == "mask":
        return part
    out = (part == mask[2]).astype(np.uint8) * OBJECT
    if mask[3] is not None:
        out[part == mask[3]] = VOID
    return out


@lru_cache(maxsize=2)
def read_labels(path) -> np.ndarray:
    """A label image (palette indices, 8 or 16 bit) as stored; several objects of one image share it."""
    with open_lazily(path) as image:
        if image.mode in ("RGB", "RGBA", "LA", "1"):
            image = image.convert("L")
        return np.array(image)


def decode_rle(counts, width: int, height: int) -> np.ndarray:
    """COCO's run lengths (by columns, zeros first; list or compressed string) to bool (width, height)."""
    runs = np.array(decode_rle_string(counts) if isinstance(counts, str) else counts, dtype=np.int64)
    covered = runs.sum(dtype=np.float64)  # where whole numbers would wrap around
    if runs.size and runs.min() < 0 or covered != width * height:
        raise ValueError(f"RLE covers {covered:.0f} pixels, the image has {width * height}")
    values = np.arange(runs.size) % 2 == 1
    return np.repeat(values, runs).reshape(width, height)


def decode_rle_string(text: str) -> list:
    """COCO's compressed counts: 5 bits a character from 48 on, bit 6 = more follow, differences to the count before the
    last from the fourth count on."""
    counts, at = [], 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more:
            code = ord(text[at]) - 48 if at < len(text) else -1
            if not 0 <= code < 64 or shift > 60:
                raise ValueError(f"compressed RLE is broken at character {at}")
            value |= (code & 31) << shift
            shift += 5
            more = bool(code & 32)
            at += 1
        if code & 16:  # the last chunk's high bit is the sign
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts


def outline_length(xy, width: int, height: int) -> float:
    """The length of a polygon's outline in pixels along the longer axis of each edge, a fifth more for each point.

    ValueError for fewer than three points and for coordinates far from the image.
    """
    if xy.size < 6 or xy.size % 2 or not np.all(np.abs(xy) <= 2 * max(width, height)):
        raise ValueError("a polygon needs at least three points near the image")
    points = xy.reshape(-1, 2)
    return np.abs(np.roll(points, -1, axis=0) - points).max(axis=1).sum() + len(points) / 5


def fill_polygon(xy, width: int, height: int, left: int, right: int) -> np.ndarray:
    """Rasterise one polygon as COCO's rleFrPoly does, columns left..right only: bool (right-left, height).

    xy: x0, y0, x1, y1, ... in pixels. The outline is walked on a five times finer grid; where it passes the middle of a
    column the pixel below switches between inside and outside.
    """
    points = (xy.reshape(-1, 2) * 5 + 0.5).astype(np.int64)
    start, step = points, np.roll(points, -1, axis=0) - points
    length = np.abs(step).max(axis=1)
    # all grid points of all edges in order: u, v of point t of edge e
    edge = np.repeat(np.arange(len(start)), length + 1)
    t = np.arange(edge.size) - np.repeat(np.cumsum(length + 1) - length - 1, length + 1)
    # rleFrPoly walks each edge from its lower end along its longer axis, which decides the rounding
    along_x = np.abs(step[:, 0]) >= np.abs(step[:, 1])
    flip = np.where(along_x, step[:, 0] < 0, step[:, 1] < 0)
    low = np.where(flip[:, None], start + step, start)
    rise = np.where(flip[:, None], -step, step)
    slope = np.where(along_x, rise[:, 1], rise[:, 0]) / np.maximum(length, 1)
    t = np.where(flip[edge], length[edge] - t, t)
    side = np.where(along_x, low[:, 1], low[:, 0])[edge]
    across = np.trunc(side + slope[edge] * t + 0.5).astype(np.int64)
    main = np.where(along_x, low[:, 0], low[:, 1])[edge] + t
    u, v = np.where(along_x[edge], main, across), np.where(along_x[edge], across, main)
    # keep the places where the walk changes column in the middle of a pixel (fine column 5 i + 2)
    moved = np.flatnonzero(u[1:] != u[:-1]) + 1
    column5 = np.where(u[moved] < u[moved - 1], u[moved], u[moved] - 1)
    middle = (column5 % 5 == 2) & (column5 // 5 >= left) & (column5 // 5 < right)
    moved, column = moved[middle], column5[middle] // 5
    row = np.ceil(np.clip((np.minimum(v[moved], v[moved - 1]) + 0.5) / 5 - 0.5, 0, height)).astype(np.int64)
    switches = np.zeros((right - left, height + 1), np.int32)
    np.add.at(switches, (column - left, row), 1)
    return np.cumsum(switches, axis=1)[:, :height] % 2 == 1
