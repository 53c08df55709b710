"""Work shared among worker processes, those of this machine or of Ray; a pool of one works in this process.

What the workers make does not depend on them: the same parts of the same things, each made by one worker, which has as
many threads as this process, since the last bits of a product depend on their number. Items and answers are small; what
is large the workers read and write by themselves.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from captune.errors import CaptuneError, SettingError, UsageError
from captune.utils import ray_pool
from captune.utils.skipped import counting, skip

logger = logging.getLogger(__name__)
ENGINES = ("process", "ray")
_LOST = 3  # times that processes may be lost one after the other, and nothing was made between


class Pool:
    """Workers; used in a ``with``: they start when something is to be done, and end with it.

    Args:
        workers: how many; None: 1, and with Ray on this machine one for each GPU, else 2.
        engine: process or ray.
        address: of a Ray cluster, ``host:6379`` or ``auto``; None: this machine.
        device: of the models; None: a GPU for each of Ray's workers where the cluster has any.

    Attributes:
        shared: whether other processes work.

    Raises:
        SettingError: an unknown engine, an address without Ray, or Ray cannot be reached.
    """

    def __init__(
        self,
        workers: int | None = None,
        engine: str = "process",
        address: str | None = None,
        device: str | None = None,
    ) -> None:
        if engine not in ENGINES:
            raise SettingError(f"work is shared by {' or '.join(ENGINES)}, not by {engine!r}")
        if engine != "ray" and address is not None:
            raise SettingError("the address is that of a Ray cluster: add --engine ray")
        if workers is not None and workers < 1:
            raise SettingError(f"workers must be at least 1, not {workers}")
        self.ray = engine == "ray"
        if self.ray:
            ray_pool.check_ray(address)
        self.workers, self.address, self.device = workers, address, device
        self.shared = self.ray or (workers or 1) > 1
        self._open = contextlib.ExitStack()
        self._begun = False
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()
        self._open.close()
        self._begun = False

    def answers(self, make: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """Yield what is made of each item, as it comes, in any order; an item of a lost worker is made again.

        Args:
            make: is called with an item. Where work is shared it is pickled, so it is small, and loads what is costly
                when it is called.
            items: small things.

        Raises:
            Exception: the first one that a worker raised.
            UsageError: `make` cannot be pickled.
            CaptuneError: workers were lost again and again.
        """
        if not self.shared or (len(items) < 2 and not self.ray):
            yield from map(make, items)
            return
        if not items:
            return
        try:
            about = pickle.dumps(make)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise UsageError(f"this cannot be shared among processes ({error}): leave --workers out") from error
        made = self._of_ray(about, items) if self.ray else self._of_processes(about, items)
        for answer, skipped in made:
            for reason, found in skipped.items():
                for item, count in found.items():
                    skip(reason, item, count)
            yield answer

    def _of_ray(self, about: bytes, items: Sequence[Any]) -> Iterator[Any]:
        count = self.workers or (ray_pool.default_workers() if self.address is None else 1)
        if not self._begun:  # Ray starts once, when something is to be done
            self._open.enter_context(ray_pool.cluster(self.address, count))
            self._begun = True
        count = min(count, len(items))
        import torch

        threads = torch.get_num_threads()
        yield from ray_pool.answers(_Counting, about, items, workers=count, device=self.device, threads=threads)

    def _of_processes(self, about: bytes, items: Sequence[Any]) -> Iterator[Any]:
        left = dict(enumerate(items))
        lost = 0
        while left:
            executor = self._processes()
            todo, waiting = iter(list(left.items())), dict[Any, int]()
            try:
                while True:
                    while len(waiting) < 2 * (self.workers or 1) and (job := next(todo, None)) is not None:
                        waiting[executor.submit(_work, about, job[1])] = job[0]
                    if not waiting:
                        break
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        number = waiting.pop(future)
                        good, content = pickle.loads(future.result())
                        if not good:
                            raise content
                        del left[number]
                        lost = 0
                        yield content
            except BrokenProcessPool as error:
                self._end()
                lost += 1
                if lost > _LOST:
                    raise CaptuneError(
                        f"worker processes were lost {lost} times, and nothing was made between: they may need more "
                        "memory than there is; take fewer --workers. What is finished is kept, and the same command "
                        "resumes"
                    ) from error
                logger.warning("a worker process was lost; %d parts are left to make", len(left))
            finally:
                for future in waiting:
                    future.cancel()

    def _processes(self) -> ProcessPoolExecutor:
        """The processes, which begin once."""
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self.workers or 1, context, initializer=_start)
        return self._executor

    def _end(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None


class _Counting:
    """In a worker: makes something of an item, and counts what is left out meanwhile."""

    def __init__(self, about: bytes) -> None:
        self.make = pickle.loads(about)

    def __call__(self, item: Any) -> tuple[Any, dict[str, dict[str, int]]]:
        with counting() as skipped:
            return self.make(item), skipped


_MAKE: dict[bytes, _Counting] = {}  # one


def _start() -> None:
    """Begin a worker process; it ends when this process's parent does, however that ends."""

    def end() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _work(about: bytes, item: Any) -> bytes:
    """The answer in a worker process, or what went wrong."""
    try:
        if about not in _MAKE:
            _MAKE.clear()
            _MAKE[about] = _Counting(about)
        return pickle.dumps((True, _MAKE[about](item)))
    except Exception as error:
        return ray_pool.pickled(error)
