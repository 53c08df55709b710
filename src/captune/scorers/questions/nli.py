"""NLI fidelity: how little a caption contradicts what is known of its image (MOCHa)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from captune.models.answerers import one_line
from captune.scorers import Scorer, check_references, safe_ratio
from captune.scorers._support.units import EXACT, exact_program

if TYPE_CHECKING:
    from captune.models.entailment import EntailmentModel


class Nli(Scorer):
    """NLI fidelity: 1 for a caption that contradicts nothing that is known of its image, down to -1.

        f(c) = 2 (1 - mean over references r of p_contradiction(r, c) - 1/2)

    p_contradiction is the probability, by a natural-language-inference model, that the caption contradicts the
    reference (premise = reference, hypothesis = caption). `contradiction` is its mean. Any sequence classifier of
    transformers with a label "contradiction" serves, such as bart-large-mnli, MOCHa's.

        nli, nli:storybook               p is the share of the caption's statements that are false, by the source's own
                                         program, which compares them with the image's facts and not with references
        nli:FacebookAI/bart-large-mnli   an NLI model, a folder or hub name

    A caption that states nothing contradicts nothing and scores 1: fidelity alone shrinks captions. MOCHa adds
    BERTScore, half and half, and a KL penalty: `0.5*nli + 0.5*bertscore`. What MOCHa leaves open: line breaks are
    spaces; a caption that is too long for the model is an error, it is never cut.

    Args:
        argument: who judges.
        model: an NLI model, in place of the one that the argument names.
        device: where it runs.
    """

    name = "nli"
    primary = "nli"
    higher_is_better: ClassVar = {"nli": True, "contradiction": False}
    labels: ClassVar = {"nli": "NLI fidelity"}
    source = "Ben-Kish et al., EMNLP 2024 (MOCHa)"
    cost = "a pass of an NLI model per reference (storybook: 0.1 ms)"
    required_columns: tuple[str, ...] = ("scene",)  # with a model: references
    cached = True
    positional = ("model",)
    usage = "nli:FacebookAI/roberta-large-mnli"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        model: Annotated[
            str, Field(description="a source whose own program judges exactly, or an NLI model's folder or hub name")
        ] = EXACT

    def __init__(
        self, argument: str | None = None, *, model: EntailmentModel | None = None, device: str | None = None
    ) -> None:
        named = self.read(argument).model
        self.scheme = exact_program(named) if model is None else None
        self.required_columns = (self.scheme.truth_column,) if self.scheme else ("references",)
        self.cached = self.scheme is None
        if self.scheme is None and model is None:
            from captune.models.entailment import EntailmentModel

            model = EntailmentModel(named, device=device)
        self.model = model

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        if self.model is not None:
            self.model.check()

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        """Return (N, 1): the mean probability of a contradiction."""
        if self.scheme is not None:
            truths = columns[self.scheme.truth_column]
            stated = [self.scheme.statements(c, truth) for c, truth in zip(captions, truths, strict=True)]
            false = np.array([sum(not s.true for s in own) for own in stated], dtype=np.float64)
            return safe_ratio(false, np.array([len(own) for own in stated])).reshape(-1, 1)
        references: Sequence[Sequence[str]] = columns["references"]
        check_references(self.name, references)
        pairs = [(one_line(r), one_line(c)) for c, own in zip(captions, references, strict=True) for r in own]
        assert self.model is not None
        p = iter(self.model.contradictions(pairs).tolist())
        return np.array([[np.mean([next(p) for _ in own])] for own in references], dtype=np.float64).reshape(-1, 1)

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        return {"nli": 1 - 2 * totals[..., 0] / n, "contradiction": totals[..., 0] / n}

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """Return (N,): the fidelity of each caption by itself."""
        return 1 - 2 * rows[:, 0]

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        if self.scheme is not None:
            return f"nli|facts:{self.scheme.name}|contradicted:false"
        assert self.model is not None
        return f"nli|model:{self.model.label}|premise:reference|mean"
