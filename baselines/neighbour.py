"""What the neighbours share: methods that learn masks from images of objects alone, by composing images.

Masks that nothing supervises come as regions of which none is named: `Polarity` says which is the background, once for
all images. `Neighbour` is what checkpoints want of a model, `Trainer` what they want of its trainer.
"""
import copy

import torch
from torch import nn

import losses
import seigan


def frame_excess(masks):
    """How much more of the frame, the outermost sixteenth of each side, than of the inside each of masks (N, K, H, W)
    in [0, 1] covers: (N, K) in [-1, 1]. Crops show objects whole, so an object's is below 0, a background's above.
    """
    edge = max(1, masks.shape[-1] // 16)
    inside = torch.zeros_like(masks[0, 0])
    inside[edge:-edge, edge:-edge] = 1
    frame = 1 - inside
    return (masks * (frame / frame.sum() - inside / inside.sum())).sum((2, 3))


class Polarity(nn.Module):
    """Which region is the background: one choice for all images, from training images, without a label.

    The background is what has most `frame_excess`. The running mean goes back about a hundred steps.
    """

    def __init__(self, regions=2):
        super().__init__()
        self.register_buffer("excess", torch.zeros(regions))  # of the frame over the inside, each region's

    @torch.no_grad()
    def update(self, masks):
        """Count the masks (N, K, H, W) in [0, 1] of training images in; over the K regions they sum to 1."""
        self.excess.lerp_(frame_excess(masks.float()).mean(0), 0.01)

    def forward(self, masks):
        """Masks (N, K, H, W) of the regions -> the object's (N, 1, H, W), 1 = object: all but the background."""
        return 1 - masks.index_select(1, self.excess.argmax()[None])

    @property
    def background(self):
        """The background's number."""
        return int(self.excess.argmax())


class Neighbour(nn.Module):
    """A model that needs no boxes; the members that running/methods.py wants of a model and that do not differ.

    A subclass sets its networks as attributes and their names as NETWORKS, those that tests use as AVERAGED; it has
    `regions(x)`, the masks (N, K, H, W) of x before one is chosen, and `pictures`.

    Args:
        config: plain values, what the class is called with; "size", "box" and "crop_rule" as of `seigan.SEIGAN`.
            "first_steps", where there is a first stage in which nothing segments yet: its number of steps.
    """

    NETWORKS = ()
    AVERAGED = ()

    def __init__(self, config, regions=2):
        super().__init__()
        self.config, self.size, self.step = config, config["size"], 0
        self.register_buffer("box", torch.tensor(config["box"], dtype=torch.float32), persistent=False)
        self.polarity = Polarity(regions)

    @property
    def ready(self):
        """Whether the model can segment yet."""
        return self.step > self.config.get("first_steps", -1)

    @classmethod
    def from_state(cls, state):
        """The model of a checkpoint, ready for inference. Raises what torch and dicts raise where it does not fit."""
        model = cls(**state["config"])
        model.load_networks(state["networks"] | state["averaged"])
        model.step = state["step"]
        return model.eval().requires_grad_(False)

    def networks(self, names=None):
        """{name: network} of the networks so named, by default all."""
        return {name: self.get_submodule(name) for name in ((*self.NETWORKS, "polarity") if names is None else names)}

    state, load_networks = seigan.SEIGAN.state, seigan.SEIGAN.load_networks  # which ask for nothing but `networks`

    @torch.no_grad()
    def segment(self, x, box=None):
        """The object's masks: x (N, 3, H, W) in [-1, 1] -> (N, 1, H, W) in [0, 1], 1 = object. No box is used."""
        return self.polarity(self.regions(x))


class Trainer:
    """What trainers of neighbours share: averaged networks, one random stream, what checkpoints hold.

    Args:
        model: a `Neighbour`, on the device to train on.
        optimizers: {name: optimiser}, their names as in checkpoints.
        seed: of noise, augmentation and codes.
        ema, amp: as of `seigan.Trainer`; diffaug: whether discriminators see images through `losses.augment`.
    """

    teacher = None  # there is none without boxes

    def __init__(self, model, optimizers, seed=0, ema=0.2, amp=False, diffaug=True):
        self.model, self.optimizers, self.ema, self.amp, self.diffaug = model, optimizers, ema, amp, diffaug
        self.step, self.share = 0, lambda parameters: None
        self.rng = torch.Generator(device=model.box.device).manual_seed(seed)
        self.averaged = copy.deepcopy(model).requires_grad_(False) if ema else model

    def set_rates(self, lr_factor):
        for group in (group for optimizer in self.optimizers.values() for group in optimizer.param_groups):
            group["lr"] = group["initial_lr"] * lr_factor

    def finish(self, log, applied, m):
        """Count the step, move the averaged weights on. Returns what `train_step` returns: `log` {name: scalar tensor},
        the figures of the masks m (N, 1, H, W) and "skipped"."""
        self.step += 1
        if applied and self.ema:
            self.move_average()
        self.model.step = self.averaged.step = self.step
        log = log | losses.mask_figures(m.detach().float(), torch.ones_like(m, dtype=torch.float32))
        return {k: v.detach().float() for k, v in log.items()} | {"skipped": m.new_tensor(float(not applied)).float()}

    def move_average(self):
        self.follow(self.model.AVERAGED, self.step, self.ema)

    def follow(self, names, step, ema):
        """Weights as of `losses.average`; buffers as they are, such as the vectors of spectral norms."""
        for name, network in self.model.networks(names).items():
            averaged = self.averaged.get_submodule(name)
            losses.average(averaged, network, step, ema)
            for a, b in zip(averaged.buffers(), network.buffers(), strict=True):
                a.copy_(b)

    autocast, look = seigan.Trainer.autocast, seigan.Trainer.look

    def state_dict(self):
        """Everything that training needs to go on, as one dict of tensors and plain containers."""
        return {"step": self.step, "networks": self.model.state(), "rng": self.rng.get_state(),
                "averaged": self.averaged.state(self.model.AVERAGED) if self.ema else {},
                **{name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}}

    def load_state_dict(self, state):
        """Restore what `state_dict` gave, onto the model's device."""
        self.step = state["step"]
        self.model.load_networks(state["networks"])
        if self.ema:
            self.averaged.load_networks(state["averaged"], self.model.AVERAGED)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])
        losses.restore(self.rng, state["rng"], self.step)
        self.model.step = self.averaged.step = self.step


def common_config(args, crops):
    """The parts of a config that options and training crops give to every neighbour."""
    return {"size": args.size, "crop_rule": crops.rules[0] if crops.rules else None,
            "box": torch.stack([crops.box(stem) for stem in crops.stems]).mean(0).tolist()}


def steps(args, crops, epochs):
    """The number of steps in so many epochs."""
    return epochs * max(1, len(crops.stems) // args.batch_size)
