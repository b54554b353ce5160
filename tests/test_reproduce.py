"""The chains of docs/reproduce.md as written, from annotations to Table 1, on few photographs and for few steps."""
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parents[1]
COCO = HERE.parent / "shared" / "data" / "coco_mini"
# what makes a command short; the command itself stays as written
SHORT = """
python() {
    local file=$1; shift
    case "$file" in
        train.py) set -- "$@" --gpu -1 --num_threads 0 --size 16 --ngf 4 --ndf 4 --seg_blocks 1 --n_epochs 1 \\
            --n_epochs_decay 0 --lambda_bg_texture 0 --lambda_bg_perc 0 --lambda_obj_perc 0 --batch_size 16;;
        test.py) set -- "$@" --gpu -1 --threads 1;;
        prepare.py) set -- "$@" --num_workers 0 $PREPARE;;
        -m) set -- "$@" $STUDY; command "$PYTHON" -m "$@"; return;;
    esac
    command "$PYTHON" "$HERE/$file" "$@"
}
set -e
"""


def chain(word):
    """The shell block of docs/reproduce.md in which `word` stands first."""
    text = (HERE / "docs" / "reproduce.md").read_text(encoding="utf-8")
    return next(block for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S) if word in block)


def run(block, cwd, **more):
    env = os.environ | {"HERE": str(HERE), "PYTHON": sys.executable, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1",
                        "PREPARE": "", "STUDY": ""} | more
    done = subprocess.run(["bash", "-c", SHORT + block], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def check_table(folder, prefix):
    """The table has a line of each method, with the IoU of its evaluation."""
    with open(folder / "results" / "compare" / "compare.csv", newline="") as file:
        found = {row["method"].split()[0]: row["IoU"] for row in csv.DictReader(file)}
    for method in ("seigan", "nocycle", "supervised"):
        metrics = json.loads((folder / "results" / f"{prefix}_{method}" / "metrics.json").read_text())
        assert metrics["method"] == method and found[method].startswith(f"{metrics['iou']:.3f} [")


@pytest.mark.skipif(not COCO.is_dir(), reason=f"no photographs at {COCO}")
def test_table_1_and_the_voting_page_on_coco(tmp_path):
    os.symlink(COCO.resolve(), tmp_path / "coco")
    run(chain("coco_nocycle"), tmp_path, PREPARE="--y_per_x 0.3")
    check_table(tmp_path, "coco")
    assert len(list((tmp_path / "results" / "study" / "page").rglob("*.png"))) > 10


def city(root, split, number):
    """Photographs of made-up streets with one car each, annotated as gtFine is."""
    rng = np.random.default_rng(number)
    for kind in ("gtFine", "leftImg8bit"):
        (root / kind / split / "ulm").mkdir(parents=True, exist_ok=True)
    for i in range(number):
        left, top = rng.integers(20, 250), rng.integers(20, 120)
        corners = [[left, top], [left + 60, top], [left + 60, top + 50], [left, top + 50]]
        corners = [[int(x), int(y)] for x, y in corners]
        objects = [{"label": "road", "polygon": [[0, 150], [399, 150], [399, 199], [0, 199]]},
                   {"label": "car", "polygon": corners}]
        name = root / "{}" / split / "ulm" / f"ulm_{i:06}_000019_"
        Path(str(name).format("gtFine") + "gtFine_polygons.json").write_text(
            json.dumps({"imgHeight": 200, "imgWidth": 400, "objects": objects}))
        labels = np.full((200, 400), 7, np.uint16)
        labels[top:top + 51, left:left + 61] = 26000
        Image.fromarray(labels).save(str(name).format("gtFine") + "gtFine_instanceIds.png")
        image = rng.integers(0, 90, (200, 400, 3), np.uint8)
        image[top:top + 51, left:left + 61] += 120
        Image.fromarray(image).save(str(name).format("leftImg8bit") + "leftImg8bit.png")


@pytest.mark.slow
def test_table_1_on_cityscapes(tmp_path):
    city(tmp_path / "cityscapes", "train", 20)
    city(tmp_path / "cityscapes", "val", 6)
    run(chain("cityscapes_$method"), tmp_path)
    check_table(tmp_path, "cityscapes")
