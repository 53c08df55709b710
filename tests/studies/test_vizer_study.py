"""The ViZer study: what it runs, how it goes on after it was stopped, what its tables say. Nothing is trained here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from captune.storybook.parser import judged
from captune.storybook.world import sample_scene
from captune.training.vizer.train import ViZerConfig
from studies.vizer import evaluate, experiments, probing, tables, train


@pytest.fixture
def bench(tiny_folder: Any, tmp_path: Path) -> train.Bench:
    return train.Bench(str(tiny_folder("idefics3")), 7, tmp_path / "work")


# -- what is run ---------------------------------------------------------------------------------------------------


def test_every_row_has_a_config_and_rows_of_a_section_differ(bench: train.Bench) -> None:
    for section in experiments.ROWS:
        keys = [bench.key(spec) for spec in experiments.ROWS[section]]
        assert len(set(keys)) == len(keys), section


def test_choices_change_one_setting_of_the_first_but_the_last_is_the_preset(bench: train.Bench) -> None:
    preset, *changed, _ = [bench.config(spec) for spec in experiments.ROWS["choices"]]
    for config in changed:
        different = {n for n in vars(config) if getattr(config, n) != getattr(preset, n)} - {"output"}
        assert len(different) == 1, different


def test_the_preset_of_main_is_one_of_the_choices(bench: train.Bench) -> None:
    zero = next(spec for spec in experiments.ROWS["main"] if spec.name == experiments.ZERO)
    assert bench.key(zero) == bench.key(experiments.ROWS["choices"][-1])


def test_the_sweep_holds_the_papers_setting(bench: train.Bench) -> None:
    keys = {bench.key(spec) for spec in experiments.ROWS["sweep"]}
    papers = [spec for spec in experiments.ROWS["main"] if spec.name in (experiments.PAPER_G, experiments.PAPER_GT)]
    assert all(bench.key(spec) in keys for spec in papers)
    configs = [bench.config(spec) for spec in papers]
    assert all(isinstance(c, ViZerConfig) and (c.objective, c.blind, c.beta) == ("latent", False, 0.0) for c in configs)


def test_results_depend_on_the_seed_and_the_weights(bench: train.Bench, tiny_folder: Any, tmp_path: Path) -> None:
    spec = next(spec for spec in experiments.ROWS["main"] if spec.kind == "vizer")
    other = train.Bench(bench.base, 8, tmp_path)
    assert other.key(spec) != bench.key(spec)
    bigger = train.Bench(str(tiny_folder("idefics3", layers=3)), 7, tmp_path)
    assert bigger.key(spec) != bench.key(spec)


def test_a_wrong_image_is_never_the_own_one_and_always_the_same() -> None:
    names = [f"i{k}" for k in range(9)]

    class Images:
        def __len__(self) -> int:
            return len(names)

        def __getitem__(self, key: Any) -> Any:
            return names if key == "image_id" else {"image": names[key]}

    reward = train.reward_of("wrong image", lambda texts, image, **_: image, Images())
    given = reward(["a"] * 18, image_id=names * 2, image=names * 2)
    assert all(a != b for a, b in zip(given, names * 2, strict=True))
    assert given[:9] == given[9:] and sorted(given[:9]) == names


# -- stopped and resumed -------------------------------------------------------------------------------------------


@pytest.fixture
def started(bench: train.Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A study whose rows take no time, and the list of those that ran."""
    ran: list[str] = []

    def quickly(spec: experiments.Spec, *_: Any) -> dict[str, Any]:
        if spec.name in broken:
            raise RuntimeError("as if killed")
        ran.append(spec.name)
        return {"scores": {}}

    broken: set[str] = set()
    monkeypatch.setattr(evaluate, "measure", quickly)
    monkeypatch.setattr(evaluate.Study, "exams", lambda *_: {"val": None})

    def start(*only: str, budget: float = 1.0) -> evaluate.Study:
        folders = ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
        options = ["--bases", bench.base, "--only", *only, f"--budget-minutes={budget}", "--quick", *folders]
        return evaluate.Study(evaluate.Study.arguments(options))

    return start, ran, broken


def test_finished_rows_are_not_run_again(started: Any) -> None:
    start, ran, _ = started
    assert "all 6 rows" in start("main").run()
    assert "all 6 rows" in start("main").run()
    assert len(ran) == 6


def test_a_torn_file_costs_one_row(started: Any) -> None:
    start, ran, _ = started
    start("main").run()
    row = start("main").store.rows[-1]
    file = start("main").store.file(row)
    assert row["name"] == "references"
    file.write_bytes(file.read_bytes()[:-9])
    start("main").run()
    assert len(ran) == 7 and ran[-1] == "references"
    assert json.loads(file.read_text())["versions"]["torch"]


def test_a_row_that_fails_is_named_and_the_others_go_on(started: Any) -> None:
    start, ran, broken = started
    broken.add(experiments.PAPER_GT)
    assert f"1 of 6 rows failed: main: {experiments.PAPER_GT}" in start("main").run()
    broken.clear()
    assert "all 6 rows" in start("main").run()
    assert sorted(ran) == sorted({*experiments.MAIN_ROWS, "references"})


def test_no_budget_no_row(started: Any) -> None:
    start, ran, _ = started
    assert "6 rows are left" in start("main", budget=-1.0).run()
    assert not ran


# -- looking or a way of speaking ----------------------------------------------------------------------------------


def test_the_parser_agrees_which_fillings_are_true() -> None:
    seen = set()
    for index in range(150):
        scene = sample_scene("val", 5, index)
        for slot in probing.slots(scene):
            seen.add(slot.type)
            assert slot.true and slot.habit in slot.fillings
            for filling, texts in slot.fillings.items():
                if filling in probing.SILENT:
                    continue
                true = any(all(verdict for _, verdict in judged(text, scene)) for text in texts)
                assert true == (filling in slot.true), (slot.type, filling, texts, scene)
    assert seen == set(probing.SLOTS)


def test_shares_of_a_slot_are_the_models(captioner: Any, images: list) -> None:
    found = probing.slots(sample_scene("val", 5, 0))
    shares = probing.filled(captioner, images[0], found)
    assert all(sum(own.values()) == pytest.approx(1) for own in shares)
    short, long, end = probing.log_probabilities(captioner, images[0], ["a red", "a red ball", "a red ball"])
    assert long < short < 0 and long == pytest.approx(end)
    batch = captioner.prepare([images[0]], ["a red ball"])
    batch.pop("caption_mask")
    batch["labels"][0, -1] = -100  # the end token
    counted = int((batch["labels"] != -100).sum())
    assert long == pytest.approx(-float(captioner.model(**batch).loss) * counted, rel=1e-4)


def test_spoken_facts_are_split_by_habit() -> None:
    scenes = [sample_scene("val", 5, index) for index in range(60)]
    habits = [f"a big {probing.HABIT_COLOUR['big']} {s.things[0].kind}" for s in scenes]
    figures = probing.spoken(habits, [scene.to_json() for scene in scenes])
    assert figures["attribute/differs"]["true"] == 0 and figures["attribute/agrees"]["true"] == 1
    assert figures["attribute/differs"]["habit"] == figures["attribute/agrees"]["habit"] == 1


# -- tables --------------------------------------------------------------------------------------------------------


def row(name: str, cider: float, *, base: str = "A", section: str = "main", **more: Any) -> dict[str, Any]:
    storybook = {"fact_f1": cider / 10, "hallucinated_per_fact": 0.1}
    health = {"length": 10.0, "vocabulary": 50.0}
    scores = {
        "cider": {"values": {"cider": cider}, "interval": {"cider": [cider - 1, cider + 1]}},
        "storybook": {"values": storybook},
        "health": {"values": health},
    }
    splits = dict.fromkeys(("test", "ood", "val"), scores)
    return {"section": section, "name": name, "base": base, "seed": 7, "scores": splits,
            "sources": {"test": "storybook:test"}, **more}  # fmt: skip


ROWS = [
    row("base", 1.0), row("supervised", 5.0), row("zero-label", 4.6), row("paper GT", 2.0), row("references", 6.0),
    row("base", 2.0, base="B"), row("supervised", 4.0, base="B"), row("zero-label", 3.0, base="B"),
    row('forced opening "a"', 1.2, section="controls"), row('forced opening "b"', 1.4, section="controls"),
]  # fmt: skip


def test_gaps_are_closed_per_base() -> None:
    runs = tables.Runs(ROWS)
    assert runs.gaps("main", "zero-label", "test", "CIDEr-D") == pytest.approx([0.9, 0.5])
    assert runs.gaps("controls", 'forced opening "b"', "test", "CIDEr-D") == pytest.approx([0.1])


def test_the_last_run_of_a_row_counts() -> None:
    runs = tables.Runs([*ROWS, row("zero-label", 5.0)])
    assert sorted(runs.gaps("main", "zero-label", "test", "CIDEr-D")) == pytest.approx([0.5, 1.0])


def test_tables_plots_and_controls_are_written_and_stay_the_same(tmp_path: Path) -> None:
    files = tables.write(ROWS, tmp_path)
    before = [file.read_bytes() for file in files]
    text = (tmp_path / "tables.md").read_text()
    assert "| zero-label closes >= 0.85 of the CIDEr-D gap on test | 0.700 (0.500 to 0.900) | **no** |" in text
    assert "| paper GT: CIDEr-D >= 3 x the base's | 2.000 | **no** |" in text
    controls = json.loads((tmp_path / "controls.json").read_text())["rows"]
    assert [c["name"] for c in controls] == ['forced opening "b"']  # the better one on val
    assert controls[0]["role"] == "control" and controls[0]["scores"]["cider"]["values"]["cider"] == 1.4
    assert [file.read_bytes() for file in tables.write(ROWS, tmp_path)] == before


def test_several_captions_of_an_image_have_no_interval() -> None:
    exam = evaluate.exam_of("storybook:test?n=3&seed=1")
    captions = ["a red ball", "a fish"] * 3
    assert "interval" not in exam.score(captions, only=("health",))["health"]
    assert "interval" in exam.score(captions[:3], only=("health",))["health"]
