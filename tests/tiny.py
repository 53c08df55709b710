"""Tiny models of every family, built in code, saved in `save_pretrained` form; random weights, seconds to make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "a red ball to the left of a blue house on the beach",
    "a day with <PERSON> in the meadow, look at this photo of my new house in 2011",
    "two green fish and a small yellow bird; a striped fish, a spotted fish",
    "Describe this image in the shortest form.",
]

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
}


def tokenizer(special: list[str], *, bos: str | None, eos: str, pad: str, vocab: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text goes in and comes out again. `<PERSON>` is ordinary text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    names = list(dict.fromkeys([t for t in (pad, bos, eos) if t] + special))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        additional_special_tokens=special,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """An image of random pixels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def text_config(tok: PreTrainedTokenizerFast, *, hidden: int = 32, layers: int = 2, **more: object) -> dict:
    """What all the small language models have in common."""
    return {
        "vocab_size": len(tok),
        "hidden_size": hidden,
        "intermediate_size": hidden * 2,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
        **more,
    }


def idefics3(
    folder: Path, *, hidden: int = 32, layers: int = 2, split: bool = False, chat_template: str | None = None
) -> Path:
    """Idefics3 as SmolVLM-Base has it: no chat template, 64 px, patch 8, scale factor 4, so 4 tokens for an image.

    With `split` an image becomes a grid of 64 px tiles and a global one.
    """
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    places = [f"<row_{i + 1}_col_{j + 1}>" for i in range(3) for j in range(3)] if split else []
    special = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", *places]
    tok = tokenizer(special, bos="<|im_start|>", eos="<|im_end|>", pad="<|pad|>")
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 192 if split else 64},
        max_image_size={"longest_edge": 64},
        do_image_splitting=split,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = Idefics3Processor(images, tok, image_seq_len=4, chat_template=chat_template)
    config = Idefics3Config(
        text_config={"model_type": "llama", **text_config(tok, hidden=hidden, layers=layers)},
        vision_config={**VISION, "hidden_size": hidden, "intermediate_size": hidden * 2},
        scale_factor=4,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        pad_token_id=tok.pad_token_id,
    )
    return save(Idefics3ForConditionalGeneration, config, processor, folder)


def save(model_class: type, config: object, processor: object, folder: Path) -> Path:
    """Random weights (always the same), large enough that captions differ from image to image."""
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def reconnected(captioner: Any) -> Any:
    """The captioner with an adapter that brings another connector, frozen."""
    captioner.make_trainable(connector=True)
    with torch.no_grad():
        for name, weight in captioner.model.named_parameters():
            if weight.requires_grad and "connector" in name:
                weight.add_(0.1)
    captioner.freeze_vision()
    return captioner


def taught(captioner: Any) -> Any:
    """The captioner with LoRA adapters that do something, in eval mode."""
    torch.manual_seed(1)  # lora_A is drawn too
    captioner.add_lora(r=4, alpha=8)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in captioner.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    captioner.model.eval()
    return captioner
