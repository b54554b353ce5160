"""Minutes of one core until masks are useful: a training from its first step, its masks scored along the way.

    python -m benchmarks.quality --dataroot datasets/butterflies --minutes 10 \\
        --size 64 --ngf 16 --ndf 32 --seg_blocks 4 --batch_size 4 --n_epochs 32

What quality does not know goes to train.py, such as --method. IoU is test.py's, of the raw masks of the averaged model
on test/. Minutes are those of the training steps alone, on one thread of a CPU, without the scoring. Nothing is chosen
on these masks, and the run is thrown away.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from images import UserError
from running.options import command, make_parser, number, whole

PROG = "python -m benchmarks.quality"
TRAIN = Path(__file__).parents[1] / "train.py"
USEFUL = 0.70, 0.75, 0.80, 0.85


def curve(lines, batch_size):
    """[(minutes, step, IoU)] of a run's log. lines: its dicts, whose images_per_s are means since the line before."""
    minutes, last, found = 0.0, 0, []
    for line in lines:
        if "images_per_s" in line:
            minutes += (line["step"] - last) * batch_size / line["images_per_s"] / 60
            last = line["step"]
        elif "val_iou" in line:
            found.append((minutes, line["step"], line["val_iou"]))
    return found


def report(found, minutes):
    """The lines to print: when each IoU was first reached, and what there was after so many minutes."""
    lines = []
    for iou in USEFUL:
        first = next(((m, step) for m, step, value in found if value >= iou), None)
        when = f"after {first[0]:.1f} minutes, step {first[1]}" if first else "not reached"
        lines.append(f"  IoU {iou:.2f}  {when}")
    within = [(m, step, value) for m, step, value in found if m <= minutes]
    if within:
        _, step, value = within[-1]
        lines.append(f"  within {minutes:g} minutes: IoU {value:.3f}, step {step}")
    return "\n".join(lines)


def run(argv):
    parser = make_parser(PROG, __doc__.splitlines()[0])
    parser.add_argument("--dataroot", required=True, help="crops with train/ and test/, which has masks")
    parser.add_argument("--minutes", type=number(0), default=5.0, help="minutes at which the IoU is told")
    parser.add_argument("--every", type=whole(1), default=100, help="steps between scorings")
    parser.add_argument("--batch_size", type=whole(1), default=8, help="as for train.py")
    args, rest = parser.parse_known_args(argv)
    root = Path(args.dataroot).resolve()
    if not (root / "test" / "masks").is_dir():
        raise UserError(f"no {root / 'test' / 'masks'}: masks cannot be scored without true ones")
    with tempfile.TemporaryDirectory() as folder:
        for name, split in (("train", "train"), ("val", "test")):
            os.symlink(root / split, Path(folder, name))
        words = ["--dataroot", folder, "--checkpoints_dir", folder, "--name", "quality", "--gpu", "-1", "--num_threads",
                 "0", "--batch_size", args.batch_size, "--print_freq", args.every, "--val_freq", args.every, *rest]
        done = subprocess.run([sys.executable, str(TRAIN), *map(str, words)], env=os.environ | {"OMP_NUM_THREADS": "1"})
        if done.returncode:
            return done.returncode
        with open(Path(folder, "quality", "log.jsonl"), encoding="utf-8") as file:
            print(report(curve(map(json.loads, file), args.batch_size), args.minutes))


if __name__ == "__main__":
    sys.exit(command(PROG, run))
