"""The crop rules (§3.4, §4.1, §4.2): which boxes become objects, X, and where backgrounds, Y, lie.

A window (x0, y0, w, h) is the part of a source image that a crop shows, floats in source pixels; it is never rounded.
Nothing here depends on the order of the images.
"""
import hashlib
import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from crops.annotations import Box, Photo

PRESETS = {  # §4.1 (i) and (iv); §4.2
    "dogs": {"object_size": 64, "crop_size": 128, "min_side": 60.0, "max_fraction": 0.4, "min_aspect": 0.0},
    "coco": {"object_size": 100, "crop_size": 128, "min_side": 20.0, "max_fraction": 0.4, "min_aspect": 0.4},
}
DROPS = {  # every reason to drop a box, and what to do where it drops too many
    "unplaced": "another box of the image has no usable place, see what was skipped",
    "class": "--classes and --exclude choose",
    "score": "a lower --min_score takes more",
    "crowd": "a region of many objects is never one",
    "min_side": "a lower --min_side takes more",
    "max_fraction": "a higher --max_fraction takes more",
    "min_aspect": "a lower --min_aspect takes more",
    "outside": "the crop leaves the image: --outside reflect takes it, a larger --object_size less around the object",
    "max_outside": "too much of the crop lies beyond the image, or the box's middle: a higher --max_outside takes more",
    "neighbours": "another box reaches into the crop, a larger --object_size takes less around the object",
}
OFF = {"max_fraction": 1, "min_aspect": 0, "outside": "reflect"}  # the values at which these rules drop nothing
OVERLAP = 0.25  # of its area: the most that a background shares with an earlier one of the same image


@dataclass(frozen=True)
class Rules:
    """Which boxes become crops. Sides and sizes in pixels; 0 switches a rule off."""

    crop_size: int = 128  # side of a crop
    object_size: int = 100  # side of the object's box in the crop
    min_side: float = 20.0  # the box's smaller source side must exceed it
    max_fraction: float = 0.4  # largest (box's longer side / image's longer side); 0 or 1 = off
    min_aspect: float = 0.4  # smaller / larger side of the box must exceed it
    outside: str = "drop"  # drop: the crop must lie in the image; reflect: what lies beyond shows its reflection
    max_outside: float = 0.5  # largest share of a crop's area beyond the image
    fit: str = "warp"  # warp: box to a square (the paper's); keep: the box keeps its aspect
    min_score: float = 0.0  # a detector's score from which a box may be an object; all boxes keep crops away
    same_object: float = 0.5  # IoU with a better detection from which a detection is that object once more; 1 = off
    classes: tuple = ()  # only these become objects; () = all
    exclude: tuple = ()  # these never do
    y_per_x: float = 2.0  # backgrounds per object (§4.2: at least twice as many)
    y_per_image: int = 8  # most backgrounds from one image
    y_from: str = "any"  # same: only images that give an object; any: all annotated images; else a folder
    seed: int = 0


# --- objects (§4.1, §4.2) ---


def object_window(box, rules: Rules):
    """The window (x0, y0, w, h) that shows `box` = (x, y, w, h, ...) centred, object_size of crop_size px.

    `warp` scales both sides of the box to object_size; `keep` the longer one.
    """
    x, y, w, h = box[:4]
    ratio = rules.crop_size / rules.object_size
    width, height = (w * ratio, h * ratio) if rules.fit == "warp" else (max(w, h) * ratio,) * 2
    return x + w / 2 - width / 2, y + h / 2 - height / 2, width, height


def first_failing(box: Box, photo: Photo, rules: Rules):
    """Name of the first rule but `neighbours` that `box` fails (see DROPS), None when it meets all."""
    short, long = sorted((box.w, box.h))
    limit = rules.max_fraction if 0 < rules.max_fraction < 1 else math.inf
    if not box.name or box.name in rules.exclude or rules.classes and box.name not in rules.classes:
        return "class"
    if box.crowd:
        return "crowd"
    if box.score < rules.min_score:
        return "score"
    if short <= rules.min_side:
        return "min_side"
    if long > limit * max(photo.width, photo.height):
        return "max_fraction"
    if short <= rules.min_aspect * long:
        return "min_aspect"
    share = share_outside(object_window(box, rules), photo.width, photo.height)
    if share and rules.outside == "drop":
        return "outside"
    # with its middle in the image, a reflection shows nothing that the crop has not seen, thus no neighbour
    middle_inside = 0 <= box.x + box.w / 2 <= photo.width and 0 <= box.y + box.h / 2 <= photo.height
    return None if not share or share <= rules.max_outside and middle_inside else "max_outside"


def lies_inside(window, width, height) -> bool:
    """Whether a window lies in an image of width x height, but for the rounding of sums."""
    x0, y0, w, h = window
    slack = 1e-6 * max(width, height)
    return x0 >= -slack and y0 >= -slack and x0 + w <= width + slack and y0 + h <= height + slack


def share_outside(window, width, height) -> float:
    """The share of a window's area that lies beyond an image of width x height; rounding errors are none."""
    if lies_inside(window, width, height):
        return 0.0
    x0, y0, w, h = window
    across, down = min(x0 + w, width) - max(x0, 0), min(y0 + h, height) - max(y0, 0)
    return 1 - max(across, 0) * max(down, 0) / (w * h)


def find_objects(photo: Photo, rules: Rules, dropped: Counter):
    """The (box, window) pairs of `photo` that meet every rule; adds to `dropped` the rule that each other box fails
    first. An image with an object of unknown place gives nothing ("unplaced")."""
    if photo.unplaced:
        dropped["unplaced"] += len(photo.boxes)
        return []
    found, edges = [], edges_of(photo.boxes)
    for index, box in enumerate(photo.boxes):
        rule, window = first_failing(box, photo, rules), object_window(box, rules)
        if rule is None:
            touched = overlaps(window, edges) & ~doubles(photo.boxes, edges, index, rules.same_object)
            touched[index] = False
            rule = "neighbours" if touched.any() else None
        if rule is None:
            found.append((box, window))
        else:
            dropped[rule] += 1
    return found


def doubles(boxes, edges, index, least_iou, inside=0.9) -> np.ndarray:
    """Which boxes show the object of number `index` once more, bool (n,): detections of a lower score that share at
    least `least_iou` of their union with it, whatever their class, or are of its class and lie in it but for a tenth
    of their area, as parts do. A detector's own suppression compares boxes of one class only.

    A lower box of another class inside, as a rider's in a horse's, is an object of its own. edges: `edges_of` boxes.
    """
    box = boxes[index]
    lower = np.array([other.score < box.score for other in boxes])
    if least_iou >= 1 or not lower.any():  # annotations all have the score 1
        return np.zeros(len(boxes), bool)
    x, y, w, h = edges.T
    across = (np.minimum(x + w, box.x + box.w) - np.maximum(x, box.x)).clip(0)
    shared = across * (np.minimum(y + h, box.y + box.h) - np.maximum(y, box.y)).clip(0)
    parts = np.array([other.name == box.name for other in boxes]) & (shared >= inside * w * h)
    return lower & ((shared >= least_iou * (w * h + box.w * box.h - shared)) | parts)


def most_dropping(dropped, boxes: int, half=True):
    """The rule that drops most of a source's boxes, None if it drops at most half; half False: however few it drops.
    What --classes and --exclude leave out counts only where there is nothing else."""
    rules = {rule: n for rule, n in dropped.items() if rule != "class" and n}
    if not rules:
        return "class" if not half and dropped["class"] else None
    rule = max(rules, key=rules.get)
    return rule if not half or 2 * rules[rule] > boxes - dropped["class"] else None


def remedy(rule: str, photos, rules: Rules) -> str:
    """What to do about a rule that drops too many boxes: the flags that take them, those for the rules that would drop
    most after it too, and how many objects they would give."""
    boxes, flags, found = sum(len(photo.boxes) for photo in photos), {}, 0
    while rule in OFF:
        flags[rule] = OFF[rule]
        dropped = Counter()
        found = sum(len(find_objects(photo, replace(rules, **flags), dropped)) for photo in photos)
        rule = most_dropping(dropped, boxes, half=found > 0)
    if not flags:
        return DROPS[rule]
    gain = " ".join(f"--{name} {value}" for name, value in flags.items()) + f" would give {found} objects"
    return gain if rule is None else f"{gain}; then {rule} drops most, {DROPS[rule]}"


def edges_of(boxes) -> np.ndarray:
    """Boxes or windows as an array (n, 4): x, y, w, h."""
    return np.array([box[:4] for box in boxes], float).reshape(-1, 4)


def overlaps(window, boxes: np.ndarray) -> np.ndarray:
    """Which of `boxes` (n, 4) share more than an edge with `window`; both as x, y, w, h. bool (n,)."""
    x0, y0, w, h = window
    x, y, bw, bh = boxes.T
    return (x < x0 + w) & (x0 < x + bw) & (y < y0 + h) & (y0 < y + bh)


# --- backgrounds: windows that touch no box (§4.1 "background-only regions") ---


def free_position(width, height, w, h, obstacles: np.ndarray, seed):
    """Draw (x0, y0) of a w x h window uniformly among all places inside the image that overlap no obstacle.

    obstacles: (n, 4) as x, y, w, h; seed: of the draw. None when there is no such place. Exact: the window overlaps
    (x, y, bw, bh) if and only if x - w < x0 < x + bw and y - h < y0 < y + bh, so the lines of these edges divide all
    positions into cells that are entirely free or entirely not.
    """
    if w >= width or h >= height:
        return None
    room, corners = (width - w, height - h), obstacles[:, :2]
    low, high = np.clip(corners - (w, h), 0, room), np.clip(corners + obstacles[:, 2:], 0, room)
    xs, ys = np.sort(np.concatenate([[(0, 0), room], low, high]), 0).T
    area = (ys[1:] - ys[:-1])[:, None] * (xs[1:] - xs[:-1])
    (left, top), (right, bottom) = ((xs.searchsorted(line[:, 0]), ys.searchsorted(line[:, 1])) for line in (low, high))
    for k in range(len(obstacles)):
        area[top[k]:bottom[k], left[k]:right[k]] = 0
    total = area.cumsum()
    if total[-1] <= 0:
        return None
    rng = np.random.default_rng(seed)
    cell = min(int(total.searchsorted(rng.random() * total[-1], side="right")), area.size - 1)
    row, column = divmod(cell, xs.size - 1)
    return float(rng.uniform(xs[column], xs[column + 1])), float(rng.uniform(ys[row], ys[row + 1]))


class FreeSpace:
    """Where in a list of images backgrounds still fit. Images take turns, so that windows spread evenly."""

    def __init__(self, photos, rules: Rules):
        self.photos = sorted((p for p in photos if not p.unplaced), key=lambda p: name_hash(p.file, rules.seed))
        self.rules = rules
        self.obstacles = [edges_of(photo.boxes) for photo in self.photos]
        self.taken = [[] for _ in self.photos]
        self.failed = []  # the smallest sizes that found no place; room only shrinks, so larger ones will not
        self.turn = 0
        # The widest and highest gap beside each image's largest box: a window fits past that box only if
        # one of them holds it. A quick test that spares most exact ones.
        self.gaps = np.zeros((len(self.photos), 4))
        for i, (photo, boxes) in enumerate(zip(self.photos, self.obstacles, strict=True)):
            beside, above = photo.width, photo.height
            if len(boxes):
                x, y, w, h = boxes[np.argmax(boxes[:, 2] * boxes[:, 3])]
                beside, above = max(x, photo.width - x - w), max(y, photo.height - y - h)
            self.gaps[i] = photo.width, photo.height, beside, above
        self.full = np.zeros(len(self.photos), bool)

    def place(self, size, tries=300):
        """Place one window of `size` = (w, h) in the next image that has room for it.

        Returns True when placed (see `taken`), False when `tries` images that looked promising had no room.
        """
        w, h = size
        if any(w >= wide and h >= high for wide, high in self.failed):
            return False
        for i in self.promising(w, h, tries):
            photo = self.photos[i]
            # an earlier background may be overlapped at its rim: only its middle is an obstacle
            middles = [(x + OVERLAP * a, y + OVERLAP * b, a - 2 * OVERLAP * a, b - 2 * OVERLAP * b)
                       for x, y, a, b in self.taken[i]]
            obstacles = np.concatenate([self.obstacles[i], edges_of(middles)])
            seed = name_hash(photo.file, self.rules.seed), len(middles)
            position = free_position(photo.width, photo.height, w, h, obstacles, seed)
            if position is not None:
                self.taken[i].append((*position, w, h))
                self.full[i] = len(self.taken[i]) >= self.rules.y_per_image
                self.turn = (i + 1) % len(self.photos)
                return True
        self.failed = [(a, b) for a, b in self.failed if a < w or b < h] + [size]
        return False

    def promising(self, w, h, tries, block=512):
        """Up to `tries` indices of images that may hold w x h, from the image whose turn it is on."""
        for start in range(0, len(self.photos), block):
            index = (np.arange(start, min(start + block, len(self.photos))) + self.turn) % len(self.photos)
            width, height, beside, above = self.gaps[index].T
            fits = ~self.full[index] & (w < width) & (h < height) & ((w <= beside) | (h <= above))
            yield from index[fits][:tries].tolist()
            tries -= int(fits.sum())
            if tries <= 0:
                return


def find_backgrounds(photos, sizes, rules: Rules):
    """Windows for Y in `photos`, y_per_x for each of X's source window `sizes` [(w, h), ...].

    Sizes are X's own, so that resampling leaves the same traces in both. The largest, hardest to place, go first; where
    one fits nowhere a smaller one drawn from X replaces it. Returns {file: [window, ...]} and Counter(wanted, exact,
    smaller, missing).
    """
    space = FreeSpace(photos, rules)
    wanted = round(len(sizes) * rules.y_per_x)
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size), reverse=True)
    counts = Counter(wanted=wanted, exact=0, smaller=0, missing=0)
    rng = np.random.default_rng([rules.seed, wanted])
    unplaced = []
    for index in range(wanted):
        size = int(index * len(ordered) / wanted)
        if space.place(ordered[size]):
            counts["exact"] += 1
        else:
            unplaced.append(size)
    for size in unplaced:
        # the largest of a few draws that fits; should none fit, down through X's sizes to the smallest
        draws = np.sort(rng.integers(size, len(ordered), 8))
        descent = np.linspace(size, len(ordered) - 1, 16).astype(int)
        placed = any(space.place(ordered[draw]) for draw in [*draws, *descent])
        counts["smaller" if placed else "missing"] += 1
    return {p.file: taken for p, taken in zip(space.photos, space.taken, strict=True) if taken}, counts


def name_hash(name: str, seed: int = 0) -> int:
    """A number below 2**63 that depends on nothing but its arguments."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1
