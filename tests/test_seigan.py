"""The model: fused calls against separate ones, every term against the paper, what each term moves, resuming.

Long, since all sections use the tiny models and the batches of the helpers at the top.
"""
import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import equal

import crf
import losses
import seigan
from baselines import boxes, nocycle, supervised
from benchmarks.literal import LiteralTrainer, literal_swap, literal_terms
from networks import box_mask, fixed_noise, grow
from running.checkpoint import load_checkpoint, load_model, save_checkpoint
from seigan import LAMBDAS, NO_VGG, SEIGAN, Trainer

BOX = (0.125, 0.125, 0.75, 0.75)
TINY = dict(size=16, ngf=4, ndf=4, n_layers_D=2, seg_blocks=1, unet_downs=2, head_bias=0.0, box=BOX)


MODELS = {"seigan": SEIGAN, "nocycle": nocycle.NoCycle, "supervised": supervised.Supervised, "boxes": boxes.Boxes}


def tiny(seed=0, vgg_state=None, method="seigan", **options):
    torch.manual_seed(seed)
    vgg_lambdas = dict.fromkeys(seigan.VGG_TERMS, 1.0 if vgg_state else 0.0)
    model = MODELS[method](**TINY | {"lambdas": vgg_lambdas} | options, vgg_state=vgg_state)
    for net in model.networks(model.GENERATORS).values():  # away from the identity, so that no term is nearly 0
        for p in net.parameters():
            p.data += 0.05 * torch.randn_like(p)
    return model


def trainer_of(model, **options):
    """The trainer that fits the model."""
    if isinstance(model, supervised.Supervised):
        trainer = (boxes if isinstance(model, boxes.Boxes) else supervised).Trainer(model, **{"lr": 1e-3} | options)
        trainer.teacher = crf.teach
        return trainer
    return Trainer(model, **options)


def batch_of(x, y, box=(BOX, BOX), mask=None):
    return {"x": x, "y": y, "box": torch.tensor(box[:1] * len(x) if len(box) != len(x) else box),
            "mask": torch.ones_like(x[:, :1]) if mask is None else mask}


def images(n=2, seed=1, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return [(torch.rand(n, 3, 16, 16, generator=rng) * 1.6 - 0.8).to(dtype) for _ in range(2)]


# --- the swaps ---


def test_fused_calls_equal_separate_calls():
    model = tiny(head_bias=0.0).double()  # with masks on both sides of ½
    x, y = images(3, dtype=torch.double)
    fused = model.swap(x, y, rng=torch.Generator().manual_seed(5))
    assert 0 < fused.hole.mean() < 1
    for name, expected in literal_swap(model, x, y, torch.Generator().manual_seed(5), BOX).items():
        where = fused.hole if name == "y_fill" else 1.0  # elsewhere nothing is asked of it
        assert torch.allclose(where * getattr(fused, name), where * expected, atol=1e-12), name


def test_swap_makes_six_generator_calls():
    model, calls = tiny(), []
    for name in SEIGAN.GENERATORS:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    model.swap(*images())
    assert sorted(calls) == ["G_enh"] * 2 + ["G_inp"] * 2 + ["G_seg"] * 2


def test_the_hole_in_y_is_the_objects_too():
    """The first U-Net learns where its answer is known: what lies under a hole of the object's shape."""
    model = tiny().double()
    x, y = images(dtype=torch.double)
    s = model.swap(x, y, rng=torch.Generator().manual_seed(5))
    inside = (s.m >= 0.5).expand_as(y)
    assert inside.any() and not inside.all() and torch.equal(s.hole, (s.m >= 0.5).double())
    expected = (s.y_fill - s.y_near).abs()[inside].sum() / y.numel()
    assert model.generator_losses(x, y, s)["fill"].item() == pytest.approx(expected.item())
    rng = torch.Generator().manual_seed(5)
    torch.randn((12, 1, 16, 16), generator=rng, dtype=torch.double)
    assert torch.equal(s.y_near, losses.zoom(y, rng)) and torch.equal(s.z, losses.paste(x, y, s.m))
    y = s.y_near
    other = torch.where(inside, -y, y)  # what is in the hole does not reach G_inp, nor G_seg beyond its field
    noise, cut = torch.zeros_like(x[:, :1]), (1 - s.hole) * other
    assert torch.equal(cut, (1 - s.hole) * y)
    assert torch.equal(model.G_inp(cut, s.hole, noise)[1], model.G_inp((1 - s.hole) * y, s.hole, noise)[1])
    without = tiny(lambdas=NO_VGG | {"fill": 0.0}).double()
    m_y = without.mask(y, without.boxes(None, 2))
    y_id = without.swap(x, y, rng=torch.Generator().manual_seed(5)).y_id
    noise = torch.randn((12, 1, 16, 16), generator=torch.Generator().manual_seed(5), dtype=torch.double)[6:8]
    assert torch.allclose(y_id, without.G_inp((1 - m_y) * y, m_y, noise)[0])  # the paper's: G_seg(y) alone


def test_coarse_paste_by_hand():
    x, y = torch.full((1, 3, 1, 2), 1.0), torch.full((1, 3, 1, 2), -1.0)
    assert losses.paste(x, y, torch.tensor([[[[1.0, 0.25]]]]))[0, 0, 0].tolist() == [1.0, -0.5]


def test_box_mask_by_hand():
    # columns 1 to 2.5 of 4, rows 0 to 2 of 4
    mask = box_mask(torch.tensor([[0.25, 0.0, 0.375, 0.5]]), 4, 4)
    assert mask[0, 0].tolist() == [[0, 1, 0.5, 0]] * 2 + [[0, 0, 0, 0]] * 2
    # grown by 2 about the centre: a box over the middle half becomes everything
    assert box_mask(torch.tensor([[0.25, 0.25, 0.5, 0.5]]), 4, 4, grow=2.0).eq(1).all()


def test_box_prior_keeps_the_mask_in_the_box():
    model = tiny(head_bias=9.0)
    x, _ = images()
    inside = box_mask(torch.tensor([BOX] * 2), 16, 16, 1.1)
    assert model.segment(x)[inside == 0].eq(0).all()
    assert model.segment(x)[inside == 1].gt(0.5).all()
    assert tiny(head_bias=9.0, box_prior=0).segment(x).gt(0.5).all()


# --- losses ---


def test_generator_terms_equal_the_paper(vgg19_state):
    model = tiny(vgg_state=vgg19_state).double()
    x, y = images(dtype=torch.double)
    s = model.swap(x, y, rng=torch.Generator().manual_seed(5))
    terms = model.generator_losses(x, y, s)
    swap = literal_swap(model, x, y, torch.Generator().manual_seed(5), BOX)
    expected = literal_terms(model, x, y, swap)
    assert [k for k in LAMBDAS if k != "teach"] == list(expected) and set(terms) == set(expected)
    for name in expected:
        assert terms[name].item() == pytest.approx(expected[name].item(), rel=1e-5), name


def test_discriminator_terms_equal_the_paper():
    model = tiny().double()
    rng = torch.Generator().manual_seed(2)
    x, y, y_hat, z, x_hat, y_hat2 = torch.rand(6, 2, 3, 16, 16, generator=rng, dtype=torch.double)
    terms = model.discriminator_losses(x, y, dict(y_hat=y_hat, z=z, x_hat=x_hat, y_hat2=y_hat2))
    d = model.D_obj
    assert terms["D_obj"].item() == pytest.approx(
        ((1 - d(x)) ** 2 + 0.5 * d(y_hat) ** 2 + 0.5 * d(z) ** 2).mean().item())
    d = model.D_bg
    assert terms["D_bg"].item() == pytest.approx(
        ((1 - d(y)) ** 2 + 0.5 * d(x_hat) ** 2 + 0.5 * d(y_hat2) ** 2).mean().item())


OWNERS = {
    "inp": {"G_seg", "G_inp"},
    "inp2": {"G_seg", "G_enh", "G_inp"},
    "bg_texture": {"G_seg", "G_enh", "G_inp"},
    "bg_perc": {"G_seg", "G_enh", "G_inp"},
    "bg_mae": {"G_seg", "G_enh", "G_inp"},
    "obj_perc": {"G_seg", "G_enh", "G_inp"},
    "obj_mae": {"G_seg", "G_enh", "G_inp"},
    "coarse": {"G_seg"},
    "enh": {"G_seg", "G_enh"},
    "id_obj": {"G_enh"},
    "id_bg": {"G_seg", "G_inp"},
    "teach": {"G_seg"},
    "fill": {"G_inp"},
}


@pytest.mark.parametrize("term", LAMBDAS)
def test_which_networks_a_term_moves(term, vgg19_state):
    model = tiny(vgg_state=vgg19_state)
    x, y = images()
    trainer, box = trainer_of(model), torch.tensor([BOX] * 2)
    trainer.teacher = crf.teach
    terms = model.generator_losses(x, y, model.swap(x, y, box, trainer.rng)) | trainer.taught(x, y, box)[1]
    model.zero_grad()
    terms[term].backward()
    moved = {name for name in SEIGAN.GENERATORS if any(p.grad is not None and p.grad.abs().sum() > 0
                                                for p in model.get_submodule(name).parameters())}
    assert moved == OWNERS[term]


def test_total_is_the_weighted_sum_and_only_weighted_terms_are_computed():
    lambdas = {"inp": 1.5, "inp2": 0.0, "bg_mae": 7.0, "id_bg": 0.5}
    trainer = Trainer(tiny(lambdas=dict.fromkeys(LAMBDAS, 0.0) | lambdas))
    log = trainer.train_step(batch_of(*images()))
    assert set(log) == {"inp", "bg_mae", "id_bg", "total", "D_obj", "D_bg", "mask_area", "mask_contrast", "mask_fill",
                        "mask_spread", "skipped"}
    assert log["total"].item() == pytest.approx(sum(lambdas[k] * log[k].item() for k in ("inp", "bg_mae", "id_bg")))


def test_defaults_name_every_lambda_once():
    assert list(LAMBDAS) == ["inp", "inp2", "bg_texture", "bg_perc", "bg_mae", "obj_perc", "obj_mae", "coarse", "enh",
                             "id_obj", "id_bg", "teach", "fill"]  # λ1..λ11, and ours
    assert SEIGAN(**TINY, lambdas={"enh": 7.0}).lambdas == LAMBDAS | {"enh": 7.0}
    with pytest.raises(ValueError, match="unknown loss terms .*bg_ssim"):
        SEIGAN(**TINY, lambdas={"bg_ssim": 1.0})


def test_vgg_lambda_without_weights():
    with pytest.raises(ValueError, match="bg_perc .*VGG-19"):
        SEIGAN(**TINY, lambdas={"bg_perc": 1.0})


# --- augmentation of what the discriminators see ---


def test_augmentation_shifts_and_changes_colours():
    """On a picture that holds its own coordinates: each image moved as a whole, by at most an eighth."""
    height, width = 16, 24
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows.double() / height, cols.double() / width, 0.0 * rows]).expand(200, 3, height, width)
    out = losses.augment(image, torch.Generator().manual_seed(0))
    shifts = set()
    for after in out:
        inside = after[:, 2:-2, 3:-3]  # what cannot have come from beyond the border
        for dim in (1, 2):  # the same affine map of colours everywhere: evenly spaced values stay so
            assert inside.diff(n=2, dim=dim).abs().max() < 1e-12
        row = inside[0] - inside[2]  # rises with the row that a pixel came from, from 0 in row 0
        shifts.add(round((row[0, 0] / (row[1, 0] - row[0, 0])).item()) - 2)
    assert shifts == {-2, -1, 0, 1, 2}
    assert not torch.allclose(out[0], out[1])


def test_augmentation_statistics_and_gradient():
    image = torch.zeros(4000, 3, 8, 8, dtype=torch.double, requires_grad=True)
    out = losses.augment(image, torch.Generator().manual_seed(0))
    level = out[:, 0, 4, 4]  # of a grey picture: its brightness, uniform in [-½, ½]
    assert abs(level.mean()) < 4 * (1 / 12) ** 0.5 / 4000**0.5 and -0.5 <= level.min() and level.max() <= 0.5
    out.sum().backward()
    assert (image.grad != 0).any((1, 2, 3)).all()


def test_other_views_are_in_other_colours_and_half_of_the_objects_on_other_grounds():
    rng = torch.Generator().manual_seed(4)
    x, y = torch.rand((2, 400, 3, 6, 8), generator=rng, dtype=torch.double) * 2 - 1
    mask = torch.rand((400, 1, 6, 8), generator=rng, dtype=torch.double)
    mask[0], mask[1, :, 0] = 0.5, 0.5
    rng.manual_seed(5)
    out = losses.views(x, y, mask, rng)
    rng.manual_seed(5)
    on_y = torch.rand(400, generator=rng) < 0.5
    expected = x.clone()
    for i in on_y.nonzero().flatten():
        ground = mask[i, 0] < 0.5
        expected[i][:, ground] = y[i][:, ground]
    assert torch.equal(out, losses.recolour(expected, rng)) and 160 < on_y.sum() < 240
    assert torch.equal(expected[0], x[0])  # nothing known of the object: the image as it is


def test_zoom_shows_a_window_in_full_size():
    """On a picture that holds its own coordinates, from 0 to 1 in each direction."""
    rows, cols = torch.meshgrid(torch.linspace(0, 1, 16).double(), torch.linspace(0, 1, 24).double(), indexing="ij")
    image = torch.stack([rows, cols, 0 * rows + 0.3]).expand(500, 3, 16, 24)
    out = losses.zoom(image, torch.Generator().manual_seed(0))
    top, left, side = out[:, 0, 0, 0], out[:, 1, 0, 0], out[:, 0, -1, 0] - out[:, 0, 0, 0]
    assert torch.allclose(out[:, 0], top.view(-1, 1, 1) + side.view(-1, 1, 1) * rows)
    assert torch.allclose(out[:, 1], left.view(-1, 1, 1) + side.view(-1, 1, 1) * cols)  # as high as wide
    assert torch.allclose(out[:, 2], image[:, 2])  # nothing from beyond the image
    assert 0.5 <= side.min() < 0.51 and 0.99 < side.max() <= 1
    single = losses.zoom(image.float(), torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(losses.zoom(image.float(), torch.Generator().manual_seed(0)), single)
    for start in (top, left):
        share = (start / (1 - side))[side < 0.95]
        assert -1e-9 <= share.min() < 0.02 and 0.98 < share.max() <= 1 + 1e-9 and abs(share.mean() - 0.5) < 0.05


def test_discriminators_see_augmented_images_in_both_steps():
    seen = {}
    for diffaug in (True, False):
        trainer = Trainer(tiny(), diffaug=diffaug)
        batches = seen[diffaug] = []
        trainer.model.D_obj.register_forward_hook(lambda _, args, __, batches=batches: batches.append(args[0]))
        x, y = images()
        trainer.train_step(batch_of(x, y))
        assert torch.equal(batches[1][:2], x) != diffaug
    assert not torch.equal(seen[True][0], seen[False][0])


# --- the step ---


def step_moves(trainer, monkeypatch, skip):
    """Names of the networks that a step changes when the optimiser `skip` does not act."""
    before = {k: copy.deepcopy(v) for k, v in trainer.model.state().items()}
    if skip:
        monkeypatch.setattr(skip, "step", lambda: None)
    trainer.train_step(batch_of(*images(), mask=torch.rand(2, 1, 16, 16).round()))
    after = trainer.model.state()
    return {k for k in before if any(not torch.equal(before[k][p], after[k][p]) for p in before[k])}


@pytest.mark.parametrize("method,generators,discriminators", [
    ("seigan", {"G_seg", "G_enh", "G_inp"}, {"D_obj", "D_bg"}),
    ("nocycle", {"G_seg", "G_enh"}, {"D_obj"}),
    ("supervised", {"G_seg"}, set()),
    ("boxes", {"G_seg"}, set()),
])
def test_each_optimiser_moves_its_own_networks(method, generators, discriminators, monkeypatch):
    trainer = trainer_of(tiny(method=method))
    assert step_moves(trainer, monkeypatch, getattr(trainer, "opt_D", None)) == generators
    trainer = trainer_of(tiny(method=method))
    assert step_moves(trainer, monkeypatch, trainer.opt_G) == discriminators


def test_generator_step_leaves_no_gradient_in_the_discriminators(monkeypatch):
    trainer = Trainer(tiny())
    seen = []
    monkeypatch.setattr(trainer.opt_G, "step", lambda: seen.extend(
        p.grad for p in [*trainer.model.D_obj.parameters(), *trainer.model.D_bg.parameters()]))
    trainer.train_step(batch_of(*images()))
    assert seen and all(grad is None for grad in seen)


def test_discriminators_see_the_pools():
    """The discriminators' loss is on what the pools return: with full pools, on older fakes too."""
    trainer = Trainer(tiny(), pool_size=1, diffaug=False)
    seen = []
    trainer.model.D_obj.register_forward_hook(lambda _, args, __: seen.append(args[0].detach()))
    x, y = images(n=1)
    for _ in range(12):
        trainer.train_step(batch_of(x, y))
    generator_calls, discriminator_calls = seen[0::2], seen[1::2]
    older = 0
    for now, (fakes, batch) in enumerate(zip(generator_calls, discriminator_calls, strict=True)):
        assert torch.equal(batch[0], x[0])
        z, earlier = batch[2], [f[0] for f in generator_calls[:now]]
        older += any(torch.equal(z, e) for e in earlier)
        assert torch.equal(z, fakes[0]) or any(torch.equal(z, e) for e in earlier)
    assert 0 < older < 12


@pytest.mark.parametrize("diffaug", [False, True])
@pytest.mark.parametrize("vgg,steps", [(False, 3), (True, 1)])
def test_steps_equal_literal_steps(diffaug, vgg, steps, vgg19_state):
    """The same terms and weights as with separate calls and a plain Adam, pools in use."""
    # in float64: where a gradient is 0 but for rounding, as a bias's before a normalisation, Adam scales that up
    options = dict(pool_size=2, diffaug=diffaug, lr=1e-3, ema=0.0)
    trainer, other = (Trainer(tiny(vgg_state=vgg19_state if vgg else None).double(), **options) for _ in range(2))
    literal = LiteralTrainer(other)
    for i in range(steps):
        x, y = images(seed=i, dtype=torch.double)
        log = trainer.train_step(batch_of(x, y))
        for name, value in literal.train_step(batch_of(x, y)).items():
            assert log[name].item() == pytest.approx(value, rel=1e-5), name
    for name, p in trainer.model.named_parameters():
        assert torch.allclose(p, literal.model.get_parameter(name), atol=1e-5), name


def test_learning_rates():
    trainer = Trainer(tiny(), lr=1e-3, lr_seg=0.25)
    trainer.train_step(batch_of(*images()), lr_factor=0.5)
    assert [g["lr"] for g in trainer.opt_G.param_groups] == [1.25e-4, 5e-4]
    assert [g["lr"] for g in trainer.opt_D.param_groups] == [5e-4]


def test_averaged_generators():
    trainer = Trainer(tiny(), ema=0.25)
    p, average = trainer.model.G_seg.head.weight, trainer.averaged.G_seg.head.weight
    history = []
    for _ in range(5):
        trainer.train_step(batch_of(*images()))
        history.append(p.detach().double().clone())
    # the factors (1 - 1/i)³ of all later steps multiply to (i/t)³, so that of t = 5 the i-th counts (i³ - (i-1)³) / t³
    shares = [(i**3 - (i - 1) ** 3) / 5**3 for i in range(1, 6)]
    expected = sum(share * weight for share, weight in zip(shares, history, strict=True))
    assert torch.allclose(average.double(), expected, atol=1e-7)
    assert trainer.averaged.D_obj is trainer.model.D_obj


@pytest.mark.parametrize("ema", [0.05, 0.2, 0.5])
def test_the_average_s_mean_age_is_the_share_of_the_steps(ema):
    trainer, steps = Trainer(tiny(), ema=ema), 2000
    weight, average = trainer.model.G_seg.head.bias, trainer.averaged.G_seg.head.bias
    for trainer.step in range(1, steps + 1):
        weight.data.fill_(trainer.step)  # so that the average of the weights is that of their steps
        losses.average(trainer.averaged.G_seg, trainer.model.G_seg, trainer.step, ema)
    assert steps - average.item() == pytest.approx(ema * steps, rel=0.01)


def test_no_average():
    with pytest.raises(ValueError, match="ema must be from 0 to 0.5, got 0.999"):
        Trainer(tiny(), ema=0.999)
    plain = Trainer(tiny(), ema=0.0)
    assert plain.averaged is plain.model


@pytest.mark.parametrize("backgrounds", [True, False])
def test_supervised_loss_is_cross_entropy_where_the_truth_is_known(backgrounds):
    x, y = images()
    mask = torch.rand(2, 1, 16, 16).round()
    for rows in (0, 8):  # that are void
        mask[:, :, :rows] = 0.5
        model, batch = tiny(method="supervised"), batch_of(x, y, mask=mask)
        if not backgrounds:
            del batch["y"]
        m = model.segment(losses.views(x, batch.get("y"), mask, torch.Generator().manual_seed(0)))
        expected = F.binary_cross_entropy(m[:, :, rows:], mask[:, :, rows:]).item()
        assert trainer_of(model).train_step(batch)["bce"].item() == pytest.approx(expected)


def run_steps(trainer, start, stop):
    for i in range(start, stop):
        trainer.train_step(batch_of(*images(seed=i)), lr_factor=1 - i / 20)


def test_four_and_four_steps_are_eight(tmp_path):
    whole = Trainer(tiny(), pool_size=3)
    run_steps(whole, 0, 8)
    first = Trainer(tiny(), pool_size=3)
    run_steps(first, 0, 4)
    save_checkpoint(tmp_path / "latest.pt", {"method": "seigan", "config": first.model.config, **first.state_dict()})
    second = Trainer(tiny(seed=9), pool_size=3, seed=9)
    second.load_state_dict(load_checkpoint(tmp_path / "latest.pt"))
    run_steps(second, 4, 8)
    assert equal(whole.state_dict(), second.state_dict())


def test_a_state_from_another_kind_of_device():
    """A CUDA generator's state is of another size: the noise begins anew, the same each time."""
    state = Trainer(tiny()).state_dict() | {"rng": torch.zeros(16, dtype=torch.uint8), "step": 7}
    draws = []
    for _ in range(2):
        trainer = Trainer(tiny(), seed=3)
        trainer.load_state_dict(state)
        draws.append(torch.rand(4, generator=trainer.rng))
    assert torch.equal(*draws)


@pytest.mark.parametrize("poison", ["generators", "discriminators", "supervised"])
def test_a_step_that_is_not_finite_changes_nothing(poison, monkeypatch):
    """No weight, no moment of Adam, no average; the pools hold no NaN; and the next step trains again."""
    method = "supervised" if poison == "supervised" else "seigan"
    options = {"lambdas": NO_VGG} if method == "seigan" else {}
    trainer = trainer_of(tiny(method=method, **options))
    batch = batch_of(*images(), mask=(images()[0][:, :1] > 0).float())
    trainer.train_step(batch)
    before = copy.deepcopy({k: v for k, v in trainer.state_dict().items() if k not in ("step", "rng", "pools")})
    with monkeypatch.context() as patched:
        name = {"generators": "gan_generator", "discriminators": "gan_discriminator"}.get(poison)
        if name:
            patched.setattr(losses, name, lambda *scores: sum(s.mean() for s in scores) * float("nan"))
        else:
            patched.setattr(losses, "cross_entropy", lambda m, mask: m.mean() / 0)
        log = trainer.train_step(batch)
    assert log["skipped"] == 1 and trainer.step == 2
    after = trainer.state_dict()
    if poison == "discriminators":  # the generators' update came before; the discriminators' alone is left out
        before = {k: v for k, v in before.items() if k == "opt_D"} | {
            "networks": {k: v for k, v in before["networks"].items() if k.startswith("D_")}}
        after = {**after, "networks": {k: v for k, v in after["networks"].items() if k.startswith("D_")}}
    assert all(equal(before[k], after[k]) for k in before)
    assert all(torch.isfinite(pool["images"]).all() for pool in after.get("pools", {}).values())
    assert trainer.train_step(batch)["skipped"] == 0
    assert not equal(before["networks"], trainer.state_dict()["networks"])


def test_an_infinite_gradient_is_not_applied():
    trainer = Trainer(tiny(lambdas=NO_VGG))
    weight = trainer.model.G_seg.head.weight
    weight.register_hook(lambda grad: grad.fill_(float("inf")))
    before = copy.deepcopy(trainer.state_dict()["networks"])
    log = trainer.train_step(batch_of(*images()))
    assert log["skipped"] == 1 and torch.isfinite(log["total"])
    assert equal(before, trainer.state_dict()["networks"])


def test_mask_figures_by_hand():
    m = torch.tensor([[[[1.0, 0.6], [0.4, 0.0]]], [[[1.0, 0.2], [0.4, 0.0]]]])
    allowed = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]]).expand(2, -1, -1, -1)
    figures = losses.mask_figures(m, allowed)
    assert figures["mask_area"] == pytest.approx(3.6 / 8)
    assert figures["mask_contrast"] == pytest.approx(2 * (0.5 + 0.1 + 0.5 + 0.3) / 4, abs=1e-6)
    assert figures["mask_fill"] == pytest.approx(3 / 4)  # 1, .6 and 1 of four allowed pixels
    assert figures["mask_spread"] == pytest.approx(0.4 / 2**0.5 / 2)  # one pixel of two differs: .6 and .2
    assert torch.isnan(losses.mask_figures(m[:1], allowed[:1])["mask_spread"])


def test_one_batch_is_learned_and_the_mask_does_not_collapse():
    """A bright square on a dark ground, a dark background: supervised by nothing but the adversary and the cycle."""
    torch.manual_seed(0)
    model = SEIGAN(**TINY | {"head_bias": -2.0, "ngf": 8, "ndf": 8})
    trainer = Trainer(model, lr=1e-3, lr_seg=1.0)
    x, y = torch.full((4, 3, 16, 16), -0.5), torch.full((4, 3, 16, 16), -0.5)
    x[:, :, 4:12, 4:12] = 0.7
    logs = [trainer.train_step(batch_of(x, y)) for _ in range(150)]
    for term in ("obj_mae", "bg_mae"):  # over 60 steps: single ones jump, and differ with the number of threads
        assert sum(log[term] for log in logs[-60:]) / 60 < 0.7 * logs[0][term]
    assert 0.05 < logs[-1]["mask_area"] < 0.6


# --- use from other code ---


def saved(tmp_path, method="seigan", **options):
    trainer = trainer_of(tiny(method=method, **options))
    run_steps(trainer, 0, 2)
    save_checkpoint(tmp_path / "latest.pt", {"method": method, "config": trainer.model.config, **trainer.state_dict()})
    return trainer, load_model(tmp_path / "latest.pt")


def test_loaded_model_is_the_averaged_one(tmp_path):
    trainer, model = saved(tmp_path)
    x, y = images()
    assert torch.equal(model.segment(x), trainer.averaged.segment(x))
    assert not torch.equal(model.segment(x), trainer.model.segment(x))
    assert model.config["box"] == list(BOX) and not model.training


def test_a_loaded_model_keeps_its_lambdas_but_those_that_need_vgg(tmp_path):
    _, model = saved(tmp_path, lambdas=NO_VGG | {"coarse": 0.7})
    assert model.config["lambdas"] == LAMBDAS | NO_VGG | {"coarse": 0.7}


def test_segment_paste_remove(tmp_path):
    _, model = saved(tmp_path)
    x, y = images(3)
    m, y_hat, x_hat = model.segment(x), model.paste(x, y), model.remove(x)
    assert m.shape == (3, 1, 16, 16) and y_hat.shape == x_hat.shape == x.shape
    noise = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1, -1)
    assert torch.equal(y_hat, model.G_enh(m * x + (1 - m) * y, noise))
    hole = F.max_pool2d(m, 3, 1, 1)  # a pixel more in each direction
    assert torch.equal(x_hat, model.G_inp((1 - hole) * x, hole, noise)[0])
    assert torch.equal(x_hat, model.inpaint(x, hole)) and not torch.equal(x_hat, model.inpaint(x, m))
    assert torch.allclose(model.paste(x[1:2], y[1:2]), y_hat[1:2], atol=1e-6)  # whatever the batch
    assert not torch.equal(model.remove(x, seed=1), x_hat)


def test_pictures_are_those_of_segment_paste_and_remove(tmp_path):
    _, model = saved(tmp_path)
    x, y = images(3)
    pictures = model.pictures(x, y, seed=4)
    assert list(pictures) == ["mask", "z", "y_hat", "x_hat", "m_hat", "x_hat2", "y_hat2"]
    m, m_hat = model.segment(x), model.segment(pictures["y_hat"])
    y_hat, x_hat, noise = model.paste(x, y, seed=4), model.remove(x, seed=4), fixed_noise(x, 4)
    expected = {"mask": m, "z": m * x + (1 - m) * y, "y_hat": y_hat, "x_hat": x_hat, "m_hat": m_hat,
                "x_hat2": model.G_enh(m_hat * y_hat + (1 - m_hat) * x_hat, noise),
                "y_hat2": model.inpaint(y_hat, grow(m_hat, 1), seed=4)}
    assert equal(pictures, expected)
    assert model.scores(pictures)["d_bg_x_hat"][1] == model.D_bg(x_hat)[1].mean()


@pytest.mark.parametrize("method,made,lacks", [
    ("nocycle", ["mask", "z", "y_hat"], ["inpaint", "remove"]),
    ("supervised", ["mask", "z"], ["enhance", "inpaint", "paste", "remove", "scores"])])
def test_what_the_baselines_can_do(tmp_path, method, made, lacks):
    _, model = saved(tmp_path, method=method)
    assert list(model.pictures(*images())) == made
    assert all(getattr(model, name) is None for name in lacks)
    assert model.networks().keys() == {"nocycle": {"G_seg", "G_enh", "D_obj"}, "supervised": {"G_seg"}}[method]


def test_a_loaded_file_alone(tmp_path):
    """`SEIGAN.load` needs nothing but the file."""
    _, model = saved(tmp_path)
    x, _ = images()
    assert torch.equal(SEIGAN.load(tmp_path / "latest.pt").segment(x), model.segment(x))


def test_one_box_for_all_or_one_each():
    model, (x, _) = tiny(head_bias=9.0), images()
    other = (0.0, 0.0, 0.5, 0.5)
    each = model.segment(x, torch.tensor([BOX, other]))
    assert torch.equal(each[:1], model.segment(x[:1], BOX)) and torch.equal(each[1:], model.segment(x[1:], other))


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*none.pt: train first"):
        load_model(tmp_path / "none.pt")


def test_discriminators_too_deep_for_the_size():
    with pytest.raises(ValueError, match="size 16 is too small for the discriminators, which need 48 px"):
        SEIGAN(**TINY | {"n_layers_D": 4})


class Malice:
    def __reduce__(self):
        import os
        return os.system, ("touch executed",)


def test_what_is_no_checkpoint_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path)
    whole = (tmp_path / "latest.pt").read_bytes()
    (tmp_path / "short.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"format": 2, "networks": Malice()}, tmp_path / "malice.pt")
    torch.save({"format": 2, "networks": {}, "weights": torch.zeros(1)}, tmp_path / "foreign.pt")
    for name in ("short", "text", "empty", "malice", "foreign"):
        with pytest.raises(ValueError, match=f"{name}.pt is (damaged or no checkpoint|not a checkpoint of format 2)"):
            load_model(tmp_path / f"{name}.pt")
    assert not (tmp_path / "executed").exists()


def test_a_failed_save_keeps_the_checkpoint_before_it(tmp_path):
    saved(tmp_path)
    before = (tmp_path / "latest.pt").read_bytes()
    (tmp_path / ".latest.pt.part").mkdir()  # nothing can be written there
    with pytest.raises(OSError, match="cannot write .*latest.pt .*the one before it is kept"):
        save_checkpoint(tmp_path / "latest.pt", {})
    assert (tmp_path / "latest.pt").read_bytes() == before


# --- bfloat16 ---


def test_bfloat16_changes_the_terms_little_and_no_weight_s_type(vgg19_state):
    logs = {}
    for amp in (False, True):
        trainer = Trainer(tiny(vgg_state=vgg19_state), amp=amp, diffaug=False)
        logs[amp] = trainer.train_step(batch_of(*images()))
        assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
        assert all(v.dtype == torch.float32 for v in logs[amp].values())
        assert trainer.pools["y_hat"].images.dtype == torch.float32
    terms = [k for k in LAMBDAS if k != "teach"]  # of which there is no teacher
    assert any(logs[True][k] != logs[False][k] for k in terms)  # it was on
    for name in (*terms, "total", "D_obj", "D_bg"):
        assert logs[True][name] == pytest.approx(logs[False][name].item(), rel=0.05), name


@pytest.mark.parametrize("direct", [False, True])
def test_pictures_and_masks_stay_in_float32(direct):
    model, (x, y) = tiny(enh_direct=direct), images()
    with torch.autocast("cpu", torch.bfloat16):
        swap = model.swap(x, y, torch.tensor([BOX] * 2))
    assert {v.dtype for v in swap} == {torch.float32}


def test_gram_matrices_are_not_rounded_to_bfloat16():
    features = torch.randn(1, 8, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = losses.gram(features)
    assert rounded.dtype == torch.float32 and torch.equal(rounded, losses.gram(features))


# --- the box teacher ---


def test_the_teacher_is_asked_of_the_box_first_then_of_the_average_and_moves_g_seg_alone():
    trainer, asked = Trainer(tiny(lambdas=dict.fromkeys(LAMBDAS, 0.0) | {"teach": 2.0})), []

    def teacher(x, box, m):
        asked.append(m)
        return torch.ones_like(x[:, :1])

    trainer.teacher = teacher
    before = copy.deepcopy(trainer.model.state())
    x, y = images()
    for trainer.step in (0, 99, 100):
        expected = trainer.averaged.segment(x, torch.tensor([BOX] * 2))
        log = trainer.train_step(batch_of(x, y))
    assert asked[:2] == [None, None] and torch.equal(asked[2], expected)
    assert log["total"] == 2 * log["teach"]
    after = trainer.model.state()
    moved = {k for k in before if not k.startswith("D_") and not equal(before[k], after[k])}
    assert moved == {"G_seg"}


def test_at_first_only_what_needs_no_adversary_is_learned():
    """A warm step: G_seg from the teacher, G_inp's first U-Net from a hole of the mask's shape in y; then the loop."""
    trainer, (x, y), box = Trainer(tiny().double(), warm_steps=1), images(dtype=torch.double), torch.tensor([BOX] * 2)
    label = (x[:, :1] > 0).double()
    trainer.teacher = lambda x, box, m: label
    rng, model = torch.Generator(), trainer.model
    rng.set_state(trainer.rng.get_state())
    with torch.no_grad():
        model.G_seg.head.bias.fill_(0.0)  # so that some of the mask is object
        m = model.mask(losses.views(x, y, label, rng), box)
        hole = (m >= 0.5).double()
        part = losses.zoom(y, rng)
        noise = torch.randn((2, 1, 16, 16), generator=rng, dtype=torch.double)
        first = model.G_inp((1 - hole) * part, hole, noise)[1]
        fill = ((first - part).abs() * hole).mean()
    before = copy.deepcopy(model.state())
    log = trainer.train_step(batch_of(x, y))
    assert {"teach", "fill", "total"} == {k for k in log if k in (*LAMBDAS, "total", "D_obj", "D_bg")}
    assert 0 < hole.mean() < 1 and log["fill"].item() == pytest.approx(fill.item(), rel=1e-9)
    assert log["total"].item() == pytest.approx(30 * log["teach"].item() + 15 * log["fill"].item())
    moved = {f"{name}.{key.split('.')[0]}" for name, net in model.state().items() for key in net
             if not torch.equal(net[key], before[name][key])}
    assert {name.split(".")[0] for name in moved} == {"G_seg", "G_inp"}
    assert {name for name in moved if name.startswith("G_inp")} == {"G_inp.first"}
    assert not any(len(pool.state_dict()["images"]) for pool in trainer.pools.values())
    assert "D_bg" in trainer.train_step(batch_of(x, y)) and trainer.step == 2


def test_without_a_teacher_no_step_is_warm():
    trainer = Trainer(tiny(), warm_steps=5)
    assert "D_bg" in trainer.train_step(batch_of(*images()))
    trainer = Trainer(tiny(lambdas={"teach": 0.0}), warm_steps=5)
    trainer.teacher = lambda x, box, m: 1 / 0
    assert "D_bg" in trainer.train_step(batch_of(*images()))


def test_the_teacher_s_term_is_the_cross_entropy_of_masks_of_other_views_of_x():
    trainer, (x, y), box = Trainer(tiny().double()), images(dtype=torch.double), torch.tensor([BOX] * 2)
    label = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(6), dtype=torch.double)
    trainer.teacher = lambda x, box, m: label
    rng = torch.Generator()
    rng.set_state(trainer.rng.get_state())
    term = trainer.taught(x, y, box)[1]["teach"]
    m = trainer.model.G_seg(losses.views(x, y, label, rng)) * box_mask(box, 16, 16, 1.1).double()
    expected = -(label * m.log().clamp(min=-100) + (1 - label) * (1 - m).log().clamp(min=-100)).mean()  # 0 outside
    assert term.item() == pytest.approx(expected.item(), rel=1e-6)
    as_it_is = losses.cross_entropy(trainer.model.mask(x, box), label)
    assert term.item() != pytest.approx(as_it_is.item(), rel=1e-5)


def test_method_boxes_learns_what_the_teacher_says_and_nothing_else():
    trainer, (x, y), asked = trainer_of(tiny(method="boxes")), images(), []
    label = (x[:, :1] > 0).float()

    def teacher(x, box, m):
        asked.append(m is None)
        return label

    trainer.teacher, same = teacher, trainer_of(tiny(method="supervised"))
    for step in (0, 100):
        trainer.step = same.step = step
        logs = [t.train_step(batch_of(x, y, mask=mask)) for t, mask in ((trainer, 1 - label), (same, label))]
        assert equal(*logs) and equal(trainer.model.state(), same.model.state())
    assert asked == [True, False]
