"""The results page in a real browser, the learning curves, the contact sheet."""
import json
import re

import conftest
import numpy as np
import pytest
from PIL import Image

from evaluation import charts as curves
from evaluation import page as report

in_browser = pytest.mark.skipif(conftest.CHROMIUM is None,
                                reason="NO BROWSER: install chromium to test the results page")
KINDS = [*(kind for kind in report.KINDS if kind != "truth"), "first_layer", "truth"]  # one that the paper has not
STEMS = ['plain', 'sp ace & "quotes"', "<b>tag", "50%#?x=1", "ŷ-été", "last"]


@pytest.fixture
def figures():
    with_interval = {"iou": [0.6, 0.8], "mean_mask": [0.5, 0.7], "iou_refined": [0.65, 0.85],
                     "iou_minus_mean_mask": [0.02, 0.2]}
    return {
        "name": "<exp> & co", "method": "seigan", "kinds": KINDS, "step": 12000, "size": 32, "checkpoint": "best",
        "dataroot": "a<b", "split": "test", "resolution": "source", "n_images": 6, "n_masks": 5, "iou": 0.7,
        "iou_pooled": 0.71, "dice": 0.8, "pixel_accuracy": 0.9, "precision": 0.8,
        "recall": 0.8, "boundary_f": 0.5, "mask_area": 0.4, "true_area": 0.41,
        "iou_minus_mean_mask": 0.1, "baselines": {"full_mask": 0.35, "box_mask": None, "mean_mask": 0.6, "crf": 0.65},
        "refined": {"iou": 0.75, "dice": 0.85, "pixel_accuracy": 0.9, "precision": 0.8, "recall": 0.8,
                    "boundary_f": 0.6, "mask_area": 0.42},
        "intervals": with_interval, "enhancement": {"id_obj": 0.03, "change": 0.02},
        "per_class": {k: {"n": 3, "iou": 0.7, "interval": None, "iou_pooled": 0.7, "mean_mask": 0.6}
                      for k in ("c<at", "dog")},
        "inpainting": {fill: {"psnr": 20.0, "ssim": 0.5, "mae": 0.1}
                       for fill in ("G_inp", "G_inp_first", "diffusion", "mean_colour")},
        "scores": {"d_obj_z": 0.1, "d_obj_y_hat": 0.2, "d_bg_x_hat": 0.3, "d_bg_y_hat2": 0.4, "d_<own": 0.5},
        "frechet": None}


@pytest.fixture
def rows():
    ious, scores = [0.5, 0.9, 0.1, 0.7, None, 0.3], [0.3, 0.1, 0.6, 0.2, 0.5, 0.4]
    return [{"stem": stem, "class": "dog" if i % 2 else "c<at", "d_obj_y_hat": scores[i],
             **({} if ious[i] is None else {"iou": ious[i], "iou_refined": ious[i] + 0.05})}
            for i, stem in enumerate(STEMS)]


@pytest.fixture
def folder(tmp_path, figures, rows):
    """A results folder with a page."""
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        for row in rows:
            if kind != "truth" or "iou" in row:
                Image.new("RGB", (32, 32), (90, 120, 60)).save(tmp_path / kind / f"{row['stem']}.png")
    log = {"val_iou": ((100, 200), (0.5, 0.7)), "mask_area": ((50, 100), (0.2, 0.3)), "D_obj": ((50, 100), (0.7, 0.4))}
    report.write_index(tmp_path, figures, rows, log)
    return tmp_path


def browse(folder, script="", fragment="", width=1200):
    """Open the page in a browser of its own profile: what `script` hands to done(), and the console's lines.
    ORDER in the script stands for the stems of the gallery, from top to bottom."""
    page = folder / "tested.html"
    script = script.replace("ORDER", "[...document.querySelectorAll('#gallery .row')].map(r => r.dataset.stem)")
    hook = ("<script>function done(value) { const out = document.createElement('pre'); out.id = 'out'; "
            "out.textContent = JSON.stringify(value); document.body.append(out); }\n"
            f"addEventListener('load', async () => {{ {script} }});</script>")
    page.write_text((folder / "index.html").read_text(encoding="utf-8").replace("</body>", hook + "</body>"),
                    encoding="utf-8")
    return conftest.browse(f"{page.as_uri()}{fragment}", folder, width)


@in_browser
def test_page_loads_with_every_picture_and_a_silent_console(folder):
    value, console = browse(folder, """
      const images = [...document.querySelectorAll('.row img')];
      images.forEach(i => i.loading = 'eager');
      await Promise.all(images.map(i => i.decode().catch(() => 0)));
      done({n: images.length, broken: images.filter(i => !i.naturalWidth).map(i => i.src), order: ORDER,
            bold: document.querySelectorAll('.row b b, .row span b').length, title: document.title,
            hats: document.querySelectorAll('#gallery .heads mover').length,
            words: [...document.querySelectorAll('#gallery .heads .word')].map(e => e.textContent),
            outside: [...document.querySelectorAll('script[src],link[href^="http"],img[src^="http"]')].length});
    """)
    assert console == []
    assert value["broken"] == [] and value["outside"] == 0 and value["bold"] == 0
    # 6 rows in the gallery and 3 extremes; the row without a true mask shows none
    assert value["n"] == 9 * 12 - 1 and value["order"] == STEMS
    assert value["title"].startswith("<exp> & co") and value["hats"] == 7
    assert value["words"] == ["first layer", "true mask"]


@in_browser
def test_figures_and_legend_say_what_there_is_in_words(folder, figures, rows):
    script = """
      const shown = e => e.getClientRects().length > 0, text = s => [...document.querySelectorAll(s)].filter(shown)
        .map(e => e.textContent.replace(/\\s+/g, ' ').trim());
      done({legend: text('.legend dd'), rows: text('tbody tr'), bars: text('.bars dd'), notes: text('.note'),
            tables: text('caption'), labels: text('#gallery .row span'), rest: text('main')[0]});
    """
    value, console = browse(folder, script)
    assert console == [] and "None" not in value["rest"] and "null" not in value["rest"]
    assert len(value["legend"]) == 11 and "removed: x without its object" in " ".join(value["legend"])
    for row in ("IoU, mean over images0.700 [0.600, 0.800]0.750 [0.650, 0.850]", "mask area0.4000.420",
                "true area0.410", "Dobj(z)0.100", "Dbg(y^^)0.400", "d_<own0.500",
                "c<at30.7000.7000.600", "mean colour20.00.5000.100"):
        assert row in value["rows"], row
    assert value["bars"] == ["0.700", "0.750", "0.600", "no data", "0.350", "0.650"]
    assert any("model's own critic says of ŷ" in note for note in value["notes"])
    assert any("best that the training masks allow" in note for note in value["notes"])
    assert "D_obj(ŷ) 0.30" in value["labels"] and "refined 0.550" in value["labels"]
    # a method with masks alone: what it has not is not mentioned
    none = dict.fromkeys(("psnr", "ssim", "mae"))
    few = figures | {"kinds": ["x", "mask", "refined", "truth"], "scores": {},
                     "enhancement": {"id_obj": None, "change": None},
                     "inpainting": dict.fromkeys(figures["inpainting"], none), "per_class": {}}
    report.write_index(folder, few, [{k: v for k, v in row.items() if k != "d_obj_y_hat"} for row in rows])
    value, console = browse(folder, script)
    assert console == [] and value["tables"] == ["Masks, with 95 % intervals"] and len(value["legend"]) == 4
    assert not any("critic" in note or "hat" in note.split() for note in value["notes"])


def test_a_sentence_says_where_fills_need_no_model(figures):
    psnr = figures["inpainting"]
    assert report.fill_verdict(figures) == ""  # all alike
    psnr["diffusion"] = {"psnr": 26.54}
    assert "(20.0 dB) are worse than Laplace's equation (26.5 dB), which needs" in report.fill_verdict(figures)
    psnr["mean_colour"] = {"psnr": 22.0}
    assert "and the mean colour (22.0 dB), which need no" in report.fill_verdict(figures)
    figures["inpainting"] = dict.fromkeys(psnr, {"psnr": None})
    assert report.fill_verdict(figures) == ""


@in_browser
def test_sorting_and_filtering_by_hand(folder):
    value, console = browse(folder, """
      const form = document.getElementById('view'), out = {};
      async function choose(name, value) {
        form[name].value = value;
        form[name].dispatchEvent(new Event('change', {bubbles: true}));
        await new Promise(r => setTimeout(r, 100));
        return ORDER;
      }
      out.best = await choose('sort', 'iou-desc');
      out.worst = await choose('sort', 'iou-asc');
      out.real = await choose('sort', 'd_obj-desc');
      out.dogs = await choose('class', 'dog');
      out.said = form.querySelector('output').textContent;
      out.address = location.hash;
      out.all = (await choose('class', '')).length;
      done(out);
    """)
    by = {name: [STEMS[i] for i in order] for name, order in {
        "best": [1, 3, 0, 5, 2, 4], "worst": [2, 5, 0, 3, 1, 4], "real": [2, 4, 5, 0, 3, 1], "dogs": [5, 3, 1]}.items()}
    assert {k: value[k] for k in by} == by
    assert value["said"] == "3 of 6 images" and value["all"] == 6 and "class=dog" in value["address"]
    assert console == []


@in_browser
def test_address_sets_the_view_and_nonsense_in_it_does_no_harm(folder):
    value, _ = browse(folder, "done(ORDER)", "#sort=iou-desc&class=c%3Cat")
    assert value == [STEMS[0], STEMS[2], STEMS[4]]
    value, console = browse(folder, "done(ORDER)", "#sort=constructor&class=fish")
    assert value == STEMS and console == []


@in_browser
def test_click_enlarges_and_arrow_keys_walk_the_row(folder):
    value, console = browse(folder, """
      const large = document.getElementById('large'), out = [];
      const look = () => decodeURIComponent(large.querySelector('img').src.split('/').slice(-2).join('/'));
      document.querySelectorAll('#gallery .row')[1].querySelectorAll('button')[2].click();
      out.push(large.open, look(), large.querySelector('figcaption').textContent);
      large.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}));
      out.push(look());
      large.click();
      out.push(large.open);
      done(out);
    """)
    assert value[:2] == [True, f"mask/{STEMS[1]}.png"] and STEMS[1] in value[2] and "IoU 0.900" in value[2]
    assert value[3:] == [f"refined/{STEMS[1]}.png", False] and console == []


@in_browser
def test_many_rows_are_drawn_step_by_step_and_nothing_overflows(folder, figures):
    rows = [{"stem": f"{'a_long_name_' * 6}{i}", "class": "", "iou": i / 100} for i in range(100)]
    report.write_index(folder, figures, rows)
    value, _ = browse(folder, """
      const rows = () => document.querySelectorAll('#gallery .row').length, out = [rows()];
      const more = document.getElementById('more');
      more.click(); out.push(rows()); more.click(); out.push(rows(), more.hidden);
      out.push(document.documentElement.scrollWidth <= innerWidth);
      done(out);
    """, width=500)
    assert value == [40, 80, 100, True, True]


def test_page_without_pictures_masks_or_log(tmp_path, figures):
    figures |= {"kinds": [], "iou": None, "iou_minus_mean_mask": None, "intervals": {}, "per_class": {},
                "baselines": dict.fromkeys(figures["baselines"]), "refined": dict.fromkeys(figures["refined"])}
    figures |= dict.fromkeys(("iou_pooled", "dice", "pixel_accuracy", "precision", "recall", "boundary_f", "true_area"))
    report.write_index(tmp_path, figures, [{"stem": "a", "class": ""}], {})
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "no true masks" in text and "None" not in text and "<svg" not in text
    if conftest.CHROMIUM:
        value, console = browse(tmp_path, """done([document.querySelectorAll('.row').length,
            [...document.querySelectorAll('h2')].filter(e => e.getClientRects().length).map(e => e.textContent)])""")
        assert value == [0, ["Figures"]] and console == []


def test_data_cannot_end_the_script_element():
    nasty = {"stem": "</script><!--\u2028"}
    text = report.embed(nasty)
    assert "<" not in text and "\u2028" not in text and json.loads(text) == nasty


@pytest.mark.parametrize("gain, interval, words", [
    (0.1, [0.05, 0.15], "better"), (-0.1, [-0.2, -0.05], "worse"), (0.01, [-0.01, 0.03], "cannot be told")])
def test_verdict(figures, gain, interval, words):
    figures["iou_minus_mean_mask"], figures["intervals"]["iou_minus_mean_mask"] = gain, interval
    assert words in report.verdict(figures)


# --- learning curves ---


def test_log_of_a_resumed_and_a_broken_run(tmp_path):
    lines = [{"step": 10, "enh": 1.0, "seconds": "no number"}, {"step": 20, "enh": 2.0}, {"step": 20, "val_iou": 0.5},
             {"step": 30, "enh": 9.0}, {"step": 30, "enh": 3.0}, {"step": 40, "enh": float("nan")}]
    text = "\n".join(json.dumps(line) for line in lines) + '\n[1]\n{"step": 50, "en'
    (tmp_path / "log.jsonl").write_text(text)
    log = curves.read_log(tmp_path / "log.jsonl")
    assert log == {"enh": ((10, 20, 30), (1.0, 2.0, 3.0)), "val_iou": ((20,), (0.5,))}
    assert curves.read_log(tmp_path / "absent.jsonl") == {}


def test_chart_places_points_on_its_axes():
    svg = curves.chart("a < b", {"one": ((0, 50, 100), (0.0, 1.0, 0.5))}, [("level", 0.5)], (0, 1), 200, 160)
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', svg)[1].split()]
    left, right, top, bottom = 46, 188, 40, 124
    assert points == [(left, bottom), ((left + right) / 2, top), (right, (top + bottom) / 2)]
    assert f'd="M{left},{(top + bottom) / 2}H{right}"' in svg and "a &lt; b" in svg


@pytest.mark.parametrize("end", [1, 75, 199, 200, 2000, 3200, 6144, 99_999, 1_000_000])
def test_the_axis_says_step_and_has_more_than_two_ticks(end):
    words = re.findall(r">([^<>]+)</text>", curves.chart("t", {"v": ((0, end), (0.0, 1.0))}, span=(0, 1)))
    assert "step" in words and 3 <= len([word for word in words if re.fullmatch(r"[\d.]+k?", word)]) - 5 <= 7


@pytest.mark.parametrize("values", [(0.0, 0.0), (5.0,), (-3e-9, 2e9), (1e-7, 1.0000001e-7)])
def test_chart_of_odd_values_has_finite_numbers(values):
    svg = curves.chart("t", {"v": (tuple(range(len(values))), values)})
    assert "nan" not in svg and "inf" not in svg


def test_long_logs_are_thinned_to_means():
    steps, values = curves.thin(tuple(range(1000)), tuple([0.0, 2.0] * 500))
    assert len(steps) <= curves.POINTS and set(values[:-1]) <= {1.0, 0.8, 1.2} and steps[0] == pytest.approx(2)


# --- contact sheet ---


def test_contact_sheet_has_a_labelled_column_a_kind_and_a_row_an_image(tmp_path):
    kinds = ["x", "y", "mask", "z", "y_hat", "x_hat", "first_layer", "truth"]
    colour = {kind: (20 * i, 200 - 20 * i, 50) for i, kind in enumerate(kinds)}
    rows = [{kind: np.full((80, 80, 3), colour[kind], np.uint8) for kind in kinds} for _ in range(3)]
    rows = [row | {"x_hat2": row["x"]} for row in rows]  # of the cycle: not on sheets
    rows[1].pop("truth")
    report.contact_sheet(tmp_path / "sheet.png", rows)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet).astype(int)
    assert pixels.shape[1] == 4 + 84 * len(kinds)
    header = pixels.shape[0] - 3 * 84
    for i in range(3):
        for j, kind in enumerate(kinds):
            found = pixels[header + i * 84 + 40, 4 + j * 84 + 40]
            assert tuple(found) == ((255,) * 3 if (i, kind) == (1, "truth") else colour[kind])
    heads = [(pixels[:header, 4 + j * 84 : 84 + j * 84] < 128).all(-1) for j in range(len(kinds))]
    assert all(head.any() for head in heads)
    # ŷ and x̂ wear hats: ink above the height of the bare letters
    tops = [np.argwhere(head)[:, 0].min() for head in heads]
    assert tops[4] < tops[1] and tops[5] < tops[0]


def test_rows_of_a_sheet_may_have_labels(tmp_path):
    rows = [{"x": np.full((80, 80, 3), 90, np.uint8)}] * 2
    report.contact_sheet(tmp_path / "sheet.png", rows, ["best\nIoU 0.931", ""])
    with Image.open(tmp_path / "sheet.png") as sheet:
        beside = np.asarray(sheet.convert("L"))[-168:, :70]
    assert (beside[:84] < 90).any() and (beside[84:] == 255).all()


@pytest.mark.parametrize("n,expected", [(9, "ihfeba"), (10, "jifeba"), (3, "cba"), (0, "")])
def test_best_median_and_worst_by_iou(n, expected):
    rows = [{"stem": "abcdefghij"[i], "iou": i / 10} for i in range(n)] + [{"stem": "unknown"}]
    found = report.ranked(rows, each=2)
    assert "".join(found) == expected
    assert list(found.values()) == ["best", "best", *["median"] * (n > 3) * 2, *["worst"] * min(2, n - 2)][:len(found)]
