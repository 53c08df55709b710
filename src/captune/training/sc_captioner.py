"""SC-Captioner: a captioner learns to correct its own caption in a second turn (Zhang et al., ICCV 2025).

    L(theta) = - E [ (R(y_1, y_2, y*) - b) log pi_theta(y_2 | I, x_1, y_1, x_2) ] + beta KL_1                     (1)

y_1 is a caption that the captioner samples for image I and prompt x_1; x_2 asks it to check and correct it; y_2 is its
answer. y_1 has no gradient: it is what there is to correct. KL_1 keeps the first turn what it was: KL(pi_theta ||
pi_start), exact over the vocabulary, summed over the tokens of y_1.

**The reward.** A caption states objects, attributes and relations. The second turn adds those of y_2 that y_1 lacks and
removes those of y_1 that y_2 lacks. An element's support s is its largest similarity with one of the references y*.

    soft = sum_{o added} (s(o) - tau) + sum_{o removed} (tau - s(o))                             objects alone    (2)
    hard = sum_k   bonus_k (|{added: s > sure}| + |{removed: s < doubtful}|)
                 - punish_k (|{added: s < doubtful}| + |{removed: s > sure}|)                    each kind k      (3)
    R    = sigmoid(2 soft + hard) - 1/2                                                                           (4)

The same caption again has R = 0; where bonus = punish, R(y_2, y_1, y*) = -R(y_1, y_2, y*). An attribute is compared
with those that y* gives to the same object; where it gives none, nothing is known of it, and nothing counts.

**Published, and ours.** The equations' numbers are ours. Sampling both turns, beta = .05, (4), sure = .7, doubtful =
.6, .25 for an object, .15 for an attribute are those of the authors' program (github.com/zl2048/SC-Captioner). It
averages in (2), with tau .55 for what is added, .6 for what is removed (ours: sums, as in the paper, and .6, so that
undoing a correction undoes its reward), caps the counts of (3) at three, has no relations, passes over attributes of
objects that come or go, rewards no removed and punishes no added attribute, and has hard = -1 where y_2 = y_1
(`unchanged`). The paper rewards relations and punishes none, as they are hard to match; so do we, but for exact facts.
Its b is 0, with one y_2 for a y_1 (`baseline: none`); ours is the mean of the other samples. The program's KL is a
sampled log-ratio, whose gradient is about 0 on average, so that it holds little back; ours is the divergence itself.

**The second turn** is one of the chat template: image and prompt, the caption as the assistant's, the request x_2. A
base model has no turns and follows no request, but it writes a caption after an image: it is shown y_1, then the image.
Start from an adapter of `captune sft`, as the paper does: what is corrected should be a caption.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from captune.data.schemes import SOURCES, scheme_of
from captune.decoding.self_correct import SelfCorrection, correct, second_turn
from captune.models.captioner import Captioner
from captune.runs.run_dir import RunDir
from captune.scene_graphs import Parser, SceneGraph, merged
from captune.scorers import check_needs
from captune.scorers.reference.capture import DEFAULT_ENCODER, Capture
from captune.training.lifecycle import TrainingConfig, conclude, held_out, load_training_images, measure, start
from captune.training.method import Method
from captune.training.scst import SCSTTrainer, fit, leave_one_out, scst_loss, starting_captioner
from captune.training.sequences import caption_logits, sample

TAU, SURE, DOUBTFUL = 0.6, 0.7, 0.6
BONUS = {"object": 0.25, "attribute": 0.15, "relation": 0.15}


class GraphElements:
    """Scene graphs by the scorer `capture`'s parser and encoder; several references count as one text."""

    needs: tuple[str, ...] = ("references",)
    punished: tuple[str, ...] = ("object", "attribute")

    def __init__(self, parser: str | Parser = "grammar", encoder: Any = DEFAULT_ENCODER) -> None:
        self.scorer = Capture(parser=parser, encoder=encoder)
        self.scorer.check()

    def graphs(self, captions: Sequence[str]) -> list[SceneGraph]:
        return self.scorer.graphs(captions, [])[0]

    def truth(self, references: Sequence[Sequence[str]], **columns: Any) -> list[SceneGraph]:
        graphs = [merged(own) for own in self.scorer.graphs([], references)[1]]
        self.scorer.embed_graphs(graphs)
        return graphs

    def support(self, element: Any, truth: Sequence[Any]) -> float:
        """The largest similarity of an element with the true ones, of which there is one."""
        return float(self.scorer.matcher.cosines([element], truth).max())


Elements = GraphElements | Any  # or what a source offers: `Scheme.fact_reader`


def load_elements(spec: str) -> Elements:
    """What reads captions: a scene-graph parser, or the exact facts of the source scheme of this name."""
    reader = SOURCES[spec].fact_reader() if spec in SOURCES else None
    return reader if reader is not None else GraphElements(spec)


Change = tuple[str, bool, float]  # the kind of an element, whether it is added (or removed), its support


def changes(elements: Elements, first: SceneGraph, second: SceneGraph, truth: SceneGraph) -> list[Change]:
    """What the second caption changed, without what the truth does not speak of."""
    known, found = truth.attributes_of(), []
    for added, less, more in ((True, first, second), (False, second, first)):
        objects = [(o, truth.objects) for o in more.objects if o not in less.objects]
        attributes = [(a, known.get(o, ())) for o, a in more.attributes if (o, a) not in less.attributes]
        triples = [(r, truth.relations) for r in more.relations if r not in less.relations]
        kinds: tuple[list[tuple[Any, Any]], ...] = (objects, attributes, triples)
        for kind, own in zip(BONUS, kinds, strict=True):
            found += [(kind, added, elements.support(one, true)) for one, true in own if true]
    return found


def reward_of(found: Sequence[Change], punished: Sequence[str], hard: float = 0.0) -> float:
    """Equations 2 to 4; `hard` is where (3) begins."""
    soft = 0.0
    for kind, added, s in found:
        right, wrong = (s > SURE, s < DOUBTFUL) if added else (s < DOUBTFUL, s > SURE)
        hard += BONUS[kind] * (right - (wrong and kind in punished))
        if kind == "object":
            soft += s - TAU if added else TAU - s
    return 1 / (1 + math.exp(-2 * soft - hard)) - 0.5


class Corrections:
    """R, called as a scorer is; y_1 is the column `first`."""

    name: str = "corrections"
    optional_columns: tuple[str, ...] = ()

    def __init__(self, elements: Elements, unchanged: float = 0.0) -> None:
        self.elements, self.unchanged, self.required_columns = elements, unchanged, elements.needs
        self.parts = [(self, 1.0)]

    def __call__(self, captions: Sequence[str], *, first: Sequence[str], **columns: Any) -> list[float]:
        elements = self.elements
        graphs = elements.graphs(first), elements.graphs(captions), elements.truth(**columns)
        same = [one == two for one, two in zip(first, captions, strict=True)]
        return [
            reward_of(changes(elements, *three), elements.punished, self.unchanged if unchanged else 0.0)
            for unchanged, *three in zip(same, *graphs, strict=True)
        ]


def corrections(captioner: Captioner, images: Sequence[Any], **settings: Any) -> list[str]:
    """Corrections, generated with the settings, of the greedy captions."""
    greedy = captioner.generate(images, max_new_tokens=settings["max_new_tokens"])
    return correct(captioner, images, greedy, **settings)


@dataclass
class SCConfig(TrainingConfig):
    """Settings of SC-Captioner."""

    adapter: Path | None = field(default=None, metadata={"help": "a PEFT adapter folder to go on from"})
    elements: str = field(
        default="auto", metadata={"help": "what reads captions: grammar, factual, factual:FOLDER, or storybook's exact "
                                  "facts; default: storybook on storybook images, else grammar"},
    )  # fmt: skip
    baseline: Literal["mean", "none"] = field(
        default="mean", metadata={"help": "b: the mean reward of a caption's other corrections, or 0 as published"}
    )
    num_generations: int = field(default=5, metadata={"help": "corrections sampled for the caption of an image"})
    temperature: float = field(default=1.0, metadata={"help": "temperature of both turns"})
    max_new_tokens: int = field(default=40, metadata={"help": "longest caption in tokens"})
    unchanged: float = field(default=0.0, metadata={"help": "`hard` of a caption that is not changed (published: -1)"})
    beta: float = field(default=0.05, metadata={"help": "weight of KL of the first turn to that before training"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.elements == "auto":
            scheme = scheme_of(self.images)
            self.elements = scheme.name if scheme.fact_reader() is not None else "grammar"
        if self.num_generations < 1 + (self.baseline == "mean") or self.max_new_tokens < 1:
            raise ValueError("--num-generations must be at least 2 (1 with --baseline none), --max-new-tokens 1")
        if self.temperature <= 0 or self.beta < 0:
            raise ValueError("--temperature must be positive, and --beta not negative")


class SCTrainer(SCSTTrainer):
    """Equation 1 on a batch of images."""

    def caption_loss(self, images: list[Any], examples: list[dict[str, Any]]) -> Tensor:
        captioner, config = self.captioner, cast(Any, self.config)
        captioner.model.eval()
        self._memo.clear()  # so that a run which resumes encodes the same images together, to the same bits
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
            with torch.no_grad(), starting_captioner(captioner):
                base = caption_logits(captioner, prompt, heads)[0].log_softmax(-1)
            logits, _, mask = caption_logits(captioner, prompt, heads)
            mine = logits.log_softmax(-1)
            kl = ((mine.exp() * (mine - base)).sum(-1) * mask).sum(-1).mean()
            self._note("kl", kl.detach())
            loss = loss + config.beta * kl
        return loss


def run(config: SCConfig) -> RunDir:
    """Trains, saves `adapter/`, evaluates both turns, writes the report; see `TrainingConfig`."""
    run_dir, captioner = start(config, "sc-captioner")
    elements = load_elements(config.elements)
    images = load_training_images(config, references="references" in elements.needs)
    reward = Corrections(elements, config.unchanged)
    check_needs([cast(Any, reward)], {name: images[name] for name in images.column_names}, len(images))
    fit(SCTrainer, captioner, images, config, run_dir, reward, generate=partial(corrections, captioner))
    source = held_out(config)
    limit = 64 if source == config.images else None
    measure(captioner, source, run_dir, "SC-Captioner", limit=limit, decoder=SelfCorrection(), role="trained")
    method = f"SC-Captioner, elements by {config.elements}, from {config.adapter or 'the base'}"
    return conclude(config, run_dir, captioner, row="SC-Captioner, first turn", method=method)


METHOD = Method(
    name="sc-captioner",
    summary="train a captioner to correct its own captions (SC-Captioner)",
    description="The captioner writes a caption, is asked to correct it, and is rewarded for each object, attribute "
    "and relation that the correction rightly adds or removes. `--decoder self-correct` captions in two turns.",
    example="captune sc-captioner --model storybook --adapter runs/sft/adapter --images storybook:train "
    "--output runs/sc",
    config=SCConfig,
    run=run,
)
