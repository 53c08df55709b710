"""How a run starts and ends: its folder, its captioner, its images, its scores."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import count
from typing import Any

from datasets import Dataset, IterableDataset
from peft import PeftModel
from transformers import set_seed
from trl.trainer.utils import use_adapter

from captune.data import load_images, load_references, part_of
from captune.data.checking import bytes_digest, refuse_without_captions, sharing
from captune.data.columns import undecoded
from captune.data.naming import Source
from captune.data.schemes import scheme_of, warn_of_strangers
from captune.data.sources import held_out_number
from captune.decoding import Decoder
from captune.errors import RunError, SourceError
from captune.models.captioner import Captioner
from captune.models.condition import read_condition
from captune.runs.checkpoints import newest
from captune.runs.run_dir import RunDir, plain
from captune.scorers.expression import parse
from captune.training.config import DEFAULT_SHOWN, RunConfig, TrainingConfig, flag
from captune.utils import processes
from captune.utils.files import remove_leftovers, replacing_folder
from captune.utils.skipped import skip

logger = logging.getLogger(__name__)

REFERENCE = "start"  # the name of the adapter as it was when training began, which KL is measured from


# -- start -------------------------------------------------------------------------------------------------------------


def claim_run(
    config: RunConfig,
    method: str,
    extended_by: Collection[str] = ("max_steps",),
    parts: Sequence[str] = (),
    may_change: Collection[str] = (),
) -> RunDir:
    """Lock a run's folder and find out what there is to do; nothing in it changes before `RunDir.begin`.

    A run with the same settings is resumed; where it is finished, `done` is set, and the log says so.

    Args:
        config: the run's settings.
        method: the method's name.
        extended_by: the settings that may grow: the run continues from its last checkpoint.
        parts: as for `RunDir`.
        may_change: the settings that may differ, for what needs them has not begun.

    Raises:
        RunError: the folder may not be taken, or a finished run cannot be extended.
    """
    processes.connect(cpu=config.device == "cpu")
    run_dir = RunDir(config.output, parts)
    there, settings = (run_dir.path / "config.yaml").is_file(), {"method": method, **asdict(config)}
    former = partial(former_settings, type(config))
    grown = set()
    if there and not config.overwrite:
        old = former(run_dir.config)
        grown = {name for name in extended_by if name in old and settings[name] > old[name]}
    run_dir.claim(
        settings,
        resume=there and not config.overwrite,
        overwrite=config.overwrite,
        may_change=grown | set(may_change),
        former=former,
    )
    if run_dir.resumes and not run_dir.done:
        run_dir.when_begun(run_dir.recover)
    if run_dir.done:
        (largest,) = [name for name in extended_by if name in settings][:1] or [""]
        more = f"a larger {flag(largest)} extends it, " if largest else ""
        logger.warning("%s is already finished: %s--overwrite trains it again", run_dir.path, more)
        if not processes.rank():  # the report is written last: a kill may have left it half written
            remove_leftovers(run_dir.path)
            if not (run_dir.path / "report.html").is_file():
                write_report(run_dir)
    elif run_dir.resumes and run_dir.finished and "max_steps" in grown and newest(run_dir.path) is None:
        raise RunError(
            f"{run_dir.path} is finished and has no complete checkpoint to be extended from; continue from its "
            f"adapter in another --output: --adapter {run_dir.adapter}"
        )
    elif run_dir.resumes and (step := run_dir.steps_done(getattr(config, "max_steps", 0))):
        logger.warning("%s is resumed after step %d", run_dir.path, step)
    elif run_dir.resumes and not run_dir.finished and "max_steps" in settings:
        logger.warning("%s has no complete checkpoint: training begins at step 0", run_dir.path)
    return run_dir


def former_settings(config: type, old: dict[str, Any]) -> dict[str, Any]:
    """Return a run's recorded settings under today's names; what an earlier version did not know has its default."""
    known = dataclasses.fields(config)
    names = {alias: field.name for field in known for alias in field.metadata.get("aliases", ())}
    defaults = {field.name: plain(field.default) for field in known if field.default is not dataclasses.MISSING}
    return defaults | {names.get(name, name): value for name, value in old.items()}


def write_report(run_dir: RunDir) -> None:
    """Write the run's report.html: its rows, and the curves of its stages where it has some."""
    from captune.report.page import render_runs
    from captune.report.reading import is_run, read_run

    stages = [read_run(path) for name in run_dir.parts if is_run(path := run_dir.path / name)]
    run = read_run(run_dir.path, lacks=("metrics.jsonl",) if stages else ())
    for stage in stages:
        stage.rows = []  # which are those of the run
    render_runs([run, *stages], run_dir.path / "report.html", title=run.name)


def start_run(config: TrainingConfig, method: str) -> tuple[RunDir, Captioner]:
    """Start a run, or resume one with the same settings.

    Returns:
        The run directory, with its config, and the frozen captioner.
    """
    run_dir = claim_run(config, method)
    captioner = load_captioner(config)
    return run_dir.begin(), captioner


def load_captioner(config: TrainingConfig) -> Captioner:
    """Seed all random numbers and load the frozen captioner."""
    set_seed(config.seed)
    captioner = Captioner.load(
        config.model,
        dtype=config.dtype,
        device=config.device,
        prompt=config.prompt,
        load_in_4bit=config.load_in_4bit,
    )
    if config.prompt is None:
        captioner.ask_as_trained(config.adapter)
    return captioner


def load_training_images(config: TrainingConfig, *, references: bool = False, source: str | None = None) -> Any:
    """Load the training images, without those held out for evaluation; bad ones are left out, each named in the log.

    Args:
        config: its `images`, `eval_images`, `limit` and `batch_size` are read.
        references: whether every image must have one.
        source: in place of `config.images`.

    Returns:
        A dataset with the columns image, image_id, and what else the source has.

    Raises:
        SourceError: for a source that streams, where no image can be opened, or with `references`, where one has none.
    """
    from captune.data import without_bad
    from captune.data.columns import bounded

    source, held = source or config.images, None
    if source == config.images and not has_own_evaluation(config):
        training = part_of(source, "training", limit=config.limit)
        held = training and part_of(training, "held_out")
        if training is None:
            logger.warning(
                "%s: too few images to hold some out, so the run will be measured on its training images; name others "
                "with --eval-images",
                source,
            )
        source = training or source
    images = load_images(source, limit=config.limit)
    warn_of_strangers(config.model, source, images.column_names)
    if isinstance(images, IterableDataset):
        raise SourceError(f"{source}: training reads each image several times, a stream cannot; leave streaming=1 out")
    if held:
        images = apart_from(images, held)
    dataset, bad = without_bad(bounded(images, config.batch_size))
    if bad and not len(dataset):
        raise SourceError(f"{source}: not one of {len(bad)} images can be used; the first, {bad[0][0]}: {bad[0][1]}")
    if references:
        lacking = [i for i, refs in zip(dataset["image_id"], dataset["references"], strict=True) if not refs]
        refuse_without_captions(source, lacking)
    return dataset


def apart_from(images: Any, judged: str) -> Any:
    """Return the images to learn from without those, and copies of those, that a run is judged on, each counted.

    Files are compared by their bytes, what a program draws by its id.
    """
    others = load_images(judged, decode=False)
    if scheme_of(judged).name:
        ids = set(others["image_id"])
        copies = [row for row, image_id in enumerate(images["image_id"]) if image_id in ids]
    elif isinstance(others, IterableDataset):  # which is read once
        theirs = {bytes_digest(row["image"]) for row in others} - {""}
        ours = undecoded(images.select_columns(["image"]))
        copies = [row for row in range(len(ours)) if bytes_digest(ours[row]["image"]) in theirs]
    else:
        copies = sharing(images, others)
    for row in copies:
        skip("images to learn from that the run is judged on, too, maybe under other names", images["image_id"][row])
    return images.select(sorted(set(range(len(images))) - set(copies))) if copies else images


def require_images(images: Any, config: TrainingConfig, generations: int = 1) -> None:
    """Check that there are as many training images as one sampling takes: TRL drops a smaller rest, and trains nothing.

    Args:
        images: the training images, a dataset.
        config: the run's settings.
        generations: optimiser steps that share one sampling.

    Raises:
        SourceError: there are fewer; says how many are needed.
    """
    needed = config.batch_size * config.gradient_accumulation_steps * generations * processes.number()
    if len(images) < needed:
        factors = {
            "batch size": config.batch_size,
            "gradient accumulation steps": config.gradient_accumulation_steps,
            "steps per generation": generations,
            "processes": processes.number(),
        }
        product = " x ".join(f"{name} {number}" for name, number in factors.items() if number > 1)
        raise SourceError(
            f"{config.images}: {len(images)} images to learn from, but one sampling takes {needed} ({product}): "
            f"nothing would be trained; {enough(config, needed)}, or lower --batch-size"
        )


def enough(config: RunConfig, needed: int) -> str:
    """Say how many images must be given so that a run learns from so many: some may be held out of training."""
    limit = "" if config.limit is None else f" (and --limit is {config.limit})"
    if has_own_evaluation(config):
        return f"give {needed} images or more{limit}"
    total = next(number for number in count(needed) if number - held_out_number(number) >= needed)
    return (
        f"give {total} images or more{limit}, of which {total - needed} are held out to measure on; or name others for "
        "that with --eval-images"
    )


# -- what learns -------------------------------------------------------------------------------------------------------


def make_trainable(captioner: Captioner, config: TrainingConfig, *, connector: bool = False) -> None:
    """Put in what learns: a new LoRA, the adapter to continue from, or all weights of the language model.

    Args:
        captioner: without an adapter.
        config: the run's settings.
        connector: train the part between vision tower and language model as well.
    """
    if captioner.condition is None and (condition := read_condition(config.adapter)) is not None:
        captioner.condition = condition
        if config.prompt is None:
            captioner.prompt = condition.prompts[condition.highest]
    if config.prompt is not None and captioner.condition and config.prompt not in captioner.condition.prompts.values():
        captioner.condition = None  # what is learned is learned under one prompt
    captioner.make_trainable(
        adapter=config.adapter,
        full=config.train_all_weights,
        connector=connector,
        r=config.lora_r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
    )


def keep_start(captioner: Captioner, config: TrainingConfig) -> None:
    """Keep a frozen copy of the adapter that training continues from, for `starting_captioner`; none without one."""
    if config.adapter is not None and isinstance(captioner.model, PeftModel):
        captioner.model.load_adapter(str(config.adapter), REFERENCE)
        captioner.freeze_vision()


def drop_start(captioner: Captioner) -> None:
    """Remove the copy again, so that it is not saved."""
    if isinstance(captioner.model, PeftModel) and REFERENCE in captioner.model.peft_config:
        captioner.model.delete_adapter(REFERENCE)


@contextmanager
def starting_captioner(captioner: Captioner) -> Iterator[None]:
    """Inside, the captioner is as it was when training began: with the adapter that `keep_start` kept, or with none."""
    model: Any = captioner.model
    with use_adapter(model, REFERENCE if REFERENCE in model.peft_config else None):
        yield
    captioner.freeze_vision()  # peft makes all of the adapter trainable again


# -- end ---------------------------------------------------------------------------------------------------------------


def evaluation_source(config: RunConfig) -> str:
    """Return the source of the images that a run is judged on: the training images only where they are too few."""
    given = config.eval_images or scheme_of(config.images).held_out
    return given or part_of(config.images, "held_out", limit=config.limit) or config.images


def evaluation_terms(config: RunConfig, captioner: Captioner) -> dict[str, Any]:
    """Return what all rows of a run are judged under, as `caption_and_score` takes it.

    That is how many images, the longest caption, where the run learns longer ones than the captioner's default, and
    whether it has learned from these images.
    """
    terms: dict[str, Any] = {"limit": evaluation_limit(config)}
    if (longest := getattr(config, "max_new_tokens", 0)) > captioner.max_new_tokens:
        terms["max_new_tokens"] = longest
    if measured_on_training(config):
        terms["trained_on"] = True
    return terms


def has_own_evaluation(config: RunConfig) -> bool:
    """Return whether a run is judged on a source of its own, so that none of its images need be held out."""
    return bool(config.eval_images or scheme_of(config.images).held_out)


def measured_on_training(config: RunConfig) -> bool:
    """Return whether a run is judged on images that it learns from.

    Images of two sources are compared by their bytes; of what a program draws the names decide.
    """
    training, source, limit = config.images, evaluation_source(config), evaluation_limit(config)
    own = has_own_evaluation(config)
    if not own:
        training = part_of(training, "training", limit=config.limit) or training
    try:
        known = load_references(training, limit=config.limit)
    except SourceError:
        if Source.parse(source).where == Source.parse(training).where:
            raise
        return False  # a dataset was trained on that has no name
    both = known.keys() & load_references(source, limit=limit).keys()
    if not own or scheme_of(training).name or scheme_of(source).name:  # copies of what is held out are not trained on
        return bool(both)
    learned = load_images(training, limit=config.limit, decode=False)
    judged = load_images(source, limit=limit, decode=False)
    if isinstance(learned, Dataset) and isinstance(judged, Dataset):
        return bool(sharing(learned, judged))
    ours, theirs = (  # a stream is read once
        {bytes_digest(row["image"]) for row in rows if row["image_id"] in both} for rows in (learned, judged)
    )
    return bool((ours & theirs) - {""})


def evaluation_limit(config: RunConfig) -> int | None:
    """Return how many images a run is judged on; None: all, where they are not the training images."""
    return DEFAULT_SHOWN if evaluation_source(config) == config.images else None


def finish_run(
    config: TrainingConfig,
    run_dir: RunDir,
    captioner: Captioner,
    *,
    row: str,
    method: str,
    role: str = "trained",
    prompt: str | None = None,
) -> RunDir:
    """Save `adapter/`, caption the evaluation images before and after, score them, write report and model card.

    With `train_all_weights` the merged captioner is saved as well, in `model/`, a plain transformers folder.

    Args:
        config: the run's settings.
        run_dir: the run.
        captioner: trained.
        row: the name of the trained captioner in tables.
        method: what was done, for the model card.
        role: the row's part in a comparison (`captune.runs.run_dir.ROLES`).
        prompt: what it was trained under, where that is not the captioner's, which the base is asked with.
    """
    processes.on_first(_finish, config, run_dir, captioner, row, method, role, prompt)
    return run_dir


def _finish(
    config: TrainingConfig, run_dir: RunDir, captioner: Captioner, row: str, method: str, role: str, prompt: str | None
) -> None:
    with replacing_folder(run_dir.adapter) as folder:
        captioner.save_adapter(folder)
    source, terms = evaluation_source(config), evaluation_terms(config, captioner)
    with captioner.disable_adapter():
        caption_and_score(captioner, source, run_dir, "base", role="base", **terms)
    captioner.prompt = prompt or captioner.prompt
    if rewarded := rewarded_scorers(config, run_dir):
        terms["rewarded"] = rewarded
    caption_and_score(captioner, source, run_dir, row, role=role, **terms)
    if config.train_all_weights:
        with replacing_folder(run_dir.path / "model") as folder:
            captioner.merge(folder)
    run_dir.finish(run_dir.card(method=method, base=config.model, data=config.images))
    write_report(run_dir)


def rewarded_scorers(config: TrainingConfig, run_dir: RunDir) -> list[str]:
    """Return the names of the scorers that a run was rewarded by: their figures are no evidence of a gain."""
    weights = parse(reward) if (reward := getattr(config, "reward", "")) else {}
    names = {spec.partition(":")[0] for spec, weight in weights.items() if weight > 0}
    return sorted(names | ({"vizer"} if run_dir.mapper.is_dir() else set()))


def caption_and_score(
    captioner: Captioner,
    source: str,
    run_dir: RunDir,
    row: str,
    *,
    limit: int | None = None,
    decoder: Decoder | None = None,
    role: str | None = None,
    max_new_tokens: int | None = None,
    **extra: Any,
) -> None:
    """Caption a source with the captioner as it is, score what can be scored there, add the row to scores.json.

    Args:
        captioner: as it is.
        source: the images; where each has references, the captions are compared with them.
        run_dir: receives `captions/ROW.jsonl` and the row of scores.
        row: the captioner's name in tables.
        limit: use the first N images.
        decoder: what makes the captions; default: greedy generation.
        role: the row's part in a comparison (`captune.runs.run_dir.ROLES`).
        max_new_tokens: longest caption in tokens; default: the captioner's.
        extra: further entries of the row; ``trained_on=True`` where the images were trained on, ``rewarded`` with
            the names of scorers that the captioner was rewarded by.
    """
    from captune.evaluation.run import evaluate_files
    from captune.inference.job import caption_source

    captions = run_dir.captions(row)
    generation: dict[str, Any] = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    made = caption_source(captioner, source, captions, resume=False, limit=limit, decoder=decoder, **generation)
    scorers, references = ["health"], load_references(source)
    lacking = [image_id for image_id, refs in references.items() if not refs]
    if 0 < len(lacking) < len(references):
        logger.warning(
            "%s: no scores against references, for %d of %d images have none, such as %r",
            source,
            len(lacking),
            len(references),
            lacking[0],
        )
    if has_references := bool(references) and not lacking:
        scorers += ["cider", "bleu", "rouge"]
    scorers += scheme_of(source).scorers
    if run_dir.mapper.is_dir():
        scorers.append(f"vizer:{run_dir.mapper}")
    scored = evaluate_files([captions], references=source if has_references else None, images=source, scorers=scorers)
    run_dir.add_scores(
        row,
        {spec.partition(":")[0]: score for spec, score in scored["scores"].items()},
        role=role,
        source=source,
        captions=captions,
        images_per_second=made.images_per_second,
        bad_images=made.bad,
        **extra,
    )
