"""Any method's masks, scored by test.py with the truth, baselines and files of a model's."""
import csv
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

import test as entry
from data import Crops
from evaluation.evaluate import evaluate
from images import save_png
from running import methods
from running.checkpoint import save_checkpoint


@pytest.fixture
def run(dataroot, tmp_path, capsys):
    """Run test.py: (exit code, the results' folder, what it printed)."""
    def run(name, *options, data=dataroot):
        code = entry.main(["--results_dir", str(tmp_path / "results"), "--gpu", "-1", "--dataroot", str(data),
                           *map(str, options)])
        return code, tmp_path / "results" / name, capsys.readouterr()
    return run


def figures_of(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def rows_of(folder):
    with open(folder / "per_image.csv", newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_a_models_own_masks_score_as_the_model(run, dataroot, tmp_path):
    torch.manual_seed(0)
    model = methods.load("supervised").Model(size=32, ngf=8, ndf=8, n_layers_D=3, seg_blocks=1, unet_downs=3,
                                             head_bias=0.0)
    with torch.no_grad():  # trained masks are steep, where 8 bits make no difference
        for parameter in list(model.parameters())[-2:]:
            parameter *= 20
    os.makedirs(tmp_path / "checkpoints" / "own")
    save_checkpoint(tmp_path / "checkpoints" / "own" / "latest.pt", {
        "method": "supervised", "step": 3, "config": model.config, "networks": model.state(), "averaged": {},
        "options": {"name": "own", "method": "supervised", "size": 32}})
    _, own, _ = run("own", "--name", "own", "--checkpoints_dir", tmp_path / "checkpoints")
    code, folder, printed = run("mask", "--masks", own / "mask")
    assert code == 0 and "mask: masks, files, 7 of 7 images" in printed.out
    for a, b in zip(rows_of(own), rows_of(folder), strict=True):
        for name in ("iou", "full_mask", "box_mask"):
            assert float(a[name]) == pytest.approx(float(b[name]), abs=1e-3), (a["stem"], name)
    a, b = figures_of(own), figures_of(folder)
    assert a["iou"] == pytest.approx(b["iou"], abs=1e-3)
    assert a.keys() == b.keys() and b["method"] == "masks" and b["name"] == "mask" and b["kinds"] == a["kinds"]
    assert b["step"] is None and b["size"] == 64 and b["baselines"].keys() == a["baselines"].keys()
    assert {p.name for p in folder.iterdir()} == {p.name for p in own.iterdir()}
    assert "masks · files · 64 px" in (folder / "index.html").read_text(encoding="utf-8")


@pytest.fixture
def opencv():
    pytest.importorskip("cv2", reason="benchmarks.opencv needs opencv-python-headless")
    from benchmarks import opencv

    return opencv


def test_grabcuts_masks(run, dataroot, tmp_path, opencv):
    opencv.run(["--dataroot", str(dataroot), "--size", "64", "--out", str(tmp_path / "grabcut")])
    code, folder, _ = run("grabcut", "--masks", tmp_path / "grabcut")
    ious = []
    for stem in Crops(dataroot, "test", 64).stems:
        m, t = (np.asarray(Image.open(path)) > 128 for path in
                (tmp_path / "grabcut" / f"{stem}.png", dataroot / "test" / "masks" / f"{stem}.png"))
        ious.append((m & t).sum() / (m | t).sum())
    assert code == 0 and figures_of(folder)["iou"] == pytest.approx(np.mean(ious), abs=1e-6)


def test_opencvs_fills_are_scored_as_test_py_scores(run, dataroot, tmp_path, capsys, opencv):
    """Laplace's equation stands in both tables; and each of OpenCV's fills is what it alone puts into the holes."""
    crops = Crops(dataroot, "test", 64)
    opencv.run(["--dataroot", str(dataroot), "--size", "64", "--out", str(tmp_path / "grabcut")])
    printed = {line[:24].strip(): line[24:].split() for line in capsys.readouterr().out.splitlines()[-3:]}
    torch.manual_seed(0)
    model = methods.load("seigan").Model(size=64, ngf=8, ndf=8, n_layers_D=3, seg_blocks=1, unet_downs=3).eval()
    rows = [record.row for record in evaluate(model, crops)]
    for name, digits in {"psnr": 2, "ssim": 3, "mae": 4}.items():
        theirs = float(printed["Laplace's equation"][["psnr", "ssim", "mae"].index(name)])
        assert theirs == pytest.approx(np.mean([row[f"diffusion_{name}"] for row in rows]), abs=0.6 * 10**-digits)
    assert len({tuple(figures) for figures in printed.values()}) == 3

    y, hole = torch.rand((1, 3, 64, 64)) * 2 - 1, torch.zeros((1, 1, 64, 64))
    hole[..., 20:40, 10:30] = 1
    y[..., 8:52, :] = 0.2  # one colour around the hole: both fill it with that
    for method in (opencv.cv2.INPAINT_TELEA, opencv.cv2.INPAINT_NS):
        filled = opencv.inpaint(torch.where(hole == 1, -1.0, y), hole, method)
        assert torch.equal(filled * (1 - hole), y * (1 - hole))
        assert (filled - 0.2).abs()[hole.expand_as(y) == 1].max() < 4 / 127.5  # it rounds, pixel after pixel


# --- masks on the source's pixels ---


@pytest.fixture
def source(tmp_path):
    """A set of two crops of 16 px with masks_source: one inside its photograph, one that leaves it on the left."""
    test = tmp_path / "source" / "test"
    windows = {"a": [10.3, 5.6, 50.4, 40.2], "b": [-7.5, 20.0, 30.0, 25.0]}
    sizes = {"a": (51, 41), "b": (23, 25)}  # of the whole pixels that they touch: x 10-60, y 5-45; x 0-22, y 20-44
    truth = {}
    for kind in ("objects", "masks_source"):
        os.makedirs(test / kind)
    for stem, (width, height) in sizes.items():
        Image.new("RGB", (16, 16), (90, 120, 60)).save(test / "objects" / f"{stem}.png")
        truth[stem] = np.zeros((height, width), np.uint8)
        truth[stem][4:20, 3:18] = 255
        save_png(test / "masks_source" / f"{stem}.png", truth[stem])
    objects = {stem: {"box": [2, 2, 12, 12], "origin": 0, "source": f"{stem}.jpg", "source_size": [100, 80],
                      "source_window": window} for stem, window in windows.items()}
    (test / "crops.json").write_text(json.dumps(
        {"rules": [{"fit": "warp", "object_size": 12, "crop_size": 16}], "objects": objects}))
    return tmp_path / "source", truth


def test_masks_of_the_sources_size_lie_on_its_pixels(run, source, tmp_path):
    data, truth = source
    os.makedirs(tmp_path / "sam")
    for stem, mask in truth.items():
        mask = mask.copy()
        mask[4:20, 18:21] = 255  # three columns of sixteen pixels too many: 240 of 288
        save_png(tmp_path / "sam" / f"{stem}.png", mask)
    code, folder, printed = run("sam", "--masks", tmp_path / "sam", data=data)
    assert code == 0, printed.err
    assert [float(row["iou"]) for row in rows_of(folder)] == pytest.approx([240 / 288] * 2, abs=1e-6)
    assert figures_of(folder)["resolution"] == "source"
    # over the crop: column (i + ½) / 16 of a window 30 px wide that begins at -7.5, so object from 3 + 7.5 px on
    shown = np.asarray(Image.open(folder / "mask" / "b.png")) > 127
    columns = [i for i in range(16) if 3 <= (i + 0.5) / 16 * 30 - 7.5 < 21]
    assert np.flatnonzero(shown.any(0)).tolist() == columns


def test_masks_of_one_square_size_are_stretched(run, source, tmp_path):
    data, truth = source
    os.makedirs(tmp_path / "net")
    for stem in truth:
        mask = np.zeros((25, 25), np.uint8)
        mask[:, 12:] = 255  # as high as b's own, and yet over the crop
        save_png(tmp_path / "net" / f"{stem}.png", mask)
    _, folder, _ = run("net", "--masks", tmp_path / "net", "--name", "other", data=data)
    folder = folder.with_name("other")
    centres = np.arange(23) + 0.5 + 7.5  # of b's columns, in its window: a mask's column is 1.2 px wide
    inside = centres / 1.2 >= 12
    expected = 16 * inside[3:18].sum() / (inside.sum() * 25 + 16 * 15 - 16 * inside[3:18].sum())
    assert float(rows_of(folder)[1]["iou"]) == pytest.approx(expected, abs=1e-6)


# --- what is refused ---


def a_void(folder):
    save_png(folder / "00003.png", np.full((64, 64), 128, np.uint8))


def a_colour(folder):
    Image.new("RGB", (64, 64), "red").save(folder / "00003.png")


def ones(folder):
    save_png(folder / "00003.png", np.eye(64, dtype=np.uint8))


def a_photographs_size(folder):
    save_png(folder / "00003.png", np.zeros((48, 64), np.uint8))


def a_missing(folder):
    os.remove(folder / "00003.png")
    os.remove(folder / "00005.png")


def unreadable(folder):
    (folder / "00003.png").write_bytes(b"no image")


@pytest.mark.parametrize("spoil, options, words", [
    (a_void, [], "00003.png holds 128, which is void"),
    (a_colour, [], "a mask must be grey"),
    (ones, [], "its brightest value is 1"),
    (a_photographs_size, [], "has 64 x 48 pixels: it must be square as its crop, or 64 x 64 as its true mask"),
    (a_missing, [], "has no mask of 2 of the 7 objects"),
    (unreadable, [], "00003.png"),
    (None, ["--masks", "nowhere"], "no folder nowhere"),
    (None, ["--weights", "net.pt"], "--masks and --weights"),
    (None, ["--frechet_weights", "vgg19"], "--masks and --frechet_weights"),
    (None, ["--dataroot", ""], "needs --dataroot"),
])
def test_bad_masks_are_one_line(run, tmp_path, spoil, options, words):
    os.makedirs(tmp_path / "made")
    for i in range(7):
        save_png(tmp_path / "made" / f"{i:05d}.png", np.zeros((64, 64), np.uint8))
    if spoil:
        spoil(tmp_path / "made")
    code, _, printed = run("made", "--masks", tmp_path / "made", *options)
    assert code == 2 and words in printed.err and printed.err.count("\n") == 1


def test_an_empty_mask_is_one(run, dataroot, tmp_path):
    os.makedirs(tmp_path / "faint")
    for stem in Crops(dataroot, "test", 64).stems:
        save_png(tmp_path / "faint" / f"{stem}.png", np.full((64, 64), 60, np.uint8))
    code, folder, _ = run("faint", "--masks", tmp_path / "faint")
    assert code == 0 and figures_of(folder)["iou"] == 0 and figures_of(folder)["mask_area"] == 0
