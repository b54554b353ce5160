"""ComGAN (Ding et al., NeurIPS 2022): a generator of two layers and a mask, and a network taught by what it makes.

A method of running/methods.py, in two stages; it sees images of objects alone, and knows no boxes, backgrounds, masks.

1. Noise z becomes features phi = Phi(z), and light heads read them: xf = F(phi), xb = B(phi), m = M(phi), of which the
   image is composed (eq. 2): xc = m*xf + (1-m)*xb. A discriminator D_z compares it with x (eq. 3). All of a layer that
   is seen changes phi, and thereby m: a full or an empty mask moves on, where it would stay with networks apart. The
   mask's entropy is kept low (eq. 11).
2. G = (Phi, F, B, M) stays as it is; a network S learns m = S(xc) (eq. 10), and a discriminator D_m compares S(xc) and
   S(x) with m (eq. 9). S segments images. In the paper this is DS-ComGAN's, here it serves both.

Which of its layers is the object, nothing says: `neighbour.Polarity`, by what S makes of training images.
"""
import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

import losses
from baselines import neighbour
from baselines.comgan_networks import Discriminator, Generator, Segmenter

NEEDS = ()
OPTIONS = {
    "first_epochs": (96, 1, "epochs of the first stage, in which the generator learns; S has the others"),
    "ngf": (16, 1, "channels of the generator's last features; doubled at each halving of their side"),
    "ndf": (32, 1, "channels of the first layers of D_z and D_m"),
    "nz": (64, 1, "numbers in z"),
    "head_width": (24, 1, "channels of the generator's heads"),
    "head_blocks": (1, 0, "residual blocks of the heads F and B"),
    "mask_blocks": (0, 0, "residual blocks of the head M"),
    "seg_ngf": (16, 1, "channels of S's first layer"),
    "authors_nets": (False, None, "S with max-pooling and batch normalisation, of which no average is kept; in "
                     "dscomgan maps convolved after upsampling, and tiled codes"),
    "no_diffaug": (False, None, "D_z sees images as they are, not augmented"),
    "masks_as_made": (False, None, "S learns masks as they are, also those that cover the frame more than the inside"),
    # the paper shows .1 and 1; with .1 masks stayed grey on the drawn shapes (IoU .67 against .92, one seed)
    "lambda_binary": (1.0, 0.0, "β, of the generated masks' entropy; it rises over a third of the first stage"),
    # Deviation: the paper's 2 leaves S to D_m, and its masks do not fit their images (val IoU .66 against .68 after 300
    # steps of the second stage on the demo set); it too takes more where that is so.
    "lambda_cons": (20.0, 0.0, "λ, of |m - S(xc)|"),
}
# 4,800 and 1,500 steps on the demo set, about 20 minutes of one free core
DEFAULTS = {"size": 32, "batch_size": 16, "n_epochs": 126, "lr": 4e-4, "no_diffaug": False, "ngf": 16, "ndf": 32}
# an average of a fixed rate of .999 is a thousand steps old, of 58,500
PAPER = {"size": 128, "batch_size": 90, "first_epochs": 450, "n_epochs": 900, "n_epochs_decay": 0, "lr": 2e-4,
         "ema": 0.02, "amp": False, "nz": 100, "head_width": 32, "head_blocks": 3, "seg_ngf": 64, "authors_nets": True,
         "no_diffaug": True, "lambda_binary": 0.1, "lambda_cons": 2.0, "masks_as_made": True}
SIZES = ("ngf", "ndf", "nz", "head_width", "head_blocks", "mask_blocks", "seg_ngf", "authors_nets")
LAST = 1e-9  # as `ema`: an average that is the last weights alone
SAMPLES = 16  # images that G makes at a time to be looked at


def bce(logits, target):
    """Binary cross-entropy of logits against 1 = real or 0. Deviation: eq. 3 has 1 - log D for fakes, which has no
    minimum; and G wants fakes to be real, for the sake of its gradients. Both as the authors' code."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def binary_entropy(a):
    """Mean entropy of masks sigmoid(a) in bits, 1 where all are ½ (L_binary, eq. 11); finite for all logits."""
    return (F.softplus(a) - a * torch.sigmoid(a)).mean() / math.log(2)


class ComGAN(neighbour.Neighbour):
    """Both stages' networks.

    Args (as config): size, box, crop_rule, first_steps: see `neighbour.Neighbour`; ngf to authors_nets: see `OPTIONS`.
    """

    NETWORKS = ("G", "D_z", "S", "D_m")
    LEARNERS = ("G",)  # what the generator's optimiser moves
    AVERAGED = ("G", "S", "polarity")

    def __init__(self, **config):
        super().__init__(config)
        size, ndf = config["size"], config["ndf"]
        self.G = self.generator(config)
        self.D_z = Discriminator(size, ndf)
        self.S = Segmenter(size, config["seg_ngf"], config["authors_nets"])
        self.D_m = Discriminator(size, ndf, channels=1)

    @staticmethod
    def generator(config):
        return Generator(*(config[k] for k in ("size", "ngf", "nz", "head_width", "head_blocks", "mask_blocks")))

    def draw(self, n, rng):
        """The arguments of n images for G."""
        return (torch.randn((n, self.config["nz"]), generator=rng, device=self.box.device, dtype=self.box.dtype),)

    def regions(self, x):
        """[1 - S(x), S(x)], (N, 2, S, S): xb's region, and xf's."""
        m = self.S(x)
        return torch.cat([1 - m, m], 1)

    @torch.no_grad()
    def pictures(self, x, y=None, box=None, seed=0):
        """In the first stage what G makes, whatever x is: {"made": xc, "made_mask": m, "made_f": xf, "made_b": xb}, and
        of DS-ComGAN "made_z": xz. Then {"mask": m} and, where there is a y, "z": m*x + (1-m)*y."""
        if self.ready:
            m = self.segment(x)
            return {"mask": m} if y is None else {"mask": m, "z": losses.paste(x, y, m)}
        G = copy.deepcopy(self.G).train()  # an average has no batch statistics yet, see `Trainer.settle`
        made = G(*self.draw(SAMPLES, torch.Generator(self.box.device).manual_seed(seed)))
        row = torch.arange(len(x), device=x.device) % SAMPLES
        images = {"made": made.xc, "made_mask": made.m, "made_f": made.xf, "made_b": made.xb, "made_z": made.xz}
        return {kind: image[row] for kind, image in images.items() if image is not None}


Model = ComGAN


class Trainer(neighbour.Trainer):
    """Two stages of two updates a step each. Arguments as of `neighbour.Trainer`, and

    lr, beta1: Adam's; weights: {"binary": β, "cons": λ}; masks_as_made: see `OPTIONS`.
    """

    def __init__(self, model, weights, lr, beta1=0.5, ema=0.2, masks_as_made=False, **others):
        sets = {"opt_G": model.LEARNERS, "opt_D": ("D_z",), "opt_S": ("S",), "opt_M": ("D_m",)}
        optimizers = {name: losses.adam({nn.ModuleList(model.networks(names).values()): lr}, beta1)
                      for name, names in sets.items()}
        super().__init__(model, optimizers, ema=ema or LAST, **others)  # the average needs statistics of its own
        self.averaged.eval()
        self.weights, self.first_steps = weights, model.config["first_steps"]
        self.masks_as_made = masks_as_made

    def train_step(self, batch, lr_factor=1.0):
        """Two updates of the stage's networks. batch: "x" (N, 3, H, W) in [-1, 1], N > 1.

        Returns what `finish` does: the figures of masks are of G's in the first stage, then of S(x)."""
        self.set_rates(lr_factor)
        if self.step == self.first_steps:
            self.settle(len(batch["x"]))
        stage = self.disentangle if self.step < self.first_steps else self.segment
        return self.finish(*stage(batch["x"]))

    # --- the first stage ---

    def disentangle(self, x):
        """One update of D_z, then one of G on the same images (§3.1, §3.2). Each kind of image goes through D_z as a
        batch of its own. Returns the terms, whether both were applied, and the masks."""
        model = self.model
        codes = model.draw(len(x), self.rng)
        with self.autocast():
            made = model.G(*codes)
            fakes = [image for image in (made.xc, made.xz) if image is not None]
            d_x = model.D_z(self.look(x))
            d_fakes = [model.D_z(self.look(fake.detach())) for fake in fakes]
        d_loss = len(fakes) * bce(d_x, 1) + sum(bce(d, 0) for d in d_fakes)
        d_applied = losses.update(self.optimizers["opt_D"], d_loss, self.share)

        model.D_z.requires_grad_(False)
        with self.autocast():
            terms = {"adv": sum(bce(model.D_z(self.look(fake)), 1) for fake in fakes),
                     "binary": binary_entropy(made.a)} | self.information(made, codes)
        rates = self.weights | {"adv": 1.0, "binary": self.weights["binary"] * self.rise()}
        total = sum(rates[name] * term for name, term in terms.items())
        made.a.retain_grad()
        applied = losses.update(self.optimizers["opt_G"], total, self.share) and d_applied
        model.D_z.requires_grad_(True)
        return terms | {"total": total, "D_z": d_loss} | self.watch(made), applied, made.m

    def information(self, made, codes):
        """Terms of the codes: here there are none."""
        return {}

    def rise(self):
        # Deviation: β from 0 on: entropy moves each pixel to its nearer end, and early that is one end for all.
        return min(1.0, 3 * self.step / self.first_steps)

    @staticmethod
    @torch.no_grad()
    def watch(made):
        """What shows a generator going wrong: "apart", mean |xf - xb|, 0 where any mask will do; "mask_gradient", its
        norm at the masks' logits, 0 where they stay; "mask_framed", the share of masks that cover more of the frame
        than of the inside: between 0 and 1 some have the object in m and some in 1 - m."""
        return {"apart": (made.xf - made.xb).abs().mean(), "mask_gradient": made.a.grad.norm(),
                "mask_framed": (neighbour.frame_excess(made.m) > 0).float().mean()}

    # --- between the stages ---

    @torch.no_grad()
    def settle(self, n, batches=50):
        """Measure the averaged G's batch statistics, over batches of n: those that G had on its way are of other
        weights. Every process draws the same, so that all have the same G."""
        G, rng = self.averaged.G, torch.Generator(self.model.box.device).manual_seed(0)
        for module in G.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.reset_running_stats()
                module.momentum = None  # the plain mean over the batches
        G.train()
        with self.autocast():
            for _ in range(batches):
                G(*self.model.draw(n, rng))
        G.eval()

    # --- the second stage ---

    def segment(self, x):
        """One update of D_m, then one of S on the same masks (§3.3). Returns as `disentangle`."""
        model = self.model
        with torch.no_grad(), self.autocast():
            made = self.averaged.G(*model.draw(len(x), self.rng))
            m = made.m
            if not self.masks_as_made:  # Deviation: S cannot know on which of its layers an image has the object.
                m = torch.where(neighbour.frame_excess(m)[..., None, None] > 0, 1 - m, m)
        with self.autocast():
            m_made, m_x = model.S(made.xc), model.S(x)
            d_real, *d_fakes = (model.D_m(masks.detach()) for masks in (m, m_made, m_x))  # eq. 9, real: what G made
        d_loss = 2 * bce(d_real, 1) + sum(bce(d, 0) for d in d_fakes)
        d_applied = losses.update(self.optimizers["opt_M"], d_loss, self.share)

        model.D_m.requires_grad_(False)
        with self.autocast():
            adv = bce(model.D_m(m_made), 1) + bce(model.D_m(m_x), 1)
        cons = losses.mae(m_made, m)  # |m - S(xc)|, eq. 10
        total = adv + self.weights["cons"] * cons
        applied = losses.update(self.optimizers["opt_S"], total, self.share) and d_applied
        model.D_m.requires_grad_(True)
        if applied:
            model.polarity.update(torch.cat([1 - m_x, m_x], 1))
        return {"adv_mask": adv, "cons": cons, "total": total, "D_m": d_loss, "mask_area_made": m_made.mean()}, \
            applied, m_x

    def move_average(self):
        """In each stage of its generator or S, with ages as of the stage's steps; S's statistics are the last."""
        model, averaged = self.model, self.averaged
        if self.step <= self.first_steps:
            losses.average(averaged.G, model.G, self.step, self.ema)
            return
        # where S normalises over batches, an average would need statistics of its own
        ema = LAST if model.config["authors_nets"] else self.ema
        self.follow(("S", "polarity"), self.step - self.first_steps, ema)


def problem(args):
    """What contradicts itself in the options, in one line; None if nothing does."""
    if args.size < 16 or args.size & (args.size - 1):
        return f"--size must be 16, 32, 64, 128 or more powers of 2 for method {args.method}, got {args.size}"
    if args.batch_size < 2:
        return f"--batch_size must be 2 or more for method {args.method}, which normalises over batches"
    epochs = args.n_epochs + args.n_epochs_decay
    if args.first_epochs >= epochs:
        return f"--first_epochs {args.first_epochs} leaves nothing of {epochs} epochs to the second stage, in which " \
               "S learns: give fewer, or more --n_epochs"


def build(args, crops, device, rank=0, model=ComGAN, trainer=Trainer, sizes=SIZES, terms=("binary", "cons")):
    """The trainer of a new model, of the classes given; arguments as in running/methods.py."""
    config = neighbour.common_config(args, crops) | {name: vars(args)[name] for name in sizes}
    config["first_steps"] = neighbour.steps(args, crops, args.first_epochs)
    return trainer(model(**config).to(device), {term: vars(args)[f"lambda_{term}"] for term in terms}, args.lr,
                   args.beta1, args.ema, args.masks_as_made, seed=args.seed + 1_000_000 * rank, amp=args.amp,
                   diffaug=not args.no_diffaug)
