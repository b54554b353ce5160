"""How good masks are (§4.2, Table 1): at the crop's source resolution, beside baselines, with intervals.

Masks have 1 = object, 0 = background and, where they are true ones, void, which is neither and never counts: ½ in
tensors, VOID in what mask files hold. `mean_mask` takes tensors (N, 1, H, W); the rest works on single numpy arrays,
because crops of one source size rarely repeat. No better-of-mask-and-inverse anywhere: a wrong polarity scores as
wrong.
"""
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from evaluation.clustered import photographs
from images import OBJECT, VOID

RATIOS = ("iou", "dice", "pixel_accuracy", "precision", "recall")
BASELINES = {"full_mask": "full mask", "box_mask": "box", "mean_mask": "best fixed mask", "crf": "CRF from the box"}


# --- at crop size ---


def mean_mask(masks):
    """The best fixed mask that training masks allow: their mean, cut where it scores best on them (of 0.1, 0.15,
    ..., 0.9). A model that does not beat it has learned nothing.

    masks: (N, 1, H, W) of 1 = object, 0 and ½ = void, which counts in neither mean nor score -> (1, 1, H, W) of 0
    and 1.
    """
    parts = masks.flatten(1).split(64)  # as numbers they take more memory
    seen = sum((part != 0.5).sum(0) for part in parts)
    mean = sum((part == 1).sum(0) for part in parts) / seen.clamp(min=1).double()
    thresholds = torch.arange(0.1, 0.91, 0.05, dtype=torch.float64)
    candidates = (mean >= thresholds[:, None]).float()  # (T, P)
    scores = torch.zeros(len(thresholds), dtype=torch.float64)
    for part in parts:
        true = (part == 1).float()
        intersection = true @ candidates.T  # (N, T)
        union = true.sum(1, keepdim=True) + (part != 0.5).float() @ candidates.T - intersection
        scores += torch.where(union > 0, intersection / union.clamp(min=1), 1.0).double().sum(0)
    return candidates[scores.argmax()].reshape(1, *masks.shape[1:])


# --- at source resolution ---


class Truth(NamedTuple):
    """A true mask as annotated, and the part of it that a crop shows."""

    mask: np.ndarray  # (H, W) uint8: OBJECT, VOID or 0; one value a source pixel
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


def resample(masks, truth):
    """Soft masks (..., h, w) of any size over the crop, sampled bilinearly at the source pixels' centres: undoes the
    crop's stretch -> (..., H, W) like `truth.mask`. Beyond the centres of the outermost pixels their values go on."""
    u, v = (torch.from_numpy(2 * centres - 1).float() for centres in truth.centres)
    grid = torch.stack(torch.broadcast_tensors(u, v[:, None]), -1)[None]  # (1, H, W, 2)
    soft = torch.from_numpy(masks).reshape(1, -1, *masks.shape[-2:])
    found = F.grid_sample(soft, grid, padding_mode="border", align_corners=False)
    return found.numpy().reshape(*masks.shape[:-2], *truth.mask.shape)


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
    p = np.pad(mask, 1, mode="edge")
    return mask & ~(p[:-2, 1:-1] & p[2:, 1:-1] & p[1:-1, :-2] & p[1:-1, 2:])


def dilate(mask, radius):
    """Pixels of (H, W) bool within `radius` of `mask` along both axes: max-pooling over squares of 2·radius + 1 px."""
    out = torch.from_numpy(mask).float()[None]
    for _ in range(2):  # along the rows, then along the columns
        out = F.max_pool1d(out, 2 * radius + 1, stride=1, padding=radius).transpose(1, 2).contiguous()
    return out[0].bool().numpy()


def boundary_f(mask, truth, scored, tolerance=0.008):
    """Boundary F-measure (Perazzi et al., DAVIS, 2016), how much of each outline lies near the other: 2PR / (P + R); 1
    where neither has an outline, 0 where only one has.

    mask, truth, scored: (H, W) bool; tolerance: largest distance, in fractions of the diagonal, rounded up to whole
    pixels. Deviation from DAVIS: measured along the axes (squares), not as a disc.
    """
    radius = math.ceil(tolerance * math.hypot(*mask.shape))
    edge, true_edge = boundary(mask) & scored, boundary(truth) & scored
    n, n_true = np.count_nonzero(edge), np.count_nonzero(true_edge)
    if n == 0 or n_true == 0:
        return float(n == n_true)
    precision = np.count_nonzero(edge & dilate(true_edge, radius)) / n
    recall = np.count_nonzero(true_edge & dilate(edge, radius)) / n_true
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def score(mask, truth, box=None, placed=False, **others):
    """Every figure of one crop's soft mask, and the IoU of the masks that need no model: {"counts": (4,), each of
    RATIOS, "boundary_f", "mask_area", each of BASELINES}, and with "_refined" behind all but the counts and baselines
    those of a refined mask.

    mask: (h, w) float32 in [0, 1] over the crop; box: the object's, (4,) left, top, width, height in fractions of the
    crop; placed: mask lies on the true mask's pixels instead, and is of its size; others: what there is of refined,
    mean_mask and crf, over the crop, of any size. A baseline that is not there is NaN.
    """
    true, scored = truth.mask == OBJECT, truth.scored
    found = {"": (mask if placed else resample(mask, truth)) >= 0.5}
    found |= {name: resample(one, truth) >= 0.5 for name, one in others.items()}
    found["full_mask"] = scored
    if box is not None:  # pixels centred in it
        (u, v), (left, top, width, height) = truth.centres, box
        found["box_mask"] = ((v >= top) & (v < top + height))[:, None] & ((u >= left) & (u < left + width))[None]
    counts = {name: count(one, true, scored) for name, one in found.items()}
    figures = {"counts": counts[""]}
    for name, suffix in {"": "", "refined": "_refined"}.items():
        if name in found:
            tp, fp, _, _ = counts[name]
            figures |= {f"{ratio}{suffix}": float(value) for ratio, value in ratios(counts[name]).items()}
            figures[f"boundary_f{suffix}"] = boundary_f(found[name], true, scored)
            figures[f"mask_area{suffix}"] = float((tp + fp) / max(counts[name].sum(), 1))
    return figures | {name: float(ratios(counts[name])["iou"]) if name in found else math.nan for name in BASELINES}


# --- over images ---


def by_photograph(table, rows):
    """Sums of a table (N, K) over the rows of each photograph, (P, K), in the order in which photographs come first:
    what is resampled where crops of one photograph are alike. rows: N, with "photograph", else "stem"."""
    units = photographs(rows)
    sums = np.zeros((max(units, default=-1) + 1, table.shape[1]))
    np.add.at(sums, units, table)
    return sums


def bootstrap(table, statistic=lambda means: means, resamples=2000, level=0.95, seed=0):
    """Percentile bootstrap over images: (M, 2) ends of `level` intervals; NaN for fewer than two images.

    table: (N, K), one row an image, or a photograph (see `by_photograph`); statistic: maps column means (B, K) to
    figures (B, M).
    """
    table = np.asarray(table, np.float64)
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
