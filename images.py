"""Image files: any kind comes in as upright 8-bit RGB, masks as 0, 128 and 255, and everything is written whole.

Needs numpy and Pillow only and imports nothing of this project, so that every module may use it. `UserError` stands
here for the same reason, and what guards against names and values of files that others made.
"""
import json
import math
import mmap
import os
import stat
import struct
import unicodedata
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

try:
    import pillow_heif
    pillow_heif.register_heif_opener()
except ImportError:
    pillow_heif = None

OBJECT, VOID = 255, 128  # values in a mask file, 0 = background; void is neither and is not scored
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF",  # Pillow has others, and starts Ghostscript for one of them
           *["AVIF"] * ("avif" in features.modules and features.check("avif")), *["HEIF"] * bool(pillow_heif))
# what reads images of these kinds, by which their files begin, where it is absent
NEEDED = {b"ftypavif": "Pillow 11.3 or later", **dict.fromkeys(
    (b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")),
    "the package pillow-heif (pip install pillow-heif)")}
# what Pillow raises on files that are cut short, damaged, hostile or no images
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
              MemoryError, Image.DecompressionBombError, UnidentifiedImageError)
# by EXIF orientation: from upright to how such an image is stored
TURNED_BACK = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
               5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
               8: Image.Transpose.ROTATE_270}


class UserError(ValueError):
    """A mistake of whoever gave the options or the files. Its message is one line: what, the value, what to do.

    Commands print it and end. Any other ValueError is a mistake of ours and keeps its traceback.
    """


# --- what files of others say ---


def printable(text) -> str:
    """`text` on one line and without what a terminal obeys or a stream refuses: such characters are escaped."""
    text = str(text)
    return text if text.isprintable() else "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c
        for c in text)


def is_relative(name) -> bool:
    """Whether a name from a file could be that of a file below a folder: no absolute path, no "..", no "\\" and no
    control character."""
    return isinstance(name, str) and name != "" and not (
        name[0] == "/" or os.path.splitdrive(name)[0] or ".." in name.split("/") or "\\" in name
        or any(unicodedata.category(c) == "Cc" for c in name))


def is_below(name, folder) -> bool:
    """Whether a name from a file may become a path: `is_relative`, and no link in `folder` leads out of it."""
    if not is_relative(name):
        return False
    path = folder
    for part in name.split("/"):
        path = os.path.join(path, part)
        if os.path.islink(path):
            real = os.path.realpath(os.path.join(folder, name))
            return Path(real).is_relative_to(os.path.realpath(folder))
    return True


def is_number(value) -> bool:
    """Whether a value of JSON is a number, and finite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def is_box(value) -> bool:
    """Whether a value of JSON is a box or a window: a list x, y, w, h of numbers below 1e7, w and h not negative."""
    return (isinstance(value, list) and len(value) == 4 and all(is_number(side) and abs(side) < 1e7 for side in value)
            and value[2] >= 0 and value[3] >= 0)


def is_count(value) -> bool:
    """Whether a value of JSON is a whole number from 0 to 1e7, as sizes and places in lists are."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1e7


def fits(value, form) -> bool:
    """Whether a value of JSON has a form.

    form: a type; a function that tells; [form], a list of such; {"key": form}, an object with these keys at least,
    though "key?" may be missing; {function: form}, an object with such keys and values.
    """
    if isinstance(form, type):
        return isinstance(value, form)
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(item, form[0]) for item in value)
    if not isinstance(form, dict):
        return form(value)
    if not isinstance(value, dict):
        return False
    key, item = next(iter(form.items()))
    if not isinstance(key, str):
        return all(fits(k, key) and fits(v, item) for k, v in value.items())
    return all(fits(value[k.rstrip("?")], f) if k.rstrip("?") in value else k.endswith("?") for k, f in form.items())


def _finite(text):
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def parse_json(text, form, finite=False):
    """The value that a JSON text holds; None where it is no JSON, or not of this form (see `fits`), or, if `finite`,
    has NaN or a number too large for a float anywhere."""
    strict = {"parse_float": _finite, "parse_constant": _finite} if finite else {}
    try:
        value = json.loads(text, **strict)
    except (ValueError, RecursionError):
        return None
    return value if fits(value, form) else None


def check_archive(path):
    """zipfile.BadZipFile or OSError, with the reason, for a file of weights that torch must not load: one that is no
    regular file, an archive that would grow or whose checksums, which torch passes over, are wrong, and a pickle that
    reserves memory by a mere number. Takes no memory itself."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is no regular file")
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"\nbytearray\n") >= 0:  # the one callable of those that torch allows
                raise zipfile.BadZipFile("its pickle reserves memory")
            if content[:4] != b"PK\3\4":  # so torch tells archives from its older format, which has no checksums
                return
            with zipfile.ZipFile(file) as archive:
                if any(entry.compress_type for entry in archive.infolist()) \
                        or sum(entry.file_size for entry in archive.infolist()) > len(content):
                    raise zipfile.BadZipFile("it would grow when it is unpacked; torch compresses nothing")
                if archive.testzip() is not None:
                    raise zipfile.BadZipFile("a checksum is wrong")
    except (ValueError, RuntimeError, LookupError, EOFError, struct.error) as error:  # empty; zipfile's on odd archives
        raise zipfile.BadZipFile(str(error)) from error


# --- finding files ---


def list_images(folder, below=False, without=(), endings=EXTENSIONS):
    """Names of the image files in `folder`, sorted; [] if there is no such folder. Hidden ones are passed over.

    below: those of all folders in it too, as names relative to it with "/" between folders.
    without: real paths of files and folders to leave out. endings: of other files in place of images.
    """
    names = []
    for root, folders, files in os.walk(folder):
        real = os.path.realpath(root)
        folders[:] = [name for name in folders if below and not name.startswith(".")]
        if real in without:
            folders.clear()
            continue
        names += [Path(root, name).relative_to(folder).as_posix() for name in files
                  if name.lower().endswith(endings) and not name.startswith(".")
                  and os.path.join(real, name) not in without]
    return sorted(names)


# --- reading ---


def open_lazily(path):
    """`PIL.Image.open`, for FORMATS alone. OSError for what is no regular file: a pipe would be waited for."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError("it is a folder" if stat.S_ISDIR(mode) else "it is no regular file")
    try:
        return Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        with open(path, "rb") as file:
            needed = NEEDED.get(file.read(12)[4:])
        if needed and {"AVIF" if needed[:6] == "Pillow" else "HEIF"}.isdisjoint(FORMATS):
            raise OSError(f"it needs {needed}") from None
        raise


def open_image(path, turn=None, convert=None):
    """The image at `path`, decoded.

    Args:
        turn: `upright` (the default) or `as_stored`.
        convert: from any Pillow mode, default `to_rgb`.

    Raises FileNotFoundError, or OSError if it cannot be read as an image, in one line that names it.
    """
    try:
        with open_lazily(path) as image:
            return (convert or to_rgb)((turn or upright)(image))
    except FileNotFoundError:
        raise FileNotFoundError(f"no image {path}") from None
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(f"cannot read the image {path} ({reason}): replace or remove it") from error


def open_mask(path, soft=False):
    """The mask at `path` as a PIL image of mode L, OBJECT where it is bright, VOID or 0. OSError if it is none.

    soft: with its values as they are, 0..255 of alpha.
    """
    return open_image(path, convert=_to_alpha if soft else lambda image: _to_alpha(image).point(_MASK_VALUES))


def _to_alpha(image):
    grey = image.mode in ("1", "L") or image.mode.startswith("I")
    if not grey or image.has_transparency_data:
        opaque = not image.has_transparency_data or image.convert("RGBA").getextrema()[3][0] == 255
        image = to_rgb(image)
        if not opaque or np.ptp(np.asarray(image), axis=2).max() > 16:  # JPEG's greys are coloured by as much
            raise ValueError("a mask must be grey and opaque, with white for the object")
        image = image.convert("L")
    brightest, white = image.getextrema()[1], 65535 if image.mode[0] == "I" else 255
    if 0 < brightest < white / 2:
        raise ValueError(f"its brightest value is {brightest}: in a mask white, {white}, is object")
    return to_rgb(image).convert("L")


_MASK_VALUES = [OBJECT if grey > VOID else VOID if grey == VOID else 0 for grey in range(256)]


def upright(image):
    """A decoded image, turned as its EXIF orientation says."""
    image.load()  # Pillow turns TIFFs itself, and forgets their orientation, but only here
    return ImageOps.exif_transpose(image)


def as_stored(image):
    """A decoded image, its pixels as they lie in the file, whatever its EXIF orientation."""
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    image.load()
    return image.transpose(TURNED_BACK[orientation]) if image.format == "TIFF" and orientation in TURNED_BACK else image


def stored_size(path):
    """((width, height) as stored, EXIF orientation 1 to 8) from a file's header. UNREADABLE if it has none."""
    with open_lazily(path) as image:
        size, orientation = image.size, image.getexif().get(ExifTags.Base.Orientation, 1)
        if image.format == "TIFF":  # whose size may be given as turned
            size = image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
        return size, orientation


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to 8-bit RGB: 16-bit grey is scaled, not clipped; transparency is laid over white.

    ValueError for floating point numbers, of which none is white.
    """
    if image.mode == "RGB":
        image.load()
        return image
    image = to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey, other modes as they are. ValueError for floating point numbers: none is white."""
    if image.mode == "F":
        raise ValueError("images of floating point numbers have no defined white: save it as 8 or 16 bit")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray((values.clip(0, 65535) / 257 + 0.5).astype(np.uint8))


def resize_mask(mask: np.ndarray, size: int, box=None) -> np.ndarray:
    """`box` of a mask file's values, default all of it, antialiased to (size, size): VOID where at least half is void,
    else OBJECT where at least half of the rest is. box: left, top, right, bottom, floats."""
    def coverage(value):
        image = Image.fromarray((mask == value).astype(np.uint8) * 255)
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box)).astype(np.int32)

    void = coverage(VOID) if (mask == VOID).any() else 0
    object_ = coverage(OBJECT)
    return np.where(2 * void >= 255, VOID, np.where(2 * object_ >= 255 - void, OBJECT, 0)).astype(np.uint8)


# --- writing ---


@contextmanager
def written_whole(path, sync=False):
    """Give a binary file to write: afterwards `path` is the whole of it, and after an error what it was before.

    sync: the new file also outlasts a power cut from then on.
    """
    folder, name = os.path.split(path)
    beside = os.path.join(folder, f".{name}.part")
    if os.path.lexists(beside):
        os.remove(beside)  # not written through: it may be a link to another file
    try:
        with open(beside, "xb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        if os.path.isfile(beside):
            os.remove(beside)
        raise
    if sync and os.name == "posix":  # the rename too; Windows opens no folders
        descriptor = os.open(folder or ".", os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save_png(path, pixels: np.ndarray):
    """Write (H, W) grey or (H, W, 3) RGB uint8 as PNG, whole. Colours are stored uncompressed: half as large again as
    Pillow's usual files, and twice as quick to read."""
    with written_whole(path) as file:
        Image.fromarray(pixels).save(file, "PNG", compress_level=int(pixels.ndim == 2))
