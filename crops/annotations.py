"""Readers of COCO's and the data sets' annotations (§4.1, §4.2): every source becomes `Photo`s with `Box`es.

Boxes are (x, y, w, h) in source pixels; pixel (i, j) covers [i, i+1) x [j, j+1), so a box over the whole image is
(0, 0, width, height). Masks stay packed, see `coco_masks`. An annotation that cannot be used is counted by reason in
`Skips`, never guessed at. A file that holds none is a UserError, one that is not there a FileNotFoundError.
"""
import gc
import json
import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from crops.coco_masks import pack_segmentation, read_labels
from crops.values import leads_out, local_names, parse_box, plain_file, read_text, shorten, size_of, to_float
from images import EXTENSIONS, UNREADABLE, UserError, fits, is_box, is_number, list_images, parse_json, stored_size

# what JSON of another shape than expected raises
MISSHAPEN = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)


class Box(NamedTuple):
    """One annotated object of a photograph."""

    x: float  # left edge, source pixels
    y: float  # top edge
    w: float
    h: float
    name: str  # class; "" = not known, then the box only keeps crops away
    id: object  # annotation id, int or str, unique in its image
    crowd: bool = False  # a region of many objects: keeps crops away, is never an object
    score: float = 1.0  # of a detector, 0..1
    mask: tuple = None  # packed, see `coco_masks.decode_mask`


class Photo(NamedTuple):
    """One source image and everything annotated in it."""

    file: str  # name relative to the images' folder, "/" between folders
    path: str  # where to open it
    width: int  # of the image as annotated, pixels; 0 = not said, read it from the file
    height: int
    boxes: list
    upright: bool = False  # boxes mean the image turned as its EXIF orientation says, if it then has the size above
    unplaced: bool = False  # some object of it has no usable box, so no crop of it can be trusted


class Skips:
    """How often each reason to skip an annotation occurred, with the first example of each."""

    def __init__(self):
        self.counts = Counter()
        self.examples = {}

    def add(self, reason: str, example: str, n: int = 1):
        self.counts[reason] += n
        self.examples.setdefault(reason, example)


# --- COCO ---


def read_coco(images, annotations, skips: Skips) -> list:
    """COCO instances: photographs of the folder `images`, boxes and masks of the JSON file `annotations`. Boxes refer
    to photographs as viewers show them, unless the size that it gives is that of the pixels as stored alone."""
    entries, marks, categories = load_coco(annotations, skips)
    names = {item["id"]: item["name"] for item in categories
             if isinstance(item.get("id"), (int, str)) and isinstance(item.get("name"), str)}
    photos, repeated, unplaced = {}, set(), set()
    places = local_names([item.get("file_name") for item in entries], images)
    for index, item in enumerate(entries):
        key, said = item.get("id"), item.get("file_name")
        name = plain_file(places.get(said, said) if isinstance(said, str) else said, images)
        if not isinstance(key, (int, str)) or not name:
            skips.add("bad_image_entry", f"image {key!r}, file_name {shorten(said)}")
            continue
        if leads_out(name, images, skips):
            continue
        photo = Photo(name, f"{images}/{name}", *size_of(item.get("width"), item.get("height")), [], True)
        if photos.setdefault(key, photo).file != name:
            photos[key, index] = photo
            repeated |= {key, (key, index)}
            skips.add("repeated_image_id", f"id {key!r} is that of {name} and of another image")
    for index, item in enumerate(marks):
        key = item.get("image_id")
        if not isinstance(key, (int, str)) or key not in photos:
            skips.add("unknown_image", f"annotation {item.get('id')!r} has image_id {shorten(key)}")
        elif (box := coco_box(item, f"n{index}", names, skips)) is None:
            unplaced.add(key)
        elif key not in repeated:  # else nobody knows whose it is
            photos[key].boxes.append(box)
    unplaced |= repeated
    return with_sizes(merge_photos(photo._replace(unplaced=key in unplaced) for key, photo in photos.items()), skips)


def load_coco(path, skips) -> list:
    """The images, annotations and categories (maybe none) of a COCO file. What is no JSON object there is counted."""
    text = read_text(path)
    gc.disable()  # nothing in it is cyclic, and the collector would go through millions of lists again and again
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): is the file complete?") from None
    finally:
        gc.freeze()
        gc.enable()
    hint = not_coco(data)
    data, parts = {"categories": [], **data} if isinstance(data, dict) else {}, []
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            raise UserError(f"{path} has no list of {key}: {hint}")
        parts.append([item for item in data[key] if isinstance(item, dict)])
        for item in (item for item in data[key] if not isinstance(item, dict)):
            skips.add(f"bad_{key}_entry", f"{key} holds {shorten(item)}")
    return parts


def not_coco(data) -> str:
    """What to do with JSON that is not COCO's, where another program's is recognised."""
    if fits(data, {"shapes": list}):
        return "it is LabelMe's of one image, give the folder of such files"
    if fits(data, {"_via_img_metadata": dict}):
        return "it is a project of VIA, export its annotations as CSV there"
    if fits(data, [dict]) and data and data[0].keys() & {"annotations", "predictions", "data", "image"}:
        return "it looks like Label Studio's JSON, export it as COCO there"
    return "it must be a COCO instances file"


def merge_photos(photos) -> list:
    """One Photo of each file with all its boxes: an image may be listed twice."""
    merged = {}
    for photo in photos:
        earlier = merged.setdefault(photo.file, photo._replace(boxes=[]))
        earlier.boxes.extend(photo.boxes)
        merged[photo.file] = earlier._replace(unplaced=earlier.unplaced or photo.unplaced)
    return list(merged.values())


def coco_box(item, number, names, skips):
    """The Box of one entry of "annotations"; None (counted) where it has none. number: its id if it has no other."""
    if isinstance(item.get("id"), (int, str)):
        number = item["id"]
    example = f"annotation {number!r} of image {item['image_id']!r}"
    rectangle = parse_box(item.get("bbox"))
    if rectangle is None:
        skips.add("bad_box", f"{example} has bbox {shorten(item.get('bbox'))}")
        return None
    mask, crowd = None, bool(item.get("iscrowd"))
    if not crowd:  # whose mask is never needed
        try:
            mask = pack_segmentation(item.get("segmentation"))
        except (TypeError, ValueError, OverflowError):
            skips.add("bad_mask", f"{example}: segmentation {shorten(item.get('segmentation'))}")
    category, score = item.get("category_id"), item.get("score", 1.0)
    name = names.get(category) if isinstance(category, (int, str)) else None
    if name is None:
        skips.add("unknown_class", f"{example} has category_id {shorten(category)}")
    return Box(*rectangle, name or "", number, crowd, score if is_number(score) else 0.0, mask)


# --- Pascal VOC ---


def read_voc(root, image_set, skips: Skips) -> list:
    """Pascal VOC: Annotations/*.xml, JPEGImages/, and SegmentationObject/*.png where present. image_set: a list below
    ImageSets without .txt, e.g. "Segmentation/train"; None = every XML file. VOC counts pixels from 1 and includes the
    last one. Object i of the XML has the value i in the mask; 255, the border between objects, is void."""
    root = Path(root)
    if not (root / "Annotations").is_dir():
        raise FileNotFoundError(f"no folder {root}/Annotations: --root must hold it, as VOCdevkit/VOC2012 does; "
                                "`prepare.py boxes` reads XML files beside their images")
    if image_set is None:
        stems = sorted(path.stem for path in (root / "Annotations").glob("*.xml"))
    else:
        text = read_text(root / "ImageSets" / f"{image_set}.txt",
                         "--image_set names a list below ImageSets, e.g. Segmentation/train")
        stems = [line.split()[0] for line in text.splitlines() if line.strip()]
    photos = [voc_photo(root, stem, skips) for stem in stems]
    return with_sizes(merge_photos(photo for photo in photos if photo is not None), skips)


def voc_photo(root, stem, skips):
    """The Photo of one VOC XML file, or None (counted)."""
    if leads_out(f"{stem}.xml", root / "Annotations", skips) or not (
            parsed := parse_xml(root / "Annotations" / f"{stem}.xml", 1, skips)):
        return None
    said, size, boxes, unplaced = parsed
    file, masks = voc_file(root, stem, said), root / "SegmentationObject" / f"{stem}.png"
    if leads_out(file, root / "JPEGImages", skips) or leads_out(masks.name, masks.parent, skips):
        return None
    if masks.is_file():
        boxes = [box._replace(mask=("png", str(masks), box.id, 255)) for box in boxes]
    return Photo(file, str(root / "JPEGImages" / file), *size, boxes, True, unplaced)


def parse_xml(path, first, skips):
    """(file name, size, boxes, whether one has no usable place) of an XML file of VOC's form, None (counted) if it is
    none. first: the number of the first pixel, 1 where xmax is the last pixel, as VOC has it, 0 where it is an edge."""
    try:
        tree = ElementTree.parse(path)
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: of its encoding
        skips.add("bad_xml", f"{path}: {error}")
        return None
    boxes, unplaced = [], False
    for number, item in enumerate(tree.findall("object"), 1):
        x0, y0, x1, y1 = (to_float(item.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax"))
        rectangle = parse_box([x0 - first, y0 - first, x1 - x0 + first, y1 - y0 + first])
        if rectangle is None:
            skips.add("bad_box", f"object {number} of {path} spans {x0:g},{y0:g} to {x1:g},{y1:g}")
            unplaced = True
        else:
            boxes.append(Box(*rectangle, (item.findtext("name") or "").strip(), number))
    size = size_of(*(to_float(tree.findtext(f"size/{side}")) for side in ("width", "height")))
    return (tree.findtext("filename") or "").strip(), size, boxes, unplaced


def voc_file(root, stem, said) -> str:
    """The image of Annotations/STEM.xml: the one that it says, unless that is another's, as in renamed copies."""
    said, folder = plain_file(said, root / "JPEGImages"), root / "JPEGImages"
    path = PurePosixPath(said)
    if path.stem != stem:
        for end in (path.suffix, ".jpg", *EXTENSIONS):
            if (folder / f"{stem}{end}").is_file():
                return f"{stem}{end}"
    is_others = path.stem != stem and (root / "Annotations" / f"{path.stem}.xml").is_file()
    return said if said and not is_others and (folder / said).is_file() else f"{stem}.jpg"


# --- Cityscapes ---

CITYSCAPES_INSTANCES = {"person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "caravan": 29,
                        "trailer": 30, "train": 31, "motorcycle": 32, "bicycle": 33}


def read_cityscapes(root, image_set, skips: Skips) -> list:
    """Cityscapes: gtFine polygons and instance ids over leftImg8bit. image_set: "train" or "val" (the annotations of
    "test" are blank). Only classes with instances are objects; groups and the own car keep crops away."""
    files = sorted(Path(root, "gtFine", image_set).glob("*/*_gtFine_polygons.json"))
    if not files:
        raise FileNotFoundError(f"no cities with *_gtFine_polygons.json in {root}/gtFine/{image_set}: see --root")
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
    (width, height), seen, boxes = size_of(data["imgWidth"], data["imgHeight"]), Counter(), []
    if not width:
        raise ValueError("it gives no size of its image")
    labels = path.with_name(path.name.replace("_polygons.json", "_instanceIds.png"))
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
        box = Box(x0, y0, x1 - x0 + 1, y1 - y0 + 1, name, f"group{index}", crowd=True)
        if label in CITYSCAPES_INSTANCES:
            # numbered as cityscapesScripts number the instances of the label image
            number = CITYSCAPES_INSTANCES[label] * 1000 + seen[label]
            seen[label] += 1
            mask = ("png", str(labels), number, None) if labels.is_file() else None
            box = box._replace(id=number, crowd=False, mask=mask)
        boxes.append(box)
    return width, height, boxes


# --- Oxford-IIIT Pet ---


def read_pets(root, image_set, skips: Skips) -> list:
    """Oxford-IIIT Pet (root: the folder with images/ and annotations/): a cat or a dog in each photograph. The box is
    the extent of the trimap's pet and border (the XML boxes hold only heads), the mask the pet, the border void."""
    text = read_text(Path(root, "annotations", f"{image_set}.txt"), "--root must hold annotations and images")
    photos = []
    for words in (line.split() for line in text.splitlines() if not line.startswith("#")):
        if len(words) < 3:
            continue
        trimap, file = Path(root, "annotations", "trimaps", f"{words[0]}.png"), f"{words[0]}.jpg"
        if leads_out(f"{words[0]}.png", Path(root, "annotations", "trimaps"), skips) or leads_out(
                file, Path(root, "images"), skips):
            continue
        try:
            labels = read_labels(str(trimap))
        except UNREADABLE as error:
            skips.add("bad_mask", f"{trimap}: {error}")
            continue
        extent = Image.fromarray(labels != 2).getbbox()
        if extent is None:
            skips.add("bad_box", f"{trimap} has no pet")
            continue
        x, y, right, bottom = extent
        species, mask = {"1": "cat", "2": "dog"}.get(words[2], ""), ("png", str(trimap), 1, 3)
        box = Box(x, y, right - x, bottom - y, species, 1, mask=mask)
        photos.append(Photo(file, str(Path(root, "images", file)), *labels.shape[::-1], [box]))
    return photos


# --- CUB-200-2011 ---


def read_cub(root, image_set, skips: Skips) -> list:
    """CUB-200-2011 (root: the folder with images.txt): a bird in each photograph. image_set: "train" or "test", by
    train_test_split.txt. The class is the image's folder without its number, as in classes.txt; the box x, y, w, h.

    segmentations/, a download of its own, is 255 where all five annotators saw the bird and a fifth less for each who
    did not: object where three of them did (153 and more), else background; there is no void.
    """
    files, boxes, split = ({words[0]: words[1:] for line in read_text(Path(root, name), "--root must hold images.txt, "
                            "as CUB_200_2011 does").splitlines() if (words := line.split())}
                           for name in ("images.txt", "bounding_boxes.txt", "train_test_split.txt"))
    photos, images, masks = [], Path(root, "images"), Path(root, "segmentations")
    for key, (said, *_) in ((key, words) for key, words in files.items() if words):
        file, part = plain_file(said, images), split.get(key)
        if part != [str(int(image_set == "train"))]:
            if part not in (["0"], ["1"]):
                skips.add("bad_split", f"train_test_split.txt says {shorten(part)} of image {key}")
            continue
        mask = str(PurePosixPath(file).with_suffix(".png")) if file else ""
        if leads_out(file or said, images, skips) or leads_out(mask, masks, skips):
            continue
        rectangle = parse_box([to_float(text) for text in boxes.get(key, ())])
        if rectangle is None:
            skips.add("bad_box", f"image {key}, {file}, has the box {shorten(boxes.get(key))}")
            continue
        name = PurePosixPath(file).parts[0].partition(".")[2]
        packed = ("mask", str(masks / mask)) if (masks / mask).is_file() else None
        photos.append(Photo(file, str(images / file), 0, 0, [Box(*rectangle, name or "bird", 1, mask=packed)]))
    return with_sizes(photos, skips)


# --- photographs without annotations, and what a detector found in them ---


def photo_files(folder, without=()) -> list:
    """Image files of a folder and of those in it but for `without`, see `list_images`. UserError when there is none."""
    if os.path.isfile(folder):
        raise UserError(f"{folder} is a file: give the folder of images")
    names = list_images(folder, below=True, without=without)
    if not names:
        raise UserError(f"no image in {folder}: expected files that end in {', '.join(EXTENSIONS)}")
    return names


def read_folder(folder, skips: Skips, prefix="", without=()) -> list:
    """`photo_files` as Photos, upright and without boxes. prefix: put before their names."""
    photos = [Photo(prefix + name, f"{folder}/{name}", 0, 0, [], True) for name in photo_files(folder, without)]
    return with_sizes(photos, skips)


def read_detections(images, annotations, skips: Skips) -> list:
    """The lines that `prepare.py detect` writes, one image each: {"folder", "file", "width", "height", "boxes": [[x, y,
    w, h, class, score], ...]}, in pixels of the upright image. A last line cut short is left out, and so are lines
    of other folders, unless none is of the folder `images`: then it was moved."""
    here, elsewhere = {}, {}
    for number, line in enumerate(read_text(annotations).splitlines(), 1):
        item = parse_json(line, DETECTIONS)
        file, size = item and plain_file(item["file"], images), item and size_of(item["width"], item["height"])
        if not file or not size[0]:
            skips.add("bad_line", f"line {number} of {annotations}: {shorten(line)}")
        elif not leads_out(file, images, skips):
            boxes = [Box(*map(float, box[:4]), box[4], index, score=float(box[5]))
                     for index, box in enumerate(item["boxes"])]
            photo = Photo(file, f"{images}/{file}", *size, boxes, True)
            (here if item.get("folder") == os.path.abspath(images) else elsewhere)[file] = photo
    return list((here or elsewhere).values())


def is_detection(box) -> bool:
    """Whether a value of JSON is x, y, w, h, class, score."""
    return fits(box, list) and len(box) == 6 and is_box(box[:4]) and isinstance(box[4], str) and is_number(box[5])


DETECTIONS = {"file": str, "width": is_number, "height": is_number, "boxes": [is_detection], "least_score?": is_number}


def with_sizes(photos, skips: Skips) -> list:
    """Read the sizes that annotations do not give from the files; unreadable ones are counted and left out. Files that
    are not there stay: `build` counts them."""
    known = []
    for photo in photos:
        if photo.width == 0 and os.path.isfile(photo.path):
            try:
                size, orientation = stored_size(photo.path)
            except UNREADABLE as error:
                skips.add("image_unreadable", f"{photo.path}: {error}")
                continue
            width, height = size[::-1] if photo.upright and orientation > 4 else size
            photo = photo._replace(width=width, height=height)
        known.append(photo)
    return known
