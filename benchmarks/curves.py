"""What bfloat16 changes in a training: two runs on the same drawn images, one in each precision, side by side."""
import time

import torch

import crf
from data import Crops, StepSampler, UnpairedCrops, batches
from evaluation.evaluate import validate
from networks import depth
from seigan import SEIGAN, Trainer

SIZE, BATCH, EVERY = 64, 8, 50  # px of the drawn images; images of a step; steps between rows


def print_curves(args, end):
    """Loss and IoU on held-out drawings every so many steps, until `end`. args.drawn: folder of the demo set."""
    train, val = (Crops(args.drawn, split, SIZE) for split in ("train", "val"))
    trainers = {dtype: build(args, train, dtype == "bfloat16") for dtype in ("float32", "bfloat16")}
    totals = {dtype: [] for dtype in trainers}
    print(f"\nfloat32 and bfloat16, {SIZE} px, batch {BATCH}, the same images and first weights\n\n"
          f"| step | {' | '.join(f'loss {t} | IoU {t}' for t in trainers)} |\n|---|---|---|---|---|", flush=True)
    for step, batch in enumerate(batches(UnpairedCrops(train), StepSampler(0, 10**6, BATCH), args.device), 1):
        for dtype, trainer in trainers.items():
            totals[dtype].append(trainer.train_step(batch)["total"])
        over = time.perf_counter() > end
        if over or step % EVERY == 0:
            cells = (f"{torch.stack(totals[t]).mean():.3f} | {iou(trainer, val, args.device):.3f}"
                     for t, trainer in trainers.items())
            print(f"| {step} | {' | '.join(cells)} |", flush=True)
            totals = {dtype: [] for dtype in trainers}
        if over:
            return


def build(args, crops, amp):
    torch.manual_seed(0)
    shape = args.network | {"n_layers_D": args.network["n_layers_D"] or depth(SIZE)}
    model = SEIGAN(size=SIZE, unet_downs=depth(SIZE), box=crops.box(crops.stems[0]).tolist(), **shape)
    trainer = Trainer(model.to(args.device), lr_seg=2.0, amp=amp)
    trainer.teacher = crf.teach
    return trainer


def iou(trainer, crops, device):
    """Mean IoU of the averaged model's masks."""
    total, _, n = validate(trainer.averaged, crops, device)
    return total / n
