"""The house: which module may import which, what can be copied out, and that importing does nothing else."""
import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from running import methods

ROOT = Path(__file__).parent.parent
CORE = {"networks": set(), "losses": set(), "images": set(), "crf": set(), "seigan": {"networks", "losses"},
        "data": {"images"}}
FOLDERS = ("crops", "evaluation", "running", "photos", "baselines")
ALSO = {"photos": {"crops"}, "running": {"baselines"}}  # beyond their own folder and CORE
COMMANDS = {"prepare", "train", "test", "photo", "evaluation.study", "evaluation.compare"}


def modules():
    """{dotted name: path} of the project's own modules, without tests and benchmarks."""
    paths = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).glob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


def imports(path):
    """Our modules that a file imports, anywhere in it, as dotted names."""
    found, ours = set(), modules()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in ours}


@pytest.mark.parametrize("name", modules())
def test_a_module_imports_only_what_it_may(name):
    found, folder = imports(modules()[name]), name.partition(".")[0]
    assert not found & COMMANDS, "nothing imports a command"
    if name in CORE:
        assert found <= CORE[name]
    elif name not in COMMANDS:
        rooms = {other.partition(".")[0] for other in found}
        assert rooms <= CORE.keys() | {folder} | ALSO.get(folder, set())


def test_the_root_has_few_doors():
    assert {path.stem for path in ROOT.glob("*.py")} == {*CORE, "prepare", "train", "test", "photo"}


def test_every_file_and_function_is_short():
    for path in modules().values():
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 450, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 50, f"{path}: {node.name}"


def python(code, cwd, path=None):
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONPATH": path or ""}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True)


TWO_STEPS = """
import torch
from seigan import SEIGAN, Trainer
torch.manual_seed(0)
trainer = Trainer(SEIGAN(size=16, ngf=4, ndf=4, n_layers_D=2, seg_blocks=1, unet_downs=2))
batch = {"x": torch.rand(2, 3, 16, 16), "y": torch.rand(2, 3, 16, 16), "box": torch.tensor([[0.1, 0.1, 0.8, 0.8]] * 2)}
for _ in range(2):
    terms = trainer.train_step(batch)
assert trainer.step == 2 and not terms["skipped"]
torch.save({"config": trainer.model.config, **trainer.state_dict()}, "latest.pt")
assert SEIGAN.load("latest.pt").paste(batch["x"], batch["y"]).shape == (2, 3, 16, 16)
"""


def test_three_files_train_and_load_alone(tmp_path):
    for name in ("networks", "losses", "seigan"):
        shutil.copy(ROOT / f"{name}.py", tmp_path)
    done = python(TWO_STEPS, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["networks", "losses", "crf"])
def test_the_mathematics_knows_no_files_and_no_options(name):
    tree = ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert not called & {"open", "torch.load", "torch.save", "print"}
    assert not [text for text in texts if " --" in f" {text}"]


def test_these_stand_alone(tmp_path):
    for name in ("images", "networks", "losses", "crf"):
        (tmp_path / name).mkdir()
        shutil.copy(ROOT / f"{name}.py", tmp_path / name)
    code = "import sys\n" + "".join(
        f"sys.path[0] = {name!r}; import {name}; assert ('torch' in sys.modules) == {name != 'images'}\n"
        f"del sys.modules[{name!r}]\n" for name in ("images", "networks", "losses", "crf"))
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_importing_prints_parses_and_starts_nothing(tmp_path):
    names = ", ".join(name for name in modules() if not name.endswith("__init__"))
    code = f"import sys; sys.argv = ['x', '--nonsense']; import torch, {names}; sys.exit(torch.cuda.is_initialized())"
    done = python(code, tmp_path, str(ROOT))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


HELP = ["train.py", "train.py --method redo", "train.py --method dscomgan --paper", "train.py --method boxes --demo",
        "test.py", "photo.py", "photo.py cut", "photo.py export", "prepare.py", "prepare.py coco",
        "-m evaluation.compare", "-m evaluation.study page", "-m benchmarks.quality", "-m benchmarks.step",
        "-m benchmarks.files crops", "-m benchmarks.attack"]


@pytest.mark.parametrize("words", HELP)
def test_help_does_not_wait_for_torch(words):
    done = subprocess.run([sys.executable, "-X", "importtime", *words.split(), "--help"], cwd=ROOT,
                          capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert done.returncode == 0 and done.stdout.startswith("usage: ") and "--help" in done.stdout
    assert "argparse" in imported and not imported & {"torch", "torchvision", "tqdm"}


@pytest.mark.parametrize("name", methods.METHODS)
def test_what_is_declared_is_what_the_modules_have(name):
    module, found = methods.load(name), methods.declared(name)
    like = vars(methods.load(module.LIKE)) if hasattr(module, "LIKE") else {}
    for key in ("OPTIONS", "DEFAULTS", "PAPER"):
        whole = like.get(key, {}) | vars(module).get(key, {})
        assert found.get(key, {}) == whole and list(found.get(key, {})) == list(whole)
