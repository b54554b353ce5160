"""What config.json and metrics.json say of what made them: the code, its versions, the machine, the crops."""
import hashlib
import json
import os
import platform
import subprocess
from pathlib import Path

import torch
import torchvision


def origin(device, crops):
    """{name: text, number or flag}: what it takes, beside the options, to make a run's or a test's figures again.

    device: torch's; crops: the `data.Crops` that were read.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"revision": revision(), "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
            "python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
            "device": f"{device.type}: {name}", "threads": torch.get_num_threads(), "crops": fingerprint(crops)}


def revision():
    """The git revision of this code, "" where that is not known."""
    return git("rev-parse", "HEAD")


def git(*words):
    """What git says of this code, "" where that is not known."""
    try:
        return subprocess.run(["git", "-C", os.path.dirname(os.path.abspath(__file__)), *words],
                              capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git on this machine
        return ""


def fingerprint(crops):
    """What tells one set of crops from another: a hash of their names and of crops.json."""
    told = hashlib.sha256(json.dumps([crops.stems, crops.background_stems]).encode())
    path = Path(crops.root, "crops.json")
    if path.is_file():
        told.update(path.read_bytes())
    return told.hexdigest()
