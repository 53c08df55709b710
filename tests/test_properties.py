"""Whatever is put in: a `CaptuneError` with a sentence, or a result; never a traceback, a hang or a NaN."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import Field

from captune.cli.config import build
from captune.data import load_references, read_captions
from captune.data.sources import Source
from captune.decoding import load_decoder
from captune.errors import CaptuneError
from captune.report import render
from captune.scorers import load_reward
from captune.training.sft.train import SFTConfig
from captune.utils.files import output_path, parse_json, parse_yaml
from captune.utils.spec import convert

quick = settings(
    max_examples=25,
    deadline=10_000,  # milliseconds for one input
    derandomize=True,  # the same inputs in every run
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
texts = st.text(max_size=40)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4))


def refused_or(call: Any, *arguments: Any, **named: Any) -> Any:
    """What a call returns; None where it refuses with a sentence."""
    try:
        return call(*arguments, **named)
    except CaptuneError as error:
        assert str(error).strip()
        return None


# -- settings ----------------------------------------------------------------------------------------------------------

NUMBERS = {"learning_rate": (0, 10), "weight_decay": (0, 1000), "lora_dropout": (0, 1), "batch_size": (1, 10_000),
           "max_steps": (1, 10**9), "seed": (0, 2**32 - 1), "image_dropout": (0, 1), "limit": (1, 10**9)}  # fmt: skip


@quick
@given(st.sampled_from(sorted(NUMBERS)), scalars)
@example("learning_rate", math.inf)
@example("weight_decay", math.nan)
@example("lora_dropout", -1)
@example("limit", "1_0")
@example("limit", "010")
def test_c1_a_setting_is_a_finite_number_in_its_range_or_refused(name: str, value: Any) -> None:
    given_ = {"model": "m", "images": "i", "output": Path("o"), name: value}
    config = refused_or(build, SFTConfig, given_)
    if config is not None and getattr(config, name) is not None:
        number = getattr(config, name)
        assert math.isfinite(number) and NUMBERS[name][0] <= number <= NUMBERS[name][1]
        assert float(number) == float(value)  # no silent default, no other number than was meant


@quick
@given(st.dictionaries(texts | st.sampled_from(sorted(NUMBERS)), values, max_size=5))
def test_b14_a_file_of_settings_says_what_it_says(tmp_path: Path, content: dict) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    refused_or(build, SFTConfig, {"model": "m", "images": "i", "output": Path("o")}, file)


@quick
@given(st.binary(max_size=200) | texts.map(lambda text: text.encode("utf-8", "replace")))
@example(b"a: 1\na: 2")
@example(b"a: 010")
@example(b"[" * 50_000)
def test_c1_any_bytes_as_json_and_yaml(content: bytes) -> None:
    refused_or(parse_json, content, "x.json")
    refused_or(parse_yaml, content, "x.yaml")


@dataclass
class Some:
    n: Annotated[int, Field(ge=1, le=9)] | None = None


@pytest.mark.parametrize("text", ["010", "1_0", "٣", "nan", "1e9", "0x5", "5.5", "0", "10", "true"])
def test_b14_a_whole_number_is_written_as_one(text: str) -> None:
    if text == "٣":  # a digit, and no other number than it shows
        return
    for kind in (Annotated[int, Field(ge=1, le=9)], Annotated[int, Field(ge=1, le=9)] | None):
        with pytest.raises(ValueError):
            convert(text, kind)


# -- specs -------------------------------------------------------------------------------------------------------------

words = st.sampled_from(
    ["cider", "length", "health", "1e400", "nan", "2", "*", "+", "-", "(", ":", "?k=1", " ", ".py:f"]
)


@quick
@given(texts | st.lists(words, max_size=8).map("".join))
@example("1e400*cider")
@example("cider - cider")
def test_b14_an_expression_has_finite_weights_or_is_refused(text: str) -> None:
    reward = refused_or(load_reward, text)
    if reward is not None:
        assert all(math.isfinite(weight) and weight for _, weight in reward.parts)


@quick
@given(st.sampled_from(["cfg:", "contrastive:", "best-of:", "zerocap:", "self-correct", ""]), texts)
@example("cfg:", "inf")
@example("best-of:", "100000000:length")
def test_b14_a_decoder_has_finite_settings_or_is_refused(name: str, text: str) -> None:
    decoder = refused_or(load_decoder, name + text)
    for value in vars(decoder).values() if decoder is not None else ():
        assert not isinstance(value, float) or math.isfinite(value)


@quick
@given(st.sampled_from(["", "photos", "storybook:test", "a?b"]), st.sampled_from(["n", "seed", "skip", "m", ""]), texts)
@example("", "n", "3")
def test_b14_a_source_has_a_name(where: str, key: str, value: str) -> None:
    source = refused_or(Source.parse, f"{where}?{key}={value}")
    assert source is None or source.where.strip()


@quick
@given(st.sampled_from(["x.csv", "x.parquet", "x.json", "s3://b/x.jsonl", "/dev/full", "/dev/stdout", "", ".", "a\0b"]))
def test_b15_an_output_that_is_not_served_is_refused(path: str) -> None:
    assert refused_or(output_path, path, ".jsonl", ".ndjson", what="captions") is None


# -- files -------------------------------------------------------------------------------------------------------------

rows = st.lists(st.dictionaries(st.sampled_from(["image_id", "caption", "image", "x"]), values, max_size=4), max_size=4)
documents = values | rows | st.fixed_dictionaries({"images": values | rows, "annotations": values | rows})


@quick
@given(documents, st.sampled_from(["x.json", "x.jsonl"]))
def test_c1_any_json_as_captions_and_as_references(tmp_path: Path, content: Any, name: str) -> None:
    file = tmp_path / name
    lines = content if isinstance(content, list) and name == "x.jsonl" else [content]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    for captions in (refused_or(read_captions, file), refused_or(load_references, str(file))):
        assert captions is None or all(isinstance(key, str) for key in captions)


@settings(quick, max_examples=8)
@given(values, st.sampled_from(["scores.json", "metrics.jsonl", "watch.jsonl", "versions.json", "config.yaml"]))
@example({"rows": [{"name": "\ud800", "scores": {"cider": {"values": {"a": math.nan}}}}]}, "scores.json")
def test_c2_any_run_is_a_page(tmp_path: Path, content: Any, name: str) -> None:
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    for old in run.iterdir():
        old.unlink()
    (run / name).write_text(json.dumps(content))
    page = render([run], tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.endswith("</html>\n") or "</html>" in page


# -- model folders -----------------------------------------------------------------------------------------------------

KEYS = [
    ("config.json", "model_type"), ("config.json", "image_token_id"), ("config.json", "scale_factor"),
    ("config.json", "text_config"), ("config.json", "text_config", "num_hidden_layers"),
    ("config.json", "text_config", "hidden_size"), ("config.json", "text_config", "num_attention_heads"),
    ("config.json", "vision_config", "patch_size"), ("config.json", "vision_config", "hidden_act"),
    ("processor_config.json", "image_processor"), ("processor_config.json", "image_processor", "image_mean"),
    ("processor_config.json", "image_processor", "size"), ("tokenizer_config.json", "eos_token"),
    ("generation_config.json", "eos_token_id"), ("tokenizer.json", "model"),
]  # fmt: skip
small = (
    st.none()
    | st.booleans()
    | st.integers(-3, 8)
    | st.floats(-2, 2, allow_subnormal=False)
    | texts
    | st.lists(st.integers(-2, 3), max_size=2)
)


@settings(quick, max_examples=12, deadline=None)
@given(st.sampled_from(KEYS), small | st.dictionaries(texts, small, max_size=2))
@example(("config.json", "text_config", "num_hidden_layers"), 10**9)
@example(("config.json", "text_config", "num_attention_heads"), 0)
def test_c1_any_value_in_a_model_folder(tmp_path: Path, key: tuple[str, ...], value: Any) -> None:
    from captune.models.captioner import Captioner
    from captune.storybook import model_path

    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for part in model_path("storybook").iterdir():
        if part.name != key[0]:
            (folder / part.name).symlink_to(part)
    content = json.loads((model_path("storybook") / key[0]).read_text())
    place = content
    for name in key[1:-1]:
        place = place[name]
    place[key[-1]] = value
    (folder / key[0]).write_text(json.dumps(content))
    captioner = refused_or(Captioner.load, folder)
    if captioner is not None:
        refused_or(captioner.generate, [Image.new("RGB", (32, 32))], max_new_tokens=2)


@settings(quick, max_examples=8, deadline=None)
@given(
    st.sampled_from(["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"]),
    st.binary(max_size=80),
)
def test_c1_any_bytes_in_a_model_folder(tmp_path: Path, name: str, content: bytes) -> None:
    from captune.models.captioner import Captioner
    from captune.storybook import model_path

    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for part in model_path("storybook").iterdir():
        if part.name != name:
            (folder / part.name).symlink_to(part)
    (folder / name).write_bytes(content)
    refused_or(Captioner.load, folder)
