"""The options of train.py: those that every method has; a method's own stand in its module as OPTIONS.

Nothing here imports torch before the command line is read, so that `--help` need not wait for it.
"""
import argparse
import os
import zipfile
from importlib.util import find_spec

from images import UserError, check_archive
from running import methods
from running.folder import previous, read_json
from running.options import add_device, has_bfloat16, make_parser, number, pick_device, plain_name, whole

# What --demo changes in the defaults. Its 800 clean drawings are not learned by heart: without augmentation, and in
# small batches, the same minutes give better masks.
DEMO = dict(dataroot="datasets/demo", size=48, batch_size=4, ngf=16, ndf=32, seg_blocks=3,
            no_diffaug=True, n_epochs=5)
# What --paper changes: all that the paper does otherwise, or does not have (docs/reproduce.md); and CycleGAN's
# schedule, half of the epochs at the full rate and half of decay. λ3 is for sums at 128 px.
PAPER = dict(box_prior=0.0, lambda_teach=0.0, lambda_fill=0.0, no_diffaug=True, no_flip=True, ema=0.0, amp=False,
             crf_bias=0.0, warm_steps=0, head_bias=0.0, lr_seg=1.0, seg_transposed=True, enh_direct=True,
             inp_direct=True, grow_hole=0, imagegan=True, pool_past=True, gram_sum=True, lambda_inp=1.0,
             lambda_inp2=1.0, lambda_bg_texture=1e-4, lambda_bg_perc=1.0, lambda_obj_perc=1.0)
PAPERS = dict.fromkeys(("seigan", "nocycle", "supervised"), PAPER)  # the methods that the paper has
EARLIER = {"warm_steps": 0}  # what runs of earlier code did that had not these options
# Options that may change when a run is resumed; the others are part of what is being trained.
RESUMABLE = {"name", "dataroot", "resume", "config", "device", "checkpoints_dir", "num_threads", "n_epochs",
             "n_epochs_decay", "vgg_weights", "print_freq", "display_freq", "save_latest_freq", "val_freq", "keep",
             "max_minutes", "on_collapse", "compile", "tensorboard"}


def get_parser(method="seigan"):
    """The parser of a method's training: the only list of options, with defaults and help."""
    parser = make_parser("train.py", "Train SEIGAN, or a method to compare it with.",
                         usage="train.py --name NAME (--dataroot DIR | --demo | --resume | --config FILE) [options]")
    _add_run(parser.add_argument_group("run").add_argument)
    _add_training(parser.add_argument_group("training").add_argument)
    declared = methods.declared(method)
    _add_method(parser.add_argument_group(f"method {method}").add_argument, declared["OPTIONS"])
    _add_output(parser.add_argument_group("output").add_argument)
    set_defaults(parser, declared.get("DEFAULTS", {}))
    return parser


def set_defaults(parser, values):
    """Change the defaults {option: value} of those options that the parser has."""
    known = {action.dest for action in parser._actions}
    parser.set_defaults(**{name: value for name, value in values.items() if name in known})


def letter(method):
    """What --paper changes for a method; None where there is no such letter."""
    return PAPERS.get(method, methods.declared(method).get("PAPER"))


def _add_run(add):
    add("--name", type=plain_name, required=True, help="the run's name: its folder under --checkpoints_dir")
    add("--dataroot", help="folder with train/ and test/, as `python prepare.py` makes it")
    add("--demo", action="store_true", help="train a small model on the demo set, which is made if absent")
    add("--paper", action="store_true", help="the letter of the paper in place of the defaults, which takes VGG-19's "
        "weights; what is given beside it holds: --no-SWITCH undoes a switch, --X undoes --no_X")
    add("--resume", action="store_true", help="go on from the run's latest.pt, with the options it began with")
    add("--config", help="a run's config.json: its options once more, under another --name")
    add("--method", "--mode", choices=tuple(methods.METHODS), default="seigan",
        help="what to train: nocycle = λ8 and λ9 alone, supervised = G_seg on true masks, boxes = the box teacher's; "
             "redo, perturbgan, comgan, dscomgan: docs/neighbours.md; --help of each lists its own")
    add_device(add)
    add("--checkpoints_dir", default="checkpoints", help="folder of all runs")
    add("--seed", type=whole(), default=0, help="of weights, order, flips, noise, other views and pools")
    add("--num_threads", type=whole(), default=2, help="processes that load images, 0 = none but this")
    add("--deterministic", action="store_true", help="repeatable to the bit on a GPU too, where it costs time")
    add("--max_minutes", type=number(0), help="minutes after which to save and stop, with exit code 124")


def _add_training(add):
    add("--size", type=whole(1), default=128, help="side of the images, px")
    add("--batch_size", type=whole(1), default=8, help="images of each kind in a step, over all processes")
    add("--n_epochs", type=whole(), default=200, help="epochs at the full learning rate")
    add("--n_epochs_decay", type=whole(), default=0, help="epochs of linear decay to 0 after them")
    add("--lr", type=number(0), default=2e-4, help="Adam's learning rate")
    add("--beta1", type=number(0, 0.999), default=0.5, help="Adam's momentum")
    add("--ema", type=number(0, 0.5), default=0.2,
        help="mean age of the averaged weights used in tests, as a share of the steps so far; 0 = none")
    _add_switch(add, "no_flip", "do not flip images left-right")
    add("--crf_bias", type=number(),
        help="of the colour CRF that teaches G_seg and, in tests and photo.py, refines masks: added to every pixel's "
             "logit, more makes larger masks [the least of 0, .5, 1 whose masks of training crops fill their boxes]")
    add("--amp", action=argparse.BooleanOptionalAction,
        help="convolutions in bfloat16, losses in float32 [where the hardware has units for it]; --no-amp: all in "
             "float32, which is TF32 in the convolutions of GPUs that have it")
    add("--compile", action="store_true", help="networks through torch.compile; the first steps take minutes")


def _add_method(add, own):
    """The method's own options: the type of a default is that of the option, False a switch."""
    for name, (default, least, text) in own.items():
        if default is False:
            _add_switch(add, name, text)
        else:
            kind = {int: whole, float: number}.get(type(default))
            bounds = () if least is None else (least,)
            add(f"--{name}", type=kind(*bounds) if kind else str, default=default, help=text)


def _add_switch(add, name, text):
    """--NAME and, not in --help, its opposite, for what --demo or --paper switched on: --no-NAME, or --X of --no_X."""
    add(f"--{name}", action="store_true", help=text)
    opposite = name.removeprefix("no_") if name.startswith("no_") else f"no-{name}"
    add(f"--{opposite}", action="store_false", dest=name, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _add_output(add):
    add("--print_freq", type=whole(1), default=20, help="steps between lines of the log")
    add("--display_freq", type=whole(1), default=500, help="steps between sample grids")
    add("--save_latest_freq", type=whole(1), default=500, help="steps between checkpoints")
    add("--val_freq", type=whole(1), default=500, help="steps between validations, where val/ has masks")
    add("--tensorboard", action="store_true", help="log for TensorBoard too, whose package this takes")
    add("--keep", type=whole(), default=1, help="checkpoints before the latest to keep")
    add("--on_collapse", choices=("warn", "stop"), default="warn",
        help="what to do when masks stay empty, full or all the same")


def parse(argv):
    """Options of a command line; with --resume, those of the checkpoint where the command line gives none.

    Returns (args, checkpoint or None). Raises UserError or OSError, in one line, where they do not fit.
    """
    first = argparse.ArgumentParser(prog="train.py", usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False)
    first.add_argument("--method", "--mode", choices=tuple(methods.METHODS), default="seigan")
    first.add_argument("--name", type=plain_name)
    first.add_argument("--checkpoints_dir", default="checkpoints")
    first.add_argument("--config")
    for flag in ("--resume", "--demo", "--paper"):
        first.add_argument(flag, action="store_true")
    known, _ = first.parse_known_args(argv)
    checkpoint = _latest_checkpoint(known) if known.resume and known.name else None
    repeated = _config(known) if known.config else {}
    method = checkpoint["method"] if checkpoint else repeated.get("method", known.method)
    parser = get_parser(method)
    if known.demo:
        set_defaults(parser, DEMO | methods.declared(method).get("DEFAULTS", {}))
    if known.paper:
        half = parser.get_default("n_epochs") // 2
        set_defaults(parser, {"n_epochs": half, "n_epochs_decay": half} | (letter(method) or {}))
    if repeated:
        _check_values(parser, repeated, known.config)
        set_defaults(parser, EARLIER | repeated)
    if checkpoint:
        args = _resumed(parser, argv, checkpoint["options"])
    else:
        args = parser.parse_args(argv)
        if args.method != method:
            raise UserError(f"--method is {method} in {known.config}, got {args.method}: leave out one of the two")
        if os.path.exists(latest_path(args)):
            raise UserError(f"{run_folder(args)} already holds a run: --resume goes on with it, "
                            "another --name begins a new one")
    _check(args)
    if args.amp is None:
        args.amp = has_bfloat16(pick_device(args.device))
    return args, checkpoint


def _latest_checkpoint(args):
    """The checkpoint of the run to go on with. UserError, which names the one before it, if it cannot be used."""
    from running.checkpoint import MOST, check_model, load_checkpoint

    path = latest_path(args)
    try:
        checkpoint = load_checkpoint(path)
        check_model(checkpoint, path)
    except UserError as error:
        raise UserError(f"{error}; {older_remedy(args)}") from error
    options, config = checkpoint.get("options"), checkpoint["config"]
    if not isinstance(options, dict) or any(options.get(k) and options[k] != config.get(k, options[k]) for k in MOST):
        raise UserError(f"{path} holds no options of a run of train.py, so none can go on")
    return checkpoint


def _config(args):
    """The options in a config.json, but for those that say where a run lies and when it ends."""
    if args.resume or args.demo or args.paper:
        raise UserError("--config brings all options of its run, and --resume, --demo and --paper do not go with it")
    options = read_json(args.config, "give the config.json of a run of train.py", options=dict)["options"]
    if options.get("method") not in [*methods.METHODS]:
        raise UserError(f"{args.config} names no method of {', '.join(methods.METHODS)}")
    return {k: v for k, v in options.items() if k not in ("name", "checkpoints_dir", "config", "resume", "max_minutes")}


def _check_values(parser, values, source):
    """UserError where one of {option: value} is no option or not a value of it. source: what to blame."""
    actions = {action.dest: action for action in reversed(parser._actions)}
    for key, value in values.items():
        if key not in actions:
            raise UserError(f"{source} has --{str(key)[:50]}, which train.py does not have: other code wrote it")
        if not _is_value(actions[key], value):
            raise UserError(f"{source}'s --{key} is {str(value)[:50]}, which is no value of that option: it is "
                            "damaged, or not from train.py")


def older_remedy(args):
    """What to do where latest.pt is of no use."""
    older = previous(run_folder(args))
    if not older:
        return "begin a new run under another --name"
    return f"the one before it, {os.path.basename(older[0])}, can be renamed latest.pt"


def _resumed(parser, argv, saved):
    """The options of a resumed run: `saved`, but for what `argv` gives and may change, and where the run lies."""
    known = {action.dest for action in parser._actions}
    saved = {key: value for key, value in EARLIER.items() if key in known} | saved
    _check_values(parser, {key: value for key, value in saved.items() if key in known}, "the checkpoint")
    parser.set_defaults(**{key: value for key, value in saved.items() if key != "checkpoints_dir"})
    args = parser.parse_args(argv)
    for key, value in vars(args).items():
        if key not in RESUMABLE and value != saved.get(key):
            raise UserError(f"--{key} was {saved.get(key)} when this run began, got {value}: "
                            "leave it out, or begin a new run under another --name")
    return args


def _is_value(action, value):
    """Whether the option could have this value."""
    if value is None or action.nargs == 0:  # a switch, also with its --no-
        return value is None and action.default is None or type(value) is bool
    try:
        return type(value) in (int, float, str) and (action.type or str)(str(value)) == value \
            and (not action.choices or value in action.choices)
    except argparse.ArgumentTypeError:
        return False


def _check(args):
    """UserError where options contradict each other or the machine."""
    if args.paper and letter(args.method) is None:
        papers = [name for name in methods.METHODS if letter(name) is not None]
        raise UserError(f"--paper is for {', '.join(papers)}: no paper has method {args.method}")
    if args.dataroot is None:
        raise UserError("--dataroot is missing: the folder that `python prepare.py` made, or use --demo")
    if args.size % 4:
        raise UserError(f"--size must be a multiple of 4, got {args.size}")
    if args.n_epochs + args.n_epochs_decay == 0:
        raise UserError("--n_epochs and --n_epochs_decay are both 0: nothing to train")
    problem = methods.load(args.method).problem(args)
    if problem:
        raise UserError(problem)
    file = vars(args).get("vgg_weights")
    if file and os.path.exists(file):  # else the method says what else there is
        try:
            check_archive(file)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"--vgg_weights {file} holds no weights ({error}): give what torchvision's own files "
                            "hold") from error
    pick_device(args.device)
    if args.tensorboard and not find_spec("tensorboard"):
        raise UserError("--tensorboard takes a package that is not installed: pip install tensorboard")


def run_folder(args):
    return os.path.join(args.checkpoints_dir, args.name)


def latest_path(args):
    return os.path.join(run_folder(args), "latest.pt")
