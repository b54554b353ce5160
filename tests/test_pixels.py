"""Pictures of every kind as RGB; PNGs read back by Pillow."""
import io

import numpy as np
import pytest
from PIL import Image

from images import encode_png, save_png, to_rgb


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


def test_strided_pixels_are_written_as_they_look():
    pixels = np.arange(3 * 40 * 30, dtype=np.uint32).astype(np.uint8).reshape(3, 40, 30).transpose(1, 2, 0)[::-2, 3:]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(pixels)))), pixels)


def test_photographs_are_stored_and_masks_compressed():
    photograph = np.random.default_rng(1).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    assert 0 < len(encode_png(photograph)) - photograph.size < 300
    mask = np.where(np.hypot(*np.mgrid[-64:64, -64:64]) < 40, 255, 0).astype(np.uint8)
    pillows = io.BytesIO()
    Image.fromarray(mask).save(pillows, "PNG", compress_level=1)
    assert len(encode_png(mask)) < 1.2 * len(pillows.getvalue())


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
