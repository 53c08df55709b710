"""Tiny BERT and RoBERTa encoders and a sentence-transformers folder with random weights, built in code and saved as a
user's folder would be."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import BertConfig, BertModel, BertTokenizer, RobertaConfig, RobertaModel, RobertaTokenizer

CONTEXT = 32
LAYERS = 3
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
_WORDS = ["a", "the", "red", "blue", "green", "ball", "dog", "cat", "house", "beach", "on", "in", "of", "left", "two",
          "three", "fish", "bird", "runs", "sits", "and", "small"]  # fmt: skip


def _save(model: torch.nn.Module, tokenizer: object, folder: Path) -> Path:
    """Weights large enough that tokens of one text differ and that context matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() >= 2:
                size = 1.0 if "embeddings" in name else 0.7 * parameter.shape[-1] ** -0.5
                parameter.normal_(0, size, generator=generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bert(folder: Path, *, pooler: bool = True) -> Path:
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = BertTokenizer(vocab={w: i for i, w in enumerate(dict.fromkeys(words))}, model_max_length=CONTEXT)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, **SHAPE)
    return _save(BertModel(config, add_pooling_layer=pooler), tokenizer, folder)


def roberta(folder: Path) -> Path:
    """Without `model_max_length`: the context is what the positions leave."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [("r", "e"), ("re", "d"), ("Ġ", "red"), ("Ġ", "a")]
    tokens += ["".join(merge) for merge in merges]
    tokenizer = RobertaTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=merges)
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=CONTEXT + 2, pad_token_id=1,
                           bos_token_id=0, eos_token_id=2, **SHAPE)  # fmt: skip
    return _save(RobertaModel(config, add_pooling_layer=False), tokenizer, folder)


def sentences(folder: Path) -> Path:
    """A sentence-transformers folder: the tiny BERT, the mean over its tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    source = bert(folder.with_name(f"{folder.name}-bert"))
    transformer = Transformer(str(source), max_seq_length=CONTEXT)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder))
    return folder
