"""The page on which a user draws boxes: boxes.html filled in, one file that opens from disk, without a network.

It shows the photographs of a folder where they lie and saves boxes.csv, which `crops.formats.read_csv` reads: file,
x, y, w, h in whole pixels of the upright photograph, and class.
"""
import hashlib
import html
import json
import os
import shlex
from pathlib import Path
from string import Template
from urllib.parse import quote

from crops.values import plain_file
from images import UNREADABLE, UserError, is_below, list_images, stored_size, written_whole


def write_page(folder, path, overwrite=False):
    """Write the page for the photographs in `folder` and below it to `path`: (how many it has, a line for each that it
    leaves out). OSError where there is no folder; UserError where it has no photograph, and for a `path` that is no new
    .html file."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"no folder {folder}: boxes takes a folder of photographs")
    if not path.lower().endswith((".html", ".htm")):
        raise UserError(f"--out must be an .html file, got {path!r}")
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{path} exists: choose another --out, or --overwrite, which keeps the boxes drawn on it")
    photos, problems = find_photographs(folder)
    if not photos:
        raise UserError(f"no photograph in {folder}: " + "; ".join(problems[:1] or ["no image that is not hidden"]))
    real = os.path.realpath(folder)
    data = {"id": hashlib.sha256(os.fsencode(real)).hexdigest()[:16], "base": base_of(folder, path), "photos": photos}
    text = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    text = Template(text).substitute(folder=html.escape(os.path.basename(real)), data=embed(data),
                                     images=html.escape(shlex.quote(folder)))
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with written_whole(path) as file:
        file.write(text.encode(errors="backslashreplace"))
    return len(photos), problems


def find_photographs(folder):
    """[name, its address below the folder, width, height] of each photograph, upright, and a line for each left out."""
    photos, problems = [], []
    for name in list_images(folder, below=True):
        if not name.isprintable() or plain_file(name.strip(), folder) != name or not is_below(name, folder):
            problems.append(f"{name}: rename it, boxes.csv could not name it")
            continue
        try:
            size, orientation = stored_size(f"{folder}/{name}")
        except UNREADABLE as error:
            problems.append(f"{name}: cannot be read ({error})")
            continue
        photos.append([name, quote(name), *(size[::-1] if orientation > 4 else size)])
    return photos, problems


def base_of(folder, path):
    """The folder's address as the page at `path` needs it: relative where the folder is beside the page or below."""
    folder, beside = Path(os.path.abspath(folder)), Path(os.path.abspath(path)).parent
    if not folder.is_relative_to(beside):
        return folder.as_uri() + "/"
    return "".join(quote(os.fsencode(part)) + "/" for part in folder.relative_to(beside).parts)


def embed(data):
    """JSON that may stand inside <script>: no `<` can end the element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
