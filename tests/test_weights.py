"""Weights to share: written from a run, and taken by every command in place of one."""
import hashlib
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from test_photo import BOX, build, picture, stored
from test_photo_command import save

import photo
import test
from baselines.boxes import Boxes
from baselines.nocycle import NoCycle
from baselines.supervised import Supervised
from crops import demo
from images import UserError
from photos import edit
from running.checkpoint import build_model, load_checkpoint, load_model, save_checkpoint, shared
from seigan import NO_VGG, SEIGAN

OPTIONS = {"crf_bias": 0.5, "seed": 3, "demo": True}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder in which a run "exp" lies, whose averaged weights are not its last; the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    save(tmp_path / "checkpoints" / "exp", build(rule={"fit": "warp", "object_size": 100, "crop_size": 128}), "seigan",
         OPTIONS)
    path = tmp_path / "checkpoints" / "exp" / "latest.pt"
    state = torch.load(path, weights_only=True)
    averaged = {name: {k: v + 0.01 for k, v in net.items()} for name, net in state["averaged"].items()}
    save_checkpoint(str(path), state | {"averaged": averaged, "step": 12})
    (path.parent / "config.json").write_text(json.dumps(
        {"options": OPTIONS, "commands": ["train.py --name exp", "train.py --name exp --resume"], "revision": "abc1"}))
    return tmp_path


@pytest.fixture
def call(capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""
    def run(command, *argv):
        try:
            code = command.main([str(a) for a in argv])
        except SystemExit as stop:  # argparse's
            code = stop.code
        return code, *capsys.readouterr()
    return run


def export(call, *more, out="models/demo.pt"):
    code, text, err = call(photo, "export", "--weights", "--name", "exp", "--out", out, *more)
    assert code == 0, err
    return text


def test_the_file_holds_the_averaged_generators_in_float16(runs, call):
    assert "models/demo.pt" in export(call)
    state, run = load_checkpoint("models/demo.pt"), load_model("checkpoints/exp/latest.pt")
    assert state.keys() == {"format", "method", "step", "config", "networks", "averaged", "options"}
    assert state["options"] == {"crf_bias": 0.5} and state["step"] == 12 and not state["networks"]
    assert all(t.dtype == torch.float16 for net in state["averaged"].values() for t in net.values())
    for model in (load_model("models/demo.pt"), SEIGAN.load("models/demo.pt")):
        assert model.networks().keys() == set(SEIGAN.GENERATORS) and model.scores is None
        for name, net in model.networks().items():
            for key, tensor in net.state_dict().items():
                assert torch.equal(tensor, run.get_submodule(name).state_dict()[key].half().float())
        assert model.config == run.config | {"ndf": 0} and not model.training
    assert load_model("models/demo.pt").crf_bias == 0.5


@pytest.mark.parametrize("method", [SEIGAN, NoCycle, Supervised, Boxes])
def test_models_of_every_method(tmp_path, method):
    name, config = method.__name__.lower(), dict(size=32, ngf=8, n_layers_D=3, seg_blocks=1, unet_downs=3)
    model = method(**config, ndf=8)
    path = str(tmp_path / "latest.pt")
    save_checkpoint(path, {"method": name, "step": 0, "config": model.config, "networks": model.state(),
                           "averaged": {}})
    state = load_checkpoint(path)
    save_checkpoint(path, shared(build_model(state, path), state))
    x, mine = torch.rand(2, 3, 32, 32) * 2 - 1, load_model(path)
    assert list(mine.networks()) == list(method.GENERATORS)
    assert torch.allclose(mine.segment(x), model.segment(x), atol=2e-3)
    made = mine.pictures(x, x.flip(0))
    assert all(torch.allclose(made[k], v, atol=0.02) for k, v in model.pictures(x, x.flip(0)).items())
    assert mine.config["lambdas"] == model.config["lambdas"] | NO_VGG


def test_a_weight_beyond_float16_is_refused(runs, call):
    path = "checkpoints/exp/latest.pt"
    state = load_checkpoint(path)
    next(iter(state["averaged"]["G_seg"].values())).fill_(1e6)
    save_checkpoint(path, state)
    code, _, err = call(photo, "export", "--weights", "--name", "exp", "--out", "w.pt")
    assert code == 2 and "float16" in err and err.count("\n") == 1 and not (runs / "w.pt").exists()


@pytest.mark.parametrize("name, value", [("ngf", 4096), ("ndf", 4000), ("size", 10**9), ("seg_blocks", 10**7)])
def test_sizes_of_the_networks_are_checked(runs, call, name, value):
    export(call)
    state = load_checkpoint("models/demo.pt")
    save_checkpoint("models/demo.pt", state | {"config": state["config"] | {name: value}})
    with pytest.raises(UserError, match="holds no model that this code can build.*(must be|asks for)"):
        load_model("models/demo.pt")


@pytest.mark.slow  # it exports programs, which takes two minutes
def test_photographs_with_a_file_of_weights(runs, call):
    export(call)
    dog, box = stored(picture(), runs, "dog.png"), ("--box", "30,20,40,30", "--gpu", "-1")
    assert call(photo, "cut", dog, "--weights", "models/demo.pt", *box)[0] == 0  # into results/demo
    assert call(photo, "remove", dog, "--weights", "models/demo.pt", *box, "--out", "out")[0] == 0
    assert call(photo, "paste", dog, "--weights", "models/demo.pt", *box, "--background", dog, "--out", "out")[0] == 0
    model, image = load_model("models/demo.pt"), Image.open(dog)
    for path, expected in (("results/demo/photos/cut/dog.png.png", edit.cut(model, image, BOX).image),
                           ("out/removed/dog.png.png", edit.remove(model, image, BOX).image)):
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(expected))
    code, text, err = call(photo, "export", "--weights", "models/demo.pt", "--out", "programs")
    assert code == 0 and (runs / "programs" / "inpaint.pt2").exists(), err


def test_an_evaluation_of_a_file_of_weights(runs, call):
    export(call)
    demo.write_demo(runs / "set", counts={"test": {"objects": 3, "backgrounds": 3}})
    argv = ("--gpu", "-1", "--threads", "1", "--weights", "models/demo.pt")
    code, _, err = call(test, *argv)
    assert code == 2 and "--dataroot" in err and err.count("\n") == 1
    assert call(test, *argv, "--dataroot", "set")[0] == 0
    figures = json.loads((runs / "results" / "demo" / "metrics.json").read_text())
    assert figures["name"] == "demo" and figures["checkpoint"] == "demo.pt" and figures["step"] == 12
    assert figures["scores"] == {} and figures["n_masks"] == 3
    assert call(test, "--gpu", "-1", "--name", "exp", "--dataroot", "set", "--threads", "1")[0] == 0
    run = json.loads((runs / "results" / "exp" / "metrics.json").read_text())
    assert figures["iou"] == pytest.approx(run["iou"], abs=0.01) and run["scores"]


def test_the_card_says_what_is_known(runs, call):
    export(call)
    card = (runs / "models" / "demo.md").read_text()
    assert hashlib.sha256((runs / "models" / "demo.pt").read_bytes()).hexdigest() in card
    assert "Data: not stated" in card and "Licence: not stated" in card and "IoU of the masks: not measured" in card
    assert "seed 3, 12 steps" in card and "abc1" in card and "32 x 32 px" in card and "one class" in card
    assert "    python train.py --name exp\n    python train.py --name exp --resume\n" in card
    assert "drawings" in card and "$" not in card
    assert re.search(r"--weights demo\.pt", card)


def test_the_card_has_figures_of_this_very_checkpoint(runs, call):
    (runs / "results" / "exp").mkdir(parents=True)
    figures = {"step": 12, "checkpoint": "latest", "split": "test", "n_masks": 7, "iou": 0.8604,
               "refined": {"iou": 0.8851}}
    told = []
    for i, changes in enumerate(({}, {"step": 11}, {"checkpoint": "best"}, {"iou": None}, {"iou": "x"})):
        (runs / "results" / "exp" / "metrics.json").write_text(json.dumps(figures | changes))
        export(call, "--data", "Leeds\nButterfly", "--licence", "CC-BY-4.0", out=f"{i}.pt")
        told.append((runs / f"{i}.md").read_text())
    assert "IoU of the masks: 0.860 raw, 0.885 refined, of 7 objects of test/" in told[0]
    assert all("not measured" in card for card in told[1:])
    assert "Data: Leeds\\nButterfly\n" in told[0] and "Licence: CC-BY-4.0" in told[0]


def test_a_card_without_the_runs_records(runs, call):
    (runs / "checkpoints" / "exp" / "config.json").write_text("{")
    path = "checkpoints/exp/latest.pt"
    save_checkpoint(path, load_checkpoint(path) | {"options": {}})
    export(call)
    card = (runs / "models" / "demo.md").read_text()
    assert "    not known" in card and "Revision of the code: not known" in card and "drawings" not in card


@pytest.mark.parametrize("argv, text", [
    (["cut", "DOG", "--box", "1,1,5,5"], "models"),
    (["export", "--out", "o"], "models"),
    (["export", "--weights", "--out", "o.pt"], "models"),
    (["cut", "DOG", "--box", "1,1,5,5", "--name", "exp", "--weights", "w.pt"], "give one of them"),
    (["cut", "DOG", "--box", "1,1,5,5", "--weights", "w.pt"], "no checkpoint at w.pt"),
    (["export", "--weights", "--name", "exp", "--out", "folder"], "ends in .pt"),
    (["export", "--weights", "--name", "exp", "--out", "checkpoints/exp/latest.pt"], "latest.pt exists"),
    (["export", "--weights", "--name", "exp", "--out", "notes.pt"], "notes.md exists"),
    (["export", "--name", "exp", "--out", "o", "--data", "mine"], "--weights writes them"),
])
def test_mistakes_give_one_line(runs, call, argv, text):
    dog, before = stored(picture(), runs, "dog.png"), (runs / "checkpoints" / "exp" / "latest.pt").read_bytes()
    (runs / "notes.md").write_text("mine")
    code, _, err = call(photo, *[dog if a == "DOG" else a for a in argv])
    assert code == 2 and err.startswith("photo.py: error: ") and err.count("\n") == 1 and text in err
    assert (runs / "notes.md").read_text() == "mine" and not (runs / "o.pt").exists()
    assert (runs / "checkpoints" / "exp" / "latest.pt").read_bytes() == before


def test_an_evaluation_without_a_model_names_the_folder_of_models(runs, call):
    code, _, err = call(test)
    assert code == 2 and err.startswith("test.py: error: no model is named") and "models" in err
    assert err.count("\n") == 1
