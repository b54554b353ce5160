"""ReDO (Chen, Artières, Denoyer, "Unsupervised object segmentation by redrawing", NeurIPS 2019): masks from images of
objects alone. A region is one that can be redrawn without anybody noticing. A method of running/methods.py.

Of an image x, F gives the masks M_k of K regions, which sum to 1; G_k draws new content for region k from its mask and
a code z_k; D compares such images with others, x_real; δ must find the codes again, which no empty region can show.

    x_k = M_k V_k + (1 - M_k) x,  V_k = G_k(M_k, z_k)           one region redrawn      r = Σ_k M_k V_k   all of them
    F, G_k, δ:  -mean D(x_k) + λ mean_k mean (z_k - δ_k(r))²    (eq. 10)
    D:          mean max(0, 1 - D(x_real)) + mean max(0, 1 + D(x_k))

Nothing says which region is the object: `neighbour.Polarity` does, from training images; the object's m (1 = object) is
all but the background. Where paper and the authors' public code differ, the code is followed: each step redraws every
region in turn, not one drawn at random, δ sees r, not x_k, and λ is a factor on a mean. Ours, against small sets being
learned by heart: D sees augmented images, tests use averaged weights; both can be switched off.

It collapses often: in 3.5 of 10 runs, the authors say, one region takes all within 3,000 to 5,000 steps, and their code
then begins anew. Here that is left to you, by another --seed; the log has what shows it: each region's mean `mask_k`
(below .1: it is gone), its `err_z_k` (1 = δ knows nothing of z_k; it must fall well below before masks can form),
mask_contrast, mask_spread, and D's mean scores, d_real and d_fake.
"""
import torch
import torch.nn.functional as F
from torch import nn

import losses
from baselines import neighbour
from baselines.redo_networks import Critic, Generator, Generators, MaskNet, halvings

NEEDS = ("second",)
OPTIONS = {
    "regions": (2, 2, "regions of an image, the background one of them"),
    "nz": (8, 1, "numbers in each region's code"),
    "nf": (32, 4, "channels of F, a multiple of 4"),
    "ch_G": (16, 1, "channels of the last block of each region's generator"),
    "ch_D": (16, 1, "channels of the discriminator's first block"),
    "ch_delta": (16, 1, "channels of the first block of the network that finds the codes again"),
    "attention": (False, None, "self-attention in the generators and the discriminator"),
    "lambda_z": (5.0, 0.0, "λ: what finding the codes again weighs"),
    "lr_F": (0.1, 0.0, "factor on --lr for F"),
    "no_diffaug": (False, None, "the discriminator sees images as they are, not augmented"),
}
# chosen by the logs of short runs on drawn planes: with short codes and a slow F, δ reads the codes before masks move
DEFAULTS = {"size": 32, "batch_size": 16, "n_epochs": 100, "lr": 4e-4, "beta1": 0.0, "no_diffaug": False}
# The paper's Flowers and CUB; its LFW has ch_G 64 and lambda_z 15. 100 epochs of CUB are the 40,000 steps after which,
# the authors say, at the latest to stop.
PAPER = {"size": 128, "batch_size": 25, "n_epochs": 100, "n_epochs_decay": 0, "lr": 1e-4, "ema": 0.0, "amp": False,
         "no_flip": True, "nz": 32, "nf": 64, "ch_G": 32, "ch_D": 64, "ch_delta": 64, "attention": True, "lr_F": 0.1,
         "no_diffaug": True}
BETA2, DECAY = 0.9, 1e-4  # Adam's, and the weight decay of F, which has no spectral norm
LOOKS = 3  # codes for each region in `ReDO.pictures`


# --- equations ---


def compose(x, masks, drawn):
    """x_k = M_k V_k + (1 - M_k) x for each k, and r = Σ_k M_k V_k.

    x (N, 3, H, W) in [-1, 1], masks M (N, K, H, W) in [0, 1], drawn V (N, K, 3, H, W) -> (N, K, 3, H, W), (N, 3, H, W).
    """
    masks = masks.unsqueeze(2)
    return losses.paste(drawn, x.unsqueeze(1), masks), (masks * drawn).sum(1)


def hinge_generator(d_fake):
    """-mean D(fake): scores of any shape."""
    return -d_fake.mean()


def hinge_discriminator(d_real, d_fake):
    """mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake)): scores of any shapes."""
    return F.relu(1 - d_real).mean() + F.relu(1 + d_fake).mean()


def code_errors(z, guess):
    """mean (z_k - δ_k(r))² of each region k: z, guess (N, K, nz) -> (K,). 1 is what a guess of 0 gets."""
    return (z - guess).square().mean((0, 2))


# --- the model ---


class ReDO(neighbour.Neighbour):
    """The networks F, G_k, D and δ, and what they make of images.

    Args:
        size: px of the training images, 4·2^L; F takes images of any size, the others those alone.
        regions to attention: see `OPTIONS`. box, crop_rule: as of `seigan.SEIGAN`.
    """

    NETWORKS = ("F", "G", "D", "delta")
    AVERAGED = ("F", "G", "polarity")

    def __init__(self, size=128, regions=2, nz=32, nf=64, ch_G=32, ch_D=64, ch_delta=64, attention=True,
                 box=(0.0, 0.0, 1.0, 1.0), crop_rule=None):
        if not halvings(size):
            raise ValueError(f"size must be 8, 16, 32, ... px, got {size}")
        super().__init__(dict(size=size, regions=regions, nz=nz, nf=nf, ch_G=ch_G, ch_D=ch_D, ch_delta=ch_delta,
                              attention=attention, box=list(box), crop_rule=crop_rule), regions)
        self.n_regions, self.nz = regions, nz
        self.F = MaskNet(regions, nf)
        self.G = Generators(Generator(size, ch_G, nz, attention) for _ in range(regions))
        self.D = Critic(size, ch_D, 1, attention)
        # one head of all δ_k is one of each. Deviation: without attention, as in the authors' code
        self.delta = Critic(size, ch_delta, regions * nz, attention=False)

    def regions(self, x):
        """The masks (N, K, H, W) of x (N, 3, H, W): in [0, 1], 1 = of that region."""
        return self.F(x)

    def redraw(self, x, z):
        """Masks (N, K, S, S), x_k (N, K, 3, S, S), r (N, 3, S, S) of x (N, 3, S, S) and codes z (N, K, nz)."""
        masks = self.regions(x)
        return masks, *compose(x, masks, self.G(masks, z))

    def guess(self, r):
        """δ: the codes (N, K, nz) that a redrawn image r (N, 3, S, S) shows."""
        return self.delta(r).unflatten(1, (self.n_regions, self.nz))

    @torch.no_grad()
    def pictures(self, x, y=None, box=None, seed=0):
        """{"mask": m, "r", then "regionK_I": x_K with the I-th of three codes}, each (N, 3 or 1, S, S).

        x (N, 3, S, S) in [-1, 1]; the codes depend on `seed` alone and are those of all images. y, box are not used.
        """
        codes = torch.randn((LOOKS, self.n_regions, self.nz), generator=torch.Generator().manual_seed(seed)).to(x)
        training = self.training
        self.eval()  # spectral norms move on in training mode
        masks, *looks = self.regions(x), *(self.redraw(x, z.expand(len(x), -1, -1))[1:] for z in codes)
        self.train(training)
        return {"mask": self.polarity(masks), "r": looks[0][1]} | {
            f"region{k}_{i}": x_k[:, k] for k in range(self.n_regions) for i, (x_k, _) in enumerate(looks)}

    @torch.no_grad()
    def scores(self, pictures):
        """{"d_KIND": D's scores (N,)} of all `pictures` but the mask: above 0 = rather real."""
        return {f"d_{kind}": self.D(images)[:, 0] for kind, images in pictures.items() if kind != "mask"}


Model = ReDO


# --- training ---


class Trainer(neighbour.Trainer):
    """Adam on both sides, one update each a step.

    Args:
        lr: of G_k, D and δ; lr_F: of F; beta1: of all; lambda_z: λ; the rest as of `neighbour.Trainer`.
    """

    def __init__(self, model, lr=1e-4, lr_F=1e-5, beta1=0.0, lambda_z=5.0, **kwargs):
        def adam(*groups):
            return torch.optim.Adam([group | {"initial_lr": group["lr"]} for group in groups], betas=(beta1, BETA2),
                                    fused=True)

        others = nn.ModuleList([model.G, model.delta])
        opt_G = adam({"params": [*model.F.parameters()], "lr": lr_F, "weight_decay": DECAY},
                     {"params": [*others.parameters()], "lr": lr})
        super().__init__(model, {"opt_G": opt_G, "opt_D": adam({"params": [*model.D.parameters()], "lr": lr})},
                         **kwargs)
        self.lambda_z = lambda_z

    def train_step(self, batch, lr_factor=1.0):
        """One update of F, G_k and δ, then one of D. batch: "x", "x_real" (N, 3, S, S) in [-1, 1], drawn independently.

        Returns {name: detached scalar tensor}: "adv", "info", "total", "D", the figures of the module's docstring,
        "background" (its region's number), those of `losses.mask_figures`, "skipped".
        """
        model, x = self.model, batch["x"]
        self.set_rates(lr_factor)
        shape = (len(x), model.n_regions, model.nz)
        z = torch.randn(shape, generator=self.rng, device=x.device, dtype=x.dtype)

        # F, G_k, δ: D only passes gradients on
        model.D.requires_grad_(False)
        with self.autocast():
            masks, x_k, r = model.redraw(x, z)
            adv = hinge_generator(model.D(self.look(x_k.flatten(0, 1))))  # -D(x_k)
            errors = code_errors(z, model.guess(r))  # (z_k - δ_k(r))²
        info = errors.mean()
        total = adv + self.lambda_z * info
        applied = losses.update(self.optimizers["opt_G"], total, self.share)

        # D, on what the new F and G_k make of the same x and z
        model.D.requires_grad_(True)
        with torch.no_grad(), self.autocast():
            x_k = model.redraw(x, z)[1].flatten(0, 1)
        with self.autocast():
            d_real, d_fake = model.D(self.look(torch.cat([batch["x_real"], x_k]))).split([len(x), len(x_k)])
        d = hinge_discriminator(d_real, d_fake)
        applied = applied and losses.update(self.optimizers["opt_D"], d, self.share)

        masks = masks.detach()
        if applied:
            model.polarity.update(masks)
        log = {"adv": adv, "info": info, "total": total, "D": d, "d_real": d_real.mean(), "d_fake": d_fake.mean(),
               **{f"err_z_{k}": error for k, error in enumerate(errors)},
               **{f"mask_{k}": mean for k, mean in enumerate(masks.mean((0, 2, 3)))},
               "background": model.polarity.excess.argmax()}
        return self.finish(log, applied, model.polarity(masks))


# --- from options to a trainer: the protocol of running/methods.py ---


def problem(args):
    """What contradicts itself in the options, in one line; None if nothing does."""
    if not halvings(args.size):
        return f"--size must be 8, 16, 32, 64, 128, ... with method redo, which doubles 4 px, got {args.size}"
    if args.nf % 4:
        return f"--nf must be a multiple of 4, got {args.nf}"
    return None


def build(args, crops, device, rank=0):
    """The `Trainer` of a new `ReDO`; arguments as in running/methods.py."""
    same = ("regions", "nz", "nf", "ch_G", "ch_D", "ch_delta", "attention")
    model = ReDO(**neighbour.common_config(args, crops), **{name: vars(args)[name] for name in same})
    return Trainer(model.to(device), args.lr, args.lr * args.lr_F, args.beta1, args.lambda_z, ema=args.ema,
                   seed=args.seed + 1_000_000 * rank, amp=args.amp, diffaug=not args.no_diffaug)
