"""Checkpoint files: written whole or not at all, read without running code, and turned back into models."""
import os
from contextlib import contextmanager

import torch

from images import UserError, check_archive, written_whole
from running import methods

FORMAT = 2
# the most that a file may ask for: plain numbers, a model's config or a run's options, that say how large networks are
MOST = {"size": 8192, "ngf": 4096, "ndf": 4096, "n_layers_D": 12, "n_layers_D_bg": 12, "seg_blocks": 200,
        "unet_downs": 12, "grow_hole": 512, "regions": 64, "nz": 4096, "nf": 4096, "ch_G": 4096, "ch_D": 4096,
        "ch_delta": 4096, "head_width": 4096, "head_blocks": 200, "mask_blocks": 200, "seg_ngf": 4096, "n_codes": 4096,
        "ndf_info": 4096, "shift": 4096, "fake_shift": 4096, "channels": 4096, "channels_full": 4096, "z_dim": 4096,
        "mapping_layers": 64}


def save_checkpoint(path, state):
    """Write a checkpoint so that `path` holds either the old one or the whole new one, never a part.

    Raises OSError, in one line, if it cannot be written; the old one is then as it was.
    """
    try:
        with written_whole(path, sync=True) as file:
            torch.save(state | {"format": FORMAT}, file)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        raise OSError(f"cannot write {path} ({str(error).splitlines()[0]}): the one before it is kept") from error


def load_checkpoint(path):
    """Read a checkpoint onto the CPU; only tensors and plain containers, never code.

    Raises FileNotFoundError or UserError, in one line, if there is none or it is not one of ours.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no checkpoint at {path}: train first, or check --name and --checkpoints_dir, or "
                                "--weights")
    try:
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on foreign bytes torch raises anything from KeyError to UnpicklingError
        raise UserError(f"{path} is damaged or no checkpoint ({type(error).__name__}): take another one, "
                        "such as best.pt, or train anew") from error
    needed = {"format", "method", "step", "config", "networks", "averaged"}
    if not isinstance(state, dict) or not needed <= state.keys() or state["format"] != FORMAT \
            or state["method"] not in [*methods.METHODS] or type(state["step"]) is not int or state["step"] < 0:
        raise UserError(f"{path} is not a checkpoint of format {FORMAT} of this code")
    return state


def build_model(state, path, device="cpu"):
    """The model of a checkpoint that was read from `path`, ready for inference: averaged networks where it has them,
    and as `crf_bias` what its run chose.

    Raises UserError, in one line, if it does not fit this code.
    """
    check_model(state, path)
    with _one_line(path):
        model = methods.load(state["method"]).Model.from_state(state).to(device)
        model.crf_bias = float(state.get("options", {}).get("crf_bias") or 0)  # None where no box was known
    if not getattr(model, "ready", True):
        raise UserError(f"{path}: step {state['step']} is of the first stage, in which nothing segments yet: train on "
                        "with --resume")
    return model


def check_model(state, path):
    """UserError where the model of a checkpoint would be larger than the weights at hand: before memory is taken."""
    with _one_line(path):
        check_sizes(state["config"])
        config = {key: value for key, value in state["config"].items() if key != "lambdas"}
        with torch.device("meta"):
            needed = sum(p.numel() for p in methods.load(state["method"]).Model(**config).parameters())
        tensors = [t for network in (state["networks"] | state["averaged"]).values() for t in network.values()]
        stored = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // t.element_size() for t in tensors}
        if needed > sum(stored.values()):
            raise ValueError(f"its config asks for {needed} weights, it holds {sum(stored.values())}")


def check_sizes(values):
    """ValueError where a dict's sizes of networks are no numbers up to `MOST`."""
    for name, most in MOST.items():
        value = values.get(name, 0)
        if type(value) is not int or not 0 <= value <= most:
            raise ValueError(f"{name} must be a whole number from 0 to {most}, got {str(value)[:50]}")


@contextmanager
def _one_line(path):
    """Whatever a checkpoint's contents raise when a model is made of them, as a UserError of one line."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} holds no model that this code can build ({type(error).__name__}: {reason}): "
                        "take another checkpoint, or the code that wrote it") from error


def shared(model, state):
    """What to share of a checkpoint and the model that `build_model` made of it: the generators as tests use them, in
    float16, which loading casts back, and the config. UserError where a weight is beyond float16's range."""
    weights = {name: {key: tensor.half().cpu() for key, tensor in network.items()}
               for name, network in model.state(model.GENERATORS).items()}
    if not all(tensor.isfinite().all() for network in weights.values() for tensor in network.values()):
        raise UserError("a weight is beyond the range of float16: this model cannot be shared")
    return {"method": state["method"], "step": state["step"], "config": state["config"] | {"ndf": 0}, "networks": {},
            "averaged": weights, "options": {"crf_bias": model.crf_bias}}


def load_model(path, device="cpu"):
    """`build_model` of the checkpoint at `path`."""
    return build_model(load_checkpoint(path), path, device)
