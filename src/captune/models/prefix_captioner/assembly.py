"""A prefix captioner is assembled from two pretrained models: an image encoder and a language model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from tokenizers import AddedToken
from torch import nn
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from captune.errors import CaptionerError, first_line
from captune.models import hub
from captune.models.families import PLAIN_TEMPLATE
from captune.models.prefix_captioner.configuration import PrefixConfig
from captune.models.prefix_captioner.modeling import PrefixForConditionalGeneration, PrefixProjector
from captune.models.prefix_captioner.processing import PrefixProcessor
from captune.utils.loads import check_model


@torch.no_grad()
def assemble(
    image_encoder: str | Path,
    language_model: str | Path,
    *,
    num_prefix_tokens: int = 16,
    image_feature: Literal["pooled", "patches", "both"] = "pooled",
    whole_image: bool = False,
    begin_token: bool = False,
    projector_width: int | None = None,
    projector_depth: int = 2,
    image_token: str = "<image>",
    dtype: str | torch.dtype = "auto",
) -> tuple[PrefixForConditionalGeneration, PrefixProcessor]:
    """Return the captioner and its processor, on the CPU. torch's random state decides the new projector's weights.

    Args:
        image_encoder: a folder, hub name, packaged or shipped model whose image side is a vision transformer (CLIP,
            SigLIP, DINOv2, ...) or a convolutional encoder (ConvNeXt, EfficientNet-Lite), with its image processor.
        language_model: one that `AutoModelForCausalLM` loads, with its tokenizer.
        num_prefix_tokens: k; see `PrefixConfig`.
        image_feature: "pooled", "patches" or "both"; see `PrefixConfig`.
        whole_image: squeeze the whole image into the encoder's square, where its own processor crops the center.
        begin_token: begin each text with the language model's BOS token, where attention rests that is needed nowhere
            else (Xiao et al., 2024); without it it rests on the prefix, and the first gradients are many times larger.
        projector_width: see `PrefixConfig`.
        projector_depth: see `PrefixConfig`.
        image_token: a token of the tokenizer, such as a reserved one, or the name of a new one. The model's tables
            get a new row, which is never read, only if they have no spare one.
        dtype: of the whole model; default: the language model's.

    Raises:
        CaptionerError: a part cannot be loaded, or does not work as a part; the message says which and why.
    """
    lm, tokenizer = _language_model(str(language_model), dtype)
    tower, image_processor = _image_encoder(str(image_encoder), lm.dtype)
    if whole_image:
        _take_whole(image_processor, str(image_encoder))
    if image_token not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(image_token, special=True, normalized=False)], special_tokens=True)
    image_token_id = tokenizer.convert_tokens_to_ids(image_token)
    _make_room(lm, image_token_id)
    head = lm.get_output_embeddings()
    config = PrefixConfig(
        vision_config=tower.config,
        text_config=lm.config,
        image_token_id=image_token_id,
        num_prefix_tokens=num_prefix_tokens,
        image_feature=image_feature,
        projector_width=projector_width,
        projector_depth=projector_depth,
        head_bias=head.bias is not None,
        tie_word_embeddings=bool(getattr(lm.config, "tie_word_embeddings", False)),
        dtype=lm.dtype,
    )
    with torch.device("meta"):  # the parts have their weights already
        model = PrefixForConditionalGeneration(config)
    embeddings = lm.get_input_embeddings().weight
    projector = PrefixProjector(config, embeddings.shape[1])
    _initialise(projector, float(embeddings.float().std()))
    model.model.vision_tower, model.model.language_model = tower, lm.base_model
    model.model.projector = projector.to(lm.dtype)
    model.lm_head.weight, model.lm_head.bias = head.weight, head.bias
    model.generation_config = GenerationConfig.from_dict(lm.generation_config.to_dict())
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    # the line break: a prompt must end in a token from which a cache can continue without the image
    template = PLAIN_TEMPLATE.replace("<image>", image_token + "\n")
    if begin_token:
        if tokenizer.bos_token is None:
            raise CaptionerError(f"the tokenizer of {str(language_model)!r} has no BOS token: leave begin_token out")
        template = tokenizer.bos_token + template
    processor = PrefixProcessor(image_processor, tokenizer, num_prefix_tokens, image_token, chat_template=template)
    _check(model.eval(), lm.eval(), processor, (str(image_encoder), str(language_model)))
    return model, processor


def _language_model(name: str, dtype: Any) -> tuple[Any, Any]:
    source = hub.resolve(name, what="language model", example="mistralai/Mistral-7B-v0.3")
    with hub.loading("language model", name, source, CaptionerError):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
        lm, info = loaded
        tokenizer = AutoTokenizer.from_pretrained(source)
    check_model(lm, info, what=f"language model {name!r}", error=CaptionerError)
    if lm.base_model is lm or type(lm.get_output_embeddings()) is not nn.Linear:
        raise CaptionerError(f"language model {name!r} ({type(lm).__name__}) has no linear head on a model of its own")
    if tokenizer.eos_token is None:
        raise CaptionerError(f"the tokenizer of {name!r} has no end-of-sentence token, so no caption could end")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return lm, tokenizer


def _image_encoder(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    source = hub.resolve(name, what="image encoder", example="openai/clip-vit-large-patch14")
    with hub.loading("image encoder", name, source, CaptionerError):
        whole, info = AutoModel.from_pretrained(source, dtype=dtype, use_safetensors=True, output_loading_info=True)
        image_processor = AutoImageProcessor.from_pretrained(source)
    tower = whole.get_encoder(modality="image")  # the whole model if the folder has no text side
    if not hasattr(tower.config, "hidden_size") and not hasattr(tower.config, "hidden_sizes"):
        raise CaptionerError(f"image encoder {name!r} ({type(tower).__name__}) cannot be used: no hidden_size")
    check_model(whole, info, what=f"image encoder {name!r} ({type(tower).__name__})", error=CaptionerError)
    return tower, image_processor


def _take_whole(image_processor: Any, name: str) -> None:
    crop = getattr(image_processor, "crop_size", None)
    if not getattr(image_processor, "do_center_crop", False) or crop is None:
        raise CaptionerError(f"the image processor of {name!r} crops nothing: leave whole_image out")
    image_processor.do_center_crop = False
    image_processor.size = {"height": crop["height"], "width": crop["width"]}


def _initialise(projector: PrefixProjector, std: float) -> None:
    """Initialise the weights so that the prefix has this standard deviation, that of the LM's embeddings."""
    linear = [layer for layer in projector.mlp if isinstance(layer, nn.Linear)]
    for layer in linear:
        last, second_moment = layer is linear[-1], 1.0 if layer is linear[0] else 0.425  # E[gelu(x)^2], x ~ N(0, 1)
        nn.init.normal_(layer.weight, std=(std if last else 1.0) / math.sqrt(second_moment * layer.in_features))
        nn.init.zeros_(layer.bias)


def _make_room(lm: Any, image_token_id: int) -> None:
    """Add a row for the image token if the tables have no spare one (many are padded beyond the vocabulary)."""
    rows = lm.get_input_embeddings().weight.shape[0]
    if image_token_id < rows:
        return
    lm.resize_token_embeddings(image_token_id + 1, mean_resizing=False)
    head = lm.get_output_embeddings()
    for table in (lm.get_input_embeddings().weight, head.weight, head.bias):
        if table is not None:
            table[rows:] = 0.0


def _check(model: Any, lm: Any, processor: PrefixProcessor, names: tuple[str, str]) -> None:
    """Check that the parts compute together what they compute apart: this layout could drop something between them."""
    encoder, language_model = names
    blank = Image.new("RGB", (64, 48))
    try:
        batch = processor(text=[processor.image_token], images=[[blank]], return_tensors="pt")
        model.get_image_features(batch["pixel_values"])
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise CaptionerError(f"image encoder {encoder!r} cannot be used: {first_line(error)}") from error
    ids = torch.tensor([[i for i in range(8) if i != model.config.image_token_id]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": True}
    apart = lm(**inputs)
    if getattr(apart, "past_key_values", None) is None:
        raise CaptionerError(
            f"language model {language_model!r} ({type(lm).__name__}) keeps no cache of keys and values"
        )
    together = model(**inputs)
    words = torch.arange(apart.logits.shape[-1]) != model.config.image_token_id
    if not torch.equal(apart.logits[..., words], together.logits[..., words]):
        raise CaptionerError(
            f"language model {language_model!r} ({type(lm).__name__}) does more to its logits than a linear head "
            "(Gemma 2's soft cap, for instance), which a prefix captioner would leave out"
        )
