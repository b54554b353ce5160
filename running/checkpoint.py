"""Checkpoint files: written whole or not at all, read without running code. This file needs torch only."""
import os
import zipfile

import torch

FORMAT = 1


def save_checkpoint(path, state):
    """Write a checkpoint so that `path` holds either the old one or the whole new one, never a part.

    Raises OSError, in one line, if it cannot be written; the old one is then as it was.
    """
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as f:
            torch.save(state | {"format": FORMAT}, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        _sync_folder(os.path.dirname(path) or ".")
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        if os.path.isfile(temporary):
            os.remove(temporary)
        raise OSError(f"cannot write {path} ({str(error).splitlines()[0]}): the one before it is kept") from error


def _sync_folder(folder):
    """Make a rename in `folder` outlast a power cut, where the system can (Windows opens no folders)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load_checkpoint(path):
    """Read a checkpoint onto the CPU; only tensors and plain containers, never code.

    Raises FileNotFoundError or ValueError, in one line, if there is none or it is not one of ours.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no checkpoint at {path}: train first, or check --name and --checkpoints_dir")
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums that it writes
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("a checksum is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on foreign bytes torch raises anything from KeyError to UnpicklingError
        raise ValueError(f"{path} is damaged or no checkpoint ({type(error).__name__}): take another one, "
                         "such as best.pt, or train anew") from error
    needed = {"format", "step", "config", "networks", "averaged"}
    if not isinstance(state, dict) or not needed <= state.keys() or state["format"] != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of format {FORMAT} of this code")
    return state
