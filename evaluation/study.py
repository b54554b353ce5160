"""The human study (§4.1, Fig. 4): which images look more natural to people?

    python test.py --name dogs_nocycle; python test.py --name dogs
    python -m evaluation.study page --name dogs_nocycle dogs    # results/study/page/: send this folder to the voters
    python -m evaluation.study fit votes/*.csv                  # their files -> ratings.json, ratings.html

`page` compares NoCycle's z, SEIGAN's z and ŷ, and real crops, as `test.py` left them in results/NAME/; generated
images are chosen by their D_obj score, real ones at random. Files on the page have meaningless names;
results/study/key.json, which stays with you, says what they are. `fit` also reads votes collected elsewhere: CSV
with columns left_set, right_set, choice (left, right or tie) and, where known, voter and pair.
"""
import glob
import hashlib
import html
import itertools
import json
import os
import shutil
import sys

import numpy as np

from evaluation import bradley_terry
from evaluation.page import embed, write_json, write_page
from evaluation.results import check_same_images, read_results, read_rows
from images import UserError, printable, written_whole
from running.folder import Lock, Made, read_json
from running.options import add_command, command, make_parser, number, whole

PROG = "python -m evaluation.study"
TITLES = {"seigan": "SEIGAN", "nocycle": "NoCycle", "supervised": "Supervised"}
OUTCOMES = {"left": 1.0, "right": 0.0, "tie": 0.5}
REAL = "real"
MADE = ".made_page"  # lists the files of the page
MOST_SETS, MOST_LETTERS = 100, 500  # of votes: what is compared, and a cell


def get_args_parser():
    parser = make_parser(PROG, __doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    add = add_command(commands, "page", "build the voting page").add_argument
    add("--name", nargs="+", required=True, help="runs that test.py has evaluated")
    add("--results_dir", default="results", help="folder of the evaluations")
    add("--out", default="results/study", help="folder to write: page/ and key.json")
    add("--n_images", type=whole(1), default=100, help="images of each set")
    add("--n_pairs", type=whole(1), default=300, help="pairs in all, spread evenly over the pairs of sets")
    add("--per_voter", type=whole(1), default=60, help="pairs that one voter sees, drawn at random")
    add("--question", default="Which image looks more natural?", help="asked above each pair")
    add("--no_ties", action="store_true", help="leave out the button for pairs that look alike")
    add("--seed", type=whole(), default=0, help="of the real images, the pairs and the names")
    add = add_command(commands, "fit", "ratings from votes").add_argument
    add("votes", nargs="+", help="CSV files that voters saved")
    add("--key", default="results/study/key.json", help="which image is of which set, as `page` wrote it")
    add("--out", default="results/study", help="folder for ratings.json and ratings.html, earlier ones are replaced")
    add("--prior", type=number(0), default=bradley_terry.PRIOR,
        help="wins added to both sides of each pair of sets compared, for sets that never win; 0 = none")
    return parser


# --- the page ---


def collect_sets(names, results_dir, n_images, rng):
    """The sets of images to compare (§4.1): {label: [paths]}.

    Of each run z (coarse) and, but for the paper's NoCycle, ŷ, the `n_images` with the highest D_obj score; and as many
    real crops, drawn uniformly. Raises FileNotFoundError or UserError where results are missing or of unlike sizes.
    """
    runs = {name: read_results(results_dir, name) for name in dict.fromkeys(names)}
    for name, (figures, _) in runs.items():
        if "z" not in figures["kinds"]:
            raise FileNotFoundError(f"no pasted images, z, in {os.path.join(results_dir, name)}: run `python test.py "
                                    f"--name {name}` without --no_images, on data with backgrounds")
    sizes = {name: figures["size"] for name, (figures, _) in runs.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"images of one study must be of one size, got {sizes}: voters would tell sets apart by it")
    check_same_images(runs, "a study takes", scored=False)
    methods = [figures["method"] for figures, _ in runs.values()]
    sets = {}
    for name, (figures, rows) in runs.items():
        method = figures["method"]
        suffix = f" ({name})" if methods.count(method) > 1 else ""
        for kind, symbol in {"z": "z", "y_hat": "ŷ"}.items():
            if kind in figures["kinds"] and (kind, method) != ("y_hat", "nocycle"):
                sets[f"{TITLES.get(method, method)} {symbol}{suffix}"] = choose(
                    os.path.join(results_dir, name, kind), rows, f"d_obj_{kind}", n_images, rng)
    first = next(iter(runs))
    sets[REAL] = choose(os.path.join(results_dir, first, "x"), runs[first][1], None, n_images, rng)
    return sets


def choose(folder, rows, score, n, rng):
    """Paths of n images: those with the highest `score`, a column of the rows; at random where it is None.

    Rows without the score come last, in their order; where all lack it, the images are drawn at random. Both are said.
    """
    if score is None:
        return _paths(folder, rows, rng.permutation(len(rows))[:n])
    try:
        scores = np.array([float(row.get(score) or "nan") for row in rows])
    except ValueError as error:
        raise UserError(f"the column {score} of {folder}/../per_image.csv holds text: {error}") from error
    missing = np.isnan(scores)
    if missing.all():
        print(printable(f"{folder}: none has a discriminator's score, {score}, so {min(n, len(rows))} are drawn "
                        "at random, where the paper takes those with the highest"))
        return _paths(folder, rows, rng.permutation(len(rows))[:n])
    if missing.any():
        print(printable(f"{folder}: {missing.sum()} of {len(rows)} images have no {score} and come last"))
    return _paths(folder, rows, np.argsort(np.where(missing, np.inf, -scores), kind="stable")[:n])


def _paths(folder, rows, chosen):
    return [os.path.join(folder, f"{rows[i]['stem']}.png") for i in chosen]


def draw_pairs(sets, n_pairs, rng):
    """n_pairs of ((label, index), (label, index)), left and right, in random order: an equal share, up to one, of each
    pair of sets, with all images about equally often and, up to one, either set as often on the left."""
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
    """The study's id and {(label, index): name of that image}: meaningless, and another study's are others."""
    used = sorted({item for pair in pairs for item in pair})
    digest = hashlib.sha256(json.dumps([seed, used, pairs]).encode())
    for label, i in used:
        with open(sets[label][i], "rb") as f:
            digest.update(hashlib.sha256(f.read()).digest())
    rng = np.random.default_rng(int.from_bytes(digest.digest(), "big"))
    return rng.bytes(4).hex(), {item: rng.bytes(6).hex() for item in used}


def write_study(out, sets, pairs, question, ties, per_voter, seed):
    """Write OUT/page/index.html with its images under meaningless names, and OUT/key.json. UserError where that would
    replace the key of another study, whose votes mean nothing without it."""
    study_id, names = name_study(sets, pairs, seed)
    key_path, index, made = os.path.join(out, "key.json"), "page/index.html", Made(out, MADE)
    if os.path.exists(key_path) and _read_key(key_path)["id"] != study_id:
        raise UserError(f"{key_path} is the key of another study, whose votes need it: choose another --out, or "
                        "remove it")
    if os.path.exists(os.path.join(out, index)) and index not in made.before and not os.path.exists(key_path):
        raise UserError(f"{os.path.join(out, index)} is of no study: choose another --out, or remove it")
    made.clear()  # an earlier study's images are no part of this one
    for (label, i), name in names.items():
        with open(sets[label][i], "rb") as image, written_whole(made.path(f"page/images/{name}.png")) as file:
            shutil.copyfileobj(image, file)
    data = {"id": study_id, "pairs": [[names[left], names[right]] for left, right in pairs], "ties": ties,
            "per_voter": per_voter}
    write_page(made.path(index), "ballot.html", question=html.escape(question), data=embed(data))
    write_json(key_path, {"id": study_id, "sets": list(sets), "images": {
        name: {"set": label, "file": sets[label][i]} for (label, i), name in names.items()}})


def make_page(args):
    rng = np.random.default_rng(args.seed)
    sets = collect_sets(args.name, args.results_dir, args.n_images, rng)
    pairs = draw_pairs(sets, args.n_pairs, rng)
    os.makedirs(args.out, exist_ok=True)
    with Lock(args.out, "choose another --out"):
        write_study(args.out, sets, pairs, args.question, not args.no_ties, args.per_voter, args.seed)
    print("\n".join(f"{label}: {len(paths)} images" for label, paths in sets.items()))
    print(f"{len(pairs)} pairs, {args.per_voter} a voter. Send {os.path.join(args.out, 'page')} to the voters, keep "
          f"{os.path.join(args.out, 'key.json')}, then: python -m evaluation.study fit VOTES.csv ...")


# --- the votes ---


def read_votes(paths, key_path):
    """Votes of CSV files -> dicts with "left", "right" (labels of sets), "outcome", "voter", "pair". UserError names
    file and line. A voter's second vote on a pair, as in a file given twice, is left out where both are known."""
    votes, key = {}, None
    for path in paths:
        for i, row in read_rows(path):
            place = f"{path}, line {i + 2}"
            if any(len(cell or "") > MOST_LETTERS for cell in row.values()):
                raise UserError(f"{place}: a cell of more than {MOST_LETTERS} characters")
            if "choice" not in row:
                raise UserError(f"{path} has no column choice, but {', '.join(map(str, row))}: `fit` takes the CSV "
                                "files that voters saved")
            choice = (row["choice"] or "").strip().lower()
            if choice not in OUTCOMES:
                raise UserError(f"{place}: choice must be left, right or tie, got {row['choice']!r}")
            if row.get("left_set") and row.get("right_set"):
                left, right = row["left_set"], row["right_set"]
            else:
                key = key or _read_key(key_path)
                left, right = (_set_of(row, side, key, place) for side in ("left", "right"))
            voter, pair = row.get("voter") or path, row.get("pair") or f"{path}:{i}"
            vote = {"left": left, "right": right, "outcome": OUTCOMES[choice], "voter": voter, "pair": pair}
            known = row.get("voter") and row.get("pair")
            votes.setdefault((voter, pair) if known else (path, i), vote)
    votes = [vote for vote in votes.values() if vote["left"] != vote["right"]]  # a set against itself says nothing
    if not votes:
        raise UserError(f"no votes in {', '.join(paths)}")
    count = len({vote[side] for vote in votes for side in ("left", "right")})
    if count > MOST_SETS:
        raise UserError(f"the votes compare {count} sets of images, at most {MOST_SETS} can be rated: left_set and "
                        "right_set must name sets, not images")
    return votes


def _read_key(path):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no key at {path}: `evaluation.study page` writes it; give --key")
    remedy = "`evaluation.study page` writes keys; give another --key or --out"
    key = read_json(path, remedy, id=str, images=dict)
    if not all(isinstance(image, dict) and isinstance(image.get("set"), str) for image in key["images"].values()):
        raise UserError(f"{path} does not say of each image which set it is of: {remedy}")
    return key


def _set_of(row, side, key, place):
    if row.get("study") != key["id"]:
        raise UserError(f"{place}: a vote of study {row.get('study')!r}, the key is of {key['id']!r}: give the right "
                        "--key")
    if row.get(side) not in key["images"]:
        raise UserError(f"{place}: {side} image {row.get(side)!r} is not in the key")
    return key["images"][row[side]]["set"]


def fit_votes(votes, prior=bradley_terry.PRIOR):
    """Ratings, intervals and win matrix of votes as of `read_votes`, best set first: a plain dict."""
    labels = sorted({vote[side] for vote in votes for side in ("left", "right")})
    left, right = (np.array([labels.index(vote[side]) for vote in votes]) for side in ("left", "right"))
    outcome = np.array([vote["outcome"] for vote in votes])
    voter, pair = (np.unique([vote[unit] for vote in votes], return_inverse=True)[1] for unit in ("voter", "pair"))
    wins = bradley_terry.count_wins(left, right, outcome, len(labels))
    try:
        ratings = bradley_terry.fit(wins, prior)
        ends = bradley_terry.intervals(left, right, outcome, voter, pair, len(labels), prior=prior)
    except ValueError as error:
        raise UserError(f"{error} (sets by number: {', '.join(f'{i + 1} {name}' for i, name in enumerate(labels))})") \
            from None
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
    paths = [path for name in args.votes for path in expand(name)]
    for path in paths:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no file {path}: `fit` takes the CSV files that voters saved, such as votes/*.csv")
    result = fit_votes(read_votes(paths, args.key), args.prior)
    os.makedirs(args.out, exist_ok=True)
    write_json(os.path.join(args.out, "ratings.json"), result)
    write_page(os.path.join(args.out, "ratings.html"), "ratings.html", data=embed(result))
    print(table(result))
    print(f"drawn in {os.path.join(args.out, 'ratings.html')}")


def table(result):
    """The lines to print."""
    names, width = result["sets"], max(len(name) for name in result["sets"])
    lines = [f"{result['n_votes']} votes of {result['n_voters']} voters on {result['n_pairs']} pairs; "
             f"{result['ties']:.0%} ties (half a win each); left side won {result['left_share']:.0%}", "",
             f"{'':<{width}}  rating (log-odds, mean 0), 95 % interval; comparisons won against {', '.join(names)}"]
    for name, rating, (low, high), shares in zip(names, result["ratings"], result["intervals"], result["win_shares"],
                                                 strict=True):
        cells = ["   -" if share is None else f"{share:4.0%}" for share in shares]
        lines.append(f"{name:<{width}}  {rating:+.2f} [{low:+.2f}, {high:+.2f}]  {'  '.join(cells)}")
    for unit in ("voter", "pair"):
        if result[f"n_{unit}s"] == 1:
            lines.append(f"One {unit} only: the intervals say nothing of what another would give.")
    return "\n".join(lines)


def run(argv):
    args = get_args_parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # Windows' code pages lack the ŷ
    {"page": make_page, "fit": fit_page}[args.command](args)


def main(argv=None):
    """`python -m evaluation.study ...`. Returns the exit code."""
    return command(PROG, run, argv)


if __name__ == "__main__":
    sys.exit(main())
