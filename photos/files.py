"""Photographs as files: any kind that Pillow reads comes in, and what describes it goes out with the result.

A photograph is worked on as 8-bit RGB, RGBA, L or LA, turned upright as its EXIF orientation says.
"""
import io
import os
import struct

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from images import to_8_bits

FORMATS = {"png": {"compress_level": 3}, "tiff": {"compression": "tiff_lzw"}, "webp": {"lossless": True},
           "jpg": {"quality": 95, "subsampling": 0}}  # ending: how it is written; all but jpg keep every pixel
BROKEN = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, struct.error,
          MemoryError, Image.DecompressionBombError)  # what Pillow raises on files that are not what they seem
# What stays true of a changed picture. Thumbnails and maker notes, which may show the old one, do not.
EXIF_KEPT = {ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.DateTime,
             ExifTags.Base.Artist, ExifTags.Base.Copyright, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo}
EXIF_DROPPED = (ExifTags.Base.MakerNote, ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight,
                ExifTags.IFD.Interop)


def open_photo(path) -> Image.Image:
    """The photograph at `path`, as `normalise` gives it. ValueError, naming it, if it is none."""
    try:
        with Image.open(path) as image:
            return normalise(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None
    except BROKEN as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot read {path} as a photograph: {reason}") from error


def normalise(image: Image.Image) -> Image.Image:
    """Any PIL image (of an animation the first frame) as 8-bit RGB, RGBA, L or LA, upright.

    Its `info` keeps "icc_profile" and "exif" where they still hold: CMYK becomes sRGB, 16 bits become 8, and
    the EXIF orientation goes, as do thumbnails. The original is not changed.
    ValueError for modes without a defined brightness ("F") and without a way to RGB.
    """
    if getattr(image, "is_animated", False):
        image.seek(0)
    image = ImageOps.exif_transpose(image)
    info = {"exif": described(image), "icc_profile": image.info.get("icc_profile"), "dpi": image.info.get("dpi")}
    image = to_8_bits(image)
    if image.mode == "CMYK":
        image, info["icc_profile"] = cmyk_to_rgb(image, info["icc_profile"]), None
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
    except (*BROKEN, AttributeError):
        return None


def cmyk_to_rgb(image, profile):
    """CMYK to sRGB by its colour profile; by the plain formula where it has none or a broken one."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # the plain formula is what viewers fall back to as well
    return image.convert("RGB")


def to_profile(image: Image.Image, profile) -> Image.Image:
    """A normalised image in the colours of `profile` (ICC bytes, None = sRGB), so that it fits on a picture
    that has it. Unchanged where both agree or either profile cannot be used."""
    own = image.info.get("icc_profile")
    if own == profile:
        return image
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    srgb = ImageCms.createProfile("sRGB")
    try:
        source, target = (ImageCms.ImageCmsProfile(io.BytesIO(p)) if p else srgb for p in (own, profile))
        converted = ImageCms.profileToProfile(image.convert("RGB"), source, target)
    except (ImageCms.PyCMSError, OSError):
        return image
    if alpha is not None:
        converted.putalpha(alpha)
    converted.info = dict(image.info, icc_profile=profile)
    return converted


def split(image: Image.Image):
    """A normalised image -> its colours (H, W, 3) uint8 and its alpha (H, W) uint8 or None."""
    alpha = np.asarray(image.getchannel("A")) if image.mode in ("RGBA", "LA") else None
    return np.asarray(image.convert("RGB")), alpha


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


def over_white(rgb: np.ndarray, alpha) -> np.ndarray:
    """What a viewer shows, and what crops for training are cut from: transparency laid over white."""
    if alpha is None:
        return rgb
    white = Image.new("RGB", (rgb.shape[1], rgb.shape[0]), "white")
    white.paste(Image.fromarray(rgb), mask=Image.fromarray(alpha))
    return np.asarray(white)


def save(image: Image.Image, path):
    """Write `image` with its description; `path` holds either what was there or the whole new file.

    ValueError for what the format cannot hold.
    """
    ending = os.path.splitext(path)[1][1:]
    if ending == "jpg" and image.mode in ("RGBA", "LA"):
        raise ValueError("jpg has no transparency: choose png, tiff or webp")
    described_by = {k: image.info[k] for k in ("icc_profile", "exif", "dpi") if k in image.info}
    options = dict(FORMATS[ending])
    if ending == "tiff" and has_folders(described_by.get("exif")):
        options["compression"] = None  # Pillow's compressed TIFFs cannot hold what a camera says of a photograph
    folder, name = os.path.split(path)
    part = os.path.join(folder, f".{os.getpid()}.{name}")
    os.makedirs(folder or ".", exist_ok=True)
    try:
        image.save(part, "JPEG" if ending == "jpg" else ending.upper(), **options, **described_by)
        os.replace(part, path)
    except RuntimeError as error:  # libtiff's
        raise ValueError(f"cannot write {path}: {error}; choose another --format") from error
    finally:
        if os.path.exists(part):
            os.remove(part)


def has_folders(exif):
    """Whether an EXIF block, bytes or None, has the folders for the camera's settings or the place."""
    block = Image.Exif()
    block.load(exif)
    return ExifTags.IFD.Exif in block or ExifTags.IFD.GPSInfo in block
