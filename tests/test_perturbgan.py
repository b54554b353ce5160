"""PerturbGAN: its equations against literal ones, who learns from what, both stages, and the commands."""
import copy
import json
import math
import shutil
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from conftest import equal
from PIL import Image

import losses
import test as evaluate_command
import train
from baselines import perturbgan, stylegan
from baselines.perturbgan import PerturbGAN, Trainer
from crops import demo
from running import train_options
from running.checkpoint import load_checkpoint, load_model

CONFIG = dict(size=20, shift=2, fake_shift=0, channels=8, channels_full=4, z_dim=6, mapping_layers=2, grow=False,
              resnet=False, first_steps=4)
ARGS = {name: default for name, (default, *_) in perturbgan.OPTIONS.items()} | dict(
    lr=2e-3, beta1=0.0, seed=0, ema=0.2, amp=False)


def trainer(args=None, **config):
    torch.manual_seed(0)
    return Trainer(PerturbGAN(**CONFIG | config), Namespace(**ARGS | (args or {})))


def batch(n=4, size=20, seed=1):
    return {"x": torch.rand((n, 3, size, size), generator=torch.Generator().manual_seed(seed)) * 2 - 1}


def changed(model, before):
    """Names of the networks whose weights are not those of the state `before`."""
    return {name for name, state in model.state(model.NETWORKS).items() if not equal(state, before[name])}


# --- the perturbation ---


def test_objects_and_masks_move_together_over_a_background_that_does_not():
    rng = torch.Generator().manual_seed(0)
    background, front = torch.randn((2, 3, 3, 6, 6), generator=rng, dtype=torch.float64)
    m = torch.rand((3, 1, 6, 6), generator=rng, dtype=torch.float64)
    by = torch.tensor([[0, 0], [2, -1], [-2, 1]])
    made = perturbgan.compose(background, front, m, by)
    for n in range(3):
        for i in range(6):
            for j in range(6):
                p, q = i + int(by[n, 0]), j + int(by[n, 1])
                inside = 0 <= p < 6 and 0 <= q < 6  # what comes from beyond the frame is no object
                mask = m[n, 0, p, q] if inside else 0.0
                for c in range(3):
                    f = front[n, c, p, q] if inside else 0.0
                    literal = (1 - mask) * background[n, c, i, j] + mask * f
                    assert float(made[n, c, i, j]) == pytest.approx(float(literal), abs=1e-12)


def test_real_and_made_objects_are_displaced_by_one_law():
    t = trainer()
    model, n = t.model, 4000
    dot = torch.zeros(n, 3, 20, 20)
    dot[:, :, 10, 10] = 1
    real = model.real(dot, 16, t.rng)[:, 0].flatten(1).argmax(1)
    by = perturbgan.draw_shifts(n, model.shifts(16)[1], t.rng)
    made = perturbgan.shift(dot[:, :1, 2:-2, 2:-2], by)[:, 0].flatten(1).argmax(1)
    for places in (real, made):
        counts = torch.stack([(places == 16 * (8 + i) + 8 + j).sum() for i in range(-2, 3) for j in range(-2, 3)])
        assert counts.sum() == n
        assert (counts - n / 25).abs().max() < 4 * math.sqrt(n / 25)


def test_the_window_of_tests_is_the_middle_and_smaller_sides_keep_a_pixel_of_shift():
    model = trainer(grow=True).model
    x = batch()["x"]
    assert torch.equal(model.real(x, 16), x[:, :, 2:-2, 2:-2])
    assert model.shifts(16) == [2, 2] and model.shifts(8) == [1, 1]
    assert trainer(size=72, shift=4, fake_shift=8).model.shifts(64) == [4, 8]
    assert trainer(size=72, shift=4).model.shifts(8) == [1, 1]
    assert trainer(size=16, shift=0).model.shifts(16) == [0, 0]
    small = F.interpolate(x, (10, 10), mode="bilinear", antialias=True)[:, :, 1:-1, 1:-1]
    assert torch.equal(model.real(x, 8), small)


def test_jitter_changes_contrast_within_what_the_background_has():
    images = batch()["x"].double()
    assert torch.allclose(perturbgan.jitter(images, torch.ones(4)), images, atol=1e-12)
    contrast = torch.tensor([0.5, 0.7, 1.0, 1.3])
    made = perturbgan.jitter(images, contrast)
    for n in range(4):
        for c in range(3):
            values = images[n, c]
            literal = values.mean() + contrast[n] * (values - values.mean())
            assert torch.allclose(made[n, c], literal.clamp(values.min(), values.max()))
    assert made[3].max() == images[3].max() and (made[3] != images[3]).any()


# --- losses ---


def test_size_is_of_each_mask_and_binary_of_each_pixel():
    m = torch.tensor([0.1, 0.5]).view(2, 1, 1, 1).repeat(1, 1, 2, 2).requires_grad_()
    size = perturbgan.size_loss(m, 0.25)  # the mean mask, .3, is large enough: the first one is not
    assert size.item() == pytest.approx(0.15 / 2)
    gradient, = torch.autograd.grad(size, m)
    assert torch.allclose(gradient, torch.tensor([-1 / 8, 0.0]).view(2, 1, 1, 1).expand_as(m))
    m = torch.tensor([0.0, 0.2, 0.7, 1.0]).view(1, 1, 2, 2).requires_grad_()
    binary = perturbgan.binary_loss(m)
    assert binary.item() == pytest.approx((0 + 0.2 + 0.3 + 0) / 4)
    assert torch.autograd.grad(binary, m)[0].flatten().tolist()[1:3] == [0.25, -0.25]


def test_penalties_of_a_linear_score():
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn((3, 4, 4), generator=rng, dtype=torch.float64).requires_grad_()
    real, fake = torch.randn((2, 5, 3, 4, 4), generator=rng, dtype=torch.float64)

    def score(images):
        return (images * weight).sum((1, 2, 3))

    norm = weight.square().sum().sqrt()
    penalty = perturbgan.wgan_penalty(score, real, fake, torch.rand(5, generator=rng))
    assert penalty.item() == pytest.approx(10 * (norm.item() - 1) ** 2)
    assert torch.allclose(torch.autograd.grad(penalty, weight)[0], 20 * (norm - 1) * weight / norm)
    assert torch.allclose(perturbgan.slopes(score, real), norm.square().expand(5))
    # of a square score the slope is 2|x|: it tells where it is taken
    at = (0.25 * real + 0.75 * fake).square().sum((1, 2, 3)).sqrt()
    penalty = perturbgan.wgan_penalty(lambda x: x.square().sum((1, 2, 3)), real, fake, torch.full((5,), 0.25))
    assert penalty.item() == pytest.approx((10 * (2 * at - 1).square()).mean().item())


def test_the_discriminators_losses():
    real, fake = batch(size=16)["x"], batch(size=16, seed=2)["x"]
    for step, penalised in ((0, False), (7, True), (8, False), (15, True)):
        t = trainer(dict(r1=0.1))
        t.step = step
        terms = t.discriminator_terms(real, fake, 1.0)
        d_real, d_fake = t.model.D(real), t.model.D(fake)
        literal = torch.log(1 + torch.exp(-d_real)).mean() + torch.log(1 + torch.exp(d_fake)).mean()
        assert torch.allclose(terms["D"], literal) and ("penalty" in terms) == penalised
        if penalised:
            assert torch.allclose(terms["penalty"], 8 * 0.1 / 2 * perturbgan.slopes(t.model.D, real).mean())
    t = trainer(dict(wgan=True))
    mix = torch.rand(4, generator=torch.Generator().manual_seed(0))
    terms = t.discriminator_terms(real, fake, 1.0)
    d_real, d_fake = t.model.D(real), t.model.D(fake)
    assert torch.allclose(terms["D"], d_fake.mean() - d_real.mean() + 0.001 * (d_real**2).mean())
    assert torch.allclose(terms["penalty"], perturbgan.wgan_penalty(t.model.D, real, fake, mix))


def test_the_encoders_loss():
    rng = torch.Generator().manual_seed(0)
    x, made = torch.randn((2, 2, 3, 4, 4), generator=rng)
    features, its = torch.randn((2, 2, 5, 8, 8), generator=rng)
    literal = sum(abs(float(a) - float(b)) for a, b in zip(x.flatten(), made.flatten(), strict=True)) / x.numel() \
        + sum((float(a) - float(b)) ** 2 for a, b in zip(features.flatten(), its.flatten(), strict=True)) / its.numel()
    assert perturbgan.encoder_loss(x, made, features, its).item() == pytest.approx(literal, rel=1e-5)


# --- the first stage ---


def test_the_scale_is_told_by_the_step():
    t = trainer(dict(ramp=0.5), size=40, shift=4, grow=True, first_steps=12)  # four steps each at 8, 16 and 32 px
    assert [t.ramp(step) for step in (0, 3, 6, 11)] == [0, 0.5, 1, 1] and trainer(dict(ramp=0.0)).ramp(0) == 1
    assert [t.model.scale(step) for step in range(14)] == [
        (8, 1.0), (8, 1.0), (8, 1.0), (8, 1.0), (16, 0.0), (16, 0.5), (16, 1.0), (16, 1.0),
        (32, 0.0), (32, 0.5), (32, 1.0), (32, 1.0), (32, 1.0), (32, 1.0)]
    assert {trainer(size=36).model.scale(step) for step in range(9)} == {(32, 1.0)}
    slow = trainer(size=36, grow=True, first_steps=12).model  # at 8 px objects would move by half a pixel
    assert [slow.scale(step)[0] for step in range(12)] == 6 * [16] + 6 * [32]


def test_layers_begin_faint_and_masks_small_unless_as_the_paper_has_them():
    torch.manual_seed(0)
    its = PerturbGAN(**CONFIG)
    first = its.G_obj.outs["16"].weight.detach().clone()
    for args, colours, bias in ((dict(faint=0.1, mask_bias=-1.0), 0.1, -1), (dict(faint=1.0, mask_bias=0.0), 1, 0)):
        t = trainer(args)
        for model in (t.model, t.averaged):
            out = model.G_obj.outs["16"]
            assert torch.equal(out.weight[:3], first[:3] * colours) and torch.equal(out.weight[3:], first[3:])
            assert out.bias.tolist() == [0, 0, 0, bias] and not model.G_bg.outs["16"].bias.any()


def test_mixed_styles_share_the_lower_blocks():
    torch.manual_seed(0)
    g = stylegan.Generator(32, 8, 4, 6, 2, 3)
    z, z2 = torch.randn(2, 5, 6)
    mixed = g.styles(z, z2, 1)
    assert torch.equal(mixed[:, :2], g.styles(z)[:, :2]) and torch.equal(mixed[:, 2:], g.styles(z2)[:, 2:])
    seen = set()
    t = trainer(dict(mixing=1.0), size=36)
    for network in (t.model.G_bg, t.model.G_obj):
        network.styles = lambda z, z2, last, own=network.styles: seen.add(last) or own(z, z2, last)
    for _ in range(40):
        t.draw(2, 32, 1.0)
    assert seen == {0, 1, 2}  # of four blocks the last always takes the second z


# --- who learns from what ---


def test_mask_terms_leave_the_background_alone():
    t = trainer()
    _, (_, _, m) = t.draw(4, 16, 1.0)
    (perturbgan.size_loss(m, 0.9) + perturbgan.binary_loss(m)).backward()
    assert all(p.grad is None for p in t.model.G_bg.parameters())
    assert any(p.grad is not None and p.grad.any() for p in t.model.G_obj.parameters())


@pytest.mark.parametrize("wgan", [False, True])
def test_each_update_moves_its_own_networks(monkeypatch, wgan):
    t, moved, update = trainer(dict(wgan=wgan)), [], losses.update

    def watched(optimizer, loss, share):
        before = copy.deepcopy(t.model.state(t.model.NETWORKS))
        applied = update(optimizer, loss, share)
        moved.append(changed(t.model, before))
        assert moved[-1] == {name for name, network in t.model.networks(t.model.NETWORKS).items()
                             if any(p.grad is not None and p.requires_grad for p in network.parameters())}
        return applied

    monkeypatch.setattr(losses, "update", watched)
    for _ in range(6):
        assert not t.train_step(batch())["skipped"]
    assert moved == 4 * [{"D"}, {"G_bg", "G_obj"}] + 2 * [{"E"}]


def test_rates():
    t = trainer(dict(lr=1e-3, lr_encoder=5e-4))
    t.set_rates(0.5)
    rates = {id(p): group["lr"] for optimizer in t.optimizers.values() for group in optimizer.param_groups
             for p in group["params"]}
    for name, p in t.model.named_parameters():
        expected = 0.5 * (5e-4 if name.startswith("E.") else 1e-5 if ".mapping." in name else 1e-3)
        assert rates.pop(id(p)) == pytest.approx(expected), name
    assert not rates
    assert [group["betas"] for o in t.optimizers.values() for group in o.param_groups] == \
        2 * [(0.0, 0.99)] + [(0.0, 0.99), (0.9, 0.999)]


def test_a_step_without_finite_gradients_is_not_applied():
    t = trainer()
    before = copy.deepcopy(t.state_dict())
    terms = t.train_step({"x": torch.full((4, 3, 20, 20), math.nan)})
    assert terms["skipped"] == 1 and t.step == 1
    assert equal(t.model.state(["D"]), {"D": before["networks"]["D"]})
    assert equal(t.averaged.state(), before["networks"] | before["averaged"])


# --- two stages ---


def test_the_second_stage_begins_from_the_averaged_generators_and_their_mean_codes():
    t = trainer()
    for i in range(4):
        t.train_step(batch(seed=i))
        assert not t.averaged.ready
    assert not equal(t.averaged.state(["G_obj"]), t.model.state(["G_obj"]))
    kept = copy.deepcopy(t.averaged.state(["G_bg", "G_obj"]))
    t.begin_second()
    assert equal(t.model.state(["G_bg", "G_obj"]), kept)
    z = torch.randn((4096, 6), generator=torch.Generator().manual_seed(0))
    mean = torch.stack([g.styles(z)[:, 0, 0].mean(0) for g in (t.model.G_bg, t.model.G_obj)])
    codes = t.model.E(batch(size=16)["x"])
    assert codes.shape == (4, 2, 3, 2, 6)
    assert (codes - mean[:, None, None]).abs().max() < 0.1
    assert equal(t.model.E.stages.state_dict(), t.model.D.stages.state_dict())
    t.train_step(batch())
    assert t.averaged.ready and equal(t.averaged.state(["E"]), t.model.state(["E"]))  # the average of one
    assert t.averaged.polarity.excess.any() and equal(t.averaged.state(["polarity"]), t.model.state(["polarity"]))
    t.train_step(batch())
    assert equal(t.averaged.state(["G_bg", "G_obj"]), kept) and equal(t.model.state(["G_bg", "G_obj"]), kept)


def test_segment_pads_and_one_choice_turns_all_masks():
    t = trainer()
    for i in range(5):
        t.train_step(batch(seed=i))
    model, x = t.averaged, batch(3)["x"]
    m = model.regions(x)[:, 1:]
    model.polarity.excess.copy_(torch.tensor([0.2, -0.2]))
    assert torch.equal(model.segment(x), F.pad(1 - (1 - m), (2,) * 4))
    images = model.pictures(x, x.flip(0))
    model.polarity.excess.copy_(torch.tensor([-0.2, 0.2]))
    assert torch.equal(model.segment(x), F.pad(1 - m, (2,) * 4))  # the rim stays background
    turned = model.pictures(x, x.flip(0))
    assert [*images] == [*turned] == ["mask", "z", "x_hat", "rebuilt"]
    assert torch.equal(images["mask"] + turned["mask"], F.pad(torch.ones(3, 1, 16, 16), (2,) * 4))
    assert torch.equal(images["rebuilt"], turned["rebuilt"]) and not torch.equal(images["x_hat"], turned["x_hat"])
    for kind in ("x_hat", "rebuilt"):
        assert torch.equal(images[kind][..., :2], x[..., :2]) and images[kind].shape == x.shape
    assert torch.equal(images["z"], losses.paste(x, x.flip(0), images["mask"]))


@pytest.mark.parametrize("args,config", [(dict(wgan=True, mixing=0.5), dict(grow=True)),
                                         (dict(amp=True, ema=0.0), dict(size=36, resnet=True))])
def test_a_run_that_is_cut_after_each_step_is_the_same_to_the_bit(tmp_path, args, config):
    whole, cut = trainer(args, **config), trainer(args, **config)
    state = torch.get_rng_state()
    for i in range(8):  # the second stage begins with the fifth
        one = batch(seed=i, size=config.get("size", 20))
        whole.train_step(one)
        cut.train_step(one)
        assert i or torch.equal(torch.get_rng_state(), state)  # all noise is the trainer's own
        torch.save(cut.state_dict(), tmp_path / "state.pt")
        cut = trainer(args | {"seed": i}, **config)
        cut.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert equal(whole.state_dict(), cut.state_dict())
    assert equal(whole.averaged.state(), cut.averaged.state()) and cut.model.ready


def test_an_encoder_finds_the_masks_of_generated_images():
    """E alone, against four images that the generators made: the masks, which it never sees, come with them."""
    t = trainer(dict(lr_encoder=5e-3, ema=0.0), channels=16, channels_full=16, z_dim=16, first_steps=0)
    for generator, colour in ((t.model.G_bg, -0.7), (t.model.G_obj, 0.7)):  # or codes may swap what the layers show
        generator.outs["16"].bias.data[:3], generator.outs["16"].weight.data[:3] = colour, 0
    z = torch.randn((4, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        background, front, m = t.model.layers(t.model.G_bg.styles(z), t.model.G_obj.styles(z))
    x = F.pad(losses.paste(front, background, m), (2,) * 4)

    def iou():
        mine, its = t.model.regions(x)[:, 1:] >= 0.5, m >= 0.5
        return ((mine & its).sum() / (mine | its).sum()).item()

    t.train_step({"x": x})
    before = iou()
    for _ in range(60):
        t.train_step({"x": x})
    assert iou() > 0.7 > before + 0.4


@pytest.mark.parametrize("steps", [1, 5])
def test_images_do_not_depend_on_their_batch(steps):
    t = trainer(grow=True)
    for i in range(steps):
        t.train_step(batch(seed=i))
    x = batch(3)["x"]
    whole, one = t.averaged.pictures(x, None, seed=4), t.averaged.pictures(x[1:2], None, seed=4)
    assert ("mask" in whole) == (steps == 5)
    for kind, images in whole.items():
        assert images.shape[-2:] == (20, 20) and torch.allclose(images[1:2], one[kind], atol=1e-5), kind
    if steps == 1:
        assert not torch.equal(whole["sample"][0], whole["sample"][1])
        assert not torch.equal(whole["sample"], t.averaged.pictures(x, None, seed=5)["sample"])


# --- the commands ---

SMALL = ("--method perturbgan --gpu -1 --size 20 --channels 4 --channels_full 4 --z_dim 4 --mapping_layers 1 "
         "--batch_size 2 --num_threads 0 --first_epochs 1 --n_epochs 2 --print_freq 1 --display_freq 2 --val_freq 2")


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    demo.write_demo(root, counts={"train": {"objects": 8, "backgrounds": 3}, "test": {"objects": 3, "backgrounds": 2}})
    shutil.copytree(root / "test", root / "val")
    shutil.rmtree(root / "train" / "backgrounds")
    return root


@pytest.fixture
def run(dataroot, tmp_path, capsys):
    def run(line, main=train.main):
        argv = line.split() + ["--checkpoints_dir", str(tmp_path), "--dataroot", str(dataroot)]
        try:
            code = main(argv)
        except SystemExit as end:  # argparse
            code = end.code
        return code, capsys.readouterr()
    return run


@pytest.mark.parametrize("words", ["", "--grow --wgan --mixing 0.9 --no_diffaug", "--size 36 --resnet --ema 0"])
def test_a_run_has_both_stages_and_is_tested(run, tmp_path, words):
    code, out = run(f"--name a {SMALL} {words}")
    assert code == 0, out.err
    with open(tmp_path / "a" / "log.jsonl") as f:
        lines = [json.loads(line) for line in f]
    steps = {line["step"]: line for line in lines if "val_iou" not in line}
    assert "gan" in steps[4] and "rebuilt" not in steps[4] and "rebuilt" in steps[5] and "gan" not in steps[5]
    assert [line["step"] for line in lines if "val_iou" in line] == [6, 8]  # not before E has learned a step
    assert Image.open(tmp_path / "a" / "samples" / "0000002.png").width > 0
    assert isinstance(load_model(tmp_path / "a" / "best.pt"), PerturbGAN)
    code, out = run(f"--name a --results_dir {tmp_path / 'results'} --device cpu", evaluate_command.main)
    assert code == 0 and "nothing said what the object is" in out.out, out.err


def test_a_run_stops_and_goes_on_to_the_bit(run, tmp_path):
    assert run(f"--name whole {SMALL}")[0] == 0
    assert run(f"--name cut {SMALL} --max_minutes 0")[0] == 124
    code, out = run(f"--name cut --results_dir {tmp_path / 'results'} --device cpu", evaluate_command.main)
    assert code == 2 and "is of the first stage" in out.err and out.err.count("\n") == 1
    while (code := run("--name cut --resume --max_minutes 0")[0]) == 124:
        pass
    whole, cut = (load_checkpoint(tmp_path / name / "latest.pt") for name in ("whole", "cut"))
    assert code == 0 and all(equal(whole[key], cut[key]) for key in ("networks", "averaged", "rng", "opt_G", "opt_E"))


@pytest.mark.parametrize("words,told", [
    ("--size 24", "--size less twice --shift must be 8, 16, 32, ... px, got 24 and 2: 20"),
    ("--size 12 --shift 4", "got 12 and 4: 4"),
    ("--fake_shift 16", "--fake_shift 16 moves objects out of images of 16 px"),
    ("--resnet", "--resnet takes images of 32 px"),
    ("--first_epochs 2", "--first_epochs 2 of 2 epochs leave none for the encoder"),
])
def test_contradictions_are_told_in_one_line(run, words, told):
    code, out = run(f"--name a {SMALL} {words}")
    assert code == 2 and told in out.err and out.err.count("\n") == 1


def test_defaults_and_the_letter(tmp_path):
    args, _ = train_options.parse(f"--name a --method perturbgan --dataroot x --checkpoints_dir {tmp_path}".split())
    assert (args.size, args.shift, args.beta1, args.wgan, args.grow) == (36, 2, 0.0, False, False)
    assert perturbgan.problem(args) is None
    args, _ = train_options.parse(f"--name a --method perturbgan --paper --dataroot x --checkpoints_dir {tmp_path} "
                                  "--no-grow".split())
    assert (args.size, args.fake_shift, args.z_dim, args.wgan, args.grow, args.mixing) == (72, 8, 512, True, False, 0.9)
    assert perturbgan.problem(args) is None and args.first_epochs < args.n_epochs + args.n_epochs_decay


def test_a_checkpoint_that_asks_for_other_sides_is_told_in_one_line(run, tmp_path):
    run(f"--name a {SMALL}")
    state = load_checkpoint(tmp_path / "a" / "latest.pt")
    torch.save(state | {"config": state["config"] | {"shift": 3}}, tmp_path / "a" / "latest.pt")
    code, out = run(f"--name a --results_dir {tmp_path / 'results'} --device cpu", evaluate_command.main)
    assert code == 2 and "images must be 8, 16, 32, ... px, got 14" in out.err and out.err.count("\n") == 1
