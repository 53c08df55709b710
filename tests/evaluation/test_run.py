"""What the command line's own tests do not show: failing scorers, "all", corrections, the cache."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_text_encoders

from captune import scorers
from captune.cli.main import main
from captune.data import load_references
from captune.errors import EvaluationError, ScorerError
from captune.evaluation.run import evaluate_files
from captune.evaluation.statistics import holm
from captune.evaluation.table import table
from captune.scorers import Scorer
from captune.scorers.reference.sentence_similarity import SbertSimilarity

SAID = {f"i{i}": f"a {c} ball number {i} on the beach" for i, c in enumerate(["red", "blue", "green", "pink"] * 5)}


class Fragile(Scorer):
    """Works, breaks while it works, or says beforehand that it cannot."""

    name = "fragile"
    required_columns = ("image_id",)
    cached = True
    calls = 0

    def __init__(self, argument: str | None = None) -> None:
        self.argument = argument

    def check(self) -> None:
        if self.argument == "absent":
            raise ScorerError("its jar is missing: pip install jar")

    def rows(self, captions, *, image_id, **columns):
        type(self).calls += 1
        "".join(captions).encode()  # as every model's tokenizer does
        if self.argument == "breaks" and "poor" in captions[0]:
            raise ScorerError("the server went away")
        return np.array([[float(i[1:])] for i in image_id])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    Fragile.calls = 0
    chosen = {name: scorers.SCORERS.targets[name] for name in ("bleu", "length", "clip", "vizer")}
    monkeypatch.setattr(scorers.SCORERS, "targets", {**chosen, "fragile": Fragile})
    references, good, poor = tmp_path / "references.json", tmp_path / "good.jsonl", tmp_path / "poor.jsonl"
    references.write_text(json.dumps({k: [v] for k, v in SAID.items()}))
    good.write_text("".join(json.dumps({"image_id": k, "caption": v}) + "\n" for k, v in SAID.items()))
    poor.write_text("".join(json.dumps({"image_id": k, "caption": f"poor {v[:6]}"}) + "\n" for k, v in SAID.items()))
    return references, good, poor


def test_captions_that_are_their_own_references_are_noticed(files) -> None:
    references, good, poor = files
    (said,) = evaluate_files([good, poor], references=references, scorers=["bleu"])["warnings"]
    assert said.startswith(f"all 20 captions of {good} stand word for word among their references: does {references}")
    rows = good.read_text().splitlines()
    good.write_text("\n".join([*rows[:-1], json.dumps({"image_id": "i19", "caption": "another"})]) + "\n")
    assert evaluate_files([good, poor], references=references, scorers=["bleu"])["warnings"] == []


@pytest.mark.parametrize("how", ["absent", "breaks"])
def test_a_scorer_that_fails_takes_no_others_scores_with_it(files, how, capsys) -> None:
    references, good, poor = map(str, files)
    result = evaluate_files([good, poor], references=references, scorers=["bleu", f"fragile:{how}", "length"])
    assert list(result["scores"]) == list(result["others"][0]["scores"]) == ["bleu", "length"]
    assert list(result["failed"]) == [f"fragile:{how}"]
    assert main(["evaluate", good, poor, "--references", references, "--scorers", f"bleu,fragile:{how}",
                 "--no-cache"]) == 1  # fmt: skip
    out, err = capsys.readouterr()
    assert "bleu_4" in out and "fragile" in err
    with pytest.raises(EvaluationError, match="fragile"):
        evaluate_files([poor], references=references, scorers=[f"fragile:{how}"])


def test_captions_that_a_scorer_cuts_are_said_of_each_file(files, tmp_path, monkeypatch) -> None:
    pytest.importorskip("sentence_transformers")
    references, good, poor = files
    folder = tiny_text_encoders.sentences(tmp_path / "model")
    monkeypatch.setitem(scorers.SCORERS.targets, "sbert", SbertSimilarity)
    lines = poor.read_text().splitlines()
    cut = [json.dumps(json.loads(line) | {"caption": "a cat in " * 20}) for line in lines[:5]]
    poor.write_text("\n".join([*cut, *lines[5:]]) + "\n")
    spec = f"sbert:{folder}"
    result = evaluate_files([good, poor], scorers=[spec, "length"], references=references, bootstrap=0, cache=None)
    said = f"5 of the 20 captions in {poor} are too long for {spec}, which judges their beginnings"
    assert [warning for warning in result["warnings"] if "too long" in warning] == [said]


def test_all_scores_what_can_be_scored_and_says_why_not_the_rest(files) -> None:
    references, good, _ = map(str, files)
    result = evaluate_files([good], references=references, scorers=["all"])
    assert list(result["scores"]) == ["bleu", "length", "fragile"]
    assert set(result["skipped"]) == {"image", "clip", "vizer"} and not result["failed"]
    assert "needs image" in result["skipped"]["clip"]
    assert "not scored, clip: needs image" in table(result)


def test_costly_rows_are_kept_between_evaluations(files, tmp_path) -> None:
    references, good, _ = map(str, files)
    first = evaluate_files([good], references=references, scorers=["fragile"], cache=tmp_path / "kept")
    again = evaluate_files([good], references=references, scorers=["fragile"], cache=tmp_path / "kept")
    assert Fragile.calls == 1 and first == again
    evaluate_files([good], references=references, scorers=["fragile"])
    assert Fragile.calls == 2


def test_many_tests_are_corrected(files) -> None:
    references, good, poor = map(str, files)
    result = evaluate_files([good, poor], references=references, scorers=["bleu", "length"], paired=True, bootstrap=99)
    tests = [t for own in result["others"][0]["paired"].values() for t in own.values()]
    assert len(tests) == 5
    assert [t["p_holm"] for t in tests] == pytest.approx(holm([t["p_value"] for t in tests]))
    assert all(t["p_holm"] >= t["p_value"] for t in tests)
    assert "p_holm" in table(result)
    none = evaluate_files([good, poor], references=references, scorers=["bleu"], paired=True, bootstrap=0)
    tests = none["others"][0]["paired"]["bleu"].values()
    assert {(test["interval"], test["p_value"], test.get("p_holm")) for test in tests} == {(None, None, None)}
    assert all(test["difference"] < 0 for test in tests) and table(none)


def test_images_without_references_are_left_out_of_the_scorers_that_need_them(files, tmp_path) -> None:
    references, good, poor = files
    some = {key: [text] for key, text in list(SAID.items())[:-2]} | {"i18": [], "i19": ["  "]}
    references.write_text(json.dumps(some))
    ask = {"scorers": ["bleu", "length"], "paired": True, "per_image": True, "bootstrap": 20}
    found = evaluate_files([good, poor], references=str(references), **ask)
    assert found["unreferenced"] == ["i18", "i19"] and found["matched"] == 20
    own, said = found["warnings"]
    assert own.startswith("all 18 captions of")
    assert (
        "2 of the 20 captioned images have no reference in" in said and "(i18, i19); bleu are of the other 18" in said
    )
    assert {spec: score["n"] for spec, score in found["scores"].items()} == {"bleu": 18, "length": 20}
    assert "(of 18 images)" in table(found)
    rows = {row["image_id"]: row for row in found["per_image"] if row["file"] == str(good)}
    assert rows["i19"]["bleu"] is None and rows["i17"]["bleu"] == pytest.approx(1) and rows["i19"]["length"] > 0

    for file in (good, poor):  # the figures are those of the other images alone
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:-2]))
    alone = evaluate_files([good, poor], references=str(references), **ask)
    assert not alone["unreferenced"]
    for one, other in ((found, alone), (found["others"][0], alone["others"][0])):
        assert one["scores"]["bleu"] == other["scores"]["bleu"]
    assert found["others"][0]["paired"]["bleu"]["bleu_4"]["difference"] == pytest.approx(
        alone["others"][0]["paired"]["bleu"]["bleu_4"]["difference"]
    )
    references.write_text(json.dumps({key: [] for key in SAID}))
    with pytest.raises(EvaluationError, match="none of the 18 captioned images, such as 'i0', has a reference in"):
        evaluate_files([good], references=str(references), scorers=["bleu"])


def test_where_the_references_are_is_said(tmp_path) -> None:
    folder, captions, coco = tmp_path / "photos", tmp_path / "a.jsonl", tmp_path / "coco.json"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        tiny.picture(0).save(folder / name)
    (folder / "captions.csv").write_text("image,caption\na.png,a cup\nb.png,a cat\n")
    captions.write_text(
        "".join(json.dumps({"image_id": name, "caption": "a cup"}) + "\n" for name in ("a.png", "b.png"))
    )
    with pytest.raises(EvaluationError, match=r"may stand in .*captions\.csv, which is a source"):
        evaluate_files([captions], references=str(folder), scorers=["bleu"])
    rows = [{"image_id": number, "id": number, "caption": "a cup"} for number in (1, 2)]
    coco.write_text(json.dumps({"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
                                "annotations": rows}))  # fmt: skip
    with pytest.raises(EvaluationError, match=r"calls an image by its number: caption --images 'FILE.json\?images"):
        evaluate_files([captions], references=str(coco), scorers=["bleu"])


def test_references_of_some_of_the_images_leave_the_others_to_scorers_that_need_none(tmp_path) -> None:
    ids = list(load_references(source := "storybook:test?n=4"))
    captions, some = tmp_path / "a.jsonl", tmp_path / "some.json"
    captions.write_text("".join(json.dumps({"image_id": i, "caption": "a red cup"}) + "\n" for i in [*ids, "strange"]))
    some.write_text(json.dumps({i: ["a red cup"] for i in ids[:3]}))
    ask = {"references": str(some), "scorers": ["rouge", "length"], "bootstrap": 0}
    found = evaluate_files([captions], images=source, **ask)
    assert {spec: score["n"] for spec, score in found["scores"].items()} == {"rouge": 3, "length": 4}
    assert found["unreferenced"] == ids[3:]
    strange, own, unreferenced = found["warnings"]
    assert own.startswith("all 3 captions of")
    assert strange.startswith("1 of the 5 captions") and f"({ids[3]}); rouge are of the other 3" in unreferenced
    assert evaluate_files([captions], **ask)["matched"] == 3  # the references alone say which images are meant


def test_unopened_and_unreferenced_images_are_left_out_apart(tmp_path, monkeypatch) -> None:
    class Bright(Scorer):
        name = "bright"
        required_columns = ("image",)

        def rows(self, captions, *, image, **columns):
            return np.array([[float(np.asarray(one).mean())] for one in image])

    chosen = {"bleu": scorers.SCORERS.targets["bleu"], "bright": Bright}
    monkeypatch.setattr(scorers.SCORERS, "targets", chosen)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        tiny.picture(number, (16, 16)).save(photos / f"{number}.png")
        (photos / f"{number}.txt").write_text(f"a red ball number {number}\n")
    (photos / "1.png").write_bytes(b"no image")
    (photos / "2.txt").unlink()
    captions = tmp_path / "c.jsonl"
    captions.write_text("".join(f'{{"image_id": "{i}.png", "caption": "a red ball number {i}"}}\n' for i in range(4)))
    found = evaluate_files([captions], references=str(photos), scorers=["bright", "bleu"], per_image=True)
    assert {spec: score["n"] for spec, score in found["scores"].items()} == {"bright": 3, "bleu": 3}
    assert list(found["bad_images"]) == ["1.png"] and found["unreferenced"] == ["2.png"]
    empty = {row["image_id"]: [spec for spec in ("bright", "bleu") if row[spec] is None] for row in found["per_image"]}
    assert empty == {"0.png": [], "1.png": ["bright"], "2.png": ["bleu"], "3.png": []}


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm 1979, by hand
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_sum_of_scorers_is_a_scorer_of_the_command_line(files, capsys) -> None:
    references, good, poor = map(str, files)
    words = ["--references", references, "--scorers", "bleu + 0.5*length", "--paired", "--bootstrap", "50", "--json"]
    assert main(["evaluate", good, poor, *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["scores"]) == {"bleu + 0.5*length"}
    assert result["others"][0]["paired"]["bleu + 0.5*length"]["bleu + 0.5*length"]["p_holm"] < 0.05


def test_half_a_character_in_a_caption_is_scored_as_a_replaced_one(files, tmp_path) -> None:
    references, good, _ = files
    lines = [json.loads(line) for line in good.read_text().splitlines()]
    lines[0]["caption"] += " \ud83d"
    good.write_text("".join(json.dumps(line) + "\n" for line in lines))
    half = evaluate_files([good], references=str(references), scorers=["fragile", "bleu"])
    lines[0]["caption"] = lines[0]["caption"].replace("\ud83d", "\ufffd")
    good.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert half == evaluate_files([good], references=str(references), scorers=["fragile", "bleu"])


class Bright(Scorer):
    """Looks at images: how bright they are."""

    name = "bright"
    required_columns = ("image",)

    def __init__(self, argument: str | None = None) -> None:
        pass

    def rows(self, captions, *, image, **columns):
        return np.array([[float(np.asarray(one).mean())] for one in image])


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three photos, one of them cut off, with captions; `bright` looks at them."""
    chosen = {name: scorers.SCORERS.targets[name] for name in ("bleu", "length")}
    monkeypatch.setattr(scorers.SCORERS, "targets", {**chosen, "bright": Bright})
    for number in range(3):
        tiny.picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:-300])
    rows = [json.dumps({"image": f"{number}.png", "caption": f"a ball {number}"}) for number in range(3)]
    (tmp_path / "refs.jsonl").write_text("\n".join(rows))
    rows = [json.dumps({"image_id": f"{number}.png", "caption": f"a ball {number}"}) for number in range(3)]
    (tmp_path / "caps.jsonl").write_text("\n".join(rows))
    (tmp_path / "more.jsonl").write_text("\n".join(rows).replace("ball", "cup"))
    return tmp_path


def test_c3_a_truncated_image_ends_no_evaluation(photos: Path, capsys) -> None:
    files, source = [photos / "caps.jsonl", photos / "more.jsonl"], str(photos / "refs.jsonl")
    result = evaluate_files(files, references=source, scorers=["bleu", "bright", "length"], paired=True)
    assert [result["scores"][name]["n"] for name in ("bleu", "bright", "length")] == [3, 2, 3]
    assert list(result["bad_images"]) == ["1.png"] and not result["failed"]
    own, unopened = result["warnings"]
    assert own.startswith("all 3 captions of")
    assert unopened == "1 of the 3 images cannot be opened; bright are of the other 2"
    assert main(["evaluate", str(files[0]), "--references", source, "--scorers", "bleu,bright", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["bad_images"].keys() == {"1.png"}
    assert "left out 1: images that cannot be opened (1.png: " in err


@pytest.mark.parametrize("order", [("words", "opens"), ("opens", "words")])
def test_a_bad_image_takes_its_row_from_those_that_open_it_alone(photos: Path, order: tuple[str, str]) -> None:
    (photos / "mine.py").write_text(
        "def words(completions, **columns):\n    return [len(c.split()) for c in completions]\n"
        "def opens(completions, image):\n    return [float(one.size[0]) for one in image]\n"
    )
    specs = {name: f"{photos / 'mine.py'}:{name}" for name in order}
    source = str(photos / "refs.jsonl")
    found = evaluate_files([photos / "caps.jsonl"], images=source, scorers=list(specs.values()), per_image=True)
    assert {name: found["scores"][spec]["n"] for name, spec in specs.items()} == {"words": 3, "opens": 2}
    rows = {row["image_id"]: [row[specs["words"]], row[specs["opens"]] is None] for row in found["per_image"]}
    assert rows == {"0.png": [3.0, False], "1.png": [3.0, True], "2.png": [3.0, False]}
    assert found["warnings"][-1] == f"1 of the 3 images cannot be opened; {specs['opens']} are of the other 2"


def test_what_a_function_does_not_judge_is_in_no_figure_and_no_test(files, tmp_path) -> None:
    _, good, poor = files
    (tmp_path / "mine.py").write_text(
        "def brief(completions, **columns):\n    return [None if 'red' in c else 1 / len(c) for c in completions]\n"
        "def mute(completions, **columns):\n    return [None for c in completions]\n"
    )
    brief, mute = (f"{tmp_path / 'mine.py'}:{name}" for name in ("brief", "mute"))
    found = evaluate_files([good, poor], scorers=[brief, mute], paired=True, per_image=True)
    scores = found["scores"][brief]
    own = [1 / len(text) for text in SAID.values() if "red" not in text]
    assert scores["value"] == pytest.approx(np.mean(own)) and scores["values"]["judged"] == 0.75
    assert scores["interval"]["brief"][0] < scores["value"] < scores["interval"]["brief"][1]
    test = found["others"][0]["paired"][brief]["brief"]
    others = [1 / len(f"poor {text[:6]}") for text in SAID.values() if "red" not in f"poor {text[:6]}"]
    assert test["difference"] == pytest.approx(np.mean(others) - np.mean(own)) and 0 < test["p_value"] < 0.01
    assert found["failed"] == {mute: f"its figure of {good} is no number: none of the 20 captions can be judged"}
    assert sum(row[brief] is None for row in found["per_image"] if row["file"] == str(good)) == 5
    json.dumps(found, allow_nan=False)


def test_c3_where_no_image_opens_the_other_scorers_still_work(photos: Path) -> None:
    for number in (0, 2):
        (photos / f"{number}.png").write_bytes(b"<html>")
    result = evaluate_files(
        [photos / "caps.jsonl"], references=str(photos / "refs.jsonl"), scorers=["bright", "length"]
    )
    assert "not one of the 3 images can be opened" in result["failed"]["bright"] and "length" in result["scores"]
