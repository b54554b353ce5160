"""PerturbGAN (Bielski and Favaro, "Emergence of object segmentation in perturbed generative models", NeurIPS 2019).

Two StyleGAN generators of one z make a background B = G_bg(z), an object F and its mask m = G_obj(z), 1 = object. Both
F and m are shifted by a random Δ, which the generators do not know, before F is laid on B:

    x_hat[p] = (1 - m[p + Δ]) * B[p] + m[p + Δ] * F[p + Δ]        (eq. 2)

A discriminator D sees x_hat alone. A mask that holds some background, or misses some of the object, shows as a seam.
In a second stage an encoder E learns to invert the generators, now frozen: the mask of an image x is that of E(x).

The paper's code has the first stage alone. Here both are one run: the second begins after `first_epochs`. E learns from
the training images, once; the paper trains a new E for each 100 images on the very images that are then scored, which
is left out. Crops are of L = S + 2r px, the networks' images of S: real images are S x S windows at a random place of
their crop, so that both real and made objects are displaced by up to r px, by one law.
Files: stylegan.py, then this one. A method of running/methods.py.
"""
import zlib

import torch
import torch.nn.functional as F
from torch import nn

import losses
from baselines import neighbour, stylegan

NEEDS = ()
OPTIONS = {
    "first_epochs": (130, 1, "epochs of the first stage, the generators'; what is left of them trains the encoder"),
    "shift": (2, 0, "px by which objects are moved; the networks' images have --size less twice this: 8, 16, 32, ..."),
    "fake_shift": (0, 0, "px by which made objects are moved, 0 = as real ones"),
    "channels": (64, 1, "channels of a layer at most"),
    "channels_full": (16, 1, "channels at full resolution, doubled at each halving"),
    "z_dim": (64, 1, "numbers in z and in each w"),
    "mapping_layers": (4, 1, "layers between z and w"),
    "grow": (False, None, "begin with images of 8 px, or of as many as make objects move by one, and double them"),
    "mixing": (0.0, 0.0, "share of steps whose upper layers have another z (style mixing)"),
    "jitter": (0.3, 0.0, "greatest change of the background's contrast before objects are laid on it"),
    "faint": (0.1, 0.0, "factor on the first weights that make colours, 1 = the paper's"),
    "mask_bias": (-1.0, None, "first bias of the masks before the sigmoid, 0 = the paper's"),
    "eta": (0.25, 0.0, "share of an image below which its mask's area costs"),
    "gamma_size": (2.0, 0.0, "γ1 of the paper, weight of that cost"),
    "gamma_binary": (2.0, 0.0, "γ2 of the paper, weight of the cost of masks between 0 and 1"),
    "ramp": (0.5, 0.0, "share of the first stage in which that grows from 0, 0 = at once, the paper's"),
    "wgan": (False, None, "Wasserstein distance with a gradient penalty, not the logistic loss with R1"),
    "r1": (0.1, 0.0, "weight of R1, the penalty on D's gradient at real images"),
    "no_diffaug": (False, None, "D sees images as they are, not augmented"),
    "resnet": (False, None, "the encoder is ResNet-18, not D's trunk"),
    "lr_encoder": (3e-4, 0.0, "Adam's learning rate for the encoder"),
}
# untested beyond drawn images of 32 px: what a CPU does in half an hour
DEFAULTS = {"size": 36, "batch_size": 16, "n_epochs": 170, "lr": 2e-3, "beta1": 0.0, "no_diffaug": False}
# the paper's setting (d), 64 px; 48 epochs of its 100,000 images are 1.2 million images at each of four scales.
# Deviation: one batch size for all scales; the paper goes from 256 down to 32. Our objects are centred, so real ones
# shifted by 4 and made ones by 8 differ more than in the paper: then --fake_shift 0.
PAPER = {"size": 72, "shift": 4, "fake_shift": 8, "batch_size": 32, "n_epochs": 50, "n_epochs_decay": 0,
         "first_epochs": 48, "lr": 1e-3, "beta1": 0.0, "no_flip": True, "amp": False, "channels": 512,
         "channels_full": 256, "z_dim": 512, "mapping_layers": 8, "faint": 1.0, "mask_bias": 0.0, "ramp": 0.0,
         "grow": True, "mixing": 0.9, "wgan": True, "no_diffaug": True, "resnet": True, "lr_encoder": 1e-4}
MAPPING_RATE = 0.01  # on --lr, for the mappings
LAZY = 8  # R1 is taken each so many steps, so many times as strong (Karras et al., arXiv 1912.04958)


# --- the perturbation (§3.2) ---


def shift(images, by):
    """image[p + Δ], zero where that lies outside. images (N, C, H, W), by (N, 2): Δ in px down and right, integers."""
    n, channels, height, width = images.shape
    most = int(by.abs().max())
    padded = F.pad(images, (most,) * 4)
    rows, cols = (by[:, i, None] + most + torch.arange(side, device=images.device)
                  for i, side in enumerate((height, width)))
    image, channel = (torch.arange(k, device=images.device) for k in (n, channels))
    return padded[image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], cols[:, None, None]]


def draw_shifts(n, most, rng):
    """Δ (n, 2), each number uniform in -most..most."""
    return torch.randint(-most, most + 1, (n, 2), generator=rng, device=rng.device)


def jitter(images, contrast):
    """clamp(mean + c * (B - mean)) to what B has, all of each image and channel. images (N, C, H, W), contrast (N,)."""
    mean, least, most = (f(images, dim=(2, 3), keepdim=True) for f in (torch.mean, torch.amin, torch.amax))
    changed = mean + contrast.view(-1, 1, 1, 1) * (images - mean)
    return torch.minimum(torch.maximum(changed, least), most)


def compose(background, front, m, by):
    """x_hat[p] = (1 - m[p + Δ]) * B[p] + m[p + Δ] * F[p + Δ] (eq. 2); what Δ uncovers shows B. B, F (N, 3, S, S), m
    (N, 1, S, S) in [0, 1], 1 = object; by as of `shift`."""
    moved = shift(torch.cat([front, m], 1), by)
    return losses.paste(moved[:, :3], background, moved[:, 3:])


# --- the losses of the first stage (§3.2) ---


def size_loss(m, eta):
    """max(0, η - mean m) of each mask (N, 1, H, W), and their mean (eq. 3)."""
    return (eta - m.mean((1, 2, 3))).clamp(min=0).mean()


def binary_loss(m):
    """The mean of min(m, 1 - m) (eq. 4)."""
    return torch.minimum(m, 1 - m).mean()


def slopes(score, images):
    """|∇D| at each of images (N, 3, H, W), squared: (N,), with gradients. score: images -> (N,)."""
    images = images.detach().requires_grad_()
    gradient, = torch.autograd.grad(score(images).sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3))


def wgan_penalty(score, real, fake, mix):
    """10 (|∇D(x)|₂ - 1)² at x = ζ*real + (1-ζ)*fake, the mean; mix: ζ (N,) in [0, 1] (eq. 6)."""
    mix = mix.view(-1, 1, 1, 1)
    return 10 * ((slopes(score, mix * real + (1 - mix) * fake) + 1e-12).sqrt() - 1).square().mean()


def encoder_loss(x, rebuilt, features, features_rebuilt):
    """|x_E - x| + (D_feat(x_E) - D_feat(x))² (eq. 7), both as means: the paper's sums have no weights."""
    return losses.mae(rebuilt, x) + (features_rebuilt.float() - features.float()).square().mean()


# --- the model ---


class PerturbGAN(neighbour.Neighbour):
    """The two generators, D, and the encoder E.

    Args:
        size: L = S + 2*shift px; S, of the networks' images, is 8, 16, 32, ...
        shift to mapping_layers, grow, resnet: see `OPTIONS`.
        first_steps: number of steps of the first stage.
        box, crop_rule: as of `neighbour.Neighbour`.
    """

    NETWORKS = ("G_bg", "G_obj", "D", "E")
    AVERAGED = ("G_bg", "G_obj", "E", "polarity")

    def __init__(self, size, shift, fake_shift, channels, channels_full, z_dim, mapping_layers, grow, resnet,
                 first_steps, box=(0.0, 0.0, 1.0, 1.0), crop_rule=None):
        super().__init__(dict(size=size, shift=shift, fake_shift=fake_shift, channels=channels, z_dim=z_dim,
                              channels_full=channels_full, mapping_layers=mapping_layers, grow=grow, resnet=resnet,
                              first_steps=first_steps, box=list(box), crop_rule=crop_rule))
        self.side, self.first_steps = size - 2 * shift, first_steps
        widths = (self.side, channels, channels_full)
        self.G_bg = stylegan.Generator(*widths, z_dim, mapping_layers, 3, grow)
        self.G_obj = stylegan.Generator(*widths, z_dim, mapping_layers, 3 + 1, grow)
        self.D = stylegan.Discriminator(*widths, grow)
        self.E = stylegan.ResNetEncoder(self.side, z_dim) if resnet else stylegan.Encoder(*widths, z_dim)

    # --- what depends on the step alone ---

    def scale(self, step):
        """(side, α) of the images that the step after `step` steps makes: with `grow`, 8 px, ..., S, each for as long;
        all but the first fade in, with α from 0 to 1, for the first half of that.

        Deviation: sides at which the shift is less than a pixel are left out: without it the trivial solution comes, in
        which both layers are the same image, and a whole pixel would move objects out of the frame."""
        most = self.config["fake_shift"] or self.config["shift"]
        sides = [s for s in self.G_bg.sides if s == self.side or s >= stylegan.LEAST and most * s >= self.side]
        if not self.config["grow"] or step >= self.first_steps:
            return self.side, 1.0
        i, rest = divmod(step * len(sides), self.first_steps)
        return sides[i], min(1.0, 2 * rest / self.first_steps) if i else 1.0

    def shifts(self, side):
        """The most px by which real and made objects are moved at that side, 1 at least if any at all."""
        shift, fake_shift = self.config["shift"], self.config["fake_shift"] or self.config["shift"]
        return [max(1, round(most * side / self.side)) if most else 0 for most in (shift, fake_shift)]

    # --- images and layers ---

    def real(self, x, side, rng=None):
        """Crops x (N, 3, L, L) -> windows (N, 3, side, side) of them, each at a place of its own; of the middle without
        an rng."""
        most = self.shifts(side)[0]
        whole = side + 2 * most
        if whole != x.shape[-1]:
            x = F.interpolate(x, (whole, whole), mode="bilinear", antialias=True, align_corners=False)
        return self.inside(x if rng is None else shift(x, draw_shifts(len(x), most, rng)), most)

    def inside(self, x, most):
        """x without a rim of so many px."""
        return F.pad(x, (-most,) * 4)

    def layers(self, w_bg, w_obj, side=None, alpha=1.0, rng=None):
        """w of both generators, (N, blocks, 2, dim) -> B, F (N, 3, side, side), m (N, 1, side, side), 1 = object."""
        made = self.G_obj(w_obj, side, alpha, rng)
        return self.G_bg(w_bg, side, alpha, rng), made[:, :3], torch.sigmoid(made[:, 3:])

    def layers_of(self, x):
        """The layers of crops x (N, 3, L, L), with gradients, through E: B, F, m as of `layers`."""
        w = self.E(self.real(x, self.side))
        return self.layers(w[:, 0], w[:, 1])

    def features(self, x):
        """D's map of 8 px of images (N, 3, S, S)."""
        return self.D.trunk(x, until=stylegan.LEAST)

    def regions(self, x):
        """(N, 2, S, S): where B and where F shows."""
        m = self.layers_of(x)[2]
        return torch.cat([1 - m, m], 1)

    @torch.no_grad()
    def segment(self, x, box=None):
        """See `neighbour.Neighbour`; the rim of r px, which the networks do not see, is background."""
        return F.pad(self.polarity(self.regions(x)), (self.config["shift"],) * 4)

    @torch.no_grad()
    def pictures(self, x, y=None, box=None, seed=0):
        """{"mask", "z": m*x + (1-m)*y, "x_hat": B with x as its rim, "rebuilt": x_E, likewise}; in the first stage
        `samples`, of which no mask is an x's: "sample", "background", "front", "front_mask"."""
        if not self.ready:
            return self.samples(x, seed)
        background, front, m = self.layers_of(x)
        rim, by = self.config["shift"], torch.zeros(len(x), 2, dtype=torch.long, device=x.device)
        rebuilt = compose(background, front, m, by)
        if self.polarity.background == 1:
            background = front
        mask = F.pad(self.polarity(torch.cat([1 - m, m], 1)), (rim,) * 4)
        framed = [torch.where(F.pad(torch.ones_like(m), (rim,) * 4) > 0, F.pad(image, (rim,) * 4), x).clamp(-1, 1)
                  for image in (background, rebuilt)]
        made = {"mask": mask} if y is None else {"mask": mask, "z": losses.paste(x, y, mask)}
        return made | {"x_hat": framed[0], "rebuilt": framed[1]}

    def samples(self, x, seed):
        """One image a crop, from a z that is drawn by its pixels and the seed: so it does not depend on the batch."""
        z = torch.stack([torch.randn(self.config["z_dim"], generator=torch.Generator().manual_seed(
            zlib.crc32(one.cpu().numpy().tobytes(), seed))) for one in x]).to(x)
        side, alpha = self.scale(self.step)
        background, front, m = self.layers(self.G_bg.styles(z), self.G_obj.styles(z), side, alpha)
        made = {"sample": losses.paste(front, background, m), "background": background, "front": front,
                "front_mask": m}
        return {name: F.pad(F.interpolate(image, (self.side,) * 2), (self.config["shift"],) * 4)
                for name, image in made.items()}


Model = PerturbGAN


# --- training ---


@torch.no_grad()
def begin_faint(model, faint, mask_bias):
    """Deviation: layers begin as grey, by the factor `faint` on their colours' weights, and masks small. The paper's
    begin as noise as strong as an image; in short runs at 8 and 16 px D then stayed far ahead, and masks grew to .8 of
    the image within 80 steps."""
    for generator in (model.G_bg, model.G_obj):
        for out in generator.outs.values():
            out.weight[:3].mul_(faint)
    for out in model.G_obj.outs.values():
        out.bias[3:].fill_(mask_bias)


class Trainer(neighbour.Trainer):
    """Both stages; which one is told by the step.

    Args:
        model: a `PerturbGAN`, on the device to train on.
        args: with the options that `OPTIONS` and running/train_options.py explain.
        rank: number of the process, which noise depends on.
    """

    def __init__(self, model, args, rank=0):
        begin_faint(model, args.faint, args.mask_bias)
        makers = (model.G_bg, model.G_obj)
        rates = {nn.ModuleList(part for g in makers for part in (g.blocks, g.outs)): args.lr,
                 nn.ModuleList(g.mapping for g in makers): args.lr * MAPPING_RATE}
        optimizers = {"opt_G": losses.adam(rates, args.beta1, 0.99),
                      "opt_D": losses.adam({model.D: args.lr}, args.beta1, 0.99),
                      "opt_E": losses.adam({model.E: args.lr_encoder}, 0.9)}
        super().__init__(model.eval(), optimizers, args.seed + 1_000_000 * rank, args.ema, args.amp,
                         not args.no_diffaug)
        self.args = args

    def only(self, *names):
        """Let gradients into the networks so named, and into no other."""
        for name, network in self.model.networks(self.model.NETWORKS).items():
            network.requires_grad_(name in names)

    def train_step(self, batch, lr_factor=1.0):
        """One update of D, then of the generators; in the second stage, of E.

        batch: "x" (N, 3, L, L) in [-1, 1]. Returns {name: detached scalar tensor}, see running/methods.py.
        """
        self.set_rates(lr_factor)
        if self.step < self.model.first_steps:
            return self.step_of_generators(batch["x"])
        if self.step == self.model.first_steps:
            self.begin_second()
        return self.step_of_encoder(batch["x"])

    # --- the first stage ---

    def draw(self, n, side, alpha):
        """n images x_hat of side px, with the layers B, F and m that they were made of."""
        model, rng, device = self.model, self.rng, self.rng.device
        z, z2 = torch.randn((2, n, model.config["z_dim"]), generator=rng, device=device)
        chance, *places = torch.rand(3, generator=rng, device=device).tolist()
        contrast = 1 + self.args.jitter * (2 * torch.rand(n, generator=rng, device=device) - 1)
        z2 = z2 if chance < self.args.mixing else None
        last = [int(place * model.G_bg.sides.index(side)) for place in places]  # blocks that keep z: 0..last
        with self.autocast():
            w = [g.styles(z, z2, k) for g, k in zip((model.G_bg, model.G_obj), last, strict=True)]
            background, front, m = model.layers(*w, side, alpha, rng)
        behind = jitter(background, contrast)
        return compose(behind, front, m, draw_shifts(n, model.shifts(side)[1], rng)), (background, front, m)

    def step_of_generators(self, x):
        side, alpha = self.model.scale(self.step)
        self.only("D")
        with torch.no_grad():
            fake, (background, *_) = self.draw(len(x), side, alpha)
        real, fake = self.look(self.model.real(x, side, self.rng)), self.look(fake)
        terms = self.discriminator_terms(real, fake, alpha)
        applied = losses.update(self.optimizers["opt_D"], terms["D"] + terms.get("penalty", 0), self.share)
        if (self.step + 1) % LAZY == 0:
            with torch.no_grad():  # what D says of the background alone: high where it holds the object
                terms["D_background"] = self.score(self.look(background), alpha).mean()

        self.only("G_bg", "G_obj")
        fake, (background, front, m) = self.draw(len(x), side, alpha)
        score = self.score(self.look(fake), alpha)
        gan = -score.mean() if self.args.wgan else F.softplus(-score).mean()
        terms |= {"gan": gan, "size": size_loss(m, self.args.eta), "binary": binary_loss(m)}
        binary = self.args.gamma_binary * self.ramp(self.step)
        total = gan + self.args.gamma_size * terms["size"] + binary * terms["binary"]  # eq. 5
        applied = losses.update(self.optimizers["opt_G"], total, self.share) and applied
        terms["contrast"] = (m * (front - background)).abs().mean()  # near 0 where both layers are the same image
        return self.finish(terms | {"total": total}, applied, m)

    def ramp(self, step):
        """Factor on γ2. Deviation: from 0 to 1; in one short run without it, masks were 0 and 1, and the same for all
        images, before there was an object."""
        return min(1.0, step / (self.args.ramp * self.model.first_steps)) if self.args.ramp else 1.0

    def score(self, images, alpha):
        with self.autocast():
            return self.model.D(images, alpha)

    def discriminator_terms(self, real, fake, alpha):
        """"D", which is minimised with "penalty", where that is due; "D_real" and "D_fake", the mean scores."""
        d_real, d_fake = self.score(real, alpha), self.score(fake, alpha)
        terms = {"D_real": d_real.mean(), "D_fake": d_fake.mean()}

        def penalised(images):  # in full precision, also under --amp
            return self.model.D(images, alpha)

        if self.args.wgan:  # eq. 6
            mix = torch.rand(len(real), generator=self.rng, device=real.device)
            terms["D"] = d_fake.mean() - d_real.mean() + 0.001 * d_real.square().mean()
            terms["penalty"] = wgan_penalty(penalised, real, fake, mix)
        else:  # Deviation: the logistic loss with R1, the steadier one in small runs
            terms["D"] = F.softplus(-d_real).mean() + F.softplus(d_fake).mean()
            if (self.step + 1) % LAZY == 0 and self.args.r1:
                terms["penalty"] = LAZY * self.args.r1 / 2 * slopes(penalised, real).mean()
        return terms

    # --- the second stage (§3.3) ---

    @torch.no_grad()
    def begin_second(self):
        """Take the averaged generators for good, and let E begin at their mean w."""
        model = self.model
        z = torch.randn((4096, model.config["z_dim"]), generator=torch.Generator().manual_seed(0)).to(model.box.device)
        for name in ("G_bg", "G_obj"):
            model.get_submodule(name).load_state_dict(self.averaged.get_submodule(name).state_dict())
        model.E.begin(model.D, torch.stack([g.mapping(z).mean(0) for g in (model.G_bg, model.G_obj)]))

    def step_of_encoder(self, x):
        model = self.model
        self.only("E")
        model.E.train()  # its batch norms, if it has any
        with self.autocast():
            background, front, m = model.layers_of(x)
            inside, rebuilt = model.real(x, model.side), losses.paste(front, background, m)
            loss = encoder_loss(inside, rebuilt, model.features(inside), model.features(rebuilt))
        model.E.eval()
        applied = losses.update(self.optimizers["opt_E"], loss, self.share)
        model.polarity.update(torch.cat([1 - m, m], 1).detach())
        return self.finish({"total": loss, "rebuilt": losses.mae(rebuilt, inside)}, applied, m)

    def move_average(self):
        """Of the generators in the first stage, of E in the second, whose steps are counted from its own first."""
        first = self.model.first_steps
        if self.step <= first:
            self.follow(("G_bg", "G_obj"), self.step, self.ema)
        else:
            self.follow(("E", "polarity"), self.step - first, self.ema)


# --- from options to a trainer: the protocol of running/methods.py ---


def problem(args):
    """What contradicts itself in the options, in one line; None if nothing does."""
    side, epochs = args.size - 2 * args.shift, args.n_epochs + args.n_epochs_decay
    if side < stylegan.LEAST or side & (side - 1):
        return f"--size less twice --shift must be 8, 16, 32, ... px, got {args.size} and {args.shift}: {side}"
    if args.fake_shift >= side:
        return f"--fake_shift {args.fake_shift} moves objects out of images of {side} px"
    if args.resnet and side < 32:
        return f"--resnet takes images of 32 px, which are --size less twice --shift: {side}"
    if args.first_epochs >= epochs:
        return f"--first_epochs {args.first_epochs} of {epochs} epochs leave none for the encoder, which segments"
    return None


def build(args, crops, device, rank=0):
    """The `Trainer` of a new `PerturbGAN`; arguments as in running/methods.py."""
    own = ("shift", "fake_shift", "channels", "channels_full", "z_dim", "mapping_layers", "grow", "resnet")
    model = PerturbGAN(**neighbour.common_config(args, crops), **{name: vars(args)[name] for name in own},
                       first_steps=neighbour.steps(args, crops, args.first_epochs))
    return Trainer(model.to(device), args, rank)
