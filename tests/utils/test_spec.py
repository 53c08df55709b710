"""The one parser of specs: types, ranges, unknown keys with the nearest, what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from captune.errors import SettingError, SpecError
from captune.utils.spec import convert, describe, parse


@dataclass(frozen=True)
class Settings:
    model: str = "default"
    k: Annotated[int, Field(ge=1)] = 5
    n: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    ranks: tuple[Annotated[int, Field(ge=1)], ...] = (1, 5)
    w: float = 2.5
    own: bool = False
    kind: Literal["mean", "max"] = "mean"
    seed: Annotated[int | None, Field(ge=0)] = None


def read(text: str | None, **settings) -> Settings:
    return parse(text, Settings, what="scorer 'x'", positional=("model",), example="x:m?k=1", **settings)


@pytest.mark.parametrize(
    ("text", "given"),
    [
        (None, {}),
        ("", {}),
        ("org/model", {"model": "org/model"}),
        ("?k=3&own=1", {"k": 3, "own": True}),
        ("m?n=7&ranks=1,10&seed=0", {"model": "m", "n": 7, "ranks": (1, 10), "seed": 0}),
        ("m?n=all&seed=none", {"model": "m", "n": "all", "seed": None}),
        ("http://host:80/v1#name?kind=max", {"model": "http://host:80/v1#name", "kind": "max"}),
        ("A+b", {"model": "A+b"}),
    ],
)
def test_a_spec_is_read_into_the_settings(text: str | None, given: dict) -> None:
    assert read(text) == Settings(**given)


def test_values_are_unquoted_and_defaults_replaced() -> None:
    assert parse("?model=A+photo%20of", Settings, what="x").model == "A photo of"
    assert read("?k=3", defaults={"k": 9, "w": 1.0}) == Settings(k=3, w=1.0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("?kk=3", "scorer 'x': unknown setting 'kk'; did you mean 'k'"),
        ("?k", "the setting 'k' needs a value, k=VALUE, as in 'x:m[?]k=1'"),
        ("?k=0", "k: '0' must be at least 1"),
        ("?k=many", "'many' is not a whole number"),
        ("?w=wide", "'wide' is not a number"),
        ("?own=maybe", "'maybe' is not true or false"),
        ("?kind=min", "unknown choice 'min'"),
        ("?ranks=1,x", "'x' is not a whole number"),
        ("?n=-1", "must be at least 1"),
    ],
)
def test_what_cannot_be_read_is_said_with_what_can(text: str, why: str) -> None:
    with pytest.raises(SpecError, match=why):
        read(text)


def test_an_argument_where_none_is_taken_and_a_missing_one() -> None:
    @dataclass
    class Needs:
        file: str

    with pytest.raises(SettingError, match="takes no argument, but was given 'x'"):
        parse("x", Needs, what="y", error=SettingError)
    with pytest.raises(SpecError, match="y needs file"):
        parse("", Needs, what="y", positional=("file",))


def test_where_the_settings_start() -> None:
    assert read("a?b?k=2", query="last").model == "a?b"
    assert parse("a?k=2", Settings, what="x", positional=("model",), query="never").model == "a?k=2"


@pytest.mark.parametrize(
    ("value", "kind", "result"),
    [
        ("7", int, 7),
        (7, str, "7"),
        ("a,b", list[str], ["a", "b"]),
        ("none", Path | None, None),
        ("x/y", Path, Path("x/y")),
    ],
)
def test_convert(value, kind, result) -> None:
    assert convert(value, kind) == result


def test_types_in_words() -> None:
    assert describe(Annotated[int, Field(ge=1)]) == "a whole number"
    assert describe(float | None) == "a number" and describe(Literal["a", "b"]) == "a or b"
    assert describe(tuple[int, ...]) == "a whole number, ..."
