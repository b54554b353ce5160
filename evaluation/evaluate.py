"""From a model and test crops to figures and pictures: what test.py runs.

Object i is paired with background i mod n, both in file order, and the noise depends on a seed alone: the
figures do not depend on batch size or threads.
"""
import math
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from data import by_stem, open_mask
from evaluation import image_scores as quality
from evaluation import mask_scores as metrics
from images import save_png
from losses import paste as paste_coarse
from networks import box_mask

KINDS = ("x", "y", "mask", "z", "y_hat", "x_hat", "x_hat2", "y_hat2", "truth")  # pictures, in the page's order
SCORES = ("d_obj_z", "d_obj_y_hat", "d_bg_x_hat", "d_bg_y_hat2")
FILLS = ("G_inp", "diffusion", "mean_colour")
MEASURES = ("psnr", "ssim", "mae")
MEAN_MASK_SAMPLE = 2000  # training masks, evenly spaced, from which the mean mask is fitted


class Example(NamedTuple):
    """One test pair, as read."""

    stem: str
    background: str  # its stem
    x: torch.Tensor  # (3, S, S) in [-1, 1]
    y: torch.Tensor  # (3, S, S) in [-1, 1]
    box: torch.Tensor  # (4,) fractions of the crop; NaN where unknown
    truth: metrics.Truth | None  # at source resolution where the data have it
    mask: torch.Tensor | None  # (1, S, S) of 0 and 1: the same at the model's size


def read_example(crops, i):
    """Object i of `crops` with background i mod n."""
    stem = crops.stems[i]
    background = crops.background_stems[i % len(crops.background_stems)]
    return Example(stem, background, crops.object(stem), crops.background(background), read_box(crops, stem),
                   read_truth(crops, stem), crops.mask(stem))


def read_box(crops, stem):
    """The object's box (4,) in fractions of its crop, float64; NaN where unknown."""
    known = crops.records.get(stem, {}).get("box") is not None
    return crops.box(stem).double() if known else torch.full((4,), math.nan, dtype=torch.float64)


def read_truth(crops, stem):
    """The true mask of `stem` as a `metrics.Truth`: from masks_source/ (as annotated), else from masks/; None
    if it has none. ValueError where the file's size contradicts crops.json."""
    path = os.path.join(crops.root, "masks_source", f"{stem}.png")
    window = crops.records.get(stem, {}).get("source_window")
    if window is None or not os.path.isfile(path):
        if stem not in crops.masks:
            return None
        mask = _read_mask(crops.masks[stem])
        return metrics.Truth(mask, (0.0, 0.0, float(mask.shape[1]), float(mask.shape[0])))
    mask, (x0, y0, w, h) = _read_mask(path), window
    origin = math.floor(max(x0, 0)), math.floor(max(y0, 0))  # rounding errors may lie beyond the image's edge
    expected = math.ceil(x0 + w) - origin[0], math.ceil(y0 + h) - origin[1]
    if max(abs(expected[0] - mask.shape[1]), abs(expected[1] - mask.shape[0])) > 1:
        raise ValueError(f"{path} has {mask.shape[1]} x {mask.shape[0]} pixels, its source_window in crops.json says "
                         f"{expected[0]} x {expected[1]}: make the set anew")
    return metrics.Truth(mask, tuple(window), origin)


def _read_mask(path):
    return np.asarray(open_mask(path))


def resolution(crops):
    """What the true masks are compared at: "source", or "crop" where no annotated mask is at hand, or "mixed"."""
    with_source = set(by_stem(os.path.join(crops.root, "masks_source"))) & set(crops.records)
    known = {stem in with_source for stem in crops.stems if stem in with_source or stem in crops.masks}
    return {frozenset([True]): "source", frozenset([True, False]): "mixed"}.get(frozenset(known), "crop")


def fit_mean_mask(crops, pool):
    """The best fixed mask (1, 1, S, S) of `crops`' masks and how many it comes from, at most MEAN_MASK_SAMPLE; or
    None, 0."""
    stems = [s for s in crops.stems if s in crops.masks]
    stems = stems[:: math.ceil(len(stems) / MEAN_MASK_SAMPLE)] if stems else []
    if not stems:
        return None, 0
    return metrics.mean_mask(torch.stack(list(pool.map(lambda stem: crops.mask(stem) == 1, stems)))), len(stems)


# --- the networks ---


@torch.inference_mode()
def run_networks(model, x, y, box, hole, seed=0):
    """Everything that the model makes of a batch.

    Args:
        x, y: (N, 3, H, W) in [-1, 1]; box: (N, 4) fractions; hole: (N, 1, H, W) of 0 and 1, cut out of y.

    Returns:
        images {symbol: (N, C, H, W)} and scores {name of SCORES: (N,)}, each with what the mode trains.
        y_hat equals `model.paste(x, y, box, seed)` and x_hat `model.remove(x, box, seed)`: one noise for all.
    """
    noise = model.fixed_noise(x, seed)

    def score(discriminator, image):
        return discriminator(image).mean((1, 2, 3))

    m = model.segment(x, box)
    z = paste_coarse(x, y, m)  # m*x + (1-m)*y
    if model.mode == "supervised":
        return {"m": m, "z": z}, {}
    y_hat = model.G_enh(z, noise)  # G_enh(z)
    images = {"m": m, "z": z, "y_hat": y_hat, "x_id": model.G_enh(x, noise)}
    scores = {"d_obj_z": score(model.D_obj, z), "d_obj_y_hat": score(model.D_obj, y_hat)}
    if model.mode == "nocycle":
        return images, scores
    x_hat = model.G_inp((1 - m) * x, noise)  # G_inp((1-m)*x)
    m_hat = model.segment(y_hat, box)  # G_seg(y_hat)
    y_hat2 = model.G_inp((1 - m_hat) * y_hat, noise)  # G_inp((1-m_hat)*y_hat)
    images |= {"x_hat": x_hat, "y_hat2": y_hat2,
               "x_hat2": model.G_enh(paste_coarse(y_hat, x_hat, m_hat), noise),  # G_enh(m_hat*y_hat + (1-m_hat)*x_hat)
               "filled": model.G_inp((1 - hole) * y, noise)}  # y with the hole refilled
    return images, scores | {"d_bg_x_hat": score(model.D_bg, x_hat), "d_bg_y_hat2": score(model.D_bg, y_hat2)}


@torch.inference_mode()
def measure_images(x, y, hole, images):
    """{column: (N,)}: what G_enh changes, and how well G_inp and two simple fills refill the holes of y."""
    columns = {}
    if "x_id" in images:
        columns["id_obj"] = (images["x_id"] - x).abs().mean((1, 2, 3))  # |G_enh(x) - x|
        columns["enh_change"] = (images["y_hat"] - images["z"]).abs().mean((1, 2, 3))  # |y_hat - z|
    if "filled" not in images:
        return columns
    fills = {"G_inp": images["filled"] * hole + y * (1 - hole), "diffusion": quality.fill_diffusion(y, hole),
             "mean_colour": quality.fill_mean(y, hole)}
    for fill, image in fills.items():
        for measure in MEASURES:
            columns[f"{fill}_{measure}"] = getattr(quality, measure)(image, y, hole)
    return columns


# --- the loop ---


def validate(model, crops, device="cpu", batch_size=32, num_threads=1, part=slice(None), stopped=lambda: False):
    """The masks alone, scored as `evaluate` scores them, of a `part` of the objects with a true mask.

    stopped: asked before each batch; where it says so, None is returned at once.

    Returns:
        Sums of IoU and of mask area, and the number of objects.
    """
    stems = [s for s in crops.stems if s in crops.masks][part]
    sums = np.zeros(3)
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        for i in range(0, len(stems), batch_size):
            if stopped():
                return None
            batch = stems[i : i + batch_size]
            truths = pool.map(lambda stem: read_truth(crops, stem), batch)
            x = torch.stack(list(pool.map(crops.object, batch))).to(device)
            box = torch.stack([read_box(crops, stem) for stem in batch])
            m = model.segment(x, torch.where(box.isnan(), model.box.cpu(), box).to(device))[:, 0].float().cpu().numpy()
            for mask, truth in zip(m, truths, strict=True):
                sums += *_mask_score(mask, truth), 1
    return sums.tolist()


def _mask_score(mask, truth):
    """IoU and area of a soft mask (S, S), cut at ½ at source resolution."""
    scored = truth.scored
    counts = metrics.count(metrics.resample(mask, truth) >= 0.5, truth.mask == metrics.OBJECT, scored)
    return float(metrics.ratios(counts)["iou"]), (counts[0] + counts[1]) / max(counts.sum(), 1)


def evaluate(model, crops, device="cpu", batch_size=32, num_threads=1, fixed=None, folder=None,
             feature_net=None, seed=0, n_first=0, progress=lambda results, total: results):
    """Run `model` over all objects of `crops`.

    Args:
        batch_size: images at a time in each thread.
        num_threads: batches in work at once, each in a thread of its own from the files to the figures: on a CPU the
            threads share torch's cores, which small networks use better so than all together on one batch.
        fixed: the mean mask (1, 1, S, S), or None.
        folder: where pictures go, folder/KIND/STEM.png for each of KINDS that there is; None = nowhere.
        feature_net: a `quality.FeatureNet`, or None.
        n_first: images whose pictures are returned.
        progress: wraps the results of the batches as they come; is told how many there will be.

    Returns:
        rows, one dict an image in file order (NaN where there is no value); features {symbol: (N, D)}; and
        the first images' pictures, dicts {kind: uint8 (S, S) or (S, S, 3)}.
    """
    fixed = None if fixed is None else fixed[0, 0].numpy()
    num_threads = max(1, num_threads)
    batch_size = min(batch_size, math.ceil(len(crops.stems) / num_threads))  # few images are shared out too
    starts = range(0, len(crops.stems), batch_size)

    def work(start):
        examples = [read_example(crops, i) for i in range(start, min(start + batch_size, len(crops.stems)))]
        pictures, columns, features = run_batch(model, examples, device, seed, feature_net)
        rows = [_row(e, mask, fixed) for e, mask in zip(examples, pictures["mask"][:, 0].numpy(), strict=True)]
        rows = [row | {name: values[i] for name, values in columns.items()} for i, row in enumerate(rows)]
        pictures = unstack(pictures, examples) if folder or start < n_first else []
        if folder:
            _write_pictures(folder, [e.stem for e in examples], pictures)
        return rows, features, pictures[: max(0, n_first - start)]

    rows, features, first = [], {}, []
    with _sharing_cores(num_threads) as pool:
        for some, parts, pictures in progress(pool.map(work, starts), len(starts)):
            rows += some
            first += pictures
            for symbol, part in parts.items():
                features.setdefault(symbol, []).append(part)
    return rows, {symbol: torch.cat(parts).numpy() for symbol, parts in features.items()}, first


@contextmanager
def _sharing_cores(num_threads):
    """A pool of threads, each with its share of torch's cores."""
    cores = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads,
                                initargs=(max(1, cores // num_threads),)) as pool:
            yield pool
    finally:
        torch.set_num_threads(cores)  # what threads of later go by


def run_batch(model, examples, device, seed=0, feature_net=None):
    """What the model makes of `examples`: pictures {kind: (N, C, S, S) on the CPU}, figures {column: list of N} and
    features {symbol: (N, D) on the CPU}."""
    x, y = (torch.stack([getattr(e, name) for e in examples]).to(device) for name in ("x", "y"))
    box = torch.stack([e.box for e in examples])
    box = torch.where(box.isnan(), model.box.cpu(), box)
    hole = box_mask(box, *x.shape[-2:]).round()
    for i, e in enumerate(examples):
        if e.mask is not None:
            hole[i] = e.mask == 1
    hole = hole.to(device)
    images, scores = run_networks(model, x, y, box.to(device), hole, seed)
    figures = scores | measure_images(x, y, hole, images)
    symbols = {"x": x, "y": y, **{k: v for k, v in images.items() if k in ("z", "y_hat", "x_hat")}}
    features = {k: feature_net(image).cpu() for k, image in symbols.items()} if feature_net else {}
    pictures = {"x": x, "y": y, "mask": images["m"], **images}
    return ({kind: pictures[kind].float().cpu() for kind in KINDS if kind in pictures},
            {name: values.double().tolist() for name, values in figures.items()}, features)


def unstack(pictures, examples):
    """{kind: (N, C, S, S)} of a batch -> one dict {kind: uint8 array} an image, with the true mask where known."""
    pixels = {kind: to_bytes(batch) for kind, batch in pictures.items()}
    parts = [{kind: batch[i] for kind, batch in pixels.items()} for i in range(len(examples))]
    return [part if e.mask is None else {**part, "truth": to_bytes(e.mask[None])[0]}
            for part, e in zip(parts, examples, strict=True)]


def pictures_of(model, crops, stems, device="cpu", seed=0):
    """The pictures of the objects `stems`, as `evaluate` makes them: a list of dicts {kind: uint8 array}."""
    examples = [read_example(crops, crops.stems.index(stem)) for stem in stems]
    return unstack(run_batch(model, examples, device, seed)[0], examples)


def to_bytes(images):
    """Images (N, 3, H, W) in [-1, 1] or masks (N, 1, H, W) in [0, 1] -> uint8 (N, H, W, 3) or (N, H, W)."""
    unit = images if images.shape[1] == 1 else (images + 1) / 2
    pixels = (unit.clamp(0, 1) * 255 + 0.5).byte()
    return pixels[:, 0].numpy() if pixels.shape[1] == 1 else pixels.permute(0, 2, 3, 1).contiguous().numpy()


def _row(example, mask, fixed):
    """The figures of a mask (S, S) in [0, 1] of `example`, as far as its truth is known."""
    row = {"stem": example.stem, "background": example.background, "mask_area": float((mask >= 0.5).mean())}
    if example.truth is None:
        return row
    box = None if example.box.isnan().any() else example.box.tolist()
    row |= metrics.score(mask, example.truth, box, fixed)
    tp, fp, fn, tn = row.pop("counts").tolist()
    scored = max(tp + fp + fn + tn, 1)
    return row | {"tp": tp, "fp": fp, "fn": fn, "tn": tn,
                  "mask_area": (tp + fp) / scored, "true_area": (tp + fn) / scored}


def _write_pictures(folder, stems, pictures):
    for kind in {kind for part in pictures for kind in part}:
        os.makedirs(os.path.join(folder, kind), exist_ok=True)
    for stem, part in zip(stems, pictures, strict=True):
        for kind, pixels in part.items():
            save_png(os.path.join(folder, kind, f"{stem}.png"), pixels)


# --- the summary ---


def summarise(rows, classes=None):
    """Rows of `evaluate` -> the figures of metrics.json: means, pooled, baselines, per class, 95 % intervals.

    classes: {stem: class}, or None. Images without a true mask count in n_images only. None stands for "no value".
    """
    masks = (*metrics.RATIOS, "boundary_f", "mask_area", "true_area")
    scored = [row for row in rows if "iou" in row]
    names = (*masks, *metrics.BASELINES, *SCORES, "id_obj", "enh_change",
             *(f"{fill}_{measure}" for fill in FILLS for measure in MEASURES))
    columns = {name: [row.get(name, math.nan) for row in rows] for name in names}
    if scored:  # the area where there is no truth to compare it with would not belong beside true_area
        columns["mask_area"] = [row["mask_area"] if "iou" in row else math.nan for row in rows]
    columns["iou_minus_mean_mask"] = [row.get("iou", math.nan) - row.get("mean_mask", math.nan) for row in rows]
    values, intervals = means(columns, scored)
    return {
        **{name: values[name] for name in (*masks, "iou_pooled", "iou_minus_mean_mask")},
        "baselines": {name: values[name] for name in metrics.BASELINES},
        "n_images": len(rows), "n_masks": len(scored),
        "per_class": _per_class(scored, classes or {}),
        "scores": {name: values[name] for name in SCORES},
        "enhancement": {"id_obj": values["id_obj"], "change": values["enh_change"]},
        "inpainting": {fill: {m: values[f"{fill}_{m}"] for m in MEASURES} for fill in FILLS},
        "intervals": {name: interval for name, interval in intervals.items() if interval},
    }


def means(columns, scored=()):
    """Means of columns {name: list of N, NaN = no value} and their 95 % intervals over images.

    scored: rows with counts, for one more column, "iou_pooled": all their pixels together.

    Returns:
        {name: mean}, {name: [low, high]}; None without a value, and for an interval with fewer than two.
    """
    values = np.array([*columns.values()], np.float64).T  # (N, K)
    there = ~np.isnan(values)
    n, k = values.shape
    overlap = np.zeros((n, 2))  # intersection and union
    overlap[: len(scored)] = np.array([[r["tp"], r["tp"] + r["fp"] + r["fn"]] for r in scored]).reshape(-1, 2)
    parts = np.hstack([np.where(there, values, 0), overlap[:, :1]])
    wholes = np.hstack([there, overlap[:, 1:]])

    def statistic(sums):
        with np.errstate(invalid="ignore"):
            return sums[:, : k + 1] / sums[:, k + 1 :]

    table = np.hstack([parts, wholes])
    found = statistic(table.sum(0, keepdims=True))[0]
    ends = metrics.bootstrap(table, statistic)
    ends[[*(there.sum(0) < 2), len(scored) < 2]] = np.nan
    names = [*columns, "iou_pooled"]
    return ({name: None if np.isnan(v) else float(v) for name, v in zip(names, found, strict=True)},
            {name: None if np.isnan(e).any() else e.tolist() for name, e in zip(names, ends, strict=True)})


def _per_class(scored, classes):
    groups = {}
    for row in scored:
        if row["stem"] in classes:
            groups.setdefault(classes[row["stem"]], []).append(row)
    result = {}
    for name in sorted(groups, key=lambda c: (-len(groups[c]), c)):
        group = groups[name]
        values, intervals = means({k: [row[k] for row in group] for k in ("iou", "dice", "mean_mask")}, group)
        result[name] = {"n": len(group), **values, "interval": intervals["iou"]}
    return result


def frechet(features, feature_net):
    """Fréchet distances of generated to real crops (see `quality.FeatureNet.describe`); None where N < 2."""
    pairs = {"z": "x", "y_hat": "x", "x_hat": "y"}
    n = len(features["x"])
    values = {f"{fake} to {real}": quality.frechet_distance(features[fake], features[real])
              for fake, real in pairs.items() if fake in features and n > 1}
    return feature_net.describe() | {"n": n, "dimensions": features["x"].shape[1], "values": values}
