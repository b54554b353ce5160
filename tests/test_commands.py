"""prepare.py's other commands as users type them, real photographs, and a million annotations."""
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
from test_prepare import SMALL, coco, files_of, index_of, run, source, write_source  # noqa: F401 - a fixture

import prepare
from crops import annotations as sources
from crops import build, cutting, detector
from images import UserError

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (DATA / "butterflies").is_dir(), reason=f"no {DATA}/butterflies: not prepared"
)

# --- the other commands ---


@pytest.mark.parametrize("inside", ["--objects", "--backgrounds", "--masks"])
def test_folder_never_writes_over_its_own_pictures(tmp_path, capsys, inside):
    places = {"--objects": "objects", "--backgrounds": "backgrounds", "--masks": "masks"}
    own, words = tmp_path / "own" / "train", []
    for option, name in places.items():
        folder = own / name if option == inside else tmp_path / name
        folder.mkdir(parents=True)
        Image.new("L", (60, 40), 255).save(folder / "a.png")
        words += [option, folder]
    before = files_of(tmp_path)
    with pytest.raises(UserError, match="lies where --out .* would put the crops.* name another --out"):
        run("folder", *words, "--out", tmp_path / "own", "--object_size", 16)
    assert files_of(tmp_path) == before


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
        "0.35",
        "--val_fraction",
        "0.4",
    )
    parts = [index_of(tmp_path / "b", split) for split in ("train", "val", "test")]
    assert sum(len(p["objects"]) for p in parts) == 5 and sum(len(p["backgrounds"]) for p in parts) == 7
    for split, part in zip(("train", "val", "test"), parts, strict=True):
        named = [c["source"] for kind in ("objects", "backgrounds") for c in part[kind].values()]
        assert named and all(build.auto_split(name, 0.35, 0.4) == split for name in named)
    crop = next(c for p in parts for c in p["objects"].values())
    assert crop["source_window"] == [10, 0, 40, 40]
    run(*words, "--out", tmp_path / "c")  # no box known: it is the crop, in the rule too
    index = index_of(tmp_path / "c")
    assert index["objects"]["0"]["box"] == pytest.approx([0, 0, 32, 32])
    assert index["rules"][0]["object_size"] == index["rules"][0]["crop_size"] == 32
    with pytest.raises(SystemExit):
        run(*words, "--out", tmp_path / "d", "--min_side", "9")  # no rule drops crops that exist
    for path in (tmp_path / "m").iterdir():
        path.rename(path.with_name(f"{path.name}.png"))  # as photo.py writes them
    run(*words, "--out", tmp_path / "e")
    assert len(list((tmp_path / "e/train/masks").iterdir())) == 4
    for path in (tmp_path / "m").iterdir():
        path.rename(path.with_name(f"mask_{path.name}"))
    with pytest.raises(UserError, match=r"no mask in .* has an object's name: that of 0.png is 0.png or 0.png.png"):
        run(*words, "--out", tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_val_is_a_split_like_the_others(source, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "out"
    more = write_source(tmp_path / "more", seed=1, first=100)
    coco(more, out, "--split", "val")
    coco(source, out, "--split", "train")
    assert "image_in_other_split" not in capsys.readouterr().out
    with pytest.raises(UserError, match="val uses it"):
        coco(more, out, "--split", "test")
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


def test_csv_command(source, tmp_path):  # noqa: F811
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
    (rule,) = index_of(tmp_path / "out")["rules"]
    assert (rule["command"], rule["images"]) == ("voc", str(tmp_path / "voc"))
    assert rule["annotations"] == "Segmentation/train"  # a word, no path
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
    assert [rule["annotations"] for rule in index["rules"][1:]] == ["gtFine", str(tmp_path / "d.jsonl")]
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


def test_detect_command_with_a_stub(source, tmp_path, monkeypatch, capsys):  # noqa: F811
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
        with pytest.raises((UserError, FileNotFoundError), match=message) as error:
            detector.load_detector(weights, "cpu")
        assert "\n" not in str(error.value)


def test_downloads_that_fail_are_one_clear_line():
    def unreachable():
        raise OSError("<urlopen error no network>\nmore")

    with pytest.raises(UserError, match="voc2012 cannot be downloaded .*--root without --download") as error:
        prepare.download("voc2012", unreachable)
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
    """Under 4 GB, most of it what json makes of the file; four times as many take about four times as long (CPU)."""
    code = (
        "import sys, time, resource; from crops import annotations as sources; start = time.process_time()\n"
        "n = sum(len(p.boxes) for p in sources.read_coco('x', sys.argv[1], sources.Skips()))\n"
        "print(n, time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    seconds = []
    for n in (250_000, 1_000_000):
        write_million(tmp_path / "a.json", n)
        out = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "a.json"],
            cwd=Path(prepare.__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        assert int(out[0]) == n and float(out[2]) < 4e9
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
                cutting.Piece(
                    s, tuple(c["source_window"]), next((b for b in photo.boxes if b.id == c.get("id")), None)
                )
                for s, c in index[k].items()
                if c["source"] == photo.file
            ]
            for k in ("objects", "backgrounds")
        }
        if pieces["objects"] or pieces["backgrounds"]:
            jobs.append(cutting.CutJob(photo._replace(boxes=[]), pieces["objects"], pieces["backgrounds"]))
            tasks.append((photo.path, [p.window for part in pieces.values() for p in part]))
    jobs = [
        cutting.CutJob(
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
        build.cut_jobs(jobs, str(trial), tmp_path / "b", 128, 2)
        ours.append(time.perf_counter() - start)
        shutil.rmtree(tmp_path / "b")
    ratio = np.median(least) / np.median(ours)
    print(
        f"{len(jobs)} images, {os.cpu_count()} cores: {ratio:.2f} of the speed of decoding and resizing alone"
    )
    assert ratio > 0.3
