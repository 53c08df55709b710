# ruff: noqa: E501  a table of odd files
"""Further odd command lines for `odd_command_lines`: here the oddity is in the files, folders and surroundings.

`make` writes everything below a folder, `lines` yields (kind, argv, refused, says, env): what must happen, a pattern
that must be in what is said, and what the environment holds besides.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Line(NamedTuple):
    """One command line.

    Attributes:
        kind: what it tries.
        argv: its words.
        refused: whether it must end with code 1 or 2 and a sentence; None: either, but a sentence.
        says: a pattern that must be in what it says.
        env: what the environment holds besides.
    """

    kind: str
    argv: list[str]
    refused: bool | None = True
    says: str = ""
    env: dict[str, str] = {}  # noqa: RUF012  never changed


# -- tables ------------------------------------------------------------------------------------------------------------


def _parquets(folder: Path, jpeg: bytes) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(name: str, table: Any, **options: Any) -> None:
        pq.write_table(table, folder / f"{name}.parquet", **options)

    image = {"bytes": jpeg, "path": "a.jpg"}
    good = {"image": [image] * 2, "caption": ["a ball", "a cat"], "image_id": ["a", "b"]}
    write("works", pa.table(good))
    write("works_large", pa.table({**good, "image": pa.array([jpeg, jpeg], pa.large_binary())}))
    write("works_dictionary", pa.table({**good, "caption": pa.array(["x y", "x y"]).dictionary_encode()}))
    write("image_null", pa.table({**good, "image": pa.array([None, None], pa.binary())}))
    write("image_all_null", pa.table({**good, "image": [None, None]}))
    write("image_struct", pa.table({**good, "image": [{"x": 1}, {"x": 2}]}))
    write("image_number", pa.table({**good, "image": [1, 2]}))
    write("image_list", pa.table({**good, "image": [[jpeg], [jpeg]]}))
    write("image_empty", pa.table({**good, "image": [b"", b""]}))
    write("image_passwd", pa.table({**good, "image": ["/etc/passwd", "/etc/hostname"]}))
    write("image_above", pa.table({**good, "image": ["../../../etc/passwd", "../x.jpg"]}))
    write("image_url", pa.table({**good, "image": ["http://localhost:1/a.jpg", "s3://b/a.jpg"]}))
    write("caption_number", pa.table({**good, "caption": [1, 2]}))
    write("caption_struct", pa.table({**good, "caption": [{"raw": 5}, {"raw": 6}]}))
    write("caption_map", pa.table({**good, "caption": pa.array([[("a", "b")]] * 2, pa.map_(pa.string(), pa.string()))}))
    write("caption_bytes", pa.table({**good, "caption": [b"\xff\xfe", b"x"]}))
    write("caption_null", pa.table({**good, "caption": pa.array([None, None], pa.string())}))
    write("id_nan", pa.table({**good, "image_id": [float("nan"), float("nan")]}))
    write("id_null", pa.table({**good, "image_id": [None, "b"]}))
    write("id_twice", pa.table({**good, "image_id": ["a", "a"]}))
    write("id_list", pa.table({**good, "image_id": [["a"], ["b"]]}))
    write("no_rows", pa.table(good).slice(0, 0))
    write("no_columns", pa.table({"x": [1]}))
    write(
        "two_images",
        pa.table({**good, "image": [image] * 2, "image2": [image] * 2}).rename_columns(
            ["image", "caption", "image_id", "image"]
        ),
    )
    odd = json.dumps({"info": {"features": {"image": {"_type": "Evil", "x": 1}}}})
    write("features_evil", pa.table(good).replace_schema_metadata({"huggingface": odd}))
    write("features_open", pa.table(good).replace_schema_metadata({"huggingface": "{"}))
    write(
        "features_wrong",
        pa.table(good).replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Value", "dtype": "int64"}}}})}
        ),
    )
    whole = (folder / "works.parquet").read_bytes()
    (folder / "flipped.parquet").write_bytes(whole[:60] + bytes(200) + whole[260:])
    (folder / "footer.parquet").write_bytes(whole[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1")
    (folder / "encrypted.parquet").write_bytes(b"PARE" + whole[4:-4] + b"PARE")
    mixed = folder / "schemas"
    mixed.mkdir()
    pq.write_table(pa.table(good), mixed / "a.parquet")
    pq.write_table(pa.table({"caption": [5], "other": ["x"]}), mixed / "b.parquet")


TEXTS: dict[str, bytes] = {
    "utf16.csv": "image,caption\na.jpg,a cat\n".encode("utf-16"),
    "latin.csv": b"image,caption\na.jpg,a caf\xe9\n",
    "long_cell.csv": b"image,caption\na.jpg," + b"x" * 300_000 + b"\n",
    "wide.csv": b"image,caption" + b",x" * 100_000 + b"\n",
    "cr.csv": b"image,caption\ra.jpg,a cat\r",
    "semicolon.csv": b"image;caption\na.jpg;a cat\n",
    "twice.csv": b"image,image,caption\na.jpg,b.jpg,a cat\n",
    "caption_only.csv": b"caption\na cat\n",
    "nul.csv": b"image,caption\na.jpg,a \0 cat\n",
    "passwd.csv": b"image,caption\n/etc/passwd,a cat\n",
    "above.csv": b"image,caption\n../../etc/passwd,a cat\n",
    "url.csv": b"image,caption\nhttp://localhost:1/a.jpg,a cat\n",
    "device.csv": b"image,caption\n/dev/zero,a cat\n",
    "folder.csv": b"image,caption\nphotos,a cat\n",
    "fifo.csv": b"image,caption\npipe,a cat\n",
    "surrogate.jsonl": b'{"image": "photos/\\ud800.jpg", "caption": "a cat"}\n',
    "image_number.jsonl": b'{"image": 5, "caption": "a cat"}\n',
    "image_null.jsonl": b'{"image": null, "caption": "a cat"}\n',
    "image_list.jsonl": b'{"image": ["a.jpg", "b.jpg"], "caption": "a cat"}\n',
    "image_object.jsonl": b'{"image": {"path": "a.jpg"}, "caption": "a cat"}\n',
    "image_nul.jsonl": b'{"image": "a\\u0000.jpg", "caption": "a cat"}\n',
    "image_long.jsonl": b'{"image": "' + b"x" * 5000 + b'.jpg", "caption": "a cat"}\n',
    "image_dot.jsonl": b'{"image": ".", "caption": "a cat"}\n',
    "image_empty.jsonl": b'{"image": "", "caption": "a cat"}\n',
    "image_passwd.jsonl": b'{"image": "/etc/passwd", "caption": "a cat"}\n',
    "image_data.jsonl": b'{"image": "data:image/png;base64,AAAA", "caption": "a cat"}\n',
    "image_file.jsonl": b'{"image": "file:///etc/passwd", "caption": "a cat"}\n',
    "long_line.jsonl": b'{"image": "photos/a.jpg", "caption": "' + b"x" * 20_000_000 + b'", "y": [\n',
    "utf16.jsonl": '{"image": "a.jpg", "caption": "x"}\n'.encode("utf-16"),
    "key_number.json": b'{"1": 2, "3": [4]}',
    "keys_twice.json": b'{"a": "x", "a": "y"}',
    "coco_bool.json": b'{"images": [{"id": true, "file_name": "photos/a.jpg"}], "annotations": [{"image_id": 1, "caption": "x"}]}',
    "coco_float.json": b'{"images": [{"id": 1.5, "file_name": "photos/a.jpg"}], "annotations": [{"image_id": 1.5, "caption": "x"}]}',
    "coco_name_list.json": b'{"images": [{"id": 1, "file_name": ["a.jpg"]}], "annotations": []}',
    "coco_name_null.json": b'{"images": [{"id": 1, "file_name": null}], "annotations": [{"image_id": 1, "caption": "x"}]}',
    "coco_name_empty.json": b'{"images": [{"id": 1, "file_name": ""}], "annotations": [{"image_id": 1, "caption": "x"}]}',
    "coco_name_above.json": b'{"images": [{"id": 1, "file_name": "../../etc/passwd"}], "annotations": [{"image_id": 1, "caption": "x"}]}',
    "coco_twice.json": b'{"images": [{"id": 1, "file_name": "photos/a.jpg"}, {"id": 1, "file_name": "photos/b.jpg"}], "annotations": [{"image_id": 1, "caption": "x"}]}',
    "coco_object.json": b'{"images": {"1": {"file_name": "a.jpg"}}, "annotations": {"1": "x"}}',
    "coco_images_null.json": b'{"images": null, "annotations": [{"image_id": 1, "caption": "x"}]}',
    "coco_annotations_null.json": b'{"images": [{"id": 1, "file_name": "photos/a.jpg"}], "annotations": null}',
    "coco_only_annotations.json": b'{"annotations": [{"image_id": 1, "caption": "x"}]}',
    "coco_instances.json": b'{"images": [{"id": 1, "file_name": "photos/a.jpg"}], "annotations": [{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4]}], "categories": []}',
    "karpathy_split.json": b'{"images": [{"filename": "photos/a.jpg", "split": 5, "sentences": [{"raw": "x"}]}]}',
    "karpathy_raw.json": b'{"images": [{"filename": "photos/a.jpg", "split": "test", "sentences": [{"raw": null}]}]}',
    "flickr.txt": b"a.jpg#x\ta cat\n",
    "flickr_pipe.csv": b"image_name| comment_number| comment\na.jpg| 0\n",
}
#: Captions that are odd and still captions: an evaluation gives figures, and the JSON has no NaN.
CAPTIONS: dict[str, list[Any]] = {
    "empty": ["", "", "", ""],
    "spaces": [" ", "\t", "\n", "\u2003"],
    "punctuation": [".", "...", "!?", ","],
    "emoji": ["🦊" * 50, "👩‍👩‍👧", "\u200d", "\ufeff"],
    "controls": ["\x01\x02", "\x1b[2J\x1b[31m", "\x7f", "\u202e"],
    "nul": ["a\0b", "\0", "x", "y"],
    "surrogate": ["\ud800", "a \udfff", "x", "y"],
    "long": ["a ball " * 20_000, "x" * 200_000, "x", "y"],
    "same": ["a ball"] * 4,
    "arabic": ["كرة حمراء على الشاطئ", "שלום", "球", "गेंद"],
    "html": ["<script>alert(1)</script>", "</td>", "&amp;", "{{7*7}}"],
}


# -- shards ------------------------------------------------------------------------------------------------------------


def _tar(
    path: Path,
    members: list[tuple[str, bytes]],
    change: Callable[[tarfile.TarInfo], None] | None = None,
    mode: str = "w",
    form: int = tarfile.PAX_FORMAT,
) -> None:
    with tarfile.open(path, mode, format=form) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if change is not None:
                change(info)
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)


def _shards(folder: Path, jpeg: bytes) -> None:
    def kind(value: bytes, target: str = "/etc/passwd") -> Callable[[tarfile.TarInfo], None]:
        def change(info: tarfile.TarInfo) -> None:
            info.type, info.linkname = value, target
            info.size = 0

        return change

    good = [("a.jpg", jpeg), ("a.txt", b"a ball"), ("b.jpg", jpeg), ("b.txt", b"a cat")]
    _tar(folder / "works.tar", good)
    _tar(folder / "works_above.tar", [("../../x.jpg", jpeg), ("/etc/y.jpg", jpeg)])
    _tar(folder / "zipped.tar", good, mode="w:gz")
    _tar(folder / "links.tar", [("a.jpg", b""), ("b.jpg", b"")], kind(tarfile.SYMTYPE))
    _tar(folder / "hard.tar", [("a.jpg", b"")], kind(tarfile.LNKTYPE))
    _tar(folder / "fifo.tar", [("a.jpg", b"")], kind(tarfile.FIFOTYPE))
    _tar(folder / "device.tar", [("a.jpg", b"")], kind(tarfile.CHRTYPE))
    _tar(folder / "texts.tar", [("a.txt", b"x"), ("b.txt", b"y")])
    _tar(folder / "twice.tar", [("a.jpg", jpeg), ("a.jpg", jpeg)])
    _tar(folder / "two_images.tar", [("a.jpg", jpeg), ("a.png", jpeg)])
    _tar(folder / "not_utf8.tar", [("a.jpg", jpeg), ("a.txt", b"\xff\xfe")])
    _tar(folder / "json_list.tar", [("a.jpg", jpeg), ("a.json", b"[[1]]")])
    _tar(folder / "json_deep.tar", [("a.jpg", jpeg), ("a.json", b"[" * 100_000)])
    _tar(folder / "json_open.tar", [("a.jpg", jpeg), ("a.json", b"{")])
    _tar(folder / "no_bytes.tar", [("a.jpg", b""), ("b.jpg", b"not an image")])
    _tar(folder / "no_stem.tar", [(".jpg", jpeg), ("x/.jpg", jpeg), ("jpg", jpeg)])
    _tar(folder / "forms.tar", [("caf\u00e9.jpg", jpeg), ("cafe\u0301.jpg", jpeg)])
    _tar(folder / "folders.tar", [("x/", b"")], kind(tarfile.DIRTYPE))
    _tar(folder / "nested.tar", [("a.tar", (folder / "works.tar").read_bytes())])
    whole = (folder / "works.tar").read_bytes()
    (folder / "cut.tar").write_bytes(whole[:700])
    claim = bytearray(whole)
    claim[124:136] = b"77777777777\0"  # 8 GB
    claim[148:156] = b"        "
    claim[148:156] = b"%06o\0 " % sum(claim[:512])
    (folder / "claim.tar").write_bytes(bytes(claim))
    (folder / "middle.tar").write_bytes(whole[:1024] + b"\xff" * 512 + whole[1536:])
    (folder / "works.tar.gz").write_bytes((folder / "zipped.tar").read_bytes())
    (folder / "x.tgz").write_bytes(b"\x1f\x8b" + b"\0" * 20)


# -- images ------------------------------------------------------------------------------------------------------------


def _png(width: int, height: int, data: bytes, *more: tuple[bytes, bytes], depth: int = 8, colour: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", head), *more, (b"IDAT", data), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def pictures(jpeg: bytes) -> dict[str, tuple[bytes, bool]]:
    """{name: (content, whether it is an image)}."""
    from PIL import Image

    def saved(image: Any, kind: str, **options: Any) -> bytes:
        out = io.BytesIO()
        image.save(out, kind, **options)
        return out.getvalue()

    grey = zlib.compress(b"\0" + bytes(8)) * 1
    rows = zlib.compress((b"\0" + bytes(8)) * 8)
    frames = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "works.jpg": (jpeg, True),
        "named_png.png": (jpeg, True),
        "one.png": (saved(Image.new("RGB", (1, 1)), "PNG"), True),
        "thin.png": (saved(Image.new("RGB", (20_000, 1)), "PNG"), True),
        "tall.png": (saved(Image.new("L", (1, 20_000)), "PNG"), True),
        "sixteen.png": (saved(Image.new("I;16", (8, 8), 65_535), "PNG"), True),
        "bits.png": (saved(Image.new("1", (8, 8)), "PNG"), True),
        "palette.gif": (saved(Image.new("P", (8, 8)), "GIF"), True),
        "frames.gif": (saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), True),
        "frames.tiff": (saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]), True),
        "frames.webp": (saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]), True),
        "cmyk.jpg": (saved(Image.new("CMYK", (8, 8)), "JPEG"), True),
        "float.tiff": (saved(Image.new("F", (8, 8), 0.5), "TIFF"), True),
        "lab.tiff": (saved(Image.new("LAB", (8, 8)), "TIFF"), True),
        "turned.jpg": (saved(Image.new("RGB", (8, 16)), "JPEG", exif=exif), True),
        "odd_exif.jpg": (saved(Image.new("RGB", (8, 8)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40), True),
        "text_bomb.png": (_png(8, 8, rows, (b"zTXt", b"x\0\0" + zlib.compress(bytes(50_000_000), 9))), True),
        "odd_profile.png": (_png(8, 8, rows, (b"iCCP", b"x\0\0" + zlib.compress(b"no profile"))), True),
        "no_rows.png": (_png(8, 8, grey), False),
        "zero.png": (_png(0, 0, zlib.compress(b"")), False),
        "giant.png": (_png(2**31 - 1, 2**31 - 1, rows), False),
        "claims.png": (_png(60_000, 60_000, rows), False),
        "crc.png": (_png(8, 8, rows)[:-20] + b"\xff" * 20, False),
        "giant.pgm": (b"P5 99999 99999 255\n" + bytes(100), False),
        "text.pgm": (b"P2 2 2 255\n1 2 x 4\n", False),
        "minus.ppm": (b"P6 -5 5 255\n" + bytes(100), False),
        "giant.bmp": (b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0), False),
        "cut.bmp": (b"BM\0", False),
        "cut.gif": (b"GIF89a\xff\xff\xff\xff\0\0\0", False),
        "cut.webp": (b"RIFF\xff\xff\xff\xffWEBPVP8 \xff\xff\xff\xff" + bytes(30), False),
        "cut.tiff": (b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 200, False),
        "loop.tiff": (b"II*\0\x08\0\0\0\x01\0" + b"\0\1\3\0\1\0\0\0\x08\0\0\0" + b"\x08\0\0\0", False),
        "cut.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n" + b"\xff" * 60, False),
        "cut.avif": (b"\0\0\0\x1cftypavif" + bytes(100), False),
        "cut.heic": (b"\0\0\0\x1cftypheic" + bytes(100), False),
        "cut.tga": (b"\0\0\2" + b"\xff" * 30, False),
        "cut.jpg": (jpeg[: len(jpeg) // 2], False),
        "sof.jpg": (b"\xff\xd8\xff\xc0\0\x0b\x08\xff\xff\xff\xff\1\1\x11\0\xff\xd9", False),
        "soi.jpg": (b"\xff\xd8", False),
        "text.jpg": (b"GIF", False),
        "vector.png": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", False),
        "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", False),
        "empty.jpg": (b"", False),
    }  # fmt: skip


# -- models ------------------------------------------------------------------------------------------------------------


def _model(folder: Path, base: Path, change: dict[str, Any]) -> None:
    """A copy of a model by links; `change`: {file: None to leave out, bytes, or a function of its JSON}."""
    folder.mkdir()
    for part in base.iterdir():
        what = change.get(part.name, part)
        if callable(what) and not isinstance(what, Path):
            content = json.loads(part.read_text())
            what = json.dumps(what(content) or content).encode()
        if isinstance(what, Path):
            (folder / part.name).symlink_to(what)
        elif what is not None:
            (folder / part.name).write_bytes(what)
    for name in change.keys() - {part.name for part in base.iterdir()}:
        (folder / name).write_bytes(change[name])


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    """What sets a value at a path of keys: `_set("a", "b", 5)`."""

    def change(content: dict[str, Any]) -> None:
        for key in path[:-2]:
            content = content.setdefault(key, {})
        content[path[-2]] = path[-1]

    return change


CHANGES: dict[str, dict[str, Any]] = {
    **{f"lacks_{name.partition('.')[0]}": {name: None} for name in ("config.json", "model.safetensors", "tokenizer.json", "processor_config.json")},
    "kind_unknown": {"config.json": _set("model_type", "no_such_model")},
    "kind_number": {"config.json": _set("model_type", 5)},
    "kind_bert": {"config.json": _set("model_type", "bert")},
    "layers_minus": {"config.json": _set("text_config", "num_hidden_layers", -1)},
    "layers_more": {"config.json": _set("text_config", "num_hidden_layers", 6)},
    "layers_fewer": {"config.json": _set("text_config", "num_hidden_layers", 2)},
    "layers_text": {"config.json": _set("text_config", "num_hidden_layers", "many")},
    "layers_float": {"config.json": _set("text_config", "num_hidden_layers", 2.5)},
    "layers_billion": {"config.json": _set("text_config", "num_hidden_layers", 10**9)},
    "hidden_zero": {"config.json": _set("text_config", "hidden_size", 0)},
    "hidden_huge": {"config.json": _set("text_config", "hidden_size", 10**7)},
    "heads_three": {"config.json": _set("text_config", "num_attention_heads", 3)},
    "heads_zero": {"config.json": _set("text_config", "num_attention_heads", 0)},
    "vocabulary_huge": {"config.json": _set("text_config", "vocab_size", 10**12)},
    "vocabulary_small": {"config.json": _set("text_config", "vocab_size", 100)},
    "text_null": {"config.json": _set("text_config", None)},
    "text_list": {"config.json": _set("text_config", [1, 2])},
    "vision_null": {"config.json": _set("vision_config", None)},
    "patch_zero": {"config.json": _set("vision_config", "patch_size", 0)},
    "activation": {"config.json": _set("text_config", "hidden_act", "no_such")},
    "image_token": {"config.json": _set("image_token_id", 10**9)},
    "scale_zero": {"config.json": _set("scale_factor", 0)},
    "positions_few": {"config.json": _set("text_config", "max_position_embeddings", 4)},
    "rope_text": {"config.json": _set("text_config", "rope_parameters", "x")},
    "dtype_odd": {"config.json": _set("dtype", "float7")},
    "quantised": {"config.json": _set("quantization_config", {"quant_method": "no_such"})},
    "quantised_text": {"config.json": _set("quantization_config", "x")},
    "remote": {"config.json": _set("auto_map", {"AutoModelForImageTextToText": "evil.Model", "AutoConfig": "evil.Config"}), "evil.py": b"import os; os.system('touch EVIL')\n"},
    "processor_size": {"processor_config.json": _set("image_processor", "size", {"longest_edge": -5})},
    "processor_huge": {"processor_config.json": _set("image_processor", "size", {"longest_edge": 10**7})},
    "processor_mean": {"processor_config.json": _set("image_processor", "image_mean", None)},
    "processor_mean_text": {"processor_config.json": _set("image_processor", "image_mean", ["a", "b", "c"])},
    "processor_std_zero": {"processor_config.json": _set("image_processor", "image_std", [0, 0, 0])},
    "processor_class": {"processor_config.json": _set("processor_class", "NoSuchProcessor")},
    "processor_list": {"processor_config.json": b"[1, 2]"},
    "processor_seq": {"processor_config.json": _set("image_seq_len", -3)},
    "tokenizer_class": {"tokenizer_config.json": _set("tokenizer_class", "NoSuchTokenizer")},
    "tokenizer_list": {"tokenizer_config.json": b"[1]"},
    "tokenizer_eos": {"tokenizer_config.json": _set("eos_token", {"x": 1})},
    "template_open": {"chat_template.jinja": b"{% for message in"},
    "template_endless": {"chat_template.jinja": b"{% for i in range(10**9) %}x{% endfor %}"},
    "template_code": {"chat_template.jinja": b"{{ ''.__class__.__mro__[1].__subclasses__() }}"},
    "template_raise": {"chat_template.jinja": b"{{ raise_exception('no') }}"},
    "template_empty": {"chat_template.jinja": b""},
    "template_no_image": {"chat_template.jinja": b"hello"},
    "generation_list": {"generation_config.json": b"[1]"},
    "generation_open": {"generation_config.json": b"{"},
    "generation_odd": {"generation_config.json": b'{"eos_token_id": "x", "max_new_tokens": -5}'},
    "generation_beams": {"generation_config.json": b'{"num_beams": 0, "temperature": -1, "eos_token_id": 1}'},
    "pickle": {"model.safetensors": None, "pytorch_model.bin": b"\x80\x04cposix\nsystem\n\x8c\x0atouch EVIL\x85R."},
    "index_lost": {"model.safetensors": None, "model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": {"x": "lost.safetensors"}}).encode()},
    "index_open": {"model.safetensors": None, "model.safetensors.index.json": b"{"},
    "index_above": {"model.safetensors": None, "model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": {"x": "../../etc/passwd"}}).encode()},
    "header_huge": {"model.safetensors": b"\xff\xff\xff\x7f\0\0\0\0{}"},
    "header_deep": {"model.safetensors": struct.pack("<Q", 50_000) + b"[" * 50_000},
    "vocabulary_none": {"tokenizer.json": _set("model", {"type": "WordLevel", "vocab": {}, "unk_token": "x"})},
    "tokenizer_kind": {"tokenizer.json": _set("model", {"type": "NoSuch"})},
}  # fmt: skip


def _models(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from captune.storybook import model_path

    base = model_path("storybook")
    for name, change in CHANGES.items():
        _model(folder / f"half_{name}", base, change)
    weights = load_file(base / "model.safetensors")
    first = next(name for name, tensor in weights.items() if tensor.ndim == 2)
    changed = {
        "nan": {**weights, first: weights[first] * float("nan")},
        "inf": {**weights, first: weights[first] + float("inf")},
        "renamed": {name + "_x": tensor for name, tensor in weights.items()},
        "half": dict(list(weights.items())[: len(weights) // 2]),
        "shape": {**weights, first: weights[first][:1].clone()},
        "whole_numbers": {name: (tensor * 10).to(torch.int8) for name, tensor in weights.items()},
        "double": {name: tensor.double() for name, tensor in weights.items()},
        "extra": {**weights, "no.such.weight": torch.zeros(3)},
        "none": {},
    }
    for name, tensors in changed.items():
        _model(folder / f"half_weights_{name}", base, {"model.safetensors": b""})
        save_file(tensors, folder / f"half_weights_{name}" / "model.safetensors", metadata={"format": "pt"})
    _adapters(folder)


def _adapters(folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForImageTextToText

    from captune.storybook import model_path

    model = AutoModelForImageTextToText.from_pretrained(model_path("storybook"))
    whole = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    whole.save_pretrained(folder / "lora_works")
    config = json.loads((folder / "lora_works" / "adapter_config.json").read_text())
    tensors = load_file(folder / "lora_works" / "adapter_model.safetensors")
    first = next(iter(tensors))

    def make(name: str, change: dict[str, Any], content: Any = tensors) -> None:
        (folder / f"lora_{name}").mkdir()
        (folder / f"lora_{name}" / "adapter_config.json").write_text(json.dumps({**config, **change}))
        target = folder / f"lora_{name}" / "adapter_model.safetensors"
        save_file(content, target) if isinstance(content, dict) else target.write_bytes(content)

    make("nan", {}, {**tensors, first: tensors[first] * float("nan")})
    make("renamed", {}, {f"x.{name}": tensor for name, tensor in tensors.items()})
    make("half", {}, dict(list(tensors.items())[::2]))
    make("nothing", {}, {})
    make("shape", {}, {**tensors, first: torch.zeros(7, 7)})
    make("cut", {}, (folder / "lora_works" / "adapter_model.safetensors").read_bytes()[:500])
    for key, value in {
        "r": [10**9, 0, 4, 2.5, None, [2]], "lora_alpha": [float("nan"), "x", None], "target_modules": ["q_proj(", [], 5, None, ["lm_head"]],
        "peft_type": ["PROMPT_TUNING", None, 5], "base_model_name_or_path": ["/nowhere", "../../etc", None], "task_type": ["NO_SUCH"],
        "lora_dropout": [5, "x"], "use_dora": [True], "modules_to_save": [["lm_head"], 5], "rank_pattern": [{"q_proj": 8}, 5], "no_such_key": [1],
        "bias": ["all", 5], "layers_to_transform": [[99], "x"], "auto_mapping": [{"base_model_class": "os", "parent_library": "os"}],
    }.items():  # fmt: skip
        for number, odd in enumerate(value):
            make(f"{key}_{number}", {key: odd})
    (folder / "lora_pickle").mkdir()
    (folder / "lora_pickle" / "adapter_config.json").write_text(json.dumps(config))
    (folder / "lora_pickle" / "adapter_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n\x8c\x0atouch EVIL\x85R.")


# -- folders that captune wrote, damaged -------------------------------------------------------------------------------

RUN_FILES = (
    "config.yaml",
    "versions.json",
    "metrics.jsonl",
    "scores.json",
    "README.md",
    "report.html",
    ".lock",
    "captions",
    "adapter",
    "checkpoint-2",
    "watch.jsonl",
)


def _folders(folder: Path, jpeg: bytes) -> None:
    from captune.cli.main import main

    here = Path.cwd()
    os.chdir(folder)
    try:
        train = ["sft", "--model", "storybook", "--images", "storybook:train?n=40", "--eval-images", "storybook:val?n=4", "--output", "trained", "--max-steps", "2", "--save-steps", "1", "--batch-size", "2"]  # fmt: skip
        assert main(train) == 0
        assert main(["corpus", "build", "--captions", "storybook:train?n=20", "--output", "library", "--text-encoder", "storybook-clip", "--image-encoder", "storybook-clip"]) == 0  # fmt: skip
    finally:
        os.chdir(here)
    for file in RUN_FILES:
        for how in ("fifo", "folder", "loop", "binary", "empty"):
            made = folder / f"broken_{how}_{file.strip('.')}"
            shutil.copytree(folder / "trained", made, symlinks=True)
            target = made / file
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
            _spoil(target, how)
    for file in sorted(path.name for path in (folder / "library").iterdir() if path.is_file()):
        for how in ("fifo", "folder", "binary", "empty", "lost", "pickled"):
            made = folder / f"library_{how}_{file.strip('.')}"
            shutil.copytree(folder / "library", made)
            (made / file).unlink()
            _spoil(made / file, how)
    (folder / "named.jpg").mkdir()
    (folder / "named.jpg" / "a.jpg").write_bytes(jpeg)
    (folder / "photos?n=1").mkdir()
    (folder / "photos?n=1" / "a.jpg").write_bytes(jpeg)
    for name in (
        b"\xff.jpg",
        b"a\nb.jpg",
        b"a\x1b[31m.jpg",
        b"-x.jpg",
        "\u202egpj.jpg".encode(),
        b"x" * 200 + b".jpg",
    ):
        (folder / "names").mkdir(exist_ok=True)
        Path(os.fsdecode(os.fsencode(folder / "names") + b"/" + name)).write_bytes(jpeg)
    (folder / "loops").mkdir()
    (folder / "loops" / "a.jpg").write_bytes(jpeg)
    for number in range(8):
        (folder / "loops" / f"l{number}").symlink_to(folder / "loops")
        (folder / "loops" / f"m{number}").symlink_to(f"m{(number + 1) % 8}")
    deep = folder / "deep"
    for _ in range(100):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "a.jpg").write_bytes(jpeg)
    for how in ("fifo", "folder", "binary", "empty", "loop"):
        for side in ("", ".settings.json", ".images.jsonl", ".bad.jsonl", ".lock"):
            made = folder / f"again_{how}{side.replace('.', '_')}.jsonl"
            if side:
                made.write_text("")
            _spoil(folder / f"{made.name}{side}", how)
    for name, change in {"dim": {"width": -5}, "depth": {"depth": 10**6}, "text": {"width": "x"}, "list": [1], "pool": {"pool": "x"}}.items():  # fmt: skip
        made = folder / f"mapper_{name}"
        made.mkdir()
        (made / "config.json").write_text(json.dumps(change))
        (made / "mapper.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")


def _spoil(path: Path, how: str) -> None:
    if how == "fifo":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
        (path / "x").write_text("x")
    elif how == "loop":
        path.symlink_to(path)
    elif how == "pickled":
        import numpy as np

        with path.open("wb") as file:
            np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif how != "lost":
        path.write_bytes(bytes(range(256)) * 4 if how == "binary" else b"")


SCORERS: dict[str, str] = {
    "syntax": "def f(:\n",
    "exits": "import sys\nsys.exit(0)\n",
    "exits_later": "import sys\ndef f(completions, **c):\n    sys.exit(0)\n",
    "raises": "raise KeyError('x')\n",
    "raises_later": "def f(completions, **c):\n    raise KeyError('x')\n",
    "lacks": "import no_such_package\n",
    "number": "f = 5\n",
    "none": "def f(completions, **c):\n    return None\n",
    "few": "def f(completions, **c):\n    return [1.0]\n",
    "texts": "def f(completions, **c):\n    return ['x'] * len(completions)\n",
    "infinite": "def f(completions, **c):\n    return [float('inf')] * len(completions)\n",
    "nested": "def f(completions, **c):\n    return [[1.0]] * len(completions)\n",
    "complex": "def f(completions, **c):\n    return [1j] * len(completions)\n",
    "no_arguments": "def f():\n    return 1\n",
    "column": "def f(completions, no_such_column):\n    return [1.0] * len(completions)\n",
    "class": "class f:\n    pass\n",
    "recursion": "def f(completions, **c):\n    return f(completions)\n",
    "binary": "\x00\x01",
    "prints": "print('\\ud800')\ndef f(completions, **c):\n    return [1.0] * len(completions)\n",
}


def make(folder: Path) -> None:
    """Write everything that `lines` names."""
    jpeg = (folder / "photos" / "a.jpg").read_bytes()
    for name, build in (("tables", _parquets), ("shards", _shards)):
        (folder / name).mkdir()
        build(folder / name, jpeg)
    for name, content in TEXTS.items():
        (folder / f"t_{name}").write_bytes(content)
    for name, captions in CAPTIONS.items():
        rows = [
            {"image_id": f"photos/{image}.jpg", "caption": text} for image, text in zip("abcd", captions, strict=True)
        ]
        (folder / f"c_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rows = [{"image": f"photos/{image}.jpg", "caption": text} for image, text in zip("abcd", captions, strict=True)]
        (folder / f"r_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = pictures(jpeg)
    pictures_known.update({name: works for name, (_, works) in shown.items()})
    (folder / "every").mkdir()
    for name, (content, _) in shown.items():
        (folder / f"i_{name}").write_bytes(content)
        (folder / "every" / name).write_bytes(content)
    for name, content in YAMLS.items():
        (folder / f"y_{name}.yaml").write_bytes(content)
    shutil.copy(folder / "refs.jsonl", folder / "copy.jsonl")
    for name, code in SCORERS.items():
        (folder / f"s_{name}.py").write_bytes(code.encode("utf-8", "surrogatepass"))
    (folder / "s_folder.py").mkdir()
    _models(folder)
    _folders(folder, jpeg)


# -- the lines ---------------------------------------------------------------------------------------------------------

CAPTION = ["caption", "--model", "storybook", "--output", "o.jsonl", "--images"]
EVALUATE = ["evaluate", "caps.jsonl", "--no-cache", "--bootstrap", "10"]
SFT = ["sft", "--model", "storybook", "--output", "o", "--max-steps", "1", "--batch-size", "2"]
SMALL = ["--images", "storybook:train?n=20", "--eval-images", "storybook:val?n=4"]
GRPO = ["grpo", *SFT[1:], *SMALL, "--num-generations", "2"]


def lines(folder: Path) -> Iterator[Line]:
    """Every line, in a fixed order."""
    yield from _about_tables(folder)
    yield from _about_images(folder)
    yield from _about_models(folder)
    yield from _about_folders(folder)
    yield from _about_scorers()
    yield from _about_words()
    yield from _about_settings()


def _about_tables(folder: Path) -> Iterator[Line]:
    for path in sorted((folder / "tables").iterdir()):
        works = path.name.startswith("works")
        yield Line("tables", [*CAPTION, f"tables/{path.name}"], False if works else None)
        yield Line("tables", [*EVALUATE, "--references", f"tables/{path.name}"])
        yield Line("tables", ["corpus", "build", "--captions", f"tables/{path.name}", "--output", "o", "--text-encoder", "storybook-clip", "--image-encoder", "storybook-clip"], False if works else None)  # fmt: skip
    for query in ("image=caption", "image=nothing", "caption=image", "id=nothing", "id=image", "split=x", "config=x", "streaming=x", "streaming=1", "seed=1&n=1&skip=1", "skip=2", "part=held_out", "images=nowhere", "image=image&image=image", "n=1&split=train"):  # fmt: skip
        yield Line("tables", [*CAPTION, f"tables/works.parquet?{query}"], None)
        yield Line("tables", [*CAPTION, f"shards/works.tar?{query}"], None)
    for name in TEXTS:
        yield Line("tables", [*CAPTION, f"t_{name}"], None)
        yield Line("tables", [*EVALUATE, "--references", f"t_{name}"], None)
        yield Line("tables", [*SFT, "--images", f"t_{name}"], None)
    for name in CAPTIONS:
        scored = ["--scorers", "cider,bleu,rouge,health,diversity,self_bleu,objects", "--json"]
        yield Line("odd captions", ["evaluate", f"c_{name}.jsonl", "--references", "refs.jsonl", "--no-cache", "--bootstrap", "10", *scored], None)  # fmt: skip
        yield Line("odd captions", [*EVALUATE, "--references", f"r_{name}.jsonl", *scored], None)
        yield Line("odd captions", ["evaluate", f"c_{name}.jsonl", "--references", "refs.jsonl", "--no-cache", "--bootstrap", "10"], None)  # fmt: skip
        clip = ["--scorers", "clip:storybook-clip,bertscore:storybook-clip,sbert:storybook-clip"]
        yield Line("odd captions", ["evaluate", f"c_{name}.jsonl", "--references", "refs.jsonl", "--images", "refs.jsonl", "--no-cache", *clip], None)  # fmt: skip
    for path in sorted((folder / "shards").iterdir()):
        yield Line("shards", [*CAPTION, f"shards/{path.name}"], False if path.name.startswith("works") and path.suffix == ".tar" else None)  # fmt: skip
        yield Line("shards", [*SFT, "--images", f"shards/{path.name}"], None if path.name == "middle.tar" else path.name != "works.tar")  # fmt: skip


def _about_images(folder: Path) -> Iterator[Line]:
    for path in sorted(folder.glob("i_*")):
        works = pictures_work(path.name)
        yield Line("pictures", [*CAPTION, path.name], None if works is None else not works)
    yield Line("pictures", [*CAPTION, "every"], None, "bad images left out")
    for source in ("named.jpg", "photos?n=1", "names", "loops", "deep"):
        yield Line("pictures", [*CAPTION, source], None if source == "names" else False)  # one is no Unicode
    for source in ("photos/../photos", "photos//", "./photos/.", str(folder / "photos"), "~/nowhere", "~nobody/x", "$HOME", "*", "**", "{a,b}", "photos/*", "photos/a.jpg?n=5", "photos/a.jpg/", "-", "/dev/stdin", "/proc/self/environ", "/proc/self/fd/0", "/dev/fd/0", "/etc/passwd", "data:,x", "file:photos", "file:///etc", "hf://datasets/x", "zip://x", "https://", "//", "\\\\server\\x", "CON", "storybook", "storybook::test", "Storybook:test", "storybook:test:test", "storybook:train/../test", "storybook:test#x", "coco:train", "coco:", ":test", ":"):  # fmt: skip
        yield Line("pictures", [*CAPTION, source, "--limit", "1"], None)


def pictures_work(name: str) -> bool | None:
    """Whether an image must be captioned; None: the decoder decides."""
    if name in ("i_text_bomb.png", "i_odd_exif.jpg", "i_odd_profile.png", "i_lab.tiff", "i_cut.tga", "i_no_rows.png"):
        return None
    return pictures_known.get(name.removeprefix("i_"))


pictures_known: dict[str, bool] = {}


def _about_models(folder: Path) -> Iterator[Line]:
    photos = ["--images", "photos", "--limit", "1", "--output", "o.jsonl"]
    for path in sorted(folder.glob("half_*")):
        yield Line("half models", ["caption", "--model", path.name, *photos], None)
        yield Line("half models", ["sft", "--model", path.name, *SFT[3:], *SMALL], None)
    for path in sorted(folder.glob("lora_*")):
        refused = False if path.name == "lora_works" else None
        yield Line("adapters", ["caption", "--model", "storybook", *photos, "--adapter", path.name], refused)
        yield Line("adapters", ["merge", "--model", "storybook", "--adapter", path.name, "--output", "o"], refused)
        yield Line("adapters", [*SFT, *SMALL, "--adapter", path.name], refused)
    for model in (
        "storybook-lm",
        "storybook-clip",
        "lora_works",
        "trained",
        "trained/adapter",
        "trained/checkpoint-2",
        "library",
        "tables",
    ):
        yield Line("half models", ["caption", "--model", model, *photos])
    for encoder, language in (("storybook", "storybook-lm"), ("storybook-lm", "storybook-lm"), ("storybook-clip", "storybook"), ("storybook-clip", "storybook-clip"), ("photos", "storybook-lm"), ("storybook-clip", "none"), ("lora_works", "trained"), ("half_weights_nan", "storybook-lm")):  # fmt: skip
        named = ["--image-encoder", encoder, "--language-model", language]
        yield Line("half models", ["har", *named, *SMALL, "--output", "o"])
        yield Line("half models", ["caption", *named, "--decoder", "zerocap", *photos])
    for model in ("storybook-lm", "storybook", "half_weights_nan", "half_lacks_config", "photos", "trained"):
        for scorer in ("clip", "bertscore", "sbert", "self_retrieval", "judge", "cycle"):
            if (scorer, model) not in (("bertscore", "storybook-lm"), ("bertscore", "storybook"), ("sbert", "storybook-lm"), ("judge", "storybook"), ("cycle", "storybook"), ("sbert", "storybook"), ("sbert", "half_weights_nan")):  # fmt: skip
                yield Line("half models", [*EVALUATE, "--references", "refs.jsonl", "--images", "refs.jsonl", "--scorers", f"{scorer}:{model}"])  # fmt: skip
        yield Line("half models", ["corpus", "build", "--captions", "storybook:train?n=5", "--output", "o", "--text-encoder", model, "--image-encoder", "storybook-clip"], None)  # fmt: skip
        yield Line("half models", ["corpus", "build", "--captions", "storybook:train?n=5", "--output", "o", "--text-encoder", "storybook-clip", "--image-encoder", model], None)  # fmt: skip
    for output in ("photos", "trained", "lora_works", "half_lacks_config", ".", "trained/adapter"):
        yield Line("adapters", ["merge", "--model", "storybook", "--adapter", "lora_works", "--output", output])


def _about_folders(folder: Path) -> Iterator[Line]:
    again = ["sft", "--model", "storybook", "--images", "storybook:train?n=40", "--eval-images", "storybook:val?n=4", "--batch-size", "2", "--save-steps", "1", "--max-steps"]  # fmt: skip
    for path in sorted(folder.glob("broken_*")):
        yield Line("runs", [*again, "3", "--output", path.name], None)
        yield Line("runs", ["report", path.name, "--output", "r.html"], None)
        if not path.name.startswith("broken_empty"):
            yield Line("runs", [*again, "2", "--output", path.name, "--overwrite"], None)
    for extra in (["--seed", "5"], ["--lora-r", "4"], ["--model", "half_weights_double"], ["--images", "storybook:train?n=39"], ["--max-steps", "1"], ["--prompt", "x"]):  # fmt: skip
        yield Line("runs", [*again, "3", "--output", "trained", *extra])
    yield Line("runs", [*again, "2", "--output", "trained"], False, "already finished")
    yield Line("runs", ["grpo", *GRPO[1:], "--reward", "cider", "--output", "trained"])
    yield Line("runs", ["report", "trained", "trained", "trained/", "./trained", "--output", "r.html"], None)
    yield Line("runs", ["report", ".", "--output", "r.html"], None)
    yield Line(
        "runs", ["report", "trained/captions", "trained/adapter", "photos", "library", "--output", "r.html"], None
    )
    for path in sorted(folder.glob("library*")):
        refused = False if path.name == "library" else None
        yield Line("corpora", [*EVALUATE, "--references", "refs.jsonl", "--images", "refs.jsonl", "--scorers", f"grc:{path.name},qir:{path.name}"], refused)  # fmt: skip
        yield Line("corpora", ["corpus", "build", "--captions", "storybook:train?n=20", "--output", path.name, "--text-encoder", "storybook-clip", "--image-encoder", "storybook-clip"], None)  # fmt: skip
    for output in ("photos", "trained", ".", "none", "lora_works"):
        yield Line("corpora", ["corpus", "build", "--captions", "storybook:train?n=5", "--output", output, "--overwrite", "--text-encoder", "storybook-clip", "--image-encoder", "storybook-clip"], None)  # fmt: skip
        yield Line("corpora", [*SFT, *SMALL, "--output", output, "--overwrite"], None)
    for index in ("", "x", "FLAT", "ivf", "hnsw", "device"):
        yield Line("corpora", ["corpus", "build", "--captions", "storybook:train?n=5", "--output", "o", "--index", index, "--text-encoder", "storybook-clip", "--image-encoder", "storybook-clip"], None)  # fmt: skip
    for path in sorted(folder.glob("again_*.jsonl")):
        yield Line("runs", ["caption", "--model", "storybook", "--images", "photos", "--output", path.name], None)
    for path in sorted(folder.glob("mapper_*")):
        yield Line("corpora", [*EVALUATE, "--references", "refs.jsonl", "--images", "refs.jsonl", "--scorers", f"vizer:{path.name}"])  # fmt: skip
        yield Line("corpora", [*GRPO, "--reward", "length", "--latent-mapper", path.name])
    for source in ("storybook:test?n=2", "photos", "refs.jsonl", "none", "mixed", "tables/works.parquet", "shards/works.tar", "i_empty.jpg"):  # fmt: skip
        for method in (SFT, [*GRPO, "--reward", "cider"], ["vizer", *SFT[1:]], ["scst", *SFT[1:], "--reward", "cider"], ["sc-captioner", *SFT[1:]]):  # fmt: skip
            yield Line("few images", [*method, "--images", source], None)
        yield Line("few images", ["demo", "--output", "o", "--images", source, "--labelled", source, "--test", source], None)  # fmt: skip
        yield Line("few images", [*SFT, *SMALL, "--eval-images", source], None)


def _about_scorers() -> Iterator[Line]:
    evaluate = [*EVALUATE, "--references", "refs.jsonl", "--images", "refs.jsonl", "--scorers"]
    for name in SCORERS:
        refused = None
        yield Line("own scorers", [*evaluate, f"s_{name}.py:f"], refused)
        yield Line("own scorers", [*GRPO, "--reward", f"s_{name}.py:f"], refused)
        yield Line("own scorers", ["scorers", f"s_{name}.py:f"], None)
    for spec in ("s_none.py:", ":f", "s_none.py:f:g", "s_none.py:no_such", "s_none.py:__doc__", "s_folder.py:f", "/s_none.py:f", "s_none:f", "s_none.py", "s_none.pyc:f", "https://x/y.py:f"):  # fmt: skip
        yield Line("own scorers", [*evaluate, spec])
    for text in ("cider,cider", "cider,,bleu", "all,cider", "All", "CIDEr", "cider:refs.jsonl", "bleu4", "cider bleu", "cider, bleu", "*", "clip:storybook-clip?w=1e308", "self_retrieval:storybook-clip?k=99", "self_retrieval:storybook-clip?k=1,1", "self_retrieval:storybook-clip?k=", "chair:refs.jsonl", "species:refs.jsonl?model=storybook-lm", "species:t_wide.csv?model=storybook-lm", "relation_qa:refs.jsonl?model=storybook-lm", "judge:storybook?reference=9", "bias:?by=nothing", "bias:?groups=refs.jsonl", "cycle:storybook", "cycle:storybook?encoder=storybook-lm", "storybook", "bertscore:storybook-lm?layer=99", "bertscore:storybook-lm?layer=-1", "length:?target=0", "repetition:0", "grc:library?k=99999", "vizer:library"):  # fmt: skip
        yield Line("own scorers", [*evaluate, text], None)
        yield Line("own scorers", [*GRPO, "--reward", text], None)
    for watch in ("", "cidr", "cider", "clip:nowhere/x", "all", "length", "0.5*cider"):
        yield Line("own scorers", [*GRPO, "--reward", "length", "--watch", watch], None)


def _about_words() -> Iterator[Line]:
    photos = ["--images", "photos", "--limit", "1"]
    model = ["caption", "--model", "storybook"]
    for byte in (
        "\udcff",
        "\udc80x",
        "a\0b",
        "\u2028",
        "\x1b[31m",
        "%s%n",
        "$(touch EVIL)",
        "`x`",
        "..%2f..",
        "\n",
        "\u202e",
        "é" * 200,
    ):
        yield Line("odd bytes", [*model, *photos, "--output", f"{byte}.jsonl"], None)
        yield Line("odd bytes", [*model, "--images", byte, "--output", "o.jsonl"], None)
        yield Line("odd bytes", ["caption", "--model", byte, *photos, "--output", "o.jsonl"], None)
        yield Line("odd bytes", [*model, *photos, "--output", "o.jsonl", "--prompt", byte], None)
        yield Line("odd bytes", [*model, *photos, "--output", "o.jsonl", f"--{byte}", "x"], None)
        yield Line("odd bytes", [*EVALUATE, "--references", byte], None)
        yield Line("odd bytes", [*EVALUATE, "--references", "refs.jsonl", "--scorers", byte], None)
        yield Line("odd bytes", [*SFT, *SMALL, "--output", byte], None)
        yield Line("odd bytes", [*SFT, *SMALL, "--config", byte], None)
        yield Line("odd bytes", ["report", byte, "--output", "r.html"], None)
        yield Line("odd bytes", [byte], None)
        yield Line("odd bytes", ["scorers", byte], None)
        yield Line("odd bytes", ["corpus", byte], None)
    for argv in (
        [*model, *photos, "--output", "-"], ["evaluate", "-", "--references", "refs.jsonl"], [*EVALUATE, "--references", "-"],
        ["report", "-", "--output", "r.html"], ["report", "trained", "--output", "-"], [*SFT, *SMALL, "--config", "-"], [*SFT, *SMALL, "--output", "-"],
        ["—model", "storybook"], ["caption", "–model", "storybook"], ["caption", "-model", "storybook"], ["--", "caption"], ["caption", *["--debug"] * 3],
        ["caption", "@refs.jsonl"], ["@/dev/zero"], ["-h", "x"], ["--version", "x"], ["caption", "--version"], ["help"], ["help", "caption"], ["CAPTION"], ["caption "],
        [*model, *photos, "--output", "o.jsonl", "--model", "nowhere/x"], [*model, *photos, "--output", "o.jsonl", "--limit", "2", "--limit", "x"],
        [*model, *photos, "--output", "o.jsonl", "--num-beams", "4", "--temperature", "1"], [*model, *photos, "--output", "o.jsonl", "--decoder", "cfg:2", "--temperature", "1"],
        [*model, *photos, "--output", "o.jsonl", "--language-model", "storybook-lm"], [*model, *photos, "--output", "o.jsonl", "--decoder", "zerocap"],
        [*model, *photos, "--output", "o.jsonl", "--trust-remote-code", "yes"], [*model, *photos, "--output", "o.jsonl", "--overwrite=no"],
        [*model, *photos, "--output", "refs.jsonl"], [*model, *photos, "--output", "copy.jsonl", "--overwrite"], [*model, *photos, "--output", "photos/a.jpg"],
        ["evaluate", *["caps.jsonl"] * 50, "--references", "refs.jsonl", "--no-cache", "--bootstrap", "10"], ["evaluate", "caps.jsonl", "c_same.jsonl", "--paired", "--references", "refs.jsonl", "--no-cache"],
        ["evaluate", "caps.jsonl", "--references", "storybook:test?n=4", "--no-cache"], ["evaluate", "caps.jsonl", "--references", "photos", "--no-cache"],
        ["evaluate", "caps.jsonl", "--references", "refs.jsonl", "--images", "none", "--scorers", "clip:storybook-clip", "--no-cache"],
        *(["evaluate", "caps.jsonl", "--references", "refs.jsonl", "--cache", cache, "--scorers", "clip:storybook-clip", "--images", "refs.jsonl"] for cache in ("caps.jsonl", "pipe", "loop", "/proc/x", "none", "photos", "", "s3://x", "x" * 300, "/dev/null")),
        ["corpus", "build"], ["corpus", "build", "--captions", "refs.jsonl"], ["corpus", "build", "build"],
        ["doctor"], ["doctor", "--json"], ["build-storybook", "--output", "caps.jsonl", "--only", "lm"], ["demo", "--output", "o", "--model", "nowhere/x"], ["demo", "--output", "o", "--model", "storybook-lm"],
        ["merge", "--model", "storybook", "--adapter", "lora_works", "--output", "o", "--dtype", "int4"],
    ):  # fmt: skip
        yield Line("odd words", argv, None)
    for env in (
        {"HOME": "/proc/nowhere"}, {"HOME": ""}, {"TMPDIR": "/nowhere"}, {"HF_HOME": "/proc/x"}, {"XDG_CACHE_HOME": "/dev/null"}, {"COLUMNS": "0"}, {"COLUMNS": "-5"}, {"COLUMNS": "x"}, {"TERM": ""},
        {"LINES": "x"}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "x"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}, {"LANG": "xx_YY"}, {"OMP_NUM_THREADS": "x"}, {"HF_HUB_OFFLINE": "x"}, {"RANK": "x", "WORLD_SIZE": "2"},
        {"RANK": "5", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "x"}, {"WORLD_SIZE": "-1"}, {"WORLD_SIZE": "0"}, {"LOCAL_RANK": "7"}, {"CUDA_VISIBLE_DEVICES": "x"}, {"HF_DATASETS_CACHE": "/proc/x"}, {"TZ": "x"}, {"WANDB_MODE": "x"},
    ):  # fmt: skip
        for argv in (
            [*model, *photos, "--output", "o.jsonl"],
            [*EVALUATE, "--references", "refs.jsonl"],
            ["scorers"],
            ["doctor"],
            [*SFT, *SMALL],
        ):
            yield Line("surroundings", argv, None, "", env)


YAMLS: dict[str, bytes] = {
    "number_key": b"1: 2\n", "null_key": b"null: x\n", "list_key": b"? [a]\n: b\n", "merge": b"<<: {seed: 5}\n", "merge_self": b"a: &a {<<: *a}\n", "set": b"seed: !!set {a}\n",
    "binary_tag": b"seed: !!binary aGk=\n", "images_list": b"images: [a, b]\n", "images_number": b"images: 5\n", "images_object": b"images: {n: 5}\n", "output_list": b"output: [a]\n",
    "model_null": b"model: null\n", "model_list": b"model: [storybook]\n", "config": b"config: x.yaml\n", "debug": b"debug: true\n", "text_bool": b"overwrite: 'no'\n", "text_number": b"max_steps: 'ten'\n",
    "wide_key": "ｓeed: 1\n".encode(), "tag": b"seed: !int 5\n", "utf16": "seed: 1\n".encode("utf-16"), "json": b'{"seed": 1.5}', "nul": b"seed: 1\0\n", "long_key": b"x" * 100_000 + b": 1\n",
    "long_number": b"seed: " + b"9" * 10_000 + b"\n", "hex": b"seed: 0x10\n", "underscore": b"seed: 1_000\n", "time": b"seed: 1:30:00\n", "exponent": b"max_steps: 1e3\n", "negative_zero": b"lora_dropout: -0.0001\n",
    "complex": b"learning_rate: 1+2j\n", "many": b"".join(b"k%d: 1\n" % i for i in range(20_000)), "comment": b"# only a comment\n", "dash": b"max-steps: 1\n", "gz": b"\x1f\x8b\x08\0\0\0\0\0", "crlf": b"seed: 1.5\r\n",
    "prompt_list": b"prompt: [a]\n", "prompt_number": b"prompt: 5\n", "dtype": b"dtype: fp8\n", "dtype_number": b"dtype: 16\n", "report_to": b"report_to: [wandb]\n", "adapter": b"adapter: 5\n", "device": b"device: {a: 1}\n",
    "deep_anchor": b"".join(b"a%d: &a%d [*a%d]\n" % (i, i, i - 1) if i else b"a0: &a0 [x]\n" for i in range(2_000)), "unknown_tag": b"seed: !Ref x\n", "no_anchor": b"seed: *x\n",
}  # fmt: skip
YAML_WORKS = {"comment", "dash"}
YAML_MEANS = {"hex", "underscore", "utf16", "text_bool"}  # 16, 1000, 1 and false to YAML 1.1: read as they are meant


def _about_settings() -> Iterator[Line]:
    for name in YAMLS:
        refused = None if name in YAML_WORKS | {"merge", "debug", "config", "images_number", "prompt_number", "adapter", "model_null", "exponent", "wide_key", *YAML_MEANS} else True  # fmt: skip
        yield Line("odd settings", [*SFT, *SMALL, "--config", f"y_{name}.yaml"], refused)
        yield Line("odd settings", [*GRPO, "--reward", "length", "--config", f"y_{name}.yaml"], refused)
    for words in (["--reward", "cider", "--watch", "cider"], ["--reward", "length", "--latent-weight", "0"], ["--reward", "length", "--corpus", "none"], ["--reward", "length", "--preset", "cim"],
                  ["--reward", "length", "--load-in-4bit"], ["--reward", "length", "--train-all-weights", "--adapter", "lora_works"], ["--reward", "length", "--num-generations", "1"], ["--reward", "length", "--steps-per-generation", "7"],
                  ["--reward", "length", "--batch-size", "3"], ["--reward", "length", "--save-steps", "1000000000"], ["--reward", "length", "--max-new-tokens", "100000"], ["--reward", "length", "--temperature", "1e-9"],
                  ["--reward", "length", "--temperature", "1e9"], ["--reward", "length", "--learning-rate", "9.9"], ["--reward", "length", "--lora-r", "1000000"], ["--reward", "length", "--lora-r", "100000000"], ["--reward", "length", "--report-to", "wandb"],
                  ["--reward", "length", "--gradient-accumulation-steps", "1000000"], ["--reward", "length", "--num-generations", "1000000"], ["--reward", "length", "--eval-steps", "0"], ["--reward", "length", "--early-stopping-patience", "1"],
                  ["--reward", "length", "--dtype", "float16"], ["--reward", "length", "--epochs", "1000"], ["--reward", "length", "--batch-size", "1000000"], ["--reward", "storybook", "--images", "photos"], ["--reward", "length", "--device", "meta"]):  # fmt: skip
        yield Line("odd settings", [*GRPO, *words], None)
    for words in (["--rounds", "1000000000"], ["--width", "1000000000"], ["--depth", "100000"], ["--mapper-size", "1000000"], ["--mapper-captions", "nowhere"], ["--mapper-captions", "refs.jsonl"], ["--objective", "reward", "--beta", "0"],
                  ["--mapper-epochs", "1000000000"], ["--mapper-samples", "1000000"], ["--whitened", "100000"], ["--guidance", "1e9"], ["--mapper-learning-rate", "9"], ["--feature", "tower", "--pool", "quarters", "--whitened", "3"]):  # fmt: skip
        yield Line("odd settings", ["vizer", "--model", "storybook", "--images", "storybook:unlabelled?n=20", "--eval-images", "storybook:val?n=4", "--output", "o", "--max-steps", "1", "--batch-size", "2", *words], None)  # fmt: skip
