"""Models of natural-language inference: does a premise contradict a hypothesis?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from captune.errors import ScorerError
from captune.models import hub
from captune.models.answerers.base import SILENT
from captune.models.plain_text import plain
from captune.utils.device import pick_device
from captune.utils.hashing import identity
from captune.utils.loads import check_model
from captune.utils.progress import Bar


class EntailmentModel:
    """A sequence classifier of `transformers` with a label "contradiction", such as those trained on MNLI.

    Args:
        name: a folder or hub name.
        device: default: cuda where there is one, else cpu.
        batch_size: pairs classified together.
    """

    def __init__(self, name: str, *, device: str | None = None, batch_size: int = 32) -> None:
        self.name, self.batch_size, self._device = name, batch_size, device

    def check(self) -> None:
        """Raise ScorerError if the model is missing, or has no label for a contradiction; loads no weights."""
        hub.check(self.name, what="NLI model", example="FacebookAI/roberta-large-mnli", error=ScorerError)
        if Path(self._source).is_dir():
            from transformers import AutoConfig

            with hub.loading("NLI model", self.name, self._source, ScorerError):
                config = AutoConfig.from_pretrained(self._source)
            contradiction(config, self.name)

    @cached_property
    def label(self) -> str:
        """The name, and a digest of weights, labels and tokenizer."""
        return f"{self.name}@{identity(self._model, self._tokenizer, unused=())}"

    @cached_property
    def _source(self) -> str:
        return hub.resolve(self.name, what="NLI model", bare=False, error=ScorerError)

    @cached_property
    def _model(self) -> Any:
        import torch
        from transformers import AutoModelForSequenceClassification

        self.check()
        device = pick_device(self._device)
        dtype = torch.float32 if str(device) == "cpu" else "auto"
        with hub.loading("NLI model", self.name, self._source, ScorerError):
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                self._source, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
        model, info = loaded
        check_model(model, info, what=f"NLI model {self.name!r}", error=ScorerError)
        contradiction(model.config, self.name)
        return model.eval().requires_grad_(False).to(device)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        self.check()
        with hub.loading("NLI model", self.name, self._source, ScorerError):
            return AutoTokenizer.from_pretrained(self._source)

    @cached_property
    def limit(self) -> int:
        """The tokens of the longest pair that it reads."""
        table = getattr(getattr(self._model.base_model, "embeddings", None), "position_embeddings", None)
        taken = getattr(table, "padding_idx", None)  # RoBERTa's positions begin behind that of the padding
        positions = getattr(self._model.config, "max_position_embeddings", None) or self._tokenizer.model_max_length
        return min(positions - (0 if taken is None else taken + 1), self._tokenizer.model_max_length)

    def contradictions(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Return (N,): the probability, over all the model's labels, that a pair is a contradiction.

        Args:
            pairs: (premise, hypothesis); equal ones are classified once.

        Raises:
            ScorerError: the model cannot be loaded, a pair is too long for it, or an answer is not finite.
        """
        import torch

        unique = list(dict.fromkeys(pairs))
        ids = [self._ids(*pair) for pair in unique]
        order = sorted(range(len(unique)), key=lambda i: -len(ids[i]["input_ids"]))
        found = np.zeros(len(unique))
        for start in Bar(range(0, len(order), self.batch_size), desc="NLI", leave=False, show=len(order) >= SILENT):
            part = order[start : start + self.batch_size]
            batch = self._tokenizer.pad([ids[i] for i in part], return_tensors="pt").to(self._model.device)
            with torch.inference_mode():
                logits = self._model(**batch).logits.double()
            found[part] = logits.softmax(-1)[:, contradiction(self._model.config, self.name)].cpu()
        if not np.isfinite(found).all():
            premise, hypothesis = unique[int(np.flatnonzero(~np.isfinite(found))[0])]
            raise ScorerError(f"NLI model {self.name!r} gave no number for {hypothesis[:60]!r} after {premise[:60]!r}")
        places = {pair: i for i, pair in enumerate(unique)}
        return found[[places[pair] for pair in pairs]] if pairs else found

    def _ids(self, premise: str, hypothesis: str) -> dict[str, list[int]]:
        texts = [[plain(self._tokenizer, text)] for text in (premise, hypothesis)]  # lists: an empty text is one, too
        pair = self._tokenizer(*texts)
        ids = {key: values[0] for key, values in pair.items()}
        if len(ids["input_ids"]) > self.limit:
            raise ScorerError(
                f"caption {hypothesis[:60]!r} and its reference have {len(ids['input_ids'])} tokens, more than the "
                f"{self.limit} that NLI model {self.name!r} reads: leave long captions out or choose another model"
            )
        return ids


def contradiction(config: Any, name: str) -> int:
    """Return the index of a model's label for a contradiction.

    Raises:
        ScorerError: its configuration has none, or several.
    """
    labels = {int(i): str(label) for i, label in (config.id2label or {}).items()}
    found = [i for i, label in labels.items() if label.casefold().startswith("contradict")]
    if len(found) != 1:
        raise ScorerError(
            f"{name!r} is no NLI model with a label for contradictions: its labels are {', '.join(labels.values())}; "
            "name one trained on MNLI, or write the labels into id2label of its config.json"
        )
    return found[0]
