"""The report: one self-contained page, whatever state the run directories are in."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from captune import storybook
from captune.errors import RunError
from captune.report import curves, render
from captune.report.gallery import pick
from captune.report.reading import Row, group_rows, read_run, role_of
from captune.report.table import build_table, columns_of, percent
from captune.report.truth import Truth, highlight
from captune.runs.run_dir import RunDir
from captune.scorers.registry import SCORERS, scorer_class
from captune.storybook.source import SOURCE as SOURCE_SCHEME

SOURCE = "storybook:test?n=12&seed=5"
VOID = {"meta", "link", "img", "input", "br", "path", "circle", "polyline"}


class Page(HTMLParser):
    """Collects tags and text, and checks that elements are closed in the order in which they were opened."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def having(self, name: str) -> list[dict[str, str]]:
        return [attributes for _, attributes in self.tags if name in attributes]


def scene_rows() -> list[dict]:
    return list(storybook.load("test", 12, 5).with_format(None))


def write_run(
    folder: Path, captions: dict[str, dict[str, str]], scores: dict[str, dict[str, float]], source: str
) -> Path:
    """A complete run directory; scores: {row: {scorer: value}}."""
    (folder / "captions").mkdir(parents=True)
    rows = []
    for number, (name, texts) in enumerate(captions.items()):
        lines = [json.dumps({"image_id": i, "caption": text}) for i, text in texts.items()]
        (folder / f"captions/{number}.jsonl").write_text("\n".join(lines) + "\n")
        given = {
            scorer: {"values": {scorer: v}, "interval": {scorer: [v - 0.1, v + 0.1]}, "signature": f"{scorer}|v1"}
            for scorer, v in scores[name].items()
        }
        rows.append({"name": name, "scores": given, "captions": f"captions/{number}.jsonl", "images_per_second": 90.0})
    (folder / "scores.json").write_text(json.dumps({"rows": rows, "source": source}))
    (folder / "config.yaml").write_text("model: storybook\nseed: 7\n")
    (folder / "versions.json").write_text(json.dumps({"torch": "2.13.0", "command": "captune vizer --seed 7 '<x>'"}))
    steps = [{"step": s, "loss": 1 / s, "reward": s / 10, "eval/cider": None if s == 3 else s} for s in range(1, 6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    records = scene_rows()
    right = {r["image_id"]: r["references"][1] for r in records}
    captions = {
        "base": dict.fromkeys(right, "a day with <PERSON> & co"),
        "zero-label": dict(right),
        "ViZer_GT": dict(right),
        "supervised": dict(right),
        "control: length": dict.fromkeys(right, "a a a"),
    }
    first, second = list(right)[:2]
    captions["zero-label"][first] = "<script>alert(1)</script>"
    captions["base"][first] = captions["base"][second] = right[first]
    captions["base"][second] = right[second]
    captions["zero-label"][second] = ""
    cider = {"base": 1.0, "zero-label": 4.0, "ViZer_GT": 3.0, "supervised": 5.0, "control: length": 0.5}
    return write_run(tmp_path / "g", captions, {k: {"cider": v, "health": 9.0} for k, v in cider.items()}, SOURCE)


def test_page_is_self_contained_and_complete(run: Path, tmp_path: Path) -> None:
    path = render([run], tmp_path / "deep" / "report.html", title="A <title>")
    page = Page(path)
    assert path == tmp_path / "deep" / "report.html"
    assert render([run], tmp_path / "again.html", title="A <title>").read_bytes() == path.read_bytes()
    assert path.stat().st_size < 5e6
    for attribute in ("src", "href"):
        for element in page.having(attribute):
            assert element[attribute].startswith(("data:", "#")), element
    assert not re.search(r"@import|url\(|https?://", page.source)
    images = [a for tag, a in page.tags if tag == "img"]
    assert len(images) == 12
    assert all(a["src"].startswith("data:image/png;base64,") and a["alt"] for a in images)
    for expected in (
        "base",
        "zero-label",
        "ViZer_GT",
        "supervised",
        "control: length",
        "CIDEr-D",
        "cider|v1",
        "75 %",
        "captune vizer --seed 7 '<x>'",
        "2.13.0",
        "A <title>",
        "raised CIDEr-D from 1.00 to 4.00",
    ):
        assert expected in page.text, expected
    assert page.text.count("3.90 – 4.10") >= 1


def test_the_sentence_says_what_was_rewarded(run: Path, tmp_path: Path) -> None:
    scores = json.loads((run / "scores.json").read_text())
    for row in scores["rows"]:
        row["rewarded"] = ["cider"]
    (run / "scores.json").write_text(json.dumps(scores))
    page = Page(render([run], tmp_path / "report.html"))
    assert "raised CIDEr-D, which it was rewarded for, from 1.00 to 4.00" in page.text


def test_captions_are_escaped(run: Path, tmp_path: Path) -> None:
    page = Page(render([run], tmp_path / "report.html"))
    assert "<script>alert" not in page.source
    assert "<script>alert(1)</script>" in page.text
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert "(an empty caption)" in page.text


def test_filter_data_follow_the_scores(run: Path, tmp_path: Path) -> None:
    page = Page(render([run], tmp_path / "report.html"))
    states = {card["data-image"]: card["data-state"] for card in page.having("data-card")}
    ids = [r["image_id"] for r in scene_rows()]
    assert [states[i] for i in ids] == ["worsened", "worsened"] + ["improved"] * 10
    # rows compared with the base: zero-label 0, ViZer_GT 1, supervised 2, control 3
    assert page.having("data-card")[0].keys() >= {"data-row-0", "data-row-1", "data-row-2", "data-row-3"}
    assert "10 improved, 0 unchanged, 2 worsened" in [a.get("aria-label") for a in page.having("aria-label")]
    values = {a.get("value") for tag, a in page.tags if tag == "input" and a.get("name") == "state"}
    assert values == {"", "improved", "worsened", "unchanged"}


def test_gains_and_regressions_are_as_many() -> None:
    delta = {f"i{n}": n - 50.0 for n in range(101)}
    gains, losses, sample = pick(list(delta), delta, "storybook", 60)
    assert (len(gains), len(losses), len(sample)) == (10, 10, 40)
    assert (gains[0], losses[0]) == ("i100", "i0")
    assert not {*gains, *losses} & set(sample)
    assert pick(list(delta), {}, "storybook", 60)[:2] == ([], [])


def test_marks_of_a_scene() -> None:
    scene = storybook.Scene(
        "beach",
        1,
        (
            storybook.Thing("ball", "striped", "red", "big", 0.3, 0.3),
            storybook.Thing("car", None, "blue", "small", 0.7, 0.3),
        ),
    )
    truth = Truth(facts={"i": scene.to_json()}, scheme=SOURCE_SCHEME)
    segments = highlight(truth, "i", "a red ball left of a green car in the snow", "a red cat and a ball")
    assert "".join(s.text for s in segments) == "a red ball left of a green car in the snow"
    assert [(s.text, s.mark) for s in segments if s.mark] == [
        ("red", "added"),  # the base said red of a cat
        ("left of", "added"),
        ("green", "wrong"),
        ("car", "added"),
        ("snow", "wrong"),
    ]
    assert [(s.text, s.mark) for s in highlight(truth, "i", "a cat and a ball", None) if s.mark] == [("cat", "wrong")]


def test_marks_of_a_photo() -> None:
    truth = Truth(references={"i": ["Two dogs run on grass", "A brown dog"]})
    segments = highlight(truth, "i", "a brown dog with a frisbee", "a dog")
    assert [(s.text, s.mark) for s in segments if s.mark] == [("brown", "added"), ("frisbee", "wrong")]
    assert highlight(Truth(), "i", "anything", None)[0].mark == ""


def test_partial_runs_say_what_is_missing(run: Path, tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    (broken / "versions.json").write_text("{oops")
    (broken / "config.yaml").write_text(": : :\n - x")
    (broken / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n{"step": 3, "lo')
    rows = [{"name": "sft", "captions": "captions/gone.jsonl", "scores": {"cider": {"values": {"cider": 2}}}}, {}]
    (broken / "scores.json").write_text(json.dumps({"rows": rows, "source": SOURCE}))
    (run / "captions" / "4.jsonl").write_text('{"image_id": "test-5-000000", "caption": "x"}\n{"image_id": "tor')
    page = Page(render([run, empty, broken], tmp_path / "report.html"))
    for expected in (
        "Not in this folder: config.yaml, versions.json, metrics.jsonl, scores.json",
        "did the run finish",
        "versions.json is not valid JSON",
        "config.yaml is not valid YAML",
        "metrics.jsonl line 3 is not JSON",
        "Row 2 of scores.json has no name",
        "The captions of “sft” (captions/gone.jsonl) are missing",
        "4.jsonl line 2 is not JSON",
        "“control: length” has no caption for 11 of 12 images",
        "1 value not finite",
    ):
        assert expected in page.text, expected
    assert "zero-label" in page.text


def test_only_an_empty_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    page = Page(render([tmp_path / "run"], tmp_path / "report.html"))
    for expected in ("No scores", "No curves", "No counts", "No captions were found", "The command was not recorded"):
        assert expected in page.text


def test_no_run_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="not a run directory"):
        render([tmp_path / "nothing"], tmp_path / "report.html")
    with pytest.raises(ValueError, match="No run directory"):
        render([], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_photos_and_missing_images_are_named(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (900, 600), "teal").save(photos / "good.jpg")
    (photos / "bad.jpg").write_text("<html>not an image</html>")
    captions = {"base": {"good.jpg": "a", "bad.jpg": "b", "gone.jpg": "c"}}
    folder = write_run(tmp_path / "run", captions, {"base": {"clip": 0.5}}, str(photos))
    scores = json.loads((folder / "scores.json").read_text())
    scores["bad_images"] = [{"item": "torn.png", "why": "truncated"}]
    (folder / "scores.json").write_text(json.dumps(scores))
    page = Page(render([folder], tmp_path / "report.html"))
    assert [a["src"][:23] for tag, a in page.tags if tag == "img"] == ["data:image/jpeg;base64,"]
    for expected in ("Bad and missing images", "bad.jpg:", "gone.jpg:", "torn.png: truncated", "without scores"):
        assert expected in page.text, expected


def test_unreadable_source_is_a_note(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"base": {"i": "a house"}}, {"base": {"cider": 1.0}}, "storybook:tset")
    page = Page(render([folder], tmp_path / "report.html"))
    assert "The source storybook:tset could not be read" in page.text
    assert "a house" in page.text


def test_shared_base_appears_once_and_namesakes_are_told_apart(tmp_path: Path) -> None:
    base = {"i": "a"}
    scores = {"base": {"cider": 1.0}, "vizer": {"cider": 2.0}}
    one = write_run(tmp_path / "one", {"base": base, "vizer": {"i": "b"}}, scores, "s")
    two = write_run(tmp_path / "two", {"base": base, "vizer": {"i": "c"}}, scores, "s")
    other = write_run(tmp_path / "other", {"base": base}, scores, "elsewhere")
    groups = group_rows([read_run(path) for path in (one, two, other)])
    assert {source: [row.name for row in rows] for source, rows in groups.items()} == {
        "s": ["base", "vizer", "vizer (two)"],
        "elsewhere": ["base"],
    }


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_shared_row_has_the_figures_of_all_its_runs(tmp_path: Path, order: tuple[int, int]) -> None:
    paths = [
        write_run(tmp_path / "one", {"base": {"i": "a"}}, {"base": {"cider": 1.0}}, "s"),
        write_run(tmp_path / "two", {"base": {"i": "a"}}, {"base": {"cider": 1.0, "clip": 0.6}}, "s"),
    ]
    (row,) = group_rows([read_run(paths[i]) for i in order])["s"]
    assert set(row.scores) == {"cider", "clip"}
    other = write_run(tmp_path / "three", {"base": {"i": "a"}}, {"base": {"cider": 2.0}}, "s")
    assert len(group_rows([read_run(paths[0]), read_run(other)])["s"]) == 2  # not the same figure


def test_best_second_and_gap(run: Path) -> None:
    rows = group_rows([read_run(run)])[SOURCE]
    table = build_table(rows, columns_of(rows))
    assert [(line.name, line.cells[0].rank, line.gaps) for line in table.lines] == [
        ("base", "", [""]),
        ("zero-label", "second", ["75 %"]),
        ("ViZer_GT", "", ["50 %"]),
        ("supervised", "best", [""]),
        ("control: length", "", ["−12 %"]),
    ]
    assert percent(None) == "–"


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("base", ["base"]),
        ("zero", ["ViZer zero-label", "zero-label", "vizer"]),
        ("gt", ["ViZer_GT", "ViZer GT (paper)"]),
        ("supervised", ["sft", "supervised"]),
        ("control", ["control: wrong image", "best-of-8"]),
        ("other", ["mystery"]),
    ],
)
def test_roles(role: str, names: list[str]) -> None:
    assert {role_of(name) for name in names} == {role}


def test_ticks_are_round() -> None:
    assert curves.ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1.0]
    assert curves.ticks(3, 52, 5) == [10, 20, 30, 40, 50]


def test_a_written_role_is_taken_whatever_the_name(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run").start({})
    scores = {"cider": {"values": {"cider": 1.0}}}
    run.add_scores("best of all, untrained", scores, role="zero")
    run.add_scores("vizer", scores, role="control")
    run.add_scores("GRPO: length", scores, role="trained")
    assert [(row.name, row.role) for row in read_run(run.path).rows] == [
        ("best of all, untrained", "zero"),
        ("vizer", "control"),
        ("GRPO: length", "trained"),
    ]
    with pytest.raises(RunError, match="unknown role 'best'"):
        run.add_scores("x", scores, role="best")


def test_controls_of_another_source_get_one_compact_table(run: Path, tmp_path: Path) -> None:
    other = RunDir(tmp_path / "study").start({})
    for number, source in enumerate(["storybook:test?n=500&seed=1"] * 5 + ["storybook:val"]):
        score = {"values": {"cider": number / 10}, "interval": {"cider": [0.001, 0.987]}}
        other.add_scores(f"control {number}", {"cider": score, "health": score}, role="control", source=source)
    page = Page(render([run, other.path], tmp_path / "report.html"))
    assert "raised CIDEr-D from 1.00 to 4.00" in page.text  # the page stays about the run
    section = page.source[page.source.index('id="controls"') :].split("</table>")[0]
    assert [f"control {number}" in section for number in range(6)] == [True] * 6
    assert "storybook:test?n=500&amp;seed=1" in section and "storybook:val" in section
    assert "0.987" not in page.text and page.source.count('class="scroll compact"') == 1
    assert page.source.index('id="examples"') < page.source.index('id="scores"') < page.source.index('id="controls"')
    assert page.source.index('id="controls"') < page.source.index('id="curves"') < page.source.index('id="run"')


def test_captions_outside_the_run_are_found_from_anywhere(run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    other = RunDir("together").start({})
    other.add_scores("base", {}, role="base", source=SOURCE, captions=Path("g/captions/0.jsonl"))
    monkeypatch.chdir("/")
    assert len(read_run(tmp_path / "together").rows[0].captions) == 12


@pytest.mark.parametrize(
    ("scorer", "figure", "better", "label"),
    [
        ("cider", "cider", 1, "CIDEr-D"),
        ("bleu", "bleu_4", 1, "BLEU-4"),
        ("chair", "chair_i", -1, "CHAIRi"),
        ("chair", "chair_s", -1, "CHAIRs"),
        ("self_bleu", "self_bleu", -1, "Self-BLEU"),
        ("bias", "unsupported", -1, "Unsupported group words"),
        ("storybook", "hallucinated_per_fact", -1, "Hallucination rate"),
        ("storybook", "size_precision", 1, "Size precision"),
        ("self_retrieval", "recall_5", 1, "Recall 5"),
        ("health", "empty", -1, "Empty captions"),
        ("health", "length", 0, "Words per caption"),
        ("nobody_knows", "error_rate", 0, "Error rate"),
    ],
)
def test_direction_and_label_come_from_the_scorer(scorer: str, figure: str, better: int, label: str) -> None:
    row = Row("x", "other", "", "", {scorer: {"values": {figure: 0.5}}}, {})
    (column,) = columns_of([row], every=True) or columns_of([row], health=True)
    assert (column.better, column.label) == (better, label)


def test_every_scorer_declares_figures_that_it_gives() -> None:
    for name in SCORERS:
        declared = scorer_class(name).higher_is_better
        assert declared or name == "length", name


ODD = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b"[" * 100_000,
    b"9" * 6_000,
    b'{"rows": 5}',
    b'{"rows": ["x", null, 3, {"name": "\\ud800", "role": [1], "captions": "\\u0000"}]}',
    b'{"rows": [{"name": {"a": 1}, "scores": [1, 2], "captions": [1]}]}',
    b'{"rows": [{"name": "x", "scores": {"cider": 5, "a * (": {"values": {"z": 1}}, "a.py:f": {"values": {"z": 1}}}}]}',
    b'{"rows": [{"name": "x", "scores": {"cider": {"values": {"a": 1e400, "b": NaN}, "interval": [1]}}}]}',
    b'{"rows": [{"name": "x", "images_per_second": ' + b"9" * 500 + b', "captions": "' + b"y" * 5000 + b'"}]}',
    b'{"step": 1e308, "loss": 1}\n{"step": 1e20, "loss": 1e29}\n{"step": 100000000000000000001, "loss": -1e29}',
    b'{"step": 1, "loss": 1e-320}\n{"step": 2, "loss": 2e-320}\n{"step": [1]}\n[1]',
    b"a: &a [*a]\nb: *a",
]


@pytest.mark.parametrize("name", ["scores.json", "versions.json", "config.yaml", "metrics.jsonl", "watch.jsonl"])
def test_c2_an_odd_file_becomes_a_note(run: Path, tmp_path: Path, name: str) -> None:
    for content in ODD:
        (run / name).write_bytes(content)
        page = Page(render([run], tmp_path / "report.html"))
        assert not re.search(r"\bnan\b|\binf\b", page.text)


def test_c2_half_a_character_and_a_book_for_a_caption(run: Path, tmp_path: Path) -> None:
    first = next((run / "captions").iterdir())
    ids = [json.loads(line)["image_id"] for line in first.read_text().splitlines()]
    texts = ["\ud800", "a red house on the beach " * 40_000, *("a car" for _ in ids[2:])]
    lines = [json.dumps({"image_id": i, "caption": text}) for i, text in zip(ids, texts, strict=True)]
    first.write_text("\n".join(lines) + "\n")
    started = time.process_time()
    page = Page(render([run], tmp_path / "report.html"))
    assert time.process_time() - started < 10  # 33 s, when each character copied all before it
    assert "are shown and compared by their first 5,000 characters" in page.text
    assert len(page.source) < 1_000_000


def test_c2_a_report_runs_no_code_that_a_score_names(run: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef f(completions, **columns): ...")
    row = {"name": "x", "scores": {f"{evil}:f": {"values": {"f": 1.0}}}}
    (run / "scores.json").write_text(json.dumps({"rows": [row]}))
    Page(render([run], tmp_path / "report.html"))
    assert not (tmp_path / "ran").exists()
