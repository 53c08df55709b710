from __future__ import annotations

import json
from pathlib import Path

import fake_java
import numpy as np
import pytest

from captune.errors import ScorerError
from captune.evaluation.statistics import evaluate
from captune.scorers import load_scorer
from captune.scorers.reference.spice import Spice

CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
CAPTIONS = ["Two (red) dogs.", "", "a dog 🐕\u2028\ud800 café", "cats"]
REFERENCES = [["red dogs run"], ["a cat", ""], ["A dog, café!"], ["dogs"]]
KINDS = ("Object", "Attribute", "Relation", "Cardinality", "Color", "Size")

# Plays the program: the scores depend on the image_id, and come in another order.
PLAYER = """
items = json.load(open(args[args.index("-out") - 1], encoding="ascii"))
json.dump(items, open(SEEN + ".items", "w"))
def scores(i):
    one = {"f": i / 10, "pr": i / 20, "re": i / 5, "tp": i, "fp": 0, "fn": 0, "numImages": 1}
    none = {**one, "f": None, "pr": None, "re": None}
    kinds = ("Object", "Attribute", "Relation", "Cardinality", "Color", "Size")
    return {"All": one, **{kind: none if k > i else one for k, kind in enumerate(kinds)}}
results = [{"image_id": item["image_id"], "scores": scores(item["image_id"])} for item in items]
with open(args[args.index("-out") + 1], "w") as file:
    json.dump(results[::-1], file)
print("SPICE evaluation took: 1 s")
"""


@pytest.fixture
def corenlp(tmp_path: Path) -> Path:
    folder = tmp_path / "core nlp"
    folder.mkdir()
    for name in CORENLP:
        (folder / name).touch()
    return folder


@pytest.fixture
def spice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corenlp: Path) -> Spice:
    fake_java.install(tmp_path, monkeypatch, PLAYER)
    return load_scorer(f"spice:{corenlp}")


def test_rows_and_figures(spice: Spice) -> None:
    rows = spice.rows(CAPTIONS, references=REFERENCES)
    assert rows.shape == (4, 15)
    np.testing.assert_allclose(spice.per_caption(rows), [0, 0.1, 0.2, 0.3])
    figures = spice.corpus(rows)
    assert list(figures) == ["spice", "spice_precision", "spice_recall", *(f"spice_{kind.lower()}" for kind in KINDS)]
    assert figures["spice"] == pytest.approx(0.15)
    assert figures["spice_precision"] == pytest.approx(0.075)
    assert figures["spice_recall"] == pytest.approx(0.3)
    assert figures["spice_object"] == pytest.approx(0.15)
    assert figures["spice_attribute"] == pytest.approx(0.2)  # of the three captions that have one
    assert figures["spice_cardinality"] == pytest.approx(0.3)
    assert figures["spice_size"] == 0  # no caption has one
    assert evaluate(CAPTIONS, {"references": REFERENCES}, [spice], bootstrap=20)[spice.name].value == figures["spice"]


def test_the_command_line_and_its_input(spice: Spice, tmp_path: Path, corenlp: Path) -> None:
    spice.rows(CAPTIONS, references=REFERENCES)
    (run,) = fake_java.seen(tmp_path)
    jar = tmp_path / "pycocoevalcap" / "spice" / "spice-1.0.jar"
    assert run["args"][0] == "-Xmx8G"
    assert run["args"][-8:] == [
        "-cp", ":".join(map(str, [*(corenlp / name for name in CORENLP), jar])), "edu.anu.spice.SpiceScorer",
        "input.json", "-out", "output.json", "-subset", "-silent",
    ]  # fmt: skip
    assert not Path(run["cwd"]).exists()
    assert not fake_java.is_running(run["pid"])
    items = json.loads((tmp_path / "seen.items").read_text())
    assert [item["image_id"] for item in items] == [0, 1, 2, 3]
    assert [item["test"] for item in items] == ["two -lrb- red -rrb- dogs", "", "a dog café", "cats"]
    assert items[2]["refs"] == ["a dog café"]
    assert items[1]["refs"] == ["a cat", ""]


def test_nothing_is_written_beside_the_package(spice: Spice, tmp_path: Path) -> None:
    before = sorted((tmp_path / "pycocoevalcap").rglob("*"))
    spice.rows(CAPTIONS, references=REFERENCES)
    assert sorted((tmp_path / "pycocoevalcap").rglob("*")) == before


def test_where_corenlp_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corenlp: Path) -> None:
    package = fake_java.install(tmp_path, monkeypatch, PLAYER)
    monkeypatch.delenv("CORENLP_HOME", raising=False)
    with pytest.raises(ScorerError) as e:
        Spice().check()
    for part in (str(package / "spice" / "lib"), *CORENLP, "https://", "'spice:<folder>'", "CORENLP_HOME=<folder>"):
        assert part in str(e.value)
    monkeypatch.setenv("CORENLP_HOME", str(corenlp))
    Spice().check()
    with pytest.raises(ScorerError, match="nowhere lacks stanford-corenlp-3.6.0.jar and"):
        load_scorer("spice:nowhere").check()
    (corenlp / CORENLP[1]).unlink()
    with pytest.raises(ScorerError, match="core nlp lacks stanford-corenlp-3.6.0-models.jar: fetch"):
        Spice().check()
    with pytest.raises(ScorerError, match="lacks"):  # and not half an hour later
        Spice().rows(CAPTIONS, references=REFERENCES)
    assert fake_java.seen(tmp_path) == []


@pytest.mark.parametrize(
    ("version", "runs"), [("1.7.0_80", 0), ("1.8.0_292", 1), ("14.0.1", 1), ("15", 0), ("21.0.2", 0)]
)
def test_java_without_a_javascript_engine_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corenlp: Path, version: str, runs: int
) -> None:
    """From Java 15 on the program parses all captions, and then has nothing to write its result with."""
    fake_java.install(tmp_path, monkeypatch, PLAYER, version=version)
    scorer = load_scorer(f"spice:{corenlp}")
    if runs:
        scorer.check()
    else:
        with pytest.raises(ScorerError, match="SPICE runs on Java 8 to 14, and .*java is Java .*JAVA_HOME"):
            scorer.rows(CAPTIONS, references=REFERENCES)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("time.sleep(600)", "SPICE did not end within 1 s and was ended"),
        ("os.kill(os.getpid(), 9)", "SPICE was killed by SIGKILL"),
        ("sys.stderr.write('Error: Could not score:\\njava.lang.NoClassDefFoundError: x/Y\\n'); sys.exit(1)",
         "SPICE ended with exit status 1: java.lang.NoClassDefFoundError: x/Y"),
        ("pass", "SPICE ended well but its result is invalid: FileNotFoundError"),
        ("open('output.json', 'w').write('[{')", "its result is invalid: JSONDecodeError"),
        ("open('output.json', 'w').write('[]')", "its result is invalid: ValueError: 0 results for 4 captions"),
        ("open('output.json', 'w').write('null')", "its result is invalid: TypeError"),
        (PLAYER.replace('"f": i / 10', '"f": None'), "its result is invalid: TypeError"),
        (PLAYER.replace('"f": i / 10', '"f": float("nan")'), "a score that is not between 0 and 1"),
        (PLAYER.replace('item["image_id"], "scores"', '0, "scores"'), "4 results for 4 captions"),
    ],
)  # fmt: skip
def test_failures_leave_no_score_no_process_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corenlp: Path, body: str, message: str
) -> None:
    fake_java.install(tmp_path, monkeypatch, body)
    with pytest.raises(ScorerError, match=message):
        load_scorer(f"spice:{corenlp}?timeout={1 if 'sleep' in body else 30}").rows(CAPTIONS, references=REFERENCES)
    (run,) = fake_java.seen(tmp_path)
    assert not fake_java.is_running(run["pid"])
    assert not Path(run["cwd"]).exists()


def test_settings_and_signature(corenlp: Path) -> None:
    scorer = load_scorer(f"spice:{corenlp}?memory=4G")
    assert scorer.memory == "4G"
    assert scorer.signature == Spice().signature
    assert "parser:corenlp-3.6.0" in scorer.signature
    assert Spice().rows([], references=[]).shape == (0, 15)
    with pytest.raises(ValueError, match="caption 0 has no reference"):
        Spice().rows(["a"], references=[[]])
