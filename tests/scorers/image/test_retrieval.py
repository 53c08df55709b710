from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import corpora
import numpy as np
import pytest
from broken_images import photo

from captune.corpus import Corpus
from captune.errors import MissingColumn, ScorerError
from captune.evaluation.statistics import evaluate
from captune.scorers import check_needs, load_scorer
from captune.scorers.image.retrieval import GRC, QIR

pytest.importorskip("faiss")
TEXTS = corpora.captions_of(20)
CAPTIONS = ["red ball", "two fish", "beach", "red ball", "dog dog house", TEXTS[5][0], TEXTS[5][1]]
IMAGES = [photo(seed=seed) for seed in (0, 1, 2, 0, 40, 5, 5)]  # 40 is no image of the corpus
IDS = ["000.png", "001.png", "002.png", "000.png", "other.png", "005.png", "005.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("corpus")
    encoder = corpora.Bag()
    Corpus.build(corpora.source(place / "source", TEXTS), place / "corpus", text_encoder=encoder,
                 image_encoder=encoder, progress=False)  # fmt: skip
    return place / "corpus"


@pytest.fixture
def corpus(folder: Path) -> Corpus:
    return Corpus.open(folder, text_encoder=corpora.Bag(), image_encoder=corpora.Bag())


def definition(k: int = 5, own: bool = False, distinct: bool = True) -> tuple[list[float], list[float]]:
    """Equations 1 and 2, one caption at a time, without the corpus."""
    encoder = corpora.Bag()
    texts = [text for own_texts in TEXTS for text in own_texts]
    owners = [i for i in range(20) for _ in range(2)]
    vectors = encoder.encode_texts(texts).astype(np.float64)
    pictures = np.array([encoder.of(photo(seed=i)) for i in range(20)], dtype=np.float64)
    grc, qir = [], []
    for caption, image, image_id in zip(CAPTIONS, IMAGES, IDS, strict=True):
        cosines = (vectors @ encoder.encode_texts([caption])[0]).round(6)
        images: list[int] = []
        for row in sorted(range(40), key=lambda r: (-cosines[r], r)):
            if (own or f"{owners[row]:03d}.png" != image_id) and not (distinct and owners[row] in images):
                images.append(owners[row])
        images = images[:k]
        grc.append(float(np.linalg.norm(sum(pictures[i] for i in images) / k)))
        v = encoder.of(image).astype(np.float64)
        qir.append(sum(float(v @ pictures[i]) / 2**r for r, i in enumerate(images)))
    return grc, qir


@pytest.mark.parametrize("settings", [{}, {"k": 3}, {"k": 1}, {"own": True}, {"distinct": False}, {"k": 19}])
def test_equal_the_definition(corpus: Corpus, settings: dict) -> None:
    query = "?" + "&".join(f"{key}={int(value)}" for key, value in settings.items()) if settings else ""
    grc, qir = GRC(f"x{query}", corpus=corpus), QIR(f"x{query}", corpus=corpus)
    wanted = definition(**settings)
    np.testing.assert_allclose(grc.rows(CAPTIONS, image_id=IDS)[:, 0], wanted[0], atol=1e-5)
    np.testing.assert_allclose(qir.rows(CAPTIONS, image=IMAGES, image_id=IDS)[:, 0], wanted[1], atol=1e-5)
    if settings.get("k") == 1:
        np.testing.assert_allclose(wanted[0], 1, atol=1e-6)


def test_the_own_image_would_leak(corpus: Corpus) -> None:
    own_caption, image = [TEXTS[5][0]], [photo(seed=5)]
    leaking = QIR("x?own=1&k=1", corpus=corpus).rows(own_caption, image=image, image_id=["005.png"])
    np.testing.assert_allclose(leaking, 1, atol=1e-6)
    assert QIR("x?k=1", corpus=corpus).rows(own_caption, image=image, image_id=["005.png"])[0, 0] < 0.99


def test_entries_of_one_image_count_as_one(tmp_path: Path) -> None:
    encoder = corpora.Bag()
    corpus = Corpus.build(corpora.source(tmp_path / "s", [["red ball"] * 5, *TEXTS[:6]]), tmp_path / "c",
                          text_encoder=encoder, image_encoder=encoder, progress=False)  # fmt: skip
    assert GRC("x?distinct=0", corpus=corpus).rows(["red ball"])[0, 0] == pytest.approx(1)
    assert GRC(None, corpus=corpus).rows(["red ball"])[0, 0] < 0.9


def test_any_split_and_a_caption_without_words(corpus: Corpus) -> None:
    for scorer in (GRC(None, corpus=corpus), QIR(None, corpus=corpus)):
        captions = [*CAPTIONS, "", " \u2028\n"]
        columns = {"image": [*IMAGES, IMAGES[0], IMAGES[1]], "image_id": [*IDS, "a", "b"]}
        rows = scorer.rows(captions, **columns)
        one_by_one = [scorer.rows([c], **{key: [v[i]] for key, v in columns.items()}) for i, c in enumerate(captions)]
        np.testing.assert_allclose(rows, np.concatenate(one_by_one), atol=1e-9)
        assert rows.shape == (9, 1) and (rows[-2:] == 0).all() and (rows[:-2] != 0).all()
        assert rows[0] == rows[3]
        np.testing.assert_array_equal(scorer.rows([""], image=IMAGES[:1], image_id=["a"]), [[0]])
        assert scorer.corpus(rows)[scorer.name] == pytest.approx(rows.mean())


def test_without_ids_it_says_that_images_may_find_themselves(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    scorer = GRC(None, corpus=corpus)
    with caplog.at_level(logging.WARNING):
        rows = [scorer.rows(CAPTIONS), scorer.rows(CAPTIONS)]
        GRC("x?own=1", corpus=corpus).rows(CAPTIONS)
    assert caplog.text.count("without image_id a caption may retrieve the very image") == 1
    np.testing.assert_allclose(rows[0][:, 0], definition(own=True)[0], atol=1e-5)


def test_own_images_under_other_ids_are_said(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    captions, images = [TEXTS[i][0] for i in range(3)], [photo(seed=i) for i in range(3)]
    columns = {"image": images, "image_id": [f"photos/{i:03d}.png" for i in range(3)]}
    absent = "none of the 3 images is in the corpus by its id; where it is under another id a caption retrieves its own"
    with caplog.at_level(logging.INFO, "captune.scorers"):
        grc, qir = GRC(None, corpus=corpus), QIR("x?k=19", corpus=corpus)
        for _ in range(2):
            grc.rows(captions, **columns)
            rows = qir.rows(captions, **columns)
    assert [(record.levelname, absent in record.message) for record in caplog.records] == [
        ("INFO", True),
        ("WARNING", True),
    ]
    assert caplog.records[1].message.endswith("its own image, and 3 of 3 captions did")
    np.testing.assert_array_equal(rows, QIR("x?k=19&own=1", corpus=corpus).rows(captions, **columns))
    caplog.clear()
    columns["image_id"] = ["000.png", "001.png", "again.png"]
    qir.forget()
    qir.rows(captions, **columns)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "1 of 3 captions retrieved an image equal to their own, which is in the corpus under" in caplog.text
    caplog.clear()
    grc.forget()
    grc.rows(captions, **columns)  # which looks at no image
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "1 of 3 images of a batch are not in the corpus by their ids" in caplog.text


def test_a_corpus_of_other_images_is_no_warning(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    columns = {"image": [photo(seed=50), photo(seed=51)], "image_id": ["a", "b"]}
    with caplog.at_level(logging.INFO, "captune.scorers"):
        QIR(None, corpus=corpus).rows(["red ball", "beach"], **columns)
        QIR("x?own=1", corpus=corpus).rows(["red ball", "beach"], **columns)
        QIR(None, corpus=corpus).rows(CAPTIONS, image=IMAGES, image_id=IDS)
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_both_share_one_search_and_an_image_is_encoded_once(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []
    monkeypatch.setattr(Corpus, "_search", lambda self, *a, _do=Corpus._search: (searched.append(1), _do(self, *a))[1])
    columns = {"image": IMAGES, "image_id": IDS}
    results = evaluate(CAPTIONS, columns, [GRC(None, corpus=corpus), QIR(None, corpus=corpus)], bootstrap=10)
    assert list(results) == ["grc", "qir"] and len(searched) == 1
    assert len(corpus.text_encoder.texts) == 6 and corpus.image_encoder.images == 5
    reward = QIR(None, corpus=corpus)
    reward(CAPTIONS, image=IMAGES, image_id=IDS)
    reward(["beach"] * 7, image=IMAGES, image_id=IDS)
    assert corpus.image_encoder.images == 10 and len(searched) == 2


def test_a_reward_in_trls_signature(corpus: Corpus) -> None:
    reward = QIR(None, corpus=corpus)
    completions = [[{"role": "assistant", "content": c}] for c in CAPTIONS]
    np.testing.assert_allclose(reward(completions, image=IMAGES, image_id=IDS), definition()[1], atol=1e-5)
    with pytest.raises(MissingColumn, match="needs image"):
        check_needs([reward], {}, 1)
    check_needs([GRC(None, corpus=corpus)], {}, 1)


def test_the_signature_names_corpus_encoders_and_settings(corpus: Corpus) -> None:
    assert GRC(None, corpus=corpus).signature == (
        f"grc|corpus:{corpus.digest}|entries:40|images:20|index:flat|text:bag@bag1|image:bag@bag1|K:5|own:out|per:image"
    )
    assert QIR("x?k=2&own=1&distinct=0", corpus=corpus).signature.startswith("qir|")
    assert QIR("x?k=2&own=1&distinct=0", corpus=corpus).signature.endswith("|K:2|own:in|per:entry")


def test_wrong_specs() -> None:
    with pytest.raises(ValueError, match="needs the folder of a corpus: grc:runs/corpus.*captune corpus build"):
        load_scorer("grc")
    with pytest.raises(ValueError, match="unknown setting 'n'"):
        load_scorer("qir:runs/corpus?n=3")
    with pytest.raises(ValueError, match="k: 'many' is not a whole number"):
        load_scorer("qir:runs/corpus?k=many")
    with pytest.raises(ValueError, match="k: '0' must be at least 1"):
        load_scorer("qir:runs/corpus?k=0")


def test_what_is_missing_is_said(folder: Path, tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    load_scorer(f"grc:{folder}").check()
    with pytest.raises(ScorerError, match="nowhere is not a corpus; build one: captune corpus build"):
        load_scorer(f"grc:{tmp_path / 'nowhere'}").check()
    with pytest.raises(ScorerError, match="no ivf index"):
        load_scorer(f"grc:{folder}?index=ivf").rows(["a"])
    with pytest.raises(ScorerError, match="unknown index 'lsh'"):
        load_scorer(f"grc:{folder}?index=lsh").rows(["a"])
    with pytest.raises(ScorerError, match="20 images to retrieve.*k = 21"):
        GRC("x?k=21", corpus=corpus).rows(["red ball"])
    with pytest.raises(ScorerError, match="cannot be loaded"):  # the encoder "bag" is no model
        load_scorer(f"grc:{folder}").rows(["red ball"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ScorerError, match="needs faiss; run: pip install"):
        load_scorer(f"qir:{folder}").check()


def test_storybook(tmp_path: Path) -> None:
    """With the encoder that is the default there: QIR knows the right caption from another image's."""
    from captune import storybook

    folder = tmp_path / "corpus"
    Corpus.build("storybook:train?n=100", folder, progress=False, device="cpu")
    test = storybook.load("test", 30)
    columns = {"image": test["image"], "image_id": test["image_id"]}
    right = [own[0] for own in test["references"]]
    wrong = right[1:] + right[:1]
    qir, grc = load_scorer(f"qir:{folder}", device="cpu"), load_scorer(f"grc:{folder}", device="cpu")
    assert np.mean(qir.rows(right, **columns) > qir.rows(wrong, **columns)) > 0.9
    consistency = grc.rows(right, image_id=test["image_id"])
    assert ((consistency > 0.3) & (consistency < 1)).all()
    assert "storybook-clip@" in grc.signature and grc.gallery is qir.gallery
