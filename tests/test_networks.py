import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import losses
from networks import (
    Discriminator,
    EnhancementNet,
    InpaintingNet,
    SegmentationNet,
    UNet,
    VGG19Features,
    pad_to_multiple,
    prefill,
)

VGG19_WIDTHS = [64, 64, "pool", 128, 128, "pool"] + [256] * 4 + ["pool"] + [512] * 4 + ["pool"] + [512] * 4


def noise_for(image):
    return torch.randn(len(image), 1, *image.shape[-2:])


@pytest.mark.parametrize("n,height,width", [(1, 16, 16), (3, 16, 24), (2, 19, 33), (1, 7, 5), (1, 1, 9), (2, 4, 4)])
def test_generators_keep_any_size_and_their_range(n, height, width):
    x = torch.rand(n, 3, height, width) * 2 - 1
    m = SegmentationNet(ngf=4, n_blocks=1)(x)
    assert m.shape == (n, 1, height, width) and 0 <= m.min() and m.max() <= 1
    for net in (EnhancementNet(4, 2), EnhancementNet(4, 2, direct=True)):
        out = net(x, noise_for(x))
        assert out.shape == x.shape and -1 <= out.min() and out.max() <= 1
    for net in (InpaintingNet(4, 2), InpaintingNet(4, 5), InpaintingNet(4, 2, direct=True)):
        for out in net((1 - m) * x, m, noise_for(x)):
            assert out.shape == x.shape and -1 <= out.min() and out.max() <= 1


def test_padding_reflects_at_right_and_bottom_only():
    image = torch.arange(15.0).view(1, 1, 3, 5)
    padded = pad_to_multiple(image, 2)
    assert padded.shape == (1, 1, 4, 6)
    assert torch.equal(padded[..., :3, :5], image)
    assert padded[0, 0, 3].tolist() == [5, 6, 7, 8, 9, 8]  # row 3 mirrors row 1, column 5 mirrors column 3
    assert pad_to_multiple(image, 1) is image
    tiny = pad_to_multiple(image, 8)  # at least twice the multiple: reflection cannot reach so far
    assert tiny.shape == (1, 1, 16, 16) and tiny[0, 0, 15].tolist() == [10, 11, 12, 13, 14] + [14] * 11


def test_initialisation():
    torch.manual_seed(0)
    net = SegmentationNet(ngf=32, n_blocks=2, head_bias=-3.0)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module is not net.head:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert not module.bias.any()
    assert net.head.bias.item() == -3.0


def test_generators_start_near_the_image():
    x = torch.rand(2, 3, 32, 32) - 0.5
    assert (EnhancementNet(8, 3)(x, noise_for(x)) - x).abs().mean() < 0.2
    m = torch.rand(2, 1, 32, 32)
    smooth = prefill((1 - m) * x, m, 3)
    for image in InpaintingNet(8, 3)((1 - m) * x, m, noise_for(x)):
        assert torch.allclose(image, (1 - m) * x + m * smooth.clamp(-1, 1), atol=1e-6)


def test_inpainting_is_a_change_of_what_is_in_the_hole():
    net, x = moved(InpaintingNet(4, 2)), torch.rand(2, 3, 16, 24) * 2 - 1
    m, noise = torch.zeros(2, 1, 16, 24), noise_for(x)
    m[..., 4:10, 6:15] = 1
    x_hat, coarse = net((1 - m) * x, m, noise)
    smooth = prefill((1 - m) * x, m, 2)
    first = (smooth + net.first(torch.cat([smooth, m, noise], 1))).clamp(-1, 1)
    expected = (1 - m) * x + m * first
    assert torch.allclose(coarse, expected, atol=1e-6)
    second = (first + net.second(torch.cat([expected, m], 1))).clamp(-1, 1)
    assert torch.allclose(x_hat, (1 - m) * x + m * second, atol=1e-6)
    outside = (m == 0).expand_as(x)
    assert torch.equal(x_hat[outside], x[outside]) and (x_hat - smooth)[~outside].abs().mean() > 0.01
    unseen = torch.where(m == 1, torch.rand_like(x), x)  # what was cut out cannot matter
    assert torch.equal(net((1 - m) * unseen, m, noise)[0], x_hat)


def test_the_papers_inpainting_is_two_u_nets_in_sequence():
    net, cut = moved(InpaintingNet(4, 2, direct=True)), torch.rand(2, 3, 16, 16) * 2 - 1
    m, noise = torch.rand(2, 1, 16, 16), noise_for(cut)
    x_hat, coarse = net(cut, m, noise)
    assert torch.allclose(coarse, torch.tanh(net.first(torch.cat([cut, noise], 1))))
    assert torch.allclose(x_hat, torch.tanh(net.second(coarse)))


def test_a_masks_gradient_through_the_fill_is_the_fill_less_x():
    """x_hat = (1-m)x + m·fill: as G_inp begins, m learns from nothing else."""
    x, weight = torch.rand(1, 3, 16, 16, dtype=torch.double) * 2 - 1, torch.randn(1, 3, 16, 16, dtype=torch.double)
    m = torch.rand(1, 1, 16, 16, dtype=torch.double).requires_grad_()
    x_hat, _ = InpaintingNet(4, 2).double()((1 - m) * x, m, torch.randn(1, 1, 16, 16, dtype=torch.double))
    (x_hat * weight).sum().backward()
    with torch.no_grad():
        fill = prefill((1 - m) * x, m, 2)
        assert torch.allclose(m.grad, (weight * (fill - x)).sum(1, keepdim=True), atol=1e-9)


def moved(net):
    """`net` away from its beginning."""
    for p in net.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return net


def solve(x, m):
    """Laplace's equation in the hole m (H, W) of 0 and 1, by a dense system; x (3, H, W); no flow across the border."""
    height, width = m.shape
    number = torch.arange(height * width).view(height, width)
    a, b = torch.eye(height * width, dtype=torch.double), x.double().flatten(1).T.clone()
    for i, j in m.nonzero().tolist():
        near = [(i + di, j + dj) for di, dj in ((-1, 0), (1, 0), (0, -1), (0, 1))]
        near = [(k, n) for k, n in near if 0 <= k < height and 0 <= n < width]
        row = number[i, j]
        a[row] = 0
        a[row, row] = len(near)
        b[row] = 0
        for k, n in near:
            a[row, number[k, n]] -= 1
    return torch.linalg.solve(a, b).T.view(3, height, width)


def test_prefill_nearly_solves_laplaces_equation():
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    x = torch.stack([rows, columns * rows, torch.sin(3 * columns)])
    m = torch.zeros(32, 32)
    m[5:20, 9:28] = 1
    m[25:, 3:6] = 1  # at the border
    fill = prefill(((1 - m) * x)[None], m[None, None], 3)[0]
    true = solve(x, m)
    assert torch.allclose(fill[:, m == 0], x[:, m == 0], atol=1e-6)
    error = (fill - true)[:, m == 1].abs().mean()
    mean = x[:, m == 0].mean(1)[:, None]
    assert error < 0.03 < 0.2 < (mean - true[:, m == 1]).abs().mean(), error


def test_prefill_of_half_known_and_of_nothing_known():
    x, m = torch.full((1, 3, 8, 8), 0.5), torch.rand(1, 1, 8, 8)
    assert torch.allclose(prefill((1 - m) * x, m, 2), x, atol=1e-5)  # whatever is half cut out
    assert prefill(0 * x, torch.ones_like(m), 2).abs().max() == 0


def test_enhancement_is_a_clamped_residual():
    net, z = EnhancementNet(4, 2), torch.rand(1, 3, 16, 16) * 2 - 1
    noise = noise_for(z)
    assert torch.equal(net(z, noise), (z + net.unet(torch.cat([z, noise], 1))).clamp(-1, 1))
    net.direct = True
    assert torch.equal(net(z, noise), torch.tanh(net.unet(torch.cat([z, noise], 1))))


@pytest.mark.parametrize("logit", [-9.0, 9.0])
def test_a_mask_that_bfloat16_would_round_can_still_change(logit):
    net, x = SegmentationNet(4, 1), torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.fill_(logit)
    with torch.autocast("cpu", torch.bfloat16):
        m = net(x)
    m.mean().backward()
    sigmoid = 1 / (1 + math.exp(-logit))
    assert m.dtype == torch.float32 and torch.allclose(m, torch.tensor(sigmoid))
    assert net.head.bias.grad.item() == pytest.approx(sigmoid * (1 - sigmoid), rel=0.01)


def test_nothing_passes_between_samples():
    """Per-sample normalisation: what stands beside an image in the batch does not change its output."""
    x = torch.rand(3, 3, 16, 16, dtype=torch.double) * 2 - 1
    noise = torch.randn(3, 1, 16, 16, dtype=torch.double)
    m = torch.rand(3, 1, 16, 16, dtype=torch.double)
    for net, args in ((SegmentationNet(4, 1), ()), (InpaintingNet(4, 2), (m, noise)), (EnhancementNet(4, 2), (noise,)),
                      (InpaintingNet(4, 2, direct=True), (m, noise)), (Discriminator(4, 2), ())):
        net = moved(net).double()
        for whole, alone in zip(each(net(x, *args)), each(net(x[1:2], *(a[1:2] for a in args))), strict=True):
            assert torch.allclose(whole[1:2], alone, atol=1e-12)
        for one, other in zip(each(net.train()(x, *args)), each(net.eval()(x, *args)), strict=True):
            assert one.equal(other)


def each(out):
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("n_layers,field", [(2, 34), (3, 70), (4, 142), (5, 286)])
def test_discriminator_receptive_field(n_layers, field):
    net = Discriminator(ndf=2, n_layers=n_layers)
    plain = nn.Sequential(*[m for m in net.body if isinstance(m, nn.Conv2d)]).double()  # normalisation sees everything
    for conv in plain:
        nn.init.constant_(conv.weight, 1.0)
    image = torch.zeros(1, 3, 320, 320, dtype=torch.double, requires_grad=True)
    out = plain(image)
    out[0, 0, out.shape[2] // 2, out.shape[3] // 2].backward()
    assert image.grad[0, 0].any(0).sum() == image.grad[0, 0].any(1).sum() == field


@pytest.mark.parametrize("n_layers", [2, 3, 4])
def test_discriminator_smallest_size(n_layers):
    net = Discriminator(ndf=2, n_layers=n_layers)
    assert net(torch.rand(1, 3, net.min_size, net.min_size)).numel() >= 1


def test_unet_uses_every_layer():
    net = UNet(4, 3, ngf=4, n_downs=3)
    net(torch.randn(2, 4, 16, 16)).square().sum().backward()
    assert all(p.grad.any() for name, p in net.named_parameters() if "weight" in name)


def test_vgg_features_against_a_literal_network(vgg19_state):
    state = vgg19_state
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    taps = losses.VGG1 + losses.VGG2
    features = VGG19Features(taps, state)(image)

    h = (image * 0.5 + 0.5 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]).view(3, 1, 1)
    literal, index = [], 0
    for width in VGG19_WIDTHS:
        if width == "pool":
            h, index = F.max_pool2d(h, 2), index + 1
        else:
            h = F.conv2d(h, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1).relu()
            literal.append(h)
            index += 2
    assert list(features) == sorted(taps)
    for got, expected in zip(features.values(), literal[:5] + literal[-5:], strict=True):
        assert torch.allclose(got, expected, atol=1e-5)


def test_vgg_is_no_deeper_than_needed_and_frozen(vgg19_state):
    first_five = {k: v for k, v in vgg19_state.items() if int(k.split(".")[1]) <= 10}
    net = VGG19Features(losses.VGG1, first_five)
    assert len([m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]) == 5
    assert not any(p.requires_grad for p in net.parameters())
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    net(image)[10].sum().backward()
    assert image.grad.any()


def test_vgg_weights_that_do_not_fit(vgg19_state):
    first_five = {k: v for k, v in vgg19_state.items() if int(k.split(".")[1]) <= 10}
    with pytest.raises(ValueError, match="hold no features.12.weight"):
        VGG19Features((12,), first_five)
    with pytest.raises(ValueError, match="features.0.weight .* has shape"):
        VGG19Features((0,), {"features.0.weight": torch.zeros(1), "features.0.bias": torch.zeros(64)})
