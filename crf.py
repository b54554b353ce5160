"""A colour CRF inside a box: from a rough mask, or from the box alone, to a mask that follows the image's colours.

Mean-field inference in a conditional random field, as in GrabCut (Rother et al., 2004), with colour histograms instead
of mixtures, and local pairwise terms, as in MAL (Lan et al., 2023). SEIGAN's paper has no such part. Images are
(N, 3, H, W) in [-1, 1], masks (N, 1, H, W) in [0, 1] with 1 = object, boxes (N, 4): left, top, width, height in
fractions of the image. Pure functions, batched, on any device. This file needs torch only and can be copied out alone.
"""
import math

import torch
import torch.nn.functional as F

BINS = 16  # of the colour histograms, a side
FROM_BOX = {"pairwise": 4.0, "rounds": 6}  # of `refine`: an ellipse needs more rounds than a mask, and less smoothing
# a trained model's mask fewer, and more trust; images twice as fine more smoothing
FROM_MODEL = {"pairwise": 12.0, "rounds": 2, "prior": 0.6}


def ellipse(box, height, width):
    """What a box alone says of its object: 0.9 exp(-r²/0.9), r = 1 on the box's edges. (N, 4) -> (N, 1, H, W)."""
    left, top, w, h = box.to(torch.float32)[:, :, None, None].unbind(1)
    v = (torch.arange(height, device=box.device) + 0.5)[None, :, None] / height
    u = (torch.arange(width, device=box.device) + 0.5)[None, None, :] / width
    r2 = ((u - left - w / 2) / (w / 2)).square() + ((v - top - h / 2) / (h / 2)).square()
    return 0.9 * torch.exp(-r2 / 0.9)[:, None]


def lab(image):
    """CIE L*a*b* of sRGB images, each channel scaled to about [0, 1]: (L/100, (a+110)/220, (b+110)/220)."""
    rgb = ((image + 1) / 2).clamp(0, 1)
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = torch.tensor([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169],
                           [0.019334, 0.119193, 0.950227]]).to(linear)
    white = torch.tensor([0.95047, 1.0, 1.08883]).to(linear)
    xyz = torch.einsum("ij,njhw->nihw", to_xyz, linear) / white.view(1, 3, 1, 1)
    f = torch.where(xyz > 0.008856, xyz.clamp(min=1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(1)
    return torch.stack([1.16 * y - 0.16, (500 * (x - y) + 110) / 220, (200 * (y - z) + 110) / 220], 1)


def refine(image, mask, inside, prior=0.35, colour=1.0, pairwise=8.0, bias=0.0, sigma_colour=0.08, sigma_space=3.0,
           radius=2, rounds=3, sweeps=10):
    """A mask that follows the image's colours.

    Args:
        image: (N, 3, H, W) in [-1, 1].
        mask: (N, 1, H, W) in [0, 1]: where it starts, and what it is drawn to.
        inside: (N, 1, H, W) in [0, 1]: where the object may be; what is outside is certain background.
        prior, colour, pairwise: weights of the mask's logit, of the colours' log ratio and of the neighbours.
        bias: added to every logit: more makes larger masks. A number, or (N, 1, 1, 1).
        sigma_colour, sigma_space: of the neighbours' weights, in units of `lab` and in pixels.
        radius: of the window of neighbours, pixels.
        rounds, sweeps: how often the histograms are estimated, and the sweeps of mean field after each.

    Returns:
        q (N, 1, H, W) in [0, 1], without gradients.
    """
    with torch.no_grad():
        image, mask, inside = image.float(), mask.float(), inside.float()
        colours = lab(image)
        bins = _bins(colours)
        weights = pairwise * _neighbours(colours, sigma_colour, sigma_space, radius)
        start = prior * torch.logit(mask.clamp(0.02, 0.98)) + bias - weights.sum(0)
        weights = (2 * weights).unbind()
        q = mask * inside
        around = F.pad(q, [radius] * 4)  # q and a rim of zeros; its views move with it
        centre, others = _window(around, radius)
        for _ in range(rounds):
            unary = start + colour * _log_ratio(bins, q)
            for _ in range(sweeps):
                logit = unary.clone()  # + Σ w (2 q - 1) over the neighbours: one pass over memory for each
                for weight, other in zip(weights, others, strict=True):
                    logit.addcmul_(weight, other)
                q = centre.copy_(logit.sigmoid_().mul_(inside))
        return q.contiguous()


def _bins(colours):
    """(N, H·W) numbers of histogram cells, over each image's own range of colours."""
    flat = colours.flatten(2)
    low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
    cell = ((flat - low) / (high - low).clamp(min=1e-6) * BINS).long().clamp(max=BINS - 1)
    return (cell[:, 0] * BINS + cell[:, 1]) * BINS + cell[:, 2]


def _log_ratio(bins, q):
    """log of object's over background's histogram at each pixel, within ±3; q: (N, 1, H, W) the object's share."""
    share = q.flatten(1)
    logs = [torch.log(_histogram(bins, weight).gather(1, bins)) for weight in (share, 1 - share)]
    return (logs[0] - logs[1]).clamp(-3, 3).view_as(q)


def _histogram(bins, weight):
    """Weighted histograms (N, BINS³), smoothed by a Gaussian of one cell, normalised."""
    n = len(bins)
    counts = torch.zeros(n, BINS**3, device=weight.device).scatter_add_(1, bins, weight).view(n, BINS, BINS, BINS)
    i = torch.arange(BINS, device=weight.device, dtype=torch.float32)
    blur = torch.exp(-0.5 * (i[:, None] - i).square())
    counts = torch.einsum("nabc,ax,by,cz->nxyz", counts, blur, blur, blur).flatten(1)
    return counts / counts.sum(1, keepdim=True).clamp(min=1e-6) + 0.01 / BINS**3


def _window(padded, radius):
    """Of a tensor with a rim of `radius`: the part within, and what each neighbour in a window sees in its place."""
    height, width = (side - 2 * radius for side in padded.shape[-2:])
    views = [padded[..., dy : dy + height, dx : dx + width]
             for dy in range(2 * radius + 1) for dx in range(2 * radius + 1)]
    return views.pop(len(views) // 2), views


def _neighbours(colours, sigma_colour, sigma_space, radius):
    """(K, N, 1, H, W): how much each pixel heeds each of its K neighbours, at most 1 in all."""
    side = range(-radius, radius + 1)
    near = [math.exp(-(dy * dy + dx * dx) / (2 * sigma_space**2)) for dy in side for dx in side if dy or dx]
    # beyond the border are colours like no others: exp(-1e8) = 0
    own, others = _window(F.pad(colours / (math.sqrt(2) * sigma_colour), [radius] * 4, value=1e4), radius)
    alike = (torch.exp(-(own - other).square_().sum(1, keepdim=True)) for other in others)
    return torch.stack([share / sum(near) * weight for share, weight in zip(near, alike, strict=True)])


def box_inside(box, height, width):
    """The pixels whose centres lie in a box: (N, 4) -> (N, 1, H, W) of 0 and 1."""
    left, top, w, h = (v.view(-1, 1, 1, 1) for v in box.to(torch.float32).unbind(1))
    v = ((torch.arange(height, device=box.device) + 0.5) / height).view(-1, 1)
    u = (torch.arange(width, device=box.device) + 0.5) / width
    return ((u > left) & (u < left + w) & (v > top) & (v < top + h)).float()


def teach(image, box, mask=None, bias=0.0):
    """What a box teaches: `refine` inside the exact box, from `mask` or, without one, from the `ellipse` in the box.

    A box that is the whole image, as one that is not known, teaches nothing: ½ everywhere, which stands for void.
    """
    inside = box_inside(box, *image.shape[-2:])
    if mask is None:
        q = refine(image, ellipse(box, *image.shape[-2:]), inside, bias=bias, **FROM_BOX)
    else:
        q = refine(image, mask, inside, bias=bias)
    return torch.where((box[:, 2:] >= 1).all(1).view(-1, 1, 1, 1), 0.5, q)


def refine_box(image, mask, box, bias=0.0):
    """A model's masks at test time: `refine` inside the exact box; one that is not known is the whole image.

    image (N, 3, H, W) may be finer than mask (N, 1, h, w), and should be, twice: legs and feelers are thinner than the
    pixels that a model sees. Returns (N, 1, H, W).

    Where object and ground share colours, one may be lost in the other: a mask whose area would fall below half of
    what it was, or rise above twice that, stays as it was. On held-out butterflies and horses no trained model's mask
    does so with the bias of its set; with one too large by 4 many do, and staying saves up to .25 IoU. It costs .01 at
    most where masks are too small by two pixels all round, which the CRF would have made good.
    """
    mask = F.interpolate(mask.float(), size=image.shape[-2:], mode="bilinear").clamp(0, 1)
    q = refine(image, mask, box_inside(box, *image.shape[-2:]), bias=bias, **FROM_MODEL)
    before, after = ((m >= 0.5).float().mean((1, 2, 3), keepdim=True) for m in (mask, q))
    return torch.where((after < before / 2) | (after > 2 * before), mask, q)


def coverage(q, box):
    """Share of a box's rows and columns in which a mask has an object, (N,): a tight box has one in each (Kervadec et
    al., "Bounding boxes for weakly supervised segmentation", 2020)."""
    inside = box_inside(box, *q.shape[-2:])
    shares = []
    for dim in (2, 3):
        lines = inside.amax(dim)
        shares.append(((q >= 0.5).float().amax(dim) * lines).sum((1, 2)) / lines.sum((1, 2)).clamp(min=1))
    return (shares[0] + shares[1]) / 2


def choose_bias(image, box, least=0.95, candidates=(0.0, 0.5, 1.0)):
    """The smallest of some biases with which the masks of a set reach the sides of their boxes: mean `coverage` of at
    least `least`, else the largest. Objects that fill their boxes need one, as little in a box is then background; but
    it must stay small, as boxes that are not tight ask for one too."""
    for bias in candidates:
        if coverage(teach(image, box, bias=bias), box).mean() >= least:
            return bias
    return candidates[-1]
