"""A run: all that happens beside the steps of a training."""
import json
import math
import os
import shlex
import sys
import time

import torch
from tqdm import tqdm

from images import UserError, written_whole
from running.folder import Checkpoints, Lock, Log, read_json, refuse_link
from running.watch import COLLAPSES, CollapseWatch, Meter, SkippedSteps

LINE_EVERY = 30  # seconds between the lines that stand for the bar where there is no terminal


class Run:
    """What is written, when and by whom, and what ends the run; a context that holds the run's folder.

    Args:
        args: options of train.py.
        trainer: see running/methods.py.
        last_step: number of the last step.
        ranks: `parallel.Ranks`; all processes call all methods, and the first one writes.
        files: step -> text that names the files of its batch.
        data: what tells the training crops from others, kept in checkpoints.
    """

    def __init__(self, args, trainer, last_step, ranks, files, data=""):
        self.args, self.trainer, self.last_step, self.ranks, self.data = args, trainer, last_step, ranks, data
        self.folder, self.writes = os.path.join(args.checkpoints_dir, args.name), ranks.rank == 0
        self.limit = math.inf if args.max_minutes is None else time.monotonic() + 60 * args.max_minutes
        self.best_iou, self.validated_at, self.told = -1.0, 0, 0.0
        self.skips, self.watch, self.meter = SkippedSteps(files), CollapseWatch(), Meter()
        self.board = None

    def __enter__(self):
        """Take the folder: no other process may have it. OSError, in one line, if it cannot be had."""
        step = self.trainer.step
        if self.writes:
            samples = os.path.join(self.folder, "samples")
            refuse_link(samples)
            os.makedirs(samples, exist_ok=True)
            self.lock = Lock(self.folder)
            self.log = Log(os.path.join(self.folder, "log.jsonl"), step)
            self.checkpoints = Checkpoints(self.folder, self.args.keep, step)
            if self.args.tensorboard:
                from torch.utils.tensorboard import SummaryWriter  # a package that not everybody has

                self.board = SummaryWriter(self.folder, purge_step=step + 1)
        self.bar = tqdm(total=self.last_step, initial=step, unit="step", disable=None if self.writes else True)
        return self

    def __exit__(self, *_):
        self.bar.close()
        if self.board:
            self.board.close()
        if self.writes:
            self.log.file.close()
            self.lock.release()

    # --- what is said and when ---

    def say(self, text, file=None):
        """Print a line once, whatever the number of processes, and without breaking the bar."""
        if self.writes:
            self.bar.write(text, file=file)

    def due(self, every):
        """Whether something that is done each `every` steps, and after the last, is due now."""
        return self.trainer.step % every == 0 or self.trainer.step == self.last_step

    def say_options(self, parser, origin):
        """Print the options that differ from the defaults, and keep all of them in config.json, beside their origin."""
        options, defaults = vars(self.args), {k: parser.get_default(k) for k in vars(self.args)}
        self.say("options: " + ", ".join(f"{k} {v}" + f" [{defaults[k]}]" * (defaults[k] is not None)
                                         for k, v in sorted(options.items()) if v != defaults[k]))
        if not self.writes:
            return
        path, commands = os.path.join(self.folder, "config.json"), []
        if self.trainer.step and os.path.exists(path):
            commands = read_json(path, "remove it, and --resume goes on", commands=list)["commands"]
        config = {"options": options, "commands": [*commands, shlex.join(sys.argv)], **origin}
        with written_whole(path) as f:
            f.write(json.dumps(config, indent=1).encode())

    def check_applied(self):
        """UserError where not one step of the whole run was applied: its networks are as they began."""
        if self.skips.total >= self.last_step:
            raise UserError(f"none of the {self.last_step} steps was applied, as their losses or gradients were not "
                            "finite: lower --lr or the λs, under another --name")

    # --- after a step ---

    def step_done(self, terms, lr):
        """Count a step; where it is due, a line of the log and a look at what may go wrong. lr: learning rate."""
        self.bar.update()
        self.skips.add(self.trainer.step, terms, self.say)
        if not self.due(self.args.print_freq):
            return
        names = [k for k in terms if k != "skipped"]
        values = torch.stack([terms[k].float() for k in names]).tolist()  # one wait for the device, not one a term
        figures = {k: v / self.ranks.count for k, v in zip(names, self.ranks.reduce(values), strict=True)}
        speed = self.meter.read(self.args.batch_size)
        if self.writes:
            self.record({**figures, "lr": lr, "skipped": self.skips.total, **speed})
        self.show({k: figures[k] for k in ("total", "bce", "D_obj", "D_bg", "D", "mask_area") if k in figures}, speed)
        kind = self.watch.add(self.trainer.step, figures["mask_fill"], figures["mask_spread"])
        if kind:
            self.collapsed(f"step {self.trainer.step}: {COLLAPSES[kind].format(self.watch.steps)}: docs/training.md "
                           "says what cures it")

    def show(self, figures, speed):
        """The main figures on the bar, or in a line now and then where there is no terminal."""
        self.bar.set_postfix({k: f"{v:.3f}" for k, v in figures.items()})
        if self.bar.disable and time.monotonic() > self.told + LINE_EVERY:
            self.told = time.monotonic()
            left = (self.last_step - self.trainer.step) * self.args.batch_size / max(speed["images_per_s"], 1e-9)
            self.say(f"step {self.trainer.step} of {self.last_step}: "
                     + ", ".join(f"{k} {v:.3f}" for k, v in figures.items())
                     + f"; {speed['images_per_s']:.1f} images/s, {left / 60:.0f} minutes left")

    def collapsed(self, message):
        """Do what --on_collapse says."""
        if self.args.on_collapse == "stop":
            self.save()
            raise UserError(f"{message} (all saved)")
        self.say(f"train.py: warning: {message}", sys.stderr)

    def exit_code(self, signals):
        """What ends the run after this step: None, or its exit code; then all is saved."""
        number, over = self.ranks.reduce([max(signals, default=0), time.monotonic() > self.limit], "max")
        done = self.trainer.step == self.last_step
        if done or number or over:
            self.save()
        elif self.due(self.args.save_latest_freq):
            self.write(self.save)
        if done or not (number or over):
            return 0 if done else None
        self.say(f"stopped after step {self.trainer.step}, all saved: --resume goes on")
        return 128 + int(number) if number else 124

    # --- what is written ---

    def write(self, action, *args):
        """Whether `action(*args)` could write what it writes; a warning if not."""
        try:
            action(*args)
            return True
        except OSError as error:
            self.say(f"train.py: warning: {error}: going on without it", sys.stderr)
            return False

    def record(self, figures):
        """Log {name: number} of this step."""
        self.write(self.log.write, {"step": self.trainer.step, **figures})
        for name, value in figures.items() if self.board else ():
            self.write(self.board.add_scalar, name, value, self.trainer.step)

    def save(self):
        """Write latest.pt. UserError, and nothing is written, if a weight is not finite."""
        step, model = self.trainer.step, self.trainer.model
        if not torch.isfinite(sum(p.detach().sum() for p in model.parameters())):
            raise UserError(f"a weight is not finite at step {step}: lower --lr; the last checkpoint is good")
        state = self.trainer.state_dict()
        own = {key: state[key] for key in ("pools", "rng") if key in state}  # what differs between processes
        parts = self.ranks.gather(own)
        if self.writes:
            size = self.checkpoints.save(state | self.about() | {
                "best_iou": self.best_iou, "validated_at": self.validated_at, "parts": parts[1:], "data": self.data,
                "skips": self.skips.state_dict(), "watch": self.watch.state_dict()})
            if step == self.last_step:
                self.say(f"{os.path.join(self.folder, 'latest.pt')}: {size / 1e6:.1f} MB")
        self.meter.restart()

    def about(self):
        """What every checkpoint says of its model."""
        return {"method": self.args.method, "config": self.trainer.model.config, "options": vars(self.args)}

    def save_best(self):
        """Write best.pt: the model as tests use it, without what only training needs."""
        state = self.trainer.state_dict()
        networks = {k: v for k, v in state["networks"].items() if k not in state["averaged"]}
        self.checkpoints.save(self.about() | {"step": self.trainer.step, "networks": networks,
                                              "averaged": state["averaged"], "best_iou": self.best_iou}, "best.pt")

    def load_state_dict(self, state):
        """Restore what `save` wrote. Processes that it does not know begin with noise and pools of their own."""
        parts, rank = state["parts"], self.ranks.rank
        if rank > len(parts):
            fresh = self.trainer.state_dict()
            state = state | {key: fresh[key] for key in ("pools", "rng") if key in fresh}
        elif rank:
            state = state | parts[rank - 1]
        self.trainer.load_state_dict(state)
        self.best_iou, self.validated_at = float(state["best_iou"]), int(state["validated_at"])
        self.skips.load_state_dict(state["skips"])
        self.watch.load_state_dict(state["watch"])

    def validated(self, sums, whole=True):
        """Log a validation and keep the best model. sums: of `evaluate.validate`, None if a signal ended it; whole:
        whether all of the model's networks have begun to learn, else it cannot be the best."""
        cut, iou, area, n = self.ranks.reduce([1, 0, 0, 0] if sums is None else [0, *sums])
        self.meter.restart()
        if cut:
            return
        step, self.validated_at = self.trainer.step, self.trainer.step
        if self.writes:
            self.record({"val_iou": iou / n, "val_mask_area": area / n})
        self.say(f"step {step}: IoU {iou / n:.3f} on val/, mask area {area / n:.3f}")
        if whole and iou / n > self.best_iou:
            before, self.best_iou = self.best_iou, iou / n
            failed, = self.ranks.reduce([self.writes and not self.write(self.save_best)], "max")
            if failed:  # in the one process that writes, but all must think of the same best
                self.best_iou = before
