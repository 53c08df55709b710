"""Training of a reward model on pairs of captions of an image, one of them preferred (Compress & Align, 2023).

    L = - mean log sigmoid(r(x, c+) - r(x, c-))                 Bradley-Terry; r: `captune.models.reward_model`

Compress & Align has people rank an image's captions, makes pairs of the ranks, ties among them, and learns a reward by
which web captions are kept. It leaves open what is public nowhere: the loss, the backbone, and how ties enter. Here the
backbone is a frozen CLIP, whose cosine r begins as. A tie is half a win of each caption: its loss is least where both
rewards are equal. Accuracy counts no ties. A pair that stands several times counts so often. The step is chosen by
accuracy on pairs of held-out images, step 0 (the encoder's own order) among them.
"""

from __future__ import annotations

import json
import shlex

import numpy as np
import torch
from torch import Tensor

from captune.errors import SourceError, redact
from captune.evaluation.correlation import Figures, fought
from captune.evaluation.statistics import percentiles
from captune.models.encoders import load_encoder
from captune.models.heads import CONFIG, WEIGHTS, Frozen
from captune.models.reward_model import Accuracy, RewardConfig, RewardHead
from captune.runs.card import cell, code, one_line
from captune.runs.run_dir import RunDir
from captune.training.features import vectors_of, without_shared
from captune.training.heads import FEATURES, HeadTraining, finished, fit, opened_run
from captune.training.reward_model.config import RewardModelConfig
from captune.training.reward_model.data import Pairs, judged, pairs_of, three_parts
from captune.utils.hashing import fingerprint

PARTS = (CONFIG, WEIGHTS, FEATURES)  # config.json first: without it an earlier model is none
RESAMPLES = 1000
Z = 1.96
_DECIMALS = 6  # of a difference of rewards: what rounding can change is a tie


def bradley_terry(difference: Tensor, winner: Tensor) -> Tensor:
    """Return L of the module, a scalar.

    Args:
        difference: (B,) rewards of the first caption less those of the second.
        winner: (B,) 1 the first, -1 the second, 0 a tie.
    """
    wins = (winner.to(difference.dtype) + 1) / 2
    return torch.nn.functional.binary_cross_entropy_with_logits(difference, wins)


def differences(head: RewardHead, images: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return (B,) r(x, first) - r(x, second) of unit vectors (B, D)."""
    both = head(torch.cat([images, images]), torch.cat([first, second]))
    return both[: len(images)] - both[len(images) :]


class Training(HeadTraining):
    """The head of a reward model, and all that a checkpoint holds of it; begins with a look at the encoder's order."""

    heads: RewardHead
    figure = "accuracy"

    def __init__(self, head: RewardHead, config: RewardModelConfig, choice: Pairs) -> None:
        super().__init__(head, config, undecayed=("log_scale",))
        self.best = (self.measure(choice), 0)

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the loss of images, first and second captions (B, D) and who won (B,)."""
        images, first, second, winner = batch
        return bradley_terry(differences(self.heads, images, first, second), winner)

    def measure(self, choice: Pairs) -> float:
        """Return the accuracy on the pairs that choose the step."""
        found = _figures(_told(self.heads, choice), choice, 0).values["pairwise_accuracy"]
        return round(found, _DECIMALS)


@torch.no_grad()
def _told(head: RewardHead, pairs: Pairs) -> np.ndarray:
    """(P,) differences of the rewards."""
    images, first, second, _ = pairs.batch(torch.arange(len(pairs)))
    return differences(head.eval(), images, first, second).double().numpy().round(_DECIMALS)


def _figures(difference: np.ndarray, pairs: Pairs, resamples: int) -> Figures:
    return fought(pairs.image.numpy(), pairs.winner.numpy(), difference, resamples=resamples, seed=0)


def _interval(found: Figures, images: int) -> tuple[float, float] | None:
    """95%, of a bootstrap over images; where all or none are right, which no resample changes, Wilson's."""
    value, drawn = found.values["pairwise_accuracy"], found.drawn.get("pairwise_accuracy")
    if drawn is None:
        return None
    low, high = percentiles(drawn, 0.95)
    if low == high and value in (0.0, 1.0):
        side = images / (images + Z**2)
        low, high = (side, 1.0) if value else (0.0, 1 - side)
    return round(low, 4), round(high, 4)


def accuracy(head: RewardHead, pairs: Pairs, source: str) -> Accuracy:
    """Measure a head on pairs that it has not seen, its encoder's cosine beside it."""
    images, first, second, winner = pairs.batch(torch.arange(len(pairs)))
    cosine = ((images * first).sum(-1) - (images * second).sum(-1)).double().numpy().round(_DECIMALS)
    found = _figures(_told(head, pairs), pairs, RESAMPLES)
    decided = winner != 0
    number = len(pairs.image[decided].unique())
    return Accuracy(
        source=source,
        images=number,
        pairs=int(decided.sum()),
        value=round(found.values["pairwise_accuracy"], 4),
        interval=_interval(found, number),
        encoder=round(_figures(cosine, pairs, 0).values["pairwise_accuracy"], 4),
    )


def run(config: RewardModelConfig) -> RunDir:
    """Train a reward model, state its accuracy, save it; a run that was stopped resumes, a finished one is left."""
    run_dir = opened_run(config, "reward-model", PARTS)
    if run_dir.done:
        return run_dir
    unseen_source = judged(config.eval_pairs, config.images) if config.eval_pairs else None
    parts = three_parts(judged(config.pairs, config.images, config.limit), unseen_source)
    encoder = load_encoder(config.encoder, config.device)
    run_dir.begin()
    folder = config.features or run_dir.path / FEATURES
    train, choice, unseen = (vectors_of(folder, part.data, encoder, encoder, whole=False) for part in parts)
    choice = without_shared(choice, "to choose a step", unseen)
    train = without_shared(train, "to learn from", choice, unseen)
    learned, chosen, stated = (
        pairs_of(own, part.preferences) for own, part in zip((train, choice, unseen), parts, strict=True)
    )
    for pairs, part, use in (
        (learned, parts[0], "to learn from"),
        (chosen, parts[1], "to choose a step"),
        (stated, parts[2], "to state accuracy on"),
    ):
        if not bool((pairs.winner != 0).any()):
            raise SourceError(f"{part.source}: no pair with a winner is left {use}")
    torch.manual_seed(config.seed)
    training = Training(RewardHead(train.texts.shape[-1], config.hidden, config.dropout), config, chosen)
    told = [list(one) for part in parts[:2] for one in part.preferences]
    read = [[part.ids, part.contents] for part in (train, choice)]
    training.data = fingerprint(json.dumps([read, told, encoder.digest]))

    def draw(step: int) -> tuple[Tensor, ...]:
        rows = np.random.default_rng((config.seed, step)).permutation(len(learned))[: config.batch_size]
        return learned.batch(torch.from_numpy(rows))

    fit(training, draw, chosen, run_dir)
    head = training.heads
    head.load_state_dict(training.kept)
    head.normalise(train.images[torch.tensor(train.owners), 0], train.texts)
    found = accuracy(head, stated, redact(parts[2].source))
    saved = RewardConfig(
        encoder=Frozen(name=config.encoder, digest=encoder.digest, size=train.texts.shape[-1]),
        hidden=config.hidden,
        accuracy=found,
    )
    return finished(run_dir, head, saved, card(run_dir, config, found, training.best[1], learned))


def card(run_dir: RunDir, config: RewardModelConfig, found: Accuracy, step: int, learned: Pairs) -> str:
    """Return the README of a reward model: what it is, what it was measured to do, how to use and remake it."""
    name = one_line(run_dir.path.resolve().name)
    ties = int((learned.winner == 0).sum())
    between = f"{found.interval[0]:.1%} to {found.interval[1]:.1%}" if found.interval else "none, of one image"
    spec = shlex.quote(f"reward_model:{one_line(str(config.output))}")
    at = f"step {step}" if step else "step 0: no step was better than the encoder alone"
    return "\n".join([
        f"# {cell(name)}", "",
        f"A head on the frozen encoder {code(config.encoder)} that tells which of two captions of an image is "
        f"preferred, trained with captune on {len(learned)} pairs ({ties} of them ties) of {len(learned.vectors)} "
        f"images of {code(one_line(config.pairs))}. The encoder is not here: `config.json` names it, and another is "
        "refused.", "",
        "## Accuracy", "",
        f"On {found.pairs} pairs of {found.images} images of {code(one_line(found.source))}, which neither trained it "
        f"nor chose its step ({at}):", "",
        "| | preferred caption scores higher | 95%, of images |", "|---|---|---|",
        f"| this model | {found.value:.1%} | {between} |", f"| the encoder's cosine | {found.encoder:.1%} | |", "",
        "## Use it", "",
        "```", f"captune curate filter captions.jsonl --by {spec} --keep 0.3 --output filtered", "```", "",
        "## Make it again", "",
        "```", str(run_dir.versions.get("command", "")), "```", "",
        "`config.yaml` holds every setting. The licences of the encoder and of the training data apply.", "",
    ])  # fmt: skip
