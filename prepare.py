"""From photographs and boxes to crops (§4.1, §4.2), in the folders that data.py reads.

    python prepare.py coco --images DIR --annotations FILE.json --out DATAROOT     so too csv, yolo, labelme, boxes
    python prepare.py voc --root DIR --out DATAROOT                                so too pets, cub, cityscapes
    python prepare.py detect --images DIR --out DATAROOT                           boxes from a pretrained detector
    python prepare.py folder --objects DIR --backgrounds DIR --out DATAROOT        crops that exist already
    python prepare.py demo --out DATAROOT                                          the procedural demo set
    python prepare.py check DATAROOT                                               look through finished crops

Further sources are appended to what DATAROOT holds. An interrupted command goes on when it is repeated.
"""
import dataclasses
import os
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from crops import annotations as sources
from crops import detector
from crops.build import Output, Source, build, build_finished
from crops.check import check_crops, verdict
from crops.demo import make_demo
from crops.formats import KINDS, read_boxes
from crops.index import SPLITS, own_files
from crops.rules import PRESETS, Rules
from images import UserError, is_below, printable
from running.folder import alone_in
from running.options import add_command, add_device, command, make_parser, names, number, pick_device, whole

# --- options ---


def parse_args(argv):
    parser = make_parser("prepare.py", "Prepare crops of objects and of backgrounds.")
    commands = parser.add_subparsers(dest="command", required=True)
    add_sources(commands)
    add_data_sets(commands)

    folder = add_command(commands, "folder", "a dataset from crops that exist already")
    folder.set_defaults(run=run_folder)
    folder.add_argument("--objects", required=True, metavar="DIR", help="images with an object (X)")
    folder.add_argument("--backgrounds", required=True, metavar="DIR", help="images without objects (Y)")
    folder.add_argument("--masks", metavar="DIR", help="dog.png or dog.jpg.png for dog.jpg: above 127 object, 128 void")
    folder.add_argument("--name", default="object", help="class of the objects")
    add_output_options(folder)
    add_crop_options(folder, "--crop_size: the object may be anywhere",
                     "warp: the image becomes a square; keep: the largest square in its middle is taken")

    demo = add_command(commands, "demo", "make the procedural demo set")
    demo.set_defaults(run=lambda args: make_demo(args.out, args.seed))
    demo.add_argument("--out", required=True, metavar="DATAROOT", help="folder to write")
    demo.add_argument("--seed", type=whole(), default=0, metavar="N", help="of the images")

    checked = add_command(commands, "check", "look through finished crops for faults")
    checked.set_defaults(run=run_check)
    checked.add_argument("dataroot", metavar="DATAROOT", help="folder of the crops")
    add_num_workers(checked, "processes that decode")
    return parser.parse_args(argv)


def add_source(commands, name, read, text, aliases=()):
    """A command that reads photographs and boxes. read(args, skips) -> the folder of the photographs, what their boxes
    are from (see `Source`), and the `Photo`s."""
    parser = add_command(commands, name, text, aliases=aliases)
    parser.set_defaults(run=run_source, read=read)
    add_output_options(parser)
    add_rule_options(parser)
    return parser.add_argument


def add_sources(commands):
    add = add_source(commands, "boxes", from_boxes, "crops from images and their boxes, whose format is recognised",
                     ("coco", "csv", "yolo", "labelme"))
    add("--images", required=True, metavar="DIR", help="folder that the file names refer to")
    add("--annotations", required=True, metavar="FILE|DIR",
        help="COCO instances JSON; CSV with a header: file, x,y,w,h or xmin,ymin,xmax,ymax; optional class, id, score, "
             "crowd, mask; CSV of TFOD, VIA, Open Images; or a folder: YOLO, LabelMe, VOC's XML beside the images")

    add = add_source(commands, "detect", from_detector, "crops from photographs without boxes, by a Faster R-CNN")
    add("--images", required=True, metavar="DIR", help="folder of photographs")
    add("--detector_weights", metavar="FILE",
        help="state dict of torchvision's fasterrcnn_resnet50_fpn [downloaded]")
    add("--boxes", metavar="FILE", help="keeps detections, to go on from later [DATAROOT/detections_SPLIT.jsonl]")
    add("--least_score", type=number(0, 1), default=detector.LEAST_SCORE, metavar="F",
        help="detections of a lower score, 0..1, do not even keep crops away")
    add_device(add)


def add_data_sets(commands):
    """Data sets that come in a layout of their own."""
    add = add_source(commands, "voc", from_voc, "crops from Pascal VOC")
    add("--root", required=True, metavar="DIR",
        help="holds Annotations and JPEGImages, e.g. VOCdevkit/VOC2012; where to put a download")
    add("--image_set", metavar="NAME",
        help="list below ImageSets without .txt, e.g. Segmentation/train [every XML file]")
    add("--download", choices=tuple(f"voc{year}" for year in range(2007, 2013)),
        help="download this year's first, to --root")

    add = add_source(commands, "pets", from_pets, "crops from Oxford-IIIT Pet: cats and dogs with masks")
    add("--root", required=True, metavar="DIR", help="holds images and annotations; or where to put a download")
    add("--image_set", choices=("trainval", "test"), default="trainval", help="list of images")
    add("--download", choices=("oxford-pets",), help="download it first, to --root")

    add = add_source(commands, "cub", from_cub, "crops from CUB-200-2011: birds with boxes and masks")
    add("--root", required=True, metavar="DIR", help="holds images.txt, images and, for masks, segmentations")
    add("--image_set", choices=("train", "test"), default="train", help="part of train_test_split.txt")

    add = add_source(commands, "cityscapes", from_cityscapes, "crops from Cityscapes")
    add("--root", required=True, metavar="DIR", help="holds gtFine and leftImg8bit")
    add("--image_set", choices=("train", "val"), default="train",
        help="Cityscapes' own split; its test has no annotations")
    add("--detections", metavar="FILE",
        help="take leftImg8bit_sequence/IMAGE_SET with these boxes: .jsonl of `detect`, or COCO .json")


def add_output_options(parser):
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--out", required=True, metavar="DATAROOT",
        help="folder for the crops; further sources are appended to what it holds")
    add("--split", choices=(*SPLITS, "auto"), default="train",
        help="where the crops go; auto: by a hash of each image's name")
    for split in ("test", "val"):
        add(f"--{split}_fraction", type=number(0, 1), default=0.1, metavar="F",
            help=f"share of the images that --split auto sends to {split}, 0..1")
    add_num_workers(group, "processes that decode and cut; the crops are the same")


def add_num_workers(parser, text):
    parser.add_argument("--num_workers", type=whole(0, 256), default=min(os.cpu_count() or 1, 16), metavar="N",
                        help=f"{text} [one a core, at most 16]")


def add_rule_options(parser):
    """The crop rules. Their defaults stay None here, so that the preset fills what is not given."""
    group = parser.add_argument_group("crop rules (a preset, and what differs from it)")
    add = group.add_argument
    add("--preset", choices=tuple(PRESETS), default="coco",
        help="dogs: 64 px objects (§4.1); coco: 100 px objects (§4.2)")
    add_crop_options(group, "dogs 64, coco 100",
                     "warp: the box becomes a square; keep: its aspect stays, long side = object_size")
    add("--min_side", type=number(0, 1e5), metavar="PX",
        help="the box's smaller side must exceed this, source pixels [dogs 60, coco 20]")
    add("--max_fraction", type=number(0, 1), metavar="F",
        help="the box's longer side / the image's longer side at most; 0 or 1 = off [0.4]")
    add("--min_aspect", type=number(0, 1), metavar="F",
        help="the box's smaller / larger side must exceed this [dogs 0, coco 0.4]")
    add("--outside", choices=("drop", "reflect"),
        help="objects whose crop would leave the image: drop; or reflect: the image's reflection fills it, void in the "
             "masks [drop]")
    add("--max_outside", type=number(0, 1), metavar="F",
        help="with --outside reflect: share of the crop's area beyond the image at most [0.5]")
    add("--classes", type=names, metavar="A,B", help="only these classes become objects [all]")
    add("--exclude", type=names, metavar="A,B", help="these never become objects [none]")
    add("--min_score", type=number(0, 1), metavar="F",
        help="a detection's score, 0..1, from which it may be an object; all keep crops away [detect 0.8, else 0]")
    add("--same_object", type=number(0, 1), metavar="F",
        help="a detection whose IoU with one of a higher score is at least this, of whatever class, is the same object "
             "once more, and so are parts of its class inside; 1 = off [0.5]")
    add("--y_per_x", type=number(0, 100), metavar="R", help="backgrounds per object [2]")
    add("--y_per_image", type=whole(1, 1000), metavar="N", help="most backgrounds from one image [8]")
    add("--y_from", metavar="same|any|DIR",
        help="backgrounds from: same = images that give an object; any = all annotated images; DIR = a folder of "
             "images without objects, divided between the splits unless it is named as one, as backgrounds/train [any]")
    add("--seed", type=whole(0, 2**31 - 1), metavar="N", help="of background positions [0]")


def add_crop_options(group, object_size: str, fit: str):
    """What a crop is like. object_size: its default; fit: what the choices mean."""
    group.add_argument("--crop_size", type=whole(8, 2048), metavar="PX", help="side of a crop, pixels [128]")
    group.add_argument("--object_size", type=whole(4, 2048), metavar="PX",
                       help=f"side of the object's box in the crop, pixels [{object_size}]")
    group.add_argument("--fit", choices=("warp", "keep"), help=f"{fit} [warp]")


def rules_from(args, **defaults) -> Rules:
    """Rules of the preset, then `defaults`, then the flags given. UserError when they contradict."""
    given = {field.name: vars(args).get(field.name) for field in dataclasses.fields(Rules)}
    rules = Rules(**{**PRESETS.get(vars(args).get("preset"), {}), **defaults,
                     **{key: value for key, value in given.items() if value is not None}})
    if rules.object_size > rules.crop_size:
        raise UserError(f"--object_size must be at most --crop_size {rules.crop_size}, got {rules.object_size}")
    if rules.y_from not in ("same", "any") and not Path(rules.y_from).is_dir():
        raise UserError(f"--y_from must be same, any or a folder of images, got {rules.y_from!r}")
    both = set(rules.classes) & set(rules.exclude)
    if both:
        raise UserError(f"--classes and --exclude both name {sorted(both)[0]!r}: keep it in one of them")
    return rules


def output_from(args) -> Output:
    return Output(args.out, args.split, args.test_fraction, args.val_fraction, args.num_workers)


# --- where photographs and boxes come from ---


def from_boxes(args, skips):
    kind, photos = read_boxes(args.images, args.annotations, skips)
    if args.command != kind:
        print(printable(f"{args.annotations}: read as {KINDS[kind]}"))
    args.command = kind  # by which the source is known when it comes again, whatever the command is called then
    return args.images, os.path.abspath(args.annotations), photos


def from_voc(args, skips):
    root = args.root
    if args.download:
        from torchvision.datasets import VOCDetection

        year = args.download.removeprefix("voc")
        download(args.download, partial(VOCDetection, root, year=year, image_set="trainval", download=True))
        root = f"{root}/{'TrainVal/' if year == '2011' else ''}VOCdevkit/VOC{year}"
    return root, args.image_set or "all", sources.read_voc(root, args.image_set, skips)


def from_pets(args, skips):
    root = args.root
    if args.download:
        from torchvision.datasets import OxfordIIITPet

        download(args.download, partial(OxfordIIITPet, root, target_types="segmentation", download=True))
        root = f"{root}/oxford-iiit-pet"
    return root, args.image_set, sources.read_pets(root, args.image_set, skips)


def from_cub(args, skips):
    return args.root, args.image_set, sources.read_cub(args.root, args.image_set, skips)


def download(name, fetch):
    """Run a torchvision download; UserError in one line when it fails."""
    try:
        fetch()
    except (OSError, RuntimeError) as error:
        why = str(error).splitlines()[0] if str(error) else repr(error)
        raise UserError(f"{name} cannot be downloaded ({why}): fetch it elsewhere and give its folder as --root "
                        "without --download") from None


def from_cityscapes(args, skips):
    if not args.detections:
        return (f"{args.root}/leftImg8bit/{args.image_set}", "gtFine",
                sources.read_cityscapes(args.root, args.image_set, skips))
    images = f"{args.root}/leftImg8bit_sequence/{args.image_set}"
    read = sources.read_detections if args.detections.endswith(".jsonl") else sources.read_coco
    return images, os.path.abspath(args.detections), read(images, args.detections, skips)


def from_detector(args, skips):
    path, device = Path(args.boxes or Path(args.out, f"detections_{args.split}.jsonl")), pick_device(args.device)
    if not args.boxes and not is_below(path.name, args.out):
        raise UserError(f"{path} is a link that leads out of {args.out}: name its file as --boxes")
    model = detector.load_detector(args.detector_weights, device)
    find = partial(detector.detect_boxes, model, names=detector.category_names(), device=device,
                   least_score=args.least_score)
    detector.detect_folder(args.images, path, find, skips, own_files(args.out), args.least_score)
    return args.images, os.path.abspath(path), sources.read_detections(args.images, path, skips)


# --- commands ---


def run_source(args):
    detected = (args.command == "detect" or vars(args).get("detections")
                or str(vars(args).get("annotations")).endswith(".jsonl"))
    rules, output, skips = rules_from(args, min_score=0.8 if detected else 0.0), output_from(args), sources.Skips()
    images, annotations, photos = args.read(args, skips)
    build(Source(args.command, images, annotations, photos, skips), rules, output)


def run_folder(args):
    whole_crop = args.crop_size or Rules.crop_size  # the box, unless --object_size says better
    rules = rules_from(args, object_size=whole_crop, min_side=0.0, max_fraction=0.0, min_aspect=0.0, y_per_x=0.0)
    for folder in (args.objects, args.backgrounds, args.masks):
        if folder and any(Path(folder).resolve().is_relative_to(Path(args.out, split).resolve()) for split in SPLITS):
            raise UserError(f"{folder} lies where --out {args.out} would put the crops, which would replace the images "
                            "they are made from: name another --out")
    skips, own = sources.Skips(), own_files(args.out)
    objects = sources.read_folder(args.objects, skips, "objects/", own)
    backgrounds = sources.read_folder(args.backgrounds, skips, "backgrounds/", own)
    masks = folder_masks(args.masks, objects, own) if args.masks else {}
    source = Source("folder", args.objects, os.path.abspath(args.backgrounds), objects, skips)
    build_finished(source, backgrounds, masks, args.name, rules, output_from(args))


def folder_masks(folder, objects, own):
    """{stem of an object: path of its mask}, which has its name, the ending replaced by another or followed by it.
    UserError where no object has one."""
    files = {os.path.splitext(name)[0]: f"{folder}/{name}" for name in sources.photo_files(folder, own)}
    names = [photo.file.removeprefix("objects/") for photo in objects]
    masks = {stem: files[key] for name in names for stem in [os.path.splitext(name)[0]]
             for key in (name, stem) if key in files}
    if not masks:
        raise UserError(f"no mask in {folder} has an object's name: that of {names[0]} is "
                        f"{os.path.splitext(names[0])[0]}.png or {names[0]}.png")
    return masks


def run_check(args):
    problems, remarks = check_crops(args.dataroot, args.num_workers)
    print(*map(printable, problems[:50]), sep="\n", end="\n" if problems else "")
    if problems:
        raise UserError(f"{len(problems)} problems in {args.dataroot}, the first of them listed above")
    print(verdict(remarks))


def run(argv):
    args = parse_args(argv)
    for option in ("images", "out"):
        if os.path.isfile(vars(args).get(option, "")):
            raise UserError(f"--{option} takes a folder, {vars(args)[option]} is a file")
    with alone_in(args.out, "name another --out") if "out" in args else nullcontext():
        args.run(args)


def main(argv=None):
    return command("prepare.py", run, argv, "stopped: the same command goes on where it was")


if __name__ == "__main__":
    sys.exit(main())
