"""The slot for a model that answers multiple-choice questions: a causal LM of `transformers`, or a server.

An answer is read off the probabilities of the next token, never parsed from free text. A token counts for an answer
where, without spaces and punctuation around it, it is that answer or the beginning of that answer alone: " Yes", "yes"
and "▁Yes" are one answer. Where all allowed answers together hold less than `MIN_MASS` of the probability, the model
did not answer, and that is an error.

    answerer = load_answerer("Qwen/Qwen3-8B")                        # or a folder, or "http://host:8000/v1#model-name"
    answerer.answer_probabilities([Question("Is a dog an animal?", ("Yes", "No"), "dogs")])   # [array([0.99, 0.01])]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from captune.errors import ScorerError, first_line
from captune.utils.hashing import weights_digest
from captune.utils.spec import read_argument

MIN_MASS = 0.01
_AROUND = " \t\r\n▁Ġ\"'`*_()[].,:;"
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


def load_answerer(spec: str, *, device: str | None = None) -> Answerer:
    """A folder, a hub name, or "http(s)://host:port/v1#model-name"; nothing is loaded before the first question."""
    if is_server(spec):
        from captune.models.answerers.server import Server

        return Server(spec)
    return LanguageModel(spec, device=device)


def is_server(spec: str) -> bool:
    return spec.startswith(("http://", "https://"))


def file_and_answerer(
    argument: str | None, scorer: str, file_of: str, answerer: Answerer | None, device: str | None
) -> tuple[Path, Answerer]:
    """ "labels.csv?model=Qwen/Qwen3-8B" -> the file and the answerer, which one given takes the place of."""
    example = f"{scorer}:{file_of}?model=Qwen/Qwen3-8B"
    file, settings = read_argument(scorer, argument, ("model",), example)
    if not file or not (answerer or settings.get("model")):
        missing = "a language model that answers" if file else "a file, " + file_of
        raise ValueError(
            f"scorer {scorer!r} needs {missing}: write {example!r}, with a model's folder, a hub name, or a server, "
            "?model=http://host:port/v1#model-name"
        )
    return Path(file).expanduser(), answerer or load_answerer(settings["model"], device=device)


def one_line(text: str) -> str:
    """A caption as it stands in a prompt: no line break of any kind, which could pass for the prompt's own."""
    return " ".join(text.split())


def match_answer(token: str, answers: Sequence[str]) -> int | None:
    """The index of the answer that a token gives or begins; letters are told by their case, since "a" is a word."""
    word = token.strip(_AROUND)
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


class Vocabulary:
    """The tokens of a tokenizer that count for each answer."""

    def __init__(self, tokenizer: Any) -> None:
        special = set(tokenizer.all_special_ids)
        self.tokenizer = tokenizer
        self.ids = sorted(i for i in set(tokenizer.get_vocab().values()) if i not in special)
        self._words = [text.strip(_AROUND) for text in tokenizer.batch_decode([[i] for i in self.ids])]
        self._groups: dict[tuple[str, ...], list[list[int]]] = {}
        marks = {token for token in tokenizer.get_added_vocab() if token.startswith("<")}
        self._marks = sorted(marks | set(tokenizer.all_special_tokens), key=len, reverse=True)

    def plain(self, text: str) -> str:
        """The text without what the tokenizer would take for its special tokens: a caption must not end a turn."""
        for mark in self._marks:
            text = text.replace(mark, " ")
        return text

    def probabilities(self, logits: Any, question: Question, who: str) -> np.ndarray:
        """What next-token logits (V,) say to a question."""
        p = logits.double().softmax(-1)
        if question.answers not in self._groups:
            groups: list[list[int]] = [[] for _ in question.answers]
            longest = max(map(len, question.answers))
            for i, word in zip(self.ids, self._words, strict=True):
                answer = match_answer(word, question.answers) if len(word) <= longest else None
                if answer is not None and i < len(p):
                    groups[answer].append(i)
            self._groups[question.answers] = groups

        def said() -> list[tuple[str, float]]:
            best, ids = p.topk(3)
            return list(zip(self.tokenizer.batch_decode(ids[:, None]), best.tolist(), strict=True))

        return normalise_answers([float(p[ids].sum()) for ids in self._groups[question.answers]], question, who, said)


def check_model(name: str, what: str, example: str) -> None:
    """Raises ScorerError where a folder is none, or a hub model is out of reach; asks no network."""
    from huggingface_hub import constants, try_to_load_from_cache

    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ScorerError(f"{name} is not a model folder: it has no config.json")
    elif path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1 or path.parent.is_dir():
        raise ScorerError(f"{what} {name!r} does not exist: give a model's folder, a hub name such as {example}, or "
                          "http://host:port/v1#model-name")  # fmt: skip
    elif constants.HF_HUB_OFFLINE and not isinstance(try_to_load_from_cache(name, "config.json"), str):
        raise ScorerError(f"{what} {name!r} is not on this machine, which is offline: run `hf download {name}` where "
                          "the hub can be reached")  # fmt: skip


def check_length(tokens: int, config: Any, question: Question, who: str) -> None:
    """A prompt is never cut: what is cut could be the question."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf
    if tokens > limit:
        raise ScorerError(f"the question about {question.about} has {tokens} tokens, more than "
                          f"the {limit} that {who} reads: leave long captions out or name another model")  # fmt: skip


class LanguageModel:
    """A causal LM of `transformers`: through its chat template, thinking off, or as plain text where it has none."""

    def __init__(self, name: str, *, device: str | None = None, batch_size: int = 16) -> None:
        self.name, self.batch_size, self._device = name, batch_size, device

    def check(self) -> None:
        check_model(self.name, "answering model", "Qwen/Qwen3-8B")

    @cached_property
    def label(self) -> str:
        return f"{self.name}@{weights_digest(self._model.state_dict())}"

    @property
    def _source(self) -> str:
        folder = Path(self.name).expanduser()
        return str(folder) if folder.is_dir() else self.name

    @cached_property
    def _model(self) -> Any:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM

        self.check()
        device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float32 if str(device) == "cpu" else "auto"
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self._source, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
            model, info = loaded
            if lacking := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
                raise ValueError(f"{len(lacking)} tensors are missing or have another shape, such as {lacking[0]}")
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise self._unloadable("weights (*.safetensors)", error) from error
        return model.eval().requires_grad_(False).to(device)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        from transformers import AutoTokenizer

        self.check()
        try:
            return Vocabulary(AutoTokenizer.from_pretrained(self._source))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise self._unloadable("tokenizer", error) from error

    def _unloadable(self, what: str, error: Exception) -> ScorerError:
        reason = first_line(error)
        return ScorerError(f"the {what} of answering model {self.name!r} cannot be loaded: {reason}")

    def answer_probabilities(self, questions: Sequence[Question]) -> list[np.ndarray]:
        """In batches of similar length, padded on the right, where a causal model does not look."""
        import torch

        prompts = [self._ids(question) for question in questions]
        order = sorted(range(len(questions)), key=lambda i: -len(prompts[i]))  # too little memory shows at once
        found: dict[int, np.ndarray] = {}
        for start in tqdm(range(0, len(order), self.batch_size), desc="asking", leave=False,
                          disable=len(order) < SILENT):  # fmt: skip
            part = order[start : start + self.batch_size]
            ends = torch.tensor([len(prompts[i]) - 1 for i in part])
            ids = torch.zeros(len(part), int(ends.max()) + 1, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(part):
                ids[row, : len(prompts[i])] = torch.tensor(prompts[i])
                mask[row, : len(prompts[i])] = 1
            logits = self._logits(ids.to(self._model.device), mask.to(self._model.device), ends)
            for i, own in zip(part, logits, strict=True):
                found[i] = self._vocabulary.probabilities(own, questions[i], self.name)
        return [found[i] for i in range(len(questions))]

    def _logits(self, ids: Any, mask: Any, ends: Any) -> Any:
        """(B, V) at each row's last token; the vocabulary is computed where some row ends, not at every token."""
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

    def _ids(self, question: Question) -> list[int]:
        tokenizer = self._vocabulary.tokenizer
        text = self._vocabulary.plain(question.text)
        if tokenizer.chat_template is None:
            ids = tokenizer(f"{text}\nAnswer:")["input_ids"]
        else:
            turn = [{"role": "user", "content": text}]
            # enable_thinking: Qwen3 and its like would open with a thought; other templates do not read it
            text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False,
                                                 enable_thinking=False)  # fmt: skip
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        check_length(len(ids), self._model.config, question, self.name)
        return list(ids)
