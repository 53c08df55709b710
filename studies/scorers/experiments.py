"""What is judged: the scorers, and the writers whose captions they see.

Storybook (300 test images). Each image gets captions of several *writers*: a reference, the reference with one fact
changed (a kind, a colour, two colours swapped, a sub-kind, a relation, a size, the background), the reference cut
after its first thing, another image's reference, and those of the captioners of the ViZer study (committed there).
The other four references are what the scorers see.

Flickr8k (`FOLDER/captions.txt`, and its images for scorers that look): the first caption of an image against the first
caption of another one, the other four being the references.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

from captune import storybook
from captune.data import load_images, load_references, read_captions
from captune.data.columns import LazyImages
from captune.storybook.changes import CHANGES, changed
from studies._lib.train import cycle

TEXT = ("bleu", "rouge", "cider", "meteor", "bertscore", "sbert", "capture", "objects", "attributes", "relations")
IMAGE = ("clip", "self_retrieval", "cycle:storybook", "grc:{corpus}", "qir:{corpus}", "grc:{corpus} + qir:{corpus}")
# by asking; each asks the source's own exact program here, where no model is named
QUESTIONS = ("vqa", "pmi", "nli", "dnli", "dcscore", "-openchair", "caption_qa", "qa", "preference", "consensus")
CONTROLS = ("length", "-repetition")
STORYBOOK = (*TEXT, "-chair:?vocabulary={vocabulary}", *IMAGE, *CONTROLS, "storybook", *QUESTIONS)
FLICKR8K = (*TEXT, "-chair", *CONTROLS)
CAPTIONERS = ("base", "paper GT", "paper G", "zero-label", "supervised")

Writers = dict[str, list[str | None]]  # {writer: a caption or None per image}


def cut(caption: str) -> str:
    """The caption up to its second thing."""
    return re.split(r" (?:left of|right of|above|below|and|with|near|over|under|,)\b", caption)[0].rstrip(" ,")


def storybook_writers(n: int, captions: Path) -> tuple[Writers, dict[str, Any]]:
    """The captions and the columns of the images that the ViZer study captioned."""
    test = storybook.load("test", n, seed=1)
    references, ids = test.with_format(None)["references"], list(test["image_id"])
    first = [refs[0] for refs in references]
    writers: Writers = {"reference": list(first)}
    for what in CHANGES:
        writers[f"changed {what}"] = [changed(text, what, random.Random(i)) for i, text in enumerate(first)]
    writers["cut short"] = [cut(text) for text in first]
    writers["wrong image"] = [first[i] for i in cycle(n)]
    for name in CAPTIONERS:
        written = read_captions(captions / f"{name.replace(' ', '-')}-storybook-7.jsonl")
        writers[name] = [written[i] for i in ids]
    others = [refs[1:] for refs in references]
    return writers, {"image": LazyImages(test), "image_id": ids, "references": others, "scene": list(test["scene"])}


def flickr8k_writers(folder: Path) -> tuple[Writers, dict[str, Any]]:
    """The captions and the columns of all images with five captions; with images where the folder has them."""
    references = {i: refs for i, refs in load_references(str(folder / "captions.txt")).items() if len(refs) == 5}
    first = [refs[0] for refs in references.values()]
    writers: Writers = {"reference": list(first), "wrong image": [first[i] for i in cycle(len(first))]}
    columns: dict[str, Any] = {"image_id": list(references), "references": [refs[1:] for refs in references.values()]}
    if (folder / "images").is_dir():
        images = load_images(str(folder / "images"))
        index = {Path(image_id).name: row for row, image_id in enumerate(images["image_id"])}
        columns["image"] = LazyImages(images.select([index[i] for i in columns["image_id"]]))
    return writers, columns
