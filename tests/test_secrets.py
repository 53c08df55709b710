"""No secret is printed, logged or written: a canary stands in every place for one, and all that is left is searched."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_llm

from captune.errors import CaptuneError, ScorerError, redact
from captune.evaluation.cache import Cache
from captune.models.answerers import Question, load_answerer
from captune.runs.run_dir import RunDir
from captune.scorers import load_scorer

CANARY = "sk-canary-5e2b8f7a9d"
QUESTION = Question("Is it?", ("Yes", "No"), "one")


def asked(spec: str, reply: Callable[[dict, int], Any]) -> tuple[str, list[dict]]:
    """What asking a server raises, with its causes, and what was sent to it."""
    with tiny_llm.server(reply) as (url, requests):
        answerer: Any = load_answerer(url.replace("://", f"://{spec}") + "#some/model")
        answerer.delay = 0.0
        said = answerer.label
        try:
            answerer.answer_probabilities([QUESTION])
        except CaptuneError as error:
            said += f" {error} {error!r}"
    return said, requests


def test_d1_a_key_with_a_line_end_is_sent_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY + "\n")
    said, requests = asked("", lambda payload, n: tiny_llm.completion({"Yes": 0.9}))
    assert requests[0]["key"] == f"Bearer {CANARY}" and CANARY not in said


@pytest.mark.parametrize("key", [f"{CANARY}\nmore", f"{CANARY} more", f"{CANARY}é"])
def test_d1_a_key_that_cannot_be_sent_is_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    said, requests = asked("", lambda payload, n: tiny_llm.completion({"Yes": 0.9}))
    assert "the key in OPENAI_API_KEY has a space" in said and CANARY not in said and not requests


@pytest.mark.parametrize("status", [400, 401, 403, 500])
def test_d1_a_server_that_repeats_the_key(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{CANARY}\n")
    said, _ = asked("", lambda payload, n: (status, f"Incorrect API key provided: {CANARY}"))
    assert f"{status}" in said and "***" in said and CANARY not in said
    said, _ = asked("", lambda payload, n: f"not JSON, but your key {CANARY}")
    assert "invalid chat completion" in said and CANARY not in said


def test_d1_a_password_in_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "another-key")
    said, requests = asked(f"me:{CANARY}@", lambda payload, n: (401, f"no such user me:{CANARY}"))
    assert requests[0]["key"] == "Basic " + base64.b64encode(f"me:{CANARY}".encode()).decode()
    assert "***@127.0.0.1" in said and CANARY not in said
    with pytest.raises(ScorerError) as caught:
        load_answerer(f"http://me:{CANARY}@127.0.0.1:9/v1#m").check()
    assert "nothing answers" in str(caught.value) and CANARY not in str(caught.value)
    with pytest.raises(CaptuneError) as wrong:
        load_answerer(f"http://me:{CANARY}@127.0.0.1:9/v1")
    assert CANARY not in str(wrong.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://me:{CANARY}@host:8000/v1#m", "http://***@host:8000/v1#m"),
        (f"judge:https://me:{CANARY}#/@host/v1#m?reference=1", "judge:https://***@host/v1#m?reference=1"),
        (f"https://host/x.parquet?token={CANARY}&n=3", "https://host/x.parquet?token=***&n=3"),
        (f"Authorization: Bearer {CANARY}", "Authorization: Bearer ***"),
        ("http://localhost:8000/v1#org/model@v2|prompt:1", "http://localhost:8000/v1#org/model@v2|prompt:1"),
        ("clip:a/b@c?w=2&prefix=a key", "clip:a/b@c?w=2&prefix=a key"),
    ],
)
def test_d1_what_is_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_d1_files_hold_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Signatures, caches, a run's settings and card, and logs."""
    monkeypatch.setenv("OPENAI_API_KEY", f"{CANARY}\n")
    monkeypatch.setattr(sys, "argv", ["captune", "--reward", f"judge:http://me:{CANARY}@host/v1#m"])
    caplog.set_level(logging.DEBUG)
    (tmp_path / "q.json").write_text(json.dumps({"1": {"Is it?": "Yes"}}))
    with tiny_llm.server(lambda payload, n: tiny_llm.completion({"Yes": 0.9})) as (url, _):
        address = url.replace("://", f"://me:{CANARY}@")
        scorer = load_scorer(f"relation_qa:{tmp_path / 'q.json'}?model={address}#m", cache=Cache(tmp_path / "cache"))
        scorer.measure(["a caption"], {"image_id": ["1"]})
    assert list((tmp_path / "cache").glob("*.jsonl"))
    run = RunDir(tmp_path / "run").start({"reward": f"judge:{address}#m", "images": f"{address}?key={CANARY}"})
    run.add_scores("row", {scorer.name: {"values": {"relation_qa": 1.0}}}, source=address)
    run.finish(run.card(method="m", base="b", data=address))
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"relation_qa" in written and CANARY.encode() not in written
    assert CANARY not in scorer.name + scorer.signature + scorer.identity + caplog.text


def test_d1_the_command_line_prints_no_secret(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"image_id": "1", "caption": "a"}\n')
    (tmp_path / "q.json").write_text(json.dumps({"1": {"Is it?": "Yes"}}))
    lines = (
        ["evaluate", "c.jsonl", "--scorers", f"relation_qa:q.json?model=http://me:{CANARY}@127.0.0.1:9/v1#m"],
        ["evaluate", "c.jsonl", "--nonsense", f"http://me:{CANARY}@127.0.0.1:9/v1#m"],
        ["caption", "--model", "storybook", "--images", f"s3://me:{CANARY}@bucket/x.parquet", "--output", "o.jsonl"],
    )
    for line in lines:
        done = subprocess.run(
            [sys.executable, "-m", "captune", *line], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode != 0 and ("***" in done.stderr or "--nonsense" in line), done.stderr
        assert CANARY not in done.stdout + done.stderr
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert CANARY.encode() not in written
