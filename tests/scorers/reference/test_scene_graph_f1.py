from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from captune.errors import MissingColumn, ScorerError
from captune.evaluation.statistics import evaluate
from captune.scorers import load_scorer
from captune.scorers.reference.scene_graph_f1 import Attributes, Objects, Relations


class Exact:
    """An encoder for which two texts are alike only when they are equal."""

    name, digest = "exact", "0"

    def __init__(self) -> None:
        self.places: dict[str, int] = {}

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        return torch.eye(100)[[self.places.setdefault(text, len(self.places)) for text in texts]]


CAPTION = "A black dog on a sofa and a lamp."
REFERENCE = "A big black dog on a red sofa next to a window."


def row(scorer, caption: str, references: list[str], image: str | None = None) -> np.ndarray:
    ids = {} if image is None else {"image_id": [image]}
    return scorer.rows([caption], references=[references], **ids)[0]


def write(path: Path, content: dict, *, lines: bool = False) -> str:
    parts = [{key: value} for key, value in content.items()] if lines else [content]
    path.write_text("\n".join(json.dumps(part) for part in parts) + "\n", encoding="utf-8")
    return str(path)


def test_objects_against_the_references() -> None:
    # dog, sofa, lamp against dog, sofa, window
    assert row(Objects(encoder=Exact()), CAPTION, [REFERENCE])[:3] == pytest.approx([2 / 3, 2 / 3, 2 / 3])
    # two references are one text
    both = row(Objects(encoder=Exact()), CAPTION, [REFERENCE, "A lamp and a rug."])
    assert both[:3] == pytest.approx([1, 3 / 5, 2 * 0.6 / 1.6])
    first = row(Objects("?compat=published", encoder=Exact()), CAPTION, [REFERENCE, "A lamp and a rug."])
    assert first[:2] == pytest.approx([2 / 3, 2 / 3], abs=1e-5)


@pytest.mark.parametrize("lines", [True, False])
def test_a_file_widens_the_precision_of_objects_only(tmp_path: Path, lines: bool) -> None:
    file = write(tmp_path / "objects.jsonl", {"a": ["Lamps", "rug"], "b": []}, lines=lines)
    scorer = load_scorer(f"objects:{file}")
    scorer._encoder = Exact()
    assert row(scorer, CAPTION, [REFERENCE], "a")[:3] == pytest.approx([1, 2 / 3, 0.8])
    assert row(scorer, CAPTION, [REFERENCE], "b")[:3] == pytest.approx([2 / 3] * 3)
    assert "|truth:objects.jsonl@" in scorer.signature


def test_attributes_by_the_formula(tmp_path: Path) -> None:
    scorer = Attributes(encoder=Exact())
    # references: dog has big and black, sofa has red; of them the caption's dog has black, its sofa nothing. The most
    # similar object of the sofa has cosine 0, so the sofa weighs nothing.
    assert row(scorer, CAPTION, [REFERENCE])[:3] == pytest.approx([1.0, 0.5, 2 / 3])
    file = write(tmp_path / "attributes.json", {"a": {"dog": ["small"], "sofa": []}})
    scorer = Attributes(file, encoder=Exact())
    assert row(scorer, CAPTION, [REFERENCE], "a")[:3] == pytest.approx([0.0, 0.5, 0.0])


def test_attributes_weigh_by_the_similarity_of_objects() -> None:
    vectors = {"puppy": [0.6, 0.8, 0, 0], "dog": [1, 0, 0, 0], "red": [0, 0, 1, 0], "dark": [0, 0, 0, 1],
               "car": [0, 1, 0, 0]}  # fmt: skip

    class Chosen(Exact):
        def encode_texts(self, texts: list[str]) -> torch.Tensor:
            return torch.tensor([vectors[text] for text in texts], dtype=torch.float32)

    # the puppy's best is the car (0.8), which is dark: 0 of weight 0.8; the car's best is the car itself
    got = row(Attributes(encoder=Chosen()), "a red dog and a dark car", ["a red puppy and a dark car"])
    assert got[1] == pytest.approx((0.8 * 0 + 1.0 * 1) / (0.8 + 1.0))


def test_relations() -> None:
    scorer = Relations(encoder=Exact())
    assert row(scorer, CAPTION, [REFERENCE])[:3] == pytest.approx([1 / 2, 1 / 2, 1 / 2])  # dog on sofa; lamp, window
    with pytest.raises(ValueError, match="takes no argument"):
        load_scorer("relations:objects.jsonl")


def test_what_is_undefined_is_left_out_and_what_says_nothing_is_zero() -> None:
    for cls in (Objects, Attributes, Relations):
        scorer = cls(encoder=Exact())
        rows = scorer.rows([CAPTION, "", CAPTION], references=[[CAPTION], [CAPTION], ["🎈"]])
        np.testing.assert_allclose(rows[:, :3], [[1, 1, 1], [0, 0, 0], [0, 0, 0]])
        np.testing.assert_allclose(rows[:, 3:6], [[1, 1, 1], [1, 1, 1], [0, 0, 0]])
        assert scorer.corpus(rows)[f"{scorer.name}_f1"] == pytest.approx(0.5)
        assert np.isnan(scorer.per_caption(rows)).tolist() == [False, False, True]


@pytest.mark.parametrize("cls", [Objects, Attributes])
def test_published_skips_images_without_attributes(cls: type) -> None:
    captions, references = [CAPTION, "A dog.", CAPTION], [[REFERENCE], [REFERENCE], ["A dog."]]
    default = cls(encoder=Exact())
    published = cls("?compat=published", encoder=Exact())
    rows = published.rows(captions, references=references)
    assert rows[:, 5].tolist() == [1, 0, 0]
    fair = default.rows(captions, references=references)
    assert fair[1, 5] == 1 and fair[1, 2] < fair[0, 2]
    assert published.corpus(rows)[f"{cls.name}_f1"] > default.corpus(fair)[f"{cls.name}_f1"]  # the terse one is skipped


def test_ids_are_looked_up_as_in_other_files_of_truth(tmp_path: Path) -> None:
    file = write(tmp_path / "objects.json", {"42": ["lamp"], "cafe\u0301.jpg": ["lamp"]})
    scorer = Objects(file, encoder=Exact())
    rows = scorer.rows([CAPTION] * 2, references=[[REFERENCE]] * 2, image_id=["000000000042", "caf\u00e9.jpg"])
    assert rows[:, 6].tolist() == [0, 0]


def test_images_that_the_file_lacks_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path / "objects.json", {"a": ["lamp"]})
    scorer = Objects(file, encoder=Exact())
    columns = {"references": [[REFERENCE], [REFERENCE]], "image_id": ["a", "zebra"]}
    with caplog.at_level(logging.WARNING):
        result = evaluate([CAPTION, CAPTION], columns, [scorer], bootstrap=20)["objects"]
    assert "says nothing of 1 of 2 images, such as 'zebra'" in caplog.text
    assert result.values == pytest.approx(
        {"objects_f1": 0.8, "objects_precision": 1.0, "objects_recall": 2 / 3, "objects_left_out": 1.0}
    )
    assert "objects_left_out" not in result.interval
    with pytest.raises(ScorerError, match="2 of 2 images, such as 'x'; its ids are like 'a'"):
        scorer.rows([CAPTION] * 2, references=columns["references"], image_id=["x", "y"])


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ScorerError, match="there is no file .*; it holds"):
        load_scorer(f"objects:{tmp_path / 'none.jsonl'}").check()
    bad = tmp_path / "bad.json"
    for content, message in (
        ("{", "is not valid JSON"),
        ('["a"]', "not of the form"),
        ('{"a": {"b": []}}', "form"),
        ('{"a": []}\n{"b": [], "a": []}', "line 2: a second entry of image 'a'"),
        ('{"a": [], "a": []}', "'a' stands twice"),
    ):
        bad.write_text(content)
        with pytest.raises(ScorerError, match=message):
            _ = Objects(str(bad)).truth
    with pytest.raises(MissingColumn, match="image_id"):
        evaluate(["a"], {"references": [["a"]]}, [Objects(write(tmp_path / "o.json", {"a": []}), encoder=Exact())])
