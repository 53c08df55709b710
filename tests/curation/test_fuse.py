"""`fuse`: what a writer reads, which of its answers are used, and who chooses among several; with recorded writers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from curation_sets import run, write

from captune.curation.fuse import Fuse, read_reply
from captune.data import load_images
from captune.data.schemes import scheme_of
from captune.errors import CurationError, SpecError, UsageError
from captune.models.answerers import Cut, Prompt

RAW = [["Rex in {raw} Paris", "img_001"], ["a boat"], ["nothing else is known"], ["a cat"]]


class Recorded:
    """A writer that answers by what its prompt holds."""

    def __init__(self, name: str, **replies: str) -> None:
        self.label, self.replies, self.asked = name, replies, list[str]()

    def check(self) -> None: ...

    def complete(self, prompts: Sequence[Prompt], **settings: Any) -> list[str]:
        assert settings == {"max_new_tokens": 120, "temperature": 0.0, "seed": 0}
        self.asked += [prompt.text for prompt in prompts]
        said = []
        for prompt in prompts:
            raw = next(line for line in prompt.text.splitlines() if line.startswith("Raw caption: "))
            said.append(next((reply for key, reply in self.replies.items() if key in raw), "the same for all"))
        return said


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorded]:
    known = {
        "one": Recorded("one", Rex='"The dog Rex runs in Paris."', img_="A dog.\nOr a cat.", boat="  ", cat="a cat"),
        "two": Recorded("two", Rex="Rex", img_="a dog runs", boat="a boat at sea", cat="a very red cat"),
    }
    monkeypatch.setattr("captune.models.answerers.load_answerer", lambda name, **_: known[name])
    return known


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Four images; captions of a model for three, and what a detector found in the first."""
    (tmp_path / "model.jsonl").write_text(
        "".join(
            json.dumps({"image_id": f"i{n}", "caption": text}) + "\n"
            for n, text in ((0, "a dog runs"), (1, "a boat at sea"), (3, "a red cat"))
        )
    )
    dog = {"label": "dog", "score": 0.8, "box": [0, 0, 1, 1]}
    found = {"image_id": "i0", "size": [4, 4], "objects": [dog, dog, {"label": "tree", "score": 0.5}], "ocr": "BAR"}
    (tmp_path / "found.jsonl").write_text(
        json.dumps(found) + "\n" + json.dumps({"image_id": "i1", "objects": []}) + "\n"
    )
    return write(tmp_path / "set.jsonl", RAW)


def settings(tmp_path: Path, *model: str, **more: Any) -> dict[str, Any]:
    captions = [str(tmp_path / "model.jsonl")]
    return {"fuse": {"model": list(model), "captions": captions, "facts": [str(tmp_path / "found.jsonl")], **more}}


def test_a_file_that_knows_none_of_the_images_is_refused(
    source: str, writers: dict[str, Recorded], tmp_path: Path
) -> None:
    (tmp_path / "found.jsonl").write_text('{"image_id": "img/i0.jpg", "ocr": "BAR"}\n')
    with pytest.raises(CurationError, match=r"found.jsonl: no image of .* is among its 1; ids must be the same"):
        run(source, tmp_path / "other", settings(tmp_path, "one"))


def test_a_judge_that_has_no_score_chooses_nothing(source: str, writers: dict[str, Recorded], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="judge takes the highest, and less of 'repetition' is better"):
        Fuse(model=("one", "two"), captions=("x.jsonl",), judge="repetition")
    scorer = tmp_path / "judge.py"
    scorer.write_text("def f(completions, **_):\n    return [None if 'boat' in c else len(c) for c in completions]\n")
    report, rows = run(source, tmp_path / "out", settings(tmp_path, "one", "two", judge=f"{scorer}:f"))
    assert (rows[2]["verdict"], rows[2]["reason"]) == ("keep", f"no score by {scorer}:f: as it was")
    assert sum(report["records"][0]["notes"]["chosen of each writer"]) == 3, "a text with a score is chosen"


def test_what_the_writer_reads_and_what_is_used(source: str, writers: dict[str, Recorded], tmp_path: Path) -> None:
    report, rows = run(source, tmp_path / "out", settings(tmp_path, "one"))
    assert len(writers["one"].asked) == 4  # nothing is known besides of the third image
    prompt = writers["one"].asked[0]
    assert 'Raw caption: "Rex in {raw} Paris"\n' in prompt and '"a dog runs"' in prompt
    assert "objects: 2 x dog, tree; ocr: BAR" in prompt
    assert "found in the image: nothing" in writers["one"].asked[2]
    assert [(row["verdict"], row["reason"], row["after"]) for row in rows] == [
        ("change", "fused", ["The dog Rex runs in Paris."]),
        ("keep", "the writer says more than a caption: as it was", None),
        ("keep", "the writer says nothing: as it was", None),
        ("keep", "nothing to fuse it with: as it was", None),
        ("keep", "the writer says the same", None),
    ]
    unknown = {str(tmp_path / "model.jsonl"): 1, str(tmp_path / "found.jsonl"): 2}
    assert report["records"][0]["notes"] == {"writers": ["one"], "images that a file does not know": unknown}
    assert report["out"]["captions"] == 5


def test_an_answer_that_was_cut_is_not_used(source: str, writers: dict[str, Recorded], tmp_path: Path) -> None:
    writers["one"].replies["Rex"] = Cut("A brown dog on the")
    report, rows = run(source, tmp_path / "out", settings(tmp_path, "one"))
    assert (rows[0]["verdict"], rows[0]["reason"]) == ("keep", "the answer was cut off: as it was")
    assert report["records"][0]["reasons"]["keep: the answer was cut off: as it was"] == 1


def test_what_contradicts_is_refused(source: str, writers: dict[str, Recorded], tmp_path: Path) -> None:
    """The check sees the raw caption, the model's and each finding as references; ROUGE stands in for an NLI model."""
    _, rows = run(source, tmp_path / "out", settings(tmp_path, "two", check="rouge", least=0.9))
    assert [row["verdict"] for row in rows] == ["keep", "change", "change", "keep", "keep"]
    assert rows[0]["reason"] == rows[4]["reason"] == "what was written is below 0.9 by rouge: as it was"
    assert rows[1]["score"] == pytest.approx(1.0)
    writers["two"].replies["Rex"] = "2 x dog, tree"
    _, rows = run(source, tmp_path / "facts", settings(tmp_path, "two", check="rouge", least=0.8))
    assert rows[0]["verdict"] == "change", "a fact says it, and no caption"


@pytest.mark.parametrize("by", ["cider", "0.1*length + cider"])
def test_no_score_depends_on_where_a_part_ends(
    source: str, writers: dict[str, Recorded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    found = []
    for size in (1, 2, 64):
        monkeypatch.setattr("captune.curation.fuse._PART", size)
        _, rows = run(source, tmp_path / f"out{size}", settings(tmp_path, "one", "two", judge=by))
        found.append([row["score"] for row in rows])
    assert found[0] == found[1] == found[2] and len(set(found[0])) > 2


def test_several_writers_and_a_judge(source: str, writers: dict[str, Recorded], tmp_path: Path) -> None:
    report, rows = run(source, tmp_path / "out", settings(tmp_path, "one", "two", judge="length"))
    assert [row["after"] for row in rows] == [
        ["The dog Rex runs in Paris."], ["a dog runs"], ["a boat at sea"], None, ["a very red cat"]
    ]  # fmt: skip
    assert [row["reason"] for row in rows if row["after"]] == [f"fused by writer {n}" for n in (1, 2, 2, 2)]
    notes = report["records"][0]["notes"]
    assert notes["chosen of each writer"] == [1, 3] and notes["judge"].startswith("length")


def test_answers_that_are_there_are_not_asked_for_again(
    source: str, writers: dict[str, Recorded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captune.curation.fuse._PART", 1)
    run(source, tmp_path / "whole", settings(tmp_path, "two"))
    writer, real = writers["two"], writers["two"].complete

    def killed(prompts: Sequence[Prompt], **options: Any) -> list[str]:
        if len(writer.asked) == 6:
            raise RuntimeError("killed")
        return real(prompts, **options)

    writer.complete = killed  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="killed"):
        run(source, tmp_path / "out", settings(tmp_path, "two"))
    writer.complete = real  # type: ignore[method-assign]
    run(source, tmp_path / "out", settings(tmp_path, "two"))
    assert len(writer.asked) == 8
    for name in ("curation.json", "captions.jsonl", "decisions/1-fuse.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("reply", "text"),
    [("a cat", "a cat"), (' "A cat." \n', "A cat."), ("\u201cA cat\u201d", "A cat"), ('"', '"'), ('""', ""),
     ("", ""), ("Sure:\na cat", ""), ("<think>\nA cat?\n</think>\n\nA cat.", "A cat."), ("<think> A cat", "")],
)  # fmt: skip
def test_replies(reply: str, text: str) -> None:
    assert read_reply(reply)[0] == text and bool(read_reply(reply)[1]) == (not text)


def test_wrong_settings(source: str, writers: dict[str, Recorded], tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Fuse {raw}.")
    for values, message in (
        ({}, "something to fuse"),
        ({"captions": ("c",), "judge": "clip"}, "chooses among several"),
        ({"captions": ("c",), "prompt": str(tmp_path / "prompt.txt")}, "has no {captions}"),
    ):
        with pytest.raises(UsageError, match=message):
            Fuse(model=("one",), **values)
    other = write(tmp_path / "other.jsonl", [["x"]])
    (tmp_path / "other.jsonl").write_text('{"image_id": "elsewhere", "references": ["x"]}\n')
    with pytest.raises(CurationError, match="ids must be the same"):
        run(other, tmp_path / "out", settings(tmp_path, "one"))
    (tmp_path / "found.jsonl").write_text('{"image_id": "i0", "objects": [{"box": [0, 0, 1, 1]}]}\n')
    with pytest.raises(CurationError, match="line 1: objects holds no text, list of texts"):
        run(source, tmp_path / "out2", settings(tmp_path, "one"))


def on_storybook(tmp_path: Path, *model: str, **more: Any) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Twelve alt texts, fused with a true caption of each image, or with another image's where the number is odd."""
    truth = load_images("storybook:val?n=12", decode=False)
    told = [truth[i if i % 2 == 0 else (i + 1) % 12]["references"][0] for i in range(12)]
    (tmp_path / "told.jsonl").write_text(
        "".join(
            json.dumps({"image_id": image_id, "caption": text}) + "\n"
            for image_id, text in zip(truth["image_id"], told, strict=True)
        )
    )
    step = {"fuse": {"model": list(model), "captions": [str(tmp_path / "told.jsonl")], **more}}
    _, rows = run("storybook:val?n=12&caption=alt_text", tmp_path / "out", step)
    false = [
        [one.text for one in scheme_of("storybook:val").statements((row["after"] or [""])[0], scene) if not one.true]
        for row, scene in zip(rows, truth["scene"], strict=True)
    ]
    return rows, false


def test_the_grammar_writes_and_an_exact_judge_refuses_what_contradicts(tmp_path: Path) -> None:
    rows, false = on_storybook(tmp_path, "storybook")
    assert {row["reason"] for row in rows if row["verdict"] == "change"} == {"fused"}
    contradicts = [bool(own) for own in false]
    assert 4 <= sum(contradicts) <= 11
    (tmp_path / "checked").mkdir()
    checked, left = on_storybook(tmp_path / "checked", "storybook", check="nli", least=1)
    assert not any(left)
    for row, before, wrong in zip(checked, rows, contradicts, strict=True):
        if wrong:
            assert (row["verdict"], row["reason"]) == ("keep", "what was written is below 1 by nli: as it was")
        else:
            assert (row["verdict"], row["after"]) == (before["verdict"], before["after"])


def test_a_writer_that_contradicts_its_sources_is_refused_and_another_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two writers one says what cannot be true; the exact nli refuses it, and of the other what is false."""
    liar = Recorded("liar")
    liar.replies = {"": "a cat in the snow and a cup in the city"}  # a scene has one background
    monkeypatch.setattr("captune.models.answerers.load_answerer", lambda name, **_: liar)
    rows, _ = on_storybook(tmp_path, "liar", "storybook?keep=vote", judge="length", check="nli", least=1)
    assert len(liar.asked) == 12
    assert "fused by writer 1" not in {row["reason"] for row in rows}
    assert sum(row["reason"] == "fused by writer 2" for row in rows) >= 1


def test_a_grammar_is_named_with_its_settings() -> None:
    with pytest.raises(SpecError, match="keep"):
        Fuse(model=("storybook?keep=most",), captions=("c",))
