"""`captune caption --decoder`: a decoder decides a caption file as the model does, and a run that stopped goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from captune.data import read_captions
from captune.decoding import load_decoder
from captune.errors import CaptionFileError, MissingColumn, UnknownDecoder
from captune.inference.job import caption_source, caption_to_file
from captune.models.captioner import Captioner

SOURCE = "storybook:val?n=6&seed=3"


def job(captioner: Any, output: Path, spec: str | None, **more: Any) -> list[str]:
    decoder = None if spec is None else load_decoder(spec)
    settings = {"batch_size": 2, "max_new_tokens": 5, "progress": False, **more}
    caption_source(captioner, SOURCE, output, decoder=decoder, **settings)
    return list(read_captions(output).values())


@pytest.mark.parametrize("spec", ["cfg:3", "best-of:3:length"])
def test_a_run_that_stopped_goes_on_to_the_same_bytes(captioner: Captioner, tmp_path: Path, spec: str) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "caps.jsonl"
    captions = job(captioner, whole, spec)
    job(captioner, output, spec)
    lines = whole.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:3])[:-9])  # torn in the third caption
    assert job(captioner, output, spec) == captions
    assert output.read_bytes() == whole.read_bytes()


def test_what_is_drawn_by_lot_follows_the_seed(captioner: Captioner, tmp_path: Path) -> None:
    captions = [
        job(captioner, tmp_path / f"{i}.jsonl", "best-of:2:length", seed=seed) for i, seed in enumerate((1, 1, 2))
    ]
    assert captions[0] == captions[1] != captions[2]


def test_captions_of_two_decoders_are_not_mixed(captioner: Captioner, tmp_path: Path) -> None:
    output = tmp_path / "caps.jsonl"
    job(captioner, output, "cfg:3")
    settings = json.loads((tmp_path / "caps.jsonl.settings.json").read_text())
    assert settings["decoder"] == load_decoder("cfg:3").signature
    for spec in (None, "cfg:2", "contrastive:2"):
        with pytest.raises(CaptionFileError, match="decoder: 'cfg:3"):
            job(captioner, output, spec)
    job(captioner, output, "cfg:3.0")


def test_a_file_made_before_there_were_decoders_is_continued(captioner: Captioner, tmp_path: Path) -> None:
    output, settings = tmp_path / "caps.jsonl", tmp_path / "caps.jsonl.settings.json"
    captions = job(captioner, output, None)
    old = json.loads(settings.read_text())
    del old["decoder"]
    settings.write_text(json.dumps(old))
    assert job(captioner, output, None) == captions


def test_a_decoder_that_wants_references_is_refused_before_a_file_is_made(captioner: Captioner, tmp_path: Path) -> None:
    with pytest.raises(MissingColumn, match="needs references"):
        job(captioner, tmp_path / "caps.jsonl", "best-of:2:rouge")
    assert not list(tmp_path.iterdir())


def test_zerocap_takes_a_language_model_and_an_encoder_in_place_of_a_model(tmp_path: Path) -> None:
    output = tmp_path / "zc.jsonl"
    shipped = {"language_model": "storybook-lm", "image_encoder": "storybook-clip", "device": "cpu"}
    settings: Any = {**shipped, "decoder": "zerocap:?steps=1", "max_new_tokens": 4, "num_beams": 1, "progress": False}
    report = caption_to_file(None, "storybook:val?n=2", output, **settings)
    assert report.done == 2
    written = json.loads((tmp_path / "zc.jsonl.settings.json").read_text())
    assert written["model"] == "storybook-lm + storybook-clip" and len(written["weights"]) == 16
    assert caption_to_file(None, "storybook:val?n=2", output, **settings).skipped == 2
    with pytest.raises(CaptionFileError, match="prompt: '' then, 'a photo of' now"):
        caption_to_file(None, "storybook:val?n=2", output, **settings, prompt="a photo of")


@pytest.mark.parametrize(
    "named",
    [
        {"model": None},
        {"model": None, "language_model": "storybook-lm"},
        {"model": "storybook", "language_model": "storybook-lm", "image_encoder": "storybook-clip"},
    ],
)
def test_half_a_pair_and_both_kinds_at_once_are_refused(tmp_path: Path, named: dict) -> None:
    with pytest.raises(ValueError, match="name a model, or"):
        caption_to_file(source="storybook:val?n=2", output=tmp_path / "x.jsonl", **named)


@pytest.mark.parametrize(("named", "spec"), [({"model": "storybook"}, "zerocap"), ({"model": None}, "cfg:2")])
def test_a_decoder_for_the_other_kind_is_refused(tmp_path: Path, named: dict, spec: str) -> None:
    with pytest.raises(ValueError, match="zerocap works with a language model"):
        caption_to_file(source="storybook:val?n=2", output=tmp_path / "x.jsonl", decoder=spec, **named)


def test_a_wrong_decoder_is_answered_before_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Captioner, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(UnknownDecoder, match="did you mean 'cfg'"):
        caption_to_file("storybook", "storybook:val?n=2", tmp_path / "x.jsonl", decoder="cgf:2")
