"""Frozen encoders of images and texts into one space (CLIP, SigLIP): unit vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoProcessor

from captune.data.images import opened
from captune.errors import EncoderError, SettingError
from captune.models.encoders.base import LoadedEncoder
from captune.models.hub import loading, resolve_encoder
from captune.utils.device import pick_device
from captune.utils.hashing import identity
from captune.utils.loads import check_model
from captune.utils.progress import Bar

_SILENT_BATCHES = 100  # fewer show no progress bar: a reward encodes as many at every step


class Encoder(LoadedEncoder):
    """An image and text encoder of the CLIP kind: any model with `get_image_features` and `get_text_features`.

    Texts longer than the context are cut before their end-of-sentence token, where CLIP reads its features.

    Attributes:
        context_length: the most tokens of a text.
        truncated: how many texts have been cut.

    Args:
        model: the loaded model.
        processor: with an image processor and a tokenizer.
        name: what the user calls it.

    Raises:
        EncoderError: the model or the processor lacks a side.
    """

    def __init__(self, model: Any, processor: Any, *, name: str) -> None:
        missing = [part for part in ("get_image_features", "get_text_features") if not hasattr(model, part)]
        if missing:
            raise EncoderError(
                f"{name} is a {type(model).__name__}, which has no {' and no '.join(missing)}; an "
                "encoder of images and texts is needed: CLIP, SigLIP, or what captune encoder train makes of this one"
            )
        absent = [part for part in ("image_processor", "tokenizer") if getattr(processor, part, None) is None]
        if absent:
            raise EncoderError(f"{name} has no {' and no '.join(absent)}; save the whole processor in that folder")
        self.model = model.eval().requires_grad_(False)
        self.image_processor, self.tokenizer = processor.image_processor, processor.tokenizer
        self.name = name
        text = getattr(model.config, "text_config", model.config)
        self.context_length = int(min(text.max_position_embeddings, self.tokenizer.model_max_length))
        # SigLIP reads its text features at the last position, and was trained on texts padded to the full length
        self._padding = "max_length" if model.config.model_type.startswith("siglip") else "longest"
        self.truncated = 0

    @classmethod
    def load(
        cls, name_or_path: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> Encoder:
        """Load a folder saved with `save_pretrained` (model and processor), a hub name or a shipped model.

        Images are prepared with Pillow, so that the features do not depend on whether torchvision is installed.

        Args:
            name_or_path: see `captune.models.hub`.
            device: default: cuda where there is one, else cpu.
            dtype: of the weights.

        Raises:
            EncoderError: says what is missing and how to get it.
        """
        name = str(name_or_path)
        source = resolve_encoder(name)
        with loading("encoder", name, source, EncoderError):
            processor = AutoProcessor.from_pretrained(source, backend="pil")
            model, info = AutoModel.from_pretrained(source, dtype=dtype, use_safetensors=True, output_loading_info=True)
        check_model(model, info, what=f"encoder {name!r}", error=EncoderError)
        device = pick_device(device)
        return cls(model.to(device), processor, name=name)

    @cached_property
    def digest(self) -> str:
        """8 hex digits of weights, tokenizer, image processor and configuration: names of folders say little."""
        return identity(self.model, self.tokenizer, self.image_processor, unused=())

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Any], *, batch_size: int = 32) -> torch.Tensor:
        """Encode images.

        Args:
            images: PIL images, or anything that `open_image` reads.
            batch_size: images encoded together.

        Returns:
            (N, D) float32 unit vectors on the CPU.
        """
        features = []
        for chunk in _batches(images, batch_size, "encoding images"):
            for part in opened(chunk, batch_size):
                inputs = self.image_processor(images=part, return_tensors="pt")
                features.append(self._features(self.model.get_image_features, inputs))
        return torch.cat(features) if features else torch.empty(0, 0)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> torch.Tensor:
        """Encode texts; equal ones are encoded once.

        Args:
            texts: of any length; see the class.
            batch_size: texts encoded together.

        Returns:
            (N, D) float32 unit vectors on the CPU.
        """
        index: dict[str, int] = {}
        for text in texts:
            index.setdefault(text, len(index))
        features, cut = [], []
        for chunk in _batches(list(index), batch_size, "encoding texts"):
            ids = [self._token_ids(text) for text in chunk]
            cut += [len(i) > self.context_length for i in ids]
            fitted = {"input_ids": [self._fit(i) for i in ids]}
            inputs = self.tokenizer.pad(
                fitted, padding=self._padding, max_length=self.context_length, return_tensors="pt"
            )
            features.append(self._features(self.model.get_text_features, inputs))
        rows = [index[text] for text in texts]
        self.truncated += sum(cut[row] for row in rows)
        return torch.cat(features)[rows] if features else torch.empty(0, 0)

    def _token_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])

    def _fit(self, ids: list[int]) -> list[int]:
        if len(ids) <= self.context_length:
            return ids
        end = ids[-1:] if ids[-1] in self.tokenizer.all_special_ids else []
        return ids[: self.context_length - len(end)] + end

    def _features(self, encode: Callable[..., Any], inputs: Any) -> torch.Tensor:
        inputs = {key: value.to(self.device) for key, value in inputs.items()}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        pooled = encode(**inputs).pooler_output.float()
        return torch.nn.functional.normalize(pooled, dim=-1).cpu()


def _batches(items: Sequence[Any], size: int, what: str) -> Iterator[Sequence[Any]]:
    if size < 1:
        raise SettingError(f"batch_size must be at least 1, not {size}")
    starts = range(0, len(items), size)
    for start in Bar(starts, desc=what, show=len(starts) >= _SILENT_BATCHES, leave=False):
        yield items[start : start + size]
