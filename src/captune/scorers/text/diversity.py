"""How much the captions of a set differ: distinct n-grams, vocabulary, repeated captions, self-BLEU.

All are figures of a set: they change with the number of captions, so compare sets of equal size, and rows that were
made in parts do not add up. The order of the captions changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from captune.errors import ScorerError
from captune.scorers import Scorer, safe_ratio
from captune.scorers._support import ptb
from captune.scorers._support.ngrams import ORDERS, Grams, count_ngrams

_EPSILON = 0.1  # matches assumed where there is none, smoothing method 1 of Chen and Cherry (2014), as in Texygen


class Diversity(Scorer):
    """Distinct-1 and distinct-2, vocabulary and unique captions: how much the captions of a set differ.

        distinct_n = distinct n-grams / n-grams,   both over all captions together

    Li et al. divide by the number of words for every n; by n-grams, as most later work does, 1 means that nothing is
    said twice. vocabulary: distinct words. unique: the share of captions whose words, in order, are no other caption's
    before it (Shetty et al., ICCV 2017, count them so); a captioner that says the same of every image scores 1 / N.

    As a reward it is the distinct-1 of the caption by itself. No figure has an interval: a resample repeats captions,
    so it is always less diverse than the set.
    """

    name = "diversity"
    primary = "distinct_1"
    higher_is_better: ClassVar = {"distinct_1": True, "distinct_2": True, "unique": True}
    labels: ClassVar = {"distinct_1": "distinct-1", "distinct_2": "distinct-2", "unique": "unique captions"}
    source = "Li et al., NAACL 2016"
    cost = "0.02 ms"
    no_interval = ("distinct_1", "distinct_2", "vocabulary", "unique")

    def rows(self, captions: Sequence[str], **columns: object) -> np.ndarray:
        """(N, 6): words, 2-grams, words and 2-grams not in an earlier caption, own distinct words, whether unique."""
        texts = [ptb.tokenize(caption) for caption in captions]
        _, lengths, grams = count_ngrams(texts)
        rows = np.zeros((len(texts), 6))
        rows[:, 0], rows[:, 1] = lengths, np.maximum(lengths - 1, 0)
        for column, order in ((2, grams[0]), (3, grams[1])):
            first = np.flatnonzero(np.diff(order.gram, prepend=-1))  # entries are sorted by n-gram, then text
            rows[:, column] = np.bincount(order.text[first], minlength=len(texts))
        rows[:, 4] = np.bincount(grams[0].text, minlength=len(texts))
        seen: set[str] = set()
        for row, text in zip(rows, texts, strict=True):
            row[5] = text not in seen
            seen.add(text)
        return rows

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        return {
            "distinct_1": safe_ratio(totals[..., 2], totals[..., 0]),
            "distinct_2": safe_ratio(totals[..., 3], totals[..., 1]),
            "vocabulary": totals[..., 2],
            "unique": totals[..., 5] / n,
        }

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """Return (N,): the score of each caption by itself."""
        return safe_ratio(rows[:, 4], rows[:, 0])

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        return f"diversity|distinct:per-n-grams|tok:{ptb.VERSION}"


class SelfBleu(Scorer):
    """Self-BLEU: the BLEU of each caption with all others as its references; lower is more diverse.

    The mean over captions of the sentence BLEU-4, smoothed as in the original's program (an order without a match
    counts 0.1 matches; a caption that shares no word has 0), but for a caption of fewer than 4 words, which is judged
    by the n-grams that it has: N times "a house" is 1, not 0.32. Nothing is sampled: the count of an n-gram in any
    other caption is its largest count in the set, or the second largest where the caption itself holds the largest, so
    all N captions take one pass over their n-grams. Equal captions are references of each other. The reference set
    grows with N, and with it the figure.

    As a reward, to be subtracted: against the captions judged in the same call, among them the other samples of the
    same image. One caption alone has no self-BLEU: ScorerError.

    Args:
        argument: the longest n-grams, 1 to 4: "self_bleu:3".
    """

    name = "self_bleu"
    together = True
    primary = "self_bleu"
    higher_is_better: ClassVar = {"self_bleu": False}
    labels: ClassVar = {"self_bleu": "Self-BLEU"}
    source = "Zhu et al., SIGIR 2018"
    cost = "0.05 ms"
    no_interval = ("self_bleu",)  # a resample holds captions twice, which are each other's references
    positional = ("n",)
    usage = "self_bleu:3"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        n: Annotated[int, Field(ge=1, le=4, description="the longest n-grams")] = ORDERS

    def __init__(self, argument: str | None = None) -> None:
        self.n = self.read(argument).n

    def rows(self, captions: Sequence[str], **columns: object) -> np.ndarray:
        """Return (N, 1)."""
        if not captions:
            return np.zeros((0, 1))
        if len(captions) == 1:
            raise ScorerError("scorer 'self_bleu' compares captions with each other, and there is only one")
        _, lengths, grams = count_ngrams([ptb.tokenize(caption) for caption in captions])
        matched = [_matched_elsewhere(order, len(captions)) for order in grams[: self.n]]
        logs = np.zeros(len(captions))
        for n, hits in enumerate(matched, start=1):
            there = np.maximum(lengths - n + 1, 0)
            logs += np.where(there, np.log(np.where(hits, hits, _EPSILON) / np.maximum(there, 1)), 0)
        longest = np.clip(lengths, 1, self.n)
        brevity = np.minimum(0, 1 - _closest_other(lengths) / np.maximum(lengths, 1))
        return np.where(matched[0], np.exp(logs / longest + brevity), 0.0).reshape(-1, 1)

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        return (
            f"self_bleu|n:{self.n}|references:all-others|ref_length:closest|smooth:0.1|short:own-orders"
            f"|tok:{ptb.VERSION}"
        )


def _matched_elsewhere(grams: Grams, texts: int) -> np.ndarray:
    """(T,) how many of a text's n-grams, clipped, are in one of the other texts."""
    matched = np.zeros(texts)
    if not len(grams.gram):
        return matched
    by_count = np.lexsort((-grams.times, grams.gram))  # each n-gram's entries, the largest count first
    gram, times = grams.gram[by_count], grams.times[by_count]
    first = np.flatnonzero(np.diff(gram, prepend=-1))
    single = np.diff(first, append=len(gram)) == 1
    largest = times[first]
    second = np.where(single, 0, times[np.minimum(first + 1, len(times) - 1)])
    others = largest[gram]
    others[first] = second  # the text with the largest count looks at the others
    np.add.at(matched, grams.text[by_count], np.minimum(times, others))
    return matched


def _closest_other(lengths: np.ndarray) -> np.ndarray:
    """(T,) the length of the other text whose length is closest, the shorter one of two."""
    values, place, times = np.unique(lengths, return_inverse=True, return_counts=True)
    if len(values) == 1:
        return lengths
    gaps = np.diff(values)
    shorter = np.concatenate([[np.iinfo(gaps.dtype).max], gaps])
    longer = np.concatenate([gaps, [np.iinfo(gaps.dtype).max]])
    index = np.arange(len(values))
    nearest = values[np.where(shorter <= longer, index - 1, np.minimum(index + 1, len(values) - 1))]
    return np.where(times > 1, values, nearest)[place]
