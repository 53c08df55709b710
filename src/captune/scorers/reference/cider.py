"""CIDEr-D (Vedantam, Zitnick and Parikh, CVPR 2015), equal to what pycocoevalcap 1.2 calls CIDEr.

Document frequencies can be frozen, and it is fast enough to be a reward.

For captions c and reference r_j (j <= m) with n-gram counts h, n = 1 .. 4:

    g_k(s)       = h_k(s) * (log N - log max(1, df_k))          tf-idf; N images, the references of df_k have n-gram k
    CIDEr-D_n    = 10/m  sum_j  e^(-(l(c) - l(r_j))^2 / (2 sigma^2))  min(g(c), g(r_j)) . g(r_j) / (|g(c)| |g(r_j)|)
    CIDEr-D      = mean over n,   sigma = 6,   l = the number of 2-grams (a quirk that is kept)

With document frequencies taken from the evaluated references themselves, as pycocoevalcap does, a score depends on
which other images are evaluated, and a single image scores 0 whatever its caption. A reward therefore needs `fit`.

**Bad endings.** A policy that maximises CIDEr-D learns to stop at "a dog with a". With `eos=1` the end is a word, as in
SCST's code (self-critical.pytorch): it follows each reference, also where document frequencies are taken, and each
caption that ended by itself. All references have it, so its own idf is 0, but "beach END" is a 2-gram that references
share and "a END" is not. pycocoevalcap has no such thing; the signature names it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from captune.errors import SettingError
from captune.scorers import Scorer, check_references
from captune.scorers._support import ptb
from captune.scorers._support.document_frequencies import END, DocumentFrequencies, frequencies, pick
from captune.scorers._support.ngrams import ORDERS, Grams, Table, count_ngrams

_log = logging.getLogger(__name__)
_SIGMA = 6.0
_BEYOND = np.iinfo(np.int64).max  # a place after the last
_AT_ONCE = 8192  # captions scored together


class References:
    """The tf-idf vectors of images' references, made once; captions are scored against them.

    Args:
        references: tokenized, a list per image.
        df: None takes the document frequencies from these references.
    """

    def __init__(self, references: Sequence[Sequence[str]], df: DocumentFrequencies | None) -> None:
        self.references, self.df = references, df
        self.sizes = np.array([len(own) for own in references])
        self.first = np.cumsum(self.sizes) - self.sizes  # an image's first reference
        self.image_of = np.repeat(np.arange(len(references)), self.sizes)
        vocabulary, self.lengths, self.grams = count_ngrams(list(chain.from_iterable(references)))
        self.table = Table.of(vocabulary, self.grams)
        self.log_n = np.log(df.images if df else len(references))
        if df:
            self.frequencies = df.lookup(vocabulary, self.grams)
        else:
            self.frequencies = [frequencies(g, self.image_of) for g in self.grams]
        self.weights, self.norms, self.places = [], [], []
        for g, frequency in zip(self.grams, self.frequencies, strict=True):
            weight, norm = self._weigh(g, frequency, len(self.lengths))
            self.weights.append(weight)
            self.norms.append(norm)
            self.places.append(np.append(g.gram.astype(np.int64) * len(self.lengths) + g.text, _BEYOND))  # ascending

    def _weigh(self, grams: Grams, frequency: np.ndarray, texts: int) -> tuple[np.ndarray, np.ndarray]:
        """(E,) tf-idf of each entry and (T,) the norm of each text's vector."""
        weight = grams.times * (self.log_n - np.log(np.maximum(1, frequency)))[grams.gram]
        return weight, np.sqrt(np.bincount(grams.text, weight**2, minlength=texts))

    def cider_d(self, captions: Sequence[str], image: np.ndarray) -> np.ndarray:
        """(N,) CIDEr-D of tokenized captions; caption i is about image[i]."""
        vocabulary, lengths, orders = count_ngrams(captions)
        rows = self.table.rows(vocabulary, orders)
        frozen = self.df.lookup(vocabulary, orders) if self.df else None
        width = int(self.sizes.max())
        there = np.arange(width) < self.sizes[image][:, None]  # (N, width): caption i has a reference j
        text = np.where(there, self.first[image][:, None] + np.arange(width), 0)  # and it is this text
        similarity = np.zeros((len(captions), width))  # summed over n
        for n, g in enumerate(orders):
            weight, norm = self._weigh(g, frozen[n] if frozen else pick(self.frequencies[n], rows[n]), len(captions))
            row = rows[n][g.gram]
            mine = np.flatnonzero(row >= 0)
            row, caption = row[mine], g.text[mine].astype(np.int64)
            start = self.first[image[caption]]
            theirs = np.searchsorted(self.places[n], row * len(self.lengths) + start)
            product = np.zeros(similarity.size)
            for _ in range(width):  # the entries of this n-gram in this image's references follow each other
                place = self.places[n][theirs] - row * len(self.lengths) - start
                same = (place >= 0) & (place < self.sizes[image[caption]])
                mine, theirs, row, caption, start = (a[same] for a in (mine, theirs, row, caption, start))
                other = self.weights[n][theirs]
                clipped = np.minimum(weight[mine], other) * other
                product += np.bincount(caption * width + place[same], clipped, minlength=len(product))
                theirs = theirs + 1
            norms = norm[:, None] * self.norms[n][text]
            similarity += np.divide(product.reshape(norms.shape), norms, out=np.zeros_like(norms), where=norms > 0)
        pairs, theirs = np.maximum(lengths - 1, 0), np.maximum(self.lengths - 1, 0)  # the penalty's lengths: 2-grams
        similarity *= np.exp(-((pairs[:, None] - theirs[text]) ** 2) / (2 * _SIGMA**2)) * there
        return 10.0 / ORDERS * similarity.sum(axis=1) / self.sizes[image]


class Cider(Scorer):
    """CIDEr-D: tf-idf weighted agreement with the references in 1- to 4-grams (10 is the most).

    Unfitted, document frequencies come from the references given to `rows` (pycocoevalcap's figure). `fit`, or a saved
    file ("cider:df.json"), freezes them; as a reward it must be frozen.

    With "cider:?eos=1" the end of a caption counts as a word (see the module; a file says so itself). A column `ended`
    says which captions ended by themselves: all, where it is missing, as in trl and verl.

    Args:
        argument: a file of document frequencies, a setting, or both: "cider:df.json", "cider:?eos=1".
    """

    name = "cider"
    fitted_file = "cider-df.json"
    primary = "cider"
    higher_is_better: ClassVar = {"cider": True}
    labels: ClassVar = {"cider": "CIDEr-D"}
    source = "Vedantam et al., CVPR 2015"
    cost = "0.03 ms"
    required_columns = ("references",)
    positional = ("file",)
    usage = "cider:df.json?eos=1"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        file: Annotated[
            str, Field(description="document frequencies that `save` wrote; default: those of the evaluated references")
        ] = ""
        eos: Annotated[
            bool | None,
            Field(description="whether the end of a caption counts as a word; default: as in the file, else no"),
        ] = None

    def __init__(
        self, argument: str | None = None, df: DocumentFrequencies | str | os.PathLike[str] | None = None
    ) -> None:
        settings = self.read(argument)
        source = settings.file or df
        self.df = DocumentFrequencies.load(source) if isinstance(source, (str, os.PathLike)) else source
        self._references: References | None = None  # of the last call
        self.set_eos(settings.eos)

    def set_eos(self, eos: bool | None) -> None:
        """Whether the end counts as a word; None: where the document frequencies have it, with which it must agree."""
        has = self.df is not None and self.df.eos
        if self.df is not None and eos not in (None, has) and self.df.images > 1:  # nothing is kept of a single image
            taken = "with" if has else "without"
            raise SettingError(f"eos={eos:d}, but the document frequencies were taken {taken} it: take them again")
        self.said_eos, self.eos = eos, has if eos is None else eos
        self.optional_columns = ("ended",) if self.eos else ()

    def bind(self, captioner: Any, *, end_token: bool | None = None) -> None:
        """Take the method's end of a caption where the spec does not say."""
        if end_token is not None and self.said_eos is None:
            self.set_eos(end_token)

    @property
    def needs_fit(self) -> bool:
        """Whether the document frequencies are still to be frozen."""
        return self.df is None

    def fit(self, references: Iterable[Sequence[str]]) -> Cider:
        """Freeze the document frequencies of these references, a list per image. Returns self."""
        self.df = DocumentFrequencies.of([[self._words(text) for text in own] for own in references])
        return self

    def _words(self, text: str, ended: bool = True) -> str:
        words = ptb.tokenize(text)
        return f"{words} {END}".lstrip() if self.eos and ended else words

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the frozen document frequencies, for `Cider.load` or the spec "cider:<path>"."""
        if self.df is None:
            raise SettingError("there are no frozen document frequencies to save; call fit(references) first")
        self.df.save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Cider:
        """Read what `save` wrote."""
        return cls(df=DocumentFrequencies.load(path))

    def rows(
        self,
        captions: Sequence[str],
        *,
        references: Sequence[Sequence[str]],
        ended: Sequence[bool] | None = None,
        **others: Any,
    ) -> np.ndarray:
        """Return (N, 1): the score of each caption."""
        check_references(self.name, references)
        if self.df is None and len(captions) == 1:
            _log.warning(
                "CIDEr of a single image is 0 whatever its caption; take document frequencies from more images"
            )
        df = self.df
        if df is None and len(captions) > _AT_ONCE:
            df = DocumentFrequencies.of([self._words(text) for text in own] for own in references)
        whole = [True] * len(captions) if ended is None else ended
        parts = [slice(i, i + _AT_ONCE) for i in range(0, len(captions), _AT_ONCE)]
        scores = [self._score(captions[own], references[own], whole[own], df) for own in parts]
        return np.concatenate([np.zeros(0), *scores]).reshape(-1, 1)

    def _score(
        self,
        captions: Sequence[str],
        references: Sequence[Sequence[str]],
        ended: Sequence[bool],
        df: DocumentFrequencies | None,
    ) -> np.ndarray:
        """(N,), by the n-grams of all captions and references at once."""
        tokenized = [[self._words(text) for text in own] for own in references]
        image = np.arange(len(captions))
        if df is not None:  # samples of one image share its references
            places: dict[tuple[str, ...], int] = {}
            image = np.array([places.setdefault(tuple(own), len(places)) for own in tokenized])
            tokenized = [list(own) for own in places]
        known = self._references
        if known is None or known.df is not df or known.references != tokenized:
            known = self._references = References(tokenized, df)
        words = [self._words(caption, end) for caption, end in zip(captions, ended, strict=True)]
        return known.cider_d(words, image)

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        df = f"{self.df.digest[:12]}({self.df.images} images)" if self.df else "evaluated-references"
        end = "|eos:1" if self.eos else ""
        return f"cider-d|n:{ORDERS}|sigma:{_SIGMA:g}|df:{df}{end}|tok:{ptb.VERSION}"

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """TRL's reward; raises ValueError when the document frequencies are not frozen."""
        if self.df is None:
            raise SettingError(
                "cider as a reward needs frozen document frequencies, or a caption's reward would depend on the batch: "
                "call fit(references of the training images), or load a saved file with the spec 'cider:<file>'"
            )
        return super().__call__(completions, **columns)
