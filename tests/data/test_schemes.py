"""A third party's scheme, registered as storybook is: the library asks what it offers, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pillow

from captune.data import load_images, load_references
from captune.data.schemes import SOURCES, Drawer, Scheme, blind, scheme_of, source_of, warn_of_strangers
from captune.errors import EvaluationError, SourceError
from captune.evaluation.run import evaluate_files
from captune.scorers.image.cycle import Cycle
from captune.storybook import load
from captune.training.monitor.held_out import default_scorers

COLOURS = ("red", "green", "blue")


class Plain:
    """Draws the first colour that a caption names."""

    signature = "plain"

    def __call__(self, caption: str) -> Pillow.Image:
        colour = next((word for word in caption.split() if word in COLOURS), "white")
        return Pillow.new("RGB", (8, 8), colour)


class Plates(Scheme):
    """Plates of one colour each."""

    name = "plates"
    held_out = "plates:other"
    scorers = ("length",)
    image_encoder = "storybook-clip"

    def load(self, name: str, *, n: int | None = None, seed: int | None = None) -> Dataset:
        if name not in ("all", "other"):
            raise SourceError(f"plates:{name}: unknown")
        rows = [
            {
                "image": Pillow.new("RGB", (8, 8), colour),
                "image_id": f"plate {colour}",
                "references": [f"a {colour} plate"],
            }
            for colour in COLOURS[:n]
        ]
        text = Value("string")
        return Dataset.from_list(rows, Features(image=Image(), image_id=text, references=List(text)))

    def source_of(self, image_ids: Sequence[str]) -> str | None:
        return "plates:all" if all(i.startswith("plate ") for i in image_ids) else None

    def drawer(self, seed: int = 0) -> Drawer:
        return Plain()


@pytest.fixture(autouse=True)
def plates(monkeypatch: pytest.MonkeyPatch) -> Scheme:
    """The scheme, where an entry point would put it."""
    scheme = Plates()
    monkeypatch.setitem(SOURCES.targets, "plates", scheme)
    return scheme


def test_its_images_and_references_load() -> None:
    assert list(load_images("plates:all?n=2")["image_id"]) == ["plate red", "plate green"]
    assert len(load_images("plates:all", limit=1)) == 1
    assert load_references("plates:other")["plate blue"] == ["a blue plate"]
    with pytest.raises(SourceError, match="takes only"):
        load_images("plates:all?skip=1")
    with pytest.raises(SourceError, match="plates:none: unknown"):
        load_images("plates:none")


def test_a_source_without_a_scheme_offers_nothing(plates: Scheme) -> None:
    assert scheme_of("plates:all") is plates
    for source in ("photos", "./plates", "plates", "hub/name", "C:\\photos", load("val", n=0)):
        assert (scheme_of(source).name, scheme_of(source).held_out) == ("", "")


def test_a_saved_copy_is_known_by_its_column() -> None:
    assert scheme_of("/saved", ["image", "scene"]).name == "storybook"
    assert scheme_of("/saved", ["image", "references"]).name == ""


def test_a_scorer_with_a_model_of_one_scheme_is_blind_elsewhere(plates: Plates) -> None:
    plates.encoders, plates.captioners = ("plate-clip",), ("plater",)
    plates.image_encoder = "openai/clip"  # its default, which has seen more
    for signature in (
        "clipscore|model:plate-clip@1|w:2.5",
        "bias|by:[clipscore|model:plate-clip@1]",
        "pmi|model:plater@1",
        "reward_model|encoder:plate-clip|heads:1",
        "vizer|captioner:plater@1|F_I:connector-mean",
        "pmi|model:own:plater@1",
    ):
        assert blind("it", signature, "plates:all?n=2") == ""
        said = blind("it", signature, "photos", ["image"])
        assert re.match("it looks through plate(-clip|r), which has seen the images of plates: alone: .* photos ", said)
    for signature in (
        "pmi|model:runs/plater@1",
        "pmi|model:my-plater@1",
        "pmi|model:plater-2@1",
        "bleu|n:4",
        "",
        "clip|model:openai/clip@1",
        "pmi|model:plater@1|adapter:runs/a",
        "vqa|source:plater|facts:share",
    ):
        assert blind("it", signature, "photos") == ""
    assert blind("pmi", "pmi|model:storybook@65d0bc24", "/saved", ["image", "scene"]) == ""
    assert "such as HuggingFaceTB/SmolVLM-Base" in blind("pmi", "pmi|model:storybook@65d0bc24", "/saved", ["image"])


def test_a_captioner_of_one_scheme_is_a_stranger_elsewhere(plates: Plates, caplog: pytest.LogCaptureFixture) -> None:
    plates.captioners = ("plater",)
    for own in ("plates:all?n=2", "plates:other"):
        warn_of_strangers("plater", own)
    warn_of_strangers("storybook", "/saved", ["image", "scene"])
    warn_of_strangers("someone/model", "photos")
    assert not caplog.records
    warn_of_strangers("plater", "photos")
    warn_of_strangers("plater", "storybook:val")
    warn_of_strangers("storybook", "photos", ["image", "references"])
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "the captioner 'plater' has seen the images of plates: alone",
        "the captioner 'plater' has seen the images of plates: alone",
        "the captioner 'storybook' has seen the images of storybook: alone",
    ]


def test_ids_tell_their_source(tmp_path: Path) -> None:
    assert source_of(["plate red", "plate mauve"]) == "plates:all"
    assert source_of(["val-3-000007"]) == "storybook:val?n=8&seed=3"
    assert source_of(["a.jpg"]) is None
    file = tmp_path / "captions.jsonl"
    file.write_text('{"image_id": "plate mauve", "caption": "a plate"}\n')
    with pytest.raises(EvaluationError, match='--references "plates:all" belongs to them'):
        evaluate_files([file], references="storybook:val?n=2")


def test_no_truth_no_scorer_of_truth(tmp_path: Path) -> None:
    file = tmp_path / "captions.jsonl"
    file.write_text('{"image_id": "plate red", "caption": "a plate"}\n')
    with pytest.raises(EvaluationError, match="only sources of storybook know, not plates:all"):
        evaluate_files([file], images="plates:all", scorers=["storybook"])


def test_its_drawer_makes_a_cycle() -> None:
    cycle = Cycle("plates")
    assert "t2i:plain" in cycle.signature and "encoder:storybook-clip" in cycle.signature
    same, other = cycle.rows(["a red plate", "a blue plate"], image=[Pillow.new("RGB", (8, 8), "red")] * 2)[:, 0]
    assert same == pytest.approx(1) and other < 0.99


def test_a_monitor_falls_back_to_references() -> None:
    assert default_scorers("length", "plates:all") == ["cider"]
    assert default_scorers("length", "storybook:val?n=2") == ["clip"]
    assert default_scorers("clip", "storybook:val?n=2") == ["cider"]
