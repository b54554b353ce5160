"""Masks and images scored: hand-computed cases, and agreement with scikit-learn, scikit-image and SciPy.

Long, since each measure has its slow reference here.
"""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import models

from data import Crops
from evaluation import evaluate as evaluation
from evaluation import image_scores as quality
from evaluation import mask_scores as metrics
from evaluation.mask_scores import Truth
from images import UserError

WHY = "the comparison with an independent implementation needs "


def square(height, width, top, left, side):
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + side, left : left + side] = 255
    return mask


def whole(mask):
    """A truth whose crop shows exactly the mask."""
    return Truth(mask, (0.0, 0.0, float(mask.shape[1]), float(mask.shape[0])))


def soft(mask):
    return (mask == 255).astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# --- at crop size ---


def iou(mask, truth):
    """Of each pair of (N, 1, H, W) of 0 and 1."""
    both, either = (mask * truth).sum((1, 2, 3)), torch.maximum(mask, truth).sum((1, 2, 3))
    return both.double() / either


def test_mean_mask_is_the_best_of_its_thresholds_by_brute_force():
    rng = torch.Generator().manual_seed(0)
    pull = torch.linspace(1, -1, 9)[:, None] + torch.zeros(9, 7)
    masks = (torch.randn(30, 1, 9, 7, generator=rng) + pull > 0).float()
    found = metrics.mean_mask(masks)
    mean = masks.mean(0, keepdim=True)
    best = max(iou((mean >= t / 100).float().expand_as(masks), masks).mean() for t in range(10, 91, 5))
    assert found.shape == (1, 1, 9, 7) and set(found.unique().tolist()) == {0, 1}
    assert iou(found.expand_as(masks), masks).mean() == pytest.approx(best.item(), abs=1e-12)


def test_void_counts_neither_in_the_mean_mask_nor_in_its_score():
    """Of four masks one is void on the left: there the mean is that of the others, and no threshold gains by it."""
    masks = torch.zeros(4, 1, 2, 4)
    masks[:2] = 1
    masks[3, :, :, :2] = 0.5  # the means are 2/3 left and 1/2 right
    only_left = torch.zeros(1, 1, 2, 4)
    only_left[..., :2] = 1
    assert metrics.mean_mask(masks.half())[0, 0].tolist() == [[1, 1, 1, 1]] * 2
    masks[1, :, :, 2:] = 0  # 2/3 and 1/4: full scores (1 + 1/2 + 0 + 0) / 4, the left half (1/2 + 1 + 0 + 1) / 4
    assert torch.equal(metrics.mean_mask(masks), only_left)
    everywhere = torch.full((3, 1, 2, 2), 0.5)
    assert metrics.mean_mask(everywhere).isfinite().all()


# --- at source resolution ---


@pytest.mark.parametrize("shape", [(31, 47), (64, 64), (97, 13), (200, 300)])
def test_resample_is_bilinear_interpolation(rng, shape):
    mask = rng.random((16, 16), np.float32)
    expected = F.interpolate(torch.from_numpy(mask)[None, None], shape, mode="bilinear", align_corners=False)[0, 0]
    assert np.abs(metrics.resample(mask, whole(np.zeros(shape, np.uint8))) - expected.numpy()).max() < 1e-5


def test_window_between_pixels_counted_by_hand():
    # The crop shows x from 3.25 to 54.55 and y from 7.5 to 41.2; its hull is columns 3..54, rows 7..41. Column c's
    # centre is (c + 3.5 - 3.25) / 51.3: all 52 lie inside. Row r's is r / 33.7: the last, 34 / 33.7, lies outside.
    truth = Truth(np.zeros((35, 52), np.uint8), (3.25, 7.5, 51.3, 33.7), (3, 7))
    truth.mask[:, :20] = 255
    mask = np.zeros((8, 8), np.float32)
    mask[:, :4] = 1  # interpolated, ½ is crossed at the middle, 25.65: columns 0..25
    figures = metrics.score(mask, truth, box=(0.0, 0.0, 0.5, 0.5))
    assert truth.scored.sum() == 34 * 52 and not truth.scored[34].any()
    assert figures["counts"].tolist() == [34 * 20, 34 * 6, 0, 34 * 26]
    assert figures["iou"] == pytest.approx(20 / 26) and figures["recall"] == 1
    assert figures["full_mask"] == pytest.approx(20 / 52)
    # the box ends at 25.65 and, 0.5 * 33.7 = 16.85, after row 16: 17 rows of 26 columns
    assert figures["box_mask"] == pytest.approx(17 * 20 / (34 * 20 + 17 * 6))
    assert math.isnan(figures["mean_mask"])


@pytest.mark.parametrize("shape", [(61, 43), (128, 128), (37, 211)])
def test_perfect_empty_and_shifted_at_odd_sizes(shape):
    truth = whole(square(*shape, 8, 9, 20))
    perfect = metrics.score(soft(truth.mask), truth, mean_mask=soft(truth.mask), refined=soft(truth.mask))
    assert all(perfect[name] == 1 for name in (*metrics.RATIOS, "boundary_f", "mean_mask", "iou_refined"))
    empty = metrics.score(np.zeros((8, 8), np.float32), truth)
    assert [empty[n] for n in ("iou", "dice", "precision", "recall", "boundary_f")] == [0] * 5
    shifted = metrics.score(soft(square(*shape, 8, 14, 20)), truth)
    assert shifted["iou"] == pytest.approx(300 / 500) and shifted["dice"] == pytest.approx(0.75)
    both = metrics.score(np.zeros((8, 8), np.float32), whole(np.zeros(shape, np.uint8)))
    assert both["iou"] == both["dice"] == both["boundary_f"] == 1


def test_stretched_crop_is_compared_in_source_shape():
    # a disc in the source is an ellipse in the square crop; stretched back it must fit
    y, x = np.mgrid[:90, :240]
    disc = np.where((x - 119.5) ** 2 + (y - 44.5) ** 2 < 35**2, 255, 0).astype(np.uint8)
    crop = F.interpolate(torch.from_numpy(soft(disc))[None, None], (128, 128), mode="bilinear", antialias=True)
    assert metrics.score(crop[0, 0].numpy(), whole(disc))["iou"] > 0.97


def test_void_is_not_scored():
    truth = whole(square(20, 20, 0, 0, 10))
    truth.mask[:, 10:] = metrics.VOID
    figures = metrics.score(np.ones((4, 4), np.float32), truth)
    assert figures["counts"].tolist() == [100, 100, 0, 0] and figures["full_mask"] == 0.5


def test_boundary_tolerance_by_hand():
    # 120 x 160: diagonal 200, tolerance 0.008 * 200 = 1.6, so 2 px
    true = square(120, 160, 20, 20, 40) == 255
    scored = np.ones_like(true)
    outcomes = [metrics.boundary_f(np.roll(true, (d, d), (0, 1)), true, scored) for d in (0, 2, 60)]
    assert outcomes == [1, 1, 0]
    off_by_3 = metrics.boundary_f(np.roll(true, 3, 1), true, scored)
    # by brute force: the share of one outline within 2 px, along both axes, of the other; equal for both, by symmetry
    edge, other = metrics.boundary(true), metrics.boundary(np.roll(true, 3, 1))
    near = sum(np.abs(np.argwhere(other) - p).max(1).min() <= 2 for p in np.argwhere(edge)) / edge.sum()
    assert off_by_3 == pytest.approx(near) and 0.4 < near < 0.7


def test_agreement_with_scikit_learn(rng):
    sk = pytest.importorskip("sklearn.metrics", reason=WHY + "scikit-learn")
    for shape in [(33, 57), (128, 96), (201, 44)]:
        mask = rng.random((24, 24), np.float32)
        truth = Truth(rng.choice([0, 128, 255], shape, p=[0.5, 0.1, 0.4]).astype(np.uint8),
                      (0.3, 0.6, shape[1] - 1.1, shape[0] - 1.4))
        figures = metrics.score(mask, truth)
        y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
        (x0, y0, w, h), keep = truth.window, truth.mask != 128
        keep &= (x >= x0) & (x <= x0 + w) & (y >= y0) & (y <= y0 + h)
        grid = torch.from_numpy(np.stack([(x - x0) / w, (y - y0) / h], -1)[None] * 2 - 1).float()
        sampled = F.grid_sample(torch.from_numpy(mask)[None, None], grid, padding_mode="border", align_corners=False)
        p, t = (sampled[0, 0].numpy() >= 0.5)[keep], (truth.mask == 255)[keep]
        expected = {"iou": sk.jaccard_score(t, p), "dice": sk.f1_score(t, p), "recall": sk.recall_score(t, p),
                    "precision": sk.precision_score(t, p), "pixel_accuracy": sk.accuracy_score(t, p)}
        assert {k: figures[k] for k in expected} == pytest.approx(expected, abs=1e-6)


def test_outline_and_dilation_agree_with_scikit_image(rng):
    pytest.importorskip("skimage", reason=WHY + "scikit-image")
    from skimage.morphology import dilation
    from skimage.segmentation import find_boundaries
    for shape in [(33, 57), (90, 40)]:
        blobs = metrics.resample(rng.random((8, 8), np.float32), whole(np.zeros(shape, np.uint8))) > 0.5
        assert (metrics.boundary(blobs) == find_boundaries(blobs, connectivity=1, mode="inner")).all()
        for radius in (0, 1, 2, 3, 5, 14, 100):
            points = rng.random(shape) < 0.01
            expected = dilation(points, np.ones((2 * radius + 1,) * 2))
            assert (metrics.dilate(points, radius) == expected).all(), radius


# --- from the files ---


def empty_crops(folder, **counts):
    """`Crops` of 8 px with so many files of each kind, of which only the masks may be opened."""
    for kind, count in counts.items():
        (folder / "test" / kind).mkdir(parents=True)
        for i in range(count):
            (folder / "test" / kind / f"{i:05d}.png").touch()
    return Crops(folder, "test", 8)


def test_pairs_use_all_backgrounds_and_do_not_follow_the_names(tmp_path):
    """Object i met background i mod n; names that follow one another are often of one photograph."""
    crops = empty_crops(tmp_path, objects=90, backgrounds=40)
    pairs = evaluation.pair_up(crops, 3)
    assert list(pairs) == crops.stems and set(pairs.values()) == set(crops.background_stems)
    counts = [list(pairs.values()).count(stem) for stem in crops.background_stems]
    assert set(counts) == {2, 3}
    assert sum(stem == crops.background_stems[i % 40] for i, stem in enumerate(pairs.values())) < 10
    assert evaluation.pair_up(crops, 3) == pairs != evaluation.pair_up(crops, 4)


def test_void_of_training_masks_is_not_background(tmp_path):
    (tmp_path / "test" / "masks").mkdir(parents=True)
    for i in range(8):
        mask = np.full((64, 64), 255, np.uint8)
        mask[:, 32:] = 128 if i < 6 else 255  # what is known of the right half is object
        Image.fromarray(mask).save(tmp_path / "test" / "masks" / f"{i:05d}.png")
    fixed, n = evaluation.fit_mean_mask(empty_crops(tmp_path, objects=8, backgrounds=1))
    assert n == 8 and fixed.shape == (8, 8) and fixed.all()


# --- intervals ---


def test_bootstrap_interval_of_a_mean_is_the_normal_one(rng):
    values = rng.normal(3, 2, 400)
    low, high = metrics.bootstrap(values[:, None], resamples=4000)[0]
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_bootstrap_resamples_rows_together_and_knows_one_image():
    table = np.array([[1.0, 2], [10, 20], [100, 200]])  # the ratio of sums is ½ however rows are drawn
    ends = metrics.bootstrap(table, lambda sums: sums[:, :1] / sums[:, 1:])
    assert ends == pytest.approx(np.array([[0.5, 0.5]]))
    assert metrics.bootstrap(np.full((7, 1), 3.0)) == pytest.approx(np.array([[3.0, 3.0]]))
    assert np.isnan(metrics.bootstrap(table[:1])).all() and metrics.bootstrap(table[:1]).shape == (2, 2)


def made_up(values, per_photograph):
    """Rows as of `evaluate`, so many of a photograph in turn."""
    return [{"stem": f"{i:03d}", "background": "", "photograph": f"{i // per_photograph}.jpg", "iou": value,
             "dice": value, "mean_mask": 0.5, "mask_area": 0.3, "mask_area_refined": 0.3, "tp": 10 * value,
             "fp": 10 - 10 * value, "fn": 0.0, "tn": 1.0}
            for i, value in enumerate(values)]


def test_crops_of_one_photograph_are_drawn_together(rng):
    """Four equal crops of each of 30 photographs tell no more than one of each: the interval is twice as wide."""
    alike = np.repeat(rng.uniform(0.4, 0.9, 30), 4)
    together = evaluation.summarise(made_up(alike, 4))["intervals"]
    apart = evaluation.summarise(made_up(alike, 1))["intervals"]
    one = evaluation.summarise(made_up(alike[::4], 1))["intervals"]
    for name in ("iou", "iou_pooled", "iou_minus_mean_mask"):
        assert together[name] == pytest.approx(one[name])
        assert np.ptp(together[name]) == pytest.approx(2 * np.ptp(apart[name]), rel=0.1)
    # with one crop of each it is the bootstrap over images
    assert apart["iou"] == pytest.approx(metrics.bootstrap(alike[:, None])[0].tolist())
    unknown = [{k: v for k, v in row.items() if k != "photograph"} for row in made_up(alike, 4)]
    assert evaluation.summarise(unknown)["intervals"] == apart


def test_photographs_of_unlike_numbers_of_crops(rng):
    """Against a slow bootstrap: photographs are drawn, and the mean is over all their crops."""
    values, photo = rng.random(40), np.sort(rng.integers(0, 12, 40))
    rows = [row | {"photograph": str(n)} for row, n in zip(made_up(values, 1), photo, strict=True)]
    means = [np.concatenate([values[photo == n] for n in rng.choice(np.unique(photo), len(np.unique(photo)))]).mean()
             for _ in range(4000)]
    found = evaluation.summarise(rows)["intervals"]["iou"]
    assert found == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)
    assert "iou" not in evaluation.summarise([row | {"photograph": "one"} for row in rows])["intervals"]
    classes = evaluation.summarise(rows, {row["stem"]: "dog" for row in rows})["per_class"]
    assert classes["dog"]["interval"] == pytest.approx(found)


def test_the_photograph_of_a_crop_is_that_of_crops_json(tmp_path):
    crops = empty_crops(tmp_path, objects=3, backgrounds=1)
    assert evaluation.photograph(crops, "00000") == "00000"
    crops.records = {"00000": {"source": "a.jpg", "origin": 1}, "00001": {"box": [0, 0, 1, 1]}}
    crops.rules = [{}, {}]
    assert [evaluation.photograph(crops, stem) for stem in ("00000", "00001")] == ["1:a.jpg", "00001"]
    crops.rules = [{}]
    assert evaluation.photograph(crops, "00000") == "a.jpg"


# --- holes refilled ---


@pytest.fixture
def pictures():
    rng = torch.Generator().manual_seed(0)
    base = F.interpolate(torch.rand(3, 3, 8, 8, generator=rng), (40, 52), mode="bicubic").clamp(0, 1) * 2 - 1
    noisy = (base + 0.3 * torch.randn(base.shape, generator=rng)).clamp(-1, 1)
    hole = torch.zeros(3, 1, 40, 52)
    hole[0, :, 10:30, 12:40] = 1
    hole[1, :, 0:9, 30:52] = 1  # at the image's edge
    return base, noisy, hole


def test_psnr_ssim_mae_agree_with_scikit_image(pictures):
    sk = pytest.importorskip("skimage.metrics", reason=WHY + "scikit-image")
    target, image, hole = pictures
    found = [getattr(quality, name)(image, target, hole) for name in ("psnr", "ssim", "mae")]
    weights = np.array([0.299, 0.587, 0.114])
    for i in range(2):
        inside = hole[i, 0].numpy() > 0
        a, b = (t[i].permute(1, 2, 0).double().numpy() for t in (image, target))
        grey = [((p + 1) / 2) @ weights for p in (a, b)]
        _, full = sk.structural_similarity(*grey, data_range=1, gaussian_weights=True, sigma=1.5, full=True,
                                           use_sample_covariance=False)
        expected = (sk.peak_signal_noise_ratio(b[inside], a[inside], data_range=2), full[inside].mean(),
                    np.abs(a - b)[inside].mean())
        assert [f[i].item() for f in found] == pytest.approx(expected, abs=2e-5)
    assert all(f[2].isnan() for f in found)  # nothing cut out


def test_equal_images_have_the_best_figures(pictures):
    y, _, hole = pictures
    figures = [getattr(quality, name)(y, y, hole)[0].item() for name in ("psnr", "ssim", "mae")]
    assert figures == pytest.approx([106.0206, 1, 0], abs=1e-3)


def test_fills_leave_what_is_known_and_solve_a_ramp():
    ramp = torch.linspace(-1, 1, 48).expand(1, 3, 40, 48).contiguous()
    hole = torch.zeros(1, 1, 40, 48)
    hole[..., 8:30, 10:36] = 1
    mean, diffusion = quality.fill_mean(ramp, hole), quality.fill_diffusion(ramp, hole)
    for filled in (mean, diffusion):
        assert torch.equal((filled - ramp) * (1 - hole), torch.zeros_like(ramp))
    known = ramp[0, 0][hole[0, 0] == 0].mean()
    assert torch.allclose(mean[0, :, 20, 20], known.expand(3), atol=1e-5)
    # Laplace's equation with a ramp for its rim has the ramp as its solution
    assert quality.mae(diffusion, ramp, hole) < 0.01 < quality.mae(mean, ramp, hole)


def test_fills_of_an_image_cut_out_whole_are_finite():
    y, hole = torch.rand(1, 3, 13, 9), torch.ones(1, 1, 13, 9)
    assert quality.fill_diffusion(y, hole).isfinite().all() and quality.fill_mean(y, hole).isfinite().all()


# --- Fréchet distance ---


def test_frechet_distance_of_known_gaussians(rng):
    # one dimension: (μ1 - μ2)² + (σ1 - σ2)²
    assert quality.frechet_gaussian(np.array([1.0]), 4.0, np.array([4.0]), 9.0) == pytest.approx(9 + 1)
    # diagonal covariances: the sum over dimensions
    a, b = np.diag([1.0, 4, 0]), np.diag([9.0, 16, 0])
    assert quality.frechet_gaussian(np.zeros(3), a, np.ones(3), b) == pytest.approx(3 + 4 + 4)
    features = rng.normal(size=(50, 8))
    assert quality.frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert quality.frechet_distance(features, features + 2) == pytest.approx(4 * 8)


def test_frechet_distance_agrees_with_scipys_matrix_root(rng):
    linalg = pytest.importorskip("scipy.linalg", reason=WHY + "SciPy")
    a, b = rng.normal(size=(60, 12)) @ rng.normal(size=(12, 12)), rng.normal(size=(70, 12)) + 0.3
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = (np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a) + np.trace(cov_b)
                - 2 * np.trace(linalg.sqrtm(cov_a @ cov_b)).real)
    assert quality.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def normalised(image):
    """From [-1, 1] to what torchvision's classifiers were trained on."""
    mean, std = (torch.tensor(t).view(1, 3, 1, 1) for t in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return ((image + 1) / 2 - mean) / std


def test_feature_network_of_a_file_that_ends_early(tmp_path, vgg19_state):
    early = {k: v for k, v in vgg19_state.items() if int(k.split(".")[1]) <= 5}
    torch.save(early, tmp_path / "early.pth")
    net = quality.FeatureNet(f"vgg19:{tmp_path / 'early.pth'}")
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    h = normalised(F.interpolate(x, (224, 224), mode="bilinear", antialias=True))
    for index in (0, 2, 5):
        h = F.relu(F.conv2d(h, early[f"features.{index}.weight"], early[f"features.{index}.bias"], padding=1))
        h = F.max_pool2d(h, 2) if index == 2 else h
    assert torch.allclose(net(x), h.mean((2, 3)), atol=1e-4)
    assert "224" in net.describe()["resize"]


def test_inception_of_a_file_is_torchvisions_own_with_those_weights(tmp_path, monkeypatch):
    options = {"init_weights": False, "aux_logits": True}
    own = models.inception_v3(**options, transform_input=True)  # as with weights of torchvision's
    torch.save(own.state_dict(), tmp_path / "net.pth")
    own.fc = torch.nn.Identity()
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    net = quality.FeatureNet(f"inception_v3:{tmp_path / 'net.pth'}")
    with torch.no_grad():
        expected = own.eval()(normalised(F.interpolate(x, (299, 299), mode="bilinear", antialias=True)))
        assert torch.allclose(net(x), expected, rtol=0, atol=1e-4 * expected.max().item())


@pytest.mark.parametrize("weights", ["inception_v3", "inception_v3:mine.pth", "vgg19"])
def test_no_distance_on_torchvisions_weights_is_called_fid(weights):
    net = quality.FeatureNet.__new__(quality.FeatureNet)
    net.__dict__ |= {"weights": weights, "network": weights.partition(":")[0],
                     "transforms": models.Inception_V3_Weights.DEFAULT.transforms()}
    assert net.describe()["name"] == "Fréchet distance" and "FID" not in str(net.describe())


# --- kernel distance ---


def mmd(a, b):
    """torch-fidelity's "u-statistic" on its cubic kernel, number by number."""
    n, d = a.shape
    k = [[[(sum(s[i] * t[j]) / d + 1) ** 3 for j in range(n)] for i in range(n)] for s, t in ((a, a), (b, b), (a, b))]
    aa, bb, ab = (np.array(one) for one in k)
    within = (aa.sum() - np.trace(aa) + bb.sum() - np.trace(bb)) / (n * (n - 1))
    return within - 2 * (ab.sum() - np.trace(ab)) / (n * (n - 1))


def independent(a, b):
    """KID's formula of features that are no pairs: the squared MMD, unbiased."""
    kernel = lambda s, t: (s @ t.T / s.shape[1] + 1) ** 3  # noqa: E731
    aa, bb = (kernel(s, s)[~np.eye(len(s), dtype=bool)].mean() for s in (a, b))
    return aa + bb - 2 * kernel(a, b).mean()


def test_kernel_distance_is_torch_fidelitys(rng):
    a, b = rng.normal(size=(23, 7)), 1.3 * rng.normal(size=(23, 7)) + 0.2
    distance, low, high = quality.paired_kernel_distance(a, b)
    assert distance == pytest.approx(mmd(a, b), abs=1e-6)
    # the jackknife by hand
    left = [mmd(np.delete(a, i, 0), np.delete(b, i, 0)) for i in range(23)]
    half = 2.0739 * math.sqrt(22 / 23 * np.square(left - np.mean(left)).sum())  # Student's t with 22 degrees
    assert (high - low) / 2 == pytest.approx(half, rel=1e-4) and (low + high) / 2 == pytest.approx(distance)


def test_kernel_distance_in_blocks(rng):
    a, b = rng.normal(size=(2, 30, 5))
    assert quality._kernel_sums(a, b, block=7) == pytest.approx(quality._kernel_sums(a, b))


def test_kernel_distances_of_pairs_are_unbiased_and_their_intervals_cover(rng):
    """Made images that resemble those that they are made from: counted as independent, they would seem nearer."""
    d, shift = 8, 0.6
    found, naive = [], []
    far = rng.normal(size=(2, 3000, d))
    true = independent(far[0] + shift, far[1])
    for _ in range(300):
        b = rng.normal(size=(57, d))
        a = 0.8 * b + 0.6 * rng.normal(size=(57, d)) + shift
        found.append(quality.paired_kernel_distance(a, b))
        naive.append(independent(a, b))
    distance, low, high = np.array(found).T
    error = distance.std() / math.sqrt(300)
    assert abs(distance.mean() - true) < 4 * error + 0.02 and np.mean(naive) < true - 8 * error
    assert 0.9 < np.mean((low <= true) & (true <= high)) <= 0.99


@pytest.mark.parametrize("weights, words", [
    ("vgg99", "torchvision"), ("mnasnet0_5:{}.mnasnet", "neither `features` nor `flatten`"),
    ("squeezenet1_1:nowhere.pth", "no weights at nowhere.pth"),
    ("resnet18:{}", "holds no conv1.weight"), ("squeezenet1_1:{}", "holds no features.0.weight"),
    ("squeezenet1_1:{}.txt", "cannot be read"), ("squeezenet1_1:{}.list", "holds a list")])
def test_bad_feature_networks_are_named(tmp_path, weights, words):
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([torch.zeros(1)], tmp_path / "other.pth.list")
    (tmp_path / "other.pth.txt").write_text("no weights")
    torch.save(models.mnasnet0_5(weights=None).state_dict(), tmp_path / "other.pth.mnasnet")
    with pytest.raises((UserError, FileNotFoundError), match=words):
        quality.FeatureNet(weights.format(tmp_path / "other.pth"))
