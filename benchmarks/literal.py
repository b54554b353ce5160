"""The training step as one writes it from the paper, call by call: what `seigan.Trainer` must equal and outrun."""
import torch

import losses
from networks import box_mask
from seigan import SEIGAN


def literal_swap(model, x, y, rng, box):
    """Nine separate generator calls, as one reads them in the paper (§3.1, Fig. 2), with the noise of `SEIGAN.swap`."""
    n, (height, width) = len(x), x.shape[-2:]
    prior = box_mask(torch.as_tensor(box, device=x.device).expand(n, 4), height, width, 1.1).to(x)
    noise = torch.randn(6 * n, 1, height, width, generator=rng, device=x.device, dtype=x.dtype)
    e_z, e_x, i_x, i_y, e_z2, i_y2 = noise.chunk(6)
    m = model.G_seg(x) * prior
    hole = (m.detach() >= 0.5).to(m)
    m_y = torch.maximum(model.G_seg(y) * prior, hole)
    z = m * x + (1 - m) * y
    y_hat = model.G_enh(z, e_z)
    x_hat, _ = model.G_inp((1 - m) * x, m, i_x)
    y_id, y_coarse = model.G_inp((1 - m_y) * y, m_y, i_y)
    m_hat = model.G_seg(y_hat) * prior
    z_hat = m_hat * y_hat + (1 - m_hat) * x_hat
    return dict(m=m, z=z, y_hat=y_hat, x_hat=x_hat, m_hat=m_hat, z_hat=z_hat,
                x_hat2=model.G_enh(z_hat, e_z2), y_hat2=model.G_inp((1 - m_hat) * y_hat, m_hat, i_y2)[0],
                x_id=model.G_enh(x, e_x), y_id=y_id, y_coarse=y_coarse, hole=hole)


def literal_terms(model, x, y, s, seen=None):
    """The terms whose λ is not 0, each written out alone, but for the box teacher's.

    s: of `literal_swap`; seen: of its images, those that the discriminators see otherwise than they are.
    """
    def texture(a, b):
        fa, fb = model.vgg(a), model.vgg(b)
        return sum((losses.gram(fa[k]) - losses.gram(fb[k])).abs().mean() for k in losses.VGG1) / 5

    def perceptual(a, b):
        fa, fb = model.vgg(a), model.vgg(b)
        return sum((fa[k] - fb[k]).abs().mean() for k in losses.VGG2) / 5

    d = s | (seen or {})
    terms = {
        "inp": lambda: ((1 - model.D_bg(d["x_hat"])) ** 2).mean(),
        "inp2": lambda: ((1 - model.D_bg(d["y_hat2"])) ** 2).mean(),
        "bg_texture": lambda: texture(y, s["y_hat2"]),
        "bg_perc": lambda: perceptual(y, s["y_hat2"]),
        "bg_mae": lambda: (y - s["y_hat2"]).abs().mean(),
        "obj_perc": lambda: perceptual(x, s["x_hat2"]),
        "obj_mae": lambda: (x - s["x_hat2"]).abs().mean(),
        "coarse": lambda: ((1 - model.D_obj(d["z"])) ** 2).mean(),
        "enh": lambda: ((1 - model.D_obj(d["y_hat"])) ** 2).mean(),
        "id_obj": lambda: (s["x_id"] - x).abs().mean(),
        "id_bg": lambda: (s["y_id"] - y).abs().mean(),
        "fill": lambda: ((y - s["y_coarse"]).abs() * s["hole"]).mean(),
    }
    return {name: term() for name, term in terms.items() if model.lambdas[name]}


class LiteralTrainer:
    """SEIGAN's step without any economy: separate calls, discriminators that gather gradients of the
    generators' step too, Adam in a Python loop, every figure fetched at once.

    Takes what `trainer`, a new `seigan.Trainer`, holds: model, pools, generator of noise, averaged generators.
    """

    def __init__(self, trainer):
        self.trainer, self.model = trainer, trainer.model
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
        s = literal_swap(model, x, y, self.trainer.rng, box)
        terms = literal_terms(model, x, y, s, self._seen(z=s["z"], y_hat=s["y_hat"])
                              | self._seen(x_hat=s["x_hat"], y_hat2=s["y_hat2"]))
        total = sum(model.lambdas[k] * term for k, term in terms.items())
        self.opt_G.zero_grad()
        total.backward()
        self.opt_G.step()

        pooled = {k: pool.query(s[k].detach()) for k, pool in self.trainer.pools.items()}
        d, d_terms = self._seen(x=x, y_hat=pooled["y_hat"], z=pooled["z"]), {}
        d_terms["D_obj"] = (((1 - model.D_obj(d["x"])) ** 2).mean() + 0.5 * (model.D_obj(d["y_hat"]) ** 2).mean()
                            + 0.5 * (model.D_obj(d["z"]) ** 2).mean())
        d = self._seen(y=y, x_hat=pooled["x_hat"], y_hat2=pooled["y_hat2"])
        d_terms["D_bg"] = (((1 - model.D_bg(d["y"])) ** 2).mean() + 0.5 * (model.D_bg(d["x_hat"]) ** 2).mean()
                           + 0.5 * (model.D_bg(d["y_hat2"]) ** 2).mean())
        self.opt_D.zero_grad()
        sum(d_terms.values()).backward()
        self.opt_D.step()
        self.trainer.step += 1
        self._average()
        return {k: v.item() for k, v in (terms | d_terms | {"total": total}).items()}

    def _seen(self, **images):
        if not self.trainer.diffaug:
            return images
        # one call, for the draws of `Trainer`
        seen = losses.augment(torch.cat([*images.values()]), self.trainer.rng).chunk(len(images))
        return dict(zip(images, seen, strict=True))

    @torch.no_grad()
    def _average(self):
        step, ema = self.trainer.step, self.trainer.ema
        for name in SEIGAN.GENERATORS if ema else ():
            decay = (1 - 1 / step) ** (1 / ema - 1)
            average, current = self.trainer.averaged.get_submodule(name), self.model.get_submodule(name)
            for a, p in zip(average.parameters(), current.parameters(), strict=True):
                a.copy_(decay * a + (1 - decay) * p)
