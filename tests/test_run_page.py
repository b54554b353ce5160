"""What shows a run while it goes on: its page, and TensorBoard's files where its package is installed."""
import re
import sys
from types import SimpleNamespace

import pytest
from test_train import SMALL, dataroot, run  # noqa: F401 - fixtures

from evaluation import page
from running import train_options


def test_the_page_has_curves_and_the_newest_samples(run, tmp_path):  # noqa: F811
    assert run(f"--name a {SMALL}")[0] == 0
    text = (tmp_path / "a" / "index.html").read_text()
    assert "Step 8 of 8" in text and "IoU on held-out crops" in text and "Mask area" in text and "bg_mae" in text
    assert re.findall(r'src="(.*?)"', text) == [f"samples/000000{n}.png" for n in (8, 4, 0)]
    assert all((tmp_path / "a" / name).is_file() for name in re.findall(r'src="(.*?)"', text))
    assert "$" not in text and not [p for p in (tmp_path / "a").iterdir() if p.name.endswith(".part")]


def test_the_page_is_written_with_each_grid(run, tmp_path, monkeypatch):  # noqa: F811
    written, write = [], page.write_run
    monkeypatch.setattr(page, "write_run", lambda *args: written.append(args[2]) or write(*args))
    assert run(f"--name a {SMALL}")[0] == 0
    assert written == [4, 8]


def test_samples_of_steps_to_come_are_not_the_newest(tmp_path):
    (tmp_path / "samples").mkdir()
    for name in ("0000004.png", "0000008.png", "0000012.png", "mine.png", "<b>.png"):
        (tmp_path / "samples" / name).touch()
    page.write_run(str(tmp_path), "<a> & b", 8, 20)
    text = (tmp_path / "index.html").read_text()
    assert re.findall(r'src="(.*?)"', text) == ["samples/0000008.png", "samples/0000004.png"]
    assert "&lt;a&gt; &amp; b" in text and "<b>" not in text


def test_a_page_that_cannot_be_written_stops_no_run(run, tmp_path):  # noqa: F811
    (tmp_path / "a" / "index.html" / "mine").mkdir(parents=True)
    code, out = run(f"--name a {SMALL}")
    assert code == 0 and out.err.count("going on without it") == 2 and (tmp_path / "a" / "latest.pt").exists()


class Board:
    """Keeps what TensorBoard's writer would write, and forgets what lies behind a resume as it does."""

    kept = {}

    def __init__(self, folder, purge_step):
        self.values = self.kept.setdefault(folder, [])
        self.values[:] = [value for value in self.values if value[1] < purge_step]

    def add_scalar(self, name, value, step):
        self.values.append((name, step, float(value)))

    def close(self):
        self.values.append(("closed", -1, 0.0))


def test_tensorboard_gets_each_step_once(run, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(train_options, "find_spec", lambda name: name == "tensorboard")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Board))
    assert run(f"--name a {SMALL} --tensorboard")[0] == 0
    assert run("--name a --resume --n_epochs 2")[0] == 0
    values = Board.kept[str(tmp_path / "a")]
    steps = [step for name, step, _ in values if name == "bg_mae"]
    assert steps == [2, 4, 6, 8, 10, 12] and ("closed", -1, 0.0) in values
    assert [step for name, step, _ in values if name == "val_iou"] == [3, 6, 8, 9, 12]


def test_tensorboard_without_its_package_is_one_line(run, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(train_options, "find_spec", lambda name: None)
    code, out = run(f"--name a {SMALL} --tensorboard")
    assert code == 2 and "pip install tensorboard" in out.err and out.err.count("\n") == 1
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("lines", ["", "{\n", '{"step": 2, "bg_mae": 1e999}\n[]\n{"step": 4, "mask_area": 0.5}\n'])
def test_a_broken_log_draws_what_it_can(tmp_path, lines):
    (tmp_path / "log.jsonl").write_text(lines)
    page.write_run(str(tmp_path), "a", 4, 8)
    assert "Step 4 of 8" in (tmp_path / "index.html").read_text()
