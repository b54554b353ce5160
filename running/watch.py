"""What watches over a run: signals, steps that were not applied, collapsed masks, speed.

Nothing here reads options, networks or files.
"""
import math
import signal
import statistics
import time
from contextlib import contextmanager

from images import UserError

# --- signals ---


@contextmanager
def catch_signals():
    """Give a list that SIGINT or SIGTERM appends its number to; the same signal again ends the process at once.

    (torchrun sends SIGTERM after a Ctrl-C that the processes have already had: that must not count as a second one.)
    """
    caught = []

    def handle(number, _frame):
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_signals(_worker):
    """Let loading processes end with the main one: terminals and job schedulers send their signals to every process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


# --- what can go wrong with the numbers ---


class SkippedSteps:
    """Counts the steps that a trainer did not apply, because a loss or a gradient was not finite.

    Args:
        files: step -> text that names the step's files.
        limit: so many in a row end the run.
    """

    def __init__(self, files, limit=10):
        self.files, self.limit, self.total, self.in_a_row = files, limit, 0, 0

    def add(self, step, terms, warn):
        """Look at a step's terms; `warn` is called with a line if it was skipped. UserError at the limit."""
        if not terms["skipped"]:
            self.in_a_row = 0
            return
        self.total += 1
        self.in_a_row += 1
        names = [k for k, v in terms.items() if not k.startswith("mask_") and not math.isfinite(v)] or ["a gradient"]
        warn(f"step {step} was not applied, {self.total} so far: {', '.join(names)} not finite on {self.files(step)}")
        if self.in_a_row == self.limit:
            raise UserError(f"{self.limit} steps in a row were not finite, the last one {step}: lower --lr or the "
                            "λs of the terms named above; the last checkpoint is good")

    def state_dict(self):
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state):
        self.total, self.in_a_row = int(state["total"]), int(state["in_a_row"])


COLLAPSES = {  # kind: what is seen
    "empty": "the masks have been empty for {} steps",
    "full": "the masks have filled all that they may for {} steps",
    "constant": "the masks have been the same on all images for {} steps",
}


class CollapseWatch:
    """Tells when masks were empty, full or the same on all images, by the means over the last `steps` steps.

    Empty: less than a hundredth of the pixels that a mask may take are at ½ or more. Full: more than .97 of them. The
    same: these pixels differ by less than .01 between the images of a batch, which takes batches of two at least.
    Training begins with empty masks: until the first ones have shown, it takes three times as many steps.
    """

    def __init__(self, steps=1000):
        self.steps, self.seen, self.shown, self.told = steps, [], False, None

    def add(self, step, fill, spread):
        """The collapse seen, one of COLLAPSES, when it is complete; None otherwise, and while it lasts.

        fill, spread: `losses.mask_figures` of a step's masks, spread NaN for a batch of one.
        """
        self.seen.append((step, fill, math.inf if math.isnan(spread) else spread))
        while len(self.seen) > 1 and self.seen[1][0] <= step - self.steps:
            del self.seen[0]
        if self.seen[0][0] > step - self.steps:
            return None
        alike = spread < 0.01 and 0.01 <= fill <= 0.97  # now; empty and full masks are alike too
        _, fill, spread = map(statistics.fmean, zip(*self.seen, strict=True))
        kind = "empty" if fill < 0.01 else "full" if fill > 0.97 else "constant" if spread < 0.01 else None
        self.shown |= fill >= 0.01
        if kind == "empty" and not self.shown and step < 3 * self.steps or kind == "constant" and not alike:
            return None
        told, self.told = self.told, kind
        return kind if kind != told else None

    def state_dict(self):
        return {"seen": self.seen, "shown": self.shown}

    def load_state_dict(self, state):
        """What `state_dict` gave. A collapse that was told is told again: a resumed run may have been asked to stop."""
        self.seen = [(int(step), float(fill), float(spread)) for step, fill, spread in state["seen"]]
        self.shown = bool(state["shown"])


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
