"""The human study (§4.1, Fig. 4): which pictures look more natural to people?

    python test.py --name dogs_nocycle; python test.py --name dogs
    python -m evaluation.study page --name dogs_nocycle dogs    # results/study/page/: send this folder to the voters
    python -m evaluation.study fit votes/*.csv                  # their files -> ratings, win matrix, drawings

`page` compares NoCycle's z, SEIGAN's z and ŷ, and real crops, as `test.py` left them in results/NAME/; generated
pictures are chosen by their D_obj score, real ones at random. Files on the page have meaningless names;
results/study/key.json, which stays with you, says what they are. `fit` also reads votes collected elsewhere: CSV
with columns left_set, right_set, choice (left, right or tie) and, where known, voter and pair.
"""
import argparse
import csv
import glob
import hashlib
import html
import itertools
import json
import os
import shutil
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation import ballot, bradley_terry

OUTCOMES = {"left": 1.0, "right": 0.0, "tie": 0.5}
REAL = "real"


def get_args_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    options = dict(formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    add = commands.add_parser("page", help="build the voting page", **options).add_argument
    add("--name", nargs="+", required=True, help="runs that test.py has evaluated")
    add("--results_dir", default="results", help="folder of the evaluations")
    add("--out", default="results/study", help="folder to write: page/ and key.json")
    add("--n_images", type=int, default=100, help="pictures of each set")
    add("--n_pairs", type=int, default=300, help="pairs in all, spread evenly over the pairs of sets")
    add("--per_voter", type=int, default=60, help="pairs that one voter sees, drawn at random")
    add("--question", default="Which picture looks more natural?", help="asked above each pair")
    add("--no_ties", action="store_true", help="leave out the button for pairs that look alike")
    add("--seed", type=int, default=0, help="of the real pictures, the pairs and the names")
    add = commands.add_parser("fit", help="ratings from votes", **options).add_argument
    add("votes", nargs="+", help="CSV files that voters saved")
    add("--key", default="results/study/key.json", help="which picture is of which set, as `page` wrote it")
    add("--out", default="results/study", help="folder for ratings.json, ratings.png and ratings.html")
    add("--prior", type=float, default=bradley_terry.PRIOR,
        help="wins added to both sides of each pair of sets compared, for sets that never win; 0 = none")
    add("--resamples", type=int, default=1000, help="of the bootstrap over voters and pairs")
    add("--seed", type=int, default=0, help="of the bootstrap")
    return parser


# --- the page ---


def collect_sets(names, results_dir, n_images, rng):
    """The sets of pictures to compare (§4.1): {label: [paths]}.

    Of each run z (coarse) and, for mode seigan, ŷ, the `n_images` with the highest D_obj score; and as many real
    crops, drawn uniformly. Raises FileNotFoundError or ValueError where results are missing or of unlike sizes.
    """
    runs = {name: read_results(results_dir, name) for name in dict.fromkeys(names)}
    sizes = {name: figures["size"] for name, (figures, _) in runs.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"pictures of one study must be of one size, got {sizes}: voters would tell sets apart by it")
    modes = [figures["mode"] for figures, _ in runs.values()]
    sets = {}
    for name, (figures, rows) in runs.items():
        title = {"seigan": "SEIGAN", "nocycle": "NoCycle", "supervised": "Supervised"}[figures["mode"]]
        suffix = f" ({name})" if modes.count(figures["mode"]) > 1 else ""
        for kind, symbol in {"z": "z", "y_hat": "ŷ"}.items() if figures["mode"] == "seigan" else [("z", "z")]:
            sets[f"{title} {symbol}{suffix}"] = choose(os.path.join(results_dir, name, kind), rows, f"d_obj_{kind}",
                                                       n_images, rng)
    first = next(iter(runs))
    sets[REAL] = choose(os.path.join(results_dir, first, "x"), runs[first][1], None, n_images, rng)
    return sets


def read_results(results_dir, name):
    """metrics.json and the rows of per_image.csv of one evaluation."""
    folder = os.path.join(results_dir, name)
    path = os.path.join(folder, "metrics.json")
    if not os.path.isfile(path) or not os.path.isdir(os.path.join(folder, "z")):
        raise FileNotFoundError(f"no evaluation with pictures in {folder}: run `python test.py --name {name}` first, "
                                "without --no_images")
    with open(path, encoding="utf-8") as f:
        figures = json.load(f)
    with open(os.path.join(folder, "per_image.csv"), newline="", encoding="utf-8") as f:
        return figures, list(csv.DictReader(f))


def choose(folder, rows, score, n, rng):
    """Paths of n pictures: those with the highest `score`, a column of the rows; at random where there is none."""
    if score is not None and all(row.get(score) for row in rows):
        order = sorted(range(len(rows)), key=lambda i: -float(rows[i][score]))
    else:
        order = rng.permutation(len(rows))
    return [os.path.join(folder, f"{rows[i]['stem']}.png") for i in order[:n]]


def draw_pairs(sets, n_pairs, rng):
    """n_pairs of ((label, index), (label, index)), left and right, in random order.

    Every pair of sets has the same share, up to one; within it pictures are drawn so that all are used about
    equally often, and each set stands on the left as often as on the right, up to one.
    """
    kinds = list(itertools.combinations(sets, 2))
    queues = {label: [] for label in sets}

    def draw(label):
        if not queues[label]:
            queues[label] = rng.permutation(len(sets[label])).tolist()
        return label, queues[label].pop()

    pairs = []
    for k, (a, b) in enumerate(kinds):
        count = n_pairs // len(kinds) + (k < n_pairs % len(kinds))
        for i in range(count):
            pair = draw(a), draw(b)
            pairs.append(pair if (i + k) % 2 else pair[::-1])
    return [pairs[i] for i in rng.permutation(len(pairs))]


def name_study(sets, pairs, seed):
    """The study's id and {(label, index): name of that picture}: meaningless, and another study's are others."""
    used = sorted({item for pair in pairs for item in pair})
    digest = hashlib.sha256(json.dumps([seed, used, pairs]).encode())
    for label, i in used:
        with open(sets[label][i], "rb") as f:
            digest.update(hashlib.sha256(f.read()).digest())
    rng = np.random.default_rng(int.from_bytes(digest.digest(), "big"))
    return rng.bytes(4).hex(), {item: rng.bytes(6).hex() for item in used}


def write_page(out, sets, pairs, question, ties, per_voter, seed):
    """Write OUT/page/index.html with its images under meaningless names, and OUT/key.json.

    ValueError where that would replace the key of another study, whose votes mean nothing without it.
    """
    study_id, names = name_study(sets, pairs, seed)
    key_path = os.path.join(out, "key.json")
    if os.path.exists(key_path) and _read_key(key_path)["id"] != study_id:
        raise ValueError(f"{key_path} is the key of another study, whose votes need it: choose another --out, or "
                         "remove it")
    images = os.path.join(out, "page", "images")
    shutil.rmtree(images, ignore_errors=True)  # an earlier study's: its pictures are no part of this one
    os.makedirs(images)
    for (label, i), name in names.items():
        shutil.copyfile(sets[label][i], os.path.join(images, f"{name}.png"))
    data = {"id": study_id, "pairs": [[names[left], names[right]] for left, right in pairs], "ties": ties,
            "per_voter": per_voter}
    text = ballot.PAGE.replace("@QUESTION@", html.escape(question))
    text = text.replace("@DATA@", json.dumps(data, separators=(",", ":")))
    with open(os.path.join(out, "page", "index.html"), "w", encoding="utf-8") as f:
        f.write(text)
    key = {"id": study_id, "sets": list(sets),
           "images": {name: {"set": label, "file": sets[label][i]} for (label, i), name in names.items()}}
    with open(key_path, "w", encoding="utf-8") as f:
        json.dump(key, f, indent=1, ensure_ascii=False)


def make_page(args):
    for option in ("n_images", "n_pairs", "per_voter"):
        if getattr(args, option) < 1:
            raise ValueError(f"--{option} must be at least 1, got {getattr(args, option)}")
    rng = np.random.default_rng(args.seed)
    sets = collect_sets(args.name, args.results_dir, args.n_images, rng)
    pairs = draw_pairs(sets, args.n_pairs, rng)
    write_page(args.out, sets, pairs, args.question, not args.no_ties, args.per_voter, args.seed)
    print("\n".join(f"{label}: {len(paths)} pictures" for label, paths in sets.items()))
    print(f"{len(pairs)} pairs, {args.per_voter} a voter. Send {os.path.join(args.out, 'page')} to the voters, keep "
          f"{os.path.join(args.out, 'key.json')}, then: python -m evaluation.study fit VOTES.csv ...")


# --- the votes ---


def read_votes(paths, key_path):
    """Votes of CSV files -> dicts with "left", "right" (labels of sets), "outcome", "voter", "pair".

    The same voter's second vote on a pair, as in a file given twice, is left out where both are known.
    ValueError names file and line.
    """
    votes, key = {}, None
    for path in paths:
        with open(path, newline="", encoding="utf-8-sig") as f:
            for i, row in enumerate(csv.DictReader(f)):
                place = f"{path}, line {i + 2}"
                if row.get("choice") not in OUTCOMES:
                    raise ValueError(f"{place}: choice must be left, right or tie, got {row.get('choice')!r}")
                if row.get("left_set") and row.get("right_set"):
                    left, right = row["left_set"], row["right_set"]
                else:
                    key = key or _read_key(key_path)
                    left, right = (_set_of(row, side, key, place) for side in ("left", "right"))
                voter, pair = row.get("voter") or path, row.get("pair") or f"{path}:{i}"
                vote = {"left": left, "right": right, "outcome": OUTCOMES[row["choice"]], "voter": voter, "pair": pair}
                known = row.get("voter") and row.get("pair")
                votes.setdefault((voter, pair) if known else (path, i), vote)
    votes = [vote for vote in votes.values() if vote["left"] != vote["right"]]  # a set against itself says nothing
    if not votes:
        raise ValueError(f"no votes in {', '.join(paths)}")
    return votes


def _read_key(path):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no key at {path}: `evaluation.study page` writes it; give --key")
    try:
        with open(path, encoding="utf-8") as f:
            key = json.load(f)
        if {"id", "images"} <= key.keys():
            return key
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"{path} is no key that `evaluation.study page` wrote: give another --key or --out")


def _set_of(row, side, key, place):
    if row.get("study") != key["id"]:
        raise ValueError(f"{place}: a vote of study {row.get('study')!r}, the key is of {key['id']!r}: give the right "
                         "--key")
    if row.get(side) not in key["images"]:
        raise ValueError(f"{place}: {side} picture {row.get(side)!r} is not in the key")
    return key["images"][row[side]]["set"]


def fit_votes(votes, prior=bradley_terry.PRIOR, resamples=1000, seed=0):
    """Ratings, intervals and win matrix of votes as of `read_votes`, best set first: a plain dict."""
    labels = sorted({vote[side] for vote in votes for side in ("left", "right")})
    left, right = (np.array([labels.index(vote[side]) for vote in votes]) for side in ("left", "right"))
    outcome = np.array([vote["outcome"] for vote in votes])
    voter, pair = (np.unique([vote[unit] for vote in votes], return_inverse=True)[1] for unit in ("voter", "pair"))
    wins = bradley_terry.count_wins(left, right, outcome, len(labels))
    try:
        ratings = bradley_terry.fit(wins, prior)
    except ValueError as error:
        raise ValueError(f"{error} (sets by number: {', '.join(f'{i + 1} {name}' for i, name in enumerate(labels))})") \
            from None
    ends = bradley_terry.bootstrap(left, right, outcome, voter, pair, len(labels), resamples, seed=seed, prior=prior)
    order = np.argsort(-ratings, kind="stable")
    shares = bradley_terry.win_shares(wins)[np.ix_(order, order)]
    return {
        "sets": [labels[i] for i in order], "ratings": ratings[order].tolist(), "intervals": ends[order].tolist(),
        "wins": wins[np.ix_(order, order)].tolist(),
        "win_shares": [[None if np.isnan(s) else float(s) for s in line] for line in shares],
        "n_votes": len(votes), "n_voters": int(voter.max()) + 1, "n_pairs": int(pair.max()) + 1,
        "ties": float((outcome == 0.5).mean()), "left_share": float(outcome.mean()), "prior": prior,
    }


def expand(name):
    """The files that a pattern names: Windows' shell leaves that to the program."""
    return [name] if os.path.exists(name) else sorted(glob.glob(name)) or [name]


def fit_page(args):
    if args.prior < 0 or args.resamples < 1:
        raise ValueError("--prior must be at least 0 and --resamples at least 1, "
                         f"got {args.prior} and {args.resamples}")
    paths = [path for name in args.votes for path in expand(name)]
    result = fit_votes(read_votes(paths, args.key), args.prior, args.resamples, args.seed)
    os.makedirs(args.out, exist_ok=True)
    with open(os.path.join(args.out, "ratings.json"), "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1, ensure_ascii=False)
    shapes, size = figure(result)
    to_png(shapes, size).save(os.path.join(args.out, "ratings.png"))
    with open(os.path.join(args.out, "ratings.html"), "w", encoding="utf-8") as f:
        f.write(f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Ratings</title>'
                f'<body style="margin:24px">{to_svg(shapes, size)}</body></html>')
    print(table(result))
    print(f"drawn in {os.path.join(args.out, 'ratings.png')} and ratings.html")


def table(result):
    """The lines to print."""
    width = max(len(name) for name in result["sets"])
    lines = [f"{result['n_votes']} votes of {result['n_voters']} voters on {result['n_pairs']} pairs; "
             f"{result['ties']:.0%} ties (half a win each); left side won {result['left_share']:.0%}",
             "", "rating (log-odds, mean 0) and 95 % interval"]
    for name, rating, (low, high) in zip(result["sets"], result["ratings"], result["intervals"], strict=True):
        lines.append(f"  {name:<{width}} {rating:+.2f}  [{low:+.2f}, {high:+.2f}]")
    lines += ["", "comparisons won, row against column",
              f"  {'':<{width}} " + " ".join(f"{name:>{max(len(name), 4)}}" for name in result["sets"])]
    for name, shares in zip(result["sets"], result["win_shares"], strict=True):
        cells = ["-" if share is None else f"{share:.0%}" for share in shares]
        lines.append(f"  {name:<{width}} " + " ".join(
            f"{cell:>{max(len(head), 4)}}" for cell, head in zip(cells, result["sets"], strict=True)))
    return "\n".join(lines)


# --- the drawing: ratings left, win matrix right, as in Fig. 4 ---


def figure(result):
    """What to draw: shapes ("line", x, y, x2, y2, colour), ("rect", x, y, w, h, colour), ("text", x, y, words, anchor,
    colour), anchor "l", "m" or "r", vertically centred; and the picture's width and height in px."""
    names, n = result["sets"], len(result["sets"])
    row, top, label = 44, 64, 24 + 8 * max(len(name) for name in names)
    left, right = label, label + 300
    ends = np.array(result["intervals"])
    low, high = np.floor(ends.min() * 2) / 2, np.ceil(ends.max() * 2) / 2

    def place(value):
        return left + (value - low) / max(high - low, 0.5) * (right - left)

    ink, soft, accent = (29, 32, 38), (102, 112, 128), (31, 95, 168)
    shapes = [("text", left, 20, "Bradley-Terry rating, 95 % interval", "l", ink)]
    for tick in np.arange(low, high + 0.01, max(0.5, np.ceil((high - low) / 6 * 2) / 2)):
        shapes += [("line", place(tick), top - 14, place(tick), top + n * row - 8, (226, 229, 234)),
                   ("text", place(tick), top + n * row + 8, f"{tick:g}", "m", soft)]
    matrix = right + label + 10
    shapes.append(("text", matrix, 20, "share of comparisons won, row against column", "l", ink))
    for i, name in enumerate(names):
        y = top + i * row + row // 2 - 8
        a, b = (place(end) for end in result["intervals"][i])
        x = place(result["ratings"][i])
        shapes += [("text", left - 12, y, name, "r", ink), ("line", a, y, b, y, accent),
                   ("rect", x - 4, y - 4, 8, 8, accent), ("text", matrix - 12, y, name, "r", ink),
                   ("text", matrix + (i + 0.5) * cell_width(names), top - 18, name, "m", soft)]
        for j, share in enumerate(result["win_shares"][i]):
            if share is None:
                continue
            colour = tuple(round(255 + (c - 255) * share * 0.8) for c in accent)
            words, width = (255, 255, 255) if share > 0.6 else ink, cell_width(names)
            shapes += [("rect", matrix + j * width, y - row / 2 + 2, width - 4, row - 4, colour),
                       ("text", matrix + (j + 0.5) * width - 2, y, f"{share:.0%}", "m", words)]
    return shapes, (int(matrix + n * cell_width(names) + 12), top + n * row + 24)


def cell_width(names):
    return max(64, 8 * max(len(name) for name in names) + 8)


def to_svg(shapes, size):
    """The shapes as an SVG string."""
    parts = []
    for kind, x, y, *rest in shapes:
        colour = "rgb({},{},{})".format(*rest[-1])
        if kind == "line":
            parts.append(f'<path d="M{x:.1f},{y:.1f}L{rest[0]:.1f},{rest[1]:.1f}" stroke="{colour}" stroke-width="2"/>')
        elif kind == "rect":
            parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{rest[0]:.1f}" height="{rest[1]:.1f}" '
                         f'fill="{colour}"/>')
        else:
            anchor = {"l": "start", "m": "middle", "r": "end"}[rest[1]]
            parts.append(f'<text x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="{anchor}" fill="{colour}">'
                         f"{html.escape(rest[0])}</text>")
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" '
            f'style="max-width:100%;font:14px system-ui,sans-serif">{"".join(parts)}</svg>')


def to_png(shapes, size, scale=2):
    """The shapes as a PIL image, `scale` pixels a unit."""
    image = Image.new("RGB", (size[0] * scale, size[1] * scale), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14 * scale)
    for kind, x, y, *rest in shapes:
        x, y, colour = x * scale, y * scale, rest[-1]
        if kind == "line":
            draw.line([x, y, rest[0] * scale, rest[1] * scale], colour, 2 * scale)
        elif kind == "rect":
            draw.rectangle([x, y, x + rest[0] * scale, y + rest[1] * scale], colour)
        else:
            _draw_text(draw, x, y, rest[0], rest[1], font, colour)
    return image


def _draw_text(draw, x, y, words, anchor, font, colour):
    """Text with a drawn hat on ŷ, a letter that Pillow's own font lacks."""
    plain = words.replace("ŷ", "y")
    x -= {"l": 0, "m": 0.5, "r": 1}[anchor] * font.getlength(plain)
    draw.text((x, y), plain, colour, font, anchor="lm")
    if "ŷ" in words:
        at = x + font.getlength(plain[: words.index("ŷ")]) + font.getlength("y") / 2
        u = font.size / 14
        draw.line([at - 3 * u, y - 5 * u, at, y - 8 * u, at + 3 * u, y - 5 * u], colour, round(u))


def main(argv=None):
    """`python -m evaluation.study ...`. Returns the exit code."""
    args = get_args_parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):  # Windows' code pages lack the ŷ
        sys.stdout.reconfigure(errors="replace")
    try:
        {"page": make_page, "fit": fit_page}[args.command](args)
    except (ValueError, OSError) as error:
        print(f"study.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
