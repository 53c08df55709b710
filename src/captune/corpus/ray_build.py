"""`captune corpus build --engine ray`: the shards of a corpus by several workers; one process makes it whole.

An image that stands in several rows is encoded once, in its first shard. A worker cannot wait for earlier shards: it
takes for granted that the images of their captioned rows could be read. The pass that comes after compares, and makes
again what was guessed wrong, so that the corpus is that of one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from captune.corpus import files
from captune.corpus.build import _Job as Encoding
from captune.corpus.build import counting_cut
from captune.data.pieces import Piece, Shard, pieces_of
from captune.errors import CorpusError
from captune.utils.ray_pool import Progress, answers, check_ray, cluster, default_workers
from captune.utils.skipped import counting, skip


class _Job(NamedTuple):
    """What a worker has to know."""

    folder: str
    text_encoder: str
    image_encoder: str
    digests: tuple[str, str]
    batch_size: int
    shard_size: int
    device: str | None


def make_shards(
    source: Any,
    folder: Path,
    begun: dict[str, Any],
    encoders: tuple[Any, Any],
    batch_size: int,
    *,
    device: str | None,
    workers: int | None,
    address: str | None,
    progress: bool,
) -> int:
    """Let workers make the shards that are missing; return how many there are.

    Args:
        source: as written.
        folder: the corpus, which all workers can write.
        begun: its config.
        encoders: the names of the text and the image encoder.
        batch_size: images per batch.
        device: of the encoders.
        workers: how many; default: one for each GPU, else 2.
        address: of a Ray cluster; None: this machine.
        progress: say how far it is.

    Raises:
        CorpusError: the source or the encoders are objects, or the source is webdataset shards.
    """
    check_ray()
    if not isinstance(source, str) or not all(isinstance(name, str) for name in encoders):
        raise CorpusError("workers load source and encoders by their names: pass names, or leave the engine out")
    pieces = pieces_of(source, begun["shard_size"], references=True)
    if any(isinstance(piece, Shard) for piece in pieces):
        raise CorpusError(
            f"{source}: the rows of webdataset shards cannot be counted without reading them; leave --engine ray out"
        )
    digests = (begun["text_encoder"]["digest"], begun["image_encoder"]["digest"])
    job = _Job(str(folder.absolute()), *encoders, digests, batch_size, begun["shard_size"], device)
    items: list[tuple[int, Piece, list[str]]] = []
    before: set[str] = set()
    done = 0
    for number, piece in enumerate(pieces):
        ids = piece.captioned()
        if files.shard_path(folder, number).exists():  # read, and made again if it is damaged, in the pass after this
            done += piece.rows or 0
        else:
            items.append((number, piece, [one for one in dict.fromkeys(ids) if one in before]))
        before.update(ids)
    bar = Progress("corpus", sum(piece.rows or 0 for piece in pieces), done, show=progress and bool(items))
    count = min(workers or (default_workers() if address is None else 1), len(items))
    with cluster(address, count) if items else nullcontext():
        for rows, seconds, skipped in answers(_begin, job, items, workers=count, device=device) if items else ():
            bar.add(rows, seconds)
            for reason, found in skipped.items():
                for item, number in found.items():
                    skip(reason, item, number)
    bar.close()
    return len(pieces)


def _begin(job: _Job) -> Callable[[Any], tuple[int, float, dict[str, dict[str, int]]]]:
    """Load the encoders of a worker, which have to be the driver's."""
    from concurrent.futures import ThreadPoolExecutor

    from captune.models.encoders import load_image_encoder, load_text_encoder
    from captune.utils.progress import Bar

    text_model = load_text_encoder(job.text_encoder, job.device)
    image_model = load_image_encoder(job.image_encoder, job.device)
    if (text_model.digest, image_model.digest) != job.digests:
        raise CorpusError(f"a worker has other weights of {job.text_encoder} or {job.image_encoder} than the driver")
    folder = Path(job.folder)

    def make(item: tuple[int, Piece, list[str]]) -> tuple[int, float, dict[str, dict[str, int]]]:
        started = time.perf_counter()
        number, piece, known = item
        encoding = Encoding(text_model, image_model, folder, job.batch_size, job.shard_size, False)
        encoding.known.update(known)
        encoding.bytes = {}
        with counting() as skipped, ThreadPoolExecutor(max_workers=1) as pool, Bar(show=False) as bar:
            with counting_cut(text_model, f"piece {number}"):
                shard = encoding.shard(iter(piece.read()), pool, bar)
            files.write_shard(files.shard_path(folder, number), shard)
        return shard.rows, time.perf_counter() - started, skipped

    return make
