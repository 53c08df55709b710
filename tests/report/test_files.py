"""A page from caption files: the same page as of runs, scored where there are references."""

from __future__ import annotations

from pathlib import Path

import pytest
from broken_images import encode, photo

from captune.cli.main import main
from captune.data import load_references, read_captions, write_captions
from captune.report import render_files


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """What storybook says, and the caption of the image before."""
    references = load_references("storybook:test?n=12")
    texts = [texts[0] for texts in references.values()]
    good = dict(zip(references, texts, strict=True))
    write_captions(good, tmp_path / "good.parquet")
    write_captions(dict(zip(references, texts[-1:] + texts[:-1], strict=True)), tmp_path / "shifted.csv")
    return [tmp_path / "shifted.csv", tmp_path / "good.parquet"]


def test_two_files_with_references(files: list[Path], tmp_path: Path) -> None:
    page = render_files(files, tmp_path / "page.html", source="storybook:test?n=12", bootstrap=20).read_text()
    assert "2 files" in page and "“good” raised" in page and "the others are compared with it" in page
    assert "CIDEr-D" in page and "BLEU-4" in page and "Health metrics" in page
    assert page.count("data:image/png") >= 12
    assert "Training" not in page and "command" not in page and "before training" not in page
    assert page == render_files(files, tmp_path / "again.html", source="storybook:test?n=12", bootstrap=20).read_text()


def test_the_page_says_how_many_images_were_scored(files: list[Path], tmp_path: Path) -> None:
    few = dict(list(read_captions(files[1]).items())[:5])
    write_captions(few, tmp_path / "few.jsonl")
    both = [files[0], tmp_path / "few.jsonl"]
    page = render_files(both, tmp_path / "page.html", source="storybook:test?n=12", bootstrap=20).read_text()
    assert " on 5 images." in page and "· 5 images ·" in page and " on 12 images" not in page


def test_without_references_health_alone(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        (photos / f"{number}.jpg").write_bytes(encode(photo(30, 20, number), "JPEG"))
    captions = {f"{number}.jpg": "a <b>dog</b> & 'cat'" for number in range(3)}
    write_captions(captions, tmp_path / "a.jsonl")
    write_captions(dict(list(captions.items())[:2]), tmp_path / "b.jsonl")
    assert main(["report", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--images", str(photos),
                 "--output", str(tmp_path / "page.html")]) == 0  # fmt: skip
    page = (tmp_path / "page.html").read_text()
    assert "without references only their health is measured" in page and "CIDEr" not in page
    assert "a &lt;b&gt;dog&lt;/b&gt; &amp;" in page and "<b>dog" not in page
    assert page.count("data:image/jpeg") == 2  # those that the last file has
    assert "“b” has no caption for 1 of 3 images (2.jpg)." in page
    assert main(["report", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "alone.html")]) == 0
    assert "1 file<" in (tmp_path / "alone.html").read_text()


def test_captions_of_other_images_are_counted_and_none_of_them_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(2):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(encode(photo(30, 20, number), "JPEG"))
    file, page = tmp_path / "a.jsonl", tmp_path / "page.html"
    write_captions({"0.jpg": "a dog", "9.jpg": "a cat"}, file)
    words = ["report", str(file), "--images", str(tmp_path / "photos"), "--output", str(page)]
    assert main(words) == 0
    for text in (page.read_text(), caplog.text):
        assert "1 of the 2 captions in" in text and "are of no image of" in text and "9.jpg" in text
    page.unlink()
    write_captions({"8.jpg": "a dog", "9.jpg": "a cat"}, file)
    assert main(words) == 1 and not page.exists()
    assert "none of the 2 captions in" in capsys.readouterr().err


def test_the_same_captions_twice_are_said(files: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.csv"
    copy.write_bytes(files[0].read_bytes())
    page = render_files([files[0], copy], tmp_path / "page.html", source="storybook:test?n=12", bootstrap=0).read_text()
    assert "copy holds the same captions as shifted; it is shown once." in page


def test_what_is_refused(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(files[0]), str(tmp_path), "--output", str(tmp_path / "p.html")]) == 2
    assert "make a page of each kind" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--images", "storybook:test", "--output", str(tmp_path / "p.html")]) == 2
    assert "--images is for caption files" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "missing.jsonl"), "--output", str(tmp_path / "p.html")]) == 2
    assert "is neither a run directory" in capsys.readouterr().err
