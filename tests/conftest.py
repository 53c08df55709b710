"""Before anything is imported: no network, no tokenizer threads, and torchvision beside a CPU build of torch."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

sys.path.insert(0, str(Path(__file__).parent))  # so that tests can import tiny.py and torchvision_shim.py

import torchvision_shim

torchvision_shim.install()

import pytest  # noqa: E402

NEEDS_TORCHVISION = ("smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory):
    """`tiny_folder("qwen2_vl")`: the folder of that tiny model, made once per session."""
    import tiny_families

    made: dict[str, Path] = {}

    def make(name: str, **options: object) -> Path:
        if name in NEEDS_TORCHVISION and importlib.util.find_spec("torchvision") is None:
            pytest.skip(f"the processor of {name} needs torchvision (see tests/torchvision_shim.py)")
        key = name + str(sorted(options.items()))
        if key not in made:
            made[key] = getattr(tiny_families, name)(tmp_path_factory.mktemp(name) / "model", **options)
        return made[key]

    return make


@pytest.fixture
def captioner(tiny_folder):
    """A tiny Idefics3, fresh for each test."""
    from captune.models.captioner import Captioner

    return Captioner.load(tiny_folder("idefics3"), device="cpu")


@pytest.fixture(scope="session")
def images() -> list:
    """Four different 64 px images."""
    import tiny

    return [tiny.picture(seed) for seed in range(4)]


@pytest.fixture
def photos(images: list, tmp_path: Path) -> str:
    """A folder of them."""
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(images):
        image.save(tmp_path / "photos" / f"{i}.png")
    return str(tmp_path / "photos")


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run ends with its adapter; captions and scores are tested elsewhere."""

    def finish_run(config: Any, run_dir: Any, captioner: Any, **_: Any) -> Any:
        captioner.save_adapter(run_dir.adapter)
        return run_dir.finish("done")

    for method in ("sc_captioner", "scst", "sft", "vizer"):
        monkeypatch.setattr(f"captune.training.{method}.train.finish_run", finish_run)


@pytest.fixture(scope="session")
def golden() -> dict:
    """What pycocoevalcap 1.2 says, with its Java tokenizer; see tests/golden/make_pycocoevalcap.py."""
    file = Path(__file__).parent / "golden" / "pycocoevalcap.json"
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
