"""`prepare.py coco` and `check` as users type them: from images and boxes to a folder of crops, and its faults.

Long, since all sections cut the source that the helpers at the top write.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import prepare
from crops import build
from crops import check as inspection
from crops import index as dataroot
from crops.rules import Rules
from data import Crops
from evaluation import evaluate
from images import UserError
from running.options import make_parser

SMALL = ["--crop_size", "32", "--object_size", "16", "--min_side", "8", "--num_workers", "0"]


def run(*words):
    return prepare.run([str(word) for word in words])


def index_of(root, split="train"):
    return dataroot.read_index(root, split)


def files_of(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(Path(root).rglob("*.png"))
    }


def write_source(folder, n=6, seed=0, first=0, boxes_each=2, lefts=(30,)):
    """n photographs, 200 x 150, with coloured squares on noise, and their COCO file; every 4th has no box. The first
    box of each is at one of `lefts`."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(first, first + n):
        pixels = rng.integers(60, 120, (150, 200, 3), dtype=np.uint8)
        images.append({"id": i, "file_name": f"{i:03}.png", "width": 200, "height": 150})
        for k in range(boxes_each if i % 4 else 0):
            x, y, w, h = lefts[i % len(lefts)] + 90 * k, int(rng.integers(30, 80)), *rng.integers(20, 40, 2).tolist()
            pixels[y : y + h, x : x + w] = (255, 40 * k, 0)
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {
                    "id": 10 * i + k,
                    "image_id": i,
                    "category_id": k + 1,
                    "bbox": [x, y, w, h],
                    "iscrowd": 0,
                    "segmentation": [polygon],
                }
            )
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "orange"}]
    path = folder / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "images")


def coco(source, out, *more):
    return run("coco", "--images", source.parent, "--annotations", source, "--out", out, *SMALL, *more)


# --- what comes out ---


def test_coco_command_writes_the_layout(source, tmp_path, capsys):
    out = tmp_path / "out"
    coco(source, out)
    text = capsys.readouterr().out
    index = index_of(out)
    assert (
        len(index["objects"]) == 8 and len(index["backgrounds"]) == 16
    )  # 4 photographs of 6 with two boxes each
    assert "objects (X)      8, 8 with a mask" in text and "16 of 16 wanted" in text
    assert index["classes"] == {"orange": {"objects": 4}, "red": {"objects": 4}} and index["format"] == 1
    assert index["counts"]["boxes"] == 8 and index["counts"]["objects"] == 8 and index["counts"]["masks"] == 8
    for stem, crop in index["objects"].items():
        image = Image.open(out / "train/objects" / f"{stem}.png")
        mask = np.asarray(Image.open(out / "train/masks" / f"{stem}.png"))
        assert image.mode == "RGB" and image.size == (32, 32) == mask.shape
        assert crop["box"] == pytest.approx([8, 8, 16, 16]) and crop["source_size"] == [200, 150]
        x, y, w, h = crop["source_box"]
        assert crop["source_window"] == pytest.approx([x - w / 2, y - h / 2, 2 * w, 2 * h])
        assert (mask[8:24, 8:24] == 255).mean() > 0.9 and (mask == 255).sum() <= 18 * 18
        red = np.asarray(image)[..., 0] > 200
        assert (red == (mask == 255)).mean() > 0.97
        full = np.asarray(Image.open(out / "train/masks_source" / f"{stem}.png"))
        assert full.shape == (
            np.ceil(y + 1.5 * h) - np.floor(y - h / 2),
            np.ceil(x + 1.5 * w) - np.floor(x - w / 2),
        )
        assert (full == 255).sum() == w * h
    for stem in index["backgrounds"]:
        assert np.asarray(Image.open(out / "train/backgrounds" / f"{stem}.png"))[..., 0].max() < 200
    assert {path.name for path in (out / "train").iterdir()} == {
        *dataroot.FOLDERS,
        "crops.json",
        "sources.json",
        "sheet.jpg",
    }
    assert run("check", out, "--num_workers", 0) is None


def test_dropped_boxes_are_counted_by_rule(source, tmp_path, capsys):
    out = tmp_path / "out"
    coco(source, out, "--classes", "red", "--min_side", "30")
    counts = index_of(out)["counts"]
    assert counts["dropped"]["class"] == 4 and sum(counts["dropped"].values()) + counts["objects"] == 8
    text = capsys.readouterr().out
    assert "class 4" in text and "more than half" not in text
    coco(source, out, "--min_side", "33")
    assert "more than half   dropped by min_side: a lower --min_side takes more" in capsys.readouterr().out


def test_crops_do_not_depend_on_processes_or_on_the_run(source, tmp_path):
    coco(source, tmp_path / "a")
    coco(source, tmp_path / "b", "--num_workers", "2")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    a, b = index_of(tmp_path / "a"), index_of(tmp_path / "b")
    assert a["objects"] == b["objects"] and a["backgrounds"] == b["backgrounds"]
    coco(source, tmp_path / "c", "--seed", "1")
    c = index_of(tmp_path / "c")
    assert c["objects"] == a["objects"] and c["backgrounds"] != a["backgrounds"]


def test_stems_are_unique_and_safe():
    taken = set()
    stems = [
        dataroot.make_stem(f, i, taken)
        for f, i in [
            ("a/b.jpg", 1),
            ("c/b.jpg", 1),
            ("A/B.jpg", 1),
            ("..", "x"),
            ("a b/ü?.png", "*"),
            ("x" * 300 + ".jpg", 2),
            (".h", ""),
        ]
    ]
    assert len({s.lower() for s in stems}) == len(stems) and stems[0] == "b_1" and stems[1].startswith("b_1_")
    assert all(len(s) <= 120 and not s.startswith(".") and set(s).isdisjoint("/\\:*? ü") for s in stems)


# --- crops that leave the photograph ---

WIDE = ["--crop_size", "64", "--outside", "reflect"]  # windows of four times the box: most leave the photograph


@pytest.fixture
def edgy(tmp_path):
    return write_source(tmp_path / "edgy", 12, boxes_each=1, lefts=(30, 150))


def test_reflected_crops_are_void_beyond_the_photograph(edgy, tmp_path, capsys):
    out = tmp_path / "out"
    coco(edgy, out, *WIDE, "--max_outside", "0.6")
    text, index = capsys.readouterr().out, index_of(out)
    assert len(index["objects"]) == 9 and index["counts"]["dropped"] == {} and index["rules"][0]["outside"] == "reflect"
    assert index["rules"][0]["max_outside"] == 0.6 and "reflected" in text
    shares = []
    for stem, crop in index["objects"].items():
        x0, y0, w, h = crop["source_window"]
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x0 + w, 200), min(y0 + h, 150)
        share = 1 - (right - left) * (bottom - top) / (w * h)
        assert crop.get("outside", 0) == pytest.approx(share, abs=1e-9)
        assert crop["box"] == pytest.approx([24, 24, 16, 16])
        mask = np.asarray(Image.open(out / "train/masks" / f"{stem}.png"))
        u, v = x0 + (np.arange(64) + 0.5) * w / 64, y0 + (np.arange(64)[:, None] + 0.5) * h / 64
        void = (u < 0) | (u > 200) | (v < 0) | (v > 150)
        assert ((mask == 128) != void).sum() <= 4 and (mask[24:40, 24:40] == 255).mean() > 0.9  # 4: corners
        full = np.asarray(Image.open(out / "train/masks_source" / f"{stem}.png"))
        assert full.shape == (np.ceil(bottom) - np.floor(top), np.ceil(right) - np.floor(left))
        assert set(np.unique(full)) == {0, 255}
        shares.append(share)
    assert sum(share > 0.02 for share in shares) >= 5
    assert f"{sum(share > 0 for share in shares)} objects' crops leave the image" in text
    assert all("outside" not in crop for crop in index["backgrounds"].values())
    assert run("check", out, "--num_workers", 0) is None and "leave their image" in capsys.readouterr().out
    coco(edgy, out, *WIDE, "--max_outside", "0.6")
    assert "complete already" in capsys.readouterr().out


def test_the_share_beyond_has_a_limit(edgy, tmp_path):
    coco(edgy, tmp_path / "a", *WIDE, "--max_outside", "1")
    limit = sorted(crop.get("outside", 0) for crop in index_of(tmp_path / "a")["objects"].values())[4]
    coco(edgy, tmp_path / "b", *WIDE, "--max_outside", str(limit))
    index = index_of(tmp_path / "b")
    assert len(index["objects"]) == 5 and index["counts"]["dropped"] == {"max_outside": 4}
    assert max(crop.get("outside", 0) for crop in index["objects"].values()) == limit > 0


@pytest.mark.parametrize("change", [{"outside": "drop"}, {"max_outside": 0.01}])
def test_check_reports_windows_that_leave_against_their_rules(edgy, tmp_path, capsys, change):
    coco(edgy, tmp_path / "out", *WIDE)
    damage_index(tmp_path / "out", lambda index: index["rules"][0].update(change))
    with pytest.raises(UserError, match="problems"):
        run("check", tmp_path / "out", "--num_workers", 0)
    leaving = [stem for stem, crop in index_of(tmp_path / "out")["objects"].items() if crop.get("outside", 0) > 0.01]
    text = capsys.readouterr().out
    assert leaving and all(f"{stem}.png: its window leaves the image" in text for stem in leaving)


def test_a_background_may_never_leave_its_photograph(edgy, tmp_path):
    coco(edgy, tmp_path / "out", *WIDE)
    stem = next(iter(index_of(tmp_path / "out")["backgrounds"]))
    damage_index(tmp_path / "out", lambda i: i["backgrounds"][stem].update(source_window=[-3, 0, 30, 30]))
    assert any(stem in fault for fault in inspection.check_crops(tmp_path / "out")[0])


def test_other_rules_for_what_leaves_cut_anew(edgy, tmp_path, capsys):
    out = tmp_path / "out"
    coco(edgy, out, "--crop_size", "64", "--object_size", "60", "--outside", "reflect")  # none leaves
    coco(edgy, out, "--crop_size", "64", "--object_size", "60")
    assert "complete already" not in capsys.readouterr().out and index_of(out)["rules"][0]["outside"] == "drop"


def test_figures_count_no_pixel_beyond_the_photograph(edgy, tmp_path):
    """At the source and, without masks_source/, at the crop: whatever the mask says there, the figures are the same."""
    coco(edgy, tmp_path / "out", *WIDE)
    rng, leaving = np.random.default_rng(0), 0
    for part in ("source", "crop"):
        if part == "crop":
            shutil.rmtree(tmp_path / "out/train/masks_source")
        crops = Crops(tmp_path / "out", "train", 64)
        for stem, record in crops.records.items():
            x0, y0, w, h = record["source_window"]
            u, v = x0 + (np.arange(64) + 0.5) * w / 64, y0 + (np.arange(64)[:, None] + 0.5) * h / 64
            beyond = (u < -w / 64) | (u > 200 + w / 64) | (v < -h / 64) | (v > 150 + h / 64)  # bilinear: the next pixel
            mask = rng.random((64, 64), dtype=np.float32)
            masks = [np.where(beyond, value, mask).astype(np.float32) for value in (0, 1)]
            truth = evaluate.read_truth(crops, stem)
            rows = [evaluate.score_mask(crops, stem, truth, {"mask": m, "refined": m, "crf": m}, None) for m in masks]
            assert rows[0] == pytest.approx(rows[1], nan_ok=True)
            leaving += beyond.any()
            if part == "source":
                pixels = (np.arange(200) + 0.5 >= x0) & (np.arange(200) + 0.5 <= x0 + w)
                pixels = pixels & ((np.arange(150) + 0.5 >= y0) & (np.arange(150) + 0.5 <= y0 + h))[:, None]
                assert sum(rows[0][name] for name in evaluate.COUNTS) == pixels.sum()
    assert leaving >= 8


def test_the_sheet_shows_windows_that_leave(edgy, tmp_path):
    coco(edgy, tmp_path / "out", *WIDE)
    index = index_of(tmp_path / "out")
    crop = max(index["objects"].values(), key=lambda crop: crop.get("outside", 0))
    entry = next(image for image in index["images"] if image["file"] == crop["source"])
    sheet = np.asarray(inspection.draw_source(entry, crop, [], (400, 300)))
    yellow = (sheet == (255, 255, 0)).all(-1)
    assert yellow.any(0).sum() > 3 and (yellow.sum(0) > 30).sum() >= 2 and (yellow.sum(1) > 30).sum() >= 2  # four sides


# --- several sources, splits ---


def test_sources_are_appended_and_a_source_again_is_replaced(tmp_path, capsys):
    out = tmp_path / "out"
    first, second = (
        write_source(tmp_path / "one"),
        write_source(tmp_path / "two", seed=1),
    )  # the same file names
    coco(first, out)
    before = files_of(out)
    coco(second, out)
    index = index_of(out)
    assert len(index["objects"]) == 16 and len(index["rules"]) == 2 and index["counts"]["objects"] == 16
    assert all(files_of(out)[name] == data for name, data in before.items())
    assert "replaces" not in capsys.readouterr().out
    coco(second, out, "--classes", "red", "--y_per_x", "1")
    assert "train: replaces the 8 objects and 16 backgrounds that the same annot" in capsys.readouterr().out
    index = index_of(out)
    assert (
        len(index["objects"]) == 12 and len(index["backgrounds"]) == 20 and index["counts"]["objects"] == 12
    )
    assert run("check", out, "--num_workers", 0) is None  # also: no file is left that is not listed
    with pytest.raises(UserError, match="one size"):
        coco(second, out, "--crop_size", "64")


def test_a_finished_source_is_not_cut_again(source, tmp_path, monkeypatch, capsys):
    coco(source, tmp_path / "out")
    monkeypatch.setattr(build, "cut_job", None)
    coco(source, tmp_path / "out")
    assert "complete already" in capsys.readouterr().out


def test_an_image_that_failed_is_tried_again(source, tmp_path):
    path = source.parent / "001.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:300])
    coco(source, tmp_path / "out")
    assert len(index_of(tmp_path / "out")["objects"]) == 6
    path.write_bytes(whole)
    coco(source, tmp_path / "out")
    assert len(index_of(tmp_path / "out")["objects"]) == 8


def test_splits_by_name_stay_when_images_are_added(tmp_path):
    small, large = (
        write_source(tmp_path / "s", 30, boxes_each=1),
        write_source(tmp_path / "l", 60, boxes_each=1),
    )
    for name, path in (("a", small), ("b", large)):
        coco(path, tmp_path / name, "--split", "auto", "--test_fraction", "0.3")
    split_of = [
        {
            c["source"]: split
            for split in ("train", "test")
            for kind in ("objects", "backgrounds")
            for c in index_of(tmp_path / name, split)[kind].values()
        }
        for name in "ab"
    ]
    both = split_of[0].keys() & split_of[1].keys()
    assert len(both) > 20 and all(split_of[0][f] == split_of[1][f] for f in both)
    share = np.mean([build.auto_split(f"{i}.jpg", 0.3) == "test" for i in range(4000)])
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)


def test_auto_makes_val_and_leaves_test_as_it_was(tmp_path, capsys):
    path, plain = write_source(tmp_path / "s", 60, boxes_each=1), tmp_path / "plain"
    write_source(plain, 60, seed=3, boxes_each=0)
    coco(path, tmp_path / "a", "--split", "auto", "--test_fraction", "0.2", "--val_fraction", "0")
    coco(path, tmp_path / "b", "--split", "auto", "--test_fraction", "0.2", "--val_fraction", "0.3", "--y_from", plain)
    assert not (tmp_path / "a/val").exists()  # nothing falls into it
    tested = [{c["source"] for c in index_of(tmp_path / name, "test")["objects"].values()} for name in "ab"]
    assert tested[0] == tested[1] != set()
    used = {split: {image["path"] for image in index_of(tmp_path / "b", split)["images"]} for split in dataroot.SPLITS}
    assert all(used.values()) and sum(map(len, used.values())) == len(set().union(*used.values()))
    assert all(len(index_of(tmp_path / "b", split)["backgrounds"]) > 2 for split in dataroot.SPLITS)
    share = np.mean([build.auto_split(f"{i}.jpg", 0.1, 0.3) == "val" for i in range(4000)])
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)
    coco(path, tmp_path / "a", "--split", "auto", "--test_fraction", "0.2", "--val_fraction", "0.3")
    assert run("check", tmp_path / "a", "--num_workers", "0") is None  # what is val's now has left train
    assert "image_in_other_split" not in capsys.readouterr().out and index_of(tmp_path / "a", "val")["objects"]


def test_a_second_source_may_leave_a_split_without_crops(tmp_path, capsys):
    for path in (write_source(tmp_path / "s", 60, boxes_each=1), write_source(tmp_path / "t", 3, seed=5, boxes_each=1)):
        coco(path, tmp_path / "out", "--split", "auto", "--val_fraction", "0.2", "--test_fraction", "0.2")
    counts = [len(index_of(tmp_path / "out", split)["rules"]) for split in dataroot.SPLITS]
    assert counts == [2, 2, 2] and "Traceback" not in capsys.readouterr().err


def test_backgrounds_of_annotated_photographs_of_other_splits_keep_off_their_boxes(tmp_path):
    """A folder of backgrounds that holds the photographs themselves: hashed by another name, into other splits."""
    path = write_source(tmp_path / "s", 40)
    coco(path, tmp_path / "out", "--split", "auto", "--test_fraction", "0.3", "--y_from", path.parent)
    for split in dataroot.SPLITS:
        for stem in index_of(tmp_path / "out", split)["backgrounds"]:
            pixels = np.asarray(Image.open(tmp_path / "out" / split / "backgrounds" / f"{stem}.png"))
            assert pixels[..., 0].max() < 200


def test_an_image_of_test_never_serves_train(source, tmp_path, capsys):
    out = tmp_path / "out"
    coco(source, out, "--split", "test")
    assert "image_in_other_split" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"train: no image is left for it \(image_in_other_split 6, first: test uses"):
        coco(source, out, "--split", "train")
    more = write_source(source.parent, 12)  # the same six, and six more
    coco(more, out, "--split", "train")
    assert "image_in_other_split 6" in capsys.readouterr().out
    used = [
        {c["source"] for k in ("objects", "backgrounds") for c in index_of(out, s)[k].values()}
        for s in ("train", "test")
    ]
    assert not used[0] & used[1]


def test_near_duplicates_across_the_split_are_reported(tmp_path, capsys):
    rng = np.random.default_rng(5)
    for name, seed in (("train", 0), ("test", 1)):
        write_source(tmp_path / name, 5, seed)
    big = np.kron(rng.integers(0, 255, (15, 20, 3)), np.ones((10, 10, 1))).astype(np.uint8)
    Image.fromarray(big).save(tmp_path / "train/001.png")
    Image.fromarray(np.clip(big.astype(int) + 6, 0, 255).astype(np.uint8)).save(tmp_path / "test/002.png")
    for name in ("train", "test"):
        coco(tmp_path / name / "boxes.json", tmp_path / "out", "--split", name)
    assert "near-duplicates  1 pairs with train" in capsys.readouterr().out
    run("check", tmp_path / "out", "--num_workers", 0)
    assert "train 001.png  test 002.png" in capsys.readouterr().out


def test_a_folder_named_as_the_split_is_all_for_it(source, tmp_path):
    used = {}
    for name in ("test", "plain"):
        write_source(tmp_path / name, 12, seed=3, boxes_each=0)
        coco(source, tmp_path / f"of_{name}", "--split", "test", "--y_from", tmp_path / name, "--y_per_image", "1",
             "--y_per_x", "9")
        used[name] = {c["source"] for c in index_of(tmp_path / f"of_{name}", "test")["backgrounds"].values()}
    assert len(used["test"]) == 12 and 0 < len(used["plain"]) < 9
    for split, divided in (("auto", True), ("train", False)):  # auto divides any folder, and says so
        target = SimpleNamespace(rules=SimpleNamespace(y_from="y/train"), split="train")
        target.output = SimpleNamespace(split=split)
        assert ("divided by their names" in build.more_room(target, ["a.jpg"])) == divided


@pytest.mark.parametrize("y_from", ["same", "any", "DIR"])
def test_where_backgrounds_come_from(source, tmp_path, y_from):
    plain = tmp_path / "plain"
    plain.mkdir()
    for i in range(12):
        Image.new("RGB", (120, 120), (0, 20 * i, 255)).save(plain / f"{i}.jpg")
    out = tmp_path / "out"
    coco(source, out, "--y_from", plain if y_from == "DIR" else y_from, "--test_fraction", "0.4")
    index = index_of(out)
    objects = {c["source"] for c in index["objects"].values()}
    backgrounds = {c["source"] for c in index["backgrounds"].values()}
    assert len(index["backgrounds"]) == 16
    if y_from == "same":
        assert backgrounds <= objects
    elif y_from == "any":
        assert backgrounds - objects == {"000.png", "004.png"}
    else:
        assert all(f.startswith("plain/") for f in backgrounds)
        other = write_source(tmp_path / "other", seed=1)
        coco(other, out, "--y_from", plain, "--split", "test", "--test_fraction", "0.4")
        tested = {c["source"] for c in index_of(out, "test")["backgrounds"].values()}
        coco(source, out, "--y_from", plain, "--test_fraction", "0.4")
        trained = {c["source"] for c in index_of(out)["backgrounds"].values()}
        assert tested and trained and not tested & trained


# --- interruptions ---


@pytest.mark.parametrize("damage", ["none", "cut", "gone", "journal", "reflect"])
def test_an_interrupted_run_continues_to_the_same_files(source, tmp_path, monkeypatch, damage, capsys):
    words = ["--outside", "reflect", "--object_size", "9"] if damage == "reflect" else []
    coco(source, tmp_path / "whole", *words)
    out, calls, cut_job = tmp_path / "out", [], build.cut_job

    def failing(job, **more):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(job.photo.file)
        return cut_job(job, **more)

    monkeypatch.setattr(build, "cut_job", failing)
    with pytest.raises(KeyboardInterrupt):
        coco(source, out, *words)
    assert not (out / "train/crops.json").exists() and (out / "train" / dataroot.JOURNAL).exists()
    with pytest.raises(UserError, match="problems"):
        run("check", out, "--num_workers", 0)
    assert "was interrupted, run the same command again" in capsys.readouterr().out
    victim = sorted((out / "train/backgrounds").iterdir())[0]
    if damage == "cut":
        victim.write_bytes(victim.read_bytes()[:-30])
    if damage == "gone":
        victim.unlink()
    if damage == "journal":
        with open(out / "train" / dataroot.JOURNAL, "a") as journal:
            journal.write('{"file": "005.p')
    again = []
    monkeypatch.setattr(
        build, "cut_job", lambda job, **more: (again.append(job.photo.file), cut_job(job, **more))[1]
    )
    coco(source, out, *words)
    assert files_of(out) == files_of(tmp_path / "whole") and not (out / "train" / dataroot.JOURNAL).exists()
    assert any("outside" in crop for crop in index_of(out)["objects"].values()) == (damage == "reflect")
    assert len(set(again) & set(calls)) == (damage in ("cut", "gone"))
    assert index_of(out)["objects"] == index_of(tmp_path / "whole")["objects"]


def test_other_rules_after_an_interruption_leave_nothing_behind(source, tmp_path, monkeypatch):
    out, cut_job, calls = tmp_path / "out", build.cut_job, []

    def failing(job, **more):
        calls.append(job)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return cut_job(job, **more)

    monkeypatch.setattr(build, "cut_job", failing)
    with pytest.raises(KeyboardInterrupt):
        coco(source, out)
    monkeypatch.setattr(build, "cut_job", cut_job)
    coco(source, out, "--classes", "orange", "--y_per_x", "0.5")
    assert len(files_of(out)) == 4 * 3 + 2
    assert run("check", out, "--num_workers", 0) is None


def test_a_killed_process_leaves_a_run_that_continues(tmp_path):
    path = write_source(tmp_path / "images", 150)
    main = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.argv[1:2] = []\nimport prepare; prepare.run(sys.argv[1:])"
    )
    words = ["coco", "--images", path.parent, "--annotations", path, "--out", tmp_path / "out", *SMALL]
    process = subprocess.Popen(
        [sys.executable, "-c", main, str(Path(prepare.__file__).parent), *map(str, words)]
    )
    journal = tmp_path / "out/train" / dataroot.JOURNAL
    for _ in range(2000):
        if journal.exists() and journal.read_bytes().count(b"\n") > 5 or process.poll() is not None:
            break
        time.sleep(0.002)
    process.kill()
    process.wait()
    run(*words)
    coco(path, tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_processes_end_with_a_killed_main_one():
    """They hold its standard output, which is at its end when the last of them is gone."""
    main = ("import sys, time; sys.path.insert(0, sys.argv[1]); from crops import cutting\n"
            "results = cutting.in_parallel(time.sleep, [0.001] * 500, 2, 1)\n"
            "print(next(results), flush=True); time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", main, str(Path(prepare.__file__).parent)],
                               stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout.readline() == b"None\n"
        process.kill()
        assert process.communicate(timeout=30)[0] == b""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_process_that_dies_is_one_clear_line(source, tmp_path, monkeypatch):
    cut_job = build.cut_job
    monkeypatch.setattr(build, "cut_job", die)
    with pytest.raises(OSError, match="run the same command again"):
        coco(source, tmp_path / "out", "--num_workers", "2")
    monkeypatch.setattr(build, "cut_job", cut_job)
    coco(source, tmp_path / "out")
    assert run("check", tmp_path / "out", "--num_workers", 0) is None


def die(*args, **more):
    os._exit(1)


# --- hostile data and bad input ---


def test_hostile_boxes_never_give_a_wrong_crop(source, tmp_path, capsys):
    data = json.loads(source.read_text())
    good = next(a for a in data["annotations"] if a["image_id"] == 5)
    bad = [
        dict(good, id=900 + i, **change)
        for i, change in enumerate(
            [
                {"image_id": 1, "bbox": [float("nan"), 1, 2, 3]},
                {"image_id": 2, "segmentation": [[1e300] * 6], "bbox": [30, 2, 9, 9]},
                {"image_id": 77},
                {"category_id": 9, "bbox": [0, 0, 1, 1]},
                {"bbox": [1, 2, -3, 4], "image_id": 0},
                {"bbox": [150, 100, 40, 0], "image_id": 3},
                {"bbox": [-50, -50, 60, 60], "image_id": 3},
            ]
        )
    ]
    for a in data["annotations"]:
        if a["id"] == 20:
            a["segmentation"] = {"size": [150, 200], "counts": [5, 5]}
        if a["id"] == 50:
            a["segmentation"] = [[1, 1, 9, 1, 9, 9, 1, 9]]  # a mask somewhere else
        if a["id"] == 51:  # a mask that lies beside its box for the most part
            x, y, w, h = a["bbox"]
            a["segmentation"] = [[x - w / 2, y, x + 4, y, x + 4, y + h, x - w / 2, y + h]]
    data["annotations"] += bad
    data["images"].append({"id": 50, "file_name": "lost.png", "width": 200, "height": 150})
    source.write_text(json.dumps(data))
    Image.new("RGB", (10, 10)).save(source.parent / "003.png")  # not the size that its annotation says
    (source.parent / "004.png").write_bytes((source.parent / "004.png").read_bytes()[:300])
    coco(source, tmp_path / "out")
    text = capsys.readouterr().out
    index = index_of(tmp_path / "out")
    assert {c["source"] for c in index["objects"].values()} == {"002.png", "005.png"}
    skipped = index["counts"]["skipped"]
    assert skipped == {
        "bad_box": 2,
        "unknown_image": 1,
        "unknown_class": 1,
        "image_missing": 1,
        "image_unreadable": 2,
        "bad_mask": 3,
    }
    assert all(f"{reason} {n} (first: " in text for reason, n in skipped.items())
    assert index["counts"]["dropped"]["unplaced"] == 2
    for stem in ("002_20", "005_50", "005_51"):
        assert stem in index["objects"] and not (tmp_path / "out/train/masks" / f"{stem}.png").exists()
    assert run("check", tmp_path / "out", "--num_workers", 0) is None


@pytest.mark.parametrize(
    "words,message",
    [
        (["--object_size", "64"], "--object_size must be at most --crop_size 32, got 64"),
        (["--classes", "dgo"], "none of them is annotated; there are orange, red"),
        (["--classes", "red", "--exclude", "red"], "both name 'red'"),
        (["--y_from", "nowhere"], "same, any or a folder"),
        (["--images", "nowhere"], "none of the 6 annotated images is in nowhere (first: 000.png)"),
        (["--annotations", "nowhere.json"], "no annotation file nowhere.json"),
    ],
)
def test_bad_input_is_one_clear_line(source, tmp_path, words, message):
    with pytest.raises((UserError, OSError)) as error:
        coco(source, tmp_path / "out", *words)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        ["--crop_size", "0"],
        ["--max_fraction", "2"],
        ["--min_aspect", "nan"],
        ["--fit", "wrap"],
        ["--y_per_image", "1.5"],
        ["--split", "other"],
        ["--preset", "cats"],
        ["--cro", "64"],
    ],
)
def test_bad_values_are_refused_by_the_parser(source, tmp_path, words, capsys):
    with pytest.raises(SystemExit):
        coco(source, tmp_path / "out", *words)
    assert words[0] in capsys.readouterr().err


def test_a_damaged_index_is_one_clear_line(source, tmp_path):
    (tmp_path / "out/train").mkdir(parents=True)
    for text in ("{", "[]", '{"format": 9}'):
        (tmp_path / "out/train/crops.json").write_text(text)
        with pytest.raises(UserError, match="prepare the data again"):
            coco(source, tmp_path / "out")


# --- too few ---


def command(capsys, *words):
    """(exit code, standard output, standard error) of prepare.py."""
    code = prepare.main([str(word) for word in words])
    return code, *capsys.readouterr()


def words_of(source, out, *more):
    return "coco", "--images", source.parent, "--annotations", source, "--out", out, *SMALL, *more


@pytest.mark.parametrize("words, rule, flags", [
    (["--max_fraction", "0.1"], "max_fraction", "--max_fraction 1"),
    (["--min_aspect", "0.99"], "min_aspect", "--min_aspect 0"),
    (["--object_size", "5"], "outside", "--outside reflect"),
    (["--object_size", "5", "--max_fraction", "0.1"], "max_fraction", "--max_fraction 1 --outside reflect"),
])
def test_the_rule_that_drops_all_is_named_with_the_flags_that_help(edgy, tmp_path, capsys, words, rule, flags):
    code, out, err = command(capsys, *words_of(edgy, tmp_path / "out", *words))
    assert (code, out) == (2, "") and err.count("\n") == 1 and not (tmp_path / "out").exists()
    assert f"train: none of the 9 boxes becomes an object, {rule} alone drops " in err
    coco(edgy, tmp_path / "out", *words, *flags.split(), "--y_from", "same", "--y_per_x", "0")
    found = index_of(tmp_path / "out")["objects"]
    assert len(found) > 3 and f"{flags} would give {len(found)} objects" in err


def test_a_rule_without_such_a_flag_is_explained(edgy, tmp_path, capsys):
    code, _, err = command(capsys, *words_of(edgy, tmp_path / "out", "--min_side", "70"))
    assert code == 2 and "min_side alone drops 9: a lower --min_side takes more" in err
    words = words_of(edgy, tmp_path / "out", "--max_fraction", "0.1", "--object_size", "4", "--max_outside", "0.01")
    code, _, err = command(capsys, *words)
    assert code == 2 and "--max_fraction 1 --outside reflect would give 0 objects; then max_outside drops most" in err


def test_the_rule_that_drops_most_is_named_with_the_flag_that_helps(tmp_path, capsys):
    more = write_source(tmp_path / "images", 40, boxes_each=1)
    boxes = [a["bbox"] for a in json.loads(more.read_text())["annotations"]]
    fraction = sorted(max(w, h) for *_, w, h in boxes)[7] / 200
    code, out, _ = command(capsys, *words_of(more, tmp_path / "out", "--max_fraction", str(fraction)))
    assert code == 0 and "more than half   dropped by max_fraction: --max_fraction 1 would give 30 objects" in out
    code, out, _ = command(capsys, *words_of(more, tmp_path / "out", "--classes", "red"))
    assert code == 0 and "more than half" not in out


def test_no_room_for_backgrounds_is_one_line_with_the_flag_that_helps(tmp_path, capsys):
    path = write_source(tmp_path / "images", 6, boxes_each=1)
    data = json.loads(path.read_text())
    for a in data["annotations"]:
        a["bbox"], a["segmentation"] = [2, 2, 196, 146], None
    data["images"] = [image for image in data["images"] if image["id"] % 4]
    path.write_text(json.dumps(data))
    wide = ["--max_fraction", "1", "--outside", "reflect"]
    code, out, err = command(capsys, *words_of(path, tmp_path / "out", *wide, "--max_outside", "0.8"))
    assert code == 2 and out == "" and err.count("\n") == 1 and not (tmp_path / "out").exists()
    assert "no background found a place" in err and "--y_from DIR" in err
    plain = tmp_path / "plain"
    plain.mkdir()
    Image.new("RGB", (500, 500)).save(plain / "a.jpg")
    wide += ["--max_outside", "0.8", "--y_from", plain]
    code, _, err = command(capsys, *words_of(path, tmp_path / "out", *wide, "--test_fraction", "1"))
    assert code == 2 and f"no image of --y_from {plain} is for train" in err and "--test_fraction 0 takes all" in err
    code, out, _ = command(capsys, *words_of(path, tmp_path / "out", *wide, "--test_fraction", "0"))
    assert code == 0 and "few backgrounds  the 1 images of --y_from" in out
    Image.new("RGB", (50, 50)).save(plain / "a.jpg")
    code, _, err = command(capsys, *words_of(path, tmp_path / "out2", *wide, "--test_fraction", "0"))
    assert code == 2 and "too small for the objects' windows" in err
    code, _, _ = command(capsys, *words_of(path, tmp_path / "out2", *wide, "--y_per_x", "0"))
    assert code == 0  # none are wanted


def test_no_image_that_opens_is_an_error(edgy, tmp_path, capsys):
    for path in edgy.parent.glob("*.png"):
        path.write_bytes(path.read_bytes()[:300])
    code, _, err = command(capsys, *words_of(edgy, tmp_path / "out"))
    assert code == 2 and "train: none of the objects could be cut (image_unreadable 12, first: " in err
    assert err.count("\n") == 1


def test_presets_and_flags():
    parser = make_parser("prepare.py", "")
    prepare.add_rule_options(parser)
    assert prepare.rules_from(parser.parse_args([])) == Rules()
    dogs = prepare.rules_from(parser.parse_args(["--preset", "dogs"]))
    assert (dogs.object_size, dogs.crop_size, dogs.min_side, dogs.max_fraction, dogs.min_aspect) == (
        64,
        128,
        60,
        0.4,
        0,
    )
    both = prepare.rules_from(parser.parse_args(["--preset", "dogs", "--min_side", "9"]), min_score=0.8)
    assert both.min_side == 9 and both.object_size == 64 and both.min_score == 0.8


# --- check ---


def damage_index(root, change):
    path = root / "train/crops.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "fault", ["cut", "size", "mode", "values", "hull", "lone", "stray", "gone", "over_box", "outside"]
)
def test_check_finds_each_fault(source, tmp_path, capsys, fault):
    out = tmp_path / "out"
    coco(source, out)
    index, train = index_of(out), out / "train"
    x, y = sorted(index["objects"])[0], sorted(index["backgrounds"])[0]
    path = train / "objects" / f"{x}.png"
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:400])
    elif fault == "size":
        Image.new("RGB", (31, 32)).save(path)
    elif fault == "mode":
        Image.new("L", (32, 32)).save(path)
    elif fault == "values":
        path = train / "masks" / f"{x}.png"
        Image.new("L", (32, 32), 254).save(path)
    elif fault == "hull":
        path = train / "masks_source" / f"{x}.png"
        Image.new("L", (32, 32), 255).save(path)
    elif fault == "lone":
        path = train / "masks" / f"{x}.png"
        path.unlink()
    elif fault == "stray":
        path = train / "backgrounds" / "mine.png"
        Image.new("RGB", (32, 32)).save(path)
    elif fault == "gone":
        path.unlink()
    elif fault == "over_box":
        path = train / "backgrounds" / f"{y}.png"
        crop = next(c for c in index["objects"].values())
        damage_index(
            out,
            lambda i: i["backgrounds"][y].update(source=crop["source"], source_window=crop["source_window"]),
        )
    elif fault == "outside":
        path = train / "backgrounds" / f"{y}.png"
        damage_index(out, lambda i: i["backgrounds"][y].update(source_window=[180, 0, 30, 30]))
    with pytest.raises(UserError, match="problems"):
        run("check", out, "--num_workers", 0)
    assert str(path) in capsys.readouterr().out


def test_check_says_what_tells_x_from_y(source, tmp_path, capsys):
    coco(source, tmp_path / "out")
    for path in (tmp_path / "out/train/backgrounds").iterdir():
        Image.open(path).resize((4, 4)).resize((32, 32)).save(path)
    run("check", tmp_path / "out", "--num_workers", 0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("no faults, but X and Y can be told apart by sharpness (train: P 1.00), ")
    assert "--y_from same" in lines[-1] and "larger photographs" in inspection.verdict({"window size": ["test"]})
    assert "tell them apart" in next(line for line in lines if "sharpness" in line)
    assert "tell them apart" not in next(line for line in lines if "brightness" in line)
    assert (
        inspection.separability([1, 2, 3], [1, 2, 3]) == 0.5 and inspection.separability([4, 5], [1]) == 1.0
    )
