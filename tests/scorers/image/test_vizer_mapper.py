"""The mapper as a scorer: the cosine between an image and a caption, as a metric and as a reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from captune.models.captioner import Captioner
from captune.models.vizer_mapper import Mapper, MapperConfig
from captune.scorers import load_scorer
from captune.scorers.image.vizer_mapper import ViZerScorer

CAPTIONS = ["a red ball", "two green fish and a small yellow bird on the beach", "", "my house in 2011"]


def mapper_of(captioner: Captioner, images: list, **settings: Any) -> Mapper:
    torch.manual_seed(3)
    config = MapperConfig(width=16, **settings)
    features = captioner.image_features(images, where=config.feature, pool=config.pool)
    mapper = Mapper(config, 32, features.shape[-1], captioner.name, prompt=captioner.prompt)
    mapper.measure(features)
    return mapper.eval().requires_grad_(False)


@pytest.fixture
def scorer(captioner: Captioner, images: list) -> ViZerScorer:
    mapper = mapper_of(captioner, images, blind=True, centred=True, pool="quarters", caption_pool="tokens")
    return ViZerScorer(captioner=captioner, mapper=mapper)


def test_the_score_is_the_mappers_cosine(scorer: ViZerScorer, images: list) -> None:
    rows = scorer.rows(CAPTIONS, image=images)
    mapper, captioner = scorer.mapper, scorer.captioner
    hidden, mask = captioner.caption_hidden_states(captioner.prepare(images, CAPTIONS), blind=True)
    expected = mapper.cosine(hidden, mask, mapper.image_features(captioner, images)).detach()
    assert rows.shape == (4, 1) and np.allclose(rows[:, 0], expected.numpy(), atol=1e-6)
    assert (np.abs(rows) <= 1).all() and rows.std() > 0
    assert scorer.corpus(rows) == {"vizer": pytest.approx(float(rows.mean()))}
    assert np.array_equal(scorer.per_caption(rows), rows[:, 0])


def test_batches_do_not_matter(scorer: ViZerScorer, images: list) -> None:
    captions, pictures = CAPTIONS * 3, images * 3
    whole = scorer.rows(captions, image=pictures)
    scorer.batch_size = 5
    assert np.allclose(scorer.rows(captions, image=pictures), whole, atol=1e-5)
    assert np.allclose(whole[:4], whole[4:8], atol=1e-5)
    assert scorer.rows([], image=[]).shape == (0, 1)


def test_order_does_not_matter(scorer: ViZerScorer, images: list) -> None:
    order = [2, 0, 3, 1]
    rows = scorer.rows(CAPTIONS, image=images)
    moved = scorer.rows([CAPTIONS[i] for i in order], image=[images[i] for i in order])
    assert np.allclose(moved, rows[order], atol=1e-5)


@pytest.mark.parametrize("blind", [True, False])
def test_the_adapter_does_not_score_itself(captioner: Captioner, images: list, blind: bool) -> None:
    """Training the captioner must not move its own reward."""
    scorer = ViZerScorer(captioner=captioner, mapper=mapper_of(captioner, images, blind=blind))
    before = scorer.rows(CAPTIONS, image=images)
    tiny.taught(captioner)
    captioner.model.train()
    assert np.allclose(scorer.rows(CAPTIONS, image=images), before, atol=1e-5)
    assert captioner.model.training


def test_no_graph_and_no_extra_vision(scorer: ViZerScorer, images: list) -> None:
    with scorer.captioner.share_vision() as memo:
        scorer.rows(CAPTIONS * 2, image=images * 2)
        scorer.rows(CAPTIONS, image=images)
        assert memo.evaluations == 1 and memo.images == 4
    assert not any(p.requires_grad for p in scorer.mapper.parameters())


def test_as_a_reward(scorer: ViZerScorer, images: list) -> None:
    expected = scorer.rows(CAPTIONS, image=images)[:, 0].tolist()
    chats = [[{"role": "assistant", "content": text}] for text in CAPTIONS]
    rewards = scorer(chats, prompts=[""] * 4, image=images, image_id=list("abcd"), trainer_state=None)
    assert all(type(reward) is float for reward in rewards) and rewards == pytest.approx(expected, abs=1e-6)
    assert scorer(CAPTIONS, images=[[image] for image in images]) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="needs image"):
        scorer(CAPTIONS, references=[["a"]] * 4)


def test_loaded_from_its_folder(tiny_folder, scorer: ViZerScorer, images: list, tmp_path: Path) -> None:
    """By name alone: the mapper's config says which captioner reads."""
    assert scorer.mapper.captioner_name == str(tiny_folder("idefics3"))
    folder = scorer.mapper.save(tmp_path / "mapper")
    loaded = load_scorer(f"vizer:{folder}")
    assert isinstance(loaded, ViZerScorer) and loaded.name == f"vizer:{folder}"
    assert np.allclose(loaded.rows(CAPTIONS, image=images), scorer.rows(CAPTIONS, image=images), atol=1e-5)
    assert list(loaded.corpus(loaded.rows(CAPTIONS, image=images))) == ["vizer"]


def test_it_reads_under_the_prompt_of_the_mapper_and_without_dropout(tiny_folder, images: list, tmp_path: Path) -> None:
    model = str(tiny_folder("idefics3"))
    asked = Captioner.load(model, device="cpu", prompt="what is in this place ?")
    folder = mapper_of(asked, images).save(tmp_path / "mapper")
    scorer = load_scorer(f"vizer:{folder}")
    assert isinstance(scorer, ViZerScorer) and scorer.mapper.prompt == "what is in this place ?"
    other = Captioner.load(model, device="cpu")
    scorer.bind(other)
    assert scorer.captioner is other and other.prompt != scorer.mapper.prompt
    found = scorer.rows(CAPTIONS, image=images)
    assert np.allclose(
        found, ViZerScorer(captioner=asked, mapper=scorer.mapper).rows(CAPTIONS, image=images), atol=1e-5
    )
    scorer.mapper.prompt = other.prompt
    assert not np.allclose(found, scorer.rows(CAPTIONS, image=images), atol=1e-4)  # so that the prompt matters
    scorer.mapper.prompt = asked.prompt
    expected = ViZerScorer(captioner=asked, mapper=scorer.mapper).rows(CAPTIONS, image=images)
    for module in asked.core.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.9
    asked.model.train()
    assert np.array_equal(ViZerScorer(captioner=asked, mapper=scorer.mapper).rows(CAPTIONS, image=images), expected)
    assert asked.model.training


def test_without_a_mapper_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs the folder of a mapper"):
        load_scorer("vizer")
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load_scorer(f"vizer:{tmp_path}")


def test_the_signature_says_what_the_number_means(captioner: Captioner, images: list, scorer: ViZerScorer) -> None:
    literal = ViZerScorer(captioner=captioner, mapper=mapper_of(captioner, images, shift=True))
    for words in ("blind", "quarters", "tokens", "centred:yes", "shift:no", captioner.name, "width:16"):
        assert words in scorer.signature
    for words in ("with-image", "connector-mean", "centred:no", "shift:yes"):
        assert words in literal.signature
