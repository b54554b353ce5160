"""benchmarks/attack.py: what it calls a fault, and a few cases of it."""
import os
import shutil
import signal
import sys
import time
import types
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import prepare
from benchmarks import attack
from crops import index
from images import written_whole
from running import options
from running.folder import Lock

SAYS = {
    "works": ("print('done')", ("worked", False)),
    "refuses": ("print('x.py: error: no'); return 2", ("refused", False)),
    "raises": ("raise KeyError('k')", ("traceback", True)),
    "dies": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", ("signal 11", True)),
    "hangs": ("import time; time.sleep(60)", ("hung", True)),
    "steers": (r"print('\x1b[2J'); return 2", ("control characters", True)),
    "fills": ("x = bytearray(2**33)", ("traceback", True)),
    "asks": ("import running.options as o; return o.command('x', lambda _: bytearray(2**33), [])", ("memory", True)),
    "exits": ("return 9", ("code 9", True)),
}


@pytest.mark.parametrize("name", SAYS)
def test_what_is_a_fault(name, tmp_path, monkeypatch):
    code, expected = SAYS[name]
    module = types.ModuleType("command")
    exec(f"def main(argv):\n    {code}", module.__dict__)
    monkeypatch.setitem(sys.modules, "command", module)
    log = tmp_path / "log"
    assert attack.wait(attack.start(("command",), tmp_path, log), log, seconds=3) == expected


def test_a_process_killed_at_once_has_said_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(attack.os, "fork", lambda fork=os.fork: fork() or time.sleep(60))  # it gets no further
    process = attack.start(("command",), tmp_path, tmp_path / "log")
    os.kill(process, signal.SIGKILL)
    assert attack.wait(process, tmp_path / "log", sent=signal.SIGKILL) == ("ended by signal 9", False)


def test_damage_depends_on_the_seed_alone_and_reaches_values():
    content = b'{"box": [1, 2, 3, 4], "name": "dog"}' * 20
    made = [attack.damage(content, np.random.default_rng(i)) for i in range(200)]
    assert made == [attack.damage(content, np.random.default_rng(i)) for i in range(200)]
    assert len({*made}) > 190 and sum(b"../../victim/x" in m for m in made) >= 3


def fake(monkeypatch, main):
    """A command of the name "command", in place of ours."""
    module = types.ModuleType("command")
    module.main = main
    monkeypatch.setitem(sys.modules, "command", module)


@pytest.fixture
def base(tmp_path):
    (tmp_path / "base" / "out").mkdir(parents=True)
    return tmp_path / "base"


def write_two(argv):
    """A command that keeps nobody out."""
    for name in ("x", "y"):
        Path("out", name).write_text(argv[0])
        time.sleep(1.5 * (argv[0] == "a"))


def write_two_alone(argv):
    with Lock("out"):
        write_two(argv)


@pytest.mark.parametrize("main, fault", [(write_two, True), (write_two_alone, False)])
def test_a_race_that_mixes_files_is_a_fault(base, monkeypatch, main, fault):
    fake(monkeypatch, lambda argv: options.command("command", main, argv))
    monkeypatch.setitem(attack.RACES, "out", {name: ("command", name) for name in "ab"})
    outcomes = attack.attack_by_races(base, "out", ("a", "b"), 2, seed=0)
    assert sum(outcomes.values()) == 2 and all(o.startswith("FAULT mixed files") == fault for o in outcomes)


def unfinished(argv):
    """A command that takes a file cut short for a whole one."""
    if not os.path.exists("out/x"):
        with open("out/x", "w", buffering=1) as file:
            for word in range(10):
                file.write(f"{word}\n")
                time.sleep(0.05)


def whole(argv):
    if not os.path.exists("out/x"):
        with written_whole("out/x") as file:
            for word in range(10):
                file.write(b"%d" % word)
                time.sleep(0.05)


@pytest.mark.parametrize("main, fault", [(unfinished, True), (whole, False)])
def test_a_kill_that_leaves_another_folder_is_a_fault(base, monkeypatch, main, fault):
    fake(monkeypatch, main)
    monkeypatch.setitem(attack.KILLS, "fake", ("command",))
    outcomes = attack.attack_by_kills(base, "fake", 4, seed=0)
    assert any(o.startswith("FAULT other files") for o in outcomes) == fault, outcomes
    assert outcomes["ended by signal 9"] + outcomes["ended by signal 15"] > 0
    assert fault or outcomes["as undisturbed"] == 4


def test_processes_that_are_left_behind_are_a_fault(tmp_path, monkeypatch):
    def main(argv):
        if not os.fork():
            time.sleep(60)
            os._exit(0)

    fake(monkeypatch, main)
    monkeypatch.setattr(attack.left_behind, "__defaults__", (0.5,))
    log = tmp_path / "log"
    assert attack.wait(attack.start(("command",), tmp_path, log), log) == ("left processes", True)


def test_doors_hold(capfd):
    assert attack.run("--doors csv crops.json votes vgg --n 4 --kills 0 --races 0".split()) == 0
    assert "FAULT" not in capfd.readouterr().out


@pytest.mark.parametrize("last", range(1, 7))
def test_a_kill_between_the_files_of_an_index_leaves_no_trace(tmp_path, monkeypatch, last):
    """sources.json and crops.json are written one after the other, twice: once without the crops to be replaced."""
    attack.write_photos(tmp_path / "photos", range(4), tmp_path / "boxes")
    monkeypatch.chdir(tmp_path)
    words, real, written = [*attack.COCO[1:], "data", "--num_workers", "0"], index.written_whole, []

    @contextmanager
    def killed(path, *args, **kwargs):
        with real(path, *args, **kwargs) as file:
            yield file
        written.append(path)
        if len(written) == last:
            raise KeyboardInterrupt

    assert prepare.main(words) == 0
    shutil.copytree("data", "before")
    assert prepare.main([*words, "--y_per_x", "0.5"]) == 0
    expected = attack.fingerprint("data")
    shutil.rmtree("data")
    os.rename("before", "data")
    monkeypatch.setattr(index, "written_whole", killed)
    code = prepare.main([*words, "--y_per_x", "0.5"])
    monkeypatch.setattr(index, "written_whole", real)
    assert code == (130 if len(written) == last else 0)
    assert prepare.main([*words, "--y_per_x", "0.5"]) == 0 and attack.fingerprint("data") == expected
