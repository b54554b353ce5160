"""photo.py as users type it: one photograph and folders of them.

Long, since all commands run on the model and the photographs that the fixtures at the top make once.
"""
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from test_photo import BOX, ROOT, Stub, build, picture, stored

import crf
import photo
from baselines.nocycle import NoCycle
from crops.annotations import Photo
from photos import edit, files, jobs
from running.checkpoint import save_checkpoint
from seigan import SEIGAN, Trainer

# --- the command ---


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A folder of runs with one, "exp"."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save(folder / "exp", build(rule={"fit": "warp", "object_size": 100, "crop_size": 128}), "seigan")
    return folder


def save(folder, model, method, options=None):
    folder.mkdir()
    state = {"method": method, "config": model.config, "options": options or {}, **Trainer(model).state_dict()}
    save_checkpoint(str(folder / "latest.pt"), state)


@pytest.fixture
def call(run_folder, tmp_path, capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""
    def run(*argv, runs=run_folder):
        model = ["--checkpoints_dir", str(runs), "--name", "exp", "--gpu", "-1"]
        try:
            code = photo.main([str(a) for a in argv] + model)
        except SystemExit as stop:  # argparse's
            code = stop.code
        return code, *capsys.readouterr()
    return run


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


def test_commands_on_one_photograph(call, run_folder, tmp_path):
    dog, beach = stored(picture(), tmp_path, "dog.jpg"), stored(picture(140, 90, 1), tmp_path, "beach.webp")
    out = tmp_path / "out"
    box = ("--box", "30,20,40,30", "--out", out)
    assert call("cut", dog, *box)[0] == 0
    assert names(out) == ["cut/dog.jpg.png", "cut_mask/dog.jpg.png"]
    assert call("remove", dog, *box)[0] == 0
    assert call("paste", dog, *box, "--background", beach, "--at", "-10,20.5")[0] == 0
    sizes = {n.removesuffix("/dog.jpg.png"): Image.open(out / n).size for n in names(out)}
    assert sizes == {**dict.fromkeys(("cut", "cut_mask", "removed", "removed_mask"), (100, 80)),
                     **dict.fromkeys(("coarse", "pasted", "pasted_mask"), (140, 90))}
    model = SEIGAN.load(str(run_folder / "exp" / "latest.pt"))
    expected = edit.remove(model, Image.open(dog), BOX)
    assert np.array_equal(np.asarray(Image.open(out / "removed" / "dog.jpg.png")), np.asarray(expected.image))


def test_masks_are_refined_unless_told_otherwise(call, tmp_path, monkeypatch):
    """With --no-refine no CRF runs; else that of the run's bias, inside the box, before the mask is carried back."""
    method, box = SEIGAN, ("--box", "30,20,40,30")
    monkeypatch.setattr(method, "segment", lambda self, x, box=None: crf.ellipse(self.boxes(box, 1).float(), 32, 32))
    model = build(rule={"fit": "warp", "object_size": 100, "crop_size": 128})
    save(tmp_path / "exp", model, "seigan", {"crf_bias": 1.5})
    model.crf_bias = 1.5
    image = picture()
    ImageDraw.Draw(image).ellipse((35, 22, 66, 48), (200, 30, 40))
    dog, beach = stored(image, tmp_path, "dog.png"), stored(picture(140, 90, 1), tmp_path, "beach.png")
    results, refined = {}, crf.refine_box
    for refine, option in ((True, ()), (False, ("--no-refine",)), (True, ("--refine",))):
        out, seen = tmp_path / f"out{len(results)}", []
        monkeypatch.setattr(crf, "refine_box", lambda x, m, *a, seen=seen: seen.append(a) or refined(x, m, *a))
        for command, more in (("cut", ()), ("remove", ()), ("paste", ("--background", beach, "--at", "40,30"))):
            assert call(command, dog, *box, *more, *option, "--out", out, runs=tmp_path)[0] == 0
        assert [bias for _, bias in seen] == [1.5] * 3 * refine
        results[option] = {name: (out / name).read_bytes() for name in names(out)}
        mask = np.asarray(edit.cut(model, Image.open(dog), BOX, refine=refine).mask)
        assert np.array_equal(mask, np.asarray(Image.open(out / "cut_mask" / "dog.png.png")))
    first, without, again = results.values()
    assert first == again and all(first[name] != without[name] for name in first)
    part = edit._segment(model, np.asarray(image), BOX)
    local = torch.tensor([[14 / 128, 14 / 128, 100 / 128, 100 / 128]])
    finer = torch.tensor(edit.matting.crop(np.asarray(image), part.window, 64, 64)).permute(2, 0, 1)[None]
    finer = finer / 127.5 - 1
    start = F.interpolate(crf.ellipse(local, 32, 32), (64, 64), mode="bilinear")
    expected = crf.refine(finer, start, crf.box_inside(local, 64, 64), bias=1.5, **crf.FROM_MODEL)
    assert torch.allclose(part.m, F.avg_pool2d(expected, 2), atol=1e-3)


def test_detail_is_copied_into_fills_unless_told_otherwise(call, run_folder, tmp_path):
    rng, dog = np.random.default_rng(0), tmp_path / "dog.png"
    Image.fromarray(rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)).save(dog)
    args = ("remove", dog, "--box", "30,20,40,30", "--out")
    assert call(*args, tmp_path / "a")[0] == call(*args, tmp_path / "b", "--no-detail")[0] == 0
    model = SEIGAN.load(str(run_folder / "exp" / "latest.pt"))
    for out, detail in (("a", True), ("b", False)):
        expected = edit.remove(model, Image.open(dog), BOX, detail=detail).image
        assert np.array_equal(np.asarray(Image.open(tmp_path / out / "removed" / "dog.png.png")), np.asarray(expected))
    masks = [(tmp_path / out / "removed_mask" / "dog.png.png").read_bytes() for out in ("a", "b")]
    images = [(tmp_path / out / "removed" / "dog.png.png").read_bytes() for out in ("a", "b")]
    assert masks[0] == masks[1] and images[0] != images[1]
    code, _, err = call("cut", *args[1:], tmp_path / "c", "--no-detail")
    assert code == 2 and "--no-detail" in err


def test_existing_results_are_kept(call, tmp_path):
    dog = stored(picture(), tmp_path, "dog.png")
    args = ("cut", dog, "--box", "30,20,40,30", "--out", tmp_path / "out")
    assert call(*args)[0] == 0
    (tmp_path / "out" / "cut" / "dog.png.png").write_bytes(b"mine")
    code, _, err = call(*args)
    assert code == 2 and "--overwrite" in err and err.count("\n") == 1
    assert (tmp_path / "out" / "cut" / "dog.png.png").read_bytes() == b"mine"
    assert call(*args, "--overwrite")[0] == 0
    assert Image.open(tmp_path / "out" / "cut" / "dog.png.png").mode == "RGBA"


def test_an_input_is_never_replaced(call, tmp_path):
    stored(picture(), tmp_path, "a.png")
    (tmp_path / "pasted").mkdir()
    background = stored(picture(), tmp_path / "pasted", "a.png.png")
    before = background.read_bytes()
    code, _, err = call("paste", tmp_path / "a.png", "--box", "30,20,40,30", "--background", background,
                        "--out", tmp_path, "--overwrite")
    assert code == 2 and "would replace an input" in err and background.read_bytes() == before
    for command, images in (("cut", tmp_path), ("paste", background.parent)):
        more = ("--background", background) if command == "paste" else ()
        code, _, err = call(command, "--images", images, "--boxes", "detect", "--out", tmp_path, *more)
        assert code == 2 and "choose another" in err


def camera_exif():
    exif = Image.Exif()
    exif[0x010F], exif[0x010E] = "Maker", "Ünï"
    exif.get_ifd(0x8769)[0x9003], exif.get_ifd(0x8769)[0x829A] = "2020:01:02 03:04:05", 0.01
    exif.get_ifd(0x8825)[1], exif.get_ifd(0x8825)[2] = "N", (47.0, 30.0, 1.5)
    return exif


def test_a_cameras_photographs_as_tiff(call, tmp_path, monkeypatch):
    dog = stored(picture(), tmp_path, "dog.jpg", exif=camera_exif())
    args = ("remove", dog, "--box", "30,20,40,30", "--format", "tiff")
    assert call(*args, "--out", tmp_path / "out")[0] == 0
    with Image.open(tmp_path / "out" / "removed" / "dog.jpg.tiff") as out:
        kept = out.getexif()
        assert out.size == (100, 80) and kept[0x010F] == "Maker"
        assert kept.get_ifd(0x8769)[0x9003] == "2020:01:02 03:04:05" and kept.get_ifd(0x8825)[2] == (47.0, 30.0, 1.5)
    plain = stored(picture(), tmp_path, "plain.png")
    assert call("remove", plain, *args[2:], "--out", tmp_path / "out")[0] == 0
    with Image.open(tmp_path / "out" / "removed" / "plain.png.tiff") as out:
        assert out.info["compression"] == "tiff_lzw"

    def fail(*_, **__):
        raise RuntimeError("Error setting from dictionary")

    monkeypatch.setattr(Image.Image, "save", fail)
    code, _, err = call(*args, "--out", tmp_path / "broken")
    assert code == 2 and os.path.join("removed", "dog.jpg.tiff") in err and err.count("\n") == 1 and "dictionary" in err


@pytest.mark.parametrize("ending", ["tif", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_turned_photographs(ending, orientation, tmp_path):
    """A box of the pixels as stored, where their size is theirs alone, lands on the content that it means."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((40, 60), np.uint8)
    pixels[5:12, 20:50] = 255
    path = stored(Image.fromarray(pixels).convert("RGB"), tmp_path, f"a.{ending}", exif=exif)
    upright = files.open_photo(path)
    rows, columns = np.nonzero(np.asarray(upright.convert("L")))
    found = tuple(int(n) for n in (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1))
    annotated = {(60, 40): (20, 5, 30, 7)} | {upright.size: found, (0, 0): found}
    for size in annotated:
        job = jobs.Job("a", str(path), [annotated[size]], Photo("a", str(path), *size, []))
        assert jobs.upright_boxes(job) == [found]


def batch(tmp_path, n=4):
    """A folder of photographs with COCO annotations, one of them broken, and the annotation file."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    images, annotations = [], []
    for i in range(n):
        name = f"sub/{i}.png" if i == 1 else f"{i}.png"
        stored(picture(seed=i), folder, name)
        images.append({"id": i, "file_name": name, "width": 100, "height": 80})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": list(BOX)})
    annotations.append({"id": 90, "image_id": 0, "category_id": 2, "bbox": [5, 5, 30, 30]})
    (folder / "2.png").write_bytes(b"broken")
    images.append({"id": 50, "file_name": "absent.png", "width": 10, "height": 10})
    annotations.append({"id": 91, "image_id": 50, "category_id": 1, "bbox": [0, 0, 5, 5]})
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return folder, path


def test_a_folder_with_failures(call, tmp_path):
    folder, boxes = batch(tmp_path)
    out = tmp_path / "out"
    code, text, err = call("cut", "--images", folder, "--boxes", boxes, "--out", out)
    assert code == 1
    listed = [line for line in err.splitlines() if line.startswith("  ")]
    assert len(listed) == 2 and all(any(n in line for line in listed) for n in ("2.png", "absent.png"))
    assert names(out) == [f"{kind}/{name}.png" for kind in ("cut", "cut_mask")
                          for name in ("0.png", "0.png_2", "3.png", "sub/1.png")]
    assert "3 of 5" in text
    stored(picture(), folder, "2.png")
    code, text, _ = call("cut", "--images", folder, "--boxes", boxes, "--out", out)
    assert code == 1 and "1 of 5" in text and "3 had their results already" in text
    code, _, _ = call("cut", "--images", folder, "--boxes", boxes, "--out", tmp_path / "cats", "--classes", "cat")
    assert code == 0 and names(tmp_path / "cats") == ["cut/0.png.png", "cut_mask/0.png.png"]


def test_removing_several_objects_of_one_photograph(call, tmp_path):
    folder, boxes = batch(tmp_path, 1)
    code, _, _ = call("remove", "--images", folder, "--boxes", boxes, "--out", tmp_path / "out")
    assert code == 1  # the absent one
    assert names(tmp_path / "out") == ["removed/0.png.png", "removed_mask/0.png.png"]
    mask = np.asarray(Image.open(tmp_path / "out" / "removed_mask" / "0.png.png"))
    assert mask[35, 50] and mask[20, 20]
    removed = np.asarray(Image.open(tmp_path / "out" / "removed" / "0.png.png"))
    changed = (removed != np.asarray(picture(seed=0))).any(-1)
    assert changed.any() and not (changed & (mask == 0)).any()


def test_csv_boxes_and_a_folder_of_backgrounds(call, tmp_path):
    folder, _ = batch(tmp_path, 2)
    backgrounds = tmp_path / "backgrounds"
    backgrounds.mkdir()
    for i in range(5):
        stored(Image.new("RGB", (90 + i, 70), (40 * i, 9, 9)), backgrounds, f"{i}.png")
    with open(tmp_path / "boxes.csv", "w", newline="") as f:
        csv.writer(f).writerows([["file", "x", "y", "w", "h"], ["0.png", *BOX], ["0.png", 5, 5, 20, 20],
                                 ["sub/1.png", *BOX]])
    args = ("paste", "--images", folder, "--boxes", tmp_path / "boxes.csv", "--background", backgrounds,
            "--at", "10,10")
    chosen = []
    for out, seed in (("a", 0), ("b", 0), ("c", 1), ("d", 2)):
        assert call(*args, "--out", tmp_path / out, "--seed", seed)[0] == 0
        pasted = names(tmp_path / out / "pasted")
        assert pasted == ["0.png.png", "0.png_2.png", "sub/1.png.png"]
        chosen.append([Image.open(tmp_path / out / "pasted" / n).size for n in pasted])
    assert chosen[0] == chosen[1], "the seed decides"
    assert len({str(c) for c in chosen}) > 1


def test_every_photograph_has_results_of_its_own(call, tmp_path):
    folder = folder_of(tmp_path, "a.png", "a.jpg", "A.png", "a_2.png", "sub/a.png", "sub/a.webp")
    boxes = ["a.png,30,20,40,30", "a.png,5,5,20,20", "a_2.png,9,9,50,50", "a.jpg,30,20,40,30", "A.png,30,20,40,30",
             "sub/a.png,30,20,40,30", "sub/a.webp,30,20,40,30", "sub/a.webp,5,5,20,20"]
    (tmp_path / "boxes.csv").write_text("\n".join(["file,x,y,w,h", *boxes]))
    args = ("--images", folder, "--boxes", tmp_path / "boxes.csv", "--out", tmp_path / "out")
    code, text, _ = call("cut", *args)
    assert code == 0 and "6 of 6" in text
    assert names(tmp_path / "out" / "cut") == names(tmp_path / "out" / "cut_mask") == [
        "A.png.png", "a.jpg.png", "a.png.png", "a.png_2.png", "a_2.png.png", "sub/a.png.png", "sub/a.webp.png",
        "sub/a.webp_2.png"]
    code, text, _ = call("remove", *args, "--format", "webp")  # one result a photograph
    assert code == 0 and names(tmp_path / "out" / "removed") == [
        "A.png.webp", "a.jpg.webp", "a.png.webp", "a_2.png.webp", "sub/a.png.webp", "sub/a.webp.webp"]
    assert all(n.endswith(".png") for n in names(tmp_path / "out" / "removed_mask")), "masks keep every pixel"


def test_detected_boxes(call, tmp_path, monkeypatch):
    dog = stored(picture(), tmp_path, "dog.png")
    monkeypatch.setattr(photo, "load_detector", lambda weights, device: Stub([[30.0, 20, 70, 50]], [18], [0.9]))
    assert call("cut", dog, "--boxes", "detect", "--out", tmp_path / "out")[0] == 0
    assert names(tmp_path / "out") == ["cut/dog.png.png", "cut_mask/dog.png.png"]
    code, _, err = call("cut", dog, "--boxes", "detect", "--score", "0.95", "--out", tmp_path / "none")
    assert code == 2 and "no object found" in err
    monkeypatch.undo()
    code, _, err = call("cut", dog, "--boxes", "detect", "--detector_weights", tmp_path / "no.pth",
                        "--out", tmp_path / "n")
    assert code == 2 and "--detector_weights" in err and err.count("\n") == 1


def folder_of(tmp_path, *photographs):
    """A folder of photographs."""
    for i, name in enumerate(photographs):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        stored(picture(seed=i), tmp_path / "photos", name)
    return tmp_path / "photos"


def boxes_of(tmp_path, *photographs):
    """A file with one box of each."""
    (tmp_path / "boxes.csv").write_text("\n".join(["file,x,y,w,h", *(f"{n},30,20,40,30" for n in photographs)]))
    return tmp_path / "boxes.csv"


def test_score_and_classes_choose_among_boxes_of_a_file(call, tmp_path):
    folder, out = folder_of(tmp_path, "a.png", "b.png"), tmp_path / "out"
    found = {"a.png": [[*BOX, "dog", 0.95], [5, 5, 20, 20, "dog", 0.31]], "b.png": [[*BOX, "cat", 0.79]]}
    lines = [json.dumps({"file": n, "width": 100, "height": 80, "boxes": boxes}) for n, boxes in found.items()]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    args = ("cut", "--images", folder, "--boxes", tmp_path / "d.jsonl")
    assert call(*args, "--out", out)[0] == 0 and names(out) == ["cut/a.png.png", "cut_mask/a.png.png"]
    assert call(*args, "--score", "0.3", "--classes", "dog, cat", "--out", tmp_path / "low")[0] == 0
    assert names(tmp_path / "low" / "cut") == ["a.png.png", "a.png_2.png", "b.png.png"]
    code, _, err = call(*args, "--score", "0.99", "--classes", "cat", "--out", out)
    assert code == 2 and "of class cat with a score of 0.99 or more: lower --score" in err


def test_several_photographs_take_their_boxes_from_a_file(call, tmp_path):
    folder, out = folder_of(tmp_path, "a.png", "b.png", "c.png", "d.png"), tmp_path / "out"
    boxes = boxes_of(tmp_path, "a.png", "b.png", "c.png")
    assert call("cut", folder / "c.png", folder / "a.png", "--boxes", boxes, "--out", out)[0] == 0
    assert names(out / "cut") == ["a.png.png", "c.png.png"]
    assert call("cut", folder / "b.png", "--boxes", boxes, "--out", tmp_path / "one")[0] == 0
    assert names(tmp_path / "one" / "cut") == ["b.png.png"]
    code, _, err = call("cut", folder / "b.png", folder / "d.png", "--boxes", boxes, "--out", out)
    assert code == 1 and "d.png: " in err and "has no such box" in err and len(names(out / "cut")) == 3
    code, _, err = call("cut", folder / "d.png", "--boxes", boxes, "--out", out)
    assert code == 2 and "has no box for d.png" in err and err.count("\n") == 1


@pytest.mark.parametrize("command, file, expected", [
    ("cut", "x.png", ["x.png", "x_2.png", "x_mask.png", "x_mask_2.png"]),
    ("cut", "new/x.TIF", ["new/x.TIF", "new/x_2.TIF", "new/x_mask.png", "new/x_mask_2.png"]),
    ("remove", "x.jpg", ["x.jpg", "x_mask.png"]),
    ("paste", "x.webp", ["x.webp", "x_2.webp", "x_coarse.webp", "x_coarse_2.webp", "x_mask.png", "x_mask_2.png"]),
])
def test_the_result_of_one_photograph_may_be_a_file(call, tmp_path, command, file, expected):
    dog, out = stored(picture(), tmp_path, "dog.png"), tmp_path / "out"
    more = ("--background", dog) if command == "paste" else ()
    args = (command, dog, "--box", "30,20,40,30", "--box", "5,5,20,20", *more, "--out")
    code, text, _ = call(*args, out / file)
    assert code == 0 and f"see {out / file}" in text and names(out) == expected
    assert Image.open(out / file).size == (100, 80)
    code, _, err = call(*args, out / file)
    assert code == 2 and f"{out / file} exists" in err
    before = dog.read_bytes()
    code, _, err = call(*args, dog, "--overwrite")
    assert code == 2 and "would replace an input" in err and dog.read_bytes() == before
    (out / "x.gif").write_bytes(b"")
    for bad, text in ((("--images", tmp_path, "--boxes", "detect", *more, "--out", out / file), "is one file"),
                      ((*args[1:], out / "x.gif"), "none of an image")):
        code, _, err = call(command, *bad)
        assert code == 2 and text in err and err.count("\n") == 1


def test_bad_boxes_are_all_named_and_nothing_is_written(call, tmp_path):
    folder, out = folder_of(tmp_path, "a.png", "b.png"), tmp_path / "out"
    lines = ["a.png,30,20,40,30", "a.png,300,5,20,20", "a.png,5,400,9,9", "b.png,30,20,40,30"]
    (tmp_path / "boxes.csv").write_text("\n".join(["file,x,y,w,h", *lines]))
    args = ("cut", "--images", folder, "--boxes", tmp_path / "boxes.csv", "--out", out)
    code, _, err = call(*args)
    assert code == 1 and "box 2 of 3: " in err and "box 3 of 3: " in err
    assert names(out) == ["cut/b.png.png", "cut_mask/b.png.png"]
    (tmp_path / "boxes.csv").write_text("\n".join(["file,x,y,w,h", lines[0], "a.png,30,5,20,20", lines[3]]))
    assert call(*args)[0] == 0 and "cut/a.png_2.png" in names(out)


@pytest.mark.parametrize("command", ["cut", "remove", "paste"])
def test_a_stopped_folder_is_finished_by_the_same_command(call, tmp_path, monkeypatch, command):
    folder, out = folder_of(tmp_path, "a.png", "b.png"), tmp_path / "out"
    rows = [f"{name},{x},20,30,30" for name in ("a.png", "b.png") for x in (30, 50)]
    (tmp_path / "boxes.csv").write_text("\n".join(["file,x,y,w,h", *rows]))
    args = (command, "--images", folder, "--boxes", tmp_path / "boxes.csv")
    if command == "paste":
        args += ("--background", stored(picture(seed=9), tmp_path, "beach.png"))
    assert call(*args, "--out", tmp_path / "whole")[0] == 0
    whole, save, saved = names(tmp_path / "whole"), files.save, []

    def stop(picture, path):
        if len(saved) == len(whole) // 2 + 1:
            raise KeyboardInterrupt
        saved.append(path)
        save(picture, path)

    monkeypatch.setattr(files, "save", stop)
    code, _, err = call(*args, "--out", out)
    assert code == 130 and "stopped" in err.splitlines()[-1] and "Traceback" not in err
    monkeypatch.setattr(files, "save", save)
    before = {path: os.stat(path).st_mtime_ns for path in saved}
    code, text, _ = call(*args, "--out", out)
    assert code == 0 and "1 of 2" in text and "1 had their results already" in text and names(out) == whole
    assert all(os.stat(path).st_mtime_ns == time for path, time in before.items())
    assert all((out / n).read_bytes() == (tmp_path / "whole" / n).read_bytes() for n in whole)


def test_results_below_the_photographs_are_no_input(call, tmp_path, monkeypatch):
    folder = folder_of(tmp_path, "a.png", "sub/b.png", "cutouts.png", "cutouts2/c.png")
    monkeypatch.setattr(photo, "load_detector", lambda weights, device: Stub([[30.0, 20, 70, 50]], [18], [0.9]))
    monkeypatch.chdir(folder)
    for images, out in ((folder, folder / "cutouts"), (".", "cutouts"), ("../photos", "sub/../cutouts")):
        for _ in range(2):
            code, text, _ = call("cut", "--images", images, "--boxes", "detect", "--out", out)
            assert code == 0 and "of 4 photographs" in text
    assert len(names(folder / "cutouts")) == 8
    code, text, _ = call("cut", "--images", "cutouts", "--boxes", "detect", "--out", ".")
    assert code == 0 and "of 8 photographs" in text  # below --out are photographs, where --images names them


def test_many_photographs_load_the_model_once(call, tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    with open(tmp_path / "boxes.csv", "w") as f:
        f.write("file,x,y,w,h\n")
        for i in range(20):
            stored(picture(40, 30, i), folder, f"{i}.png")
            f.write(f"{i}.png,10,8,20,15\n")
    loads, load = [], photo.load_model
    monkeypatch.setattr(photo, "load_model", lambda *args: loads.append(args) or load(*args))
    code, text, _ = call("cut", "--images", folder, "--boxes", tmp_path / "boxes.csv", "--out", tmp_path / "out")
    assert code == 0 and len(loads) == 1 and len(names(tmp_path / "out")) == 40 and "20 of 20" in text


@pytest.mark.parametrize("argv, text", [
    (["cut", "DOG", "--box", "200,200,5,5"], "outside"),
    (["cut", "--images", "DIR", "--box", "1,1,5,5"], "--box"),
    (["cut", "DOG", "--boxes", "f.json"], "no file f.json"),
    (["cut", "DIR", "--box", "1,1,5,5"], "is a folder: give it as --images"),
    (["cut", "DOG", "DOG", "--box", "1,1,5,5"], "--box is for one photograph, got 2: for several give --boxes FILE"),
    (["cut", "DOG", "other/b.png", "--boxes", "detect"], "must be of one folder"),
    (["cut", "--images", "DOG", "--boxes", "detect"], "no folder"),
    (["cut", "--images", "DIR", "--boxes", "DIR"], "no boxes of a known format"),
    (["cut", "--images", "DIR", "--boxes", "DOG"], "not a text in UTF-8"),
    (["cut", "DOG", "--box", "0.25,0.1,0.5,0.5"], "normalised coordinates: boxes must be in pixels"),
    (["cut", "absent.jpg", "--box", "1,1,5,5"], "absent.jpg"),
    (["cut", "--images", "absent", "--boxes", "detect"], "absent"),
    (["cut", "--images", "DIR", "--boxes", "absent.json"], "absent.json"),
    (["cut", "--images", "DIR", "--boxes", "boxes.xyz"], "no file boxes.xyz"),
    (["paste", "DOG", "--box", "1,1,5,5", "--background", "absent.png"], "absent.png"),
    (["paste", "DOG", "--box", "1,1,5,5", "--background", "DOG", "--at", "500,3"],
     "new place 500,3,5,5 lies outside the image of "),
])
def test_mistakes_give_one_line(call, tmp_path, argv, text):
    dog = stored(picture(), tmp_path, "dog.png")
    folder = tmp_path / "folder"
    folder.mkdir()
    stored(picture(), folder, "x.png")
    code, _, err = call(*[{"DOG": dog, "DIR": folder}.get(a, a) for a in argv], "--out", tmp_path / "out")
    assert code == 2 and err.startswith("photo.py: error: ") and err.count("\n") == 1 and text in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("argv, text", [
    (["cut"], "image --images"),
    (["cut", "DOG"], "--box --boxes"),
    (["cut", "DOG", "--images", "DIR", "--boxes", "detect"], "not allowed with"),
    (["cut", "--images", "DIR"], "--box --boxes"),
    (["cut", "DOG", "--box", "1,1,5,5", "--boxes", "detect"], "not allowed with"),
    (["cut", "DOG", "--box", "1,1,5"], "must be 4 numbers"),
    (["cut", "DOG", "--box", "1,1,5,nan"], "must be 4 numbers"),
    (["paste", "DOG", "--box", "1,1,5,5", "--background", "DOG", "--at", "-5"], "must be 2 or 4 numbers"),
    (["remove", "DOG", "--box", "1,1,5,5", "--dilate", "-2"], "--dilate: must be a whole number from 0"),
    (["remove", "DOG", "--box", "1,1,5,5", "--dilate", "2", "--erode", "2"], "not allowed with"),
    (["cut", "DOG", "--box", "1,1,5,5", "--score", "3"], "--score: must be a number from 0 to 1"),
    (["cut", "DOG", "--box", "1,1,5,5", "--format", "jpg"], "invalid choice: 'jpg'"),  # which has no transparency
])
def test_options_that_argparse_refuses(call, tmp_path, argv, text):
    code, _, err = call(*argv, "--out", tmp_path / "out")
    assert code == 2 and text in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize("command", ["cut", "remove", "paste", "move", "export"])
def test_help_shows_defaults_that_are_some(command, capsys):
    with pytest.raises(SystemExit):
        photo.main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "None" not in text and "default:" not in text and "[latest]" in text and "[checkpoints]" in text
    assert command == "export" or "0..1 [0.8]" in text and "[results/NAME/photos]" in text
    assert command == "export" or "choice of backgrounds [0]" in text


@pytest.mark.parametrize("command", ["cut", "remove"])
def test_an_empty_mask_is_told(call, tmp_path, command):
    model = build()
    torch.nn.init.constant_(model.G_seg.head.bias, -9.0)
    save(tmp_path / "exp", model, "seigan")
    dog = stored(picture(), tmp_path, "dog.png")
    box = ("--box", "30,20,40,30")
    code, text, err = call(command, dog, *box, "--out", tmp_path / "out", runs=tmp_path)
    assert code == 0 and "1 of 1" in text and len(names(tmp_path / "out")) == 2
    assert err.count("\n") == 1 and "dog.png: no pixel of the mask" in err
    assert call(command, dog, *box, "--out", tmp_path / "other")[2] == "", "a mask that is not"


@pytest.mark.parametrize("error", [KeyError, TypeError, ValueError, IndexError])
def test_our_own_mistakes_are_no_broken_photographs(call, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error("ours")

    monkeypatch.setattr(edit, "Cut", fail)
    with pytest.raises(error, match="ours"):
        call("cut", "--images", folder_of(tmp_path, "a.png", "b.png"), "--boxes", boxes_of(tmp_path, "a.png", "b.png"),
             "--out", tmp_path / "out")


def test_removal_without_g_inp_is_refused_before_photographs_are_opened(call, tmp_path):
    torch.manual_seed(0)
    model = NoCycle(size=32, ngf=8, ndf=8, n_layers_D=3, seg_blocks=1, unet_downs=3)
    save(tmp_path / "exp", model, "nocycle")
    (tmp_path / "no.png").write_text("no photograph")
    for photograph in ([tmp_path / "no.png", "--box", "1,1,5,5"],
                       ["--images", folder_of(tmp_path, "a.png"), "--boxes", boxes_of(tmp_path, "a.png")]):
        code, _, err = call("remove", *photograph, "--out", tmp_path / "out", runs=tmp_path)
        assert code == 2 and "NoCycle has no G_inp" in err and err.count("\n") == 1


def test_as_a_command(run_folder, tmp_path):
    """Its exit code is that of `main`. test_readme.py has commands that end well."""
    argv = [sys.executable, str(ROOT / "photo.py"), "cut", str(stored(picture(), tmp_path, "dog.png")), "--box",
            "30,20,40,30", "--gpu", "-1", "--checkpoints_dir", str(run_folder), "--name", "nothing"]
    missing = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1 and "nothing" in missing.stderr
