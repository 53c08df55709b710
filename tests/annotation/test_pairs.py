"""Preference pairs: what is chosen over what, and that TRL trains on the files."""

from __future__ import annotations

import json
import shlex
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image

from captune.annotation.battles import Battles
from captune.annotation.edits import Edits, Reviewed
from captune.annotation.pairs import pairs_of, write_pairs, write_references
from captune.cli.main import main
from captune.data import load_images, load_references
from captune.errors import AnnotationError, EvaluationError, UsageError
from captune.evaluation.preferences import Pair, read_pairs
from captune.utils.skipped import counting

IDS = ("a.png", "b.png", "c.png", "d.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, name in enumerate(IDS):
        Image.new("RGB", (40, 30), (90 * i, 90, 120)).save(folder / name)
    return folder


@pytest.fixture
def reviewed(tmp_path: Path) -> Path:
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps({"image_id": i, "caption": f"old {i}"}) + "\n" for i in IDS))
    with Edits(path) as edits:

        def act(change: Callable[..., None], image_id: str, what: str) -> None:
            change(image_id, what, by="anna", version=edits.version(image_id))

        act(edits.correct, "a.png", "better a")
        act(edits.correct, "a.png", "best a")
        act(edits.judge, "a.png", "accepted")
        act(edits.correct, "b.png", "worse b")
        act(edits.judge, "b.png", "rejected")
        act(edits.correct, "c.png", "new c")
        act(edits.judge, "d.png", "accepted")
    return path


def table(path: Path, **scores: list[tuple[str, str, float | None]]) -> Path:
    ((name, rows),) = scores.items()
    path.write_text("".join(json.dumps({"image_id": i, "file": "x", "caption": c, name: s}) + "\n" for i, c, s in rows))
    return path


def test_a_correction_is_chosen_over_what_the_captioner_said(reviewed: Path) -> None:
    assert pairs_of([reviewed]) == [Pair("a.png", "best a", "old a.png"), Pair("c.png", "new c", "old c.png")]


def test_what_was_accepted_or_corrected_becomes_references(reviewed: Path, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "references.jsonl"
    with Edits(reviewed) as edits:  # half a character is no text that a trainer reads
        edits.correct("b.png", "half \ud83d of it", by="anna", version=edits.version("b.png"))
    assert write_references(Reviewed(reviewed), path, images=str(photos)) == (3, str(photos))
    expected = {"a.png": ["best a"], "c.png": ["new c"], "d.png": ["old d.png"]}
    assert load_references(str(path)) == expected
    rows = load_images(f"{path}?images={photos}")
    assert {row["image_id"]: row["references"] for row in rows} == expected
    assert rows[0]["image"].size == (40, 30)


@pytest.mark.parametrize("source", ["storybook:test?n=4", "photos & more?n=3", "photos & more/captions.csv"])
def test_the_command_that_the_export_prints_works(
    source: str,
    reviewed: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = photos.rename("photos & more")
    (photos / "captions.csv").write_text("image,caption\n" + "".join(f"{name},x\n" for name in IDS))
    if source.startswith("storybook"):  # its images are in no file
        for file in (reviewed, reviewed.with_name(reviewed.name + ".edits.jsonl")):
            text = file.read_text()
            for name, image_id in zip(IDS, load_images(source)["image_id"], strict=True):
                text = text.replace(f'"{name}"', f'"{image_id}"')
            file.write_text(text)
    assert main(["review", source, str(reviewed), "--export", "references.jsonl"]) == 0
    said = capsys.readouterr()
    words = shlex.split(said.out)
    assert words[:2] == ["captune", "evaluate"] and main([*words[1:], "--scorers", "length"]) == 0
    if source.startswith("storybook"):
        assert "not to train on" in said.err
    else:
        rows = load_images(words[-1])
        assert [rows[i]["image"].size for i in range(len(rows))] == [(40, 30)] * len(rows)


def test_the_winner_of_a_battle_is_chosen_by_majority(tmp_path: Path) -> None:
    path = tmp_path / "arena.sqlite"
    battles = Battles(path)
    votes = [("a.png", "left"), ("a.png", "left"), ("a.png", "right"), ("b.png", "left"), ("b.png", "right"),
             ("c.png", "tie"), ("d.png", "right"), ("d.png", "skip"), ("d.png", "bad")]  # fmt: skip
    for number, (image_id, verdict) in enumerate(votes):
        battle = battles.issue(f"rater {number}", image_id, ("x", f"x {image_id}"), ("y", f"y {image_id}"))
        assert battles.vote(f"vote number {number}", battle.id, f"rater {number}", verdict)
    battles.close()
    with counting() as skipped:
        found = pairs_of([path])
    assert found == [Pair("a.png", "x a.png", "y a.png"), Pair("d.png", "y d.png", "x d.png")]
    assert skipped["votes without a winner"].keys() == {"c.png: tie", "d.png: skip", "d.png: bad"}
    assert skipped["pairs of which as many say the opposite"].keys() == {"b.png"}


def test_models_do_not_outvote_people(tmp_path: Path) -> None:
    """As in the arena's results: a model's vote counts in the agreement alone where a person has voted."""
    path = tmp_path / "arena.sqlite"
    battles = Battles(path)
    for number, (rater, verdict) in enumerate([("ann", "left"), ("model: y", "right"), ("model: z", "right")]):
        battle = battles.issue(rater, "a.png", ("x", "by x"), ("y", "by y"))
        side = verdict if battle.left_caption == "by x" else {"left": "right", "right": "left"}[verdict]
        assert battles.vote(f"vote number {number}", battle.id, rater, side)
    battles.close()
    with counting() as skipped:
        assert pairs_of([path]) == [Pair("a.png", "by x", "by y")]
    assert skipped["votes of models, where people have voted"].keys() == {"a.png: model: y", "a.png: model: z"}


def test_a_caption_with_two_scores_is_counted(tmp_path: Path) -> None:
    rows = [("a.png", "one", 0.9), ("a.png", "two", 0.5), ("a.png", "one", 0.1)]
    with counting() as skipped:
        assert pairs_of([table(tmp_path / "scores.jsonl", cider=rows)], by="cider") == [Pair("a.png", "one", "two")]
    assert skipped["captions that are there again with another cider"].keys() == {"a.png"}


def test_the_best_score_is_chosen_over_the_worst(tmp_path: Path) -> None:
    rows: list[tuple[str, str, float | None]] = [
        ("a.png", "good", 0.9), ("a.png", "bad", 0.1), ("a.png", "middle", 0.5), ("b.png", "one", 0.5),
        ("c.png", "same", 0.5), ("c.png", "too", 0.5), ("d.png", "near", 0.5), ("d.png", "by", 0.45),
        ("d.png", "x", None), ("e.png", "first", float("nan")), ("e.png", "one", 0.7), ("e.png", "two", 0.5),
    ]  # fmt: skip
    path = table(tmp_path / "scores.jsonl", cider=rows)
    decided = [Pair("a.png", "good", "bad"), Pair("d.png", "near", "by"), Pair("e.png", "one", "two")]
    assert pairs_of([path], by="cider") == decided
    assert pairs_of([path], by="cider", margin=0.1) == [decided[0], decided[2]]
    assert pairs_of([path], by="cider", better="lower")[0] == Pair("a.png", "bad", "good")
    path = table(tmp_path / "scores.jsonl", repetition=rows)
    assert pairs_of([path], by="repetition")[0] == Pair("a.png", "bad", "good")  # as the scorer declares
    path = table(tmp_path / "scores.jsonl", mine=rows)
    with pytest.raises(UsageError, match="--better higher, or lower"):
        pairs_of([path], by="mine")
    with pytest.raises(AnnotationError, match="needs the columns image_id, caption and other; it has image_id, file"):
        pairs_of([path], by="other")


def test_what_holds_no_pairs_is_refused(tmp_path: Path, reviewed: Path) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_text(reviewed.read_text())
    with pytest.raises(AnnotationError, match=r"it was not reviewed \(plain.jsonl.edits.jsonl is not beside it\)"):
        pairs_of([plain])
    with Edits(plain) as edits:
        edits.judge("a.png", "accepted", by="anna", version=edits.version("a.png"))
    with pytest.raises(AnnotationError, match="there is no pair in"):
        pairs_of([plain])
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(EvaluationError, match="no table of scores"):
        pairs_of([tmp_path / "x.txt"])


def test_scores_decide_nothing_of_what_people_said(tmp_path: Path, reviewed: Path) -> None:
    with pytest.raises(UsageError, match="--by cider compares .* table of scores, and .*captions.jsonl holds"):
        pairs_of([reviewed], by="cider")
    scores = table(tmp_path / "scores.jsonl", cider=[("d.png", "good", 0.9), ("d.png", "bad", 0.1)])
    assert pairs_of([reviewed, scores], by="cider") == [*pairs_of([reviewed]), Pair("d.png", "good", "bad")]


def test_an_id_in_the_other_unicode_form_is_the_same_image(tmp_path: Path) -> None:
    """A pair meets its opposite, and its image."""
    names = {form: unicodedata.normalize(form, "café.png") for form in ("NFC", "NFD")}
    path = tmp_path / "pairs.jsonl"
    write_pairs([Pair(names["NFD"], "good", "bad"), Pair(names["NFD"], "x", "y"), Pair(names["NFC"], "y", "x")], path)
    with counting() as skipped:
        assert pairs_of([path]) == [Pair(names["NFC"], "good", "bad")]
    assert skipped.keys() == {"pairs of which as many say the opposite"}
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "photos" / names["NFC"])
    assert write_pairs(pairs_of([path]), tmp_path / "all.jsonl", images=str(tmp_path / "photos")) == 1


def test_a_pair_of_equal_captions_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    write_pairs([Pair("a.png", "good", "bad"), Pair("a.png", "same", "same"), Pair("a.png", "one", "one")], path)
    with counting() as skipped:
        assert pairs_of([path]) == [Pair("a.png", "good", "bad")]
    assert skipped == {"pairs of equal captions": {"a.png: same": 1, "a.png: one": 1}}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("images", [True, False])
def test_files_are_read_back(reviewed: Path, photos: Path, tmp_path: Path, suffix: str, images: bool) -> None:
    pairs = [
        *pairs_of([reviewed]),
        Pair("d.png", '<b>"x"\u202e', "[{"),
        Pair("b.png", "half \ud83d", "x"),
        Pair("?", "a", "b"),
    ]
    path = tmp_path / f"pairs{suffix}"
    with counting() as skipped:
        count = write_pairs(pairs, path, images=str(photos) if images else None)
    expected = [pair for pair in pairs if pair.image_id != "b.png" and (pair.image_id != "?" or not images)]
    assert read_pairs(path) == pairs_of([path]) == expected and count == len(expected)
    assert len(skipped) == 1 + images


def test_images_without_files_need_parquet(photos: Path, tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict(
        {"image": [{"bytes": (photos / "a.png").read_bytes(), "path": None}], "image_id": ["a.png"]},
        features=datasets.Features({"image": datasets.Image(), "image_id": datasets.Value("string")}),
    ).to_parquet(tmp_path / "images.parquet")
    pairs = [Pair("a.png", "good", "bad")]
    with pytest.raises(UsageError, match="as .parquet, which holds the images"):
        write_pairs(pairs, tmp_path / "p.jsonl", images=str(tmp_path / "images.parquet"))
    assert write_pairs(pairs, tmp_path / "p.parquet", images=str(tmp_path / "images.parquet")) == 1
    with pytest.raises(AnnotationError, match="pairs have ids like 'x', its images like 'a.png'"):
        write_pairs([Pair("x", "a", "b")], tmp_path / "p.jsonl", images=str(photos))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_trl_makes_batches_of_them(reviewed: Path, photos: Path, tmp_path: Path, suffix: str) -> None:
    from datasets import Image as ImageFeature
    from datasets import List, load_dataset
    from transformers import AutoProcessor
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    path = tmp_path / f"pairs{suffix}"
    assert main(["pairs", str(reviewed), "--images", str(photos), "--output", str(path), "--prompt", "what is it"]) == 0
    kind = "parquet" if suffix == ".parquet" else "json"
    rows: Any = load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    if kind == "json":
        rows = rows.cast_column("images", List(ImageFeature()))
    assert rows[0]["images"][0].size == (40, 30)
    assert rows[0]["prompt"] == [{"role": "user", "content": "what is it"}]
    processor = AutoProcessor.from_pretrained(tiny.idefics3(tmp_path / "model"))
    processor.chat_template = (
        "{% for message in messages %}{% for part in message.content %}"
        "{{ '<image>' if part.type == 'image' else part.text }} {% endfor %}{% endfor %}"
    )
    batch = DataCollatorForVisionPreference(processor)([rows[0], rows[1]])
    assert batch["input_ids"].shape[0] == 4  # two chosen, two rejected
    texts = processor.batch_decode(
        [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)]
    )
    assert [("best" in text or "new" in text, "old" in text) for text in texts] == [(True, False)] * 2 + [
        (False, True)
    ] * 2
    assert batch["pixel_values"].shape[0] == 4


def test_the_command_refuses_before_it_works(
    reviewed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*words: str) -> str:
        assert main(["pairs", *words]) in (1, 2)
        return capsys.readouterr().err

    there = tmp_path / "there.jsonl"
    there.write_text("")
    assert "pass --overwrite" in told(str(reviewed), "--output", str(there))
    assert "pairs are written as .jsonl or .parquet" in told(str(reviewed), "--output", "p.csv")
    assert "written as .jsonl or .parquet, not as pairs" in told(str(reviewed), "--output", "pairs")
    scores = tmp_path / "scores.csv"
    scores.write_text("image_id,caption,rouge\nx,a,1\nx,b,1\n")
    words = (str(scores), "--by", "rouge", "--images", "storybook:test?n=1", "--output", "p.jsonl")
    assert "as .parquet, which holds the images" in (said := told(*words)) and "left out" not in said
    assert "nowhere.jsonl cannot be read" in told("nowhere.jsonl", "--output", "p.jsonl")
    assert "go with --by" in told(str(reviewed), "--margin", "1", "--output", "p.jsonl")
