"""Frozen encoders of sentences (sentence-transformers): a unit vector for each text."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from captune.errors import EncoderError, SettingError
from captune.models.encoders.base import LoadedEncoder
from captune.models.hub import DEFAULT_TEXT_ENCODER, loading, resolve_text_encoder
from captune.utils.device import pick_device
from captune.utils.hashing import identity
from captune.utils.loads import check_model

_SILENT_TEXTS = 2_000  # fewer texts than this show no progress bar


class TextEncoder(LoadedEncoder):
    """A sentence encoder: any sentence-transformers model. Texts longer than its `max_seq_length` are cut.

    Attributes:
        context_length: the most tokens of a text, None without a limit.
        truncated: how many texts have been cut.

    Args:
        model: a `SentenceTransformer`.
        name: what the user calls it.
    """

    def __init__(self, model: Any, *, name: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name = name
        limit = model.get_max_seq_length()
        self.context_length: int | None = None if limit is None or limit == float("inf") else int(limit)
        self.truncated = 0

    @classmethod
    def load(
        cls, name_or_path: str | Path = DEFAULT_TEXT_ENCODER, device: str | torch.device | None = None
    ) -> TextEncoder:
        """Load a folder or hub name of a sentence-transformers model; a local folder needs no network.

        A plain transformers folder is read as sentence-transformers reads it: the mean over its tokens.

        Raises:
            EncoderError: says what is missing and how to get it.
        """
        name = str(name_or_path)
        source = cls.check(name)
        from sentence_transformers import SentenceTransformer

        local = Path(source).is_dir()
        device = pick_device(device)
        with loading("text encoder", name, source, EncoderError):
            model = SentenceTransformer(
                source,
                device=str(device),
                local_files_only=local,
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            )
        check_model(model, what=f"text encoder {name!r}", error=EncoderError, unused=("pooler",))
        return cls(model, name=name)

    @staticmethod
    def check(name_or_path: str | Path) -> str:
        """Return where the model lies; loads nothing.

        Raises:
            EncoderError: the folder does not exist, or sentence-transformers is not installed.
        """
        if importlib.util.find_spec("sentence_transformers") is None:
            raise EncoderError(
                f"text encoder {str(name_or_path)!r} needs sentence-transformers, which is not "
                "installed; run: pip install 'captune[scorers]'"
            )
        return resolve_text_encoder(name_or_path)

    @cached_property
    def digest(self) -> str:
        """8 hex digits of weights, tokenizer, pooling, prompts and configuration."""
        tokenizer = self.model.tokenizer
        return identity(self.model, tokenizer if hasattr(tokenizer, "get_vocab") else {}, length=self.context_length)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> torch.Tensor:
        """Encode texts, in batches of similar length; equal ones are encoded once.

        Args:
            texts: of any length; see the class.
            batch_size: texts encoded together.

        Returns:
            (N, D) float32 unit vectors on the CPU.

        Raises:
            EncoderError: the model gives a text no finite vector.
        """
        if batch_size < 1:
            raise SettingError(f"batch_size must be at least 1, not {batch_size}")
        index: dict[str, int] = {}
        for text in texts:
            index.setdefault(text, len(index))
        if not index:
            return torch.empty(0, 0)
        distinct = list(index)
        vectors = self.model.encode(
            distinct,
            batch_size=batch_size,
            convert_to_tensor=True,
            normalize_embeddings=True,
            show_progress_bar=len(distinct) >= _SILENT_TEXTS,
        )
        vectors = vectors.float().cpu()
        if not bool(vectors.isfinite().all()):
            bad = int((~vectors.isfinite().all(dim=-1)).nonzero()[0])
            raise EncoderError(f"text encoder {self.name!r} has no finite vector for the text {distinct[bad]!r}")
        cut = self.longer(distinct)
        rows = [index[text] for text in texts]
        self.truncated += sum(cut[row] for row in rows)
        return vectors[rows]

    def longer(self, texts: Sequence[str]) -> list[bool]:
        """Return which texts are longer than the context, so that they are cut."""
        tokenizer = self.model.tokenizer
        if self.context_length is None or not callable(tokenizer):
            return [False] * len(texts)
        prompt = self.model.prompts.get(self.model.default_prompt_name or "", "")
        ids = tokenizer([prompt + text for text in texts], truncation=False, verbose=False)["input_ids"]
        return [len(i) > self.context_length for i in ids]
