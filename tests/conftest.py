import html
import json
import os
import re
import shutil
import subprocess

import pytest
import torch

from crops import demo

torch.set_num_threads(1)  # files of tests run side by side, and small tensors gain nothing by more
os.environ["OMP_NUM_THREADS"] = "1"  # the same for the commands that tests start
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(address, folder, width):
    """Open a page in a browser of its own profile: what its script leaves in <pre id="out">, and the console's lines.

    A browser's first start on a busy machine can outrun its virtual time: it is given more, up to six times.
    """
    for attempt in range(6):
        profile = folder / f"profile{attempt}"
        done = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             f"--user-data-dir={profile}", "--enable-logging=stderr", f"--window-size={width},900",
             f"--virtual-time-budget={5000 * 2**attempt}", "--dump-dom", address],
            capture_output=True, text=True, timeout=120)
        shutil.rmtree(profile, ignore_errors=True)
        found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
        if found:
            return json.loads(html.unescape(found[1])), [x for x in done.stderr.splitlines() if "CONSOLE" in x]
    raise AssertionError(f"the page's script did not finish:\n{done.stderr[-3000:]}")


@pytest.fixture(scope="session")
def vgg19_state():
    """Random weights for the convolutions of VGG-19 under torchvision's names, scaled to keep features of order 1."""
    rng = torch.Generator().manual_seed(0)
    layers = [(0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256), (14, 256, 256),
              (16, 256, 256), (19, 256, 512), (21, 512, 512), (23, 512, 512), (25, 512, 512), (28, 512, 512),
              (30, 512, 512), (32, 512, 512), (34, 512, 512)]
    state = {}
    for index, c, d in layers:
        state[f"features.{index}.weight"] = torch.randn(d, c, 3, 3, generator=rng) * (2 / (9 * c)) ** 0.5
        state[f"features.{index}.bias"] = torch.randn(d, generator=rng) * 0.1
    return state


def equal(a, b):
    """Whether two nests of dicts, lists and tensors are equal to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    """A demo set of 8 objects to train on and 7 to test on; to be read alone."""
    root = tmp_path_factory.mktemp("set")
    demo.write_demo(root, counts={"train": {"objects": 8, "backgrounds": 4}, "test": {"objects": 7, "backgrounds": 3}})
    return root
