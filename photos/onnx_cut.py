"""Cut an object out of a photograph with an exported G_seg: onnxruntime, numpy and Pillow, no torch.

    python photos/onnx_cut.py exported/segment.onnx dog.jpg 820,410,600,450 cutout.png

An example for programs of your own, which needs no other file of this project. photo.py does more: it refines the mask
by colours, draws it to the photograph's edges, and frees the object's edge of the colours behind it.
"""
import json
import math
import sys

import numpy as np
from PIL import Image, ImageOps


def window_of(box, rule):
    """What the network sees around a box, as in training: left, top, width, height in pixels, floats."""
    x, y, w, h = box
    grow = rule["crop_size"] / rule["object_size"]
    width, height = (grow * w, grow * h) if rule["fit"] == "warp" else (grow * max(w, h),) * 2
    return x + w / 2 - width / 2, y + h / 2 - height / 2, width, height


def crop(pixels, window, size):
    """A window of (H, W, 3) uint8, reflected beyond the border, resized to (size, size, 3)."""
    x, y, w, h = window
    beyond = 2 * math.ceil(max(w / size, h / size, 1)) + 1  # what resizing reads outside the window
    left, right = math.floor(x) - beyond, math.ceil(x + w) + beyond
    top, bottom = math.floor(y) - beyond, math.ceil(y + h) + beyond
    before = max(-top, 0), max(-left, 0)
    after = max(bottom - pixels.shape[0], 0), max(right - pixels.shape[1], 0)
    pixels = np.pad(pixels, [(before[0], after[0]), (before[1], after[1]), (0, 0)], mode="reflect")
    part = pixels[top + before[0]:bottom + before[0], left + before[1]:right + before[1]]
    inside = (x - left, y - top, x - left + w, y - top + h)
    return np.asarray(Image.fromarray(part).resize((size, size), Image.Resampling.BICUBIC, box=inside))


def network_mask(session, image, box):
    """The mask of the object in `box` (x, y, w, h in pixels of an upright RGB image), (S, S) in [0, 1], 1 = object, and
    the window that it covers."""
    told = session.get_modelmeta().custom_metadata_map
    window = x, y, w, h = window_of(box, json.loads(told["crop_rule"]))
    seen = crop(np.asarray(image), window, int(told["size"])).transpose(2, 0, 1)[None].astype(np.float32) / 255
    local = np.array([[(box[0] - x) / w, (box[1] - y) / h, box[2] / w, box[3] / h]], np.float32)
    return session.run(["mask"], {"image": seen, "box": local})[0][0, 0], window


def main(model, photograph, box, out):
    import onnxruntime
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    image = ImageOps.exif_transpose(Image.open(photograph)).convert("RGB")
    mask, (x, y, w, h) = network_mask(session, image, [float(side) for side in box.split(",")])
    alpha = Image.new("L", image.size)
    alpha.paste(Image.fromarray((mask * 255 + 0.5).astype(np.uint8)).resize((round(w), round(h))), (round(x), round(y)))
    image.putalpha(alpha)
    image.save(out)


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 5 else sys.exit(__doc__)
