"""Digests of content: figures and caches are keyed by content, since two things may have one name.

`identity` is what decides a model's answers, whatever its kind: signatures, cache keys and the settings of caption
files all take it from here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

_SAMPLED = 4096  # values of each parameter that a sampled digest reads
#: where a thing lies, or who wrote it, decides nothing
_ELSEWHERE = frozenset((
    "_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "_from_model_config", "architectures",
    "processor_class", "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file", "tokenizer_class",
    "auto_map", "local_files_only", "torch_dtype", "backend", "is_local", "__version__",
))  # fmt: skip


def identity(*parts: Any, unused: tuple[str, ...] = ("pooler",), **settings: Any) -> str:
    """Return 8 hex digits that change with whatever decides the answers of a model.

    Args:
        parts: models (weights, types, configuration, generation settings, pooling), tokenizers (vocabulary, rules,
            added and special tokens, length, template), processors (all settings), texts, or mappings of them.
        unused: parts of weights' names that are not read: a pooler that was not saved is initialised at random.
        settings: what else decides: a prompt, a layer, a pooling.
    """
    return hashlib.sha256(b"\0".join(_described(part, unused) for part in (*parts, settings))).hexdigest()[:8]


def _described(part: Any, unused: tuple[str, ...] = ()) -> bytes:
    """A text, or a digest, of what decides the behaviour of one part."""
    if hasattr(part, "state_dict"):
        weights = weights_digest(part.state_dict(), types=True, unused=unused)
        return b"\n".join([weights.encode(), *_module_settings(part)])
    if hasattr(part, "get_vocab"):
        return _json(tokenizer_settings(part))
    if hasattr(part, "to_dict"):
        return _json(part.to_dict())
    return part if isinstance(part, bytes) else _json(part)


def _module_settings(module: Any) -> Iterator[bytes]:
    for name in ("config", "generation_config"):
        if hasattr(getattr(module, name, None), "to_dict"):
            yield _json(getattr(module, name).to_dict())
    if hasattr(module, "default_prompt_name"):  # of sentence-transformers
        yield _json([module.prompts, module.default_prompt_name])
        for child in module.children():  # the transformer, its pooling, normalisation and the like
            yield _json([type(child).__name__, child.get_config_dict() if hasattr(child, "get_config_dict") else None])
            yield from _module_settings(child)


def tokenizer_settings(tokenizer: Any) -> dict[str, Any]:
    """Return what decides a tokenizer's tokens, as JSON; what a call leaves behind (padding, truncation) is not it."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    rules: Any = tokenizer.get_vocab()
    if hasattr(backend, "to_str"):
        rules = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("padding", "truncation")}
    names = ("model_max_length", "padding_side", "truncation_side", "chat_template", "special_tokens_map",
             "clean_up_tokenization_spaces", "add_bos_token", "add_eos_token", "split_special_tokens")  # fmt: skip
    return {"rules": rules, "class": type(tokenizer).__name__, **{n: getattr(tokenizer, n, None) for n in names}}


def settings_digest(part: Any) -> str | None:
    """Return 16 hex digits of a tokenizer's or processor's settings; None without one."""
    return None if part is None else hashlib.sha256(_described(part)).hexdigest()[:16]


def _json(value: Any) -> bytes:
    return json.dumps(_placeless(value), sort_keys=True, default=str).encode()


def _placeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _placeless(entry) for key, entry in value.items() if key not in _ELSEWHERE}
    return [_placeless(entry) for entry in value] if isinstance(value, list | tuple) else value


def weights_digest(state: Mapping[str, Any], *, types: bool = False, unused: tuple[str, ...] = ("pooler",)) -> str:
    """Return the first 8 hex digits of a SHA-256 of a model's weights (its `state_dict`).

    Args:
        state: tensors by name.
        types: whether shapes and types count, too.
        unused: parts of names that do not count.
    """
    import torch

    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        if any(part in key.split(".") for part in unused):
            continue
        digest.update(key.encode())
        if types:
            digest.update(f" {tuple(value.shape)} {value.dtype} ".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:8]


def weights_mark(model: Any) -> str:
    """Return a short digest of a model's weights: names, shapes, up to 4,096 evenly spaced values of each parameter.

    Fractions of a second for billions of parameters; two fine-tunings differ in nearly every value of what they train.
    """
    import torch

    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = _sample(parameter).contiguous().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def base_digest(model: Any) -> str:
    """Return a sampled digest of a base model's weights that neither names nor the precision of loading change."""
    import torch

    tensors = []
    for _, parameter in model.named_parameters():
        values = _sample(parameter).to(torch.bfloat16).contiguous().cpu()
        tensors.append(
            hashlib.sha256(str(tuple(parameter.shape)).encode() + values.view(torch.uint8).numpy().tobytes())
        )
    return hashlib.sha256(b"".join(sorted(tensor.digest() for tensor in tensors))).hexdigest()[:16]


def _sample(parameter: Any) -> Any:
    values = parameter.detach().reshape(-1)
    return values[:: max(1, values.numel() // _SAMPLED)]


def fingerprint(data: str | bytes) -> str:
    """Return 8 hex digits that change with the data."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:8]


def pixels_digest(image: Image) -> bytes:
    """Return 16 bytes that stand for an image's mode, size and pixels."""
    return hashlib.blake2b(f"{image.mode} {image.size} ".encode() + image.tobytes(), digest_size=16).digest()
