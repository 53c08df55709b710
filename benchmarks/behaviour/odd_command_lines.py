# ruff: noqa: E501  a table of odd texts
"""Some three thousand odd command lines: does each end in a sentence, in time, and never with a quietly wrong result?

    python -m benchmarks.behaviour.odd_command_lines [--only KIND] [--show]

Every line runs in a process forked from one that has the libraries loaded, with a limit of 60 seconds of the processor, or of waiting. A line is a
*traceback* if an exception, the words "Traceback" or captune's own "internal error" appear, a *hang* if it is not done
in time, and *silently wrong* if it should be refused and is not, or should work and does not. The last rows measure the
memory of a batch of large images. Root leaves out the lines that write to devices.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from benchmarks.behaviour import odd_files
from benchmarks.behaviour.odd_files import Line

LIMIT = 60  # seconds for a line
MEMORY = 12  # GB that a line may ask for before it is refused them
GUARDED = ("photos", "lora_works", "refs.jsonl", "caps.jsonl", "tables", "shards", "none")  # no line may change them
RESULT = Path(__file__).with_suffix(".json")


# -- what the lines read -----------------------------------------------------------------------------------------------

DEEP = "[" * 100_000
ODD_JSON: dict[str, bytes] = {
    "empty": b"",
    "open": b"{",
    "null": b"null",
    "number": b"5",
    "text": b'"x"',
    "list_of_numbers": b"[1, 2]",
    "deep": DEEP.encode(),
    "deep_object": b'{"a":' * 50_000,
    "not_utf8": b"\xff\xfe\x00",
    "half_utf8": b'[{"image_id": "a", "caption": "\xc3"}]',
    "huge_number": b"[" + b"9" * 6000 + b"]",
    "nan": b'[{"image_id": NaN, "caption": "a cat"}]',
    "no_caption": b'[{"image_id": "a"}]',
    "caption_number": b'[{"image_id": "a", "caption": 5}]',
    "caption_list": b'[{"image_id": "a", "caption": [["a"]]}]',
    "id_object": b'[{"image_id": {"a": 1}, "caption": "a cat"}]',
    "coco_no_id": b'{"images": [{"file_name": "a.jpg"}], "annotations": []}',
    "coco_no_name": b'{"images": [{"id": 1}], "annotations": []}',
    "coco_text": b'{"images": "x", "annotations": "y"}',
    "coco_numbers": b'{"images": [1, 2], "annotations": [3]}',
    "coco_lost": b'{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 2, "caption": "x"}]}',
    "coco_caption": b'{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": {}}]}',
    "karpathy": b'{"images": [{"sentences": 5, "filename": 7}]}',
    "karpathy_none": b'{"images": [{"sentences": null}]}',
    "karpathy_mixed": b'{"images": [{"sentences": [{"raw": "x"}], "filename": "a.jpg"}, 5]}',
    "trailing": b'[{"image_id": "a", "caption": "x"}] x',
}
ODD_LINES: dict[str, bytes] = {
    "torn": b'{"image_id": "a", "caption": "x"}\n{"image_id": "b"\n{"image_id": "c", "caption": "x"}\n',
    "list": b'{"image_id": "a", "caption": "x"}\n[1]\n',
    "twice": b'{"image_id": "a", "caption": "x"}\n{"image_id": "a", "caption": "y"}\n',
    "deep_line": b'{"image_id": "a", "caption": "x"}\n' + DEEP.encode() + b"\n{}\n",
    "binary": bytes(range(256)) * 8,
    "zeros": b"\0" * 4096,
    "no_id": b'{"caption": "x"}\n',
    "id_list": b'{"image_id": [1], "caption": "x"}\n',
}
ODD_TABLES: dict[str, bytes] = {
    "empty.csv": b"",
    "header.csv": b"image,caption\n",
    "binary.csv": bytes(range(256)) * 8,
    "strange.csv": b"x,y\n1,2\n",
    "quote.csv": b'image,caption\na.jpg,"a cat\nb.jpg,a dog\n',
    "zeros.tsv": b"\0" * 100,
    "none.txt": b"no caption here\n",
    "empty.parquet": b"",
    "text.parquet": b"this is no parquet",
    "cut.parquet": b"PAR1" + b"\0" * 50,
    "empty.tar": b"",
    "text.tar": b"this is no tar" * 100,
    "zeros.tar": b"\0" * 10240,
    "bomb.zip": b"PK\3\4" + b"\0" * 30,
}
ODD_YAML: dict[str, bytes] = {
    "empty": b"",
    "list": b"- a\n- b",
    "number": b"5",
    "open": b"a: [",
    "tab": b"a:\n\t- b",
    "twice": b"seed: 1\nseed: 2\n",
    "octal": b"seed: 010\n",
    "sixty": b"seed: 1:30\n",
    "unknown": b"seeed: 1\n",
    "python": b"seed: !!python/object/apply:os.system ['true']\n",
    "anchor": b"seed: &a [*a]\n",
    "laughs": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 106))
    + b"seed: *i\n",
    "nested": b"seed: {a: 1}\n",
    "deep": DEEP.encode(),
    "nan": b"seed: .nan\n",
    "inf": b"lora_dropout: .inf\n",
    "text": b"lora_r: many\n",
    "bool": b"seed: yes\n",
    "null": b"images: null\n",
    "date": b"seed: 2024-01-01\n",
    "no_date": b"seed: 2024-13-45\n",
    "not_utf8": b"\xff\xfe\x00",
    "two": b"seed: 1\n---\nseed: 2\n",
    "large": b"#" + b"x" * 2_000_000,
    "minus": b"save_steps: -1\n",
    "share": b"lora_dropout: 1.5\n",
    "floats": b"lora_r: 2.5\n",
    "empty_text": b"images: ''\n",
    "binary": bytes(range(256)),
}


def make_files(folder: Path) -> None:
    """Write everything that the lines name."""
    from PIL import Image

    photos = folder / "photos"
    photos.mkdir()
    for name in "abcd":
        Image.new("RGB", (32, 32), (ord(name), 90, 20)).save(photos / f"{name}.jpg")
    rows = [{"image": f"photos/{name}.jpg", "caption": f"a {name} ball on the beach"} for name in "abcd"]
    (folder / "refs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"image_id": f"photos/{name}.jpg", "caption": f"a {name} ball"} for name in "abcd"]
    (folder / "caps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, content in ODD_JSON.items():
        (folder / f"json_{name}.json").write_bytes(content)
    for name, content in ODD_LINES.items():
        (folder / f"lines_{name}.jsonl").write_bytes(content)
    for name, content in ODD_TABLES.items():
        (folder / name).write_bytes(content)
    for name, content in ODD_YAML.items():
        (folder / f"yaml_{name}.yaml").write_bytes(content)
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "none").mkdir()
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling.jsonl").symlink_to(folder / "nowhere")
    (folder / "mixed").mkdir()
    shutil.copy(photos / "a.jpg", folder / "mixed" / "a.jpg")
    (folder / "mixed" / "cut.jpg").write_bytes((photos / "b.jpg").read_bytes()[:300])
    (folder / "mixed" / "loop.jpg").symlink_to(folder / "mixed" / "loop.jpg")
    (folder / "mixed" / "page.png").write_bytes(b"<html>")
    os.mkfifo(folder / "mixed" / "pipe.png")
    _make_models(folder)
    _make_runs(folder)
    odd_files.make(folder)


def _make_models(folder: Path) -> None:
    from captune.storybook import model_path

    base = model_path("storybook")
    for name, content in ODD_JSON.items():
        for file in ("config.json", "tokenizer.json"):
            if name in ("empty", "open", "null", "list_of_numbers", "deep", "not_utf8", "huge_number"):
                made = folder / f"model_{file.partition('.')[0]}_{name}"
                made.mkdir()
                for part in base.iterdir():
                    if part.name != file:
                        (made / part.name).symlink_to(part)
                (made / file).write_bytes(content)
    for name, content in {"empty": b"", "text": b"no weights", "length": b"\xff" * 64}.items():
        made = folder / f"model_weights_{name}"
        made.mkdir()
        for part in base.iterdir():
            if part.name != "model.safetensors":
                (made / part.name).symlink_to(part)
        (made / "model.safetensors").write_bytes(content)
    good = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "base_model_name_or_path": "storybook"}
    configs = {
        "none": None,
        "empty": b"",
        "null": b"null",
        "deep": DEEP.encode(),
        "kind": json.dumps({**good, "peft_type": "X"}).encode(),
        "rank": json.dumps({**good, "r": -1}).encode(),
        "text": json.dumps({**good, "r": "many"}).encode(),
        "target": json.dumps({**good, "target_modules": ["nothing"]}).encode(),
    }
    for name, config in configs.items():
        made = folder / f"adapter_{name}"
        made.mkdir()
        if config is not None:
            (made / "adapter_config.json").write_bytes(config)
        (made / "adapter_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")


def _make_runs(folder: Path) -> None:
    contents = {**ODD_JSON, **{f"yaml_{name}": content for name, content in ODD_YAML.items()}}
    for name, content in contents.items():
        run = folder / f"run_{name}"
        run.mkdir()
        files = ("scores.json", "config.yaml", "versions.json", "metrics.jsonl", "watch.jsonl")
        for file in files:
            (run / file).write_bytes(content)


# -- the lines ---------------------------------------------------------------------------------------------------------

METHODS: dict[str, list[str]] = {
    "vizer": ["--model", "storybook", "--images", "storybook:unlabelled?n=40"],
    "grpo": ["--model", "storybook", "--images", "storybook:train?n=40", "--reward", "cider"],
    "sft": ["--model", "storybook", "--images", "storybook:train?n=40"],
    "scst": ["--model", "storybook", "--images", "storybook:train?n=40", "--reward", "cider"],
    "har": [
        "--image-encoder",
        "storybook-clip",
        "--language-model",
        "storybook-lm",
        "--images",
        "storybook:train?n=40",
    ],
    "sc-captioner": ["--model", "storybook", "--images", "storybook:train?n=40"],
}
NEVER = ["nan", "-inf", "1e999", "", "abc", "010", "1_0", "9" * 30, "-1", "1e400", "0x10", "٣", "1;2", "inf"]
ODD_OUTPUTS = [
    "x.csv", "x.parquet", "x.json", "x.txt", "x.jsonl.gz", "s3://bucket/x.jsonl", "gs://b/x.jsonl", "hdfs://h/x.jsonl",
    "http://h/x.jsonl", "file:///tmp/x.jsonl", "/dev/full", "/dev/stdout", "/dev/null", "/dev/stderr", "none", "pipe",
    "photos/a.jpg/x.jsonl", "loop/x.jsonl", "a\nb.csv", "", " ", "/proc/x.jsonl", "x" * 300 + ".jsonl", "loop",
]  # fmt: skip
ODD_FOLDERS = [
    "s3://bucket/x", "gs://b/x", "http://h/x", "/dev/full", "/dev/null", "pipe", "photos/a.jpg", "photos/a.jpg/x",
    "loop/x", "", " ", "/proc/nothing", "caps.jsonl", "x" * 300,
]  # fmt: skip
ODD_SOURCES = [
    "", " ", "?n=3", "?", "nowhere", "./nowhere", "/nowhere/x.json", "storybook:", "storybook:tset", "storybook:test?n=",
    "storybook:test?n=0", "storybook:test?n=-1", "storybook:test?n=nan", "storybook:test?n=1e9", "storybook:test?n=010",
    "storybook:test?n=1000000000", "storybook:test?n=5&n=6", "storybook:test?m=5", "storybook:test?n", "storybook:test?n=5?n=6",
    "storybook:test?seed=-1", "storybook:test?seed=x", "storybook:test?split=val", "storybook:test&n=5", "none", "loop",
    "pipe", "pipe.jsonl", "/dev/null", "/dev/zero", "photos?n=0", "photos?split=x", "photos?n=1.5", "photos?seed=",
    "photos?skip=99", "photos?column=x", "photos?n=1e3", "photos/*.tar", "photos/[.jpg", "s3://bucket/x", "http://localhost:1/x",
    "a" * 5000, "a\x01b", "storybook:test?n=9999999999999999999999", "photos?n=٣", "dangling.jsonl", "user/name?split=train",
]  # fmt: skip
ODD_EXPRESSIONS = [
    "", ",", "cidr", "cider +", "+ ", "cider cider", "cider * cider", "(cider)", "cider/2", "1e400*cider", "0*cider",
    "nan*cider", "inf*cider", "1e-400*cider", "-1e400*cider", "cider - cider", "2*3*cider", "cider**2", "cider + 5", "5",
    "cider:x", "cider:?x=1", "bleu:?n=0", "bleu:9", "clip:nowhere/x", "clip:?w=nan", "clip:?w=", "clip:?w=1&w=2",
    "clip:?w", "self_retrieval:?k=0", "self_retrieval:?k=x", "self_retrieval:?n=0", "self_retrieval:?seed=-1",
    "repetition:?n=0", "repetition:?n=99999999999", "repetition:?n=abc", "diversity:?n=9", "grc", "grc:nowhere", "grc:none",
    "grc:photos?k=0", "qir:caps.jsonl", "vizer", "vizer:nowhere", "vizer:none", "vizer:photos", "file.py:f", "none.py:f",
    "photos/a.jpg:f", "../x.py:f", "judge", "judge:x", "judge:http://localhost:1/v1", "judge:ftp://x#m", "species",
    "species:nowhere.csv", "species:json_null.json?model=storybook-lm", "relation_qa:json_deep.json?model=storybook-lm",
    "relation_qa:nowhere?model=x", "chair:nowhere.json", "objects:json_null.json", "objects:json_deep.json",
    "bias:?groups=json_null.json", "bias:?groups=json_deep.json", "bias:?margin=inf", "bertscore:nowhere/x",
    "sbert:nowhere/x", "capture:?parser=x", "cycle:nowhere/x", "cycle:?steps=0", "cycle:?seed=-1", "a b c", "🦊", "cider\x01",
    "cider;bleu", "bleu|cider", "spice:?timeout=0", "spice:?timeout=nan", "meteor:?memory=", "x" * 20_000, "cider+" * 5_000,
]  # fmt: skip
ODD_DECODERS = [
    "", "cgf:2", "cfg:nan", "cfg:inf", "cfg:0", "cfg:-1", "cfg:1e9", "cfg:x", "cfg:2:3", "cfg:2?x=1", "cfg:?scale=",
    "cfg:2?scale=3", "contrastive:-1", "contrastive:inf", "contrastive:0.5?beta=2", "contrastive:0.5?beta=nan",
    "contrastive:1e30", "contrastive:0.5?beta=0.1&beta=0.2", "best-of:0:length", "best-of:-1", "best-of:100000000:length",
    "best-of:1e8:length", "best-of:8:nothing", "best-of:8:cider", "best-of:8:(length)", "best-of:8:1e400*length",
    "best-of:010:length", "best-of:8:vizer:nowhere", "self-correct:x", "self-correct?x=1", "zerocap", "zerocap:3",
    "zerocap:?steps=-1", "zerocap:?steps=1e9", "zerocap:?temperature=0", "zerocap:?top_k=0", "zerocap:?fusion=nan", "🦊",
]  # fmt: skip
ODD_NUMBERS = {
    "--limit": ["0", "-1", "x", "1.5", "nan", "1e9", "010", "", "9" * 30],
    "--batch-size": ["0", "-1", "x", "1.5", "inf", "1000000000", "010", ""],
    "--max-new-tokens": ["0", "-1", "x", "1.5", "nan", "1000000000", "010", "", "30000"],
    "--num-beams": ["0", "-1", "x", "1.5", "nan", "1000000", "010", ""],
    "--temperature": ["0", "-1", "x", "nan", "inf", "1e-300", "1e300", ""],
    "--seed": ["-1", "x", "1.5", "nan", "1e400", "9" * 30, "010", ""],
    "--dtype": ["float8", "x", "", "int8", "Float32"],
    "--device": ["gpu", "cuda:99", "x", "", "meta", "cpu:x", "-1", "tpu"],
}


def lines(folder: Path) -> Iterator[Line]:
    """Every line, in a fixed order."""
    here = [str(folder / "photos")]
    caption = ["caption", "--model", "storybook", "--images", here[0], "--output", "o.jsonl"]
    evaluate = ["evaluate", "caps.jsonl", "--references", "refs.jsonl", "--no-cache", "--bootstrap", "10"]
    yield from _words()
    for flag, values in ODD_NUMBERS.items():
        for value in values:
            yield Line("numbers", [*caption, flag, value])
    for value in ["-1", "x", "1e9", "1000000000", "nan", "", "1.5", "010"]:
        yield Line("numbers", [*evaluate[:-1], value])
    yield from _settings()
    for (name, _), verb in zip(ODD_YAML.items(), itertools.cycle(METHODS)):
        for chosen in (verb, "sft", "grpo"):
            refused = None if name in ("null", "empty") else True
            yield Line("yaml", [chosen, *METHODS[chosen], "--output", "o", "--config", f"yaml_{name}.yaml"], refused)
    for config in ("nowhere.yaml", "/dev/zero", "pipe", "none", "loop", "photos/a.jpg", ""):
        for verb in ("sft", "grpo", "vizer"):
            yield Line("yaml", [verb, *METHODS[verb], "--output", "o", "--config", config])
    files = [*(f"json_{name}.json" for name in ODD_JSON), *(f"lines_{name}.jsonl" for name in ODD_LINES), *ODD_TABLES]
    for source in [*ODD_SOURCES, *files]:
        many = source.startswith("storybook:test?n=") and source[17:] in (
            "1000000000",
            "9" * 22,
        )  # four of them are made
        argv = ["caption", "--model", "storybook", "--images", source, "--output", "o.jsonl", "--limit", "4"]
        yield Line("sources", argv, not many)
        odd = source in ("json_nan.json",)
        yield Line("sources", ["evaluate", "caps.jsonl", "--references", source, "--no-cache"], None if odd else True)
        yield Line("sources", ["sft", "--model", "storybook", "--images", source, "--output", "o", "--max-steps", "1"])
    for source in [*ODD_SOURCES[:30], *files[::3]]:
        yield Line("sources", ["corpus", "build", "--captions", source, "--output", "o"])
    for file in [*files, "pipe", "none", "loop", "/dev/zero", "/dev/null", "nowhere", "dangling.jsonl", ""]:
        yield Line("captions", ["evaluate", file, "--references", "refs.jsonl", "--no-cache"])
    for file in ("json_null.json", "lines_twice.jsonl", "lines_binary.jsonl", "lines_zeros.jsonl", "lines_no_id.jsonl"):
        yield Line("captions", [*caption[:-1], file])
    for output in ODD_OUTPUTS:
        kind = output.rpartition(".")[2]
        yield Line("outputs", [*caption[:-1], output], kind not in ("csv", "parquet", "json", "txt") or None)
    for output in (*ODD_OUTPUTS[:3], "x.pdf", "x.txt", *ODD_OUTPUTS[5:]):
        yield Line("outputs", ["report", "run_null", "--output", output])
    for output in ODD_FOLDERS:
        yield Line("outputs", ["merge", "--model", "storybook", "--adapter", "adapter_none", "--output", output])
        yield Line("outputs", ["corpus", "build", "--captions", "refs.jsonl", "--output", output])
        yield Line("outputs", ["demo", "--output", output])
        for verb in ("sft", "grpo", "vizer", "har"):
            yield Line("outputs", [verb, *METHODS[verb], "--output", output])
    for text in ODD_EXPRESSIONS:
        yield Line("expressions", [*evaluate, "--images", "refs.jsonl", "--scorers", text])
    for text in ODD_EXPRESSIONS[::2]:
        verb = "scst" if len(text) % 2 else "grpo"
        yield Line("expressions", [verb, *METHODS[verb][:-1], text, "--output", "o", "--max-steps", "1"])
    for text in ODD_DECODERS:
        yield Line("decoders", [*caption, "--decoder", text])
    for prompt in ("a word " * 5_000, "<image>", "x" * 100_000, "<image><image> describe"):
        yield Line("prompts", [*caption, "--prompt", prompt])
        yield Line("prompts", ["sft", *METHODS["sft"], "--output", "o", "--max-steps", "1", "--prompt", prompt])
    for prompt in ("", "🦊", "\x01", "Describe", "</s>"):
        yield Line("prompts", [*caption, "--prompt", prompt, "--limit", "1", "--overwrite"], None)
    models = sorted(path.name for path in folder.glob("model_*"))
    for model in [
        *models,
        "none",
        "loop",
        "nowhere/x/y",
        "./nowhere",
        "photos",
        "caps.jsonl",
        "/dev/zero",
        "storybok",
        "",
        "a" * 5000,
    ]:
        yield Line("models", ["caption", "--model", model, "--images", here[0], "--output", "o.jsonl"])
        yield Line("models", ["merge", "--model", model, "--adapter", "adapter_none", "--output", "o"])
    for adapter in [
        *sorted(path.name for path in folder.glob("adapter_*")),
        "nowhere",
        "photos",
        "loop",
        "/dev/null",
        "",
    ]:
        yield Line("models", [*caption, "--adapter", adapter])
        yield Line("models", ["sft", *METHODS["sft"], "--output", "o", "--max-steps", "1", "--adapter", adapter])
    for run in sorted(path.name for path in folder.glob("run_*")):
        yield Line("reports", ["report", run, "--output", "r.html"], False)
    for run in ("nowhere", "caps.jsonl", "pipe", "loop", "/dev/null", "", "photos/a.jpg"):
        yield Line("reports", ["report", run, "--output", "r.html"])
    mixed = ["--images", "mixed", "--output", "o.jsonl", "--overwrite"]
    yield Line("images", ["caption", "--model", "storybook", *mixed])
    yield Line("images", [*caption, "--limit", "1", "--overwrite"], False)
    yield Line("works", [*evaluate, "--scorers", "cider,bleu,health"], False)
    yield Line("works", ["scorers", "cider"], False)
    yield from odd_files.lines(folder)


def _words() -> Iterator[Line]:
    for argv in (
        [], ["captoin"], ["--limit"], ["caption"], ["caption", "--model"], ["caption", "x", "y"], ["evaluate"], ["report"],
        ["corpus"], ["corpus", "make"], ["merge"], ["scorers", "cidr"], ["scorers", ""], ["scorers", "a", "b"], ["🦊"], [""],
        ["caption", "--modle", "storybook"], ["caption", "--images=", "--model", "storybook"], ["evaluate", "--scorers"],
        ["doctor", "x"], ["demo", "x"], ["demo", "--seed", "x"], ["build-storybook", "--only", "x"],
        ["build-storybook", "--seed", "-1"], ["sft"], ["grpo"], ["vizer"], ["har"], ["scst"], ["sc-captioner"], ["caption", "--"],
        ["evaluate", "caps.jsonl", "--paired", "--references", "refs.jsonl"], ["evaluate", "caps.jsonl", "caps.jsonl"],
        ["evaluate", "caps.jsonl", "--scorers", "cider"], ["merge", "--model", "storybook"], ["grpo", "--preset", "x"],
        ["vizer", "--preset", "papr", *METHODS["vizer"], "--output", "o"], ["sft", "--max-step", "3"], ["x" * 10_000],
        ["scorers", "x.py:f"], ["caption", "--num-beams", "4", "--decoder", "cfg:2", "--model", "storybook", "--images", "photos", "--output", "o.jsonl"],
    ):  # fmt: skip
        yield Line("words", argv)


def _settings() -> Iterator[Line]:
    """Every numeric setting of every method with three values that no setting takes, and every choice with a wrong one."""
    from captune.cli.train import METHODS as CONFIGS

    values = itertools.cycle(NEVER)
    for verb, base in METHODS.items():
        hints = get_type_hints(CONFIGS[verb].config)
        for name, kind in hints.items():
            flag = f"--{name.replace('_', '-')}"
            numeric = kind in (int, float, int | None, float | None)
            if numeric:
                chosen = [next(values) for _ in range(3)]
                if name == "unchanged_reward":
                    chosen = [value for value in chosen if value != "-1"]
                for value in chosen:
                    yield Line("settings", [verb, *base, "--output", "o", f"{flag}={value}"])
            elif "Literal" in str(kind):
                yield Line("settings", [verb, *base, "--output", "o", flag, "nothing"])
            elif name not in ("prompt",) and kind is not bool:
                yield Line("settings", [verb, *base, "--output", "o", flag, ""])


# -- running them ------------------------------------------------------------------------------------------------------


def run(line: Line, folder: Path) -> dict[str, Any]:
    """Run one line in a child process; what it said, its code, its seconds and its peak memory."""
    out = folder / ".said"
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.environ.update(line.env)
        _child(line.argv, folder, out)
    code: int | None = None
    usage = None
    while not _hangs(child, time.monotonic() - started):
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        os.wait4(child, 0)
    said = out.read_text(encoding="utf-8", errors="replace")
    peak = usage.ru_maxrss / 2**20 if usage else 0.0
    return {"said": said, "code": code, "seconds": time.monotonic() - started, "peak_gb": peak}


def _hangs(child: int, seconds: float) -> bool:
    """More than `LIMIT` of the processor, or of waiting: on a machine that others load, seconds alone say little."""
    if seconds < LIMIT:
        return False
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used >= LIMIT or used < 0.02 * seconds or seconds >= 10 * LIMIT


def _child(argv: list[str], folder: Path, out: Path) -> None:
    try:
        os.chdir(folder)
        file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0), os.dup2(file, 1), os.dup2(file, 2)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), encoding="utf-8", write_through=True)
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), errors="backslashreplace", write_through=True)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY << 30, MEMORY << 30))
        from captune.cli.main import main

        code = main(argv)
        sys.stdout.flush(), sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        code = 99
    os._exit(code)


def judge(line: Line, done: dict[str, Any]) -> str:
    """ "" for a line that ended as it should, or traceback, hang or silent."""
    if done["code"] is None:
        return "hang"
    if "Traceback (most" in done["said"] or "internal error" in done["said"] or done["code"] not in (0, 1, 2):
        return "traceback"
    if not re.search(line.says, done["said"]):
        return "silent"
    if "--json" in line.argv and done["code"] == 0:
        answer = done["said"][done["said"].index("{") : done["said"].rindex("}") + 1]
        if re.search(r"\b(NaN|Infinity)\b", answer):
            return "silent"
    refused = done["code"] in (1, 2) and re.search("captune|error:|bad images left out", done["said"]) is not None
    return "" if line.refused is None or line.refused == refused else "silent"


def _harms(line: Line) -> bool:
    """Whether a fault in what is tried could cost this machine a device: root may replace /dev/stdout by a file."""
    outputs = [after for word, after in itertools.pairwise(line.argv) if word in ("--output", "--cache")]
    return os.geteuid() == 0 and any(output.startswith(("/dev/", "/proc/")) for output in outputs)


def guarded(folder: Path) -> dict[str, tuple[int, int]]:
    """Sizes and times of the files that a person would lose."""
    paths = [path for name in GUARDED for path in (folder / name, *(folder / name).glob("*")) if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


BATCHES = {"eight of 177 megapixels, one bit each": (8, 13_377, 1, 0), "twelve of 88, in colour": (12, 9_381, 8, 2)}


def batch_memory(folder: Path, number: int, side: int, depth: int, colour: int) -> dict[str, Any]:
    """Caption one batch of PNGs of many pixels and few bytes.

    Args:
        folder: for them.
        number: of images.
        side: of each, in pixels.
        depth: bits of a sample.
        colour: PNG's type: 0 grey, 2 RGB.
    """
    bombs = folder / "bombs"
    shutil.rmtree(bombs, ignore_errors=True)
    bombs.mkdir()
    row = b"\0" + bytes((side * depth * (3 if colour else 1) + 7) // 8)
    for image in range(number):
        rows = zlib.compressobj(1)
        body = b"".join(rows.compress(row[:-1] + bytes([image])) for _ in range(side)) + rows.flush()
        head = side.to_bytes(4, "big") * 2 + bytes([depth, colour, 0, 0, 0])
        parts = ((b"IHDR", head), (b"IDAT", body), (b"IEND", b""))
        chunks = (len(d).to_bytes(4, "big") + n + d + zlib.crc32(n + d).to_bytes(4, "big") for n, d in parts)
        (bombs / f"{image}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    output = ["--output", "bombs.jsonl", "--overwrite", "--batch-size", str(number)]
    done = run(Line("memory", ["caption", "--model", "storybook", "--images", "bombs", *output], False), folder)
    return {"peak_gb": round(done["peak_gb"], 2), "seconds": round(done["seconds"], 1), "code": done["code"]}


def page(result: dict[str, Any]) -> str:
    """The result for people."""
    text = (
        f"# Odd command lines\n\n`python -m benchmarks.behaviour.odd_command_lines`, {result['minutes']} minutes: "
        f"{result['lines']:,} lines; {result['tracebacks']} tracebacks, {result['hangs']} hangs over {LIMIT} s, "
        f"{result['silent_wrong_results']} silently wrong; most memory of a line "
        f"{result['most_memory_of_a_line_gb']} GB. A batch of images: "
    )
    text += "; ".join(f"{name}: {batch['peak_gb']} GB" for name, batch in result["one_batch_of_images"].items())
    rows = "".join(f"| {kind} | {number} |\n" for kind, number in result["by_kind"].items())
    return f"{text}.\n\n| kind | lines |\n|---|---:|\n{rows}"


def main() -> None:
    """Run all lines and write the result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", help="lines of these kinds, with commas")
    options.add_argument("--show", action="store_true", help="print every line and what it said")
    args = options.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", MPLBACKEND="agg")
    import torch

    from captune.cli.train import METHODS as CONFIGS

    torch.set_num_threads(1)
    assert all(CONFIGS[verb] for verb in METHODS)
    started, failures, kinds, slowest = time.monotonic(), [], Counter[str](), 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder)
        kept, whole, most = {path.name for path in folder.iterdir()}, guarded(folder), 0.0
        for line in lines(folder):
            if (args.only and line.kind not in args.only.split(",")) or _harms(line):
                continue
            done = run(line, folder)
            verdict = judge(line, done)
            now = guarded(folder)
            if any(now.get(path) != state for path, state in whole.items()) or any(folder.rglob("EVIL")):
                verdict, whole = "silent", now
            most = max(most, done["peak_gb"])
            kinds[line.kind] += 1
            slowest = max(slowest, done["seconds"])
            if verdict or args.show:
                shown = [word if len(word) < 100 else f"{word[:60]}... ({len(word)})" for word in line.argv]
                last = done["said"].strip().splitlines()[-1:] or [""]
                row = {"verdict": verdict, "argv": shown, "code": done["code"], "said": last[0][-300:]}
                print(
                    json.dumps(
                        {
                            **row,
                            "seconds": round(done["seconds"], 1),
                            "gb": round(done["peak_gb"], 2),
                            **({"env": line.env} if line.env else {}),
                        },
                        ensure_ascii=False,
                    ),
                    flush=True,
                )
                if verdict:
                    failures.append(row)
            for path in folder.iterdir():
                if path.name not in kept and path.name != ".said":
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        asked = BATCHES if args.only in (None, "memory") else {}
        memory = {name: batch_memory(folder, *batch) for name, batch in asked.items()}
    counts = Counter(row["verdict"] for row in failures)
    result = {
        "lines": sum(kinds.values()),
        "by_kind": dict(kinds),
        "tracebacks": counts["traceback"],
        "hangs": counts["hang"],
        "silent_wrong_results": counts["silent"],
        "slowest_line_seconds": round(slowest, 1),
        "most_memory_of_a_line_gb": round(most, 2),
        "one_batch_of_images": memory,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "failures": failures,
    }
    print(json.dumps({key: value for key, value in result.items() if key != "failures"}, indent=1))
    if args.only is None:
        RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        RESULT.with_suffix(".md").write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
