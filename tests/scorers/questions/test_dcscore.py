from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_llm
from fact_judges import FactJudge, reply, write

from captune.data.schemes import SOURCES
from captune.errors import EvaluationError, MissingColumn, ScorerError, SpecError
from captune.evaluation.run import evaluate_files
from captune.models.answerers.server import Server
from captune.scorers import load_scorer
from captune.scorers.questions.dcscore import DCScore
from captune.storybook import load
from captune.storybook.grammar import RELATIONS
from captune.storybook.world import Scene, Thing, relations

SCENE = Scene("beach", 3, (Thing("fish", "striped", "red", "big", 0.27, 0.27),
                           Thing("cup", None, "blue", "small", 0.73, 0.27))).to_json()  # fmt: skip
IMAGES = [tiny.picture(i) for i in range(3)]


# -- the exact program -------------------------------------------------------------------------------------------------


def plain_f1(caption: str, scene: str) -> float:
    """The F1 of a caption's facts against all of the scene's, by sets; a repeated thing is a false one."""
    scheme = SOURCES["storybook"]
    stated = scheme.statements(caption, scene)
    true = {s.key for s in stated if s.true}
    there = {s.key for s in scheme.facts(scene)}
    assert true <= there
    return 2 * len(true) / (len(stated) + len(there)) if stated else 0.0


def test_with_the_scenes_facts_it_is_the_plain_f1_of_facts() -> None:
    data = load("test", n=60, seed=3)
    first, second = ([r[i] for r in data["references"]] for i in (0, 1))
    captions = [*first, *second[1:], "a red fish", "a fish a fish"]
    scenes = [*data["scene"], *data["scene"][:-1], SCENE, SCENE]
    scorer = load_scorer("dcscore")
    rows = scorer.measure(captions, {"scene": scenes})
    np.testing.assert_allclose(
        scorer.per_caption(rows), [plain_f1(c, s) for c, s in zip(captions, scenes, strict=True)]
    )
    np.testing.assert_array_equal(rows[:, 1:4], rows[:, 4:7])  # every sentence is read, so all units are descriptive
    # it is also that of the scorer `storybook`, where a scene has as many relations as the grammar states
    exact = load_scorer("storybook")
    facts = exact.per_caption(exact.measure(captions, {"scene": scenes}))
    same = [_number_of_relations(scene) == RELATIONS[len(Scene.from_json(scene).things)] for scene in scenes]
    assert sum(same) > 30
    np.testing.assert_allclose(scorer.per_caption(rows)[same], facts[same])


def _number_of_relations(scene: str) -> int:
    things = Scene.from_json(scene).things
    return sum(len(relations(a, b)) for i, a in enumerate(things) for b in things[i + 1 :])


def test_what_the_program_cannot_read_is_not_descriptive() -> None:
    scorer = load_scorer("dcscore")
    captions = ["a red fish", "a red fish. What a lovely day! 3.5 stars.", "What a day", ""]
    rows = scorer.measure(captions, {"scene": [SCENE] * 4})
    assert rows[:, 7].tolist() == [2, 4, 1, 0]  # units
    n = 1 + 2 * 3 + 1 + 1  # the scene's facts: background, kind, colour and size of two, a sub-kind, a relation
    np.testing.assert_allclose(rows[0, 1:7], [2 * 2 / (2 + n), 1, 2 / n] * 2)
    np.testing.assert_allclose(rows[1, 1:7], [2 * 2 / (4 + n), 2 / 4, 2 / n, 2 * 2 / (2 + n), 1, 2 / n])
    assert not rows[2:, :7].any()
    assert scorer.corpus(rows)["dcscore"] == pytest.approx(np.mean(scorer.per_caption(rows)))


def test_true_extras_raise_the_recall_of_an_incomplete_reference() -> None:
    """U: with one reference's facts as O, trivial truths push the recall towards 1; against the scene they do not."""
    scorer = load_scorer("dcscore:?reference=0")
    assert scorer.required_columns == ("scene", "references")
    columns = {"scene": [SCENE] * 3, "references": [["a red fish on the beach", "a cup"]] * 3}
    captions = ["a red fish", "a red fish left of a small blue cup", "a red cat"]
    rows = scorer.measure(captions, columns)
    np.testing.assert_allclose(rows[:, 3], [2 / 3, (2 + 4) / (3 + 4), 0])
    np.testing.assert_allclose(rows[:, 2], [1, 1, 0])
    with pytest.raises(ScorerError, match="caption 'a cat' has 1 references, and number 1 is asked for"):
        load_scorer("dcscore:?reference=1").measure(["a cat"], {"scene": [SCENE], "references": [["a"]]})
    assert "against:reference:0" in scorer.signature


# -- models ------------------------------------------------------------------------------------------------------------


def asked(settings: str = "", judge: FactJudge | None = None, **context: Any) -> DCScore:
    judge = judge or FactJudge()
    return DCScore(f"m?{settings}" if settings else "m", answerer=judge, verifier=judge, **context)


REFERENCES = [["dog is brown, grass is green, sky is blue"], ["cat sleeps, it is lovely"], ["fish"]]


def test_models_split_verify_and_match() -> None:
    judge = FactJudge()
    scorer = asked(judge=judge)
    captions = ["dog is brown, dog is big, grass is green, it is lovely", "cat runs", ""]
    rows = scorer.rows(captions, image=IMAGES, references=REFERENCES)
    # verified: 1, 0, 1, 0; matched with 1, 1, 2, none; the first two share a match
    p, r = 2 / 4, (1 / 2 + 1) / 3
    d, e = 2 / 3, (1 / 2 + 1) / 3
    f, g = 2 * p * r / (p + r), 2 * d * e / (d + e)
    np.testing.assert_allclose(rows[0], [(f + g) / 2, f, p, r, g, d, e, 4, 1])
    assert rows[1:].tolist() == [[0] * 7 + [1, 1], [0] * 7 + [0, 1]]
    images = [prompt.image for prompt in judge.prompts if prompt.text.startswith("Look")]
    assert [image.tobytes() for image in images] == [image.tobytes() for image in IMAGES[:2]]
    assert all("temperature" not in settings for settings in judge.settings)  # greedy
    before = len(judge.prompts)
    scorer.rows(captions[:1], image=IMAGES[:1], references=REFERENCES[:1])
    assert len(judge.prompts) == before + 3  # the reference is not split again


def test_the_average_over_trials_is_sampled() -> None:
    def moody(text: str) -> str:
        answer = write(text)
        judge.calls += text.startswith("Look")
        return "[false, false]" if text.startswith("Look") and judge.calls == 2 else answer

    judge: Any = FactJudge(moody)
    judge.calls = 0
    scorer = asked("verifications=3&matchings=2", judge)
    row = scorer.rows(["dog is brown, grass is green"], image=IMAGES[:1], references=REFERENCES[:1])[0]
    f = 2 * 1 * (2 / 3) / (1 + 2 / 3)
    np.testing.assert_allclose(row[1:4], [4 * f / 6, 4 / 6, 4 * (2 / 3) / 6])
    sampled = [(s["temperature"], s["seed"]) for s in judge.settings if "seed" in s]
    assert sampled == [(0.3, 0), (0.3, 1), (0.3, 2), (1.0, 0), (1.0, 1)]
    assert "verifications:3|matchings:2" in scorer.signature


def test_units_of_people_come_from_decapbenchs_file(tmp_path: Path) -> None:
    lines = [
        {"image_name": "a.jpg", "oracle_caption": "dog is brown on grass", "oracle_facts": ["dog is brown", "grass"]}
    ]
    file = tmp_path / "oracle.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    scorer = asked(f"facts={file}")
    scorer.check()
    assert scorer.required_columns == ("image", "image_id")
    row = scorer.rows(["dog is brown, sun is up"], image=IMAGES[:1], image_id=["a.jpg"])[0]
    np.testing.assert_allclose(row[2:4], [1 / 2, 1 / 2])
    with pytest.raises(ScorerError, match="no facts of image 'b.jpg'; its images are called like 'a.jpg'"):
        scorer.rows(["dog"], image=IMAGES[:1], image_id=["b.jpg"])
    for wrong in ({"image_name": "a"}, {**lines[0], "oracle_facts": []}, {**lines[0], "oracle_facts": [3]}, [1]):
        file.write_text(json.dumps(lines[0]) + "\n" + json.dumps(wrong))
        with pytest.raises(ScorerError, match="line 2, is not of the form"):
            asked(f"facts={file}").check()


@pytest.mark.parametrize(
    ("start", "answer"),
    [
        ("Split", "[]"), ("Split", '[{"fact": "a"}]'), ("Split", '[{"fact": " ", "descriptive": true}]'),
        ("Split", "{}"), ("Look", "[1, 0]"), ("Look", "Yes, both."), ("Here", "[1, 4]"), ("Here", "[true, null]"),
        ("Look", "[true]"), ("Here", "[0, 1]"), ("Here", '["1", null]'),
    ],
)  # fmt: skip
def test_nonsense_is_an_error_that_names_the_caption(start: str, answer: str) -> None:
    scorer = asked(judge=FactJudge(lambda text: answer if text.startswith(start) else write(text)))
    with pytest.raises(ScorerError, match="judge@1 was asked twice about (caption|reference) 'dog is brown, "):
        scorer.rows(["dog is brown, dog is big"], image=IMAGES[:1], references=REFERENCES[:1])


def test_what_a_spec_must_say(tmp_path: Path) -> None:
    for spec, says in [
        ("dcscore:some/model", "needs a vision-language model to verify: write 'dcscore:Qwen"),
        ("dcscore:?verifications=3", "'storybook' judges by a program and has no verifier"),
        ("dcscore:storybook?verifier=a/b", "'storybook' judges by a program"),
        (f"dcscore:a/b?answers={tmp_path}", "nobody is asked: leave all but compat out"),
        (f"dcscore:?answers={tmp_path}&matchings=3", "nobody is asked"),
        ("dcscore:a/b?verifier=c/d&facts=x&reference=1", "leave one out"),
        ("dcscore:?verification=3", "unknown setting 'verification'"),
    ]:
        with pytest.raises(SpecError, match=says):
            load_scorer(spec)
    scorer = load_scorer("dcscore:?verifier=some/vlm")
    assert isinstance(scorer, DCScore) and scorer.answerer.name == "smollm2-135m"  # type: ignore[attr-defined]
    assert scorer.required_columns == ("image", "references") and scorer.cached
    with pytest.raises(MissingColumn, match="'dcscore' needs scene"):
        load_scorer("dcscore").measure(["a"], {"references": [["a"]]})


# -- saved answers, in the form of DeCapBench's script -----------------------------------------------------------------


def record(name: str, caption: str, facts: list[tuple[str, int]], said: list[list[int]], maps: list[list[Any]], n: int,
           valid: bool = True) -> dict[str, Any]:  # fmt: skip
    """As the script saves it: units by their text, verifications and matchings a list each."""
    texts = [text for text, _ in facts]
    return {
        "image_name": name,
        "caption": caption,
        "human_annotated_oracle_atomic_facts": [{"id": i, "fact": f"o{i}", "relevance": 1} for i in range(n)],
        "eval_details": {
            "pred_atomic_facts": [{"fact": text, "identifier": "x_0", "relevance": r} for text, r in facts],
            "verified_results": [
                [{"fact": t, "identifier": "x_0", "verification": v} for t, v in zip(texts, own, strict=True)]
                for own in said
            ],
            "mappings_with_human": [dict(zip(texts, own, strict=True)) for own in maps],
        },
        "valid": valid,
    }


RECORDS = [
    record("a.jpg", "a dog", [("f0", 1), ("f1", 0), ("f2", 1), ("f3", 0)], [[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]],
           [[0, 0, 0, "None"], [0, 1, None, 1], [2, 2, 1, "None"]], 3),
    record("b.jpg", "two dogs", [("f0", 1), ("f0", 0), ("f1", 0)], [[1, 0, 1]], [[0, 1, 1]], 4),
    record("c.jpg", "false", [("f0", 1), ("f1", 0)], [[0, 0]], [[0, 1]], 2),
]  # fmt: skip


def published(records: Iterable[dict[str, Any]]) -> float:
    """The script's figure, worked out from the formulas: every combination's F of all and of relevant units."""
    scores = []
    for entry in records:
        if not entry["valid"]:
            continue
        details, oracle = entry["eval_details"], len(entry["human_annotated_oracle_atomic_facts"])
        wanted = {unit["fact"] for unit in details["pred_atomic_facts"] if unit["relevance"] == 1}
        totals = []
        for said in details["verified_results"]:
            for mapping in details["mappings_with_human"]:
                n: dict[Any, int] = {}
                for unit in said:
                    if mapping[unit["fact"]] not in (None, "None"):
                        n[mapping[unit["fact"]]] = n.get(mapping[unit["fact"]], 0) + 1
                for units in (said, [unit for unit in said if unit["fact"] in wanted]):
                    credit, hits, size = 0.0, 0, oracle
                    for unit in units:
                        if unit["verification"] == 1:
                            hits += 1
                            match = mapping[unit["fact"]]
                            credit += 1 if match in (None, "None") else 1 / n[match]
                            size += match in (None, "None")
                    p, r = hits / len(units), credit / size
                    totals.append(2 * p * r / (p + r + 1e-8))
        scores.append(sum(totals) / len(totals))
    return sum(scores) / len(scores) * 100


def save(folder: Path, records: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    for i, entry in enumerate(records):
        (folder / f"{i}.json").write_text(json.dumps(entry))
    return folder


def judged(folder: Path, records: list[dict[str, Any]], compat: str) -> tuple[DCScore, np.ndarray]:
    scorer = load_scorer(f"dcscore:?answers={folder}&compat={compat}")
    assert isinstance(scorer, DCScore)
    scorer.check()
    return scorer, scorer.measure([r["caption"] for r in records], {"image_id": [r["image_name"] for r in records]})


def test_saved_answers_give_the_published_figure(tmp_path: Path) -> None:
    scorer, rows = judged(save(tmp_path / "a", RECORDS), RECORDS, "published")
    assert scorer.corpus(rows)["dcscore"] * 100 == pytest.approx(published(RECORDS), abs=1e-12)
    for entry, value in zip(RECORDS, scorer.per_caption(rows), strict=True):
        assert value * 100 == pytest.approx(published([entry]), abs=1e-12)


def test_random_answers_give_the_published_figure(tmp_path: Path) -> None:
    rng = random.Random(0)
    records = []
    for i in range(60):
        n, k = rng.randint(1, 8), rng.randint(1, 5)
        facts = [(f"f{rng.randrange(n)}", rng.randrange(2)) for _ in range(n)]
        facts[0] = (facts[0][0], 1)
        said = [[rng.randrange(2) for _ in range(n)] for _ in range(3)]
        maps = [[rng.choice([None, "None", *range(k)]) for _ in range(n)] for _ in range(3)]
        records.append(record(f"{i}.jpg", f"caption {i}", facts, said, maps, k))
    scorer, rows = judged(save(tmp_path / "a", records), records, "published")
    assert scorer.corpus(rows)["dcscore"] * 100 == pytest.approx(published(records), abs=1e-10)
    ours, mine = judged(tmp_path / "a", records, "none")
    assert ((mine[:, :7] >= 0) & (mine[:, :7] <= 1)).all() and not np.allclose(mine, rows)
    assert scorer.signature != ours.signature


def test_by_default_it_differs_as_documented(tmp_path: Path) -> None:
    """Matches of descriptive units are counted among these alone, and no 1e-8 lowers the F1."""
    entry = record("a.jpg", "a dog", [("f0", 1), ("f1", 0)], [[1, 1]], [[0, 0]], 1)
    _, (theirs,) = judged(save(tmp_path / "a", [entry]), [entry], "published")
    _, (ours,) = judged(tmp_path / "a", [entry], "none")
    assert ours[1:7].tolist() == [1, 1, 1, 1, 1, 1]
    half = 2 * 1 * 0.5 / (1.5 + 1e-8)
    np.testing.assert_allclose(theirs[1:7], [2 / (2 + 1e-8), 1, 1, half, 1, 0.5], rtol=1e-15)


def test_equal_units_collapse_only_as_published() -> None:
    """Two equal facts of which one is matched: the script gives both the last match, and makes both relevant."""
    twice = '[{"fact": "a dog", "descriptive": true}, {"fact": "a dog", "descriptive": false}]'

    def says(text: str) -> str:
        if text.startswith("Split") and '"a dog, a dog"' in text:
            return twice
        return {"S": write(text) if text.startswith("Split") else "", "L": "[true, true]", "H": "[1, null]"}[text[0]]

    rows = {
        compat: asked(f"compat={compat}", FactJudge(says)).rows(
            ["a dog, a dog"], image=IMAGES[:1], references=[["a dog"]]
        )[0]
        for compat in ("none", "published")
    }
    np.testing.assert_allclose(rows["none"][1:7], [1, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(rows["published"][1:7], [0.8, 1, 2 / 3] * 2, atol=1e-7)  # no match: U = 2
    reverse = {
        compat: asked(f"compat={compat}", FactJudge(lambda t: "[null, 1]" if t[0] == "H" else says(t))).rows(
            ["a dog, a dog"], image=IMAGES[:1], references=[["a dog"]]
        )[0]
        for compat in ("none", "published")
    }
    np.testing.assert_allclose(reverse["published"][3], 1)  # both matched with it: 1/2 + 1/2 of 1
    np.testing.assert_allclose(reverse["none"][[3, 6]], [1, 1 / 2])  # one match, one extra; descriptive: the extra


def test_what_the_judge_failed_on_is_an_error_or_left_out_and_said(tmp_path: Path, caplog) -> None:
    bad = record("x.jpg", "x", [("f0", 1)], [[1]], [[0]], 1, valid=False)
    records = [*RECORDS, bad]
    folder = save(tmp_path / "a", records)
    with pytest.raises(ScorerError, match="the judge failed on caption 'x' of image 'x.jpg'; judge it again"):
        judged(folder, records, "none")
    scorer, rows = judged(folder, records, "published")
    assert "the judge failed on caption 'x'" in caplog.text and math.isnan(scorer.per_caption(rows)[-1])
    assert scorer.corpus(rows)["dcscore"] * 100 == pytest.approx(published(records), abs=1e-12)


def test_saved_answers_are_about_these_captions(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", RECORDS)
    scorer = load_scorer(f"dcscore:?answers={folder}")
    with pytest.raises(
        ScorerError, match="no answers about caption 'a cat' of image 'a.jpg', but about another .* 'a dog'"
    ):
        scorer.measure(["a cat"], {"image_id": ["a.jpg"]})
    with pytest.raises(
        ScorerError, match="no answers about caption 'a dog' of image 'z'; its images are called like 'a"
    ):
        scorer.measure(["a dog"], {"image_id": ["z"]})
    before = scorer.signature
    save(folder, RECORDS[:2])
    assert load_scorer(f"dcscore:?answers={folder}").signature == before
    broken = {**RECORDS[0], "eval_details": {**RECORDS[0]["eval_details"], "mappings_with_human": [{"f9": 0}]}}
    save(folder, [broken])
    assert load_scorer(f"dcscore:?answers={folder}").signature != before
    with pytest.raises(ScorerError, match="about caption 'a dog' of image 'a.jpg' are not of the script's form"):
        load_scorer(f"dcscore:?answers={folder}").measure(["a dog"], {"image_id": ["a.jpg"]})
    save(folder, [RECORDS[0], RECORDS[0]])
    with pytest.raises(ScorerError, match="two captions of image 'a.jpg'"):
        load_scorer(f"dcscore:?answers={folder}").check()
    (folder / "0.json").write_text("[]")
    with pytest.raises(ScorerError, match="no saved answer of DeCapBench's script"):
        load_scorer(f"dcscore:?answers={folder}").check()
    with pytest.raises(ScorerError, match="no saved answer"):
        load_scorer(f"dcscore:?answers={tmp_path / 'none'}").check()


# -- faults ------------------------------------------------------------------------------------------------------------

SOURCE = "storybook:test?n=24&seed=3"


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    data = load("test", n=24, seed=3)
    rows = [
        {"image_id": i, "caption": f"thing {n}, {r[0]}"}
        for n, (i, r) in enumerate(zip(data["image_id"], data["references"], strict=True))
    ]
    file = tmp_path / "captions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.mark.parametrize("fault", [(500, "out of memory"), 0.3, "I would rather not.", (404, "gone")])
def test_a_judge_that_fails_costs_no_other_score(captions: Path, fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Server.__init__.__kwdefaults__, "timeout", 0.2)
    monkeypatch.setitem(Server.__init__.__kwdefaults__, "delay", 0.01)

    def failing(payload: dict, n: int):
        if "thing 7," not in json.dumps(payload):
            return reply(payload, n)
        return {"choices": [{"message": {"content": fault}}]} if isinstance(fault, str) else fault

    with tiny_llm.server(failing) as (url, _):
        spec = f"dcscore:{url}#judge"
        report = evaluate_files([captions], references=SOURCE, scorers=["length", spec, "dcscore"], bootstrap=0)
    assert set(report["scores"]) == {"length", "dcscore"} and set(report["failed"]) == {spec}
    assert "caption 'thing 7, " in report["failed"][spec]


def test_without_a_scene_the_message_says_what_to_write(captions: Path) -> None:
    with pytest.raises(EvaluationError, match="sources of storybook know, not .*; name a model, as in 'dcscore:"):
        evaluate_files([captions], references=str(captions), scorers=["dcscore"], bootstrap=0)


def test_a_killed_evaluation_resumes_from_its_cache(captions: Path, tmp_path: Path) -> None:
    broken = True

    def failing(payload: dict, n: int):
        return (404, "gone") if broken and "thing 20," in json.dumps(payload) else reply(payload, n)

    with tiny_llm.server(failing) as (url, seen):
        ask = {
            "references": SOURCE,
            "scorers": ["length", f"dcscore:{url}#judge"],
            "bootstrap": 0,
            "cache": tmp_path / "c",
        }
        assert evaluate_files([captions], **ask)["failed"]
        before, broken = len(seen), False
        report = evaluate_files([captions], **ask)
        assert not report["failed"] and len(report["scores"]) == 2
        again = [json.dumps(request) for request in seen[before:]]
        assert not any(f"thing {i}," in request for i in range(16) for request in again)
        before = len(seen)
        evaluate_files([captions], **ask)
        assert len(seen) == before
