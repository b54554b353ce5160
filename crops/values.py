"""Names and values from annotation files, which may hold anything."""
import os
import posixpath
import re
from pathlib import Path

from images import UserError, is_below, is_box, is_number, is_relative

HASH = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the name of a file


def read_text(path, remedy="check --annotations") -> str:
    """The text of a UTF-8 file. FileNotFoundError that ends in `remedy`; UserError if it is none."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"no annotation file {path}: {remedy}") from None
    except (IsADirectoryError, PermissionError) as error:  # Windows has the second for a folder
        raise UserError(f"cannot read {path}: {'it is a folder' if os.path.isdir(path) else error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text in UTF-8: {error}") from None


def size_of(width, height) -> tuple:
    """An image's size, (0, 0) unless both are whole and positive."""
    usable = all(is_number(side) and 0 < side < 1e6 and side == int(side) for side in (width, height))
    return (int(width), int(height)) if usable else (0, 0)


def plain_file(name, folder) -> str:
    """The one way to write the name of a file in `folder` or below, "" if it is none: "./a.png" is "a.png", and "\\" is
    "/" where the file is found so."""
    if not isinstance(name, str):
        return ""
    if "\\" in name and os.path.isfile(os.path.join(folder, name.replace("\\", "/"))):
        name = name.replace("\\", "/")
    return posixpath.normpath(name) if is_relative(name) else ""


def local_names(names, images) -> dict:
    """{name in an export: name in `images`}, {} where the names hold as they are.

    Where no image is found by its name, what Label Studio puts before all of them is left out: the folder images or
    that of an upload, also written with "\\", and then a hash. Never where two names would become one.
    """
    def found(name):
        return is_relative(name) and os.path.isfile(os.path.join(images, name))

    names = [name for name in names if isinstance(name, str)]
    parts = {name: name.replace("\\", "/").split("/") for name in names}
    if not names or any(map(found, names)) or any(found("/".join(split)) for split in parts.values()):
        return {}
    common = os.path.commonprefix([split[:-1] for split in parts.values()])
    if common[-1:] not in ([], ["images"]) and "upload" not in common:
        return {}  # perhaps that of other images
    for prefix in (re.compile(""), HASH):
        places = {name: "/".join([*split[len(common):-1], prefix.sub("", split[-1])]) for name, split in parts.items()}
        if len(set(places.values())) == len(places) and any(map(found, places.values())):
            return places
    return {}


def leads_out(name, folder, skips) -> bool:
    """Whether a name is that of no file in `folder` or below (see `images.is_below`); that is counted."""
    if is_below(name, folder):
        return False
    if is_relative(name):
        skips.add("link_out", f"{shorten(name)} is a link that leads out of {folder}: put the file itself there")
    else:
        skips.add("bad_image_entry", f"{shorten(name)} is no name of a file in {folder}")
    return True


def parse_box(values):
    """(x, y, w, h) as floats from a list of four, None unless all are numbers below 1e7 and w, h >= 0."""
    return tuple(map(float, values)) if is_box(values) else None


def refuse_shares(boxes, what):
    """UserError where all boxes (x, y, w, h, ...) lie within 0..1: then they are shares of the sides, not pixels."""
    if any(box[2] * box[3] > 0 for box in boxes) and all(
            min(box[:2]) >= 0 and max(box[0] + box[2], box[1] + box[3]) <= 1 for box in boxes):
        raise UserError(f"{what} lies within 0..1, which looks like normalised coordinates: boxes must be in pixels, "
                        "only a YOLO folder and Open Images' CSV may be normalised")


def to_float(text) -> float:
    """The number in a text, NaN where there is none."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return float("nan")


def shorten(value, limit=60) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = "deeply nested lists"
    return text if len(text) <= limit else text[:limit - 3] + "..."
