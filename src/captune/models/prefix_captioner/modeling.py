"""The model of a prefix captioner: image encoder, projector, language model.

The layout is LLaVA's: `model.vision_tower`, `model.projector`, `model.language_model` and `lm_head`.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple
from transformers.utils.import_utils import torch_compilable_check

from captune.errors import CaptionerError
from captune.models.prefix_captioner.configuration import PrefixConfig

NEVER = -1e4  # the logit of the image token: its probability is exactly 0, without infinities in entropies and KL


def encoder_width(config: Any) -> int:
    """Return D_v, the width of an image encoder's features; convolutional ones name that of each stage."""
    return int(config.hidden_size if hasattr(config, "hidden_size") else config.hidden_sizes[-1])


class PrefixProjector(nn.Module):
    """W_proj: LayerNorm, then `projector_depth` linear layers with GELU between them.

    Args:
        config: of the captioner.
        width: D_h, the language model's.
    """

    def __init__(self, config: PrefixConfig, width: int) -> None:
        super().__init__()
        vision_width = encoder_width(config.vision_config)
        self.tokens = config.num_prefix_tokens
        out = width * self.tokens if config.image_feature == "pooled" else width
        sizes = [vision_width, *[config.projector_width or vision_width] * (config.projector_depth - 1), out]
        layers: list[nn.Module] = [nn.LayerNorm(vision_width)]
        for i in range(config.projector_depth):
            layers += [nn.Linear(sizes[i], sizes[i + 1]), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, 1, D_v) or (B, k, D_v) to the prefix p (B, k, D_h)."""
        return self.mlp(features).view(len(features), self.tokens, -1)


class PrefixPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of both classes below."""

    config: PrefixConfig
    config_class = PrefixConfig
    base_model_prefix = "model"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class PrefixModel(PrefixPreTrainedModel):
    """All but the language model's head. The image encoder is frozen: no gradient, no dropout."""

    def __init__(self, config: PrefixConfig) -> None:
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.projector = PrefixProjector(config, self.language_model.get_input_embeddings().embedding_dim)
        self._positions = "position_ids" in inspect.signature(self.language_model.forward).parameters
        self.post_init()

    def train(self, mode: bool = True) -> PrefixModel:
        """Set the mode of all but the encoder, which stays frozen; `from_pretrained` calls it too, by `eval()`."""
        super().train(mode)
        self.vision_tower.eval().requires_grad_(False)
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_tower_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Encode images (B, 3, H, W).

        Returns:
            What the projector reads, (B, 1, D_v) or (B, k, D_v), as `pooler_output`; the patches (B, P, D_v), without
            class and register tokens, as `last_hidden_state`.

        Raises:
            CaptionerError: the encoder has no pooled embedding, or no grid of patches, and it is needed.
        """
        tower = self.vision_tower
        with torch.no_grad():
            out = tower(pixel_values=pixel_values.to(tower.dtype), return_dict=True)
        grid = self._grid(out.last_hidden_state, pixel_values)
        kind, parts = self.config.image_feature, []
        if kind != "patches":
            if out.pooler_output is None:
                raise CaptionerError(f'{type(tower).__name__} has no pooled embedding; use image_feature="patches"')
            parts.append(out.pooler_output.flatten(1)[:, None])  # a convolutional one may pool to (B, D, 1, 1)
        if kind != "pooled":
            side = math.isqrt(self.config.num_prefix_tokens)  # of k or, with the embedding, of k - 1 cells
            parts.append(nn.functional.adaptive_avg_pool2d(grid, side).flatten(-2).transpose(1, 2))
        features = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        return BaseModelOutputWithPooling(last_hidden_state=grid.flatten(-2).transpose(1, 2), pooler_output=features)

    def _grid(self, states: Tensor, pixel_values: Tensor) -> Tensor:
        """Return the encoder's states as a map of the image (B, D_v, rows, columns)."""
        if states.dim() == 4:  # a convolutional encoder's
            return states
        name = type(self.vision_tower).__name__
        if (size := getattr(self.vision_tower.config, "patch_size", None)) is None:
            raise CaptionerError(f"{name} has no patch_size, and gives no map of an image")
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        rows, columns = pixel_values.shape[-2] // height, pixel_values.shape[-1] // width
        if states.dim() != 3 or states.shape[1] < rows * columns:
            raise CaptionerError(
                f"{name} gives no state to each of the {rows} x {columns} patches of an image; a vision transformer "
                "such as CLIP's, SigLIP's or DINOv2, or a convolutional encoder is needed"
            )
        patches = states[:, states.shape[1] - rows * columns :]  # whatever else there is comes first
        return patches.transpose(1, 2).unflatten(-1, (rows, columns))

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Return the prefix p (B, k, D_h) as `pooler_output`, the patches (B, P, D_v) as `last_hidden_state`."""
        tower = self.get_tower_features(pixel_values)
        features = cast(Tensor, tower.pooler_output)
        prefix = self.projector(features.to(next(self.projector.parameters()).dtype))
        return BaseModelOutputWithPooling(last_hidden_state=tower.last_hidden_state, pooler_output=prefix)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return hidden states (B, T, D_h) of tokens (B, T) whose image tokens stand for the images' prefixes."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        images = (mm_encoder_outputs or {}).get("image")
        if images is None and pixel_values is not None:
            images = self.get_image_features(pixel_values, return_dict=True)
        if inputs_embeds is None:
            inputs_embeds = cast(Tensor, self.get_input_embeddings()(input_ids))
        if input_ids is not None:
            inputs_embeds = self._with_prefix(inputs_embeds, input_ids == self.config.image_token_id, images)
        elif images is not None:
            raise ValueError("images need input_ids, which say where they belong")
        if self._positions:
            if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
                # padding takes no position: with absolute positions a row must not depend on its neighbours' lengths
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
            kwargs["position_ids"] = position_ids
        out = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **{**kwargs, "return_dict": True},
        )
        return BaseModelOutputWithPast(out.last_hidden_state, out.past_key_values, out.hidden_states, out.attentions)

    def _with_prefix(self, embeddings: Tensor, places: Tensor, images: Any) -> Tensor:
        prefix = [] if images is None else images.pooler_output
        torch_compilable_check(
            places.sum() == len(prefix) * self.config.num_prefix_tokens,
            lambda: (
                f"{int(places.sum())} image tokens in the text do not fit {len(prefix)} images of "
                f"{self.config.num_prefix_tokens} tokens each"
            ),
        )
        if images is None:
            return embeddings
        prefix = prefix if isinstance(prefix, Tensor) else torch.stack(list(prefix))
        return embeddings.masked_scatter(places[..., None], prefix.to(embeddings.device, embeddings.dtype))


class PrefixHead(nn.Linear):
    """A language model's head that never gives the image token, so that the words keep their probabilities.

    Its bias says so too: trl's trainers read weight and bias, and do not call the head.

    Args:
        width: D_h.
        rows: V.
        bias: whether it has a bias.
        image_token_id: the token whose logit is `NEVER`.
    """

    def __init__(self, width: int, rows: int, bias: bool, image_token_id: int) -> None:
        super().__init__(width, rows, bias=bias)
        self.image_token_id = image_token_id

    def __getattr__(self, name: str) -> Any:
        value: Any = super().__getattr__(name)
        if name != "bias" or "image_token_id" not in self.__dict__:  # while it is made
            return value
        bias: Tensor = torch.zeros_like(self.weight[:, 0]) if value is None else value
        return bias.index_fill(0, torch.tensor(self.image_token_id, device=bias.device), NEVER)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states (B, T, D_h) to logits (B, T, V)."""
        logits = nn.functional.linear(hidden, self.weight, self._parameters["bias"])
        logits[..., self.image_token_id] = NEVER
        return logits


class PrefixForConditionalGeneration(PrefixPreTrainedModel, GenerationMixin):
    """The captioner. The image token is a placeholder: it is never generated, and its embedding is never read."""

    def __init__(self, config: PrefixConfig) -> None:
        super().__init__(config)
        self.model = PrefixModel(config)
        embeddings = self.model.get_input_embeddings()
        rows, width = cast(Tensor, embeddings.weight).shape
        self.lm_head = PrefixHead(width, rows, config.head_bias, config.image_token_id)
        name = next(name for name, module in self.model.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}
        self.post_init()

    def get_image_features(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Return the prefix; see `PrefixModel.get_image_features`."""
        return self.model.get_image_features(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, Any] | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits (B, T, V) and, with `labels` (B, T), the loss of HAR's equation 1, averaged over their tokens.

        Labels of -100 and of the image token are ignored.
        """
        out = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            **{**kwargs, "return_dict": True},
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            labels = labels.masked_fill(labels == self.config.image_token_id, -100)
            vocabulary = logits.shape[-1]
            loss = self.loss_function(logits, labels, vocab_size=vocabulary, num_items_in_batch=num_items_in_batch)
        return CausalLMOutputWithPast(loss, logits, out.past_key_values, out.hidden_states, out.attentions)
