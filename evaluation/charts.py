"""Learning curves: a run's log as inline SVG. Standard library only; it can be copied out alone."""
import html
import json
import math
import os

COLOURS = ("#1f5fa8", "#c8553d", "#4b8f4b", "#8a5fa8")
POINTS = 240  # a line's most points: more are averaged


def read_log(path):
    """log.jsonl as {column: ([steps], [values])}, {} if there is none.

    After a resume a step may stand there twice: the later line counts, and lines of steps that the resumed run
    went back behind are superseded one by one. Lines cut short by a crash are passed over.
    """
    if not os.path.isfile(path):
        return {}
    columns = {}
    with open(path, encoding="utf-8", errors="replace") as f:
        for text in f:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                for key, value in line.items():
                    if key != "step" and isinstance(value, (int, float)) and math.isfinite(value):
                        columns.setdefault(key, {})[line["step"]] = float(value)
    return {key: tuple(zip(*sorted(values.items()), strict=True)) for key, values in columns.items()}


def thin(steps, values, points=POINTS):
    """At most `points` points: means of equally long runs."""
    run = math.ceil(len(steps) / points)
    parts = range(0, len(steps), run)
    return [sum(steps[i : i + run]) / len(steps[i : i + run]) for i in parts], \
           [sum(values[i : i + run]) / len(values[i : i + run]) for i in parts]


def ticks(low, high, count=4):
    """Round numbers within [low, high], about `count` of them."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [(first + i) * step for i in range(int((high - first * step) / step + 1e-9) + 1)]


def chart(title, lines, levels=(), span=None, width=480, height=260):
    """An SVG line chart.

    Args:
        title: plain text.
        lines: {label: (steps, values)}.
        levels: (label, value) pairs, dashed horizontals.
        span: (low, high) of the vertical axis; default that of the values.
    """
    lines = {label: thin(*line) for label, line in lines.items()}
    all_steps = [s for steps, _ in lines.values() for s in steps]
    seen = [v for _, values in lines.values() for v in values] + [v for _, v in levels]
    low, high = span or (min(seen), max(seen))
    if high - low < 1e-9 * max(1, abs(high)):
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    end = max(max(all_steps), 1)
    left, right, top, bottom = 46, width - 12, 40, height - 26

    def place(step, value):
        y = bottom - (min(max(value, low), high) - low) / (high - low) * (bottom - top)
        return f"{left + step / end * (right - left):.1f},{y:.1f}"

    def text(x, y, words, anchor="start", kind=""):
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{html.escape(words)}</text>'

    parts = [text(left, 14, title, kind="title")]
    for tick in ticks(low, high):
        x, y = place(0, tick).split(",")
        parts.append(f'<path class="grid" d="M{x},{y}H{right}"/>' + text(left - 6, float(y) + 4, f"{tick:.4g}", "end"))
    for tick in ticks(0, end, 3):
        x = float(place(tick, low).split(",")[0])
        parts.append(text(x, height - 8, short(tick), "start" if tick == 0 else "end" if x > right - 20 else "middle"))
    key_x = left
    for i, (label, (steps, values)) in enumerate(lines.items()):
        colour, points = COLOURS[i % len(COLOURS)], " ".join(place(*p) for p in zip(steps, values, strict=True))
        mark = f'<circle cx="{points.split(",")[0]}" cy="{points.split(",")[1]}" r="2.5" fill="{colour}"/>'
        parts.append(mark if len(steps) == 1 else f'<polyline points="{points}" stroke="{colour}"/>')
        if len(lines) > 1 or levels:
            parts.append(f'<path d="M{key_x},28h14" stroke="{colour}"/>' + text(key_x + 19, 32, label))
            key_x += 34 + 6.6 * len(label)
    for label, value in levels:
        y = place(0, value).split(",")[1]
        parts.append(f'<path class="level" d="M{left},{y}H{right}"/><path class="level" d="M{key_x:.0f},28h14"/>'
                     + text(key_x + 19, 32, label))
        key_x += 34 + 6.6 * len(label)
    return (f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">'
            + "".join(parts) + "</svg>")


def short(step):
    """12000 -> "12k"."""
    return f"{step / 1000:g}k" if step >= 1000 else f"{step:g}"


def charts(log, mean_mask=None):
    """The charts of a run's log: (the main ones, one small one a further column), lists of SVG strings."""
    def pick(**wanted):
        return {label: log[key] for key, label in wanted.items() if key in log}

    main, used = [], {"val_iou", "mask_area", "mask_contrast", "val_mask_area"}
    accuracy = pick(val_iou="model")
    if accuracy:
        levels = [] if mean_mask is None else [("mean mask (test)", mean_mask)]
        main.append(chart("IoU on held-out crops while training", accuracy, levels, (0, 1)))
    area = pick(mask_area="mask area", mask_contrast="mask contrast", val_mask_area="area, held out")
    if area:
        main.append(chart("Mask area and contrast", area, span=(0, 1)))
    rest = [key for key in log if key not in used]
    return main, [chart(key, {key: log[key]}, width=300, height=160) for key in rest]
