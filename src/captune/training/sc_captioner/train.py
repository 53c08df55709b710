"""SC-Captioner: a captioner learns to correct its own caption in a second turn (Zhang et al., ICCV 2025).

    L(theta) = - E [ (R(y_1, y_2, y*) - b) log pi_theta(y_2 | I, x_1, y_1, x_2) ] + beta KL_1                     (1)
    soft = sum_{o added} (s(o) - tau) + sum_{o removed} (tau - s(o))                             objects alone    (2)
    hard = sum_k   bonus_k (|{added: s > sure}| + |{removed: s < doubtful}|)
                 - punish_k (|{added: s < doubtful}| + |{removed: s > sure}|)                    each kind k      (3)
    R    = sigmoid(2 soft + hard) - 1/2                                                                           (4)

y_1 is sampled for image I and prompt x_1 and has no gradient; x_2 asks to correct it; y_2 is the answer. KL_1 is
KL(pi_theta || pi_start) of the first turn, exact, summed over tokens. Added are the objects, attributes and relations
of y_2 that y_1 lacks, removed those of y_1 that y_2 lacks; s is an element's largest similarity with one of the
references y*. An attribute is compared with those that y* gives to the same object; without any it does not count.

The equations' numbers are ours. docs/methods/sc-captioner.md lists where paper and authors' program differ from this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from captune.data.schemes import SOURCES
from captune.decoding.self_correct import SelfCorrection, correct, second_turn
from captune.errors import MissingColumn
from captune.models.captioner import Captioner
from captune.runs.run_dir import RunDir
from captune.scene_graphs import Parser, SceneGraph, merged
from captune.scorers._support.scene_graphs import DEFAULT_ENCODER
from captune.scorers.reference.capture import Capture
from captune.training.lifecycle import (
    caption_and_score,
    claim_run,
    evaluation_source,
    evaluation_terms,
    finish_run,
    load_captioner,
    load_training_images,
    starting_captioner,
)
from captune.training.losses import leave_one_out, scst_loss, token_kl, token_logprobs
from captune.training.sc_captioner.config import SCConfig
from captune.training.scst.train import RewardTrainer, fit
from captune.training.sequences import caption_logits, sample
from captune.training.sharing import SharedNoise
from captune.utils import processes

TAU, SURE, DOUBTFUL = 0.6, 0.7, 0.6
BONUS = {"object": 0.25, "attribute": 0.15, "relation": 0.15}


class FactSource(Protocol):
    """What reads captions as scene graphs and says how far a reading is true."""

    needs: tuple[str, ...]  # columns that `truth` takes
    punished: tuple[str, ...]  # kinds of elements whose errors cost

    def graphs(self, captions: Sequence[str]) -> list[SceneGraph]:
        """Return the scene graph of each caption."""
        ...

    def truth(self, **columns: Any) -> list[SceneGraph]:
        """Return the true scene graph of each image."""
        ...

    def support(self, element: Any, truth: Sequence[Any]) -> float:
        """Return the largest similarity of an element with one of the true ones, of which there is one at least."""
        ...


class GraphFacts:
    """Scene graphs by the scorer `capture`'s parser and encoder; several references count as one text.

    Args:
        parser: a scene-graph parser or its spec.
        encoder: an encoder of words or its name.

    Raises:
        ScorerError: the parser or the encoder is missing.
    """

    needs: tuple[str, ...] = ("references",)
    punished: tuple[str, ...] = ("object", "attribute")

    def __init__(self, parser: str | Parser = "grammar", encoder: Any = DEFAULT_ENCODER) -> None:
        self.scorer = Capture(parser=parser, encoder=encoder)
        self.scorer.check()

    def graphs(self, captions: Sequence[str]) -> list[SceneGraph]:
        """Return the scene graph of each caption."""
        return self.scorer.graphs(captions, [])[0]

    def truth(self, **columns: Any) -> list[SceneGraph]:
        """Return one scene graph for each image's `references`."""
        graphs = [merged(refs) for refs in self.scorer.graphs([], columns["references"])[1]]
        self.scorer.embed_graphs(graphs)
        return graphs

    def support(self, element: Any, truth: Sequence[Any]) -> float:
        """Return the largest cosine of an element with one of the true ones, of which there is one at least."""
        return float(self.scorer.matcher.cosines([element], truth).max())


def load_fact_source(spec: str) -> FactSource:
    """Load what reads captions.

    Args:
        spec: a scene-graph parser (grammar, factual, factual:FOLDER), or a source whose exact facts it offers.

    Raises:
        ScorerError: a parser or an encoder is missing.
    """
    reader: FactSource | None = SOURCES[spec].fact_reader() if spec in SOURCES else None
    return reader if reader is not None else GraphFacts(spec)


Change = tuple[str, bool, float]  # the kind of an element, whether it is added (or removed), its support


def changes(facts: FactSource, first: SceneGraph, second: SceneGraph, truth: SceneGraph) -> list[Change]:
    """Return what the second caption changed, without what the truth is silent on."""
    true_attributes = truth.attributes_of()
    changed: list[Change] = []
    for added, less, more in ((True, first, second), (False, second, first)):
        objects = [(o, truth.objects) for o in more.objects if o not in less.objects]
        attributes = [(a, true_attributes.get(o, ())) for o, a in more.attributes if (o, a) not in less.attributes]
        triples = [(r, truth.relations) for r in more.relations if r not in less.relations]
        kinds: tuple[list[tuple[Any, Any]], ...] = (objects, attributes, triples)
        for kind, elements in zip(BONUS, kinds, strict=True):
            changed += [(kind, added, facts.support(element, true)) for element, true in elements if true]
    return changed


def reward_of(changed: Sequence[Change], punished: Sequence[str], hard: float = 0.0) -> float:
    """Return R by equations 2 to 4.

    Args:
        changed: from `changes`.
        punished: the kinds of elements whose errors cost.
        hard: where (3) begins.
    """
    soft = 0.0
    for kind, added, s in changed:
        right, wrong = (s > SURE, s < DOUBTFUL) if added else (s < DOUBTFUL, s > SURE)
        hard += BONUS[kind] * (right - (wrong and kind in punished))
        if kind == "object":
            soft += s - TAU if added else TAU - s
    return 1 / (1 + math.exp(-2 * soft - hard)) - 0.5


class Corrections:
    """R as a reward of y_2; y_1 is the column `first`.

    Args:
        facts: reads captions.
        unchanged: `hard` of a caption that is not changed.
    """

    name: str = "corrections"
    optional_columns: tuple[str, ...] = ()

    def __init__(self, facts: FactSource, unchanged: float = 0.0) -> None:
        self.facts, self.unchanged, self.required_columns = facts, unchanged, facts.needs
        self.parts: Sequence[tuple[Corrections, float]] = [(self, 1.0)]

    def check(self, columns: Sequence[str]) -> None:
        """Check that the training images have the columns.

        Raises:
            MissingColumn: one is missing.
        """
        missing = [need for need in self.required_columns if need not in columns]
        if missing:
            names = " and ".join(missing)
            raise MissingColumn(
                f"the reward {self.name!r} needs {names}; the images have {', '.join(columns)}. "
                f"Give a source with {names}, or another --fact-source."
            )

    def __call__(self, completions: Any, **columns: Any) -> list[float]:
        """Return R of each caption, as a correction of the column `first`."""
        first = columns.pop("first")
        facts = self.facts
        graphs = facts.graphs(first), facts.graphs(completions), facts.truth(**columns)
        same = [one == two for one, two in zip(first, completions, strict=True)]
        return [
            reward_of(changes(facts, *three), facts.punished, self.unchanged if unchanged else 0.0)
            for unchanged, *three in zip(same, *graphs, strict=True)
        ]


def corrections(captioner: Captioner, images: Sequence[Any], **settings: Any) -> list[str]:
    """Return corrections, generated with the settings, of the greedy captions."""
    greedy = captioner.generate(images, max_new_tokens=settings["max_new_tokens"])
    return correct(captioner, images, greedy, **settings)


class SCTrainer(RewardTrainer):
    """Equation 1 on a batch of images."""

    config: SCConfig

    def caption_loss(self, images: list[Any], examples: list[dict[str, Any]]) -> Tensor:
        """Return the loss of the module on a batch of images."""
        captioner, config = self.captioner, self.config
        captioner.model.eval()
        self._memo.begin_batch()
        sampled = partial(sample, captioner, temperature=config.temperature, max_new_tokens=config.max_new_tokens)
        prompt = captioner.prepare(images)
        heads, _ = sampled(prompt, 1, greedy=False)
        first = captioner.decode(heads)
        request = second_turn(captioner, images, first)
        tails, ended = sampled(request, config.num_generations, greedy=False)
        captions = captioner.decode(tails)
        rows = [{**example, "first": caption} for example, caption in zip(examples, first, strict=True)]
        rewards = self._rewards(captions, ended, rows, config.num_generations)
        baseline = leave_one_out(rewards) if config.baseline == "mean" else torch.zeros_like(rewards)
        logits, ids, mask = caption_logits(captioner, request, tails)
        logprobs = token_logprobs(logits, ids, config.temperature)
        loss, advantages = scst_loss(logprobs, mask, rewards.flatten(), baseline.flatten())
        loss = self.weigh(loss, len(images))
        self._note("reward", rewards.nanmean())
        self._note("advantage_std", advantages.std(correction=0))
        same = [text == first[index // config.num_generations] for index, text in enumerate(captions)]
        self._note("unchanged", sum(same) / len(same))
        self._note_health(captions, ended)
        if config.beta:
            with torch.no_grad(), starting_captioner(captioner):
                start = caption_logits(captioner, prompt, heads)[0]
            logits, _, mask = caption_logits(captioner, prompt, heads)
            kl = (token_kl(logits, start) * mask).sum(-1).mean()
            self._note("kl", kl.detach())
            loss = loss + config.beta * self.weigh(kl, len(images))
        return loss

    def follow(self) -> None:
        """Take part in what the processes exchange in `caption_loss`, without an image."""
        for _ in range(2):  # turns
            SharedNoise.watch(self.captioner.device)
        for _ in range(1 + bool(self.config.beta)):
            self.weigh(torch.zeros(()), 0)


def run(config: SCConfig) -> RunDir:
    """Train, save `adapter/`, evaluate both turns, write the report."""
    run_dir = claim_run(config, "sc-captioner")
    if run_dir.done:
        return run_dir
    captioner = load_captioner(config)
    facts = load_fact_source(config.fact_source)
    images = load_training_images(config, references="references" in facts.needs)
    reward = Corrections(facts, config.unchanged_reward)
    reward.check(images.column_names)
    generate = partial(corrections, captioner)
    fit(SCTrainer, captioner, images, config, run_dir, reward, first_turn=True, generate=generate)
    processes.on_first(
        caption_and_score,
        captioner,
        evaluation_source(config),
        run_dir,
        "SC-Captioner",
        decoder=SelfCorrection(),
        role="trained",
        **evaluation_terms(config, captioner),
    )
    method = f"SC-Captioner, facts by {config.fact_source}, from {config.adapter or 'the base'}"
    return finish_run(config, run_dir, captioner, row="SC-Captioner, first turn", method=method)
