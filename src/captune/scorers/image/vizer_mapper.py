"""ViZer's fitted mapper as a scorer: cos(F_I, F_T_hat) between an image and a caption (ViZer, section 3.1).

    vizer:runs/g/mapper        as a metric and as a reward, in [-1, 1], higher is better

The caption is read by the captioner that the mapper was fitted on, without its adapter. What the number means is
decided by the mapper's own settings (blind, centred, ...), which the signature repeats.

Needs: `image`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from captune.data.images import opened
from captune.errors import SpecError
from captune.scorers import Scorer

if TYPE_CHECKING:
    from captune.models.captioner import Captioner
    from captune.models.vizer_mapper import Mapper


class ViZerScorer(Scorer):
    """ViZer's reward: cos(F_I, F_T_hat), how well a fitted mapper tells the image's features from the caption.

    Args:
        argument: the folder of the mapper (`<run>/mapper`).
        captioner: the captioner that reads, its adapter off; default: the one that the mapper's config names.
        mapper: a fitted mapper, in place of the folder.
    """

    name = "vizer"
    primary = "vizer"
    higher_is_better: ClassVar = {"vizer": True}
    labels: ClassVar = {"vizer": "ViZer cosine"}
    source = "Byun et al., ViZer"
    cost = "one pass of the captioner that reads"
    required_columns = ("image",)
    batch_size = 64
    positional = ("mapper",)
    usage = "vizer:runs/g/mapper"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        mapper: Annotated[str, Field(description="a fitted mapper's folder, <run>/mapper")] = ""

    def __init__(
        self, argument: str | None = None, *, captioner: Captioner | None = None, mapper: Mapper | None = None
    ) -> None:
        from captune.models.vizer_mapper import Mapper

        folder = self.read(argument).mapper
        if mapper is None and not folder:
            raise SpecError("the scorer 'vizer' needs the folder of a mapper: vizer:<run>/mapper")
        self.mapper = mapper if mapper is not None else Mapper.load(Path(folder))
        if captioner is not None:
            self.captioner = captioner

    @cached_property
    def captioner(self) -> Captioner:
        """The captioner that reads; loaded at first use."""
        from captune.models.captioner import Captioner

        captioner = Captioner.load(self.mapper.captioner_name)
        self.mapper.check_captioner(captioner)
        return captioner

    def bind(self, captioner: Captioner, *, end_token: bool | None = None) -> None:
        """Read with the captioner that is trained, its adapter off, where the mapper was fitted on it: one model."""
        if self.mapper.captioner_name == captioner.name:
            self.mapper.check_captioner(captioner)
            self.captioner = captioner

    def rows(self, captions: Sequence[str], *, image: Sequence[Any], **columns: Any) -> np.ndarray:
        """Return (N, 1): the score of each caption."""
        self.mapper.to(self.captioner.device)
        scores: list[float] = []
        with self.captioner.reading(base=True, prompt=self.mapper.prompt):
            for images in opened(image, self.batch_size):
                part = captions[len(scores) : len(scores) + len(images)]
                scores += self.mapper.score(self.captioner, self.captioner.prepare(images, part)).tolist()
        return np.array(scores, dtype=np.float64).reshape(-1, 1)

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        c = self.mapper.config
        with self.captioner.reading(base=True, prompt=self.mapper.prompt):
            captioner = self.captioner.identity(base=True)
        read = "blind" if c.blind else "with-image"
        return (
            f"vizer|captioner:{self.mapper.captioner_name}@{captioner}"
            f"|mapper:{self.mapper.digest}|{read}|F_I:{c.feature}-{c.pool}|caption:{c.caption_pool}"
            f"|centred:{'yes' if c.centred else 'no'}|shift:{'yes' if c.shift else 'no'}|width:{c.width}"
        )
