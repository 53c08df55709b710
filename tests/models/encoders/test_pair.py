"""An encoder pair loads wherever a CLIP does, says how weak it is, and stands on its own encoders only."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_encoders
import tiny_pair
import tiny_text_encoders
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from captune.cli.main import main
from captune.corpus import Corpus
from captune.errors import EncoderError
from captune.evaluation.statistics import evaluate
from captune.models.encoders import (
    described,
    load_encoder,
    load_image_encoder,
    load_text_encoder,
)
from captune.models.encoders.pair import PairEncoder, squeezed
from captune.scorers import load_scorer
from captune.training.encoder.train import run

CAPTIONS = ["a red ball", "two green fish on the beach", "", "a small dog"]
IMAGES = [tiny.picture(0), tiny.picture(1, (80, 50)), tiny.picture(2), tiny.picture(3)]
NOTE = "encoder pair, R@1 on 7 unseen images with 14 captions: text to image"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pair.prepare(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def folder(home: Path) -> Path:
    return run(tiny_pair.config(home, home / "trained")).path


def by_hand(folder: Path, home: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of IMAGES and CAPTIONS from the frozen encoders and the saved weights alone."""
    weights = {name: tensor.numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    squares = [image.resize((min(image.size),) * 2, Image.Resampling.BICUBIC) for image in IMAGES]
    made = []
    for side, frozen in (
        ("image", load_image_encoder(str(home / "clip"), "cpu").encode_images(squares)),
        ("text", load_text_encoder(str(home / "sentences"), "cpu").encode_texts(CAPTIONS)),
    ):
        scaled = (np.asarray(frozen) - weights[f"{side}.mean"]) / weights[f"{side}.spread"]
        vectors = scaled @ weights[f"{side}.linear.weight"].T + weights[f"{side}.linear.bias"]
        made.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return made[0], made[1]


def test_vectors_are_the_frozen_ones_through_the_heads(folder: Path, home: Path) -> None:
    images, texts = by_hand(folder, home)
    pair = load_encoder(folder, "cpu")
    assert isinstance(pair, PairEncoder)
    np.testing.assert_allclose(pair.encode_images(IMAGES).numpy(), images, atol=1e-5)
    np.testing.assert_allclose(pair.encode_images(IMAGES, batch_size=3).numpy(), images, atol=1e-5)
    np.testing.assert_allclose(pair.encode_texts(CAPTIONS).numpy(), texts, atol=1e-5)
    assert pair.encode_texts([]).shape == (0, 0)
    assert pair.encode_images([]).shape == (0, 0)
    for load in (load_image_encoder, load_text_encoder):
        assert isinstance(load(str(folder), "cpu"), PairEncoder)


def test_squeezed_keeps_the_whole_image() -> None:
    image = Image.new("RGB", (90, 30), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 45, 30))
    square = np.asarray(squeezed(image))
    assert square.shape == (30, 30, 3)
    assert tuple(square[15, 0]) == (0, 0, 255)
    assert tuple(square[15, 29]) == (255, 0, 0)


def test_clipscore_is_its_formula_and_states_the_recall(folder: Path, home: Path) -> None:
    images, texts = by_hand(folder, home)
    scorer = load_scorer(f"clip:{folder}?prefix=")
    result = evaluate(CAPTIONS, {"image": IMAGES}, [scorer], bootstrap=0)[scorer.name]
    expected = 2.5 * np.maximum((images * texts).sum(axis=1), 0)
    expected[2] = 0  # the empty caption
    np.testing.assert_allclose(result.per_caption, expected, atol=1e-5)
    assert NOTE in result.signature


@pytest.mark.parametrize("spec", ["self_retrieval:{}?k=1", "cycle:storybook?encoder={}"])
def test_scorers_take_it_and_state_the_recall(folder: Path, spec: str) -> None:
    scorer = load_scorer(spec.format(folder))
    scorer.check()
    result = evaluate(CAPTIONS, {"image": IMAGES}, [scorer], bootstrap=0)[scorer.name]
    assert np.isfinite(result.per_caption).all()
    assert NOTE in result.signature
    assert "|" not in described(scorer.encoder).removeprefix(str(folder))


def test_a_corpus_takes_it_in_both_slots(folder: Path, home: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    source = str(home / "train" / "captions.jsonl")
    corpus = Corpus.build(
        source, tmp_path / "corpus", text_encoder=str(folder), image_encoder=str(folder), device="cpu"
    )
    found = load_scorer(f"grc:{tmp_path / 'corpus'}")
    result = evaluate(CAPTIONS, {"image": IMAGES, "image_id": list("abcd")}, [found], bootstrap=0)[found.name]
    assert result.signature.count(NOTE) == 2
    assert corpus.signature.count(NOTE) == 2
    shutil.copytree(folder, tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, tmp_path / "other" / "model.safetensors")
    assert load_encoder(tmp_path / "other").digest != load_encoder(folder).digest


def test_evaluate_prints_the_recall_beside_the_scores(
    folder: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "captions.jsonl"
    file.write_text(
        "".join(json.dumps({"image_id": f"i{i}", "caption": tiny_pair.caption(i)}) + "\n" for i in range(24))
    )
    source = str(home / "train" / "captions.jsonl")
    assert main(["evaluate", str(file), "--images", source, "--scorers", f"clip:{folder}", "--no-cache"]) == 0
    assert NOTE in capsys.readouterr().out


def test_says_what_it_is_when_it_is_loaded(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_encoder(folder, "cpu")
    assert NOTE in caplog.text


@pytest.mark.parametrize("side", ["clip", "sentences"])
def test_refuses_another_encoder_under_the_same_name(home: Path, folder: Path, tmp_path: Path, side: str) -> None:
    other = tmp_path / side
    if side == "clip":
        from transformers import AutoModel, AutoProcessor

        model = AutoModel.from_pretrained(home / side)
        with torch.no_grad():
            model.visual_projection.weight[0, 0] += 1e-3
        model.save_pretrained(other)
        AutoProcessor.from_pretrained(home / side, backend="pil").save_pretrained(other)
    else:
        tiny_text_encoders.roberta(other)
    copy = shutil.copytree(folder, tmp_path / "copy")
    text = (copy / "config.json").read_text().replace(str(home / side), str(other))
    (copy / "config.json").write_text(text)
    what = "image encoder" if side == "clip" else "text encoder"
    with pytest.raises(EncoderError, match=f"trained on the {what}.*another encoder's vectors"):
        load_encoder(copy, "cpu")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config.update(format=2), "has format 2"),
        (lambda config: config.pop("width"), "width: Field required"),
        (lambda config: config.update(width=9), "of another shape"),
        (lambda config: config["image_encoder"].update(name="/none/such"), "does not exist"),
        (lambda config: config["image_encoder"].update(name="SELF"), "stands on plain encoders"),
        (None, "model.safetensors cannot be read"),
    ],
)
def test_refuses_a_folder_that_is_not_whole(folder: Path, tmp_path: Path, change: Any, said: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    if change is None:
        (copy / "model.safetensors").unlink()
    else:
        config = json.loads((copy / "config.json").read_text())
        change(config)
        (copy / "config.json").write_text(json.dumps(config).replace("SELF", str(copy)))
    with pytest.raises(EncoderError, match=said):
        load_encoder(copy, "cpu")


def test_a_clip_is_still_a_clip(tmp_path: Path) -> None:
    clip = load_encoder(tiny_encoders.clip(tmp_path / "clip"), "cpu")
    assert not isinstance(clip, PairEncoder)
    assert described(clip) == f"{clip.name}@{clip.digest}"
