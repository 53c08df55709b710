from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fake_java
import numpy as np
import pytest

from captune.errors import ScorerError
from captune.evaluation.statistics import evaluate
from captune.scorers import load_scorer
from captune.scorers.reference.meteor import Meteor

GOLDEN = Path(__file__).parents[2] / "golden" / "meteor.json"


@pytest.fixture(scope="module")
def answers() -> dict:
    """What METEOR 1.5 answered on Java; see tests/golden/make_meteor.py."""
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(params=["flickr8k", "odd"])
def golden(request: pytest.FixtureRequest, answers: dict) -> dict:
    return answers[request.param]


# Plays the program: it knows the golden lines only, so that any other line is an error. Its output is ASCII.
PLAYER = f"""
with open({str(GOLDEN)!r}, encoding="utf-8") as file:
    corpora = json.load(file)
known = {{item["line"]: item["answer"] for key in ("flickr8k", "odd") for item in corpora[key]["items"]}}
for line in sys.stdin.buffer:
    print(known.get(line.decode("utf-8")[:-1], "Error: an unknown line"), flush=True)
"""


@pytest.fixture
def meteor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Meteor]:
    fake_java.install(tmp_path, monkeypatch, PLAYER)
    with Meteor() as scorer:
        yield scorer


def columns(golden: dict) -> tuple[list[str], list[list[str]]]:
    return [item["caption"] for item in golden["items"]], [item["references"] for item in golden["items"]]


def test_equals_pycocoevalcap(meteor: Meteor, golden: dict) -> None:
    """The lines that the program is given, every caption's figure, and the corpus figure."""
    captions, references = columns(golden)
    rows = meteor.rows(captions, references=references)
    np.testing.assert_allclose(meteor.per_caption(rows), [item["meteor"] for item in golden["items"]], atol=1e-12)
    assert meteor.corpus(rows)["meteor"] == pytest.approx(golden["corpus"], abs=1e-12)
    assert abs(meteor.corpus(rows)["meteor"] - meteor.per_caption(rows).mean()) > 1e-3  # which is not the mean


def test_the_command_line(meteor: Meteor, tmp_path: Path, answers: dict) -> None:
    captions, references = columns(answers["odd"])
    meteor.rows(captions[:1], references=references[:1])
    (run,) = fake_java.seen(tmp_path)
    jar = str(tmp_path / "pycocoevalcap" / "meteor" / "meteor-1.5.jar")
    assert run["args"][0] == "-Xmx2G"
    assert run["args"][-8:] == ["-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm"]
    assert not (tmp_path / "pycocoevalcap" / "meteor").samefile(run["cwd"])


def test_any_split_gives_the_same_rows_from_one_program(meteor: Meteor, tmp_path: Path, golden: dict) -> None:
    captions, references = columns(golden)
    whole = meteor.rows(captions, references=references)
    parts = [meteor.rows(captions[i : i + 4], references=references[i : i + 4]) for i in range(0, len(captions), 4)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert len(fake_java.seen(tmp_path)) == 1
    assert meteor.rows([], references=[]).shape == (0, 23)


def test_resampling_aggregates_as_the_program_does(meteor: Meteor, golden: dict) -> None:
    """Totals of a resample, as the bootstrap forms them, give the corpus figure of the resampled captions."""
    captions, references = columns(golden)
    rows = meteor.rows(captions, references=references)
    drawn = np.random.default_rng(0).integers(0, len(rows), size=(5, len(rows)))
    counts = np.stack([np.bincount(d, minlength=len(rows)) for d in drawn])
    several = meteor.from_totals(counts @ rows, len(rows))["meteor"]
    assert several.shape == (5,)
    one_by_one = [meteor.corpus(meteor.rows([captions[i] for i in d], references=[references[i] for i in d]))["meteor"]
                  for d in drawn]  # fmt: skip
    np.testing.assert_allclose(several, one_by_one, atol=1e-12)
    result = evaluate(captions, {"references": references}, [meteor], bootstrap=50)["meteor"]
    low, high = result.interval["meteor"]
    assert low < result.value < high


def test_a_perfect_caption_adds_no_chunk(meteor: Meteor, answers: dict) -> None:
    """The program leaves it out of the sum, so that a corpus of perfect captions scores 1."""
    item = next(item for item in answers["odd"]["items"] if item["references"] == ["a dog", "a dog"])
    assert float(item["answer"].split()[20]) == 1
    rows = meteor.rows([item["caption"]] * 3, references=[item["references"]] * 3)
    assert meteor.corpus(rows)["meteor"] == 1.0
    np.testing.assert_array_equal(meteor.per_caption(rows), 1.0)


def test_nothing_matched_is_zero() -> None:
    scorer = Meteor()
    nothing = np.zeros((2, 23))
    nothing[1, :2] = 5
    np.testing.assert_array_equal(scorer.per_caption(nothing), 0.0)
    assert scorer.corpus(nothing) == {"meteor": 0.0}


@pytest.mark.parametrize("text", ["see http://x|||y now", "<a|||b> dog", "a ||| b"])
def test_the_separator_in_a_text_does_not_make_another_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    answer = " ".join(["0.0"] * 23)
    body = f"""
        for line in sys.stdin:
            print({answer!r} if line.count("|||") == 3 and line.startswith("SCORE ||| ") else line, flush=True)
    """
    fake_java.install(tmp_path, monkeypatch, body)
    with Meteor() as scorer:
        assert scorer.rows([text], references=[[text, "b\u2028c"]]).shape == (1, 23)


def test_as_a_reward(meteor: Meteor, answers: dict) -> None:
    captions, references = columns(answers["flickr8k"])
    reward = meteor(captions[:3], prompts=None, references=references[:3])
    assert reward == pytest.approx([item["meteor"] for item in answers["flickr8k"]["items"][:3]])


@pytest.mark.parametrize("answer", ["Error: an unknown line", "1.0 2.0", "", " ".join(["NaN"] * 23)])
def test_an_answer_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    fake_java.install(tmp_path, monkeypatch, f"for line in sys.stdin: print({answer!r}, flush=True)")
    with Meteor() as scorer, pytest.raises(ScorerError, match="which is not a caption's 23 statistics"):
        scorer.rows(["a dog"], references=[["a dog"]])


def test_after_a_failure_it_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: dict) -> None:
    body = "if not os.path.exists(SEEN + '2'):\n    open(SEEN + '2', 'w').close()\n    sys.exit(1)\n" + PLAYER
    fake_java.install(tmp_path, monkeypatch, body)
    captions, references = columns(answers["flickr8k"])
    with Meteor() as scorer:
        with pytest.raises(ScorerError, match="METEOR ended with exit status 1"):
            scorer.rows(captions, references=references)
        assert scorer.corpus(scorer.rows(captions, references=references))["meteor"] == pytest.approx(
            answers["flickr8k"]["corpus"]
        )
    assert not any(fake_java.is_running(run["pid"]) for run in fake_java.seen(tmp_path))


def test_a_program_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java.install(tmp_path, monkeypatch, "time.sleep(600)")
    with pytest.raises(ScorerError, match="METEOR gave no answer for 0.5 s and was ended"):
        load_scorer("meteor:?timeout=0.5").rows(["a dog"], references=[["a dog"]])
    assert not fake_java.is_running(fake_java.seen(tmp_path)[0]["pid"])


def test_check(meteor: Meteor, tmp_path: Path) -> None:
    meteor.check()
    assert fake_java.seen(tmp_path) == []  # nothing was loaded
    (tmp_path / "pycocoevalcap" / "meteor" / "data" / "paraphrase-en.gz").unlink()
    with pytest.raises(ScorerError, match="paraphrase-en.gz is not there"):
        meteor.check()


def test_settings_and_signature() -> None:
    scorer = load_scorer("meteor:?timeout=9&memory=4G")
    assert (scorer.timeout, scorer.memory) == (9, "4G")
    assert scorer.signature == Meteor().signature  # they change nothing about the figure
    assert scorer.signature.startswith("meteor-1.5|jar:pycocoevalcap-")
    with pytest.raises(ValueError, match="takes no argument"):
        load_scorer("meteor:en")
    with pytest.raises(ValueError, match="caption 0 has no reference"):
        Meteor().rows(["a"], references=[[]])
