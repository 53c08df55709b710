"""The report shows what the monitor flagged, with captions of before and now."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from captune.report import render

IDS = [f"test-5-{number:06d}" for number in range(8)]
SOURCE = "storybook:test?n=8&seed=5"


def page(*folders: Path) -> str:
    """The text of the page, and that every article and section of it is closed."""
    html = render(list(folders), folders[0].parent / "report.html").read_text()
    for tag in ("section", "article", "dl", "div"):
        assert len(re.findall(f"<{tag}[ >]", html)) == html.count(f"</{tag}>")
    return html


def write_evaluation(folder: Path, step: int, greedy: dict[str, str], scores: list[float], **row: Any) -> None:
    lines = [
        {"image_id": i, "caption": text, "samples": [f"sample {step} of {i}", "another", "a third"]}
        for i, text in greedy.items()
    ]
    (folder / "captions").mkdir(parents=True, exist_ok=True)
    (folder / "captions" / f"watch-{step}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    mean = {"clip": sum(scores) / len(scores)}
    given = {
        "source": SOURCE,
        "reward": None,
        "greedy": mean,
        "sampled": mean,
        "health": {},
        "by_image": {"clip": scores},
        "marks": [],
    }
    with (folder / "watch.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, **given, **row}) + "\n")


def write_run(folder: Path, marks: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    write_evaluation(folder, 0, dict.fromkeys(IDS, "a house"), [1.0] * 8)
    now = {i: "a house " * number for number, i in enumerate(IDS, start=1)}
    scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    sentence = "step 10: the reward rose <sharply>, but clip of sampled captions fell"
    write_evaluation(folder, 10, now, scores, marks=marks, **({"sentence": sentence} if marks else {}))
    return folder


def shown(html: str) -> list[str]:
    """The monitor's cards, as text."""
    section = html[html.index('<section id="monitor">') : html.index('<section id="curves">')]
    return [" ".join(unescape(re.sub(r"<[^>]+>", " ", card)).split()) for card in section.split("<article")[1:]]


def test_a_flag_is_shown_with_the_captions_that_fell_most(tmp_path: Path) -> None:
    mark = {"figure": "clip", "since": 0, "text": "clip fell"}
    html = page(write_run(tmp_path / "run", [mark]))
    assert "2 evaluations, 1 flagged, the first at step 10." in html
    assert "step 10: the reward rose &lt;sharply&gt;, but" in html
    assert '<a href="#monitor">' in html and html.count("data:image/png") == 4
    cards = shown(html)
    assert [next(i for i in IDS if i in card) for card in cards] == IDS[:4]
    for expected in (
        "sampled, step 0",
        f"sample 0 of {IDS[0]}",
        "sampled, step 10: clip −0.90",
        f"sample 10 of {IDS[0]}",
    ):
        assert expected in cards[0]
    assert "a third" not in cards[0] and "a house" not in cards[0].split("sampled, step 0")[1]


def test_of_a_scorer_where_less_is_better_those_that_rose_are_shown(tmp_path: Path) -> None:
    (folder := tmp_path / "run").mkdir()
    texts = dict.fromkeys(IDS, "a house")
    write_evaluation(folder, 0, texts, [0.5] * 8)
    mark = {"figure": "chair", "since": 0, "text": "chair rose"}
    write_evaluation(folder, 10, texts, [0.1 * number for number in range(8)], marks=[mark], sentence="chair rose")
    lines = (folder / "watch.jsonl").read_text().replace('"clip"', '"chair"')
    (folder / "watch.jsonl").write_text(lines)
    cards = shown(page(folder))
    assert [next(i for i in IDS if i in card) for card in cards] == [IDS[7], IDS[6], IDS[5], IDS[4]]
    assert "sampled, step 10: chair +0.20" in cards[0]


def test_a_health_metric_is_shown_with_the_captions_that_changed_most(tmp_path: Path) -> None:
    marks = [{"figure": "repetition", "since": 0, "text": "repetition of greedy captions went up"}]
    cards = shown(page(write_run(tmp_path / "run", marks)))
    assert [next(i for i in IDS if i in card) for card in cards] == IDS[:3:-1]
    assert "greedy, step 10: repetition +0.8" in cards[0] and "a house a house" in cards[0]
    cut = [{"figure": "cut", "since": 0, "text": "cut of greedy captions went up"}]
    assert "greedy, step 10: length +14.00" in shown(page(write_run(tmp_path / "cut", cut)))[0]


def test_a_run_without_flags_says_so_and_one_without_a_monitor_says_nothing(tmp_path: Path) -> None:
    healthy = write_run(tmp_path / "healthy", [])
    html = page(healthy)
    assert "Held out: clip. 2 evaluations, none flagged." in html and not shown(html)
    (healthy / "watch.jsonl").unlink()
    assert 'id="monitor"' not in page(healthy)


@pytest.mark.parametrize("line", ['{"step": 20}', '{"step": 20, "marks": [{"text": "x"}], "sampled": {}}', "[1]", "{"])
def test_a_broken_monitor_file_is_a_note(tmp_path: Path, line: str) -> None:
    folder = write_run(tmp_path / "run", [])
    with (folder / "watch.jsonl").open("a") as file:
        file.write(line + "\n")
    assert "watch.jsonl" in page(folder)


def test_captions_that_are_gone_are_a_note(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [{"figure": "clip", "since": 0, "text": "clip fell"}])
    (folder / "captions" / "watch-0.jsonl").unlink()
    html = page(folder)
    assert "1 flagged, the first" in html and not shown(html)
    assert "The captions that the monitor judged at step 0 (captions/watch-0.jsonl) are missing" in html
