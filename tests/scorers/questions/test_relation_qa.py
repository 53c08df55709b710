from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny_llm

from captune.errors import ScorerError
from captune.evaluation.statistics import evaluate, paired
from captune.models.answerers import Question
from captune.models.hub import DEFAULT_ANSWERER
from captune.scorers import load_scorer
from captune.scorers.questions.relation_qa import RelationQA

QUESTIONS = {
    "1": {"Is the dog left of the cat?": "Yes", "Is the cat left of the dog?": "No", "Is the sun low?": "Yes"},
    "2": {"Is the ball on the box?": "Yes", "Is the box on the ball?": "no ", "Where is it?": "The sofa"},
}


class Reader:
    """Yes where the caption has the question's words in their order, No where it has them in another, else Unknown."""

    label = "reader@1"
    asked: list[Question]

    def __init__(self) -> None:
        self.asked = []

    def check(self) -> None:
        pass

    def answer_probabilities(self, questions: Sequence[Question]) -> list[np.ndarray]:
        self.asked += questions
        return [np.eye(3)[self._answer(q.text)] * 0.9 + 0.1 / 3 for q in questions]

    @staticmethod
    def _answer(text: str) -> int:
        caption, question = re.findall(r'Caption: "(.*)"\nQuestion: (.*)\n', text)[0]
        words = [w for w in question.strip("?").split() if w not in ("Is", "the", "of")]
        places = [caption.find(word) for word in words]
        return 2 if min(places) < 0 else 0 if places == sorted(places) else 1


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "q.json").write_text(json.dumps(QUESTIONS))
    return tmp_path / "q.json"


def test_right_wrong_and_not_stated_are_told_apart(file: Path) -> None:
    scorer = RelationQA(str(file), answerer=Reader())
    captions = ["a dog left of a cat", "", "a ball on a box", "a box on a ball"]
    rows = scorer.rows(captions, image_id=["1", "1", "2", "2"])
    assert rows.tolist() == [[1, 1, 2, 1, 1, 1], [0, 0, 2, 0, 0, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 1]]
    figures = scorer.corpus(rows)
    assert next(iter(figures)) == "relation_qa"
    assert figures == pytest.approx(
        {"relation_qa": 4 / 10, "stated": 6 / 10, "accuracy_stated": 4 / 6, "balanced": (2 / 6 + 2 / 4) / 2,
         "yes": 2 / 6, "no": 2 / 4}
    )  # fmt: skip
    np.testing.assert_allclose(scorer.per_caption(rows), [2 / 3, 0, 1, 0])


class Always(Reader):
    @staticmethod
    def _answer(text: str) -> int:
        return 0


def test_always_yes_is_seen_in_the_balanced_figure(file: Path) -> None:
    scorer = RelationQA(str(file), answerer=Always())
    figures = scorer.corpus(scorer.rows(["a dog", "a ball"], image_id=["1", "2"]))
    assert figures["relation_qa"] == 3 / 5 and figures["balanced"] == 0.5 and (figures["yes"], figures["no"]) == (1, 0)


def test_figures_without_questions_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps({"1": {"Is the dog in?": "Yes"}}))
    scorer = RelationQA(str(tmp_path / "q.json"), answerer=Reader())
    rows = scorer.rows(["a cat", "a dog in"], image_id=["1", "1"])
    assert scorer.corpus(rows) == {"relation_qa": 0.5, "stated": 0.5, "accuracy_stated": 1.0, "yes": 0.5}
    assert scorer.corpus(rows[:1]) == {"relation_qa": 0, "stated": 0, "accuracy_stated": 0, "yes": 0}
    assert paired(rows, rows[:1].repeat(2, 0), scorer, resamples=20).difference["accuracy_stated"] == 1
    name = f"relation_qa:{tmp_path / 'q.json'}"
    scorer.name = name
    result = evaluate(["a cat", "a dog in"], {"image_id": ["1", "1"]}, [scorer], bootstrap=50)[name]
    assert set(result.interval) == set(result.values)
    assert all(np.isfinite(ends).all() for ends in result.interval.values())


def test_answers_that_are_neither_are_left_out_and_counted(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader()
    scorer = RelationQA(str(file), answerer=reader)
    with caplog.at_level(logging.WARNING):
        signature = scorer.signature
    assert "1 questions are left out" in caplog.text
    assert re.fullmatch(r"relation_qa\|questions:5@\w{8}\|model:reader@1\|prompt:\w{8}\|not-stated:wrong", signature)
    file.write_text(json.dumps({**QUESTIONS, "3": {"Is it?": "No"}}))
    assert RelationQA(str(file), answerer=reader).signature != signature


def test_what_the_model_reads(file: Path) -> None:
    reader = Reader()
    RelationQA(str(file), answerer=reader).rows(['a "dog"\u2028left {of}\r\na cat 😀'], image_id=["1"])
    assert reader.asked[0].text == (
        'Answer a question about an image from its caption alone.\nCaption: "a "dog" left {of} a cat 😀"\n'
        "Question: Is the dog left of the cat?\n"
        "Answer with one word: Yes or No if the caption says so, Unknown if the caption does not state it."
    )
    assert reader.asked[0].answers == ("Yes", "No", "Unknown")


def test_an_image_without_questions_is_an_error(file: Path) -> None:
    with pytest.raises(ScorerError, match="1 of 2 captions have no question .* image '9'; its ids look like '1'"):
        RelationQA(str(file), answerer=Reader()).rows(["a", "b"], image_id=["1", "9"])


@pytest.mark.parametrize("content", ["[", "[1]", '{"1": ["Is it?"]}', "3", b"\xff\xfe"])
def test_a_file_of_another_form_is_an_error_in_a_sentence(content, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ScorerError, match="is no JSON of the form"):
        RelationQA(str(tmp_path / "q.json"), answerer=Reader()).check()
    with pytest.raises(ScorerError, match="cannot be read: No such file"):
        RelationQA(str(tmp_path / "none.json"), answerer=Reader()).check()


def test_what_must_be_named() -> None:
    with pytest.raises(ValueError, match=r"needs a file, questions.json: write 'relation_qa:questions.json\?model="):
        load_scorer("relation_qa")
    assert load_scorer("relation_qa:q.json").answerer.name == DEFAULT_ANSWERER  # no model is named
    with pytest.raises(ValueError, match="unknown setting 'modle'"):
        load_scorer("relation_qa:q.json?modle=x")


def test_a_model_that_answers(file: Path, tmp_path: Path) -> None:
    """Rows of a random model are the same for any split; one that never answers is an error, not a zero."""
    scorer = load_scorer(f"relation_qa:{file}?model={tiny_llm.llama(tmp_path / 'm')}", device="cpu")
    scorer.check()
    captions, ids = ["a dog left of a cat", "", "a ball on a box " * 5, "一只狗 😀"], ["1", "1", "2", "2"]
    rows = scorer.rows(captions, image_id=ids)
    split = [scorer.rows([c], image_id=[i]) for c, i in zip(captions, ids, strict=True)]
    assert np.concatenate(split).tolist() == rows.tolist() and rows[:, [2, 5]].sum() == 10
    mute = load_scorer(f"relation_qa:{file}?model={tiny_llm.gpt2(tmp_path / 'mute', {'t': 20.0})}", device="cpu")
    with pytest.raises(ScorerError, match=r"no answer about Is the .* \(image 1, caption 'a dog left of a cat'\)"):
        mute.rows(captions[:1], image_id=ids[:1])


def test_a_server_that_answers(file: Path) -> None:
    """It is TRL's reward, too."""

    def reply(payload: dict, n: int) -> dict:
        answer = ("Yes", "No", "Unknown")[Reader._answer(payload["messages"][0]["content"])]
        return tiny_llm.completion({answer: 0.9, "The": 0.1})

    with tiny_llm.server(reply) as (url, seen):
        scorer = load_scorer(f"relation_qa:{file}?model={url}#reader")
        assert scorer(["a dog left of a cat", "a ball on a box"], image_id=["1", "2"]) == [2 / 3, 1]
        assert len(seen) == 5 and f"model:reader@{url}|" in scorer.signature
