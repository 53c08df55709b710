"""What decides a model's answers is in its identity: signatures change with it, and rows of before are not served."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_encoders
import tiny_llm
import tiny_text_encoders
import torch
from safetensors.torch import load_file, save_file

from captune.evaluation.cache import Cache
from captune.models.captioner import Captioner
from captune.scorers import load_scorer
from captune.utils.hashing import identity

IMAGES = [tiny.picture(0), tiny.picture(1)]
COLUMNS = {"image": IMAGES, "references": [["a red ball"], ["two fish"]], "image_id": ["1", "2"]}


def within(content: Any, key: str, value: Any) -> bool:
    """Set a key wherever it stands in a JSON value."""
    if not isinstance(content, dict):
        return False
    found = key in content
    if found:
        content[key] = value
    for entry in content.values():
        found = within(entry, key, value) or found
    return found


def edit(key: str, value: Any, name: str = "*.json") -> Callable[[Path], None]:
    """Set a key in the files of a folder that have it."""

    def change(folder: Path) -> None:
        changed = False
        for file in sorted(folder.rglob(name)):
            content = json.loads(file.read_text())
            if within(content, key, value):
                file.write_text(json.dumps(content))
                changed = True
        assert changed, f"no file of {sorted(p.name for p in folder.rglob('*'))} has {key}"

    return change


def weights(folder: Path) -> None:
    file = next(folder.rglob("model.safetensors"))
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if tensors[name].is_floating_point())
    save_file({**tensors, name: tensors[name] + 1e-3}, file, metadata={"format": "pt"})


def template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text((folder / "chat_template.jinja").read_text() + "{# changed #} now")


LOWER = edit("normalizer", {"type": "Replace", "pattern": {"String": "z"}, "content": "q"}, "tokenizer.json")
CASED = edit("do_lower_case", False, "tokenizer_config.json")  # BERT's tokenizer makes its normalizer of this
MEAN, RESAMPLE = edit("image_mean", [0.1, 0.2, 0.3]), edit("resample", 0)


def questions(folder: Path) -> Path:
    file = folder.with_name("questions.json")
    file.write_text(json.dumps({"1": {"Is it red?": "Yes"}, "2": {"Is it?": "No"}}))
    return file


MODELS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], str], tuple[Callable[[Path], None], ...]]] = {
    "clip": (tiny_encoders.clip, lambda m: f"clip:{m}", (weights, LOWER, MEAN, RESAMPLE)),
    "self_retrieval": (tiny_encoders.siglip, lambda m: f"self_retrieval:{m}?k=1", (weights, LOWER, MEAN)),
    "sbert": (tiny_text_encoders.sentences, lambda m: f"sbert:{m}", (weights, CASED, edit("pooling_mode", "max"))),
    "capture": (
        tiny_text_encoders.sentences,
        lambda m: f"capture:?encoder={m}",
        (weights, CASED, edit("pooling_mode", "cls")),
    ),
    "bertscore": (tiny_text_encoders.bert, lambda m: f"bertscore:{m}", (weights, CASED, edit("hidden_act", "relu"))),
    "judge": (tiny.idefics3, lambda m: f"judge:{m}", (weights, LOWER, MEAN)),
    "relation_qa": (
        tiny_llm.llama,
        lambda m: f"relation_qa:{questions(m)}?model={m}",
        (weights, LOWER, template),
    ),
}


@pytest.mark.parametrize(("name", "number"), [(name, i) for name, row in MODELS.items() for i in range(len(row[2]))])
def test_b2_whatever_decides_is_in_the_signature(name: str, number: int, tmp_path: Path) -> None:
    make, spec, changes = MODELS[name]
    make(tmp_path / "model")
    scorer = load_scorer(spec(tmp_path / "model"), device="cpu")
    before = scorer.identity
    assert load_scorer(spec(tmp_path / "model"), device="cpu").identity == before
    changes[number](tmp_path / "model")
    assert load_scorer(spec(tmp_path / "model"), device="cpu").identity != before
    assert scorer.identity == before


def test_b2_use_does_not_change_the_identity(tmp_path: Path) -> None:
    """A tokenizer keeps the padding and truncation of its last call."""
    for make, spec in ((tiny_text_encoders.bert, "bertscore"), (tiny_encoders.clip, "clip")):
        make(tmp_path / spec)
        used, fresh = (load_scorer(f"{spec}:{tmp_path / spec}", device="cpu") for _ in range(2))
        needed = {name: COLUMNS[name] for name in used.required_columns}
        used.rows(["a red ball " * 40, "b"], **needed)
        used.encoder.tokenizer(["a", "b c"], padding="max_length", truncation=True, max_length=5)
        assert used.identity == fresh.identity


def test_b2_a_cache_serves_nothing_of_another_tokenizer_or_format(tmp_path: Path) -> None:
    folder = tiny_text_encoders.sentences(tmp_path / "model")

    def measured() -> Any:
        scorer = load_scorer(f"sbert:{folder}", device="cpu", cache=Cache(tmp_path / "cache"))
        return scorer.measure(["a red ball", "two fish"], {"references": COLUMNS["references"]})

    first = measured()
    edit("pooling_mode", "max")(folder)
    assert not torch.equal(torch.tensor(measured()), torch.tensor(first))
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 2
    for file in files:  # as a version before the format's line would have left it, with wrong rows
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert rows[0]["format"] == 2
        file.write_text("".join(json.dumps({**row, "row": [9.0]}) + "\n" for row in rows[1:]))
    assert (measured() < 2).all()


def test_b2_the_vizer_mapper_names_what_reads(tiny_folder: Any, captioner: Captioner, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder("idefics3"), tmp_path / "model"))
    one = Captioner.load(folder, device="cpu")
    before = one.identity(base=True)
    one.add_lora()
    assert one.identity(base=True) == before  # of the base, whatever is trained
    MEAN(folder)
    assert Captioner.load(folder, device="cpu").identity(base=True) != before


def test_b2_settings_and_texts() -> None:
    layer = torch.nn.Linear(2, 2)
    assert identity(layer, prompt="a") == identity(layer, prompt="a") != identity(layer, prompt="b")
    assert identity(layer) != identity(layer.double())
    assert identity({"_name_or_path": "a", "x": 1}) == identity({"_name_or_path": "b", "x": 1}) != identity({"x": 2})
