"""ViZer's mapper: from what a caption says to what the image shows (ViZer, section 3.1).

    M_tau(.) = h_tau(f_psi(.))                          f_psi: the captioner's transformer, frozen; h_tau: an MLP
    L_ViZer  = 1 - cos(F_I, F_T_hat)                    F_I = V_theta(I); F_T_hat = M_tau(the caption)

Symbols: F_I is `Captioner.image_features`, f_psi(.) is `Captioner.caption_hidden_states`, h_tau is `Mapper`. The paper
leaves open the pooling over tokens, where F_I is taken, whether the caption is read with its image, and which hidden
states are read; `MapperConfig` has a setting for each.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from captune.errors import CaptionerError, SettingError, first_line
from captune.models.vizer_mapper_config import MapperConfig
from captune.utils.files import read_json
from captune.utils.hashing import weights_digest
from captune.utils.loads import check_keys

if TYPE_CHECKING:
    from captune.models.captioner import Captioner

_FIT_AGAIN = "Name another mapper, or fit it again with `captune vizer`."
#: what a saved mapper's config holds beside MapperConfig
SIZES = ("hidden_size", "feature_size", "captioner_name", "captioner_digest", "prompt")


class Mapper(nn.Module):
    """The MLP h_tau, with the centre and the whitening of its target.

    Args:
        config: see `MapperConfig`.
        hidden_size: width H of the captioner's hidden states.
        feature_size: width D of F_I.
        captioner_name: the captioner whose f_psi it reads, as `Captioner.load` takes it.
        captioner_digest: of that captioner's weights without an adapter; None: not known.
        prompt: the text beside the image that it reads captions behind; None: the captioner's.
    """

    centre: Tensor  # (D,), zeros where the config does not centre
    directions: Tensor  # (D, N), what whitens; (D, 0) where the config does not

    def __init__(
        self,
        config: MapperConfig,
        hidden_size: int,
        feature_size: int,
        captioner_name: str = "",
        captioner_digest: str | None = None,
        prompt: str | None = None,
    ) -> None:
        super().__init__()
        if config.depth < 1:
            raise SettingError(f"a mapper needs a depth of at least 1, not {config.depth}")
        self.config, self.hidden_size, self.feature_size = config, hidden_size, feature_size
        self.captioner_name, self.captioner_digest, self.prompt = captioner_name, captioner_digest, prompt
        sizes = [hidden_size, *[config.width] * (config.depth - 1), config.whitened or feature_size]
        layers: list[nn.Module] = [nn.LayerNorm(hidden_size)]
        for i in range(config.depth):
            layers += [nn.Linear(sizes[i], sizes[i + 1]), nn.GELU()]
        self.h = nn.Sequential(*layers[:-1])
        self.register_buffer("centre", torch.zeros(feature_size))
        self.register_buffer("directions", torch.zeros(feature_size, config.whitened))

    def target(self, image_features: Tensor) -> Tensor:
        """Return F_I as the cosine sees it, (B, D) or (B, N) when whitened."""
        centred = image_features.float() - self.centre
        return centred @ self.directions if self.config.whitened else centred

    def measure(self, image_features: Tensor) -> None:
        """Set the centre and the whitening directions from the features (N, D) that the mapper is fitted on.

        Raises:
            SettingError: more whitened directions than these images differ in; one more would be rounding, divided by
                next to nothing.
        """
        if not (self.config.centred or self.config.whitened):
            return
        self.centre.copy_(image_features.mean(dim=0))
        if self.config.whitened:
            _, spread, axes = torch.linalg.svd(image_features.float() - self.centre, full_matrices=False)
            rounding = torch.finfo(spread.dtype).eps * image_features.shape[1] * spread[0]
            rank = int((spread > rounding).sum())
            if self.config.whitened > rank:
                raise SettingError(
                    f"--whitened {self.config.whitened} needs images that differ in so many directions; these "
                    f"{len(image_features)}, with {image_features.shape[1]} features each, differ in {rank}"
                )
            scale = spread[: self.config.whitened] / len(image_features) ** 0.5
            self.directions.copy_((axes[: self.config.whitened] / scale[:, None]).T)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Compute F_T_hat, (B, D) or (B, N), from the states (B, T, H) and mask (B, T) of the captions' tokens."""
        hidden = hidden.float()
        if self.config.caption_pool == "last":
            last = mask.long().sum(dim=1).clamp(min=1) - 1
            return self.h(hidden[torch.arange(len(hidden), device=hidden.device), last])
        if self.config.caption_pool == "tokens":
            return masked_mean(self.h(hidden), mask)
        return self.h(masked_mean(hidden, mask))

    def cosine(self, hidden: Tensor, mask: Tensor, image_features: Tensor) -> Tensor:
        """Compute cos(F_I, F_T_hat), (B,), with F_I centred and whitened as configured."""
        return F.cosine_similarity(self.target(image_features), self(hidden, mask), dim=-1)

    def image_features(self, captioner: Captioner, images: Any) -> Tensor:
        """Compute F_I as this mapper wants it, (B, D) float32, without an adapter, which may bring a connector."""
        with captioner.disable_adapter():
            return captioner.image_features(images, where=self.config.feature, pool=self.config.pool)

    def score(self, captioner: Captioner, batch: Any) -> Tensor:
        """Compute cos(F_I, F_T_hat) of a batch of images with captions (`prepare`, `append`), (B,); gradients flow."""
        hidden, mask = captioner.caption_hidden_states(batch, blind=self.config.blind, shift=self.config.shift)
        return self.cosine(hidden, mask, self.image_features(captioner, batch))

    def save(self, folder: str | Path) -> Path:
        """Write `mapper.safetensors` and `config.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "mapper.safetensors")
        sizes = {name: getattr(self, name) for name in SIZES}
        (folder / "config.json").write_text(json.dumps({**asdict(self.config), **sizes}, indent=2) + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Mapper:
        """Read what `save` wrote.

        Raises:
            CaptionerError: names the file that is missing, or what is wrong with it.
        """
        folder = Path(folder)
        for name in ("config.json", "mapper.safetensors"):
            if not (folder / name).is_file():
                raise CaptionerError(
                    f"{folder} holds no mapper: {name} is missing. "
                    "A mapper is what `captune vizer` leaves in <output>/mapper."
                )
        try:
            settings = dict(read_json(folder / "config.json", error=CaptionerError))
            sizes = {name: settings.pop(name) for name in SIZES[:3]}
            sizes |= {name: settings.pop(name, None) for name in SIZES[3:]}
            known = {key: value for key, value in settings.items() if key in MapperConfig.__dataclass_fields__}
            mapper = cls(MapperConfig(**known), **sizes)
        except CaptionerError:
            raise
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            why = f"{type(error).__name__}: {first_line(error)}"
            raise CaptionerError(
                f"{folder / 'config.json'} is not the config of a mapper ({why}). {_FIT_AGAIN}"
            ) from error
        file = folder / "mapper.safetensors"
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise CaptionerError(f"the mapper's file {file} is damaged: {first_line(error)}. {_FIT_AGAIN}") from error
        check_keys(tensors, mapper.state_dict(), what=f"mapper {folder}", remedy=_FIT_AGAIN, error=CaptionerError)
        mapper.load_state_dict(tensors)
        return mapper.eval().requires_grad_(False)

    def check_captioner(self, captioner: Captioner) -> None:
        """Raise CaptionerError if the captioner has other weights than the one that the mapper was fitted on."""
        if self.captioner_digest is None:
            return
        digest = captioner.base_digest()
        if digest is not None and digest != self.captioner_digest:
            raise CaptionerError(
                f"the mapper was fitted on {self.captioner_name} with other weights (digest {self.captioner_digest}) "
                f"than those of {captioner.name} ({digest}): its number would mean nothing. {_FIT_AGAIN}"
            )

    @property
    def digest(self) -> str:
        """8 hex digits of the weights."""
        return weights_digest(self.state_dict(), types=True, unused=())


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average values (B, T, X) over the positions of a mask (B, T): (B, X)."""
    weights = mask.to(values.dtype).unsqueeze(-1)
    return (values * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
