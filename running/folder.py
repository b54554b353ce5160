"""A command's folder: the lock that keeps others out, what it made there; of a run, the log and the checkpoints."""
import errno
import json
import math
import os
import shutil
from contextlib import contextmanager, suppress

from images import UserError, parse_json, written_whole


class Lock:
    """Keeps a second command out of a folder while the first lives.

    The system lifts it when the process ends, however it ends; processes that it started do not hold it.

    Args:
        remedy: what to do besides waiting, for the error's line.

    Raises:
        BlockingIOError: in one line, if another process holds it.
    """

    def __init__(self, folder, remedy="give another --name"):
        path = os.path.join(folder, ".lock")
        refuse_link(path)
        self.file = open(path, "a+", encoding="utf-8", opener=_not_through_links)
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
        holder = f"process {os.getpid()} on {os.uname().nodename if hasattr(os, 'uname') else 'this machine'}"
        with suppress(OSError):  # a full disk: it is locked all the same
            os.write(self.file.fileno(), holder.encode())

    def release(self):
        self.file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()


def refuse_link(path):
    """UserError where a file or folder of ours is a link: what is written there would land elsewhere."""
    if os.path.islink(path):
        raise UserError(f"{path} is a link, and what is written there would land elsewhere: remove it")


def _not_through_links(path, flags):
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


@contextmanager
def alone_in(folder, remedy):
    """Keeps a second command out of `folder`, which is made if absent, meanwhile; no lock stays there, and no folder
    that was made for nothing. As `Lock`."""
    is_new = not os.path.exists(folder)
    os.makedirs(folder, exist_ok=True)
    lock = Lock(folder, remedy)
    try:
        yield
    finally:
        os.remove(lock.file.name)
        lock.release()
        if is_new and not os.listdir(folder):
            os.rmdir(folder)


def _lock(file):
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(2**30)  # a byte far behind the text, which stays readable
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process, not of its children, unlike flock


def read_json(path, remedy, **kinds):
    """The JSON object at `path`. UserError, with the remedy, unless it has these keys with values of these types."""
    with open(path, "rb") as f:
        data = parse_json(f.read(), kinds)
    if data is None:
        raise UserError(f"{path} is damaged, or not what this code writes: {remedy}")
    return data


class Made:
    """The files that a command makes in a folder, listed in a hidden one there: the next time it removes these alone.

    Args:
        folder: made if absent; the caller holds its `Lock`.
        marker: name of the list; a line a file, JSON, "KIND/NAME" with "/".
    """

    def __init__(self, folder, marker):
        self.folder, self.marker = folder, os.path.join(folder, marker)
        os.makedirs(folder, exist_ok=True)
        self.before = self._read()

    def _read(self):
        refuse_link(self.marker)
        if not os.path.isfile(self.marker):
            return set()
        with open(self.marker, encoding="utf-8", errors="replace") as f:
            names = {parse_json(line, str) for line in f} - {None}  # lines cut short, or not ours
        return {name for name in names if self._inside(name)}

    def _inside(self, name):
        """Whether a listed name leads to no place but one in this folder, not through links either."""
        parts = name.split("/")
        plain = all(part not in ("", ".", "..") and os.path.basename(part) == part for part in parts)
        return plain and not any(os.path.islink(os.path.join(self.folder, *parts[:i])) for i in range(1, len(parts)))

    def clear(self):
        """Remove what was made before."""
        for name in self.before:
            path = os.path.join(self.folder, name)
            if os.path.lexists(path):
                os.remove(path)
        with written_whole(self.marker):
            pass

    def path(self, name):
        """The path of the file "KIND/NAME" to be written now; it is listed first."""
        path = os.path.join(self.folder, name)
        refuse_link(os.path.dirname(path))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(self.marker, "a", encoding="utf-8", opener=_not_through_links) as f:
            f.write(json.dumps(name) + "\n")
        return path


class Log:
    """log.jsonl, one line a record. A resumed run drops what lies after its checkpoint.

    What cannot be written, on a full disk say, waits for the next write.
    """

    def __init__(self, path, step):
        kept = []
        if step and os.path.exists(path):
            with open(path, encoding="utf-8", errors="replace") as f:
                kept = [line for line in f if line.endswith("\n")  # else it was cut short
                        and parse_json(line, {"step": lambda n: type(n) is int and n <= step})]
        with written_whole(path) as f:
            f.write("".join(kept).encode())
        self.file = open(path, "ab", buffering=0, opener=_not_through_links)
        self.waiting = b""

    def write(self, record):
        """Append a dict of numbers and tensors of one element, to 6 digits; what is not finite is left out."""
        values = {k: v if k == "step" else float(f"{float(v):.6g}") for k, v in record.items()}
        line = json.dumps({k: v for k, v in values.items() if math.isfinite(v)}) + "\n"
        self.waiting += line.encode()
        while self.waiting:  # a part may be written before the disk is full
            self.waiting = self.waiting[self.file.write(self.waiting) :]


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
        if os.path.lexists(aside):
            os.remove(aside)
        try:
            os.link(path, aside)
        except OSError:  # a file system without links
            shutil.copy2(path, aside)


def previous(folder):
    """The files step_*.pt of a run, last written first."""
    names = [n for n in os.listdir(folder) if n.startswith("step_") and n.endswith(".pt")]
    return sorted((os.path.join(folder, n) for n in names), key=lambda p: (os.stat(p).st_mtime_ns, p), reverse=True)
