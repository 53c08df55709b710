"""The study of photographs, on drawn images under the names of the photos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captune import storybook
from captune.data import load_images
from captune.data.views import view
from captune.training.sft import train as sft
from studies.photos import data as photos
from studies.photos import evaluate, experiments, tables, train
from studies.photos.experiments import ROWS

SHOWN = [name for split in ("test", "choices", "train", "few") for name in photos.SPLITS[split][: photos.FEW]]
NAMES = list(dict.fromkeys(SHOWN))
EVERY = {
    "refine": ("stage 1", "SCST: cider + detected"),
    "crops": ("stage 1", "SCST: cider, crops, 80 steps"),
    "sums": tuple(row.name for row in ROWS["sums"]),
    "zero": ("base", "supervised", "CIM, own captions", "best sum", "vizer on the wrong image", "best forced opening"),
    "decoders": ("greedy", "beam 3", "best of 8, likelihood", "best of 8, clip"),
    "scorers": ("vizer", "consensus", "qir, captioned corpus", "repetition"),
}


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """The command line of a quick study: photos, captions and texts, drawn."""
    (tmp_path / "images").mkdir()
    lines = ["image,caption"]
    for name, row in zip(NAMES, storybook.load("train", n=len(NAMES)), strict=True):
        row["image"].save(tmp_path / "images" / name)
        lines += [f'{name},"{text}"' for text in row["references"]]
    for name in ("captions.txt", "texts.csv"):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    places = ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    return ["--quick", *places, "--data", str(tmp_path / "captions.txt"), "--texts", str(tmp_path / "texts.csv")]


@pytest.fixture
def more(tmp_path: Path) -> list[str]:
    """A detector, and photos without captions."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from tiny_detectors import save_yolox

    (tmp_path / "more").mkdir()
    for i, row in enumerate(storybook.load("unlabelled", n=4)):
        row["image"].save(tmp_path / "more" / f"n{i}.png")
    detector = save_yolox(tmp_path / "tiny.onnx", {9: (16, 0.9, 0.5, 0.5, 0.7, 0.7), 11: (0, 0.8, 0.5, 0.5, 0, 0)})
    return ["--detector", str(detector), "--unlabelled", str(tmp_path / "more")]


# -- what is compared ----------------------------------------------------------------------------------------------


def test_the_splits_share_no_image() -> None:
    splits = photos.SPLITS
    assert [len(set(splits[name])) for name in ("test", "choices", "few", "train")] == [100, 100, 200, 500]
    assert len({*splits["test"], *splits["choices"], *splits["train"]}) == 700 and {*splits["few"]} < {*splits["train"]}


def test_crops_are_the_views_that_stage_1_has_not_seen(given: list[str], tmp_path: Path) -> None:
    own = photos.Photos(tmp_path / "captions.txt", tmp_path / "work", quick=True)
    of, crops = own.split("train"), load_images(own.split("crops"))[:]
    images = load_images(of)[:]
    seen = max(settings["image_views"] for settings in experiments.CAPTIONERS.values())
    assert len(crops["image"]) == 2 * len(images["image"]) and min(photos.UNSEEN) >= seen
    for i, image_id in enumerate(images["image_id"]):
        about = " ".join(images["references"][i])
        for n, number in enumerate(photos.UNSEEN):
            expected = view(images["image"][i], number, image_id, about)
            assert crops["image"][2 * i + n].convert("RGB").tobytes() == expected.convert("RGB").tobytes()
            assert crops["references"][2 * i + n] == images["references"][i]
    alone = load_images(own.split("kin"))
    assert set(alone["image_id"]) == set(images["image_id"]) and not any(alone["references"])
    assert {row.learns_from for row in ROWS["kin"] if row.trains} == {"kin"} and "kin" not in ROWS["zero"][1].depends()
    (row,) = [row for row in ROWS["crops"] if row.trains]
    assert row.learns_from == "crops" and "crops" not in ROWS["refine"][1].depends()


def test_names_and_what_rows_depend_on_differ() -> None:
    for rows in ROWS.values():
        assert len({row.name for row in rows}) == len(rows)
        assert len({json.dumps(row.depends(), sort_keys=True) for row in rows}) == len(rows)


def test_all_captioners_begin_with_bos_but_for_one_choice() -> None:
    trained = [row for section in ("rows", "choices") for row in ROWS[section] if row.kind == "har"]
    without = [row.name for row in trained if not row.settings["begin_token"]]
    assert without == ["both, whole image, no begin token"]
    assert all(settings["begin_token"] for settings in experiments.CAPTIONERS.values())


def test_rows_without_labels_train_on_images_without_captions() -> None:
    for row in [*ROWS["zero"], *ROWS["sums"]]:
        if row.role in ("zero", "outside", "control"):
            assert row.learns_from == "unlabelled" and row.images == "few" and "cider" not in row.reward
    strict = {row.name for row in ROWS["zero"] if row.role == "zero"}
    assert strict == {"vizer", "pmi", "consensus"}


def test_what_watches_a_run_is_no_part_of_its_reward() -> None:
    both = "clip:{pair} + detected:?detections={detections}"
    watches = [experiments.watch_of(reward) for reward in ("length", "clip:{pair}", both, f"{both} + pmi:own")]
    assert watches == list(experiments.WATCHES)
    assert experiments.watch_of("qir:{few}") == watches[1]  # the pair searches the corpus


# -- run -----------------------------------------------------------------------------------------------------------


def test_the_whole_study(given: list[str], more: list[str], tmp_path: Path) -> None:
    rows = [name for names in EVERY.values() for name in names]
    argv = [*given, *more, "--seeds", "7"]
    assert evaluate.main([*argv, "--only", *EVERY, "--rows", *rows]) == 0
    files = {file: file.read_text() for section in EVERY for file in (tmp_path / "results" / section).glob("*.json")}
    records = {(file.parent.name, json.loads(text)["name"]): json.loads(text) for file, text in files.items()}
    assert {(section, name) for section, names in EVERY.items() for name in names} <= records.keys()
    assert not any(str(tmp_path) in text for text in files.values())
    figures = records["zero", "best sum"]["scores"]["test"]
    assert {"cider", "bleu_4", "bad_endings", "length", "distinct", "detected", "precision", "clip"} <= figures.keys()
    sums = {own.name: records["sums", own.name]["scores"]["choices"]["cider"] for own in ROWS["sums"]}
    (best,) = [own for own in ROWS["sums"] if own.name == max(sums, key=sums.__getitem__)]
    assert records["zero", "best sum"]["reward"] == best.reward
    assert records["zero", "best forced opening"]["chosen"] == "a"
    assert records["zero", "supervised"]["captions"].keys() <= set(photos.SPLITS["test"])
    for own in (("refine", "SCST: cider + detected"), ("zero", "vizer on the wrong image"), ("zero", "best sum")):
        assert records[own]["watch"]["evaluations"] > 1 and records[own]["watch"].keys() >= {"alerts", "gate", "reward"}
    assert records["scorers", "vizer"]["scores"]["test"].keys() >= {"tau_b", "pairwise_accuracy"}
    captions = tmp_path / "work" / "unlabelled"
    assert len(list(captions.iterdir())) == photos.FEW + 4 and not list(captions.glob("*.txt"))
    text = (tmp_path / "results" / "tables.md").read_text()
    assert str(tmp_path) not in text and "R@1" in text
    assert next(line for line in text.splitlines() if line.startswith("## ")) == "## Bar 2: SCST"
    assert evaluate.main([*argv, "--only", *EVERY, "--rows", *rows]) == 0
    assert all(file.read_text() == before for file, before in files.items())
    assert (tmp_path / "results" / "tables.md").read_text() == text


def test_choices_need_neither_detector_nor_more_photos(given: list[str], tmp_path: Path) -> None:
    name = "both, whole image, 4 views, texts first"
    assert evaluate.main([*given, "--only", "choices", "--rows", name]) == 0
    (file,) = (tmp_path / "results" / "choices").glob("*.json")
    assert json.loads(file.read_text())["scores"]["choices"]["cider"] >= 0
    assert not list((tmp_path / "work" / "runs").glob("*/captioner"))  # half a gigabyte
    assert f"| {name} |" in (tmp_path / "results" / "tables.md").read_text()


def test_a_training_that_was_cut_goes_on(given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [*given, "--only", "choices", "--rows", "pooled"]
    assert evaluate.main(argv) == 0
    (file,) = (tmp_path / "results" / "choices").glob("*.json")
    whole = json.loads(file.read_text())
    file.unlink()
    shutil.rmtree(tmp_path / "work" / "runs")
    monkeypatch.setattr(train, "SAVE_STEPS", 1)
    finish, steps = sft.finish_run, []

    def cut(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sft, "finish_run", cut)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(argv)
    assert len(list((tmp_path / "work" / "runs").glob("*/mle/checkpoint-2"))) == 1 and not file.exists()
    monkeypatch.setattr(sft, "finish_run", finish)
    step = sft.SFTTrainer.training_step
    monkeypatch.setattr(sft.SFTTrainer, "training_step", lambda *own, **more: steps.append(1) or step(*own, **more))
    assert evaluate.main(argv) == 0
    again = json.loads(file.read_text())
    assert not steps and all(again[key] == whole[key] for key in ("scores", "captions", "settings", "hash"))


def test_what_is_missing_is_said(given: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--data flickr8k/captions.txt"):
        evaluate.main(["--quick", "--work", str(tmp_path)])
    with pytest.raises(SystemExit, match="refine: name --detector"):
        evaluate.main([*given, "--only", "refine"])
    with pytest.raises(SystemExit, match="there is no .*nowhere.onnx"):
        evaluate.main([*given, "--only", "refine", "--detector", str(tmp_path / "nowhere.onnx")])
    captions, name = tmp_path / "captions.txt", photos.SPLITS["test"][0]
    captions.write_text("".join(line for line in captions.read_text().splitlines(True) if not line.startswith(name)))
    with pytest.raises(SystemExit, match=f"lacks 1 images of the split test, the first is {name}"):
        photos.split(captions, "test", tmp_path, photos.FEW)
    (tmp_path / "images" / photos.SPLITS["train"][1]).rename(tmp_path / "images" / photos.SPLITS["train"][0])


# -- tables --------------------------------------------------------------------------------------------------------


def record(folder: Path, section: str, name: str, seed: int, cider: float, objects: tuple[int, int, int]) -> None:
    """A finished row of 20 test images, all with these figures but for noise of the image's own."""
    noise = np.random.default_rng(0).normal(0, 0.01, 20)
    hits, named, found = objects
    judged = {"detected": [*objects, 0], "chair": [named - hits, named, 1, hits, found]}
    lines = [{"image_id": str(i), "caption": f"a dog {i}", "cider": [cider + noise[i]], **judged} for i in range(20)]
    file = folder / "captions" / f"{section}-{name}-{seed}.jsonl".replace(" ", "-")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = {
        "chair_i": 1 - hits / named,
        "cider": cider,
        "bleu_4": 0.1,
        "bad_endings": 0.0,
        "length": 9.0,
        "distinct": 1.0,
        "clip": 0.6,
    }
    scores |= {"precision": hits / named, "recall": hits / found, "detected": 2 * hits / (named + found)}
    content: dict[str, Any] = {
        "name": name, "seed": seed, "training_seconds": 60.0, "scores": {"test": scores}, "captions_file": file.name,
        "recall": {"text_to_image": 0.34, "image_to_text": 0.39},
    }  # fmt: skip
    if name == "clip":
        content["watch"] = {
            "evaluations": 3, "reward": [0.2, 0.3],
            "alerts": [{"step": 40, "figure": "length", "since": 0, "text": "length went up"}],
            "gate": {"passed": True, "problems": [], "notes": []},
        }  # fmt: skip
    (folder / section).mkdir(parents=True, exist_ok=True)
    (folder / section / f"{seed}-{name}.json".replace(" ", "-")).write_text(json.dumps(content))


def test_differences_gaps_and_bars(tmp_path: Path) -> None:
    for seed in (7, 8):
        record(tmp_path, "zero", "base", seed, 0.2, (1, 2, 4))
        record(tmp_path, "zero", "supervised", seed, 0.4, (2, 2, 4))
        record(tmp_path, "zero", "clip", seed, 0.3, (2, 2, 4))
        record(tmp_path, "zero", "length", seed, 0.1, (1, 2, 4))
    text = tables.write(tmp_path)[0].read_text()
    lines = [line for line in text.splitlines() if line.startswith(("| clip |", "| length |"))]
    assert lines[0] == "| clip | zero-label, outside judge | yes | yes | yes |"
    assert lines[1] == "| length | control | no | no | no |"
    (clip,) = [line for line in lines if "+0.100 [0.100, 0.100]" in line]
    assert "+0.500 [0.500, 0.500]" in clip and "0.500 [0.500, 0.500]" in clip.split("|")[8]
    assert "34% text to image, 39% image to text" in text
    assert "| zero: clip | 7 | passed | 0.200 to 0.300 | 3 | step 40: length went up |" in text
    assert tables.write(tmp_path)[0].read_text() == text


def test_a_bar_says_what_it_needs(tmp_path: Path) -> None:
    for seed, cider in ((7, 0.26), (8, 0.28), (9, 0.29)):
        record(tmp_path, "rows", "HAR stage 1", seed, cider, (1, 2, 4))
        record(tmp_path, "refine", "stage 1", seed, cider, (1, 2, 4))
        record(tmp_path, "refine", "SCST: cider", seed, cider + 0.05, (1, 4, 4))
    text = tables.write(tmp_path)[0].read_text()
    assert "| HAR stage 1 | 0.280 | 0.000 | 1.000 | yes |" in text
    assert "| SCST: cider | yes | yes | yes |" in text  # CIDEr-D up, captions end, but precision is down


def test_scorers_stand_beside_their_rank_on_storybook(tmp_path: Path) -> None:
    for name, figures in (("clip", {"tau_b": 0.1}), ("pmi", {"tau_b": 0.3}), ("repetition", {})):
        content = {"name": name, "seed": 7, "scores": {"test": figures}, "interval": {"test": {"tau_b": [0.0, 0.5]}}}
        (tmp_path / "scorers").mkdir(exist_ok=True)
        judged = {"judged": {"rows": 4, "captions": 300, "images": 100}}
        (tmp_path / "scorers" / f"7-{name}.json").write_text(json.dumps(content | judged))
    lines = [line for line in tables.write(tmp_path)[0].read_text().splitlines() if line.endswith("of 31 |")]
    assert [line.split(" | ")[0] for line in lines] == ["| pmi", "| clip", "| repetition"]
    assert "| 0.300 [0.000, 0.500] | - | 300 of 100 | 0.907 | 15 of 31 |" in lines[0] and "| - | - |" in lines[2]
