"""ViZer's objectives as losses: L_zero on captions that the current model writes.

See `captune.training.vizer.train`; the objective `reward` is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captune.models.captioner import Captioner
from captune.models.families import attribute
from captune.models.vizer_mapper import Mapper
from captune.training.lifecycle import CaptionerTrainer, kl_to_base

if TYPE_CHECKING:
    from captune.training.vizer.train import ViZerConfig


class ViZerTrainer(CaptionerTrainer):
    """`transformers.Trainer` with L_zero on captions that the current model writes (`latent`, `straight_through`)."""

    def __init__(self, *args: Any, mapper: Mapper, vizer_config: ViZerConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mapper, self.config = mapper, vizer_config

    def caption_loss(self, images: list[Any], examples: list[dict[str, Any]]) -> Tensor:
        sampled = self.config.mapper_captions == "sampled"
        settings = {"do_sample": sampled, "temperature": self.config.temperature}
        captions = self.captioner.generate(images, max_new_tokens=self.config.max_new_tokens, **settings)
        loss_of = straight_through_loss if self.config.objective == "straight_through" else latent_loss
        loss, batch, logits = loss_of(self.captioner, self.mapper, images, captions)
        if self.config.beta:
            loss = loss + self.config.beta * kl_to_base(self.captioner, batch, logits)
        return loss


def latent_loss(
    captioner: Captioner, mapper: Mapper, images: list[Any], captions: list[str]
) -> tuple[Tensor, Any, Tensor | None]:
    """L_zero, a scalar: 1 - cos(F_I, M(caption)), its gradient through the captioner's hidden states.

    Returns the loss, the batch, and logits where they were computed on the way (None here)."""
    batch = captioner.prepare(images, captions)
    return (1 - mapper.score(captioner, batch)).mean(), batch, None


def straight_through_loss(
    captioner: Captioner, mapper: Mapper, images: list[Any], captions: list[str]
) -> tuple[Tensor, Any, Tensor | None]:
    """L_zero read blind by the frozen base, with a gradient to the words: onehot + p - p.detach() enters embedded."""
    batch = captioner.prepare(images, captions)
    features = mapper.image_features(captioner, batch)
    mask = batch["caption_mask"].bool()
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "caption_mask")}
    logits = captioner.model(**inputs, use_cache=False).logits
    predicting = logits[:, :-1].float().softmax(dim=-1)  # (B, T-1, V): the distribution of each next token
    embed: Any = captioner.core.get_input_embeddings()
    table = embed.weight
    onehot = torch.nn.functional.one_hot(batch["input_ids"][:, 1:], table.shape[0]).to(predicting.dtype)
    embeddings = (onehot + predicting - predicting.detach()) @ table.float()
    counts = mask.sum(dim=1)
    starts = mask.int().argmax(dim=1) - 1  # in `embeddings`, which begin at the second token
    steps = torch.arange(int(counts.max()), device=mask.device)
    valid = steps[None] < counts[:, None]
    places = (starts[:, None] + steps[None]).clamp(max=embeddings.shape[1] - 1)
    tail = embeddings.gather(1, places[..., None].expand(-1, -1, embeddings.shape[-1]))
    head = embed(torch.tensor([captioner.blind_prompt_ids()] * len(images), device=mask.device))
    attention = torch.cat([valid.new_ones(head.shape[:2]), valid], dim=1).long()
    with captioner.disable_adapter():
        hidden = attribute(captioner.core, captioner.family.language_model)(
            inputs_embeds=torch.cat([head, tail.to(head.dtype)], dim=1), attention_mask=attention, use_cache=False
        ).last_hidden_state
    start = head.shape[1] - int(mapper.config.shift)
    states = hidden[:, start : start + valid.shape[1]]
    return (1 - mapper.cosine(states, valid, features)).mean(), batch, logits
