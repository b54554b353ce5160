"""Images of every kind as upright RGB, masks, and files that are written whole."""
import os

import numpy as np
import pytest
from PIL import Image, features

from images import (
    OBJECT,
    TURNED_BACK,
    VOID,
    as_stored,
    list_images,
    open_image,
    open_mask,
    save_png,
    stored_size,
    to_rgb,
    written_whole,
)
from photos import files


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 48), (1, 1, 3), (5, 7, 3), (128, 128, 3)])
@pytest.mark.parametrize("content", ["noise", "runs", "one value"])
def test_pillow_reads_back_every_pixel(tmp_path, shape, content):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, shape).astype(np.uint8)
    if content != "noise":
        pixels = np.where(pixels > 200, 255, 0).astype(np.uint8) if content == "runs" else np.full_like(pixels, 128)
    save_png(tmp_path / "a.png", pixels)
    with Image.open(tmp_path / "a.png") as image:
        image.verify()  # checksums
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG" and image.mode == ("L" if pixels.ndim == 2 else "RGB")
        assert np.array_equal(np.asarray(image), pixels)


def test_strided_pixels_are_written_as_they_look(tmp_path):
    pixels = np.arange(3 * 40 * 30, dtype=np.uint32).astype(np.uint8).reshape(3, 40, 30).transpose(1, 2, 0)[::-2, 3:]
    save_png(tmp_path / "a.png", pixels)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), pixels)


def test_photographs_are_stored_and_masks_compressed(tmp_path):
    photograph = np.random.default_rng(1).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    save_png(tmp_path / "a.png", photograph)
    assert 0 < os.path.getsize(tmp_path / "a.png") - photograph.size < 400
    mask = np.where(np.hypot(*np.mgrid[-64:64, -64:64]) < 40, 255, 0).astype(np.uint8)
    save_png(tmp_path / "b.png", mask)
    assert os.path.getsize(tmp_path / "b.png") < mask.size / 10


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    with written_whole(path, sync=True) as file:
        file.write(b"old")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), written_whole(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.txt"]


def test_images_are_found_by_their_endings(tmp_path):
    (tmp_path / "b" / ".hidden").mkdir(parents=True)
    for name in ("z.JPG", "a.png", "._a.png", "note.txt", "b/c.tif", "b/.hidden/d.png"):
        (tmp_path / name).touch()
    assert list_images(tmp_path) == ["a.png", "z.JPG"]
    assert list_images(tmp_path, below=True) == ["a.png", "b/c.tif", "z.JPG"]
    assert list_images(tmp_path, below=True, without={str((tmp_path / "b").resolve())}) == ["a.png", "z.JPG"]
    assert list_images(tmp_path / "none") == []


@pytest.mark.parametrize("ending", ["jpg", "tif", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(tmp_path, ending, orientation):
    """Stored so that viewers show the same picture for every orientation: a dark corner at the upper left."""
    shown = np.full((16, 24, 3), 200, np.uint8)
    shown[:8, :8] = 0
    stored = Image.fromarray(shown)
    stored = stored.transpose(TURNED_BACK[orientation]) if orientation > 1 else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    stored.save(path, exif=exif, **({"quality": 95} if ending == "jpg" else {}))
    near = {"atol": 40 if ending == "jpg" else 0}
    assert np.allclose(np.asarray(open_image(path)).astype(int), shown, **near)
    assert np.allclose(np.asarray(open_image(path, as_stored)).astype(int), np.asarray(stored).astype(int), **near)
    assert stored_size(path) == (stored.size, orientation)


def test_masks_keep_what_is_void(tmp_path):
    save_png(tmp_path / "m.png", np.array([[0, 128, 255], [127, 129, 255]], np.uint8))
    assert np.asarray(open_mask(tmp_path / "m.png")).tolist() == [[0, VOID, OBJECT], [0, OBJECT, OBJECT]]


def test_every_mode_becomes_rgb_properly():
    grey16 = Image.fromarray((np.arange(256, dtype=np.uint32) * 257).astype(np.uint16).reshape(16, 16))
    assert np.array_equal(np.asarray(to_rgb(grey16))[..., 0].ravel(), np.arange(256))
    rgb = Image.new("RGB", (4, 4), (200, 100, 50))
    for mode in ("RGBA", "P", "CMYK", "YCbCr"):
        assert np.abs(np.asarray(to_rgb(rgb.convert(mode))).astype(int) - (200, 100, 50)).max() < 30, mode
    assert np.asarray(to_rgb(Image.new("1", (2, 2), 1))).min() == 255
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert np.asarray(to_rgb(clear)).min() == 255  # what is transparent is white, not what hides there
    with pytest.raises(ValueError, match="floating point"):
        to_rgb(Image.new("F", (2, 2)))


# what the first row and the first column of the pixels as stored are of the upright image, by EXIF 2.32, 4.6.4 A
SIDES = {1: "top left", 2: "top right", 3: "bottom right", 4: "bottom left", 5: "left top", 6: "right top",
         7: "right bottom", 8: "left bottom"}


def turned(pixels, orientation):
    """Pixels as stored -> upright, one by one."""
    rows, columns = pixels.shape[:2]
    upright = np.zeros((rows, columns, 3) if orientation < 5 else (columns, rows, 3), np.uint8)
    for r in range(rows):
        for c in range(columns):
            at = dict(zip(SIDES[orientation].split(), (r, c), strict=True))
            y = at["top"] if "top" in at else len(upright) - 1 - at["bottom"]
            x = at["left"] if "left" in at else upright.shape[1] - 1 - at["right"]
            upright[y, x] = pixels[r, c]
    return upright


@pytest.mark.parametrize("ending", ["avif", "jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", SIDES)
def test_every_kind_is_turned_upright_exactly_once(tmp_path, ending, orientation):
    """AVIF says it twice, by its own irot and imir and in its EXIF block, as encoders other than Pillow leave it."""
    if ending == "avif" and not features.check("avif"):
        pytest.skip("this Pillow decodes no AVIF")
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :8], pixels[:8, 16:], pixels[8:, :8] = (200, 40, 40), (40, 180, 40), (60, 60, 220)
    exif, path = Image.Exif(), tmp_path / f"a.{ending}"
    exif[0x0112], exif[0x0113] = orientation, orientation
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    if ending == "avif":
        tag = b"\x01\x13\x00\x03\x00\x00\x00\x01"
        before = path.read_bytes()
        assert before.count(tag) == 1 or before.count(tag[1::-1] + b"\x03\x00\x01\x00\x00\x00") == 1
        path.write_bytes(before.replace(tag, b"\x01\x12" + tag[2:]).replace(
            tag[1::-1] + b"\x03\x00\x01\x00\x00\x00", b"\x12\x01\x03\x00\x01\x00\x00\x00"))
    expected = turned(pixels, orientation)
    for found in (open_image(path), files.open_photo(path)):
        assert found.size == expected.shape[1::-1] and np.abs(np.asarray(found).astype(int) - expected).mean() < 12
        assert found.getexif().get(0x0112, 1) == 1
    assert stored_size(path) == ((24, 16), orientation)
    found = np.asarray(open_image(path, turn=as_stored)).astype(int)
    assert found.shape == pixels.shape and np.abs(found - pixels).mean() < 12
    files.save(files.open_photo(path), tmp_path / "again.png")
    assert np.array_equal(np.asarray(open_image(tmp_path / "again.png")), np.asarray(files.open_photo(path)))
