"""Own photographs: geometry, upsampling, edge colours, seams, every kind of image.

Networks here have random weights, or are replaced by functions whose result is known. Long, since all sections draw
their images and build their models with the helpers at the top.
"""
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from baselines.nocycle import NoCycle
from baselines.supervised import Supervised
from crops import cutting
from crops import rules as crops
from images import UserError
from photos import detail, edit, files, jobs, matting
from seigan import SEIGAN

ROOT = Path(__file__).parent.parent
BOX = (30, 20, 40, 30)


def build(method=SEIGAN, rule=None, seed=0, bias=0.0):
    torch.manual_seed(seed)
    model = method(size=32, ngf=8, ndf=8, n_layers_D=3, seg_blocks=1, unet_downs=3, crop_rule=rule)
    torch.nn.init.constant_(model.G_seg.head.bias, bias)
    for unet in (model.G_inp.first, model.G_inp.second) if method is SEIGAN else ():
        torch.nn.init.normal_(unet.head.weight, 0.0, 0.02)  # which begins at 0, so that the fill is smooth
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    return build()


def picture(width=100, height=80, seed=0, mode="RGB"):
    """A smooth colourful picture with grain."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.BICUBIC)).astype(int)
    pixels += rng.integers(-6, 7, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def knows(model, mask, monkeypatch):
    """Let `model` segment with a true mask: (x0, y0, w, h of the window) -> (1, 1, S, S)."""
    monkeypatch.setattr(model, "segment", lambda x, box=None: mask)


# --- windows and crops ---


def test_crop_is_the_one_of_training():
    image = picture(200, 150)
    window = crops.object_window((60.5, 41.25, 37, 52), crops.Rules(fit="warp"))
    trained_on = cutting.cut_window(image, window, 32)
    assert np.abs(matting.crop(np.asarray(image), window, 32, 32).astype(int) - trained_on).max() <= 1


@pytest.mark.parametrize("rule, window", [
    (None, (30 + 20 - 25.6, 20 + 15 - 19.2, 51.2, 38.4)),
    ({"fit": "warp", "object_size": 64, "crop_size": 128}, (10, 5, 80, 60)),
    ({"fit": "keep", "object_size": 50, "crop_size": 100}, (10, -5, 80, 80)),
])
def test_window_and_box_follow_the_models_rule(rule, window, monkeypatch):
    model, seen = build(rule=rule), []
    monkeypatch.setattr(model, "segment", lambda x, box=None: seen.append(box) or torch.zeros(1, 1, 32, 32))
    part = edit._segment(model, np.asarray(picture()), BOX)
    assert part.window == pytest.approx(window)
    expected = [(30 - window[0]) / window[2], (20 - window[1]) / window[3], 40 / window[2], 30 / window[3]]
    assert seen[0] == pytest.approx(expected)


def test_crop_beyond_the_border_is_the_reflected_picture():
    pixels = np.asarray(picture(40, 30))
    padded = np.pad(pixels, ((50, 50), (50, 50), (0, 0)), mode="reflect")
    for window in [(-20, -10, 48, 36), (10, 5, 60, 40), (-31.5, 3.25, 100, 20)]:
        beyond = matting.crop(pixels, window, 24, 24)
        inside = matting.crop(padded, (window[0] + 50, window[1] + 50, *window[2:]), 24, 24)
        assert np.array_equal(beyond, inside), window


@pytest.mark.parametrize("n", [1, 2, 5])
def test_reflect(n):
    line = np.arange(n)
    expected = np.pad(line, (7, 9), mode="reflect") if n > 1 else np.zeros(17, int)
    assert np.array_equal(cutting.reflect(-7, n + 9, n), expected)


# --- masks at full resolution ---


def test_planes_against_a_literal_bilinear_loop():
    planes, window = np.random.default_rng(0).random((2, 4, 5)).astype(np.float32), (2.5, -3.25, 31, 23.5)
    out = matting.Planes(planes, window).at((2, 0, 34, 21))
    for x, y in [(2, 0), (3, 1), (17, 11), (33, 20), (20, 4)]:
        u = np.clip((x + 0.5 - window[0]) / window[2] * 5 - 0.5, 0, 4)
        v = np.clip((y + 0.5 - window[1]) / window[3] * 4 - 0.5, 0, 3)
        i, j = min(int(v), 2), min(int(u), 3)
        a, b = v - i, u - j
        p = planes
        upper, lower = ((1 - b) * p[:, k, j] + b * p[:, k, j + 1] for k in (i, i + 1))
        expected = (1 - a) * upper + a * lower
        assert out[y, x - 2] == pytest.approx(expected, abs=1e-5), (x, y)


def test_planes_do_not_depend_on_strips():
    planes, window, region = np.random.default_rng(0).random((1, 6, 6)), (3.5, 2.5, 50, 61), (3, 2, 54, 64)
    whole = matting.Planes(planes, window).at(region)
    parts = [matting.Planes(planes, window).at(s) for s in matting.strips(region, 7)]
    assert np.abs(np.concatenate(parts) - whole).max() < 1e-5


def test_guided_filter_against_a_literal_loop():
    rng = np.random.default_rng(0)
    guide, p, r, eps = rng.random((3, 9, 8)), rng.random((9, 8)), 2, 1e-3
    a, b = np.zeros((3, 9, 8)), np.zeros((9, 8))

    def around(i, j):
        return slice(max(i - r, 0), i + r + 1), slice(max(j - r, 0), j + r + 1)

    for i in range(9):
        for j in range(8):
            colours, values = guide[(slice(None), *around(i, j))].reshape(3, -1), p[around(i, j)].ravel()
            sigma = np.cov(colours, bias=True)
            covariance = (colours * values).mean(1) - colours.mean(1) * values.mean()
            a[:, i, j] = np.linalg.inv(sigma + eps * np.eye(3)) @ covariance
            b[i, j] = values.mean() - a[:, i, j] @ colours.mean(1)
    expected_a = np.array([[[a[(c, *around(i, j))].mean() for j in range(8)] for i in range(9)] for c in range(3)])
    expected_b = np.array([[b[around(i, j)].mean() for j in range(8)] for i in range(9)])
    found_a, found_b = matting.guided_filter(guide, p, r, eps)
    assert np.allclose(found_a, expected_a) and np.allclose(found_b, expected_b)


def disc(width, height, centre, radius, sharpness=4):
    """Coverage of a disc, (h, w) in [0, 1], averaged over subpixels."""
    n = sharpness
    y, x = (np.arange(s * n) + 0.5 for s in (height, width))
    inside = np.hypot(x[None] / n - centre[0], y[:, None] / n - centre[1]) < radius
    return inside.reshape(height, n, width, n).mean((1, 3))


def test_guided_upsampling_finds_the_edge_that_the_mask_misses():
    truth = disc(256, 256, (128, 128), 80)
    image = np.where(truth[..., None] > 0.5, [200, 60, 30], [40, 90, 160])
    image = image + np.random.default_rng(0).normal(0, 6, (256, 256, 3))
    image = image.clip(0, 255).astype(np.uint8)
    window = (0, 0, 256, 256)
    wrong = Image.fromarray(disc(256, 256, (131, 128), 82))  # off by up to 5 px, 8 px to a mask pixel
    wrong = np.asarray(wrong.resize((32, 32), Image.BILINEAR))
    alpha = matting.upsample_mask(image, wrong, window, (0, 0, 256, 256)) / 255
    plain = matting.Planes(wrong[None], window).at((0, 0, 256, 256))[..., 0]
    assert np.abs(alpha - truth).mean() < 0.4 * np.abs(plain - truth).mean()
    far = np.hypot(*np.mgrid[-128:128, -128:128]) > 105
    assert alpha[far].max() == 0, "a veil far from the object"


def literal_maximum(alpha, radius):
    rows, columns = alpha.shape
    return np.array([[alpha[max(i - radius, 0):i + radius + 1, max(j - radius, 0):j + radius + 1].max()
                      for j in range(columns)] for i in range(rows)])


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 13, 60, 10**20])
def test_grow_and_shrink_against_a_literal_maximum(radius):
    alpha = np.random.default_rng(0).integers(0, 256, (23, 17), dtype=np.uint8)
    alpha[np.random.default_rng(1).random((23, 17)) < 0.9] = 0
    expected = literal_maximum(alpha, radius)
    assert np.array_equal(matting.grow(alpha, radius), expected)
    assert np.array_equal(matting.grow(255 - alpha, -radius), 255 - expected)


@pytest.mark.parametrize("width", [1, 2, 6])
def test_strips_at_the_border_grow_without_gaps(width):
    across = np.zeros((3, 150), np.uint8)
    across[:, :width] = 255
    for radius in range(1, 61):
        for alpha in (across, across[:, ::-1], across.T, across.T[::-1]):
            assert np.array_equal(matting.grow(alpha, radius), literal_maximum(alpha, radius)), radius
            assert np.array_equal(matting.grow(255 - alpha, -radius), 255 - literal_maximum(alpha, radius)), radius


def test_feather_covers_the_mask_and_ends():
    alpha = np.zeros((60, 60), np.uint8)
    alpha[25:35, 20:30] = 255
    soft = matting.feather(alpha, 4).astype(int)
    assert (soft[alpha == 255] == 255).all()
    assert soft[30, 38] == soft[16, 25] == 0 and 0 < soft[30, 34] < 255
    assert (np.diff(soft[30, 29:45]) <= 0).all(), "falls monotonically"


# --- colours ---


def test_edge_colour_is_the_objects_own():
    """A red disc composited on green: the cut-out's soft edge must be red, not the mixture."""
    truth = disc(128, 128, (64, 64), 40)
    truth = Image.fromarray((truth * 255).astype(np.uint8)).resize((32, 32)).resize((128, 128), Image.BICUBIC)
    truth = np.asarray(truth)
    share = (truth / 255)[..., None]
    image = (share * [210, 30, 40] + (1 - share) * [20, 180, 60] + 0.5).astype(np.uint8)
    found = matting.foreground(image, truth, (0, 0, 128, 128), (0, 0, 128, 128), 128, 128)
    edge = (truth > 25) & (truth < 230)
    assert edge.sum() > 500
    assert np.abs(image[edge].astype(int) - [210, 30, 40]).mean() > 40, "the mixture is far from red"
    assert np.abs(found[edge].astype(int) - [210, 30, 40]).mean() < 8
    assert np.array_equal(found[truth == 255], image[truth == 255])
    assert (found[truth == 0] == 0).all()


def test_membrane_is_harmonic_and_keeps_what_is_known():
    y, x = np.mgrid[:40, :50] / 50
    field = np.stack([1 + 2 * x - 3 * y, x**2 - y**2]).astype(np.float32)  # both solve Laplace's equation
    known = np.ones((40, 50), bool)
    known[10:28, 12:40] = False
    found = matting.membrane(np.where(known, field, 99), known)
    assert np.array_equal(found[:, known], field[:, known])
    assert np.abs(found - field).max() < 0.03
    assert (matting.membrane(field, np.zeros_like(known)) == 0).all()


# --- cut, remove, paste ---


def test_cut_has_the_photographs_size_and_own_colours_inside(model, monkeypatch):
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    knows(model, mask, monkeypatch)
    image = picture(101, 77)
    result = edit.cut(model, image, BOX)
    assert result.image.mode == "RGBA" and result.mask.mode == "L"
    assert result.image.size == result.mask.size == (101, 77)
    alpha = np.asarray(result.mask)
    assert np.array_equal(np.asarray(result.image)[..., 3], alpha)
    assert (np.asarray(result.image)[alpha == 255][:, :3] == np.asarray(image)[alpha == 255]).all()
    assert (alpha == 255).any() and alpha[:5].max() == alpha[:, :5].max() == 0


def test_dilate_and_erode(model):
    areas = [np.asarray(edit.cut(model, picture(), BOX, dilate=d).mask).astype(float).sum() for d in (-3, 0, 3)]
    assert areas[0] < areas[1] < areas[2]


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("box", [BOX, (-10, 60, 50, 40), (70, -5, 45, 45)])
def test_nothing_outside_the_mask_is_touched(model, box, raw):
    rng = np.random.default_rng(0)  # pure noise: the least share of any coarse fill shows
    image, background = (Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
                         for shape in ((80, 100, 3), (90, 120, 3)))
    removal = edit.remove(model, image, box, raw=raw)
    touched = np.asarray(removal.mask) > 0
    changed = (np.asarray(removal.image) != np.asarray(image)).any(-1)
    assert changed.any() and not (changed & ~touched).any()
    window = crops.object_window(box, crops.Rules())
    outside = np.ones_like(touched)
    outside[matting.inside(matting.hull(window, *image.size), (0, 0))] = False
    assert outside.any() and not (touched & outside).any()
    pasting = edit.paste(model, image, box, background, (50, 40), raw=raw)
    mask = np.asarray(pasting.mask) > 0
    for result in (pasting.coarse,) if raw else (pasting.coarse, pasting.image):
        assert not ((np.asarray(result) != np.asarray(background)).any(-1) & ~mask).any()


def test_inside_the_crop_only_the_hole_and_its_rim_change(model, monkeypatch):
    small = torch.zeros(1, 1, 32, 32)
    small[..., 14:18, 14:18] = 1
    knows(model, small, monkeypatch)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8))
    result, mask = edit.remove(model, image, BOX)
    untouched = np.asarray(mask) == 0
    window = np.zeros_like(untouched)
    window[16:54, 25:75] = True  # 51.2 x 38.4 px around (50, 35)
    assert (untouched & window).sum() > 0.5 * window.sum(), "else this test sees nothing"
    changed = (np.asarray(result) != np.asarray(image)).any(-1)
    assert changed[35, 50] and not (changed & untouched).any()


def test_remove_leaves_no_seam(model, monkeypatch):
    """A network that shifts all colours: the fill must meet the photograph, not carry the shift into the hole."""
    y, x = np.mgrid[:160, :200]
    pixels = np.stack([40 + x * 0.6, 60 + y * 0.7, 180 - x * 0.3], -1).astype(np.uint8)
    hole = torch.zeros(1, 1, 32, 32)
    hole[..., 11:21, 11:21] = 1
    knows(model, hole, monkeypatch)
    image = Image.fromarray(pixels)
    true = edit._segment(model, pixels, (60, 40, 80, 70)).x
    monkeypatch.setattr(model.G_inp, "forward", lambda cut, m, noise: (0.9 * true + 0.1, None))
    result = np.asarray(edit.remove(model, image, (60, 40, 80, 70)).image).astype(int)
    assert np.abs(result - pixels).max() <= 3
    raw = np.asarray(edit.remove(model, image, (60, 40, 80, 70), raw=True).image).astype(int)
    assert np.abs(raw - pixels).max() > 8, "raw shows what the network does"


def test_remove_shows_the_network_the_hole_and_fills_it(model, monkeypatch):
    mask, seen = torch.zeros(1, 1, 32, 32), []
    mask[..., 12:20, 12:20] = 1
    knows(model, mask, monkeypatch)
    monkeypatch.setattr(model.G_inp, "forward",
                        lambda cut, m, noise: seen.append(cut) or (torch.where(cut == 0, 0.5, cut), None))
    image = picture(100, 80)
    result = np.asarray(edit.remove(model, image, BOX, raw=True).image)
    assert (seen[0][..., 12:20, 12:20] == 0).all(), "the object must not reach G_inp"
    assert (seen[0][..., :4, :] != 0).any()
    middle = result[35 - 4:35 + 4, 50 - 5:50 + 5]
    assert np.abs(middle.astype(int) - round(0.75 * 255)).max() <= 1


def test_results_are_the_models_own_at_its_own_size(monkeypatch):
    """On a crop of the networks' size nothing is resampled: edit.* must agree with SEIGAN.* there."""
    model = build(rule={"fit": "warp", "object_size": 32, "crop_size": 32}, bias=-1.0)
    image, background = picture(32, 32), picture(32, 32, seed=5)
    x, y = (torch.from_numpy(np.array(i)).permute(2, 0, 1)[None].float() / 127.5 - 1 for i in (image, background))
    part = edit._segment(model, np.asarray(image), (0, 0, 32, 32), refine=False)
    assert torch.equal(part.x, x) and torch.equal(part.m, model.segment(x, (0.0, 0.0, 1.0, 1.0)))
    z = part.m * x + (1 - part.m) * y
    pasted = edit.paste(model, image, (0, 0, 32, 32), background, at=(0, 0, 32, 32), seed=3, refine=False)
    y_hat = model.paste(x, y, (0.0, 0.0, 1.0, 1.0), seed=3)
    assert 127.5 * (y_hat - z).abs().max() > 5  # else what follows shows nothing
    change = ((y_hat - z)[0].permute(1, 2, 0).numpy() * 127.5) * np.asarray(pasted.mask)[..., None] / 255
    expected = np.clip(np.asarray(pasted.coarse) + change, 0, 255)
    assert np.abs(np.asarray(pasted.image) - expected).max() <= 1.5
    monkeypatch.setattr(model, "grow_hole", 0)  # `edit` grows the hole at the photograph's resolution
    found = edit._inpaint(model, part, np.zeros((32, 32), np.uint8), 3, raw=True)
    fill, change = (matting.Planes(planes, part.window) for planes in found[:2])
    x_hat = (model.remove(x, (0.0, 0.0, 1.0, 1.0), seed=3)[0].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(fill.at((0, 0, 32, 32)) - x_hat).max() < 1e-2
    assert np.abs(change.at((0, 0, 32, 32)) + np.asarray(image) - x_hat).max() < 1e-2


def test_paste_puts_the_object_where_it_was_asked(model, monkeypatch):
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 10:22, 10:22] = 1
    knows(model, mask, monkeypatch)
    monkeypatch.setattr(model.G_enh, "forward", lambda z, noise: z)
    image = picture()
    background = Image.new("RGB", (150, 110), (0, 0, 0))
    result = edit.paste(model, image, BOX, background, (70, 50))
    inner = np.asarray(image)[32:39, 44:57]  # the middle of the object
    assert np.array_equal(np.asarray(result.coarse)[32 + 30:39 + 30, 44 + 40:57 + 40], inner), "moved, not resampled"
    assert np.abs(np.asarray(result.image).astype(int) - np.asarray(result.coarse)).max() <= 1
    doubled = edit.paste(model, image, BOX, background, (20, 10, 80, 60))
    rows, columns = np.nonzero(np.asarray(doubled.mask) > 127)
    once_rows, once_columns = np.nonzero(np.asarray(result.mask) > 127)
    assert np.ptp(rows) + 1 == pytest.approx(2 * (np.ptp(once_rows) + 1), abs=2)
    assert np.ptp(columns) + 1 == pytest.approx(2 * (np.ptp(once_columns) + 1), abs=2)
    assert (rows.mean() - 10 - 30, columns.mean() - 20 - 40) == pytest.approx((0, 0), abs=1.5), "centred in its box"
    middle = edit.paste(model, image, BOX, background)
    rows, columns = np.nonzero(np.asarray(middle.mask) > 127)
    assert (rows.mean(), columns.mean()) == pytest.approx((54.5, 74.5), abs=1.5)
    over = edit.paste(model, image, BOX, background, (-20, 95))
    assert over.image.size == background.size and np.asarray(over.mask)[-5:].any()


def test_repeatable_and_seeded(model):
    image, background = picture(), picture(seed=1)
    state = torch.get_rng_state()
    first = edit.paste(model, image, BOX, background, (40, 30), seed=1)
    again = edit.paste(model, image, BOX, background, (40, 30), seed=1)
    other = edit.paste(model, image, BOX, background, (40, 30), seed=2)
    assert first.image.tobytes() == again.image.tobytes() != other.image.tobytes()
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not ours"
    removed = [edit.remove(model, image, BOX, seed=s).image.tobytes() for s in (1, 1, 2)]
    assert removed[0] == removed[1] != removed[2]


def test_inputs_are_not_changed(model):
    image, background = picture(mode="RGBA"), picture(seed=1)
    before = image.tobytes(), background.tobytes()
    edit.cut(model, image, BOX), edit.remove(model, image, BOX), edit.paste(model, image, BOX, background)
    assert (image.tobytes(), background.tobytes()) == before


@pytest.mark.parametrize("box, text", [
    ((200, 10, 20, 20), "outside"), ((10, 80, 5, 5), "outside"), ((-30, 0, 30, 10), "outside"),
    ((0, 0, 0, 5), "above 0"), ((0, 0, -4, 5), "above 0"), ((0, 0, float("nan"), 5), "above 0"),
    ((0, 0, 5), "x, y, width"),
])
def test_impossible_boxes(model, box, text):
    with pytest.raises(UserError, match=text) as error:
        edit.cut(model, picture(), box)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("box", [(50, 40, 1, 1), (0, 0, 1, 1), (99, 79, 1, 1), (0, 0, 100, 80), (-200, -200, 600, 600),
                                 (99.5, 0, 30, 3), (10, 0, 1, 80)])
def test_extreme_boxes(model, box):
    image = picture()
    assert edit.cut(model, image, box).image.size == (100, 80)
    assert edit.remove(model, image, box).image.size == (100, 80)
    assert edit.paste(model, image, box, picture(70, 60), (5, 5)).image.size == (70, 60)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (97, 1)])
def test_odd_pictures(model, size):
    assert edit.remove(model, picture(*size), (0, 0, *size)).image.size == size


@pytest.mark.parametrize("method", [NoCycle, Supervised])
def test_models_without_g_inp_cannot_remove(method):
    with pytest.raises(UserError, match=f"{method.__name__} has no G_inp") as error:
        edit.remove(build(method), picture(), BOX)
    assert "\n" not in str(error.value)


def test_a_paste_without_g_enh_is_z():
    result = edit.paste(build(Supervised), picture(), BOX, picture(seed=1), (20, 20))
    assert np.array_equal(np.asarray(result.image), np.asarray(result.coarse))
    result = edit.paste(build(NoCycle), picture(), BOX, picture(seed=1), (20, 20))
    assert not np.array_equal(np.asarray(result.image), np.asarray(result.coarse))


# --- copied detail ---


def variance(pixels, side=8):
    """Mean variance within squares of `side` pixels of (h, w, 3)."""
    rows, columns = (n // side * side for n in pixels.shape[:2])
    blocks = pixels[:rows, :columns].astype(float).reshape(rows // side, side, columns // side, side, 3)
    return blocks.var((1, 3)).mean()


def textures():
    """{name: (600, 800, 3) uint8}: fine noise, stripes 6 px apart, a clear sky with a camera's noise."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:600, :800]
    made = {"noise": [160, 120, 90] + rng.normal(0, 20, (600, 800, 1)),
            "stripes": np.stack([128 + 60 * np.sin((x + 0.5 * y) * np.pi / 3)] * 3, -1),
            "sky": np.stack([90 + y / 10, 140 + y / 12, 220 - y / 20], -1) + rng.normal(0, 1, (600, 800, 1))}
    return {name: pixels.clip(0, 255).astype(np.uint8) for name, pixels in made.items()}


@pytest.mark.parametrize("name", ["noise", "stripes", "sky"])
def test_a_fill_gets_the_detail_of_its_surroundings(model, monkeypatch, name):
    pixels, mask = textures()[name], torch.zeros(1, 1, 32, 32)
    mask[..., 10:22, 10:22] = 1
    knows(model, mask, monkeypatch)
    monkeypatch.setattr(model, "inpaint", lambda cut, *_: torch.nn.functional.avg_pool2d(cut, 15, 1, 7))
    image, box = Image.fromarray(pixels), (250, 150, 300, 300)
    plain, found = (edit.remove(model, image, box, detail=detail, refine=False) for detail in (False, True))
    middle = (slice(240, 360), slice(340, 460))
    assert (np.asarray(found.mask)[middle] == 255).all() and found.mask == plain.mask
    around, before, now = variance(pixels[:100]), *(variance(np.asarray(i.image)[middle]) for i in (plain, found))
    assert before < 0.2 * around and around / 2 < now < 2 * around or name == "sky" and now < 2 * around < 5
    untouched = np.asarray(found.mask) == 0
    assert untouched.any() and np.array_equal(np.asarray(found.image)[untouched], pixels[untouched])
    again = edit.remove(model, image, box, refine=False)
    assert again.image.tobytes() == found.image.tobytes() != plain.image.tobytes()


def test_a_smooth_fill_between_texture_and_sky_takes_each_from_its_own():
    rng = np.random.default_rng(0)
    pixels = np.full((400, 400, 3), (120, 170, 230), np.uint8)
    pixels[200:] = (90 + rng.normal(0, 25, (200, 400, 1))).clip(0, 255)
    window, known = (0, 0, 400, 400), np.ones((64, 64), bool)
    known[20:44, 20:44] = False
    cells = matting.crop(pixels, window, 64, 64).transpose(2, 0, 1).astype(np.float32)
    cells[:, ~known] = np.where(np.arange(20, 44) < 32, [[120.0], [170.0], [230.0]], 90.0).repeat(24, 1)
    found = detail.copied(pixels, cells, known, window, (0, 0, 400, 400))
    assert np.abs(found[140:165, 140:260]).max() < 1 and found[220:260, 140:260].std() > 12
    assert not found[:100].any() and not found[:, :100].any()
    nothing = detail.copied(pixels, cells, np.zeros_like(known), window, (0, 0, 400, 400))
    assert not nothing.any(), "where nothing is known"


def test_detail_never_shows_the_object():
    """A red square with an edge of its own in a hole; the surroundings are grey."""
    pixels = (np.full((300, 300, 3), 120) + np.random.default_rng(0).integers(-20, 21, (300, 300, 1))).astype(np.uint8)
    known, window = np.ones((64, 64), bool), (-20.5, 10.25, 310, 280)
    known[16:48, 16:48] = False
    pixels[85:220, 62:205] = (255, 0, 0)
    fill = np.full((3, 64, 64), 120, np.float32)
    found = detail.copied(pixels, fill, known, window, matting.hull(window, 300, 300))
    assert found.std() > 5 and np.abs(found - found.mean(-1, keepdims=True)).max() < 2


# --- every kind of photograph ---


def stored(image, tmp_path, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def kinds(tmp_path):
    """{kind: (path, mode after normalise, reference RGB or None)}"""
    image, made = picture(), {}
    made["rgb.png"] = stored(image, tmp_path, "rgb.png"), "RGB", image
    made["grey.png"] = stored(image.convert("L"), tmp_path, "grey.png"), "L", image.convert("L").convert("RGB")
    palette = image.quantize(32)
    made["palette.png"] = stored(palette, tmp_path, "palette.png"), "RGB", palette.convert("RGB")
    clear = stored(palette, tmp_path, "clear.gif", transparency=3)
    made["clear.gif"] = clear, "RGBA", None
    made["alpha.png"] = stored(picture(mode="RGBA"), tmp_path, "alpha.png"), "RGBA", image
    made["grey_alpha.png"] = stored(picture(mode="LA"), tmp_path, "grey_alpha.png"), "LA", None
    made["one_bit.png"] = stored(image.convert("1"), tmp_path, "one_bit.png"), "L", image.convert("1").convert("RGB")
    made["cmyk.jpg"] = stored(image.convert("CMYK"), tmp_path, "cmyk.jpg", quality=100), "RGB", None
    values = np.asarray(image.convert("L")).astype(np.uint16) * 257
    made["16bit.png"] = stored(Image.fromarray(values), tmp_path, "16bit.png"), "L", image.convert("L").convert("RGB")
    deep = stored(Image.fromarray(values.astype(np.int32)), tmp_path, "32bit.tif")
    made["32bit.tif"] = deep, "L", image.convert("L").convert("RGB")
    made["lossless.webp"] = stored(image, tmp_path, "lossless.webp", lossless=True), "RGB", image
    frames = [picture(seed=s) for s in (1, 2)]
    for name in ("moving.gif", "moving.webp", "moving.png"):
        made[name] = stored(image, tmp_path, name, save_all=True, append_images=frames,
                            **({"lossless": True} if "webp" in name else {})), None, None if "gif" in name else image
    return made


@pytest.fixture
def all_kinds(tmp_path):
    return kinds(tmp_path)


def test_every_kind_of_photograph_comes_in(all_kinds, model, tmp_path):
    for name, (path, mode, reference) in all_kinds.items():
        image = files.open_photo(path)
        assert mode in (None, image.mode), name
        if reference is not None:
            assert np.array_equal(files.split(image)[0], np.asarray(reference)), name
        removed = edit.remove(model, image, BOX)
        removal, untouched = removed.image, np.asarray(removed.mask) == 0
        assert removal.mode == image.mode and removal.size == image.size, name
        assert np.array_equal(np.asarray(removal)[untouched], np.asarray(image)[untouched]), name
        assert edit.cut(model, image, BOX).image.mode == "RGBA", name
        out = tmp_path / "out.png"
        files.save(removal, str(out))
        assert np.array_equal(np.asarray(Image.open(out)), np.asarray(removal)), name
        edit.paste(model, picture(), BOX, image, (10, 10))
        edit.paste(model, image, BOX, picture(), (10, 10))


def test_alpha_limits_the_cut_out_and_lets_the_paste_through(model, monkeypatch):
    knows(model, torch.ones(1, 1, 32, 32), monkeypatch)
    monkeypatch.setattr(model.G_enh, "forward", lambda z, noise: z)
    image = picture(mode="RGBA")
    alpha = np.zeros((80, 100), np.uint8)
    alpha[:, 50:] = 128
    image.putalpha(Image.fromarray(alpha))
    mask = np.asarray(edit.cut(model, image, BOX).mask)
    assert mask[35, 45] == 0 and mask[35, 60] == 128
    clear = Image.new("RGBA", (100, 80), (9, 9, 9, 0))
    pasted = np.asarray(edit.paste(model, picture(), BOX, clear, BOX[:2]).image)
    assert pasted[35, 50, 3] == 255 and pasted[2, 2, 3] == 0
    difference = pasted[35, 50, :3].astype(int) - np.asarray(picture())[35, 50]
    assert np.abs(difference).max() <= 1, "nothing of the clear background's colour"


def test_half_an_object_on_a_clear_background_keeps_its_colour(model, monkeypatch):
    knows(model, torch.full((1, 1, 32, 32), 0.5), monkeypatch)
    image, clear = Image.new("RGB", (100, 80), (10, 200, 30)), Image.new("RGBA", (100, 80), (255, 0, 255, 0))
    coarse = np.asarray(edit.paste(model, image, BOX, clear, BOX[:2]).coarse)
    assert 100 < coarse[35, 50, 3] < 156
    assert np.abs(coarse[35, 50, :3].astype(int) - [10, 200, 30]).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation, tmp_path, model):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    path = stored(picture(60, 40), tmp_path, "turned.png", exif=exif)
    with Image.open(path) as opened:
        upright = ImageOps.exif_transpose(opened)
    image = files.open_photo(path)
    assert np.array_equal(np.asarray(image), np.asarray(upright))
    result = edit.remove(model, Image.open(path), (10, 10, 12, 15)).image
    assert result.size == upright.size
    files.save(result, str(tmp_path / "out.png"))
    with Image.open(tmp_path / "out.png") as out:
        assert out.getexif().get(0x0112, 1) == 1 and out.getexif()[0x010F] == "Maker"
    # a box of an annotation of the stored pixels lands on the same content
    stamp = np.zeros((40, 60), np.uint8)
    stamp[5:12, 20:50] = 255
    stamped = stored(Image.fromarray(stamp), tmp_path, "stamp.png", exif=exif)
    turned = np.asarray(ImageOps.exif_transpose(Image.open(stamped)))
    x, y, w, h = jobs.turn((20, 5, 30, 7), orientation, (60, 40))
    rows, columns = np.nonzero(turned)
    assert (x, y, x + w, y + h) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_exif_that_shows_the_old_picture_is_dropped(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769)[0x927C] = b"preview of the old picture"
    exif.get_ifd(0x8769)[0x9003] = "2020:01:02 03:04:05"
    exif.get_ifd(0x8825)[1] = "N"
    path = stored(picture(), tmp_path, "e.jpg", exif=exif)
    files.save(files.open_photo(path), str(tmp_path / "o.png"))
    with Image.open(tmp_path / "o.png") as out:
        kept = out.getexif()
        assert dict(kept.get_ifd(0x8769)) == {0x9003: "2020:01:02 03:04:05"} and kept.get_ifd(0x8825)[1] == "N"
    assert b"preview" not in (tmp_path / "o.png").read_bytes()
    assert b"preview" in path.read_bytes()


def test_icc_profile_is_kept_or_converted(tmp_path, model):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = stored(picture(), tmp_path, "icc.png", icc_profile=profile)
    assert edit.remove(model, files.open_photo(path), BOX).image.info["icc_profile"] == profile
    assert edit.cut(model, files.open_photo(path), BOX).image.info["icc_profile"] == profile
    grey = stored(picture(mode="L"), tmp_path, "grey.png", icc_profile=profile)
    assert "icc_profile" not in edit.cut(model, files.open_photo(grey), BOX).image.info, "not of its colours"
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    assert files.to_profile(picture(), lab).tobytes() == picture().tobytes(), "no RGB profile: left alone"
    same = files.to_profile(files.open_photo(path), None)
    assert np.abs(np.asarray(same).astype(int) - np.asarray(picture())).max() <= 2


def swapped_profile():
    """sRGB with the red and the blue primary exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    at = {bytes(data[132 + 12 * i:136 + 12 * i]): 136 + 12 * i for i in range(count)}
    red, blue = at[b"rXYZ"], at[b"bXYZ"]
    data[red:red + 8], data[blue:blue + 8] = data[blue:blue + 8], data[red:red + 8]
    return bytes(data)


def test_colours_are_converted_to_the_backgrounds_profile(model):
    image = Image.new("RGBA", (60, 50), (220, 30, 60, 200))
    converted = files.to_profile(image, swapped_profile())
    assert np.abs(np.asarray(converted)[0, 0].astype(int) - [60, 30, 220, 200]).max() <= 3
    assert converted.info["icc_profile"] == swapped_profile()
    assert image.getpixel((0, 0)) == (220, 30, 60, 200)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_broken_files_give_one_line(content, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(OSError, match="broken.png") as error:
        files.open_photo(path)
    assert "\n" not in str(error.value)
    whole = stored(picture(), tmp_path, "cut_off.jpg").read_bytes()
    (tmp_path / "cut_off.jpg").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(OSError, match="cut_off.jpg"):
        files.open_photo(tmp_path / "cut_off.jpg")


def test_what_a_format_cannot_hold_leaves_no_file(tmp_path):
    for image, name, text in ((picture(mode="RGBA"), "a.jpg", "no transparency"),
                              (Image.new("RGB", (17000, 2)), "a.webp", "another --format")):
        with pytest.raises(UserError, match=text):
            files.save(image, str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


# --- detection ---


class Stub(torch.nn.Module):
    """A detector that finds what it is told, in torchvision's interface."""

    def __init__(self, boxes, labels, scores):
        super().__init__()
        self.found = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels),
                      "scores": torch.tensor(scores)}

    def forward(self, images):
        assert images[0].shape[0] == 3 and images[0].max() <= 1
        return [self.found]


def test_detect_with_a_stub():
    stub = Stub([[1.0, 2, 11, 32], [5, 5, 9, 9], [0, 0, 4, 4]], [18, 17, 18], [0.85, 0.95, 0.4])
    assert [b[:4] for b in edit.detect(stub, picture(), 0.8)] == [[5, 5, 4, 4], [1, 2, 10, 30]]
    assert [b[4] for b in edit.detect(stub, picture(mode="LA"), 0.1)] == ["cat", "dog", "dog"]
    assert len(edit.detect(stub, picture(), 0.1, classes=("dog",))) == 2


def test_detect_with_torchvisions_architecture():
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    torch.manual_seed(0)
    detector = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, min_size=64, max_size=96,
                                       box_score_thresh=0.0).eval()
    found = edit.detect(detector, picture(), score=0.0)
    assert all(len(box) == 6 and 0 <= box[0] and box[0] + box[2] <= 100.01 and 0 <= box[5] <= 1 for box in found)
