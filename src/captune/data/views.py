"""Views of an image for training: itself, and random crops of it that may be mirrored.

The number of a view and the image's id decide it, so that an image has few views in all: features of a frozen encoder
can be kept, and a run that resumes sees what it would have seen.
"""

from __future__ import annotations

import random
import re

from PIL import Image, ImageOps

SMALLEST = 0.6  # share of the image that a crop keeps, at least
SIDES = re.compile(r"\b(?:left|right)(?:most|wards?)?\b", re.IGNORECASE)


def view(image: Image.Image, number: int, image_id: str, caption: str) -> Image.Image:
    """Return a view of an image.

    Args:
        image: any mode and size.
        number: 0 is the image itself.
        image_id: its id.
        caption: of the image; one that says left or right is not mirrored.
    """
    if number == 0:
        return image
    chance = random.Random(f"{image_id}/{number}")
    share, x, y = chance.uniform(SMALLEST, 1) ** 0.5, chance.random(), chance.random()
    width, height = (max(1, round(side * share)) for side in image.size)
    left, top = round(x * (image.width - width)), round(y * (image.height - height))
    cropped = image.crop((left, top, left + width, top + height))
    return ImageOps.mirror(cropped) if chance.random() < 0.5 and not SIDES.search(caption) else cropped
