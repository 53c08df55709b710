"""An image in a request: its pixels where it is small, within the limits where it is not."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captune.models.image_url import encoded


@pytest.mark.parametrize(
    ("size", "limits", "kind", "largest"),
    [
        ((64, 48), {}, "png", (64, 48)),
        ((512, 512), {}, "png", (512, 512)),
        ((640, 480), {}, "jpeg", (640, 480)),
        ((3000, 1000), {}, "jpeg", (2048, 683)),
        ((9000, 1), {"max_side": 100}, "png", (100, 1)),
        ((640, 480), {"max_bytes": 20_000}, "jpeg", (320, 240)),
        ((64, 64), {"max_bytes": 715}, "jpeg", (16, 16)),
    ],
)
def test_what_is_sent_stays_within_its_limits(size: Any, limits: dict[str, int], kind: str, largest: Any) -> None:
    gray = np.random.default_rng(0).normal(128, 80, size[::-1]).clip(0, 255).astype(np.uint8)
    noise = Image.fromarray(gray).convert("RGB")
    found, data = encoded(noise, **limits)
    sent = Image.open(io.BytesIO(data))
    assert (found, sent.format) == (kind, kind.upper())
    assert len(data) <= limits.get("max_bytes", 2**22)
    assert sent.width <= largest[0] and sent.height <= largest[1]
    if kind == "png" and sent.size == size:
        assert sent.tobytes() == noise.tobytes()
