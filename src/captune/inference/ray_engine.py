"""`captune caption --engine ray`: many images by many workers, into a folder of parts, on one machine or a cluster.

    FOLDER/manifest.json         complete or not; settings, counts, and the parts that make the result
    FOLDER/settings.json         what made the captions, written by the first worker: no other captioner is mixed in
    FOLDER/parts/000000.jsonl    the captions of a fixed piece of the source's order
    FOLDER/records/000000.json   what the part holds: counts, size, bad images, what its images were

FOLDER is a path or an address that fsspec writes (``s3://bucket/captions``). A part is written whole (under another
name that is then changed, or in a single put), its record after it: whatever is killed, a part is there with all of its
captions or made again. It is made in the batches in which `captune.inference.job` makes them, so that the captions are
those of one process, where the pieces are numbers of rows; a webdataset shard is a piece, which begins new batches.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from captune.data.caption_formats import write_captions
from captune.data.naming import absolute
from captune.data.parts import MANIFEST, PARTS, WINDOW, check_part_size, parts_format, read_manifest
from captune.data.pieces import Piece, Rows, pieces_of
from captune.decoding import load_decoder
from captune.errors import CaptionFileError, MissingColumn, SettingError, SourceError, redact
from captune.inference.engines import check_engine, load_captioner, pick_engine
from captune.inference.job import CaptionReport
from captune.inference.outputs import KeptOutput
from captune.utils.ray_pool import Progress, answers, check_ray, cluster, default_workers
from captune.utils.remote import Store, is_address
from captune.utils.skipped import counting, skip
from captune.utils.versions import command_line, versions
from captune.utils.wording import counted

logger = logging.getLogger(__name__)
LARGEST_PART = 16  # windows
_SETTINGS = "settings.json"


class _Job(NamedTuple):
    """What a worker has to know."""

    model: str | None
    loading: dict[str, Any]
    source: str
    output: str
    format: str
    batch_size: int
    seed: int
    decoder: str | None
    prefix: str
    suffix: str
    generation: dict[str, Any]


def part_rows(total: int | None, batch_size: int) -> int:
    """Return how many images a part has by default: whole windows, for about a thousand parts, 1 to 16 windows each."""
    window = WINDOW * batch_size
    return window * min(LARGEST_PART, max(1, (total or 0) // (1000 * window)))


def caption_to_parts(
    model: str | Path | None,
    source: str,
    output: str | Path,
    *,
    format: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    part_size: int | None = None,
    overwrite: bool = False,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    prefix: str = "",
    suffix: str = "",
    progress: bool = True,
    decoder: str | None = None,
    prompt: str | None = None,
    engine: str | None = None,
    **rest: Any,
) -> CaptionReport:
    """Caption every image of a source by the workers of Ray, each image once; resumes where an earlier run stopped.

    Args:
        model: a folder, a hub name, a shipped model or a server's address; None for the decoder zerocap.
        source: the images: a source as written, or an address that fsspec reads.
        output: the folder, or an address that fsspec writes.
        format: of the parts: jsonl (the default), parquet, csv or webdataset.
        workers: processes that hold the captioner; default: one for each GPU, else 2.
        address: of a Ray cluster, ``host:6379`` or ``auto``; default: this machine.
        part_size: images of a part, a multiple of 16 batches; default: 16 to 256 batches. A resume keeps it.
        overwrite: start again.
        limit: use the first N images.
        batch_size: images per batch.
        seed: where captions are sampled.
        prefix: put before each caption.
        suffix: put behind each caption.
        progress: say how far it is.
        decoder: a decoder's spec.
        prompt: the text beside the image.
        engine: what a worker holds: process, server or vllm, see `captune.inference.engines`; default: what the model
            implies.
        rest: adapter, dtype, device, trust_remote_code, requests, language_model and image_encoder as in
            `captune.inference.job.caption_to_file`; the others are settings of ``generate``.

    Raises:
        SettingError: a setting is out of range, or Ray is not there.
        SourceError: the source cannot be read, or changed.
        CaptionFileError: the folder holds captions that were made with other settings, or ids stand twice.
        CaptionerError: the model cannot be loaded, or Ray failed.
    """
    check_ray()
    names = ("adapter", "dtype", "device", "trust_remote_code", "language_model", "image_encoder", "requests")
    loading: dict[str, Any] = {name: rest.pop(name) for name in names if rest.get(name) is not None}
    generation = {key: value for key, value in rest.items() if value is not None and key not in names}
    zerocap = {name: loading.pop(name, None) for name in ("language_model", "image_encoder")}
    inside = pick_engine(engine, model)
    check_engine(inside, model, decoder=decoder, num_beams=generation.get("num_beams"), **loading)
    chosen = parts_format(format)
    if decoder is not None and (
        lacking := [need for need in load_decoder(decoder).required_columns if need != "image"]
    ):
        raise MissingColumn(f"the decoder {decoder} needs {' and '.join(lacking)}, and captioning has images only")
    check_part_size(part_size, batch_size)
    device = "cpu" if inside == "server" else loading.get("device")
    loading |= {"prompt": prompt, "engine": inside} | zerocap
    for name in ("adapter", *zerocap):
        loading[name] = None if loading.get(name) is None else _absolute(str(loading[name]))
    source = source.removeprefix("file://")
    folder = _Folder(Store(str(output).removeprefix("file://")))
    if overwrite:
        folder.clear()
    begun = folder.manifest()
    if begun is not None and begun["part_format"] != chosen:
        was = begun["part_format"]
        if format is not None:
            raise CaptionFileError(
                f"{folder.where} has parts in {was}, not in {format}; name another folder, or --overwrite"
            )
        chosen = was
    if begun is not None and part_size not in (None, begun["part_size"]):
        raise CaptionFileError(
            f"{folder.where} has parts of {begun['part_size']} images, not of {part_size}: leave --part-size out, or "
            "--overwrite"
        )
    size = begun["part_size"] if begun is not None else part_size
    if size is None:
        pieces = pieces_of(source, WINDOW * batch_size, limit=limit)
        size = part_rows(sum(piece.rows or 0 for piece in pieces), batch_size)
        if size != WINDOW * batch_size:
            pieces = pieces_of(source, size, limit=limit)
    else:
        pieces = pieces_of(source, size, limit=limit)
    finished = folder.finished(pieces)
    left = [number for number in range(len(pieces)) if number not in finished]
    if left or begun is None or not begun["complete"]:  # else it stays readable, whatever comes of this run
        folder.write_manifest({"complete": False, "part_format": chosen, "part_size": size, "source": redact(source)})
    job = _Job(
        None if model is None else _absolute(str(model)),
        loading,
        source if is_address(source) else absolute(source),
        folder.where,
        chosen,
        batch_size,
        seed,
        decoder,
        prefix,
        suffix,
        generation,
    )
    ids = _Distinct(pieces)
    for number, record in sorted(finished.items()):
        ids.add(number, record)
    count = (workers or (default_workers() if address is None else 1)) if left else 1
    total = None if any(piece.rows is None for piece in pieces) else sum(piece.rows or 0 for piece in pieces)
    bar = Progress("captions", total, sum(r["images"] for r in finished.values()), show=progress and bool(left))
    done = 0
    seen: set[str] = set()
    items: list[Any] = [(number, pieces[number]) for number in left] or [None]  # None: the settings are compared
    alone = not left and address is None  # without Ray, where the model is sure to be on this machine
    with contextlib.nullcontext() if alone else cluster(address, count):
        workers = min(count, len(items))
        made: Iterator[Any] = (
            map(_begin(job), items) if alone else answers(_begin, job, items, workers=workers, device=device)
        )
        for record in made:
            if record is None:
                continue
            seen.add(record.pop("worker"))
            number = record["part"]
            ids.add(number, record)
            finished[number] = record
            done += record["captions"]
            bar.add(record["images"], record.pop("seconds"), f" in {len(finished):,} of {len(pieces):,} parts")
        bar.close()
    seconds = bar.seconds()
    if (lost := len(seen) - min(count, len(items))) > 0:
        logger.warning("%d worker processes were lost and started again; their parts were made again", lost)
    for record in finished.values():
        for reason, found in record["skipped"].items():
            for item, number in found.items():
                skip(reason, item, number)
    manifest = folder.finish(pieces, finished, chosen, size, source)
    bad = [(item, why) for number in range(len(pieces)) for item, why in finished[number]["bad"]]
    skipped = manifest["captions"] - done
    if not manifest["images"]:
        raise SourceError(f"{source} holds no images")
    where = f"{folder.where} ({counted(len(pieces), 'part')})"
    return CaptionReport(done, skipped, bad, seconds, done / seconds if done else 0.0, where)


def _absolute(name: str) -> str:
    """A model's name, a local folder made absolute: a worker may start in another one."""
    path = os.path.expanduser(name)
    return os.path.abspath(path) if os.path.exists(path) else name


class _Folder:
    """A folder of parts."""

    def __init__(self, store: Store) -> None:
        self.store, self.where = store, store.where

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest; None where nothing was begun here.

        Raises:
            CaptionFileError: the folder holds something else.
        """
        content = self.store.read(MANIFEST)
        if content is None:
            if taken := sorted(name for name in self.store.sizes("") if not name.startswith(".")):
                raise CaptionFileError(
                    f"{self.where} is no folder of caption parts, and holds {taken[0]}"
                    f"{f' and {len(taken) - 1} more files' if len(taken) > 1 else ''}: name another folder"
                )
            return None
        return read_manifest(content, f"{self.where}/{MANIFEST}")

    def write_manifest(self, content: dict[str, Any]) -> None:
        """Replace the manifest."""
        whole = {"format": 1, "kind": "caption parts", **content}
        self.store.write(MANIFEST, (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode())

    def clear(self) -> None:
        """Remove what a run has made, by its names; the manifest last, so that a killed removal can be repeated."""
        if self.manifest() is None:
            return
        for folder in ("records", "parts"):
            for name in self.store.sizes(folder):
                self.store.remove(f"{folder}/{name}")
        self.store.remove(_SETTINGS)
        self.store.remove(MANIFEST)

    def finished(self, pieces: list[Piece]) -> dict[int, dict[str, Any]]:
        """Return the records of the parts that are there, whole, of images that are what they were."""
        names = {f"{number:06d}.json": number for number in range(len(pieces))}
        there = [name for name in self.store.sizes("records") if name in names]
        sizes = self.store.sizes("parts") if there else {}
        contents = self.store.read_all([f"records/{name}" for name in there])
        found: dict[int, dict[str, Any]] = {}
        replaced = 0
        for name in there:
            number = names[name]
            record = _record(contents.get(f"records/{name}"), sizes)
            if record is None:
                continue
            if record["mark"] == pieces[number].mark:
                found[number] = record
            else:
                replaced += 1
        if replaced:
            logger.warning(
                "the images of %d parts are others than when they were captioned (added, removed or replaced); these "
                "parts are made again",
                replaced,
            )
        return found

    def finish(
        self, pieces: list[Piece], records: dict[int, dict[str, Any]], format: str, size: int, source: str
    ) -> dict[str, Any]:
        """Say in the manifest which parts make the result; remove what killed workers left."""
        missing = [number for number in range(len(pieces)) if number not in records]
        if missing:
            raise CaptionFileError(f"{self.where}: {len(missing)} parts are missing; run the same command again")
        ordered = [records[number] for number in range(len(pieces))]
        keys = ("part", "piece", "file", "bytes", "images", "captions", "bad")
        manifest = {
            "complete": True,
            "part_format": format,
            "part_size": size,
            "source": redact(source),
            "images": sum(record["images"] for record in ordered),
            "captions": sum(record["captions"] for record in ordered),
            "bad": sum(len(record["bad"]) for record in ordered),
            "settings": json.loads(self.store.read(_SETTINGS) or b"{}"),
            "versions": versions(),
            "command": command_line(),
            "parts": [{key: record[key] for key in keys} for record in ordered],
        }
        self.write_manifest(manifest)
        for folder in ("", "parts", "records"):
            self.store.remove_leftovers(folder)
        return manifest


def _record(content: bytes | None, sizes: Mapping[str, int]) -> dict[str, Any] | None:
    """A part's record; None where it is damaged, or its part is not there as it says."""
    try:
        record = json.loads(content or b"")
        whole = record["file"] is None or sizes.get(record["file"].rpartition("/")[2]) == record["bytes"]
        known = {"part", "mark", "images", "captions", "bad", "skipped", "ids"} <= record.keys()
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return record if whole and known else None


class _Distinct:
    """Looks for ids that stand in two parts: 8 bytes of memory for each image whose id only reading it tells."""

    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces = pieces
        self.runs: list[tuple[np.ndarray, np.ndarray]] = []  # sorted digests and their parts, each run twice the next

    def add(self, number: int, record: Mapping[str, Any]) -> None:
        """Add the ids of a part.

        Raises:
            CaptionFileError: one is in another part, too.
        """
        if not record["ids"]:
            return
        new = np.sort(np.frombuffer(base64.b64decode(record["ids"]), dtype=np.uint64))
        run = new, np.full(len(new), number, dtype=np.uint32)
        for keys, parts in self.runs:
            places = np.minimum(np.searchsorted(keys, new), len(keys) - 1)
            if (same := keys[places] == new).any():
                first = int(parts[places[same][0]])
                raise CaptionFileError(
                    f"{int(same.sum())} image_ids stand in two parts of the source, {self.pieces[first].name} and "
                    f"{self.pieces[number].name} ({self._name(new[same][0], number)}); give each image its own id"
                )
        while self.runs and len(self.runs[-1][0]) <= 2 * len(run[0]):
            keys, parts = self.runs.pop()
            keys, parts = np.concatenate([keys, run[0]]), np.concatenate([parts, run[1]])
            order = np.argsort(keys, kind="stable")
            run = keys[order], parts[order]
        self.runs.append(run)

    def _name(self, key: np.uint64, number: int) -> str:
        piece = self.pieces[number]
        for row in piece.load():
            if id_digests([str(row["image_id"])])[0] == key:
                return f"such as {row['image_id']!r}"
        return "their digests are equal"


def id_digests(ids: list[str]) -> np.ndarray:
    """Return 64 bits of each id, uint64."""
    joined = b"".join(hashlib.blake2b(one.encode("utf-8", "backslashreplace"), digest_size=8).digest() for one in ids)
    return np.frombuffer(joined, dtype="<u8").astype(np.uint64)


# ------------------------------------------------------------------ in a worker


def _begin(job: _Job) -> Callable[[Any], dict[str, Any] | None]:
    """Load the captioner of a worker, and compare what makes its captions with what made those that are there."""
    from captune.inference.settings import differences, job_settings

    captioner = _load(job.model, **job.loading)
    decode = None if job.decoder is None else load_decoder(job.decoder)
    sampled = job.generation.get("do_sample", False) or (decode is not None and decode.samples)
    added = {key: text for key, text in (("prefix", job.prefix), ("suffix", job.suffix)) if text}
    settings = job_settings(captioner, job.source, job.seed if sampled else None, job.generation | added, decode)
    settings = json.loads(json.dumps(settings))
    store = Store(job.output)
    content = store.read(_SETTINGS)
    if content is None:
        store.write(_SETTINGS, (json.dumps(settings, indent=1, sort_keys=True) + "\n").encode())
        content = store.read(_SETTINGS) or b"{}"
    then = json.loads(content)
    if changed := differences(then, settings):
        raise CaptionFileError(
            f"{job.output} was made with other settings ({changed}); name another folder, or pass --overwrite "
            "to replace it"
        )
    return _Captions(captioner, decode, job, store)


def _load(model: str | None, *, engine: str, **loading: Any) -> Any:
    language_model, image_encoder = loading.pop("language_model"), loading.pop("image_encoder")
    if model is not None and language_model is None and image_encoder is None:
        return load_captioner(engine, model, **loading)
    if model is None and language_model is not None and image_encoder is not None:
        from captune.decoding.zerocap import ZeroCapModel

        return ZeroCapModel.load(
            language_model, image_encoder, device=loading.get("device"), prompt=loading.get("prompt")
        )
    raise SettingError("name a model, or (for the decoder zerocap) both a language model and an image encoder")


class _Captions:
    """Makes parts."""

    def __init__(self, captioner: Any, decoder: Any, job: _Job, store: Store) -> None:
        self.captioner, self.decoder, self.job, self.store = captioner, decoder, job, store
        self.worker = f"{os.uname().nodename} {os.getpid()}"

    def __call__(self, item: tuple[int, Piece] | None) -> dict[str, Any] | None:
        if item is None:
            return None
        number, piece = item
        name = f"records/{number:06d}.json"
        if (content := self.store.read(name)) is not None:  # a worker that was lost after it
            record = _record(content, self.store.sizes("parts"))
            if record is not None and record["mark"] == piece.mark:
                return {**record, "worker": self.worker, "seconds": 0.0}
        started = time.perf_counter()
        record = self._make(number, piece)
        self.store.write(name, (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
        return {**record, "worker": self.worker, "seconds": time.perf_counter() - started}

    def _make(self, number: int, piece: Piece) -> dict[str, Any]:
        from captune.inference.job import caption_source

        job = self.job
        with tempfile.TemporaryDirectory(prefix="captune-") as folder, counting() as left_out:
            kept = KeptOutput()
            bad: list[tuple[str, str]] = []
            dataset = piece.load()
            if isinstance(piece, Rows):
                left_out.clear()  # the driver has counted it
            try:
                report = caption_source(
                    self.captioner,
                    dataset,
                    kept,
                    batch_size=job.batch_size,
                    window=WINDOW,
                    seed=job.seed,
                    prefix=job.prefix,
                    suffix=job.suffix,
                    progress=False,
                    decoder=self.decoder,
                    **job.generation,
                )
                bad = report.bad
            except SourceError as error:
                if piece.rows is not None or not str(error).endswith("holds no images"):  # an empty shard is no fault
                    raise
            captions = kept.captions
            file = None
            size = 0
            if captions:
                target = Path(folder) / f"part{PARTS[job.format]}"
                images = _InOrder(piece) if job.format == "webdataset" else None
                write_captions(captions, target, images=images, format=job.format)
                file, size = f"parts/{number:06d}{target.suffix}", target.stat().st_size
                self.store.put(target, file)
        ids = b"" if piece.distinct else id_digests([*captions, *(item for item, _ in bad)]).tobytes()
        return {
            "part": number,
            "piece": piece.name,
            "mark": piece.mark,
            "file": file,
            "bytes": size,
            "images": len(captions) + len(bad),
            "captions": len(captions),
            "bad": bad,
            "skipped": left_out,
            "ids": base64.b64encode(ids).decode(),
        }


class _InOrder(Mapping[str, Any]):
    """The images of a piece, undecoded, asked for in the piece's order; read as they are asked for."""

    def __init__(self, piece: Piece) -> None:
        self.rows, self.number = iter(piece.load()), piece.rows

    def __getitem__(self, image_id: str) -> Any:
        for row in self.rows:
            if str(row["image_id"]) == image_id:
                return _stored(row["image"])
        raise KeyError(image_id)

    def __contains__(self, image_id: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return (str(row["image_id"]) for row in self.rows)

    def __len__(self) -> int:
        return self.number or 1


def _stored(image: Any) -> Any:
    """An image that a program draws has no file yet."""
    if not hasattr(image, "save"):
        return image
    file = io.BytesIO()
    image.save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}
