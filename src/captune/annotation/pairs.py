"""Preference pairs out of what people and scorers said: of two captions of an image, the chosen and the rejected one.

| from | chosen | rejected |
|---|---|---|
| a reviewed file, captions.jsonl with captions.jsonl.edits.jsonl | the corrected caption | the former one |
| an arena's votes, .sqlite | the winner | the loser |
| a table of scores, as `captune evaluate --per-image` writes it | the best caption of an image | the worst |
| a file of pairs | as there | as there |

What is said of the same two captions several times is one pair, by majority; where as many say the opposite there is
no pair. Both are counted.

A file of pairs is TRL's conversational preference format for vision models: ``prompt``, ``chosen`` and ``rejected`` are
lists of messages, ``images`` is a list of one image; TRL puts its placeholder before the prompt. In JSON lines an image
is a path: ``load_dataset("json", data_files=FILE).cast_column("images", List(Image()))``. In parquet it is the image
itself, and ``load_dataset("parquet", …)`` decodes it. ``image_id`` stands beside, which TRL ignores.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from captune.annotation.edits import HALF, Reviewed
from captune.data import load_images
from captune.data.captions import EDITS
from captune.data.columns import column, undecoded
from captune.data.images import image_path, read_image
from captune.data.readers import nfc
from captune.errors import AnnotationError, UsageError
from captune.evaluation.preferences import Pair, read_pairs
from captune.evaluation.table import read_rows
from captune.scorers.registry import direction
from captune.utils.files import jsonl_line, replace_file, replacing
from captune.utils.skipped import skip

log = logging.getLogger(__name__)

PROMPT = "Describe this image."
ARENAS = (".sqlite", ".db")


def pairs_of(
    files: Sequence[str | Path], *, by: str | None = None, margin: float = 0, better: str | None = None
) -> list[Pair]:
    """Return the pairs of some files, each once.

    Args:
        files: reviewed caption files, votes of arenas, tables of scores, or files of pairs.
        by: the column that tables of scores are compared by.
        margin: the least difference of two scores that makes a pair.
        better: "higher" or "lower"; default: what the scorer of that name declares.

    Raises:
        AnnotationError: a file of another kind, or no pair in all of them.
        UsageError: `by` decides nothing, as none is a table of scores, or nobody declares which scores are better.
    """
    if better not in (None, "higher", "lower"):
        raise UsageError(f"better is higher or lower, not {better!r}")
    said: Counter[Pair] = Counter()
    tables = 0
    for file in files:
        pairs, scored = _pairs_of(Path(file), by, margin, better)
        said.update(pairs)
        tables += scored
    if by is not None and not tables:
        raise UsageError(
            f"--by {by} compares the captions of a table of scores, and {' and '.join(map(str, files))} holds what "
            "people said: leave --by out, or name a table that was not reviewed"
        )
    kept = []
    for pair, times in said.items():
        opposite = said[Pair(pair.image_id, pair.rejected, pair.chosen)]
        if pair.chosen == pair.rejected:
            skip("pairs of equal captions", f"{pair.image_id}: {pair.chosen}", times)
        elif times > opposite:
            kept.append(pair)
        elif times == opposite and pair.chosen < pair.rejected:
            skip("pairs of which as many say the opposite", pair.image_id)
    if not kept:
        raise AnnotationError(
            f"there is no pair in {', '.join(map(str, files))}: nothing was corrected, won or differs"
        )
    return kept


def _pairs_of(file: Path, by: str | None, margin: float, better: str | None) -> tuple[Iterable[Pair], bool]:
    """The pairs of a file, and whether scores decide them."""
    if file.suffix.lower() in ARENAS:
        return _of_arena(file), False
    if file.with_name(file.name + EDITS).is_file():
        return [Pair(image_id, *texts) for image_id, texts in Reviewed(file).corrections().items()], False
    if file.is_dir():
        raise AnnotationError(
            f"{file} is a folder, of which no pairs are made: captions in it become a file that can be reviewed with "
            f"captune convert {file} captions.jsonl --images SOURCE"
        )
    rows = read_rows(file)
    if rows and {"prompt", "chosen", "rejected"} <= rows[0].keys():
        return read_pairs(file), False
    if by is None:
        raise AnnotationError(
            f"{file} holds no pairs: it was not reviewed ({file.name}{EDITS} is not beside it) and is no arena's file; "
            "of a table of scores say which column decides: --by COLUMN"
        )
    return _of_scores(file, rows, by, margin, better), True


def _of_arena(file: Path) -> Iterator[Pair]:
    from captune.annotation.battles import Battles, counting

    votes = Battles(file, new=False).judgements()
    counted = set(counting(votes))
    for vote in votes:
        if vote.winner != "skip" and vote not in counted:
            skip("votes of models, where people have voted", f"{vote.image_id}: {vote.rater}")
        elif vote.winner not in ("a", "b"):
            skip("votes without a winner", f"{vote.image_id}: {vote.winner}")
        elif vote.caption_a == vote.caption_b:
            skip("votes between equal captions", vote.image_id)
        else:
            texts = (vote.caption_a, vote.caption_b)
            yield Pair(vote.image_id, *(texts if vote.winner == "a" else reversed(texts)))


def _of_scores(
    file: Path, rows: Sequence[Mapping[str, Any]], by: str, margin: float, better: str | None
) -> Iterator[Pair]:
    if not rows or by not in rows[0] or "caption" not in rows[0] or "image_id" not in rows[0]:
        has = ", ".join(rows[0]) if rows else "nothing"
        raise AnnotationError(f"{file} needs the columns image_id, caption and {by}; it has {has}")
    higher = {"higher": True, "lower": False}[better] if better else direction(by)
    if higher is None:
        raise UsageError(f"nobody declares whether more of {by} is better: say --better higher, or lower")
    scored: dict[str, dict[str, float]] = {}
    for number, row in enumerate(rows, start=1):
        image_id, caption, value = nfc(str(row["image_id"])), row["caption"] or "", row[by]
        if value is None:
            skip(f"captions without a score of {by}", image_id)
            continue
        try:
            score = float(value)
        except (TypeError, ValueError):
            raise AnnotationError(f"{file}, row {number}: {by} is {value!r}, which is no number") from None
        if not math.isfinite(score):
            skip(f"captions without a score of {by}", image_id)
            continue
        score = score if higher else -score
        if scored.setdefault(image_id, {}).setdefault(caption, score) != score:
            skip(f"captions that are there again with another {by}", image_id)
    for image_id, captions in scored.items():
        best, worst = max(captions, key=captions.__getitem__), min(captions, key=captions.__getitem__)
        difference = captions[best] - captions[worst]
        if len(captions) < 2:
            skip("images with one caption", image_id)
        elif difference <= 0 or difference < margin:
            skip(f"images whose captions differ by less than {margin:g} in {by}" if margin else
                 f"images whose captions have the same {by}", image_id)  # fmt: skip
        else:
            yield Pair(image_id, best, worst)


# ------------------------------------------------------------------ files of pairs


def write_pairs(
    pairs: Sequence[Pair], path: str | os.PathLike[str], *, images: str | None = None, prompt: str = PROMPT
) -> int:
    """Write pairs as TRL reads them, .jsonl or .parquet by the path, in one step; return how many.

    Args:
        pairs: what is written.
        path: the file.
        images: the source of the images; None: without images, of which TRL then trains on the texts alone.
        prompt: the text beside the image.

    Raises:
        AnnotationError: no pair is of an image of the source.
        UsageError: JSON lines cannot hold the images.
        BadImage: an image that is to be stored cannot be read.
    """
    path = Path(path)
    parquet = path.suffix.lower() == ".parquet"
    found = _images([pair.image_id for pair in pairs], images, "pairs") if images is not None else {}
    kept = []
    for pair in pairs:
        if HALF.search("".join(pair)):
            skip("pairs with half a character, which is no text in UTF-8", ascii(pair.image_id))
        elif images is None or pair.image_id in found:
            kept.append(pair)
    if not parquet and (inside := next((key for key, image in found.items() if image_path(image) is None), None)):
        raise _no_files(str(images), inside)

    def row(pair: Pair) -> dict[str, Any]:
        texts = {
            "prompt": ("user", prompt),
            "chosen": ("assistant", pair.chosen),
            "rejected": ("assistant", pair.rejected),
        }
        made: dict[str, Any] = {"image_id": pair.image_id}
        made |= {name: [{"role": role, "content": text}] for name, (role, text) in texts.items()}
        if images is not None:
            image = found[pair.image_id]
            where = image_path(image)
            made["images"] = (
                [{"bytes": read_image(image, pair.image_id), "path": Path(where).name if where else None}]
                if parquet
                else [os.path.abspath(where or "")]
            )
        return made

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        if parquet:
            _write_parquet(temporary, map(row, kept), images is not None)
        else:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(jsonl_line(row(pair)) for pair in kept)
    return len(kept)


def check_images(images: str | None, path: str | os.PathLike[str]) -> None:
    """Refuse a source without image files for pairs in JSON lines, by its first image, before any pair is read.

    Raises:
        UsageError: as `write_pairs` would, after what pairs are left out was counted.
    """
    if images is None or Path(path).suffix.lower() == ".parquet":
        return
    for row in undecoded(load_images(images, limit=1, decode=False)).select_columns(["image_id", "image"]):
        if image_path(row["image"]) is None:
            raise _no_files(images, row["image_id"])


def _no_files(images: str, image_id: str) -> UsageError:
    return UsageError(
        f"the images of {images}, such as {image_id!r}, are no files that JSON lines could name: write the pairs as "
        ".parquet, which holds the images"
    )


def _images(image_ids: Sequence[str], images: str, what: str) -> dict[str, Any]:
    """{image_id: the image, undecoded} of these; those that the source does not have are counted as `what`."""
    dataset = undecoded(load_images(images, decode=False, references=False))
    rows = {image_id: row for row, image_id in enumerate(column(dataset, "image_id"))}
    unknown = [image_id for image_id in image_ids if image_id not in rows]
    if len(unknown) == len(image_ids):
        raise AnnotationError(
            f"none of the {len(image_ids)} {what} is of an image of {images}: {what} have ids like {unknown[0]!r}, its "
            f"images like {next(iter(rows), '')!r}"
        )
    if unknown:
        skip(f"{what} of images that are not in {images}", unknown[0], len(unknown))
    return {image_id: dataset[rows[image_id]]["image"] for image_id in image_ids if image_id in rows}


def _write_parquet(path: Path, rows: Iterable[dict[str, Any]], images: bool) -> None:
    import pyarrow
    import pyarrow.parquet as parquet
    from datasets import Features, Image, List, Value

    messages = List({"role": Value("string"), "content": Value("string")})
    features = {"image_id": Value("string"), "prompt": messages, "chosen": messages, "rejected": messages}
    schema = Features({**features, **({"images": List(Image())} if images else {})}).arrow_schema
    with parquet.ParquetWriter(path, schema) as writer:
        batch: list[dict[str, Any]] = []
        for row in rows:
            batch.append(row)
            if len(batch) == 100:
                writer.write_table(pyarrow.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(pyarrow.Table.from_pylist(batch, schema))


# ------------------------------------------------------------------ references


def write_references(reviewed: Reviewed, path: str | os.PathLike[str], *, images: str) -> tuple[int, str | None]:
    """Write the accepted and corrected captions as JSON lines of image_id and references, in one step.

    A line names the image's file where all are files. A caption with half a character, which no trainer reads, and one
    of an image that the source does not have are left out and counted.

    Args:
        reviewed: the captions.
        path: the file.
        images: the source of the images.

    Returns:
        (how many were written, the folder that the images are named in; None where they are no files).

    Raises:
        AnnotationError: nothing was accepted or corrected, or none of it is of an image of the source.
    """
    references = {}
    for image_id, text in reviewed.references().items():
        if HALF.search(image_id + text):
            skip("captions with half a character, which is no text in UTF-8", ascii(image_id))
        else:
            references[image_id] = text
    if not references:
        raise AnnotationError(f"no caption of {reviewed.path} is accepted or corrected: review it first")
    found = _images(list(references), images, "captions")
    files = {image_id: os.path.abspath(file) for image_id, image in found.items() if (file := image_path(image))}
    root = os.path.commonpath(map(os.path.dirname, files.values())) if len(files) == len(found) else None
    rows = []
    for image_id in found:
        named = {} if root is None else {"image": os.path.relpath(files[image_id], root)}
        rows.append({**named, "image_id": image_id, "references": [references[image_id]]})
    replace_file(path, "".join(map(jsonl_line, rows)))
    return len(rows), root
