"""Names and values from annotation files, which may hold anything."""
import os
import posixpath
from pathlib import Path

from images import UserError, is_below, is_box, is_number, is_relative


def read_text(path, remedy="check --annotations") -> str:
    """The text of a UTF-8 file. FileNotFoundError that ends in `remedy`; UserError if it is no such text."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"no annotation file {path}: {remedy}") from None
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
