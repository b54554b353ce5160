"""Drawn sets unlike those that the defaults were chosen on, with exact masks, to try the defaults elsewhere:

    python -m benchmarks.drawn planes datasets/planes
    python -m benchmarks.drawn horses datasets/horses
    python -m benchmarks.drawn shapes datasets/shapes

Planes in the sky: smooth backgrounds, objects of a fifth of the image. Horses on meadows: fine texture behind plain
objects with thin legs. Shapes: polygons of one colour on ground of one colour, each kind with colours of its own, the
easiest that there is: where a method learns nothing from these, it works nowhere. Layout and sizes are those of the
demo set.
"""
import colorsys
import sys
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from crops import demo

CANVAS = 512  # px, side of the canvas that outlines are drawn on
SEED = 7
COUNTS = {"train": {"objects": 600, "backgrounds": 1200}, "test": {"objects": 150, "backgrounds": 150}}


def colour(hue, saturation, value):
    return np.array(colorsys.hsv_to_rgb(hue % 1, np.clip(saturation, 0, 1), np.clip(value, 0, 1)))


def grain(rng, side, deviation):
    return rng.normal(0, deviation, (side, side, 1))


def sky(rng, side):
    """A gradient, with clouds or without, at times above ground."""
    hue, saturation, value = rng.uniform(0.52, 0.64), rng.uniform(0.05, 0.6), rng.uniform(0.5, 1)
    _, v = demo.grid(side)
    height = (v[..., None] + 1) / 2
    horizon = colour(hue, saturation * rng.uniform(0.2, 0.9), min(1, value * rng.uniform(0.9, 1.2)))
    image = colour(hue, saturation, value) * (1 - height) + horizon * height
    if rng.random() < 0.6:
        cloud = 1 / (1 + np.exp(-2 * (demo.noise(rng, side, rng.uniform(2, 4), 4) - rng.uniform(0, 1.5))))
        image = image + (np.ones(3) * rng.uniform(0.6, 1) - image) * cloud[..., None] * rng.uniform(0.2, 0.8)
    if rng.random() < 0.4:
        level = rng.uniform(0.55, 0.95) * 2 - 1
        ground = v > level + 0.05 * demo.noise(rng, side, 4, 3) * rng.uniform(0, 1)
        earth = colour(rng.uniform(0.05, 0.4), rng.uniform(0.05, 0.5), rng.uniform(0.2, 0.6))
        earth = earth * (1 + 0.25 * demo.noise(rng, side, rng.uniform(4, 16), 4))[..., None]
        image = np.where(ground[..., None], earth, image)
    return image + grain(rng, side, 0.015)


def meadow(rng, side):
    """Grass below trees or sky, at times behind a fence."""
    u, v = demo.grid(side)
    level = rng.uniform(-0.8, 0.2)
    grass = colour(rng.uniform(0.12, 0.35), rng.uniform(0.2, 0.6), rng.uniform(0.3, 0.7))
    grass = grass * (1 + 0.25 * demo.noise(rng, side, rng.uniform(12, 30), 3))[..., None]
    grass = grass * (1 + 0.15 * demo.noise(rng, side, 3, 2))[..., None]
    if rng.random() < 0.6:
        trees = colour(rng.uniform(0.25, 0.45), rng.uniform(0.1, 0.5), rng.uniform(0.15, 0.4))
        above = trees * (1 + 0.4 * demo.noise(rng, side, rng.uniform(6, 14), 4))[..., None]
    else:
        above = sky(rng, side)
    image = np.where((v < level + 0.04 * demo.noise(rng, side, 5, 3))[..., None], above, grass)
    if rng.random() < 0.35:
        y = rng.uniform(-0.3, 0.3)
        for rail in range(3):
            image = np.where((abs(v - y - 0.15 * rail) < 0.02)[..., None], rng.uniform(0.4, 0.9), image)
        posts = (np.sin(u * rng.uniform(6, 12) + rng.uniform(0, 6)) > 0.97) & (abs(v - y - 0.15) < 0.25)
        image = np.where(posts[..., None], 0.6, image)
    return image + grain(rng, side, 0.02)


def plane(rng, side):
    """A plane from the side: its surface (side, side, 3), and its inside (side, side), bool."""
    canvas = Image.new("L", (CANVAS, CANVAS), 0)
    pen = ImageDraw.Draw(canvas)
    thick = rng.uniform(16, 30)
    pen.ellipse((20, 256 - thick, 492, 256 + thick), fill=255)
    fin = rng.uniform(50, 90)
    pen.polygon([(400, 250), (450, 250 - fin), (485, 250 - fin), (478, 256)], fill=255)
    root, span, sweep = rng.uniform(180, 240), rng.uniform(50, 130), rng.uniform(20, 120)
    if rng.random() < 0.8:
        tip = 256 + span
        pen.polygon([(root, 256), (root + 90, 256), (root + 60 + sweep, tip), (root + 30 + sweep, tip)], fill=255)
    if rng.random() < 0.5:
        tip = 256 - span * 0.8
        pen.polygon([(root, 256), (root + 80, 256), (root + 60 + sweep, tip), (root + 35 + sweep, tip)], fill=255)
    pen.polygon([(420, 256), (460, 256), (490, 256 + fin * 0.4), (470, 256 + fin * 0.4)], fill=255)
    if rng.random() < 0.5:  # an engine
        pen.ellipse((root + 20, 268 + thick, root + 80, 268 + thick + 24), fill=255)
    inside = in_box(rng, canvas.rotate(rng.normal(0, 8)), side)

    u, v = demo.grid(side)
    paint = colour(rng.uniform(0, 1), rng.choice([0.05, 0.1, 0.5]), rng.uniform(0.5, 0.95))
    image = paint * (1 - 0.3 * v + 0.1 * demo.noise(rng, side, 3, 2))[..., None]
    y = rng.uniform(-0.1, 0.2)
    if rng.random() < 0.7:
        image = np.where((abs(v - y) < 0.06)[..., None], colour(rng.random(), 0.7, 0.6), image)
    windows = (abs(v - y + 0.12) < 0.03) & (np.sin(60 * u) > 0.3)
    return np.where(windows[..., None], 0.15, image) + grain(rng, side, 0.02), inside


def horse(rng, side):
    """A horse from the side: its surface (side, side, 3), and its inside (side, side), bool."""
    canvas = Image.new("L", (CANVAS, CANVAS), 0)
    pen = ImageDraw.Draw(canvas)
    long, high, x, y = rng.uniform(120, 160), rng.uniform(50, 75), 260, 230
    pen.ellipse((x - long, y - high, x + long, y + high), fill=255)
    angle, neck = rng.uniform(0.2, 1.2), rng.uniform(110, 160)
    head_x, head_y = x - long * 0.75 - neck * np.cos(angle) * 0.8, y - 10 - neck * np.sin(angle)
    pen.line([(x - long * 0.7, y - 5), (head_x, head_y)], fill=255, width=int(rng.uniform(45, 65)))
    pen.ellipse((head_x - 30, head_y - 28, head_x + 30, head_y + 28), fill=255)
    nose = (head_x - rng.uniform(40, 70), head_y + rng.uniform(20, 70))
    pen.line([(head_x, head_y), nose], fill=255, width=int(rng.uniform(30, 40)))
    for hip in (x - long * 0.7, x - long * 0.5, x + long * 0.5, x + long * 0.75):
        knee = hip + rng.normal(0, 25)
        foot = knee + rng.normal(0, 25)
        width = int(rng.uniform(18, 28))
        leg = [(hip, y + 20), (knee, y + 110), (foot, y + rng.uniform(180, 210))]
        pen.line(leg, fill=255, width=width, joint="curve")
    tail = (x + long + rng.uniform(10, 50), y + rng.uniform(30, 110))
    pen.line([(x + long * 0.9, y - 20), tail], fill=255, width=22)
    inside = in_box(rng, canvas, side)

    _, v = demo.grid(side)
    coat = colour(rng.uniform(0.03, 0.1), rng.choice([0.05, 0.3, 0.6, 0.7]), rng.choice([0.15, 0.3, 0.5, 0.85]))
    image = coat * (1 - 0.25 * v + 0.12 * demo.noise(rng, side, 4, 3))[..., None]
    if rng.random() < 0.2:
        image = np.where((demo.noise(rng, side, 3, 2) > 0.3)[..., None], colour(0.08, 0.1, 0.85), image)
    return image + grain(rng, side, 0.02), inside


def ground(rng, side):
    """One colour, between green and violet."""
    return np.full((side, side, 3), colour(rng.uniform(0.3, 0.75), rng.uniform(0.3, 1), rng.uniform(0.3, 1)))


def shape(rng, side):
    """A polygon of one colour, between purple and yellow: its surface (side, side, 3), and its inside (side, side)."""
    canvas = Image.new("L", (CANVAS, CANVAS), 0)
    corners = rng.integers(3, 9)
    angle = 2 * np.pi * (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) / corners + rng.uniform(0, 2 * np.pi)
    far = rng.uniform(0.4, 1, corners) * CANVAS / 2
    ImageDraw.Draw(canvas).polygon([*zip(CANVAS / 2 + far * np.cos(angle), CANVAS / 2 + far * np.sin(angle),
                                         strict=True)], fill=255)
    paint = colour(rng.uniform(-0.1, 0.18), rng.uniform(0.5, 1), rng.uniform(0.5, 1))
    return np.full((side, side, 3), paint), in_box(rng, canvas, side)


def in_box(rng, canvas, side):
    """The outline, turned round as often as not and stretched to fill the box -> (side, side), bool."""
    if rng.random() < 0.5:
        canvas = canvas.transpose(Image.FLIP_LEFT_RIGHT)
    canvas = canvas.point(lambda value: 255 * (value > 127))
    return np.asarray(canvas.resize((side, side), Image.BILINEAR, box=canvas.getbbox())) > 127.5


SETS = {"planes": partial(demo.draw, background=sky, body=plane),
        "horses": partial(demo.draw, background=meadow, body=horse),
        "shapes": partial(demo.draw, background=ground, body=shape)}

if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in SETS:
        sys.exit(f"usage: python -m benchmarks.drawn {'|'.join(SETS)} DATAROOT")
    demo.write_demo(sys.argv[2], SEED, COUNTS, SETS[sys.argv[1]])
