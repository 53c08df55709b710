from __future__ import annotations

import numpy as np
import pytest
import torch

from captune.errors import ScorerError
from captune.evaluation.statistics import evaluate
from captune.scene_graphs import load_parser
from captune.scorers import load_scorer
from captune.scorers._support.scene_graphs import stop_words
from captune.scorers.reference.capture import Capture

RIGHT = "A black dog on a red sofa next to a window. A small ball is under the table."
CAPTIONS = [RIGHT, "A black dog on a sofa.", "Two boats on a calm lake.", "", "🎈 \u2028"]
REFERENCES = [[RIGHT], [RIGHT], [RIGHT], [RIGHT], [RIGHT]]


class Letters:
    """An encoder without a model: the counts of a text's letters."""

    name, digest = "letters", "0"
    calls = 0

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        self.calls += 1
        counts = torch.tensor([[text.count(chr(97 + i)) + 0.01 for i in range(26)] for text in texts])
        return counts / counts.norm(dim=1, keepdim=True)


def capture(argument: str | None = None) -> Capture:
    return Capture(argument, encoder=Letters())


def test_the_definition() -> None:
    scorer = capture()
    rows = scorer.rows(CAPTIONS, references=REFERENCES)
    assert rows.shape == (5, 10)
    np.testing.assert_allclose(rows[0], 1.0, atol=1e-6)
    np.testing.assert_allclose(rows[3:], 0.0)  # nothing said
    assert rows[0, 0] > max(rows[1, 0], rows[2, 0]) and min(rows[1, 0], rows[2, 0]) > 0
    precision, recall = rows[1, 1], rows[1, 2]
    # dog and sofa of dog, sofa, window, ball, table
    assert (precision, recall) == pytest.approx((1.0, 2 / 5)) and rows[1, 3] == pytest.approx(2 * 0.4 / 1.4)
    np.testing.assert_allclose(rows[:, 0], rows[:, [3, 6, 9]] @ [0.5, 0.5, 0.2] / 1.2)
    figures = scorer.corpus(rows)
    assert next(iter(figures)) == "capture" and figures["capture_object_recall"] == pytest.approx(rows[:, 2].mean())
    np.testing.assert_array_equal(scorer.per_caption(rows), rows[:, 0])


def test_several_references_are_averaged() -> None:
    scorer = capture()
    one, two = (scorer.rows([RIGHT], references=[[text]])[0] for text in (RIGHT, CAPTIONS[2]))
    np.testing.assert_allclose(scorer.rows([RIGHT], references=[[RIGHT, CAPTIONS[2]]])[0], (one + two) / 2)


def test_stop_words_are_no_objects_but_may_have_attributes() -> None:
    assert len(stop_words()) == 317 and "background" in stop_words()
    (graph,), _ = capture().graphs(["A dog in a red uniform."], [["x"]])
    assert graph.objects == ("dog",) and graph.attributes == (("uniform", "red"),)


def test_same_rows_for_any_split_and_order() -> None:
    together = capture().rows(CAPTIONS, references=REFERENCES)
    scorer = capture()
    alone = [scorer.rows([CAPTIONS[i]], references=[REFERENCES[i]])[0] for i in (4, 2, 0, 1, 3)]
    np.testing.assert_allclose(np.array(alone)[[2, 3, 1, 4, 0]], together, atol=1e-12)


def test_texts_are_parsed_and_phrases_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, seen, parser = Letters(), [], load_parser()

    class Counting:
        signature = "counting"

        def check(self) -> None: ...

        def parse(self, texts: list[str]) -> list:
            seen.extend(texts)
            return parser.parse(texts)

    scorer = Capture(encoder=encoder, parser=Counting())
    for _ in range(3):
        scorer.rows(CAPTIONS, references=REFERENCES)
    assert sorted(seen) == sorted(set(CAPTIONS)) and encoder.calls == 1


def test_published_is_in_the_signature_and_changes_scores() -> None:
    default, published = capture(), capture("?compat=published")
    assert "|compat:none|" in default.signature and "|compat:published|" in published.signature
    assert "parser:grammar-" in default.signature and "encoder:letters@0" in default.signature
    pair = (["A man in a car."], [["A woman with a scarf."]])
    assert published.rows(pair[0], references=pair[1])[0, 1] > 0.99 > default.rows(pair[0], references=pair[1])[0, 1]
    assert capture("?compat=published").published  # nothing stands before the "?": it may be left out


def test_wrong_arguments_and_missing_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown setting 'w'"):
        capture("?w=1")
    with pytest.raises(ValueError, match="compat: unknown choice 'old'"):
        capture("?compat=old")
    with pytest.raises(ValueError, match="unknown scene-graph parser"):
        capture("?parser=spacy")
    with pytest.raises(ValueError, match="caption 1 has no reference"):
        capture().rows(["a", "b"], references=[["a"], []])
    with pytest.raises(ScorerError, match="does not exist"):
        load_scorer("capture:?encoder=/nowhere/model").check()
    with pytest.raises(ScorerError, match="does not exist"):
        load_scorer("capture:?parser=factual:/nowhere/model").check()
    load_scorer("capture").check()


def test_evaluate_gives_intervals() -> None:
    result = evaluate(CAPTIONS, {"references": REFERENCES}, [capture()], bootstrap=50)["capture"]
    low, high = result.interval["capture"]
    assert low < result.value < high and len(result.values) == 10
    assert load_scorer("capture", device="cpu").cached
