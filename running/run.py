"""A run: its folder with lock, log and checkpoints, and all that happens beside the steps of a training."""
import errno
import json
import math
import os
import shutil
import sys

import torch
from tqdm import tqdm

from data import save_image
from evaluation.evaluate import validate
from running.checkpoint import save_checkpoint
from running.watch import COLLAPSES, CollapseWatch, Meter, SkippedSteps

RESTARTS = 3  # times that --on_collapse restart begins anew

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
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                return  # a file system without locks: nobody can be kept out
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


# --- the run ---


class Run:
    """Everything beside the steps: what is written, when, by whom, and what ends the run.

    Args:
        args: options of train.py.
        folder: the run's.
        trainer: the `Trainer`; on its own data go `dataset`, an `UnpairedCrops`, and `held_out`, a `Crops` or None.
        last_step: number of the last step.
        ranks: `parallel.Ranks`; all processes call all methods, and the first one writes.
    """

    def __init__(self, args, folder, trainer, dataset, held_out, last_step, ranks):
        self.args, self.folder, self.trainer, self.dataset, self.held_out = args, folder, trainer, dataset, held_out
        self.last_step, self.ranks, self.writes = last_step, ranks, ranks.rank == 0
        self.best_iou, self.validated = -1.0, 0  # the best IoU so far, the step of the last validation
        self.skips = SkippedSteps(args.max_skipped, self.files)
        self.watch = CollapseWatch(args.collapse_steps)
        self.meter = Meter()

    def open(self):
        """Take the folder: no other process may have it. OSError, in one line, if it cannot be had."""
        step = self.trainer.step
        if self.writes:
            os.makedirs(os.path.join(self.folder, "samples"), exist_ok=True)
            self.lock = Lock(self.folder)
            self.log = Log(os.path.join(self.folder, "log.jsonl"), step)
            self.checkpoints = Checkpoints(self.folder, self.args.keep, step)
        self.bar = tqdm(total=self.last_step, initial=step, unit="step", disable=None if self.writes else True)

    def close(self):
        """Let go of the folder."""
        self.bar.close()
        if self.writes:
            self.log.file.close()
            self.lock.release()

    def say(self, text, file=None):
        """Print a line once, whatever the number of processes, and without breaking the bar."""
        if self.writes:
            self.bar.write(text, file=file)

    def due(self, every):
        """Whether something that is done each `every` steps, and after the last, is due now."""
        return self.trainer.step % every == 0 or self.trainer.step == self.last_step

    def files(self, step):
        """The pictures of a step, as text."""
        draws = range((step - 1) * self.args.batch_size, step * self.args.batch_size)
        return ", ".join(os.path.relpath(path, self.args.dataroot) for n in draws for path in self.dataset.files(n))

    def load_state_dict(self, state):
        """Restore what `save` wrote. Processes that it does not know begin with noise and pools of their own."""
        parts = state.get("parts", ())
        own = parts[self.ranks.rank - 1] if 0 < self.ranks.rank <= len(parts) else {}
        if self.ranks.rank > len(parts):
            own = {key: self.trainer.state_dict()[key] for key in ("pools", "rng")}
        self.trainer.load_state_dict(state | own)
        self.best_iou, self.validated = float(state["best_iou"]), int(state["validated"])
        self.skips.load_state_dict(state["skips"])
        self.watch.load_state_dict(state["watch"])

    def save(self, name="latest.pt"):
        """Write a checkpoint. ValueError, and nothing is written, if a weight is not finite."""
        step, model = self.trainer.step, self.trainer.model
        self.skips.check(self.say)
        if not torch.isfinite(sum(p.detach().sum() for p in model.parameters())):
            raise ValueError(f"a weight is not finite at step {step}: lower --lr; the last checkpoint is good")
        state = self.trainer.state_dict()
        parts = self.ranks.gather({key: state[key] for key in ("pools", "rng")})  # what differs between processes
        if self.writes:
            more = {"config": model.config, "options": vars(self.args), "best_iou": self.best_iou,
                    "validated": self.validated, "skips": self.skips.state_dict(), "watch": self.watch.state_dict(),
                    "parts": parts[1:]}
            size = self.checkpoints.save(state | more, name)
            if step == self.last_step and name == "latest.pt":
                self.say(f"{os.path.join(self.folder, name)}: {size / 1e6:.1f} MB")
        self.meter.restart()

    def write(self, action, *args):
        """Whether `action(*args)` could write what it writes; if not, OSError where the run is told to stop."""
        try:
            action(*args)
            return True
        except OSError as error:
            if self.args.on_write_error == "stop":
                raise
            self.say(f"train.py: warning: {error}: going on without it (--on_write_error stop would end the run)",
                     sys.stderr)
            return False

    def log_step(self, terms, rate):
        """A line of the log, the main figures on the bar, and a look at what may go wrong. `rate`: learning rate."""
        step, args = self.trainer.step, self.args
        self.skips.check(self.say)
        names = [k for k in terms if k != "skipped"]
        values = torch.stack([terms[k].float() for k in names]).tolist()  # one wait for the device, not one a term
        figures = {k: v / self.ranks.count for k, v in zip(names, self.ranks.reduce(values), strict=True)}
        speed = self.meter.read(args.batch_size)
        if self.writes:
            self.write(self.log.write, {"step": step, **figures, "lr": rate, "skipped": self.skips.total, **speed})
        self.bar.set_postfix({k: f"{figures[k]:.3f}" for k in ("total", "D_obj", "D_bg", "mask_area") if k in figures})
        kind = self.watch.add(step, figures["mask_fill"], figures["mask_spread"])
        if kind:
            what, cure = COLLAPSES[kind]
            cure = f": {cure}" if args.mode == "seigan" else ""  # the other modes have no λs to balance
            self.collapsed(kind, f"step {step}: {what.format(args.collapse_steps)}{cure}")

    def collapsed(self, kind, message):
        """Do what --on_collapse says."""
        if self.args.on_collapse == "warn":
            self.say(f"train.py: warning: {message}", sys.stderr)
        elif self.args.on_collapse == "stop":
            self.save()
            raise ValueError(f"{message} (all saved)")
        else:
            raise Collapse(kind, message)

    def validate(self, signals):
        """IoU on the held-out masks at source resolution, and best.pt. A signal ends it; a resume makes up for it."""
        step, ranks = self.trainer.step, self.ranks
        sums = validate(self.trainer.averaged, self.held_out, self.trainer.model.box.device, self.args.batch_size,
                        part=slice(ranks.rank, None, ranks.count), stopped=lambda: signals)
        cut, iou, area, n = ranks.reduce([1, 0, 0, 0] if sums is None else [0, *sums])
        self.meter.restart()
        if cut:
            return
        self.validated = step
        if self.writes:
            self.write(self.log.write, {"step": step, "val_iou": iou / n, "val_mask_area": area / n})
        self.say(f"step {step}: IoU {iou / n:.3f}, mask area {area / n:.3f}")
        if iou / n > self.best_iou:
            before, self.best_iou = self.best_iou, iou / n
            failed, = ranks.reduce([not self.write(self.save, "best.pt")], "max")
            if failed:  # in the one process that writes, but all must think of the same best
                self.best_iou = before

    def save_samples(self, crops):
        """samples/STEP.png. Mode supervised has nothing to show there."""
        if self.writes and self.args.mode != "supervised":
            path = os.path.join(self.folder, "samples", f"{self.trainer.step:07d}.png")
            self.write(save_samples, path, self.trainer.averaged, crops, self.trainer.model.box.device)
        self.meter.restart()

    def put_aside(self):
        """Move what the run wrote to a folder collapsed_1, _2, ... within its own, latest.pt last: return its path.

        ValueError after `RESTARTS`.
        """
        tries = sum(name.startswith("collapsed_") for name in os.listdir(self.folder))
        self.ranks.reduce([0])  # all have counted before the first one moves
        if tries == RESTARTS:
            raise ValueError(f"the masks have collapsed in {RESTARTS + 1} runs: this takes other λs than a restart "
                             "tries; see docs/training.md")
        aside = os.path.join(self.folder, f"collapsed_{tries + 1}")
        if self.writes:
            self.log.file.close()
            os.makedirs(aside)
            for name in sorted(os.listdir(self.folder), key=lambda name: name == "latest.pt"):
                if name != ".lock" and not name.startswith("collapsed_"):
                    shutil.move(os.path.join(self.folder, name), aside)
        return aside


class Collapse(Exception):  # noqa: N818 - it ends no program
    """Raised to begin anew: kind of COLLAPSES, message."""


@torch.no_grad()
def save_samples(path, model, crops, device, rows=8):
    """A grid of the first crops, always the same: columns x, m, z, ŷ, x̂, y, m̂, x̂̂, ŷ̂ (as far as the mode has them)."""
    from torchvision.utils import make_grid  # here: it takes as long to import as torch

    stems, others = crops.stems[:rows], crops.background_stems[:rows]
    n = min(len(stems), len(others))
    x = torch.stack([crops.object(s) for s in stems[:n]]).to(device)
    y = torch.stack([crops.background(s) for s in others[:n]]).to(device)
    box = torch.stack([crops.box(s) for s in stems[:n]]).to(device)
    s = (model.swap if model.mode == "seigan" else model.swap_once)(x, y, box, torch.Generator(device).manual_seed(0))
    columns = [x, s.m, s.z, s.y_hat, s.x_hat, y, s.m_hat, s.x_hat2, s.y_hat2]
    columns = [2 * c.expand(-1, 3, -1, -1) - 1 if c.shape[1] == 1 else c for c in columns if c is not None]
    save_image(path, make_grid(torch.stack(columns, 1).flatten(0, 1), nrow=len(columns), padding=1, pad_value=1))
