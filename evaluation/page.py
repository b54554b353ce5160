"""What people look at: the contact sheets and the results page, a folder that opens from disk.

index.html is page.html filled in; it needs no server, no network and no other file but the images beside it. The page
remembers its view in the address: index.html#sort=iou-asc&class=dog.
"""
import csv
import html
import io
import json
import math
import os
from pathlib import Path
from string import Template

from PIL import Image, ImageDraw, ImageFont

from evaluation import charts
from images import written_whole

# the paper's images: symbol (letter, hats) and a word or two; any other kind goes by its own name
KINDS = {
    "x": ("x", 0, "object"), "y": ("y", 0, "background"), "mask": ("m", 0, "mask"),
    "refined": ("m*", 0, "refined mask"), "z": ("z", 0, "coarse paste"),
    "y_hat": ("y", 1, "pasted"), "x_hat": ("x", 1, "removed"), "m_hat": ("m", 1, "mask of the paste"),
    "x_hat2": ("x", 2, "x after the cycle"), "y_hat2": ("y", 2, "y after the cycle"), "truth": ("", 0, "true mask")}
CYCLE = ("m_hat", "x_hat2", "y_hat2")  # not on sheets


def words_of(kind):
    return KINDS[kind][2] if kind in KINDS else kind.replace("_", " ")


def in_order(kinds):
    """Kinds of images without repeats, "truth" last."""
    return sorted(dict.fromkeys(kinds), key=lambda kind: kind == "truth")


# --- contact sheets ---


def contact_sheet(path, rows, labels=(), gap=4, header=46):
    """Write a PNG with one row an image and one headed column each of the kinds that any has, but for the CYCLE.

    rows: dicts {kind: uint8 (S, S) or (S, S, 3)}, all of one size; a missing image leaves a blank. labels: text beside
    each row.
    """
    kinds = [kind for kind in in_order(kind for row in rows for kind in row) if kind not in CYCLE]
    side, font = max(64, len(rows[0]["x"])), ImageFont.load_default(12)  # smaller images are enlarged
    start = gap + 68 * bool(labels)
    sheet = Image.new("RGB", (start + len(kinds) * (side + gap), header + len(rows) * (side + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, label in enumerate(labels):
        draw.text((gap, header + i * (side + gap) + side // 2), label, "black", font, anchor="lm")
    for column, kind in enumerate(kinds):
        left = start + column * (side + gap)
        _draw_head(draw, left + side // 2, header, kind)
        for i, row in enumerate(rows):
            if kind in row:
                image = Image.fromarray(row[kind]).resize((side, side), Image.Resampling.NEAREST)
                sheet.paste(image, (left, header + i * (side + gap)))
    with written_whole(path) as file:
        sheet.save(file, "PNG")


def _draw_head(draw, x, bottom, kind):
    """A column's head, centred at x: the paper's symbol and what it is. Hats are drawn, as not all fonts have them."""
    letter, hats, words = KINDS.get(kind, ("", 0, words_of(kind)))
    draw.text((x, bottom - 7), words, "#667080" if letter else "black", ImageFont.load_default(10), anchor="ms")
    font = ImageFont.load_default(17)
    draw.text((x, bottom - 21), letter, "black", font, anchor="ms")
    top = draw.textbbox((x, bottom - 21), letter, font, anchor="ms")[1]
    for i in range(hats):
        y = top - 2 - 4 * i
        draw.line([(x - 4, y), (x, y - 3), (x + 4, y)], "black", 1)


def ranked(rows, each=4):
    """{stem: "best", "median" or "worst"} of `each` masks of these kinds by IoU, best first; {} where none is known."""
    order = [row["stem"] for row in sorted((r for r in rows if "iou" in r), key=lambda r: (-r["iou"], r["stem"]))]
    middle, found = max(0, len(order) - each) // 2, {}
    for group, stems in (("best", order[:each]), ("median", order[middle : middle + each]), ("worst", order[-each:])):
        found |= {stem: group for stem in stems if stem not in found}
    return found


# --- results page ---


def write_index(folder, figures, rows, log=None):
    """Write folder/index.html.

    figures: the contents of metrics.json; images of its "kinds" lie as KIND/STEM.png beside the page. rows: dicts with
    "stem", "class" and what there is of "iou", "iou_refined" and "d_obj_y_hat". log: of `charts.read_log`.
    """
    main, small = charts.charts(log or {}, figures["baselines"]["mean_mask"])
    data = {"figures": figures, "words": {kind: words_of(kind) for kind in figures["kinds"]},
            "rows": [_page_row(row) for row in rows] if figures["kinds"] else []}
    plain = {name: html.escape(f"{value:,}" if isinstance(value, int) else str(value))
             for name, value in figures.items() if isinstance(value, (int, str))}
    write_page(os.path.join(folder, "index.html"), "page.html", **plain, made_by=made_by(figures),
               verdict=verdict(figures), fill_verdict=fill_verdict(figures), main_charts="".join(main),
               small_charts="".join(small), data=embed(data))


def write_run(folder, name, step, last_step, newest=3):
    """Write folder/index.html of a run that is under way: the curves of its log.jsonl, the newest of its samples/."""
    main, small = charts.charts(charts.read_log(os.path.join(folder, "log.jsonl")))
    steps = [int(file.stem) for file in Path(folder, "samples").glob("*.png") if file.stem.isdecimal()]
    samples = [f'<figure><img src="samples/{n:07d}.png" alt=""><figcaption>step {n}</figcaption></figure>'
               for n in sorted(steps, reverse=True) if n <= step]
    write_page(os.path.join(folder, "index.html"), "run.html", name=html.escape(name), step=step, last_step=last_step,
               samples="\n".join(samples[:newest]), main_charts="".join(main), small_charts="".join(small))


def quoted(text):
    """A text as a cell of a CSV file that no spreadsheet takes for a formula: where it might, a ' stands before it."""
    return f"'{text}" if text[:1] and text[0] in "=+-@\t\r'" else text


def unquoted(cell):
    """The text of a cell of `quoted`."""
    return cell.removeprefix("'")


def write_csv(path, rows):
    """Dicts as a CSV file, columns in the order in which they first come; texts of others should be `quoted`."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    with written_whole(path) as file:
        file.write(text.getvalue().encode(errors="backslashreplace"))


def write_page(path, template, **fields):
    """Write the HTML file `template` of this folder to `path`, its $fields filled in."""
    with written_whole(path) as file:
        text = Path(__file__).with_name(template).read_text(encoding="utf-8")
        file.write(Template(text).substitute(fields).encode(errors="backslashreplace"))


def write_json(path, data):
    with written_whole(path) as file:
        text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
        file.write(text.encode(errors="backslashreplace"))  # what is no text is \\udcff in JSON too


def embed(data):
    """JSON that may stand inside <script>: no `<` can end the element, no line separator the literal."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def made_by(figures):
    """What made the masks, in two words."""
    return "files" if figures["step"] is None else f"step {figures['step']:,}"


def verdict(figures):
    """One sentence: is the model better than the best fixed mask?"""
    gain, interval = figures["iou_minus_mean_mask"], figures["intervals"].get("iou_minus_mean_mask")
    if figures["iou"] is None:
        return "The data have no true masks: nothing here says how good the masks are."
    if gain is None:
        return "There are no training masks, so there is no best fixed mask to compare with."
    ends = f"{gain:+.3f} IoU" + (f" [{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else "")
    if interval and interval[0] <= 0 <= interval[1]:
        return f"Masks cannot be told from the best fixed mask in quality: {ends}."
    return f"Masks are {'better' if gain > 0 else 'worse'} than the best fixed mask: {ends}."


def fill_verdict(figures):
    """One sentence where fills that need no training are better than G_inp; else ""."""
    own, *others = (figures["inpainting"][fill]["psnr"] for fill in ("G_inp", "diffusion", "mean_colour"))
    better = [f"{words} ({psnr:.1f} dB)" for words, psnr in zip(("Laplace's equation", "the mean colour"), others,
                                                              strict=True) if own is not None and psnr > own]
    verb = "need" if len(better) > 1 else "needs"
    return "" if not better else (f"By PSNR the model's fills ({own:.1f} dB) are worse than "
                                  f"{' and '.join(better)}, which {verb} no training.")


def _page_row(row):
    def number(key):
        value = row.get(key, math.nan)
        return None if math.isnan(value) else round(value, 4)

    return {"stem": row["stem"], "class": row.get("class", ""), "truth": "iou" in row, "iou": number("iou"),
            "refined": number("iou_refined"), "d_obj": number("d_obj_y_hat")}
