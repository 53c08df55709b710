"""Group-relative policy optimisation of a captioner with any scorer as the reward, on `trl.GRPOTrainer`.

    A_i = (r_i - mean(r_1..r_G)) / std(r_1..r_G)                     G captions sampled for one image
    L   = - mean_i mean_t min(rho_it A_i, clip(rho_it) A_i) + beta KL(pi || pi_base)

TRL does the sampling, the advantages, the loss and the checkpoints. What is ours: the prompt that the captioner's
family wants, a frozen vision tower that is evaluated once per distinct image and step (`Captioner.share_vision`: the G
samples, the log-probabilities and the training pass share it, and no backward enters it), and the run's metrics.

KL to the base is on by default (beta 0.2): without it a learned reward is over-optimised within tens of steps; the
figures are in `studies/vizer`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trl import GRPOConfig, GRPOTrainer

from captune.captioner import Captioner
from captune.methods.training import MetricsCallback, TrainingConfig, common_arguments, last_checkpoint
from captune.runs import RunDir


class CaptionGRPOTrainer(GRPOTrainer):
    """`trl.GRPOTrainer` on a captioner; the memo of image features lives from one generation to the next."""

    def __init__(self, captioner: Captioner, **kwargs: Any) -> None:
        super().__init__(model=captioner.model, processing_class=captioner.processor, **kwargs)
        self.captioner = captioner

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with self.captioner.share_vision() as memo:  # nests in the one that `train_with_reward` holds
            memo.clear()
            return super()._generate_and_score_completions(inputs)


def train_with_reward(
    captioner: Captioner,
    dataset: Any,
    reward: Callable[..., list[float]],
    config: TrainingConfig,
    run_dir: RunDir,
    *,
    beta: float,
    num_generations: int,
    temperature: float,
    max_new_tokens: int,
    callbacks: list[Any] | None = None,
) -> None:
    """Trains the captioner's LoRA; a step sees `config.batch_size` images with `num_generations` captions each.

    Args:
        dataset: columns `image` and whatever the reward needs (`references`, `scene`).
        reward: a scorer, or any function with TRL's reward signature.
    """
    prompt = [{"role": "user", "content": captioner.prompt}]
    arguments = common_arguments(config)
    arguments["per_device_train_batch_size"] = config.batch_size * num_generations
    args = GRPOConfig(
        **arguments,
        num_generations=num_generations,
        temperature=temperature,
        max_completion_length=max_new_tokens,
        beta=beta,
        loss_type="dapo",
        gradient_checkpointing=False,
        disable_dropout=False,
    )
    trainer = CaptionGRPOTrainer(
        captioner,
        reward_funcs=reward,
        args=args,
        train_dataset=with_prompt(dataset, prompt),
        callbacks=[MetricsCallback(run_dir), *(callbacks or [])],
    )
    with captioner.share_vision():
        trainer.train(resume_from_checkpoint=last_checkpoint(config.output))


class with_prompt:  # noqa: N801 - reads like the function it is
    """A view of a dataset that adds the same conversational prompt to every row, images still decoded on access."""

    def __init__(self, dataset: Any, prompt: list[dict[str, Any]]) -> None:
        self.dataset, self.prompt = dataset, prompt

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], "prompt": [dict(message) for message in self.prompt]}
