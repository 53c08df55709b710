"""`rewrite`: which images are captioned again, what becomes of their captions, and what a kill leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from broken_images import encode, photo
from curation_sets import run

from captune.curation.rewrite import Rewrite
from captune.errors import SettingError, UnknownDecoder, UsageError
from captune.inference import engines, job

COUNT = 12


class Wide:
    """A captioner that says how wide an image is, nothing about the fifth, and of the sixth what was said before."""

    name, prompt = "wide", None

    def __init__(self) -> None:
        self.seen: list[int] = []

    def generate(self, images: Sequence[Any], **settings: Any) -> list[str]:
        self.seen.extend(image.width for image in images)
        if 37 in self.seen and self.seen.count(37) < 2 and self.killed:
            raise RuntimeError("killed")
        said = {35: " ", 36: "caption 6 of i6"}
        return [said.get(image.width, f"an image {image.width} wide") for image in images]

    killed = False


@pytest.fixture
def captioner(monkeypatch: pytest.MonkeyPatch) -> Wide:
    made = Wide()
    for module in (engines, job):  # a job that is imported under the first patch would keep it
        monkeypatch.setattr(module, "load_captioner", lambda *_, **__: made)
    return made


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Images 30 to 41 wide, the third broken, with one caption, and every second with another one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = []
    for n in range(COUNT):
        (folder / f"i{n}.png").write_bytes(b"broken" if n == 3 else encode(photo(30 + n, 20, n), "PNG"))
        texts = [f"caption {n} of i{n}"] + ["another"] * (n % 2)
        lines.append(json.dumps({"image": f"i{n}.png", "image_id": f"i{n}", "references": texts}) + "\n")
    (tmp_path / "set.jsonl").write_text("".join(lines))
    return f"{tmp_path / 'set.jsonl'}?images={folder}"


def test_all_images(source: str, captioner: Wide, tmp_path: Path) -> None:
    report, rows = run(source, tmp_path / "out", {"rewrite": {"model": "wide"}})
    firsts = [row for row in rows if row["before"] != "another"]
    for n, row in enumerate(firsts):
        if n == 3:
            assert (row["verdict"], row["reason"]) == ("keep", "the image could not be captioned: as it was")
        elif n == 5:
            assert (row["verdict"], row["reason"]) == ("keep", "the captioner says nothing: as it was")
        elif n == 6:
            assert (row["verdict"], row["reason"]) == ("keep", "the captioner says the same")
        else:
            assert (row["verdict"], row["after"]) == ("change", [f"an image {30 + n} wide"])
    others = {row["image_id"]: row["verdict"] for row in rows if row["before"] == "another"}
    assert others == {f"i{n}": "keep" if n in (3, 5) else "drop" for n in range(1, COUNT, 2)}
    notes = report["records"][0]["notes"]
    assert notes["mean words"] == {"before": 4.0, "after": 4.0} and notes["captioner"]["model"] == "wide"
    assert [item for item, _ in notes["images that could not be captioned"]] == ["i3"]


def test_a_share(source: str, captioner: Wide, tmp_path: Path) -> None:
    def chosen(folder: str, **settings: Any) -> set[str]:
        step = {"rewrite": {"model": "wide", "rest": "keep", **settings}}
        rows = run(source, tmp_path / folder, step)[1]
        assert "drop" not in {row["verdict"] for row in rows}
        return {row["image_id"] for row in rows if row["reason"]}

    quarter, half = chosen("quarter", share=0.25), chosen("half", share=0.5)
    assert len(quarter) == 3 and len(half) == 6 and quarter < half
    assert chosen("again", share=0.5) == half
    assert chosen("other", share=0.5, seed=1) != half


def test_a_kill_loses_nothing(source: str, captioner: Wide, tmp_path: Path) -> None:
    step = {"rewrite": {"model": "wide", "batch_size": 2}}
    run(source, tmp_path / "whole", step)
    captioner.seen.clear()
    captioner.killed = True
    with pytest.raises(RuntimeError, match="killed"):
        run(source, tmp_path / "out", step)
    before = list(captioner.seen)
    assert 2 <= len(before) < COUNT
    run(source, tmp_path / "out", step)
    assert len(captioner.seen) < 2 * COUNT  # what was captioned is not captioned again
    for name in ("curation.json", "captions.jsonl", "decisions/1-rewrite.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"engine": "ray"}, UsageError, "captune curate --engine ray"),
        ({"engine": "proces"}, SettingError, "unknown engine"),
        ({"decoder": "cgf:2"}, UnknownDecoder, "did you mean 'cfg'"),
        ({"requests": 4}, SettingError, "the model is no server"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Rewrite(model="wide", **settings)
