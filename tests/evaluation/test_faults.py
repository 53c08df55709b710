"""A judge that fails, hangs or answers nonsense costs no other score; a killed evaluation resumes from its cache."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llm

from captune.cli.main import main
from captune.evaluation import cache as caches
from captune.evaluation.cache import Cache
from captune.models.answerers.server import Server
from captune.scorers import SCORERS, Scorer

SOURCE = "storybook:test?n=6&seed=3"
ANSWERS = {"Yes": 0.5, "No": 0.2, "A": 0.1, "B": 0.1}


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    from captune import storybook

    rows = storybook.load("test", 6, seed=3)
    file = tmp_path / "captions.jsonl"
    lines = [
        {"image_id": i, "caption": own[0]} for i, own in zip(rows["image_id"], list(rows["references"]), strict=True)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "questions.json").write_text(json.dumps({line["image_id"]: {"Is it so?": "Yes"} for line in lines}))
    return file


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server.__init__, "__kwdefaults__", {"timeout": 0.3, "attempts": 2, "delay": 0.01, "workers": 4})


def judges(tmp_path: Path, url: str) -> list[str]:
    """Every scorer that asks a server, about text and about images."""
    spec = f"{url}#m"
    texts = [f"{name}:{spec}" for name in ("dnli", "dcscore", "openchair")]
    return [f"relation_qa:{tmp_path}/questions.json?model={spec}", f"judge:{spec}", *texts]


def evaluated(
    capsys: pytest.CaptureFixture[str], captions: Path, scorers: list[str]
) -> tuple[int, dict[str, Any], str]:
    words = ["--references", SOURCE, "--scorers", ",".join(scorers), "--bootstrap", "20", "--no-cache", "--json"]
    code = main(["evaluate", str(captions), *words])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def first_token(*listed: tuple[Any, Any]) -> dict[str, Any]:
    top = [{"token": token, "logprob": logprob} for token, logprob in listed]
    return {"choices": [{"message": {"content": "?"}, "logprobs": {"content": [{"token": "?", "top_logprobs": top}]}}]}


FAULTS: dict[str, Any] = {
    "fails": (500, "out of memory"),
    "refuses": (404, "no such model"),
    "is too busy": (429, "slow down"),
    "hangs": 1.0,
    "answers a page": b"<html>\xff\xfe</html>",
    "answers half a reply": json.dumps(tiny_llm.completion(ANSWERS))[:60].encode(),
    "answers nothing": b"",
    "answers a list": [],
    "answers an error": {"error": {"message": "x"}},
    "answers without choices": {"choices": []},
    "answers null": {"choices": [None]},
    "gives no probabilities": tiny_llm.completion(None),
    "gives empty probabilities": first_token(),
    "speaks of something else": tiny_llm.completion({"banana": 0.9}),
    "gives NaN": first_token(("Yes", math.nan), ("A", math.nan)),
    "gives probabilities above 1": first_token(("Yes", 3.0), ("A", 3.0)),
    "gives texts for numbers": first_token(("Yes", "high"), ("A", "high")),
    "gives numbers for texts": first_token((1, -1.1), (2, -1.1)),
    "nests deeply": b"[" * 100_000,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.usefixtures("impatient")
def test_a_judge_that_is_out_of_order_costs_no_other_score(fault: str, captions: Path, tmp_path: Path, capsys) -> None:
    _, alone, _ = evaluated(capsys, captions, ["length", "bleu"])
    with tiny_llm.server(lambda payload, n: FAULTS[fault]) as (url, _):
        asked = judges(tmp_path, url)
        code, found, err = evaluated(capsys, captions, ["length", *asked, "bleu"])
    assert code == 1 and found["scores"] == alone["scores"]
    assert list(found["failed"]) == asked and not set(found["scores"]) & set(asked)
    for spec, why in found["failed"].items():
        assert why.count("\n") == 0 and "Traceback" not in err and f"{spec} failed: {why}" in err, fault
        assert not re.match(r"\w+Error: ", why), why  # a sentence, not a bug


@pytest.mark.usefixtures("impatient")
def test_one_bad_answer_among_good_ones_names_its_caption(captions: Path, tmp_path: Path, capsys) -> None:
    bad = json.loads(captions.read_text().splitlines()[4])["caption"]

    def reply(payload: dict, n: int) -> Any:
        return FAULTS["answers null"] if bad in json.dumps(payload) else tiny_llm.completion(ANSWERS)

    with tiny_llm.server(reply) as (url, _):
        asked = judges(tmp_path, url)[:2]  # whose answers are letters and words
        code, found, _ = evaluated(capsys, captions, ["length", *asked])
        captions.write_text("".join(captions.read_text().splitlines(keepends=True)[:4]))
        assert evaluated(capsys, captions, ["length", *asked])[0] == 0  # the others are judged
    assert code == 1 and list(found["failed"]) == asked and list(found["scores"]) == ["length"]
    assert all(bad[:60] in why for why in found["failed"].values())


class Buggy(Scorer):
    """Fails as no scorer should."""

    name = "buggy"

    def rows(self, captions, **columns):
        raise ZeroDivisionError("division by zero")


def test_a_scorers_bug_costs_no_other_score_and_is_logged(captions: Path, monkeypatch, capsys, caplog) -> None:
    monkeypatch.setitem(SCORERS.targets, "buggy", Buggy)
    code, found, _ = evaluated(capsys, captions, ["length", "buggy", "bleu"])
    assert code == 1 and list(found["scores"]) == ["length", "bleu"]
    assert found["failed"] == {"buggy": "ZeroDivisionError: division by zero"}
    assert "ZeroDivisionError" in caplog.text and "test_faults.py" in caplog.text  # the traceback


def test_a_model_that_cannot_be_loaded_costs_no_other_score(captions: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "clip"}')
    specs = [f"clip:{tmp_path}/broken", f"sbert:{tmp_path}/broken", f"judge:{tmp_path}/broken", "clip:some/model"]
    code, found, _ = evaluated(capsys, captions, ["length", *specs])
    assert code == 1 and list(found["scores"]) == ["length"] and list(found["failed"]) == specs


def test_a_reply_without_an_end_is_given_up() -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    from captune.errors import ScorerError
    from captune.models.answerers import Question

    class Drip(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            end = time.monotonic() + 20
            try:
                while time.monotonic() < end:
                    self.wfile.write(b" " * (1 if self.path.startswith("/slow") else 2**20))
                    if self.path.startswith("/slow"):
                        time.sleep(0.05)
            except OSError:
                pass

        def log_message(self, *arguments: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Drip)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        for path, why in (("slow", "the reply timed out"), ("large", "the reply has more than 16,777,216 bytes")):
            started = time.monotonic()
            server = Server(f"http://127.0.0.1:{http.server_port}/{path}#m", timeout=2, attempts=1)
            if path == "large":
                server.timeout = 20
            with pytest.raises(ScorerError, match=f"{why}; it was asked about it"):
                server.answer_probabilities([Question("x", ("Yes", "No"), "it")])
            assert time.monotonic() - started < 15
    finally:
        http.shutdown()
        http.server_close()


# -- a killed evaluation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scorer", ["relation_qa", "0.5*relation_qa + length"])
def test_a_killed_evaluation_asks_at_most_one_batch_again(scorer: str, tmp_path: Path) -> None:
    n, killed_at = 500, 300
    ids = [f"i{i}" for i in range(n)]
    rows = [{"image_id": i, "caption": f"caption number {i}"} for i in ids]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "references.json").write_text(json.dumps({i: [f"caption {i}"] for i in ids}))
    (tmp_path / "questions.json").write_text(json.dumps({i: {"Is it so?": "Yes"} for i in ids}))

    def reply(payload: dict, number: int) -> Any:
        time.sleep(0.002)
        return tiny_llm.completion(ANSWERS)

    def start(folder: str) -> subprocess.Popen[bytes]:
        spec = scorer.replace("relation_qa", f"relation_qa:questions.json?model={url}#m")
        words = ["--references", "references.json", "--scorers", spec, "--bootstrap", "0", "--json", "--cache", folder]
        return subprocess.Popen([sys.executable, "-m", "captune", "evaluate", "captions.jsonl", *words], cwd=tmp_path,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)  # fmt: skip

    environment = {**os.environ, "PYTHONPATH": str(Path(caches.__file__).parents[2])}
    with tiny_llm.server(reply) as (url, seen):
        undisturbed, error = start("undisturbed").communicate()
        assert len(seen) == n, error
        seen.clear()
        process = start("kept")
        while len(seen) < killed_at and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        before = len(seen)
        assert killed_at <= before < n
        found, error = start("kept").communicate()
        times = Counter(request["messages"][0]["content"] for request in seen)
        assert len(times) == n and max(times.values()) <= 2, error
        assert before - (before // Scorer.kept_every) * Scorer.kept_every <= len(seen) - n <= Scorer.kept_every
        assert json.loads(found)["scores"] == json.loads(undisturbed)["scores"]
        again, _ = start("kept").communicate()
        assert again == found and len(seen) == sum(times.values())  # nothing more is asked


class Counting(Scorer):
    """Says what it is asked."""

    name = "counting"
    cached = True

    def rows(self, captions, **columns):
        return np.ones((len(captions), 1))


def test_a_cache_that_cannot_be_written_costs_no_score(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    scorer = Counting()
    scorer.cache = Cache(tmp_path / "file" / "folder")
    assert scorer.measure(["a", "b"], {}).sum() == 2
    assert "counting: rows cannot be kept in" in caplog.text
