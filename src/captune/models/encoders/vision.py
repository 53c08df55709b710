"""Frozen encoders of images alone (DINOv2, ViT, ConvNeXt, EfficientNet-Lite): a unit vector for each image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModel

import captune.models.encoders.efficientnet_lite  # noqa: F401  registers its model with the Auto classes
from captune.data.images import open_image
from captune.errors import EncoderError
from captune.models.hub import loading, resolve_encoder
from captune.utils.device import pick_device
from captune.utils.hashing import identity, weights_digest
from captune.utils.loads import check_model


class VisionEncoder:
    """A vision model without a text side (DINOv2, DINOv3, ViT, or a convolutional one).

    Its feature is the pooled output, the [CLS] token's, or the mean over the tokens, or
    places, of a model that has none.

    Args:
        model: the loaded model.
        processor: its image processor.
        name: what the user calls it.
    """

    def __init__(self, model: Any, processor: Any, *, name: str) -> None:
        self.model, self.processor, self.name = model.eval().requires_grad_(False), processor, name

    @classmethod
    def load(cls, name_or_path: str | Path, *, device: str | None = None) -> VisionEncoder:
        """Load a folder saved with `save_pretrained` (model and image processor), or a hub name.

        Raises:
            EncoderError: says what is missing and how to get it.
        """
        name = str(name_or_path)
        source = resolve_encoder(name, "image encoder")
        with loading("image encoder", name, source, EncoderError):
            processor = AutoImageProcessor.from_pretrained(source, backend="pil")
            model, info = AutoModel.from_pretrained(source, use_safetensors=True, output_loading_info=True)
        check_model(model, info, what=f"image encoder {name!r}", error=EncoderError)
        if getattr(model.config, "mask_ratio", 0):  # ViT-MAE drops random patches whenever it is asked
            model.config.mask_ratio = 0.0
        return cls(model.to(pick_device(device)), processor, name=name)

    @cached_property
    def weights(self) -> str:
        """8 hex digits of the weights alone, which corpora of format 1 know."""
        return weights_digest(self.model.state_dict())

    @cached_property
    def digest(self) -> str:
        """8 hex digits of weights, image processor and configuration."""
        return identity(self.model, self.processor, unused=())

    def encode_images(self, images: Sequence[Any]) -> Any:
        """Encode images, PIL's or anything that `open_image` reads: (N, D) float32 unit vectors on the CPU."""
        with torch.inference_mode():
            inputs = self.processor(images=[open_image(image) for image in images], return_tensors="pt").to(
                self.model.device
            )
            output = self.model(**inputs)
            pooled = getattr(output, "pooler_output", None)
            if pooled is None:
                states = output.last_hidden_state  # tokens (N, L, D), or a map (N, D, H, W)
                pooled = states.mean(dim=(2, 3) if states.ndim == 4 else 1)
            # convolutional models of transformers pool to (N, D, 1, 1)
            return torch.nn.functional.normalize(pooled.flatten(1).float(), dim=-1).cpu()
