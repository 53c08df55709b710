"""ViZer's objectives as losses: L_zero on captions that the current model writes.

The objective `reward` is GRPO's (`captune.training.vizer.train`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from captune.models import inputs as batches
from captune.models.captioner import Captioner
from captune.models.families import attribute
from captune.models.vizer_mapper import Mapper
from captune.training.lifecycle import starting_captioner
from captune.training.losses import token_kl
from captune.training.sharing import SharedSampling
from captune.training.trainer import CaptionerTrainer
from captune.utils import processes


class ViZerTrainer(CaptionerTrainer):
    """`transformers.Trainer` with L_zero on captions that the current model writes.

    Args:
        args: those of `CaptionerTrainer`.
        mapper: h_tau, frozen.
        objective: what the gradient reaches: the hidden states, or the words as well.
        do_sample: sample the captions; default: greedy ones.
        temperature: of the samples.
        max_new_tokens: longest caption in tokens.
        beta: weight of KL to the captioner that training starts from.
        kwargs: those of `CaptionerTrainer`.
    """

    def __init__(
        self,
        *args: Any,
        mapper: Mapper,
        objective: Literal["latent", "straight_through"] = "latent",
        do_sample: bool = False,
        temperature: float = 1.0,
        max_new_tokens: int = 40,
        beta: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.mapper, self.beta = mapper, beta
        self.loss_of = straight_through_loss if objective == "straight_through" else latent_loss
        self.generation: dict[str, Any] = {
            "do_sample": do_sample,
            "temperature": temperature,
            "max_new_tokens": max_new_tokens,
        }

    def caption_loss(self, images: list[Any], examples: list[dict[str, Any]]) -> Tensor:
        """Return L_zero, plus `beta` times KL."""
        with self._sampling(len(images)):
            captions = self.captioner.generate(images, **self.generation)
        loss, batch, logits = self.loss_of(self.captioner, self.mapper, images, captions)
        loss = self.weigh(loss, len(images))
        if self.beta:
            kl = kl_to_start(self.captioner, batch, logits)
            loss = loss + self.beta * self.weigh(kl, int(batch["caption_mask"][:, 1:].sum()))
        return loss

    def _sampling(self, rows: int) -> AbstractContextManager[Any]:
        several = processes.number() > 1 and self.generation["do_sample"]
        return SharedSampling(rows, self.captioner.device) if several else nullcontext()

    def follow(self) -> None:
        """Take part in what the processes exchange in `caption_loss`, without an image."""
        with self._sampling(0):
            pass
        for _ in range(1 + bool(self.beta)):
            self.weigh(torch.zeros(()), 0)


def kl_to_start(captioner: Captioner, batch: Any, logits: Tensor | None = None) -> Tensor:
    """Return KL(pi || pi_start) averaged over the captions' tokens, a scalar.

    Args:
        captioner: pi_start is the captioner that training starts from, the base without `--adapter`.
        batch: from `Captioner.prepare(images, captions)`.
        logits: (B, T, V) of the captioner where they are known.
    """
    inputs = batches.inputs_of(batch)
    if logits is None:
        logits = captioner.model(**inputs, use_cache=False).logits
    with torch.no_grad(), starting_captioner(captioner):
        base = captioner.model(**inputs, use_cache=False).logits
    mask = batch["caption_mask"][:, 1:].bool()
    return token_kl(logits[:, :-1][mask], base[:, :-1][mask]).mean()


def latent_loss(
    captioner: Captioner, mapper: Mapper, images: list[Any], captions: list[str]
) -> tuple[Tensor, Any, Tensor | None]:
    """Compute L_zero = 1 - cos(F_I, M(caption)), its gradient through the captioner's hidden states.

    Returns:
        The loss, a scalar; the batch of images with captions; the logits where they were computed on the way (None).
    """
    batch = captioner.prepare(images, captions)
    return (1 - mapper.score(captioner, batch)).mean(), batch, None


def straight_through_loss(
    captioner: Captioner, mapper: Mapper, images: list[Any], captions: list[str]
) -> tuple[Tensor, Any, Tensor | None]:
    """Compute L_zero with a gradient to the words: onehot + p - p.detach() enters embedded, read blind by the base.

    Returns:
        The loss, a scalar; the batch of images with captions; the logits (B, T, V).
    """
    batch = captioner.prepare(images, captions)
    features = mapper.image_features(captioner, batch)
    mask = batch["caption_mask"].bool()
    logits = captioner.model(**batches.inputs_of(batch), use_cache=False).logits
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
