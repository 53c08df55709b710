"""Files of multiple-choice questions."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from captune.data.questions import MultipleChoice, read_questions
from captune.errors import SourceError

COLOUR = MultipleChoice("What colour is it?", ("red", "blue", "green"), 1, "attribute")
LISTED = {"question": COLOUR.text, "choices": list(COLOUR.options), "answer": "blue", "category": ["attribute", "x"]}
PLAIN = {
    "image_id": 7,
    "question": COLOUR.text,
    "options": list(COLOUR.options),
    "answer": "B",
    "category": "attribute",
}
PAIR = ["What colour is it?\n   - A) red\n   - B) blue\n   - C) green", "B"]


def written(folder: Path, content: Any, name: str = "q.json") -> Path:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / name


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"7": [LISTED]}, "q.json"),
        ([{"id": "7", "image": "7.jpg", "questions": [LISTED]}], "q.json"),
        ([{"image_id": "7", "questions": [{**LISTED, "answer": "B"}]}], "q.json"),
        ([PLAIN], "q.json"),
        (json.dumps(PLAIN) + "\n\n", "q.jsonl"),
        (json.dumps({"id": "7", "questions": [LISTED]}) + "\n", "q.jsonl"),
    ],
)
def test_every_form_is_the_same_question(content: Any, name: str, tmp_path: Path) -> None:
    read = read_questions(written(tmp_path, content, name))
    assert read.questions == {"7": (COLOUR,)} and read.of([7]) == [(COLOUR,)]  # type: ignore[list-item]
    assert len(read) == 1 and read.categories == ("attribute",)


def test_caprls_pairs_and_lettered_options(tmp_path: Path) -> None:
    refusal = "\n   - F) Can not answer based on the caption"
    assert (
        read_questions(written(tmp_path, {"7": [[PAIR[0] + refusal, "B"]]})).questions["7"][0].options == COLOUR.options
    )
    read = read_questions(written(tmp_path, {"7": [PAIR]}))
    assert read.questions["7"] == (MultipleChoice(COLOUR.text, COLOUR.options, 1),)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({**LISTED, "answer": "pink"}, "'pink' is neither the text nor the letter"),
        ({**LISTED, "answer": "D"}, "'D' is neither"),
        ({**LISTED, "answer": 1}, "1 is neither"),
        ({**LISTED, "choices": ["red"]}, "1 options"),
        ({**LISTED, "choices": [str(i) for i in range(20)]}, "20 options"),
        ({**LISTED, "choices": ["red", "blue", " blue"]}, "'blue' stands there twice"),
        ({**LISTED, "choices": "red, blue"}, "must be a list of texts"),
        ({**LISTED, "choices": ["B", "blue", "A"], "answer": "A"}, "both an option's text and another's letter"),
        ({**LISTED, "question": " "}, "must be texts"),
        ({**LISTED, "category": [{}]}, "must be texts"),
        ({"question": "What?"}, "needs question, choices or options, and answer"),
        ("What?", "neither an object nor a pair"),
        (["What?", "A"], "0 options"),
        (["", "A"], "must be texts"),
        (["What?\n - A) red\n - C) blue", "A"], "is no option B"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(entry: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"q\.json, image 'i', question 2.*") as error:
        read_questions(written(tmp_path, {"i": [LISTED, entry]}))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ({"i": []}, "image 'i': its questions are no list"),
        ([], "holds no question"),
        ([{"questions": [LISTED]}], "entry 1 does not say which image"),
        ([{"id": None, "questions": [LISTED]}], "entry 1 does not say which image"),
        ([3], "entry 1 is no object"),
        ("3", "neither a list of entries nor"),
    ],
)
def test_other_files_are_refused(content: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        read_questions(written(tmp_path, content))
    assert said in str(error.value)
    with pytest.raises(SourceError, match="cannot be read"):
        read_questions(tmp_path / "none.json")


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="line 3"):
        read_questions(written(tmp_path, json.dumps(PLAIN) + "\n\n{\n", "q.jsonl"))


def test_images_without_questions_are_refused_and_unused_ones_counted(tmp_path: Path) -> None:
    read = read_questions(written(tmp_path, {"a": [LISTED], "b": [LISTED]}))
    assert read.unused(["a"]) == 1
    with pytest.raises(SourceError, match="1 of 2 captions have no question .* 'c'; its ids look like 'a'"):
        read.of(["a", "c"])


def test_a_question_that_stands_twice_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(read_questions(written(tmp_path, {"a": [LISTED, LISTED]}))) == 2
    assert "1 questions stand there twice" in caplog.text
