"""One ViZer latent training step beside one step of `trl.SFTTrainer`: same model, LoRA, images and captions.

    python -m benchmarks.speed.latent_step [--model FOLDER] [--repeats 20] [--output benchmarks/speed/latent_step.json]

Both are the whole step of their trainer on a batch of new images: preprocessing (collator or `prepare`), loss,
backward, clipping, AdamW. Captions are given, so ours generates nothing; the preset is `paper` (image in context, width
256). They take turns, and who goes first alternates. TRL runs without gradient checkpointing and in float32, as ours
does; its own default is counted, too. `cpu` is the processor's time, which other work on the machine disturbs less than
the clock's (`wall`); `cpu without preprocessing` leaves the processor's part (images, tokens) out of both.

Vision forwards are images through the tower's first layer per image of the batch, vision backwards the passes whose
gradient comes back to it. In training ours is cheaper still: the step finds the features that generation computed.

Two models: the shipped storybook captioner (where there is none, its shape with random weights), and an Idefics3 with
SmolVLM's proportions, where the vision tower is about 60% of a forward pass (`vision_share`, counted in FLOPs).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil, Idefics3Processor
from trl import SFTConfig, SFTTrainer

from benchmarks import _lib
from captune import storybook
from captune.models.captioner import Captioner
from captune.models.families import attribute
from captune.models.vizer_mapper import Mapper, MapperConfig
from captune.storybook import captioner_model as builder
from captune.storybook.train import save
from captune.training.trainer import training_arguments
from captune.training.vizer.objectives import ViZerTrainer, latent_loss
from captune.training.vizer.train import ViZerConfig


def same_shape(folder: Path) -> Path:
    """The shipped captioner's shape with random weights."""
    tokenizer = builder.build_tokenizer()
    torch.manual_seed(0)
    save(builder.build_model(tokenizer), tokenizer, folder)
    return folder


def smolvlm_proportions(folder: Path) -> Path:
    """128 px, 256 patches, 16 image tokens; vision 6 layers of 160, language 8 layers of 256; random weights."""
    tokenizer = builder.build_tokenizer()
    images = Idefics3ImageProcessorPil(
        do_image_splitting=False, size={"longest_edge": 128}, max_image_size={"longest_edge": 128}
    )
    processor = Idefics3Processor(images, tokenizer, image_seq_len=16, chat_template=builder.CHAT_TEMPLATE)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 768}
    vision = {"num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 640}
    config = Idefics3Config(
        vision_config={"hidden_size": 160, "image_size": 128, "patch_size": 8, **vision},
        text_config={"model_type": "llama", "hidden_size": 256, "vocab_size": len(tokenizer), **text, **ids},
        scale_factor=4,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


class Side:
    """One trainer, stepped by hand."""

    trainer: Any

    def __init__(self, captioner: Captioner) -> None:
        self.captioner = captioner
        self.preprocessing = 0.0  # cpu seconds
        self.images = self.backwards = 0
        tower = attribute(captioner.core, captioner.family.vision)
        # its first linear layer, which sees it when checkpointing runs the layers a second time
        next(m for m in tower.modules() if isinstance(m, torch.nn.Linear)).register_forward_hook(self._forward)

    def _forward(self, module: Any, args: Any, output: torch.Tensor) -> None:
        self.images += output.shape[0]
        if output.requires_grad:
            output.register_hook(self._backward)

    def _backward(self, gradient: torch.Tensor) -> None:
        self.backwards += 1

    def ready(self) -> None:
        """What `train()` would do before its first step."""
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = 1

    def timed(self, function: Any) -> Any:
        """The function, its seconds counted as preprocessing."""

        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            result = function(*args, **kwargs)
            self.preprocessing += time.process_time() - started
            return result

        return call

    def step(self, examples: list[dict[str, Any]]) -> dict[str, float]:
        """The seconds that the step took."""
        self.preprocessing = 0.0
        wall, cpu = time.perf_counter(), time.process_time()
        loss = self.loss(examples)
        parameters = [p for p in self.captioner.model.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if not torch.isfinite(loss):
            raise RuntimeError(f"{type(self).__name__}: the loss is {loss.item()}")
        return {"wall": wall, "cpu": cpu, "cpu without preprocessing": cpu - self.preprocessing}

    def loss(self, examples: list[dict[str, Any]]) -> torch.Tensor:
        raise NotImplementedError


class GivenCaptions(ViZerTrainer):
    def caption_loss(self, images: list[Any], examples: list[dict[str, Any]]) -> torch.Tensor:
        return latent_loss(self.captioner, self.mapper, images, [example["caption"] for example in examples])[0]


class Latent(Side):
    """Ours; the memo is emptied at every step, as new images empty it in training."""

    def __init__(self, captioner: Captioner, scratch: Path) -> None:
        super().__init__(captioner)
        config = ViZerConfig(model=captioner.name, output=scratch, images="given", preset="paper", device="cpu")
        hidden = captioner.core.config.get_text_config().hidden_size
        mapper = Mapper(MapperConfig(width=256), hidden, hidden).requires_grad_(False)
        settings = config.trainer_settings()
        self.trainer = GivenCaptions(captioner, [0], training_arguments(config), mapper=mapper, **settings)
        self.ready()
        self.memo = captioner.share_vision()
        captioner.prepare = self.timed(captioner.prepare)

    def loss(self, examples: list[dict[str, Any]]) -> torch.Tensor:
        self.memo.clear()
        return self.trainer.training_step(self.trainer.model, self.trainer.data_collator(examples))


class Supervised(Side):
    """TRL's."""

    def __init__(self, captioner: Captioner, scratch: Path, *, checkpointing: bool = False) -> None:
        super().__init__(captioner)
        args = SFTConfig(
            output_dir=str(scratch), bf16=False, gradient_checkpointing=checkpointing, use_cpu=True, report_to=[],
            weight_decay=0.01, learning_rate=5e-4, max_length=None,
        )  # fmt: skip
        one = Dataset.from_list([{"image": storybook.load("val", n=1)[0]["image"], "prompt": "", "completion": ""}])
        self.prompt = captioner.prompt_text()
        self.end = captioner.tokenizer.eos_token
        self.trainer = SFTTrainer(captioner.model, args, train_dataset=one, processing_class=captioner.processor)
        self.ready()
        if checkpointing:
            captioner.core.gradient_checkpointing_enable({"use_reentrant": False})  # as train() does
        self.collate = self.timed(self.trainer.data_collator)

    def loss(self, examples: list[dict[str, Any]]) -> torch.Tensor:
        rows = [{"image": e["image"], "prompt": self.prompt, "completion": e["caption"] + self.end} for e in examples]
        return self.trainer.training_step(self.trainer.model, self.collate(rows))


def vision_share(captioner: Captioner, examples: list[dict[str, Any]]) -> float:
    """The vision tower's share of the FLOPs of a forward pass, without the language model's head."""
    batch = captioner.prepare([e["image"] for e in examples], [e["caption"] for e in examples])
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "caption_mask")}
    counts = []
    for function in (
        lambda: captioner.core.base_model(**inputs, use_cache=False),
        lambda: captioner.image_features(batch),
    ):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            function()
        counts.append(counter.get_total_flops())
    return counts[1] / counts[0]


def measure(folder: Path, name: str, batches: list[list[dict[str, Any]]], scratch: Path) -> dict[str, Any]:
    """Both sides on the same batches, the first two of which warm up; counts and times."""

    def captioner() -> Captioner:
        loaded = Captioner.load(folder, device="cpu")
        loaded.add_lora()
        loaded.model.train()
        return loaded

    ours, theirs = Latent(captioner(), scratch), Supervised(captioner(), scratch)
    sides = {"captune": ours, "trl": theirs}
    times: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    counts = {}
    for turn, batch in enumerate(batches):
        for side in list(sides) if turn % 2 else reversed(list(sides)):
            now = sides[side]
            now.images = now.backwards = 0
            seconds = now.step(batch)
            counts[side] = {"forwards_per_image": now.images / len(batch), "backwards": now.backwards}
            if turn >= 2:
                times[side].append(seconds)
    checkpointed = Supervised(captioner(), scratch, checkpointing=True)
    checkpointed.step(batches[0])
    images = len(batches[0])
    counts["trl, gradient checkpointing"] = {
        "forwards_per_image": checkpointed.images / images,
        "backwards": checkpointed.backwards,
    }
    result: dict[str, Any] = {
        "model": name,
        "parameters": ours.captioner.core.num_parameters(),
        "vision_share": round(vision_share(captioner(), batches[0]), 3),
        "batch_size": images,
        "vision": counts,
    }
    for what in ("wall", "cpu", "cpu without preprocessing"):
        medians = {side: statistics.median(step[what] for step in steps) for side, steps in times.items()}
        ratios = [a[what] / b[what] for a, b in zip(times["captune"], times["trl"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        result[what] = {
            "seconds": {side: round(value, 4) for side, value in medians.items()},
            "ratio_of_medians": round(medians["captune"] / medians["trl"], 3),
            "ratio_per_pair": {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]},
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="measure this captioner alone")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)

    rows = storybook.load("val", n=args.batch_size * (args.repeats + 2))
    examples = [{"image": row["image"], "caption": row["references"][0]} for row in rows]
    batches = [examples[at : at + args.batch_size] for at in range(0, len(examples), args.batch_size)]
    with tempfile.TemporaryDirectory() as text:
        scratch = Path(text)
        shipped = storybook.model_path("storybook")
        if args.model:
            models = [(args.model, str(args.model))]
        else:
            there = (shipped / "config.json").is_file()
            first = (
                (shipped, "storybook") if there else (same_shape(scratch / "a"), "storybook's shape, random weights")
            )
            models = [first, (smolvlm_proportions(scratch / "b"), "SmolVLM's proportions, random weights")]
        result = {
            "bar": "step ratio <= 1.15, vision once forward per image and never backward",
            "models": [measure(folder, name, batches, scratch / "out") for folder, name in models],
            "repeats": args.repeats,
            **_lib.machine(),
        }
    _lib.write(result, None, args.output)


if __name__ == "__main__":
    main()
