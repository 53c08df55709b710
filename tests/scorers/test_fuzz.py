"""Random texts through every scorer that judges text alone: no crash, no NaN, the same rows for any split and order.

benchmarks/parity/fuzz_scorers.py does the same with 10,000 texts and the default models.
"""

from __future__ import annotations

import random
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captune.errors import ScorerError
from captune.scorers import SCORERS, Scorer, columns_for, load_scorer, scorer_class
from captune.scorers._support import ptb
from captune.storybook.world import sample_scene

# Scorers without images that are not tried here, and why. Whatever else is registered is tried.
SKIPPED = {
    "relation_qa": "a language model answers questions from a file: tests/scorers/test_relation_qa.py",
    "species": "a language model chooses among classes from a file: tests/scorers/test_species.py",
    "preference": "compares with a reference, which may not be blank: tests/scorers/questions/test_preference.py",
    "consensus": "compares the captions of an image with each other: tests/scorers/text/test_consensus.py",
    "grc": "searches a corpus of images and captions: tests/scorers/test_retrieval.py",
}
TEXT_SCORERS = [name for name in SCORERS if name not in SKIPPED and "image" not in scorer_class(name).required_columns]
# Columns of a row that depend on the other captions, where rows of parts are not the rows of the whole.
OF_THE_SET = {"health": [4], "diversity": [2, 3, 5], "self_bleu": [0]}
# Where a caption's own figure may be undefined although its row is not.
UNDEFINED = ("objects", "attributes", "relations")
JAVA = ("meteor", "spice")

SOME = """a an the two dog cats man's woman child ball red big T-shirt on in front of and running isn't don't it's U.S.
    Mr. St. No. 5 p.m. 3.5 1/2 $5 10% café naïve R&B and/or http://a.b/c x@y.zz #tag :) ... -- ( ) [ ] " ' `` , . ; ! ?
    left right above is are with beside ball-room well-known frisbee traffic light hot"""
WORDS = SOME.split()
SPACES = " \t\n\r\v\f\x00\x1c\x85\u00a0\u200b\u200d\u2028\u2029\u3000\ufeff\u00ad\ufe0f\u202e"
MARKS = ".,:;!?'\"`-_/\\&@#$%^*()[]{}<>|~+=\u2019\u201c\u2014\u2026\u00a3\u00bd"


def any_character(rng: random.Random) -> str:
    """Of any plane, assigned or not; no surrogate, which no text in UTF-8 can hold."""
    while True:
        character = chr(rng.randrange(rng.choice((0x80, 0x800, 0x3000, 0x10000, 0x20000, sys.maxunicode + 1))))
        if unicodedata.category(character) != "Cs":
            return character


def text(rng: random.Random) -> str:
    kind = rng.randrange(8)
    length = rng.choice((0, 1, 2, 5, 12, 30, 80))
    if kind == 0:
        return "".join(any_character(rng) for _ in range(length))
    if kind == 1:
        return "".join(rng.choice(SPACES + MARKS + "aB1") for _ in range(length))
    if kind == 2:
        return any_character(rng) * rng.choice((1, 2, 60, 400))
    words = [rng.choice(WORDS) for _ in range(min(length, 30))]
    if kind == 3:
        words = [word + rng.choice(MARKS) for word in words]
    elif kind == 4 and words:
        words.insert(rng.randrange(len(words)), "".join(any_character(rng) for _ in range(5)))
    elif kind == 5:
        words = [rng.choice((str.upper, str.title, str.swapcase))(word) for word in words]
    return rng.choice((" ", " ", " ", "", rng.choice(SPACES))).join(words)


def texts(number: int, seed: int) -> list[str]:
    """`number` random texts; one in twenty is ten times as long, one in ten comes twice."""
    rng = random.Random(seed)
    made: list[str] = []
    while len(made) < number:
        if made and rng.random() < 0.1:
            made.append(rng.choice(made))
        else:
            made.append("".join(text(rng) for _ in range(10 if rng.random() < 0.05 else 1)))
    return made


def columns(captions: list[str], seed: int) -> dict[str, list[Any]]:
    """Other captions, the caption itself or a part of it as references, and scenes."""
    rng = random.Random(seed)
    references = []
    for caption in captions:
        own = rng.choices(captions, k=rng.choice((1, 1, 2, 4)))
        cut = rng.randrange(len(caption) + 1)
        references.append(own + rng.choice(([], [caption], [caption[:cut]], [caption[cut:]])))
    scenes = [sample_scene("test", 0, index).to_json() for index in range(20)]
    return {"references": references, "scene": [rng.choice(scenes) for _ in captions]}


def fuzz(scorer: Scorer, captions: list[str], seed: int) -> dict[str, Any]:
    """Raises AssertionError; returns the corpus figures and the seconds that all of it took."""
    began = time.perf_counter()
    given = columns(captions, seed)
    chosen = {key: given[key] for key in (*scorer.required_columns, *scorer.optional_columns) if key in given}
    if scorer.name == "cider":
        scorer.fit(chosen["references"])  # type: ignore[attr-defined]
    whole = scorer.rows(captions, **columns_for(scorer, chosen, len(captions)))
    assert whole.dtype == np.float64 and whole.shape[0] == len(captions) and np.isfinite(whole).all()
    figures = scorer.corpus(whole)
    assert np.isfinite(list(figures.values())).all(), figures
    each = scorer.per_caption(whole)
    assert each.shape == (len(captions),)
    assert np.isfinite(each).all() or scorer.name in UNDEFINED

    order = np.random.default_rng(seed).permutation(len(captions))
    parts = np.split(order, np.sort(np.random.default_rng(seed).integers(1, len(captions), size=7)))
    independent = np.delete(np.arange(whole.shape[1]), OF_THE_SET.get(scorer.name, []))
    if len(independent):
        split = [
            scorer.rows(
                [captions[i] for i in part], **{key: [values[i] for i in part] for key, values in chosen.items()}
            )
            for part in parts
            if len(part)
        ]
        # sums in another order, and batches of another length in a model, differ in the last digits
        tolerance = 1e-5 if scorer.cached else 1e-12
        np.testing.assert_allclose(
            np.concatenate(split)[:, independent], whole[order][:, independent], rtol=tolerance, atol=tolerance
        )
    return {"figures": figures, "seconds": round(time.perf_counter() - began, 1)}


def test_the_list_of_those_not_tried_is_current() -> None:
    assert SKIPPED.keys() <= SCORERS.keys() and OF_THE_SET.keys() <= set(TEXT_SCORERS)
    assert {"bleu", "rouge", "cider", "health"} <= set(TEXT_SCORERS)
    assert all(
        "image" in scorer_class(name).required_columns for name in SCORERS if name not in (*TEXT_SCORERS, *SKIPPED)
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("sentence_transformers")
    import tiny_text_encoders

    return str(tiny_text_encoders.sentences(tmp_path_factory.mktemp("fuzz") / "model"))


@pytest.mark.parametrize("name", [name for name in TEXT_SCORERS if name not in JAVA])
def test_any_text(name: str, request: pytest.FixtureRequest) -> None:
    spec, number = name, 1500
    if name in ("sbert", "bertscore"):
        folder = Path(request.getfixturevalue("encoder"))
        spec = f"{name}:{folder}" if name == "sbert" else f"{name}:{folder.with_name('model-bert')}?layer=1"
    elif name in ("capture", *UNDEFINED):
        spec = f"{name}:?encoder={request.getfixturevalue('encoder')}"
    if scorer_class(name).cached:
        number = 150
    scorer = load_scorer(spec)
    scorer.name = name
    try:
        scorer.check()
    except ScorerError as error:
        pytest.skip(str(error))
    fuzz(scorer, texts(number, seed=1), seed=2)


def test_the_tokenizer_gives_words_and_single_spaces() -> None:
    for made in texts(1500, seed=3):
        tokens = ptb.tokenize(made)
        assert tokens == tokens.strip(" ") and "  " not in tokens
        assert len(tokens.splitlines()) <= 1
        assert ptb.tokenize(f"  {made}\u2028 ") == tokens
