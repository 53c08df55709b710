from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest
from broken_images import encode, photo
from corpora import build

from captune.corpus import Corpus, files
from captune.data import load_images, load_references, write_captions
from captune.errors import CorpusError, EncoderError
from captune.utils.skipped import counting

pytest.importorskip("faiss")
CAPTIONS = corpora.captions_of(30)


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files.OWN if (folder / name).is_file()}


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
    arguments = [sys.executable, "-c", KILLED, str(Path(corpora.__file__).parent), source, str(tmp_path)]
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


def test_captions_that_changed_are_noticed(tmp_path: Path) -> None:
    source, folder = corpora.source(tmp_path / "own", CAPTIONS), tmp_path / "corpus"
    build(source, folder)
    corpora.source(tmp_path / "own", [["something else"], *CAPTIONS[1:]])
    with pytest.raises(CorpusError, match=r"other captions, or images of other names.*--overwrite"):
        build(source, folder)
    assert len(build(source, folder, overwrite=True)) == 59


def replace_images(folder: Path) -> None:
    for i in range(30):
        (folder / f"{i:03d}.png").write_bytes(encode(photo(seed=100 + i), "PNG"))


def test_images_that_were_replaced_under_their_names_are_noticed(tmp_path: Path) -> None:
    source, folder = corpora.source(tmp_path / "own", CAPTIONS), tmp_path / "corpus"
    before = build(source, folder).digest
    replace_images(tmp_path / "own")
    with pytest.raises(CorpusError, match=r"holds a corpus made .*other images, under the same names.*--overwrite"):
        build(source, folder)
    assert build(source, folder, overwrite=True).digest != before


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_shards_that_were_replaced_under_their_names_are_noticed(tmp_path: Path, kind: str) -> None:
    """Their captions are not read ahead, as those of other sources are."""
    source, folder = corpora.source(tmp_path / "own", CAPTIONS), tmp_path / "corpus"

    def write() -> str:
        if kind == "parquet":
            load_images(source, decode=False).to_parquet(tmp_path / "set.parquet")
        else:
            (tmp_path / "set.tar").unlink(missing_ok=True)
            captions = {image_id: said[0] for image_id, said in load_references(source).items() if said}
            images = load_images(source, decode=False)
            pairs = zip(images["image_id"], images["image"], strict=True)
            write_captions(captions, tmp_path / "set.tar", images=dict(pairs))
        return str(tmp_path / f"set.{kind}")

    before = build(write(), folder).digest
    assert build(str(tmp_path / f"set.{kind}"), folder).digest == before
    corpora.source(tmp_path / "own", [["something else"], *CAPTIONS[1:]])
    with pytest.raises(CorpusError, match=r"other files, by their sizes or times, than .*--overwrite"):
        build(write(), folder)
    assert build(write(), folder, overwrite=True).digest != before


def test_an_unfinished_corpus_does_not_mix_images(tmp_path: Path) -> None:
    class Failing(corpora.Bag):
        def encode_images(self, images):
            if self.images >= 20:
                raise RuntimeError
            return super().encode_images(images)

    source, folder = corpora.source(tmp_path / "own", CAPTIONS), tmp_path / "corpus"
    with pytest.raises(RuntimeError):
        build(source, folder, Failing())
    replace_images(tmp_path / "own")
    with pytest.raises(CorpusError, match="holds an unfinished corpus made .*other images, under the same names"):
        build(source, folder)


def test_a_corpus_that_knows_no_contents_stays_usable(tmp_path: Path) -> None:
    source, folder = corpora.source(tmp_path / "own", CAPTIONS), tmp_path / "corpus"
    before = build(source, folder).digest
    config = json.loads((folder / "config.json").read_text())
    del config["contents"]
    (folder / "config.json").write_text(json.dumps(config))
    replace_images(tmp_path / "own")
    assert build(source, folder).digest == before


def test_times_and_columns_that_no_corpus_has_decide_nothing(tmp_path: Path) -> None:
    source, folder = corpora.source(tmp_path / "own", CAPTIONS), tmp_path / "corpus"
    dataset = load_images(source, decode=False)
    build(dataset, folder)
    for file in (tmp_path / "own").glob("*.png"):
        os.utime(file, (1, 1))
    encoder = corpora.Bag()
    build(dataset.add_column("length", [1] * 30), folder, encoder)
    assert not encoder.images


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
    with pytest.raises(CorpusError, match="not a corpus but holds texts.npy"):
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
    assert build(stream(), tmp_path / "a").digest == resumed.digest
    rows.reverse()
    with pytest.raises(CorpusError, match="other rows, by the first one, than the source has now"):
        build(stream(), tmp_path / "a")


def test_two_images_of_a_stream_under_one_id_are_refused(tmp_path: Path) -> None:
    from datasets import Dataset

    def table(*seeds: int) -> str:
        rows = [
            {
                "image": {"bytes": encode(photo(seed=seed), "PNG"), "path": None},
                "image_id": f"i{n // 2}",
                "caption": text,
            }
            for n, (seed, text) in enumerate(zip(seeds, ("a", "b", "c"), strict=True))
        ]
        Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
        return str(tmp_path / "rows.parquet")

    with pytest.raises(CorpusError, match="two rows of the source have the id 'i0', and different images"):
        build(table(1, 2, 3), tmp_path / "corpus")
    assert build(table(1, 1, 3), tmp_path / "other").image_ids == ["i0", "i1"]


def test_rows_that_repeat_an_id_without_its_image_keep_their_captions(tmp_path: Path) -> None:
    from datasets import Dataset

    images = [{"bytes": encode(photo(), "PNG"), "path": None}, None]
    rows = [{"image": image, "image_id": "i", "caption": f"caption {n}"} for n, image in enumerate(images)]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    assert build(str(tmp_path / "rows.parquet"), tmp_path / "corpus").captions == ["caption 0", "caption 1"]


def test_captions_that_the_encoder_cuts_are_counted(source: str, tmp_path: Path) -> None:
    class Short(corpora.Bag):
        truncated = 0

        def encode_texts(self, texts):
            self.truncated += len(texts)
            return super().encode_texts(texts)

    with counting() as counts:
        build(source, tmp_path / "corpus", Short())
    assert {reason: sum(items.values()) for reason, items in counts.items() if "cut" in reason} == {
        "captions that the text encoder cut, so that their ends are not searched": 60
    }


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
