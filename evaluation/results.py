"""What test.py left in results/NAME/, read back and checked: for pages that set runs beside each other."""
import csv
import os
from pathlib import Path

from evaluation.page import unquoted
from images import UserError, parse_json

_FIGURES = {"kinds": list, "method": str, "size": int, "n_images": int, "checkpoint?": str,
            "trained_with_seed?": lambda seed: seed is None or type(seed) is int}


def read_results(results_dir, name):
    """metrics.json and the rows of per_image.csv of one evaluation, (dict, [{column: text}]).

    Raises FileNotFoundError or UserError, in one line, where they are missing or damaged.
    """
    folder = os.path.join(results_dir, name)
    path, again = os.path.join(folder, "metrics.json"), f"run `python test.py --name {name}` again"
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no evaluation in {folder}: run `python test.py --name {name}` first")
    figures = parse_json(Path(path).read_bytes(), _FIGURES)
    if figures is None:
        raise UserError(f"{path} is damaged, or not what this code writes: {again}")
    path = os.path.join(folder, "per_image.csv")
    rows = [row for _, row in read_rows(path)]
    for row in rows:
        stem = row["stem"] = unquoted(row.get("stem") or "")
        if not stem or os.path.basename(stem) != stem or "\0" in stem:
            raise UserError(f"{path} names an image {stem!r}: {again}")
    if not rows or len(rows) != figures["n_images"]:
        raise UserError(f"{path} has {len(rows)} rows for {figures['n_images']} images: {again}, to its end")
    return figures, rows


def check_same_images(runs, what, scored=True):
    """The stems of the images that all of several runs, {name: (figures, rows)}, were tested on, of those with a true
    mask or, not `scored`, of all. UserError, which names `what`, where runs saw different ones: other names, or other
    shares of their crops that are object, which is the full mask's IoU."""
    seen = {name: [(row["stem"], row.get("full_mask")) for row in rows if row.get("iou") or not scored]
            for name, (_, rows) in runs.items()}
    (first, stems), *others = seen.items()
    for name, other in others:
        if other != stems:
            raise UserError(f"{first} and {name} were tested on different images, {len(stems)} and {len(other)}"
                            + " with a true mask" * scored + f": {what} runs of one --dataroot and --split")
    return [stem for stem, _ in stems]


def read_rows(path):
    """(number, {column: cell}) of the rows of a CSV file; between columns "," or, as spreadsheets in many countries
    write it, ";". UserError where it is none."""
    with open(path, newline="", encoding="utf-8-sig") as f:
        try:
            header = f.readline()
            f.seek(0)
            yield from enumerate(csv.DictReader(f, delimiter="," if "," in header else ";"))
        except (csv.Error, ValueError) as error:
            raise UserError(f"{path} is not a CSV file in UTF-8 ({error})") from error
