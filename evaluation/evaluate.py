"""From a model and test crops to figures and images: what test.py runs.

Objects are paired with backgrounds by a seeded permutation, and the noise depends on a seed alone: the figures do not
depend on batch size or threads. What a model must have is written in running/methods.py.
"""
import math
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import crf
from data import by_stem, to_pixels
from evaluation import image_scores, mask_scores
from evaluation.mask_files import MaskFiles
from images import OBJECT, UserError, open_mask
from networks import box_mask, fixed_noise

FILLS = ("G_inp", "G_inp_first", "diffusion", "mean_colour")  # "first": of G_inp's two U-Nets
MEASURES = {"psnr": image_scores.psnr, "ssim": image_scores.ssim, "mae": image_scores.mae}
# what is made, and the real crops that it is compared with
FRECHET = {"z": "x", "y_hat": "x", "x_hat": "y", "G_inp": "y", "G_inp_first": "y", "diffusion": "y"}
MASKS = (*mask_scores.RATIOS, "boundary_f", "mask_area")
REFINED = {name: f"{name}_refined" for name in MASKS}  # of the masks after `crf.refine_box`
COUNTS = ("tp", "fp", "fn", "tn")
NAMES = ("stem", "background", "photograph")  # columns of a row that are no numbers
FIGURES = (*MASKS, "true_area", *REFINED.values(), *mask_scores.BASELINES, "id_obj", "enh_change",
           *(f"{fill}_{measure}" for fill in FILLS for measure in MEASURES))
MEAN_MASK_SAMPLE = 2000  # training masks, evenly spaced, from which the mean mask is fitted


class Record(NamedTuple):
    """What `evaluate` finds of one object."""

    stem: str
    row: dict  # NAMES, what there is of FIGURES and COUNTS, the model's scores; NaN = no value
    pictures: dict  # {kind: uint8 (S, S, 3), masks (S, S)}: x, y, mask, refined, else as the model orders them, truth
    features: dict  # {kind: (D,) of a FeatureNet}


# --- the data ---


def pair_up(crops, seed=0):
    """{stem: stem of its background, "" where there are none}: object i with number i mod n of a permutation of the n
    backgrounds, so that all are used, and neighbours by name, often of one photograph, meet by chance only."""
    order = np.random.default_rng(seed).permutation(len(crops.background_stems))
    return {stem: crops.background_stems[order[i % len(order)]] if len(order) else ""
            for i, stem in enumerate(crops.stems)}


def photograph(crops, stem):
    """What tells the photograph that `stem` was cut from: its name, after its source's number where there are several;
    the stem itself where crops.json does not say. Crops of one are no independent sample."""
    record = crops.records.get(stem, {})
    name, origin = record.get("source"), record.get("origin", 0)
    return stem if not isinstance(name, str) else f"{origin}:{name}" if len(crops.rules) > 1 else name


def read_truth(crops, stem):
    """The true mask of `stem` as a `mask_scores.Truth`: from masks_source/ (as annotated), else from masks/; None if it
    has none. UserError where the file's size contradicts crops.json."""
    path = os.path.join(crops.root, "masks_source", f"{stem}.png")
    record = crops.records.get(stem, {})
    window, limits = record.get("source_window"), record.get("source_size", (math.inf, math.inf))
    if window is None or not os.path.isfile(path):
        if stem not in crops.masks:
            return None
        mask = np.asarray(open_mask(crops.masks[stem]))
        return mask_scores.Truth(mask, (0.0, 0.0, float(mask.shape[1]), float(mask.shape[0])))
    mask, (x0, y0, w, h) = np.asarray(open_mask(path)), window
    # a window may leave the photograph: its mask ends there, so that nothing beyond is scored
    origin = math.floor(max(x0, 0)), math.floor(max(y0, 0))
    expected = math.ceil(min(x0 + w, limits[0])) - origin[0], math.ceil(min(y0 + h, limits[1])) - origin[1]
    if max(abs(expected[0] - mask.shape[1]), abs(expected[1] - mask.shape[0])) > 1:
        raise UserError(f"{path} has {mask.shape[1]} x {mask.shape[0]} pixels, its source_window in crops.json says "
                        f"{expected[0]} x {expected[1]}: make the set anew")
    return mask_scores.Truth(mask, tuple(window), origin)


def resolution(crops):
    """What the true masks are compared at: "source", or "crop" where no annotated mask is at hand, or "mixed"."""
    with_source = set(by_stem(os.path.join(crops.root, "masks_source"))) & set(crops.records)
    known = {stem in with_source for stem in crops.stems if stem in with_source or stem in crops.masks}
    return {frozenset([True]): "source", frozenset([True, False]): "mixed"}.get(frozenset(known), "crop")


def fit_mean_mask(crops, num_threads=1):
    """The best fixed mask (S, S) float32 of `crops`' masks and how many it comes from, at most MEAN_MASK_SAMPLE; or
    None, 0."""
    stems = [s for s in crops.stems if s in crops.masks]
    stems = stems[:: math.ceil(len(stems) / MEAN_MASK_SAMPLE)] if stems else []
    if not stems:
        return None, 0
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        masks = torch.stack(list(pool.map(lambda stem: crops.mask(stem).half(), stems)))  # half: 0, ½ and 1 are exact
    return mask_scores.mean_mask(masks)[0, 0].numpy(), len(stems)


# --- a batch ---


@torch.inference_mode()
def run_batch(model, crops, pairs, device="cpu", fixed=None, feature_net=None, seed=0):
    """The `Record` of each of `pairs`, (stem, stem of its background); the rest as for `evaluate`."""
    stems, others = zip(*pairs, strict=True)
    x, box = (torch.stack([read(stem) for stem in stems]).to(device) for read in (crops.object, crops.box))
    y = torch.stack([crops.background(other) for other in others]).to(device) if all(others) else None
    true = [crops.mask(stem) for stem in stems]
    hole = torch.stack([hole_in(crops, stem, mask) for stem, mask in zip(stems, true, strict=True)]).to(x)
    truths = [read_truth(crops, stem) for stem in stems]
    files = None  # masks as they were written, of any size
    if isinstance(model, MaskFiles):
        files = [model.read(stem, truth) for stem, truth in zip(stems, truths, strict=True)]
        made = model.pictures(files, truths, x, y)
    else:
        made = model.pictures(x, y, box, seed)
    fills = refill(model, y, hole, seed)
    columns = model.scores(made) if getattr(model, "scores", None) else {}
    columns |= enhancement(model, x, made, seed) | {
        f"{fill}_{name}": score(image, y, hole) for fill, image in fills.items() for name, score in MEASURES.items()}
    columns = {name: values.tolist() for name, values in columns.items()}
    finer = torch.stack([crops.object(stem, scale=2) for stem in stems]).to(device)
    masks = {"mask": made["mask"]} | from_colours(model, x, finer, made["mask"], box)
    images = {"x": x} | ({} if y is None else {"y": y}) | {"mask": made["mask"],
              "refined": F.avg_pool2d(masks["refined"], 2)} | made
    features = {}
    if feature_net:
        features = {k: feature_net(v).cpu().numpy() for k, v in (images | fills).items() if k in {"x", "y", *FRECHET}}
    pixels = {kind: to_pixels(batch) for kind, batch in images.items()}
    masks = {name: batch[:, 0].float().cpu().numpy() for name, batch in masks.items()}
    records = []
    for i, (stem, other) in enumerate(pairs):
        own = {name: batch[i] for name, batch in masks.items()}
        row = dict(zip(NAMES, (stem, other, photograph(crops, stem)), strict=True))
        if files:
            own["mask"] = files[i]
        placed = files is not None and model.on_source(files[i], truths[i])
        row |= score_mask(crops, stem, truths[i], own, fixed, placed)
        if hasattr(model, "polarity"):
            row |= inverse(row)
        pictures = {kind: batch[i] for kind, batch in pixels.items()}
        if true[i] is not None:
            pictures["truth"] = to_pixels(true[i][None])[0]
        records.append(Record(stem, row | {name: values[i] for name, values in columns.items()}, pictures,
                              {kind: batch[i] for kind, batch in features.items()}))
    return records


def from_colours(model, x, finer, m, box):
    """Masks that a colour CRF draws: "refined" (N, 1, 2S, 2S), of the model's masks m and x twice as fine, and "crf"
    (N, 1, S, S), of the boxes alone."""
    bias = getattr(model, "crf_bias", 0.0)
    return {"refined": crf.refine_box(finer, m, box, bias), "crf": crf.teach(x, box, bias=bias)}


def inverse(row):
    """{"iou_inverse": the IoU of the inverted mask, "iou_either": the better one for this image, the rule by which ReDO
    and ComGAN were published}, from the counts of a row; {} without."""
    if "tp" not in row:
        return {}
    kept = row["fn"] + row["tn"] + row["tp"]  # hits, false alarms, misses of the inverted mask
    iou = row["fn"] / kept if kept else 0.0
    return {"iou_inverse": iou, "iou_either": max(row["iou"], iou)}


def enhancement(model, x, made, seed=0):
    """{column: (N,)}: what G_enh changes, as far as the model has one and `made` the images."""
    columns = {}
    if getattr(model, "enhance", None):
        columns["id_obj"] = (model.enhance(x, seed) - x).abs().mean((1, 2, 3))  # |G_enh(x) - x|
        if made.keys() >= {"z", "y_hat"}:
            columns["enh_change"] = (made["y_hat"] - made["z"]).abs().mean((1, 2, 3))  # |y_hat - z|
    return columns


def refill(model, y, hole, seed=0):
    """{fill of FILLS: y (N, 3, S, S) with the holes (N, 1, S, S) refilled}; {} without y or G_inp."""
    if y is None or not hasattr(model, "G_inp"):
        return {}
    x_hat, first = model.G_inp((1 - hole) * y, hole, fixed_noise(y, seed))
    return {"G_inp": x_hat * hole + y * (1 - hole), "G_inp_first": first * hole + y * (1 - hole),
            "diffusion": image_scores.fill_diffusion(y, hole), "mean_colour": image_scores.fill_mean(y, hole)}


def hole_in(crops, stem, mask):
    """What is cut out of the background of `stem`, (1, S, S) of 0 and 1: its true mask, else its box, else nothing."""
    if mask is not None:
        return (mask == 1).float()
    return box_mask(crops.box(stem)[None], crops.size, crops.size)[0].round() * (stem in crops.records)


def score_mask(crops, stem, truth, masks, fixed, placed=False):
    """The figures of `stem`'s masks {"mask", "refined", "crf": (H, W) in [0, 1]}, as far as the `truth` is known.

    placed: whether "mask" lies on the pixels of the true mask, not over the crop.
    """
    if truth is None:
        return {"mask_area": float((masks["mask"] >= 0.5).mean()),
                "mask_area_refined": float((masks["refined"] >= 0.5).mean())}
    box, others = None, {"refined": masks["refined"]} | ({} if fixed is None else {"mean_mask": fixed})
    if stem in crops.records:
        box, others["crf"] = crops.box(stem).tolist(), masks["crf"]
    figures = mask_scores.score(masks["mask"], truth, box, placed, **others)
    tp, _, fn, _ = counts = figures.pop("counts").tolist()
    return figures | dict(zip(COUNTS, counts, strict=True)) | {"true_area": (tp + fn) / max(sum(counts), 1)}


# --- the loop ---


def evaluate(model, crops, device="cpu", batch_size=32, num_threads=1, fixed=None, feature_net=None, seed=0):
    """Run `model`, or a `MaskFiles`, over all objects of `crops`: yields one `Record` each, in file order.

    Args:
        batch_size: images at a time in each thread.
        num_threads: batches in work at once, each in a thread of its own from the files to the figures: on a CPU the
            threads share torch's cores, which small networks use better so than all together on one batch.
        fixed: the mean mask (S, S), or None.
        feature_net: an `image_scores.FeatureNet`, or None.
        seed: of the noise and the pairs.
    """
    pairs = list(pair_up(crops, seed).items())
    batch_size = min(batch_size, math.ceil(len(pairs) / num_threads))  # few images are shared out too

    def work(start):
        return run_batch(model, crops, pairs[start : start + batch_size], device, fixed, feature_net, seed)

    for records in in_threads(work, range(0, len(pairs), batch_size), num_threads):
        yield from records


def in_threads(work, items, num_threads):
    """work(item) of each of `items`, in their order, by threads that share torch's cores; few wait in memory."""
    cores, waiting = torch.get_num_threads(), deque()
    pool = ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(max(1, cores // num_threads),))
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == 2 * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)  # what threads of later go by


def validate(model, crops, device="cpu", batch_size=32, part=slice(None), stopped=lambda: False):
    """The masks alone, scored as `evaluate` scores them, of a `part` of the objects with a true mask.

    stopped: asked before each batch; where it says so, None is returned at once.

    Returns:
        Sums of IoU and of mask area, and the number of objects.
    """
    stems = [s for s in crops.stems if s in crops.masks][part]
    sums = np.zeros(3)
    for i in range(0, len(stems), batch_size):
        if stopped():
            return None
        batch = stems[i : i + batch_size]
        x, box = (torch.stack([read(stem) for stem in batch]).to(device) for read in (crops.object, crops.box))
        m = model.segment(x, box)[:, 0].float().cpu().numpy()
        for mask, stem in zip(m, batch, strict=True):
            truth = read_truth(crops, stem)
            soft = mask_scores.resample(mask, truth)
            counts = mask_scores.count(soft >= 0.5, truth.mask == OBJECT, truth.scored)
            sums += mask_scores.ratios(counts)["iou"], (counts[0] + counts[1]) / max(counts.sum(), 1), 1
    return sums.tolist()


# --- the summary ---


def summarise(rows, classes=None):
    """Rows of `evaluate` -> the figures of metrics.json: means, pooled, baselines, per class, 95 % intervals.

    classes: {stem: class}, or None. Images without a true mask count in n_images only. None stands for "no value".
    """
    scored = [row for row in rows if "iou" in row]
    scores = [name for name in dict.fromkeys(name for row in rows for name in row)
              if name not in (*FIGURES, *COUNTS, *NAMES)]
    columns = {name: [row.get(name, math.nan) for row in rows] for name in (*FIGURES, *scores)}
    if scored:  # the area where there is no truth to compare it with would not belong beside true_area
        for name in ("mask_area", "mask_area_refined"):
            columns[name] = [row[name] if "iou" in row else math.nan for row in rows]
    columns["iou_minus_mean_mask"] = [row.get("iou", math.nan) - row.get("mean_mask", math.nan) for row in rows]
    values, intervals = means(columns, rows)
    return {
        **{name: values[name] for name in (*MASKS, "true_area", "iou_pooled", "iou_minus_mean_mask")},
        "refined": {name: values[refined] for name, refined in REFINED.items()},
        "baselines": {name: values[name] for name in mask_scores.BASELINES},
        "n_images": len(rows), "n_masks": len(scored),
        "per_class": _per_class(scored, classes or {}),
        "scores": {name: values[name] for name in scores},
        "enhancement": {"id_obj": values["id_obj"], "change": values["enh_change"]},
        "inpainting": {fill: {m: values[f"{fill}_{m}"] for m in MEASURES} for fill in FILLS},
        "intervals": {name: interval for name, interval in intervals.items() if interval},
    }


def means(columns, rows):
    """Means of columns {name: list of N, NaN = no value} over `rows` and their 95 % intervals over photographs: {name:
    mean}, {name: [low, high]}; None without a value, and for an interval with fewer than two photographs.

    rows: N, with "photograph", whose crops are drawn together ("stem" where it is not known), and where there is a true
    mask with counts, for one more column, "iou_pooled": all their pixels together.
    """
    values = np.array([*columns.values()], np.float64).T  # (N, K)
    there = ~np.isnan(values)
    counts = np.array([[row.get(name, 0) for name in COUNTS[:3]] for row in rows], np.float64).reshape(-1, 3)
    table = np.hstack([np.where(there, values, 0), counts[:, :1], there, counts.sum(1, keepdims=True)])
    table = mask_scores.by_photograph(table, rows)
    k = values.shape[1] + 1

    def statistic(sums):
        with np.errstate(invalid="ignore"):
            return sums[:, :k] / sums[:, k:]

    found = statistic(table.sum(0, keepdims=True))[0]
    ends = mask_scores.bootstrap(table, statistic)
    ends[(table[:, k:] > 0).sum(0) < 2] = np.nan
    names = [*columns, "iou_pooled"]
    return ({name: None if np.isnan(v) else float(v) for name, v in zip(names, found, strict=True)},
            {name: None if np.isnan(e).any() else e.tolist() for name, e in zip(names, ends, strict=True)})


def _per_class(scored, classes):
    groups, result = {}, {}
    for row in scored:
        groups.setdefault(classes.get(row["stem"]), []).append(row)
    groups.pop(None, None)
    for name, group in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        values, intervals = means({k: [row[k] for row in group] for k in ("iou", "dice", "mean_mask")}, group)
        result[name] = {"n": len(group), **values, "interval": intervals["iou"]}
    return result


def frechet(features, rows, feature_net):
    """Fréchet and kernel distances of generated to real crops, of the features and rows of all records.

    A background that several objects were pasted on counts once. None where fewer than 2 images, or 3 for the kernel's
    interval, are left.
    """
    table = {kind: np.stack([one[kind] for one in features]) for kind in features[0]}
    backgrounds = {row["background"]: i for i, row in reversed([*enumerate(rows)])}
    once = {"x": np.arange(len(rows)), "y": np.array(sorted(backgrounds.values()))}
    pairs = {f"{fake} to {real}": (table[fake][once[real]], table[real][once[real]])
             for fake, real in FRECHET.items() if fake in table and real in table}
    kernel = {pair: image_scores.paired_kernel_distance(*both) for pair, both in pairs.items() if len(both[0]) > 2}
    n, dimensions = table["x"].shape
    warning = None if n >= image_scores.ENOUGH else (
        f"N = {n} is below {image_scores.ENOUGH:,}: the Fréchet distance is biased upwards, compare it only between "
        "tests of the same N; the kernel distance is not, its interval says what N allows")
    return feature_net.describe() | {
        "n": n, "dimensions": dimensions, "warning": warning,
        "values": {pair: image_scores.frechet_distance(*both) for pair, both in pairs.items() if len(both[0]) > 1},
        "kernel": {pair: found[0] for pair, found in kernel.items()},
        "kernel_intervals": {pair: list(found[1:]) for pair, found in kernel.items()}}
