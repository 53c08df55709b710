"""ROUGE-L (Lin, 2004) as pycocoevalcap 1.2 computes it for captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from captune.scorers import Scorer, check_references
from captune.scorers._support import ptb

_BETA = 1.2


class Rouge(Scorer):
    """ROUGE-L: the longest common subsequence with the references, as an F-measure that favours recall (beta 1.2).

        P = max_r LCS(c, r) / |c|,   R = max_r LCS(c, r) / |r|,   F = (1 + beta^2) P R / (R + beta^2 P)

    Kept from the reference implementation: P and R are each the best over the references, not those of one reference,
    and a caption without words counts as one empty word (so that two such captions match).
    """

    name = "rouge"
    primary = "rouge"
    higher_is_better: ClassVar = {"rouge": True}
    labels: ClassVar = {"rouge": "ROUGE-L"}
    source = "Lin, ACL 2004 workshop"
    cost = "0.02 ms"
    required_columns = ("references",)

    def rows(self, captions: Sequence[str], *, references: Sequence[Sequence[str]], **others: Any) -> np.ndarray:
        """Return (N, 1): the score of each caption."""
        check_references(self.name, references)
        rows = np.zeros((len(captions), 1))
        for row, caption, own in zip(rows, captions, references, strict=True):
            words = ptb.tokenize(caption).split(" ")
            places: dict[str, int] = {}
            for i, word in enumerate(words):
                places[word] = places.get(word, 0) | 1 << i
            precision = recall = 0.0
            for reference in own:
                other = ptb.tokenize(reference).split(" ")
                common = _common(places, len(words), other)
                precision = max(precision, common / len(words))
                recall = max(recall, common / len(other))
            if precision and recall:
                row[0] = (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)
        return rows

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        return f"rouge-l|beta:{_BETA}|tok:{ptb.VERSION}"


def _common(places: dict[str, int], length: int, other: list[str]) -> int:
    """Return the length of the longest common subsequence.

    One row of the table per step, in the bits of an integer (Hyyrö, 2004). `places` has the bit mask of each word's
    positions in a text of `length` words.
    """
    mask = (1 << length) - 1
    row = mask
    for word in other:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & mask
    return length - row.bit_count()
