"""ViZer's mapper: from what a caption says to what the image shows (ViZer, section 3.1).

    M_tau(.) = h_tau(f_psi(.))                          f_psi: the captioner's transformer, frozen; h_tau: an MLP
    L_ViZer  = 1 - cos(F_I, F_T_hat)                    F_I = V_theta(I); F_T_hat = M_tau(the caption)

Symbols: F_I is `Captioner.image_features`, f_psi(.) is `Captioner.caption_hidden_states`, h_tau is `Mapper`.

What the paper leaves open, and what can be chosen here (`MapperConfig`):

- *Pooling over the caption's tokens* is not stated. `caption_pool="mean"` averages f_psi over the caption and its end
  token, "last" takes the end token, which has read the whole caption; "tokens" maps every token and averages what h
  says of each, so that a caption's facts add up.
- *F_I*: after the connector or before it, averaged over the image's tokens or over each
  quarter of the picture, laid end to end: only then can "left of" be told from "right of" (`feature`, `pool`).
- *Whether the caption is read with its image in context.* In ViZer_G it is, so image information can reach the mapper
  beside the words. `blind=True` shows f_psi the caption alone: then the score is a function of the words.
- *Centring*: visual features of one encoder share a large common direction, which every caption predicts equally well.
  `centred=True` measures the cosine from their mean. A few large directions (the background of a picture) hold most of
  the remaining variance; `whitened=N` gives the N largest the same weight, so that small things count.
- *Which hidden states*: those at the caption's tokens (t+1:, the literal reading) or, with `shift=True`, those that
  predict them, through which a gradient can reach the words.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from captune.decoding.cfg import guided
from captune.models.captioner import Captioner

if TYPE_CHECKING:
    from captune.training.vizer.train import ViZerConfig

logger = logging.getLogger(__name__)

SIZES = ("hidden_size", "feature_size", "captioner_name")  # what a saved mapper's config holds beside MapperConfig


@dataclass
class MapperConfig:
    """Everything that decides what a fitted mapper's number means; saved beside its weights."""

    width: int = field(default=256, metadata={"help": "hidden width of the MLP h"})
    depth: int = field(default=2, metadata={"help": "linear layers of the MLP h"})
    feature: Literal["connector", "tower"] = field(default="connector", metadata={"help": "where F_I is taken"})
    pool: Literal["mean", "quarters"] = field(
        default="mean", metadata={"help": "F_I: mean of an image's tokens, or of each quarter of it"}
    )
    caption_pool: Literal["mean", "last", "tokens"] = field(
        default="mean", metadata={"help": "f_psi over the caption: averaged, its end, or each token mapped"}
    )
    blind: bool = field(default=False, metadata={"help": "read the caption without its image in context"})
    centred: bool = field(default=False, metadata={"help": "measure the cosine from the mean image feature"})
    whitened: int = field(
        default=0, metadata={"help": "measure it in F_I's first N principal directions, at unit variance (0: off)"}
    )
    shift: bool = field(default=False, metadata={"help": "use the states that predict the caption's tokens"})


class Mapper(nn.Module):
    """h_tau with its centre.

    Args:
        config: see `MapperConfig`.
        hidden_size: width H of the captioner's hidden states.
        feature_size: width D of F_I.
        captioner_name: the captioner whose f_psi it reads, as `Captioner.load` takes it.
    """

    centre: Tensor  # (D,), zeros where the config does not centre
    directions: Tensor  # (D, N), what whitens; (D, 0) where the config does not

    def __init__(self, config: MapperConfig, hidden_size: int, feature_size: int, captioner_name: str = "") -> None:
        super().__init__()
        if config.depth < 1:
            raise ValueError(f"a mapper needs a depth of at least 1, not {config.depth}")
        self.config, self.hidden_size, self.feature_size = config, hidden_size, feature_size
        self.captioner_name = captioner_name
        sizes = [hidden_size, *[config.width] * (config.depth - 1), config.whitened or feature_size]
        layers: list[nn.Module] = [nn.LayerNorm(hidden_size)]
        for i in range(config.depth):
            layers += [nn.Linear(sizes[i], sizes[i + 1]), nn.GELU()]
        self.h = nn.Sequential(*layers[:-1])
        self.register_buffer("centre", torch.zeros(feature_size))
        self.register_buffer("directions", torch.zeros(feature_size, config.whitened))

    def target(self, image_features: Tensor) -> Tensor:
        """F_I as the cosine sees it, (B, D) or (B, N)."""
        centred = image_features.float() - self.centre
        return centred @ self.directions if self.config.whitened else centred

    def measure(self, image_features: Tensor) -> None:
        """Sets the centre, and the whitening directions, from the features (N, D) that the mapper is fitted on."""
        if not (self.config.centred or self.config.whitened):
            return
        self.centre.copy_(image_features.mean(dim=0))
        if self.config.whitened:
            _, spread, axes = torch.linalg.svd(image_features.float() - self.centre, full_matrices=False)
            if self.config.whitened > len(spread):
                raise ValueError(
                    f"--whitened {self.config.whitened} needs as many images and feature dimensions; "
                    f"there are {len(spread)}"
                )
            scale = spread[: self.config.whitened].clamp(min=1e-6) / len(image_features) ** 0.5
            self.directions.copy_((axes[: self.config.whitened] / scale[:, None]).T)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """F_T_hat, (B, D) or (B, N), from the states (B, T, H) and mask (B, T) of the captions' tokens."""
        hidden = hidden.float()
        if self.config.caption_pool == "last":
            last = mask.long().sum(dim=1).clamp(min=1) - 1
            return self.h(hidden[torch.arange(len(hidden), device=hidden.device), last])
        if self.config.caption_pool == "tokens":
            return masked_mean(self.h(hidden), mask)
        return self.h(masked_mean(hidden, mask))

    def cosine(self, hidden: Tensor, mask: Tensor, image_features: Tensor) -> Tensor:
        """cos(F_I, F_T_hat), (B,), with F_I centred and whitened as configured."""
        return F.cosine_similarity(self.target(image_features), self(hidden, mask), dim=-1)

    def image_features(self, captioner: Captioner, images: Any) -> Tensor:
        """F_I as this mapper wants it, (B, D) float32."""
        return captioner.image_features(images, where=self.config.feature, pool=self.config.pool)

    def score(self, captioner: Captioner, batch: Any) -> Tensor:
        """cos(F_I, F_T_hat) of a batch of images with captions (`prepare` or `append`), (B,); gradients flow."""
        hidden, mask = captioner.caption_hidden_states(batch, blind=self.config.blind, shift=self.config.shift)
        return self.cosine(hidden, mask, self.image_features(captioner, batch))

    def save(self, folder: str | Path) -> Path:
        """Writes `mapper.safetensors` and `config.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "mapper.safetensors")
        sizes = {name: getattr(self, name) for name in SIZES}
        (folder / "config.json").write_text(json.dumps({**asdict(self.config), **sizes}, indent=2) + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Mapper:
        """Reads what `save` wrote.

        Raises:
            ValueError: names the file that is missing or does not fit.
        """
        folder = Path(folder)
        for name in ("config.json", "mapper.safetensors"):
            if not (folder / name).is_file():
                raise ValueError(
                    f"{folder} holds no mapper: {name} is missing. "
                    "A mapper is what `captune vizer` leaves in <output>/mapper."
                )
        settings = json.loads((folder / "config.json").read_text())
        sizes = {name: settings.pop(name) for name in SIZES}
        known = {key: value for key, value in settings.items() if key in MapperConfig.__dataclass_fields__}
        mapper = cls(MapperConfig(**known), **sizes)
        mapper.load_state_dict(load_file(folder / "mapper.safetensors"))
        return mapper.eval().requires_grad_(False)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B, T, X) and (B, T) -> (B, X)."""
    weights = mask.to(values.dtype).unsqueeze(-1)
    return (values * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def collect(
    captioner: Captioner, mapper: Mapper, images: Any, captions: Any, *, batch_size: int = 64
) -> tuple[Tensor, list[Tensor], Tensor]:
    """The frozen side of the fit, computed once: F_I (N, D), each caption's states (T_j, H), and its image (M,)."""
    features, states, owner = [], [], []
    for start in tqdm(range(0, len(images), batch_size), desc="mapper features", disable=None):
        rows = images[start : start + batch_size]["image"]
        texts = captions[start : start + batch_size]
        batch = captioner.prepare(rows)
        features.append(mapper.image_features(captioner, batch))
        owners = [i for i, own in enumerate(texts) for _ in own]
        flat = [text for own in texts for text in own]
        for at in range(0, len(flat), 4 * batch_size):
            part = owners[at : at + 4 * batch_size]
            pairs = captioner.prepare([rows[i] for i in part], flat[at : at + 4 * batch_size])
            with torch.no_grad(), captioner.disable_adapter():
                hidden, mask = captioner.caption_hidden_states(
                    pairs, blind=mapper.config.blind, shift=mapper.config.shift
                )
            states += [h[m].clone() for h, m in zip(hidden, mask, strict=True)]
        owner += [start + i for i in owners]
    return torch.cat(features), states, torch.tensor(owner, device=features[0].device)


def own_captions(captioner: Captioner, images: Any, config: ViZerConfig, *, batch_size: int = 64) -> list[list[str]]:
    """The frozen model's captions of each image: one greedy, or `mapper_samples` sampled, the last under `guidance`."""
    sampled = config.mapper_captions == "sampled"
    settings = {"do_sample": sampled, "temperature": config.temperature, "max_new_tokens": config.max_new_tokens}
    under = sampled and config.guidance > 0
    n = config.mapper_samples - under if sampled else 1
    captions: list[list[str]] = []
    for first in tqdm(range(0, len(images), batch_size), desc="mapper captions", disable=None):
        batch = images[first : first + batch_size]["image"]
        flat = captioner.generate(batch, num_return_sequences=n, **settings) if n else []
        last = guided(captioner, batch, weight=config.guidance - 1, **settings) if under else []
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
    """Fits h_tau by L_ViZer (AdamW) on pairs of images and captions; the captioner is frozen.

    Args:
        images: a dataset with a column `image`.
        captions: for each image, the captions to fit on: ground truth (ViZer_GT) or the model's own (ViZer_G).

    Returns:
        The mapper and the loss of each step.
    """
    if len(images) != len(captions) or not any(captions):
        raise ValueError(f"a mapper needs captions for its images: {len(images)} images, {len(captions)} caption lists")
    probe = captioner.image_features([images[0]["image"]], where=config.feature, pool=config.pool)
    torch.manual_seed(seed)
    hidden_size = captioner.core.config.get_text_config().hidden_size
    mapper = Mapper(config, hidden_size, probe.shape[-1], captioner.name).to(captioner.device)
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
    for _ in tqdm(range(epochs), desc="mapper", disable=None):
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
    seen = (steps, len(states), len(images))
    logger.info("mapper: loss %.4f after %d steps on %d captions of %d images", losses[-1], *seen)
    return mapper.eval().requires_grad_(False), losses
