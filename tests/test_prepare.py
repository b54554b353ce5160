"""The data commands as users type them: from images and boxes to a folder of crops, and its faults.

One long file, as all commands are tried on the same small sources, which the helpers at its top write.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import crops
import dataroot
import detector
import inspection
import prepare
import sources

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (DATA / "butterflies").is_dir(), reason=f"no {DATA}/butterflies: not prepared"
)
SMALL = ["--crop_size", "32", "--object_size", "16", "--min_side", "8", "--num_workers", "0"]


def run(*words):
    parser = argparse.ArgumentParser(prog="data.py")
    prepare.add_commands(parser.add_subparsers(required=True))
    args = parser.parse_args([str(word) for word in words])
    return args.run(args)


def index_of(root, split="train"):
    return dataroot.read_index(root, split)


def files_of(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(Path(root).rglob("*.png"))
    }


def write_source(folder, n=6, seed=0, first=0, boxes_each=2):
    """n photographs, 200 x 150, with coloured squares on noise, and their COCO file; every 4th has no box."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(first, first + n):
        pixels = rng.integers(60, 120, (150, 200, 3), dtype=np.uint8)
        images.append({"id": i, "file_name": f"{i:03}.png", "width": 200, "height": 150})
        for k in range(boxes_each if i % 4 else 0):
            x, y, w, h = 30 + 90 * k, int(rng.integers(30, 80)), *rng.integers(20, 40, 2).tolist()
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
    assert "class 4" in capsys.readouterr().out


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


# --- several sources, splits ---


def test_sources_are_appended_and_a_source_again_is_replaced(tmp_path):
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
    coco(second, out, "--classes", "red", "--y_per_x", "1")
    index = index_of(out)
    assert (
        len(index["objects"]) == 12 and len(index["backgrounds"]) == 20 and index["counts"]["objects"] == 12
    )
    assert run("check", out, "--num_workers", 0) is None  # also: no file is left that is not listed
    with pytest.raises(ValueError, match="one size"):
        coco(second, out, "--crop_size", "64")


def test_a_finished_source_is_not_cut_again(source, tmp_path, monkeypatch, capsys):
    coco(source, tmp_path / "out")
    monkeypatch.setattr(dataroot, "cut_job", None)
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
    share = np.mean([prepare.auto_split(f"{i}.jpg", 0.3) == "test" for i in range(4000)])
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)


def test_an_image_of_test_never_serves_train(source, tmp_path, capsys):
    out = tmp_path / "out"
    coco(source, out, "--split", "test")
    assert "image_in_other_split" not in capsys.readouterr().out
    coco(source, out, "--split", "train")
    assert "image_in_other_split" in capsys.readouterr().out
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


@pytest.mark.parametrize("damage", ["none", "cut", "gone", "journal"])
def test_an_interrupted_run_continues_to_the_same_files(source, tmp_path, monkeypatch, damage, capsys):
    coco(source, tmp_path / "whole")
    out, calls, cut_job = tmp_path / "out", [], dataroot.cut_job

    def failing(job, **more):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(job.photo.file)
        return cut_job(job, **more)

    monkeypatch.setattr(dataroot, "cut_job", failing)
    with pytest.raises(KeyboardInterrupt):
        coco(source, out)
    assert not (out / "train/crops.json").exists() and (out / "train" / dataroot.JOURNAL).exists()
    with pytest.raises(ValueError, match="problems"):
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
        dataroot, "cut_job", lambda job, **more: (again.append(job.photo.file), cut_job(job, **more))[1]
    )
    coco(source, out)
    assert files_of(out) == files_of(tmp_path / "whole") and not (out / "train" / dataroot.JOURNAL).exists()
    assert len(set(again) & set(calls)) == (damage in ("cut", "gone"))
    assert index_of(out)["objects"] == index_of(tmp_path / "whole")["objects"]


def test_other_rules_after_an_interruption_leave_nothing_behind(source, tmp_path, monkeypatch):
    out, cut_job, calls = tmp_path / "out", dataroot.cut_job, []

    def failing(job, **more):
        calls.append(job)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return cut_job(job, **more)

    monkeypatch.setattr(dataroot, "cut_job", failing)
    with pytest.raises(KeyboardInterrupt):
        coco(source, out)
    monkeypatch.setattr(dataroot, "cut_job", cut_job)
    coco(source, out, "--classes", "orange", "--y_per_x", "0.5")
    assert len(files_of(out)) == 4 * 3 + 2
    assert run("check", out, "--num_workers", 0) is None


def test_a_killed_process_leaves_a_run_that_continues(tmp_path):
    path = write_source(tmp_path / "images", 150)
    main = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.argv[1:2] = []\nimport argparse, prepare\n"
        "parser = argparse.ArgumentParser(); prepare.add_commands(parser.add_subparsers())\n"
        "args = parser.parse_args(); args.run(args)"
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


def test_a_process_that_dies_is_one_clear_line(source, tmp_path, monkeypatch):
    cut_job = dataroot.cut_job
    monkeypatch.setattr(dataroot, "cut_job", die)
    with pytest.raises(OSError, match="run the same command again"):
        coco(source, tmp_path / "out", "--num_workers", "2")
    monkeypatch.setattr(dataroot, "cut_job", cut_job)
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
    with pytest.raises((ValueError, OSError)) as error:
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
        with pytest.raises(ValueError, match="delete it and prepare the data again"):
            coco(source, tmp_path / "out")


def test_presets_and_flags():
    parser = argparse.ArgumentParser()
    prepare.add_rule_options(parser)
    assert prepare.rules_from(parser.parse_args([])) == crops.Rules()
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
    with pytest.raises(ValueError, match="problems"):
        run("check", out, "--num_workers", 0)
    assert str(path) in capsys.readouterr().out


def test_check_says_what_tells_x_from_y(source, tmp_path, capsys):
    coco(source, tmp_path / "out")
    for path in (tmp_path / "out/train/backgrounds").iterdir():
        Image.open(path).resize((4, 4)).resize((32, 32)).save(path)
    run("check", tmp_path / "out", "--num_workers", 0)
    lines = capsys.readouterr().out.splitlines()
    assert "tell them apart" in next(line for line in lines if "sharpness" in line)
    assert "tell them apart" not in next(line for line in lines if "brightness" in line)
    assert (
        inspection.separability([1, 2, 3], [1, 2, 3]) == 0.5 and inspection.separability([4, 5], [1]) == 1.0
    )


# --- the other commands ---


def test_folder_of_finished_crops(tmp_path):
    for name, colour, n in (("x", (200, 0, 0), 5), ("y", (0, 0, 90), 7), ("m", None, 4)):
        (tmp_path / name).mkdir()
        for i in range(n):
            image = Image.new("RGB", (60, 40), colour) if colour else Image.new("L", (60, 40), 0)
            if colour is None:
                image.paste(255, (20, 10, 40, 30))
            image.save(tmp_path / name / f"{i}.png")
    words = [
        "folder",
        "--objects",
        tmp_path / "x",
        "--backgrounds",
        tmp_path / "y",
        "--masks",
        tmp_path / "m",
        "--crop_size",
        "32",
        "--num_workers",
        "0",
    ]
    run(*words, "--out", tmp_path / "a", "--object_size", "16", "--name", "fox")
    index = index_of(tmp_path / "a")
    assert sorted(index["objects"]) == list("01234") and len(index["backgrounds"]) == 7
    assert index["objects"]["0"]["box"] == pytest.approx([8, 8, 16, 16]) and index["classes"] == {
        "fox": {"objects": 5}
    }
    assert len(list((tmp_path / "a/train/masks").iterdir())) == 4
    assert Image.open(tmp_path / "a/train/masks_source/0.png").size == (60, 40)
    run("check", tmp_path / "a", "--num_workers", 0)
    run(
        *words,
        "--out",
        tmp_path / "b",
        "--object_size",
        "16",
        "--fit",
        "keep",
        "--split",
        "auto",
        "--test_fraction",
        "0.5",
    )
    parts = [index_of(tmp_path / "b", split) for split in ("train", "test")]
    assert sum(len(p["objects"]) for p in parts) == 5 and sum(len(p["backgrounds"]) for p in parts) == 7
    for split, part in zip(("train", "test"), parts, strict=True):
        named = [c["source"] for kind in ("objects", "backgrounds") for c in part[kind].values()]
        assert named and all(prepare.auto_split(name, 0.5) == split for name in named)
    crop = next(c for p in parts for c in p["objects"].values())
    assert crop["source_window"] == [10, 0, 40, 40]
    run(*words, "--out", tmp_path / "c")  # no box known: it is the crop, in the rule too
    index = index_of(tmp_path / "c")
    assert index["objects"]["0"]["box"] == pytest.approx([0, 0, 32, 32])
    assert index["rules"][0]["object_size"] == index["rules"][0]["crop_size"] == 32
    with pytest.raises(SystemExit):
        run(*words, "--out", tmp_path / "d", "--min_side", "9")  # no rule drops crops that exist


def test_val_is_a_split_like_the_others(source, tmp_path, capsys):
    out = tmp_path / "out"
    more = write_source(tmp_path / "more", seed=1, first=100)
    coco(more, out, "--split", "val")
    coco(source, out, "--split", "train")
    assert "image_in_other_split" not in capsys.readouterr().out
    coco(more, out, "--split", "test")
    assert "val uses it" in capsys.readouterr().out
    run("check", out, "--num_workers", 0)
    assert "near-duplicates in train and val: 0" in capsys.readouterr().out
    y = tmp_path / "y"
    write_source(y, n=20, seed=2, first=200, boxes_each=0)
    (y / "boxes.json").unlink()
    sources_of = {}
    for split in ("train", "val"):
        coco(more, tmp_path / f"y_{split}", "--split", split, "--y_from", y, "--test_fraction", "0.5")
        sources_of[split] = {c["source"] for c in index_of(tmp_path / f"y_{split}", split)["backgrounds"].values()}
    assert sources_of["train"] and sources_of["val"] and not sources_of["train"] & sources_of["val"]


def test_csv_command(source, tmp_path):
    data = json.loads(source.read_text())
    lines = [
        f"{a['image_id']:03}.png,{','.join(map(str, a['bbox']))},red,{a['id']}" for a in data["annotations"]
    ]
    table = tmp_path / "boxes.csv"
    table.write_text("\n".join(["file,x,y,w,h,class,id", *lines, "000.png,,,,,", "004.png,,,,,"]))
    run("csv", "--images", source.parent, "--annotations", table, "--out", tmp_path / "a", *SMALL)
    coco(source, tmp_path / "b")
    a, b = (files_of(tmp_path / name / "train/objects") for name in "ab")
    assert a == b and files_of(tmp_path / "a/train/backgrounds") == files_of(tmp_path / "b/train/backgrounds")


def test_voc_pets_and_cityscapes_commands(tmp_path):
    from test_sources import write_cityscapes, write_voc

    labels = np.zeros((100, 200), np.uint8)
    labels[30:60, 60:100] = 1
    write_voc(tmp_path / "voc", [("dog", (61, 31, 100, 60))], labels=labels)
    run(
        "voc",
        "--root",
        tmp_path / "voc",
        "--image_set",
        "Segmentation/train",
        "--out",
        tmp_path / "out",
        *SMALL,
    )
    (crop,) = index_of(tmp_path / "out")["objects"].values()
    assert crop["source_box"] == [60, 30, 40, 30] and index_of(tmp_path / "out")["counts"]["masks"] == 1
    write_cityscapes(
        tmp_path / "city", [{"label": "car", "polygon": [[30, 20], [60, 20], [60, 40], [30, 40]]}]
    )
    run("cityscapes", "--root", tmp_path / "city", "--out", tmp_path / "out", *SMALL)
    index = index_of(tmp_path / "out")
    assert set(index["classes"]) == {"dog", "car"} and index["counts"]["masks"] == 2
    sequence = tmp_path / "city/leftImg8bit_sequence/train/aachen"
    sequence.mkdir(parents=True)
    Image.new("RGB", (200, 100)).save(sequence / "f.png")
    line = {
        "file": "aachen/f.png",
        "width": 200,
        "height": 100,
        "boxes": [[60, 30, 40, 30, "bus", 0.9], [5, 5, 9, 9, "car", 0.4]],
    }
    (tmp_path / "d.jsonl").write_text(json.dumps(line) + "\n")
    run(
        "cityscapes",
        "--root",
        tmp_path / "city",
        "--detections",
        tmp_path / "d.jsonl",
        "--out",
        tmp_path / "out",
        *SMALL,
    )
    index = index_of(tmp_path / "out")
    assert index["classes"]["bus"] == {"objects": 1} and index["rules"][2]["counts"]["dropped"] == {
        "score": 1
    }
    run("check", tmp_path / "out", "--num_workers", 0)


class StubDetector:
    """Finds the saturated squares of `write_source`, as torchvision's detectors would say it."""

    def __init__(self):
        self.seen = 0

    def __call__(self, images):
        import torch

        self.seen += 1
        found = []
        for k in range(2):  # the two columns of squares
            columns = slice(100 * k, 100 * k + 100)
            rows, cols = torch.nonzero(images[0][0, :, columns] > 0.95, as_tuple=True)
            if len(rows):
                found.append([cols.min() + 100 * k, rows.min(), cols.max() + 100 * k + 1, rows.max() + 1])
        n = len(found)
        return [
            {
                "boxes": torch.tensor(found, dtype=torch.float32).reshape(-1, 4),
                "labels": torch.ones(n, dtype=torch.long),
                "scores": torch.tensor([0.95, 0.2][:n]),
            }
        ]


def test_detect_command_with_a_stub(source, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    stub = StubDetector()
    monkeypatch.setattr(detector, "load_detector", lambda weights, device: stub)
    monkeypatch.setattr(detector, "category_names", lambda: ["background", "square"])
    (source.parent / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out"
    run("detect", "--images", source.parent, "--out", out, *SMALL)
    index = index_of(out)
    assert stub.seen == 6 and len(index["objects"]) == 4 and index["classes"] == {"square": {"objects": 4}}
    truth = {
        a["image_id"]: a["bbox"]
        for a in json.loads(source.read_text())["annotations"]
        if a["category_id"] == 1
    }
    assert all(c["source_box"] == truth[int(c["source"][:3])] for c in index["objects"].values())
    assert "image_unreadable 1" in capsys.readouterr().out
    Image.new("RGB", (200, 150)).save(source.parent / "new.png")
    run("detect", "--images", source.parent, "--out", out, *SMALL)
    assert stub.seen == 7  # goes on from what was detected


def test_detect_boxes_converts_corners_and_sorts():
    torch = pytest.importorskip("torch")

    def model(images):
        assert images[0].shape == (3, 5, 9) and images[0].max() == 1
        return [
            {
                "boxes": torch.tensor([[1.0, 2, 4, 6], [0, 0, 2, 1], [1, 1, 2, 2]]),
                "labels": torch.tensor([1, 2, 1]),
                "scores": torch.tensor([0.5, 0.75, 0.1]),
            }
        ]

    found = detector.detect_boxes(model, Image.new("RGB", (9, 5), "white"), ["?", "dog", "cat"])
    assert found == [[0, 0, 2, 1, "cat", 0.75], [1, 2, 3, 4, "dog", 0.5]]


def test_detector_weights_that_cannot_be_had(tmp_path, monkeypatch):
    import torchvision.models.detection as detection

    def unreachable(**arguments):
        if arguments["weights"] is not None:
            raise OSError("<urlopen error no network>")
        return __import__("torch").nn.Linear(2, 2)

    monkeypatch.setattr(detection, "fasterrcnn_resnet50_fpn", unreachable)
    (tmp_path / "w.pth").write_bytes(b"nothing")
    for weights, message in (
        (None, "--detector_weights FILE"),
        (tmp_path / "none.pth", "no file"),
        (tmp_path / "w.pth", "does not hold the weights"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            detector.load_detector(weights, "cpu")
        assert "\n" not in str(error.value)


def test_downloads_that_fail_are_one_clear_line():
    def unreachable():
        raise OSError("<urlopen error no network>\nmore")

    with pytest.raises(ValueError, match="voc2012 cannot be downloaded .*--root without --download") as error:
        prepare.with_clear_errors("voc2012", unreachable)
    assert "\n" not in str(error.value)


# --- real photographs ---


@needs_data
def test_butterflies_as_the_readme_says(tmp_path, capsys):
    root = DATA / "butterflies"
    for split in ("train", "test"):
        run(
            "coco",
            "--images",
            root / "images",
            "--annotations",
            root / f"annotations_{split}.json",
            "--out",
            tmp_path,
            "--split",
            split,
            "--max_fraction",
            "1",
            "--min_aspect",
            "0",
            "--num_workers",
            "2",
        )
    train, test = index_of(tmp_path), index_of(tmp_path, "test")
    assert len(train["objects"]) == train["counts"]["masks"] == 257 and len(train["backgrounds"]) == 514
    assert len(test["objects"]) == test["counts"]["masks"] == 57 and len(test["backgrounds"]) == 114
    run("check", tmp_path, "--num_workers", 2)
    assert "near-duplicates in train and test: 0" in capsys.readouterr().out


# --- long ---


def write_million(path, n, per_image=8, points=20):
    rng = np.random.default_rng(0)
    with open(path, "w") as file:
        file.write('{"images": [')
        file.write(
            ", ".join(
                json.dumps({"id": i, "file_name": f"{i:012}.jpg", "width": 640, "height": 480})
                for i in range(n // per_image)
            )
        )
        file.write('], "categories": [{"id": 1, "name": "a"}], "annotations": [')
        for i in range(n):
            x, y, w, h = (rng.random(4) * (500, 400, 130, 75)).round(2).tolist()
            polygon = (rng.random((points, 2)) * (w, h) + (x, y)).round(2).ravel().tolist()
            file.write(
                (", " if i else "")
                + json.dumps(
                    {
                        "id": i,
                        "image_id": i // per_image,
                        "category_id": 1,
                        "iscrowd": 0,
                        "bbox": [x, y, w, h],
                        "segmentation": [polygon],
                    }
                )
            )
        file.write("]}")


@pytest.mark.slow
def test_a_million_annotations(tmp_path):
    """Under 2 GB, and four times as many take about four times as long (CPU time)."""
    code = (
        "import sys, time, resource, sources; start = time.process_time()\n"
        "n = sum(len(p.boxes) for p in sources.read_coco('x', sys.argv[1], sources.Skips()))\n"
        "print(n, time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    seconds = []
    for n in (250_000, 1_000_000):
        write_million(tmp_path / "a.json", n)
        out = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "a.json"],
            cwd=Path(sources.__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        assert int(out[0]) == n and float(out[2]) < 2e9
        seconds.append(float(out[1]))
    assert seconds[1] < 6 * seconds[0]


def decode_and_resize(task):
    """What cannot be spared: Pillow decodes an image and resamples its windows."""
    with Image.open(task[0]) as image:
        image = image.convert("RGB")
        for x, y, w, h in task[1]:
            image.resize((128, 128), Image.BICUBIC, box=(x, y, x + w, y + h))


@pytest.mark.slow
@needs_data
def test_throughput_against_decoding_and_resizing_alone(tmp_path):
    """Prints the ratio; two processes each, in turns, medians of three. Far below it something broke."""
    images, path = DATA / "coco_mini/train2017", DATA / "coco_mini/annotations/instances_train2017.json"
    run("coco", "--images", images, "--annotations", path, "--out", tmp_path / "a", "--num_workers", "0")
    photos, jobs, tasks = sources.read_coco(images, path, sources.Skips()), [], []
    index = index_of(tmp_path / "a")
    for photo in photos:
        pieces = {
            k: [
                crops.Piece(
                    s, tuple(c["source_window"]), next((b for b in photo.boxes if b.id == c.get("id")), None)
                )
                for s, c in index[k].items()
                if c["source"] == photo.file
            ]
            for k in ("objects", "backgrounds")
        }
        if pieces["objects"] or pieces["backgrounds"]:
            jobs.append(crops.Job(photo._replace(boxes=[]), pieces["objects"], pieces["backgrounds"]))
            tasks.append((photo.path, [p.window for part in pieces.values() for p in part]))
    jobs = [
        crops.Job(
            j.photo._replace(file=f"{r}/{j.photo.file}"),
            *([p._replace(stem=f"{r}{p.stem}") for p in part] for part in j[1:]),
        )
        for r in range(6)
        for j in jobs
    ]
    least, ours = [], []
    for trial in range(3):
        start = time.perf_counter()
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(decode_and_resize, tasks * 6, chunksize=16))
        least.append(time.perf_counter() - start)
        start = time.perf_counter()
        dataroot.cut_jobs(jobs, str(trial), tmp_path / "b", 128, 2)
        ours.append(time.perf_counter() - start)
        shutil.rmtree(tmp_path / "b")
    ratio = np.median(least) / np.median(ours)
    print(
        f"{len(jobs)} images, {os.cpu_count()} cores: {ratio:.2f} of the speed of decoding and resizing alone"
    )
    assert ratio > 0.3
