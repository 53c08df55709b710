"""What the methods share: settings, the narrow `Trainer`, and how a run starts and ends."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from captune.data.schemes import scheme_of
from captune.decoding import Decoder
from captune.models.captioner import Captioner
from captune.runs.run_dir import RunDir

logger = logging.getLogger(__name__)


@dataclass
class TrainingConfig:
    """Settings that every method has. LoRA as in ViZer's section 4.1."""

    model: str = field(metadata={"help": "a folder, a hub name, or storybook"})
    output: Path = field(metadata={"help": "the run directory to write"})
    images: str = field(metadata={"help": "images to learn from: a folder, a file, a dataset, storybook:unlabelled"})
    prompt: str | None = field(default=None, metadata={"help": "the text beside the image; default: the family's"})
    seed: int = field(default=0, metadata={"help": "seed of everything that is drawn by lot"})
    limit: int | None = field(default=None, metadata={"help": "use only the first N images"})
    evaluation: str | None = field(
        default=None,
        metadata={"help": "images to caption before and after; default: storybook:val, or 64 of --images"},
    )
    max_steps: int = field(default=100, metadata={"help": "optimiser steps"})
    batch_size: int = field(default=16, metadata={"help": "images per step"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "batches per optimiser step"})
    learning_rate: float = field(default=5e-4, metadata={"help": "peak learning rate of AdamW; warm-up, then cosine"})
    warmup_steps: int = field(default=10, metadata={"help": "steps until the peak"})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's weight decay"})
    lora_r: int = field(default=32, metadata={"help": "rank of LoRA"})
    lora_alpha: int = field(default=64, metadata={"help": "alpha of LoRA"})
    lora_dropout: float = field(default=0.1, metadata={"help": "dropout of LoRA"})
    save_steps: int = field(default=50, metadata={"help": "steps between checkpoints"})
    dtype: str = field(default="auto", metadata={"help": "auto, float32, bfloat16 or float16"})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, ...; default: the best there is"})
    overwrite: bool = field(default=False, metadata={"help": "start afresh in an output that holds another run"})

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError("--images is still needed: a folder, a file, a dataset name or storybook:<split>")
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "lora_r", "save_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, it is {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise ValueError(f"--learning-rate must be positive, it is {self.learning_rate}")


class MetricsCallback(TrainerCallback):
    """Writes what the trainer logs to the run's metrics.jsonl."""

    def __init__(self, run_dir: RunDir, first_step: int = 0) -> None:
        self.run_dir, self.first_step = run_dir, first_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        numbers = {key: value for key, value in (logs or {}).items() if isinstance(value, (int, float))}
        self.run_dir.log(step=self.first_step + state.global_step, **numbers)


class BarCallback(ProgressCallback):
    """The trainer's progress bar, on stderr where that is a terminal, with the newest loss or reward beside it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.training_bar = tqdm(total=state.max_steps, desc="training", unit="step", disable=None)
        self.current_step = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.training_bar is not None:  # transformers' own writes each log to stdout
            shown = {key: logs[key] for key in ("loss", "reward") if logs and key in logs}
            self.training_bar.set_postfix(shown, refresh=False)


def follow(trainer: Trainer, run_dir: RunDir, first_step: int = 0) -> None:
    """Lets the trainer's numbers go to metrics.jsonl and to a progress bar, and nothing to stdout."""
    trainer.remove_callback(PrinterCallback)  # what `disable_tqdm` puts in
    trainer.add_callback(MetricsCallback(run_dir, first_step))
    trainer.add_callback(BarCallback())


def as_they_are(examples: list[dict[str, Any]]) -> Any:
    """The collator: a batch is the list of its examples."""
    return examples


class CaptionerTrainer(Trainer):
    """`transformers.Trainer` on a captioner: a batch is a list of examples, a subclass says what the loss is."""

    def __init__(self, captioner: Captioner, dataset: Any, args: TrainingArguments, **kwargs: Any) -> None:
        super().__init__(model=captioner.model, args=args, train_dataset=dataset, data_collator=as_they_are, **kwargs)
        self.captioner = captioner

    def caption_loss(self, images: list[Any], examples: list[dict[str, Any]]) -> Tensor:
        raise NotImplementedError

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss = self.caption_loss([example["image"] for example in inputs], inputs)
        return (loss, {}) if return_outputs else loss

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs  # a list of examples; the captioner puts tensors on the device

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    @classmethod
    def fit(
        cls, captioner: Captioner, dataset: Any, config: TrainingConfig, run_dir: RunDir,
        settings: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Trains, resuming from the run's last checkpoint where there is one.

        Args:
            settings: further settings of `TrainingArguments`.
            kwargs: the trainer's own.

        Raises:
            ValueError: with several processes: the loss is computed beside DDP's wrapper, which would average nothing.
        """
        arguments = training_arguments(config, **(settings or {}))
        if arguments.world_size > 1:
            raise ValueError(f"this method trains in one process, not in {arguments.world_size}: launch it without "
                             "torchrun; the reward objective, on trl's GRPOTrainer, runs on several")  # fmt: skip
        trainer = cls(captioner, dataset, arguments, **kwargs)
        follow(trainer, run_dir)
        trainer.train(resume_from_checkpoint=last_checkpoint(config.output))


def kl_to_base(captioner: Captioner, batch: Any, logits: Tensor | None = None) -> Tensor:
    """KL(pi || pi_base) per caption token, averaged; pi_base is the captioner without its adapter."""
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "caption_mask")}
    if logits is None:
        logits = captioner.model(**inputs, use_cache=False).logits
    with torch.no_grad(), captioner.disable_adapter():
        base = captioner.model(**inputs, use_cache=False).logits
    mask = batch["caption_mask"][:, 1:].bool()
    ours, theirs = (x[:, :-1][mask].float().log_softmax(dim=-1) for x in (logits, base))
    return (ours.exp() * (ours - theirs)).sum(dim=-1).mean()


def common_arguments(config: TrainingConfig) -> dict[str, Any]:
    """The TrainingArguments that every method, TRL's included, is run with."""
    return {
        "output_dir": str(config.output),
        "seed": config.seed,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "logging_steps": max(1, min(5, config.max_steps // 20)),
        "save_steps": config.save_steps,
        "save_total_limit": 2,
        "report_to": [],
        "disable_tqdm": True,  # `follow` puts in a bar of its own
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": config.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        "bf16": False,
    }


def training_arguments(config: TrainingConfig, **settings: Any) -> TrainingArguments:
    return TrainingArguments(**{**common_arguments(config), **settings})


def last_checkpoint(output: str | Path) -> str | None:
    from transformers.trainer_utils import get_last_checkpoint

    return get_last_checkpoint(str(output)) if Path(output).is_dir() else None


def start(config: TrainingConfig, method: str) -> tuple[RunDir, Captioner]:
    """The run directory with its config, and the frozen captioner. An unfinished run with the same settings goes on."""
    set_seed(config.seed)
    captioner = Captioner.load(config.model, dtype=config.dtype, device=config.device, prompt=config.prompt)
    run_dir = RunDir(config.output)
    unfinished = (run_dir.path / "config.yaml").is_file() and not run_dir.finished and not config.overwrite
    run_dir.start({"method": method, **asdict(config)}, resume=unfinished, overwrite=config.overwrite)
    if unfinished:
        run_dir.rewind(steps_done(run_dir, config), keep="mapper_loss")  # a finished fit is not done again
    return run_dir, captioner


def steps_done(run_dir: RunDir, config: TrainingConfig) -> int:
    """The last step that need not be done again: that of the last checkpoint, of the last round if there are rounds."""
    rounds = [RunDir(path) for path in sorted(run_dir.path.glob("round-*"))]
    finished = sum(part.adapter.is_dir() for part in rounds)
    checkpoints = rounds[finished].checkpoints() if finished < len(rounds) else run_dir.checkpoints()
    return finished * config.max_steps + (int(checkpoints[-1].name.rpartition("-")[2]) if checkpoints else 0)


def load_training_images(config: TrainingConfig, *, references: bool = False, source: str | None = None) -> Any:
    """The training images as a dataset; bad ones are left out, each named in the log.

    Raises:
        ValueError: for a source that streams, where no image can be opened, or with `references`, where one has none.
    """
    from datasets import IterableDataset

    from captune.data import load_images, without_bad

    source = source or config.images
    images = load_images(source, limit=config.limit)
    if isinstance(images, IterableDataset):
        raise ValueError(f"{source}: training sees images again and again, a stream cannot; leave streaming=1 out")
    dataset, bad = without_bad(images)
    if bad and not len(dataset):
        raise ValueError(f"{source}: not one of {len(bad)} images can be used; the first, {bad[0][0]}: {bad[0][1]}")
    if references:
        lacking = [i for i, own in zip(dataset["image_id"], dataset["references"], strict=True) if not own]
        if lacking:
            raise ValueError(
                f"{source}: {len(lacking)} images have no caption to learn from, the first is {lacking[0]!r}"
            )
    return dataset


def held_out(config: TrainingConfig) -> str:
    """The source of the images that a run is judged on."""
    return config.evaluation or scheme_of(config.images).held_out or config.images


def conclude(
    config: TrainingConfig, run_dir: RunDir, captioner: Captioner, *, row: str, method: str, role: str = "trained"
) -> RunDir:
    """Saves `adapter/`, captions the evaluation images before and after, scores them, writes report and model card."""
    from captune.report import render

    captioner.save_adapter(run_dir.adapter)
    source = held_out(config)
    limit = 64 if source == config.images else None
    with captioner.disable_adapter():
        measure(captioner, source, run_dir, "base", role="base", limit=limit)
    measure(captioner, source, run_dir, row, role=role, limit=limit)
    run_dir.finish(run_dir.card(method=method, base=config.model, data=config.images))
    render([run_dir.path], run_dir.path / "report.html")
    return run_dir


def measure(
    captioner: Captioner, source: str, run_dir: RunDir, row: str, *, limit: int | None = None,
    decoder: Decoder | None = None, role: str | None = None,
) -> None:  # fmt: skip
    """Captions a source with the captioner as it is, scores what can be scored there, adds the row to scores.json."""
    from captune.data import load_references
    from captune.evaluation.run import evaluate_files
    from captune.inference.job import caption_source

    captions = run_dir.captions(row)
    made = caption_source(captioner, source, captions, resume=False, limit=limit, decoder=decoder)
    scorers, references = ["health"], load_references(source)
    lacking = [image_id for image_id, own in references.items() if not own]
    if 0 < len(lacking) < len(references):
        logger.warning("%s: no scores against references, for %d of %d images have none, such as %r", source,
                       len(lacking), len(references), lacking[0])  # fmt: skip
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
    )
