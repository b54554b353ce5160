"""`train.py --paper`: against a step written from the paper, what its terms move, resuming, what it sets."""
import json
from types import SimpleNamespace

import pytest
import torch
from conftest import equal
from torch import nn

import losses
import train
from benchmarks.literal import LiteralTrainer, paper_networks
from crops import demo
from images import UserError
from networks import Discriminator, SegmentationNet
from running import methods, train_options
from running.checkpoint import load_checkpoint, load_model, save_checkpoint
from running.train_options import PAPER
from seigan import SEIGAN

BOX = (0.125, 0.125, 0.75, 0.75)
SMALL = "--gpu -1 --size 16 --ngf 4 --ndf 4 --n_layers_D 2 --seg_blocks 1 --unet_downs 2 --batch_size 2 --num_threads 0"
BARE = "--lambda_bg_texture 0 --lambda_bg_perc 0 --lambda_obj_perc 0"  # without VGG-19's weights
CROPS = SimpleNamespace(stems=["a"], rules=[], box=lambda stem: torch.tensor(BOX, dtype=torch.float64))


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory, vgg19_state):
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save(vgg19_state, path)
    return path


def options(line, tmp_path):
    return train_options.parse(f"--name a --dataroot none --checkpoints_dir {tmp_path} {SMALL} {line}".split())[0]


def trainer_of(args, double=True):
    """The trainer of the options, its generators a little away from their beginning."""
    torch.manual_seed(0)
    trainer = methods.load(args.method).build(args, CROPS, torch.device("cpu"))
    for net in trainer.model.networks(trainer.model.GENERATORS).values():
        for p in net.parameters():
            p.data += 0.05 * torch.randn_like(p)
    for model in (trainer.model, trainer.averaged) if double else ():
        model.double()
    return trainer


def batch(seed, dtype=torch.double):
    rng = torch.Generator().manual_seed(seed)
    x, y = torch.rand(2, 2, 3, 16, 16, generator=rng, dtype=torch.double).to(dtype) * 1.6 - 0.8
    return {"x": x, "y": y, "box": torch.tensor([BOX] * 2)}


# --- the step ---


def assert_equal_steps(args, steps, replaced=()):
    """The trainer's steps are those of `LiteralTrainer`, with its own networks where `replaced` names them."""
    trainer, other = (trainer_of(args) for _ in range(2))
    own = {name: f for name, f in paper_networks(other.model).items() if name in replaced}
    literal = LiteralTrainer(other, own)
    for i in range(steps):
        log = trainer.train_step(batch(i))
        for name, value in literal.train_step(batch(i)).items():
            assert log[name].item() == pytest.approx(value, rel=1e-6, abs=1e-6), name
    for name, p in trainer.model.named_parameters():
        assert torch.allclose(p, literal.model.get_parameter(name), atol=1e-6, rtol=0), name


@pytest.mark.parametrize("steps", [1, 3])
def test_steps_equal_those_of_the_paper(steps, tmp_path, vgg_file):
    """All five networks, both swaps, every term, the pools and Adam, each written out from the paper."""
    line = f"--vgg_weights {vgg_file}" if steps == 1 else BARE + " --pool_size 3"
    args = options(f"--paper {line}", tmp_path)
    assert_equal_steps(args, steps, [*SEIGAN.GENERATORS, *SEIGAN.DISCRIMINATORS])


@pytest.mark.parametrize("switch,network", [
    ("--seg_transposed", "G_seg"), ("--imagegan", "D_bg"), ("--n_layers_D_bg 1", None), ("--n_layers_D_bg 1 --imagegan",
     "D_bg"),
    ("--enh_direct", "G_enh"), ("--inp_direct", "G_inp"), ("--pool_past --pool_size 3", None), ("--box_prior 0", None),
    ("--lambda_fill 0", None), ("--no_diffaug", None), ("--ema 0", None), ("--head_bias 0", None), ("--lr_seg 1", None),
    ("--gram_sum --lambda_bg_texture 1e-4", None)])
def test_each_switch_alone(switch, network, tmp_path, vgg_file):
    texture = "bg_texture" in switch
    args = options(f"--no-amp {switch}" + f" --vgg_weights {vgg_file}" * texture, tmp_path)
    assert_equal_steps(args, 1 if texture else 4, [network])


def test_the_options_reach_the_networks_and_the_pools(tmp_path):
    """What a literal step takes over from the model that it is compared with."""
    for line, expected in (("", False), (f"--paper {BARE} --n_layers_D_bg 1", True)):
        trainer = trainer_of(options(line, tmp_path))
        model = trainer.model
        assert {pool.past for pool in trainer.pools.values()} == {expected} and model.gram_sum is expected
        assert any(isinstance(m, nn.ConvTranspose2d) for m in model.G_seg.modules()) is expected
        depth = [sum(isinstance(m, nn.Conv2d) for m in d.modules()) for d in (model.D_obj, model.D_bg)]
        assert depth == ([4, 3] if expected else [4, 4])  # each two of stride 1, and as many as it has of stride 2
        score = model.D_bg(torch.zeros(1, 3, 16, 16, dtype=torch.double))
        assert (score.numel() == 1) is expected
        assert model.box_prior == (0 if expected else 1.1) and model.grow_hole == (not expected)
        assert (model.G_inp.direct, model.G_enh.direct, not trainer.diffaug) == (expected,) * 3


def test_the_literal_step_makes_nine_generator_calls_and_knows_no_box(tmp_path):
    trainer, calls = trainer_of(options(f"--paper {BARE}", tmp_path)), []
    own = {name: lambda *args, f=f, name=name: calls.append(name) or f(*args)
           for name, f in paper_networks(trainer.model).items()}
    step = batch(0)
    step["box"] = torch.full((2, 4), torch.nan)
    LiteralTrainer(trainer, own).train_step(step)
    assert sorted(name for name in calls if name.startswith("G")) == ["G_enh"] * 3 + ["G_inp"] * 3 + ["G_seg"] * 3


OWNERS = {"inp": {"G_seg", "G_inp"}, "coarse": {"G_seg"}, "enh": {"G_seg", "G_enh"}, "id_obj": {"G_enh"},
          "id_bg": {"G_seg", "G_inp"}}
OWNERS |= dict.fromkeys(("inp2", "bg_texture", "bg_perc", "bg_mae", "obj_perc", "obj_mae"), {"G_seg", "G_enh", "G_inp"})


def test_which_networks_each_term_moves(tmp_path, vgg_file):
    trainer = trainer_of(options(f"--paper --vgg_weights {vgg_file}", tmp_path), double=False)
    model, seen = trainer.model, batch(0, torch.float32)
    terms = model.generator_losses(seen["x"], seen["y"], model.swap(seen["x"], seen["y"], seen["box"], trainer.rng))
    assert terms.keys() == OWNERS.keys()
    for term, owners in OWNERS.items():
        model.zero_grad()
        terms[term].backward(retain_graph=True)
        moved = {name for name in SEIGAN.GENERATORS if any(p.grad is not None and p.grad.abs().sum() > 0
                                                           for p in model.get_submodule(name).parameters())}
        assert moved == owners, term


def test_four_and_four_steps_are_eight(tmp_path):
    args = options(f"--paper {BARE} --pool_size 3", tmp_path)
    whole, first, second = (trainer_of(args, double=False) for _ in range(3))
    for i in range(8):
        whole.train_step(batch(i, torch.float32), 1 - i / 20)
    for i in range(4):
        first.train_step(batch(i, torch.float32), 1 - i / 20)
    save_checkpoint(tmp_path / "a.pt", {"method": "seigan", "config": first.model.config, **first.state_dict()})
    second.train_step(batch(99, torch.float32))  # another past
    second.load_state_dict(load_checkpoint(tmp_path / "a.pt"))
    assert all(pool.count == 3 for pool in second.pools.values())
    for i in range(4, 8):
        second.train_step(batch(i, torch.float32), 1 - i / 20)
    assert equal(whole.state_dict(), second.state_dict())


# --- the parts ---


def test_imagegan_gives_one_score_that_every_pixel_moves():
    for size, n_layers in ((16, 2), (20, 2), (48, 3), (36, 3), (128, 5)):
        net, image = Discriminator(2, n_layers, whole=size).double(), torch.randn(2, 3, size, size, dtype=torch.double)
        assert net(image).shape == (2, 1, 1, 1)
        plain = nn.Sequential(*[m for m in net.body if isinstance(m, nn.Conv2d)])  # normalisation sees everything
        image.requires_grad_()
        plain(image).sum().backward()
        assert (image.grad != 0).all(), size


def test_transposed_convolutions_are_initialised_as_all():
    torch.manual_seed(0)
    up = [m for m in SegmentationNet(32, transposed=True).modules() if isinstance(m, nn.ConvTranspose2d)]
    assert len(up) == 2
    for module in up:
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.1) and not module.bias.any()


def numbered(*numbers):
    return torch.tensor(numbers).float().view(-1, 1, 1, 1)


def test_the_pool_of_past_steps_gives_none_of_the_present_one():
    pool, size, drawn = losses.ReplayPool(size=8, seed=3, past=True), 8, []
    assert pool.query(numbered(0, 1)).flatten().tolist() == [0, 1]  # there is no step before
    for step in range(1, 2000):
        before = pool.images[: pool.count].flatten().tolist()
        out = pool.query(numbered(2 * step, 2 * step + 1)).flatten().tolist()
        assert set(out) <= set(before) and len(before) == min(2 * step, size)
        drawn += [before.index(number) for number in out] if len(before) == size else []
        new = [number for number in pool.images[: pool.count].flatten().tolist() if number not in before]
        assert set(new) <= {2 * step, 2 * step + 1}
    counts = torch.tensor(drawn).bincount(minlength=size).double()  # each place alike
    p = 1 / size
    assert ((counts - len(drawn) * p).abs() < 4 * (len(drawn) * p * (1 - p)) ** 0.5).all()
    out = pool.query(numbered(-1, -2))
    out.zero_()
    assert (pool.images != 0).all()  # what is given is no view of the pool


# --- the options ---


def test_paper_sets_what_the_paper_says(tmp_path):
    given, plain = vars(options("--paper", tmp_path)), vars(options("--amp", tmp_path))
    assert {k: v for k, v in given.items() if v != plain[k]} == dict(
        paper=True, box_prior=0, lambda_teach=0, lambda_fill=0, no_diffaug=True, no_flip=True, ema=0, amp=False,
        crf_bias=0, warm_steps=0, head_bias=0, lr_seg=1, seg_transposed=True, enh_direct=True, inp_direct=True,
        grow_hole=0, imagegan=True, pool_past=True, gram_sum=True, n_epochs=100, n_epochs_decay=100, lambda_inp=1,
        lambda_inp2=1, lambda_bg_texture=1e-4, lambda_bg_perc=1, lambda_obj_perc=1)


@pytest.mark.parametrize("given,name,value", [
    ("--box_prior 1.1", "box_prior", 1.1), ("--diffaug", "no_diffaug", False), ("--flip", "no_flip", False),
    ("--no-imagegan", "imagegan", False), ("--no-seg_transposed", "seg_transposed", False),
    ("--no-gram_sum", "gram_sum", False), ("--no-pool_past", "pool_past", False), ("--amp", "amp", True),
    ("--no-enh_direct", "enh_direct", False), ("--no-inp_direct", "inp_direct", False), ("--n_epochs 3", "n_epochs", 3),
    ("--lambda_inp 0.5", "lambda_inp", 0.5), ("--lambda_teach 10", "lambda_teach", 10.0)])
def test_what_is_given_beside_paper_holds(given, name, value, tmp_path):
    args = vars(options(f"{given} --paper {BARE}", tmp_path))
    assert args[name] == value
    others = {k: v for k, v in PAPER.items() if k != name and not k.endswith(("_texture", "_perc"))}
    assert {k: args[k] for k in others} == others


@pytest.mark.parametrize("method", ["seigan", "nocycle", "supervised"])
def test_a_run_keeps_that_it_is_the_paper_s(method, tmp_path, capsys):
    root = tmp_path / "set"
    demo.write_demo(root, counts={"train": {"objects": 4, "backgrounds": 5}, "test": {"objects": 2, "backgrounds": 2}})
    vgg = f" {BARE}" * (method == "seigan")  # the others do not read it
    line = f"--name a --checkpoints_dir {tmp_path} --n_epochs 1 --n_epochs_decay 1 {SMALL.replace('16', '32')}"
    assert train.main(f"{line} --paper --method {method} --dataroot {root} --max_minutes 0{vgg}".split()) == 124
    assert train.main(f"--name a --checkpoints_dir {tmp_path} --resume --max_minutes 9".split()) == 0
    state = load_checkpoint(tmp_path / "a" / "latest.pt")
    assert state["options"]["paper"] and state["options"]["box_prior"] == 0 and state["step"] == 4
    assert json.load(open(tmp_path / "a" / "config.json"))["options"]["paper"]
    model = load_model(tmp_path / "a" / "latest.pt")
    assert any(isinstance(m, nn.ConvTranspose2d) for m in model.G_seg.modules()) and model.config["imagegan"]
    assert "seg_transposed True [False]" in capsys.readouterr().out


def test_the_paper_has_no_method_boxes(tmp_path):
    with pytest.raises(UserError, match="--paper is for seigan, nocycle, supervised, .*: no paper has method boxes"):
        options("--paper --method boxes", tmp_path)


def test_without_vgg_s_weights_the_error_says_how_to_go_on(tmp_path):
    args = options("--paper --vgg_weights /no/file.pth", tmp_path)
    with pytest.raises(OSError, match=rf"no VGG-19 weights from /no/file.pth .* or train without: {BARE}$"):
        trainer_of(args)
    trainer_of(options(f"--paper {BARE}", tmp_path))


def test_a_discriminator_too_deep_is_refused(tmp_path):
    with pytest.raises(UserError, match="--size 16 is too small for --n_layers_D_bg 3, which needs 24 px"):
        options("--n_layers_D_bg 3", tmp_path)


def test_supervised_sees_other_colours_only_where_a_teacher_may_teach(tmp_path):
    found = {}
    for line in ("--lambda_teach 0", ""):
        trainer, step = trainer_of(options(f"--no-amp --method supervised {line}", tmp_path)), batch(0)
        m = trainer.model.segment(step["x"], step["box"])
        step["mask"] = (step["x"][:, :1] > 0).double()
        found[line] = trainer.train_step(step)["bce"].item() == pytest.approx(
            losses.cross_entropy(m, step["mask"]).item())
    assert found == {"--lambda_teach 0": True, "": False}
