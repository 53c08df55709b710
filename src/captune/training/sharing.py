"""One batch on several processes: each takes its share of the images, and all learn what one process would learn.

A batch of several processes is the batch that one would take, cut into contiguous shares: no image comes twice, none is
left out, and where there are fewer images than processes the last ones have none. Captions are sampled with the random
numbers that one process would draw for all rows: every process draws them all and uses its own rows'. Dropout, which
draws for each process by itself, is the one thing that differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.overrides import TorchFunctionMode

from captune.utils import processes


def share(batch: Sequence[Any], rank: int, number: int) -> Sequence[Any]:
    """Return the part of a batch that one of several processes takes; the first ones have one more where it is odd."""
    least, more = divmod(len(batch), number)
    start = rank * least + min(rank, more)
    return batch[start : start + least + (rank < more)]


def total(count: float, device: Any) -> float:
    """Return the sum of a number over the processes."""
    both = torch.tensor(float(count), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(both)
    return both.item()


def average_gradients(parameters: Any) -> None:
    """Replace each gradient by its mean over the processes; one that is missing counts as 0."""
    weights = [weight for weight in parameters if weight.requires_grad]
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    for kind in {weight.dtype for weight in weights}:
        gradients = [weight.grad for weight in weights if weight.dtype == kind]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= processes.number()
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


class SharedNoise:
    """The random numbers of one sampling of several processes: those that the first one would draw alone.

    Args:
        rows: captions that this process samples; 0 where it has no image.
        device: what it samples on.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        cuda = device.type == "cuda"
        state = torch.cuda.get_rng_state(device) if cuda else torch.get_rng_state()
        facts = processes.gather((rows, state if processes.rank() == 0 else None))
        counts = [count for count, _ in facts]
        self.first, self.device, self.steps = sum(counts[: processes.rank()]), device, 0
        self.generator = torch.Generator(device)
        self.generator.set_state(facts[0][1])
        self.ended = torch.zeros(sum(counts), dtype=torch.bool, device=device)
        self.there = torch.ones_like(self.ended)  # the rows that are in one process's batch

    def draw(self, rows: int, words: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw what `torch.multinomial` draws for a batch: (rows, words) of an exponential distribution."""
        self.steps += 1
        noise = torch.empty(rows, words, dtype=dtype, device=self.device)
        return noise.exponential_(1, generator=self.generator)

    def pick(self, probabilities: Tensor, rows: Tensor) -> Tensor:
        """Sample a word for each of this process's rows, numbered from 0."""
        noise = self.draw(int(self.there.sum()), probabilities.shape[-1], probabilities.dtype)
        places = (self.there.cumsum(0) - 1)[self.first + rows]
        return (probabilities / noise[places]).argmax(-1)

    def exchange(self, rows: Tensor, ended: Tensor) -> None:
        """Learn which rows of all processes have ended."""
        flags = self.ended.to(torch.uint8)
        flags[self.first + rows] |= ended.to(torch.uint8)
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        self.ended = flags.bool()

    def running(self) -> float:
        """Return the share of the rows in one process's batch that have not ended."""
        return float((~self.ended[self.there]).float().mean())

    def leave(self) -> None:
        """Take the rows that have ended out of one process's batch."""
        self.there = self.there & ~self.ended

    def follow(self, words: int, least: float) -> None:
        """Draw and exchange until the rows of all processes have ended, when those of this one have."""
        none = torch.zeros(0, dtype=torch.long, device=self.device)
        while not bool(self.ended.all()):
            if self.running() < least:
                self.leave()
            if words:
                self.draw(int(self.there.sum()), words)
            self.exchange(none, none.bool())

    @classmethod
    def watch(cls, device: torch.device) -> None:
        """Take part in a sampling of the others, without a row."""
        noise = cls(0, device)
        noise.follow(0, 0.0)

    def close(self) -> None:
        """The first process continues with the random numbers that follow."""
        if processes.rank() == 0:
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(self.generator.get_state(), self.device)
            else:
                torch.set_rng_state(self.generator.get_state())


class SharedSampling(TorchFunctionMode):
    """Inside, `torch.multinomial` in transformers' sampling loop draws as one process would for all rows.

    Args:
        rows: captions that this process samples.
        device: what it samples on.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        super().__init__()
        self.noise, self.rows = SharedNoise(rows, device), torch.arange(rows, device=device)
        self.words = (0, torch.float32)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer `torch.multinomial`; let all else pass."""
        if function is not torch.multinomial:
            return function(*args, **(kwargs or {}))
        self.words = args[0].shape[-1], args[0].dtype
        return self.noise.pick(args[0], self.rows)[:, None]

    def __exit__(self, *error: Any) -> None:
        """Draw what the process whose captions are the longest has drawn."""
        super().__exit__(*error)
        if error and error[0] is not None:
            return
        steps = max(processes.gather(self.noise.steps))
        if self.words[0]:
            while self.noise.steps < steps:
                self.noise.draw(len(self.noise.there), *self.words)
        self.noise.close()
