"""Supervised (§4.2): G_seg alone, trained on true masks: what SEIGAN's masks are measured against.

A method of running/methods.py.
"""
import copy

import torch

import losses
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


class Trainer:
    """Adam on the binary cross-entropy of masks, with an averaged G_seg. Arguments as for `seigan.Trainer`, and

    views: whether G_seg sees `losses.views` of the images, as SEIGAN's does where the box teacher teaches it.
    """

    def __init__(self, model, lr, beta1=0.5, ema=0.2, seed=0, amp=False, share=lambda parameters: None, views=True):
        self.views = views
        self.model, self.ema, self.amp, self.share, self.step = model, ema, amp, share, 0
        self.opt_G = losses.adam({model.G_seg: lr}, beta1)
        self.averaged = copy.deepcopy(model).requires_grad_(False) if ema else model
        self.rng = torch.Generator(device=model.box.device).manual_seed(seed)

    def train_step(self, batch, lr_factor=1.0):
        """One update. batch: "x" (N, 3, H, W) in [-1, 1], "box" (N, 4), "mask" as of `data.load_mask`, 1 = object;
        "y" where there are backgrounds.

        Returns {name: detached scalar tensor}: "bce", the figures of `losses.mask_figures`, "skipped".
        """
        for group in self.opt_G.param_groups:
            group["lr"] = group["initial_lr"] * lr_factor
        model = self.model
        target = self.target(batch)
        with self.autocast():
            # Deviation: other colours, other grounds
            x = losses.views(batch["x"], batch.get("y"), target, self.rng) if self.views else batch["x"]
            m = model.mask(x, batch["box"])
        bce = losses.cross_entropy(m, target)
        applied = losses.update(self.opt_G, bce, self.share)
        self.step += 1
        if applied and self.ema:
            losses.average(self.averaged.G_seg, model.G_seg, self.step, self.ema)
        log = {"bce": bce} | losses.mask_figures(m, model.allowed(batch["box"], m))
        return {k: v.detach() for k, v in log.items()} | {"skipped": bce.new_tensor(float(not applied))}

    def target(self, batch):
        """What G_seg(x) is to be."""
        return batch["mask"]

    def autocast(self):
        return torch.autocast(self.model.box.device.type, torch.bfloat16, enabled=self.amp)

    def state_dict(self):
        """Everything that training needs to go on, as one dict of tensors and plain containers."""
        return {"step": self.step, "networks": self.model.state(), "opt_G": self.opt_G.state_dict(),
                "averaged": self.averaged.state() if self.ema else {}, "rng": self.rng.get_state()}

    def load_state_dict(self, state):
        """Restore what `state_dict` gave, onto the model's device."""
        self.step = state["step"]
        self.model.load_networks(state["networks"])
        if self.ema:
            self.averaged.load_networks(state["averaged"])
        self.opt_G.load_state_dict(state["opt_G"])
        losses.restore(self.rng, state["rng"], self.step)


def problem(args):
    """Nothing that this method reads can contradict itself."""


def build(args, crops, device, rank=0, model=Supervised, trainer=Trainer):
    """The trainer of a new model, of the classes given; arguments as in running/methods.py."""
    return trainer(model(**model_config(args, crops)).to(device), args.lr * args.lr_seg, args.beta1, args.ema,
                   args.seed + 1_000_000 * rank, args.amp, views=args.lambda_teach > 0)
