"""What one has without any training: GrabCut started from the box, as masks that test.py scores.

    pip install opencv-python-headless
    python -m benchmarks.grabcut --dataroot datasets/butterflies --size 64 --out masks/grabcut
    python test.py --masks masks/grabcut --dataroot datasets/butterflies

For this comparison only; nothing else uses OpenCV.
"""
import os
import sys

import cv2
import numpy as np

from data import Crops, to_pixels
from images import OBJECT, save_png
from running.options import command, make_parser, whole

PROG = "python -m benchmarks.grabcut"


def grabcut(image, box, iterations=5):
    """Rother et al. (2004): image (H, W, 3) uint8, box (left, top, width, height) in px -> (H, W) of 0 and OBJECT. A
    box that leaves no background is the mask."""
    if box[2] * box[3] >= image.shape[0] * image.shape[1]:
        return np.full(image.shape[:2], OBJECT, np.uint8)
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.setRNGSeed(0)
    cv2.grabCut(image[..., ::-1].copy(), mask, box, np.zeros((1, 65)), np.zeros((1, 65)), iterations,
                cv2.GC_INIT_WITH_RECT)
    return np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8) * OBJECT


def run(argv):
    parser = make_parser(PROG, __doc__.splitlines()[0])
    parser.add_argument("--dataroot", required=True, help="folder of crops with boxes")
    parser.add_argument("--split", default="test", help="part of it")
    parser.add_argument("--size", type=whole(1), default=128, help="side of the crops in px")
    parser.add_argument("--out", required=True, help="folder for the masks")
    args = parser.parse_args(argv)
    crops = Crops(args.dataroot, args.split, args.size, backgrounds=False)
    os.makedirs(args.out, exist_ok=True)
    for stem in crops.stems:
        box = (crops.box(stem).numpy() * args.size).round().astype(int).tolist()
        save_png(os.path.join(args.out, f"{stem}.png"), grabcut(to_pixels(crops.object(stem)[None])[0], box))
    print(f"{len(crops.stems)} masks in {args.out}: python test.py --masks {args.out} --dataroot {args.dataroot}")


if __name__ == "__main__":
    sys.exit(command(PROG, run))
