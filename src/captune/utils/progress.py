"""A bar in a terminal; elsewhere a line now and then in the log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

EVERY = 30.0  # seconds between lines


class Bar(tqdm):
    """tqdm's bar. Without a terminal it writes a line every half minute, and none for what is over before.

    Args:
        args: those of tqdm.
        show: False: says nothing.
        kwargs: those of tqdm.
    """

    def __init__(self, *args: Any, show: bool = True, **kwargs: Any) -> None:
        self.lines = not sys.stderr.isatty()
        if self.lines:
            kwargs |= {"mininterval": EVERY, "maxinterval": EVERY, "delay": EVERY, "leave": False}
        super().__init__(*args, disable=not show, file=sys.stderr, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show the bar, or write it as a line."""
        if not self.lines:
            super().display(msg, pos)
        elif self._time() - self.start_t >= self.delay:
            print(msg or str(self), file=self.fp, flush=True)
