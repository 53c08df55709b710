"""What the `datasets` library reads (names on the hub, parquet, webdataset shards, saved datasets), in our columns."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    List,
    Value,
    concatenate_datasets,
)
from datasets.exceptions import DatasetsError
from datasets.table import CastError

from captune.data.images import IMAGE_SUFFIXES
from captune.data.paths import ImageFolder
from captune.data.readers import (
    ID_KEYS,
    IMAGE_KEYS,
    KEPT,
    REFERENCE_KEYS,
    Blanks,
    as_id,
    first_key,
    nfc,
    references_at,
    same_values,
    two_ids,
)
from captune.errors import CaptuneError, SourceError

logger = logging.getLogger(__name__)

SUFFIX_COLUMNS = tuple(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))  # webdataset names columns after suffixes
FEATURES = Features({"image": Image(decode=False), "image_id": Value("string"), "references": List(Value("string"))})


def load_saved(path: Path, split: str | None) -> Dataset:
    """Load a folder that `Dataset.save_to_disk` wrote."""
    return _one_split(datasets.load_from_disk(str(path)), str(path), split)


def load_parquet(files: list[str], stream: bool) -> Dataset | IterableDataset:
    """Load local parquet files; those without rows are left out.

    Raises:
        SourceError: if they cannot be read, have no rows, or two columns of one name.
    """
    whole = [name for name in files if count_rows(name)]
    if not whole:
        raise SourceError(f"{files[0]} holds no rows")
    files = whole
    patterns = [glob.escape(name) for name in files]  # `datasets` takes every path for a pattern
    try:
        return datasets.load_dataset("parquet", data_files={"train": patterns}, split="train", streaming=stream)
    except Exception as error:  # datasets wraps whatever went wrong in the files in several classes of its own
        cause = error.__cause__ or error
        more = " …" if len(files) > 1 else ""
        raise SourceError(f"{files[0]}{more} cannot be read as parquet: {reason(cause)}") from error


def count_rows(name: str, options: Mapping[str, Any] | None = None) -> int:
    """Return the number of rows of a parquet file, from its footer; its options do not change it."""
    try:
        footer = pq.read_metadata(name)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{name} cannot be read as parquet: {reason(error)}") from error
    names = Counter(footer.schema.to_arrow_schema().names)
    if twice := [column for column, count in names.items() if count > 1]:
        raise SourceError(f"{name} has the column {twice[0]!r} {names[twice[0]]} times; give each its own name")
    return int(footer.num_rows)


def guarded(dataset: IterableDataset, name: str) -> IterableDataset:
    """Return a stream whose errors in reading are a SourceError that names the source."""

    def rows() -> Iterator[dict[str, Any]]:
        try:
            yield from dataset
        except CaptuneError:
            raise
        except (pa.ArrowException, OSError, DatasetsError, CastError) as error:
            raise SourceError(f"{name} cannot be read: {reason(error.__cause__ or error)}") from error

    return IterableDataset.from_generator(rows, features=dataset.features)


def load_hub(name: str, config: str | None, split: str | None, streaming: bool) -> Dataset | IterableDataset:
    """Load a dataset by its name on the hub.

    Raises:
        SourceError: if it cannot be loaded; says what to download where the hub is out of reach.
    """
    try:
        loaded = datasets.load_dataset(name, config, split=split, streaming=streaming)
    except Exception as error:  # offline, not found, gated, scripts, bad configs: datasets has a class for each
        folder = name.rsplit("/", 1)[-1]
        raise SourceError(
            f"{name!r} is neither a file nor a folder, and as a dataset it cannot be loaded ({reason(error)}). "
            f"With a network: `hf download {name} --repo-type dataset --local-dir {folder}`, then pass ./{folder}"
        ) from error
    return _one_split(loaded, name, split)


def _one_split(loaded: Any, name: str, split: str | None) -> Any:
    if not isinstance(loaded, DatasetDict | IterableDatasetDict):
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        example = next(iter(loaded))
        raise SourceError(f"{name} has the splits {', '.join(loaded)}; choose one: {name}?split={example}")
    return loaded[split]


def reason(error: BaseException) -> str:
    """Return why data could not be read, in a line."""
    if isinstance(error, CastError):
        return "its files do not have the same columns, or not of the same types"
    text = str(error).strip().split("\n")[0]
    return text.rstrip(".") or type(error).__name__


def normalise(
    dataset: Any,
    name: str,
    options: Mapping[str, str],
    folder: Path,
    with_images: bool,
    data: Path | None = None,
    shuffled: bool = False,
) -> Dataset | IterableDataset:
    """Return the dataset with columns image ({"bytes", "path"}), image_id and references.

    Rows with the same id (one row per caption) become one row with all their references.

    Args:
        dataset: as loaded.
        name: its name in errors.
        options: `image`, `caption` and `id` name columns that are not found by themselves.
        folder: what relative image paths are relative to.
        with_images: False leaves the images out.
        data: the folder that the tables are in, if it is another one; paths may lead there too.
        shuffled: a stream's files will be shuffled, so that the place of a row names no image.

    Raises:
        SourceError: if an id is missing, two images have one, a path leads out of the folder, or a column is missing or
            of an unknown type.
    """
    columns = dataset.column_names or list(next(iter(dataset)))
    for key in ("image", "caption", "id"):
        if key in options and options[key] not in columns:
            raise SourceError(f"{name} has no column {options[key]!r}; it has {', '.join(columns)}")
    images = image_columns(dataset, columns, options)
    if with_images and not images:
        raise SourceError(f"{name} has no column of images; it has {', '.join(columns)}; name one with ?image=COLUMN")
    id_column = options.get("id") or first_key(set(columns) - set(images), ID_KEYS)
    caption = options.get("caption") or first_key(columns, REFERENCE_KEYS)
    where = ImageFolder(name, folder, folder if data is None else data)
    if isinstance(dataset, IterableDataset):
        if shuffled and id_column is None and dataset.num_shards > 1:
            raise SourceError(
                f"{name} has no column of ids, and ?seed= shuffles the {dataset.num_shards} files of a stream, so that "
                "the place of a row names no image: name a column with ?id=, or leave ?seed= or ?streaming=1 out"
            )
        return _normalise_stream(dataset, images, id_column, caption, where, name)
    references = _references(_values(dataset, caption), name) if caption else [[] for _ in range(len(dataset))]
    ids = _ids(_values(dataset, id_column), name, id_column) if id_column else [f"{i:06d}" for i in range(len(dataset))]
    if images and len(set(ids)) < len(ids):
        _same_images(dataset, images, ids, name, id_column)
    if images and id_column == "id" and "id" not in options and dataset.features[images[0]] in _PATHS:
        _one_id_each(dataset, images[0], ids, name)
    rows_ids = ids
    ids, references, first = _group(ids, references, name, id_column)
    keep = [column for column in columns if column in KEPT]
    result = dataset.select_columns([*(images if with_images else []), *keep])
    if with_images:
        result = _one_image_column(result, images, where, name)
    if len(first) < len(dataset):
        kept = {column: _one_value(_values(dataset, column), rows_ids, f"{name}: {column}") for column in keep}
        result = result.select(first).flatten_indices()
        for column, values in kept.items():
            result = result.remove_columns(column).add_column(column, values, feature=dataset.features[column])
    if not result.column_names:
        return Dataset.from_dict({"image_id": ids, "references": references})
    result = result.add_column("image_id", ids)
    result = result.add_column("references", references, feature=List(Value("string")))
    wanted = ("image", "image_id", "references", *keep)
    return result.select_columns([column for column in wanted if column in result.features])


def image_columns(dataset: Any, columns: list[str], options: Mapping[str, str]) -> list[str]:
    """The columns that hold images: as named, all of webdataset's suffix columns, or the one that is an image."""
    if "image" in options:
        return [options["image"]]
    if suffixes := [column for column in columns if column in SUFFIX_COLUMNS]:
        return suffixes
    features = dataset.features or {}
    typed = [column for column in columns if isinstance(features.get(column), Image)]
    if typed:
        return [first_key(typed, IMAGE_KEYS) or typed[0]]
    named = first_key(columns, IMAGE_KEYS)
    return [named] if named else []


def _group(
    ids: list[str], references: list[list[str]], name: str, id_column: str | None
) -> tuple[list[str], list[list[str]], list[int]]:
    """Ids once each, their references together, and the number of each id's first row."""
    first: dict[str, int] = {}
    merged: dict[str, list[str]] = {}
    for row, (image_id, texts) in enumerate(zip(ids, references, strict=True)):
        first.setdefault(image_id, row)
        merged.setdefault(image_id, []).extend(texts)
    if len(first) < len(ids):
        if id_column == "__key__":
            raise SourceError(f"{name}: {len(ids) - len(first)} samples share their key with another one; rename them")
        logger.info("%s: %d rows are %d images (column %s)", name, len(ids), len(first), id_column)
    return list(first), list(merged.values()), list(first.values())


def _values(dataset: Dataset, name: str) -> list[Any]:
    """A column as Python values."""
    feature = dataset.features[name]
    if isinstance(feature, Value) or (isinstance(feature, List) and isinstance(feature.feature, Value)):
        return list(dataset.select_columns([name]).with_format("arrow")[:][name].to_pylist())  # ten times as fast
    return list(dataset[name])


def _ids(values: list[Any], name: str, id_column: str) -> list[str]:
    return [
        nfc(value) if isinstance(value, str) and value.strip() else as_id(value, f"{name}, row {row} ({id_column})")
        for row, value in enumerate(values, start=1)
    ]


def _references(values: list[Any], name: str) -> list[list[str]]:
    blanks, made = Blanks(), []
    for row, value in enumerate(values, start=1):
        references = references_at(value, f"{name}, row {row}")
        if blanks.remove(references):
            blanks.note(f"{name}, row {row}")
        made.append(references)
    blanks.say()
    return made


def _one_value(values: list[Any], ids: list[str], what: str) -> list[Any]:
    """The value of each id once, the first that is not None; two that differ are refused."""
    found: dict[str, tuple[int, Any]] = {}
    for row, (image_id, value) in enumerate(zip(ids, values, strict=True), start=1):
        number, known = found.setdefault(image_id, (row, value))
        if not same_values(known, value):
            raise SourceError(
                f"{what} of {image_id!r} differ in rows {number} and {row}; put all of an image's into one"
            )
        if known is None:
            found[image_id] = row, value
    return [value for _, value in found.values()]


def _same_images(dataset: Dataset, images: list[str], ids: list[str], name: str, id_column: str | None) -> None:
    """Refuse an id that stands beside two different images."""
    repeated = {image_id for image_id, count in Counter(ids).items() if count > 1}
    first: dict[str, tuple[int, Any]] = {}
    columns = _undecoded(dataset.select_columns(images), images).with_format("arrow")
    for start in range(0, len(dataset), 100):
        batch = columns[start : start + 100]
        for row in range(batch.num_rows):
            image_id = ids[start + row]
            if image_id not in repeated:
                continue
            values = [_identity(batch[column][row].as_py()) for column in images]
            number, other = first.setdefault(image_id, (start + row + 1, values))
            if other != values:
                raise SourceError(
                    f"{name}: rows {number} and {start + row + 1} have the id {image_id!r} ({id_column}) and different "
                    "images; give each image its own id"
                )


def _one_id_each(dataset: Dataset, column: str, ids: list[str], name: str) -> None:
    """Refuse a file that stands beside two ids of the column "id", which may number captions."""
    first: dict[str, int] = {}
    for row, file in enumerate(_values(dataset, column)):
        if file is not None and ids[other := first.setdefault(file, row)] != ids[row]:
            raise two_ids(
                f"{name}: row {other + 1} and row {row + 1}", file, ids[other], ids[row], file=f"?id={column}",
                own="say so: ?id=id",
            )  # fmt: skip


def _identity(value: Any) -> Any:
    data = value.get("bytes") if isinstance(value, dict) else value
    return sha256(data).digest() if isinstance(data, bytes) else value


def _undecoded(dataset: Dataset, images: list[str]) -> Dataset:
    """Return the dataset with its image columns as {"bytes", "path"}."""
    for column in images:
        if isinstance(dataset.features[column], Image):
            dataset = dataset.cast_column(column, Image(decode=False))
    return dataset


def _one_image_column(dataset: Dataset, images: list[str], where: ImageFolder, name: str) -> Dataset:
    feature = dataset.features[images[0]]
    if len(images) == 1:
        check_image_column(feature, images[0], name)
    if len(images) == 1 and feature not in _PATHS:
        dataset = dataset.cast_column(images[0], Image(decode=False))
        dataset = dataset if images[0] == "image" else dataset.rename_column(images[0], "image")
        return _with_pairs(dataset, where) if _has_paths(dataset) else dataset
    if len(images) == 1:
        pairs: list[Any] = [as_pair(value, where) for value in _values(dataset, images[0])]
        column = Dataset.from_dict({"image": pairs}, features=Features({"image": Image(decode=False)}))
        others = [key for key in dataset.column_names if key not in images]
        return concatenate_datasets([column, dataset.select_columns(others)], axis=1) if others else column
    for column in images:  # shards with more than one kind of image
        dataset = dataset.cast_column(column, Image(decode=False))
    rest = {key: feature for key, feature in dataset.features.items() if key not in images}
    features = Features({**rest, "image": Image(decode=False)})
    return dataset.map(first_image, fn_kwargs={"columns": images}, remove_columns=images, features=features)


_PATHS = (Value("string"), Value("large_string"))
_BYTES = (Value("binary"), Value("large_binary"))


def check_image_column(feature: Any, column: str, name: str) -> None:
    """Refuse a column that does not hold images, as bytes, as paths, or as both."""
    if isinstance(feature, dict) and set(feature) != {"bytes", "path"}:
        raise SourceError(f"{name}: the column {column!r} holds {', '.join(feature)}, not bytes and path")
    if not isinstance(feature, Image | dict) and feature not in (*_PATHS, *_BYTES):
        raise SourceError(f"{name}: the column {column!r} is {feature}, not images; name another with ?image=COLUMN")


def _has_paths(dataset: Dataset) -> bool:
    """Whether an image of the column `image` is a path alone, without bytes."""
    columns = dataset.select_columns(["image"]).with_format("arrow")
    for start in range(0, len(dataset), 10_000):
        column = columns[start : start + 10_000]["image"]
        data, path = pc.struct_field(column, "bytes"), pc.struct_field(column, "path")
        if pc.any(pc.and_(pc.is_null(data), pc.is_valid(path))).as_py():
            return True
    return False


def _with_pairs(dataset: Dataset, where: ImageFolder) -> Dataset:
    return dataset.map(
        lambda row: {"image": as_pair(row["image"], where)}, features=dataset.features, load_from_cache_file=False
    )


def as_pair(value: Any, where: ImageFolder) -> dict[str, Any] | None:
    """An image as {"bytes", "path"}; a path alone has to lead into the data's folder."""
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if isinstance(value, str):
        return {"bytes": None, "path": where.path(value)}
    if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
        return {"bytes": None, "path": where.path(value["path"])}
    return value


def first_image(row: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    """Return the first image of a row that is there, of several columns."""
    return {"image": next((row[column] for column in columns if row[column] is not None), None)}


def _normalise_stream(
    dataset: IterableDataset,
    images: list[str],
    id_column: str | None,
    caption: str | None,
    where: ImageFolder,
    name: str,
) -> IterableDataset:
    features, blanks = dataset.features, Blanks()
    if features is not None and len(images) == 1:
        check_image_column(features[images[0]], images[0], name)
    for column in images:
        if features is not None and isinstance(features[column], Image):
            dataset = dataset.cast_column(column, Image(decode=False))

    def convert(row: dict[str, Any], index: int) -> dict[str, Any]:
        image_id = nfc(as_id(row[id_column], f"{name}, row {index + 1} ({id_column})")) if id_column else f"{index:06d}"
        image = as_pair(first_image(row, images)["image"], where)
        if image is not None and not image["path"]:
            image = None if image["bytes"] is None else {**image, "path": image_id}  # a name for errors
        references = references_at(row[caption], f"{name}, row {index + 1}") if caption else []
        if blanks.remove(references):
            blanks.note(f"{name}, row {index + 1}")
            blanks.say()
        return {
            "image": image,
            "image_id": image_id,
            "references": references,
        }

    columns = list(dataset.column_names or [])
    return dataset.map(
        convert,
        with_indices=True,
        remove_columns=columns,
        features=FEATURES,
    )
