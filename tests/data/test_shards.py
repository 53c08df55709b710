"""Shards named by a pattern in braces, and how many images they hold, known before they are read."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken_images import encode, photo

from captune.data import SourceError, load_images
from captune.data.sources import count_images
from captune.inference.job import caption_source
from captune.utils import progress
from captune.utils.skipped import counting, sentences


def tar(path: Path, keys: list[str], extra: str = "", text: bytes = b"a dog") -> None:
    with tarfile.open(path, "w") as file:
        for key in keys:
            for name, content in ((f"{key}.jpg", encode(photo(8, 8, len(key)), "JPEG")), (f"{key}.txt", text)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
        if extra:
            file.addfile(tarfile.TarInfo(extra))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(12):
        tar(
            tmp_path / f"s-{number:03d}.tar",
            [f"{number}-{i}" for i in range(3)],
            extra="alone.txt" if number == 5 else "",
        )
    return tmp_path


def ids(source: str, **options: Any) -> list[str]:
    return [row["image_id"] for row in load_images(source, decode=False, stream=True, **options)]


def test_braces_name_shards_as_a_shell_does(shards: Path) -> None:
    assert ids(f"{shards}/s-{{009..011}}.tar") == [f"{n}-{i}" for n in (9, 10, 11) for i in range(3)]
    assert ids(f"{shards}/s-00{{3,1}}.tar") == [f"{n}-{i}" for n in (3, 1) for i in range(3)]
    assert ids(f"{shards}/s-0{{0,1}}{{0..1}}.tar?n=7") == [*(f"{n}-{i}" for n in (0, 1) for i in range(3)), "10-0"]
    assert ids(f"{shards}/s-0{{00..1}}.tar") == ids(f"{shards}/s-00{{0..1}}.tar")


def test_captions_of_several_lines_are_one_and_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tar(tmp_path / "s.tar", ["a", "b"], text=b"a dog runs\nthe dog is brown\n")
    for _ in range(2):  # the second time from the cache
        with counting() as counts:
            rows = list(load_images(str(tmp_path / "s.tar"), decode=False))
        assert [row["references"] for row in rows] == [["a dog runs\nthe dog is brown"]] * 2
        (said,) = sentences(counts)
        assert said.startswith("captions of several lines in shards are one each") and ": 2 captions (" in said


def test_a_shuffled_stream_without_ids_is_refused(tmp_path: Path) -> None:
    for number in range(2):
        rows = [{"image": encode(photo(8, 8, number), "PNG"), "caption": str(number)}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{number}.parquet")
    with pytest.raises(SourceError, match=r"no column of ids, and \?seed= shuffles the 2 files of a stream"):
        load_images(f"{tmp_path}?streaming=1&seed=3")
    assert len(ids(f"{tmp_path}?streaming=1&seed=3&id=caption")) == 2
    assert ids(f"{tmp_path}?streaming=1") == ["000000", "000001"]


def test_a_shard_that_is_not_there_is_named(shards: Path) -> None:
    with pytest.raises(SourceError, match=r"there is no .*s-012\.tar"):
        ids(f"{shards}/s-{{010..120}}.tar")
    with pytest.raises(SourceError, match=r"is no range of numbers"):
        ids(f"{shards}/s-{{9..1}}.tar")
    with pytest.raises(SourceError, match="names more than"):
        ids(f"{shards}/s-{{0..99999999}}.tar")


def test_a_name_with_braces_is_a_name(tmp_path: Path) -> None:
    tar(tmp_path / "{a,b}.tar", ["x"])
    assert ids(f"{tmp_path}/{{a,b}}.tar") == ["x"]


def test_images_are_counted_without_being_read(shards: Path, tmp_path: Path) -> None:
    source = f"{shards}/s-{{000..011}}.tar"
    for query in ("", "?n=7", "?skip=30", "?shard=2/5", "?skip=3&n=20&shard=3/3"):
        assert count_images(source + query) == len(ids(source + query))
    assert count_images(source, limit=5) == 5
    rows = [{"bytes": encode(photo(8, 8), "PNG"), "path": None}] * 5
    for name in ("a", "b"):
        pq.write_table(
            pa.table({"image": rows, "image_id": [f"{name}{i}" for i in range(5)]}), tmp_path / f"{name}.parquet"
        )
    assert count_images(f"{tmp_path}/{{a,b}}.parquet") == 10 == len(ids(f"{tmp_path}/{{a,b}}.parquet"))
    assert count_images("storybook:test") is None
    (shards / "s-003.tar").write_bytes(b"no tar" * 200)
    assert count_images(source) is None  # reading says what is wrong, after the shards before it


def test_a_stream_has_a_total(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.001)  # a line in a log for each batch

    class Fake:
        name = prompt = "fake"

        def generate(self, images: list[Any], **_: Any) -> list[str]:
            return ["a dog"] * len(images)

    caption_source(Fake(), f"{shards}/s-{{000..011}}.tar", tmp_path / "caps.jsonl", batch_size=5)
    assert "36/36" in capsys.readouterr().err
