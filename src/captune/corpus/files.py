"""The files of a corpus folder.

    config.json      source, encoders (name and digest), counts, digest of the content, versions; "complete"
    texts.npy        (N, D_text) float32 unit vectors, one per entry
    images.npy       (M, D_image) float32 unit vectors, one per image
    owners.npy       (N,) int64: the row of each entry's image
    entries.jsonl    N lines: image_id, caption
    images.json      M image ids
    skipped.jsonl    the images that were left out: image_id, why
    index-ivf.faiss  the approximate index, if one was built
    shards/          during a build: finished pieces of the source, so that a killed build resumes

Every file is replaced in one step. config.json is marked complete last; an incomplete corpus is never opened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from captune.errors import CorpusError
from captune.utils.files import jsonl_line, lock, refuse_pipes, replace_file, replacing

logger = logging.getLogger(__name__)
FORMAT = 2  # 1: an encoder's digest was that of its weights alone
_FORMATS = (1, 2)
CONFIG = "config.json"
_AGAIN = "build the corpus again: captune corpus build … --overwrite"
SHARDS = "shards"
_ROWS = 8192  # vectors checked at once
OWN = (
    "texts.npy",
    "images.npy",
    "owners.npy",
    "entries.jsonl",
    "images.json",
    "skipped.jsonl",
    "index-ivf.faiss",
    "index-hnsw.faiss",
)


@dataclass
class Shard:
    """A finished piece of the source, `rows` rows of it, in one file.

    An entry names its image by id, because an id may occur again after its image is in an earlier shard.
    """

    rows: int
    images: list[str] = field(default_factory=list)  # ids; image_vectors has a row for each
    entries: list[tuple[str, str]] = field(default_factory=list)  # (image_id, caption); text_vectors has a row for each
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (image_id, why)
    image_vectors: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    text_vectors: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))


def shard_path(folder: Path, number: int) -> Path:
    """Return the file of a shard."""
    return folder / SHARDS / f"{number:06d}.safetensors"


def write_shard(path: Path, shard: Shard) -> None:
    """Write a shard in one step."""
    from safetensors.numpy import save_file

    about = {"rows": shard.rows, "images": shard.images, "entries": shard.entries, "skipped": shard.skipped}
    text = json.dumps(about).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:  # of several workers, two may write one shard: after a lost driver
        vectors = {"images": shard.image_vectors, "texts": shard.text_vectors}
        save_file({**vectors, "about": np.frombuffer(text, dtype=np.uint8)}, temporary)


def read_shard(path: Path) -> Shard | None:
    """Read a shard; None if it is missing or damaged, and is to be made again."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
        about = json.loads(tensors["about"].tobytes())
        shard = Shard(
            about["rows"],
            about["images"],
            [(image_id, caption) for image_id, caption in about["entries"]],
            [(image_id, why) for image_id, why in about["skipped"]],
            tensors["images"],
            tensors["texts"],
        )
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    whole = len(shard.images) == len(shard.image_vectors) and len(shard.entries) == len(shard.text_vectors)
    return shard if whole else None


def merge(folder: Path, count: int) -> dict[str, Any]:
    """Make the corpus' files out of `count` shards, which stay.

    Returns:
        What config.json says about them: entries, images, skipped, digest.

    Raises:
        CorpusError: if there is no entry, or the shards do not fit together.
    """
    texts, images, skipped = (0, 0), (0, 0), 0
    for shard in _shards(folder, count):
        texts = _grown(texts, shard.text_vectors, "text")
        images = _grown(images, shard.image_vectors, "image")
        skipped += len(shard.skipped)
    if not texts[0]:
        raise CorpusError(
            f"nothing to retrieve: no image of the source has a caption and can be read ({skipped} were left out; a "
            "corpus needs a captioned source)"
        )
    digests = [hashlib.sha256() for _ in range(3)]
    ids: dict[str, int] = {}
    owners = np.empty(texts[0], dtype=np.int64)
    with (
        replacing_file(folder / "texts.npy") as texts_file,
        replacing_file(folder / "images.npy") as images_file,
        replacing_file(folder / "entries.jsonl") as entries_file,
        replacing_file(folder / "skipped.jsonl") as skipped_file,
    ):
        text_vectors = np.lib.format.open_memmap(texts_file, "w+", np.float32, texts)
        image_vectors = np.lib.format.open_memmap(images_file, "w+", np.float32, images)
        row = 0
        with (
            entries_file.open("w", encoding="utf-8", newline="\n") as entries,
            skipped_file.open("w", encoding="utf-8", newline="\n") as left_out,
        ):
            for shard in _shards(folder, count):
                first = len(ids)
                ids.update({image_id: first + i for i, image_id in enumerate(shard.images)})
                image_vectors[first : len(ids)] = shard.image_vectors.reshape(-1, images[1])
                text_vectors[row : row + len(shard.entries)] = shard.text_vectors.reshape(-1, texts[1])
                for image_id, caption in shard.entries:
                    if image_id not in ids:
                        raise CorpusError(
                            f"the source changed while {folder} was built: image {image_id!r} is gone; start again "
                            "with --overwrite"
                        )
                    owners[row] = ids[image_id]
                    row += 1
                    line = jsonl_line({"image_id": image_id, "caption": caption})
                    digests[0].update(line.encode())
                    entries.write(line)
                digests[1].update(shard.image_vectors.tobytes())
                digests[2].update(shard.text_vectors.tobytes())
                left_out.writelines(jsonl_line({"image_id": i, "why": why}) for i, why in shard.skipped)
        text_vectors.flush()
        image_vectors.flush()
        del text_vectors, image_vectors
    with replacing_file(folder / "owners.npy") as owners_file, owners_file.open("wb") as file:
        np.save(file, owners, allow_pickle=False)
    replace_file(folder / "images.json", json.dumps(list(ids)) + "\n")
    digest = hashlib.sha256(b"".join(part.digest() for part in digests)).hexdigest()[:12]  # for any size of shards
    return {"entries": texts[0], "images": images[0], "skipped": skipped, "digest": digest}


def _shards(folder: Path, count: int) -> Iterator[Shard]:
    for number in range(count):
        shard = read_shard(shard_path(folder, number))
        if shard is None:
            raise CorpusError(f"{shard_path(folder, number)} cannot be read; run the build again: only it is redone")
        yield shard


def _grown(shape: tuple[int, int], vectors: np.ndarray, kind: str) -> tuple[int, int]:
    if not len(vectors):
        return shape
    if shape[1] not in (0, vectors.shape[1]):
        raise CorpusError(f"the {kind} encoder gives vectors of {shape[1]} and of {vectors.shape[1]} dimensions")
    return shape[0] + len(vectors), vectors.shape[1]


@contextmanager
def only_builder(folder: Path) -> Iterator[None]:
    """Lock a folder against a second build while this lasts.

    Raises:
        CorpusError: if another process builds there.
    """
    refuse_pipes(folder, error=CorpusError)
    with (folder / ".lock").open("wb") as file:
        if not lock(file):
            raise CorpusError(f"{folder}: another process is building here; wait for it to end")
        yield


def clear(folder: Path) -> None:
    """Remove a corpus' files, by their names; config.json last, so that a killed removal can be repeated."""
    shutil.rmtree(folder / SHARDS, ignore_errors=True)
    for name in (*OWN, CONFIG):
        (folder / name).unlink(missing_ok=True)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Replace config.json."""
    replace_file(folder / CONFIG, json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def read_config(folder: Path) -> dict[str, Any] | None:
    """Read config.json; None if the folder holds no corpus, not even an unfinished one.

    Raises:
        CorpusError: if it is not the config of a corpus, or of another format.
    """
    refuse_pipes(folder, error=CorpusError)
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        if not isinstance(config, dict) or "text_encoder" not in config or "image_encoder" not in config:
            raise CorpusError(f"{folder / CONFIG} is not the config of a corpus")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorpusError(f"{folder} is not a corpus: {folder / CONFIG}: {error.strerror}") from error
    except ValueError as error:
        raise CorpusError(f"{folder / CONFIG} cannot be read: {error}") from error
    if config.get("format") not in _FORMATS:
        raise CorpusError(f"{folder} has format {config.get('format')}; this captune reads up to {FORMAT}: {_AGAIN}")
    for slot in ("text_encoder", "image_encoder"):
        if not isinstance(config[slot], dict) or not {"name", "digest"} <= config[slot].keys():
            raise CorpusError(f"{folder / CONFIG} does not say what its {slot} is; {_AGAIN}")
    return config


def complete_config(folder: Path) -> dict[str, Any]:
    """Read the config of a corpus that can be searched.

    Raises:
        CorpusError: if there is no corpus, or it is not finished.
    """
    config = read_config(folder)
    if config is None:
        raise CorpusError(
            f"{folder} is not a corpus; build one: captune corpus build --captions SOURCE --output {folder}"
        )
    if not config.get("complete"):
        raise CorpusError(f"{folder} is not finished; run its `captune corpus build` again, which resumes")
    if lacking := [key for key in ("entries", "images", "digest") if key not in config]:
        raise CorpusError(f"{folder / CONFIG} lacks {', '.join(lacking)}; {_AGAIN}")
    return config


def same_encoder(config: dict[str, Any], slot: str, encoder: Any) -> bool:
    """Return whether an encoder is the one of the build; of format 1, which knew the weights alone, that is logged."""
    made = config[slot]["digest"]
    if config["format"] > 1 or not hasattr(encoder, "weights"):
        return bool(made == encoder.digest)
    if made != encoder.weights:
        return False
    logger.warning(
        "this corpus knows its %s by the weights alone: whether tokenizer and settings are still the same cannot be "
        "seen; a new build knows",
        slot.replace("_", " "),
    )
    return True


def check_whole(folder: Path, owners: np.ndarray, images: int, *vectors: tuple[str, np.ndarray]) -> None:
    """Check that every entry has an image and every vector is finite; one pass over the files.

    Raises:
        CorpusError: names the file and how many of its rows are wrong, and the first.
    """
    wrong = np.flatnonzero((owners < 0) | (owners >= images))
    if len(wrong):
        raise CorpusError(f"{folder / 'owners.npy'}: {len(wrong)} entries have no image, first {wrong[0]}; {_AGAIN}")
    for name, array in vectors:
        bad = [
            start + int(row)
            for start in range(0, len(array), _ROWS)
            if not np.isfinite(array[start : start + _ROWS].sum())
            for row in np.flatnonzero(~np.isfinite(array[start : start + _ROWS]).all(axis=1))
        ]
        if bad:
            raise CorpusError(
                f"{folder / name}: {len(bad)} vectors are not finite, in the rows "
                f"{', '.join(map(str, bad[:3]))}{' ...' if len(bad) > 3 else ''}; {_AGAIN}"
            )


def read_image_ids(folder: Path, count: int) -> list[str]:
    """Return the ids of a corpus' images.

    Raises:
        CorpusError: if the file cannot be read or does not have `count` ids.
    """
    try:
        ids = json.loads((folder / "images.json").read_bytes())
    except (OSError, ValueError) as error:
        raise CorpusError(f"{folder / 'images.json'} cannot be read ({error}); {_AGAIN}") from error
    if not isinstance(ids, list) or len(ids) != count:
        raise CorpusError(f"{folder / 'images.json'} does not have the {count} ids that {CONFIG} says; {_AGAIN}")
    return ids


def open_vectors(folder: Path, name: str, shape: Sequence[int | None], dtype: type) -> np.ndarray:
    """Open a .npy file, memory-mapped, of this shape (None: any size) and type.

    Raises:
        CorpusError: if it cannot be read or is another array.
    """
    try:
        array = np.load(folder / name, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CorpusError(f"{folder / name} cannot be read ({error}); {_AGAIN}") from error
    fits = len(array.shape) == len(shape) and all(b in (None, a) for a, b in zip(array.shape, shape, strict=True))
    if not fits or array.dtype != dtype:
        raise CorpusError(f"{folder / name} holds {array.shape} {array.dtype}, not what {CONFIG} says; {_AGAIN}")
    return array


def replacing_file(path: Path) -> AbstractContextManager[Path]:
    """`replacing` with one fixed temporary name: only one process builds here, and a killed one leaves one file."""
    return replacing(path, name=f".{path.name}.tmp")
