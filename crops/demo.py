"""The demo set: procedural images with exact masks, in the folder layout of data.py.

An object is a shaded, patterned body of varied outline (lobes, limbs, bays) on a textured background. Both take their
colours from one distribution, so neither colour nor brightness alone tells them apart over the set: pattern, shading
and the closed outline do. Drawn at four times the size, then averaged. Each image depends on (seed, split, kind, index)
alone: same seed, same files.
"""
import colorsys
import os
from pathlib import Path

import numpy as np
from PIL import Image

from crops.index import EMPTY, save_index
from images import OBJECT, UserError

SIZE = 64  # px, side of an image
OBJECT_SIZE = 50  # px, side of the object's box, centred: the 100-in-128 rule
OVERSAMPLING = 4
COUNTS = {"train": {"objects": 800, "backgrounds": 1600}, "val": {"objects": 150, "backgrounds": 150},
          "test": {"objects": 200, "backgrounds": 200}}
STREAMS = "train", "test", "val"  # of random numbers


def noise(rng, side, cells, octaves=1, stretch=1.0):
    """Smooth random field (side, side), mean 0 and standard deviation 1, with about `cells` bumps a side,
    each octave twice as fine at half the height; `stretch` > 1 draws it out along one axis."""
    field = np.zeros((side, side))
    for i in range(octaves):
        n = max(2, round(cells * 2**i))
        shape = (n, max(2, round(n / stretch)))
        grid = Image.fromarray(rng.standard_normal(shape).astype(np.float32))
        field += np.asarray(grid.resize((side, side), Image.BICUBIC)) / 2**i
    field -= field.mean()
    return field / (field.std() + 1e-6)


def grid(side, extent=1.0):
    """Coordinates (u, v), each (side, side), from -extent to extent."""
    axis = (np.arange(side) + 0.5) / side * 2 * extent - extent
    return np.meshgrid(axis, axis)


def rotated(u, v, angle):
    return u * np.cos(angle) + v * np.sin(angle), -u * np.sin(angle) + v * np.cos(angle)


def palette(rng):
    """Two colours (2, 3) in [0, 1]: the same distribution for objects and for backgrounds."""
    hue, value = rng.random(), rng.uniform(0.3, 0.8)
    return np.array([
        colorsys.hsv_to_rgb((hue + h) % 1, rng.uniform(0.15, 0.75), np.clip(value + dv, 0.1, 1.0))
        for h, dv in ((0, 0.15), (rng.normal(0, 0.08), -0.15))
    ])


def blend(colours, weight):
    """Mix two colours (2, 3) by a field in [0, 1] -> (side, side, 3)."""
    return colours[0] + (colours[1] - colours[0]) * weight[..., None]


def background(rng, side):
    """An image (side, side, 3) of natural-looking texture: clouds, fibres or gravel, unevenly lit."""
    colours = palette(rng)
    kind = rng.integers(3)
    cells = rng.uniform(2, 6)
    if kind == 0:
        field = noise(rng, side, cells, octaves=5)
    elif kind == 1:
        field = noise(rng, side, 4 * cells, octaves=2, stretch=rng.uniform(3, 8))
        field = field if rng.random() < 0.5 else field.T
    else:
        field = 0.6 * noise(rng, side, 5 * cells, octaves=2) + 0.6 * noise(rng, side, 2, octaves=2)
    image = blend(colours, 1 / (1 + np.exp(-1.5 * field)))
    light = 1 + 0.12 * noise(rng, side, 2)  # cloud shadows: as bright and as dark as the objects' shading
    return image * light[..., None] + rng.normal(0, 0.02, (side, side, 1))


def pattern(rng, side):
    """A regular pattern in [0, 1], (side, side): stripes, spots or patches."""
    u, v = rotated(*grid(side), rng.uniform(0, np.pi))
    bend = 0.08 * noise(rng, side, 3)
    frequency = rng.uniform(9, 16)
    kind = rng.integers(3)
    if kind == 0:
        wave = np.sin(frequency * (u + bend))
    elif kind == 1:
        wave = np.sin(frequency * (u + bend)) * np.sin(frequency * (v - bend)) * 2 - 0.4
    else:
        wave = np.sign(np.sin(frequency * (u + bend)) * np.sin(frequency * (v + bend)))
    return 1 / (1 + np.exp(-4 * wave))


def outline(rng, side):
    """A body (side, side), positive inside: a lobed core, with limbs, less a bay or two. It fills its array's box."""
    extent = 1.7
    u, v = grid(side, extent)
    u, v = rotated(u, v, rng.uniform(0, 2 * np.pi))
    angle, radius = np.arctan2(v, u), np.hypot(u, v * rng.uniform(1.0, 2.2))
    edge = np.full_like(radius, 0.8)
    for k in range(2, 6):
        edge = edge + rng.normal(0, 0.28 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    body = edge - radius
    for _ in range(rng.integers(0, 4)):  # limbs
        a, long, wide = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 0.8), rng.uniform(0.12, 0.25)
        p, q = rotated(u - 0.7 * np.cos(a), v - 0.7 * np.sin(a), a + rng.normal(0, 0.4))
        body = np.maximum(body, wide * (1 - np.hypot(p / long, q / wide)))
    for _ in range(rng.integers(0, 3)):  # bays
        a, r = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.5)
        body = np.minimum(body, np.hypot(u - np.cos(a), v - np.sin(a)) - r)
    return _fill_box(body)


def _fill_box(body):
    """Resample so that the bounding box of the inside, but for tips thinner than 2 px, becomes the whole array."""
    side, inside = len(body), body > 0
    rows, cols = (np.nonzero(inside.sum(axis) >= 2 * OVERSAMPLING)[0] for axis in (1, 0))
    box = (cols[0], rows[0], cols[-1] + 1, rows[-1] + 1)
    return np.asarray(Image.fromarray(body.astype(np.float32)).resize((side, side), Image.BILINEAR, box=box))


def body(rng, side):
    """A patterned, shaded body that fills its box: its surface (side, side, 3), and its inside (side, side), bool."""
    form = outline(rng, side)
    weight = np.clip(pattern(rng, side), 0, 1)
    u, v = grid(side)
    height = np.sqrt(np.clip(form / (form.max() + 1e-6), 0, 1))  # a bulge: 0 at the outline, 1 inside
    a = rng.uniform(0, 2 * np.pi)
    light = 0.68 + 0.5 * height + 0.18 * (u * np.cos(a) + v * np.sin(a))
    surface = blend(palette(rng), weight) * light[..., None] + rng.normal(0, 0.02, (side, side, 1))
    return surface, form > 0


def draw(seed, split, kind, index, background=background, body=body):
    """One image.

    Args:
        split: "train", "val" or "test"; kind: "objects" or "backgrounds".
        background, body: what draws them, called as those above are.

    Returns:
        image (SIZE, SIZE, 3) uint8, and its mask (SIZE, SIZE) uint8, 255 = object (None for a background).
    """
    rng = np.random.default_rng([seed, STREAMS.index(split), ("objects", "backgrounds").index(kind), index])
    side = SIZE * OVERSAMPLING
    image = background(rng, side)
    if kind == "backgrounds":
        return _to_bytes(_shrink(image)), None
    inner = OBJECT_SIZE * OVERSAMPLING
    surface, inside = body(rng, inner)
    mask = np.zeros((side, side))
    start = (SIZE - OBJECT_SIZE) // 2 * OVERSAMPLING
    window = (slice(start, start + inner),) * 2
    mask[window] = inside
    image[window] = np.where(inside[..., None], surface, image[window])
    coverage = _shrink(mask[..., None])[..., 0]
    return _to_bytes(_shrink(image)), np.where(coverage >= 0.5, OBJECT, 0).astype(np.uint8)


def _shrink(image):
    k, n = OVERSAMPLING, len(image) // OVERSAMPLING
    return image.reshape(n, k, n, k, -1).mean((1, 3))


def _to_bytes(image):
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def write_demo(dataroot, seed=0, counts=None, draw=draw):
    """Write the demo set to `dataroot` in data.py's layout; crops.json, written last, marks a split as whole.

    counts: {split: {kind: how many}}; draw: `draw`, or what draws another set likewise.
    """
    from tqdm import tqdm  # here: prepare.py --help need not wait for it

    counts = counts or COUNTS
    with tqdm(total=sum(sum(kinds.values()) for kinds in counts.values()), unit="image", disable=None) as bar:
        for split, kinds in counts.items():
            folder, index = Path(dataroot, split), {**EMPTY, "objects": {}, "backgrounds": {}, "images": []}
            for kind, count in kinds.items():
                for name in (kind, "masks") if kind == "objects" else (kind,):
                    (folder / name).mkdir(parents=True, exist_ok=True)
                for i in range(count):
                    image, mask = draw(seed, split, kind, i)
                    stem = f"{i:05d}"
                    Image.fromarray(image).save(folder / kind / f"{stem}.png")
                    if mask is not None:
                        Image.fromarray(mask).save(folder / "masks" / f"{stem}.png")
                    index[kind][stem] = _record(kind, stem)
                    bar.update()
            number = {kind: len(index[kind]) for kind in ("objects", "backgrounds")}
            index["rules"] = [{"command": "demo", "seed": seed, "fit": "warp", "object_size": OBJECT_SIZE,
                               "crop_size": SIZE, "plan": "", "counts": {**number, "masks": number["objects"]}}]
            save_index(folder, index)


def _record(kind, stem):
    """The entry of an image in crops.json: it is its own source."""
    record = {"source": f"{kind}/{stem}", "source_size": [SIZE, SIZE], "source_window": [0, 0, SIZE, SIZE], "origin": 0}
    start = (SIZE - OBJECT_SIZE) // 2
    box = [start, start, OBJECT_SIZE, OBJECT_SIZE]
    return {**record, "source_box": box, "box": box, "class": "body"} if kind == "objects" else record


def make_demo(dataroot, seed=0):
    """`write_demo` for users: UserError rather than writing into a folder that holds other things."""
    if os.path.isdir(dataroot) and os.listdir(dataroot) and not _is_demo(dataroot):
        raise UserError(f"the demo set would be written into {dataroot}, which holds other things: name a new folder")
    print(f"drawing the demo set in {dataroot}, about a minute")
    write_demo(dataroot, seed)


def _is_demo(dataroot):
    """Whether the folder holds a demo set, whole or not: every image in it is numbered as ours are, nothing a link."""
    if not set(os.listdir(dataroot)) <= {*COUNTS, ".lock"}:
        return False
    paths = [os.path.join(root, name) for root, *names in os.walk(dataroot) for name in sum(names, [])]
    names = [os.path.basename(path) for path in paths if not os.path.isdir(path)]
    return not any(map(os.path.islink, paths)) and all(
        name in ("crops.json", "sources.json", ".lock") or name.endswith(".json.part")
        or (len(name) == 9 and name[:5].isdigit())
        for name in names)
