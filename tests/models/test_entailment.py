from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_nli
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from captune.errors import ScorerError
from captune.models.entailment import EntailmentModel

PAIRS = [
    ("a red ball", "a blue ball"),
    ("two green fish and a small yellow bird", "a"),
    ("a red ball", "a blue ball"),
    ("", "一只狗 😀"),
    ("a striped fish", ""),
]


@pytest.fixture(scope="module", params=sorted(tiny_nli.LABELS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_nli.build(request.param, tmp_path_factory.mktemp(request.param) / "model")


def direct(folder: Path, premise: str, hypothesis: str) -> float:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        logits = model.eval()(**tokenizer([premise], [hypothesis], return_tensors="pt")).logits[0]
    names = {label.lower(): i for i, label in model.config.id2label.items()}
    return float(logits.double().softmax(-1)[names["contradiction"]])


def test_it_equals_the_definition_however_it_is_batched(folder: Path) -> None:
    expected = [direct(folder, *pair) for pair in PAIRS]
    assert len(set(np.round(expected, 5))) == 4
    for size in (1, 2, 32):
        found = EntailmentModel(str(folder), device="cpu", batch_size=size).contradictions(PAIRS)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert EntailmentModel(str(folder), device="cpu").contradictions([]).shape == (0,)


def test_a_caption_cannot_end_its_sequence(folder: Path) -> None:
    """BART takes the last end of a sequence for the place of its answer."""
    model = EntailmentModel(str(folder), device="cpu")
    sly, plain = model.contradictions([("a dog", "a </s> cat <mask>"), ("a dog", "a   cat  ")])
    assert np.isfinite(sly) and sly == pytest.approx(plain, abs=0.05)


def test_a_pair_is_never_cut(folder: Path) -> None:
    model = EntailmentModel(str(folder), device="cpu")
    room = {"roberta": 63}.get(folder.parent.name.rstrip("0123456789"), 64)
    assert model.limit == room
    tokens = len(model._tokenizer("ball", "ball")["input_ids"])
    fits = "ball" + " ball" * (room - tokens)
    while len(model._tokenizer("ball", fits)["input_ids"]) > room:
        fits = fits.removesuffix(" ball")
    assert np.isfinite(model.contradictions([("ball", fits)])).all()
    with pytest.raises(ScorerError, match=rf"caption 'ball ball.* tokens, more than the {room} that NLI model"):
        model.contradictions([("ball", fits + " ball" * 5)])


@pytest.mark.parametrize(
    "labels", [("LABEL_0", "LABEL_1", "LABEL_2"), ("entailment", "not_entailment"), ("contradiction", "contradictory")]
)
def test_a_model_without_one_label_for_contradictions_is_refused(labels: tuple[str, ...], tmp_path: Path) -> None:
    model = EntailmentModel(str(tiny_nli.build("roberta", tmp_path / "m", labels)), device="cpu")
    for work in (model.check, lambda: model.contradictions(PAIRS)):
        with pytest.raises(ScorerError, match=f"is no NLI model .*: its labels are {', '.join(labels)}; name one"):
            work()


def test_what_is_missing_or_damaged_is_a_sentence(tmp_path: Path) -> None:
    for name, says in [
        (str(tmp_path / "none"), "does not exist"),
        (str(tmp_path), "it has no config.json"),
        ("nobody/nothing", "is offline: run `hf download nobody/nothing`"),
    ]:
        with pytest.raises(ScorerError, match=f"NLI model.*{says}|{says}"):
            EntailmentModel(name).check()
    good = tiny_nli.build("bart", tmp_path / "good")
    for file, damage in [("model.safetensors", b"abc"), ("tokenizer.json", b"{"), ("config.json", b"{")]:
        bad = Path(shutil.copytree(good, tmp_path / file.replace(".", "_")))
        (bad / file).write_bytes(damage)
        with pytest.raises(ScorerError, match="cannot be loaded"):
            EntailmentModel(str(bad), device="cpu").contradictions(PAIRS)
    config = json.loads((good / "config.json").read_text())
    (good / "config.json").write_text(json.dumps({**config, "encoder_layers": 2}))
    with pytest.raises(ScorerError, match="tensors are missing"):
        EntailmentModel(str(good), device="cpu").contradictions(PAIRS)


def test_the_label_changes_with_the_weights_and_the_labels(tmp_path: Path) -> None:
    names = [
        EntailmentModel(str(tiny_nli.build("bart", tmp_path / "m", labels)), device="cpu").label
        for labels in (None, ("contradiction", "entailment", "neutral"), None)
    ]
    assert names[0] == names[2] != names[1] and names[0].startswith(f"{tmp_path / 'm'}@")


def test_a_model_that_gives_no_number_is_an_error(folder: Path) -> None:
    model = EntailmentModel(str(folder), device="cpu")
    own = model._model.forward

    def broken(**inputs):
        answer = own(**inputs)
        answer.logits[-1] = float("nan")
        return answer

    model._model.forward = broken
    with pytest.raises(ScorerError, match="gave no number for "):
        model.contradictions(PAIRS)
