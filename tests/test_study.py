"""The human study: ratings against closed forms and published tables, the voting page, votes to figures.

Long, since the page, the votes and the ratings share the results that the fixtures make.
"""
import csv
import json
import math
import os
import re
import subprocess
import sys

import conftest
import numpy as np
import pytest
import torch
from PIL import Image

import prepare
from evaluation import bradley_terry, clustered, study

in_browser = pytest.mark.skipif(conftest.CHROMIUM is None,
                                reason="NO BROWSER: install chromium to test the study's pages")

# Agresti, Categorical Data Analysis: American League, Eastern Division, 1987, 13 games a pair; row beat column.
# Milwaukee, Detroit, Toronto, New York, Boston, Cleveland, Baltimore; ratings relative to Baltimore.
BASEBALL = [[0, 7, 9, 7, 7, 9, 11], [6, 0, 7, 5, 11, 9, 9], [4, 6, 0, 7, 7, 8, 12], [6, 8, 6, 0, 6, 7, 10],
            [6, 2, 6, 7, 0, 7, 12], [4, 4, 5, 6, 6, 0, 6], [2, 4, 1, 3, 1, 7, 0]]
BASEBALL_RATINGS = [1.5814, 1.4364, 1.2945, 1.2476, 1.1077, 0.6839, 0]
# Stigler 1994: citations of Biometrika, Comm. Statist., JASA, JRSS-B (row) in the others (column), 1987-89;
# ratings relative to Biometrika.
JOURNALS = [[0, 730, 498, 221], [33, 0, 68, 17], [320, 813, 0, 142], [284, 276, 325, 0]]
JOURNAL_RATINGS = [0, -2.94907, -0.47957, 0.26895]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# --- ratings ---


@pytest.mark.parametrize("prior", [0, 0.5, 2])
def test_two_sets_have_the_log_odds(prior):
    ratings = bradley_terry.fit([[0, 30], [10, 0]], prior)
    assert ratings[0] - ratings[1] == pytest.approx(math.log((30 + prior) / (10 + prior)), abs=1e-8)
    assert ratings.sum() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("wins, published, origin", [(BASEBALL, BASEBALL_RATINGS, 6), (JOURNALS, JOURNAL_RATINGS, 0)])
def test_published_tables(wins, published, origin):
    ratings = bradley_terry.fit(wins, prior=0)
    assert ratings - ratings[origin] == pytest.approx(published, abs=6e-5)


@pytest.mark.parametrize("wins", [BASEBALL, JOURNALS])
def test_ratings_maximise_the_likelihood_by_another_optimiser(wins):
    table = torch.tensor(wins, dtype=torch.float64)
    r = torch.zeros(len(table), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([r], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-18,
                                  line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = -(table * torch.nn.functional.logsigmoid(r[:, None] - r[None])).sum() / table.sum()
        value.backward()
        return value
    optimiser.step(loss)
    found = (r - r.mean()).detach().numpy()
    assert bradley_terry.fit(wins, prior=0) == pytest.approx(found, abs=1e-7)


def test_ties_count_half_for_both():
    wins = bradley_terry.count_wins([0, 0, 1], [1, 1, 0], [1, 0.5, 0], 2)
    assert wins.tolist() == [[0, 2.5], [0.5, 0]]
    all_ties = bradley_terry.fit(bradley_terry.count_wins([0] * 9, [1] * 9, [0.5] * 9, 2), prior=0)
    assert all_ties == pytest.approx([0, 0])


def test_a_set_that_never_wins_is_finite_with_the_prior_and_an_error_without():
    wins = [[0, 5, 9], [5, 0, 7], [0, 0, 0]]
    ratings = bradley_terry.fit(wins)
    assert np.isfinite(ratings).all() and ratings[2] == ratings.min() < -1.5
    with pytest.raises(ValueError, match="never wins"):
        bradley_terry.fit(wins, prior=0)


def test_sets_that_no_vote_links_are_an_error():
    with pytest.raises(ValueError, match="not linked"):
        bradley_terry.fit([[0, 3, 0, 0], [2, 0, 0, 0], [0, 0, 0, 4], [0, 0, 1, 0]])


def test_shares_won():
    shares = bradley_terry.win_shares(np.array([[0, 3.0, 0], [1, 0, 2], [0, 2, 0]]))
    assert shares[0, 1] == 0.75 and shares[1, 0] == 0.25 and shares[1, 2] == 0.5
    assert np.isnan(shares[0, 2]) and np.isnan(shares[0, 0])


def test_interval_over_pairs_is_the_closed_form_one():
    # one voter, every pair of images once: then only pairs are a sample, and the log-odds r of n votes of which
    # a share p is won has the standard error 1 / sqrt(n p (1 - p)); each rating is half of it
    n, p = 600, 0.7
    outcome = np.arange(n) < n * p
    ends = bradley_terry.intervals([0] * n, [1] * n, outcome, np.zeros(n, int), np.arange(n), 2)
    half = 1.96 / math.sqrt(n * p * (1 - p)) / 2
    centre = math.log(p / (1 - p)) / 2
    assert ends[0] == pytest.approx([centre - half, centre + half], abs=0.01 * half)


def test_voters_who_disagree_widen_the_interval():
    voter, pair = np.repeat(np.arange(10), 60), np.tile(np.arange(60), 10)
    agree = np.random.default_rng(0).random(600) < 0.6
    split = voter < 6  # as many wins, but each voter always says the same
    widths = [np.ptp(bradley_terry.intervals([0] * 600, [1] * 600, o, voter, pair, 2)[0]) for o in (agree, split)]
    assert widths[1] > 2 * widths[0]


def test_two_way_variances_are_sums_over_pairs_of_observations_that_share_a_group(rng):
    scores, voter, pair = rng.normal(size=(40, 2)) + 1, rng.integers(5, size=40), rng.integers(8, size=40)
    voter[:5], pair[:8] = range(5), range(8)
    expected = np.zeros(2)
    for i in range(40):
        for j in range(40):
            factor = (5 / 4 * (voter[i] == voter[j]) + 8 / 7 * (pair[i] == pair[j]) - 40 / 39 * (i == j))
            expected += factor * scores[i] * scores[j]
    variance, _ = clustered.two_way(scores, voter, pair)
    assert variance == pytest.approx(expected)
    opposed = np.array([[1.0], [-1], [-1], [1]])  # each group adds up to 0, so the sum would be negative
    variance, _ = clustered.two_way(opposed, np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    assert variance == pytest.approx(4 * 4 / 3)
    assert clustered.two_way(opposed, np.zeros(4, int), np.zeros(4, int))[0] == pytest.approx(4 * 4 / 3)


@pytest.mark.parametrize("df, tabled", [(1, 12.7062), (2, 4.3027), (3, 3.1824), (9, 2.2622), (30, 2.0423), (1e5, 1.96)])
def test_students_t_is_the_tabled_one(df, tabled):
    assert clustered.student(0.95, df) == pytest.approx(tabled, abs=1e-4)


def vote(rng, ratings, pairs, votes, voters, pair_effect, voter_effect):
    """Votes on made-up pairs, each voter as many: what `bradley_terry.intervals` takes. The effects are standard
    deviations: of a pair's own log-odds, and of a voter's own rating of each set."""
    kinds = np.array([(i, j) for i in range(len(ratings)) for j in range(i + 1, len(ratings))])
    pair, kind = np.tile(np.arange(pairs), votes), np.arange(pairs) % len(kinds)
    voter = np.concatenate([rng.permutation(pairs) * voters // pairs for _ in range(votes)])
    first, second = kinds[kind[pair]].T
    taste = ratings + rng.normal(0, voter_effect, (voters, len(ratings)))
    odds = taste[voter, first] - taste[voter, second] + rng.normal(0, pair_effect, pairs)[pair]
    return first, second, rng.random(len(pair)) < 1 / (1 + np.exp(-odds)), voter, pair, len(ratings)


def true_ratings(ratings, pair_effect, voter_effect):
    """The ratings that endless votes of endless voters on endless pairs would have."""
    at, weight = np.polynomial.hermite_e.hermegauss(40)
    odds = (ratings[:, None] - ratings)[..., None] + at * math.hypot(pair_effect, voter_effect, voter_effect)
    wins = (1 / (1 + np.exp(-odds))) @ weight
    np.fill_diagonal(wins, 0)
    return bradley_terry.fit(wins, prior=0)


def coverage(studies, pair_effect, voter_effect, pairs=1800, votes=5, voters=450):
    """How often intervals hold the true ratings, over simulated studies of four sets."""
    rng, ratings = np.random.default_rng(1), np.array([-0.6, -0.1, 0.1, 0.6])
    true = true_ratings(ratings, pair_effect, voter_effect)
    found = [bradley_terry.intervals(*vote(rng, ratings, pairs, votes, voters, pair_effect, voter_effect))
             for _ in range(studies)]
    return np.mean([(low <= true) & (true <= high) for low, high in (ends.T for ends in found)])


@pytest.mark.slow
@pytest.mark.parametrize("effects", [(0, 0), (0.5, 0), (0, 0.5), (0.5, 0.5)])
def test_intervals_cover_as_they_say_in_the_papers_design(effects):
    """Four sets, 1,800 pairs, five votes a pair, 20 a voter (§4.1)."""
    assert 0.93 < coverage(1500, *effects) < 0.97


@pytest.mark.parametrize("effects", [(0, 0), (0.5, 0.5)])
def test_intervals_cover_as_they_say(effects):
    """The same in short: 200 studies, whose share scatters by 1 %. Owen's bootstrap covered all of the first."""
    assert 0.92 < coverage(200, *effects) < 0.98


# --- the page ---


@pytest.fixture
def results(tmp_path):
    """Two evaluations as test.py leaves them, of 12 images each."""
    folder = tmp_path / "results"
    for name, method in (("nc", "nocycle"), ("full", "seigan")):
        for kind in ("x", "z", "y_hat"):
            (folder / name / kind).mkdir(parents=True)
            for i in range(12):
                Image.new("RGB", (16, 16), (i, len(kind), len(method))).save(folder / name / kind / f"{i:02d}.png")
        (folder / name / "metrics.json").write_text(json.dumps(
            {"method": method, "size": 16, "n_images": 12, "kinds": ["x", "z", "y_hat"]}))
        with open(folder / name / "per_image.csv", "w") as f:
            print("stem,d_obj_z,d_obj_y_hat", file=f)
            for i in range(12):
                print(f"{i:02d},{i / 10},{-i / 10}", file=f)
    return folder


@pytest.fixture
def page(results, capsys):
    out = results / "study"
    assert study.main(["page", "--name", "nc", "full", "--results_dir", str(results), "--out", str(out),
                       "--n_images", "5", "--n_pairs", "60", "--per_voter", "20"]) == 0
    data = re.search(r'id="study">(.*?)</script>', (out / "page" / "index.html").read_text(encoding="utf-8"))[1]
    return out, json.loads((out / "key.json").read_text(encoding="utf-8")), json.loads(data)


def test_sets_are_the_papers_and_chosen_by_the_discriminators_score(page, results):
    out, key, _ = page
    assert key["sets"] == ["NoCycle z", "SEIGAN z", "SEIGAN ŷ", "real"]
    files = {label: {v["file"] for v in key["images"].values() if v["set"] == label} for label in key["sets"]}
    best = {i: {str(results / name / kind / f"{s:02d}.png") for s in stems} for i, name, kind, stems in [
        ("NoCycle z", "nc", "z", range(7, 12)), ("SEIGAN z", "full", "z", range(7, 12)),
        ("SEIGAN ŷ", "full", "y_hat", range(5))]}
    assert {label: files[label] for label in best} == best
    assert len(files["real"]) == 5 and all("/x/" in f for f in files["real"])


@pytest.mark.parametrize("without, words", [(range(12), ["nc/z: none has a discriminator", "d_obj_z", "at random"]),
                                            ([3, 11], ["nc/z: 2 of 12 images have no d_obj_z"])])
def test_images_without_a_discriminators_score_are_said(results, tmp_path, capsys, without, words):
    path = results / "nc" / "per_image.csv"
    head, *lines = path.read_text().splitlines()
    lines = [f"{i:02d},,0" if i in without else line for i, line in enumerate(lines)]
    path.write_text("\n".join([head, *lines, ""]))
    assert make(results, tmp_path / "out", "nc", "full") == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in words) and "full/z" not in printed
    key = json.loads((tmp_path / "out" / "key.json").read_text(encoding="utf-8"))
    chosen = {os.path.basename(v["file"]) for v in key["images"].values() if v["set"] == "NoCycle z"}
    if len(without) == 2:  # the best of the others
        assert chosen == {f"{i:02d}.png" for i in (6, 7, 8, 9, 10)}


def test_pairs_are_balanced_over_sets_images_and_sides(page):
    _, key, data = page
    sets = [[key["images"][name]["set"] for name in pair] for pair in data["pairs"]]
    assert len(sets) == 60 and all(a != b for a, b in sets)
    for a in key["sets"]:
        for b in key["sets"]:
            assert a == b or sets.count([a, b]) == 5  # 10 a pair of sets, half of them each way round
    names = [name for pair in data["pairs"] for name in pair]
    assert {names.count(name) for name in key["images"]} == {6}


def test_nothing_on_the_page_tells_the_sets_apart(page):
    out, key, _ = page
    text = (out / "page" / "index.html").read_text(encoding="utf-8")
    assert not any(word in text for word in ("NoCycle", "SEIGAN", "real/", "y_hat", "nc/"))
    names = {p.stem for p in (out / "page" / "images").iterdir()}
    assert names == set(key["images"]) and all(re.fullmatch("[0-9a-f]{12}", name) for name in names)
    name, image = next(iter(key["images"].items()))
    with Image.open(out / "page" / "images" / f"{name}.png") as a, Image.open(image["file"]) as b:
        assert a.tobytes() == b.tobytes()
    assert not (out / "page" / "key.json").exists()


def make(results, out, *names, seed=0):
    return study.main(["page", "--name", *names, "--results_dir", str(results), "--out", str(out), "--n_images", "5",
                       "--n_pairs", "60", "--seed", str(seed)])


def test_another_study_has_another_id_and_other_names(page, results, tmp_path):
    _, key, _ = page
    keys = [key]
    for out, seed in (("again", 0), ("seed", 1)):
        assert make(results, tmp_path / out, "nc", "full", seed=seed) == 0
        keys.append(json.loads((tmp_path / out / "key.json").read_text(encoding="utf-8")))
    Image.new("RGB", (16, 16), "red").save(results / "nc" / "z" / "11.png")  # as of a model trained further
    assert make(results, tmp_path / "other", "nc", "full") == 0
    keys.append(json.loads((tmp_path / "other" / "key.json").read_text(encoding="utf-8")))
    assert keys[1] == key and len({k["id"] for k in keys}) == 3
    assert all(not set(k["images"]) & set(key["images"]) for k in keys[2:])


@pytest.mark.parametrize("content", [None, "{}", "[]", "not json"])
def test_the_key_of_another_study_is_not_replaced(page, results, capsys, content):
    out, key, _ = page
    assert make(results, out, "nc", "full") == 0, "its own is"
    if content is not None:
        (out / "key.json").write_text(content)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert make(results, out, "full") == 2
    error = capsys.readouterr().err
    assert "key.json" in error and "--out" in error and error.count("\n") == 1
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def browse(page, tmp_path):
    """What a page's script leaves in <pre id="out">, from a browser that has nothing to complain of."""
    value, console = conftest.browse(page.as_uri(), tmp_path, 500)
    assert not console
    return value


@in_browser
def test_voting_in_a_browser_and_fitting_the_saved_file(page, tmp_path, capsys):
    out, key, data = page
    hook = """<script>addEventListener("load", () => {
      document.getElementById("begin").click();
      const shown = [], counts = [], click = choice => document.querySelector(`[data-choice=${choice}]`).click();
      for (let i = 0; i < 20; i++) {
        shown.push([...document.querySelectorAll("#pair img")].map(e => e.src.split("/").pop()));
        if (i === 2) { click("right"); document.getElementById("back").click(); }
        if (i === 2) counts.push(document.getElementById("count").textContent);
        if (i === 3) click("tie");
        else if (i === 4) dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
        else click("left");
      }
      const pre = document.createElement("pre");
      pre.id = "out";
      pre.textContent = JSON.stringify({csv: csv(), shown, counts, end: !document.getElementById("end").hidden});
      document.body.append(pre);
    });</script></body>"""
    tested = out / "page" / "tested.html"
    text = (out / "page" / "index.html").read_text(encoding="utf-8")
    tested.write_text(text.replace("</body>", hook), encoding="utf-8")
    found = browse(tested, tmp_path)
    rows = list(csv.DictReader(found["csv"].splitlines()))
    assert found["counts"] == ["3 of 20"]
    assert found["end"] and len(rows) == 20 and len({row["pair"] for row in rows}) == 20
    assert [row["choice"] for row in rows] == ["left"] * 3 + ["tie", "right"] + ["left"] * 15
    assert [[row["left"] + ".png", row["right"] + ".png"] for row in rows] == found["shown"]
    for row in rows:
        assert sorted(data["pairs"][int(row["pair"])]) == sorted([row["left"], row["right"]])
    (tmp_path / "votes.csv").write_text(found["csv"])
    assert study.main(["fit", str(tmp_path / "votes.csv"), "--key", str(out / "key.json"), "--out", str(tmp_path)]) == 0
    assert "20 votes of 1 voters" in capsys.readouterr().out


def test_runs_of_unlike_sizes_are_refused(results, capsys):
    (results / "nc" / "metrics.json").write_text(json.dumps(
        {"method": "nocycle", "size": 32, "n_images": 12, "kinds": ["x", "z"]}))
    assert study.main(["page", "--name", "nc", "full", "--results_dir", str(results), "--out", str(results)]) == 2
    assert "one size" in capsys.readouterr().err


@pytest.mark.parametrize("own", ["11,,0", "12,1,0"])
def test_runs_of_other_test_images_are_refused(results, capsys, own):
    path = results / "nc" / "per_image.csv"
    path.write_text(path.read_text().replace(path.read_text().splitlines()[-1], own))
    code = study.main(["page", "--name", "nc", "full", "--results_dir", str(results), "--out", str(results / "out")])
    error = capsys.readouterr().err
    assert code == 2 * (own[:2] == "12") and ("nc and full were tested on different images" in error) == (code == 2)


@pytest.mark.parametrize("figures", [None, {"method": "supervised", "size": 16, "n_images": 12, "kinds": ["x"]}])
def test_results_without_pasted_images_are_refused(results, capsys, figures):
    os.remove(results / "nc" / "metrics.json")
    if figures:
        (results / "nc" / "metrics.json").write_text(json.dumps(figures))
    assert study.main(["page", "--name", "nc", "full", "--results_dir", str(results), "--out", str(results)]) == 2
    error = capsys.readouterr().err
    assert ("no pasted images" if figures else "no evaluation") in error and "python test.py --name nc" in error


# --- votes ---


def write_votes(path, votes, columns=("left_set", "right_set", "choice", "voter", "pair")):
    with open(path, "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([columns, *votes])
    return str(path)


def test_votes_collected_elsewhere_give_ratings_matrix_and_page(tmp_path, capsys):
    votes = [("real", "z", "left", v, p) for v in range(4) for p in range(9)]
    votes += [("z", "real", "left", v, p) for v in range(4) for p in range(9, 12)]
    votes += [("ŷ", "z", "tie", v, p) for v in range(4) for p in range(20, 24)]
    one, two = write_votes(tmp_path / "1.csv", votes[:40]), write_votes(tmp_path / "2.csv", votes[40:])
    assert study.main(["fit", one, two, one, "--out", str(tmp_path)]) == 0  # the first file given twice
    result = json.loads((tmp_path / "ratings.json").read_text(encoding="utf-8"))
    assert result["n_votes"] == 64 and result["n_voters"] == 4 and result["ties"] == 0.25
    assert result["sets"][0] == "real" and set(result["sets"]) == {"real", "z", "ŷ"}
    real, z, y_hat = (result["sets"].index(name) for name in ("real", "z", "ŷ"))
    assert result["win_shares"][real][z] == 0.75 and result["win_shares"][z][y_hat] == 0.5
    assert result["win_shares"][real][y_hat] is None
    # 36 to 12 wins, with half a win more on either side
    assert result["ratings"][real] - result["ratings"][z] == pytest.approx(math.log(36.5 / 12.5), abs=1e-6)
    for rating, (low, high) in zip(result["ratings"], result["intervals"], strict=True):
        assert low <= rating <= high
    printed = capsys.readouterr().out
    assert "75%" in printed and "25% ties" in printed
    text = (tmp_path / "ratings.html").read_text(encoding="utf-8")
    assert "width=device-width" in text and "<h1>" in text and "ŷ" in text and "NaN" not in text


@in_browser
def test_the_ratings_page_is_readable_on_a_phone(tmp_path):
    names = ["real", "SEIGAN ŷ", "<NoCycle> z (butterflies_nocycle)"]
    votes = [(a, b, "left", v, 9 * i + p) for v in range(4) for p in range(9)
             for i, (a, b) in enumerate([names[:2], names[1:], names[::2]])]
    assert study.main(["fit", write_votes(tmp_path / "v.csv", votes), "--out", str(tmp_path)]) == 0
    hook = """<script>const text = s => [...document.querySelectorAll(s)].map(e => e.textContent);
      document.body.style.width = "360px";
      const pre = document.createElement("pre");
      pre.id = "out";
      pre.textContent = JSON.stringify({
        names: text("dt"), heads: text("thead th"), cells: text("td"), values: text("dd"),
        clipped: [...document.querySelectorAll("h2, p, dd, table")].filter(e => e.scrollWidth > 400).length,
        widths: [...document.querySelectorAll(".whisker")].map(e => e.getBoundingClientRect().width)});
      document.body.append(pre);</script></body>"""
    tested, written = tmp_path / "tested.html", (tmp_path / "ratings.html").read_text(encoding="utf-8")
    tested.write_text(written.replace("</body>", hook), encoding="utf-8")
    found = browse(tested, tmp_path)
    assert found["names"] == found["heads"] == names and found["clipped"] == 0
    cells = [cell.replace("\u00a0", " ") for cell in found["cells"]]
    assert cells[1:] == ["–", "100 %", "100 %", "0 %", "–", "100 %", "0 %", "0 %", "–"]
    assert all(width > 5 for width in found["widths"]) and len(found["values"]) == 3


def test_repeats_are_left_out_only_where_voter_and_pair_are_known(tmp_path):
    votes = [("a", "b", "left", v, p) for v in range(3) for p in range(4)]
    for columns, count in ((5, 12), (4, 24), (3, 24)):
        path = write_votes(tmp_path / "v.csv", [v[:columns] for v in votes * 2],
                           ("left_set", "right_set", "choice", "voter", "pair")[:columns])
        assert len(study.read_votes([path], "")) == count
    path = write_votes(tmp_path / "pairs.csv", [(*v[:3], v[4]) for v in votes],
                       ("left_set", "right_set", "choice", "pair"))
    found = study.read_votes([path, path], "")
    assert len(found) == 12 and {vote["pair"] for vote in found} == set("0123"), "one file twice counts once"


def test_patterns_and_narrow_code_pages(tmp_path):
    (tmp_path / "votes").mkdir()
    for i in range(2):
        write_votes(tmp_path / "votes" / f"{i}.csv", [("ŷ", "z", "left", i, p) for p in range(3)])
    write_votes(tmp_path / "[1].csv", [("a", "b", "left", 1, 1)])
    argv = [sys.executable, "-m", "evaluation.study", "fit", "votes/*.csv", "--out", "."]  # no shell to expand it
    env = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONPATH": os.path.dirname(prepare.__file__)}
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, env=env)
    assert done.returncode == 0 and b"6 votes of 2 voters" in done.stdout, done.stderr
    assert study.expand(str(tmp_path / "[1].csv")) == [str(tmp_path / "[1].csv")]
    assert study.expand("votes/none*.csv") == ["votes/none*.csv"]


@pytest.mark.parametrize("votes, words", [
    ([("a", "b", "both", 1, 1)], "line 2: choice must be left, right or tie, got 'both'"),
    ([], "no votes"),
    ([("a", "b", "left", 1, 1), ("c", "d", "left", 1, 2)], "not linked"),
    ([("a,b",)], "v.csv has no column choice, but vote: `fit` takes the CSV files that voters saved"),
    (None, "v.csv: `fit` takes the CSV files that voters saved"),
])
def test_bad_votes_end_in_one_line(tmp_path, capsys, votes, words):
    path = tmp_path / "v.csv"
    if votes is not None:
        write_votes(path, votes, *[["vote"]] * (votes[:1] == [("a,b",)]))
    assert study.main(["fit", str(path), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m evaluation.study: error: ") and words in error and error.count("\n") == 1


def test_votes_from_a_spreadsheet_and_of_one_voter(tmp_path, capsys):
    head, rows = "left_set;right_set;choice;voter;pair\n", ["a;b;Left;v;1", "a;b;LEFT ;v;2", "a;b;right;v;3"]
    (tmp_path / "v.csv").write_text(head + "\n".join(rows))
    assert study.main(["fit", str(tmp_path / "v.csv"), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "3 votes of 1 voters on 3 pairs" in printed and "67%" in printed and "One voter only" in printed
    (tmp_path / "v.csv").write_text(head + "\n".join([*rows, "a;b;right;w;1"]))
    assert study.main(["fit", str(tmp_path / "v.csv"), "--out", str(tmp_path)]) == 0
    assert "only" not in capsys.readouterr().out


def test_votes_of_another_study_or_without_key_are_refused(page, tmp_path, capsys):
    out, key, data = page
    left, right = data["pairs"][0]
    columns = ("study", "voter", "pair", "left", "right", "choice")
    other = write_votes(tmp_path / "v.csv", [("another", "me", 0, left, right, "left")], columns)
    assert study.main(["fit", other, "--key", str(out / "key.json"), "--out", str(tmp_path)]) == 2
    assert "study 'another'" in capsys.readouterr().err
    assert study.main(["fit", other, "--key", "nowhere.json", "--out", str(tmp_path)]) == 2
    assert "no key at nowhere.json" in capsys.readouterr().err
    assert study.main(["fit", "absent.csv", "--out", str(tmp_path)]) == 2
    assert "absent.csv" in capsys.readouterr().err
