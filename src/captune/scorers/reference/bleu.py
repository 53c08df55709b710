"""BLEU-1 to BLEU-4 (Papineni et al., 2002), corpus level, as pycocoevalcap 1.2 computes it for captions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from captune.scorers import Scorer, check_references
from captune.scorers._support import ptb
from captune.scorers._support.ngrams import ORDERS as _N
from captune.scorers._support.ngrams import count_ngrams

_AT_ONCE = 4096  # captions whose n-grams are in memory together
_SMALL, _TINY = 1e-9, 1e-15  # keep the ratios defined where a count is 0; the values are the reference implementation's


class Bleu(Scorer):
    """Corpus BLEU-4 (and 1 to 3): clipped n-gram precision with a brevity penalty.

    Each row holds the caption's length c, the length r of the reference closest to it (the shorter one when two are
    equally close), its numbers of 1- to 4-grams and how many of them are in the references, clipped:

        BLEU_n = min(1, exp(1 - r / c)) * (prod_{k<=n} correct_k / guessed_k)^(1/n),   all four summed over the corpus.

    A caption's own BLEU-4 is 0, or nearly so, unless it shares a 4-gram with a reference.
    """

    name = "bleu"
    primary = "bleu_4"
    higher_is_better: ClassVar = {"bleu_*": True}
    labels: ClassVar = {"bleu_4": "BLEU-4", "bleu_1": "BLEU-1", "bleu_2": "BLEU-2", "bleu_3": "BLEU-3"}
    source = "Papineni et al., ACL 2002"
    cost = "0.04 ms"
    required_columns = ("references",)

    def rows(self, captions: Sequence[str], *, references: Sequence[Sequence[str]], **others: Any) -> np.ndarray:
        """Return (N, 1): the score of each caption."""
        check_references(self.name, references)
        starts = range(0, len(captions), _AT_ONCE)
        parts = [_count(captions[i : i + _AT_ONCE], references[i : i + _AT_ONCE]) for i in starts]
        return np.concatenate([np.zeros((0, 2 + 2 * _N)), *parts])

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        bleu = _bleu(totals)
        return {"bleu_4": bleu[..., 3], "bleu_1": bleu[..., 0], "bleu_2": bleu[..., 1], "bleu_3": bleu[..., 2]}

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """Return (N,): the score of each caption by itself."""
        return _bleu(rows)[..., 3]

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        return f"bleu|n:{_N}|ref_length:closest|tok:{ptb.VERSION}"


def _count(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """The rows, by the n-grams of all captions and references at once."""
    n = len(captions)
    _, lengths, orders = count_ngrams([ptb.tokenize(text) for text in (*captions, *chain.from_iterable(references))])
    sizes = np.array([len(own) for own in references])
    image = np.concatenate([np.arange(n), np.repeat(np.arange(n), sizes)])  # of each text
    distance = np.abs(lengths[n:] - lengths[image[n:]])
    nearest = np.minimum.reduceat(distance << 32 | lengths[n:], np.cumsum(sizes) - sizes) & 0xFFFFFFFF
    length = lengths[:n, None]
    rows = np.hstack([length, nearest[:, None], np.maximum(0, length - np.arange(_N)), np.zeros((n, _N))])
    for k, grams in enumerate(orders):
        key = grams.gram.astype(np.int64) * n + image[grams.text]
        own = grams.text < n
        known, place = np.unique(key[~own], return_inverse=True)
        most = np.zeros(len(known) + 1)  # in any one reference; the last place stands for "in none"
        np.maximum.at(most, place, grams.times[~own])
        known = np.append(known, np.iinfo(np.int64).max)
        place = np.searchsorted(known, key[own])
        correct = np.where(known[place] == key[own], np.minimum(grams.times[own], most[place]), 0)
        rows[:, 2 + _N + k] = np.bincount(image[grams.text[own]], correct, minlength=n)
    return rows


def _bleu(totals: np.ndarray) -> np.ndarray:
    """(..., 10) sums -> (..., 4) BLEU-1 to BLEU-4."""
    length, closest = totals[..., 0], totals[..., 1]
    precisions = (totals[..., 2 + _N :] + _TINY) / (totals[..., 2 : 2 + _N] + _SMALL)
    bleu = np.cumprod(precisions, axis=-1) ** (1 / np.arange(1, _N + 1))
    ratio = (length + _TINY) / (closest + _SMALL)
    return bleu * np.exp(np.minimum(0.0, 1 - 1 / ratio))[..., None]
