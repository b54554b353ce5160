"""Readers of data sets that come in a layout of their own: Pascal VOC, Cityscapes, Oxford-IIIT Pet (§4.2).

Boxes, masks and `Skips` as in annotations.py.
"""
import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from crops.annotations import (
    MISSHAPEN,
    Box,
    Photo,
    Skips,
    is_inside,
    merge_photos,
    parse_box,
    read_text,
    size_of,
    to_float,
    with_sizes,
)
from crops.coco_masks import read_labels
from images import EXTENSIONS, UNREADABLE

# --- Pascal VOC ---


def read_voc(root, image_set, skips: Skips) -> list:
    """Pascal VOC: Annotations/*.xml, JPEGImages/, and SegmentationObject/*.png where present.

    root: the folder that holds them (VOCdevkit/VOC2012). image_set: a list below ImageSets without .txt, e.g.
    "Segmentation/train"; None = every XML file. VOC counts pixels from 1 and includes the last one: the box is
    (xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1). Object i of the XML has the value i in the mask; 255, the
    border between objects, is void.
    """
    folder = Path(root, "Annotations")
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: --root must hold it and JPEGImages, as VOCdevkit/VOC2012 does")
    if image_set is None:
        stems = sorted(path.stem for path in folder.glob("*.xml"))
    else:
        text = read_text(Path(root, "ImageSets", f"{image_set}.txt"),
                         "--image_set names a list below ImageSets, e.g. Segmentation/train")
        stems = [line.split()[0] for line in text.splitlines() if line.strip()]
    photos = [voc_photo(Path(root), stem, skips) for stem in stems]
    return with_sizes(merge_photos(photo for photo in photos if photo is not None), skips)


def voc_photo(root, stem, skips):
    """The Photo of one VOC XML file, or None (counted)."""
    path = root / "Annotations" / f"{stem}.xml"
    try:
        tree = ElementTree.parse(path)
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: of its encoding
        skips.add("bad_xml", f"{path}: {error}")
        return None
    file = voc_file(root, stem, (tree.findtext("filename") or "").strip())
    width, height = (to_float(tree.findtext(f"size/{side}")) for side in ("width", "height"))
    masks = root / "SegmentationObject" / f"{stem}.png"
    has_masks = masks.is_file()
    boxes, unplaced = [], False
    for number, item in enumerate(tree.findall("object"), 1):
        x0, y0, x1, y1 = (to_float(item.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax"))
        rectangle = parse_box([x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1])
        if rectangle is None:
            skips.add("bad_box", f"object {number} of {path} spans {x0:g},{y0:g} to {x1:g},{y1:g}")
            unplaced = True
            continue
        mask = ("png", str(masks), number, 255) if has_masks else None
        boxes.append(Box(*rectangle, (item.findtext("name") or "").strip(), number, mask=mask))
    return Photo(file, str(root / "JPEGImages" / file), *size_of(width, height), boxes, unplaced=unplaced)


def voc_file(root, stem, said) -> str:
    """The image of Annotations/STEM.xml: the one that it says, unless that is another's, as in renamed copies."""
    path = PurePosixPath(said)
    if path.stem != stem:
        for end in (path.suffix, ".jpg", *EXTENSIONS):
            if (root / "JPEGImages" / f"{stem}{end}").is_file():
                return f"{stem}{end}"
    is_others = path.stem != stem and (root / "Annotations" / f"{path.stem}.xml").is_file()
    return said if is_inside(said) and not is_others and (root / "JPEGImages" / said).is_file() else f"{stem}.jpg"


# --- Cityscapes ---

CITYSCAPES_INSTANCES = {"person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "caravan": 29,
                        "trailer": 30, "train": 31, "motorcycle": 32, "bicycle": 33}


def read_cityscapes(root, image_set, skips: Skips) -> list:
    """Cityscapes: gtFine polygons and instance ids over leftImg8bit.

    image_set: "train" or "val" (the test set's annotations are blank, its images are not). Only classes with instances
    are objects; groups and the own car keep crops away.
    """
    folder = Path(root, "gtFine", image_set)
    files = sorted(folder.glob("*/*_gtFine_polygons.json"))
    if not files:
        raise FileNotFoundError(f"no *_gtFine_polygons.json in the cities of {folder}: --root must hold gtFine and "
                                "leftImg8bit")
    photos = []
    for path in files:
        file = f"{path.parent.name}/{path.name.removesuffix('_gtFine_polygons.json')}_leftImg8bit.png"
        try:
            photos.append(Photo(file, str(Path(root, "leftImg8bit", image_set, file)), *cityscapes_objects(path)))
        except (OSError, *MISSHAPEN) as error:
            skips.add("bad_annotation_file", f"{path}: {error!r}")
    return photos


def cityscapes_objects(path):
    """(width, height, boxes) of one gtFine polygon file."""
    data = json.loads(path.read_text(encoding="utf-8"))
    width, height = int(data["imgWidth"]), int(data["imgHeight"])
    labels = path.with_name(path.name.replace("_polygons.json", "_instanceIds.png"))
    seen, boxes = Counter(), []
    for index, item in enumerate(data["objects"]):
        label = item["label"]
        name = label.removesuffix("group")
        if item.get("deleted") or name not in CITYSCAPES_INSTANCES and label != "ego vehicle":
            continue
        points = np.array(item["polygon"], dtype=float)
        if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
            raise ValueError(f"object {index} has no polygon")
        x0, y0 = points.min(axis=0).clip(0, (width - 1, height - 1)).tolist()
        x1, y1 = points.max(axis=0).clip(0, (width - 1, height - 1)).tolist()
        mask, number = None, f"group{index}"
        if label in CITYSCAPES_INSTANCES:
            # numbered as cityscapesScripts number the instances of the label image
            number = CITYSCAPES_INSTANCES[label] * 1000 + seen[label]
            seen[label] += 1
            mask = ("png", str(labels), number, None) if labels.is_file() else None
        boxes.append(Box(x0, y0, x1 - x0 + 1, y1 - y0 + 1, name, number, label not in CITYSCAPES_INSTANCES, mask=mask))
    return width, height, boxes


# --- Oxford-IIIT Pet ---


def read_pets(root, image_set, skips: Skips) -> list:
    """Oxford-IIIT Pet (root: the folder with images/ and annotations/): class cat or dog, one a photograph.

    The box is the extent of the trimap's pet and border (its XML boxes hold only heads); the mask is the pet, the
    border void. image_set: "trainval" or "test".
    """
    text = read_text(Path(root, "annotations", f"{image_set}.txt"),
                     "--root must hold images and annotations of Oxford-IIIT Pet")
    photos = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 3 or line.startswith("#"):
            continue
        trimap = Path(root, "annotations", "trimaps", f"{words[0]}.png")
        try:
            labels = read_labels(str(trimap))
        except UNREADABLE as error:
            skips.add("bad_mask", f"{trimap}: {error}")
            continue
        rows, columns = (np.flatnonzero((labels != 2).any(axis=axis)) for axis in (1, 0))
        if rows.size == 0:
            skips.add("bad_box", f"{trimap} has no pet")
            continue
        x, y = int(columns[0]), int(rows[0])
        w, h = int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y
        box = Box(x, y, w, h, {"1": "cat", "2": "dog"}.get(words[2], ""), 1, mask=("png", str(trimap), 1, 3))
        file = f"{words[0]}.jpg"
        photos.append(Photo(file, str(Path(root, "images", file)), labels.shape[1], labels.shape[0], [box]))
    return photos
