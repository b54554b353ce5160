"""Checkpoint files: written whole or not at all, read without running code, and turned back into models."""
import os
import zipfile

import torch

from images import UserError, written_whole
from running import methods

FORMAT = 2


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
        raise FileNotFoundError(f"no checkpoint at {path}: train first, or check --name and --checkpoints_dir")
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums that it writes
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("a checksum is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on foreign bytes torch raises anything from KeyError to UnpicklingError
        raise UserError(f"{path} is damaged or no checkpoint ({type(error).__name__}): take another one, "
                        "such as best.pt, or train anew") from error
    needed = {"format", "method", "step", "config", "networks", "averaged"}
    if not isinstance(state, dict) or not needed <= state.keys() or state["format"] != FORMAT \
            or state["method"] not in methods.METHODS:
        raise UserError(f"{path} is not a checkpoint of format {FORMAT} of this code")
    return state


def build_model(state, path, device="cpu"):
    """The model of a checkpoint that was read from `path`, ready for inference: averaged networks where it has them,
    and as `crf_bias` what its run chose.

    Raises UserError, in one line, if it does not fit this code.
    """
    try:
        model = methods.load(state["method"]).Model.from_state(state).to(device)
        model.crf_bias = float(state.get("options", {}).get("crf_bias") or 0)  # None where no box was known
        return model
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} holds no model that this code can build ({type(error).__name__}: {reason}): "
                        "take another checkpoint, or the code that wrote it") from error


def load_model(path, device="cpu"):
    """`build_model` of the checkpoint at `path`."""
    return build_model(load_checkpoint(path), path, device)
