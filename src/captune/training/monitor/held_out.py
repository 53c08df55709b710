"""The monitor of reward hacking: what a run of reinforcement learning does to scores that it does not optimise.

An optimised reward is no longer a metric (Goodhart's law). So at every evaluation the captioner captions a fixed set of
held-out images, and two kinds of figures judge the captions: *held-out scorers*, none of which may be part of the
reward, and *health metrics*, which need no reference: length, repetition, bad endings, empty captions, vocabulary, the
share cut off at `max_new_tokens` and, where the source knows the truth, the share of false statements. When the reward
has risen and one of them got worse, the evaluation is *flagged* (`captune.training.monitor.alert_rules`).

Each image gets a greedy caption, which gives the figures, the health metrics and the best checkpoint, and `samples`
sampled ones, by which the rule compares: they change with the reward at once, greedy captions later. Every evaluation
samples with the same random numbers, so that only the captioner differs (`docs/monitor.md` has the measurements).

State: `watch.jsonl`, a row per evaluation, and `captions/watch-STEP.jsonl`, written before it is scored.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from captune.data import load_images, load_references, without_bad
from captune.data.columns import LazyImages
from captune.data.schemes import scheme_of, warn_if_blind
from captune.errors import EvaluationError, ScorerError
from captune.models.captioner import Captioner
from captune.runs.run_dir import RunDir, plain
from captune.scorers import Scorer, check_needs, load_reward, load_scorer, registry
from captune.scorers.expression import Expression
from captune.scorers.text.health import Health
from captune.training.monitor.alert_rules import Row, find_alerts
from captune.utils.files import jsonl_line, read_jsonl, replace_file
from captune.utils.loads import few

logger = logging.getLogger(__name__)

FILE = "watch.jsonl"
HELD_OUT_IMAGES = 64  # of an evaluation
Reward = Scorer | str | Callable[..., Any] | Sequence[Any]  # an expression, a function, or several


class HeldOutMonitor:
    """Judges a run on held-out images; see the module.

    Args:
        captioner: as it is when `measure` is called.
        source: the held-out images.
        scorers: held-out scorers or their specs; the first decides on the best checkpoint; none: only health metrics.
            Which way each is better is what the scorer declares.
        run_dir: the run.
        reward: what the run optimises: an expression, or its parts: scorers, functions or names.
        limit: use the first N images.
        max_new_tokens: longest caption in tokens.
        samples: captions sampled per image, which the rule compares.
        temperature: of the samples: that of training.
        first_step: steps that the run had logged when this training began; the reward may have been another one then.
        batch_size: images per batch.
        generate: makes the captions, called as the captioner's own `generate` is.

    Raises:
        EvaluationError: a scorer is part of the reward, or the source streams or has no image.
        MissingColumn: the source lacks what a scorer needs.
        ScorerError: what a scorer runs on is missing.
    """

    def __init__(
        self,
        captioner: Captioner,
        source: str,
        scorers: Sequence[Scorer | str],
        run_dir: RunDir,
        *,
        reward: Reward,
        limit: int = HELD_OUT_IMAGES,
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
        self.signs = {name: direction(scorer) for name, scorer in self.scorers.items()}
        optimised = parts_of(reward)
        refuse_rewarded(self.scorers.values(), optimised)
        dataset, bad = without_bad(held_out_images(source, limit), progress=False)
        if not len(dataset):
            raise EvaluationError(f"{source} has no image to monitor" + (f"; {bad[0][0]}: {bad[0][1]}" if bad else ""))
        text = dataset.with_format(None).select_columns([c for c in dataset.column_names if c != "image"])
        self.columns: dict[str, Any] = {"image": LazyImages(dataset), **text.to_dict()}
        if not all(self.columns.get("references", [])):
            del self.columns["references"]
        check_served(self.scorers.values(), self.columns, len(dataset))
        for scorer in self.scorers.values():
            warn_if_blind(scorer.name, scorer.signature, source, self.columns)
        self.primary = f"eval_{next(iter(self.scorers))}" if self.scorers else None
        self.greater_is_better = not self.scorers or next(iter(self.signs.values())) > 0
        scheme = scheme_of(source, self.columns)  # the truth is for health metrics where it is not the reward
        known = scheme.truth_column in self.columns and scheme.truth_scorer not in {_name(part) for part in optimised}
        self._facts = load_scorer(scheme.truth_scorer) if known else None
        self._hallucination = scheme.hallucination
        self._people = self._health([refs[0] for refs in self.columns.get("references", [])])
        self.path = run_dir.path / FILE
        self.rows: list[Row] = []
        self._read()

    def _read(self) -> None:
        self.rows = read_jsonl(self.path) if self.path.is_file() else []
        for number, row in enumerate(self.rows, start=1):
            row.setdefault("alerts", row.pop("marks", []))  # its former name
            _check_row(row, f"{self.path}, evaluation {number}")

    def rewind(self, step: int) -> None:
        """Drop what was measured after a step of the run: a run that resumes will measure it again."""
        self._read()
        for row in self.rows:
            if row["step"] > step:
                self.run_dir.captions(f"watch-{row['step']}").unlink(missing_ok=True)
        self._keep([row for row in self.rows if row["step"] <= step])

    def measure(self, step: int, reward: float | None) -> dict[str, float]:
        """Return the figures of the captioner as it is, each named ``eval_...``; an alert is logged.

        Args:
            step: of this training; the run's own is `first_step` later.
            reward: the mean reward of the samples since the last evaluation; None before the first.

        Returns:
            The health metrics, the greedy captions' scores, those of the samples (``..._sampled``), and the number of
            alerts (``eval_alerts``).

        Raises:
            ScorerError: where a scorer fails; says which.
        """
        step += self.first_step
        row = next((row for row in self.rows if row["step"] == step), None)
        if row is None:
            greedy, samples = self._captions()
            entries = zip(self.columns["image_id"], greedy, zip(*samples, strict=True), strict=True)
            lines = [{"image_id": i, "caption": caption, "samples": sampled} for i, caption, sampled in entries]
            replace_file(self.run_dir.captions(f"watch-{step}"), "".join(jsonl_line(line) for line in lines))
            row = plain({"step": step, "source": self.source, "reward": reward, **self._judge(step, greedy, samples)})
            self._flag(row)
            self._keep([*self.rows, row])
            if row["alerts"]:
                logger.warning("%s", row["sentence"])
        figures = {**row["health"], **row["greedy"], **{f"{name}_sampled": x for name, x in row["sampled"].items()}}
        return {f"eval_{name}": value for name, value in figures.items()} | {"eval_alerts": float(len(row["alerts"]))}

    def say_none_better(self) -> None:
        """Warn where no evaluation was better, by the first scorer, than the one before training."""
        if not self.signs:
            return
        name, sign = next(iter(self.signs.items()))
        values = [sign * value for row in self.rows if (value := row["greedy"].get(name)) is not None]
        if len(values) > 1 and max(values[1:]) <= values[0]:
            logger.warning(
                "by %s no step was better than the start: %.4g before training, %.4g at best after it",
                name, sign * values[0], sign * max(values[1:]),
            )  # fmt: skip

    def _keep(self, rows: list[Row]) -> None:
        self.rows = rows
        replace_file(self.path, "".join(jsonl_line(row) for row in rows))

    # -- figures -------------------------------------------------------------------------------------------------------

    def _captions(self) -> tuple[list[str], list[list[str]]]:
        """Return greedy captions, and `samples` lists of sampled ones, always with the same random numbers."""
        greedy: list[str] = []
        sampled: list[str] = []
        images = self.columns["image"]
        settings: dict[str, Any] = {"max_new_tokens": self.max_new_tokens}
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            greedy += self.generate(batch, **settings)
            with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
                torch.manual_seed(start)
                sampled += self.generate(
                    batch,
                    do_sample=True,
                    temperature=self.temperature,
                    num_return_sequences=self.samples,
                    **settings,
                )
        return greedy, [sampled[number :: self.samples] for number in range(self.samples)]

    def _judge(self, step: int, greedy: list[str], samples: list[list[str]]) -> Row:
        """Return mean scores of the greedy and of the sampled captions, the latter's by image, and health metrics."""
        of_greedy = {name: self._scores(step, name, greedy) for name in self.scorers}
        sampled = {
            name: np.mean([self._scores(step, name, texts) for texts in samples], axis=0) for name in self.scorers
        }
        return {
            "greedy": {name: float(scores.mean()) for name, scores in of_greedy.items()},
            "sampled": {name: float(scores.mean()) for name, scores in sampled.items()},
            "health": self._health(greedy),
            "by_image": {name: scores.round(6).tolist() for name, scores in sampled.items()},
        }

    def _scores(self, step: int, name: str, captions: list[str]) -> np.ndarray:
        """Return the primary figure of each caption, (N,)."""
        scorer = self.scorers[name]
        try:
            rows = scorer.measure(captions, self.columns)
            scores = np.asarray(scorer.per_caption(rows), dtype=float)
        except (RuntimeError, ValueError, OSError) as error:
            raise ScorerError(f"the monitor's scorer {scorer.name!r} failed at step {step}: {error}") from error
        if not np.isfinite(scores).all():
            index = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise ScorerError(
                f"the monitor's scorer {scorer.name!r} gave no number at step {step} for the caption "
                f"{captions[index]!r}"
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
            rows = self._facts.measure(captions, self.columns)
            health["hallucinated"] = self._facts.corpus(rows)[self._hallucination]
        return health

    def _flag(self, row: Row) -> None:
        """Add `alerts` and, where there are any, the `sentence` that is logged."""
        row["alerts"] = find_alerts(self.rows, row, self._people, self._reward_at, self.signs)
        if row["alerts"]:
            since = next(r for r in self.rows if r["step"] == row["alerts"][0]["since"])
            texts = " and ".join(alert["text"] for alert in row["alerts"])
            rise = f"from {self._reward_at(since):.4g} to {row['reward']:.4g}"
            row["sentence"] = f"step {row['step']}: the reward rose {rise}, but {texts}"

    def _reward_at(self, row: Row) -> float | None:
        """Return an evaluation's reward; before training, that of the first samples, which the trainer logs."""
        if row["step"] > self.first_step and row["reward"] is not None:
            return row["reward"]
        known = (r for r in (*self.run_dir.metrics(), *self.rows) if r.get("step", 0) > self.first_step)
        return next((r["reward"] for r in known if r.get("reward") is not None), None)


def _check_row(row: Row, where: str) -> None:
    """Raise EvaluationError for a row that `measure` did not write: nothing could be compared with it."""
    kinds: dict[str, Any] = {"step": (int, float), "reward": (int, float, type(None)), "alerts": list}
    kinds |= dict.fromkeys(("greedy", "sampled", "health", "by_image"), dict)
    wrong = [key for key, kind in kinds.items() if key not in row or not isinstance(row[key], kind)]
    figures = [x for key in ("greedy", "sampled", "health") if key not in wrong for x in row[key].values()]
    if not wrong and not all(x is None or (isinstance(x, int | float) and np.isfinite(x)) for x in figures):
        wrong = ["figures that are finite numbers"]
    if wrong:
        raise EvaluationError(
            f"{where}: {few(wrong)} missing or invalid; the run cannot be judged against it. Remove that line, or "
            "start again with --overwrite"
        )


# -- which scorers -----------------------------------------------------------------------------------------------------


def default_scorers(reward: Reward, source: str) -> list[str]:
    """Choose the held-out scorer for a reward and a source; none, which is logged, where only health can be monitored.

    The first of these that is no part of the reward: those that the source offers for it (storybook: `clip`, whose
    encoder knows nothing else), then `cider` where the source has references. A run without labels shall not choose its
    checkpoint by labels, so that is logged, too.
    """
    optimised = parts_of(reward)
    names = {_name(part) for part in optimised}
    offered = [name for name in scheme_of(source).monitor_scorers if name not in names]
    if offered:
        return offered[:1]
    references = load_references(source, limit=HELD_OUT_IMAGES).values()
    if "cider" not in names and references and all(references):
        given = reward if isinstance(reward, (list, tuple)) else [reward]
        if not any("references" in getattr(part, "required_columns", ()) for part in (*optimised, *given)):
            logger.warning("the monitor judges by %s's references (cider), though the reward needs no labels", source)
        return ["cider"]
    told = "no held-out scorer monitors %s, only health metrics (grpo, scst and har: --watch names one)"
    logger.warning(told, source)
    return []


def held_out_images(source: str, limit: int = HELD_OUT_IMAGES, *, decode: bool = True) -> Dataset:
    """Load the first images of a source; raises EvaluationError for one that streams."""
    dataset = load_images(source, limit=limit, decode=decode)
    if not isinstance(dataset, Dataset):
        raise EvaluationError(f"{source} streams; the monitor reads the same images at every evaluation")
    return dataset


def refuse_rewarded(scorers: Iterable[Scorer], reward: Reward) -> None:
    """Raise EvaluationError where a scorer that is to be held out is part of the reward."""
    optimised = parts_of(reward)
    for scorer in scorers:
        _refuse(scorer, optimised)


def check_served(scorers: Iterable[Scorer], columns: Mapping[str, Any], images: int) -> None:
    """Check that held-out scorers have what they need.

    Args:
        scorers: that are held out.
        columns: of the held-out images.
        images: how many there are; 0: the columns are named, and empty.

    Raises:
        MissingColumn: the columns lack what a scorer needs.
        ScorerError: what a scorer runs on is missing.
    """
    scorers = list(scorers)
    check_needs(scorers, columns, images)
    for scorer in scorers:
        scorer.check()


def direction(scorer: Scorer) -> float:
    """Return 1 where a higher primary figure is better, or none is declared; -1 where a lower one is."""
    return -1.0 if registry.direction(scorer) is False else 1.0


def parts_of(reward: Reward) -> list[Scorer | str]:
    """Return a reward's scorers, out of their sums; of a function, its name."""
    if isinstance(reward, str):
        reward = load_reward(reward)
    if isinstance(reward, Expression):
        return [part for part, _ in reward.parts]
    if isinstance(reward, Scorer):
        return [reward]
    if callable(reward):
        return [getattr(reward, "__name__", "")]
    return [scorer for part in reward for scorer in ([part] if isinstance(part, str) else parts_of(part))]


def _name(scorer: Scorer | str) -> str:
    return (scorer if isinstance(scorer, str) else scorer.name).partition(":")[0]


def _by_name(scorers: Sequence[Scorer]) -> dict[str, Scorer]:
    """Key scorers by name; by their whole specs where several have the same name."""
    names = [_name(scorer) for scorer in scorers]
    return {scorer.name if names.count(name) > 1 else name: scorer for name, scorer in zip(names, scorers, strict=True)}


def _refuse(scorer: Scorer, optimised: Sequence[Scorer | str]) -> None:
    """Refuse a scorer that, by name and model, is part of the reward; a shared model alone is logged."""
    for held_out in parts_of(scorer):
        assert isinstance(held_out, Scorer)
        for part in optimised:
            same = _name(held_out) == _name(part)
            if isinstance(part, str):
                if not same:
                    continue
                part = load_scorer(part)
            models = _models(held_out)
            others = _models(part) if same or models else set()
            if same and not (models and others and models.isdisjoint(others)):
                raise EvaluationError(
                    f"{held_out.name!r} cannot monitor the run: it is part of the reward, and an optimised reward is "
                    "no longer a metric; name another scorer, or one with another model"
                )
            if models & others:
                logger.warning(
                    "%r monitors and %r rewards the run, but both judge by the same model", held_out.name, part.name
                )


def _models(scorer: Scorer) -> set[str]:
    """Return the models that a scorer's signature names, by the digest of their weights where it has one."""
    return {
        model.rpartition("@")[2] for model in re.findall(r"\b(?:model|encoder|text|image):([^|\s]+)", scorer.signature)
    }
