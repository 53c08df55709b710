"""Supervised fine-tuning: maximum likelihood on images with captions, the ceiling that zero-label methods compare with.

    L(theta) = - sum_i sum_t log p_theta(y_i,t | y_i,<t, I_i)                                     HAR, equation 1

over a caption's tokens and its end token, averaged over the tokens of a batch; prompt and image tokens carry no loss.
LoRA on the language model learns by default, or all of its weights, head included; with `train_connector` the part
between vision tower and language model (HAR's projector W_proj) as well. The vision tower never learns.

With `image_dropout` p, an image is replaced by a blank one with probability p, which trains the branch of
classifier-free guidance without an image (Kornblith et al., section 3.1). An image with several references trains on
one of them per visit, sampled; with `condition` the value of a column of its stands before the prompt (NoC), with
`weights` a column's numbers w_i weigh the captions: L = - sum_i w_i sum_t log p / sum_i w_i T_i, T_i its tokens. With
`image_views` an image is seen in one of several views (`captune.data.views`); with `group_by_length` the data are the
single pairs of image and reference, and those of similar length share a batch. The first `text_steps` read captions
that come without images, after the prompt without its image. See docs/methods/sft.md.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from transformers.trainer_pt_utils import LengthGroupedSampler

from captune.data import load_references
from captune.data.images import blank
from captune.data.readers import nfc, read_entries
from captune.data.values import load_values
from captune.data.views import view
from captune.errors import SettingError, SourceError
from captune.models.captioner import Captioner
from captune.models.condition import Condition, as_written
from captune.runs.run_dir import RunDir
from captune.training.lifecycle import (
    claim_run,
    evaluation_source,
    finish_run,
    load_captioner,
    load_training_images,
    make_trainable,
)
from captune.training.sft.config import SFTConfig
from captune.training.trainer import CaptionerTrainer
from captune.utils import processes
from captune.utils.hashing import fingerprint
from captune.utils.skipped import skip

# -- batches -----------------------------------------------------------------------------------------------------------


class Pairs(torch.utils.data.Dataset):
    """A dataset's single pairs of image and reference, with the references' lengths in tokens.

    Args:
        rows: with the columns image and references.
        captioner: its tokenizer measures.
    """

    def __init__(self, rows: Any, captioner: Captioner) -> None:
        self.rows = rows
        self.pairs = [(i, place) for i, refs in enumerate(rows["references"]) for place in range(len(refs))]
        texts = [text for refs in rows["references"] for text in refs]
        self.lengths = [len(ids) for ids in captioner.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, place = self.pairs[index]
        example = self.rows[row]
        return {**example, "references": [example["references"][place]], "place": place}


class ByLength(LengthGroupedSampler):
    """transformers' sampler, with an order for each pass that does not depend on where training began."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Begin a pass over the data."""
        self.generator.manual_seed(self.seed + epoch)


class SFTTrainer(CaptionerTrainer):
    """`transformers.Trainer` whose batch is a list of {image, references}.

    Args:
        args: those of `CaptionerTrainer`.
        image_dropout: probability that a blank image stands for the image.
        image_views: how many views of an image there are.
        texts: captions without images.
        text_steps: the first steps, which read these.
        prompts: {image_id: the text beside the image for each of its references}; None: the captioner's for all.
        weights: {image_id: the weight of each of its references}, 1 on average; None: all weigh the same.
        kwargs: those of `CaptionerTrainer`.
    """

    def __init__(
        self,
        *args: Any,
        image_dropout: float = 0.0,
        image_views: int = 1,
        texts: Sequence[str] = (),
        text_steps: int = 0,
        prompts: Mapping[str, Sequence[str]] | None = None,
        weights: Mapping[str, Sequence[float]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.prompts, self.weights = prompts, weights
        self.image_dropout, self.image_views = image_dropout, image_views
        self.texts, self.text_steps = texts, text_steps
        self._batch = (-1, 0)  # optimiser step, and number of the batch in it

    def made_of(self) -> dict[str, Any]:
        """Return what a run that resumes must find as it was: texts, conditions and weights, too."""
        read = json.dumps([list(self.texts), self.prompts, self.weights], default=list)
        return super().made_of() | {"texts, conditions or weights of captions": fingerprint(read)}

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute loss and gradient of a batch, which knows which one of the optimiser step it is."""
        step = self.state.global_step
        self._batch = (step, self._batch[1] + 1) if self._batch[0] == step else (step, 0)
        return super().training_step(*args, **kwargs)

    def caption_loss(self, images: list[Any], examples: list[dict[str, Any]]) -> Tensor:
        """Return the loss of the module on one sampled reference of each image."""
        if self._reads_texts():
            captions = [self._own(example, "text").choice(self.texts) for example in examples]
            return self._weighed(text_loss(self.captioner, captions), captions)
        # of the step's own seed, so that a step that is repeated after a resume samples the same
        generator = random.Random(self._lot())
        shares = processes.gather([len(example["references"]) for example in examples])
        counts = [count for part in shares for count in part]  # of the whole batch, this process's from `first` on
        first = sum(map(len, shares[: processes.rank()]))
        chosen = [generator.choice(range(count)) for count in counts][first:]
        captions = [example["references"][index] for example, index in zip(examples, chosen, strict=False)]
        blanked = [generator.random() < self.image_dropout for _ in counts][first:]
        if self.image_views > 1:
            numbers = [self._own(example, "view").randrange(self.image_views) for example in examples]
            images = [
                view(image, number, example["image_id"], caption)
                for image, number, example, caption in zip(images, numbers, examples, captions, strict=True)
            ]
        images = [blank() if empty else image for image, empty in zip(images, blanked, strict=False)]
        places = [example.get("place", index) for example, index in zip(examples, chosen, strict=False)]
        prompts, weights = (_of_captions(own, examples, places) for own in (self.prompts, self.weights))
        loss = supervised_loss(self.captioner, images, captions, prompts=prompts, weights=weights)
        return self._weighed(loss, captions)

    def _reads_texts(self) -> bool:
        return self.state.global_step < self.text_steps

    def _own(self, example: dict[str, Any], what: str) -> random.Random:
        """Random numbers of an image at a step, whichever process it is on."""
        return random.Random(f"{self._lot()}/{what}/{example['image_id']}")

    def _lot(self) -> str:
        """What the lots of a batch are drawn with: batches that make up one optimiser step have their own."""
        _, number = self._batch
        return f"{self.args.seed}/{self.state.global_step}" + (f".{number}" if number else "")

    def _weighed(self, loss: Tensor, captions: Sequence[str]) -> Tensor:
        if processes.number() == 1:  # no share has to be weighed
            return loss
        return self.weigh(loss, sum(len(self.captioner.caption_ids(text)) + 1 for text in captions))

    def follow(self) -> None:
        """Take part in what the processes exchange in `caption_loss`, without an image."""
        if not self._reads_texts():
            processes.gather([])
        self.weigh(torch.zeros(()), 0)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        dataset = self.train_dataset if dataset is None else dataset
        if isinstance(dataset, Pairs):
            at_once = self.args.train_batch_size * self.args.gradient_accumulation_steps * processes.number()
            return ByLength(at_once, dataset.lengths, self.args.seed)
        return super()._get_train_sampler(dataset)


def _of_captions(values: Mapping[str, Sequence[Any]] | None, examples: Any, places: Sequence[int]) -> Any:
    """The value of each example's caption, the one at that place among its references; None without values."""
    if values is None:
        return None
    return [values[example["image_id"]][place] for example, place in zip(examples, places, strict=True)]


def supervised_loss(
    captioner: Captioner,
    images: Sequence[Any],
    captions: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Return the loss of the module, averaged over the tokens of the batch; a scalar.

    Args:
        captioner: what learns.
        images: B images.
        captions: one for each.
        prompts: the text beside each; default: the captioner's.
        weights: of the captions, each weighing its tokens; default: 1. The loss is divided by the number of tokens, so
            that a weight counts in a batch of one caption too.
    """
    batch = captioner.prepare(images, captions, prompts=prompts)
    mask = batch.pop("caption_mask")
    if weights is None:
        return captioner.model(**batch, use_cache=False).loss
    labels = batch.pop("labels")
    logits = captioner.model(**batch, use_cache=False).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
    share = mask[:, 1:] * torch.tensor(weights, device=mask.device, dtype=losses.dtype)[:, None]
    return (losses * share).sum() / mask[:, 1:].sum()


def text_loss(captioner: Captioner, captions: Sequence[str]) -> Tensor:
    """Return the loss of the module on captions without images, averaged over the tokens of the batch; a scalar.

    Each follows the prompt without the image's tokens.
    """
    text = captioner.prompt_text()
    prompt = captioner.tokenizer(text, add_special_tokens=captioner.adds_special_tokens(text))["input_ids"]
    ids = [token for token in prompt if token != captioner.core.config.image_token_id] or captioner.blind_prompt_ids()
    head = torch.tensor([ids] * len(captions), device=captioner.device)
    batch = captioner.append(BatchFeature({"input_ids": head, "attention_mask": torch.ones_like(head)}), captions)
    batch.pop("caption_mask")
    return captioner.model(**batch, use_cache=False).loss


def read_texts(source: str | None, judged: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """Return the captions of a file, each different one once; none without a file.

    Args:
        source: the file.
        judged: {image_id: references} of the images that the run is judged on. Their captions are left out, and
            counted, and so are those of an image of another id whose captions are all among the references of one.

    Raises:
        SourceError: it cannot be read, or holds no other caption.
    """
    if not source:
        return []
    judged = judged or {}
    said: dict[str, set[str]] = {}
    for image_id, references in judged.items():
        for text in references:
            said.setdefault(_wording(text), set()).add(image_id)
    texts: dict[str, None] = {}
    for entry in read_entries(Path(source)):
        alike = set.intersection(*(said.get(_wording(text), set()) for text in entry.references or ("",)))
        if nfc(entry.image_id) in judged or alike:
            skip("texts of images that the run is judged on", entry.image_id, len(entry.references))
        else:
            texts |= dict.fromkeys(entry.references)
    if not texts:
        raise SourceError(f"--texts {source} holds no caption{' of an image that is not judged' * bool(judged)}")
    return list(texts)


def _wording(text: str) -> str:
    return " ".join(text.lower().split())


def read_values(config: SFTConfig, name: str, rows: Any) -> dict[str, list[Any]]:
    """Return {image_id: the value of a column for each of its references} of the training images.

    Raises:
        SourceError: the source has no such column, or a caption has no value.
    """
    values = load_values(config.images, name, rows["image_id"], rows["references"])
    return dict(zip(rows["image_id"], values, strict=True))


def check_weights(config: SFTConfig, weights: dict[str, list[Any]]) -> dict[str, list[float]]:
    """Return weights that are numbers.

    Raises:
        SourceError: one is no number, or negative, or all are 0.
    """
    for image_id, own in weights.items():
        if not all(isinstance(one, int | float) and 0 <= one < math.inf for one in own):
            raise SourceError(f"{config.images}: a weight of image {image_id!r} is no number from 0 on: {own}")
    if not any(any(own) for own in weights.values()):
        raise SourceError(f"{config.images}: all weights are 0, so that nothing would be learned")
    mean = fmean(one for own in weights.values() for one in own)
    return {image_id: [one / mean for one in own] for image_id, own in weights.items()}


def run(config: SFTConfig) -> RunDir:
    """Train, save `adapter/`, evaluate, write the report."""
    run_dir = claim_run(config, "sft")
    if run_dir.done:
        return run_dir
    texts: list[str] = []
    if config.texts:
        judged = evaluation_source(config)
        texts = read_texts(config.texts, load_references(judged) if judged != config.images else None)
    captioner = load_captioner(config)
    dataset = load_training_images(config, references=True)
    condition = prompts = weights = None
    if config.condition is not None:
        values = read_values(config, config.condition, dataset)
        condition = Condition.of(config.condition, {one for own in values.values() for one in own}, captioner.prompt)
        prompts = {image_id: [condition.prompts[as_written(one)] for one in own] for image_id, own in values.items()}
        captioner.condition = condition
    if config.weights is not None:
        weights = check_weights(config, read_values(config, config.weights, dataset))
    make_trainable(captioner, config, connector=config.train_connector)
    # a trainable connector changes every step: only its input can be cached, where the family exposes that
    cacheable = not config.train_connector or captioner.family.tower_features
    if config.cache_features and not cacheable:
        raise SettingError(
            f"--cache-features keeps what the connector gives, and that of {captioner.family.name} would learn: leave "
            "it out, or leave out --train-connector"
        )
    with captioner.share_vision(alone=config.cache_features) if cacheable else nullcontext():
        data = Pairs(dataset, captioner) if config.group_by_length else dataset
        settings = {name: getattr(config, name) for name in ("image_dropout", "image_views", "text_steps")}
        SFTTrainer.fit(captioner, data, config, run_dir, texts=texts, prompts=prompts, weights=weights, **settings)
    captioner.freeze_vision()
    what = "all weights of the language model" if config.train_all_weights else "LoRA"
    method = f"supervised fine-tuning ({what}{' and the connector' if config.train_connector else ''})"
    under = None if condition is None else condition.prompts[condition.highest]  # it never saw the prompt alone
    return finish_run(config, run_dir, captioner, row="supervised", method=method, role="supervised", prompt=under)
