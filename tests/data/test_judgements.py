"""Every format of human judgements, from small files made here: what is read, left out and counted, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captune.data import judgements as module
from captune.data.judgements import Judgements, load_captions, read_judgements
from captune.errors import SourceError

TEXTS = {
    "a.jpg": ["a dog runs", "a brown dog", "the dog plays"],
    "b.jpg": ["two men walk", "men on a street", "people outside"],
    "c.jpg": ["a red car", "a car drives", "the car is red"],
}


def token_file(path: Path, texts: dict[str, list[str]] = TEXTS) -> Path:
    lines = [f"{image}#{k}\t{text} ." for image, own in texts.items() for k, text in enumerate(own)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    return token_file(tmp_path / "Flickr8k.token.txt")


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


EXPERT = "a.jpg\tb.jpg#0\t1\t1\t2\na.jpg\ta.jpg#1\t4\t4\t4\nb.jpg\tc.jpg#2\t1\t2\t1\n"


def test_flickr8k_expert_by_the_protocol_of_clipscore(tmp_path: Path, captions: Path) -> None:
    found = read_judgements(write(tmp_path / "ExpertAnnotations.txt", EXPERT), captions=[captions])
    assert (found.format, found.primary, found.read, found.used) == ("flickr8k-expert", "tau_c", 9, 6)
    assert dict(found.left_out) == {module.OWN: 3}  # the pair whose caption is the image's own
    assert found.ratings == [(0, 1.0), (0, 1.0), (0, 2.0), (1, 1.0), (1, 2.0), (1, 1.0)]
    assert found.candidates[0] == ("a.jpg", "two men walk .", tuple(f"{text} ." for text in TEXTS["a.jpg"]))


def test_an_own_caption_is_found_whatever_its_blanks(tmp_path: Path) -> None:
    texts = {"a.jpg": ["a  dog runs", "x"], "b.jpg": ["a dog runs", "y"]}
    table = write(tmp_path / "captions.csv", "image,caption\n" + "".join(
        f"{image},{text}\n" for image, own in texts.items() for text in own))  # fmt: skip
    lines = "a.jpg\tb.jpg#0\t4\t4\t4\na.jpg\tb.jpg#1\t1\t1\t1\n"
    found = read_judgements(write(tmp_path / "e.txt", lines), captions=[table])
    assert dict(found.left_out) == {module.OWN: 3} and found.used == 3


def test_missing_captions_and_references_are_counted(tmp_path: Path) -> None:
    some = token_file(tmp_path / "some.txt", {name: TEXTS[name] for name in ("a.jpg", "b.jpg")})
    lines = EXPERT + "c.jpg\ta.jpg#0\t1\t1\t1\n" + "a.jpg\tb.jpg#7\t1\t1\t1\n"
    found = read_judgements(write(tmp_path / "e.txt", lines), captions=[some])
    assert dict(found.left_out) == {module.OWN: 3, module.NO_CAPTION: 6, module.NO_REFERENCES: 3}
    assert found.used == 3 and found.used + found.left_out.total() == found.read


def test_two_captions_files_are_one_and_may_not_contradict(tmp_path: Path, captions: Path) -> None:
    halves = [token_file(tmp_path / f"{name}.txt", {name: TEXTS[name]}) for name in TEXTS]
    assert load_captions(halves) == load_captions([captions]) == load_captions([captions, *halves])
    assert not load_captions([captions]).numbering
    other = token_file(tmp_path / "other.txt", {"a.jpg": ["a cat"]})
    with pytest.raises(SourceError, match=r"other\.txt has other captions of image 'a\.jpg'"):
        load_captions([captions, other])


def test_a_blank_caption_keeps_its_number(tmp_path: Path) -> None:
    table = write(tmp_path / "captions.txt", "image,caption\na.jpg,first\na.jpg,\na.jpg,nan\na.jpg,fourth\n")
    assert load_captions([table]).by_image == {"a.jpg": {0: "first", 3: "fourth"}}
    assert load_captions([table]).numbering == ["a caption's number is its place in captions.txt"]


def test_the_token_files_one_odd_name(tmp_path: Path) -> None:
    file = write(tmp_path / "t.txt", "2258277193_586949ec62.jpg.1#0\tpeople wait\n2258277193_586949ec62.jpg.1#1\tx\n")
    assert load_captions([file]).of("2258277193_586949ec62.jpg") == ("people wait", "x")


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_odd_bytes_are_named_by_line_and_the_rest_is_used(tmp_path: Path, captions: Path, ending: str) -> None:
    lines = EXPERT.replace("\n", ending).encode()
    odd = b"\xff\xfe.jpg\tb.jpg#0\t1\t1\t1" + ending.encode()
    found = read_judgements(write(tmp_path / "E.txt", odd + lines), captions=[captions])
    assert found.problems == ["E.txt, line 1: a byte that is not UTF-8 text (0xff); it is left out"]
    assert found.left_out[module.ODD] == 3 and found.used == 6
    broken = write(tmp_path / "t.txt", captions.read_bytes().replace(b"two men", b"two m\xe9n"))
    found = read_judgements(write(tmp_path / "E.txt", lines), captions=[broken])
    assert found.problems == ["t.txt, line 4: a byte that is not UTF-8 text (0xe9); it is left out"]
    assert found.left_out[module.NO_CAPTION] == 3 and found.used == 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a.jpg\tb.jpg#0\t1\t1", "line 2: expected image, name.jpg#k and three numbers"),
        ("a.jpg\tb.jpg#0\t1\t1\t5", "line 2: expected three grades from 1 to 4, found 1 1 5"),
        ("a.jpg\tb.jpg\t1\t1\t1", "line 2: expected image"),
    ],
)
def test_a_line_of_another_form_is_an_error(tmp_path: Path, captions: Path, line: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        read_judgements(write(tmp_path / "e.txt", EXPERT.split("\n")[0] + f"\n{line}\n"), captions=[captions])


def test_flickr8k_needs_a_captions_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="--captions"):
        read_judgements(write(tmp_path / "e.txt", EXPERT))


def test_captions_of_other_images_are_an_error_that_shows_both(tmp_path: Path) -> None:
    other = token_file(tmp_path / "t.txt", {"1.jpg": ["x", "y"]})
    with pytest.raises(SourceError, match=r"no judgement can be used \(9 captions .*ids like '1\.jpg'"):
        read_judgements(write(tmp_path / "e.txt", EXPERT), captions=[other])


def test_crowdflower_takes_judged_captions_out_of_the_references(tmp_path: Path, captions: Path) -> None:
    lines = "a.jpg\tb.jpg#0\t0\t0\t3\na.jpg\ta.jpg#1\t1\t3\t0\nb.jpg\tc.jpg#2\t0.333333333333\t1\t2\n"
    found = read_judgements(write(tmp_path / "CrowdFlowerAnnotations.txt", lines), captions=[captions])
    assert (found.format, found.primary, found.used) == ("flickr8k-crowdflower", "tau_b", 3)
    assert [rating for _, rating in found.ratings] == pytest.approx([0, 1, 1 / 3])
    own = found.candidates[1]
    assert own.caption == "a brown dog ." and own.references == ("a dog runs .", "the dog plays .")
    assert found.candidates[0].references == own.references  # of all the image's judgements, as in the script
    with pytest.raises(SourceError, match="line 1: expected the share of yes"):
        read_judgements(write(tmp_path / "c.txt", "a.jpg\tb.jpg#0\t0.5\t0\t3\n"), captions=[captions])


def test_clipscores_json(tmp_path: Path) -> None:
    content = {
        "a": {
            "image_path": "Flicker8k_Dataset/a.jpg",
            "ground_truth": ["a  dog", "dogs"],
            "human_judgement": [
                {"caption": "a cat", "rating": 2.0},
                {"caption": "a  dog runs", "rating": 4},
                {"caption": "x", "rating": float("nan")},
            ],
        }
    }
    found = read_judgements(write(tmp_path / "flickr8k.json", json.dumps(content)))
    assert found.format == "clipscore-json" and found.ratings == [(0, 2.0), (1, 4.0)]
    assert found.candidates[1] == ("a.jpg", "a dog runs", ("a dog", "dogs"))
    assert dict(found.left_out) == {module.NO_RATING: 1}
    content["a"]["human_judgement"][0] = {"caption": "a cat"}
    with pytest.raises(SourceError, match="'a', judgement 1: 'rating' is missing"):
        read_judgements(write(tmp_path / "flickr8k.json", json.dumps(content)))


def battle(**changes: object) -> dict[str, object]:
    row = {"img": "t.jpg", "source1": "m1", "source2": "m2", "caption1": "one", "caption2": "two", "winner": "m1",
           "ref": "the reference", "cluster": "level 1", "in-400": False}  # fmt: skip
    return row | changes


def test_caparena(tmp_path: Path) -> None:
    rows = [
        battle(),
        battle(winner="m2", cluster="level 2"),
        *(battle(winner=tie) for tie in ("equal", "skip", "bad")),
        battle(source1="human", winner="human"),
        battle(caption1="odd \udcff"),
    ]
    text = json.dumps(rows, ensure_ascii=False).encode("utf-8", "surrogateescape")  # a byte that is not UTF-8
    found = read_judgements(write(tmp_path / "caparena_annots_eval.json", text))
    assert (found.format, found.primary) == ("caparena", "agreement")
    assert [own.winner for own in found.battles] == [1, -1, 0, 0, 0]
    assert [own.category for own in found.battles[:2]] == ["level 1", "level 2"]
    assert found.candidates == [("t.jpg", "one", ("the reference",)), ("t.jpg", "two", ("the reference",))]
    assert dict(found.left_out) == {module.HUMAN: 1, module.ODD: 1}
    assert found.problems[0].startswith("caparena_annots_eval.json, entry 7: a byte that is not UTF-8")
    with pytest.raises(SourceError, match="entry 1: the winner is 'm3', neither 'm1' nor 'm2' nor a tie"):
        read_judgements(write(tmp_path / "c.json", json.dumps([battle(winner="m3")])))


def test_foil(tmp_path: Path) -> None:
    rows = [(1, 10, False, "a dog"), (1, 10, True, "a cat"), (1, 11, False, "the dog runs"), (2, 12, True, "alone")]
    content = {
        "images": [{"id": 1, "file_name": "COCO_1.jpg"}],
        "annotations": [{"image_id": i, "id": n, "foil": f, "caption": text} for i, n, f, text in rows],
    }
    file = write(tmp_path / "foil.json", json.dumps(content))
    found = read_judgements(file)
    assert (found.format, found.read, found.battles) == ("foil", 2, [(0, 1, 1, "")])
    assert found.candidates[1] == ("1", "a cat", ("the dog runs",)) and found.file_names == {"1": "COCO_1.jpg"}
    assert dict(found.left_out) == {"foils without their original": 1}
    coco = {"images": [{"id": 1, "file_name": "COCO_1.jpg"}],
            "annotations": [{"image_id": 1, "caption": text} for text in ("a dog", "dog!", "a brown dog")]}  # fmt: skip
    own = write(tmp_path / "captions_val2014.json", json.dumps(coco))
    assert read_judgements(file, captions=[own]).candidates[0].references == ("dog!", "a brown dog")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json"])
def test_plain_ratings(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"image_id": "1", "caption": "a dog, brown", "references": ["a dog", "the dog"], "rating": 3},
        {"image_id": "1", "caption": "a dog", "references": ["a dog", "the dog"], "rating": 4},
        {"image_id": "2", "caption": "a cat", "references": "cats", "rating": 1.5},
        {"image_id": "2", "caption": "cat", "references": "cats", "rating": "nan"},
    ]
    if suffix in ("csv", "tsv"):
        mark = "," if suffix == "csv" else "\t"
        quoted = [{k: json.dumps(v) if isinstance(v, list) else str(v) for k, v in row.items()} for row in rows]
        cells = [['"' + value.replace('"', '""') + '"' for value in row.values()] for row in quoted]
        text = "\n".join([mark.join(rows[0]), *(mark.join(row) for row in cells)])
    else:
        text = json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows))
    found = read_judgements(write(tmp_path / f"own.{suffix}", text))
    assert (found.format, found.primary, found.ratings) == ("plain", "tau_b", [(0, 3.0), (1, 1.5)])
    assert found.candidates[0].references == ("a dog", "the dog") and found.candidates[1].references == ("cats",)
    assert dict(found.left_out) == {module.OWN: 1, module.NO_RATING: 1} and found.read == 4


def test_a_rows_own_id_is_not_its_images(tmp_path: Path) -> None:
    rows = '{"id": 7, "image": "a.jpg", "caption": "x", "rating": 1}\n'
    assert read_judgements(write(tmp_path / "o.jsonl", rows)).candidates[0].image_id == "a.jpg"


def test_plain_ratings_may_be_several(tmp_path: Path) -> None:
    rows = '{"image_id": 7, "caption": "x", "ratings": [1, 2, 2]}\n'
    assert read_judgements(write(tmp_path / "o.jsonl", rows)).ratings == [(0, 1.0), (0, 2.0), (0, 2.0)]


def test_plain_battles(tmp_path: Path) -> None:
    text = "image_id,caption_a,caption_b,winner,category\n1,one,two,a,HC\n1,one,three,tie,\n2,four,five,B,HI\n"
    found = read_judgements(write(tmp_path / "own.csv", text))
    assert found.primary == "pairwise_accuracy"
    assert found.battles == [(0, 1, 1, "HC"), (0, 2, 0, ""), (3, 4, -1, "HI")]
    assert found.without_references is not None and not found.candidates[0].references
    with pytest.raises(SourceError, match="line 2: the winner is 'c'"):
        read_judgements(write(tmp_path / "own.csv", text.replace("two,a", "two,c")))


def test_plain_references_come_from_the_captions_file(tmp_path: Path, captions: Path) -> None:
    text = "image_id,caption,rating\na.jpg,a dog,3\nz.jpg,a cat,1\n"
    found = read_judgements(write(tmp_path / "own.csv", text), captions=[captions])
    kept = found.without_references()
    assert kept.candidates == [("a.jpg", "a dog", tuple(f"{own} ." for own in TEXTS["a.jpg"]))]
    assert kept.ratings == [(0, 3.0)] and kept.left_out[module.NO_REFERENCES] == 1 and not found.left_out


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("o.csv", "image_id,caption,rating\n1,x\n", "line 2: expected 3 cells"),
        ("o.csv", "image_id,caption,rating\n1,x,high\n", "line 2: 'rating' is 'high'"),
        ("o.csv", "image_id,caption,rating\n1,x,inf\n", "line 2: the rating is inf"),
        ("o.csv", "image_id,caption,rating\n,x,1\n", "line 2: has no id"),
        ("o.csv", "image_id,caption,rating\n1,,1\n", "line 2: 'caption' is ''"),
        ("o.csv", 'image_id,caption,rating\n1,"x,1\n', "line 2: .*quotation mark"),
        ("o.csv", 'image_id,caption,references,rating\n1,x,"[1, 2",3\n', "line 2: 'references' is no JSON list"),
        ("o.csv", "image_id,caption,caption,rating\n1,x,x,1\n", "column 'caption' stands twice"),
        ("o.csv", "name,score\n1,x\n", "no known human judgements"),
        ("o.jsonl", '{"image_id": 1, "caption": "x", "rating": 1}\n{"image_id"\n', "line 2: Expecting"),
        (
            "o.jsonl",
            '{"image_id": 1, "caption": "x", "rating": 1, "rating": 2}\n',
            "line 1: the key 'rating' stands twice",
        ),
        ("o.jsonl", "[1]\n", "line 1: expected a JSON object, found list"),
        ("o.jsonl", '{"image_id": 1, "caption": "x", "rating": true}\n', "line 1: 'rating' is True"),
        ("o.jsonl", '{"image_id": 1, "caption": "x", "references": [1], "rating": 1}\n', "expected a list of texts"),
        ("o.jsonl", '{"image_id": 1, "caption_a": "", "winner": "a"}\n', "line 1: 'caption_b' is missing"),
        ("o.json", "{", "is not valid JSON"),
        ("o.json", '{"a": {"b": 1}}', "no known human judgements"),
        ("o.json", '{"a": 1, "a": 2}', "stands twice"),
        ("o.csv", "image_id,caption,rating\n", "no judgement can be used"),
    ],
)
def test_what_does_not_fit_is_an_error_with_its_place(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        read_judgements(write(tmp_path / name, text))


def test_a_file_that_mixes_ratings_and_battles_is_refused(tmp_path: Path) -> None:
    rows = ['{"image_id": 1, "caption": "x", "rating": 1}',
            '{"image_id": 1, "caption_a": "x", "caption_b": "y", "winner": "a"}']  # fmt: skip
    with pytest.raises(SourceError, match="mixes"):
        read_judgements(write(tmp_path / "o.jsonl", "\n".join(rows)))


def test_odd_bytes_in_plain_files(tmp_path: Path) -> None:
    text = b"image_id,caption,rating\n1,caf\xe9,1\n2,tea,2\n"
    found = read_judgements(write(tmp_path / "own.csv", text))
    assert found.ratings == [(0, 2.0)] and found.problems[0].startswith("own.csv, line 2: a byte")
    lines = b'{"image_id": 1, "caption": "caf\xe9", "rating": 1}\n{"image_id": 2, "caption": "tea", "rating": 2}\n'
    found = read_judgements(write(tmp_path / "own.jsonl", lines))
    assert found.ratings == [(0, 2.0)] and found.problems[0].startswith("own.jsonl, line 1: a byte")


def test_half_a_character_and_nul(tmp_path: Path) -> None:
    rows = '{"image_id": 1, "caption": "\\ud83d", "rating": 1}\n{"image_id": 2, "caption": "tea", "rating": 2}\n'
    found = read_judgements(write(tmp_path / "own.jsonl", rows))
    assert found.problems == ["own.jsonl, line 1: half a character (U+D83D); it is left out"]
    found = read_judgements(write(tmp_path / "own.csv", "image_id,caption,rating\n1,a\0b,1\n2,tea,2\n"))
    assert found.problems == ["own.csv, line 2: a NUL; it is left out"] and found.used == 1


def test_references_are_sampled_by_seed(tmp_path: Path) -> None:
    rows = [{"image_id": i, "caption": "x", "references": [f"r{i}{k}" for k in range(9)], "rating": i}
            for i in range(4)]  # fmt: skip
    file = write(tmp_path / "o.json", json.dumps(rows))

    def sampled(seed: int) -> list[tuple[str, ...]]:
        return [own.references for own in read_judgements(file, max_references=3, seed=seed).candidates]

    assert sampled(0) == sampled(0) != sampled(1)
    assert all(len(own) == len(set(own)) == 3 for own in sampled(0))
    with pytest.raises(SourceError, match="at least 1"):
        read_judgements(file, max_references=0)


def pascal(folder: Path, votes: list[list[int]]) -> Judgements:
    """Pascal-50S's files with a pair for each list of votes: 1 for the first caption, -1 for the second."""
    import numpy as np
    from scipy.io import savemat

    def cell(value: str) -> np.ndarray:
        made = np.empty((1, 1), dtype=object)
        made[0, 0] = value
        return made

    pairs = np.empty((1, len(votes)), dtype=[(name, object) for name in ("image", "B", "C")])
    triplets = np.empty((1, sum(map(len, votes))), dtype=[(name, object) for name in ("A", "B", "C", "winner")])
    place = 0
    for i, own in enumerate(votes):
        pairs[0, i] = (f"{i}.jpg", f"first {i} ", f"second {i}")
        for j, vote in enumerate(own):
            texts = (f"reference {i} {j}", f"first {i}", f"second {i}")
            triplets[0, place] = (*map(cell, texts), np.array([[vote]]))
            place += 1
    folder.mkdir()
    savemat(folder / "pair_pascal.mat", {"new_input": pairs, "category": np.arange(1, len(votes) + 1)[None]})
    savemat(folder / "consensus_pascal.mat", {"triplets": triplets})
    return read_judgements(folder)


def test_pascal50s(tmp_path: Path) -> None:
    found = pascal(tmp_path / "pascal", [[1] * 6 + [-1], [-1] * 7, [1, -1, 1, -1, 1, -1, 1], [-1, -1, 1, 1, -1, 1, -1]])
    assert (found.format, found.primary) == ("pascal50s", "pairwise_accuracy")
    assert [(own.winner, own.category) for own in found.battles] == [(1, "HC"), (-1, "HI"), (1, "HM"), (-1, "MM")]
    own = found.candidates[2]
    assert own.image_id == "1.jpg" and own.caption == "first 1" and len(own.references) == 5
    assert set(own.references) < {f"reference 1 {j}" for j in range(7)}
    assert found.candidates[3].references == own.references  # both captions of a pair are compared with the same


def test_a_folder_without_pascals_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no pair_pascal\.mat"):
        read_judgements(tmp_path)
    with pytest.raises(SourceError, match="name the folder"):
        read_judgements(write(tmp_path / "pair_pascal.mat", b"x"))
