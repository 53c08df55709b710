from __future__ import annotations

import numpy as np
import pytest
import tiny_llm
from fact_judges import FactJudge, reply, shown

from captune.errors import EvaluationError, MissingColumn, ScorerError
from captune.scorers import load_scorer
from captune.scorers.questions.openchair import IGNORED, OpenChair
from captune.storybook import load
from captune.storybook.world import Scene, Thing

SCENE = Scene("beach", 3, (Thing("fish", "striped", "red", "big", 0.27, 0.27),
                           Thing("cup", None, "blue", "small", 0.73, 0.27))).to_json()  # fmt: skip


def test_the_share_of_what_is_not_there() -> None:
    judge = FactJudge(chooses=shown)
    scorer = OpenChair("m", answerer=judge)
    captions = ["A dog and a cat on the grass; the dog has a shadow.", "It is lovely.", "A photo of two dogs."]
    references = [["a dog on the grass", "a brown dog"]] * 3
    rows = scorer.rows(captions, references=references)
    assert scorer.nouns(captions) == [["dog", "cat", "grass", "dog", "shadow"], [], ["dog"]]
    assert rows.tolist() == [[3, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1]]
    np.testing.assert_allclose(scorer.per_caption(rows), [1 / 4, 0, 0])
    assert scorer.corpus(rows) == pytest.approx({"openchair": 1 / 5, "coverage": 2 / 3, "unsure": 1 / 6, "nouns": 2})
    assert len(judge.questions) == 4  # one for each noun of an image
    assert judge.questions[0].text == (
        "These captions describe one image:\n- a dog on the grass\n- a brown dog\nDoes the image show this: dog?\n"
        "Answer with one word: Yes if the captions say so or it follows from them, No if not, Unsure if it cannot be "
        "told."
    )


def test_distinct_counts_a_repeated_noun_once() -> None:
    scorer = OpenChair("m?distinct=1", answerer=FactJudge(chooses=shown))
    rows = scorer.rows(["A dog and a cat; the dog runs after another cat."], references=[["a dog"]])
    assert rows.tolist() == [[1, 1, 0, 1]] and "repeated:once" in scorer.signature


def test_what_is_denied_or_a_medium_is_no_noun() -> None:
    nouns = OpenChair("m", answerer=FactJudge()).nouns
    assert nouns(["A photograph of a street without people, no cars"]) == [["street"]]
    assert nouns([f"a {word}" for word in sorted(IGNORED)]) == [[]] * len(IGNORED)
    assert nouns(["", "一只狗 😀", "in the background on the left"]) == [[], ["一只狗"], []]


def test_on_storybook_it_is_one_minus_the_precision_of_objects() -> None:
    data = load("test", n=40, seed=3)
    captions = [r[0] for r in data["references"][20:]] + [r[0] for r in data["references"][:20]]
    captions[3], captions[4] = "", "a fish and a fish and the fish"
    scorer, exact = load_scorer("openchair"), load_scorer("storybook")
    columns = {"scene": data["scene"]}
    found = scorer.corpus(scorer.measure(captions, columns))
    facts = exact.corpus(exact.measure(captions, columns))
    assert found["openchair"] == pytest.approx(1 - facts["object_precision"])
    assert found["coverage"] == 39 / 40 and found["unsure"] == 0
    once = load_scorer("openchair:?distinct=1")
    assert once.measure(["a cat, a fish and a fish"], {"scene": [SCENE]}).tolist() == [[1, 1, 0, 1]]
    assert scorer.measure(["a cat, a fish and a fish"], {"scene": [SCENE]}).tolist() == [[1, 2, 0, 1]]


def test_a_server_judges_and_failure_is_no_zero() -> None:
    with tiny_llm.server(reply) as (url, seen):
        scorer = load_scorer(f"openchair:{url}#m")
        assert scorer(["a dog and a cat"], references=[["a dog"]]) == [0.5] and len(seen) == 2
    for fault, says in [(tiny_llm.completion({"The": 1.0}), "no answer"), ((404, "gone"), "refused")]:
        with (
            tiny_llm.server(lambda payload, n, fault=fault: fault) as (url, _),
            pytest.raises(ScorerError, match=f"{says}.* about 'dog' in caption 'a dog'"),
        ):
            load_scorer(f"openchair:{url}#m")(["a dog"], references=[["a dog"]])
    with pytest.raises(EvaluationError, match="caption 0 has no reference"):
        OpenChair("m", answerer=FactJudge()).rows(["a dog"], references=[[]])
    with pytest.raises(MissingColumn, match="'openchair' needs scene"):
        load_scorer("openchair").measure(["a"], {"references": [["a"]]})
