"""The folder of crops: DATAROOT/SPLIT/{objects,backgrounds,masks,masks_source}/STEM.png, crops.json, sources.json.

What is finished is noted in unfinished.jsonl, so that an interrupted run goes on; crops.json comes last, and what it
lists is whole.
"""
import copy
import hashlib
import json
import os
import re
from collections import Counter
from pathlib import Path, PurePosixPath

from crops.cutting import CutJob, box_in_crop
from crops.rules import share_outside
from images import UserError, fits, is_below, is_box, is_count, is_number, is_relative, parse_json, written_whole

FORMAT = 1
SPLITS = ("train", "val", "test")
FOLDERS = ("objects", "backgrounds", "masks", "masks_source")
JOURNAL = "unfinished.jsonl"
NESTED = ("dropped", "backgrounds_planned", "skipped")  # counts by reason, among a source's counts
EMPTY = {"format": FORMAT, "rules": [], "counts": {}, "classes": {}, "objects": {}, "backgrounds": {}}


# --- the form of what is read back, see `images.fits`: it may come with a DATAROOT of others ---


def is_stem(value) -> bool:
    """Whether a value of JSON is a file's name without its ending."""
    return is_relative(value) and "/" not in value


_is_format = (FORMAT,).__contains__


def _is_hash(value):
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _are_counts(value):
    return isinstance(value, dict) and all(fits(n, {str: is_number} if key in NESTED else is_number)
                                           for key, n in value.items())


def _is_size(value):
    return isinstance(value, list) and len(value) == 2 and all(is_count(side) and side > 0 for side in value)


def _is_window(value):
    return is_box(value) and value[2] > 0 and value[3] > 0


_BACKGROUND = {"source": str, "source_size": _is_size, "source_window": _is_window, "origin": is_count}
_OBJECT = {**_BACKGROUND, "source_box": is_box, "box": is_box, "class": str}
_RULES = {"plan": str, "crop_size": is_count, "object_size": is_count, "counts": _are_counts, "max_outside?": is_number}
_CROPS = {"format": _is_format, "rules": [_RULES], "counts": _are_counts, "classes": {str: {"objects": is_count}},
          "objects": {is_stem: _OBJECT}, "backgrounds": {is_stem: _BACKGROUND}}
_IMAGE = {"file": str, "path": str, "origin": is_count, "hash": _is_hash, "boxes": [is_box], "upright": bool}
_SOURCES = {"format": _is_format, "images": [_IMAGE]}
_HEAD = {"plan": str, "objects": [is_stem], "backgrounds": [is_stem]}
_DONE = {"file": str, "hash": _is_hash, "masks": {is_stem: str}}
_FAILED = {"file": str, "problem": str, "example": str}


# --- crops.json and sources.json ---


def read_index(dataroot, split: str) -> dict:
    """crops.json of a split, with "images" from sources.json; an empty index where there is none.

    "rules": of each source, what it is, its `Rules`, the plan that was cut and counts. "objects", "backgrounds": {stem:
    see `describe_piece`}. "images": {"file", "path", "origin" (index into "rules"), "hash" (see `difference_hash`),
    "boxes": [[x, y, w, h] of every object], "upright": whether boxes refer to it turned as its EXIF orientation says}.
    UserError when a file is not of this form.
    """
    folder = Path(dataroot, split)
    index = {**read_part(folder / "crops.json", _CROPS, EMPTY),
             **read_part(folder / "sources.json", _SOURCES, {"format": FORMAT, "images": []})}
    origins = (entry["origin"] for entry in (*index["objects"].values(), *index["backgrounds"].values()))
    if any(origin >= len(index["rules"]) for origin in origins):
        raise not_ours(folder / "crops.json", "rules for each origin")
    return index


def read_part(path: Path, form: dict, empty: dict) -> dict:
    """A JSON file of a form (see `images.fits`); a copy of `empty` where there is none. UserError if it is another."""
    if not path.exists():
        return copy.deepcopy(empty)
    data = parse_json(path.read_bytes(), form, finite=True) if path.is_file() else None
    if data is None:
        raise not_ours(path, ", ".join(empty))
    return data


def not_ours(path, what) -> UserError:
    return UserError(f"{path} is not as prepare.py writes it, with {what}: training can do with less, but to check or "
                     "to append, prepare the data again in a new folder")


def save_index(folder: Path, index: dict):
    """Write sources.json and crops.json of a split, counts and classes of all its sources added up."""
    classes = Counter(crop["class"] for crop in index["objects"].values())
    common_first = sorted(classes.items(), key=lambda item: (-item[1], item[0]))
    index["classes"] = {name: {"objects": n} for name, n in common_first}
    index["counts"] = add_counts(entry["counts"] for entry in index["rules"])
    folder.mkdir(parents=True, exist_ok=True)
    images = {"format": FORMAT, "images": index["images"]}
    for name, data in (("sources.json", images), ("crops.json", {key: index[key] for key in EMPTY})):
        with written_whole(folder / name, sync=True) as file:
            file.write(json.dumps(data, indent=0, allow_nan=False).encode())


def add_counts(counts) -> dict:
    """Sum nested dicts of numbers key by key."""
    total = {}
    for part in counts:
        for key, value in part.items():
            nested = isinstance(value, dict)
            total[key] = add_counts([total.get(key, {}), value]) if nested else total.get(key, 0) + value
    return total


def describe_piece(piece, photo, size: int, origin: int) -> dict:
    """The entry of a crop in crops.json; an object has its box and class too, and where its crop leaves the photograph
    "outside", the share of the crop that lies beyond. origin: index into "rules"."""
    entry = {"source": photo.file, "source_size": [photo.width, photo.height], "source_window": list(piece.window),
             "origin": origin}
    if piece.box is None:
        return entry
    x, y, w, h, name, key, *_ = piece.box
    share = share_outside(piece.window, photo.width, photo.height)
    if share:
        entry["outside"] = share
    return {**entry, "source_box": [x, y, w, h], "box": box_in_crop(piece.box, piece.window, size),
            "class": name, "id": key}


# --- files ---


def make_stem(file: str, suffix, taken: set) -> str:
    """A file name without .png from an image's name and a suffix, unlike all in `taken` (lower case; it is added).
    Where the plain name is taken, a hash of the full name tells the two apart."""
    stem = PurePosixPath(file).stem + (f"_{suffix}" if suffix != "" else "")
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).lstrip(".-") or "_"
    digest = hashlib.sha256(f"{file}\n{suffix}".encode("utf-8", "surrogatepass")).hexdigest()  # names of any bytes
    if len(stem) > 120:
        stem = f"{stem[:100]}_{digest[:16]}"
    plain, length = stem, 8
    while stem.lower() in taken:
        stem, length = f"{plain}_{digest[:length]}", length + 1
    taken.add(stem.lower())
    return stem


def own_files(dataroot) -> set:
    """The real paths of everything in `dataroot` that are images, and none to cut from."""
    return {os.path.realpath(Path(dataroot, split, name)) for split in SPLITS for name in (*FOLDERS, "sheet.jpg")}


def make_folders(folder: Path):
    """Make the folders of a split. UserError where one leads out of its DATAROOT: files there would be replaced."""
    for name in FOLDERS:
        if not is_below(f"{folder.name}/{name}", folder.parent):
            raise UserError(f"{folder / name} is a link that leads out of {folder.parent}: remove it, or name another "
                            "--out")
        (folder / name).mkdir(parents=True, exist_ok=True)


def remove_crops(folder: Path, crops: dict, index: dict):
    """Delete the files of crops, and what interrupted writes of them left, but for what an index lists.

    crops: {"objects": stems, "backgrounds": stems}.
    """
    make_folders(folder)
    for name in FOLDERS:
        kind = "backgrounds" if name == "backgrounds" else "objects"
        for stem in crops[kind]:
            if stem not in index[kind]:
                (folder / name / f"{stem}.png").unlink(missing_ok=True)
                (folder / name / f".{stem}.png.part").unlink(missing_ok=True)


# --- the journal: line 1 names a plan and its files, each further line an image that is done. Plan "": to remove ---


def open_journal(folder: Path, plan: str, jobs, index=EMPTY) -> dict:
    """Make the folders; {file: line} of an interrupted run of the same plan, {} when there is none: then a new journal
    is begun, and what a run of another plan left is removed, but for what `index` lists."""
    make_folders(folder)
    lines = read_journal(folder / JOURNAL)
    head = {"plan": plan, "objects": [p.stem for job in jobs for p in job.objects],
            "backgrounds": [p.stem for job in jobs for p in job.backgrounds]}
    done = {}
    if lines and lines[0]["plan"] == plan:
        wanted = {job.photo.file: job for job in jobs}
        done = {line["file"]: line for line in lines[1:]
                if line["file"] in wanted and is_cut(folder, wanted[line["file"]], line)}
    elif lines:
        remove_crops(folder, lines[0], index)
    write_journal(folder, [head, *done.values()])
    return done


def write_journal(folder: Path, lines):
    with written_whole(folder / JOURNAL) as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())


def read_journal(path: Path) -> list:
    """The complete lines of a journal; a last line cut short by an interruption is left out. UserError where a line is
    none of a journal."""
    lines = []
    if path.exists():
        for text in path.read_bytes().split(b"\n")[:-1] if path.is_file() else [b""]:
            line = parse_json(text, lambda value: fits(value, _DONE) or fits(value, _FAILED) if lines
                              else fits(value, _HEAD))
            if line is None:
                raise UserError(f"{path} is not as prepare.py writes it: prepare the data again in a new folder")
            lines.append(line)
    return lines


def plan_removal(folder: Path, crops: dict, index: dict):
    """Note crops that are about to be taken off the list and deleted, so that an interruption is known. What a run of
    another plan left is removed at once."""
    make_folders(folder)
    for head in read_journal(folder / JOURNAL)[:1]:
        remove_crops(folder, head, index)
    write_journal(folder, [{"plan": "", **crops}])


def drop_journal(folder: Path, plan: str, index: dict):
    """Delete the journal of a plan whose crops are listed, or of a removal, which is done; that of another source,
    interrupted, stays."""
    lines = read_journal(folder / JOURNAL)
    if lines and lines[0]["plan"] in (plan, ""):
        remove_crops(folder, lines[0], index)
        (folder / JOURNAL).unlink()


def is_cut(folder: Path, job: CutJob, line: dict) -> bool:
    """Whether all files of a finished job are there up to the PNG's end mark."""
    if "problem" in line or set(line["masks"].values()) - {"ok"}:
        return False  # the image may have been supplied, the mask corrected since
    places = [("objects", p.stem) for p in job.objects] + [("backgrounds", p.stem) for p in job.backgrounds]
    places += [(kind, stem) for stem in line["masks"] for kind in ("masks", "masks_source")]
    try:
        for kind, stem in places:
            with open(folder / kind / f"{stem}.png", "rb") as file:
                file.seek(-8, os.SEEK_END)
                if file.read(4) != b"IEND":
                    return False
    except OSError:
        return False
    return True
