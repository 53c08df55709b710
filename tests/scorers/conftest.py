from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden() -> dict:
    """What pycocoevalcap 1.2 says, with its Java tokenizer; see benchmarks/make_golden.py."""
    file = Path(__file__).parent.parent / "golden" / "pycocoevalcap.json"
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(params=["flickr8k", "odd", "one_image"])
def corpus(request: pytest.FixtureRequest, golden: dict) -> dict:
    """{"captions", "references", "each": {figure: list}, "corpus": {figure: value}}"""
    chosen = golden[request.param]
    items = chosen["items"]
    return {
        "captions": [item["caption"] for item in items],
        "references": [item["references"] for item in items],
        "each": {key: [item[key] for item in items] for key in ("bleu_4", "rouge", "cider")},
        "corpus": chosen["corpus"],
    }
