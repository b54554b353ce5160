"""The crop rules against hand-computed numbers and pycocotools + Pillow; backgrounds; pixel formats.

Long, since all rules are held to the reference that stands at the top.
"""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crops import cutting
from crops.annotations import Box, Photo, Skips, read_coco
from crops.rules import (
    PRESETS,
    Rules,
    edges_of,
    find_backgrounds,
    find_objects,
    first_failing,
    free_position,
    most_dropping,
    object_window,
    overlaps,
    remedy,
    share_outside,
)

DATA = Path(__file__).parents[2] / "shared" / "data"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
needs_coco = pytest.mark.skipif(
    not (DATA / "coco_mini").is_dir(), reason=f"no {DATA}/coco_mini: crops of COCO not compared"
)


def box(x, y, w, h, name="dog", **more):
    return Box(x, y, w, h, name, more.pop("id", 1), **more)


def photo(boxes, width=1000, height=800, file="a.jpg"):
    return Photo(file, file, width, height, boxes)


def rule(b, rules, width=1000, height=800):
    return first_failing(b, photo([], width, height), rules)


# --- geometry ---


def test_windows_by_hand():
    dogs = Rules(**PRESETS["dogs"])
    assert object_window((100, 50, 40, 20), dogs) == (80, 40, 80, 40)  # 64 in 128: twice the box
    keep = Rules(**PRESETS["dogs"], fit="keep")
    assert object_window((100, 50, 40, 20), keep) == (80, 20, 80, 80)  # the long side decides
    coco = Rules(**PRESETS["coco"])
    assert object_window((100, 50, 50, 25), coco) == pytest.approx((93, 46.5, 64, 32))  # 1.28 times the box


@pytest.mark.parametrize("fit", ["warp", "keep"])
@pytest.mark.parametrize("preset", ["dogs", "coco"])
def test_box_lies_centred_in_the_crop(fit, preset):
    rules = Rules(**PRESETS[preset], fit=fit)
    b = box(301.3, 207.9, 120.7, 77.1)
    x, y, w, h = cutting.box_in_crop(b, object_window(b, rules), rules.crop_size)
    assert x + w / 2 == pytest.approx(64) and y + h / 2 == pytest.approx(64)
    long, short = (w, h)
    assert long == pytest.approx(rules.object_size)
    assert short == pytest.approx(rules.object_size if fit == "warp" else rules.object_size * 77.1 / 120.7)


# --- each rule, at its boundary ---


def test_rules_at_their_boundaries():
    dogs, coco = Rules(**PRESETS["dogs"]), Rules(**PRESETS["coco"])
    assert rule(box(400, 300, 60, 100), dogs) == "min_side"  # must exceed 60
    assert rule(box(400, 300, 60.5, 100), dogs) is None
    assert rule(box(400, 300, 20, 40), coco) == "min_side"
    assert rule(box(300, 200, 400, 300), coco) is None  # 40 % of the longer side is allowed
    assert rule(box(300, 200, 400.5, 300), coco) == "max_fraction"
    assert (
        rule(box(300, 200, 300, 400.5), coco) == "max_fraction"
    )  # of the image's longer side, whichever the box's
    assert rule(box(300, 200, 100, 40), coco) == "min_aspect"  # must exceed 0.4
    assert rule(box(300, 200, 40.1, 100), coco) is None
    assert rule(box(300, 200, 61, 300), dogs) is None  # §4.1 has no such rule
    for off in (0, 1):
        assert rule(box(150, 100, 700, 560), Rules(max_fraction=off)) is None


def test_a_window_may_touch_the_image_but_not_leave_it():
    dogs = Rules(**PRESETS["dogs"])
    assert rule(box(50, 50, 100, 100), dogs) is None  # window 0, 0, 200, 200
    assert rule(box(49.9, 50, 100, 100), dogs) == "outside"
    assert rule(box(850, 650, 100, 100), dogs) is None
    assert rule(box(850, 650.1, 100, 100), dogs) == "outside"
    assert rule(box(float("1e6"), 10, 100, 100), dogs) == "outside"


def test_a_window_that_leaves_the_image_is_taken_where_it_may():
    dogs = Rules(**PRESETS["dogs"], outside="reflect")  # windows of twice the box
    assert rule(box(400, 300, 100, 100), dogs) is None
    corner, edge = box(0, 0, 100, 100), box(0, 300, 100, 100)  # 3/4 and 1/2 of the box's sides from the image's
    assert share_outside(object_window(edge, dogs), 1000, 800) == 0.25 and rule(edge, dogs) is None
    assert share_outside(object_window(corner, dogs), 1000, 800) == 1 - 150 * 150 / 200**2 == 0.4375
    assert rule(corner, dogs) is None and rule(corner, replace(dogs, max_outside=0.4375)) is None
    assert rule(corner, replace(dogs, max_outside=0.43)) == "max_outside"
    assert rule(corner, replace(dogs, outside="drop")) == "outside"
    assert rule(box(0, 0, 1000, 800), replace(dogs, max_fraction=1, max_outside=0.75)) is None  # beyond on all sides
    half = replace(dogs, max_outside=1.0)
    assert rule(box(-49, 300, 100, 100), half) is None
    assert rule(box(-51, 300, 100, 100), half) == "max_outside"  # its middle lies beyond
    assert rule(box(5000, 300, 100, 100), half) == "max_outside"
    assert share_outside((5000, 300, 100, 100), 1000, 800) == 1.0
    assert share_outside((-1e-9, 0, 1000, 800 + 1e-9), 1000, 800) == 0.0


def test_a_reflection_shows_no_place_that_the_crop_does_not_show():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n, side = rng.integers(1, 40).item(), rng.integers(1, 90).item()
        start = rng.integers(math.ceil(-side / 2), math.floor(n - side / 2), endpoint=True)  # the middle in the image
        shown = cutting.reflect(start, start + side, n)
        # the edge's own pixel is not repeated, so that a reflection may end a pixel further in
        assert shown.min() >= max(start, 0) - 1 and shown.max() <= min(start + side, n)


def test_neighbours_count_where_a_crop_leaves_the_image():
    rules, dropped = Rules(**PRESETS["dogs"], outside="reflect"), Counter()
    b = box(0, 300, 100, 100)  # its window: -50, 250 to 150, 450
    assert find_objects(photo([b, box(150, 300, 50, 50)]), rules, dropped)[0][0] is b
    dropped.clear()
    assert find_objects(photo([b, box(149, 300, 50, 50)]), rules, dropped) == []
    assert dropped == {"neighbours": 1, "min_side": 1}


def test_what_helps_is_told_also_where_no_rule_drops_most():
    large = box(100, 100, 500, 300)  # each in an image of its own, so that none is another's neighbour
    slim, small = box(200, 300, 300, 60), box(400, 300, 9, 9)
    photos, rules = [photo([b]) for b in (large, slim, small, small)], Rules(object_size=20)
    text = remedy("max_fraction", photos, rules)
    assert text == "--max_fraction 1 would give 0 objects; then min_side drops most, a lower --min_side takes more"
    rules = Rules(min_side=8)
    assert remedy("max_fraction", photos, rules) == "--max_fraction 1 would give 3 objects"
    assert most_dropping(Counter({"class": 7, "min_side": 2}), 10) == "min_side"
    assert most_dropping(Counter({"class": 7, "min_side": 1}), 10) is None
    assert most_dropping(Counter({"class": 7}), 7, half=False) == "class" and most_dropping(Counter(), 0) is None


def test_class_crowd_and_score():
    b = box(400, 300, 100, 100)
    assert rule(b, Rules(classes=("cat",))) == "class"
    assert rule(b, Rules(exclude=("dog",))) == "class"
    assert rule(b._replace(name=""), Rules()) == "class"
    assert rule(b._replace(crowd=True), Rules()) == "crowd"
    assert rule(b._replace(score=0.7), Rules(min_score=0.8)) == "score"
    assert rule(b, Rules(classes=("dog",), exclude=("cat",))) is None


@pytest.mark.parametrize(
    "neighbour",
    [
        box(499, 300, 50, 50),
        box(499, 300, 50, 50, "cat"),
        box(499, 300, 50, 50, crowd=True),
        box(0, 0, 1000, 800, crowd=True),
        box(480, 300, 1, 0),
    ],
)
def test_any_box_in_the_window_drops_the_object(neighbour):
    b = box(400, 300, 100, 100)  # its window: 350, 250 to 550, 450
    rules = Rules(**PRESETS["dogs"], classes=("dog",))
    dropped = Counter()
    far = neighbour._replace(x=550, w=450, h=800, y=0)  # shares an edge only
    assert [pair[0] for pair in find_objects(photo([b, far]), rules, dropped) if pair[0] is b] == [b]
    dropped.clear()
    assert find_objects(photo([b, neighbour]), rules, dropped) == []
    assert dropped["neighbours"] >= 1


@pytest.mark.parametrize("other, share, found", [
    (box(410, 300, 100, 100, "cat", score=0.31), 0.5, 1),  # 90 of 110 columns shared: the same animal
    (box(410, 300, 100, 100, "cat", score=0.85), 0.5, 1),  # which may be an object itself, and has a better neighbour
    (box(410, 300, 100, 100, "cat", score=0.31), 0.9, 0),  # .82 is less than asked for
    (box(410, 300, 100, 100, "cat", score=0.31), 1, 0),  # off
    (box(434, 300, 100, 100, "cat", score=0.31), 0.5, 0),  # 66 of 134: less than half
    (box(420, 320, 40, 50, "dog", score=0.35), 0.5, 1),  # a part of it
    (box(490, 320, 40, 50, "dog", score=0.35), 0.5, 0),  # a quarter inside: another dog
    (box(420, 320, 40, 50, "person", score=0.35), 0.5, 0),  # a rider is another object
    (box(410, 300, 100, 100, "cat", score=0.97), 0.5, 0),  # as sure: nobody knows which
])
def test_an_animal_detected_twice_is_one_object(other, share, found):
    dog, dropped = box(400, 300, 100, 100, score=0.97), Counter()
    rules = Rules(**PRESETS["dogs"], min_score=0.8, same_object=share)
    objects = find_objects(photo([other, dog]), rules, dropped)
    assert [b for b, _ in objects] == [dog] * found
    assert sum(dropped.values()) == 2 - found and dropped["neighbours"] == (1 - found) + (other.score >= 0.8)
    backgrounds, _ = find_backgrounds([photo([other, dog])], [(120, 120)] * 8, rules)
    assert not any(overlaps(w, edges_of([other])).any() for w in backgrounds["a.jpg"])  # it still keeps these away


def test_annotated_boxes_are_never_doubles():
    pair = [box(400, 300, 100, 100), box(405, 300, 100, 100, "cat")]
    assert find_objects(photo(pair), Rules(**PRESETS["dogs"]), Counter()) == []


def test_an_object_of_unknown_place_spoils_its_image():
    dropped = Counter()
    p = photo([box(400, 300, 100, 100)])
    assert len(find_objects(p, Rules(), dropped)) == 1
    assert find_objects(p._replace(unplaced=True), Rules(), dropped) == []
    assert find_backgrounds([p._replace(unplaced=True)], [(50, 50)], Rules())[0] == {}


# --- against pycocotools and Pillow ---


def independent_objects(coco, image_id, preset):
    """The rules once more, literally: [(annotation, window corners)] of an image, from pycocotools."""
    p = PRESETS[preset]
    image, anns = coco.imgs[image_id], coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
    kept = []
    for ann in anns:
        x, y, w, h = ann["bbox"]
        half_w, half_h = w * p["crop_size"] / p["object_size"] / 2, h * p["crop_size"] / p["object_size"] / 2
        left, right, top, bottom = (
            x + w / 2 - half_w,
            x + w / 2 + half_w,
            y + h / 2 - half_h,
            y + h / 2 + half_h,
        )
        ok = not ann["iscrowd"] and min(w, h) > p["min_side"]
        ok = ok and max(w, h) <= p["max_fraction"] * max(image["width"], image["height"])
        ok = ok and min(w, h) / max(w, h) > p["min_aspect"]
        ok = ok and left >= 0 and top >= 0 and right <= image["width"] and bottom <= image["height"]
        for other in anns:
            a, b, c, d = other["bbox"]
            if other is not ann and min(right, a + c) > max(left, a) and min(bottom, b + d) > max(top, b):
                ok = False
        if ok:
            kept.append((ann, (left, top, right, bottom)))
    return kept


@needs_coco
@pytest.mark.parametrize("preset", ["dogs", "coco"])
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_objects_of_coco_equal_an_independent_computation(split, preset, capsys):
    COCO = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed").COCO
    path = DATA / "coco_mini" / "annotations" / f"instances_{split}.json"
    coco = COCO(str(path))
    skips, compared = Skips(), 0
    for p, image_id in zip(read_coco(DATA / "coco_mini" / split, path, skips), coco.imgs, strict=True):
        ours = find_objects(p, Rules(**PRESETS[preset]), Counter())
        theirs = independent_objects(coco, image_id, preset)
        assert [b.id for b, _ in ours] == [ann["id"] for ann, _ in theirs]
        for (b, window), (ann, corners) in zip(ours, theirs, strict=True):
            compared += 1
            image = Image.open(p.path).convert("RGB")
            expected = image.resize((128, 128), Image.BICUBIC, box=corners)
            got = cutting.cut_window(cutting.open_annotated(p), window, 128)
            assert (
                np.abs(np.asarray(got).astype(int) - np.asarray(expected)).max() <= 1
            )  # corners differ by rounding
            assert (np.asarray(got) == np.asarray(expected)).mean() > 0.999
            truth = coco.annToMask(ann) * 255
            mask, source = cutting.cut_mask(b.mask, p, window, 128)
            left, top, right, bottom = corners
            assert np.array_equal(
                source, truth[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)]
            )
            large = np.asarray(Image.fromarray(truth).resize((128, 128), Image.BILINEAR, box=corners)) >= 128
            both, either = ((mask == 255) & large).sum(), ((mask == 255) | large).sum()
            assert both >= 0.99 * either
    assert compared >= (1 if preset == "dogs" else 10) and not skips.counts


def test_cutting_whole_pixels_copies_them():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    got = cutting.cut_window(Image.fromarray(pixels), (100.0, 50.0, 128.0, 128.0), 128)
    assert np.array_equal(np.asarray(got), pixels[50:178, 100:228])


BEYOND = [  # window of an image of 6 x 4 px, and the columns and rows that it shows, by hand
    ((-2, -3, 8, 8), [2, 1, 0, 1, 2, 3, 4, 5], [3, 2, 1, 0, 1, 2, 3, 2]),
    ((3, 1, 8, 8), [3, 4, 5, 4, 3, 2, 1, 0], [1, 2, 3, 2, 1, 0, 1, 2]),
    ((-9, 0, 16, 16), [1, 2, 3, 4, 5, 4, 3, 2, 1, 0, 1, 2, 3, 4, 5, 4],
     [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2, 3]),  # by more than the image, which is reflected again
]


@pytest.mark.parametrize("window,columns,rows", BEYOND)
def test_a_crop_beyond_the_image_shows_its_reflection_and_is_void_there(tmp_path, window, columns, rows):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    size = len(columns)
    got = cutting.cut_window(Image.fromarray(pixels), window, size)
    assert np.array_equal(got, pixels[np.ix_(rows, columns)])
    labels = np.zeros((4, 6), np.uint8)
    labels[1:4, 2:6] = 1  # touches two edges, where it is cut off, not void
    Image.fromarray(labels).save(tmp_path / "l.png")
    mask, source = cutting.cut_mask(("png", str(tmp_path / "l.png"), 1, None), photo([], 6, 4), window, size)
    x, y = window[0] + np.arange(size), window[1] + np.arange(size)[:, None]
    inside = (x >= 0) & (x < 6) & (y >= 0) & (y < 4)
    assert np.array_equal(mask == 128, ~inside)
    assert np.array_equal(mask == 255, inside & (x >= 2) & (y >= 1))
    assert np.array_equal(source, labels[max(window[1], 0):, max(window[0], 0):] * 255)


def test_what_is_resampled_beyond_the_image(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    padded = Image.fromarray(np.pad(pixels, ((60, 60), (60, 60), (0, 0)), mode="reflect"))
    Image.new("L", (50, 40), 1).save(tmp_path / "l.png")
    for x0, y0, w, h in [(-10.3, 5.2, 50.9, 30.1), (-7, -9, 70.4, 61.7), (30.5, 20.25, 25, 33), (-31, -20, 110, 90)]:
        for size in (24, 48, 96):
            corners = (x0 + 60, y0 + 60, x0 + w + 60, y0 + h + 60)
            expected = np.asarray(padded.resize((size, size), Image.BICUBIC, box=corners)).astype(int)
            assert np.abs(cutting.cut_window(Image.fromarray(pixels), (x0, y0, w, h), size) - expected).max() <= 1
            label = ("png", str(tmp_path / "l.png"), 1, None)
            mask, source = cutting.cut_mask(label, photo([], 50, 40), (x0, y0, w, h), size)
            x, y = x0 + (np.arange(size) + 0.5) / size * w, y0 + (np.arange(size)[:, None] + 0.5) / size * h
            across, down = np.minimum(x, 50 - x) * size / w, np.minimum(y, 40 - y) * size / h  # crop px inside
            corner = (abs(across) < 1) & (abs(down) < 1)  # where more than half of a pixel may lie beyond
            assert (mask[(across > 0.02) & (down > 0.02) & ~corner] == 255).all()
            assert (mask[(across < -0.02) | (down < -0.02)] == 128).all()
            left, top, right, bottom = cutting.hull_of((x0, y0, w, h), (50, 40))
            assert source.shape == (bottom - top, right - left) and (source == 255).all()


def test_a_mask_is_cut_at_half_coverage_with_its_hull(tmp_path):
    labels = np.zeros((100, 200), np.uint8)
    labels[40:60, 80:120] = 7
    labels[60:64, 80:120] = 255
    Image.fromarray(labels).save(tmp_path / "l.png")
    p, window = photo([], 200, 100), (60.5, 20.25, 80.0, 60.0)
    mask, source = cutting.cut_mask(("png", str(tmp_path / "l.png"), 7, 255), p, window, 160)
    assert source.shape == (math.ceil(80.25) - 20, math.ceil(140.5) - 60)
    assert np.array_equal(source == 255, labels[20:81, 60:141] == 7)
    assert np.array_equal(source == 128, labels[20:81, 60:141] == 255)
    rows, columns = np.nonzero(mask == 255)  # object rows 40..60 -> (40 - 20.25) * 160 / 60
    assert abs(rows.min() - 19.75 * 160 / 60) <= 1 and abs(rows.max() + 1 - 39.75 * 160 / 60) <= 1
    assert abs(columns.min() - 19.5 * 2) <= 1 and abs(columns.max() + 1 - 59.5 * 2) <= 1
    assert set(np.unique(mask)) == {0, 128, 255}
    assert abs((mask == 128).sum() - 160 / 60 * 4 * 80) < 120


# --- backgrounds ---


def free_by_brute_force(width, height, w, h, boxes):
    return any(
        all(not (x < x0 + w and x0 < x + a and y < y0 + h and y0 < y + b) for x, y, a, b in boxes)
        for x0 in range(width - w + 1)
        for y0 in range(height - h + 1)
    )


def test_a_free_position_is_found_exactly_where_there_is_one():
    rng = np.random.default_rng(1)
    found = Counter()
    for _ in range(400):
        boxes = np.column_stack([rng.integers(0, 16, (4, 2)), rng.integers(1, 9, (4, 2))])[
            : rng.integers(0, 5)
        ]
        w, h = rng.integers(3, 17, 2).tolist()
        # all gaps are whole, so half a pixel less decides nothing but that places have an area to draw from
        position = free_position(20, 18, w - 0.5, h - 0.5, boxes.astype(float), rng)
        assert (position is not None) == free_by_brute_force(20, 18, w, h, boxes)
        if position is not None:
            assert not overlaps((*position, w - 0.5, h - 0.5), boxes).any()
            assert 0 <= position[0] <= 20 - w + 0.5 and 0 <= position[1] <= 18 - h + 0.5
        found[position is not None] += 1
    assert found[True] > 50 and found[False] > 50


def test_free_positions_are_uniform():
    rng = np.random.default_rng(2)
    obstacle = np.array(
        [[40.0, 0.0, 10.0, 100.0]]
    )  # left of it 30 wide, right of it 40 wide for a window of 10
    places = np.array([free_position(100, 100, 10, 10, obstacle, rng) for _ in range(4000)])
    share = (places[:, 0] < 40).mean()
    assert abs(share - 3 / 7) < 4 * math.sqrt(3 / 7 * 4 / 7 / 4000)
    assert abs(places[:, 1].mean() - 45) < 4 * 90 / math.sqrt(12 * 4000)


def crowded_photos(n=30):
    rng = np.random.default_rng(3)
    return [
        photo(
            [box(*rng.uniform(0, 900, 2), *rng.uniform(20, 150, 2)) for _ in range(rng.integers(0, 40))],
            file=f"{i}.jpg",
        )
        for i in range(n)
    ]


def test_backgrounds_touch_no_box_and_keep_to_the_limits():
    photos = crowded_photos()
    sizes = [(60.0 + i, 50.0 + 2 * i) for i in range(40)]
    rules = Rules(y_per_x=2.5, y_per_image=4)
    windows, counts = find_backgrounds(photos, sizes, rules)
    assert counts["wanted"] == 100 == counts["exact"] + counts["smaller"] + counts["missing"]
    assert sum(map(len, windows.values())) == counts["exact"] + counts["smaller"]
    assert counts["missing"] == 0 and max(map(len, windows.values())) == 4
    for p in photos:
        boxes = np.array([b[:4] for b in p.boxes]).reshape(-1, 4)
        for i, (x, y, w, h) in enumerate(windows.get(p.file, [])):
            assert (w, h) in sizes and 0 <= x <= 1000 - w and 0 <= y <= 800 - h
            assert not overlaps((x + 1e-9, y + 1e-9, w - 2e-9, h - 2e-9), boxes).any()
            for a, b, c, d in windows[p.file][:i]:
                shared = max(0, min(x + w, a + c) - max(x, a)) * max(0, min(y + h, b + d) - max(y, b))
                assert shared <= 0.25 * c * d + 1e-6


def test_no_more_backgrounds_of_one_image_than_allowed():
    photos = [photo([], file=f"{i}.jpg") for i in range(3)]
    windows, counts = find_backgrounds(photos, [(50.0, 50.0)] * 5, Rules(y_per_x=2, y_per_image=2))
    assert [len(windows[p.file]) for p in photos] == [2, 2, 2] and counts["missing"] == 4


def test_backgrounds_depend_on_names_and_seed_alone():
    photos = crowded_photos()
    sizes = [(80.0, 60.0), (150.0, 160.0), (220.0, 100.0)]
    first = find_backgrounds(photos, sizes, Rules())[0]
    assert find_backgrounds(photos[::-1], sizes, Rules())[0] == first
    assert find_backgrounds(photos, sizes, Rules(seed=1))[0] != first


def test_sizes_that_fit_nowhere_are_replaced_by_smaller_ones_of_x():
    p = photo([box(300, 0, 400, 800)])  # 300 px free at either side
    windows, counts = find_backgrounds([p], [(290.0, 200.0), (400.0, 300.0)], Rules(y_per_x=1))
    assert counts == Counter(wanted=2, exact=1, smaller=1, missing=0)
    assert [w[2:] for w in windows["a.jpg"]] == [(290.0, 200.0)] * 2
    assert find_backgrounds([p], [(400.0, 300.0)], Rules())[1] == Counter(
        wanted=2, exact=0, smaller=0, missing=2
    )
    assert find_backgrounds([], [(4.0, 3.0)], Rules())[1]["missing"] == 2
    assert find_backgrounds([p], [], Rules())[0] == {}


# --- pixel formats ---


def test_orientation_of_photographs(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15] = 255  # left half white as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: white on top
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    stored = Photo("a.png", str(path), 30, 20, [])
    for shown in (False, True):  # a size that is one's alone decides
        assert cutting.open_annotated(stored._replace(upright=shown)).size == (30, 20)
        turned = cutting.open_annotated(stored._replace(width=20, height=30, upright=shown))
    assert turned.size == (20, 30) and turned.getpixel((10, 3)) == (255, 255, 255)
    assert cutting.open_annotated(stored._replace(width=0, height=0, upright=True)).size == (20, 30)
    with pytest.raises(OSError, match="31 x 20"):
        cutting.open_annotated(stored._replace(width=31))
