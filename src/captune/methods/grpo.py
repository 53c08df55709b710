"""Group-relative policy optimisation of a captioner with any scorer as the reward, on `trl.GRPOTrainer`.

    A_i = (r_i - mean(r_1..r_G)) / std(r_1..r_G)                     G captions sampled for one image
    L   = - mean_i mean_t min(rho_it A_i, clip(rho_it) A_i) + beta KL(pi || pi_base)

TRL does the sampling, the advantages, the loss and the checkpoints. What is ours: the prompt that the captioner's
family wants, a frozen vision tower that is evaluated once per distinct image and step (`Captioner.share_vision`: the G
samples, the log-probabilities and the training pass share it, and no backward enters it), and the run's metrics.

KL is measured from the captioner as it comes; `beta` is the caller's choice, since how soon a reward is over-optimised
depends on the reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from trl import GRPOConfig, GRPOTrainer
from trl.trainer.grpo_trainer import RewardFunc

from captune.captioner import Captioner
from captune.methods.training import TrainingConfig, common_arguments, follow, last_checkpoint
from captune.runs import RunDir


def train_with_reward(
    captioner: Captioner,
    dataset: Any,
    rewards: Sequence[tuple[Callable[..., list[float]], float]],
    config: TrainingConfig,
    run_dir: RunDir,
    *,
    beta: float,
    num_generations: int,
    temperature: float,
    max_new_tokens: int,
    first_step: int = 0,
) -> None:
    """Trains the captioner's LoRA, with checkpoints in `config.output`.

    A step sees `config.batch_size` images with `num_generations` captions each.

    Args:
        dataset: columns `image` and whatever the reward needs (`references`, `scene`).
        rewards: (scorer, weight) pairs, summed; any function with TRL's reward signature is a scorer here.
        first_step: steps that the run has logged before; KL is measured from the captioner as it comes.
    """
    prompts = [[{"role": "user", "content": captioner.prompt}]] * len(dataset)  # TRL puts the image before the text
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
        reward_weights=[weight for _, weight in rewards],
    )
    with captioner.share_vision():
        trainer = GRPOTrainer(
            captioner.model,
            processing_class=captioner.processor,
            reward_funcs=[cast(RewardFunc, reward) for reward, _ in rewards],
            args=args,
            train_dataset=dataset.add_column("prompt", prompts),
        )
        follow(trainer, run_dir, first_step)
        trainer.train(resume_from_checkpoint=last_checkpoint(config.output))
        if "ref" in captioner.model.peft_config:  # TRL's copy of the adapter as it was, for the KL; not ours to save
            captioner.model.delete_adapter("ref")
