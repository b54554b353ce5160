"""README's commands as written, with fewer pictures and steps; and its Python example."""
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUTTERFLIES = os.path.join(HERE, "..", "shared", "data", "butterflies")
# what makes a command short; the command itself stays as written
SHORT = {
    "train.py": "--n_epochs 1 --n_epochs_decay 0 --batch_size 16 --num_threads 0",
    "train.py --resume": "--n_epochs 2",
    "prepare.py": "--y_per_x 0.5",
}


def blocks(language):
    with open(os.path.join(HERE, "README.md"), encoding="utf-8") as f:
        return re.findall(rf"^```{language}\n(.*?)^```", f.read(), re.M | re.S)


def commands():
    """Every `python FILE.py ...` of README's shell blocks, as lists of words, in order."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    parts = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [words for words in parts if words[:1] == ["python"] and words[1].endswith(".py")]


def run(words, cwd):
    script, *rest = words[1:]
    short = SHORT.get(f"{script} --resume" if "--resume" in rest else script, "")
    short = "" if "check" in rest else short
    done = subprocess.run([sys.executable, os.path.join(HERE, script), *rest, *short.split()], cwd=cwd,
                          capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the demo's commands have run: with a demo set of a few pictures."""
    folder = tmp_path_factory.mktemp("user")
    code = ("from crops import demo; demo.write_demo('datasets/demo', counts="
            "{'train': {'objects': 8, 'backgrounds': 8}, "
            "'test': {'objects': 4, 'backgrounds': 4}})")
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=os.environ | {"PYTHONPATH": HERE}, check=True,
                   capture_output=True)
    for words in commands():
        if "demo" in words and words[1] in ("train.py", "test.py"):
            run(words, folder)
    return folder


def test_the_demo_commands(folder):
    assert os.path.exists(folder / "checkpoints" / "demo" / "latest.pt")
    assert os.path.exists(folder / "results" / "demo" / "metrics.json")
    assert os.path.exists(folder / "results" / "demo" / "contact_sheet.png")


def test_the_python_example(folder):
    (code,) = blocks("python")
    assert len(code.strip().splitlines()) <= 8
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=os.environ | {"PYTHONPATH": HERE}, check=True)
    assert os.path.exists(folder / "y_hat.png") and os.path.exists(folder / "x_hat.png")


@pytest.mark.skipif(not os.path.isdir(BUTTERFLIES), reason=f"no photographs at {os.path.normpath(BUTTERFLIES)}")
def test_the_butterfly_commands(tmp_path):
    """Prepare, train a small model on the CPU, resume it, test it, use it on photographs."""
    (tmp_path / "butterflies").mkdir()
    os.symlink(os.path.abspath(os.path.join(BUTTERFLIES, "images")), tmp_path / "butterflies" / "images")
    for split in ("train", "test"):  # an eighth of the photographs
        table = json.loads(Path(BUTTERFLIES, f"annotations_{split}.json").read_text())
        table["images"] = table["images"][::8]
        kept = {image["id"] for image in table["images"]}
        table["annotations"] = [one for one in table["annotations"] if one["image_id"] in kept]
        (tmp_path / "butterflies" / f"annotations_{split}.json").write_text(json.dumps(table))
    for name, file in (("dog.jpg", "0010001.jpg"), ("beach.jpg", "0010002.jpg")):
        with Image.open(os.path.join(BUTTERFLIES, "images", file)) as image:
            image.resize((1600, 1200)).save(tmp_path / name)
    os.symlink(os.path.join(HERE, "models"), tmp_path / "models")
    here = [words for words in commands() if words[1] == "prepare.py" or {"butterflies64", "models/demo.pt"} & {*words}]
    for words in sorted(here, key=lambda words: ("prepare.py", "train.py", "test.py", "photo.py").index(words[1])):
        run(words, tmp_path)
    assert {words[1] for words in here} == {"prepare.py", "train.py", "test.py", "photo.py"}
    assert os.path.exists(tmp_path / "results" / "butterflies64" / "metrics.json")
    assert os.path.exists(tmp_path / "results" / "butterflies64" / "photos" / "pasted" / "dog.jpg.png")


def test_every_command_of_readme_is_run_or_has_a_reason():
    not_run = {"train.py --dataroot datasets/butterflies --name butterflies"}  # the full size: hours on a CPU
    for words in commands():
        text, used = " ".join(words[1:]), {"demo", "butterflies64", "models/demo.pt"}
        assert text in not_run or used & {*words} or words[1] == "prepare.py", text
