"""ZeroCap: the context cache is moved towards the picture, each row by itself, and nothing else is changed."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import tiny_encoders
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
)

from captune.decoding import load_decoder
from captune.decoding.zerocap import ContextGuidance, ZeroCap, ZeroCapModel
from captune.errors import CaptionerError
from captune.models.captioner import Captioner
from captune.models.encoders.clip import Encoder
from captune.storybook import load


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.tokenizer([], bos="<bos>", eos="<eos>", pad="<pad>")


def language_model(tokenizer: Any, kind: str = "gpt2") -> Any:
    """Random weights, large enough that the words come in an order."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config: Any = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64, **ids)
    if kind != "gpt2":
        window = {"sliding_window": 4} if kind == "mistral" else {}
        config = {"llama": LlamaConfig, "mistral": MistralConfig}[kind](**tiny.text_config(tokenizer), **window)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.3)
    return model


@pytest.fixture
def pair(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> ZeroCapModel:
    encoder = Encoder.load(tiny_encoders.clip(tmp_path_factory.mktemp("clip")), device="cpu")
    return ZeroCapModel(language_model(tokenizer), tokenizer, encoder, name="tiny")


@pytest.fixture(scope="module")
def storybook_pair() -> ZeroCapModel:
    return ZeroCapModel.load("storybook-lm", "storybook-clip", device="cpu")


class Taste:
    """An encoder to which every picture is the same, and a text is the more like it the more "fish" it ends with."""

    texts: list[str]

    def encode_images(self, images: Any) -> Tensor:
        return torch.tensor([[1.0, 0.0]] * len(images))

    def encode_texts(self, texts: list[str], **_: Any) -> Tensor:
        self.texts = texts
        return torch.tensor([[1.0, 0.0] if text.endswith("fish") else [0.0, 1.0] for text in texts])


def guidance(pair: ZeroCapModel, config: ZeroCap, images: list, ids: Tensor) -> tuple[ContextGuidance, Tensor]:
    """The processor as `generate` would call it after these tokens, and the scores that it would be given."""
    cache = DynamicCache(config=pair.language_model.config)
    with torch.no_grad():
        logits = pair.language_model(input_ids=ids, past_key_values=cache).logits[:, -1]
    return ContextGuidance(config, pair, images, cache), logits


def test_tokens_whose_decoder_cuts_the_first_space_keep_their_own(pair: ZeroCapModel) -> None:
    """Llama's, Mistral's: decoded alone, a word's token has lost its space, and "." is another token than a word's."""
    names = ["<unk>", "<s>", "</s>", "\u2581a", "\u2581dog", "s", ".", "\u2581.", "\u2581", "a"]
    model = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [("\u2581", "a"), ("\u2581", ".")]))
    model.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    model.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    words = PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made = ZeroCapModel(pair.language_model, words, pair.encoder, name="tiny")
    assert made.token_texts[3:8] == [" a", " dog", "s", ".", " ."]
    assert 6 in made.eos_ids and 2 in made.eos_ids and 4 not in made.eos_ids


def test_what_the_encoder_likes_becomes_likelier(pair: ZeroCapModel, images: list) -> None:
    pair.encoder = taste = Taste()  # type: ignore[assignment]
    fish = pair.tokenizer(" fish", add_special_tokens=False)["input_ids"]
    assert len(fish) == 1
    ids = torch.tensor([[*pair.prompt_ids, *pair.tokenizer("a red")["input_ids"]]])
    chances = []
    for steps in (0, 1, 5):
        processor, logits = guidance(pair, ZeroCap(steps=steps, top_k=len(pair.tokenizer)), images[:1], ids)
        chances.append(float(processor(ids, logits).softmax(-1)[0, fish]))
    assert chances[0] == pytest.approx(float(logits.softmax(-1)[0, fish]))
    assert chances[0] < chances[1] < chances[2]
    assert chances[2] > 2 * chances[0]
    assert "a red fish" in taste.texts and "a red" in taste.texts  # the end of the caption adds nothing to the text


def test_a_candidate_that_is_not_asked_about_gains_nothing_from_the_encoder(pair: ZeroCapModel, images: list) -> None:
    ids = torch.tensor([pair.prompt_ids + pair.tokenizer("a red")["input_ids"]])
    processor, logits = guidance(pair, ZeroCap(top_k=3), images[:1], ids)
    candidates, opinion = processor.clip_distribution(ids, torch.tensor([0]), logits.log_softmax(-1))
    assert set(candidates[0].tolist()) == set(logits.topk(3).indices[0].tolist())
    torch.testing.assert_close(opinion.sum(-1), torch.ones(1))
    features = pair.encoder.encode_texts([pair.tokenizer.decode([*ids[0, 1:], i]).strip() for i in candidates[0]])
    cosines = features @ pair.encoder.encode_images(images[:1])[0]
    torch.testing.assert_close(opinion[0], (cosines / 0.01).softmax(0), atol=1e-4, rtol=1e-4)


def test_fluency_keeps_the_words_of_the_language_model(pair: ZeroCapModel, images: list) -> None:
    """The larger lambda, the nearer to p_hat (KL), the gradient's length being the same."""
    ids = torch.tensor([pair.prompt_ids + pair.tokenizer("a red")["input_ids"]])
    distances = []
    for fluency in (0.0, 0.2, 5.0):
        config = ZeroCap(fluency=fluency, step_size=0.1, norm_exponent=0.0, fusion=1.0)
        processor, logits = guidance(pair, config, images[:1], ids)
        moved, p_hat = processor(ids, logits).log_softmax(-1), logits.log_softmax(-1)
        distances.append(float((moved.exp() * (moved - p_hat)).sum()))
    assert distances[0] > distances[1] > distances[2] >= 0


def test_a_step_is_the_gradient_over_its_norm(
    pair: ZeroCapModel, images: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recomputed with the paper's loss, for one row, from the cache's tensors."""
    ids = torch.tensor([pair.prompt_ids + pair.tokenizer("a red")["input_ids"]] * 2)
    config = ZeroCap(steps=1, fluency=0.7, step_size=0.2, norm_exponent=0.9)
    processor, logits = guidance(pair, config, images[:2], ids)
    before = [state.clone() for layer in processor.cache.layers for state in (layer.keys, layer.values)]
    seen: list[list[Tensor]] = []
    speak = processor.next_token_logprobs
    monkeypatch.setattr(
        processor, "next_token_logprobs", lambda last, context: seen.append(list(context)) or speak(last, context)
    )
    processor(ids, logits)
    states = [state[1:, :, :-1].clone().requires_grad_() for state in before]
    layers = list(zip(states[::2], states[1::2], strict=True))
    output = pair.language_model(input_ids=ids[1:, -1:], past_key_values=DynamicCache(layers))
    p_hat, log_p = logits[1].log_softmax(-1), output.logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(log_p, p_hat, atol=1e-4, rtol=1e-4)  # the cache had not been moved
    candidates, opinion = processor.clip_distribution(ids, torch.arange(2), logits.log_softmax(-1))
    loss = -(opinion[1] * log_p[candidates[1]]).sum() + 0.7 * (log_p.exp() * (log_p - p_hat)).sum()
    for state, gradient, moved in zip(states, torch.autograd.grad(loss, states), seen[-1], strict=True):
        expected = state[0] - 0.2 * gradient[0] / gradient.norm() ** 0.9
        torch.testing.assert_close(moved[1], expected, atol=2e-4, rtol=1e-3)
    after = [state for layer in processor.cache.layers for state in (layer.keys, layer.values)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))  # each token starts anew


def test_without_steps_it_is_the_language_model_alone(pair: ZeroCapModel, images: list) -> None:
    alone = pair.generate(images, max_new_tokens=8)
    assert load_decoder("zerocap:?steps=0")(pair, images, max_new_tokens=8) == alone
    assert len(set(alone)) == 1  # it sees no picture
    assert load_decoder("zerocap:?clip_scale=0&fluency=0")(pair, images, max_new_tokens=8) == alone


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_four_at_once_are_four_one_at_a_time(pair: ZeroCapModel, tokenizer: Any, images: list, kind: str) -> None:
    pair = ZeroCapModel(language_model(tokenizer, kind), tokenizer, pair.encoder, name="tiny", prompt="a red")
    decoder = load_decoder("zerocap:?step_size=1&top_k=64&steps=2")
    together = decoder(pair, images, max_new_tokens=5)
    assert together == [decoder(pair, [image], max_new_tokens=5)[0] for image in images]
    assert together != pair.generate(images, max_new_tokens=5)


def test_it_raises_the_clip_score_and_the_batch_does_not_matter(storybook_pair: ZeroCapModel) -> None:
    data = load("val", 4, seed=11)
    images, decoder = list(data["image"]), load_decoder("zerocap")
    guided = decoder(storybook_pair, images, max_new_tokens=10)
    assert guided[:2] == [decoder(storybook_pair, [image], max_new_tokens=10)[0] for image in images[:2]]
    encoder, alone = storybook_pair.encoder, storybook_pair.generate(images, max_new_tokens=10)
    seen = encoder.encode_images(images)
    scores = [(seen * encoder.encode_texts(texts)).sum(-1) for texts in (guided, alone)]
    assert scores[0].mean() > scores[1].mean() + 0.1
    assert (scores[0] > scores[1]).all()


def test_siglip_guides_as_well(pair: ZeroCapModel, images: list, tmp_path: Any) -> None:
    pair.encoder = Encoder.load(tiny_encoders.siglip(tmp_path), device="cpu")
    assert len(load_decoder("zerocap:?top_k=8")(pair, images, max_new_tokens=4)) == 4


def test_beams_and_samples_are_those_of_transformers(pair: ZeroCapModel, images: list) -> None:
    decoder = load_decoder("zerocap:?step_size=1&top_k=16")
    alone = [decoder(pair, [image], max_new_tokens=5, num_beams=3)[0] for image in images[:2]]
    assert decoder(pair, images[:2], max_new_tokens=5, num_beams=3) == alone
    torch.manual_seed(0)
    drawn = decoder(pair, images, max_new_tokens=5, do_sample=True, num_return_sequences=2)
    assert len(drawn) == 8 and len(set(drawn)) > 4


def test_what_generate_forbids_stays_forbidden(pair: ZeroCapModel, images: list) -> None:
    ids = torch.tensor([pair.prompt_ids + pair.tokenizer("a red")["input_ids"]])
    for fusion in (ZeroCap().fusion, 1.0):
        processor, logits = guidance(pair, ZeroCap(fusion=fusion), images[:1], ids)
        logits[0, logits[0].topk(5).indices] = -torch.inf
        scores = processor(ids, logits)
        assert torch.equal(scores.isneginf(), logits.isneginf()) and not scores.isnan().any()


def test_a_caption_ends_and_takes_no_further_part(pair: ZeroCapModel, images: list) -> None:
    stop = pair.tokenizer(".", add_special_tokens=False)["input_ids"]
    assert set(pair.eos_ids) == {pair.tokenizer.eos_token_id, *stop}
    ids = torch.tensor([[*pair.prompt_ids, 40, 41, 42], [*pair.prompt_ids, 40, stop[0], 42]])
    processor, logits = guidance(pair, ZeroCap(), images[:2], ids)
    scores = processor(ids, logits)
    assert torch.equal(scores[1], logits[1]) and not torch.allclose(scores[0].softmax(-1), logits[0].softmax(-1))
    empty = load_decoder("zerocap")(pair, images, max_new_tokens=1, forced_eos_token_id=pair.tokenizer.eos_token_id)
    assert empty == [""] * 4


def test_the_prompt_is_context_and_no_part_of_the_caption(pair: ZeroCapModel, images: list, tokenizer: Any) -> None:
    prompted = ZeroCapModel(pair.language_model, tokenizer, pair.encoder, name="tiny", prompt="two green fish")
    assert prompted.generate(images[:1], max_new_tokens=4) != pair.generate(images[:1], max_new_tokens=4)
    pair.encoder = prompted.encoder = taste = Taste()  # type: ignore[assignment]
    (caption,) = load_decoder("zerocap")(prompted, images[:1], max_new_tokens=2)
    assert not caption.startswith("two green")
    assert all(text.startswith("two green fish") for text in taste.texts)  # the encoder reads it


def test_only_a_pair_with_a_plain_cache_is_guided(
    pair: ZeroCapModel, captioner: Captioner, images: list, tokenizer: Any
) -> None:
    with pytest.raises(CaptionerError, match="--language-model storybook-lm --image-encoder storybook-clip"):
        load_decoder("zerocap")(captioner, images)  # type: ignore[arg-type]
    sliding = ZeroCapModel(language_model(tokenizer, "mistral"), tokenizer, pair.encoder, name="sliding")
    with pytest.raises(CaptionerError, match="sliding has another kind"):
        load_decoder("zerocap")(sliding, images)


def test_a_missing_language_model_is_answered_in_one_sentence(tmp_path: Any) -> None:
    with pytest.raises(CaptionerError, match="does not exist"):
        ZeroCapModel.load(tmp_path / "none", "storybook-clip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaptionerError, match="it has no config.json"):
        ZeroCapModel.load(tmp_path / "empty", "storybook-clip")
