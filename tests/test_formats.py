"""One set of boxes in every format that other programs write: the same crops, the same boxes for photo.py; traps.

Long, since a writer of each format, independent of the reader, stands here.
"""
import argparse
import csv
import json
import os
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest
from PIL import Image, features

import photo
import prepare
import train
from crops import formats
from crops.annotations import Skips
from crops.index import read_index
from images import UserError, open_image
from photos import jobs

RULES = ["--crop_size", "32", "--object_size", "16", "--min_side", "8", "--min_aspect", "0", "--num_workers", "0"]
# name: size as viewers show it, EXIF orientation, [(class, left, top, width, height)] in it
TRUTH = {
    "a.png": ((200, 150), 1, [("red dog", 40, 40, 24, 30), ("cat", 130, 50, 40, 24)]),
    "b.jpg": ((150, 200), 6, [("cat", 60, 90, 30, 30)]),
    "c.jpg": ((210, 160), 8, [("red dog", 50, 61, 33, 25), ("red dog", 140, 70, 20, 30)]),
    "sub/d.png": ((180, 180), 3, [("cat", 71, 67, 40, 41)]),
    "e.png": ((160, 120), 1, []),
}
CLASSES = ["cat", "red dog"]


def write_photographs(folder, truth=TRUTH):
    """Noise with red boxes, stored turned where the orientation says so."""
    back = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    for name, (size, orientation, boxes) in truth.items():
        pixels = np.random.default_rng(0).integers(40, 110, (size[1], size[0], 3), dtype=np.uint8)
        for _, x, y, w, h in boxes:
            pixels[y:y + h, x:x + w] = 255, 30, 30
        image, exif = Image.fromarray(pixels), Image.Exif()
        exif[0x0112] = orientation
        image = image if back[orientation] is None else image.transpose(back[orientation])
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name, exif=exif, quality=95)
    return folder


# --- writers, each as its program writes; they return what --annotations takes ---


def coco(folder, images, truth, rename=str):
    data = {"images": [], "annotations": [], "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)]}
    for name, ((width, height), _, boxes) in truth.items():
        number = len(data["images"])
        data["images"].append({"id": number, "file_name": rename(name), "width": width, "height": height})
        for label, *box in boxes:
            data["annotations"].append({"id": len(data["annotations"]), "image_id": number, "bbox": box, "iscrowd": 0,
                                        "category_id": CLASSES.index(label), "segmentation": []})
    path = folder / "result.json"
    path.write_text(json.dumps(data))
    return path


def yolo_files(folder, truth):
    for name, ((width, height), _, boxes) in truth.items():
        path = (folder / name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{CLASSES.index(label)} {(x + w / 2) / width:.6f} {(y + h / 2) / height:.6f} "
                                f"{w / width:.6f} {h / height:.6f}\n" for label, x, y, w, h in boxes))


def yolo_classes(folder, images, truth):
    yolo_files(folder / "labels", truth)
    (folder / "labels" / "classes.txt").write_text("cat\nred dog\n")
    return folder / "labels"


def yolo_roboflow(folder, images, truth):
    yolo_files(folder / "labels", truth)
    (folder / "data.yaml").write_text("train: ../train/images\nnc: 2\nnames: ['cat', \"red dog\"]\nroboflow:\n  v: 1\n")
    return folder / "labels"


def yolo_dict(folder, images, truth):
    """Given by its data.yaml, with names as Ultralytics has them."""
    yolo_files(folder / "labels", truth)
    path = folder / "data.yaml"
    path.write_text("path: .  # here\nnames:\n  0: cat  # small\n\n  1: red dog\ntrain: images\n")
    return path


def yolo_outlines(folder, images, truth):
    (folder / "classes.txt").write_text("cat\nred dog")
    for name, ((width, height), _, boxes) in truth.items():
        path = (folder / name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(
            " ".join([str(CLASSES.index(label)), *(f"{p:.7f}" for p in (
                x / width, (y + h / 2) / height, (x + w / 2) / width, y / height, (x + w) / width, (y + h / 3) / height,
                (x + w / 2) / width, (y + h) / height))]) for label, x, y, w, h in boxes))
    return folder


def labelme(folder, images, truth, outlines=False):
    for name, ((width, height), _, boxes) in truth.items():
        shapes = []
        for label, x, y, w, h in boxes:
            points = [[x + w, y + h], [x, y]]  # corners as the mouse was dragged
            if outlines:
                points = [[x, y], [x + w, y], [x + w, y + h / 2], [x + w / 2, y + h], [x, y + h]]
            shapes.append({"label": label, "points": points, "group_id": None, "flags": {},
                           "shape_type": "polygon" if outlines else "rectangle"})
        shapes.append({"label": "tail", "points": [[3, 3]], "group_id": None, "shape_type": "point"})
        path = (folder / name).with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"version": "5.0", "shapes": shapes, "imagePath": f"..\\photos\\{Path(name).name}",
                                    "imageData": None, "imageHeight": height, "imageWidth": width}))
    return folder


def labelme_outlines(folder, images, truth):
    return labelme(folder, images, truth, outlines=True)


def labelimg(folder, images, truth):
    for name, ((width, height), _, boxes) in truth.items():
        objects = "".join(
            f"<object><name>{escape(label)}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax>"
            f"<ymax>{y + h}</ymax></bndbox></object>" for label, x, y, w, h in boxes)
        (images / name).with_suffix(".xml").write_text(
            f"<annotation><folder>photos</folder><filename>{Path(name).name}</filename><size><width>{width}</width>"
            f"<height>{height}</height><depth>3</depth></size>{objects}</annotation>")
    return images


def table(folder, header, rows):
    with open(folder / "boxes.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return folder / "boxes.csv"


def rows_of(truth):
    return [(name, size, *box) for name, (size, _, boxes) in truth.items() for box in boxes]


def plain_csv(folder, images, truth):
    return table(folder, ["file", "x", "y", "w", "h", "class"],
                 [[name, x, y, w, h, label] for name, _, label, x, y, w, h in rows_of(truth)] + [["e.png", *[""] * 5]])


def tfod(folder, images, truth):
    return table(folder, ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"],
                 [[name, *size, label, x, y, x + w, y + h] for name, size, label, x, y, w, h in rows_of(truth)])


def tfod_stored(folder, images, truth):
    """Its boxes in pixels as stored: the sizes tell."""
    rows = []
    for name, (width, height), label, x, y, w, h in rows_of(truth):
        orientation = truth[name][1]
        if orientation == 6:  # stored turned to the left
            (x, y, w, h), (width, height) = (y, width - x - w, h, w), (height, width)
        elif orientation == 8:
            (x, y, w, h), (width, height) = (height - y - h, x, h, w), (height, width)
        rows.append([name, width, height, label, x, y, x + w, y + h])
    return table(folder, ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"], rows)


def via(folder, images, truth):
    rows = []
    for name, (_, _, boxes) in truth.items():
        for i, (label, x, y, w, h) in enumerate(boxes):
            shape = {"name": "rect", "x": x, "y": y, "width": w, "height": h}
            if label == "cat" and i:
                shape = {"name": "polygon", "all_points_x": [x, x + w, x], "all_points_y": [y, y + 1, y + h]}
            elif label == "cat":
                shape = {"name": "ellipse", "cx": x + w / 2, "cy": y + h / 2, "rx": w / 2, "ry": h / 2}
            rows.append([name, 9999, "{}", len(boxes), i, json.dumps(shape), json.dumps({"colour": "", "type": label})])
        if not boxes:
            rows.append([name, 9999, "{}", 0, 0, "{}", "{}"])
    return table(folder, ["filename", "file_size", "file_attributes", "region_count", "region_id",
                          "region_shape_attributes", "region_attributes"], rows)


def open_images(folder, images, truth):
    return table(folder, ["ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax", "IsOccluded",
                          "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside"],
                 [[os.path.splitext(name)[0], "xclick", label, 1, x / w0, (x + w) / w0, y / h0, (y + h) / h0, *[0] * 5]
                  for name, (w0, h0), label, x, y, w, h in rows_of(truth)])


def label_studio(folder, images, truth):
    return coco(folder, images, truth, lambda name: f"images/{name}")


def label_studio_windows(folder, images, truth):
    return coco(folder, images, truth, lambda name: f"images\\{name}")


def label_studio_hash(folder, images, truth):
    """As uploaded: a path of the server, and a hash before the name."""
    def rename(name):
        path = f"../../label-studio/data/media/upload/3/{Path(name).parent}/0a1b2c3d-{Path(name).name}"
        return path.replace("/./", "/")
    return coco(folder, images, truth, rename)


WRITERS = [plain_csv, yolo_classes, yolo_roboflow, yolo_dict, yolo_outlines, labelme, labelme_outlines, labelimg, tfod,
           tfod_stored, via, open_images, label_studio, label_studio_windows, label_studio_hash]
KIND = {"plain_csv": "csv", "tfod": "csv", "tfod_stored": "csv", "via": "csv", "open_images": "csv",
        **{writer.__name__: writer.__name__.split("_")[0] for writer in WRITERS if writer.__name__[0] == "y"},
        "labelme": "labelme", "labelme_outlines": "labelme", "labelimg": "labelimg"}


@pytest.fixture
def images(tmp_path):
    return write_photographs(tmp_path / "photos")


def crops_of(root):
    """{(photograph, class): [(box in the crop, box in the photograph)]} of crops.json, and the crops' pixels."""
    objects = read_index(root, "train")["objects"]
    found = {}
    for stem, crop in sorted(objects.items(), key=lambda item: item[1]["source_box"]):
        pixels = np.asarray(Image.open(Path(root) / "train/objects" / f"{stem}.png"))
        found.setdefault((crop["source"], crop["class"]), []).append((crop["box"], crop["source_box"], pixels))
    return found


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_format_gives_the_crops_of_coco(images, tmp_path, write, capsys):
    folder = tmp_path / "labels_of_it"
    folder.mkdir()
    prepare.run(["coco", "--images", str(images), "--annotations", str(coco(tmp_path, images, TRUTH)), "--out",
                 str(tmp_path / "coco"), *RULES])
    capsys.readouterr()
    labels = write(folder, images, TRUTH)
    out = str(tmp_path / "out")
    prepare.run(["boxes", "--images", str(images), "--annotations", str(labels), "--out", out, *RULES])
    kind = KIND.get(write.__name__, "coco")
    assert f"{labels}: read as {formats.KINDS[kind]}\n" in capsys.readouterr().out
    assert read_index(tmp_path / "out", "train")["rules"][0]["command"] == kind
    expected, got = crops_of(tmp_path / "coco"), crops_of(tmp_path / "out")
    assert got.keys() == expected.keys() and sum(map(len, got.values())) == 6
    turned = {"b.jpg", "c.jpg"} if write is tfod_stored else ()
    for key, crops in expected.items():
        for (box, place, pixels), (box2, place2, pixels2) in zip(crops, got[key], strict=True):
            assert box2 == pytest.approx(box, abs=0.5)
            if key[0] not in turned:
                assert place2 == pytest.approx(place, abs=0.5)
                assert np.abs(pixels.astype(int) - pixels2).mean() < 3
    if write is labelme_outlines:
        assert len(list((tmp_path / "out/train/masks").iterdir())) == 6


@pytest.mark.parametrize("write", [coco, *WRITERS], ids=lambda write: write.__name__)
def test_photo_takes_boxes_of_every_format(images, tmp_path, write):
    folder = tmp_path / "labels_of_it"
    folder.mkdir()
    args = argparse.Namespace(image=None, masks=None, mask=None, images=str(images), box=None,
                              boxes=str(write(folder, images, TRUTH)), score=0.8, classes=(),
                              out=str(tmp_path / "out"), only=None)
    found, problems = jobs.find_jobs(args)
    assert not [text for text in problems if "other_shape" not in text]
    assert {job.file for job in found} == {name for name, (_, _, boxes) in TRUTH.items() if boxes}
    for job in found:
        boxes = jobs.upright_boxes(job._replace(boxes=sorted(job.boxes)))
        expected = sorted(tuple(box[1:]) for box in TRUTH[job.file][2])
        assert np.allclose(sorted(boxes), expected, atol=0.5), job.file


def test_a_newcomer_gets_cutouts_in_four_commands(tmp_path, monkeypatch):
    """Ten photographs and a YOLO export as Roboflow lays it out."""
    monkeypatch.chdir(tmp_path)
    truth = {f"{i}.jpg": ((200, 150), 1, [("cat", 40 + 5 * i, 50, 40, 36)]) for i in range(10)}
    write_photographs(tmp_path / "export/train/images", truth)
    yolo_files(tmp_path / "export/train/labels", truth)
    (tmp_path / "export/data.yaml").write_text("names:\n- cat\n- red dog\nnc: 2\n")
    (tmp_path / "export/README.dataset.txt").write_text("butterflies of mine\n")
    tiny = ("--gpu -1 --size 16 --ngf 4 --ndf 4 --n_layers_D 2 --seg_blocks 1 --unet_downs 2 --batch_size 2 "
            "--num_threads 0 --n_epochs 1")
    for command, line in (
            (prepare, "yolo --images export/train/images --annotations export/train/labels --out crops"),
            (prepare, "check crops"),
            (train, f"--dataroot crops --name cats {tiny}"),
            (photo, "cut --images export/train/images --boxes export/data.yaml --name cats --out cutouts --gpu -1")):
        assert command.main(line.split()) == 0, line
    cutouts = sorted(path.name for path in (tmp_path / "cutouts/cut").iterdir())
    assert cutouts == [f"{i}.jpg.png" for i in range(10)]
    assert Image.open(tmp_path / "cutouts/cut/3.jpg.png").mode == "RGBA"


# --- what cannot be used, in one line ---


def refused(images, path, text):
    with pytest.raises((UserError, OSError)) as error:
        formats.read_boxes(images, path, Skips())
    assert text in str(error.value) and "\n" not in str(error.value) and "[Errno" not in str(error.value), error.value


@pytest.mark.parametrize("name, text, message", [
    ("x.xml", '<?xml version="1.0"?>\n<annotations><version>1.1</version></annotations>', "the task as COCO 1.0"),
    ("x.xml", "<annotation><object/></annotation>", "give the folder of such files"),
    ("x.json", '[{"id": 1, "data": {"image": "/a.jpg"}, "annotations": []}]', "Label Studio's JSON, export it as COCO"),
    ("x.json", '[{"image": "/a.jpg", "label": []}]', "Label Studio's JSON, export it as COCO"),
    ("x.json", '{"shapes": [], "imagePath": "a.png"}', "LabelMe's of one image, give the folder"),
    ("x.json", '{"_via_img_metadata": {}}', "export its annotations as CSV"),
    ("x.json", "[" * 9999, "is not valid JSON"),
    ("x.json", "", "is not valid JSON"),
    ("x.csv", "file,x,y,w,h\na.png,0.25,0.5,.5,.25\n", "every box of"),
    ("x.csv", "file,xmin,ymin,xmax,ymax\na.png,0.25,0.5,.75,.95\n", "normalised coordinates"),
    ("x.csv", "0 0.5 0.5 0.2 0.2\n", "must start with a header"),
    ("data.yaml", "nc: 2\n", "lists no class"),
])
def test_files_of_other_kinds_name_the_way_out(images, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    refused(images, tmp_path / name, message)


def test_folders_of_other_kinds_name_the_way_out(images, tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    refused(images, folder, "no boxes of a known format")
    (folder / "a.txt").write_text("0 .5 .5 .2 .2\n")
    refused(images, folder, "YOLO's .txt with data.yaml or classes.txt beside or above")
    (folder / "classes.txt").write_text("cat\n")
    assert formats.read_boxes(images, folder, Skips())[0] == "yolo"
    (folder / "a.xml").write_text("<annotation/>")
    refused(images, folder, "several formats (yolo, labelimg)")
    (folder / "a.xml").write_text("<annotations/>")
    refused(images, folder, "CVAT's XML")
    refused(images, tmp_path / "none", "no annotation file")
    os.mkfifo(tmp_path / "pipe")
    refused(images, tmp_path / "pipe", "no regular file")


@pytest.mark.parametrize("words, text", [
    (["--annotations", "DIR"], "holds no boxes of a known"), (["--images", "DIR/a.png"], "--images takes a folder"),
    (["--annotations", "DIR/a.png"], "not a text in UTF-8"), (["--y_from", "DIR/a.png"], "a folder of images"),
    (["--out", "DIR/a.png"], "--out takes a folder")])
def test_files_and_folders_mixed_up_are_one_line(images, capsys, words, text):
    (images / "x.csv").write_text("file,x,y,w,h\na.png,40,40,24,30\n")
    usual = ["--images", "DIR", "--annotations", "DIR/x.csv", "--out", "DIR/out"]
    assert prepare.main(["csv", *(word.replace("DIR", str(images)) for word in usual + words), *RULES]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "[Errno" not in err and err.startswith("prepare.py: error: ") and text in err


YAMLS = {
    "names: [a, 'b c', \"d\"]": {0: "a", 1: "b c", 2: "d"},
    "names: [\n  a,\n  b\n]\nnc: 2": {0: "a", 1: "b"},
    "names: {0: a, 2: 'b, c'}": {0: "a", 2: "b, c"},
    "names:  # of mine\n- a\n- b # two\nnc: 2\n- c": {0: "a", 1: "b"},
    "nc: 1\nnames:\n  3: 'x y'\n  # more\n\n  10: z\npath: /": {3: "x y", 10: "z"},
    "names: []": {}, "names:": {}, "": {}, "names: {": {}, "othernames: [a]": {},
    "\ufeffnames: [a]".lstrip("\ufeff"): {0: "a"},
}


@pytest.mark.parametrize("text", YAMLS)
def test_names_of_a_data_yaml(text):
    assert formats.yaml_names(text) == YAMLS[text]


def test_hostile_labels_are_counted(images, tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    secret = tmp_path / "secret.txt"
    secret.write_text("0 .5 .5 .2 .2\n")
    (folder / "classes.txt").write_text("cat\n")
    lines = ["0 .5 .5 .2 .2", "7 .5 .5 .2 .2", "x y", "0 nan .5 .2 .2", "0 50 50 20 20", "0 .5 .5 .2",
             "\x1b[2J 0 0 0 0", "0 " + "9" * 5000 + " .5 .2 .2", "0 .1 .1 .2 .2 .3 .3 .4"]
    (folder / "a.txt").write_text("\n".join(lines))
    (folder / "b.txt").symlink_to(secret)
    (folder / "c.txt").write_bytes(b"\xff\xfe")
    (folder / "other.txt").write_text("")
    skips = Skips()
    kind, photos = formats.read_boxes(images, folder, skips)
    assert kind == "yolo" and [box.name for photo in photos for box in photo.boxes] == ["cat", ""]
    assert photos[0].unplaced and skips.counts == {
        "bad_box": 7, "unknown_class": 1, "link_out": 1, "bad_annotation_file": 1, "no_photograph": 1}
    assert all(text.isprintable() for text in skips.examples.values())


@pytest.mark.parametrize("shape", [
    {"points": "x"}, {"points": [[1, 2]]}, {"points": [[1, 2], [3, "4"], [5, 6]]},
    {"points": [[1, 2], [3, 1e9], [5, 6]]}, {"points": None}, {"points": [[1, 2, 3]] * 3},
    {"points": [[1, 2], [3, float("inf")], [5, 6]]}])
def test_hostile_shapes_are_counted(images, tmp_path, shape):
    (tmp_path / "labels").mkdir()
    data = {"shapes": [{"label": "cat", "shape_type": "polygon", **shape}], "imagePath": 5, "imageWidth": "x"}
    (tmp_path / "labels/a.json").write_text(json.dumps(data))
    skips = Skips()
    (found,) = formats.read_boxes(images, tmp_path / "labels", skips)[1]
    assert found.unplaced and not found.boxes and skips.counts == {"bad_box": 1}


@pytest.mark.parametrize("shape", ["{", "[]", '{"name": []}', '{"name": "rect", "x": "a"}', '{"name": "polyline"}',
                                   '{"name": "rect", "x": 1, "y": 2, "width": -3, "height": 4}',
                                   '{"name": "polygon", "all_points_x": [], "all_points_y": []}',
                                   '{"name": "polygon", "all_points_x": [1, "a"], "all_points_y": [1, 2]}'])
def test_hostile_regions_of_via_are_counted(images, tmp_path, shape):
    path = table(tmp_path, ["filename", "region_shape_attributes", "region_attributes"], [["a.png", shape, "{"]])
    skips = Skips()
    (found,) = formats.read_csv(images, path, skips)
    assert found.unplaced and not found.boxes and skips.counts == {"bad_box": 1}


def test_shapes_of_a_group_are_one_object(images, tmp_path):
    (tmp_path / "labels").mkdir()
    parts = [[[10, 10], [20, 10], [20, 20]], [[50, 60], [70, 60], [70, 80]]]
    shapes = [{"label": "cat", "points": points, "group_id": 4, "shape_type": "polygon"} for points in parts]
    shapes.append({"label": "cat", "points": [[100, 100], [103, 104]], "shape_type": "circle"})
    (tmp_path / "labels/a.json").write_text(json.dumps({"shapes": shapes}))
    (found,) = formats.read_boxes(images, tmp_path / "labels", Skips())[1]
    assert [box[:5] for box in found.boxes] == [(10, 10, 60, 70, "cat"), (95, 95, 10, 10, "cat")]
    assert len(found.boxes[0].mask[1]) == 2 and found.boxes[1].mask is None


def test_a_photograph_of_another_size_than_annotated_is_counted(images, tmp_path):
    path = tfod(tmp_path, images, {"a.png": ((400, 300), 1, TRUTH["a.png"][2])})
    skips = Skips()
    assert formats.read_csv(images, path, skips) == [] and skips.counts == {"other_size": 1}


def test_an_exports_prefix_is_left_out_only_where_it_cannot_mislead(images, tmp_path):
    for rename in ("val/{}", "images/x/../{}"):
        path = coco(tmp_path, images, TRUTH, rename.format)
        photos = formats.read_boxes(images, path, Skips())[1]
        assert not any(os.path.isfile(found.path) for found in photos)
    data = json.loads(coco(tmp_path, images, {"a.png": TRUTH["a.png"]}).read_text())
    data["images"] = [{**data["images"][0], "id": i, "file_name": f"{i:08x}-a.png"} for i in range(2)]
    (tmp_path / "two.json").write_text(json.dumps(data))
    photos = formats.read_boxes(images, tmp_path / "two.json", Skips())[1]
    assert [found.file for found in photos] == ["00000000-a.png", "00000001-a.png"]  # two uploads of one name


# --- kinds of images ---


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow decodes no AVIF")
def test_avif_is_read(images, tmp_path):
    Image.open(images / "a.png").save(images / "a.avif", quality=95)
    (images / "a.png").unlink()
    out = tmp_path / "out"
    prepare.run(["yolo", "--images", str(images), "--annotations", str(yolo_classes(tmp_path, images, TRUTH)), "--out",
                 str(out), *RULES])
    assert sum(crop["source"] == "a.avif" for crop in read_index(out, "train")["objects"].values()) == 2


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc", b"mif1"])
def test_heic_is_read_or_its_line_names_the_package(images, brand):
    path = images / "x.heic"
    path.write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(100))
    with pytest.raises(OSError, match="x.heic") as error:
        open_image(path)
    try:
        import pillow_heif  # noqa: F401
    except ImportError:
        assert "the package pillow-heif (pip install pillow-heif)" in str(error.value)
