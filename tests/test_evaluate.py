"""test.py as users run it: what it writes, with all or little of the data at hand, and errors in one line.

Long, since all parts share the runs and the data set that the fixtures at the top make.
"""
import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import crf
import test as entry
from data import Crops
from evaluation import evaluate as evaluation
from evaluation import image_scores
from evaluation import page as report
from running import methods
from running.checkpoint import load_model, save_checkpoint

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MASKS = ("mask", "refined", "m_hat", "truth")
TINY = dict(size=32, ngf=8, ndf=8, n_layers_D=3, seg_blocks=1, unet_downs=3, head_bias=0.0)
KINDS = ("x", "y", "mask", "refined", "z", "y_hat", "x_hat", "m_hat", "x_hat2", "y_hat2", "truth")


@pytest.fixture
def copy(dataroot, tmp_path):
    """A data set of its own, to change."""
    return shutil.copytree(dataroot, tmp_path / "set")


@pytest.fixture(scope="module")
def checkpoints(dataroot, tmp_path_factory):
    """A folder with one untrained run a method."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for method in ("seigan", "nocycle", "supervised"):
        torch.manual_seed(0)
        model = methods.load(method).Model(**TINY)
        os.makedirs(folder / method)
        save_checkpoint(folder / method / "latest.pt", {
            "method": method, "step": 1234, "config": model.config, "networks": model.state(), "averaged": {},
            "options": {"dataroot": str(dataroot), "name": method, "method": method, "size": 32}})
    return folder


@pytest.fixture
def run(checkpoints, tmp_path, capsys):
    """Run test.py on a run: (exit code, its results' folder, what it printed)."""
    def run(name, *options):
        argv = ["--name", name, "--checkpoints_dir", str(checkpoints), "--results_dir", str(tmp_path), "--gpu", "-1",
                *map(str, options)]
        try:
            code = entry.main(argv)
        except SystemExit as end:  # argparse
            code = end.code
        return code, tmp_path / name, capsys.readouterr()
    return run


def figures_of(folder):
    with open(folder / "metrics.json", encoding="utf-8") as f:
        return json.load(f, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def rows_of(folder):
    with open(folder / "per_image.csv", newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def pngs(folder, kind):
    return sorted(os.listdir(folder / kind)) if (folder / kind).is_dir() else None


# --- what is written ---


def test_command_line_needs_the_name_alone(checkpoints, dataroot, tmp_path):
    shutil.copytree(checkpoints, tmp_path / "checkpoints")
    done = subprocess.run([sys.executable, os.path.join(HERE, "test.py"), "--name", "seigan"], cwd=tmp_path,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "seigan"
    stems = [f"{i:05d}.png" for i in range(7)]
    for kind in KINDS:
        assert pngs(folder, kind) == stems
        with Image.open(folder / kind / stems[0]) as image:
            assert image.size == (32, 32) and image.mode == ("L" if kind in MASKS else "RGB")
    for word in ("seigan", "refined", "full mask", "box", "best fixed mask", "CRF", "7 of 7"):
        assert word in done.stdout
    figures = figures_of(folder)
    assert {"iou", "iou_pooled", "dice", "pixel_accuracy", "precision", "recall", "boundary_f", "mask_area",
            "true_area", "baselines", "per_class", "intervals", "inpainting", "enhancement"} <= figures.keys()
    assert figures["n_images"] == 7 and figures["step"] == 1234 and figures["size"] == 32
    assert figures["checkpoint"] == "latest" and figures["method"] == "seigan" and figures["mean_mask_fitted_on"] == 8
    assert figures["kinds"] == list(KINDS) and figures["origin"].keys() >= {"revision", "dirty", "torch", "crops"}
    assert set(figures["baselines"]) == {"full_mask", "box_mask", "mean_mask", "crf"}
    assert {"iou", "dice", "boundary_f", "mask_area"} <= figures["refined"].keys()
    assert figures["frechet"] is None and figures["resolution"] == "crop"
    for value, interval in ((figures["iou"], "iou"), (figures["refined"]["iou"], "iou_refined"),
                            (figures["baselines"]["crf"], "crf")):
        low, high = figures["intervals"][interval]
        assert low < value < high and f"{value:.3f}  [{low:.3f}, {high:.3f}]" in done.stdout


def test_figures_are_those_of_the_models_own_masks(run, checkpoints, dataroot):
    _, folder, _ = run("seigan")
    figures, rows = figures_of(folder), rows_of(folder)
    model, crops = load_model(checkpoints / "seigan" / "latest.pt"), Crops(dataroot, "test", 32)
    ious, inter, union = [], 0, 0
    for row, stem in zip(rows, crops.stems, strict=True):
        m = model.segment(crops.object(stem)[None], crops.box(stem)[None].double())
        p = F.interpolate(m, (64, 64), mode="bilinear")[0, 0].numpy() >= 0.5  # the files have 64 px
        t = np.asarray(Image.open(crops.masks[stem])) > 128
        ious.append((p & t).sum() / (p | t).sum())
        inter, union = inter + (p & t).sum(), union + (p | t).sum()
        assert row["stem"] == stem and float(row["iou"]) == pytest.approx(ious[-1], abs=1e-5)
        assert float(row["true_area"]) == pytest.approx(t.mean(), abs=1e-5)
    assert figures["iou"] == pytest.approx(np.mean(ious)) and figures["iou_pooled"] == pytest.approx(inter / union)


def test_pictures_and_scores_are_those_of_the_model(run, checkpoints, dataroot):
    _, folder, _ = run("seigan")
    model, crops = load_model(checkpoints / "seigan" / "latest.pt"), Crops(dataroot, "test", 32)
    x, box = crops.object("00004")[None], crops.box("00004")[None].double()
    partner = crops.background_stems[np.random.default_rng(0).permutation(3)[4 % 3]]
    y = crops.background(partner)[None]
    y_hat, x_hat = model.paste(x, y, box), model.remove(x, box)
    for kind, image in {"x": x, "y": y, "y_hat": y_hat, "x_hat": x_hat, "x_hat2": model.paste(y_hat, x_hat, box),
                        "y_hat2": model.remove(y_hat, box)}.items():
        written = np.asarray(Image.open(folder / kind / "00004.png")).astype(int)
        expected = ((image[0].permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(int)
        assert np.abs(written - expected).max() <= 1, kind
    row = rows_of(folder)[4]
    assert row["background"] == partner
    assert float(row["d_obj_y_hat"]) == pytest.approx(model.D_obj(y_hat).mean().item(), abs=1e-4)
    assert float(row["d_bg_x_hat"]) == pytest.approx(model.D_bg(x_hat).mean().item(), abs=1e-4)
    # G_inp sees the background with the true mask cut out
    hole = crops.mask("00004")[None]
    rng = torch.Generator().manual_seed(0)
    filled, _ = model.G_inp((1 - hole) * y, hole, torch.randn((1, 1, 32, 32), generator=rng))
    expected = ((filled - y).abs().mean(1, keepdim=True) * hole).sum() / hole.sum()
    assert float(row["G_inp_mae"]) == pytest.approx(expected.item(), abs=1e-4)


def by_hand(checkpoints, dataroot, stem, bias):
    """The refined mask (64, 64) of one object, drawn at twice the model's size, and the CRF's from its box alone."""
    model, crops = load_model(checkpoints / "seigan" / "latest.pt"), Crops(dataroot, "test", 32)
    x, box, finer = crops.object(stem)[None], crops.box(stem)[None], Crops(dataroot, "test", 64).object(stem)[None]
    refined = crf.refine_box(finer, model.segment(x, box), box, bias)
    return [mask[0, 0].numpy() for mask in (refined, crf.teach(x, box, bias=bias))]


def test_refined_masks_are_those_of_the_crf_with_the_runs_bias(run, checkpoints, dataroot, tmp_path, monkeypatch):
    monkeypatch.setattr(methods.load("seigan").Model, "segment",  # the untrained one's are empty
                        lambda self, x, box=None: crf.ellipse(self.boxes(box, len(x)).float(), 32, 32))
    shutil.copytree(checkpoints, tmp_path / "runs")
    path, crops = tmp_path / "runs" / "seigan" / "latest.pt", Crops(dataroot, "test", 32)
    state = torch.load(path, weights_only=True)
    state["options"]["crf_bias"] = 1.0
    save_checkpoint(path, state)
    code, folder, _ = run("seigan", "--checkpoints_dir", tmp_path / "runs", "--batch_size", 3)
    masks = by_hand(checkpoints, dataroot, "00003", 1.0)
    assert np.abs(masks[0] - by_hand(checkpoints, dataroot, "00003", 0.0)[0]).max() > 0.1, "the bias matters"
    written = np.asarray(Image.open(folder / "refined" / "00003.png"))
    assert code == 0 and np.abs(written / 255 - masks[0].reshape(32, 2, 32, 2).mean((1, 3))).max() < 0.01
    truth, row = np.asarray(Image.open(crops.masks["00003"])) > 128, rows_of(folder)[3]
    for name, mask in zip(("iou_refined", "crf"), masks, strict=True):
        p = F.interpolate(torch.from_numpy(mask)[None, None], (64, 64), mode="bilinear")[0, 0].numpy() >= 0.5
        assert float(row[name]) == pytest.approx((p & truth).sum() / (p | truth).sum(), abs=2e-3), name
    figures, ious = figures_of(folder), [float(r["iou_refined"]) for r in rows_of(folder)]
    assert figures["refined"]["iou"] == pytest.approx(np.mean(ious), abs=1e-5)
    before = figures["iou"]
    run("seigan")  # what the networks make has nothing to do with it
    assert figures_of(folder)["iou"] == before and figures_of(folder)["refined"]["iou"] != figures["refined"]["iou"]


def test_a_model_has_its_runs_bias(checkpoints, tmp_path):
    state = torch.load(checkpoints / "supervised" / "latest.pt", weights_only=True)
    for options, bias in ((state["options"], 0), ({"crf_bias": None}, 0), ({"crf_bias": 2.0}, 2)):
        save_checkpoint(tmp_path / "latest.pt", state | {"options": options})
        assert load_model(tmp_path / "latest.pt").crf_bias == bias
    del state["options"]
    save_checkpoint(tmp_path / "latest.pt", state)
    assert load_model(tmp_path / "latest.pt").crf_bias == 0


def test_figures_depend_on_neither_batch_size_nor_threads(run, checkpoints):
    code, folder, _ = run("seigan", "--batch_size", 3, "--threads", 3)
    first, rows = figures_of(folder), rows_of(folder)
    run("seigan", "--batch_size", 7, "--threads", 1, "--no_images")
    for a, b in zip(rows, rows_of(folder), strict=True):
        assert a["stem"] == b["stem"]
        numbers = [k for k in a if k not in ("stem", "class", "background", "photograph")]
        assert [float(a[k]) for k in numbers] == pytest.approx([float(b[k]) for k in numbers], abs=1e-3)
    assert figures_of(folder)["iou"] == pytest.approx(first["iou"], abs=1e-4)


@pytest.mark.parametrize("method, missing", [
    ("nocycle", ("x_hat", "m_hat", "x_hat2", "y_hat2")),
    ("supervised", ("y_hat", "x_hat", "m_hat", "x_hat2", "y_hat2"))])
def test_methods_leave_out_what_they_do_not_train(run, method, missing):
    code, folder, _ = run(method)
    assert code == 0
    assert {kind for kind in KINDS if pngs(folder, kind) is None} == set(missing)
    figures = figures_of(folder)
    assert figures["inpainting"]["G_inp"]["psnr"] is None and figures["iou"] is not None
    assert list(figures["scores"]) == ([] if method == "supervised" else ["d_obj_z", "d_obj_y_hat"])
    assert (figures["enhancement"]["id_obj"] is None) == (method == "supervised")
    columns = 8 - len({"y_hat", "x_hat"} & set(missing))
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.width == columns * (64 + 4) + 4


def test_the_ranked_sheet_shows_what_the_folders_hold(run):
    """Rows are ordered by IoU, and each mask is that of mask/STEM.png, whatever batch it was made in."""
    _, folder, _ = run("seigan")
    with open(folder / "per_image.csv", newline="") as f:
        rows = [{"stem": r["stem"], "iou": float(r["iou"])} for r in csv.DictReader(f) if r["iou"]]
    stems = report.ranked(rows)
    with Image.open(folder / "best_median_worst.png") as sheet:
        column = 1 + KINDS.index("mask")  # the first holds the labels
        for i, stem in enumerate(stems):
            shown = sheet.crop((4 + 68 * column, 46 + 68 * i, 68 + 68 * column, 110 + 68 * i)).convert("L")
            with Image.open(folder / "mask" / f"{stem}.png") as mask:
                expected = np.asarray(mask.resize((64, 64), Image.NEAREST)).astype(int)
            assert np.abs(np.asarray(shown).astype(int) - expected).max() <= 1
    whole = np.asarray(Image.open(folder / "best_median_worst.png").convert("RGB")).astype(int)
    os.remove(folder / "best_median_worst.png")
    run("seigan", "--no_images")
    again = np.asarray(Image.open(folder / "best_median_worst.png").convert("RGB")).astype(int)
    assert (whole == again).all()


def test_every_network_runs_once(run, monkeypatch):
    """With or without PNGs, one batch is one call of `pictures`, and no PNG is opened again."""
    calls, opened = [], []
    model, read = methods.load("seigan").Model, Image.open
    made = model.pictures
    monkeypatch.setattr(model, "pictures", lambda self, x, *a: calls.append(len(x)) or made(self, x, *a))
    monkeypatch.setattr(Image, "open", lambda path, *a, **k: opened.append(str(path)) or read(path, *a, **k))
    for options in ((), ("--no_images",)):
        _, folder, _ = run("seigan", "--batch_size", 4, "--threads", 1, *options)
        assert sorted(calls) == [3, 4] and not [path for path in opened if str(folder) in path]
        calls.clear()


class Redraws(torch.nn.Module):
    """A later method as running/methods.py allows it: other images and scores, neither enhance nor inpaint, no need of
    backgrounds."""

    size, inpaint = 32, None

    def segment(self, x, box=None):
        return (x[:, :1] > 0).float()

    def pictures(self, x, y, box=None, seed=0):
        return {"mask": self.segment(x), "first_layer": x.flip(3), **({} if y is None else {"z": y})}

    def scores(self, pictures):
        return {"sharpness": pictures["first_layer"].std((1, 2, 3))}


@pytest.mark.parametrize("backgrounds", [True, False])
def test_another_method_needs_no_change(run, copy, monkeypatch, backgrounds):
    if not backgrounds:
        shutil.rmtree(copy / "test" / "backgrounds")
    monkeypatch.setattr(entry, "build_model", lambda *_: Redraws())
    monkeypatch.setattr(methods.load("seigan"), "NEEDS", ())
    code, folder, out = run("seigan", "--dataroot", copy)
    figures, rows = figures_of(folder), rows_of(folder)
    assert code == 0, out.err
    kinds = ["x", *["y"] * backgrounds, "mask", "refined", "first_layer", *["z"] * backgrounds, "truth"]
    assert figures["kinds"] == kinds
    assert all(len(pngs(folder, kind)) == 7 for kind in figures["kinds"])
    assert list(figures["scores"]) == ["sharpness"] and float(rows[0]["sharpness"]) > 0
    assert "G_inp_psnr" not in rows[0] and "id_obj" not in rows[0] and (rows[0]["background"] != "") == backgrounds
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "first layer" in text and "sharpness" in text
    assert run("seigan", "--dataroot", copy, "--no_images")[0] == 0 and pngs(folder, "first_layer") == []


def test_only_methods_that_need_backgrounds_ask_for_them(run, copy):
    shutil.rmtree(copy / "test" / "backgrounds")
    code, _, out = run("seigan", "--dataroot", copy)
    assert code == 2 and "no images in" in out.err and "backgrounds" in out.err
    code, folder, _ = run("supervised", "--dataroot", copy)
    assert code == 0 and figures_of(folder)["kinds"] == ["x", "mask", "refined", "truth"] and pngs(folder, "y") is None


def test_earlier_pictures_do_not_stay_beside_new_ones(run, copy):
    run("seigan", "--dataroot", copy)
    for kind in ("objects", "masks"):
        os.remove(copy / "test" / kind / "00003.png")
    _, folder, _ = run("seigan", "--dataroot", copy)
    assert "00003.png" not in pngs(folder, "x") and len(pngs(folder, "x")) == 6
    run("seigan", "--dataroot", copy, "--no_images")
    assert not pngs(folder, "x") and (folder / "contact_sheet.png").exists()


def test_a_stopped_evaluation_leaves_no_figures_of_another(run, copy, monkeypatch):
    _, folder, _ = run("seigan", "--dataroot", copy)
    os.remove(copy / "test" / "objects" / "00003.png")
    finish = entry.summarise
    monkeypatch.setattr(entry, "summarise", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for _ in range(2):  # the second after one that never had figures
        code, _, out = run("seigan", "--dataroot", copy)
        assert code == 130 and "stopped" in out.err
        assert not [name for name in os.listdir(folder) if name.endswith((".json", ".csv", ".html", ".png"))]
    os.remove(copy / "test" / "objects" / "00004.png")
    monkeypatch.setattr(entry, "summarise", finish)
    run("seigan", "--dataroot", copy)
    assert len(pngs(folder, "x")) == len(rows_of(folder)) == 5


def test_pictures_of_others_are_not_removed(run, tmp_path):
    (tmp_path / "seigan" / "x").mkdir(parents=True)
    (tmp_path / "seigan" / "x" / "holiday.png").write_bytes(b"a picture")
    run("seigan")
    assert (tmp_path / "seigan" / "x" / "holiday.png").exists()


# --- source resolution ---


def test_masks_are_compared_where_they_were_annotated(run, copy, checkpoints):
    path = copy / "test" / "crops.json"
    index = json.loads(path.read_text())
    os.makedirs(copy / "test" / "masks_source")
    rng = np.random.default_rng(0)
    truths = {}
    for i, stem in enumerate(sorted(index["objects"])):
        window = [3.3 + i, 2.6, 71.4 + i, 40.2]  # columns 3+i..3+i+72 or so, rows 2..42, stretched to a square
        columns, rows = int(np.ceil(window[0] + window[2])) - 3 - i, 41
        truths[stem] = (rng.random((rows, columns)) < 0.4), window
        Image.fromarray((truths[stem][0] * 255).astype(np.uint8)).save(copy / "test" / "masks_source" / f"{stem}.png")
        index["objects"][stem].update(source_window=window, source_size=[100, 60])
    path.write_text(json.dumps(index))
    code, folder, printed = run("seigan", "--dataroot", copy)
    assert code == 0 and "source resolution" in printed.out and figures_of(folder)["resolution"] == "source"
    model, crops = load_model(checkpoints / "seigan" / "latest.pt"), Crops(copy, "test", 32)
    for i, row in enumerate(rows_of(folder)):
        truth, (x0, y0, w, h) = truths[row["stem"]]
        m = model.segment(crops.object(row["stem"])[None], crops.box(row["stem"])[None].double())
        x, y = np.arange(truth.shape[1]) + 3 + i + 0.5, np.arange(truth.shape[0]) + 2 + 0.5
        inside = ((y >= y0) & (y <= y0 + h))[:, None] & ((x >= x0) & (x <= x0 + w))[None]
        grid = np.stack(np.meshgrid((x - x0) / w, (y - y0) / h), -1)[None] * 2 - 1
        p = F.grid_sample(m, torch.from_numpy(grid).float(), padding_mode="border", align_corners=False)
        p = (p[0, 0].numpy() >= 0.5) & inside
        t = truth & inside
        assert float(row["iou"]) == pytest.approx((p & t).sum() / (p | t).sum(), abs=2e-3)
        assert sum(float(row[k]) for k in ("tp", "fp", "fn", "tn")) == inside.sum()
    # a file that does not fit its record is an error that names it
    Image.new("L", (9, 9)).save(copy / "test" / "masks_source" / "00002.png")
    code, _, printed = run("seigan", "--dataroot", copy)
    assert code == 2 and "00002.png has 9 x 9 pixels" in printed.err and printed.err.count("\n") == 1


# --- little data at hand ---


def test_no_true_masks(run, copy):
    shutil.rmtree(copy / "test" / "masks")
    code, folder, printed = run("seigan", "--dataroot", copy)
    figures = figures_of(folder)
    assert code == 0 and figures["iou"] is None and figures["n_masks"] == 0 and figures["mask_area"] > 0
    assert figures["baselines"] == dict.fromkeys(("full_mask", "box_mask", "mean_mask", "crf"))
    assert figures["refined"]["iou"] is None and figures["refined"]["mask_area"] > 0
    assert figures["inpainting"]["G_inp"]["psnr"] > 0  # holes of the boxes' shape
    assert "no IoU" in printed.out and pngs(folder, "truth") is None


def test_an_unknown_box_is_the_whole_crop_everywhere(run, copy, checkpoints, tmp_path, monkeypatch):
    path = copy / "test" / "crops.json"
    index = json.loads(path.read_text())
    for stem in ("00000", "00001"):
        del index["objects"][stem]
    path.write_text(json.dumps(index))
    os.remove(copy / "test" / "masks" / "00001.png")
    model, boxes, whole = methods.load("seigan").Model, [], [0, 0, 1, 1]
    segment = model.segment
    monkeypatch.setattr(model, "segment", lambda self, x, box=None: boxes.extend(box.tolist()) or segment(self, x, box))
    _, folder, _ = run("seigan", "--dataroot", copy, "--threads", 1)
    known = Crops(copy, "test", 32).box("00002").tolist()
    assert boxes[:2] == [whole] * 2 and boxes[2] == pytest.approx(known) and len(boxes) == 14  # of x, then of y_hat
    rows = rows_of(folder)
    assert rows[0]["box_mask"] == "" and 0 < float(rows[2]["box_mask"]) < 1 and rows[0]["iou"]
    assert rows[0]["crf"] == "" and 0 < float(rows[2]["crf"]) <= 1 and rows[0]["iou_refined"]
    refined = np.asarray(Image.open(tmp_path / "seigan" / "refined" / "00000.png"))
    expected = by_hand(checkpoints, copy, "00000", 0.0)[0].reshape(32, 2, 32, 2).mean((1, 3))
    assert np.abs(refined / 255 - expected).max() < 0.01
    assert rows[0]["G_inp_psnr"] and not rows[1]["G_inp_psnr"]  # neither mask nor box: nothing to cut out
    boxes.clear()
    evaluation.validate(load_model(checkpoints / "seigan" / "latest.pt"), Crops(copy, "test", 32))
    assert boxes[0] == whole and len(boxes) == 6


def test_validation_scores_masks_as_the_evaluation_does(run, checkpoints, dataroot):
    _, folder, _ = run("seigan")
    model, crops = load_model(checkpoints / "seigan" / "latest.pt"), Crops(dataroot, "test", 32)
    parts = [evaluation.validate(model, crops, batch_size=2, part=slice(i, None, 2)) for i in (0, 1)]
    iou, area, n = np.sum(parts, 0)
    figures = figures_of(folder)
    assert n == 7 and [part[2] for part in parts] == [4, 3]
    assert [iou / n, area / n] == pytest.approx([figures["iou"], figures["mask_area"]], abs=1e-6)
    asked = iter([False, True])
    assert evaluation.validate(model, crops, batch_size=2, stopped=lambda: next(asked)) is None


def test_some_true_masks(run, copy):
    os.remove(copy / "test" / "masks" / "00000.png")
    _, folder, _ = run("seigan", "--dataroot", copy)
    assert figures_of(folder)["n_masks"] == 6 and figures_of(folder)["n_images"] == 7
    assert rows_of(folder)[0]["iou"] == "" and len(pngs(folder, "truth")) == 6


def test_no_training_data_no_records_one_image(run, copy):
    shutil.rmtree(copy / "train")
    os.remove(copy / "test" / "crops.json")
    for i in range(1, 7):
        os.remove(copy / "test" / "objects" / f"{i:05d}.png")
    code, folder, printed = run("seigan", "--dataroot", copy)
    figures = figures_of(folder)
    assert code == 0 and figures["n_images"] == 1 and figures["intervals"] == {} and figures["per_class"] == {}
    assert figures["baselines"]["mean_mask"] is None and figures["baselines"]["box_mask"] is None
    assert figures["baselines"]["full_mask"] > 0 and "nan" not in printed.out.lower()


def test_classes(run, copy):
    path = copy / "test" / "crops.json"
    index = json.loads(path.read_text())
    for i, record in enumerate(index["objects"].values()):
        record["class"] = "cat" if i < 2 else "dog"
    path.write_text(json.dumps(index))
    _, folder, _ = run("seigan", "--dataroot", copy)
    classes, rows = figures_of(folder)["per_class"], rows_of(folder)
    assert list(classes) == ["dog", "cat"] and [c["n"] for c in classes.values()] == [5, 2]
    assert classes["cat"]["iou"] == pytest.approx(np.mean([float(row["iou"]) for row in rows[:2]]), abs=1e-5)
    assert rows[0]["class"] == "cat"


def test_classes_written_by_hand_may_be_numbers(run, copy):
    path = copy / "test" / "crops.json"
    index = json.loads(path.read_text())
    for record, name in zip(index["objects"].values(), [0, 0, 0, 1, 1, "dog", None], strict=True):
        record["class"] = name
    path.write_text(json.dumps(index))
    code, folder, _ = run("seigan", "--dataroot", copy)
    counts = {name: c["n"] for name, c in figures_of(folder)["per_class"].items()}
    assert code == 0 and counts == {"0": 3, "1": 2, "dog": 1}
    assert [row["class"] for row in rows_of(folder)] == ["0", "0", "0", "1", "1", "dog", ""]


def test_void_of_crop_masks_is_not_scored(run, copy):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :16], mask[:, 16:] = 255, 128
    Image.fromarray(mask).save(copy / "test" / "masks" / "00000.png")
    _, folder, _ = run("seigan", "--dataroot", copy)
    row = rows_of(folder)[0]
    assert float(row["full_mask"]) == 1 and float(row["tp"]) + float(row["fn"]) == 64 * 16


def test_frechet_distance_names_what_it_depends_on(run, dataroot, tmp_path):
    first = torch.nn.Conv2d(3, 64, 3)  # SqueezeNet's first layer
    torch.save({f"features.0.{k}": v for k, v in first.state_dict().items()}, tmp_path / "first.pth")
    _, folder, printed = run("nocycle", "--frechet_weights", f"squeezenet1_1:{tmp_path / 'first.pth'}", "--no_images")
    figures = figures_of(folder)["frechet"]
    assert figures["warning"].startswith("N = 7 is below 2,048") and figures["warning"] in printed.out
    assert figures["name"] == "Fréchet distance" and figures["n"] == 7 and figures["dimensions"] == 64
    assert set(figures["values"]) == {"z to x", "y_hat to x"} and all(v > 0 for v in figures["values"].values())
    assert "first.pth" in (folder / "index.html").read_text(encoding="utf-8")
    _, folder, _ = run("seigan", "--frechet_weights", f"squeezenet1_1:{tmp_path / 'first.pth'}", "--no_images")
    figures = figures_of(folder)["frechet"]
    values = figures["values"]
    assert set(values) == {"z to x", "y_hat to x", "x_hat to y", "G_inp to y", "G_inp_first to y", "diffusion to y"}
    crops = Crops(dataroot, "test", 32)
    pairs = evaluation.pair_up(crops)
    y = torch.stack([crops.background(other) for other in pairs.values()])
    hole = torch.stack([crops.mask(stem) == 1 for stem in pairs]).float()
    net = image_scores.FeatureNet(f"squeezenet1_1:{tmp_path / 'first.pth'}")
    first = [list(pairs.values()).index(other) for other in dict.fromkeys(pairs.values())]
    assert len(first) == 3  # backgrounds, each counted once
    refilled, real = (net(images[first]).numpy() for images in (image_scores.fill_diffusion(y, hole), y))
    assert values["diffusion to y"] == pytest.approx(image_scores.frechet_distance(refilled, real), rel=1e-4)
    distance, *ends = image_scores.paired_kernel_distance(refilled, real)
    assert figures["kernel"]["diffusion to y"] == pytest.approx(distance, abs=1e-5)
    assert figures["kernel_intervals"]["diffusion to y"] == pytest.approx(ends, abs=1e-5)
    assert figures["kernel"].keys() == values.keys()


# --- errors ---


@pytest.mark.parametrize("options, words", [
    (["--name", "absent"], "no checkpoint at"),
    (["--checkpoint", "best"], "no checkpoint at"),
    (["--dataroot", "nowhere"], "no folder nowhere"),
    (["--split", "validation"], "no folder"),
    (["--gpu", "63"], "--gpu 63"),
    (["--batch_size", "0"], "--batch_size: must be a whole number from 1, got '0'"),
    (["--frechet_weights", "nonsense"], "--frechet_weights"),
])
def test_bad_input_ends_in_one_line(run, options, words):
    code, _, printed = run("seigan", *options)
    assert code == 2 and words in printed.err
    assert "test.py: error: " in printed.err.splitlines()[-1] and "Traceback" not in printed.err


def test_unreadable_image_is_named(run, copy):
    (copy / "test" / "objects" / "00005.png").write_bytes(b"no image")
    code, _, printed = run("seigan", "--dataroot", copy)
    assert code == 2 and "00005.png" in printed.err and printed.err.count("\n") == 1
