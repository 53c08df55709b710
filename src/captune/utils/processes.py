"""Several processes of one run, as torchrun and `accelerate launch` start them: the first writes, the others wait.

Alone, every function here does what it says at once, without torch.distributed.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from captune.errors import CaptuneError, UsageError

PATIENCE = timedelta(days=7)  # the others wait while the first fits a mapper or captions; torchrun ends them if it dies
LAUNCHED = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK")  # what torchrun and `accelerate launch` set
TERMINATED = 128 + signal.SIGTERM  # the exit code


@contextmanager
def on_sigterm(call: Callable[..., Any]) -> Iterator[None]:
    """Inside, SIGTERM calls a function; outside the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, call)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def number() -> int:
    """Return how many processes work on this run."""
    if "WORLD_SIZE" not in os.environ and os.environ.get("LOCAL_RANK", "-1") != "-1":  # accelerate would connect
        raise UsageError("LOCAL_RANK is set in the environment, but WORLD_SIZE is not: unset it, or use torchrun")
    return _whole("WORLD_SIZE", 1, 1)


def rank() -> int:
    """Return which of them this is, from 0."""
    if (several := number()) == 1:
        return 0
    if (own := _whole("RANK", 0, 0)) >= several:
        raise UsageError(f"RANK is {own}, of WORLD_SIZE {several} processes: start them with torchrun")
    return own


def _whole(name: str, default: int, least: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or int(text) < least:
        raise UsageError(f"the environment's {name} is {text!r}, no number of processes: unset it, or use torchrun")
    return int(text)


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process works without the others, and waits for none of them."""
    kept = {name: os.environ.pop(name) for name in LAUNCHED if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def connect(*, cpu: bool = False) -> None:
    """Connect the processes, where there are several; `cpu`: over gloo."""
    if number() > 1:
        import torch.distributed
        from accelerate import PartialState

        if not torch.distributed.is_initialized():
            PartialState(cpu=cpu or not torch.cuda.is_available(), timeout=PATIENCE)


def gather(value: Any) -> list[Any]:
    """Return every process's value, by rank."""
    if number() == 1:
        return [value]
    import torch.distributed

    connect()
    values: list[Any] = [None] * number()
    torch.distributed.all_gather_object(values, value)
    return values


def on_first(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function in the first process, while the others wait; return its result in all of them.

    Where it fails, the others end without a word: the first one says why.
    """
    if number() == 1:
        return function(*args, **kwargs)
    gather(None)  # nobody is still reading what the function may change
    result, error = None, None
    if rank() == 0:
        try:
            result = function(*args, **kwargs)
        except (Exception, SystemExit) as problem:
            error = problem
    result, failed = gather((result, error is not None))[0]
    if error is not None:
        raise error
    if failed:
        raise SystemExit(CaptuneError.exit_code)
    return result
