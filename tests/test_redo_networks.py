"""ReDO's networks (baselines/redo_networks.py) against literal ones in float64, their sizes and their beginning."""
import pytest
import torch
import torch.nn.functional as F
from test_redo import TINY, images
from torch import nn

from baselines import redo, redo_networks
from baselines.redo_networks import Attention, Critic, Generator, MaskNet, Norm, halvings


def test_the_networks_have_the_authors_sizes(monkeypatch):
    def count(network):
        return sum(p.numel() for p in network.parameters())

    monkeypatch.setattr(redo_networks, "spectral_norm", lambda layer: layer)  # adds no parameter, takes its time
    with torch.device("meta"):
        assert count(MaskNet(2, 64)) == 274_966
        assert count(Generator(128, 64, 32)) == 30_933_791 and count(Generator(128, 32, 32)) == 7_956_895
        assert count(Critic(128, 64)) == 38_424_258 and count(Critic(128, 64, 2 * 32, False)) == 38_483_712
        assert count(MaskNet(2, 32)) == 70_742 and count(Generator(32, 16, 16, False)) == 143_838
        assert count(Critic(32, 32, 1, False)) == 592_865 and count(Critic(64, 16, 2 * 16, False)) == 603_856
    assert [halvings(size) for size in (4, 8, 12, 32, 48, 96, 128)] == [0, 1, 0, 3, 0, 0, 5]


def plain_norm(h):
    return (h - h.mean((2, 3), keepdim=True)) / (h.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()


def literal_conv(h, layer, pad=None, **kwargs):
    weight = layer.weight
    if hasattr(layer, "parametrizations"):  # the vectors have converged: the largest singular value
        weight = layer.parametrizations.weight.original
        weight = weight / torch.linalg.svdvals(weight.flatten(1))[0]
    pad = weight.shape[-1] // 2 if pad is None else pad
    return F.conv2d(h, weight, layer.bias, padding=pad, **kwargs)


def literal_attention(h, net):
    n, c, height, width = h.shape
    q, k, v = (literal_conv(h, layer) for layer in (net.query, net.key, net.value))
    k, v = F.max_pool2d(k, 2).flatten(2), F.max_pool2d(v, 2).flatten(2)
    out = torch.zeros(n, v.shape[1], height, width, dtype=h.dtype)
    for i in range(n):
        for row in range(height):
            for col in range(width):
                scores = torch.stack([(q[i, :, row, col] * k[i, :, key]).sum() for key in range(k.shape[2])])
                weights = scores.exp() / scores.exp().sum()
                out[i, :, row, col] = sum(w * v[i, :, key] for key, w in enumerate(weights))
    return h + net.g * literal_conv(out, net.out)


def double(net, calls):
    """`net` in float64, its power iterations run to their end, g of its attention not 0."""
    net = net.double()
    for module in net.modules():
        if isinstance(module, Attention):
            module.g.data.fill_(0.7)
    for _ in range(30):
        with torch.no_grad():
            net(*calls)
    return net.eval()


def test_g_is_the_authors():
    rng = torch.Generator().manual_seed(3)
    mask = torch.rand((2, 1, 16, 16), generator=rng, dtype=torch.float64)
    z = torch.randn((2, 3), generator=rng, dtype=torch.float64)
    net = double(Generator(16, 4, 3), (mask, z))

    def norm(h, layer):
        gamma, beta = (z @ w.weight.T + w.bias for w in (layer.gamma, layer.beta))
        return gamma[:, :, None, None] * plain_norm(h) + beta[:, :, None, None]

    def doubled(h):
        return h.repeat_interleave(2, 2).repeat_interleave(2, 3)

    h = (z @ net.stem.weight.T + net.stem.bias).reshape(2, 8, 4, 4)  # ch·2^(L-1) channels, L = 2
    for side, block in ((4, net.blocks[0]), (8, net.blocks[1])):
        if side == 8:  # before the last
            h = literal_attention(h, net.attention)
        shown = mask.reshape(2, 1, side, 16 // side, side, 16 // side).mean((3, 5))
        a = literal_conv(doubled(torch.cat([norm(h, block.norm1).relu(), shown], 1)), block.conv1)
        a = literal_conv(norm(a, block.norm2).relu(), block.conv2)
        h = a + doubled(literal_conv(h, block.shortcut))
    v = literal_conv(torch.cat([norm(h, net.norm).relu(), mask], 1), net.head).tanh()
    torch.testing.assert_close(net(mask, z), v, rtol=1e-4, atol=1e-5)
    assert net.blocks[0].conv1.bias is None and net.blocks[0].conv2.bias is not None


def test_d_and_delta_are_the_authors():
    x = images(2, 16, dtype=torch.float64)
    for attention in (True, False):
        net = double(Critic(16, 8, 5, attention), (x,))
        first, *rest, last = net.body

        def down(h, block, leading):
            a = literal_conv(leading(h), block.conv1).relu()
            return F.avg_pool2d(literal_conv(a, block.conv2) + literal_conv(h, block.shortcut), 2)

        h = down(x, first, lambda h: h)
        h = literal_attention(h, rest.pop(0)) if attention else h
        (second,) = rest
        h = down(h, second, torch.relu)
        h = h + literal_conv(literal_conv(h.relu(), last.conv1).relu(), last.conv2)
        assert last.shortcut is None and h.shape == (2, 16, 4, 4)
        expected = h.sum((2, 3)) @ net.head.weight.T + net.head.bias
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("regions", [2, 3])
def test_f_is_the_authors(regions):
    torch.manual_seed(0)
    net, x = MaskNet(regions, 8).double(), images(2, 24, dtype=torch.float64)
    layers = list(net.body)

    def normed(h, stride=1, reflect=False):
        layer, norm, act = (layers.pop(0) for _ in range(3))
        assert layer.bias is None and isinstance(act, nn.ReLU)
        pad = layer.weight.shape[-1] // 2
        h = F.pad(h, [pad] * 4, mode="reflect") if reflect else h
        h = F.conv2d(h, layer.weight, stride=stride, padding=0 if reflect else pad)
        return (plain_norm(h) * norm.weight[:, None, None] + norm.bias[:, None, None]).relu()

    h = normed(normed(normed(x, reflect=True), 2), 2)
    for _ in range(3):
        block = layers.pop(0)
        a = plain_norm(literal_conv(h, block.body[0])).relu()
        h = plain_norm(h + literal_conv(a, block.body[3])).relu()
    pyramid, pooled = layers.pop(0), [h]
    for layer, bins in zip(pyramid.convs, (1, 2, 3, 6), strict=True):
        means = h.reshape(2, 8, bins, 6 // bins, bins, 6 // bins).mean((3, 5))  # a quarter of 24 px
        channel = (means * layer.weight[0]).sum(1, keepdim=True) + layer.bias
        pooled.append(F.interpolate(channel, (6, 6), mode="bilinear", align_corners=False))
    h = torch.cat(pooled, 1)
    for _ in range(2):
        assert layers.pop(0).scale_factor == 2
        h = normed(h.repeat_interleave(2, 2).repeat_interleave(2, 3))
    head = layers.pop(0)
    logits = F.conv2d(F.pad(h, [3] * 4, mode="reflect"), head.weight, head.bias)
    assert head.weight.shape[-1] == 7 and not layers
    m = 1 / (1 + (-logits).exp())
    expected = torch.cat([m, 1 - m], 1) if regions == 2 else logits.exp() / logits.exp().sum(1, keepdim=True)
    torch.testing.assert_close(net(x), expected)


def test_weights_begin_orthogonal_and_spectral_norms_at_1():
    model = redo.ReDO(**TINY | dict(size=16))
    normed = 0
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            original = module.weight
            if hasattr(module, "parametrizations"):
                largest = torch.linalg.svdvals(module.weight.detach().flatten(1))[0]
                assert largest == pytest.approx(1, abs=1e-4), name
                original, normed = module.parametrizations.weight.original, normed + 1
            singular = torch.linalg.svdvals(original.flatten(1))
            torch.testing.assert_close(singular, torch.full_like(singular, 0.8), rtol=1e-4, atol=1e-4)
    assert normed == sum(isinstance(m, nn.Conv2d) for n in (model.G, model.D, model.delta) for m in n.modules())
    assert not any(isinstance(m, (nn.BatchNorm2d, nn.InstanceNorm2d)) for m in model.D.modules())
    assert isinstance(model.G[0].norm, Norm) and model.G[0] is not model.G[1]


@pytest.mark.parametrize("regions", [2, 3])
@pytest.mark.parametrize("side", [(8, 8), (30, 52), (5, 9)])
def test_masks_of_images_of_any_size_sum_to_1(regions, side):
    masks = MaskNet(regions, 8)(torch.rand(2, 3, *side) * 2 - 1)
    assert masks.shape == (2, regions, *side) and masks.min() >= 0
    torch.testing.assert_close(masks.sum(1), torch.ones(2, *side))


def test_masks_begin_near_a_half():
    torch.manual_seed(0)
    masks = MaskNet(2, 32)(images(8, 32))
    assert 0.35 < masks[:, 0].mean() < 0.65 and 0.05 < masks[:, 0].std() < 0.2
