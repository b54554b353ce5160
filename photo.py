"""Cut, remove, paste, move in your own photographs, at the photographs' own size.

    python photo.py cut dog.jpg --name dogs --box 820,410,600,450
    python photo.py remove dog.jpg --name dogs --box 820,410,600,450
    python photo.py paste dog.jpg --name dogs --box 820,410,600,450 --background beach.jpg --at 100,900
    python photo.py move dog.jpg --name dogs --box 820,410,600,450 --at 100,900
    python photo.py cut --images photos --boxes detect --name dogs --out cutouts
    python photo.py cut dog.jpg --mask corrected.png             # your own mask: then cut needs no model
    python photo.py boxes photos --out boxes.html                # a page on which to draw boxes
    python photo.py export --name dogs --out exported            # the generators for other programs
    python photo.py export --weights --name dogs --out dogs.pt   # to share: then --weights dogs.pt for --name dogs

Results keep the photograph's name, in a folder a kind: OUT/cut/dog.jpg.png, OUT/cut_mask/dog.jpg.png; so in removed,
removed_mask, pasted, coarse (z), pasted_mask, moved, moved_mask; those of its second object end in _2. Each of several
objects is moved in a result of its own. Masks have 255 for the object, values between for its soft edge. From Python:
photos/edit.py.
"""
import argparse
import os
import sys
import time
from pathlib import Path

from photos import files
from running import options
from running.options import names, number, numbers, whole

COMMANDS = {"cut": "the object alone, with soft edges, and its mask", "remove": "the photograph without the object",
            "paste": "the object on a background", "move": "the object elsewhere in its photograph"}
MOST_PX = 1000  # by which a mask is widened: its time grows with them


def get_args_parser():
    parser = options.make_parser("photo.py", __doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for command, text in COMMANDS.items():
        add = options.add_command(commands, command, text)
        add_photographs(add.add_argument_group("photographs"), command)
        add_options(add, command)
    add = options.add_command(commands, "export", "the generators as torch.export programs and ONNX").add_argument
    options.add_trained(add, nargs="?", const=True, help="without FILE: write the weights alone, to share, and a card")
    add("--out", required=True, metavar="DIR|FILE.pt", help="folder for the programs, file for the weights")
    add("--data", metavar="TEXT", help="for the card: what the model was trained on")
    add("--licence", metavar="TEXT", help="for the card: of the data and the weights")
    add = options.add_command(commands, "boxes", "a page to draw boxes on, for --boxes and prepare.py").add_argument
    add("images", metavar="DIR", help="the folder of photographs; the page shows them from where they are")
    add("--out", default="boxes.html", metavar="FILE", help="the page, which a browser opens from disk")
    add("--overwrite", action="store_true", help="replace a page that exists; boxes drawn on it are kept")
    return parser


def add_photographs(group, command):
    """The options that say which photographs, which objects in them, and where to."""
    one = group.add_mutually_exclusive_group(required=True).add_argument
    one("image", nargs="*", default=[], help="the photograph, or several of a folder")
    one("--images", metavar="DIR", help="a folder of photographs in place of one")
    one = group.add_mutually_exclusive_group(required=True).add_argument
    one("--box", type=numbers(4), action="append", metavar="X,Y,W,H",
        help="around the object, px of the upright photograph; give it again for further objects")
    one("--boxes", metavar="FILE|DIR|detect",
        help="boxes of many photographs, of any format that `prepare.py boxes` knows or the .jsonl of `prepare.py "
             "detect`; detect = look for objects")
    one("--mask", action="append", metavar="FILE",
        help="your own mask in place of a box and of the model's mask, so that cut needs no model: white = object, "
             "grey = its soft edge, as large as the upright photograph; give it again for further objects")
    one("--masks", metavar="DIR",
        help="such masks of many photographs, with their names: dog.png or dog.jpg.png")
    add = group.add_argument
    add("--classes", type=names, default=(), metavar="A,B", help="only objects of these classes")
    add("--score", type=number(0, 1), default=0.8, help="least score of a detected object, also of a .jsonl's, 0..1")
    add("--detector_weights", metavar="FILE", help="of torchvision's Faster R-CNN [downloaded once]")
    if command == "paste":
        add("--background", required=True, metavar="FILE|DIR",
            help="what to paste onto; from a folder one is drawn for each object")
    if command in ("paste", "move"):
        where = "once moved, px" if command == "move" else "on the background, px [in the middle, as large as it is]"
        add("--at", type=numbers(2, 4), required=command == "move", metavar="X,Y[,W,H]",
            help=f"the object's box (with --mask: the mask's extent) {where}")


def add_options(parser, command):
    """The options of the model, the result and the mask."""
    add = parser.add_argument_group("model").add_argument
    options.add_trained(add)
    options.add_device(add)
    add("--seed", type=whole(), default=0, help="of the noise and of the choice of backgrounds")
    add = parser.add_argument_group("result").add_argument
    add("--out", metavar="DIR|FILE", help="folder for the results; of one photograph also a file such as x.png "
        "[results/NAME/photos]")
    add("--format", choices=tuple(f for f in files.FORMATS if (command, f) != ("cut", "jpg")), default="png",
        help="of images" + "; jpg loses detail everywhere" * (command != "cut"))
    add("--overwrite", action="store_true", help="replace results that exist")
    if command in ("remove", "paste"):
        add("--raw", action="store_true", help="change the whole crop as the network does, not only the object's place")
    if command in ("remove", "move"):
        add("--detail", action=argparse.BooleanOptionalAction, default=True,
            help="give the fill detail copied from around the hole [yes]")
    group = parser.add_argument_group("mask")
    group.add_argument("--refine", action=argparse.BooleanOptionalAction, default=True,
                       help="draw the mask to the photograph's colours inside the box, by a colour CRF [yes]")
    widened = {"cut": 0, "paste": 0, "remove": "one pixel of the crop", "move": "0; the hole one pixel of the crop"}
    one = group.add_mutually_exclusive_group().add_argument
    one("--dilate", type=whole(0, MOST_PX), metavar="PX",
        help=f"widen the mask, px of the photograph [{widened[command]}]")
    one("--erode", type=whole(0, MOST_PX), metavar="PX", help="narrow the mask, px of the photograph")


if __name__ == "__main__":
    options.answer_help("photo.py", lambda argv: get_args_parser().parse_args(argv))  # as torch takes seconds to import

from tqdm import tqdm

from crops.detector import load_detector
from images import UserError, printable, written_whole
from photos import boxes, edit, export, jobs
from running.card import model_card
from running.checkpoint import build_model, load_checkpoint, load_model, save_checkpoint, shared
from running.folder import alone_in
from running.origin import revision


def edit_photographs(args):
    """Work through the photographs; returns the exit code: 1 if some failed."""
    started = time.perf_counter()
    is_own = args.command == "cut" and (args.mask or args.masks)  # then a model may be named, but is not needed
    path = options.checkpoint_path(args) if args.name or args.weights or not is_own else ""
    args.out = args.out or os.path.join("results", options.results_name(args) if path else "", "photos")
    jobs.arrange(args)
    jobs.check(args)
    todo, failures = jobs.find_jobs(args)
    device = options.pick_device(args.device)
    model = load_model(path, device) if path else None
    if args.command in ("remove", "move"):
        edit.require_inpainting(model)
    worker = jobs.Worker(args, model, load_detector(args.detector_weights, device) if args.boxes == "detect" else None)
    with alone_in(args.out, "choose another --out"):
        counts = work_through(args, todo, worker, failures)
    print(f"{counts[True]} of {len(todo)} photographs in {time.perf_counter() - started:.1f} s; see "
          + (args.file or args.out)
          + f"; {counts[False]} had their results already (--overwrite does them anew)" * bool(counts[False]))
    if failures:
        print(f"photo.py: {len(failures)} failed:", *map(printable, failures), sep="\n  ", file=sys.stderr)
    return 1 if failures else 0


def work_through(args, todo, worker, failures):
    """Do all photographs: {True: how many were written, False: had their results}; failures get a line each."""
    counts = {True: 0, False: 0}
    for job in tqdm(todo, desc=args.command, unit="photo", disable=None if len(todo) > 1 else True):
        try:
            counts[worker.run(job)] += 1
        except (UserError, OSError) as error:
            if args.image:
                raise
            failures.append(f"{job.file}: {error}")
    return counts


def export_weights(args):
    """Write the weights to share, and their card."""
    args.weights, (stem, ending) = None, os.path.splitext(args.out)
    path = options.checkpoint_path(args)
    if ending != ".pt":
        raise UserError(f"--out must be a file that ends in .pt, for the weights, got {args.out}")
    with alone_in(os.path.dirname(args.out) or ".", "choose another --out"):
        for file in (args.out, f"{stem}.md"):
            if os.path.lexists(file):
                raise UserError(f"{file} exists: choose another --out")
        state = load_checkpoint(path)
        save_checkpoint(args.out, shared(build_model(state, path), state))
        with written_whole(f"{stem}.md") as file:
            file.write(model_card(args.out, state, args).encode())
    print(f"{args.out}: {os.path.getsize(args.out) / 1e6:.1f} MB; {stem}.md is its card")


def export_programs(args):
    """Export and report; returns the exit code: 1 if a program differs from the model."""
    if args.data or args.licence:
        raise UserError("--data and --licence are for the card of weights: --weights writes them")
    path = options.checkpoint_path(args)
    state = load_checkpoint(path)
    model, about = build_model(state, path), {"mode": state["method"], "revision": revision()}
    with alone_in(args.out, "choose another --out"):
        differences = export.export_model(model, args.out, None, about)
    for name, difference in differences.items():
        print(f"{os.path.join(args.out, name)}:", "written; onnxruntime, which would check it, is not installed"
              if difference is None else f"differs from the model by at most {difference:.1e}")
    if not export.has("onnx", "onnxscript"):
        print("no ONNX: it takes the packages onnx and onnxscript")
    return 1 if any(d is not None and not d < export.TOLERANCE for d in differences.values()) else 0


def write_boxes_page(args):
    """Write the page; returns the exit code: 1 if photographs were left out."""
    count, problems = boxes.write_page(args.images, args.out, args.overwrite)
    address = Path(args.out).absolute().as_uri()
    print(f"{args.out} shows {count} photographs: open {address} in a browser, draw, and save boxes.csv")
    if problems:
        print(f"photo.py: {len(problems)} left out:", *map(printable, problems), sep="\n  ", file=sys.stderr)
    return 1 if problems else 0


def run(argv):
    argv = list(argv)
    for i in range(len(argv) - 1, 0, -1):  # argparse would take -40,200 for an option
        if argv[i - 1] in ("--box", "--at") and argv[i][:1] == "-":
            argv[i - 1:i + 1] = [f"{argv[i - 1]}={argv[i]}"]
    args = get_args_parser().parse_args(argv)
    if args.command == "export":
        return export_weights(args) if args.weights is True else export_programs(args)
    return write_boxes_page(args) if args.command == "boxes" else edit_photographs(args)


def main(argv=None):
    """`python photo.py COMMAND ...`. Returns the exit code."""
    return options.command("photo.py", run, argv, "stopped: what was finished stays")


if __name__ == "__main__":
    sys.exit(main())
