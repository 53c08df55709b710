"""Edits of a caption file: nothing acknowledged is lost, nothing is overwritten unseen, and the file stays whole."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from captune.annotation import edits as module
from captune.annotation.edits import Edits, Reviewed, Stale
from captune.data import read_captions
from captune.data.captions import CaptionWriter
from captune.errors import AnnotationError, CaptionFileError

HOSTILE = (
    "<script>alert(1)</script>",
    "\u202edog a\u202c שלום",
    "x" * 5000,
    "half \ud83d of it",
    "tab\tand\nline",
    "{}",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "captions.jsonl"
    rows = [{"image_id": f"{i}.jpg", "caption": f"a dog {i}", "logp": -i / 7} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MERGE_AFTER", 0.01)


def wait(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def correct(edits: Edits, image_id: str, caption: str, by: str = "anna") -> None:
    edits.correct(image_id, caption, by=by, version=edits.version(image_id))


def judge(edits: Edits, image_id: str, state: str, by: str = "anna") -> None:
    edits.judge(image_id, state, by=by, version=edits.version(image_id))


def journal(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.with_name(path.name + ".edits.jsonl").read_text().splitlines()]


def test_a_correction_is_in_the_file_and_every_other_byte_stays(path: Path) -> None:
    before = path.read_bytes().split(b"\n")
    with Edits(path) as edits:
        correct(edits, "3.jpg", "a brown dog")
        judge(edits, "4.jpg", "accepted")
        wait(lambda: read_captions(path)["3.jpg"] == "a brown dog")  # by itself, while the page is open
    after = path.read_bytes().split(b"\n")
    assert [i for i in range(len(before)) if before[i] != after[i]] == [3]
    assert json.loads(after[3]) == {"image_id": "3.jpg", "caption": "a brown dog", "logp": -3 / 7}
    first = journal(path)[0]
    assert first.pop("time").endswith("Z")
    assert first == {"by": "anna", "image_id": "3.jpg", "action": "correct", "before": "a dog 3",
                     "after": "a brown dog", "was": "open", "state": "corrected"}  # fmt: skip


def test_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    with Edits(link) as edits:
        correct(edits, "1.jpg", "one")
    assert link.is_symlink() and read_captions(path)["1.jpg"] == "one"
    path.chmod(0o640)
    with Edits(link) as edits:
        correct(edits, "1.jpg", "two")
    assert path.stat().st_mode & 0o777 == 0o640


def test_states_history_and_what_comes_of_them(path: Path) -> None:
    with Edits(path) as edits:
        correct(edits, "1.jpg", "one")
        correct(edits, "1.jpg", "one and a half", by="bob")
        correct(edits, "2.jpg", "two")
        judge(edits, "2.jpg", "rejected")
        judge(edits, "3.jpg", "accepted")
        correct(edits, "4.jpg", " a dog 4 ")  # says the same
        assert [edit.after for edit in edits.history("1.jpg")] == ["one", "one and a half"]
    seen = Reviewed(path)
    assert seen.counts() == {"open": 17, "accepted": 1, "corrected": 1, "rejected": 1}
    assert seen.references() == {"1.jpg": "one and a half", "3.jpg": "a dog 3"}
    assert seen.corrections() == {"1.jpg": ("one and a half", "a dog 1")}


def test_undo_takes_back_a_raters_own_edits_in_order_also_after_a_restart(path: Path) -> None:
    with Edits(path) as edits:
        correct(edits, "1.jpg", "one")
        judge(edits, "1.jpg", "accepted")
        judge(edits, "2.jpg", "rejected", by="bob")
        assert edits.undo("anna") == "1.jpg"
        assert edits.state("1.jpg") == "corrected"
    with Edits(path) as edits:
        edits.undo("anna")
        assert (edits.state("1.jpg"), edits.captions["1.jpg"]) == ("open", "a dog 1")
        with pytest.raises(AnnotationError, match="nothing to undo for anna"):
            edits.undo("anna")
        correct(edits, "2.jpg", "two")
        with pytest.raises(AnnotationError, match="anna has changed"):
            edits.undo("bob")
        edits.undo("anna")
        edits.undo("bob")
        assert edits.counts()["open"] == 20
    assert read_captions(path)["1.jpg"] == "a dog 1"


def test_an_edit_of_what_somebody_else_changed_is_refused(path: Path) -> None:
    with Edits(path) as edits:
        seen = edits.version("1.jpg")
        judge(edits, "1.jpg", "accepted", by="bob")
        for act in (lambda: edits.correct("1.jpg", "one", by="anna", version=seen),
                    lambda: edits.judge("1.jpg", "rejected", by="anna", version=seen)):  # fmt: skip
            with pytest.raises(Stale, match="bob has changed"):
                act()
        assert edits.state("1.jpg") == "accepted"


def test_many_raters_at_once_lose_nothing(path: Path) -> None:
    taken: list[str] = []
    refused: list[str] = []

    def work(by: str) -> None:
        for n in range(40):
            image_id = f"{n % 5}.jpg"
            version = edits.version(image_id)
            try:
                edits.correct(image_id, f"{by} {n}", by=by, version=version)
                taken.append(f"{by} {n}")
            except Stale:
                refused.append(by)

    with Edits(path) as edits:
        threads = [threading.Thread(target=work, args=(name,)) for name in ("anna", "bob", "cleo")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) + len(refused) == 120
        chains = {image_id: edits.history(image_id) for image_id in edits.captions}
    assert sorted(e.after for chain in chains.values() for e in chain) == sorted(taken)
    for image_id, chain in chains.items():  # each saw what it replaced
        assert [e.before for e in chain][1:] == [e.after for e in chain][:-1]
        assert read_captions(path)[image_id] == (chain[-1].after if chain else f"a dog {image_id[:-4]}")


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_survives(path: Path, text: str) -> None:
    with Edits(path) as edits:
        correct(edits, "1.jpg", text)
    with Edits(path) as edits:
        assert edits.captions["1.jpg"] == read_captions(path)["1.jpg"] == text.strip()


@pytest.mark.parametrize(
    ("caption", "by", "why"),
    [
        (" ", "anna", "needs a word"),
        ("x" * 20_001, "anna", "20,000"),
        ("x", " ", "who you are"),
        ("x", "a\u202e", "who you are"),
        ("x", "a" * 61, "60"),
    ],
)
def test_what_cannot_be_taken_is_refused(path: Path, caption: str, by: str, why: str) -> None:
    with Edits(path) as edits, pytest.raises(AnnotationError, match=why):
        correct(edits, "1.jpg", caption, by=by)
    assert not edits.journal.exists()  # nothing was edited: nothing is left behind


def test_random_edits_and_restarts_are_what_a_plain_model_says(path: Path) -> None:
    chance = random.Random(3)
    model = {f"{i}.jpg": (f"a dog {i}", "open") for i in range(20)}
    done: dict[str, list[tuple[str, tuple[str, str]]]] = {"anna": [], "bob": []}
    edits = Edits(path)
    for n in range(300):
        by, image_id = chance.choice(["anna", "bob"]), f"{chance.randrange(20)}.jpg"
        text, state = model[image_id]
        move = chance.randrange(10)
        if move == 0:
            edits.close()
            assert read_captions(path) == {key: value[0] for key, value in model.items()}
            edits = Edits(path)
        elif move == 1:
            mine = done[by]
            try:
                undone = edits.undo(by)
            except AnnotationError:
                continue
            assert undone == mine[-1][0]
            model[undone] = mine.pop()[1]
        elif move < 6:
            correct(edits, image_id, f"text {n}", by)
            model[image_id] = (f"text {n}", "corrected")
            done[by].append((image_id, (text, state)))
        else:
            new = chance.choice(["accepted", "rejected", "open"])
            judge(edits, image_id, new, by)
            model[image_id] = (text, new)
            if new != state:
                done[by].append((image_id, (text, state)))
        assert {key: (edits.captions[key], edits.state(key)) for key in model} == model
    edits.close()


# ---------------------------------------------------------------- what may happen to a file

WORKER = """
import sys
from captune.annotation import edits as module
from captune.annotation.edits import Edits
module.MERGE_AFTER = 0.001
edits = Edits(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    image_id, _, text = line.strip().partition(" ")
    edits.correct(image_id, text, by="anna", version=edits.version(image_id))
    print(image_id, text, flush=True)
"""


def test_kill_9_loses_no_acknowledged_edit(path: Path) -> None:
    chance = random.Random(5)
    expected = read_captions(path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for life in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        enough = chance.randrange(5, 60)
        for n in range(enough + 20):
            process.stdin.write(f"{chance.randrange(20)}.jpg life {life} edit {n}\n")
        process.stdin.flush()
        for _ in range(enough):
            image_id, _, text = process.stdout.readline().strip().partition(" ")
            expected[image_id] = text
        os.kill(process.pid, signal.SIGKILL)
        more = process.stdout.read().splitlines()  # acknowledged before the kill came
        process.stdin.close()
        process.wait()
        for line in more:
            image_id, _, text = line.partition(" ")
            expected[image_id] = text
        assert len(read_captions(path)) == 20  # whole, whenever it was killed
        seen = Reviewed(path)
        # One edit may be on the disk whose acknowledgement was still on its way.
        late = {key for key, text in expected.items() if seen.captions[key] != text}
        assert len(late) <= 1, late
        expected = dict(seen.captions)
    with Edits(path):
        pass
    assert read_captions(path) == expected


def test_a_file_that_is_behind_its_journal_is_said(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Edits(path) as edits:
        correct(edits, "1.jpg", "one")
    assert read_captions(path)["1.jpg"] == "one"
    assert not caplog.records
    with edits.journal.open("a") as file:  # as a killed page leaves it, with a torn line
        edit = {**journal(path)[0], "before": "one", "after": "one!"}
        file.write(json.dumps(edit) + "\n" + json.dumps(edit)[:40])
    with caplog.at_level(logging.WARNING):
        assert read_captions(path)["1.jpg"] == "one"
    assert "corrections of 1 captions, such as that of '1.jpg', are in captions.jsonl.edits.jsonl" in caplog.text
    with Edits(path) as edits:
        assert edits.notices == []
    assert read_captions(path)["1.jpg"] == "one!"


def test_another_programs_change_is_noticed_and_kept(path: Path) -> None:
    with Edits(path) as edits:
        correct(edits, "1.jpg", "one")
        judge(edits, "2.jpg", "accepted")
        edits.merge()
        version = edits.version("3.jpg")
        lines = path.read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        rows[1]["caption"], rows[3]["caption"] = "theirs", "theirs too"
        del rows[5]
        path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"image_id": "new", "caption": "new"}]))
        with pytest.raises(Stale, match="another program has changed"):
            edits.correct("3.jpg", "three", by="anna", version=version)
        assert (edits.captions["1.jpg"], edits.state("1.jpg"), edits.state("2.jpg")) == ("theirs", "open", "accepted")
        assert edits.captions["new"] == "new" and "5.jpg" not in edits.captions
        assert [" ".join(notice.split()[2:4]) for notice in edits.notices] == ["changed captions", "removed captions",
                                                                           "added captions"]  # fmt: skip
        correct(edits, "6.jpg", "six")
    assert read_captions(path) | {} == {**{f"{i}.jpg": f"a dog {i}" for i in range(20) if i != 5}, "new": "new",
                                        "1.jpg": "theirs", "3.jpg": "theirs too", "6.jpg": "six"}  # fmt: skip
    assert Reviewed(path).former("1.jpg") == "theirs"


def test_a_change_while_the_page_was_closed(path: Path) -> None:
    original = path.read_text()
    with Edits(path) as edits:
        correct(edits, "1.jpg", "one")
        correct(edits, "2.jpg", "two")
    path.write_text(path.read_text().replace('"one"', '"theirs"'))
    with Edits(path) as edits:
        assert (edits.captions["1.jpg"], edits.state("1.jpg")) == ("theirs", "open")
        assert (edits.captions["2.jpg"], edits.state("2.jpg")) == ("two", "corrected")
        assert len(edits.notices) == 1 and "open again" in edits.notices[0]
    path.write_text(original)  # an old copy put back is a change, too
    with Edits(path) as edits:
        assert edits.captions["2.jpg"] == "a dog 2"
    assert [e.action for e in Reviewed(path).history("1.jpg")] == ["correct", "file", "file"]


def test_a_file_that_another_program_breaks_is_not_overwritten(path: Path) -> None:
    whole = path.read_text()
    with Edits(path) as edits:
        path.write_text('{"image_id": "1.jpg"\n{}\n')
        correct(edits, "2.jpg", "two")
        wait(lambda: "cannot be read now" in edits.trouble)
        edits.merge()
        assert path.read_text() == '{"image_id": "1.jpg"\n{}\n'
        path.write_text(whole)
        wait(lambda: not edits.trouble and read_captions(path)["2.jpg"] == "two")


def test_one_process_at_a_time(path: Path) -> None:
    with Edits(path) as edits:
        with pytest.raises(CaptionFileError, match="another process is writing"):
            CaptionWriter(path)
        correct(edits, "1.jpg", "one")
        edits.merge()
        with pytest.raises(CaptionFileError, match="another process is writing"):
            CaptionWriter(path)  # the lock is on the new file
    with CaptionWriter(path), pytest.raises(CaptionFileError, match="another process is writing"):
        Edits(path)


def test_a_full_disk_takes_nothing_and_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Edits(path) as edits:
        correct(edits, "1.jpg", "one")
        edits.merge()
        with monkeypatch.context() as patch:
            patch.setattr(module.os, "fsync", full)
            with pytest.raises(AnnotationError, match="No space left on device; nothing was changed"):
                correct(edits, "2.jpg", "two")
            assert edits.captions["2.jpg"] == "a dog 2"
        correct(edits, "2.jpg", "zwei")
    assert read_captions(path)["2.jpg"] == "zwei"
    assert not list(path.parent.glob(".*tmp"))


@pytest.mark.parametrize("content", ['[{"image_id": 1, "caption": "a"}]', '{"1": "a"}'])
def test_other_formats_are_refused_with_the_remedy(tmp_path: Path, content: str) -> None:
    path = tmp_path / "captions.json"
    path.write_text(content)
    with pytest.raises(CaptionFileError, match=r"captune convert .*captions.json .*captions.jsonl"):
        Edits(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_broken_journal_is_refused(path: Path) -> None:
    path.with_name("captions.jsonl.edits.jsonl").write_text('{"image_id": "1.jpg", "state": "open"}\n')
    with pytest.raises(CaptionFileError, match="line 1 is no edit"):
        Edits(path)
