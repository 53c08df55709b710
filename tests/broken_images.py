"""A folder of odd and broken image files, made in code: for the tests of opening and of captioning."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GOOD = (
    "plain.jpg", "rotated.jpg", "cmyk.jpg", "sixteen_bit.png", "sixteen_bit.tif", "palette.png", "grey_alpha.png",
    "rgba.png", "animated.gif", "animated.png", "animated.webp", "one_bit.png", "one_pixel.png",
)  # fmt: skip

BAD = {
    "truncated.jpg": "truncated",
    "truncated.png": "truncated|cannot be decoded",
    "empty.png": "is empty",
    "page.jpg": "is HTML, not an image",
    "page_with_bom.png": "is HTML, not an image",
    "pointer.png": "Git LFS",
    "zeros.jpg": "only zero bytes",
    "noise.webp": "not an image",
    "text.gif": "not an image",
    "bomb.png": "bomb",
    "bomb.gif": "bomb",
    "vector.jpg": "SVG",
}


def photo(width: int = 48, height: int = 32, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, so that it compresses like a photograph."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 100 * np.sin((x * (1 + c) + y * (2 - c)) / 9 + seed) for c in range(3)]
    noise = np.random.default_rng(seed).normal(0, 8, (height, width, 3))
    return Image.fromarray(np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_all(folder: Path) -> None:
    """All files of GOOD and BAD."""
    image, exif = photo(), Image.Exif()
    exif[0x0112] = 6
    wide = np.asarray(image.convert("L")).astype(np.uint16) * 257
    frames = [photo(seed=seed) for seed in (1, 2)]
    jpeg, png = encode(image, "JPEG"), encode(image, "PNG")
    html = b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>"
    files = {
        "plain.jpg": jpeg,
        "rotated.jpg": encode(image, "JPEG", exif=exif),
        "cmyk.jpg": encode(image.convert("CMYK"), "JPEG"),
        "sixteen_bit.png": encode(Image.fromarray(wide), "PNG"),
        "sixteen_bit.tif": encode(Image.fromarray(wide), "TIFF"),
        "palette.png": encode(image.quantize(16), "PNG", transparency=3),
        "grey_alpha.png": encode(image.convert("LA"), "PNG"),
        "rgba.png": encode(image.convert("RGBA"), "PNG"),
        "animated.gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated.png": encode(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "animated.webp": encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "one_bit.png": encode(image.convert("1"), "PNG"),
        "one_pixel.png": encode(Image.new("RGB", (1, 1)), "PNG"),
        "truncated.jpg": jpeg[:-100],
        "truncated.png": png[: len(png) // 2],
        "empty.png": b"",
        "page.jpg": html,
        "page_with_bom.png": b"\xef\xbb\xbf\n  " + html,
        "pointer.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "zeros.jpg": bytes(500),
        "noise.webp": np.random.default_rng(0).bytes(500),
        "text.gif": b"just some words",
        "bomb.png": _png_header(60_000, 60_000) + _chunk(b"IDAT", zlib.compress(bytes(100_000))) + _chunk(b"IEND", b""),
        "bomb.gif": b"GIF89a"
        + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0)
        + struct.pack("<cHHHHB", b",", 0, 0, 65_535, 65_535, 0)
        + b"\x02\x02\x4c\x01\x00;",
        "vector.jpg": b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
    }
    assert set(files) == {*GOOD, *BAD}
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
