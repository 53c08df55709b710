"""PMI and VisualGPTScore: equal to the definition, one reading of each pair, one look at each image."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_families
import torch

from captune.data.images import blank
from captune.errors import ScorerError, SpecError
from captune.evaluation.cache import Cache
from captune.models.captioner import Captioner
from captune.scorers import load_reward, load_scorer
from captune.scorers.image.pmi import PMI
from captune.training.reward import prepare_reward
from captune.utils.memory import forget

CAPTIONS = ["a red ball", "two green fish and a small yellow bird on the beach", "", "my house in 2011", "a red ball"]
IMAGES = [tiny.picture(0), tiny.picture(1, (80, 50)), tiny.picture(2), tiny.picture(0), tiny.picture(1, (80, 50))]


def log_probs(captioner: Captioner, caption: str, image: Any) -> list[float]:
    """Of each token, the end included: one image, one caption, one plain forward pass; None: the prompt alone."""
    processor, tokenizer = captioner.processor, captioner.tokenizer
    text = captioner.prompt_text(image=image is not None)
    bos = bool(tokenizer.bos_token and text.startswith(tokenizer.bos_token))
    if image is not None:
        inputs = processor(text=[text], images=[[image]], return_tensors="pt", add_special_tokens=not bos)
    else:
        inputs = tokenizer(
            [text or tokenizer.bos_token], return_tensors="pt", add_special_tokens=not bos and bool(text)
        )
    tail = [*captioner.caption_ids(caption), captioner.eos_ids[0]]
    prompt = inputs["input_ids"].shape[1]
    for key, value in list(inputs.items()):
        if key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
            more = {"input_ids": tail, "attention_mask": [1] * len(tail)}.get(key, [0] * len(tail))
            inputs[key] = torch.cat([value, torch.tensor([more])], dim=1)
    with torch.no_grad():
        logits = captioner.core(**inputs).logits[0, prompt - 1 : -1].double().log_softmax(-1)
    return [float(logits[k, token]) for k, token in enumerate(tail)]


@pytest.mark.parametrize("family", tiny_families.BUILDERS)
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_it_is_the_definition(family: str, batch_size: int, tiny_folder) -> None:
    captioner = Captioner.load(tiny_folder(family), device="cpu")
    scorer = PMI(captioner=captioner, batch_size=batch_size)
    rows = scorer.rows(CAPTIONS, image=IMAGES)
    expected = [
        sum(log_probs(captioner, c, v)) - (sum(log_probs(captioner, c, blank())) if c else 0)  # silence must not pay
        for c, v in zip(CAPTIONS, IMAGES, strict=True)
    ]
    assert rows.shape == (5, 1) and len(set(np.round(expected, 4))) > 3
    np.testing.assert_allclose(rows[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("family", ["idefics3", "qwen2_vl", "llava", "internvl"])
def test_every_setting_is_the_definition(family: str, tiny_folder) -> None:
    captioner = Captioner.load(tiny_folder(family), device="cpu")
    pairs = list(zip(CAPTIONS, IMAGES, strict=True))
    seen = [log_probs(captioner, *pair) for pair in pairs]
    unseen = [log_probs(captioner, caption, None) for caption in CAPTIONS]

    def scores(spec: str) -> np.ndarray:
        return PMI(spec, captioner=captioner).rows(CAPTIONS, image=IMAGES)[:, 0]

    np.testing.assert_allclose(scores("x?alpha=0"), [sum(p) for p in seen], atol=1e-5)
    np.testing.assert_allclose(scores("x?alpha=0&normalise=length"), [np.mean(p) for p in seen], atol=1e-5)
    ends = [p[:-1] or p for p in seen]  # an empty caption is its end
    np.testing.assert_allclose(scores("x?alpha=0&end=0"), list(map(sum, ends)), atol=1e-5)
    half = [np.sum(p) - 0.5 * np.sum(q) * bool(c) for p, q, c in zip(seen, unseen, CAPTIONS, strict=True)]
    np.testing.assert_allclose(scores("x?alpha=0.5&without=prompt"), half, atol=1e-5)


def test_each_image_is_encoded_once_and_each_pair_read_once(captioner: Captioner) -> None:
    encoded: list[int] = []
    read: list[tuple[int, ...]] = []
    tower: Any = captioner.core.base_model.vision_model
    tower.register_forward_hook(lambda *call: encoded.append(len(call[-1].last_hidden_state)))
    captioner.core.register_forward_hook(lambda *call: read.append(tuple(call[-1].logits.shape[:2])))
    captions = [f"{c}{i}" for i in range(3) for c in ("a", "b", "c", "d")]
    images = [tiny.picture(i % 4) for i in range(12)]  # the captions of an image lie apart, and fall into two batches
    scorer = PMI(captioner=captioner, batch_size=5)
    rows = scorer.rows([*captions, captions[0]], image=[*images, images[0]])
    assert sum(encoded) == 4 + 1  # the images, and the blank one
    assert [b for b, _ in read] == [5, 5, 2] * 2  # with the image, without it; the pair that came twice is read once
    widest = max(len(captioner.caption_ids(caption)) for caption in captions) + 1
    assert all(t <= widest for _, t in read), "logits are made at the captions' tokens only"
    encoded.clear()
    read.clear()
    again = scorer.rows(captions, image=images)
    assert [b for b, _ in read] == [5, 5, 2] and sum(encoded) == 4, "log p(c) is known"
    np.testing.assert_allclose(rows[:12], again, atol=1e-5)
    np.testing.assert_allclose(rows[12], rows[0])


def test_a_reward_of_the_trained_captioner_does_not_move(captioner: Captioner, images: list, tmp_path: Path) -> None:
    texts = CAPTIONS[:4]
    expected = PMI(captioner=captioner).rows(texts, image=images)
    reward = load_reward("pmi:own - 0.1*length")
    (own, _), _ = reward.parts
    with pytest.raises(ScorerError, match="with the captioner that is trained on it, and none is"):
        own.check()
    assert "own:none" in own.signature
    for part, _ in reward.parts:
        part.bind(captioner)
    reward.check()
    before = own.signature
    tiny.taught(captioner)
    captioner.model.train()
    np.testing.assert_allclose(own.rows(texts, image=images), expected, atol=1e-5)
    assert captioner.model.training and own.signature == before and "own:" in before
    moved = PMI(captioner=captioner).rows(texts, image=images)  # another's adapter does count
    assert np.abs(moved - expected).max() > 1e-3
    assert own(texts, image=images) == pytest.approx(expected[:, 0].tolist(), abs=1e-5)
    assert not captioner.vision_cache or captioner.vision_cache.depth == 0


def test_what_is_kept_is_forgotten_at_a_checkpoint(captioner: Captioner, images: list) -> None:
    """A run that resumes keeps nothing, and a figure of another batch may differ in its last bits."""
    scorer = PMI("own", captioner=captioner)
    scorer.rows(["a dog"], image=images[:1])
    assert scorer._unseen
    forget()
    assert not scorer._unseen


def test_an_adapter_is_named(tiny_folder, captioner: Captioner, images: list, tmp_path: Path) -> None:
    plain = load_scorer(f"pmi:{tiny_folder('idefics3')}", device="cpu")
    tiny.taught(captioner)
    folder = captioner.save_adapter(tmp_path / "adapter")
    scorer = load_scorer(f"pmi:{tiny_folder('idefics3')}?adapter={folder}", device="cpu")
    scorer.check()
    expected = PMI(captioner=captioner).rows(CAPTIONS[:4], image=images)
    np.testing.assert_allclose(scorer.rows(CAPTIONS[:4], image=images), expected, atol=1e-5)
    assert f"|adapter:{folder}|" in scorer.signature
    assert scorer.signature.partition("|adapter")[0] != plain.signature.partition("|alpha")[0]
    for says, spec in [
        ("adapter folder '/none/x' does not exist", "?adapter=/none/x"),
        ("cannot be loaded", f"?adapter={tmp_path}"),
    ]:
        with pytest.raises(ScorerError, match=says):
            broken = load_scorer(f"pmi:{tiny_folder('idefics3')}{spec}", device="cpu")
            broken.check()
            broken.rows(CAPTIONS[:1], image=images[:1])


def test_what_cannot_be_read_is_an_error_that_names_the_caption(captioner: Captioner, images: list) -> None:
    scorer = PMI(captioner=captioner)
    with pytest.raises(ScorerError, match="caption 'ball ball .*tokens, more than the 512 that .* reads"):
        scorer.rows(["a", "ball " * 600], image=images[:2])
    with torch.no_grad():
        captioner.core.get_output_embeddings().weight[3] = math.nan
    with pytest.raises(ScorerError, match="gives caption 'a' the log-probability nan"):
        scorer.rows(["a"], image=images[:1])
    assert scorer.rows([], image=[]).shape == (0, 1)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="a chat server gives those of its own words alone: .*'vqa'"):
        load_scorer("pmi:http://localhost:1/v1#eyes")
    with pytest.raises(SpecError, match="'pmi:own' reads without an adapter"):
        load_scorer("pmi:own?adapter=x")
    with pytest.raises(ValueError, match="alpha"):
        load_scorer("pmi:?alpha=2")
    with pytest.raises(ScorerError, match="captioner of scorer 'pmi:.*' folder .* does not exist"):
        load_scorer(f"pmi:{tmp_path / 'none'}").check()


def test_known_rows_are_not_read_again(captioner: Captioner, images: list, tmp_path: Path) -> None:
    scorer = PMI(captioner=captioner)
    scorer.cache = Cache(tmp_path)
    columns = {"image": images}
    rows = scorer.measure(CAPTIONS[:4], columns)
    again = PMI(captioner=captioner)
    again.cache, again.rows = Cache(tmp_path), None  # type: ignore[assignment,method-assign]
    assert np.array_equal(again.measure(CAPTIONS[:4], columns), rows)
    specs = ("x", "x?alpha=0", "x?normalise=length", "x?end=0", "x?without=prompt", "x?alpha=0.5")
    assert len({PMI(spec, captioner=captioner).signature for spec in specs}) == 6


def test_the_shipped_captioner_knows_its_images() -> None:
    from captune import storybook

    test = storybook.load("test", 24, seed=1)
    first = [texts[0] for texts in test.with_format(None)["references"]]
    scorer = load_scorer("pmi", device="cpu")
    scorer.check()
    own = scorer.measure(first, {"image": test["image"]})[:, 0]
    other = scorer.measure(first[1:] + first[:1], {"image": test["image"]})[:, 0]
    empty = scorer.measure([""] * 24, {"image": test["image"]})[:, 0]
    assert np.mean(own[:, None] > other[None]) >= 0.95 and (own > empty).all()
    assert other.mean() > empty.mean(), "silence does not pay"


def test_prepared_as_a_reward(captioner: Captioner, images: list) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"image": images})
    reward = load_reward("pmi:own")
    prepare_reward(reward, rows, None, captioner)  # type: ignore[arg-type]
    assert len(reward(["a", "b"], image=images[:2])) == 2
