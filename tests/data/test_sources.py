"""Every kind of source ends as rows of image, image_id, references; what is wrong with one is said in a sentence."""

from __future__ import annotations

import json
import os
import tarfile
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from PIL import Image
from source_files import NAMES, TRUTH, content, images, write

from captune.data import load_images, load_references, without_bad, write_captions
from captune.data.columns import column, undecoded
from captune.data.folders import list_images
from captune.data.sources import part_of, sharded
from captune.errors import BadImage, SourceError, UsageError
from captune.utils.skipped import counting, sentences

# -------------------------------------------------------------------- folders


def test_folder_is_recursive_sorted_and_ignores_the_rest(tmp_path: Path) -> None:
    names = ["b.jpg", "a/x.JPG", "a/y/z.jpeg", "ü é.jpg", ".hidden.jpg", ".thumbs/t.jpg"]
    images(tmp_path / "photos", names)
    write(tmp_path / "photos" / "notes.txt", "x")
    assert list(content(tmp_path / "photos")) == sorted(name for name in names if not name.startswith("."))
    assert list(content(tmp_path / "photos" / "b.jpg")) == ["b.jpg"]


def test_a_sidecar_of_two_images_is_refused(tmp_path: Path) -> None:
    images(tmp_path, ["a.jpg", "a.png", "b.jpg"])
    write(tmp_path / "b.txt", "a red square")
    assert content(tmp_path)["b.jpg"] == ["a red square"]
    write(tmp_path / "a.txt", "a blue square")
    with pytest.raises(SourceError, match=r"a.txt may be the caption of a.jpg or of a.png: rename one"):
        load_references(str(tmp_path))


def test_links_are_followed_but_not_round_in_circles(tmp_path: Path) -> None:
    photos, elsewhere = images(tmp_path / "photos", ["a.jpg"]), images(tmp_path / "elsewhere", ["b.jpg"])
    (photos / "other").symlink_to(elsewhere)
    (photos / "self").symlink_to(photos)
    assert list_images(photos) == ["a.jpg", "other/b.jpg"]


def test_only_the_broken_image_fails(tmp_path: Path) -> None:
    images(tmp_path, [*NAMES, "d.jpg"])
    (tmp_path / "b.jpg").write_bytes(b"<html>")
    dataset = load_images(str(tmp_path))
    assert [dataset[i]["image"].mode for i in (0, 2, 3)] == ["RGB"] * 3
    with pytest.raises(BadImage, match=r"b\.jpg: is HTML"):
        dataset[1]
    assert list(dataset["image_id"]) == [*NAMES, "d.jpg"]  # a column is read without opening images
    assert dataset.select([3, 0])[0]["image_id"] == "d.jpg"
    assert set(undecoded(dataset)[1]["image"]) == {"bytes", "path"}


@pytest.mark.skipif(os.sys.platform != "linux", reason="needs file names that are no UTF-8")
def test_a_name_that_is_no_utf8_is_listed_and_fails_alone(tmp_path: Path) -> None:
    images(tmp_path, ["a.jpg"])
    os.rename(tmp_path / "a.jpg", os.fsencode(tmp_path) + b"/\xff.jpg")
    images(tmp_path, ["b.jpg"])
    dataset = load_images(str(tmp_path))
    assert len(dataset) == 2
    with pytest.raises(BadImage, match="not valid UTF-8"):
        dataset[0]


@pytest.mark.skipif(os.sys.platform != "linux", reason="needs file names that are no UTF-8")
def test_a_folder_whose_own_name_is_no_utf8_is_refused(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    (Path(os.fsdecode(folder)) / "a.png").write_bytes(b"")
    with pytest.raises(SourceError, match="no text in UTF-8; rename it"):
        load_images(os.fsdecode(folder))


def test_a_folder_is_listed_in_little_memory_and_in_the_order_of_its_names(tmp_path: Path) -> None:
    count = 2**12 + 2**11  # more than are strings together
    names = [f"{number * 7919 % count:05d}{end}" for number in range(count) for end in ("é.png", ".png")]
    for place, name in enumerate(names):
        folder = tmp_path / f"{place % 3}"
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    load_images(str(tmp_path), limit=1, decode=False)  # what is imported is not counted
    tracemalloc.start()
    dataset = load_images(str(tmp_path), decode=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    expected = sorted(f"{place % 3}/{name}" for place, name in enumerate(names))
    assert column(dataset, "image_id") == expected
    assert dataset[-1]["image"]["path"] == str(tmp_path / expected[-1])
    assert dataset[5]["references"] == []
    assert peak < 250 * 2 * count


def test_different_images_of_a_folder_have_different_fingerprints(tmp_path: Path) -> None:
    images(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    sources = [f"{tmp_path}{query}" for query in ("", "?n=1", "?n=2", "?n=1&skip=1", "?n=1&skip=2")]
    assert len({load_images(source)._fingerprint for source in sources}) == len(sources)
    assert load_images(sources[1])._fingerprint == load_images(sources[1])._fingerprint


def test_number_seed_and_limit(tmp_path: Path) -> None:
    names = [f"{i:02d}.jpg" for i in range(20)]
    folder = images(tmp_path / "p", names)
    assert list(content(f"{folder}?n=3")) == names[:3]
    assert list(content(folder, limit=2)) == names[:2]
    drawn = list(content(f"{folder}?n=5&seed=1"))
    assert drawn == list(content(f"{folder}?n=5&seed=1"))
    assert drawn != list(content(f"{folder}?n=5&seed=2"))
    assert len(set(drawn)) == 5
    assert drawn[:2] == list(content(f"{folder}?n=5&seed=1", limit=2))
    assert sorted(content(f"{folder}?seed=3")) == names
    assert list(content(f"{folder}?n=99")) == names


# -------------------------------------------------------------- caption files


def flickr8k(folder: Path) -> Path:
    lines = [f"{name}#{i}\t{text} " for name, texts in TRUTH.items() for i, text in enumerate(texts)]
    return write(folder / "Flickr8k.token.txt", "\n".join(lines) + "\n")


def kaggle(folder: Path) -> Path:
    quoted = [(name, text.replace('"', '""')) for name, texts in TRUTH.items() for text in texts]
    return write(folder / "captions.txt", "image,caption\n" + "".join(f'{name},"{text}"\r\n' for name, text in quoted))


def flickr30k(folder: Path) -> Path:
    lines = [f"{name}| {i}| {text} ." for name, texts in TRUTH.items() for i, text in enumerate(texts)]
    lines[2] = lines[2].replace("0| ", "0   ")  # as in the published file, whose one row lacks a mark
    return write(folder / "results.csv", "image_name| comment_number| comment\n" + "\n".join(lines))


def jsonl(folder: Path) -> Path:
    rows = [{"image": name, "references": texts} for name, texts in TRUTH.items()]
    return write(folder / "set.jsonl", "\n".join(map(json.dumps, rows)))


def jsonl_line_per_caption(folder: Path) -> Path:
    rows = [{"file_name": name, "caption": text} for name, texts in TRUTH.items() for text in texts]
    return write(folder / "metadata.jsonl", "\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("where", ["", "images", "Images"])
@pytest.mark.parametrize("form", [flickr8k, kaggle, flickr30k, jsonl, jsonl_line_per_caption])
def test_caption_files_find_their_images(tmp_path: Path, form: Any, where: str) -> None:
    images(tmp_path / where)
    expected = {k: [f"{t} ." for t in v] for k, v in TRUTH.items()} if form is flickr30k else TRUTH
    path = form(tmp_path)
    assert content(path) == expected
    assert load_references(str(path)) == expected
    assert list(content(f"{path}?n=2")) == NAMES[:2]


@pytest.mark.parametrize("key", ["image_id", "cocoid"])
def test_a_table_with_ids_beside_the_files_is_known_by_its_ids(tmp_path: Path, key: str) -> None:
    images(tmp_path)
    lines = [f"{row},{40 + i},{name},{text}" for i, name in enumerate(NAMES) for row, text in enumerate(["a", "b"])]
    path = write(tmp_path / "set.csv", f"id,{key},image,caption\n" + "\n".join(lines))
    expected = {str(40 + i): ["a", "b"] for i in range(len(NAMES))}
    assert content(path) == load_references(str(path)) == expected
    assert load_images(str(path))[1]["image"].size == load_images(str(tmp_path / NAMES[1]))[0]["image"].size
    write(path, f"{key},image,caption\n,a.jpg,a dog\n")
    with pytest.raises(SourceError, match="line 2: has no id"):
        load_images(str(path))
    write(path, "id,image,caption\n0,a.jpg,a dog\n1,a.jpg,a cat\n")  # which numbers the captions
    assert content(path) == {"a.jpg": ["a dog", "a cat"]}


@pytest.mark.parametrize("form", ["c.jsonl", "c.json", "c.parquet"])
def test_ids_that_number_captions_do_not_make_an_image_of_each(tmp_path: Path, form: str) -> None:
    images(tmp_path, ["a.jpg", "b.jpg"])
    rows = [{"id": i, "image": f"{'ab'[i // 2]}.jpg", "caption": f"caption {i}"} for i in range(4)]
    if form.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / form)
    else:
        write(tmp_path / form, "\n".join(map(json.dumps, rows)) if form.endswith("l") else json.dumps(rows))
    with pytest.raises(SourceError, match=r"name the file a\.jpg under the ids '0' and '1'.*one image would be two"):
        load_images(str(tmp_path / form))
    by_file = {"a.jpg": ["caption 0", "caption 1"], "b.jpg": ["caption 2", "caption 3"]}
    if form.endswith("parquet"):
        assert load_references(f"{tmp_path / form}?id=image&image=image") == by_file
    for row in rows:
        row["id"] = row["image"]  # of the image, once a caption
    write(tmp_path / "own.jsonl", "\n".join(map(json.dumps, rows)))
    assert load_references(str(tmp_path / "own.jsonl")) == by_file


def test_an_empty_list_of_references_hides_no_caption(tmp_path: Path) -> None:
    rows = [{"image_id": "a", "references": [], "caption": "a dog"}, {"image_id": "b", "references": None}]
    write(tmp_path / "c.jsonl", "\n".join(map(json.dumps, rows)))
    assert load_references(str(tmp_path / "c.jsonl")) == {"a": ["a dog"], "b": []}


def test_images_elsewhere_are_named_in_the_source(tmp_path: Path) -> None:
    path, folder = flickr8k(tmp_path), images(tmp_path / "far away" / "x")
    with pytest.raises(SourceError, match=r"\?images=FOLDER"):
        load_images(str(path))
    assert load_references(str(path)) == TRUTH  # references alone need no images
    assert content(f"{path}?images={folder}") == TRUTH
    with pytest.raises(SourceError, match="does not exist"):
        load_images(f"{path}?images=/no/such/folder")


def test_a_missing_image_fails_alone(tmp_path: Path) -> None:
    images(tmp_path, NAMES[:2])
    dataset = load_images(str(flickr8k(tmp_path)))
    assert dataset[1]["references"] == TRUTH["b.jpg"]
    with pytest.raises(BadImage, match=r"c\.jpg: No such file"):
        dataset[2]


def coco(folder: Path) -> Path:
    listed = [{"id": i, "file_name": name} for i, name in enumerate(TRUTH)]
    captions = [{"image_id": i, "caption": t} for i, texts in enumerate(TRUTH.values()) for t in texts]
    folder.mkdir(exist_ok=True)
    return write(folder / "captions_val2017.json", {"images": listed, "annotations": captions})


def test_coco_captions(tmp_path: Path) -> None:
    images(tmp_path / "val2017")
    path = coco(tmp_path / "annotations")  # as COCO unpacks: images in a folder beside the annotations'
    expected = dict(zip(("0", "1", "2"), TRUTH.values(), strict=True))
    assert content(path) == expected
    assert content(f"{path}?images={tmp_path / 'val2017'}&n=1") == {"0": TRUTH["a.jpg"]}
    with pytest.raises(SourceError, match="no splits"):
        load_images(f"{path}?split=test")


def test_karpathy_json_and_its_splits(tmp_path: Path) -> None:
    images(tmp_path / "images" / "val2014")
    entries: list[dict[str, Any]] = [
        {
            "filename": name,
            "filepath": "val2014",
            "cocoid": 40 + i,
            "split": split,
            "sentences": [{"raw": t} for t in TRUTH[name]],
        }
        for i, (name, split) in enumerate(zip(NAMES, ("train", "restval", "test"), strict=True))
    ]
    path = write(tmp_path / "dataset_coco.json", {"dataset": "coco", "images": entries})
    assert list(content(path)) == ["40", "41", "42"]
    assert content(f"{path}?split=test") == {"42": TRUTH["c.jpg"]}
    assert list(content(f"{path}?split=train+restval")) == ["40", "41"]
    with pytest.raises(SourceError, match="no split 'dev'; it has restval, test, train"):
        load_images(f"{path}?split=dev")


def test_plain_json_and_results(tmp_path: Path) -> None:
    by_id = {name.removesuffix(".jpg"): texts for name, texts in TRUTH.items()}
    path = write(tmp_path / "captions.json", {**by_id, "c": TRUTH["c.jpg"][0]})
    expected = {**by_id, "c": TRUTH["c.jpg"][:1]}
    assert load_references(str(path)) == expected
    folder = images(tmp_path / "images")
    assert content(path) == expected  # ids without a suffix find their files
    assert content(f"{path}?images={folder}") == expected
    results = write(tmp_path / "results.json", [{"image_id": 3, "caption": "x"}, {"image_id": 3, "caption": "y"}])
    assert load_references(str(results)) == {"3": ["x", "y"]}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("x.json", "{", "not valid JSON"),
        ("x.json", "3", "expected COCO or Karpathy"),
        ("x.json", '{"images": [{"id": 1}], "annotations": []}', "not COCO captions"),
        ("x.json", '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1}]}', "without captions"),
        ("x.json", '{"a": 3}', "expected a caption or a list"),
        ("x.json", "{}", "names no image"),
        ("x.txt", "hello\n", "not a known caption table"),
        ("x.csv", "image,caption\na.jpg\n", "line 2: expected 2 cells, as in the header, found 1"),
        ("x.token", "a.jpg#0\tx\nbroken\n", "line 2: expected 'name.jpg#0"),
        ("x.jsonl", '{"text": "a"}\n', "line 1: needs an 'image' or an 'image_id'"),
        (
            "x.jsonl",
            '{"image_id": 1, "image": "a"}\n{"image_id": 1, "image": "b"}\n',
            "two images share the image_id '1'",
        ),
        (
            "x.jsonl",
            '{"image_id": 1, "objects": ["dog"]}\n{"image_id": 1, "objects": null}\n'
            '{"image_id": 1, "objects": ["cat"]}\n',
            "line 3: '1' has other objects than in line 1",
        ),
        ("x.bin", "?", "is of no known kind"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, text: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason) as caught:
        load_images(str(write(tmp_path / name, text)))
    assert name.split(".")[1] in str(caught.value) or "image_id" in str(caught.value)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{}?n=0", "n: '0' must be at least 1"),
        ("{}?n=x", "whole number"),
        ("{}?size=3", "unknown setting 'size'"),
        ("{}?split=test", "takes only"),
        ("{}/empty", "no image files"),
        ("{}/nowhere", "does not exist"),
        ("{0}/*.jpg", "of images name the folder {0}$"),
        ("no-such-name-anywhere", "hf download no-such-name-anywhere --repo-type dataset"),
        ("storybook:test?split=x", "takes only"),
    ],
)
def test_wrong_sources(tmp_path: Path, source: str, reason: str) -> None:
    images(tmp_path, ["a.jpg"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=reason.replace("{0}", str(tmp_path))):
        load_images(source.format(tmp_path))


def test_references_where_there_are_none(tmp_path: Path) -> None:
    assert load_references(str(images(tmp_path))) == {name: [] for name in NAMES}


def test_bad_images_are_sorted_out_before_training(tmp_path: Path) -> None:
    images(tmp_path)
    (tmp_path / "b.jpg").write_bytes(b"")
    dataset, bad = without_bad(load_images(str(tmp_path)), progress=False)
    assert bad == [("b.jpg", "is empty (0 bytes)")]
    assert [row["image_id"] for row in dataset] == ["a.jpg", "c.jpg"]
    assert without_bad(dataset, progress=False) == (dataset, [])


def test_storybook(tmp_path: Path) -> None:
    dataset = load_images("storybook:test?n=3&seed=91", limit=2)
    assert len(dataset) == 2
    assert isinstance(dataset[0]["image"], Image.Image)
    references = load_references("storybook:test?n=3&seed=91")
    assert list(references) == ["test-91-000000", "test-91-000001", "test-91-000002"]
    assert all(len(texts) == 5 for texts in references.values())


def test_skip_and_n_share_no_image(tmp_path: Path) -> None:
    for i in range(10):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / f"{i}.png")
    for seed in ("", "&seed=3"):
        first, rest = (column(load_images(f"{tmp_path}?{part}{seed}"), "image_id") for part in ("n=6", "skip=6"))
        assert len(first) == 6 and len(rest) == 4 and not set(first) & set(rest)
    with pytest.raises(SourceError, match="leaves none"):
        load_images(f"{tmp_path}?skip=10")


def test_c3_a_loop_of_links_and_an_unreadable_folder_end_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    images(tmp_path, ["a.png"])
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "private").mkdir()
    scandir = os.scandir

    def refuse(path):  # tests may run as root, whom no permission stops
        if Path(path).name == "private":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with counting() as skipped:
        assert list_images(tmp_path) == ["a.png"]
    assert {reason: len(items) for reason, items in skipped.items()} == {
        "links that lead nowhere": 2,
        "folders that cannot be read": 1,
    }
    assert any("private: Permission denied" in sentence for sentence in sentences(skipped))


@pytest.mark.parametrize("kind", ["folder", "storybook", "shards"])
def test_the_shards_of_a_source_are_its_images_once_each(tmp_path: Path, kind: str) -> None:
    names = [f"{i}.png" for i in range(7)]
    for i, name in enumerate(names):
        tiny.picture(i, (8, 8)).save(tmp_path / name)
    source = {"folder": str(tmp_path), "storybook": "storybook:test?n=7&seed=3"}.get(kind, "")
    if kind == "shards":
        images = {name: {"bytes": None, "path": str(tmp_path / name)} for name in names}
        write_captions(dict.fromkeys(names, "x"), tmp_path / "x.tar", images=images)
        source = str(tmp_path / "x.tar")
    for stream in (False, True):
        load = partial(load_images, decode=False, stream=stream)
        whole = [row["image_id"] for row in load(source)]
        parts = [[row["image_id"] for row in load(sharded(source, f"{i}/3"))] for i in (1, 2, 3)]
        assert [len(part) for part in parts] == [3, 2, 2] and parts[0] == whole[::3]
        assert sorted(image_id for part in parts for image_id in part) == sorted(whole)
        assert [row["image_id"] for row in load(sharded(source, "2/3"), limit=1)] == whole[1:2]


@pytest.mark.parametrize("limit", [20, 40, None])
def test_parts_of_shards_share_no_image(tmp_path: Path, limit: int | None) -> None:
    for i in range(100):
        tiny.picture(i, (8, 8)).save(tmp_path / f"{i:03d}.png")
    seen: list[str] = []
    for shard in ("1/2", "2/2"):
        source = sharded(str(tmp_path), shard)
        parts = [part_of(source, part, limit=limit) for part in ("training", "held_out")]  # type: ignore[arg-type]
        training, held_out = ([row["image_id"] for row in load_images(part or "")] for part in parts)
        whole = len(load_images(source, limit=limit))
        assert (len(training), len(held_out)) == (whole - whole // 10, whole // 10)
        seen += training + held_out
    assert len(set(seen)) == len(seen)


def test_a_shard_that_is_none_is_refused(tmp_path: Path) -> None:
    for shard in ("0/3", "4/3", "1", "1/0", "a/b", "-1/3"):
        with pytest.raises(UsageError, match="is not i/n, such as 1/4"):
            sharded("photos", shard)
    with pytest.raises(SourceError, match="names a shard already"):
        sharded("photos?shard=1/2", "1/2")


@pytest.mark.parametrize("kind", ["jsonl", "json", "metadata", "tar"])
def test_a_reference_with_half_a_character_is_left_out_and_counted(tmp_path: Path, kind: str) -> None:
    photos = images(tmp_path / "photos", ["a.jpg", "b.jpg"])
    rows = [{"file_name": "a.jpg", "text": ["a \ud83d dog", "a dog"]}, {"file_name": "b.jpg", "text": "a cat"}]
    source = str(photos)
    if kind == "metadata":
        write(photos / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "tar":
        source = str(tmp_path / "x.tar")
        with tarfile.open(source, "w") as tar:
            for row in rows:
                write(photos / f"{row['file_name'][0]}.json", json.dumps({"text": row["text"]}))
                tar.add(photos / str(row["file_name"]), str(row["file_name"]))
                tar.add(photos / f"{row['file_name'][0]}.json", f"{row['file_name'][0]}.json")
    else:
        file = tmp_path / f"captions.{kind}"
        write(file, json.dumps(rows) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows))
        source = f"{file}?images={photos}"
    with counting() as skipped:
        assert list(column(load_images(source, decode=False), "references")) == [["a dog"], ["a cat"]]
    [said] = [one for one in sentences(skipped) if "half a character" in one]
    assert said.startswith("left out 1: references")


def test_an_id_with_half_a_character_is_refused(tmp_path: Path) -> None:
    images(tmp_path, ["a.jpg"])
    write(tmp_path / "x.jsonl", json.dumps({"image_id": "\ud83d", "image": "a.jpg", "caption": "a dog"}) + "\n")
    with pytest.raises(SourceError, match=r"'\\ud83d' holds half a character.*rename the image"):
        load_images(str(tmp_path / "x.jsonl"))


def test_a_table_that_captune_writes_is_a_source_of_references(tmp_path: Path) -> None:
    images(tmp_path, ["a.jpg", "b.jpg"])
    for name in ("x.csv", "x.tsv"):
        write_captions({"a.jpg": "a dog, running", "b": "a cat"}, tmp_path / name)
        assert load_references(str(tmp_path / name)) == {"a.jpg": ["a dog, running"], "b": ["a cat"]}
        paths = [row["image"]["path"] for row in load_images(str(tmp_path / name), decode=False)]
        assert [os.path.basename(path) for path in paths] == ["a.jpg", "b.jpg"]


def test_what_captune_keeps_beside_a_caption_file_is_not_said_to_be_left_out(tmp_path: Path) -> None:
    images(tmp_path, ["a.jpg"])
    for end in ("", ".jsonl", ".settings.json", ".images.jsonl", ".bad.jsonl"):
        write(tmp_path / f"metadata.csv{end}", "file_name,text\na.jpg,a dog\n" if not end else "{}\n")
    with counting() as skipped:
        assert content(tmp_path) == {"a.jpg": ["a dog"]}
    assert not skipped
    write(tmp_path / "x.jsonl", "{}\n")
    with counting() as skipped:
        list_images(tmp_path)
    assert len(sentences(skipped)) == 1
