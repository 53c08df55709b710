from __future__ import annotations

import json
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captune.evaluation.run import evaluate_files
from captune.evaluation.statistics import bootstrap_interval, evaluate, paired, permutation_test
from captune.scorers import Scorer, load_scorer


class Mean(Scorer):
    """The mean of numbers written as captions."""

    name = "mean"

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        return np.array([[float(c)] for c in captions])


class Median(Mean):
    """Not a function of totals."""

    name = "median"

    def corpus(self, rows: np.ndarray) -> dict[str, float]:
        return {"median": float(np.median(rows))}


@pytest.fixture
def data(golden: dict) -> tuple[list[str], dict[str, Any]]:
    items = golden["flickr8k"]["items"]
    return [i["caption"] for i in items], {"references": [i["references"] for i in items]}


def test_the_interval_of_a_mean_is_the_textbook_one() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, size=400)
    low, high = evaluate([str(v) for v in values], {}, [Mean()], bootstrap=4000)["mean"].interval["mean"]
    error = values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)


def test_the_product_of_counts_equals_resampling_row_by_row(data: tuple) -> None:
    class Slow(type(load_scorer("bleu"))):
        def corpus(self, rows: np.ndarray) -> dict[str, float]:
            return super().corpus(rows)

    captions, columns = data[0][:40], {"references": data[1]["references"][:40]}
    fast = evaluate(captions, columns, ["bleu"], bootstrap=300, seed=3)["bleu"]
    slow = evaluate(captions, columns, [Slow()], bootstrap=300, seed=3)["bleu"]
    assert fast.values == slow.values
    for key, interval in fast.interval.items():
        assert interval == pytest.approx(slow.interval[key], abs=1e-9)


def test_any_corpus_figure_has_an_interval() -> None:
    result = evaluate([str(i) for i in range(101)], {}, [Median()], bootstrap=200)["median"]
    low, high = result.interval["median"]
    assert 30 < low < 50 < high < 70 and result.value == 50


def test_results_follow_from_the_seed(data: tuple) -> None:
    captions, columns = data
    names = ["bleu", "rouge", "cider", "health"]
    first, again = (evaluate(captions, columns, names, bootstrap=100, seed=1) for _ in range(2))
    other = evaluate(captions, columns, names, bootstrap=100, seed=2)
    for name in names:
        assert first[name].values == again[name].values == other[name].values
        assert first[name].interval == again[name].interval
    assert first["cider"].interval != other["cider"].interval
    assert first["cider"].n == len(captions) == len(first["cider"].per_caption)
    low, high = first["cider"].interval["cider"]
    assert low < first["cider"].value < high


def test_one_caption_has_no_interval(data: tuple) -> None:
    captions, columns = data
    result = evaluate(captions[:1], {"references": columns["references"][:1]}, ["bleu", "cider", "length"])
    assert all(r.interval == {} for r in result.values())
    assert result["length"].value > 0
    assert evaluate(captions, columns, ["bleu"], bootstrap=0)["bleu"].interval == {}


def test_a_duplicated_corpus_has_the_same_figures(data: tuple) -> None:
    captions, columns = data
    twice = {"references": columns["references"] * 2}
    for name in ("bleu", "rouge"):
        once = evaluate(captions, columns, [name], bootstrap=0)[name].values
        assert evaluate(captions * 2, twice, [name], bootstrap=0)[name].values == pytest.approx(once, abs=1e-9)


def test_five_hundred_captions_take_well_under_a_second(data: tuple) -> None:
    captions, references = (data[0] * 2)[:500], (data[1]["references"] * 2)[:500]
    for name in ("bleu", "rouge", "cider", "health"):
        scorer = load_scorer(name)
        rows = scorer.rows(captions, references=references)
        start = time.process_time()
        bootstrap_interval(scorer, rows, list(scorer.corpus(rows)), resamples=1000, seed=0)
        assert time.process_time() - start < 1.0  # measured: 0.01


def test_paired_finds_a_difference_and_no_difference(data: tuple) -> None:
    captions, references = data[0], data[1]["references"]
    scorer = load_scorer("rouge")
    good = scorer.rows(captions, references=references)
    bad = scorer.rows(captions[1:] + captions[:1], references=references)
    result = paired(good, bad, scorer, resamples=999)
    assert result.p_value["rouge"] == 0.001
    low, high = result.interval["rouge"]
    assert 0 < low < result.difference["rouge"] < high
    backwards = paired(bad, good, scorer, resamples=999)
    assert backwards.difference["rouge"] == -result.difference["rouge"] and backwards.p_value == result.p_value

    same = paired(good, good, scorer, resamples=999)
    assert same.p_value["rouge"] == 1.0 and same.interval["rouge"] == (0.0, 0.0)


def test_paired_p_values_are_uniform_when_nothing_differs() -> None:
    rng = np.random.default_rng(0)
    p = [paired(*rng.normal(size=(2, 40, 1)), Mean(), resamples=199, seed=i).p_value["mean"] for i in range(200)]
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.10
    assert 0.40 < np.mean(p) < 0.60


def test_pairing_matters() -> None:
    """A small gain on every image is certain even where images differ much more."""
    rng = np.random.default_rng(0)
    base = rng.normal(0, 10, size=(60, 1))
    result = paired(base + 0.2 + rng.normal(0, 0.1, size=(60, 1)), base, Mean(), resamples=999)
    assert result.p_value["mean"] < 0.01 and result.interval["mean"][0] > 0.1


def test_paired_works_without_totals_and_refuses_other_shapes() -> None:
    rows = np.arange(30.0)[:, None]
    result = paired(rows + 3, rows, Median(), resamples=200)
    assert result.difference["median"] == 3 and result.p_value["median"] < 0.1
    with pytest.raises(ValueError, match="same images"):
        paired(rows, rows[1:], Mean())
    alone = paired(rows[:1], rows[:1] + 1, Mean())
    assert alone.difference == {"mean": -1.0} and alone.interval == alone.p_value == {}


def test_the_permutation_test_of_differences_is_that_of_paired_rows() -> None:
    rng = np.random.default_rng(3)
    for n, shift in ((2, 0.0), (40, 0.1), (200, 0.02), (300, 0.5)):
        a, b = rng.random(n) + shift, rng.random(n).round(1)
        assert permutation_test(a - b) == paired(a[:, None], b[:, None], Scorer()).p_value[""]
    assert permutation_test(np.ones(1)) == 1.0


def test_a_result_is_a_table() -> None:
    result = evaluate(["a dog", "a cat sits"], {}, ["health"])["health"]
    frame = result.to_pandas()
    assert list(frame.columns) == ["value", "low", "high"] and frame.loc["length", "value"] == 2.5
    assert np.isnan(frame.loc["vocabulary", "low"]) and "<table" in result._repr_html_()


def test_results_are_a_dict_a_table_and_a_frame(tmp_path: Path) -> None:
    captions, columns = ["a dog", "a cat"], {"references": [["a dog runs"], ["the cat"]]}
    found = evaluate(captions, columns, ["bleu", "rouge"], bootstrap=0)
    frame = found.to_pandas()
    assert dict(found).keys() == {"bleu", "rouge"} and found["rouge"].value == frame.set_index("figure").value["rouge"]
    assert list(frame.figure) == ["bleu_4", "bleu_1", "bleu_2", "bleu_3", "rouge"] and frame.low.isna().all()
    shown = found._repr_html_()
    assert shown.count("<table") == 1 and "None" not in shown and found["bleu"].signature in shown
    assert pickle.loads(pickle.dumps(found)).rows == found.rows

    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"image_id": "1", "caption": "a <dog>"}\n')
    files = evaluate_files([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], scorers=["length"], bootstrap=0)
    assert list(files.to_pandas().file) == [str(tmp_path / f"{name}.jsonl") for name in ("a", "b")]
    assert json.loads(json.dumps(files)) == files and files._repr_html_().count("<tr") == 3
