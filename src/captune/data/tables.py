"""What the `datasets` library reads (names on the hub, parquet, webdataset shards, saved datasets), in our columns."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
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

from captune.data.images import IMAGE_SUFFIXES
from captune.data.readers import ID_KEYS, IMAGE_KEYS, REFERENCE_KEYS, as_references, first_key
from captune.errors import SourceError

logger = logging.getLogger(__name__)

SUFFIX_COLUMNS = tuple(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))  # webdataset names columns after suffixes
FEATURES = Features({"image": Image(decode=False), "image_id": Value("string"), "references": List(Value("string"))})
KEPT = ("scene", "alt_text")


def load_saved(path: Path, split: str | None) -> Dataset:
    """Load a folder that `Dataset.save_to_disk` wrote."""
    return _one_split(datasets.load_from_disk(str(path)), str(path), split)


def load_shards(files: list[str], stream: bool) -> Dataset | IterableDataset:
    """Load local parquet or webdataset files.

    Raises:
        SourceError: if they cannot be read.
    """
    kind = "webdataset" if files[0].endswith(".tar") else "parquet"
    try:
        return datasets.load_dataset(kind, data_files={"train": files}, split="train", streaming=stream)
    except Exception as error:  # datasets wraps whatever went wrong in the files in several classes of its own
        cause = error.__cause__ or error
        more = " …" if len(files) > 1 else ""
        raise SourceError(f"{files[0]}{more} cannot be read as {kind}: {_line(cause)}") from error


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
            f"{name!r} is neither a file nor a folder, and as a dataset it cannot be loaded ({_line(error)}). "
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


def _line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return text.rstrip(".") or type(error).__name__


def normalise(
    dataset: Any, name: str, options: Mapping[str, str], folder: Path, with_images: bool
) -> Dataset | IterableDataset:
    """Return the dataset with columns image ({"bytes", "path"}), image_id and references.

    Rows with the same id (one row per caption) become one row with all their references.

    Args:
        dataset: as loaded.
        name: its name in errors.
        options: `image`, `caption` and `id` name columns that are not found by themselves.
        folder: what relative image paths are relative to.
        with_images: False leaves the images out.

    Raises:
        SourceError: if a column is missing or of an unknown type.
    """
    columns = dataset.column_names or list(next(iter(dataset)))
    for key in ("image", "caption", "id"):
        if key in options and options[key] not in columns:
            raise SourceError(f"{name} has no column {options[key]!r}; it has {', '.join(columns)}")
    images = _image_columns(dataset, columns, options)
    if with_images and not images:
        raise SourceError(f"{name} has no column of images; it has {', '.join(columns)}; name one with ?image=COLUMN")
    id_column = options.get("id") or first_key(set(columns) - set(images), ID_KEYS)
    caption = options.get("caption") or first_key(columns, REFERENCE_KEYS)
    if isinstance(dataset, IterableDataset):
        return _normalise_stream(dataset, images, id_column, caption, folder, name)
    references = [as_references(value) for value in dataset[caption]] if caption else [[] for _ in range(len(dataset))]
    ids = [str(value) for value in dataset[id_column]] if id_column else [f"{i:06d}" for i in range(len(dataset))]
    ids, references, first = _group(ids, references, name, id_column)
    keep = [column for column in columns if column in KEPT]
    result = dataset.select_columns([*(images if with_images else []), *keep])
    if with_images:
        result = _one_image_column(result, images, folder, name)
    if len(first) < len(dataset):
        result = result.select(first).flatten_indices()
    if not result.column_names:
        return Dataset.from_dict({"image_id": ids, "references": references})
    result = result.add_column("image_id", ids)
    result = result.add_column("references", references, feature=List(Value("string")))
    wanted = ("image", "image_id", "references", *keep)
    return result.select_columns([column for column in wanted if column in result.features])


def _image_columns(dataset: Any, columns: list[str], options: Mapping[str, str]) -> list[str]:
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


def _one_image_column(dataset: Dataset, images: list[str], folder: Path, name: str) -> Dataset:
    feature = dataset.features[images[0]]
    if len(images) == 1 and (isinstance(feature, Image) or feature == Value("binary") or isinstance(feature, dict)):
        if isinstance(feature, dict) and set(feature) != {"bytes", "path"}:
            raise SourceError(f"{name}: the column {images[0]!r} holds {', '.join(feature)}, not bytes and path")
        dataset = dataset.cast_column(images[0], Image(decode=False))
        return dataset if images[0] == "image" else dataset.rename_column(images[0], "image")
    if len(images) == 1 and feature in (Value("string"), Value("large_string")):
        pairs: list[Any] = [_pair(value, folder, name) for value in dataset[images[0]]]
        column = Dataset.from_dict({"image": pairs}, features=Features({"image": Image(decode=False)}))
        others = [key for key in dataset.column_names if key not in images]
        return concatenate_datasets([column, dataset.select_columns(others)], axis=1) if others else column
    if len(images) > 1:  # shards with more than one kind of image
        for column in images:
            dataset = dataset.cast_column(column, Image(decode=False))
        rest = {key: feature for key, feature in dataset.features.items() if key not in images}
        features = Features({**rest, "image": Image(decode=False)})
        return dataset.map(_first_image, fn_kwargs={"columns": images}, remove_columns=images, features=features)
    raise SourceError(f"{name}: the column {images[0]!r} is {feature}, not images; name another with ?image=COLUMN")


def _pair(value: Any, folder: Path, name: str) -> dict[str, Any] | None:
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if isinstance(value, str):
        if value.startswith(("http://", "https://")):
            raise SourceError(
                f"{name} holds addresses of images, not images; fetch them first, for instance with img2dataset "
                "(--output_format webdataset), and use the shards as the source"
            )
        return {"bytes": None, "path": str(folder / value)}
    return value


def _first_image(row: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    return {"image": next((row[column] for column in columns if row[column] is not None), None)}


def _normalise_stream(
    dataset: IterableDataset, images: list[str], id_column: str | None, caption: str | None, folder: Path, name: str
) -> IterableDataset:
    features = dataset.features
    for column in images:
        if features is not None and isinstance(features[column], Image):
            dataset = dataset.cast_column(column, Image(decode=False))

    def convert(row: dict[str, Any], index: int) -> dict[str, Any]:
        image_id = str(row[id_column]) if id_column else f"{index:06d}"
        image = _pair(_first_image(row, images)["image"], folder, name) or {"bytes": None, "path": None}
        return {
            "image": image if image["path"] else {**image, "path": image_id},  # a name for errors
            "image_id": image_id,
            "references": as_references(row[caption]) if caption else [],
        }

    columns = list(dataset.column_names or [])
    return dataset.map(
        convert,
        with_indices=True,
        remove_columns=columns,
        features=FEATURES,
    )
