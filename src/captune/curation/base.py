"""What the operations share: the captions of a set, what is decided about them, and where costly parts are kept."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from captune.errors import CurationError
from captune.utils.files import replacing
from captune.utils.memory import forget
from captune.utils.pool import Pool
from captune.utils.progress import Bar

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

VERDICTS = ("keep", "drop", "change", "move", "split")
KEEP, DROP, CHANGE, MOVE, SPLIT = range(len(VERDICTS))
MOST_NAMED = 1000  # items that a note lists


def setting(help: str, default: Any = MISSING, *, metavar: str | None = None) -> Any:
    """Declare a setting of an operation.

    Args:
        help: one line; where it says "default:", the command line adds none.
        default: the value when nothing is given; without one the setting is required.
        metavar: what stands for the value in ``--help``.
    """
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar})


class Operation(Protocol):
    """A step of a curation: a dataclass of settings.

    Its docstring's first line is its summary; `example` is a whole command line.
    """

    example: str

    def decide(self, captions: Captions, work: Work) -> Verdicts:
        """Return what becomes of each caption.

        Raises:
            CurationError: the set is not one that it can be applied to.
        """
        ...


class Captions:
    """The captions of a set in the order of its images; they lie on the disk, and are read where they are asked for.

    Other processes get them by the names of their files.

    Attributes:
        source: the source of the images, as written.
        table: a row for each caption: ``row`` of its image in the source, ``number``, ``entry`` (the row of the
            source's table that image and text stand in; -1 once either is another), ``text``, and the columns that
            steps before have made.
        image_ids: (images,) of the source's images, in order.
        fresh: the number that the next new caption gets.
        files: those of the table and of the ids, where they are on the disk.
    """

    files: tuple[Path, Path] | None = None

    def __init__(self, source: str, table: pa.Table, image_ids: pa.ChunkedArray, fresh: int | None = None) -> None:
        self.source, self.table, self.image_ids = source, table, image_ids
        self.fresh = table.num_rows if fresh is None else fresh

    @classmethod
    def open(cls, source: str, captions: Path, images: Path, fresh: int | None = None) -> Captions:
        """Return the captions of two Arrow files; see `captune.curation.reading.read_source`."""
        from captune.curation.reading import read_table

        made = cls(source, read_table(captions), read_table(images)["image_id"], fresh)
        made.files = captions.absolute(), images.absolute()
        return made

    @classmethod
    def of_images(cls, source: str, captions: Path, images: Path) -> Captions:
        """Return all images of a source without captions, kept in two Arrow files.

        Raises:
            CurationError: it streams.
            SourceError: it has no images.
        """
        import pyarrow as pa
        from datasets import Dataset

        from captune.curation.reading import SCHEMA, write_table
        from captune.data.columns import column
        from captune.data.sources import load_images

        dataset = load_images(source, references=False)
        if not isinstance(dataset, Dataset):
            raise CurationError(f"{source} streams, and its images are looked up by row: leave ?streaming= out")
        write_table(SCHEMA.empty_table(), captions)
        write_table(pa.table({"image_id": pa.array(column(dataset, "image_id"), pa.string())}), images)
        made = cls.open(source, captions, images)
        made.__dict__["images"] = dataset  # loaded already
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        if self.files is None:
            raise TypeError("captions that are on no disk")
        return Captions.open, (self.source, *self.files, self.fresh)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> np.ndarray:
        """Return (N,) of a column that holds numbers; NaN where one is missing."""
        return np.asarray(self.table[name].to_numpy())

    @property
    def columns(self) -> list[str]:
        """The columns that steps have made."""
        return [name for name in self.table.column_names if name not in ("row", "number", "entry", "text")]

    @cached_property
    def rows(self) -> np.ndarray:
        """(N,) int64: the row of each caption's image in the source, ascending."""
        return self.column("row")

    @cached_property
    def starts(self) -> np.ndarray:
        """(images with captions + 1,): where the captions of each image begin, and N."""
        new = np.flatnonzero(np.diff(self.rows)) + 1
        return np.concatenate([[0], new, [len(self)]]) if len(self) else np.zeros(1, dtype=np.int64)

    def texts(self, start: int = 0, stop: int | None = None) -> list[str]:
        """Return the texts of some captions."""
        stop = len(self) if stop is None else stop
        return list(self.table["text"].slice(start, stop - start).to_pylist())

    def name(self, index: int) -> str:
        """Return ``image_id#number``, which names a caption in messages and records."""
        return f"{self.image_ids[int(self.rows[index])].as_py()}#{self.table['number'][int(index)].as_py()}"

    def parts(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of parts of about `size` captions, none of which cuts the captions of an image."""
        start = 0
        while start < len(self):
            place = int(np.searchsorted(self.starts, start + size))
            stop = int(self.starts[min(place, len(self.starts) - 1)])
            yield start, stop
            start = stop

    @cached_property
    def images(self) -> Dataset:
        """The source's images, row by row as `rows` counts them, decoded when they are read.

        Raises:
            CurationError: the source streams, or has other images now.
            SourceError: it has no images.
        """
        from captune.curation.reading import images_of

        return images_of(self.source, self.image_ids)


class Verdicts:
    """What is decided about each of N captions; all are kept until something else is said.

    Attributes:
        verdict: (N,) uint8: KEEP, DROP, CHANGE, MOVE or SPLIT.
        reason: (N,) int32: an index into `reasons`; 0 is no reason.
        reasons: the reasons, each once.
        score: (N,) float64: what decided; NaN where no number did.
        other: (N,) int64: the caption that a caption was dropped for, such as the one that it repeats; -1: none.
        texts: {caption: its new text, or those that it was split into}.
        rows: {caption: the row of the image that it was moved to}.
        images: the set of another source, to whose images all captions that are not dropped are moved; None: they stay
            with the images of their own.
        columns: {name: (N,) numbers that stay with the captions}.
        notes: what the record says about the step besides, such as thresholds and signatures.
    """

    def __init__(self, captions: int) -> None:
        self.verdict = np.zeros(captions, dtype=np.uint8)
        self.reason = np.zeros(captions, dtype=np.int32)
        self.score = np.full(captions, np.nan)
        self.other = np.full(captions, -1, dtype=np.int64)
        self.reasons = [""]
        self.texts: dict[int, list[str]] = {}
        self.rows: dict[int, int] = {}
        self.images: Captions | None = None
        self.columns: dict[str, np.ndarray] = {}
        self.notes: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.verdict)

    def _say(self, which: Any, verdict: int, reason: str) -> None:
        if reason not in self.reasons:
            self.reasons.append(reason)
        self.verdict[which] = verdict
        self.reason[which] = self.reasons.index(reason)

    def keep(self, which: Any, reason: str) -> None:
        """Keep captions for a reason.

        Args:
            which: an index, indices, or (N,) bool.
            reason: why; numbers that differ from caption to caption belong into `score`.
        """
        self._say(which, KEEP, reason)

    def drop(self, which: Any, reason: str) -> None:
        """Drop captions, of which those that were dropped before keep their reason; see `keep`."""
        mask = np.zeros(len(self), dtype=bool)
        mask[which] = True
        self._say(mask & (self.verdict != DROP), DROP, reason)

    def change(self, index: int, text: str, reason: str) -> None:
        """Give a caption another text."""
        self.texts[index] = [text]
        self._say(index, CHANGE, reason)

    def split(self, index: int, texts: Sequence[str], reason: str) -> None:
        """Put several captions in the place of one."""
        self.texts[index] = list(texts)
        self._say(index, SPLIT, reason)

    def move(self, index: int, row: int, reason: str) -> None:
        """Give a caption to another image of the source."""
        self.rows[index] = row
        self._say(index, MOVE, reason)

    @property
    def dropped(self) -> np.ndarray:
        """(N,) bool."""
        return self.verdict == DROP

    def check(self) -> None:
        """Raise ValueError where verdicts and what belongs to them do not agree, which is a bug of the operation."""
        n = len(self.verdict)
        said = set(np.flatnonzero(np.isin(self.verdict, (CHANGE, SPLIT))).tolist())
        moved = set(np.flatnonzero(self.verdict == MOVE).tolist())
        lengths = {len(part) for part in (self.reason, self.score, self.other, *self.columns.values())}
        if lengths != {n} or self.texts.keys() != said or self.rows.keys() != moved:
            raise ValueError("an operation did not decide about every caption, or said more than it decided")
        if self.images is not None and not np.isin(self.verdict, (DROP, MOVE)).all():
            raise ValueError("an operation left captions with images of another source than the rest")
        if bool((self.reason[self.verdict != KEEP] == 0).any()):
            raise ValueError("an operation gave no reason")


@dataclass
class Work:
    """How a step works, and where it keeps what is costly.

    Attributes:
        folder: the step's own folder, which is removed when the set is written.
        pool: the processes that share what is costly.
        device: where models run; None: the best there is.
        progress: whether bars are shown.
    """

    folder: Path
    pool: Pool = field(default_factory=Pool)
    device: str | None = None
    progress: bool = True

    def path(self, name: str) -> Path:
        """Return where a part lies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def share(self, make: Callable[[Path, Any], Any], parts: Sequence[tuple[str, Any, int]], what: str) -> list[Any]:
        """Let the workers make parts, but those that are there already; return what they tell, in any order.

        Args:
            make: writes a part, whole or not at all, to a path, from an item; it can be pickled, loads what is costly
                when it is called, and may tell something.
            parts: (name of the file, item, how many things it is about) of each.
            what: for the bar.
        """
        todo = [(self.path(name).absolute(), item, size) for name, item, size in parts if not self.path(name).is_file()]
        told = []
        with Bar(total=sum(size for *_, size in parts), desc=what, unit="", show=self.progress, delay=2) as bar:
            bar.update(sum(size for *_, size in parts) - sum(size for *_, size in todo))
            for size, one in self.pool.answers(_Part(make), todo):
                told.append(one)
                bar.update(size)
        return told

    def kept(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return an array that was kept under this name, or make it and keep it, whole or not at all."""
        path = self.path(f"{name}.npy")
        if path.is_file():
            return np.load(path)
        made = make()
        keep(path, made)
        return made


class _Part:
    """Makes a part in a worker, and says how large it is.

    What scorers remember of images is forgotten before: it would decide what is encoded together, and with it the last
    bits of a score, and depends on which parts this process has made.
    """

    def __init__(self, make: Callable[[Path, Any], Any]) -> None:
        self.make = make

    def __call__(self, job: tuple[Path, Any, int]) -> tuple[int, Any]:
        path, item, size = job
        if not path.parent.is_dir():
            raise CurationError(f"a worker does not find {path.parent}: all workers have to share the --output folder")
        forget()
        return size, self.make(path, item)


def keep(path: Path, array: np.ndarray) -> None:
    """Write an array into a file, whole or not at all."""
    data = io.BytesIO()
    np.save(data, array)
    with replacing(path) as temporary:
        temporary.write_bytes(data.getvalue())


def as_settings(operation: Any) -> dict[str, Any]:
    """Return an operation's settings as plain values."""
    values = dataclasses.asdict(operation)
    return {
        name: list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
        for name, value in values.items()
    }
