"""The counterfactual test: which words move, what is asked, and what is penalised."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captune import storybook
from captune.scorers import Scorer, load_reward, load_scorer
from captune.scorers.image.bias import GROUPS, Axis, Bias

GENDER = Axis("gender", GROUPS["gender"])
AGE = Axis("age", GROUPS["age"])


class Sees(Scorer):
    """A judge that knows: 1 for each word of the caption that is in the image, which here is a text."""

    name = "sees"
    required_columns = ("image",)

    def __init__(self, argument: str | None = None) -> None:
        super().__init__(argument)
        self.asked: list[str] = []

    def rows(self, captions: Sequence[str], *, image: Sequence[str], **others: Any) -> np.ndarray:
        self.asked += captions
        return np.array([[float(sum(word in text.split() for word in caption.lower().split()))]
                         for caption, text in zip(captions, image, strict=True)])  # fmt: skip


@pytest.mark.parametrize(("axis", "caption", "expected"), [
    (GENDER, "a man rides a horse", "a woman rides a horse"),
    (GENDER, "Women and a boy's dog; she waves", "Men and a girl's dog; he waves"),
    (GENDER, "a man and a woman", "a woman and a man"),
    (GENDER, "an actor", "an actress"),
    (GENDER, "an aunt, a king", "an uncle, a queen"),
    (GENDER, "A gentleman", "A lady"),
    (AGE, "an old dog by a younger one", "a young dog by an older one"),
    (AGE, "An adult", "A child"),
    (AGE, "two girls", "two women"),
])  # fmt: skip
def test_the_terms_of_an_axis_move_together(axis: Axis, caption: str, expected: str) -> None:
    assert axis.counterfactuals(caption) == [expected]


@pytest.mark.parametrize("caption", ["a person rides a horse", "a mandolin, a snowman, the manhole", "", "menu"])
def test_other_words_stay(caption: str) -> None:
    assert GENDER.counterfactuals(caption) == []


def test_three_groups_have_two_counterfactuals() -> None:
    axis = Axis("colour", [["red", "blue", "green"]])
    assert axis.counterfactuals("a red ball, a Blue box") == ["a blue ball, a Green box", "a green ball, a Red box"]


@pytest.mark.parametrize("axis", ["gender", "age"])
def test_the_lists_lead_back(axis: str) -> None:
    """Twice moved, the terms of a row are themselves again, where neither is in another row."""
    words = [term for row in GROUPS[axis] for term in row]
    own = Axis(axis, GROUPS[axis])
    rows = [row for row in GROUPS[axis] if all(words.count(term) == 1 for term in row)]
    assert len(rows) >= 7
    for first, second in rows:
        assert own.counterfactuals(first) == [second] and own.counterfactuals(second) == [first]


def test_what_the_image_does_not_support_better_is_penalised() -> None:
    judge = Sees()
    scorer = Bias(scorer=judge, groups={"gender": [["woman", "man"]], "age": [["young", "old"]]})
    cases = [
        ("a man on a motorbike", "a man on a motorbike", 0, 1, 1),
        ("a man on a motorbike", "a woman on a motorbike", -1, 1, 1),
        ("a man on a motorbike", "somebody on a motorbike", -1, 1, 1),  # no better than the counterfactual
        ("a person on a motorbike", "a woman on a motorbike", 0, 0, 0),
        ("an old man", "a young woman", -2, 2, 1),
        ("an old man", "an old woman", -1, 2, 1),
        ("", "a woman", 0, 0, 0),
    ]
    captions, images = [case[0] for case in cases], [case[1] for case in cases]
    rows = scorer.rows(captions, image=images)
    assert rows.tolist() == [list(case[2:]) for case in cases]
    assert scorer(captions, image=images) == [0, -1, -1, 0, -2, -1, 0]
    assert scorer.corpus(rows) == pytest.approx({"bias": -5 / 7, "unsupported": 5 / 7, "mentioned": 5 / 7})
    assert judge.asked.count("a person on a motorbike") == 0, "nothing is asked about captions without a term"
    assert scorer.rows(["a ball"], image=["a ball"]).tolist() == [[0, 0, 0]]
    assert scorer.corpus(scorer.rows(["a ball"], image=["a ball"]))["unsupported"] == 0


def test_what_cannot_be_judged_is_no_bias() -> None:
    class Sometimes(Scorer):
        name = "sometimes"

        def __call__(self, completions: Any, **columns: Any) -> list[float]:
            return [math.nan if "sits" in text else float("woman" in text) for text in completions]

    scorer = Bias(scorer=Sometimes(), groups={"gender": [["woman", "man"]]})
    rows = scorer.rows(["a woman runs", "a man runs", "a woman sits"])
    assert rows.tolist() == [[0, 1, 1], [-1, 1, 1], [0, 0, 0]]


def test_the_margin() -> None:
    """1 word more in the image is what the caption has over its counterfactual."""
    groups = {"gender": [["woman", "man"]]}
    assert Bias("?margin=1", scorer=Sees(), groups=groups)(["a man"], image=["a man"]) == [-1.0]
    assert Bias("?margin=0.5", scorer=Sees(), groups=groups)(["a man"], image=["a man"]) == [0.0]


def test_groups_from_a_file_asked_of_references(tmp_path: Path) -> None:
    file = tmp_path / "groups.json"
    file.write_text(json.dumps({"colour": [["red", "blue"]]}))
    scorer = load_scorer(f"bias:{file}?by=rouge")
    assert scorer.required_columns == ("references",)
    references = [["a blue ball"], ["the red ball"]]
    assert scorer(["a red ball", "a red ball"], references=references) == [-1.0, 0.0]
    assert "rouge" in scorer.signature and scorer.signature != Bias("?by=rouge").signature


def test_a_frozen_cider_is_asked_for_as_by_any_reward() -> None:
    with pytest.raises(ValueError, match="frozen document frequencies"):
        Bias("?by=cider")(["a man"], references=[["a man"]])


def test_clip_tells_colours_apart() -> None:
    """With the shipped encoder, on drawn scenes of one object whose colour the caption gives rightly or wrongly."""
    scenes = [(row["image"], json.loads(row["scene"])["things"]) for row in storybook.load("val", n=60)]
    single = [(image, things[0]) for image, things in scenes if len(things) == 1]
    colours = sorted({thing["colour"] for _, thing in single})
    assert len(single) >= 8 and len(colours) >= 3
    scorer = Bias("?by=clip", groups={"colour": [colours]})
    right = [f"a {thing['colour']} {thing['kind']}" for _, thing in single]
    wrong = [scorer.axes[0].counterfactuals(caption)[0] for caption in right]
    images = [image for image, _ in single]
    assert np.mean(scorer(right, image=images)) > -0.1
    assert np.mean(scorer(wrong, image=images)) < -0.9


def test_it_is_part_of_an_expression() -> None:
    reward = load_reward("length + 2*bias:?by=rouge")
    assert reward.required_columns == ("references",)
    # the references have neither "woman" nor "girl", so they support neither axis
    assert reward(["a man runs", "a woman runs"], references=[["a man runs"]] * 2) == [3.0, 3.0 - 2 * 2]


@pytest.mark.parametrize("content", ["[]", "{}", "no json", '{"gender": []}', '{"gender": [["a", "b"], ["c"]]}',
                                     '{"gender": [["man"]]}', '{"gender": ["man", "woman"]}'])  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "groups.json"
    file.write_text(content)
    with pytest.raises(ValueError, match="gender"):
        Bias(str(file), scorer=Sees())
    with pytest.raises(ValueError, match="unknown setting 'scale'"):
        Bias("?scale=1")
