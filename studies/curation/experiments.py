"""What is trained on, and what is judged: the rows of the two YAML files. Nothing is run here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from studies._lib.rows import COMMON, Row, read

POOL = 12_000  # images of a seed
STEPS = 100  # of `captune sft`, for every row and round but those that say otherwise
RAW, REFERENCES = "raw", "references"


@dataclass(frozen=True, kw_only=True)
class Set(Row):
    """A set of captions, and what is trained on it.

    Args:
        kind: base (nothing is trained), references or alt_text of the pool, or reward: `captune grpo` without
            captions, from the captioner that the row `raw` has trained.
        images: of the pool, the first ones; scenes come in no order.
        steps: of curation.
        rounds: {name, skip, n, steps}: further sets, of other images; `{adapter}` in their steps is the captioner that
            was trained on the set before.
        max_steps: of training.
        reward: of `captune grpo`.
    """

    kind: Literal["base", "references", "alt_text", "reward"]
    images: int = POOL
    steps: list[dict[str, Any]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    max_steps: int = STEPS
    reward: str = ""

    @property
    def levels(self) -> int:
        """How many levels there are to ask for; 0 where captions have none."""
        return sum(own["levels"]["bins"] for own in self.steps if "levels" in own)

    @property
    def sets(self) -> list[dict[str, Any]]:
        """The first set and those of the rounds, alike."""
        return [{"name": self.name, "skip": 0, "n": self.images, "steps": self.steps}, *self.rounds]

    def pool(self) -> str:
        """The pool: other images for each seed, so that a spread over seeds is one over sets too."""
        return f"storybook:train?n={max(self.images, POOL)}&seed={300 + self.seed}"

    def depends(self) -> dict[str, Any]:
        """What a result depends on beside the pool."""
        return {key: value for key, value in asdict(self).items() if key not in COMMON}


@dataclass(frozen=True, kw_only=True)
class Wrong(Row):
    """Captions some of which are another image's, judged one by one.

    Args:
        of: storybook's references, Flickr8k's captions, or those of the photographs that are there.
        captions: of each image; the others are left out.
        whole: an image has its own captions or another's, all of them.
        by: the scorer.
        reassign: judged by `captune curate reassign` instead: what is moved is held to be wrong.
    """

    of: Literal["storybook", "flickr8k", "photos"]
    captions: int = 5
    whole: bool = False
    by: str = ""
    reassign: dict[str, Any] = field(default_factory=dict)

    def depends(self) -> dict[str, Any]:
        """What a result depends on beside the data."""
        return {key: value for key, value in asdict(self).items() if key not in COMMON}


HERE = Path(__file__).parent
ROWS: dict[str, list[Any]] = {**read(HERE / "experiments.yaml", Set), **read(HERE / "wrong.yaml", Wrong)}
