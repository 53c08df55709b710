"""`trl.GRPOTrainer` for a captioner: nothing done twice, nothing lost when a run is killed, a monitor, a latent term.

What TRL repeats for each of the G captions of an image is done once here: decoding and preprocessing the image
(`captune.models.caching.preprocessing`), its pass through the frozen vision tower (`.vision`), the prefill of its
prompt (`.prefill`) and the prompt's part of the passes that read log-probabilities and learn (`.prompts`). Sampling,
advantages, loss and optimiser are TRL's.

TRL forgets what is sampled and not yet learned from when a checkpoint falls between two generations, and orders the
images of a later pass otherwise after a resume. Here the checkpoint keeps the buffer, and each pass over the images has
a permutation of its own seed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BatchFeature
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.grpo_trainer import RewardFunc
from trl.trainer.utils import RepeatSampler

from captune.models import inputs as batches
from captune.models.caching.prefill import PrefillCache
from captune.models.caching.preprocessing import PreprocessingCache, RowCache
from captune.models.caching.prompts import PromptCache
from captune.models.captioner import Captioner
from captune.training.monitor.trainer import Monitor, MonitoredTrainer
from captune.training.resume import REWARDS, WEIGHTS
from captune.training.sharing import SharedSampling

if TYPE_CHECKING:
    from captune.models.vizer_mapper import Mapper

BUFFER, PLACE = "rollouts.safetensors", "rollouts.json"


class CaptionGRPOTrainer(MonitoredTrainer, GRPOTrainer):
    """GRPO on a captioner's LoRA.

    Args:
        captioner: with a trainable adapter; its vision side is frozen.
        dataset: columns `image` and whatever the rewards need (`references`, `scene`).
        rewards: (function with TRL's reward signature, weight); a scorer is one.
        args: TRL's; `reward_weights` is set here.
        monitor: measured in place of an evaluation, when `args.eval_strategy` says so.
        latent: (mapper, weight) adds weight * L_zero on the sampled captions: ViZer's loss beside the reward.
        keep_vision: a folder that keeps the images' visual features, for later passes and runs.
        cache_features: keep them in memory between the steps, too.
    """

    args: GRPOConfig
    _shuffled: tuple[int, Tensor] | None = None  # rows that the processes sampled together, random state after it

    def __init__(
        self,
        captioner: Captioner,
        dataset: Any,
        rewards: Sequence[tuple[Callable[..., Sequence[float | None]], float]],
        args: GRPOConfig,
        *,
        monitor: Monitor | None = None,
        latent: tuple[Mapper, float] | None = None,
        keep_vision: Path | None = None,
        cache_features: bool = False,
    ) -> None:
        args.reward_weights = [weight for _, weight in rewards]
        prompts = [[{"role": "user", "content": captioner.prompt}]] * len(dataset)  # TRL puts the image before the text
        dataset = dataset.add_column("prompt", prompts)
        super().__init__(
            captioner.model,
            processing_class=captioner.processor,
            reward_funcs=[cast(RewardFunc, reward) for reward, _ in rewards],
            args=args,
            train_dataset=dataset,
            eval_dataset=dataset if monitor is not None else None,  # `evaluate` asks the monitor
        )
        self.captioner, self.monitor, self.latent, self.keep_vision = captioner, monitor, latent, keep_vision
        self.cache_features = cache_features
        self._rewards_seen: list[float] = []

    # -- nothing twice -------------------------------------------------------------------------------------------------

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._get_dataloader(RowCache(dataset), *args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; meanwhile each distinct image is encoded once a step, each prompt prefilled once."""
        images = max(256, self.args.per_device_train_batch_size * cast(int, self.args.steps_per_generation))
        vision = self.captioner.share_vision(max_images=images, keep=self.keep_vision, alone=self.cache_features)
        with vision as self._memo, PrefillCache(self.captioner.core):
            return super().train(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._memo.begin_batch()
        several = self.accelerator.num_processes > 1
        sampling = SharedSampling(len(inputs), self.accelerator.device) if several else nullcontext()
        with PreprocessingCache(self.processing_class), sampling:
            rollouts = super()._generate_and_score_completions(inputs)
        if isinstance(sampling, SharedSampling):
            self._shuffled = (len(sampling.noise.there), torch.get_rng_state())
        if math.isfinite(reward := self._metrics["train"]["reward"][-1]):  # NaN: no scorer could judge the batch
            self._rewards_seen.append(reward)
        return rollouts

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        inputs = super()._prepare_inputs(generation_batch)
        if self._shuffled is not None and self.accelerator.is_main_process:  # go on as after shuffling all rows
            rows, state = self._shuffled
            torch.set_rng_state(state)
            torch.randperm(rows)
        self._shuffled = None
        return inputs

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards = super()._calculate_rewards(*args, **kwargs)
        for name, values in zip(self.reward_func_names, rewards.unbind(-1), strict=True):
            if values.isinf().any():  # NaN is what a scorer cannot judge
                self.stop(f"the reward {name} is infinite for a sampled caption")
        return rewards

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **images: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Compute what TRL's does, on captions that continue from the cache of their prompt, evaluated once.

        Gradient checkpointing allows no cache, a router's loss wants every token, and what wraps the model for several
        processes wants to be called once: these go TRL's way.
        """
        last = input_ids.shape[1] - logits_to_keep  # where the captions begin
        several = self.accelerator.num_processes > 1
        prompts = None
        if not (compute_aux_loss or self.args.gradient_checkpointing or several):
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **images}
            batch = {name: value[:, :last] for name in batches.TOKEN_KEYS if (value := inputs.get(name)) is not None}
            batch |= {n: v for n, v in images.items() if n.startswith(batches.IMAGE_ARGUMENTS) and v is not None}
            with self.accelerator.autocast():
                prompts = PromptCache.of_rows(self.captioner.core, BatchFeature(batch))
        if prompts is None:
            return super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size=batch_size,
                compute_entropy=compute_entropy,
                compute_aux_loss=compute_aux_loss,
                **images,
            )
        captions = input_ids[:, last - 1 :]
        labels = captions.masked_fill(attention_mask[:, last - 1 :] == 0, -100)
        labels[:, :-logits_to_keep] = -100
        outputs = []
        for start in range(0, len(captions), size := batch_size or len(captions)):
            rows = slice(start, start + size)
            with self.accelerator.autocast():
                outputs.append(
                    prompts.forward(
                        model, rows, captions[rows], attention_mask[rows], labels=labels[rows], fused_lm_head=True
                    )
                )
        logprobs = torch.cat([output.log_probs[:, -logits_to_keep:] for output in outputs])
        entropies = torch.cat([output.entropy[:, -logits_to_keep:] for output in outputs]) if compute_entropy else None
        return logprobs, entropies, None

    # -- resume --------------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        stock = cast(RepeatSampler, super()._get_train_sampler(dataset))
        self._passes = PassSampler(
            stock.data_source,
            mini_repeat_count=stock.mini_repeat_count,
            batch_size=stock.batch_size,
            repeat_count=stock.repeat_count,
            shuffle=stock.shuffle,
            seed=stock.seed,
        )
        return self._passes

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.accelerator.num_processes > 1:  # accelerate's sampler of several processes does not tell it
            self._passes.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    @property
    def _unlearned(self) -> bool:
        """Whether sampled captions are waiting to be learned from."""
        return self._step % (cast(int, self.args.steps_per_generation) * self.num_iterations) != 0

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: the run's is captune's."""

    def made_of(self) -> dict[str, Any]:
        """Return what a run that resumes must find as it was: the base's weights and the rewards, too."""
        rewards = [getattr(reward, "identity", None) for reward in self.reward_funcs]
        return super().made_of() | {WEIGHTS: self.captioner.base_digest(), REWARDS: rewards}

    def accumulated(self) -> dict[str, Any]:
        """Return what TRL noted since the last log entry, and the rewards since the last evaluation, too."""
        return super().accumulated() | {"noted": dict(self._metrics["train"]), "rewards": self._rewards_seen}

    def put_back(self, values: dict[str, Any]) -> None:
        """Put back what `accumulated` returned."""
        super().put_back(values)
        self._metrics["train"].update(values["noted"])
        self._rewards_seen[:] = values["rewards"]

    def save_more(self, folder: Path) -> None:
        """Write what is sampled and not yet learned from."""
        rank = self.args.process_index
        if self._unlearned:
            tensors, rest = {}, []
            for number, part in enumerate(cast(list[dict[str, Any]], self._buffered_inputs)):
                found = {name: value for name, value in part.items() if isinstance(value, torch.Tensor)}
                tensors.update({f"{number}.{name}": value.clone() for name, value in found.items()})
                rest.append({name: value for name, value in part.items() if name not in found})
            save_file(tensors, folder / f"{rank}-{BUFFER}")
            (folder / f"{rank}-{PLACE}").write_text(json.dumps(rest))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self._step = self.state.global_step * self.args.gradient_accumulation_steps
        folder, rank = Path(checkpoint), self.args.process_index
        if self._unlearned:
            rest = json.loads((folder / f"{rank}-{PLACE}").read_text())
            for name, value in load_file(folder / f"{rank}-{BUFFER}").items():
                part, _, key = name.partition(".")
                if part.isdecimal():  # an earlier version wrote the images' features too
                    rest[int(part)][key] = value.to(self.accelerator.device)  # cpu:0 is no device to safetensors
            self._buffered_inputs = rest

    # -- the latent term -----------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss = super()._compute_loss(model, inputs)
        if self.latent is None:
            return loss
        mapper, weight = self.latent
        latent = (1 - mapper.score(self.captioner, as_batch(inputs))).mean()
        self._metrics["train"]["latent_loss"].append(latent.item())
        return cast(Tensor, loss) + weight * latent / cast(int, self.current_gradient_accumulation_steps)


class PassSampler(RepeatSampler):
    """TRL's sampler, with a permutation for each pass that does not depend on where training began."""

    def set_epoch(self, epoch: int) -> None:
        """Begin a pass over the images."""
        if self.shuffle:
            self.generator.manual_seed(cast(int, self.seed) + epoch)


def as_batch(inputs: dict[str, Any]) -> BatchFeature:
    """Return TRL's prompts and completions as `Captioner.prepare(images, captions)` would give them."""
    mask = inputs["completion_mask"]
    batch = {
        "input_ids": torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
        "attention_mask": torch.cat([inputs["prompt_mask"], mask], dim=1),
        "caption_mask": torch.cat([torch.zeros_like(inputs["prompt_mask"]), mask], dim=1),
    }
    names = [name for name in inputs if name in batches.TOKEN_KEYS or name.startswith(batches.IMAGE_ARGUMENTS)]
    return BatchFeature(batch | {name: inputs[name] for name in names if inputs[name] is not None})
