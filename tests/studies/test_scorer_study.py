"""The scorer study: its captions, its figures, and that it goes on where it was. Small sets, cheap scorers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captune.errors import ScorerError
from captune.scorers import load_scorer
from studies._lib.train import cycle
from studies.scorers import evaluate, experiments, tables


@pytest.mark.parametrize("n", [2, 3, 50])
def test_a_derangement_leaves_nothing_in_its_place(n: int) -> None:
    other = cycle(n)
    assert sorted(other) == list(range(n)) and all(i != j for i, j in enumerate(other))


def test_a_caption_is_cut_after_its_first_thing() -> None:
    assert experiments.cut("a big red ball left of a blue cup on the beach") == "a big red ball"
    assert experiments.cut("a red ball") == "a red ball"


def test_auc_and_preference_by_hand() -> None:
    assert tables.auc([3, 4], [1, 2]) == 1.0
    assert tables.auc([1, 2], [3, 4]) == 0.0
    assert tables.auc([1, 3], [2, 3]) == pytest.approx((0 + 0 + 1 + 0.5) / 4)
    assert tables.preferred([1, 2, None, 1], [0, 2, 1, None]) == (0.75, 2)


def facts_of(f1: float) -> dict[str, float]:
    return {"precision": f1, "recall": f1, "f1": f1, "false": 1 - f1}


def test_a_scorer_that_says_the_truth_ranks_first_and_its_opposite_last() -> None:
    facts = {"good": [facts_of(x) for x in (1.0, 0.9, 0.8)], "bad": [facts_of(x) for x in (0.1, 0.2, 0.75)]}
    right = {writer: [f["f1"] for f in own] for writer, own in facts.items()}
    wrong = {writer: [-f["f1"] for f in own] for writer, own in facts.items()}
    said = tables.ranking(right, facts)
    assert said["pairs"] == 1.0 and said["f1"] == pytest.approx(1) and said["false"] == pytest.approx(-1)
    assert tables.ranking(wrong, facts)["pairs"] == 0.0
    level = {writer: [0.0] * 3 for writer in facts}
    level["good"] = [0.0, 0.0, -9.0]  # the third image's captions differ by less than 0.1: no pair
    assert tables.ranking(level, facts)["pairs"] == 0.5


def test_the_study_scores_real_writers_and_goes_on(tmp_path: Path, monkeypatch) -> None:
    captions = evaluate.HERE.parent / "vizer" / "results" / "captions"
    writers, columns = experiments.storybook_writers(12, captions)
    facts = evaluate.truth(writers, columns)
    assert all(f["precision"] == 1 for f in facts["reference"])
    assert all(f is None or f["false"] >= 1 for f in facts["changed kind"])
    assert all(text is not None for text in writers["zero-label"])
    file = tmp_path / "storybook.json"
    evaluate.fill(["length", "rouge"], writers, columns, file, {})

    def refuse(spec: str):
        if spec == "rouge":
            raise AssertionError("rouge has its scores")
        if spec == "bleu":
            raise ScorerError("bleu is out of order")
        return load_scorer(spec)

    monkeypatch.setattr(evaluate, "load_scorer", refuse)
    done = evaluate.fill(["length", "rouge", "bleu", "cider"], writers, columns, file, {})
    assert list(done) == ["length", "rouge", "cider"] == list(json.loads(file.read_text()))
    for writer, own in done["rouge"]["scores"].items():
        assert [v is None for v in own] == [c is None for c in writers[writer]]
    assert tables.auc(done["cider"]["scores"]["reference"], done["cider"]["scores"]["wrong image"]) > 0.9

    (tmp_path / "truth.json").write_text(json.dumps({"truth": facts, "captions": writers}))
    tables.write(tmp_path)
    text = (tmp_path / "tables.md").read_text()
    assert "| cider |" in text and "signature" not in text.splitlines()[0]
