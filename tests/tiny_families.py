"""Tiny models of every family but Idefics3 (see tiny.py), and one that captune refuses."""

from __future__ import annotations

from pathlib import Path

from tiny import VISION, idefics3, save, text_config, tokenizer

CHAT = (  # Qwen's turns; InternVL's are the same around another image token
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}{{ 'IMAGE' }}"
    "{%- else -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}{%- endif -%}{{ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)

SMOLVLM_CHAT = (
    "{{ '<|im_start|>' }}{%- for message in messages -%}{{ message['role'] | capitalize + ':' }}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}{{ '<image>' }}"
    "{%- else -%}{{ ' ' + part['text'] }}{%- endif -%}{%- endfor -%}{{ '<end_of_utterance>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}"
)


def smolvlm(folder: Path) -> Path:
    """SmolVLM2: turns ("Assistant:"), tiles, and a processor that insists on a video processor."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMProcessor
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    places = [f"<row_{i + 1}_col_{j + 1}>" for i in range(3) for j in range(3)]
    special = ["<fake_token_around_image>", "<image>", "<global-img>", "<video>", *places]
    tok = tokenizer(special, bos="<|im_start|>", eos="<end_of_utterance>", pad="<|pad|>")
    size = {"size": {"longest_edge": 192}, "max_image_size": {"longest_edge": 64}}
    images = SmolVLMImageProcessorPil(**size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = SmolVLMProcessor(
        images, tok, SmolVLMVideoProcessor(**size), image_seq_len=4, chat_template=SMOLVLM_CHAT
    )
    config = SmolVLMConfig(
        text_config={"model_type": "llama", **text_config(tok)},
        vision_config={**VISION, "model_type": "smolvlm_vision"},
        scale_factor=4,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        pad_token_id=tok.pad_token_id,
    )
    return save(SmolVLMForConditionalGeneration, config, processor, folder)


def _qwen(folder: Path, version: str) -> Path:
    import transformers
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    special = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tok = tokenizer(special, bos=None, eos="<|im_end|>", pad="<|endoftext|>")
    patch = 16 if version == "Qwen3" else 14
    size = {"shortest_edge": (2 * patch) ** 2, "longest_edge": (6 * patch) ** 2}
    images = Qwen2VLImageProcessor(size=size, patch_size=patch)
    videos = getattr(transformers, ("Qwen3" if version == "Qwen3" else "Qwen2") + "VLVideoProcessor")()
    short = "Qwen2_5_" if version == "Qwen2.5" else version
    processor = getattr(transformers, f"{short}VLProcessor")(
        image_processor=images,
        tokenizer=tok,
        video_processor=videos,
        chat_template=CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    common = {"depth": 2, "num_heads": 4, "patch_size": patch, "spatial_merge_size": 2, "temporal_patch_size": 2}
    own: dict = {
        "Qwen2": {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
        "Qwen2.5": {
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        "Qwen3": {
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0, 1],
        },
    }[version]
    head = {"head_dim": 8} if version == "Qwen3" else {}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = getattr(transformers, f"{short}VLConfig")(
        text_config=text_config(tok, rope_parameters=rope, **head),
        vision_config={**common, **own},
        image_token_id=tok.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tok.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tok.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tok.convert_tokens_to_ids("<|vision_end|>"),
    )
    return save(getattr(transformers, f"{short}VLForConditionalGeneration"), config, processor, folder)


def qwen2_vl(folder: Path) -> Path:
    """Flat patches with a grid for each image; the tower's merger ends in the language model's width."""
    return _qwen(folder, "Qwen2")


def qwen2_5_vl(folder: Path) -> Path:
    """As Qwen2-VL, with window attention."""
    return _qwen(folder, "Qwen2.5")


def qwen3_vl(folder: Path) -> Path:
    """As Qwen2-VL, with features of two tower layers added to the language model's first layers (deepstack)."""
    return _qwen(folder, "Qwen3")


def _clip_vision() -> dict:
    return {**VISION, "model_type": "clip_vision_model", "patch_size": 16, "num_hidden_layers": 3}


def _llava(folder: Path, kind: str, **more: object) -> Path:
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    tok = tokenizer(["<image>"], bos="<s>", eos="</s>", pad="<pad>")
    size = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    pinpoints = [[64, 128], [128, 64], [128, 128]]
    images: object = CLIPImageProcessorPil(**size)
    if kind == "LlavaNext":
        images = LlavaNextImageProcessorPil(**size, image_grid_pinpoints=pinpoints)
        more["image_grid_pinpoints"] = pinpoints
    from captune.models.families import LLAVA_TEMPLATE

    processor = getattr(transformers, "LlavaNextProcessor" if kind == "LlavaNext" else "LlavaProcessor")(
        image_processor=images,
        tokenizer=tok,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=None if kind == "Llava" else LLAVA_TEMPLATE,
    )
    config = getattr(transformers, f"{kind}Config")(
        text_config={"model_type": "llama", **text_config(tok)},
        vision_config=_clip_vision(),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        **more,
    )
    return save(getattr(transformers, f"{kind}ForConditionalGeneration"), config, processor, folder)


def llava(folder: Path) -> Path:
    """LLaVA-1.5: a CLIP tower, one square crop; saved without a chat template, as old folders are."""
    return _llava(folder, "Llava")


def llava_next(folder: Path) -> Path:
    """LLaVA-NeXT: as many 64 px tiles as the aspect ratio asks for, and a learned line break between rows."""
    return _llava(folder, "LlavaNext")


def vipllava(folder: Path) -> Path:
    """A family without a row, which the generic one serves."""
    return _llava(folder, "VipLlava", vision_feature_layers=[-2, -1])


def internvl(folder: Path) -> Path:
    """InternVL (-hf): 64 px tiles in one flat stack, whatever image they belong to."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor
    from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
    from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

    special = ["<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    tok = tokenizer(special, bos=None, eos="<|im_end|>", pad="<|endoftext|>")
    names = ("start_image_token", "end_image_token", "context_image_token", "video_token")
    tok._set_model_specific_special_tokens(special_tokens=dict(zip(names, special[1:], strict=True)))
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size={"height": 64, "width": 64}, max_patches=4),
        tok,
        InternVLVideoProcessor(size={"height": 64, "width": 64}),
        image_seq_length=16,
        chat_template=CHAT.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **text_config(tok)},
        vision_config={**VISION, "image_size": [64, 64], "patch_size": [8, 8]},
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
    )
    return save(InternVLForConditionalGeneration, config, processor, folder)


def blip(folder: Path) -> Path:
    """An image-text-to-text model that captune refuses: no image token, no chat template."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    tok = tokenizer([], bos="[CLS]", eos="[SEP]", pad="[PAD]")
    processor = BlipProcessor(BlipImageProcessorPil(size={"height": 64, "width": 64}), tok)
    text = text_config(tok)
    text.pop("num_key_value_heads")
    config = BlipConfig(text_config={**text, "encoder_hidden_size": 32}, vision_config=dict(VISION))
    return save(BlipForConditionalGeneration, config, processor, folder)


BUILDERS = {
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "llava": llava,
    "llava_next": llava_next,
    "internvl": internvl,
    "vipllava": vipllava,
}
