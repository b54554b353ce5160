"""How good masks are (§4.2, Table 1): at the crop's source resolution, beside baselines, with intervals.

Masks have 1 = object. `mean_mask` takes tensors (N, 1, H, W); the rest works on single numpy arrays,
because crops of one source size rarely repeat. No better-of-mask-and-inverse anywhere: a wrong
polarity scores as wrong. This file needs torch and numpy only and can be copied out alone.
"""
import math
from typing import NamedTuple

import numpy as np
import torch

OBJECT, VOID = 255, 128  # values in a mask file; void is not scored
RATIOS = ("iou", "dice", "pixel_accuracy", "precision", "recall")
BASELINES = ("full_mask", "box_mask", "mean_mask")


# --- at crop size ---


def mean_mask(masks):
    """The best fixed mask that training masks allow: their mean, cut where it scores best on them (of 0.1, 0.15,
    ..., 0.9). A model that does not beat it has learned nothing.

    masks: (N, 1, H, W) of 0 and 1 -> (1, 1, H, W) of 0 and 1.
    """
    parts = masks.flatten(1).split(64)  # as numbers they take more memory
    mean = sum(part.sum(0, dtype=torch.float64) for part in parts) / len(masks)
    thresholds = torch.arange(0.1, 0.91, 0.05, dtype=torch.float64)
    candidates = (mean >= thresholds[:, None]).float()  # (T, P)
    scores = torch.zeros(len(thresholds), dtype=torch.float64)
    for part in parts:
        intersection = part.float() @ candidates.T  # (N, T)
        union = part.float().sum(1, keepdim=True) + candidates.sum(1) - intersection
        scores += torch.where(union > 0, intersection / union.clamp(min=1), 1.0).double().sum(0)
    return candidates[scores.argmax()].reshape(1, *masks.shape[1:])


# --- at source resolution ---


class Truth(NamedTuple):
    """A true mask as annotated, and the part of it that a crop shows."""

    mask: np.ndarray  # (H, W) uint8: 255 = object, 128 = void, 0 = background; one value a source pixel
    window: tuple  # x0, y0, w, h that the crop shows, floats in source pixels
    origin: tuple = (0, 0)  # x, y of the mask's first pixel, in source pixels

    @property
    def centres(self):
        """Centres of the mask's columns (W,) and rows (H,), in fractions of the window."""
        (x0, y0, w, h), (rows, columns) = self.window, self.mask.shape
        return ((np.arange(columns) + 0.5 + self.origin[0] - x0) / w,
                (np.arange(rows) + 0.5 + self.origin[1] - y0) / h)

    @property
    def scored(self):
        """(H, W) bool: pixels that are not void and whose centres the crop shows."""
        u, v = self.centres
        inside = ((v >= 0) & (v <= 1))[:, None] & ((u >= 0) & (u <= 1))[None]
        return inside & (self.mask != VOID)


def resample(mask, truth):
    """A soft mask over the crop, sampled bilinearly at the source pixels' centres; undoes the crop's stretch.

    Args:
        mask: (h, w) float, of any size, over the whole of `truth.window`.

    Returns:
        (H, W) like `truth.mask`; beyond the centres of the outermost pixels their values go on.
    """
    u, v = truth.centres
    rows = _interpolate(mask, v)  # (H, w)
    return _interpolate(np.ascontiguousarray(rows.T), u).T  # whole rows are gathered faster than columns


def _interpolate(mask, position):
    """Rows of (h, w) at positions in [0, 1] from top to bottom -> (len(position), w)."""
    count = len(mask)
    place = np.clip(position * count - 0.5, 0, count - 1)
    lower = np.floor(place).astype(np.intp)
    out, upper = mask[lower], mask[np.minimum(lower + 1, count - 1)]
    upper -= out
    upper *= (place - lower).astype(mask.dtype)[:, None]
    out += upper
    return out


def count(mask, truth, scored):
    """Scored pixels by outcome, (4,) float64: true positive, false positive, false negative, true negative.

    mask, truth, scored: (H, W) bool.
    """
    mask = mask & scored
    tp = np.count_nonzero(mask & truth)
    n_mask, n_truth = np.count_nonzero(mask), np.count_nonzero(truth & scored)
    fp, fn = n_mask - tp, n_truth - tp
    return np.array([tp, fp, fn, np.count_nonzero(scored) - tp - fp - fn], np.float64)


def ratios(counts):
    """counts (..., 4) as of `count` -> {name of RATIOS: (...)}, each in [0, 1].

    Where neither mask nor truth has a pixel, IoU, Dice, precision and recall are 1; where only one has, 0.
    """
    tp, fp, fn, tn = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    empty = (tp + fp + fn == 0).astype(np.float64)

    def share(part, whole):
        return np.where(whole == 0, empty, part / np.where(whole == 0, 1, whole))

    return {"iou": share(tp, tp + fp + fn), "dice": share(2 * tp, 2 * tp + fp + fn),
            "pixel_accuracy": share(tp + tn, tp + fp + fn + tn),
            "precision": share(tp, tp + fp), "recall": share(tp, tp + fn)}


def boundary(mask):
    """Pixels of `mask` (H, W) bool with one of their four neighbours outside it; the frame's edge is no boundary."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return mask & ~inner


def dilate(mask, radius):
    """Pixels of (H, W) bool within `radius` of `mask` along both axes: max-pooling over squares of 2·radius + 1 px."""
    out = mask.copy()
    for view in (out, out.T):  # in memory's order, each
        back, reach = view.copy(order="K"), 0
        while reach < radius:  # each step doubles how far a pixel is spread: forward in `view`, backward in `back`
            shift = min(radius - reach, reach + 1)
            before = view.copy(order="K")
            view[shift:] |= before[:-shift]
            before = back.copy(order="K")
            back[:-shift] |= before[shift:]
            reach += shift
        view |= back
    return out


def boundary_f(mask, truth, scored, tolerance=0.008):
    """Boundary F-measure (Perazzi et al., DAVIS, 2016): how much of each outline lies near the other.

    Args:
        mask, truth, scored: (H, W) bool.
        tolerance: largest distance, in fractions of the diagonal, rounded up to whole pixels. Deviation from
            DAVIS: measured along the axes (squares), not as a disc.

    Returns:
        2PR / (P + R); 1 where neither has an outline, 0 where only one has.
    """
    radius = math.ceil(tolerance * math.hypot(*mask.shape))
    edge, true_edge = boundary(mask) & scored, boundary(truth) & scored
    n, n_true = np.count_nonzero(edge), np.count_nonzero(true_edge)
    if n == 0 or n_true == 0:
        return float(n == n_true)
    precision = np.count_nonzero(edge & dilate(true_edge, radius)) / n
    recall = np.count_nonzero(true_edge & dilate(edge, radius)) / n_true
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def score(mask, truth, box=None, fixed=None):
    """Every figure of one crop's soft mask, and the IoU of the masks that need no model.

    Args:
        mask: (h, w) in [0, 1] over the crop.
        box: the object's, (4,) left, top, width, height in fractions of the crop; None gives NaN.
        fixed: the mean mask (h, w) of 0 and 1, resized like a prediction; None gives NaN.

    Returns:
        {"counts": (4,), each of RATIOS, "boundary_f", each of BASELINES}.
    """
    true, scored = truth.mask == OBJECT, truth.scored
    predicted = np.ascontiguousarray(resample(mask, truth) >= 0.5)
    table = [count(predicted, true, scored), *_baseline_counts(true, scored, truth, box, fixed)]
    figures = ratios(np.array(table))
    return {"counts": table[0], **{name: float(value[0]) for name, value in figures.items()},
            "boundary_f": boundary_f(predicted, true, scored),
            **{name: float(value) for name, value in zip(BASELINES, figures["iou"][1:], strict=True)}}


def _baseline_counts(true, scored, truth, box, fixed):
    """`count` of each of BASELINES: all of the crop, the box (pixels centred in it), the mean mask."""
    unknown = np.full(4, np.nan)
    full, boxed, mean = count(scored, true, scored), unknown, unknown
    if box is not None:
        (u, v), (left, top, width, height) = truth.centres, box
        inside = ((v >= top) & (v < top + height))[:, None] & ((u >= left) & (u < left + width))[None]
        boxed = count(inside, true, scored)
    if fixed is not None:
        mean = count(np.ascontiguousarray(resample(fixed, truth) >= 0.5), true, scored)
    return full, boxed, mean


# --- over images ---


def bootstrap(table, statistic=None, resamples=2000, level=0.95, seed=0):
    """Percentile bootstrap intervals over images.

    Args:
        table: (N, K), one row an image.
        statistic: maps column means (B, K) to figures (B, M); default the means themselves.

    Returns:
        (M, 2) lower and upper ends of the `level` interval; NaN for fewer than two images, which allow none.
    """
    table = np.asarray(table, np.float64)
    statistic = statistic or (lambda means: means)
    n = len(table)
    if n < 2:
        return np.full((statistic(np.ones((1, table.shape[1]))).shape[1], 2), np.nan)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, table.shape[1]))
    chunk = max(1, 2**20 // n)  # resamples at a time: memory does not grow with their number
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        draws = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        times = np.bincount(draws.ravel(), minlength=size * n).reshape(size, n)  # how often each row is drawn
        means[start : start + size] = times @ table / n
    tail = (1 - level) / 2
    return np.quantile(statistic(means), [tail, 1 - tail], axis=0).T
