"""Load a model, its processor and its adapter; every failure is one sentence that says what to do."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

import captune.models.prefix_captioner  # noqa: F401  registers its model with the Auto classes
from captune.errors import CaptionerError, first_line, redact
from captune.models.families import FAMILIES
from captune.models.hub import is_local
from captune.utils.files import read_json, replace_file
from captune.utils.hashing import base_digest
from captune.utils.loads import check_finite, check_model, few, refuse

BASE_FILE = "base_model.json"  # beside an adapter: which weights it was trained on
MOST_LAYERS = 1000
_RETRAIN = "Name the whole adapter folder of this very model, or train it again."

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
    _check_sizes(config, source)
    known = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if not known and "AutoModelForImageTextToText" not in (getattr(config, "auto_map", None) or {}):
        raise CaptionerError(
            f"{source} is no image-text-to-text model but {config.model_type!r} "
            f"({', '.join(config.architectures or ['no architecture named'])}); captune needs a model that "
            "AutoModelForImageTextToText loads, for example HuggingFaceTB/SmolVLM-Base."
        )
    if known and folder is not None:
        _check_weights(config, folder)
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
    if info["unexpected_keys"]:
        logger.warning(
            "%s has %d tensors that %s does not use", source, len(info["unexpected_keys"]), type(model).__name__
        )
    check_model(model, info, what=f"the weights of {source} as {type(model).__name__}", error=CaptionerError)
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
        CaptionerError: the adapter does not exist, is damaged or not whole, or belongs to another model.
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
        _json_object(folder / "adapter_config.json")
    base = base_record(model)
    if folder:
        _same_base(model, name, folder, base)
    try:
        wrapped = PeftModel.from_pretrained(model, name, is_trainable=trainable, use_safetensors=True)
    except OSError as error:
        raise CaptionerError(_unreachable(name, "adapter", error)) from error
    except SafetensorError as error:
        raise CaptionerError(f"the adapter file in {name} is damaged: {first_line(error)}") from error
    except Exception as error:  # also what a pattern of modules, or PEFT's configuration, stumbles over
        if str(error).startswith("Can't find"):  # peft, of a hub name
            raise CaptionerError(f"there is no folder {name}, and {_unreachable(name, 'adapter', error)}") from error
        raise _unfit(name, model, error) from error
    if not folder:
        _same_base(model, name, None, base)
    mapping = getattr(model, "_checkpoint_conversion_mapping", None)
    fill_adapter(wrapped, name, key_mapping=mapping or None)
    wrapped.base_record = base  # type: ignore[assignment]
    return wrapped


def fill_adapter(model: PeftModel, name: str, *, key_mapping: dict[str, str] | None = None) -> None:
    """Put saved weights into the adapter that a model has: all of them, or none is accepted.

    Args:
        model: with an adapter called "default".
        name: the adapter's folder or hub name.
        key_mapping: of former names of the base model's modules.

    Raises:
        CaptionerError: names the tensors that are missing, not of this model, of another shape, or not finite.
    """
    what = f"adapter {name}"
    try:
        weights = load_peft_weights(name, device="cpu", key_mapping=key_mapping)
        check_finite(weights.items(), what=what, error=CaptionerError)
        result: Any = set_peft_model_state_dict(model, weights)
    except SafetensorError as error:
        raise CaptionerError(f"the adapter file in {name} is damaged: {first_line(error)}") from error
    except (ValueError, RuntimeError, KeyError) as error:
        if isinstance(error, CaptionerError):
            raise
        raise _unfit(name, model.get_base_model(), error) from error
    prefix = getattr(model.base_model, "prefix", None) or "lora_"
    own = [key for key in result.missing_keys if ".default" in key and (prefix in key or ".modules_to_save." in key)]
    refuse(what, own, result.unexpected_keys, remedy=_RETRAIN, error=CaptionerError)


def base_record(model: PreTrainedModel) -> dict[str, Any]:
    """Return what an adapter remembers of its base: a digest of the weights, None where these are in 4 bits."""
    digest = None if getattr(model, "is_loaded_in_4bit", False) else base_digest(model)
    return {"digest": digest, "dtype": str(model.dtype).removeprefix("torch.")}


def write_base_record(folder: Path, record: dict[str, Any] | None) -> None:
    """Write the record beside an adapter, where PEFT does not look; no file without a record."""
    if record is not None:
        replace_file(folder / BASE_FILE, json.dumps(record, indent=1) + "\n")


def _same_base(model: PreTrainedModel, name: str, folder: Path | None, base: dict[str, Any]) -> None:
    """Refuse an adapter of other base weights, which would load where all shapes are equal."""
    record = _json_object(folder / BASE_FILE) if folder and (folder / BASE_FILE).is_file() else {}
    then, now = record.get("digest"), base["digest"]
    rounded = record.get("dtype") != base["dtype"] and "float16" in (record.get("dtype"), base["dtype"])
    if then is None or now is None or rounded:
        logger.warning(
            "adapter %s does not say which weights it was trained on; of other weights than these of %s it makes no "
            "sense, and nothing would show it",
            name,
            model.config._name_or_path or type(model).__name__,
        )
    elif then != now:
        raise CaptionerError(
            f"adapter {name} was trained on other weights (digest {then}) than those of this "
            f"{type(model).__name__} ({now}): name the model that it was trained on"
        )


def _json_object(path: Path) -> dict[str, Any]:
    content = read_json(path, error=CaptionerError)
    if not isinstance(content, dict):
        raise CaptionerError(f"{path} is no JSON object but {type(content).__name__}")
    return content


def _unfit(name: str, model: Any, error: Exception) -> CaptionerError:
    shapes = re.findall(r"size mismatch for (\S+):", str(error))
    why = f"{len(shapes)} tensors are of another shape ({few(shapes)})" if shapes else first_line(error)
    return CaptionerError(f"adapter {name} does not fit {type(model).__name__}; it was trained on another model. {why}")


def _try(load: Any, source: str, folder: Path | None, what: str) -> Any:
    try:
        return load()
    except ImportError as error:
        raise CaptionerError(
            f"the {what} of {source} needs a package that is not installed: {first_line(error)}"
        ) from error
    except CaptionerError:
        raise
    except Exception as error:  # transformers, tokenizers and safetensors each have classes of their own
        if "trust_remote_code" in str(error):
            raise CaptionerError(
                f"{source} brings its own Python code, which captune does not run unless asked to: read that code, "
                "then pass --trust-remote-code (in Python trust_remote_code=True)."
            ) from error
        if folder is None and isinstance(error, OSError):
            raise CaptionerError(_unreachable(source, what, error)) from error
        raise CaptionerError(f"the {what} in {source} cannot be loaded: {_lines(error)}") from error


def _lines(error: Exception) -> str:
    """What an error says, in one line of at most 300 characters."""
    return redact(" ".join(str(error).split())[:300]) or type(error).__name__


def _check_weights(config: Any, folder: Path) -> None:
    """Refuse a configuration of a far larger model than its weights, which would fill the memory with random ones."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))

    def build() -> int:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        return sum(weight.numel() for weight in model.parameters())

    number = _try(build, str(folder), folder, "configuration")
    if size and number > 4 * size:  # a weight of 4 bits is half a byte
        raise CaptionerError(
            f"the configuration in {folder} is of a model of {number:,} weights, for which its *.safetensors of "
            f"{size:,} bytes are too small: it belongs to another model, or the download is incomplete"
        )


def _check_sizes(config: Any, source: str) -> None:
    """Refuse a configuration that would be built for hours before its weights are found missing."""
    pending = [("", config.to_dict())]
    while pending:
        place, values = pending.pop()
        for key, value in values.items():
            if isinstance(value, dict):
                pending.append((f"{place}{key}.", value))
            elif (
                re.search("layers|depth|blocks", str(key)) and isinstance(value, int) and not 0 <= value <= MOST_LAYERS
            ):
                raise CaptionerError(
                    f"the configuration in {source} has {place}{key} = {value}, not 0 to {MOST_LAYERS} "
                    f"layers: correct its config.json or download it again"
                )


def _unreachable(source: str, what: str, error: Exception) -> str:
    return (
        f"the {what} of {source} cannot be had from the hub (out of reach, no such model, or access not granted). "
        f"On a machine with access run `hf download {source} --local-dir <folder>` and pass that folder. "
        f"The hub client said: {first_line(error)}"
    )
