"""Cut an object out of a photograph, remove it, paste it elsewhere, or move it, at the photograph's own size.

    cutout, mask = edit.cut(model, Image.open("dog.jpg"), (820, 410, 600, 450))
    cutout, mask = edit.cut(None, Image.open("dog.jpg"), mask=Image.open("corrected.png"))

Photographs are PIL images of any mode and are not changed. Boxes are x, y, width, height in pixels of the photograph as
viewers show it (turned as its EXIF orientation says); they may cross its border. Masks are of mode L, 255 = object,
values between are its alpha. A mask of one's own, of the photograph's upright size, takes the place of a box and of
G_seg's mask, and is used as it is; `cut` then needs no model.
`model` is that of any method (see running/methods.py), such as `SEIGAN.load` gives.

The networks see a crop around the box, cut by the rule of their training and resized to their size; what they give is
carried back: masks are upsampled guided by the photograph, changes are upsampled as differences, so that detail stays,
and what fills the hole, as coarse as the networks, is given detail from around it.
"""
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops

import crf
import losses
from crops.detector import category_names, detect_boxes
from crops.rules import Rules, object_window
from images import UserError
from photos import files, matting
from photos.detail import copied

GRID = 256  # cells across the crop of a cut, on which the colours beside its edge are averaged


class Cut(NamedTuple):
    image: Image.Image  # the object alone, RGBA, as large as the photograph
    mask: Image.Image  # m


class Removal(NamedTuple):
    image: Image.Image  # x_hat: the photograph without the object, grey if it was grey, transparent where it was
    mask: Image.Image  # where it was changed; where this is 0, every pixel is the photograph's


class Paste(NamedTuple):
    image: Image.Image  # y_hat: the object on the background
    coarse: Image.Image  # z = m*x + (1-m)*y, before G_enh
    mask: Image.Image  # m on the background; where this is 0, every pixel of z is the background's


class Move(NamedTuple):
    image: Image.Image  # the photograph with the object elsewhere
    mask: Image.Image  # where it was and where it is; where this is 0, every pixel is the photograph's


class Crop(NamedTuple):
    """What the networks see of a photograph, and where it lies."""
    box: tuple  # x, y, w, h of the object
    seen: np.ndarray  # the photograph, transparency over white, (H, W, 3) uint8
    window: tuple  # of the crop, see `matting`
    region: tuple  # the photograph's pixels in it
    x: torch.Tensor  # (1, 3, S, S) in [-1, 1]
    m: torch.Tensor  # G_seg(x), refined or not, or the mask of one's own, (1, 1, S, S) in [0, 1]
    alpha: np.ndarray  # m at the photograph's resolution over `region`, uint8


def cut(model, image: Image.Image, box=None, dilate: int = 0, refine: bool = True, mask=None) -> Cut:
    """Cut out the object in `box`, with a soft mask, and edge colours freed of the surroundings.

    Args:
        model: may be None with a mask of one's own.
        dilate: widen the mask by this many pixels; negative = narrow it.
        refine: draw the model's mask to the photograph's colours inside the box (`crf.refine_box`).
        mask: one's own, in place of `box`. The mask of a cut gives the same cut again.

    Raises UserError for a box without area or outside the image, and for a mask of another size or without object.
    """
    _require_one(box, mask)
    image = files.normalise(image)
    transparency, seen = files.split(image)[1:]
    if mask is None:
        part, alpha = _segment(model, seen, box, dilate, refine), np.zeros(seen.shape[:2], np.uint8)
        alpha[matting.inside(part.region, (0, 0))] = part.alpha
    else:
        alpha = matting.grow(_own(mask, seen), dilate)
    alpha = alpha if transparency is None else np.minimum(alpha, transparency)
    colours = np.zeros_like(seen)
    if extent := _extent(alpha):  # the colours follow from the mask alone, wherever it came from
        window = object_window(extent, Rules())
        region = matting.hull(window, *image.size)
        place = matting.inside(region, (0, 0))
        colours[place] = matting.foreground(seen, alpha[place], window, region, GRID, GRID)
    return Cut(files.merge(colours, alpha, image), Image.fromarray(alpha))


def remove(model, image: Image.Image, box=None, seed: int = 0, dilate: int | None = None, raw: bool = False,
           refine: bool = True, detail: bool = True, mask=None) -> Removal:
    """Remove the object in `box`: x_hat = G_inp((1-m)*x) in its place.

    Args:
        seed: of the noise; the same seed gives the same image.
        dilate: widen the hole by this many pixels, negative = narrow it; default one pixel of the networks' crop.
        raw: change the whole crop as G_inp does, not only the hole and its rim; without copied detail.
        refine, mask: as for `cut`.
        detail: give the fill the detail of what surrounds it (`detail.copied`).

    Raises UserError as `cut`, and for a model without G_inp.
    """
    require_inpainting(model)
    image = files.normalise(image)
    rgb, transparency, seen = files.split(image)
    room = (3, 2) if dilate is None else (2, max(dilate, 0))  # the hole is wider than the mask, and tapers beside it
    part = _part(model, seen, box, mask, refine=refine, room=room)
    cell = max(part.window[2:]) / model.size  # one pixel of the crop, in the photograph's
    hole = _hole(part.alpha, cell, dilate)
    fill, change, known = _inpaint(model, part, hole, seed, raw)
    grain = copied(seen, fill, known, part.window, part.region) if detail and not raw else None
    fill, change = matting.Planes(fill, part.window), matting.Planes(change, part.window)
    # at the crop's border the hole must not end abruptly, even if the object reaches it
    down, across = matting.taper(part.region, image.size, 2 * cell, 2 * cell)
    down_raw, across_raw = matting.taper(part.region, image.size, 0.1 * part.window[2], 0.1 * part.window[3])
    out, touched = rgb.copy(), np.zeros(rgb.shape[:2], np.uint8)
    for strip in matting.strips(part.region):
        local, place = matting.inside(strip, part.region), matting.inside(strip, (0, 0))
        weight = hole[local] / np.float32(255) * down[local[0]] * across
        pixels, reached = out[place].astype(np.float32), weight
        if raw:
            everywhere = down_raw[local[0]] * across_raw
            pixels += everywhere[..., None] * change.at(strip)  # the photograph's detail stays
            reached = np.maximum(weight, everywhere)
        filled = fill.at(strip) if grain is None else fill.at(strip) + grain[local]
        pixels += weight[..., None] * (filled - pixels)
        out[place] = np.clip(pixels + 0.5, 0, 255)
        touched[place] = np.ceil(reached * 255)
    grey = "L" if image.mode in ("L", "LA") else None
    return Removal(files.merge(out, transparency, image, grey), Image.fromarray(touched))


def paste(model, image: Image.Image, box, background: Image.Image, at=None, seed: int = 0, dilate: int = 0,
          raw: bool = False, refine: bool = True, mask=None) -> Paste:
    """Paste the object in `box` onto `background`: y_hat = G_enh(z), z = m*x + (1-m)*y; z for a model without G_enh.

    Args:
        at: x, y of the object's box on the background, pixels, and its w, h if it is to be resized; it may cross the
            border. Default: in the middle, made smaller if it does not fit.
        seed, dilate, refine, mask: as for `remove` and `cut`. With a mask the object's box is the mask's extent.
        raw: change the whole crop of the background as G_enh does, not only the object.

    Raises UserError as `cut`, and for an `at` outside the background.
    """
    background = files.normalise(background)
    image = files.to_profile(files.normalise(image), background.info.get("icc_profile"))
    transparency, seen = files.split(image)[1:]
    part = _part(model, seen, box, mask, dilate, refine)
    at = _position(at, part.box, background.size)
    cutout = np.dstack([_colours(part), _limited(part, transparency)])
    window, region, cutout = _shift(cutout, part, at, background.size)
    rgb, backing, seen = files.split(background)
    z = losses.paste(part.x, _tensor(matting.crop(seen, window, model.size, model.size), part.x), part.m)
    y_hat = z if getattr(model, "enhance", None) is None else model.enhance(z, seed)
    change = matting.Planes(_planes(y_hat - z) * 127.5, window)
    out, coarse, placed = rgb.copy(), rgb.copy(), np.zeros(rgb.shape[:2], np.uint8)
    backing = None if backing is None else backing.copy()
    down, across = matting.taper(region, background.size, 0.1 * window[2], 0.1 * window[3])
    for strip in matting.strips(region):
        local, place = matting.inside(strip, region), matting.inside(strip, (0, 0))
        m = cutout[local][..., 3:] / np.float32(255)
        share = m  # of the object in what is seen; less than all of it on a transparent background
        if backing is not None:
            total = m[..., 0] + backing[place] / np.float32(255) * (1 - m[..., 0])
            share = m / np.maximum(total, 1e-6)[..., None]
            backing[place] = total * 255 + 0.5
        pixels = share * cutout[local][..., :3] + (1 - share) * out[place]
        coarse[place] = pixels + 0.5
        weight = (down[local[0]] * across)[..., None] if raw else m
        out[place] = np.clip(pixels + weight * change.at(strip) + 0.5, 0, 255)
        placed[place] = cutout[local][..., 3]
    return Paste(*(files.merge(pixels, backing, background) for pixels in (out, coarse)), Image.fromarray(placed))


def move(model, image: Image.Image, box=None, at=None, seed: int = 0, dilate: int | None = None, refine: bool = True,
         detail: bool = True, mask=None) -> Move:
    """Move the object to `at`: `remove` it, then `paste` it on what is left. Arguments and errors are theirs; the two
    places may overlap."""
    removal = remove(model, image, box, seed, dilate, refine=refine, detail=detail, mask=mask)
    pasted = paste(model, image, box, removal.image, at, seed, dilate or 0, refine=refine, mask=mask)
    return Move(pasted.image, ImageChops.lighter(removal.mask, pasted.mask))


def detect(detector, image: Image.Image, score: float = 0.8, classes=()) -> list:
    """Boxes of what a detector finds, best first: [x, y, w, h, class, score] each.

    detector: of the interface of torchvision's, e.g. `crops.detector.load_detector`'s; score: least score, 0 to 1;
    classes: names of COCO to keep, () = all.
    """
    seen = files.split(files.normalise(image))[2]
    device = next(iter(detector.parameters()), torch.empty(0)).device
    found = detect_boxes(detector, Image.fromarray(seen), category_names(), device, score)
    return [box for box in found if not classes or box[4] in classes]


def require_inpainting(model):
    """UserError unless the model can remove objects."""
    if getattr(model, "inpaint", None) is None:
        raise UserError(f"a model of class {type(model).__name__} has no G_inp and cannot remove objects: "
                        "take one of a method that trains it, such as seigan")


def box_problem(box, size, what="the box"):
    """What is wrong with a box, in one line; None if it has an area and part of it lies within `size`."""
    if len(box) != 4 or not all(map(math.isfinite, box)) or min(box[2:]) <= 0:
        return f"a box must be x, y, width, height in pixels with a width and height above 0, got {tuple(box)}"
    if box[0] >= size[0] or box[1] >= size[1] or box[0] + box[2] <= 0 or box[1] + box[3] <= 0:
        return f"{what} {','.join(f'{side:g}' for side in box)} lies outside the image of {size[0]} x {size[1]} pixels"
    return None


def mask_problem(mask, size):
    """What is wrong with a mask of one's own, in one line; None if it is as large as the photograph, of `size` upright,
    and has an object."""
    if mask.size != size:
        return (f"the mask has {mask.width} x {mask.height} pixels, its photograph {size[0]} x {size[1]} upright: "
                "give one of that size")
    if not np.asarray(mask).any():
        return "the mask is 0 everywhere: it must be white, 255, on the object"
    return None


# --- between the photograph and the networks ---


def crop_rule(model) -> Rules:
    """How a model's crops are cut; that of §4.2 where it does not know."""
    return Rules(**(model.config.get("crop_rule") or {}))


def _part(model, seen, box, mask, dilate=0, refine=True, room=(0, 0)) -> Crop:
    """The object's Crop: around its box, with G_seg's mask, or around a mask of one's own. room: for `_around`."""
    _require_one(box, mask)
    if mask is None:
        return _segment(model, seen, box, dilate, refine)
    alpha = _own(mask, seen)
    box, wide = _extent(alpha), matting.grow(alpha, dilate)
    return _around(model, seen, wide, _extent(wide) or box, room)._replace(box=box)


def _require_one(box, mask):
    if (box is None) == (mask is None):
        raise ValueError("an object takes either a box or a mask")


def _own(mask, seen):
    """A mask of one's own as (H, W) uint8. UserError where it cannot be of the photograph."""
    if problem := mask_problem(mask, seen.shape[1::-1]):
        raise UserError(problem)
    return np.asarray(mask.convert("L"))


def _around(model, seen, alpha, box, room=(0, 0)) -> Crop:
    """The Crop around `box`, cut by the model's rule, of a mask (H, W) uint8 of the whole photograph.

    room: pixels of the crop and pixels of the photograph to leave beside the box at least, where the rule leaves less.
    """
    x0, y0, w, h = object_window(box, crop_rule(model))
    long = max(w, h, (max(box[2:]) + 2 * room[1]) / (1 - 2 * room[0] / model.size))
    beside = 2 * (room[0] * long / model.size + room[1]) if any(room) else 0
    wider, higher = max(box[2] + beside - w, 0), max(box[3] + beside - h, 0)
    window = (x0 - wider / 2, y0 - higher / 2, w + wider, h + higher)
    region = matting.hull(window, *seen.shape[1::-1])
    x = _tensor(matting.crop(seen, window, model.size, model.size), model.box)
    alpha = alpha[matting.inside(region, (0, 0))]
    return Crop(box, seen, window, region, x, _shrink(alpha, window, region, x), alpha)


def _extent(alpha):
    """x, y, w, h of what a mask (H, W) has above 0; None where that is nothing."""
    extent = Image.fromarray(alpha).getbbox()
    return extent and (*extent[:2], extent[2] - extent[0], extent[3] - extent[1])


def _segment(model, seen, box, dilate=0, refine=True) -> Crop:
    """Cut the crop around `box`, segment it, refine the mask, and carry it back."""
    if problem := box_problem(box, seen.shape[1::-1]):
        raise UserError(problem)
    window = object_window(box, crop_rule(model))
    region = matting.hull(window, *seen.shape[1::-1])
    x = _tensor(matting.crop(seen, window, model.size, model.size), model.box)
    local = [(box[0] - window[0]) / window[2], (box[1] - window[1]) / window[3],
             box[2] / window[2], box[3] / window[3]]
    m = fine = model.segment(x, local)
    if refine:
        finer = _tensor(matting.crop(seen, window, 2 * model.size, 2 * model.size), model.box)
        fine = crf.refine_box(finer, m, torch.tensor([local], device=x.device), getattr(model, "crf_bias", 0.0))
        m = F.avg_pool2d(fine, 2)
    alpha = matting.upsample_mask(seen, fine[0, 0].cpu().numpy(), window, region)
    if dilate:
        alpha = matting.grow(alpha, dilate)
        m = _shrink(alpha, window, region, m)
    return Crop(box, seen, window, region, x, m, alpha)


def _hole(alpha, cell, dilate):
    """What is to be filled, like `alpha`: the object and a soft rim. cell: a pixel of the crop, in the photograph's."""
    # what counts half as object goes entirely: a half-removed object is a ghost
    core = np.clip(alpha.astype(np.int16) * 4 - 255, 0, 255).astype(np.uint8)
    core = matting.grow(core, math.ceil(cell) if dilate is None else dilate)
    return matting.feather(core, math.ceil(1.5 * cell))


def _inpaint(model, part, hole, seed, raw):
    """G_inp's fill of the hole and its change of what surrounds it, (3, S, S) in levels of 255, and where there is no
    hole, (S, S) bool."""
    m = torch.maximum(part.m, _shrink(hole, part.window, part.region, part.m))
    x_hat = model.inpaint(part.x, m, seed)
    change = _planes(x_hat - part.x) * 127.5
    # What G_inp changes where there is no hole is its error, in the hole too: a smooth surface through that
    # error is taken off the fill, which so meets the photograph at the rim.
    known = m[0, 0].cpu().numpy() < 0.02
    error = 0 if raw else matting.membrane(change, known)
    return np.clip(_planes(x_hat + 1) * 127.5 - error, 0, 255), change, known


def _colours(part):
    """The object's colours (h, w, 3) over part.region."""
    fine = (4 * n for n in part.m.shape[-2:])
    return matting.foreground(part.seen, part.alpha, part.window, part.region, *fine)


def _limited(part, transparency):
    """part.alpha, but no more than the photograph's own alpha (H, W), if it has one."""
    return part.alpha if transparency is None else np.minimum(
        part.alpha, transparency[matting.inside(part.region, (0, 0))])


def _shrink(alpha, window, region, like):
    """`alpha` over `region` as the networks' mask (1, 1, S, S)."""
    local = (window[0] - region[0], window[1] - region[1], *window[2:])
    small = matting.crop(alpha, local, *like.shape[:-3:-1])
    return torch.from_numpy(small / np.float32(255)).to(like)[None, None]


def _tensor(pixels, like):
    """(S, S, 3) uint8 -> (1, 3, S, S) in [-1, 1], float32 on the device of `like`."""
    return (torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()).float() / 127.5 - 1).to(like.device)


def _planes(image):
    """(1, C, S, S) -> numpy (C, S, S)."""
    return image[0].float().cpu().numpy()


def _position(at, box, size):
    """`at` as the object's whole box on a background of `size`."""
    if at is None:
        scale = min(1, 0.8 * size[0] / box[2], 0.8 * size[1] / box[3])
        w, h = (box[2], box[3]) if scale == 1 else (scale * box[2], scale * box[3])
        at = ((size[0] - w) / 2, (size[1] - h) / 2, w, h)
    elif len(at) == 2:
        at = (*at, *box[2:])
    if problem := box_problem(at, size, "the object's new place"):
        raise UserError(problem)
    return at


def _shift(cutout, part, at, size):
    """The cut-out (h, w, 4) over part.region, moved from its box to `at` on a background of `size`: the crop's window
    there, the region in it, and the cut-out over that. Without a change of size it is moved by whole pixels."""
    (x0, y0, w, h), box = part.window, part.box
    scale_x, scale_y = at[2] / box[2], at[3] / box[3]
    if scale_x == scale_y == 1:
        window = (x0 + round(at[0] - box[0]), y0 + round(at[1] - box[1]), w, h)
    else:
        window = (at[0] + (x0 - box[0]) * scale_x, at[1] + (y0 - box[1]) * scale_y, w * scale_x, h * scale_y)
    left, top, right, bottom = region = matting.hull(window, *size)
    source = ((left - window[0]) / scale_x + x0 - part.region[0], (top - window[1]) / scale_y + y0 - part.region[1],
              (right - left) / scale_x, (bottom - top) / scale_y)
    if scale_x == scale_y == 1:
        source = (round(source[0]), round(source[1]), *source[2:])
    return window, region, matting.crop(cutout, source, right - left, bottom - top, beyond="zero")
