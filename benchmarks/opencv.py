"""What OpenCV makes without any training: masks from boxes, for test.py to score, and fills of the holes that it cuts.

    pip install opencv-python-headless
    python -m benchmarks.opencv --dataroot datasets/butterflies --size 64 --out masks/grabcut
    python test.py --masks masks/grabcut --dataroot datasets/butterflies

For this comparison only; nothing else uses OpenCV.
"""
import os
import sys

try:
    import cv2
except ImportError:
    if __name__ == "__main__":
        sys.exit("benchmarks.opencv: error: OpenCV is not installed: pip install opencv-python-headless")
    raise
import numpy as np
import torch

from data import Crops, to_pixels
from evaluation.evaluate import MEASURES, hole_in, pair_up
from evaluation.image_scores import fill_diffusion
from images import OBJECT, save_png
from running.options import command, make_parser, whole

PROG = "python -m benchmarks.opencv"
RADIUS = 3  # px that its fills look around


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


def inpaint(y, hole, method):
    """y (N, 3, H, W) in [-1, 1] with its holes (N, 1, H, W; 1 = cut out) refilled by cv2.INPAINT_TELEA (2004) or
    INPAINT_NS (Bertalmío et al., 2001)."""
    filled = [cv2.inpaint(np.ascontiguousarray(image), mask, RADIUS, method)
              for image, mask in zip(to_pixels(y), hole[:, 0].byte().numpy(), strict=True)]
    filled = torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2) / 127.5 - 1
    return y * (1 - hole) + filled * hole


def fills(crops):
    """{name: {measure: mean}} of the fills of the pairs that test.py makes: OpenCV's and Laplace's equation's."""
    pairs = pair_up(crops)
    y = torch.stack([crops.background(stem) for stem in pairs.values()])
    hole = torch.stack([hole_in(crops, stem, crops.mask(stem)) for stem in pairs])
    made = {"Telea": inpaint(y, hole, cv2.INPAINT_TELEA), "Navier-Stokes": inpaint(y, hole, cv2.INPAINT_NS),
            "Laplace's equation": fill_diffusion(y, hole)}
    return {name: {m: score(image, y, hole).nanmean().item() for m, score in MEASURES.items()}
            for name, image in made.items()}


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
    if crops.background_stems:
        print("fills of the backgrounds      PSNR    SSIM     MAE")
        for name, m in fills(crops).items():
            print(f"{name:<24} {m['psnr']:>9.2f} {m['ssim']:>7.3f} {m['mae']:>7.4f}")


if __name__ == "__main__":
    sys.exit(command(PROG, run))
