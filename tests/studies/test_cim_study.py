"""The CIM study: what it runs, its figures by hand, how it goes on after it was stopped. Nothing is trained here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captune.corpus import Corpus
from captune.scorers.image.retrieval import GRC, QIR
from captune.storybook import load
from captune.storybook.parser import judged
from captune.storybook.world import Scene, Thing, sample_scene
from studies._lib.rows import expand
from studies.cim import detail, evaluate, experiments, galleries, tables, train, verification

SEEDS = (7, 8)


def specs(section: str, seeds: tuple[int, ...]) -> list[experiments.Spec]:
    return list(expand(experiments.ROWS[section], seeds, ["storybook"]))


@pytest.fixture
def shop(tiny_folder: Any, tmp_path: Path) -> train.Workshop:
    return train.Workshop(str(tiny_folder("idefics3")), tmp_path / "work")


# -- what is run ---------------------------------------------------------------------------------------------------


def test_rows_of_a_section_differ(shop: train.Workshop) -> None:
    for section in experiments.ROWS:
        keys = [shop.key(spec) for spec in specs(section, SEEDS)]
        assert len(set(keys)) == len(keys) > 1, section


def test_the_papers_settings_hold_for_every_row() -> None:
    trained = [s.training for section in experiments.ROWS for s in specs(section, SEEDS) if s.kind == "grpo"]
    assert {t.generations for t in trained} == {5} and {(t.steps, t.images) for t in trained} == {(60, 16)}
    assert GRC("runs/corpus").k == QIR("runs/corpus").k == 5


def test_a_row_that_two_sections_have_is_one_run(shop: train.Workshop) -> None:
    both = next(s for s in specs("ablation", SEEDS) if s.name == experiments.BOTH)
    same = [s for name in ("scaling", "robustness") for s in specs(name, SEEDS) if shop.key(s) == shop.key(both)]
    assert [s.name for s in same] == ["2000 images", f"text: {experiments.MINILM}"]


def test_another_image_is_never_the_own_one_and_always_the_same() -> None:
    names = [f"i{k}" for k in range(9)]

    class Images:
        def __len__(self) -> int:
            return len(names)

        def __getitem__(self, key: Any) -> Any:
            return names if key == "image_id" else {"image": names[key].upper()}

    class Reward:
        name = "qir"

        def __call__(self, texts: list[str], *, image: list[str], image_id: list[str]) -> list[str]:
            assert image == [name.upper() for name in image_id]
            return image_id

    given: list[Any] = train.on_wrong_image(Reward(), Images(), train.cycle(len(names)))(
        ["a"] * 18, image_id=names * 2, image=names * 2
    )
    assert all(a != b for a, b in zip(given, names * 2, strict=True))
    assert given[:9] == given[9:] and sorted(given[:9]) == names


# -- figures by hand -----------------------------------------------------------------------------------------------


def scene(*things: tuple[str, str | None, str]) -> Scene:
    spots = [(0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)]
    return Scene("beach", 0, tuple(Thing(k, s, c, "big", *xy) for (k, s, c), xy in zip(things, spots, strict=False)))


def test_kinds_and_sub_kinds_told() -> None:
    seen = scene(("fish", "striped", "red"), ("tree", "palm", "green"), ("cup", None, "blue"))
    assert verification.mentioned("a striped fish and a pine tree and a cup", seen) == (2, 2, 1)
    assert verification.mentioned("a palm", seen) == (2, 1, 1)
    assert verification.mentioned("a striped fish and a spotted fish", seen) == (2, 1, 0)
    assert verification.mentioned("a spotted bird", seen) == (2, 0, 0)
    texts = [seen.to_json()] * 2
    assert verification.hierarchy(["a striped fish", "a tree"], texts) == {"species_acc": 0.5, "breed_acc": 0.25}


def test_correlation_over_bins() -> None:
    values = np.repeat([1.0, 2.0, 3.0], 10)
    there, right = np.ones(30, dtype=int), np.concatenate([np.arange(10) < n for n in (2, 5, 8)]).astype(int)
    found = verification.correlation(values, there, right, size=10)
    assert found["bins"] == 3 and found["r"] == pytest.approx(1, abs=0.01)
    assert found["points"][1] == [2.0, 0.0]
    assert verification.correlation(-values, there, right, size=10)["r"] == pytest.approx(-1, abs=0.01)
    assert verification.correlation(np.ones(30), there, right, size=10)["r"] is None


def test_preference_within_an_image() -> None:
    truth = np.array([1, 0, 0, 0, 1, 1, 1, 1])
    assert verification.preference(truth * 2.0, truth) == {"preferred": 1.0, "pairs": 3}
    assert verification.preference(np.zeros(8), truth)["preferred"] == 0.5
    # what differs between the images alone counts for nothing
    assert verification.preference(np.array([0, 0, 0, 0, 9, 9, 9, 9.0]), truth)["preferred"] == 0.5
    assert verification.preference(truth * 1.0, np.ones(8)) == {"preferred": None, "pairs": 0}


def test_what_is_said_of_things_that_are_there() -> None:
    seen = scene(("fish", "striped", "red"), ("cup", None, "blue"))
    found = verification.of_things_there(["a red spotted fish left of a big cup", "a red cat above a cup"], [seen] * 2)
    assert found["attribute"] == {"stated": 0.5, "true": 1.0}  # the cat is not there
    assert found["subkind"] == {"stated": 0.5, "true": 0.0} and found["size"] == {"stated": 0.5, "true": 1.0}
    assert found["relation"] == {"stated": 0.5, "true": 1.0}
    assert verification.of_things_there(["a cat"], [seen])["relation"] == {"stated": 0.0, "true": None}


def test_levels_are_true_and_each_says_more() -> None:
    for index in range(60):
        seen = sample_scene("test", 3, index)
        said = detail.levels(seen)
        facts = [judged(text, seen) for text in said.values()]
        assert all(true for own in facts for _, true in own)
        counts = [len(own) for own in facts]
        assert counts == sorted(set(counts)), said
        assert len(said) == min(4 + (len(seen.things) > 1) + (len(seen.things) > 2), len(detail.LEVELS))


# -- galleries -----------------------------------------------------------------------------------------------------


def test_tf_idf_has_a_direction_for_any_text_and_prefers_rare_words() -> None:
    encoder = galleries.TfIdf(["a red ball", "a red cup", "a red fish"])
    unknown, ball, red, query = encoder.encode_texts(["!!!", "a ball", "a red", "a red ball"])
    assert np.linalg.norm(unknown) > 0
    assert query @ ball / np.linalg.norm(ball) > query @ red / np.linalg.norm(red)
    assert encoder.digest != galleries.TfIdf(["a red ball", "a red cup"]).digest


def test_exact_facts_retrieve_by_what_is_true(tmp_path: Path) -> None:
    images = load("train", 40)
    facts = galleries.Facts([images])
    corpus = Corpus.build(images, tmp_path / "c", text_encoder=facts, image_encoder=facts, progress=False)
    texts, columns = [own[0] for own in images["references"]], {k: images[k] for k in ("image", "image_id")}
    right = QIR("?own=1", corpus=corpus).measure(texts, columns)
    wrong = QIR("?own=1", corpus=corpus).measure(texts[1:] + texts[:1], columns)
    assert right.mean() > wrong.mean() + 0.3


# -- stopped and resumed -------------------------------------------------------------------------------------------


@pytest.fixture
def started(shop: train.Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A study whose rows take no time, and the list of those that ran."""
    ran: list[str] = []
    broken: set[str] = set()

    def quickly(self: Any, spec: experiments.Spec) -> dict[str, Any]:
        if spec.name in broken:
            raise RuntimeError("as if killed")
        ran.append(spec.name)
        return {"scores": {}}

    monkeypatch.setattr(evaluate.Study, "make", quickly)

    def start(*only: str, budget: float = 1.0) -> Any:
        folders = ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
        options = ["--base", shop.base, "--seeds", "7", "8", "--only", *only, f"--budget-minutes={budget}", "--quick"]
        return evaluate.Study(evaluate.Study.arguments([*options, *folders]))

    return start, ran, broken


def test_finished_rows_and_rows_of_other_sections_are_not_run_again(started: Any) -> None:
    start, ran, _ = started
    assert "all 3 rows" in start("sft").run()
    assert "all 3 rows" in start("sft").run()
    assert len(ran) == 3
    start("scaling", "robustness").run()
    assert len(ran) == 3 + 4 + 5  # the gallery of 2000 images with MiniLM once


def test_a_torn_file_costs_one_row(started: Any) -> None:
    start, ran, _ = started
    start("sft").run()
    file = start("sft").store.file(start("sft").store.rows[-1])
    file.write_bytes(file.read_bytes()[:-9])
    start("sft").run()
    assert len(ran) == 4
    assert json.loads(file.read_text())["versions"]["torch"]


def test_a_row_that_fails_is_named_and_the_others_go_on(started: Any) -> None:
    start, ran, broken = started
    broken.add("1000 images")
    assert "1 of 4 rows failed: scaling: 1000 images" in start("scaling").run()
    assert ran == ["250 images", "2000 images", "8000 images"]
    assert "4 rows are left" in start("scaling", budget=-1.0).run()


# -- tables --------------------------------------------------------------------------------------------------------


def row(name: str, f1: float, *, seed: int = 7, section: str = "ablation", role: str = "cim") -> dict[str, Any]:
    exact = {"values": {"fact_f1": f1}, "interval": {"fact_f1": [f1, f1]}}
    scores = {"storybook": exact, "species": {"values": {"species_acc": f1, "breed_acc": f1 / 2}}}
    return {"section": section, "name": name, "seed": seed, "role": role,
            "scores": dict.fromkeys(("test", "ood", "val"), scores)}  # fmt: skip


ROWS = [
    row("base", 0.1, role="base"), row("supervised", 0.9, role="supervised"),
    row(experiments.BOTH, 0.7), row(experiments.QIR, 0.8),
    row("supervised", 0.6, role="supervised", seed=8), row(experiments.BOTH, 0.2, seed=8),
    row('forced opening "a"', 0.12, role="control"), row('forced opening "b"', 0.5, role="control"),
]  # fmt: skip


def test_gaps_are_closed_per_training_seed() -> None:
    runs = tables.Runs(ROWS)
    assert runs.gaps("ablation", experiments.BOTH, "test", "fact F1") == pytest.approx([0.75, 0.2])
    assert (
        tables.Runs([*ROWS, row(experiments.BOTH, 0.5)]).gaps("ablation", experiments.BOTH, "test", "fact F1")[0] < 0.75
    )


def test_tables_and_plots_are_written_and_stay_the_same(tmp_path: Path) -> None:
    found = {"r": 0.5, "points": [[1, 2], [2, 3]], "breeds": {"preferred": 0.6}, "facts": {"preferred": None}}
    own = {
        "species_acc": 0.9,
        "breed_acc": 0.4,
        "fact_f1": 0.3,
        "of_things_there": {key: {"stated": 1, "true": 0.5} for key in ("attribute", "size", "subkind", "relation")},
        "measures": dict.fromkeys(tables.MEASURES, found),
    }
    verify = {"section": "verification", "name": "base, MiniLM", "seed": 7, "role": "",
              "populations": {"one thing": own, "scenes": own}}  # fmt: skip
    files = tables.write([*ROWS, verify], tmp_path)
    before = [file.read_bytes() for file in files]
    text = (tmp_path / "tables.md").read_text()
    claim = "GRC + QIR closes >= 0.5 of the fact-F1 gap to supervision"
    assert f"| {claim} | 0.475 (0.200 to 0.750) | **no** |" in text
    assert "| GRC + QIR closes more of it than QIR alone, with every seed (by) | -0.125 | **no** |" in text
    assert '| forced opening "b" closes <= 0.25 of it | 0.500 | **no** |' in text
    assert "| base, MiniLM | 0.90 | 0.40 | 0.30 | 0.50 |" in text
    assert [file.name for file in files] == ["tables.md", "verification.svg", "ablation.svg"]
    assert [file.read_bytes() for file in tables.write([*ROWS, verify], tmp_path)] == before
