"""Training pairs <x, y> from a folder of crops, which `python prepare.py` makes.

    DATAROOT/SPLIT/objects/STEM.png        x: an object in its surroundings
    DATAROOT/SPLIT/backgrounds/STEM.png    y: no object; unpaired
    DATAROOT/SPLIT/masks/STEM.png          optional: the object's mask, white = object; for tests, method supervised
    DATAROOT/SPLIT/crops.json              optional: each object's box in its crop, class, source

SPLIT is train, test and, to choose best.pt on, val. Crops cut by other means need only objects/ and backgrounds/.
"""
import os
import traceback
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from images import (
    EXTENSIONS,
    OBJECT,
    VOID,
    UserError,
    is_box,
    is_count,
    list_images,
    open_image,
    open_mask,
    parse_json,
    resize_mask,
    save_png,
)


def by_stem(folder):
    """{stem: path} of the image files in `folder`, sorted; {} without one. UserError where two have one stem."""
    images = {}
    for name in list_images(folder):
        stem = os.path.splitext(name)[0]
        if stem in images:
            raise UserError(f"{images[stem]} and {name} have one name: names must differ before the extension")
        images[stem] = os.path.join(folder, name)
    return images


def load_image(path, size):
    """An image file, antialiased to size x size px -> (3, size, size) in [-1, 1]."""
    image = open_image(path)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def load_mask(path, size):
    """A mask file, antialiased to size x size px -> (1, size, size) of 0, 1 = object, and ½ = void: neither."""
    mask = np.asarray(open_mask(path))
    if mask.shape != (size, size):
        mask = resize_mask(mask, size)
    return torch.from_numpy(np.where(mask == VOID, 0.5, mask == OBJECT).astype(np.float32))[None]


def to_pixels(images):
    """Images (N, 3, H, W) in [-1, 1] or masks (N, 1, H, W) in [0, 1] -> uint8 array (N, H, W, 3) or (N, H, W)."""
    unit = images if images.shape[1] == 1 else (images + 1) / 2
    pixels = (unit.detach().float().cpu().clamp(0, 1) * 255 + 0.5).byte()
    return pixels[:, 0].numpy() if pixels.shape[1] == 1 else pixels.permute(0, 2, 3, 1).contiguous().numpy()


def save_image(path, image):
    """Write an image (3, H, W) in [-1, 1] or a mask (1, H, W) in [0, 1] as PNG."""
    save_png(path, to_pixels(image[None])[0])


def _is_side(value):
    return is_count(value) and value > 0


_CROPS = {"rules": [{"fit": ("warp", "keep").__contains__, "object_size": _is_side, "crop_size": _is_side}],
          "objects": {str: {"box": is_box, "origin?": is_count}}}  # see `images.fits`


class Crops:
    """The files of one split.

    Args:
        dataroot, split: see the layout above.
        size: px to which every image is resized.
        backgrounds: whether the split must have some; else they may be missing, and then are not read.

    Raises:
        FileNotFoundError: no such folder, or no image in it. UserError: what is there cannot be used.
    """

    def __init__(self, dataroot, split, size, backgrounds=True):
        root = os.path.join(dataroot, split)
        if not os.path.isdir(root):
            others = [name for name in ("train", "val", "test") if os.path.isdir(os.path.join(dataroot, name))]
            raise FileNotFoundError(
                f"no folder {root}: --dataroot {dataroot} has {', '.join(others) or 'neither train nor test'}; "
                "`python prepare.py --help` says how to make one, test.py takes another's --split")
        if os.path.exists(os.path.join(root, "unfinished.jsonl")):
            raise UserError(f"{root} is unfinished: repeat the `python prepare.py` command that was making it")
        self.root, self.size = root, size
        self.objects = by_stem(os.path.join(root, "objects"))
        self.backgrounds = by_stem(os.path.join(root, "backgrounds"))
        masks = by_stem(os.path.join(root, "masks"))
        self.masks = {stem: path for stem, path in masks.items() if stem in self.objects}
        if masks and not self.masks:
            raise UserError(f"no file in {os.path.join(root, 'masks')} has an object's name: masks are found by it")
        for kind, images in {"objects": self.objects, "backgrounds": self.backgrounds}.items():
            if not images and (backgrounds or kind == "objects"):
                raise FileNotFoundError(f"no images in {os.path.join(root, kind)}: expected "
                                        f"{', '.join(EXTENSIONS)}; `python prepare.py --help` says how to make them")
        self.stems, self.background_stems = list(self.objects), list(self.backgrounds)
        self.records, self.rules = self._read_records()

    def _read_records(self):
        """The objects' records in crops.json, and the rules that cut them; ({}, []) without the file."""
        path = os.path.join(self.root, "crops.json")
        if not os.path.exists(path):
            return {}, []
        written = parse_json(Path(path).read_bytes(), _CROPS) if os.path.isfile(path) else None
        if written is None or any(r.get("origin", 0) >= len(written["rules"]) for r in written["objects"].values()):
            raise UserError(f"{path} is not a crops file, with rules and the box and origin of each object: make the "
                            "set anew, or remove it")
        return written["objects"], [{k: rule[k] for k in ("fit", "object_size", "crop_size")}
                                    for rule in written["rules"]]

    def box(self, stem):
        """The object's box in its crop, (4,): left, top, width, height in fractions; the whole crop where unknown."""
        record = self.records.get(stem)
        if record is None:
            return torch.tensor([0.0, 0.0, 1.0, 1.0])
        return torch.tensor(record["box"], dtype=torch.float32) / self.rules[record.get("origin", 0)]["crop_size"]

    def object(self, stem, scale=1):
        """x of `stem`, (3, S, S) in [-1, 1], S = scale * size."""
        return load_image(self.objects[stem], scale * self.size)

    def background(self, stem):
        """y of `stem`, (3, size, size) in [-1, 1]."""
        return load_image(self.backgrounds[stem], self.size)

    def mask(self, stem):
        """The true mask of `stem`, as of `load_mask`; None if there is none."""
        return load_mask(self.masks[stem], self.size) if stem in self.masks else None


class UnpairedCrops(Dataset):
    """Training pairs <x, y>, drawn independently; draw n depends on (seed, n) alone.

    Each pass over the objects takes every one once, in a new order; the backgrounds likewise, with an
    order of their own. Objects (with box and mask) and backgrounds are flipped left-right, each with probability ½.

    Args:
        crops: a `Crops`.
        seed: of the orders and the flips.
        flip: whether to flip.
        masks: also give true masks; only objects that have one are drawn. UserError if none has.
        second: also give the image of an object drawn independently of x, "x_real".
    """

    def __init__(self, crops, seed=0, flip=True, masks=False, second=False):
        self.crops, self.seed, self.flip, self.masks, self.second = crops, seed, flip, masks, second
        self.objects = [s for s in crops.stems if s in crops.masks] if masks else crops.stems
        if not self.objects:
            raise UserError(f"this method learns from masks, and {os.path.join(crops.root, 'masks')} holds none "
                            "of the objects': add them, or train another method")

    def __getitem__(self, n):
        """Draw n >= 0 -> {"x", "y": (3, S, S) in [-1, 1], "box": (4,) fractions, "mask": as of `load_mask`, and
        "x_real" (3, S, S), if asked for}; no "y" where there are no backgrounds."""
        stem = self._pick(0, n, self.objects)
        x, box = self.crops.object(stem), self.crops.box(stem)
        flip_x, flip_y, flip_real = np.random.default_rng([self.seed, 2, n]).random(3) < 0.5
        if self.flip and flip_x:
            x = x.flip(-1)
            box = torch.stack([1 - box[0] - box[2], *box[1:]])
        draw = {"x": x, "box": box}
        if self.crops.background_stems:
            y = self.crops.background(self._pick(1, n, self.crops.background_stems))
            draw["y"] = y.flip(-1) if self.flip and flip_y else y
        if self.second:
            real = self.crops.object(self._pick(3, n, self.objects))
            draw["x_real"] = real.flip(-1) if self.flip and flip_real else real
        if self.masks:
            mask = self.crops.mask(stem)
            draw["mask"] = mask.flip(-1) if self.flip and flip_x else mask
        return draw

    def files(self, n):
        """Paths of the images of draw n: objects' and, where there are backgrounds, the background's."""
        paths = [self.crops.objects[self._pick(stream, n, self.objects)] for stream in (0, 3)[: 1 + self.second]]
        if self.crops.background_stems:
            paths.append(self.crops.backgrounds[self._pick(1, n, self.crops.background_stems)])
        return paths

    def _pick(self, stream, n, stems):
        epoch, place = divmod(n, len(stems))
        return stems[self._order(stream, epoch, len(stems))[place]]

    @lru_cache(maxsize=4)  # noqa: B019 - a dataset lives as long as its process
    def _order(self, stream, epoch, count):
        return np.random.default_rng([self.seed, stream, epoch]).permutation(count)


class StepSampler(Sampler):
    """Batches of draw numbers for steps start..stop-1: step t takes draws t·batch_size to (t+1)·batch_size - 1.

    So a resumed run draws what an uninterrupted one would have drawn, with any number of workers. Of `count` processes,
    number `rank` takes its equal part of each batch. UserError if `batch_size` does not divide by `count`.
    """

    def __init__(self, start, stop, batch_size, rank=0, count=1):
        if batch_size % count:
            raise UserError(f"--batch_size must divide by the number of processes, {count}, got {batch_size}")
        self.start, self.stop, self.batch_size = start, stop, batch_size
        self.part = range(rank * batch_size // count, (rank + 1) * batch_size // count)

    def __len__(self):
        return self.stop - self.start

    def __iter__(self):
        for step in range(self.start, self.stop):
            yield [step * self.batch_size + i for i in self.part]


class Told(Dataset):
    """The draws of `dataset`, or the OSError that one met: raised in a loading process it would lose its message."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitems__(self, numbers):
        try:
            return default_collate([self.dataset[n] for n in numbers])
        except OSError as error:
            return error


def _as_it_is(batch):
    return batch


def batches(dataset, sampler, device="cpu", num_workers=0, worker_init_fn=None):
    """The `sampler`'s batches of an `UnpairedCrops`: {name: (N, ...) tensor on `device`}.

    Raises OSError where an image cannot be read.
    """
    device = torch.device(device)
    loader = DataLoader(Told(dataset), batch_sampler=sampler, num_workers=num_workers, worker_init_fn=worker_init_fn,
                        collate_fn=_as_it_is, pin_memory=device.type == "cuda", generator=torch.Generator())
    try:
        for batch in loader:
            if isinstance(batch, OSError):
                raise batch
            yield {k: v.to(device, non_blocking=True) for k, v in batch.items()}
    except Exception as error:
        # its frames hold the loading processes, which no signal ends: this process would wait for them for ever
        traceback.clear_frames(error.__traceback__)
        raise
