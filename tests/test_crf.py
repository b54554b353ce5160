"""The colour CRF against a literal version, pixel by pixel; what it does on drawings; what a box teaches."""
import argparse
import math

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

import crf
import train
from crops import demo
from data import Crops


def literal_refine(image, mask, inside, bins=16, prior=0.35, colour=1.0, pairwise=8.0, bias=0.0, rounds=2, sweeps=3):
    """One image, written out: c (3, h, w) colours as `crf.lab` gives them; mask, inside (h, w)."""
    c = crf.lab(image[None])[0].double().numpy()
    _, h, w = c.shape
    low, high = c.min((1, 2)), c.max((1, 2))
    cell = np.minimum(((c.transpose(1, 2, 0) - low) / (high - low) * bins).astype(int), bins - 1)
    q = mask * inside

    def histogram(weight):
        counts = np.zeros((bins,) * 3)
        for i in range(h):
            for j in range(w):
                counts[tuple(cell[i, j])] += weight[i, j]
        smooth = np.zeros_like(counts)
        for a in np.argwhere(counts > 0):
            grid = np.stack(np.meshgrid(*[np.arange(bins)] * 3, indexing="ij"), -1)
            smooth += counts[tuple(a)] * np.exp(-0.5 * ((grid - a) ** 2).sum(-1))
        return smooth / smooth.sum() + 0.01 / bins**3

    for _ in range(rounds):
        front, back = histogram(q), histogram(1 - q)
        for _ in range(sweeps):
            new = np.zeros_like(q)
            for i in range(h):
                for j in range(w):
                    m = min(max(mask[i, j], 0.02), 0.98)
                    ratio = math.log(front[tuple(cell[i, j])] / back[tuple(cell[i, j])])
                    u = prior * math.log(m / (1 - m)) + bias + colour * min(max(ratio, -3), 3)
                    total = norm = 0.0
                    for di in range(-2, 3):
                        for dj in range(-2, 3):
                            if di or dj:
                                near = math.exp(-(di * di + dj * dj) / (2 * 3**2))
                                norm += near
                                y, x = i + di, j + dj
                                if 0 <= y < h and 0 <= x < w:
                                    alike = math.exp(-((c[:, i, j] - c[:, y, x]) ** 2).sum() / (2 * 0.08**2))
                                    total += near * alike * (2 * q[y, x] - 1)
                    new[i, j] = inside[i, j] / (1 + math.exp(-(u + pairwise * total / norm)))
            q = new
    return q


def test_refine_equals_the_formulas():
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 7, 6, generator=rng) * 2 - 1
    mask = torch.rand(2, 1, 7, 6, generator=rng)
    inside = torch.zeros(2, 1, 7, 6)
    inside[0, :, 1:6, 1:5], inside[1, :, :, 2:] = 1, 1
    found = crf.refine(image, mask, inside, bias=0.5, rounds=2, sweeps=3)
    for k in range(2):
        expected = literal_refine(image[k], mask[k, 0].double().numpy(), inside[k, 0].double().numpy(), bias=0.5)
        assert np.allclose(found[k, 0].numpy(), expected, atol=1e-4)


def test_teach_starts_from_an_ellipse_or_from_a_mask():
    rng = torch.Generator().manual_seed(0)
    image, mask = torch.rand(1, 3, 7, 6, generator=rng) * 2 - 1, torch.rand(1, 1, 7, 6, generator=rng)
    inside = np.zeros((7, 6))
    inside[1:6, 1:5] = 1
    box = torch.tensor([[1 / 6, 1 / 7, 4 / 6, 5 / 7]])
    rows, columns = np.mgrid[:7, :6]
    ellipse = 0.9 * np.exp(-(((columns - 2.5) / 2) ** 2 + ((rows - 3) / 2.5) ** 2) / 0.9)
    for start, settings in ((None, {"pairwise": 4.0, "rounds": 6}), (mask, {"pairwise": 8.0, "rounds": 3})):
        begin = ellipse if start is None else mask[0, 0].double().numpy()
        expected = literal_refine(image[0], begin, inside, bias=0.3, sweeps=10, **settings)
        assert np.allclose(crf.teach(image, box, start, bias=0.3)[0, 0].numpy(), expected, atol=1e-4)


def test_lab_is_that_of_scikit_image():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    expected = (rgb2lab(pixels) + (0, 110, 110)) / (100, 220, 220)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    assert np.allclose(crf.lab(image)[0].permute(1, 2, 0).numpy(), expected, atol=1e-3)


def drawing(box):
    """A green disc on red, noisy; its mask."""
    rows, columns = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    disc = ((rows - 20) ** 2 + (columns - 26) ** 2 < 12**2).float()
    noise = torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(0))
    image = torch.stack([0.5 - disc, disc - 0.5, 0 * disc]) + 0.15 * noise
    return image[None].clamp(-1, 1), disc[None, None]


@pytest.mark.parametrize("box", [(14 / 48, 8 / 48, 24 / 48, 24 / 48), (10 / 48, 6 / 48, 30 / 48, 27 / 48)])
def test_a_box_alone_finds_what_has_its_own_colour(box):
    image, disc = drawing(box)
    q = crf.teach(image, torch.tensor([box]))
    found = q >= 0.5
    iou = (found & (disc == 1)).sum() / (found | (disc == 1)).sum()
    assert iou > 0.95 and not q.requires_grad
    left, top, width, height = (round(48 * v) for v in box)
    q[..., top : top + height, left : left + width] = 0
    assert q.eq(0).all()


def test_images_of_a_batch_do_not_touch_one_another():
    image, _ = drawing(None)
    images = torch.cat([image, image.flip(1), image.roll(7, -1)])
    boxes = torch.tensor([[0.2, 0.1, 0.6, 0.6], [0.3, 0.2, 0.5, 0.5], [0.4, 0.1, 0.6, 0.6]])
    together = crf.teach(images, boxes)
    for k in range(3):
        assert torch.allclose(together[k], crf.teach(images[k : k + 1], boxes[k : k + 1])[0], atol=1e-6)


def test_more_bias_makes_larger_masks():
    image, _ = drawing(None)
    box = torch.tensor([[0.1, 0.1, 0.8, 0.8]])
    areas = [crf.teach(image, box, bias=bias).mean().item() for bias in (-4.0, 0.0, 4.0)]
    assert areas[0] < areas[1] < areas[2]


def test_a_models_masks_are_refined_inside_the_exact_box():
    image, disc = drawing(None)
    box = torch.tensor([[10 / 48, 6 / 48, 30 / 48, 27 / 48]])
    rough = torch.nn.functional.avg_pool2d(disc, 9, 1, 4).roll((3, -2), (2, 3))
    found = crf.refine_box(image, rough, box, 0.5)
    assert torch.equal(found, crf.refine(image, rough, crf.box_inside(box, 48, 48), bias=0.5, **crf.FROM_MODEL))
    assert ((found >= 0.5) == (disc == 1)).float().mean() > 0.99 > ((rough >= 0.5) == (disc == 1)).float().mean()
    everywhere = crf.refine_box(image, rough, torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    assert torch.equal(everywhere, crf.refine(image, rough, torch.ones_like(rough), **crf.FROM_MODEL))
    coarse = torch.nn.functional.avg_pool2d(rough, 2)
    finer = crf.refine_box(image, coarse, box, 0.5)
    assert finer.shape == image[:, :1].shape and ((finer >= 0.5) == (disc == 1)).float().mean() > 0.99


def test_a_refined_mask_of_another_size_is_refused_image_by_image():
    """A bias that loses the object, one that takes the whole box, and one between; and a mask that is empty."""
    image, disc = drawing(None)
    image, disc, box = image.expand(4, -1, -1, -1), disc.repeat(4, 1, 1, 1), torch.tensor([[0.1, 0.1, 0.8, 0.8]] * 4)
    bias = torch.tensor([-30.0, 30.0, 0.0, 30.0]).view(4, 1, 1, 1)
    disc[3] = 0
    free = crf.refine(image, disc, crf.box_inside(box, 48, 48), bias=bias, **crf.FROM_MODEL)
    areas = [(m >= 0.5).sum((1, 2, 3)) for m in (disc, free)]
    assert areas[1][0] < areas[0][0] / 2 and areas[1][1] > 2 * areas[0][1] and areas[1][3] > 0
    found = crf.refine_box(image, disc, box, bias)
    assert torch.equal(found[[0, 1, 3]], disc[[0, 1, 3]]) and torch.equal(found[2], free[2])
    assert not torch.equal(found[2], disc[2])


def test_the_bias_of_a_run_is_chosen_once(tmp_path):
    demo.write_demo(tmp_path, counts={"train": {"objects": 4, "backgrounds": 2}})
    crops = Crops(tmp_path, "train", 32)
    boxes = torch.stack([crops.box(stem) for stem in crops.stems])
    x = torch.stack([crops.object(stem) for stem in crops.stems])
    for asked, bias in ((None, crf.choose_bias(x, boxes)), (3.0, 3.0)):
        args = argparse.Namespace(crf_bias=asked)
        teacher = train.box_teacher(args, crops)
        assert args.crf_bias == bias and torch.equal(teacher(x, boxes), crf.teach(x, boxes, bias=bias))
    crops.records.clear()
    args = argparse.Namespace(crf_bias=None)
    assert train.box_teacher(args, crops) is None and args.crf_bias is None


def test_a_box_that_is_not_known_teaches_nothing():
    image, _ = drawing(None)
    q = crf.teach(torch.cat([image, image]), torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.2, 0.1, 0.6, 0.6]]))
    assert q[0].eq(0.5).all() and not q[1].eq(0.5).all()


def test_coverage_by_hand():
    q = torch.zeros(1, 1, 8, 8)
    q[0, 0, 2:4, 3:6] = 1  # of the box's rows 2 to 5 two, of its columns 2 to 5 three
    assert crf.coverage(q, torch.tensor([[0.25, 0.25, 0.5, 0.5]])).item() == pytest.approx((2 / 4 + 3 / 4) / 2)


def test_a_set_whose_objects_fill_their_boxes_gets_a_bias():
    """Rounded rectangles that leave nothing of the box but its corners, of two colours, one of them the ground's."""
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    inside = ((rows - 15.5).abs() ** 6 + (columns - 15.5).abs() ** 6 < 11.5**6).float()
    stripes = inside * (rows % 8 < 5)
    rng = torch.Generator().manual_seed(0)
    blocks = stripes * torch.tensor([0.8, -0.5, 0.0]).view(3, 1, 1) - 0.2
    blocks = (blocks + 0.1 * torch.randn(4, 3, 32, 32, generator=rng)).clamp(-1, 1)
    box = torch.tensor([[4 / 32, 4 / 32, 24 / 32, 24 / 32]] * 4)
    assert crf.choose_bias(blocks, box, least=0.999) > crf.choose_bias(blocks, box, least=0.0) == 0
    image, _ = drawing(None)
    assert crf.choose_bias(image, torch.tensor([[14 / 48, 8 / 48, 24 / 48, 24 / 48]])) == 0
