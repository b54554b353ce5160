"""photo.py with masks of one's own in place of boxes, and objects moved within their photograph."""
import numpy as np
import pytest
from PIL import Image
from test_photo import BOX, build, disc, picture, stored
from test_photo_command import boxes_of, call, camera_exif, folder_of, names, run_folder  # noqa: F401 - fixtures

import crf
import photo
from images import UserError
from photos import edit
from seigan import SEIGAN

AT = "--at", "45,30"


def mask_of(width=100, height=80, centre=(48, 36), radius=14.0):
    """A disc with a soft edge, mode L."""
    return Image.fromarray((disc(width, height, centre, radius) * 255).astype(np.uint8))


def pixels(path):
    return np.asarray(Image.open(path))


def changed(a, b):
    return (np.asarray(a) != np.asarray(b)).any(-1)


@pytest.fixture
def model():
    return build()


# --- masks of one's own ---


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("dilate", [0, 4, -2])
def test_the_mask_of_a_cut_gives_the_same_cut(model, mode, dilate):
    image = picture(mode=mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(np.linspace(60, 255, 8000).reshape(80, 100).astype(np.uint8)))
    first = edit.cut(model, image, BOX, dilate)
    again = edit.cut(model, image, mask=first.mask)
    assert ((np.asarray(first.mask) > 0) & (np.asarray(first.mask) < 255)).sum() > 40, "a soft edge"
    assert again.mask.tobytes() == first.mask.tobytes() and again.image.tobytes() == first.image.tobytes()


def test_an_own_mask_is_used_as_it_is(model, monkeypatch):
    for module, name in ((SEIGAN, "segment"), (crf, "refine_box"), (edit.matting, "upsample_mask")):
        monkeypatch.setattr(module, name, None)
    image, mask = picture(), mask_of()
    assert edit.cut(model, image, mask=mask).mask.tobytes() == mask.tobytes()
    pasted = edit.paste(model, image, None, picture(140, 90, 1), (60, 40), mask=mask)
    moved = np.zeros((90, 140), np.uint8)
    left, top, right, bottom = mask.getbbox()
    moved[40:40 + bottom - top, 60:60 + right - left] = np.asarray(mask)[top:bottom, left:right]
    assert np.array_equal(np.asarray(pasted.mask), moved), "its extent is where --at says"
    removal = edit.remove(model, image, mask=mask)
    touched = np.asarray(removal.mask)
    assert (touched[np.asarray(mask) >= 128] == 255).all()
    assert changed(removal.image, image)[np.asarray(mask) == 255].mean() > 0.9


SHAPES = {"all": (0, 0, 100, 80), "a line": (3, 40, 97, 41), "a pixel": (99, 79, 100, 80), "a corner": (0, 0, 30, 25),
          "nearly all": (2, 2, 98, 79)}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rule", [None, {"fit": "warp", "object_size": 32, "crop_size": 32},
                                  {"fit": "keep", "object_size": 60, "crop_size": 64}])
def test_a_mask_larger_than_the_crop_is_removed_whole(rule, name):
    """Beside it the crop needs room for the hole, which ends softly: else a rim of the object would stay."""
    model, image = build(rule=rule), picture()
    mask = Image.new("L", image.size)
    mask.paste(255, SHAPES[name])
    for dilate in (None, 5):
        removal = edit.remove(model, image, mask=mask, dilate=dilate)
        touched = np.asarray(removal.mask)
        grown = np.asarray(mask) if dilate is None else edit.matting.grow(np.asarray(mask), dilate)
        assert (touched[grown == 255] == 255).all()
        assert not changed(removal.image, image)[touched == 0].any()
    far = edit.matting.grow(np.asarray(mask), 22) == 0  # 4 to 5 pixels of the crop
    assert not changed(edit.remove(model, image, mask=mask).image, image)[far].any()
    assert edit.paste(model, image, None, picture(seed=1), (5, 5), mask=mask).image.size == image.size
    assert edit.cut(model, image, mask=mask).mask.tobytes() == mask.tobytes()


def test_masks_that_cannot_be(model):
    image = picture()
    for mask, text in ((Image.new("L", (80, 100), 255), "80 x 100 pixels, its photograph 100 x 80"),
                       (Image.new("L", (100, 80)), "0 everywhere")):
        with pytest.raises(UserError, match=text):
            edit.cut(model, image, mask=mask)
    for objects in ({}, {"box": BOX, "mask": mask_of()}):
        with pytest.raises(ValueError, match="either a box or a mask"):
            edit.cut(model, image, **objects)
    assert not np.asarray(edit.cut(model, image, mask=mask_of(), dilate=-90).mask).any(), "narrowed to nothing"


def test_masks_on_the_command_line(call, tmp_path):  # noqa: F811
    """The mask that a command wrote gives the same file again; a turned photograph takes one of its upright size."""
    exif = Image.Exif()
    exif[0x0112] = 6
    dog, out = stored(picture(80, 100), tmp_path, "dog.jpg", exif=exif), tmp_path / "out"
    assert call("cut", dog, "--box", "30,20,40,30", "--out", out)[0] == 0
    assert call("cut", dog, "--mask", out / "cut_mask" / "dog.jpg.png", "--out", tmp_path / "again")[0] == 0
    assert names(tmp_path / "again") == names(out) == ["cut/dog.jpg.png", "cut_mask/dog.jpg.png"]
    for name in names(out):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    other, bits = stored(mask_of(), tmp_path, "own.webp", lossless=True), mask_of().point(lambda v: 255 * (v > 127))
    two = ("--mask", other, "--mask", stored(bits.convert("1"), tmp_path, "bits.png"))
    code, _, err = call("remove", dog, *two, "--out", out)
    assert code == 0 and err == ""
    before, touched = Image.open(dog).rotate(-90, expand=True), pixels(out / "removed_mask" / "dog.jpg.png")
    after = Image.open(out / "removed" / "dog.jpg.png")
    assert (touched[np.asarray(bits) > 0] == 255).all() and not changed(before, after)[touched == 0].any()
    assert call("cut", dog, *two, "--out", tmp_path / "two")[0] == 0
    assert pixels(tmp_path / "two" / "cut_mask" / "dog.jpg_2.png").tobytes() == bits.tobytes()
    code, _, err = call("cut", dog, "--mask", out / "cut_mask" / "dog.jpg.png", "--out", out, "--overwrite")
    assert code == 2 and "would replace an input" in err


def test_a_cut_along_an_own_mask_needs_no_model(call, tmp_path, monkeypatch, capsys):  # noqa: F811
    """It is the cut that any model gives with that mask. What fills or enhances asks for one, in one line."""
    folder, masks = folder_of(tmp_path, "a.png", "b.png"), tmp_path / "masks"
    masks.mkdir()
    own = [stored(mask_of(), masks, name) for name in ("a.png", "b.png")][0]
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        return photo.main([str(word) for word in argv]), *capsys.readouterr()

    assert run("cut", folder / "a.png", "--mask", own, "--dilate", "2")[0] == 0
    assert call("cut", folder / "a.png", "--mask", own, "--dilate", "2", "--out", "named")[0] == 0
    without = tmp_path / "results" / "photos"
    assert names(without) == names(tmp_path / "named") == ["cut/a.png.png", "cut_mask/a.png.png"]
    for name in names(without):
        assert (without / name).read_bytes() == (tmp_path / "named" / name).read_bytes()
    code, text, _ = run("cut", "--images", folder, "--masks", masks, "--out", "folder")
    assert code == 0 and "2 of 2" in text and len(names(tmp_path / "folder")) == 4
    for argv in (["remove", "--mask", own], ["paste", "--mask", own, "--background", own],
                 ["move", "--mask", own, "--at", "3,3"], ["cut", "--box", "30,20,40,30"]):
        code, _, err = run(argv[0], folder / "a.png", *argv[1:], "--out", "none")
        assert code == 2 and err.count("\n") == 1 and "no model is named: give --name" in err and "models" in err
    code, _, err = run("cut", folder / "a.png", "--mask", own, "--weights", "absent.pt", "--out", "none")
    assert code == 2 and err.count("\n") == 1 and "absent.pt" in err
    assert not (tmp_path / "none").exists()


def test_the_colours_of_a_cut_are_freed_of_the_surroundings():
    """Where a red disc with a soft edge mixes with green, the cut is red again: by the mask alone, without a model."""
    alpha = disc(400, 300, (180, 140), 90.0)[..., None]
    image = Image.fromarray((alpha * (200, 30, 40) + (1 - alpha) * (20, 160, 60)).round().astype(np.uint8))
    own = Image.fromarray((alpha[..., 0] * 255).round().astype(np.uint8))
    cutout, mask = edit.cut(None, image, mask=own)
    assert mask.tobytes() == own.tobytes()
    m, colours = np.asarray(mask), np.asarray(cutout)[..., :3].astype(int)
    edge = (m > 100) & (m < 255)
    assert edge.sum() > 100
    assert np.abs(np.asarray(image).astype(int) - (200, 30, 40))[edge].max() > 60, "mixed before"
    assert np.abs(colours - (200, 30, 40))[edge].max() < 25
    assert np.array_equal(colours[m == 255], np.asarray(image)[m == 255])


def test_a_folder_of_masks(call, tmp_path):  # noqa: F811
    folder = folder_of(tmp_path, "a.png", "sub/b.png", "c.png", "d.png", "e.png")
    masks = folder / "masks"  # below the photographs, and yet none
    (masks / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png.png", "sub/b.png_2.png", "d.jpg", "d.png"):
        stored(mask_of(), masks, name)
    stored(mask_of(20, 20, (5, 5), 4), masks, "e.tif")
    code, text, err = call("cut", "--images", folder, "--masks", masks, "--out", tmp_path / "out")
    assert code == 1 and "2 of 3" in text
    assert names(tmp_path / "out" / "cut") == ["a.png.png", "sub/b.png.png", "sub/b.png_2.png"]
    lines = [line for line in err.splitlines() if line.startswith("  ")]
    assert len(lines) == 3
    assert any("c.png: " in line and "no mask" in line for line in lines)
    assert any("d.png: " in line and "d.jpg and d.png" in line for line in lines)
    assert any("e.tif: the mask has 20 x 20" in line for line in lines)
    cut = tmp_path / "out" / "cut_mask"
    code, text, _ = call("cut", "--images", folder / "sub", "--masks", cut / "sub", "--out", tmp_path / "again")
    assert code == 0 and names(tmp_path / "again" / "cut") == ["b.png.png", "b.png_2.png"]


@pytest.mark.parametrize("argv, text", [
    (["DOG", "--mask", "absent.png"], "no image absent.png"),
    (["DOG", "--mask", "SMALL"], "has 20 x 20 pixels, its photograph 100 x 80"),
    (["DOG", "--mask", "BLACK"], "0 everywhere"),
    (["DOG", "--mask", "DOG"], "a mask must be grey"),
    (["DOG", "--mask", "ONES"], "its brightest value is 1"),
    (["DOG", "--masks", "DIR"], "--images"),
    (["--images", "DIR", "--mask", "SMALL"], "--masks"),
    (["--images", "DIR", "--masks", "absent"], "no folder absent"),
    (["--images", "DIR", "--masks", "DIR"], "put the masks in another"),
    (["--images", "DIR", "--masks", "EMPTY"], "no mask for any photograph: a.png: "),
])
def test_mistakes_with_masks_give_one_line(call, tmp_path, argv, text):  # noqa: F811
    made = {"DOG": stored(picture(), tmp_path, "dog.png"), "DIR": folder_of(tmp_path, "a.png"),
            "SMALL": stored(mask_of(20, 20, (9, 9), 5), tmp_path, "small.png"), "EMPTY": tmp_path / "empty",
            "BLACK": stored(Image.new("L", (100, 80)), tmp_path, "black.png"),
            "ONES": stored(mask_of().point(lambda v: v > 127), tmp_path, "ones.png")}
    made["EMPTY"].mkdir()
    code, _, err = call("cut", *[made.get(a, a) for a in argv], "--out", tmp_path / "out")
    assert code == 2 and err.startswith("photo.py: error: ") and err.count("\n") == 1 and text in err
    assert names(tmp_path / "out") == [] if (tmp_path / "out").exists() else True


def test_a_box_and_a_mask_are_too_much(call, tmp_path):  # noqa: F811
    code, _, err = call("cut", "a.png", "--box", "1,1,5,5", "--mask", "m.png")
    assert code == 2 and "not allowed with" in err


# --- move ---


@pytest.mark.parametrize("objects", [("--box", "30,20,40,30"), ("--mask", "MASK")])
@pytest.mark.parametrize("more", [(), ("--dilate", "3", "--no-refine"), ("--seed", "4", "--no-detail", "--erode", "1")])
def test_a_move_is_a_removal_and_a_paste(call, tmp_path, objects, more):  # noqa: F811
    """To the byte of the files; the places overlap, and where neither mask is, the photograph is as it was."""
    dog, out = stored(picture(), tmp_path, "dog.jpg", exif=camera_exif(), dpi=(300, 300)), tmp_path / "out"
    objects = [stored(mask_of(), tmp_path, "m.png") if word == "MASK" else word for word in objects]
    paste_takes = [word for word in more if word != "--no-detail"]
    assert call("move", dog, *objects, *AT, *more, "--out", out)[0] == 0
    assert names(out) == ["moved/dog.jpg.png", "moved_mask/dog.jpg.png"]
    assert call("remove", dog, *objects, *more, "--out", out)[0] == 0
    background = ("--background", out / "removed" / "dog.jpg.png")
    assert call("paste", dog, *objects, *AT, *paste_takes, *background, "--out", out)[0] == 0
    read = {kind: (out / kind / "dog.jpg.png") for kind in ("moved", "moved_mask", "removed_mask", "pasted",
                                                            "pasted_mask")}
    assert read["moved"].read_bytes() == read["pasted"].read_bytes()
    removed, pasted = pixels(read["removed_mask"]) > 0, pixels(read["pasted_mask"]) > 0
    assert (removed & pasted).any() and (pasted & ~removed).any()
    assert np.array_equal(pixels(read["moved_mask"]) > 0, removed | pasted)
    change = changed(Image.open(dog), Image.open(read["moved"]))
    assert change.any() and not (change & ~removed & ~pasted).any()


def test_moves_of_several_objects_and_mistakes(call, tmp_path):  # noqa: F811
    dog, out = stored(picture(), tmp_path, "dog.png"), tmp_path / "out"
    two = ("--box", "30,20,40,30", "--box", "5,5,20,20")
    assert call("move", dog, *two, "--at", "-5,40,30,30", "--out", out)[0] == 0
    assert names(out / "moved") == ["dog.png.png", "dog.png_2.png"]
    assert call("move", dog, *two[2:], "--at", "-5,40,30,30", "--out", tmp_path / "second")[0] == 0
    second = tmp_path / "second" / "moved" / "dog.png.png"
    assert (out / "moved" / "dog.png_2.png").read_bytes() == second.read_bytes()
    code, _, err = call("move", dog, *two, "--out", tmp_path / "none")
    assert code == 2 and "--at" in err
    code, _, err = call("move", dog, *two, "--at", "500,3", "--out", tmp_path / "none")
    assert code == 2 and "outside" in err and err.count("\n") == 1
    folder = folder_of(tmp_path, "a.png")
    args = ("move", "--images", folder, "--boxes", boxes_of(tmp_path, "a.png"), *AT, "--out", out)
    assert call(*args)[0] == 0 and (out / "moved" / "a.png.png").exists()
