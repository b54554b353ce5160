"""Photographs as files: any kind that Pillow reads comes in, and what describes it goes out with the result.

A photograph is worked on as 8-bit RGB, RGBA, L or LA, turned upright as its EXIF orientation says.
"""
import io
import os

import numpy as np
from PIL import ExifTags, Image, ImageCms

from images import UNREADABLE, UserError, open_image, to_8_bits, upright, written_whole

FORMATS = {"png": ("PNG", {"compress_level": 3}), "tiff": ("TIFF", {"compression": "tiff_lzw"}),
           "webp": ("WEBP", {"lossless": True}), "jpg": ("JPEG", {"quality": 95, "subsampling": 0})}
# What stays true of a changed image. Thumbnails and maker notes, which may show the old one, do not.
EXIF_KEPT = {ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.DateTime,
             ExifTags.Base.Artist, ExifTags.Base.Copyright, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo}
EXIF_DROPPED = (ExifTags.Base.MakerNote, ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight,
                ExifTags.IFD.Interop)


def open_photo(path) -> Image.Image:
    """The photograph at `path`, as `normalise` gives it. OSError, in one line that names it, if it cannot be read."""
    return open_image(path, turn=lambda image: image, convert=normalise)  # which turns it


def normalise(image: Image.Image) -> Image.Image:
    """Any PIL image (of an animation the first frame) as 8-bit RGB, RGBA, L or LA, upright.

    Its `info` keeps "icc_profile", "exif" and "dpi" where they still hold: CMYK becomes sRGB, 16 bits become 8, and
    the EXIF orientation goes, as do thumbnails. The original is not changed.
    ValueError for modes without a defined brightness ("F") and without a way to RGB.
    """
    if getattr(image, "is_animated", False):
        image.seek(0)
    image = upright(image)
    info = {"exif": described(image), "icc_profile": image.info.get("icc_profile"), "dpi": image.info.get("dpi")}
    image = to_8_bits(image)
    if image.mode == "CMYK":  # by the plain formula where it has no profile that can be used, as viewers do
        profile, info["icc_profile"] = info["icc_profile"], None
        image = profile and converted(image, profile, None) or image.convert("RGB")
    elif image.mode in ("1", "La"):
        image = image.convert("L" if image.mode == "1" else "LA")
    elif "transparency" in image.info or image.mode in ("PA", "RGBa"):
        image = image.convert("LA" if image.mode == "L" else "RGBA")
    elif image.mode not in ("RGB", "RGBA", "L", "LA"):
        image = image.convert("RGB")
    image.info = {key: value for key, value in info.items() if value}
    return image


def described(image):
    """The EXIF block that goes out with `image`, bytes; None if there is none that can be read."""
    try:
        old, new = image.getexif(), Image.Exif()
        for tag in EXIF_KEPT & set(old):
            is_folder = tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
            new[tag] = dict(old.get_ifd(tag)) if is_folder else old[tag]
        for tag in EXIF_DROPPED:
            new.get(ExifTags.IFD.Exif, {}).pop(tag, None)
        return new.tobytes() if len(new) else None
    except (*UNREADABLE, AttributeError):
        return None


def converted(image, source, target):
    """An RGB or CMYK image of colour profile `source` as RGB of `target` (ICC bytes, None = sRGB); None if one of them
    cannot be used."""
    srgb = ImageCms.createProfile("sRGB")
    try:
        source, target = (ImageCms.ImageCmsProfile(io.BytesIO(p)) if p else srgb for p in (source, target))
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return None


def to_profile(image: Image.Image, profile) -> Image.Image:
    """A normalised image in the colours of `profile` (ICC bytes, None = sRGB), so that it fits on an image
    that has it. Unchanged where both agree or either profile cannot be used."""
    own = image.info.get("icc_profile")
    out = None if own == profile else converted(image.convert("RGB"), own, profile)
    if out is None:
        return image
    if image.mode in ("RGBA", "LA"):
        out.putalpha(image.getchannel("A"))
    out.info = dict(image.info, icc_profile=profile)
    return out


def split(image: Image.Image):
    """A normalised image -> its colours (H, W, 3) uint8, its alpha (H, W) uint8 or None, and what viewers show, the
    colours over white."""
    rgb = np.asarray(image.convert("RGB"))
    if image.mode not in ("RGBA", "LA"):
        return rgb, None, rgb
    white, alpha = Image.new("RGB", image.size, "white"), image.getchannel("A")
    white.paste(image, mask=alpha)
    return rgb, np.asarray(alpha), np.asarray(white)


def merge(rgb: np.ndarray, alpha, like: Image.Image, mode=None) -> Image.Image:
    """The inverse of `split`, with the description of `like`; mode "RGB" (default) or "L", "A" added by alpha."""
    image = Image.fromarray(rgb)
    if mode == "L":
        image = image.convert("L")
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    image.info = dict(like.info)
    if mode != "L" and like.mode in ("L", "LA"):
        image.info.pop("icc_profile", None)  # a grey profile says nothing of colours
    return image


def format_of(path):
    """The one of FORMATS that the ending of `path` means, None if it means none."""
    ending = os.path.splitext(path)[1][1:].lower()
    ending = {"jpeg": "jpg", "tif": "tiff"}.get(ending, ending)
    return ending if ending in FORMATS else None


def save(image: Image.Image, path):
    """Write `image` with its description, whole, in the format of FORMATS that `path` ends in.

    UserError for what the format cannot hold.
    """
    ending = format_of(path)
    if ending == "jpg" and image.mode in ("RGBA", "LA"):
        raise UserError("jpg has no transparency: choose png, tiff or webp")
    info = {k: image.info[k] for k in ("icc_profile", "exif", "dpi") if k in image.info}
    name, options = FORMATS[ending]
    if ending == "tiff" and has_folders(info.get("exif")):
        options = {}  # Pillow's compressed TIFFs cannot hold what a camera says of a photograph
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    try:
        with written_whole(path) as file:
            image.save(file, name, **options, **info)
    except (RuntimeError, ValueError) as error:  # libtiff's; the largest sides that formats have
        raise UserError(f"cannot write {path}: {error}; choose another --format") from error


def has_folders(exif):
    """Whether an EXIF block, bytes or None, has the folders for the camera's settings or the place."""
    block = Image.Exif()
    block.load(exif)
    return ExifTags.IFD.Exif in block or ExifTags.IFD.GPSInfo in block
