"""What would take hours, or for ever, is refused before it starts, and what is listed lazily stays cheap."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from captune.cli.main import main
from captune.corpus import Corpus
from captune.errors import CorpusError, RunError, UsageError
from captune.utils.files import open_stream, refuse_pipes

CAPTION = ["caption", "--model", "storybook", "--images"]


@pytest.fixture(autouse=True)
def quick() -> None:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 60


def test_c5_of_a_billion_images_four_are_drawn(tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    argv = ["storybook:test?n=1000000000", "--limit", "4", "--output", str(output), "--max-new-tokens", "4"]
    assert main([*CAPTION, *argv]) == 0
    assert len(output.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--prompt", "a word " * 5000], "tokens"),
        (["--decoder", "best-of:100000000:length"], "at most"),
        (["--output", "/dev/full"], "the disk is full"),
    ],
)
def test_c5_what_would_not_end_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    output = [] if "--output" in more else ["--output", str(tmp_path / "o.jsonl")]
    assert main([*CAPTION, "storybook:test?n=2", *output, *more]) in (1, 2)
    err = capsys.readouterr().err
    assert said in err and "internal error" not in err


def test_c5_a_billion_resamples_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = tmp_path / "c.jsonl"
    captions.write_text(json.dumps({"image_id": "000000", "caption": "a ball"}) + "\n")
    argv = ["--references", "storybook:test?n=1", "--bootstrap", "1000000000"]
    assert main(["evaluate", str(captions), *argv]) == 2
    assert "--bootstrap" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RunError, CorpusError])
def test_c5_a_pipe_in_a_folder_is_not_waited_for(tmp_path: Path, error: type[Exception]) -> None:
    (tmp_path / "scores.json").write_text("{}")
    (tmp_path / "adapter").mkdir()
    refuse_pipes(tmp_path, error=error)
    refuse_pipes(tmp_path / "nowhere", error=error)
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(error, match=r"config\.json is no regular file: remove it"):
        refuse_pipes(tmp_path, error=error)


@pytest.mark.parametrize("argv", [["sft", "--model", "storybook", "--images"], ["corpus", "build", "--captions"]])
def test_c5_a_pipe_among_the_files_of_an_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    os.mkfifo(tmp_path / "config.json")
    assert main([*argv, "storybook:train?n=16", "--output", str(tmp_path)]) == 1
    assert "is no regular file" in capsys.readouterr().err


def test_c5_a_pipe_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="nobody reads: start its reader first"):
        open_stream(str(tmp_path / "pipe"), patience=0.2)
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with open_stream(str(tmp_path / "pipe")) as stream:
        stream.write("a ball")
    assert os.read(reader, 99) == b"a ball"
    os.close(reader)


def test_c1_a_corpus_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(CorpusError, match="is not a corpus.*Not a directory"):
        Corpus.open(tmp_path / "x")


@pytest.mark.parametrize("side", ["settings.json", "images.jsonl", "bad.jsonl"])
def test_c5_a_pipe_beside_the_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str], side: str) -> None:
    os.mkfifo(tmp_path / f"o.jsonl.{side}")
    assert main([*CAPTION, "storybook:test?n=2", "--output", str(tmp_path / "o.jsonl")]) in (1, 2)
    assert f"o.jsonl.{side} is no regular file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "env", [{"WORLD_SIZE": "x"}, {"WORLD_SIZE": "-1"}, {"WORLD_SIZE": "2", "RANK": "5"}, {"LOCAL_RANK": "7"}]
)
def test_c1_an_odd_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], env: dict[str, str]
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert main(["scorers"]) == 2
    assert "torchrun" in capsys.readouterr().err


def test_c1_a_switch_that_says_neither_yes_nor_no(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "x")
    assert main(["scorers"]) == 2
    assert "HF_HUB_OFFLINE is 'x': set it to 1 or 0" in capsys.readouterr().err
