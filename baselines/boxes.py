"""Boxes alone: G_seg taught by the box teacher (crf.py), with no adversary: what SEIGAN's masks must beat.

A method of running/methods.py.
"""
from baselines import supervised
from baselines.supervised import Supervised, problem
from images import UserError

__all__ = ["Model", "build", "problem"]
LIKE = "seigan"  # one command line serves SEIGAN and its baselines
NEEDS = ()


class Boxes(Supervised):
    """G_seg of a `SEIGAN`, with the same arguments."""


Model = Boxes


class Trainer(supervised.Trainer):
    """As `supervised.Trainer`, with the box teacher's masks in place of true ones."""

    def target(self, batch):
        with self.autocast():
            return self.label(batch["x"], batch["box"])


def build(args, crops, device, rank=0):
    """The `Trainer` of a new `Boxes`; arguments as in running/methods.py. UserError where no box is known."""
    if not crops.records:
        raise UserError(f"{crops.root}/crops.json knows no box, and method boxes learns from nothing else: cut them "
                        "with prepare.py")
    return supervised.build(args, crops, device, rank, Boxes, Trainer)
