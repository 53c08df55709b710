"""The slot for a model that answers multiple-choice questions: what is asked, and how an answer is read.

An answer is read off the probabilities of the next token, never parsed from free text. A token counts for an answer
when, without the spaces and punctuation around it, it is that answer or a beginning of that answer alone: " Yes",
"yes" and "▁Yes" are one answer. If all allowed answers together hold less than `MIN_MASS` of the probability, the
model did not answer, which is an error.
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
    """What the model reads, the answers it may give, and what an error calls the thing in question."""

    text: str
    answers: tuple[str, ...]
    about: str
    image: Any = None  # a PIL image, for models that see


class Answerer(Protocol):
    """What fills the slot. `label` names the model in signatures."""

    @property
    def label(self) -> str: ...

    def check(self) -> None:
        """Raises ScorerError where the model or the server is not there; loads nothing."""

    def answer_probabilities(self, questions: Sequence[Question]) -> list[np.ndarray]:
        """The probability of each question's answers, which sum to 1."""


def is_server(spec: str) -> bool:
    return spec.startswith(("http://", "https://"))


def one_line(text: str) -> str:
    """A caption as it stands in a prompt: no line break of any kind, which could pass for the prompt's own."""
    return " ".join(text.split())


def match_answer(token: str, answers: Sequence[str]) -> int | None:
    """The index of the answer that a token gives or begins; letters are told by their case, since "a" is a word."""
    word = token.strip(AROUND)
    if not word or word in answers:
        return answers.index(word) if word else None
    folded = [answer.casefold() if len(answer) > 1 else "" for answer in answers]
    begun = [i for i, answer in enumerate(folded) if answer.startswith(word.casefold())]
    exact = [i for i in begun if folded[i] == word.casefold()]
    return next(iter(exact or begun), None) if len(exact or begun) == 1 else None


def normalise_answers(
    mass: Sequence[float], question: Question, who: str, said: Callable[[], list[tuple[str, float]]]
) -> Any:
    """The answers' masses as probabilities; ScorerError where they are next to nothing."""
    total = float(np.sum(mass))
    if not total >= MIN_MASS:  # also for NaN
        instead = ", ".join(f"{token!r} ({p:.2f})" for token, p in said())
        raise ScorerError(
            f"{who} gave no answer about {question.about}: {', '.join(question.answers)} hold "
            f"{total:.2%} of the probability; it would rather say {instead or 'nothing'}"
        )
    return np.asarray(mass, dtype=np.float64) / total


def check_length(tokens: int, config: Any, question: Question, who: str) -> None:
    """A prompt is never cut: what is cut could be the question."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf
    if tokens > limit:
        raise ScorerError(f"the question about {question.about} has {tokens} tokens, more than "
                          f"the {limit} that {who} reads: leave long captions out or name another model")  # fmt: skip
