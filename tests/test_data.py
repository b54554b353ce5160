"""Crops as the networks see them: values, boxes, order, flips; and the demo set."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import prepare
from benchmarks import drawn
from crops import demo
from data import Crops, StepSampler, UnpairedCrops, load_image, load_mask, save_image

COUNTS = {"train": {"objects": 7, "backgrounds": 5}, "test": {"objects": 2, "backgrounds": 2}}


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    demo.write_demo(root, seed=0, counts=COUNTS)
    return root


def write(path, pixels):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


# --- files ---


def test_image_values(tmp_path):
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 1] = 255, 0, 51
    write(tmp_path / "a.png", pixels)
    image = load_image(tmp_path / "a.png", 2)
    assert image.shape == (3, 2, 2)
    assert image[:, 0, 1].tolist() == pytest.approx([1.0, -1.0, -0.6]) and image[:, 1, 0].tolist() == [-1.0] * 3
    save_image(tmp_path / "b.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), pixels)


def test_mask_is_cut_at_half_coverage(tmp_path):
    pixels = np.zeros((8, 8))
    pixels[:4] = 255  # the upper half: whole pixels of the 4x4 mask
    write(tmp_path / "m.png", pixels)
    assert load_mask(tmp_path / "m.png", 4)[0].tolist() == [[1] * 4] * 2 + [[0] * 4] * 2


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_other_pixel_formats_become_rgb(tmp_path, mode):
    Image.new("RGB", (4, 4), "white").convert(mode).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", 4).eq(1).all()


def test_unreadable_image_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match="cannot read the image .*a.png"):
        load_image(tmp_path / "a.png", 4)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*train: --dataroot .* has neither train nor test"):
        Crops(tmp_path, "train", 8)
    write(tmp_path / "train" / "objects" / "a.png", np.zeros((4, 4, 3)))
    with pytest.raises(FileNotFoundError, match="no images in .*backgrounds"):
        Crops(tmp_path, "train", 8)


def test_folders_without_crops_json(tmp_path):
    for kind in ("objects", "backgrounds"):
        write(tmp_path / "train" / kind / "a.png", np.zeros((4, 4, 3)))
    crops = Crops(tmp_path, "train", 8)
    assert crops.box("a").tolist() == [0, 0, 1, 1] and crops.mask("a") is None and crops.rules == []
    assert crops.object("a").shape == (3, 8, 8)


def test_boxes_are_fractions_of_the_crop(tmp_path):
    for kind in ("objects", "backgrounds"):
        for stem in "abc":
            write(tmp_path / "train" / kind / f"{stem}.png", np.zeros((80, 80, 3)))
    rules = [{"fit": "warp", "object_size": 50, "crop_size": 80}, {"fit": "keep", "object_size": 64, "crop_size": 128}]
    record = {"rules": [{"more": 1, **rule} for rule in rules],
              "objects": {"a": {"box": [8, 10, 40, 20]}, "b": {"box": [8, 10, 40, 20], "origin": 1}}}
    (tmp_path / "train" / "crops.json").write_text(json.dumps(record))
    crops = Crops(tmp_path, "train", 8)
    assert crops.box("a").tolist() == pytest.approx([0.1, 0.125, 0.5, 0.25])
    assert crops.box("b").tolist() == pytest.approx([0.0625, 0.078125, 0.3125, 0.15625])
    assert crops.box("c").tolist() == [0, 0, 1, 1]
    assert crops.rules == rules


def test_broken_crops_json_is_named(tmp_path):
    for kind in ("objects", "backgrounds"):
        write(tmp_path / "train" / kind / "a.png", np.zeros((4, 4, 3)))
    no_rule = '{"rules": [], "objects": {"a": {"box": [0, 0, 1, 1]}}}'
    for text in ("{", "[]", no_rule, '{"objects": {}}', '{"rules": 1}'):
        (tmp_path / "train" / "crops.json").write_text(text)
        with pytest.raises(ValueError, match="crops.json is not a crops file"):
            Crops(tmp_path, "train", 8)


def test_names_that_go_astray(tmp_path):
    for kind in ("objects", "backgrounds"):
        write(tmp_path / "train" / kind / "a.png", np.zeros((4, 4, 3)))
    (tmp_path / "train" / "objects" / "._a.png").write_bytes(b"what a Mac leaves behind")
    assert Crops(tmp_path, "train", 8).stems == ["a"]
    write(tmp_path / "train" / "masks" / "m_a.png", np.zeros((4, 4)))
    with pytest.raises(ValueError, match="masks has an object's name"):
        Crops(tmp_path, "train", 8)
    write(tmp_path / "train" / "objects" / "a.jpg", np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="a.jpg and a.png have one name"):
        Crops(tmp_path, "train", 8)


def test_masks_of_zeros_and_ones_are_refused(tmp_path):
    write(tmp_path / "m.png", np.eye(4))
    with pytest.raises(OSError, match=r"image .*m.png \(its brightest value is 1: in a mask white, 255, is object"):
        load_mask(tmp_path / "m.png", 4)
    write(tmp_path / "m.png", np.zeros((4, 4)))
    assert not load_mask(tmp_path / "m.png", 4).any()
    Image.fromarray(np.eye(4).astype(np.uint16)).save(tmp_path / "m.png")
    with pytest.raises(OSError, match="brightest value is 1: in a mask white, 65535, is object"):
        load_mask(tmp_path / "m.png", 4)


def test_masks_of_every_grey_mode(tmp_path):
    half = np.repeat([[0, 255]], 4, 0).repeat(2, 1).astype(np.uint8)
    grey, expected = Image.fromarray(half), torch.from_numpy(half)[None] / 255.0
    for mode in ("1", "L", "P", "LA", "RGB", "RGBA"):
        grey.convert(mode).save(tmp_path / "m.png")
        assert torch.equal(load_mask(tmp_path / "m.png", 4), expected), mode
    Image.fromarray(half.astype(np.uint16) * 257).save(tmp_path / "m.png")
    assert torch.equal(load_mask(tmp_path / "m.png", 4), expected)
    grey.convert("RGB").resize((64, 64)).save(tmp_path / "m.jpg")
    assert load_mask(tmp_path / "m.jpg", 64).mean() == pytest.approx(0.5, abs=0.02)


def test_masks_that_could_mean_two_things_are_refused(tmp_path):
    half = np.repeat([[0, 1]], 4, 0).repeat(2, 1).astype(np.uint8)
    labels = Image.fromarray(half)
    labels.putpalette([0, 0, 0, 128, 0, 0])  # as Pascal VOC's: class 1 is dark red
    cut = Image.fromarray(np.full((4, 4), 255, np.uint8))
    cut.putalpha(Image.fromarray(half * 255))  # a cut-out: white, and the shape in what is transparent
    for picture in (labels, cut):
        picture.save(tmp_path / "m.png")
        with pytest.raises(OSError, match="m.png .a mask must be grey and opaque"):
            load_mask(tmp_path / "m.png", 4)


def test_pictures_of_16_bits_transparent_or_turned(tmp_path):
    ramp = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    assert torch.allclose(load_image(tmp_path / "x.png", 4)[0], torch.from_numpy(ramp / 32767.5 - 1).float(), atol=0.01)
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "x.png")
    assert (load_image(tmp_path / "x.png", 4) == 1).all()  # white, not what hides there
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:, :2] = 255  # left half white as stored
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    x = load_image(tmp_path / "x.png", 4)
    assert (x[:, :2] == 1).all() and (x[:, 2:] == -1).all()


def test_boxes_written_by_hand(tmp_path):
    """The crops.json of docs/data.md, with an image that it does not name."""
    for stem in ("0001", "0002"):
        write(tmp_path / "train" / "objects" / f"{stem}.png", np.zeros((200, 100)))
    write(tmp_path / "train" / "backgrounds" / "a.png", np.zeros((4, 4, 3)))
    with open(Path(__file__).parents[1] / "docs" / "data.md", encoding="utf-8") as f:
        written = f.read().split("```json\n")[1].split("```")[0]
    (tmp_path / "train" / "crops.json").write_text(written)
    crops = Crops(tmp_path, "train", 8)
    assert torch.allclose(crops.box("0001"), torch.tensor([14, 14, 100, 100]) / 128)
    assert crops.box("0002").tolist() == [0, 0, 1, 1] and crops.object("0001").shape == (3, 8, 8)


def test_a_half_made_set_is_refused(tmp_path):
    write(tmp_path / "train" / "objects" / "a.png", np.zeros((4, 4, 3)))
    (tmp_path / "train" / "unfinished.jsonl").write_text("")
    with pytest.raises(ValueError, match="is unfinished: repeat the `python prepare.py` command"):
        Crops(tmp_path, "train", 8)


# --- order and flips ---


def test_a_draw_depends_on_seed_and_number_alone(dataroot):
    crops = Crops(dataroot, "train", 16)
    one, two, other = UnpairedCrops(crops, seed=1), UnpairedCrops(crops, seed=1), UnpairedCrops(crops, seed=2)
    forward = [one[n] for n in range(30)]
    backward = [two[n] for n in reversed(range(30))][::-1]
    assert all(torch.equal(a[k], b[k]) for a, b in zip(forward, backward, strict=True) for k in a)
    assert any(not torch.equal(forward[n]["x"], other[n]["x"]) for n in range(30))


def test_every_pass_takes_each_crop_once_in_a_new_order(dataroot):
    crops = Crops(dataroot, "train", 16)
    dataset = UnpairedCrops(crops, flip=False)
    objects = {s: crops.object(s) for s in crops.stems}
    backgrounds = {s: crops.background(s) for s in crops.background_stems}

    def order(key, pool, start):
        return [next(s for s in pool if torch.equal(pool[s], dataset[n][key])) for n in range(start, start + len(pool))]

    first, second = order("x", objects, 0), order("x", objects, 7)
    assert sorted(first) == sorted(second) == crops.stems and first != second
    assert sorted(order("y", backgrounds, 0)) == sorted(order("y", backgrounds, 5)) == crops.background_stems


def test_flip_takes_box_and_mask_along(dataroot):
    crops = Crops(dataroot, "train", 16)
    crops.records = {s: {"box": [4, 8, 16, 32]} for s in crops.stems}  # off centre, in 64 px
    plain, flipped = UnpairedCrops(crops, flip=False, masks=True), UnpairedCrops(crops, flip=True, masks=True)
    count = 0
    for n in range(60):
        a, b = plain[n], flipped[n]
        if torch.equal(a["x"], b["x"]):
            assert torch.equal(a["mask"], b["mask"]) and b["box"].tolist() == [0.0625, 0.125, 0.25, 0.5]
        else:
            count += 1
            assert torch.equal(a["x"].flip(-1), b["x"]) and torch.equal(a["mask"].flip(-1), b["mask"])
            assert b["box"].tolist() == pytest.approx([0.6875, 0.125, 0.25, 0.5])
    assert 12 < count < 48  # 30 ± 4.6 σ


def test_steps_are_the_same_with_any_number_of_workers_and_from_any_start(dataroot):
    dataset = UnpairedCrops(Crops(dataroot, "train", 16), seed=3)

    def steps(start, workers):
        loader = DataLoader(dataset, batch_sampler=StepSampler(start, 6, 4), num_workers=workers)
        return [batch["x"] for batch in loader]

    reference = steps(0, 0)
    assert len(reference) == 6
    for start, workers in ((0, 2), (3, 0), (3, 2)):
        assert all(torch.equal(a, b) for a, b in zip(reference[start:], steps(start, workers), strict=True))


def test_supervised_needs_masks(dataroot):
    crops = Crops(dataroot, "train", 16)
    del crops.masks[crops.stems[0]]
    assert UnpairedCrops(crops, masks=True).objects == crops.stems[1:]
    crops.masks = {}
    with pytest.raises(ValueError, match="this method learns from masks"):
        UnpairedCrops(crops, masks=True)


# --- the demo set ---


def test_demo_has_a_val_of_its_own():
    assert {split: tuple(kinds.values()) for split, kinds in demo.COUNTS.items()} == {
        "train": (800, 1600), "val": (150, 150), "test": (200, 200)}
    assert list(demo.COUNTS)[-1] == "test"  # whose crops.json says that all is there
    for kind in ("objects", "backgrounds"):
        images = [demo.draw(0, split, kind, 0)[0] for split in ("train", "test", "val")]
        assert all(not np.array_equal(images[i], images[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def files(root):
    return {os.path.relpath(os.path.join(d, f), root): open(os.path.join(d, f), "rb").read()
            for d, _, names in os.walk(root) for f in names}


def test_demo_same_seed_same_files(dataroot, tmp_path):
    demo.write_demo(tmp_path / "a", seed=0, counts=COUNTS)
    demo.write_demo(tmp_path / "b", seed=1, counts=COUNTS)
    first, again, other = files(dataroot), files(tmp_path / "a"), files(tmp_path / "b")
    assert first == again and first.keys() == other.keys()
    assert all(first[k] != other[k] for k in first if k.endswith(".png"))
    assert len(first) == 2 * 7 + 5 + 2 * 2 + 2 + 2 * 2


@pytest.mark.parametrize("draw", [demo.draw, *drawn.SETS.values()])
def test_drawn_object_fills_its_box(draw):
    start, end = 7, 57  # a box of 50 px, centred in 64
    for i in range(20):
        image, mask = draw(0, "train", "objects", i)
        rows, cols = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        assert start <= rows[0] <= start + 3 and end - 4 <= rows[-1] < end
        assert start <= cols[0] <= start + 3 and end - 4 <= cols[-1] < end
        assert set(np.unique(mask)) == {0, 255} and image.shape == (64, 64, 3)


def best_guess_accuracy(pixels, bins):
    """Balanced accuracy on the second half of the pictures of the best rule on histograms of the first."""
    def histograms(part):
        return [np.histogramdd(np.concatenate([p[k] for p in part]), bins, [(0, 256)] * pixels[0][k].shape[1])[0]
                for k in (0, 1)]

    half = len(pixels) // 2
    inside, outside = (h / h.sum() for h in histograms(pixels[:half]))
    rule = inside > outside
    inside, outside = (h / h.sum() for h in histograms(pixels[half:]))
    return (inside[rule].sum() + outside[~rule].sum()) / 2


def test_demo_neither_colour_nor_brightness_tells_the_object():
    draws = [demo.draw(0, "train", "objects", i) for i in range(300)]
    colours = [(image[mask > 0], image[mask == 0]) for image, mask in draws]
    assert best_guess_accuracy(colours, 6) < 0.6
    assert best_guess_accuracy([tuple(p.mean(1, keepdims=True) for p in c) for c in colours], 32) < 0.6


def test_other_drawn_sets(tmp_path):
    for name, draw in drawn.SETS.items():
        demo.write_demo(tmp_path / name, drawn.SEED, COUNTS, draw)
        crops = Crops(tmp_path / name, "train", 64)
        assert len(crops.masks) == 7 and len(crops.backgrounds) == 5
    planes, horses, shapes = (files(tmp_path / name) for name in drawn.SETS)
    assert all(len({planes[k], horses[k], shapes[k]}) == 3 for k in planes if k.endswith(".png"))


def test_demo_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "COUNTS", COUNTS)
    assert prepare.main(["demo", "--out", str(tmp_path / "set")]) == 0
    assert capsys.readouterr().out == f"drawing the demo set in {tmp_path / 'set'}, about a minute\n"
    assert len(Crops(tmp_path / "set", "test", 64).masks) == 2
    assert prepare.main(["check", str(tmp_path / "set"), "--num_workers", "0"]) == 0
    assert "test: 2 objects (2 masks; body 2), 2 backgrounds" in capsys.readouterr().out
    (tmp_path / "set" / "test" / "masks" / "00001.png").write_bytes(b"")
    assert prepare.main(["check", str(tmp_path / "set"), "--num_workers", "0"]) == 2
    demo.write_demo(tmp_path / "set")
    assert prepare.main(["demo", "--out", str(tmp_path / "set")]) == 0  # a demo set may be made anew
    write(tmp_path / "set" / "train" / "objects" / "mine.png", np.zeros((4, 4, 3)))
    assert prepare.main(["demo", "--out", str(tmp_path / "set")]) == 2
    assert "which holds other things" in capsys.readouterr().err
