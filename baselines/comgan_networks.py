"""The networks of ComGAN and DS-ComGAN (Ding et al., NeurIPS 2022): Phi with its three heads, the discriminators, S.

All but S's default normalise over the batch: what is to be judged alone must go through alone.
"""
from typing import NamedTuple

import torch
from torch import nn

import networks
from losses import paste


class Made(NamedTuple):
    """What a generator makes of its codes; N images of S x S px."""

    xc: torch.Tensor  # m*xf + (1-m)*xb, (N, 3, S, S) in [-1, 1]
    xf: torch.Tensor  # one layer, whole, likewise
    xb: torch.Tensor  # the other
    m: torch.Tensor  # (N, 1, S, S) in [0, 1], 1 = xf is seen; whether xf is the object, nothing says
    a: torch.Tensor  # the logits of m
    xz: torch.Tensor | None = None  # DS-ComGAN: Phi's own image, without layers


def compose(xf, xb, a, xz=None):
    """Eq. 2 and 6. xf, xb: linear outputs of the heads; a: logits of the mask; all in float32."""
    xf, xb, m = torch.tanh(xf), torch.tanh(xb), torch.sigmoid(a)
    return Made(paste(xf, xb, m), xf, xb, m, a, None if xz is None else torch.tanh(xz))


def conv3(c, d):
    return nn.Conv2d(c, d, 3, padding=1, bias=False)


def gate(c):
    """What follows a convolution to 2c channels: batch normalisation and a gated linear unit, which leaves c."""
    return nn.Sequential(nn.BatchNorm2d(2 * c), nn.GLU(1))


def same(c, d):
    """c -> d channels."""
    return nn.Sequential(conv3(c, 2 * d), gate(d))


class Residual(nn.Module):
    """h + BN(conv(same(h)))."""

    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(same(channels, channels), conv3(channels, channels), nn.BatchNorm2d(channels))

    def forward(self, h):
        return h + self.body(h)


class Head(nn.Module):
    """F, B or M: a light network from shared features (N, channels, S, S) to (N, out, S, S), linear.

    Args:
        width, blocks: its channels and residual blocks; n_codes: of the one-hot code that it is told, 0 = none.
        tiled: the code is `n_codes` more features, constant over the image.
    """

    def __init__(self, channels, width, blocks, out, n_codes=0, tiled=False):
        super().__init__()
        self.tiled = n_codes > 0 and tiled
        self.first = conv3(channels + n_codes * self.tiled, 2 * width)
        # Deviation: a code's share of the first convolution, everywhere the same, is a linear layer: equal inside the
        # image, and without `n_codes` more features to convolve.
        self.code = nn.Linear(n_codes, 2 * width, bias=False) if n_codes and not tiled else None
        self.body = nn.Sequential(gate(width), *(Residual(width) for _ in range(blocks)), same(width, 16),
                                  conv3(16, out))

    def forward(self, h, code=None):
        if self.tiled:
            h = torch.cat([h, code[:, :, None, None].expand(-1, -1, *h.shape[-2:]).to(h.dtype)], 1)
        h = self.first(h)
        if self.code is not None:
            h = h + self.code(code)[:, :, None, None]
        return self.body(h)


class Features(nn.Module):
    """Phi: z (N, nz) -> its last three maps [a1, a2, a3], at 1/4, 1/2 and 1/1 of `size`, of 4, 2 and 1 ngf channels.

    It begins at 4 px, and its channels halve where its side doubles.
    """

    def __init__(self, size, ngf, nz):
        super().__init__()
        n = networks.depth(size)
        top = ngf * 2**n
        self.start = nn.Sequential(nn.Linear(nz, 2 * 16 * top, bias=False), nn.BatchNorm1d(2 * 16 * top), nn.GLU(1))
        self.ups = nn.ModuleList(nn.Sequential(nn.Upsample(scale_factor=2), same(top // 2**i, top // 2**(i + 1)))
                                 for i in range(n))

    def forward(self, z):
        h = self.start(z)
        maps = [h.view(len(h), -1, 4, 4)]
        for up in self.ups:
            maps.append(up(maps[-1]))
        return maps[-3:]


class Generator(nn.Module):
    """ComGAN's: F, B and M read the same features Phi(z), and nothing else (eq. 2)."""

    def __init__(self, size, ngf, nz, head_width, head_blocks, mask_blocks):
        super().__init__()
        self.Phi = Features(size, ngf, nz)
        self.F, self.B = (Head(ngf, head_width, head_blocks, 3) for _ in range(2))
        self.M = Head(ngf, head_width, mask_blocks, 1)

    def forward(self, z):
        """z (N, nz) -> `Made`."""
        phi = self.Phi(z)[-1]
        return compose(*(net(phi).to(z.dtype) for net in (self.F, self.B, self.M)))


class CodedGenerator(nn.Module):
    """DS-ComGAN's: shared features are all three maps of Phi (eq. 5), F and B have a code of their own (eq. 6).

    Args:
        tiled: as the authors' code, maps are convolved after upsampling, and codes are tiled.
    """

    def __init__(self, size, ngf, nz, head_width, head_blocks, mask_blocks, n_codes, tiled=False):
        super().__init__()
        self.Phi = Features(size, ngf, nz)
        channels = (2 * ngf, ngf, ngf)  # of phi
        self.maps = nn.ModuleList()
        for scale, c, d in ((4, 4 * ngf, channels[0]), (2, 2 * ngf, channels[1])):
            up = nn.Upsample(scale_factor=scale)
            # Deviation: convolved before upsampling, at a sixteenth and a quarter of the cost.
            self.maps.append(nn.Sequential(up, same(c, d)) if tiled else nn.Sequential(same(c, d), up))
        self.whole = conv3(ngf, 3)
        self.F, self.B = (Head(sum(channels), head_width, head_blocks, 3, n_codes, tiled) for _ in range(2))
        self.M = Head(sum(channels), head_width, mask_blocks, 1)

    def forward(self, z, f, b):
        """z (N, nz), one-hot f, b (N, n_codes) -> `Made`."""
        a1, a2, a3 = self.Phi(z)
        phi = torch.cat([self.maps[0](a1), self.maps[1](a2), a3], 1)
        out = self.F(phi, f), self.B(phi, b), self.M(phi), self.whole(a3)
        return compose(*(image.to(z.dtype) for image in out))


class Discriminator(nn.Module):
    """D_z, D_m, and with more outputs the posteriors D_f, D_b: images (N, channels, S, S) -> logits (N, out).

    Convolutions of stride 2 down to 4 px, `ndf` channels and up to 8 times as many; one more, `posterior` two; one that
    spans what is left.
    """

    def __init__(self, size, ndf, channels=3, out=1, posterior=False):
        super().__init__()
        widths = [min(2**i, 8) * ndf for i in range(networks.depth(size))]
        layers = [nn.Conv2d(channels, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
        for c, d in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(c, d, 4, 2, 1, bias=False), nn.BatchNorm2d(d), nn.LeakyReLU(0.2)]
        for _ in range(2 if posterior else 1):
            layers += [conv3(widths[-1], widths[-1]), nn.BatchNorm2d(widths[-1]), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers, nn.Conv2d(widths[-1], out, 4), nn.Flatten())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.orthogonal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, image):
        return self.body(image).to(image.dtype)


class PoolingUNet(nn.Module):
    """The authors' S: four max-pools, two convolutions at each of five resolutions, `ngf` to 16 ngf channels; H, W
    divide by 16."""

    def __init__(self, ngf=64):
        super().__init__()
        widths = [2**i * ngf for i in range(5)]
        self.pool = nn.MaxPool2d(2)
        self.downs = nn.ModuleList(self.twice(c, d) for c, d in zip([3, *widths], widths, strict=False))
        self.ups = nn.ModuleList(nn.Sequential(nn.Upsample(scale_factor=2), *self.once(2 * d, d))
                                 for d in reversed(widths[:-1]))
        self.joins = nn.ModuleList(self.twice(2 * d, d) for d in reversed(widths[:-1]))
        self.head = nn.Conv2d(ngf, 1, 1)

    @staticmethod
    def once(c, d):
        return [nn.Conv2d(c, d, 3, padding=1), nn.BatchNorm2d(d), nn.ReLU()]

    def twice(self, c, d):
        return nn.Sequential(*self.once(c, d), *self.once(d, d))

    def forward(self, x):
        skips = [self.downs[0](x)]
        for down in self.downs[1:]:
            skips.append(down(self.pool(skips[-1])))
        h = skips.pop()
        for up, join in zip(self.ups, self.joins, strict=True):
            h = join(torch.cat([skips.pop(), up(h)], 1))
        return self.head(h)


class Segmenter(nn.Module):
    """S: images (N, 3, S, S) in [-1, 1] -> masks (N, 1, S, S) in [0, 1], 1 = what m shows of xf.

    Deviation: by default a U-Net without batch statistics: alone an image gets the mask that it gets in a batch.
    """

    def __init__(self, size, ngf, pooling=False):
        super().__init__()
        self.net = PoolingUNet(ngf) if pooling else networks.UNet(3, 1, ngf, networks.depth(size))

    def forward(self, x):
        return torch.sigmoid(self.net(x).to(x.dtype))
