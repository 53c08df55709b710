"""An image in a request to a server.

It goes upright, as PNG (lossless) up to `LOSSLESS` pixels and as JPEG of quality 95 beyond; one whose longest side is
over `max_side` is reduced to that, and one of more than `max_bytes` gets a lower quality, then half the size.
"""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from captune.data.images import upright_rgb
from captune.errors import SettingError

LOSSLESS = 2**18  # pixels
MAX_SIDE = 2048  # pixels
MAX_BYTES = 2**22  # of an encoded image
_QUALITIES = (95, 85, 70)
SENT = f"png<={LOSSLESS}px,else jpeg{_QUALITIES[0]}<={MAX_SIDE}px a side"  # what signatures say of it


def data_url(image: Any, max_side: int = MAX_SIDE, max_bytes: int = MAX_BYTES) -> str:
    """Return an image as a URL that holds it; see the module for the limits."""
    kind, data = encoded(upright_rgb(image), max_side, max_bytes)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def encoded(image: Image.Image, max_side: int = MAX_SIDE, max_bytes: int = MAX_BYTES) -> tuple[str, bytes]:
    """Return an image, RGB and upright, as ("png" or "jpeg", its bytes)."""
    if max(image.size) > max_side:
        scale = max_side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    while True:
        if image.width * image.height <= LOSSLESS and len(data := _saved(image, "PNG")) <= max_bytes:
            return "png", data
        for quality in _QUALITIES:
            if len(data := _saved(image, "JPEG", quality=quality, subsampling=0)) <= max_bytes:
                return "jpeg", data
        if max(image.size) == 1:
            raise SettingError(f"no image fits into {max_bytes:,} bytes: raise max_bytes")
        image = image.reduce(2)


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()
