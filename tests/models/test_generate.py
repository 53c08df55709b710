"""Decoding and streaming."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from captune.data.images import open_image, upright_rgb
from captune.decoding import load_decoder
from captune.errors import CaptionerError, SettingError
from captune.models.captioner import Captioner
from captune.training.sequences import sample
from captune.utils.skipped import counting


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


def test_a_caption_holds_no_image(captioner: Captioner, images: list) -> None:
    image = captioner.core.config.image_token_id
    head = captioner.core.get_output_embeddings()

    def likes_images(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([image]), 1e4)

    settings: dict[str, Any] = {"max_new_tokens": 6, "return_logprob": True}
    expected, *_ = captioner.generate(images, **settings)
    hook = head.register_forward_hook(likes_images)
    try:
        suppressed = captioner.generate(images, repetition_penalty=1.0, **settings)  # at every step
        looked_for = captioner.generate(images, **settings)
    finally:
        hook.remove()
    assert looked_for[0] == suppressed[0] == expected
    assert all(torch.equal(one, other) for one, other in zip(looked_for[1:], suppressed[1:], strict=True))


def test_generate_leaves_the_training_mode(captioner: Captioner, images: list) -> None:
    tiny.taught(captioner).model.train()
    first = captioner.generate(images, max_new_tokens=8)
    assert captioner.model.training
    assert captioner.generate(images, max_new_tokens=8) == first, "dropout is off while captioning"
    captioner.model.eval()
    next(captioner.model.children()).train()  # a part alone
    assert captioner.generate(images, max_new_tokens=8) == first


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


# -- decoding follows the caller alone ---------------------------------------------------------------------------------

CHECKPOINT = {  # what a checkpoint's generation config may hold
    "do_sample": True,
    "top_k": 1,
    "top_p": 0.1,
    "min_p": 0.5,
    "temperature": 0.1,
    "typical_p": 0.1,
    "repetition_penalty": 5.0,
    "encoder_repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": 7,
    "min_length": 200,
    "num_beams": 3,
    "length_penalty": 4.0,
    "begin_suppress_tokens": [5, 6, 7, 8],
    "bad_words_ids": [[9], [10]],
    "forced_eos_token_id": 3,
    "exponential_decay_length_penalty": (1, 9.0),
    "guidance_scale": 3.0,
    "stop_strings": ["a", "e"],
    "sequence_bias": [[[11], 9.0]],
    "renormalize_logits": True,
}


def test_b12_a_checkpoints_generation_config_changes_no_caption(tiny_folder, images: list, tmp_path: Path) -> None:
    def everything(captioner: Captioner) -> list:
        captioner.generate(images[:1], max_new_tokens=2)
        said = []
        prompt = captioner.prepare(images)
        for decoder in ("cfg:2.0", "contrastive:0.5", "self-correct"):
            said.append(load_decoder(decoder)(captioner, images, max_new_tokens=6))
        for settings in ({}, {"num_beams": 2}, {"do_sample": True}):
            torch.manual_seed(0)
            said.append(captioner.generate(images, max_new_tokens=6, **settings))
        torch.manual_seed(0)
        said.append(sample(captioner, prompt, 2, greedy=True, temperature=1.0, max_new_tokens=6))
        return said

    plain = Captioner.load(tiny_folder("idefics3"), device="cpu")
    folder = Path(shutil.copytree(tiny_folder("idefics3"), tmp_path / "model"))
    own = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**own, **CHECKPOINT}))
    other = Captioner.load(folder, device="cpu")
    assert everything(other) == everything(plain)
    other.merge(tmp_path / "merged")  # keeps what the checkpoint said, for other programs
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text())["no_repeat_ngram_size"] == 1
    assert other.core.generation_config.no_repeat_ngram_size is None


@pytest.mark.parametrize("number", [0, -1])
def test_b12_no_tokens_are_no_default(captioner: Captioner, images: list, number: int) -> None:
    with pytest.raises(SettingError, match="max_new_tokens must be at least 1"):
        captioner.generate(images, max_new_tokens=number)


def test_b12_pil_images_are_read_as_files_are(captioner: Captioner, tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))
    grey = np.tile(np.arange(0, 256, 4), (48, 1))
    clear = Image.fromarray(np.dstack([grey, grey, grey, ramp // 257]).astype(np.uint8))
    turned = tiny.picture(3, (64, 40))
    exif = turned.getexif()
    exif[0x0112] = 6
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    clear.save(tmp_path / "clear.png")
    turned.save(tmp_path / "turned.png", exif=exif)
    tiny.picture(4).quantize().save(tmp_path / "palette.png", transparency=0)
    for name in ("deep", "clear", "turned", "palette"):
        raw, read = Image.open(tmp_path / f"{name}.png"), open_image(tmp_path / f"{name}.png")
        batches = [captioner.prepare([image])["pixel_values"] for image in (raw, read)]
        torch.testing.assert_close(*batches, rtol=0, atol=0, msg=name)
    opened = open_image(tmp_path / "turned.png")
    assert upright_rgb(opened) is opened  # costs nothing twice


def test_c1_what_is_longer_than_the_positions_is_refused_or_cut_and_counted(tiny_folder, images) -> None:
    captioner = Captioner.load(tiny_folder("idefics3"), device="cpu")
    captioner.positions = captioner.prepare(images[:1])["input_ids"].shape[1] + 8
    with pytest.raises(SettingError, match="lower max_new_tokens to 8"):
        captioner.generate(images[:1], max_new_tokens=9)
    assert captioner.generate(images[:1], max_new_tokens=8)
    with counting() as cut:
        batch = captioner.prepare(images[:2], ["a cat", "a cat on a mat " * 50])
    assert batch["input_ids"].shape[1] == captioner.positions and batch["caption_mask"][1].sum() == 8
    assert [len(items) for items in cut.values()] == [1]
    captioner.positions = 3
    for call in (lambda: captioner.generate(images[:1]), lambda: captioner.prepare(images[:1], ["a"])):
        with pytest.raises(SettingError, match="shorten the prompt"):
            call()


def test_c1_numbers_that_generate_cannot_use_and_prompts_that_are_no_text(tiny_folder, images) -> None:
    captioner = Captioner.load(tiny_folder("idefics3"), device="cpu")
    with pytest.raises(SettingError, match="at least 1"):
        captioner.generate(images[:1], num_beams=0)
    mark = captioner.tokenizer.convert_ids_to_tokens(captioner.core.config.image_token_id)
    with pytest.raises(SettingError, match="stands for an image"):
        Captioner.load(tiny_folder("idefics3"), device="cpu", prompt=f"{mark} Describe")
    with pytest.raises(SettingError, match="shorten the prompt"):
        Captioner.load(tiny_folder("idefics3"), device="cpu", prompt="describe it well " * 20_000)
    for device in ("gpu", "cuda:99", "meta"):
        with pytest.raises(SettingError, match="here|there is no"):
            Captioner.load(tiny_folder("idefics3"), device=device)
