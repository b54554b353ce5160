"""Folders, files and terminals that are not what they seem: nothing else is written, run or filled.

Long, since every command meets the same folders and files, which the fixtures at the top make.
"""
import csv
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from test_faults import CONTENT, small_model
from test_study import page, results, write_votes  # noqa: F401 - fixtures
from test_train import HERE, SMALL, dataroot, run  # noqa: F401 - fixtures

import photo
import prepare
import test
import train
from crops import demo
from evaluation import charts, study
from images import UserError
from running.checkpoint import load_checkpoint, load_model, save_checkpoint
from running.folder import Log
from running.options import command, whole

# --- a run's folder ---


def test_resume_writes_where_it_reads(run, tmp_path, monkeypatch):  # noqa: F811
    assert run(f"--name a {SMALL}")[0] == 0
    shutil.copytree(tmp_path / "a", tmp_path / "checkpoints" / "a")
    monkeypatch.chdir(tmp_path)
    before = {p: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert train.main("--name a --resume --n_epochs 2".split()) == 0
    assert load_checkpoint(tmp_path / "checkpoints" / "a" / "latest.pt")["step"] == 12
    assert {p: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", [".lock", "config.json", "log.jsonl", ".config.json.part", ".log.jsonl.part",
                                  ".latest.pt.part", "step_0000008.pt", "samples"])
def test_nothing_is_written_through_a_link(run, once, tmp_path, name):  # noqa: F811
    shutil.copytree(once / "a", tmp_path / "a")
    folder, victim = tmp_path / "a", tmp_path / "victim"
    if name == "samples":
        shutil.rmtree(folder / name)
        victim.mkdir()
    else:
        (folder / name).unlink(missing_ok=True)
        victim.write_text('{"commands": []}')
    (folder / name).symlink_to(victim)
    code, out = run("--name a --resume --n_epochs 2")
    assert code in (0, 2) and len(out.err.splitlines()) == code // 2
    assert os.listdir(victim) == [] if victim.is_dir() else victim.read_text() == '{"commands": []}'


def test_resume_on_other_data_is_refused(run, tmp_path, monkeypatch):  # noqa: F811
    for folder, seed in (("here", 0), ("there", 1)):
        demo.write_demo(tmp_path / folder / "d", seed=seed, counts={"train": {"objects": 4, "backgrounds": 4}})
    monkeypatch.chdir(tmp_path / "here")
    assert run(f"--name a {SMALL}", root="d")[0] == 0
    monkeypatch.chdir(tmp_path / "there")
    code, out = run("--name a --resume --n_epochs 2", root=None)
    assert code == 2 and "holds other training crops" in out.err and len(out.err.splitlines()) == 1
    shutil.move(tmp_path / "here" / "d", tmp_path / "moved")
    assert run("--name a --resume --n_epochs 2", root=tmp_path / "moved")[0] == 0


def test_a_run_without_one_applied_step_is_no_success(run):  # noqa: F811
    code, out = run(f"--name a {SMALL} --lambda_inp 1e30")
    assert code == 2 and "none of the 8 steps was applied" in out.err.splitlines()[-1]
    assert run("--name a --resume")[0] == 2


@pytest.mark.parametrize("line", ['{"step": "x"}', '{"step": null}', "[" * 100_000, '{"step": 1e999}', "{}", "\xff"])
def test_a_log_of_anything(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"step": 1, "a": 2}}\n{line}\n{{"step": 2, "a": {"9" * 400}}}\n')
    assert charts.read_log(path) == {"a": ((1,), (2.0,))}
    Log(str(path), 1)
    assert path.read_text() == '{"step": 1, "a": 2}\n'


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"commands": 1}', "[" * 100_000])
def test_a_damaged_config_is_one_line(run, tmp_path, text):  # noqa: F811
    run(f"--name a {SMALL} --max_minutes 0")
    (tmp_path / "a" / "config.json").write_text(text)
    code, out = run("--name a --resume --max_minutes 60")
    assert code == 2 and "config.json is damaged" in out.err and len(out.err.splitlines()) == 1


# --- checkpoints ---


def written(path, **changes):
    """A checkpoint of a small model, with changes of its config."""
    model = small_model()
    save_checkpoint(path, CONTENT | {"config": model.config | changes, "networks": model.state()})
    return path


@pytest.mark.parametrize("name, value", [("n_layers_D", 10**6), ("n_layers_D_bg", 10**6), ("unet_downs", 10**6),
                                         ("seg_blocks", 10**7),
                                         ("ngf", 4096), ("ndf", 4000), ("size", 10**9), ("seg_blocks", 200),
                                         ("grow_hole", 10**9), ("ngf", True), ("unet_downs", 12)])
def test_sizes_are_checked_before_memory_is_taken(tmp_path, name, value):
    path, begun = written(tmp_path / "latest.pt", **{name: value}), time.process_time()
    with pytest.raises(UserError, match="holds no model that this code can build.*(must be|asks for)") as caught:
        load_model(path)
    assert time.process_time() - begun < 5 and "\n" not in str(caught.value)


@pytest.mark.parametrize("step", [-1, float("nan"), "1", True, None])
def test_a_step_is_a_number(tmp_path, step):
    path = tmp_path / "latest.pt"
    save_checkpoint(path, CONTENT | {"step": step})
    with pytest.raises(UserError, match="is not a checkpoint of format"):
        load_checkpoint(path)


def test_an_archive_that_would_grow_is_refused(tmp_path):
    path, bomb = written(tmp_path / "latest.pt"), tmp_path / "bomb.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        new.writestr("latest/data/999", bytes(10**8))
    begun = time.process_time()
    with pytest.raises(UserError, match="is damaged or no checkpoint"):
        load_checkpoint(bomb)
    assert time.process_time() - begun < 0.5, "it was unpacked"


class Reserve:
    def __reduce__(self):
        return bytearray, (3 * 10**8,)


def test_a_pickle_that_reserves_memory_is_refused(tmp_path):
    path, bomb = written(tmp_path / "latest.pt"), tmp_path / "bomb.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(bomb, "w") as new:
        for entry in old.infolist():
            data = pickle.dumps(CONTENT | {"format": 2, "x": Reserve()}, 2)
            new.writestr(entry.filename, data if entry.filename.endswith("data.pkl") else old.read(entry))
    with pytest.raises(UserError, match="is damaged or no checkpoint"):
        load_checkpoint(bomb)


@pytest.mark.parametrize("options", [
    {"batch_size": "2"}, {"batch_size": 0}, {"batch_size": 2.5}, {"dataroot": 5}, {"dataroot": ["x"]}, {"lr": "x"},
    {"lr": float("nan")}, {"no_flip": 1}, {"no_flip": None}, {"n_epochs": -1}, {"seed": True}, {"on_collapse": "pray"},
    {"ngf": 4000}, {"seg_blocks": 10**7}, {"max_minutes": {}}, {"lr": torch.ones(2)}, {"amp": "yes"}])
def test_options_of_a_checkpoint_are_checked(dataroot, tmp_path, capsys, once, options):  # noqa: F811
    shutil.copytree(once / "a", tmp_path / "a")
    path = tmp_path / "a" / "latest.pt"
    state = load_checkpoint(path)
    save_checkpoint(path, state | {"options": state["options"] | options})
    assert train.main(f"--name a --checkpoints_dir {tmp_path} --resume --n_epochs_decay 2".split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("train.py: error: ") and len(err.splitlines()) == 1


@pytest.fixture(scope="module")
def once(dataroot, tmp_path_factory):  # noqa: F811
    """A folder with a run "a"."""
    folder = tmp_path_factory.mktemp("once")
    assert train.main(f"--name a --dataroot {dataroot} --checkpoints_dir {folder} {SMALL}".split()) == 0
    return folder


# --- weights of others ---


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def weights_of_others(path):
    """{name: function that writes a file of that kind to `path`}."""
    state = {"features.0.weight": torch.zeros(64, 3, 3, 3), "features.0.bias": torch.zeros(64)}

    def grow():
        torch.save(state, path)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data/999", bytes(10**8))

    def behind():  # an archive for those who look at a file's end, an old pickle for torch, which looks at its start
        torch.save({**state, "x": Reserve()}, path, _use_new_zipfile_serialization=False)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/data.pkl", b"")

    def cut(**how):
        torch.save(state, path, **how)
        path.write_bytes(path.read_bytes()[:-300])

    old = {"_use_new_zipfile_serialization": False}
    return {"grows": grow, "reserves": lambda: torch.save({**state, "x": Reserve()}, path),
            "reserves, old": lambda: torch.save({**state, "x": Reserve()}, path, **old), "behind": behind,
            "code": lambda: torch.save({**state, "x": Code()}, path), "cut": cut, "cut, old": lambda: cut(**old),
            "code, old": lambda: torch.save({**state, "x": Code()}, path, **old), "pipe": lambda: os.mkfifo(path),
            "folder": path.mkdir, "empty": lambda: path.write_bytes(b""), "text": lambda: path.write_text("nothing"),
            "ends": lambda: path.write_bytes(b"\x80\x02"), "list": lambda: torch.save([state], path),
            "words": lambda: torch.save({key: "text" for key in state}, path),
            "meta": lambda: torch.save({key: value.to("meta") for key, value in state.items()}, path)}


@pytest.mark.parametrize("kind", weights_of_others(Path()))
@pytest.mark.parametrize("door", ["vgg", "frechet", "detector", "checkpoint"])
def test_weights_of_others_are_one_line(dataroot, once, tmp_path, monkeypatch, capsys, kind, door):  # noqa: F811
    path = tmp_path / "w.pth"
    weights_of_others(path)[kind]()
    monkeypatch.chdir(tmp_path)
    load, looked = torch.load, kind in ("grows", "reserves", "reserves, old", "behind", "pipe")
    monkeypatch.setattr(torch, "load", lambda file, **how: pytest.fail("memory is taken")
                        if looked and str(file) == str(path) else load(file, **how))
    argv = {"vgg": f"--name v --dataroot {dataroot} {SMALL} --lambda_bg_texture 1 --vgg_weights {path}",
            "frechet": f"--name a --checkpoints_dir {once} --gpu -1 --frechet_weights squeezenet1_1:{path}",
            "detector": f"detect --images {once} --out {tmp_path / 'd'} --gpu -1 --detector_weights {path}",
            "checkpoint": f"--weights {path} --gpu -1"}[door]
    command = {"vgg": train, "frechet": test, "detector": prepare, "checkpoint": test}[door]
    begun = time.monotonic()
    assert command.main(argv.split()) == 2
    err = capsys.readouterr().err
    assert "w.pth" in err and len(err.splitlines()) == 1 and len(err) < 800, err
    assert not os.path.exists("ran") and time.monotonic() - begun < 20


# --- terminals ---


TALK = """
import sys
from running.options import command
def run(argv):
    for i in range(5000):
        print("words", i, flush=i % 7 == 0)
        print("more", i, file=sys.stderr)
    return 3
sys.exit(command("talk", run, []))
"""


@pytest.mark.parametrize("how", [">/dev/full", ">/dev/full 2>&1", ">&-", ">&- 2>&-", "2>&-", "| head -1",
                                 "2>&1 | head -1"])
def test_what_cannot_be_printed_changes_nothing(how):
    line = f"set -o pipefail; {sys.executable} -c '{TALK}' {how}"
    done = subprocess.run(["bash", "-c", line], cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 3 and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    if how in (">/dev/full", "| head -1"):
        assert done.stderr.count("talk: warning: cannot print all") == 1


def test_a_run_outlives_its_terminal(dataroot, tmp_path):  # noqa: F811
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, os.path.join(HERE, "train.py"), "--name", "a", "--dataroot",
                               str(dataroot), "--checkpoints_dir", str(tmp_path), *SMALL.split()],
                              stdout=full, stderr=full)
    assert done.returncode == 0 and load_checkpoint(tmp_path / "a" / "latest.pt")["step"] == 8


def test_names_do_not_steer_the_terminal(capsys):
    def fail(argv):
        print("\x1b]0;title\x07 b\udcff ŷ\n\x1b[A")
        raise UserError("a\x1b[31m\nb\r\x9b1m\u202ec\udcff.png")

    assert command("x", fail, []) == 2
    out = capsys.readouterr()
    assert out.out == "\\x1b]0;title\\x07 b\\udcff ŷ\n\x1b[A\n"
    assert out.err == "x: error: a\\x1b[31m\\nb\\r\\x9b1m\\u202ec\\udcff.png\n"


@pytest.mark.parametrize("text", ["9" * 20, "9" * 401])
def test_whole_numbers_end_somewhere(text, capsys):
    with pytest.raises(Exception, match="must be a whole number from 0 to"):
        whole(0)(text)
    with pytest.raises(SystemExit):
        photo.main(["cut", "a.png", "--name", "a", "--box", "1,1,2,2", "--dilate", text])
    assert "--dilate: must be a whole number from 0 to 1000" in capsys.readouterr().err


@pytest.mark.parametrize("error", [
    RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nTraceback\nRuntimeError: unable to allocate "
                 "shared memory(shm) for file </torch_1_2_0>: No space left on device (28)\n"),
    RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers "
                 "are out of shared memory. Please try to raise your shared memory limit."),
    OSError(28, "No space left on device"), OSError(30, "Read-only file system")])
def test_too_little_shared_memory_names_the_way_out(run, monkeypatch, error):  # noqa: F811
    monkeypatch.setattr(train, "batches", lambda *_: (_ for _ in ()).throw(error))
    code, out = run(f"--name a {SMALL} --num_threads 1")
    assert code == 2 and "--num_threads 0" in out.err and len(out.err.splitlines()) == 1


# --- results: whose files, how many writers ---


@pytest.fixture
def evaluate(once, tmp_path, capsys):
    def evaluate(*more):
        code = test.main(["--name", "a", "--checkpoints_dir", str(once), "--results_dir", str(tmp_path), "--gpu", "-1",
                          *more])
        return code, capsys.readouterr()
    return evaluate


def test_an_evaluation_removes_what_it_made_and_no_more(evaluate, tmp_path):
    own = [tmp_path / "a" / name for name in ("x/own.png", "mask/own.png", "notes.txt")]
    for path in own:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    assert evaluate()[0] == 0
    made = {p for p in (tmp_path / "a").rglob("*") if p.is_file() and not p.name.startswith(".")} - {*own}
    outside = tmp_path / "outside.png"
    outside.write_text("mine")
    with open(tmp_path / "a" / ".made", "a") as f:
        f.write('"../outside.png"\n"x/../../outside.png"\n' + json.dumps(str(outside)) + '\n[1]\n{"a\n""\n1\n')
    assert evaluate("--no_images")[0] == 0
    assert {p.name for p in made if p.exists()} == {
        "index.html", "metrics.json", "per_image.csv", "contact_sheet.png", "best_median_worst.png"}
    assert all(path.read_text() == "mine" for path in [*own, outside])


HOLD = ("import sys; from running.folder import Lock; lock = Lock(sys.argv[1]); print('held', flush=True); "
        "sys.stdin.read()")


def test_one_writer_a_folder(evaluate, once, results, tmp_path, capsys):  # noqa: F811
    (tmp_path / "a").mkdir()
    shutil.copy(next(Path(HERE).glob("docs/*.png")), tmp_path / "photo.png")
    commands = [lambda: evaluate()[0],
                lambda: photo.main(["cut", str(tmp_path / "photo.png"), "--box", "5,5,30,30", "--name", "a", "--out",
                                    str(tmp_path / "a"), "--checkpoints_dir", str(once), "--gpu", "-1"]),
                lambda: photo.main(["export", "--name", "a", "--out", str(tmp_path / "a"), "--checkpoints_dir",
                                    str(once)]),
                lambda: photo.main(["export", "--weights", "--name", "a", "--out", str(tmp_path / "a" / "w.pt"),
                                    "--checkpoints_dir", str(once)]),
                lambda: study.main(["page", "--name", "nc", "full", "--results_dir", str(results), "--out",
                                    str(tmp_path / "a")])]
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "a")], cwd=HERE, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        for call in commands:
            capsys.readouterr()
            assert call() == 2
        assert os.listdir(tmp_path / "a") == [".lock"]
    finally:
        first.kill()
        first.wait()
    assert commands[0]() == 0


def test_cells_are_no_formulas(tmp_path):
    rows = [{"stem": "=cmd|' C'!A0", "class": "@x", "iou": -0.5, "n": -3}, {"stem": "'tis", "class": "-\udcff"}]
    test.page.write_csv(tmp_path / "a.csv", [{key: test.cell(value) for key, value in row.items()} for row in rows])
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as f:
        cells = list(csv.reader(f))[1:]
    assert cells == [["'=cmd|' C'!A0", "'@x", "-0.5", "-3"], ["''tis", "'-\\udcff", "", ""]]


def test_names_that_are_no_text_are_refused_before_the_work(once, tmp_path, capsys):
    root = tmp_path / "set"
    demo.write_demo(root, counts={"train": {"objects": 2, "backgrounds": 2}, "test": {"objects": 2, "backgrounds": 2}})
    os.rename(root / "test" / "objects" / "00001.png", os.fsencode(root / "test" / "objects") + b"/b\xff.png")
    argv = f"--name a --checkpoints_dir {once} --results_dir {tmp_path / 'r'} --dataroot {root} --gpu -1".split()
    assert test.main(argv) == 2
    err = capsys.readouterr().err
    assert "b\\udcff.png" in err and "not UTF-8" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "r").exists()


def test_photographs_of_any_name(once, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    shutil.copy(next(Path(HERE).glob("docs/*.png")), tmp_path / "photos" / "dog.png")
    shutil.copy(tmp_path / "photos" / "dog.png", os.fsencode(tmp_path / "photos") + b"/b\xff\x1b.png")
    out, name = tmp_path / "out", os.fsdecode(b"b\xff\x1b.png")
    argv = ["paste", str(tmp_path / "photos" / name), "--box", "5,5,60,60", "--name", "a", "--out", str(out),
            "--checkpoints_dir", str(once), "--gpu", "-1", "--background", str(tmp_path / "photos"), "--no-refine"]
    assert photo.main(argv) == 0 and (out / "pasted" / f"{name}.png").exists()
    capsys.readouterr()
    assert photo.main(argv) == 2
    assert "\x1b" not in capsys.readouterr().err


# --- the study ---


def make(results, out):  # noqa: F811
    return study.main(["page", "--name", "nc", "full", "--results_dir", str(results), "--out", str(out),
                       "--n_images", "5", "--n_pairs", "60"])


def test_a_page_removes_what_it_made_and_no_more(results, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "site"
    (out / "page" / "images").mkdir(parents=True)
    (out / "page" / "images" / "holiday.txt").write_text("mine")
    assert make(results, out) == 0
    first = {p for p in (out / "page" / "images").glob("*.png")}
    (out / "key.json").unlink()
    shutil.copy(results / "nc" / "z" / "01.png", results / "nc" / "z" / "11.png")  # another study
    assert make(results, out) == 0
    assert first and not any(p.exists() for p in first)
    assert (out / "page" / "images" / "holiday.txt").read_text() == "mine"
    other = tmp_path / "other"
    (other / "page").mkdir(parents=True)
    (other / "page" / "index.html").write_text("mine")
    assert make(results, other) == 2 and "is of no study" in capsys.readouterr().err
    assert (other / "page" / "index.html").read_text() == "mine"


@pytest.mark.parametrize("rows", [0, 7])
def test_an_unfinished_evaluation_is_refused(results, tmp_path, capsys, rows):  # noqa: F811
    path = results / "nc" / "per_image.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[: rows + 1]))
    assert make(results, tmp_path / "site") == 2
    err = capsys.readouterr().err
    assert f"has {rows} rows for 12 images: run `python test.py --name nc` again" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("file, text", [
    ("metrics.json", "[]"), ("metrics.json", '{"kinds": 3}'), ("metrics.json", "[" * 100_000),
    ("metrics.json", "\xff"), ("metrics.json", '{"kinds": ["z"], "method": [], "size": 16, "n_images": 12}'),
    ("per_image.csv", "a,b\n" + "1,2\n" * 12), ("per_image.csv", "stem\n" + "../x\n" * 12),
    ("per_image.csv", "stem\n" + "x\0\n" * 12),
    ("per_image.csv", "stem\n" + "x" * 200_000),
    ("per_image.csv", "stem,d_obj_z\n" + "".join(f"{i:02d},high\n" for i in range(12)))])
def test_results_of_anything_are_one_line(results, tmp_path, capsys, file, text):  # noqa: F811
    (results / "nc" / file).write_text(text, encoding="latin-1")
    assert make(results, tmp_path / "site") == 2
    err = capsys.readouterr().err
    assert err.startswith("python -m evaluation.study: error: ") and len(err.splitlines()) == 1
    assert file in err


@pytest.mark.parametrize("key", ["[" * 100_000, '{"id": [], "images": {}}', '{"id": "x", "images": []}',
                                 '{"id": "x", "images": {"a": 1}}', '{"id": "x", "images": {"a": {"set": 1}}}'])
def test_a_key_of_anything_is_one_line(tmp_path, capsys, key):
    (tmp_path / "key.json").write_text(key)
    votes = write_votes(tmp_path / "v.csv", [("x", "me", 0, "a", "a", "left")],
                        ("study", "voter", "pair", "left", "right", "choice"))
    assert study.main(["fit", votes, "--key", str(tmp_path / "key.json"), "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "key.json" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("votes, words", [
    ([("a" * 200_000, "b", "left", 1, 1)], "is not a CSV file"),
    ([("a" * 20_000, "b", "left", 1, 1)], "line 2: a cell of more than 500 characters"),
    ([(f"a{i}", f"a{i + 1}", "left", 1, i) for i in range(3000)], "the votes compare 3001 sets"),
    ([("a", "b", "left", 1, 1, "more", "x" * 501)], "no votes|more than 500"),
])
def test_votes_of_anything_are_one_line(tmp_path, capsys, votes, words):
    begun = time.process_time()
    code = study.main(["fit", write_votes(tmp_path / "v.csv", votes), "--out", str(tmp_path)])
    err = capsys.readouterr().err
    assert time.process_time() - begun < 5
    assert code == 2 and any(w in err for w in words.split("|")) and len(err.splitlines()) == 1 or "more" in votes[0]


def test_votes_in_another_encoding_are_one_line(tmp_path, capsys):
    (tmp_path / "v.csv").write_bytes("left_set,right_set,choice\nä,b,left\n".encode("latin-1"))
    assert study.main(["fit", str(tmp_path / "v.csv"), "--out", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
