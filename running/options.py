"""What all commands share: types of options, defaults in help, the device, and one line for what goes wrong.

    parser = make_parser("prepare.py", "Crops from photographs.")
    parser.add_argument("--size", type=whole(1), default=128, help="side of the images, px")   # shown as [128]

    def run(argv): ...                                     # raises UserError or OSError
    sys.exit(command("prepare.py", run, argv))

torch is imported where it is needed, so that `--help` need not wait for it: see `answer_help`.
"""
import argparse
import math
import os
import re
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from images import UserError, printable

# how torch, its oneDNN and Python name it, by RuntimeErrors like any other
NO_MEMORY = "can't allocate memory|not enough memory|bad_alloc|could not create a primitive|can't start new thread"

# what a terminal obeys in place of showing it, and what is no text; "\x1b[A", tqdm's way up a line, passes
UNPRINTABLE = re.compile(r"\x1b(?!\[A)|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069"
                         r"\ud800-\udfff]")
LARGEST = 2**63 - 1
MODELS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "models")


class Help(argparse.HelpFormatter):
    """Shows an option's default as [VALUE], where there is one to show and the help does not end so already."""

    def _get_help_string(self, action):
        nothing = action.default is False or action.default in (None, (), argparse.SUPPRESS)  # 0 == False is shown
        shown = not nothing and action.option_strings
        return f"{action.help} [%(default)s]" if shown and not action.help.endswith("]") else action.help


def make_parser(prog, description, **more):
    """An `argparse.ArgumentParser` with defaults in its help and without abbreviated options."""
    return argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False, formatter_class=Help, **more)


def add_command(commands, name, text, **more):
    """A sub-command's parser, like those of `make_parser`. commands: of `add_subparsers`."""
    return commands.add_parser(name, help=text, description=text, allow_abbrev=False, formatter_class=Help, **more)


# --- types of options ---


def whole(low=0, high=None):
    """An int from `low` to `high`."""
    return _bounded(int, "a whole number", low, LARGEST if high is None else high)


def number(low=-math.inf, high=math.inf):
    """A finite float from `low` to `high`."""
    return _bounded(float, "a number", low, high)


def _bounded(kind, what, low, high):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)):
            told = high < math.inf and (high != LARGEST or value > high)
            limits = f" from {low:g}" * (low > -math.inf) + f" to {high:g}" * told
            raise argparse.ArgumentTypeError(f"must be {what}{limits}, got {text!r}")
        return value
    return parse


def numbers(*counts):
    """So many numbers, separated by commas, as a tuple of floats."""
    def parse(text):
        try:
            values = tuple(float(part) for part in text.split(","))
        except ValueError:
            values = ()
        if len(values) not in counts or not all(map(math.isfinite, values)):
            expected = " or ".join(map(str, counts))
            raise argparse.ArgumentTypeError(f"must be {expected} numbers separated by commas, got {text!r}")
        return values
    return parse


def names(text):
    """Names separated by commas, as a tuple."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def plain_name(text):
    """The name of a run: one folder, not a path."""
    if text in ("", ".", "..") or os.path.basename(text) != text or "\\" in text:
        raise argparse.ArgumentTypeError(f"must be a plain folder name, got {text!r}")
    return text


# --- options that several commands have ---


def add_device(add):
    add("--device", "--gpu", type=device_name, metavar="cpu|cuda[:N]|mps|N",
        help="where networks run; N = number of the GPU, -1 = CPU [the first GPU if there is one]")


def device_name(text):
    """"cpu", "mps" or "cuda:N", of these, of "cuda" or of a GPU's number."""
    found = re.fullmatch(r"cpu|mps|-1|(?:cuda:)?(\d{1,2})|cuda", text, re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(f"must be cpu, cuda, cuda:N, mps, or a GPU's number up to 99, -1 = CPU, "
                                         f"got {text!r}")
    return text if text in ("cpu", "mps") else "cpu" if text == "-1" else f"cuda:{int(found[1] or 0)}"


def add_trained(add, **more):
    """Which trained model: --name, --checkpoint, --checkpoints_dir, or --weights; `checkpoint_path` of them is its
    file, `results_name` what its results go by. more: of --weights, besides."""
    add("--name", type=plain_name, help="the run's name: its folder under --checkpoints_dir")
    add("--checkpoint", choices=("latest", "best"), default="latest", help="which of the run's checkpoints")
    add("--checkpoints_dir", default="checkpoints", help="folder of the runs")
    add("--weights", **{"metavar": "FILE", "help": "a model of `photo.py export --weights` in place of a run's"} | more)


def checkpoint_path(args):
    """The file of the model that the options of `add_trained` name. UserError where they name none, or two."""
    if args.weights and args.name:
        raise UserError(f"--name {args.name} and --weights {args.weights} are two models: give one of them")
    if not args.weights and not args.name:
        raise UserError(f"no model is named: give --name, of a run of train.py, or --weights, a file such as those in "
                        f"{MODELS}")
    return args.weights or os.path.join(args.checkpoints_dir, args.name, f"{args.checkpoint}.pt")


def results_name(args):
    """The name of the run, or of the file of weights without its ending."""
    return args.name or os.path.splitext(os.path.basename(args.weights))[0]


def pick_device(name=None):
    """The torch device of a `device_name`, None = the first CUDA GPU if there is one. UserError if absent."""
    import torch

    found = torch.cuda.device_count()
    device = torch.device(name or ("cuda:0" if found else "cpu"))
    if device.type == "cuda" and device.index >= found:
        raise UserError(f"--device {name}, --gpu {device.index}: this machine has {found} CUDA GPUs; -1 is the CPU")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: torch finds no Apple GPU on this machine; cpu is the CPU")
    return device


def has_bfloat16(device):
    """Whether `device` has units for bfloat16: CUDA GPUs from compute capability 8 on, CPUs with AMX or
    AVX512-BF16."""
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device.type == "cpu" and any(known.get(name) for name in ("amx_bf16", "avx512_bf16"))


# --- a command ---


class Outlet:
    """A text stream on which nothing that is printed can end the command, or steer the terminal.

    What cannot be written, to a full disk or a closed pipe, is lost; `warn` is called with a line, once.
    """

    def __init__(self, stream, warn):
        self.stream, self.warn, self.failed = stream, warn, stream is None

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        self._try(lambda: self.stream.write(UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)))
        return len(text)

    def flush(self):
        self._try(lambda: self.stream.flush())

    def isatty(self):
        return self.stream is not None and self.stream.isatty()

    def close(self):
        """Give up what still cannot be written: else Python would try again at its end, and change the exit code."""
        if self.failed and self.stream is not None and not self._try(self.stream.flush):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def _try(self, action):
        try:
            if self.stream is not None:
                action()
            return True
        except OSError as error:
            if not self.failed:
                self.failed = True
                self.warn(f"cannot print all ({error.strerror or error}): going on without it")
            return False


@contextmanager
def outlets(prog):
    """stdout and stderr as `Outlet`s."""
    err = Outlet(sys.stderr, lambda line: None)
    out = Outlet(sys.stdout, lambda line: print(f"{prog}: warning: {line}", file=err))
    try:
        with redirect_stdout(out), redirect_stderr(err):
            yield
    finally:
        for outlet in (out, err):
            outlet.flush()
            outlet.close()


def command(prog, run, argv=None, stopped="stopped"):
    """`run(argv)` as the command `prog`: returns the exit code, that of `run` or 0.

    A `UserError`, and what the system refuses (OSError, memory, threads), become one line on stderr and exit code 2;
    Ctrl-C becomes the line `stopped` and 130. Whatever else is raised is a mistake of ours and keeps its traceback.
    """
    with outlets(prog):
        return _command(prog, run, sys.argv[1:] if argv is None else argv, stopped)


def answer_help(prog, parse):
    """For a script, before it imports what takes seconds, such as torch: -h and --help are answered and end it.

    parse(argv): prints the help and exits, as argparse does.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        code = command(prog, lambda argv: parse(argv) and 0)
        if code:
            sys.exit(code)


def _command(prog, run, argv, stopped):
    try:
        return run(argv) or 0
    except (UserError, OSError) as error:
        told = isinstance(error, OSError) and error.filename and error.strerror
        message = f"{error.filename}: {error.strerror}" if told else error
    except KeyboardInterrupt:
        print(f"{prog}: {stopped}", file=sys.stderr)
        return 130
    except (RuntimeError, MemoryError) as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch.cuda's
            message = "the GPU's memory is full: lower --batch_size, --size or --ngf"
        elif isinstance(error, MemoryError) or re.search(NO_MEMORY, str(error)):
            told = printable(error).strip() or "MemoryError"
            message = f"no memory is left ({told[:200]}): end other programs, or give this one less to do at once"
        else:
            raise
    print(f"{prog}: error: {printable(message)}", file=sys.stderr)
    return 2
