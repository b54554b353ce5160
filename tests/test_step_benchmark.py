"""benchmarks/cyclegan.py against the paper's formulas; benchmarks/step.py's arithmetic."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import step
from benchmarks.cyclegan import CycleGAN, CycleGANTrainer


@pytest.fixture
def trainer():
    torch.manual_seed(0)
    return CycleGANTrainer(CycleGAN(size=16, ngf=2, ndf=2, n_layers=2))


@pytest.fixture
def batch():
    return dict(zip("xy", (torch.rand(2, 2, 3, 16, 16) * 2 - 1).unbind(), strict=True))


def paper_losses(net, x, y):
    """Zhu et al. (2017): what both generators minimise (least squares for equation 1, equation 2 with λ = 10, identity
    of §5.2 with λ/2), and half of what each discriminator does."""
    y_made, x_made = net.G(x), net.F(y)
    cycle = (net.F(y_made) - x).abs().mean() + (net.G(x_made) - y).abs().mean()
    identity = (net.G(y) - y).abs().mean() + (net.F(x) - x).abs().mean()
    fooled = ((net.D_Y(y_made) - 1) ** 2).mean() + ((net.D_X(x_made) - 1) ** 2).mean()
    judges = [0.5 * (((d(real) - 1) ** 2).mean() + (d(made.detach()) ** 2).mean())
              for d, real, made in ((net.D_Y, y, y_made), (net.D_X, x, x_made))]
    return fooled + 10 * cycle + 5 * identity, sum(judges)


def test_an_update_of_cyclegan_is_the_papers(trainer, batch):
    """Losses, and weights after one step, whose fakes are new as the pools are empty."""
    net = copy.deepcopy(trainer.model)
    terms = trainer.train_step(batch)
    parts = {"G": (net.G, net.F), "D": (net.D_X, net.D_Y)}
    for loss, modules, names in zip(paper_losses(net, batch["x"], batch["y"]), parts.values(),
                                    (("gan_G", "gan_F", "cycle_x", "cycle_y", "id_x", "id_y"), ("D_X", "D_Y")),
                                    strict=True):
        assert sum(terms[name] for name in names).item() == pytest.approx(loss.item(), rel=1e-5)
        weights = [p for module in modules for p in module.parameters()]
        grads = torch.autograd.grad(loss, weights, retain_graph=True)
        for p, g in zip(weights, grads, strict=True):
            p.grad = g
    for modules in parts.values():
        torch.optim.Adam([p for m in modules for p in m.parameters()], lr=2e-4, betas=(0.5, 0.999)).step()
    for (name, p), q in zip(net.named_parameters(), trainer.model.parameters(), strict=True):
        # a bias before a normalisation has a gradient of rounding errors alone, which Adam's first step makes ± lr
        assert torch.allclose(p, q, atol=4.1e-4 if name.endswith("bias") else 1e-5), name


@pytest.mark.parametrize("own, others", [("opt_G", ("D_X", "D_Y")), ("opt_D", ("G", "F"))])
def test_an_update_moves_only_its_networks(trainer, batch, own, others):
    for optimizer in {"opt_G", "opt_D"} - {own}:
        getattr(trainer, optimizer).step = lambda: None
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train_step(batch)
    moved = {name.partition(".")[0] for name, value in trainer.model.state_dict().items()
             if not torch.equal(value, before[name])}
    assert moved == {"G", "F", "D_X", "D_Y"} - set(others)


def test_the_networks_of_cyclegan_are_the_papers():
    """Appendix 7.2 at ngf = ndf = 64: parameters counted by hand, layer by layer; scores of fields of 70 px."""
    def conv(c, d, k):
        return c * d * k * k + d

    ends = conv(3, 64, 7) + conv(64, 128, 3) + conv(128, 256, 3)
    ups = conv(256, 128, 3) + conv(128, 64, 3) + conv(64, 3, 7)
    with torch.device("meta"):
        for size, blocks in ((128, 6), (256, 9)):
            net = CycleGAN(size, 64, 64, 3)
            assert sum(p.numel() for p in net.G.parameters()) == ends + 2 * blocks * conv(256, 256, 3) + ups
            image = torch.empty(1, 3, size, size)
            assert net.G(image).shape == image.shape
        assert sum(p.numel() for p in net.D_X.parameters()) == (
            conv(3, 64, 4) + conv(64, 128, 4) + conv(128, 256, 4) + conv(256, 512, 4) + conv(512, 1, 4))
        assert net.D_X(image).shape == (1, 1, 30, 30)
    field = 1
    for layer in reversed([layer for layer in net.D_X.modules() if isinstance(layer, nn.Conv2d)]):
        field = (field - 1) * layer.stride[0] + layer.kernel_size[0]
    assert field == 70


def test_a_convolution_is_counted_as_one_counts_it():
    x, w = torch.rand(2, 3, 8, 8), torch.rand(5, 3, 3, 3)
    assert step.count_flops(lambda: F.conv2d(x, w, padding=1)) == 2 * 2 * 5 * 8 * 8 * 3 * 9


def test_speeds_are_compared_within_turns():
    """Turns on a machine twice as slow as before leave the ratio what it is."""
    assert step.speed_ratio([1.0, 2.0, 9.0], [3.0, 6.0, 27.0]) == 3.0


def test_each_row_takes_a_step():
    network = dict(ngf=2, ndf=2, seg_blocks=1, n_layers_D=2)
    rows = step.all_rows(torch.device("cpu"))
    assert {"literal", "cyclegan", "ours", f"{step.main_rows(torch.device('cpu'))[-1]}+teacher"} <= set(rows)
    for row in {*rows, "cyclegan+amp", "ours+teacher", "ours+amp+teacher"}:
        log = step.build_step(row, network, 16, 2, torch.device("cpu"))()
        assert ("teach" in log) == ("teacher" in row) and ("gan_G" in log) == row.startswith("cyclegan")
