"""Train SEIGAN.

    python train.py --demo --name demo                     # procedural pictures, a small model: minutes on a CPU
    python train.py --dataroot datasets/dogs --name dogs   # crops that data.py made, on the first GPU if there is one
    python train.py --name dogs --resume                   # go on where it stopped, exactly

Writes CHECKPOINTS_DIR/NAME/: config.json, log.jsonl (every term), samples/*.png, latest.pt, the one before it as
step_*.pt and, where there are masks to validate on, best.pt. Then `python test.py --name NAME`.

Exit codes: 0 done, 2 an error, 124 --max_minutes are over, 130 or 143 stopped by Ctrl-C or SIGTERM.
"""
import argparse
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time

import torch
from torch.utils.data import DataLoader
from torchvision.utils import make_grid
from tqdm import tqdm

import demo
from data import Crops, StepSampler, UnpairedCrops, save_image
from evaluation import validate
from runs import (
    COLLAPSES,
    Checkpoints,
    CollapseWatch,
    Lock,
    Log,
    Meter,
    SkippedSteps,
    catch_signals,
    leave_signals,
    previous,
)
from seigan import (
    LAMBDAS,
    MODES,
    NOCYCLE_TERMS,
    SEIGAN,
    VGG_TERMS,
    Trainer,
    load_checkpoint,
    pick_device,
)

# What --demo changes in the defaults. Its 800 clean drawings are not learned by heart: without augmentation, and in
# small batches, the same minutes give better masks.
DEMO = dict(dataroot="datasets/demo", size=48, batch_size=4, ngf=16, ndf=32, n_layers_D=3, seg_blocks=3,
            no_diffaug=True, n_epochs=9, n_epochs_decay=7)
# Options that may change when a run is resumed; the others are part of what is being trained.
RESUMABLE = {"name", "dataroot", "resume", "gpu", "checkpoints_dir", "num_threads", "n_epochs", "n_epochs_decay",
             "vgg_weights", "print_freq", "display_freq", "save_latest_freq", "val_freq", "keep", "max_minutes",
             "on_write_error", "on_collapse", "collapse_steps", "max_skipped"}
RESTARTS = 3  # times that --on_collapse restart begins anew


# --- options ---


def positive_int(text):
    """Whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text}")
    return value


def count(text):
    """Whole number from 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, got {text}")
    return value


def weight(text):
    """Finite number from 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number from 0, got {text}")
    return value


def share(text):
    """Number from 0 to below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to below 1, got {text}")
    return value


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults, where there is one to show."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def get_args_parser():
    """The only list of options, with their defaults and help."""
    parser = argparse.ArgumentParser(prog="train.py", description="Train SEIGAN.", allow_abbrev=False,
                                     usage="train.py --name NAME (--dataroot DIR | --demo | --resume) [options]",
                                     formatter_class=HelpFormatter)
    add = parser.add_argument_group("run").add_argument
    add("--name", required=True, help="the run's name: its folder under --checkpoints_dir")
    add("--dataroot", help="folder with train/ and test/, as `python data.py` makes it")
    add("--demo", action="store_true", help="train a small model on the demo set, which is made if absent")
    add("--resume", action="store_true", help="go on from the run's latest.pt, with the options it began with")
    add("--gpu", type=int, help="number of the GPU, -1 = CPU; else the first GPU if there is one")
    add("--checkpoints_dir", default="checkpoints", help="folder of all runs")
    add("--seed", type=count, default=0, help="of weights, order, flips, noise and pools")
    add("--num_threads", type=count, default=2, help="processes that load pictures, 0 = none but this")
    add("--deterministic", action="store_true", help="repeatable to the bit on a GPU too, where it costs time")
    add("--max_minutes", type=weight, help="minutes after which to save and stop, with exit code 124")

    add = parser.add_argument_group("model").add_argument
    add("--mode", choices=MODES, default="seigan", help="nocycle = λ8, λ9 alone; supervised = G_seg on true masks")
    add("--size", type=positive_int, default=128, help="side of the pictures in px")
    add("--ngf", type=positive_int, default=64, help="channels of the generators' first layers")
    add("--ndf", type=positive_int, default=64, help="channels of the discriminators' first layers")
    add("--n_layers_D", type=positive_int, default=4, help="stride-2 layers of the discriminators")
    add("--seg_blocks", type=count, default=6, help="residual blocks of G_seg")
    add("--unet_downs", type=positive_int, help="halvings in each U-Net; else as many as leave 4 px or more")
    add("--head_bias", type=float, default=-2.0, help="G_seg's initial bias before the sigmoid")
    add("--enh_direct", action="store_true", help="G_enh gives the picture, not a residual on z")
    add("--box_prior", type=weight, default=1.1, help="keep masks in the object's box grown by this factor, 0 = not")
    add("--no-box_prior", "--no_box_prior", dest="box_prior", action="store_const", const=0.0,
        default=argparse.SUPPRESS, help="--box_prior 0, the paper's form")

    add = parser.add_argument_group("training").add_argument
    add("--batch_size", type=positive_int, default=8, help="pictures of each kind in a step")
    add("--n_epochs", type=count, default=100, help="epochs at the full learning rate")
    add("--n_epochs_decay", type=count, default=100, help="epochs of linear decay to 0 after them")
    add("--lr", type=weight, default=2e-4, help="Adam's learning rate")
    add("--lr_seg", type=weight, default=0.4, help="factor on --lr for G_seg")
    add("--beta1", type=share, default=0.5, help="Adam's momentum")
    add("--pool_size", type=count, default=50, help="pictures in each replay pool, 0 = none")
    add("--ema", type=share, default=0.999, help="decay a step of the averaged generators used in tests, 0 = none")
    add("--no_diffaug", action="store_true", help="discriminators see pictures as they are, not augmented")
    add("--no_flip", action="store_true", help="do not flip pictures left-right")

    add = parser.add_argument_group("losses").add_argument
    for i, (term, default) in enumerate(LAMBDAS.items()):
        vgg = ", needs VGG-19" if term in VGG_TERMS else ""
        add(f"--lambda_{term}", type=weight, default=default, help=f"λ{i + 1} of the paper{vgg}")
    add("--vgg_weights", help="file of VGG-19's weights, torchvision's names; else torchvision's, downloaded if needed")

    add = parser.add_argument_group("output").add_argument
    add("--print_freq", type=positive_int, default=20, help="steps between lines of the log")
    add("--display_freq", type=positive_int, default=500, help="steps between sample grids")
    add("--save_latest_freq", type=positive_int, default=500, help="steps between checkpoints")
    add("--val_freq", type=positive_int, default=500, help="steps between validations")
    add("--keep", type=count, default=1, help="checkpoints before the latest to keep")
    add("--on_write_error", choices=("continue", "stop"), default="continue",
        help="what to do when a file cannot be written, the disk being full, say; the last step's must be")
    add("--on_collapse", choices=("warn", "stop", "restart"), default="warn",
        help="when masks stay empty, full or all the same; restart = anew, with the next seed and --lambda_coarse and "
             "--lambda_enh x 1.5 if empty, / 1.5 if full")
    add("--collapse_steps", type=positive_int, default=1000, help="steps that this takes")
    add("--max_skipped", type=positive_int, default=10, help="steps in a row with losses not finite that end the run")
    return parser


def parse_args(argv=None):
    """Options of a command line; with --resume, those of the checkpoint where the command line gives none.

    Returns (args, checkpoint or None). Raises ValueError or OSError, in one line, where they do not fit.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = get_args_parser()
    if "--demo" in argv:
        parser.set_defaults(**DEMO)
    args = parser.parse_args(argv)
    if args.name in ("", ".", "..") or os.path.basename(args.name) != args.name:
        raise ValueError(f"--name must be a plain folder name, got {args.name!r}")
    checkpoint = None
    if args.resume:
        checkpoint = latest_checkpoint(args)
        if not isinstance(checkpoint.get("options"), dict):
            raise ValueError(f"{latest_path(args)} holds no options of a run of train.py, so none can go on")
        args = resumed_args(parser, argv, checkpoint["options"])
    elif os.path.exists(latest_path(args)):
        raise ValueError(f"{run_folder(args)} already holds a run: --resume goes on with it, "
                         "another --name begins a new one")
    check_args(args)
    return args, checkpoint


def latest_checkpoint(args):
    """The checkpoint of the run to go on with. ValueError, which names the one before it, if it cannot be read."""
    try:
        return load_checkpoint(latest_path(args))
    except ValueError as error:
        raise ValueError(f"{error}; {older_remedy(args)}") from error


def older_remedy(args):
    """What to do where latest.pt is of no use."""
    older = previous(run_folder(args))
    if not older:
        return "begin a new run under another --name"
    return f"the one before it, {os.path.basename(older[0])}, can be renamed latest.pt"


def resumed_args(parser, argv, saved):
    """The options of a resumed run: `saved`, but for what `argv` gives and may change."""
    parser.set_defaults(**saved)
    args = parser.parse_args(argv)
    for key, value in vars(args).items():
        if key not in RESUMABLE and value != saved.get(key):
            raise ValueError(f"--{key} was {saved.get(key)} when this run began, got {value}: "
                             "leave it out, or begin a new run under another --name")
    return args


def check_args(args):
    """Raise ValueError where options contradict each other or the machine."""
    if args.dataroot is None:
        raise ValueError("--dataroot is missing: the folder that `python data.py` made, or use --demo")
    if args.size % 4:
        raise ValueError(f"--size must be a multiple of 4, got {args.size}")
    if args.n_epochs + args.n_epochs_decay == 0:
        raise ValueError("--n_epochs and --n_epochs_decay are both 0: nothing to train")
    terms = {"seigan": LAMBDAS, "nocycle": NOCYCLE_TERMS, "supervised": ()}[args.mode]
    if terms and not any(vars(args)[f"lambda_{term}"] for term in terms):
        raise ValueError(f"every λ that mode {args.mode} uses is 0 ({', '.join(terms)}): nothing to train")
    if args.vgg_weights and not needs_vgg(args):
        raise ValueError("--vgg_weights is given, but --lambda_bg_texture, --lambda_bg_perc and --lambda_obj_perc "
                         "are all 0: nothing would read it")
    pick_device(args.gpu)


def needs_vgg(args):
    return args.mode == "seigan" and any(vars(args)[f"lambda_{term}"] for term in VGG_TERMS)


def run_folder(args):
    return os.path.join(args.checkpoints_dir, args.name)


def latest_path(args):
    return os.path.join(run_folder(args), "latest.pt")


# --- what a run is made of ---


def vgg_state(args):
    """VGG-19's weights where a λ needs them, else None. ValueError, with the remedy, if they cannot be had."""
    if not needs_vgg(args):
        return None
    remedy = ("give a file with --vgg_weights PATH, or set --lambda_bg_texture, --lambda_bg_perc and "
              "--lambda_obj_perc to 0")
    try:
        if args.vgg_weights:
            return torch.load(args.vgg_weights, map_location="cpu", weights_only=True)
        from torchvision.models import VGG19_Weights

        print("downloading VGG-19's weights as torchvision names them, unless they are in its cache")
        return VGG19_Weights.IMAGENET1K_V1.get_state_dict(progress=True, weights_only=True)
    except Exception as error:  # whatever a foreign file or the network raises, the remedy is the same
        raise ValueError(f"no VGG-19 weights ({type(error).__name__} from "
                         f"{args.vgg_weights or 'the download'}): {remedy}") from error


def held_out_crops(args):
    """The crops to validate and to show: val/, or test/ where there is no val/; None without either."""
    for split in ("val", "test"):
        if os.path.isdir(os.path.join(args.dataroot, split)):
            return Crops(args.dataroot, split, args.size)
    return None


def build_trainer(args, crops, device):
    """The model and its `Trainer`, on `device`; weights depend on the seed alone."""
    torch.manual_seed(args.seed)
    model = SEIGAN(
        mode=args.mode, size=args.size, ngf=args.ngf, ndf=args.ndf, n_layers_D=args.n_layers_D,
        seg_blocks=args.seg_blocks, unet_downs=args.unet_downs or max(1, int(math.log2(args.size)) - 2),
        head_bias=args.head_bias, enh_direct=args.enh_direct, box_prior=args.box_prior,
        box=torch.stack([crops.box(stem) for stem in crops.stems]).mean(0).tolist(),
        crop_rule=crops.rules[0] if crops.rules else None,
        lambdas={term: vars(args)[f"lambda_{term}"] for term in LAMBDAS}, vgg_state=vgg_state(args),
    )
    return Trainer(model.to(device), lr=args.lr, lr_seg=args.lr_seg, beta1=args.beta1, pool_size=args.pool_size,
                   ema=args.ema, diffaug=not args.no_diffaug, seed=args.seed)


def lr_factor(step, steps_per_epoch, n_epochs, n_epochs_decay):
    """CycleGAN's schedule as a function of the step: 1 for `n_epochs`, then linearly to 0 over `n_epochs_decay`."""
    epochs_of_decay = step / steps_per_epoch - n_epochs
    return 1.0 if epochs_of_decay <= 0 else max(0.0, 1 - epochs_of_decay / n_epochs_decay)


def batches(dataset, args, start, stop, device):
    """Training batches of steps start..stop-1, as tensors on `device`."""
    loader = DataLoader(dataset, batch_sampler=StepSampler(start, stop, args.batch_size), num_workers=args.num_threads,
                        worker_init_fn=leave_signals, pin_memory=device.type == "cuda", generator=torch.Generator())
    for batch in loader:
        yield {k: v.to(device, non_blocking=True) for k, v in batch.items()}


# --- watching a run ---


@torch.no_grad()
def save_samples(path, model, crops, device, rows=8):
    """A grid of the first crops, always the same: columns x, m, z, ŷ, x̂, y, m̂, x̂̂, ŷ̂ (as far as the mode has them)."""
    stems, others = crops.stems[:rows], crops.background_stems[:rows]
    n = min(len(stems), len(others))
    x = torch.stack([crops.object(s) for s in stems[:n]]).to(device)
    y = torch.stack([crops.background(s) for s in others[:n]]).to(device)
    box = torch.stack([crops.box(s) for s in stems[:n]]).to(device)
    s = (model.swap if model.mode == "seigan" else model.swap_once)(x, y, box, torch.Generator(device).manual_seed(0))
    columns = [x, s.m, s.z, s.y_hat, s.x_hat, y, s.m_hat, s.x_hat2, s.y_hat2]
    columns = [2 * c.expand(-1, 3, -1, -1) - 1 if c.shape[1] == 1 else c for c in columns if c is not None]
    save_image(path, make_grid(torch.stack(columns, 1).flatten(0, 1), nrow=len(columns), padding=1, pad_value=1))


def print_options(args, parser):
    """Print the options in use, with the default beside what was changed, and keep them in config.json."""
    lines = []
    for key, value in sorted(vars(args).items()):
        default = parser.get_default(key)
        lines.append(f"{key:>18}: {value}" + (f"  [default: {default}]" if value != default else ""))
    print("\n".join(lines))
    try:
        revision = subprocess.run(["git", "-C", os.path.dirname(os.path.abspath(__file__)), "rev-parse", "HEAD"],
                                  capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git on this machine
        revision = ""
    with open(os.path.join(run_folder(args), "config.json"), "w", encoding="utf-8") as f:
        json.dump({"options": vars(args), "command": shlex.join(sys.argv), "revision": revision}, f, indent=1)


# --- the run ---


class Run:
    """All that a training consists of: data, trainer, folder, and what is watched, as options and checkpoint say."""

    def __init__(self, args, checkpoint=None):
        self.args, self.folder, self.device = args, run_folder(args), pick_device(args.gpu)
        self.crops = Crops(args.dataroot, "train", args.size)
        self.held_out = held_out_crops(args)
        self.dataset = UnpairedCrops(self.crops, args.seed, flip=not args.no_flip, masks=args.mode == "supervised")
        self.trainer = build_trainer(args, self.crops, self.device)
        self.steps_per_epoch = max(1, len(self.dataset.objects) // args.batch_size)
        self.last_step = self.steps_per_epoch * (args.n_epochs + args.n_epochs_decay)
        self.best_iou, self.validated = -1.0, 0  # the best IoU so far, the step of the last validation
        self.skips = SkippedSteps(args.max_skipped, self.files)
        self.watch = CollapseWatch(args.collapse_steps)
        if checkpoint:
            self.load_state_dict(checkpoint)

        os.makedirs(os.path.join(self.folder, "samples"), exist_ok=True)
        self.lock = Lock(self.folder)
        print_options(args, get_args_parser())
        self.log = Log(os.path.join(self.folder, "log.jsonl"), self.trainer.step)
        self.checkpoints = Checkpoints(self.folder, args.keep, self.trainer.step)
        self.meter = Meter()
        self.bar = tqdm(total=self.last_step, initial=self.trainer.step, disable=None, unit="step")

    def load_state_dict(self, checkpoint):
        """Go on from a checkpoint. ValueError, in one line, if it does not fit."""
        try:
            self.trainer.load_state_dict(checkpoint)
            self.best_iou, self.validated = float(checkpoint["best_iou"]), int(checkpoint["validated"])
            self.skips.load_state_dict(checkpoint["skips"])
            self.watch.load_state_dict(checkpoint["watch"])
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"{latest_path(self.args)} does not fit this run ({type(error).__name__}: "
                             f"{' '.join(str(error).split())[:200]}): {older_remedy(self.args)}") from error

    def close(self):
        """Let go of the folder."""
        self.bar.close()
        self.log.file.close()
        self.lock.release()

    def due(self, every):
        """Whether something that is done each `every` steps, and after the last, is due now."""
        return self.trainer.step % every == 0 or self.trainer.step == self.last_step

    def files(self, step):
        """The pictures of a step, as text."""
        draws = range((step - 1) * self.args.batch_size, step * self.args.batch_size)
        return ", ".join(os.path.relpath(path, self.args.dataroot) for n in draws for path in self.dataset.files(n))

    def save(self, name="latest.pt"):
        """Write a checkpoint. ValueError, and nothing is written, if a weight is not finite."""
        step, model = self.trainer.step, self.trainer.model
        self.skips.check(self.bar.write)
        if not torch.isfinite(sum(p.detach().sum() for p in model.parameters())):
            raise ValueError(f"a weight is not finite at step {step}: lower --lr; the last checkpoint is good")
        state = {"config": model.config, "options": vars(self.args), "best_iou": self.best_iou,
                 "validated": self.validated, "skips": self.skips.state_dict(), "watch": self.watch.state_dict()}
        return self.checkpoints.save(state | self.trainer.state_dict(), name)

    def write(self, action, *args):
        """Whether `action(*args)` could write what it writes; if not, OSError where the run is told to stop."""
        try:
            action(*args)
            return True
        except OSError as error:
            if self.args.on_write_error == "stop":
                raise
            self.bar.write(f"train.py: warning: {error}: going on without it (--on_write_error stop ends the run)",
                           file=sys.stderr)
            return False

    def log_step(self, terms):
        """A line of the log, the main figures on the bar, and a look at what may go wrong."""
        step, args = self.trainer.step, self.args
        self.skips.check(self.bar.write)
        figures = {k: v.item() for k, v in terms.items() if k != "skipped"}
        rate = args.lr * lr_factor(step - 1, self.steps_per_epoch, args.n_epochs, args.n_epochs_decay)
        self.write(self.log.write, {"step": step, **figures, "lr": rate, "skipped": self.skips.total,
                                    **self.meter.read(args.batch_size)})
        self.bar.set_postfix({k: f"{figures[k]:.3f}" for k in ("total", "D_obj", "D_bg", "mask_area") if k in figures})
        kind = self.watch.add(step, figures["mask_fill"], figures["mask_spread"])
        if kind:
            message = f"step {step}: " + COLLAPSES[kind].format(args.collapse_steps)
            if args.on_collapse == "warn":
                self.bar.write(f"train.py: warning: {message}", file=sys.stderr)
            elif args.on_collapse == "stop":
                self.save()
                raise ValueError(f"{message} (all saved)")
            else:
                raise Collapse(kind, message)

    def validate(self, signals):
        """IoU on the held-out masks at source resolution, and best.pt. A signal ends it; a resume makes up for it."""
        step, trainer = self.trainer.step, self.trainer
        figures = validate(trainer.averaged, self.held_out, self.device, self.args.batch_size, stopped=lambda: signals)
        if figures is None:
            return
        self.validated = step
        self.write(self.log.write, {"step": step, **{f"val_{k}": v for k, v in figures.items()}})
        self.bar.write(f"step {step}: IoU {figures['iou']:.3f}, mask area {figures['mask_area']:.3f}")
        if figures["iou"] > self.best_iou:
            before, self.best_iou = self.best_iou, figures["iou"]
            if not self.write(self.save, "best.pt"):
                self.best_iou = before

    def save_samples(self):
        """samples/STEP.png. Mode supervised has nothing to show there."""
        if self.args.mode != "supervised":
            path = os.path.join(self.folder, "samples", f"{self.trainer.step:07d}.png")
            self.write(save_samples, path, self.trainer.averaged, self.held_out or self.crops, self.device)

    def put_aside(self):
        """Move what the run wrote to a folder collapsed_1, _2, ... within its own. ValueError after `RESTARTS`."""
        tries = sum(name.startswith("collapsed_") for name in os.listdir(self.folder))
        if tries == RESTARTS:
            raise ValueError(f"the masks have collapsed in {RESTARTS + 1} runs: this takes other λs than a restart "
                             "tries; see docs/training.md")
        aside = os.path.join(self.folder, f"collapsed_{tries + 1}")
        os.makedirs(aside)
        for name in os.listdir(self.folder):
            if name != ".lock" and not name.startswith("collapsed_"):
                shutil.move(os.path.join(self.folder, name), aside)
        return aside


class Collapse(Exception):  # noqa: N818 - it ends no program
    """Raised to begin anew: kind of COLLAPSES, message."""


def restarted(args, kind):
    """The options of a new try after a collapse: the next seed, and λ8 and λ9 moved against it."""
    factor = {"empty": 1.5, "full": 1 / 1.5, "constant": 1.0}[kind]
    changed = {key: vars(args)[key] * factor for key in ("lambda_coarse", "lambda_enh")}
    return argparse.Namespace(**vars(args) | changed | {"seed": args.seed + 1})


# --- the loop ---


def main(argv=None):
    """Train as the command line says. Returns the exit code."""
    try:
        args, checkpoint = parse_args(argv)
        if args.demo and not os.path.exists(os.path.join(args.dataroot, "test", "crops.json")):
            print(f"making the demo set in {args.dataroot}")
            demo.make_demo(args.dataroot)
        return train(args, checkpoint)
    except torch.cuda.OutOfMemoryError:
        print("train.py: error: the GPU's memory is full: lower --batch_size, --size or --ngf", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        # a loading process wraps its error in a traceback, whose last line it is
        message = str(error).strip().splitlines()[-1].removeprefix("ValueError: ")
        print(f"train.py: error: {message}", file=sys.stderr)
        return 2


def train(args, checkpoint=None):
    """Train until the last step, or until a signal, a limit or a collapse ends it.

    `checkpoint` is that of the run to go on with. Returns the exit code.
    """
    limit = math.inf if args.max_minutes is None else time.monotonic() + 60 * args.max_minutes
    torch.backends.cudnn.benchmark = not args.deterministic  # sizes never change
    torch.use_deterministic_algorithms(args.deterministic)
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    while True:
        run = Run(args, checkpoint)
        try:
            with catch_signals() as signals:
                return loop(run, signals, limit)
        except Collapse as collapse:
            kind, message = collapse.args
            run.close()
            print(f"train.py: warning: {message}; beginning anew, {run.put_aside()} keeps this try", file=sys.stderr)
            args, checkpoint = restarted(args, kind), None
        finally:
            run.close()


def loop(run, signals, limit):
    """The alternating loop (§3.4). Returns the exit code."""
    args, trainer = run.args, run.trainer
    print(f"{len(run.dataset.objects)} objects, {len(run.crops.backgrounds)} backgrounds, {run.last_step} steps on "
          f"{run.device}")
    if trainer.step >= run.last_step:
        print(f"step {trainer.step} of {run.last_step} is done: more --n_epochs or --n_epochs_decay train on")
    if args.box_prior and not run.crops.records:
        print("no crops.json: the objects' boxes are not known, and --box_prior has no effect")
    validates = bool(run.held_out and run.held_out.masks)
    if validates and trainer.step and run.due(args.val_freq) and run.validated != trainer.step:
        run.validate(signals)  # which a signal cut short

    for batch in run.meter.wait(batches(run.dataset, args, trainer.step, run.last_step, run.device)):
        factor = lr_factor(trainer.step, run.steps_per_epoch, args.n_epochs, args.n_epochs_decay)
        terms = trainer.train_step(batch["x"], batch["y"], batch["box"], batch.get("mask"), factor)
        run.bar.update()
        run.skips.add(trainer.step, terms)
        if run.due(args.print_freq):
            run.log_step(terms)
        if run.due(args.display_freq):
            run.save_samples()
        if run.due(args.val_freq) and validates:
            run.validate(signals)
        ends = trainer.step == run.last_step or signals or time.monotonic() > limit
        if ends:
            run.save()
        elif run.due(args.save_latest_freq):
            run.write(run.save)
        if ends and trainer.step < run.last_step:
            print(f"stopped after step {trainer.step}, all saved: --resume goes on")
            return 128 + signals[0] if signals else 124
    return 0


if __name__ == "__main__":
    sys.exit(main())
