"""Where captions are made: in this process, at a server, by vLLM; what each cannot do is refused before it starts.

Nothing heavy is imported until an engine is loaded.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from captune.errors import SettingError, redact
from captune.models.server import ChatServer, is_server

ENGINES = ("process", "server", "vllm")
_LIKE_AN_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://|(https?:|[\w.-]+:\d+/)[^#]*#", re.IGNORECASE)
#: what each flag says when an engine has no use for it
_ELSEWHERE = {
    "adapter": "start the server with the adapter and name it after the #",
    "dtype": "the server has its own",
    "device": "the server has its own",
    "trust_remote_code": "the server has its own",
}


def ray_engine(engine: str | None) -> tuple[bool, str | None]:
    """Return whether an engine is Ray's, and the engine that each of its workers holds: ``ray`` or ``ray:vllm``."""
    name, colon, inside = (engine or "").partition(":")
    return (True, inside if colon else None) if name == "ray" else (False, engine)


def pick_engine(engine: str | None, model: str | Path | None) -> str:
    """Return the engine that is named, or that the model implies: a server for an address, else this process.

    Raises:
        SettingError: an unknown engine, or one that the model does not fit.
    """
    served = model is not None and is_server(str(model))
    if not served and _LIKE_AN_ADDRESS.match(str(model)):
        raise SettingError(
            f"{redact(str(model))!r} looks like a server's address, which begins with http:// or https://: write it "
            "as http://host:port/v1#name"
        )
    if engine is None:
        engine = "server" if served else "process"
    if engine not in ENGINES:
        raise SettingError(f"unknown engine {engine!r} (known: {', '.join(ENGINES)}, ray)")
    if engine == "server" and not served:
        raise SettingError("the engine server needs an address as the model: http://host:port/v1#model-name")
    if engine in ("process", "vllm") and served:
        raise SettingError(f"the engine {engine} loads a folder or a hub name, and {redact(str(model))} is an address")
    return engine


def check_engine(
    engine: str,
    model: str | Path | None,
    *,
    decoder: str | None = None,
    adapter: str | Path | None = None,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    requests: int | None = None,
    **generation: Any,
) -> None:
    """Refuse what an engine cannot do; nothing is loaded or asked.

    Args:
        engine: from `pick_engine`.
        model: a folder, a hub name, or a server's address.
        decoder: a decoder's spec.
        adapter: a PEFT adapter.
        dtype: of the weights.
        device: of the model.
        trust_remote_code: run the Python code that a model folder brings.
        requests: at a server at once.
        generation: settings of `generate`, as far as they are known.

    Raises:
        SettingError: says which setting and what to do.
    """
    if engine != "server" and requests is not None:
        raise SettingError("requests counts those at a server at once, and the model is no server")
    if engine == "process":
        return
    if decoder is not None:
        from captune.decoding import DECODERS

        name = decoder.strip().partition(":")[0]
        if getattr(DECODERS[name], "needs_model", True):
            raise SettingError(
                f"the decoder {name} works inside the model, and the engine {engine} gives samples and "
                "log-probabilities only: name a folder or a hub name as the model, with the engine process"
            )
    if generation.get("num_beams") not in (None, 1):
        raise SettingError(f"the engine {engine} has no beam search: leave num_beams out, or use the engine process")
    if engine == "server":
        ChatServer(str(model), workers=1 if requests is None else requests)
        for name, given in (
            ("adapter", adapter is not None),
            ("dtype", dtype != "auto"),
            ("device", device is not None),
            ("trust_remote_code", trust_remote_code),
        ):
            if given:
                raise SettingError(f"{name} is of no use with a server: {_ELSEWHERE[name]}")
    if engine == "vllm":
        if device is not None:
            raise SettingError("vLLM picks the device itself: leave device out, or set CUDA_VISIBLE_DEVICES")
        if importlib.util.find_spec("vllm") is None:
            raise SettingError(
                "the engine vllm needs the package vllm, which brings its own torch: pip install 'captune[vllm]' in an "
                "environment of its own, on a machine with a GPU"
            )


def load_captioner(
    engine: str,
    model: str | Path,
    *,
    adapter: str | Path | None = None,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    prompt: str | None = None,
    requests: int | None = None,
) -> Any:
    """Load the captioner of an engine, or reach it.

    Args:
        engine: from `pick_engine`; the other arguments are those of `check_engine`, which comes first.
        model: a folder, a hub name, or a server's address.
        adapter: a PEFT adapter.
        dtype: of the weights.
        device: of the model.
        trust_remote_code: run the Python code that a model folder brings.
        prompt: the text beside the image.
        requests: at a server at once.

    Raises:
        CaptionerError: the model cannot be loaded.
        ServerError: the server does not answer.
    """
    if engine == "server":
        from captune.models.server_captioner import ServerCaptioner

        served = ServerCaptioner(str(model), prompt=prompt, **({} if requests is None else {"workers": requests}))
        served.check()
        return served
    if engine == "vllm":
        from captune.models.vllm_captioner import VllmCaptioner

        return VllmCaptioner.load(
            model, adapter=adapter, dtype=dtype, trust_remote_code=trust_remote_code, prompt=prompt
        )
    from captune.models.captioner import Captioner

    return Captioner.load(
        model, adapter=adapter, dtype=dtype, device=device, trust_remote_code=trust_remote_code, prompt=prompt
    )
