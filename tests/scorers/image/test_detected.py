"""`detected`: counts by hand, from a model, a file and a column; what an empty caption and an empty image score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from captune.errors import DetectorError, EvaluationError, MissingColumn, ScorerError, SpecError
from captune.evaluation.cache import Cache
from captune.evaluation.run import evaluate_files
from captune.models.detectors import Detections
from captune.models.detectors.base import COCO_NAMES
from captune.scorers import check_needs, load_scorer
from captune.scorers._support.detections import DetectionFile
from captune.scorers.image.detected import Detected
from captune.utils.skipped import counting

CAPTIONS = ["a dog and two puppies on a bench", "a man with his cat", "green grass", "", "a bird", ""]
FOUND = [
    [{"label": "dog", "score": 0.9}, {"label": "dog", "score": 0.5}, {"label": "person", "score": 0.4}],
    [{"label": "person", "score": 0.8}, {"label": "cat", "score": 0.2}, {"label": "sofa", "score": 0.9}],
    [{"label": "cow", "score": 0.9}],
    [{"label": "cow", "score": 0.9}],
    [],
    [],
]
# found and named, named, found, nothing found: dog of dog, bench, and dog, person; person, cat of those and couch
ROWS = [[1, 2, 2, 0], [2, 2, 3, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 1]]
IDS = [f"{number}.jpg" for number in range(6)]


def save(path: Path, classes: Sequence[str] | None = None, threshold: float | None = None) -> Path:
    rows = [{"image_id": i, "size": [9, 9], "objects": found} for i, found in zip(IDS, FOUND, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if classes is not None or threshold is not None:
        settings = {"classes": classes, "generation": {"threshold": threshold}}
        path.with_name(f"{path.name}.settings.json").write_text(json.dumps(settings))
    return path


class Fake:
    """Finds what is written down for the image's colour."""

    name, nms, digest = "fake.onnx", 0.5, "abcd1234"
    classes = ("person", "dog", "cat", "sofa", "cow", "wheelbarrow")

    def __init__(self) -> None:
        self.looked: list[int] = []

    def detect(self, images: Sequence[Any], *, threshold: float, nms: float | None = None) -> list[Detections]:
        made = []
        for image in images:
            number = image.getpixel((0, 0))[0]
            self.looked.append(number)
            labels = tuple(one["label"] for one in FOUND[number] if one["score"] >= threshold)
            made.append(Detections(np.zeros((len(labels), 4)), np.ones(len(labels)), labels, image.size))
        return made


def images() -> list[Any]:
    return [PILImage.new("RGB", (8, 8), (number, 0, 0)) for number in range(6)]


def test_counts_by_hand_from_a_column_and_from_a_file(tmp_path: Path) -> None:
    by_file = load_scorer(f"detected:?detections={save(tmp_path / 'found.jsonl')}")
    assert by_file.required_columns == ("image_id",)
    rows = by_file.rows(CAPTIONS, image_id=IDS)
    np.testing.assert_array_equal(rows, ROWS)
    by_column = load_scorer("detected")
    assert by_column.required_columns == ("objects",)
    np.testing.assert_array_equal(by_column.rows(CAPTIONS, objects=FOUND), ROWS)
    figures = by_file.corpus(rows)
    assert next(iter(figures)) == "detected"
    assert figures == pytest.approx({"detected": 2 * 3 / (5 + 7), "precision": 3 / 5, "recall": 3 / 7,
                                     "mentions": 5 / 6, "nothing_found": 2 / 6})  # fmt: skip
    assert by_column(CAPTIONS, objects=FOUND) == pytest.approx([2 / 4, 4 / 5, 0, 0, 0, 0])


def test_an_empty_caption_never_wins() -> None:
    """Whatever is found: no caption scores less than an empty one, and it gets nothing."""
    scorer = load_scorer("detected")
    for found in FOUND:
        empty, *others = scorer(["", "a dog", "a cow and a cat", "nothing"], objects=[found] * 4)
        assert empty == 0 and min(others) >= 0
    assert scorer(["grass"], objects=[[]]) == [0.0]


def test_a_list_of_all_objects_does_not_win_either() -> None:
    scorer = load_scorer("detected")
    everything = " and a ".join(sorted(set(scorer.vocabulary.classes.values()) - {""}))
    all_of_them, right = scorer([everything, "a person with a dog"], objects=[FOUND[0]] * 2)
    assert 0 < all_of_them < 0.1 and right == 1


def test_a_model_looks_at_each_image_once_and_alone(tmp_path: Path) -> None:
    fake = Fake()
    scorer = Detected(detector=fake)
    assert scorer.required_columns == ("image",) and scorer.threshold == 0.3
    with counting() as left_out:
        rows = scorer.rows([*CAPTIONS, "a cow"], image=[*images(), images()[2]])
    # the cat scores less than .3; the detector cannot find benches and birds, which then are not held against it
    expected = [[1, 1, 2, 0], [1, 2, 2, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 0]]
    np.testing.assert_array_equal(rows, expected)
    assert list(left_out) == ["labels of fake.onnx that name no object of the vocabulary"]
    assert list(next(iter(left_out.values()))) == ["wheelbarrow"]
    assert sorted(fake.looked) == list(range(6))
    assert scorer(CAPTIONS, image=images(), prompts=[""] * 6) == pytest.approx([2 / 3, 1 / 2, 0, 0, 0, 0])
    assert len(fake.looked) == 6
    assert scorer.signature.startswith("detected|model:fake.onnx@abcd1234|nms:0.5|threshold:0.3|vocabulary:coco80")
    assert Detected("?threshold=0.1", detector=fake).rows(["a cat"], image=[images()[1]])[0, 0] == 1
    scorer.cache, before = Cache(tmp_path), len(fake.looked)
    again = Detected(detector=fake)
    again.cache = Cache(tmp_path)
    for one in (scorer, again):
        np.testing.assert_array_equal(one.measure([*CAPTIONS], {"image": images()}), expected[:6])
    assert len(fake.looked) == before  # the second answers from the disk


def test_a_file_that_knows_its_detector(tmp_path: Path) -> None:
    file = save(tmp_path / "found.jsonl", classes=["person", "dog"], threshold=0.2)
    scorer = load_scorer(f"detected:?detections={file}&threshold=0.5")
    rows = scorer.rows(CAPTIONS, image_id=IDS)
    np.testing.assert_array_equal(rows[0], [1, 1, 1, 0])  # a bench cannot be found; the person scores less
    assert "|threshold:0.2|" in load_scorer(f"detected:?detections={file}").signature
    assert "|detections:found.jsonl@" in scorer.signature and "|threshold:0.5|" in scorer.signature
    before = scorer.signature
    save(tmp_path / "found.jsonl", classes=["person"], threshold=0.2)
    assert load_scorer(f"detected:?detections={file}&threshold=0.5").signature != before
    asks_more = load_scorer(f"detected:?detections={file}&threshold=0.1")
    for use in (asks_more.check, lambda: asks_more.rows(["a"], image_id=IDS[:1])):
        with pytest.raises(
            ScorerError, match=r"holds objects that score 0.2 or more, and threshold=0.1 asks for others"
        ):
            use()


def test_labels_of_another_vocabulary(tmp_path: Path) -> None:
    scorer = load_scorer("detected")
    found = [["couch", "traffic_light", "Ibis"], [{"label": "motorbike"}]]
    with counting() as left_out:
        rows = scorer.rows(["a sofa by the traffic light", "a motorcycle"], objects=found)
    np.testing.assert_array_equal(rows, [[2, 2, 2, 0], [1, 1, 1, 0]])
    assert list(*left_out.values()) == ["Ibis"]
    with pytest.raises(ScorerError, match=r"none of its 2 labels \(n01530575, n01689811\) names an object"):
        load_scorer("detected").rows(["a"], objects=[["n01530575", "n01689811"]])


def test_a_label_is_what_its_last_words_name() -> None:
    named = load_scorer("detected").names.classes
    assert {name: named(name) for name in COCO_NAMES} == {name: {name} for name in COCO_NAMES}
    for label, name in {
        "Computer mouse": "mouse", "Dog bed": "bed", "Car seat": "chair", "Table tennis racket": "tennis racket",
        "Dining table": "dining table", "Kitchen & dining room table": "dining table", "hot_dogs": "hot dog",
        "person, individual, someone": "person", "mouse_(computer_equipment)": "mouse", "bus (vehicle)": "bus",
    }.items():  # fmt: skip
        assert named(label) == {name}, label
    for label in ("Cat furniture", "Pizza cutter", "Toilet paper", "Ski boot", "Bicycle wheel", "", "train track"):
        with counting() as left_out:
            assert not named(label)
        assert list(*left_out.values()) == [label]


def test_other_forms_of_the_column() -> None:
    scorer = load_scorer("detected")
    as_columns = {"label": ["dog", "cow"], "score": [0.9, 0.1]}
    np.testing.assert_array_equal(scorer.rows(["a dog"], objects=[as_columns]), [[1, 1, 2, 0]])
    half = load_scorer("detected:?threshold=0.5")
    np.testing.assert_array_equal(half.rows(["a dog"], objects=[as_columns]), [[1, 1, 1, 0]])
    for wrong in ([7], [{"name": "dog"}], [{"label": "dog", "score": "much"}], 3):
        with pytest.raises(ScorerError, match=r"row 1: .* is no object such as"):
            scorer.rows(["a dog"], objects=[wrong])
    with pytest.raises(ScorerError, match=r"lists of objects have different lengths: \[1, 2\]"):
        scorer.rows(["a dog"], objects=[{"label": ["dog", "cow"], "score": [0.9]}])
    with pytest.raises(ScorerError, match="is no object such as"):
        scorer.rows(["a dog"], objects=[{}])


@pytest.mark.parametrize(("score", "said"), [("NaN", "nan"), ("Infinity", "inf"), ("87", "87"), ("-0.1", "-0.1")])
def test_a_score_that_no_threshold_fits_is_refused(tmp_path: Path, score: str, said: str) -> None:
    """An object whose score is NaN would be left out at every threshold, one in percent be kept, without a word."""
    (tmp_path / "found.jsonl").write_text(f'{{"image_id": "a", "objects": [{{"label": "dog", "score": {score}}}]}}\n')
    with pytest.raises(ScorerError, match=f"line 1: the score of 'dog' is {said}; it must be between 0 and 1"):
        load_scorer(f"detected:?detections={tmp_path}/found.jsonl").rows(["a dog"], image_id=["a"])


def test_a_file_without_settings_does_not_claim_a_threshold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = save(tmp_path / "found.jsonl")
    assert "|threshold:0 or the file's, unknown|" in load_scorer(f"detected:?detections={file}").signature
    assert "found.jsonl.settings.json is not there" in caplog.text
    assert (
        "|threshold:0.5 or the file's, unknown|" in load_scorer(f"detected:?detections={file}&threshold=0.5").signature
    )


def test_ids_that_are_one_number_are_two_images(tmp_path: Path) -> None:
    said = {"007": "dog", "7": "cat", "000000000042": "car"}
    rows = ({"image_id": name, "objects": [{"label": label, "score": 1}]} for name, label in said.items())
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = DetectionFile(tmp_path / "d.jsonl", lambda text: [text])
    assert [file.of(name) for name in ("007", "7", "42", 42, "000000000042")] == [{"dog"}, {"cat"}, *[{"car"}] * 3]
    assert file.of("8") is None and len(file.found) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no detections"),
        ('{"image_id": "a"}\n', "line 1 is no detections of an image: it needs image_id and objects"),
        ('{"image_id": "a", "objects": []}\n{"image_id": "a", "objects": []}\n', "line 2: a second line for image 'a'"),
        ('{"image_id": "a", "objects": [1]}\n', "line 1: '1' is no object such as"),
        ('{"image_id": "b", "objects": []}\n', "says nothing about image 'a'; it has 1 images with ids like 'b'"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "found.jsonl").write_text(text)
    with pytest.raises(ScorerError, match=said):
        load_scorer(f"detected:?detections={tmp_path}/found.jsonl").rows(["a dog"], image_id=["a"])


def test_what_is_missing_is_said_before_it_works(tmp_path: Path) -> None:
    with pytest.raises(ScorerError, match="there is no file of detections .*; make it with captune detect"):
        load_scorer(f"detected:?detections={tmp_path}/no.jsonl").check()
    with pytest.raises(DetectorError, match="there is no detector"):
        load_scorer(f"detected:{tmp_path}/no.onnx").check()
    with pytest.raises(SpecError, match=r"a file of captune detect is named detected:\?detections=.*found.jsonl"):
        load_scorer(f"detected:{save(tmp_path / 'found.jsonl')}")
    with pytest.raises(SpecError, match="name a model or a file of detections, not both"):
        load_scorer("detected:x.onnx?detections=found.jsonl")
    with pytest.raises(SpecError, match="unknown setting 'treshold'"):
        load_scorer("detected:x.onnx?treshold=1")
    with pytest.raises(MissingColumn, match="needs objects"):
        check_needs([load_scorer("detected")], {"image": []}, 0)


def test_evaluate_takes_the_objects_of_a_table(tmp_path: Path) -> None:
    one = {"label": Value("string"), "score": Value("float64")}
    features = Features({"image": Image(), "image_id": Value("string"), "objects": List(one)})
    table = Dataset.from_dict({"image": images(), "image_id": IDS, "objects": FOUND}, features=features)
    table.save_to_disk(str(tmp_path / "table"))
    captions = tmp_path / "caps.jsonl"
    captions.write_text(
        "".join(json.dumps({"image_id": i, "caption": c}) + "\n" for i, c in zip(IDS, CAPTIONS, strict=True))
    )
    result = evaluate_files([captions], images=str(tmp_path / "table"), scorers=["detected"], bootstrap=20)
    scores = result["scores"]["detected"]
    assert scores["value"] == pytest.approx(0.5) and "detected" in scores["interval"]
    assert scores["signature"].startswith("detected|column:objects|threshold:0|")
    (tmp_path / "photos").mkdir()
    images()[0].save(tmp_path / "photos" / "0.jpg")
    for source in (None, str(tmp_path / "photos")):
        with pytest.raises(
            EvaluationError, match=r"needs the objects of each image: name a detector, as in .* column objects"
        ):
            evaluate_files([captions], images=source, scorers=["detected"])
