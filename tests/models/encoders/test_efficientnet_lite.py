"""EfficientNet-Lite: the published weights, renamed, give what the reference implementation gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoImageProcessor, AutoModel
from transformers.utils import logging

from captune.errors import EncoderError
from captune.models.encoders import efficientnet_lite, load_image_encoder
from captune.models.encoders.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel
from captune.models.packaged import EFFICIENTNETS, PackagedModel

#: of efficientnet_lite_pytorch 0.1.0 with these weights, on `uniform(size)`: the means of every 128th channel, the mean
#: of all features, the three largest at row 2, column 5
GOLDEN: dict[str, tuple[list[float], float, list[float]]] = {
    "efficientnet-lite0": (
        [0.788051, 0.435505, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        0.1278634,
        [6.0, 4.95821, 4.85911],
    ),
    "efficientnet-lite1": (
        [0.0, 0.0, 0.0, 0.003566, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        0.136848,
        [5.14479, 3.70067, 3.60319],
    ),
    "efficientnet-lite2": (
        [0.024696, 0.0, 0.0, 1.432691, 0.0, 0.177089, 0.0, 0.775017, 1.310706, 0.008081],
        0.148081,
        [5.62245, 5.19634, 3.38209],
    ),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    logging.disable_progress_bar()


def uniform(size: int) -> torch.Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("packed", EFFICIENTNETS, ids=lambda model: model.name)
def test_the_features_are_those_of_the_reference(packed: PackagedModel) -> None:
    if packed.find() is None:
        pytest.skip(f"the published weights are not tried: {packed.how_to_get()} (make install brings lite2)")
    encoder: Any = load_image_encoder(packed.name, "cpu")
    model, size = encoder.model, encoder.model.config.image_size
    with torch.inference_mode():
        found = model(uniform(size))
    means, mean, largest = GOLDEN[packed.name]
    assert found.last_hidden_state.shape == (1, 1280, -(-size // 32), -(-size // 32))
    np.testing.assert_allclose(found.pooler_output[0, ::128], means, atol=2e-5)
    assert float(found.last_hidden_state.mean()) == pytest.approx(mean, abs=1e-6)
    np.testing.assert_allclose(found.last_hidden_state[0, :, 2, 5].topk(3).values, largest, atol=1e-4)
    vectors = encoder.encode_images([tiny.picture(0, (400, 300)), tiny.picture(1)])
    assert vectors.shape == (2, 1280) and torch.allclose(vectors.norm(dim=-1), torch.ones(2))
    assert str(packed.folder) == AutoModel.from_pretrained(packed.folder).name_or_path


def reference_names(model: EfficientNetLiteModel) -> dict[str, torch.Tensor]:
    """The weights under the names of the published files."""
    within = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1"),
              "project": ("_project_conv", "_bn2")}  # fmt: skip
    around = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    renamed = {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    for name, tensor in model.state_dict().items():
        *path, part, kind, last = name.split(".")
        names = within[part] if path else around[part]
        renamed[
            ".".join([*(f"_{step}" if step == "blocks" else step for step in path), names[kind == "norm"], last])
        ] = tensor
    return renamed


def test_a_file_of_weights_becomes_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EfficientNetLiteModel(EfficientNetLiteConfig()).eval()
    weights = reference_names(model)
    (tmp_path / "folder").mkdir()
    torch.save(weights, tmp_path / "weights.pth")
    efficientnet_lite.unpack("efficientnet-lite0", tmp_path / "weights.pth", tmp_path / "folder", EncoderError)
    again = AutoModel.from_pretrained(tmp_path / "folder").eval()
    picture = AutoImageProcessor.from_pretrained(tmp_path / "folder", backend="pil")(
        images=[tiny.picture(0, (300, 260))], return_tensors="pt"
    )["pixel_values"]
    assert picture.shape == (1, 3, 224, 224) and picture.min() >= -127 / 128 and picture.max() <= 1
    with torch.inference_mode():
        assert torch.equal(again(picture).pooler_output, model(picture).pooler_output)
        assert again(picture[..., :193, :100]).last_hidden_state.shape == (1, 1280, 7, 4)  # "SAME": rounded up
    del weights["_blocks.3._bn1.running_var"]
    torch.save(weights, tmp_path / "holes.pth")
    with pytest.raises(
        EncoderError, match=r"holes.pth cannot be used: 1 tensors are missing \(blocks.3.depthwise.norm"
    ):
        efficientnet_lite.unpack("efficientnet-lite0", tmp_path / "holes.pth", tmp_path / "folder", EncoderError)
