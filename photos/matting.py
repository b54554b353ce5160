"""From the networks' small crops back to a photograph's own resolution: masks, edge colours, residuals.

Arrays are numpy, rows first. A photograph is (H, W, 3) or (H, W) uint8. A window (x0, y0, w, h) is the part
of it that a crop shows, floats in its pixels; it may leave the photograph. A region (left, top, right, bottom)
is whole pixels inside it. Planes are (C, h, w) float32 over a whole window, of any size. Everything at full
resolution is done in strips, so that memory does not grow with the number of intermediate results.
"""
import math

import numpy as np
from PIL import Image, ImageFilter

from crops.cutting import reflect
from images import UserError

STRIP = 256  # rows done at a time
FINER = 2  # the guided filter's grid, in cells per mask pixel
RADIUS = 3  # of the guided filter, cells: 1.5 mask pixels
EPS = 1e-4  # its regularisation, for colours in [0, 1]
HAZE = 0.1  # alpha below it becomes 0, above 1 - HAZE 1: the linear model leaves a veil


# --- windows ---


def hull(window, width: int, height: int):
    """The region of a width x height photograph that `window` touches; UserError where it touches none."""
    x0, y0, w, h = window
    left, top = max(math.floor(x0), 0), max(math.floor(y0), 0)
    right, bottom = min(math.ceil(x0 + w), width), min(math.ceil(y0 + h), height)
    if left >= right or top >= bottom:
        raise UserError(f"the window {window} lies outside the image of {width} x {height} pixels")
    return left, top, right, bottom


def crop(photo: np.ndarray, window, width: int, height: int, beyond: str = "reflect") -> np.ndarray:
    """`window` of a photograph (H, W[, 3 or 4]) uint8, the fourth channel alpha, as (height, width[, channels]) uint8.

    One antialiased bicubic step; a window of whole pixels that keeps its size is copied.
    beyond: what lies beyond the photograph's border: "reflect" or "zero" (black, transparent).
    """
    x0, y0, w, h = window
    # what a bicubic kernel reads beyond the window, as when the window lies deep inside
    margin_x, margin_y = 2 * math.ceil(max(w / width, 1)) + 1, 2 * math.ceil(max(h / height, 1)) + 1
    left, right = math.floor(x0) - margin_x, math.ceil(x0 + w) + margin_x
    top, bottom = math.floor(y0) - margin_y, math.ceil(y0 + h) + margin_y
    rows, columns = photo.shape[:2]
    if left >= 0 and top >= 0 and right <= columns and bottom <= rows:
        part = photo[top:bottom, left:right]
    elif beyond == "reflect":
        part = photo.take(reflect(top, bottom, rows), 0).take(reflect(left, right, columns), 1)  # faster than indexing
    else:
        part = np.zeros((bottom - top, right - left, *photo.shape[2:]), np.uint8)
        area = max(left, 0), max(top, 0), min(right, columns), min(bottom, rows)
        if area[0] < area[2] and area[1] < area[3]:
            part[inside(area, (left, top))] = photo[inside(area, (0, 0))]
    if (width, height) == (w, h) and x0 == math.floor(x0) and y0 == math.floor(y0):
        return part[int(y0) - top:int(y0) - top + height, int(x0) - left:int(x0) - left + width]
    box = (x0 - left, y0 - top, x0 - left + w, y0 - top + h)
    return np.asarray(Image.fromarray(part).resize((width, height), Image.BICUBIC, box=box))


class Planes:
    """Planes (C, h, w) over `window`, to be read at any part of its hull, bilinearly."""

    def __init__(self, planes, window):
        self.window, (rows, columns) = window, planes.shape[1:]
        self.cells = columns / window[2], rows / window[3]  # a pixel's size in cells
        # the hull reaches up to a pixel beyond the window, where the border's values go on
        self.margin = math.ceil(max(self.cells)) + 1
        self.padded = [Image.fromarray(np.pad(p, self.margin, mode="edge")) for p in np.asarray(planes, np.float32)]

    def at(self, region) -> np.ndarray:
        """(bottom - top, right - left, C) float32."""
        (left, top, right, bottom), (x0, y0, _, _) = region, self.window
        box = [(place - start) * cells + self.margin for place, start, cells in
               zip(region, (x0, y0, x0, y0), self.cells * 2, strict=True)]
        size = (right - left, bottom - top)
        return np.stack([np.asarray(p.resize(size, Image.BILINEAR, box=box)) for p in self.padded], -1)


def strips(region, rows: int = STRIP):
    """`region` in pieces of up to `rows` rows."""
    left, top, right, bottom = region
    for start in range(top, bottom, rows):
        yield left, start, right, min(start + rows, bottom)


def inside(region, outer):
    """Slices of `region` in an array that covers the region `outer`."""
    return (slice(region[1] - outer[1], region[3] - outer[1]), slice(region[0] - outer[0], region[2] - outer[0]))


# --- the mask, guided by the photograph ---


def box_mean(planes: np.ndarray, radius: int) -> np.ndarray:
    """Mean over squares of side 2·radius + 1, cut off at the border: (..., h, w) float64 likewise. O(1) a pixel."""
    for _ in "across", "down":
        n = np.arange(planes.shape[-1])
        low, high = np.maximum(n - radius, 0), np.minimum(n + radius + 1, len(n))
        total = np.insert(np.cumsum(planes, -1, dtype=np.float64), 0, 0, -1)
        planes = ((total[..., high] - total[..., low]) / (high - low)).swapaxes(-1, -2)
    return planes


def guided_filter(guide: np.ndarray, p: np.ndarray, radius: int, eps: float):
    """The guided filter (He, Sun, Tang, ECCV 2010, eq. 19-21) of p (h, w) with a colour guide I (3, h, w) in [0, 1].

    Returns a (3, h, w), b (h, w), so that the result is q = a·I + b; at another resolution of I, too (He and Sun,
    "Fast Guided Filter", 2015).
    """
    mean, mean_p = box_mean(guide, radius), box_mean(p, radius)
    covariance = box_mean(guide * p, radius) - mean * mean_p
    variance = np.empty((*p.shape, 3, 3))
    for i in range(3):
        for j in range(i, 3):
            variance[..., i, j] = variance[..., j, i] = box_mean(guide[i] * guide[j], radius) - mean[i] * mean[j]
    a = np.linalg.solve(variance + eps * np.eye(3), np.moveaxis(covariance, 0, -1)[..., None])[..., 0]
    a = np.moveaxis(a, -1, 0)
    b = mean_p - (a * mean).sum(0)
    return box_mean(a, radius), box_mean(b, radius)


def upsample_mask(photo: np.ndarray, mask: np.ndarray, window, region) -> np.ndarray:
    """Carry a mask (h, w) in [0, 1], 1 = object, over `window` to the pixels of `photo` (H, W, 3), drawn to its edges.

    Returns alpha over `region`, uint8, 255 = object. It stays within what the mask says one pixel further in any
    direction, so that the guide can move an edge but not make or lose an object.
    """
    rows, columns = (FINER * n for n in mask.shape)
    guide = crop(photo, window, columns, rows).transpose(2, 0, 1) / 255
    p = np.asarray(Image.fromarray(mask).resize((columns, rows), Image.BILINEAR))
    a, b = guided_filter(guide, p, RADIUS, EPS)
    model = Planes(np.concatenate([a, b[None]]), window)
    limits = Planes(np.stack([-maximum(-mask, 1), maximum(mask, 1)]), window)
    alpha = np.empty((region[3] - region[1], region[2] - region[0]), np.uint8)
    for strip in strips(region):
        linear, limit = model.at(strip), limits.at(strip)
        colours = photo[inside(strip, (0, 0))] / np.float32(255)
        q = (linear[..., :3] * colours).sum(-1) + linear[..., 3]
        q = np.clip((q - HAZE) / (1 - 2 * HAZE), limit[..., 0], limit[..., 1])
        alpha[inside(strip, region)] = q * 255 + 0.5
    return alpha


def maximum(values: np.ndarray, radius: int) -> np.ndarray:
    """Maximum over squares of side 2·radius + 1, cut off at the border: (h, w) likewise. O(log radius) a pixel."""
    for _ in "down", "across":
        reach = min(radius, len(values) - 1)
        values, width = np.pad(values, ((reach, reach), (0, 0)), mode="edge"), 1  # width: of what each place has seen
        while width < 2 * reach + 1:
            step = min(width, 2 * reach + 1 - width)
            values = np.maximum(values[:-step], values[step:])
            width += step
        values = values.T
    return values


def grow(alpha: np.ndarray, radius: int) -> np.ndarray:
    """`maximum` of (h, w) uint8; the minimum (erosion) for a negative radius."""
    return maximum(alpha, radius) if radius >= 0 else 255 - maximum(255 - alpha, -radius)


def feather(alpha: np.ndarray, radius: int) -> np.ndarray:
    """An edge that falls off smoothly: 255 where `alpha` (h, w) uint8 is 255, 0 from 2·radius px on."""
    wide = Image.fromarray(grow(alpha, radius))
    return np.maximum(np.asarray(wide.filter(ImageFilter.BoxBlur(radius))), alpha)


def taper(region, photo_size, width: float, height: float):
    """Weights that fall from 1 to 0 over `width` and `height` pixels towards the borders of `region`, except where the
    photograph, of photo_size (width, height), ends there too: (h, 1) and (1, w) float32, to be multiplied."""
    def ramp(start, stop, end, reach):
        i = np.arange(stop - start, dtype=np.float32) + 0.5
        distance = np.minimum(i if start > 0 else np.inf, i[::-1] if stop < end else np.inf) / max(reach, 1)
        return (0.5 - 0.5 * np.cos(np.pi * np.minimum(distance + np.zeros_like(i), 1))).astype(np.float32)

    left, top, right, bottom = region
    return ramp(top, bottom, photo_size[1], height)[:, None], ramp(left, right, photo_size[0], width)[None]


# --- colours ---


def _blur_fusion(image, foreground, background, alpha, radius, power):
    """One step of Forte's "Approximate Fast Foreground Colour Estimation" (ICIP 2021): F, B, the means of both
    layers around each pixel, and F corrected by the pixel itself; all (3, h, w) but alpha (h, w).

    Deviation: the weights alpha^power, (1 - alpha)^power; with 4, mixed colours hardly count.
    """
    object_, rest = alpha**power, (1 - alpha) ** power
    f = box_mean(foreground * object_, radius) / (box_mean(object_, radius) + 1e-6)
    b = box_mean(background * rest, radius) / (box_mean(rest, radius) + 1e-6)
    return f, b, np.clip(f + alpha * (image - alpha * f - (1 - alpha) * b), 0, 1)


def foreground(photo: np.ndarray, alpha: np.ndarray, window, region, rows: int, columns: int) -> np.ndarray:
    """The object's own colour where its edge mixes with the surroundings.

    photo: (H, W, 3) uint8; alpha: over `region`, uint8; rows, columns: of the grid over `window` on which the
    neighbourhood's colours are averaged.

    Returns F over `region`, (h, w, 3) uint8: the photograph where alpha is 255, drawn to the colour of the nearby
    object where it is less, 0 where alpha is 0.
    """
    local = (window[0] - region[0], window[1] - region[1], *window[2:])
    image = crop(photo, window, columns, rows).transpose(2, 0, 1) / 255
    small = crop(alpha, local, columns, rows) / 255
    _, b, f = _blur_fusion(image, image, image, small, max(rows, columns) // 16, 4)
    f, b, _ = _blur_fusion(image, f, b, small, max(max(rows, columns) // 128, 1), 1)
    layers = Planes(np.concatenate([f, b]) * 255, window)
    out = np.zeros((*alpha.shape, 3), np.uint8)
    for strip in strips(region):
        place = inside(strip, region)
        weight = alpha[place][..., None] / np.float32(255)
        near, colours = layers.at(strip), photo[inside(strip, (0, 0))]
        colour = colours - weight * near[..., :3] - (1 - weight) * near[..., 3:]
        colour = np.clip(near[..., :3] + weight * colour + 0.5, 0, 255)
        out[place] = np.where(weight == 1, colours, colour) * (weight > 0)
    return out


def membrane(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """`values` (C, h, w) where `known` (h, w) bool, elsewhere a smooth surface through their rim, 0 if none is:
    Laplace's equation, coarse to fine."""
    if known.all() or not known.any():
        return values * known
    rows, columns = known.shape
    pad = ((0, rows % 2), (0, columns % 2))

    def halve(p):
        p = np.pad(p, pad)
        return p[::2, ::2] + p[1::2, ::2] + p[::2, 1::2] + p[1::2, 1::2]

    weight = halve(known.astype(np.float32))
    coarse = np.stack([halve(v * known) for v in values]) / np.maximum(weight, 1)
    start = membrane(coarse, weight > 0).repeat(2, 1).repeat(2, 2)[:, :rows, :columns]
    surface = np.where(known, values, start)
    for _ in range(16):  # the coarser grids have settled what is further away
        p = np.pad(surface, ((0, 0), (1, 1), (1, 1)), mode="edge")
        mean = (p[:, :-2, 1:-1] + p[:, 2:, 1:-1] + p[:, 1:-1, :-2] + p[:, 1:-1, 2:]) / 4
        surface = np.where(known, values, mean)
    return surface
