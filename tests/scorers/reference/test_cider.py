from __future__ import annotations

import json
import math
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from captune.scorers import load_scorer
from captune.scorers._support import document_frequencies, ptb
from captune.scorers.reference import cider
from captune.scorers.reference.cider import END, Cider

TRAIN = [["a dog runs", "the dog is running"], ["a cat sleeps", "the cat is sleeping on a mat"], ["a dog and a cat"]]


def by_hand(caption: str, references: list[str], train: list[list[str]]) -> float:
    """CIDEr-D from its definition, with dicts."""

    def grams(text: str, n: int) -> Counter:
        words = ptb.words(text)
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    def idf(gram: tuple[str, ...]) -> float:
        df = sum(any(gram in grams(text, len(gram)) for text in own) for own in train)
        return math.log(len(train)) - math.log(max(1, df))

    total = 0.0
    for n in range(1, 5):
        c = {g: k * idf(g) for g, k in grams(caption, n).items()}
        for reference in references:
            r = {g: k * idf(g) for g, k in grams(reference, n).items()}
            norms = math.hypot(*c.values()) * math.hypot(*r.values())
            penalty = math.exp(-((sum(grams(caption, 2).values()) - sum(grams(reference, 2).values())) ** 2) / 72)
            if norms:
                total += penalty * sum(min(c[g], r[g]) * r[g] for g in c if g in r) / norms
    return 10 * total / 4 / len(references)


def test_equals_pycocoevalcap(corpus: dict) -> None:
    scorer = Cider()
    rows = scorer.rows(corpus["captions"], references=corpus["references"])
    assert scorer.corpus(rows)["cider"] == pytest.approx(corpus["corpus"]["cider"], abs=1e-9)
    np.testing.assert_allclose(scorer.per_caption(rows), corpus["each"]["cider"], atol=1e-9)


def test_many_images_are_scored_piece_by_piece(corpus: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cider, document_frequencies):
        monkeypatch.setattr(module, "_AT_ONCE", 7)
    for scorer in (Cider(), Cider().fit(corpus["references"])):
        rows = scorer.rows(corpus["captions"], references=corpus["references"])
        np.testing.assert_allclose(rows[:, 0], corpus["each"]["cider"], atol=1e-9)


def test_memory_does_not_grow_with_the_images(golden: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cider, document_frequencies):
        monkeypatch.setattr(module, "_AT_ONCE", 32)
    items = golden["flickr8k"]["items"][:32]

    def peak(times: int) -> int:
        captions, references = ([item[key] for item in items] * times for key in ("caption", "references"))
        tracemalloc.start()
        Cider().rows(captions, references=references)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1)  # fills the tokenizer's cache
    assert peak(32) < 2 * peak(4)


def test_frozen_on_the_same_references_it_says_the_same(corpus: dict) -> None:
    scorer = Cider().fit(corpus["references"])
    rows = scorer.rows(corpus["captions"], references=corpus["references"])
    np.testing.assert_allclose(rows[:, 0], corpus["each"]["cider"], atol=1e-9)


def test_frozen_frequencies_as_defined() -> None:
    scorer = Cider().fit(TRAIN)
    captions = ["a dog runs", "the dog the dog the dog", "a zebra runs on a mat", "", "a cat is sleeping"]
    references = [["a dog runs fast", "dogs run"], ["the dog"], ["a zebra on a mat", "a horse"], ["a dog"], TRAIN[1]]
    rows = scorer.rows(captions, references=references)
    expected = [by_hand(c, r, TRAIN) for c, r in zip(captions, references, strict=True)]
    np.testing.assert_allclose(rows[:, 0], expected, atol=1e-12)
    assert max(expected) > 1


def test_a_reward_does_not_depend_on_its_batch(golden: dict) -> None:
    items = golden["flickr8k"]["items"][:60]
    captions, references = [i["caption"] for i in items], [i["references"] for i in items]
    scorer = Cider().fit(references)
    together = scorer(captions, references=references)
    one_by_one = [scorer([c], references=[r])[0] for c, r in zip(captions, references, strict=True)]
    np.testing.assert_allclose(together, one_by_one, atol=1e-12)
    samples = scorer(captions[:1] * 3 + captions[:2], references=references[:1] * 3 + references[:2])
    np.testing.assert_allclose(samples, [*together[:1] * 3, *together[:2]], atol=1e-12)
    assert all(type(reward) is float for reward in together)


def test_an_unfitted_reward_is_an_error() -> None:
    with pytest.raises(ValueError, match="frozen document frequencies"):
        Cider()(["a dog"], references=[["a dog"]])


def test_a_second_system_is_scored_against_its_own_references(golden: dict) -> None:
    """The vectors of the last references are kept; others must not be mistaken for them."""
    items = golden["flickr8k"]["items"]
    captions, references = [i["caption"] for i in items], [i["references"] for i in items]
    scorer = Cider()
    first = scorer.rows(captions, references=references)
    other = scorer.rows(captions, references=[r[:2] for r in references])
    np.testing.assert_array_equal(other, Cider().rows(captions, references=[r[:2] for r in references]))
    np.testing.assert_array_equal(first, scorer.rows(captions, references=references))
    fitted = scorer.fit(TRAIN).rows(captions, references=references)
    assert np.abs(fitted - first).max() > 0.1


def test_one_image_is_zero_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    assert Cider().rows(["a dog"], references=[["a dog"]]).tolist() == [[0.0]]
    assert "single image" in caplog.text


def test_saved_and_loaded(tmp_path: Path, golden: dict) -> None:
    items = golden["flickr8k"]["items"]
    captions, references = [i["caption"] for i in items[:50]], [i["references"] for i in items[:50]]
    scorer = Cider().fit([i["references"] for i in items])
    scorer.save(tmp_path / "deep" / "df.json")
    for loaded in (Cider.load(tmp_path / "deep" / "df.json"), load_scorer(f"cider:{tmp_path}/deep/df.json")):
        np.testing.assert_array_equal(
            loaded.rows(captions, references=references), scorer.rows(captions, references=references)
        )
        assert loaded.signature == scorer.signature and "300 images" in loaded.signature
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "df.json"]


# -- the end of a caption as a word


def with_end(texts: list[str]) -> list[str]:
    """The end as a word that the tokenizer leaves alone, in place of the one it cannot give."""
    return [f"{text} zzend" for text in texts]


def test_the_end_counts_as_a_word() -> None:
    scorer = Cider("?eos=1").fit(TRAIN)
    captions = ["a dog runs", "a dog is running on a", "a cat sleeps", "", "the dog"]
    references = [["a dog runs fast", "dogs run"], ["a dog is running on a mat"], TRAIN[1], ["a dog"], ["the dog"]]
    ended = [True, False, True, False, True]
    rows = scorer.rows(captions, references=references, ended=ended)
    own = [with_end([c])[0] if end else c for c, end in zip(captions, ended, strict=True)]
    train = [with_end(texts) for texts in TRAIN]
    expected = [by_hand(c, with_end(r), train) for c, r in zip(own, references, strict=True)]
    np.testing.assert_allclose(rows[:, 0], expected, atol=1e-12)
    assert "eos:1" in scorer.signature and "eos" not in Cider().fit(TRAIN).signature


def test_a_caption_that_was_cut_off_is_worth_less_than_one_that_ended() -> None:
    scorer = Cider("?eos=1").fit(TRAIN)
    reference = [["a cat sleeps"]]
    whole, cut = scorer(["a cat sleeps"] * 2, references=reference * 2, ended=[True, False])
    assert whole > cut > 0
    assert scorer(["a cat sleeps"], references=reference) == [whole], "where nothing is said, a caption ended"
    plain = Cider().fit(TRAIN)
    said = plain(["a cat sleeps"] * 2, references=reference * 2, ended=[True, False])
    assert said[0] == said[1] == plain(["a cat sleeps"], references=reference)[0]


def test_a_bad_ending_costs_more_with_the_end_counted(golden: dict) -> None:
    """Against the references: the first one stopped at "a dog with a", and at "a dog"."""
    items = [item for item in golden["flickr8k"]["items"] if " a " in item["references"][0][10:]]
    references = [item["references"] for item in items]
    bad = [own[0][: own[0].rindex(" a ") + 2] for own in references]
    good = [text.removesuffix(" a").rpartition(" ")[0] for text in bad]
    gaps = []
    for spec in ("cider:?eos=0", "cider:?eos=1"):
        scorer = load_scorer(spec).fit(item["references"] for item in golden["flickr8k"]["items"])
        gaps.append(np.mean(scorer(bad, references=references)) - np.mean(scorer(good, references=references)))
    assert len(bad) > 50 and gaps[1] < gaps[0]


def test_a_caption_cannot_pretend_to_end() -> None:
    scorer = Cider("?eos=1").fit(TRAIN)
    reward = scorer([f"a cat sleeps {END}", "a cat sleeps"], references=[["a cat sleeps"]] * 2, ended=[False, False])
    assert reward[0] <= reward[1]


def test_a_file_says_whether_the_end_was_counted(tmp_path: Path) -> None:
    Cider("?eos=1").fit(TRAIN).save(tmp_path / "with.json")
    Cider().fit(TRAIN).save(tmp_path / "without.json")
    for name, eos in (("with", True), ("without", False)):
        loaded = load_scorer(f"cider:{tmp_path}/{name}.json")
        assert loaded.eos is eos and loaded.optional_columns == (("ended",) if eos else ())
        assert load_scorer(f"cider:{tmp_path}/{name}.json?eos={eos:d}").signature == loaded.signature
        with pytest.raises(ValueError, match=f"taken {name} it"):
            load_scorer(f"cider:{tmp_path}/{name}.json?eos={not eos:d}")
    with pytest.raises(ValueError, match="eos: 'maybe' is not true or false"):
        load_scorer("cider:?eos=maybe")
    with pytest.raises(ValueError, match="unknown setting 'end'"):
        load_scorer("cider:?end=1")


def test_in_an_expression_the_end_is_read_by_the_part_that_counts_it() -> None:
    reward = load_scorer("cider:?eos=1 + length")
    reward.parts[0][0].fit(TRAIN)  # type: ignore[attr-defined]
    whole, cut = reward(["a cat sleeps"] * 2, references=[["a cat sleeps"]] * 2, ended=[True, False])
    assert whole > cut


# -- files


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "df.json"
    Cider().fit(TRAIN).save(file)
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"images": 4}))
    with pytest.raises(ValueError, match="damaged"):
        Cider.load(file)
    file.write_text(json.dumps(content | {"tokenizer": "another"}))
    with pytest.raises(ValueError, match="fit them again"):
        Cider.load(file)
    for text in ("<html>", "[]", "\x00"):
        file.write_text(text)
        with pytest.raises(ValueError, match="does not hold"):
            Cider.load(file)
    with pytest.raises(ValueError, match="fit"):
        Cider().save(file)
    with pytest.raises(ValueError, match="at least one image"):
        Cider().fit([])


@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_the_same_bits_for_any_hash_seed(seed: str, golden: dict) -> None:
    program = (
        "import json,sys; from captune.evaluation import evaluate; d=json.load(sys.stdin);"
        "r=evaluate(d['c'],{'references':d['r']},['cider','bleu','rouge','health'],bootstrap=50);"
        "print(json.dumps([[v.values,v.interval,v.per_caption.tolist()] for v in r.values()]))"
    )
    items = golden["flickr8k"]["items"][:40]
    data = json.dumps({"c": [i["caption"] for i in items], "r": [i["references"] for i in items]})
    environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", program], input=data, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    global _first
    _first = _first or ran.stdout
    assert ran.stdout == _first


_first = ""
