"""What one has without any training: GrabCut started from the box, scored as test.py scores masks.

    pip install opencv-python-headless
    python -m benchmarks.grabcut --dataroot datasets/butterflies --size 64

For this comparison only; nothing else uses OpenCV.
"""
import sys

import cv2
import numpy as np

from data import Crops, to_pixels
from evaluation.evaluate import read_truth
from evaluation.mask_scores import bootstrap, score
from images import UserError
from running.options import command, make_parser, whole

PROG = "python -m benchmarks.grabcut"


def grabcut(image, box, iterations=5):
    """Rother et al. (2004): image (H, W, 3) uint8, box (left, top, width, height) in px -> (H, W) of 0 and 1."""
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.setRNGSeed(0)
    cv2.grabCut(image[..., ::-1].copy(), mask, box, np.zeros((1, 65)), np.zeros((1, 65)), iterations,
                cv2.GC_INIT_WITH_RECT)
    return np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)


def run(argv):
    parser = make_parser(PROG, __doc__.splitlines()[0])
    parser.add_argument("--dataroot", required=True, help="folder of crops with masks and boxes")
    parser.add_argument("--split", default="test", help="part of it")
    parser.add_argument("--size", type=whole(1), default=128, help="side of the crops in px")
    args = parser.parse_args(argv)
    crops = Crops(args.dataroot, args.split, args.size, backgrounds=False)
    scores = []
    for stem in filter(crops.records.get, crops.stems):
        truth = read_truth(crops, stem)
        if truth is not None:
            box = (crops.box(stem).numpy() * args.size).round().astype(int).tolist()
            scores.append(score(grabcut(to_pixels(crops.object(stem)[None])[0], box), truth)["iou"])
    if not scores:
        raise UserError(f"no object in {crops.root} has both a mask and a box")
    low, high = bootstrap(np.array(scores)[:, None])[0]
    print(f"GrabCut from the box, {args.size} px, {len(scores)} objects: "
          f"IoU {np.mean(scores):.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    sys.exit(command(PROG, run))
