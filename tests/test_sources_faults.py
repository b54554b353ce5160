"""What goes wrong with sources: folders that share names, names written otherwise, pictures listed twice."""
import json

import numpy as np
import pytest
from PIL import Image
from test_commands import StubDetector
from test_prepare import SMALL, index_of, run

import detector
import prepare
import sources


def draw(path, x=60, y=60, grey=80, size=(200, 150)):
    """A grey photograph with a white square, 30 px, at x, y."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (grey,) * 3)
    image.paste((255, 255, 255), (x, y, x + 30, y + 30))
    image.save(path)
    return path


def table(path, boxes):
    """A CSV of [(file, x, y)]: boxes of 30 x 30."""
    path.write_text("file,x,y,w,h\n" + "".join(f"{file},{x},{y},30,30\n" for file, x, y in boxes))
    return path


def from_csv(images, annotations, out, *more):
    run("csv", "--images", images, "--annotations", annotations, "--out", out, *SMALL, *more)


def centres(out, split="train"):
    """Each object's grey value in the middle of its crop."""
    return [int(np.asarray(Image.open(path))[16, 16, 0]) for path in sorted((out / split / "objects").iterdir())]


# --- detect ---


@pytest.fixture
def stub(monkeypatch):
    stub = StubDetector()
    monkeypatch.setattr(detector, "load_detector", lambda weights, device: stub)
    monkeypatch.setattr(detector, "category_names", lambda: ["background", "square"])
    return stub


@pytest.mark.parametrize("boxes", [[], ["--boxes", "found.jsonl"]])
def test_photographs_of_two_folders_may_have_one_name(tmp_path, stub, monkeypatch, boxes):
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        draw(tmp_path / f"a/IMG_{i}.png", 35 + i, 40)
        draw(tmp_path / f"b/IMG_{i}.png", 40 + i, 80)
    for folder in "aba":
        run("detect", "--images", folder, "--out", "out", *boxes, *SMALL)
    assert stub.seen == 6 and centres(tmp_path / "out") == [255] * 6
    assert sorted(crop["source_box"][1] for crop in index_of("out")["objects"].values()) == [40] * 3 + [80] * 3


def test_detections_outlive_a_move_of_their_folder(tmp_path):
    line = {"file": "a.png", "width": 200, "height": 150, "boxes": [[1, 2, 3, 4, "dog", 0.9]]}
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"folder": "/once/here", **line}) + "\n")
    (photo,) = sources.read_detections(tmp_path, path, sources.Skips())
    assert photo.path == f"{tmp_path}/a.png" and photo.boxes[0].name == "dog"


@pytest.mark.parametrize("device", ["cdua", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_one_clear_line(tmp_path, device):
    draw(tmp_path / "in/a.png")
    with pytest.raises(ValueError, match=f"--device {device} cannot be used .*: give cpu") as error:
        run("detect", "--images", tmp_path / "in", "--out", tmp_path / "out", "--device", device)
    assert "\n" not in str(error.value)


# --- which pictures, which source ---


def test_backgrounds_of_a_folder_never_replace_annotated_photographs(tmp_path):
    for i in range(4):
        draw(tmp_path / f"photos/train/{i}.png", 60 + i, 50)
        Image.new("RGB", (200, 150), (0, 0, 200)).save(draw(tmp_path / f"empty/train/{i}.png"))
    boxes = table(tmp_path / "a.csv", [(f"train/{i}.png", 60 + i, 50) for i in range(4)])
    for folder, blue in (("empty", 200), ("photos", 80)):
        out = tmp_path / f"with_{folder}"
        from_csv(tmp_path / "photos", boxes, out, "--y_from", tmp_path / folder / "train", "--test_fraction", "0")
        assert centres(out) == [255] * 4
        backgrounds = sorted((out / "train/backgrounds").iterdir())
        assert len(backgrounds) == 8
        assert {int(np.median(np.asarray(Image.open(path))[..., 2])) for path in backgrounds} == {blue}
        assert run("check", out, "--num_workers", 0) is None


def test_a_source_is_known_however_its_path_is_typed(tmp_path, monkeypatch, capsys):
    for name, y in (("a", 40), ("b", 80)):
        draw(tmp_path / name / "photos" / f"{name}.png", 60, y)
        table(tmp_path / name / "boxes.csv", [(f"{name}.png", 60, y)])
    for name in "ab":  # the same words in two folders: two sources
        monkeypatch.chdir(tmp_path / name)
        from_csv("photos", "boxes.csv", "../out")
    assert sorted(index_of(tmp_path / "out")["objects"]) == ["a_2", "b_2"]
    for images, boxes in (("photos/", "./boxes.csv"), (tmp_path / "b/photos", "../b/boxes.csv")):
        capsys.readouterr()
        from_csv(images, boxes, "../out")
        assert "complete already" in capsys.readouterr().out
    from_csv("photos/", "boxes.csv", "../out", "--min_side", "9")
    assert sorted(index_of(tmp_path / "out")["objects"]) == ["a_2", "b_2"]


def test_sources_of_earlier_versions_are_known_by_where_their_images_lie(tmp_path, monkeypatch, capsys):
    for name, y in (("a", 40), ("b", 80)):
        draw(tmp_path / name / "photos" / f"{name}.png", 60, y)
        table(tmp_path / name / "boxes.csv", [(f"{name}.png", 60, y)])
    monkeypatch.chdir(tmp_path / "a")
    from_csv("photos", "boxes.csv", "../out")
    path = tmp_path / "out/train/crops.json"
    index = json.loads(path.read_text())
    index["rules"][0].update(images="photos", annotations="boxes.csv")  # as they were typed
    path.write_text(json.dumps(index))
    capsys.readouterr()
    from_csv("photos/", "boxes.csv", "../out")
    assert "complete already" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "b")
    from_csv("photos", "boxes.csv", "../out")
    assert sorted(index_of(tmp_path / "out")["objects"]) == ["a_2", "b_2"]


def test_words_of_a_source_are_no_paths():
    assert prepare.origin_of("voc", "/voc", "all") == {"command": "voc", "images": "/voc", "annotations": "all"}
    assert prepare.origin_of("cityscapes", "/c", "gtFine")["annotations"] == "gtFine"
    assert prepare.origin_of("cityscapes", "/c", "/d/../x.json")["annotations"] == "/x.json"
