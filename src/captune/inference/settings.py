"""What decides the captions in a file, written beside it, so that no run mixes in those of another captioner."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from captune.data.lines import CAPTIONS, Kind
from captune.data.naming import absolute
from captune.decoding import Decoder
from captune.errors import CaptionFileError, redact
from captune.utils.files import replace_file
from captune.utils.hashing import settings_digest, weights_mark


def job_settings(
    captioner: Any, source: Any, seed: int | None, generation: dict[str, Any], decoder: Decoder | None = None
) -> dict[str, Any]:
    """Return what decides the captions. ``model`` is the name for people; a digest stands for the weights."""
    processor = getattr(captioner, "processor", None)
    images: dict[str, Any] = getattr(getattr(processor, "image_processor", None), "to_dict", dict)()
    prompt = getattr(captioner, "prompt_text", None)
    model, torch = getattr(captioner, "model", None), sys.modules.get("torch")
    config = getattr(model, "generation_config", None)
    tokenizer = getattr(captioner, "tokenizer", getattr(processor, "tokenizer", None))
    return {
        "model": str(getattr(captioner, "name", type(captioner).__name__)),
        "weights": weights_mark(model)
        if torch is not None and isinstance(model, torch.nn.Module)
        else getattr(captioner, "weights", None),  # of an engine elsewhere
        "tokenizer": settings_digest(tokenizer) if hasattr(tokenizer, "get_vocab") else None,
        "dtype": str(getattr(captioner, "dtype", None)),
        "image encoder": getattr(getattr(captioner, "encoder", None), "digest", None),  # zerocap's
        "prompt": prompt() if callable(prompt) else getattr(captioner, "prompt", None),
        "image processor": _mark(json.dumps(images, sort_keys=True, default=str)),
        "generation": {key: generation[key] for key in sorted(generation)},
        "generation config": _mark(config.to_json_string(ignore_metadata=True)) if config is not None else None,
        "decoder": None if decoder is None else redact(decoder.signature),
        "seed": seed,
        "source": _source_name(source),
        **({"classes": list(captioner.classes)} if hasattr(captioner, "classes") else {}),  # of a detector
    }


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _source_name(source: Any) -> str | None:
    """Return the source as written, a local path made absolute; None for a dataset object, which has no name."""
    if not isinstance(source, str | Path):
        return None
    return redact(absolute(str(source)))


def beside(output: Path, suffix: str) -> Path:
    """Return the path of a companion file: caps.jsonl -> caps.jsonl.SUFFIX."""
    return output.with_name(f"{output.name}.{suffix}")


def same_settings(output: Path, settings: dict[str, Any], kind: Kind = CAPTIONS) -> None:
    """Check that the captions in a file, or in the journal that it is made of, were made with these settings.

    Raises:
        CaptionFileError: they were not, or nothing says how they were made.
    """
    files = (output, beside(output, "jsonl"))
    if not any(file.exists() and file.stat().st_size for file in files):
        return
    remedy = "name another output, or pass --overwrite to replace it"
    path = beside(output, "settings.json")
    if not path.exists():
        raise CaptionFileError(
            f"{output} holds {kind.nouns}, but {path.name} that says how they were made is missing; {remedy}"
        )
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CaptionFileError(f"{path} is not valid JSON ({error}); {remedy}") from error
    new = json.loads(json.dumps(settings))
    if not isinstance(old, dict):
        raise CaptionFileError(f"{path} is no JSON object but {type(old).__name__}; {remedy}")
    old = {
        **{key: new.get(key) for key in ("tokenizer", "image encoder")},
        **old,
    }  # files from before captions' settings knew it
    if changed := differences(old, new):
        raise CaptionFileError(f"{output} was made with other settings ({changed}); {remedy}")


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return in words what of new settings was otherwise, and of settings within one those alone; "" for nothing."""
    found: list[str] = []
    for key, now in new.items():
        then = old.get(key)
        if isinstance(then, dict) and isinstance(now, dict):
            found.append(differences(then, dict.fromkeys(then) | now))
        elif key != "model" and then != now:
            of = [f" of {side.get('model')}" if key == "weights" else "" for side in (old, new)]  # a digest says little
            then, now = ("none" if value is None else repr(value) for value in (then, now))
            found.append(f"{key}: {then}{of[0]} then, {now}{of[1]} now")
    return "; ".join(filter(None, found))


def write_settings(output: Path, settings: dict[str, Any]) -> None:
    """Write them beside the file, in one step."""
    replace_file(beside(output, "settings.json"), json.dumps(settings, indent=1, sort_keys=True) + "\n")
