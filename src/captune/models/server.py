"""Requests to an OpenAI-compatible server (vLLM, SGLang, llama.cpp, transformers serve, OpenAI ...).

The client is the standard library's: huggingface_hub's would not reach a server on this machine under
HF_HUB_OFFLINE=1, and would send the hub's stored token to any server without a key of its own.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import json
import logging
import math
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self
from urllib.parse import unquote, urlsplit

from captune.errors import ServerError, SettingError, redact

logger = logging.getLogger(__name__)
_LARGEST = 2**24  # bytes of a reply
_TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504)  # worth another attempt; other refusals are final
_BUSY = (429, 503)  # of these, what a full server says
_LONGEST_WAIT = 120.0  # seconds that a server's Retry-After is followed


class RequestRefused(ServerError):
    """A reply that is no answer.

    Attributes:
        status: of the reply; 200 where its content is no chat completion.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def is_server(spec: str) -> bool:
    """Return whether a spec is a server's address."""
    return spec.startswith(("http://", "https://"))


class Gate:
    """How many requests may be in flight: half as many when the server is full, one more after each round of answers.

    Args:
        most: requests at once.
    """

    def __init__(self, most: int) -> None:
        self.most, self.limit, self.running, self.answers = most, float(most), 0, 0
        self._halved, self._pause_end = 0.0, 0.0
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        with self._changed:
            while (pause := self._pause_end - time.monotonic()) > 0 or self.running >= int(self.limit):
                self._changed.wait(pause if pause > 0 else None)
            self.running += 1
        return self

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self.running -= 1
            self._changed.notify_all()

    def answered(self) -> None:
        """Count an answer, which lets more requests through."""
        with self._changed:
            self.answers += 1
            self.limit = min(self.most, self.limit + 1 / self.limit)
            self._changed.notify_all()

    def full(self, sent: float, pause: float) -> None:
        """Halve the limit, once for all requests that were in flight together, and let none through for a time.

        Args:
            sent: when the request was sent, by `time.monotonic`.
            pause: seconds without a request, as the server asked.
        """
        with self._changed:
            if sent > self._halved:
                self.limit, self._halved = max(1.0, self.limit / 2), time.monotonic()
            self._pause_end = max(self._pause_end, time.monotonic() + pause)


class ChatServer:
    """A chat model behind "http(s)://host:port/v1#model-name".

    The key is read from OPENAI_API_KEY, or from HF_TOKEN for servers of Hugging Face, unless the address has a user and
    a password (http://user:password@host); neither is shown in a message, a signature or a file, and neither is sent
    to where the server may redirect. After a failure that may pass (no connection, a timeout, 429, 5xx) the request is
    sent again. A server that is full (429, 503, a timeout) gets fewer requests at once and is left alone for as long as
    its Retry-After says; a 429 or 503 counts as no attempt while it answers other requests.

    Args:
        url: the server's address and the model's name.
        timeout: until something of a reply comes, and from there until all of it is there, in seconds.
        attempts: of each request, in all.
        delay: seconds before the second attempt; doubled for each further one.
        workers: requests at once.

    Raises:
        SettingError: the address names no model.
    """

    #: what a request is called in messages
    asks: ClassVar[str] = "a request"
    #: fields that change nothing where a server refuses them; qwen3's thinking is off in vLLM, SGLang and llama.cpp
    optional: Mapping[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}

    def __init__(
        self, url: str, *, timeout: float = 60.0, attempts: int = 4, delay: float = 1.0, workers: int = 4
    ) -> None:
        base, _, self.model = url.partition("#")
        try:
            parts = urlsplit(base)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise SettingError(f"{redact(url)!r} is no address: {error}") from error
        if not self.model or not host:
            raise SettingError(
                f"{redact(url)!r} names no model: write the server's address and the model's name, as in "
                "http://localhost:8000/v1#Qwen/Qwen3-8B"
            )
        if workers < 1:
            raise SettingError(f"a server is asked at least 1 request at once, not {workers}")
        self.base = base.rstrip("/")
        self.address = redact(self.base)  # what messages, signatures and files say
        self.timeout, self.attempts, self.delay, self.workers = timeout, attempts, delay, workers
        self._gate = Gate(workers)
        self._length = "max_tokens"  # newer models of OpenAI want another name

    @property
    def label(self) -> str:
        """Model and address; a server's weights cannot be seen, so figures are only as reproducible as its service."""
        return f"{self.model}@{self.address}"

    def check(self) -> None:
        """Raise ServerError if nothing answers at the address."""
        parts = urlsplit(self.base)
        try:
            socket.create_connection(
                (str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)), timeout=5
            ).close()
        except OSError as error:
            raise ServerError(
                f"nothing answers at {self.address} ({error}): start the server there, for example "
                f"`vllm serve {self.model}`, or name another address"
            ) from error

    def models(self) -> list[str]:
        """Return the names of the models that the server lists; none where it has no such list.

        Raises:
            ServerError: it refuses the key.
        """
        try:
            with _OPENER.open(self._request("/models"), timeout=10) as reply:
                return [str(entry["id"]) for entry in json.loads(self._body(reply))["data"]]
        except urllib.error.HTTPError as error:
            if error.code not in (401, 403):
                return []
            raise ServerError(
                f"{self.address} refuses the key ({error.code} {self.without_key(str(error.reason))}): it is read "
                f"from {self.key_variable()}"
            ) from error
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            return []

    def chat(self, messages: list[dict[str, Any]], settings: dict[str, Any], about: str = "") -> Any:
        """Return the first choice of the reply to a conversation, JSON that may be anything.

        Args:
            messages: of the chat completion.
            settings: its other fields.
            about: what errors call the subject.

        Raises:
            RequestRefused: the server refused, failed in every attempt, or its reply is no chat completion.
            ServerError: it gave no reply in any attempt.
        """
        reply = self._send({"model": self.model, "messages": messages, **settings}, about)
        try:
            return json.loads(reply)["choices"][0]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            shown = self.without_key(reply[:200].decode(errors="replace"))[:80]
            raise RequestRefused(
                f"{self.address} gave an invalid chat completion: {shown!r}{', about ' * bool(about)}{about}", 200
            ) from error

    def _send(self, payload: dict[str, Any], about: str) -> bytes:
        """Return the server's reply, bytes that may be anything; ServerError if all attempts failed."""
        attempt, answers = 0, self._gate.answers
        without: list[str] = []  # optional fields that this request is sent without
        while True:
            fields = {**{name: value for name, value in self.optional.items() if name not in without}, **payload}
            if "max_tokens" in fields:
                fields[self._length] = fields.pop("max_tokens")
            pause, status, busy, slow = 0.0, 0, False, False
            with self._gate:
                sent = time.monotonic()
                try:
                    reply = self._post(fields)
                    self._gate.answered()
                    self._leave_out(without)
                    return reply
                except urllib.error.HTTPError as error:
                    status, busy = error.code, error.code in _BUSY
                    body = self.without_key(error.read(2000).decode(errors="replace"))
                    if status in (400, 422) and self._adapt(fields, payload, body, without):
                        continue
                    failure = f"{status} {self.without_key(str(error.reason))}: {' '.join(body.split())[:200]}"
                    if status in (401, 403):
                        failure += f" (the key is read from {self.key_variable()})"
                    if location := error.headers.get("Location") if 300 <= status < 400 else None:
                        failure += f" (it redirects to {self.without_key(location)}: name that address)"
                    if status not in _TRANSIENT:
                        raise RequestRefused(
                            f"{self.address} refused {self.asks} to {self.model}: {failure}"
                            f"{'; it was about ' * bool(about)}{about}",
                            status,
                        ) from error
                    pause = _seconds(error.headers.get("Retry-After"))
                except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
                    reason = getattr(error, "reason", None) or error
                    slow = isinstance(reason, TimeoutError)
                    if isinstance(reason, ssl.SSLError):
                        raise ServerError(
                            f"{self.address} cannot be reached by https ({self.without_key(str(reason))}): is it http, "
                            "or does its certificate belong to another name?"
                        ) from error
                    failure = self.without_key(str(reason)) or type(error).__name__
                if busy or slow:
                    self._gate.full(sent, pause)
            if not busy or self._gate.answers == answers:
                attempt += 1
            answers = self._gate.answers
            if attempt >= self.attempts:
                break
            time.sleep(max(pause, self.delay * 2 ** max(0, attempt - 1)))
        message = (
            f"{self.model} at {self.address} gave no answer in {self.attempts} attempts; the last: {failure}"
            f"{'; it was asked about ' * bool(about)}{about}"
        )
        if status and status not in _BUSY:
            raise RequestRefused(message, status)
        raise ServerError(message)

    def _adapt(self, sent: dict[str, Any], payload: dict[str, Any], body: str, without: list[str]) -> bool:
        """Rename, or add to `without`, what is refused though it changes nothing; whether anything was of that kind.

        A server that refuses an image may repeat the whole request, so that a field is named there proves nothing yet.
        """
        if "max_completion_tokens" in body and "max_tokens" in sent:
            self._length = "max_completion_tokens"
            return True
        named = [field for field in type(self).optional if field in sent and field not in payload and field in body]
        without += named
        return bool(named)

    def _leave_out(self, fields: Sequence[str]) -> None:
        """Send no further request with fields without which a refused one was answered."""
        if new := [field for field in fields if field in self.optional]:
            self.optional = {field: value for field, value in self.optional.items() if field not in new}
            if told := [field for field in new if field != "chat_template_kwargs"]:
                logger.warning("%s takes no %s, so that its own applies", self.address, " and no ".join(told))

    def _post(self, payload: dict[str, Any]) -> bytes:
        with _OPENER.open(self._request("/chat/completions", payload), timeout=self.timeout) as reply:
            return self._body(reply)

    def _request(self, path: str, payload: dict[str, Any] | None = None) -> urllib.request.Request:
        parts = urlsplit(self.base)
        user, _, host = parts.netloc.rpartition("@")
        request = urllib.request.Request(
            f"{parts._replace(netloc=host).geturl()}{path}",
            None if payload is None else json.dumps(payload).encode(),
            {"Content-Type": "application/json"},
        )
        if user:
            request.add_unredirected_header(
                "Authorization", f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
            )
        elif key := self._key():
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        return request

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
        """The key without the line end that a file gives it; for other oddities ServerError, without showing it."""
        key = os.environ.get(self.key_variable(), "").strip()
        if not all("!" <= character <= "~" for character in key):
            raise ServerError(
                f"the key in {self.key_variable()} has a space, a line end or a character beyond ASCII in it, which "
                "no server takes: set it again"
            )
        return key

    def without_key(self, text: str) -> str:
        """A server's words without the secrets that it was sent, which some repeat, and without others'."""
        user = urlsplit(self.base).netloc.rpartition("@")[0]
        secrets = [os.environ.get(self.key_variable(), "").strip(), *user.split(":"), *unquote(user).split(":")[1:]]
        secrets.append(base64.b64encode(unquote(user).encode()).decode())
        for secret in sorted({secret for secret in secrets if len(secret) > 3}, key=len, reverse=True):
            text = text.replace(secret, "***")
        return redact(text)

    def key_variable(self) -> str:
        """The environment variable that holds the key."""
        host = str(urlsplit(self.base).hostname)
        return "HF_TOKEN" if host.endswith((".huggingface.co", ".huggingface.cloud")) else "OPENAI_API_KEY"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would lose its images, or carry them to another host."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def _seconds(header: str | None) -> float:
    """What Retry-After says, in seconds or as a date; at most `_LONGEST_WAIT`, 0 where it says nothing."""
    try:
        seconds = float(header or 0)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(str(header)).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), _LONGEST_WAIT) if math.isfinite(seconds) else 0.0
