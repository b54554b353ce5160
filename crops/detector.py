"""Boxes from a pretrained detector (§4.1), for photographs that nobody annotated.

Deviation: torchvision's Faster R-CNN has a ResNet-50 with a feature pyramid, the paper's a ResNet-101.
torch and torchvision are imported where they are needed, so that the other sources do without.
"""
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np

from crops.annotations import DETECTIONS, Photo, photo_files
from crops.cutting import open_annotated
from crops.values import leads_out
from images import UserError, check_archive, parse_json

WEIGHTS = "https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"
LEAST_SCORE = 0.3  # detections below it are not even kept as obstacles (see also `rules.doubles`)


def load_detector(weights, device):
    """torchvision's fasterrcnn_resnet50_fpn in eval mode. weights: a state dict file, None = torchvision's, downloaded
    once. UserError when they cannot be had."""
    import torch
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn

    if weights is None:
        try:
            model = fasterrcnn_resnet50_fpn(weights=FasterRCNN_ResNet50_FPN_Weights.COCO_V1)
        except (OSError, RuntimeError) as error:
            raise UserError(f"the detector's weights cannot be downloaded ({error}): fetch {WEIGHTS} elsewhere and "
                            "give it as --detector_weights FILE") from None
    else:
        model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        try:
            check_archive(weights)
            model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except FileNotFoundError:
            raise FileNotFoundError(f"no file {weights}: --detector_weights takes what {WEIGHTS} holds") from None
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, TypeError,
                AttributeError, zipfile.BadZipFile) as error:
            why = isinstance(error, OSError) and error.strerror or (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{weights} does not hold the weights of fasterrcnn_resnet50_fpn ({why}): it must be "
                            f"what {WEIGHTS} holds") from None
    return model.eval().to(device)


def category_names() -> list:
    """COCO's class names by the detector's label."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    return FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]


def detect_boxes(model, image, names, device="cpu", least_score=LEAST_SCORE) -> list:
    """Objects in an RGB PIL image as [x, y, w, h, class, score], pixels, best score first.

    model: takes a list of (3, H, W) tensors in [0, 1] and returns [{"boxes": (n, 4) x0, y0, x1, y1, "labels": (n,),
    "scores": (n,)}], as torchvision's detectors do. names: class by label.
    """
    import torch

    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255).to(device)
    with torch.no_grad():
        found = model([tensor])[0]
    values = zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True)
    kept = [[x0, y0, x1 - x0, y1 - y0, names[label], score] for (x0, y0, x1, y1), label, score in values
            if score >= least_score]
    return sorted(kept, key=lambda box: -box[5])


def detect_folder(folder, path: Path, find, skips, without=(), least_score=LEAST_SCORE):
    """Run `find` (image -> boxes, see `detect_boxes`) on all images below `folder` but `without` (see
    `images.list_images`), a line each to `path`, which `annotations.read_detections` reads.

    Photographs of this folder that `path` has already are not done again, so an interrupted run continues. Each line
    names its folder: photographs of several folders may have one name. UserError where it has them of another
    `least_score`, that of `find`.
    """
    from tqdm import tqdm  # here: prepare.py --help need not wait for it

    names = photo_files(folder, without)
    done, place = set(), os.path.abspath(folder)
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        items = [parse_json(line, DETECTIONS) for line in whole]
        if None in items:
            raise UserError(f"{path} is not a list of detections: delete it to detect anew")
        if len(whole) < len(lines):  # cut short: the next line must not be glued to it
            path.write_bytes(b"".join(whole))
        mine = [item for item in items if item.get("folder") == place]
        others = {item.get("least_score", LEAST_SCORE) for item in mine} - {least_score}
        if others:
            raise UserError(f"{path} holds what was detected with --least_score {others.pop()}, not {least_score:g}: "
                            "name another --boxes, or delete it to detect anew")
        done = {item["file"] for item in mine}
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        for name in tqdm([name for name in names if name not in done], desc="detect", unit="image", disable=None):
            if leads_out(name, folder, skips):
                continue
            try:
                image = open_annotated(Photo(name, f"{folder}/{name}", 0, 0, [], True))
            except OSError as error:
                skips.add("image_unreadable", str(error))
                continue
            line = {"folder": place, "file": name, "width": image.width, "height": image.height,
                    "least_score": least_score, "boxes": find(image)}
            file.write(json.dumps(line) + "\n")
            file.flush()
