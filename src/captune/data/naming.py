"""Sources as they are written, ``where?key=value&…``, and whether they are there; nothing is loaded for it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from captune.data.schemes import SOURCES, Scheme, scheme_of
from captune.errors import SourceError, UsageError
from captune.utils.spec import parse

KINDS = (
    "a source is a folder of images, a captions file (COCO, Karpathy, Flickr8k/30k, JSONL, JSON), parquet, webdataset "
    "shards, a dataset on the hub (OWNER/NAME), or storybook:<split>"
)
COLUMN_KEYS = ("config", "image", "caption", "id", "streaming")


@dataclass(frozen=True)
class Source:
    """A source as written: ``where?key=value&…``.

    Attributes:
        where: a path, a pattern, the name of a dataset, or ``scheme:name``.
        n: take so many images.
        seed: sample them at random; without it the first `n` are taken. A stream draws among 10,000 rows at a time.
        skip: leave out so many before: ``?skip=500`` and ``?n=500`` share no image.
        part: of the images ``held_out``, always the same 64 (a tenth of fewer than 640), or ``training``: the rest.
        shard: ``i/n``: every n-th image of what the other keys name, from the i-th (1 to n); for several machines.
        split: a split of a dataset or of Karpathy's files; several: ``train+restval``.
        images: the image folder of a captions file.
        config: a configuration of a dataset.
        image: the column of its images, if it is not found by itself.
        caption: the column of its references.
        id: the column of its ids.
        streaming: read shards and datasets as they come.
    """

    where: str
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    skip: Annotated[int, Field(ge=0)] | None = None
    part: Literal["held_out", "training"] | None = None
    shard: str | None = None
    split: str | None = None
    images: str | None = None
    config: str | None = None
    image: str | None = None
    caption: str | None = None
    id: str | None = None
    streaming: bool | None = None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read a source as written; an existing path is taken as it is.

        Raises:
            SourceError: for an unknown key, with the nearest, or a value of the wrong type.
        """
        text = str(text)
        where, mark, query = text.rpartition("?")
        if not (where or query).strip():
            raise SourceError("the source has no name: give a folder, a file, a dataset or storybook:SPLIT")
        if not mark or os.path.exists(text):
            return cls(text)
        query = query.replace("+", "%2B")  # a plus is itself here, as in train+restval
        return parse(
            f"{where}?{query}",
            cls,
            what=f"source {text!r}",
            positional=("where",),
            example="photos?n=500&seed=1",
            error=SourceError,
            query="last",
        )

    @property
    def columns(self) -> dict[str, Any]:
        """What is set of the keys that only datasets and tables take."""
        return {key: getattr(self, key) for key in COLUMN_KEYS if getattr(self, key) is not None}

    @property
    def scheme(self) -> Scheme | None:
        """The scheme of ``scheme:name``; None for any other source."""
        scheme = scheme_of(self.where)
        return scheme if scheme.name else None


def is_path(where: str) -> bool:
    """Return whether a name can only be a file's or a folder's, not a dataset's on the hub."""
    from captune.data.images import IMAGE_SUFFIXES
    from captune.data.readers import TEXT_SUFFIXES

    known = {".json", ".jsonl", ".ndjson", ".parquet", ".tar", ".zip", *TEXT_SUFFIXES, *IMAGE_SUFFIXES}
    return where.startswith((".", "/", "~")) or Path(where).suffix.lower() in known


def absolute(source: str) -> str:
    """Return the source with its path made absolute, where that is a local one: another process may work elsewhere."""
    where = Source.parse(source).where
    path = os.path.expanduser(where)
    return source.replace(where, os.path.abspath(path), 1) if os.path.exists(path) else source


def check_there(source: str) -> None:
    """Refuse a source that is not there, before anything is loaded for it; the network is not asked.

    What has an owner, as OWNER/NAME, may be on the hub, unless this machine is offline and has not got it. Addresses
    and schemes are left to what loads them.

    Raises:
        UsageError: there is no such file, folder or dataset.
        SourceError: it is not written as a source is.
    """
    from captune.data.shards import SHARD_SUFFIXES, is_pattern, shards_of

    parsed = Source.parse(source)
    where = parsed.where
    if "://" in where:
        return
    name, colon, _ = where.partition(":")
    if not os.path.exists(os.path.expanduser(where)) and not (colon and name in SOURCES):
        if is_pattern(where):
            try:
                found = shards_of(where)
            except SourceError as error:  # one of those that braces name
                raise UsageError(str(error)) from error
            if not found:
                kinds = " or ".join(SHARD_SUFFIXES)
                raise UsageError(f"no {kinds} file has a name like {where}; of photos name their folder")
            return
        local = where.count("/") != 1 or os.path.isdir(os.path.dirname(where)) or is_path(where)
        if (local or _offline()) and not _is_kept(where):
            raise UsageError(f"{where} does not exist; {KINDS}")
    if parsed.images is not None and not Path(parsed.images).expanduser().is_dir():
        raise UsageError(f"{where}: the image folder {parsed.images} of ?images= does not exist")


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _is_kept(name: str) -> bool:
    """Whether a dataset of the hub is in the caches of this machine."""
    from huggingface_hub import constants

    made = os.environ.get("HF_DATASETS_CACHE") or os.path.join(constants.HF_HOME, "datasets")
    kept = (os.path.join(made, name.replace("/", "___")),
            os.path.join(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}"))  # fmt: skip
    return any(map(os.path.isdir, kept))
