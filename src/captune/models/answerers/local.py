"""Answers of a causal language model of `transformers`, on this machine."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from captune.errors import ScorerError
from captune.models import hub
from captune.models.answerers.base import (
    AROUND,
    SILENT,
    Cut,
    Prompt,
    Question,
    check_length,
    match_answer,
    normalise_answers,
)
from captune.models.packaged import WEAK
from captune.models.plain_text import plain
from captune.utils.device import pick_device
from captune.utils.hashing import identity
from captune.utils.loads import check_model
from captune.utils.progress import Bar

logger = logging.getLogger(__name__)


def seed_of(text: str, seed: int) -> int:
    """Return the seed of what is sampled after a text."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{text}".encode(), digest_size=7).digest())


class Vocabulary:
    """The tokens of a tokenizer that count for each answer.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        special = set(tokenizer.all_special_ids)
        self.tokenizer = tokenizer
        self.ids = sorted(i for i in set(tokenizer.get_vocab().values()) if i not in special)
        self._words = [text.strip(AROUND) for text in tokenizer.batch_decode([[i] for i in self.ids])]
        self._groups: dict[tuple[str, ...], list[list[int]]] = {}

    def probabilities(self, logits: Any, question: Question, who: str) -> np.ndarray:
        """Read the answer to a question off next-token logits (V,).

        Raises:
            ScorerError: the model gave none of the answers; `who` names it.
        """
        p = logits.double().softmax(-1)
        if question.answers not in self._groups:
            groups: list[list[int]] = [[] for _ in question.answers]
            longest = max(map(len, question.answers))
            for i, word in zip(self.ids, self._words, strict=True):
                answer = match_answer(word, question.answers) if len(word) <= longest else None
                if answer is not None and i < len(p):
                    groups[answer].append(i)
            self._groups[question.answers] = groups

        def likeliest() -> list[tuple[str, float]]:
            best, ids = p.topk(3)
            return list(zip(self.tokenizer.batch_decode(ids[:, None]), best.tolist(), strict=True))

        return normalise_answers(
            [float(p[ids].sum()) for ids in self._groups[question.answers]], question, who, likeliest
        )


class LanguageModel:
    """A causal language model, asked through its chat template with thinking off, or in plain text without a template.

    Args:
        name: a folder, hub name or shipped model.
        device: default: cuda where there is one, else cpu.
        batch_size: questions asked together.
    """

    def __init__(self, name: str, *, device: str | None = None, batch_size: int = 16) -> None:
        self.name, self.batch_size, self._device = name, batch_size, device

    def check(self) -> None:
        """Raise ScorerError if the model is missing; loads nothing."""
        hub.check(
            self.name,
            what="answering model",
            example="Qwen/Qwen3-8B",
            instead="http://host:port/v1#model-name",
            error=ScorerError,
        )

    @cached_property
    def label(self) -> str:
        """The name, and a digest of weights, tokenizer and template."""
        return f"{self.name}@{identity(self._model, self._vocabulary.tokenizer)}"

    @cached_property
    def _source(self) -> str:
        return hub.resolve(self.name, what="answering model", bare=False, error=ScorerError)

    @cached_property
    def _model(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        self.check()
        device = pick_device(self._device)
        dtype = torch.float32 if str(device) == "cpu" else "auto"
        with hub.loading("answering model", self.name, self._source, ScorerError):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self._source, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
            model, info = loaded
        check_model(model, info, what=f"answering model {self.name!r}", error=ScorerError)
        if self.name == hub.DEFAULT_ANSWERER:
            logger.warning("%s answers: %s; name a larger model for figures that count", self.name, WEAK)
        return model.eval().requires_grad_(False).to(device)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        from transformers import AutoTokenizer

        self.check()
        with hub.loading("answering model", self.name, self._source, ScorerError):
            return Vocabulary(AutoTokenizer.from_pretrained(self._source))

    def answer_probabilities(self, questions: Sequence[Question]) -> list[np.ndarray]:
        """Answer in batches of similar length, padded on the right, where a causal model does not look.

        Returns:
            For each question the probabilities of its answers, which sum to 1.

        Raises:
            ScorerError: the model cannot be loaded, gave none of the answers, or a prompt is too long.
        """
        import torch

        prompts = [self._ids(question) for question in questions]
        order = sorted(range(len(questions)), key=lambda i: -len(prompts[i]))  # out of memory shows at once
        answers: dict[int, np.ndarray] = {}
        for start in Bar(range(0, len(order), self.batch_size), desc="asking", leave=False, show=len(order) >= SILENT):
            batch = order[start : start + self.batch_size]
            ends = torch.tensor([len(prompts[i]) - 1 for i in batch])
            ids = torch.zeros(len(batch), int(ends.max()) + 1, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, : len(prompts[i])] = torch.tensor(prompts[i])
                mask[row, : len(prompts[i])] = 1
            logits = self._logits(ids.to(self._model.device), mask.to(self._model.device), ends)
            for i, row in zip(batch, logits, strict=True):
                answers[i] = self._vocabulary.probabilities(row, questions[i], self.name)
        return [answers[i] for i in range(len(questions))]

    def _logits(self, ids: Any, mask: Any, ends: Any) -> Any:
        """Return logits (B, V) at each row's last token, computed only where some row ends."""
        import inspect

        import torch

        kept = torch.arange(ids.shape[1])
        some: dict[str, Any] = {}
        if "logits_to_keep" in inspect.signature(self._model.forward).parameters:
            kept = ends.unique()
            some = {"logits_to_keep": kept.to(ids.device)}
        with torch.inference_mode():
            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False, **some).logits
        return logits[torch.arange(len(ids)), torch.searchsorted(kept, ends)].float().cpu()

    def complete(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 512, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """Write on after each prompt, in batches of similar length; what is sampled is sampled one by one.

        Args:
            prompts: texts alone.
            max_new_tokens: the longest answer; a longer one is cut there, and a `Cut`.
            temperature: 0 takes the likeliest token; the checkpoint's own generation settings are not used.
            seed: of the sampling, with the prompt's own text: the answer does not depend on its neighbours.

        Raises:
            ScorerError: the model cannot be loaded, or a prompt leaves no room for its answer.
        """
        import torch

        from captune.models.captioner import NEUTRAL, neutral

        rows = [self._ids(prompt, max_new_tokens) for prompt in prompts]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        size = 1 if temperature else self.batch_size
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": bool(temperature)}
        settings |= {**NEUTRAL, "temperature": temperature} if temperature else {}
        tokenizer = self._vocabulary.tokenizer
        answers: dict[int, str] = {}
        ends = self._ends()
        own = self._model.generation_config
        try:
            self._model.generation_config = neutral(own)
            for start in Bar(range(0, len(order), size), desc="asking", leave=False, show=len(order) >= SILENT):
                batch = order[start : start + size]
                width = len(rows[batch[0]])
                ids = torch.full((len(batch), width), ends[0])
                mask = torch.zeros_like(ids)
                for place, i in enumerate(batch):
                    ids[place, width - len(rows[i]) :] = torch.tensor(rows[i])
                    mask[place, width - len(rows[i]) :] = 1
                with torch.inference_mode(), torch.random.fork_rng():
                    torch.manual_seed(seed_of(prompts[batch[0]].text, seed))
                    written = self._model.generate(
                        ids.to(self._model.device), attention_mask=mask.to(self._model.device), eos_token_id=ends,
                        pad_token_id=ends[0], **settings,
                    )  # fmt: skip
                new = written[:, width:].tolist()
                for i, row, text in zip(batch, new, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                    answers[i] = Cut(text.strip()) if set(ends).isdisjoint(row) else text.strip()
        finally:
            self._model.generation_config = own
        return [answers[i] for i in range(len(prompts))]

    def _ends(self) -> list[int]:
        """The tokens that end an answer, the tokenizer's own first."""
        named = self._model.generation_config.eos_token_id
        named = named if isinstance(named, list) else [named]
        ids = [i for i in dict.fromkeys([self._vocabulary.tokenizer.eos_token_id, *named]) if i is not None]
        if not ids:
            raise ScorerError(f"answering model {self.name!r} has no token that ends an answer: choose another model")
        return ids

    def _ids(self, question: Question | Prompt, room: int = 0) -> list[int]:
        tokenizer = self._vocabulary.tokenizer
        text = plain(self._vocabulary.tokenizer, question.text)
        if tokenizer.chat_template is None:
            ids = tokenizer(f"{text}\nAnswer:")["input_ids"]
        else:
            turn = [{"role": "user", "content": text}]
            # enable_thinking: Qwen3 and similar models would open with a thought; other templates ignore it
            text = tokenizer.apply_chat_template(
                turn, add_generation_prompt=True, tokenize=False, enable_thinking=False
            )
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        check_length(len(ids) + room, self._model.config, question, self.name)
        return list(ids)
