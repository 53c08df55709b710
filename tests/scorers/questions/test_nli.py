from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_nli

from captune.errors import EvaluationError, MissingColumn, ScorerError
from captune.evaluation.statistics import evaluate
from captune.scorers import load_scorer
from captune.scorers.questions.nli import Nli
from captune.storybook.world import Scene, Thing

SCENE = Scene("beach", 3, (Thing("fish", "striped", "red", "big", 0.27, 0.27),
                           Thing("cup", None, "blue", "small", 0.73, 0.27))).to_json()  # fmt: skip


class Table:
    """The probability of a contradiction by pair."""

    label = "table@1"

    def __init__(self, table: dict[tuple[str, str], float]) -> None:
        self.table = table

    def check(self) -> None:
        pass

    def contradictions(self, pairs):
        return np.array([self.table[pair] for pair in pairs])


def test_it_is_the_papers_formula() -> None:
    table = {("a dog", "a cat"): 0.9, ("a brown dog", "a cat"): 0.7, ("a dog", "a dog runs"): 0.1}
    scorer = Nli(model=Table(table))  # type: ignore[arg-type]
    references = [["a dog", "a\n brown dog"], ["a dog"]]
    rows = scorer.rows(["a  cat", "a dog runs"], references=references)
    np.testing.assert_allclose(rows[:, 0], [0.8, 0.1])
    np.testing.assert_allclose(scorer.per_caption(rows), [2 * (1 - 0.8 - 0.5), 2 * (1 - 0.1 - 0.5)])
    assert scorer.corpus(rows) == pytest.approx({"nli": 0.1, "contradiction": 0.45})
    assert scorer.required_columns == ("references",) and scorer.cached
    assert scorer.signature == "nli|model:table@1|premise:reference|mean"


def test_a_source_judges_by_the_share_of_what_is_false() -> None:
    scorer = load_scorer("nli")
    captions = ["a big red striped fish on the beach", "a red fish left of a green cup", "", "a cat", "a lovely day"]
    scores = scorer.per_caption(scorer.measure(captions, {"scene": [SCENE] * 5}))
    np.testing.assert_allclose(scores, [1, 1 - 2 / 5, 1, -1, 1])
    assert load_scorer("nli:storybook").signature == scorer.signature == "nli|facts:storybook|contradicted:false"
    assert not scorer.cached and scorer.required_columns == ("scene",)


def test_a_model_of_transformers(tmp_path: Path) -> None:
    folder = tiny_nli.build("bart", tmp_path / "m")
    scorer = load_scorer(f"nli:{folder}", device="cpu")
    scorer.check()
    references = [["a red ball", "a ball"], ["two fish"], ["a bird"]]
    captions = ["a blue house", "two fish", ""]
    rows = scorer.rows(captions, references=references)
    single = [scorer.rows([c], references=[r]) for c, r in zip(captions, references, strict=True)]
    np.testing.assert_allclose(np.concatenate(single), rows, atol=1e-6)
    result = evaluate(captions, {"references": references}, [scorer], bootstrap=20)[scorer.name]
    assert result.value == pytest.approx(1 - 2 * rows.mean()) and -1 <= result.value <= 1
    assert scorer(captions, references=references) == pytest.approx(list(1 - 2 * rows[:, 0]))  # TRL's reward


def test_what_is_missing_is_an_error_and_no_score(tmp_path: Path) -> None:
    scorer = Nli(model=Table({}))  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match="caption 1 has no reference"):
        scorer.rows(["a", "b"], references=[["a"], []])
    with pytest.raises(MissingColumn, match="needs references"):
        scorer.measure(["a"], {"scene": [SCENE]})
    with pytest.raises(MissingColumn, match="'nli' needs scene"):
        load_scorer("nli").measure(["a"], {"references": [["a"]]})
    with pytest.raises(ScorerError, match="does not exist"):
        load_scorer(f"nli:{tmp_path / 'none'}").check()
