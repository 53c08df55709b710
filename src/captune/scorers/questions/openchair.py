"""OpenCHAIR: things that a caption names and its image does not show, in an open vocabulary (MOCHa)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from captune.models.answerers import Answerer, Question, load_answerer, one_line
from captune.scene_graphs import load_parser
from captune.scene_graphs.phrases import phrases, sentences
from captune.scorers import Scorer, check_references, safe_ratio
from captune.scorers._support.units import EXACT, EXACT_OR_MODEL, exact_program, named
from captune.utils.hashing import fingerprint

ANSWERS = ("Yes", "No", "Unsure")
IGNORED = frozenset(("painting", "drawing", "photo", "picture", "portrait", "photograph"))
PROMPT = """\
These captions describe one image:
{references}
Does the image show this: {noun}?
Answer with one word: Yes if the captions say so or it follows from them, No if not, Unsure if it cannot be told."""


class OpenChair(Scorer):
    """OpenCHAIR: the share of the things named that the image does not show, in an open vocabulary; lower is better.

        OpenCHAIR = #no / (#yes + #no)   over all nouns of all captions

    A judge says of each noun whether the image, known by its reference captions, shows it: yes, no or unsure, the
    likeliest of the three, read off the next token. Unsure leaves the denominator, and so does a caption without nouns:
    whoever says little wins. So look at `coverage`, the share of captions that name something, `unsure`, the share of
    the nouns that the judge was unsure about, and `nouns` per caption. A figure with nothing to divide by is 0. As a
    reward it is the caption's own share, to be subtracted: `cider - openchair`.

        openchair, openchair:storybook   objects stated, false or true of the scene, by the source's own program
        openchair:MODEL                  a language model judges, by the references
        openchair:MODEL?distinct=1       a noun that is repeated within a caption counts once, not each time

    The original takes spaCy's nouns of a concreteness above 4.5 (Brysbaert's norms); neither is here: a noun is what
    captune's scene-graph grammar takes for a thing that can be seen, by WordNet's categories, in the dictionary form;
    what is denied ("no people") does not count. The names of what an image is (photo, painting and four others) are
    ignored, as in the original, which looks for "yes" before "no" anywhere in 8 tokens.

    Args:
        argument: who judges.
        answerer: who answers, in place of the model that the argument names.
        device: where a local model runs.
    """

    name = "openchair"
    primary = "openchair"
    higher_is_better: ClassVar = {"openchair": False, "coverage": True}
    labels: ClassVar = {"openchair": "OpenCHAIR", "coverage": "captions with a noun", "nouns": "nouns per caption"}
    source = "Ben-Kish et al., EMNLP 2024 (MOCHa)"
    cost = "an answer of a language model per noun (storybook: 0.1 ms)"
    required_columns: tuple[str, ...] = ("scene",)  # with a model: references
    cached = True
    positional = ("model",)
    usage = "openchair:Qwen/Qwen3-8B?distinct=1"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        model: Annotated[str, Field(description=EXACT_OR_MODEL)] = EXACT
        distinct: Annotated[bool, Field(description="whether a repeated noun of a caption counts once")] = False

    def __init__(
        self, argument: str | None = None, *, answerer: Answerer | None = None, device: str | None = None
    ) -> None:
        settings = self.read(argument)
        self.distinct: bool = settings.distinct
        self.scheme = exact_program(settings.model) if answerer is None else None
        self.cached = self.scheme is None
        if self.scheme is None:
            self.answerer = answerer or load_answerer(settings.model, device=device)
            self.parser = load_parser()
        self.required_columns = ("references",) if self.scheme is None else (self.scheme.truth_column,)

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        if self.scheme is None:
            self.answerer.check()

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        """Return (N, 4): nouns that are shown, not shown, unsure, and whether there is any noun."""
        if self.scheme is not None:
            verdicts = self._exact(captions, columns[self.scheme.truth_column])
        else:
            verdicts = self._asked(captions, columns["references"])
        counts = [[*(own.count(v) for v in range(3)), float(bool(own))] for own in verdicts]
        return np.array(counts, dtype=np.float64).reshape(-1, 4)

    def _exact(self, captions: Sequence[str], truths: Sequence[str]) -> list[list[int]]:
        """Per caption, for each object stated, the place of the answer in `ANSWERS`."""
        assert self.scheme is not None
        found = []
        for caption, truth in zip(captions, truths, strict=True):
            objects = [s for s in self.scheme.statements(caption, truth) if s.kind == "object"]
            if self.distinct:
                objects = list({s.key: s for s in reversed(objects)}.values())  # the first of each
            found.append([0 if s.true else 1 for s in objects])
        return found

    def _asked(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[list[int]]:
        check_references(self.name, references)
        named_things = self.nouns(captions)
        asked: dict[tuple[str, tuple[str, ...]], Question] = {}
        for caption, own, things in zip(captions, references, named_things, strict=True):
            for thing in things:
                text = "\n".join(f"- {one_line(reference)}" for reference in own)
                question = Question(
                    PROMPT.format(references=text, noun=thing), ANSWERS, f"{thing!r} in {named(caption)}"
                )
                asked.setdefault((thing, tuple(own)), question)
        answers = self.answerer.answer_probabilities(list(asked.values()))
        verdict = {key: int(p.argmax()) for key, p in zip(asked, answers, strict=True)}
        return [
            [verdict[thing, tuple(own)] for thing in things]
            for own, things in zip(references, named_things, strict=True)
        ]

    def nouns(self, captions: Sequence[str]) -> list[list[str]]:
        """Return the things that captions name, in the dictionary form and in order, repetitions included."""
        found = []
        for caption, graph in zip(captions, self.parser.parse(captions), strict=True):
            things = set(graph.objects) - IGNORED
            if self.distinct:
                found.append([thing for thing in graph.objects if thing in things])
                continue
            items = [item for sentence in sentences(caption) for item in phrases(sentence)]
            found.append(
                [item.text for item in items if item.kind == "NP" and item.text in things and not item.negated]
            )
        return found

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        shown, not_shown, unsure, any_noun = (totals[..., i] for i in range(4))
        every = shown + not_shown + unsure
        return {
            "openchair": safe_ratio(not_shown, shown + not_shown),
            "coverage": any_noun / n,
            "unsure": safe_ratio(unsure, every),
            "nouns": every / n,
        }

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """Return (N,): the share of each caption by itself."""
        return safe_ratio(rows[:, 1], rows[:, 0] + rows[:, 1])

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        repeated = "once" if self.distinct else "each"
        if self.scheme is not None:
            return f"openchair|facts:{self.scheme.name}|repeated:{repeated}"
        return (
            f"openchair|model:{self.answerer.label}|nouns:{self.parser.signature}|prompt:{fingerprint(PROMPT)}"
            f"|repeated:{repeated}|unsure:left-out"
        )
