from __future__ import annotations

import numpy as np
import pytest

from captune import scorers
from captune.errors import ExpressionError
from captune.evaluation import evaluate
from captune.scorers import load_reward
from captune.scorers.expression import Expression, parse
from captune.scorers.reference.cider import Cider

CAPTIONS = ["a red ball on the beach", "two dogs run", "a house", ""]
REFERENCES = [["a red ball lies on the beach"], ["two dogs are running", "dogs run"], ["a big house"], ["a cat"]]


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("cider", {"cider": 1}),
        ("cider + 0.5*clip - 0.1*length", {"cider": 1, "clip": 0.5, "length": -0.1}),
        ("cider+rouge", {"cider": 1, "rouge": 1}),
        ("-length", {"length": -1}),
        ("cider * 3", {"cider": 3}),
        ("rouge + rouge", {"rouge": 2}),
        ("1e-2*cider - rouge", {"cider": 0.01, "rouge": -1}),
        ("my/rewards-1.py:brevity", {"my/rewards-1.py:brevity": 1}),
        ("clip - 0.5*../rewards.py:brevity", {"clip": 1, "../rewards.py:brevity": -0.5}),
        ("0.5*clip:openai/clip-vit-base-patch32?w=1 - 0.1*vizer:runs/g-1/mapper",
         {"clip:openai/clip-vit-base-patch32?w=1": 0.5, "vizer:runs/g-1/mapper": -0.1}),
    ],
)  # fmt: skip
def test_parse(text: str, weights: dict[str, float]) -> None:
    assert parse(text) == pytest.approx(weights)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("cider +", "a scorer is missing here"),
        ("", "a scorer is missing here"),
        ("2 * (cider - rouge)", "brackets are not supported"),
        ("- -rouge", "cannot be read"),
        ("cider rouge", "an operator is missing"),
        ("(cider", "brackets are not supported"),
        ("cider * rouge", "by a number only"),
        ("1 / cider", "stands alone"),
        ("cider / 4", "division is not supported"),
        ("cider + 1", "stands alone"),
        ("2 * 3", "stands alone"),
        ("cider + __import__('os')", "brackets"),
        ("cider + [rouge]", "cannot be read"),
        ("cider ** 2", "by a number only"),
        ("0 * 1", "stands alone"),
    ],
)
def test_what_is_no_expression_is_refused_with_the_place(text: str, why: str) -> None:
    with pytest.raises(ExpressionError, match=why):
        parse(text)


def test_an_unknown_name_in_an_expression_answers_with_the_nearest() -> None:
    with pytest.raises(scorers.UnknownScorer, match="cider"):
        scorers.load_scorer("rouge + 0.5*cidre")


def test_a_sum_is_the_sum_of_its_parts() -> None:
    both = scorers.load_scorer("cider + 0.5*rouge - 0.1*length")
    assert isinstance(both, Expression) and both.required_columns == ("references",)
    columns = {"references": REFERENCES}
    results = evaluate(CAPTIONS, columns, [both, "cider", "rouge", "length"])
    whole, cider, rouge, length = results.values()
    assert whole.value == pytest.approx(cider.value + 0.5 * rouge.value - 0.1 * length.value)
    expected = cider.per_caption + 0.5 * rouge.per_caption - 0.1 * length.per_caption
    np.testing.assert_allclose(whole.per_caption, expected)
    low, high = whole.interval["cider + 0.5*rouge - 0.1*length"]
    assert low < whole.value < high
    assert "cider-d|" in whole.signature and "+0.5 * [rouge" in whole.signature


def test_a_sum_with_a_corpus_figure_that_is_no_sum_of_rows() -> None:
    class Longest(scorers.Scorer):
        name = "longest"

        def rows(self, captions, **columns):
            return np.array([[len(caption)] for caption in captions], dtype=float)

        def corpus(self, rows):
            return {"longest": float(rows.max())}

    both = load_reward("2*rouge")
    both.parts.append((Longest(), 3.0))
    assert not both.is_additive
    result = evaluate(CAPTIONS, {"references": REFERENCES}, [both], bootstrap=20)["2*rouge"]
    rouge = evaluate(CAPTIONS, {"references": REFERENCES}, ["rouge"])["rouge"].value
    assert result.value == pytest.approx(2 * rouge + 3 * len(CAPTIONS[0]))


def test_as_a_reward_each_part_is_asked_as_a_reward() -> None:
    with pytest.raises(ValueError, match="frozen document frequencies"):
        scorers.load_scorer("cider + rouge")(CAPTIONS, references=REFERENCES)
    frozen = Cider().fit(REFERENCES)
    both = scorers.load_scorer("cider - 0.1*length", df=frozen.df)
    rewards = both(CAPTIONS, references=REFERENCES, prompts=None, trainer_state=object())
    lengths = scorers.load_scorer("length")(CAPTIONS)
    expected = [c - 0.1 * n for c, n in zip(frozen(CAPTIONS, references=REFERENCES), lengths, strict=True)]
    assert rewards == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("bleu,rouge", ["bleu", "rouge"]),
        ("cider + 0.5*rouge, bleu", ["cider + 0.5*rouge", "bleu"]),
        ("self_retrieval:?k=1,5,length", ["self_retrieval:?k=1,5", "length"]),
        ("bleu,,", ["bleu"]),
    ],
)
def test_split_specs(text: str, specs: list[str]) -> None:
    assert scorers.split_specs(text) == specs


def test_identity_is_that_of_all_parts() -> None:
    class Cut(Cider):
        signature = "cut|truncated:25.0%"

    sum_of_both = Expression("cut + 0.5*cider", [(Cut(), 1.0), (Cider(), 0.5)])
    assert sum_of_both.identity == f"+1 * [cut] +0.5 * [{Cider().signature}]"


def test_as_a_reward_a_part_that_cannot_judge_leaves_none() -> None:
    def one(completions: list[str], **columns: object) -> list[float | None]:
        return [1.0, None, None]

    def other(completions: list[str], **columns: object) -> list[float | None]:
        return [10.0, 20.0, None]

    parts = [(scorers.from_function(function)(), weight) for function, weight in ((one, 1.0), (other, -0.5))]
    rewards = Expression("one - 0.5*other", parts)(["a", "b", "c"])
    assert np.array_equal(rewards, [-4.0, np.nan, np.nan], equal_nan=True)
    each = [[1.0, None, None], [10.0, 20.0, None]]
    assert np.array_equal(scorers.weighted_sum(each, [1.0, -0.5]), [-4.0, -10.0, np.nan], equal_nan=True)
