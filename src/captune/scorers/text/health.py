"""Signs of degeneration that agreement with references can hide: captions that are cut off, loop, or shrink."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from captune.scorers import Scorer
from captune.scorers._support import ptb

# A caption that stops on one of these was cut off: articles, determiners, possessives that need a noun, prepositions,
# conjunctions and forms of "be". What people do end sentences with is left out ("with his helmet on", "the sea is
# behind her", "shakes the water off", "stands by"): of 40,000 human captions 0.11% end on a word of this list, and with
# those words it would be 1.4%.
_ENDINGS = """a an the this these those some any every each my your his its our their whose which
    and or but nor while as because if than
    in of at to for from with without into onto upon against between among during toward towards beside beneath under
    through across near
    is are was were be being"""
UNFINISHED = frozenset(_ENDINGS.split())


class Health(Scorer):
    """Length, repetition, vocabulary, bad endings and empty captions: what references do not show.

    length: words per caption. repetition: the share of a caption's 2- and 3-grams that it has already used, 1 -
    distinct / all over both (0 for captions of fewer than two words), averaged over captions. bad_endings: the share of
    captions whose last word cannot end a sentence ("a dog on the"), a trace of rewards that ignore where a caption
    stops. empty: the share of captions without a word. vocabulary: distinct words in all captions together; it grows
    with their number, so compare it at equal numbers only; it has no interval, since a resample always has fewer.
    """

    name = "health"
    primary = "length"
    higher_is_better: ClassVar = {"repetition": False, "bad_endings": False, "empty": False}
    labels: ClassVar = {"length": "words per caption", "bad_endings": "bad endings", "empty": "empty captions"}
    source = "captune"
    cost = "below 0.1 ms"
    no_interval = ("vocabulary",)

    def rows(self, captions: Sequence[str], **columns: object) -> np.ndarray:
        """Return (N, 1): the score of each caption."""
        rows = np.zeros((len(captions), 5))
        seen: set[str] = set()
        for row, caption in zip(rows, captions, strict=True):
            words = ptb.words(caption)
            new = set(words) - seen
            seen |= new
            row[:] = len(words), _repetition(words), bool(words) and words[-1] in UNFINISHED, not words, len(new)
        return rows

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        means = totals / n
        return {
            "length": means[..., 0],
            "repetition": means[..., 1],
            "bad_endings": means[..., 2],
            "empty": means[..., 3],
            "vocabulary": totals[..., 4],
        }

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        return f"health|repetition:2,3-grams|tok:{ptb.VERSION}"


class Length(Scorer):
    """Words per caption: as a reward, the control that shows what a mere length preference achieves."""

    name = "length"
    primary = "length"
    labels: ClassVar = {"length": "words per caption"}
    source = "captune"
    cost = "below 0.1 ms"

    def rows(self, captions: Sequence[str], **columns: object) -> np.ndarray:
        """Return (N, 1): the score of each caption."""
        return np.array([[len(ptb.words(caption))] for caption in captions], dtype=np.float64).reshape(-1, 1)

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        return f"length|words|tok:{ptb.VERSION}"


class Repetition(Scorer):
    """rep-n: the share of a caption's n-grams that it has already used; what looping can cost a reward.

    Args:
        argument: n. The default 3 lets "a big red car and a big blue boat" pass, "a red car and a red car" not.
    """

    name = "repetition"
    primary = "repetition"
    higher_is_better: ClassVar = {"repetition": False}
    source = "Welleck et al., ICLR 2020"
    cost = "below 0.1 ms"
    positional = ("n",)
    usage = "repetition:3"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        n: Annotated[int, Field(ge=1, le=1000, description="the length of the n-grams")] = 3

    def __init__(self, argument: str | None = None) -> None:
        self.n = self.read(argument).n

    def rows(self, captions: Sequence[str], **columns: object) -> np.ndarray:
        """Return (N, 1): the score of each caption."""
        shares = [_repetition(ptb.words(caption), (self.n,)) for caption in captions]
        return np.array(shares, dtype=np.float64).reshape(-1, 1)

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        return f"repetition|{self.n}-grams|tok:{ptb.VERSION}"


def _repetition(words: list[str], lengths: tuple[int, ...] = (2, 3)) -> float:
    grams = [tuple(words[i : i + k]) for k in lengths for i in range(len(words) - k + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
