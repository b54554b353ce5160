"""NoCycle (§4.1, after Remez et al.): the object's discriminator alone, λ8 and λ9; no inpainting, no cycle.

A method of running/methods.py.
"""
import torch

import losses
import seigan
from seigan import LAMBDAS, NEEDS, SEIGAN, Swap, build_trainer, model_config

__all__ = ["NEEDS", "Model", "build", "problem"]
TERMS = ("coarse", "enh")
LIKE = "seigan"  # one command line serves SEIGAN and its baselines
OPTIONS = {"lr_seg": (0.4, 0.0, "factor on --lr for G_seg")}  # without a teacher a lower rate


class NoCycle(SEIGAN):
    """G_seg, G_enh and D_obj of a `SEIGAN`, with the same arguments; of the λs it keeps λ8 and λ9."""

    GENERATORS = ("G_seg", "G_enh")
    DISCRIMINATORS = ("D_obj",)
    FAKES = ("y_hat", "z")
    inpaint = remove = None  # there is no G_inp

    def __init__(self, lambdas=None, **config):
        kept = LAMBDAS | (lambdas or {})
        super().__init__(lambdas={term: kept[term] if term in TERMS else 0.0 for term in LAMBDAS}, **config)
        del self.G_inp, self.D_bg

    def swap(self, x, y, box=None, rng=None):
        """The first swap up to y_hat: m, z and y_hat alone. Arguments as for `SEIGAN.swap`."""
        m = self.mask(x, self.boxes(box, len(x)))
        z = losses.paste(x, y, m)  # m*x + (1-m)*y
        noise = torch.randn((len(x), 1, *x.shape[-2:]), generator=rng, device=x.device, dtype=x.dtype)
        return Swap(m, z, self.G_enh(z, noise))

    def generator_losses(self, x, y, s, look):
        """(1 - D_obj(z))² and (1 - D_obj(y_hat))²: l_coarse and l_enh, unweighted, where their λ is not 0."""
        d_z, d_y_hat = self.D_obj(look(torch.cat([s.z, s.y_hat]))).chunk(2)
        terms = {"coarse": losses.gan_generator(d_z), "enh": losses.gan_generator(d_y_hat)}
        return {k: v for k, v in terms.items() if self.lambdas[k]}

    def discriminator_losses(self, x, y, fakes, look):
        """{"D_obj": l_obj_disc}. Arguments as for `SEIGAN.discriminator_losses`."""
        d_x, d_y_hat, d_z = self.D_obj(look(torch.cat([x, fakes["y_hat"], fakes["z"]]))).chunk(3)
        return {"D_obj": losses.gan_discriminator(d_x, d_y_hat, d_z)}

    def pictures(self, x, y, box=None, seed=0):
        """{"mask", "z", "y_hat"}; see `SEIGAN.pictures`."""
        m = self.segment(x, box)
        z = losses.paste(x, y, m)
        return {"mask": m, "z": z, "y_hat": self.enhance(z, seed)}

    @torch.no_grad()
    def scores(self, pictures):
        """What D_obj says of `pictures`: {name: (N,)}, the mean over each image, 1 = real."""
        return {f"d_obj_{kind}": self.D_obj(pictures[kind]).mean((1, 2, 3)) for kind in ("z", "y_hat")}


Model = NoCycle


def problem(args):
    """As `seigan.problem`, of this method's terms."""
    return seigan.problem(args, TERMS)


def build(args, crops, device, rank=0):
    """The `seigan.Trainer` of a new `NoCycle`; arguments as in running/methods.py."""
    return build_trainer(NoCycle(**model_config(args, crops)), args, device, rank)
