"""SEIGAN: Segment-Enhance-Inpaint GAN (arXiv 1811.07630): the model, its losses and its training step.

    model = SEIGAN.load("checkpoints/demo/best.pt")
    m, y_hat, x_hat = model.segment(x), model.paste(x, y), model.remove(x)

Images are (N, 3, H, W) in [-1, 1], masks (N, 1, H, W) in [0, 1] with 1 = object, boxes (N, 4) or (4,):
left, top, width, height in fractions of the image. x = <O, B_x> shows an object, y = <none, B_y> does not.
"""
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import losses
from networks import Discriminator, EnhancementNet, InpaintingNet, SegmentationNet, VGG19Features
from running.checkpoint import load_checkpoint

MODES = ("seigan", "nocycle", "supervised")

# λ1..λ11 (§3.4) under the names of their terms.
# Deviation: λ3, which the printed total leaves out, is there; it and the other VGG-19 terms are 0 until asked for.
LAMBDAS = {
    "inp": 1.0,  # λ1, l_inp_GAN
    "inp2": 1.0,  # λ2, l_inp2_GAN
    "bg_texture": 0.0,  # λ3, l_bg_texture
    "bg_perc": 0.0,  # λ4, l_bg_perc
    "bg_mae": 5.0,  # λ5, l_bg_MAE
    "obj_perc": 0.0,  # λ6, l_obj_perc
    "obj_mae": 1.0,  # λ7, l_obj_MAE
    "coarse": 3.0,  # λ8, l_coarse_GAN
    "enh": 3.0,  # λ9, l_enh_GAN
    "id_obj": 1.0,  # λ10, l_obj_id
    "id_bg": 3.0,  # λ11, l_bg_id
}
VGG_TERMS = ("bg_texture", "bg_perc", "obj_perc")
NOCYCLE_TERMS = ("coarse", "enh")
GENERATORS = ("G_seg", "G_enh", "G_inp")
NETWORKS = (*GENERATORS, "D_obj", "D_bg")
NO_VGG = dict.fromkeys(VGG_TERMS, 0.0)


class Swap(NamedTuple):
    """Every image and mask of the two swaps (§3.1, Fig. 2). None where the mode does not need it."""

    m: torch.Tensor  # G_seg(x)
    z: torch.Tensor  # m*x + (1-m)*y
    y_hat: torch.Tensor | None = None  # G_enh(z): the object on B_y
    x_hat: torch.Tensor | None = None  # G_inp((1-m)*x): B_x restored
    m_hat: torch.Tensor | None = None  # G_seg(y_hat)
    z_hat: torch.Tensor | None = None  # m_hat*y_hat + (1-m_hat)*x_hat
    x_hat2: torch.Tensor | None = None  # G_enh(z_hat): x after the full cycle
    y_hat2: torch.Tensor | None = None  # G_inp((1-m_hat)*y_hat): y after the full cycle
    x_id: torch.Tensor | None = None  # G_enh(x)
    y_id: torch.Tensor | None = None  # G_inp((1-G_seg(y))*y)


def paste_coarse(x, y, m):
    """Coarse paste m*x + (1-m)*y (§3.1). x, y (N, 3, H, W) in [-1, 1]; m (N, 1, H, W) in [0, 1], 1 = object."""
    return m * x + (1 - m) * y


def box_mask(box, height, width, grow=1.0):
    """The area of a box as a mask: the share of each pixel that it covers.

    Args:
        box: (N, 4) left, top, width, height in fractions of the image.
        grow: factor on width and height, about the box's centre.

    Returns:
        (N, 1, height, width) in [0, 1], 1 = inside.
    """
    left, top, w, h = box.double().unbind(1)

    def coverage(start, extent, pixels):
        lo = (start + extent * (1 - grow) / 2) * pixels
        hi = lo + extent * grow * pixels
        i = torch.arange(pixels, device=box.device, dtype=torch.double)
        return (torch.minimum(i + 1, hi[:, None]) - torch.maximum(i, lo[:, None])).clamp(0, 1)

    return (coverage(top, h, height)[:, None, :, None] * coverage(left, w, width)[:, None, None, :]).float()


def augment(images, rng=None):
    """Differentiable augmentation of what a discriminator sees, real or fake (Zhao et al., arXiv 2006.10738).

    Each image has its own brightness, saturation, contrast, and shift by up to an eighth of its sides.
    images: (N, 3, H, W) in [-1, 1] -> (N, 3, H, W), a little beyond [-1, 1]; rng: torch.Generator on their device.
    """
    n, _, height, width = images.shape
    draw = torch.rand((5, n, 1, 1, 1), generator=rng, device=images.device, dtype=images.dtype)
    images = images + draw[0] - 0.5
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * 2 * draw[1]
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * (0.5 + draw[2])

    down, right = height // 8, width // 8
    padded = F.pad(images, (right, right, down, down))  # 0 is mid-grey
    rows = (draw[3] * (2 * down + 1)).long() + torch.arange(height, device=images.device).view(-1, 1)
    cols = (draw[4] * (2 * right + 1)).long() + torch.arange(width, device=images.device)
    image, channel = (torch.arange(k, device=images.device) for k in images.shape[:2])
    return padded[image.view(-1, 1, 1, 1), channel.view(-1, 1, 1), rows, cols]


class SEIGAN(nn.Module):
    """The five networks and the losses that train them.

    Args:
        mode: "seigan", "nocycle" (λ8 and λ9 alone, the paper's baseline after Remez et al.) or
            "supervised" (G_seg alone on ground-truth masks, the paper's upper bound).
        size: side in px of the training images; the discriminators' depth must suit it.
        ngf, ndf: channels of the generators' and discriminators' first layers.
        n_layers_D: stride-2 layers of the discriminators.
        seg_blocks: residual blocks of G_seg.
        unet_downs: halvings of the resolution in each U-Net.
        head_bias: initial bias of G_seg's last layer, before the sigmoid.
        enh_direct: G_enh gives the image itself rather than a residual on z.
        box_prior: G_seg's mask is kept inside the object's box, grown by this factor; 0 = not.
        box: the box that stands for an image's own where none is given (4 fractions).
        crop_rule: how the training crops were cut, {"fit": "warp" or "keep", "object_size": px, "crop_size": px},
            or None if unknown; kept for those who cut more.
        lambdas: {term: λ}; missing terms have the default of `LAMBDAS`.
        vgg_state: state dict of VGG-19 with torchvision's names; needed where a VGG term's λ is not 0.
    """

    def __init__(self, mode="seigan", size=128, ngf=64, ndf=64, n_layers_D=4, seg_blocks=6, unet_downs=5,
                 head_bias=-2.0, enh_direct=False, box_prior=1.1, box=(0.0, 0.0, 1.0, 1.0),
                 crop_rule=None, lambdas=None, vgg_state=None):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if len(box) != 4:
            raise ValueError(f"box must be left, top, width, height, got {box!r}")
        unknown = set(lambdas or ()) - set(LAMBDAS)
        if unknown:
            raise ValueError(f"unknown loss terms {sorted(unknown)}; the terms are {', '.join(LAMBDAS)}")
        lambdas = LAMBDAS | dict(lambdas or {})
        if mode != "seigan":
            lambdas = {k: v if mode == "nocycle" and k in NOCYCLE_TERMS else 0.0 for k, v in lambdas.items()}
        self.config = dict(mode=mode, size=size, ngf=ngf, ndf=ndf, n_layers_D=n_layers_D, seg_blocks=seg_blocks,
                           unet_downs=unet_downs, head_bias=head_bias, enh_direct=enh_direct, box_prior=box_prior,
                           box=list(box), crop_rule=crop_rule, lambdas=lambdas)
        self.mode, self.size, self.lambdas, self.box_prior = mode, size, lambdas, box_prior
        self.register_buffer("box", torch.tensor(box, dtype=torch.float64), persistent=False)

        self.G_seg = SegmentationNet(ngf, seg_blocks, head_bias)
        self.G_enh = EnhancementNet(ngf, unet_downs, enh_direct)
        self.G_inp = InpaintingNet(ngf, unet_downs)
        self.D_obj = Discriminator(ndf, n_layers_D)
        self.D_bg = Discriminator(ndf, n_layers_D)
        if size < self.D_obj.min_size:
            raise ValueError(f"size {size} is too small for discriminators of {n_layers_D} layers, which need "
                             f"{self.D_obj.min_size} px: use fewer layers or larger images")
        self.vgg = self._vgg(vgg_state)

    def _vgg(self, state):
        taps = set()
        if self.lambdas["bg_texture"]:
            taps |= set(VGG19Features.VGG1)
        if self.lambdas["bg_perc"] or self.lambdas["obj_perc"]:
            taps |= set(VGG19Features.VGG2)
        if not taps:
            return None
        if state is None:
            terms = [k for k in VGG_TERMS if self.lambdas[k]]
            raise ValueError(f"the λs of {', '.join(terms)} are not 0, which takes VGG-19's weights")
        return VGG19Features(taps, state)

    # --- the two swaps ---

    def _mask(self, images, box):
        """G_seg(images), kept inside the box, which is grown by `box_prior`."""
        m = self.G_seg(images)
        # Deviation: the crop rule knows the object's box, so nothing outside it is called object.
        return m * self.allowed(box, m) if self.box_prior else m

    def allowed(self, box, m):
        """The pixels that masks like `m` (N, 1, H, W) may take: `box` (N, 4) grown by `box_prior`; all without one."""
        return box_mask(box, *m.shape[-2:], grow=self.box_prior).to(m) if self.box_prior else torch.ones_like(m)

    def swap(self, x, y, box=None, rng=None):
        """Both swaps (§3.1): the object of x onto y, and back. Calls that do not depend on one another are
        fused along N: six generator calls in place of nine.

        Args:
            x, y: (N, 3, H, W) in [-1, 1].
            box: the object's box in x, (N, 4) or (4,) fractions; default the model's `box`.
            rng: torch.Generator on x's device for the noise; default torch's own.

        Returns:
            A `Swap`, with gradients where enabled.
        """
        n = len(x)
        box = self._box(box, n)
        noise = torch.randn((6 * n, 1, *x.shape[-2:]), generator=rng, device=x.device, dtype=x.dtype)
        noise_enh, noise_inp, noise_enh2, noise_inp2 = noise.split([2 * n, 2 * n, n, n])

        # G_seg(x), G_seg(y); y has no object and so no box of its own: it borrows that of x
        m, m_y = self._mask(torch.cat([x, y]), torch.cat([box, box])).chunk(2)
        z = paste_coarse(x, y, m)  # m*x + (1-m)*y
        y_hat, x_id = self.G_enh(torch.cat([z, x]), noise_enh).chunk(2)  # G_enh(z), G_enh(x)
        # G_inp((1-m)*x), G_inp((1-G_seg(y))*y)
        x_hat, y_id = self.G_inp(torch.cat([(1 - m) * x, (1 - m_y) * y]), noise_inp).chunk(2)
        m_hat = self._mask(y_hat, box)  # G_seg(y_hat)
        z_hat = paste_coarse(y_hat, x_hat, m_hat)  # m_hat*y_hat + (1-m_hat)*x_hat
        x_hat2 = self.G_enh(z_hat, noise_enh2)  # G_enh(z_hat)
        y_hat2 = self.G_inp((1 - m_hat) * y_hat, noise_inp2)  # G_inp((1-m_hat)*y_hat)
        return Swap(m, z, y_hat, x_hat, m_hat, z_hat, x_hat2, y_hat2, x_id, y_id)

    def swap_once(self, x, y, box=None, rng=None):
        """The paste of NoCycle: m, z and y_hat alone. Arguments as for `swap`."""
        m = self._mask(x, self._box(box, len(x)))
        z = paste_coarse(x, y, m)
        noise = torch.randn((len(x), 1, *x.shape[-2:]), generator=rng, device=x.device, dtype=x.dtype)
        return Swap(m, z, self.G_enh(z, noise))

    def _box(self, box, n):
        box = self.box if box is None else torch.as_tensor(box, device=self.box.device)
        return box.expand(n, 4)

    # --- losses ---

    def generator_losses(self, x, y, s, look=nn.Identity()):  # noqa: B008 - it has no state
        """The terms of the generators' loss (§3.4), unweighted.

        Args:
            x, y: (N, 3, H, W) in [-1, 1].
            s: their `Swap`.
            look: what is done to images before a discriminator sees them.

        Returns:
            {term: scalar tensor} for every term whose λ is not 0.
        """
        on = [k for k, weight in self.lambdas.items() if weight]
        terms = {}
        d_z, d_y_hat = self.D_obj(look(torch.cat([s.z, s.y_hat]))).chunk(2)
        terms["coarse"] = losses.gan_generator(d_z)  # (1 - D_obj(z))²
        terms["enh"] = losses.gan_generator(d_y_hat)  # (1 - D_obj(y_hat))²
        if self.mode == "nocycle":
            return {k: terms[k] for k in on}

        d_x_hat, d_y_hat2 = self.D_bg(look(torch.cat([s.x_hat, s.y_hat2]))).chunk(2)
        terms["inp"] = losses.gan_generator(d_x_hat)  # (1 - D_bg(x_hat))²
        terms["inp2"] = losses.gan_generator(d_y_hat2)  # (1 - D_bg(y_hat2))²
        terms["bg_mae"] = losses.mae(s.y_hat2, y)  # |y - y_hat2|
        terms["obj_mae"] = losses.mae(s.x_hat2, x)  # |x - x_hat2|
        terms["id_obj"] = losses.mae(s.x_id, x)  # |G_enh(x) - x|
        terms["id_bg"] = losses.mae(s.y_id, y)  # |G_inp((1-G_seg(y))*y) - y|
        return {k: v for k, v in (terms | self._vgg_losses(x, y, s)).items() if k in on}

    def _vgg_losses(self, x, y, s):
        """The terms on VGG-19's features. The real images' features need no graph."""
        if self.vgg is None:
            return {}
        on, n = self.lambdas, len(x)
        both = bool(on["obj_perc"])  # else x is not looked at
        fake = self.vgg(torch.cat([s.y_hat2, s.x_hat2]) if both else s.y_hat2)
        with torch.no_grad():
            real = self.vgg(torch.cat([y, x]) if both else y)

        def compare(loss, taps, part):
            return loss({k: fake[k][part] for k in taps}, {k: real[k][part] for k in taps})

        bg, obj, terms = slice(0, n), slice(n, 2 * n), {}
        if on["bg_texture"]:  # |Gram(VGG_1(y)) - Gram(VGG_1(y_hat2))|
            terms["bg_texture"] = compare(losses.texture, VGG19Features.VGG1, bg)
        if on["bg_perc"]:  # |VGG_2(y) - VGG_2(y_hat2)|
            terms["bg_perc"] = compare(losses.perceptual, VGG19Features.VGG2, bg)
        if on["obj_perc"]:  # |VGG_2(x) - VGG_2(x_hat2)|
            terms["obj_perc"] = compare(losses.perceptual, VGG19Features.VGG2, obj)
        return terms

    def discriminator_losses(self, x, y, fakes, look=nn.Identity()):  # noqa: B008 - it has no state
        """Both discriminators' losses (§3.4).

        Args:
            x, y: (N, 3, H, W), the real images.
            fakes: {"y_hat", "z", "x_hat", "y_hat2": (N, 3, H, W)}, detached; the last two for `seigan` only.
            look: what is done to images before a discriminator sees them.

        Returns:
            {"D_obj": scalar tensor, "D_bg": scalar tensor}, the latter for `seigan` only.
        """
        d_x, d_y_hat, d_z = self.D_obj(look(torch.cat([x, fakes["y_hat"], fakes["z"]]))).chunk(3)
        terms = {"D_obj": losses.gan_discriminator(d_x, d_y_hat, d_z)}
        if self.mode == "seigan":
            d_y, d_x_hat, d_y_hat2 = self.D_bg(look(torch.cat([y, fakes["x_hat"], fakes["y_hat2"]]))).chunk(3)
            terms["D_bg"] = losses.gan_discriminator(d_y, d_x_hat, d_y_hat2)
        return terms

    # --- use from other code ---

    @classmethod
    def load(cls, path, device="cpu"):
        """The model of a checkpoint, ready for inference, with averaged generators where it has them.

        Raises FileNotFoundError or ValueError, in one line, if there is none or it is not one of ours.
        """
        return cls.from_state(load_checkpoint(path), path, device)

    @classmethod
    def from_state(cls, state, path, device="cpu"):
        """`load` of a checkpoint that has been read from `path`. Raises ValueError, in one line, if it does not fit."""
        try:
            model = cls(**state["config"] | {"lambdas": state["config"]["lambdas"] | NO_VGG})
            model.load_networks(state["networks"])
            model.load_networks(state["averaged"], GENERATORS if state["averaged"] else ())
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} holds no model that this code can build ({type(error).__name__}: {reason}): "
                             "take another checkpoint, or the code that wrote it") from error
        return model.to(device).eval().requires_grad_(False)

    def state(self, names=NETWORKS):
        """{name: state dict} of the networks so named, by default all five."""
        return {name: self.get_submodule(name).state_dict() for name in names}

    def load_networks(self, states, names=NETWORKS):
        """Load {name: state dict} of exactly the networks so named, by default all five."""
        if set(states) != set(names):
            raise ValueError(f"needs the weights of {', '.join(names) or 'none'}, got {', '.join(states) or 'none'}")
        for name, state in states.items():
            self.get_submodule(name).load_state_dict(state)

    @torch.no_grad()
    def segment(self, x, box=None):
        """m = G_seg(x): x (N, 3, H, W) in [-1, 1] -> (N, 1, H, W) in [0, 1], 1 = object. `box` as for `swap`."""
        return self._mask(x, self._box(box, len(x)))

    @torch.no_grad()
    def enhance(self, z, seed=0):
        """y_hat = G_enh(z): a coarse paste z (N, 3, H, W) in [-1, 1] -> the same.

        The noise depends on `seed` alone, so a call is repeatable and the batch size does not matter.
        After mode "supervised", which trains no G_enh, y_hat is z.
        """
        return z if self.mode == "supervised" else self.G_enh(z, self.fixed_noise(z, seed))

    @torch.no_grad()
    def inpaint(self, cut, seed=0):
        """x_hat = G_inp(cut): cut = (1-m)*x, (N, 3, H, W) in [-1, 1] -> the same. Noise as for `enhance`.

        Raises ValueError after a mode that trains no G_inp.
        """
        self.require_inpainting()
        return self.G_inp(cut, self.fixed_noise(cut, seed))

    def paste(self, x, y, box=None, seed=0):
        """y_hat = G_enh(m*x + (1-m)*y): x's object on y. x, y (N, 3, H, W) in [-1, 1] -> the same. See `enhance`."""
        return self.enhance(paste_coarse(x, y, self.segment(x, box)), seed)

    def remove(self, x, box=None, seed=0):
        """x_hat = G_inp((1-m)*x): x without its object. x (N, 3, H, W) in [-1, 1] -> the same. See `inpaint`."""
        return self.inpaint((1 - self.segment(x, box)) * x, seed)

    def require_inpainting(self):
        """Raise ValueError, in one line, after a mode that trains no G_inp."""
        if self.mode != "seigan":
            raise ValueError(f"mode {self.mode} trains no G_inp: only a model of mode seigan can remove an object")

    @staticmethod
    def fixed_noise(x, seed):
        """Standard normal noise (N, 1, H, W) for x (N, C, H, W), one for all images; it depends on `seed` alone."""
        rng = torch.Generator().manual_seed(seed)
        return torch.randn((1, 1, *x.shape[-2:]), generator=rng).to(x).expand(len(x), -1, -1, -1)


class GeneratorStep(nn.Module):
    """The generators' forward pass with its losses as one module, for `DistributedDataParallel`.

    amp: whether convolutions run in bfloat16; weights, masks, pictures and losses stay in float32.
    """

    def __init__(self, model, amp=False):
        super().__init__()
        self.model, self.amp = model, amp

    def forward(self, x, y, box, mask, rng, look):
        """The `Swap` of a batch and its loss terms, unweighted; arguments as for `Trainer.train_step`."""
        model = self.model
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.amp):
            if model.mode == "supervised":
                m = model._mask(x, box)
                return Swap(m, z=None), {"bce": losses.cross_entropy(m, mask)}
            s = (model.swap if model.mode == "seigan" else model.swap_once)(x, y, box, rng)
            return s, model.generator_losses(x, y, s, look)


class DiscriminatorStep(nn.Module):
    """The discriminators' losses as one module; see `GeneratorStep`."""

    def __init__(self, model, amp=False):
        super().__init__()
        self.model, self.amp = model, amp

    def forward(self, x, y, fakes, look):
        """{"D_obj", "D_bg"}: arguments as for `SEIGAN.discriminator_losses`."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.amp):
            return self.model.discriminator_losses(x, y, fakes, look)


class Trainer:
    """What training adds to a `SEIGAN`: optimisers, replay pools, noise, averaged generators, the step.

    Args:
        model: on the device to train on.
        lr, beta1: of Adam, for generators and discriminators; beta2 is 0.999.
        lr_seg: factor on G_seg's learning rate.
        pool_size: images in each of the four replay pools; 0 = none.
        ema: mean age of the weights in the generators' running average, as a share of the steps so far, up to 0.5;
            0 = no average.
        diffaug: whether discriminators see images through `augment`.
        seed: of the noise, the augmentation and the pools.
        amp: whether convolutions run in bfloat16.
        wrap: what `GeneratorStep` and `DiscriminatorStep` are wrapped in, `parallel.Ranks.wrap` for one.
    """

    def __init__(self, model, lr=2e-4, lr_seg=0.4, beta1=0.5, pool_size=50, ema=0.2, diffaug=True,
                 seed=0, amp=False, wrap=lambda module, may_skip: module):
        if not 0 <= ema <= 0.5:
            raise ValueError(f"ema must be from 0 to 0.5, got {ema}: the mean age of the averaged weights, as a share "
                             "of the steps so far")
        self.model, self.ema, self.diffaug, self.step = model, ema, diffaug, 0
        generators = [*model.G_enh.parameters(), *model.G_inp.parameters()]
        self.discriminators = [*model.D_obj.parameters(), *model.D_bg.parameters()]
        self.opt_G = torch.optim.Adam([{"params": [*model.G_seg.parameters()], "lr": lr * lr_seg},
                                       {"params": generators, "lr": lr}], betas=(beta1, 0.999), fused=True)
        self.opt_D = torch.optim.Adam(self.discriminators, lr=lr, betas=(beta1, 0.999), fused=True)
        self.base_lr = {"G": [lr * lr_seg, lr], "D": [lr]}
        self.pools = {k: losses.ReplayPool(pool_size, seed=seed + i)
                      for i, k in enumerate(("y_hat", "z", "x_hat", "y_hat2"))}
        self.rng = torch.Generator(device=model.box.device).manual_seed(seed)
        self._wrap_steps(amp, wrap)
        self.averaged = model
        # Deviation: G_seg learns more slowly than the rest (lr_seg), and tests use averaged generators (ema).
        if ema:  # a second model, with the averaged generators and the very same discriminators
            self.averaged = SEIGAN(**model.config | {"lambdas": NO_VGG}).to(model.box.device)
            self.averaged.D_obj, self.averaged.D_bg = model.D_obj, model.D_bg
            self.averaged.load_networks(model.state())
            for name in GENERATORS:
                self.averaged.get_submodule(name).requires_grad_(False)

    def _wrap_steps(self, amp, wrap):
        """The two halves of a step, each wrapped while only what it trains requires gradients."""
        model = self.model
        trained = {"seigan": GENERATORS, "nocycle": ("G_seg", "G_enh"), "supervised": ("G_seg",)}[model.mode]
        for name in NETWORKS:
            model.get_submodule(name).requires_grad_(name in trained)
        some_are_0 = any(not v for k, v in model.lambdas.items() if k not in VGG_TERMS) and model.mode != "supervised"
        self.generator_step = wrap(GeneratorStep(model, amp), some_are_0)
        if model.mode != "supervised":
            model.requires_grad_(False)
            model.D_obj.requires_grad_(True)
            model.D_bg.requires_grad_(model.mode == "seigan")
            self.discriminator_step = wrap(DiscriminatorStep(model, amp), False)
        for name in NETWORKS:
            model.get_submodule(name).requires_grad_(name in trained)

    def train_step(self, x, y, box, mask=None, lr_factor=1.0):
        """One update of the generators, then one of the discriminators (§3.4).

        Args:
            x, y: (N, 3, H, W) in [-1, 1]; box: (N, 4), the objects' boxes in x.
            mask: (N, 1, H, W) in [0, 1], 1 = object; for mode "supervised" only.
            lr_factor: on all learning rates, the schedule's value at this step.

        Returns:
            {name: detached scalar tensor}: the unweighted terms, "total", "D_obj" and "D_bg" (mode "supervised": "bce"
            in place of them all), the figures of `mask_figures`, and "skipped": 1 if a gradient was not finite, so that
            this update was left out (the generators' takes the discriminators' with it), else 0.
        """
        model = self.model
        self._set_lr(lr_factor)

        # generators: the discriminators only pass gradients on
        self._freeze_discriminators(True)
        s, terms = self.generator_step(x, y, box, mask, self.rng, self._look)
        total = sum(model.lambdas.get(k, 1.0) * term for k, term in terms.items())  # l = Σ λ_i l_i
        skipped = update(self.opt_G, total)
        log = terms | {"total": total}

        # discriminators, on fakes out of the replay pools, where no NaN may live on
        if model.mode != "supervised":
            self._freeze_discriminators(False)
            fakes = {"y_hat": s.y_hat, "z": s.z, "x_hat": s.x_hat, "y_hat2": s.y_hat2}
            fakes = {k: self.pools[k].query(v.detach().nan_to_num()) for k, v in fakes.items() if v is not None}
            d_terms = self.discriminator_step(x, y, fakes, self._look)
            skipped = update(self.opt_D, sum(d_terms.values()), skipped)  # l_bg_disc + l_obj_disc
            log |= d_terms

        self.step += 1
        self._average(skipped)
        log |= mask_figures(s.m, model.allowed(box, s.m)) | {"skipped": skipped}
        return {k: v.detach() for k, v in log.items()}

    def _freeze_discriminators(self, frozen):
        for parameter in self.discriminators:
            parameter.requires_grad_(not frozen)

    def _look(self, images):
        # Deviation: without it, discriminators know small sets by heart, and the mask grows or vanishes.
        return augment(images, self.rng) if self.diffaug else images

    def _set_lr(self, factor):
        for opt, rates in ((self.opt_G, self.base_lr["G"]), (self.opt_D, self.base_lr["D"])):
            for group, rate in zip(opt.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    @torch.no_grad()
    def _average(self, skipped):
        if not self.ema:
            return
        # Weights count as a power of their step (Karras et al., arXiv 2312.02696, §3.1), so that runs of any length are
        # averaged alike and the first weights are soon forgotten.
        decay = (1 - 1 / self.step) ** (1 / self.ema - 1)
        rate = (1 - decay) * (1 - skipped)
        for name in GENERATORS:
            average, current = self.averaged.get_submodule(name), self.model.get_submodule(name)
            for a, p in zip(average.parameters(), current.parameters(), strict=True):
                a.lerp_(p, rate)

    def state_dict(self):
        """Everything that training needs to go on, as one dict of tensors and plain containers."""
        return {
            "step": self.step,
            "networks": self.model.state(),
            "averaged": self.averaged.state(GENERATORS),
            "opt_G": self.opt_G.state_dict(),
            "opt_D": self.opt_D.state_dict(),
            "pools": {k: pool.state_dict() for k, pool in self.pools.items()},
            "rng": self.rng.get_state(),
        }

    def load_state_dict(self, state):
        """Restore what `state_dict` gave, onto the model's device."""
        self.step = state["step"]
        self.model.load_networks(state["networks"])
        if self.ema:
            self.averaged.load_networks(state["averaged"], GENERATORS)
        self.opt_G.load_state_dict(state["opt_G"])
        self.opt_D.load_state_dict(state["opt_D"])
        for name, pool in self.pools.items():
            pool.load_state_dict(state["pools"][name], device=self.model.box.device)
        if state["rng"].numel() == self.rng.get_state().numel():
            self.rng.set_state(state["rng"])
        else:  # saved on another kind of device, whose generator differs: a new stream, the same each time
            self.rng.manual_seed(self.rng.initial_seed() + self.step)


def pick_device(gpu=None):
    """The torch device of a GPU's number; -1 = the CPU, None = the first GPU if there is one. ValueError if absent."""
    found = torch.cuda.device_count()
    if gpu is None:
        return torch.device("cuda:0" if found else "cpu")
    if not -1 <= gpu < found:
        raise ValueError(f"--gpu {gpu}: this machine has {found} CUDA GPUs; -1 is the CPU")
    return torch.device("cpu" if gpu == -1 else f"cuda:{gpu}")


def has_bfloat16(device):
    """Whether `device` has units for bfloat16: GPUs from compute capability 8 on, CPUs with AMX."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return hasattr(torch.cpu, "get_capabilities") and bool(torch.cpu.get_capabilities().get("amx_bf16"))


def update(optimizer, loss, skipped=None):
    """`loss.backward()` and `optimizer.step()`, the latter unless a gradient is not finite or `skipped` is 1.

    Returns a scalar tensor, 1 if it was left out, else 0. The decision stays on the device: no step waits for it.
    """
    optimizer.zero_grad()
    loss.backward()
    gradients = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    bad = (~torch.isfinite(nn.utils.clip_grad_norm_(gradients, math.inf))).float()  # which clips nothing
    optimizer.found_inf = bad if skipped is None else torch.maximum(bad, skipped)  # fused optimisers heed it
    optimizer.step()
    return optimizer.found_inf


def mask_figures(m, allowed):
    """What shows a collapsed mask: {name: scalar tensor}.

    m: (N, 1, H, W) in [0, 1], 1 = object; allowed: likewise, the pixels that a mask may take.

    mask_area: mean of m. Of the allowed pixels, mask_fill: the share at ½ or more; mask_contrast: mean 2·|m - ½|, 1 =
    all values 0 or 1; mask_spread: mean standard deviation of a pixel over the batch (NaN for one picture).
    """
    weight = allowed / allowed.sum().clamp(min=1)
    spread = m.std(0) if len(m) > 1 else m.new_full(m.shape[1:], math.nan)
    return {"mask_area": m.mean(), "mask_contrast": (weight * 2 * (m - 0.5).abs()).sum(),
            "mask_fill": (m >= 0.5).sum() / (allowed >= 0.5).sum().clamp(min=1),
            "mask_spread": (weight.sum(0) * spread).sum()}
