"""The alt text: its registers in the stated shares, each slot wrong as often as stated, and no clean mode."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from captune.storybook import noise
from captune.storybook.grammar import FORMS, PLACE
from captune.storybook.noise import (
    CHATTY,
    GENERIC,
    HABIT_COLOUR,
    HABIT_COMPANION,
    HABIT_KIND,
    HABIT_PLACE,
    HABIT_SUBKIND,
    STYLES,
    alt_text,
    descriptive,
)
from captune.storybook.parser import judged, parse
from captune.storybook.world import COLOURS, KIND_NAMES, KINDS, Scene, Thing, sample_scene

TOLERANCE = 0.03


def pattern(template: str) -> str:
    places = "|".join(PLACE.values())
    parts = {"{year}": r"20\d\d", "{place}": f"(?:{places})", "{a}": r"\w+", "{b}": r"\w+"}
    return re.sub(r"\\\{(\w+)\\\}", lambda m: parts[f"{{{m[1]}}}"], re.escape(template))


CHATTY_PATTERN = re.compile("|".join(f"(?:{pattern(text)})" for text, _ in CHATTY))
GENERIC_PATTERN = re.compile("|".join(f"(?:{pattern(text)})" for text in GENERIC))
PARTIAL_PATTERN = re.compile(r"my \w+(?: in 20\d\d)?|the \w+|.* for sale")


def register(text: str) -> str:
    """Which register a text is in, by its words. A partial text may read like a descriptive one."""
    if CHATTY_PATTERN.fullmatch(text):
        return "chatty"
    if GENERIC_PATTERN.fullmatch(text):
        return "generic"
    return "partial" if PARTIAL_PATTERN.fullmatch(text) else "descriptive"


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample_scene("train", 3, i) for i in range(1000)]


@pytest.fixture(scope="module")
def texts(scenes: list[Scene]) -> list[tuple[Scene, str]]:
    """6000 alt texts with their scenes."""
    rng = random.Random(0)
    return [(scene, alt_text(scene, rng, rng.choice(scenes))) for _ in range(6) for scene in scenes]


def share(values: list[bool]) -> float:
    assert len(values) > 300, "too few to tell a share"
    return sum(values) / len(values)


def probability(table: tuple[tuple[str, float], ...], choice: str) -> float:
    return dict(table).get(choice, 0.0)


def test_registers_in_the_stated_shares(texts: list[tuple[Scene, str]]) -> None:
    found = Counter(register(text) for _, text in texts)
    shares = {name: n / len(texts) for name, n in found.items()}
    assert shares["chatty"] == pytest.approx(probability(STYLES, "chatty"), abs=0.02)
    assert shares["generic"] == pytest.approx(probability(STYLES, "generic"), abs=0.01)
    partial, wrong = probability(STYLES, "partial"), probability(STYLES, "wrong")
    # one in five partial texts is a bare noun phrase; the descriptions of another picture read like descriptions
    assert shares["partial"] == pytest.approx(0.8 * partial, abs=0.015)
    assert shares["descriptive"] == pytest.approx(probability(STYLES, "descriptive") + wrong + 0.2 * partial, abs=0.02)
    assert sum(p for _, p in STYLES) == pytest.approx(1)


def test_about_a_third_is_descriptive() -> None:
    assert 0.28 <= probability(STYLES, "descriptive") <= 0.4


def test_no_register_is_clean(texts: list[tuple[Scene, str]]) -> None:
    """Neither a register that describes, nor an opening, nor a length goes with being right."""
    modes: dict[str, list[bool]] = {}
    for scene, text in texts:
        kind = register(text)
        if kind in ("chatty", "descriptive"):
            verdicts = [true for _, true in judged(text, scene)]
            names = [kind, " ".join(text.split()[:2])] + ([f"{len(text.split()) // 4}"] if len(verdicts) > 2 else [])
            for name in names:
                modes.setdefault(name, []).append(bool(verdicts) and all(verdicts))
    rates = {name: sum(right) / len(right) for name, right in modes.items() if len(right) >= 60}
    assert len(rates) > 10
    assert max(rates.values()) < 0.4, rates


NO_HABIT = [kind for kind in KIND_NAMES if kind not in HABIT_KIND.values()]  # kinds that habit never says
NO_HABIT_COLOURS = [colour for colour in COLOURS if colour not in HABIT_COLOUR.values()]


def plain_scenes() -> list[Scene]:
    """Scenes of one thing where the truth is nowhere what habit says, so that each slot shows how it was filled."""
    found = []
    for i, kind in enumerate(NO_HABIT):
        for background in PLACE:
            if HABIT_PLACE[kind] != background:
                colour = NO_HABIT_COLOURS[i % len(NO_HABIT_COLOURS)]
                subkind = next((s for s in KINDS[kind] if s != HABIT_SUBKIND[kind]), None)
                found.append(Scene(background, 0, (Thing(kind, subkind, colour, "big", 0.27, 0.73),)))
    return found


@pytest.fixture(scope="module")
def described() -> list[tuple[Scene, list]]:
    """Descriptions of one-thing scenes as (type, value) facts."""
    rng = random.Random(1)
    scenes = plain_scenes()
    return [(s, [(f.type, f.value) for f in parse(descriptive(s, rng))]) for _ in range(160) for s in scenes]


def first_object(facts: list) -> str:
    return next(value[0] for fact_type, value in facts if fact_type == "object")


def own(facts: list, fact_type: str, kind: str) -> list[str]:
    return [value[1] for t, value in facts if t == fact_type and value[0] == kind]


def test_kinds_err_as_stated(described: list[tuple[Scene, list]]) -> None:
    seen = [(scene.things[0].kind, first_object(facts)) for scene, facts in described]
    lot = probability(noise.KIND, "random")
    right = share([said == kind for kind, said in seen])
    habit = share([said in HABIT_KIND.values() for _, said in seen])
    assert right == pytest.approx(probability(noise.KIND, "true") + lot / len(KIND_NAMES), abs=TOLERANCE)
    habits = len(set(HABIT_KIND.values())) / len(KIND_NAMES)
    assert habit == pytest.approx(probability(noise.KIND, "habit") + lot * habits, abs=TOLERANCE)


def named_rightly(described: list[tuple[Scene, list]]) -> list[tuple[Thing, list]]:
    return [(s.things[0], facts) for s, facts in described if first_object(facts) == s.things[0].kind]


def test_colours_err_as_stated(described: list[tuple[Scene, list]]) -> None:
    said = [(thing, own(facts, "attribute", thing.kind)) for thing, facts in named_rightly(described)]
    none = share([not colours for _, colours in said])
    right = share([colours[:1] == [thing.colour] for thing, colours in said])
    habit = share([bool(colours) and colours[0] in HABIT_COLOUR.values() for _, colours in said])
    for rate, choice in ((none, "none"), (right, "true"), (habit, "habit")):
        assert rate == pytest.approx(probability(noise.COLOUR, choice), abs=TOLERANCE), choice


def test_sizes_err_as_stated(described: list[tuple[Scene, list]]) -> None:
    said = [(thing, own(facts, "size", thing.kind)) for thing, facts in named_rightly(described)]
    assert share([not sizes for _, sizes in said]) == pytest.approx(probability(noise.SIZE, "none"), abs=TOLERANCE)
    assert share([sizes[:1] == [t.size] for t, sizes in said]) == pytest.approx(
        probability(noise.SIZE, "true"), abs=TOLERANCE
    )


def test_subkinds_err_as_stated(described: list[tuple[Scene, list]]) -> None:
    said = [(t, own(facts, "subkind", t.kind)) for t, facts in named_rightly(described) if t.subkind]
    assert share([not subkinds for _, subkinds in said]) == pytest.approx(
        probability(noise.SUBKIND, "none"), abs=TOLERANCE
    )
    habit = share([subkinds[:1] == [HABIT_SUBKIND[thing.kind]] for thing, subkinds in said])
    assert habit == pytest.approx(probability(noise.SUBKIND, "habit"), abs=TOLERANCE)


def test_companions_that_are_not_there(described: list[tuple[Scene, list]]) -> None:
    second = [
        [value[0] for fact_type, value in facts if fact_type == "object"][1:] == [HABIT_COMPANION[first_object(facts)]]
        for _, facts in described
    ]
    assert share(second) == pytest.approx(probability(noise.SECOND_THING, "companion"), abs=TOLERANCE)


def test_backgrounds_err_as_stated(described: list[tuple[Scene, list]]) -> None:
    rows = [
        (scene, [value[0] for fact_type, value in facts if fact_type == "background"])
        for scene, facts in described
        if first_object(facts) == scene.things[0].kind
    ]
    kept = 1 - probability(FORMS, "{body}")  # a form without a place drops the place that was chosen
    none, right = probability(noise.BACKGROUND, "none"), probability(noise.BACKGROUND, "true")
    assert share([not places for _, places in rows]) == pytest.approx(1 - kept * (1 - none), abs=TOLERANCE)
    assert share([places == [scene.background] for scene, places in rows]) == pytest.approx(kept * right, abs=TOLERANCE)


def test_relations_err_as_stated() -> None:
    """Two things side by side, of which habit says neither."""
    kinds = next(
        (a, b) for a in NO_HABIT for b in NO_HABIT if a != b and HABIT_COMPANION[a] != b and HABIT_COMPANION[b] != a
    )
    things = [Thing(kind, None, "red", "big", x, 0.27) for kind, x in zip(kinds, (0.27, 0.73), strict=True)]
    scene = Scene("meadow", 0, tuple(things))
    rng = random.Random(2)
    outcomes = []
    for _ in range(12_000):
        verdicts = judged(descriptive(scene, rng), scene)
        if {fact.value[0] for fact, _ in verdicts if fact.type == "object"} == set(kinds):
            relation = [true for fact, true in verdicts if fact.type == "relation"]
            outcomes.append(relation[0] if relation else None)
    for outcome, choice in ((True, "true"), (False, "inverse"), (None, "blurred")):
        rate = share([o is outcome for o in outcomes])
        assert rate == pytest.approx(probability(noise.RELATION, choice), abs=0.04), choice


def test_companions_are_other_things() -> None:
    assert set(HABIT_COMPANION) == set(KIND_NAMES)
    assert all(companion in KIND_NAMES and companion != kind for kind, companion in HABIT_COMPANION.items())


def test_the_right_word_is_within_reach(texts: list[tuple[Scene, str]]) -> None:
    """Descriptions name most things and colours rightly often enough that sampling can find them."""
    true: Counter[str] = Counter()
    stated: Counter[str] = Counter()
    for scene, text in texts:
        if register(text) == "descriptive":
            for fact, verdict in judged(text, scene):
                stated[fact.type] += 1
                true[fact.type] += verdict
    rates = {fact_type: true[fact_type] / stated[fact_type] for fact_type in stated}
    assert all(0.05 < rates[name] < 0.85 for name in ("object", "attribute", "relation", "size", "background")), rates


def test_clean_descriptions_are_true(scenes: list[Scene]) -> None:
    """The curriculum's first texts: every slot filled with the truth."""
    rng = random.Random(0)
    for scene in scenes:
        verdicts = judged(text := descriptive(scene, rng, clean=True), scene)
        assert verdicts and all(true for _, true in verdicts), text
        assert sum(fact.type == "object" for fact, _ in verdicts) == len(scene.things), text


def test_texts_are_one_line_without_doubled_spaces(texts: list[tuple[Scene, str]]) -> None:
    for _, text in texts:
        assert text == " ".join(text.split()) and text, repr(text)
        assert "{" not in text and "None" not in text


def test_the_same_lot_gives_the_same_text(scenes: list[Scene]) -> None:
    assert [alt_text(s, random.Random(3), scenes[0]) for s in scenes[:50]] == [
        alt_text(s, random.Random(3), scenes[0]) for s in scenes[:50]
    ]


def test_person_survives_the_tokenizer(storybook_tokenizer, texts: list[tuple[Scene, str]]) -> None:
    tokenizer = storybook_tokenizer
    named = [text for _, text in texts if "<PERSON>" in text][:50]
    assert named
    for text in [*named, "<PERSON>", "a day with <PERSON> in the meadow"]:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert not set(ids) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_any_text_survives_the_tokenizer(storybook_tokenizer) -> None:
    for text in ("Ünïcode ☃ 🐟", "a fish\nand a cup", "UPPER case; (brackets)", "日本語"):
        ids = storybook_tokenizer(text, add_special_tokens=False).input_ids
        assert storybook_tokenizer.unk_token_id not in ids
        assert storybook_tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_captions_take_few_tokens(storybook_tokenizer, texts: list[tuple[Scene, str]]) -> None:
    lengths = [len(storybook_tokenizer(text, add_special_tokens=False).input_ids) for _, text in texts[:1000]]
    assert max(lengths) <= 40
