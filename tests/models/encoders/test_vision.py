from __future__ import annotations

from pathlib import Path

import corpora
import numpy as np
import pytest
import tiny
import tiny_encoders

from captune.cli.main import main
from captune.corpus import Corpus
from captune.errors import EncoderError
from captune.models.encoders import load_image_encoder, load_text_encoder
from captune.models.encoders.clip import Encoder
from captune.models.encoders.vision import VisionEncoder

pytest.importorskip("faiss")
CAPTIONS = corpora.captions_of(30)


def test_slots_take_the_model_that_fits(tmp_path: Path) -> None:
    import torch
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    clip = tiny_encoders.clip(tmp_path / "clip")
    assert isinstance(load_text_encoder(str(clip), "cpu"), Encoder)
    assert isinstance(load_image_encoder(str(clip), "cpu"), Encoder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    model = Dinov2Model(Dinov2Config(**shape)).eval()
    model.save_pretrained(tmp_path / "dino")
    processor = BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path / "dino")
    encoder = load_image_encoder(str(tmp_path / "dino"), "cpu")
    pictures = [tiny.picture(0), tiny.picture(1, (50, 80))]
    with torch.no_grad():
        direct = model(**processor(pictures, return_tensors="pt")).last_hidden_state[:, 0].numpy()
    found = np.asarray(encoder.encode_images(pictures))
    np.testing.assert_allclose(found, direct / np.linalg.norm(direct, axis=1, keepdims=True), atol=1e-5)
    assert isinstance(encoder, VisionEncoder) and len(encoder.digest) == 8
    with pytest.raises(EncoderError, match="hf download no/such-model"):
        load_image_encoder("no/such-model", "cpu")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        load_text_encoder("no/such-model", "cpu")


def test_an_encoder_that_masks_patches_at_random_sees_all_of_them(tmp_path: Path) -> None:
    from transformers import BitImageProcessorPil, ViTMAEConfig, ViTMAEModel

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    ViTMAEModel(ViTMAEConfig(**shape, intermediate_size=16, mask_ratio=0.75)).save_pretrained(tmp_path)
    processor = BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    encoder = load_image_encoder(str(tmp_path), "cpu")
    first, second = (np.asarray(encoder.encode_images([tiny.picture(0), tiny.picture(1)])) for _ in range(2))
    np.testing.assert_allclose(first, second, atol=1e-5)
    assert abs(first[0] @ first[1]) < 0.99999


def test_a_map_without_a_pooler_is_averaged_over_places(tmp_path: Path) -> None:
    import torch
    from transformers import BitImageProcessorPil, PoolFormerConfig, PoolFormerModel

    torch.manual_seed(0)
    shape = {"hidden_sizes": [4, 6, 8, 12], "depths": [1, 1, 1, 1]}
    model = PoolFormerModel(PoolFormerConfig(**shape)).eval()
    processor = BitImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    pictures = [tiny.picture(0), tiny.picture(1, (50, 80))]
    with torch.no_grad():
        states = model(**processor(pictures, return_tensors="pt")).last_hidden_state
    assert states.shape == (2, 12, 2, 2)
    expected = states.flatten(2).mean(-1).numpy()
    found = np.asarray(VisionEncoder(model, processor, name="poolformer").encode_images(pictures))
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = str(tiny_encoders.clip(tmp_path / "clip"))
    source = corpora.source(tmp_path / "s", CAPTIONS[:5])
    output = tmp_path / "corpus"
    flags = [
        "corpus",
        "build",
        "--captions",
        source,
        "--output",
        str(output),
        "--text-encoder",
        clip,
        "--image-encoder",
        clip,
    ]
    assert main([*flags, "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert str(output) in said.out and "10 captions of 5 images" in said.err
    (tmp_path / "s" / "003.png").write_bytes(b"")
    assert main([*flags, "--device", "cpu", "--overwrite"]) == 1
    assert "8 captions of 4 images, 1 image skipped" in capsys.readouterr().err
    assert Corpus.open(output, device="cpu").search(["a red ball"], 2)[1].shape == (1, 2)
