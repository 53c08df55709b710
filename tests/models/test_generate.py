"""Decoding and streaming."""

from __future__ import annotations

import pytest
import tiny
import torch

from captune.errors import CaptionerError
from captune.models.captioner import Captioner


def test_sampling_is_reproducible_and_grouped_by_image(captioner: Captioner, images: list) -> None:
    def sample(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return captioner.generate(images, do_sample=True, num_return_sequences=3, max_new_tokens=8)

    assert len(sample(0)) == 12 and sample(0) == sample(0) != sample(1)
    torch.manual_seed(0)
    cold = captioner.generate(images, do_sample=True, temperature=1e-4, num_return_sequences=2, max_new_tokens=8)
    assert cold[0::2] == cold[1::2] == captioner.generate(images, max_new_tokens=8)


def test_a_checkpoint_does_not_meddle_with_sampling(captioner: Captioner, images: list) -> None:
    """Qwen2-VL ships top_k=1 and a temperature of 0.01: sampling would be greedy decoding."""
    captioner.core.generation_config.update(do_sample=True, top_k=1, temperature=0.01, repetition_penalty=1.5)
    samples = captioner.generate(images[:1] * 1, do_sample=True, num_return_sequences=8, max_new_tokens=4)
    assert len(set(samples)) > 4
    fresh = Captioner(captioner.core, captioner.processor)
    fresh.core.generation_config = type(fresh.core.generation_config)()
    plain = fresh.generate(images, max_new_tokens=8)
    fresh.core.generation_config.update(do_sample=True, top_k=1, temperature=0.01, repetition_penalty=1.5)
    assert fresh.generate(images, max_new_tokens=8) == plain


@pytest.mark.parametrize(
    "how", [{}, {"do_sample": True, "temperature": 0.7, "num_return_sequences": 2}, {"num_beams": 3}], ids=str
)
@pytest.mark.parametrize("opening", [None, "a red"])
def test_log_probabilities_are_the_models_own(captioner: Captioner, images: list, how: dict, opening: str) -> None:
    """Recomputed with one forward pass over the very tokens that were generated."""
    kept: list[torch.Tensor] = []
    generate = captioner.model.generate
    captioner.model.generate = lambda **kw: kept.append((out := generate(**kw)).sequences) or out  # type: ignore
    torch.manual_seed(0)
    captions, mean, total = captioner.generate(
        images, return_logprob=True, forced_opening=opening, max_new_tokens=6, **how
    )
    groups = how.get("num_return_sequences", 1)
    sequences, repeated = kept[0], [image for image in images for _ in range(groups)]
    batch = captioner.prepare(repeated)
    start = batch["input_ids"].shape[1] + (len(captioner.caption_ids(opening)) if opening else 0)
    pixels = {k: v for k, v in batch.items() if k.startswith("pixel")}
    with torch.no_grad():
        logits = captioner.model(input_ids=sequences, **pixels).logits
    logp = logits[:, start - 1 : -1].log_softmax(-1).gather(2, sequences[:, start:, None])[..., 0]
    for i, row in enumerate(sequences[:, start:].tolist()):
        length = row.index(captioner.eos_ids[0]) + 1 if captioner.eos_ids[0] in row else len(row)
        assert total[i].item() == pytest.approx(logp[i, :length].sum().item(), abs=1e-3)
        assert mean[i].item() == pytest.approx(logp[i, :length].mean().item(), abs=1e-3)
    assert opening is None or all(caption.startswith(opening) for caption in captions)


def test_generate_leaves_the_training_mode(captioner: Captioner, images: list) -> None:
    tiny.taught(captioner).model.train()
    first = captioner.generate(images, max_new_tokens=8)
    assert captioner.model.training
    assert captioner.generate(images, max_new_tokens=8) == first, "dropout is off while captioning"


def test_caption_streams_every_image_once(captioner: Captioner) -> None:
    sizes = [(64, 64), (200, 40), (32, 32), (64, 128), (100, 100)]
    source = [(f"id-{i}", tiny.picture(i, sizes[i % 5])) for i in range(11)]
    taken: list[str] = []

    def stream():
        for item in source:
            taken.append(item[0])
            yield item

    found = captioner.caption(stream(), batch_size=2, window=2, progress=False, max_new_tokens=5)
    first = next(found)
    assert len(taken) == 4, "one window is read ahead, no more"
    results = dict([first, *found])
    assert results == {name: captioner.generate([image], max_new_tokens=5)[0] for name, image in source}
    assert list(captioner.caption([], progress=False)) == []
    with pytest.raises(CaptionerError, match="one caption per image"):
        next(captioner.caption(source, num_return_sequences=2))
