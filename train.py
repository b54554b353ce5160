"""Train SEIGAN.

    python train.py --demo --name demo                     # procedural pictures, a small model: minutes on a CPU
    python train.py --dataroot datasets/dogs --name dogs   # crops that prepare.py made, on the first GPU if any
    python train.py --name dogs --resume                   # go on where it stopped, exactly
    torchrun --nproc_per_node=4 train.py --dataroot datasets/dogs --name dogs    # on four GPUs

Writes CHECKPOINTS_DIR/NAME/: config.json, log.jsonl (every term), samples/*.png, latest.pt, the one before it as
step_*.pt and, where there are masks to validate on, best.pt. Then `python test.py --name NAME`.

Exit codes: 0 done, 2 an error, 124 --max_minutes are over, 130 or 143 stopped by Ctrl-C or SIGTERM.
"""
import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import time
import traceback

import torch
from torch.utils.data import DataLoader

from crops import demo
from data import Crops, StepSampler, UnpairedCrops
from running.checkpoint import load_checkpoint
from running.parallel import Ranks, leave
from running.run import Collapse, Run, previous
from running.watch import catch_signals, leave_signals
from seigan import LAMBDAS, MODES, NETWORKS, NOCYCLE_TERMS, SEIGAN, VGG_TERMS, Trainer, has_bfloat16, pick_device

# What --demo changes in the defaults. Its 800 clean drawings are not learned by heart: without augmentation, and in
# small batches, the same minutes give better masks.
DEMO = dict(dataroot="datasets/demo", size=48, batch_size=4, ngf=16, ndf=32, n_layers_D=3, seg_blocks=3,
            no_diffaug=True, n_epochs=16)
# Options that may change when a run is resumed; the others are part of what is being trained.
RESUMABLE = {"name", "dataroot", "resume", "gpu", "checkpoints_dir", "num_threads", "n_epochs", "n_epochs_decay",
             "vgg_weights", "print_freq", "display_freq", "save_latest_freq", "val_freq", "keep", "max_minutes",
             "on_write_error", "on_collapse", "collapse_steps", "max_skipped", "compile"}
RANK_SEEDS = 1_000_000  # between the seeds of two processes
# What torch's errors that a user can do something about have in them, and what that is.
REMEDIES = {
    "deterministic": "leave --deterministic out, or take a newer torch",
    "DataLoader worker (pid": "lower --num_threads, or give the machine or container more (shared) memory",
    "allocate memory": "the memory is full: lower --batch_size, --size or --ngf",
    "inductor": "leave --compile out, or install what torch.compile needs",
}


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
        nothing = action.default is None or action.default is False
        return action.help if nothing else super()._get_help_string(action)


def get_args_parser():
    """The only list of options, with their defaults and help."""
    parser = argparse.ArgumentParser(prog="train.py", description="Train SEIGAN.", allow_abbrev=False,
                                     usage="train.py --name NAME (--dataroot DIR | --demo | --resume) [options]",
                                     formatter_class=HelpFormatter)
    add = parser.add_argument_group("run").add_argument
    add("--name", required=True, help="the run's name: its folder under --checkpoints_dir")
    add("--dataroot", help="folder with train/ and test/, as `python prepare.py` makes it")
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
    add("--batch_size", type=positive_int, default=8, help="pictures of each kind in a step, over all processes")
    add("--n_epochs", type=count, default=200, help="epochs at the full learning rate")
    add("--n_epochs_decay", type=count, default=0, help="epochs of linear decay to 0 after them")
    add("--lr", type=weight, default=2e-4, help="Adam's learning rate")
    add("--lr_seg", type=weight, default=0.4, help="factor on --lr for G_seg")
    add("--beta1", type=share, default=0.5, help="Adam's momentum")
    add("--pool_size", type=count, default=50, help="pictures in each replay pool, 0 = none")
    add("--ema", type=share, default=0.2,
        help="mean age of the averaged weights used in tests, as a share of the steps so far, at most 0.5; 0 = none")
    add("--no_diffaug", action="store_true", help="discriminators see pictures as they are, not augmented")
    add("--no_flip", action="store_true", help="do not flip pictures left-right")
    add("--amp", action=argparse.BooleanOptionalAction,
        help="convolutions in bfloat16, losses in float32; else where the hardware has units for it")
    add("--compile", action=argparse.BooleanOptionalAction, default=False,
        help="networks through torch.compile, for GPUs; the first steps take minutes")

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
    add("--collapse_steps", type=positive_int, default=1000,
        help="steps that this takes; three times as many while no mask has shown yet")
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
    if args.amp is None:  # a run that began before there was --amp goes on without
        args.amp = checkpoint is None and has_bfloat16(pick_device(args.gpu))
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
        before = saved.get(key, parser.get_default(key))  # an option that is newer than the run
        if key not in RESUMABLE and value != before:
            raise ValueError(f"--{key} was {before} when this run began, got {value}: "
                             "leave it out, or begin a new run under another --name")
    return args


def check_args(args):
    """Raise ValueError where options contradict each other or the machine."""
    if args.dataroot is None:
        raise ValueError("--dataroot is missing: the folder that `python prepare.py` made, or use --demo")
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
    if args.on_collapse == "restart" and args.mode != "seigan":
        raise ValueError(f"--on_collapse restart moves λs that mode {args.mode} has not: use warn or stop")
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
    """The crops to validate and to show: val/, or test/ where there is no val/ or none with masks; None without."""
    first = None
    for split in ("val", "test"):
        if os.path.isdir(os.path.join(args.dataroot, split)):
            crops = Crops(args.dataroot, split, args.size)
            if crops.masks:
                return crops
            first = first or crops
    return first


def build_trainer(args, crops, device, ranks):
    """The model and its `Trainer`, on `device`. Weights depend on the seed alone, noise and pools on the rank too."""
    torch.manual_seed(args.seed)
    model = SEIGAN(
        mode=args.mode, size=args.size, ngf=args.ngf, ndf=args.ndf, n_layers_D=args.n_layers_D,
        seg_blocks=args.seg_blocks, unet_downs=args.unet_downs or max(1, int(math.log2(args.size)) - 2),
        head_bias=args.head_bias, enh_direct=args.enh_direct, box_prior=args.box_prior,
        box=torch.stack([crops.box(stem) for stem in crops.stems]).mean(0).tolist(),
        crop_rule=crops.rules[0] if crops.rules else None,
        lambdas={term: vars(args)[f"lambda_{term}"] for term in LAMBDAS}, vgg_state=vgg_state(args),
    )
    for name in NETWORKS if args.compile else ():
        model.get_submodule(name).compile()
    return Trainer(model.to(device), lr=args.lr, lr_seg=args.lr_seg, beta1=args.beta1, pool_size=args.pool_size,
                   ema=args.ema, diffaug=not args.no_diffaug, seed=args.seed + RANK_SEEDS * ranks.rank, amp=args.amp,
                   wrap=ranks.wrap)


def build_run(args, ranks, checkpoint=None):
    """Data, model and `Run`, where `checkpoint` left it. ValueError, in one line, if that does not fit."""
    each_its_own = ranks.count > 1 and args.gpu != -1 and torch.cuda.is_available()
    device = pick_device(ranks.local if each_its_own else args.gpu)
    crops = Crops(args.dataroot, "train", args.size)
    dataset = UnpairedCrops(crops, args.seed, flip=not args.no_flip, masks=args.mode == "supervised")
    last_step = max(1, len(dataset.objects) // args.batch_size) * (args.n_epochs + args.n_epochs_decay)
    trainer = build_trainer(args, crops, device, ranks)
    run = Run(args, run_folder(args), trainer, dataset, held_out_crops(args), last_step, ranks)
    if checkpoint:
        try:
            run.load_state_dict(checkpoint)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"{latest_path(args)} does not fit this run ({type(error).__name__}: "
                             f"{' '.join(str(error).split())[:200]}): {older_remedy(args)}") from error
    return run


def lr_factor(step, steps_per_epoch, n_epochs, n_epochs_decay):
    """CycleGAN's schedule as a function of the step: 1 for `n_epochs`, then linearly to 0 over `n_epochs_decay`."""
    epochs_of_decay = step / steps_per_epoch - n_epochs
    return 1.0 if epochs_of_decay <= 0 else max(0.0, 1 - epochs_of_decay / n_epochs_decay)


def batches(dataset, args, start, stop, device, ranks):
    """Training batches of steps start..stop-1, this process's part of each, as tensors on `device`."""
    sampler = StepSampler(start, stop, args.batch_size, ranks.rank, ranks.count)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=args.num_threads, worker_init_fn=leave_signals,
                        pin_memory=device.type == "cuda", generator=torch.Generator())
    try:
        for batch in loader:
            yield {k: v.to(device, non_blocking=True) for k, v in batch.items()}
    except Exception as error:
        # its frames hold the loading processes, which no signal ends: this process would wait for them for ever
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, ValueError):  # an unreadable picture is an OSError
            raise RuntimeError("a mistake in the code that loads pictures") from error
        raise


def print_options(args, parser):
    """Print the options in use, with the default beside what was changed, and keep them in config.json."""
    lines = []
    for key, value in sorted(vars(args).items()):
        default = parser.get_default(key)
        lines.append(f"{key:>18}: {value}" + (f"  [default: {default}]" if default not in (None, value) else ""))
    print("\n".join(lines))
    try:
        revision = subprocess.run(["git", "-C", os.path.dirname(os.path.abspath(__file__)), "rev-parse", "HEAD"],
                                  capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git on this machine
        revision = ""
    with open(os.path.join(run_folder(args), "config.json"), "w", encoding="utf-8") as f:
        json.dump({"options": vars(args), "command": shlex.join(sys.argv), "revision": revision}, f, indent=1)


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
        ranks = Ranks(args.gpu)
        try:
            if args.demo and ranks.rank == 0 and not os.path.exists(os.path.join(args.dataroot, "test", "crops.json")):
                print(f"making the demo set in {args.dataroot}")
                demo.make_demo(args.dataroot)
            ranks.reduce([0])  # the others wait for it
            return train(args, ranks, checkpoint)
        finally:
            ranks.close()
    except torch.cuda.OutOfMemoryError:
        message = "the GPU's memory is full: lower --batch_size, --size or --ngf"
    except (ValueError, OSError) as error:
        # a loading process wraps its error in a traceback, whose last line it is
        message = str(error).strip().splitlines()[-1].removeprefix("OSError: ")
    except RuntimeError as error:
        advice = next((remedy for sign, remedy in REMEDIES.items() if sign in str(error)), None)
        if advice is None:
            raise
        message = f"{str(error).strip().splitlines()[0]}: {advice}"
    except KeyboardInterrupt:  # before the loop, which finishes its step and saves
        print("train.py: stopped before training began", file=sys.stderr)
        return 130
    print(f"train.py: error: {message}", file=sys.stderr)
    return 2


def train(args, ranks, checkpoint=None):
    """Train until the last step, or until a signal, a limit or a collapse ends it.

    `checkpoint` is that of the run to go on with. Returns the exit code.
    """
    limit = math.inf if args.max_minutes is None else time.monotonic() + 60 * args.max_minutes
    torch.backends.cudnn.benchmark = not args.deterministic  # sizes never change
    torch.use_deterministic_algorithms(args.deterministic)
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    again = False
    while True:
        run = build_run(args, ranks, checkpoint)
        run.open()
        try:
            if again:
                run.save()  # so that --resume knows of the new options from the first step on
            if run.writes:
                print_options(args, get_args_parser())
            with catch_signals() as signals:
                return loop(run, signals, limit)
        except Collapse as collapse:
            kind, message = collapse.args
            run.say(f"train.py: warning: {message}; beginning anew, {run.put_aside()} keeps this try", sys.stderr)
            args, checkpoint, again = restarted(args, kind), None, True
        finally:
            run.close()


def loop(run, signals, limit):
    """The alternating loop (§3.4). Returns the exit code."""
    args, trainer, crops = run.args, run.trainer, run.dataset.crops
    device, steps_per_epoch = trainer.model.box.device, run.last_step // (args.n_epochs + args.n_epochs_decay)
    run.say(f"{len(run.dataset.objects)} objects, {len(crops.backgrounds)} backgrounds, {run.last_step} steps on "
            f"{device}" + (f", {run.ranks.count} processes" if run.ranks.count > 1 else ""))
    if trainer.step >= run.last_step:
        run.say(f"step {trainer.step} of {run.last_step} is done: more --n_epochs or --n_epochs_decay train on")
    free = sum(bool((args.box_prior * crops.box(stem)[2:] >= 1).all()) for stem in crops.stems)
    if args.box_prior and free:
        run.say(f"{free} of {len(crops.stems)} objects' boxes are not known from crops.json, or as large as the crop: "
                "--box_prior does not keep their masks in")
    validates = bool(run.held_out and run.held_out.masks)
    if validates and trainer.step and run.due(args.val_freq) and run.validated != trainer.step:
        run.validate(signals)  # which a signal cut short

    for batch in run.meter.wait(batches(run.dataset, args, trainer.step, run.last_step, device, run.ranks)):
        factor = lr_factor(trainer.step, steps_per_epoch, args.n_epochs, args.n_epochs_decay)
        try:
            terms = trainer.train_step(batch["x"], batch["y"], batch["box"], batch.get("mask"), factor)
        except ValueError as error:  # main would print its last line alone
            raise RuntimeError("a mistake in the code of a step") from error
        run.bar.update()
        run.skips.add(trainer.step, terms)
        if run.due(args.print_freq):
            run.log_step(terms, args.lr * factor)
        if run.due(args.display_freq):
            run.save_samples(run.held_out or crops)
        if run.due(args.val_freq) and validates:
            run.validate(signals)
        number, over = run.ranks.reduce([max(signals, default=0), time.monotonic() > limit], "max")
        ends = trainer.step == run.last_step or number or over
        if ends:
            run.save()
        elif run.due(args.save_latest_freq):
            run.write(run.save)
        if ends and trainer.step < run.last_step:
            run.say(f"stopped after step {trainer.step}, all saved: --resume goes on")
            return 128 + int(number) if number else 124
    return 0


if __name__ == "__main__":
    leave(main())
