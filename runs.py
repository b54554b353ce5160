"""A run's folder and what watches over it: lock, log, checkpoints, signals, steps not applied, collapsed masks.

Nothing here knows options or networks: train.py brings them together.
"""
import json
import math
import os
import shutil
import signal
import time
from contextlib import contextmanager

import torch

from seigan import save_checkpoint

# --- the folder ---


class Lock:
    """Keeps a second run out of a folder while the first lives.

    The system lifts it when the process ends, however it ends; processes that it started do not hold it.

    Raises:
        BlockingIOError: in one line, if another process holds it.
    """

    def __init__(self, folder):
        path = os.path.join(folder, ".lock")
        self.file = open(path, "a+", encoding="utf-8")
        try:
            _lock(self.file)
        except OSError as error:
            self.file.seek(0)
            holder = self.file.read().strip() or "another process"
            self.file.close()
            raise BlockingIOError(f"{folder} is in use by {holder} ({error.strerror}): wait until it ends, or give "
                                  "another --name") from error
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {os.uname().nodename if hasattr(os, 'uname') else 'this machine'}")
        self.file.flush()

    def release(self):
        self.file.close()


def _lock(file):
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(2**30)  # a byte far behind the text, which stays readable
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process, not of its children, unlike flock


class Log:
    """log.jsonl, one line a record. A resumed run drops what lies after its checkpoint.

    What cannot be written, on a full disk say, waits for the next write.
    """

    def __init__(self, path, step):
        kept = []
        if step and os.path.exists(path):
            with open(path, encoding="utf-8", errors="replace") as f:
                kept = [line for line in f if _step(line) is not None and _step(line) <= step]
        with open(path + ".tmp", "w", encoding="utf-8") as f:
            f.writelines(kept)
        os.replace(path + ".tmp", path)
        self.file = open(path, "ab", buffering=0)
        self.waiting = b""

    def write(self, record):
        """Append a dict of numbers and tensors of one element, to 6 digits; what is not finite is left out."""
        values = {k: v if k == "step" else float(f"{float(v):.6g}") for k, v in record.items()}
        line = json.dumps({k: v for k, v in values.items() if math.isfinite(v)}) + "\n"
        self.waiting += line.encode()
        while self.waiting:  # a part may be written before the disk is full
            self.waiting = self.waiting[self.file.write(self.waiting) :]


def _step(line):
    """The step of a line of the log; None if it was cut short."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else None
    except (ValueError, LookupError, TypeError):
        return None


class Checkpoints:
    """latest.pt, and the `keep` that were it before as step_0001500.pt, in a run's folder.

    Args:
        step: that of the latest.pt at hand, 0 without one.
    """

    def __init__(self, folder, keep, step=0):
        self.folder, self.keep, self.step = folder, keep, step

    def save(self, state, name="latest.pt"):
        """Write `state`; OSError, in one line, if that fails, and then the one before it is still there."""
        path = os.path.join(self.folder, name)
        if name == "latest.pt" and self.keep and self.step and os.path.exists(path):
            self._set_aside(path)
        save_checkpoint(path, state)
        if name == "latest.pt":
            self.step = state["step"]
            for old in previous(self.folder)[self.keep :]:
                os.remove(old)
        return os.path.getsize(path)

    def _set_aside(self, path):
        """A second name for the file that is about to be replaced: no moment is without a latest.pt."""
        aside = os.path.join(self.folder, f"step_{self.step:07d}.pt")
        if os.path.exists(aside):
            os.remove(aside)
        try:
            os.link(path, aside)
        except OSError:  # a file system without links
            shutil.copy2(path, aside)


def previous(folder):
    """The files step_*.pt of a run, last written first."""
    names = [n for n in os.listdir(folder) if n.startswith("step_") and n.endswith(".pt")]
    return sorted((os.path.join(folder, n) for n in names), key=lambda p: (os.stat(p).st_mtime_ns, p), reverse=True)


# --- signals ---


@contextmanager
def catch_signals():
    """Give a list that SIGINT or SIGTERM appends its number to; a second signal ends the process at once."""
    caught = []

    def handle(number, _frame):
        caught.append(number)
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_signals(_worker):
    """Let Ctrl-C, which a terminal sends to every process, end the loading processes with the main one alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# --- what can go wrong with the numbers ---


class SkippedSteps:
    """Counts the steps that `Trainer.train_step` did not apply, because a loss or a gradient was not finite.

    Args:
        limit: so many in a row end the run.
        files: step -> text that names the step's files.
    """

    def __init__(self, limit, files):
        self.limit, self.files, self.total, self.in_a_row, self.waiting = limit, files, 0, 0, []

    def add(self, step, terms):
        """Keep a step's terms, on their device: reading each at once would make the device wait."""
        self.waiting.append((step, terms))

    def check(self, warn):
        """Read what was added; `warn` is called with a line for each step skipped. ValueError at the limit."""
        skipped = torch.stack([terms["skipped"] for _, terms in self.waiting]).tolist() if self.waiting else []
        for (step, terms), bad in zip(self.waiting, skipped, strict=True):
            self.in_a_row = self.in_a_row + 1 if bad else 0
            if bad:
                self.total += 1
                names = [k for k, v in terms.items() if not math.isfinite(v)] or ["a gradient"]
                warn(f"step {step} was not applied, {self.total} so far: {', '.join(names)} not finite on "
                     f"{self.files(step)}")
            if self.in_a_row == self.limit:
                raise ValueError(f"{self.limit} steps in a row were not finite, the last one {step}: lower --lr or the "
                                 "λs of the terms named above; the last checkpoint is good")
        self.waiting = []

    def state_dict(self):
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state):
        self.total, self.in_a_row = state["total"], state["in_a_row"]


COLLAPSES = {
    "empty": ("the masks have been empty for {} steps: raise --lambda_coarse and --lambda_enh, or lower "
              "--lambda_bg_mae and --lambda_id_bg"),
    "full": ("the masks have filled all that they may for {} steps: lower --lambda_coarse and --lambda_enh, or raise "
             "--lambda_bg_mae and --lambda_id_bg; crops.json with the objects' boxes and --box_prior keep them in"),
    "constant": ("the masks have been the same on all pictures for {} steps: the data may be too few or too alike, "
                 "else lower --lr_seg, and leave the discriminators' augmentation on"),
}


class CollapseWatch:
    """Tells when masks stay empty, full or the same on all pictures for `steps` steps.

    A mask is empty when less than a hundredth of the pixels that it may take are at ½ or more, and full from .97
    on; masks are the same when they differ by less than .02 a pixel between pictures.
    """

    def __init__(self, steps):
        self.steps, self.kind, self.since, self.told = steps, None, 0, False

    def add(self, step, fill, spread):
        """The collapse seen, one of COLLAPSES, when it is complete; None otherwise, and while it lasts.

        fill: share of the pixels a mask may take that are at ½ or more; spread: mean standard deviation of a pixel
        of the mask over a batch, NaN for a batch of one.
        """
        kind = "empty" if fill < 0.01 else "full" if fill > 0.97 else "constant" if spread < 0.02 else None
        if kind != self.kind:
            self.kind, self.since, self.told = kind, step, False
        if kind is None or self.told or step - self.since < self.steps:
            return None
        self.told = True
        return kind

    def state_dict(self):
        return {"kind": self.kind, "since": self.since, "told": self.told}

    def load_state_dict(self, state):
        self.kind, self.since, self.told = state["kind"], state["since"], state["told"]


# --- speed ---


class Meter:
    """Images a second, and the share of the time that is spent waiting for data."""

    def __init__(self):
        self.restart()

    def restart(self):
        """Begin to measure anew, after a pause for something else."""
        self.begun, self.waited, self.steps = time.perf_counter(), 0.0, 0

    def wait(self, batches):
        """Pass `batches` on, and time how long each takes to come."""
        batches = iter(batches)
        while True:
            begun = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - begun
            if batch is None:
                return
            self.steps += 1
            yield batch

    def read(self, batch_size):
        """The figures since the last reading, or restart."""
        elapsed = max(time.perf_counter() - self.begun, 1e-9)
        figures = {"images_per_s": self.steps * batch_size / elapsed, "data_wait": self.waited / elapsed}
        self.restart()
        return figures
