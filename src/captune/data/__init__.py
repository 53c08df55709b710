"""Every image source as a dataset with columns image, image_id, references; images opened safely; caption files.

from captune.data import load_images, load_references, open_image, read_captions
photos = load_images("./photos")            # or dataset_coco.json?split=test, storybook:test …
photos[0]["image"]                          # decoded now, upright RGB; BadImage names what cannot be used

The names are loaded on first use: what looks at file names alone does not wait for `datasets`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captune.data.caption_formats import write_captions as write_captions
    from captune.data.captions import CaptionWriter as CaptionWriter
    from captune.data.captions import read_captions as read_captions
    from captune.data.checking import without_bad as without_bad
    from captune.data.columns import ImageSource as ImageSource
    from captune.data.columns import column as column
    from captune.data.images import image_size as image_size
    from captune.data.images import open_image as open_image
    from captune.data.sources import load_images as load_images
    from captune.data.sources import load_references as load_references
    from captune.data.sources import load_scenes as load_scenes
    from captune.data.sources import part_of as part_of
    from captune.errors import BadImage as BadImage
    from captune.errors import CaptionFileError as CaptionFileError
    from captune.errors import SourceError as SourceError
    from captune.utils.files import read_jsonl as read_jsonl

_EXPORTS = {
    "BadImage": "captune.errors",
    "CaptionFileError": "captune.errors",
    "CaptionWriter": "captune.data.captions",
    "ImageSource": "captune.data.columns",
    "SourceError": "captune.errors",
    "column": "captune.data.columns",
    "image_size": "captune.data.images",
    "load_images": "captune.data.sources",
    "load_references": "captune.data.sources",
    "load_scenes": "captune.data.sources",
    "open_image": "captune.data.images",
    "part_of": "captune.data.sources",
    "read_captions": "captune.data.captions",
    "read_jsonl": "captune.utils.files",
    "without_bad": "captune.data.checking",
    "write_captions": "captune.data.caption_formats",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'captune.data' has no attribute {name!r}")
