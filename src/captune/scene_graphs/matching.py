"""How much of one list of phrases another list has: equal phrases, then synonyms, then the most similar (CAPTURE)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from captune.scene_graphs.wordnet import wordnet

Phrase = str | tuple[str, str, str]  # an object or attribute, or a relation's three parts
#: phrases -> (N, D) unit vectors
Encode = Callable[[Sequence[str]], np.ndarray]
EPS = 1e-6  # published: added to every denominator


class Matcher:
    """CAPTURE's matching.

    Args:
        encode: embeds phrases, (N, D) unit vectors.
        published: match as capture-metric 0.1.13 does: a phrase that is part of another is its synonym ("man" of
            "woman"), synonyms are words that share any of their synonyms, not a synonym set; phrases are matched in the
            order in which they come; cosines may be negative; 1e-6 is added to denominators.
    """

    def __init__(self, encode: Encode, *, published: bool = False) -> None:
        self.encode, self.published = encode, published

    def match(self, candidates: Sequence[Phrase], references: Sequence[Phrase]) -> tuple[float, float]:
        """Return how much of the candidates, and how much of the references, is matched.

        Equal phrases and synonyms count 1 each; every phrase left over counts its largest cosine on the other side (no
        threshold).
        """
        if not self.published:  # the same value for any order
            candidates, references = sorted(candidates), sorted(references)
        ours, theirs = list(candidates), list(references)
        total = 0
        for same in (lambda a, b: a == b, self._synonyms):
            left = []
            for phrase in ours:
                place = next((j for j, other in enumerate(theirs) if same(phrase, other)), None)
                if place is None:
                    left.append(phrase)
                else:
                    del theirs[place]
                    total += 1
            ours = left
        if not ours or not theirs:
            return float(total), float(total)
        cosines = self.cosines(ours, theirs)
        if not self.published:  # precision and recall stay in 0..1
            cosines = cosines.clip(0.0, 1.0)
        return total + float(cosines.max(axis=1).sum()), total + float(cosines.max(axis=0).sum())

    def cosines(self, a: Sequence[Phrase], b: Sequence[Phrase]) -> np.ndarray:
        """Return (A, B): the cosines of two lists of phrases."""
        return self.encode([text(phrase) for phrase in a]) @ self.encode([text(phrase) for phrase in b]).T

    def scores(self, candidates: Sequence[Phrase], references: Sequence[Phrase]) -> tuple[float, float, float]:
        """Return precision, recall and F1; 0 where there is nothing to divide by."""
        ours, theirs = self.match(candidates, references)
        precision, recall = self.ratio(ours, len(candidates)), self.ratio(theirs, len(references))
        return precision, recall, self.f1(precision, recall)

    def ratio(self, part: float, whole: float) -> float:
        """Return part / whole; 0 where `whole` is 0."""
        if self.published:
            return part / (whole + EPS)
        return part / whole if whole else 0.0

    def f1(self, precision: float, recall: float) -> float:
        """Return the harmonic mean of precision and recall."""
        return self.ratio(2 * precision * recall, precision + recall)

    def _synonyms(self, a: Phrase, b: Phrase) -> bool:
        if isinstance(a, tuple) or isinstance(b, tuple):
            return all(x == y or self._synonyms(x, y) for x, y in zip(a, b, strict=True))
        net = wordnet()
        if self.published:
            return a in b or b in a or not net.synonyms(a).isdisjoint(net.synonyms(b))
        return not net.synsets(a).isdisjoint(net.synsets(b))


def text(phrase: Phrase) -> str:
    """Return a phrase as one text."""
    return phrase if isinstance(phrase, str) else " ".join(phrase)
