"""ViZer: a captioner learns from images without captions.

Byun et al., "Unifying Vision-Language Latents for Zero-label Image Caption Enhancement". A mapper is fitted so that a
caption's states predict the image's features (`captune.training.vizer.mapper_fit`); then the captioner is trained on
unlabelled images so that its captions agree with their images under the frozen mapper, L_zero = L_ViZer = 1 - cos(F_I,
F_T_hat) (section 3.2). The mapper's captions are ground truth (ViZer_GT: `--mapper-captions SOURCE`) or the model's own
(ViZer_G: `generated` | `sampled`).

Objectives: `latent`, the paper's, moves the states f_psi of a generated caption; `straight_through` lets the gradient
reach the words; `reward` makes the cosine GRPO's reward, with KL, in `rounds` with a new mapper each. The preset
`paper` is the most literal reading, `captune` what measured best on storybook:val. See docs/methods/vizer.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from captune.errors import SourceError, first_line
from captune.models.captioner import Captioner
from captune.models.vizer_mapper import Mapper
from captune.runs.run_dir import RunDir
from captune.scorers import load_scorer
from captune.scorers.image.vizer_mapper import ViZerScorer
from captune.training import lifecycle
from captune.training.gate import check_reward
from captune.training.grpo.train import train_with_reward
from captune.training.grpo.trainer import CaptionGRPOTrainer
from captune.training.lifecycle import (
    apart_from,
    claim_run,
    enough,
    evaluation_source,
    finish_run,
    keep_start,
    load_captioner,
    load_training_images,
    make_trainable,
    require_images,
)
from captune.training.monitor.setup import monitor_without_stopping
from captune.training.vizer.config import ViZerConfig
from captune.training.vizer.mapper_fit import fit_mapper, own_captions
from captune.training.vizer.objectives import ViZerTrainer
from captune.utils import processes
from captune.utils.files import discard, replacing_folder

logger = logging.getLogger(__name__)


def mapper_images(config: ViZerConfig, images: Any) -> Any:
    """Return what the mapper is fitted on: the first `mapper_size` images or, for ViZer_GT, those of its own source.

    Raises:
        SourceError: there are too few for `whitened` directions; says how many are needed.
    """
    if not config.zero_label:
        images = load_training_images(config, references=True, source=config.mapper_captions)
        if (judged := evaluation_source(config)) != config.images:
            images = apart_from(images, judged)
        if not len(images):
            raise SourceError(f"{config.mapper_captions}: all of its images are among those that the run is judged on")
    if config.mapper_size is not None:
        images = images.select(range(min(config.mapper_size, len(images))))
    if config.whitened >= len(images):
        needed = config.whitened + 1
        more = enough(config, needed) if config.zero_label else f"give {needed} captioned images or more"
        if config.mapper_size is not None and config.mapper_size < needed:
            more = f"raise --mapper-size to {needed} or more"
        raise SourceError(
            f"the mapper is fitted on {len(images)} images, which differ in {len(images) - 1} directions at most, and "
            f"--whitened asks for {config.whitened}: {more}; or lower --whitened"
        )
    return images


def captions_for_mapper(captioner: Captioner, images: Any, config: ViZerConfig) -> list[list[str]]:
    """Return each image's captions to fit the mapper on: the model's own or, for ViZer_GT, its references."""
    if not config.zero_label:
        return list(images["references"])
    return own_captions(
        captioner,
        images,
        samples=config.mapper_samples if config.mapper_captions == "sampled" else 0,
        guidance=config.guidance,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
    )


def build_mapper(
    captioner: Captioner, config: ViZerConfig, run_dir: RunDir, images: Any, *, first_step: int = 0
) -> Mapper:
    """Fit the mapper on the images or, for ViZer_GT, on the captioned source, and save it in `config.output`.

    A run that resumes takes the mapper that `config.output` has.

    Args:
        captioner: what it reads with.
        config: the settings of the round.
        run_dir: receives the fit's losses, spread over the training steps that the mapper is for.
        images: the training images, a dataset.
        first_step: the first of these steps.
    """
    folder = RunDir(config.output).mapper
    if (folder / "config.json").is_file():
        mapper = Mapper.load(folder)
        mapper.check_captioner(captioner)
        return mapper.to(captioner.device)
    run_dir.begin()
    fitted: list[Mapper] = []
    processes.on_first(lambda: fitted.append(_fit(captioner, config, run_dir, images, first_step)))
    return fitted[0] if fitted else Mapper.load(folder).to(captioner.device)


def _fit(captioner: Captioner, config: ViZerConfig, run_dir: RunDir, images: Any, first_step: int) -> Mapper:
    folder = RunDir(config.output).mapper
    images = mapper_images(config, images)
    torch.manual_seed(config.seed)  # the same samples when a run resumes with its second round
    captions = captions_for_mapper(captioner, images, config)
    mapper, losses = fit_mapper(
        captioner,
        images,
        captions,
        config.mapper_config(),
        epochs=config.mapper_epochs,
        lr=config.mapper_learning_rate,
        seed=config.seed,
    )
    points = min(50, len(losses))
    for i in range(points):
        step = first_step + round(config.max_steps * i / points, 2)
        run_dir.log(step=step, mapper_loss=losses[i * len(losses) // points])
    run_dir.milestone(folder)
    save_mapper(mapper, folder)
    return mapper


def save_mapper(mapper: Mapper, folder: Path) -> None:
    """Save a mapper so that it is there as a whole or not at all."""
    with replacing_folder(folder) as temporary:
        mapper.save(temporary)


def discard_broken_mappers(run_dir: RunDir) -> None:
    """Remove, each named in the log, the mappers of a run that cannot be read: they are fitted again."""
    for folder in [run_dir.mapper, *run_dir.path.glob("round-*/mapper")]:
        try:
            if folder.exists():
                Mapper.load(folder)
        except Exception as error:  # whatever a cut file makes its reader say
            logger.warning("%s cannot be read and is fitted again: %s", folder, first_line(error))
            discard(folder)


def train_by_reward(
    captioner: Captioner,
    config: ViZerConfig,
    run_dir: RunDir,
    images: Any,
    reward_of: Callable[[ViZerScorer], Callable[..., list[float]]] = lambda scorer: scorer,
    monitored: bool = False,
) -> None:
    """Sample, fit the mapper and train, `rounds` times. A finished round is kept, and skipped when the run resumes.

    The cosine alone does not mind a thing that is named three times, so repetition costs `repetition_weight`.

    Args:
        captioner: with a trainable adapter.
        config: the run's settings.
        run_dir: the run.
        images: the training images, a dataset.
        reward_of: makes the reward out of the round's scorer; a control puts something else in its place.
        monitored: whether the first round's reward is checked before training, and held-out scorers judge the run
            (`captune.training.monitor`).
    """
    run_dir.begin()
    for number in range(config.rounds or 1):
        output = run_dir.path / f"round-{number + 1}"
        if (output / "adapter" / "adapter_model.safetensors").is_file():
            captioner.load_adapter_weights(output / "adapter")
            captioner.core.add_model_tags(CaptionGRPOTrainer._tag_names)  # as training does; the card of peft has them
            continue
        guidance = 0.0 if number else config.guidance
        part = replace(config, output=output, seed=config.seed + number, guidance=guidance)
        mapper = build_mapper(captioner, part, run_dir, images, first_step=number * config.max_steps)
        processes.on_first(save_mapper, mapper, run_dir.mapper)  # the last round's is the run's
        rewards = [(reward_of(ViZerScorer(captioner=captioner, mapper=mapper)), 1.0)]
        if config.repetition_weight:
            rewards.append((load_scorer("repetition"), -config.repetition_weight))
        steps = number * config.max_steps
        monitoring: dict[str, Any] = {}
        if monitored:
            optimised = [scorer for scorer, _ in rewards]
            sampling = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature}
            monitoring = monitor_without_stopping(config, captioner, optimised, run_dir, first_step=steps, **sampling)
            if not number:
                check_reward(captioner, images, rewards, part, run_dir, name="vizer")
        train_with_reward(
            captioner,
            images,
            rewards,
            part,
            run_dir,
            beta=config.beta,
            num_generations=config.num_generations,
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
            first_step=steps,
            **monitoring,
        )
        processes.on_first(_save_round, captioner, run_dir, output / "adapter")


def _save_round(captioner: Captioner, run_dir: RunDir, adapter: Path) -> None:
    run_dir.milestone(adapter)
    with replacing_folder(adapter) as folder:
        captioner.save_adapter(folder)


def run(config: ViZerConfig) -> RunDir:
    """Fit the mapper, train, save `mapper/` and `adapter/`, evaluate, write the report."""
    extended_by = () if config.objective == "reward" else ("max_steps",)  # a round has its number of steps
    run_dir = claim_run(config, "vizer", extended_by)
    if run_dir.done:
        return run_dir
    if run_dir.resumes:
        processes.on_first(discard_broken_mappers, run_dir)
    captioner = load_captioner(config)
    images = load_training_images(config)
    if config.objective == "reward":
        require_images(images, config)
    if not run_dir.resumes:
        mapper_images(config, images)  # refuses what is too little before anything is written
    if config.objective == "reward":
        make_trainable(captioner, config)
        train_by_reward(captioner, config, run_dir, images, monitored=True)
    else:
        mapper = build_mapper(captioner, config, run_dir, images)
        torch.manual_seed(config.seed)  # the same LoRA, whether the mapper was fitted now or taken
        make_trainable(captioner, config)
        if config.beta:
            keep_start(captioner, config)
        with captioner.share_vision(alone=config.cache_features):
            ViZerTrainer.fit(captioner, images, config, run_dir, mapper=mapper, **config.trainer_settings())
        lifecycle.drop_start(captioner)
    row = f"ViZer {'zero-label' if config.zero_label else 'GT'}{' (paper)' if config.preset == 'paper' else ''}"
    method = f"ViZer, {config.objective} objective, mapper captions: {config.mapper_captions}"
    role = "zero" if config.zero_label else "gt"
    return finish_run(config, run_dir, captioner, row=row, method=method, role=role)
