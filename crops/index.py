"""The folder of crops: DATAROOT/{train,test}/{objects,backgrounds,masks,masks_source}/STEM.png, crops.json.

Crops are cut in parallel processes. A file is written beside its place and moved there whole; what is
finished is noted in unfinished.jsonl, so that an interrupted run continues; crops.json appears last.
Masks: 255 = object, 128 = void, 0 = background. This file needs numpy, Pillow and tqdm only, so that
processes start quickly.
"""
import gc
import hashlib
import json
import multiprocessing
import os
import re
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from crops.annotations import UNREADABLE
from crops.rules import Job, box_in_crop, cut, cut_mask, open_photo
from images import save_png

FORMAT = 1
SPLITS = ("train", "val", "test")
FOLDERS = ("objects", "backgrounds", "masks", "masks_source")
JOURNAL = "unfinished.jsonl"


# --- crops.json ---


def read_index(dataroot, split: str) -> dict:
    """crops.json of a split, with "images" from sources.json; an empty index where there is none.

    ValueError when a file is not readable. "images" lists the source images:
    {"file", "path", "origin", "hash" (see `difference_hash`), "boxes": [[x, y, w, h] of every object], "upright":
    whether boxes refer to it turned as its EXIF orientation says; earlier versions wrote no "upright"}.
    """
    empty = {"format": FORMAT, "rules": [], "counts": {}, "classes": {}, "objects": {}, "backgrounds": {}}
    index = read_json(Path(dataroot, split, "crops.json"), empty)
    images = read_json(Path(dataroot, split, "sources.json"), {"format": FORMAT, "images": []})
    return {**index, "images": images["images"]}


def read_json(path: Path, default: dict) -> dict:
    if not path.exists():
        return default
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): delete it and prepare the data "
                         "again") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT or not default.keys() <= data.keys():
        raise ValueError(f"{path} was not written by a command that cuts crops (of format {FORMAT} with "
                         f"{', '.join(default)}): training can do with less, but to check or to append, prepare the "
                         "data again in a new folder")
    return data


def write_whole(path: Path, data: bytes, sync=False):
    """Write a file so that at any moment the old one or the new one is there, never a part."""
    beside = path.with_name(f".{path.name}.part")
    with open(beside, "wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.replace(beside, path)


def write_index(dataroot, split: str, index: dict):
    """Write sources.json and crops.json, counts over all sources added up."""
    index["counts"] = add_counts(entry["counts"] for entry in index["rules"] if entry)
    classes = {}
    for crop in index["objects"].values():
        classes[crop["class"]] = classes.get(crop["class"], 0) + 1
    common_first = sorted(classes.items(), key=lambda item: (-item[1], item[0]))
    index["classes"] = {name: {"objects": n} for name, n in common_first}
    folder = Path(dataroot, split)
    folder.mkdir(parents=True, exist_ok=True)
    images = {"format": FORMAT, "images": index["images"]}
    crops = {key: value for key, value in index.items() if key != "images"}
    # crops.json last: what it lists is complete
    for name, data in (("sources.json", images), ("crops.json", crops)):
        write_whole(folder / name, json.dumps(data, indent=0, allow_nan=False).encode(), sync=True)


def add_counts(counts) -> dict:
    """Sum nested dicts of numbers key by key."""
    total = {}
    for part in counts:
        for key, value in part.items():
            if isinstance(value, dict):
                total[key] = add_counts([total.get(key, {}), value])
            else:
                total[key] = total.get(key, 0) + value
    return total


def make_stem(file: str, suffix, taken: set) -> str:
    """A file name without .png from an image's name and a suffix, unlike all in `taken` (lower case; it is
    added). Where the plain name is taken, a hash of the full name tells the two apart."""
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


def written(out) -> set:
    """The real paths of everything below `out` that are pictures, and none to cut from."""
    return {os.path.realpath(Path(out, split, name)) for split in SPLITS for name in (*FOLDERS, "sheet.jpg")}


# --- cutting one image ---


def cut_job(job: Job, folder: str, size: int) -> dict:
    """Decode one image and write all its crops below `folder`; returns the line for the journal.

    {"file", "hash", "masks": {stem: "ok" or what is wrong}}, or {"file", "problem", "example"} when the
    image cannot be used: then none of its crops exists.
    """
    photo = job.photo
    try:
        image = open_photo(photo)
    except UNREADABLE as error:
        missing = isinstance(error, FileNotFoundError)
        problem = "image_missing" if missing else "image_unreadable"
        return {"file": photo.file, "problem": problem, "example": f"{photo.path}: {error}".splitlines()[0]}
    masks = {}
    for piece in job.objects:
        save_crop(folder, "objects", piece.stem, np.asarray(cut(image, piece.window, size)))
        if piece.box.mask is not None:
            masks[piece.stem] = save_masks(folder, piece, photo, size)
    for piece in job.backgrounds:
        save_crop(folder, "backgrounds", piece.stem, np.asarray(cut(image, piece.window, size)))
    return {"file": photo.file, "hash": difference_hash(image), "masks": masks}


def save_masks(folder, piece, photo, size) -> str:
    """Write both masks of an object; "ok", or what is wrong with the annotation (then none is written)."""
    try:
        crop, source = cut_mask(piece.box.mask, photo, piece.window, size)
    except UNREADABLE as error:
        return f"annotation {piece.box.id!r} of {photo.file}: {error}".splitlines()[0]
    x, y, w, h = (round(value) for value in box_in_crop(piece.box, piece.window, size))
    inside = np.count_nonzero(crop[max(y, 0):y + h, max(x, 0):x + w] == 255)
    if inside == 0 or inside < 0.5 * np.count_nonzero(crop == 255):
        return f"annotation {piece.box.id!r} of {photo.file}: the mask lies outside its box"
    save_crop(folder, "masks", piece.stem, crop)
    save_crop(folder, "masks_source", piece.stem, source)
    return "ok"


def save_crop(folder, kind, stem, pixels: np.ndarray):
    """Write folder/kind/stem.png whole, from (H, W) grey or (H, W, 3) RGB uint8."""
    place = os.path.join(folder, kind, stem)
    save_png(f"{place}.part", pixels)
    os.replace(f"{place}.part", f"{place}.png")


def difference_hash(image, side=16) -> str:
    """256 bits that near-duplicates of an image share: is each of 16 x 16 cells brighter than its left?"""
    small = image.resize((side + 1, side), Image.BOX, reducing_gap=1.0).convert("L")
    grey = np.asarray(small).astype(np.int16)
    return np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes().hex()


# --- cutting all images ---


def plan_hash(jobs, size: int) -> str:
    """A name for exactly these crops, wherever the command is typed."""
    jobs = [job._replace(photo=job.photo._replace(path=os.path.abspath(job.photo.path))) for job in jobs]
    return hashlib.sha256(repr((size, jobs)).encode()).hexdigest()


def cut_jobs(jobs, plan: str, folder, size: int, num_workers: int, label="") -> list:
    """Cut `jobs` (of one split and source) into `folder`; returns their journal lines in the same order.

    plan: `plan_hash` of the jobs. Continues where a run of the same plan was interrupted; files that an
    interrupted run with other rules left are removed. num_workers 0 = in this process, with the same result.
    """
    folder = Path(folder)
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    done = resume(folder, plan, jobs)
    todo = [job for job in jobs if job.photo.file not in done]
    work = partial(cut_job, folder=str(folder), size=size)
    chunk = max(1, min(16, len(todo) // (4 * max(1, num_workers))))
    lines = tqdm(in_parallel(work, todo, num_workers, chunk), total=len(jobs), initial=len(done), desc=label,
                 unit="image", disable=None)
    with open(folder / JOURNAL, "a", encoding="utf-8") as journal:
        for line in lines:
            done[line["file"]] = line
            journal.write(json.dumps(line) + "\n")
            journal.flush()
    return [done[job.photo.file] for job in jobs]


def in_parallel(work, tasks, num_workers: int, chunksize=64):
    """work(task) for every task, in order, from processes; num_workers 0 = in this process, with the same results.

    OSError where a process dies.
    """
    if num_workers == 0 or len(tasks) < 2:
        yield from map(work, tasks)
        return
    gc.freeze()  # else the collector touches, and so copies, the annotations in every process
    try:
        with ProcessPoolExecutor(num_workers, initializer=end_with_parent) as pool:
            yield from pool.map(work, tasks, chunksize=chunksize)
    except BrokenProcessPool:
        raise OSError("a process was killed, perhaps for lack of memory: run the same command again, with fewer "
                      "--num_workers") from None
    finally:
        gc.unfreeze()


def end_with_parent():
    """Begin a pool's process: it ends with the one that began it, which if killed would leave it waiting for ever."""
    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def resume(folder: Path, plan: str, jobs) -> dict:
    """The journal lines {file: line} of an interrupted run of the same plan, {} when there is none.

    Starts a new journal otherwise, whose first line names all files to come.
    """
    path = folder / JOURNAL
    lines = read_journal(path)
    if lines and lines[0].get("plan") == plan:
        wanted = {job.photo.file: job for job in jobs}
        done = {line["file"]: line for line in lines[1:] if line.get("file") in wanted}
        done = {file: line for file, line in done.items() if is_cut(folder, wanted[file], line)}
        write_whole(path, "".join(json.dumps(line) + "\n" for line in [lines[0], *done.values()]).encode())
        return done
    if lines:
        remove_crops(folder, lines[0].get("objects", []), lines[0].get("backgrounds", []))
    head = {"plan": plan, "objects": [p.stem for job in jobs for p in job.objects],
            "backgrounds": [p.stem for job in jobs for p in job.backgrounds]}
    write_whole(path, (json.dumps(head) + "\n").encode())
    return {}


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


def is_cut(folder: Path, job: Job, line: dict) -> bool:
    """Whether all files of a finished job are there up to the PNG's end mark."""
    if "problem" in line or set(line["masks"].values()) - {"ok"}:
        return False  # the image may have been supplied, the mask corrected since
    places = [("objects", p.stem) for p in job.objects] + [("backgrounds", p.stem) for p in job.backgrounds]
    places += [(kind, stem) for stem in line["masks"] for kind in ("masks", "masks_source")]
    return all(ends_whole(folder / kind / f"{stem}.png") for kind, stem in places)


def ends_whole(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            file.seek(-8, os.SEEK_END)
            return file.read(4) == b"IEND"
    except OSError:
        return False


def remove_crops(folder: Path, objects, backgrounds):
    """Delete the files of crops by stem, and what interrupted writes of them left."""
    for kind, stems in zip(FOLDERS, (objects, backgrounds, objects, objects), strict=True):
        for stem in stems:
            for end in (".png", ".part"):
                (folder / kind / f"{stem}{end}").unlink(missing_ok=True)


def describe_object(piece, photo, size: int, origin: int) -> dict:
    """The entry of an object in crops.json."""
    box = piece.box
    return {**describe_background(piece, photo, origin), "source_box": [box.x, box.y, box.w, box.h],
            "box": box_in_crop(box, piece.window, size), "class": box.name, "id": box.id}


def describe_background(piece, photo, origin: int) -> dict:
    """The entry of a background in crops.json; origin = index into its "rules"."""
    return {"source": photo.file, "source_size": [photo.width, photo.height],
            "source_window": list(piece.window), "origin": origin}
