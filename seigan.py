"""SEIGAN: Segment-Enhance-Inpaint GAN (arXiv 1811.07630): the model, its losses and its training step.

    model = SEIGAN.load("checkpoints/demo/best.pt")
    m, y_hat, x_hat = model.segment(x), model.paste(x, y), model.remove(x)

Images are (N, 3, H, W) in [-1, 1], masks (N, 1, H, W) in [0, 1] with 1 = object, boxes (N, 4) or (4,):
left, top, width, height in fractions of the image. x = <O, B_x> shows an object, y = <none, B_y> does not.
This file, networks.py and losses.py can be copied out together.
"""
import copy
from typing import NamedTuple

import torch
from torch import nn

import losses
import networks

VGG_TERMS = ("bg_texture", "bg_perc", "obj_perc")
NO_VGG = dict.fromkeys(VGG_TERMS, 0.0)
NEEDS = ("backgrounds",)
# Options of `python train.py` as running/methods.py wants them: {name: (default, least value, help)}.
# λ1..λ11 (§3.4) have the names of their terms.
# Deviation: λ3, which the printed total leaves out, is there; it and the other VGG-19 terms are 0 until asked for.
OPTIONS = {
    "ngf": (64, 1, "channels of the generators' first layers"),
    "ndf": (64, 1, "channels of the discriminators' first layers"),
    "n_layers_D": (0, 0, "stride-2 layers of the discriminators, 0 = as many as let each score see the whole image"),
    "n_layers_D_bg": (0, 0, "stride-2 layers of D_bg, 0 = as many as D_obj has"),
    "imagegan": (False, None, "D_bg gives one score of the whole image, not one of each field"),
    "seg_blocks": (6, 0, "residual blocks of G_seg"),
    "seg_transposed": (False, None, "G_seg upsamples by transposed convolutions"),
    "unet_downs": (0, 0, "halvings in each U-Net, 0 = as many as leave 4 px or more"),
    "head_bias": (-2.0, None, "G_seg's initial bias before the sigmoid"),
    "enh_direct": (False, None, "G_enh gives the image, not a residual on z"),
    "inp_direct": (False, None, "G_inp gives the image, not a change of a smooth fill of the hole"),
    "grow_hole": (1, 0, "px by which masks are grown before G_inp fills them in tests"),
    "box_prior": (1.1, 0.0, "keep masks in the object's box grown by this factor, 0 = not (the paper)"),
    "lr_seg": (2.0, 0.0, "factor on --lr for G_seg"),
    "warm_steps": (500, 0, "first steps, without discriminators: λ_teach and λ_fill alone, if a box teaches"),
    "pool_size": (50, 0, "images in each replay pool, 0 = none"),
    "pool_past": (False, None, "fakes are drawn from the pool as the steps before left it, not exchanged"),
    "no_diffaug": (False, None, "discriminators see images as they are, not augmented"),
    "lambda_inp": (0.1, 0.0, "λ1 of the paper"),  # l_inp_GAN
    "lambda_inp2": (0.1, 0.0, "λ2 of the paper"),  # l_inp2_GAN
    "lambda_bg_texture": (0.0, 0.0, "λ3 of the paper, needs VGG-19"),  # l_bg_texture
    "lambda_bg_perc": (0.0, 0.0, "λ4 of the paper, needs VGG-19"),  # l_bg_perc
    "lambda_bg_mae": (5.0, 0.0, "λ5 of the paper"),  # l_bg_MAE
    "lambda_obj_perc": (0.0, 0.0, "λ6 of the paper, needs VGG-19"),  # l_obj_perc
    "lambda_obj_mae": (1.0, 0.0, "λ7 of the paper"),  # l_obj_MAE
    "lambda_coarse": (3.0, 0.0, "λ8 of the paper"),  # l_coarse_GAN
    "lambda_enh": (3.0, 0.0, "λ9 of the paper"),  # l_enh_GAN
    "lambda_id_obj": (1.0, 0.0, "λ10 of the paper"),  # l_obj_id
    "lambda_id_bg": (3.0, 0.0, "λ11 of the paper"),  # l_bg_id
    "lambda_teach": (30.0, 0.0, "ours, of the box teacher, 0 = none"),  # Deviation: crf.py says m, of `losses.views`
    "lambda_fill": (15.0, 0.0, "ours, of a hole cut out of y, 0 = none"),  # Deviation: G_inp's first U-Net fills it
    "gram_sum": (False, None, "Gram matrices as sums, not divided by C·H·W"),
    "vgg_weights": ("", None, "file of VGG-19's weights, torchvision's names; without it they are downloaded"),
}
LAMBDAS = {name.removeprefix("lambda_"): value for name, (value, *_) in OPTIONS.items() if name.startswith("lambda_")}


class Swap(NamedTuple):
    """Every image and mask of the two swaps (§3.1, Fig. 2)."""
    m: torch.Tensor  # G_seg(x)
    z: torch.Tensor  # m*x + (1-m)*y
    y_hat: torch.Tensor  # G_enh(z): the object on B_y
    x_hat: torch.Tensor | None = None  # G_inp((1-m)*x): B_x restored
    m_hat: torch.Tensor | None = None  # G_seg(y_hat)
    z_hat: torch.Tensor | None = None  # m_hat*y_hat + (1-m_hat)*x_hat
    x_hat2: torch.Tensor | None = None  # G_enh(z_hat): x after the full cycle
    y_hat2: torch.Tensor | None = None  # G_inp((1-m_hat)*y_hat): y after the full cycle
    x_id: torch.Tensor | None = None  # G_enh(x)
    y_near: torch.Tensor | None = None  # a part of y in full size; without λ_fill y itself
    y_id: torch.Tensor | None = None  # G_inp((1-m_y)*y_near), m_y = max(G_seg(y_near), hole); without λ_fill G_seg(y)
    y_fill: torch.Tensor | None = None  # what G_inp's first U-Net puts into `hole` in y_near
    hole: torch.Tensor | None = None  # m as 0 and 1, without gradients


class SEIGAN(nn.Module):
    """The five networks and the losses that train them.

    Args:
        size: side in px of the training images; the discriminators' depth must suit it.
        ngf to box_prior, n_layers_D_bg to gram_sum: see `OPTIONS`; ndf may be 0: generators alone, as weights to share.
        box: the box that stands for an image's own where none is given (4 fractions).
        crop_rule: how the training crops were cut, {"fit", "object_size", "crop_size"}, None if unknown.
        lambdas: {term: λ}; missing terms have the default of `LAMBDAS`.
        vgg_state: state dict of VGG-19 with torchvision's names; needed where a VGG term's λ is not 0.
    """

    GENERATORS = ("G_seg", "G_enh", "G_inp")
    DISCRIMINATORS = ("D_obj", "D_bg")
    FAKES = ("y_hat", "z", "x_hat", "y_hat2")  # of a `Swap`: what the discriminators see, each with its replay pool

    def __init__(self, size=128, ngf=64, ndf=64, n_layers_D=4, seg_blocks=6, unet_downs=5, head_bias=-2.0,
                 enh_direct=False, inp_direct=False, grow_hole=1, box_prior=1.1, box=(0.0, 0.0, 1.0, 1.0),
                 crop_rule=None, lambdas=None, vgg_state=None, n_layers_D_bg=0, imagegan=False, seg_transposed=False,
                 gram_sum=False):
        super().__init__()
        if len(box) != 4:
            raise ValueError(f"box must be left, top, width, height, got {box!r}")
        if unknown := set(lambdas or ()) - set(LAMBDAS):
            raise ValueError(f"unknown loss terms {sorted(unknown)}; the terms are {', '.join(LAMBDAS)}")
        self.lambdas = LAMBDAS | dict(lambdas or {})
        self.config = dict(size=size, ngf=ngf, ndf=ndf, n_layers_D=n_layers_D, seg_blocks=seg_blocks,
                           unet_downs=unet_downs, head_bias=head_bias, enh_direct=enh_direct, inp_direct=inp_direct,
                           grow_hole=grow_hole, box_prior=box_prior, box=list(box), crop_rule=crop_rule,
                           lambdas=self.lambdas, n_layers_D_bg=n_layers_D_bg, imagegan=imagegan,
                           seg_transposed=seg_transposed, gram_sum=gram_sum)
        self.size, self.box_prior, self.grow_hole, self.gram_sum = size, box_prior, grow_hole, gram_sum
        self.register_buffer("box", torch.tensor(box, dtype=torch.float32), persistent=False)

        self.G_seg = networks.SegmentationNet(ngf, seg_blocks, head_bias, seg_transposed)
        self.G_enh = networks.EnhancementNet(ngf, unet_downs, enh_direct)
        self.G_inp = networks.InpaintingNet(ngf, unet_downs, inp_direct)
        if ndf:
            self.D_obj = networks.Discriminator(ndf, n_layers_D)
            self.D_bg = networks.Discriminator(ndf, n_layers_D_bg or n_layers_D, size if imagegan else 0)
            if size < (least := max(self.D_obj.min_size, self.D_bg.min_size)):
                raise ValueError(f"size {size} is too small for the discriminators, which need {least} px")
        else:
            self.DISCRIMINATORS, self.scores, self.D_obj, self.D_bg = (), None, None, None
        taps = losses.vgg_taps(self.lambdas)
        if taps and vgg_state is None:
            raise ValueError(f"{', '.join(k for k in VGG_TERMS if self.lambdas[k])} take VGG-19's weights: vgg_state")
        self.vgg = networks.VGG19Features(taps, vgg_state) if taps else None

    # --- the two swaps ---

    def mask(self, images, box):
        """G_seg(images), with gradients, kept inside the box, which is grown by `box_prior`."""
        m = self.G_seg(images)  # Deviation: the crop rule knows the box, so nothing outside it is called object.
        return m * self.allowed(box, m)

    def allowed(self, box, m):
        """The pixels that masks like `m` (N, 1, H, W) may take: `box` (N, 4) grown by `box_prior`; all without one."""
        return networks.box_mask(box, *m.shape[-2:], grow=self.box_prior).to(m)

    def swap(self, x, y, box=None, rng=None):
        """Both swaps (§3.1), a `Swap` with gradients: the object of x onto y, and back. Calls that do not depend on
        one another are fused along N: six generator calls in place of nine, and one of G_inp's first U-Net for λ_fill.

        x, y: (N, 3, H, W) in [-1, 1]; box: the object's box in x, (N, 4) or (4,) fractions, default the model's `box`;
        rng: torch.Generator on x's device for noise and y_near, default torch's own.
        """
        n, box = len(x), self.boxes(box, len(x))
        noise = torch.randn((6 * n, 1, *x.shape[-2:]), generator=rng, device=x.device, dtype=x.dtype)
        noise_enh, noise_inp, noise_enh2, noise_inp2 = noise.split([2 * n, 2 * n, n, n])
        y_near = y_fill = losses.zoom(y, rng) if self.lambdas["fill"] else y  # Deviation: or G_inp learns y by heart
        # G_seg(x), G_seg(y); y has no object and so no box of its own: it borrows that of x
        m, m_y = self.mask(torch.cat([x, y_near]), torch.cat([box, box])).chunk(2)
        hole = (m.detach() >= 0.5).to(m)
        if self.lambdas["fill"]:  # Deviation: the object's hole in y too, whose content is known there; of 0 and 1, as
            m_y = torch.maximum(m_y, hole)  # a soft one lets y through. Unless `direct`, the first U-Net learns no more
            y_fill = self.G_inp.coarse_fill((1 - hole) * y_near, hole, noise_inp[n:])
        z = losses.paste(x, y, m)  # m*x + (1-m)*y
        y_hat, x_id = self.G_enh(torch.cat([z, x]), noise_enh).chunk(2)  # G_enh(z), G_enh(x)
        cut = torch.cat([(1 - m) * x, (1 - m_y) * y_near])
        x_hat, y_id = self.G_inp(cut, torch.cat([m, m_y]), noise_inp)[0].chunk(2)
        m_hat = self.mask(y_hat, box)  # G_seg(y_hat)
        z_hat = losses.paste(y_hat, x_hat, m_hat)  # m_hat*y_hat + (1-m_hat)*x_hat
        x_hat2 = self.G_enh(z_hat, noise_enh2)  # G_enh(z_hat)
        y_hat2, _ = self.G_inp((1 - m_hat) * y_hat, m_hat, noise_inp2)  # G_inp((1-m_hat)*y_hat)
        return Swap(m, z, y_hat, x_hat, m_hat, z_hat, x_hat2, y_hat2, x_id, y_near, y_id, y_fill, hole)

    def boxes(self, box, n):
        """`box` (N, 4) or (4,), default the model's own, as (n, 4)."""
        box = self.box if box is None else torch.as_tensor(box, dtype=self.box.dtype).to(self.box.device)
        return box.expand(n, 4)

    # --- losses ---

    def generator_losses(self, x, y, s, look=nn.Identity()):  # noqa: B008 - it has no state
        """The terms of the generators' loss (§3.4), unweighted: {term: scalar tensor} for every λ that is not 0.

        x, y: (N, 3, H, W) in [-1, 1]; s: their `Swap`; look: what is done to images before a discriminator sees them.
        """
        d_z, d_y_hat = self.D_obj(look(torch.cat([s.z, s.y_hat]))).chunk(2)
        d_x_hat, d_y_hat2 = self.D_bg(look(torch.cat([s.x_hat, s.y_hat2]))).chunk(2)
        terms = {
            "inp": losses.gan_generator(d_x_hat),  # (1 - D_bg(x_hat))²
            "inp2": losses.gan_generator(d_y_hat2),  # (1 - D_bg(y_hat2))²
            "bg_mae": losses.mae(s.y_hat2, y),  # |y - y_hat2|
            "obj_mae": losses.mae(s.x_hat2, x),  # |x - x_hat2|
            "coarse": losses.gan_generator(d_z),  # (1 - D_obj(z))²
            "enh": losses.gan_generator(d_y_hat),  # (1 - D_obj(y_hat))²
            "id_obj": losses.mae(s.x_id, x),  # |G_enh(x) - x|
            "id_bg": losses.mae(s.y_id, s.y_near),  # |G_inp((1-m_y)*y_near) - y_near|
            "fill": losses.hole_mae(s.y_fill, s.y_near, s.hole),
        }
        if self.vgg:
            terms |= losses.vgg_terms(self.vgg, self.lambdas, (x, s.x_hat2), (y, s.y_hat2), self.gram_sum)
        return {k: v for k, v in terms.items() if self.lambdas[k]}

    def discriminator_losses(self, x, y, fakes, look=nn.Identity()):  # noqa: B008 - it has no state
        """Both discriminators' losses (§3.4), {"D_obj", "D_bg": scalar tensor}. x, y: (N, 3, H, W), the real images;
        fakes: {name of FAKES: (N, 3, H, W)}, detached; look: as above."""
        d_x, d_y_hat, d_z = self.D_obj(look(torch.cat([x, fakes["y_hat"], fakes["z"]]))).chunk(3)
        d_y, d_x_hat, d_y_hat2 = self.D_bg(look(torch.cat([y, fakes["x_hat"], fakes["y_hat2"]]))).chunk(3)
        return {"D_obj": losses.gan_discriminator(d_x, d_y_hat, d_z),
                "D_bg": losses.gan_discriminator(d_y, d_x_hat, d_y_hat2)}

    # --- use from other code ---

    @classmethod
    def load(cls, path, device="cpu"):
        """The model of a checkpoint, ready for inference, with averaged generators where it has them."""
        return cls.from_state(torch.load(path, map_location="cpu", weights_only=True)).to(device)

    @classmethod
    def from_state(cls, state):
        """`load` of a checkpoint that has been read. Raises what torch and dicts raise where it does not fit."""
        model = cls(**state["config"] | {"lambdas": state["config"]["lambdas"] | NO_VGG})
        model.load_networks(state["networks"] | state["averaged"])
        return model.eval().requires_grad_(False)

    def networks(self, names=None):
        """{name: network} of the networks so named, by default all."""
        names = (*self.GENERATORS, *self.DISCRIMINATORS) if names is None else names
        return {name: self.get_submodule(name) for name in names}

    def state(self, names=None):
        """{name: state dict}, see `networks`."""
        return {name: network.state_dict() for name, network in self.networks(names).items()}

    def load_networks(self, states, names=None):
        """Load {name: state dict} of exactly the networks so named, by default all; ValueError for others."""
        own = self.networks(names)
        if states.keys() != own.keys():
            raise ValueError(f"needs the weights of {', '.join(own)}, got {', '.join(states) or 'none'}")
        for name, state in states.items():
            own[name].load_state_dict(state)

    @torch.no_grad()
    def segment(self, x, box=None):
        """m = G_seg(x): x (N, 3, H, W) in [-1, 1] -> (N, 1, H, W) in [0, 1], 1 = object. `box` as for `swap`."""
        return self.mask(x, self.boxes(box, len(x)))

    @torch.no_grad()
    def enhance(self, z, seed=0):
        """y_hat = G_enh(z): a coarse paste z (N, 3, H, W) in [-1, 1] -> the same. `seed` alone decides its noise."""
        return self.G_enh(z, networks.fixed_noise(z, seed))

    @torch.no_grad()
    def inpaint(self, x, m, seed=0):
        """x_hat = G_inp((1-m)*x): x (N, 3, H, W) in [-1, 1], the hole m (N, 1, H, W) in [0, 1], 1 = cut out -> x with
        the hole filled. Noise as for `enhance`."""
        return self.G_inp((1 - m) * x, m, networks.fixed_noise(x, seed))[0]

    def paste(self, x, y, box=None, seed=0):
        """y_hat = G_enh(m*x + (1-m)*y): x's object on y. x, y (N, 3, H, W) in [-1, 1] -> the same. See `enhance`."""
        return self.enhance(losses.paste(x, y, self.segment(x, box)), seed)

    def remove(self, x, box=None, seed=0):
        """x_hat = G_inp((1-m)*x): x without its object. x (N, 3, H, W) in [-1, 1] -> the same. See `inpaint`."""
        # Deviation: a larger hole, for the rim of an object that a tight mask leaves would draw its silhouette.
        return self.inpaint(x, networks.grow(self.segment(x, box), self.grow_hole), seed)

    def pictures(self, x, y, box=None, seed=0):
        """Both swaps with the noise of `enhance` and `inpaint`: {name: (N, 3 or 1, H, W)}, arguments as for those."""
        m = self.segment(x, box)
        z = losses.paste(x, y, m)
        y_hat, x_hat = self.enhance(z, seed), self.inpaint(x, networks.grow(m, self.grow_hole), seed)
        m_hat = self.segment(y_hat, box)
        return {"mask": m, "z": z, "y_hat": y_hat, "x_hat": x_hat, "m_hat": m_hat,
                "x_hat2": self.enhance(losses.paste(y_hat, x_hat, m_hat), seed),
                "y_hat2": self.inpaint(y_hat, networks.grow(m_hat, self.grow_hole), seed)}

    @torch.no_grad()
    def scores(self, pictures):
        """What the discriminators say of `pictures`: {name: (N,)}, the mean over each image, 1 = real."""
        kinds = {"d_obj": (self.D_obj, ("z", "y_hat")), "d_bg": (self.D_bg, ("x_hat", "y_hat2"))}
        return {f"{name}_{kind}": d(pictures[kind]).mean((1, 2, 3)) for name, (d, of) in kinds.items() for kind in of}


Model = SEIGAN  # the name that every method's module has for its own


# --- training ---


class Trainer:
    """What training adds to a model: optimisers, replay pools, noise, averaged generators, the step.

    Args:
        model: a `SEIGAN`, or a model with its networks' names, swap and losses; on the device to train on.
        lr, beta1, ema, amp: see running/train_options.py; lr_seg, pool_size, pool_past, warm_steps: as `OPTIONS`,
            whose values suit a teacher; those here suit none.
        seed: of noise, parts of y, views, augmentation, pools; diffaug: D sees images through `losses.augment`.
        share: called with the parameters after each backward pass, to average gradients over processes.
        teacher (an attribute): (x, box, mask or None) -> labels for m, `crf.teach` for one; None = no teacher.
    """

    def __init__(self, model, lr=2e-4, lr_seg=0.4, beta1=0.5, pool_size=50, ema=0.2, diffaug=True, seed=0, amp=False,
                 share=lambda parameters: None, pool_past=False, warm_steps=0):
        if not 0 <= ema <= 0.5:
            raise ValueError(f"ema must be from 0 to 0.5, got {ema}")
        self.model, self.ema, self.diffaug, self.amp, self.share = model, ema, diffaug, amp, share
        self.step, self.warm_steps, self.teacher = 0, warm_steps, None
        generators, self.discriminators = (nn.ModuleList(model.networks(names).values()) for names in
                                      (model.GENERATORS, model.DISCRIMINATORS))
        # Deviation: G_seg has a rate of its own.
        self.opt_G = losses.adam({generators[0]: lr * lr_seg, generators[1:]: lr}, beta1)
        self.opt_D = losses.adam({self.discriminators: lr}, beta1)
        self.pools = {k: losses.ReplayPool(pool_size, seed + i, pool_past) for i, k in enumerate(model.FAKES)}
        self.rng = torch.Generator(device=model.box.device).manual_seed(seed)
        shared = {id(network): network for network in (*self.discriminators, model.vgg)}
        self.averaged = copy.deepcopy(model, shared).requires_grad_(False) if ema else model  # Deviation: for tests

    def train_step(self, batch, lr_factor=1.0):
        """One update of the generators, then one of the discriminators (§3.4); at first, `warm_step`s.

        batch: {"x", "y": (N, 3, H, W) in [-1, 1]; "box": (N, 4), the objects' boxes in x}; lr_factor: on all rates.
        Returns {name: detached scalar tensor}: the unweighted terms, "total", "D_obj", "D_bg", `losses.mask_figures`,
        and "skipped": 1 if a gradient was not finite, and not applied, else 0.
        """
        x, y, box, model = batch["x"], batch["y"], batch["box"], self.model
        for group in (*self.opt_G.param_groups, *self.opt_D.param_groups):
            group["lr"] = group["initial_lr"] * lr_factor
        if self.step < self.warm_steps and self.teaches():  # Deviation: the paper's loop begins at once
            return self.warm_step(x, y, box)

        # generators: the discriminators only pass gradients on
        self.discriminators.requires_grad_(False)
        with self.autocast():
            s = model.swap(x, y, box, self.rng)
            terms = model.generator_losses(x, y, s, self.look) | (self.taught(x, y, box)[1] if self.teaches() else {})
        total = sum(model.lambdas[k] * term for k, term in terms.items())  # l = Σ λ_i l_i
        applied = losses.update(self.opt_G, total, self.share)

        # discriminators, on fakes out of the replay pools, where no NaN may live on
        self.discriminators.requires_grad_(True)
        fakes = {k: pool.query(getattr(s, k).detach().nan_to_num()) for k, pool in self.pools.items()}
        with self.autocast():
            d_terms = model.discriminator_losses(x, y, fakes, self.look)
        applied = applied and losses.update(self.opt_D, sum(d_terms.values()), self.share)  # l_bg_disc + l_obj_disc
        return self.finish(terms | {"total": total} | d_terms, applied, s.m, box)

    def warm_step(self, x, y, box):
        """One update by the two terms that need no adversary: as good masks as by all, in a fifth of the time."""
        with self.autocast():
            m, terms = self.taught(x, y, box)
            if self.model.lambdas["fill"]:
                y, hole = losses.zoom(y, self.rng), (m.detach() >= 0.5).to(m)
                noise = torch.randn(m.shape, generator=self.rng, device=m.device, dtype=y.dtype)
                terms["fill"] = losses.hole_mae(self.model.G_inp.coarse_fill((1 - hole) * y, hole, noise), y, hole)
        total = sum(self.model.lambdas[k] * term for k, term in terms.items())
        return self.finish(terms | {"total": total}, losses.update(self.opt_G, total, self.share), m, box)

    def finish(self, log, applied, m, box):
        """Count the step, follow the generators if it was applied; what `train_step` returns."""
        self.step += 1
        if applied and self.ema:
            for name in self.model.GENERATORS:
                losses.average(self.averaged.get_submodule(name), self.model.get_submodule(name), self.step, self.ema)
        log |= losses.mask_figures(m, self.model.allowed(box, m))
        return {k: v.detach() for k, v in log.items()} | {"skipped": m.new_tensor(float(not applied))}

    def teaches(self):
        return self.teacher is not None and self.model.lambdas["teach"] > 0

    def taught(self, x, y, box):
        """m of other views of x, lest the teacher's mistakes are learned by heart, and {"teach": m against its}."""
        label = self.label(x, box)
        m = self.model.mask(losses.views(x, y, label, self.rng), self.model.boxes(box, len(x)))
        return m, {"teach": losses.cross_entropy(m, label)}

    def label(self, x, box):
        """The box teacher's masks: at first of the box alone, from step 100 on of what the averaged G_seg says."""
        return self.teacher(x, box, self.averaged.segment(x, box) if self.step >= 100 else None)

    def autocast(self):
        return torch.autocast(self.model.box.device.type, torch.bfloat16, enabled=self.amp)

    def look(self, images):
        # Deviation: without it, discriminators know small sets by heart, and the mask grows or vanishes.
        return losses.augment(images, self.rng) if self.diffaug else images

    def state_dict(self):
        """Everything that training needs to go on, as one dict of tensors and plain containers."""
        return {"step": self.step, "networks": self.model.state(), "opt_G": self.opt_G.state_dict(),
                "averaged": self.averaged.state(self.model.GENERATORS) if self.ema else {}, "rng": self.rng.get_state(),
                "opt_D": self.opt_D.state_dict(), "pools": {k: pool.state_dict() for k, pool in self.pools.items()}}

    def load_state_dict(self, state):
        """Restore what `state_dict` gave, onto the model's device."""
        self.step = state["step"]
        self.model.load_networks(state["networks"])
        if self.ema:
            self.averaged.load_networks(state["averaged"], self.model.GENERATORS)
        self.opt_G.load_state_dict(state["opt_G"])
        self.opt_D.load_state_dict(state["opt_D"])
        for name, pool in self.pools.items():
            pool.load_state_dict(state["pools"][name], device=self.model.box.device)
        losses.restore(self.rng, state["rng"], self.step)


# --- from options to a trainer: the protocol of running/methods.py ---


def problem(args, used=tuple(LAMBDAS)):
    """What contradicts itself in the options, in one line; None if nothing does. used: terms that the method has."""
    terms, n_layers = {k for k in LAMBDAS if vars(args)[f"lambda_{k}"]}, args.n_layers_D or networks.depth(args.size)
    for name, n in (("n_layers_D", n_layers), ("n_layers_D_bg", args.n_layers_D_bg)):
        if args.size < 3 * 2**n:
            return f"--size {args.size} is too small for --{name} {n}, which needs {3 * 2**n} px"
    if used and not terms & set(used):
        return f"every λ that method {args.method} uses is 0: nothing to train"
    if args.vgg_weights and not terms & set(VGG_TERMS):
        return "--vgg_weights is given, but the λs of the terms that read it are all 0: bg_texture, bg_perc, obj_perc"


def model_config(args, crops):
    """The arguments of `SEIGAN` that options and training crops give."""
    same = ("size", "ngf", "ndf", "n_layers_D_bg", "imagegan", "seg_blocks", "seg_transposed", "head_bias",
            "enh_direct", "inp_direct", "grow_hole", "box_prior", "gram_sum")
    deep = networks.depth(args.size)
    return {name: vars(args)[name] for name in same} | {
        "unet_downs": args.unet_downs or deep, "n_layers_D": args.n_layers_D or deep,
        "box": torch.stack([crops.box(stem) for stem in crops.stems]).mean(0).tolist(),
        "crop_rule": (crops.rules or [None])[0], "lambdas": {k: vars(args)[f"lambda_{k}"] for k in LAMBDAS}}


def build(args, crops, device, rank=0):
    """The `Trainer` of a new `SEIGAN`; arguments as in running/methods.py."""
    config = model_config(args, crops)
    state = vgg_state(args.vgg_weights, taps) if (taps := losses.vgg_taps(config["lambdas"])) else None
    return build_trainer(SEIGAN(**config, vgg_state=state), args, device, rank)


def build_trainer(model, args, device, rank=0):
    """The `Trainer` of a model, with what the options say."""
    return Trainer(model.to(device), lr=args.lr, lr_seg=args.lr_seg, beta1=args.beta1, pool_size=args.pool_size,
                   ema=args.ema, diffaug=not args.no_diffaug, seed=args.seed + 1_000_000 * rank, amp=args.amp,
                   pool_past=args.pool_past, warm_steps=args.warm_steps)


def vgg_state(file, taps):
    """VGG-19's weights, of `file` or torchvision's own. OSError, with the remedy, if they cannot be had or used."""
    from torchvision.models import VGG19_Weights  # the rest of this file needs torch only
    try:
        state = (torch.load(file, map_location="cpu", weights_only=True) if file else
                 VGG19_Weights.IMAGENET1K_V1.get_state_dict(progress=True, weights_only=True))
        networks.VGG19Features(taps, state)
        return state
    except Exception as error:  # whatever a foreign file or the network raises, the remedy is the same
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise OSError(f"no VGG-19 weights from {file or 'the download'} ({why}): give others with --vgg_weights FILE, "
                      "or train without: --lambda_bg_texture 0 --lambda_bg_perc 0 --lambda_obj_perc 0") from error
