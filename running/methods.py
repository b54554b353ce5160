"""The methods that `python train.py --method NAME` trains, and what a method must have.

A method is a module, with no base class. `--help` must not wait for torch, so what it shows is read from the module's
text (`declared`): the first four are literals, numbers and texts in dicts, without names and calls in them.

    OPTIONS     {name: (default, least value or None, help)}, its own options; False is a switch
    DEFAULTS    {name: value}, what it changes in the defaults of the options that all methods have; may be absent
    PAPER       likewise, what --paper changes; absent where there is no such letter
    LIKE        another method's name: the three above come on top of what that has; may be absent
    NEEDS       what training crops must have beside objects: of "backgrounds", "masks"; "second" asks for another
                image of an object in each draw, "x_real"
    problem(args) -> str | None
                what contradicts itself in the options, in one line
    build(args, crops, device, rank=0) -> trainer
                a new model and its trainer: args, the options; crops, the training `data.Crops`; rank, the number of
                this process among several: noise depends on it, weights (from torch's global seed) do not
    Model       its class. Model(**config), with `config` plain values, has
        config, size, box       size: px of the training images; box: tensor (4,), an image's box where none is given
        segment(x, box=None) -> m
        pictures(x, y, box=None, seed=0) -> {name: images}
                                what it makes of (N, 3, H, W) x and y (None where the data have no backgrounds):
                                "mask" and whatever else is worth showing, in the order of the page
        scores(pictures) -> {name: (N,)}            where it has discriminators
        enhance(z, seed), inpaint(x, m, seed)       where it can; photo.py uses them
        G_inp                   where it has one, a `networks.InpaintingNet`; the figures of fills use it
        from_state(state)       class method: the model of a checkpoint, ready for inference
        ready                   False while a first stage lasts, in which nothing segments; absent = True. Until then
                                `pictures` has no "mask"
        polarity                of a method that nobody tells which region is the object, a `neighbour.Polarity`
        crf_bias                that of the run, for `crf.refine_box`; running/checkpoint.py sets it
                                A member that a model does not have is None or absent.

A trainer has

    step        updates done so far
    model, averaged     the model that is trained, and the one that tests use (its running average, or itself)
    share       to be set where several processes train: called with the parameters after each backward pass
    teacher     to be set: (x, box, mask or None) -> the masks that a box teaches; not every method heeds it
    train_step(batch, lr_factor) -> {name: detached scalar tensor}
                batch: of `data.UnpairedCrops`; the terms, the figures of `losses.mask_figures`, and "skipped", 1 where
                a step was not applied because a gradient was not finite
    state_dict(), load_state_dict(state)
                plain containers with "step", "networks" and "averaged" ({network: state dict}) and what else it needs
"""
import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

METHODS = {"seigan": "seigan", "nocycle": "baselines.nocycle", "supervised": "baselines.supervised",
           "boxes": "baselines.boxes", "redo": "baselines.redo", "perturbgan": "baselines.perturbgan",
           "comgan": "baselines.comgan", "dscomgan": "baselines.dscomgan"}
# what each learns from, beside images of objects
SUPERVISION = {**dict.fromkeys(("seigan", "nocycle", "boxes"), "boxes, backgrounds"),
               "supervised": "masks, backgrounds",
               **dict.fromkeys(("redo", "perturbgan", "comgan", "dscomgan"), "nothing")}


def declared(name):
    """{"OPTIONS": ..., "DEFAULTS": ..., "PAPER": ...}, as far as there are any, of a method that is not imported."""
    body = ast.parse(Path(find_spec(METHODS[name]).origin).read_text(encoding="utf-8")).body
    own = {node.targets[0].id: ast.literal_eval(node.value) for node in body if isinstance(node, ast.Assign)
           and ast.unparse(node.targets[0]) in ("OPTIONS", "DEFAULTS", "PAPER", "LIKE")}
    like = declared(own.pop("LIKE")) if "LIKE" in own else {}
    return like | {key: like.get(key, {}) | values for key, values in own.items()}


def load(name):
    """The module of the method called `name`, one of METHODS."""
    return import_module(METHODS[name])
