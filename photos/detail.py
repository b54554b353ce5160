"""Detail for a fill that is only as sharp as the networks' crop, copied from around the hole.

As HiFill's residual aggregation (Yi et al., CVPR 2020), without a network: a photograph's detail is what it has beyond
a coarse copy of itself, and each cell of the hole gets that of a place like it. The places are found by a few shifts of
the whole hole, so that neighbours mostly come from neighbours (He and Sun, "Statistics of patch offsets", ECCV 2012).
Nothing is random. Windows and regions are those of `matting`.
"""
import math

import numpy as np
from PIL import Image

from photos.matting import Planes, box_mean, crop, hull, inside, maximum, membrane, strips

CELLS = 64  # across the crop, at most; as far as half of them beyond it places are looked for
STEP = 4  # between the shifts tried, cells
SHIFTS = 12  # of them are used, at most
REACH = 5  # cells to each side that are compared
COARSER = 2  # side of a pixel of the coarse copy, cells
FINER = 4  # pixels to a cell's side in which its contrast is measured
FAR = 4.0  # above any difference of two places; their levels are 0 to 1


def copied(photo, fill, known, window, region):
    """What to add to a fill for the detail of its surroundings: (h, w, 3) float32 over `region`, in levels of 255.

    Args:
        photo: (H, W, 3) uint8; what it shows in the hole is not used.
        fill: (3, S, S), 0 to 255, over `window`: the photograph without its object.
        known: (S, S) bool, where `fill` is no fill but the photograph.
    """
    n = min(CELLS, len(known))
    left, top, wide, columns, rows = _surroundings(window, photo.shape[1::-1], n)
    hole = np.zeros((rows, columns), bool)
    hole[top:top + n, left:left + n] = maximum(_means(~known, n, n) > 0, 1)  # what is beside it shows no object
    fine = _without_object(photo, fill, hole, wide, (left * FINER, top * FINER, n * FINER))
    coarse, cells = (np.asarray(Image.fromarray(fine).resize((columns // size, rows // size), kind)).transpose(2, 0, 1)
                     for size, kind in ((COARSER, Image.BICUBIC), (1, Image.BOX)))
    targets, shifts = _places(cells / np.float32(255), hole, _within(wide, photo.shape[1::-1], columns, rows) & ~hole)
    factors = _factors(fine, coarse, hole, targets, shifts)
    detail, around = _detail(photo, coarse, wide)
    out = np.zeros((region[3] - region[1], region[2] - region[0], 3), np.float32)
    cell = wide[2] / columns, wide[3] / rows
    for (i, j), (down, across), factor in zip(targets, shifts, factors, strict=True):
        dx, dy = round(across * cell[0]), round(down * cell[1])
        # cells overlap by half: one shift goes on unchanged, and two cross-fade
        x0, x1, weights = _tent(wide[0], cell[0], j, dx, region[0::2], around[0::2])
        y0, y1, above = _tent(wide[1], cell[1], i, dy, region[1::2], around[1::2])
        part = detail[inside((x0 + dx, y0 + dy, x1 + dx, y1 + dy), around)]
        out[inside((x0, y0, x1, y1), region)] += part * (factor * above[:, None] * weights)[..., None]
    return out


def _without_object(photo, fill, hole, wide, place):
    """The wide window, FINER pixels to a cell's side, with the fill in its hole, so that nothing made of it is coloured
    by the object: (h, w, 3) uint8. place: left, top and side of the fill in it."""
    left, top, side = place
    fine = np.array(crop(photo, wide, *(FINER * count for count in hole.shape[::-1])))
    inner, whole = (slice(top, top + side), slice(left, left + side)), (0, 0, side, side)
    filled = hole.repeat(FINER, 0).repeat(FINER, 1)[inner]
    fine[inner][filled] = Planes(fill, whole).at(whole)[filled] + 0.5
    return fine


def _surroundings(window, size, n):
    """The window with up to n / 2 further cells to each side, as far as the photograph has them: how many to the left
    and above, the wider window, its columns and rows."""
    x0, y0, w, h = window
    before = [min(max(int(start * n / length), 0), n // 2) for start, length in ((x0, w), (y0, h))]
    after = [min(max(int((end - start - length) * n / length), 0), n // 2)
             for end, start, length in zip(size, (x0, y0), (w, h), strict=True)]
    columns, rows = (a + n + b for a, b in zip(before, after, strict=True))
    return *before, (x0 - before[0] * w / n, y0 - before[1] * h / n, columns * w / n, rows * h / n), columns, rows


def _within(wide, size, columns, rows):
    """(rows, columns) bool: cells that lie within the photograph."""
    u, v = (start + np.arange(count + 1) * length / count
            for start, length, count in ((wide[0], wide[2], columns), (wide[1], wide[3], rows)))
    return ((v[:-1] >= -0.5) & (v[1:] <= size[1] + 0.5))[:, None] & (u[:-1] >= -0.5) & (u[1:] <= size[0] + 0.5)


def _means(plane, columns, rows):
    return np.asarray(Image.fromarray(np.asarray(plane, np.float32)).resize((columns, rows), Image.BOX))


def _places(cells, hole, usable):
    """The hole's cells that get detail, (K, 2) row and column, and the shifts to the places that they get it from: the
    few of all shifts that together serve the cells best, and of them what serves a cell and its neighbours best."""
    targets = np.argwhere(hole)
    if not len(targets) or not usable.any():
        return targets[:0], targets[:0]
    (top, left), (bottom, right) = (np.maximum(targets.min(0) - REACH, 0), targets.max(0) + REACH + 1)
    own = cells[:, top:bottom, left:right]
    height, width = own.shape[1:]
    far = max(hole.shape) // STEP * STEP
    padded, usable = np.pad(cells, ((0, 0), (far, far), (far, far)), mode="edge"), np.pad(usable, far)
    shifts, costs = [], []
    for down in range(-far, far + 1, STEP):
        for across in range(-far, far + 1, STEP):
            fits = usable[tuple((targets + (down + far, across + far)).T)]
            if fits.any():
                y, x = top + down + far, left + across + far
                difference = box_mean(((padded[:, y:y + height, x:x + width] - own) ** 2).mean(0), REACH)
                shifts.append((down, across))
                costs.append(np.where(fits, difference[tuple((targets - (top, left)).T)], FAR).astype(np.float32))
    shifts, costs, best, used = np.array(shifts).reshape(-1, 2), np.array(costs), np.float32(FAR), []
    for _ in range(SHIFTS if len(shifts) else 0):
        used.append(np.maximum(best - costs, 0).sum(1).argmax())
        best = np.minimum(best, costs[used[-1]])
    served = np.broadcast_to(best < FAR, len(targets))
    return targets[served], shifts[used][costs[used].argmin(0)][served] if used else targets[:0]


def _factors(fine, coarse, hole, targets, shifts):
    """(K,) float32, up to 1, that give the copied detail as much contrast as there is at the hole's rim."""
    rows, columns = hole.shape
    contrast = np.abs(fine - Planes(coarse, (0, 0, *fine.shape[1::-1])).at((0, 0, *fine.shape[1::-1]))).mean(-1)
    contrast = np.maximum(_means(contrast, columns, rows), 0.25)  # of a level of 255: no less can be seen
    wanted = membrane(contrast[None], ~hole)[0]
    return np.minimum(wanted[tuple(targets.T)] / contrast[tuple((targets + shifts).T)], 1).astype(np.float32)


def _detail(photo, coarse, wide):
    """What a photograph has beyond its coarse copy, (h, w, 3) int16, over the wide window's region, and the region."""
    region, coarse = hull(wide, *photo.shape[1::-1]), Planes(coarse, wide)
    out = np.empty((region[3] - region[1], region[2] - region[0], 3), np.int16)
    for strip in strips(region):
        out[inside(strip, region)] = np.rint(photo[inside(strip, (0, 0))] - coarse.at(strip))
    return out, region


def _tent(start, cell, number, shift, limits, source):
    """A cell's pixels on a line and half its neighbours', within `limits` and, once shifted, `source`: the first, the
    last + 1, and weights (K,) that fall from 1 at the cell's centre to 0 at its neighbours'."""
    centre = start + (number + 0.5) * cell
    first = max(math.ceil(centre - cell - 0.5), limits[0], source[0] - shift)
    last = max(min(math.floor(centre + cell - 0.5) + 1, limits[1], source[1] - shift), first)
    return first, last, (1 - np.abs(np.arange(first, last) + 0.5 - centre) / cell).clip(0).astype(np.float32)
