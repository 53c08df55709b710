"""Descriptiveness NLI: what a caption says against what its reference says, proposition by proposition (KnowAda)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from captune.models.answerers import Answerer, Question, load_answerer, one_line
from captune.scorers import Scorer, safe_ratio
from captune.scorers._support.units import (
    EXACT,
    EXACT_OR_MODEL,
    UNITS,
    Unit,
    asked_units,
    exact_program,
    exact_units,
    named,
    the_reference,
    unit_of,
)
from captune.utils.hashing import fingerprint
from captune.utils.memory import remembers

VERDICTS = ("Entailed", "Contradicted", "Neutral")
PROMPT = """\
Judge a statement about an image by a description of that image, and by nothing else.
Description: "{premise}"
Statement: "{hypothesis}"
Entailed: the description says so. Contradicted: the description says otherwise, or the statement says that something
can be seen which the description does not have. Neutral: the statement is about mood or taste, or nothing that is seen.
Answer with one word, Entailed, Contradicted or Neutral."""


class Dnli(Scorer):
    """DNLI: how much of a caption its reference bears out, contradicts, and how much of the reference it covers.

    With e, c, n the caption's propositions that are entailed, contradicted and neutral, and g the number of the
    reference's, each figure is the mean over images:

        descriptiveness        e / (e + c + n)      descriptiveness_recall   e / g, as published
        contradiction          c / (e + c + n)      contradiction_recall     c / g, as published
        coverage               the share of the reference's propositions that the caption entails
        dnli                   the harmonic mean of descriptiveness and coverage

    The published "recall" divides counts of two different lists and may exceed 1; coverage is the recall of the
    reference. `dnli` is ours, KnowAda has no single number. Nothing to divide by gives 0; a judge that fails is an
    error and no -1, which the published program turns into a precision of 1.

        dnli, dnli:storybook      propositions are what the source's program reads: entailed if true of the scene, else
                                  contradicted; neutral is a sentence in which it reads nothing; g counts all the
                                  scene's facts
        dnli:?reference=0         the same against the facts of one reference: what it does not state is contradicted,
                                  true or not, which is the published rule for what can be seen
        dnli:MODEL                a language model splits caption and references, and judges every proposition, the
                                  likeliest of its three answers, read off the next token

    KnowAda has one dense reference; of several, a model reads all, a line each, unless reference=NUMBER picks one.

    Args:
        argument: who judges, and against which reference.
        answerer: who answers, in place of the model that the argument names.
        device: where a local model runs.
    """

    name = "dnli"
    primary = "dnli"
    higher_is_better: ClassVar = {
        "dnli": True,
        "descriptiveness": True,
        "contradiction": False,
        "coverage": True,
        "descriptiveness_recall": True,
        "contradiction_recall": False,
    }
    labels: ClassVar = {
        "dnli": "DNLI",
        "descriptiveness_recall": "descriptiveness recall (published)",
        "contradiction_recall": "contradiction recall (published)",
    }
    source = "Yanuka et al., NAACL 2025 (KnowAda)"
    cost = "1 text and 1 answer per proposition of a language model (storybook: 0.1 ms)"
    required_columns: tuple[str, ...] = ("scene",)  # with a model: references
    cached = True
    kept_every = 16  # captions take seconds each
    positional = ("model",)
    usage = "dnli:Qwen/Qwen3-8B?reference=0"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        model: Annotated[str, Field(description=EXACT_OR_MODEL)] = EXACT
        reference: Annotated[
            int | None,
            Field(
                ge=0, description="the number of the only reference that counts; default: the scene, or all references"
            ),
        ] = None

    def __init__(
        self, argument: str | None = None, *, answerer: Answerer | None = None, device: str | None = None
    ) -> None:
        settings = self.read(argument)
        self.scheme = exact_program(settings.model) if answerer is None else None
        self.reference: int | None = settings.reference
        self.cached = self.scheme is None
        self._split: dict[str, list[Unit]] = {}
        remembers(self)
        if self.scheme is None:
            self.answerer = answerer or load_answerer(settings.model, device=device)
            self.required_columns = ("references",)
        else:
            own = () if self.reference is None else ("references",)
            self.required_columns = (self.scheme.truth_column, *own)

    def clear(self) -> None:
        """Forget the statements of references."""
        self._split.clear()

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        if self.scheme is None:
            self.answerer.check()

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        """Return (N, 6): each caption's figures, `dnli` first."""
        references = columns.get("references") or [()] * len(captions)
        counts = self._exact(captions, references, columns) if self.scheme else self._asked(captions, references)
        e, c, n, g, covered = np.array(counts, dtype=np.float64).reshape(-1, 5).T
        precision, coverage = safe_ratio(e, e + c + n), safe_ratio(covered, g)
        rows = [
            safe_ratio(2 * precision * coverage, precision + coverage),
            precision,
            safe_ratio(c, e + c + n),
            coverage,
        ]
        return np.stack([*rows, safe_ratio(e, g), safe_ratio(c, g)], axis=1)

    def _exact(self, captions: Sequence[str], references: Sequence[Sequence[str]], columns: Any) -> list[list[int]]:
        """Per caption: entailed, contradicted, neutral, propositions of the reference, those covered."""
        scheme = self.scheme
        assert scheme is not None
        counts = []
        for caption, own, truth in zip(captions, references, columns[scheme.truth_column], strict=True):
            units = exact_units(scheme, caption, truth)
            if self.reference is None:
                known = {fact.key for fact in scheme.facts(truth)}
                entailed = [unit.descriptive and unit.true for unit in units]
            else:
                text = the_reference(self.name, own, self.reference, named(caption))
                known = {unit_of(s).key for s in scheme.statements(text, truth)}
                entailed = [unit.descriptive and unit.key in known for unit in units]
            neutral = sum(not unit.descriptive for unit in units)
            covered = {unit.key for unit, yes in zip(units, entailed, strict=True) if yes} & known
            counts.append([sum(entailed), len(units) - neutral - sum(entailed), neutral, len(known), len(covered)])
        return counts

    def _asked(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[list[int]]:
        about = [named(caption) for caption in captions]
        whole = [
            the_reference(self.name, own, self.reference, what) for own, what in zip(references, about, strict=True)
        ]
        units = asked_units(self.answerer, captions, about)
        known = asked_units(self.answerer, whole, [f"reference {text[:60]!r}" for text in whole], self._split)
        questions = []
        for caption, text, said, there, what in zip(captions, whole, units, known, about, strict=True):
            questions += [_question(text, unit, what) for unit in said]
            questions += [_question(caption, unit, what) for unit in there if said]
        verdicts = iter([int(p.argmax()) for p in self.answerer.answer_probabilities(questions)])
        counts = []
        for said, there in zip(units, known, strict=True):
            own = [next(verdicts) for _ in said]
            covered = [next(verdicts) for _ in there if said]
            counts.append([*(own.count(v) for v in range(3)), len(there), covered.count(0)])
        return counts

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        return {name: totals[..., i] / n for i, name in enumerate(self.higher_is_better)}

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        if self.scheme is not None:
            against = "scene" if self.reference is None else f"reference:{self.reference}"
            return f"dnli|facts:{self.scheme.name}|against:{against}|unread:neutral"
        against = "references" if self.reference is None else f"reference:{self.reference}"
        return f"dnli|model:{self.answerer.label}|against:{against}|prompts:{fingerprint(UNITS + PROMPT)}"


def _question(premise: str, unit: Unit, about: str) -> Question:
    text = PROMPT.format(premise=one_line(premise), hypothesis=unit.text)
    return Question(text, VERDICTS, f"the statement {unit.text[:60]!r} ({about})")
