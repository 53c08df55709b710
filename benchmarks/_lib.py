"""What the benchmarks share: how a result is written, and small captioners with the proportions of published models.

The captioners have random weights and are built in code. What matters is where the work lies: the vision tower's share
of a forward pass, and the number of image tokens against that of a caption's. FLOPs of the published models come from
their configs.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from captune.models import inputs as batches
from captune.models.captioner import Captioner
from captune.models.requests import PROMPT
from captune.storybook import captioner_model as builder
from captune.utils.versions import versions

KEPT = ("python", "platform", "torch", "transformers", "trl")


def machine() -> dict[str, Any]:
    """Cores, torch's threads, the load of the last minute, and the versions that decide speed."""
    known = versions()
    return {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1),
            **{name: known[name] for name in KEPT}}  # fmt: skip


def write(result: dict[str, Any], page: str | None, output: Path | None) -> None:
    """Writes OUTPUT.json and, with a page, OUTPUT.md; prints the page or, without one, the JSON."""
    text = json.dumps(result, indent=1)
    if output:
        output.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
        if page is not None:
            output.with_suffix(".md").write_text(page, encoding="utf-8")
    print(text if page is None else page)


def main(about: str | None, measure: Callable[[Path], dict[str, Any]], page: Callable[[dict[str, Any]], str]) -> None:
    """The command of a benchmark that needs a folder to work in, and whose result has a page."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    result = measure(args.work)
    write(result, page(result), args.output)


def idefics3(words: Any, pixels: int, vision: dict[str, int], text: dict[str, int]) -> Captioner:
    """An Idefics3 that sees one tile of so many pixels as 81 tokens, with random weights."""
    size = {"longest_edge": pixels}
    images = Idefics3ImageProcessorPil(do_image_splitting=False, size=size, max_image_size=size)
    processor = Idefics3Processor(images, words, image_seq_len=81, chat_template=builder.CHAT_TEMPLATE)
    ids = {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = Idefics3Config(
        vision_config={"image_size": pixels, **vision},
        text_config={"model_type": "llama", "vocab_size": len(words), **text, **ids},
        scale_factor=3,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        pad_token_id=words.pad_token_id,
    )
    torch.manual_seed(0)
    return Captioner(Idefics3ForConditionalGeneration(config), processor, prompt=PROMPT)


def smolvlm() -> Captioner:
    """216 px, 729 patches, 81 image tokens; vision 3 layers of 128, language 4 layers of 256."""
    vision = {"hidden_size": 128, "patch_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4}
    vision["intermediate_size"], text["intermediate_size"] = 480, 768
    return idefics3(builder.build_tokenizer(), 216, vision, text)


class Stills(Qwen2VLProcessor):
    """Qwen2-VL's processor without its video half, which needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


QWEN_MARKS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def qwen(words: Any, images: Any, text: dict[str, Any], vision: dict[str, int], **more: Any) -> Captioner:
    """A Qwen2-VL with random weights.

    Args:
        words: a tokenizer with `QWEN_MARKS` among its special tokens.
        images: the image processor.
        text: of the language model's config.
        vision: of the tower's.
        more: of the whole config.
    """
    start, end, image, video = (words.convert_tokens_to_ids(mark) for mark in QWEN_MARKS)
    ids = {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = Qwen2VLConfig(
        text_config={"vocab_size": len(words), **text, **ids},
        vision_config={"hidden_size": text["hidden_size"], "mlp_ratio": 4, **vision},
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
        **more,
    )
    template = builder.CHAT_TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    torch.manual_seed(0)
    return Captioner(Qwen2VLForConditionalGeneration(config), Stills(images, words, template), prompt=PROMPT)


def qwen2_vl() -> Captioner:
    """322 x 238 px, 384 patches, 96 image tokens; vision 5 layers of 192, language 3 layers of 256."""
    words = builder.build_tokenizer()
    words.add_special_tokens({"additional_special_tokens": QWEN_MARKS})
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 336 * 252})
    rope = {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 10000.0}
    text = {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 1472, "rope_parameters": rope}  # fmt: skip
    return qwen(words, images, text, {"depth": 5, "embed_dim": 192, "num_heads": 3})


MODELS = {"SmolVLM's proportions": smolvlm, "Qwen2-VL's proportions": qwen2_vl}


def transformer(tokens: float, layers: int, width: int, weights: int) -> float:
    """FLOPs of a forward pass: two per weight and token, and the two products of attention."""
    return layers * (2 * tokens * weights + 4 * tokens**2 * width)


def published_shares(caption: int) -> dict[str, float]:
    """The vision tower's share of a forward pass of the real models, from their configs; prompt of 20 text tokens."""
    siglip = transformer(729, 27, 1152, 4 * 1152**2 + 2 * 1152 * 4304) + 2 * 81 * 9 * 1152 * 2048
    smol = transformer(81 + 20 + caption, 24, 2048, 4 * 2048**2 + 3 * 2048 * 8192)
    patches = (640 // 28 + 1) * (480 // 28) * 4  # 644 x 476 px
    qwen_tower = transformer(patches, 32, 1280, 12 * 1280**2) + 2 * patches / 4 * 5120 * (5120 + 1536)
    qwen = transformer(patches / 4 + 20 + caption, 28, 1536, 2 * 1536 * (1536 + 256) + 3 * 1536 * 8960)
    return {
        "SmolVLM-2.25B, one tile of 384 px": round(siglip / (siglip + smol), 3),
        "Qwen2-VL-2B, 640 x 480 px": round(qwen_tower / (qwen_tower + qwen), 3),
    }


def counted(function: Callable[[], Any]) -> int:
    """FLOPs; the counter does not know the CPU's fused attention, so it is done in parts."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@torch.no_grad()
def parts_of_a_forward(captioner: Captioner, image: Any, tokens: int) -> dict[str, int]:
    """FLOPs for one image: V, F, Pf, without the language model's head; and the tokens of prompt and image."""
    prompt = captioner.prepare([image])
    ids = [[captioner.eos_ids[0]] * tokens]
    whole = batches.append_ids(prompt, ids, pad_id=captioner.tokenizer.pad_token_id, right=True)
    base = captioner.core.base_model
    vision = counted(lambda: captioner.image_features(prompt))
    both, short = (counted(lambda b=b: base(**batches.inputs_of(b), use_cache=False)) for b in (whole, prompt))
    image_tokens = int((prompt["input_ids"] == captioner.core.config.image_token_id).sum())
    return {"V": vision, "F": both - vision, "Pf": short - vision,
            "prompt_tokens": prompt["input_ids"].shape[1], "image_tokens": image_tokens}  # fmt: skip


def formula(parts: dict[str, int], setting: tuple[bool, float], samples: int) -> float:
    """TRL's FLOPs over captune's for a GRPO step with `samples` captions an image; setting: (checkpointing, beta).

    V = tower and connector on an image, F = language model on prompt and caption, Pf = on the prompt, D = F - Pf the
    decoding, b = 1 where beta is not 0, c = 1 with gradient checkpointing, G the samples. A backward pass counts as
    one forward, since the weights are frozen:

        TRL      G [(2 + 2c + b) V + Pf + D + (2 + c + b) F]
        captune  V + Pf + G D + (2 + b) (Pf + G D)      without checkpointing: passes share their prompt, too
                 V + Pf + G D + (3 + b) G F             with it

    With checkpointing TRL's backward enters the frozen tower: the inputs of every layer are made to require gradients.
    """
    c, b = int(setting[0]), int(setting[1] != 0)
    v, f, prefill = parts["V"], parts["F"], parts["Pf"]
    decoding = f - prefill
    of_trl = samples * ((2 + 2 * c + b) * v + prefill + decoding + (2 + c + b) * f)
    shared = prefill + samples * decoding
    return of_trl / (v + shared + ((3 + b) * samples * f if c else (2 + b) * shared))
