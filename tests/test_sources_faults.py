"""What goes wrong with sources: folders that share names, names written otherwise, pictures listed twice."""
import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageOps
from test_commands import StubDetector
from test_prepare import SMALL, index_of, run

from crops import annotations as sources
from crops import build, cutting, detector
from crops import check as inspection
from crops import coco_masks as masks
from crops import index as dataroot
from crops.formats import read_csv
from images import UserError


def draw(path, x=60, y=60, grey=80, size=(200, 150)):
    """A grey photograph with a white square, 30 px, at x, y."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (grey,) * 3)
    image.paste((255, 255, 255), (x, y, x + 30, y + 30))
    image.save(path)
    return path


def table(path, boxes):
    """A CSV of [(file, x, y)]: boxes of 30 x 30."""
    path.write_text("file,x,y,w,h\n" + "".join(f"{file},{x},{y},30,30\n" for file, x, y in boxes))
    return path


def from_csv(images, annotations, out, *more):
    run("csv", "--images", images, "--annotations", annotations, "--out", out, *SMALL, *more)


def centres(out, split="train"):
    """Each object's grey value in the middle of its crop."""
    return [int(np.asarray(Image.open(path))[16, 16, 0]) for path in sorted((out / split / "objects").iterdir())]


# --- detect ---


@pytest.fixture
def stub(monkeypatch):
    stub = StubDetector()
    monkeypatch.setattr(detector, "load_detector", lambda weights, device: stub)
    monkeypatch.setattr(detector, "category_names", lambda: ["background", "square"])
    return stub


@pytest.mark.parametrize("boxes", [[], ["--boxes", "found.jsonl"]])
def test_photographs_of_two_folders_may_have_one_name(tmp_path, stub, monkeypatch, boxes):
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        draw(tmp_path / f"a/IMG_{i}.png", 35 + i, 40)
        draw(tmp_path / f"b/IMG_{i}.png", 40 + i, 80)
    for folder in "aba":
        run("detect", "--images", folder, "--out", "out", *boxes, *SMALL)
    assert stub.seen == 6 and centres(tmp_path / "out") == [255] * 6
    assert sorted(crop["source_box"][1] for crop in index_of("out")["objects"].values()) == [40] * 3 + [80] * 3


def test_detections_of_another_threshold_are_not_mixed(tmp_path, stub, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        draw(tmp_path / f"a/IMG_{i}.png", 35 + i, 40)
    run("detect", "--images", "a", "--out", "out", *SMALL)
    with pytest.raises(UserError, match="detected with --least_score 0.3, not 0.1: name another --boxes"):
        run("detect", "--images", "a", "--out", "out", "--least_score", "0.1", *SMALL)
    run("detect", "--images", "a", "--out", "out", "--least_score", "0.1", "--boxes", "b.jsonl", *SMALL)
    assert stub.seen == 6


def test_a_threshold_that_is_no_number_is_no_detection(tmp_path, stub, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "a/IMG_0.png", 35, 40)
    line = {"folder": str(tmp_path / "a"), "file": "IMG_0.png", "width": 9, "height": 9, "boxes": []}
    (tmp_path / "b.jsonl").write_text(json.dumps(line | {"least_score": [1]}) + "\n")
    with pytest.raises(UserError, match="b.jsonl is not a list of detections"):
        run("detect", "--images", "a", "--out", "out", "--boxes", "b.jsonl", *SMALL)


def test_detections_outlive_a_move_of_their_folder(tmp_path):
    line = {"file": "a.png", "width": 200, "height": 150, "boxes": [[1, 2, 3, 4, "dog", 0.9]]}
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"folder": "/once/here", **line}) + "\n")
    (photo,) = sources.read_detections(tmp_path, path, sources.Skips())
    assert photo.path == f"{tmp_path}/a.png" and photo.boxes[0].name == "dog"


def test_a_gpu_that_is_not_there_is_one_clear_line(tmp_path):
    draw(tmp_path / "in/a.png")
    with pytest.raises(UserError, match="--gpu 99: this machine has .* CUDA GPUs; -1 is the CPU") as error:
        run("detect", "--images", tmp_path / "in", "--out", tmp_path / "out", "--gpu", 99)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


# --- which pictures, which source ---


def test_backgrounds_of_a_folder_never_replace_annotated_photographs(tmp_path):
    for i in range(4):
        draw(tmp_path / f"photos/train/{i}.png", 60 + i, 50)
        Image.new("RGB", (200, 150), (0, 0, 200)).save(draw(tmp_path / f"empty/train/{i}.png"))
    boxes = table(tmp_path / "a.csv", [(f"train/{i}.png", 60 + i, 50) for i in range(4)])
    for folder, blue in (("empty", 200), ("photos", 80)):
        out = tmp_path / f"with_{folder}"
        from_csv(tmp_path / "photos", boxes, out, "--y_from", tmp_path / folder / "train", "--test_fraction", "0")
        assert centres(out) == [255] * 4
        backgrounds = sorted((out / "train/backgrounds").iterdir())
        assert len(backgrounds) == 8
        assert {int(np.median(np.asarray(Image.open(path))[..., 2])) for path in backgrounds} == {blue}
        assert run("check", out, "--num_workers", 0) is None


def test_a_source_is_known_however_its_path_is_typed(tmp_path, monkeypatch, capsys):
    for name, y in (("a", 40), ("b", 80)):
        draw(tmp_path / name / "photos" / f"{name}.png", 60, y)
        table(tmp_path / name / "boxes.csv", [(f"{name}.png", 60, y)])
    for name in "ab":  # the same words in two folders: two sources
        monkeypatch.chdir(tmp_path / name)
        from_csv("photos", "boxes.csv", "../out")
    assert sorted(index_of(tmp_path / "out")["objects"]) == ["a_2", "b_2"]
    for images, boxes in (("photos/", "./boxes.csv"), (tmp_path / "b/photos", "../b/boxes.csv")):
        capsys.readouterr()
        from_csv(images, boxes, "../out")
        assert "complete already" in capsys.readouterr().out
    from_csv("photos/", "boxes.csv", "../out", "--min_side", "9")
    assert sorted(index_of(tmp_path / "out")["objects"]) == ["a_2", "b_2"]


# --- one picture, however it is listed ---


def coco_file(path, images, boxes):
    """A COCO file of images [(id, file name)] of 200 x 150 and boxes [(image id, x, y)] of 30 x 30."""
    path.write_text(json.dumps({
        "images": [{"id": i, "file_name": name, "width": 200, "height": 150} for i, name in images],
        "annotations": [{"id": n, "image_id": i, "category_id": 1, "bbox": [x, y, 30, 30]}
                        for n, (i, x, y) in enumerate(boxes)],
        "categories": [{"id": 1, "name": "dog"}]}))
    return path


def test_two_coco_images_of_one_id_are_counted_and_give_nothing(tmp_path, capsys):
    for name, x in (("a", 40), ("b", 100), ("c", 60)):
        draw(tmp_path / f"{name}.png", x)
    images = [(1, "a.png"), (1, "b.png"), (2, "c.png"), (2, "c.png")]
    path = coco_file(tmp_path / "x.json", images, [(1, 40, 60), (2, 60, 60)])
    run("coco", "--images", tmp_path, "--annotations", path, "--out", tmp_path / "out", *SMALL)
    index = index_of(tmp_path / "out")
    assert {crop["source"] for kind in ("objects", "backgrounds") for crop in index[kind].values()} == {"c.png"}
    assert "repeated_image_id 1 (first: id 1 is that of b.png and of another image)" in capsys.readouterr().out


def test_one_picture_under_two_names_is_one_photo(tmp_path):
    draw(tmp_path / "a.png")
    path = coco_file(tmp_path / "x.json", [(1, "a.png"), (2, "./a.png")], [(1, 60, 60), (2, 20, 20)])
    listed = table(tmp_path / "x.csv", [("a.png", 60, 60), ("./a.png", 20, 20)])
    for photos in (sources.read_coco(tmp_path, path, sources.Skips()),
                   read_csv(tmp_path, listed, sources.Skips())):
        assert [(photo.file, [box.x for box in photo.boxes]) for photo in photos] == [("a.png", [60, 20])]


def write_xml(root, stem, said, x):
    (root / "Annotations").mkdir(exist_ok=True, parents=True)
    (root / f"Annotations/{stem}.xml").write_text(
        f"<annotation><filename>{said}</filename><size><width>200</width><height>150</height></size><object>"
        f"<name>dog</name><bndbox><xmin>{x + 1}</xmin><ymin>61</ymin><xmax>{x + 30}</xmax><ymax>90</ymax></bndbox>"
        "</object></annotation>")


@pytest.mark.parametrize("said,there,expected", [
    ("a.jpg", "b.jpg", "b.jpg"),  # a copy that was renamed: its own picture
    ("a.png", "b.png", "b.png"),
    ("a.jpg", None, "b.jpg"),  # which is not there: never that of another XML file
    ("z.png", "z.png", "z.png"),  # of no other: as it says
    ("b.png", "b.png", "b.png"),
])
def test_the_picture_of_an_xml_file(tmp_path, said, there, expected):
    for name in {"a.jpg", "a.png", there} - {None}:
        draw(tmp_path / "JPEGImages" / name)
    write_xml(tmp_path, "a", "a.jpg", 60)
    write_xml(tmp_path, "b", said, 20)
    photos = sources.read_voc(tmp_path, None, sources.Skips())
    assert [(photo.file, photo.boxes[0].x) for photo in photos] == [("a.jpg", 60), (expected, 20)]


def test_two_xml_files_of_one_picture_are_one_photo(tmp_path):
    draw(tmp_path / "JPEGImages/z.jpg")
    for stem, x in (("a", 60), ("b", 20)):
        write_xml(tmp_path, stem, "z.jpg", x)
    (photo,) = sources.read_voc(tmp_path, None, sources.Skips())
    assert photo.file == "z.jpg" and [box.x for box in photo.boxes] == [60, 20]


@pytest.mark.parametrize("encoding", ["gb2312", "nonsense"])
def test_xml_files_in_unknown_encodings_are_counted(tmp_path, encoding):
    draw(tmp_path / "JPEGImages/a.jpg")
    write_xml(tmp_path, "a", "a.jpg", 60)
    (tmp_path / "Annotations/b.xml").write_text(f'<?xml version="1.0" encoding="{encoding}"?><annotation/>')
    skips = sources.Skips()
    assert len(sources.read_voc(tmp_path, None, skips)) == 1 and skips.counts == {"bad_xml": 1}


def test_names_with_windows_separators(tmp_path):
    draw(tmp_path / "images/0.png")
    Image.new("L", (200, 150)).save(tmp_path / "images/m.png")
    listed = tmp_path / "x.csv"
    listed.write_text("file,x,y,w,h,mask\nimages\\0.png,60,60,30,30,images\\m.png\n")
    path = coco_file(tmp_path / "x.json", [(1, "images\\0.png")], [(1, 60, 60)])
    (photo,) = read_csv(tmp_path, listed, sources.Skips())
    assert photo.boxes[0].mask[1] == f"{tmp_path}/images/m.png"
    assert [photo.file, *(p.file for p in sources.read_coco(tmp_path, path, sources.Skips()))] == ["images/0.png"] * 2
    for name in ("..\\" + tmp_path.name + "\\images\\0.png", "lost\\0.png"):
        skips = sources.Skips()
        assert read_csv(tmp_path, table(listed, [(name, 1, 1)]), skips) == []
        assert skips.counts == {"bad_image_entry": 1}
    with pytest.raises(UserError, match=r"no image is annotated in .*x.csv \(line 2 names the file 'lost"):
        from_csv(tmp_path, listed, tmp_path / "out")


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_turned_tiffs(tmp_path, orientation):
    upright = np.zeros((40, 30, 3), np.uint8)
    upright[:10, :10] = 255
    image = Image.fromarray(upright)
    as_stored = dict(zip(range(2, 9), (Image.FLIP_LEFT_RIGHT, Image.ROTATE_180, Image.FLIP_TOP_BOTTOM, Image.TRANSPOSE,
                                       Image.ROTATE_90, Image.TRANSVERSE, Image.ROTATE_270), strict=True))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image.transpose(as_stored[orientation])
    stored.save(tmp_path / "a.tif", exif=exif)
    (photo,) = read_csv(tmp_path, table(tmp_path / "x.csv", [("a.tif", 0, 0)]), sources.Skips())
    assert (photo.width, photo.height) == (30, 40) and np.array_equal(cutting.open_annotated(photo), upright)
    as_shown = photo._replace(upright=False)
    # what means the pixels as stored means the turned image where the annotated size is that one's alone
    assert np.array_equal(cutting.open_annotated(as_shown), stored if orientation < 5 else upright)
    if orientation > 4:
        assert np.array_equal(cutting.open_annotated(as_shown._replace(width=40, height=30)), stored)
    with pytest.raises(OSError, match="31 x 40"):
        cutting.open_annotated(as_shown._replace(width=31))


# --- output within the input, kills, what check says ---


@pytest.mark.parametrize("out", ["in/crops", "in"])
def test_crops_are_never_cut_from_crops(tmp_path, stub, out):
    for i in range(3):
        draw(tmp_path / f"in/{i}.png", 40 + i, 50)
    for _ in range(2):
        run("detect", "--images", tmp_path / "in", "--out", tmp_path / out, *SMALL, "--y_from", tmp_path / "in",
            "--test_fraction", "0")
        index = index_of(tmp_path / out)
        used = {crop["source"].split("/")[-1] for kind in ("objects", "backgrounds") for crop in index[kind].values()}
        assert stub.seen == 3 and used == {"0.png", "1.png", "2.png"}


def test_the_crops_themselves_are_no_photographs(tmp_path, stub):
    draw(tmp_path / "in/a.png")
    run("detect", "--images", tmp_path / "in", "--out", tmp_path / "out", *SMALL)
    with pytest.raises(UserError, match="no image in"):
        run("detect", "--images", tmp_path / "out/train/objects", "--out", tmp_path / "out", *SMALL)


def test_folder_takes_no_crops_of_its_own(tmp_path):
    for name in ("x", "y"):
        Image.new("RGB", (40, 40)).save(draw(tmp_path / name / "0.png"))
    for _ in range(2):
        run("folder", "--objects", tmp_path / "x", "--backgrounds", tmp_path / "y", "--out", tmp_path / "x/crops",
            "--crop_size", 32, "--num_workers", 0)
    index = index_of(tmp_path / "x/crops")
    assert list(index["objects"]) == list(index["backgrounds"]) == ["0"]


def test_a_kill_after_the_last_file_is_mended_by_the_same_command(tmp_path, monkeypatch, capsys):
    draw(tmp_path / "a.png")
    boxes, journal = table(tmp_path / "a.csv", [("a.png", 60, 60)]), tmp_path / "out/train" / dataroot.JOURNAL
    with monkeypatch.context() as patch:
        save_index = dataroot.save_index
        patch.setattr(dataroot, "save_index", lambda *index: (save_index(*index), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            from_csv(tmp_path, boxes, tmp_path / "out")
    assert journal.exists()
    capsys.readouterr()
    from_csv(tmp_path, boxes, tmp_path / "out")
    assert "complete already" in capsys.readouterr().out and not journal.exists()
    journal.write_text('{"plan": "of another source", "objects": [], "backgrounds": []}\n')
    from_csv(tmp_path, boxes, tmp_path / "out")
    assert journal.exists()  # that one is unfinished


def test_a_corrected_mask_is_taken(tmp_path):
    draw(tmp_path / "a.png")
    mask = Image.new("L", (200, 150))
    mask.save(tmp_path / "m.png")
    (tmp_path / "a.csv").write_text("file,x,y,w,h,mask\na.png,60,60,30,30,m.png\n")
    from_csv(tmp_path, tmp_path / "a.csv", tmp_path / "out")
    assert index_of(tmp_path / "out")["counts"]["skipped"] == {"bad_mask": 1}
    mask.paste(255, (60, 60, 90, 90))
    mask.save(tmp_path / "m.png")
    masks.read_labels.cache_clear()  # as in another process
    from_csv(tmp_path, tmp_path / "a.csv", tmp_path / "out")
    assert index_of(tmp_path / "out")["counts"]["masks"] == 1
    assert [path.name for path in (tmp_path / "out/train/masks").iterdir()] == ["a_2.png"]


def test_a_mask_that_failed_before_an_interruption_is_tried_again(tmp_path):
    photo = sources.Photo("a.png", str(draw(tmp_path / "a.png")), 200, 150, [])
    box = sources.Box(60, 60, 30, 30, "dog", 1, mask=("mask", str(tmp_path / "m.png")))
    job = cutting.CutJob(photo, [cutting.Piece("a", (45, 45, 60, 60), box)], [])
    for _ in range(2):
        (line,) = build.cut_jobs([job], "plan", tmp_path / "train", 32, 0)
        mask = Image.new("L", (200, 150))
        mask.paste(255, (60, 60, 90, 90))
        mask.save(tmp_path / "m.png")
    assert line["masks"] == {"a": "ok"} and (tmp_path / "train/masks/a.png").exists()


def test_check_looks_at_pictures_only_and_needs_a_list(tmp_path, capsys):
    draw(tmp_path / "a.png")
    from_csv(tmp_path, table(tmp_path / "a.csv", [("a.png", 60, 60)]), tmp_path / "out")
    for name in (".DS_Store", "Thumbs.db", "._a_2.png"):
        (tmp_path / "out/train/objects" / name).write_bytes(b"x")
    assert run("check", tmp_path / "out", "--num_workers", 0) is None
    (tmp_path / "out/train/crops.json").unlink()
    capsys.readouterr()
    with pytest.raises(UserError, match="^1 problems"):
        run("check", tmp_path / "out", "--num_workers", 0)
    assert "without it there is nothing to check" in capsys.readouterr().out


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_sheet_shows_photographs_as_their_boxes_mean_them(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.open(draw(tmp_path / "stored.png", 30, 40))
    image.save(tmp_path / "a.png", exif=exif)
    x, y, *_ = ImageOps.exif_transpose(Image.open(tmp_path / "a.png")).convert("L").point(
        lambda value: value > 200).getbbox()
    from_csv(tmp_path, table(tmp_path / "a.csv", [("a.png", x, y)]), tmp_path / "out", "--max_fraction", "1")
    index = index_of(tmp_path / "out")
    thumbnail = inspection.draw_source(index["images"][0], index["objects"]["a_2"], [], (200, 200))
    assert thumbnail.getpixel((x + 15, y + 15)) == (255, 255, 255)


def test_the_sheet_says_what_its_colours_mean(tmp_path):
    draw(tmp_path / "a.png")
    from_csv(tmp_path, table(tmp_path / "a.csv", [("a.png", 60, 60)]), tmp_path / "out")
    legend = np.asarray(Image.open(tmp_path / "out/train/sheet.jpg").crop((0, 0, 400, 16))).astype(int)
    for red, green, blue in ((0, 255, 0), (255, 255, 0), (255, 0, 0), (0, 191, 255)):  # JPEG blurs the letters
        assert (np.abs(legend - (red, green, blue)).sum(axis=2) < 250).any() and legend[:2].max() < 60


def test_texts_that_are_not_utf_8_are_one_clear_line(tmp_path):
    for name in ("ImageSets/x.txt", "annotations/test.txt", "a.csv", "a.jsonl", "Annotations/a.xml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"file,x,y,w,h\n\xff\xfe,1,2,3,4\n")
    for words in (["voc", "--root", tmp_path, "--image_set", "x"], ["pets", "--root", tmp_path, "--image_set", "test"],
                  ["csv", "--images", tmp_path, "--annotations", tmp_path / "a.csv"],
                  ["cityscapes", "--root", tmp_path, "--detections", tmp_path / "a.jsonl"]):
        with pytest.raises(UserError, match="is not a text in UTF-8") as error:
            run(*words, "--out", tmp_path / "out")
        assert "\n" not in str(error.value)


def test_detections_of_any_shape_are_counted(tmp_path):
    lines = ["[" * 100000, "5", "[]", '{"file": 5}', '{"file": "a.png", "boxes": 5}',
             '{"file": "a.png", "boxes": [[1]]}',
             '{"file": "a.png", "boxes": [], "width": Infinity, "height": 5}', '{"file": "\\u0000", "boxes": []}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    skips = sources.Skips()
    assert sources.read_detections(tmp_path, tmp_path / "a.jsonl", skips) == []
    assert skips.counts == {"bad_line": len(lines)} and all("\n" not in text for text in skips.examples.values())


def test_near_duplicates_of_many_images_in_little_memory():
    rng = np.random.default_rng(0)
    train, test = ([{"file": f"{i}", "hash": rng.bytes(32).hex()} for i in range(n)] for n in (2100, 12000))
    for i, j in ((5, 11000), (2090, 3), (5, 7)):
        test[j]["hash"] = train[i]["hash"]
    tracemalloc.start()
    pairs = inspection.near_duplicates(train, test)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pairs == [("5", "7", 0), ("5", "11000", 0), ("2090", "3", 0)] and peak < 80e6
    assert inspection.near_duplicates([], test) == inspection.near_duplicates(train, []) == []
