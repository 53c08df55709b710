"""The gate before training on a reward: it must rank four kinds of captions, as LineupRL asks of a judge.

    real > template >= empty        real > other

`real` is a reference of the image, judged by its other references where it has several; `template` is `TEMPLATE`, which
is true of every image and says nothing about any; `empty` is no words; `other` is the real caption of another image of
the sample: the same captions once more, each at another image, so that a reward which does not look at the image gives
both the same mean. x > y holds where the mean of the paired differences exceeds twice its standard error, and x >= y
where y > x does not hold.

Where no image has a reference, `real` is the captioner's own greedy caption. A weak captioner's may be worse than the
template and hardly better than one of another image, and that is no fault of the reward: real > template then is not
required, only reported, and real > other has to hold in the mean, whatever its error.

The sample is `gate_images` training images, evenly spaced; each of the four kinds is judged at once, as a batch of
training is. Where a part of the reward compares the captions of an image with each other (`Scorer.grouped`), each of
the four stands among captions that the captioner samples. What cannot be judged (NaN) earns nothing in training: its
pairs are left out, and are counted.

The gate draws none of the run's random numbers and leaves nothing in a scorer's memory: a run has the same bits with
and without it. A run that resumes is not asked again. `accept_reward` trains on a reward that fails.
"""

from __future__ import annotations

import json
import logging
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from captune.data.schemes import warn_if_blind
from captune.errors import TrainingError
from captune.models.captioner import Captioner
from captune.runs.run_dir import GATE, RESULTS, RunDir, plain
from captune.scorers import Scorer, weighted_sum
from captune.training.config import RLConfig
from captune.utils import processes
from captune.utils.files import replace_file
from captune.utils.memory import forget

logger = logging.getLogger(__name__)

TEMPLATE = "a photo"
KINDS = {"real": "a real caption", "template": f"the template {TEMPLATE!r}", "empty": "an empty caption",
         "other": "another image's caption"}  # fmt: skip
OWN = "the captioner's own caption"
PEERS = 4  # captions sampled beside each, where a reward compares the captions of an image
ERRORS = 2.0  # standard errors that a difference must exceed
TOLERANCE = 1e-6  # of the largest figure: what rounding makes of equal ones

Parts = Sequence[tuple[Callable[..., list[float]], float]]


def check_reward(
    captioner: Captioner,
    images: Any,
    parts: Parts,
    config: RLConfig,
    run_dir: RunDir,
    *,
    name: str,
    first_turn: bool = False,
) -> None:
    """Check a reward before training on it, and write `gate.json`; a run that resumes with it is not asked again.

    Args:
        captioner: what is trained, as it is before.
        images: the training images, a dataset.
        parts: the reward's (scorer, weight) pairs.
        config: the run's settings.
        run_dir: the run.
        name: the reward, for messages.
        first_turn: the reward is of a correction; its column `first` is the captioner's greedy caption.

    Raises:
        TrainingError: the reward fails, and `config.accept_reward` is not set.
        ScorerError: what a scorer runs on is missing or fails.
    """
    for scorer in (part for part, _ in parts if isinstance(part, Scorer)):
        warn_if_blind(scorer.name, scorer.signature, config.images, images.column_names)
    if not _asks(run_dir, config):
        return
    found = processes.on_first(_measure, captioner, images, parts, config, first_turn)
    accepted = config.accept_reward
    record = {"reward": name, "passed": not found["problems"], "accepted": accepted, **found}
    record["sentence"] = sentence(record)
    run_dir.when_begun(partial(replace_file, run_dir.path / GATE, json.dumps(plain(record), indent=1) + "\n"))
    if found["notes"]:
        logger.warning("%s; %s", sentence(record | {"problems": []}), "; ".join(found["notes"]))
    if not found["problems"]:
        return
    if accepted:
        logger.warning("%s; --accept-reward trains on it all the same", sentence(record))
        return
    if run_dir.begun or not any((run_dir.path / result).exists() for result in RESULTS):
        run_dir.begin()  # so that the figures are kept; an earlier run that --overwrite would replace stays
    raise TrainingError(
        f"{sentence(record)}. Training would teach the captioner what this reward pays for instead: choose another "
        "reward, or pass --accept-reward to train on it all the same"
    )


def sentence(record: dict[str, Any]) -> str:
    """Return what `gate.json` holds in words: the four figures, and what is wrong with them."""
    words = KINDS if record["real_from"] == "references" else KINDS | {"real": OWN}
    figures = ", ".join(f"{words[kind]} {_number(record['means'][kind])}" for kind in KINDS)
    start = f"the reward {record['reward']!r} on {record['images']} training images: {figures}"
    return f"{start}; {'; '.join(record['problems'])}" if record["problems"] else start


def _asks(run_dir: RunDir, config: RLConfig) -> bool:
    """Return whether the reward is still to be checked; a run that has passed, or was accepted, resumes without."""
    path = run_dir.path / GATE
    if not (run_dir.resumes or run_dir.begun):
        return True
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            return not (known["passed"] or known["accepted"])
        except (ValueError, KeyError, TypeError):
            return True
    if done := run_dir.steps_done(getattr(config, "max_steps", 0)):
        logger.warning("the reward is not checked: %s was begun without, and has %d steps", run_dir.path, done)
        return False
    return True


def _measure(captioner: Captioner, images: Any, parts: Parts, config: RLConfig, first_turn: bool) -> dict[str, Any]:
    """Return the figures, what is wrong with them, and what has to be known about them."""
    with _leaving_no_trace(captioner, parts):
        return _figures(captioner, images, parts, config, first_turn)


def _figures(captioner: Captioner, images: Any, parts: Parts, config: RLConfig, first_turn: bool) -> dict[str, Any]:
    rows, real_from = _sample(images, config.gate_images)
    n = len(rows)
    columns: dict[str, Any] = {column: list(rows[column]) for column in rows.column_names}
    greedy: list[str] = []
    if first_turn or real_from == "greedy":
        greedy = _generate(captioner, columns["image"], config)
    if first_turn:
        columns["first"] = greedy
    real = greedy
    if real_from != "greedy":
        real = [refs[0] for refs in columns["references"]]
        columns["references"] = [list(refs[1:]) or list(refs) for refs in columns["references"]]
    shift = n // 2  # images that follow each other are often alike
    captions = {"real": real, "template": [TEMPLATE] * n, "empty": [""] * n, "other": real[shift:] + real[:shift]}
    peers: list[list[str]] = [[] for _ in range(n)]
    if any(getattr(part, "grouped", False) for part, _ in parts):
        torch.manual_seed(config.seed)
        flat = _generate(
            captioner,
            columns["image"],
            config,
            do_sample=True,
            temperature=config.temperature,
            num_return_sequences=PEERS,
        )
        peers = [flat[i * PEERS : (i + 1) * PEERS] for i in range(n)]
    scores = {kind: _scores(parts, texts, peers, columns) for kind, texts in captions.items()}
    totals = {kind: weighted_sum(own, [weight for _, weight in parts]) for kind, own in scores.items()}
    notes: list[str] = []
    problems: list[str] = []
    for kind, own in totals.items():
        if lost := int(np.isnan(own).sum()):
            what = f"it cannot judge {KINDS[kind]} of {lost} of {n} images"
            (problems if kind == "real" and lost == n else notes).append(what)
    if n < 2:
        notes.append("it is not checked with another image's caption, for there is one training image")
    lenient = real_from == "greedy"
    words = KINDS | {"real": OWN} if lenient else KINDS
    for lower in ("template", "other")[: 1 + (n > 1)]:
        if _above(totals["real"], totals[lower], errors=0.0 if lenient else ERRORS) is False:
            what = f"{words['real']} is not worth more than {words[lower]}"
            (notes if lenient and lower == "template" else problems).append(what)
    if _above(totals["empty"], totals["template"]):
        problems.append(f"{KINDS['empty']} is worth more than {KINDS['template']}")
    return {
        "images": n,
        "real_from": real_from,
        "template": TEMPLATE,
        "means": {kind: _mean(own) for kind, own in totals.items()},
        "parts": {
            f"{getattr(part, 'name', getattr(part, '__name__', 'reward'))} {weight:+g}": {
                kind: _mean(own[i]) for kind, own in scores.items()
            }
            for i, (part, weight) in enumerate(parts)
        },
        "problems": problems,
        "notes": notes,
    }


def _sample(images: Any, number: int) -> tuple[Any, str]:
    """Return at most `number` images, evenly spaced, and where their real captions come from."""
    places = list(range(len(images)))
    if "references" in images.column_names:
        captioned = [i for i, refs in enumerate(images["references"]) if refs and refs[0].strip()]
        if captioned:
            places = captioned
    n = min(number, len(places))
    rows = images.select([places[i * len(places) // n] for i in range(n)])
    if "references" not in images.column_names or not all(rows["references"]):
        return rows, "greedy"
    return rows, "references"


def _generate(captioner: Captioner, images: Sequence[Any], config: RLConfig, **settings: Any) -> list[str]:
    size = max(1, min(config.batch_size, 16))
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    return [
        text for part in parts for text in captioner.generate(part, max_new_tokens=config.max_new_tokens, **settings)
    ]


def _scores(parts: Parts, captions: list[str], peers: list[list[str]], columns: dict[str, Any]) -> list[np.ndarray]:
    """Return (N,) of each part, of the captions, each the first in its image's group."""
    size = 1 + len(peers[0])
    texts = [text for own, others in zip(captions, peers, strict=True) for text in (own, *others)]
    given = {column: [value for value in values for _ in range(size)] for column, values in columns.items()}
    ended = [True] * len(texts)
    return [np.array(part(texts, **given, ended=ended), dtype=np.float64)[::size] for part, _ in parts]


def _above(higher: np.ndarray, lower: np.ndarray, errors: float = ERRORS) -> bool | None:
    """Return whether one is above the other by `errors` standard errors; None where no pair can be judged."""
    both = ~(np.isnan(higher) | np.isnan(lower))
    if not both.any():
        return None
    higher, lower = higher[both], lower[both]
    if not (np.isfinite(higher).all() and np.isfinite(lower).all()):
        return bool(np.mean(higher > lower) > 0.5 and not np.isposinf(higher).any())
    difference = higher - lower
    least = TOLERANCE * max(np.abs(higher).max(), np.abs(lower).max())
    if len(difference) > 1:
        least = max(least, errors * float(difference.std(ddof=1)) / len(difference) ** 0.5)
    return bool(difference.mean() > least)


def _mean(scores: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(np.nanmean(scores))


def _number(value: float | None) -> str:
    return "not judged" if value is None or np.isnan(value) else f"{value:.4g}"


@contextmanager
def _leaving_no_trace(captioner: Captioner, parts: Parts) -> Iterator[None]:
    """Inside, random numbers may be drawn, modules stand in evaluation mode; afterwards all is as it was."""
    modes = [(module, module.training) for module in captioner.model.modules()]
    scorers = logging.getLogger("captune.scorers")
    level = scorers.level
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
            captioner.model.eval()
            scorers.setLevel(logging.ERROR)  # they warn of empty captions, which are meant here
            yield
    finally:
        scorers.setLevel(level)
        random.setstate(python)
        np.random.set_state(numpy)
        for module, training in modes:
            module.training = training
        forget()
        for part, _ in parts:
            if hasattr(part, "forget"):
                part.forget()
