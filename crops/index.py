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
from images import UserError, written_whole

FORMAT = 1
SPLITS = ("train", "val", "test")
FOLDERS = ("objects", "backgrounds", "masks", "masks_source")
JOURNAL = "unfinished.jsonl"
EMPTY = {"format": FORMAT, "rules": [], "counts": {}, "classes": {}, "objects": {}, "backgrounds": {}}


# --- crops.json and sources.json ---


def read_index(dataroot, split: str) -> dict:
    """crops.json of a split, with "images" from sources.json; an empty index where there is none.

    "rules": of each source, what it is, its `Rules`, the plan that was cut and counts. "objects", "backgrounds": {stem:
    see `describe_piece`}. "images": {"file", "path", "origin" (index into "rules"), "hash" (see `difference_hash`),
    "boxes": [[x, y, w, h] of every object], "upright": whether boxes refer to it turned as its EXIF orientation says}.
    UserError when a file is not of this form.
    """
    folder = Path(dataroot, split)
    index = read_json(folder / "crops.json", EMPTY)
    return {**index, **read_json(folder / "sources.json", {"format": FORMAT, "images": []})}


def read_json(path: Path, empty: dict) -> dict:
    """A JSON object with the keys, and the types under them, of `empty`, which stands for a file that is not there."""
    if not path.exists():
        return copy.deepcopy(empty)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or data.get("format") != FORMAT or any(
            not isinstance(data.get(key), type(value)) for key, value in empty.items()):
        raise UserError(f"{path} is not as prepare.py writes it, with {', '.join(empty)}: training can do with less, "
                        "but to check or to append, prepare the data again in a new folder")
    return data


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
    digest = hashlib.sha256(f"{file}\n{suffix}".encode()).hexdigest()
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


def remove_crops(folder: Path, objects, backgrounds):
    """Delete the files of crops by stem, and what interrupted writes of them left."""
    for kind, stems in zip(FOLDERS, (objects, backgrounds, objects, objects), strict=True):
        for stem in stems:
            (folder / kind / f"{stem}.png").unlink(missing_ok=True)
            (folder / kind / f".{stem}.png.part").unlink(missing_ok=True)


# --- the journal: line 1 names the plan and its files to come, each further line an image that is done ---


def open_journal(folder: Path, plan: str, jobs) -> dict:
    """Make the folders; {file: line} of an interrupted run of the same plan, {} when there is none: then a new journal
    is begun, and what a run of another plan left is removed."""
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / JOURNAL
    lines = read_journal(path)
    head = {"plan": plan, "objects": [p.stem for job in jobs for p in job.objects],
            "backgrounds": [p.stem for job in jobs for p in job.backgrounds]}
    done = {}
    if lines and lines[0].get("plan") == plan:
        wanted = {job.photo.file: job for job in jobs}
        done = {line["file"]: line for line in lines[1:]
                if line.get("file") in wanted and is_cut(folder, wanted[line["file"]], line)}
    elif lines:
        remove_crops(folder, lines[0].get("objects", []), lines[0].get("backgrounds", []))
    with written_whole(path) as file:
        file.write("".join(json.dumps(line) + "\n" for line in [head, *done.values()]).encode())
    return done


def read_journal(path: Path) -> list:
    """The complete lines of a journal; a last line cut short by an interruption is left out."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def drop_journal(folder: Path, plan: str):
    """Delete the journal of a plan whose crops are listed; that of another source, interrupted, stays."""
    lines = read_journal(folder / JOURNAL)
    if lines and lines[0].get("plan") == plan:
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
