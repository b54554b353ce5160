"""train.py as users run it: options, errors in one line, files written, stopping and resuming."""
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import equal
from PIL import Image

import train
from crops import demo
from running import methods, train_options
from running import run as runs
from running.checkpoint import load_checkpoint, load_model, save_checkpoint

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = ("--gpu -1 --size 16 --ngf 4 --ndf 4 --n_layers_D 2 --seg_blocks 1 --unet_downs 2 --batch_size 2 "
         "--num_threads 0 --n_epochs 1 --n_epochs_decay 1 --print_freq 2 --val_freq 3 --display_freq 4 "
         "--save_latest_freq 3 --lambda_teach 0")  # the box teacher takes a third of a step
TAUGHT = f"{SMALL} --lambda_teach 30 --warm_steps 2"


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    demo.write_demo(root, counts={"train": {"objects": 8, "backgrounds": 9}, "test": {"objects": 3, "backgrounds": 2}})
    shutil.copytree(root / "test", root / "val")
    return root


@pytest.fixture
def run(dataroot, tmp_path, capsys):
    def run(line, root=dataroot):
        argv = line.split() + ["--checkpoints_dir", str(tmp_path)] + (["--dataroot", str(root)] if root else [])
        try:
            code = train.main(argv)
        except SystemExit as end:  # argparse
            code = end.code
        return code, capsys.readouterr()
    return run


def records(folder):
    """The log's lines, but for what depends on the machine's speed."""
    with open(folder / "log.jsonl") as f:
        lines = [json.loads(line) for line in f]
    return [{k: v for k, v in line.items() if k not in ("images_per_s", "data_wait")} for line in lines]


def training_state(path):
    return {k: v for k, v in load_checkpoint(path).items() if k != "options"}


# --- a run ---


def test_a_run_writes_what_it_promises(run, tmp_path):
    code, out = run(f"--name a {SMALL}")
    assert code == 0
    folder = tmp_path / "a"
    assert sorted(os.listdir(folder)) == [".lock", "best.pt", "config.json", "index.html", "latest.pt", "log.jsonl",
                                          "samples", "step_0000006.pt"]
    lines = records(folder)
    training, validation = [r for r in lines if "total" in r], [r for r in lines if "val_iou" in r]
    assert [r["step"] for r in training] == [2, 4, 6, 8] and [r["step"] for r in validation] == [3, 6, 8]
    terms = {"inp", "inp2", "bg_mae", "obj_mae", "coarse", "enh", "id_obj", "id_bg", "D_obj", "D_bg"}
    assert terms <= training[0].keys()
    grid = Image.open(folder / "samples" / "0000008.png")
    assert grid.size == (9 * 17 + 1, 2 * 17 + 1)  # 9 columns, 2 rows of 16 px with a border of 1
    assert sorted(os.listdir(folder / "samples")) == ["0000000.png", "0000004.png", "0000008.png"]
    assert "batch_size 2 [8]" in out.out and "beta1" not in out.out
    assert json.load(open(folder / "config.json"))["options"]["beta1"] == 0.5
    assert "step 2 of 8: total " in out.out  # no terminal: a line in place of the bar
    best = max(r["val_iou"] for r in validation)
    assert load_checkpoint(folder / "best.pt")["best_iou"] == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("flag,method,columns", [("--mode", "nocycle", 5), ("--method", "supervised", 4),
                                                 ("--method", "boxes", 4)])
def test_baselines_train_with_the_same_command(run, tmp_path, flag, method, columns):
    code, _ = run(f"--name a {flag} {method} {SMALL}")
    assert code == 0
    samples = os.listdir(tmp_path / "a" / "samples")
    assert len(samples) == 3
    assert all(Image.open(tmp_path / "a" / "samples" / s).width == columns * 17 + 1 for s in samples)
    assert load_checkpoint(tmp_path / "a" / "latest.pt")["method"] == method
    for name in ("latest", "best"):
        assert isinstance(load_model(tmp_path / "a" / f"{name}.pt"), methods.load(method).Model)


def test_best_is_half_of_latest_and_the_same_model(run, tmp_path):
    run(f"--name a {SMALL} --val_freq 8 --pool_size 0")
    latest, best = (tmp_path / "a" / f"{name}.pt" for name in ("latest", "best"))
    assert best.stat().st_size < 0.5 * latest.stat().st_size
    assert equal(load_model(latest).state(), load_model(best).state())


def test_a_method_without_backgrounds_or_boxes_needs_none(run, tmp_path):
    root = tmp_path / "bare"
    demo.write_demo(root, counts={"train": {"objects": 4, "backgrounds": 1}})
    shutil.rmtree(root / "train" / "backgrounds")
    os.remove(root / "train" / "crops.json")
    code, out = run(f"--name a --method supervised {SMALL}", root=root)
    assert code == 0 and "4 objects, 0 backgrounds" in out.out
    code, out = run(f"--name c --method boxes {SMALL}", root=root)
    assert code == 2 and "knows no box" in out.err and out.err.count("\n") == 1
    code, out = run(f"--name b {SMALL}", root=root)
    assert code == 2 and "no images in" in out.err and "backgrounds" in out.err


def test_demo_needs_nothing_else(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = {"train": {"objects": 4, "backgrounds": 4}, "test": {"objects": 2, "backgrounds": 2}}
    monkeypatch.setattr(demo, "COUNTS", counts)
    code, _ = run("--demo --name demo --n_epochs 1 --n_epochs_decay 0 --batch_size 2 --gpu -1", root=None)
    assert code == 0
    options = load_checkpoint(tmp_path / "demo" / "latest.pt")["options"]
    assert options["size"] == train_options.DEMO["size"] and options["dataroot"] == "datasets/demo"
    assert os.path.exists("datasets/demo/test/crops.json")


def test_demo_writes_into_no_other_set(run, tmp_path):
    (tmp_path / "mine" / "photos").mkdir(parents=True)
    code, out = run("--demo --name a", root=tmp_path / "mine")
    assert code == 2 and "which holds other things: name a new folder" in out.err
    assert os.listdir(tmp_path / "mine") == ["photos"]


def test_a_training_set_alone_is_enough(run, tmp_path):
    root = tmp_path / "alone"
    demo.write_demo(root, counts={"train": {"objects": 4, "backgrounds": 4}})
    code, _ = run(f"--name a {SMALL}", root=root)
    assert code == 0
    assert not (tmp_path / "a" / "best.pt").exists() and len(os.listdir(tmp_path / "a" / "samples")) == 2


def test_vgg_terms_train(run, tmp_path, vgg19_state):
    torch.save({k: v for k, v in vgg19_state.items() if int(k.split(".")[1]) <= 10}, tmp_path / "vgg.pth")
    code, _ = run(f"--name a {SMALL} --lambda_bg_texture 100 --vgg_weights {tmp_path / 'vgg.pth'}")
    assert code == 0
    assert all(r["bg_texture"] > 0 for r in records(tmp_path / "a") if "total" in r)
    code, out = run(f"--name b {SMALL} --lambda_bg_perc 1 --vgg_weights {tmp_path / 'vgg.pth'}")
    assert code == 2 and "the VGG-19 weights hold no features.12.weight" in out.err


# --- resuming ---


def test_a_killed_run_goes_on_exactly(run, tmp_path, monkeypatch):
    """Ended in the middle of an epoch, two steps after a checkpoint, one before the last warm step: state and log join
    without a trace."""
    run(f"--name whole {TAUGHT} --warm_steps 4 --pool_size 3 --print_freq 1")
    step_done = train.Run.step_done

    def fail(self, terms, rate):
        step_done(self, terms, rate)
        if self.trainer.step == 5:
            self.log.file.write(b'{"step": 6, "tot')  # a line cut short
            raise OSError("the machine stops")

    monkeypatch.setattr(train.Run, "step_done", fail)
    code, _ = run(f"--name cut {TAUGHT} --warm_steps 4 --pool_size 3 --print_freq 1")
    assert code == 2 and load_checkpoint(tmp_path / "cut" / "latest.pt")["step"] == 3
    monkeypatch.setattr(train.Run, "step_done", step_done)
    code, _ = run("--name cut --resume --num_threads 1")
    assert code == 0
    assert equal(training_state(tmp_path / "whole" / "latest.pt"), training_state(tmp_path / "cut" / "latest.pt"))
    assert records(tmp_path / "whole") == records(tmp_path / "cut")


@pytest.mark.parametrize("warm, kept", [(6, 7), (8, None)])
def test_the_best_model_has_learned_all(run, tmp_path, monkeypatch, warm, kept):
    """Validated at each of eight steps, all as good: the first after the warm ones is kept."""
    monkeypatch.setattr(train, "validate", lambda *args, **kwargs: [0.5, 0.1, 1])
    code, out = run(f"--name a {TAUGHT} --warm_steps {warm} --val_freq 1")
    assert code == 0, out.err
    best = tmp_path / "a" / "best.pt"
    assert (load_checkpoint(best)["step"] if best.exists() else None) == kept


def test_runs_from_before_there_were_warm_steps_go_on_without(run, tmp_path):
    code, out = run(f"--name a {TAUGHT} --warm_steps 9 --n_epochs 1 --n_epochs_decay 0")
    assert code == 0 and "all 4 steps are among the --warm_steps 9" in out.out
    state = load_checkpoint(tmp_path / "a" / "latest.pt")
    del state["options"]["warm_steps"]
    save_checkpoint(tmp_path / "a" / "latest.pt", state)
    code, out = run("--name a --resume --n_epochs 2")
    assert code == 0 and any("D_obj" in line for line in records(tmp_path / "a") if line["step"] > 4), out.err
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    del config["options"]["warm_steps"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    code, out = run(f"--name b --config {tmp_path / 'a' / 'config.json'} --n_epochs 1", root=None)
    assert code == 0 and "D_obj" in records(tmp_path / "b")[0], out.err


@pytest.mark.parametrize("hardware", [True, False])
def test_bfloat16_is_the_hardware_s_choice_and_a_run_keeps_it(run, tmp_path, monkeypatch, hardware):
    monkeypatch.setattr(train_options, "has_bfloat16", lambda device: hardware)
    for options in ("--name auto", "--name on --amp", "--name off --no-amp"):
        run(f"{options} {SMALL} --print_freq 1 --max_minutes 0")
    total = {name: records(tmp_path / name)[0]["total"] for name in ("auto", "on", "off")}
    assert total["on"] != total["off"] and total["auto"] == total["on" if hardware else "off"]
    monkeypatch.setattr(train_options, "has_bfloat16", lambda device: not hardware)  # as on another machine
    code, out = run("--name auto --resume --max_minutes 60")
    assert code == 0 and "going on from step 1" in out.out
    assert load_checkpoint(tmp_path / "auto" / "latest.pt")["options"]["amp"] is hardware
    code, out = run(f"--name auto --resume {'--no-amp' if hardware else '--amp'}")
    assert code == 2 and f"--amp was {hardware} when this run began" in out.err


@pytest.mark.parametrize("error, code, words", [
    (torch.cuda.OutOfMemoryError("CUDA out of memory"), 2, "GPU's memory is full: lower --batch_size"),
    (MemoryError(), 2, r"no memory is left \(MemoryError\): end other programs"),
    (RuntimeError("could not create a primitive"), 2, "no memory is left .could not create a primitive"),
    (RuntimeError("can't start new thread"), 2, "no memory is left .can't start new thread"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "no memory is left .Default"),
    (KeyboardInterrupt(), 130, "stopped before training began")])
def test_what_stops_the_machine_is_one_clear_line(run, monkeypatch, error, code, words):
    monkeypatch.setattr(train, "train", lambda *_: (_ for _ in ()).throw(error))
    found, out = run(f"--name a {SMALL}")
    assert found == code and len(out.err.strip().splitlines()) == 1 and re.search(words, out.err)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an assert"), ValueError("shapes (3,16) (16,3)")])
def test_an_error_that_nobody_foresaw_keeps_its_traceback(run, monkeypatch, error):
    monkeypatch.setattr(train, "train", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        run(f"--name a {SMALL}")


@pytest.mark.slow
def test_compiled_networks_train_as_others(run, tmp_path, monkeypatch):
    compiled_nets, compile_net = [], torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda net: (compiled_nets.append(net), compile_net(net)))
    for options in ("--name plain", "--name compiled --compile"):
        code, _ = run(f"{options} {SMALL} --no-amp --print_freq 1")
        assert code == 0
    plain, compiled = (records(tmp_path / name)[0] for name in ("plain", "compiled"))
    assert len(compiled_nets) == 5 and plain.keys() == compiled.keys()
    for term, value in plain.items():
        assert compiled[term] == pytest.approx(value, rel=1e-3, abs=1e-5), term
    assert load_checkpoint(tmp_path / "compiled" / "latest.pt")["networks"].keys() == {
        "G_seg", "G_enh", "G_inp", "D_obj", "D_bg"}
    load_model(tmp_path / "compiled" / "latest.pt")


def test_a_finished_run_can_train_longer(run, tmp_path):
    run(f"--name a {SMALL}")
    code, out = run("--name a --resume")
    assert code == 0 and "step 8 of 8 is done: more --n_epochs or --n_epochs_decay train on" in out.out
    run("--name a --resume --n_epochs_decay 2")
    assert load_checkpoint(tmp_path / "a" / "latest.pt")["step"] == 12


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_finishes_the_step_and_saves(dataroot, tmp_path, number):
    """As Ctrl-C in a terminal and a job scheduler send them: the loading processes get them too."""
    command = [sys.executable, os.path.join(HERE, "train.py"), "--name", "a", "--dataroot", str(dataroot),
               "--checkpoints_dir", str(tmp_path), *SMALL.split(), "--n_epochs", "100000",
               "--save_latest_freq", "1000000", "--num_threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    deadline = time.monotonic() + 120
    try:
        while not (tmp_path / "a" / "log.jsonl").exists() or not records(tmp_path / "a"):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number and "Traceback" not in err
    step = load_checkpoint(tmp_path / "a" / "latest.pt")["step"]
    assert step > 0 and f"stopped after step {step}, all saved" in out


def test_resume_refuses_another_model(run):
    run(f"--name a {SMALL} --max_minutes 0")
    code, out = run("--name a --resume --ngf 8")
    assert code == 2
    assert out.err == "train.py: error: --ngf was 4 when this run began, got 8: leave it out, or begin a new run " \
                      "under another --name\n"


def test_a_run_is_not_overwritten(run, tmp_path):
    run(f"--name a {SMALL} --max_minutes 0")
    before = (tmp_path / "a" / "latest.pt").read_bytes()
    code, out = run(f"--name a {SMALL}")
    assert code == 2 and "already holds a run: --resume goes on with it" in out.err
    assert (tmp_path / "a" / "latest.pt").read_bytes() == before


def test_best_is_chosen_on_val_alone(run, tmp_path):
    """Never on the test set, whose figures it would flatter."""
    root = tmp_path / "set"
    demo.write_demo(root, counts={"train": {"objects": 4, "backgrounds": 4}, "test": {"objects": 2, "backgrounds": 2}})
    code, out = run(f"--name a {SMALL}", root=root)
    assert code == 0 and "IoU" not in out.out and not (tmp_path / "a" / "best.pt").exists()
    shutil.copytree(root / "test", root / "val")
    code, out = run(f"--name b {SMALL}", root=root)
    assert code == 0 and "IoU" in out.out and (tmp_path / "b" / "best.pt").exists()


def test_config_keeps_the_commands_of_all_lives(run, tmp_path):
    run(f"--name a {SMALL} --max_minutes 0")
    run("--name a --resume --max_minutes 60")
    record = json.load(open(tmp_path / "a" / "config.json"))
    assert len(record["commands"]) == 2 and record["options"]["ngf"] == 4


def test_config_says_what_made_the_run(run, tmp_path, dataroot):
    run(f"--name a {SMALL} --max_minutes 0")
    record = json.load(open(tmp_path / "a" / "config.json"))
    assert record["torch"] == torch.__version__ and record["threads"] == torch.get_num_threads()
    assert record["python"] == sys.version.split()[0] and record["torchvision"] == torchvision.__version__
    assert record["device"].startswith("cpu: ") and type(record["dirty"]) is bool
    assert record["crops"] == load_checkpoint(tmp_path / "a" / "latest.pt")["data"] and len(record["crops"]) == 64


def test_config_repeats_a_run_to_the_bit(run, tmp_path):
    run(f"--name a {TAUGHT} --seed 5 --no_flip --lambda_enh 2 --pool_past --pool_size 3 --max_minutes 60")
    code, _ = run(f"--name b --config {tmp_path / 'a' / 'config.json'}", root=None)
    assert code == 0
    assert equal(training_state(tmp_path / "a" / "latest.pt"), training_state(tmp_path / "b" / "latest.pt"))
    assert records(tmp_path / "a") == records(tmp_path / "b")
    options = load_checkpoint(tmp_path / "b" / "latest.pt")["options"]
    assert options["name"] == "b" and options["seed"] == 5 and options["max_minutes"] is None
    run("--name b --resume --n_epochs_decay 2", root=None)
    assert load_checkpoint(tmp_path / "b" / "latest.pt")["step"] == 12
    run(f"--name c --config {tmp_path / 'a' / 'config.json'} --seed 6 --method seigan")
    assert not equal(training_state(tmp_path / "a" / "latest.pt"), training_state(tmp_path / "c" / "latest.pt"))


def test_config_keeps_the_method(run, tmp_path):
    run(f"--name a --method supervised {SMALL} --max_minutes 0")
    assert run(f"--name b --config {tmp_path / 'a' / 'config.json'} --max_minutes 0", root=None)[0] == 124
    assert load_checkpoint(tmp_path / "b" / "latest.pt")["method"] == "supervised"


@pytest.mark.parametrize("text,more,message", [
    ("{", "", "config.json is damaged, or not what this code writes: give the config.json of a run of train.py"),
    ('{"options": {}}', "", "names no method of seigan, nocycle"),
    ('{"options": {"method": "seigan", "nonsense": 1}}', "", "has --nonsense, which train.py does not have"),
    ('{"options": {"method": "seigan", "ngf": "x"}}', "", "'s --ngf is x, which is no value of that option"),
    ('{"options": {"method": "seigan"}}', "--method supervised", "got supervised: leave out one of the two"),
    ('{"options": {"method": "seigan"}}', "--paper", "--resume, --demo and --paper do not go with it"),
    (None, "", "No such file")])
def test_a_config_that_is_none(run, tmp_path, text, more, message):
    if text:
        (tmp_path / "config.json").write_text(text)
    code, out = run(f"--name a --config {tmp_path / 'config.json'} {more}")
    assert code == 2 and message in out.err and out.err.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_without_git_or_known_boxes(run, tmp_path, monkeypatch):
    """A bare machine, and crops that somebody else cut."""
    root = tmp_path / "plain"
    demo.write_demo(root, counts={"train": {"objects": 4, "backgrounds": 4}})
    os.remove(root / "train" / "crops.json")
    monkeypatch.setenv("PATH", "")
    code, out = run(f"--name a {SMALL}", root=root)
    assert code == 0 and "4 of 4 objects' boxes are not known from crops.json" in out.out
    assert json.load(open(tmp_path / "a" / "config.json"))["revision"] == ""


# --- the schedule ---


def test_learning_rate_schedule():
    factors = [train.lr_factor(step, 10, 2, 4) for step in range(60)]
    assert factors[:21] == [1.0] * 21 and factors[40] == 0.5 and factors[59] == pytest.approx(0.025)
    assert train.lr_factor(60, 10, 2, 4) == 0.0
    assert train.lr_factor(19, 10, 2, 0) == 1.0


# --- bad input ---


@pytest.mark.parametrize("line,message", [
    ("", "--dataroot is missing"),
    ("--size 130 --dataroot x", "--size must be a multiple of 4, got 130"),
    ("--size 32 --n_layers_D 4 --dataroot {set}", "--size 32 is too small for --n_layers_D 4, which needs 48 px"),
    ("--method nocycle --size 32 --n_layers_D_bg 4 --dataroot {set}", "--size 32 is too small for --n_layers_D_bg 4"),
    ("--method supervised --size 4 --dataroot {set}", "--size 4 is too small for --n_layers_D 1, which needs 6 px"),
    ("--dataroot /no/such/folder", "no folder /no/such/folder/train"),
    ("--dataroot {set} --gpu 99", "--gpu 99: this machine has"),
    ("--dataroot {set} --vgg_weights x.pth", "--vgg_weights is given, but the λs of the terms that read it are all 0"),
    ("--dataroot {set} --n_epochs 0 --n_epochs_decay 0", "nothing to train"),
    ("--dataroot {set} --lambda_bg_texture 1 --vgg_weights /no/file.pth", "no VGG-19 weights from /no/file.pth "
     "(FileNotFoundError"),
    ("--dataroot {set} --mode nocycle --lambda_coarse 0 --lambda_enh 0", "every λ that method nocycle uses is 0"),
    ("--resume", "no checkpoint at"),
    ("--name ../up --dataroot {set}", "argument --name: must be a plain folder name, got '../up'"),
    ("--batch_size 0", "must be a whole number from 1, got '0'"),
    ("--lr nan", "must be a number from 0, got 'nan'"),
    ("--beta1 1", "must be a number from 0 to 0.999, got '1'"),
    ("--mode cyclegan", "invalid choice: 'cyclegan'"),
    ("--lambda_foo 1", "unrecognized arguments: --lambda_foo"),
])
def test_bad_input_gets_one_line(run, dataroot, line, message, tmp_path):
    code, out = run("--name a " + line.format(set=dataroot), root=None)
    assert code == 2
    last = out.err.strip().splitlines()[-1]
    assert last.startswith("train.py: error: ") and message in last
    assert len(out.err.strip().splitlines()) <= 3 and "Traceback" not in out.err
    assert not (tmp_path / "a").exists()


def test_unreadable_picture_is_named(run, tmp_path):
    root = tmp_path / "broken"
    counts = {"train": {"objects": 3, "backgrounds": 2}, "test": {"objects": 1, "backgrounds": 1}}
    demo.write_demo(root, counts=counts)
    (root / "train" / "objects" / "00001.png").write_bytes(b"")
    for workers in (0, 1):
        code, out = run(f"--name a{workers} {SMALL} --num_threads {workers}", root=root)
        assert code == 2 and "Traceback" not in out.err
        assert "cannot read the image" in out.err and "00001.png" in out.err
        assert not multiprocessing.active_children(), "a loading process is left, and keeps this one from ending"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("place", ["data.UnpairedCrops.__getitem__", "seigan.Trainer.train_step"])
def test_a_mistake_in_changed_code_keeps_its_traceback(run, monkeypatch, workers, place):
    """One line is for what a user can mend; who changes the code wants to know where it fails."""
    def mistake(*args):
        raise ValueError("shapes (3,16) (16,3)")

    monkeypatch.setattr(place, mistake)
    with pytest.raises(ValueError, match=r"shapes \(3,16\) \(16,3\)") as error:
        run(f"--name a {SMALL} --num_threads {workers}")
    if workers and "data" in place:
        assert "in mistake" in str(error.value)
    assert not multiprocessing.active_children()


def test_every_option_is_read():
    """No option that nothing reads: each name stands in the code, beside its definition."""
    read = [train, runs, train_options, *map(methods.load, methods.METHODS)]
    source = "".join(Path(module.__file__).read_text() for module in read)
    for action in train_options.get_parser()._actions:
        if not action.dest.startswith("lambda_") and action.dest != "help":
            assert re.search(rf"args\.{action.dest}\b|\"{action.dest}\"", source), action.dest
