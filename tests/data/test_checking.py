"""Images that are the same under two names are found by their bytes, of which few are read."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import tiny
from datasets import Dataset, Features, Image, Value

from captune.data import checking, load_images
from captune.data.checking import sharing


def folder(place: Path, pictures: dict[str, int]) -> Dataset:
    place.mkdir()
    for name, seed in pictures.items():
        tiny.picture(seed).save(place / name)
    return load_images(str(place), decode=False)


def _noted(read: list[Path], path: Path) -> bytes:
    read.append(path)
    return path.read_bytes()


def test_copies_are_found_whatever_they_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = folder(tmp_path / "a", {"a.png": 0, "b.png": 1, "c.png": 2, "d.png": 1})
    theirs = folder(tmp_path / "b", {"x.png": 1, "y.png": 5})
    read: list[Path] = []
    monkeypatch.setattr(checking, "read_image", lambda image, item: _noted(read, Path(image["path"])))
    assert sharing(ours, theirs) == [1, 3]
    sizes = {Path(row["image"]["path"]).stat().st_size for row in theirs}
    assert {path.name for path in read} >= {"b.png", "d.png", "x.png"}
    assert all(path.stat().st_size in sizes for path in read) and len(read) == len(set(read))
    assert sharing(ours, folder(tmp_path / "c", {"z.png": 7})) == []


def test_bytes_in_tables_count_as_files_do(tmp_path: Path) -> None:
    files = folder(tmp_path / "a", {"a.png": 0, "b.png": 1})
    buffer = io.BytesIO()
    tiny.picture(1).save(buffer, "PNG")
    rows = [{"image": {"bytes": buffer.getvalue(), "path": None}, "image_id": "0"}]
    table = Dataset.from_list(rows, Features(image=Image(), image_id=Value("string")))
    assert sharing(files, table) == [1] and sharing(table, files) == [0]


def test_what_cannot_be_read_is_no_copy(tmp_path: Path) -> None:
    ours = folder(tmp_path / "a", {"a.png": 0, "b.png": 1})
    (tmp_path / "a" / "a.png").unlink()
    assert sharing(ours, ours) == [1]
