"""Every figure that a scorer gives has a declared direction, or is known to have none, and a label."""

from __future__ import annotations

import numpy as np
import pytest

from captune.scorers import SCORERS, Scorer, direction, label, load_scorer, scorer_class

REFERENCES = [["a red ball on the beach"], ["two dogs run"]]
#: What to build a scorer with that has no default, without loading a model.
SPECS = {
    "chair": "chair",
    "reward_model": "reward_model:none",
    "species": "species:{labels}?model=none",
    "relation_qa": "relation_qa:{questions}?model=none",
    "judge": "judge:some/model",
    "grc": "grc:corpus",
    "qir": "qir:corpus",
    "objects": "objects:{objects}",
}
WIDTHS = {"bleu": 10, "meteor": 23, "spice": 15, "storybook": 25, "health": 5, "diversity": 6, "bertscore": 3,
          "chair": 5, "capture": 10, "objects": 7, "attributes": 7, "relations": 7, "relation_qa": 6, "species": 4,
          "clip": 2, "detected": 4, "self_retrieval": 3, "bias": 3, "dnli": 6, "dcscore": 9, "openchair": 4,
          "preference": 6, "qa": 3, "caption_qa": 18}  # fmt: skip
#: Figures that more of is neither better nor worse.
NEITHER = {"length", "vocabulary", "mentions", "mentioned", "stated", "species_stated", "breed_stated",
           "objects_left_out", "units", "unsure", "nouns", "tie_rate", "length_ratio",
           "position_bias", "answered", "nothing_found"}  # fmt: skip


@pytest.fixture
def specs(tmp_path) -> dict[str, str]:
    files = {"labels": '{"a": {"species": "dog", "breed": "pug"}}', "questions": '{"a": {"Is it?": "Yes"}}',
             "objects": '{"a": ["dog"]}'}  # fmt: skip
    for name, text in files.items():
        (tmp_path / f"{name}.json").write_text(text)
    return {name: spec.format(**{file: tmp_path / f"{file}.json" for file in files}) for name, spec in SPECS.items()}


@pytest.mark.parametrize("name", [name for name in SCORERS if name != "vizer"])
def test_every_figure_has_a_direction_or_is_known_to_have_none(name: str, specs: dict[str, str]) -> None:
    scorer = load_scorer(specs.get(name, name))
    rows = np.ones((2, WIDTHS.get(name, 1)))
    figures = list(scorer.corpus(rows))
    assert {figure for figure in figures if direction(name, figure) is None} == NEITHER & set(figures)
    assert all(label(name, figure) for figure in figures)
    assert load_scorer(name).primary if name not in SPECS else True
    assert direction(scorer) == direction(name, figures[0])


@pytest.mark.parametrize("name", SCORERS)
def test_what_is_declared_is_data_of_the_class(name: str) -> None:
    cls = scorer_class(name)
    assert cls.primary and all(isinstance(better, bool) for better in cls.higher_is_better.values())


@pytest.mark.parametrize(
    ("spec", "better"),
    [
        ("cider", True),
        ("chair:objects.jsonl", False),
        ("-chair:objects.jsonl", True),
        ("cider + 0.5*clip - 0.1*length", True),
        ("cider - chair", True),
        ("2*chair", False),
        ("cider + chair", None),
        ("length", None),
        ("-self_bleu", True),
    ],
)
def test_a_sum_has_the_direction_that_its_terms_agree_on(spec: str, better: bool | None) -> None:
    assert direction(spec) is better


def test_former_names_of_columns_work_and_warn() -> None:
    with pytest.warns(FutureWarning, match="'needs' is now called 'required_columns'"):

        class Old(Scorer):
            name = "old"
            needs = ("image",)

    assert Old.required_columns == ("image",)
    with pytest.warns(FutureWarning):
        assert Old().needs == ("image",)


def test_a_class_with_a_corpus_figure_of_its_own_is_not_additive() -> None:
    class Longest(Scorer):
        def corpus(self, rows: np.ndarray) -> dict[str, float]:
            return {"longest": float(rows.max())}

    assert Scorer.is_additive and not Longest.is_additive
