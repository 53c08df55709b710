"""A captioner behind an OpenAI-compatible server: `Captioner.generate`'s captions, from chat completions.

Each caption is one request of its own, with a seed of its own, so that it depends on its image and the settings alone:
not on how many requests are made at once, on the batch, or on where a run was stopped.

How an image is sent: `captune.models.image_url`.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, overload

from PIL import Image

from captune.data.images import upright_rgb
from captune.errors import CaptionerError, CaptuneError, ServerError, redact
from captune.models.image_url import MAX_BYTES, MAX_SIDE, data_url
from captune.models.plain_text import without_thought
from captune.models.requests import PROMPT, Completion, request_settings, sample_seed
from captune.models.server import ChatServer, RequestRefused

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
_TELLING = 4  # images whose samples are all equal
#: what an image itself is refused with; other refusals are of the model, the key or the address
_OF_THE_IMAGE = (400, 413, 422)


class _Shown:
    """An image as a request holds it, encoded once for all of its samples."""

    def __init__(self, image: Image.Image, max_side: int, max_bytes: int) -> None:
        self.image, self.limits = upright_rgb(image), (max_side, max_bytes)
        self._lock, self._url = threading.Lock(), ""

    def url(self) -> str:
        with self._lock:
            if not self._url:
                self._url = data_url(self.image, *self.limits)
            return self._url


class ServerCaptioner(ChatServer):
    """A vision-language model behind "http(s)://host:port/v1#model-name", in the place of a `Captioner`.

    Attributes:
        name: what messages and files call it.
        prompt: the text beside the image.
        weights: what stands for the weights, which cannot be seen, in a caption file's settings.
        seeded: `generate` takes a seed.
        least_batch: so many images at least keep the server busy.
        batches_at_once: so many batches do so at a batch's end; their captions do not depend on each other.

    Args:
        url: the server's address and the model's name.
        prompt: the text beside the image; "" for none, as base models want it. Default: `PROMPT`.
        max_side: the longest side of an image that is sent, in pixels.
        max_bytes: of an encoded image.
        workers: requests at once.
        timeout: of a request, in seconds.
        attempts: of each request, in all.
        delay: seconds before the second attempt; doubled for each further one.

    Raises:
        SettingError: the address names no model.
    """

    #: a checkpoint's generation_config.json changes no decoding, as with `Captioner`, where the server can be told so
    optional: Mapping[str, Any] = {**ChatServer.optional, "top_k": -1, "repetition_penalty": 1.0}
    seeded = True
    batches_at_once = 4

    def __init__(
        self,
        url: str,
        *,
        prompt: str | None = None,
        max_side: int = MAX_SIDE,
        max_bytes: int = MAX_BYTES,
        workers: int = 16,
        timeout: float = 300.0,
        attempts: int = 6,
        delay: float = 1.0,
    ) -> None:
        super().__init__(url, timeout=timeout, attempts=attempts, delay=delay, workers=workers)
        self.name = redact(url)
        self.least_batch = workers
        self.prompt = PROMPT if prompt is None else prompt
        self.max_side, self.max_bytes = max_side, max_bytes
        self.weights = f"served as {self.model}, images up to {max_side} px and {max_bytes} bytes"
        self._failed: ServerError | None = None
        self._running, self._lock = 0, threading.Lock()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.workers, thread_name_prefix="request")

    def check(self) -> None:
        """Raise ServerError if nothing answers at the address, or the key is refused there."""
        super().check()
        self.models()

    @overload
    def generate(
        self, images: Sequence[Image.Image], *, return_logprob: Literal[False] = False, **settings: Any
    ) -> list[str]: ...
    @overload
    def generate(
        self, images: Sequence[Image.Image], *, return_logprob: Literal[True], **settings: Any
    ) -> tuple[list[str], torch.Tensor, torch.Tensor]: ...
    def generate(
        self, images: Sequence[Image.Image], *, return_logprob: bool = False, **settings: Any
    ) -> list[str] | tuple[list[str], torch.Tensor, torch.Tensor]:
        """Caption a batch.

        Args:
            images: B images.
            return_logprob: also return log-probabilities.
            settings: those of `request_settings`, and `turns`, the conversation after the first turn, for each image.

        Returns:
            B * num_return_sequences captions, grouped by image. With `return_logprob` also the mean per token and the
            sum of log p(token) as the server gives them (whether the token that ends a caption is one of them, and
            whether they are of temperature 1, depends on the server), float32 (B * num_return_sequences,).

        Raises:
            CaptionerError: the server refuses an image, or gives no caption of it.
            ServerError: it gives no answer.
            SettingError: a setting that a server does not have.
        """
        outcomes = self._ask(images, return_logprob=return_logprob, **settings)
        count = len(outcomes) // max(1, len(images))
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, ServerError):
                raise outcome
            if isinstance(outcome, CaptuneError):
                raise CaptionerError(f"image {index // count + 1} of {len(images)}: {outcome}") from outcome
        done = [outcome for outcome in outcomes if isinstance(outcome, Completion)]
        texts = [completion.text for completion in done]
        if not return_logprob:
            return texts
        import torch

        total = torch.tensor([sum(completion.logprobs) for completion in done])
        return texts, total / torch.tensor([len(completion.logprobs) for completion in done]), total

    def attempt(self, images: Sequence[Image.Image], **settings: Any) -> list[str | CaptuneError]:
        """Caption a batch as `generate` does, but with an error in the place of a caption that is missing.

        Args:
            images: B images.
            settings: as of `generate`.

        Returns:
            B * num_return_sequences captions or errors, grouped by image. A `ServerError` is of the server, another
            error of its image.

        Raises:
            SettingError: a setting that a server does not have.
        """
        return [one.text if isinstance(one, Completion) else one for one in self._ask(images, **settings)]

    def _ask(self, images: Sequence[Image.Image], **settings: Any) -> list[Completion | CaptuneError]:
        turns: Sequence[Any] = settings.pop("turns", [()] * len(images))
        fields = request_settings(f"a server ({self.address})", **settings)
        count, sampled = settings.get("num_return_sequences", 1), bool(fields["temperature"])
        if settings.get("return_logprob"):
            fields["logprobs"] = True
        fields.setdefault("top_p", 1.0)
        shown = [_Shown(image, self.max_side, self.max_bytes) for image in images]

        def ask(number: int) -> Completion | CaptuneError:
            row, sample = divmod(number, count)
            try:
                if self._failed is not None:
                    return self._failed
                seed = {"seed": sample_seed(shown[row].image, settings.get("seed", 0), sample)} if sampled else {}
                completion = self._caption(shown[row], turns[row], {**fields, **seed}, "logprobs" in fields)
            except ServerError as error:
                if isinstance(error, RequestRefused) and (error.status in _OF_THE_IMAGE or error.status >= 500):
                    return CaptionerError(str(error))
                self._failed = self._with_advice(error)
                return self._failed
            except CaptuneError as error:
                return error
            self._failed = None
            return completion

        with self._lock:
            if not self._running:
                self._failed = None  # the server may be back
            self._running += 1
        try:
            outcomes = list(self._pool.map(ask, range(len(images) * count)))
        finally:
            with self._lock:
                self._running -= 1
        groups = [set(outcomes[start : start + count]) for start in range(0, len(outcomes), count)]
        if sampled and count > 1 and len(groups) >= _TELLING and all(len(group) == 1 for group in groups):
            logger.warning(
                "%s gave the same caption %d times for each of %d images: does it sample at all? (transformers serve "
                "does where the model's generation_config.json has do_sample)", self.label, count, len(groups),
            )  # fmt: skip
        return outcomes

    def cancel(self) -> None:
        """Ask for nothing more; what is being asked now comes to its end."""
        if (pool := self.__dict__.pop("_pool", None)) is not None:  # a later call makes another
            pool.shutdown(wait=False, cancel_futures=True)

    def _with_advice(self, error: ServerError) -> ServerError:
        if not isinstance(error, RequestRefused) or error.status != 404:
            return error
        names = ", ".join(self.models()[:10])
        advice = f"; it serves {names}" if names else "" if self.base.endswith("/v1") else "; does it end with /v1?"
        return ServerError(f"{error}{advice}")

    def _caption(self, shown: _Shown, turns: Any, fields: dict[str, Any], logprobs: bool) -> Completion:
        prompt = [{"type": "text", "text": self.prompt}] if self.prompt else []
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": shown.url()}}, *prompt]},
            *({"role": role, "content": said} for role, said in turns),
        ]
        try:
            choice = self.chat(messages, fields)
        except RequestRefused as error:
            if error.status == 200:
                raise CaptionerError(str(error)) from error
            raise
        message = choice.get("message") if isinstance(choice, dict) else None
        said = message.get("content") if isinstance(message, dict) else None
        who = f"{self.model} at {self.address}"
        if isinstance(message, dict) and message.get("refusal"):
            raise CaptionerError(f"{who} will not say: {self.without_key(str(message['refusal']))[:200]}")
        if not isinstance(said, str):
            raise CaptionerError(f"{who} gave no text but {self.without_key(json.dumps(said))[:80]}")
        try:
            text = without_thought(said).strip()
        except ValueError as error:
            raise CaptionerError(f"{who} gave no caption: {error}") from error
        if not text:
            why = choice.get("finish_reason")
            raise CaptionerError(f"{who} gave an empty caption (finish_reason {str(why)[:40]!r})")
        if not logprobs:
            return Completion(text)
        if text != said.strip():
            raise CaptionerError(f"{who} thinks first, so that its log-probabilities are not those of the caption")
        try:
            values = tuple(float(token["logprob"]) for token in choice["logprobs"]["content"])
            if not values or not sum(values) <= 0.01:  # also for NaN
                raise ValueError
        except (LookupError, TypeError, ValueError) as error:
            raise CaptionerError(
                f"{who} gives no log-probabilities: use a server that does, such as vLLM or llama.cpp"
            ) from error
        return Completion(text, values)
