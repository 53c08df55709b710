"""The zero-label study: what competes, what training may see, how it goes on after a stop, what its tables say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from studies._lib import controls
from studies._lib.evalset import Exam
from studies._lib.tables import Estimate
from studies.zero_label import evaluate, experiments, plots, tables, train

PACE = {row.method: (10.0, 2.0) for row in experiments.ROWS["rows"] if row.trains}
ROWS = {row.name: row for row in experiments.ROWS["rows"]}


# -- what competes -------------------------------------------------------------------------------------------------


def test_names_and_what_rows_depend_on_differ() -> None:
    for section in (experiments.ROWS["rows"], experiments.ROWS["choices"]):
        assert len({row.name for row in section}) == len(section)
        depends = [json.dumps([row.depends(), row.budget], sort_keys=True) for row in section]
        assert len(set(depends)) == len(section)


def test_rows_without_labels_see_none() -> None:
    for row in ROWS.values():
        if row.role in ("zero", "outside", "control"):
            assert row.columns == ["image", "image_id"] and row.images == experiments.UNLABELLED, row.name
    assert ROWS["oracle judge"].columns[-1] == "scene"
    assert {name for name, row in ROWS.items() if "references" in row.columns} == {
        "supervised", "supervised, 3 budgets", "supervised, then cider", "cider reward",
    }  # fmt: skip


def test_the_budget_gives_the_steps() -> None:
    budget = experiments.BUDGET
    assert ROWS["supervised"].steps(PACE) == ((budget - 10) // 2, 1)
    assert ROWS["vizer reward"].steps(PACE) == (0, (budget - 10) // 2)
    assert ROWS["vizer reward, 3 rounds"].steps(PACE) == (0, (budget - 10) // 2)  # of each round
    both = ROWS["supervised, then cider"].steps(PACE)
    assert both == ((budget / 2 - 10) // 2, (budget / 2 - 10) // 2)
    with pytest.raises(ValueError, match="is not known"):
        ROWS["cycle"].steps({})
    with pytest.raises(ValueError, match="no time"):
        ROWS["cycle"].steps({"grpo cycle": (budget, 1.0)})


def test_the_committed_pace_has_every_method() -> None:
    pace = experiments.read_pace()
    for row in [*experiments.ROWS["rows"], *experiments.ROWS["choices"]]:
        if row.trains:
            assert min(row.steps(pace)[1:]) >= 1, row.name


def test_every_seed_has_its_own_images() -> None:
    first, second = evaluate.sources(7), evaluate.sources(8)
    assert first["test"] == "storybook:test?n=500&seed=91" and first["ood"] == "storybook:ood?n=500&seed=91"
    assert first["test"] != second["test"] and first["val"] == second["val"]


# -- trained -------------------------------------------------------------------------------------------------------


def test_a_wrong_image_is_never_the_own_one() -> None:
    names = [f"i{k}" for k in range(5)]

    class Images:
        def __getitem__(self, key: Any) -> Any:
            return names if key == "image_id" else {"image": names[key]}

    reward = train.on_wrong_image(lambda texts, image, **_: image, Images(), [1, 2, 3, 4, 0])
    given = reward(["a"] * 10, image_id=names * 2)
    assert all(a != b for a, b in zip(given, names * 2, strict=True))
    assert given[:5] == given[5:] and sorted(given[:5]) == names


@pytest.mark.parametrize("name", ["vizer + clip + qir, 3 rounds", "supervised, then cider", "vizer latent, paper"])
def test_a_row_trains_and_is_not_trained_twice(
    name: str, tiny_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(ROWS[name], rounds=min(2, ROWS[name].rounds))
    model = str(tiny_folder("idefics3"))
    steps = (1 if row.supervised else 0, 1)
    trial = train.Trial(row, model, 7, steps, tmp_path / "run", quick=True)
    adapter, seconds = train.trained(trial, tmp_path / "run")
    assert (adapter / "adapter_model.safetensors").is_file()
    assert seconds["training"] > 0 and (seconds["preparing"] > 0 or row.supervised)
    assert not list(tmp_path.glob("run/**/checkpoint-*"))
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    if "clip" in row.reward:  # every part is logged by itself, in every round
        assert sum("rewards/clip/mean" in line and "rewards/vizer/mean" in line for line in logged) == 2
    monkeypatch.setattr(train.Trial, "run", lambda self: pytest.fail("trained again"))
    assert train.trained(trial, tmp_path / "run") == (adapter, seconds)


def test_the_own_corpus_has_the_best_sample_of_each_image(captioner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset
    from PIL import Image

    images = Dataset.from_dict({"image": [Image.new("RGB", (64, 64), c) for c in ("red", "blue")]})
    samples = [f"{name} {k}" for name in "ab" for k in range(train.SAMPLES)]
    monkeypatch.setattr(captioner, "generate", lambda *_, **__: samples)
    monkeypatch.setattr(train, "load_scorer", lambda _: lambda texts, image: [float(t[-1] == "2") for t in texts])
    config = train.ViZerConfig(model="", output=Path(), images="x")
    assert train.best_own(captioner, images, config) == ["a 2", "b 2"]


# -- stopped and resumed -------------------------------------------------------------------------------------------


@pytest.fixture
def started(tiny_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A study whose rows take no time, and the list of those that ran."""
    ran: list[str] = []
    broken: set[str] = set()

    def quickly(row: experiments.Contender, *_: Any) -> dict[str, Any]:
        if row.name in broken:
            raise RuntimeError("as if killed")
        ran.append(row.name)
        return {"scores": {}, "captions": {}}

    monkeypatch.setattr(evaluate, "measure", quickly)
    monkeypatch.setattr(evaluate.Study, "exams", lambda *_: {})
    monkeypatch.setattr(train, "trained", lambda *_: (None, {"preparing": 1.0, "training": 2.0}))

    def start(*more: str) -> str:
        model = str(tiny_folder("idefics3"))
        places = ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
        return evaluate.Study(
            evaluate.Study.arguments(["--quick", "--model", model, "--seeds", "7", *places, *more])
        ).run()

    return start, ran, broken, tmp_path / "results" / "rows"


def test_finished_rows_are_not_run_again(started: Any) -> None:
    start, ran, _, folder = started
    count = len(ROWS)
    assert f"all {count} rows" in start()
    assert f"all {count} rows" in start()
    assert len(ran) == count
    file = folder / "7-clip-reward.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "hash": "of other settings"}))
    start()
    assert ran[count:] == ["clip reward"]


def test_a_row_that_fails_is_named_and_the_others_go_on(started: Any) -> None:
    start, ran, broken, _ = started
    broken.add("cycle")
    assert "1 of 2 rows failed: cycle, seed 7" in start("--rows", "cycle", "clip reward")
    assert ran == ["clip reward"]
    broken.clear()
    assert "all 2 rows" in start("--rows", "cycle", "clip reward")


def test_no_budget_no_row_and_no_unknown_row(started: Any) -> None:
    start, ran, _, _ = started
    assert "rows are left" in start("--budget-minutes", "-1")
    with pytest.raises(SystemExit, match="nonsense"):
        start("--rows", "nonsense")
    assert not ran


# -- tables --------------------------------------------------------------------------------------------------------


def record(name: str, seed: int, f1: float, *, false: float = 0.1) -> dict[str, Any]:
    figures = {"cider": 10 * f1, "fact_f1": f1, "relation_f1": f1, "subkind_f1": f1, tables.FALSE: false}
    captions = {split: ["a red ball in the snow"] * count for split, count in experiments.SHOWN.items()}
    return {"name": name, "seed": seed, "scores": dict.fromkeys(("test", "ood"), figures), "captions": captions,
            "steps": [0, 5], "seconds": {"preparing": 1.0, "training": 2.0},
            "sources": {split: f"storybook:{split}?n=8&seed=91" for split in ("test", "ood")}}  # fmt: skip


RECORDS = [
    record("base", 7, 0.1), record("supervised", 7, 0.9), record("vizer reward", 7, 0.88, false=0.05),
    record("clip reward", 7, 0.5, false=0.2), record("cider reward", 7, 1.0),
    record("base", 8, 0.1), record("supervised", 8, 0.9), record("vizer reward", 8, 0.882, false=0.051),
    record("clip reward", 8, 0.502, false=0.201), record("cider reward", 8, 1.0),
    record("base", 9, 0.1), record("vizer reward", 9, 0.9),  # its supervision is not there yet
]  # fmt: skip


def test_shares_are_of_the_same_seed() -> None:
    results = tables.Results(RECORDS, list(ROWS.values()))
    gap = results.gap(ROWS["vizer reward"], "test", "fact_f1")
    assert gap is not None and gap.mean == pytest.approx((0.78 + 0.782) / 2 / 0.8)
    half = 12.7062 * (0.002 / 0.8) / 2**0.5 / 2**0.5  # t, 1 degree of freedom; s = difference / sqrt 2; n = 2
    assert gap.high == pytest.approx(gap.mean + half, rel=1e-4)
    assert results.gap(ROWS["cycle"], "test", "fact_f1") is None


def test_a_verdict_needs_the_whole_interval() -> None:
    estimate = Estimate(0.96, 0.94, 0.98)
    assert [estimate.above(bound) for bound in (0.9, 0.95, 0.99)] == ["yes", "open", "no"]
    assert Estimate(0.96, None, None).above(0.9) == "-"


def test_tables_plot_and_examples_are_written_and_stay_the_same(tmp_path: Path) -> None:
    results, none = tables.Results(RECORDS, list(ROWS.values())), tables.Results([], [])

    def write() -> list[bytes]:
        files = [
            tables.write(results, none, tmp_path / "tables.md"),
            plots.gap_plot(results, tmp_path / "gap.svg"),
            plots.examples(results, tmp_path / "examples.html"),
        ]
        return [file.read_bytes() for file in files]

    before = write()
    claims, beyond = before[0].decode().split("## ")[1:3]
    vizer = next(line for line in claims.splitlines() if line.startswith("| vizer reward"))
    assert "0.976 [0.960, 0.992] yes" in vizer and "-0.050 [-0.056, -0.043] yes" in vizer
    clip = next(line for line in claims.splitlines() if line.startswith("| clip reward"))
    assert " no |" in clip and "yes" not in clip
    assert "| cider reward | labels | 0.100 [0.100, 0.100] yes" in beyond
    assert b"ball</mark> in the <mark" in before[2] and len(before[2]) < 400_000
    assert before[2].count(b"<section>") == 12
    assert write() == before


def test_a_control_is_chosen_on_val(captioner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    val = Exam("val", {"image": [], "references": [], "scene": []}, {})
    monkeypatch.setattr(val, "captions", lambda _, forced_opening: [forced_opening])
    monkeypatch.setattr(val, "figures", lambda captions: {"cider": float(captions == ["a big"])})
    assert evaluate.choose(ROWS["best forced opening"], captioner, val) == "a big"
    monkeypatch.setattr(val, "captions", lambda _, decoder: [{"cfg:3": "a big"}.get(decoder, "")])
    assert evaluate.choose(ROWS["best guidance, no training"], captioner, val) == "cfg:3"


def test_likelihood_chooses_among_the_samples(captioner: Any, images: list) -> None:
    exam = Exam("four", {"image": images}, {})
    chosen = controls.likeliest(exam, captioner, 7, n=3)
    assert chosen == controls.likeliest(exam, captioner, 7, n=3)
    assert {name: len(captions) for name, captions in chosen.items()} == {"mean": 4, "total": 4}


def test_guidance_is_the_decoder(captioner: Any, images: list) -> None:
    exam = Exam("four", {"image": images}, {})
    assert (
        exam.captions(captioner, decoder="cfg:1")
        == exam.captions(captioner)
        != exam.captions(captioner, decoder="cfg:4")
    )
