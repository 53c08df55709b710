"""Storybook: a world that the program draws itself, so that every caption can be checked against the truth.

>>> from captune import storybook
>>> test = storybook.load("test", n=500, seed=91)   # columns image, image_id, references, scene, alt_text
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune.errors import SourceError
from captune.storybook.grammar import references
from captune.storybook.noise import alt_text
from captune.storybook.shipped import MODELS
from captune.storybook.world import SPLITS, Scene, Thing, random_for, sample_scene
from captune.utils.registry import nearest

if TYPE_CHECKING:
    from datasets import Dataset

DEFAULT_SEED = 91
DEFAULT_SIZE = {"train": 2000, "unlabelled": 4000}  # other splits: 500
IMAGE_SIZE = 64
MOST = 100_000  # images of one source


def model_path(name: str) -> Path:
    """The folder of a shipped model: "storybook" (captioner), "storybook-clip" (encoder) or "storybook-lm"."""
    return MODELS / name


def record(split: str, seed: int, index: int) -> dict[str, Any]:
    """Return one image and everything known about it."""
    from captune.storybook.draw import draw

    scene = sample_scene(split, seed, index)
    other = sample_scene(split, seed, index + 1_000_000)
    return {
        "image": draw(scene, IMAGE_SIZE),
        "image_id": f"{split}-{seed}-{index:06d}",
        "references": references(scene, random_for(split, seed, index, "references")),
        "scene": scene.to_json(),
        "alt_text": alt_text(scene, random_for(split, seed, index, "alt text"), other),
    }


def load(split: str, n: int | None = None, seed: int | None = None) -> Dataset:
    """Draw `n` scenes of a split; the same (split, seed, index) is the same scene for any `n`.

    Args:
        split: a split of `captune.storybook.world.SPLITS`.
        n: scenes; None: `DEFAULT_SIZE`.
        seed: None: `DEFAULT_SEED`.

    Returns:
        A dataset with columns image (64 x 64 RGB), image_id, references (5), scene, alt_text.

    Raises:
        SourceError: for an unknown split, or an n out of range.
    """
    from datasets import Dataset, Features, Image, List, Value

    from captune.utils.progress import Bar

    if split not in SPLITS:
        raise SourceError(nearest(split, SPLITS, "storybook split"))
    n = DEFAULT_SIZE.get(split, 500) if n is None else n
    if not 0 <= n <= MOST:
        raise SourceError(f"storybook:{split}: n is {n}; it must be from 0 to {MOST:,}, all of which are drawn at once")
    seed = DEFAULT_SEED if seed is None else seed
    rows = [record(split, seed, index) for index in Bar(range(n), desc="drawing", show=n >= 5000)]
    text = Value("string")
    features = Features(image=Image(), image_id=text, references=List(text), scene=text, alt_text=text)
    if not rows:
        return Dataset.from_dict({name: [] for name in features}, features)
    return Dataset.from_list(rows, features=features)


__all__ = ["DEFAULT_SEED", "Scene", "Thing", "load", "model_path"]
