"""The training step as one writes it from the paper, call by call: what `seigan.Trainer` must equal and outrun.

In this order: the five networks with the paper's switches, the swaps, the losses, the pool, the step.
"""
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

import losses
from networks import box_mask
from seigan import SEIGAN

# --- the networks of `train.py --paper`, layer by layer, with a model's weights ---


def paper_networks(model):
    """{name: function} of the five networks, of a model that has all of --paper's switches."""
    return {
        "G_seg": lambda x: resnet(model.G_seg, x),
        "G_enh": lambda z, noise: unet(model.G_enh.unet, torch.cat([z, noise], 1)).tanh(),
        "G_inp": lambda cut, m, noise: two_unets(model.G_inp, cut, noise),
        "D_obj": lambda image: patchgan(model.D_obj, image),
        "D_bg": lambda image: imagegan(model.D_bg, image),
    }


def layers(net):
    """The convolutions of a network, in order."""
    return [layer for layer in net.modules() if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))]


def normal(h):
    """Instance normalisation: each channel of each image."""
    return (h - h.mean((2, 3), keepdim=True)) / (h.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()


def reflected(h, layer, pixels):
    return F.conv2d(F.pad(h, [pixels] * 4, mode="reflect"), layer.weight, layer.bias)


def resnet(net, x):
    """CycleGAN's c7s1-64, d128, d256, R256 ..., u128, u64, c7s1, with a sigmoid (§3.4, Fig. 3 right)."""
    stem, down1, down2, *blocks, up1, up2, head = layers(net)
    h = normal(reflected(x, stem, 3)).relu()
    for down in (down1, down2):
        h = normal(F.conv2d(h, down.weight, down.bias, stride=2, padding=1)).relu()
    for first, second in zip(blocks[::2], blocks[1::2], strict=True):
        h = h + normal(reflected(normal(reflected(h, first, 1)).relu(), second, 1))
    for up in (up1, up2):
        h = normal(F.conv_transpose2d(h, up.weight, up.bias, stride=2, padding=1, output_padding=1)).relu()
    return reflected(h, head, 3).sigmoid()


def unet(net, image):
    """Down to a few pixels and up again, each resolution handed across (§3.4, Fig. 3 left)."""
    stem, *downs_ups, head = layers(net)
    downs, ups = downs_ups[: len(downs_ups) // 2], downs_ups[len(downs_ups) // 2 :]
    h, skips = F.leaky_relu(F.conv2d(image, stem.weight, stem.bias, padding=1), 0.2), []
    for down in downs:
        skips.append(h)
        h = F.leaky_relu(normal(F.conv2d(h, down.weight, down.bias, stride=2, padding=1)), 0.2)
    for up in reversed(ups):
        h = normal(F.conv2d(h, up.weight, up.bias, padding=1)).relu()
        h = torch.cat([F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False), skips.pop()], 1)
    return F.conv2d(h, head.weight, head.bias, padding=1)


def two_unets(net, cut, noise):
    """Two U-Nets in sequence, which see the cut image and noise alone (§3.2): both images."""
    coarse = unet(net.first, torch.cat([cut, noise], 1)).tanh()
    return unet(net.second, coarse).tanh(), coarse


def seen(net, image):
    """What CycleGAN's discriminator sees: C64, C128 ..., all but the last with stride 2, up to its head (§3.3)."""
    first, *middle, last, _ = layers(net)
    h = F.leaky_relu(F.conv2d(image, first.weight, first.bias, stride=2, padding=1), 0.2)
    for layer in middle:
        h = F.leaky_relu(normal(F.conv2d(h, layer.weight, layer.bias, stride=2, padding=1)), 0.2)
    return F.leaky_relu(normal(F.conv2d(h, last.weight, last.bias, padding=1)), 0.2)


def patchgan(net, image):
    """A score of each field: (N, 1, H', W')."""
    head = layers(net)[-1]
    return F.conv2d(seen(net, image), head.weight, head.bias, padding=1)


def imagegan(net, image):
    """One score of each image, for which every feature has a weight at every place (§3.2): (N,)."""
    head = layers(net)[-1]
    return (seen(net, image) * head.weight).sum((1, 2, 3)) + head.bias


# --- the swaps ---


def literal_swap(model, x, y, rng, box, networks=None):
    """Nine separate generator calls (ten with λ_fill), as one reads them in the paper (§3.1, Fig. 2), with what
    `SEIGAN.swap` draws.

    networks: functions in place of the model's networks so named, e.g. of `paper_networks`.
    """
    net = SimpleNamespace(**model.networks() | (networks or {}))
    n, (height, width) = len(x), x.shape[-2:]
    prior = box_mask(torch.as_tensor(box, device=x.device).expand(n, 4), height, width, model.box_prior).to(x)
    noise = torch.randn(6 * n, 1, height, width, generator=rng, device=x.device, dtype=x.dtype)
    e_z, e_x, i_x, i_y, e_z2, i_y2 = noise.chunk(6)
    m = net.G_seg(x) * prior
    hole = (m.detach() >= 0.5).to(m)
    y_near = losses.zoom(y, rng) if model.lambdas["fill"] else y
    m_y = net.G_seg(y_near) * prior
    if model.lambdas["fill"]:
        m_y = torch.maximum(m_y, hole)
    z = m * x + (1 - m) * y
    y_hat = net.G_enh(z, e_z)
    x_hat, _ = net.G_inp((1 - m) * x, m, i_x)
    y_id, _ = net.G_inp((1 - m_y) * y_near, m_y, i_y)
    y_fill = net.G_inp((1 - hole) * y_near, hole, i_y)[1] if model.lambdas["fill"] else y
    m_hat = net.G_seg(y_hat) * prior
    z_hat = m_hat * y_hat + (1 - m_hat) * x_hat
    return dict(m=m, z=z, y_hat=y_hat, x_hat=x_hat, m_hat=m_hat, z_hat=z_hat,
                x_hat2=net.G_enh(z_hat, e_z2), y_hat2=net.G_inp((1 - m_hat) * y_hat, m_hat, i_y2)[0],
                x_id=net.G_enh(x, e_x), y_near=y_near, y_id=y_id, y_fill=y_fill, hole=hole)


# --- the losses ---


def literal_terms(model, x, y, s, shown=None, networks=None):
    """The terms whose λ is not 0, each written out alone, but for the box teacher's.

    s: of `literal_swap`; shown: of its images, those that the discriminators see otherwise than they are; networks: as
    for `literal_swap`.
    """
    net = SimpleNamespace(**model.networks() | (networks or {}))

    def gram(f):
        return torch.einsum("nihw,njhw->nij", f, f) / (1 if model.gram_sum else f[0].numel())

    def texture(a, b):
        fa, fb = model.vgg(a), model.vgg(b)
        return sum((gram(fa[k]) - gram(fb[k])).abs().mean() for k in losses.VGG1) / 5

    def perceptual(a, b):
        fa, fb = model.vgg(a), model.vgg(b)
        return sum((fa[k] - fb[k]).abs().mean() for k in losses.VGG2) / 5

    d = s | (shown or {})
    terms = {
        "inp": lambda: ((1 - net.D_bg(d["x_hat"])) ** 2).mean(),
        "inp2": lambda: ((1 - net.D_bg(d["y_hat2"])) ** 2).mean(),
        "bg_texture": lambda: texture(y, s["y_hat2"]),
        "bg_perc": lambda: perceptual(y, s["y_hat2"]),
        "bg_mae": lambda: (y - s["y_hat2"]).abs().mean(),
        "obj_perc": lambda: perceptual(x, s["x_hat2"]),
        "obj_mae": lambda: (x - s["x_hat2"]).abs().mean(),
        "coarse": lambda: ((1 - net.D_obj(d["z"])) ** 2).mean(),
        "enh": lambda: ((1 - net.D_obj(d["y_hat"])) ** 2).mean(),
        "id_obj": lambda: (s["x_id"] - x).abs().mean(),
        "id_bg": lambda: (s["y_id"] - s["y_near"]).abs().mean(),
        "fill": lambda: ((s["y_near"] - s["y_fill"]).abs() * s["hole"]).mean(),
    }
    return {name: term() for name, term in terms.items() if model.lambdas[name]}


class LiteralPool:
    """The paper's pool (§3.4) as a list: what a step gets was put there by the steps before it.

    pool: the `losses.ReplayPool` whose size and random generator it has.
    """

    def __init__(self, pool):
        self.pool, self.images = pool, []

    def query(self, new):
        rng, size = self.pool.rng, self.pool.size
        exchange, place = torch.rand(len(new), generator=rng), torch.randint(size, (len(new),), generator=rng)
        out = new
        if self.images:
            drawn = torch.randint(len(self.images), (len(new),), generator=rng)
            out = torch.stack([self.images[i] for i in drawn])
        for i, image in enumerate(new):  # "we randomly update the pool"
            if len(self.images) < size:
                self.images.append(image)
            elif exchange[i] < 0.5:
                self.images[place[i]] = image
        return out


# --- the step ---


class LiteralTrainer:
    """SEIGAN's step without any economy: separate calls, discriminators that gather gradients of the
    generators' step too, Adam in a Python loop, every figure fetched at once.

    Takes what `trainer`, a new `seigan.Trainer`, holds: model, pools, generator of noise, averaged generators.
    networks: as for `literal_swap`.
    """

    def __init__(self, trainer, networks=None):
        self.trainer, self.model, self.networks = trainer, trainer.model, networks
        self.pools = {k: LiteralPool(pool) if pool.past else pool for k, pool in trainer.pools.items()}
        for network in self.model.networks().values():
            network.requires_grad_(True)
        self.opt_G, self.opt_D = (self._plain_adam(opt) for opt in (trainer.opt_G, trainer.opt_D))

    @staticmethod
    def _plain_adam(optimizer):
        groups = [{k: group[k] for k in ("params", "lr", "betas")} for group in optimizer.param_groups]
        return torch.optim.Adam(groups, foreach=False, fused=False)

    def train_step(self, batch):
        """As `Trainer.train_step`, but returns {name: float}: the unweighted terms, "total", "D_obj" and "D_bg"."""
        model, x, y, box = self.model, batch["x"], batch["y"], batch["box"]
        s = literal_swap(model, x, y, self.trainer.rng, box, self.networks)
        shown = self._shown(z=s["z"], y_hat=s["y_hat"]) | self._shown(x_hat=s["x_hat"], y_hat2=s["y_hat2"])
        terms = literal_terms(model, x, y, s, shown, self.networks)
        total = sum(model.lambdas[k] * term for k, term in terms.items())
        self.opt_G.zero_grad()
        total.backward()
        self.opt_G.step()

        net = SimpleNamespace(**model.networks() | (self.networks or {}))
        pooled = {k: pool.query(s[k].detach()) for k, pool in self.pools.items()}
        d, d_terms = self._shown(x=x, y_hat=pooled["y_hat"], z=pooled["z"]), {}
        d_terms["D_obj"] = (((1 - net.D_obj(d["x"])) ** 2).mean() + 0.5 * (net.D_obj(d["y_hat"]) ** 2).mean()
                            + 0.5 * (net.D_obj(d["z"]) ** 2).mean())
        d = self._shown(y=y, x_hat=pooled["x_hat"], y_hat2=pooled["y_hat2"])
        d_terms["D_bg"] = (((1 - net.D_bg(d["y"])) ** 2).mean() + 0.5 * (net.D_bg(d["x_hat"]) ** 2).mean()
                           + 0.5 * (net.D_bg(d["y_hat2"]) ** 2).mean())
        self.opt_D.zero_grad()
        sum(d_terms.values()).backward()
        self.opt_D.step()
        self.trainer.step += 1
        self._average()
        return {k: v.item() for k, v in (terms | d_terms | {"total": total}).items()}

    def _shown(self, **images):
        """What discriminators see of them."""
        if not self.trainer.diffaug:
            return images
        # one call, for the draws of `Trainer`
        shown = losses.augment(torch.cat([*images.values()]), self.trainer.rng).chunk(len(images))
        return dict(zip(images, shown, strict=True))

    @torch.no_grad()
    def _average(self):
        step, ema = self.trainer.step, self.trainer.ema
        for name in SEIGAN.GENERATORS if ema else ():
            decay = (1 - 1 / step) ** (1 / ema - 1)
            average, current = self.trainer.averaged.get_submodule(name), self.model.get_submodule(name)
            for a, p in zip(average.parameters(), current.parameters(), strict=True):
                a.copy_(decay * a + (1 - decay) * p)
