"""How good masks are (§4.2, Table 1): at the crop's source resolution, beside baselines, with intervals.

Masks have 1 = object. `iou` and `mean_mask` take tensors (N, 1, H, W); the rest works on single numpy
arrays, because crops of one source size rarely repeat. No better-of-mask-and-inverse anywhere: a wrong
polarity scores as wrong. This file needs torch and numpy only and can be copied out alone.
"""
import math
from typing import NamedTuple

import numpy as np
import torch

OBJECT, VOID = 255, 128  # values in a mask file; void is not scored
RATIOS = ("iou", "dice", "pixel_accuracy", "precision", "recall")
BASELINES = ("full_mask", "box_mask", "mean_mask")


# --- at crop size, for training ---


def iou(mask, truth):
    """Intersection over union of each pair.

    Args:
        mask: soft masks (N, 1, H, W) in [0, 1], cut at ½ (Table 1).
        truth: (N, 1, H, W) of 0 and 1.

    Returns:
        (N,) in [0, 1]; 1 where both are empty.
    """
    mask, truth = mask >= 0.5, truth >= 0.5
    intersection = (mask & truth).flatten(1).sum(1).double()
    union = (mask | truth).flatten(1).sum(1).double()
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)


def mean_mask(masks, thresholds=torch.arange(0.1, 0.91, 0.05)):
    """The best fixed mask that training masks allow: their mean, cut where it scores best on them.

    masks: (N, 1, H, W) of 0 and 1 -> (1, 1, H, W) of 0 and 1. A model that does not beat it has learned nothing.
    """
    flat = masks.flatten(1).float()
    candidates = (flat.mean(0) >= thresholds.to(flat)[:, None]).float()  # (T, P)
    intersection = flat @ candidates.T  # (N, T)
    union = flat.sum(1, keepdim=True) + candidates.sum(1) - intersection
    scores = torch.where(union > 0, intersection / union.clamp(min=1), 1.0).double().mean(0)
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
    """A soft mask over the crop, sampled bilinearly at the source pixels' centres; this undoes the crop's stretch.

    Args:
        mask: (h, w) float, of any size, over the whole of `truth.window`.

    Returns:
        (H, W) like `truth.mask`; beyond the centres of the outermost pixels their values go on.
    """
    u, v = truth.centres
    lower, upper, weight = _neighbours(v, mask.shape[0])
    rows = mask[lower] + (mask[upper] - mask[lower]) * weight[:, None]
    lower, upper, weight = _neighbours(u, mask.shape[1])
    left = rows[:, lower]
    return left + (rows[:, upper] - left) * weight


def _neighbours(position, count):
    """Pixels on both sides of positions in [0, 1] on an axis of `count` pixels, and the weight of the second."""
    place = np.clip(position * count - 0.5, 0, count - 1)
    lower = np.floor(place).astype(np.intp)
    return lower, np.minimum(lower + 1, count - 1), (place - lower).astype(np.float32)


def box_at_source(box, truth):
    """The box (left, top, width, height in fractions of the crop) as a mask (H, W) bool of pixels centred in it."""
    (u, v), (left, top, width, height) = truth.centres, box
    return ((v >= top) & (v < top + height))[:, None] & ((u >= left) & (u < left + width))[None]


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
        return np.where(whole > 0, part / np.maximum(whole, 1e-300), empty)

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
    """Pixels of (H, W) bool within `radius` of `mask` along both axes: max-pooling over 2·radius + 1 px squares."""
    out = mask.copy()
    for view in (out, out.T):
        reach = 0
        while reach < radius:  # shifted copies that touch: 3, 9, 27, ... px in a step each
            shift = min(radius - reach, 2 * reach + 1)
            before = view.copy()
            view[shift:] |= before[:-shift]
            view[:-shift] |= before[shift:]
            reach += shift
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


def score(mask, truth):
    """Every figure of one soft mask (h, w) over a crop: {"counts": (4,), each of RATIOS, "boundary_f"}."""
    predicted, true, scored = resample(mask, truth) >= 0.5, truth.mask == OBJECT, truth.scored
    counts = count(predicted, true, scored)
    figures = {name: float(value) for name, value in ratios(counts).items()}
    return {"counts": counts, **figures, "boundary_f": boundary_f(predicted, true, scored)}


def score_baselines(truth, box=None, fixed=None):
    """IoU of the masks that need no model, for one crop: {"full_mask", "box_mask", "mean_mask"}.

    box: (4,) fractions of the crop; fixed: (h, w) of 0 and 1, resized like a prediction. None gives NaN.
    """
    true, scored = truth.mask == OBJECT, truth.scored
    masks = (np.ones_like(scored), None if box is None else box_at_source(box, truth),
             None if fixed is None else resample(fixed, truth) >= 0.5)
    return {name: math.nan if mask is None else float(ratios(count(mask, true, scored))["iou"])
            for name, mask in zip(BASELINES, masks, strict=True)}


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
