"""The page on which boxes are drawn: what it is given, and in a browser, by mouse, finger and keys, what it saves."""
import json
import os
import re
import shlex
import subprocess
import time
from urllib.parse import unquote

import conftest
import pytest
from PIL import Image
from test_photo import picture, stored

import photo
from crops import formats
from crops.annotations import Skips
from photos import boxes, files

NASTY = ['a "quoted" <b>.png', "100% #1 & more?.jpg", "it's; ,a=b.png", "sub dir</script><img src=x>.webp",
         "ünï $x ${y}.png", "a:b.png"]


@pytest.fixture
def folder(tmp_path):
    """Photographs with names of every kind, and one turned by EXIF: 100 x 80 as stored, 80 x 100 upright."""
    folder = tmp_path / "my photos #1"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    stored(picture(400, 320), folder, "0.png")
    stored(picture(400, 320, seed=1), folder, "1 turned.jpg", exif=exif)
    for i, name in enumerate(NASTY):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        stored(picture(120, 90, i), folder, name)
    return folder


def write(folder, *more):
    """The page beside the folder, and the data on it."""
    path = folder.parent / "boxes.html"
    assert photo.main(["boxes", str(folder), "--out", str(path), *more]) == 0
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"))
    return path, json.loads(text)


# --- what it is given ---


def test_the_page_names_all_photographs_and_injects_nothing(folder):
    path, data = write(folder)
    names = [name for name, *_ in data["photos"]]
    assert sorted(names) == names and set(NASTY) < set(names) and len(names) == 8
    for name, address, width, height in data["photos"]:
        assert os.path.samefile(folder.parent / unquote(data["base"] + address), folder / name)
        assert not set(address) & set("\"'<>#?&: ") and (width, height) == files.open_photo(folder / name).size
    assert ["1 turned.jpg", "1%20turned.jpg", 320, 400] in data["photos"]
    text = path.read_text(encoding="utf-8")
    assert text.count("</script>") == 2 and "<b>.png" not in text
    assert not re.findall(r"https?:|//[a-z]", text), "no network"
    assert path.stat().st_size < 30000, "the photographs are not in it"


def test_a_folder_elsewhere_is_named_by_its_whole_path(folder, tmp_path):
    other = tmp_path / "pages" / "b.html"
    assert boxes.write_page(str(folder), str(other)) == (8, [])
    assert f'"base":"{folder.as_uri()}/"' in other.read_text(encoding="utf-8")
    assert boxes.base_of(folder, folder / "b.html") == ""
    assert boxes.base_of(folder, tmp_path / "b.html") == "my%20photos%20%231/"


def test_what_cannot_be_shown_or_named_is_told(tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    stored(picture(), folder, "a.png")
    (folder / "broken.png").write_bytes(b"broken")
    stored(picture(), folder, " padded.png")
    os.symlink(stored(picture(), tmp_path, "elsewhere.png"), folder / "link.png")
    (folder / "line\nbreak.png").write_bytes((folder / "a.png").read_bytes())
    out = tmp_path / "b.html"
    assert photo.main(["boxes", str(folder), "--out", str(out)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5 and "4 left out" in lines[0] and any("broken.png: cannot be read" in line for line in lines)
    assert photo.main(["boxes", str(folder), "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert photo.main(["boxes", str(folder), "--out", str(out), "--overwrite"]) == 1
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    for argv, words in ((["absent"], "no folder absent"), ([str(tmp_path / "empty")], "no photograph in"),
                        ([str(folder), "--out", str(folder / "a.png")], "must be an .html file")):
        assert photo.main(["boxes", *argv]) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1


# --- in a browser ---

in_browser = pytest.mark.skipif(conftest.CHROMIUM is None, reason="NO BROWSER: install chromium to test drawing boxes")


class Browser:
    """Chromium that is driven by real input, over the pipe of its DevTools."""

    def __init__(self, folder, width, touch=False):
        self.folder, self.number, self.console = folder, 0, []
        (out_read, out_write), (in_read, in_write) = os.pipe(), os.pipe()
        # bash, since file descriptors 3 and 4 are taken in this process
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{out_read} 4>&{in_write}', "-", conftest.CHROMIUM, "--headless",
             "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
             "--disable-component-update", f"--user-data-dir={folder / 'profile'}", "--remote-debugging-pipe"],
            pass_fds=(out_read, in_write), stderr=subprocess.DEVNULL)
        os.close(out_read), os.close(in_write)
        self.to, self.back = os.fdopen(out_write, "wb", 0), os.fdopen(in_read, "rb", 0)
        self.session, self.rest = None, b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Runtime.enable"), self.call("Page.enable"), self.call("Log.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=touch)
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self.session
        self.to.write(json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                self.rest += self.back.read(1 << 16) or pytest.fail("the browser went away")
            line, self.rest = self.rest.split(b"\0", 1)
            answer = json.loads(line)
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                self.console.append(answer["params"])
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, code):
        """What a JavaScript expression is."""
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, code):
        for _ in range(400):
            if self.value(code):
                return
            time.sleep(0.05)
        pytest.fail(f"never: {code}")

    def open(self, path):
        self.call("Page.navigate", url=path.as_uri())
        self.until("document.readyState === 'complete' && typeof ready !== 'undefined' && ready")

    def reload(self):
        """As a user does it: in the same process, which a new address need not be, and waiting for the new page."""
        self.value("window.before = true")
        self.call("Page.reload")
        self.until("document.readyState === 'complete' && !window.before && typeof ready !== 'undefined' && ready")

    def at(self, x, y):
        """A place of the photograph, in its pixels, on the screen."""
        return self.value(f"(r => [r.left + {x} / size()[0] * r.width, r.top + {y} / size()[1] * r.height])"
                          "(photo.getBoundingClientRect())")

    def mouse(self, kind, x, y, buttons=1):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=1)

    def drag(self, start, end):
        places = [self.at(*start), self.at(*end)]
        self.mouse("mousePressed", *places[0])
        for part in (0.3, 0.7, 1):
            self.mouse("mouseMoved", *(a + part * (b - a) for a, b in zip(*places, strict=True)))
        self.mouse("mouseReleased", *places[1])

    def click(self, where):
        """Click an element, by its CSS selector, or a place of the photograph."""
        if isinstance(where, str):
            where = self.value(f"(r => [r.left + r.width / 2, r.top + r.height / 2])(document.querySelector({where!r})"
                               ".getBoundingClientRect())")
        else:
            where = self.at(*where)
        self.mouse("mousePressed", *where)
        self.mouse("mouseReleased", *where)

    def swipe(self, start, end):
        places = [self.at(*start), self.at(*end)]
        middle = [sum(sides) / 2 for sides in zip(*places, strict=True)]
        for kind, points in (("touchStart", places[:1]), ("touchMove", [middle]), ("touchMove", places[1:]),
                             ("touchEnd", [])):
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y} for x, y in points])

    def key(self, key, modifiers=0, code=0, text=""):
        code = code or {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9, "Enter": 13,
                        "Escape": 27, "Delete": 46, "PageUp": 33, "PageDown": 34}.get(key, ord(key[0].upper()))
        more = {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", key=key, modifiers=modifiers,
                  windowsVirtualKeyCode=code, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, modifiers=modifiers, windowsVirtualKeyCode=code)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def boxes(self):
        return [tuple(box) for box in self.value("boxes().map(b => [b.x, b.y, b.w, b.h, b.name])")]

    def close(self):
        self.call("Browser.close")
        self.process.wait(20)
        self.to.close(), self.back.close()


@pytest.fixture
def start(tmp_path):
    """Start browsers of a width, in px; all end with the test, and none had anything to complain of."""
    started = []

    def run(width, touch=False):
        started.append(Browser(tmp_path, width, touch))
        return started[-1]
    yield run
    for browser in started:
        console = browser.console
        browser.close()
        assert console == []


def near(found, expected, within=2):
    return found[:4] == pytest.approx(expected, abs=within)


@in_browser
def test_drawing_by_mouse_and_keys_and_saving(start, folder, tmp_path):
    path, data = write(folder)
    page = start(1200)
    page.open(path)
    rectangle = page.value("[photo, stage].map(e => (r => [r.width, r.height])(e.getBoundingClientRect()))")
    assert rectangle[0] == rectangle[1] and rectangle[0][0] / rectangle[0][1] == pytest.approx(400 / 320, rel=0.01)
    page.drag((300, 250), (200, 120))  # from the lower right
    (box,) = page.boxes()
    assert near(box, (200, 120, 100, 130)) and all(isinstance(side, int) for side in box[:4])
    page.drag((250, 180), (270, 170))  # the new one is chosen, and moves
    assert near(page.boxes()[0], (220, 110, 100, 130))
    page.drag((220, 110), (210, 100))  # a corner
    assert near(page.boxes()[0], (210, 100, 110, 140))
    page.drag((30, 30), (-50, 90))  # beyond the photograph
    assert near(page.boxes()[1], (0, 30, 30, 60))
    before = page.boxes()[1]
    page.key("ArrowRight"), page.key("ArrowDown"), page.key("ArrowRight", modifiers=8)
    assert page.boxes()[1] == (before[0] + 1, before[1] + 1, before[2] + 1, before[3], "")
    page.key("Enter")
    page.type('big, "bad" dog')
    page.key("Enter")
    assert page.boxes()[1][4] == 'big, "bad" dog'
    page.key("Tab"), page.key("Delete")  # beyond the last box nothing is chosen
    page.click((5, 300))
    page.click((260, 170))
    page.key("Delete")
    assert [box[4] for box in page.boxes()] == ['big, "bad" dog']
    page.key("z", modifiers=2)
    assert len(page.boxes()) == 2 and near(page.boxes()[0], (210, 100, 110, 140))
    page.drag((310, 300), (310.5, 300.5))  # a tap on nothing
    assert len(page.boxes()) == 2
    page.key("PageDown")
    page.until("ready")
    assert page.value("byId('name').textContent") == "1 turned.jpg"
    page.drag((10, 300), (110, 390))  # upright it is 320 x 400
    assert near(page.boxes()[0], (10, 300, 100, 90)) and page.boxes()[0][4] == 'big, "bad" dog'
    page.key("n"), page.key("Tab", modifiers=8), page.key("ArrowLeft")
    assert page.boxes()[1][:4] == (80, 100, 160, 200), "what has the focus moves"
    assert near(page.boxes()[0], (9, 300, 100, 90))
    for name, *_ in data["photos"][2:]:
        page.click("#next")
        page.until("ready")
        assert page.value("[byId('name').textContent, document.querySelectorAll('b').length]") == [name, 0]
        page.key("n")
    assert page.value("byId('next').disabled")
    assert page.value("byId('total').textContent") == "10 boxes on 8 of 8 photographs"
    drawn = page.value("Object.entries(all).flatMap(([f, bs]) => bs.map(b => [f, b.x, b.y, b.w, b.h, b.name]))")
    assert page.value("JSON.parse(localStorage.getItem(PLACE)).all[file()].length") == len(page.boxes()), "kept already"
    page.reload()
    assert page.value("Object.entries(all).flatMap(([f, bs]) => bs.map(b => [f, b.x, b.y, b.w, b.h, b.name]))") == drawn
    assert page.value("byId('name').textContent") == data["photos"][-1][0]
    page.click("#save")
    problems = Skips()
    read = formats.read_csv(str(folder), str(saved(tmp_path)), problems)
    assert not problems.counts
    found = sorted([photo.file, box.x, box.y, box.w, box.h, box.name] for photo in read for box in photo.boxes)
    assert found == sorted([*row[:5], row[5] or "object"] for row in drawn)
    sizes = {photo.file: (photo.width, photo.height) for photo in read}
    assert sizes == {name: (width, height) for name, _, width, height in data["photos"]}


def saved(tmp_path):
    """boxes.csv, once the browser has it."""
    for _ in range(200):
        if (tmp_path / "boxes.csv").exists():
            break
        time.sleep(0.05)
    return tmp_path / "boxes.csv"


@in_browser
def test_from_a_photograph_to_its_cutout_in_three_clicks(start, folder, tmp_path, capsys):
    """Opening the page, one drag around the object, saving; what then stands on the page is what to type."""
    path, data = write(folder)
    (address,) = re.findall(r"open (file:\S+) in a browser", capsys.readouterr().out)
    assert address == path.as_uri()
    page = start(1200)
    page.open(path)  # the first, on the page's name or address
    page.value("window.clicks = 1; addEventListener('pointerdown', () => clicks++, true); 0")
    assert "Drag on the photograph" in page.value("byId('total').innerText")
    assert page.value("document.activeElement === document.body"), "nothing in the way"
    page.drag((80, 60), (320, 260))
    page.click("#save")
    assert page.value("clicks") == 3
    assert saved(tmp_path).read_text().splitlines()[1:] == ["0.png,80,60,240,200,"]
    assert {"downloads;", "How"} <= set(page.value("byId('note').innerText").split())
    typed = shlex.split(page.value("document.querySelector('details code').textContent"))
    assert typed[:3] == ["python", "photo.py", "cut"] and typed[-2] == "--name"
    assert typed[typed.index("--images") + 1] == str(folder)
    typed[typed.index("boxes.csv")] = str(tmp_path / "boxes.csv")
    demo = os.path.join(os.path.dirname(photo.__file__), "models", "demo.pt")
    out = ["--weights", demo, "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert photo.main([*typed[2:-2], *out]) == 0
    assert Image.open(tmp_path / "out" / "cut" / "0.png.png").size == (400, 320)


@in_browser
def test_drawing_and_saving_by_keys_alone(start, folder, tmp_path):
    """Every control is reached by Tab, and shows that it has the focus."""
    path, _ = write(folder)
    page = start(400)
    page.open(path)
    reached = []
    for _ in range(12):
        page.key("Tab")
        reached.append(page.value("document.activeElement.id || document.activeElement.tagName"))
        outline = page.value("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid" or reached[-1] == "BODY", reached
    assert {"next", "new", "SUMMARY"} <= set(reached)
    page.value("document.activeElement.blur()")
    page.key("n"), page.key("ArrowLeft", modifiers=8), page.key("ArrowDown")
    (box,) = page.boxes()
    assert box[:2] == (100, 81) and box[2] == 199
    page.key("Tab", modifiers=8)
    assert page.value("document.activeElement.id") == "save"
    page.key("Enter", text="\r")
    assert saved(tmp_path).read_text().splitlines()[1:] == [f"0.png,{','.join(map(str, box[:4]))},"]


@in_browser
def test_drawing_by_finger_on_a_phone(start, folder):
    path, _ = write(folder)
    page = start(400, touch=True)
    page.open(path)
    assert page.value("document.documentElement.scrollWidth") <= 400
    page.swipe((100, 80), (300, 240))
    assert near(page.boxes()[0], (100, 80, 200, 160), 3)
    page.swipe((200, 160), (220, 180))
    assert near(page.boxes()[0], (120, 100, 200, 160), 3)
    page.swipe((320, 260), (360, 300))
    assert near(page.boxes()[0], (120, 100, 240, 200), 5)
    assert page.value("scrollY") == 0
    assert page.value("Math.min(...[...document.querySelectorAll('button, input')].map(e => e.offsetHeight))") >= 40


@in_browser
def test_what_the_browser_cannot_show_or_turn_takes_no_box(start, folder, tmp_path):
    stored(picture(90, 60), folder, "3.tif")
    path, data = write(folder)
    page = start(1200)
    page.open(path)
    while page.value("file()") != "3.tif":
        page.key("PageDown")
    page.until("byId('note').textContent.includes('cannot show')")
    page.key("n")
    assert page.boxes() == []
    page.value("data.photos.forEach(p => p.splice(2, 2, p[3], p[2]))")  # sizes as of photographs not turned
    page.key("PageUp")
    page.until("byId('note').textContent.includes('upright')")
    page.key("n")
    assert page.boxes() == []
