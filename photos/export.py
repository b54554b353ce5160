"""The trained generators for other programs: torch.export programs and ONNX, of any N, H and W.

`python photo.py export --name NAME --out DIR` writes, of what the model has, as .pt2 (`torch.export.load`) and, where
the packages onnx and onnxscript are installed, as .onnx:

    segment(image, box) -> mask                           m = G_seg(x), kept inside the box as in training
    enhance(image, background, mask, noise) -> pasted     y_hat = G_enh(m*x + (1-m)*y)
    inpaint(image, mask, noise) -> removed                x_hat = G_inp((1-m)*x)

What they take and give, and how crops are cut, is told by model.json beside them and in each file (`facts`). Noise is
an input, so that a program has no random state of its own and the caller decides whether it repeats itself.
"""
import importlib.util
import io
import json
import os
import warnings
from functools import partial

import torch
from torch import nn

import losses
from images import written_whole
from networks import box_mask
from photos import edit

TOLERANCE = 1e-3  # of values in [0, 1]: a quarter of a level of 8 bits


class AnySize(nn.Module):
    """A network that takes multiples of its stride, for any H and W: reflected at the right and bottom, cut back.

    The networks do so themselves, but decide with `if` whether to, which a program with dynamic shapes cannot.
    """

    def __init__(self, net):
        super().__init__()
        self.net, self.stride = net, net.stride

    def forward(self, *images):
        rows, columns = (torch.arange(n, device=images[0].device) for n in images[0].shape[-2:])
        below, right = (self.reflected(n, images[0].device) for n in images[0].shape[-2:])
        out = self.net(*(image.index_select(2, below).index_select(3, right) for image in images))
        cut = [image.index_select(2, rows).index_select(3, columns) for image in (out if type(out) is tuple else [out])]
        return tuple(cut) if type(out) is tuple else cut[0]

    def reflected(self, n, device):
        i = torch.arange((n + self.stride - 1) // self.stride * self.stride, device=device)
        return torch.minimum(i, 2 * (n - 1) - i)


class Segment(nn.Module):
    def __init__(self, net, box_prior):
        super().__init__()
        self.net, self.box_prior = net, box_prior

    def forward(self, image, box):
        mask = self.net(2 * image - 1)
        if self.box_prior:
            mask = mask * box_mask(box, image.shape[-2], image.shape[-1], grow=self.box_prior)
        return mask


def segmented(model, image, box):
    """What `Segment` must agree with."""
    return model.segment(2 * image - 1, box)


class Enhance(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, image, background, mask, noise):
        return (self.net(losses.paste(2 * image - 1, 2 * background - 1, mask), noise) + 1) / 2


class Inpaint(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, image, mask, noise):
        return (self.net((1 - mask) * (2 * image - 1), mask, noise)[0] + 1) / 2


# name: module, the model's network that it runs, inputs, output
PROGRAMS = {"segment": (Segment, "G_seg", ("image", "box"), "mask"),
            "enhance": (Enhance, "G_enh", ("image", "background", "mask", "noise"), "pasted"),
            "inpaint": (Inpaint, "G_inp", ("image", "mask", "noise"), "removed")}
COLOURS, GREY = "float32 (N, 3, H, W), RGB in [0, 1]", "float32 (N, 1, H, W)"
TENSORS = {"image": f"{COLOURS}: crops, each around an object", "background": f"{COLOURS}: what the objects go onto",
           "box": "float32 (N, 4): left, top, width, height of each object's box in fractions of its crop",
           "mask": f"{GREY} in [0, 1]: 1 = object", "noise": f"{GREY}, standard normal",
           "pasted": f"{COLOURS}: the objects on the backgrounds", "removed": f"{COLOURS}: crops without the objects"}
CROPS = {"warp": "the object's box grown about its middle by {0:g} in width and in height, resized to {1} x {1} px",
         "keep": "a square about the middle of the object's box, its side {0:g} times the box's longer one, resized to "
                 "{1} x {1} px"}


def facts(model, name):
    """What users of the program `name` must know, plain values: its inputs in order, its output, how to cut crops."""
    _, _, inputs, output = PROGRAMS[name]
    rule = edit.crop_rule(model)
    return {"inputs": {key: TENSORS[key] for key in inputs}, "output": {output: TENSORS[output]},
            "crop": CROPS[rule.fit].format(rule.crop_size / rule.object_size, model.size), "size": model.size,
            "crop_rule": {"fit": rule.fit, "object_size": rule.object_size, "crop_size": rule.crop_size},
            "box_prior": model.box_prior}


def example(inputs, n, height, width, seed=0):
    """Random inputs of a program: {name: tensor}."""
    rng, values = torch.Generator().manual_seed(seed), {}
    for name in inputs:
        shape = n, 3 if COLOURS in TENSORS[name] else 1, height, width
        values[name] = torch.randn(shape, generator=rng) if name == "noise" else torch.rand(shape, generator=rng)
    return values | ({"box": torch.tensor([0.1, 0.15, 0.7, 0.6]).repeat(n, 1)} if "box" in inputs else {})


def axes(inputs, n, height, width):
    """Which axes are dynamic, by the names given: {input: {axis: name}}."""
    return {name: {0: n} if name == "box" else {0: n, 2: height, 3: width} for name in inputs}


def export_model(model, folder: str, onnx: bool | None = None, about=None) -> dict:
    """Write the programs of `model`, which is on the CPU, and model.json to `folder`, and compare each with the model.

    onnx: write ONNX as well; None = where its packages are installed. about: {name: text} to tell beside `facts`.
    Returns {file name: largest difference from the model over several N, H and W, or None if it could not be run}.
    """
    onnx = has("onnx", "onnxscript") if onnx is None else onnx
    os.makedirs(folder, exist_ok=True)
    networks, told, differences = dict(model.named_children()), {}, {}
    for name, (program, network, inputs, output) in PROGRAMS.items():
        if network not in networks:
            continue
        told[name], path = facts(model, name) | (about or {}), os.path.join(folder, name)
        own, net, stride = networks[network], AnySize(networks[network]), networks[network].stride
        net = Segment(net, model.box_prior) if program is Segment else program(net)
        own = partial(segmented, model) if program is Segment else program(own)
        # 2 images and sides of no multiple, so that nothing is taken for a constant
        values = tuple(example(inputs, 2, 2 * stride + 3, 3 * stride + 1).values())
        sizes = (torch.export.Dim(k, min=1 if k == "N" else 2 * stride, max=2**14) for k in "NHW")
        exported = torch.export.export(net.eval(), values, dynamic_shapes=axes(inputs, *sizes))
        write(f"{path}.pt2", torch_program(exported, told[name]))
        run = torch.export.load(f"{path}.pt2").module()
        differences[f"{name}.pt2"] = compare(own, inputs, stride, model.size, run)
        if onnx:
            write(f"{path}.onnx", onnx_program(exported, values, inputs, output, told[name]))
            run = onnx_runner(f"{path}.onnx", inputs) if has("onnxruntime") else None
            differences[f"{name}.onnx"] = compare(own, inputs, stride, model.size, run) if run else None
    write(os.path.join(folder, "model.json"), json.dumps(told, indent=1).encode())
    return differences


def torch_program(exported, told):
    """The bytes of a .pt2, with `told` as its extra file model.json."""
    file = io.BytesIO()  # not the file itself: torch aborts where a disk is full
    torch.export.save(exported, file, extra_files={"model.json": json.dumps(told)})
    return file.getvalue()


def onnx_program(exported, values, inputs, output, told):
    """The bytes of an .onnx with axes N, H and W, and `told` as its metadata, what is no text as JSON."""
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # every tensor says anew that its N, H and W are those of the first
        program = torch.onnx.export(exported, values, input_names=list(inputs), output_names=[output], dynamo=True,
                                    dynamic_shapes=axes(inputs, *"NHW"), verbose=False).model_proto
    onnx.helper.set_model_props(program, {k: v if isinstance(v, str) else json.dumps(v) for k, v in told.items()})
    return program.SerializeToString()


def write(path, data):
    with written_whole(path) as file:
        file.write(data)


def compare(own, inputs, stride, size, run):
    """Largest difference of `run` (tensors -> tensor) from the program `own`, over several N, H and W."""
    worst = 0.0
    for n, height, width in (1, 2 * stride, 2 * stride), (1, size, size), (3, size + 1, 2 * stride + 5):
        values = example(inputs, n, height, width, seed=n).values()
        with torch.no_grad():
            worst = max(worst, (run(*values) - own(*values)).abs().max().item())
    return worst


def onnx_runner(path, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda *values: torch.from_numpy(
        session.run(None, {name: value.numpy() for name, value in zip(inputs, values, strict=True)})[0])


def has(*packages):
    return all(importlib.util.find_spec(package) for package in packages)
