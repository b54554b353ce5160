"""Exported programs against the model, at sizes that they were not traced with."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_photo import picture

import photo
from baselines.nocycle import NoCycle
from baselines.supervised import Supervised, Trainer
from networks import pad_to_multiple
from photos import edit, export, onnx_cut
from running.checkpoint import save_checkpoint
from running.origin import revision
from seigan import SEIGAN

WITHOUT_ONNX = [p for p in ("onnx", "onnxscript", "onnxruntime") if not export.has(p)]


ABOUT = {"mode": "seigan", "revision": "abc1"}


def build(method=SEIGAN, **options):
    torch.manual_seed(0)
    model = method(size=32, ngf=8, ndf=8, n_layers_D=3, seg_blocks=1, unet_downs=1, **options)  # of 3 it takes minutes
    for p in model.parameters():  # far from the small initial weights, so that a wrong input shows
        torch.nn.init.normal_(p, 0, 0.2)
    torch.nn.init.normal_(model.G_seg.head.weight, 0, 0.02)  # so that masks are neither 0 nor 1
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):  # one for all tests, as are `loaded` and `programs`: each takes half a minute and more
    """The model, the folder of its programs, and the reported differences."""
    model, folder = build(), tmp_path_factory.mktemp("exported")
    return model, folder, export.export_model(model, str(folder), about=ABOUT)


@pytest.fixture(scope="module")
def loaded(exported):
    """{name: torch.export's program, the text of its model.json}."""
    found = {}
    for name in export.PROGRAMS:
        inside = {"model.json": ""}
        found[name] = torch.export.load(str(exported[1] / f"{name}.pt2"), extra_files=inside), inside["model.json"]
    return found


@pytest.fixture(scope="module")
def programs(loaded):
    return {name: program.module() for name, (program, _) in loaded.items()}


def inputs(n, height, width):
    torch.manual_seed(n + height)
    image, background = torch.rand(2, n, 3, height, width)
    box = torch.tensor([0.1, 0.2, 0.6, 0.5]).repeat(n, 1)
    return image, background, torch.rand(n, 1, height, width), torch.randn(n, 1, height, width), box


SIZES = [(1, 16, 16), (4, 32, 32), (2, 33, 47), (3, 64, 25)]


@pytest.mark.parametrize("n, height, width", SIZES)
def test_programs_give_what_the_model_gives(exported, programs, n, height, width):
    model = exported[0]
    image, background, mask, noise, box = inputs(n, height, width)
    x, y = 2 * image - 1, 2 * background - 1
    assert torch.allclose(programs["segment"](image, box), model.segment(x, box), atol=1e-5)
    y_hat = model.G_enh(mask * x + (1 - mask) * y, noise)
    assert torch.allclose(programs["enhance"](image, background, mask, noise), (y_hat + 1) / 2, atol=1e-4)
    x_hat = model.G_inp((1 - mask) * x, mask, noise)[0]
    assert torch.allclose(programs["inpaint"](image, mask, noise), (x_hat + 1) / 2, atol=1e-4)


def test_reported_differences(exported):
    expected = {f"{name}.pt2" for name in export.PROGRAMS} | {f"{n}.onnx" for n in export.PROGRAMS if not WITHOUT_ONNX}
    assert {name for name, d in exported[2].items() if d is not None} == expected
    assert all(0 <= d < (1e-4 if name.endswith("pt2") else 1e-3) for name, d in exported[2].items() if name in expected)


def test_the_parity_check_sees_a_difference():
    model, inputs = build(), export.PROGRAMS["inpaint"][2]
    program = export.Inpaint(export.AnySize(model.G_inp))

    def wrong(image, mask, noise):
        return program(image, mask, -noise)

    own = export.Inpaint(model.G_inp)
    assert export.compare(own, inputs, 8, model.size, program) < 1e-4
    assert export.compare(own, inputs, 8, model.size, wrong) > 1e-3


@pytest.mark.parametrize("height, width", [(16, 16), (17, 30), (23, 25)])
def test_padding_is_the_networks_own(height, width):
    image = torch.rand(2, 3, height, width)
    seen = []

    class Net(torch.nn.Module):
        stride = 8

        def forward(self, padded):
            seen.append(padded)
            return padded

    assert torch.equal(export.AnySize(Net())(image), image)
    assert torch.equal(seen[0], pad_to_multiple(image, 8))


@pytest.mark.parametrize("method, names", [(Supervised, {"segment"}), (NoCycle, {"segment", "enhance"})])
def test_models_export_the_networks_that_they_have(method, names, tmp_path):
    differences = export.export_model(build(method, box_prior=0.0), str(tmp_path), onnx=False)
    assert set(differences) == {f"{name}.pt2" for name in names} and max(differences.values()) < 1e-4
    assert set(json.loads((tmp_path / "model.json").read_text())) == names


def test_programs_say_what_they_take(exported, loaded):
    _, folder, _ = exported
    told = json.loads((folder / "model.json").read_text())
    assert told["segment"]["size"] == 32 and told["segment"]["box_prior"] == 1.1
    assert told["segment"]["crop_rule"] == {"fit": "warp", "object_size": 100, "crop_size": 128}
    assert "by 1.28 in" in told["segment"]["crop"] and "32 x 32 px" in told["segment"]["crop"]
    for name, facts in told.items():
        program, inside = loaded[name]
        assert json.loads(inside) == facts
        assert list(facts["inputs"]) == list(program.graph_signature.user_inputs)
    texts = {k: v for facts in told.values() for k, v in (facts["inputs"] | facts["output"]).items()}
    assert all("float32 (N, " in text for text in texts.values())
    for name, text in {"image": "[0, 1]", "mask": "1 = object", "box": "left, top", "noise": "standard normal"}.items():
        assert text in texts[name]
    rule = {"fit": "keep", "object_size": 50, "crop_size": 100}
    assert "its side 2 times" in export.facts(build(crop_rule=rule), "inpaint")["crop"]


def test_a_full_disk_leaves_no_half_program(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "written_whole", full)
    with pytest.raises(OSError):
        export.export_model(build(Supervised), str(tmp_path), onnx=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(bool(WITHOUT_ONNX), reason=f"ONNX NOT TESTED: {', '.join(WITHOUT_ONNX)} not installed")
def test_onnx(exported):
    import onnx
    import onnxruntime

    model, folder, _ = exported
    session = onnxruntime.InferenceSession(str(folder / "inpaint.onnx"), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["image", "mask", "noise"]
    for name, (_, _, takes, output) in export.PROGRAMS.items():
        program, facts = onnx.load(folder / f"{name}.onnx"), export.facts(model, name)
        shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
                  for v in (*program.graph.input, *program.graph.output)}
        colours, grey = ["N", 3, "H", "W"], ["N", 1, "H", "W"]
        assert shapes == {v: ["N", 4] if v == "box" else grey if v in ("mask", "noise") else colours
                          for v in (*takes, output)}
        props = {p.key: p.value for p in program.metadata_props}
        assert props["crop"] == facts["crop"] and props["size"] == "32"
        assert json.loads(props["inputs"]) == facts["inputs"] and json.loads(props["output"]) == facts["output"]
        assert json.loads(props["crop_rule"]) == facts["crop_rule"] and float(props["box_prior"]) == 1.1
        assert ABOUT.items() <= props.items()
        beside = json.loads((folder / "model.json").read_text())[name]
        assert {k: v if isinstance(v, str) else json.dumps(v) for k, v in beside.items()} == props
    for n, height, width in SIZES:
        image, _, mask, noise, _ = inputs(n, height, width)
        out = session.run(["removed"], {"image": image.numpy(), "mask": mask.numpy(), "noise": noise.numpy()})[0]
        expected = (model.G_inp((1 - mask) * (2 * image - 1), mask, noise)[0] + 1) / 2
        assert torch.allclose(torch.from_numpy(out), expected, atol=1e-3)


PHOTOGRAPHS = [((200, 150), (60, 40, 80, 50), "warp"), ((200, 150), (-20, 90, 90, 80), "warp"),
               ((90, 130), (30.5, 20.25, 41, 77), "keep"), ((640, 480), (100, 50, 500, 400), "keep")]


@pytest.mark.skipif(bool(WITHOUT_ONNX), reason=f"ONNX NOT TESTED: {', '.join(WITHOUT_ONNX)} not installed")
def test_the_example_without_torch_cuts_as_photo_does(exported, tmp_path):
    """Its network mask is that of photo.py; run as a program, torch stays unimported."""
    import onnx
    import onnxruntime

    sessions, program = {}, onnx.load(exported[1] / "segment.onnx")
    for fit in ("warp", "keep"):  # the network is the same
        rule = {"fit": fit, "object_size": 100, "crop_size": 128}
        onnx.helper.set_model_props(program, {p.key: p.value for p in program.metadata_props}
                                    | {"crop_rule": json.dumps(rule)})
        sessions[fit] = build(crop_rule=rule), onnxruntime.InferenceSession(program.SerializeToString())
    for size, box, fit in PHOTOGRAPHS:
        model, session = sessions[fit]
        image = picture(*size)
        mask, window = onnx_cut.network_mask(session, image, box)
        part = edit._segment(model, np.asarray(image), box, refine=False)
        assert window == pytest.approx(part.window)
        inside = part.m[0, 0].numpy()
        assert np.abs(mask - inside).max() < 1e-3 and np.ptp(inside) > 0.1
    image.save(tmp_path / "dog.png")
    code = ("import runpy, sys; sys.modules['torch'] = None; sys.argv.pop(0); "
            "runpy.run_path(sys.argv[0], run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code, onnx_cut.__file__, str(exported[1] / "segment.onnx"),
                           str(tmp_path / "dog.png"), "100,50,500,400", str(tmp_path / "cut.png")],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "cut.png") as cut:
        assert cut.mode == "RGBA" and cut.size == (640, 480) and cut.getpixel((2, 2))[3] == 0
        assert cut.getchannel("A").getextrema()[1] > 0


def test_the_example_is_short():
    assert Path(onnx_cut.__file__).read_text().count("\n") <= 60


def test_command(tmp_path, capsys, monkeypatch):
    (tmp_path / "runs" / "exp").mkdir(parents=True)
    model = build(Supervised)
    save_checkpoint(str(tmp_path / "runs" / "exp" / "latest.pt"),
                    {"method": "supervised", "config": model.config, **Trainer(model, lr=1e-4).state_dict()})
    argv = ["export", "--checkpoints_dir", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--name"]
    monkeypatch.setattr(export, "has", lambda *packages: False)
    assert photo.main([*argv, "exp"]) == 0
    text = capsys.readouterr().out
    assert "segment.pt2: differs from the model by at most" in text and "no ONNX" in text
    told = json.loads((tmp_path / "out" / "model.json").read_text())["segment"]
    assert told["mode"] == "supervised" and told["revision"] == revision()
    assert photo.main([*argv, "none"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(export, "export_model", lambda *args: {"segment.pt2": 0.1})
    assert photo.main([*argv, "exp"]) == 1, "a program that differs is a failure"
