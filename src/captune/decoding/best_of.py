"""Best of N: sample N captions of an image, keep the one that a scorer likes best.

The N samples of an image share one pass of the vision tower and one prefill (a server is asked N times). The scorer is
any that needs nothing but the image, a weighted sum included, and is asked as it would be as a reward: "best-of:8:clip
- 0.1*length". One that needs references tells how good a caption is within reach of sampling (an oracle, no decoder):
`decoder(captioner, images, columns={"references": ...})` takes them, `captune caption` has none to give.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import numpy as np
from pydantic import Field

from captune.errors import CaptionerError
from captune.models.caching.prefill import PrefillCache
from captune.scorers import Scorer, check_needs, load_scorer, scorers_in
from captune.scorers.registry import check_higher_is_better
from captune.utils.hashing import pixels_digest
from captune.utils.skipped import skip

if TYPE_CHECKING:
    from captune.models.captioner import Captioner

_UNJUDGED = "choices of best-of, which kept the first sample, as its scorer judged none of the image"
_SCORING = threading.Lock()  # a server's samples come in several threads


@dataclass(frozen=True)
class BestOf:
    """The best of N samples (temperature 1), judged by a scorer: "best-of:8:clip", "best-of:8:clip - 0.1*length"."""

    n: Annotated[int, Field(ge=1, le=1024, description="samples of each image")] = 8
    scorer: Annotated[str, Field(description="what picks one of them: a scorer, or a weighted sum of scorers")] = "clip"

    positional: ClassVar = ("n", "scorer")
    example: ClassVar = "best-of:8:clip"
    samples: ClassVar = True
    needs_model: ClassVar = False

    def __post_init__(self) -> None:
        if together := [part.name for part in scorers_in(self.judge) if part.together]:
            raise CaptionerError(
                f"best-of: {', '.join(together)} compares the captions of several images, so that a caption would "
                "depend on which images are in its batch; choose by another scorer"
            )
        check_higher_is_better(self.scorer, "best-of", CaptionerError)
        self.judge.check()

    @cached_property
    def judge(self) -> Scorer:
        """The scorer, built once."""
        return load_scorer(self.scorer)

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Columns without which it cannot work."""
        return self.judge.required_columns

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        return f"best-of:{self.n}|{self.judge.identity}"

    def __call__(
        self,
        captioner: Captioner,
        images: Sequence[Any],
        *,
        columns: Mapping[str, Sequence[Any]] | None = None,
        **settings: Any,
    ) -> list[str]:
        """Return one caption per image."""
        if settings.get("num_beams", 1) > 1:
            raise CaptionerError("best-of draws samples, and searches nothing with beams: leave num_beams out")
        columns = {"image": images, **(columns or {})}
        check_needs([self.judge], columns, len(images))
        core = getattr(captioner, "core", None)  # an engine elsewhere has none
        with nullcontext() if core is None else PrefillCache(core):
            captions = captioner.generate(images, **{**settings, "do_sample": True, "num_return_sequences": self.n})
        if self.n == 1:
            return captions
        own = {name: [entry for entry in column for _ in range(self.n)] for name, column in columns.items()}
        with _SCORING:
            rewards = np.array(cast(Any, self.judge)(captions, **own), dtype=float).reshape(len(images), self.n)
            for row in np.flatnonzero(np.isnan(rewards).all(axis=1)).tolist():
                skip(_UNJUDGED, f"{captions[row * self.n][:40]!r} of {pixels_digest(images[row]).hex()[:8]}")
        best = np.nan_to_num(rewards, nan=-np.inf).argmax(axis=1)  # an invalid reward wins nothing
        return [captions[row * self.n + place] for row, place in enumerate(best)]
