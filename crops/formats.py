"""Boxes as other programs write them: which format a file or a folder is in, and the readers of most.

    kind, photos = read_boxes("photos", "labels", skips)  # a key of KINDS, and `annotations.Photo`s

COCO, the data sets and detections are read by `annotations`. What is read here refers to photographs as viewers show
them, i.e. turned as their EXIF orientation says, unless the size that it gives is that of the pixels as stored alone.
"""
import csv
import io
import math
import os
import posixpath
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from crops.annotations import Box, Photo, Skips, merge_photos, parse_xml, read_coco, read_detections
from crops.coco_masks import pack_segmentation
from crops.values import leads_out, parse_box, plain_file, read_text, refuse_shares, shorten, size_of, to_float
from images import UNREADABLE, UserError, fits, is_number, list_images, parse_json, stored_size

KINDS = {"coco": "COCO", "csv": "CSV", "yolo": "YOLO", "labelme": "LabelMe",
         "labelimg": "VOC's XML, one file a photograph", "detections": "detections of prepare.py"}
CLASS_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
NO_LABELS = re.compile(r"classes\.txt$|README", re.I)  # what lies beside YOLO's labels and ends in .txt too
LARGEST = 2**27  # bytes of a photograph's own file of boxes; LabelMe's hold the photograph


def read_boxes(images, annotations, skips: Skips):
    """The kind of boxes that a file or folder holds, a key of KINDS, and the `Photo`s with boxes; photographs lie in
    the folder `images`. UserError where it is of no kind that is read."""
    kind = recognise(annotations)
    readers = {"coco": read_coco, "csv": read_csv, "yolo": read_yolo, "labelme": read_labelme,
               "labelimg": read_labelimg, "detections": read_detections}
    photos = readers[kind](images, annotations, skips)
    refuse_shares([box for photo in photos for box in photo.boxes], f"every box of {annotations}")
    return kind, photos


# --- which format ---


def recognise(path) -> str:
    """The kind, a key of KINDS, of a file by how it begins, of a folder by what is in it."""
    if os.path.isdir(path):
        return recognise_folder(path)
    ending = os.path.splitext(path)[1].lower()
    if ending in (".yaml", ".yml", ".jsonl"):
        return "detections" if ending == ".jsonl" else "yolo"
    beginning = begins(path)
    if beginning[:1] == b"<":
        refuse_cvat(path, beginning)
        raise UserError(f"{path} is an XML file: give the folder of such files, one a photograph, as VOC has them")
    return "coco" if ending == ".json" or beginning[:1] in (b"{", b"[") else "csv"


def recognise_folder(folder) -> str:
    endings = defaultdict(list)
    for name in list_images(folder, below=True, endings=(".txt", ".json", ".xml")):
        endings[os.path.splitext(name)[1].lower()].append(name)
    kinds = []
    if class_file(folder) and not all(NO_LABELS.match(os.path.basename(name)) for name in endings[".txt"]):
        kinds.append("yolo")
    if any(parse_json(label_text(folder, name, Skips()), {"shapes": list}) for name in endings[".json"][:20]):
        kinds.append("labelme")
    if endings[".xml"]:
        first = os.path.join(folder, endings[".xml"][0])
        refuse_cvat(first, begins(first))
        kinds.append("labelimg")
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        raise UserError(f"{folder} holds boxes of several formats ({', '.join(kinds)}): give a folder with one of them")
    raise UserError(f"{folder} holds no boxes of a known format: YOLO's .txt with data.yaml or classes.txt beside or "
                    "above, LabelMe's .json, VOC's .xml; for COCO or CSV name the file itself")


def begins(path) -> bytes:
    """The beginning of a regular file."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"{path} is no regular file")
        with open(path, "rb") as file:
            return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    except FileNotFoundError:
        raise FileNotFoundError(f"no annotation file {path}: check --annotations") from None


def refuse_cvat(path, beginning):
    if re.search(rb"<annotations\b", beginning):
        raise UserError(f"{path} is CVAT's XML: export the task as COCO 1.0 there")


# --- files of boxes and their photographs ---


def is_usable(folder, name, skips) -> bool:
    """Whether a file of boxes lies in its folder, is regular and not too large; else it is counted."""
    path = os.path.join(folder, name)
    if leads_out(name, folder, skips):
        return False
    if os.path.isfile(path) and os.path.getsize(path) <= LARGEST:
        return True
    skips.add("bad_annotation_file", f"{path} is no file of at most {LARGEST} bytes")
    return False


def label_text(folder, name, skips) -> str:
    """The text of a file of boxes, "" (counted) if it cannot be used."""
    try:
        return read_text(os.path.join(folder, name)) if is_usable(folder, name, skips) else ""
    except (UserError, OSError) as error:
        skips.add("bad_annotation_file", str(error))
        return ""


class Photographs:
    """The image files of a folder, to be found by the names of their files of boxes."""

    def __init__(self, images):
        self.images, self.place = images, Path(os.path.abspath(images))
        self.names, self.stems = set(list_images(images, below=True)), defaultdict(list)
        for name in self.names:
            self.stems[os.path.splitext(name)[0]].append(name)

    def find(self, folder, label, skips, said=""):
        """The one photograph of the file `label` in `folder`: of its name, or of its name with the folder images in
        place of labels, as YOLO has them, else the one that the file itself says. "" (counted) where there is none."""
        stem = os.path.splitext(label)[0]
        parts = os.path.abspath(os.path.join(folder, stem)).split(os.sep)
        if "labels" in parts:
            parts[len(parts) - 1 - parts[::-1].index("labels")] = "images"
        moved = Path(os.sep.join(parts))
        moved = moved.relative_to(self.place).as_posix() if moved.is_relative_to(self.place) else stem
        said = posixpath.join(posixpath.dirname(label), posixpath.basename(said.replace("\\", "/")))
        found = next((names[0] for key in (stem, moved, stem.removeprefix("labels/"))
                      if len(names := self.stems.get(key, ())) == 1),
                     said if said in self.names else "")
        if not found:
            number = len(self.stems.get(stem, ()))
            skips.add("no_photograph", f"{os.path.join(folder, label)}: {number or 'no'} photographs of its name in "
                                       f"{self.images}")
        return "" if not found or leads_out(found, self.images, skips) else found


def settled(photos, skips) -> list:
    """The photographs with their sizes, and whether their boxes mean them upright. One that cannot be read, or is not
    of the size that its annotation gives, is counted and left out; one that is not there stays: `build` counts it."""
    kept = []
    for photo in merge_photos(photos):
        if os.path.isfile(photo.path):
            try:
                stored, orientation = stored_size(photo.path)
            except UNREADABLE as error:
                skips.add("image_unreadable", f"{photo.path}: {error}")
                continue
            shown, given = stored[::-1] if orientation > 4 else stored, (photo.width, photo.height)
            if given not in ((0, 0), shown, stored):
                skips.add("other_size", f"{photo.path} has {shown[0]} x {shown[1]} pixels, its annotation says "
                                        f"{given[0]} x {given[1]}")
                continue
            width, height = shown if given == (0, 0) else given
            photo = photo._replace(width=width, height=height, upright=(width, height) == shown)
        kept.append(photo)
    return kept


def in_pixels(photo) -> Photo:
    """A Photo whose boxes were shares of its sides, 0..1."""
    width, height = photo.width, photo.height
    return photo._replace(boxes=[box._replace(x=box.x * width, y=box.y * height, w=box.w * width, h=box.h * height)
                                 for box in photo.boxes])


# --- YOLO ---


def read_yolo(images, annotations, skips: Skips) -> list:
    """YOLO: a .txt a photograph, a line an object: the class's number, the middle and the size of its box as shares of
    the photograph's sides (then perhaps a score, or key points where data.yaml has kpt_shape), or the number and an
    outline. annotations: the folder of these files, or its data.yaml. An empty file says that there is no object; a
    photograph without a file says nothing."""
    is_file = os.path.isfile(annotations)
    listed = str(annotations) if is_file else class_file(annotations)
    classes, folder = class_names(listed), (os.path.dirname(annotations) or ".") if is_file else annotations
    has_points = listed.endswith((".yaml", ".yml")) and re.search(r"^kpt_shape\s*:", read_text(listed), re.M)
    photographs, photos = Photographs(images), []
    for name in list_images(folder, below=True, endings=".txt"):
        if NO_LABELS.match(os.path.basename(name)) or not (file := photographs.find(folder, name, skips)):
            continue
        boxes, unplaced = [], False
        for number, line in enumerate(label_text(folder, name, skips).splitlines(), 1):
            values = [to_float(value) for value in line.split()]
            rectangle = yolo_box(values, has_points) if values else None
            if rectangle:
                label = classes.get(values[0], "")
                if not label:
                    skips.add("unknown_class", f"line {number} of {folder}/{name}: {listed} has no class {values[0]:g}")
                boxes.append(Box(*rectangle, label, number, score=values[5] if len(values) == 6 else 1.0))
            elif values:
                skips.add("bad_box", f"line {number} of {folder}/{name}: {shorten(line)}")
                unplaced = True
        photos.append(Photo(file, f"{images}/{file}", 0, 0, boxes, True, unplaced))
    return [in_pixels(photo) for photo in settled(photos, skips)]


def yolo_box(values, has_points):
    """x, y, w, h as shares from the numbers of a line, None where they are none."""
    shares = values[1:5] if has_points else values[1:]
    if len(values) < 5 or not values[0] >= 0 or values[0] % 1 or not all(0 <= value <= 1.001 for value in shares):
        return None
    if has_points or len(values) < 7:
        x, y, w, h = shares[:4]
        return x - w / 2, y - h / 2, w, h
    if len(values) % 2 == 0:
        return None
    xs, ys = shares[::2], shares[1::2]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def class_file(folder) -> str:
    """The list of classes in a folder or in the two above it, "" if there is none."""
    place = Path(os.path.abspath(folder))
    paths = [parent / name for parent in (place, *list(place.parents)[:2]) for name in CLASS_FILES]
    return next((str(path) for path in paths if path.is_file()), "")


def class_names(path) -> dict:
    """{number: name} from a list of classes, one a line, or from the names of a data.yaml."""
    text = read_text(path)
    names = yaml_names(text) if path.endswith((".yaml", ".yml")) else dict(enumerate(map(str.strip, text.splitlines())))
    if not names:
        raise UserError(f"{path} lists no class: data.yaml needs names: [A, B], classes.txt a name a line")
    return names


YAML_ITEM = re.compile(r"""(?:(\d{1,6})\s*:\s+)?(?:"([^"\n]*)"|'([^'\n]*)'|([^\s,\[\]{}"'#][^,\[\]{}\n#]*))""")


def yaml_names(text) -> dict:
    """{number: name} of the key `names` of a YAML text: a list or numbered names, in brackets or a line each."""
    found = re.search(r"^names[ \t]*:[ \t]*(?:#.*)?(.*)$", text, re.M)
    if not found:
        return {}
    if found[1][:1] in ("[", "{") and found[1]:
        items = YAML_ITEM.finditer(re.split(r"[\]}]", text[found.start(1):], maxsplit=1)[0])
    else:
        lines = []
        for line in text[found.end():].splitlines()[1:]:
            if line.strip() and line.lstrip()[0] != "#":
                if not re.match(r"\s|-", line):
                    break
                lines.append(line.strip().removeprefix("-").strip())
        items = filter(None, map(YAML_ITEM.match, lines))
    return {int(number or index): (double or single or plain).strip()
            for index, (number, double, single, plain) in enumerate(item.groups("") for item in items)}


# --- LabelMe ---


def read_labelme(images, annotations, skips: Skips) -> list:
    """LabelMe: a .json a photograph with rectangles, circles, masks (their extents) and polygons, which give masks too.
    Shapes of one group_id are one object; points and lines are counted and left out."""
    photographs, photos = Photographs(images), []
    for name in list_images(annotations, below=True, endings=".json"):
        text = label_text(annotations, name, skips)
        item = parse_json(text, {"shapes": [dict]})
        if item is None:
            if text:
                skips.add("bad_annotation_file", f"{annotations}/{name} is none of LabelMe's")
            continue
        said = item.get("imagePath")
        file = photographs.find(annotations, name, skips, said if isinstance(said, str) else "")
        if file:
            boxes, unplaced = labelme_boxes(item["shapes"], f"{annotations}/{name}", skips)
            size = size_of(item.get("imageWidth"), item.get("imageHeight"))
            photos.append(Photo(file, f"{images}/{file}", *size, boxes, True, unplaced))
    return settled(photos, skips)


def labelme_boxes(shapes, path, skips):
    """The boxes of a file's shapes, and whether one has no usable place."""
    groups, unplaced = defaultdict(list), False
    for number, shape in enumerate(shapes, 1):
        kind, points, label, group = (shape.get(k) for k in ("shape_type", "points", "label", "group_id"))
        if kind not in ("rectangle", "circle", "mask", "polygon", None):
            skips.add("other_shape", f"shape {number} of {path} is a {shorten(kind)}")
        elif not fits(points, [is_point]) or len(points) < (3 if kind in ("polygon", None) else 2):
            skips.add("bad_box", f"shape {number} of {path} has the points {shorten(points)}")
            unplaced = True
        else:
            label = label if isinstance(label, str) else ""
            groups[label, f"group {group}" if is_number(group) else number].append((kind, np.array(points, float)))
    boxes = []
    for (label, key), parts in groups.items():
        corners = np.concatenate([circle_corners(points) if kind == "circle" else points for kind, points in parts])
        (x0, y0), (x1, y1) = corners.min(0).tolist(), corners.max(0).tolist()
        outlines = [points.ravel().tolist() for kind, points in parts if kind in ("polygon", None)]
        mask = pack_segmentation(outlines) if len(outlines) == len(parts) else None
        boxes.append(Box(x0, y0, x1 - x0, y1 - y0, label, key, mask=mask))
    return boxes, unplaced


def is_point(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(is_number(x) and abs(x) < 1e7 for x in value)


def circle_corners(points) -> np.ndarray:
    """Corners around a circle of its middle and a point on it."""
    radius = math.dist(points[0], points[1])
    return np.stack([points[0] - radius, points[0] + radius])


# --- VOC's XML without VOC's folders ---


def read_labelimg(images, annotations, skips: Skips) -> list:
    """A .xml of VOC's form for each photograph, as labelImg writes them: xmax is the right edge. In VOC's own layout,
    Annotations beside JPEGImages, pixels count from 1 and xmax is the last one."""
    place = Path(os.path.abspath(annotations))
    first = int(place.name == "Annotations" and (place.parent / "JPEGImages").is_dir())
    photographs, photos = Photographs(images), []
    for name in list_images(annotations, below=True, endings=".xml"):
        if is_usable(annotations, name, skips) and (parsed := parse_xml(place / name, first, skips)):
            said, size, boxes, unplaced = parsed
            if file := photographs.find(annotations, name, skips, said):
                photos.append(Photo(file, f"{images}/{file}", *size, boxes, True, unplaced))
    return settled(photos, skips)


# --- CSV ---

CSV_BOXES = (("x", "y", "w", "h"), ("x", "y", "width", "height"), ("xmin", "ymin", "xmax", "ymax"),
             ("x0", "y0", "x1", "y1"), ("x1", "y1", "x2", "y2"))
VIA_SHAPES = {"rect": ("x", "y", "width", "height"), "circle": ("cx", "cy", "r", "r"),
              "ellipse": ("cx", "cy", "rx", "ry")}


def read_csv(images, annotations, skips: Skips) -> list:
    """A CSV file, one box a line, with a header: file or filename, and x,y,w,h or xmin,ymin,xmax,ymax (continuous pixel
    coordinates: xmax is the right edge); class (or label, category), id, score, crowd (0 or 1), mask (an image file,
    white = object, 128 = void), and beside corners the image's width and height, optional. A line with a file and an
    empty box says that an image has no object. Also the CSV of VIA, and of Open Images, whose ImageID is a file's stem
    and whose coordinates are shares of the sides."""
    header, rows = csv_rows(annotations)
    is_via, is_shares = "region_shape_attributes" in header, "imageid" in header
    key = next((name for name in ("file", "filename", "imageid") if name in header), None)
    columns = CSV_BOXES[1] if is_via else next((names for names in CSV_BOXES if set(names) <= set(header)), None)
    if key is None or columns is None:
        raise UserError(f"{annotations} must start with a header that has file and x,y,w,h or xmin,ymin,xmax,ymax, got "
                        f"{shorten(','.join(header))}")
    photos, sizes, unplaced = defaultdict(list), {}, set()
    photographs = Photographs(images) if is_shares else None
    for number, row in enumerate(rows, 2):
        said = (row[key] or "").strip()
        if is_shares:
            stems = photographs.stems.get(said, ())
            said = stems[0] if len(stems) == 1 else f"{said}.jpg"
            row |= {"class": row.get("labelname"), "score": row.get("confidence"),
                    "crowd": "1" if row.get("isgroupof") == "1" else ""}
        name = plain_file(said, images)
        if not name:
            skips.add("bad_image_entry", f"line {number} names the file {shorten(row[key])}")
            continue
        if leads_out(name, images, skips):
            continue
        if is_via:
            row |= via_row(row)
        if columns[2][0] == "x" and {"width", "height"} <= set(header):
            sizes.setdefault(name, size_of(to_float(row["width"]), to_float(row["height"])))
        boxes, values = photos[name], ",".join(row[column] or "" for column in columns)
        box = csv_box(images, number, row, columns, skips)
        if box is not None and not (is_shares and max(box.x + box.w, box.y + box.h) > 1.001):
            boxes.append(box)
        elif values.strip(", "):
            skips.add("bad_box", f"line {number} has the box {shorten(values)}")
            unplaced.add(name)
    found = settled([Photo(name, f"{images}/{name}", *sizes.get(name, (0, 0)), boxes, True, name in unplaced)
                     for name, boxes in photos.items()], skips)
    return [in_pixels(photo) for photo in found] if is_shares else found


def csv_rows(path):
    """The header of a CSV file, in lower case, and its rows as {column: text}; between columns "," or, as spreadsheets
    in many countries write it, ";"."""
    text = read_text(path)
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True, delimiter="," if "," in header else ";")
    try:
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
        return reader.fieldnames, list(reader)
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV text: {error}") from None


def csv_box(images, number, row, columns, skips):
    """The Box of line `number`, None where it has none."""
    x, y, a, b = (to_float(row[column]) for column in columns)
    rectangle = parse_box([x, y, a, b] if columns[2][0] in "wh" else [x, y, a - x, b - y])
    if rectangle is None:
        return None
    key, crowd, score, mask = ((row.get(k) or "").strip() for k in ("id", "crowd", "score", "mask"))
    label = next((row[k].strip() for k in ("class", "label", "category") if row.get(k)), "")
    score = to_float(score or 1)
    file = plain_file(mask, images)
    if mask and not file:
        skips.add("bad_mask", f"line {number} names the mask {shorten(mask)}")
    mask = ("mask", f"{images}/{file}") if file and not leads_out(file, images, skips) else None
    return Box(*rectangle, label or "object", key or number, crowd.lower() not in ("", "0", "false"),
               score if is_number(score) else 0.0, mask)


def via_row(row) -> dict:
    """The box of a line of VIA, around its region of any shape but a point or a line, and the class: its attribute
    class, label, name or type, else the first that is a text."""
    shape, said = (parse_json(row.get(f"region_{k}") or "{}", dict) for k in ("shape_attributes", "attributes"))
    texts = {k: v for k, v in (said or {}).items() if isinstance(v, str) and v.strip()}
    label = next((texts[k] for k in ("class", "label", "name", "type", *texts) if k in texts), "")
    if shape == {}:
        return {"class": label, **dict.fromkeys(CSV_BOXES[1], "")}
    box = via_box(shape or {}) or ["?"] * 4
    return {"class": label, **dict(zip(CSV_BOXES[1], map(str, box), strict=True))}


def via_box(shape):
    """x, y, w, h around a region of VIA; None where it has no area or is misshapen."""
    try:
        if shape.get("name") == "polygon":
            xs, ys = shape["all_points_x"], shape["all_points_y"]
            return (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)) if fits([xs, ys], [[is_number]]) else None
        x, y, a, b = (shape[k] for k in VIA_SHAPES[shape["name"]])
        return (x, y, a, b) if shape["name"] == "rect" else (x - a, y - b, 2 * a, 2 * b)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
