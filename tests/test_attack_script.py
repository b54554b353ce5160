"""benchmarks/attack.py: what it calls a fault, and a few cases of it."""
import sys
import types

import numpy as np
import pytest

from benchmarks import attack

SAYS = {
    "works": ("print('done')", ("worked", False)),
    "refuses": ("print('x.py: error: no'); return 2", ("refused", False)),
    "raises": ("raise KeyError('k')", ("traceback", True)),
    "dies": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", ("signal 11", True)),
    "hangs": ("import time; time.sleep(60)", ("hung", True)),
    "steers": (r"print('\x1b[2J'); return 2", ("control characters", True)),
    "fills": ("x = bytearray(2**33)", ("traceback", True)),
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


def test_damage_depends_on_the_seed_alone_and_reaches_values():
    content = b'{"box": [1, 2, 3, 4], "name": "dog"}' * 20
    made = [attack.damage(content, np.random.default_rng(i)) for i in range(200)]
    assert made == [attack.damage(content, np.random.default_rng(i)) for i in range(200)]
    assert len({*made}) > 190 and sum(b"../../victim/x" in m for m in made) >= 3


def test_doors_hold(tmp_path, capfd):
    assert attack.run(["--doors", "csv", "crops.json", "votes", "--n", "4", "--races", "0"]) == 0
    assert "FAULT" not in capfd.readouterr().out
