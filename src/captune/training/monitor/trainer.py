"""`Monitor`, what judges a run while it trains, and a trainer whose evaluations are the monitor's."""

from __future__ import annotations

from typing import Protocol

from captune.training.trainer import FiniteTrainer
from captune.utils import processes


class Monitor(Protocol):
    """What `captune.training.monitor.held_out.HeldOutMonitor` is to a trainer."""

    def measure(self, step: int, reward: float | None) -> dict[str, float]:
        """Return the figures of the captioner as it is, each named ``eval_...``.

        Args:
            step: of this training.
            reward: the mean reward of the samples since the last evaluation; None before the first.
        """
        ...


class MonitoredTrainer(FiniteTrainer):
    """For trainers that optimise a reward: they set `monitor`, and append each step's mean reward to `_rewards_seen`.

    transformers wants an `eval_dataset`; `evaluate` asks the monitor, which has images of its own, instead.
    """

    monitor: Monitor | None
    _rewards_seen: list[float]

    def evaluate(self, *args: object, **kwargs: object) -> dict[str, float]:
        """Return the monitor's figures on captions as the captioner now makes them."""
        assert self.monitor is not None
        seen = [reward for part in processes.gather(self._rewards_seen) for reward in part]
        reward = sum(seen) / len(seen) if seen else None
        self._rewards_seen.clear()
        metrics = processes.on_first(self.monitor.measure, self.state.global_step, reward)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
