"""Broken files at every door, and two commands in one folder. Not a test; by hand, on Linux:

    python -m benchmarks.attack [--doors photo crops.json] [--n 500] [--races 20] [--seed 0]

doors: each file that a command reads is damaged n times, by bytes and, where it is text, by values (numbers of 400
digits, names that leave their folder, control characters, deep nesting), and the command run on it. races: every two of
the commands that write or read one folder are started together, and then each again. A command may work or refuse.
Anything else is a fault: a traceback, a signal, more than 20 s, control characters in what it prints, a file changed
outside its folder, two commands that both refuse. Each case depends on the seed and its number alone, which are printed
with a fault. Memory is limited to 1 GB beyond what Python and torch take. Exit code 1 if there was a fault.
"""
import argparse
import faulthandler
import hashlib
import importlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.files import ROOT
from crops import demo

SECONDS, MEMORY = 20, 2**30
TINY = ("--gpu -1 --size 32 --ngf 4 --ndf 4 --n_layers_D 3 --seg_blocks 1 --batch_size 2 --num_threads 0 "
        "--print_freq 1 --save_latest_freq 1").split()
TRAIN = ("train", "--dataroot", "data", "--name", "run", "--n_epochs", "1", *TINY)
OTHER = (*TRAIN[:4], "other", *TRAIN[5:])
COCO = ("prepare", "coco", "--images", "photos", "--annotations", "boxes.json", "--crop_size", "32", "--object_size",
        "16", "--min_side", "8", "--num_workers", "0", "--outside", "reflect", "--max_fraction", "1", "--out")
CUT = ("photo", "cut", "photos/0.png", "--name", "run", "--box", "40,30,50,60", "--gpu", "-1", "--out")
TEST = ("test", "--name", "run", "--gpu", "-1", "--threads", "1")
# door: the file that is damaged, and the command that reads it
DOORS = {
    "coco": ("boxes.json", (*COCO, "new")),
    "csv": ("boxes.csv", ("prepare", "csv", "--images", "photos", "--annotations", "boxes.csv", *COCO[6:], "new")),
    "source": ("photos/0.png", (*COCO, "new")),
    "photo": ("photos/0.png", (*CUT, "cut")),
    "jpeg": ("photos/1.jpg", ("photo", "cut", "photos/1.jpg", *CUT[3:], "cut")),
    "boxes": ("boxes.csv", ("photo", "cut", "--images", "photos", "--boxes", "boxes.csv", "--name", "run", "--gpu",
                            "-1", "--out", "cut")),
    "crop": ("data/train/objects/00000.png", OTHER),
    "crops.json": ("data/train/crops.json", OTHER),
    "journal": ("data/train/unfinished.jsonl", (*COCO, "data")),
    "checkpoint": ("checkpoints/run/latest.pt", TEST),
    "resume": ("checkpoints/run/latest.pt", ("train", "--name", "run", "--resume", "--gpu", "-1", "--n_epochs", "2")),
    "log": ("checkpoints/run/log.jsonl", ("train", "--name", "run", "--resume", "--gpu", "-1", "--n_epochs", "2")),
    "config": ("checkpoints/run/config.json", ("train", "--name", "run", "--resume", "--gpu", "-1")),
    "rows": ("results/run/per_image.csv", ("evaluation.study", "page", "--name", "run", "--n_images", "2")),
    "metrics": ("results/run/metrics.json", ("evaluation.study", "page", "--name", "run", "--n_images", "2")),
    "votes": ("votes.csv", ("evaluation.study", "fit", "votes.csv")),
    "key": ("results/study/key.json", ("evaluation.study", "fit", "votes.csv")),
}
# what writes or reads one folder, by the folder
RACERS = {
    "data": {"prepare": (*COCO, "data"), "prepare test": (*COCO, "data", "--split", "test"),
             "train": OTHER, "test": TEST},
    "run": {"resume": DOORS["resume"][1], "new run": TRAIN, "test": TEST},
    "results": {"test": TEST, "page": DOORS["rows"][1]},
    "study": {"page": DOORS["rows"][1], "fit": DOORS["votes"][1]},
    "cut": {"cut": (*CUT, "cut"), "cut more": DOORS["boxes"][1]},
}
VALUES = (b"-1", b"0", b"1e400", b"-1e308", b"9" * 400, b"NaN", b"Infinity", b"null", b"true", b'""', b"[]", b"{}",
          b"[" * 9999, b'"../../victim/x"', b'"/etc/passwd"', b'"\\u001b[2J\\u0007"', b'"=cmd()"', b'"\\ud800"',
          b"4611686018427387904", b'"' + b"x" * 200_000 + b'"', b"\xff\xfe", b"\0", b"\x1b[2J")
COMMANDS = ("prepare", "train", "test", "photo", "evaluation.study")


def damage(content, rng):
    """`content` (bytes) with one to four faults."""
    for _ in range(rng.integers(1, 5)):
        at, length = rng.integers(len(content) + 1), int(rng.integers(1, max(2, len(content) // 8)))
        numbers = [*re.finditer(rb'-?\d[\d.]*|"[^"]{1,80}"|null|true|false', content[:200_000])]
        kind = rng.integers(8) if numbers else rng.integers(5)
        noise = rng.integers(256, size=min(length, 64), dtype=np.uint8).tobytes()
        if kind == 0:
            content = content[:at]
        elif kind == 1:
            content = content[:at] + noise + content[at + len(noise) :]
        elif kind == 2:
            content = content[:at] + content[at + length :]
        elif kind == 3:
            content = content[:at] + content[max(0, at - length) : at] + content[at:]
        elif kind == 4:
            content = content[:at] + bytes(length) + content[at + length :]
        else:
            found = numbers[rng.integers(len(numbers))]
            content = content[: found.start()] + VALUES[rng.integers(len(VALUES))] + content[found.end() :]
    return content


def write_base(folder):
    """A small set of all that the commands read, in `folder`; beside it, in victim/, what nobody may touch."""
    (folder / "photos").mkdir(parents=True)
    (folder.parent / "victim").mkdir()
    (folder.parent / "victim" / "x.png").write_bytes(b"mine")
    rng, images, annotations = np.random.default_rng(0), [], []
    for i, name in enumerate(("0.png", "1.jpg", "2.png", "3.png")):
        pixels = rng.integers(60, 120, (150, 200, 3), dtype=np.uint8)
        pixels[30:90, 40:90] = 200, 50 * i, 0
        Image.fromarray(pixels).save(folder / "photos" / name)
        images.append({"id": i, "file_name": name, "width": 200, "height": 150})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": [40, 30, 50, 60], "iscrowd": 0,
                            "segmentation": [[40, 30, 90, 30, 90, 90, 40, 90]]})
    (folder / "boxes.json").write_text(json.dumps({"images": images, "annotations": annotations,
                                                   "categories": [{"id": 1, "name": "red"}]}))
    (folder / "boxes.csv").write_text("file,x,y,w,h,class\n" + "".join(f"{i['file_name']},40,30,50,60,red\n"
                                                                      for i in images))
    demo.write_demo(folder / "data", counts={s: {"objects": 4, "backgrounds": 4} for s in ("train", "test")})
    for words in (TRAIN, TEST, DOORS["rows"][1]):
        subprocess.run([sys.executable, "-m", *words], cwd=folder, check=True, capture_output=True,
                       env=os.environ | {"PYTHONPATH": ROOT})
    (folder / "data/train/unfinished.jsonl").write_text('{"plan": "x", "objects": ["00000"], "backgrounds": []}\n')
    key = json.loads((folder / "results/study/key.json").read_text())
    pairs = [*key["images"]][:2]
    (folder / "votes.csv").write_text("study,voter,left,right,choice\n" + f"{key['id']},a,{pairs[0]},{pairs[1]},left\n")


def start(words, folder, log):
    """The command `words` in a process of its own, a fork of this one: torch is imported already. Returns its id."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(out, stream)
        sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
        faulthandler.disable()  # which a test's process may have aimed elsewhere
        os.chdir(folder)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = importlib.import_module(words[0]).main([*words[1:]]) or 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code if isinstance(code, int) else 1)


def wait(process, log, seconds=SECONDS):
    """(what became of the process, in a word or two; whether that is a fault)."""
    end = time.monotonic() + seconds
    while not (done := os.waitpid(process, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return "hung", True
        time.sleep(0.005)
    text = Path(log).read_text(errors="replace")
    if os.WIFSIGNALED(done[1]):
        return f"signal {os.WTERMSIG(done[1])}", True
    code = os.WEXITSTATUS(done[1])
    if "Traceback (most recent call last)" in text:
        return "traceback", True
    if re.search("[\x00-\x08\x0e-\x1f\x7f-\x9f]", text):
        return "control characters", True
    return {0: ("worked", False), 1: ("failed in part", False), 2: ("refused", False)}.get(code, (f"code {code}", True))


def fingerprint(folder):
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def attack_door(base, door, n, seed):
    """Counts of outcomes; each fault is printed."""
    file, words = DOORS[door]
    outcomes, outside = Counter(), fingerprint(base.parent / "victim")
    content = (base / file).read_bytes()
    for case in range(n):
        rng = np.random.default_rng([seed, *door.encode(), case])
        with tempfile.TemporaryDirectory(dir=base.parent) as work:
            folder, log = Path(work) / "here", Path(work) / "log"
            shutil.copytree(base, folder)
            if door != "journal":
                (folder / "data/train/unfinished.jsonl").unlink()
            (folder / file).write_bytes(damage(content, rng))
            outcome, fault = wait(start(words, folder, log), log)
            if fingerprint(base.parent / "victim") != outside:
                outcome, fault = "wrote outside", True
            outcomes[outcome] += 1
            if fault:
                print(f"FAULT {door} {case}: {outcome}: {log.read_text(errors='replace')[-600:]}", flush=True)
    return outcomes


def race(base, place, names, case, seed):
    """Both commands at once: ((outcome, fault) of each, together), and the logs' ends."""
    rng = np.random.default_rng([seed, case, *"".join(names).encode()])
    with tempfile.TemporaryDirectory(dir=base.parent) as work:
        folder, logs = Path(work) / "here", [Path(work) / "a", Path(work) / "b"]
        shutil.copytree(base, folder)
        (folder / "data/train/unfinished.jsonl").unlink()
        processes = []
        for name, log in zip(names, logs, strict=True):
            processes.append(start(RACERS[place][name], folder, log))
            time.sleep(rng.random() * 0.2)
        ends = [wait(*one, seconds=6 * SECONDS) for one in zip(processes, logs, strict=True)]
        texts = [log.read_text(errors="replace") for log in logs]
        again = [wait(start(RACERS[place][name], folder, log), log, 6 * SECONDS) for name, log in zip(names, logs,
                                                                                                  strict=True)]
    fault = any(fault for _, fault in ends + again) or all(outcome == "refused" for outcome, _ in ends)
    return " + ".join(sorted(outcome for outcome, _ in ends)), fault, texts


def attack_races(base, place, names, n, seed):
    outcomes = Counter()
    for case in range(n):
        outcome, fault, texts = race(base, place, names, case, seed)
        outcomes[outcome] += 1
        if fault:
            print(f"FAULT {place} {names} {case}: {outcome}:", *(text[-400:] for text in texts), flush=True)
    return outcomes


def run(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attack", description=__doc__.splitlines()[0])
    parser.add_argument("--doors", nargs="*", choices=tuple(DOORS), default=tuple(DOORS))
    parser.add_argument("--n", type=int, default=500, help="damaged files at each door")
    parser.add_argument("--races", type=int, default=20, help="of each two commands")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    for command in COMMANDS:
        importlib.import_module(command)
    total = Counter()
    with tempfile.TemporaryDirectory() as work:
        base = Path(work) / "base"
        write_base(base)
        for door in args.doors:
            outcomes = attack_door(base, door, args.n, args.seed)
            print(f"{door:12}", dict(outcomes), flush=True)
            total += outcomes
        for place, commands in RACERS.items() if args.races else ():
            for names in combinations_with_replacement(commands, 2):
                outcomes = attack_races(base, place, names, args.races, args.seed)
                print(f"{place:8} {' | '.join(names):28}", dict(outcomes), flush=True)
    print("in all", dict(total))
    return int(any(outcome not in ("worked", "refused", "failed in part") for outcome in total))


if __name__ == "__main__":
    sys.exit(run())
