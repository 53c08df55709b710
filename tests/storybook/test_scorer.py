"""The storybook scorer against counts made by hand."""

from __future__ import annotations

import random
import string

import numpy as np
import pytest

from captune.scorers import check_needs, load_scorer
from captune.storybook.grammar import reference
from captune.storybook.world import Scene, Thing, sample_scene

FISH = Thing("fish", "striped", "red", "big", 0.27, 0.27)
CUP = Thing("cup", None, "blue", "small", 0.73, 0.27)
TREE = Thing("tree", "pine", "green", "small", 0.27, 0.73)
SCENE = Scene("beach", 3, (FISH, CUP, TREE))
# there are 3 objects, 3 colours, 3 sizes, 2 sub-kinds, 2 relations and a background to state: 14 facts
A = "a big red striped fish left of a small blue cup on the beach"  # 9 facts, all true
B = "a green cat and a red fish and a red fish"  # 5: cat, green, fish, red, a second fish; 2 of them true
C = ""
FULL = "a red fish left of a blue cup and a green tree below the fish"  # 8 true facts, every thing with its colour


@pytest.fixture
def scorer():
    return load_scorer("storybook")


def corpus(scorer, captions: list[str], scenes: list[Scene] | None = None) -> dict[str, float]:
    texts = [scene.to_json() for scene in scenes or [SCENE] * len(captions)]
    return scorer.corpus(scorer.rows(captions, scene=texts))


def test_one_caption_by_hand(scorer) -> None:
    values = corpus(scorer, [A])
    assert values["fact_precision"] == 1
    assert values["fact_recall"] == pytest.approx(9 / 14)
    assert values["fact_f1"] == pytest.approx(18 / 23)
    expected = {
        "object": 2 / 3,
        "attribute": 2 / 3,
        "size": 2 / 3,
        "subkind": 1 / 2,
        "relation": 1 / 2,
        "background": 1,
    }
    for name, recall in expected.items():
        assert values[f"{name}_precision"] == 1
        assert values[f"{name}_recall"] == pytest.approx(recall), name
        assert values[f"{name}_f1"] == pytest.approx(2 * recall / (1 + recall)), name
    assert values["hallucinated_per_caption"] == values["hallucinated_per_fact"] == values["full"] == 0


def test_the_corpus_is_micro_averaged(scorer) -> None:
    values = corpus(scorer, [A, B, C])
    assert values["fact_precision"] == pytest.approx((9 + 2) / (9 + 5))
    assert values["fact_recall"] == pytest.approx((9 + 2) / (3 * 14))
    assert values["fact_f1"] == pytest.approx(2 * 11 / (14 + 42))
    assert values["object_precision"] == pytest.approx((2 + 1) / (2 + 3))
    assert values["object_recall"] == pytest.approx((2 + 1) / 9)
    assert values["attribute_precision"] == pytest.approx((2 + 1) / (2 + 2))
    assert values["hallucinated_per_caption"] == pytest.approx(3 / 3)
    assert values["hallucinated_per_fact"] == pytest.approx(3 / 14)
    assert next(iter(values)) == "fact_f1", "the primary figure comes first"


def test_full_needs_every_thing_its_colour_and_nothing_false(scorer) -> None:
    assert corpus(scorer, [FULL])["full"] == 1
    assert corpus(scorer, [FULL.replace("red ", "")])["full"] == 0
    assert corpus(scorer, [f"{FULL} in the snow"])["full"] == 0
    assert corpus(scorer, [FULL, A, C, FULL])["full"] == 0.5


def test_what_a_wrong_relation_costs(scorer) -> None:
    right, wrong = corpus(scorer, [FULL]), corpus(scorer, [FULL.replace("left of", "right of")])
    assert (right["relation_precision"], right["relation_recall"]) == (1, 1)
    assert (wrong["relation_precision"], wrong["relation_recall"]) == (0.5, 0.5)
    assert wrong["object_f1"] == right["object_f1"] == 1
    assert wrong["hallucinated_per_caption"] == 1


def test_empty_captions(scorer) -> None:
    values = corpus(scorer, ["", ""])
    assert all(value == 0 for value in values.values()), values
    assert list(scorer([""], scene=[SCENE.to_json()])) == [0.0]
    assert scorer.rows([], scene=[]).shape == (0, scorer.rows([A], scene=[SCENE.to_json()]).shape[1])
    with pytest.raises(ValueError, match="no caption"):
        scorer.corpus(scorer.rows([], scene=[]))


def test_nothing_there_to_state_is_no_division_by_zero(scorer) -> None:
    """One cup: there is no sub-kind and no relation to recall."""
    values = corpus(scorer, ["a cup left of a cat"], [Scene("city", 0, (CUP,))])
    assert values["relation_recall"] == 0 and values["relation_precision"] == 0 and values["subkind_recall"] == 0
    assert all(np.isfinite(value) for value in values.values())


def test_per_caption_is_the_f1_of_the_caption_alone(scorer) -> None:
    captions = [A, B, C, FULL]
    scores = scorer.per_caption(scorer.rows(captions, scene=[SCENE.to_json()] * 4))
    assert scores == pytest.approx([18 / 23, 2 * 2 / (5 + 14), 0, 2 * 8 / (8 + 14)])
    assert scores == pytest.approx([corpus(scorer, [caption])["fact_f1"] for caption in captions])


def test_order_does_not_matter(scorer) -> None:
    rng = random.Random(0)
    scenes = [sample_scene("test", 0, i) for i in range(60)]
    captions = [reference(rng.choice(scenes), rng) for _ in scenes]
    values = corpus(scorer, captions, scenes)
    assert 0 < values["fact_f1"] < 1
    order = rng.sample(range(60), 60)
    again = corpus(scorer, [captions[i] for i in order], [scenes[i] for i in order])
    assert again == pytest.approx(values)


def test_references_are_without_fault(scorer) -> None:
    scenes = [sample_scene("ood", 0, i) for i in range(200)]
    rng = random.Random(0)
    values = corpus(scorer, [reference(scene, rng) for scene in scenes], scenes)
    for name in ("fact", "object", "attribute", "size", "subkind", "relation", "background"):
        assert values[f"{name}_precision"] == 1, name
    assert values["object_recall"] == values["attribute_recall"] == values["full"] == 1
    assert values["hallucinated_per_caption"] == 0


def test_captions_of_other_scenes_score_low(scorer) -> None:
    scenes = [sample_scene("test", 0, i) for i in range(200)]
    rng = random.Random(0)
    captions = [reference(scene, rng) for scene in scenes]
    own, others = corpus(scorer, captions, scenes), corpus(scorer, captions[1:] + captions[:1], scenes)
    assert own["fact_f1"] > 0.85 > 0.25 > others["fact_f1"]


def test_many_resamples_at_once(scorer) -> None:
    """Totals of resamples, (R, D), give the figures of each."""
    rows = scorer.rows([A, B, C], scene=[SCENE.to_json()] * 3)
    index = np.array([[0, 0, 1], [1, 2, 2], [0, 1, 2]])
    values = scorer.from_totals(rows[index].sum(axis=1), 3)
    for i, chosen in enumerate(index):
        assert {key: float(v[i]) for key, v in values.items()} == pytest.approx(scorer.corpus(rows[chosen]))


def test_as_a_reward(scorer) -> None:
    """TRL's signature: strings or messages, columns by name, anything else ignored."""
    scenes = [SCENE.to_json()] * 3
    expected = [18 / 23, 4 / 19, 0.0]
    assert scorer([A, B, C], scene=scenes) == pytest.approx(expected)
    chats = [[{"role": "assistant", "content": text}] for text in (A, B, C)]
    rewards = scorer(
        chats, prompts=["", "", ""], scene=scenes, image=[None] * 3, trainer_state=object(), image_id="abc"
    )
    assert isinstance(rewards, list) and all(type(reward) is float for reward in rewards)
    assert rewards == pytest.approx(expected)
    assert scorer.__name__ == "storybook"


def test_what_it_needs_is_said_before_work_starts(scorer) -> None:
    with pytest.raises(ValueError, match="scene"):
        scorer([A], references=[["a fish"]])
    with pytest.raises(ValueError, match="scene"):
        check_needs([scorer], {"image": [1]}, 1)
    with pytest.raises(ValueError, match="takes no argument.*'x'"):
        load_scorer("storybook:x")
    with pytest.raises(ValueError):
        scorer.rows([A, B], scene=[SCENE.to_json()])


def test_salad_scores_within_bounds(scorer) -> None:
    rng = random.Random(0)
    words = [*reference(SCENE, rng).split(), *A.split(), *B.split(), "<PERSON>", *string.punctuation]
    captions = [" ".join(rng.choices(words, k=rng.randint(0, 60))) for _ in range(500)]
    scores = np.array(scorer(captions, scene=[SCENE.to_json()] * 500))
    assert ((scores >= 0) & (scores <= 1)).all() and scores.std() > 0


def test_signature(scorer) -> None:
    assert scorer.signature.startswith("storybook|") and "micro" in scorer.signature
