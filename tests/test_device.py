"""--device in every command, and that nothing there needs float64, which Apple's GPUs do not have."""
import argparse

import pytest
import torch
from PIL import Image
from test_photo import BOX, build, picture
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import crf
import photo
import prepare
import test
from baselines import boxes, supervised
from baselines.nocycle import NoCycle
from evaluation.evaluate import enhancement
from images import UserError
from photos import edit
from running import options, train_options
from seigan import SEIGAN, Trainer

SMALL = dict(size=16, ngf=4, ndf=4, n_layers_D=2, seg_blocks=1, unet_downs=2)


class NoFloat64(TorchDispatchMode):
    """Raises on any operation that takes or gives float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for value in tree_leaves((args, kwargs, out)):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float64:
                raise AssertionError(f"float64 in {func}")
        return out


def test_the_mode_sees_float64():
    with pytest.raises(AssertionError, match="float64"), NoFloat64():
        torch.ones(2).double()


@pytest.mark.parametrize("model, trainer", [
    (SEIGAN, Trainer), (NoCycle, Trainer), (supervised.Supervised, supervised.Trainer), (boxes.Boxes, boxes.Trainer)])
def test_a_step_without_float64(model, trainer):
    torch.manual_seed(0)
    trainer = trainer(model(**SMALL), lr=1e-4)
    trainer.teacher = crf.teach
    trainer.step = 99  # from 100 on the teacher sees the averaged model's masks
    batch = {"x": torch.rand(2, 3, 16, 16), "y": torch.rand(2, 3, 16, 16), "mask": torch.ones(2, 1, 16, 16),
             "box": torch.tensor([[0.1, 0.1, 0.8, 0.8]] * 2)}
    with NoFloat64():
        assert not any(trainer.train_step(batch)["skipped"] for _ in range(2))


@pytest.mark.parametrize("box", [None, (0.1, 0.2, 0.5, 0.5), torch.tensor([0.1, 0.2, 0.5, 0.5], dtype=torch.float64)])
def test_the_models_uses_without_float64(box):
    torch.manual_seed(0)
    model, images = SEIGAN(**SMALL), torch.rand(2, 2, 3, 16, 16)
    box = box.float() if isinstance(box, torch.Tensor) else box
    with NoFloat64():
        made = model.pictures(*images, box)
        model.scores(made)
        model.paste(*images, box), model.remove(images[0], box), model.segment(images[0], box)
        enhancement(model, images[0], made)


def test_photographs_without_float64():
    model, image = build(), picture()
    with NoFloat64():
        for refine in (True, False):
            edit.cut(model, image, BOX, refine=refine)
            edit.remove(model, image, BOX, refine=refine)
            edit.paste(model, image, BOX, Image.new("RGB", (90, 90)), refine=refine)


def test_a_box_of_any_kind_of_numbers():
    import numpy as np

    model, x = SEIGAN(**SMALL), torch.rand(1, 3, 16, 16)
    expected = model.segment(x, (0.1, 0.2, 0.5, 0.5))
    assert torch.equal(model.segment(x, np.array([0.1, 0.2, 0.5, 0.5])), expected)
    assert model.box.dtype == torch.float32


# --- the option ---


@pytest.mark.parametrize("text, name", [("cpu", "cpu"), ("-1", "cpu"), ("mps", "mps"), ("cuda", "cuda:0"),
                                        ("cuda:3", "cuda:3"), ("0", "cuda:0"), ("2", "cuda:2")])
def test_names_of_devices(text, name):
    assert options.device_name(text) == name == options.device_name(name)


@pytest.mark.parametrize("text", ["-2", "gpu", "cuda:", "cuda:x", "cpu:0", "", "1.5", "1000", "cuda:-1", "cpu\n"])
def test_what_is_no_device(text):
    with pytest.raises(argparse.ArgumentTypeError, match="must be cpu, cuda, cuda:N, mps"):
        options.device_name(text)


@pytest.mark.parametrize("name, text", [("mps", "--device mps: torch finds no Apple GPU"),
                                        ("cuda:63", "--gpu 63: this machine has 1 CUDA GPUs")])
def test_a_device_that_is_absent_is_one_line(monkeypatch, name, text):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=text) as caught:
        options.pick_device(name)
    assert "\n" not in str(caught.value)


def test_the_device_that_is_picked(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for count, first in ((0, "cpu"), (2, "cuda:0")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert [str(options.pick_device(n)) for n in (None, "cpu", "mps")] == [first, "cpu", "mps"]
    assert not options.has_bfloat16(torch.device("mps"))


@pytest.mark.parametrize("known, expected", [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({}, False),
                                             ({"avx512_f": True, "amx_bf16": False, "avx512_bf16": False}, False)])
def test_cpus_with_units_for_bfloat16(monkeypatch, known, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert options.has_bfloat16(torch.device("cpu")) is expected


@pytest.mark.parametrize("parse, argv", [
    (photo.get_args_parser().parse_args, ["cut", "a.jpg", "--box", "1,1,5,5", "--name", "a"]),
    (photo.get_args_parser().parse_args, ["remove", "a.jpg", "--box", "1,1,5,5", "--name", "a"]),
    (test.get_args_parser().parse_args, ["--name", "a"]), (train_options.get_parser().parse_args, ["--name", "a"]),
    (prepare.parse_args, ["detect", "--images", "a", "--out", "b"])])
def test_every_command_takes_it(parse, argv):
    for given, device in (([], None), (["--gpu", "-1"], "cpu"), (["--gpu", "1"], "cuda:1"),
                          (["--device", "cpu"], "cpu"), (["--device", "cuda:1"], "cuda:1"),
                          (["--device", "mps"], "mps")):
        assert parse([*argv, *given]).device == device
