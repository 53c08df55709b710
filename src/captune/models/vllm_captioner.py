"""A captioner in vLLM's offline engine: `Captioner.generate`'s captions, with vLLM's batching and kernels.

The prompt is the one that `Captioner` builds, by the same chat template, as token ids with a place for the image; vLLM
runs the processor. A caption is one request with a seed of its own. Written against the signatures of vLLM 0.11
(`LLM`, `SamplingParams`, `LoRARequest`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import xxhash
from PIL import Image
from transformers import AutoConfig, AutoProcessor, GenerationConfig

from captune.data.images import upright_rgb
from captune.errors import CaptionerError, first_line
from captune.models import hub
from captune.models.condition import read_condition, read_prompt
from captune.models.families import FAMILIES
from captune.models.plain_text import plain
from captune.models.requests import MAX_NEW_TOKENS, PROMPT, request_settings, sample_seed
from captune.utils.files import read_json

if TYPE_CHECKING:
    import torch

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of LoRA adapters, as vLLM reserves room for them
logger = logging.getLogger(__name__)
_NEVER = -100.0  # the lowest bias that vLLM takes


def engine_arguments(source: str, *, dtype: str, trust_remote_code: bool, rank: int | None) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM`.

    Args:
        source: a folder or a hub name.
        dtype: of the weights.
        trust_remote_code: run the code that the folder brings.
        rank: of the LoRA adapter, if there is one.

    Raises:
        CaptionerError: a rank that vLLM does not serve.
    """
    arguments: dict[str, Any] = {
        "model": source,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "limit_mm_per_prompt": {"image": 1},
        "generation_config": "vllm",  # a checkpoint's own changes no decoding
        "seed": 0,
    }
    if rank is not None:
        room = next((room for room in _RANKS if room >= rank), None)
        if room is None:
            raise CaptionerError(
                f"vLLM serves adapters of rank {_RANKS[-1]} at most, not {rank}: captune merge it first"
            )
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}
    return arguments


def adapter_rank(adapter: str | Path) -> int:
    """Return the rank of a LoRA adapter that vLLM can apply as it is.

    Raises:
        CaptionerError: the adapter is no folder, or holds more than LoRA matrices.
    """
    folder = Path(adapter).expanduser()
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise CaptionerError(f"{adapter} is not an adapter folder: it has no adapter_config.json")
    config = read_json(file)
    more = [key for key in ("modules_to_save", "use_dora") if config.get(key)]
    more += ["bias"] if config.get("bias", "none") != "none" else []
    if config.get("peft_type") != "LORA" or more or not isinstance(config.get("r"), int):
        what = " and ".join(more) or str(config.get("peft_type"))
        raise CaptionerError(
            f"vLLM applies plain LoRA adapters only, and {adapter} has {what}: merge it first (captune merge --model "
            f"... --adapter {adapter} --output FOLDER) and name the merged folder"
        )
    return int(config["r"])


class VllmCaptioner:
    """A vision-language model in vLLM, in the place of a `Captioner`.

    Attributes:
        name: what the user called it.
        prompt: the text beside the image.
        weights: what stands for the weights in a caption file's settings.
        seeded: `generate` takes a seed.
        least_batch: so many images at least keep the engine busy.

    Args:
        engine: a `vllm.LLM`.
        processor: image processor and tokenizer, with a chat template.
        model_type: of the configuration, whose family names the prompt.
        image_token_id: of the token that stands for an image.
        name: what the user calls it.
        prompt: the text beside the image; default: the family's.
        eos_ids: the tokens that end a caption beside the tokenizer's.
        max_new_tokens: of a caption, if the caller does not say.
        lora: a `LoRARequest`.
        weights: see above.
    """

    seeded = True
    least_batch = 256

    def __init__(
        self,
        engine: Any,
        processor: Any,
        *,
        model_type: str = "",
        image_token_id: int | None = None,
        name: str = "",
        prompt: str | None = None,
        eos_ids: Sequence[int] = (),
        max_new_tokens: int | None = None,
        lora: Any = None,
        weights: str = "",
    ) -> None:
        self.engine, self.processor, self.tokenizer, self.name = engine, processor, processor.tokenizer, name
        family = FAMILIES.get(model_type)
        if getattr(processor, "chat_template", None) is None:
            if family is None or family.chat_template is None:
                raise CaptionerError(f"no prompt is known for model type {model_type!r}: its processor has no template")
            processor.chat_template = family.chat_template
        self.turns = self._render([], False) != self._render([], True)
        default = (family.prompt if family else PROMPT) if self.turns else (family.base_prompt if family else "")
        self.prompt = default if prompt is None else prompt
        self.image_token_id, self.lora, self.weights = image_token_id, lora, weights
        self.eos_ids = sorted({*eos_ids, *([self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id else [])})
        self.max_new_tokens = max_new_tokens or (family.max_new_tokens if family else MAX_NEW_TOKENS)

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        adapter: str | Path | None = None,
        dtype: str = "auto",
        trust_remote_code: bool = False,
        prompt: str | None = None,
    ) -> VllmCaptioner:
        """Load a folder, a hub name or a shipped model into vLLM, with a LoRA adapter if one is named.

        Raises:
            CaptionerError: vLLM is not installed or cannot load the model, or the adapter is of another kind.
        """
        try:
            from vllm import LLM
            from vllm.lora.request import LoRARequest
        except ImportError as error:
            raise CaptionerError(
                f"vLLM cannot be imported ({first_line(error)}): pip install 'captune[vllm]'"
            ) from error
        source = hub.resolve(name_or_path, bare=False)
        rank = None if adapter is None else adapter_rank(adapter)
        remote: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        try:
            config = AutoConfig.from_pretrained(source, **remote)
            processor = AutoProcessor.from_pretrained(source, **remote)
            arguments = engine_arguments(source, dtype=dtype, trust_remote_code=trust_remote_code, rank=rank)
            engine = LLM(**arguments)
        except CaptionerError:
            raise
        except Exception as error:  # whatever the engine's start raises: memory, drivers, unknown architectures
            raise CaptionerError(f"vLLM cannot load {name_or_path}: {first_line(error)}") from error
        if prompt is None:
            condition = read_condition(adapter) or read_condition(source)
            prompt = condition.prompts[condition.highest] if condition else read_prompt(adapter)
            if prompt is None:
                prompt = read_prompt(source)
            if prompt is not None:
                logger.warning("%s was trained under the prompt %r: it is asked with it", adapter or source, prompt)
        generation = _generation_config(source)
        weights = [_files_mark(source, config), *([] if adapter is None else [_files_mark(str(adapter))])]
        named = getattr(generation, "eos_token_id", None)
        return cls(
            engine,
            processor,
            model_type=config.model_type,
            image_token_id=getattr(config, "image_token_id", None),
            name=str(name_or_path),
            prompt=prompt,
            eos_ids=[] if named is None else named if isinstance(named, list) else [named],
            max_new_tokens=getattr(generation, "max_new_tokens", None),
            lora=None if adapter is None else LoRARequest("captune", 1, str(Path(adapter).expanduser().absolute())),
            weights=f"vllm, {' + '.join(weights)}",
        )

    # -- prompts -------------------------------------------------------------------------------------------------------

    def prompt_text(self) -> str:
        """Return the prompt as the chat template writes it, up to where the caption starts."""
        return self._text(())

    def _text(self, turns: Sequence[tuple[str, str]]) -> str:
        """The prompt, and the conversation that follows it; a base model is shown the first reply before the image."""
        content: list[dict[str, str]] = [{"type": "text", "text": self.prompt}] if self.prompt else []
        said = [(role, " ".join(plain(self.tokenizer, text).split())) for role, text in turns]
        if said and not self.turns:
            return self._render(content, True, before=f"{said[0][1]}\n")
        more = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
        return self._render(content, True, more)

    def _render(
        self, content: list[dict[str, str]], answer: bool, more: Sequence[dict[str, Any]] = (), before: str = ""
    ) -> str:
        first = [{"type": "text", "text": before}] if before else []
        messages = [{"role": "user", "content": [*first, {"type": "image"}, *content]}, *more]
        try:
            return str(self.processor.apply_chat_template(messages, add_generation_prompt=answer, tokenize=False))
        except Exception as error:  # whatever a template of one's own does in jinja's sandbox
            raise CaptionerError(f"the chat template of {self.name} cannot be used: {first_line(error)}") from error

    def _ids(self, text: str) -> list[int]:
        special = not (self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token))
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    # -- captions ------------------------------------------------------------------------------------------------------

    def sampling_arguments(self, image: Image.Image, sample: int, **settings: Any) -> dict[str, Any]:
        """Return the arguments of `vllm.SamplingParams` for an image's n-th caption.

        Args:
            image: RGB and upright; its pixels decide the seed.
            sample: its number, from 0.
            settings: of `captune.models.requests.request_settings`.

        Raises:
            SettingError: a setting that vLLM does not have.
        """
        fields = request_settings("vLLM", **settings)
        if settings.get("max_new_tokens") is None:
            fields["max_tokens"] = self.max_new_tokens
        if fields["temperature"]:
            fields["seed"] = sample_seed(image, settings.get("seed", 0), sample)
        if settings.get("return_logprob"):
            fields["logprobs"] = 0  # of the token that was taken, at temperature 1
        if self.image_token_id is not None:
            fields["logit_bias"] = {self.image_token_id: _NEVER}  # a caption holds no image
        return {**fields, "stop_token_ids": self.eos_ids}

    @overload
    def generate(
        self, images: Sequence[Image.Image], *, return_logprob: Literal[False] = False, **settings: Any
    ) -> list[str]: ...
    @overload
    def generate(
        self, images: Sequence[Image.Image], *, return_logprob: Literal[True], **settings: Any
    ) -> tuple[list[str], torch.Tensor, torch.Tensor]: ...
    def generate(
        self, images: Sequence[Image.Image], *, return_logprob: bool = False, turns: Any = None, **settings: Any
    ) -> list[str] | tuple[list[str], torch.Tensor, torch.Tensor]:
        """Caption a batch.

        Args:
            images: B images.
            return_logprob: also return log-probabilities.
            turns: the conversation after the first turn, (role, text) pairs for each image.
            settings: those of `captune.models.requests.request_settings`.

        Returns:
            B * num_return_sequences captions, grouped by image. With `return_logprob` also the mean per token and the
            sum of log p(generated tokens), float32 (B * num_return_sequences,).

        Raises:
            SettingError: a setting that vLLM does not have.
            CaptionerError: vLLM gave no log-probabilities.
        """
        from vllm import SamplingParams

        count = settings.get("num_return_sequences", 1)
        prompts, sampling = [], []
        for row, given in enumerate(images):
            image = upright_rgb(given)
            ids = self._ids(self._text(() if turns is None else turns[row]))
            for sample in range(count):
                arguments = self.sampling_arguments(image, sample, return_logprob=return_logprob, **settings)
                prompts.append({"prompt_token_ids": ids, "multi_modal_data": {"image": image}})
                sampling.append(SamplingParams(**arguments))
        if not prompts:
            request_settings("vLLM", **settings)
            return []
        outputs = self.engine.generate(prompts, sampling, use_tqdm=False, lora_request=self.lora)
        done = [output.outputs[0] for output in outputs]
        texts = [completion.text.strip() for completion in done]
        if not return_logprob:
            return texts
        import torch

        if any(completion.cumulative_logprob is None for completion in done):
            raise CaptionerError(f"vLLM gave no log-probabilities of {self.name}")
        total = torch.tensor([float(completion.cumulative_logprob) for completion in done])
        return texts, total / torch.tensor([len(completion.token_ids) for completion in done]), total


def _generation_config(source: str) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(source)
    except OSError:
        return None


def _files_mark(source: str, config: Any = None) -> str:
    """What stands for the weights in a folder: a digest of all bytes of its weight files, and of their names.

    Merged models may differ in a few late tensors alone, so that nothing is skipped. vLLM has just read the same files:
    15 GB take about 4 seconds where they are still in memory, else as long as the disk needs to read them once more.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return f"{source}@{getattr(config, '_commit_hash', None)}"
    mark = xxhash.xxh3_128()
    for file in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):  # as vLLM prefers them
        mark.update(f"{file.name} {file.stat().st_size} ".encode())
        with file.open("rb") as opened:
            while part := opened.read(2**24):
                mark.update(part)
    return f"whole files {mark.hexdigest()}"
