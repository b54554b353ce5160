"""Runs beside each other: figures against ones computed here, seeds together, and what cannot be compared."""
import csv
import json

import numpy as np
import pytest

from evaluation import compare
from images import save_png

STEMS = [f"cat_{i}" for i in range(40)]


def write(folder, name, method, seed, iou, stems=STEMS, **columns):
    """results/NAME/ as test.py leaves it, with the IoUs given."""
    kinds = ["x", "mask", "truth"]
    for stem in stems:
        save_png(ensure(folder / name / "x") / f"{stem}.png", np.full((16, 16, 3), 90, np.uint8))
        for kind in kinds[1:]:
            save_png(ensure(folder / name / kind) / f"{stem}.png", np.full((8, 8), 255, np.uint8))
    figures = {"kinds": kinds, "method": method, "size": 16, "n_images": len(stems), "step": 5, "checkpoint": "latest",
               "supervision": "nothing", "trained_with_seed": seed}
    (folder / name / "metrics.json").write_text(json.dumps(figures))
    cells = {"iou": iou, "full_mask": np.linspace(0.2, 0.4, len(stems))} | columns
    with open(folder / name / "per_image.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["stem", *cells])
        writer.writerows(zip(stems, *cells.values(), strict=True))


def ensure(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def lines(folder, *names):
    assert compare.main([*names, "--results_dir", str(folder), "--out", str(folder / "out")]) == 0
    with open(folder / "out" / "compare.csv", newline="") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def test_means_seeds_and_differences(tmp_path, capsys):
    rng = np.random.default_rng(0)
    first, *redo = (rng.uniform(0, 1, len(STEMS)) for _ in range(3))
    either = rng.uniform(0, 1, len(STEMS))
    write(tmp_path, "base", "seigan", 0, first)
    write(tmp_path, "my_redo_s0", "redo", 0, redo[0], iou_either=either)
    write(tmp_path, "my_redo_s1", "redo", 1, redo[1], iou_either=either)
    rows = lines(tmp_path, "base", "my_redo_s0", "my_redo_s1")
    assert list(rows) == ["full mask", "seigan (base)", "redo (my_redo)"]
    assert rows["full mask"]["IoU"].startswith("0.300 [") and rows["full mask"]["learns from"] == "nothing"
    together = rows["redo (my_redo)"]
    assert together["seeds"] == "0, 1" and together["either"].startswith(f"{either.mean():.3f} [")
    assert together["IoU"].startswith(f"{np.mean(redo):.3f} [")
    assert together["difference"].startswith(f"{np.mean(redo) - first.mean():+.3f} [")
    page = (tmp_path / "out" / "index.html").read_text()
    assert together["IoU"] in page and "masks.png" in page and (tmp_path / "out" / "masks.png").exists()
    assert "| redo (my_redo) | nothing | 16 | 0, 1 |" in capsys.readouterr().out


def ends(text):
    return np.array([float(part) for part in text.split("[")[1].rstrip("]").split(",")])


def test_intervals_of_one_seed_are_those_of_a_mean():
    values = np.random.default_rng(1).normal(0.5, 0.2, (1, 200))
    error = 1.96 * values.std(ddof=1) / np.sqrt(200)
    assert ends(compare.interval(values)) == pytest.approx([values.mean() - error, values.mean() + error], abs=0.005)


def test_seeds_that_differ_widen_the_interval_and_pairs_narrow_a_difference():
    rng = np.random.default_rng(2)
    hard = rng.normal(0.5, 0.2, (1, 100))  # images of very unlike difficulty, the same for both
    alike, unlike = np.repeat(hard, 2, 0), hard + np.array([[-0.2], [0.2]])
    low, high = ends(compare.interval(unlike)) - ends(compare.interval(alike))
    assert low < -0.1 and high > 0.1
    assert np.ptp(ends(compare.interval(hard + 0.1, hard, signed=True))) < 0.002


def test_crops_of_one_photograph_are_no_independent_images():
    values = np.random.default_rng(3).normal(0.5, 0.2, (1, 50))
    alone = compare.interval(values)
    assert compare.interval(np.repeat(values, 3, 1), units=np.repeat(np.arange(50), 3)) == alone
    assert np.ptp(ends(compare.interval(np.repeat(values, 3, 1)))) < 0.7 * np.ptp(ends(alone))


def test_images_that_share_no_truth_cannot_be_compared(tmp_path, capsys):
    iou = np.full(len(STEMS), 0.5)
    write(tmp_path, "a", "seigan", 0, iou)
    write(tmp_path, "b", "seigan", 0, iou[:-1], STEMS[:-1])
    write(tmp_path, "c", "seigan", 0, iou, full_mask=np.full(len(STEMS), 0.9))  # other images of the same names
    for other, said in (("b", "40 and 39"), ("c", "different images"), ("d", "run `python test.py --name d` first")):
        assert compare.main(["a", other, "--results_dir", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
        told = capsys.readouterr().err
        assert said in told and told.count("\n") == 1


def test_runs_without_images_have_no_grid_and_it_is_said(tmp_path, capsys):
    for name in "ab":
        write(tmp_path, name, "seigan", 0, np.full(len(STEMS), 0.5))
    lines(tmp_path, "a", "b")
    assert (tmp_path / "out" / "masks.png").exists() and "no masks.png" not in capsys.readouterr().out
    figures = json.loads((tmp_path / "b" / "metrics.json").read_text())
    (tmp_path / "b" / "metrics.json").write_text(json.dumps(figures | {"kinds": []}))
    lines(tmp_path, "a", "b")
    assert "no masks.png: b was tested with --no_images" in capsys.readouterr().out
    assert not (tmp_path / "out" / "masks.png").exists()


def test_images_without_a_value_do_not_count():
    values = np.random.default_rng(0).uniform(0.4, 0.9, (1, 30))
    gaps, known = values.copy(), np.arange(30) % 3 > 0
    gaps[:, ~known] = np.nan
    units = np.arange(30) // 2
    expected = compare.interval(values[:, known], units=np.unique(units[known], return_inverse=True)[1])
    assert compare.interval(gaps, units=units) == expected and "nan" not in expected
    assert compare.interval(values, gaps, signed=True) == "+0.000 [+0.000, +0.000]"


@pytest.mark.parametrize("changed", [{"checkpoint": []}, {"trained_with_seed": "("}])
def test_figures_of_another_form_are_one_line(tmp_path, capsys, changed):
    write(tmp_path, "a", "seigan", 0, np.full(len(STEMS), 0.5))
    path = tmp_path / "a" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    assert compare.main(["a", "--results_dir", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_a_damaged_table_is_one_line(tmp_path, capsys):
    write(tmp_path, "a", "seigan", 0, ["much"] * len(STEMS))
    assert compare.main(["a", "--results_dir", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "holds text" in capsys.readouterr().err


def test_names_are_no_html(tmp_path):
    write(tmp_path, "a<b", "seigan", 0, np.full(len(STEMS), 0.5))
    lines(tmp_path, "a<b")
    assert "a<b" not in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize("name, seed, kept", [
    ("redo", 0, "redo"), ("demo_redo1", 1, "redo (demo_redo)"), ("redo_s2", 2, "redo"), ("redo-seed12", 12, "redo"),
    ("butterflies64", 0, "redo (butterflies64)"), ("horses0", 0, "redo (horses)"),
    ("exp10", 0, "redo (exp10)")])
def test_a_line_is_called_by_what_names_have_in_common(name, seed, kept):
    assert compare.label([name], {name: ({"method": "redo", "trained_with_seed": seed}, [])}) == kept
