"""Photographs at the size of a camera's: 12 megapixels stay within 1.5 GB of memory, torch included."""
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw
from test_photo import ROOT, stored

MOST = 1.5 * 2**20  # kB of peak resident memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is in other units here")

# VmHWM is this program's own peak; getrusage's would begin with that of the process that started it
CAMERA = """
import sys
sys.path.insert(0, {root!r})
import numpy as np, torch
from PIL import Image
from photos import edit
from seigan import SEIGAN
torch.set_num_threads(1)
torch.manual_seed(0)
model = SEIGAN(size=64, ngf=8, ndf=8, n_layers_D=3, seg_blocks=1, unet_downs=3).eval()
torch.nn.init.constant_(model.G_seg.head.bias, 2.0)
pixels = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
image = Image.fromarray(pixels)
box = {box}
cutout = edit.cut(model, image, box)
assert cutout.image.size == cutout.mask.size == (4000, 3000)
del cutout
image2, mask = edit.remove(model, image, box)
assert image2.size == (4000, 3000)
changed = (np.asarray(image2) != pixels).any(-1)
assert changed.any() and not changed[np.asarray(mask) == 0].any()
del image2, mask, changed
result = edit.paste(model, image, box, image, box[:2])
assert result.image.size == (4000, 3000)
assert np.array_equal(np.asarray(result.coarse)[np.asarray(result.mask) == 0], pixels[np.asarray(result.mask) == 0])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.parametrize("box", [(1400, 1000, 900, 700), (50, 50, 3900, 2900)])
def test_a_photograph_of_12_megapixels(box):
    script = CAMERA.format(root=str(ROOT), box=box)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < MOST


# as a user types it; the peak is that of the command's own process, which a small one starts
TYPED = """
import resource, subprocess, sys
code = subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.fixture(scope="module")
def camera(tmp_path_factory):
    """A JPEG of 4000 x 3000 px with an object of 2200 x 1800, its mask, and it with transparency as a PNG."""
    folder, rng = tmp_path_factory.mktemp("camera"), np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (75, 100, 3), np.uint8)).resize((4000, 3000), Image.Resampling.BICUBIC)
    ImageDraw.Draw(image).ellipse((900, 600, 3100, 2400), fill=(220, 60, 30))
    exif = Image.Exif()
    exif[0x0112] = 3
    stored(image, folder, "photo.jpg", quality=92, exif=exif)
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).ellipse((900, 600, 3100, 2400), fill=255)
    stored(mask, folder, "mask.png")
    image.putalpha(mask.point(lambda value: max(value, 120)))
    stored(image, folder, "clear.png", compress_level=1)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("object_", ["--box 850,550,2300,1900", "--mask mask.png"])
@pytest.mark.parametrize("command", ["cut photo.jpg", "remove photo.jpg", "paste photo.jpg --background photo.jpg",
                                     "move photo.jpg --at 200,300", "paste clear.png --background clear.png"])
def test_every_command_on_a_photograph_of_12_megapixels(camera, tmp_path, command, object_):
    words = [*command.split(), *object_.split(), "--weights", ROOT / "models" / "demo.pt", "--device", "cpu",
             "--out", tmp_path]
    done = subprocess.run([sys.executable, "-c", TYPED, ROOT / "photo.py", *words], cwd=camera, capture_output=True,
                          text=True)
    code, peak = map(int, done.stdout.split())
    assert code == 0, done.stderr
    print(f"{command} {object_}: {peak / 1024:.0f} MB")
    assert peak < MOST
