"""Evaluate a trained model as in the paper (§4.2, Table 1), and show what it makes.

    python test.py --name demo                                    # data, size and mode come from the checkpoint
    python test.py --name dogs --checkpoint best --dataroot datasets/dogs2
    python test.py --name dogs --frechet_weights inception_v3     # downloads torchvision's weights

Writes results/NAME/: index.html, metrics.json, per_image.csv, contact_sheet.png, best_median_worst.png (four each, by
IoU), and a folder of PNGs each for x, y, mask, z, y_hat, x_hat, x_hat2, y_hat2, truth. Masks are compared at the crops'
source resolution, beside the full mask, the box and the best fixed mask.
"""
import argparse
import csv
import json
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

from data import Crops
from evaluation import evaluate as evaluation
from evaluation import image_scores as quality
from evaluation import page as report
from running.checkpoint import load_checkpoint
from seigan import SEIGAN, pick_device

FILES = ("metrics.json", "per_image.csv", "contact_sheet.png", "best_median_worst.png", "index.html")
UNFINISHED = ".unfinished"  # marks a folder whose evaluation was stopped


def get_args_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--name", required=True, help="the run's name: its folder under --checkpoints_dir")
    add("--checkpoint", choices=("latest", "best"), default="latest", help="which checkpoint (default: %(default)s)")
    add("--checkpoints_dir", default="checkpoints", help="folder of the runs (default: %(default)s)")
    add("--results_dir", default="results", help="folder for the results (default: %(default)s)")
    add("--dataroot", help="folder of crops (default: the one trained on)")
    add("--split", default="test", help="part of it to evaluate (default: %(default)s)")
    add("--gpu", type=int, help="number of the GPU; -1 = CPU (default: the first GPU if there is one)")
    add("--batch_size", type=int, default=16, help="images at a time in each thread (default: %(default)s)")
    add("--num_threads", type=int, default=min(torch.get_num_threads(), 4),
        help="batches in work at once, each in a thread of its own (default: %(default)s, as many as cores up to 4)")
    add("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    add("--sheet_rows", type=int, default=12, help="images on the contact sheet, by name (default: %(default)s)")
    add("--no_images", action="store_true", help="write figures and contact sheet only, no folders of PNGs")
    add("--frechet_weights", metavar="NAME[:FILE]",
        help="also measure a Fréchet distance on this torchvision network, with its default weights or those of FILE")
    return parser


def main(argv=None):
    """`python test.py ...`. Returns the exit code."""
    args = get_args_parser().parse_args(argv)
    try:
        run(args)
    except torch.cuda.OutOfMemoryError:
        print("test.py: error: the GPU's memory is full: lower --batch_size or --num_threads", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"test.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("test.py: stopped; no figures were written", file=sys.stderr)
        return 130
    return 0


def run(args):
    check(args)
    started = time.perf_counter()
    device = pick_device(args.gpu)
    path = os.path.join(args.checkpoints_dir, args.name, f"{args.checkpoint}.pt")
    state = load_checkpoint(path)
    model = SEIGAN.from_state(state, path, device)
    size, dataroot = model.config["size"], args.dataroot or state.get("options", {}).get("dataroot")
    if not dataroot:
        raise ValueError(f"{path} does not name its data: give --dataroot")
    crops = Crops(dataroot, args.split, size)
    feature_net = quality.FeatureNet(args.frechet_weights).to(device) if args.frechet_weights else None
    folder = os.path.join(args.results_dir, args.name)
    clear(folder)
    fixed, n_fitted = fit_fixed(dataroot, size, args.num_threads)

    def bar(results, total):
        return tqdm(results, desc=args.name, unit="batch", total=total, disable=None)

    rows, features, first = evaluation.evaluate(
        model, crops, device, args.batch_size, args.num_threads, fixed, None if args.no_images else folder,
        feature_net, args.seed, args.sheet_rows, bar)
    classes = {stem: str(record["class"]) for stem, record in crops.records.items()
               if record.get("class") not in (None, "")}  # written by hand they may be numbers, and 0 is one
    figures = {
        "name": args.name, "mode": model.mode, "size": size, "step": state["step"], "checkpoint": args.checkpoint,
        "dataroot": str(dataroot), "split": args.split, "seed": args.seed, "mean_mask_fitted_on": n_fitted,
        "resolution": evaluation.resolution(crops),
        **evaluation.summarise(rows, classes),
        "frechet": evaluation.frechet(features, feature_net) if feature_net else None,
    }
    shown = report.ranked(rows)
    if shown and args.no_images:
        pictures = evaluation.pictures_of(model, crops, shown, device, args.seed)
    else:
        pictures = [report.read_pictures(folder, stem) for stem in shown]
    if pictures:
        report.contact_sheet(os.path.join(folder, "best_median_worst.png"), pictures)
    log = os.path.join(args.checkpoints_dir, args.name, "log.jsonl")
    write(folder, figures, rows, classes, first, log, not args.no_images)
    os.remove(os.path.join(folder, UNFINISHED))
    print(table(figures))
    print(f"{len(rows)} images in {time.perf_counter() - started:.1f} s; see {os.path.join(folder, 'index.html')}")


def check(args):
    """One line for what argparse cannot see."""
    for name, least in (("batch_size", 1), ("num_threads", 0), ("sheet_rows", 1)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} must be at least {least}, got {getattr(args, name)}")


def clear(folder):
    """Remove an earlier evaluation, finished or not, so that nothing of other data stays beside the new one."""
    ours = any(os.path.isfile(os.path.join(folder, name)) for name in ("metrics.json", UNFINISHED))
    os.makedirs(folder, exist_ok=True)
    open(os.path.join(folder, UNFINISHED), "w").close()
    if not ours:
        return
    old = [os.path.join(folder, name) for name in FILES]
    for kind in evaluation.KINDS:
        old += [str(path) for path in Path(folder, kind).glob("*.png")]
    for path in old:
        if os.path.isfile(path):
            os.remove(path)


def fit_fixed(dataroot, size, num_threads):
    """The mean training mask and the number of masks it comes from; None, 0 where the data have none."""
    if not os.path.isdir(os.path.join(dataroot, "train", "masks")):
        return None, 0
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        return evaluation.fit_mean_mask(Crops(dataroot, "train", size), pool)


def write(folder, figures, rows, classes, first, log, with_images):
    """metrics.json, per_image.csv, contact_sheet.png, index.html."""
    with open(os.path.join(folder, "metrics.json"), "w", encoding="utf-8") as f:
        json.dump(figures, f, indent=1, ensure_ascii=False, allow_nan=False)
    rows = [{"stem": row["stem"], "class": classes.get(row["stem"], ""), **row} for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(os.path.join(folder, "per_image.csv"), "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(columns)
        writer.writerows([[_cell(row.get(c, "")) for c in columns] for row in rows])
    report.contact_sheet(os.path.join(folder, "contact_sheet.png"), first)
    report.write_index(folder, figures, rows, report.read_log(log), with_images)


def _cell(value):
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def table(figures):
    """The lines to read first: IoU with its interval, the baselines beside it."""
    head = f"{figures['name']}: {figures['mode']}, step {figures['step']}, {figures['n_masks']} of " \
           f"{figures['n_images']} images have a true mask"
    if figures["iou"] is None:
        return f"{head}; no IoU without one"
    intervals = figures["intervals"]

    def line(label, value, interval):
        ends = f"  [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        return f"  {label:<12}" + ("    -" if value is None else f"{value:.3f}{ends}")

    lines = [f"{head}; IoU at {figures['resolution']} resolution, 95 % intervals",
             line(figures["mode"], figures["iou"], intervals.get("iou"))]
    lines += [line(name.replace("_", " "), value, intervals.get(name)) for name, value in figures["baselines"].items()]
    lines.append(f"  mask area {figures['mask_area']:.3f}, true area {figures['true_area']:.3f}; "
                 f"boundary F {figures['boundary_f']:.3f}, pooled IoU {figures['iou_pooled']:.3f}")
    lines.append("  " + report.verdict(figures))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
