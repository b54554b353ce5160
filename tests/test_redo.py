"""ReDO (baselines/redo.py): its equations against literal ones, who learns from what, its trainer and its commands."""
import copy
import io
import json
import math
import os
import shutil

import pytest
import torch
from conftest import equal
from torch import nn

import test as test_command
import train
from baselines import redo
from crops import demo
from data import Crops
from evaluation.evaluate import validate
from running import train_options
from running.checkpoint import load_checkpoint, load_model

TINY = dict(size=8, regions=2, nz=3, nf=8, ch_G=4, ch_D=4, ch_delta=4, attention=True)


def build(ema=0.2, lr=1e-3, lambda_z=5.0, amp=False, diffaug=True, double=False, **config):
    torch.manual_seed(0)
    model = redo.ReDO(**TINY | config)
    if double:
        model.double().polarity.float()
    return redo.Trainer(model, lr, lr / 5, 0.0, lambda_z, ema=ema, amp=amp, diffaug=diffaug)


def images(n=3, size=8, seed=0, dtype=torch.float32):
    return torch.rand((n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def batch(seed=0, **kwargs):
    return {"x": images(seed=2 * seed, **kwargs), "x_real": images(seed=2 * seed + 1, **kwargs)}


def codes(model, n=3, seed=5):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn((n, model.n_regions, model.nz), generator=rng, dtype=next(model.parameters()).dtype)


# --- equations, written out ---


@pytest.mark.parametrize("regions", [2, 3])
def test_compositions_are_the_papers(regions):
    x, v = images(2, dtype=torch.float64), images(2 * regions, seed=1, dtype=torch.float64).unflatten(0, (2, regions))
    masks = torch.randn((2, regions, 8, 8), generator=torch.Generator().manual_seed(2), dtype=torch.float64).softmax(1)
    x_k, r = redo.compose(x, masks, v)
    for i in range(2):
        for c in range(3):
            for row in range(8):
                for col in range(8):
                    m, new, old = masks[i, :, row, col], v[i, :, c, row, col], x[i, c, row, col]
                    for k in range(regions):  # V_k in its own region, the image in all others
                        others = sum(m[j] * old for j in range(regions) if j != k)
                        assert abs(x_k[i, k, c, row, col] - (m[k] * new[k] + others)) < 1e-12
                    assert abs(r[i, c, row, col] - sum(m[k] * new[k] for k in range(regions))) < 1e-12


def test_losses_are_the_papers():
    rng = torch.Generator().manual_seed(0)
    real, fake = torch.randn((4, 1), generator=rng).double(), torch.randn((8, 1), generator=rng).double()
    assert redo.hinge_generator(fake) == pytest.approx(-sum(map(float, fake)) / 8)
    d = sum(max(0.0, 1 - float(s)) for s in real) / 4 + sum(max(0.0, 1 + float(s)) for s in fake) / 8
    assert redo.hinge_discriminator(real, fake) == pytest.approx(d)
    z, guess = torch.randn((2, 4, 3, 5), generator=rng).double()
    for k, error in enumerate(redo.code_errors(z, guess)):
        assert error == pytest.approx(sum((z[i, k, j] - guess[i, k, j]) ** 2 for i in range(4) for j in range(5)) / 20)


# --- what makes the method work ---


def test_what_is_not_redrawn_stays_to_the_bit():
    model, x = build().model.eval(), images()
    z = codes(model)
    masks, x_k, r = model.redraw(x, z)
    masks = masks.clone()
    masks[:, 0, :4] = 0.0
    masks[:, 1, :4] = 1.0
    kept, _ = redo.compose(x, masks, model.G(masks, z))
    assert torch.equal(kept[:, 0, :, :4], x[:, :, :4]) and not torch.equal(kept[:, 0, :, 4:], x[:, :, 4:])
    other = z.clone()
    other[:, 1] += 1  # z_1 shows in x_1 and in r, and nowhere else
    _, changed, changed_r = model.redraw(x, other)
    assert torch.equal(changed[:, 0], x_k[:, 0]) and not torch.equal(changed[:, 1], x_k[:, 1])
    assert not torch.equal(changed_r, r)
    empty = torch.stack([torch.ones(3, 8, 8), torch.zeros(3, 8, 8)], 1)  # nothing of z_1 can be known
    assert torch.equal(*(redo.compose(x, empty, model.G(empty, c))[1] for c in (z, other)))


def gradients(trainer, data):
    """{name: gradient} of each parameter that has one at the first update of a step, and those of D at the second;
    the others' must still be the same then."""
    seen, model = [], trainer.model
    trainer.share = lambda parameters: seen.append(
        {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    trainer.train_step(data)
    first, second = seen
    assert equal(first, {name: second.pop(name) for name in first})
    return first, second


def networks_of(grads):
    return {name.split(".")[0] for name, g in grads.items() if g.abs().sum() > 0}


def test_each_loss_trains_its_own_networks():
    adversarial, _ = gradients(build(lambda_z=0.0, diffaug=False), batch())
    assert networks_of(adversarial) == {"F", "G"}
    both, judge = gradients(build(diffaug=False), batch())
    assert networks_of(both) == {"F", "G", "delta"} and networks_of(judge) == {"D"}
    assert {name.split(".")[0] for name in (*adversarial, *both)} == {"F", "G", "delta"}
    assert {name.split(".")[0] for name in judge} == {"D"}


@pytest.mark.parametrize("regions", [2, 3])
def test_a_step_descends_the_papers_losses(regions):
    trainer = build(lr=0.0, diffaug=False, double=True, regions=regions, ema=0.0)
    data = batch(dtype=torch.float64)
    model, x = copy.deepcopy(trainer.model), data["x"]
    both, judge = gradients(trainer, data)
    z = torch.randn((3, regions, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for i, (grads, names) in enumerate(((both, ("F", "G", "delta")), (judge, ("D",)))):
        masks = model.F(x)
        drawn = [model.G[k](masks[:, k:k + 1], z[:, k]) for k in range(regions)]
        fakes = [masks[:, k:k + 1] * drawn[k] + (1 - masks[:, k:k + 1]) * x for k in range(regions)]
        if i == 0:
            loss = -model.D(torch.cat([f[n:n + 1] for n in range(3) for f in fakes])).mean()
            r = sum(masks[:, k:k + 1] * drawn[k] for k in range(regions))
            loss = loss + 5 * (z.flatten(1) - model.delta(r)).square().mean()
        else:
            scores = model.D(torch.cat([data["x_real"], *fakes]).detach())
            loss = (1 - scores[:3]).clamp(min=0).mean() + (1 + scores[3:]).clamp(min=0).mean()
        parameters = {f"{n}.{k}": p for n in names for k, p in model.get_submodule(n).named_parameters()}
        expected = torch.autograd.grad(loss, [*parameters.values()])
        assert grads.keys() == parameters.keys() and networks_of(grads) == set(names)
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(grads[name], gradient, rtol=1e-4, atol=1e-6 * max(1, gradient.abs().max()))


def test_adam_is_the_papers():
    trainer = build(lr=1e-4)
    (f, others), (d,) = (trainer.optimizers[name].param_groups for name in ("opt_G", "opt_D"))
    assert (f["lr"], f["weight_decay"], others["weight_decay"], d["weight_decay"]) == (2e-5, 1e-4, 0, 0)
    assert others["lr"] == d["lr"] == 1e-4 and {g["betas"] for g in (f, others, d)} == {(0.0, 0.9)}
    assert len(f["params"]) == len([*trainer.model.F.parameters()])
    trainer.train_step(batch(), 0.5)
    assert (f["lr"], others["lr"], d["lr"]) == (1e-5, 5e-5, 5e-5)


def test_codes_can_be_found_again():
    trainer = build(lr=2e-3, nz=1, attention=False)
    logs = [trainer.train_step(batch(step, n=8)) for step in range(30)]
    for k in range(2):
        assert sum(log[f"err_z_{k}"] for log in logs[-10:]) < 5  # ten times less than a half


class Split(nn.Module):
    """F, as one that knows the object: the middle is region `inside`."""

    def __init__(self, inside):
        super().__init__()
        self.inside, self.logit = inside, nn.Parameter(torch.tensor(4.0))

    def forward(self, x):
        middle = torch.zeros_like(x[:, :1])
        middle[..., 2:-2, 2:-2] = 1.0
        m = (self.logit * (2 * middle - 1)).sigmoid()
        return torch.cat([m, 1 - m] if self.inside == 0 else [1 - m, m], 1)


@pytest.mark.parametrize("inside", [0, 1])
@pytest.mark.parametrize("ema", [0.0, 0.2])
def test_training_tells_the_object_whichever_region_it_is(inside, ema):
    torch.manual_seed(0)
    model = redo.ReDO(**TINY)
    model.F = Split(inside)
    trainer = redo.Trainer(model, lr=0.0, lr_F=0.0, ema=ema)
    log = trainer.train_step(batch())
    m = trainer.averaged.segment(images())
    assert log["background"] == 1 - inside and log["mask_area"] == pytest.approx(float(m.mean()), abs=1e-5)
    assert (m[..., 2:-2, 2:-2] > 0.9).all() and m[..., 0].max() < 0.1


# --- the trainer and the model ---


def stored(trainer):
    file = io.BytesIO()
    torch.save(trainer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("ema", [0.0, 0.2])
def test_four_steps_and_four_more_are_eight(ema):
    whole, first = build(ema=ema), build(ema=ema)
    for step in range(8):
        whole.train_step(batch(step))
    for step in range(4):
        first.train_step(batch(step))
        first.averaged.pictures(images(), seed=step)  # samples between steps change nothing
    second = build(ema=ema, lr=1e-3)
    second.train_step(batch(9))
    second.load_state_dict(stored(first))
    for step in range(4, 8):
        second.train_step(batch(step))
    assert equal(whole.state_dict(), second.state_dict())
    assert not equal(whole.state_dict()["networks"], first.state_dict()["networks"])


@pytest.mark.parametrize("where", ["x", "lambda_z"])
def test_a_step_that_is_not_finite_changes_no_weight(where):
    trainer = build()
    trainer.train_step(batch())
    before = copy.deepcopy({k: [p.detach() for p in n.parameters()] for k, n in trainer.model.networks().items()})
    background, averaged = trainer.model.polarity.excess.clone(), copy.deepcopy(trainer.averaged.state())
    data = batch(1)
    if where == "x":
        data["x"][0, 0, 0, 0] = math.nan
    else:  # D's loss is finite
        trainer.lambda_z = math.nan
    assert trainer.train_step(data)["skipped"] == 1 and trainer.step == 2
    assert equal(before, {k: [p.detach() for p in n.parameters()] for k, n in trainer.model.networks().items()})
    assert equal(background, trainer.model.polarity.excess) and equal(averaged, trainer.averaged.state())
    trainer.lambda_z = 5.0
    assert trainer.train_step(batch(2))["skipped"] == 0


def test_pictures_depend_on_the_seed_alone():
    model, x = build().model, images(4)
    model.polarity.excess.copy_(torch.tensor([0.5, -0.5]))
    made = model.pictures(x, seed=3)
    assert list(made) == ["mask", "r", *(f"region{k}_{i}" for k in range(2) for i in range(3))]
    assert {tuple(v.shape) for k, v in made.items() if k != "mask"} == {(4, 3, 8, 8)}
    assert torch.equal(made["mask"], model.segment(x)) and torch.equal(made["mask"][:, 0], 1 - model.regions(x)[:, 0])
    for i in range(4):
        for kind, image in model.pictures(x[i:i + 1], seed=3).items():
            torch.testing.assert_close(image, made[kind][i:i + 1])
    assert not torch.equal(model.pictures(x, seed=4)["r"], made["r"])
    assert not torch.equal(made["region0_0"], made["region0_1"])
    scores = model.eval().scores(made)
    assert scores.keys() == {f"d_{kind}" for kind in made} - {"d_mask"}
    assert torch.equal(scores["d_r"], model.D(made["r"])[:, 0])


def test_half_precision_reaches_no_mask_and_no_loss():
    trainer = build(amp=True, regions=3)
    with trainer.autocast():
        masks, x_k, r = trainer.model.redraw(images(), codes(trainer.model))
        assert {t.dtype for t in (masks, x_k, r, trainer.model.D(r), trainer.model.guess(r))} == {torch.float32}
    log = trainer.train_step(batch())
    assert {v.dtype for v in log.values()} == {torch.float32} and log["skipped"] == 0
    near = build(regions=3).train_step(batch())
    assert log["total"] == pytest.approx(float(near["total"]), rel=0.05)


def test_size_must_suit():
    with pytest.raises(ValueError, match="8, 16, 32"):
        redo.ReDO(size=12)


# --- commands ---

SMALL = ("--method redo --gpu -1 --size 16 --nz 3 --nf 8 --ch_G 4 --ch_D 4 --ch_delta 4 --batch_size 4 "
         "--num_threads 0 --print_freq 2 --val_freq 3 --display_freq 4 --save_latest_freq 3 --checkpoints_dir {0}/ck "
         "--dataroot {0}/set")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("redo")
    counts = {"train": {"objects": 8, "backgrounds": 1}, "test": {"objects": 3, "backgrounds": 1}}
    demo.write_demo(root / "set", counts=counts)
    for split in ("train", "test"):
        shutil.rmtree(root / "set" / split / "backgrounds")
    os.remove(root / "set" / "train" / "crops.json")
    shutil.rmtree(root / "set" / "train" / "masks")
    shutil.copytree(root / "set" / "test", root / "set" / "val")
    return root


def command(folder, line):
    return train.main((f"{SMALL.format(folder)} {line}").split())


def test_it_trains_resumes_and_is_tested_as_users_do_it(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert command(folder, "--name a --n_epochs 1") == 0 and command(folder, "--name b --n_epochs 3") == 0
    ck = folder / "ck"
    assert train.main(f"--name a --checkpoints_dir {ck} --resume --n_epochs 3 --gpu -1".split()) == 0
    a, b = (load_checkpoint(ck / name / "latest.pt") for name in "ab")
    assert a["step"] == 6 and all(equal(a[key], b[key]) for key in ("networks", "averaged", "opt_G", "opt_D", "rng"))
    lines = [json.loads(line) for line in (ck / "b" / "log.jsonl").read_text().splitlines()]
    figures = {"adv", "info", "D", "d_real", "d_fake", "err_z_0", "err_z_1", "mask_0", "mask_1", "background",
               "mask_contrast", "mask_spread", "total"}
    training = [line for line in lines if "adv" in line]
    assert figures <= training[0].keys() and any("val_iou" in line for line in lines)
    assert training[0]["mask_0"] + training[0]["mask_1"] == pytest.approx(1, abs=1e-5)
    for name in ("latest", "best"):
        model = load_model(ck / "b" / f"{name}.pt")
        assert isinstance(model, redo.Model) and model.config["ch_G"] == 4
        assert validate(model, Crops(folder / "set", "test", 16, backgrounds=False), "cpu")[2] == 3
    capsys.readouterr()
    assert test_command.main(f"--name b --checkpoints_dir {ck} --gpu -1".split()) == 0
    out = capsys.readouterr().out
    assert "nothing said what the object is" in out and "best fixed mask" in out
    metrics = json.loads((folder / "results" / "b" / "metrics.json").read_text())
    assert metrics["supervision"] == "nothing" and {"mask", "r", "region0_0", "region1_2"} <= set(metrics["kinds"])
    assert (folder / "results" / "b" / "r").is_dir() and metrics["background_region"] in (0, 1)


@pytest.mark.parametrize("line,told", [
    ("--size 48", "--size must be 8, 16, 32, 64, 128, ... with method redo, which doubles 4 px, got 48"),
    ("--nf 10", "--nf must be a multiple of 4, got 10"), ("--regions 1", "--regions"), ("--lambda_z -1", "--lambda_z"),
    ("--ngf 8", "--ngf")])
def test_bad_input_ends_in_one_line(folder, capsys, line, told):
    with pytest.raises(SystemExit) if "must" not in told else _nothing() as end:
        assert command(folder, f"--name bad {line}") == 2
    assert end is None or end.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert told in error[-1] and "Traceback" not in "".join(error)
    assert not (folder / "ck" / "bad").exists()


class _nothing:
    def __enter__(self):
        return None

    def __exit__(self, *_):
        return False


def test_the_papers_letter_and_the_demo():
    args, _ = train_options.parse("--method redo --name a --dataroot x --paper --gpu -1".split())
    assert redo.problem(args) is None
    given = dict(size=128, batch_size=25, lr=1e-4, lr_F=0.1, beta1=0.0, nz=32, nf=64, ch_G=32, ch_D=64, ch_delta=64,
                 attention=True, lambda_z=5.0, no_diffaug=True, no_flip=True, ema=0.0, n_epochs_decay=0, amp=False)
    assert {name: vars(args)[name] for name in given} == given
    args, _ = train_options.parse("--method redo --name a --demo --gpu -1".split())
    assert (args.size, args.no_diffaug, args.beta1, args.dataroot) == (32, False, 0.0, "datasets/demo")


@pytest.mark.parametrize("method", ["redo", "perturbgan", "comgan", "dscomgan"])
def test_on_the_demo_their_discriminators_see_augmented_images(method):
    """What SEIGAN leaves out there, to be quick, they need on a small set."""
    assert train_options.parse(f"--method {method} --name a --demo --gpu -1".split())[0].no_diffaug is False
