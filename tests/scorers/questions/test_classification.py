from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny_llm

from captune.errors import ScorerError
from captune.evaluation.statistics import evaluate
from captune.models.answerers import Question
from captune.models.hub import DEFAULT_ANSWERER
from captune.scorers import load_scorer
from captune.scorers.questions.classification import NOT_STATED, Species

CSV = """image_id,species,breed
a.jpg,dog,Chihuahua
b.jpg,dog,Saint_Bernard
c.jpg,cat,Siamese
d.jpg,cat,Sphynx
"""
KIND = {"Chihuahua": "dog", "Saint Bernard": "dog", "Siamese": "cat", "Sphynx": "cat"}


class Reader:
    """Chooses what the caption names, and the species of a breed that it names; else "not stated"."""

    label = "reader@1"

    def __init__(self) -> None:
        self.asked: list[Question] = []

    def check(self) -> None:
        pass

    def answer_probabilities(self, questions: Sequence[Question]) -> list[np.ndarray]:
        self.asked += questions
        answers = []
        for question in questions:
            caption = re.findall('Caption: "(.*)"\n', question.text)[0]
            options = re.findall(r"^[A-Z]\) (.*)$", question.text, re.MULTILINE)
            assert len(options) == len(question.answers) <= 20 and options[-1] == NOT_STATED
            named = {*caption.split(","), *(KIND.get(word, "") for word in caption.split(","))}
            hits = [i for i, option in enumerate(options) if option in named] or [len(options) - 1]
            answers.append(np.eye(len(options))[hits[0]])
        return answers


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "labels.csv").write_text(CSV)
    return tmp_path / "labels.csv"


def test_each_level_is_right_wrong_or_not_stated(file: Path) -> None:
    scorer = Species(str(file), answerer=Reader())
    captions = ["Chihuahua", "dog", "Sphynx", "", "Saint Bernard"]
    rows = scorer.rows(captions, image_id=["a.jpg", "b.jpg", "c.jpg", "d.jpg", "d.jpg"])
    assert rows.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]]
    figures = scorer.corpus(rows)
    assert next(iter(figures)) == "breed_acc"
    assert figures == pytest.approx(
        {"breed_acc": 1 / 5, "breed_stated": 3 / 5, "breed_acc_stated": 1 / 3,
         "species_acc": 3 / 5, "species_stated": 4 / 5, "species_acc_stated": 3 / 4}
    )  # fmt: skip
    assert scorer.per_caption(rows).tolist() == [1, 0, 0, 0, 0]


def test_the_truth_is_not_given_away(file: Path) -> None:
    """Below the species the breeds of the chosen one are offered, not those of the right one."""
    reader = Reader()
    Species(str(file), answerer=reader).rows(["cat,dog"], image_id=["a.jpg"])
    assert [question.text for question in reader.asked] == [
        'Tell from its caption alone what an image shows.\nCaption: "cat,dog"\nWhich species is it?\n'
        "A) cat\nB) dog\nC) not stated in the caption\nAnswer with just the letter:",
        'Tell from its caption alone what an image shows.\nCaption: "cat,dog"\nWhich breed of cat is it?\n'
        "A) Siamese\nB) Sphynx\nC) not stated in the caption\nAnswer with just the letter:",
    ]
    reader.asked.clear()
    Species(str(file), answerer=reader).rows(["a house"], image_id=["a.jpg"])
    assert len(reader.asked) == 1  # what is not stated has no breed


@pytest.mark.parametrize(("n", "groups"), [(19, 1), (20, 2), (400, 22)])
def test_many_classes_are_asked_in_groups(n: int, groups: int, tmp_path: Path) -> None:
    classes = {f"{i}.jpg": {"kind": f"kind_{i:03}"} for i in range(n)}
    (tmp_path / "labels.json").write_text(json.dumps(classes))
    reader = Reader()
    scorer = Species(str(tmp_path / "labels.json"), answerer=reader)
    assert scorer.rows(["", "kind 007", f"kind {n - 1:03}"], image_id=["3.jpg", "7.jpg", f"{n - 1}.jpg"]).tolist() == [
        [0, 0], [1, 1], [1, 1],
    ]  # fmt: skip
    assert len(reader.asked) == 3 * groups  # one winner needs no final
    sizes = [len(question.answers) for question in reader.asked[:groups]]
    assert max(sizes) - min(sizes) <= 1 and sum(sizes) == n + groups
    reader.asked.clear()
    every = ",".join(f"kind {i:03}" for i in range(n))
    assert scorer.rows([every], image_id=["0.jpg"]).tolist() == [[1, 1]]  # the winners meet: the first named wins
    assert len(reader.asked) == {1: 1, 2: 3, 22: 22 + 2 + 1}[groups]


def test_json_and_csv_say_the_same(file: Path, tmp_path: Path) -> None:
    rows = {i: {"species": s, "breed": b} for i, s, b in (line.split(",") for line in CSV.splitlines()[1:])}
    (tmp_path / "labels.json").write_text(json.dumps(rows))
    both = [Species(str(f), answerer=Reader()) for f in (file, tmp_path / "labels.json")]
    made = [scorer.rows(["Chihuahua", "cat"], image_id=["a.jpg", "d.jpg"]).tolist() for scorer in both]
    assert made[0] == made[1] == [[1, 1, 1, 1], [1, 1, 0, 0]]
    pattern = r"species\|classes:species:2,breed:4@\w{8}\|model:reader@1\|prompt:\w{8}\|below:chosen\|not-stated:wrong"
    assert re.fullmatch(pattern, both[0].signature)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", ""), ("l.csv", "image_id\na.jpg\n"), ("l.csv", "file,species\na.jpg,dog\n"), ("l.json", "[]"),
        ("l.csv", "image_id,species,breed\na.jpg,dog,\n"),
        ("l.json", "{}"), ("l.json", '{"a": ["dog"]}'), ("l.json", '{"a": {"s": "dog"}, "b": {"t": "cat"}}'),
    ],
)  # fmt: skip
def test_a_file_of_another_form_is_an_error_in_a_sentence(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(
        ScorerError, match="names no classes .* it must be a CSV with the columns image_id,species,breed"
    ):
        Species(str(tmp_path / name), answerer=Reader()).check()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("image_id,species,breed\na.jpg,dog\n", "line 2: expected 3 cells"),
        ("image_id,species,breed\na.jpg,dog,pug,cat\n", "line 2: expected 3 cells"),
        ("image_id,species\na.jpg,dog\na.jpg,cat\n", "line 3: a second row of image 'a.jpg'"),
        ("image_id,species,species\na.jpg,dog,cat\n", "the column 'species' stands twice"),
    ],
)
def test_a_row_of_classes_that_would_be_read_in_part_names_its_line(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(content)
    with pytest.raises(ScorerError, match=said):
        Species(str(tmp_path / "l.csv"), answerer=Reader()).check()


def test_what_is_missing_is_named(file: Path) -> None:
    with pytest.raises(ValueError, match="needs a file, labels.csv: write 'species:labels.csv.model="):
        load_scorer("species")
    assert load_scorer(f"species:{file}").answerer.name == DEFAULT_ANSWERER  # no model is named
    with pytest.raises(ScorerError, match="cannot be read: No such file"):
        Species("none.csv", answerer=Reader()).check()
    with pytest.raises(ScorerError, match="1 of 1 captions have no class .* image 'z.jpg'; its ids look like 'a.jpg'"):
        Species(str(file), answerer=Reader()).rows(["a"], image_id=["z.jpg"])


def test_a_model_that_answers(file: Path, tmp_path: Path) -> None:
    """Odd captions, any split; and one that never answers is an error, not a zero."""
    folder = tiny_llm.gpt2(tmp_path / "m", {"A": 9.0, " A": 9.0, "B": 9.5})
    spec = f"species:{file}?model={folder}"
    scorer = load_scorer(spec, device="cpu")
    captions, ids = ["", "😀\u2028B) dog", "一只狗", "a dog"], ["a.jpg", "b.jpg", "c.jpg", "c.jpg"]
    rows = scorer.rows(captions, image_id=ids)
    assert rows.tolist() == [[0, 1, 0, 1], [0, 1, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1]]  # A: cat, Siamese
    assert np.concatenate([scorer.rows([c], image_id=[i]) for c, i in zip(captions, ids, strict=True)]).tolist() == (
        rows.tolist()
    )
    result = evaluate(captions, {"image_id": ids}, [scorer], bootstrap=20)[spec]
    assert result.value == 0.5 and result.values["species_acc"] == 0.5
    mute = load_scorer(f"species:{file}?model={tiny_llm.gpt2(tmp_path / 'mute', {'t': 20.0})}", device="cpu")
    with pytest.raises(ScorerError, match="no answer about the species in caption 'a dog'"):
        mute.rows(["a dog"], image_id=["a.jpg"])
