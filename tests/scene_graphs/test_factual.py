from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from transformers import T5Config, T5ForConditionalGeneration

from captune.errors import ScorerError
from captune.scene_graphs import SceneGraph, load_parser
from captune.scene_graphs.factual import FactualParser, kept

TEXT = "Two dogs are playing with a red ball. A glass of water is on the table."


def test_what_the_model_writes_becomes_a_graph() -> None:
    written = [
        "( dogs , v:play with , ball ) , ( ball , is , red ) , ( dogs , is , 2 ) , ( ball:1 , is , made of rubber )",
        "( glass , pv:on , table ) , ( unicorn , is , white ) , ( glass , near , unicorn ) , ( glass , is",
    ]
    assert kept(TEXT, written) == SceneGraph(
        ("dog", "ball", "glass", "table"),  # no noun of the text says "unicorn"
        (("ball", "red"),),  # quantities and attributes with "of" are none
        (("dog", "play with", "ball"), ("glass", "on", "table")),
    )
    assert kept("A dog", ["( dog )"]) == SceneGraph(("dog",))
    assert kept("", [""]) == kept("A dog", ["nonsense , ("]) == SceneGraph()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("t5")
    tokenizer = tiny.tokenizer([], bos=None, eos="</s>", pad="<pad>")
    tokenizer.save_pretrained(path)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(
        T5Config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id,
                 eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=tokenizer.pad_token_id, **sizes)
    ).save_pretrained(path)  # fmt: skip
    return path


def test_a_t5_runs(folder: Path) -> None:
    parser = load_parser(f"factual:{folder}", device="cpu")
    parser.check()
    texts = [TEXT, "", "A dog."]
    graphs = parser.parse(texts)
    assert len(graphs) == 3 and graphs[1] == SceneGraph()
    assert parser.signature.startswith(f"factual/{folder}@") and "beams-5" in parser.signature


def test_each_sentence_is_parsed_once_and_by_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def write(self: FactualParser, batch: list[str]) -> list[str]:
        asked.extend(batch)
        return [f"( {sentence.split()[1]} , is , red )" for sentence in batch]

    monkeypatch.setattr(FactualParser, "_write", write)
    graphs = FactualParser(str(folder), batch_size=1).parse(["A dog. A cat.", "A cat. A cat."])
    assert sorted(asked) == ["A cat", "A dog"]
    assert [graph.objects for graph in graphs] == [("dog", "cat"), ("cat",)]


def test_a_missing_model_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ScorerError, match="scene-graph parser .* does not exist"):
        load_parser(f"factual:{tmp_path / 'none'}").check()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ScorerError, match="hf download lizhuang144/flan-t5-base-VG-factual-sg"):
        load_parser("factual").check()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ScorerError, match="cannot be loaded: .*'grammar', which needs no model"):
        load_parser(f"factual:{tmp_path}").parse(["A dog."])
