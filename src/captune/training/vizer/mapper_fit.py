"""Fitting ViZer's mapper: L_ViZer = 1 - cos(F_I, F_T_hat), on captions of images; see `captune.models.vizer_mapper`."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captune.data.columns import LazyImages
from captune.data.images import opened
from captune.decoding.cfg import guided
from captune.errors import SettingError, TrainingError
from captune.models.captioner import Captioner
from captune.models.vizer_mapper import Mapper, MapperConfig
from captune.utils.progress import Bar

logger = logging.getLogger(__name__)


def collect(
    captioner: Captioner, mapper: Mapper, images: Any, captions: Any, *, batch_size: int = 64
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Compute the frozen side of the fit once: F_I (N, D), each caption's states (T_j, H), and its image (M,)."""
    features, states, owner = [], [], []
    start = 0
    for rows in _batches(images, batch_size, "mapper features"):
        texts = captions[start : start + len(rows)]
        batch = captioner.prepare(rows)
        features.append(mapper.image_features(captioner, batch))
        owners = [i for i, captions in enumerate(texts) for _ in captions]
        flat = [text for captions in texts for text in captions]
        for at in range(0, len(flat), 4 * batch_size):
            part = owners[at : at + 4 * batch_size]
            pairs = captioner.prepare([rows[i] for i in part], flat[at : at + 4 * batch_size])
            with torch.no_grad(), captioner.disable_adapter():
                hidden, mask = captioner.caption_hidden_states(
                    pairs, blind=mapper.config.blind, shift=mapper.config.shift
                )
            states += [h[m].clone() for h, m in zip(hidden, mask, strict=True)]
        owner += [start + i for i in owners]
        start += len(rows)
    return torch.cat(features), states, torch.tensor(owner, device=features[0].device)


def _batches(images: Any, batch_size: int, what: str) -> Iterator[list[Any]]:
    """The images of a dataset, with a bar."""
    with Bar(total=len(images), desc=what, unit="image") as bar:
        for batch in opened(LazyImages(images), batch_size):
            yield batch
            bar.update(len(batch))


def own_captions(
    captioner: Captioner,
    images: Any,
    *,
    samples: int = 0,
    guidance: float = 0.0,
    temperature: float = 1.0,
    max_new_tokens: int = 40,
    batch_size: int = 64,
) -> list[list[str]]:
    """Return the captioner's own captions of each image.

    A base that names a relation in one caption of fifty leaves little to learn it from. Under classifier-free guidance
    it names more of what it sees. One of an image's samples is made so, and not all, since guided captions hardly name
    some facts, such as sizes.

    Args:
        captioner: as it is.
        images: a dataset with a column `image`.
        samples: captions sampled per image; 0: a greedy one.
        guidance: the scale of classifier-free guidance for an image's last sample; 0: none.
        temperature: of the samples.
        max_new_tokens: longest caption in tokens.
        batch_size: images per batch.
    """
    settings: dict[str, Any] = {"do_sample": samples > 0, "temperature": temperature, "max_new_tokens": max_new_tokens}
    under = samples > 0 and guidance > 0
    n = samples - under if samples else 1
    captions: list[list[str]] = []
    for batch in _batches(images, batch_size, "mapper captions"):
        flat = captioner.generate(batch, num_return_sequences=n, **settings) if n else []
        last = guided(captioner, batch, weight=guidance - 1, **settings) if under else []
        captions += [flat[n * i : n * (i + 1)] + last[i : i + 1] for i in range(len(batch))]
    return captions


def fit_mapper(
    captioner: Captioner,
    images: Any,
    captions: Sequence[Sequence[str]],
    config: MapperConfig,
    *,
    epochs: int = 1,
    lr: float = 1e-3,
    batch_size: int = 64,
    weight_decay: float = 0.01,
    seed: int = 0,
) -> tuple[Mapper, list[float]]:
    """Fit h_tau by L_ViZer (AdamW) on pairs of images and captions; the captioner is frozen.

    Args:
        captioner: reads, its adapter off.
        images: a dataset with a column `image`.
        captions: for each image, the captions to fit on: ground truth (ViZer_GT) or the model's own (ViZer_G).
        config: the mapper's.
        epochs: passes over the pairs.
        lr: peak learning rate, then cosine decay.
        batch_size: pairs per step.
        weight_decay: AdamW's.
        seed: of weights and order.

    Returns:
        The mapper, frozen, and the loss of each step.

    Raises:
        SettingError: there is no caption, or not one list for each image.
    """
    if len(images) != len(captions) or not any(captions):
        raise SettingError(
            f"a mapper needs captions for its images: {len(images)} images, {len(captions)} caption lists"
        )
    probe = captioner.image_features([images[0]["image"]], where=config.feature, pool=config.pool)
    torch.manual_seed(seed)
    hidden_size = captioner.core.config.get_text_config().hidden_size
    mapper = Mapper(config, hidden_size, probe.shape[-1], captioner.name, captioner.base_digest(), captioner.prompt)
    mapper.to(captioner.device)
    was_training = captioner.model.training
    captioner.model.eval()
    features, states, owner = collect(captioner, mapper, images, captions)
    captioner.model.train(was_training)
    mapper.measure(features)
    steps = epochs * ((len(states) + batch_size - 1) // batch_size)
    optimizer = torch.optim.AdamW(mapper.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    mapper.train()
    for _ in Bar(range(epochs), desc="mapper"):
        for rows in torch.randperm(len(states), generator=generator).split(batch_size):
            hidden = nn.utils.rnn.pad_sequence([states[row] for row in rows], batch_first=True)
            lengths = torch.tensor([len(states[row]) for row in rows], device=hidden.device)
            mask = torch.arange(hidden.shape[1], device=hidden.device)[None] < lengths[:, None]
            loss = (1 - mapper.cosine(hidden, mask, features[owner[rows]])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise TrainingError(
                    f"the mapper's fit stopped at step {len(losses)} of {steps}: the loss is {losses[-1]}; no mapper "
                    "was saved; a lower --mapper-learning-rate or --dtype float32 may help"
                )
    seen = (steps, len(states), len(images))
    logger.info("mapper: loss %.4f after %d steps on %d captions of %d images", losses[-1], *seen)
    return mapper.eval().requires_grad_(False), losses
