"""Training of an encoder pair: contrastive, on vectors of the frozen encoders that are computed once.

Each step draws B different images and a caption (and a view) of each; what it draws, and dropout, depend on the seed
and the number of the step alone, so that a run that resumes from its last checkpoint gives the same bytes. The step
with the best mean recall on the choice images is kept; recall is stated on images that neither trained nor chose.
"""

from __future__ import annotations

import json
import logging
import math
import shlex

import numpy as np
import torch
from torch import Tensor

from captune.data import column, load_images, without_bad
from captune.data.checking import refuse_without_captions
from captune.data.sources import held_out_number
from captune.errors import SourceError, redact
from captune.models.encoders import check_frozen, load_image_encoder, load_text_encoder
from captune.models.encoders.pair import Heads, PairConfig, Recall
from captune.models.heads import CONFIG, WEIGHTS, Frozen
from captune.runs.card import cell, code, one_line
from captune.runs.run_dir import RunDir
from captune.training.encoder.config import EncoderConfig
from captune.training.encoder.objective import RANKS, info_nce, mean_recall, recall
from captune.training.features import Captioned, Vectors, each_once, held_out, vectors_of, without_shared
from captune.training.heads import FEATURES, HeadTraining, finished, fit, opened_run
from captune.utils.hashing import fingerprint
from captune.utils.skipped import skip

logger = logging.getLogger(__name__)
FEW = 50  # images among which recall says little
PARTS = (CONFIG, WEIGHTS, FEATURES)  # config.json first: without it an earlier pair is none


# -- data --------------------------------------------------------------------------------------------------------------


def captioned(source: str, limit: int | None = None) -> Captioned:
    """Load captioned images; bad ones are left out, blank captions too, each counted.

    Raises:
        SourceError: it streams, or an image has no caption.
    """
    from datasets import IterableDataset

    images = load_images(source, limit=limit)
    if isinstance(images, IterableDataset):
        raise SourceError(f"{source}: training reads each image several times, a stream cannot; leave streaming=1 out")
    rows, _ = without_bad(images)
    if "references" not in rows.column_names or not len(rows):
        raise SourceError(f"{source}: {'its images have no captions' if len(rows) else 'no image can be used'}")
    ids, captions = [str(image_id) for image_id in column(rows, "image_id")], []
    for image_id, texts in zip(ids, column(rows, "references"), strict=True):
        own = [text for text in texts or () if text.strip()]
        if blank := len(texts or ()) - len(own):
            skip("blank captions", image_id, blank)
        captions.append(own)
    lacking = [image_id for image_id, own in zip(ids, captions, strict=True) if not own]
    refuse_without_captions(source, lacking)
    return Captioned(source, rows, ids, captions)


def three_parts(config: EncoderConfig) -> tuple[Captioned, Captioned, Captioned]:
    """Return what trains, what chooses the step, and what recall is stated on.

    Raises:
        SourceError: too few images.
    """
    whole = captioned(config.images, config.limit)
    given = [captioned(source) if source else None for source in (config.choice_images, config.eval_images)]
    wanted = given.count(None)
    number = held_out_number(len(whole)) if wanted else 0
    if number < 2 * wanted:
        raise SourceError(
            f"{config.images}: of {len(whole)} images too few can be held out to choose a step and to state recall on; "
            "name others with --choice-images and --eval-images, or give more"
        )
    train, *held = held_out(whole, number, number // 2 if wanted == 2 else (0 if given[0] else number))
    choice, unseen = given[0] or held[0], given[1] or held[1]
    for part, use in ((choice, "to choose a step"), (unseen, "to state recall on")):
        if len(part) < 2:
            raise SourceError(f"{part.source}: {len(part)} image {use}; recall needs 2 at least")
    return train, choice, unseen


# -- steps -------------------------------------------------------------------------------------------------------------


class Batches:
    """The batches of a run, each by the number of its step.

    Args:
        data: what trains.
        config: the run's settings.
    """

    def __init__(self, data: Vectors, config: EncoderConfig) -> None:
        self.data, self.config = data, config
        self.texts_of: list[list[int]] = [[] for _ in range(len(data))]
        for text, owner in enumerate(data.owners):
            self.texts_of[owner].append(text)
        self.owner = torch.tensor(data.owners)
        wording: dict[str, int] = {}
        self.wording = torch.tensor(
            [wording.setdefault(" ".join(t.lower().split()), len(wording)) for t in data.captions]
        )
        self.said = [set(self.wording[own].tolist()) for own in self.texts_of]
        self.nearest = self._nearest(config.hard_negatives) if config.hard_negatives else None

    def _nearest(self, number: int) -> Tensor:
        """The captions of other images nearest to each in the frozen text encoder, (M, number)."""
        most = min(number, len(self.data.captions) - max(map(len, self.texts_of)))
        rows = []
        for start in range(0, len(self.owner), 1024):
            similarity = self.data.texts[start : start + 1024] @ self.data.texts.T
            own = self.owner[start : start + 1024, None] == self.owner[None]
            rows.append(similarity.masked_fill(own, -math.inf).topk(most, dim=1).indices)
        return torch.cat(rows)

    def draw(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the vectors of a step's images (B, S) and texts (B + M, S'), and which are excused (B, B + M)."""
        chance = np.random.default_rng((self.config.seed, step))
        rows = chance.permutation(len(self.data))[: self.config.batch_size]
        texts = torch.tensor([self.texts_of[row][chance.integers(len(self.texts_of[row]))] for row in rows])
        views = torch.from_numpy(chance.integers(self.data.images.shape[1], size=len(rows)))
        if self.nearest is not None:
            further = self.nearest[texts].flatten().unique()
            texts = torch.cat([texts, further[~torch.isin(further, texts)]])
        words = self.wording[texts].tolist()
        excused = torch.tensor([[word in self.said[row] for word in words] for row in rows])
        excused[torch.arange(len(rows)), torch.arange(len(rows))] = False
        return self.data.images[torch.from_numpy(rows), views], self.data.texts[texts], excused


class Training(HeadTraining):
    """The heads of a pair, and all that a checkpoint holds of them."""

    heads: Heads
    figure = "recall"

    def __init__(self, heads: Heads, config: EncoderConfig) -> None:
        super().__init__(heads, config, undecayed=("log_scale",))

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the loss of images (B, S), texts (B + M, S') and which are excused (B, B + M)."""
        images, texts, excused = batch
        return info_nce(self.heads.image(images), self.heads.text(texts), self.heads.log_scale, excused)

    def measure(self, choice: Vectors) -> float:
        """Return the mean recall on the choice images."""
        return mean_recall(measured(self.heads, choice, "the choice images"))

    def logged(self) -> dict[str, float]:
        """Return the inverse temperature."""
        return {"scale": float(self.heads.log_scale.detach().exp())}


@torch.no_grad()
def measured(heads: Heads, data: Vectors, source: str) -> Recall:
    """Return the recall of heads on what they have not trained on."""
    heads.eval()
    return recall(heads.image(data.images[:, 0]), heads.text(data.texts), data.owners, source)


# -- a run -------------------------------------------------------------------------------------------------------------


def run(config: EncoderConfig) -> RunDir:
    """Train a pair, state its recall, save it; a run that was stopped resumes, a finished one is left as it is."""
    run_dir = opened_run(config, "encoder", PARTS)
    if run_dir.done:
        return run_dir
    parts = three_parts(config)
    _refuse_one(config, parts[0])
    check_frozen(config.image_encoder, config.text_encoder)
    image_encoder = load_image_encoder(config.image_encoder, config.device)
    text_encoder = load_text_encoder(config.text_encoder, config.device)
    run_dir.begin()
    train, choice, unseen = (
        vectors_of(
            config.features or run_dir.path / FEATURES,
            part,
            image_encoder,
            text_encoder,
            whole=config.whole_image,
            views=config.image_views if name == "train" else 1,
        )
        for name, part in zip(("train", "choice", "unseen"), parts, strict=True)
    )
    choice, unseen = each_once(choice, "to choose a step"), each_once(unseen, "to state recall on")
    if len(unseen) < 2:
        raise SourceError(f"{parts[2].source}: its images are one; recall needs 2 different ones at least")
    choice = without_shared(choice, "to choose a step", unseen)
    if len(choice) < 2:
        raise SourceError(
            f"{parts[1].source}: its images are those that recall is stated on, {parts[2].source}; choose the step on "
            "others, or leave --choice-images out"
        )
    train = without_shared(train, "to learn from", choice, unseen)
    _refuse_one(config, train)
    if len(train) < config.batch_size:
        logger.warning(
            "%s: %d images to learn from: each step takes them all, not %d",
            config.images, len(train), config.batch_size,
        )  # fmt: skip
    training = Training(fresh_heads(train, config), config)
    read = [[part.ids, part.captions, part.contents] for part in (train, choice)]
    training.data = fingerprint(json.dumps([read, image_encoder.digest, text_encoder.digest]))
    fit(training, Batches(train, config).draw, choice, run_dir)
    training.heads.load_state_dict(training.kept)
    found = measured(training.heads, unseen, redact(parts[2].source))
    if len(unseen) < FEW:
        logger.warning(
            "recall among %d images is high by chance and coarse: name %d or more with --eval-images", len(unseen), FEW
        )
    sizes = train.images.shape[-1], train.texts.shape[-1]
    pair = PairConfig(
        image_encoder=Frozen(name=config.image_encoder, digest=image_encoder.digest, size=sizes[0]),
        text_encoder=Frozen(name=config.text_encoder, digest=text_encoder.digest, size=sizes[1]),
        width=config.width,
        whole_image=config.whole_image,
        recall=found,
    )
    return finished(run_dir, training.heads, pair, card(run_dir, config, found, training.best[1], len(train)))


def fresh_heads(train: Vectors, config: EncoderConfig) -> Heads:
    """Return untrained heads that know mean and spread of the frozen vectors."""
    torch.manual_seed(config.seed)
    heads = Heads(train.images.shape[-1], train.texts.shape[-1], config.width, config.dropout)
    heads.image.measure(train.images.flatten(0, 1))
    heads.text.measure(train.texts)
    return heads


def card(run_dir: RunDir, config: EncoderConfig, found: Recall, step: int, images: int) -> str:
    """Return the README of a pair: what it is, what it was measured to do, how to use and remake it."""
    name = one_line(run_dir.path.resolve().name)
    rows = [
        f"| {what} | " + " | ".join(f"{by_rank[str(k)]:.1%} (random {chance[str(k)]:.1%})" for k in RANKS) + " |"
        for what, by_rank, chance in (
            ("text to image", found.text_to_image, found.random_text_to_image),
            ("image to text", found.image_to_text, found.random_image_to_text),
        )
    ]
    own = "its own choice of held-out images" if config.choice_images is None else code(one_line(config.choice_images))
    spec = shlex.quote(f"clip:{one_line(str(config.output))}")
    return "\n".join([
        f"# {cell(name)}", "",
        f"Heads on two frozen encoders, {code(config.image_encoder)} and {code(config.text_encoder)}, trained with "
        f"captune on {images} captioned images of {code(one_line(config.images))}. The encoders are not here: "
        "`config.json` names them, and others are refused. Read its scores beside its recall.", "",
        "## Recall", "",
        f"On {found.images} images with {found.captions} captions of {code(one_line(found.source))}, which neither "
        f"trained it nor chose its step (step {step}, by {own}):", "",
        "| | R@1 | R@5 | R@10 |", "|---|---|---|---|", *rows, "",
        "## Use it", "",
        "```", f"captune evaluate captions.jsonl --images ./photos --scorers {spec}", "```", "",
        "## Make it again", "",
        "```", str(run_dir.versions.get("command", "")), "```", "",
        "`config.yaml` holds every setting. The licences of both encoders and of the training data apply.", "",
    ])  # fmt: skip


def _refuse_one(config: EncoderConfig, train: Captioned | Vectors) -> None:
    if len(train) < 2:
        raise SourceError(f"{config.images}: {len(train)} image to learn from; a batch needs others to tell it from")
