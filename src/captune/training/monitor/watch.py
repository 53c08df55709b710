"""The reward-hacking watch: what a run of reinforcement learning does to scores that it does not climb.

A reward that is climbed stops being a measure (Goodhart's law). So at every evaluation the captioner captions a fixed
set of held-out images, and two kinds of witness judge the captions: *held-out scorers*, none of which may be part of
the reward, and *health*, which needs no reference: length, repetition, bad endings, empty captions, vocabulary, the
share cut off at `max_new_tokens`, and where the source knows the truth (storybook) the share of false facts.

When the reward has risen and a witness says otherwise, the evaluation is *marked* (`captune.training.monitor.rules` has the rule
and its reasons): in the log, in the row, on the report with captions that show it.

Each image gets a greedy caption, which gives the figures, the health and the best checkpoint, and `samples` sampled
ones, by which the rule compares. The reward is that of samples and moves with them at once, while a greedy caption
stays where it is until another overtakes it: on storybook a length reward lowers the samples' CLIPScore by a quarter
within 10 steps and leaves the greedy captions' the same for 25, and then, when they loop, even higher. Every evaluation
draws with the same random numbers, so that what differs is the captioner's doing: after those 10 steps the paired t is
-6.4 with the same numbers and -1.4 with others.

**State** is `watch.jsonl` in the run's folder, a row per evaluation, with the scores of each image, and
`captions/watch-<step>.jsonl`, written before it is scored. A step that it holds is not measured again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from captune.data import load_images, load_references, without_bad
from captune.data.columns import LazyImages
from captune.data.schemes import scheme_of
from captune.errors import ScorerError
from captune.models.captioner import Captioner
from captune.runs.run_dir import RunDir, plain
from captune.scorers import Scorer, check_needs, load_reward, load_scorer
from captune.scorers.expression import Expression
from captune.scorers.text.health import Health
from captune.training.monitor.rules import Row, find_marks
from captune.utils.files import jsonl_line, read_jsonl, replace_file

logger = logging.getLogger(__name__)

FILE = "watch.jsonl"
Reward = Scorer | str | Callable[..., Any] | Sequence[Any]  # an expression, a function, or several


class Watch:
    """Judges a run on held-out images; see the module.

    Args:
        captioner: as it is when `measure` is called.
        source: the held-out images.
        scorers: higher is better ("-chair" for one where lower is), the first decides on the best checkpoint; none:
            only health is watched.
        reward: what the run climbs: an expression, or its parts: scorers, functions or names.
        limit: images.
        samples: captions sampled per image, which the rule compares.
        temperature: of the samples: that of training.
        first_step: steps that the run had logged when this training began; the reward may have been another one then.
        generate: makes the captions, called as the captioner's own `generate` is.

    Raises:
        ValueError: for a scorer that is part of the reward, or a source that streams or has no image.
        MissingColumn: where the source lacks what a scorer needs.
        ScorerError: where what a scorer runs on is not there.
    """

    def __init__(
        self,
        captioner: Captioner,
        source: str,
        scorers: Sequence[Scorer | str],
        run_dir: RunDir,
        *,
        reward: Reward,
        limit: int = 64,
        max_new_tokens: int = 40,
        samples: int = 4,
        temperature: float = 1.0,
        first_step: int = 0,
        batch_size: int = 16,
        generate: Callable[..., list[str]] | None = None,
    ) -> None:
        self.captioner, self.source, self.run_dir = captioner, source, run_dir
        self.generate = generate or captioner.generate
        self.first_step, self.batch_size = first_step, batch_size
        self.max_new_tokens, self.samples, self.temperature = max_new_tokens, samples, temperature
        self.scorers = _by_name([load_scorer(scorer) if isinstance(scorer, str) else scorer for scorer in scorers])
        climbed = parts_of(reward)
        for scorer in self.scorers.values():
            _refuse(scorer, climbed)
        dataset = load_images(source, limit=limit)
        if not isinstance(dataset, Dataset):
            raise ValueError(f"{source} streams; the watch looks at the same images again and again")
        dataset, bad = without_bad(dataset, progress=False)
        if not len(dataset):
            raise ValueError(f"{source} has no image to watch" + (f"; {bad[0][0]}: {bad[0][1]}" if bad else ""))
        text = dataset.with_format(None).select_columns([c for c in dataset.column_names if c != "image"])
        self.columns: dict[str, Any] = {"image": LazyImages(dataset), **text.to_dict()}
        if not all(self.columns.get("references", [])):
            del self.columns["references"]
        check_needs(self.scorers.values(), self.columns, len(dataset))
        for scorer in self.scorers.values():
            scorer.check()
        self.primary = f"eval_{next(iter(self.scorers))}" if self.scorers else None
        scheme = scheme_of(source, self.columns)  # health needs the truth, and may not be the reward
        known = scheme.truth_column in self.columns and scheme.truth_scorer not in {_name(part) for part in climbed}
        self._facts = load_scorer(scheme.truth_scorer) if known else None
        self._hallucination = scheme.hallucination
        self._people = self._health([own[0] for own in self.columns.get("references", [])])
        self.path = run_dir.path / FILE
        self.rows: list[Row] = read_jsonl(self.path) if self.path.is_file() else []

    def rewind(self, step: int) -> None:
        """Drops what was measured after a step of the run: a run that goes on will measure it again."""
        for row in self.rows:
            if row["step"] > step:
                self.run_dir.captions(f"watch-{row['step']}").unlink(missing_ok=True)
        self._keep([row for row in self.rows if row["step"] <= step])

    def measure(self, step: int, reward: float | None) -> dict[str, float]:
        """The figures of the captioner as it is, flat, each named eval_...; a mark is logged.

        Args:
            step: of this training; the run's own is `first_step` later.
            reward: what the samples of the steps since the last evaluation earned on average; None before the first.

        Raises:
            ScorerError: where a scorer fails; says which.
        """
        step += self.first_step
        row = next((row for row in self.rows if row["step"] == step), None)
        if row is None:
            greedy, samples = self._captions()
            entries = zip(self.columns["image_id"], greedy, zip(*samples, strict=True), strict=True)
            lines = [{"image_id": i, "caption": caption, "samples": drawn} for i, caption, drawn in entries]
            replace_file(self.run_dir.captions(f"watch-{step}"), "".join(jsonl_line(line) for line in lines))
            row = plain({"step": step, "source": self.source, "reward": reward, **self._judge(step, greedy, samples)})
            self._mark(row)
            self._keep([*self.rows, row])
            if row["marks"]:
                logger.warning("%s", row["sentence"])
        figures = {**row["health"], **row["greedy"], **{f"{name}_sampled": x for name, x in row["sampled"].items()}}
        return {f"eval_{name}": value for name, value in figures.items()} | {"eval_marks": float(len(row["marks"]))}

    def _keep(self, rows: list[Row]) -> None:
        self.rows = rows
        replace_file(self.path, "".join(jsonl_line(row) for row in rows))

    # -- figures -------------------------------------------------------------------------------------------------------

    def _captions(self) -> tuple[list[str], list[list[str]]]:
        """A greedy caption of each image, and `samples` lists of sampled ones, with the same random numbers always."""
        greedy: list[str] = []
        drawn: list[str] = []
        images, settings = self.columns["image"], {"max_new_tokens": self.max_new_tokens}
        for start in range(0, len(images), self.batch_size):
            pictures = images[start : start + self.batch_size]
            greedy += self.generate(pictures, **settings)
            with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
                torch.manual_seed(start)
                drawn += self.generate(
                    pictures,
                    do_sample=True,
                    temperature=self.temperature,
                    num_return_sequences=self.samples,
                    **settings,
                )
        return greedy, [drawn[number :: self.samples] for number in range(self.samples)]

    def _judge(self, step: int, greedy: list[str], samples: list[list[str]]) -> Row:
        """Means by scorer of the greedy and of the sampled captions, the latter's by image, and health."""
        own = {name: self._scores(step, name, greedy) for name in self.scorers}
        drawn = {name: np.mean([self._scores(step, name, texts) for texts in samples], axis=0) for name in self.scorers}
        return {
            "greedy": {name: float(scores.mean()) for name, scores in own.items()},
            "sampled": {name: float(scores.mean()) for name, scores in drawn.items()},
            "health": self._health(greedy),
            "by_image": {name: scores.round(6).tolist() for name, scores in drawn.items()},
        }

    def _scores(self, step: int, name: str, captions: list[str]) -> np.ndarray:
        """(N,)"""
        scorer = self.scorers[name]
        try:
            rows = scorer.measure(captions, {need: self.columns[need] for need in scorer.required_columns})
            scores = np.asarray(scorer.per_caption(rows), dtype=float)
        except (RuntimeError, ValueError, OSError) as error:
            raise ScorerError(f"the watch's scorer {scorer.name!r} failed at step {step}: {error}") from error
        if not np.isfinite(scores).all():
            place = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise ScorerError(
                f"the watch's scorer {scorer.name!r} gave no number at step {step} for the caption {captions[place]!r}"
            )
        return scores

    def _health(self, captions: Sequence[str]) -> dict[str, float]:
        if not captions:
            return {}
        judge = Health()
        health = judge.corpus(judge.rows(captions))
        health["cut"] = float(
            np.mean([len(self.captioner.caption_ids(caption)) >= self.max_new_tokens for caption in captions])
        )
        if self._facts is not None:
            rows = self._facts.measure(captions, {need: self.columns[need] for need in self._facts.required_columns})
            health["hallucinated"] = self._facts.corpus(rows)[self._hallucination]
        return health

    def _mark(self, row: Row) -> None:
        """Adds `marks` and, where there are any, the `sentence` that is logged."""
        row["marks"] = find_marks(self.rows, row, self._people, self._reward_at)
        if row["marks"]:
            since = next(r for r in self.rows if r["step"] == row["marks"][0]["since"])
            told = " and ".join(mark["text"] for mark in row["marks"])
            rise = f"from {self._reward_at(since):.4g} to {row['reward']:.4g}"
            row["sentence"] = f"step {row['step']}: the reward rose {rise}, but {told}"

    def _reward_at(self, row: Row) -> float | None:
        """An evaluation's reward; before training, that of the first samples, which the trainer logs."""
        if row["step"] > self.first_step and row["reward"] is not None:
            return row["reward"]
        known = (r for r in (*self.run_dir.metrics(), *self.rows) if r.get("step", 0) > self.first_step)
        return next((r["reward"] for r in known if r.get("reward") is not None), None)


# -- which scorers -----------------------------------------------------------------------------------------------------


def default_watch(reward: Reward, source: str) -> list[str]:
    """The held-out scorers for a reward and a source; none where only health can be watched, which is logged.

    `clip` on storybook (its encoder knows nothing else) and `cider` where the source has references, whichever the
    reward leaves free, in this order: a run without labels shall not choose its checkpoint by labels.
    """
    climbed = parts_of(reward)
    names = {_name(part) for part in climbed}
    offered = [name for name in scheme_of(source).monitor_scorers if name not in names]
    if offered:
        return offered[:1]
    references = load_references(source, limit=64).values()
    if "cider" not in names and references and all(references):
        given = reward if isinstance(reward, (list, tuple)) else [reward]
        if not any("references" in getattr(part, "required_columns", ()) for part in (*climbed, *given)):
            logger.warning("the watch judges by %s's references (cider), though the reward does without labels", source)
        return ["cider"]
    logger.warning("no held-out scorer is watched on %s, only health: name one that the reward has not", source)
    return []


def parts_of(reward: Reward) -> list[Scorer | str]:
    """A reward's scorers, out of their sums; of what is no scorer, the name."""
    if isinstance(reward, str):
        reward = load_reward(reward)
    if isinstance(reward, Expression):
        return [part for part, _ in reward.parts]
    if isinstance(reward, Scorer):
        return [reward]
    if callable(reward):
        return [getattr(reward, "__name__", "")]
    return [own for part in reward for own in ([part] if isinstance(part, str) else parts_of(part))]


def _name(scorer: Scorer | str) -> str:
    return (scorer if isinstance(scorer, str) else scorer.name).partition(":")[0]


def _by_name(scorers: Sequence[Scorer]) -> dict[str, Scorer]:
    """Under their names; by their whole specs where several have the same name."""
    names = [_name(scorer) for scorer in scorers]
    return {scorer.name if names.count(name) > 1 else name: scorer for name, scorer in zip(names, scorers, strict=True)}


def _refuse(scorer: Scorer, climbed: Sequence[Scorer | str]) -> None:
    """Raises ValueError where a scorer, by name and model, is part of the reward; a shared model alone is logged."""
    for own in parts_of(scorer):
        assert isinstance(own, Scorer)
        for part in climbed:
            same = _name(own) == _name(part)
            if isinstance(part, str):
                if not same:
                    continue
                part = load_scorer(part)
            models = _models(own)
            others = _models(part) if same or models else set()
            if same and not (models and others and models.isdisjoint(others)):
                raise ValueError(
                    f"{own.name!r} cannot be watched: it is part of the reward, and what is climbed is no witness; "
                    "name another scorer, or one with another model"
                )
            if models & others:
                logger.warning("%r is watched and %r rewarded, but both judge by the same model", own.name, part.name)


def _models(scorer: Scorer) -> set[str]:
    """The models that a scorer's signature names, by the digest of their weights where it has one."""
    return {
        model.rpartition("@")[2] for model in re.findall(r"\b(?:model|encoder|text|image):([^|\s]+)", scorer.signature)
    }
