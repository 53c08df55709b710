"""Work in a child that ends at a file event, as a killed process does."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

EVENTS = ("replace", "fsync", "unlink", "truncate")  # functions of os


def in_child(work: Callable[[], Any], event: int | None = None, *, events: Sequence[str] = EVENTS) -> tuple[bool, int]:
    """Run in a fork that ends, without any cleanup, at its n-th file event; whether it ended so, and the events."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        count, counting = 0, Lock()

        def watch(name: str) -> None:
            real = getattr(os, name)

            def watched(*args: Any, **options: Any) -> Any:
                nonlocal count
                with counting:  # a sync may run in a thread
                    count += 1
                    own = count
                try:
                    return None if name == "fsync" else real(*args, **options)
                finally:
                    if own == event:
                        os._exit(9)

            setattr(os, name, watched)

        for name in events:
            watch(name)
        try:
            work()
            os.write(writing, str(count).encode())
            os._exit(0)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9, int(said or 0)
