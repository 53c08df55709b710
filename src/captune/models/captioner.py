"""A vision-language model, its processor and its prompt, as one captioner.

ViZer's symbols: F_I is `Captioner.image_features`, f_psi(.) is `Captioner.caption_hidden_states`.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from PIL import Image
from torch import nn
from transformers import BatchFeature, GenerationConfig, PreTrainedModel

from captune.data.images import upright_rgb
from captune.errors import CaptionerError, SettingError, first_line
from captune.models import hub, image_inputs, loading
from captune.models import inputs as batches
from captune.models.caching import vision
from captune.models.condition import Condition, read_condition, read_prompt, save_prompt
from captune.models.families import Family, attribute, family_for, lora_targets
from captune.utils import hashing
from captune.utils.device import pick_device
from captune.utils.progress import Bar
from captune.utils.skipped import skip

logger = logging.getLogger(__name__)
#: What transformers takes for settings that nobody named is not always neutral (top_k=50).
NEUTRAL = {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
_KEPT = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "max_new_tokens",
    "cache_implementation",
)


def neutral(config: GenerationConfig | None) -> GenerationConfig:
    """Return a generation config that changes no decoding: which tokens begin and end, and the default length, stay.

    Decoding follows the caller alone: a checkpoint's generation_config.json (Qwen2-VL ships top_k=1, others
    no_repeat_ngram_size or min_new_tokens) would change what is sampled, searched and trained on. Saved with the model
    is what the checkpoint said.
    """

    class Neutral(GenerationConfig):
        def save_pretrained(self, *arguments: Any, **settings: Any) -> None:
            whole: Any = config or super()
            whole.save_pretrained(*arguments, **settings)

    return Neutral(**{name: getattr(config, name, None) for name in _KEPT})


def positions_of(config: Any) -> int | None:
    """Return how many tokens a language model's configuration has positions for; None where it names no number."""
    number = getattr(config.get_text_config(), "max_position_embeddings", None)
    return number if isinstance(number, int) and number > 0 else None


def check_room(width: int, new: int, positions: int | None) -> None:
    """Raise SettingError where a prompt of `width` tokens leaves the model no positions for `new` ones."""
    if positions is not None and width + new > positions:
        advice = f"lower max_new_tokens to {positions - width}" if width < positions else "shorten the prompt"
        raise SettingError(
            f"the prompt with its image takes {width} tokens and a caption up to {new}, but the model has {positions} "
            f"positions: {advice}"
        )


def check_length(max_new_tokens: int | None) -> None:
    """Raise SettingError for a longest caption of no tokens; None is the model's own."""
    if max_new_tokens is not None and max_new_tokens < 1:
        raise SettingError(f"max_new_tokens must be at least 1, not {max_new_tokens}; leave it out for the default")


def _is_text(text: str) -> bool:
    """Whether it has no half characters, which a shell makes of bytes that are not UTF-8."""
    return text == text.encode("utf-8", "replace").decode("utf-8")


class Captioner:
    """A captioner, loaded frozen; `make_trainable` says what learns.

    Attributes:
        model: the PreTrainedModel, or the PeftModel around it.
        core: the PreTrainedModel.
        processor: image processor and tokenizer, with a chat template.
        name: what the user called it.
        family: where its parts are, and its prompt; see `captune.models.families`.
        prompt: the text beside the image.
        eos_ids: the tokens that end a caption; training appends the first.
        vision_cache: what `share_vision` installed last, if anything.
        condition: what its adapter, or what was merged into it, was trained under, if anything.

    Args:
        model: of `AutoModelForImageTextToText`.
        processor: of `AutoProcessor`.
        name: what the user calls it; saved in adapters.
        prompt: the text beside the image; default: the family's.
    """

    def __init__(self, model: PreTrainedModel, processor: Any, *, name: str = "", prompt: str | None = None) -> None:
        self.model: PreTrainedModel | PeftModel = model
        self.core, self.processor, self.name = model, processor, name
        self.family: Family = family_for(model, processor)
        if getattr(processor, "chat_template", None) is None:
            processor.chat_template = self.family.chat_template
        self.tokenizer = processor.tokenizer
        self._as_base = False  # inside of `disable_adapter`
        self.default_prompt = self.family.prompt if self.has_turns() else self.family.base_prompt
        self.prompt = self.default_prompt if prompt is None else prompt
        self.positions = positions_of(model.config)
        self._check_prompt()
        self.vision_cache: vision.VisionCache | None = None
        self.condition: Condition | None = None
        self.recorded_prompt: str | None = None  # what the base's folder says that it was trained under
        self.eos_ids = self._eos_ids()
        model.generation_config = neutral(model.generation_config)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(self.eos_ids[0])
        model.requires_grad_(False)
        model.eval()

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        adapter: str | Path | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        trust_remote_code: bool = False,
        *,
        prompt: str | None = None,
        adapter_trainable: bool = False,
        load_in_4bit: bool = False,
    ) -> Captioner:
        """Load a folder, a hub name or a shipped model ("storybook"), with an adapter if one is named.

        Args:
            name_or_path: see `captune.models.hub`.
            adapter: a PEFT adapter's folder or hub name.
            dtype: of the weights; default: as saved.
            device: default: cuda where there is one, else cpu.
            trust_remote_code: run the Python code that a model folder brings.
            prompt: the text beside the image; default: that of the adapter or the weights, else the family's.
            adapter_trainable: whether the adapter's weights require a gradient.
            load_in_4bit: load the language model's linear layers in 4 bits (NF4, by bitsandbytes).

        Raises:
            CaptionerError: says what is missing and what to do about it.
        """
        source = hub.resolve(name_or_path, bare=False)
        device = torch.device(pick_device(device))
        model, processor = loading.load_model(
            source,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            four_bit_device=device if load_in_4bit else None,
        )
        captioner = cls(model, processor, name=str(name_or_path), prompt=prompt)
        captioner.check_processor()
        if adapter is not None:
            captioner.model = loading.load_adapter(captioner.core, adapter, trainable=adapter_trainable)
            captioner.model.eval()
        captioner.condition = read_condition(adapter) or read_condition(source)  # beside merged weights
        captioner.recorded_prompt = read_prompt(source)
        if captioner.condition is not None and prompt is None:
            captioner.prompt = captioner.condition.prompts[captioner.condition.highest]
            logger.warning(
                "%s was trained under a condition: captions are asked for %s=%s, the highest; another with "
                "--condition (known: %s)",
                adapter or name_or_path,
                captioner.condition.column,
                captioner.condition.highest,
                ", ".join(captioner.condition.prompts),
            )
        elif prompt is None:
            captioner.ask_as_trained(adapter)
        if not load_in_4bit:  # which places the weights itself
            cast(nn.Module, captioner.core).to(device)
        return captioner

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.core.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights that are no 4-bit ones."""
        return self.core.dtype

    def identity(self, *, base: bool = False) -> str:
        """Return 8 hex digits of what decides the captions: weights, tokenizer, image processor, template, prompt.

        Args:
            base: of the captioner without its adapter, by a digest of some of the weights.
        """
        weights = self.base_digest() if base else self.core
        images = getattr(self.processor, "image_processor", None)
        template = getattr(self.processor, "chat_template", None)
        return hashing.identity(weights, self.tokenizer, images, unused=(), template=template, prompt=self.prompt)

    def base_digest(self) -> str | None:
        """Return a digest of the base's weights, which adapters and mappers remember; None where it is not known."""
        if isinstance(self.model, PeftModel):
            return (getattr(self.model, "base_record", None) or {}).get("digest")
        return loading.base_record(self.core)["digest"]

    # -- text ----------------------------------------------------------------------------------------------------------

    def ask_as_trained(self, adapter: str | Path | None) -> None:
        """Take the prompt that weights were trained under: what the adapter's folder says, else the base's."""
        weights, prompt = adapter, read_prompt(adapter)
        if prompt is None:
            weights, prompt = self.name, self.recorded_prompt
        if prompt is not None and prompt != self.prompt:
            logger.warning("%s was trained under the prompt %r: it is asked with it, or with --prompt", weights, prompt)
            self.prompt = prompt
            self._check_prompt()

    @property
    def max_new_tokens(self) -> int:
        """The longest caption in tokens unless another is asked for: the checkpoint's, else the family's."""
        return self.core.generation_config.max_new_tokens or self.family.max_new_tokens

    def conversation(self, prompt: str | None = None) -> list[dict[str, Any]]:
        """Return the prompt, or another, as messages, with a place for the image: what TRL's GRPOTrainer takes."""
        prompt = self.prompt if prompt is None else prompt
        text = [{"type": "text", "text": prompt}] if prompt else []
        return [{"role": "user", "content": [{"type": "image"}, *text]}]

    def prompt_text(self, *, image: bool = True, prompt: str | None = None) -> str:
        """Return the prompt as the chat template writes it, up to where the caption starts.

        Args:
            image: whether the image's place is part of it.
            prompt: another text beside the image.
        """
        messages = self.conversation(prompt)
        if not image:
            messages[0]["content"] = [part for part in messages[0]["content"] if part["type"] != "image"]
        return self._render(messages, True)

    def has_turns(self) -> bool:
        """Return whether the chat template opens a turn for the assistant; those of base models do not."""
        messages = [{"role": "user", "content": [{"type": "image"}]}]
        texts = [self._render(messages, flag) for flag in (False, True)]
        return texts[0] != texts[1]

    def _render(self, messages: list[dict[str, Any]], answer: bool) -> str:
        try:
            return str(self.processor.apply_chat_template(messages, add_generation_prompt=answer, tokenize=False))
        except Exception as error:  # whatever a template of one's own does in jinja's sandbox
            raise CaptionerError(
                f"the chat template of {self.name or type(self.core).__name__} cannot be used: {first_line(error)}"
            ) from error

    def check_processor(self) -> None:
        """Prepare a blank image, so that a processor that cannot work is refused when it is loaded, not at an image.

        Raises:
            CaptionerError: says what the processor said.
        """
        what = f"the processor of {self.name or type(self.core).__name__}"
        try:
            batch = self.prepare([Image.new("RGB", (64, 64), (128, 96, 64))], ["a"])
        except CaptionerError:
            raise
        except Exception as error:  # transformers' processors raise whatever they stumble over
            raise CaptionerError(f"{what} cannot prepare an image and a caption: {first_line(error)}") from error
        if not any(self._image_tokens(batch)):
            raise CaptionerError(
                f"{what} leaves no place for the image: no token has the image_token_id "
                f"{self.core.config.image_token_id}; the chat template or a config belongs to another model"
            )
        if pixels := [k for k, v in batch.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]:
            raise CaptionerError(f"{what} gives values that are not finite ({', '.join(pixels)}): see its image_std")

    def _check_prompt(self) -> None:
        """Refuse a prompt that is no text: one with the token that stands for the image, or longer than the model."""
        tokenizer = self.tokenizer
        if not _is_text(self.prompt):
            raise SettingError(f"the prompt {self.prompt!a} is not Unicode text; write it in UTF-8")
        named = tokenizer.convert_ids_to_tokens(self.core.config.image_token_id)
        marks = (named, getattr(tokenizer, "image_token", None))
        if mark := next((mark for mark in marks if mark and mark in self.prompt), None):
            raise SettingError(f"the prompt holds {mark!r}, which stands for an image: it is added where it belongs")
        if self.positions and len(self.prompt) > self.positions:  # a token has a character at least
            check_room(len(tokenizer(self.prompt)["input_ids"]), 1, self.positions)

    def _eos_ids(self) -> list[int]:
        """Ids that end a caption; the first is the one that training appends."""
        named = self.core.generation_config.eos_token_id if self.core.generation_config else None
        ids = [] if named is None else list(named) if isinstance(named, (list, tuple)) else [named]
        if any(type(number) is not int or number < 0 for number in ids):
            raise CaptionerError(
                f"{self.name or self.family.name}: the generation config's eos_token_id is {named!r}, no number of a "
                "token; correct generation_config.json"
            )
        eos = self.tokenizer.eos_token_id
        if eos is not None:
            ids = [eos, *(i for i in ids if i != eos)]
        if not ids:
            raise CaptionerError(f"{self.name or self.family.name}: neither tokenizer nor generation config has an EOS")
        return ids

    def adds_special_tokens(self, text: str) -> bool:
        """Return whether the tokenizer should add its special tokens to a prompt: not if the template wrote BOS."""
        return not (self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token))

    def caption_ids(self, caption: str) -> list[int]:
        """Return a caption's tokens as the model would generate them after the prompt, without EOS."""
        text = caption.strip()
        if self.prompt_text().endswith(":") and not self._tokenizer_adds_space():
            text = " " + text  # "Assistant:" and the like: the answer starts with a space
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _tokenizer_adds_space(self) -> bool:
        """Whether the tokenizer itself puts the space before a first word (SentencePiece)."""
        ids = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        return self.tokenizer.convert_ids_to_tokens(ids[:1])[0].startswith("▁")

    def decode(self, ids: torch.Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Turn token ids (N, T) into captions, stripped, without special tokens."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    # -- batches -------------------------------------------------------------------------------------------------------

    def encode(self, texts: Sequence[str], images: Sequence[Image.Image]) -> BatchFeature:
        """Return model inputs of texts that went through the chat template, one image to each, LEFT padded.

        Args:
            texts: such as `prompt_text()`; each holds the image token once.
            images: PIL images of any mode and size.

        Returns:
            `input_ids` and `attention_mask` (B, P) and the image's tensors, on the captioner's device and dtype.
        """
        batch = self.processor(
            text=list(texts),
            images=[[upright_rgb(image)] for image in images],
            padding=True,
            padding_side="left",
            add_special_tokens=self.adds_special_tokens(texts[0]),
            return_tensors="pt",
        )
        return batch.to(self.device, dtype=self.dtype)

    def prepare(
        self,
        images: Sequence[Image.Image],
        captions: Sequence[str] | None = None,
        *,
        prompts: Sequence[str] | None = None,
    ) -> BatchFeature:
        """Return model inputs: the prompt for each image, LEFT padded, or with captions, RIGHT padded.

        An image object that occurs several times in the list is preprocessed once.

        Args:
            images: PIL images of any mode and size.
            captions: one for each image; see `append`.
            prompts: the text beside each image; default: the captioner's.

        Returns:
            `input_ids` and `attention_mask` (B, P) and the images' tensors, on the captioner's device and dtype.

        Raises:
            CaptionerError: no images, or another number of captions.
        """
        if not images:
            raise CaptionerError("prepare() was given no images")
        said = [self.prompt] * len(images) if prompts is None else list(prompts)
        distinct = {(id(image), prompt): image for image, prompt in zip(images, said, strict=True)}
        index = {key: i for i, key in enumerate(distinct)}
        texts = {prompt: self.prompt_text(prompt=prompt) for prompt in dict.fromkeys(said)}
        batch = self.encode([texts[prompt] for _, prompt in distinct], list(distinct.values()))
        if len(distinct) < len(images):
            rows = [index[id(image), prompt] for image, prompt in zip(images, said, strict=True)]
            batch = batches.repeat(batch, rows, self._image_tokens(batch))
        return batch if captions is None else self.append(batch, captions)

    def append(self, batch: BatchFeature, captions: Sequence[str]) -> BatchFeature:
        """Add a caption and EOS to each row of a prompt batch, RIGHT padded; the images' tensors are shared.

        Args:
            batch: from `prepare(images)` or `encode`.
            captions: one for each row.

        Returns:
            The batch with `caption_mask` (B, T), 1 on the caption and EOS, and `labels` (B, T), -100 elsewhere.

        Raises:
            CaptionerError: another number of captions.
        """
        rows = batch["input_ids"].shape[0]
        if len(captions) != rows:
            raise CaptionerError(f"{len(captions)} captions were given for {rows} images")
        tails = [self.caption_ids(caption) for caption in captions]
        room = (self.positions or math.inf) - int(batch["attention_mask"].sum(-1).max()) - 1
        if room < 1:
            check_room(batch["input_ids"].shape[1], 2, self.positions)
        for row, tail in enumerate(tails):
            if len(tail) > room:
                skip(f"captions' ends beyond the model's {self.positions} positions", f"{captions[row][:40]} ...")
                tails[row] = tail[: int(room)]
        tails = [[*tail, self.eos_ids[0]] for tail in tails]
        return batches.append_ids(batch, tails, pad_id=self.tokenizer.pad_token_id, right=True)

    def _image_tokens(self, batch: BatchFeature) -> list[int]:
        return (batch["input_ids"] == self.core.config.image_token_id).sum(-1).tolist()

    # -- captions ------------------------------------------------------------------------------------------------------

    @overload
    def generate(
        self, images: Sequence[Image.Image] | BatchFeature, *, return_logprob: Literal[False] = False, **settings: Any
    ) -> list[str]: ...
    @overload
    def generate(
        self, images: Sequence[Image.Image] | BatchFeature, *, return_logprob: Literal[True], **settings: Any
    ) -> tuple[list[str], torch.Tensor, torch.Tensor]: ...
    @torch.no_grad()
    def generate(
        self,
        images: Sequence[Image.Image] | BatchFeature,
        *,
        do_sample: bool = False,
        temperature: float = 1.0,
        num_return_sequences: int = 1,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        forced_opening: str | None = None,
        return_logprob: bool = False,
        **kwargs: Any,
    ) -> list[str] | tuple[list[str], torch.Tensor, torch.Tensor]:
        """Caption a batch.

        Args:
            images: B images, or a prompt batch from `prepare` or `encode`.
            do_sample: sample, instead of taking the likeliest token or beam.
            temperature: of sampling; 0 is refused, use do_sample=False.
            num_return_sequences: captions per image; the image is encoded once for all of them.
            max_new_tokens: default: the checkpoint's generation config, else the family's.
            num_beams: of beam search.
            forced_opening: a text that every caption starts with; it is part of what is returned.
            return_logprob: also return log-probabilities.
            kwargs: further generation settings of transformers (top_p, repetition_penalty, ...).

        Returns:
            B * num_return_sequences captions, grouped by image. With `return_logprob` also the mean per token and the
            sum of log p(generated tokens, EOS included) under the model itself (temperature 1, no truncation), float32
            (B * num_return_sequences,); a forced opening is not generated and does not count.

        Raises:
            CaptionerError: the batch has captions.
            SettingError: a longest caption of no tokens.
        """
        check_length(max_new_tokens)
        batch = images if isinstance(images, BatchFeature) else self.prepare(images)
        if "caption_mask" in batch:
            raise CaptionerError("generate() needs a batch without captions: use prepare(images)")
        opening: list[int] = []
        if forced_opening:
            opening = self.caption_ids(forced_opening)
            tails = [opening] * len(batch["input_ids"])
            batch = batches.append_ids(batch, tails, pad_id=self.tokenizer.pad_token_id, right=False)
        inputs = batches.inputs_of(batch)
        settings: dict[str, Any] = {**NEUTRAL, **kwargs, "do_sample": do_sample, "num_beams": num_beams}
        if do_sample:
            settings["temperature"] = temperature
        else:
            settings = {key: value for key, value in settings.items() if key not in ("top_k", "top_p") or key in kwargs}
        if num_beams < 1 or num_return_sequences < 1:
            raise SettingError(f"num_beams ({num_beams}), num_return_sequences ({num_return_sequences}): at least 1")
        width = batch["input_ids"].shape[1]
        check_room(width, max_new_tokens or 1, self.positions)
        settings.update(
            num_return_sequences=num_return_sequences,
            max_new_tokens=max_new_tokens or min(self.max_new_tokens, (self.positions or math.inf) - width),
            eos_token_id=self.eos_ids,
            pad_token_id=self.tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_logits=return_logprob,
        )
        image = self.core.config.image_token_id
        without = {"suppress_tokens": [image]}  # a caption holds no image
        likeliest = not do_sample and num_beams == 1 and not kwargs  # then it matters only where it comes first
        training = self.model.training
        switch = any(module.training for module in self.model.modules())  # to switch costs more than to look
        if switch:
            self.model.eval()
        try:
            model: Any = self.model
            output = model.generate(**inputs, **settings, **({} if likeliest else without))
            if likeliest and bool((output.sequences[:, width:] == image).any()):
                output = model.generate(**inputs, **settings, **without)
        finally:
            if switch:
                self.model.train(training)
        generated = output.sequences[:, width:]
        ids = [[*opening, *row] for row in generated.tolist()]
        captions = self.decode(ids)
        if not return_logprob:
            return captions
        mean, total = _logprob(output, generated, self.eos_ids)
        return captions, mean, total

    def caption(
        self,
        images: Iterable[tuple[str, Image.Image]],
        *,
        batch_size: int = 16,
        window: int = 16,
        progress: bool = True,
        total: int | None = None,
        **settings: Any,
    ) -> Iterator[tuple[str, str]]:
        """Stream (image_id, caption) for (image_id, image) pairs; every input appears exactly once.

        Batches are formed within a window of `window * batch_size` images, sorted by their number of pixels, the
        largest first: it sets the number of image tokens, and so of padded ones.

        Args:
            images: pairs of a name and a PIL image.
            batch_size: images captioned together.
            window: batches sorted together.
            progress: show a progress bar.
            total: the number of images, for the bar; default: `len(images)` if it has one.
            settings: those of `generate`.

        Yields:
            (image_id, caption), in the order of processing.

        Raises:
            CaptionerError: settings that give several captions for an image.
        """
        if settings.get("num_return_sequences", 1) != 1 or settings.get("return_logprob"):
            raise CaptionerError(
                "caption() gives one caption per image; use generate() for several or for log-probabilities"
            )
        if total is None and hasattr(images, "__len__"):
            total = len(cast(Sized, images))
        stream = iter(images)
        with Bar(total=total, desc="captions", unit="image", show=progress) as bar:
            while pending := list(itertools.islice(stream, window * batch_size)):
                pending.sort(key=lambda item: -(item[1].width * item[1].height))
                for start in range(0, len(pending), batch_size):
                    chunk = pending[start : start + batch_size]
                    captions = self.generate([image for _, image in chunk], **settings)
                    for (image_id, _), text in zip(chunk, captions, strict=True):
                        yield image_id, text
                    bar.update(len(chunk))

    # -- features ------------------------------------------------------------------------------------------------------

    def image_features(
        self,
        images: Sequence[Image.Image] | BatchFeature,
        *,
        where: Literal["connector", "tower"] = "connector",
        pool: Literal["mean", "quarters"] = "mean",
    ) -> torch.Tensor:
        """Compute F_I: frozen visual features after the connector or before it.

        Args:
            images: B images, or a batch from `prepare`.
            where: "connector", what the language model reads, or "tower", what the connector reads.
            pool: "mean" over an image's tokens, or over each quarter of the image, so that positions survive.

        Returns:
            (B, H) or, for quarters, (B, 4 H), float32.

        Raises:
            CaptionerError: "quarters" of fewer than 4 tokens.
        """
        if where not in ("connector", "tower") or pool not in ("mean", "quarters"):
            raise CaptionerError(f'where is "connector" or "tower", pool "mean" or "quarters"; not {where!r}, {pool!r}')
        batch = images if isinstance(images, BatchFeature) else self.prepare(images)
        arguments = batches.images_of(batch)
        cache = self.vision_cache
        if cache is not None and cache.serves(where):
            features = cache.encode(arguments)
        else:
            features = vision.encode(self.core, self.family, arguments, tower=where == "tower")
        sizes = image_inputs.inputs_per_image(self._image_tokens(batch), len(features))
        states = [f.pooled if where == "connector" else f.tower for f in features]
        return image_inputs.pool(states, sizes, pool)

    def caption_hidden_states(
        self, batch: BatchFeature, *, blind: bool = False, shift: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute f_psi(.): the last hidden states (before lm_head) at the caption's positions, EOS included.

        Args:
            batch: from `prepare(images, captions)` or `append`.
            blind: read the caption without an image: prompt text (or BOS) and caption only.
            shift: the states that predict each caption token, i.e. from the last prompt position on.

        Returns:
            hidden (B, T, H) and mask (B, T), T the longest caption in tokens; gradients flow.
        """
        mask = batch["caption_mask"].bool()
        counts = mask.sum(-1)
        if blind:
            tails = [ids[m].tolist() for ids, m in zip(batch["input_ids"], mask, strict=True)]
            head = self.blind_prompt_ids()
            rows = torch.tensor([head] * len(tails), device=self.device)
            text = BatchFeature({"input_ids": rows, "attention_mask": torch.ones_like(rows)})
            text = batches.append_ids(text, tails, pad_id=self.tokenizer.pad_token_id, right=True)
            inputs: dict[str, Any] = batches.inputs_of(text)
            starts = torch.full_like(counts, len(head))
        else:
            inputs, starts = batches.inputs_of(batch), mask.int().argmax(-1)
        hidden = self.core.base_model(**inputs, use_cache=False).last_hidden_state
        steps = torch.arange(int(counts.max()), device=hidden.device)
        valid = steps[None] < counts[:, None]
        places = (starts[:, None] + steps[None] - int(shift)).clamp(max=hidden.shape[1] - 1)
        return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1])), valid

    def blind_prompt_ids(self) -> list[int]:
        """Return the prompt's tokens without the image, or BOS if the prompt has no other text."""
        text = self.prompt_text(image=False)
        ids = self.tokenizer(text, add_special_tokens=self.adds_special_tokens(text))["input_ids"]
        bos = self.tokenizer.bos_token_id
        return ids or [bos if bos is not None else self.eos_ids[0]]

    def share_vision(self, *, tower: bool = False, **settings: Any) -> vision.VisionCache:
        """Encode each distinct image once from now on, until `remove()` or the end of a `with`; calls nest.

        Args:
            tower: also keep the features before the connector.
            settings: those of `vision.VisionCache`.

        Raises:
            CaptionerError: the vision side is trainable, or the cache in place keeps no tower features.
        """
        if self.vision_cache is None or self.vision_cache.depth == 0:
            self.vision_cache = vision.VisionCache(self.core, self.family, tower=tower, **settings)
        elif tower and not self.vision_cache.tower:
            raise CaptionerError(
                "the vision cache in place keeps no tower features: start with share_vision(tower=True)"
            )
        return self.vision_cache.install()

    # -- what learns ---------------------------------------------------------------------------------------------------

    def make_trainable(
        self,
        *,
        adapter: str | Path | None = None,
        full: bool = False,
        connector: bool = False,
        r: int = 32,
        alpha: int = 64,
        dropout: float = 0.1,
    ) -> PeftModel:
        """Say what learns: a new LoRA of the language model, an adapter to continue from, or whole modules.

        What learns is always a PEFT adapter, so that `save_adapter` writes it and `disable_adapter` is the base model.

        Args:
            adapter: continue from this PEFT adapter (a folder or hub name); a connector that it brings is used frozen
                unless `connector` is set.
            full: all weights of the language model, head included, instead of LoRA.
            connector: the connector as well; the vision tower never learns.
            r: rank of a new LoRA.
            alpha: its scale is alpha / r.
            dropout: before its first matrix.

        Raises:
            CaptionerError: there is an adapter already, or `adapter` cannot be loaded.
            SettingError: the settings exclude each other.
        """
        if isinstance(self.model, PeftModel):
            raise CaptionerError("this captioner has an adapter already; load it without one, or merge it first")
        if full and self.in_4bit:
            raise SettingError("weights in 4 bits cannot be trained: leave out load-in-4bit, or train LoRA")
        if adapter is not None:
            self.model = loading.load_adapter(self.core, adapter, trainable=True)
            modules = set(cast(LoraConfig, self.model.peft_config["default"]).modules_to_save or ())
            for asked, paths, what in (
                (full, [self.family.language_model], "all weights of the language model"),
                (connector, self.family.connector, "the connector"),
            ):
                if asked and not modules.intersection(paths):
                    raise SettingError(f"the adapter {adapter} does not hold {what}, so these cannot be trained in it")
            if not connector:
                self.freeze_vision()
            return self.model
        if not (full or connector):
            return self.add_lora(r, alpha, dropout)
        # a connector's stray parameters (LLaVA-NeXT's newline) are no modules, and stay as they are
        modules_to_save = [p for p in self.family.connector if isinstance(attribute(self.core, p), nn.Module)]
        if not connector:
            modules_to_save = []
        if full:
            names = {module: name for name, module in self.core.named_modules()}
            modules_to_save += [self.family.language_model, names[cast(nn.Module, self.core.get_output_embeddings())]]
        return self._wrap(
            LoraConfig(
                r=r,
                lora_alpha=alpha,
                lora_dropout=dropout,
                target_modules=DUMMY_TARGET_MODULES if full else lora_targets(self.core, self.family),
                modules_to_save=modules_to_save,
            )
        )

    def add_lora(
        self, r: int = 32, alpha: int = 64, dropout: float = 0.1, bias: Literal["none", "all", "lora_only"] = "none"
    ) -> PeftModel:
        """Put trainable LoRA adapters on the linear layers of the language model; all else is frozen.

        Raises:
            CaptionerError: there is an adapter already.
        """
        targets = lora_targets(self.core, self.family)
        return self._wrap(LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, bias=bias, target_modules=targets))

    def _wrap(self, config: LoraConfig) -> PeftModel:
        if isinstance(self.model, PeftModel):
            raise CaptionerError("this captioner has an adapter already; load it without one, or merge it first")
        base = loading.base_record(self.core)
        self.model = get_peft_model(self.core, config)
        self.model.base_record = base  # type: ignore[assignment]
        config.base_model_name_or_path = self.name  # what the user called it, not where it happens to lie
        return self.model

    def freeze_vision(self) -> None:
        """Freeze tower and connector, also a connector that an adapter brought."""
        for part in self.family.parts(self.core):
            part.requires_grad_(False)

    # -- adapters ------------------------------------------------------------------------------------------------------

    @property
    def in_4bit(self) -> bool:
        """Whether the language model's weights are in 4 bits."""
        return bool(getattr(self.core, "is_loaded_in_4bit", False))

    def merge_adapter(self) -> None:
        """Merge the adapter into the base weights and unload it. No-op without an adapter.

        Raises:
            CaptionerError: the base weights are in 4 bits.
        """
        if not isinstance(self.model, PeftModel):
            return
        if self.in_4bit:
            raise CaptionerError(
                "an adapter cannot be merged into weights in 4 bits without loss: load the captioner without "
                "load-in-4bit, then merge"
            )
        self.model = self.model.merge_and_unload()
        self.model.requires_grad_(False)

    def merge(self, output: str | Path) -> Path:
        """Merge the adapter and save model and processor as a plain transformers folder.

        `AutoModelForImageTextToText` and `AutoProcessor` load it, and so does `Captioner.load`.

        Args:
            output: a folder, made if needed.

        Returns:
            The folder.

        Raises:
            CaptionerError: the base weights are in 4 bits.
        """
        self.merge_adapter()
        self.core.save_pretrained(output)
        self.processor.save_pretrained(output)
        self._save_prompt(Path(output))
        return Path(output)

    def save_adapter(self, folder: str | Path) -> Path:
        """Write adapter_config.json, adapter_model.safetensors and base_model.json, a digest of the base's weights.

        Raises:
            CaptionerError: there is no adapter.
        """
        if not isinstance(self.model, PeftModel):
            raise CaptionerError("there is no adapter to save: call make_trainable() first")
        # False: "auto" would ask the hub about the base model's vocabulary
        self.model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
        loading.write_base_record(Path(folder), getattr(self.model, "base_record", None))
        self._save_prompt(Path(folder))
        return Path(folder)

    def _save_prompt(self, folder: Path) -> None:
        """Say in a folder of weights what they were trained under, where that is not the family's prompt."""
        if self.condition is not None:
            self.condition.save(folder)
        else:
            told = self.prompt == self.default_prompt and self.recorded_prompt is None
            save_prompt(folder, None if told else self.prompt)

    def load_adapter_weights(self, folder: str | Path) -> None:
        """Put the weights that `save_adapter` wrote into this captioner's adapter, which must have the same shape.

        Raises:
            CaptionerError: there is no adapter, or the saved one is not whole.
        """
        if not isinstance(self.model, PeftModel):
            raise CaptionerError("there is no adapter to load weights into: call make_trainable() first")
        loading.fill_adapter(self.model, str(folder))

    @contextmanager
    def reading(self, *, base: bool, prompt: str | None = None) -> Iterator[None]:
        """Within the context there is no dropout and no gradient; with `base`, no adapter; another prompt, if named."""
        training, asked = self.model.training, self.prompt
        self.prompt = asked if prompt is None else prompt
        self.model.eval()
        try:
            with torch.no_grad(), self.disable_adapter() if base else nullcontext():
                yield
        finally:
            self.model.train(training)
            self.prompt = asked

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within the context the captioner is its base model. No-op without an adapter, and inside of itself."""
        if self._as_base or not isinstance(self.model, PeftModel):
            yield
            return
        frozen = [weight for weight in self.model.parameters() if not weight.requires_grad]
        self._as_base = True
        try:
            with self.model.disable_adapter():
                yield
        finally:
            self._as_base = False
            for weight in frozen:  # peft makes all of an adapter trainable again
                weight.requires_grad_(False)


def _logprob(output: Any, generated: torch.Tensor, eos_ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    beams = getattr(output, "beam_indices", None)
    ended = torch.isin(generated, torch.tensor(eos_ids, device=generated.device)).long().cumsum(-1)
    counted = (ended - torch.isin(generated, torch.tensor(eos_ids, device=generated.device)).long()) == 0
    steps = []
    for t in range(generated.shape[1]):
        logits = output.logits[t]
        if beams is not None:
            logits = logits[beams[:, t].clamp(min=0)]
        steps.append(logits.float().log_softmax(-1).gather(1, generated[:, t : t + 1]))
    total = (torch.cat(steps, 1) * counted).sum(-1)
    return total / counted.sum(-1), total
