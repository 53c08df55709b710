"""CIDEr-D (Vedantam, Zitnick and Parikh, CVPR 2015), equal to what pycocoevalcap 1.2 calls CIDEr, with document
frequencies that can be frozen, and fast enough to be a reward.

For captions c and reference r_j (j <= m) with n-gram counts h, n = 1 .. 4:

    g_k(s)       = h_k(s) * (log N - log max(1, df_k))                         tf-idf; N images, df_k of them use n-gram k
    CIDEr-D_n    = 10/m  sum_j  e^(-(l(c) - l(r_j))^2 / (2 sigma^2))  min(g(c), g(r_j)) . g(r_j) / (|g(c)| |g(r_j)|)
    CIDEr-D      = mean over n,   sigma = 6,   l = the number of 2-grams (a quirk that is kept)

With document frequencies taken from the evaluated references themselves, as pycocoevalcap does, a score depends on which
other images are evaluated, and a single image scores 0 whatever its caption. A reward therefore needs `fit`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from captune.scorers import Scorer, ptb
from captune.scorers.bleu import check_references

_log = logging.getLogger(__name__)
_N = 4
_SIGMA = 6.0
_FORMAT = "captune-cider-df-1"
_KEPT = 2**14  # frozen frequencies keep the vectors of so many references, a few kB each

Ngram = tuple[str, ...]
Counts = tuple[dict[Ngram, int], ...]  # for each n, how often each n-gram occurs


class Vector(NamedTuple):
    """A caption's tf-idf vector g_k(s): its term frequencies and the norm of each order (idf is looked up)."""

    counts: Counts
    norms: tuple[float, ...]
    length: int  # 2-grams


class DocumentFrequencies:
    """In how many of N images' references each n-gram occurs. Immutable, but for a store of reference vectors.

    n-grams of a single image are not stored: max(1, df) makes them equal to unknown ones.
    """

    def __init__(self, counts: Mapping[Ngram, int], images: int, cooked: dict[str, Counts] | None = None) -> None:
        if images < 1:
            raise ValueError("document frequencies need the references of at least one image")
        self.images = images
        self.log_n = math.log(images)
        self.counts = {ngram: count for ngram, count in counts.items() if count > 1}
        self.idf = {ngram: self.log_n - math.log(count) for ngram, count in self.counts.items()}
        self._cooked = cooked or {}
        self._vectors: dict[str, Vector] = {}
        self._kept = max(_KEPT, len(self._cooked))

    @classmethod
    def of(cls, references: Iterable[Sequence[str]], *, keep: bool = False) -> DocumentFrequencies:
        """From tokenized references, a list per image. `keep`: these very references will be scored against."""
        counts: Counter[Ngram] = Counter()
        cooked: dict[str, Counts] = {}
        images = 0
        for own in references:
            grams: set[Ngram] = set()
            for text in own:
                by_order = cooked.get(text) or _cook(text)
                grams.update(*by_order)
                if keep:
                    cooked[text] = by_order
            counts.update(grams)
            images += 1
        return cls(counts, images, cooked)

    @property
    def digest(self) -> str:
        """SHA-256 of all that a score depends on: equal digests, equal scores."""
        lines = sorted(f"{' '.join(ngram)}\t{count}" for ngram, count in self.counts.items())
        return hashlib.sha256("\n".join([f"{_FORMAT} {ptb.VERSION} {self.images}", *lines]).encode()).hexdigest()

    def vector(self, counts: Counts) -> Vector:
        idf, log_n = self.idf.get, self.log_n
        norms = []
        for grams in counts:
            weights = [count * idf(gram, log_n) for gram, count in grams.items()]
            norms.append(math.hypot(*weights))
        return Vector(counts, tuple(norms), sum(counts[1].values()))

    def reference(self, tokenized: str) -> Vector:
        """The vector of a reference, from the store where it has been asked for before."""
        vector = self._vectors.get(tokenized)
        if vector is None:
            vector = self.vector(self._cooked.pop(tokenized, None) or _cook(tokenized))
            if len(self._vectors) >= self._kept:
                del self._vectors[next(iter(self._vectors))]
            self._vectors[tokenized] = vector
        return vector

    def score(self, caption: str, references: Sequence[str]) -> float:
        """CIDEr-D of one caption; all texts tokenized."""
        mine = self.vector(_cook(caption))
        total = 0.0
        for reference in references:
            theirs = self.reference(reference)
            similarity = 0.0
            for n in range(_N):
                h, r = mine.counts[n], theirs.counts[n]
                shared = h.keys() & r.keys()
                if not shared:  # then no longer n-gram is shared either
                    break
                product = 0.0
                for gram in shared:
                    count = r[gram]
                    product += min(h[gram], count) * count * self.idf.get(gram, self.log_n) ** 2
                if product:
                    similarity += product / (mine.norms[n] * theirs.norms[n])
            total += similarity * math.exp(-((mine.length - theirs.length) ** 2) / (2 * _SIGMA**2))
        return 10.0 * total / _N / len(references)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, atomically."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        counts = {" ".join(ngram): count for ngram, count in sorted(self.counts.items())}
        content = {"format": _FORMAT, "tokenizer": ptb.VERSION, "images": self.images, "digest": self.digest}
        partial = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        partial.write_text(json.dumps({**content, "counts": counts}, ensure_ascii=False), encoding="utf-8")
        os.replace(partial, target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DocumentFrequencies:
        """Read what `save` wrote; raises ValueError when it is something else, of another version, or damaged."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} does not hold CIDEr document frequencies: it is not JSON ({error})") from error
        found = (content.get("format"), content.get("tokenizer")) if isinstance(content, dict) else None
        if found != (_FORMAT, ptb.VERSION):
            raise ValueError(f"{path} does not hold CIDEr document frequencies of this version ({_FORMAT} with tokenizer "
                             f"{ptb.VERSION}, found {found}); fit them again with Cider().fit(references)")  # fmt: skip
        counts = {tuple(ngram.split(" ")): count for ngram, count in content["counts"].items()}
        frequencies = cls(counts, content["images"])
        if frequencies.digest != content["digest"]:
            raise ValueError(f"{path} is damaged: its content does not have the digest that it names; fit it again")
        return frequencies


class Cider(Scorer):
    """CIDEr-D: tf-idf weighted agreement with the references in 1- to 4-grams (10 is the most).

    Unfitted, document frequencies come from the references given to `rows` (pycocoevalcap's figure). `fit`, or a saved
    file ("cider:df.json"), freezes them; as a reward it must be frozen.
    """

    name = "cider"
    needs: ClassVar = ("references",)

    def __init__(
        self, argument: str | None = None, df: DocumentFrequencies | str | os.PathLike[str] | None = None
    ) -> None:
        source = argument if argument is not None else df
        self.df = DocumentFrequencies.load(source) if isinstance(source, (str, os.PathLike)) else source
        self._evaluated: tuple[list[list[str]], DocumentFrequencies] | None = None

    def fit(self, references: Iterable[Sequence[str]]) -> Cider:
        """Freeze the document frequencies of these references, a list per image. Returns self."""
        self.df = DocumentFrequencies.of([ptb.tokenize(text) for text in own] for own in references)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the frozen document frequencies, for `Cider.load` or the spec "cider:<path>"."""
        if self.df is None:
            raise ValueError("there are no frozen document frequencies to save; call fit(references) first")
        self.df.save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Cider:
        return cls(df=DocumentFrequencies.load(path))

    def rows(self, captions: Sequence[str], *, references: Sequence[Sequence[str]]) -> np.ndarray:  # type: ignore[override]
        check_references(self.name, references)
        tokenized = [[ptb.tokenize(text) for text in own] for own in references]
        df = self.df or self._df_of(tokenized)
        scores = [df.score(ptb.tokenize(c), own) for c, own in zip(captions, tokenized, strict=True)]
        return np.array(scores, dtype=np.float64).reshape(-1, 1)

    def _df_of(self, tokenized: list[list[str]]) -> DocumentFrequencies:
        """The frequencies of the evaluated references; kept, for a second system is scored against the same ones."""
        if self._evaluated is None or self._evaluated[0] != tokenized:
            if len(tokenized) == 1:
                _log.warning(
                    "CIDEr of a single image is 0 whatever its caption; use document frequencies from more images"
                )
            self._evaluated = (tokenized, DocumentFrequencies.of(tokenized, keep=True))
        return self._evaluated[1]

    @property
    def signature(self) -> str:
        df = f"{self.df.digest[:12]}({self.df.images} images)" if self.df else "evaluated-references"
        return f"cider-d|n:{_N}|sigma:{_SIGMA:g}|df:{df}|tok:{ptb.VERSION}"

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """TRL's reward; raises ValueError when the document frequencies are not frozen."""
        if self.df is None:
            raise ValueError(
                "cider as a reward needs frozen document frequencies, or a caption's reward would depend on the batch: "
                "call fit(references of the training images), or load a saved file with the spec 'cider:<file>'"
            )
        return super().__call__(completions, **columns)


def _cook(tokenized: str) -> Counts:
    """Counts of the 1- to 4-grams."""
    words = tokenized.split()
    counts = []
    grams: list[Ngram]
    for n in range(_N):
        grams = list(zip(*(words[i:] for i in range(n + 1)), strict=False))
        distinct = dict.fromkeys(grams, 1)
        counts.append(distinct if len(distinct) == len(grams) else dict(Counter(grams)))
    return tuple(counts)
