"""How good images are: holes refilled (PSNR, SSIM, MAE beside two simple fills), and a Fréchet and a kernel distance on
the features of a torchvision network. They are FID and KID only on the Inception weights of those who published them,
which are none of torchvision's: docs/reproduce.md says how to have these. The paper judges images by people alone
(§4.1, see evaluation/study.py).

Images are (N, 3, H, W) in [-1, 1], holes (N, 1, H, W) of 0 and 1 with 1 = cut out.
"""
import os
import re
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from evaluation.clustered import student
from images import UserError, check_archive

FREE_OF_ERROR = 1e-10  # mean squared error counted as none: PSNR ends at 106 dB

# --- inside holes ---


def _inside(values, hole):
    """Mean over each hole: values (N, C, H, W) -> (N,); NaN where the hole is empty."""
    total = (values.mean(1, keepdim=True) * hole).flatten(1).sum(1).cpu().double()  # not all devices have it
    return total / hole.flatten(1).sum(1).cpu().double()  # 0 / 0 = NaN


def mae(image, target, hole):
    """Mean absolute difference inside each hole, (N,), in units of the range [-1, 1]."""
    return _inside((image - target).abs(), hole)


def psnr(image, target, hole):
    """Peak signal-to-noise ratio inside each hole, (N,) in dB: 10·log10(peak² / MSE) with peak = 2, black to white."""
    return 10 * torch.log10(4 / _inside((image - target).square(), hole).clamp(min=FREE_OF_ERROR))


def ssim(image, target, hole):
    """Structural similarity of luminance (Wang et al. 2004) inside each hole, (N,). Windows at its rim see farther."""
    return _inside(ssim_map(image, target), hole)


def ssim_map(image, target):
    """SSIM around every pixel, (N, 1, H, W): luminance in [0, 1], Gaussian window with σ = 1.5 px, 11 px wide."""
    rows, columns = (_blur_matrix(n).to(image) for n in image.shape[-2:])
    weights = torch.tensor([0.299, 0.587, 0.114]).to(image).view(3, 1, 1)

    def blur(a):
        return rows @ a @ columns.T

    a, b = ((((t + 1) / 2) * weights).sum(1, keepdim=True) for t in (image, target))
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a.square(), blur(b * b) - mean_b.square()
    cov = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mean_a * mean_b + c1) * (2 * cov + c2)
            / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2)))


@lru_cache
def _blur_matrix(n, sigma=1.5, radius=5):
    """(n, n): the Gaussian window along one axis, the image mirrored at its edges (edge pixel repeated)."""
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    source = (np.arange(n)[:, None] + np.arange(-radius, radius + 1)) % (2 * n)
    source = np.minimum(source, 2 * n - 1 - source)
    matrix = np.zeros((n, n))
    np.add.at(matrix, (np.arange(n)[:, None], source), kernel / kernel.sum())
    return torch.from_numpy(matrix)


# --- simple fills, to compare with G_inp ---


def fill_mean(image, hole):
    """Fill each hole with the mean colour around it: of all pixels outside it."""
    known = 1 - hole
    colour = (image * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp(min=1)
    return image * known + colour * hole


def fill_diffusion(image, hole, sweeps=8):
    """Fill each hole by diffusion from its rim: Laplace's equation, coarse to fine, `sweeps` Jacobi steps a level."""
    return _diffuse(image * (1 - hole), 1 - hole, sweeps)


def _diffuse(known_sum, known, sweeps):
    """known_sum: values times `known`, the share of each pixel that is given. Halved until nothing is unknown."""
    height, width = known.shape[-2:]
    value = known_sum / known.clamp(min=1e-6)
    unknown = known == 0
    if not unknown.any() or max(height, width) == 1:
        return value
    half = [F.avg_pool2d(t, 2, ceil_mode=True) for t in (known_sum, known)]
    guess = F.interpolate(_diffuse(*half, sweeps), (height, width), mode="bilinear")
    value = torch.where(unknown, guess, value)
    for _ in range(sweeps):
        p = F.pad(value, (1, 1, 1, 1), mode="replicate")
        around = (p[..., :-2, 1:-1] + p[..., 2:, 1:-1] + p[..., 1:-1, :-2] + p[..., 1:-1, 2:]) / 4
        value = torch.where(unknown, around, value)
    return value


# --- Fréchet distance ---

ENOUGH = 2048  # images, below which a Fréchet distance on Inception's 2,048 features says little


def frechet_distance(a, b):
    """|μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½) between features a (N, D) and b (M, D) (Heusel et al. 2017).

    In float64. Biased upwards when N or M is small: compare only figures of equal N.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return frechet_gaussian(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))


def frechet_gaussian(mean_a, cov_a, mean_b, cov_b):
    """The same of two Gaussians: means (D,), covariances (D, D)."""
    cov_a, cov_b = np.atleast_2d(cov_a), np.atleast_2d(cov_b)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T  # Σ_a^½
    # the eigenvalues of Σ_a^½ Σ_b Σ_a^½ are those of Σ_a Σ_b, and it is symmetric
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    gap = np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    return float(max(gap, 0.0))


# --- kernel distance ---


def paired_kernel_distance(a, b, level=0.95):
    """KID's formula (Bińkowski et al. 2018), the squared MMD under the kernel (a·b/D + 1)³, of features a and b (N, D),
    where b[i] is no independent sample but the image that a[i] was made from: (distance, low, high).

    Without the products of such pairs, which are too like each other, it is unbiased still (torch-fidelity's
    "u-statistic"); it may be negative. The interval is of a jackknife over the N >= 3 pairs, with Student's t.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    n = len(a)
    sums = sum(_kernel_sums(s, t) * sign for s, t, sign in ((a, a, 1), (b, b, 1), (a, b, -1), (b, a, -1)))
    total = sums.sum()
    without = (total - 2 * sums) / ((n - 1) * (n - 2))  # each pair left out in turn
    distance = total / (n * (n - 1))
    half = student(level, n - 1) * np.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    return float(distance), float(distance - half), float(distance + half)


def _kernel_sums(a, b, block=1024):
    """Each a[i]'s sum of kernels with all b but b[i], (N,)."""
    whole = np.concatenate([((a[i : i + block] @ b.T / a.shape[1] + 1) ** 3).sum(1) for i in range(0, len(a), block)])
    return whole - ((a * b).sum(1) / a.shape[1] + 1) ** 3


class FeatureNet(torch.nn.Module):
    """Features of a torchvision classifier: its convolutional part, averaged over places.

    weights: NAME, a torchvision model with its default weights (from torchvision's cache, else downloaded), e.g.
    "inception_v3"; or NAME:FILE, the same network with a state dict of torchvision's names, which for networks made of
    `features` may end early: then the layers it holds are used. UserError or FileNotFoundError where it is none.
    """

    def __init__(self, weights):
        from torchvision import models  # here: it takes as long to import as torch
        from torchvision.models.feature_extraction import create_feature_extractor

        super().__init__()
        self.weights = weights
        self.network, _, file = weights.partition(":")
        if self.network not in models.list_models(module=models):
            raise UserError("--frechet_weights must be a classifier of torchvision.models, such as inception_v3 or "
                            f"vgg19, or NAME:FILE, got {weights!r}")
        default, options = models.get_model_weights(self.network).DEFAULT, {}
        if file and self.network in ("inception_v3", "googlenet"):  # as torchvision builds them with its own weights
            options = {"init_weights": False, "transform_input": True}
        net = models.get_model(self.network, weights=None if file else default, **options).eval()
        node = _load(net, file) if file else "features"
        node = node if hasattr(net, "features") else "flatten"
        self.transforms = default.transforms()
        self.transforms.resize_size = self.transforms.crop_size  # all of an image, not its middle
        try:
            self.net = create_feature_extractor(net, {node: "features"}, suppress_diff_warning=True)
        except ValueError as error:
            raise UserError(f"{self.network} has neither `features` nor `flatten`: name another network, e.g. vgg19"
                            ) from error
        self.requires_grad_(False)

    def describe(self):
        """Plain dict of what a figure made with this network depends on."""
        how = self.transforms.interpolation.value
        return {"name": "Fréchet distance", "network": self.network, "weights": self.weights,
                "resize": f"{how}, antialiased, to {self.transforms.crop_size[0]} px"}

    @torch.no_grad()
    def forward(self, image):
        """image (N, 3, H, W) in [-1, 1] -> (N, D)."""
        h = self.net(self.transforms((image + 1) / 2))["features"]
        return h.mean((2, 3)) if h.ndim == 4 else h


def _load(net, file):
    """Give `net` the weights of `file`. Returns the last part of its `features` that the file holds, or "features"."""
    if not os.path.isfile(file):
        raise FileNotFoundError(f"no weights at {file}: --frechet_weights takes NAME or NAME:FILE")
    remedy = "a state dict with torchvision's names is needed"
    try:
        check_archive(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file raises, the remedy is the same
        raise UserError(f"{file} cannot be read ({type(error).__name__}): {remedy}") from error
    if not isinstance(state, dict):
        raise UserError(f"{file} holds a {type(state).__name__}: {remedy}")
    own = net.state_dict()
    trunk = [k for k in own if k.startswith("features.")] or [k for k in own if not k.startswith(("fc.", "AuxLogits."))]
    fits = [k for k in own if torch.is_tensor(state.get(k)) and state[k].shape == own[k].shape]
    missing = next((k for k in trunk if k not in fits), "")
    early = re.match(r"features\.([1-9]\d*)\.", missing)  # only numbered parts may end early
    if missing and not early:
        raise UserError(f"{file} holds no {missing} of shape {tuple(own[missing].shape)}: {remedy}")
    own.update({k: state[k] for k in fits})  # keeps the metadata that some networks ask for
    try:
        net.load_state_dict(own)
    except (RuntimeError, NotImplementedError) as error:  # tensors without values, of no plain numbers
        raise UserError(f"{file} holds no plain weights: {remedy}") from error
    return f"features.{int(early[1]) - 1}" if early else "features"  # with what follows its last weights
