"""Crops on disk, as the networks see them. `python prepare.py` makes them.

Layout, for each split ("train", "test", "val" if wanted):

    DATAROOT/SPLIT/objects/STEM.png        x: an object in its surroundings
    DATAROOT/SPLIT/backgrounds/STEM.png    y: no object; unpaired
    DATAROOT/SPLIT/masks/STEM.png          optional: the object's mask, white = object; for tests, mode supervised
    DATAROOT/SPLIT/crops.json              optional: each object's box in its crop, class, source

Crops cut by other means need only the folders objects/ and backgrounds/.
"""
import json
import os
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset, Sampler

from images import to_rgb

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def list_images(folder):
    """{stem: path} of the image files in `folder`, sorted by name; empty if there is no such folder.

    Hidden files are passed over. ValueError where two files have one stem.
    """
    if not os.path.isdir(folder):
        return {}
    names = sorted(n for n in os.listdir(folder) if n.lower().endswith(EXTENSIONS) and not n.startswith("."))
    images = {}
    for name in names:
        stem = os.path.splitext(name)[0]
        if stem in images:
            raise ValueError(f"{images[stem]} and {name} have one name: names must differ before the extension")
        images[stem] = os.path.join(folder, name)
    return images


def open_image(path):
    """The picture at `path` as a PIL image, RGB, upright. OSError, naming it, if it cannot be read as one."""
    return _open(path, lambda image: to_rgb(ImageOps.exif_transpose(image)))


def open_mask(path):
    """The mask at `path` as a PIL image, L, 255 = object, 128 = void. OSError, naming it, if it is none."""
    return _open(path, _to_mask)


def _open(path, convert):
    try:
        with Image.open(path) as image:
            return convert(image)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise OSError(f"cannot read the image {path} ({error}): replace or remove it") from error


def _to_mask(image):
    image = ImageOps.exif_transpose(image)
    grey = image.mode in ("1", "L") or image.mode.startswith("I")
    if not grey or image.has_transparency_data:
        opaque = not image.has_transparency_data or image.convert("RGBA").getextrema()[3][0] == 255
        image = to_rgb(image)
        if not opaque or np.ptp(np.asarray(image), axis=2).max() > 16:  # JPEG's greys are coloured by as much
            raise ValueError("a mask must be grey and opaque, with white for the object")
        image = image.convert("L")
    brightest, white = image.getextrema()[1], 65535 if image.mode[0] == "I" else 255
    if 0 < brightest < white / 2:
        raise ValueError(f"its brightest value is {brightest}: in a mask white, {white}, is object")
    return to_rgb(image).convert("L")


def load_image(path, size):
    """An image file, antialiased to size x size px -> (3, size, size) in [-1, 1]."""
    image = open_image(path)
    if image.size != (size, size):
        image = image.resize((size, size), Image.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def load_mask(path, size):
    """A mask file, antialiased to size x size px, then cut at ½ -> (1, size, size) of 0 and 1, 1 = object (void: 0)."""
    mask = open_mask(path)
    if mask.size != (size, size):
        mask = mask.resize((size, size), Image.BILINEAR)
    return (torch.from_numpy(np.array(mask))[None] > 128).float()  # 128 is void: neither object nor background


def save_image(path, image):
    """Write an image (3, H, W) in [-1, 1] or a mask (1, H, W) in [0, 1] as PNG."""
    to_image(image).save(path)


def to_image(image):
    """(3, H, W) in [-1, 1] or (1, H, W) in [0, 1] -> PIL image of mode RGB or L."""
    unit = image if len(image) == 1 else (image + 1) / 2
    pixels = (unit.detach().cpu().clamp(0, 1) * 255 + 0.5).byte()
    return Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())


class Crops:
    """The files of one split.

    Args:
        dataroot, split: see the layout above.
        size: px to which every picture is resized.

    Raises:
        FileNotFoundError: no such folder, or no picture in it.
    """

    def __init__(self, dataroot, split, size):
        root = os.path.join(dataroot, split)
        if not os.path.isdir(root):
            raise FileNotFoundError(f"no folder {root}: --dataroot must hold train/, and may hold test/; "
                                    "`python prepare.py --help` says how to make them")
        if os.path.exists(os.path.join(root, "unfinished.jsonl")):
            raise ValueError(f"{root} is unfinished: repeat the `python prepare.py` command that was making it")
        self.root, self.size = root, size
        self.objects = list_images(os.path.join(root, "objects"))
        self.backgrounds = list_images(os.path.join(root, "backgrounds"))
        masks = list_images(os.path.join(root, "masks"))
        self.masks = {stem: path for stem, path in masks.items() if stem in self.objects}
        if masks and not self.masks:
            raise ValueError(f"no file in {os.path.join(root, 'masks')} has an object's name: masks are found by it")
        for kind in ("objects", "backgrounds"):
            if not getattr(self, kind):
                raise FileNotFoundError(f"no images in {os.path.join(root, kind)}: expected "
                                        f"{', '.join(EXTENSIONS)}; `python prepare.py --help` says how to make them")
        self.stems, self.background_stems = list(self.objects), list(self.backgrounds)
        self.records, self.rules = self._read_records()

    def _read_records(self):
        """The objects' records in crops.json, and the rules that cut them; ({}, []) without the file."""
        path = os.path.join(self.root, "crops.json")
        if not os.path.exists(path):
            return {}, []
        try:
            with open(path, encoding="utf-8") as f:
                written = json.load(f)
            rules = [{k: rule[k] for k in ("fit", "object_size", "crop_size")} for rule in written["rules"]]
            boxed = {k: r for k, r in written["objects"].items() if rules[r.get("origin", 0)] and len(r["box"]) == 4}
            return boxed, rules
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a crops file ({error!r}): make the set anew, or remove it") from error

    def box(self, stem):
        """The object's box in its crop, (4,): left, top, width, height in fractions; the whole crop if unknown."""
        record = self.records.get(stem)
        if record is None:
            return torch.tensor([0.0, 0.0, 1.0, 1.0])
        return torch.tensor(record["box"], dtype=torch.float32) / self.rules[record.get("origin", 0)]["crop_size"]

    def object(self, stem):
        """x of `stem`, (3, size, size) in [-1, 1]."""
        return load_image(self.objects[stem], self.size)

    def background(self, stem):
        """y of `stem`, (3, size, size) in [-1, 1]."""
        return load_image(self.backgrounds[stem], self.size)

    def mask(self, stem):
        """The true mask of `stem`, (1, size, size) of 0 and 1, 1 = object; None if there is none."""
        return load_mask(self.masks[stem], self.size) if stem in self.masks else None


class UnpairedCrops(Dataset):
    """Training pairs <x, y>, drawn independently; draw n depends on (seed, n) alone.

    Each pass over the objects takes every one once, in a new order; the backgrounds likewise, with an
    order of their own. Objects (with box and mask) and backgrounds are flipped left-right, each with probability ½.

    Args:
        crops: a `Crops`.
        seed: of the orders and the flips.
        flip: whether to flip.
        masks: also give true masks; only objects that have one are drawn. ValueError if none has.
    """

    def __init__(self, crops, seed=0, flip=True, masks=False):
        self.crops, self.seed, self.flip, self.masks = crops, seed, flip, masks
        self.objects = [s for s in crops.stems if s in crops.masks] if masks else crops.stems
        if not self.objects:
            raise ValueError(f"mode supervised needs masks, and {os.path.join(crops.root, 'masks')} holds none "
                             "of the objects': add them, or train another mode")

    def __getitem__(self, n):
        """Draw n >= 0 -> {"x", "y": (3, S, S) in [-1, 1], "box": (4,) fractions, "mask": (1, S, S) if asked for}."""
        stem = self._pick(0, n, self.objects)
        x, box = self.crops.object(stem), self.crops.box(stem)
        y = self.crops.background(self._pick(1, n, self.crops.background_stems))
        mask = self.crops.mask(stem) if self.masks else None
        flip_x, flip_y = np.random.default_rng([self.seed, 2, n]).random(2) < 0.5
        if self.flip and flip_x:
            x = x.flip(-1)
            box = torch.stack([1 - box[0] - box[2], *box[1:]])
            mask = mask.flip(-1) if self.masks else None
        if self.flip and flip_y:
            y = y.flip(-1)
        draw = {"x": x, "y": y, "box": box}
        return draw | {"mask": mask} if self.masks else draw

    def files(self, n):
        """The pictures of draw n: paths of object and background."""
        stems = self._pick(0, n, self.objects), self._pick(1, n, self.crops.background_stems)
        return self.crops.objects[stems[0]], self.crops.backgrounds[stems[1]]

    def _pick(self, stream, n, stems):
        epoch, place = divmod(n, len(stems))
        return stems[self._order(stream, epoch, len(stems))[place]]

    @lru_cache(maxsize=4)  # noqa: B019 - a dataset lives as long as its process
    def _order(self, stream, epoch, count):
        return np.random.default_rng([self.seed, stream, epoch]).permutation(count)


class StepSampler(Sampler):
    """Batches of draw numbers for steps start..stop-1: step t takes draws t·batch_size to (t+1)·batch_size - 1.

    So a resumed run draws what an uninterrupted one would have drawn, with any number of workers. Of `count` processes,
    number `rank` takes its equal part of each batch. ValueError if `batch_size` does not divide by `count`.
    """

    def __init__(self, start, stop, batch_size, rank=0, count=1):
        if batch_size % count:
            raise ValueError(f"--batch_size must divide by the number of processes, {count}, got {batch_size}")
        self.start, self.stop, self.batch_size = start, stop, batch_size
        self.part = range(rank * batch_size // count, (rank + 1) * batch_size // count)

    def __len__(self):
        return self.stop - self.start

    def __iter__(self):
        for step in range(self.start, self.stop):
            yield [step * self.batch_size + i for i in self.part]
