"""Frozen encoders of tokens (any transformers encoder): a unit vector for each token of a text."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, GPT2Tokenizer, RobertaTokenizer

from captune.errors import EncoderError, SettingError
from captune.models.hub import DEFAULT_TEXT_ENCODER, loading, resolve_text_encoder
from captune.utils.device import pick_device
from captune.utils.hashing import identity
from captune.utils.loads import check_model


class TokenEncoder:
    """The token vectors of one layer of a text model, as BERTScore reads them.

    The layers above it are not loaded. Texts longer than the model's context are cut before their closing special
    tokens.

    Attributes:
        context_length: the most tokens of a text, None without a limit.
        empty: the number of special tokens around a text.
        truncated: how many texts have been cut.

    Args:
        model: a text encoder of transformers.
        tokenizer: its tokenizer.
        name: what the user calls it.
        layer: of the vectors; 0 is the embeddings.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, layer: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name, self.layer = name, layer
        # RoBERTa and GPT-2 write a word with its space: a first word would be another token than in mid-sentence
        self._prefix = " " if isinstance(tokenizer, (RobertaTokenizer, GPT2Tokenizer)) else ""
        self.context_length = _context_length(model, tokenizer)
        self.empty = len(tokenizer("")["input_ids"])
        self.truncated = 0

    @classmethod
    def load(
        cls,
        name_or_path: str | Path = DEFAULT_TEXT_ENCODER,
        *,
        layer: int | None = None,
        device: str | torch.device | None = None,
    ) -> TokenEncoder:
        """Load a folder or hub name; of an encoder-decoder model, the encoder.

        Args:
            name_or_path: see `captune.models.hub`.
            layer: 0 is the embeddings; None, the last layer.
            device: default: cuda where there is one, else cpu.

        Raises:
            EncoderError: says what is missing and how to get it.
        """
        name = str(name_or_path)
        source = resolve_text_encoder(name)
        with loading("text encoder", name, source, EncoderError):
            tokenizer = AutoTokenizer.from_pretrained(source)
            config = AutoConfig.from_pretrained(source)
        layers = getattr(config, "num_hidden_layers", None)
        if layers is None:
            raise EncoderError(f"{name} is a {config.model_type!r} model, which has no layers of text tokens")
        if layer is not None and not 0 <= layer <= layers:
            raise EncoderError(f"{name} has layers 0 to {layers}, not {layer}; name one of them: layer={layers}")
        if layer is not None and layer < layers:
            config.num_hidden_layers = layer
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[:layer]
        with loading("text encoder", name, source, EncoderError), _no_load_report():
            model, found = AutoModel.from_pretrained(
                source, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
        check_model(model, found, what=f"text encoder {name!r}", error=EncoderError, unused=("pooler",))
        if config.is_encoder_decoder:
            model = model.get_encoder()
        device = pick_device(device)
        return cls(model.to(device), tokenizer, name=name, layer=layers if layer is None else layer)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @cached_property
    def digest(self) -> str:
        """8 hex digits of the weights up to the layer, the tokenizer and the configuration."""
        return identity(self.model, self.tokenizer, layer=self.layer)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, with the special ones, at most `context_length`."""
        if not texts:
            return []
        stripped = [text.strip() for text in texts]
        written = [self._prefix + text if text else "" for text in stripped]
        ids = self.tokenizer(written, truncation=False, verbose=False)["input_ids"]
        limit = self.context_length
        for i, tokens in enumerate(ids):
            if limit is not None and len(tokens) > limit:
                self.truncated += 1
                ids[i] = self.tokenizer(written[i], truncation=True, max_length=limit)["input_ids"]
        return ids

    @torch.inference_mode()
    def encode_tokens(self, ids: Sequence[Sequence[int]], *, batch_size: int = 64) -> list[torch.Tensor]:
        """Encode lists of tokens, in batches of similar length.

        Returns:
            For each list of L tokens (L, D) float32 unit vectors on the CPU.
        """
        if batch_size < 1:
            raise SettingError(f"batch_size must be at least 1, not {batch_size}")
        vectors = [torch.empty(0, 0)] * len(ids)
        order = sorted((i for i, tokens in enumerate(ids) if tokens), key=lambda i: -len(ids[i]))
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            padded = torch.full((len(chunk), len(ids[chunk[0]])), self.tokenizer.pad_token_id or 0)
            mask = torch.zeros_like(padded)
            for row, i in enumerate(chunk):
                padded[row, : len(ids[i])] = torch.tensor(ids[i])
                mask[row, : len(ids[i])] = 1
            output = self.model(input_ids=padded.to(self.device), attention_mask=mask.to(self.device))
            units = torch.nn.functional.normalize(output.last_hidden_state.float(), dim=-1).cpu()
            for row, i in enumerate(chunk):
                vectors[i] = units[row, : len(ids[i])].clone()
        return vectors


@contextmanager
def _no_load_report() -> Iterator[None]:
    """Silence the report of transformers on layers left out on purpose; missing weights are checked here."""

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)


def _context_length(model: Any, tokenizer: Any) -> int | None:
    """Return the most tokens of a text, None without a limit. RoBERTa's table of positions starts at padding + 1."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    offset = 0 if padding is None else padding + 1
    positions = getattr(model.config, "max_position_embeddings", None)
    limits = [positions - offset] if isinstance(positions, int) and positions > 0 else []
    if tokenizer.model_max_length < 1_000_000:  # transformers writes 1e30 for an unknown limit
        limits.append(int(tokenizer.model_max_length))
    return min(limits, default=None)
