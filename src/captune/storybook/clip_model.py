"""What storybook-clip is made of: its settings, tokenizer, processor and untrained model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from captune.storybook.tower import IMAGE_SIZE, PATCH_SIZE

VOCABULARY = 512
MAX_TOKENS = 96
SPECIAL_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",  # must not get id 2, which `CLIPTextModel` takes for a legacy configuration
    "pad_token": "<|pad|>",
    "unk_token": "<|unk|>",
}


@dataclass
class ClipConfig:
    """Every setting of the build; the defaults made the shipped model."""

    seed: int = field(default=0, metadata={"help": "seed of the weights and of the images drawn for training"})
    num_images: int = field(default=16_000, metadata={"help": "images drawn from storybook:clip"})
    look_steps: int = field(default=600, metadata={"help": "steps of stage 1"})
    steps: int = field(default=1000, metadata={"help": "steps of stage 2"})
    batch_size: int = field(default=128, metadata={"help": "images per step"})
    negatives: int = field(default=1, metadata={"help": "hard negatives per caption"})
    part_weight: float = field(
        default=0.1, metadata={"help": "weight of the questions about quarters and nouns in stage 2"}
    )
    fact_weight: float = field(default=0.1, metadata={"help": "weight of the loss on facts read from an embedding"})
    look_lr: float = field(default=1.5e-3, metadata={"help": "peak learning rate of stage 1"})
    lr: float = field(default=1.5e-3, metadata={"help": "peak learning rate of stage 2"})
    width: int = field(default=128, metadata={"help": "width of both transformers and of the shared space"})
    vision_layers: int = field(default=4, metadata={"help": "layers of the image side"})
    text_layers: int = field(default=3, metadata={"help": "layers of the text side"})
    bf16: bool = field(default=True, metadata={"help": "matrix products in bfloat16: faster where the CPU has it"})
    validation: int = field(default=500, metadata={"help": "images of storybook:val to measure on"})


def build_tokenizer(texts: Iterable[str]) -> Any:
    """A lower-casing byte-level BPE tokenizer with CLIP's conventions: <bos> text <eos>, padded on the right."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos, eos = SPECIAL_TOKENS["bos_token"], SPECIAL_TOKENS["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(t, tokenizer.token_to_id(t)) for t in (bos, eos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **SPECIAL_TOKENS, padding_side="right", model_max_length=MAX_TOKENS
    )


def build_processor(tokenizer: Any) -> Any:
    """Return the processor: 64 x 64 pixels and the tokenizer."""
    from transformers import CLIPImageProcessorPil, CLIPProcessor

    half = [0.5, 0.5, 0.5]
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size=side, image_mean=half, image_std=half
    )
    return CLIPProcessor(image_processor, tokenizer)


def build_model(tokenizer: Any, config: ClipConfig) -> Any:
    """An untrained CLIPModel."""
    from transformers import CLIPConfig, CLIPModel

    shared = {
        "hidden_size": config.width,
        "num_attention_heads": config.width // 32,
        "intermediate_size": 3 * config.width,
        "hidden_act": "gelu",
        "projection_dim": config.width,
    }
    vision = {"num_hidden_layers": config.vision_layers, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
    text = {
        "num_hidden_layers": config.text_layers,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    clip = CLIPConfig(vision_config=shared | vision, text_config=shared | text, projection_dim=config.width)
    model = CLIPModel._from_config(clip, attn_implementation="eager")  # sdpa's backward is slow on a CPU
    for module in model.modules():  # the usual initial values are too small at this width
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    for table, std in (
        (model.vision_model.embeddings.position_embedding, 0.1),
        (model.text_model.embeddings.position_embedding, 0.1),
        (model.text_model.embeddings.token_embedding, 0.3),
    ):
        nn.init.normal_(table.weight, std=std)
    return model
