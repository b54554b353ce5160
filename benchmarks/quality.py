"""Minutes of one core until a model is useful, from its first training step, of one method or of several:

    python -m benchmarks.quality --dataroot datasets/butterflies --methods seigan boxes supervised --minutes 10 \\
        --figure quality.svg --size 64 --ngf 16 --ndf 32 --seg_blocks 4 --batch_size 4

What quality does not know goes to train.py. Each run is stopped after --minutes by the clock, on one thread of a CPU:
nothing else should be running. The minutes that are told are those of its steps alone. Its checkpoints, 95 MB each
for the small model, stay in the folder for temporary files until they are scored as test.py does it, on test/: IoU of
the raw masks of the averaged model and, where the method has a G_inp, the error of the fills of its first U-Net
beside Laplace's equation. Nothing is chosen by these figures, and the runs are thrown away.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from evaluation import charts
from images import UserError, written_whole
from running import methods
from running.options import command, make_parser, number, whole

PROG = "python -m benchmarks.quality"
TRAIN = Path(__file__).parents[1] / "train.py"
USEFUL = 0.70, 0.75, 0.80, 0.85
STYLE = ("<style>.chart{font:11px sans-serif;background:#fff}.chart text{fill:#555}.chart .title{fill:#111;"
         "font-size:13px}.chart polyline,.chart path{fill:none;stroke-width:1.6}.chart .grid{stroke:#ddd;"
         "stroke-width:1}</style>")


class Point(NamedTuple):
    """A checkpoint: minutes of training, step, mean IoU, and the MAE in holes of the first U-Net and of Laplace's
    equation, None without a G_inp."""
    minutes: float
    step: int
    iou: float
    fill: float | None
    laplace: float | None


def clock(lines, batch_size):
    """{step: minutes of training} of a log. lines: its dicts, whose images_per_s are means since the one before."""
    minutes, last, found = 0.0, 0, {0: 0.0}
    for line in lines:
        if "images_per_s" in line:
            minutes += (line["step"] - last) * batch_size / line["images_per_s"] / 60
            last = line["step"]
            found[last] = minutes
    return found


def train(method, args, rest, folder):
    """Train one method into `folder`/METHOD. UserError if train.py ends with an error."""
    words = ["--dataroot", args.dataroot, "--checkpoints_dir", folder, "--name", method, "--method", method,
             "--gpu", -1, "--num_threads", 0, "--batch_size", args.batch_size, "--print_freq", args.every,
             "--save_latest_freq", args.every, "--keep", 10**6, "--val_freq", 10**9, "--display_freq", 10**9,
             "--max_minutes", args.minutes]
    done = subprocess.run([sys.executable, str(TRAIN), *map(str, words), *rest],
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode not in (0, 124):  # 124: the minutes are over
        raise UserError(f"train.py --method {method} ended with exit code {done.returncode}")


def curve(run, args):
    """The `Point`s of a run, of every checkpoint that segments, by step."""
    from data import Crops  # here, as they import torch, and --help need not wait for it
    from evaluation.evaluate import evaluate, summarise
    from running.checkpoint import build_model, load_checkpoint

    log = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    minutes, found = clock(map(json.loads, log), args.batch_size), []
    for path in sorted([*run.glob("step_*.pt"), run / "latest.pt"]):
        state = load_checkpoint(path)
        if state["step"] in minutes and state["step"] > state["config"].get("first_steps", -1):  # else no masks yet
            model = build_model(state, path)
            needs_y = "backgrounds" in methods.load(state["method"]).NEEDS
            crops = Crops(args.dataroot, "test", model.size, needs_y)
            figures = summarise([record.row for record in evaluate(model, crops)])
            fills = [figures["inpainting"][fill]["mae"] for fill in ("G_inp_first", "diffusion")]
            found.append(Point(minutes[state["step"]], state["step"], figures["iou"], *fills))
    return sorted(found, key=lambda point: point.step)


def first(points, reached):
    """"MINUTES" of the first point for which reached(point), "-" if there is none."""
    return next((f"{point.minutes:.1f}" for point in points if reached(point)), "-")


def table(curves):
    """{method: points} as Markdown: minutes until each IoU, and until fills are nearer than Laplace's equation's."""
    lines = ["| minutes until | " + " | ".join(f"IoU {iou:.2f}" for iou in USEFUL)
             + " | fills nearer than Laplace's | at the end: step, IoU |", "|---" * (len(USEFUL) + 3) + "|"]
    for method, points in curves.items():
        cells = [first(points, lambda point, iou=iou: point.iou >= iou) for iou in USEFUL]
        cells.append(first(points, lambda point: point.fill is not None and point.fill < point.laplace))
        end = f"{points[-1].step}, {points[-1].iou:.3f}" if points else "no masks yet"
        lines.append(f"| {method} | " + " | ".join([*cells, end]) + " |")
    return "\n".join(lines)


def figure(curves):
    """The curves as a file of SVG: IoU over minutes."""
    lines = {method: ([p.minutes for p in points], [p.iou for p in points])
             for method, points in curves.items() if points}
    svg = charts.chart("IoU on held-out crops", lines, span=(0, 1), axis="minutes of one core")
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{STYLE}", 1)


def run(argv):
    parser = make_parser(PROG, __doc__.splitlines()[0])
    parser.add_argument("--dataroot", required=True, help="crops with train/ and test/, which has masks")
    parser.add_argument("--methods", nargs="+", choices=tuple(methods.METHODS), default=["seigan"],
                        help="of train.py --method, one run each")
    parser.add_argument("--minutes", type=number(0), default=5.0, help="of each training")
    parser.add_argument("--every", type=whole(1), default=100, help="steps between checkpoints, which are scored")
    parser.add_argument("--batch_size", type=whole(1), default=8, help="as for train.py")
    parser.add_argument("--figure", metavar="FILE.svg", help="also draw IoU over minutes")
    args, rest = parser.parse_known_args(argv)
    if not os.path.isdir(os.path.join(args.dataroot, "test", "masks")):
        raise UserError(f"no {os.path.join(args.dataroot, 'test', 'masks')}: masks cannot be scored without true ones")
    curves = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in args.methods:
            train(method, args, rest, folder)
            curves[method] = curve(Path(folder, method), args)
    print(table(curves))
    if args.figure:
        with written_whole(args.figure) as file:
            file.write(figure(curves).encode())


if __name__ == "__main__":
    sys.exit(command(PROG, run))
