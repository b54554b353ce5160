"""Every reader on a small source with known boxes; masks against pycocotools; hostile files.

Long, as crops/annotations.py reads many formats, each tested on a source written by hand.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare
from crops import coco_masks as masks
from crops.annotations import Skips, read_cityscapes, read_coco, read_cub, read_detections, read_pets, read_voc
from crops.formats import read_csv
from images import UserError

DATA = Path(__file__).parents[2] / "shared" / "data"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
needs_data = pytest.mark.skipif(
    not (DATA / "coco_mini").is_dir(), reason=f"no {DATA}: masks of COCO not compared"
)


def write_coco(folder, annotations, images=None, categories=None):
    images = [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 100}] if images is None else images
    categories = [{"id": 3, "name": "dog"}] if categories is None else categories
    path = folder / "instances.json"
    path.write_text(
        json.dumps({"info": {}, "annotations": annotations, "images": images, "categories": categories})
    )
    return path


def annotation(**changes):
    return {
        "id": 7,
        "image_id": 1,
        "category_id": 3,
        "bbox": [10, 20, 30, 40],
        "iscrowd": 0,
        "segmentation": [[10, 20, 40, 20, 40, 60, 10, 60]],
        **changes,
    }


def boxes_of(photos):
    return [tuple(b[:4]) for p in photos for b in p.boxes]


# --- JSON text ---


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        '{"images": [1, 2',
        '{"images": [1 2], "annotations": []}',
        '{"images": {}, "annotations": []}',
        '{"images": [], "annotations": "x"}',
        '{"images": [], "annotations": [], "categories": {}}',
        '{"images": []}',
        '{"images": [' + "[" * 100000,
        '{"images": [' + "9" * 6000 + "]}",
        '{"images": [tru]}',
        '{"images": [], "annotations": []} x',
        b'{"images": ["\xff\xfe"]}',
    ],
)
def test_what_is_not_coco_is_one_clear_line(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_coco("images", path, Skips())
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_coco_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="check --annotations"):
        read_coco("images", tmp_path / "none.json", Skips())


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = write_coco(tmp_path, [annotation()])
    path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    assert len(read_coco("images", path, Skips())) == 1


# --- COCO ---


def test_coco(tmp_path):
    skips = Skips()
    path = write_coco(tmp_path, [annotation(), annotation(id=8, iscrowd=1, bbox=[1, 2, 3, 4])])
    (p,) = read_coco("images", path, skips)
    assert (p.file, p.path, p.width, p.height, p.upright, p.unplaced) == (
        "a.jpg",
        "images/a.jpg",
        200,
        100,
        True,
        False,
    )
    assert boxes_of([p]) == [(10, 20, 30, 40), (1, 2, 3, 4)]
    assert [(b.name, b.id, b.crowd) for b in p.boxes] == [("dog", 7, False), ("dog", 8, True)]
    mask = masks.decode_mask(p.boxes[0].mask, 200, 100, (0, 0, 200, 100))
    assert mask[20:60, 10:40].min() == 255 and mask.sum() == 255 * 1200 and p.boxes[1].mask is None
    assert not skips.counts


HOSTILE = {  # change to a good annotation -> reason that it is skipped for
    "bad_box": [
        {"bbox": b}
        for b in (
            None,
            [],
            [1, 2, 3],
            "1234",
            [1, 2, 3, "4"],
            [1, 2, -3, 4],
            [1, 2, 3, -4],
            [float("nan"), 2, 3, 4],
            [1, 2, float("inf"), 4],
            [1e12, 2, 3, 4],
            [1, 2, 3, 1e200],
            [10**400, 1, 2, 3],
            [True, 1, 2, 3],
            {"x": 1},
        )
    ],
    "unknown_image": [{"image_id": i} for i in (99, None, [1], {"a": 1}, 1.5, "1")],
    "unknown_class": [{"category_id": c} for c in (99, None, [3], {"a": 1})],
    "bad_mask": [
        {"segmentation": s}
        for s in (
            "x",
            5,
            [5],
            [["a"]],
            [[None] * 6],
            [{"a": 1}],
            {"counts": 3},
            {"a": 1},
            {"size": None, "counts": [1]},
            {"size": [100, 200], "counts": [-1, 2]},
            {"size": [100, 200], "counts": [1.5]},
            {"size": [100, 200], "counts": {"a": 1}},
        )
    ],
}


@pytest.mark.parametrize("reason,change", [(r, c) for r, changes in HOSTILE.items() for c in changes])
def test_hostile_coco_annotations_are_counted_by_name(tmp_path, reason, change):
    skips = Skips()
    path = write_coco(tmp_path, [annotation(id=6, bbox=[100, 20, 30, 40]), annotation(**change)])
    (p,) = read_coco("images", path, skips)
    assert skips.counts == {reason: 1} and "\n" not in skips.examples[reason]
    assert p.unplaced == (reason == "bad_box")  # an object somewhere: no crop of this image can be trusted
    kept = {"bad_box": [6], "unknown_image": [6], "unknown_class": [6, 7], "bad_mask": [6, 7]}[reason]
    assert [b.id for b in p.boxes] == kept
    if reason == "unknown_class":
        assert p.boxes[1].name == ""  # keeps crops away all the same
    if reason == "bad_mask":
        assert p.boxes[1].mask is None


@pytest.mark.parametrize("key", ["id", "image_id", "category_id", "bbox", "iscrowd", "segmentation"])
def test_missing_keys(tmp_path, key):
    skips = Skips()
    good = annotation()
    del good[key]
    photos = read_coco("images", write_coco(tmp_path, [good]), skips)
    expected = {"image_id": "unknown_image", "category_id": "unknown_class", "bbox": "bad_box"}.get(key)
    assert dict(skips.counts) == ({expected: 1} if expected else {})
    assert len(photos[0].boxes) == (key not in ("image_id", "bbox"))


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"id": 1},
        {"id": 1, "file_name": 5},
        {"id": None, "file_name": "a.jpg"},
        5,
        None,
        {"id": 1, "file_name": "../../etc/passwd"},
        {"id": 1, "file_name": "/etc/passwd"},
        {"id": 1, "file_name": ""},
        {"id": [1], "file_name": "a.jpg"},
    ],
)
def test_hostile_images(tmp_path, entry):
    skips = Skips()
    good = {"id": 2, "file_name": "b.jpg", "width": 200, "height": 100}
    photos = read_coco(
        "images", write_coco(tmp_path, [5, None, annotation(image_id=2)], [entry, good]), skips
    )
    assert [p.file for p in photos] == ["b.jpg"] and len(photos[0].boxes) == 1
    assert sum(skips.counts.values()) == 3


def test_one_image_under_two_ids_is_one_photo(tmp_path):
    images = [{"id": i, "file_name": "a.jpg", "width": 200, "height": 100} for i in (1, 2)]
    photos = read_coco(
        "images", write_coco(tmp_path, [annotation(), annotation(image_id=2)], images), Skips()
    )
    assert len(photos) == 1 and len(photos[0].boxes) == 2


def test_coco_files_without_their_parts(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"images": [{"id": 1, "file_name": "a.jpg"}]}')
    with pytest.raises(UserError, match="has no list of annotations"):
        read_coco("images", path, Skips())


# --- masks ---


@needs_data
def test_all_masks_of_coco_and_butterflies_equal_pycocotools(capsys):
    COCO = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed").COCO
    compared = 0
    for path in (
        DATA / "coco_mini/annotations/instances_val2017.json",
        DATA / "butterflies/annotations_test.json",
    ):
        coco = COCO(str(path))
        for p in read_coco("images", path, Skips()):
            for b in p.boxes:
                if not b.crowd:
                    got = masks.decode_mask(b.mask, p.width, p.height, (0, 0, p.width, p.height))
                    assert np.array_equal(got, coco.annToMask(coco.anns[b.id]) * 255)
                    compared += 1
    assert compared > 700


def test_random_polygons_and_run_lengths_equal_pycocotools():
    coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    rng = np.random.default_rng(0)
    for trial in range(150):
        width, height = rng.integers(5, 60, 2).tolist()
        count = int(rng.integers(3, 9))
        polygon = rng.uniform(-0.3 if trial % 2 else 0.02, 1.3 if trial % 2 else 0.98, (count, 2)) * (
            width,
            height,
        )
        xy = polygon.ravel().tolist() if trial % 3 else np.round(polygon).ravel().tolist()
        if trial % 2 and min(xy) < 0:
            xy = np.abs(xy).tolist()  # pycocotools truncates negative numbers upwards; no data set has them
        rle = coco.frPyObjects([xy], height, width)
        truth = np.asarray(coco.decode(rle))[..., 0] * 255
        region = (width // 4, height // 4, width, height - 1)
        part = masks.decode_mask(masks.pack_segmentation([xy]), width, height, region)
        assert np.array_equal(part, truth[region[1] : region[3], region[0] : region[2]]), (trial, xy)
        text = rle[0]["counts"].decode()
        packed = masks.pack_segmentation({"size": [height, width], "counts": text})
        assert np.array_equal(masks.decode_mask(packed, width, height, (0, 0, width, height)), truth)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [[]],
        [[1e9] * 8],
        [[float("nan")] * 6],
        [[1e300] * 6],
        {"size": [100, 200], "counts": [5]},
        {"size": [100, 200], "counts": [20001]},
        {"size": [100, 200], "counts": []},
        {"size": [200, 100], "counts": [20000]},
        {"size": [100, 200], "counts": "abc"},
        {"size": [100, 200], "counts": "é"},
        {"size": [100, 200], "counts": "o"},
        {"size": [100, 200], "counts": "PPPPPPPPPPPPPPPPPPPPPPPPPPPP"},
    ],
)
def test_broken_masks_raise_one_clear_error(segmentation):
    with pytest.raises((ValueError, OverflowError)) as error:
        masks.decode_mask(masks.pack_segmentation(segmentation), 200, 100, (0, 0, 200, 100))
    assert "\n" not in str(error.value)


def test_a_mask_file_of_another_size_is_refused(tmp_path):
    Image.new("L", (201, 100)).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match="100 x 200"):
        masks.decode_mask(("png", str(tmp_path / "m.png"), 1, None), 200, 100, (0, 0, 200, 100))


# --- Pascal VOC ---


def write_voc(root, objects, size=(200, 100), labels=None):
    for name in ("Annotations", "JPEGImages", "SegmentationObject", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True, exist_ok=True)
    items = "".join(
        f"<object><name>{name}</name><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
        f"<bndbox><xmin>{b[0]}</xmin><ymin>{b[1]}</ymin><xmax>{b[2]}</xmax><ymax>{b[3]}</ymax></bndbox>"
        "</object>"
        for name, b in objects
    )
    (root / "Annotations/a.xml").write_text(
        f"<annotation><filename>a.jpg</filename><size><width>{size[0]}</width><height>{size[1]}</height></size>{items}"
        "</annotation>"
    )
    Image.new("RGB", (200, 100)).save(root / "JPEGImages/a.jpg")
    if labels is not None:
        image = Image.fromarray(labels).convert("P")
        image.putdata(labels.ravel().tolist())
        image.save(root / "SegmentationObject/a.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("a\n")


def test_voc(tmp_path):
    labels = np.zeros((100, 200), np.uint8)
    labels[19:59, 9:39], labels[50:80, 100:150], labels[59:61, 9:39] = 1, 2, 255
    write_voc(tmp_path, [("dog", (10, 20, 39, 59)), ("cat", (101, 51, 150, 80))], labels=labels)
    skips = Skips()
    (p,) = read_voc(tmp_path, "Segmentation/train", skips)
    assert boxes_of([p]) == [(9, 19, 30, 40), (100, 50, 50, 30)] and not skips.counts
    assert [b.name for b in p.boxes] == ["dog", "cat"] and (p.width, p.height, p.upright) == (200, 100, True)
    for number, b in enumerate(p.boxes, 1):
        mask = masks.decode_mask(b.mask, 200, 100, (0, 0, 200, 100))
        assert np.array_equal(mask == 255, labels == number) and np.array_equal(mask == 128, labels == 255)
    assert read_voc(tmp_path, None, skips) == [p]


def test_hostile_voc(tmp_path):
    skips = Skips()
    write_voc(
        tmp_path,
        [("dog", (10, "x", 39, 59)), ("dog", (39, 20, 10, 59)), ("dog", (10, 20, 39, 59))],
        size=(0, ""),
    )
    (tmp_path / "Annotations/b.xml").write_text("<annotation><object>")
    (p,) = read_voc(tmp_path, None, skips)
    assert skips.counts == {"bad_box": 2, "bad_xml": 1} and p.unplaced and len(p.boxes) == 1
    assert (p.width, p.height) == (200, 100)  # from the file, where the XML does not say
    with pytest.raises(FileNotFoundError, match="--image_set"):
        read_voc(tmp_path, "Main/none", skips)
    with pytest.raises(FileNotFoundError, match="--root"):
        read_voc(tmp_path / "none", None, skips)


# --- Cityscapes ---


def write_cityscapes(root, objects, name="aachen_000000_000019"):
    for kind in ("gtFine", "leftImg8bit"):
        (root / kind / "train/aachen").mkdir(parents=True, exist_ok=True)
    text = json.dumps({"imgHeight": 100, "imgWidth": 200, "objects": objects})
    (root / f"gtFine/train/aachen/{name}_gtFine_polygons.json").write_text(text)
    labels = np.full((100, 200), 7, np.int32)
    labels[20:41, 30:61] = 26000
    labels[20:41, 100:131] = 26001
    Image.fromarray(labels.astype(np.uint16)).save(
        root / f"gtFine/train/aachen/{name}_gtFine_instanceIds.png"
    )
    Image.new("RGB", (200, 100)).save(root / f"leftImg8bit/train/aachen/{name}_leftImg8bit.png")


def square(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


CITY = [
    {"label": "road", "polygon": square(0, 50, 199, 99)},
    {"label": "car", "polygon": square(30, 20, 60, 40)},
    {"label": "car", "polygon": square(1, 1, 5, 5), "deleted": 1},
    {"label": "car", "polygon": square(100, 20, 130, 40)},
    {"label": "cargroup", "polygon": square(150, 20, 250, 40)},
    {"label": "ego vehicle", "polygon": square(0, 90, 199, 99)},
    {"label": "person", "polygon": square(70, 20, 80, 50)},
    {"label": "license plate", "polygon": square(1, 1, 2, 2)},
]


def test_cityscapes(tmp_path):
    write_cityscapes(tmp_path, CITY)
    skips = Skips()
    (p,) = read_cityscapes(tmp_path, "train", skips)
    assert (
        p.file == "aachen/aachen_000000_000019_leftImg8bit.png"
        and Path(p.path).is_file()
        and not skips.counts
    )
    found = {b.id: (b.name, tuple(b[:4]), b.crowd) for b in p.boxes}
    assert found == {
        26000: ("car", (30, 20, 31, 21), False),
        26001: ("car", (100, 20, 31, 21), False),
        "group4": ("car", (150, 20, 50, 21), True),
        "group5": ("ego vehicle", (0, 90, 200, 10), True),
        24000: ("person", (70, 20, 11, 31), False),
    }
    mask = masks.decode_mask(p.boxes[1].mask, 200, 100, (90, 10, 140, 50))
    assert mask[10:31, 10:41].min() == 255 and (mask == 255).sum() == 21 * 31


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"imgHeight": 1}',
        '{"imgHeight": 9, "imgWidth": 9, "objects": [{"label": "car"}]}',
        '{"imgHeight": 9, "imgWidth": 9, "objects": [{"label": "car", "polygon": []}]}',
        '{"imgHeight": 9, "imgWidth": 9, "objects": [{"label": "car", "polygon": [[NaN, 1]]}]}',
    ],
)
def test_hostile_cityscapes(tmp_path, text):
    write_cityscapes(tmp_path, CITY)
    (tmp_path / "gtFine/train/aachen/b_gtFine_polygons.json").write_text(text)
    skips = Skips()
    assert len(read_cityscapes(tmp_path, "train", skips)) == 1
    assert skips.counts == {"bad_annotation_file": 1}
    with pytest.raises(FileNotFoundError, match="gtFine"):
        read_cityscapes(tmp_path, "val", skips)


# --- CSV, pets, detections ---


@pytest.fixture
def pictures(tmp_path):
    Image.new("RGB", (200, 100)).save(tmp_path / "a.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(tmp_path / "b.jpg", exif=exif)
    return tmp_path


@pytest.mark.parametrize(
    "header,line",
    [
        ("file,x,y,w,h", "10,20,30,40"),
        ("file,xmin,ymin,xmax,ymax", "10,20,40,60"),
        ("File, x, y, width, height", "10, 20, 30, 40"),
        ("file,x1,y1,x2,y2", "10,20,40,60"),
    ],
)
def test_csv(pictures, header, line):
    path = pictures / "boxes.csv"
    path.write_text(f"{header},class,score\na.jpg,{line},dog,0.5\nb.jpg,{line},,\n")
    photos = read_csv(pictures, path, Skips())
    assert boxes_of(photos) == [(10, 20, 30, 40)] * 2
    assert [(p.file, p.width, p.height, p.upright) for p in photos] == [
        ("a.jpg", 200, 100, True),
        ("b.jpg", 100, 200, True),
    ]
    assert [(b.name, b.score) for p in photos for b in p.boxes] == [("dog", 0.5), ("object", 1.0)]


@pytest.mark.parametrize("column", ["class", "Label", "category"])
@pytest.mark.parametrize("between", ",;")
def test_csv_of_spreadsheets(pictures, column, between):
    path = pictures / "boxes.csv"
    path.write_text(f"file,x,y,w,h,{column}\na.jpg,10,20,30,40,red dog\n".replace(",", between))
    (photo,) = read_csv(pictures, path, Skips())
    assert boxes_of([photo]) == [(10, 20, 30, 40)] and photo.boxes[0].name == "red dog"


def test_hostile_csv(pictures):
    path, skips = pictures / "boxes.csv", Skips()
    path.write_text(
        "file,x,y,w,h,class\na.jpg,,,,,\na.jpg,1,2,3,4,dog\nb.jpg,1,2,x,4\n../c.jpg,1,2,3,4\n,1,2,3,4\nb.jpg,1,2,-3,nan\n"
    )
    photos = {p.file: p for p in read_csv(pictures, path, skips)}
    assert skips.counts == {"bad_box": 2, "bad_image_entry": 2}
    assert len(photos["a.jpg"].boxes) == 1 and not photos["a.jpg"].unplaced and photos["b.jpg"].unplaced
    for text in (
        "",
        "name,x,y,w,h\n",
        "file,x,y\n",
        "file,x,y,w,h\n\0\xff".encode("latin-1").decode("latin-1"),
    ):
        path.write_text(text)
        if not text.startswith("file,x,y,w"):
            with pytest.raises(UserError, match="header"):
                read_csv(pictures, path, Skips())
    with pytest.raises(FileNotFoundError, match="check --annotations"):
        read_csv(pictures, pictures / "none.csv", Skips())


def test_pets(tmp_path):
    for name in ("images", "annotations/trimaps"):
        (tmp_path / name).mkdir(parents=True)
    labels = np.full((100, 200), 2, np.uint8)
    labels[20:60, 30:90], labels[25:55, 35:85] = 3, 1
    Image.fromarray(labels).save(tmp_path / "annotations/trimaps/beagle_1.png")
    (tmp_path / "annotations/trainval.txt").write_text("#comment\nbeagle_1 1 2 1\nlost_2 1 1 1\n")
    skips = Skips()
    (p,) = read_pets(tmp_path, "trainval", skips)
    assert (
        boxes_of([p]) == [(30, 20, 60, 40)] and p.boxes[0].name == "dog" and skips.counts == {"bad_mask": 1}
    )
    mask = masks.decode_mask(p.boxes[0].mask, 200, 100, (0, 0, 200, 100))
    assert np.array_equal(mask == 255, labels == 1) and np.array_equal(mask == 128, labels == 3)


def write_cub(root):
    """Four photographs of 100 x 80 px: two to train on, one to test on, one without a usable box."""
    names = ["001.Albatross/A_1.jpg", "001.Albatross/A_2.jpg", "002.House_Wren/W_1.jpg", "002.House_Wren/W_2.jpg"]
    for name in names:
        for folder in ("images", "segmentations"):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 80)).save(root / "images" / name)
    votes = np.zeros((80, 100), np.uint8)  # of five annotators, a strip of ten columns each
    for agree in range(6):
        votes[20:60, 20 + 10 * agree:30 + 10 * agree] = 51 * agree
    Image.fromarray(votes).save(root / "segmentations/001.Albatross/A_1.png")
    lines = {"images": names, "train_test_split": [1, 0, 1, 1],
             "bounding_boxes": ["30.0 20.0 50.0 40.0", "1.0 2.0 3.0 4.0", "10.0 5.0 60.0 70.0", "10.0 x 60.0 70.0"]}
    for name, values in lines.items():
        (root / f"{name}.txt").write_text("".join(f"{i} {value}\n" for i, value in enumerate(values, 1)))
    return votes


def test_cub(tmp_path):
    votes = write_cub(tmp_path)
    skips = Skips()
    train = read_cub(tmp_path, "train", skips)
    assert [p.file for p in train] == ["001.Albatross/A_1.jpg", "002.House_Wren/W_1.jpg"]
    assert boxes_of(train) == [(30, 20, 50, 40), (10, 5, 60, 70)]
    assert {(p.width, p.height) for p in train} == {(100, 80)}
    assert [p.boxes[0].name for p in train] == ["Albatross", "House_Wren"]
    assert skips.counts == {"bad_box": 1} and train[1].boxes[0].mask is None
    mask = masks.decode_mask(train[0].boxes[0].mask, 100, 80, (0, 0, 100, 80))
    assert np.array_equal(mask == 255, votes >= 153) and not (mask == 128).any()  # three, four and five of five
    assert mask[20:60, 50:80].all() and mask.sum() == 255 * 30 * 40
    (test,) = read_cub(tmp_path, "test", skips)
    assert test.file == "001.Albatross/A_2.jpg" and boxes_of([test]) == [(1, 2, 3, 4)]


def test_hostile_cub(tmp_path):
    write_cub(tmp_path)
    (tmp_path / "images.txt").write_text("1 ../out.jpg\n2\n3 002.House_Wren/W_1.jpg\n5 b.jpg\n\n")
    (tmp_path / "train_test_split.txt").write_text("1 1\n2 0\n3 yes\n")
    skips = Skips()
    assert read_cub(tmp_path, "train", skips) == []
    assert skips.counts == {"bad_image_entry": 1, "bad_split": 2}
    (tmp_path / "images.txt").unlink()
    with pytest.raises(FileNotFoundError, match="images.txt: --root must hold images.txt"):
        read_cub(tmp_path, "train", skips)


def test_detections_survive_a_line_cut_short(tmp_path):
    path = tmp_path / "d.jsonl"
    line = {"file": "a.jpg", "width": 200, "height": 100, "boxes": [[1, 2, 3, 4, "dog", 0.9]]}
    path.write_text(json.dumps(line) + "\n" + json.dumps(line)[:40])
    skips = Skips()
    (p,) = read_detections(tmp_path, path, skips)
    assert boxes_of([p]) == [(1, 2, 3, 4)] and p.boxes[0].score == 0.9 and p.upright
    assert skips.counts == {"bad_line": 1}


def test_sources_import_without_torch():
    import subprocess
    import sys

    code = "import sys; import prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(prepare.__file__).parent).returncode == 0
