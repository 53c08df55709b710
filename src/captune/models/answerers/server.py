"""Answers of an OpenAI-compatible server (vLLM, SGLang, llama.cpp, OpenAI ...)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

import numpy as np

from captune.errors import ScorerError, ServerError
from captune.models.answerers.base import SILENT, Cut, Prompt, Question, match_answer, normalise_answers
from captune.models.image_url import SENT, data_url
from captune.models.server import ChatServer
from captune.utils.progress import Bar

T = TypeVar("T")
TOP_LOGPROBS = 20  # as many as OpenAI and vLLM give


class Server(ChatServer):
    """A `ChatServer` that answers questions; for multiple choice it must give `logprobs`."""

    asks: ClassVar[str] = "a question"
    shown: ClassVar[str] = f"|images:{SENT}"  # of signatures

    def check(self) -> None:
        """Raise ScorerError if nothing answers at the address."""
        try:
            super().check()
        except ServerError as error:
            raise ScorerError(str(error)) from error

    def answer_probabilities(self, questions: Sequence[Question]) -> list[np.ndarray]:
        """Ask several questions at once.

        Returns:
            For each question the probabilities of its answers, which sum to 1.

        Raises:
            ScorerError: the server failed or refused, gave no log-probabilities, or gave none of the answers.
        """
        return self._at_once(self._answer, questions)

    def complete(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 512, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """Ask for several texts at once; one whose reply says that its length ended it is a `Cut`.

        Raises:
            ScorerError: the server failed or refused, or its answer is no text.
        """
        settings = {"max_tokens": max_new_tokens, "temperature": temperature, **({"seed": seed} if temperature else {})}

        def write(prompt: Prompt) -> str:
            choice = self._choice(prompt, settings)
            message = choice.get("message") if isinstance(choice, dict) else None
            text = message.get("content") if isinstance(message, dict) else None
            if not isinstance(text, str):
                raise ScorerError(f"{self.model} at {self.address} gave no text about {prompt.about}")
            return Cut(text.strip()) if choice.get("finish_reason") == "length" else text.strip()

        return self._at_once(write, prompts)

    def _at_once(self, ask: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
        pool = ThreadPoolExecutor(self.workers)
        try:
            answers = pool.map(ask, items)
            return list(Bar(answers, "asking", len(items), leave=False, show=len(items) >= SILENT))
        finally:
            pool.shutdown(cancel_futures=True)

    def _answer(self, question: Question) -> np.ndarray:
        choice = self._choice(
            question,
            {
                "max_tokens": 1,
                "temperature": 1,  # the unchanged probabilities, also from a server that gives those of sampling
                "top_p": 1,
                "logprobs": True,
                "top_logprobs": TOP_LOGPROBS,
            },
        )
        try:
            first = ((choice.get("logprobs") or {}).get("content") or [None])[0]
            top = None if first is None else [(t["token"], math.exp(t["logprob"])) for t in first["top_logprobs"]]
            if not all(isinstance(token, str) for token, _ in top or ()):
                raise TypeError("a token that is no text")
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            shown = self.without_key(json.dumps(choice))[:80]
            raise ScorerError(
                f"{self.address} gave an invalid chat completion about {question.about}: {shown}"
            ) from error
        if not top:
            raise ScorerError(
                f"{self.model} at {self.address} gives no log-probabilities of its answers, which are read instead of "
                "its text: use a server that does, such as vLLM or llama.cpp"
            )
        if not sum(p for _, p in top) <= 1.01:  # also for NaN
            raise ScorerError(
                f"{self.model} at {self.address} gave invalid log-probabilities about {question.about}: together "
                f"{sum(p for _, p in top):.2f} of the probability"
            )
        mass = [0.0] * len(question.answers)
        for token, p in dict(top).items():
            answer = match_answer(token, question.answers)
            if answer is not None:
                mass[answer] += p
        return normalise_answers(mass, question, self.model, lambda: sorted(top, key=lambda t: -t[1])[:3])

    def _choice(self, asked: Question | Prompt, settings: dict[str, Any]) -> Any:
        """The first choice of the reply to one question, JSON that may be anything."""
        content: Any = asked.text
        if asked.image is not None:
            content = [
                {"type": "image_url", "image_url": {"url": data_url(asked.image)}},
                {"type": "text", "text": asked.text},
            ]
        try:
            return self.chat([{"role": "user", "content": content}], settings, asked.about)
        except ServerError as error:
            raise ScorerError(str(error)) from error
