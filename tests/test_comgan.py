"""ComGAN and DS-ComGAN: equations against literal versions, who learns from what, both stages, the commands."""
import copy
import json
import math

import pytest
import torch
from conftest import equal
from test_train import dataroot, records, run, training_state  # noqa: F401 - fixtures
from torch import nn

import losses
import test as test_command
from baselines import comgan, comgan_networks, dscomgan
from running import methods
from running.checkpoint import MOST, load_checkpoint, load_model

MODULES = {"comgan": comgan, "dscomgan": dscomgan}
TINY = dict(size=16, ngf=4, ndf=4, nz=6, head_width=6, head_blocks=1, mask_blocks=1, seg_ngf=4, authors_nets=False,
            box=[0.1, 0.1, 0.8, 0.8], crop_rule=None, first_steps=4)
CODES = dict(n_codes=3, ndf_info=4, tied_codes=False)
WEIGHTS = {"binary": 0.5, "cons": 2.0, "info": 1.5}
SMALL = ("--gpu -1 --size 16 --ngf 4 --ndf 4 --nz 6 --head_width 6 --head_blocks 1 --seg_ngf 4 --batch_size 2 "
         "--num_threads 0 --first_epochs 1 --n_epochs 2 --print_freq 2 --val_freq 3 --display_freq 4 "
         "--save_latest_freq 2")


def trainer_of(method, double=False, seed=5, ema=0.2, diffaug=True, masks_as_made=False, **config):
    torch.manual_seed(3)
    model = MODULES[method].Model(**TINY | (CODES if method == "dscomgan" else {}) | config)
    model = model.double() if double else model
    model.polarity.float()
    return MODULES[method].Trainer(model, WEIGHTS, lr=1e-3, seed=seed, ema=ema, diffaug=diffaug,
                                   masks_as_made=masks_as_made)


def batch(n=4, size=16, dtype=torch.float32, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {"x": torch.rand((n, 3, size, size), generator=rng, dtype=dtype) * 1.6 - 0.8, "box": torch.zeros(n, 4)}


def both(function):
    return pytest.mark.parametrize("method", MODULES)(function)


# --- codes and losses ---


@pytest.mark.parametrize("tied", [False, True])
def test_codes_are_one_hot_uniform_and_independent(tied):
    model = trainer_of("dscomgan", tied_codes=tied).model
    z, f, b = model.draw(9000, torch.Generator().manual_seed(0))
    assert z.shape == (9000, 6) and abs(z.std() - 1) < 0.02
    assert torch.equal(f.sum(1), torch.ones(9000)) and torch.equal(f.max(1).values, torch.ones(9000))
    joint = (f.T @ b) / 9000
    expected = torch.eye(3) / 3 if tied else torch.full((3, 3), 1 / 9)
    assert (joint - expected).abs().max() < 0.02  # four standard deviations are .013, of a third .02


def test_entropy_against_its_definition():
    a = torch.randn(2, 1, 5, 5, dtype=torch.double) * 3
    m = 1 / (1 + torch.exp(-a))
    assert torch.allclose(comgan.binary_entropy(a), (-m * torch.log2(m) - (1 - m) * torch.log2(1 - m)).mean())
    assert comgan.binary_entropy(torch.zeros(3)) == 1
    for value in (200.0, -200.0):
        extreme = torch.full((2,), value, requires_grad=True)
        comgan.binary_entropy(extreme).backward()
        assert comgan.binary_entropy(extreme) == 0 and torch.equal(extreme.grad, torch.zeros(2))


def log_sigmoid(t):
    return -torch.log(1 + torch.exp(-t))


def literal_adam(parameters, loss, lr=1e-3, beta1=0.5, beta2=0.999):
    """The first step of Adam."""
    parameters = list(parameters)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for p, g in zip(parameters, gradients, strict=True):
        if g is not None:
            m, v = (1 - beta1) * g / (1 - beta1), (1 - beta2) * g.square() / (1 - beta2)
            p.data -= lr * m / (v.sqrt() + 1e-8)


def literal_first(model, x, method, step):
    """One step of the first stage, written anew: D_z, then G, D_f and D_b on the same images."""
    rng = torch.Generator().manual_seed(8)
    z = torch.randn((4, 6), generator=rng, dtype=torch.double)
    codes = torch.randint(3, (2, 4), generator=rng) if method == "dscomgan" else []
    made = model.G(z, *(torch.eye(3).double()[code] for code in codes))
    fakes = [made.xc] if method == "comgan" else [made.xc, made.xz]
    d = model.D_z
    d_loss = -len(fakes) * log_sigmoid(d(x)).mean() - sum(log_sigmoid(-d(fake.detach())).mean() for fake in fakes)
    literal_adam(d.parameters(), d_loss)
    adv = -sum(log_sigmoid(d(fake)).mean() for fake in fakes)
    p = made.m
    entropy = (-p * torch.log2(p) - (1 - p) * torch.log2(1 - p)).mean()
    total = adv + 0.5 * min(1, 3 * step / 4) * entropy
    learners = list(model.G.parameters())
    for net, image, code in zip((model.D_f, model.D_b), (made.xf, made.xb), codes, strict=True) if len(codes) else ():
        out = net(image)
        total = total - 1.5 * (out[range(4), code] - torch.log(torch.exp(out).sum(1))).mean()
        learners += net.parameters()
    literal_adam(learners, total)
    return {"D_z": d_loss, "adv": adv, "binary": entropy, "total": total,
            "apart": (made.xf - made.xb).abs().mean()}


def covers_frame(mask):
    """Whether more of the outermost pixels of mask (1, 16, 16) are covered than of the others, counted one by one."""
    frame, inside = [], []
    for i in range(16):
        for j in range(16):
            (frame if {i, j} & {0, 15} else inside).append(mask[0, i, j].item())
    return sum(frame) / len(frame) > sum(inside) / len(inside)


def literal_second(model, G, x, method, masks_as_made):
    """One step of the second stage, written anew: D_m, then S on the same masks."""
    rng = torch.Generator().manual_seed(8)
    z = torch.randn((4, 6), generator=rng, dtype=torch.double)
    codes = torch.randint(3, (2, 4), generator=rng) if method == "dscomgan" else []
    with torch.no_grad():
        made = G(z, *(torch.eye(3).double()[code] for code in codes))
        inverted = [covers_frame(mask) and not masks_as_made for mask in made.m]
        assert masks_as_made or True in inverted and False in inverted
        m = torch.stack([1 - mask if i else mask for mask, i in zip(made.m, inverted, strict=True)])
    s_made, s_x, d = model.S(made.xc), model.S(x), model.D_m
    d_loss = -2 * log_sigmoid(d(m)).mean() - log_sigmoid(-d(s_made.detach())).mean() \
        - log_sigmoid(-d(s_x.detach())).mean()
    literal_adam(d.parameters(), d_loss)
    adv, cons = -log_sigmoid(d(s_made)).mean() - log_sigmoid(d(s_x)).mean(), (m - s_made).abs().mean()
    literal_adam(model.S.parameters(), adv + 2 * cons)
    return {"D_m": d_loss, "adv_mask": adv, "cons": cons, "total": adv + 2 * cons, "mask_area": s_x.mean()}


@both
@pytest.mark.parametrize("stage, masks_as_made", [(1, False), (2, False), (2, True)])
def test_a_step_against_a_literal_one(method, stage, masks_as_made):
    trainer = trainer_of(method, double=True, seed=8, diffaug=False, masks_as_made=masks_as_made)
    x = batch(dtype=torch.double)["x"]
    trainer.step = 1 if stage == 1 else 4
    model = copy.deepcopy(trainer.model)
    if stage == 1:
        expected = literal_first(model, x, method, 1)
        log = trainer.train_step({"x": x})
    else:
        trainer.settle(4)
        trainer.settle = lambda n: None
        expected = literal_second(model, copy.deepcopy(trainer.averaged.G), x, method, masks_as_made)
        log = trainer.train_step({"x": x})
    assert log["skipped"] == 0
    for name, value in expected.items():
        assert log[name].item() == pytest.approx(value.item(), rel=1e-6), name
    for (name, p), q in zip(trainer.model.named_parameters(), model.parameters(), strict=True):
        # where a gradient is rounding alone, Adam's first step takes its sign
        assert (p - q).abs().mean() < 1e-5, name


@both
def test_chance(method):
    """Discriminators that know nothing: D_z 2 ln 2 for each kind of fake, D_f and D_b ln N, D_m 4 ln 2."""
    trainer, x = trainer_of(method), batch()["x"]
    for name in ("D_z", "D_m", "D_f", "D_b"):
        if hasattr(trainer.model, name):
            last = [m for m in trainer.model.get_submodule(name).modules() if isinstance(m, nn.Conv2d)][-1]
            nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
    for optimizer in trainer.optimizers.values():
        optimizer.step = lambda: None
    log, kinds = trainer.train_step({"x": x}), 1 if method == "comgan" else 2
    assert log["D_z"].item() == pytest.approx(2 * kinds * math.log(2))
    assert log["adv"].item() == pytest.approx(kinds * math.log(2))
    if method == "dscomgan":
        assert log["info_f"].item() == log["info_b"].item() == pytest.approx(math.log(3))
    trainer.step = 4
    log = trainer.train_step({"x": x})
    assert log["D_m"].item() == pytest.approx(4 * math.log(2))
    assert log["adv_mask"].item() == pytest.approx(2 * math.log(2))


# --- who learns from what ---


def parts(model):
    """The networks, G in its parts."""
    return {**{f"G.{k}": net for k, net in model.G.named_children()},
            **{k: net for k, net in model.networks().items() if k not in ("G", "polarity")}}


def moved(model, loss):
    """Names of the networks that a loss gives gradients to."""
    found = set()
    for name, net in parts(model).items():
        own = [p for p in net.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, own, retain_graph=True, allow_unused=True) if own else []
        if any(g is not None and g.any() for g in gradients):
            found.add(name)
    return found


@both
def test_owners_of_each_loss(method, monkeypatch):
    trainer, calls, own = trainer_of(method), [], losses.update
    parts_of_G = {f"G.{name}" for name, _ in trainer.model.G.named_children()}

    def update(optimizer, loss, share):
        calls.append(moved(trainer.model, loss))
        before = copy.deepcopy({k: net.state_dict() for k, net in parts(trainer.model).items()})
        applied = own(optimizer, loss, share)
        names = {k for k, net in parts(trainer.model).items()
                 if any(not torch.equal(p, before[k][n]) for n, p in net.named_parameters())}
        assert names == calls[-1]  # an update moves what its loss is of, and nothing else
        return applied

    monkeypatch.setattr(losses, "update", update)
    trainer.step = 1  # from which on entropy counts
    trainer.train_step(batch())
    more = {"D_f", "D_b"} if method == "dscomgan" else set()
    assert calls == [{"D_z"}, parts_of_G | more]
    trainer.step = 4
    trainer.train_step(batch())
    assert calls[2:] == [{"D_m"}, {"S"}]
    assert all(p.requires_grad for p in trainer.model.parameters())


def test_owners_of_each_term():
    trainer = trainer_of("dscomgan")
    codes = trainer.model.draw(4, trainer.rng)
    made = trainer.model.G(*codes)
    terms = trainer.information(made, codes)
    shared = {"G.Phi", "G.maps"}
    assert moved(trainer.model, terms["info_f"]) == shared | {"G.F", "D_f"}
    assert moved(trainer.model, terms["info_b"]) == shared | {"G.B", "D_b"}
    assert moved(trainer.model, comgan.binary_entropy(made.a)) == shared | {"G.M"}
    assert moved(trainer.model, trainer.model.D_z(made.xz).sum()) == {"G.Phi", "G.whole", "D_z"}
    assert moved(trainer.model, trainer.model.D_z(made.xc).sum()) == shared | {"G.F", "G.B", "G.M", "D_z"}


# --- the stages ---


@both
@pytest.mark.parametrize("change", [2, 4, 6])
@pytest.mark.parametrize("authors", [False, True])
def test_four_and_four_steps_are_eight(method, change, authors, tmp_path):
    config = dict(first_steps=change, authors_nets=authors)
    whole, half = (trainer_of(method, **config) for _ in range(2))
    logs = [whole.train_step(batch(seed=i)) for i in range(8)]
    [half.train_step(batch(seed=i)) for i in range(4)]
    before = copy.deepcopy(half.state_dict())
    half.averaged.pictures(batch()["x"])
    assert equal(before, half.state_dict()) and not half.averaged.training  # looking changes nothing
    torch.save({"config": half.model.config, **half.state_dict()}, tmp_path / "half.pt")
    state = torch.load(tmp_path / "half.pt", weights_only=True)
    rest = trainer_of(method, seed=99, **config)
    [p.data.zero_() for p in rest.model.parameters()]
    rest.load_state_dict(state)
    rest_logs = [rest.train_step(batch(seed=i)) for i in range(4, 8)]
    assert equal(rest_logs, logs[4:]) and equal(rest.state_dict(), whole.state_dict())
    assert ["D_z" in log for log in logs] == [i < change for i in range(8)]
    state = {"config": whole.model.config, **whole.state_dict()}
    model, x = MODULES[method].Model.from_state(state), batch()["x"]
    assert model.ready and torch.equal(model.segment(x), whole.averaged.segment(x))


@both
def test_the_second_stage_leaves_the_generator_to_the_bit(method):
    trainer, tracked = trainer_of(method), "Phi.start.1.num_batches_tracked"
    for i in range(5):
        trainer.train_step(batch(seed=i))
        assert trainer.averaged.G.state_dict()[tracked] == (0 if i < 4 else 50)  # see `settle`
    G = copy.deepcopy(trainer.averaged.G.state_dict()), copy.deepcopy(trainer.model.G.state_dict())
    for i in range(3):
        trainer.train_step(batch(seed=i))
    assert equal(G, (trainer.averaged.G.state_dict(), trainer.model.G.state_dict()))


def test_batch_statistics_are_measured_anew():
    """The mean over 50 batches, of the averaged weights, in every process the same."""
    trainer, other = trainer_of("dscomgan"), trainer_of("dscomgan", seed=1_000_005)
    for norm in (m for m in trainer.averaged.G.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.fill_(9.0), norm.num_batches_tracked.fill_(7)
    seen, norm = [], next(m for m in trainer.averaged.G.Phi.ups[0].modules() if isinstance(m, nn.BatchNorm2d))
    hook = norm.register_forward_pre_hook(lambda _, h: seen.append((h[0].mean((0, 2, 3)), h[0].var((0, 2, 3)))))
    rng = trainer.rng.get_state()
    trainer.settle(32), other.settle(32), hook.remove()
    assert len(seen) == 50 and torch.equal(rng, trainer.rng.get_state())
    assert torch.allclose(norm.running_mean, torch.stack([m for m, _ in seen]).mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, torch.stack([v for _, v in seen]).mean(0), rtol=1e-4)
    assert equal(trainer.averaged.G.state_dict(), other.averaged.G.state_dict()) and not trainer.averaged.G.training
    codes = trainer.model.draw(400, trainer.rng)
    with torch.no_grad():
        alone, together = trainer.averaged.G(*codes), copy.deepcopy(trainer.averaged.G).train()(*codes)
    assert (alone.xc - together.xc).abs().mean() < 0.1 * together.xc.std()


def test_averages_have_the_age_of_their_stage():
    trainer, last = trainer_of("comgan", first_steps=2, ema=0.5), trainer_of("comgan", first_steps=2, ema=0)
    seen = []
    for i in range(5):
        for one in (trainer, last):
            one.train_step(batch(seed=i))
        seen.append([net.state_dict()[key].clone() for net, key in
                     ((trainer.model.G, "Phi.start.0.weight"), (trainer.model.S, "net.head.weight"))])
    # ema ½: plain means, of G over the 2 steps of its stage, of S over its 3
    G, S = trainer.averaged.G.state_dict(), trainer.averaged.S.state_dict()
    assert torch.allclose(G["Phi.start.0.weight"], (seen[0][0] + seen[1][0]) / 2)
    assert torch.allclose(S["net.head.weight"], (seen[2][1] + seen[3][1] + seen[4][1]) / 3)
    assert all(map(torch.equal, last.averaged.G.parameters(), last.model.G.parameters()))
    assert equal(last.averaged.S.state_dict(), last.model.S.state_dict())
    named = trainer_of("comgan", first_steps=1, authors_nets=True)
    [named.train_step(batch(seed=i)) for i in range(3)]
    assert equal(named.averaged.S.state_dict(), named.model.S.state_dict()) and not named.averaged.S.training


def test_entropy_s_weight_rises():
    trainer, weights = trainer_of("comgan", first_steps=9), []
    for _ in range(5):
        log = trainer.train_step(batch())
        weights.append(((log["total"] - log["adv"]) / log["binary"]).item())
    assert weights == pytest.approx([0, 0.5 / 3, 1 / 3, 0.5, 0.5], abs=1e-5)


@both
def test_a_step_that_is_not_finite_is_skipped(method):
    for step, networks in ((1, ("D_z", "G")), (4, ("S", "D_m"))):
        trainer = trainer_of(method)
        trainer.step = step
        before = copy.deepcopy(trainer.model.state(networks))
        log = trainer.train_step({"x": batch()["x"] * math.nan})
        assert log["skipped"] == 1 and trainer.step == step + 1
        for name in networks[:1]:
            own = dict(trainer.model.get_submodule(name).named_parameters())
            assert all(torch.equal(p, before[name][k]) for k, p in own.items())
        assert trainer.model.polarity.excess.isfinite().all()


# --- what is shown, and which region is the object ---


@both
def test_images_depend_on_the_seed_alone(method):
    trainer, x = trainer_of(method, first_steps=1), batch(5)["x"]
    for ready in (False, True):
        few, many = trainer.averaged.pictures(x[:2], seed=7), trainer.averaged.pictures(x, seed=7)
        assert all(image.shape[0] == 5 and image.shape[-2:] == (16, 16) for image in many.values())
        assert all(torch.allclose(few[kind], many[kind][:2], atol=1e-6) for kind in many)
        assert ("mask" in many) is ready is trainer.averaged.ready
        made = trainer.averaged.pictures(x, seed=8)
        assert ready or not torch.equal(made["made"], many["made"])
        trainer.train_step(batch()), trainer.train_step(batch())
    m = trainer.averaged.pictures(x, y=x.flip(-1))
    assert torch.equal(m["z"], m["mask"] * x + (1 - m["mask"]) * x.flip(-1))


class Ring(nn.Module):
    """Where a red square lies in the middle of an image, or, inverted, where it does not."""

    def __init__(self, inverted):
        super().__init__()
        self.inverted = inverted

    def forward(self, x):
        m = (x[:, :1] > 0).to(x)
        return 1 - m if self.inverted else m


def test_an_inverted_network_gives_the_same_masks():
    x = -torch.ones(2, 3, 16, 16)
    x[:, 0, 4:12, 3:11] = 1
    found = []
    for inverted in (False, True):
        model = trainer_of("comgan").model
        model.S = Ring(inverted)
        model.polarity.update(model.regions(x))
        found.append(model.segment(x))
        assert model.polarity.background == int(inverted)
    assert torch.equal(*found) and torch.equal(found[0], (x[:, :1] > 0).float())


class Discs(nn.Module):
    """A generator that has learned: discs of one colour range on another, and their masks."""

    def forward(self, z):
        u = torch.linspace(-1, 1, 16)
        m = ((u[None, :, None] - z[:, :1, None] / 4) ** 2 + (u[None, None] - z[:, 1:2, None] / 4) ** 2 < 0.25).float()
        colour = torch.sigmoid(z[:, 2:5, None, None])
        xc = m[:, None] * colour - (1 - m[:, None]) * colour.flip(1)
        return comgan_networks.Made(xc, xc, xc, m[:, None], m[:, None])


def test_s_learns_what_a_good_generator_knows():
    trainer = trainer_of("comgan", first_steps=0)
    trainer.averaged.G, trainer.settle = Discs(), lambda n: None
    rng = torch.Generator().manual_seed(1)
    for _ in range(60):
        trainer.train_step({"x": Discs()(torch.randn(8, 6, generator=rng)).xc})
    made = Discs()(torch.randn(64, 6, generator=rng))

    def iou(m):
        m, true = m >= 0.5, made.m >= 0.5
        return ((m & true).sum((1, 2, 3)) / (m | true).sum((1, 2, 3))).mean()

    assert iou(trainer.averaged.segment(made.xc)) > max(iou((made.m.mean(0) > t).expand_as(made.m).float())
                                                         for t in (0.1, 0.2, 0.3, 0.4, 0.5)) + 0.1


# --- the commands ---


@both
def test_a_run_through_both_stages_its_resume_and_its_test(run, tmp_path, capsys, method):  # noqa: F811
    code, out = run(f"--name whole --method {method} {SMALL}")
    assert code == 0, out.err
    lines = [line for line in records(tmp_path / "whole") if "total" in line]
    assert [("D_z" in line, "D_m" in line) for line in lines] == [(True, False)] * 2 + [(False, True)] * 2
    validated = [line["step"] for line in records(tmp_path / "whole") if "val_iou" in line]
    assert validated == [6, 8]  # not in the first stage
    assert run(f"--name cut --method {method} {SMALL} --max_minutes 0")[0] == 124
    with pytest.raises(Exception, match="step 1 is of the first stage, in which nothing segments yet"):
        load_model(tmp_path / "cut" / "latest.pt")
    assert run("--name cut --resume --max_minutes 60", root=None)[0] == 0
    assert equal(*(training_state(tmp_path / name / "latest.pt") for name in ("whole", "cut")))
    words = ["--name", "whole", "--checkpoints_dir", str(tmp_path), "--results_dir", str(tmp_path / "results"),
             "--gpu", "-1"]
    assert not test_command.main(words)
    assert "nothing said what the object is" in capsys.readouterr().out
    figures = json.load(open(tmp_path / "results" / "whole" / "metrics.json"))
    assert figures["supervision"] == "nothing" and figures["kinds"][:2] == ["x", "y"] and figures["iou"] is not None
    config = load_checkpoint(tmp_path / "whole" / "best.pt")["config"]
    assert {k for k in MODULES[method].SIZES if type(config[k]) is int} <= MOST.keys()


@pytest.mark.parametrize("line,message", [
    ("--size 48", "--size must be 16, 32, 64, 128 or more powers of 2 for method dscomgan, got 48"),
    ("--size 8", "powers of 2 for method dscomgan, got 8"),
    ("--batch_size 1", "--batch_size must be 2 or more for method dscomgan"),
    ("--first_epochs 3 --n_epochs 2 --n_epochs_decay 1", "--first_epochs 3 leaves nothing of 3 epochs to the second"),
    ("--n_codes 1", "argument --n_codes: must be a whole number from 2, got '1'"),
])
def test_bad_input_gets_one_line(run, line, message, tmp_path):  # noqa: F811
    code, out = run(f"--name a --method dscomgan {line}")
    last = out.err.strip().splitlines()[-1]
    assert code == 2 and message in last and "Traceback" not in out.err and not (tmp_path / "a").exists()


def test_every_option_is_read():
    source = "".join(open(module.__file__).read() for module in (comgan, dscomgan))
    for option in methods.declared("dscomgan")["OPTIONS"]:
        assert f"args.{option}" in source or source.count(f'"{option}"') > 1 or option.startswith("lambda_"), option
