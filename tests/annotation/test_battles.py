"""The file of votes: what is kept when requests come twice, from two tabs, or not at all."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs captune[annotate]")

from captune.annotation.battles import VERDICTS, Battle, Battles, as_csv, counting
from captune.annotation.results import fought, results
from captune.data.judgements import OF_MODELS, SKIPPED, read_judgements
from captune.errors import AnnotationError, SourceError
from captune.evaluation.human import correlate


@pytest.fixture
def battles(tmp_path: Path) -> Battles:
    return Battles(tmp_path / "arena.sqlite")


def issued(battles: Battles, rater: str = "Ada", image: str = "1", left: str = "b", right: str = "a") -> Battle:
    return battles.issue(rater, image, (left, f"{left} says"), (right, f"{right} says"))


def test_a_vote_counts_once(battles: Battles) -> None:
    battle = issued(battles)
    assert battles.open("Ada") == [battle] and battles.open("Bob") == []
    assert battles.vote("vote-0001", battle.id, "Ada", "left")
    assert battles.vote("vote-0001", battle.id, "Ada", "left")  # sent again
    assert not battles.vote("vote-0002", battle.id, "Ada", "right")  # another tab: the first stays
    assert [own.winner for own in battles.judgements()] == ["b"]
    assert battles.open("Ada") == [] and battles.votes("Ada") == [("vote-0001", "1", "a", "b")]


def test_undo_opens_the_battle_and_keeps_the_history(battles: Battles) -> None:
    first, second = issued(battles), issued(battles, image="2")
    battles.vote("vote-0001", first.id, "Ada", "left")
    assert not battles.undo("vote-0001", "Bob")
    assert battles.undo("vote-0001", "Ada") and not battles.undo("vote-0001", "Ada")
    assert battles.open("Ada") == [first, second] and battles.judgements() == []
    assert battles.vote("vote-0001", first.id, "Ada", "left")  # a late copy of the vote that was taken back
    assert battles.judgements() == []
    assert battles.vote("vote-0003", first.id, "Ada", "tie")
    assert [own.winner for own in battles.judgements()] == ["tie"]
    assert battles.undone() == 1 and battles.open("Ada") == [second]


def test_what_a_vote_means_does_not_depend_on_sides(battles: Battles) -> None:
    for n, (left, right) in enumerate([("a", "b"), ("b", "a")]):
        for m, verdict in enumerate(VERDICTS):
            battle = issued(battles, image=f"{n}{m}", left=left, right=right)
            battles.vote(f"vote-{n}{m}00", battle.id, "Ada", verdict)
    found = battles.judgements()
    assert [own.winner for own in found] == ["a", "b", "tie", "bad", "skip", "b", "a", "tie", "bad", "skip"]
    assert {(own.system_a, own.caption_a, own.system_b, own.caption_b) for own in found} == {
        ("a", "a says", "b", "b says")
    }
    assert fought(counting(found), ["a", "b"]).outcome.tolist() == [1, -1, 0, 0, -1, 1, 0, 0]


@pytest.mark.parametrize(
    ("number", "battle", "rater", "verdict"),
    [
        ("short", 0, "Ada", "left"),
        ("vote-0001", 1, "Ada", "left"),
        ("vote-0001", 0, "Bob", "left"),
        ("vote-0001", 0, "Ada", "up"),
    ],
)
def test_what_is_no_vote_is_refused(battles: Battles, number: str, battle: int, rater: str, verdict: str) -> None:
    known = issued(battles).id
    with pytest.raises(AnnotationError):
        battles.vote(number, [known, "nothing"][battle], rater, verdict)
    assert battles.judgements() == []


def test_a_caption_that_was_judged_may_not_change(battles: Battles) -> None:
    issued(battles)
    battles.check_unchanged({"a": {"1": "a says", "2": "new"}, "c": {"1": "other"}})
    battles.check_unchanged({"a": {"2": "new"}})
    with pytest.raises(AnnotationError, match=r"1 caption has changed .* '1' of a: name another --output"):
        battles.check_unchanged({"a": {"1": "a says more"}, "b": {"1": "b says"}})


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="is not there"):
        Battles(tmp_path / "none.sqlite", new=False)
    (tmp_path / "text.sqlite").write_text("no database, but some text that is long enough")
    with pytest.raises(AnnotationError, match="cannot be used"):
        Battles(tmp_path / "text.sqlite")
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE mine (x)")
    with pytest.raises(AnnotationError, match="something else"):
        Battles(tmp_path / "other.sqlite")
    with pytest.raises(SourceError, match="no votes"):
        read_judgements(tmp_path / "other.sqlite")


def test_correlate_reads_the_file_and_its_export(battles: Battles, tmp_path: Path) -> None:
    for number, verdict in enumerate(VERDICTS):
        battle = issued(battles, image=str(number))
        battles.vote(f"vote-{number}000", battle.id, "Ada", verdict)
    (tmp_path / "votes.csv").write_text(as_csv(battles.judgements()), encoding="utf-8")
    for file in (battles.path, tmp_path / "votes.csv"):
        found = read_judgements(file)
        assert [own.winner for own in found.battles] == [-1, 1, 0, 0]
        assert found.candidates[found.battles[0].first].caption == "a says"
        assert (found.read, found.left_out) == (5, {SKIPPED: 1})
        assert found.format == ("arena" if file == battles.path else "plain")


def test_a_vote_on_an_empty_caption_is_read(battles: Battles, tmp_path: Path) -> None:
    """The page shows it as one, and `correlate` scores it."""
    battle = battles.issue("Ada", "1", ("a", ""), ("b", "a dog"))
    battles.vote("vote-1000", battle.id, "Ada", "right")
    (tmp_path / "votes.csv").write_text(as_csv(battles.judgements()), encoding="utf-8")
    for file in (battles.path, tmp_path / "votes.csv"):
        found = read_judgements(file)
        assert found.battles == [(0, 1, -1, "")] and [own.caption for own in found.candidates] == ["", "a dog"]
        assert correlate(file, scorers=["length"], bootstrap=0)["used"] == 1


def test_who_only_looked_is_no_rater(battles: Battles) -> None:
    issued(battles, rater="visitor")
    battles.vote("vote-1000", issued(battles, image="2").id, "Ada", "left")
    battles.vote("vote-2000", issued(battles, rater="Bob").id, "Bob", "skip")
    assert battles.raters() == {"Ada": 1, "Bob": 1}
    found = results(battles)
    assert [row["rater"] for row in found["raters"]] == ["Ada", "Bob"] and found["agreement"]["pairs"] == []
    assert "visitor" not in as_csv(battles.judgements())


def test_a_models_votes_are_not_a_persons(battles: Battles) -> None:
    for rater, verdict in (("model: x", "left"), ("Ada", "right"), ("Ada", "skip"), ("model: x", "tie")):
        battle = issued(battles, rater=rater, image=str(len(battles.shown())))
        battles.vote(f"vote-{battle.id}", battle.id, rater, verdict)
        found = results(battles)
        if rater != "Ada":
            continue
        assert (found["votes"], found["systems"][0]["battles"]) == (len(battles.shown()), 1)
        assert "Of models, in the agreement only: 1 vote." in " ".join(found["notes"])
    read = read_judgements(battles.path)
    assert (read.read, read.used, read.left_out) == (4, 1, {SKIPPED: 1, OF_MODELS: 2})
    exported = battles.path.with_name("votes.csv")
    exported.write_text(as_csv(battles.judgements()))
    again = read_judgements(exported)
    assert (again.read, again.used, again.left_out) == (4, 1, {SKIPPED: 1, OF_MODELS: 2})
    assert again.battles == read.battles


def test_threads_and_processes_share_a_file(battles: Battles) -> None:
    other = Battles(battles.path)
    every = [issued(battles, rater=f"r{n}") for n in range(8)]
    won: list[bool] = []

    def votes(file: Battles, tab: int) -> None:
        for n, battle in enumerate(every):
            won.append(file.vote(f"vote-{tab}{n}00", battle.id, f"r{n}", "left"))

    tabs = [
        threading.Thread(target=votes, args=(file, tab)) for tab, file in enumerate((battles, battles, other, other))
    ]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    assert sum(won) == len(battles.judgements()) == len(other.judgements()) == 8


VOTER = """
import sys
from captune.annotation.battles import Battles
battles = Battles(sys.argv[1])
for n in range(int(sys.argv[2]), 100_000):
    battle = battles.issue("Ada", str(n), ("a", "x"), ("b", "y"))
    battles.vote(f"vote-{n:06}", battle.id, "Ada", "left")
    print(n, flush=True)
"""


def test_kill_9_loses_no_vote_that_was_answered(tmp_path: Path) -> None:
    file, environment = tmp_path / "arena.sqlite", {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    answered = 0
    for round_ in range(3):
        command = [sys.executable, "-c", VOTER, str(file), str(answered + round_)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(7 + round_):
                process.stdout.readline()
                answered += 1
            process.send_signal(signal.SIGKILL)
            answered += len(process.stdout.readlines())
        kept = Battles(file)
        assert answered <= len(kept.judgements()) <= answered + round_ + 1  # one may be kept and not answered
        kept.close()
