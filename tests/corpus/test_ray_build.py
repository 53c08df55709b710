"""A corpus whose shards several workers make is that of one process, also where images stand in several rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import picture

from captune.corpus import Corpus, files, ray_build
from captune.errors import CorpusError

ENCODERS = {"text_encoder": "storybook-clip", "image_encoder": "storybook-clip", "device": "cpu"}
SMALL: dict[str, Any] = {**ENCODERS, "shard_size": 8, "batch_size": 4, "progress": False}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Instead of Ray: the workers' code in this process, the last item first; receives the shards made."""
    made: list[int] = []

    def answers(begin: Callable[[Any], Any], job: Any, items: Sequence[Any], **_: Any) -> Iterator[Any]:
        work = begin(job)
        for item in reversed(items):
            made.append(item[0])
            yield work(item)

    monkeypatch.setattr(ray_build, "answers", answers)
    monkeypatch.setattr(ray_build, "cluster", lambda *_: contextlib.nullcontext())
    return made


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A row for each caption, 5 of each image, so that images stand in two shards; one image is damaged in one row."""
    folder = tmp_path_factory.mktemp("table")
    rows = []
    for number in range(7):
        picture(number, (24, 24)).save(folder / "one.png")
        data = (folder / "one.png").read_bytes()
        for caption in range(5):
            broken = number == 3 and caption == 0  # the first row of an image whose others are in the next shard
            rows.append(
                {"image": {"bytes": b"broken" if broken else data, "path": None}, "image_id": f"i{number}",
                 "caption": "" if (number, caption) == (1, 0) else f"a {caption} of {number}"}
            )  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows[:20]), folder / "a.parquet")
    pq.write_table(pa.Table.from_pylist(rows[20:]), folder / "b.parquet")
    return f"{folder}/*.parquet"


def content(folder: Path) -> dict[str, bytes]:
    names = ("texts.npy", "images.npy", "owners.npy", "entries.jsonl", "images.json", "skipped.jsonl")
    return {name: (folder / name).read_bytes() for name in names}


def test_the_corpus_is_that_of_one_process(here: list[int], table: str, tmp_path: Path) -> None:
    one = Corpus.build(table, tmp_path / "one", **SMALL)
    several = Corpus.build(table, tmp_path / "several", engine="ray", **SMALL)
    assert here == [4, 3, 2, 1, 0]
    assert several.digest == one.digest
    assert content(tmp_path / "several") == content(tmp_path / "one")
    config = {key: value for key, value in several.config.items() if key != "versions"}
    assert config == {key: value for key, value in one.config.items() if key != "versions"}


def test_only_missing_shards_are_made(
    here: list[int], table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as stopped:
        stopped.setattr(files, "merge", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Corpus.build(table, tmp_path / "out", engine="ray", **SMALL)
    files.shard_path(tmp_path / "out", 2).unlink()
    files.shard_path(tmp_path / "out", 4).write_bytes(b"damaged")
    del here[:]
    corpus = Corpus.build(table, tmp_path / "out", engine="ray", **SMALL)
    assert here == [2]
    assert corpus.digest == Corpus.build(table, tmp_path / "one", **SMALL).digest


def test_objects_and_shards_are_refused(here: list[int], table: str, tmp_path: Path) -> None:
    from captune.models.encoders import load_image_encoder

    with pytest.raises(CorpusError, match="by their names"):
        encoder = load_image_encoder("storybook-clip", "cpu")
        Corpus.build(table, tmp_path / "out", engine="ray", **{**SMALL, "image_encoder": encoder})
