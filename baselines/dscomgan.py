"""DS-ComGAN (Ding et al., NeurIPS 2022): ComGAN whose layers have codes of their own.

A method of running/methods.py. What it adds to the first stage of baselines/comgan.py (§3.2):

- One-hot codes f and b, independent: xf = F(phi, f), xb = B(phi, b), m = M(phi), xc = m*xf + (1-m)*xb (eq. 6). Networks
  D_f and D_b tell the codes from the layers, whole, and learn together with G (eq. 8): layers that are equal cannot
  carry two codes.
- phi holds the last three maps of Phi (eq. 5), and the last of them is made an image of its own, xz, that D_z judges
  beside xc (eq. 7), so that features show whole images.
- No entropy of the masks, unless --lambda_binary asks for it.
"""
import torch
import torch.nn.functional as F

from baselines import comgan
from baselines.comgan import NEEDS, ComGAN, problem
from baselines.comgan_networks import CodedGenerator, Discriminator

__all__ = ["NEEDS", "Model", "build", "problem"]
LIKE = "comgan"
OPTIONS = {
    "lambda_binary": (0.0, 0.0, "β, of the generated masks' entropy; it rises over a third of the first stage"),
    "n_codes": (10, 2, "values of the codes f and b"),
    "ndf_info": (16, 1, "channels of the first layers of D_f and D_b"),
    "lambda_info": (1.0, 0.0, "of D_f's and D_b's cross-entropies"),
    "tied_codes": (False, None, "b is f, as in the authors' code"),
}
PAPER = {"head_width": 128, "head_blocks": 2, "mask_blocks": 1, "n_codes": 200, "ndf_info": 64}
SIZES = (*comgan.SIZES, "n_codes", "ndf_info", "tied_codes")


class DSComGAN(ComGAN):
    """As `ComGAN`, with D_f, D_b. Args (as config): its own, and n_codes, ndf_info, tied_codes: see `OPTIONS`."""

    NETWORKS = (*ComGAN.NETWORKS, "D_f", "D_b")
    LEARNERS = ("G", "D_f", "D_b")

    def __init__(self, **config):
        super().__init__(**config)
        self.D_f, self.D_b = (Discriminator(config["size"], config["ndf_info"], out=config["n_codes"], posterior=True)
                              for _ in range(2))

    @staticmethod
    def generator(config):
        return CodedGenerator(*(config[k] for k in ("size", "ngf", "nz", "head_width", "head_blocks", "mask_blocks",
                                                    "n_codes", "authors_nets")))

    def draw(self, n, rng):
        """The arguments of n images for G: z, and one-hot f and b, uniform and independent."""
        z, = super().draw(n, rng)
        f, b = F.one_hot(torch.randint(self.config["n_codes"], (2, n), generator=rng, device=z.device),
                         self.config["n_codes"]).to(z.dtype)
        return z, f, f if self.config["tied_codes"] else b


Model = DSComGAN


class Trainer(comgan.Trainer):
    """As `comgan.Trainer`; weights has "info" too."""

    def __init__(self, model, weights, *args, **others):
        weights = weights | {"info_f": weights["info"], "info_b": weights["info"]}
        super().__init__(model, weights, *args, **others)

    def information(self, made, codes):
        """-log D_f(f | xf) and -log D_b(b | xb) (eq. 8), each at least ln(n_codes) where nothing is told."""
        return {"info_f": F.cross_entropy(self.model.D_f(made.xf), codes[1]),
                "info_b": F.cross_entropy(self.model.D_b(made.xb), codes[2])}


def build(args, crops, device, rank=0):
    """The trainer of a new `DSComGAN`; arguments as in running/methods.py."""
    return comgan.build(args, crops, device, rank, DSComGAN, Trainer, SIZES, ("binary", "cons", "info"))
