"""Readers of box annotations (§4.1, §4.2): every source becomes a list of `Photo`s with `Box`es.

Boxes are (x, y, w, h) in source pixels; pixel (i, j) covers [i, i+1) x [j, j+1), so a box over the whole
image is (0, 0, width, height). Masks: 255 = object, 0 = background, 128 = void (the annotation says
"ignore"). An annotation that cannot be used is counted by reason in `Skips`, never guessed at. This file
needs numpy and Pillow only.
"""
import csv
import json
import os
import posixpath
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from crops.coco_masks import pack_segmentation, read_labels
from crops.jsonstream import iterate_json
from images import UserError, load_tiff

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# what Pillow raises on files that are cut short, damaged, hostile or not images
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError,
              MemoryError, Image.DecompressionBombError)


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
    mask: tuple = None  # packed, see `decode_mask`


class Photo(NamedTuple):
    """One source image and everything annotated in it."""

    file: str  # name relative to the images' folder, "/" between folders
    path: str  # where to open it
    width: int  # of the image as annotated, pixels; 0 = not said, read it from the file
    height: int
    boxes: list
    upright: bool = False  # boxes refer to the image turned upright as its EXIF orientation says
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
    """COCO instances: photographs of the folder `images`, boxes and masks of the JSON file `annotations`.

    Streams the file: at a million annotations memory stays well below the file's parsed form, because
    polygons are packed as they come. Unusable annotations are counted in `skips`. Boxes refer to the pixels
    as stored (COCO's own tools ignore EXIF; see `crops.open_photo` for what happens when sizes disagree).
    """
    photos, names, boxes, unplaced, repeated = {}, {}, defaultdict(list), set(), {}
    missing = {"images", "annotations"}
    for index, (key, item) in enumerate(iterate_json(annotations, ("images", "annotations", "categories"))):
        missing.discard(key)
        if not isinstance(item, dict):
            skips.add(f"bad_{key}_entry", f"{key} holds {shorten(item)}")
        elif key == "categories":
            if isinstance(item.get("id"), (int, str)) and isinstance(item.get("name"), str):
                names[item["id"]] = item["name"]
        elif key == "images":
            photo = coco_photo(images, item, skips)
            if photo is not None and photos.setdefault(item["id"], photo).file != photo.file:
                photos[item["id"], index] = photo
                repeated[item["id"], index] = f"id {item['id']!r} is that of {photo.file} and of another image"
        else:
            coco_annotation(item, index, boxes, unplaced, skips)
    if missing:
        raise UserError(f"{annotations} has no {' and no '.join(sorted(missing))}: it must be a COCO "
                         "instances file")
    for image_id in boxes.keys() - photos.keys():
        skips.add("unknown_image", f"image_id {image_id!r} is not among the images", len(boxes[image_id]))
    for (image_id, index), example in repeated.items():  # nobody knows whose the boxes are
        skips.add("repeated_image_id", example)
        boxes.pop(image_id, None)
        unplaced |= {image_id, (image_id, index)}
    named = [photo._replace(boxes=name_classes(boxes.get(key, []), names, skips), unplaced=key in unplaced)
             for key, photo in photos.items()]
    return with_sizes(merge(named), skips)


def merge(photos) -> list:
    """One Photo of each file with all its boxes: an image may be listed twice."""
    merged = {}
    for photo in photos:
        earlier = merged.get(photo.file, photo._replace(boxes=[]))
        merged[photo.file] = earlier._replace(boxes=earlier.boxes + photo.boxes,
                                              unplaced=earlier.unplaced or photo.unplaced)
    return list(merged.values())


def coco_photo(images, item, skips):
    """The Photo of one entry of `images`, or None (counted) where its file name or id is unusable."""
    name = plain_name(item.get("file_name"), images)
    if not isinstance(item.get("id"), (int, str)) or not name:
        skips.add("bad_image_entry", f"image {item.get('id')!r}, file_name {shorten(item.get('file_name'))}")
        return None
    width, height = (item.get(k) if is_count(item.get(k)) else 0 for k in ("width", "height"))
    return Photo(name, f"{images}/{name}", int(width), int(height), [])


def coco_annotation(item, index, boxes, unplaced, skips):
    """Add the Box of one entry of `annotations` (its class an id) to boxes[image id], or count why not."""
    image_id, number = item.get("image_id"), item.get("id", f"n{index}")
    if not isinstance(image_id, (int, str)):
        skips.add("unknown_image", f"annotation {number!r} has image_id {shorten(image_id)}")
        return
    rectangle = parse_box(item.get("bbox"))
    if rectangle is None:
        skips.add("bad_box",
                  f"annotation {number!r} of image {image_id!r} has bbox {shorten(item.get('bbox'))}")
        unplaced.add(image_id)
        return
    if not isinstance(number, (int, str)):
        number = f"n{index}"
    category = item.get("category_id")
    score = item.get("score", 1.0)
    mask = None
    if not item.get("iscrowd"):  # a crowd's mask is never needed
        try:
            mask = pack_segmentation(item.get("segmentation"))
        except (TypeError, ValueError, OverflowError):
            skips.add("bad_mask", f"annotation {number!r} of image {image_id!r}: segmentation "
                                  f"{shorten(item.get('segmentation'))}")
    boxes[image_id].append(Box(*rectangle, category if isinstance(category, (int, str)) else None, number,
                               bool(item.get("iscrowd")), score if is_number(score) else 0.0, mask))


def name_classes(boxes, names, skips):
    """Replace class ids by names; an unknown class is counted and its box only keeps crops away."""
    named = []
    for box in boxes:
        if box.name not in names:
            skips.add("unknown_class", f"annotation {box.id!r} has category_id {box.name!r}")
        named.append(box._replace(name=names.get(box.name, "")))
    return named


# --- Pascal VOC ---


def read_voc(root, image_set, skips: Skips) -> list:
    """Pascal VOC: Annotations/*.xml, JPEGImages/, and SegmentationObject/*.png where present.

    root: the folder that holds them (VOCdevkit/VOC2012). image_set: a list below ImageSets without .txt,
    e.g. "Segmentation/train"; None = every XML file. VOC counts pixels from 1 and includes the last one:
    the box is (xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1). Object i of the XML has the value i
    in the mask; 255, the border between objects, is void.
    """
    folder = Path(root, "Annotations")
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: --root must hold Annotations and JPEGImages, "
                         "as VOCdevkit/VOC2012 does")
    if image_set is None:
        stems = sorted(path.stem for path in folder.glob("*.xml"))
    else:
        path = Path(root, "ImageSets", f"{image_set}.txt")
        if not path.is_file():
            raise ValueError(f"no list {path}: --image_set names a list below ImageSets, "
                             "e.g. Segmentation/train")
        stems = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    photos = [voc_photo(Path(root), stem, skips) for stem in stems]
    return with_sizes(merge(photo for photo in photos if photo is not None), skips)


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
    size = (int(width), int(height)) if is_count(width) and is_count(height) else (0, 0)
    return Photo(file, str(root / "JPEGImages" / file), *size, boxes, unplaced=unplaced)


def voc_file(root, stem, said) -> str:
    """The picture of Annotations/STEM.xml: the one that it says, unless that is another's, as in renamed copies."""
    path = PurePosixPath(said)
    if path.stem != stem:
        for end in (path.suffix, *EXTENSIONS):
            if (root / "JPEGImages" / f"{stem}{end}").is_file():
                return f"{stem}{end}"
    is_others = path.stem != stem and (root / "Annotations" / f"{path.stem}.xml").is_file()
    return said if is_inside(said) and not is_others and (root / "JPEGImages" / said).is_file() else f"{stem}.jpg"


# --- Cityscapes ---

CITYSCAPES_INSTANCES = {"person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "caravan": 29,
                        "trailer": 30, "train": 31, "motorcycle": 32, "bicycle": 33}
CITYSCAPES_BOXES = {"gtFine": None, "citypersons": "gtBboxCityPersons", "3d": "gtBbox3d"}


def read_cityscapes(root, image_set, boxes, skips: Skips) -> list:
    """Cityscapes: gtFine polygons and instance ids over leftImg8bit.

    image_set: "train" or "val" (the test set's annotations are blank, its images are not). boxes: "gtFine",
    or "citypersons" / "3d" to take the boxes of gtBboxCityPersons / gtBbox3d where an object has one. Only
    classes with instances are objects; groups and the own car keep crops away.
    """
    folder = Path(root, "gtFine", image_set)
    files = sorted(folder.glob("*/*_gtFine_polygons.json"))
    if not files:
        raise ValueError(f"no *_gtFine_polygons.json in the cities of {folder}: --root must hold gtFine and "
                         "leftImg8bit")
    photos = []
    for path in files:
        stem, city = path.name.removesuffix("_gtFine_polygons.json"), path.parent.name
        kind = CITYSCAPES_BOXES[boxes]
        extra = Path(root, kind, image_set, city, f"{stem}_{kind}.json") if kind else None
        file = f"{city}/{stem}_leftImg8bit.png"
        try:
            width, height, found = cityscapes_objects(path, extra)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            skips.add("bad_annotation_file", f"{path}: {error!r}")
            continue
        photos.append(Photo(file, str(Path(root, "leftImg8bit", image_set, file)), width, height, found))
    return photos


def cityscapes_objects(path, extra):
    """(width, height, boxes) of one gtFine polygon file; `extra`: a file with better boxes, or None."""
    data = json.loads(path.read_text(encoding="utf-8"))
    width, height = int(data["imgWidth"]), int(data["imgHeight"])
    labels = path.with_name(path.name.replace("_polygons.json", "_instanceIds.png"))
    seen, boxes = Counter(), {}
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
        boxes[number] = Box(x0, y0, x1 - x0 + 1, y1 - y0 + 1, name, number,
                            crowd=label not in CITYSCAPES_INSTANCES, mask=mask)
    if extra is not None and extra.is_file():
        replace_boxes(boxes, json.loads(extra.read_text(encoding="utf-8")))
    return width, height, list(boxes.values())


def replace_boxes(boxes, data):
    """Enter the boxes of a gtBboxCityPersons or gtBbox3d file into `boxes` {instance id: Box}.

    CityPersons: "bbox" (the full body); 3D: "2d"/"modal" (the visible part). Objects that gtFine does not
    have are added; ignore regions keep crops away.
    """
    for index, item in enumerate(data["objects"] + data.get("ignore", [])):
        box = item.get("bbox", item.get("2d"))
        rectangle = parse_box(box["modal"] if isinstance(box, dict) else box)
        if rectangle is None:
            raise ValueError(f"object {index} of its box file has the box {shorten(box)}")
        number, label = item.get("instanceId", -1), item.get("label", "ignore")
        if number in boxes and not boxes[number].crowd:
            x, y, w, h = rectangle
            boxes[number] = boxes[number]._replace(x=x, y=y, w=w, h=h)
        else:
            group = label == "ignore" or "group" in label or index >= len(data["objects"])
            boxes[f"box{index}"] = Box(*rectangle, label, f"box{index}", crowd=group)


# --- CSV ---

CSV_BOXES = (("x", "y", "w", "h"), ("x", "y", "width", "height"), ("xmin", "ymin", "xmax", "ymax"),
             ("x0", "y0", "x1", "y1"), ("x1", "y1", "x2", "y2"))


def read_csv(images, annotations, skips: Skips) -> list:
    """A CSV file, one box a line, with a header: file, and x,y,w,h or xmin,ymin,xmax,ymax (continuous pixel
    coordinates: xmax is the right edge); class, id, score, crowd (0 or 1), mask (an image file, > 127 =
    object, 128 = void) optional. A line with a file and an empty box says that an image has no object.

    Boxes refer to the image as viewers show it, i.e. turned as its EXIF orientation says.
    """
    photos, unplaced = defaultdict(list), set()
    if not os.path.isfile(annotations):
        raise FileNotFoundError(f"no annotation file {annotations}: check --annotations")
    with open(annotations, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        header = [name.strip().lower() for name in reader.fieldnames or []]
        reader.fieldnames = header
        columns = next((names for names in CSV_BOXES if set(names) <= set(header)), None)
        if "file" not in header or columns is None:
            raise UserError(f"{annotations} must start with a header that has file and x,y,w,h or "
                             f"xmin,ymin,xmax,ymax, got {shorten(','.join(header))}")
        try:
            for number, row in enumerate(reader, 2):
                csv_row(images, number, row, columns, photos, unplaced, skips)
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{annotations} is not a CSV text in UTF-8: {error}") from None
    return with_sizes([Photo(name, f"{images}/{name}", 0, 0, boxes, True, name in unplaced)
                       for name, boxes in photos.items()], skips)


def csv_row(images, number, row, columns, photos, unplaced, skips):
    """Add the Box of one line to photos[file], or count why not."""
    name = plain_name((row["file"] or "").strip(), images)
    if not name:
        skips.add("bad_image_entry", f"line {number} names the file {shorten(row['file'])}")
        return
    boxes = photos[name]
    if not any((row[c] or "").strip() for c in columns):
        return
    x, y, a, b = (to_float(row[c]) for c in columns)
    rectangle = parse_box([x, y, a, b] if columns[2][0] in "wh" else [x, y, a - x, b - y])
    if rectangle is None:
        skips.add("bad_box", f"line {number} has the box {shorten(','.join(str(row[c]) for c in columns))}")
        unplaced.add(name)
        return
    optional = ("class", "id", "crowd", "score", "mask")
    label, key, crowd, score, mask = ((row.get(column) or "").strip() for column in optional)
    score = to_float(score or 1)
    boxes.append(Box(*rectangle, label or "object", key or number, crowd.lower() not in ("", "0", "false"),
                     score if is_number(score) else 0.0,
                     ("png", f"{images}/{plain_name(mask, images) or mask}", None, 128) if mask else None))


# --- Oxford-IIIT Pet ---


def read_pets(root, image_set, skips: Skips) -> list:
    """Oxford-IIIT Pet (root: the folder with images/ and annotations/): class cat or dog, one a photograph.

    The box is the extent of the trimap's pet and border (its XML boxes hold only heads); the mask is the
    pet, the border void. image_set: "trainval" or "test".
    """
    path = Path(root, "annotations", f"{image_set}.txt")
    if not path.is_file():
        raise ValueError(f"no list {path}: --root must hold images and annotations of Oxford-IIIT Pet")
    photos = []
    for line in path.read_text().splitlines():
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
        species = {"1": "cat", "2": "dog"}.get(words[2], "")
        w, h = int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y
        box = Box(x, y, w, h, species, 1, mask=("png", str(trimap), 1, 3))
        file = f"{words[0]}.jpg"
        photos.append(Photo(file, str(Path(root, "images", file)), labels.shape[1], labels.shape[0], [box]))
    return photos


# --- photographs without annotations, and what a detector found in them ---


def list_images(folder, without=()) -> list:
    """All image files below a folder, as names relative to it, sorted. ValueError when there are none.

    without: real paths of files and folders to leave out.
    """
    names = []
    for root, folders, files in os.walk(folder):
        real = os.path.realpath(root)
        if real in without:
            folders.clear()
            continue
        names += [Path(root, name).relative_to(folder).as_posix() for name in files
                  if name.lower().endswith(EXTENSIONS) and os.path.join(real, name) not in without]
    names.sort()
    if not names:
        raise ValueError(f"no image in {folder}: expected files that end in {', '.join(EXTENSIONS)}")
    return names


def read_folder(folder, skips: Skips, prefix="", without=()) -> list:
    """Every photograph below a folder, turned upright, without boxes. prefix: put before the names. without: see
    `list_images`."""
    photos = [Photo(prefix + name, f"{folder}/{name}", 0, 0, [], True) for name in list_images(folder, without)]
    return with_sizes(photos, skips)


def read_detections(images, annotations, skips: Skips) -> list:
    """The lines that `prepare.py detect` writes, one image each: {"folder", "file", "width", "height", "boxes": [[x, y,
    w, h, class, score], ...]}, in pixels of the upright image. A last line cut short is left out, and so are lines
    of other folders, unless none is of the folder `images`: then it was moved."""
    here, elsewhere = {}, {}
    for number, line in enumerate(Path(annotations).read_text(encoding="utf-8").splitlines(), 1):
        try:
            item = json.loads(line)
            boxes = [Box(*map(float, box[:4]), str(box[4]), index, score=float(box[5]))
                     for index, box in enumerate(item["boxes"])]
            size = int(item["width"]), int(item["height"])
            photo = Photo(item["file"], f"{images}/{item['file']}", *size, boxes, True)
            if not is_inside(photo.file) or any(parse_box(box[:4]) is None for box in boxes):
                raise ValueError("unusable file name or box")
            photos = here if item.get("folder") == os.path.abspath(images) else elsewhere
            photos[photo.file] = photo
        except (ValueError, KeyError, TypeError, IndexError) as error:
            skips.add("bad_line", f"line {number} of {annotations}: {error!r}")
    return list((here or elsewhere).values())


def with_sizes(photos, skips: Skips) -> list:
    """Read the sizes that annotations do not give from the files; unreadable ones are counted and left out.

    Files that do not exist stay: that they are missing is noticed, and counted, before cutting.
    """
    known = []
    for photo in photos:
        if photo.width == 0 and os.path.isfile(photo.path):
            try:
                width, height = image_size(photo.path, photo.upright)
            except UNREADABLE as error:
                skips.add("image_unreadable", f"{photo.path}: {error}")
                continue
            photo = photo._replace(width=width, height=height)
        known.append(photo)
    return known


def image_size(path, upright: bool):
    """(width, height) from an image file's header; upright: after turning it as its EXIF orientation says."""
    with Image.open(path) as image:
        load_tiff(image)
        turned = upright and image.getexif().get(0x0112) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


# --- values from files that may hold anything ---


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def is_count(value) -> bool:
    return is_number(value) and 0 < value < 1e6 and value == int(value)


def is_inside(name: str) -> bool:
    """True for a relative file name that stays in its folder."""
    path = PurePosixPath(name)
    return bool(name) and not set(name) & {"\\", "\0"} and not path.is_absolute() and ".." not in path.parts


def plain_name(name, folder) -> str:
    """The one way to write a file name of `folder`, "" if it is none: "./a.png" is "a.png", and "\\" is "/" where the
    file is found so."""
    if isinstance(name, str) and "\\" in name and os.path.isfile(os.path.join(folder, name.replace("\\", "/"))):
        name = name.replace("\\", "/")
    return posixpath.normpath(name) if isinstance(name, str) and is_inside(name) else ""


def parse_box(values):
    """(x, y, w, h) as floats from a list of four, None unless all are numbers below 1e7 and w, h >= 0."""
    if not isinstance(values, (list, tuple)) or len(values) != 4 or not all(map(is_number, values)):
        return None
    x, y, w, h = map(float, values)
    return (x, y, w, h) if w >= 0 and h >= 0 and max(map(abs, (x, y, w, h))) < 1e7 else None


def to_float(text) -> float:
    """The number in a text, NaN where there is none."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return float("nan")


def shorten(value, limit=60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit - 3] + "..."
