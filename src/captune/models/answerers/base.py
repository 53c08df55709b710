"""The slot for a model that answers: multiple-choice questions, and prompts in free text.

The answer to a question is read off the probabilities of the next token, never parsed from free text. A token counts
for an answer when, without the spaces and punctuation around it, it is that answer or a beginning of that answer alone:
" Yes", "yes" and "▁Yes" are one answer. If all allowed answers together hold less than `MIN_MASS` of the probability,
the model did not answer, which is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from captune.errors import ScorerError

MIN_MASS = 0.01
AROUND = " \t\r\n▁Ġ\"'`*_()[].,:;"
SILENT = 200  # fewer questions than this show no progress bar


@dataclass(frozen=True)
class Question:
    """A multiple-choice question.

    Attributes:
        text: what the model reads.
        answers: those it may give.
        about: what an error calls the subject.
        image: a PIL image, for vision-language models.
        normalise: whether the answers' probabilities are divided by their sum; else they are those of all that the
            model could say.
    """

    text: str
    answers: tuple[str, ...]
    about: str
    image: Any = None
    normalise: bool = True


@dataclass(frozen=True)
class Prompt:
    """What is answered in free text.

    Attributes:
        text: what the model reads.
        image: a PIL image, for vision-language models.
        about: what an error calls the subject.
    """

    text: str
    image: Any = None
    about: str = ""


class Cut(str):
    """An answer that ended because of `max_new_tokens`: as far as it came."""


class Answerer(Protocol):
    """What fills the slot."""

    @property
    def label(self) -> str:
        """The model's name in signatures."""

    def check(self) -> None:
        """Raise ScorerError if the model or the server is missing; loads nothing."""

    def answer_probabilities(self, questions: Sequence[Question]) -> list[np.ndarray]:
        """Return for each question the probabilities of its answers, which sum to 1 if they are to be normalised."""

    def complete(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 512, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """Return for each prompt the model's text, without what its template put around it; temperature 0 is greedy.

        An answer that `max_new_tokens` ended is a `Cut`, where the model can tell.
        """


def one_line(text: str) -> str:
    """Return a caption as it stands in a prompt: without line breaks, which could pass for the prompt's own."""
    return " ".join(text.split())


def match_answer(token: str, answers: Sequence[str]) -> int | None:
    """Return the index of the answer that a token gives or begins, if any; letters match by case, as "a" is a word."""
    word = token.strip(AROUND)
    if not word or word in answers:
        return answers.index(word) if word else None
    folded = [answer.casefold() if len(answer) > 1 else "" for answer in answers]
    starts = [i for i, answer in enumerate(folded) if answer.startswith(word.casefold())]
    exact = [i for i in starts if folded[i] == word.casefold()]
    return next(iter(exact or starts), None) if len(exact or starts) == 1 else None


def normalise_answers(
    mass: Sequence[float], question: Question, who: str, likeliest: Callable[[], list[tuple[str, float]]]
) -> Any:
    """Normalise the probability mass of the answers to a sum of 1, if the question wants that.

    Args:
        mass: of each answer.
        question: the question.
        who: the model's name, for messages.
        likeliest: returns what the model would rather say, with probabilities.

    Raises:
        ScorerError: the answers together hold less than `MIN_MASS`.
    """
    total = float(np.sum(mass))
    if not total >= MIN_MASS:  # also for NaN
        instead = ", ".join(f"{token!r} ({p:.2f})" for token, p in likeliest())
        raise ScorerError(
            f"{who} gave no answer about {question.about}: {', '.join(question.answers)} hold "
            f"{total:.2%} of the probability; it would rather say {instead or 'nothing'}"
        )
    return np.asarray(mass, dtype=np.float64) / (total if question.normalise else 1)


def check_length(tokens: int, config: Any, question: Question | Prompt, who: str) -> None:
    """Raise ScorerError for a prompt longer than the context: it is never cut, since the question could be lost."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf
    if tokens > limit:
        raise ScorerError(
            f"the question about {question.about} has {tokens} tokens, more than "
            f"the {limit} that {who} reads: leave long captions out or choose another model"
        )
