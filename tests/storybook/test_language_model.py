from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from captune.storybook import language_model, model_path, world
from captune.storybook.grammar import reference
from captune.storybook.language_model import LanguageModelConfig, build, build_model, encode, perplexity
from captune.storybook.parser import parse
from captune.storybook.world import random_for, sample_scene

TINY = LanguageModelConfig(
    num_scenes=64, steps=30, batch_size=16, lr=1e-2, width=32, layers=1, bf16=False, validation=8
)

Built = tuple[Path, dict[str, Any], list[str]]  # a tiny build: its folder, its log, the splits asked for in turn


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, storybook_tokenizer: Any) -> Built:
    output, asked = tmp_path_factory.mktemp("lm"), list[str]()

    def scene(split: str, *where: int) -> world.Scene:
        asked.append(split)
        return world.sample_scene(split, *where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "sample_scene", scene)
        patch.setattr(language_model, "build_tokenizer", lambda: storybook_tokenizer)
        return output, build(TINY, output), asked


def test_it_reads_the_train_split_only_and_is_measured_on_another(
    built: Built,
) -> None:
    assert built[2] == ["train"] * 64 + ["val"] * 8


def test_the_build_leaves_a_language_model_of_the_auto_classes(built: Built) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

    folder, log, _ = built
    assert json.loads((folder / "build.json").read_text()) == log
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert isinstance(model, GPT2LMHeadModel)
    texts = ["a big red fish left of a cup", "there is a house"]
    assert tokenizer.batch_decode(tokenizer(texts).input_ids) == [f" {text}" for text in texts]
    torch.manual_seed(0)
    untrained = build_model(tokenizer, TINY)
    assert perplexity(model, tokenizer, texts) < 0.5 * perplexity(untrained, tokenizer, texts)


def test_padding_and_the_beginning_are_not_learned(storybook_tokenizer: Any) -> None:
    batch = encode(storybook_tokenizer, ["a big red fish", "a cup"])
    long, short = batch["labels"].tolist()
    assert long[0] == short[0] == -100
    assert [i for i in short if i != -100][-1] == storybook_tokenizer.eos_token_id
    assert batch["attention_mask"].sum(-1).tolist() == [len(long), sum(i != -100 for i in short) + 1]


def test_the_shipped_model_is_small_and_what_the_defaults_build() -> None:
    folder = model_path("storybook-lm")
    log = json.loads((folder / "build.json").read_text())
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 4e6
    assert log["config"] == vars(LanguageModelConfig())


def test_the_shipped_model_knows_the_language_and_not_the_picture() -> None:
    from captune.decoding.zerocap import ZeroCapModel

    pair = ZeroCapModel.load("storybook-lm", "storybook-clip", device="cpu")
    texts = [reference(sample_scene("test", 5, i), random_for("test", 5, i, "x")) for i in range(50)]
    shuffled = [" ".join(reversed(text.split())) for text in texts]
    model, tokenizer = pair.language_model, pair.tokenizer
    assert perplexity(model, tokenizer, texts) < 4 < 20 < perplexity(model, tokenizer, shuffled)
    torch.manual_seed(0)
    samples = pair.generate([None] * 20, do_sample=True)
    assert len(set(samples)) > 15
    assert all(any(fact.type == "object" for fact in parse(text)) for text in samples)
