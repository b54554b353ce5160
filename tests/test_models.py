"""models/: the weights that come with the code are what their card says, and cut a drawing."""
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import photo
from crops import demo
from seigan import SEIGAN

MODELS = Path(photo.__file__).parent / "models"


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.pt")), ids=lambda path: path.stem)
def test_the_card_is_of_this_file(path):
    told = re.search("SHA-256 of (.*): ([0-9a-f]{64})", path.with_suffix(".md").read_text())
    assert told.groups() == (path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    assert path.stat().st_size < 6e6 and SEIGAN.load(path).size == 48


def test_it_cuts_a_drawing_that_it_has_not_seen(tmp_path):
    image, mask = demo.draw(7, "test", "objects", 3)
    side = len(image)
    Image.fromarray(image).resize((300, 300), Image.Resampling.BICUBIC).save(tmp_path / "drawing.png")
    box = ",".join(str(round(300 * n / side)) for n in ((side - demo.OBJECT_SIZE) / 2,) * 2 + (demo.OBJECT_SIZE,) * 2)
    words = ("cut", tmp_path / "drawing.png", "--weights", MODELS / "demo.pt", "--box", box, "--gpu", "-1", "--out",
             tmp_path / "cut.png")
    assert photo.main([str(word) for word in words]) == 0
    found = np.asarray(Image.open(tmp_path / "cut.png").resize((side, side)))[..., 3] >= 128
    assert (found & (mask >= 128)).sum() / (found | (mask >= 128)).sum() > 0.85
