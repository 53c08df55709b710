"""Load a model, its processor and its adapter; every failure is one sentence that says what to do."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

import captune.models.prefix_captioner  # noqa: F401  registers its model with the Auto classes
from captune.errors import CaptionerError, first_line
from captune.models.families import FAMILIES
from captune.models.hub import is_local

logger = logging.getLogger(__name__)


def load_model(
    source: str, *, dtype: str | torch.dtype, trust_remote_code: bool, four_bit_device: torch.device | None = None
) -> tuple[PreTrainedModel, Any]:
    """Load the model, from safetensors only, and the processor of a resolved source.

    Args:
        source: from `captune.models.hub.resolve`.
        dtype: of the weights.
        trust_remote_code: run the code that the folder brings.
        four_bit_device: load the language model's linear layers in 4 bits on this device; default: all as saved, on
            the CPU.

    Raises:
        CaptionerError: says what is missing and what to do about it.
    """
    folder = Path(source) if Path(source).is_dir() else None
    remote: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    config = _try(lambda: AutoConfig.from_pretrained(source, **remote), source, folder, "configuration")
    known = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if not known and "AutoModelForImageTextToText" not in (getattr(config, "auto_map", None) or {}):
        raise CaptionerError(
            f"{source} is no image-text-to-text model but {config.model_type!r} "
            f"({', '.join(config.architectures or ['no architecture named'])}); captune needs a model that "
            "AutoModelForImageTextToText loads, for example HuggingFaceTB/SmolVLM-Base."
        )
    processor = _try(lambda: AutoProcessor.from_pretrained(source, **remote), source, folder, "processor")
    missing = [part for part in ("image_processor", "tokenizer") if getattr(processor, part, None) is None]
    if missing:
        raise CaptionerError(
            f"{source} has no complete processor: {' and '.join(missing)} missing. Save it there with "
            "AutoProcessor.from_pretrained(<original model>).save_pretrained(<folder>)."
        )
    if four_bit_device is not None:
        remote |= {"quantization_config": _four_bit(config.model_type), "device_map": {"": four_bit_device}}
    model, info = _try(
        lambda: AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True, **remote
        ),
        source,
        folder,
        "weights (*.safetensors)",
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        names = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise CaptionerError(
            f"the weights of {source} do not fit {type(model).__name__}: {len(names)} tensors are missing or have "
            f"another shape ({', '.join(names[:3])}, ...). An incomplete download, or another model's config."
        )
    return model, processor


def _four_bit(model_type: str) -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise CaptionerError("load-in-4bit needs bitsandbytes, which is not installed; run: pip install bitsandbytes")
    row = FAMILIES.get(model_type)
    # the vision side stays as it is: its features are shared, and small beside the language model
    skipped = [row.vision, *row.connector, "lm_head"] if row else None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=skipped,
    )


def load_adapter(model: PreTrainedModel, adapter: str | Path, *, trainable: bool) -> PeftModel:
    """Wrap the model with the PEFT adapter saved in a folder or on the hub.

    Raises:
        CaptionerError: the adapter does not exist, is damaged, or belongs to another model.
    """
    name = str(adapter)
    folder = Path(name).expanduser() if Path(name).expanduser().is_dir() else None
    if folder is None and is_local(name, bare=False):
        raise CaptionerError(f"adapter folder {name!r} does not exist")
    if folder:
        name = str(folder)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            if not (folder / file).is_file():
                raise CaptionerError(f"{name} is not an adapter folder: it has no {file} (write one with save_adapter)")
        try:
            json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise CaptionerError(f"{name}/adapter_config.json is not valid JSON: {error}") from error
    try:
        return PeftModel.from_pretrained(model, name, is_trainable=trainable, use_safetensors=True)
    except OSError as error:
        raise CaptionerError(_unreachable(name, "adapter", error)) from error
    except SafetensorError as error:
        raise CaptionerError(f"the adapter file in {name} is damaged: {first_line(error)}") from error
    except (ValueError, RuntimeError, KeyError) as error:
        raise CaptionerError(
            f"adapter {name} does not fit {type(model).__name__}; it was trained on another model. {first_line(error)}"
        ) from error


def _try(load: Any, source: str, folder: Path | None, what: str) -> Any:
    try:
        return load()
    except ImportError as error:
        raise CaptionerError(
            f"the {what} of {source} needs a package that is not installed: {first_line(error)}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise CaptionerError(
                f"{source} brings its own Python code, which captune does not run unless asked to: read that code, "
                "then pass trust_remote_code=True."
            ) from error
        if folder is None and isinstance(error, OSError):
            raise CaptionerError(_unreachable(source, what, error)) from error
        raise CaptionerError(f"the {what} in {source} cannot be loaded: {first_line(error)}") from error


def _unreachable(source: str, what: str, error: Exception) -> str:
    return (
        f"the {what} of {source} cannot be had from the hub (out of reach, no such model, or access not granted). "
        f"On a machine with access run `hf download {source} --local-dir <folder>` and pass that folder. "
        f"The hub client said: {first_line(error)}"
    )
