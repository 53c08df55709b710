"""What a captioner does whatever its family: loading and its errors, decoding, streaming, sharing, adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from captune.captioner import Captioner
from captune.families import CaptionerError


@pytest.fixture
def captioner(tiny_folder) -> Captioner:
    return Captioner.load(tiny_folder("idefics3"), device="cpu")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [tiny.picture(seed) for seed in range(4)]


@pytest.fixture
def copy(tiny_folder, tmp_path: Path) -> Path:
    """A model folder to break."""
    return Path(shutil.copytree(tiny_folder("idefics3"), tmp_path / "model"))


# -- loading -----------------------------------------------------------------------------------------------------------


def test_load_defaults(captioner: Captioner, tiny_folder) -> None:
    assert captioner.device.type == "cpu" and captioner.dtype == torch.float32
    assert not any(p.requires_grad for p in captioner.model.parameters()) and not captioner.model.training
    assert captioner.processor.chat_template, "TRL renders prompts through it"
    assert Captioner.load(tiny_folder("idefics3"), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_missing_folder() -> None:
    with pytest.raises(CaptionerError, match=r"model folder '\./nowhere/model' does not exist.*hub name"):
        Captioner.load("./nowhere/model")


def test_shipped_model_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("captune.storybook.model_path", lambda name: tmp_path / name)
    with pytest.raises(CaptionerError, match="shipped model 'storybook' is not in"):
        Captioner.load("storybook")


def test_hub_out_of_reach_says_what_to_fetch() -> None:
    with pytest.raises(CaptionerError, match="hf download HuggingFaceTB/SmolVLM-Base --local-dir"):
        Captioner.load("HuggingFaceTB/SmolVLM-Base")


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match=r"not a model folder: it has no config\.json"):
        Captioner.load(tmp_path)


def test_folder_without_processor(copy: Path) -> None:
    for file in copy.iterdir():
        if file.name not in ("config.json", "generation_config.json", "model.safetensors"):
            file.unlink()
    with pytest.raises(CaptionerError, match="processor"):
        Captioner.load(copy)


def test_folder_with_a_tokenizer_but_no_image_processor(copy: Path) -> None:
    for file in copy.glob("*processor_config.json"):
        file.unlink()
    with pytest.raises(CaptionerError, match="processor"):
        Captioner.load(copy)


def test_not_an_image_text_to_text_model(tmp_path: Path) -> None:
    from transformers import BertConfig

    config = BertConfig(architectures=["BertModel"])
    config.save_pretrained(tmp_path)
    with pytest.raises(CaptionerError, match=r"no image-text-to-text model but 'bert' \(BertModel\)"):
        Captioner.load(tmp_path)


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(CaptionerError, match="safetensors"):
        Captioner.load(copy)


def test_truncated_weights(copy: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CaptionerError, match="weights"):
        Captioner.load(copy)


def test_weights_of_another_model(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    config["text_config"].pop("layer_types", None)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CaptionerError, match=r"do not fit Idefics3ForConditionalGeneration: 9 tensors"):
        Captioner.load(copy)


def test_unknown_model_type(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "nosuchmodel"}))
    with pytest.raises(CaptionerError, match="configuration.*nosuchmodel"):
        Captioner.load(copy)


def test_remote_code_is_not_run_unasked(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Own", "AutoModelForImageTextToText": "code.Own"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "code.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(CaptionerError, match="trust_remote_code=True"):
        Captioner.load(copy)


# -- adapters ----------------------------------------------------------------------------------------------------------


def taught(captioner: Captioner) -> Captioner:
    """Adapters that do something."""
    captioner.add_lora(r=4, alpha=8)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in captioner.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    captioner.model.eval()
    return captioner


def test_adapter_round_trip(captioner: Captioner, images: list, tiny_folder, tmp_path: Path) -> None:
    base = captioner.generate(images, max_new_tokens=8)
    adapted = taught(captioner).generate(images, max_new_tokens=8)
    assert adapted != base
    folder = captioner.save_adapter(tmp_path / "adapter")
    assert sorted(p.name for p in folder.glob("adapter*")) == ["adapter_config.json", "adapter_model.safetensors"]
    again = Captioner.load(tiny_folder("idefics3"), adapter=folder)
    assert again.generate(images, max_new_tokens=8) == adapted
    assert not any(p.requires_grad for p in again.model.parameters())
    with again.disable_adapter():
        assert again.generate(images, max_new_tokens=8) == base
    more = Captioner.load(tiny_folder("idefics3"), adapter=folder, adapter_trainable=True)
    trainable = [name for name, p in more.model.named_parameters() if p.requires_grad]
    assert trainable and all("lora" in name for name in trainable)


def test_adapter_errors(captioner: Captioner, tiny_folder, tmp_path: Path) -> None:
    folder = tiny_folder("idefics3")
    with pytest.raises(CaptionerError, match="no adapter to save"):
        captioner.save_adapter(tmp_path)
    with pytest.raises(CaptionerError, match="does not exist"):
        Captioner.load(folder, adapter=tmp_path / "nothing")
    with pytest.raises(CaptionerError, match=r"no adapter_config\.json"):
        Captioner.load(folder, adapter=tmp_path)
    adapter = taught(captioner).save_adapter(tmp_path / "adapter")
    with pytest.raises(CaptionerError, match="has an adapter already"):
        captioner.add_lora()
    with pytest.raises(CaptionerError, match="trained on another model"):
        Captioner.load(tiny_folder("llava"), adapter=adapter)
    with pytest.raises(CaptionerError, match="trained on another model"):
        Captioner.load(tiny_folder("idefics3", hidden=48), adapter=adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CaptionerError, match="is damaged"):
        Captioner.load(folder, adapter=adapter)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({}, adapter / "adapter_model.bin")
    with pytest.raises(CaptionerError, match=r"no adapter_model\.safetensors"):
        Captioner.load(folder, adapter=adapter)


# -- batches and decoding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["a red ball", "  spaces go ", "", "über, 红色 🎈 <PERSON>", "<image> <|im_end|> a\nb"]
)
def test_any_caption_round_trips(captioner: Captioner, images: list, text: str) -> None:
    """Text that looks like a special token stays text; the image's places are counted right all the same."""
    batch = captioner.prepare(images[:1], [text])
    ids = batch["input_ids"][0][batch["caption_mask"][0].bool()].tolist()
    assert captioner.decode([ids]) == [text.strip()]
    assert captioner.model(**{k: v for k, v in batch.items() if k != "caption_mask"}).loss.isfinite()


def test_an_image_is_preprocessed_once(captioner: Captioner, images: list, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    process = captioner.processor.image_processor.__class__.__call__

    def counted(self, images, *args, **kwargs):
        seen.append(len(images))
        return process(self, images, *args, **kwargs)

    order = [0, 1, 0, 2, 0]
    apart = [captioner.prepare([images[i]]) for i in order]
    monkeypatch.setattr(captioner.processor.image_processor.__class__, "__call__", counted)
    batch = captioner.prepare([images[i] for i in order])
    captioner.append(batch, ["a"] * 5)
    captioner.generate(batch, max_new_tokens=2)
    captioner.image_features(batch)
    assert seen == [3]
    for row, single in zip(batch["pixel_values"], apart, strict=True):
        assert torch.equal(row, single["pixel_values"][0])


def test_wrong_numbers_are_said(captioner: Captioner, images: list) -> None:
    with pytest.raises(CaptionerError, match="2 captions were given for 3 images"):
        captioner.prepare(images[:3], ["a", "b"])
    with pytest.raises(CaptionerError, match="no images"):
        captioner.prepare([])
    with pytest.raises(CaptionerError, match="without captions"):
        captioner.generate(captioner.prepare(images[:1], ["a"]))


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
    taught(captioner).model.train()
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


def test_flattened_features(captioner: Captioner, images: list, tiny_folder) -> None:
    flat, mean = (captioner.image_features(images, pool=how) for how in ("flatten", "mean"))
    assert torch.allclose(flat.view(4, 4, -1).mean(1), mean, atol=1e-6)  # 4 image tokens
    tiles = Captioner.load(tiny_folder("idefics3", split=True))
    with pytest.raises(CaptionerError, match="same number of image tokens"):
        tiles.image_features([tiny.picture(0), tiny.picture(1, (200, 64))], pool="flatten")


def test_visual_features_computed_before(captioner: Captioner, images: list) -> None:
    batch = captioner.prepare(images, ["a red ball"] * 4)
    with torch.no_grad():
        mm = captioner.core.get_image_features(batch["pixel_values"], batch["pixel_attention_mask"], return_dict=True)
        states, _ = captioner.caption_hidden_states(batch)
        given, _ = captioner.caption_hidden_states(batch, mm=mm)
    assert torch.allclose(states, given, atol=1e-6)


# -- shared vision -----------------------------------------------------------------------------------------------------


def test_the_memo_is_bounded_and_cleared(captioner: Captioner, images: list) -> None:
    with captioner.share_vision(max_images=2) as memo:
        captioner.image_features(images)  # more than fit: all served, the last two kept
        captioner.image_features(images[2:])
        assert (memo.evaluations, memo.images, memo.hits) == (1, 4, 2)
        captioner.image_features(images[:1])  # in; image 2 out
        captioner.image_features(images[3:])
        assert memo.evaluations == 2
        captioner.image_features([images[2]])
        assert memo.evaluations == 3
        memo.clear()
        captioner.image_features([images[2]])
        assert memo.evaluations == 4
    with pytest.raises(CaptionerError, match="at least 1"):
        captioner.share_vision(max_images=0)


def test_the_memo_nests_and_goes(captioner: Captioner, images: list) -> None:
    inner = captioner.core.base_model
    with captioner.share_vision() as outer:
        captioner.image_features(images)
        with captioner.share_vision() as same:
            assert same is outer
        captioner.image_features(images)
        assert outer.evaluations == 1 and "get_image_features" in vars(inner)
    assert "get_image_features" not in vars(inner)


def test_pixels_decide_not_objects(captioner: Captioner, images: list) -> None:
    with captioner.share_vision() as memo:
        captioner.image_features([images[0], images[0].copy()])
        assert memo.images == 1
        changed = images[0].copy()
        changed.putpixel((63, 63), (0, 0, 0) if images[0].getpixel((63, 63))[0] > 128 else (255, 255, 255))
        features = captioner.image_features([images[0], changed])
        assert memo.images == 2 and not torch.equal(features[0], features[1])


def test_padding_tiles_do_not_matter(tiny_folder) -> None:
    """The same image beside one with more tiles: encoded once, and its features are its own."""
    captioner = Captioner.load(tiny_folder("idefics3", split=True))
    small, large = tiny.picture(0, (64, 128)), tiny.picture(1, (64, 192))
    alone = captioner.image_features([small])
    with captioner.share_vision() as memo:
        assert torch.allclose(captioner.image_features([small, large])[0], alone[0], atol=1e-6)
        captioner.image_features([small])
        captioner.image_features([large])
        assert memo.evaluations == 1


@pytest.mark.parametrize("part", ["model.vision_model", "model.connector"])
def test_a_trainable_tower_is_refused(captioner: Captioner, images: list, part: str) -> None:
    next(captioner.core.get_submodule(part).parameters()).requires_grad_(True)
    with pytest.raises(ValueError, match=rf"{part} has parameters that require a gradient.*[Ff]reeze"):
        captioner.share_vision()


def test_a_tower_that_starts_to_train_is_refused(captioner: Captioner, images: list) -> None:
    with captioner.share_vision():
        captioner.image_features(images[:1])
        captioner.core.model.vision_model.requires_grad_(True)
        with pytest.raises(ValueError, match="require a gradient"):
            captioner.image_features(images[1:2])


def test_features_made_in_inference_mode_serve_training(captioner: Captioner, images: list) -> None:
    taught(captioner)
    with captioner.share_vision() as memo:
        with torch.inference_mode():
            captioner.generate(images, max_new_tokens=2)
        batch = captioner.prepare(images, ["a"] * 4)
        captioner.model(**{k: v for k, v in batch.items() if k != "caption_mask"}).loss.backward()
        assert memo.evaluations == 1


def test_trl_encodes_each_image_once_per_step(captioner: Captioner, images: list, tmp_path: Path) -> None:
    """GRPO with 3 samples to an image, a KL term and gradient checkpointing: one evaluation of the tower a step."""
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    taught(captioner)
    calls: list[int] = []
    captioner.core.model.vision_model.register_forward_hook(lambda *_: calls.append(1))
    data = datasets.Dataset.from_list(
        [{"prompt": captioner.conversation(), "image": image, "image_id": str(i)} for i, image in enumerate(images)]
    )
    rewarded: list[int] = []

    def reward(completions: list, image_id: list[str], **_: object) -> list[float]:
        assert all(isinstance(c[0]["content"], str) for c in completions)
        rewarded.append(len(set(image_id)))
        return [float(len(c[0]["content"])) for c in completions]

    config = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=6,
        num_generations=3,
        max_completion_length=6,
        max_steps=2,
        beta=0.1,
        gradient_checkpointing=True,
        report_to=[],
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=captioner.model,
        reward_funcs=reward,
        args=config,
        train_dataset=data,
        processing_class=captioner.processor,
    )
    with captioner.share_vision() as memo:
        trainer.train()
        assert rewarded == [2, 2]
        assert memo.evaluations == len(calls) == 2 and memo.images == 4
