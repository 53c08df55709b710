from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_encoders
import torch
from transformers import AutoModel, AutoProcessor

from captune.decoding import load_decoder
from captune.errors import ScorerError
from captune.evaluation.statistics import evaluate
from captune.models.encoders.clip import Encoder
from captune.scorers import load_reward, load_scorer
from captune.scorers.image.clip import ClipScore

CAPTIONS = ["a red ball", "two green fish on the beach", "", "a red ball"]
REFERENCES = [["a red ball", "a ball"], ["fish", "a small yellow bird"], ["a house"], ["a blue house on the beach"]]
IMAGES = [tiny.picture(0), tiny.picture(1, (80, 50)), tiny.picture(2), tiny.picture(0)]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return getattr(tiny_encoders, request.param)(tmp_path_factory.mktemp(request.param) / "model")


def direct(folder: Path, w: float, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """The definition, one item at a time, with the model called directly."""
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder, backend="pil")
    padding = "max_length" if model.config.model_type == "siglip" else False

    def text(t: str) -> np.ndarray:
        ids = processor.tokenizer(
            (prefix + t).strip(), padding=padding, max_length=tiny_encoders.CONTEXT, return_tensors="pt"
        )
        ids.pop("token_type_ids", None)
        with torch.no_grad():
            return model.get_text_features(**ids).pooler_output[0].double().numpy()

    def picture(image) -> np.ndarray:
        with torch.no_grad():
            pixels = processor.image_processor(images=image, return_tensors="pt")
            return model.get_image_features(**pixels).pooler_output[0].double().numpy()

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    scores, both = [], []
    for caption, image, references in zip(CAPTIONS, IMAGES, REFERENCES, strict=True):
        score = w * max(0.0, cosine(text(caption), picture(image)))
        agreement = max(0.0, max(cosine(text(caption), text(r)) for r in references))
        scores.append(score)
        both.append(2 * score * agreement / (score + agreement) if score + agreement else 0.0)
    return np.array(scores), np.array(both)


def test_equals_the_definition(folder: Path) -> None:
    scorer = load_scorer(f"clip:{folder}", device="cpu")
    rows = scorer.rows(CAPTIONS, image=IMAGES, references=REFERENCES)
    scores, both = direct(folder, 2.5, "A photo depicts ")
    np.testing.assert_allclose(rows[[0, 1, 3], 0], np.asarray(scores)[[0, 1, 3]], atol=1e-5)
    assert CAPTIONS[2].strip() == "" and rows[2].tolist() == [0, 0]  # says nothing
    np.testing.assert_allclose(rows[[0, 1, 3], 1], both[[0, 1, 3]], atol=1e-5)
    assert rows[0, 0] == pytest.approx(rows[3, 0], abs=1e-6) and rows[:, 0].max() > 0.01


def test_settings_are_in_the_spec_and_in_the_signature(folder: Path) -> None:
    scorer = load_scorer(f"clip:{folder}?w=1&prefix=", device="cpu")
    scores, _ = direct(folder, 1.0, "")
    # without a prefix the empty caption is an empty text, which the direct call cannot pad: leave it out
    keep = [0, 1, 3]
    rows = scorer.rows([CAPTIONS[i] for i in keep], image=[IMAGES[i] for i in keep])
    np.testing.assert_allclose(rows[:, 0], scores[keep], atol=1e-5)
    assert rows.shape == (3, 1)
    encoder = Encoder.load(folder, device="cpu")
    assert scorer.signature == (
        f"clipscore|model:{folder}@{encoder.digest}|w:1|prefix:none|empty:0|context:{tiny_encoders.CONTEXT}|truncated:0.0%"
    )
    with pytest.raises(ValueError, match="unknown setting 'v'"):
        load_scorer(f"clip:{folder}?v=1")


def test_evaluate_reports_both_and_the_truncation(folder: Path) -> None:
    long = "a striped fish to the left of a spotted fish " * 6
    columns = {"image": IMAGES, "references": REFERENCES}
    result = evaluate([long, *CAPTIONS[1:]], columns, [load_scorer(f"clip:{folder}", device="cpu")], bootstrap=50)
    scored = result[f"clip:{folder}"]
    assert list(scored.values) == ["clip", "ref_clip"] and set(scored.interval) == {"clip", "ref_clip"}
    assert "truncated:25.0%" in scored.signature and "w:2.5|prefix:A photo depicts|" in scored.signature


def test_missing_references_leave_the_second_figure_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    scorer = ClipScore(encoder=Encoder.load(folder, device="cpu"))
    with caplog.at_level(logging.WARNING):
        rows = scorer.rows(CAPTIONS, image=IMAGES, references=[*REFERENCES[:3], []])
    assert rows.shape == (4, 1) and "1 of 4 captions have no reference" in caplog.text
    assert list(scorer.corpus(rows)) == ["clip"]
    assert scorer.rows(CAPTIONS, image=IMAGES, references=[[]] * 4).shape == (4, 1)


def test_a_reward_encodes_each_image_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = ClipScore(encoder=Encoder.load(folder, device="cpu"), batch_size=3)
    expected = scorer.rows(CAPTIONS, image=IMAGES)[:, 0]
    encoded: list[int] = []
    encode = scorer.encoder.encode_images
    monkeypatch.setattr(scorer.encoder, "encode_images", lambda i, **k: (encoded.append(len(i)), encode(i, **k))[1])
    fresh = tiny.picture(9)
    rewards = scorer(CAPTIONS + CAPTIONS[:2], image=[*IMAGES, fresh, fresh.copy()], references=REFERENCES)
    np.testing.assert_allclose(rewards[:4], expected, atol=1e-6)
    assert encoded == [1]
    assert scorer(CAPTIONS[:1], images=[[IMAGES[0]]]) == pytest.approx(expected[:1], abs=1e-6)


def test_nothing_is_loaded_before_it_is_used() -> None:
    scorer = load_scorer("clip:no/such/folder")
    with pytest.raises(ScorerError, match="clip:no/such/folder.*does not exist"):
        scorer(["a dog"], image=[IMAGES[0]])


@pytest.mark.parametrize("name", ["no/such/folder", "typo"])
def test_a_missing_model_is_found_before_anything_is_loaded(name: str) -> None:
    with pytest.raises(ScorerError, match=f"{name}' does not exist"):
        load_reward(f"repetition + 0.5*clip:{name}").check()
    with pytest.raises(ScorerError, match=f"{name}' does not exist"):
        load_decoder(f"best-of:2:clip:{name}")
    load_scorer("clip").check()


def test_b11_saying_nothing_scores_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    scorer = ClipScore(encoder=Encoder.load(folder, device="cpu"))
    assert scorer.rows(["", " \n"], image=IMAGES[:2]).tolist() == [[0.0], [0.0]]
    assert scorer.rows(["a dog", ""], image=IMAGES[:2], references=REFERENCES[:2])[1].tolist() == [0.0, 0.0]
    assert caplog.text.count("are empty and score 0") == 1
