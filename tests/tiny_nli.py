"""Tiny NLI models, random weights: BART, DeBERTa and RoBERTa as sequence classifiers of pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
from tokenizers.processors import TemplateProcessing
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

LABELS = {  # as the models on the hub have them
    "bart": ("contradiction", "neutral", "entailment"),
    "deberta": ("CONTRADICTION", "NEUTRAL", "ENTAILMENT"),
    "roberta": ("ENTAILMENT", "NEUTRAL", "CONTRADICTION"),
}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4}  # fmt: skip


def build(family: str, folder: Path, labels: tuple[str, ...] | None = None) -> Path:
    """A model that is saved in `folder`; 64 positions."""
    tokenizer: Any = tiny.tokenizer(["<mask>"], bos="<s>", eos="</s>", pad="<pad>")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", ids["bos_token_id"]), ("</s>", ids["eos_token_id"])],
    )
    names = dict(enumerate(labels or LABELS[family]))
    common = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "id2label": names,
              "label2id": {label: i for i, label in names.items()}, **ids}  # fmt: skip
    made: dict[str, Any] = {
        "bart": (BartForSequenceClassification, lambda: BartConfig(**common, **BART)),
        "deberta": (
            DebertaV2ForSequenceClassification,
            lambda: DebertaV2Config(**common, **SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]),
        ),
        "roberta": (RobertaForSequenceClassification, lambda: RobertaConfig(**common, **SIZES)),
    }
    cls, config = made[family]
    return tiny.save(cls, config(), tokenizer, folder)
