"""The losses of SEIGAN, one pure function per equation (§3.1-3.4), and what a training step does with them.

In this order: the coarse paste and the losses; other views of images; the pool for experience replay;
the update of an optimiser; figures that show a collapsed mask. Losses are scalar tensors, every reduction is a mean.
Weights (the λs) belong to the caller. This file needs torch only and can be copied out alone.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn


def paste(x, y, m):
    """Coarse paste z = m*x + (1-m)*y (§3.1). x, y (N, 3, H, W) in [-1, 1]; m (N, 1, H, W) in [0, 1], 1 = object."""
    return m * x + (1 - m) * y


# --- adversarial terms: least squares GAN (§3.2, §3.3) ---


def gan_generator(d_fake):
    """(1 - D(fake))², the generator's side of l_inp, l_inp2 (with D_bg) and l_coarse, l_enh (with D_obj).

    d_fake: scores of any shape. Minimal where the discriminator takes every fake for real.
    """
    return (1 - _full_precision(d_fake)).square().mean()


def gan_discriminator(d_real, d_fake1, d_fake2):
    """(1 - D(real))² + ½ D(fake1)² + ½ D(fake2)² (§3.4): l_bg_disc and l_obj_disc.

    For D_bg: real y, fakes x_hat and y_hat2. For D_obj: real x, fakes y_hat and z.
    """
    d_real, d_fake1, d_fake2 = map(_full_precision, (d_real, d_fake1, d_fake2))
    return (1 - d_real).square().mean() + 0.5 * d_fake1.square().mean() + 0.5 * d_fake2.square().mean()


# --- reconstruction terms (§3.2, §3.3) ---


def mae(image, target):
    """|image - target|, mean absolute difference: l_bg_MAE (ŷ̂ and y), l_obj_MAE (x̂̂ and x), l_obj_id
    (G_enh(x) and x), l_bg_id (G_inp((1 - m_y) y) and y). Both of one shape, in [-1, 1]."""
    return (_full_precision(image) - _full_precision(target)).abs().mean()


def hole_mae(image, target, hole):
    """|image - target| where holes (N, 1, H, W) in [0, 1] are, 1 = in one, 0 elsewhere: its mean over all pixels.
    Images (N, 3, H, W) in [-1, 1]."""
    return ((_full_precision(image) - _full_precision(target)).abs() * hole).mean()


def gram(features, bare=False):
    """Gram matrix G_ij = Σ_k F_ik F_jk / (C·H·W) of each image (§3.2), in float32 or finer.

    features: (N, C, H, W) -> (N, C, C). Deviation: divided by C·H·W, so that layers of all sizes
    weigh alike; the paper prints the sum, which is that of `bare`.
    """
    n, c, h, w = features.shape
    f = _full_precision(features).reshape(n, c, h * w)
    with torch.autocast(f.device.type, enabled=False):  # half precision overflows in the sum over H·W
        return f @ f.transpose(1, 2) / (1 if bare else c * h * w)


def texture(features, target_features, layers, bare=False):
    """l_bg_texture = |Gram(VGG_1(y)) - Gram(VGG_1(ŷ̂))|, averaged over `layers`.

    Features: {layer: (N, C, H, W)}, e.g. of `networks.VGG19Features`; bare: see `gram`.
    """
    terms = [mae(gram(features[k], bare), gram(target_features[k], bare)) for k in layers]
    return torch.stack(terms).mean()


def perceptual(features, target_features, layers):
    """l_perc = |VGG_2(a) - VGG_2(b)|, averaged over `layers`. Features as for `texture`."""
    terms = [mae(features[k], target_features[k]) for k in layers]
    return torch.stack(terms).mean()


VGG1, VGG2 = (0, 2, 5, 7, 10), (25, 28, 30, 32, 34)  # the first and the last five convolutions of VGG-19 (§3.2)


def vgg_taps(lambdas):
    """The layers of VGG-19 that {term: λ} needs."""
    taps = VGG1 if lambdas["bg_texture"] else ()
    return taps + (VGG2 if lambdas["bg_perc"] or lambdas["obj_perc"] else ())


def vgg_terms(vgg, lambdas, xs, ys, bare=False):
    """Those of l_bg_texture, l_bg_perc and l_obj_perc (§3.2, §3.3) whose λ is not 0, unweighted: {term: scalar tensor}.

    vgg: a `networks.VGG19Features`; xs: x and x_hat2, ys: y and y_hat2, (N, 3, H, W); bare: see `gram`. Real images
    need no graph.
    """
    terms = {}
    if lambdas["bg_texture"] or lambdas["bg_perc"]:
        with torch.no_grad():
            real = vgg(ys[0])
        made = vgg(ys[1])
        if lambdas["bg_texture"]:  # |Gram(VGG_1(y)) - Gram(VGG_1(y_hat2))|
            terms["bg_texture"] = texture(made, real, VGG1, bare)
        if lambdas["bg_perc"]:  # |VGG_2(y) - VGG_2(y_hat2)|
            terms["bg_perc"] = perceptual(made, real, VGG2)
    if lambdas["obj_perc"]:  # |VGG_2(x) - VGG_2(x_hat2)|
        with torch.no_grad():
            real = vgg(xs[0])
        terms["obj_perc"] = perceptual(vgg(xs[1]), real, VGG2)
    return terms


def _full_precision(features):
    return features.to(torch.promote_types(features.dtype, torch.float32))


# --- the upper bound (§4) ---


def cross_entropy(m, mask):
    """Binary cross-entropy of masks m (N, 1, H, W) in [0, 1] against true ones or labels in [0, 1], 1 = object; exactly
    ½ is void and does not count."""
    known = (mask != 0.5).to(m)
    with torch.autocast(m.device.type, enabled=False):  # which refuses it
        return F.binary_cross_entropy(m, mask, known, reduction="sum") / known.sum().clamp(min=1)


# --- other views of an image, experience replay (§3.4) ---


def recolour(images, rng=None):
    """Each image in a brightness, saturation and contrast of its own (as Zhao et al., arXiv 2006.10738, draw them).

    images: (N, 3, H, W) in [-1, 1] -> (N, 3, H, W), a little beyond [-1, 1]; rng: torch.Generator on their device.
    """
    draw = torch.rand((3, len(images), 1, 1, 1), generator=rng, device=images.device, dtype=images.dtype)
    images = images + draw[0] - 0.5
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * 2 * draw[1]
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (0.5 + draw[2])


def views(x, y, mask, rng=None):
    """Other views of objects: half of the images x, drawn at random, become their object on y (copy-paste, Dwibedi et
    al., arXiv 1708.01642), all of them in other colours. Their masks stay.

    x, y: (N, 3, H, W) in [-1, 1], y may be None: then colours alone; mask: (N, 1, H, W), object where ½ or more;
    returns and rng as `recolour`.
    """
    if y is not None:
        drawn = torch.rand((len(x), 1, 1, 1), generator=rng, device=x.device) < 0.5
        x = torch.where(drawn, paste(x, y, (mask >= 0.5).to(x)), x)
    return recolour(x, rng)


def augment(images, rng=None):
    """Differentiable augmentation of what a discriminator sees, real or fake (Zhao et al., arXiv 2006.10738): images
    as `recolour` makes them, each shifted by up to an eighth of its sides. Arguments as there."""
    images = recolour(images, rng)
    n, channels, height, width = images.shape
    draw = torch.rand((2, n, 1, 1, 1), generator=rng, device=images.device, dtype=images.dtype)
    down, right = height // 8, width // 8
    padded = F.pad(images, (right, right, down, down))  # 0 is mid-grey
    rows = (draw[0] * (2 * down + 1)).long() + torch.arange(height, device=images.device).view(-1, 1)
    cols = (draw[1] * (2 * right + 1)).long() + torch.arange(width, device=images.device)
    image, channel = (torch.arange(k, device=images.device) for k in (n, channels))
    return padded[image.view(-1, 1, 1, 1), channel.view(-1, 1, 1), rows, cols]


def zoom(images, rng=None, least=0.5):
    """A part of each image in full size: a random window, `least` to all of its sides. Arguments as for `recolour`."""
    n, _, height, width = images.shape
    side, right, down = torch.rand((3, n, 1), generator=rng, device=images.device, dtype=images.dtype)
    side = least + (1 - least) * side
    # where in the image, from -1 to 1, each column and row of the window lies; F.affine_grid would round in bfloat16
    cols, rows = (side * torch.linspace(-1, 1, k, device=images.device, dtype=images.dtype) + (1 - side) * (2 * at - 1)
                  for k, at in ((width, right), (height, down)))
    grid = torch.stack([cols[:, None].expand(n, height, width), rows[..., None].expand(n, height, width)], -1)
    return F.grid_sample(images, grid, align_corners=True)


class ReplayPool:
    """A pool of past fakes for the discriminators (§3.4).

    Deviation: CycleGAN's pool: while it fills, `query` stores and returns the new images; once full, each new image is,
    with probability ½, exchanged for a stored one picked at random, which is returned in its place.
    The paper's (`past`): what a step gets is drawn from the pool as all steps before it have left it, and its own
    images go in after that, for later steps; so the first step alone gets its own.

    Args:
        size: images held; 0 returns every image unchanged.
        seed: of the pool's own random generator.
        past: whether the pool is the paper's.
    """

    def __init__(self, size=50, seed=0, past=False):
        self.past = past
        self.size = size
        self.count = 0
        self.images = None  # (size, C, H, W), allocated by the first query
        self.rng = torch.Generator().manual_seed(seed)

    def query(self, images):
        """images (N, C, H, W), detached -> as many images (N, C, H, W), new or from the pool; never a view of it."""
        if self.size == 0:
            return images
        if self.images is None:
            self.images = images.new_empty((self.size, *images.shape[1:]))
        exchange = (torch.rand(len(images), generator=self.rng) < 0.5).tolist()
        place = torch.randint(self.size, (len(images),), generator=self.rng).tolist()
        drawn = self.past and self.count > 0
        out = self.images[torch.randint(self.count, (len(images),), generator=self.rng)] if drawn else images.clone()
        for i, image in enumerate(images):
            if self.count < self.size:
                self.images[self.count] = image
                self.count += 1
            elif exchange[i]:
                if not self.past:
                    out[i] = self.images[place[i]]
                self.images[place[i]] = image
        return out

    def state_dict(self):
        """Plain dict of tensors: the images held and the generator's state."""
        images = torch.empty(0) if self.images is None else self.images[: self.count].clone()
        return {"images": images, "rng": self.rng.get_state()}

    def load_state_dict(self, state, device="cpu"):
        """Restore what `state_dict` gave. Raises ValueError if it holds more images than this pool."""
        images = state["images"].to(device)
        self.count = len(images)
        if self.count > self.size:
            raise ValueError(f"the saved pool holds {self.count} images, this one {self.size}")
        self.images = None
        if self.count:
            self.images = images.new_empty((self.size, *images.shape[1:]))
            self.images[: self.count] = images
        self.rng.set_state(state["rng"].cpu())


def restore(rng, state, step):
    """Set a torch.Generator to a saved state; where that is of another kind of device, to a new stream for `step`."""
    if state.numel() == rng.get_state().numel():
        rng.set_state(state)
    else:
        rng.manual_seed(rng.initial_seed() + step)


# --- an update ---


def adam(rates, beta1, beta2=0.999):
    """Adam for {module: learning rate}, whose groups keep that rate as "initial_lr"."""
    groups = [{"params": [*module.parameters()], "lr": lr, "initial_lr": lr} for module, lr in rates.items()]
    return torch.optim.Adam(groups, betas=(beta1, beta2), fused=True)


def update(optimizer, loss, share=lambda parameters: None):
    """`loss.backward()` and, unless a gradient is not finite, `optimizer.step()`. Returns whether it was.

    share: see `Trainer`.
    """
    optimizer.zero_grad()
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    share(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, math.inf)  # which clips nothing
    if torch.isfinite(norm):
        optimizer.step()
    return bool(torch.isfinite(norm))


@torch.no_grad()
def average(averaged, network, step, ema):
    """Move the averaged weights on to those after `step`. Weights count as a power of their step (Karras et al., arXiv
    2312.02696, §3.1), so that runs of any length are averaged alike and the first weights are soon forgotten."""
    rate = 1 - (1 - 1 / step) ** (1 / ema - 1)
    for a, p in zip(averaged.parameters(), network.parameters(), strict=True):
        a.lerp_(p, rate)


# --- collapsed masks ---


def mask_figures(m, allowed):
    """What shows a collapsed mask: {name: scalar tensor}.

    m: (N, 1, H, W) in [0, 1], 1 = object; allowed: likewise, the pixels that a mask may take.

    mask_area: mean of m. Of the allowed pixels, mask_fill: the share at ½ or more; mask_contrast: mean 2·|m - ½|, 1 =
    all values 0 or 1; mask_spread: mean standard deviation of a pixel over the batch (NaN for one image).
    """
    weight = allowed / allowed.sum().clamp(min=1)
    spread = m.std(0) if len(m) > 1 else m.new_full(m.shape[1:], math.nan)
    return {"mask_area": m.mean(), "mask_contrast": (weight * 2 * (m - 0.5).abs()).sum(),
            "mask_fill": (m >= 0.5).sum() / (allowed >= 0.5).sum().clamp(min=1),
            "mask_spread": (weight.sum(0) * spread).sum()}
