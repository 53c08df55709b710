"""CapRL's utility: rotations, draws, the published reading of texts, storybook's exact reader, kills."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captune.errors import SpecError
from captune.evaluation.cache import Cache
from captune.models.answerers import Prompt, Question
from captune.scorers import load_scorer
from captune.scorers.questions.qa import QA, published_letters
from captune.storybook.grammar import reference
from captune.storybook.world import sample_scene

COLOUR = {"question": "What colour is the car?", "choices": ["red", "blue", "green", "pink"], "answer": "B"}
SIZE = {"question": "How big is it?", "choices": ["big", "small"], "answer": "A"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "q.json").write_text(json.dumps({"1": [COLOUR, SIZE], "2": [SIZE]}))
    return tmp_path / "q.json"


class Biased:
    """Adds `bias` to the first letter; gives `sure` to the option whose text the caption holds, else to the last."""

    label = "biased@1"

    def __init__(self, bias: float = 0.0, sure: float = 1.0) -> None:
        self.bias, self.sure = bias, sure
        self.asked: list[Question] = []
        self.options: list[list[str]] = []

    def check(self) -> None: ...

    def answer_probabilities(self, questions: Sequence[Question]) -> list[np.ndarray]:
        return [self.answer(question) for question in questions]

    def answer(self, question: Question) -> np.ndarray:
        self.asked.append(question)
        caption, _, *lines, _ = question.text.split("\n")[1:]
        options = [line[3:] for line in lines]
        self.options.append(options)
        place = next((i for i, option in enumerate(options) if option in caption), len(options) - 1)
        p = np.full(len(options), (1 - self.sure) / len(options))
        p[place] += self.sure
        p[0] += self.bias
        return p / p.sum()


def test_every_option_stands_once_in_every_place_and_the_refusal_last(file: Path) -> None:
    reader = Biased()
    rows = QA(str(file), answerer=reader).rows(["a blue car"], image_id=["1"])
    assert rows.tolist() == [[0.5, 0.5, 0.5]]
    colours = [options for options in reader.options if "red" in options]
    assert len(colours) == 4 and len(reader.options) == 6
    for place in range(4):
        assert Counter(options[place] for options in colours) == Counter(COLOUR["choices"])
    assert {options[-1] for options in reader.options} == {"Cannot answer from the caption"}
    assert {q.answers for q in reader.asked} == {tuple("ABCDE"), tuple("ABC")}


def test_rotations_take_a_bias_for_a_place_out(file: Path) -> None:
    """A reader that adds to the first letter is the same for all keys: the mean is that of its place's average."""
    for key in "ABCD":
        file.write_text(json.dumps({"1": [{**COLOUR, "answer": key}]}))
        said = COLOUR["choices"]["ABCD".index(key)]
        row = QA(str(file), answerer=Biased(bias=1.0)).rows([f"a {said} car"], image_id=["1"])[0]
        assert row[0] == pytest.approx((1 + 3 * 0.5) / 4)
        drawn = QA(f"{file}?rotations=random&draws=400", answerer=Biased(bias=1.0)).rows(["a red car"], image_id=["1"])
        assert drawn[0, 0] == pytest.approx((1 + 3 * 0.5) / 4 if key == "A" else 0.125, abs=0.06)


def test_figures_are_means_over_captions(file: Path) -> None:
    scorer = QA(str(file), answerer=Biased())
    rows = scorer.rows(["a big blue car", "it is red", ""], image_id=["1", "1", "2"])
    assert scorer.per_caption(rows).tolist() == [1, 0, 0]
    assert scorer.corpus(rows) == pytest.approx(
        {"qa": 1 / 3, "accuracy": 1 / 3, "answered": 0.5, "accuracy_answered": 2 / 3}
    )


def test_without_the_refusal_the_reader_must_choose(file: Path) -> None:
    reader = Biased()
    scorer = QA(f"{file}?refusal=0", answerer=reader)
    assert scorer.rows([""], image_id=["2"]).tolist() == [[0.5, 1, 1]]  # a tie over all rotations goes to the first
    assert {q.answers for q in reader.asked} == {("A", "B")} and "refusal:no" in scorer.signature


def test_a_subset_of_the_questions_is_the_images(file: Path) -> None:
    file.write_text(json.dumps({i: [{**SIZE, "question": f"{i} {k}?"} for k in range(9)] for i in "abc"}))
    texts = []
    for captions, ids in ((["x", "y"], ["a", "a"]), (["z", "x"], ["b", "a"])):
        reader = Biased()
        QA(f"{file}?n=3", answerer=reader).rows(captions, image_id=ids)
        texts.append([q.text.split("\n")[2] for q in reader.asked[::2]])
    assert texts[0][:3] == texts[0][3:] == texts[1][3:] and len(set(texts[0])) == 3
    assert texts[1][0][10] == "b"


def test_random_draws_are_with_replacement_and_of_the_caption(file: Path) -> None:
    def drawn(caption: str, seed: int = 0) -> list[str]:
        reader = Biased()
        QA(f"{file}?rotations=random&draws=6&seed={seed}", answerer=reader).rows([caption], image_id=["2"])
        return [q.text for q in reader.asked]

    assert len(drawn("a")) == 6 and len(set(drawn("a"))) == 2  # one question, six times, in two orders
    assert drawn("a") == drawn("a") != drawn("a", seed=3)


class Recorded(Biased):
    def __init__(self, *texts: str) -> None:
        super().__init__()
        self.texts = texts
        self.prompts: list[Prompt] = []

    def complete(self, prompts: Sequence[Prompt], **settings: Any) -> list[str]:
        assert settings == {"max_new_tokens": 10, "temperature": 0.6}
        self.prompts += prompts
        return [self.texts[i % len(self.texts)] for i in range(len(prompts))]


@pytest.mark.parametrize(
    ("text", "letter"),
    [("B", "B"), (" B. blue", "B"), ("The answer is C", None), ("A car", "A"), ("It is D", None), ("I", None),
     ("f", None), ("F", "F"), ("", None), ("none", None), ("x C", "C")],
)  # fmt: skip
def test_published_first_capital_letter_from_a_to_i(file: Path, text: str, letter: str | None) -> None:
    """With one question of known orders: right where the first capital letter A to I is the key's."""
    file.write_text(json.dumps({"1": [COLOUR]}))
    reader = Recorded(text)
    scorer = QA(f"{file}?rotations=random&draws=40&compat=published", answerer=reader)
    row = scorer.rows(["a caption"], image_id=["1"])[0]
    keys = [next(line[2] for line in prompt.text.split("\n") if line.endswith(") blue")) for prompt in reader.prompts]
    first = next((c for c in text if c in "ABCDEFGHI"), None)
    assert (letter is None) == (first not in "ABCDF" if first else True) or text in ("The answer is C", "It is D")
    assert row[0] == pytest.approx(sum(key == first for key in keys) / 40)
    assert row[2] == float(first is not None and first in "ABCD")
    assert all("- F) Can not answer based on the caption" in prompt.text for prompt in reader.prompts)


def test_published_letters_stop_before_the_refusals() -> None:
    assert published_letters(4) == ("A", "B", "C", "D", "F")
    with pytest.raises(SpecError, match="F is the refusal"):
        published_letters(6)


def test_storybook_tells_right_captions_from_wrong_ones() -> None:
    scenes = [sample_scene("test", 7, i) for i in range(60)]
    captions = [reference(scene, random.Random(i)) for i, scene in enumerate(scenes)]
    truth = [scene.to_json() for scene in scenes]
    for spec in ("qa", "caption_qa", "qa:?n=6", "qa:?rotations=random", "qa:?hard=0"):
        scorer = load_scorer(spec)
        right = scorer.per_caption(scorer.rows(captions, scene=truth))
        wrong = scorer.per_caption(scorer.rows(captions[1:] + captions[:1], scene=truth))
        auc = (right[:, None] > wrong[None]).mean() + 0.5 * (right[:, None] == wrong[None]).mean()
        assert auc >= 0.95, spec
    assert load_scorer("qa").rows([""], scene=truth[:1]).tolist() == [[0, 0, 0]]


def test_storybooks_questions_may_go_to_a_language_model() -> None:
    reader = Biased()
    scene = sample_scene("test", 7, 0)
    rows = load_scorer("qa", answerer=reader).rows([reference(scene, random.Random(0))], scene=[scene.to_json()])
    assert 0 < rows[0, 0] <= 1 and any("Is there a" in q.text for q in reader.asked)


class Killed(Biased):
    """Ends as a killed process does, before the question with this number."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def answer(self, question: Question) -> np.ndarray:
        if len(self.asked) == self.at:
            raise KeyboardInterrupt
        return super().answer(question)


@pytest.mark.parametrize("name", ["qa", "caption_qa"])
def test_a_killed_evaluation_loses_at_most_a_batch(name: str, tmp_path: Path) -> None:
    ids = [f"i{i}" for i in range(100)]
    (tmp_path / "q.json").write_text(json.dumps({i: [COLOUR] for i in ids}))
    captions, columns = [f"blue {i}" for i in ids], {"image_id": ids}

    def scorer(reader: Biased) -> Any:
        return load_scorer(f"{name}:{tmp_path / 'q.json'}", answerer=reader, cache=Cache(tmp_path / "cache"))

    each = 4 if name == "qa" else 1
    whole = load_scorer(f"{name}:{tmp_path / 'q.json'}", answerer=Biased()).measure(captions, columns)
    with pytest.raises(KeyboardInterrupt):
        scorer(Killed(70 * each)).measure(captions, columns)
    again = Biased()
    np.testing.assert_array_equal(scorer(again).measure(captions, columns), whole)
    assert len(again.asked) == (100 - 64) * each  # four batches of 16 were kept
    last = Biased()
    scorer(last).measure(captions, columns)
    assert not last.asked
