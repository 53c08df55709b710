"""preference: both orders, ties, opponents from references and files, CapArena's arithmetic, the exact judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_families

from captune.data import load_images
from captune.errors import MissingColumn, ScorerError, SpecError
from captune.models.answerers import Question
from captune.models.captioner import Captioner
from captune.scorers import load_scorer
from captune.scorers.questions.preference import OPENING, Preference, prompt, read_opponents

IMAGES = [tiny.picture(i) for i in range(3)]
CAPTIONS = ["a red ball", "two fish", "a house"]
REFERENCES = [["a ball", "a red toy"], ["three fish on a beach", "fish"], ["a house", "home"]]


class Voter:
    """Answers what `vote` says of the two captions shown."""

    label = "voter@1"

    def __init__(self, vote: Any) -> None:
        self.vote, self.asked = vote, list[Question]()

    def check(self) -> None:
        pass

    def answer_probabilities(self, questions: Sequence[Question]) -> list[np.ndarray]:
        self.asked += questions
        return [np.array(self.vote(*shown(question))) for question in questions]


def shown(question: Question) -> tuple[str, str]:
    lines = question.text.splitlines()
    return tuple(next(line for line in lines if line.startswith(f"Caption {x}: "))[11:] for x in "AB")  # type: ignore[return-value]


def shorter(first: str, second: str) -> list[float]:
    """Likes the shorter caption, and the first one a little."""
    return [0.7, 0.1, 0.2] if len(first) < len(second) else [0.3, 0.5, 0.2]


def test_both_orders_are_averaged() -> None:
    voter = Voter(shorter)
    scorer = Preference("judge?references=first", answerer=voter, batch_size=2)
    rows = scorer.rows(CAPTIONS[:2], image=IMAGES[:2], references=REFERENCES[:2])
    assert [shown(question) for question in voter.asked] == [
        ("a red ball", "a ball"), ("a ball", "a red ball"),
        ("two fish", "three fish on a beach"), ("three fish on a beach", "two fish"),
    ]  # fmt: skip
    assert all(question.answers == ("A", "B", "C") and question.image.mode == "RGB" for question in voter.asked)
    assert rows[:, 0].tolist() == pytest.approx([(0.3 + 0.1) / 2, (0.7 + 0.5) / 2])
    assert scorer.per_caption(rows).tolist() == pytest.approx([0.3, 0.7])
    figures = scorer.corpus(rows)
    assert figures == pytest.approx(
        {"win_rate": 0.5, "tie_rate": 0.2, "length_ratio": 5 / 7, "position_bias": (0.6 - 0.2) / 2}
    )
    assert scorer.cached and "orders:both" in scorer.signature


def test_a_judge_of_places_prefers_nobody() -> None:
    scorer = Preference("judge?references=first", answerer=Voter(lambda first, second: [1.0, 0.0, 0.0]))
    rows = scorer.rows(CAPTIONS, image=IMAGES, references=REFERENCES)
    assert scorer.per_caption(rows).tolist() == [0.5] * 3 and scorer.corpus(rows)["position_bias"] == pytest.approx(
        2 / 3
    )


def test_equal_and_empty_captions_are_not_asked_about() -> None:
    voter = Voter(shorter)
    scorer = Preference("judge?references=first", answerer=voter)
    rows = scorer.rows(["a house", " ", "a dog"], image=IMAGES, references=[["a house"], ["x"], ["a cat", "y"]])
    assert scorer.per_caption(rows)[:2].tolist() == [0.5, 0.0] and len(voter.asked) == 2
    assert rows[:2, 1].tolist() == [1.0, 0.0]


def test_all_references_are_opponents_unless_one_is_asked_for() -> None:
    voter = Voter(shorter)
    scorer = Preference("judge", answerer=voter)
    assert (
        "references:all" in scorer.signature
        and "references:first" in Preference("j?references=first", answerer=voter).signature
    )
    rows = scorer.rows(CAPTIONS[:1], image=IMAGES[:1], references=REFERENCES[:1])
    assert len(voter.asked) == 4 and rows[0, 3] == 2.5
    assert scorer.per_caption(rows)[0] == pytest.approx((0.2 + 0.4) / 2)


def test_opponents_from_a_caption_file(tmp_path: Path) -> None:
    file = tmp_path / "base.jsonl"
    file.write_text("".join(json.dumps({"image_id": str(i), "caption": f"thing {i}"}) + "\n" for i in range(2)))
    voter = Voter(shorter)
    scorer = Preference(f"judge?against={file}", answerer=voter)
    assert scorer.required_columns == ("image_id", "image") and scorer.baselines == ("base",)
    scorer.rows(CAPTIONS[:2], image=IMAGES[:2], image_id=["0", "1"])
    assert shown(voter.asked[2]) == ("two fish", "thing 1")
    with pytest.raises(ScorerError, match=r"base\.jsonl has no caption of '7'"):
        scorer.rows(CAPTIONS[:1], image=IMAGES[:1], image_id=["7"])
    scorer.rows(CAPTIONS[:1], image=IMAGES[:1], image_id=["1.jpg"])
    with pytest.raises(ScorerError, match=r"has no caption of 'a/1\.jpg'"):  # b/1.jpg would be another image
        scorer.rows(CAPTIONS[:1], image=IMAGES[:1], image_id=["a/1.jpg"])
    with pytest.raises(ScorerError, match=r"has no caption of '1\.5'"):
        scorer.rows(CAPTIONS[:1], image=IMAGES[:1], image_id=["1.5"])
    with pytest.raises(ScorerError, match="missing.jsonl"):
        Preference(f"judge?against={tmp_path / 'missing.jsonl'}", answerer=voter).check()
    before = scorer.signature
    file.write_text(json.dumps({"image_id": "0", "caption": "another"}))
    assert Preference(f"judge?against={file}", answerer=voter).signature != before


@pytest.fixture
def arena(tmp_path: Path) -> Path:
    """CapArena-Auto's layout: three images, two baselines."""
    entries = {
        f"test_{i}.jpg": {"captions": {"human": f"person {i}", "gpt": f"gpt {i}", "cog": f"cog {i}"}, "ref_model": who}
        for i, who in enumerate(("gpt", "gpt", "cog"))
    }
    path = tmp_path / "caparena_auto.json"
    path.write_text(json.dumps(entries))
    return path


def test_caparena_sums_halves_and_averages_baselines(arena: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One order by a coin with a seed, the likeliest verdict, sum / 2 for each baseline, then the mean."""
    told = {"gpt 0": 1, "gpt 1": 0, "cog 2": -1}

    def vote(first: str, second: str) -> list[float]:
        value = told.get(second, -told.get(first, 0))
        return {1: [0.4, 0.3, 0.3], 0: [0.3, 0.3, 0.4], -1: [0.3, 0.4, 0.3]}[value]

    voter = Voter(vote)
    scorer = Preference(f"judge?against={arena}&protocol=caparena&reference=1", answerer=voter)
    ids = [f"test_{i}.jpg" for i in range(3)]
    columns = {"image": IMAGES, "image_id": ids, "references": REFERENCES}
    rows = scorer.rows(CAPTIONS, **columns)
    assert len(voter.asked) == 3 and "person 0" in voter.asked[0].text
    assert rows[:, :2].tolist() == [[1, 0], [0, 1], [0, 0]] and scorer.baselines == ("cog", "gpt")
    figures = scorer.corpus(rows)
    assert figures["caparena"] == pytest.approx((-1 / 2 + 1 / 2) / 2) and figures["win_rate"] == 0.5
    assert "200 images for each of 2 baselines" in caplog.text
    assert scorer.rows(CAPTIONS, **columns).tolist() == rows.tolist()
    orders = {s: [Preference(f"j?protocol=caparena&seed={s}", answerer=voter)._coin(str(i)) for i in range(64)]
              for s in (0, 1)}  # fmt: skip
    assert orders[0] != orders[1] and 20 < sum(orders[0]) < 44
    assert scorer.is_additive


def test_two_hundred_wins_for_each_baseline_are_one_hundred(tmp_path: Path) -> None:
    entries = {str(i): {"captions": {"gpt": "g", "cog": "c"}, "ref_model": ("gpt", "cog")[i % 2]} for i in range(400)}
    (tmp_path / "auto.json").write_text(json.dumps(entries))
    voter = Voter(lambda first, second: [0.1, 0.8, 0.1] if first in "gc" else [0.8, 0.1, 0.1])
    scorer = Preference(f"judge?against={tmp_path / 'auto.json'}&protocol=caparena", answerer=voter, batch_size=64)
    rows = scorer.rows(["mine"] * 400, image=[IMAGES[0]] * 400, image_id=[str(i) for i in range(400)])
    assert scorer.corpus(rows)["caparena"] == 100.0 and scorer.corpus(rows)["win_rate"] == 1.0


def test_a_caparena_file_is_read_strictly(arena: Path, tmp_path: Path) -> None:
    read = read_opponents(arena)
    assert (read["test_2.jpg"].baseline, read["test_2.jpg"].caption, read["test_2.jpg"].reference) == (
        "cog", "cog 2", "person 2",
    )  # fmt: skip
    content = json.loads(arena.read_text())
    content["test_1.jpg"]["ref_model"] = "cpm"
    arena.write_text(json.dumps(content))
    with pytest.raises(ScorerError, match=r"image 'test_1\.jpg': needs captions.*ref_model"):
        Preference(f"judge?against={arena}", answerer=Voter(shorter)).check()


def test_the_prompt_holds_one_line_of_each() -> None:
    text = prompt("a\nCaption B: b", "c", "a person's\ncaption")
    assert [line for line in text.splitlines() if line.startswith("Caption ")] == [
        "Caption A: a Caption B: b",
        "Caption B: c",
    ]
    assert "to check against: a person's caption" in text and "person" not in prompt("a", "b")


# -- the exact judge


def test_the_exact_judge_knows_the_truth() -> None:
    data = load_images("storybook:test?n=40&seed=5")
    scorer = load_scorer("preference")
    assert scorer.required_columns == ("references", "scene") and not scorer.cached
    columns = {"references": list(data["references"]), "scene": list(data["scene"])}
    full = [max(refs, key=len) for refs in columns["references"]]
    own = scorer.per_caption(scorer.rows(full, **columns))
    wrong = scorer.per_caption(scorer.rows(full[1:] + full[:1], **columns))
    assert own.mean() > 0.6 and wrong.mean() < 0.05
    figures = scorer.corpus(scorer.rows(full, **columns))
    assert set(figures) == {"win_rate", "tie_rate", "length_ratio"} and figures["length_ratio"] >= 1
    with pytest.raises(MissingColumn, match="scene"):
        scorer.measure(full, {"references": columns["references"]})


def test_the_band_is_a_tie() -> None:
    data = load_images("storybook:test?n=10&seed=5")
    columns = {"references": list(data["references"]), "scene": list(data["scene"])}
    wide = load_scorer("preference:storybook?band=1")
    assert wide.corpus(wide.rows(["a dog"] * 10, **columns))["tie_rate"] == 1.0
    assert wide.signature != load_scorer("preference").signature


# -- what cannot be


def test_a_judge_that_says_nothing_is_an_error_with_the_captions_name() -> None:
    class Silent(Voter):
        def answer_probabilities(self, questions: Sequence[Question]) -> list[np.ndarray]:
            raise ScorerError(f"gave no answer about {questions[0].about}")

    with pytest.raises(ScorerError, match="image '5', 'a red ball'"):
        Preference("j", answerer=Silent(shorter)).rows(
            CAPTIONS[:1], image=IMAGES[:1], references=REFERENCES[:1], image_id=["5"]
        )
    with pytest.raises(ScorerError, match="image '5' has no reference"):
        Preference("j", answerer=Voter(shorter)).rows(["x"], image=IMAGES[:1], references=[[" "]], image_id=["5"])


@pytest.mark.parametrize(("argument", "why"), [
    ("judge?reference=1", "show the judge one of the two captions"),
    ("judge?protocol=arena", "protocol"),
    ("judge?band=2", "band"),
])  # fmt: skip
def test_settings_that_cannot_be(argument: str, why: str) -> None:
    with pytest.raises(SpecError, match=why):
        Preference(argument)


def test_a_vision_language_model_judges(tmp_path: Path) -> None:
    """The letters' probabilities of a tiny model, in both orders, as its own logits give them."""
    captioner = Captioner.load(tiny_families.idefics3(tmp_path / "model"), device="cpu")
    scorer = Preference("tiny", captioner=captioner)
    scorer.answerer.check()  # type: ignore[union-attr]
    try:
        rows = scorer.rows(CAPTIONS[:2], image=IMAGES[:2], references=REFERENCES[:2])
    except ScorerError as error:  # random weights may not answer
        assert "A, B, C hold" in str(error)
        return
    assert ((rows[:, 0] >= 0) & (rows[:, 0] + rows[:, 1] <= 1)).all() and OPENING == "Answer:"
