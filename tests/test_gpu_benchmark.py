"""The benchmark for a GPU runs whole on tiny models, and says what is missing where there is none."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


@pytest.mark.parametrize(
    ("model", "work", "by"), [*(("smolvlm", *line) for line in gpu.LINES), ("qwen2-vl", *gpu.LINES[0])]
)
def test_a_line_is_measured_on_a_tiny_model(model: str, work: str, by: str) -> None:
    args = argparse.Namespace(device="cpu", tiny=True, batch=2, repeats=1)
    assert gpu.one(model, work, by, args)["images_per_second"] > 0


def test_lines_become_a_page_and_what_fails_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "LINES", [("caption", "generate")])
    flags = ["--tiny", "--device", "cpu", "--batch", "1", "--repeats", "1", "--models", "smolvlm"]
    assert gpu.main([*flags, "--output", str(tmp_path / "gpu")]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [line["by"] for line in found["lines"]] == ["generate"]
    page = (tmp_path / "gpu.md").read_text()
    assert page in capsys.readouterr().out and page.count("| smolvlm |") == 1
    assert gpu.measured("no such model", "caption", "captune", argparse.Namespace(
        device="cpu", tiny=True, batch=1, repeats=1))["error"].startswith("KeyError")  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2 and "--tiny" in capsys.readouterr().err


def test_a_made_up_word_is_one_token() -> None:
    words = gpu.tokenizer(2000, ["<|image_pad|>"])
    ids = [1000, 1999 - 1, 700]
    assert len(words) == 2000 and words(words.decode(ids))["input_ids"] == ids
    assert len(words("<|image_pad|>")["input_ids"]) == 1
