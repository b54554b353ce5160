"""Kills, full disks and damaged files: nothing that was written is lost, and no wrong result passes for a right one.

A short form runs with the other tests; `python -m pytest -m slow tests/test_faults.py -s` is the long one: 100 kills,
and 1,000 damaged pictures, checkpoints and annotation files each. All mutations depend on a seed.
"""
import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import sys
import time

import numpy as np
import pytest
import torch
from conftest import equal
from PIL import Image
from test_train import SMALL, TAUGHT, dataroot, records, training_state  # noqa: F401 - a fixture

import data
import photo
import prepare
import train
from baselines.supervised import Supervised
from crops import demo
from data import load_image, open_image
from running.checkpoint import load_checkpoint, load_model, save_checkpoint
from seigan import SEIGAN

FULL = pytest.mark.slow
CONTENT = {"method": "seigan", "step": 1, "config": {}, "networks": {}, "averaged": {}}  # of a checkpoint
RUN = (f"{TAUGHT} --pool_size 3 --print_freq 1 --val_freq 7 --display_freq 1000000 --save_latest_freq 2 "
       "--n_epochs_decay 0")


def in_process(argv, out):
    """A training, in a process of its own: what it prints goes to the file `out`, its exit code out."""
    torch.set_num_threads(1)
    with open(out, "a") as f, contextlib.redirect_stdout(f), contextlib.redirect_stderr(f):
        code = train.main(argv)
    sys.exit(code)


@pytest.fixture(scope="module")
def start():
    """Start a training in a process forked from one that has imported everything: lives are short here."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_faults"])
    before, os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH"), os.pathsep.join(sys.path)
    context.Process(target=time.time).start()  # the server keeps this path
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before

    def start(line, folder):
        process = context.Process(target=in_process, args=(line.split(), str(folder / "out.txt")))
        process.start()
        return process

    return start


# --- kills ---


@pytest.mark.parametrize("kills,epochs", [(8, 15), pytest.param(100, 150, marks=FULL)])
def test_a_training_killed_again_and_again_ends_as_if_undisturbed(start, dataroot, tmp_path, kills, epochs):  # noqa: F811
    line = f"--dataroot {dataroot} --checkpoints_dir {tmp_path}"
    whole = start(f"--name whole {line} {RUN} --n_epochs {epochs}", tmp_path)
    whole.join()
    assert whole.exitcode == 0
    rng, killed, lives = random.Random(0), 0, 0
    while True:
        first = not (tmp_path / "cut" / "latest.pt").exists()
        workers = rng.choice((0, 0, 0, 1, 4))
        begin = f"{RUN} --n_epochs {epochs}" if first else "--resume"
        life = start(f"--name cut {line} {begin} --num_threads {workers}", tmp_path)
        lives += 1
        if killed < kills:
            life.join(rng.uniform(0.05, 0.9))
            if life.exitcode is None:
                life.kill()
                killed += 1
        life.join()
        assert life.exitcode in (0, -9), (tmp_path / "out.txt").read_text()[-2000:]
        if life.exitcode == 0:
            break
    print(f"\n{killed} kills, {lives} lives")
    assert killed == kills, "it ended before all kills: more epochs"
    for name in ("latest.pt", "best.pt"):
        assert equal(training_state(tmp_path / "whole" / name), training_state(tmp_path / "cut" / name))
    assert records(tmp_path / "whole") == records(tmp_path / "cut")


# --- disks ---


def save_within(path, limit, sender):
    """Save a checkpoint where no file may be longer than `limit` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        save_checkpoint(path, CONTENT | {"step": 2, "networks": {"w": torch.ones(5000)}})
        sender.send("saved")
    except OSError as error:
        sender.send(str(error))


@pytest.mark.parametrize("count", [12, pytest.param(200, marks=FULL)])
def test_a_disk_that_is_full_at_any_byte_keeps_the_checkpoint(start, tmp_path, count):
    path = tmp_path / "latest.pt"
    good = CONTENT | {"networks": {"w": torch.zeros(5000)}}
    save_checkpoint(path, good)
    size = path.stat().st_size
    context = multiprocessing.get_context("forkserver")
    for limit in np.linspace(0, size - 1, count).astype(int).tolist():
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=save_within, args=(str(path), limit, sender))
        process.start()
        sender.close()
        try:
            message = receiver.recv()
        except EOFError:
            message = "died"
        process.join()
        assert message.startswith(f"cannot write {path}") and "\n" not in message, (limit, message)
        assert load_checkpoint(path)["step"] == 1 and os.listdir(tmp_path) == ["latest.pt"]


def limited(argv, out, limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    in_process(argv, out)


def send_of(sender, main, argv, kind, limit):
    resource.setrlimit(kind, (limit, limit))
    err = io.StringIO()  # a file would be limited too
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = main([str(word) for word in argv])
    sender.send((code, err.getvalue()))


def within(main, argv, kind, limit):
    """A command in a process of its own that has a limit: its exit code and what it prints to stderr."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_of, args=(sender, main, argv, kind, limit))
    process.start()
    sender.close()
    try:
        assert receiver.poll(120)
        return receiver.recv()
    finally:
        process.kill()
        process.join()


def test_a_run_outlives_a_full_disk(start, dataroot, tmp_path):  # noqa: F811
    """No checkpoint can be written for some steps: the run says so, ends with an error, and resumes exactly."""
    line = f"--dataroot {dataroot} --checkpoints_dir {tmp_path}"
    for name in ("whole", "cut"):
        process = start(f"--name {name} {line} {RUN} --n_epochs 1", tmp_path)
        process.join()
    size = (tmp_path / "cut" / "latest.pt").stat().st_size
    context = multiprocessing.get_context("forkserver")
    more = "--resume --n_epochs 3"
    process = context.Process(target=limited, args=(f"--name cut {line} {more}".split(), str(tmp_path / "full.txt"),
                                                    size // 2))
    process.start()
    process.join()
    text = (tmp_path / "full.txt").read_text()
    assert process.exitcode == 2 and "Traceback" not in text
    assert text.count("warning: cannot write") >= 3 and "error: cannot write" in text.splitlines()[-1]
    for name in ("whole", "cut"):
        process = start(f"--name {name} {line} {more}", tmp_path)
        process.join()
        assert process.exitcode == 0
    assert equal(training_state(tmp_path / "whole" / "latest.pt"), training_state(tmp_path / "cut" / "latest.pt"))
    assert records(tmp_path / "whole") == records(tmp_path / "cut")


@pytest.mark.parametrize("out, limit", [("programs", 0), ("programs", 60_000), ("w.pt", 0), ("w.pt", 3000)])
def test_an_export_on_a_full_disk_leaves_nothing(start, tmp_path, out, limit):
    model = Supervised(size=48, ngf=2, ndf=2, seg_blocks=0, unet_downs=1)
    (tmp_path / "a").mkdir()
    save_checkpoint(tmp_path / "a" / "latest.pt", CONTENT | {"method": "supervised", "config": model.config,
                                                             "networks": model.state()})
    code, err = within(photo.main, ["export", "--name", "a", "--checkpoints_dir", tmp_path,
                                    *["--weights"] * (out == "w.pt"), "--out", tmp_path / out],
                       resource.RLIMIT_FSIZE, limit)
    assert code == 2 and err.startswith("photo.py: error: "), err
    assert len(err.splitlines()) == 1 and ("File too large" in err or limit == 0)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["latest.pt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere: run as another user")
def test_a_read_only_folder_is_one_clear_line(dataroot, tmp_path, capsys):  # noqa: F811
    tmp_path.chmod(0o500)
    assert train.main(f"--name a --dataroot {dataroot} --checkpoints_dir {tmp_path} {SMALL}".split()) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_a_file_in_the_folder_s_place_is_one_clear_line(dataroot, tmp_path, capsys):  # noqa: F811
    (tmp_path / "a").write_text("not a folder")
    assert train.main(f"--name a --dataroot {dataroot} --checkpoints_dir {tmp_path} {SMALL}".split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("train.py: error: ") and len(err.splitlines()) == 1
    assert (tmp_path / "a").read_text() == "not a folder"


def test_few_open_files_are_one_line_and_no_wait(start, dataroot, tmp_path):  # noqa: F811
    code, err = within(train.main, ["--name", "a", "--dataroot", dataroot, "--checkpoints_dir", tmp_path,
                                    *SMALL.split(), "--num_threads", "2"], resource.RLIMIT_NOFILE, 20)
    assert code == 2 and len(err.splitlines()) == 1, err
    assert "open files" in err and "--num_threads 0" in err


# --- damaged files ---


def mutate(content, rng):
    """One of: bytes changed, a bit changed, cut short, a part left out, doubled, zeroed, or put elsewhere."""
    content = bytearray(content)
    n = len(content)
    a, b = sorted((rng.randrange(n), rng.randrange(n)))
    kind = rng.randrange(7)
    if kind == 0:
        for _ in range(rng.randint(1, 20)):
            content[rng.randrange(n)] = rng.randrange(256)
    elif kind == 1:
        content[a] ^= 1 << rng.randrange(8)
    elif kind == 2:
        del content[a:]
    elif kind == 3:
        del content[a : min(b, a + 200)]
    elif kind == 4:
        content[a:a] = content[a : min(b, a + 200)]
    elif kind == 5:
        content[a:b] = bytes(b - a)
    else:
        content[a:a] = bytes(rng.randrange(256) for _ in range(50))
    return bytes(content)


def pictures():
    """A picture's bytes in each format that is read."""
    rng = np.random.default_rng(0)
    pixels = np.add.outer(np.arange(40) * 3, np.arange(50) * 2)[..., None] + rng.integers(0, 30, (40, 50, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    for kind, options in (("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("BMP", {}),
                          ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("GIF", {})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        yield buffer.getvalue()


@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd metadata
@pytest.mark.parametrize("count", [80, pytest.param(1200, marks=FULL)])
def test_damaged_pictures_are_named_or_read_whole(tmp_path, count):
    rng, originals, refused = random.Random(0), list(pictures()), 0
    for k in range(count):
        path = tmp_path / "a.png"
        path.write_bytes(mutate(originals[k % len(originals)], rng))
        begun = time.monotonic()
        try:
            image = load_image(str(path), 16)
            assert image.shape == (3, 16, 16) and image.abs().max() <= 1
        except OSError as error:
            assert str(error).startswith(f"cannot read the image {path} (") and "\n" not in str(error)
            refused += 1
        assert time.monotonic() - begun < 10
    print(f"\n{refused} of {count} damaged pictures refused")
    assert count / 4 < refused


def small_model():
    return SEIGAN(size=16, ngf=2, ndf=2, n_layers_D=2, seg_blocks=0, unet_downs=1)


@pytest.mark.parametrize("count", [100, pytest.param(1200, marks=FULL)])
def test_damaged_checkpoints_are_refused_or_equal(tmp_path, count):
    path, rng, refused = tmp_path / "latest.pt", random.Random(1), 0
    model = small_model()
    save_checkpoint(path, CONTENT | {"config": model.config, "networks": model.state()})
    original, content = load_checkpoint(path), path.read_bytes()
    for _ in range(count):
        path.write_bytes(mutate(content, rng))
        try:
            assert equal(load_checkpoint(path), original)  # what was hit means nothing
        except ValueError as error:
            assert "is damaged or no checkpoint" in str(error) or "is not a checkpoint of format" in str(error)
            assert "\n" not in str(error)
            refused += 1
    print(f"\n{refused} of {count} damaged checkpoints refused, the others equal")
    assert count / 2 < refused


@pytest.mark.parametrize("change", [
    lambda s: s["config"].update(ngf=4),
    lambda s: s["config"].update(ngf="2"),
    lambda s: s["config"].update(size=-16),
    lambda s: s["config"].update(mode="nocycle"),
    lambda s: s["config"].update(colour=1),
    lambda s: s["config"].update(box=[0.0]),
    lambda s: s["config"].pop("box_prior") and s.update(config=None),
    lambda s: s.update(networks={}),
    lambda s: s.update(networks=None),
    lambda s: s["networks"].pop("G_seg"),
    lambda s: s["networks"].update(G_foo={}),
    lambda s: s["networks"]["G_inp"].popitem(),
    lambda s: s["networks"]["G_enh"].update({next(iter(s["networks"]["G_enh"])): torch.zeros(1)}),
    lambda s: s["networks"]["G_enh"].update({next(iter(s["networks"]["G_enh"])): "text"}),
    lambda s: s.update(averaged={"G_seg": {}}),
])
def test_a_checkpoint_of_other_contents_is_one_clear_line(tmp_path, change):
    path, model = tmp_path / "latest.pt", small_model()
    state = CONTENT | {"config": model.config, "networks": model.state()}
    change(state)
    save_checkpoint(path, state)
    with pytest.raises(ValueError, match="holds no model that this code can build") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["opt_G", "opt_D", "pools", "rng", "best_iou", "skips", "watch", "options", "averaged"])
def test_a_run_of_other_contents_is_one_clear_line(dataroot, tmp_path, capsys, key):  # noqa: F811
    line = f"--name a --dataroot {dataroot} --checkpoints_dir {tmp_path}"
    assert train.main(f"{line} {SMALL}".split()) == 0
    path = tmp_path / "a" / "latest.pt"
    whole = load_checkpoint(path)
    for broken in ({k: v for k, v in whole.items() if k != key}, whole | {key: {"x": 1}}, whole | {key: [1]}):
        save_checkpoint(path, broken)
        capsys.readouterr()
        assert train.main(f"{line} --resume --n_epochs 2".split()) == 2
        err = capsys.readouterr().err
        assert err.startswith("train.py: error: ") and len(err.splitlines()) == 1


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=FULL)])
def test_damaged_annotations_are_one_line_or_right_crops(tmp_path, count, capsys):
    rng, refused = random.Random(2), 0
    pixels = np.random.default_rng(0).integers(60, 200, (120, 160, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    content = json.dumps({
        "images": [{"id": 1, "file_name": "a.png", "width": 160, "height": 120}],
        "categories": [{"id": 5, "name": "dog"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [60, 40, 30, 24], "iscrowd": 0, "area": 500,
                         "segmentation": [[60, 40, 90, 40, 90, 64, 60, 64]]}]}).encode()
    for k in range(count):
        (tmp_path / "a.json").write_bytes(mutate(content, rng))
        out = tmp_path / str(k)
        code = prepare.main(f"coco --images {tmp_path}/images --annotations {tmp_path}/a.json --out {out} "
                            "--split train --crop_size 32 --object_size 16 --min_side 8 --num_workers 0".split())
        err = capsys.readouterr().err
        assert code in (0, 2) and "Traceback" not in err
        if code:
            assert err.strip().splitlines()[-1].startswith("prepare.py: error: ")
            refused += 1
        elif (out / "train" / "objects").is_dir():
            for path in data.by_stem(out / "train" / "objects").values():
                assert open_image(path).size == (32, 32)
    print(f"\n{refused} of {count} damaged annotation files refused")
    assert refused > count / 4


# --- odd files and names ---


def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (20000, 20000)).save(path)  # 50 KB on the disk, 1.2 GB in memory
    begun = time.process_time()
    with pytest.raises(OSError, match="cannot read the image .*bomb.png .*decompression bomb"):
        load_image(str(path), 16)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("name", ["a\nb", "bäh 🦋", "a b'\"$", "-x", "%s{}"])
def test_names_of_any_kind(dataroot, tmp_path, capsys, name):  # noqa: F811
    root = tmp_path / f"set {name}"
    demo.write_demo(root, counts={"train": {"objects": 2, "backgrounds": 2}})
    for kind in ("objects", "masks"):
        os.rename(root / "train" / kind / "00001.png", root / "train" / kind / f"{name}.png")
    code = train.main(["--name", f"run {name}", "--dataroot", str(root), "--checkpoints_dir", str(tmp_path),
                       *SMALL.split()])
    assert code == 0 and (tmp_path / f"run {name}" / "latest.pt").exists()
    (root / "train" / "objects" / f"{name}.png").write_bytes(b"")
    code = train.main(["--name", "other", "--dataroot", str(root), "--checkpoints_dir", str(tmp_path), *SMALL.split()])
    assert code == 2 and "Traceback" not in capsys.readouterr().err


def test_links_that_lead_nowhere_or_around(dataroot, tmp_path, capsys):  # noqa: F811
    root = tmp_path / "set"
    demo.write_demo(root, counts={"train": {"objects": 2, "backgrounds": 2}})
    (root / "train" / "objects" / "loop.png").symlink_to("loop.png")
    code = train.main(f"--name a --dataroot {root} --checkpoints_dir {tmp_path} {SMALL}".split())
    err = capsys.readouterr().err
    assert code == 2 and "cannot read the image" in err and "loop.png" in err and len(err.splitlines()) == 1


def test_a_picture_that_vanishes_is_named(start, tmp_path, capsys):
    root = tmp_path / "set"
    demo.write_demo(root, counts={"train": {"objects": 4, "backgrounds": 4}})
    crops = data.Crops(root, "train", 16)
    os.remove(root / "train" / "objects" / "00002.png")
    with pytest.raises(OSError, match="no image .*00002.png"):
        [data.UnpairedCrops(crops)[n] for n in range(4)]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp/a", "../a"])
def test_names_that_lead_elsewhere_are_refused(dataroot, tmp_path, capsys, name):  # noqa: F811
    with pytest.raises(SystemExit, match="2"):
        train.main(["--name", name, "--dataroot", str(dataroot), "--checkpoints_dir", str(tmp_path / "c")])
    err = capsys.readouterr().err
    assert "--name: must be a plain folder name" in err and len(err.splitlines()) == 1
    assert not os.path.exists(tmp_path / "c") and not os.path.exists(tmp_path / "a")
