from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest
import tiny
import tiny_encoders
from broken_images import encode, photo

from captune.cli import main
from captune.corpus import Corpus, CorpusError, files
from captune.corpus.encoders import VisionEncoder, load_image_encoder, load_text_encoder
from captune.corpus.index import nearest
from captune.data import load_images
from captune.encoders import Encoder, EncoderError

faiss = pytest.importorskip("faiss")
CAPTIONS = corpora.captions_of(30)


def build(source: Any, folder: Path, encoder: corpora.Bag | None = None, **options: Any) -> Corpus:
    encoder = encoder or corpora.Bag()
    return Corpus.build(source, folder, **{"text_encoder": encoder, "image_encoder": encoder, "shard_size": 8,
                                           "batch_size": 3, "progress": False, **options})  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return corpora.source(tmp_path_factory.mktemp("source"), CAPTIONS)


@pytest.fixture(scope="module")
def corpus(source: str, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build(source, tmp_path_factory.mktemp("corpus"))


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files.OWN if (folder / name).is_file()}


# --------------------------------------------------------------------- build


def test_an_entry_per_caption_and_a_vector_per_image(source: str, tmp_path: Path) -> None:
    encoder = corpora.Bag()
    corpus = build(source, tmp_path, encoder)
    texts = [caption for own in CAPTIONS for caption in own]
    assert corpus.captions == texts and encoder.images == 30
    assert [corpus.image_ids[owner] for owner in corpus.owners] == [f"{i:03d}.png" for i in range(30) for _ in range(2)]
    np.testing.assert_allclose(corpus.text_vectors, encoder.encode_texts(texts), atol=1e-6)
    vectors = [encoder.of(photo(seed=i)) for i in range(30)]
    np.testing.assert_allclose(corpus.image_vectors, vectors, atol=1e-6)
    assert isinstance(corpus.image_vectors, np.memmap) and corpus.image_vectors.dtype == np.float32
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*files.OWN, "config.json", ".lock"} - {"index-ivf.faiss", "index-hnsw.faiss"}


def test_the_digest_is_of_the_content_whatever_the_pieces(corpus: Corpus, source: str, tmp_path: Path) -> None:
    assert build(source, tmp_path / "a", shard_size=7, batch_size=5).digest == corpus.digest
    assert build(f"{source}?n=29", tmp_path / "b").digest != corpus.digest
    changed = corpora.source(tmp_path / "other", [["a whale"], *CAPTIONS[1:]])
    assert build(changed, tmp_path / "c").digest != corpus.digest


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import corpora
from captune.corpus import Corpus
class Dying(corpora.Bag):
    def encode_images(self, images):
        if self.images >= 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_images(images)
e = Dying()
Corpus.build(sys.argv[2], sys.argv[3], text_encoder=e, image_encoder=e, shard_size=8, batch_size=3, progress=False)
"""


def test_a_build_goes_on_after_kill_9(corpus: Corpus, source: str, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", KILLED, str(Path(__file__).parent), source, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[2])}
    assert subprocess.run(arguments, env=environment, check=False).returncode == -signal.SIGKILL
    with pytest.raises(CorpusError, match="not finished"):
        Corpus.open(tmp_path)
    encoder = corpora.Bag()
    assert build(source, tmp_path, encoder).digest == corpus.digest
    assert encoder.images == 30 - 16  # two pieces of eight were on the disk
    assert content(tmp_path) == content(corpus.folder)


@pytest.mark.parametrize("damage", ["gone", "cut", "zeros", "rows"])
def test_only_a_damaged_piece_is_made_again(corpus: Corpus, source: str, tmp_path: Path, damage: str,
                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "merge", killed)
        with pytest.raises(KeyboardInterrupt):
            build(source, tmp_path)
    piece = files.shard_path(tmp_path, 1)
    whole = piece.read_bytes()
    if damage == "gone":
        piece.unlink()
    elif damage == "rows":
        shard = files.read_shard(piece)
        assert shard is not None
        shard.entries.pop()
        files.write_shard(piece, shard)
    else:
        piece.write_bytes(whole[:-5] if damage == "cut" else b"\0" * len(whole))
    (tmp_path / ".texts.npy.tmp").write_bytes(b"left by a killed merge")
    encoder = corpora.Bag()
    build(source, tmp_path, encoder)
    assert encoder.images == 8
    assert content(tmp_path) == content(corpus.folder)
    assert not list(tmp_path.glob(".*.tmp")) and not (tmp_path / "shards").exists()


def test_an_encoder_that_fails_leaves_what_was_finished(source: str, tmp_path: Path) -> None:
    class Failing(corpora.Bag):
        def encode_texts(self, texts):
            if self.texts:
                raise RuntimeError("out of memory")
            return super().encode_texts(texts)

    with pytest.raises(RuntimeError, match="out of memory"):
        build(source, tmp_path, Failing())
    encoder = corpora.Bag()
    build(source, tmp_path, encoder)
    assert encoder.images == 22


def test_a_finished_corpus_is_opened_without_work(source: str, tmp_path: Path) -> None:
    build(source, tmp_path)
    encoder = corpora.Bag()
    corpus = build(source, tmp_path, encoder, shard_size=5)
    assert encoder.images == 0 and not encoder.texts and len(corpus) == 60


def test_another_corpus_is_not_overwritten_unless_asked(source: str, tmp_path: Path) -> None:
    build(source, tmp_path)
    with pytest.raises(CorpusError, match="text encoder bag@bag1, not bag@bag2.*overwrite"):
        build(source, tmp_path, corpora.Bag("bag2"))
    with pytest.raises(CorpusError, match="source .*captions.jsonl"):
        build(f"{source}?n=3", tmp_path)
    (tmp_path / "mine.txt").write_text("kept")
    assert len(build(f"{source}?n=3", tmp_path, overwrite=True)) == 6
    assert (tmp_path / "mine.txt").read_text() == "kept"
    (tmp_path / "config.json").unlink()
    with pytest.raises(CorpusError, match="no corpus but holds texts.npy"):
        build(source, tmp_path)


def test_a_source_that_shrank_meanwhile_is_refused(tmp_path: Path) -> None:
    class Failing(corpora.Bag):
        def encode_images(self, images):
            if self.images >= 10:
                raise RuntimeError
            return super().encode_images(images)

    with pytest.raises(RuntimeError):
        build(corpora.source(tmp_path / "source", CAPTIONS), tmp_path / "corpus", Failing())
    with pytest.raises(CorpusError, match="number of rows 30, not 29"):
        build(corpora.source(tmp_path / "source", CAPTIONS[:29]), tmp_path / "corpus")


def test_two_builders_do_not_meet(source: str, tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    with files.only_builder(tmp_path), pytest.raises(CorpusError, match="another process is building"):
        build(source, tmp_path)


def test_images_that_cannot_be_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = corpora.source(tmp_path / "source", [*CAPTIONS[:4], [""], ["  "], *CAPTIONS[6:9]])
    (tmp_path / "source" / "001.png").write_bytes(encode(photo(), "PNG")[:200])
    (tmp_path / "source" / "008.png").write_bytes(b"<html>")
    with caplog.at_level(logging.WARNING):
        corpus = build(source, tmp_path / "corpus", shard_size=3)
    assert corpus.image_ids == ["000.png", "002.png", "003.png", "006.png", "007.png"] and len(corpus) == 10
    lines = (tmp_path / "corpus" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["image_id"] for line in lines] == ["001.png", "004.png", "005.png", "008.png"]
    assert corpus.config["skipped"] == 4 and "001.png" in caplog.text and "008.png" in caplog.text


def test_a_source_without_captions_makes_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(encode(photo(), "PNG"))
    with pytest.raises(CorpusError, match="nothing to retrieve.*1 were left out"):
        build(str(tmp_path / "photos"), tmp_path / "corpus")


def test_a_stream_with_an_image_per_caption(corpus: Corpus, source: str, tmp_path: Path) -> None:
    """Ids come again in a stream that has a row per caption: one image vector, and a resume passes over what is done"""
    rows = [{**row, "references": [text]} for row in load_images(source, decode=False) for text in row["references"]]
    rows.sort(key=lambda row: row["references"][0])  # so that an image's captions lie in different pieces

    def stream() -> Any:
        from datasets import IterableDataset

        return IterableDataset.from_generator(lambda: iter(rows))

    class Failing(corpora.Bag):
        def encode_images(self, images):
            if self.images >= 25:
                raise RuntimeError
            return super().encode_images(images)

    with pytest.raises(RuntimeError):
        build(stream(), tmp_path / "a", Failing())
    encoder = corpora.Bag()
    resumed = build(stream(), tmp_path / "a", encoder)
    assert 0 < encoder.images < 30 and len(resumed.image_ids) == 30
    assert resumed.captions == [row["references"][0] for row in rows]
    assert resumed.digest == build(stream(), tmp_path / "b", shard_size=60).digest
    by_id = dict(zip(corpus.image_ids, corpus.image_vectors, strict=True))
    np.testing.assert_array_equal(resumed.image_vectors, [by_id[i] for i in resumed.image_ids])


def test_an_encoder_that_answers_with_too_few_is_refused(source: str, tmp_path: Path) -> None:
    class Short(corpora.Bag):
        def encode_texts(self, texts):
            return super().encode_texts(texts)[1:]

    with pytest.raises(EncoderError, match="shape .15, 15. for 16 items"):
        build(source, tmp_path, Short())


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_vector_without_direction_is_refused(source: str, tmp_path: Path, value: float) -> None:
    class Broken(corpora.Bag):
        def encode_texts(self, texts):
            return np.full((len(texts), 4), value)

    with pytest.raises(EncoderError, match=f"{CAPTIONS[0][0]!r} a vector of length"):
        build(source, tmp_path, Broken())


# ---------------------------------------------------------------------- open


def test_a_corpus_is_opened_with_its_own_encoders_only(corpus: Corpus) -> None:
    with pytest.raises(CorpusError, match="was made with the image encoder bag@bag1, not bag@new"):
        Corpus.open(corpus.folder, text_encoder=corpora.Bag(), image_encoder=corpora.Bag("new"))
    with pytest.raises(EncoderError):  # the config names a model that does not exist
        _ = Corpus.open(corpus.folder).text_encoder


def test_damaged_files_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="is no corpus; make one: captune corpus build"):
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


# -------------------------------------------------------------------- search


def expected(corpus: Corpus, query: np.ndarray, k: int, own: str | None, distinct: bool) -> list[int]:
    """The definition: all cosines, equal ones by row."""
    cosines = (corpus.text_vectors.astype(np.float64) @ query.astype(np.float64)).round(6)
    rows: list[int] = []
    for row in sorted(range(len(corpus)), key=lambda r: (-cosines[r], r)):
        image = corpus.image_ids[corpus.owners[row]]
        if image != own and not (distinct and corpus.owners[row] in corpus.owners[rows]):
            rows.append(row)
    return rows[:k]


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("k", [1, 5, 29])
def test_search_is_exact(corpus: Corpus, k: int, distinct: bool) -> None:
    texts = [*(own[0] for own in corpora.captions_of(40)), "", "whale"]  # 30 of them, and duplicates, are in the corpus
    vectors = corpora.Bag().encode_texts(texts)
    own = [f"{i:03d}.png" if i % 3 else None for i in range(len(texts))]  # some are of no image of the corpus
    scores, rows = corpus.search(vectors, k, exclude=own, distinct=distinct)
    wanted = [expected(corpus, v, k, o, distinct) for v, o in zip(vectors, own, strict=True)]
    assert rows.tolist() == wanted
    np.testing.assert_allclose(scores, [corpus.text_vectors[r] @ v for r, v in zip(wanted, vectors, strict=True)],
                               atol=1e-6)  # fmt: skip
    one_by_one = [corpus.search(vectors[i : i + 1], k, exclude=own[i : i + 1], distinct=distinct)[1][0].tolist()
                  for i in range(len(texts))]  # fmt: skip
    assert one_by_one == wanted


def test_an_own_image_with_most_of_the_entries(tmp_path: Path) -> None:
    corpus = build(corpora.source(tmp_path / "s", [["red ball"] * 40, *CAPTIONS[:6]]), tmp_path / "c")
    _, rows = corpus.search(["red ball"], 5, exclude=["000.png"])
    assert (rows >= 40).all() and len(set(rows[0])) == 5
    _, rows = corpus.search(["red ball"], 5, distinct=True)
    assert rows[0, 0] == 0 and len(set(corpus.owners[rows[0]])) == 5
    assert corpus.search(["red ball"], 12, exclude=["000.png"])[1].shape == (1, 12)
    with pytest.raises(CorpusError, match="12 entries to retrieve.*k = 13"):
        corpus.search(["red ball"], 13, exclude=["000.png"])
    with pytest.raises(CorpusError, match="6 images to retrieve.*k = 7"):
        corpus.search(["red ball"], 7, exclude=["000.png"], distinct=True)
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
    narrow = Corpus.open(tmp_path / "c", index="ivf", effort=1, text_encoder=corpora.Bag())
    assert narrow.effort == 1 and "index:ivf-1" in narrow.signature
    asked = {"k": 205, "exclude": ["000.png", "other"]}
    rows = narrow.search(["red ball", "sky"], **asked)[1]  # no list of the index has that many
    exact = Corpus.open(corpus.folder, text_encoder=corpora.Bag())
    np.testing.assert_array_equal(rows, exact.search(["red ball", "sky"], **asked)[1])


# ---------------------------------------------------------- encoders, command


def test_slots_take_the_model_that_fits(tmp_path: Path) -> None:
    import torch
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    clip = tiny_encoders.clip(tmp_path / "clip")
    assert isinstance(load_text_encoder(str(clip), "cpu"), Encoder)
    assert isinstance(load_image_encoder(str(clip), "cpu"), Encoder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    model = Dinov2Model(Dinov2Config(**shape)).eval()
    model.save_pretrained(tmp_path / "dino")
    processor = BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path / "dino")
    encoder = load_image_encoder(str(tmp_path / "dino"), "cpu")
    pictures = [tiny.picture(0), tiny.picture(1, (50, 80))]
    with torch.no_grad():
        direct = model(**processor(pictures, return_tensors="pt")).last_hidden_state[:, 0].numpy()
    found = np.asarray(encoder.encode_images(pictures))
    np.testing.assert_allclose(found, direct / np.linalg.norm(direct, axis=1, keepdims=True), atol=1e-5)
    assert isinstance(encoder, VisionEncoder) and len(encoder.digest) == 8
    with pytest.raises(EncoderError, match="hf download no/such-model"):
        load_image_encoder("no/such-model", "cpu")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        load_text_encoder("no/such-model", "cpu")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = str(tiny_encoders.clip(tmp_path / "clip"))
    source = corpora.source(tmp_path / "s", CAPTIONS[:5])
    output = tmp_path / "corpus"
    flags = [
        "corpus",
        "build",
        "--captions",
        source,
        "--output",
        str(output),
        "--text-encoder",
        clip,
        "--image-encoder",
        clip,
    ]
    assert main([*flags, "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert str(output) in said.out and "10 captions of 5 images" in said.err
    (tmp_path / "s" / "003.png").write_bytes(b"")
    assert main([*flags, "--device", "cpu", "--overwrite"]) == 1
    assert "8 captions of 4 images, 1 images left out" in capsys.readouterr().err
    assert Corpus.open(output, device="cpu").search(["a red ball"], 2)[1].shape == (1, 2)
