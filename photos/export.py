"""The trained generators for other programs: torch.export programs and ONNX, with dynamic N, H and W.

`python photo.py export --name NAME --out DIR` writes, as .pt2 (`torch.export.load`) and, where the packages onnx
and onnxscript are installed, as .onnx:

    segment(image, box) -> mask                           m = G_seg(x), kept inside the box as in training
    enhance(image, background, mask, noise) -> pasted     y_hat = G_enh(m*x + (1-m)*y)
    inpaint(image, mask, noise) -> removed                x_hat = G_inp((1-m)*x)

All float32. Images are (N, 3, H, W), RGB in [0, 1], in and out; masks (N, 1, H, W) in [0, 1], 1 = object; boxes
(N, 4) left, top, width, height in fractions of the image; noise (N, 1, H, W), standard normal: an input, so
that a program has no random state of its own and the caller decides whether it repeats itself. H and W may be
anything from twice the networks' stride on; the networks know crops of about the size that they were trained on.
"""
import copy
import importlib.util
import os
import warnings

import torch
from torch import nn

from seigan import SEIGAN, box_mask, paste_coarse


class AnySize(nn.Module):
    """A network that takes multiples of `stride`, for any H and W: reflected at the right and bottom, cut back.

    The networks do so themselves, but decide with `if` whether to, which a program with dynamic shapes cannot.
    """

    def __init__(self, net, stride):
        super().__init__()
        self.net, self.stride = net, stride

    def forward(self, image):
        rows, columns = (torch.arange(n, device=image.device) for n in image.shape[-2:])
        below, right = (_reflected(n, self.stride, image.device) for n in image.shape[-2:])
        out = self.net(image.index_select(2, below).index_select(3, right))
        return out.index_select(2, rows).index_select(3, columns)


def _reflected(n, stride, device):
    i = torch.arange((n + stride - 1) // stride * stride, device=device)
    return torch.minimum(i, 2 * (n - 1) - i)


class Segment(nn.Module):
    """m = G_seg(x), with the model's box prior."""

    def __init__(self, model):
        super().__init__()
        self.G_seg, self.box_prior = AnySize(model.G_seg, model.G_seg.stride), model.box_prior

    def forward(self, image, box):
        mask = self.G_seg(2 * image - 1)
        if self.box_prior:
            mask = mask * box_mask(box, image.shape[-2], image.shape[-1], grow=self.box_prior)
        return mask


class Enhance(nn.Module):
    """y_hat = G_enh(m*x + (1-m)*y)."""

    def __init__(self, model):
        super().__init__()
        self.G_enh = copy.deepcopy(model.G_enh)
        self.G_enh.unet = AnySize(self.G_enh.unet, self.G_enh.unet.stride)

    def forward(self, image, background, mask, noise):
        return (self.G_enh(paste_coarse(2 * image - 1, 2 * background - 1, mask), noise) + 1) / 2


class Inpaint(nn.Module):
    """x_hat = G_inp((1-m)*x)."""

    def __init__(self, model):
        super().__init__()
        self.G_inp = copy.deepcopy(model.G_inp)
        self.G_inp.first = AnySize(self.G_inp.first, self.G_inp.first.stride)
        self.G_inp.second = AnySize(self.G_inp.second, self.G_inp.second.stride)

    def forward(self, image, mask, noise):
        return (self.G_inp((1 - mask) * (2 * image - 1), noise) + 1) / 2


TOLERANCE = 1e-3  # of values in [0, 1]: a quarter of a level of 8 bits

# name: module, inputs, output, the modes that train it
PROGRAMS = {
    "segment": (Segment, ("image", "box"), "mask", ("seigan", "nocycle", "supervised")),
    "enhance": (Enhance, ("image", "background", "mask", "noise"), "pasted", ("seigan", "nocycle")),
    "inpaint": (Inpaint, ("image", "mask", "noise"), "removed", ("seigan",)),
}


def example(inputs, n, height, width, seed=0):
    """Random inputs of a program: {name: tensor}."""
    rng = torch.Generator().manual_seed(seed)
    shapes = {"mask": (n, 1, height, width), "noise": (n, 1, height, width)}
    values = {}
    for name in inputs:
        if name == "box":
            values[name] = torch.tensor([0.1, 0.15, 0.7, 0.6]).repeat(n, 1)
        elif name == "noise":
            values[name] = torch.randn(shapes[name], generator=rng)
        else:
            values[name] = torch.rand(shapes.get(name, (n, 3, height, width)), generator=rng)
    return values


def expected(model, name, values):
    """What the model's own networks give for `values`, the reference of the parity check."""
    v = {k: 2 * t - 1 if k in ("image", "background") else t for k, t in values.items()}
    with torch.no_grad():
        if name == "segment":
            return model.segment(v["image"], v["box"])
        if name == "enhance":
            return (model.G_enh(paste_coarse(v["image"], v["background"], v["mask"]), v["noise"]) + 1) / 2
        return (model.G_inp((1 - v["mask"]) * v["image"], v["noise"]) + 1) / 2


def dynamic_shapes(inputs, stride):
    least = {"N": 1, "H": 2 * stride, "W": 2 * stride}
    n, h, w = (torch.export.Dim(axis, min=value, max=2**14) for axis, value in least.items())
    return {name: {0: n} if name == "box" else {0: n, 2: h, 3: w} for name in inputs}


def export_model(model: SEIGAN, folder: str, onnx: bool | None = None) -> dict:
    """Write the model's programs to `folder` and compare each with the model.

    Args:
        model: on the CPU, as `SEIGAN.load` gives it.
        onnx: write ONNX as well; None = where its packages are installed.

    Returns:
        {file name: largest difference from the model over several N, H and W, or None if it could not be run}.
    """
    onnx = has("onnx", "onnxscript") if onnx is None else onnx
    os.makedirs(folder, exist_ok=True)
    differences = {}
    for name, (program, inputs, output, modes) in PROGRAMS.items():
        if model.mode not in modes:
            continue
        net = program(model).eval()
        stride = 2 ** model.config["unet_downs"] if name != "segment" else model.G_seg.stride
        # 2 images and sides of no multiple, so that nothing is taken for a constant
        values = tuple(example(inputs, 2, 2 * stride + 3, 3 * stride + 1).values())
        exported = torch.export.export(net, values, dynamic_shapes=dynamic_shapes(inputs, stride))
        path = os.path.join(folder, f"{name}.pt2")
        torch.export.save(exported, path)
        loaded = torch.export.load(path).module()
        differences[f"{name}.pt2"] = compare(model, name, stride, lambda v, run=loaded: run(*v.values()))
        if onnx:
            path = os.path.join(folder, f"{name}.onnx")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about names of axes, which are set below
                torch.onnx.export(exported, values, path, input_names=list(inputs), output_names=[output],
                                  dynamo=True, verbose=False, external_data=False)
            checked = has("onnxruntime")
            differences[f"{name}.onnx"] = compare(model, name, stride, onnx_runner(path)) if checked else None
    return differences


def compare(model, name, stride, run):
    """Largest difference of `run` ({input: tensor} -> tensor) from the model, over several N, H and W."""
    worst = 0.0
    sizes = (1, 2 * stride, 2 * stride), (1, model.size, model.size), (3, model.size + 1, 2 * stride + 5)
    for n, height, width in sizes:
        values = example(PROGRAMS[name][1], n, height, width, seed=n)
        worst = max(worst, (run(values) - expected(model, name, values)).abs().max().item())
    return worst


def onnx_runner(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda values: torch.from_numpy(session.run(None, {k: v.numpy() for k, v in values.items()})[0])


def has(*packages):
    return all(importlib.util.find_spec(package) for package in packages)


# --- the command ---


def add_command(commands):
    parser = commands.add_parser("export", help="the generators as torch.export programs and ONNX", allow_abbrev=False)
    add = parser.add_argument
    add("--name", required=True, help="the run's name: its folder under --checkpoints_dir")
    add("--checkpoint", choices=("latest", "best"), default="latest", help="which of the run's checkpoints")
    add("--checkpoints_dir", default="checkpoints", help="folder of the runs")
    add("--out", required=True, metavar="DIR", help="folder for the programs")


def run(args):
    """Export and report; returns the exit code: 1 if a program differs from the model."""
    model = SEIGAN.load(os.path.join(args.checkpoints_dir, args.name, f"{args.checkpoint}.pt"))
    differences = export_model(model, args.out)
    for name, difference in differences.items():
        unchecked = "written; onnxruntime, which would check it, is not installed"
        text = unchecked if difference is None else f"differs from the model by at most {difference:.1e}"
        print(f"{os.path.join(args.out, name)}: {text}")
    if not has("onnx", "onnxscript"):
        print("no ONNX: it takes the packages onnx and onnxscript")
    return 1 if any(d is not None and not d < TOLERANCE for d in differences.values()) else 0
