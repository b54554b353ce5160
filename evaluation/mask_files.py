"""Masks that another method wrote, in the place of a model: GrabCut's, SAM's, or a model's own.

A folder of images, STEM.png for each object: 255 = object, 0 = background, values between are soft, cut at ½ as a
model's. Where all have one square size they are stretched over the crops; else each has the size of its file in
masks_source/, on whose pixels it lies, or is square.
"""
import math
import os

import numpy as np
import torch
from PIL import Image

from data import by_stem
from images import OBJECT, UNREADABLE, VOID, UserError, open_image, stored_size, to_rgb
from losses import paste


class MaskFiles:
    """What `evaluate.evaluate` takes for a model.

    folder: of the masks; crops: a `data.Crops`. Raises FileNotFoundError without the folder, UserError where objects
    have no mask there, OSError where one cannot be read.
    """

    def __init__(self, folder, crops):
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"no folder {folder}: --masks takes one with a PNG of each object's name")
        self.paths, self.size = by_stem(folder), crops.size
        missing = [stem for stem in crops.stems if stem not in self.paths]
        if missing:
            raise UserError(f"{folder} has no mask of {len(missing)} of the {len(crops.stems)} objects of "
                            f"{crops.root}: each needs one of its name, the first {missing[0]}.png")
        sizes = {_size(self.paths[stem]) for stem in crops.stems}
        self.stretched = len(sizes) == 1 and len(set(*sizes)) == 1

    def on_source(self, mask, truth):
        """Whether a mask (h, w) lies on the pixels of a `mask_scores.Truth`, which may be None."""
        return not self.stretched and truth is not None and mask.shape == truth.mask.shape

    def read(self, stem, truth):
        """The mask of `stem`, (h, w) float32 in [0, 1]. UserError where it is no prediction, or of another size."""
        mask, path = np.asarray(open_image(self.paths[stem], convert=_to_grey)), self.paths[stem]
        if set(np.unique(mask).tolist()) <= {0, VOID, OBJECT} and (mask == VOID).any():
            raise UserError(f"{path} holds {VOID}, which is void: a prediction is {OBJECT} for the object, else 0")
        if mask.shape[0] != mask.shape[1] and not self.on_source(mask, truth):
            (height, width), source = mask.shape, ""
            if truth is not None:
                source = f", or {truth.mask.shape[1]} x {truth.mask.shape[0]} as its true mask"
            raise UserError(f"{path} has {width} x {height} pixels: it must be square as its crop{source}")
        return mask.astype(np.float32) / OBJECT

    def pictures(self, masks, truths, x, y):
        """{"mask": m} of masks of `read` and, where there is a y, "z": m*x + (1-m)*y, as models make them."""
        m = torch.stack([self.over_crop(mask, truth) for mask, truth in zip(masks, truths, strict=True)]).to(x)
        return {"mask": m} if y is None else {"mask": m, "z": paste(x, y, m)}

    def over_crop(self, mask, truth):
        """A mask of `read`, antialiased to the size of the crop: (1, S, S) tensor."""
        box = None
        if self.on_source(mask, truth):
            (x0, y0, w, h), (left, top) = truth.window, truth.origin
            x0, y0 = x0 - left, y0 - top
            before = math.ceil(max(-y0, 0)), math.ceil(max(-x0, 0))  # a window may leave the photograph
            after = math.ceil(max(y0 + h - mask.shape[0], 0)), math.ceil(max(x0 + w - mask.shape[1], 0))
            mask = np.pad(mask, tuple(zip(before, after, strict=True)), "edge")
            box = x0 + before[1], y0 + before[0], x0 + before[1] + w, y0 + before[0] + h
        image = Image.fromarray(mask).resize((self.size, self.size), Image.Resampling.BILINEAR, box)
        return torch.from_numpy(np.array(image))[None]


def _size(path):
    try:
        return stored_size(path)[0]
    except UNREADABLE as error:
        raise OSError(f"cannot read the image {path} ({error}): replace or remove it") from None


def _to_grey(image):
    """A mask as 8-bit grey: unlike `images.open_mask`, an empty or faint one is what it is."""
    rgb = to_rgb(image)
    if image.has_transparency_data or np.ptp(np.asarray(rgb), axis=2).max() > 16:
        raise ValueError("a mask must be grey and opaque, with white for the object")
    grey = rgb.convert("L")
    if grey.getextrema()[1] == 1:
        raise ValueError("its brightest value is 1: in a mask white, 255, is object")
    return grey
