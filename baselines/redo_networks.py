"""The networks of ReDO: which regions an image has (F), what each is redrawn with (G_k), and who judges (D, δ).

Layers and sizes are those of the authors' public code where it differs from the paper's tables. Images are (N, 3, H, W)
in [-1, 1], masks of K regions (N, K, H, W) in [0, 1] that sum to 1 at each pixel, codes z (N, nz) standard normal.
F takes images of any size; the others those of `size` = 4·2^L px, L >= 1, and have a block for each of the L doublings.
Weights are orthogonal with gain .8, on which the paper found that all depends (supplement: .2 and 1.4 fail); biases are
as torch makes them.
"""
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from networks import pad_to_multiple

GAIN = 0.8


def halvings(size):
    """L of size = 4·2^L; 0 where there is none."""
    level = (size // 4).bit_length() - 1
    return level if level > 0 and size == 4 * 2**level else 0


def orthogonal(layer):
    """A convolution or linear layer with orthogonal weights; before spectral norm, which hides them from `nn.init`."""
    nn.init.orthogonal_(layer.weight, GAIN)
    return layer


def conv(c, d, kernel=3, bias=True):
    """A convolution of stride 1 whose weight, as a matrix, is divided by its largest singular value: one power
    iteration in each forward pass in training mode."""
    return spectral_norm(orthogonal(nn.Conv2d(c, d, kernel, padding=kernel // 2, bias=bias)))


# --- F: the regions ---


def normed(c, d, kernel=3, stride=1, mode="zeros", first=()):
    """[*first, convolution without bias, instance norm with parameters, ReLU]."""
    layer = nn.Conv2d(c, d, kernel, stride, kernel // 2, bias=False, padding_mode=mode)
    return [*first, orthogonal(layer), nn.InstanceNorm2d(d, affine=True), nn.ReLU(True)]


class MaskBlock(nn.Module):
    """ReLU(IN(h + conv(ReLU(IN(conv(h))))))."""

    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(*normed(channels, channels), orthogonal(nn.Conv2d(channels, channels, 3, padding=1)))
        self.norm = nn.InstanceNorm2d(channels, affine=True)

    def forward(self, h):
        return F.relu(self.norm(h + self.body(h)))


class Pyramid(nn.Module):
    """Pyramid pooling (Zhao et al., CVPR 2017): h beside one channel each of its means over 1, 2, 3, 6 bins a side."""

    BINS = (1, 2, 3, 6)

    def __init__(self, channels):
        super().__init__()
        self.convs = nn.ModuleList(orthogonal(nn.Conv2d(channels, 1, 1)) for _ in self.BINS)

    def forward(self, h):
        """(N, C, H, W) -> (N, C + 4, H, W)."""
        pooled = (c(F.adaptive_avg_pool2d(h, bins)) for c, bins in zip(self.convs, self.BINS, strict=True))
        return torch.cat([h, *(F.interpolate(p, h.shape[-2:], mode="bilinear").to(h) for p in pooled)], 1)


class MaskNet(nn.Module):
    """F: the masks of an image's regions; without spectral norm.

    Args:
        regions: K; two share one channel, as M_1 = sigmoid and M_2 = 1 - M_1, more have a softmax.
        nf: channels at a quarter of the resolution, a multiple of 4.
    """

    def __init__(self, regions=2, nf=64):
        super().__init__()
        wide = nf + len(Pyramid.BINS)
        self.body = nn.Sequential(
            *normed(3, nf // 4, 7, mode="reflect"), *normed(nf // 4, nf // 2, stride=2), *normed(nf // 2, nf, stride=2),
            *(MaskBlock(nf) for _ in range(3)), Pyramid(nf),
            *normed(wide, wide // 2, first=[nn.Upsample(scale_factor=2)]),
            *normed(wide // 2, wide // 4, first=[nn.Upsample(scale_factor=2)]),
            # Deviation: 7x7, as the authors' code has it; the paper's table says 3x3 and a padding of 3
            orthogonal(nn.Conv2d(wide // 4, 1 if regions == 2 else regions, 7, padding=3, padding_mode="reflect")))

    def forward(self, x):
        """x (N, 3, H, W) -> masks (N, K, H, W), in x's precision: bfloat16's would be 0 or 1 too soon, for good."""
        height, width = x.shape[-2:]
        logits = self.body(pad_to_multiple(x, 4)).to(x.dtype)[..., :height, :width]
        if logits.shape[1] > 1:
            return logits.softmax(1)
        m = logits.sigmoid()
        return torch.cat([m, 1 - m], 1)


# --- G_k: new content for a region ---


class Norm(nn.Module):
    """Conditional instance norm: each channel normalised, times γ(z), plus β(z), both linear.

    Deviation: the paper says batch norm, the authors' code has this; so an image does not depend on its batch.
    """

    def __init__(self, channels, nz):
        super().__init__()
        self.gamma, self.beta = (orthogonal(nn.Linear(nz, channels)) for _ in range(2))

    def forward(self, h, z):
        """h (N, C, H, W), z (N, nz) -> (N, C, H, W)."""
        return F.instance_norm(h) * self.gamma(z)[..., None, None] + self.beta(z)[..., None, None]


class UpBlock(nn.Module):
    """Twice the resolution, told the region's mask on the way and z by both norms."""

    def __init__(self, c, d, nz):
        super().__init__()
        self.norm1, self.norm2 = Norm(c, nz), Norm(d, nz)
        self.conv1, self.conv2, self.shortcut = conv(c + 1, d, bias=False), conv(d, d), conv(c, d, 1)

    def forward(self, h, mask, z):
        """h (N, C, H, W), mask (N, 1, S, S), z (N, nz) -> (N, D, 2H, 2W)."""
        a = F.interpolate(with_mask(F.relu(self.norm1(h, z)), mask), scale_factor=2)
        a = self.conv2(F.relu(self.norm2(self.conv1(a), z)))
        return a + F.interpolate(self.shortcut(h), scale_factor=2)


def with_mask(h, mask):
    """h (N, C, H, W) beside the mask (N, 1, S, S), averaged to its size -> (N, C + 1, H, W)."""
    return torch.cat([h, F.adaptive_avg_pool2d(mask, h.shape[-2:]).to(h)], 1)


class Attention(nn.Module):
    """Self-attention (Zhang et al., SAGAN): h + g·out, where g begins at 0; scores are not scaled."""

    def __init__(self, channels):
        super().__init__()
        narrow, half = max(1, channels // 8), max(1, channels // 2)
        self.query, self.key = (conv(channels, narrow, 1, bias=False) for _ in range(2))
        self.value, self.out = conv(channels, half, 1, bias=False), conv(half, channels, 1, bias=False)
        self.g = nn.Parameter(torch.zeros(()))

    def forward(self, h):
        query = self.query(h).flatten(2)  # (N, C/8, H·W)
        key, value = (F.max_pool2d(t, 2).flatten(2) for t in (self.key(h), self.value(h)))  # (N, C/8, C/2, H·W/4)
        weights = (query.transpose(1, 2) @ key).softmax(2)  # (N, H·W, H·W/4), over the keys
        return h + self.g * self.out((value @ weights.transpose(1, 2).to(value)).unflatten(2, h.shape[-2:]))


class Generator(nn.Module):
    """G_k: what is to be seen in region k, drawn everywhere: V_k = G_k(M_k, z_k).

    Args:
        size: px, 4·2^L; ch: channels of the last block, twice as many in each before it but the first, which has as
            many as the second; nz: numbers in z; attention: whether the last block sees its image through one.
    """

    def __init__(self, size, ch=64, nz=32, attention=True):
        super().__init__()
        levels = halvings(size)
        widths = [ch * 2**i for i in reversed(range(levels))]
        self.stem = orthogonal(nn.Linear(nz, 4 * 4 * widths[0]))
        self.blocks = nn.ModuleList(UpBlock(c, d, nz) for c, d in zip([widths[0], *widths], widths, strict=False))
        self.attention = Attention(([widths[0], *widths])[levels - 1]) if attention else None
        self.norm, self.head = Norm(ch, nz), conv(ch + 1, 3)

    def forward(self, mask, z):
        """mask M_k (N, 1, S, S), z (N, nz) -> V_k (N, 3, S, S) in [-1, 1]."""
        h = self.stem(z).unflatten(1, (-1, 4, 4))
        for i, block in enumerate(self.blocks, 1):
            if self.attention and i == len(self.blocks):
                h = self.attention(h)
            h = block(h, mask, z)
        return torch.tanh(self.head(with_mask(F.relu(self.norm(h, z)), mask)).to(mask))


class Generators(nn.ModuleList):
    """All the G_k; nothing is shared between them."""

    def forward(self, masks, z):
        """masks (N, K, S, S), z (N, K, nz) -> V (N, K, 3, S, S)."""
        return torch.stack([g(masks[:, k:k + 1], z[:, k]) for k, g in enumerate(self)], 1)


# --- D and δ ---


class DownBlock(nn.Module):
    """A residual block that halves the resolution; the first has no ReLU before it, the last keeps size and width."""

    def __init__(self, c, d, first=False, last=False):
        super().__init__()
        self.first, self.last = first, last
        self.conv1, self.conv2 = conv(c, d), conv(d, d)
        self.shortcut = None if last else conv(c, d, 1)

    def forward(self, h):
        a = self.conv2(F.relu(self.conv1(h if self.first else F.relu(h))))
        return h + a if self.last else F.avg_pool2d(a, 2) + self.shortcut(F.avg_pool2d(h, 2))


class Critic(nn.Module):
    """D, with one output, a score, and δ, with K·nz of them, which guesses the codes of a redrawn image.

    Args:
        size: px, 4·2^L; ch: channels of the first block, twice as many in each further one; outputs: numbers an image.
        attention: whether there is one after the first block; D's in the authors' code. Deviation: not δ's, which in
            the paper's table has one.
    """

    def __init__(self, size, ch=64, outputs=1, attention=True):
        super().__init__()
        widths = [ch * 2**i for i in range(halvings(size))]
        blocks = [DownBlock(c, d, first=c == 3) for c, d in zip([3, *widths], widths, strict=False)]
        self.body = nn.Sequential(blocks[0], *[Attention(ch)] * attention, *blocks[1:],
                                  DownBlock(widths[-1], widths[-1], last=True))
        self.head = orthogonal(nn.Linear(widths[-1], outputs))

    def forward(self, image):
        """image (N, 3, S, S) -> (N, outputs), in full precision."""
        total = self.body(image).to(image).sum((2, 3))
        with torch.autocast(total.device.type, enabled=False):
            return self.head(total)
