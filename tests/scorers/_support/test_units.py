from __future__ import annotations

import re

import pytest
from fact_judges import FactJudge

from captune.data.schemes import SOURCES
from captune.errors import ScorerError
from captune.scorers._support.units import UNITS, Unit, asked_units, exact_program, exact_units, the_reference
from captune.storybook.world import Scene, Thing

SCENE = Scene("beach", 3, (Thing("fish", "striped", "red", "big", 0.27, 0.27),)).to_json()


def test_a_name_of_a_source_with_a_truth_is_its_program() -> None:
    assert exact_program("storybook") is SOURCES["storybook"]
    assert exact_program("Qwen/Qwen3-8B") is exact_program("") is None


def test_a_sentence_in_which_nothing_is_read_is_a_unit_that_is_not_descriptive() -> None:
    caption = "A red fish. What a day!\nIt is 3.5 meters; a cat: on the beach... ! 🐟"
    units = exact_units(SOURCES["storybook"], caption, SCENE)
    assert [(u.text, u.true) for u in units if u.descriptive] == [
        ("attribute (fish red)", True), ("object (fish)", True), ("object (cat)", False), ("background (beach)", True),
    ]  # fmt: skip
    assert [u.text for u in units if not u.descriptive] == ["What a day", "It is 3.5 meters"]
    assert exact_units(SOURCES["storybook"], " .!", SCENE) == []


def test_a_model_splits_equal_texts_once_and_blank_ones_never() -> None:
    judge, kept = FactJudge(), {}  # type: ignore[var-annotated]
    found = asked_units(judge, ["a, it is lovely", " ... ", "a,\n it is lovely", "b"], ["x"] * 4, kept)
    first = [Unit("a"), Unit("it is lovely", descriptive=False)]
    assert found == [first, [], first, [Unit("b")]] and len(judge.prompts) == 2
    assert asked_units(judge, ["b", ""], ["x", "y"], kept) == [[Unit("b")], []] and len(judge.prompts) == 2


def test_the_prompts_own_example_is_no_answer() -> None:
    """What smollm2-135m wrote."""
    example = re.findall(r"\[\{.*\}\]", UNITS.format(text="a dog"))[0]
    with pytest.raises(ScorerError, match="asked twice about caption 'a dog' .*: it repeats the example"):
        asked_units(FactJudge(lambda text: example), ["a dog"], ["caption 'a dog'"])
    assert len(asked_units(FactJudge(lambda text: example), ["A Zeppelin looks proud"], ["x"])[0]) == 2


def test_the_reference_is_all_or_one() -> None:
    assert the_reference("s", ["a\nb", "c"], None, "it") == "a b\nc" and the_reference("s", ["a", "c"], 1, "it") == "c"
    for texts, number in (([], None), (["a"], 1)):
        with pytest.raises(ScorerError, match=f"scorer 's': it has {len(texts)} references, and number"):
            the_reference("s", texts, number, "it")
