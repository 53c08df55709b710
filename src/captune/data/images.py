"""Open one image safely: an upright 8-bit RGB image, or a `BadImage` that says why not.

Pillow opens a truncated file without complaint and fails only when pixels are read, so images are decoded at once.
(A program that sets ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` gets truncated images.)
"""

from __future__ import annotations

import importlib
import io
import logging
import math
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from captune.errors import BadImage

logger = logging.getLogger(__name__)

MAX_PIXELS = 178_956_970
"""Images with more pixels are refused as decompression bombs (the size at which Pillow itself refuses)."""

LARGE_PIXELS = 2**25
"""Images with more pixels are reduced while they are decoded, to at most `REDUCED_PIXELS`: no model sees more."""

REDUCED_PIXELS = 2**24

BATCH_PIXELS = 160_000_000
"""What a batch of images may have in memory, decoded: 0.6 GB, and as much again while a processor copies them."""

_ORIENTATION = 0x0112  # of EXIF
_KINDS = "apng avif bmp dib gif heic heif jfif jp2 jpe jpeg jpg jxl pbm pgm png pnm ppm tga tif tiff webp"
IMAGE_SUFFIXES = frozenset(f".{kind}" for kind in _KINDS.split(" "))
"""File names that a folder source takes for images; compared in lower case."""


_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
#: What Pillow reads with a plugin: its name, the plugin's module, and what to install.
_PLUGINS = (("HEIC", "pillow_heif", "pillow-heif"), ("JPEG XL", "pillow_jxl", "pillow-jxl-plugin"))

BLANK_SIDE = 224
"""Pixels of the blank image; processors resize it as any other."""


def blank() -> Image.Image:
    """Return the image that shows nothing: mid-grey."""
    return Image.new("RGB", (BLANK_SIDE, BLANK_SIDE), (128, 128, 128))


def open_image(
    image: Any, item: str | None = None, *, max_pixels: int = MAX_PIXELS, large: int | None = None
) -> Image.Image:
    """Return the image as upright 8-bit RGB, fully loaded.

    EXIF rotation is applied, transparency is laid on white, 16-bit and floating-point images are scaled (not clipped)
    to 8 bits, and of an animation the first frame is taken. A large image is reduced by a whole factor, to at most
    `REDUCED_PIXELS`.

    Args:
        image: a path, the file's bytes, a ``{"bytes", "path"}`` pair as `datasets` stores images, or a PIL image.
        item: the name used in errors; None: the path.
        max_pixels: a larger image is refused.
        large: an image with more pixels is large; None: with more than `LARGE_PIXELS`.

    Raises:
        BadImage: if the image cannot be used.
    """
    large = LARGE_PIXELS if large is None else large
    item = item if item is not None else _name(image)
    if not isinstance(image, Image.Image):
        data = read_image(image, item)
        _refuse_other_files(data, item)
        image = _open(data, item, max_pixels)
    try:
        image.load()
        if image.width * image.height > large:
            image = _reduced(image, min(large, REDUCED_PIXELS))
        return to_rgb(_upright(image, item))
    except Exception as error:  # Pillow's plugins raise whatever their parser stumbles over; the item is bad either way
        raise BadImage(item, _why(error)) from error


def opened(images: Sequence[Any], size: int, pixels: int = BATCH_PIXELS) -> Iterator[list[Image.Image]]:
    """Yield images, opened, in batches: of `size`, or of fewer that have at most so many pixels together.

    Args:
        images: whatever `open_image` takes; one that stands there several times in a row is opened once.
        size: images in a batch.
        pixels: of the different images of a batch, but for one that has more by itself.
    """
    batch: list[Image.Image] = []
    known: dict[int, tuple[Any, Image.Image]] = {}
    total = 0
    for index in range(len(images)):
        given = images[index]
        if id(given) not in known:
            image = open_image(given)
            if batch and total + image.width * image.height > pixels:
                yield batch
                batch, known, total = [], {}, 0
            known[id(given)] = given, image  # which keeps its id from being another's
            total += image.width * image.height
        batch.append(known[id(given)][1])
        if len(batch) == size:
            yield batch
            batch, known, total = [], {}, 0
    if batch:
        yield batch


def upright_rgb(image: Any) -> Image.Image:
    """Return `open_image` of what may be an image that it has returned already, which costs nothing then."""
    plain = isinstance(image, Image.Image) and image.mode == "RGB" and "transparency" not in image.info
    return image if plain and image.getexif().get(_ORIENTATION, 1) == 1 else open_image(image)


def image_size(image: Any, item: str | None = None) -> tuple[int, int]:
    """Return (width, height) in pixels from the header alone, before any EXIF rotation.

    Raises:
        BadImage: if the image cannot be used.
    """
    if isinstance(image, Image.Image):
        return image.size
    item = item if item is not None else _name(image)
    path = image_path(image)
    if path is not None:
        _regular_file(path, item)
        return _open(path, item, MAX_PIXELS).size
    return _open(read_image(image, item), item, MAX_PIXELS).size


def _name(image: Any) -> str:
    if isinstance(image, dict):
        return str(image.get("path") or _name(image.get("bytes")))
    if isinstance(image, bytes | bytearray | memoryview):
        return f"an image of {len(image):,} bytes without a name"
    return str(image) if isinstance(image, str | os.PathLike) else "image"


def image_path(image: Any) -> str | None:
    """Return the file that an image is in; None for bytes and PIL images.

    No `Path`: it keeps the names of its parts in a table of the interpreter's, which grows with every image.
    """
    if isinstance(image, dict):
        return str(image["path"]) if image.get("bytes") is None and image.get("path") else None
    return str(image) if isinstance(image, str | os.PathLike) else None


def _regular_file(path: str, item: str) -> None:
    try:
        status = os.stat(path)
    except OSError as error:
        if "\\udc" in path:
            raise BadImage(item, "its file name is not valid UTF-8; rename the file") from error
        raise BadImage(item, error.strerror or str(error)) from error
    if not stat.S_ISREG(status.st_mode):  # reading a named pipe would wait for ever
        raise BadImage(item, "is not a regular file")
    if status.st_size == 0:
        raise BadImage(item, "is empty (0 bytes)")


def read_image(image: Any, item: str) -> bytes:
    """Return an image's bytes, undecoded.

    Raises:
        BadImage: if it has no bytes.
    """
    path = image_path(image)
    if path is not None:
        _regular_file(path, item)
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise BadImage(item, error.strerror or str(error)) from error
    data = image.get("bytes") if isinstance(image, dict) else image
    if data is None:
        raise BadImage(item, "the source holds no image here")
    if not isinstance(data, bytes | bytearray | memoryview):
        raise BadImage(item, f"expected a path, bytes or a PIL image, got {type(data).__name__}")
    if len(data) == 0:
        raise BadImage(item, "is empty (0 bytes)")
    return bytes(data)


def _refuse_other_files(data: bytes, item: str) -> None:
    """Raise BadImage with a helpful reason for files that are often stored under an image's name."""
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html")) or (head.startswith(b"<") and b"<html" in head):
        raise BadImage(item, "is HTML, not an image (a saved error page?)")
    if head.startswith(b"version https://git-lfs"):
        raise BadImage(item, "is a Git LFS pointer, not the image; run `git lfs pull`")
    if head.startswith((b"<svg", b"<?xml")):
        raise BadImage(item, "is XML or SVG, not a pixel image")
    if not data.strip(b"\0"):
        raise BadImage(item, "holds only zero bytes")


def _open(data: bytes | str, item: str, max_pixels: int) -> Image.Image:
    try:
        try:
            opened = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
        except Image.UnidentifiedImageError:
            if not _register_plugin(data, item):
                raise
            opened = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
    except BadImage:
        raise
    except Exception as error:  # see open_image
        raise BadImage(item, _why(error)) from error
    width, height = opened.size
    if width * height > max_pixels:
        raise BadImage(item, f"{width} x {height} pixels, over the limit of {max_pixels:,} (a decompression bomb?)")
    return opened


def _register_plugin(data: bytes | str, item: str) -> bool:
    """Make Pillow read HEIC and JPEG XL where their plugins are installed; whether the image is of such a kind.

    Raises:
        BadImage: it is, and the plugin is not there; names the package.
    """
    if isinstance(data, str):
        with open(data, "rb") as file:
            head = file.read(12)
    else:
        head = data[:12]
    heif = head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS
    if not heif and not head.startswith((b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")):
        return False
    kind, module, package = _PLUGINS[0 if heif else 1]
    try:
        plugin = importlib.import_module(module)  # JPEG XL's registers itself
    except ImportError as error:
        raise BadImage(item, f"is {kind}, which Pillow reads with a plugin: pip install {package}") from error
    if heif:
        plugin.register_heif_opener()
    return True


def _why(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"looks like a decompression bomb: {error}"
    if isinstance(error, Image.UnidentifiedImageError):
        return "is not an image in any format that Pillow reads here"
    text = str(error) or type(error).__name__
    return text if isinstance(error, OSError) else f"cannot be decoded ({type(error).__name__}: {text})"


def _reduced(image: Image.Image, most: int) -> Image.Image:
    """An image of at most so many pixels, each the mean of a square.

    It is made strip by strip, so that no second large one is in memory. Where a pixel has more than 8 bits, the scale
    of the strips is that of the whole image.
    """
    factor = math.ceil(math.sqrt(image.width * image.height / most))
    size = (math.ceil(image.width / factor), math.ceil(image.height / factor))
    small = Image.new("RGB", size)
    rows = factor * max(1, REDUCED_PIXELS // (image.width * factor))
    tops = range(0, image.height, rows)
    strips = (image.crop((0, top, image.width, min(image.height, top + rows))) for top in tops)
    deep = image.mode.startswith("I") or image.mode == "F"
    extrema = np.array([_extrema(_values(strip)) for strip in strips]) if deep else np.zeros((1, 2))
    low, high = float(extrema[:, 0].min()), float(extrema[:, 1].max())
    for top in tops:
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        if deep:
            strip = Image.fromarray(_to_8_bits(_values(strip), image.mode, low, high))
        elif image.mode not in ("L", "RGB", "RGBA") or "transparency" in image.info:
            strip = to_rgb(strip)  # the mean of palette numbers means nothing
        small.paste(to_rgb(strip.reduce(factor)), (0, top // factor))
    try:
        small.getexif()[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # see _upright
        logger.warning("its EXIF block cannot be read (%s); taken as upright", error)
    return small


def decoded_pixels(pixels: int) -> int:
    """Return how many pixels, at most, `open_image` gives of an image that has so many."""
    return pixels if pixels <= LARGE_PIXELS else REDUCED_PIXELS


def _upright(image: Image.Image, item: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # a damaged EXIF block does not make the pixels bad
        logger.warning("%s: its EXIF block cannot be read (%s); taken as upright", item, error)
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any PIL mode to RGB: scaled where it has more than 8 bits, on white where it is transparent."""
    if image.mode.startswith("I") or image.mode == "F":
        values = _values(image)
        image = Image.fromarray(_to_8_bits(values, image.mode, *_extrema(values)))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        if image.mode == "RGBa":
            image = image.convert("RGBA")
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _values(image: Image.Image) -> np.ndarray:
    """Grey levels (H, W) as they are, 0 for what is no number."""
    return np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _extrema(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _to_8_bits(values: np.ndarray, mode: str, low: float, high: float) -> np.ndarray:
    """Grey levels of a 16-bit (I;16…), 32-bit (I) or floating-point (F) image between two values as (H, W) uint8.

    I;16 and I within 0…65535 (Pillow's mode for 16-bit files of several formats) are divided by 257; F within 0…1 is
    multiplied by 255; F within 0…255 is kept; anything else carries no scale of its own and is stretched from its
    smallest to its largest value.
    """
    if mode != "F" and low >= 0 and high <= 65535:
        values = values / 257.0
    elif mode == "F" and low >= 0 and high <= 1:
        values = values * 255.0
    elif not (mode == "F" and low >= 0 and high <= 255):
        values = (values - low) * (255.0 / (high - low)) if high > low else np.zeros_like(values)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
