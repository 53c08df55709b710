"""What scorers by multiple-choice questions have in common: whose questions, who reads, and in which order of options.

A reader sees a caption, a question and lettered options, and never the image. A refusal, where it is offered, is the
last option. The letter is read off the probabilities of the next token (`captune.models.answerers`); a source's own
exact reader (`captune.data.schemes.Scheme.reader`) gives one option all the probability, in whatever order they stand.
"""

from __future__ import annotations

import logging
import string
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from captune.data.questions import ExactReader, MultipleChoice, QuestionFile, read_questions
from captune.data.schemes import SOURCES, Scheme
from captune.errors import ScorerError, SourceError, SpecError
from captune.models.answerers import Answerer, Prompt, Question, load_answerer, one_line
from captune.models.hub import DEFAULT_ANSWERER
from captune.scorers.base import Scorer
from captune.utils.hashing import fingerprint

_log = logging.getLogger(__name__)
REFUSAL = "Cannot answer from the caption"
PROMPT = """\
Answer a question about an image from its caption alone. Do not guess what the caption does not say.
Caption: "{caption}"
Question: {question}
{options}
Answer with just the letter:"""
QUESTIONS = (
    "a file of questions (CaptionQA's, CapRL's or plain JSON, see the documentation), or a source that asks its own"
)
MODEL = (
    "who answers: a source's name (its exact reader, the default for its own questions), or a language model's folder, "
    f"hub name or server, http://host:port/v1#model-name; the default for a file: {DEFAULT_ANSWERER}, which is weak"
)


class Asked(NamedTuple):
    """A question put to the reader.

    Attributes:
        caption: what the reader knows.
        question: the question.
        order: the options as they stand, by their index; one past the last is the refusal.
        image: whose image, for messages.
    """

    caption: str
    question: MultipleChoice
    order: tuple[int, ...]
    image: str

    @property
    def about(self) -> str:
        """The question in messages."""
        return f"{self.question.text!r} (image {self.image}, caption {self.caption[:60]!r})"

    def prompt(self, template: str, letters: Sequence[str], refusal: str, form: str = "{letter}) {text}") -> str:
        """Return what a language model reads, the options in the form given."""
        texts = [one_line(text) for text in (*self.question.options, refusal)]
        lines = [form.format(letter=letter, text=texts[i]) for letter, i in zip(letters, self.order, strict=True)]
        return template.format(
            caption=one_line(self.caption), question=one_line(self.question.text), options="\n".join(lines)
        )


class ChoiceScorer(Scorer):
    """Asks a reader multiple-choice questions about the caption.

    Args:
        argument: the questions and who answers: "questions.json?model=Qwen/Qwen3-8B", "storybook", or None.
        answerer: who answers, in place of the model that the argument names.
        device: where a local model runs.

    Raises:
        SpecError: an exact reader is to answer questions that are not its source's.
    """

    required_columns: tuple[str, ...] = ("scene",)  # of the default, a source's own questions
    cached = True
    kept_every = 16  # each is dozens of answers
    positional = ("questions",)

    def __init__(
        self, argument: str | None = None, *, answerer: Answerer | None = None, device: str | None = None
    ) -> None:
        settings = self.settings = self.read(argument)
        scheme: Scheme | None = None
        if settings.questions in SOURCES:
            scheme = SOURCES[settings.questions]
        self.scheme = scheme
        if scheme is not None and (not scheme.truth_column or scheme.reader() is None):
            raise SpecError(f"scorer {self.name!r}: the source {settings.questions!r} asks no questions; name a file")
        self.required_columns = ("image_id",) if scheme is None else (scheme.truth_column,)
        self.reader: ExactReader | None = None
        self.answerer = answerer
        if answerer is None:
            if settings.model in SOURCES or (scheme is not None and not settings.model):
                if scheme is None or settings.model not in ("", settings.questions):
                    raise SpecError(
                        f"scorer {self.name!r}: {settings.model!r} answers its own questions alone, not those of "
                        f"{settings.questions}; name a language model, {self.usage!r}"
                    )
                self.reader = scheme.reader()
            else:
                self.answerer = load_answerer(settings.model or DEFAULT_ANSWERER, device=device)

    def check(self) -> None:
        """Raise ScorerError where the file or the model is missing or invalid."""
        self.file  # noqa: B018
        if self.answerer is not None:
            self.answerer.check()

    @cached_property
    def file(self) -> QuestionFile | None:
        """The file's questions; None where a source asks its own."""
        if self.scheme is not None:
            return None
        try:
            return read_questions(self.settings.questions)
        except SourceError as error:
            raise ScorerError(f"scorer {self.name!r}: {error}") from error

    @property
    def categories(self) -> tuple[str, ...]:
        """What the questions ask about."""
        return self.scheme.question_categories if self.scheme is not None else self.file.categories  # type: ignore[union-attr]

    def check_images(self, image_ids: Sequence[str]) -> None:
        """Raise ScorerError where the file asks nothing about an image."""
        if self.file is not None:
            self._of(image_ids)

    def measure(self, captions: Sequence[str], columns: Mapping[str, Any]) -> np.ndarray:
        """Return the rows; images of the file that have no caption here are counted, and said once."""
        if self.file is not None and "image_id" in columns:
            self._of(columns["image_id"])
            if unused := self.file.unused(columns["image_id"]):
                _log.warning(
                    "%s: %d of the %d images that %s asks about have no caption here; the figures are of the others",
                    self.name, unused, len(self.file.questions), self.file.path,
                )  # fmt: skip
        return super().measure(captions, columns)

    def questions(self, captions: Sequence[str], columns: Mapping[str, Any]) -> list[tuple[MultipleChoice, ...]]:
        """Return each caption's questions, all that a caption could answer.

        Raises:
            ScorerError: for captions without questions.
        """
        if self.scheme is None:
            return self._of(columns["image_id"])
        asked = {
            truth: tuple(
                q
                for q in self.scheme.questions(truth, hard=self.settings.hard)
                if self.reader is None or self.reader.can_answer(q)
            )
            for truth in set(columns[self.scheme.truth_column])
        }
        return [asked[truth] for truth in columns[self.scheme.truth_column]]

    def images(self, n: int, columns: Mapping[str, Any]) -> list[str]:
        """Return what each caption's image is called, for messages and for what is sampled."""
        keys = columns["image_id" if self.scheme is None else self.scheme.truth_column]
        return [str(key) if len(str(key)) < 60 else fingerprint(str(key)) for key in keys]

    def _of(self, image_ids: Sequence[str]) -> list[tuple[MultipleChoice, ...]]:
        assert self.file is not None
        try:
            return self.file.of(image_ids)
        except SourceError as error:
            raise ScorerError(f"scorer {self.name!r}: {error}") from error

    def probabilities(self, asked: Sequence[Asked]) -> list[np.ndarray]:
        """Return for each question the probability of every option, in the question's own order, and of the refusal.

        Raises:
            ScorerError: the reader failed or gave no answer; the message names the question.
        """
        found = [np.zeros(len(item.question.options) + 1) for item in asked]
        if self.reader is not None:
            for item, own in zip(asked, found, strict=True):
                index = self.reader.read(item.caption, item.question)
                if index is not None and not 0 <= index < len(item.question.options):
                    raise ScorerError(f"the exact reader gave option {index} for {item.about}, which has none such")
                own[-1 if index is None else index] = 1.0
            return found
        assert self.answerer is not None
        questions = [
            Question(item.prompt(PROMPT, letters, REFUSAL), letters, item.about)
            for item in asked
            for letters in [tuple(string.ascii_uppercase[: len(item.order)])]
        ]
        answers = self.answerer.answer_probabilities(questions)
        if len(answers) != len(asked):
            raise ScorerError(f"{self.answerer.label} gave {len(answers)} answers to {len(asked)} questions")
        for item, own, p in zip(asked, found, answers, strict=True):
            p = np.asarray(p, dtype=np.float64)
            if p.shape != (len(item.order),) or not (p >= 0).all() or not abs(p.sum() - 1) < 1e-3:  # also NaN
                raise ScorerError(
                    f"{self.answerer.label} gave no probabilities of the letters about {item.about}, but {p.tolist()}"
                )
            own[list(item.order)] = p
        return found

    def texts(self, asked: Sequence[Asked], template: str, letters: Sequence[Sequence[str]], refusal: str,
              max_new_tokens: int, temperature: float, form: str = "- {letter}) {text}") -> list[str]:  # fmt: skip
        """Return what a language model says to each question, for the published ways of reading it."""
        assert self.answerer is not None
        prompts = [
            Prompt(item.prompt(template, own, refusal, form), None, item.about)
            for item, own in zip(asked, letters, strict=True)
        ]
        said = self.answerer.complete(prompts, max_new_tokens=max_new_tokens, temperature=temperature)
        if len(said) != len(asked) or not all(isinstance(text, str) for text in said):
            raise ScorerError(f"{self.answerer.label} gave {len(said)} texts to {len(asked)} questions")
        return said

    def about(self) -> str:
        """Return what the signature says of the questions and who reads."""
        hard = "" if self.scheme is None else f"|distractors:{'hard' if self.settings.hard else 'easy'}"
        file = f"{len(self.file)}@{self.file.digest}" if self.file is not None else f"{self.settings.questions}-1"
        if self.reader is not None:
            return f"questions:{file}{hard}|reader:{self.reader.signature}"
        assert self.answerer is not None
        return f"questions:{file}{hard}|model:{self.answerer.label}|prompt:{fingerprint(PROMPT + REFUSAL)}"
