"""Work shared among the worker processes of Ray, on this machine or on a cluster.

Ray Data starts the workers, hands out the items, starts a worker again where one was lost, and gives its item to it
again. Items and answers are small: what is large (images, captions, vectors) the workers read and write by themselves,
so that little of the machine's memory goes to Ray's object store.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from captune.errors import CaptionerError, SettingError, first_line, redact

logger = logging.getLogger(__name__)
OBJECT_STORE = 256 * 2**20  # bytes, of a local cluster
CONNECT_SECONDS = 10.0  # a cluster's head has to answer
STARTS = 3  # tries: on a busy machine Ray's own 30 seconds may not be enough
RETRIES = 20  # workers that may be lost over one item
_BLOCKS = 5_000  # items are handed out one by one up to here, several together beyond
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


def check_ray(address: str | None = None) -> None:
    """Check, without importing it, that Ray is installed, and that something answers at a cluster's address.

    Ray itself would try for minutes, in silence, and then end the process.

    Raises:
        SettingError: it is not, the address is invalid, or nothing answers there.
    """
    if importlib.util.find_spec("ray") is None:
        raise SettingError("--engine ray needs the package ray: pip install 'captune[ray]'")
    if address is None or address in ("auto", "local"):
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdecimal() and int(port) < 2**16):
        raise SettingError(f"a cluster's address is auto or host:port, such as 10.0.0.1:6379, not {redact(address)!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise SettingError(
            f"Ray cannot be reached at {redact(address)}: {error.strerror or error}; `ray start --head` there prints "
            "the address"
        ) from error


def default_workers() -> int:
    """Return how many workers a local cluster gets: one for each GPU, else 2, which have the cores between them."""
    import torch

    return torch.cuda.device_count() or min(2, os.cpu_count() or 1)


class _Chatter(io.TextIOBase):
    """What Ray prints to standard output, where answers belong; it goes to the log instead."""

    def write(self, text: str) -> int:
        if text.strip():
            logger.info("ray: %s", text.strip())
        return len(text)


@contextlib.contextmanager
def cluster(address: str | None, workers: int) -> Iterator[None]:
    """Start Ray here, or reach a cluster, and leave it again; one that is there already is used and stays.

    Args:
        address: of a cluster, ``host:6379`` or ``auto``; None: this machine.
        workers: that will be asked for.

    Raises:
        SettingError: Ray is not installed, or no cluster answers.
    """
    check_ray(address)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    with contextlib.redirect_stdout(_Chatter()):
        logging.getLogger("ray").setLevel(logging.ERROR)
        import ray
        import ray.data

        _hush()
        if ray.is_initialized():
            yield
            return
        settings: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            settings |= {
                "address": "local",  # and not what RAY_ADDRESS says
                "num_cpus": max(workers + 1, os.cpu_count() or 1),
                "object_store_memory": OBJECT_STORE,
                "include_dashboard": False,
            }
        handler = signal.getsignal(signal.SIGTERM)  # which Ray replaces, and does not put back
        for tries_left in reversed(range(STARTS if address is None else 1)):
            try:
                with _silent():
                    ray.init(**settings)
                break
            except Exception as error:  # Ray has several classes for it
                where = "started on this machine" if address is None else f"reached at {redact(address)}"
                cause = f" ({first_line(error.__cause__)[:200]})" if error.__cause__ else ""  # a token that is lacking
                sentence = f"Ray cannot be {where}: {first_line(error)}{cause}"
                if not tries_left:
                    raise SettingError(sentence) from error
                logger.warning("%s; trying again", sentence)
                ray.shutdown()
        try:
            yield
        finally:
            ray.shutdown()
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Inside, nothing that Ray's C++ side writes comes to standard error: how it logs, among others."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _hush() -> None:
    """Keep Ray Data's own lines from the terminal; its log files have them."""
    import ray.data

    for handler in logging.getLogger("ray.data").handlers:
        if type(handler).__name__ == "PlainRayHandler":  # and no other's that hangs there, such as pytest's
            handler.setLevel(logging.CRITICAL + 1)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False


def answers(
    begin: Callable[[Any], Callable[[Any], Any]],
    job: Any,
    items: Sequence[Any],
    *,
    workers: int,
    device: str | None = None,
    threads: int | None = None,
) -> Iterator[Any]:
    """Yield what workers make of items, as it comes, in any order; an item of a lost worker is done again.

    Args:
        begin: makes, in each worker, of `job` what is called with an item; a function of a module.
        job: whatever `begin` needs; small.
        items: small things that can be pickled.
        workers: how many.
        device: of the models; None: a GPU for each worker where the cluster has any.
        threads: of each worker; None: the environment's OMP_NUM_THREADS, else they have the cores between them.

    Raises:
        Exception: the first one that a worker raised.
        CaptionerError: Ray itself failed.
    """
    import ray
    import ray.data
    from ray.exceptions import RayError

    resources = ray.cluster_resources()
    gpu = bool(resources.get("GPU")) if device is None else device.startswith("cuda")
    if gpu and resources.get("GPU", 0) < workers:
        raise SettingError(f"the cluster has {resources.get('GPU', 0):.0f} GPUs for {workers} workers: see --workers")
    cores = max(1, int(min(resources.get("CPU", 1), os.cpu_count() or 1)) // workers)
    told = os.environ.get("OMP_NUM_THREADS", "")  # Ray sets it for its workers alone
    threads = threads or (int(told) if told.isdecimal() and int(told) else cores)
    rows = [{"number": number, "item": pickle.dumps(item)} for number, item in enumerate(items)]
    about = pickle.dumps((begin, job, threads, os.getcwd()))
    tries: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Tries).remote()
    try:
        found = ray.data.from_items(rows, override_num_blocks=min(len(rows), _BLOCKS)).map_batches(
            _Worker,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_args=(about, tries),
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=1 if gpu else 0,
        )
        for row in found.iter_rows():
            good, content = pickle.loads(row["answer"])
            if not good:
                raise content
            yield content
    except RayError as error:
        raise CaptionerError(
            f"Ray stopped ({first_line(error)[:300]}); what is finished is kept, and the same command resumes"
        ) from error
    finally:
        ray.kill(tries)


class _Tries:
    """Counts how often each item was begun: Ray would give an item that kills its worker out for ever."""

    def __init__(self) -> None:
        self.counts = Counter[int]()

    def begin(self, number: int) -> int:
        self.counts[number] += 1
        return self.counts[number]


class _Worker:
    """A worker process: begins when the first item comes, so that what goes wrong is an answer."""

    def __init__(self, about: bytes, tries: Any) -> None:
        self.about, self.tries = about, tries
        self.work: Any = None

    def __call__(self, batch: Any) -> Iterator[Any]:
        import pyarrow as pa

        for number, item in zip(batch["number"].to_pylist(), batch["item"].to_pylist(), strict=True):
            try:
                self._count(number)
                if self.work is None:
                    self.work = self._begin()
                content = pickle.dumps((True, self.work(pickle.loads(item))))
            except Exception as error:
                content = pickled(error)
            yield pa.table({"answer": pa.array([content], pa.large_binary())})

    def _begin(self) -> Any:
        import torch

        begin, job, threads, folder = pickle.loads(self.about)
        torch.set_num_threads(threads)
        with contextlib.suppress(OSError):  # a cluster's machine may have other folders
            os.chdir(folder)
        return begin(job)

    def _begun(self, number: int) -> int:
        """How often an item was begun, as far as the counter knows, which may have been lost itself."""
        import ray
        from ray.exceptions import RayError

        try:
            count: int = ray.get(self.tries.begin.remote(number))
        except RayError:
            return 0
        return count

    def _count(self, number: int) -> None:
        count = self._begun(number)
        if count > RETRIES + 1:
            raise CaptionerError(
                f"{count - 1} workers were lost over the same part: it may need more memory than there is; take fewer "
                "workers or a smaller batch size. What is finished is kept, and the same command resumes"
            )


def pickled(error: Exception) -> bytes:
    """Return (False, error) pickled; an error that cannot be copied is told by a plain one."""
    try:
        content = pickle.dumps((False, error))
        pickle.loads(content)
    except Exception:  # whatever a class of errors does when it is copied
        content = pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
    return content


class Progress:
    """Says how far a job is: a bar in a terminal, a line now and then elsewhere.

    Args:
        what: the job, for the bar.
        total: images in all; None where it is not known.
        done: images of before.
        show: False: says nothing.
        every: seconds between lines.
    """

    def __init__(self, what: str, total: int | None, done: int, *, show: bool, every: float = 30.0) -> None:
        from tqdm.auto import tqdm

        self.what, self.total, self.count, self.show, self.every = what, total, done, show, every
        terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, desc=what, unit="image", disable=not (show and terminal))
        self.lines = show and not terminal
        self.said = time.monotonic()
        self.started: float | None = None
        self.before = done

    def add(self, images: int, seconds: float, parts: str = "") -> None:
        """Count images that are finished, and took a worker so many seconds; what was before the first does not count.

        That is when workers start, which is no part of their speed.
        """
        self.count += images
        self.bar.update(images)
        now = time.monotonic()
        self.started = now - seconds if self.started is None else self.started
        if self.lines and now - self.said >= self.every:
            self.said = now
            print(redact(self.line(self.seconds(), parts)), file=sys.stderr, flush=True)

    def seconds(self) -> float:
        """Return the time since the first worker began with its first images."""
        return 0.0 if self.started is None else time.monotonic() - self.started

    def line(self, seconds: float, parts: str = "") -> str:
        """Return a line for a log."""
        speed = (self.count - self.before) / max(seconds, 1e-9)
        of = f" of {self.total:,} images ({self.count / self.total:.0%})" if self.total else " images"
        left = f", {_duration((self.total - self.count) / speed)} left" if self.total and speed else ""
        return f"{self.what}: {self.count:,}{of}{parts}, {speed:.1f} per second{left}"

    def close(self) -> None:
        """End the bar."""
        self.bar.close()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
