"""From one photograph to its crops, and many photographs in parallel processes.

Masks are OBJECT (255), VOID (128) and 0 for background. No torch, so that processes start quickly.
"""
import gc
import math
import os
import threading
from typing import NamedTuple

import numpy as np
from PIL import Image

from crops.annotations import Box, Photo
from crops.coco_masks import decode_mask
from crops.rules import lies_inside
from images import OBJECT, UNREADABLE, VOID, as_stored, open_image, resize_mask, save_png, upright


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

    They mean it turned by its EXIF orientation (`photo.upright`), or the pixels as stored; if the annotated size is
    that of the other alone, the other. FileNotFoundError, or OSError when it cannot be read or has neither size.
    """
    size = photo.width, photo.height

    def turn(image):
        for way in (upright, as_stored) if photo.upright else (as_stored, upright):
            turned = way(image)
            if not photo.width or turned.size == size:
                return turned
        raise ValueError(f"{image.width} x {image.height} pixels, annotated as {photo.width} x {photo.height}")

    return open_image(photo.path, turn)


def cut_window(image: Image.Image, window, size: int) -> np.ndarray:
    """Resample `window` of an RGB image to (size, size, 3) uint8 in one antialiased bicubic step. Beyond the image it
    shows the image's reflection."""
    corners = clamp(window, image.size)
    if not lies_inside(window, *image.size):
        pixels, (left, top, right, bottom) = np.asarray(image), reach(window, size, 2)
        image = Image.fromarray(pixels[reflect(top, bottom, image.height)][:, reflect(left, right, image.width)])
        corners = window[0] - left, window[1] - top, window[0] - left + window[2], window[1] - top + window[3]
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=corners))


def reflect(start: int, stop: int, n: int) -> np.ndarray:
    """Indices that continue 0..n-1 by reflection without repeating the edge, for the places start..stop-1."""
    before = max(-start, 0)
    return np.pad(np.arange(n), (before, max(stop - n, 0)), mode="reflect")[start + before:stop + before]


def reach(window, size: int, support: int):
    """(left, top, right, bottom) of the whole pixels that resampling a window to `size` px reads, in the image or not.
    support: half the kernel's width, in pixels of the finer of window and crop."""
    x0, y0, w, h = window
    margin = support * math.ceil(max(w / size, h / size, 1)) + 1
    return (math.floor(x0) - margin, math.floor(y0) - margin,
            math.ceil(x0 + w) + margin, math.ceil(y0 + h) + margin)


def clamp(window, image_size):
    """(left, top, right, bottom) of a window, rounding errors beyond the image's edges taken off."""
    x0, y0, w, h = window
    return max(x0, 0.0), max(y0, 0.0), min(x0 + w, float(image_size[0])), min(y0 + h, float(image_size[1]))


def hull_of(window, image_size):
    """(left, top, right, bottom) of an image's whole pixels that a window touches: the extent of its source mask."""
    left, top, right, bottom = clamp(window, image_size)
    return math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)


def cut_mask(mask, photo: Photo, window, size: int):
    """An object's packed mask for its crop and at source resolution.

    Returns (size, size) uint8, thresholded at half coverage after antialiased resampling, VOID beyond the image; and
    the mask over the window's integer hull in the image (see `hull_of`). ValueError when the annotation does not fit
    the image.
    """
    image_size = photo.width, photo.height
    left, top, right, bottom = reach(window, size, 1)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, photo.width), min(bottom, photo.height)
    part = decode_mask(mask, *image_size, (x0, y0, x1, y1))
    hull, corners = hull_of(window, image_size), clamp(window, image_size)
    source = part[hull[1] - y0:hull[3] - y0, hull[0] - x0:hull[2] - x0]
    if not lies_inside(window, *image_size):
        part = np.pad(part, ((y0 - top, bottom - y1), (x0 - left, right - x1)), constant_values=VOID)
        x0, y0, corners = left, top, (window[0], window[1], window[0] + window[2], window[1] + window[3])
    box = corners[0] - x0, corners[1] - y0, corners[2] - x0, corners[3] - y0
    return resize_mask(part, size, box), source


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

    OSError where a process dies, or no thread can be started.
    """
    from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor  # here: --help need not wait

    if num_workers == 0 or len(tasks) < 2:
        yield from map(work, tasks)
        return
    check_threads()
    gc.freeze()  # else the collector touches, and so copies, the annotations in every process
    try:
        with ProcessPoolExecutor(num_workers, initializer=end_with_parent) as pool:
            yield from pool.map(work, tasks, chunksize=chunksize)
    except (BrokenProcessPool, MemoryError):
        raise OSError("a process was killed, perhaps for lack of memory: run the same command again, with fewer "
                      "--num_workers") from None
    finally:
        gc.unfreeze()


def check_threads(count=2):
    """OSError where the system refuses threads, of which a pool needs two: it would wait for the second for ever."""
    end = threading.Event()
    threads = [threading.Thread(target=end.wait, daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        raise OSError(f"no further process can be run ({error}; limits of memory or of processes): run the same "
                      "command again, with --num_workers 0") from None
    finally:
        end.set()
    for thread in threads:
        thread.join()


def end_with_parent():
    """Begin a pool's process: it ends with the one that began it, which if killed would leave it waiting for ever."""
    import multiprocessing

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    try:
        threading.Thread(target=wait, daemon=True).start()
    except RuntimeError:  # the limits are reached
        os._exit(1)
