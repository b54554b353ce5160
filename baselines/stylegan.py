"""StyleGAN's networks (Karras et al., arXiv 1812.04948) as PerturbGAN uses them, and its encoder: plain modules.

Images are (N, 3, H, W) in [-1, 1], of 8, 16, 32, ... px. All weights are drawn from N(0, 1) and multiplied by
sqrt(2 / fan-in) at run time ("equalised rate", Karras et al., arXiv 1710.10196).
"""
import math

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

FIRST, LEAST = 4, 8  # px of the learned constant, and of the smallest images


def sides(size):
    """4, 8, ..., size: the sides in px of a generator's blocks. ValueError for other sizes than 8, 16, 32, ..."""
    if size < LEAST or size & (size - 1):
        raise ValueError(f"images must be 8, 16, 32, ... px, got {size}")
    return [2**i for i in range(2, size.bit_length())]


def widths(size, channels, channels_full):
    """{side: channels of the layers there}: `channels_full` at `size` px, twice as many at each halving, `channels` at
    most."""
    return {side: min(channels, channels_full * size // side) for side in sides(size)}


def act(h):
    return F.leaky_relu(h, 0.2)


def blur(h):
    """[1 2 1] x [1 2 1] / 16 with zeros around."""
    line = h.new_tensor([0.25, 0.5, 0.25])
    return F.conv2d(h, torch.outer(line, line).expand(h.shape[1], 1, 3, 3), padding=1, groups=h.shape[1])


def double(h):
    return F.interpolate(h, scale_factor=2, mode="nearest")


class Conv(nn.Conv2d):
    """A convolution with an equalised rate, that keeps the size of its input where it is of 1 or 3 px."""

    def __init__(self, c_in, c_out, kernel, padding=None):
        super().__init__(c_in, c_out, kernel, padding=kernel // 2 if padding is None else padding)
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)
        self.scale = math.sqrt(2 / (c_in * kernel**2))

    def forward(self, h):
        return self._conv_forward(h, self.weight * self.scale, self.bias)


class Linear(nn.Linear):
    """A linear layer with an equalised rate."""

    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out)
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)
        self.scale = math.sqrt(2 / n_in)

    def forward(self, h):
        return F.linear(h, self.weight * self.scale, self.bias)


class Mapping(nn.Module):
    """z -> w: z over its root mean square, then linear layers. (N, dim) -> (N, dim)."""

    def __init__(self, dim, n_layers):
        super().__init__()
        self.layers = nn.ModuleList(Linear(dim, dim) for _ in range(n_layers))

    def forward(self, z):
        w = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            w = act(layer(w))
        return w


class Styled(nn.Module):
    """What follows each convolution: noise, a leaky ReLU, AdaIN: γ·IN(h) + β with (γ, β) linear in w."""

    def __init__(self, channels, dim):
        super().__init__()
        self.noise = nn.Parameter(torch.zeros(channels))
        self.scale = math.sqrt(2 / channels)
        self.affine = Linear(dim, 2 * channels)
        with torch.no_grad():
            self.affine.bias[:channels] = 1

    def forward(self, h, w, noise):
        """h (N, C, H, W), w (N, dim), noise (N, 1, H, W) or None = none."""
        if noise is not None:
            h = h + (self.noise * self.scale).view(1, -1, 1, 1).to(h.dtype) * noise.to(h.dtype)
        gain, bias = self.affine(w).to(h.dtype)[:, :, None, None].chunk(2, 1)
        return gain * F.instance_norm(act(h), eps=1e-5) + bias


class Block(nn.Module):
    """The layers of a generator at one resolution; c_in = None: the first, from a learned constant."""

    def __init__(self, c_in, c_out, dim):
        super().__init__()
        if c_in is None:
            self.constant = nn.Parameter(torch.randn(c_out, FIRST, FIRST))
        else:
            self.conv = Conv(c_in, c_out, 3)
        self.conv2 = Conv(c_out, c_out, 3)
        self.styled, self.styled2 = Styled(c_out, dim), Styled(c_out, dim)

    def forward(self, h, w, rng=None):
        """h (N, C, H, W), of the first block None; w (N, 2, dim); rng: of the noise, None = none."""
        h = self.constant.expand(len(w), -1, -1, -1) if h is None else blur(self.conv(double(h)))
        noise = None if rng is None else torch.randn((len(w), 1, *h.shape[2:]), generator=rng, device=h.device)
        h = self.styled(h, w[:, 0], noise)
        return self.styled2(self.conv2(h), w[:, 1], noise)


class Generator(nn.Module):
    """StyleGAN's generator, with an output at each side from 8 px on, or at `size` alone.

    Args:
        size: px of the largest images.
        channels, channels_full: see `widths`.
        dim: of z and of w.
        n_layers: of the mapping.
        out: channels of the images.
        grow: whether smaller images are made too.
    """

    def __init__(self, size, channels, channels_full, dim, n_layers, out, grow=False):
        super().__init__()
        c = widths(size, channels, channels_full)
        self.sides, self.mapping = sides(size), Mapping(dim, n_layers)
        pairs = zip([None, *self.sides[:-1]], self.sides, strict=True)
        self.blocks = nn.ModuleList(Block(c.get(smaller), c[side], dim) for smaller, side in pairs)
        self.outs = nn.ModuleDict({str(s): Conv(c[s], out, 1) for s in self.sides if s == size or grow and s >= LEAST})

    def styles(self, z, z2=None, last=None):
        """w of every layer, (N, blocks, 2, dim), of z (N, dim); blocks after number `last` take z2's (style mixing)."""
        w = self.mapping(z)[:, None, None].expand(-1, len(self.blocks), 2, -1)
        if z2 is None:
            return w
        w2 = self.mapping(z2)[:, None, None].expand_as(w)
        return torch.cat([w[:, : last + 1], w2[:, last + 1 :]], 1)

    def forward(self, w, side=None, alpha=1.0, rng=None):
        """w (N, blocks, 2, dim) -> (N, out, side, side) in float32, unbounded; alpha < 1: mixed with the image of half
        the side, (1-α)·up(out_lower) + α·out (§2 of arXiv 1710.10196). rng: of the noise, None = none."""
        side, h = side or self.sides[-1], None
        for i, (block, at) in enumerate(zip(self.blocks, self.sides, strict=True)):
            lower, h = h, block(h, w[:, i], rng)
            if at == side:
                break
        image = self.outs[str(side)](h).float()
        if alpha == 1:
            return image
        return (1 - alpha) * double(self.outs[str(side // 2)](lower).float()) + alpha * image


class Trunk(nn.Module):
    """The discriminator's layers down to a map of 4 px. Arguments as of `Generator`."""

    def __init__(self, size, channels, channels_full, grow=False):
        super().__init__()
        c = widths(size, channels, channels_full)
        self.sides = sides(size)[:0:-1]  # size, ..., 8
        self.ins = nn.ModuleDict({str(s): Conv(3, c[s], 1) for s in self.sides if s == size or grow})
        self.stages = nn.ModuleDict({str(s): nn.ModuleList([Conv(c[s], c[s], 3), Conv(c[s], c[s // 2], 3)])
                                     for s in self.sides})

    def halve(self, h):
        """One stage: (N, C, H, W) -> (N, C', H/2, W/2)."""
        conv, conv2 = self.stages[str(h.shape[-1])]
        return act(F.avg_pool2d(conv2(blur(act(conv(h)))), 2))

    def trunk(self, x, alpha=1.0, until=FIRST):
        """x (N, 3, H, W) -> the map of `until` px; alpha < 1: x of half the side is mixed in after the first stage."""
        h = self.ins[str(x.shape[-1])](x)
        if alpha < 1:
            h = (1 - alpha) * self.ins[str(x.shape[-1] // 2)](F.avg_pool2d(x, 2)) + alpha * self.halve(h)
        while h.shape[-1] > until:
            h = self.halve(h)
        return h


class Discriminator(Trunk):
    """StyleGAN's discriminator: one score an image. Arguments as of `Generator`."""

    def __init__(self, size, channels, channels_full, grow=False):
        super().__init__(size, channels, channels_full, grow)
        c = widths(size, channels, channels_full)[FIRST]
        self.conv, self.conv2, self.score = Conv(c + 1, c, 3), Conv(c, c, FIRST, padding=0), Linear(c, 1)

    def forward(self, x, alpha=1.0):
        """x (N, 3, H, W), which should be all real or all fake -> scores (N,) in float32."""
        h = self.trunk(x, alpha)
        deviation = (h.float().var(0, unbiased=False) + 1e-8).sqrt().mean().to(h.dtype)  # of the batch, one number
        h = torch.cat([h, deviation.expand(len(h), 1, *h.shape[2:])], 1)
        return self.score(act(self.conv2(act(self.conv(h)))).flatten(1)).flatten().float()


class Encoder(Trunk):
    """E: an image -> w of every layer of several generators, by the discriminator's trunk.

    Args:
        size, channels, channels_full: as of `Generator`.
        dim: of w.
        n_generators: number of generators, of as many blocks each as images of `size` px take.
    """

    def __init__(self, size, channels, channels_full, dim, n_generators=2):
        super().__init__(size, channels, channels_full)
        self.shape = (n_generators, len(sides(size)), 2, dim)
        self.codes = nn.Linear(widths(size, channels, channels_full)[FIRST] * FIRST**2, math.prod(self.shape))

    def forward(self, x):
        """x (N, 3, size, size) -> (N, generators, blocks, 2, dim) in float32."""
        return self.codes(self.trunk(x).flatten(1)).float().unflatten(1, self.shape)

    @torch.no_grad()
    def begin(self, discriminator, mean):
        """Take a trained discriminator's trunk, and codes near the `mean` w of each generator (generators, dim)."""
        for mine, its in ((self.stages, discriminator.stages), (self.ins, discriminator.ins)):
            mine.load_state_dict({key: value for key, value in its.state_dict().items() if key in mine.state_dict()})
        self.codes.weight.mul_(0.01)
        self.codes.bias.copy_(mean[:, None, None].expand(self.shape).flatten())


class ResNetEncoder(nn.Module):
    """E: ResNet-18 from scratch, without its average pool, and a linear layer. Arguments as of `Encoder`."""

    def __init__(self, size, dim, n_generators=2):
        super().__init__()
        self.shape = (n_generators, len(sides(size)), 2, dim)
        self.body = resnet18()
        self.body.avgpool, self.body.fc = nn.Identity(), nn.Linear(512 * (size // 32) ** 2, math.prod(self.shape))

    def forward(self, x):
        """x (N, 3, size, size) -> (N, generators, blocks, 2, dim) in float32."""
        return self.body(x).float().unflatten(1, self.shape)

    @torch.no_grad()
    def begin(self, _discriminator, mean):
        """Codes near the `mean` w of each generator (generators, dim)."""
        self.body.fc.weight.mul_(0.01)
        self.body.fc.bias.copy_(mean[:, None, None].expand(self.shape).flatten())
