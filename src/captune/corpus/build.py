"""Build a corpus: the source is read once, piece by piece, and each piece is on the disk before the next begins."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from captune.corpus import files
from captune.corpus.files import Shard
from captune.corpus.index import EXACT, INDEXES, make_index
from captune.data import ImageSource, load_images, open_image
from captune.data.checking import bytes_digest
from captune.data.columns import content_digest, read_digest, undecoded
from captune.data.images import BATCH_PIXELS
from captune.data.naming import Source
from captune.data.schemes import scheme_of
from captune.data.shards import shards_of
from captune.errors import BadImage, CorpusError, redact
from captune.models.encoders import (
    DEFAULT_IMAGE_ENCODER,
    DEFAULT_TEXT_ENCODER,
    EncodesImages,
    EncodesTexts,
    load_image_encoder,
    load_text_encoder,
    unit_vectors,
)
from captune.utils.hashing import fingerprint
from captune.utils.progress import Bar
from captune.utils.registry import nearest
from captune.utils.remote import file_mark
from captune.utils.skipped import Told, skip
from captune.utils.versions import versions

logger = logging.getLogger(__name__)
_TEXTS_AT_ONCE = 512  # enough for batches of like length

STREAM = "a dataset of unknown rows"

Row = dict[str, Any]


def build(
    source: str | ImageSource,
    output: str | Path,
    *,
    text_encoder: str | EncodesTexts | None,
    image_encoder: str | EncodesImages,
    index: str = "flat",
    batch_size: int = 32,
    shard_size: int = 1024,
    overwrite: bool = False,
    progress: bool = True,
    device: str | None = None,
    make_shards: Callable[..., int] | None = None,
) -> None:
    """Build a corpus in the folder `output`; see `Corpus.build`.

    `make_shards`, of `captune.corpus.ray_build`, makes shards before this process looks which are missing.
    """
    folder = Path(output)
    for name, number in (("batch_size", batch_size), ("shard_size", shard_size)):
        if number < 1:
            raise CorpusError(f"{name} must be at least 1, not {number}")
    if index not in INDEXES:
        raise CorpusError(nearest(index, INDEXES, "index"))
    offered = scheme_of(source)
    if text_encoder is None:
        text_encoder = offered.text_encoder or DEFAULT_TEXT_ENCODER
    text_model = load_text_encoder(text_encoder, device) if isinstance(text_encoder, str) else text_encoder
    image_model = load_image_encoder(image_encoder, device) if isinstance(image_encoder, str) else image_encoder
    if image_model.name == DEFAULT_IMAGE_ENCODER != offered.image_encoder:
        logger.warning(
            "%s was trained on storybook images alone; for photographs name an image encoder such as "
            "openai/clip-vit-base-patch32",
            DEFAULT_IMAGE_ENCODER,
        )
    dataset = load_images(source, decode=False, stream=True) if isinstance(source, str) else undecoded(source)
    rows = _count(dataset)
    settings: dict[str, Any] = {
        "format": files.FORMAT,
        "complete": False,
        "source": redact(source) if isinstance(source, str) else f"a dataset of {rows} rows" if rows else STREAM,
        "rows": rows,
        "read": read_digest(dataset),
        "contents": _contents(source, dataset, offered.truth_column),
        "text_encoder": _named(text_model),
        "image_encoder": _named(image_model),
        "shard_size": shard_size,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with files.only_builder(folder):
        encoders = {"text_encoder": text_model, "image_encoder": image_model}
        begun = _begin(folder, settings, encoders, overwrite)
        if not begun.get("complete"):
            made: int | None = None
            if make_shards is not None:
                made = make_shards(source, folder, begun, (text_encoder, image_encoder), batch_size, progress=progress)
            job = _Job(text_model, image_model, folder, batch_size, begun["shard_size"], progress)
            with counting_cut(text_model, "in all"):
                count = job.run(dataset, made)
            merged = files.merge(folder, count)
            files.write_config(folder, {**begun, **merged, "complete": True, "versions": versions()})
        shutil.rmtree(folder / files.SHARDS, ignore_errors=True)
        if index not in EXACT:
            make_index(folder, index, progress=progress)


@contextmanager
def counting_cut(text_model: EncodesTexts, where: str) -> Iterator[None]:
    """Count the captions that are cut inside."""
    before = getattr(text_model, "truncated", 0)
    yield
    if cut := getattr(text_model, "truncated", 0) - before:
        skip(Told("captions that the text encoder cut, so that their ends are not searched"), where, cut)


def _named(encoder: Any) -> dict[str, str]:
    """What the corpus says of an encoder, with the note of one whose figures need one."""
    note = getattr(encoder, "note", "")
    return {"name": encoder.name, "digest": encoder.digest} | ({"note": note} if note else {})


def _count(dataset: ImageSource) -> int | None:
    return len(dataset) if isinstance(dataset, Dataset) else None


def _contents(source: str | ImageSource, dataset: ImageSource, truth: str) -> str | None:
    """A digest of the images, by the sizes that `content_digest` looks at; of drawn ones by the truth.

    Of parquet and tar files, whose captions are not read ahead either, by names, sizes and times; of a stream that has
    no name, the digest of its first row's id and captions.
    """
    if not isinstance(dataset, Dataset):
        if not isinstance(source, str):  # a stream, of which the first row is looked at
            row: Row = next(iter(dataset), {})
            return fingerprint(json.dumps([str(row.get("image_id")), row.get("references")]))
        files_of = shards_of(Source.parse(source).where)
        return fingerprint(json.dumps([[name, file_mark(name)] for name in files_of])) if files_of else None
    names = [name for name in ("image", "image_id", truth) if name in dataset.column_names]
    return content_digest(dataset.select_columns(names))  # other columns decide nothing of a corpus


def _begin(folder: Path, settings: dict[str, Any], encoders: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """The config of the build that starts or resumes here; CorpusError if the folder holds another one."""
    if overwrite:
        files.clear(folder)
    begun = files.read_config(folder)
    if begun is None:
        taken = [name for name in (files.SHARDS, *files.OWN) if (folder / name).exists()]
        if taken:
            raise CorpusError(f"{folder} is not a corpus but holds {', '.join(taken)}; name another folder")
        files.write_config(folder, settings)
        return settings
    differences = [
        f"{what} {begun.get(key)!r}, not {settings[key]!r}"
        for key, what in {"source": "source", "rows": "number of rows"}.items()
        if begun.get(key) != settings[key]
    ]
    if not differences and begun.get("read", settings["read"]) != settings["read"]:  # an earlier version wrote none
        differences.append("other captions, or images of other names, than the source has now")
    elif not differences and begun.get("contents") not in (None, settings["contents"]):  # likewise
        unread = "rows, by the first one," if settings["source"] == STREAM else "files, by their sizes or times,"
        what = "images, under the same names," if settings["read"] else unread
        differences.append(f"other {what} than the source has now")
    for slot in ("text_encoder", "image_encoder"):
        if not files.same_encoder(begun, slot, encoders[slot]):
            then, now = ("{name}@{digest}".format(**c[slot]) for c in (begun, settings))
            differences.append(f"{slot.replace('_', ' ')} {then}, not {now}")
    if differences:
        what = "a corpus" if begun.get("complete") else "an unfinished corpus"
        raise CorpusError(
            f"{folder} holds {what} made with other settings ({'; '.join(differences)}); name another folder, or pass "
            "--overwrite"
        )
    return begun


class _Job:
    """One pass over the source."""

    def __init__(
        self,
        text_model: EncodesTexts,
        image_model: EncodesImages,
        folder: Path,
        batch_size: int,
        shard_size: int,
        progress: bool,
    ) -> None:
        self.text_model, self.image_model, self.folder = text_model, image_model, folder
        self.batch_size, self.shard_size, self.show = batch_size, shard_size, progress
        self.known: set[str] = set()  # the images that earlier shards have
        self.bytes: dict[str, str] | None = None  # {image_id: a digest of its file}, of a stream, which checks no ids

    def run(self, dataset: ImageSource, made: int | None = None) -> int:
        """Encode what no shard has yet; return how many shards there are.

        Args:
            dataset: the source.
            made: how many there will be, where that is known.
        """
        reader = _Reader(dataset)
        self.bytes = {} if reader.total is None else None
        with (
            Bar(total=reader.total, desc="corpus", unit="image", show=self.show) as bar,
            ThreadPoolExecutor(max_workers=1) as pool,  # opens the next images while the model is busy with these
        ):
            number = 0
            while True:
                if number == made:
                    return number
                path = files.shard_path(self.folder, number)
                shard = files.read_shard(path)
                if shard is not None and not self._follows(shard):
                    shard = None
                if shard is None:
                    if path.exists() and made is None:
                        logger.warning("%s is damaged; its part of the source is encoded again", path)
                    shard = self.shard(reader.rows(number * self.shard_size, self.shard_size), pool, bar)
                    if not shard.rows:
                        return number
                    files.write_shard(path, shard)
                else:
                    bar.update(shard.rows)
                self.known.update(shard.images)
                number += 1

    def _follows(self, shard: Shard) -> bool:
        """Whether a shard has each image that no earlier one has, and no other: one made beside them was guessed."""
        own = set(shard.images)
        return not (own & self.known) and all(item in own or item in self.known for item, _ in shard.entries)

    def shard(self, rows: Iterator[Row], pool: ThreadPoolExecutor, bar: Any) -> Shard:
        """Encode rows into a shard."""
        shard = Shard(rows=0)
        seen: set[str] = set()
        images: list[np.ndarray] = []
        texts: list[np.ndarray] = []
        waiting: list[str] = []
        ahead = pool.submit(copy_context().run, self._open, rows, seen)
        while (now := ahead.result()).rows:
            large = now.pixels > BATCH_PIXELS // 4  # the next ones are not opened beside these
            if not large:
                ahead = pool.submit(copy_context().run, self._open, rows, seen)
            shard.rows += now.rows
            for item, why in now.skipped:
                skip("images that the corpus leaves out", f"{item}: {why}")
            shard.skipped += now.skipped
            if now.images:
                shard.images += now.images
                images.append(unit_vectors(self.image_model.encode_images(now.opened), now.images))
                now.opened.clear()
            if large:
                ahead = pool.submit(copy_context().run, self._open, rows, seen)
            shard.entries += now.entries
            waiting += [caption for _, caption in now.entries]
            while len(waiting) >= _TEXTS_AT_ONCE:
                part, waiting = waiting[:_TEXTS_AT_ONCE], waiting[_TEXTS_AT_ONCE:]
                texts.append(unit_vectors(self.text_model.encode_texts(part), part))
            bar.update(now.rows)
        if waiting:
            texts.append(unit_vectors(self.text_model.encode_texts(waiting), waiting))
        if images:
            shard.image_vectors = np.concatenate(images)
        if texts:
            shard.text_vectors = np.concatenate(texts)
        return shard

    def _differs(self, image_id: str, image: Any) -> bool:
        """Whether a stream has had another file under an id; of what another process encoded nothing is known."""
        then = (self.bytes or {}).get(image_id)
        return bool(then and (digest := bytes_digest(image)) and digest != then)  # what cannot be read is no other

    def _open(self, rows: Iterator[Row], seen: set[str]) -> _Opened:
        """The next rows, up to batch_size, or until their images have more than `BATCH_PIXELS`.

        An image whose id has come before is not opened again.
        """
        batch = _Opened(rows=0)
        for row in itertools.islice(rows, self.batch_size):
            batch.rows += 1
            image_id = str(row["image_id"])
            captions = [text for text in row["references"] or () if text and text.strip()]
            if not captions:
                batch.skipped.append((image_id, "has no caption"))
                continue
            again = image_id in self.known or image_id in seen
            if not again or self._differs(image_id, row["image"]):
                try:
                    image = open_image(row["image"], image_id)
                except BadImage as error:
                    batch.skipped.append((image_id, error.why))
                    continue
                if again:
                    raise CorpusError(
                        f"two rows of the source have the id {image_id!r}, and different images: give each its own"
                    )
                if self.bytes is not None:
                    self.bytes[image_id] = bytes_digest(row["image"])
                seen.add(image_id)
                batch.opened.append(image)
                batch.pixels += image.width * image.height
                batch.images.append(image_id)
            batch.entries += [(image_id, caption) for caption in captions]
            if batch.pixels > BATCH_PIXELS:
                break
        return batch


class _Opened(Shard):
    """Rows that were read, before anything is encoded."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.opened: list[Any] = []
        self.pixels = 0


class _Reader:
    """Rows of a source by their number; a stream is read in rising order and skips the others."""

    def __init__(self, dataset: ImageSource) -> None:
        self.dataset = dataset
        self.total = _count(dataset)
        self._stream = iter(dataset) if self.total is None else None
        self._next = 0

    def rows(self, start: int, count: int) -> Iterator[Row]:
        if self._stream is None:
            assert self.total is not None
            for i in range(start, min(start + count, self.total)):
                yield self.dataset[i]
            return
        for _ in itertools.islice(self._stream, start - self._next):
            pass
        self._next = start
        for row in itertools.islice(self._stream, count):
            self._next += 1
            yield row
