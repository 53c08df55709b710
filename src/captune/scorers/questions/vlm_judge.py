"""A vision-language model as the judge of captions, by ViZer's prompt (section 4.2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from captune.errors import SpecError
from captune.models.answerers import Answerer, Question, load_vision_answerer, one_line
from captune.scorers import Scorer
from captune.utils.hashing import fingerprint

if TYPE_CHECKING:
    from captune.models.captioner import Captioner

EXAMPLE = "judge:Qwen/Qwen2.5-VL-7B-Instruct?reference=1"
VALUES = {"A": 1.0, "B": 0.75, "C": 0.5, "D": 0.25, "E": 0.0}
PROMPT = """\
Look at this image and evaluate the caption quality.
{reference}Generated caption: {caption}
Rate the generated caption:
A) Excellent - Perfect description, captures all key details
B) Good - Accurate main objects/scene, minor missing details
C) Fair - Correct general scene but lacks specificity
D) Poor - Some correct elements but major inaccuracies
E) Wrong - Completely incorrect or irrelevant
Answer with just the letter (A, B, C, D, or E):"""
REFERENCE = "Reference (human-written): {text}\n"
OPENING = "Score:"  # the words that the paper puts into the judge's mouth


class Judge(Scorer):
    """VLM judge: the grade, 1 (A, excellent) to 0 (E, wrong), that a vision-language model expects a caption to have.

        judge(v, c) = sum_l p(l | v, c) value(l),   l in A..E, value = 1, 0.75, 0.5, 0.25, 0

    p is the probability of the letter as the next token, normalised over the five: an expectation, no sampled letter,
    so that two captions with the same best letter still differ. The prompt is ViZer's. A model on this machine starts
    its answer after "Score:", as in the paper; a server cannot be made to. What the paper leaves open: the five values
    are spaced equally, all references of an image are shown, a line each, and the system turn is the template's own.

    A judge can be gamed by captions that talk to it, and one that cannot follow the prompt may take "A" for an article:
    score the captions of other images too; a judge that does not mark them down is useless.

    Args:
        argument: the judge, any model that `Captioner` loads or a server, and whether it sees the references:
            "judge:Qwen/Qwen2.5-VL-7B-Instruct?reference=1", "judge:http://localhost:8000/v1#model-name".
    """

    name = "judge"
    primary = "judge"
    higher_is_better: ClassVar = {"judge": True}
    labels: ClassVar = {"judge": "judge's score"}
    source = "ViZer, section 4.2.1"
    cost = "one pass of a vision-language model"
    required_columns: tuple[str, ...] = ("image",)
    cached = True
    positional = ("model",)
    usage = "judge:Qwen/Qwen2.5-VL-7B-Instruct?reference=1"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        model: Annotated[
            str,
            Field(
                description="a vision-language model's folder or hub name, or a server, http://host:port/v1#model-name"
            ),
        ] = ""
        reference: Annotated[bool, Field(description="whether the judge sees the references")] = False

    def __init__(
        self,
        argument: str | None = None,
        *,
        answerer: Answerer | None = None,
        captioner: Captioner | None = None,
        device: str | None = None,
        batch_size: int = 8,
    ) -> None:
        settings = self.read(argument)
        model = settings.model
        if not (model or answerer or captioner):
            raise SpecError(f"scorer 'judge' needs a vision-language model: write {EXAMPLE!r}, with a model's folder, "
                             "a hub name, or a server, judge:http://host:port/v1#model-name")  # fmt: skip
        self.reference, self.batch_size = settings.reference, batch_size
        if self.reference:
            self.required_columns = ("image", "references")
        self.answerer = answerer or load_vision_answerer(model, captioner=captioner, device=device, opening=OPENING)

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        self.answerer.check()

    def rows(
        self, captions: Sequence[str], *, image: Sequence[Any], references: Sequence[Sequence[str]] | None = None
    ) -> np.ndarray:
        """(N, 1): each caption's expected grade."""
        from captune.data.images import open_image

        scores: list[float] = []
        for start in range(0, len(captions), self.batch_size):
            part = range(start, min(start + self.batch_size, len(captions)))
            own = [references[i] if self.reference and references is not None else () for i in part]
            questions = [
                Question(
                    prompt(captions[i], known), tuple(VALUES), f"caption {captions[i][:60]!r}", open_image(image[i])
                )
                for i, known in zip(part, own, strict=True)
            ]
            scores += [float(p @ list(VALUES.values())) for p in self.answerer.answer_probabilities(questions)]
        return np.array(scores, dtype=np.float64).reshape(-1, 1)

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        values = ",".join(f"{letter}={value:g}" for letter, value in VALUES.items())
        model = self.answerer.label + getattr(self.answerer, "shown", "")
        return (
            f"judge|model:{model}|prompt:{fingerprint(PROMPT + REFERENCE + OPENING)}"
            f"|reference:{'yes' if self.reference else 'no'}|{values}"
        )


def prompt(caption: str, references: Sequence[str] = ()) -> str:
    """The paper's prompt for one caption; without references that line is left out."""
    known = "".join(REFERENCE.format(text=one_line(text)) for text in references)
    return PROMPT.format(reference=known, caption=one_line(caption))
