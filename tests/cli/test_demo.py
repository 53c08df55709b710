from __future__ import annotations

import json

from captune.cli import demo


def scores(**figures: float) -> dict:
    return {scorer: {"values": {scorer: value}} for scorer, value in figures.items()}


def test_the_table_has_a_line_per_row_and_marks_what_was_not_measured_now():
    rows = [
        {"name": "base", "scores": scores(cider=0.25), "images_per_second": 99.6},
        {"name": "length reward", "role": "control", "scores": scores(cider=0.03), "source": "storybook:test?seed=1"},
    ]
    head, base, control, note = demo.table(rows).splitlines()
    assert head.split()[:2] == ["CIDEr-D", "BLEU-4"]
    assert base.split()[:2] == ["base", "0.250"] and base.split()[-1] == "100"
    assert control.startswith("length reward *") and "0.030" in control
    assert "storybook:test?seed=1" in note and "not measured now" in note
    assert len(head) == len(base) == len(control)


def test_controls_come_from_the_study_or_are_left_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(demo, "CONTROLS", tmp_path / "controls.json")
    assert demo.controls() == []
    assert "controls.json" in caplog.text
    rows = [{"name": "best of 8", "role": "control", "scores": scores(cider=0.1)}]
    (tmp_path / "controls.json").write_text(json.dumps({"rows": rows, "source": "s"}))
    assert demo.controls() == [{**rows[0], "source": "s"}]
