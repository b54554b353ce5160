"""How fast crops are cut and a model is evaluated, beside the least work that either takes. Not a test; by hand:

    python -m benchmarks.files crops --images DIR --annotations FILE.json     # further options as of `prepare.py coco`
    python -m benchmarks.files test --size 64 --ngf 16 --crops 1000

crops: a COCO-style set, against processes that only decode the same photographs with Pillow and resize them to
128 x 128. test: a model with random weights on a demo set, against its networks' forward passes alone. What is
compared runs in turns, several times; ratios are of times within one turn, the table shows medians over the turns.
"""
import argparse
import contextlib
import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from statistics import median

from running.options import answer_help


def get_args_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    crops = commands.add_parser("crops", help="python prepare.py coco against decoding and resizing")
    crops.add_argument("--images", required=True, help="folder that the file names refer to")
    crops.add_argument("--annotations", required=True, help="COCO instances JSON")
    crops.add_argument("--processes", type=int, default=2, help="of either")
    test = commands.add_parser("test", help="python test.py against the networks alone")
    test.add_argument("--crops", type=int, default=1000, help="test crops")
    test.add_argument("--size", type=int, default=64, help="px, side of the model's images")
    test.add_argument("--ngf", type=int, default=16, help="channels of the generators")
    test.add_argument("--seg_blocks", type=int, default=4, help="residual blocks of G_seg")
    test.add_argument("--batch_size", type=int, default=16, help="images at a time")
    for command in (crops, test):
        command.add_argument("--repeats", type=int, default=5, help="turns")
    return parser


if __name__ == "__main__":
    answer_help("benchmarks.files", get_args_parser().parse_args)  # here, as torch takes seconds to import

import torch
from PIL import Image

import data
import prepare
import test as entry
from crops import build, demo
from networks import depth
from running.checkpoint import save_checkpoint
from seigan import SEIGAN

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def seconds(work):
    """Wall time of work(), whose prints are swallowed."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        work()
    return time.perf_counter() - started


def start_up(module):
    """Seconds to start Python and import `module`."""
    return seconds(lambda: subprocess.run([sys.executable, "-c", f"import {module}"], cwd=ROOT, check=True))


def table(turns, base):
    """Print the median of each column of `turns` (dicts {name: seconds}), and column `base` as a share of it."""
    print(f"{'':32}  seconds  {base} / this")
    for name in turns[0]:
        share = median(turn[base] / turn[name] for turn in turns)
        print(f"{name:32} {median(turn[name] for turn in turns):8.2f}  {share:.2f} (inverse {1 / share:.2f})")


# --- crops ---


def decode_and_resize(paths, how):
    for path in paths:
        with Image.open(path) as image:
            image.convert("RGB").resize((128, 128), how)


def decode_in_processes(paths, how, count):
    """The least work: `count` plain processes, each with its share of the files."""
    workers = [multiprocessing.Process(target=decode_and_resize, args=(paths[i::count], how)) for i in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def time_command(options, folder, count):
    """Run `prepare.py coco` into `folder`. Returns (seconds in all, seconds of its photograph phase, the jobs)."""
    phase = []
    cut_jobs = build.cut_jobs

    def timed(jobs, *rest):
        lines = []
        phase.append((seconds(lambda: lines.extend(cut_jobs(jobs, *rest))), jobs))
        return lines

    build.cut_jobs = timed
    whole = seconds(lambda: prepare.main(["coco", *options, "--out", folder, "--num_workers", str(count)]))
    build.cut_jobs = cut_jobs
    return whole, *phase[0]


def bench_crops(args, options):
    options = ["--images", args.images, "--annotations", args.annotations, *options]
    turns = []
    # all is removed at the end: ext4 is slow to create files for a while after it has deleted some
    with tempfile.TemporaryDirectory() as folder:
        _, _, jobs = time_command(options, f"{folder}/first", args.processes)  # warms the disk's cache
        paths = [job.photo.path for job in jobs]
        for i in range(args.repeats):
            turn = {f"decode and resize, {how.name.lower()}":
                    seconds(lambda how=how: decode_in_processes(paths, how, args.processes))
                    for how in (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)}
            whole, phase, _ = time_command(options, f"{folder}/{i}", args.processes)
            turns.append(turn | {"prepare.py coco: photographs": phase, "prepare.py coco: all but start-up": whole,
                                 "start-up (imports)": start_up("prepare")})
    crops = sum(len(job.objects) + len(job.backgrounds) for job in jobs)
    print(f"{len(paths)} photographs, {crops} crops, {args.processes} processes, {args.repeats} turns")
    table(turns, "decode and resize, bicubic")


# --- test ---


def make_run(folder, args):
    """A demo set with args.crops test crops and a model with random weights, as train.py leaves them."""
    root = os.path.join(folder, "set")
    demo.write_demo(root, counts={"train": {"objects": 200, "backgrounds": 20},
                                  "test": {"objects": args.crops, "backgrounds": args.crops}})
    model = SEIGAN(size=args.size, ngf=args.ngf, ndf=2 * args.ngf if args.ngf < 64 else 64,
                   n_layers_D=depth(args.size), seg_blocks=args.seg_blocks)
    os.makedirs(os.path.join(folder, "checkpoints", "bench"))
    save_checkpoint(os.path.join(folder, "checkpoints", "bench", "latest.pt"),
                    {"method": "seigan", "step": 0, "config": model.config, "options": {"dataroot": root},
                     "networks": model.state(), "averaged": {}})
    return root, model


def read_batches(root, size, batch_size):
    """x, y and boxes of the test split, as lists of tensors."""
    crops = data.Crops(root, "test", size)
    columns = (list(map(crops.object, crops.stems)), list(map(crops.background, crops.background_stems)),
               list(map(crops.box, crops.stems)))  # make_run makes as many of either kind
    return [tuple(torch.stack(column[start : start + batch_size]) for column in columns)
            for start in range(0, len(crops.stems), batch_size)]


@torch.inference_mode()
def run_networks(model, x, y, box):
    """Every forward pass that the evaluation of a batch takes."""
    made = model.pictures(x, y, box)
    model.scores(made)
    model.enhance(x)
    model.inpaint(y, made["mask"])


def bench_test(args, _):
    with tempfile.TemporaryDirectory() as folder:
        root, model = make_run(folder, args)
        model.eval()
        batches = read_batches(root, args.size, args.batch_size)

        def forward():
            for batch in batches:
                run_networks(model, *batch)

        def evaluate(results, *options):
            entry.main(["--name", "bench", "--checkpoints_dir", f"{folder}/checkpoints", "--gpu", "-1",
                        "--results_dir", f"{folder}/{results}", "--batch_size", str(args.batch_size), *options])

        turns = []
        run_networks(model, *batches[0])
        for i in range(args.repeats):
            turns.append({"forward passes alone": seconds(forward),
                          "test.py": seconds(lambda i=i: evaluate(f"with{i}")),
                          "test.py --no_images": seconds(lambda i=i: evaluate(f"without{i}", "--no_images")),
                          "start-up (imports)": start_up("test")})
    print(f"{args.crops} crops, {args.size} px, ngf {args.ngf}, batches of {args.batch_size}, "
          f"{torch.get_num_threads()} threads, {args.repeats} turns; test.py without its start-up")
    table(turns, "forward passes alone")


def main():
    args, options = get_args_parser().parse_known_args()
    {"crops": bench_crops, "test": bench_test}[args.command](args, options)


if __name__ == "__main__":
    main()
