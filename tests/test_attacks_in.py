"""Files of others that come in: annotations, a DATAROOT, images. They choose no path, hang nothing, control nothing.

Long, since every door meets the same files, which the helpers at the top write.
"""
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from test_prepare import SMALL, coco, files_of, index_of, run, write_source

import prepare
from crops import annotations as sources
from crops import build, coco_masks, detector
from crops import check as inspection
from crops import index as dataroot
from crops.formats import read_csv
from data import Crops, UnpairedCrops, load_image
from images import FORMATS, UserError, fits, is_below, is_number, open_image, printable, written_whole

ROOT = Path(prepare.__file__).parent
DEEP = "[" * 100_000
HUGE = 10**400


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "images")


@pytest.fixture
def victim(tmp_path):
    """Somebody's image, beside everything else."""
    path = tmp_path / "victim" / "photo.png"
    path.parent.mkdir()
    Image.new("RGB", (200, 150), "blue").save(path)
    return path


def one_line(capsys, *words):
    """The error of `prepare.py WORDS`, which must be one printable line."""
    assert prepare.main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.endswith("\n") and error[:-1].isprintable(), error
    return error


def change(path, edit):
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


# --- masks ---


def test_run_lengths_whose_sum_wraps_around_are_refused():
    for counts in ([19200] + [2**62] * 4, [2**63, 2**63, 19200], [2**64 - 1, 19201], [19200, 0, 1]):
        mask = coco_masks.pack_segmentation({"size": [120, 160], "counts": counts})
        with pytest.raises(ValueError, match="RLE covers"):
            coco_masks.decode_mask(mask, 160, 120, (0, 0, 160, 120))
    assert coco_masks.decode_rle([0, 19200], 160, 120).all()


def test_a_compressed_count_without_end_is_refused():
    with pytest.raises(ValueError, match="broken at character 1.$"):
        coco_masks.decode_rle_string("o" * 300_000)


@pytest.mark.parametrize("polygons", [1, 3000])
def test_an_endless_outline_is_refused_before_it_is_walked(polygons):
    pieces = [[-300, 300, 300, -300] * (40_000 // polygons)] * polygons
    mask = coco_masks.pack_segmentation(pieces)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, hard))
    try:
        with pytest.raises(ValueError, match="outlines are longer than 30 times"):
            coco_masks.decode_mask(mask, 160, 120, (0, 0, 160, 120))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# --- names ---

OUTSIDE = ["../victim/photo.png", "/etc/passwd", "a/../../victim/photo.png", "a\\b.png", "a\0.png", "a\n.png",
           "\x1b[2J.png", "", 7, None, ["a.png"]]


@pytest.mark.parametrize("name", [*OUTSIDE, "out.png", "link/photo.png", "a/out.png"])
def test_a_name_leads_below_its_folder(tmp_path, victim, name):
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    (folder / "in.png").symlink_to("a/b.png")
    for link in ("out.png", "a/out.png"):
        (folder / link).symlink_to(victim)
    (folder / "link").symlink_to(victim.parent)
    assert not is_below(name, folder)
    (tmp_path / "by_link").symlink_to(folder)  # of the folder itself the user decides
    for good in ("in.png", "a/b.png", "none.png", "a b…é.png", "b\udcff.png", "..a.png"):
        assert is_below(good, folder) and is_below(good, tmp_path / "by_link"), good


def test_links_out_of_the_images_are_counted_not_followed(source, tmp_path, victim, capsys):
    for name in ("001.png", "005.png"):
        (source.parent / name).unlink()
        (source.parent / name).symlink_to(victim)
    coco(source, tmp_path / "out")
    assert "link_out 2 (first: '001.png' is a link that leads out of" in capsys.readouterr().out
    assert {crop["source"] for crop in index_of(tmp_path / "out")["objects"].values()} == {"002.png", "003.png"}


def test_links_in_a_folder_to_detect_in_are_counted(source, tmp_path, victim):
    (source.parent / "out.png").symlink_to(victim)
    skips, seen = sources.Skips(), []
    detector.detect_folder(source.parent, tmp_path / "d.jsonl", lambda image: seen.append(image) or [], skips)
    assert skips.counts == {"link_out": 1} and len(seen) == 6


@pytest.mark.parametrize("mask", ["../victim/photo.png", "/etc/passwd", "out.png"])
def test_masks_of_a_csv_lie_below_the_images(tmp_path, source, victim, mask):
    (source.parent / "out.png").symlink_to(victim)
    table = tmp_path / "b.csv"
    table.write_text(f"file,x,y,w,h,mask\n001.png,30,40,30,30,{mask}\n")
    skips = sources.Skips()
    (photo,) = read_csv(source.parent, table, skips)
    assert photo.boxes[0].mask is None and sum(skips.counts.values()) == 1


def test_lists_of_voc_and_pets_lie_below_their_folders(tmp_path, victim):
    root, xml = tmp_path / "voc", "<annotation><filename>{}</filename></annotation>"
    for folder in ("Annotations", "JPEGImages", "SegmentationObject", "ImageSets", "annotations/trimaps", "images"):
        (root / folder).mkdir(parents=True)
    victim.with_suffix(".xml").write_text(xml.format("photo.jpg"))
    (root / "Annotations/a.xml").write_text(xml.format("a.jpg"))
    (root / "JPEGImages/a.jpg").symlink_to(victim)
    (root / "Annotations/c.xml").symlink_to(victim.with_suffix(".xml"))
    (root / "ImageSets/s.txt").write_text(f"../../victim/photo\n{victim.with_suffix('')}\na\nc\n")
    skips = sources.Skips()
    assert sources.read_voc(root, "s", skips) == [] and skips.counts == {"bad_image_entry": 2, "link_out": 2}
    (root / "annotations/t.txt").write_text("../../../victim/photo 1 1 1\n")
    skips = sources.Skips()
    assert sources.read_pets(root, "t", skips) == [] and skips.counts == {"bad_image_entry": 1}


# --- a DATAROOT of others ---

STEMS = ["../../../victim/photo", "photo/../../../../victim/photo", "VICTIM"]


@pytest.mark.parametrize("stem", STEMS)
def test_a_journal_deletes_nothing_elsewhere(source, tmp_path, victim, capsys, stem):
    folder = tmp_path / "out" / "train"
    folder.mkdir(parents=True)
    stem = stem.replace("VICTIM", str(victim.with_suffix("")))
    (folder / "unfinished.jsonl").write_text(json.dumps({"plan": "x", "objects": [stem], "backgrounds": [stem]}) + "\n")
    error = one_line(capsys, "coco", "--images", source.parent, "--annotations", source, "--out", tmp_path / "out",
                     *SMALL)
    assert "unfinished.jsonl is not as prepare.py writes it" in error and victim.exists()


@pytest.mark.parametrize("stem", STEMS)
def test_a_list_of_crops_deletes_nothing_elsewhere(source, tmp_path, victim, capsys, stem):
    coco(source, tmp_path / "out")
    stem = stem.replace("VICTIM", str(victim.with_suffix("")))
    change(tmp_path / "out/train/crops.json",
           lambda index: index["objects"].update({stem: next(iter(index["objects"].values()))}))
    error = one_line(capsys, "coco", "--images", source.parent, "--annotations", source, "--out", tmp_path / "out",
                     *SMALL, "--y_per_x", "1")
    assert "crops.json is not as prepare.py writes it" in error and victim.exists()


@pytest.mark.parametrize("link", ["objects", ""])
def test_a_folder_that_leads_elsewhere_is_neither_emptied_nor_filled(source, tmp_path, victim, capsys, link):
    folder = tmp_path / "out" / "train"
    place = folder / link
    place.parent.mkdir(parents=True)
    if not link:
        victim.rename(victim.parent / "x.png")
        (victim.parent / "objects").mkdir()
        victim = (victim.parent / "x.png").rename(victim.parent / "objects/photo.png")
    place.symlink_to(tmp_path / "victim")
    (folder / "unfinished.jsonl").write_text('{"plan": "x", "objects": ["photo"], "backgrounds": []}\n')
    before = files_of(tmp_path / "victim")
    error = one_line(capsys, "coco", "--images", source.parent, "--annotations", source, "--out", tmp_path / "out",
                     *SMALL)
    assert "is a link that leads out of" in error and files_of(tmp_path / "victim") == before


@pytest.mark.parametrize("link", ["train/objects/00000.png", "train/objects", "train"])
def test_the_demo_set_is_not_written_through_links(tmp_path, victim, capsys, link):
    place = tmp_path / "out" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(victim if link.endswith("png") else victim.parent)
    before = victim.read_bytes()
    assert "which holds other things" in one_line(capsys, "demo", "--out", tmp_path / "out")
    assert victim.read_bytes() == before and os.listdir(victim.parent) == ["photo.png"]


def test_the_file_beside_is_no_link_to_another(tmp_path, victim):
    (tmp_path / ".a.png.part").symlink_to(victim)
    before = victim.read_bytes()
    with written_whole(tmp_path / "a.png") as file:
        file.write(b"new")
    assert victim.read_bytes() == before and (tmp_path / "a.png").read_bytes() == b"new"
    assert not (tmp_path / "a.png").is_symlink()


CROP = ("origin", -1), ("origin", 5), ("origin", "0"), ("source_window", None), ("source_window", [0, 0, 0, 0]), \
       ("source_size", [0, 0]), ("source_size", "xy"), ("source_box", [1, 2, HUGE, 4]), ("box", None), ("class", [1]), \
       ("source", {}), ("box", [1, 2, 3, "4"])
RULE = ("crop_size", "64"), ("crop_size", HUGE), ("plan", None), ("counts", {"objects": {}}), \
       ("counts", {"dropped": 1}), ("counts", [])
IMAGE = ("hash", "zz"), ("hash", 3), ("path", None), ("boxes", [[1, 2, 3]]), ("boxes", [None]), ("origin", None), \
        ("file", 3)


def broken_indices():
    for key, value in CROP:
        yield "crops.json", lambda data, k=key, v=value: next(iter(data["objects"].values())).update({k: v})
    for key, value in RULE:
        yield "crops.json", lambda data, k=key, v=value: data["rules"][0].update({k: v})
    for key, value in IMAGE:
        yield "sources.json", lambda data, k=key, v=value: data["images"][0].update({k: v})
    for name, key in (("crops.json", "objects"), ("crops.json", "rules"), ("sources.json", "images")):
        for value in (None, 3, "x", [[]], [None], {"a": None}):
            yield name, lambda data, k=key, v=value: data.update({k: v})
    for key in ("counts", "classes", "backgrounds", "format"):
        yield "crops.json", lambda data, k=key: data.update({k: [["x"]]})


def test_indices_of_another_form_are_one_line(source, tmp_path, capsys):
    out = tmp_path / "out"
    coco(source, out)
    for name, edit in [*broken_indices(), ("crops.json", None), ("sources.json", None)]:
        path = out / "train" / name
        whole = path.read_bytes()
        path.write_text(DEEP) if edit is None else change(path, edit)
        again = ["coco", "--images", source.parent, "--annotations", source, "--out", out, *SMALL, "--y_per_x", 1]
        for words in (["check", out, "--num_workers", 0], again):
            assert f"{name} is not as prepare.py writes it" in one_line(capsys, *words)
        path.write_bytes(whole)
    for number in ("NaN", "-Infinity", "1e400"):  # where no form asks, but what is kept is written again
        path = out / "train" / "crops.json"
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b'"rules": [\n{', f'"rules": [\n{{"more": {number}, '.encode(), 1))
        assert path.read_bytes() != whole
        assert "crops.json is not as prepare.py writes it" in one_line(capsys, *again)
        path.write_bytes(whole)
    assert run("check", out, "--num_workers", 0) is None


def journals():
    head, done = {"plan": "x", "objects": [], "backgrounds": []}, {"file": "a", "hash": "0" * 64, "masks": {}}
    for line in ("", "3", "[]", DEEP, "null", '"x"', json.dumps({**head, "plan": None}),
                 json.dumps({**head, "objects": [None]}), json.dumps({**head, "objects": {}})):
        yield line + "\n"
    for line in ("7", json.dumps({**done, "masks": None}), json.dumps({**done, "hash": "zz"}), DEEP,
                 json.dumps({**done, "file": []}), json.dumps({"file": "a", "problem": 3, "example": ""})):
        yield f"{json.dumps(head)}\n{line}\n"


@pytest.mark.parametrize("text", list(journals()))
def test_journals_of_another_form_are_one_line(source, tmp_path, capsys, text):
    (tmp_path / "out/train").mkdir(parents=True)
    (tmp_path / "out/train/unfinished.jsonl").write_text(text)
    error = one_line(capsys, "coco", "--images", source.parent, "--annotations", source, "--out", tmp_path / "out",
                     *SMALL)
    assert "unfinished.jsonl is not as prepare.py writes it" in error


def make_set(root, rule, crop):
    for kind in ("objects", "backgrounds"):
        (root / "train" / kind).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(root / "train" / kind / "a.png")
    rule = rule and {"fit": "warp", "object_size": 16, "crop_size": 32, **rule}
    crop = crop and {"box": [8, 8, 16, 8], **crop}
    (root / "train/crops.json").write_text(json.dumps({"rules": [rule], "objects": {"a": crop}}))


def test_training_needs_boxes_and_rules_alone(tmp_path):
    make_set(tmp_path, {"more": 1}, {"more": 2})
    assert Crops(tmp_path, "train", 64).box("a").tolist() == [0.25, 0.25, 0.5, 0.25]
    (tmp_path / "train/crops.json").write_text(DEEP)
    with pytest.raises(UserError, match="crops.json is not a crops file"):
        Crops(tmp_path, "train", 64)


@pytest.mark.parametrize("rule,crop", [
    *((rule, {"more": 2}) for rule in (None, {"crop_size": "64"}, {"crop_size": HUGE}, {"crop_size": 0}, {"fit": 3},
                                       {"object_size": None})),
    *(({"more": 1}, {"box": box}) for box in (None, ["1", 2, 3, 4], {}, "text", [1, 2], [1, 2, HUGE, 4],
                                              [1, 2, float("nan"), 4], [1, 2, -3, 4], [1, 2, [3], 4])),
    *(({"more": 1}, {"origin": origin}) for origin in (-1, 1, "0", None, HUGE)), ({"more": 1}, None)])
def test_training_reads_no_crops_file_of_another_form(tmp_path, rule, crop):
    make_set(tmp_path, rule, crop)
    with pytest.raises(UserError, match="crops.json is not a crops file") as error:
        Crops(tmp_path, "train", 32)
    assert str(error.value).isprintable()


def test_detections_of_another_form_are_counted_or_one_line(tmp_path):
    good = {"file": "a.png", "width": 200, "height": 150, "boxes": [[1, 2, 3, 4, "dog", 0.9]]}
    bad = [{**good, key: value} for key, value in
           (("width", HUGE), ("width", -3), ("height", "9"), ("boxes", None), ("boxes", [[1, 2, 3, 4, "dog", "x"]]),
            ("boxes", [[1, 2, 3, 4, [], 1]]), ("boxes", [[1, 2, 3]]), ("file", []), ("file", "../a.png"))]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join([json.dumps(good), *map(json.dumps, bad), DEEP]) + "\n")
    skips = sources.Skips()
    (photo,) = sources.read_detections(tmp_path, path, skips)
    assert photo.width == 200 and skips.counts == {"bad_line": 10}
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    for text in (DEEP + "\n", "{}\n", '{"file": []}\n', "3\n", "no list\nnor this"):
        path.write_text(text)
        with pytest.raises(UserError, match="is not a list of detections"):
            detector.detect_folder(tmp_path, path, None, sources.Skips())
        assert path.read_text() == text


def test_forms():
    form = {"a": [is_number], "b?": {str: bool}}
    assert fits({"a": [1, 2.5]}, form) and fits({"a": [], "b": {"x": True}, "c": 0}, form)
    for value in (None, [], {}, {"a": 1}, {"a": [True]}, {"a": ["1"]}, {"a": [], "b": {"x": 1}}, {"a": [float("nan")]}):
        assert not fits(value, form), value


# --- images ---


def test_no_other_program_is_started_for_an_image(source, tmp_path, capsys, monkeypatch):
    gs, started = tmp_path / "bin" / "gs", tmp_path / "started"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {started}\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(gs.parent), prepend=os.pathsep)
    path = source.parent / "eps.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 200 150\n%%EndComments\nshowpage\n%%EOF\n")
    for read in (open_image, lambda path: load_image(path, 16), coco_masks.read_labels):
        with pytest.raises(OSError):
            read(str(path))
    run("folder", "--objects", source.parent, "--backgrounds", source.parent, "--out", tmp_path / "o", *SMALL[-2:])
    assert "image_unreadable 2" in capsys.readouterr().out and not started.exists()
    assert inspection.decode(str(path), "RGB", (200, 150))[0] is None and not started.exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_the_formats_that_are_read(tmp_path, kind):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png", kind)
    assert open_image(tmp_path / "a.png").size == (20, 10)


def test_a_photograph_with_a_second_one_behind_it_is_read(tmp_path):
    """MPO, as telephones write under .jpg."""
    frames = [Image.new("RGB", (32, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "a.jpg").getpixel((5, 5))[0] > 200


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes")
def test_pipes_are_no_images(source, tmp_path, capsys):
    """In processes of their own: what waits for a pipe cannot be told to stop."""
    out = tmp_path / "out"
    coco(source, out)
    os.mkfifo(source.parent / "pipe.png")
    stem = next(iter(index_of(out)["objects"]))
    (out / "train/objects" / f"{stem}.png").unlink()
    os.mkfifo(out / "train/objects" / f"{stem}.png")
    for code in ("import prepare; prepare.run(['folder', '--objects', r'{images}', '--backgrounds', r'{images}', "
                 "'--out', r'{out}2', '--num_workers', '0'])",
                 "import prepare; prepare.run(['check', r'{out}', '--num_workers', '0'])",
                 "from data import Crops, StepSampler, UnpairedCrops, batches; crops = Crops(r'{out}', 'train', 9); "
                 "list(batches(UnpairedCrops(crops), StepSampler(0, 9, 1)))"):
        code = code.format(images=source.parent, out=out)
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert "no regular file" in (done.stderr + done.stdout if "folder" not in code else done.stdout), done.stderr


# --- what is printed ---


def test_printable():
    assert printable("a é…\u202fb 犬") == "a é…\u202fb 犬"
    assert printable("a\x1b[2J\nb\x9b\u202e\udcff") == "a\\x1b[2J\\nb\\x9b\\u202e\\udcff"


def test_nothing_in_a_source_reaches_the_terminal_raw(source, tmp_path, capsys):
    nasty = "red\x1b]0;title\x07\nx\udcff\u202e"

    def rename(data):
        data["categories"][0]["name"] = nasty
        data["images"].append({"id": nasty, "file_name": nasty, "width": 9, "height": 9})
        data["annotations"].append({"id": nasty, "image_id": 1, "category_id": 1, "bbox": nasty, "segmentation": nasty})

    change(source, rename)
    coco(source, tmp_path / "out")
    run("check", tmp_path / "out", "--num_workers", 0)
    captured = capsys.readouterr()
    assert all(line.isprintable() for line in (captured.out + captured.err).splitlines() if "check" not in line)
    assert "red\\x1b]0;title\\x07\\nx\\udcff\\u202e" in captured.out
    assert "\\x1b" in one_line(capsys, "coco", "--images", source.parent, "--annotations", source, "--out",
                               tmp_path / "p", *SMALL, "--classes", "cat")


@pytest.mark.skipif(os.name != "posix", reason="names are of bytes on POSIX alone")
def test_names_that_are_no_utf8(tmp_path, capsys):
    name = os.fsdecode(b"b\xff.png")
    source = write_source(tmp_path / "images")
    os.rename(source.parent / "001.png", source.parent / name)
    change(source, lambda data: data["images"][1].update(file_name=name))
    coco(source, tmp_path / "out")
    run("folder", "--objects", source.parent, "--backgrounds", source.parent, "--out", tmp_path / "f", *SMALL[-2:],
        "--split", "auto")
    capsys.readouterr().out.encode()  # can be printed
    for root in (tmp_path / "out", tmp_path / "f"):
        images = [image["file"] for split in dataroot.SPLITS for image in index_of(root, split)["images"]]
        assert any(file.endswith(name) for file in images)
        run("check", root, "--num_workers", 0)
        crops = Crops(root, "train", 32)
        assert [UnpairedCrops(crops)[n]["x"].shape for n in range(3)] == [(3, 32, 32)] * 3


# --- two at once, or killed ---

HOLD = """
import sys, time, prepare
from crops import build
cut = build.cut_job
def slow(*args, **more):
    print("cuts", flush=True)
    time.sleep(60)
build.cut_job = slow
prepare.run(sys.argv[1:])
"""


@pytest.mark.parametrize("split", ["train", "test"])
def test_one_command_at_a_time_writes_a_dataroot(source, tmp_path, capsys, split):
    out = tmp_path / "out"
    words = ["coco", "--images", source.parent, "--annotations", source, "--out", out, *SMALL]
    first = subprocess.Popen([sys.executable, "-c", HOLD, *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline() == b"cuts\n"
        error = one_line(capsys, *words, "--split", split, "--y_per_x", 1)
        assert f"{out} is in use by process {first.pid}" in error and "name another --out" in error
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
        first.stdout.close()
    coco(source, out)
    assert run("check", out, "--num_workers", 0) is None
    assert sorted(os.listdir(out)) == ["train"]


def test_a_command_that_writes_nothing_leaves_nothing(source, tmp_path, capsys):
    one_line(capsys, "coco", "--images", source.parent, "--annotations", tmp_path / "none", "--out", tmp_path / "out",
             *SMALL)
    assert not (tmp_path / "out").exists()
    one_line(capsys, "demo", "--out", source.parent)
    assert ".lock" not in os.listdir(source.parent)


class Killed(BaseException):
    """Stands for SIGKILL."""


def killed_at(monkeypatch, owner, name, call):
    """Let the `call`-th call of a function raise `Killed`."""
    original, calls = getattr(owner, name), []

    def stop(*args, **more):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return original(*args, **more)

    monkeypatch.setattr(owner, name, stop)


LESS = "--y_per_x", "0.5"


@pytest.mark.parametrize("place,call", [((Path, "unlink"), 1), ((Path, "unlink"), 20), ((dataroot, "save_index"), 1),
                                        ((dataroot, "remove_crops"), 1), ((build, "cut_job"), 1)])
@pytest.mark.parametrize("then", [(), LESS])
def test_a_kill_while_old_crops_are_removed_is_noticed_and_mended(source, tmp_path, monkeypatch, place, call, then):
    out = tmp_path / "out"
    coco(source, out)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, *place, call)
        coco(source, out, *LESS)
    with pytest.raises(UserError, match="is unfinished: repeat"):
        Crops(out, "train", 32)
    coco(source, out, *then)
    assert run("check", out, "--num_workers", 0) is None
    coco(source, tmp_path / "whole", *then)
    assert files_of(out) == files_of(tmp_path / "whole")
    assert len(Crops(out, "train", 32).records) == 8


def test_a_source_that_was_killed_after_its_last_file_keeps_its_crops(source, tmp_path, monkeypatch):
    """Its journal is still there when the next source begins."""
    out, other = tmp_path / "out", write_source(tmp_path / "b", first=10, seed=1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, dataroot, "drop_journal", 1)
        coco(source, out)
    before = files_of(out)
    coco(other, out)
    assert before.items() <= files_of(out).items()
    assert run("check", out, "--num_workers", 0) is None


@pytest.mark.parametrize("left", [None, b"", b"\xff\xd8\xff"])
def test_a_missing_contact_sheet_is_drawn_by_the_repeat(source, tmp_path, left):
    coco(source, tmp_path / "out")
    sheet = tmp_path / "out/train/sheet.jpg"
    whole = sheet.read_bytes()
    sheet.unlink()
    if left is not None:
        sheet.write_bytes(left)
    coco(source, tmp_path / "out")
    assert sheet.read_bytes() == whole


def test_a_contact_sheet_of_earlier_crops_does_not_outlive_them(source, tmp_path, monkeypatch):
    coco(source, tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, build, "make_sheet", 1)
        coco(source, tmp_path / "out", *LESS)
    for root in ("out", "whole"):
        coco(source, tmp_path / root, *LESS)
    assert len({(tmp_path / root / "train/sheet.jpg").read_bytes() for root in ("out", "whole")}) == 1


REFUSED = """
import sys, threading, time
from crops import cutting
start, main, calls = threading.Thread.start, threading.get_ident(), []
def refuse(thread):
    calls.append(thread)
    if len(calls) == int(sys.argv[1]):
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = refuse
try:
    print(len(list(cutting.in_parallel(time.sleep, [0.001] * 20, 2, 1))))
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("call", [1, 2])
def test_refused_threads_are_one_line_and_no_wait(call):
    done = subprocess.run([sys.executable, "-c", REFUSED, str(call)], cwd=ROOT, capture_output=True, text=True,
                          timeout=60)
    assert "can't start new thread" in done.stdout and "--num_workers 0" in done.stdout and done.stderr == ""
