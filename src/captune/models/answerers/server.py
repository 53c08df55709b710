"""Answers of an OpenAI-compatible server (vLLM, SGLang, llama.cpp, OpenAI ...).

The client is the standard library's: huggingface_hub's would not reach a server on this machine under
HF_HUB_OFFLINE=1, and would send the hub's stored token to any server without a key of its own.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import math
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np
from tqdm import tqdm

from captune.errors import ScorerError, SettingError, redact
from captune.models.answerers.base import SILENT, Prompt, Question, match_answer, normalise_answers

T = TypeVar("T")
TOP_LOGPROBS = 20  # as many as OpenAI and vLLM give
_LARGEST = 2**24  # bytes of a reply
_TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504)  # worth another attempt; other refusals are final


class Server:
    """A chat model behind "http(s)://host:port/v1#model-name", which must give `logprobs`.

    The key is read from OPENAI_API_KEY, or from HF_TOKEN for servers of Hugging Face, unless the address has a user and
    a password (http://user:password@host); neither is shown in a message, a signature or a file. After a failure that
    may pass (no connection, a timeout, 429, 5xx) the question is asked again.

    Args:
        url: the server's address and the model's name.
        timeout: until something of a reply comes, and from there until all of it is there, in seconds.
        attempts: of each question, in all.
        delay: seconds before the second attempt; doubled for each further one.
        workers: requests at once.

    Raises:
        SettingError: the address names no model.
    """

    def __init__(
        self, url: str, *, timeout: float = 60.0, attempts: int = 4, delay: float = 1.0, workers: int = 4
    ) -> None:
        base, _, self.model = url.partition("#")
        if not self.model or not urlsplit(base).hostname:
            raise SettingError(
                f"{redact(url)!r} names no model: write the server's address and the model's name, as in "
                "http://localhost:8000/v1#Qwen/Qwen3-8B"
            )
        self.base = base.rstrip("/")
        self.address = redact(self.base)  # what messages, signatures and files say
        self.timeout, self.attempts, self.delay, self.workers = timeout, attempts, delay, workers
        # turns Qwen3's thinking off in vLLM, SGLang and llama.cpp; OpenAI refuses the field
        self._extra: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}

    @property
    def label(self) -> str:
        """Model and address; a server's weights cannot be seen, so figures are only as reproducible as its service."""
        return f"{self.model}@{self.address}"

    def check(self) -> None:
        """Raise ScorerError if nothing answers at the address."""
        parts = urlsplit(self.base)
        try:
            socket.create_connection(
                (str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)), timeout=5
            ).close()
        except OSError as error:
            raise ScorerError(
                f"nothing answers at {self.address} ({error}): start the server there, for example "
                f"`vllm serve {self.model}`, or name another address"
            ) from error

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
        """Ask for several texts at once.

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
            return text.strip()

        return self._at_once(write, prompts)

    def _at_once(self, ask: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
        pool = ThreadPoolExecutor(self.workers)
        try:
            answers = pool.map(ask, items)
            return list(tqdm(answers, "asking", len(items), leave=False, disable=len(items) < SILENT))
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
            shown = self._without_key(json.dumps(choice))[:80]
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
                {"type": "image_url", "image_url": {"url": _data_url(asked.image)}},
                {"type": "text", "text": asked.text},
            ]
        payload = {"model": self.model, "messages": [{"role": "user", "content": content}], **settings}
        reply = self._complete(payload, asked.about)
        try:
            return json.loads(reply)["choices"][0]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            shown = self._without_key(reply[:200].decode(errors="replace"))[:80]
            raise ScorerError(
                f"{self.address} gave an invalid chat completion: {shown!r}, about {asked.about}"
            ) from error

    def _complete(self, payload: dict[str, Any], about: str) -> bytes:
        """Return the server's reply, bytes that may be anything; ScorerError if all attempts failed."""
        for attempt in range(self.attempts):
            try:
                return self._post({**payload, **self._extra})
            except urllib.error.HTTPError as error:
                body = self._without_key(error.read(2000).decode(errors="replace"))
                if error.code in (400, 422) and self._extra and "chat_template_kwargs" in body:
                    self._extra = {}
                    return self._complete(payload, about)
                failure = f"{error.code} {self._without_key(str(error.reason))}: {' '.join(body.split())[:200]}"
                if error.code in (401, 403):
                    failure += f" (the key is read from {self._key_variable()})"
                if error.code not in _TRANSIENT:
                    raise ScorerError(
                        f"{self.address} refused a question to {self.model}: {failure}; it was about {about}"
                    ) from error
            except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
                failure = self._without_key(str(getattr(error, "reason", None) or error)) or type(error).__name__
            if attempt + 1 < self.attempts:
                time.sleep(self.delay * 2**attempt)
        raise ScorerError(
            f"{self.model} at {self.address} gave no answer in {self.attempts} attempts; the last: {failure}; it "
            f"was asked about {about}"
        )

    def _post(self, payload: dict[str, Any]) -> bytes:
        parts = urlsplit(self.base)
        user, _, host = parts.netloc.rpartition("@")
        request = urllib.request.Request(
            f"{parts._replace(netloc=host).geturl()}/chat/completions",
            json.dumps(payload).encode(),
            {"Content-Type": "application/json"},
        )
        # and never sent to where the server may redirect
        if user:
            request.add_unredirected_header(
                "Authorization", f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
            )
        elif key := self._key():
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        with urllib.request.urlopen(request, timeout=self.timeout) as reply:
            return self._body(reply)

    def _body(self, reply: Any) -> bytes:
        """Read a reply; one that comes byte by byte, or without an end, must not hold the work for ever."""
        end, parts, size = time.monotonic() + self.timeout, [], 0
        while part := reply.read1(2**16):
            parts.append(part)
            size += len(part)
            if size > _LARGEST:
                raise http.client.HTTPException(f"the reply has more than {_LARGEST:,} bytes")
            if time.monotonic() > end:
                raise TimeoutError("the reply timed out")
        if reply.length:  # what is missing
            raise http.client.IncompleteRead(b"".join(parts), reply.length)
        return b"".join(parts)

    def _key(self) -> str:
        """The key without the line end that a file gives it; for other oddities ScorerError, without showing it."""
        key = os.environ.get(self._key_variable(), "").strip()
        if not all("!" <= character <= "~" for character in key):
            raise ScorerError(
                f"the key in {self._key_variable()} has a space, a line end or a character beyond ASCII in it, which "
                "no server takes: set it again"
            )
        return key

    def _without_key(self, text: str) -> str:
        """A server's words without the secrets that it was sent, which some repeat, and without others'."""
        user = urlsplit(self.base).netloc.rpartition("@")[0]
        secrets = [os.environ.get(self._key_variable(), "").strip(), *user.split(":"), *unquote(user).split(":")[1:]]
        secrets.append(base64.b64encode(unquote(user).encode()).decode())
        for secret in sorted({secret for secret in secrets if len(secret) > 3}, key=len, reverse=True):
            text = text.replace(secret, "***")
        return redact(text)

    def _key_variable(self) -> str:
        host = str(urlsplit(self.base).hostname)
        return "HF_TOKEN" if host.endswith((".huggingface.co", ".huggingface.cloud")) else "OPENAI_API_KEY"


def _data_url(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG")  # lossless
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
