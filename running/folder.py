"""A run's folder: the lock that keeps others out, the log, the checkpoints."""
import errno
import json
import math
import os
import shutil

from images import written_whole


class Lock:
    """Keeps a second command out of a folder while the first lives.

    remedy: what to do besides waiting, for the error's line. The system lifts it when the process ends, however it ends; processes that it started do not hold it.

    Raises:
        BlockingIOError: in one line, if another process holds it.
    """

    def __init__(self, folder, remedy="give another --name"):
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
            raise BlockingIOError(f"{folder} is in use by {holder} ({error.strerror}): wait until it ends, or "
                                  f"{remedy}") from error
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
        with written_whole(path) as f:
            f.write("".join(kept).encode())
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
        from running.checkpoint import save_checkpoint  # and so torch, which a lock does without

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
