"""The n-grams of many texts at once, as arrays.

With ids for words and for (n-1)-grams, an n-gram is a pair of integers, and one sort per order brings equal ones
together: no dict per text, a hundred times fewer Python objects, and no dependence on hashing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

import numpy as np

ORDERS = 4
_AT_ONCE = 4096  # texts whose words are in memory as strings


class Grams(NamedTuple):
    """The n-grams of one order in a list of texts.

    Distinct n-grams have ids 0 .. G-1; each is an (n-1)-gram and one more word, and they are sorted by that pair. An
    entry says that a text has an n-gram so many times; entries are sorted by n-gram, then text. All are int32: widen
    what you multiply.
    """

    prefix: np.ndarray  # (G,) id of the (n-1)-gram; 0 for n = 1
    last: np.ndarray  # (G,) id of the last word
    gram: np.ndarray  # (E,)
    text: np.ndarray  # (E,)
    times: np.ndarray  # (E,)


def count_ngrams(texts: Sequence[str]) -> tuple[list[str], np.ndarray, list[Grams]]:
    """(vocabulary, (T,) words per text, the n-grams for n = 1 .. 4) of tokenized texts."""
    end = "\0"  # a word of its own after each text: one split for many of them
    vocabulary: defaultdict[str, int] = defaultdict(count().__next__)
    parts = [np.zeros(0, dtype=np.int32)]
    for i in range(0, len(texts), _AT_ONCE):
        words = f" {end} ".join([*texts[i : i + _AT_ONCE], ""]).split()
        parts.append(np.fromiter(map(vocabulary.__getitem__, words), dtype=np.int32, count=len(words)))
    ids = np.concatenate(parts)
    place = np.arange(len(ids), dtype=np.int32)
    is_end = ids == vocabulary.get(end, -1)
    ends = place[is_end]
    text_of = np.cumsum(is_end, dtype=np.int32) - is_end
    left = ends[text_of] - place  # words from here to the end of the text

    gram_at = np.zeros(len(ids), dtype=np.int32)  # id of the (n-1)-gram that starts here
    grams = []
    for n in range(1, ORDERS + 1):
        starts = place[left >= n]
        prefix, last = gram_at[starts], ids[starts + n - 1]
        order = _stable_order(last, prefix)  # equal n-grams stay in text order
        starts, prefix, last = starts[order], prefix[order], last[order]
        new_gram = np.ones(len(starts), dtype=bool)
        new_gram[1:] = (prefix[1:] != prefix[:-1]) | (last[1:] != last[:-1])
        gram = np.cumsum(new_gram, dtype=np.int32) - 1
        text = text_of[starts]
        new_entry = new_gram.copy()
        new_entry[1:] |= text[1:] != text[:-1]
        first = np.flatnonzero(new_entry)
        times = np.diff(first, append=len(starts)).astype(np.int32)
        grams.append(Grams(prefix[new_gram], last[new_gram], gram[first], text[first], times))
        gram_at[starts] = gram
    return list(vocabulary), np.diff(ends.astype(np.int64), prepend=-1) - 1, grams


def _stable_order(*keys: np.ndarray) -> np.ndarray:
    """np.lexsort (the last key counts most) of numbers >= 0, by 16 bits at a time: those numpy sorts by radix."""
    order = np.arange(len(keys[0]), dtype=np.int32)
    for key in keys:
        for shift in range(0, max(1, int(key.max(initial=0)).bit_length()), 16):
            digits = ((key >> shift) & 0xFFFF).astype(np.uint16)
            order = order[np.argsort(digits[order], kind="stable")]
    return order


class Table:
    """A set of n-grams that other texts' n-grams are looked up in, for each order by sorted keys.

    The key of an n-gram is (row of its (n-1)-gram in the table before) * (number of words) + (word); the set must hold
    the words and the (n-1)-gram of every n-gram in it.
    """

    def __init__(self, words: Sequence[str], keys: Sequence[np.ndarray]) -> None:
        self.words, self.keys = list(words), list(keys)
        self._word = {word: i for i, word in enumerate(self.words)}

    @classmethod
    def of(cls, vocabulary: Sequence[str], grams: Sequence[Grams]) -> Table:
        """All n-grams of `count_ngrams`; an n-gram's row is its id."""
        return cls(vocabulary, [g.prefix.astype(np.int64) * len(vocabulary) + g.last for g in grams])

    def rows(self, vocabulary: Sequence[str], grams: Sequence[Grams]) -> list[np.ndarray]:
        """For each order, the (G,) rows of other texts' n-grams; -1 for those that are not in the set."""
        word = np.array([self._word.get(w, -1) for w in vocabulary], dtype=np.int64)
        row = np.zeros(1, dtype=np.int64)
        rows = []
        for g, keys in zip(grams, self.keys, strict=True):
            prefix, last = row[g.prefix], word[g.last]
            row = np.full(len(prefix), -1, dtype=np.int64)
            if len(keys):
                may = np.flatnonzero((prefix >= 0) & (last >= 0))
                key = prefix[may] * len(self.words) + last[may]
                place = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
                found = keys[place] == key
                row[may[found]] = place[found]
            rows.append(row)
        return rows
