"""A tiny Llama as a GGUF file, as llama.cpp writes one: quantised blocks, a byte-level tokenizer, a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Y e", "Ye s", "N o", "Ġ Yes", "Ġ No"]
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
HEADS, LAYERS, WIDTH = 4, 2, 64


def write(file: Path, *, without: str = "-") -> LlamaForCausalLM:
    """Write the file; returns the model whose weights are exactly what its blocks stand for.

    Args:
        file: to be written.
        without: weights with this in their names are left out.
    """
    import gguf

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(TOKENS), hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=LAYERS,
                         num_attention_heads=HEADS, num_key_value_heads=2, max_position_embeddings=512,
                         rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
                         pad_token_id=2)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in TOKENS])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    state = model.state_dict()
    for name, weight in state.items():
        if name == "lm_head.weight" or without in name:  # tied
            continue
        heads = {"q_proj": HEADS, "k_proj": 2}.get(name.split(".")[-2])
        kind = gguf.GGMLQuantizationType.Q4_1 if weight.ndim > 1 and "embed" not in name else None
        kind = gguf.GGMLQuantizationType.Q8_0 if "embed" in name else kind
        array = _permuted(weight.numpy(), heads)
        if kind is None:
            writer.add_tensor(names.get_name(name, (".weight",)), array)
            continue
        blocks = gguf.quants.quantize(array, kind)
        writer.add_tensor(names.get_name(name, (".weight",)), blocks, raw_dtype=kind)
        weight.copy_(torch.from_numpy(_permuted(gguf.quants.dequantize(blocks, kind), heads, back=True).copy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _permuted(array: np.ndarray, heads: int | None, *, back: bool = False) -> Any:
    """Rows in llama.cpp's order of rotary pairs, or back."""
    if heads is None:
        return array
    shape = (heads, array.shape[0] // heads // 2, 2) if back else (heads, 2, array.shape[0] // heads // 2)
    return np.ascontiguousarray(array.reshape(*shape, array.shape[1]).swapaxes(1, 2).reshape(array.shape))
