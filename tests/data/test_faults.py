"""What is wrong in data from outside is an error that names the place, or is left out, counted and said at the end."""

from __future__ import annotations

import io
import json
import os
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken_images import encode, photo
from source_files import NAMES, content, images, write

from captune.cli.main import main
from captune.data import load_images, load_references, read_captions
from captune.data.paths import outside_allowed
from captune.errors import CaptionFileError, SourceError
from captune.utils.skipped import counting, sentences


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def refused(path: Path | str, match: str, **options: Any) -> None:
    for load in (load_references, load_images):
        with pytest.raises(SourceError, match=match):
            load(str(path), **options)


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


JPEG = encode(photo(), "JPEG")

# --------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "image,caption\na.jpg,a girl, a hat\n",
            "line 2: expected 2 cells, as in the header, found 3.*quotation marks",
        ),
        ("image,caption,split\na.jpg,a man, a dog,train\n", "line 2: expected 3 cells, as in the header, found 4"),
        ("image,caption,split\na.jpg,a man\n", "line 2: expected 3 cells, as in the header, found 2"),
        (
            'image,caption\nb.jpg,x\na.jpg,"a man\nb.jpg,a dog\nc.jpg,a cat"\n',
            "line 3.*closes it in line 5.*line 4",
        ),
        (
            ',image,caption\n0,b.jpg,x\n1,a.jpg,"a man\n2,b.jpg,a dog\n3,c.jpg,a cat"\n',
            "line 3.*closes it in line 5.*line 4",
        ),
        ('image,caption\na.jpg,"a man\nb.jpg,a dog\nc.jpg,a cat\n', "line 2 to 4: unexpected end of data"),
        ('image,caption\na.jpg,"stop" sign\n', "line 2: ',' expected"),
        ("image|caption|split\na.jpg|a | b|train\n", "line 2: expected 3 cells, as in the header, found 4"),
        (
            "image_name| comment_number| comment\na.jpg| 0| a | b\n",
            "line 2: expected 3 cells, as in the header, found 4",
        ),
        ("image,caption,caption\na.jpg,x,y\n", "the column 'caption' stands twice"),
        ("image,caption\n ,a dog\n", "line 2: expected an image's file name"),
    ],
)
def test_b6_a_row_that_does_not_fit_the_header_names_its_line(tmp_path: Path, text: str, match: str) -> None:
    refused(write(images(tmp_path) / "x.csv", text), match)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", 'image,caption\na.jpg,"a ""stop"" sign, red"\n'),
        ("x.csv", '"image","caption"\n"a.jpg","a ""stop"" sign, red"\n'),
        ("x.csv", 'image;caption\na.jpg;"a ""stop"" sign, red"\n'),
        ("x.csv", 'image|caption|split\na.jpg|"a ""stop"" sign, red"|train\n'),
        ("x.csv", ',image,caption\n0,a.jpg, "a ""stop"" sign, red"\n'),
        ("x.tsv", 'image\tcaption\na.jpg\t"a ""stop"" sign, red"\n'),
        ("x.tsv", 'image\tcaption\r\na.jpg\ta "stop" sign, red\r\n'),
        ("x.csv", 'image_name| comment_number| comment\na.jpg| 0| a "stop" sign, red\n'),
    ],
)
def test_b6_every_dialect_gives_the_same_caption(tmp_path: Path, name: str, text: str) -> None:
    assert content(write(images(tmp_path) / name, text)) == {"a.jpg": ['a "stop" sign, red']}


def test_b6_a_caption_of_two_lines_is_one_caption(tmp_path: Path) -> None:
    path = write(images(tmp_path) / "x.csv", 'image,caption\na.jpg,"a man\non a horse"\nb.jpg,dogs\n')
    assert content(path) == {"a.jpg": ["a man\non a horse"], "b.jpg": ["dogs"]}


@pytest.mark.parametrize("blank", ["", "  ", "nan", "NaN", "null", "None", "<NA>"])
def test_b7_a_blank_reference_is_left_out_and_counted(tmp_path: Path, blank: str) -> None:
    images(tmp_path)
    table = write(tmp_path / "x.csv", f"image,caption\na.jpg,a nanny\na.jpg,{blank}\nb.jpg,{blank}\n")
    rows = [{"image": "a.jpg", "references": ["a nanny", blank]}, {"image": "b.jpg", "references": None}]
    lines = write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows)))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    for path, place in ((table, "line 3"), (lines, "line 1"), (tmp_path / "x.parquet", "row 1")):
        with counting() as counts:
            assert [*load_references(str(path)).values()] == [["a nanny"], []]
        assert sentences(counts) == [
            f"left out 2: references that are blank or a word for a missing value ({path}, {place}; and 1 more)"
        ]


def test_b7_an_image_left_without_a_reference_is_left_out_and_named(tmp_path: Path, capsys: Any) -> None:
    references = write(tmp_path / "x.csv", "image,caption\na.jpg,a dog\nb.jpg,\n")
    captions = write(tmp_path / "c.jsonl", '{"image_id":"a.jpg","caption":"a"}\n{"image_id":"b.jpg","caption":""}\n')
    assert main(["evaluate", str(captions), "--references", str(references), "--no-cache"]) == 0
    said = capsys.readouterr().err
    assert "left out 1: references that are blank" in said
    assert "warning: 1 of the 2 captioned images have no reference in" in said and "(b.jpg); bleu, rouge, cider" in said


# ------------------------------------------------------------------------ ids


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"a": "x",\n "b": "y",\n "a": "z"}', "x.json, lines 1 and 3: the key 'a' stands twice"),
        ('{"annotations": [{"image_id": 1, "caption": "x"}]}', "'annotations'.*a list of rows"),
        ('{"data": [{"file_name": "a.jpg", "caption": "x"}]}', "entry 1 .'data'.*a list of rows"),
        ('{"a": {"b": "c"}}', "entry 1 .'a'.*expected a caption, found an object with b"),
        ('[{"image_id": null, "caption": "x"}]', "entry 1: has no id"),
        ('[{"image_id": true, "caption": "x"}]', "entry 1: True is no id"),
        ('[{"image_id": 1, "image": null, "caption": "x"}]', "entry 1: 'image' must be a file name, not None"),
        ('{"images": [{"id": 1, "file_name": null}], "annotations": []}', "entry 1 of 'images': 'file_name' must be"),
        ('{"images": [{"id": null, "file_name": "a.jpg"}], "annotations": []}', "entry 1 of 'images': has no id"),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}], "annotations": []}',
            "entries 1 and 2 of 'images' have the id 1: a.jpg and b.jpg",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 2, "caption": "x"}]}',
            "entry 1 of",
        ),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [7]}', "entry 1 of 'annotations'"),
        (
            '{"images": [{"filename": "a.jpg", "cocoid": 1, "sentences": []},'
            ' {"filename": "b.jpg", "cocoid": 1, "sentences": []}]}',
            "entries 1 and 2 of 'images' have the id 1",
        ),
        ('{"images": [{"sentences": []}]}', "entry 1 of 'images': 'filename' must be a file name"),
        ('{"a": NaN}', "NaN is no number"),
        ("[" * 100_000, "nested too deeply"),
        ('{"\u00e9": "x", "e\u0301": "y"}', "two Unicode forms that look the same"),
    ],
)
def test_b8_json_that_would_be_read_in_part_is_refused(tmp_path: Path, text: str, match: str) -> None:
    refused(write(images(tmp_path) / "x.json", text), match)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"image": "a.jpg"}\n\n{"image": "a.jpg", "image": "b.jpg"}\n', "line 3: the key 'image' stands twice"),
        ('{"image": "a.jpg"}\n\n{"image_id": null}\n', "line 3: has no id"),
        ('{"image": "a.jpg"}\n{"image": null, "image_id": 3}\n', "line 2: 'image' must be a file name"),
        ('{"image": "a.jpg"}\n{"image": "b.jp', "line 2: .*the file may be cut off"),
        ('{"image": "a.jpg", "caption": 3}\n', "line 1: expected a caption"),
        ('{"image": "a.jpg", "caption": NaN}\n', "line 1: NaN is no number"),
        ('{"image": "a.jpg", "id": 1}\n\n{"image": "b.jpg", "id": 1}\n', "line 3: two images share.*a.jpg .line 1"),
    ],
)
def test_b8_json_lines_are_refused_with_their_number(tmp_path: Path, text: str, match: str) -> None:
    refused(write(images(tmp_path) / "x.jsonl", text), match)


def test_b8_caption_files_with_a_repeated_key_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptionFileError, match="the key 'a' stands twice"):
        read_captions(write(tmp_path / "x.json", '{"a": "x", "a": "y"}'))
    with pytest.raises(CaptionFileError, match="line 3: needs an image_id"):
        read_captions(write(tmp_path / "x.jsonl", '{"image_id": 1, "caption": "x"}\n\n{"caption": "y"}\n'))


def test_b8_ids_of_tables(tmp_path: Path) -> None:
    def table(name: str, ids: list[Any], seeds: list[int]) -> Path:
        pairs = [{"bytes": encode(photo(seed=seed), "PNG"), "path": None} for seed in seeds]
        made = datasets.Dataset.from_dict({"image": pairs, "image_id": ids, "caption": list("xyz")})
        made.cast_column("image", datasets.Image(decode=False)).to_parquet(tmp_path / name)
        return tmp_path / name

    refused(table("null.parquet", ["a", None, "b"], [0, 1, 2]), r"row 2 \(image_id\): has no id")
    refused(table("nan.parquet", [1.0, float("nan"), 2.0], [0, 1, 2]), "row 2")
    refused(table("two.parquet", ["a", "b", "a"], [0, 1, 2]), "rows 1 and 3 have the id 'a'.*different images")
    assert content(table("one.parquet", ["a", "b", "a"], [0, 1, 0])) == {"a": ["x", "z"], "b": ["y"]}


def test_b8_names_meet_in_either_unicode_form(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9.jpg", "cafe\u0301.jpg"
    for disk, written in ((composed, apart), (apart, composed)):
        folder = images(tmp_path / str(len(disk)), [disk])
        table = write(folder / "x.csv", f"image,caption\n{written},x\n")
        assert content(table) == {composed: ["x"]}
        assert list(content(f"{folder}")) == [composed]
    assert read_captions(write(tmp_path / "c.jsonl", json.dumps({"image_id": apart, "caption": "x"}))) == {
        composed: "x"
    }
    assert unicodedata.is_normalized("NFC", composed)
    with pytest.raises(SourceError, match="in two Unicode forms"):
        load_images(str(images(tmp_path / "both", [composed, apart])))


def test_b8_an_id_that_two_files_answer_to_is_refused(tmp_path: Path) -> None:
    images(tmp_path, ["a.jpg", "a.png", "b.jpg"])
    with pytest.raises(SourceError, match="entry 2: the id 'a' may be a.jpg or a.png"):
        load_images(str(write(tmp_path / "x.json", {"b": "x", "a": "y"})))
    assert content(write(tmp_path / "y.json", {"a.png": "x", "b": "y"})) == {"a.png": ["x"], "b": ["y"]}


# ----------------------------------------------------------------- webdataset


@pytest.mark.parametrize("stream", [False, True])
def test_b9_keys_keep_their_dots_and_samples_their_members(tmp_path: Path, stream: bool) -> None:
    members = [(f"{i:03d}.jpg", JPEG) for i in range(7)]  # a suffix that comes late is read too
    members += [("d/22.05.jpg", JPEG), ("d/22.05.txt", b"five"), ("d/22.06.JPG", JPEG), ("d/22.06.TXT", b"six")]
    members += [("c.WebP", encode(photo(), "WEBP")), ("c.caption", b"see"), ("p.png", encode(photo(), "PNG"))]
    members += [("p.json", json.dumps({"caption": "pea", "url": "x"}).encode()), ("d/.hidden.jpg", b"x")]
    members += [("u.jpg", JPEG), ("v.jpg", JPEG), ("u.txt", b"you"), ("v.txt", b"we"), ("u.json", b'{"caption": "no"}')]
    members += [("n.txt", b"no image"), ("u.npy", b"x"), ("b.jpg", JPEG), ("b.txt", b" ")]
    path = shard(tmp_path / "x.TAR", members)
    expected = {f"{i:03d}": [] for i in range(7)} | {"d/22.05": ["five"], "d/22.06": ["six"], "c": ["see"]}
    expected |= {"p": ["pea"], "u": ["you"], "v": ["we"], "b": []}
    for _ in range(2):  # the second time from the cache
        with counting() as counts:
            assert content(path, stream=stream) == expected
        assert sentences(counts) == [
            f"left out 1: .npy members of shards, which are not read ({path}: u.npy)",
            f"left out 1: captions in shards without an image of their key ({path}: n)",
            f"left out 1: references that are blank or a word for a missing value ({path}: b)",
        ]
    assert load_references(str(path)) == expected
    assert content(f"{path}?image=png", stream=stream) == {"p": ["pea"]}
    assert content(f"{path}?caption=json", stream=stream)["u"] == ["no"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("members", "match"),
    [
        ([("a.jpg", JPEG), ("a.png", JPEG)], "the key 'a' has two images, a.jpg and a.png"),
        ([("a.jpg", JPEG), ("a.txt", b"x"), ("a.TXT", b"y")], "two captions"),
        ([("a.jpg", JPEG), ("a.json", b"{")], "a.json is not valid JSON"),
        ([("a.jpg", JPEG), ("a.txt", b"\xff")], "a.txt is not UTF-8"),
    ],
)
def test_b9_samples_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], match: str, stream: bool
) -> None:
    path = shard(tmp_path / "x.tar", members)
    with pytest.raises(SourceError, match=match):
        content(path, stream=stream)


def test_b9_a_damaged_shard_is_refused(tmp_path: Path) -> None:
    whole = shard(tmp_path / "x.tar", [(f"{i}.jpg", JPEG) for i in range(3)]).read_bytes()
    step = 512 * (2 + len(JPEG) // 512)
    for data in (whole[:700], whole[: step + 300], b"", whole[:step] + b"x" * 512 + whole[step + 512 :]):
        (tmp_path / "y.tar").write_bytes(data)
        refused(tmp_path / "y.tar", r"y\.tar (cannot be read as a tar file|is damaged at byte|is cut off)")
    other = shard(tmp_path / "z.tar", [("2.jpg", JPEG)])
    refused(f"{tmp_path}/[xz].tar", f"two samples share the key '2': in {tmp_path}/x.tar and {other}")


def test_b9_brackets_in_paths_are_no_patterns(tmp_path: Path) -> None:
    folder = images(tmp_path / "p [1]*?" / "in", ["a.jpg"])
    assert list(content(folder)) == ["a.jpg"]
    assert content(write(folder / "x[2].csv", "image,caption\na.jpg,x\n")) == {"a.jpg": ["x"]}
    for name in ("tar", "parquet"):
        (tmp_path / f"{name} [1]").mkdir()
    path = shard(tmp_path / "tar [1]" / "x[3].tar", [("a.jpg", JPEG), ("a.txt", b"x")])
    table = tmp_path / "parquet [1]" / "x[3].parquet"
    rows = datasets.Dataset.from_dict({"image": [{"bytes": JPEG, "path": None}], "image_id": ["a"], "caption": ["x"]})
    rows.cast_column("image", datasets.Image(decode=False)).to_parquet(table)
    for source in (path, path.parent, table, table.parent):
        for stream in (False, True):
            assert content(source, stream=stream) == {"a": ["x"]}


# -------------------------------------------------------------------- folders


def test_b15_files_of_other_kinds_are_named_and_counted(tmp_path: Path) -> None:
    images(tmp_path)
    for name in ("x.psd", "y.PSD", "z.svg", "sub/n.txt", "none", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with counting() as counts:
        assert list(content(tmp_path)) == NAMES
        load_images(str(tmp_path), limit=1)  # once more: counted once
    assert sentences(counts) == [
        f"left out 1: suffixless files, which are not read as images ({tmp_path}/none)",
        f"left out 2: .psd files, which are not read as images ({tmp_path}/x.psd; and 1 more)",
        f"left out 1: .svg files, which are not read as images ({tmp_path}/z.svg)",
        f"left out 1: .txt files, which are not read as images ({tmp_path}/sub/n.txt)",
    ]


def test_b15_a_folder_without_images_says_what_is_in_it(tmp_path: Path) -> None:
    for name in ("x.psd", "y.psd", "n.txt"):
        (tmp_path / name).write_bytes(b"x")
    refused(tmp_path, r"no image files in .*, only 2 \.psd, 1 \.txt \(looked for")


def test_c3_loops_and_unreadable_folders_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def closed(path: Any) -> Any:  # permissions do not stop root
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with counting() as counts:
        assert list(content(tmp_path)) == NAMES
    assert sorted(counts) == ["folders that cannot be read", "links that lead nowhere"]


# ---------------------------------------------------------------------- paths


@pytest.mark.parametrize("form", ["csv", "jsonl", "json", "token", "parquet", "pairs"])
@pytest.mark.parametrize("name", ["../secret.jpg", "{}/secret.jpg", "sub/../../secret.jpg", "link/../../secret.jpg"])
def test_paths_in_data_files_stay_inside_its_folder(tmp_path: Path, form: str, name: str) -> None:
    name = name.format(tmp_path)
    images(tmp_path, ["secret.jpg"])
    data = images(tmp_path / "data", ["a.jpg", "sub/b.jpg"])
    (data / "link").symlink_to(data / "sub")
    rows = [{"image": file, "image_id": str(i), "caption": "x"} for i, file in enumerate(("a.jpg", name))]
    path = data / f"x.{form}"
    if form == "csv":
        write(path, f"image,caption\na.jpg,x\n{name},x\n")
    elif form == "token":
        write(path, f"a.jpg#0\tx\n{name}#0\tx\n")
    elif form == "jsonl":
        write(path, "\n".join(map(json.dumps, rows)))
    elif form == "json":
        write(path, rows)
    else:
        path = data / "x.parquet"
        table = datasets.Dataset.from_list(rows)
        if form == "pairs":
            pairs = [{"bytes": None, "path": row["image"]} for row in rows]
            table = table.remove_columns("image").add_column("image", pairs)
        table.to_parquet(path)
    with pytest.raises(SourceError, match="names an image outside of its folder.*--allow-outside"):
        content(path)
    if form in ("parquet", "pairs"):
        with pytest.raises(SourceError, match="names an image outside of its folder"):
            content(path, stream=True)
    with outside_allowed():
        assert len(content(path)) == 2
    with pytest.raises(SourceError, match="outside"):
        content(path)


def test_paths_inside_may_be_absolute_or_go_up(tmp_path: Path) -> None:
    data = images(tmp_path / "data", ["a.jpg", "sub/b.jpg"])
    path = write(data / "x.csv", f"image,caption\n{data}/a.jpg,x\nsub/../sub/b.jpg,y\n")
    assert len(content(path)) == 2
    other = images(tmp_path / "elsewhere", ["c.jpg"])
    path = write(data / "y.csv", f"image,caption\n{other}/c.jpg,x\n")
    assert len(content(f"{path}?images={other}")) == 1  # the folder that the user names


def test_the_flag_lets_a_data_file_name_images_elsewhere(tmp_path: Path, capsys: Any) -> None:
    images(tmp_path, ["secret.jpg"])
    path = write(images(tmp_path / "data", ["a.jpg"]) / "x.csv", "image,caption\na.jpg,a dog\n../secret.jpg,a cat\n")
    captions = [{"image_id": name, "caption": "a dog"} for name in ("a.jpg", "../secret.jpg")]
    made = write(tmp_path / "c.jsonl", "\n".join(map(json.dumps, captions)))
    command = ["evaluate", str(made), "--references", str(path), "--scorers", "clip:storybook-clip", "--no-cache"]
    assert main(command) == 1
    assert "--allow-outside" in capsys.readouterr().err
    assert main([*command, "--bootstrap", "0", "--allow-outside"]) == 0
    assert main(command) == 1


def test_links_and_devices_in_shards_are_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (("a.jpg", tarfile.SYMTYPE), ("b.jpg", tarfile.LNKTYPE), ("c.jpg", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("../../d.jpg")
        info.size = len(JPEG)
        tar.addfile(info, io.BytesIO(JPEG))
    with counting() as counts:
        assert list(content(tmp_path / "x.tar")) == ["../../d"]  # a name; nothing is unpacked
    assert sum(counts["members of shards that are no plain files"].values()) == 3
    assert sorted(os.listdir(tmp_path)) == ["cache", "x.tar"]


# ------------------------------------------------------------ odd parquet files


@pytest.mark.parametrize(
    ("column", "match"),
    [
        ({"image": [[JPEG], [JPEG]]}, "the column 'image' is List.*not images"),
        ({"image": [1, 2]}, "not images"),
        ({"image": [{"x": 1}, {"x": 2}]}, "holds x, not bytes and path"),
        ({"caption": [b"\xff\xfe", b"x"]}, "row 1: a caption is not UTF-8"),
        ({"caption": [1, 2]}, "row 1: expected a caption or a list of captions, found int"),
    ],
)
def test_c1_a_parquet_column_of_another_kind_is_named(tmp_path: Path, column: dict[str, Any], match: str) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [JPEG, JPEG], "caption": ["a", "b"], "image_id": ["1", "2"], **column}), path)
    for stream in (False, True):
        with pytest.raises(SourceError, match=match):
            list(load_images(str(path), decode=False, stream=stream))


def test_c1_parquet_that_cannot_be_read_to_its_end_is_named(tmp_path: Path) -> None:
    good = {"image": [JPEG, JPEG], "caption": ["a", "b"], "image_id": ["1", "2"]}
    pq.write_table(pa.table(good).slice(0, 0), tmp_path / "empty.parquet")
    pq.write_table(pa.table(good), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "torn.parquet").write_bytes(whole[:60] + bytes(200) + whole[260:])
    pq.write_table(pa.table([pa.array([JPEG])] * 2, ["image", "image"]), tmp_path / "twice.parquet")
    (tmp_path / "two").mkdir()
    pq.write_table(pa.table(good), tmp_path / "two" / "a.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "two" / "b.parquet")
    for name, match in {
        "empty.parquet": "holds no rows",
        "torn.parquet": r"torn\.parquet.*cannot be read",
        "twice.parquet": "the column 'image' 2 times",
        "two": "do not have the same columns",
        "whole.parquet?config=x": "has no configurations",
        "whole.parquet?images=nowhere": "is no folder",
    }.items():
        for stream in (False, True):
            with pytest.raises(SourceError, match=match):
                list(load_images(str(tmp_path / name), decode=False, stream=stream))
    assert len(list(load_images(str(tmp_path / "whole.parquet"), decode=False, stream=True))) == 2


def test_b9_settings_that_shards_do_not_have_are_refused(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", [("a.jpg", JPEG), ("a.txt", b"a ball")])
    for query in ("config=x", "image=caption", "id=x", "images=."):
        with pytest.raises(SourceError, match=query.partition("=")[2].replace(".", r"\.")):
            load_images(f"{path}?{query}")
    assert len(load_images(f"{path}?image=jpg")) == 1
