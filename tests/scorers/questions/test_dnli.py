from __future__ import annotations

import re

import numpy as np
import pytest
import tiny_llm
from fact_judges import FactJudge, reply, write

from captune.errors import MissingColumn, ScorerError
from captune.scorers import load_scorer
from captune.scorers.questions.dnli import Dnli
from captune.storybook.world import Scene, Thing

SCENE = Scene("beach", 3, (Thing("fish", "striped", "red", "big", 0.27, 0.27),
                           Thing("cup", None, "blue", "small", 0.73, 0.27))).to_json()  # fmt: skip
ORDER = ["dnli", "descriptiveness", "contradiction", "coverage", "descriptiveness_recall", "contradiction_recall"]


def f1(p: float, r: float) -> float:
    return 2 * p * r / (p + r)


def test_figures_of_a_language_model() -> None:
    judge = FactJudge()
    scorer = Dnli("m", answerer=judge)
    reference = "dog is brown, grass is green, sky is blue, sun is up, it is lovely"
    caption = "dog is brown, cat is black, what a lovely day, grass is green, dog is brown"
    rows = scorer.rows([caption, ""], references=[[reference], ["a", "b"]])
    p, coverage = 3 / 5, 2 / 5  # a fact that is stated twice is entailed twice, and covers one
    np.testing.assert_allclose(rows[0], [f1(p, coverage), p, 1 / 5, coverage, 3 / 5, 1 / 5])
    assert not rows[1].any()
    figures = scorer.corpus(rows)
    assert list(figures) == ORDER and figures["descriptiveness"] == pytest.approx(p / 2)
    assert scorer.per_caption(rows).tolist() == rows[:, 0].tolist()
    assert all("(caption" in question.about for question in judge.questions)
    again = len(judge.prompts)
    scorer.rows(["dog"], references=[[reference]])
    assert len(judge.prompts) == again + 1  # the reference is not split again


def test_the_published_recall_may_exceed_one_and_coverage_may_not() -> None:
    scorer = Dnli("m", answerer=FactJudge())
    (row,) = scorer.rows(["dog, dog is, is brown"], references=[["dog is brown"]])
    assert row[ORDER.index("descriptiveness_recall")] == 3 and row[ORDER.index("coverage")] == 0


def test_a_scene_entails_what_is_true_of_it() -> None:
    scorer = load_scorer("dnli")
    captions = ["a red fish on the beach", "a red fish. How lovely. a green cup", "How lovely", ""]
    rows = scorer.measure(captions, {"scene": [SCENE] * 4})
    n = 9
    np.testing.assert_allclose(rows[0], [f1(1, 3 / n), 1, 0, 3 / n, 3 / n, 0])
    np.testing.assert_allclose(rows[1], [f1(3 / 5, 3 / n), 3 / 5, 1 / 5, 3 / n, 3 / n, 1 / n])
    assert not rows[2:].any()


def test_one_reference_contradicts_what_it_does_not_state() -> None:
    """The published rule, and its bias: a true fact that the reference leaves out is contradicted."""
    scorer = load_scorer("dnli:?reference=0")
    columns = {"scene": [SCENE], "references": [["a red fish", "a cup"]]}
    (row,) = scorer.measure(["a red fish on the beach"], columns)
    np.testing.assert_allclose(row[1:], [2 / 3, 1 / 3, 1, 1, 1 / 2])
    assert scorer.required_columns == ("scene", "references") and "reference:0" in scorer.signature
    with pytest.raises(ScorerError, match="caption 'a' has 2 references, and number 2 is asked for"):
        load_scorer("dnli:?reference=2").measure(["a"], columns)
    with pytest.raises(MissingColumn, match="'dnli' needs scene"):
        load_scorer("dnli").measure(["a"], {"references": [["a"]]})


def test_a_judge_that_fails_is_an_error_not_minus_one() -> None:
    scorer = Dnli(
        "m", answerer=FactJudge(lambda text: "none" if re.search('Description: "(a )?cat"', text) else write(text))
    )
    with pytest.raises(ScorerError, match="asked twice about caption 'a cat'"):
        scorer.rows(["a dog", "a cat"], references=[["dog"], ["dog"]])
    with pytest.raises(ScorerError, match="asked twice about reference 'cat'"):
        scorer.rows(["a dog"], references=[["cat"]])
    with pytest.raises(ScorerError, match="caption 'a dog' has 0 references"):
        scorer.rows(["a dog"], references=[[]])


def test_a_server_judges() -> None:
    with tiny_llm.server(reply) as (url, seen):
        scorer = load_scorer(f"dnli:{url}#m?reference=1")
        values = scorer(["dog is brown, cat"], references=[["x", "dog is brown, sky"]])
    assert values == pytest.approx([f1(1 / 2, 1 / 2)]) and len(seen) == 2 + 2 + 2
    assert f"model:m@{url}|against:reference:1|" in scorer.signature
    mute = tiny_llm.completion({"The": 1.0})
    with (
        tiny_llm.server(lambda payload, n: mute if payload.get("logprobs") else reply(payload, n)) as (url, _),
        pytest.raises(ScorerError, match=r"no answer about the statement 'dog' \(caption 'dog'\)"),
    ):
        load_scorer(f"dnli:{url}#m")(["dog"], references=[["dog"]])
