"""Encoders on tiny CLIP and SigLIP models saved and loaded as a user's folder would be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import tiny_encoders
import torch
from transformers import AutoModel, AutoProcessor

from captune.errors import EncoderError
from captune.models.encoders.clip import Encoder

TEXTS = ["a red ball", "two green fish and a small yellow bird on the beach", "", "日本 😀", "a red ball"]
LONG = "a striped fish to the left of a spotted fish " * 6


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return getattr(tiny_encoders, request.param)(tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.load(folder, device="cpu")


def test_equals_the_model_called_directly(encoder: Encoder, folder: Path) -> None:
    images = [tiny.picture(i, size) for i, size in enumerate([(64, 64), (90, 50), (33, 120)])]
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder, backend="pil")
    with torch.no_grad():
        for i, image in enumerate(images):
            pixels = processor.image_processor(images=image, return_tensors="pt")
            expected = model.get_image_features(**pixels).pooler_output[0]
            torch.testing.assert_close(encoder.encode_images(images)[i], expected / expected.norm(), atol=1e-5, rtol=0)
        padding = "max_length" if model.config.model_type == "siglip" else False
        for text, feature in zip(TEXTS, encoder.encode_texts(TEXTS), strict=True):
            ids = processor.tokenizer(text, padding=padding, max_length=tiny_encoders.CONTEXT, return_tensors="pt")
            ids.pop("token_type_ids", None)
            expected = model.get_text_features(**ids).pooler_output[0]
            torch.testing.assert_close(feature, expected / expected.norm(), atol=1e-5, rtol=0)


def test_features_are_unit_vectors_and_do_not_depend_on_the_batch(encoder: Encoder) -> None:
    images = [tiny.picture(i) for i in range(5)]
    features = encoder.encode_images(images)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(5))
    torch.testing.assert_close(encoder.encode_images(images, batch_size=2), features, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        encoder.encode_texts(TEXTS, batch_size=1), encoder.encode_texts(TEXTS, batch_size=64), atol=1e-6, rtol=0
    )
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_long_texts_keep_their_end_and_are_counted(folder: Path) -> None:
    encoder = Encoder.load(folder, device="cpu")
    cut = encoder._fit(encoder._token_ids(LONG))
    whole = encoder.tokenizer(LONG, truncation=True, max_length=tiny_encoders.CONTEXT)["input_ids"]
    assert len(encoder._token_ids(LONG)) > tiny_encoders.CONTEXT
    assert cut == whole and cut[-1] == encoder.tokenizer.eos_token_id
    features = encoder.encode_texts([LONG, LONG, "a red ball", LONG + "at night"])
    assert encoder.truncated == 3
    torch.testing.assert_close(features[0], features[3])


def test_the_digest_names_the_weights(folder: Path) -> None:
    first, second = Encoder.load(folder, device="cpu"), Encoder.load(folder, device="cpu")
    assert first.digest == second.digest and len(first.digest) == 8
    del second.digest
    with torch.no_grad():
        next(second.model.parameters()).add_(1e-3)
    assert first.digest != second.digest


def test_nothing_to_encode(encoder: Encoder) -> None:
    assert len(encoder.encode_images([])) == len(encoder.encode_texts([])) == 0


def test_what_is_no_encoder_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(EncoderError, match="does not exist"):
        Encoder.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncoderError, match="config.json"):
        Encoder.load(tmp_path / "empty")
    with pytest.raises(EncoderError, match="hf download someone/some-clip"):
        Encoder.load("someone/some-clip")
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"<html>404</html>")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        Encoder.load(broken)
    with pytest.raises(EncoderError, match="get_image_features"):
        Encoder(torch.nn.Linear(1, 1), None, name="a layer")
