"""Runs beside each other: one table and one grid of masks, over methods and seeds.

    python test.py --name demo; python test.py --name demo_redo0; python test.py --name demo_redo1
    python -m evaluation.compare demo demo_redo0 demo_redo1    # results/compare/index.html, compare.csv, compare.md

Reads what test.py left in results/NAME/, of one set of test images. Runs that differ in their seed alone share a line.
Intervals are of 95 %, over photographs, and over seeds where there are several: both are drawn anew in a bootstrap. The
last column is the difference from the first run's line, image by image.
"""
import html
import os
import re
import sys
from functools import partial

import numpy as np
from PIL import Image

from evaluation import page
from evaluation.clustered import photographs
from evaluation.results import check_same_images, read_results
from images import UserError, open_image, printable, written_whole
from running.folder import Lock, Made
from running.options import command, make_parser, whole

PROG = "python -m evaluation.compare"
MADE = ".made"
COLUMNS = ("method", "learns from", "px", "seeds", "IoU", "refined in the box", "boundary F", "either", "difference")
UNTRAINED = {"full_mask": ("full mask", "nothing"), "box_mask": ("box", "boxes"),
             "mean_mask": ("best fixed mask", "masks"), "crf": ("CRF from the box", "boxes")}
EITHER = ("the better of a mask and its inverse for each image, the rule by which ReDO and ComGAN were published: "
          "no measure of use, as nothing tells a user which of the two to take")


def get_args_parser():
    parser = make_parser(PROG, __doc__.splitlines()[0])
    add = parser.add_argument
    add("name", nargs="+", help="runs that test.py has evaluated on one set")
    add("--results_dir", default="results", help="folder of the evaluations")
    add("--out", default="results/compare", help="folder to write")
    add("--rows", type=whole(1), default=12, help="images in the grid, spread evenly over the set")
    return parser


def run(argv):
    args = get_args_parser().parse_args(argv)
    runs = {name: read_results(args.results_dir, name) for name in dict.fromkeys(args.name)}
    stems = check_same_images(runs, "compare")
    if not stems:
        raise UserError(f"{args.name[0]} has no images with a true mask: nothing can be compared")
    lines = table(runs, stems)
    os.makedirs(args.out, exist_ok=True)
    with Lock(args.out, "give another --out"):
        made = Made(args.out, MADE)
        made.clear()
        page.write_csv(made.path("compare.csv"), [{key: quoted(cell) for key, cell in line.items()} for line in lines])
        with written_whole(made.path("compare.md")) as file:
            file.write(as_markdown(lines).encode())
        grid = write_grid(made, args.results_dir, runs, stems[:: -(-len(stems) // args.rows)])
        page.write_page(made.path("index.html"), "compare.html", table=as_html(lines), n=len(stems), either=EITHER,
                        grid='<img src="masks.png" alt="masks of each run on the same images">' if grid else "")
    print(as_markdown(lines), end="")
    print(f"see {os.path.join(args.out, 'index.html')}")


# --- figures ---


def table(runs, stems):
    """The lines of the comparison, [{column of COLUMNS: text}]: baselines first, then the runs, seeds together."""
    values = {name: {column: numbers(rows, column) for column in ("iou", "iou_refined", "boundary_f", "iou_either")}
              for name, (_, rows) in runs.items()}
    rows = next(iter(runs.values()))[1]
    shown = partial(interval, units=photographs([row for row in rows if row.get("iou")]))
    lines = [dict.fromkeys(COLUMNS, "") | {"method": words, "learns from": source, "IoU": iou} for iou, words, source in
             ((shown(numbers(rows, name)[None]), *told) for name, told in UNTRAINED.items()) if iou]
    reference = None
    for names in groups(runs):
        figures = runs[names[0]][0]
        columns = {column: np.stack([values[name][column] for name in names]) for column in values[names[0]]}
        seeds = [str(runs[name][0].get("trained_with_seed")) for name in names]
        difference = "" if reference is None else shown(columns["iou"], reference, signed=True)
        reference = columns["iou"] if reference is None else reference
        lines.append({
            "method": label(names, runs), "learns from": figures.get("supervision", "unknown"), "px": figures["size"],
            "seeds": ", ".join(seeds), "IoU": shown(columns["iou"]),
            "refined in the box": shown(columns["iou_refined"]), "boundary F": shown(columns["boundary_f"]),
            "either": shown(columns["iou_either"]), "difference": difference})
    return lines


def numbers(rows, column):
    """A column of the rows that have a true mask, (N,) float64; NaN where a cell is empty. UserError for a text."""
    try:
        return np.array([float(row.get(column) or "nan") for row in rows if row.get("iou")])
    except ValueError as error:
        raise UserError(f"column {column} of a per_image.csv holds text ({error}): run test.py again") from error


def groups(runs):
    """Lists of names: runs that differ in their seed alone, as far as their evaluations tell, together."""
    found = {}
    for name, (figures, _) in runs.items():
        key = *(figures.get(k) for k in ("method", "size", "step", "checkpoint")), label([name], runs)
        found.setdefault(key, []).append(name)
    return list(found.values())


def label(names, runs):
    """A line's name: the method and, where its runs' names tell more, what these have in common without the seed."""
    figures = runs[names[0]][0]
    method, seed = figures["method"], rf"([_-](s|seed)?)?(?<!\d){figures.get('trained_with_seed')}$"
    common = re.sub(seed, "", names[0])
    return method if common in ("", method) else f"{method} ({common})"


def interval(values, reference=None, units=None, signed=False, resamples=2000):
    """The mean over seeds and images (K, N) and its interval, "0.812 [0.790, 0.831]"; "" without a value. Images
    for which one is missing do not count.

    reference: (K', N), subtracted image by image from the mean of the seeds. units: the number of each image's
    photograph, (N,) from 0; crops of one are drawn together. Each image has one of its own where None.
    """
    parts = [part for part in (values, reference) if part is not None]
    known = ~np.isnan(np.concatenate(parts)).any(0)
    if not known.any():
        return ""
    values, *_ = parts = [part[:, known] for part in parts]
    units = np.unique((np.arange(len(known)) if units is None else units)[known], return_inverse=True)[1]
    rng, n, means = np.random.default_rng(0), units.max() + 1, []
    for _ in range(resamples):
        times = np.bincount(rng.integers(n, size=n), minlength=n)[units]  # how often each image is drawn
        first, *other = (np.average(part[rng.integers(len(part), size=len(part))].mean(0), weights=times)
                         for part in parts)
        means.append(first - sum(other))
    middle = values.mean() - sum(part.mean() for part in parts[1:])
    low, high = np.quantile(means, [0.025, 0.975])
    sign = "+" if signed else ""
    return f"{middle:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


# --- files ---


def quoted(cell):
    """As `page.quoted`, but for differences, which have signs and are no formulas."""
    return cell if str(cell)[:1] in "+-" else page.quoted(str(cell))


def as_markdown(lines):
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(line.values() for line in lines)]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def as_html(lines):
    head = "".join(f"<th>{html.escape(column)}</th>" for column in COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in line.values()) + "</tr>\n"
                   for line in lines)
    return f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"


def write_grid(made, results_dir, runs, stems):
    """masks.png: a row an image, x, each run's masks, the true one. Whether there are images to show."""
    first = next(iter(runs))
    bare = [name for name, (figures, _) in runs.items() if "mask" not in figures["kinds"]]
    if bare:
        print(printable(f"no masks.png: {', '.join(bare)} was tested with --no_images"))
        return False
    rows = []
    for stem in stems:
        row = {"x": np.asarray(open_image(os.path.join(results_dir, first, "x", f"{stem}.png")))}
        row |= {name: mask_of(results_dir, name, "mask", stem, row["x"].shape[:2]) for name in runs}
        rows.append(row | {"truth": mask_of(results_dir, first, "truth", stem, row["x"].shape[:2])})
    page.contact_sheet(made.path("masks.png"), rows)
    return True


def mask_of(results_dir, name, kind, stem, shape):
    """A mask that test.py wrote, as an image of this shape, (H, W) uint8, soft values as they are."""
    image = open_image(os.path.join(results_dir, name, kind, f"{stem}.png")).convert("L")
    return np.asarray(image.resize(shape[::-1], Image.Resampling.NEAREST))


def main(argv=None):
    return command(PROG, run, argv)


if __name__ == "__main__":
    sys.exit(main())
