"""Broken files at every door, kills at any moment, two commands in one folder. Not a test; by hand, on Linux:

    python -m benchmarks.attack [--doors photo crops.json] [--n 500] [--kills 40] [--races 20] [--seed 0]

doors: each file that a command reads is damaged n times, by bytes and, where it is text, by values (numbers of 400
digits, names that leave their folder, control characters, deep nesting), and the command run on it. kills: each command
that writes is sent SIGKILL or SIGTERM at a random moment, up to three times, and then repeated: its folder must be as
after an undisturbed one. races: every two of the commands that share one folder are started together, and then each
again; the folder must be as after one of them, or one after the other, and not both may refuse.

Anything else is a fault: a traceback, a signal of the system's, a full memory, more than 20 s of computing or two
minutes in all, processes that outlive their command, control characters in what is printed, a file changed outside the
folder. Each case depends on the seed and its number alone, which are printed with a fault, but for the moments of a
busy machine. Memory is limited to 1 GB beyond what Python and torch take. Exit code 1 if there was a fault. --doors,
--kills 0 and --races 0 leave these parts out.
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
from contextlib import contextmanager
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SECONDS, PATIENCE, MEMORY = 20, 120, 2**30  # of computing, in all, and bytes
TINY = ("--gpu -1 --size 32 --ngf 4 --ndf 4 --n_layers_D 3 --seg_blocks 1 --batch_size 2 --num_threads 0 "
        "--print_freq 1 --warm_steps 1").split()
NEW = ("train", "--dataroot", "data", *TINY, "--n_epochs", "1", "--name")
TRAIN, OTHER = (*NEW, "run"), (*NEW, "other")
RESUME = ("train", "--name", "run", "--resume", "--gpu", "-1", "--n_epochs", "2")
CROPS = ("--crop_size", "32", "--object_size", "16", "--min_side", "8", "--num_workers", "0", "--outside", "reflect",
         "--max_fraction", "1", "--out")
COCO = ("prepare", "coco", "--images", "photos", "--annotations", "boxes.json", *CROPS)
CSV = ("prepare", "csv", "--images", "photos", "--annotations", "boxes.csv", *CROPS)
HELD_OUT = ("prepare", "coco", "--images", "more", "--annotations", "more.json", *CROPS, "data", "--split", "test")
MODEL = ("--name", "run", "--gpu", "-1", "--out", "cut")
CUT = ("photo", "cut", "photos/0.png", "--box", "40,30,50,60", *MODEL)
CUT_ALL = ("photo", "cut", "--images", "photos", "--boxes", "boxes.csv", *MODEL)
TEST = ("test", "--name", "run", "--gpu", "-1", "--threads", "1")
PAGE = ("evaluation.study", "page", "--name", "run", "--n_images", "2")
FIT = ("evaluation.study", "fit", "votes.csv")
# door: the file that is damaged, and the command that reads it
DOORS = {
    "coco": ("boxes.json", (*COCO, "new")),
    "csv": ("boxes.csv", (*CSV, "new")),
    "source": ("photos/0.png", (*COCO, "new")),
    "photo": ("photos/0.png", CUT),
    "jpeg": ("photos/1.jpg", ("photo", "cut", "photos/1.jpg", *CUT[3:])),
    "boxes": ("boxes.csv", CUT_ALL),
    "detections": ("found.jsonl", ("photo", "cut", "--images", "photos", "--boxes", "found.jsonl", *MODEL)),
    "mask": ("mask.png", ("photo", "cut", "photos/0.png", "--mask", "mask.png", *MODEL)),
    "crop": ("data/train/objects/0_0.png", OTHER),
    "crops.json": ("data/train/crops.json", OTHER),
    "index": ("data/train/crops.json", (*COCO, "data", "--y_per_x", "0.5")),
    "sources": ("data/train/sources.json", (*COCO, "data", "--y_per_x", "0.5")),
    "journal": ("data/train/unfinished.jsonl", (*COCO, "data")),
    "checkpoint": ("checkpoints/run/latest.pt", TEST),
    "resume": ("checkpoints/run/latest.pt", RESUME),
    "log": ("checkpoints/run/log.jsonl", RESUME),
    "config": ("checkpoints/run/config.json", RESUME),
    "options": ("checkpoints/run/config.json", ("train", "--config", "checkpoints/run/config.json", "--name", "other")),
    "vgg": ("vgg.pth", (*OTHER, "--lambda_bg_texture", "1", "--vgg_weights", "vgg.pth")),
    "frechet": ("squeezenet.pth", (*TEST, "--frechet_weights", "squeezenet1_1:squeezenet.pth")),
    "made": ("results/run/.made", TEST),
    "rows": ("results/run/per_image.csv", PAGE),
    "metrics": ("results/run/metrics.json", PAGE),
    "votes": ("votes.csv", FIT),
    "key": ("results/study/key.json", FIT),
}
# commands that are killed
KILLS = {
    "train": (*NEW, "new", "--n_epochs", "5", "--save_latest_freq", "1", "--num_threads", "1"),
    "prepare": (*COCO, "new", "--num_workers", "2"),
    "prepare anew": (*COCO, "data", "--y_per_x", "0.5"),
    "test": (*TEST, "--seed", "1"),
    "photo": CUT_ALL,
    "study": (*PAGE, "--n_pairs", "9", "--out", "study"),
}
# commands that share a folder, by the folder
RACES = {
    "data": {"prepare": (*COCO, "data", "--y_per_x", "0.5"), "other": (*CSV, "data", "--y_per_x", "2"),
             "held out": (*HELD_OUT, "--y_per_x", "0.5"), "check": ("prepare", "check", "data", "--num_workers", "0"),
             "train": OTHER, "test": TEST},
    "checkpoints/new": {"train": (*NEW, "new")},
    "checkpoints/run": {"resume": RESUME, "test": TEST, "cut": CUT, "export": (
        "photo", "export", "--name", "run", "--weights", "--out", "run.pt")},
    "results/run": {"test": TEST, "on train": (*TEST, "--split", "train"), "page": PAGE},
    "results/study": {"page": PAGE, "again": PAGE, "fit": FIT},
    "cut": {"cut": CUT, "all": CUT_ALL, "remove": ("photo", "remove", "photos/0.png", *CUT[3:])},
}
VALUES = (b"-1", b"0", b"1e400", b"-1e308", b"9" * 400, b"NaN", b"Infinity", b"null", b"true", b'""', b"[]", b"{}",
          b"[" * 9999, b'"../../victim/x"', b'"/etc/passwd"', b'"\\u001b[2J\\u0007"', b'"=cmd()"', b'"\\ud800"',
          b"4611686018427387904", b'"' + b"x" * 200_000 + b'"', b"\xff\xfe", b"\0", b"\x1b[2J")
COMMANDS = ("prepare", "train", "test", "photo", "evaluation.study")


# --- what is attacked ---


def write_photos(folder, numbers, table):
    """Photographs with a box each and their annotations as COCO, `table`.json, and as CSV."""
    folder.mkdir(parents=True)
    rng, images, annotations = np.random.default_rng(len(numbers) + numbers[0]), [], []
    for i in numbers:
        pixels = rng.integers(60, 120, (150, 200, 3), dtype=np.uint8)
        pixels[30:90, 40:90] = 200, 25 * i, 0
        name = f"{i}.jpg" if i % 4 == 1 else f"{i}.png"
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": i, "file_name": name, "width": 200, "height": 150})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": [40, 30, 50, 60], "iscrowd": 0,
                            "segmentation": [[40, 30, 90, 30, 90, 90, 40, 90]]})
    table.with_suffix(".json").write_text(json.dumps({"images": images, "annotations": annotations,
                                                      "categories": [{"id": 1, "name": "red"}]}))
    table.with_suffix(".csv").write_text("file,x,y,w,h,class\n" + "".join(f"{image['file_name']},40,30,50,60,red\n"
                                                                          for image in images))
    table.with_name("found.jsonl").write_text("".join(json.dumps({
        "file": image["file_name"], "width": 200, "height": 150, "boxes": [[40, 30, 50, 60, "red", 0.9]]}) + "\n"
        for image in images))


def write_base(folder):
    """A small set of all that the commands read, in `folder`; beside it, in victim/, what nobody may touch."""
    import torch  # here and below: --help does without it
    from torchvision import models

    write_photos(folder / "more", range(4, 8), folder / "more")
    write_photos(folder / "photos", range(4), folder / "boxes")
    (folder.parent / "victim").mkdir()
    (folder.parent / "victim" / "x.png").write_bytes(b"mine")
    Image.fromarray(np.pad(np.full((60, 50), 255, np.uint8), ((30, 60), (40, 110)))).save(folder / "mask.png")
    torch.manual_seed(0)
    first = models.vgg.make_layers(models.vgg.cfgs["E"][:7]).state_dict()
    torch.save({f"features.{name}": weight for name, weight in first.items()}, folder / "vgg.pth")
    torch.save(models.squeezenet1_1(weights=None).state_dict(), folder / "squeezenet.pth")
    for words in ((*COCO, "data"), HELD_OUT, TRAIN, TEST, PAGE):
        subprocess.run([sys.executable, "-m", *words], cwd=folder, check=True, capture_output=True, env=ENVIRONMENT)
    stop = "import sys, prepare; from crops import index; index.save_index = sys.exit; prepare.run(sys.argv[1:])"
    subprocess.run([sys.executable, "-c", stop, *COCO[1:], "half"], cwd=folder, capture_output=True, env=ENVIRONMENT)
    shutil.move(folder / "half/train/unfinished.jsonl", folder / "data/train/unfinished.jsonl")
    shutil.rmtree(folder / "half")
    key = json.loads((folder / "results/study/key.json").read_text())
    of_set = {image["set"]: name for name, image in key["images"].items()}
    (folder / "votes.csv").write_text("study,voter,left,right,choice\n" + "".join(
        f"{key['id']},a,{a},{b},left\n" for a in of_set.values() for b in of_set.values() if a != b))


ENVIRONMENT = os.environ | {"PYTHONPATH": ROOT}


@contextmanager
def copied(base, journal=False):
    """A copy of the base to attack, always at the same path: its folder, and that of the logs around it."""
    work = base.parent / "work"
    try:
        ignored = shutil.ignore_patterns(*() if journal else ("unfinished.jsonl",))
        yield Path(shutil.copytree(base, work / "here", ignore=ignored)), work
    finally:
        shutil.rmtree(work)


# --- a command in a process of its own ---


def start(words, folder, log):
    """The command `words` in a process of its own, a fork of this one: torch is imported already. Returns its id."""
    Path(log).touch()  # a kill may come before the process has opened it
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setpgrp()  # with those that it starts
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(out, stream)
        sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
        faulthandler.disable()  # which a test's process may have aimed elsewhere
        os.chdir(folder)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = importlib.import_module(words[0]).main([*words[1:]]) or 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code if isinstance(code, int) else 1)


def wait(process, log, seconds=PATIENCE, sent=None):
    """(what became of the process, in a word or two; whether that is a fault). sent: a signal that it was sent."""
    end = time.monotonic() + seconds
    while not (done := os.waitpid(process, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return "hung", True
        time.sleep(0.005)
    if left_behind(process):
        return "left processes", True
    text = Path(log).read_text(errors="replace")
    if os.WIFSIGNALED(done[1]) and os.WTERMSIG(done[1]) == sent:  # its loading processes may say so in many lines
        return f"ended by signal {sent}", False
    if "Traceback (most recent call last)" in text:
        return "traceback", True
    if os.WIFSIGNALED(done[1]):
        return f"signal {os.WTERMSIG(done[1])}", True
    if "no memory is left" in text:  # a small file that asks for a gigabyte
        return "memory", True
    code = os.WEXITSTATUS(done[1])
    if re.search("[\x00-\x08\x0e-\x1f\x7f-\x9f]", text):
        return "control characters", True
    if sent and code == 128 + sent:
        return "stopped", False
    return {0: ("worked", False), 1: ("failed in part", False), 2: ("refused", False)}.get(code, (f"code {code}", True))


def left_behind(group, seconds=30):
    """Whether processes of a group go on, after some seconds in which they may end; then they are killed. torch's
    loading processes look every 5 s whether theirs lives."""
    end = time.monotonic() + seconds
    while alive := [pid for pid, state, its in processes() if its == group and state != "Z"]:
        if time.monotonic() > end:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
            return True
        time.sleep(0.02)
    return False


def processes():
    """(id, state, group) of all processes."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = path.read_text(errors="replace").rpartition(")")[2].split()[:3]
        except OSError:  # it has ended
            continue
        yield int(path.parent.name), state, int(group)


def alone(words, folder, work):
    """`words`, to their end: (outcome, fault)."""
    return wait(start(words, folder, work / "log"), work / "log")


def fingerprint(folder):
    """{file: digest} of what the same commands always write alike: of checkpoints weights and step, of logs the losses,
    of pages what does not come from a log, of metrics.json no revision; no locks."""
    import torch

    found = {}
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.name != ".lock"):
        content = path.read_bytes()
        if path.suffix == ".pt" and b"averaged" in content:
            state = torch.load(path, weights_only=True)
            content = repr([state["step"], [*state["averaged"]]]).encode() + b"".join(
                tensor.numpy().tobytes() for network in (state["networks"] | state["averaged"]).values()
                for tensor in network.values())
        elif path.name == "log.jsonl":
            lines = [json.loads(line) for line in content.splitlines()]
            content = repr([(line.get("step"), line.get("total")) for line in lines]).encode()
        elif path.name == "index.html":
            content = re.sub(rb"<svg.*?</svg>", b"", content, flags=re.DOTALL) if "results" in path.parts else b""
        elif path.name == "metrics.json":
            content = repr({key: v for key, v in json.loads(content).items() if key != "origin"}).encode()
        elif path.name in ("config.json", ".made"):  # the command lines; the order of threads
            content = b""
        found[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def told(where, outcome, fault, *logs):
    """What an outcome is counted as; a fault is printed, with the ends of the logs."""
    if fault:
        print(f"FAULT {where}: {outcome}:", *(Path(log).read_text(errors="replace")[-600:] for log in logs), flush=True)
    return f"FAULT {outcome}" if fault else outcome


# --- the attacks: each gives {outcome: how often} ---


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


def attack_door(base, door, n, seed):
    """Damaged files; before them the whole one, with which the command must work."""
    file, words = DOORS[door]
    outcomes, outside, content = Counter(), fingerprint(base.parent / "victim"), (base / file).read_bytes()
    for case in range(-1, n):
        rng = np.random.default_rng([seed, *door.encode(), max(case, 0)])
        with copied(base, journal=door == "journal") as (folder, work):
            (folder / file).write_bytes(content if case < 0 else damage(content, rng))
            outcome, fault = wait(start(words, folder, work / "log"), work / "log")
            if fingerprint(base.parent / "victim") != outside:
                outcome, fault = "wrote outside", True
            if case < 0 and outcome != "worked":
                outcome, fault = "does not work", True
            outcome = told(f"{door} {case}", outcome, fault, work / "log")
        if case >= 0 or fault:
            outcomes[outcome] += 1
    return outcomes


def go_on(words, folder):
    """What a user repeats after a kill."""
    name = words[words.index("--name") + 1] if words[0] == "train" else ""
    begun = name and (folder / "checkpoints" / name / "latest.pt").exists()
    return ("train", "--name", name, "--resume", "--gpu", "-1") if begun else words


def attack_by_kills(base, command, n, seed):
    """SIGKILL and SIGTERM at random moments, then the command once more."""
    words, outcomes = KILLS[command], Counter()
    with copied(base) as (folder, work):
        begun = time.monotonic()
        outcome, _ = alone(words, folder, work)
        seconds, expected = time.monotonic() - begun, fingerprint(folder)
        if outcome != "worked":
            return Counter([told(command, "does not work", True, work / "log")])
    for case in range(n):
        rng = np.random.default_rng([seed, *command.encode(), case])
        with copied(base) as (folder, work):
            for _ in range(rng.integers(1, 4)):
                number = (signal.SIGKILL, signal.SIGTERM)[rng.integers(2)]
                process = start(go_on(words, folder), folder, work / "log")
                time.sleep(seconds * rng.random())
                os.kill(process, number)
                outcome, fault = wait(process, work / "log", sent=number)
                outcomes[told(f"{command} {case}", outcome, fault, work / "log")] += 1
            outcome, fault = alone(go_on(words, folder), folder, work)
            after = fingerprint(folder)
            differ = {name for name in expected | after if expected.get(name) != after.get(name)}
            if differ:
                outcome, fault = f"other files, such as {min(differ)}", True
            outcomes[told(f"{command} {case}", {"worked": "as undisturbed"}.get(outcome, outcome),
                          fault or outcome != "worked", work / "log")] += 1
    return outcomes


def states(base, place, first, second):
    """The folder after each of two commands, and after one and the other; and the commands that do not work alone."""
    found, useless = [], []
    for words in ((first,), (second,), (first, second), (second, first)):
        with copied(base) as (folder, work):
            outcome = [alone(one, folder, work)[0] for one in words]
            found.append(fingerprint(folder / place))
            useless += words if outcome == ["refused"] else ()
    return found, useless


def attack_by_races(base, place, names, n, seed):
    """Two commands at once."""
    commands, outcomes = [RACES[place][name] for name in names], Counter()
    allowed, useless = states(base, place, *commands)
    if useless:
        return Counter([told(place, f"{useless} does not work", True)])
    for case in range(n):
        rng = np.random.default_rng([seed, case, *"".join(names).encode()])
        with copied(base) as (folder, work):
            logs, running = [work / "a", work / "b"], []
            for words, log in zip(commands, logs, strict=True):
                running.append(start(words, folder, log))
                time.sleep(rng.random() * 0.2)
            ends = [wait(process, log) for process, log in zip(running, logs, strict=True)]
            after = fingerprint(folder / place)
            again = [alone(words, folder, work) for words in commands]
            outcome, fault = " + ".join(sorted(outcome for outcome, _ in ends)), any(bad for _, bad in ends + again)
            if after not in allowed:
                differ = [name for name in after if after[name] not in [one.get(name) for one in allowed]]
                outcome, fault = f"mixed files, such as {differ[:3]}", True
            fault = fault or all(outcome == "refused" for outcome, _ in ends)
            outcomes[told(f"{place} {names} {case}", outcome, fault, *logs, work / "log")] += 1
    return outcomes


def run(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attack", description=__doc__.splitlines()[0])
    parser.add_argument("--doors", nargs="*", choices=tuple(DOORS), default=tuple(DOORS))
    parser.add_argument("--n", type=int, default=500, help="damaged files at each door")
    parser.add_argument("--kills", type=int, default=40, help="trials of each command, of one to three kills")
    parser.add_argument("--races", type=int, default=20, help="of each two commands")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    import torch

    torch.set_num_threads(1)
    for command in COMMANDS:
        importlib.import_module(command)
    parts = [("door", door, attack_door, (door, args.n)) for door in args.doors]
    parts += [("kill", command, attack_by_kills, (command, args.kills)) for command in KILLS if args.kills]
    for place, commands in RACES.items() if args.races else ():
        parts += [("race", f"{place}: {' | '.join(names)}", attack_by_races, (place, names, args.races))
                  for names in combinations_with_replacement(commands, 2)]
    begun, total = time.monotonic(), Counter()
    with tempfile.TemporaryDirectory() as work:
        base = Path(work) / "base"
        write_base(base)
        for kind, name, attack, more in parts:
            outcomes = attack(base, *more, args.seed)
            total.update({(kind, outcome): count for outcome, count in outcomes.items()})
            print(f"{kind} {name:36}", ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()),
                  flush=True)
    for kind in dict.fromkeys(kind for kind, _ in total):
        print(f"all {kind}s:", ", ".join(f"{n} {outcome}" for (of, outcome), n in total.most_common() if of == kind))
    print(f"{(time.monotonic() - begun) / 60:.0f} minutes")
    return int(any(outcome.startswith("FAULT") for _, outcome in total))


if __name__ == "__main__":
    sys.exit(run())
