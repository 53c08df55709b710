"""Every image source as a dataset with columns image, image_id, references; images opened safely; caption files.

from captune.data import load_images, load_references, open_image, read_captions
photos = load_images("./photos")            # or dataset_coco.json?split=test, storybook:test …
photos[0]["image"]                          # decoded now, upright RGB; BadImage names what cannot be used
"""

from __future__ import annotations

from captune.data.captions import CaptionWriter, read_captions, write_coco_results
from captune.data.checking import without_bad
from captune.data.columns import ImageSource, column
from captune.data.images import image_size, open_image
from captune.data.sources import load_images, load_references, load_scenes, part_of
from captune.errors import BadImage, CaptionFileError, SourceError
from captune.utils.files import read_jsonl

__all__ = [
    "BadImage",
    "CaptionFileError",
    "CaptionWriter",
    "ImageSource",
    "SourceError",
    "column",
    "image_size",
    "load_images",
    "load_references",
    "load_scenes",
    "open_image",
    "part_of",
    "read_captions",
    "read_jsonl",
    "without_bad",
    "write_coco_results",
]
