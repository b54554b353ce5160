"""benchmarks/quality.py: minutes until a model is useful."""
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

import train
from benchmarks import quality
from images import UserError

ROOT = Path(__file__).parent.parent


def test_minutes_are_those_of_the_steps_so_far():
    """100 steps of 6 images at 5 a second are 2 minutes; then 50 at 10 a second half a minute; scoring takes none."""
    lines = [{"step": 100, "images_per_s": 5.0}, {"step": 100, "val_iou": 0.72}, {"step": 150, "images_per_s": 10.0}]
    assert quality.clock(lines, 6) == {0: 0.0, 100: 2.0, 150: 2.5}


def test_minutes_until_masks_and_fills_are_useful():
    points = [quality.Point(2.0, 100, 0.72, 0.20, 0.19), quality.Point(2.5, 150, 0.81, 0.20, 0.19),
              quality.Point(3.0, 200, 0.79, 0.18, 0.19)]
    boxes = [point._replace(fill=None, laplace=None) for point in points]
    lines = quality.table({"seigan": points, "boxes": boxes, "redo": []})
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.splitlines()[2:]] == [
        ["seigan", "2.0", "2.5", "2.5", "-", "3.0", "200, 0.790"],
        ["boxes", "2.0", "2.5", "2.5", "-", "-", "200, 0.790"],
        ["redo", "-", "-", "-", "-", "-", "no masks yet"]]
    drawn = ElementTree.fromstring(quality.figure({"seigan": points, "redo": []}))
    line, = drawn.iter("{http://www.w3.org/2000/svg}polyline")
    across = [float(pair.split(",")[0]) for pair in line.get("points").split()]
    assert (across[1] - across[0]) / (across[2] - across[1]) == pytest.approx(1, abs=0.01)  # by minutes, not by steps


def test_checkpoints_that_do_not_segment_yet_are_passed_over(dataroot, tmp_path):
    words = f"--dataroot {dataroot} --checkpoints_dir {tmp_path} --name a --method comgan --gpu -1 --num_threads 0"
    train.main([*words.split(), *"--size 16 --ngf 4 --ndf 4 --seg_ngf 4 --head_blocks 0 --batch_size 2".split(),
                *"--first_epochs 1 --n_epochs 2 --print_freq 1 --save_latest_freq 1 --keep 99".split()])
    n = len(list((dataroot / "train" / "objects").iterdir())) // 2
    points = quality.curve(tmp_path / "a", SimpleNamespace(dataroot=str(dataroot), batch_size=2))
    assert [point.step for point in points] == list(range(n + 1, 2 * n + 1)) != []
    assert "<polyline" not in quality.figure({"comgan": []})


def test_quality_trains_and_scores(dataroot, tmp_path, capfd, monkeypatch):
    def in_this_process(words, env):
        assert words[:2] == [sys.executable, str(ROOT / "train.py")] and env["OMP_NUM_THREADS"] == "1"
        return SimpleNamespace(returncode=train.main(words[2:]))

    monkeypatch.setattr(quality, "subprocess", SimpleNamespace(run=in_this_process))
    words = "--every 2 --batch_size 2 --n_epochs 1 --size 16 --ngf 4 --ndf 4 --n_layers_D 2 --seg_blocks 1 --minutes 60"
    drawn = tmp_path / "quality.svg"
    assert quality.run(["--dataroot", str(dataroot), "--figure", str(drawn), *words.split()]) in (0, None)
    last = capfd.readouterr().out.strip().splitlines()[-1]
    assert re.fullmatch(r"\| seigan .*\| \d+, 0\.\d{3} \|", last) and "polyline" in drawn.read_text()
    shutil.copytree(dataroot / "train", dataroot.parent / "bare" / "train")
    with pytest.raises(UserError, match="masks"):
        quality.run(["--dataroot", str(dataroot.parent / "bare")])
    with pytest.raises(UserError, match="exit code 2"):
        quality.run(["--dataroot", str(dataroot), *words.split(), "--size", "18"])
