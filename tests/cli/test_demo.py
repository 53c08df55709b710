from __future__ import annotations

from pathlib import Path

from captune.cli import demo
from captune.cli.command import print_table


def scores(**figures: float) -> dict:
    return {scorer: {"values": {scorer: value}} for scorer, value in figures.items()}


def test_the_table_has_a_line_per_row_and_marks_what_was_not_measured_now(capsys):
    rows = [
        {"name": "base", "scores": scores(cider=0.25), "images_per_second": 99.6},
        {"name": "length reward", "role": "control", "scores": scores(cider=0.03), "source": "storybook:test?seed=1"},
    ]
    print_table(demo.table(rows))
    head, base, control, *_ = [line for line in capsys.readouterr().out.splitlines() if line]
    assert head.split()[:2] == ["CIDEr-D", "BLEU-4"]
    assert base.split()[:2] == ["base", "0.250"] and base.split()[-1] == "100"
    assert control.startswith("length reward *") and "0.030" in control
    note = demo.note(rows)
    assert "storybook:test?seed=1" in note and "measured before" in note
    assert len(head) == len(base)
    assert demo.note(rows[:1]) == ""


def test_the_controls_are_those_of_the_study():
    study = Path(__file__).parents[2] / "studies" / "vizer" / "results" / "controls.json"
    assert demo.CONTROLS.read_bytes() == study.read_bytes()
    assert [row["role"] for row in demo.controls()] == ["control"] * 4
    assert all(row["source"].startswith("storybook:test") for row in demo.controls())
