"""A bar in a terminal or a notebook; elsewhere a line now and then in the log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm

NOTEBOOK = any(kind.__name__ == "tqdm_notebook" for kind in tqdm.__mro__)
EVERY = 30.0  # seconds between lines


class Bar(tqdm):
    """tqdm's bar. In a log it writes a line every half minute, and none for what is over before.

    Args:
        args: those of tqdm.
        show: False: says nothing.
        kwargs: those of tqdm.
    """

    def __init__(self, *args: Any, show: bool = True, **kwargs: Any) -> None:
        self.lines = not (NOTEBOOK or sys.stderr.isatty())
        if self.lines:
            kwargs |= {"mininterval": EVERY, "maxinterval": EVERY, "delay": EVERY, "leave": False}
        super().__init__(*args, disable=not show, file=sys.stderr, **kwargs)

    def display(self, msg: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Show the bar, or write it as a line."""
        if not self.lines:
            return super().display(msg, *args, **kwargs)
        if self._time() - self.start_t >= self.delay:
            print(msg or str(self), file=self.fp, flush=True)
        return None
