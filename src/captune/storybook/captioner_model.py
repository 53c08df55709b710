"""The architecture of the storybook captioner, untrained: tokenizer, processor and an Idefics3 of 2 M parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from captune.storybook.grammar import reference
from captune.storybook.noise import alt_text
from captune.storybook.tower import CELLS, IMAGE_SIZE, PATCH_SIZE
from captune.storybook.world import random_for, sample_scene

VOCABULARY = 640
SPECIAL_TOKENS = {
    "bos_token": "<|im_start|>",
    "eos_token": "<end_of_utterance>",
    "pad_token": "<|pad|>",
    "unk_token": "<|unk|>",
}
IMAGE_TOKENS = ("<image>", "<fake_token_around_image>", "<global-img>")
# A captioner without a prompt, as SmolVLM-Base: the image and nothing else.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def build_tokenizer(seed: int = 0) -> Any:
    """A byte-level BPE tokenizer of the storybook's English: any other text falls into pieces, none is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*SPECIAL_TOKENS.values(), *IMAGE_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(seed, 4000), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS, padding_side="left")
    fast.add_special_tokens({"additional_special_tokens": list(IMAGE_TOKENS)})
    return fast


def corpus(seed: int, n: int) -> Iterator[str]:
    """Yield 2 n texts to train the tokenizer on: an alt text and a reference per scene."""
    for index in range(n):
        rng = random_for("pretrain", seed, index, "corpus")
        scene = sample_scene("pretrain", seed, index)
        yield alt_text(scene, rng, scene)
        yield reference(scene, rng)


def build_processor(tokenizer: Any) -> Any:
    """Return the processor: 64 x 64 pixels, unsplit, with the chat template."""
    from transformers import Idefics3ImageProcessorPil, Idefics3Processor

    image_processor = Idefics3ImageProcessorPil(
        do_image_splitting=False,
        size={"longest_edge": IMAGE_SIZE},
        max_image_size={"longest_edge": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return Idefics3Processor(image_processor, tokenizer, image_seq_len=CELLS * CELLS, chat_template=CHAT_TEMPLATE)


def build_model(tokenizer: Any) -> Any:
    """An untrained Idefics3 of 2 M parameters: 16 patches, 4 image tokens (one per quarter), 4 + 4 layers of 128."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    config = Idefics3Config(
        vision_config={
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 384,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 384,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 256,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        scale_factor=IMAGE_SIZE // PATCH_SIZE // CELLS,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,  # type: ignore[call-arg]  # one of its **kwargs
        tie_word_embeddings=False,
    )
    # sdpa's backward is slow on a CPU
    model = Idefics3ForConditionalGeneration._from_config(config, attn_implementation="eager")
    for module in model.modules():  # the usual std of 0.02 is too small at this width
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    embeddings = model.model.vision_model.embeddings
    nn.init.normal_(embeddings.patch_embedding.weight, std=(3 * PATCH_SIZE**2) ** -0.5)
    nn.init.normal_(embeddings.position_embedding.weight, std=0.5)  # position must be hard to overlook
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    generation.pad_token_id, generation.max_new_tokens = tokenizer.pad_token_id, 40
    generation.bad_words_ids = None
    return model


def prompt_ids(tokenizer: Any) -> list[int]:
    """What the processor makes of the chat template: bos, the image between its marks, nothing else."""
    image, around, marker = (tokenizer.convert_tokens_to_ids(token) for token in IMAGE_TOKENS)
    return [tokenizer.bos_token_id, around, marker, *[image] * (CELLS * CELLS), around]
