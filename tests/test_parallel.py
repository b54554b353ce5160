"""Two processes against one: gradients, steps, a run and its resume, over gloo on the CPU."""
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.multiprocessing as mp
from conftest import equal
from test_faults import in_process, start  # noqa: F401 - a fixture
from test_seigan import BOX, tiny, trainer_of
from test_train import HERE, SMALL, TAUGHT, dataroot, records, training_state  # noqa: F401 - a fixture

import losses
from data import StepSampler
from running import parallel
from running.checkpoint import load_checkpoint
from seigan import NO_VGG

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
MODES = [("seigan", {}), ("nocycle", {}), ("supervised", {}), ("seigan", {"id_obj": 0.0, "enh": 0.0, "obj_mae": 0.0}),
         ("nocycle", {"enh": 0.0}), ("seigan", dict.fromkeys(("inp", "inp2", "bg_mae", "obj_mae", "id_bg"), 0.0))]
RANDN, ZOOM = torch.randn, losses.zoom


def batch():
    rng = torch.Generator().manual_seed(3)
    x, y = (torch.rand(4, 3, 16, 16, generator=rng, dtype=torch.double) * 1.6 - 0.8 for _ in range(2))
    return {"x": x, "y": y, "box": torch.tensor([BOX] * 4), "mask": (x[:, :1] > 0).double()}


def half_noise(shape, rank):
    """Noise of rank's half of a batch: its own stream, so that one process can put both halves together."""
    return RANDN(shape, generator=torch.Generator().manual_seed(10 + rank), dtype=torch.double)


def half_zoom(y, rank):
    """Parts of rank's half of a batch, likewise."""
    return ZOOM(y, torch.Generator().manual_seed(20 + rank))


def double_trainer(method, lambdas, share=lambda parameters: None):
    options = {"views": False} if method == "supervised" else {"pool_size": 0, "diffaug": False}
    trainer = trainer_of(tiny(method=method, lambdas=NO_VGG | lambdas).double(), ema=0, **options)
    trainer.share = share
    return trainer


def one_step(trainer, part):
    trainer.train_step({k: t[part] for k, t in batch().items()})
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.train_step({k: t[part] for k, t in batch().items()})
    return gradients


def in_a_process(rank, port, out):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port))
    torch.set_num_threads(1)
    ranks = parallel.Ranks("cpu")
    for i, (mode, lambdas) in enumerate(MODES):
        trainer = double_trainer(mode, lambdas, ranks.average_gradients)
        torch.randn, losses.zoom = lambda shape, **_: half_noise(shape, rank), lambda y, _: half_zoom(y, rank)
        gradients = one_step(trainer, slice(2 * rank, 2 * rank + 2))
        torch.randn, losses.zoom = RANDN, ZOOM
        torch.save((gradients, trainer.model.state()), os.path.join(out, f"{i}_{rank}.pt"))
    assert ranks.reduce([rank, 1]) == [1, 2] and ranks.reduce([rank], "max") == [1]
    assert ranks.gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    ranks.reduce([0])  # neither leaves while the other still needs it
    ranks.close()


def both_halves(shape, **_):
    """The noise of a joint batch: of each group of its images, the first half is that of rank 0. Groups as in swap."""
    n = shape[0] // 4  # groups: 2n, 2n, n, n images of n = 4, stacked from calls on x and y
    halves = [half_noise((shape[0] // 2, *shape[1:]), rank).split(2) for rank in (0, 1)]
    assert len(halves[0]) == n
    return torch.cat([torch.cat(pair) for pair in zip(*halves, strict=True)])


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two processes make of one step in each of MODES."""
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(in_a_process, (port, str(out)), nprocs=2, start_method="spawn")
    return out


@pytest.mark.parametrize("mode,lambdas", MODES)
def test_gradients_of_two_processes_are_those_of_the_joint_batch(mode, lambdas, two_processes, monkeypatch):
    i = MODES.index((mode, lambdas))
    two, other = (torch.load(two_processes / f"{i}_{rank}.pt") for rank in (0, 1))
    assert equal(two, other)
    trainer = double_trainer(mode, lambdas)
    monkeypatch.setattr(torch, "randn", both_halves)
    monkeypatch.setattr(losses, "zoom", lambda y, _: torch.cat([half_zoom(y[:2], 0), half_zoom(y[2:], 1)]))
    one = one_step(trainer, slice(None))
    monkeypatch.undo()
    assert two[0].keys() == one.keys()  # no zeros where there is no gradient: Adam would count them
    for name, gradient in one.items():
        assert torch.allclose(gradient, two[0][name], atol=1e-6), name


def test_each_process_takes_its_part_of_every_batch():
    parts = [list(StepSampler(3, 5, 6, rank, 3)) for rank in range(3)]
    assert parts == [[[18, 19], [24, 25]], [[20, 21], [26, 27]], [[22, 23], [28, 29]]]
    with pytest.raises(ValueError, match="--batch_size must divide by the number of processes, 3, got 8"):
        StepSampler(0, 1, 8, 0, 3)


def torchrun(line):
    return subprocess.run([*TORCHRUN, os.path.join(HERE, "train.py"), *line.split()], capture_output=True, text=True,
                          timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})


def ranked(rank, port, line, out):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=port)
    in_process(line.split(), out)


def two(line, folder):
    """Two processes with what torchrun tells them, forked from one that has imported torch: their exit codes, and what
    they print."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=ranked, args=(rank, port, line, str(folder / "out.txt"))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        process.kill()
    return [process.exitcode for process in processes], (folder / "out.txt").read_text()


def test_a_run_of_two_processes_and_its_resume(start, dataroot, tmp_path):  # noqa: F811
    base = f"--dataroot {dataroot} --checkpoints_dir {tmp_path}"
    whole = torchrun(f"--name whole {base} {TAUGHT} --print_freq 1 --pool_size 2")
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert whole.stdout.count("8 objects, 9 backgrounds, 8 steps on cpu, 2 processes") == 1
    lines = records(tmp_path / "whole")
    assert [r["step"] for r in lines if "total" in r] == list(range(1, 9))  # one log
    assert [r["step"] for r in lines if "val_iou" in r] == [3, 6, 8]
    state = load_checkpoint(tmp_path / "whole" / "latest.pt")
    assert len(state["parts"]) == 1 and not equal(state["parts"][0]["pools"], state["pools"])

    codes, text = two(f"--name cut {base} {TAUGHT} --print_freq 1 --pool_size 2 --max_minutes 0", tmp_path)
    assert codes == [124, 124] and "stopped after step 1, all saved" in text
    codes, text = two(f"--name cut {base} --resume --max_minutes 60", tmp_path)
    assert codes == [0, 0], text
    assert equal(training_state(tmp_path / "whole" / "latest.pt"), training_state(tmp_path / "cut" / "latest.pt"))
    assert records(tmp_path / "whole") == records(tmp_path / "cut")
    with open(tmp_path / "cut" / "config.json") as f:
        assert json.load(f)["options"]["batch_size"] == 2


def test_a_batch_that_does_not_divide_is_one_clear_line(start, dataroot, tmp_path):  # noqa: F811
    codes, text = two(f"--name a --dataroot {dataroot} --checkpoints_dir {tmp_path} {SMALL} --batch_size 3", tmp_path)
    assert codes == [2, 2]
    assert text.count("train.py: error: --batch_size must divide by the number of processes, 2, got 3\n") == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_saves_and_a_resume_is_exact(dataroot, tmp_path, number):  # noqa: F811
    base = f"--dataroot {dataroot} --checkpoints_dir {tmp_path}"
    command = [*TORCHRUN, os.path.join(HERE, "train.py"), *f"--name cut {base} {SMALL} --n_epochs 200 --print_freq 1 "
               "--val_freq 100 --display_freq 10000 --save_latest_freq 10000".split()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "cut" / "log.jsonl").exists() or not records(tmp_path / "cut"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and out.count("all saved: --resume goes on") == 1
    step = load_checkpoint(tmp_path / "cut" / "latest.pt")["step"]
    assert 0 < step < 800
    torchrun(f"--name cut {base} --resume --n_epochs 100")
    torchrun(f"--name whole {base} {SMALL} --n_epochs 100 --print_freq 1 --val_freq 100 --display_freq 10000 "
             "--save_latest_freq 10000")
    assert equal(training_state(tmp_path / "whole" / "latest.pt"), training_state(tmp_path / "cut" / "latest.pt"))
