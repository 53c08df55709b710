"""Paths that data files name: files inside the data's own folder, unless the user says otherwise.

A caption file or a table may come from anyone; a path in it such as ``../../keys/me.png`` is not to be opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from captune.errors import SourceError

_OUTSIDE: ContextVar[bool] = ContextVar("outside", default=False)


@contextmanager
def outside_allowed(yes: bool = True) -> Iterator[None]:
    """Inside, the sources that are loaded may name images anywhere, as with ``--allow-outside``."""
    token = _OUTSIDE.set(yes)
    try:
        yield
    finally:
        _OUTSIDE.reset(token)


class ImageFolder:
    """Where the image paths of a data file lead.

    Args:
        where: the data file, for messages.
        folder: what relative paths are relative to.
        data: the folder of the data file; paths may lead there too.
    """

    def __init__(self, where: object, folder: Path, data: Path) -> None:
        self.where, self.folder, self.base = where, folder, os.path.join(folder, "")
        self.anywhere = _OUTSIDE.get()
        self.roots = [os.path.join(os.path.abspath(root), "") for root in (folder, data)]

    def path(self, name: str) -> str:
        """Return the path of an image, without looking for it.

        Raises:
            SourceError: for an address, or a path that leads out of the data's folder.
        """
        if ".." not in name and not os.path.isabs(name) and "://" not in name:
            return self.base + name
        if name.startswith(("http://", "https://")):
            raise SourceError(
                f"{self.where} holds addresses of images, not images; fetch them first, for instance with img2dataset "
                "(--output_format webdataset), and use the shards as the source"
            )
        path = self.base + name if not os.path.isabs(name) else name
        full = os.path.abspath(path)  # without "..", which a link could turn elsewhere
        if self.anywhere or any(full.startswith(root) for root in self.roots):
            return path if self.anywhere or ".." not in name else full
        raise SourceError(
            f"{self.where} names an image outside of its folder, {name}: pass --allow-outside if you trust the file, "
            "or name the folder that all its images are in with ?images=FOLDER"
        )
