"""Learning curves: a run's log as inline SVG, whose styles page.html has. Standard library only."""
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
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and type(line.get("step")) is int and 0 <= line["step"] < 2**53:
                for key, value in line.items():
                    if key != "step" and type(value) in (int, float) and abs(value) < 1e300:
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


def short(step):
    """12000 -> "12k"."""
    return f"{step / 1000:g}k" if step >= 1000 else f"{step:g}"


def text(x, y, words, anchor="start", kind=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{html.escape(words)}</text>'


def chart(title, lines, levels=(), span=None, width=480, height=270, axis="step"):
    """An SVG line chart over training steps, or what `axis` says: lines {label: (steps, values)}; levels, dashed
    horizontals, (label, value) pairs; span (low, high) of the vertical axis, default that of the values."""
    lines = {label: thin(*line) for label, line in lines.items()}
    end = max([1, *(steps[-1] for steps, _ in lines.values())])
    seen = [v for _, values in lines.values() for v in values] + [v for _, v in levels]
    low, high = span or (min(seen), max(seen))
    if high - low < 1e-9 * max(1, abs(high)):
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    left, right, top, bottom = 46, width - 12, 40, height - 36

    def across(step):
        return left + step / end * (right - left)

    def up(value):
        return bottom - (min(max(value, low), high) - low) / (high - low) * (bottom - top)

    parts = [text(left, 14, title, kind="title"), text((left + right) / 2, height - 4, axis, "middle")]
    for tick in ticks(low, high):
        parts.append(f'<path class="grid" d="M{left},{up(tick):.1f}H{right}"/>'
                     + text(left - 6, up(tick) + 4, f"{tick:.4g}", "end"))
    parts += [text(across(tick), bottom + 16, short(tick), "end" if across(tick) > right - 12 else "middle")
              for tick in ticks(0, end, 5)]
    drawn = []  # (how it looks in the legend, label)
    for i, (label, (steps, values)) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        points = [f"{across(step):.1f},{up(value):.1f}" for step, value in zip(steps, values, strict=True)]
        x, y = points[0].split(",")
        parts.append(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' if len(points) == 1 else
                     f'<polyline points="{" ".join(points)}" stroke="{colour}"/>')
        drawn.append((f'stroke="{colour}"', label))
    for label, value in levels:
        parts.append(f'<path class="level" d="M{left},{up(value):.1f}H{right}"/>')
        drawn.append(('class="level"', label))
    for look, label in drawn if len(drawn) > 1 else ():
        parts.append(f'<path {look} d="M{left:.0f},28h14"/>' + text(left + 19, 32, label))
        left += 34 + 6.6 * len(label)
    return (f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">'
            + "".join(parts) + "</svg>")


def charts(log, mean_mask=None):
    """The charts of a run's log: (the main ones, one small one a further column), lists of SVG strings."""
    def pick(**wanted):
        return {label: log[key] for key, label in wanted.items() if key in log}

    main, used = [], {"val_iou", "mask_area", "mask_contrast", "val_mask_area"}
    accuracy = pick(val_iou="model")
    if accuracy:
        levels = [] if mean_mask is None else [("best fixed mask (test)", mean_mask)]
        main.append(chart("IoU on held-out crops while training", accuracy, levels, (0, 1)))
    area = pick(mask_area="mask area", mask_contrast="mask contrast", val_mask_area="area, held out")
    if area:
        main.append(chart("Mask area and contrast", area, span=(0, 1)))
    rest = [key for key in log if key not in used]
    return main, [chart(key, {key: log[key]}, width=300, height=170) for key in rest]
