"""What watches over a run: lock, log, checkpoints, limits, steps not applied, collapsed masks."""
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import equal
from test_faults import start  # noqa: F401 - a fixture
from test_train import HERE, SMALL, dataroot, records, run, training_state  # noqa: F401 - fixtures

import losses
import train
from data import Crops, UnpairedCrops
from evaluation import evaluate
from images import UserError
from running import checkpoint, folder, parallel, watch
from running import run as runs
from running.checkpoint import load_checkpoint
from running.folder import Checkpoints, Lock, Log
from running.watch import CollapseWatch, SkippedSteps

# --- two runs of one name ---


def test_a_second_process_is_refused_while_the_first_lives(tmp_path):
    hold = ("import sys; from running.folder import Lock; lock = Lock(sys.argv[1]); print('held', flush=True); "
            "sys.stdin.read()")
    first = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], cwd=HERE, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=f"in use by process {first.pid} on .*: wait until it ends, or give"):
            Lock(str(tmp_path))
    finally:
        first.kill()  # without a chance to clean up
        first.wait()
    Lock(str(tmp_path)).release()


def test_a_second_run_of_one_name_leaves_the_first_alone(run, start, dataroot, tmp_path):  # noqa: F811
    first = start(f"--name a --dataroot {dataroot} --checkpoints_dir {tmp_path} {SMALL} --n_epochs 100000", tmp_path)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "a" / "latest.pt").exists():
            assert first.exitcode is None and time.monotonic() < deadline
            time.sleep(0.1)
        code, out = run("--name a --resume")
        assert code == 2 and f"in use by process {first.pid}" in out.err and len(out.err.splitlines()) == 1
        assert first.exitcode is None
    finally:
        first.kill()
        first.join()
    step = load_checkpoint(tmp_path / "a" / "latest.pt")["step"]
    code, _ = run(f"--name a --resume --n_epochs {step // 4 + 1} --n_epochs_decay 0")
    assert code == 0  # the lock went with the process


# --- the log ---


class Full:
    """A file that takes 10 bytes, then nothing until it is emptied."""

    def __init__(self):
        self.data, self.room = b"", 10

    def write(self, data):
        if not self.room:
            raise OSError(28, "No space left on device")
        part = data[: self.room]
        self.room -= len(part)
        self.data += part
        return len(part)


def test_a_full_disk_delays_lines_but_loses_none(tmp_path):
    log = Log(str(tmp_path / "log.jsonl"), 0)
    log.file.close()
    log.file = Full()
    for step in (1, 2):
        with pytest.raises(OSError, match="No space"):
            log.write({"step": step, "total": torch.tensor(0.123456789), "bad": float("nan")})
    log.file.room = 1000
    log.write({"step": 3, "total": 1.0})
    assert [json.loads(line) for line in log.file.data.splitlines()] == [
        {"step": 1, "total": 0.123457}, {"step": 2, "total": 0.123457}, {"step": 3, "total": 1.0}]


def test_a_resumed_log_keeps_whole_lines_up_to_the_step(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\nnonsense\n[1]\n{"step": 2}\n{"step": 3}\n{"step": 2, "to')
    Log(str(path), 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


# --- checkpoints ---


def state(step):
    return {"method": "seigan", "step": step, "config": {}, "networks": {}, "averaged": {}}


@pytest.mark.parametrize("links", [True, False])
def test_the_checkpoints_before_the_latest_are_kept(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    for step in (10, 20, 30, 40):
        checkpoints.save(state(step))
    checkpoints.save(state(35), "best.pt")
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "latest.pt", "step_0000020.pt", "step_0000030.pt"]
    assert [load_checkpoint(tmp_path / n)["step"] for n in sorted(os.listdir(tmp_path))] == [35, 40, 20, 30]
    assert folder.previous(tmp_path)[0].endswith("step_0000030.pt")


def test_a_failed_save_leaves_all_before_it(tmp_path, monkeypatch):
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    for step in (10, 20):
        checkpoints.save(state(step))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match=r"cannot write .*latest.pt \(.*No space.*\): the one before it is kept"):
            checkpoints.save(state(30))
    assert load_checkpoint(tmp_path / "latest.pt")["step"] == 20
    checkpoints.save(state(40))
    assert sorted(os.listdir(tmp_path)) == ["latest.pt", "step_0000020.pt"]


def test_a_damaged_latest_names_the_one_before_it(run, tmp_path):  # noqa: F811
    run(f"--name a {SMALL}")
    path = tmp_path / "a" / "latest.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # a single bit, which torch.load would pass over
    path.write_bytes(data)
    code, out = run("--name a --resume")
    assert code == 2 and "is damaged or no checkpoint" in out.err and len(out.err.splitlines()) == 1
    assert "the one before it, step_0000006.pt, can be renamed latest.pt" in out.err
    os.replace(tmp_path / "a" / "step_0000006.pt", path)
    assert run("--name a --resume")[0] == 0
    assert load_checkpoint(path)["step"] == 8


def test_a_run_goes_on_where_it_cannot_write(run, tmp_path, monkeypatch):  # noqa: F811
    run(f"--name whole {SMALL}")
    save_checkpoint, failures = checkpoint.save_checkpoint, []

    def fail(path, state):
        if state["step"] < 6:
            failures.append(state["step"])
            raise OSError(f"cannot write {path} (No space left on device): the one before it is kept")
        save_checkpoint(path, state)

    monkeypatch.setattr(checkpoint, "save_checkpoint", fail)
    code, out = run(f"--name a {SMALL}")
    assert code == 0 and out.err.count("warning: cannot write") == len(failures) == 2  # best.pt and latest.pt
    assert equal(training_state(tmp_path / "whole" / "latest.pt"), training_state(tmp_path / "a" / "latest.pt"))
    monkeypatch.setattr(checkpoint, "save_checkpoint", lambda path, state: fail(path, {"step": 0}))
    code, out = run(f"--name c {SMALL}")
    assert code == 2 and "error: cannot write" in out.err  # the last one must be written


def test_all_processes_know_that_the_best_was_not_written(run, tmp_path, monkeypatch):  # noqa: F811
    """Else one would go into the next saving without the others, and wait for ever."""
    agreed = []

    def reduce(self, values, op="sum"):
        agreed.append((list(values), op))
        return list(values)

    def write(self, action, *args):
        if action == self.save_best:
            return False
        action(*args)
        return True

    monkeypatch.setattr(parallel.Ranks, "reduce", reduce)
    monkeypatch.setattr(runs.Run, "write", write)
    run(f"--name a {SMALL}")
    failures = [call for call in agreed if call == ([True], "max")]
    assert len(failures) == 3  # validations, each better than the -1 of before
    assert load_checkpoint(tmp_path / "a" / "latest.pt")["best_iou"] == -1


# --- limits and signals ---


def test_a_time_limit_saves_and_stops_with_its_own_code(run, tmp_path):  # noqa: F811
    run(f"--name whole {SMALL}")
    code, out = run(f"--name a {SMALL} --max_minutes 0")
    assert code == 124 and "stopped after step 1, all saved" in out.out
    while code:
        code, _ = run("--name a --resume --max_minutes 0.0001")
    assert equal(training_state(tmp_path / "whole" / "latest.pt"), training_state(tmp_path / "a" / "latest.pt"))
    assert records(tmp_path / "whole") == records(tmp_path / "a")


def test_a_signal_ends_a_validation_which_a_resume_makes_up_for(run, tmp_path, monkeypatch):  # noqa: F811
    run(f"--name whole {SMALL}")
    real, calls = train.validate, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), 15)
        return real(*args, **options)

    monkeypatch.setattr(train, "validate", interrupted)
    code, _ = run(f"--name a {SMALL}")
    assert code == 143 and [r["step"] for r in records(tmp_path / "a") if "val_iou" in r] == [3]
    assert run("--name a --resume")[0] == 0
    assert records(tmp_path / "whole") == records(tmp_path / "a")
    assert equal(training_state(tmp_path / "whole" / "latest.pt"), training_state(tmp_path / "a" / "latest.pt"))


def test_deterministic_runs_are_equal_to_the_bit(run, tmp_path):  # noqa: F811
    try:
        for name in "ab":
            assert run(f"--name {name} {SMALL} --deterministic")[0] == 0
            assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert equal(training_state(tmp_path / "a" / "latest.pt"), training_state(tmp_path / "b" / "latest.pt"))


# --- losses that are not finite ---


def test_a_bad_step_is_counted_and_its_files_named(run, dataroot, tmp_path, monkeypatch):  # noqa: F811
    mae, calls = losses.mae, []

    def bad_in_step_3(a, b):
        calls.append(1)
        return mae(a, b) * (float("nan") if (len(calls) - 1) // 4 == 2 else 1)  # four such terms a step

    monkeypatch.setattr(losses, "mae", bad_in_step_3)
    code, out = run(f"--name a {SMALL}")
    assert code == 0
    line = next(line for line in (out.out + out.err).splitlines() if "was not applied" in line)
    data = UnpairedCrops(Crops(dataroot, "train", 16))
    names = [os.path.relpath(path, dataroot) for n in (4, 5) for path in data.files(n)]
    assert line == f"step 3 was not applied, 1 so far: bg_mae, obj_mae, id_obj, id_bg, total not finite on " \
                   f"{', '.join(names)}"
    lines = [r for r in records(tmp_path / "a") if "total" in r]
    assert [r["skipped"] for r in lines] == [0, 1, 1, 1]
    assert load_checkpoint(tmp_path / "a" / "latest.pt")["skips"] == {"total": 1, "in_a_row": 0}


def test_too_many_bad_steps_end_the_run(run, tmp_path, monkeypatch):  # noqa: F811
    run(f"--name a {SMALL}")
    before = load_checkpoint(tmp_path / "a" / "latest.pt")
    monkeypatch.setattr(losses, "mae", lambda a, b: (a - b).mean() * float("nan"))
    code, out = run("--name a --resume --n_epochs 20")
    assert code == 2 and "error: 10 steps in a row were not finite, the last one 18: lower --lr" in out.err
    after = load_checkpoint(tmp_path / "a" / "latest.pt")
    assert after["step"] == 15 and equal(before["networks"], after["networks"])


def test_skipped_steps_in_a_row():
    skips, lines = SkippedSteps(str, 3), []
    for step, bad in enumerate([1, 1, 0, 1, 1]):
        skips.add(step, {"skipped": torch.tensor(float(bad)), "total": torch.tensor(1.0)}, lines.append)
    assert len(lines) == 4 and lines[0] == "step 0 was not applied, 1 so far: a gradient not finite on 0"
    with pytest.raises(UserError, match="3 steps in a row were not finite, the last one 5"):
        skips.add(5, {"skipped": torch.tensor(1.0)}, lines.append)


# --- collapsed masks ---


@pytest.mark.parametrize("fill,spread,kind", [
    (0.0, 0.0, "empty"), (0.009, 0.1, "empty"), (0.98, 0.1, "full"), (0.5, 0.009, "constant"), (0.5, 0.1, None),
    (0.5, float("nan"), None),
])
def test_collapse_is_told_once_and_again_after_a_recovery(fill, spread, kind):
    watcher = CollapseWatch(100)
    for begin in (0, 400):
        assert not any(watcher.add(step, 0.5, 0.1) for step in range(begin, begin + 200, 10))
        told = {step: watcher.add(step, fill, spread) for step in range(begin + 200, begin + 400, 10)}
        assert {step: k for step, k in told.items() if k} == ({begin + 300: kind} if kind else {})


def test_masks_that_begin_empty_have_three_times_as_long():
    watcher = CollapseWatch(100)
    assert [step for step in range(0, 1000, 10) if watcher.add(step, 0, 0)] == [300]


def test_a_collapse_that_flickers():
    watcher = CollapseWatch(100)
    assert not any(watcher.add(step, 0.5, 0.1) for step in range(0, 200, 10))
    flicker = {0: (0.002, 0.012), 10: (0.014, 0.005)}
    told = [watcher.add(step, *flicker[step % 20]) for step in range(200, 400, 10)]
    assert told.count("empty") == 1 and set(told) == {None, "empty"}


def test_what_the_watch_knows_outlasts_a_resume():
    first, second, third = (CollapseWatch(100) for _ in range(3))
    assert not any(first.add(step, 0.5, 0.1) for step in range(0, 200, 10))
    assert not any(first.add(step, 0, 0) for step in range(200, 290, 10))
    second.load_state_dict(first.state_dict())
    assert second.add(300, 0, 0) == "empty"
    third.load_state_dict(second.state_dict())
    assert third.add(310, 0, 0) == "empty"  # told again: the resumed run may have been asked to stop


EMPTY = "--box_prior 0 --lambda_coarse 0.5 --head_bias -20"


@pytest.fixture
def soon(monkeypatch):
    """A watch that need not see a thousand steps."""
    monkeypatch.setattr(runs, "CollapseWatch", lambda: CollapseWatch(2))


def test_a_collapse_is_reported(run, soon):  # noqa: F811
    code, out = run(f"--name a {SMALL} {EMPTY}")
    assert code == 0
    lines = [line for line in out.err.splitlines() if "warning" in line]
    assert lines == ["train.py: warning: step 6: the masks have been empty for 2 steps: docs/training.md says what "
                     "cures it"]


def test_a_collapse_can_end_the_run(run, soon, tmp_path):  # noqa: F811
    code, out = run(f"--name a {SMALL} {EMPTY} --on_collapse stop")
    assert code == 2 and "error: step 6: the masks have been empty" in out.err
    assert load_checkpoint(tmp_path / "a" / "latest.pt")["step"] == 6


def test_the_speed_is_that_of_the_steps(run, tmp_path, monkeypatch):  # noqa: F811
    """An hour's validation is none of the steps' time."""
    hours = []

    def slow(*args, **kwargs):
        hours.append(3600)
        return evaluate.validate(*args, **kwargs)

    monkeypatch.setattr(train, "validate", slow)
    monkeypatch.setattr(watch, "time", SimpleNamespace(perf_counter=lambda: time.perf_counter() + sum(hours)))
    code, out = run(f"--name a {SMALL} --n_epochs 3")
    assert code == 0, out.err
    with open(tmp_path / "a" / "log.jsonl") as f:
        speeds = [line["images_per_s"] for line in map(json.loads, f) if "images_per_s" in line]
    assert len(speeds) > 3 and len(hours) > 2 and min(speeds) > 2 * 2 / 3600


def test_no_box_prior_is_the_papers_form(run, tmp_path):  # noqa: F811
    run(f"--name a {SMALL} --box_prior 0")
    assert load_checkpoint(tmp_path / "a" / "latest.pt")["config"]["box_prior"] == 0
