"""What a step costs, and what each option is worth, in one run on one machine.

    python -m benchmarks.step --gpu 0                     # everything, within 8 minutes
    python -m benchmarks.step                             # on a CPU where there is no GPU
    python -m benchmarks.step --gpu -1 --sizes 64 --batches 8 --parts steps
    python -m benchmarks.step --parts flops               # no clock: on any machine in seconds

An image is one pair x, y of a step. Steps of all rows alternate, so that what else runs on the machine slows every row
alike; figures are medians, and "x" medians of the ratios within a turn. GFLOP are torch's count of the convolutions and
matrix products, a multiplication and an addition being 2; "of peak" is their rate over the best that large convolutions
reached in this run in that dtype. CycleGAN's step (benchmarks/cyclegan.py) does another amount of arithmetic: "x
CycleGAN" compares GFLOP/s, each row's by its own count.
Memory is what a step adds at its peak to the machine's state before the model was built: on a GPU what torch allocated,
on a CPU the resident set of a process of its own, torch's libraries' first use included.
"""
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from multiprocessing import get_context

from running.options import add_device, answer_help, has_bfloat16, make_parser, number, pick_device, whole

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BOX = (0.1, 0.1, 0.8, 0.8)
PAPER = dict(ngf=64, ndf=64, seg_blocks=6, n_layers_D=0)  # 0: as the size asks
SMALL = dict(ngf=16, ndf=32, seg_blocks=4, n_layers_D=0)
# and their shares of --limit
PARTS = {"steps": 16, "compile": 10, "curves": 7, "inference": 3, "data": 2, "startup": 1, "flops": 1}
NAMES, OPTIONS = ("literal", "cyclegan", "ours"), ("amp", "teacher", "channels_last", "no_diffaug", "no_ema", "compile")
GPU_ONLY = ("compile", "curves")  # else when asked for
IMAGES = {"train": {"objects": 400, "backgrounds": 400}, "val": {"objects": 60, "backgrounds": 1}}


def get_args_parser():
    parser = make_parser("benchmarks.step", "What a training step costs, and what each option is worth.")
    add = parser.add_argument

    def wholes(text):
        return [whole(1)(part) for part in text.split(",")]

    add_device(add)
    add("--sizes", type=wholes, help="sides in px; else 128,64,256 on a GPU, 64 on a CPU")
    add("--batches", type=wholes, help="images of each kind in a step; else 8,32,1 on a GPU, 8,1 on a CPU")
    for name in PAPER:
        add(f"--{name}", type=whole(), help=f"as for train.py; else {PAPER[name]} on a GPU, {SMALL[name]} on a CPU")
    add("--seconds", type=number(0), default=30.0, help="of timing for the first table; a third for others")
    add("--limit", type=number(0), default=400.0, help="seconds for all parts, each its share; what is left is skipped")
    add("--rows", help="of the table of steps, separated by commas: literal, cyclegan, ours, or NAME+OPTION; else all")
    add("--memory", action="store_true", help="measure memory on a CPU too, in a process for each row")
    add("--threads", type=whole(1), help="of torch on a CPU; else torch's choice")
    add("--cpu_time", action="store_true", help="processor time, not the clock: for busy machines, with --threads 1")
    add("--parts", help=f"which tables, of {','.join(PARTS)}; else all, but on a CPU not {' and '.join(GPU_ONLY)}")
    return parser


if __name__ == "__main__":
    answer_help("benchmarks.step", get_args_parser().parse_args)  # here, as torch takes seconds to import

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import crf
from benchmarks.curves import print_curves
from benchmarks.cyclegan import CycleGAN, CycleGANTrainer
from benchmarks.literal import LiteralTrainer
from crops import demo
from data import Crops, StepSampler, UnpairedCrops, batches
from networks import depth
from seigan import SEIGAN, Trainer


def get_args():
    args = get_args_parser().parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.device = pick_device(args.device)
    on_cpu = args.device.type == "cpu"
    args.sizes = args.sizes or ([64] if on_cpu else [128, 64, 256])
    args.batches = args.batches or ([8, 1] if on_cpu else [8, 32, 1])
    args.parts = args.parts.split(",") if args.parts else [p for p in PARTS if not on_cpu or p not in GPU_ONLY]
    if unknown := set(args.parts) - PARTS.keys():
        get_args_parser().error(f"--parts {','.join(sorted(unknown))}: the parts are {', '.join(PARTS)}")
    for row in args.rows.split(",") if args.rows else ():
        name, *options = row.split("+")
        if name not in NAMES or not {*options} <= {*OPTIONS}:
            get_args_parser().error(f"--rows has {row}: rows are {', '.join(NAMES)}, with +{', +'.join(OPTIONS)}")
    for name, value in (SMALL if on_cpu else PAPER).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.clock = time.process_time if args.cpu_time else time.perf_counter
    args.network = {name: getattr(args, name) for name in PAPER}
    return args


# --- a step ---


def build_model(network, size, **options):
    torch.manual_seed(0)
    network = network | {"n_layers_D": network["n_layers_D"] or depth(size)}
    return SEIGAN(size=size, unet_downs=depth(size), box=BOX, **network, **options)


def images(size, batch, device):
    rng = torch.Generator().manual_seed(1)
    return (torch.rand(2, batch, 3, size, size, generator=rng) * 2 - 1).to(device).unbind()


def build_step(row, network, size, batch, device):
    """The step of a row, as a function without arguments that returns the log of its `train_step`."""
    name, *options = row.split("+")
    x, y = images(size, batch, device)
    box, amp = torch.tensor([BOX] * batch, device=device), "amp" in options
    if name == "cyclegan":
        model = CycleGAN(size, network["ngf"], network["ndf"], network["n_layers_D"] or depth(size)).to(device)
    else:
        model = build_model(network, size).to(device)
    if "channels_last" in options:
        model = model.to(memory_format=torch.channels_last)
        x, y = (image.contiguous(memory_format=torch.channels_last) for image in (x, y))
    if "compile" in options:
        for part in model.children():
            part.compile()
    if name == "cyclegan":
        trainer = CycleGANTrainer(model, amp=amp)
    else:
        trainer = Trainer(model, amp=amp, diffaug="no_diffaug" not in options, ema=0 if "no_ema" in options else 0.2)
        if "teacher" in options:
            trainer.teacher, trainer.step = crf.teach, 100  # from there on it starts from the averaged G_seg's mask
    trainer = LiteralTrainer(trainer) if name == "literal" else trainer
    return lambda: trainer.train_step({"x": x, "y": y, "box": box})


def main_rows(device):
    """The literal step, CycleGAN's, and ours without a teacher, last in the precision that is the default here."""
    bfloat16 = ["cyclegan+amp", "ours", "ours+amp"] if has_bfloat16(device) else ["ours"]
    return ["literal", "cyclegan", *bfloat16]


def all_rows(device):
    rows = main_rows(device)
    return rows + [f"{rows[-1]}+{option}" for option in ("teacher", "channels_last", "no_diffaug", "no_ema")]


# --- clocks and meters ---


def timed(function, device, clock=time.perf_counter):
    """Seconds of one call, with all that it set going on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = clock()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - begun


def by_turns(functions, args, seconds):
    """{name: function} -> {name: seconds of each call}, of calls by turns for `seconds`, at least three of each."""
    times, end = {name: [] for name in functions}, time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values()), default=3) < 3:
        for name, function in functions.items():
            times[name].append(timed(function, args.device, args.clock))
    return times


def speed_ratio(times, others):
    """How many times as fast as others, by the median of the ratios within a turn."""
    return statistics.median(other / own for own, other in zip(times, others, strict=True))


def attainable_rate(device, clock, dtype):
    """FLOP/s of the best of some large 3x3 convolutions, forwards."""
    best, (n, side) = 0.0, (2, 64) if device.type == "cpu" else (64, 64)
    with torch.no_grad():
        for channels in (64, 128, 256) if device.type == "cpu" else (128, 256, 512):
            for layout in (torch.contiguous_format, torch.channels_last):
                x = torch.randn(n, channels, side, side, device=device, dtype=dtype).contiguous(memory_format=layout)
                conv = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(device, dtype)
                conv = conv.to(memory_format=layout)
                seconds = min(timed(lambda conv=conv, x=x: conv(x), device, clock) for _ in range(8))
                best = max(best, 2 * 9 * channels**2 * n * side**2 / seconds)
    return best


def count_flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def peak_resident(row, network, size, batch):
    """Bytes that four steps add at their peak to a new process with torch; NaN where /proc does not say."""
    before = most_resident()
    step = build_step(row, network, size, batch, torch.device("cpu"))
    for _ in range(4):
        step()
    return most_resident() - before


def most_resident():
    try:  # not getrusage, whose figure a new process takes over from the one that started it
        with open("/proc/self/status", encoding="utf-8") as f:
            return next(1024 * float(line.split()[1]) for line in f if line.startswith("VmHWM:"))
    except OSError:
        return math.nan


def prepared(row, args, size, batch):
    """Build and warm a row. Returns (step, FLOP, bytes); the step is None where it does not fit the GPU."""
    device = args.device
    if device.type == "cpu":
        step = build_step(row, args.network, size, batch, device)
        flops = count_flops(step)
        if not args.memory:
            return step, flops, math.nan
        with get_context("spawn").Pool(1) as pool:
            return step, flops, pool.apply(peak_resident, (row, args.network, size, batch))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        step = build_step(row, args.network, size, batch, device)
        flops = 0 if "compile" in row else count_flops(step)
        for _ in range(5):
            step()
        return step, flops, torch.cuda.max_memory_allocated(device) - before
    except torch.cuda.OutOfMemoryError:
        return None, 0, 0  # the next row empties the cache, when nothing holds the failed step's tensors any more


# --- the tables ---


def print_steps(args, rows, size, batch, seconds):
    costs = {row: prepared(row, args, size, batch) for row in rows}
    times = by_turns({row: cost[0] for row, cost in costs.items() if cost[0]}, args, seconds)
    flops = {row: costs[row][1] or costs.get(row.replace("+compile", ""), (None, 0))[1] for row in rows}
    print(f"\n| step, {size} px, batch {batch} | images/s | x literal | GFLOP/image | GFLOP/s | x CycleGAN | of peak "
          "| memory, MiB |\n|---|---|---|---|---|---|---|---|")
    for row in rows:
        if row not in times:
            print(f"| {row} | out of memory | | | | | | |")
            continue
        rate, peak = flops[row] / statistics.median(times[row]), args.peaks.get("amp" in row, math.nan)
        faster = {name: speed_ratio(times[row], times[name]) for name in ("literal", "cyclegan") if name in times}
        if "cyclegan" in faster:
            faster["cyclegan"] *= flops[row] / flops["cyclegan"]
        cells = [batch / statistics.median(times[row]), faster.get("literal", math.nan), flops[row] / batch / 1e9,
                 rate / 1e9, faster.get("cyclegan", math.nan), 100 * rate / peak, costs[row][2] / 2**20]
        shown = ("n/a" if math.isnan(v) else f"{v:.{n}f}" for v, n in zip(cells, (1, 2, 1, 1, 2, 0, 0), strict=True))
        print(f"| {row} | {' | '.join(shown)} |", flush=True)
    print(f"turns: {len(next(iter(times.values()), []))}", flush=True)


def print_all_steps(args, end):
    """The table of all rows at the first size and batch, then of the main ones at the others."""
    args.peaks = {amp: attainable_rate(args.device, args.clock, torch.bfloat16 if amp else torch.float32)
                  for amp in (False, True)[: 1 + has_bfloat16(args.device)]}
    print("attainable, GFLOP/s: " + ", ".join(f"{'bfloat16' if amp else 'float32'} {rate / 1e9:.0f}"
                                              for amp, rate in args.peaks.items()), flush=True)
    rows, seconds = args.rows.split(",") if args.rows else all_rows(args.device), args.seconds
    for i, (batch, size) in enumerate(product(args.batches, args.sizes)):
        if i and time.perf_counter() > end:
            print(f"steps, {size} px, batch {batch}: skipped, their share of --limit is over")
            continue
        print_steps(args, rows, size, batch, seconds)
        rows, seconds = args.rows.split(",") if args.rows else main_rows(args.device), args.seconds / 3


def print_compiled(args, end):
    """Our step with and without torch.compile, in a process of its own, as nothing else ends a compilation."""
    row, seconds = main_rows(args.device)[-1], end - time.perf_counter()
    options = {"device": args.device, "sizes": args.sizes[0], "batches": args.batches[0], "parts": "steps",
               "rows": f"cyclegan,{row},{row}+compile", "seconds": seconds / 8, **args.network}
    options |= {"threads": args.threads} if args.threads else {}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    if args.device.type == "cuda":
        torch.cuda.empty_cache()
    print(f"\ntorch.compile, in a process of its own, at most {seconds:.0f} s:", flush=True)
    try:
        done = subprocess.run([sys.executable, "-m", "benchmarks.step", *words, *["--cpu_time"] * args.cpu_time],
                              cwd=ROOT, timeout=seconds)
        print(f"torch.compile: failed, exit code {done.returncode}" if done.returncode else "", flush=True)
    except subprocess.TimeoutExpired:
        print("torch.compile: not ready in that time", flush=True)


def print_inference(args, end):
    for i, (batch, size) in enumerate(product(args.batches, args.sizes)):
        if i and time.perf_counter() > end:
            print(f"inference, {size} px, batch {batch}: skipped, its share of --limit is over")
            continue
        model = build_model(args.network, size).to(args.device).eval().requires_grad_(False)
        x, y = images(size, batch, args.device)
        calls = {"segment": lambda m=model, x=x: m.segment(x), "remove": lambda m=model, x=x: m.remove(x),
                 "paste": lambda m=model, x=x, y=y: m.paste(x, y)}
        for call in calls.values():
            call()
        times = by_turns(calls, args, min(end - time.perf_counter(), args.seconds) / 8)
        print(f"\ninference, {size} px, batch {batch}, images/s: "
              + ", ".join(f"{name} {batch / statistics.median(t):.1f}" for name, t in times.items()), flush=True)


def print_data(args, end):
    """The share of a run's time that the loop waits for images."""
    size, batch, count = args.sizes[0], 8, 24
    step = build_step(main_rows(args.device)[-1], args.network, size, batch, args.device)
    dataset = UnpairedCrops(Crops(args.drawn, "train", size))
    for processes in (0, 2):
        stream = iter(batches(dataset, StepSampler(0, count, batch), args.device, processes))
        next(stream)  # the processes start
        waited = stepped = 0.0
        for done in range(count - 1):
            if done > 2 and time.perf_counter() > end:
                break
            waited += timed(lambda stream=stream: next(stream), args.device)
            stepped += timed(step, args.device)
        stream.close()
        print(f"\ndata, demo set at {size} px, batch {batch}, {processes} loading processes: "
              f"{100 * waited / (waited + stepped):.1f} % of the time is waiting", flush=True)


def print_startup(_args, _end):
    seconds = {}
    for name, words in {"import torch": ["-c", "import torch"],
                        "train.py --help": [os.path.join(ROOT, "train.py"), "--help"]}.items():
        seconds[name] = min(timed(lambda w=words: subprocess.run([sys.executable, *w], check=True, capture_output=True),
                                  torch.device("cpu")) for _ in range(3))
    print(f"\nstart, best of 3: train.py --help {seconds['train.py --help']:.2f} s, "
          f"{seconds['train.py --help'] / seconds['import torch']:.2f} x import torch", flush=True)


def print_flops(_args, _end):
    """What one image costs, counted on tensors without contents."""
    print("\n| GFLOP an image | px | G_seg | G_enh | G_inp | D | step |\n|---|---|---|---|---|---|---|")
    for (name, network), size in product((("paper's sizes", PAPER), ("small", SMALL)), (64, 128, 256)):
        with FakeTensorMode():  # not the device "meta", for which there is no autocast
            model = build_model(network, size)
            x, y, noise = (torch.empty(1, c, size, size) for c in (3, 3, 1))
            calls = [lambda m=model, x=x: m.G_seg(x), lambda m=model, x=x, e=noise: m.G_enh(x, e),
                     lambda m=model, x=x, e=noise: m.G_inp(x, e, e), lambda m=model, x=x: m.D_obj(x),
                     lambda m=model, x=x, y=y: both_passes(m, x, y)]
            print(f"| {name} | {size} | " + " | ".join(f"{count_flops(f) / 1e9:.2f}" for f in calls) + " |", flush=True)


def both_passes(model, x, y):
    """Forwards and backwards of a step, without optimisers and pools."""
    discriminators = torch.nn.ModuleList([model.D_obj, model.D_bg]).requires_grad_(False)
    s = model.swap(x, y)
    sum(model.generator_losses(x, y, s).values()).backward()
    discriminators.requires_grad_(True)
    fakes = {k: getattr(s, k).detach() for k in model.FAKES}
    sum(model.discriminator_losses(x, y, fakes).values()).backward()


TABLES = {"steps": print_all_steps, "compile": print_compiled, "curves": print_curves, "inference": print_inference,
          "data": print_data, "startup": print_startup, "flops": print_flops}


def main():
    args = get_args()
    torch.backends.cudnn.benchmark = True
    where = f"{torch.get_num_threads()} CPU threads" if args.device.type == "cpu" else (
        f"{torch.cuda.get_device_name(args.device)}, float32 convolutions "
        f"{'in TF32' if torch.backends.cudnn.allow_tf32 else 'as they are'}")
    print(f"torch {torch.__version__}, {where}; {args.network}", flush=True)
    if not torch.cuda.is_available():
        print("GPU: not run: no GPU")
    shares = args.limit / sum(PARTS[part] for part in args.parts)
    with tempfile.TemporaryDirectory() as args.drawn:
        if {"curves", "data"} & set(args.parts):
            demo.write_demo(args.drawn, counts=IMAGES)
        for part in (part for part in PARTS if part in args.parts):
            TABLES[part](args, time.perf_counter() + shares * PARTS[part])


if __name__ == "__main__":
    main()
