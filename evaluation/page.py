"""What people look at: the contact sheet and the results page, a folder that opens from disk.

index.html needs no server, no network and no other file but the pictures beside it. The page remembers its
view in the address: index.html#sort=iou-asc&class=dog.
"""
import html
import json
import math
import os

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation import charts as curves
from evaluation import page_text as page
from evaluation.charts import read_log  # noqa: F401 - part of this module's interface

SHEET = ("x", "y", "mask", "z", "y_hat", "x_hat", "truth")
SYMBOLS = {"x": ("x", 0), "y": ("y", 0), "mask": ("m", 0), "z": ("z", 0), "y_hat": ("y", 1), "x_hat": ("x", 1),
           "x_hat2": ("x", 2), "y_hat2": ("y", 2)}  # letter, hats
MEANINGS = {"x": "object", "y": "background", "mask": "mask", "z": "coarse paste", "y_hat": "pasted",
            "x_hat": "removed", "x_hat2": "x after the cycle", "y_hat2": "y after the cycle", "truth": "true mask"}


# --- contact sheet ---


def contact_sheet(path, pictures, kinds=SHEET, gap=4, header=34):
    """A PNG with one row an image and one labelled column each of `kinds` that any image has.

    pictures: dicts {kind: uint8 (S, S) or (S, S, 3)}, all of one size; a missing picture leaves a blank.
    """
    kinds = [kind for kind in kinds if any(kind in row for row in pictures)]
    side = max(64, len(next(iter(pictures[0].values()))))  # smaller pictures are enlarged
    sheet = Image.new("RGB", (len(kinds) * (side + gap) + gap, header + len(pictures) * (side + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, kind in enumerate(kinds):
        left = gap + column * (side + gap)
        draw_symbol(draw, left + side // 2, header - 6, kind)
        for i, row in enumerate(pictures):
            if kind in row:
                picture = Image.fromarray(row[kind]).resize((side, side), Image.NEAREST)
                sheet.paste(picture, (left, header + i * (side + gap)))
    sheet.save(path)


def read_pictures(folder, stem):
    """{kind: uint8 array} of what folder/KIND/STEM.png there is."""
    paths = {kind: os.path.join(folder, kind, f"{stem}.png") for kind in SHEET}
    return {kind: np.asarray(Image.open(path)) for kind, path in paths.items() if os.path.isfile(path)}


def ranked(rows, each=4):
    """Stems of the best, the median and the worst masks by IoU, `each` of them, best first; [] where none is known."""
    order = [row["stem"] for row in sorted((r for r in rows if "iou" in r), key=lambda r: (-r["iou"], r["stem"]))]
    middle = max(0, len(order) - each) // 2
    return list(dict.fromkeys([*order[:each], *order[middle : middle + each], *order[-each:]]))


def draw_symbol(draw, x, bottom, kind, size=17):
    """A column's head, centred at x: the paper's symbol. Hats are drawn, as fonts that have them are not everywhere."""
    letter, hats = SYMBOLS.get(kind, (MEANINGS[kind], 0))
    font = ImageFont.load_default(size if kind in SYMBOLS else size - 5)
    draw.text((x, bottom), letter, "black", font, anchor="ms")
    top = draw.textbbox((x, bottom), letter, font, anchor="ms")[1]
    for i in range(hats):
        y = top - 2 - 4 * i
        draw.line([(x - 4, y), (x, y - 3), (x + 4, y)], "black", 1)


# --- results page ---


def write_index(folder, figures, rows, log=None, with_images=True):
    """Write folder/index.html.

    Args:
        figures: the contents of metrics.json.
        rows: dicts with "stem", "class" and what there is of "iou", "d_obj_y_hat", ...; pictures are linked as
            KIND/STEM.png.
        log: of `read_log`.
        with_images: False where no pictures were written.
    """
    kinds = [kind for kind in MEANINGS if with_images and os.path.isdir(os.path.join(folder, kind))
             and os.listdir(os.path.join(folder, kind))]
    data = {"kinds": kinds, "heads": {kind: symbol(kind) for kind in kinds}, "meanings": MEANINGS,
            "rows": [_page_row(row) for row in rows] if kinds else []}
    main, small = curves.charts(log or {}, figures["baselines"]["mean_mask"])
    text = page.PAGE.format(
        title=html.escape(figures["name"]), style=page.STYLE, script=page.SCRIPT, subtitle=_subtitle(figures),
        verdict=verdict(figures), bars=_bars(figures), masks=_masks_table(figures), images=_images_table(figures),
        classes=_classes_table(figures), curves=_curves(main, small), data=embed(data),
        gallery="" if kinds else "hidden")
    with open(os.path.join(folder, "index.html"), "w", encoding="utf-8") as f:
        f.write(text)


def embed(data):
    """JSON that may stand inside <script>: no `<` can end the element, no line separator the literal."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def symbol(kind):
    """The paper's symbol as HTML (MathML for the hats), or the meaning where it has none."""
    if kind not in SYMBOLS:
        return html.escape(MEANINGS[kind])
    letter, hats = SYMBOLS[kind]
    inner = f"<mi>{letter}</mi>"
    for _ in range(hats):
        inner = f'<mover accent="true">{inner}<mo>^</mo></mover>'
    return f"<math>{inner}</math>"


def _page_row(row):
    def number(key):
        value = row.get(key)
        return None if value is None or math.isnan(value) else round(value, 4)

    return {"stem": row["stem"], "class": row.get("class", ""), "truth": "iou" in row, "iou": number("iou"),
            "boundary_f": number("boundary_f"), "mean_mask": number("mean_mask"), "d_obj": number("d_obj_y_hat")}


def _subtitle(figures):
    parts = [figures["mode"], f"step {figures['step']:,}", f"{figures['size']} px",
             f"{figures['dataroot']}, part {figures['split']}", f"{figures['n_images']:,} images",
             f"checkpoint {figures['checkpoint']}"]
    return " · ".join(html.escape(str(part)) for part in parts)


def verdict(figures):
    """One sentence: is the model better than the best fixed mask?"""
    gain, interval = figures["iou_minus_mean_mask"], figures["intervals"].get("iou_minus_mean_mask")
    if figures["iou"] is None:
        return "The data have no true masks: nothing here says how good the masks are."
    if gain is None:
        return "There are no training masks, so there is no mean mask to compare with."
    ends = f"{gain:+.3f} IoU" + (f" [{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else "")
    if interval and interval[0] <= 0 <= interval[1]:
        return f"Masks cannot be told from the mean training mask in quality: {ends}."
    return f"Masks are {'better' if gain > 0 else 'worse'} than the mean training mask: {ends}."


def _bars(figures):
    """IoU of the model and the baselines as bars with intervals."""
    if figures["iou"] is None:
        return ""
    names = {"iou": figures["mode"], "mean_mask": "mean mask", "box_mask": "box", "full_mask": "full mask"}
    lines = []
    for key, label in names.items():
        value = figures["iou"] if key == "iou" else figures["baselines"][key]
        if value is None:
            lines.append(f'<dt>{label}</dt><dd class="none">no data</dd>')
            continue
        interval = figures["intervals"].get(key)
        whisker = "" if not interval else (f'<span class="whisker" style="left:{100 * interval[0]:.2f}%;'
                                           f'width:{100 * (interval[1] - interval[0]):.2f}%"></span>')
        lines.append(f'<dt>{html.escape(label)}</dt><dd class="{"model" if key == "iou" else ""}">'
                     f'<span class="track"><span class="bar" style="width:{100 * value:.2f}%"></span>{whisker}</span>'
                     f"<b>{value:.3f}</b></dd>")
    note = f"Mean IoU of {figures['n_masks']:,} masks at {figures['resolution']} resolution; bars with 95 % intervals."
    return f'<dl class="bars">{"".join(lines)}</dl><p class="note">{note}</p>'


def _table(head, lines, caption):
    cells = "".join(f"<tr><th>{line[0]}</th>{''.join(f'<td>{c}</td>' for c in line[1:])}</tr>" for line in lines)
    top = "".join(f"<th>{h}</th>" for h in head)
    return f"<table><caption>{caption}</caption><thead><tr>{top}</tr></thead><tbody>{cells}</tbody></table>"


def _number(value, interval=None, digits=3):
    if value is None:
        return "–"
    ends = "" if not interval else f" <small>[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]</small>"
    return f"{value:.{digits}f}{ends}"


def _masks_table(figures):
    names = {"iou": "IoU, mean over images", "iou_pooled": "IoU, all pixels pooled", "dice": "Dice",
             "pixel_accuracy": "pixel accuracy", "precision": "precision", "recall": "recall",
             "boundary_f": "boundary F-measure", "mask_area": "mask area", "true_area": "true area"}
    lines = [(label, _number(figures[key], figures["intervals"].get(key))) for key, label in names.items()
             if figures[key] is not None]
    return _table(("", "value, 95 % interval"), lines, "Masks")


def _images_table(figures):
    """Inpainting, enhancement, discriminator scores and the Fréchet distance, where measured."""
    intervals, parts = figures["intervals"], []
    names = {"G_inp": "<i>G</i><sub>inp</sub>", "diffusion": "diffusion from the rim", "mean_colour": "mean colour"}
    fills = figures["inpainting"]
    if fills["G_inp"]["psnr"] is not None:
        lines = [(names[fill], *(_number(fills[fill][m], intervals.get(f"{fill}_{m}"), 1 if m == "psnr" else 3)
                                 for m in ("psnr", "ssim", "mae"))) for fill in names]
        parts.append(_table(("", "PSNR, dB", "SSIM", "MAE"), lines, "Holes cut in real backgrounds and refilled"))
    enhancement = figures["enhancement"]
    if enhancement["id_obj"] is not None:
        lines = [("|<i>G</i><sub>enh</sub>(<i>x</i>) − <i>x</i>|, on real images", _number(enhancement["id_obj"])),
                 (f"|{symbol('y_hat')} − {symbol('z')}|, what it changes", _number(enhancement["change"]))]
        scores = {"d_obj_z": ("obj", "z"), "d_obj_y_hat": ("obj", "y_hat"), "d_bg_x_hat": ("bg", "x_hat"),
                  "d_bg_y_hat2": ("bg", "y_hat2")}
        lines += [(f"<i>D</i><sub>{d}</sub>({symbol(kind)}), 1 = real", _number(figures["scores"][key]))
                  for key, (d, kind) in scores.items() if figures["scores"][key] is not None]
        parts.append(_table(("", "mean"), lines, "Enhancement and discriminators"))
    frechet = figures.get("frechet")
    if frechet:
        lines = [(html.escape(pair), _number(value, digits=2)) for pair, value in frechet["values"].items()]
        caption = f"{frechet['name']}: {frechet['weights']}, {frechet['resize']}, N = {frechet['n']}, " \
                  f"{frechet['dimensions']} features"
        parts.append(_table(("", "distance"), lines, html.escape(caption)))
    return "".join(parts)


def _classes_table(figures):
    classes = figures["per_class"]
    if len(classes) < 2:
        return ""
    lines = [(html.escape(name), f"{c['n']}", _number(c["iou"], c["interval"]), _number(c["iou_pooled"]),
              _number(c["mean_mask"])) for name, c in classes.items()]
    return _table(("", "images", "IoU", "pooled IoU", "mean mask"), lines, "By class")


def _curves(main, small):
    if not main and not small:
        return ""
    more = f'<details><summary>All terms</summary><div class="charts small">{"".join(small)}</div></details>'
    return (f'<section><h2>Learning curves</h2><div class="charts">{"".join(main)}</div>'
            f'{more if small else ""}</section>')
