"""SC-Captioner: a captioner learns to correct its own caption in a second turn (Zhang et al., ICCV 2025).

    L(theta) = - E [ (R(y_1, y_2, y*) - b) log pi_theta(y_2 | I, x_1, y_1, x_2) ] + beta KL_1                      (1)

y_1 is a caption that the captioner samples for image I and prompt x_1; x_2 asks it to check that caption and to correct
it; y_2 is what it then says. y_1 has no gradient: it is what there is to correct. KL_1 keeps the captions of the first
turn what they were: KL(pi_theta || pi_start), exact over the vocabulary, summed over the tokens of y_1.

**The reward.** O(y), A(y), R(y) are the objects, attributes and relations that a caption states (`Elements`). What the
second turn added is O(y_2) - O(y_1), what it removed is O(y_1) - O(y_2), and so on. An element's support s is its largest
similarity with an element of the references, 1 if they state it.

    soft = sum_{o added} (s(o) - tau) + sum_{o removed} (tau - s(o))                              objects alone    (2)
    hard = sum_k  bonus_k  (|{e added: s(e) > sure}| + |{e removed: s(e) < doubtful}|)
                - punish_k (|{e added: s(e) < doubtful}| + |{e removed: s(e) > sure}|)            k: O, A, R       (3)
    R(y_1, y_2, y*) = sigmoid(2 soft + hard) - 1/2                                                                 (4)

A caption that says the same again has R = 0, and where bonus = punish, R(y_2, y_1, y*) = -R(y_1, y_2, y*). Attributes are
compared with those that the references give to the same object; where they give it none, nothing is known of it.

**What is published, and what is ours.** (1)-(4) are numbered here. Thresholds (sure .7, doubtful .6), weights (.25 for
an object, .15 for an attribute), (4), sampling of both turns and beta = .05 are those of the authors' program
(github.com/zl2048/SC-Captioner), which differs from the paper's words: it averages in (2) with two values of tau (.55 for
what is added, .6 for what is removed; ours is .6 for both, so that undoing a correction undoes its reward), caps (3) at
three elements, has no relations, judges no attribute of an object that came or went, neither rewards removed nor punishes
added attributes, and gives an unchanged caption hard = -1 (`unchanged`). The paper rewards relations and punishes none,
as matching them is uncertain; so do we, where the truth is not exact. Its objective has b = 0 (`baseline: none`), with one
y_2 per y_1; ours samples `num_generations` and takes the mean of the others. The program's KL is the sampled log-ratio,
whose expected gradient is 0, so that it holds back nothing; ours is the divergence. Not stated: how y_1 is drawn at test
time (here greedily).

**The second turn** goes through the chat template: image and prompt, the caption as the assistant's turn, the request. A
base model without turns follows no request, and ends a text that has ended; but it writes a caption after an image. It is
shown its caption, then the image.

Start from `captune sft`'s adapter, as the paper does. `correct` is the second turn for any captions, and `SelfCorrection`
makes both.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from captune.captioner import Captioner
from captune.loading import load_adapter
from captune.methods.scst import REFERENCE, SCSTTrainer, leave_one_out, scst_loss, starting_captioner
from captune.methods.sequences import caption_logits, sample
from captune.methods.sft import freeze_vision
from captune.methods.training import TrainingConfig, conclude, held_out, load_training_images, measure, start
from captune.runs import RunDir
from captune.scene_graphs import Parser, SceneGraph, merged
from captune.scorers import check_needs
from captune.scorers.capture import DEFAULT_ENCODER, Capture
from captune.storybook import parser as facts
from captune.storybook.world import Scene, relations

REQUEST = (
    "Check this caption against the image: its objects, their attributes and the relations between them. Leave out what "
    "is not in the image and add what is missing. Answer with the corrected caption alone."
)
TAU, SURE, DOUBTFUL = 0.6, 0.7, 0.6
BONUS = {"object": 0.25, "attribute": 0.15, "relation": 0.15}


# -- the elements of captions ------------------------------------------------------------------------------------------


class Elements(Protocol):
    """What finds the elements of captions and knows which of them are true."""

    needs: tuple[str, ...]  # columns of the data that hold the truth
    punished: tuple[str, ...]  # kinds of elements whose mistakes are punished

    def graphs(self, captions: Sequence[str]) -> list[SceneGraph]: ...

    def truth(self, columns: dict[str, Sequence[Any]]) -> list[SceneGraph]: ...

    def support(self, element: Any, truth: Sequence[Any]) -> float:
        """The largest similarity of an object, an attribute or a relation with the true ones, of which there is one."""


class GraphElements:
    """Scene graphs, similar by the cosine of sentence embeddings; several references count as one text.

    Args:
        parser, encoder: as of the scorer `capture`.
    """

    needs: tuple[str, ...] = ("references",)
    punished: tuple[str, ...] = ("object", "attribute")

    def __init__(self, parser: str | Parser = "grammar", encoder: Any = DEFAULT_ENCODER, device: str | None = None):
        self.scorer = Capture(parser=parser, encoder=encoder, device=device)
        self.scorer.check()

    def graphs(self, captions: Sequence[str]) -> list[SceneGraph]:
        found, _ = self.scorer.graphs(captions, [])
        self.scorer.embed_graphs(found)
        return found

    def truth(self, columns: dict[str, Sequence[Any]]) -> list[SceneGraph]:
        return [merged(self.graphs(own)) for own in columns["references"]]

    def support(self, element: Any, truth: Sequence[Any]) -> float:
        return float(self.scorer.matcher.cosines([element], truth).max())


class FactElements:
    """The exact facts of storybook captions (`captune.storybook.parser`): true or not; a background is an object."""

    needs: tuple[str, ...] = ("scene",)
    punished: tuple[str, ...] = ("object", "attribute", "relation")

    def graphs(self, captions: Sequence[str]) -> list[SceneGraph]:
        return [self._graph(facts.parse(caption)) for caption in captions]

    @staticmethod
    def _graph(found: Sequence[facts.Fact]) -> SceneGraph:
        objects = [fact.value[0] for fact in found if fact.type in ("object", "background")]
        attributes = [fact.value for fact in found if fact.type in ("attribute", "size", "subkind")]
        related = [facts.canonical(fact.value) for fact in found if fact.type == "relation"]
        return merged([SceneGraph(tuple(objects), cast(Any, tuple(attributes)), cast(Any, tuple(related)))])

    def truth(self, columns: dict[str, Sequence[Any]]) -> list[SceneGraph]:
        return [self._scene(Scene.from_json(text)) for text in columns["scene"]]

    @staticmethod
    def _scene(scene: Scene) -> SceneGraph:
        things = scene.things
        own = [(t.kind, word) for t in things for word in (t.colour, t.size, t.subkind) if word is not None]
        related = [facts.canonical((a.kind, r, b.kind)) for a in things for b in things for r in relations(a, b)]
        return merged(
            [SceneGraph((*(t.kind for t in things), scene.background), tuple(own), cast(Any, tuple(related)))]
        )

    def support(self, element: Any, truth: Sequence[Any]) -> float:
        return float(element in truth)


# -- the reward --------------------------------------------------------------------------------------------------------


def changes(first: SceneGraph, second: SceneGraph, truth: SceneGraph, support: Callable[[Any, Sequence[Any]], float]
            ) -> list[tuple[str, bool, float]]:  # fmt: skip
    """What the second caption changed: (kind, whether added, support); without what the truth does not speak of."""
    known = truth.attributes_of()
    found = []
    for added, less, more in ((True, first, second), (False, second, first)):
        if truth.objects:
            gone = [o for o in more.objects if o not in less.objects]
            found += [("object", added, support(o, truth.objects)) for o in gone]
        pairs = [(o, a) for o, a in more.attributes if (o, a) not in less.attributes and o in known]
        found += [("attribute", added, support(a, known[o])) for o, a in pairs]
        if truth.relations:
            triples = [r for r in more.relations if r not in less.relations]
            found += [("relation", added, support(r, truth.relations)) for r in triples]
    return found


def reward_of(found: Sequence[tuple[str, bool, float]], punished: Sequence[str], hard: float = 0.0) -> float:
    """Equations 2 to 4. `hard` is where (3) begins."""
    soft = 0.0
    for kind, added, s in found:
        right, wrong = (s > SURE, s < DOUBTFUL) if added else (s < DOUBTFUL, s > SURE)
        hard += BONUS[kind] * (right - (wrong and kind in punished))
        if kind == "object":
            soft += s - TAU if added else TAU - s
    return 1 / (1 + math.exp(-2 * soft - hard)) - 0.5


class Corrections:
    """R(y_1, y_2, y*), as a function with a scorer's signature; y_1 is the column `first`."""

    name = "corrections"

    def __init__(self, elements: Elements, unchanged: float = 0.0) -> None:
        self.elements, self.unchanged = elements, unchanged
        self.parts = [(self, 1.0)]  # a sum of one

    def __call__(self, captions: Sequence[str], *, first: Sequence[str], **columns: Any) -> list[float]:
        elements = self.elements
        before, after, truth = elements.graphs(first), elements.graphs(captions), elements.truth(columns)
        rewards = []
        for one, two, *graphs in zip(first, captions, before, after, truth, strict=True):
            found = changes(*graphs, elements.support)
            rewards.append(reward_of(found, elements.punished, self.unchanged if one == two else 0.0))
        return rewards


# -- the second turn ---------------------------------------------------------------------------------------------------


def second_turn(captioner: Captioner, images: Sequence[Image.Image], captions: Sequence[str]) -> BatchFeature:
    """A prompt batch that asks for the correction of each image's caption, LEFT padded, on the device."""
    texts = []
    for caption in captions:
        for token in captioner.tokenizer.all_special_tokens:  # a caption holds no image and ends no turn
            caption = caption.replace(token, " ")
        texts.append(_conversation(captioner, caption.strip()))
    batch = captioner.processor(
        text=texts,
        images=[[image if image.mode == "RGB" else image.convert("RGB")] for image in images],
        padding=True,
        padding_side="left",
        add_special_tokens=captioner._specials(texts[0]),
        return_tensors="pt",
    )
    return batch.to(captioner.device, dtype=captioner.dtype)


def _conversation(captioner: Captioner, caption: str) -> str:
    messages = captioner.conversation()
    if captioner._turns():
        for role, text in (("assistant", caption), ("user", REQUEST)):
            messages.append({"role": role, "content": [{"type": "text", "text": text}]})
    else:
        messages[0]["content"].insert(0, {"type": "text", "text": f"{caption}\n"})
    return captioner.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def correct(captioner: Captioner, images: Sequence[Image.Image], captions: Sequence[str], **settings: Any) -> list[str]:
    """The captions as the captioner corrects them; settings are those of `Captioner.generate`."""
    return captioner.generate(second_turn(captioner, images, captions), **settings)


@dataclass(frozen=True)
class SelfCorrection:
    """ "self-correct", "self-correct:2": captions, and so many corrections of them, each of the one before."""

    turns: int = 1

    positional: ClassVar = ("turns",)
    example: ClassVar = "self-correct:1"
    samples: ClassVar = False
    needs: ClassVar = ()

    def __post_init__(self) -> None:
        if self.turns < 1:
            raise ValueError(f"self-correct needs at least one correction, not {self.turns}")

    @property
    def signature(self) -> str:
        return f"self-correct:{self.turns}|request:{REQUEST}"

    def __call__(self, captioner: Captioner, images: Sequence[Any], **settings: Any) -> list[str]:
        with captioner.share_vision():
            captions = captioner.generate(images, **settings)
            for _ in range(self.turns):
                captions = correct(captioner, images, captions, **settings)
        return captions


# -- training ----------------------------------------------------------------------------------------------------------


@dataclass
class SCConfig(TrainingConfig):
    """Settings of SC-Captioner."""

    adapter: Path | None = field(
        default=None, metadata={"help": "a PEFT adapter folder to go on from, with its own LoRA shape"}
    )
    elements: str = field(
        default="auto",
        metadata={"help": "who finds what captions state: grammar, factual, factual:FOLDER, or storybook's exact facts; "
                  "default: storybook on storybook images, else grammar"},
    )  # fmt: skip
    baseline: Literal["mean", "none"] = field(
        default="mean", metadata={"help": "b: the mean reward of the other corrections, or 0 as published"}
    )
    num_generations: int = field(default=5, metadata={"help": "corrections sampled for the caption of an image"})
    temperature: float = field(default=1.0, metadata={"help": "temperature of both turns"})
    max_new_tokens: int = field(default=40, metadata={"help": "longest caption in tokens"})
    unchanged: float = field(default=0.0, metadata={"help": "added to `hard` of an unchanged caption (published: -1)"})
    beta: float = field(default=0.05, metadata={"help": "weight of KL of the first turn to that before training"})
    max_steps: int = field(default=60, metadata={"help": "optimiser steps"})
    learning_rate: float = field(default=5e-4, metadata={"help": "peak learning rate of AdamW; warm-up, then cosine"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.elements == "auto":
            self.elements = "storybook" if self.images.startswith("storybook:") else "grammar"
        least = 2 if self.baseline == "mean" else 1
        if self.num_generations < least:
            raise ValueError(f"--num-generations must be at least {least} with --baseline {self.baseline}, "
                             f"it is {self.num_generations}")  # fmt: skip
        if self.temperature <= 0 or self.beta < 0 or self.max_new_tokens < 1:
            raise ValueError("--temperature must be positive, --beta not negative, and --max-new-tokens at least 1")


class SCTrainer(SCSTTrainer):
    """Equation 1 on a batch of images."""

    def caption_loss(self, images: list[Any], examples: list[dict[str, Any]]) -> Tensor:
        self._memo.clear()  # so that a run which resumes encodes the same images together, to the same bits
        self.captioner.model.eval()
        captioner, config = self.captioner, cast(Any, self.config)
        draw = partial(sample, captioner, temperature=config.temperature, max_new_tokens=config.max_new_tokens)
        prompt = captioner.prepare(images)
        heads, _ = draw(prompt, 1, greedy=False)
        first = captioner.decode(heads)
        request = second_turn(captioner, images, first)
        tails, ended = draw(request, config.num_generations, greedy=False)
        captions = captioner.decode(tails)
        told = [{**example, "first": caption} for example, caption in zip(examples, first, strict=True)]
        rewards = self._rewards(captions, ended, told, config.num_generations)
        baseline = leave_one_out(rewards) if config.baseline == "mean" else torch.zeros_like(rewards)
        logits, ids, mask = caption_logits(captioner, request, tails)
        logprobs = (logits / config.temperature).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        loss, advantages = scst_loss(logprobs, mask, rewards.flatten(), baseline.flatten())
        self._note("reward", rewards.nanmean())
        self._note("advantage_std", advantages.std(correction=0))
        same = [text == first[place // config.num_generations] for place, text in enumerate(captions)]
        self._note("unchanged", sum(same) / len(same))
        self._note_health(captions, ended)
        if config.beta:
            kl = self._first_turn_kl(prompt, heads)
            self._note("kl", kl.detach())
            loss = loss + config.beta * kl
        return loss

    def _first_turn_kl(self, prompt: BatchFeature, heads: list[list[int]]) -> Tensor:
        with torch.no_grad(), starting_captioner(self.captioner):
            base = caption_logits(self.captioner, prompt, heads)[0].log_softmax(-1)
        logits, _, mask = caption_logits(self.captioner, prompt, heads)
        mine = logits.log_softmax(-1)
        return ((mine.exp() * (mine - base)).sum(-1) * mask).sum(-1).mean()


def run(config: SCConfig) -> RunDir:
    """Trains, saves `adapter/`, evaluates both turns, writes the report; see `TrainingConfig`."""
    run_dir, captioner = start(config, "sc-captioner")
    elements = FactElements() if config.elements == "storybook" else GraphElements(config.elements)
    images = load_training_images(config, references="references" in elements.needs)
    reward = Corrections(elements, config.unchanged)
    check_needs([cast(Any, elements)], {name: images[name] for name in images.column_names}, len(images))
    if config.adapter is None:
        captioner.add_lora(config.lora_r, config.lora_alpha, config.lora_dropout)
    else:
        captioner.model = load_adapter(captioner.core, config.adapter, trainable=True)
        if config.beta:
            captioner.model.load_adapter(str(config.adapter), REFERENCE)
        freeze_vision(captioner)
    SCTrainer.fit(captioner, images, config, run_dir, reward=reward, scst_config=config)
    if config.adapter and config.beta:
        cast(Any, captioner.model).delete_adapter(REFERENCE)
    corrected = copy.copy(captioner)
    vars(corrected)["generate"] = partial(SelfCorrection(), captioner)
    source = held_out(config)
    measure(corrected, source, run_dir, "SC-Captioner", limit=64 if source == config.images else None)
    begun = f", from the adapter {config.adapter}" if config.adapter else ""
    method = f"SC-Captioner, elements by {config.elements}{begun}"
    return conclude(config, run_dir, captioner, row="SC-Captioner, first turn", method=method)
