"""Answers of a vision-language model on this machine, about an image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from captune.errors import CaptionerError, ScorerError, SettingError
from captune.models import hub
from captune.models.answerers.base import Prompt, Question, check_length
from captune.models.answerers.local import Vocabulary, seed_of
from captune.models.plain_text import plain

if TYPE_CHECKING:
    from captune.models.captioner import Captioner


class VisionModel:
    """Any model that `Captioner` loads, in the slot for a model that answers.

    Args:
        name: a folder, a hub name or a shipped captioner; default: the captioner's name.
        captioner: a loaded captioner, used in place of the name.
        device: default: cuda where there is one, else cpu.
        opening: the first words of every answer, which the model continues.
        what: the noun in messages.
    """

    def __init__(
        self,
        name: str = "",
        *,
        captioner: Captioner | None = None,
        device: str | None = None,
        opening: str = "",
        what: str = "judge",
    ) -> None:
        self.name = name or (captioner.name if captioner is not None else "")
        self.opening, self.what = opening, what
        self._device, self._given = device, captioner

    def check(self) -> None:
        """Raise ScorerError if the model is not on this machine and cannot be fetched."""
        if self._given is None:
            hub.check(
                self.name,
                what=self.what,
                example="Qwen/Qwen2.5-VL-7B-Instruct",
                instead="http://host:port/v1#model-name",
                error=ScorerError,
            )

    @cached_property
    def captioner(self) -> Captioner:
        """The model, loaded at first use."""
        from captune.models.captioner import Captioner

        try:
            return self._given or Captioner.load(self.name, device=self._device)
        except CaptionerError as error:
            raise ScorerError(f"the {self.what} cannot be loaded: {error}") from error

    @cached_property
    def label(self) -> str:
        """The name, and a digest of weights, tokenizer, image processor and template."""
        return f"{self.name}@{self.captioner.identity()}"

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.captioner.tokenizer)

    def answer_probabilities(self, questions: Sequence[Question]) -> list[np.ndarray]:
        """Answer one batch; an image that several questions are about is encoded once.

        Returns:
            For each question the probabilities of its answers, which sum to 1.

        Raises:
            ScorerError: the model gave none of the answers, or a prompt is too long.
        """
        import torch

        from captune.models import inputs as batches

        captioner = self.captioner
        batch = captioner.encode([self._text(question) for question in questions], [q.image for q in questions])
        longest = questions[int(batch["attention_mask"].sum(1).argmax())]
        check_length(batch["input_ids"].shape[1], captioner.core.config, longest, self.name)
        with torch.inference_mode(), captioner.share_vision(max_images=64):
            inputs = batches.inputs_of(batch)
            logits = captioner.model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].cpu()
        return [self._vocabulary.probabilities(row, q, self.name) for row, q in zip(logits, questions, strict=True)]

    def complete(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 512, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """Write on after each prompt and its image, one prompt at a time; which answers were cut is not told.

        Raises:
            ScorerError: the model cannot be loaded, a prompt has no image, or leaves no room for its answer.
        """
        import torch

        answers: list[str] = []
        settings: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {}
        for prompt in prompts:
            if prompt.image is None:
                raise ScorerError(f"{self.what} {self.name!r} looks at images, and got no image for {prompt.about}")
            batch = self.captioner.encode([self._text(prompt)], [prompt.image])
            try:
                with torch.random.fork_rng():
                    torch.manual_seed(seed_of(prompt.text, seed))
                    answers += self.captioner.generate(batch, max_new_tokens=max_new_tokens, **settings)
            except SettingError as error:
                raise ScorerError(
                    f"{self.what} {self.name!r} has no room for an answer about {prompt.about}: {error}"
                ) from error
        return answers

    def _text(self, question: Question | Prompt) -> str:
        parts = [{"type": "image"}, {"type": "text", "text": plain(self._vocabulary.tokenizer, question.text)}]
        processor = self.captioner.processor
        thinking = {"enable_thinking": False} if "enable_thinking" in str(processor.chat_template) else {}
        text = processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False, **thinking
        )
        return text + self.opening if text.endswith(("\n", " ")) else f"{text}\n{self.opening}"
