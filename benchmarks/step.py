"""What a step costs, and what each option is worth, in one run on one machine.

    python -m benchmarks.step                             # on the first GPU if there is one; minutes on a CPU
    python -m benchmarks.step --gpu -1 --sizes 64 --batches 8 --parts steps
    python -m benchmarks.step --parts flops               # no clock: on any machine in seconds

An image is one pair x, y of a step. Steps of all rows alternate, so that what else runs on the machine slows every row
alike; figures are medians. GFLOP are torch's count of the convolutions and matrix products, a multiplication and an
addition being 2; "of peak" is their rate over the best that large convolutions reached in this run in that dtype.
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
from multiprocessing import get_context

from running.options import add_device, answer_help, has_bfloat16, make_parser, number, pick_device, whole

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BOX = (0.1, 0.1, 0.8, 0.8)
PAPER = dict(ngf=64, ndf=64, seg_blocks=6, n_layers_D=0)  # 0: as the size asks
SMALL = dict(ngf=16, ndf=32, seg_blocks=4, n_layers_D=0)
PARTS = ("steps", "inference", "data", "startup", "flops")


def get_args_parser():
    parser = make_parser("benchmarks.step", "What a training step costs, and what each option is worth.")
    add = parser.add_argument

    def wholes(text):
        return [whole(1)(part) for part in text.split(",")]

    add_device(add)
    add("--sizes", type=wholes, help="sides in px; else 64,128,256 on a GPU, 64 on a CPU")
    add("--batches", type=wholes, help="images of each kind in a step; else 1,8,32 on a GPU, 1,8 on a CPU")
    for name in PAPER:
        add(f"--{name}", type=whole(), help=f"as for train.py; else {PAPER[name]} on a GPU, {SMALL[name]} on a CPU")
    add("--seconds", type=number(0), default=30.0, help="of timing for each table")
    add("--limit", type=number(0), default=300.0, help="seconds after which what is left is skipped")
    add("--rows", help="of the table of steps, separated by commas: literal, ours, or ours+OPTION; else all")
    add("--memory", action="store_true", help="measure memory on a CPU too, in a process for each row")
    add("--compile", action="store_true", help="time torch.compile on a CPU too, which takes minutes to compile")
    add("--threads", type=whole(1), help="of torch on a CPU; else torch's choice")
    add("--cpu_time", action="store_true", help="processor time, not the clock: for busy machines, with --threads 1")
    add("--parts", default=",".join(PARTS), help="which tables")
    return parser


if __name__ == "__main__":
    answer_help("benchmarks.step", get_args_parser().parse_args)  # here, as torch takes seconds to import

import torch
from torch.utils.flop_counter import FlopCounterMode

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
    args.sizes = args.sizes or ([64] if on_cpu else [64, 128, 256])
    args.batches = args.batches or ([1, 8] if on_cpu else [1, 8, 32])
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
    """The step of a row, as a function without arguments that returns the log of `Trainer.train_step`."""
    name, *options = row.split("+")
    model = build_model(network, size).to(device)
    x, y = images(size, batch, device)
    box = torch.tensor([BOX] * batch, device=device)
    kwargs = dict(amp="amp" in options, diffaug="no_diffaug" not in options, ema=0 if "no_ema" in options else 0.2)
    if "channels_last" in options:
        model = model.to(memory_format=torch.channels_last)
        x, y = (image.contiguous(memory_format=torch.channels_last) for image in (x, y))
    if "compile" in options:
        for network in model.networks().values():
            network.compile()
    trainer = Trainer(model, **kwargs)
    trainer = LiteralTrainer(trainer) if name == "literal" else trainer
    return lambda: trainer.train_step({"x": x, "y": y, "box": box})


def all_rows(args):
    default, other = ("ours+amp", "ours") if has_bfloat16(args.device) else ("ours", "ours+amp")
    toggled = [other, *(f"{default}+{k}" for k in ("channels_last", "no_diffaug", "no_ema"))]
    compiles = args.compile or args.device.type == "cuda"
    return ["literal", default, *toggled, *([f"{default}+compile"] if compiles else [])]


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


def medians(functions, args, seconds):
    """{name: function} -> {name: median seconds}, of calls by turns for `seconds`, at least three of each."""
    times, end = {name: [] for name in functions}, time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 3:
        for name, function in functions.items():
            times[name].append(timed(function, args.device, args.clock))
    return {name: statistics.median(t) for name, t in times.items()}


def attainable_rate(device, clock, dtype):
    """FLOP/s of the best of some large 3x3 convolutions, forwards."""
    best, (n, side) = 0.0, (8, 64) if device.type == "cpu" else (64, 64)
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
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        step = build_step(row, args.network, size, batch, device)
        flops = 0 if "compile" in row else count_flops(step)
        for _ in range(5):
            step()
        return step, flops, torch.cuda.max_memory_allocated(device) - before
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None, 0, 0


# --- the tables ---


def print_steps(args, size, batch, peaks):
    rows, steps, costs = args.rows.split(",") if args.rows else all_rows(args), {}, {}
    for row in rows:
        step, *costs[row] = prepared(row, args, size, batch)
        if step is not None:
            steps[row] = step
    seconds = medians(steps, args, args.seconds)
    flops = {row: cost[0] for row, cost in costs.items()}
    print(f"\n| step, {size} px, batch {batch} | images/s | x literal | GFLOP/image | of peak | memory, MiB |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        if row not in steps:
            print(f"| {row} | out of memory | | | | |")
            continue
        flop = flops[row] or flops.get(row.replace("+compile", ""), 0)
        peak = peaks["bfloat16" if "amp" in row else "float32"]
        ratio = f"{seconds['literal'] / seconds[row]:.2f}" if "literal" in steps else ""
        memory = "n/a" if math.isnan(costs[row][1]) else f"{costs[row][1] / 2**20:.0f}"
        print(f"| {row} | {batch / seconds[row]:.1f} | {ratio} | {flop / batch / 1e9:.1f} | "
              f"{100 * flop / seconds[row] / peak:.0f} % | {memory} |", flush=True)


def print_inference(args, size, batch, _peaks):
    model = build_model(args.network, size).to(args.device).eval().requires_grad_(False)
    x, y = images(size, batch, args.device)
    calls = {"segment": lambda: model.segment(x), "remove": lambda: model.remove(x), "paste": lambda: model.paste(x, y)}
    seconds = medians(calls, args, args.seconds / 4)
    print(f"\ninference, {size} px, batch {batch}, images/s: "
          + ", ".join(f"{name} {batch / s:.1f}" for name, s in seconds.items()), flush=True)


def print_data(args):
    """The share of a run's time that the loop waits for images."""
    size, batch, count = args.sizes[0], 8, 24
    step = build_step(all_rows(args)[1], args.network, size, batch, args.device)
    with tempfile.TemporaryDirectory() as folder:
        demo.write_demo(folder, counts={"train": {"objects": 200, "backgrounds": 200}})
        dataset = UnpairedCrops(Crops(folder, "train", size))
        for processes in (0, 2):
            stream = iter(batches(dataset, StepSampler(0, count, batch), args.device, processes))
            next(stream)  # the processes start
            waited = stepped = 0.0
            for _ in range(count - 1):
                waited += timed(lambda stream=stream: next(stream), args.device)
                stepped += timed(step, args.device)
            print(f"\ndata, demo set at {size} px, batch {batch}, {processes} loading processes: "
                  f"{100 * waited / (waited + stepped):.1f} % of the time is waiting", flush=True)


def print_startup():
    seconds = {}
    for name, words in {"import torch": ["-c", "import torch"],
                        "train.py --help": [os.path.join(ROOT, "train.py"), "--help"]}.items():
        seconds[name] = min(timed(lambda w=words: subprocess.run([sys.executable, *w], check=True, capture_output=True),
                                  torch.device("cpu")) for _ in range(3))
    print(f"\nstart, best of 3: train.py --help {seconds['train.py --help']:.2f} s, "
          f"{seconds['train.py --help'] / seconds['import torch']:.2f} x import torch", flush=True)


def print_flops():
    """What one image costs, counted on tensors without contents."""
    print("\n| GFLOP an image | px | G_seg | G_enh | G_inp | D | step |\n|---|---|---|---|---|---|---|")
    for name, network in (("paper's sizes", PAPER), ("small", SMALL)):
        for size in (64, 128, 256):
            model = build_model(network, size).to("meta")
            x, y, noise = (torch.empty(1, c, size, size, device="meta") for c in (3, 3, 1))
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


def main():
    args = get_args()
    parts, end = args.parts.split(","), time.perf_counter() + args.limit
    torch.backends.cudnn.benchmark = True
    on_cpu = args.device.type == "cpu"
    where = f"{torch.get_num_threads()} CPU threads" if on_cpu else torch.cuda.get_device_name(args.device)
    print(f"torch {torch.__version__}, {where}; {args.network}")
    if not torch.cuda.is_available():
        print("GPU: not run: no GPU")
    peaks = {}
    if "steps" in parts:
        peaks = {str(t)[6:]: attainable_rate(args.device, args.clock, t) for t in (torch.float32, torch.bfloat16)}
        print("attainable: " + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in peaks.items()))
    for part, table in {"steps": print_steps, "inference": print_inference}.items():
        for size in args.sizes if part in parts else ():
            for batch in args.batches:
                if time.perf_counter() > end:
                    print(f"{part}, {size} px, batch {batch}: skipped, --limit {args.limit:g} s are over")
                    continue
                table(args, size, batch, peaks)
    for part, table in {"data": lambda: print_data(args), "startup": print_startup, "flops": print_flops}.items():
        if part in parts:
            table()


if __name__ == "__main__":
    main()
