"""The results page's frame, style and script, as `report.write_index` fills them in; braces in PAGE are its fields."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} – SEIGAN</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="subtitle">{subtitle}</p>
<p class="verdict">{verdict}</p>
{bars}
</header>
<main>
<section id="extremes" {gallery}><h2>Best, median, worst</h2></section>
<section><h2>Figures</h2><div class="tables"><div>{masks}</div><div>{images}</div>{classes}</div>
<p class="note">All figures: <a href="metrics.json">metrics.json</a>, one line an image:
<a href="per_image.csv">per_image.csv</a>, first images in file order:
<a href="contact_sheet.png">contact sheet</a>.</p>
</section>
{curves}
<section id="gallery" {gallery}>
<h2>All images</h2>
<form id="view">
<label>Sort <select name="sort"></select></label>
<label class="by-class">Class <select name="class"></select></label>
<output></output>
</form>
<div class="rows"></div>
<button type="button" id="more">Show more</button>
</section>
</main>
<dialog id="large"><figure><img alt=""><figcaption></figcaption></figure></dialog>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""

STYLE = """
:root { --ink: #1d2026; --soft: #667080; --line: #e2e5ea; --accent: #1f5fa8; --pale: #c3cad6; --n: 9 }
* { box-sizing: border-box }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif }
header, section { max-width: 1120px; margin: 0 auto; padding: 0 20px }
header { padding-top: 44px }
h1, h2 { font-family: Charter, "Bitstream Charter", Georgia, "DejaVu Serif", serif; font-weight: 600; line-height: 1.2 }
h1 { font-size: 2.1rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.35rem; margin: 44px 0 12px }
.subtitle { color: var(--soft); margin: 6px 0 22px; overflow-wrap: anywhere }
.verdict { font-size: 1.15rem; margin: 0 0 14px }
.note, caption, small { color: var(--soft) }
.note { font-size: .9rem }
a { color: var(--accent) }
.bars { display: grid; grid-template-columns: max-content 1fr; gap: 8px 14px; margin: 0; max-width: 720px }
.bars dd { display: flex; gap: 12px; align-items: center; margin: 0 }
.bars b { font-variant-numeric: tabular-nums; font-weight: 500; width: 3.2em }
.bars .none { color: var(--soft) }
.track { position: relative; flex: 1; height: 18px; background: #f3f5f8; border-radius: 3px }
.bar { display: block; height: 100%; background: var(--pale); border-radius: 3px }
.model .bar { background: var(--accent) }
.model b { font-weight: 700 }
.whisker { position: absolute; top: 50%; height: 0; border-top: 1.5px solid #0008 }
.whisker::before, .whisker::after { content: ""; position: absolute; top: -5px; height: 8px;
  border-left: 1.5px solid #0008 }
.whisker::after { right: 0 }
.tables { display: flex; flex-wrap: wrap; gap: 28px 56px; align-items: flex-start }
.tables > div { display: grid; gap: 28px }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums; max-width: 100% }
caption { text-align: left; padding-bottom: 6px }
thead th { font-weight: 500; color: var(--soft); border-bottom: 1.5px solid var(--ink) }
thead th:empty { padding: 0 }
th, td { padding: 4px 18px 4px 0; text-align: left; vertical-align: top }
tbody th { font-weight: 400 }
tbody tr { border-bottom: 1px solid var(--line) }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 20px }
.charts.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 230px), 1fr)); margin-top: 14px }
.chart { width: 100%; max-width: 560px; font-size: 11px }
.chart text { fill: var(--soft) }
.chart .title { fill: var(--ink); font-size: 13px }
.chart polyline, .chart path { fill: none; stroke-width: 1.6; stroke-linejoin: round }
.chart .grid { stroke: var(--line); stroke-width: 1 }
.chart .level { stroke: #333; stroke-dasharray: 5 4; stroke-width: 1.2 }
summary { cursor: pointer; margin-top: 14px; color: var(--accent) }
form { display: flex; flex-wrap: wrap; gap: 10px 22px; align-items: center; margin-bottom: 14px }
select { font: inherit; padding: 4px 8px; border: 1px solid var(--pale); border-radius: 5px; background: #fff;
  max-width: 60vw }
output { color: var(--soft) }
.heads, .row { display: grid; grid-template-columns: 118px repeat(var(--n), minmax(0, 1fr)); gap: 5px }
.heads { position: sticky; top: 0; z-index: 1; background: #fffffff2; padding: 8px 0 6px; font-size: 1.15rem }
.heads div { text-align: center }
.heads div:not(:first-child) math { font-size: 1.25rem }
.heads .word { font-size: .85rem; align-self: end }
.row { padding: 3px 0 }
.row > p { margin: 0; padding-right: 8px; align-self: center; font-size: .82rem; line-height: 1.35; color: var(--soft);
  overflow-wrap: anywhere }
.row b { color: var(--ink); font-size: 1rem; font-variant-numeric: tabular-nums; font-weight: 600 }
.row figure { margin: 0 }
.row button { all: unset; display: block; width: 100%; cursor: zoom-in }
.row button:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px }
.row img { display: block; width: 100%; aspect-ratio: 1; border-radius: 2px; background: #f3f5f8 }
.row figcaption { display: none; text-align: center; font-size: .8rem; color: var(--soft) }
.group { margin: 16px 0 2px; font-size: .9rem; color: var(--soft) }
#more { display: block; margin: 18px auto 0; font: inherit; padding: 6px 18px; border: 1px solid var(--pale);
  border-radius: 5px; background: #fff; cursor: pointer }
[hidden], #more[hidden] { display: none }
main { padding-bottom: 70px }
dialog { border: 0; padding: 14px; border-radius: 8px; max-width: 96vw }
dialog::backdrop { background: #000b }
dialog figure { margin: 0 }
dialog img { display: block; width: min(78vh, 88vw); aspect-ratio: 1; image-rendering: pixelated }
dialog figcaption { padding-top: 8px; text-align: center }
@media (max-width: 760px) {
  header { padding-top: 26px }
  h1 { font-size: 1.7rem }
  .heads { display: none }
  .row { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 6px; padding: 12px 0;
    border-top: 1px solid var(--line) }
  .row > p { grid-column: 1 / -1; display: flex; gap: 4px 12px; flex-wrap: wrap; align-items: baseline }
  .row > p br { display: none }
  .row figcaption { display: block }
  th, td { padding-right: 10px }
}
"""

SCRIPT = r"""
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const AT_ONCE = 40;
const form = document.getElementById("view"), rows = document.querySelector("#gallery .rows");
const more = document.getElementById("more"), large = document.getElementById("large");
document.documentElement.style.setProperty("--n", data.kinds.length);

const SORTS = {"file": "as in the folder"};
if (data.rows.some(r => r.iou !== null)) {
  Object.assign(SORTS, {"iou-desc": "IoU, best first", "iou-asc": "IoU, worst first"});
}
if (data.rows.some(r => r.d_obj !== null)) {
  Object.assign(SORTS, {"d_obj-desc": "D_obj(ŷ), most real first", "d_obj-asc": "D_obj(ŷ), least real first"});
}

function element(tag, text, parent) {
  const e = document.createElement(tag);
  if (text) e.textContent = text;
  if (parent) parent.append(e);
  return e;
}

function source(row, kind) { return kind + "/" + encodeURIComponent(row.stem) + ".png"; }

function heads() {
  const line = document.createElement("div");
  line.className = "heads";
  element("div", "", line);
  for (const kind of data.kinds) {
    const head = element("div", "", line);
    head.innerHTML = data.heads[kind];  // written by report.py, no user's text
    head.title = data.meanings[kind];
    if (!head.querySelector("math")) head.className = "word";
  }
  return line;
}

function rowElement(row) {
  const line = document.createElement("div");
  line.className = "row";
  line.dataset.stem = row.stem;
  const about = element("p", "", line);
  if (row.iou !== null) { element("b", "IoU " + row.iou.toFixed(3), about); element("br", "", about); }
  if (row.d_obj !== null) { element("span", "D_obj " + row.d_obj.toFixed(2), about); element("br", "", about); }
  element("span", row.stem + (row["class"] ? ", " + row["class"] : ""), about);
  for (const kind of data.kinds) {
    const figure = element("figure", "", line);
    if (kind === "truth" && !row.truth) continue;
    const button = element("button", "", figure), image = element("img", "", button);
    image.loading = "lazy";
    image.src = source(row, kind);
    image.alt = data.meanings[kind] + " of " + row.stem;
    button.addEventListener("click", () => enlarge(row, kind));
    element("figcaption", "", figure).innerHTML = data.heads[kind];
  }
  return line;
}

let shown = {row: null, kind: null};
function enlarge(row, kind) {
  shown = {row, kind};
  const image = large.querySelector("img"), caption = large.querySelector("figcaption");
  image.src = source(row, kind);
  image.alt = data.meanings[kind] + " of " + row.stem;
  caption.innerHTML = data.heads[kind];
  caption.append(" " + data.meanings[kind] + " · " + row.stem
                 + (row.iou === null ? "" : " · IoU " + row.iou.toFixed(3)));
  if (!large.open) large.showModal();
}
large.addEventListener("click", () => large.close());
large.addEventListener("keydown", event => {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (!step) return;
  const kinds = data.kinds.filter(k => k !== "truth" || shown.row.truth);
  enlarge(shown.row, kinds[(kinds.indexOf(shown.kind) + step + kinds.length) % kinds.length]);
});

function extremes() {
  const section = document.getElementById("extremes");
  const scored = data.rows.filter(r => r.iou !== null).sort((a, b) => b.iou - a.iou);
  if (scored.length < 3) { section.hidden = true; return; }
  const n = Math.min(3, Math.floor(scored.length / 3)), middle = Math.floor((scored.length - n) / 2);
  section.append(heads());
  for (const [label, start] of [["Best by IoU", 0], ["Median", middle], ["Worst", scored.length - n]]) {
    element("p", label, section).className = "group";
    for (const row of scored.slice(start, start + n)) section.append(rowElement(row));
  }
}

let view = [], drawn = 0;
function draw() {
  for (const row of view.slice(drawn, drawn + AT_ONCE)) rows.append(rowElement(row));
  drawn = Math.min(view.length, drawn + AT_ONCE);
  more.hidden = drawn === view.length;
}

function update() {
  const [key, order] = form.sort.value.split("-"), wanted = form["class"].value;
  view = data.rows.filter(r => !wanted || r["class"] === wanted);
  if (order) {  // images without a value come last either way
    const sign = order === "asc" ? 1 : -1;
    view.sort((a, b) => (a[key] === null) - (b[key] === null) || sign * (a[key] - b[key]));
  }
  form.querySelector("output").textContent = view.length + " of " + data.rows.length + " images";
  rows.replaceChildren(heads());
  drawn = 0;
  draw();
}

function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  form.sort.value = Object.hasOwn(SORTS, asked.get("sort")) ? asked.get("sort") : "file";
  form["class"].value = asked.get("class") || "";
  if (form["class"].selectedIndex < 0) form["class"].value = "";
  update();
}

if (data.rows.length) {
  for (const [value, text] of Object.entries(SORTS)) form.sort.append(new Option(text, value));
  const classes = [...new Set(data.rows.map(r => r["class"]).filter(c => c))].sort();
  form["class"].append(new Option("all", ""), ...classes.map(c => new Option(c, c)));
  document.querySelector(".by-class").hidden = classes.length < 2;
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("change", () => {
    const parts = new URLSearchParams({sort: form.sort.value, "class": form["class"].value});
    location.replace("#" + parts);  // the address keeps the view; the handler below draws it
  });
  addEventListener("hashchange", readAddress);
  more.addEventListener("click", draw);
  extremes();
  readAddress();
}
"""
