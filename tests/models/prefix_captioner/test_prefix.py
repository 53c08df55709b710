"""The prefix captioner: built of two folders, saved, loaded, batched, cached, trained like any other captioner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_prefix
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.utils import logging

from captune.errors import CaptionerError
from captune.models.caching.prefill import PrefillCache
from captune.models.caching.preprocessing import PreprocessingCache
from captune.models.captioner import Captioner
from captune.models.prefix_captioner import PrefixConfig, PrefixForConditionalGeneration, PrefixProcessor, assemble

PAIRS = [
    ("clip", "mistral", "pooled"),
    ("siglip", "gpt2", "patches"),
    ("dinov2", "opt", "pooled"),
]
PROMPTS = ["", " a", " a red ball to the left of a blue house", " two green fish"]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make("clip", "gpt2", "pooled")`: the folder of that captioner, made once."""
    logging.disable_progress_bar()
    made: dict[tuple[str, ...], Path] = {}

    def folder(*parts: str) -> Path:
        if parts not in made:
            image_encoder, lm, feature = parts
            path = tmp_path_factory.mktemp("prefix")
            made[parts] = tiny_prefix.prefix_captioner(path, image_encoder, lm, image_feature=feature)
        return made[parts]

    return folder


@pytest.fixture(params=PAIRS, ids="-".join)
def folder(request: pytest.FixtureRequest, make: Make) -> Path:
    return make(*request.param)


@pytest.fixture
def captioner(make: Make) -> Captioner:
    return Captioner.load(make("clip", "gpt2", "pooled"), device="cpu")


@pytest.fixture(scope="module")
def images() -> list:
    return [tiny.picture(i, (64 + 8 * i, 80)) for i in range(8)]


def generated(captioner: Captioner, batch: Any, **settings: Any) -> torch.Tensor:
    """The new tokens (N, 6) of a prompt batch, greedy unless said otherwise."""
    settings = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, **settings}
    pad = captioner.tokenizer.pad_token_id
    out = captioner.core.generate(**batch, pad_token_id=pad, eos_token_id=captioner.eos_ids, **settings)
    return out[:, batch["input_ids"].shape[1] :]


def prompts(captioner: Captioner, images: list) -> Any:
    """Images with prompts of different lengths, left padded."""
    texts = ["<image>\n" + PROMPTS[i % len(PROMPTS)] for i in range(len(images))]
    pictures = [[image] for image in images]
    return captioner.processor(text=texts, images=pictures, padding=True, padding_side="left", return_tensors="pt")


def test_a_saved_captioner_comes_back_bit_for_bit(folder: Path, images: list, tmp_path: Path) -> None:
    first = Captioner.load(folder, device="cpu")
    assert isinstance(first.core, PrefixForConditionalGeneration) and isinstance(first.processor, PrefixProcessor)
    first.core.save_pretrained(tmp_path)
    first.processor.save_pretrained(tmp_path)
    names = [path.name for path in folder.iterdir() if path.is_file()]
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name
    second = Captioner.load(tmp_path, device="cpu")
    ours, theirs = first.core.state_dict(), second.core.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    batch = first.prepare(images[:2])
    with torch.no_grad():
        assert torch.equal(first.core(**batch).logits, second.core(**second.prepare(images[:2])).logits)


def test_the_parts_are_those_of_their_folders(folder: Path) -> None:
    """No weight is changed, and a text has the probabilities that the language model alone gives it, to the bit."""
    lm = AutoModelForCausalLM.from_pretrained(folder / "lm")
    core: Any = Captioner.load(folder, device="cpu").core
    ours = core.model.language_model.state_dict()
    for name, weight in lm.base_model.state_dict().items():
        assert torch.equal(weight, ours[name][: len(weight)]), name
    ids = torch.arange(10, 30).view(2, 10)
    with torch.no_grad():
        theirs, logits = lm(ids).logits, core(ids).logits
    image, words = core.config.image_token_id, torch.arange(theirs.shape[-1]) != core.config.image_token_id
    assert torch.equal(logits[..., : theirs.shape[-1]][..., words], theirs[..., words])
    assert (logits.softmax(-1)[..., image] == 0).all()
    assert core.lm_head.weight.shape[0] == max(lm.get_output_embeddings().weight.shape[0], image + 1)
    assert (core.lm_head.weight is core.get_input_embeddings().weight) == lm.config.tie_word_embeddings


def test_the_weights_in_memory_are_those_on_disk(make: Make, tmp_path: Path) -> None:
    """What `from_pretrained_parts` returns is what it saves: tied tables, a new row, a head with a bias."""
    for lm in ("gpt2", "phi"):
        parts = make("clip", lm, "pooled")
        torch.manual_seed(5)
        model, processor = assemble(parts / "encoder", parts / "lm")
        assert model.config.num_prefix_tokens == 16 and not model.training
        assert not any(p.requires_grad for p in model.model.vision_tower.parameters())
        model.save_pretrained(tmp_path / lm)
        processor.save_pretrained(tmp_path / lm)
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / lm)
        again.train()
        assert again.model.projector.training and not again.model.vision_tower.training
        assert not any(p.requires_grad for p in again.model.vision_tower.parameters())
        ours, theirs = model.state_dict(), again.state_dict()
        assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert isinstance(AutoProcessor.from_pretrained(tmp_path / lm), PrefixProcessor)
        prefix = model.get_image_features(processor.image_processor(tiny.picture(0), return_tensors="pt").pixel_values)
        std = float(model.get_input_embeddings().weight.detach().std())
        assert 0.5 < float(prefix.pooler_output.detach().std()) / std < 2, (
            "the prefix begins at the scale of the embeddings"
        )


def test_with_and_without_cache(folder: Path, images: list) -> None:
    captioner = Captioner.load(folder, device="cpu")
    batch = prompts(captioner, images)
    assert torch.equal(generated(captioner, batch), generated(captioner, batch, use_cache=False))


def test_one_at_a_time_or_eight_together(folder: Path, images: list) -> None:
    """The same captions, and the same logits up to rounding, whatever the neighbours and the padding."""
    captioner = Captioner.load(folder, device="cpu")
    batch = prompts(captioner, images)
    assert (batch["attention_mask"] == 0).any()
    together = generated(captioner, batch)
    with torch.no_grad():
        logits = captioner.core(**batch).logits
    captions = captioner.generate(images, max_new_tokens=6)
    assert len(set(captions)) > 3, "the model looks at its images"
    assert captioner.generate(images[:1], max_new_tokens=6) == captions[:1]
    for i, image in enumerate(images):
        text = ["<image>\n" + PROMPTS[i % len(PROMPTS)]]
        own = captioner.processor(text=text, images=[[image]], return_tensors="pt")
        assert torch.equal(generated(captioner, own)[0], together[i])
        with torch.no_grad():
            alone = captioner.core(**own).logits[0]
        assert torch.allclose(alone, logits[i, -len(alone) :], atol=1e-4)


def test_samples_share_a_prefill(folder: Path, images: list) -> None:
    captioner = Captioner.load(folder, device="cpu")
    settings: dict[str, Any] = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 5}
    torch.manual_seed(4)
    plain = captioner.generate(images[:2], **settings)
    torch.manual_seed(4)
    with PrefillCache(captioner.core) as shared, captioner.share_vision() as memo:
        assert captioner.generate(images[:2], **settings) == plain
        assert (shared.prompts, shared.rows, memo.images) == (2, 6, 2)
    greedy = captioner.generate(images[:2], num_beams=3, num_return_sequences=3, max_new_tokens=5)
    assert len(greedy) == 6 and greedy[:3] != greedy[3:]


def test_equal_images_are_preprocessed_once(captioner: Captioner, images: list) -> None:
    with PreprocessingCache(captioner.processor) as shared:
        batch = captioner.prepare([images[0], images[1].copy(), images[1], images[0]])
    assert shared.images <= 3 and batch["pixel_values"].shape[0] == 4
    assert torch.equal(batch["pixel_values"], captioner.prepare([images[i] for i in (0, 1, 1, 0)])["pixel_values"])


def test_the_image_token_is_a_placeholder_and_nothing_else(captioner: Captioner, images: list) -> None:
    """Not in captions, not in the loss, and of no weight to gather, repeat or ban: third-party samplers do all that."""
    core, image = captioner.core, captioner.core.config.image_token_id
    batch = captioner.prepare(images[:2], ["a red ball", "a fish <image>"])
    assert (batch["input_ids"] == image).sum() == 2 * 4, "text that reads <image> is text"
    everything = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)  # as TRL's SFTTrainer labels it
    visible = everything.masked_fill(everything == image, -100)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    assert torch.equal(core(**inputs, labels=everything).loss, core(**inputs, labels=visible).loss)
    prompt = captioner.prepare(images[:2])
    for settings in ({"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}, {"do_sample": True, "temperature": 9.0}):
        assert not (generated(captioner, prompt, max_new_tokens=30, **settings) == image).any()
    with torch.no_grad():
        before = core(**inputs).logits
        core.get_input_embeddings().weight[image] = 1e6
        assert torch.equal(core(**inputs).logits, before)


@pytest.mark.parametrize("lm", ["gpt2", "mistral"])
def test_trl_reads_the_probabilities_of_the_words(make: Make, images: list, lm: str) -> None:
    """Trl's trainers read weight and bias of the head; a language model's logits may all lie far below 0 (GPT-2)."""
    from trl.trainer.utils import add_fused_lm_head

    core = Captioner.load(make("clip", lm, "pooled"), device="cpu").core
    captioner = Captioner.load(make("clip", lm, "pooled"), device="cpu")
    batch = captioner.prepare(images[:2], ["a red ball", "a fish"])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    image = core.config.image_token_id
    with torch.no_grad():
        states = core.model(**inputs).last_hidden_state[:, -1].mean(0)
        words = torch.arange(core.lm_head.weight.shape[0]) != image
        core.lm_head.weight = torch.nn.Parameter(
            core.lm_head.weight - 35 * words[:, None] * states / states.norm() ** 2
        )
        expected = core(**inputs).logits[:, :-1].log_softmax(-1)
        add_fused_lm_head(core)
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == image, -100)
        read = core(**inputs, labels=labels, fused_lm_head=True).log_probs
    shown = labels[:, 1:] != -100
    own = expected.gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
    assert torch.allclose(read[shown], own[shown], atol=1e-4) and expected[..., image].exp().max() == 0
    raw = torch.nn.functional.linear(states, core.lm_head.weight)
    assert raw[words].max() < -10 < raw[image], "the image token would take all"


def test_two_images_in_one_text(captioner: Captioner, images: list) -> None:
    text = ["<image> and <image>"]
    one, other = (captioner.processor(text=text, images=[pair], return_tensors="pt") for pair in
                  ([images[0], images[1]], [images[1], images[0]]))  # fmt: skip
    with torch.no_grad():
        assert (captioner.core(**one).logits - captioner.core(**other).logits).abs().max() > 1e-3
        one["pixel_values"] = one["pixel_values"].flip(0)
        assert torch.equal(captioner.core(**one).logits, captioner.core(**other).logits)
    one["pixel_values"] = one["pixel_values"][:1]
    with pytest.raises(ValueError, match="8 image tokens in the text do not fit 1 images of 4 tokens each"):
        captioner.core(**one)
    with pytest.raises(ValueError, match="8 image tokens in the text do not fit 0 images"):
        captioner.core(input_ids=one["input_ids"])


def test_visual_features_given_in_place_of_pixels(captioner: Captioner, images: list) -> None:
    batch = captioner.prepare(images[:2])
    pixels = batch.pop("pixel_values")
    with torch.no_grad():
        encoded = captioner.core.get_image_features(pixels)
        given = captioner.core(**batch, mm_encoder_outputs={"image": encoded}).logits
        assert torch.equal(given, captioner.core(**batch, pixel_values=pixels).logits)
    assert encoded.pooler_output.shape == (2, 4, 32)
    assert encoded.last_hidden_state.shape == (2, 16, 32), "16 patches, without the class token"


def test_patches_keep_their_place(make: Make, images: list) -> None:
    """With image_feature="patches" the k tokens are the picture's cells, in reading order."""
    core: Any = Captioner.load(make("dinov2", "gpt2", "patches"), device="cpu").core
    states = torch.randn(1, 4 + 16, 32)  # a class token and three registers come first
    core.model.vision_tower.forward = lambda **_: type("Out", (), {"last_hidden_state": states, "pooler_output": None})
    features = core.model.get_tower_features(torch.zeros(1, 3, 64, 64)).pooler_output
    grid = states[0, 4:].view(4, 4, 32)
    cells = [grid[y : y + 2, x : x + 2].mean((0, 1)) for y in (0, 2) for x in (0, 2)]
    assert torch.allclose(features[0], torch.stack(cells), atol=1e-6)


def test_a_convolutional_encoder_gives_a_map(make: Make, images: list) -> None:
    core: Any = Captioner.load(make("efficientnet", "gpt2", "patches"), device="cpu").core
    pixels = torch.randn(2, 3, 72, 72)
    found = core.model.get_tower_features(pixels)
    states = core.model.vision_tower(pixels).last_hidden_state
    assert states.shape == (2, 32, 3, 3) and found.last_hidden_state.shape == (2, 9, 32)
    assert torch.equal(found.last_hidden_state, states.flatten(2).transpose(1, 2))
    cells = [states[:, :, y : y + 2, x : x + 2].mean((2, 3)) for y in (0, 1) for x in (0, 1)]
    assert torch.allclose(found.pooler_output, torch.stack(cells, 1), atol=1e-6)


def test_the_embedding_and_a_grid_together_and_the_whole_image(make: Make, images: list) -> None:
    parts = make("efficientnet", "gpt2", "patches")
    settings: dict[str, Any] = {"image_feature": "both", "num_prefix_tokens": 5, "whole_image": True}
    model, processor = assemble(parts / "encoder", parts / "lm", **settings)
    wide = tiny.picture(0, (300, 100))
    pixels = processor.image_processor(images=[wide], return_tensors="pt")["pixel_values"]
    squeezed = torch.tensor(np.asarray(wide.resize((72, 72), Image.Resampling.BICUBIC))).permute(2, 0, 1)
    torch.testing.assert_close(pixels[0], (squeezed.float() - 127) / 128, atol=0.0079, rtol=0)  # a level of 256
    features = model.model.get_tower_features(pixels).pooler_output
    states = model.model.vision_tower(pixels)
    assert features.shape == (1, 5, 32) and torch.equal(features[:, 0], states.pooler_output)
    cells = torch.nn.functional.adaptive_avg_pool2d(states.last_hidden_state, 2).flatten(2).transpose(1, 2)
    assert torch.equal(features[:, 1:], cells) and model.get_image_features(pixels).pooler_output.shape == (1, 5, 32)
    with pytest.raises(ValueError, match='"both" needs num_prefix_tokens one above a square'):
        assemble(parts / "encoder", parts / "lm", **{**settings, "num_prefix_tokens": 4})
    siglip = make("siglip", "gpt2", "patches")
    with pytest.raises(CaptionerError, match="crops nothing: leave whole_image out"):
        assemble(siglip / "encoder", siglip / "lm", whole_image=True)


def test_texts_begin_with_the_bos_token(make: Make, images: list, tmp_path: Path) -> None:
    parts = make("clip", "gpt2", "pooled")
    with pytest.raises(CaptionerError, match="has no BOS token: leave begin_token out"):
        assemble(parts / "encoder", parts / "lm", begin_token=True)
    tokenizer = AutoTokenizer.from_pretrained(parts / "lm")
    tokenizer.bos_token = tokenizer.eos_token
    AutoModelForCausalLM.from_pretrained(parts / "lm").save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    model, processor = assemble(parts / "encoder", tmp_path / "lm", begin_token=True)
    model.save_pretrained(tmp_path / "whole"), processor.save_pretrained(tmp_path / "whole")
    captioner = Captioner.load(tmp_path / "whole", device="cpu")
    for texts in (None, ["a ball", "two green fish"]):
        batch = captioner.prepare(images[:2], texts)
        firsts = batch["attention_mask"].argmax(1)
        for row, first in zip(batch["input_ids"].tolist(), firsts.tolist(), strict=True):
            assert row[first : first + 2] == [tokenizer.bos_token_id, captioner.core.config.image_token_id]


def test_a_convolutional_encoder_may_pool_to_a_map_of_one_place(make: Make, images: list) -> None:
    captioner = Captioner.load(make("resnet", "gpt2", "pooled"), device="cpu")
    core: Any = captioner.core
    batch = captioner.prepare(images[:2])
    assert core.model.vision_tower(batch["pixel_values"]).pooler_output.shape == (2, 32, 1, 1)
    assert core.get_image_features(batch["pixel_values"]).pooler_output.shape == (2, 4, 32)
    plain = captioner.generate(images[:2])
    with captioner.share_vision() as memo:
        assert captioner.generate(images[:2]) == plain and memo.images == 2


def test_the_projector_learns_and_the_encoder_does_not(make: Make, images: list, tmp_path: Path) -> None:
    """HAR's stage 1 with LoRA: equation 1 on two pairs, then the adapter is saved, loaded and merged."""
    captioner = Captioner.load(make("clip", "gpt2", "pooled"), device="cpu")
    core, pair = captioner.core, (images[:2], ["a red ball", "two green fish"])
    targets = r"model\.language_model\..*\.(?:c_attn|c_fc|c_proj)"
    config = LoraConfig(r=8, lora_alpha=16, target_modules=targets, modules_to_save=["model.projector"])
    captioner.model = model = get_peft_model(core, config)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all("lora_" in name or "model.projector.modules_to_save" in name for name in trainable)
    tower = {name: p.clone() for name, p in core.model.vision_tower.named_parameters()}
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = captioner.prepare(*pair)
    batch.pop("caption_mask")
    model.train()
    for _ in range(60):
        optimiser.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        if loss < 0.02:
            break
    model.eval()
    assert captioner.generate(pair[0]) == pair[1]
    assert all(p.grad is None and torch.equal(p, tower[name]) for name, p in core.model.vision_tower.named_parameters())
    captioner.save_adapter(tmp_path)
    loaded = Captioner.load(make("clip", "gpt2", "pooled"), adapter=tmp_path, device="cpu")
    assert loaded.generate(pair[0]) == pair[1]
    with loaded.share_vision() as memo:
        assert loaded.generate(pair[0]) == pair[1] and memo.evaluations == 1
    loaded.merge_adapter()
    loaded.core.save_pretrained(tmp_path / "merged")
    loaded.processor.save_pretrained(tmp_path / "merged")
    assert Captioner.load(tmp_path / "merged", device="cpu").generate(pair[0]) == pair[1]


def test_parts_that_do_not_fit_are_refused(make: Make, tmp_path: Path) -> None:
    parts = make("clip", "gpt2", "pooled")
    encoder, lm = parts / "encoder", parts / "lm"
    with pytest.raises(CaptionerError, match="language model folder .*nowhere' does not exist"):
        assemble(encoder, tmp_path / "nowhere")
    with pytest.raises(CaptionerError, match="image encoder folder .*nowhere' does not exist"):
        assemble(tmp_path / "nowhere", lm)
    with pytest.raises(CaptionerError, match="Gemma2ForCausalLM.* does more to its logits than a linear head"):
        assemble(encoder, tiny_prefix.language_model("gemma2", tmp_path / "gemma2"))
    with pytest.raises(CaptionerError, match="MambaForCausalLM.* keeps no cache"):
        assemble(encoder, tiny_prefix.language_model("mamba", tmp_path / "mamba"))
    with pytest.raises(CaptionerError, match="GPT2Model.* cannot be used: no patch_size|cannot be loaded"):
        assemble(lm, lm)
    with pytest.raises(ValueError, match='"patches" needs a square num_prefix_tokens'):
        assemble(encoder, lm, image_feature="patches", num_prefix_tokens=10)
    with pytest.raises(ValueError, match="at least 1"):
        PrefixConfig(projector_depth=0)


def test_a_reserved_token_as_the_image_token(make: Make) -> None:
    parts = make("clip", "gpt2", "pooled")
    lm = AutoModelForCausalLM.from_pretrained(parts / "lm")
    settings: dict[str, Any] = {"image_token": "~", "num_prefix_tokens": 3}
    model, processor = assemble(parts / "encoder", parts / "lm", **settings)
    assert model.config.text_config.vocab_size == lm.config.vocab_size
    captioner = Captioner(model, processor)
    assert captioner.prompt_text() == "~\n" and captioner.prepare([tiny.picture(0)])["input_ids"].shape == (1, 4)


def test_the_former_name_of_assemble_warns(make: Make) -> None:
    parts = make("clip", "gpt2", "pooled")
    with pytest.warns(FutureWarning, match="is now captune.models.prefix_captioner.assemble"):
        model, _ = PrefixForConditionalGeneration.from_pretrained_parts(parts / "encoder", parts / "lm")
    assert isinstance(model, PrefixForConditionalGeneration)
