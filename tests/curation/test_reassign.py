"""`reassign`: SynC's score against its formula written out, both ways, and what becomes of the captions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_pair
from broken_images import encode, photo
from curation_sets import run, write

from captune.curation.reassign import Reassign
from captune.errors import CurationError, UsageError

COLUMNS = {"image_embeddings": "v", "text_embeddings": "t", "alike_embeddings": "g"}


def unit(rows: int, width: int, seed: int) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def nearest(query: np.ndarray, pool: np.ndarray, k: int) -> list[int]:
    return sorted(range(len(pool)), key=lambda i: (-round(float(query @ pool[i]), 6), i))[:k]


def formula(queries: np.ndarray, pool: np.ndarray, alike: np.ndarray, k: int, m: int) -> list[list[tuple[int, float]]]:
    """[(place in the pool, S)] of each query, best first, without a block or an index."""
    found = []
    for q, query in enumerate(queries):
        scored = []
        for rank, v in enumerate(nearest(query, pool, k)):
            score = max(float(alike[q] @ alike[c]) for c in nearest(pool[v], queries, m))
            scored.append((-round(score, 6), rank, v, score))
        found.append([(v, score) for _, _, v, score in sorted(scored)])
    return found


@pytest.fixture
def table(tmp_path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """30 images with one caption each, of which two share a text, and three columns of vectors."""
    made = {"v": unit(30, 8, 0), "t": unit(30, 8, 1), "g": unit(30, 5, 2)}
    texts = [f"caption {n}" for n in range(30)]
    texts[7] = texts[3]
    made["t"][7], made["g"][7] = made["t"][3], made["g"][3]
    columns = {"image_id": [f"i{n:02d}" for n in range(30)], "caption": texts}
    pq.write_table(pa.table({**columns, **{key: list(value) for key, value in made.items()}}), tmp_path / "t.parquet")
    return str(tmp_path / "t.parquet"), made


@pytest.mark.parametrize(("k", "m"), [(15, 2), (4, 1), (30, 29), (100, 100)])
def test_the_formula(k: int, m: int, table: tuple[str, dict[str, np.ndarray]], tmp_path: Path) -> None:
    source, vectors = table
    own = [n for n in range(30) if n != 7]  # different texts
    expected = formula(vectors["t"][own], vectors["v"], vectors["g"][own], k, m)
    best = {n: expected[at][0] for at, n in enumerate(own)}
    best[7] = best[3]
    step = {"reassign": {**COLUMNS, "candidates": k, "back": m, "keep": 1.0}}
    report, rows = run(source, tmp_path / "out", step)
    assert [row["moved_to"] or row["image_id"] for row in rows] == [f"i{best[n][0]:02d}" for n in range(30)]
    assert np.allclose([row["score"] for row in rows], [best[n][1] for n in range(30)], atol=1e-6)
    assert report["records"][0]["notes"]["different captions"] == 29
    assert report["out"]["images"] == len({best[n][0] for n in range(30)})


def test_blocks_change_nothing(
    table: tuple[str, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = {"reassign": COLUMNS}
    whole = run(table[0], tmp_path / "whole", step)[1]
    monkeypatch.setattr("captune.curation.reassign._QUERIES", 4)
    assert run(table[0], tmp_path / "blocks", step)[1] == whole


def test_the_share_that_is_kept(table: tuple[str, dict[str, np.ndarray]], tmp_path: Path) -> None:
    all_of_them = run(table[0], tmp_path / "all", {"reassign": {**COLUMNS, "keep": 1.0}})[1]
    report, rows = run(table[0], tmp_path / "some", {"reassign": {**COLUMNS, "keep": 0.7}})
    scores = np.array([row["score"] for row in all_of_them])
    kept = np.array([row["verdict"] != "drop" for row in rows])
    assert kept.sum() == 21 == report["out"]["captions"]
    assert scores[kept].min() >= scores[~kept].max() - 1e-6
    assert {row["reason"] for row in rows if row["verdict"] == "drop"} == {"not in the highest 0.7 by the cycle score"}
    lines = [json.loads(line) for line in (tmp_path / "some/captions.jsonl").read_text().splitlines()]
    left = {(line["image_id"], text) for line in lines for text in line["references"]}
    assert left == {(row["moved_to"] or row["image_id"], row["before"]) for row in rows if row["verdict"] != "drop"}


def test_images_get_captions(tmp_path: Path) -> None:
    """Roles swapped: an image with n captions gets the n best, and those that it has already stay where they are."""
    vectors = {"v": unit(12, 6, 4), "t": unit(30, 6, 5)}
    owners = [n % 12 for n in range(30)]
    order = np.argsort(owners, kind="stable")
    columns = {
        "image_id": [f"i{owners[n]:02d}" for n in order],
        "caption": [f"caption {n}" for n in order],
        "v": [vectors["v"][owners[n]] for n in order],
        "t": [vectors["t"][n] for n in order],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    expected = formula(vectors["v"], vectors["t"][order], vectors["v"], 5, 2)
    settings = {"of": "images", "image_embeddings": "v", "text_embeddings": "t", "candidates": 5, "keep": 1.0}
    _, rows = run(str(tmp_path / "t.parquet"), tmp_path / "out", {"reassign": settings})
    for image in range(12):
        mine = [row for row in rows if row["image_id"] == f"i{image:02d}"]
        best = [(f"caption {order[code]}", score) for code, score in expected[image][: len(mine)]]
        got = [(row["after"] or [row["before"]])[0] for row in mine]
        assert sorted(got) == sorted(text for text, _ in best)
        for row, text in zip(mine, got, strict=True):
            assert row["score"] == pytest.approx(dict(best)[text], abs=1e-6)
            assert (row["verdict"] == "keep") == (row["before"] == text)
        kept = [row["before"] for row in mine if row["verdict"] == "keep"]
        assert sorted(kept) == sorted({row["before"] for row in mine} & {text for text, _ in best})


def test_more_captions_than_candidates_are_dropped(tmp_path: Path) -> None:
    columns = {"image_id": ["a", "a", "a", "b"], "caption": list("wxyz"), "v": list(unit(4, 3, 0)[[0, 0, 0, 1]])}
    pq.write_table(pa.table({**columns, "t": list(unit(4, 3, 1))}), tmp_path / "t.parquet")
    settings = {"of": "images", "image_embeddings": "v", "text_embeddings": "t", "candidates": 2, "keep": 1.0}
    report, rows = run(str(tmp_path / "t.parquet"), tmp_path / "out", {"reassign": settings})
    assert [row["reason"] for row in rows if row["verdict"] == "drop"] == [
        "the image has more captions than 2 candidates"
    ]
    assert report["out"]["captions"] == 3


@pytest.mark.parametrize("of", ["captions", "images"])
def test_encoders(of: str, tmp_path: Path) -> None:
    """Folders of models: as the formula says of their vectors; a broken image is nobody's, and its caption may move."""
    from captune.data import load_images
    from captune.models.encoders import load_encoder, load_text_encoder

    source = tiny_pair.source(tmp_path / "set", number=8)
    models = tiny_pair.encoders(tmp_path)
    (tmp_path / "set/3.png").write_bytes(b"broken")
    joint, sentences = load_encoder(models["image_encoder"]), load_text_encoder(models["text_encoder"])
    usable = [n for n in range(8) if n != 3]
    texts = [text for n in range(8) for text in (tiny_pair.caption(n), f"two small {tiny_pair.caption(n)[2:]} {n}")]
    images = load_images(source)
    seen = joint.encode_images([images[n]["image"] for n in usable]).numpy()
    said = joint.encode_texts(texts).numpy()
    step = {"of": of, "by": models["image_encoder"], "candidates": 3, "keep": 1.0}
    if of == "captions":
        step["alike"] = models["text_encoder"]
        alike = sentences.encode_texts(texts).numpy()
        expected = [usable[best[0][0]] for best in formula(said, seen, alike, 3, 2)]
        report, rows = run(source, tmp_path / "out", {"reassign": step})
        assert [row["moved_to"] or row["image_id"] for row in rows] == [f"i{n}" for n in expected]
    else:
        report, rows = run(source, tmp_path / "out", {"reassign": step})
        assert [row["reason"] for row in rows[6:8]] == ["the image cannot be opened"] * 2
        expected_texts = [[texts[c] for c, _ in best[:2]] for best in formula(seen, said, seen, 3, 2)]
        got = [[(row["after"] or [row["before"]])[0] for row in rows[2 * n : 2 * n + 2]] for n in usable]
        assert [sorted(one) for one in got] == [sorted(one) for one in expected_texts]
    assert report["records"][0]["notes"]["images that cannot be opened"] == 1


def test_texts_and_images_that_never_met(tmp_path: Path) -> None:
    """Texts of one source, images of another; the set is one of the images, on which further steps work."""
    from captune.curation import curate
    from captune.data import load_images
    from captune.models.encoders import load_encoder

    images = tiny_pair.source(tmp_path / "set", number=6, captions=False)
    model = tiny_pair.encoders(tmp_path)["image_encoder"]
    texts = [tiny_pair.caption(n) for n in range(9)]
    source = write(tmp_path / "texts.jsonl", [[text] for text in texts])
    encoder = load_encoder(model)
    seen = encoder.encode_images([row["image"] for row in load_images(images)]).numpy()
    said = encoder.encode_texts(texts).numpy()
    expected = [best[0] for best in formula(said, seen, said, 3, 2)]
    step = {"by": model, "alike": model, "images": images, "candidates": 3, "keep": 1.0}
    steps = [{"reassign": step}, {"filter": {"by": "column:cycle", "min": -1}}, {"dedup": {"of": "images"}}]
    report = curate(source, tmp_path / "out", steps, progress=False)
    rows = pq.read_table(tmp_path / "out/decisions/1-reassign.parquet").to_pylist()
    assert [(row["image_id"], row["moved_to"]) for row in rows] == [
        (f"i{n}", f"i{v}") for n, (v, _) in enumerate(expected)
    ]
    assert [row["score"] for row in rows] == pytest.approx([score for _, score in expected], abs=1e-5)
    made = load_images(f"{tmp_path / 'out/captions.jsonl'}?images={report['out']['image folder']}")
    assert {row["image_id"]: sorted(row["references"]) for row in made} == {
        f"i{v}": sorted(texts[n] for n, (to, _) in enumerate(expected) if to == v) for v in {v for v, _ in expected}
    }
    assert made[0]["image"].size == load_images(images)[int(made[0]["image_id"][1:])]["image"].size
    assert curate(source, tmp_path / "out", steps, progress=False) == report


def test_vectors_of_what_captions_were_are_refused(table: tuple[str, dict[str, np.ndarray]], tmp_path: Path) -> None:
    from captune.curation import curate

    dedup = {"dedup": {"near": 0.9, "embeddings": "t"}}
    with pytest.raises(CurationError, match="the vectors of t are of what they were"):
        curate(table[0], tmp_path / "out", [{"reassign": COLUMNS}, dedup], progress=False)


def test_a_kill_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended at any part that is kept, and begun again: the same bytes, and what was encoded is not encoded again."""
    from captune.curation import base, vectors
    from captune.models import encoders

    source, model = tiny_pair.source(tmp_path / "set", number=6), tiny_pair.encoders(tmp_path)["image_encoder"]
    encoder = encoders.load_encoder(model)
    monkeypatch.setattr(encoders, "load_encoder", lambda *_: encoder)
    monkeypatch.setattr(vectors, "TEXTS", 3)
    monkeypatch.setattr(vectors, "IMAGES", 2)
    step = {"reassign": {"by": model, "alike": model, "candidates": 3}}
    run(source, tmp_path / "whole", step)
    real, kept = base.keep, list[str]()

    def keep(path: Path, array: np.ndarray) -> None:
        if len(kept) == after:
            raise RuntimeError("killed")
        kept.append(path.name)
        real(path, array)

    for module in (base, vectors):
        monkeypatch.setattr(module, "keep", keep)
    for after in (0, 1, 5, 8):
        kept.clear()
        with pytest.raises(RuntimeError, match="killed"):
            run(source, tmp_path / f"out{after}", step)
        before = set(kept)
        kept.clear()
        with monkeypatch.context() as patch:
            for module in (base, vectors):
                patch.setattr(module, "keep", lambda path, array: (kept.append(path.name), real(path, array)))
            run(source, tmp_path / f"out{after}", step)
        assert not {name for name in kept if "rows-" not in name} & before
        for name in ("curation.json", "captions.jsonl", "decisions/1-reassign.parquet"):
            assert (tmp_path / f"out{after}" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_captions_that_were_mixed_up_find_back(tmp_path: Path) -> None:
    """On drawn images, whose encoder knows them: captions of other images move to images of which they are true."""
    from captune.data import load_images
    from captune.scorers import load_scorer

    dataset = load_images("storybook:test?n=40")
    texts = [dataset[(n + 1) % 40]["references"][0] for n in range(40)]
    (tmp_path / "images").mkdir()
    with (tmp_path / "mixed.jsonl").open("w") as file:
        for n in range(40):
            dataset[n]["image"].save(tmp_path / f"images/{n:02d}.png")
            file.write(json.dumps({"image": f"{n:02d}.png", "image_id": f"{n:02d}", "references": [texts[n]]}) + "\n")
    source = f"{tmp_path / 'mixed.jsonl'}?images={tmp_path / 'images'}"
    step = {"reassign": {"by": "storybook-clip", "alike": "storybook-clip", "candidates": 10}}
    _, rows = run(source, tmp_path / "out", step)
    judge = load_scorer("storybook")

    def precision(pairs: list[tuple[str, int]]) -> float:
        judged = judge.rows([text for text, _ in pairs], scene=[dataset[n]["scene"] for _, n in pairs])
        return judge.corpus(judged)["fact_precision"]

    before = precision([(text, n) for n, text in enumerate(texts)])
    left = [row for row in rows if row["verdict"] != "drop"]
    after = precision([(row["before"], int(row["moved_to"] or row["image_id"])) for row in left])
    assert before < 0.5 < 0.9 < after


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "name one or the other"),
        ({"by": "m", "image_embeddings": "v"}, "name one or the other"),
        ({"image_embeddings": "v"}, "belong together"),
        ({"by": "m", "alike": "a", "alike_embeddings": "g"}, "in two ways"),
        ({"by": "m", "images": "photos", "of": "images"}, "images of another source"),
        ({**COLUMNS, "images": "photos"}, "images of another source"),
    ],
)
def test_wrong_settings(settings: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Reassign(**settings)


def test_vectors_of_two_spaces(table: tuple[str, dict[str, np.ndarray]], tmp_path: Path) -> None:
    with pytest.raises(CurationError, match="g holds vectors of 5 numbers and v of 8: they are not of one space"):
        run(table[0], tmp_path / "out", {"reassign": {**COLUMNS, "text_embeddings": "g"}})


def test_an_encoder_of_drawn_scenes_is_named_where_images_are_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(2):
        (tmp_path / f"photos/{number}.png").write_bytes(encode(photo(seed=number), "PNG"))
        (tmp_path / f"photos/{number}.txt").write_text(f"number {number}")
    drawn = run("storybook:train?n=4", tmp_path / "drawn", {"filter": {"by": "clip", "min": -9}})[0]["out"]["file"]
    step = {"reassign": {"by": "storybook-clip", "alike": "storybook-clip", "keep": 1.0}}
    run(str(tmp_path / "drawn" / drawn), tmp_path / "own", step)
    assert "looks through" not in caplog.text
    run(str(tmp_path / "photos"), tmp_path / "other", step)
    assert (
        "encoding by storybook-clip looks through storybook-clip, which has seen the images of storybook:"
        in caplog.text
    )
