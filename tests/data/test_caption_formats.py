"""Caption files of every format: what is written is read again, and what a format cannot hold is refused or said."""

from __future__ import annotations

import itertools
import json
import os
import tarfile
import unicodedata
from pathlib import Path

import datasets
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from captune.data import load_images, load_references, read_captions, write_captions
from captune.data.caption_formats import FORMATS, format_of, output_format
from captune.data.columns import undecoded
from captune.data.sidecars import sidecar_line
from captune.errors import CaptionFileError, SourceError, UsageError
from captune.inference.convert import convert
from captune.inference.outputs import SidecarOutput, images_of
from captune.utils.skipped import counting, sentences

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=40)
IDS = st.text(st.characters(categories=("Lu", "Ll", "Nd")), min_size=1, max_size=12)
WHOLE_FILES = ["caps.jsonl", "caps.json", "caps.csv", "caps.tsv", "caps.parquet", "metadata.jsonl", "metadata.csv"]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.png", "sub/22.05.jpg", "sub/22.06.jpg", "ünï.png")):
        tiny.picture(number, (16, 16)).save(folder / name)
    return folder


def captions_of(folder: Path) -> dict[str, str]:
    return {str(key): f'caption, "{i}"' for i, key in enumerate(load_references(str(folder)))}


@pytest.mark.parametrize("name", WHOLE_FILES)
@settings(max_examples=40, deadline=None, derandomize=True, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(captions=st.dictionaries(IDS, TEXT, min_size=1, max_size=6))
def test_every_caption_comes_back(tmp_path: Path, name: str, captions: dict[str, str]) -> None:
    captions = {unicodedata.normalize("NFC", key): text for key, text in captions.items()}
    write_captions(captions, tmp_path / name)
    assert read_captions(tmp_path / name) == captions


def test_between_any_two(tmp_path: Path, photos: Path) -> None:
    captions = captions_of(photos)
    files = ["a.jsonl", "b.csv", "c.parquet", "d.json", "metadata.jsonl", "e.tsv", "metadata.csv", "f.ndjson"]
    write_captions(captions, tmp_path / files[0])
    for before, after in itertools.pairwise(files):
        assert convert(tmp_path / before, tmp_path / after).startswith(f"{len(captions)} captions written into")
        assert read_captions(tmp_path / after) == captions


def test_metadata_names_the_files_of_the_images_as_image_folder_reads_them(tmp_path: Path, photos: Path) -> None:
    import datasets

    captions = captions_of(photos)
    write_captions(captions, tmp_path / "caps.jsonl")
    convert(tmp_path / "caps.jsonl", photos / "metadata.jsonl", images=str(photos))
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(photos), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert sorted(loaded["text"]) == sorted(captions.values())
    assert load_references(str(photos)) == {key: [text] for key, text in captions.items()}
    loaded.select_columns(["text"]).add_column("image_id", list(captions)).to_parquet(tmp_path / "back.parquet")
    assert sorted(read_captions(tmp_path / "back.parquet").values()) == sorted(captions.values())


def test_sidecars_stand_beside_the_images_and_are_references(tmp_path: Path, photos: Path) -> None:
    captions = captions_of(photos)
    write_captions(captions, tmp_path / "caps.jsonl")
    (photos / "a.txt").write_text("mine\n")
    with counting() as skipped:
        said = convert(tmp_path / "caps.jsonl", photos, format="sidecars", images=str(photos))
    assert said == f"3 captions written as .txt files into {photos}; 1 was there already"
    assert (photos / "sub/22.05.txt").read_text() == f"{captions['sub/22.05.jpg']}\n"
    kept = captions | {"a.png": "mine"}
    assert read_captions(photos) == kept
    assert load_references(str(photos)) == {key: [text] for key, text in kept.items()}
    assert not skipped
    convert(tmp_path / "caps.jsonl", photos, format="sidecars", images=str(photos), overwrite=True)
    assert read_captions(photos) == captions


def test_sidecars_in_a_tree_of_their_own(tmp_path: Path, photos: Path) -> None:
    images = undecoded(load_images(str(photos), decode=False))
    output = SidecarOutput(images, ".caption", tmp_path / "out")
    output.write([{"image_id": "sub/22.05.jpg", "caption": "x"}])
    assert (tmp_path / "out/sub/22.05.caption").read_text() == "x\n"
    assert not list(photos.rglob("*.caption"))


def test_sidecars_in_a_tree_of_their_own_come_back_with_the_ids_of_the_source(tmp_path: Path, photos: Path) -> None:
    captions, tree = captions_of(photos), tmp_path / "tree"
    write_captions(captions, tmp_path / "caps.jsonl")
    convert(tmp_path / "caps.jsonl", tree, format="sidecars", images=str(photos))
    convert(tree, tmp_path / "back.jsonl", images=str(photos))
    assert (tmp_path / "back.jsonl").read_bytes() == (tmp_path / "caps.jsonl").read_bytes()
    with pytest.raises(CaptionFileError, match="tree holds captions and no images: .* --images SOURCE"):
        read_captions(tree)
    (tree / "sub" / "README.txt").write_text("about these captions\n")
    (tree / "a.txt").unlink()
    with counting() as skipped:
        assert read_captions(tree, images=f"{photos}?n=3") == {k: v for k, v in captions.items() if k != "a.png"}
    assert skipped == {
        f"sidecars that match no image of {photos}?n=3": {"sub/README.txt": 1},
        "images without a sidecar": {"a.png": 1},
    }
    tiny.picture(1, (16, 16)).save(photos / "sub/22.05.png")
    with pytest.raises(
        CaptionFileError, match=r"'sub/22\.05' may be 'sub/22\.05\.jpg' or 'sub/22\.05\.png' of .*rename"
    ):
        read_captions(tree, images=str(photos))
    (tmp_path / "other").mkdir()
    tiny.picture(1, (16, 16)).save(tmp_path / "other/z.png")
    with pytest.raises(
        CaptionFileError, match=r"no captions of the 1 images of .*'z\.png'; it has others, such as sub/"
    ):
        read_captions(tree, images=str(tmp_path / "other"))


def test_sidecars_of_images_with_ids_of_their_own(tmp_path: Path, photos: Path) -> None:
    """COCO's ids are numbers; sidecars, metadata and shards of its images come back to them."""
    names = list(captions_of(photos))
    coco = {"images": [{"id": 10 + i, "file_name": name} for i, name in enumerate(names)], "annotations": []}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    source = f"{tmp_path / 'coco.json'}?images={photos}"
    captions = {str(10 + i): f"caption {i}" for i in range(len(names))}
    write_captions(captions, tmp_path / "caps.jsonl")
    convert(tmp_path / "caps.jsonl", tmp_path / "tree", format="sidecars", images=source)
    assert (tmp_path / "tree/sub/22.05.txt").is_file()
    for name in ("tree", "metadata.jsonl", "x.tar"):
        if name != "tree":
            convert(tmp_path / "caps.jsonl", tmp_path / name, images=source)
        assert read_captions(tmp_path / name, images=source) == captions


def test_a_folder_is_read_as_the_source_has_its_references(tmp_path: Path, photos: Path) -> None:
    captions = captions_of(photos)
    write_captions(captions, tmp_path / "caps.jsonl")
    convert(tmp_path / "caps.jsonl", photos / "metadata.csv", images=str(photos))
    assert read_captions(photos) == read_captions(photos, format="metadata") == captions
    (photos / "a.txt").write_text(f"{captions['a.png']}\n")
    assert read_captions(photos) == captions
    (photos / "sub/22.05.txt").write_text("another\n")
    with pytest.raises(
        CaptionFileError, match=r"'sub/22.05.jpg' has one caption in sub/22.05.txt.*another in metadata.csv"
    ):
        read_captions(photos)
    assert read_captions(photos, format="metadata") == captions
    assert read_captions(photos, format="sidecars") == {"a.png": captions["a.png"], "sub/22.05.jpg": "another"}
    (photos / "metadata.csv").unlink()
    with pytest.raises(CaptionFileError, match=r"holds no metadata\.jsonl and no metadata\.csv"):
        read_captions(photos, format="metadata")


@pytest.mark.parametrize("name", ["meta/metadata.jsonl", "meta/metadata.csv", "x.tar"])
def test_metadata_elsewhere_and_shards_come_back_with_the_ids_of_the_source(
    tmp_path: Path, photos: Path, name: str
) -> None:
    captions = captions_of(photos)
    write_captions(captions, tmp_path / "caps.jsonl")
    convert(tmp_path / "caps.jsonl", tmp_path / name, images=str(photos))
    assert read_captions(tmp_path / name, images=str(photos)) == captions
    link = tmp_path / "link"
    link.symlink_to(photos)
    assert read_captions(tmp_path / name, images=str(link)) == captions  # the same files
    with counting() as skipped:
        assert read_captions(tmp_path / name).keys() & captions.keys() == set()
    assert [items for reason, items in skipped.items() if "elsewhere; --images SOURCE" in reason] == (
        [] if name == "x.tar" else [{"../photos/a.png": 4}]
    )
    tiny.picture(1, (16, 16)).save(photos / "a.jpg")
    if name == "x.tar":
        with pytest.raises(CaptionFileError, match=r"'a' may be 'a\.jpg' or 'a\.png'"):
            read_captions(tmp_path / name, images=str(photos))


def test_captions_of_images_that_a_source_lacks_keep_their_ids_and_are_counted(tmp_path: Path, photos: Path) -> None:
    captions = captions_of(photos)
    write_captions(captions, tmp_path / "caps.jsonl")
    convert(tmp_path / "caps.jsonl", tmp_path / "x.tar", images=str(photos))
    (photos / "a.png").unlink()
    with counting() as skipped:
        convert(tmp_path / "x.tar", tmp_path / "back.csv", images=str(photos))
    assert list(read_captions(tmp_path / "back.csv")) == ["a", *list(captions)[1:]]
    assert skipped == {f"captions are kept whose images are not in {photos}": {"a": 1}}


def test_references_whose_images_are_elsewhere_give_their_ids(tmp_path: Path, photos: Path) -> None:
    captions = captions_of(photos)
    write_captions(captions, tmp_path / "caps.jsonl")
    convert(tmp_path / "caps.jsonl", tmp_path / "tree", format="sidecars", images=str(photos))
    (tmp_path / "refs").mkdir()
    references = tmp_path / "refs" / "references.json"
    references.write_text(json.dumps({key: ["x"] for key in captions}))
    assert read_captions(tmp_path / "tree", images=str(references)) == captions


def test_a_sidecar_of_several_lines_is_several_references(photos: Path) -> None:
    (photos / "a.TXT").write_text("one\n\n two \n", encoding="utf-8")
    assert load_references(str(photos))["a.png"] == ["one", "two"]
    with pytest.raises(CaptionFileError, match=r"a\.png has 2 captions, not one"):
        (photos / "a.TXT").rename(photos / "a.txt")
        read_captions(photos)


def test_a_word_for_a_missing_value_in_a_sidecar_is_no_reference(photos: Path) -> None:
    (photos / "a.txt").write_text("NaN\n\na dog\n", encoding="utf-8")
    with counting() as skipped:
        assert load_references(str(photos))["a.png"] == ["a dog"]
    assert [list(found.values()) for reason, found in skipped.items() if "missing value" in reason] == [[1]]


def test_line_breaks_in_sidecars_are_said() -> None:
    with counting() as skipped:
        assert sidecar_line("a", "one\ntwo\rthree") == "one two three"
    assert sentences(skipped) == [
        "line breaks within captions became spaces, as a caption is one line there: 1 caption (a)"
    ]


def test_two_images_that_would_share_a_sidecar_are_refused(photos: Path) -> None:
    tiny.picture(1, (16, 16)).save(photos / "a.jpg")
    with pytest.raises(SourceError, match=r"'a\.jpg' and 'a\.png' would share the sidecar a\.txt"):
        SidecarOutput(undecoded(load_images(str(photos), decode=False)), ".txt")


def test_sidecars_need_files() -> None:
    with pytest.raises(SourceError, match="is no file of its own"):
        SidecarOutput(undecoded(load_images("storybook:test?n=2", decode=False)), ".txt")


@pytest.mark.parametrize(("kind", "suffix"), [("MPO", ".jpg"), ("JPEG2000", ".jp2"), ("TIFF", ".tiff")])
def test_a_shard_names_images_as_its_readers_know_them(tmp_path: Path, kind: str, suffix: str) -> None:
    image = Image.new("RGB", (8, 8), (200, 30, 30))
    more = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    image.save(tmp_path / "a", kind, **more)
    write_captions({"1": "a red square"}, tmp_path / "x.tar", images={"1": {"path": str(tmp_path / "a")}})
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert set(tar.getnames()) == {f"1{suffix}", "1.txt"}
    assert load_references(str(tmp_path / "x.tar")) == {"1": ["a red square"]}
    image.save(tmp_path / "a", "PCX")
    with pytest.raises(CaptionFileError, match="no suffix is known for images of the kind PCX"):
        write_captions({"1": "a red square"}, tmp_path / "y.tar", images={"1": {"path": str(tmp_path / "a")}})


def test_webdataset_holds_images_and_captions(tmp_path: Path, photos: Path) -> None:
    captions = captions_of(photos)
    images = images_of(FORMATS["webdataset"], load_images(str(photos), decode=False), captions)
    write_captions(captions, tmp_path / "x.tar", images=images)
    keys = {key.rpartition(".")[0].replace(".", "_"): text for key, text in captions.items()}
    assert read_captions(tmp_path / "x.tar") == keys
    again = load_images(str(tmp_path / "x.tar"))
    assert again[0]["image"].size == (16, 16)
    assert load_references(str(tmp_path / "x.tar")) == {key: [text] for key, text in keys.items()}
    with pytest.raises(CaptionFileError, match=r"that of 'gone\.png' is not known: name --images"):
        write_captions({"gone.png": "x"}, tmp_path / "y.tar", images=images)
    assert not (tmp_path / "y.tar").exists()


def test_a_shard_is_what_other_readers_make_of_it(tmp_path: Path, photos: Path) -> None:
    """Their keys end at the first dot of a name."""
    captions = {"sub/22.05.jpg": "five", "sub/22.06.jpg": "six"}
    with counting() as skipped:
        write_captions(captions, tmp_path / "x.tar", images={key: {"path": str(photos / key)} for key in captions})
    assert list(skipped.values()) == [dict.fromkeys(captions, 1)]
    rows = datasets.load_dataset("webdataset", data_files=str(tmp_path / "x.tar"), split="train", streaming=True)
    assert [(row["__key__"], row["txt"].strip()) for row in rows] == [("sub/22_05", "five"), ("sub/22_06", "six")]
    tiny.picture(1, (16, 16)).save(photos / "sub/22_05.jpg")
    with pytest.raises(CaptionFileError, match=r"22_05' may be 'sub/22\.05\.jpg' or 'sub/22_05\.jpg'"):
        read_captions(tmp_path / "x.tar", images=str(photos))


def test_two_sidecars_of_one_image_are_not_chosen_from_in_silence(tmp_path: Path, photos: Path) -> None:
    (photos / "a.txt").write_text("one\n")
    (photos / "a.caption").write_text("one\n")
    assert read_captions(photos) == {"a.png": "one"}
    (photos / "a.caption").write_text("two\n")
    with pytest.raises(CaptionFileError, match=r"'a\.png' has one caption in a\.txt and another in a\.caption"):
        read_captions(photos)
    with counting() as skipped:
        assert load_references(str(photos))["a.png"] == ["one"]
    assert {str(photos / "a.txt"): 1} in skipped.values()


def test_coco_ids_are_numbers_where_they_are(tmp_path: Path) -> None:
    write_captions({"12": "a", "007": "b", "²": "c"}, tmp_path / "x.json")
    assert [row["image_id"] for row in json.loads((tmp_path / "x.json").read_text())] == [12, "007", "²"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.csv", "a,b\n1,2\n", "must name a column of ids and one of captions"),
        ("x.csv", "image_id,caption\na,a dog, running\n", "line 2: expected 2 cells, as in the header, found 3"),
        ("x.csv", "image_id,caption,caption\na,a dog,a cat\n", "the column 'caption' stands twice"),
        ("x.csv", 'file,caption\na.jpg,"a dog\nb.jpg,a cat"\n', "line 2.*closes it in line 3, and line 3"),
        ("x.csv", 'image_id,caption\na,"open\n', "line 2"),
        ("x.csv", "image_id,caption\n,x\n", "needs an image_id"),
        ("x.csv", "image_id,caption\na,x\na,y\n", "a second, different caption for image 'a'"),
        ("x.parquet", "no parquet", "cannot be read as parquet"),
        ("metadata.jsonl", '{"file_name": "a.png"}\n', "needs one caption"),
    ],
)
def test_files_that_are_not_whole_are_refused(tmp_path: Path, name: str, content: str, reason: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CaptionFileError, match=reason):
        read_captions(tmp_path / name)


def test_half_a_character_is_refused_where_it_cannot_stand(tmp_path: Path) -> None:
    for name in ("x.csv", "x.parquet"):
        with pytest.raises(CaptionFileError, match="image 'b'.*half a character"):
            write_captions({"a": "x", "b": "\udc80"}, tmp_path / name)
        assert not (tmp_path / name).exists()
    write_captions({"b": "\udc80"}, tmp_path / "x.json")
    assert read_captions(tmp_path / "x.json") == {"b": "\udc80"}


def test_formats_by_name_and_by_suffix(tmp_path: Path) -> None:
    assert [format_of(name).name for name in ("a.JSONL", "b.tsv", "METADATA.csv", "c.tar")] == [
        "jsonl",
        "csv",
        "metadata",
        "webdataset",
    ]
    assert format_of("a.csv", "jsonl").name == "jsonl"
    with pytest.raises(UsageError, match="not as .xml"):
        format_of("a.xml")
    with pytest.raises(UsageError, match=r"not as .gz: name the output x\.jsonl"):
        format_of("x.json.gz")
    for name in ("a", str(tmp_path / "b.c" / "a."), "b."):
        with pytest.raises(
            UsageError, match=r"\.parquet .* not without a suffix: name the output .*[ab]\.jsonl, or say --f"
        ):
            format_of(name)
    assert format_of("a", reading=True).name == "jsonl" and output_format("a", "csv").name == "csv"
    with pytest.raises(UsageError, match="did you mean 'parquet'"):
        format_of("a", "parket")
    with pytest.raises(UsageError, match=r"written to local paths, not to s3:"):
        output_format("s3://bucket/x.csv")
    with pytest.raises(UsageError, match="without --output"):
        output_format(tmp_path / "new", "sidecars")
    assert output_format("-") is None and output_format("/dev/stdout", "text") is None
    with pytest.raises(UsageError, match="parquet needs a file"):
        output_format("-", "parquet")


def test_metadata_of_an_image_that_is_not_there_is_counted(photos: Path) -> None:
    (photos / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "x"}\n{"file_name": "gone.png", "text": "y"}\n'
    )
    with counting() as skipped:
        assert load_references(str(photos))["a.png"] == ["x"]
    assert list(skipped) == ["rows of metadata whose image is not in the folder"]


def test_captions_of_other_images_are_said_or_refused(tmp_path: Path, photos: Path) -> None:
    write_captions({"a.png": "x", "other.png": "y"}, tmp_path / "caps.jsonl")
    with counting() as skipped:
        convert(tmp_path / "caps.jsonl", photos / "metadata.jsonl", images=str(photos))
    assert list(skipped) == [f"captions of images that are not in {photos}"]
    write_captions({"other.png": "y"}, tmp_path / "none.jsonl")
    with pytest.raises(CaptionFileError, match="none of the 1 captions is of an image of"):
        convert(tmp_path / "none.jsonl", photos / "metadata.csv", images=str(photos))
