"""StyleGAN's networks against literal ones in float64."""
import math

import pytest
import torch
import torch.nn.functional as F
from test_perturbgan import CONFIG, batch

from baselines import stylegan
from baselines.perturbgan import PerturbGAN


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_parameters_at_the_papers_sizes():
    with torch.device("meta"):
        model = PerturbGAN(**CONFIG | dict(size=72, shift=4, channels=512, channels_full=256, z_dim=512,
                                           mapping_layers=8, grow=True, resnet=True))
        larger = stylegan.Discriminator(128, 512, 128, grow=True)
    assert round((count(model.G_bg) + count(model.G_obj)) / 1e6, 1) == 50.3
    assert round(count(model.D) / 1e6, 1) == 22.5 and round(count(larger) / 1e6, 1) == 22.9
    assert round(count(model.E) / 1e6, 1) == 32.2  # ResNet-18 and 2048 -> 10240
    assert stylegan.widths(128, 512, 128) == {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128}


def equalised(layer, h):
    """A layer's convolution with weights times sqrt(2 / fan-in), without its class."""
    weight = layer.weight * math.sqrt(2 / layer.weight[0].numel())
    if weight.dim() == 2:
        return h @ weight.T + layer.bias
    return F.conv2d(h, weight, layer.bias, padding={1: 0, 3: 1, 4: 0}[weight.shape[-1]])


def smoothed(h):
    """[1 2 1] x [1 2 1] / 16, as a sum of nine moved images."""
    p = F.pad(h, (1, 1, 1, 1))
    return sum(a * b * p[..., i : i + h.shape[-2], j : j + h.shape[-1]]
               for i, a in enumerate((1, 2, 1)) for j, b in enumerate((1, 2, 1))) / 16


def lrelu(h):
    return torch.where(h > 0, h, 0.2 * h)


def literal_generator(g, w, noises):
    h = None
    for block, w_block, noise in zip(g.blocks, w.unbind(1), noises, strict=True):
        if h is None:
            h = block.constant[None].repeat(len(w), 1, 1, 1)
        else:
            h = smoothed(equalised(block.conv, h.repeat_interleave(2, 2).repeat_interleave(2, 3)))
        for place, styled in enumerate((block.styled, block.styled2)):
            h = equalised(block.conv2, h) if place else h
            h = lrelu(h + noise * (styled.noise * math.sqrt(2 / len(styled.noise)))[:, None, None])
            h = (h - h.mean((2, 3), keepdim=True)) / (h.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
            code = equalised(styled.affine, w_block[:, place])[:, :, None, None]
            c = h.shape[1]
            h = code[:, :c] * h + code[:, c:]
    return equalised(g.outs[str(g.sides[-1])], h)


def disturbed(network):
    """The network in float64, with no weight at its first value."""
    torch.manual_seed(3)
    for p in network.parameters():
        p.data.add_(0.3 * torch.randn(p.shape))
    return network.double()


def test_the_generator_literally():
    g = disturbed(stylegan.Generator(16, 8, 4, 6, 2, 4))
    z = torch.randn(2, 6, dtype=torch.float64)
    w = z / (z**2).mean(1, keepdim=True).sqrt()
    for layer in g.mapping.layers:
        w = lrelu(equalised(layer, w))
    styles = g.styles(z)
    assert torch.allclose(styles, w[:, None, None].expand(2, 3, 2, 6), atol=1e-6)
    rng = torch.Generator().manual_seed(5)
    noises = [torch.randn((2, 1, side, side), generator=rng).double() for side in (4, 8, 16)]
    made = g(styles, rng=torch.Generator().manual_seed(5))
    assert torch.allclose(made.double(), literal_generator(g, styles, noises), atol=1e-4)
    assert torch.allclose(g(styles).double(), literal_generator(g, styles, [0.0 * one for one in noises]), atol=1e-4)


def test_the_discriminator_literally():
    d, x = disturbed(stylegan.Discriminator(16, 8, 4)), batch(size=16)["x"].double()
    h = equalised(d.ins["16"], x)
    for side in (16, 8):
        conv, conv2 = d.stages[str(side)]
        h = equalised(conv2, smoothed(lrelu(equalised(conv, h))))
        h = lrelu((h[..., ::2, ::2] + h[..., 1::2, ::2] + h[..., ::2, 1::2] + h[..., 1::2, 1::2]) / 4)
    deviation = ((h - h.mean(0)) ** 2).mean(0).sqrt().mean()
    h = lrelu(equalised(d.conv, torch.cat([h, torch.full_like(h[:, :1], deviation.item())], 1)))
    literal = equalised(d.score, lrelu(equalised(d.conv2, h)).flatten(1))[:, 0]
    assert torch.allclose(d(x).double(), literal, atol=1e-4)
    assert d.trunk(x, until=8).shape == (4, 8, 8, 8)


def test_weights_are_standard_normal_and_noise_begins_at_nothing():
    torch.manual_seed(0)
    g = stylegan.Generator(16, 64, 64, 64, 4, 4)
    for name, p in g.named_parameters():
        if name.endswith("weight"):
            assert abs(p.mean().item()) < 0.05 and abs(p.std().item() - 1) < 0.1, name
        elif name.endswith("affine.bias"):
            assert p.tolist() == [1.0] * 64 + [0.0] * 64
        elif "constant" not in name:
            assert not p.any(), name
    h = torch.randn(8, 64, 8, 8)
    assert stylegan.Conv(64, 64, 3)(h).std().item() == pytest.approx(math.sqrt(2), rel=0.1)


def test_an_image_of_alpha_0_is_the_enlarged_smaller_one_and_a_score_that_of_the_halved():
    torch.manual_seed(0)
    g, d = stylegan.Generator(16, 8, 4, 6, 2, 4, grow=True), stylegan.Discriminator(16, 8, 4, grow=True)
    w, x = g.styles(torch.randn(3, 6)), batch(size=16)["x"]
    small, whole = g(w, 8), g(w, 16)
    enlarged = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(g(w, 16, alpha=0.0), enlarged)
    assert torch.allclose(g(w, 16, alpha=0.25), 0.75 * enlarged + 0.25 * whole, atol=1e-6)
    assert torch.allclose(d(x, alpha=0.0), d(F.avg_pool2d(x, 2)), atol=1e-6)
    assert not torch.allclose(d(x, alpha=0.5), d(x))
