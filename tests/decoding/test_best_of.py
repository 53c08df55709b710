"""Best of N: the scorer's favourite among samples that share one prefill."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders
import torch
from PIL import Image

from captune.decoding import load_decoder
from captune.decoding.best_of import BestOf
from captune.errors import CaptionerError, MissingColumn
from captune.inference.job import caption_source
from captune.models.caching.prefill import PrefillCache
from captune.models.captioner import Captioner
from captune.models.families import attribute
from captune.scorers import Scorer, load_scorer
from captune.utils.skipped import counting, sentences


def samples(captioner: Captioner, images: list, n: int) -> np.ndarray:
    """(images, n) captions, as the decoder draws them after the same seed."""
    torch.manual_seed(3)
    with PrefillCache(captioner.core):
        captions = captioner.generate(images, do_sample=True, num_return_sequences=n, max_new_tokens=6)
    return np.array(captions).reshape(len(images), n)


def decoded(captioner: Captioner, images: list, decoder: Any, **more: Any) -> list[str]:
    torch.manual_seed(3)
    return decoder(captioner, images, max_new_tokens=6, **more)


@pytest.mark.parametrize("name", ["idefics3", "qwen2_vl", "llava", "internvl"])
def test_the_scorers_favourite_is_chosen(name: str, tiny_folder: Any, images: list, tmp_path: Any) -> None:
    captioner = Captioner.load(tiny_folder(name), device="cpu")
    spec = f"clip:{tiny_encoders.clip(tmp_path / 'clip')} - 0.1*length"
    drawn = samples(captioner, images, 5)
    judge = load_scorer(spec)
    rewards = np.array(
        [judge([caption], image=[i])[0] for i, row in zip(images, drawn, strict=True) for caption in row]
    )
    best = rewards.reshape(drawn.shape).argmax(1)
    assert decoded(captioner, images, load_decoder(f"best-of:5:{spec}")) == list(drawn[range(4), best])
    assert len(set(best)) > 1


def test_one_of_one_is_a_sample(captioner: Captioner, images: list) -> None:
    assert decoded(captioner, images, load_decoder("best-of:1:length")) == list(samples(captioner, images, 1)[:, 0])


def test_beams_are_refused(captioner: Captioner, images: list) -> None:
    with pytest.raises(CaptionerError, match="leave num_beams out"):
        decoded(captioner, images, load_decoder("best-of:4:length"), num_beams=4)


def test_what_compares_images_with_each_other_is_no_judge_of_one() -> None:
    for spec in ("self_retrieval:storybook-clip", "length + 0.5*self_retrieval:storybook-clip"):
        with pytest.raises(CaptionerError, match="a caption would depend on which images are in its batch"):
            BestOf(2, spec)


def test_a_scorer_of_which_less_is_better_is_refused() -> None:
    for spec in ("repetition", "0.5*repetition"):
        with pytest.raises(CaptionerError, match=f"less of '{re.escape(spec)}' is better"):
            BestOf(4, spec)
    assert BestOf(4, "-repetition").scorer == "-repetition"


def test_greedy_and_other_settings_do_not_get_in_its_way(captioner: Captioner, images: list) -> None:
    """`captune caption` hands over its own defaults."""
    plain = decoded(captioner, images, load_decoder("best-of:4:length"))
    assert decoded(captioner, images, load_decoder("best-of:4:length"), num_beams=1, do_sample=False) == plain
    cold = decoded(captioner, images, load_decoder("best-of:4:length"), temperature=1e-4)
    assert cold == captioner.generate(images, max_new_tokens=6)


def test_the_samples_share_tower_and_prefill(captioner: Captioner, images: list) -> None:
    seen, read = [], []
    tower = attribute(captioner.core, captioner.family.vision)
    tower.register_forward_hook(lambda *_: seen.append(1), always_call=True)
    tower.encoder.layers[0].register_forward_hook(lambda m, a, out: read.append(len(a[0])))
    layer = attribute(captioner.core, captioner.family.language_model).layers[0]
    prompts: list[int] = []
    layer.register_forward_hook(lambda m, a, out: prompts.append(len(a[0])) if a[0].shape[1] > 2 else None)
    load_decoder("best-of:6:length")(captioner, images, max_new_tokens=4)
    assert sum(read) == len(images)
    assert prompts == [len(images)]


class Judge(Scorer):
    """Rewards in a row, whatever the captions; counts its calls."""

    name = "judge"

    def __init__(self, *rewards: float) -> None:
        self.rewards, self.asked = rewards, list[list[str]]()

    def __call__(self, completions: Any, **columns: Any) -> list[float]:
        self.asked.append(list(completions))
        return list(self.rewards)


@pytest.mark.parametrize(
    ("rewards", "chosen"),
    [((0.0, 2.0, 1.0), 1), ((float("nan"), -5.0, -6.0), 1), ((1.0, 1.0, 1.0), 0), ((float("nan"),) * 3, 0)],
)
def test_ties_and_rewards_that_are_none(captioner: Captioner, images: list, rewards: Any, chosen: int) -> None:
    decoder = BestOf(3, "length")
    decoder.__dict__["judge"] = judge = Judge(*rewards)
    assert decoded(captioner, images[:1], decoder) == [judge.asked[0][chosen]]


class Served:
    """Captions as a server does, several batches at once; they are all equal."""

    name, prompt, batches_at_once = "served", "Describe this image.", 3

    def generate(self, images: list, num_return_sequences: int = 1, **_: Any) -> list[str]:
        return ["a dog"] * len(images) * num_return_sequences


class Blind(Scorer):
    """Judges the samples of wide images alone."""

    name = "blind"

    def __call__(self, completions: Any, *, image: Any, **columns: Any) -> list[float]:
        return [1.0 if one.width > 40 else float("nan") for one in image]


def test_images_without_a_judged_sample_are_counted(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number, width in enumerate([32, 48, 32, 32, 48, 32]):
        Image.new("RGB", (width, 32), (number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    decoder = BestOf(2, "length")
    decoder.__dict__["judge"] = Blind()
    with counting() as counts:
        caption_source(Served(), str(tmp_path / "photos"), tmp_path / "caps.jsonl", decoder=decoder, batch_size=2,
                       progress=False)  # fmt: skip
    (said,) = sentences(counts)
    assert said.startswith("left out 4: choices of best-of, which kept the first sample, as its scorer judged none")


def test_what_the_scorer_needs_is_checked_before_any_work(
    captioner: Captioner, images: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captioner, "generate", lambda *_, **__: pytest.fail("worked before looking"))
    with pytest.raises(MissingColumn, match="needs references"):
        load_decoder("best-of:4:rouge")(captioner, images)


def test_with_references_it_tells_what_is_within_reach(captioner: Captioner, images: list) -> None:
    drawn = samples(captioner, images, 4)
    references = [[row[2]] for row in drawn]
    found = decoded(captioner, images, load_decoder("best-of:4:rouge"), columns={"references": references})
    assert found == [reference for (reference,) in references]
