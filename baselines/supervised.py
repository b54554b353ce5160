"""Supervised (§4.2): G_seg alone, trained on true masks: what SEIGAN's masks are measured against.

A method of running/methods.py.
"""
import losses
import seigan
from seigan import SEIGAN, model_config

LIKE = "seigan"  # one command line serves SEIGAN and its baselines
NEEDS = ("masks",)


class Supervised(SEIGAN):
    """G_seg of a `SEIGAN`, with the same arguments."""

    GENERATORS = ("G_seg",)
    DISCRIMINATORS = FAKES = ()
    enhance = inpaint = paste = remove = scores = None  # there is no other network

    def __init__(self, lambdas=None, **config):
        super().__init__(lambdas=dict.fromkeys(("bg_texture", "bg_perc", "obj_perc"), 0.0), **config)
        del self.G_enh, self.G_inp, self.D_obj, self.D_bg

    def pictures(self, x, y=None, box=None, seed=0):
        """{"mask": m} and, where there is a y, "z": m*x + (1-m)*y; see `SEIGAN.pictures`."""
        m = self.segment(x, box)
        return {"mask": m} if y is None else {"mask": m, "z": losses.paste(x, y, m)}


Model = Supervised


class Trainer(seigan.Trainer):
    """Adam on the binary cross-entropy of masks. Arguments as for `seigan.Trainer`, and

    views: whether G_seg sees `losses.views` of the images, as SEIGAN's does where the box teacher teaches it.
    """

    def __init__(self, model, views=True, **others):
        super().__init__(model, **others)
        self.views = views

    def train_step(self, batch, lr_factor=1.0):
        """One update. batch: "x" (N, 3, H, W) in [-1, 1], "box" (N, 4), "mask" as of `data.load_mask`, 1 = object;
        "y" where there are backgrounds.

        Returns {name: detached scalar tensor}: "bce", the figures of `losses.mask_figures`, "skipped".
        """
        for group in self.opt_G.param_groups:
            group["lr"] = group["initial_lr"] * lr_factor
        target = self.target(batch)
        with self.autocast():
            # Deviation: other colours, other grounds
            x = losses.views(batch["x"], batch.get("y"), target, self.rng) if self.views else batch["x"]
            m = self.model.mask(x, batch["box"])
        bce = losses.cross_entropy(m, target)
        return self.finish({"bce": bce}, losses.update(self.opt_G, bce, self.share), m, batch["box"])

    def target(self, batch):
        """What G_seg(x) is to be."""
        return batch["mask"]


def problem(args):
    """As `seigan.problem`, with no terms."""
    return seigan.problem(args, ())


def build(args, crops, device, rank=0, model=Supervised, trainer=Trainer):
    """The trainer of a new model, of the classes given; arguments as in running/methods.py."""
    return trainer(model(**model_config(args, crops)).to(device), args.lambda_teach > 0, lr=args.lr, lr_seg=args.lr_seg,
                   beta1=args.beta1, ema=args.ema, seed=args.seed + 1_000_000 * rank, amp=args.amp)
