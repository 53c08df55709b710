"""`split`: sentences end where they end, and nothing else is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from curation_sets import run, write
from hypothesis import given, settings
from hypothesis import strategies as st

from captune.curation.split import joined, sentences


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("A dog runs. A cat sleeps.", ["A dog runs.", "A cat sleeps."]),
        ("a dog runs. a cat sleeps", ["a dog runs.", "a cat sleeps"]),
        ("A tower of 1.5 m. It leans.", ["A tower of 1.5 m.", "It leans."]),
        ("Mr. Smith and Dr. J. Doe wave. Both smile!", ["Mr. Smith and Dr. J. Doe wave.", "Both smile!"]),
        ("Fruit, e.g. apples, lie there. Why?", ["Fruit, e.g. apples, lie there.", "Why?"]),
        ("Apples, pears, etc. on a table", ["Apples, pears, etc. on a table"]),
        ("Apples, pears, etc. They shine.", ["Apples, pears, etc.", "They shine."]),
        ("Bus no. 5 stops. It is red.", ["Bus no. 5 stops.", "It is red."]),
        ("Is it a dog? no. it is a cat.", ["Is it a dog?", "no.", "it is a cat."]),
        ('He says "stop!" She waits.', ['He says "stop!"', "She waits."]),
        ("One line\n\nAnother line", ["One line", "Another line"]),
        ("Really?! Yes... maybe", ["Really?!", "Yes...", "maybe"]),
        ("example.com is on the sign", ["example.com is on the sign"]),
        ("", []),
    ],
)
def test_sentences(text: str, parts: list[str]) -> None:
    assert sentences(text) == parts


def test_clauses() -> None:
    text = "A man rows; a dog swims, while a bird, red and small, sings."
    assert sentences(text, clauses=True) == ["A man rows", "a dog swims", "while a bird, red and small, sings."]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.text(alphabet="aB1 .!?\n\"'(),;e", max_size=60), st.integers(1, 4))
def test_only_space_is_lost(text: str, shortest: int) -> None:
    parts = sentences(text)
    assert "".join("".join(parts).split()) == "".join(text.split())
    whole = joined(parts, shortest)
    assert "".join("".join(whole).split()) == "".join(text.split())
    assert len(whole) < 2 or all(len(part.split()) >= shortest for part in whole[:-1])


def test_short_captions_stay(tmp_path: Path) -> None:
    source = write(
        tmp_path / "set.jsonl", [["A dog runs. A cat sleeps.", "A dog runs far away. A cat sleeps in it. Yes."]]
    )
    report, rows = run(source, tmp_path / "out", {"split": {"longer": 6}})
    assert [row["verdict"] for row in rows] == ["keep", "split"]
    assert rows[1]["after"] == ["A dog runs far away.", "A cat sleeps in it. Yes."]
    assert report["records"][0]["notes"] == {"captions by their number of parts": {"2": 1}}
