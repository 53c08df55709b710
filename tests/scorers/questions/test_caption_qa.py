"""CaptionQA: the published script's arithmetic on recorded replies, and where the default differs."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captune.data.questions import MultipleChoice
from captune.errors import ScorerError, SpecError
from captune.models.answerers import Prompt, Question
from captune.scorers import load_scorer
from captune.scorers.questions.caption_qa import CaptionQA, is_yes_no, is_yes_no_published, published_answer
from captune.storybook.world import sample_scene

FIXTURES = Path(__file__).parent / "fixtures"
QUESTIONS = FIXTURES / "caption_qa_questions.json"
CAPTIONS = json.loads((FIXTURES / "caption_qa_captions.json").read_text())
#: What CaptionQA's qa.py (f729489) gave for these replies: {image: [score, is_correct, is_cannot_answer]}.
PUBLISHED = json.loads((FIXTURES / "caption_qa_published.json").read_text())


class Recorded:
    """Replies in the order of the questions."""

    label = "recorded@1"

    def __init__(self) -> None:
        self.replies = json.loads((FIXTURES / "caption_qa_replies.json").read_text())
        self.prompts: list[Prompt] = []

    def check(self) -> None: ...

    def complete(self, prompts: Sequence[Prompt], **settings: Any) -> list[str]:
        assert settings == {"max_new_tokens": 4, "temperature": 0.0}
        self.prompts += prompts
        return [self.replies.pop(0) for _ in prompts]


class Says(Recorded):
    """Gives the letter of the option with a text, wherever it stands; else the first."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked = texts, []

    def answer_probabilities(self, questions: Sequence[Question]) -> list[np.ndarray]:
        self.asked += questions
        found = []
        for question in questions:
            lines = [line[3:] for line in question.text.split("\n") if line[1:3] == ") "]
            assert len(lines) == len(question.answers)
            place = next((lines.index(text) for text in self.texts if text in lines), 0)
            found.append(np.eye(len(lines))[place] * 0.8 + 0.2 / len(lines))
        return found


def test_published_scores_are_those_of_the_released_script() -> None:
    answerer = Recorded()
    scorer = CaptionQA(f"{QUESTIONS}?compat=published", answerer=answerer)
    rows = scorer.rows(list(CAPTIONS.values()), image_id=list(CAPTIONS))
    every = [entry for own in PUBLISHED.values() for entry in own]
    assert {tuple(entry[1:]) for entry in every} == {(True, False), (False, True), (False, False)}
    for row, own in zip(rows, PUBLISHED.values(), strict=True):
        assert row[:4].tolist() == pytest.approx([*np.sum(own, axis=0), len(own)])
    figures = scorer.corpus(rows)
    assert figures["caption_qa"] == pytest.approx(sum(entry[0] for entry in every) / len(every), abs=1e-12)
    # as its summary prints them
    assert {k[9:]: v for k, v in figures.items() if k.startswith("accuracy_")} == pytest.approx(
        {"action": 1, "attribute": 0.5, "existence": 0, "spatial": 0.5, "text": 1}
    )
    assert answerer.prompts[0].text.count("\n\n") == 4 and "E. " in answerer.prompts[0].text


def test_the_default_offers_a_refusal_wherever_the_options_are_not_yes_and_no() -> None:
    scorer = CaptionQA(str(QUESTIONS), answerer=Says("Cannot answer from the caption"))
    figures = scorer.corpus(scorer.rows(list(CAPTIONS.values()), image_id=list(CAPTIONS)))
    points = [1 / k + 0.05 for k in (4, 3, 2, 3, 5, 3, 3, 4)]  # all but "Is there a cat?", whose first option is taken
    assert figures["cannot_ratio"] == pytest.approx(8 / 9)
    assert figures["caption_qa"] == pytest.approx((sum(points) + figures["accuracy"] * 9) / 9)
    published = {
        question.text
        for own in scorer.file.questions.values()  # type: ignore[union-attr]
        for question in own
        if is_yes_no_published(question) and not is_yes_no(question)
    }
    assert published == {"Which side is the lake on?", "Is the car left or right of the tree?", "Are the doors open?",
                         "Which title is on top?"}  # fmt: skip


def test_points_are_one_a_little_or_nothing() -> None:
    right = CaptionQA(str(QUESTIONS), answerer=Says("black", "No", "north", "left", "3"))
    rows = right.rows(["a"], image_id=["nat_001"])
    assert rows[0, :4].tolist() == [5, 5, 0, 5] and right.per_caption(rows).tolist() == [1]
    wrong = CaptionQA(str(QUESTIONS), answerer=Says("brown", "Yes", "south", "right", "1"))
    assert wrong.rows(["a"], image_id=["nat_001"])[0, :4].tolist() == [0, 0, 0, 5]


@pytest.mark.parametrize(
    ("text", "n", "place"),
    [
        ("B", 4, 1), ("b.", 4, 1), ("The answer is C", 4, 2), ("E", 4, None), ("A 3", 2, 0), ("E 3", 4, 2),
        ("12", 4, None), ("", 4, None), ("A\nB", 4, 1), ("A\nno", 4, None), ("Answer: D", 4, 3), ("A</think>B", 4, 1),
        ("black", 4, None), ("A dog", 4, 0), ("0", 4, None),
    ],
)  # fmt: skip
def test_published_replies(text: str, n: int, place: int | None) -> None:
    assert published_answer(text, n) == place


@pytest.mark.parametrize(
    ("options", "ours", "theirs"),
    [
        (("Yes", "No"), True, True), (("no.", "YES"), True, True), (("Yes", "No", "Unclear"), False, True),
        (("eyes", "nose"), False, True), (("red", "blue"), False, False),
    ],
)  # fmt: skip
def test_yes_and_no(options: tuple[str, ...], ours: bool, theirs: bool) -> None:
    question = MultipleChoice("What?", options, 0)
    assert (is_yes_no(question), is_yes_no_published(question)) == (ours, theirs)


def test_the_order_of_options_is_a_function_of_question_and_seed() -> None:
    says = [Says("x"), Says("x"), Says("x")]
    for answerer, seed in zip(says, (0, 0, 1), strict=True):
        CaptionQA(f"{QUESTIONS}?seed={seed}", answerer=answerer).rows(["a", "b"], image_id=["nat_001", "nat_002"])
    alone = Says("x")
    CaptionQA(str(QUESTIONS), answerer=alone).rows(["b"], image_id=["nat_002"])
    texts = [[q.text for q in answerer.asked] for answerer in (*says, alone)]
    assert texts[0] == texts[1] != texts[2] and texts[0][5:] == texts[3]


def test_images_without_questions_are_refused_and_the_unused_counted(caplog: pytest.LogCaptureFixture) -> None:
    scorer = CaptionQA(str(QUESTIONS), answerer=Says("x"))
    with pytest.raises(ScorerError, match="1 of 2 captions have no question"):
        scorer.measure(["a", "b"], {"image_id": ["nat_001", "other"]})
    with caplog.at_level(logging.WARNING):
        scorer.measure(["a"], {"image_id": ["nat_001"]})
    assert "2 of the 3 images" in caplog.text


class Broken(Says):
    def __init__(self, answers: Any) -> None:
        super().__init__("x")
        self.answers = answers

    def answer_probabilities(self, questions: Sequence[Question]) -> list[np.ndarray]:
        if isinstance(self.answers, Exception):
            raise self.answers
        return [np.array(self.answers)] * (len(questions) - (not len(self.answers)))


@pytest.mark.parametrize("answers", [[0.5, 0.5], [np.nan] * 5, [0.0] * 5, [2.0, -1, 0, 0, 0], []])
@pytest.mark.parametrize("name", ["caption_qa", "qa"])
def test_nonsense_is_an_error_that_names_the_question(name: str, answers: list[float]) -> None:
    scorer = load_scorer(f"{name}:{QUESTIONS}", answerer=Broken(answers))
    with pytest.raises(ScorerError, match=r"What colour is the dog\?.*nat_001|gave \d+ answers"):
        scorer.rows(["a caption"], image_id=["nat_001"])


def test_storybook_needs_no_file_and_no_model() -> None:
    scorer = load_scorer("caption_qa")
    assert scorer.required_columns == ("scene",)
    scene = sample_scene("test", 0, 0).to_json()
    figures = scorer.corpus(scorer.rows(["", "a nice view"], scene=[scene] * 2))
    assert figures["accuracy"] == 0 and 0.2 < figures["caption_qa"] < 0.4 < figures["cannot_ratio"]


@pytest.mark.parametrize(
    "spec", ["caption_qa:?compat=published", f"caption_qa:{QUESTIONS}?model=storybook", "caption_qa:?compat=what",
             "qa:?compat=published", f"qa:{QUESTIONS}?model=m&compat=published", f"qa:{QUESTIONS}?model=storybook"]
)  # fmt: skip
def test_settings_that_cannot_be_together(spec: str) -> None:
    with pytest.raises(SpecError):
        load_scorer(spec)


def test_a_bad_file_is_found_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text("{}")
    with pytest.raises(ScorerError, match="holds no question"):
        CaptionQA(str(tmp_path / "q.json"), answerer=Says("x")).check()
