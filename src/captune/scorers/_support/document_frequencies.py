"""Document frequencies for CIDEr: in how many images' references an n-gram occurs, counted once and kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import chain, islice
from pathlib import Path

import numpy as np

from captune.errors import SettingError
from captune.scorers._support import ptb
from captune.scorers._support.ngrams import ORDERS, Grams, Table, count_ngrams
from captune.utils.files import read_json, replace_file

_FORMAT = "captune-cider-df-1"
_AT_ONCE = 8192  # images whose n-grams are in memory together
END = "<END>"  # the end of a caption as a word; the tokenizer gives lower case only, so no caption can hold it


class DocumentFrequencies:
    """In how many of N images' references each n-gram occurs; frozen.

    N-grams of a single image are not kept: max(1, df) makes them equal to unknown ones.
    """

    def __init__(self, images: int, table: Table, counts: Sequence[np.ndarray]) -> None:
        self.images, self.table, self.counts = images, table, list(counts)

    @classmethod
    def of(cls, references: Iterable[Sequence[str]]) -> DocumentFrequencies:
        """From tokenized references, a list per image; some thousand images are in memory at a time."""
        images, parts = iter(references), []
        while some := list(islice(images, _AT_ONCE)):
            vocabulary, _, grams = count_ngrams(list(chain.from_iterable(some)))
            image_of = np.repeat(np.arange(len(some)), [len(own) for own in some])
            parts.append(cls(len(some), Table.of(vocabulary, grams), [frequencies(g, image_of) for g in grams]))
            while len(parts) > 1 and parts[-2].images <= parts[-1].images:  # like with like, as in a merge sort
                parts[-2:] = [parts[-2]._with(parts[-1])]
        if not parts:
            raise SettingError("document frequencies need the references of at least one image")
        return reduce(cls._with, reversed(parts))._common()

    def _with(self, other: DocumentFrequencies) -> DocumentFrequencies:
        """Of the images of both."""
        words = list(dict.fromkeys([*self.table.words, *other.table.words]))
        place = {word: i for i, word in enumerate(words)}
        word_of = [np.array([place[word] for word in part.table.words], dtype=np.int64) for part in (self, other)]
        row_of = [np.zeros(1, dtype=np.int64)] * 2  # of each one's (n-1)-grams in the new table
        keys, counts = [], []
        for n in range(ORDERS):
            moved = []
            for part, word, row in zip((self, other), word_of, row_of, strict=True):
                prefix, last = np.divmod(part.table.keys[n], max(1, len(word)))
                moved.append(row[prefix] * len(words) + word[last])
            key, rows = np.unique(np.concatenate(moved), return_inverse=True)
            keys.append(key)
            counts.append(np.bincount(rows, np.concatenate([self.counts[n], other.counts[n]])).astype(np.int64))
            row_of = np.split(rows, [len(moved[0])])
        return DocumentFrequencies(self.images + other.images, Table(words, keys), counts)

    def _common(self) -> DocumentFrequencies:
        """Without the n-grams of a single image; the words sorted."""
        before, width = self.table.words, max(1, len(self.table.words))
        words = sorted(before[w] for w in self.table.keys[0][self.counts[0] > 1])
        rank = {word: i for i, word in enumerate(words)}
        word_rank = np.array([rank.get(word, -1) for word in before], dtype=np.int64)
        row = np.zeros(1, dtype=np.int64)  # of each (n-1)-gram in its table
        keys, counts = [], []
        for key, df in zip(self.table.keys, self.counts, strict=True):
            kept = np.flatnonzero(df > 1)  # its (n-1)-gram and its words are in as many images, so they are kept too
            prefix, last = np.divmod(key[kept], width)
            key = row[prefix] * len(words) + word_rank[last]
            order = np.argsort(key)
            keys.append(key[order])
            counts.append(df[kept][order])
            row = np.full(len(df), -1, dtype=np.int64)
            row[kept[order]] = np.arange(len(kept))
        return DocumentFrequencies(self.images, Table(words, keys), counts)

    def lookup(self, vocabulary: Sequence[str], grams: Sequence[Grams]) -> list[np.ndarray]:
        """For each order, the (G,) frequencies of other texts' n-grams; 0 for those not known."""
        rows = self.table.rows(vocabulary, grams)
        return [pick(counts, row) for counts, row in zip(self.counts, rows, strict=True)]

    @property
    def eos(self) -> bool:
        """Whether the end of a reference was counted as a word."""
        return END in self.table.words

    @property
    def digest(self) -> str:
        """SHA-256 of all that a score depends on: equal digests, equal scores."""
        state = hashlib.sha256(
            f"{_FORMAT} {ptb.VERSION} {self.images}\n".encode() + "\n".join(self.table.words).encode()
        )
        for array in (*self.table.keys, *self.counts):
            state.update(len(array).to_bytes(8, "little") + array.astype("<i8").tobytes())
        return state.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, atomically."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = {"format": _FORMAT, "tokenizer": ptb.VERSION, "images": self.images, "digest": self.digest,
                   "words": self.table.words, "keys": [k.tolist() for k in self.table.keys],
                   "counts": [c.tolist() for c in self.counts]}  # fmt: skip
        replace_file(target, json.dumps(content, ensure_ascii=False))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DocumentFrequencies:
        """Read what `save` wrote; raises ValueError when it is something else, of another version, or damaged."""
        try:
            content = read_json(path)
        except ValueError as error:
            raise SettingError(f"{path} does not hold CIDEr document frequencies: it is not JSON ({error})") from error
        found = (content.get("format"), content.get("tokenizer")) if isinstance(content, dict) else None
        if found != (_FORMAT, ptb.VERSION):
            raise SettingError(
                f"{path} does not hold CIDEr document frequencies of this version ({_FORMAT} with tokenizer "
                f"{ptb.VERSION}, found {found}); fit them again with Cider().fit(references)"
            )
        keys, counts = ([np.array(a, dtype=np.int64) for a in content[name]] for name in ("keys", "counts"))
        frequencies = cls(content["images"], Table(content["words"], keys), counts)
        if frequencies.digest != content["digest"]:
            raise SettingError(f"{path} is damaged: its content does not have the digest that it names; fit it again")
        return frequencies


def frequencies(grams: Grams, image_of: np.ndarray) -> np.ndarray:
    """(G,): in how many images' references each n-gram occurs. An image's texts follow each other."""
    gram, image = grams.gram, image_of[grams.text]
    first = np.ones(len(gram), dtype=bool)
    first[1:] = (gram[1:] != gram[:-1]) | (image[1:] != image[:-1])
    return np.bincount(gram[first], minlength=len(grams.prefix))


def pick(values: np.ndarray, row: np.ndarray) -> np.ndarray:
    """values[row], and 0 where row is -1."""
    return np.append(values, 0)[row]
