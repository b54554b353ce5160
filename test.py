"""Evaluate a trained model as in the paper (§4.2, Table 1), and show what it makes.

    python test.py --name demo                                    # data, size and method come from the checkpoint
    python test.py --name dogs --checkpoint best --dataroot datasets/dogs2
    python test.py --name dogs --frechet_weights inception_v3     # downloads torchvision's weights
    python test.py --masks sam --dataroot datasets/dogs           # any method's masks, sam/STEM.png

Writes results/NAME/: index.html, metrics.json, per_image.csv, contact_sheet.png, best_median_worst.png (four each, by
IoU), and a folder of PNGs each for x, y, what the method makes of them, such as mask, z, y_hat, x_hat, and truth. Masks
are compared at the crops' source resolution, as they are and refined by a colour CRF inside the box (crf.py), beside
the full mask, the box, the best fixed mask and the CRF from the box alone.
"""
import math
import os
import sys
import time

from running import options


def get_args_parser():
    parser = options.make_parser("test.py", __doc__.splitlines()[0])
    add = parser.add_argument
    options.add_trained(add)
    add("--results_dir", default="results", help="folder for the results")
    add("--dataroot", help="folder of crops [the one trained on]")
    add("--split", default="test", help="part of it to evaluate")
    add("--masks", metavar="DIR",
        help="score this folder's masks in place of a model's: STEM.png of each object, 255 object, 0 background, "
             "square or as large as in masks_source; results go by --name [the folder's]")
    options.add_device(add)
    add("--batch_size", type=options.whole(1), default=16, help="images at a time in each thread")
    add("--threads", type=options.whole(1),
        help="batches in work at once, each in a thread of its own [as many as cores, up to 4]")
    add("--seed", type=options.whole(), default=0, help="of the noise and of which background goes with which object")
    add("--sheet_rows", type=options.whole(1), default=12, help="images on the contact sheet, by name")
    add("--no_images", action="store_true", help="write figures and sheets only, no folders of PNGs")
    add("--frechet_weights", metavar="NAME[:FILE]",
        help="also measure Fréchet and kernel distances on this torchvision network, with its default weights or those "
             "of FILE")
    return parser


if __name__ == "__main__":
    options.answer_help("test.py", get_args_parser().parse_args)  # here, as torch takes seconds to import

import torch
from tqdm import tqdm

from data import Crops
from evaluation import charts, page
from evaluation.evaluate import evaluate, fit_mean_mask, frechet, in_threads, resolution, summarise
from evaluation.image_scores import FeatureNet
from evaluation.mask_files import MaskFiles
from evaluation.mask_scores import BASELINES
from images import UserError, open_image, save_png
from running import methods
from running.checkpoint import build_model, load_checkpoint
from running.folder import Lock, Made
from running.origin import origin

MADE = ".made"  # lists the files of an evaluation, finished or not


def run(argv):
    """`python test.py ...`"""
    args, started = get_args_parser().parse_args(argv), time.perf_counter()
    device = options.pick_device(args.device)
    args.threads = args.threads or min(torch.get_num_threads(), 4)
    model, crops, about = (from_files if args.masks else from_checkpoint)(args, device)
    check_names(crops)
    feature_net = FeatureNet(args.frechet_weights).to(device) if args.frechet_weights else None
    folder = os.path.join(args.results_dir, args.name)
    os.makedirs(folder, exist_ok=True)
    with Lock(folder, "give another --results_dir"):
        made = Made(folder, MADE)
        made.clear()  # so that nothing of other data stays beside the new figures
        figures = write_results(args, about, model, crops, device, feature_net, made)
    print(table(figures))
    if figures["frechet"] and figures["frechet"]["warning"]:
        print(f"  {figures['frechet']['warning']}")
    print(f"{figures['n_images']} images in {time.perf_counter() - started:.1f} s; see "
          f"{os.path.join(folder, 'index.html')}")


def from_checkpoint(args, device):
    """The model, the `Crops` and what metrics.json says of the model; sets args.name and args.dataroot."""
    path = options.checkpoint_path(args)
    state = load_checkpoint(path)
    model = build_model(state, path, device)
    args.name = options.results_name(args)
    args.dataroot = args.dataroot or state.get("options", {}).get("dataroot")
    if not isinstance(args.dataroot, str) or not args.dataroot:
        raise UserError(f"{path} does not name its data: give --dataroot")
    crops = Crops(args.dataroot, args.split, model.size, "backgrounds" in methods.load(state["method"]).NEEDS)
    return model, crops, {
        "method": state["method"], "supervision": methods.SUPERVISION[state["method"]],
        "trained_with_seed": state.get("options", {}).get("seed"), "step": state["step"],
        "background_region": model.polarity.background if hasattr(model, "polarity") else None,
        "checkpoint": os.path.basename(args.weights or args.checkpoint)}


def from_files(args, device):
    """The same of --masks: crops are shown at the size of their files."""
    if args.weights or args.frechet_weights:
        given = "--weights" if args.weights else "--frechet_weights"
        raise UserError(f"--masks and {given}: masks come from no model and make no images, leave out one of the two")
    if not args.dataroot:
        raise UserError(f"--masks {args.masks} needs --dataroot, the folder of the crops that the masks are of")
    args.name = args.name or os.path.basename(os.path.abspath(args.masks)) or "masks"
    crops = Crops(args.dataroot, args.split, 1, backgrounds=False)
    crops.size = open_image(crops.objects[crops.stems[0]]).width
    return MaskFiles(args.masks, crops), crops, {
        "method": "masks", "supervision": "unknown", "trained_with_seed": None, "step": None,
        "background_region": None, "checkpoint": args.masks}


def check_names(crops):
    """UserError for a file name that is no text: pages and tables could not name it."""
    for stem in crops.stems:
        if any("\ud800" <= letter <= "\udfff" for letter in stem):  # so bytes that are no UTF-8 are read
            raise UserError(f"{crops.objects[stem]!r} has a name that is not UTF-8: rename it")


def write_results(args, about, model, crops, device, feature_net, made):
    """Evaluate, and write all that is in results/NAME/. Returns the contents of metrics.json."""
    fixed, n_fitted = fit_fixed(args.dataroot, model.size, args.threads)
    records = evaluate(model, crops, device, args.batch_size, args.threads, fixed, feature_net, args.seed)
    if not args.no_images:
        records = in_threads(saver(made), records, args.threads)
    rows, kinds, features, shown = collect(
        tqdm(records, desc=args.name, unit="image", total=len(crops.stems), disable=None))

    classes = {stem: str(record["class"]) for stem, record in crops.records.items()
               if record.get("class") not in (None, "")}  # written by hand they may be numbers, and 0 is one
    figures = {
        "name": args.name, **about, "size": model.size, "dataroot": str(args.dataroot),
        "split": args.split, "seed": args.seed,
        "kinds": [] if args.no_images else kinds, "mean_mask_fitted_on": n_fitted, "resolution": resolution(crops),
        **summarise(rows, classes), "frechet": frechet(features, rows, feature_net) if feature_net else None,
        "origin": origin(device, crops)}
    write_sheets(made, rows, shown, args.sheet_rows)
    rows = [{"stem": row["stem"], "class": classes.get(row["stem"], ""), **row} for row in rows]
    page.write_csv(made.path("per_image.csv"), [{key: cell(value) for key, value in row.items()} for row in rows])
    page.write_json(made.path("metrics.json"), figures)  # only beside all of its images and rows
    of_run = not args.weights and not args.masks
    log = charts.read_log(os.path.join(args.checkpoints_dir, args.name, "log.jsonl")) if of_run else {}
    page.write_index(os.path.dirname(made.path("index.html")), figures, rows, log)
    return figures


def fit_fixed(dataroot, size, threads):
    """The mean training mask and the number of masks it comes from; None, 0 where the data have none."""
    known = os.path.isdir(os.path.join(dataroot, "train", "masks"))
    return fit_mean_mask(Crops(dataroot, "train", size, backgrounds=False), threads) if known else (None, 0)


def collect(records):
    """Rows, kinds of images, features, and the images for the sheets (.3 MB a row at 128 px) of `evaluate`'s yield."""
    rows, kinds, features, shown = [], [], [], {}
    for record in records:
        kinds = page.in_order([*kinds, *record.pictures])
        rows.append(record.row)
        features.append(record.features)
        shown[record.stem] = {kind: image for kind, image in record.pictures.items() if kind not in page.CYCLE}
    return rows, kinds, features, shown


def saver(made):
    """A function that writes the images of a record as KIND/STEM.png and returns it; for several threads."""
    def save(record):
        for kind, image in record.pictures.items():
            save_png(made.path(f"{kind}/{record.stem}.png"), image)
        return record
    return save


def write_sheets(made, rows, shown, n_first):
    """contact_sheet.png and, where masks have an IoU, best_median_worst.png. shown: {stem: images by kind}."""
    page.contact_sheet(made.path("contact_sheet.png"), list(shown.values())[:n_first])
    ious, groups = {row["stem"]: row.get("iou") for row in rows}, page.ranked(rows)
    if groups:
        page.contact_sheet(made.path("best_median_worst.png"), [shown[stem] for stem in groups],
                           [f"{group}\nIoU {ious[stem]:.3f}" for stem, group in groups.items()])


def cell(value):
    """Of per_image.csv: numbers to 6 digits."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return page.quoted(value) if isinstance(value, str) else value


def table(figures):
    """The lines to read first: IoU with its interval, the baselines beside it."""
    head = f"{figures['name']}: {figures['method']}, {page.made_by(figures)}, {figures['n_masks']} of " \
           f"{figures['n_images']} images have a true mask"
    if figures["iou"] is None:
        return f"{head}; no IoU without one"
    lines = [f"{head}; IoU at {figures['resolution']} resolution, 95 % intervals"]
    refined = figures["refined"]
    for name, value, key in [(figures["method"], figures["iou"], "iou"), ("refined", refined["iou"], "iou_refined"),
                             *((words, figures["baselines"][name], name) for name, words in BASELINES.items())]:
        ends = figures["intervals"].get(key)
        lines.append(f"  {name:<18}" + ("    -" if value is None else f"{value:.3f}")
                     + (f"  [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""))
    lines.append(f"  mask area {figures['mask_area']:.3f}, true area {figures['true_area']:.3f}; "
                 f"boundary F {figures['boundary_f']:.3f}, pooled IoU {figures['iou_pooled']:.3f}; "
                 f"refined: mask area {refined['mask_area']:.3f}, boundary F {refined['boundary_f']:.3f}")
    if figures["background_region"] is not None:
        inverse, either = (figures["scores"][name] for name in ("iou_inverse", "iou_either"))
        lines.append(f"  nothing said what the object is: region {figures['background_region']}, which covers the "
                     f"frame of training images, is the background; inverted {inverse:.3f}; the better of both for "
                     f"each image, as others publish it, {either:.3f}")
    return "\n".join([*lines, "  " + page.verdict(figures)])


def main(argv=None):
    return options.command("test.py", run, argv, "stopped; no figures were written")


if __name__ == "__main__":
    sys.exit(main())
