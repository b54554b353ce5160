"""From one photograph to its crops, and many photographs in parallel processes.

Masks are OBJECT (255), VOID (128) and 0 for background. No torch, so that processes start quickly.
"""
import gc
import math
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np
from PIL import Image

from crops.annotations import Box, Photo
from crops.coco_masks import decode_mask
from images import OBJECT, UNREADABLE, as_stored, open_image, resize_mask, save_png, upright


class Piece(NamedTuple):
    """One crop to cut: of an object (box set) or of background (box None)."""

    stem: str  # file name without .png
    window: tuple  # x0, y0, w, h in source pixels
    box: Box = None


class CutJob(NamedTuple):
    """Everything to cut from one image; `photo` comes with bare boxes (x, y, w, h)."""

    photo: Photo
    objects: list
    backgrounds: list


# --- one crop ---


def open_annotated(photo: Photo) -> Image.Image:
    """Decode a source image to 8-bit RGB in the orientation that its boxes refer to.

    Boxes of annotation files refer to the pixels as stored, as COCO's and torchvision's readers take them; if the
    annotated size fits only the image turned by its EXIF orientation, that one is meant. Plain photographs
    (`photo.upright`) are turned. FileNotFoundError, or OSError when it cannot be read or has not the annotated size.
    """
    size = photo.width, photo.height

    def turn(image):
        turned = upright(image) if photo.upright else as_stored(image)
        if photo.width and turned.size != size:
            turned = upright(image)
            if turned.size != size:
                raise ValueError(f"{image.width} x {image.height} pixels, annotated as {photo.width} x {photo.height}")
        return turned

    return open_image(photo.path, turn)


def cut_window(image: Image.Image, window, size: int) -> np.ndarray:
    """Resample `window` of an RGB image to (size, size, 3) uint8 in one antialiased bicubic step."""
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=clamp(window, image.size)))


def clamp(window, image_size):
    """(left, top, right, bottom) of a window, rounding errors beyond the image's edges taken off."""
    x0, y0, w, h = window
    return max(x0, 0.0), max(y0, 0.0), min(x0 + w, float(image_size[0])), min(y0 + h, float(image_size[1]))


def hull_of(window, image_size):
    """(left, top, right, bottom) of the whole pixels that a window touches: the extent of its mask at the source."""
    left, top, right, bottom = clamp(window, image_size)
    return math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)


def cut_mask(mask, photo: Photo, window, size: int):
    """An object's packed mask for its crop and at source resolution.

    Returns (size, size) uint8, thresholded at half coverage after antialiased resampling, and the mask over the
    window's integer hull (see `hull_of`). ValueError when the annotation does not fit the image.
    """
    left, top, right, bottom = clamp(window, (photo.width, photo.height))
    hull = hull_of(window, (photo.width, photo.height))
    margin = math.ceil(max(window[2:]) / size) + 1  # resampling reads a little beyond the window
    x0, y0 = max(hull[0] - margin, 0), max(hull[1] - margin, 0)
    x1, y1 = min(hull[2] + margin, photo.width), min(hull[3] + margin, photo.height)
    part = decode_mask(mask, photo.width, photo.height, (x0, y0, x1, y1))
    crop = resize_mask(part, size, (left - x0, top - y0, right - x0, bottom - y0))
    return crop, part[hull[1] - y0:hull[3] - y0, hull[0] - x0:hull[2] - x0]


def box_in_crop(box: Box, window, size: int) -> list:
    """The object's box [x, y, w, h] in pixels of its size x size crop."""
    x0, y0, w, h = window
    return [(box.x - x0) * size / w, (box.y - y0) * size / h, box.w * size / w, box.h * size / h]


# --- one image ---


def cut_job(job: CutJob, folder: str, size: int) -> dict:
    """Decode one image and write all its crops below `folder`; returns the line for the journal.

    {"file", "hash", "masks": {stem: "ok" or what is wrong}}, or {"file", "problem", "example"} when the image cannot be
    used: then none of its crops exists.
    """
    photo, masks = job.photo, {}
    try:
        image = open_annotated(photo)
    except OSError as error:
        problem = "image_missing" if isinstance(error, FileNotFoundError) else "image_unreadable"
        return {"file": photo.file, "problem": problem, "example": str(error)}
    for kind, pieces in (("objects", job.objects), ("backgrounds", job.backgrounds)):
        for piece in pieces:
            save_png(f"{folder}/{kind}/{piece.stem}.png", cut_window(image, piece.window, size))
            if piece.box is not None and piece.box.mask is not None:
                masks[piece.stem] = save_masks(folder, piece, photo, size)
    return {"file": photo.file, "hash": difference_hash(image), "masks": masks}


def save_masks(folder, piece, photo, size) -> str:
    """Write both masks of an object; "ok", or what is wrong with the annotation (then none is written)."""
    example = f"annotation {piece.box.id!r} of {photo.file}"
    try:
        crop, source = cut_mask(piece.box.mask, photo, piece.window, size)
    except UNREADABLE as error:
        return f"{example}: {error}".splitlines()[0]
    x, y, w, h = (round(value) for value in box_in_crop(piece.box, piece.window, size))
    inside = np.count_nonzero(crop[max(y, 0):y + h, max(x, 0):x + w] == OBJECT)
    if inside == 0 or inside < 0.5 * np.count_nonzero(crop == OBJECT):
        return f"{example}: the mask lies outside its box"
    save_png(f"{folder}/masks/{piece.stem}.png", crop)
    save_png(f"{folder}/masks_source/{piece.stem}.png", source)
    return "ok"


def difference_hash(image, side=16) -> str:
    """256 bits that near-duplicates of an image share: is each of 16 x 16 cells brighter than its left?"""
    small = image.resize((side + 1, side), Image.Resampling.BOX, reducing_gap=1.0).convert("L")
    grey = np.asarray(small).astype(np.int16)
    return np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes().hex()


# --- many images ---


def in_parallel(work, tasks, num_workers: int, chunksize=64):
    """work(task) for every task, in order, from processes; num_workers 0 = in this process, with the same results.

    OSError where a process dies.
    """
    if num_workers == 0 or len(tasks) < 2:
        yield from map(work, tasks)
        return
    gc.freeze()  # else the collector touches, and so copies, the annotations in every process
    try:
        with ProcessPoolExecutor(num_workers, initializer=end_with_parent) as pool:
            yield from pool.map(work, tasks, chunksize=chunksize)
    except BrokenProcessPool:
        raise OSError("a process was killed, perhaps for lack of memory: run the same command again, with fewer "
                      "--num_workers") from None
    finally:
        gc.unfreeze()


def end_with_parent():
    """Begin a pool's process: it ends with the one that began it, which if killed would leave it waiting for ever."""
    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
