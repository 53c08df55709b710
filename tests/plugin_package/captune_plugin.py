"""A scorer in 15 lines, a decoder, and a name for a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from captune.scorers import Scorer


class Brevity(Scorer):
    """Brevity: minus the words beyond five."""

    name = "brevity"
    primary = "brevity"
    higher_is_better: ClassVar = {"brevity": True}
    labels: ClassVar = {"brevity": "brevity"}
    source = "nobody"
    cost = "nothing"
    group = "text"

    def rows(self, captions: list[str], **columns: Any) -> np.ndarray:
        """Return (N, 1)."""
        return np.array([[-max(0.0, len(caption.split()) - 5.0)] for caption in captions])


@dataclass(frozen=True)
class Shout:
    """ "shout:3": the captioner's captions in capitals, with exclamation marks."""

    marks: int = 1

    positional: ClassVar = ("marks",)
    example: ClassVar = "shout:3"
    samples: ClassVar = False
    required_columns: ClassVar = ()

    @property
    def signature(self) -> str:
        """Everything that decides the captions."""
        return f"shout:{self.marks}"

    def __call__(self, captioner: Any, images: list[Any], **settings: Any) -> list[str]:
        return [text.upper() + "!" * self.marks for text in captioner.generate(images, **settings)]


METHOD = "a method"
