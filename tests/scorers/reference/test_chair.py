from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from captune.errors import MissingColumn, ScorerError
from captune.evaluation.statistics import evaluate
from captune.scorers import check_needs, load_scorer
from captune.scorers._support.vocabulary import COCO, singular
from captune.scorers.reference.chair import Chair
from captune.utils.skipped import counting

# What the authors' program says (its words singularised by pattern's rules), checked by hand.
ORIGINAL = [
    ("Three policemen stand next to some buses and taxis.", ["person", "bus", "car"]),
    ("A bow tie and a black tie on a table.", ["tie", "tie", "dining table"]),
    ("Two hot dogs and a dog next to a bench.", ["hot dog", "dog", "bench"]),
    ("A baby elephant walks with an adult elephant and a baby.", ["elephant", "elephant", "person"]),
    ("The train tracks run past a passenger train.", ["train"]),
    ("A passenger jet flies over two airplanes.", ["airplane", "airplane"]),
    ("The seat of the toilet is up.", ["toilet"]),
    ("A toilet seat and a sink.", ["toilet", "sink"]),
    ("A man in a seat looks at the home plate.", ["person", "chair"]),
    (
        "Children fly kites near traffic lights and a fire hydrant.",
        ["person", "kite", "traffic light", "fire hydrant"],
    ),
    (
        "Wine glasses, knives, forks and a glass of beer on a dining table.",
        ["wine glass", "knife", "fork", "dining table"],
    ),
    ("A teddy bear and a bear cub; an adult cub sleeps.", ["teddy bear", "bear"]),
    ("Skis and a snowboard lean on a couch.", ["skis", "snowboard", "couch"]),
    ("A cell phone, a mouse and a pair of scissors on top of books.", ["cell phone", "mouse", "scissors", "book"]),
    ("A tennis player swings a tennis racket at the ball.", ["person", "tennis racket", "sports ball"]),
    ("Calves, oxen and sheep graze with the ponies.", ["cow", "cow", "sheep", "horse"]),
    ("An orange cat sits in a potted plant.", ["orange", "cat", "potted plant"]),
    ("A stop sign and a street light by the parking meters.", ["stop sign", "traffic light", "parking meter"]),
    ("The zebras' and giraffes' heads.", ["zebra", "giraffe"]),
]
# Where we mean to differ from it; it says ["person"], ["person", "bird"], ["laptop"] and two ovens.
DIFFERENT = [
    ("A man past a parked bus.", ["person", "bus"]),
    ("People in canoes feed geese.", ["person", "boat", "bird"]),
    ("a motor bike and a laptop computer", ["motorcycle", "laptop"]),
    ("A stove top oven in the kitchen.", ["oven"]),
]


@pytest.mark.parametrize(("caption", "objects"), ORIGINAL + DIFFERENT)
def test_mentions_of_the_original(caption: str, objects: list[str]) -> None:
    assert Chair().mentions(caption) == objects


@pytest.mark.parametrize("caption", ["", "😀 犬", "\u2028", "the ordinary", "-lrb-"])
def test_a_caption_without_objects(caption: str) -> None:
    assert Chair().mentions(caption) == []


def test_line_breaks_are_spaces() -> None:
    assert Chair().mentions("a hot\u2028dog\rand\x0ba bus") == ["hot dog", "bus"]


def test_the_vocabulary_is_cocos() -> None:
    classes = json.loads(COCO.read_text(encoding="utf-8"))
    assert len(classes) == 81 and "" in classes
    scorer = Chair()
    for name, synonyms in classes.items():
        for phrase in [name, *synonyms] if name else synonyms:
            assert scorer.mentions(f"there is {phrase}.") == ([name] if name else []), phrase


PLURALS = """men man|policemen policeman|puppies puppy|ties tie|skies sky|calves calf|leaves leaf|thieves thief
    shelves shelf|knives knife|lives life|gloves glove|olives olive|stoves stove|glasses glass|dishes dish|benches bench
    boxes box|buses bus|minibuses minibus|houses house|vases vase|purses purse|potatoes potato|shoes shoe|toes toe
    canoes canoe|skis ski|people person|children child|mice mouse|doggies doggy|sandwiches sandwich|oranges orange
    zebras zebra|radios radio|bees bee|axes axe|matches match|dresses dress|noses nose|sizes size"""
SINGULAR = "glass bus tennis this is as us christmas specimen series sheep gas cactus dress 's a species"


def test_plurals() -> None:
    for pair in PLURALS.replace("\n", "|").split("|"):
        plural, one = pair.split()
        assert singular(plural) == one and singular(one) == one
    assert [singular(word) for word in SINGULAR.split()] == SINGULAR.split()


CAPTIONS = ["a dog and two dogs on a bench", "a cat near a dog", "nothing at all"]
REFERENCES = [["a dog runs", "a person with a dog"], ["two cats on a couch"], ["a bus"]]


def test_figures_by_hand() -> None:
    scorer = load_scorer("chair")
    rows = scorer.rows(CAPTIONS, references=REFERENCES)
    # hallucinated, mentioned, any, recalled, there: bench; dog; nothing
    np.testing.assert_array_equal(rows, [[1, 3, 1, 1, 2], [1, 2, 1, 1, 2], [0, 0, 0, 0, 1]])
    values = scorer.corpus(rows)
    assert values == pytest.approx({"chair_i": 2 / 5, "chair_s": 2 / 3, "recall": 2 / 5, "mentions": 5 / 3})
    assert next(iter(values)) == "chair_i"
    assert scorer(CAPTIONS, references=REFERENCES) == pytest.approx([1 / 3, 1 / 2, 0])
    parts = np.concatenate([scorer.rows([c], references=[r]) for c, r in zip(CAPTIONS, REFERENCES, strict=True)])
    np.testing.assert_array_equal(parts, rows)


def test_evaluate_gives_intervals_and_a_signature() -> None:
    result = evaluate(CAPTIONS, {"references": REFERENCES}, ["chair"], bootstrap=50)["chair"]
    assert set(result.interval) == {"chair_i", "chair_s", "recall", "mentions"}
    assert result.signature.startswith("chair|truth:references|vocabulary:coco80|tok:")


def files(folder: Path) -> list[Path]:
    """The same truth in every form: a dog and a person in image 42, nothing in 7."""
    coco = {
        "images": [{"id": 42, "file_name": "a.jpg"}, {"id": 7, "file_name": "b.jpg"}],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
        "annotations": [{"image_id": 42, "category_id": 18}, {"image_id": 42, "category_id": 1}],
    }
    plain = {"000000000042": ["puppy", "woman", "license plate"], "7": []}
    (folder / "instances.json").write_text(json.dumps(coco))
    (folder / "plain.json").write_text(json.dumps(plain))
    (folder / "lines.jsonl").write_text("\n".join(json.dumps({k: v}) for k, v in plain.items()) + "\n")
    return [folder / "instances.json", folder / "plain.json", folder / "lines.jsonl"]


def test_truth_from_a_file_and_from_references(tmp_path: Path) -> None:
    for file in files(tmp_path):
        scorer = load_scorer(f"chair:{file}")
        assert scorer.required_columns == ("image_id",) and scorer.optional_columns == ("references",)
        captions, ids = ["a dog on a bench", "a dog"], ["42", "000000000007"]
        np.testing.assert_array_equal(
            scorer.rows(captions, image_id=ids), [[1, 2, 1, 1, 2], [1, 1, 1, 0, 0]], err_msg=str(file)
        )
        assert "truth:" + file.name in scorer.signature and "+references" not in scorer.signature
        both = scorer.rows(captions, image_id=ids, references=[["a bench"], []])
        np.testing.assert_array_equal(both, [[0, 2, 0, 2, 3], [1, 1, 1, 0, 0]])
        assert "+references|" in scorer.signature
        with pytest.raises(ScorerError, match="says nothing about image '43'"):
            scorer.rows(["a dog"], image_id=["43"])
    by_name = load_scorer(f"chair:{tmp_path / 'instances.json'}").rows(["a dog"], image_id=["a.jpg"])
    np.testing.assert_array_equal(by_name, [[0, 1, 0, 1, 2]])


def test_names_of_the_file_are_read_as_labels_are(tmp_path: Path) -> None:
    file = tmp_path / "objects.json"
    file.write_text('{"1": ["teddy_bear", "gizmo"], "2": ["hot_dog"]}')
    with counting() as counts:
        rows = load_scorer(f"chair:{file}").rows(["a teddy bear", "a dog"], image_id=["1", "2"])
    np.testing.assert_array_equal(rows, [[0, 1, 0, 1, 1], [1, 1, 1, 0, 1]])
    assert [(what, list(ids)) for what, ids in counts.items()] == [
        ("labels of objects.json that name no object of the vocabulary", ["gizmo"])
    ]
    file.write_text('{"1": ["Hund"], "2": ["Katze"]}')
    with pytest.raises(ScorerError, match="objects.json: none of its 2 labels .* names an object of the vocabulary"):
        load_scorer(f"chair:{file}").rows(["a dog"], image_id=["1"])


def test_underscores_of_the_vocabulary_are_its_own(tmp_path: Path) -> None:
    words, file = tmp_path / "words.json", tmp_path / "objects.json"
    words.write_text('{"traffic_light": []}')
    file.write_text('{"1": ["traffic_light"]}')
    scorer = load_scorer(f"chair:{file}?vocabulary={words}")
    np.testing.assert_array_equal(scorer.rows(["a traffic_light"], image_id=["1"]), [[0, 1, 0, 1, 1]])


def detections(folder: Path, classes: list[str] | None = None) -> Path:
    rows = [{"image_id": 43, "objects": [{"label": "dog", "score": 0.9}, {"label": "sofa", "score": 0.5}]}]
    rows += [{"image_id": "42", "objects": [{"label": "cat", "score": 0.9}]}, {"image_id": "44", "objects": []}]
    file = folder / "found.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if classes:
        file.with_name("found.jsonl.settings.json").write_text(json.dumps({"classes": classes}))
    return file


def test_detections_where_there_is_no_annotation(tmp_path: Path) -> None:
    plain = files(tmp_path)[1]
    scorer = load_scorer(f"chair:{plain}?detections={detections(tmp_path)}")
    assert scorer.required_columns == ("image_id",)
    captions, ids = ["a dog and a cat", "a dog on a couch by a bench", "a dog"], ["42", "000000000043", "44"]
    rows = scorer.rows(captions, image_id=ids)
    # of image 42 the file says dog and person, so that the detected cat does not count
    np.testing.assert_array_equal(rows, [[1, 2, 1, 1, 2, 0], [1, 3, 1, 2, 2, 1], [1, 1, 1, 0, 0, 1]])
    figures = scorer.corpus(rows)
    assert figures["by_detections"] == pytest.approx(2 / 3) and figures["chair_i"] == 0.5
    assert f"|truth:{plain.name}@" in scorer.signature and "+detections:found.jsonl@" in scorer.signature
    with pytest.raises(
        ScorerError, match="says nothing about image '45'; .*plain.json has 2 .*found.jsonl has 3 images"
    ):
        scorer.rows(["a dog"], image_id=["45"])


def test_detections_alone_and_with_references(tmp_path: Path) -> None:
    scorer = load_scorer(f"chair:?detections={detections(tmp_path, ['dog', 'couch', 'cat'])}")
    assert scorer.required_columns == ("image_id",) and scorer.optional_columns == ("references",)
    # the detector knows no benches: they are not held against a caption
    np.testing.assert_array_equal(scorer.rows(["a dog, a cat, a bench"], image_id=["43"]), [[1, 2, 1, 1, 2, 1]])
    both = scorer.rows(["a dog, a cat, a bench"], image_id=["43"], references=[["a bench", "a cat"]])
    np.testing.assert_array_equal(both, [[0, 3, 0, 3, 4, 1]])
    assert "+references|" in scorer.signature
    with pytest.raises(ScorerError, match="there is no file of detections"):
        load_scorer(f"chair:?detections={tmp_path}/no.jsonl").check()
    with pytest.raises(ScorerError, match=r"found.jsonl holds detections: write chair:\?detections="):
        load_scorer(f"chair:{tmp_path}/found.jsonl").rows(["a dog"], image_id=["43"])


def test_needs_references_without_a_file() -> None:
    with pytest.raises(MissingColumn, match="references"):
        check_needs([load_scorer("chair")], {}, 1)
    with pytest.raises(ValueError, match="caption 0 has no reference"):
        load_scorer("chair").rows(["a dog"], references=[[]])
    assert load_scorer("chair").required_columns == ("references",)


def test_any_vocabulary(tmp_path: Path) -> None:
    file = tmp_path / "words.json"
    file.write_text(json.dumps({"waterfowl": ["wild goose", "duck"], "bow": [], "": ["goose bump", "rubber duck"]}))
    scorer = load_scorer(f"chair:?vocabulary={file}")
    said = "Wild geese, ducks and rubber ducks: goose bumps on a bow, no goose."
    assert scorer.mentions(said) == ["waterfowl", "waterfowl", "bow"]
    rows = scorer.rows(["a duck"], references=[["a wild goose"]])
    assert rows[0, :2].tolist() == [0, 1] and f"vocabulary:{file.name}@" in scorer.signature


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"sofa": ["couch"], "couch": []}', "'couch' is in two classes, 'sofa' and 'couch'"),
        ('{"sofa": ["couch"], "sofa": ["settee"]}', "the key 'sofa' stands twice"),
        ('["sofa"]', "must be a JSON object"),
        ('{"sofa": "couch"}', "must be a JSON object"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_bad_vocabulary(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "words.json").write_text(content)
    with pytest.raises(ScorerError, match=message):
        load_scorer(f"chair:?vocabulary={tmp_path / 'words.json'}").rows(["a"], references=[["a"]])


@pytest.mark.parametrize("content", ['{"1": ["dog"]}\n{"1": ["cat"]}', '{"1": ["dog"], "1": ["cat"]}'])
def test_an_image_that_stands_twice_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "objects.jsonl").write_text(content)
    with pytest.raises(ScorerError, match=r"objects\.jsonl.*'1'"):
        load_scorer(f"chair:{tmp_path / 'objects.jsonl'}").rows(["a dog"], image_id=["1"])


@pytest.mark.parametrize("content", ['[{"a": 1}]', '{"1": "dog"}', '{"1": ["dog"]}\n[2]', "nonsense", '"text"'])
def test_a_bad_file_of_objects(tmp_path: Path, content: str) -> None:
    (tmp_path / "objects.json").write_text(content)
    with pytest.raises(ScorerError, match=r"objects\.json"):
        load_scorer(f"chair:{tmp_path / 'objects.json'}").rows(["a"], image_id=["1"])


def test_missing_files_and_settings(tmp_path: Path) -> None:
    load_scorer("chair").check()
    for spec in (f"chair:{tmp_path}/no.json", f"chair:?vocabulary={tmp_path}/no.json"):
        with pytest.raises(ScorerError, match="there is no such file"):
            load_scorer(spec).check()
    with pytest.raises(ValueError, match="unknown setting 'vocab'"):
        load_scorer("chair:?vocab=x")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"annotations": [{"image_id": 1}], "categories": [{"id": 1}]}'])
def test_c1_a_file_of_another_form_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "objects.json"
    file.write_text(text)
    with pytest.raises(ScorerError, match=r"objects\.json"):
        load_scorer(f"chair:{file}").rows(["a dog"], image_id=["1"])
