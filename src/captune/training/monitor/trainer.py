"""A trainer whose evaluations are the watch's (`captune.training.monitor.watch`)."""

from __future__ import annotations

from typing import Protocol

from transformers import Trainer


class Watching(Protocol):
    """What `captune.training.monitor.watch.Watch` is to a trainer."""

    def measure(self, step: int, reward: float | None) -> dict[str, float]: ...


class Watched(Trainer):
    """For trainers that climb a reward: they set `watch`, and note in `_rewards_seen` what each step's samples earned.

    transformers wants an `eval_dataset`; `evaluate` looks at the watch's images instead.
    """

    watch: Watching | None
    _rewards_seen: list[float]

    def evaluate(self, *args: object, **kwargs: object) -> dict[str, float]:
        """The watch's figures on captions as the captioner now makes them."""
        assert self.watch is not None
        reward = sum(self._rewards_seen) / len(self._rewards_seen) if self._rewards_seen else None
        self._rewards_seen.clear()
        metrics = self.watch.measure(self.state.global_step, reward)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
