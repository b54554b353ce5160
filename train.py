"""Train SEIGAN, or a method to compare it with.

    python train.py --demo --name demo                     # procedural images, a small model: minutes on a CPU
    python train.py --dataroot datasets/dogs --name dogs   # crops that prepare.py made, on the first GPU if any
    python train.py --name dogs --resume                   # go on where it stopped, exactly
    python train.py --config checkpoints/dogs/config.json --name again    # the same run once more
    torchrun --nproc_per_node=4 train.py --dataroot datasets/dogs --name dogs    # on four GPUs

Writes CHECKPOINTS_DIR/NAME/: index.html, config.json, log.jsonl (every term), samples/*.png, latest.pt, the one
before it as step_*.pt and, where val/ has masks, best.pt. Then `python test.py --name NAME`.

Exit codes: 0 done, 2 an error, 124 --max_minutes are over, 130 or 143 stopped by Ctrl-C or SIGTERM.
"""
import math
import multiprocessing
import os
import re
import sys
from contextlib import ExitStack
from functools import partial

from running import options, train_options

if __name__ == "__main__":
    options.answer_help("train.py", train_options.parse)  # here, as torch takes seconds to import

import torch
from torchvision.utils import make_grid

import crf
from crops import demo
from data import Crops, StepSampler, UnpairedCrops, batches, save_image
from evaluation import page
from evaluation.evaluate import validate
from images import UserError
from running import methods, origin
from running.parallel import Ranks
from running.run import Run
from running.watch import catch_signals, leave_signals


def train(args, ranks, checkpoint=None):
    """Train until the last step, or until a signal, a limit or an error ends it. Returns the exit code.

    checkpoint: that of the run to go on with.
    """
    method, device = methods.load(args.method), pick_device(args, ranks)
    crops = Crops(args.dataroot, "train", args.size, "backgrounds" in method.NEEDS)
    dataset = UnpairedCrops(crops, args.seed, not args.no_flip, "masks" in method.NEEDS, "second" in method.NEEDS)
    steps_per_epoch = max(1, len(dataset.objects) // args.batch_size)
    last_step = steps_per_epoch * (args.n_epochs + args.n_epochs_decay)
    shown, val = held_out(args)
    torch.manual_seed(args.seed)
    trainer = method.build(args, crops, device, ranks.rank)
    trainer.share, trainer.teacher = ranks.average_gradients, box_teacher(args, crops)
    for network in trainer.model.networks().values() if args.compile else ():
        network.compile()

    def files(step):
        draws = range((step - 1) * args.batch_size, step * args.batch_size)
        return ", ".join(os.path.relpath(path, args.dataroot) for n in draws for path in dataset.files(n))

    run = Run(args, trainer, last_step, ranks, files, origin.fingerprint(crops))
    if checkpoint:
        resume(run, checkpoint)
    with run, catch_signals() as signals:
        run.say_options(train_options.get_parser(args.method), origin.origin(device, crops))
        greet(run, dataset, device)
        code = loop(run, dataset, steps_per_epoch, shown or crops, val, device, signals)
        if code == 0:
            run.check_applied()
        return code


def loop(run, dataset, steps_per_epoch, shown, val, device, signals):
    """The alternating loop (§3.4). Returns the exit code."""
    args, trainer, ranks = run.args, run.trainer, run.ranks

    def look():
        """IoU on the held-out masks, at source resolution. A signal ends it; a resume makes up for it."""
        if not getattr(trainer.averaged, "ready", True):
            return
        sums = validate(trainer.averaged, val, device, args.batch_size, part=slice(ranks.rank, None, ranks.count),
                        stopped=lambda: signals)
        run.validated(sums, trainer.step > warm_until(trainer))

    if trainer.step == 0:
        save_samples(run, shown, device)
    elif val and run.due(args.val_freq) and run.validated_at != trainer.step:
        look()
    sampler = StepSampler(trainer.step, run.last_step, args.batch_size, ranks.rank, ranks.count)
    for batch in run.meter.wait(loaded(dataset, sampler, device, args.num_threads)):
        factor = lr_factor(trainer.step, steps_per_epoch, args.n_epochs, args.n_epochs_decay)
        terms = trainer.train_step(batch, factor)  # generators, then discriminators
        run.step_done(terms, args.lr * factor)
        if run.due(args.display_freq) or trainer.step == 100:
            save_samples(run, shown, device)
        if val and run.due(args.val_freq):
            look()
        if run.writes and run.due(args.display_freq):
            run.write(page.write_run, run.folder, args.name, trainer.step, run.last_step)
        code = run.exit_code(signals)
        if code is not None:
            return code
    return 0


def loaded(dataset, sampler, device, num_threads):
    """`data.batches`. OSError, with the remedy, where the machine has no room for the loading processes."""
    try:
        [multiprocessing.Semaphore() for _ in range(num_threads and 3 * num_threads + 9)]  # torch would trace back,
        with ExitStack() as files:  # or wait for ever: batches come as open files
            [files.enter_context(open(os.devnull)) for _ in range(num_threads and 16 * num_threads + 16)]
        yield from batches(dataset, sampler, device, num_threads, leave_signals)
    except (OSError, RuntimeError) as error:
        told = (str(error).strip() or repr(error)).splitlines()[-1]
        refused = isinstance(error, OSError) and error.errno and error.filename is None
        if num_threads and (refused or re.search("shared memory|by signal|exited unexpectedly|open files", told)):
            raise OSError(f"the processes that load images cannot go on ({told}): --num_threads 0 does without them, "
                          "or give the machine more shared memory (/dev/shm)") from error
        raise


def lr_factor(step, steps_per_epoch, n_epochs, n_epochs_decay):
    """CycleGAN's schedule as a function of the step: 1 for `n_epochs`, then linearly to 0 over `n_epochs_decay`."""
    epochs_of_decay = step / steps_per_epoch - n_epochs
    return 1.0 if epochs_of_decay <= 0 else max(0.0, 1 - epochs_of_decay / n_epochs_decay)


def pick_device(args, ranks):
    """Each of several processes takes the GPU of its own number; and what cuDNN may do there."""
    torch.backends.cudnn.benchmark = not args.deterministic  # sizes never change
    torch.use_deterministic_algorithms(args.deterministic)
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    each_its_own = ranks.count > 1 and args.device not in ("cpu", "mps") and torch.cuda.is_available()
    return options.pick_device(f"cuda:{ranks.local}" if each_its_own else args.device)


def box_teacher(args, crops, sample=128):
    """`crf.teach` with --crf_bias, by default what a sample of the training crops asks for, which the run then keeps;
    None where no box is known."""
    known = [stem for stem in crops.stems if stem in crops.records]
    if not known:
        return None
    stems = known[:: math.ceil(len(known) / sample)]
    x, box = (torch.stack([read(stem) for stem in stems]) for read in (crops.object, crops.box))
    if args.crf_bias is None:
        args.crf_bias = crf.choose_bias(x, box)
    return partial(crf.teach, bias=args.crf_bias)


def held_out(args):
    """(crops for the samples, crops to validate on), of val/ or else test/, and of val/ alone; None without."""
    there = [s for s in ("val", "test") if os.path.isdir(os.path.join(args.dataroot, s))]
    shown = Crops(args.dataroot, there[0], args.size, backgrounds=False) if there else None
    return shown, shown if there[:1] == ["val"] and shown.masks else None


def resume(run, checkpoint):
    """Put the run where `checkpoint` left it. UserError, in one line, if that does not fit."""
    if checkpoint.get("data", run.data) != run.data:
        raise UserError(f"--dataroot {run.args.dataroot}, seen from here, holds other training crops than this run "
                        "began with: name its own folder, or begin a new run under another --name")
    try:
        run.load_state_dict(checkpoint)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{train_options.latest_path(run.args)} does not fit this run ({type(error).__name__}: "
                        f"{' '.join(str(error).split())[:200]}): {train_options.older_remedy(run.args)}") from error


def warm_until(trainer):
    """How many steps leave some networks as they are at first, see `seigan.Trainer.warm_step`; 0 of other trainers."""
    return trainer.warm_steps if hasattr(trainer, "warm_step") and trainer.teaches() else 0


def greet(run, dataset, device):
    """Say what is about to happen."""
    crops, step = dataset.crops, run.trainer.step
    run.say(f"{len(dataset.objects)} objects, {len(crops.backgrounds)} backgrounds, {run.last_step} steps on {device}"
            + f", {run.ranks.count} processes" * (run.ranks.count > 1) + f", going on from step {step}" * bool(step))
    unknown = sum(stem not in crops.records for stem in crops.stems)
    if unknown and "boxes" in methods.SUPERVISION[run.args.method]:
        run.say(f"{unknown} of {len(crops.stems)} objects' boxes are not known from crops.json: nothing keeps their "
                "masks from growing over the whole crop")
    if run.last_step <= warm_until(run.trainer):
        run.say(f"all {run.last_step} steps are among the --warm_steps {run.trainer.warm_steps}, in which only masks "
                "and first fills are learned: train longer, or give fewer of these")
    if step >= run.last_step:
        run.say(f"step {step} of {run.last_step} is done: more --n_epochs or --n_epochs_decay train on")


def save_samples(run, crops, device, rows=8):
    """samples/STEP.png: a grid of the first crops, always the same: x, y and what the method makes of them."""
    if run.writes:
        stems, others = crops.stems[:rows], crops.background_stems[:rows]
        n = min(len(stems), len(others) or rows)
        x, box = (torch.stack([read(s) for s in stems[:n]]).to(device) for read in (crops.object, crops.box))
        y = torch.stack([crops.background(s) for s in others[:n]]).to(device) if others else None
        made = run.trainer.averaged.pictures(x, y, box).values()
        columns = [2 * c.expand(-1, 3, -1, -1) - 1 if c.shape[1] == 1 else c for c in (x, y, *made) if c is not None]
        grid = make_grid(torch.stack(columns, 1).flatten(0, 1), nrow=len(columns), padding=1, pad_value=1)
        run.write(save_image, os.path.join(run.folder, "samples", f"{run.trainer.step:07d}.png"), grid)
    run.meter.restart()


def run(argv):
    """`python train.py ...`. Returns the exit code."""
    args, checkpoint = train_options.parse(argv)
    ranks = Ranks(args.device)
    try:
        if args.demo and ranks.rank == 0 and not os.path.exists(os.path.join(args.dataroot, "test", "crops.json")):
            demo.make_demo(args.dataroot)
        ranks.reduce([0])  # the others wait for it
        return train(args, ranks, checkpoint)
    finally:
        ranks.close()


def main(argv=None):
    return options.command("train.py", run, argv, stopped="stopped before training began")


if __name__ == "__main__":
    sys.exit(main())
