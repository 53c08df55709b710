"""What the `datasets` library reads ends in the same columns, whatever they were called."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pytest
from broken_images import encode, photo
from source_files import NAMES, TRUTH, content, images

from captune.data import load_images, load_references
from captune.data.pieces import pieces_of
from captune.data.shards import shards_of
from captune.errors import BadImage, SourceError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def table(**more: Any) -> datasets.Dataset:
    count = len(next(iter(more.values())))
    columns = {"image": [{"bytes": encode(photo(seed=i), "PNG"), "path": None} for i in range(count)], **more}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def test_parquet_with_images_inside(tmp_path: Path) -> None:
    table(image_id=[7, 8, 9], captions=list(TRUTH.values())).to_parquet(tmp_path / "a.parquet")
    expected = dict(zip(("7", "8", "9"), TRUTH.values(), strict=True))
    assert content(tmp_path / "a.parquet") == expected
    assert content(tmp_path) == expected  # a folder of parquet files
    assert content(tmp_path / "*.parquet") == expected
    assert load_references(str(tmp_path)) == expected
    assert list(content(f"{tmp_path}?n=2&seed=4")) == list(content(f"{tmp_path}?seed=4"))[:2]


def test_splits_that_lie_in_one_folder_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, count in (("train", 3), ("test", 2)):
        rows = table(image_id=[f"{split}{i}" for i in range(count)], captions=[["a"]] * count)
        rows.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    for source in (str(tmp_path), f"{tmp_path}?split=test"):
        with pytest.raises(SourceError, match=r"several splits, name the files of one: .*data/test-\*"):
            load_images(source)
    assert list(content(tmp_path / "data" / "test-*.parquet")) == ["test0", "test1"]
    (tmp_path / "data" / "train-00000-of-00001.parquet").unlink()
    assert list(content(tmp_path)) == ["test0", "test1"]
    with pytest.raises(SourceError, match=r"has no splits; leave \?split=test out; name its files: .*test-\*\.parquet"):
        load_images(f"{tmp_path}?split=test")


def test_an_image_that_is_missing_is_not_looked_for_beside_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.png").write_bytes(encode(photo(), "PNG"))
    pairs = [None, {"bytes": encode(photo(), "PNG"), "path": None}]
    rows = datasets.Dataset.from_dict({"image": pairs, "image_id": ["here.png", "b"]})
    rows.cast_column("image", datasets.Image(decode=False)).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BadImage, match=r"here\.png: the source holds no image here"):
        next(iter(load_images(f"{tmp_path / 'a.parquet'}?streaming=1")))
    first, second = next(iter(pieces_of(str(tmp_path / "a.parquet"), 10))).read()
    assert first["image"] == {"bytes": None, "path": None} and second["image"]["path"] == "b"


def test_rows_of_an_image_say_the_same_of_it(tmp_path: Path) -> None:
    pixels = [photo()] * 3
    for objects in ([["dog"]] * 3, [None, ["dog"], ["dog"]], [["dog"], ["dog"], ["cat", "dog"]]):
        rows = table(image=pixels, image_id=["x", "y", "x"], caption=["a", "b", "c"], objects=objects)
        rows.to_parquet(tmp_path / "a.parquet")
        if objects[2] == ["dog"]:
            assert load_images(str(tmp_path / "a.parquet"))["objects"][:] == [["dog"], ["dog"]]
        else:
            with pytest.raises(SourceError, match="objects of 'x' differ in rows 1 and 3"):
                load_images(str(tmp_path / "a.parquet"))


def test_columns_are_named_in_the_source(tmp_path: Path) -> None:
    table(key=list("abc"), comment_de=["ein Hund", "zwei", "drei"]).to_parquet(tmp_path / "a.parquet")
    source = f"{tmp_path / 'a.parquet'}?id=key&caption=comment_de"
    assert content(source) == {"a": ["ein Hund"], "b": ["zwei"], "c": ["drei"]}
    with pytest.raises(SourceError, match="no column 'title'; it has image, key, comment_de"):
        load_images(f"{tmp_path / 'a.parquet'}?caption=title")


def test_a_broken_image_in_a_table_fails_alone(tmp_path: Path) -> None:
    pairs = [{"bytes": encode(photo(), "PNG"), "path": None}, {"bytes": b"junk", "path": None}]
    rows = datasets.Dataset.from_dict({"image": pairs}).cast_column("image", datasets.Image(decode=False))
    rows.to_parquet(tmp_path / "a.parquet")
    dataset = load_images(str(tmp_path / "a.parquet"))
    assert dataset[0]["image"].size == photo().size
    with pytest.raises(BadImage, match="4 bytes without a name: is not an image"):
        dataset[1]


def test_one_row_per_caption_becomes_one_row_per_image(tmp_path: Path) -> None:
    rows = table(cocoid=[1, 2], caption=["a", "c"])
    datasets.concatenate_datasets([rows, table(cocoid=[1, 3], caption=["b", "d"])]).select([0, 2, 1]).to_parquet(
        tmp_path / "a.parquet"
    )
    dataset = load_images(str(tmp_path / "a.parquet"))
    assert {row["image_id"]: row["references"] for row in dataset} == {"1": ["a", "b"], "2": ["c"]}
    assert dataset[1]["image"].tobytes() == photo(seed=1).tobytes()


def test_parquet_with_paths_and_with_addresses(tmp_path: Path) -> None:
    images(tmp_path)
    datasets.Dataset.from_dict({"image": NAMES, "text": ["x", "y", "z"]}).to_parquet(tmp_path / "p.parquet")
    assert content(tmp_path / "p.parquet") == {"000000": ["x"], "000001": ["y"], "000002": ["z"]}
    datasets.Dataset.from_dict({"image": ["https://x.org/a.jpg"]}).to_parquet(tmp_path / "u.parquet")
    with pytest.raises(SourceError, match="addresses of images"):
        load_images(str(tmp_path / "u.parquet"))
    datasets.Dataset.from_dict({"words": ["a"]}).to_parquet(tmp_path / "w.parquet")
    with pytest.raises(SourceError, match="no column of images; it has words"):
        load_images(str(tmp_path / "w.parquet"))


def test_paths_in_the_tables_of_a_folder_lead_from_it(tmp_path: Path) -> None:
    images(tmp_path / "data")
    (tmp_path / "data" / "part-0").mkdir()
    datasets.Dataset.from_dict({"image": NAMES, "text": ["x", "y", "z"]}).to_parquet(tmp_path / "data/part-0/p.parquet")
    for name in NAMES:
        (tmp_path / "data" / name).rename((tmp_path / "data" / name).with_suffix(".bin"))  # a folder of images is none
    names = [str(Path(name).with_suffix(".bin")) for name in NAMES]
    datasets.Dataset.from_dict({"image": names, "text": ["x", "y", "z"]}).to_parquet(tmp_path / "data/part-0/p.parquet")
    for source in (tmp_path / "data", tmp_path / "data/*/p.parquet"):
        (piece,) = pieces_of(str(source), 8)
        paths = [row["image"]["path"] for row in piece.read()]
        assert paths == [row["image"]["path"] for row in load_images(str(source), decode=False)]
        assert all(Path(path).is_file() for path in paths)


def test_a_folder_of_images_with_a_table_in_it_is_one_source_to_all(tmp_path: Path) -> None:
    images(tmp_path)
    table(image_id=["x"], caption=["a dog"]).to_parquet(tmp_path / "extra.parquet")
    assert not shards_of(str(tmp_path)) and shards_of(str(tmp_path / "extra.parquet"))
    found = [row["image_id"] for piece in pieces_of(str(tmp_path), 2) for row in piece.read()]
    assert found == [row["image_id"] for row in load_images(str(tmp_path))] == sorted(NAMES)


def test_a_seed_draws_the_same_rows_for_captions_and_for_references(tmp_path: Path) -> None:
    count = 12_000
    names = {"image": ["a.png"] * count, "image_id": list(range(count)), "caption": ["a dog"] * count}
    datasets.Dataset.from_dict(names).to_parquet(tmp_path / "t.parquet")
    source = f"{tmp_path / 't.parquet'}?n=50&seed=1"
    drawn = [row["image_id"] for row in load_images(source, decode=False, stream=True, references=False)]
    assert drawn == list(load_references(source))


def test_saved_datasets_and_their_splits(tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": table(caption=list("abc")), "test": table(caption=list("xyz")).select([0])})
    both.save_to_disk(tmp_path / "saved")
    assert content(f"{tmp_path / 'saved'}?split=test") == {"000000": ["x"]}
    with pytest.raises(SourceError, match=r"has the splits train, test; choose one"):
        load_images(str(tmp_path / "saved"))


@pytest.mark.parametrize("stream", [False, True])
def test_webdataset_shards(tmp_path: Path, stream: bool) -> None:
    for shard, names in enumerate((NAMES[:2], NAMES[2:])):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w") as tar:
            for name in names:
                for suffix, data in (("jpg", encode(photo(), "JPEG")), ("txt", TRUTH[name][0].encode())):
                    info = tarfile.TarInfo(f"{name[0]}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    expected = {name[0]: texts[:1] for name, texts in TRUTH.items()}
    assert content(tmp_path, stream=stream) == expected
    assert content(tmp_path / "*.tar", stream=stream, limit=2) == dict(list(expected.items())[:2])
    assert isinstance(load_images(str(tmp_path), stream=stream), datasets.IterableDataset) is stream
    raw = load_images(str(tmp_path), stream=stream, decode=False)
    assert set(next(iter(raw))["image"]) == {"bytes", "path"}
