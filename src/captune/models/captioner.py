"""A vision-language model, its processor and its prompt, as one captioner.

ViZer's symbols: F_I is `image_features`, f_psi(.) is `caption_hidden_states`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from PIL import Image
from transformers import BatchFeature, PreTrainedModel

from captune.errors import CaptionerError
from captune.models import captioning, hub, loading
from captune.models import image_inputs as image_units
from captune.models import inputs as batches
from captune.models.caching import vision
from captune.models.families import Family, family_for, lora_targets


class Captioner:
    """Loads frozen; `add_lora` makes adapters of the language model trainable, the vision side never is.

    `model` is the PreTrainedModel, or the PeftModel around it; `core` is always the former.
    """

    def __init__(self, model: PreTrainedModel, processor: Any, *, name: str = "", prompt: str | None = None) -> None:
        self.model: PreTrainedModel | PeftModel = model
        self.core, self.processor, self.name = model, processor, name
        self.family: Family = family_for(model, processor)
        if getattr(processor, "chat_template", None) is None:
            processor.chat_template = self.family.chat_template
        self.tokenizer = processor.tokenizer
        self.prompt = (
            prompt if prompt is not None else (self.family.prompt if self.has_turns() else self.family.base_prompt)
        )
        self._memo: vision.VisionCache | None = None
        self.eos_ids = self._eos_ids()
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
    ) -> Captioner:
        """Load a folder, a hub name or a shipped model ("storybook"), with an adapter if one is named.

        :param device: default: cuda where there is one, else cpu.
        :param prompt: the text beside the image; default: the family's.
        :raises CaptionerError: says what is missing and what to do about it.
        """
        source = hub.resolve(name_or_path, bare=False)
        model, processor = loading.load_model(source, dtype=dtype, trust_remote_code=trust_remote_code)
        captioner = cls(model, processor, name=str(name_or_path), prompt=prompt)
        if adapter is not None:
            captioner.model = loading.load_adapter(captioner.core, adapter, trainable=adapter_trainable)
            captioner.model.eval()
        cast(torch.nn.Module, captioner.core).to(
            torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        )
        return captioner

    @property
    def device(self) -> torch.device:
        return self.core.device

    @property
    def dtype(self) -> torch.dtype:
        return self.core.dtype

    # -- text ----------------------------------------------------------------------------------------------------------

    def conversation(self) -> list[dict[str, Any]]:
        """The prompt as messages, with a place for the image: what TRL's GRPOTrainer takes as `prompt`."""
        text = [{"type": "text", "text": self.prompt}] if self.prompt else []
        return [{"role": "user", "content": [{"type": "image"}, *text]}]

    def prompt_text(self, *, image: bool = True) -> str:
        """The prompt through the chat template, up to where the caption starts; without the image if asked."""
        messages = self.conversation()
        if not image:
            messages[0]["content"] = [part for part in messages[0]["content"] if part["type"] != "image"]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def has_turns(self) -> bool:
        """Whether the chat template opens a turn for the assistant; base models' templates do not."""
        messages = [{"role": "user", "content": [{"type": "image"}]}]
        texts = [
            self.processor.apply_chat_template(messages, add_generation_prompt=flag, tokenize=False)
            for flag in (False, True)
        ]
        return texts[0] != texts[1]

    def _eos_ids(self) -> list[int]:
        """Ids that end a caption; the first is the one that training appends."""
        named = self.core.generation_config.eos_token_id if self.core.generation_config else None
        ids = [] if named is None else [named] if isinstance(named, int) else list(named)
        own = self.tokenizer.eos_token_id
        if own is not None:
            ids = [own, *(i for i in ids if i != own)]
        if not ids:
            raise CaptionerError(f"{self.name or self.family.name}: neither tokenizer nor generation config has an EOS")
        return ids

    def adds_special_tokens(self, text: str) -> bool:
        """Whether the tokenizer should add its special tokens: not where the template wrote BOS already."""
        return not (self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token))

    def caption_ids(self, caption: str) -> list[int]:
        """A caption's tokens as the model would generate them after the prompt, without EOS."""
        text = caption.strip()
        if self.prompt_text().endswith(":") and not self._marks_words():
            text = " " + text  # "Assistant:" and the like: the answer starts with a space
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _marks_words(self) -> bool:
        """Whether the tokenizer itself puts the space before a first word (SentencePiece)."""
        ids = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        return self.tokenizer.convert_ids_to_tokens(ids[:1])[0].startswith("▁")

    def decode(self, ids: torch.Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Token ids (N, T) to captions: special tokens dropped, stripped."""
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
            images=[[image if image.mode == "RGB" else image.convert("RGB")] for image in images],
            padding=True,
            padding_side="left",
            add_special_tokens=self.adds_special_tokens(texts[0]),
            return_tensors="pt",
        )
        return batch.to(self.device, dtype=self.dtype)

    def prepare(self, images: Sequence[Image.Image], captions: Sequence[str] | None = None) -> BatchFeature:
        """Model inputs on the device: the prompt for each image, LEFT padded; with captions see `append`.

        An image object that occurs several times in the list is preprocessed once.
        """
        if not images:
            raise CaptionerError("prepare() was given no images")
        distinct = list({id(image): image for image in images}.values())
        index = {id(image): i for i, image in enumerate(distinct)}
        batch = self.encode([self.prompt_text()] * len(distinct), distinct)
        if len(distinct) < len(images):
            rows = [index[id(image)] for image in images]
            batch = batches.repeat(batch, rows, self._image_tokens(batch))
        return batch if captions is None else self.append(batch, captions)

    def append(self, batch: BatchFeature, captions: Sequence[str]) -> BatchFeature:
        """Add a caption and EOS to each row of a prompt batch; the images are not touched. RIGHT padded.

        Adds `caption_mask` (B, T), 1 on caption tokens and EOS, and `labels` (B, T), -100 elsewhere.
        """
        rows = batch["input_ids"].shape[0]
        if len(captions) != rows:
            raise CaptionerError(f"{len(captions)} captions were given for {rows} images")
        tails = [[*self.caption_ids(caption), self.eos_ids[0]] for caption in captions]
        return batches.append_ids(batch, tails, pad_id=self.tokenizer.pad_token_id, right=True)

    def _image_tokens(self, batch: BatchFeature) -> list[int]:
        return (batch["input_ids"] == self.core.config.image_token_id).sum(-1).tolist()

    # -- captions ------------------------------------------------------------------------------------------------------

    def generate(self, images: Sequence[Image.Image] | BatchFeature, **settings: Any) -> Any:
        """Captions, `num_return_sequences` per image, grouped by image; settings: `captioning.generate`."""
        return captioning.generate(self, images, **settings)

    def caption(self, images: Any, **settings: Any) -> Iterator[tuple[str, str]]:
        """Stream (image_id, caption) for a stream of (image_id, image); settings: `captioning.caption`."""
        return captioning.caption(self, images, **settings)

    # -- features ------------------------------------------------------------------------------------------------------

    def image_features(
        self,
        images: Sequence[Image.Image] | BatchFeature,
        *,
        where: Literal["connector", "tower"] = "connector",
        pool: Literal["mean", "quarters"] = "mean",
    ) -> torch.Tensor:
        """F_I: frozen visual features after the connector or before it, (B, H) or (B, 4 H) float32.

        :param pool: "mean" over an image's tokens, or over each quarter of the picture, so that place survives.
        :raises CaptionerError: "quarters" of fewer than 4 tokens.
        """
        if where not in ("connector", "tower") or pool not in ("mean", "quarters"):
            raise CaptionerError(f'where is "connector" or "tower", pool "mean" or "quarters"; not {where!r}, {pool!r}')
        batch = images if isinstance(images, BatchFeature) else self.prepare(images)
        arguments = batches.images_of(batch)
        memo = self._memo if self._memo is not None and self._memo.serves(where) else None
        if memo is not None:
            encoded = memo.encode(arguments)
        else:
            encoded = vision.encode(self.core, self.family, arguments, tower=where == "tower")
        sizes = image_units.inputs_per_image(self._image_tokens(batch), len(encoded))
        states = [e.pooled if where == "connector" else e.tower for e in encoded]
        return image_units.pool(states, sizes, pool)

    def caption_hidden_states(
        self, batch: BatchFeature, *, blind: bool = False, shift: bool = False, mm: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """f_psi(.): last hidden states (before lm_head) at the caption's positions, EOS included.

        :param batch: from `prepare(images, captions)` or `append`.
        :param blind: read the caption without an image: prompt text (or BOS) and caption only.
        :param shift: the states that predict each caption token, i.e. from the last prompt position on.
        :param mm: visual features computed before (what `get_image_features` returns), in place of the pixels.
        :return: hidden (B, T, H) and mask (B, T), T the longest caption in tokens; gradients flow.
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
            if mm is not None:
                inputs = {k: v for k, v in inputs.items() if k not in ("pixel_values", "pixel_attention_mask")}
                inputs["mm_encoder_outputs"] = {"image": mm}
        hidden = self.core.base_model(**inputs, use_cache=False).last_hidden_state
        steps = torch.arange(int(counts.max()), device=hidden.device)
        valid = steps[None] < counts[:, None]
        places = (starts[:, None] + steps[None] - int(shift)).clamp(max=hidden.shape[1] - 1)
        return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1])), valid

    def blind_prompt_ids(self) -> list[int]:
        text = self.prompt_text(image=False)
        ids = self.tokenizer(text, add_special_tokens=self.adds_special_tokens(text))["input_ids"]
        bos = self.tokenizer.bos_token_id
        return ids or [bos if bos is not None else self.eos_ids[0]]

    def share_vision(self, *, tower: bool = False, **settings: Any) -> vision.VisionCache:
        """From now on encode each distinct image once; see `vision.VisionCache`. Ends with `remove()` or `with`."""
        if self._memo is None or self._memo.depth == 0:
            self._memo = vision.VisionCache(self.core, self.family, tower=tower, **settings)
        elif tower and not self._memo.tower:
            raise CaptionerError(
                "the vision memo in place keeps no tower features: start with share_vision(tower=True)"
            )
        return self._memo.install()

    # -- adapters ------------------------------------------------------------------------------------------------------

    def add_lora(
        self, r: int = 32, alpha: int = 64, dropout: float = 0.1, bias: Literal["none", "all", "lora_only"] = "none"
    ) -> PeftModel:
        """Put trainable LoRA adapters on the linear layers of the language model; all else is frozen."""
        if isinstance(self.model, PeftModel):
            raise CaptionerError("this captioner has an adapter already; load it without one, or merge it first")
        targets = lora_targets(self.core, self.family)
        config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, bias=bias, target_modules=targets)
        self.model = get_peft_model(self.core, config)
        config.base_model_name_or_path = self.name  # what the user called it, not where it happens to lie
        return self.model

    def merge_adapter(self) -> None:
        """Write the adapter's change into the weights and drop it: the result is a new base (nothing to do without)."""
        if isinstance(self.model, PeftModel):
            self.model = self.model.merge_and_unload()
            self.model.requires_grad_(False)

    def save_adapter(self, folder: str | Path) -> Path:
        """Write adapter_config.json and adapter_model.safetensors."""
        if not isinstance(self.model, PeftModel):
            raise CaptionerError("there is no adapter to save: call add_lora() first")
        # False: "auto" would ask the hub about the base model's vocabulary
        self.model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
        return Path(folder)

    def load_adapter_weights(self, folder: str | Path) -> None:
        """Put the weights that `save_adapter` wrote into this captioner's adapter, which must have the same shape."""
        if not isinstance(self.model, PeftModel):
            raise CaptionerError("there is no adapter to load weights into: call add_lora() first")
        set_peft_model_state_dict(self.model, load_peft_weights(str(folder), device=str(self.device)))

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside, the captioner is its base model (nothing to switch off where there is no adapter)."""
        if not isinstance(self.model, PeftModel):
            yield
            return
        with self.model.disable_adapter():
            yield
