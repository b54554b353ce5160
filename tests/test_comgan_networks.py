"""ComGAN's networks: sizes, layers against literal ones, and why masks do not stay full or empty."""
import pytest
import torch
from test_comgan import MODULES, TINY
from torch import nn

from baselines import comgan_networks
from baselines.comgan_networks import CodedGenerator, Discriminator, Features, Generator, Head, Segmenter, compose
from running import train_options


def n_parameters(module):
    return sum(p.numel() for p in module.parameters())


def of_options(method, line, tmp_path):
    line = f"--method {method} --name a --dataroot x --checkpoints_dir {tmp_path} {line}"
    args, _ = train_options.parse(line.split())
    config = TINY | {k: v for k, v in vars(args).items() if k in MODULES[method].SIZES} | {"size": args.size}
    with torch.device("meta"):
        return args, MODULES[method].Model(**config)


def test_the_paper_s_sizes(tmp_path):
    args, plain = of_options("comgan", "--paper", tmp_path)
    assert (args.first_epochs, args.n_epochs, args.n_epochs_decay, args.batch_size) == (450, 900, 0, 90)
    assert (args.lr, args.beta1, args.no_diffaug, args.no_flip, args.amp) == (2e-4, 0.5, True, False, False)
    counts = {name: n_parameters(net) for name, net in plain.networks().items()}
    assert counts == {"G": 5_039_728, "D_z": 2_334_081, "S": 34_527_041, "D_m": 2_333_057, "polarity": 0}
    assert [n_parameters(net) for net in (plain.G.Phi, plain.G.F, plain.G.M)] == [4_815_808, 102_576, 18_768]
    _, coded = of_options("dscomgan", "--paper", tmp_path)
    assert round(n_parameters(coded.G) / 1e6, 2) == 8.56 and round(n_parameters(coded.D_f) / 1e6, 1) == 13.3
    assert n_parameters(coded.D_b) == n_parameters(coded.D_f)


@pytest.mark.parametrize("line,counts", [
    ("", [0.65, 0.46, 0.051, 0.035, 0.32, 0.13, 0.29, 0.31]),
    ("--size 64 --head_width 16", [1.46, 1.32, 0.031, 0.023, 1.28, 0.49, 0.78, 1.28])])
def test_the_sizes_for_a_cpu(line, counts, tmp_path):
    _, model = of_options("dscomgan", line, tmp_path)
    nets = (model.G, model.G.Phi, model.G.F, model.G.M, model.D_z, model.D_f, model.S, model.D_m)
    assert [n_parameters(net) / 1e6 for net in nets] == [pytest.approx(count, abs=0.006) for count in counts]


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("authors", [False, True])
def test_shapes_and_ranges(size, authors):
    z, f = torch.randn(2, 6), torch.eye(3)[[0, 2]]
    for made in (Generator(size, 2, 6, 4, 1, 0)(z), CodedGenerator(size, 2, 6, 4, 1, 1, 3, authors)(z, f, f)):
        images = [image for image in (made.xc, made.xf, made.xb, made.xz) if image is not None]
        assert all(image.shape == (2, 3, size, size) and image.abs().max() <= 1 for image in images)
        assert made.m.shape == (2, 1, size, size) and 0 < made.m.min() and made.m.max() < 1
        s = Segmenter(size, 2, authors)(made.xc)
        assert s.shape == made.m.shape and 0 < s.min() and s.max() < 1
    assert Discriminator(size, 2, 1)(made.m).shape == (2, 1)
    assert Discriminator(size, 2, out=7, posterior=True)(made.xf).shape == (2, 7)
    assert [a.shape[1:] for a in Features(size, 2, 6)(z)] == [(8, size // 4, size // 4), (4, size // 2, size // 2),
                                                             (2, size, size)]


def test_one_gate_and_one_head_against_literal_ones():
    """same = GLU(BN(conv)), res = h + BN(conv(same)), and a code through a linear layer is a tiled one."""
    torch.manual_seed(0)
    h, code = torch.randn(3, 5, 8, 8).double(), torch.eye(4).double()[[1, 3, 1]]

    def norm(t):
        return (t - t.mean((0, 2, 3), keepdim=True)) / (t.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()

    def gate(t):
        return t[:, : t.shape[1] // 2] / (1 + torch.exp(-t[:, t.shape[1] // 2 :]))

    block = comgan_networks.Residual(5).double()
    first, second = (m.weight for m in block.modules() if isinstance(m, nn.Conv2d))
    expected = h + norm(nn.functional.conv2d(gate(norm(nn.functional.conv2d(h, first, padding=1))), second, padding=1))
    assert torch.allclose(block(h), expected)

    tiled, linear = (Head(5, 6, 1, 3, 4, tiled).double() for tiled in (True, False))
    state = tiled.state_dict()
    weight = state["first.weight"]
    state = state | {"first.weight": weight[:, :5], "code.weight": weight[:, 5:].sum((2, 3))}
    linear.load_state_dict(state)
    a, b = tiled.first(torch.cat([h, code[:, :, None, None].expand(-1, -1, 8, 8)], 1)), linear.first(h)
    b = b + linear.code(code)[:, :, None, None]
    assert torch.allclose(a[..., 1:-1, 1:-1], b[..., 1:-1, 1:-1]) and not torch.allclose(a, b)  # but for the border
    assert torch.equal(tiled.eval()(h, code), tiled.body(a)) and torch.equal(linear.eval()(h, code), linear.body(b))


# --- composing, and why masks do not stay full or empty ---


def test_the_image_and_its_gradients():
    """xc = m xf + (1-m) xb; with g = dL/dxc: dL/da = m(1-m) Σ g (xf - xb), dL/dxf = m g, dL/dxb = (1-m) g."""
    rng = torch.Generator().manual_seed(1)
    xf, xb, g = (torch.randn(2, 3, 4, 4, generator=rng, dtype=torch.double) for _ in range(3))
    a = torch.randn(2, 1, 4, 4, generator=rng, dtype=torch.double).requires_grad_()
    made = compose(xf.requires_grad_(), xb.requires_grad_(), a)
    m, f, b = 1 / (1 + torch.exp(-a)), torch.tanh(xf), torch.tanh(xb)
    assert torch.allclose(made.xc, m * f + (1 - m) * b) and made.xz is None
    d_a, d_f, d_b = torch.autograd.grad(made.xc, (a, made.xf, made.xb), g)
    assert torch.allclose(d_a, m * (1 - m) * (g * (f - b)).sum(1, keepdim=True))
    assert torch.allclose(d_f, m * g) and torch.allclose(d_b, (1 - m) * g)
    full, empty = (compose(xf, xb, torch.full_like(a, value)) for value in (200.0, -200.0))
    assert torch.equal(full.xc, full.xf) and torch.equal(empty.xc, empty.xb)


def test_equal_layers_leave_the_mask_where_it_is():
    layer, a = torch.randn(2, 3, 4, 4), torch.randn(2, 1, 4, 4).requires_grad_()
    compose(layer, layer.clone(), a).xc.mul(torch.randn(2, 3, 4, 4)).sum().backward()
    assert not a.grad.any()


def layered(sharing, bias):
    """An image of layers whose features are shared by the heads so named, the mask's logits moved by `bias`."""
    heads = {name: Head(4, 6, 1, 1 if name == "M" else 3) for name in "FBM"}
    common, z = Features(16, 4, 6), torch.randn(4, 6)
    phis = {name: common if name in sharing else Features(16, 4, 6) for name in "FBM"}

    def make():
        out = {name: heads[name](phis[name](z)[-1]) for name in "FBM"}
        return compose(out["F"], out["B"], out["M"] + bias)

    return make(), make, heads, phis


@pytest.mark.parametrize("sharing,moved_when_full,moved_when_empty", [
    ("FBM", True, True), ("FM", True, False), ("", False, False)])  # ComGAN; FineGAN's way; PerturbGAN's
def test_a_full_or_empty_mask_moves_only_where_features_are_shared(sharing, moved_when_full, moved_when_empty):
    for bias, moved in ((200.0, moved_when_full), (-200.0, moved_when_empty)):
        torch.manual_seed(0)
        made, make, heads, phis = layered(sharing, bias)
        assert torch.equal(made.m, torch.full_like(made.m, float(bias > 0)))
        (made.xc * torch.randn_like(made.xc)).sum().backward()
        assert not any(p.grad.any() for p in heads["M"].parameters())
        for p in {p for net in (*heads.values(), *phis.values()) for p in net.parameters()}:
            p.data -= 1e-3 * (0 if p.grad is None else p.grad)
        assert torch.equal(make().a, made.a) is not moved


def test_codes_move_their_layer_alone_and_z_all():
    torch.manual_seed(0)
    G, codes = CodedGenerator(16, 4, 6, 6, 1, 1, 3).eval(), torch.eye(3)
    z, f, b = torch.randn(1, 6), codes[:1], codes[1:2]
    made = G(z, f, b)
    changed = [[not torch.equal(*pair) for pair in zip(made, G(*other), strict=True)]
               for other in ((z, codes[2:], b), (z, f, codes[2:]), (z + 1, f, b))]
    names = made._fields
    assert dict(zip(names, changed[0], strict=True)) == {"xc": True, "xf": True} | dict.fromkeys(names[2:], False)
    assert [n for n, c in zip(names, changed[1], strict=True) if c] == ["xc", "xb"] and all(changed[2])
