from __future__ import annotations

import json
import shutil
from pathlib import Path

import corpora
import numpy as np
import pytest
from corpora import build

from captune.corpus import Corpus
from captune.corpus.index import nearest
from captune.errors import CorpusError, EncoderError

faiss = pytest.importorskip("faiss")
CAPTIONS = corpora.captions_of(30)


def test_a_corpus_is_opened_with_its_own_encoders_only(corpus: Corpus) -> None:
    with pytest.raises(CorpusError, match="was made with the image encoder bag@bag1, not bag@new"):
        Corpus.open(corpus.folder, text_encoder=corpora.Bag(), image_encoder=corpora.Bag("new"))
    with pytest.raises(EncoderError):  # the config names a model that does not exist
        _ = Corpus.open(corpus.folder).text_encoder


def test_damaged_files_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="is not a corpus; build one: captune corpus build"):
        Corpus.open(tmp_path / "nowhere")
    for name, size in (("texts.npy", -100), ("owners.npy", 40), ("images.npy", 0), ("config.json", 30),
                       ("images.json", -4)):  # fmt: skip
        folder = tmp_path / name
        shutil.copytree(corpus.folder, folder)
        (folder / name).write_bytes((folder / name).read_bytes()[:size])
        with pytest.raises(CorpusError, match=name):
            Corpus.open(folder)
    folder = tmp_path / "pickled"
    shutil.copytree(corpus.folder, folder)
    np.save(folder / "owners.npy", np.array([{}] * 60), allow_pickle=True)
    with pytest.raises(CorpusError, match="cannot be read"):
        Corpus.open(folder)


def expected(corpus: Corpus, query: np.ndarray, k: int, own: str | None, distinct: bool) -> list[int]:
    """The definition: all cosines, equal ones by row."""
    cosines = (corpus.text_vectors.astype(np.float64) @ query.astype(np.float64)).round(6)
    rows: list[int] = []
    for row in sorted(range(len(corpus)), key=lambda r: (-cosines[r], r)):
        image = corpus.image_ids[corpus.owners[row]]
        if image != own and not (distinct and corpus.owners[row] in corpus.owners[rows]):
            rows.append(row)
    return rows[:k]


@pytest.mark.parametrize("index", ["flat", "device"])
@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("k", [1, 5, 29])
def test_search_is_exact(corpus: Corpus, k: int, distinct: bool, index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captune.corpus.index._CELLS", 200)  # so that it takes several products
    corpus = Corpus.open(corpus.folder, index=index, device="cpu")
    texts = [*(own[0] for own in corpora.captions_of(40)), "", "whale"]  # 30 of them, and duplicates, are in the corpus
    vectors = corpora.Bag().encode_texts(texts)
    own = [f"{i:03d}.png" if i % 3 else None for i in range(len(texts))]  # some are of no image of the corpus
    scores, rows = corpus.search(vectors, k, exclude=own, unique_images=distinct)
    wanted = [expected(corpus, v, k, o, distinct) for v, o in zip(vectors, own, strict=True)]
    assert rows.tolist() == wanted
    np.testing.assert_allclose(scores, [corpus.text_vectors[r] @ v for r, v in zip(wanted, vectors, strict=True)],
                               atol=1e-6)  # fmt: skip
    one_by_one = [corpus.search(vectors[i : i + 1], k, exclude=own[i : i + 1], unique_images=distinct)[1][0].tolist()
                  for i in range(len(texts))]  # fmt: skip
    assert one_by_one == wanted


def test_an_own_image_with_most_of_the_entries(tmp_path: Path) -> None:
    corpus = build(corpora.source(tmp_path / "s", [["red ball"] * 40, *CAPTIONS[:6]]), tmp_path / "c")
    _, rows = corpus.search(["red ball"], 5, exclude=["000.png"])
    assert (rows >= 40).all() and len(set(rows[0])) == 5
    _, rows = corpus.search(["red ball"], 5, unique_images=True)
    assert rows[0, 0] == 0 and len(set(corpus.owners[rows[0]])) == 5
    assert corpus.search(["red ball"], 12, exclude=["000.png"])[1].shape == (1, 12)
    with pytest.raises(CorpusError, match="12 entries to retrieve.*k = 13"):
        corpus.search(["red ball"], 13, exclude=["000.png"])
    with pytest.raises(CorpusError, match="6 images to retrieve.*k = 7"):
        corpus.search(["red ball"], 7, exclude=["000.png"], unique_images=True)
    with pytest.raises(CorpusError, match="k = 0"):
        corpus.search(["red ball"], 0)


def test_no_query_and_wrong_queries(corpus: Corpus) -> None:
    assert corpus.search(np.empty((0, len(corpora.WORDS) + 1), np.float32), 3)[1].shape == (0, 3)
    assert corpus.search([], 3)[1].shape == (0, 3)
    with pytest.raises(CorpusError, match="queries have 3 dimensions"):
        corpus.search(np.ones((2, 3)), 3)
    with pytest.raises(CorpusError, match="1 queries but 2 image ids"):
        corpus.search(["a"], 3, exclude=["x", "y"])


def test_a_text_is_searched_once(source: str, tmp_path: Path) -> None:
    encoder = corpora.Bag()
    corpus = build(source, tmp_path, encoder)
    encoder.texts.clear()
    texts, own = ["red ball", "sky", "red ball", "red ball"], ["000.png", None, "001.png", "000.png"]
    first = corpus.search(texts, 3, exclude=own)
    assert encoder.texts == ["red ball", "sky", "red ball"]  # for two own images
    again = corpus.search(texts[::-1], 3, exclude=own[::-1])
    assert len(encoder.texts) == 3
    for a, b, vectors in zip(first, again, corpus.search(encoder.encode_texts(texts), 3, exclude=own), strict=True):
        np.testing.assert_array_equal(a, b[::-1])
        np.testing.assert_array_equal(a, vectors)
    assert (corpus.search(texts, 2)[0] >= corpus.search(texts, 2, exclude=own)[0]).all() and len(encoder.texts) == 11


@pytest.mark.parametrize("queries", [1, 7, 300])
def test_faiss_keeps_its_settings(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("distance_compute_blas_threshold", "distance_compute_blas_query_bs", "distance_compute_blas_database_bs")
    before = [getattr(faiss.cvar, name) for name in names]
    rng = np.random.default_rng(0)
    matrix, q = (rng.standard_normal((n, 24)).astype(np.float32) for n in (2000, queries))
    scores, rows = nearest(matrix, q, 4)
    truth = np.argsort(-(q @ matrix.T), axis=1)[:, :4]
    assert (rows == truth).all() and (np.diff(scores, axis=1) <= 0).all()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(faiss, "knn", lambda *a, **k: (_ for _ in ()).throw(RuntimeError()))
        nearest(matrix, q, 4)
    assert [getattr(faiss.cvar, name) for name in names] == before


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_is_added(source: str, tmp_path: Path, kind: str) -> None:
    exact = build(source, tmp_path)
    with pytest.raises(CorpusError, match=f"no {kind} index"):
        Corpus.open(tmp_path, index=kind)
    encoder = corpora.Bag()
    corpus = build(source, tmp_path, encoder, index=kind)
    assert encoder.images == 0 and corpus.index == kind and kind in corpus.signature != exact.signature
    texts = corpora.Bag().encode_texts([own[0] for own in CAPTIONS])
    own = [f"{i:03d}.png" for i in range(30)]
    scores, rows = corpus.search(texts, 5, exclude=own)
    assert (rows >= 0).all() and all(corpus.image_ids[corpus.owners[r]] != o for o, r in zip(own, rows[:, 0]))  # noqa: B905
    np.testing.assert_allclose(scores, exact.search(texts, 5, exclude=own)[0], atol=1e-6)  # so small: it finds all
    # more than the index finds is searched exactly
    assert (corpus.search(texts, 50)[1] >= 0).all()
    build(corpora.source(tmp_path / "s", CAPTIONS[:9]), tmp_path / "small", index=kind)
    shutil.copy(tmp_path / "small" / f"index-{kind}.faiss", tmp_path)
    with pytest.raises(CorpusError, match="of another corpus"):
        Corpus.open(tmp_path, index=kind)
    (tmp_path / f"index-{kind}.faiss").write_bytes(b"\0" * 64)
    with pytest.raises(CorpusError, match="cannot be read"):
        Corpus.open(tmp_path, index=kind)


def test_an_index_that_finds_too_few_is_helped(tmp_path: Path) -> None:
    texts = [[" ".join([word] * n)] for word in corpora.WORDS for n in range(1, 16)]
    corpus = build(corpora.source(tmp_path / "s", texts), tmp_path / "c", index="ivf", shard_size=500)
    narrow = Corpus.open(tmp_path / "c", index="ivf", search_effort=1, text_encoder=corpora.Bag())
    assert narrow.search_effort == 1 and "index:ivf-1" in narrow.signature
    asked = {"k": 205, "exclude": ["000.png", "other"]}
    rows = narrow.search(["red ball", "sky"], **asked)[1]  # no list of the index has that many
    exact = Corpus.open(corpus.folder, text_encoder=corpora.Bag())
    np.testing.assert_array_equal(rows, exact.search(["red ball", "sky"], **asked)[1])


def test_b3_vectors_and_entries_are_whole(corpus: Corpus, tmp_path: Path) -> None:
    def broken(name: str, change) -> Path:
        folder = Path(shutil.copytree(corpus.folder, tmp_path / name))
        change(folder)
        return folder

    def vectors(name: str):
        def change(folder: Path) -> None:
            array = np.load(folder / name)
            array[[3, 5, 7, 11], 0] = np.nan
            np.save(folder / name, array)

        return change

    for name in ("texts.npy", "images.npy"):
        with pytest.raises(CorpusError, match=rf"{name}: 4 vectors are not finite, in the rows 3, 5, 7 \.\.\."):
            Corpus.open(broken(name, vectors(name)))

    def owners(folder: Path) -> None:
        array = np.load(folder / "owners.npy")
        array[2] = len(corpus.image_ids)
        np.save(folder / "owners.npy", array)

    with pytest.raises(CorpusError, match="1 entries have no image, first 2"):
        Corpus.open(broken("owners", owners))

    def entries(folder: Path) -> None:
        lines = (folder / "entries.jsonl").read_text().splitlines(keepends=True)
        (folder / "entries.jsonl").write_text("".join(lines[:-2]))

    with pytest.raises(CorpusError, match="has not the"):
        _ = Corpus.open(broken("entries", entries)).captions
    for text in ('"text_encoder"', '{"format": 2, "text_encoder": 1, "image_encoder": {}}'):
        with pytest.raises(CorpusError):
            Corpus.open(
                broken(f"config{len(text)}", lambda folder, text=text: (folder / "config.json").write_text(text))
            )


def test_b2_a_corpus_of_the_former_format_knows_weights_alone(corpus: Corpus, tmp_path: Path, caplog) -> None:
    folder = Path(shutil.copytree(corpus.folder, tmp_path / "old"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format": 1}))
    encoder = corpora.Bag("identity")
    with pytest.raises(CorpusError, match="vectors of two encoders do not compare"):
        Corpus.open(folder, text_encoder=encoder)
    encoder.weights = "bag1"
    Corpus.open(folder, text_encoder=encoder)
    assert "by the weights alone" in caplog.text
    with pytest.raises(CorpusError, match="vectors of two encoders do not compare"):
        Corpus.open(corpus.folder, text_encoder=encoder)  # today's format knows more
