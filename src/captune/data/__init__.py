"""Every image source as a dataset with columns image, image_id, references; images opened safely; caption files.

from captune.data import load_images, load_references, open_image, read_captions
photos = load_images("./photos")            # or dataset_coco.json?split=test, storybook:test …
photos[0]["image"]                          # decoded now, upright RGB; BadImage names what cannot be used
"""

from __future__ import annotations

from captune.data.captions import CaptionFileError, CaptionWriter, read_captions, read_jsonl, write_coco_results
from captune.data.checking import without_bad
from captune.data.columns import ImageSource, column
from captune.data.images import BadImage, image_size, open_image
from captune.data.readers import SourceError
from captune.data.sources import load_images, load_references, load_scenes

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
    "read_captions",
    "read_jsonl",
    "without_bad",
    "write_coco_results",
]
