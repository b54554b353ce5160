"""The networks of SEIGAN (§3.2-3.4, Fig. 3): three generators, the discriminator, VGG-19 features.

Images are (N, 3, H, W) in [-1, 1], masks (N, 1, H, W) in [0, 1] with 1 = object. Every normalisation is
per sample (instance normalisation without running statistics), so calls may be stacked along N without
changing a value. The generators take any H and W: they pad by reflection to a multiple of their stride
and crop back. This file needs torch (and VGG-19's features torchvision) only and can be copied out alone.
"""
import torch
import torch.nn.functional as F
from torch import nn


def norm(channels):
    """Instance normalisation: per sample, no affine parameters, no running statistics."""
    return nn.InstanceNorm2d(channels)


def init_weights(net, std=0.02):
    """Initialise every convolution of `net` in place: weights N(0, std), biases 0, as CycleGAN."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def fixed_noise(image, seed):
    """Standard normal noise (N, 1, H, W) for images (N, C, H, W), one for all of them; it depends on `seed` alone."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn((1, 1, *image.shape[-2:]), generator=rng).to(image).expand(len(image), -1, -1, -1)


def pad_to_multiple(image, multiple):
    """Pad (N, C, H, W) at the right and bottom so that H and W divide by `multiple`, and are at least twice it.

    Reflection where the image is larger than the padding, else its border is repeated.
    """
    height, width = image.shape[-2:]
    bottom, right = (max(-side % multiple, 2 * multiple - side) for side in (height, width))
    if bottom == 0 and right == 0:
        return image
    mode = "reflect" if bottom < height and right < width else "replicate"
    return F.pad(image, (0, right, 0, bottom), mode=mode)


def depth(size):
    """The number of halvings that leave 4 px or more of an image of `size` px."""
    return max(1, size.bit_length() - 3)


def box_mask(box, height, width, grow=1.0):
    """The area of a box as a mask: the share of each pixel that it covers.

    Args:
        box: (N, 4) left, top, width, height in fractions of the image.
        grow: factor on width and height, about the box's centre; 0 = everything is inside.

    Returns:
        (N, 1, height, width) in [0, 1], 1 = inside.
    """
    if not grow:
        return torch.ones(len(box), 1, height, width, device=box.device)
    left, top, w, h = box.float().unbind(1)

    def coverage(start, extent, pixels):
        lo = (start + extent * (1 - grow) / 2) * pixels
        hi = lo + extent * grow * pixels
        i = torch.arange(pixels, device=box.device, dtype=torch.float32)
        return (torch.minimum(i + 1, hi[:, None]) - torch.maximum(i, lo[:, None])).clamp(0, 1)

    return coverage(top, h, height)[:, None, :, None] * coverage(left, w, width)[:, None, None, :]


def grow(m, pixels):
    """Masks (N, 1, H, W), each value the greatest within so many pixels in any direction."""
    return F.max_pool2d(m, 2 * pixels + 1, 1, pixels)


class ResidualBlock(nn.Module):
    """h + conv(relu(conv(h))) with 3x3 convolutions and reflection padding, as in CycleGAN's ResNet."""

    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect"),
            norm(channels),
            nn.ReLU(True),
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect"),
            norm(channels),
        )

    def forward(self, h):
        return h + self.body(h)


class SegmentationNet(nn.Module):
    """G_seg: CycleGAN's ResNet with a logistic sigmoid on one channel (§3.4, Fig. 3 right).

    A 7x7 stem, two stride-2 convolutions, `n_blocks` residual blocks, two upsampling stages, a 7x7 head.

    Args:
        ngf: channels of the stem; twice and four times as many at the lower resolutions.
        n_blocks: residual blocks at a quarter of the resolution.
        head_bias: initial bias of the last layer, before the sigmoid.
        transposed: upsample by transposed convolutions, as CycleGAN's ResNet does, and so the paper's.
    """

    stride = 4

    def __init__(self, ngf=64, n_blocks=6, head_bias=-2.0, transposed=False):
        super().__init__()
        layers = [nn.Conv2d(3, ngf, 7, padding=3, padding_mode="reflect"), norm(ngf), nn.ReLU(True)]
        for c in (ngf, 2 * ngf):
            layers += [nn.Conv2d(c, 2 * c, 3, stride=2, padding=1), norm(2 * c), nn.ReLU(True)]
        layers += [ResidualBlock(4 * ngf) for _ in range(n_blocks)]
        for c in (4 * ngf, 2 * ngf):
            # Deviation: upsampling then convolution; transposed convolutions leave dots in the masks.
            up = [nn.ConvTranspose2d(c, c // 2, 3, stride=2, padding=1, output_padding=1)] if transposed else \
                [nn.Upsample(scale_factor=2), nn.Conv2d(c, c // 2, 3, padding=1)]
            layers += [*up, norm(c // 2), nn.ReLU(True)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(ngf, 1, 7, padding=3, padding_mode="reflect")
        init_weights(self)
        # Deviation: training starts from a nearly empty mask; from a full one it does not recover.
        nn.init.constant_(self.head.bias, head_bias)

    def forward(self, x):
        """x (N, 3, H, W) in [-1, 1] -> m (N, 1, H, W) in [0, 1], 1 = object."""
        height, width = x.shape[-2:]
        h = self.body(pad_to_multiple(x, self.stride))
        logits = self.head(h).to(x.dtype)  # under autocast too: bfloat16's sigmoid is 1 from a logit of 6 on, for good
        return torch.sigmoid(logits)[..., :height, :width]


class UNet(nn.Module):
    """U-Net (§3.4, Fig. 3 left) with skip connections at every resolution, the full one included.

    Args:
        in_channels, out_channels: of the images in and out; the output is linear.
        ngf: channels at full resolution; doubled at each halving, up to 8 * ngf.
        n_downs: halvings of the resolution.
    """

    def __init__(self, in_channels, out_channels=3, ngf=64, n_downs=5):
        super().__init__()
        channels = [min(2**i, 8) * ngf for i in range(n_downs + 1)]
        self.stride = 2**n_downs
        self.stem = nn.Sequential(nn.Conv2d(in_channels, ngf, 3, padding=1), nn.LeakyReLU(0.2, True))
        self.downs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, d, 4, stride=2, padding=1), norm(d), nn.LeakyReLU(0.2, True))
            for c, d in zip(channels[:-1], channels[1:], strict=True)
        )
        self.ups = nn.ModuleList(
            # twice c in: the decoder's features and the skip of the same resolution, except at the bottom
            nn.Sequential(
                nn.Conv2d(d if i == n_downs - 1 else 2 * d, c, 3, padding=1),
                norm(c),
                nn.ReLU(True),
                nn.Upsample(scale_factor=2, mode="bilinear"),
            )
            for i, (c, d) in enumerate(zip(channels[:-1], channels[1:], strict=True))
        )
        self.head = nn.Conv2d(2 * ngf, out_channels, 3, padding=1)
        init_weights(self)

    def forward(self, image):
        """(N, in_channels, H, W) -> (N, out_channels, H, W), unbounded."""
        height, width = image.shape[-2:]
        h = self.stem(pad_to_multiple(image, self.stride))
        skips = []
        for down in self.downs:
            skips.append(h)
            h = down(h)
        for up, skip in zip(reversed(self.ups), reversed(skips), strict=True):
            h = torch.cat([up(h), skip], 1)
        return self.head(h)[..., :height, :width]


def prefill(cut, m, levels, sweeps=8):
    """A smooth fill of what was cut out, without learning: Laplace's equation, solved coarse to fine.

    Pull-push (Gortler et al., "The lumigraph", 1996): known values, weighted by how far they are known, are averaged
    over ever larger cells, then carried back to where they are missing, and made smooth by Jacobi sweeps at each level.

    Args:
        cut: (1 - m) * x, (N, 3, H, W); m: the hole, (N, 1, H, W) in [0, 1], 1 = cut out; H and W divide by 2**levels.
        levels: halvings of the resolution; what they leave unknown starts at the image's mean colour.
        sweeps: Jacobi sweeps a level.

    Returns:
        (N, 3, H, W): x where m = 0, smooth where m = 1.
    """
    pyramid = [((1 - m) * cut, (1 - m).square())]
    for _ in range(levels):
        pyramid.append([F.avg_pool2d(t, 2) for t in pyramid[-1]])
    total, weight = (t.sum((2, 3), keepdim=True) for t in pyramid[-1])
    fill = (total / weight.clamp(min=1e-6)).expand_as(pyramid[-1][0])
    for level, (total, weight) in reversed([*enumerate(pyramid)]):
        if level < levels:
            fill = F.interpolate(fill, scale_factor=2, mode="bilinear")
        known = (4 * weight).clamp(max=1)  # a cell of which a quarter is known counts as known
        given = known * total / weight.clamp(min=1e-6)
        fill = given + (1 - known) * fill
        for _ in range(sweeps):
            p = F.pad(fill, (1, 1, 1, 1), mode="replicate")
            around = (p[..., :-2, 1:-1] + p[..., 2:, 1:-1] + p[..., 1:-1, :-2] + p[..., 1:-1, 2:]) / 4
            fill = given + (1 - known) * around
    return fill


class InpaintingNet(nn.Module):
    """G_inp: two U-Nets in sequence (§3.2). x_hat = G_inp((1 - m) * x).

    Args:
        direct: the image is tanh of the second U-Net, which sees tanh of the first, as in the paper; neither is told m.
    """

    def __init__(self, ngf=64, n_downs=5, direct=False):
        super().__init__()
        self.direct, self.n_downs, self.stride = direct, n_downs, 2**n_downs
        self.first = UNet(3 + 1 if direct else 3 + 1 + 1, 3, ngf, n_downs)
        self.second = UNet(3 if direct else 3 + 1, 3, ngf, n_downs)
        for unet in () if direct else (self.first, self.second):
            nn.init.zeros_(unet.head.weight)

    def forward(self, cut, m, noise):
        """Fill what was cut out.

        Args:
            cut: (1 - m) * x, (N, 3, H, W) in [-1, 1].
            m: (N, 1, H, W) in [0, 1], 1 = object, cut out.
            noise: (N, 1, H, W), standard normal.

        Returns:
            x_hat (N, 3, H, W) in [-1, 1], and the first U-Net's image; unless `direct`, both are x where m = 0.
        """
        height, width = cut.shape[-2:]
        cut, m, noise = (pad_to_multiple(t, self.stride) for t in (cut, m, noise))
        fill = self.coarse_fill(cut, m, noise)
        if self.direct:
            coarse, x_hat = fill, torch.tanh(self.second(fill).to(cut.dtype))
        else:
            coarse = cut.detach() + m.detach() * fill
            change = self.second(torch.cat([coarse.detach(), m], 1))
            x_hat = cut + m * (fill.detach() + change).clamp(-1, 1)
        return x_hat[..., :height, :width], coarse[..., :height, :width]

    def coarse_fill(self, cut, m, noise):
        """What the first U-Net puts into the hole, (N, 3, H, W) in [-1, 1]; arguments as for `forward`."""
        height, width = cut.shape[-2:]
        cut, m, noise = (pad_to_multiple(t, self.stride) for t in (cut, m, noise))
        if self.direct:
            fill = torch.tanh(self.first(torch.cat([cut, noise], 1)).to(cut.dtype))
        else:
            # Deviation: both U-Nets see the hole and change a smooth fill of it; what is outside stays as it is. Each
            # learns from its own image alone, and m not through the fill, or it would leak the object's colours.
            known, hole = cut.detach(), m.detach()
            with torch.autocast(cut.device.type, enabled=False):
                smooth = prefill(known, hole, self.n_downs)
            fill = (smooth + self.first(torch.cat([smooth, hole, noise], 1))).clamp(-1, 1)
        return fill[..., :height, :width]


class EnhancementNet(nn.Module):
    """G_enh: a U-Net on the coarse paste (§3.3). y_hat = clamp(z + U(z, noise)), or tanh(U(z, noise)).

    Args:
        direct: output the image itself (tanh) rather than a residual on z.
    """

    def __init__(self, ngf=64, n_downs=5, direct=False):
        super().__init__()
        self.unet = UNet(3 + 1, 3, ngf, n_downs)
        self.direct, self.stride = direct, self.unet.stride

    def forward(self, z, noise):
        """z (N, 3, H, W) in [-1, 1], noise (N, 1, H, W) standard normal -> y_hat (N, 3, H, W) in [-1, 1]."""
        # Deviation: "applied to z" is read as a residual; the noise is one channel beside z.
        out = self.unet(torch.cat([z, noise], 1))
        return torch.tanh(out.to(z.dtype)) if self.direct else (z + out).clamp(-1, 1)


class Discriminator(nn.Module):
    """D_obj or D_bg: CycleGAN's convolutional discriminator with a linear output (§3.2, §3.3).

    Deviation: D_bg, the paper's "ImageGAN", scores fields too. With log2(H) - 2 layers, 5 at 128 px, each field covers
    the whole image, from any corner.

    Args:
        ndf: channels of the first layer; doubled by each further one, up to 8 * ndf.
        n_layers: stride-2 layers; the receptive field is 70 px with 3, 142 px with 4, 286 px with 5.
        whole: side in px of images of which there is one score alone, as the paper's D_bg gives it: the last
            convolution spans all that is left of them. 0 = a score of each field.
    """

    def __init__(self, ndf=64, n_layers=4, whole=0):
        super().__init__()
        layers = [nn.Conv2d(3, ndf, 4, stride=2, padding=1), nn.LeakyReLU(0.2, True)]
        channels = [min(2**i, 8) * ndf for i in range(n_layers + 1)]
        for i, (c, d) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
            stride = 2 if i < n_layers - 1 else 1
            layers += [nn.Conv2d(c, d, 4, stride=stride, padding=1), norm(d), nn.LeakyReLU(0.2, True)]
        # the two stride-1 layers of width 4 need two pixels each after n_layers halvings
        self.min_size = 3 * 2**n_layers
        left = max(whole, self.min_size) // 2**n_layers - 1  # px a side, before the last layer
        layers += [nn.Conv2d(channels[-1], 1, left) if whole else nn.Conv2d(channels[-1], 1, 4, padding=1)]
        self.body = init_weights(nn.Sequential(*layers))

    def forward(self, image):
        """(N, 3, H, W) in [-1, 1] -> scores (N, 1, H', W'), near 1 for real and near 0 for fake; H' = W' = 1 where
        there is one of the whole image."""
        return self.body(image)


class VGG19Features(nn.Module):
    """Features of a frozen VGG-19 at the paper's two sets of layers (§3.2), each after its ReLU.

    VGG_1 = the first five convolutions, VGG_2 = the last five (`losses.VGG1`, `losses.VGG2`), by their index in
    torchvision's `vgg19().features`. Only the layers up to the deepest one asked for are built.

    Args:
        taps: indices of convolutions whose rectified outputs are returned.
        state: state dict with torchvision's names ("features.0.weight", ...); it need only hold the
            layers in use. Raises ValueError where one is missing or has another shape.
    """

    def __init__(self, taps, state):
        from torchvision.models.feature_extraction import create_feature_extractor  # here: all that needs torchvision
        from torchvision.models.vgg import cfgs, make_layers

        super().__init__()
        self.features = create_feature_extractor(make_layers(cfgs["E"]).eval(), {str(i + 1): str(i) for i in taps})
        needed = {f"features.{name}": tensor for name, tensor in self.features.state_dict().items()}
        for name, tensor in needed.items():
            if name not in state:
                raise ValueError(f"the VGG-19 weights hold no {name}, which layer {max(taps)} needs")
            if state[name].shape != tensor.shape:
                raise ValueError(f"{name} of the VGG-19 weights has shape {tuple(state[name].shape)}, "
                                 f"not torchvision's {tuple(tensor.shape)}")
        self.features.load_state_dict({name.removeprefix("features."): state[name] for name in needed})
        self.features.requires_grad_(False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, image):
        """image (N, 3, H, W) in [-1, 1] -> {index: (N, C, H', W')}, one entry a tap."""
        features = self.features(((image + 1) / 2 - self.mean) / self.std)
        return {int(i): h for i, h in features.items()}
