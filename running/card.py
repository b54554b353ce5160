"""The model card beside weights that are shared: what someone who was not there must know of them. Markdown."""
import hashlib
import os
from pathlib import Path
from string import Template

from images import is_count, is_number, parse_json, printable

RUN = {"commands": [str], "revision": str}  # what is read of config.json and of metrics.json, see `images.fits`
FIGURES = {"step": is_count, "checkpoint": str, "split": str, "n_masks": is_count, "iou": is_number,
           "refined": {"iou": is_number}}
CARD = Template("""\
# $name

The generators of a model of method $method, trained by an implementation of SEIGAN (arXiv 1811.07630), in float16:

    python photo.py cut dog.jpg --weights $file --box 820,410,600,450

- Data: $data
- Licence: $licence
- Trained on its part train/, seed $seed, $step steps
- IoU of the masks: $iou
- Revision of the code: $revision
- SHA-256 of $file: $sha256

Made by

$commands

## What it cannot do

- It knows one class of objects, that of its data, and no other; it needs a box around each and finds none itself.
- It sees $size x $size px: each object, with its surroundings, is made that small; what fills its place is no finer.
$drawn""")
DRAWN = "- Its data are drawings, made by `train.py --demo`: of photographs it has seen none, and does badly on them.\n"


def model_card(path, state, args):
    """The card of the weights at `path`, text. state: the checkpoint that they are from; args: options of `photo.py
    export`: data and licence, texts or None, and the run's."""
    options, run = state.get("options", {}), _read(os.path.join(args.checkpoints_dir, args.name, "config.json"), RUN)
    told = {
        "name": args.name, "file": os.path.basename(path), "method": state["method"], "step": state["step"],
        "seed": options.get("seed", "not known"), "size": state["config"]["size"], "iou": _iou(state, args),
        "data": args.data or "not stated", "licence": args.licence or "not stated",
        "revision": run and run["revision"] or "not known",
        "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}
    commands = "\n".join(f"    python {printable(line)}" for line in run["commands"]) if run else "    not known"
    return CARD.substitute({key: printable(value) for key, value in told.items()}, commands=commands,
                           drawn=DRAWN if options.get("demo") is True else "")


def _iou(state, args):
    """What test.py found, if it looked at this very checkpoint."""
    figures = _read(os.path.join("results", args.name, "metrics.json"), FIGURES)
    if not figures or (figures["step"], figures["checkpoint"]) != (state["step"], args.checkpoint):
        return "not measured"
    return (f"{figures['iou']:.3f} raw, {figures['refined']['iou']:.3f} refined, of {figures['n_masks']} objects of "
            f"{figures['split']}/, before the weights became float16")


def _read(path, form):
    """The JSON at `path`; None if there is none of this form."""
    return parse_json(Path(path).read_bytes(), form) if os.path.isfile(path) else None
