"""One notation for scorers, decoders, sources and corpora, read into a dataclass of typed settings.

    name[:argument[:argument]][?key=value&key=value]         clip:openai/clip-vit-base-patch32?w=2.5
                                                             best-of:8:clip         storybook:test?n=500&seed=91

The dataclass is the whole description: its fields are the settings, their types and ranges are checked by pydantic
(``k: Annotated[int, Field(ge=1, description="...")] = 5``), and listings print them with their defaults. In a value
``%20`` and ``+`` are a space.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints
from urllib.parse import unquote_plus

from captune.errors import CaptuneError, SpecError
from captune.utils.registry import nearest

T = TypeVar("T")
NONE = frozenset({"none", "null", ""})


def parse(
    text: str | None,
    settings: type[T],
    *,
    what: str,
    positional: Sequence[str] = (),
    example: str = "",
    error: type[CaptuneError] = SpecError,
    query: Literal["first", "last", "never"] = "first",
    defaults: Mapping[str, Any] | None = None,
) -> T:
    """Read the part of a spec behind its name into `settings`.

    Args:
        text: ``"runs/corpus?k=5"``; None for none.
        settings: a dataclass.
        what: the subject of messages, such as ``"scorer 'grc'"``.
        positional: the fields given by position, between colons; the last one takes the rest of the text.
        example: a whole spec, shown in messages.
        error: the kind of error to raise.
        query: whether the settings start at the first or at the last ``?``; "never": a ``?`` belongs to the argument.
        defaults: values, not texts, for what the spec does not name, in place of the dataclass's own defaults.

    Raises:
        CaptuneError: of the kind `error`, for an unknown key (with the nearest), a value of the wrong type or out of
            range, a missing setting, or what the dataclass's own ``__post_init__`` refuses.
    """
    text = (text or "").strip()
    head, tail = text, ""
    if query == "first":
        head, _, tail = text.partition("?")
    elif query == "last" and "?" in text:
        head, _, tail = text.rpartition("?")
    hints = get_type_hints(settings, include_extras=True)
    names = [field.name for field in dataclasses.fields(settings) if field.init]  # type: ignore[arg-type]
    defaults_of = {field.name: field.default for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
    shown = f", as in {example!r}" if example else ""

    heads = head.split(":", max(0, len(positional) - 1)) if head else []
    if heads and not positional:
        raise error(f"{what} takes no argument, but was given {head!r}{shown}")
    given = dict(zip(positional, heads, strict=False))
    for part in filter(None, tail.split("&")):
        key, equals, value = part.partition("=")
        if key not in names:
            options = [name for name in names if name not in positional] or ["none"]
            raise error(f"{what}: {nearest(key, options, 'setting')}{shown}")
        meant = isinstance(defaults_of.get(key), str) and defaults_of[key]  # an empty text instead of the default one
        if not equals or not (value or meant):
            raise error(f"{what}: the setting {key!r} needs a value, {key}=VALUE{shown}")
        if given.get(key):
            raise error(f"{what}: the setting {key!r} is given twice{shown}")
        given[key] = unquote_plus(value)
    values: dict[str, Any] = dict(defaults or {})
    for key, value in given.items():
        if value == "" and key in positional and key != positional[-1]:
            continue  # "best-of::clip": the default
        try:
            values[key] = convert(value, hints[key])
        except ValueError as problem:
            raise error(f"{what}: {key}: {problem}{shown}") from problem
    missing = [
        field.name
        for field in dataclasses.fields(settings)  # type: ignore[arg-type]
        if field.init
        and field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise error(f"{what} needs {' and '.join(missing)}{shown}")
    try:
        return settings(**values)
    except CaptuneError:
        raise
    except ValueError as problem:
        raise error(f"{what}: {problem}{shown}") from problem


def convert(value: Any, kind: Any) -> Any:
    """`value`, a text or whatever YAML gave, as the type `kind` (with pydantic's constraints).

    A number is finite, and a whole number is written without leading zeros and underscores: 010 is no way to say ten.

    Raises:
        ValueError: a message such as ``'x' is not a whole number``.
    """
    base, extras = (get_args(kind)[0], get_args(kind)[1:]) if get_origin(kind) is Annotated else (kind, ())
    origin, args = get_origin(base), get_args(base)
    if origin in (Union, types.UnionType) and type(None) in args:
        if value is None or (isinstance(value, str) and value.lower() in NONE and not (value == "" and str in args)):
            return None
        base = Union[tuple(arg for arg in args if arg is not type(None))]  # noqa: UP007
        return convert(value, Annotated[(base, *extras)] if extras else base)
    if origin in (list, tuple):
        items = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        inner = args[0] if args else str
        value = origin(convert(item.strip() if isinstance(item, str) else item, inner) for item in items)
        return _validate(value, Annotated[(base, *extras)] if extras else base)
    if origin in (Union, types.UnionType):
        problems = []
        for arm in sorted(args, key=lambda arm: arm is str):  # str last: every text is a str
            try:
                return convert(value, Annotated[(arm, *extras)] if extras else arm)
            except ValueError as problem:
                problems.append(str(problem))
        raise ValueError(" and ".join(problems))
    if base is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)  # YAML reads 7 where a text is meant
    if base is not bool and isinstance(value, bool) and base is not Any:
        raise ValueError(f"{value!r} is not {describe(base)}")
    if base in (int, float):
        value = _number(value, base)
    return _validate(value, Annotated[(base, *extras)] if extras else base)


def check_ranges(settings: Any) -> None:
    """Check the fields of a dataclass against their types' constraints, also where Python made it and no text was read.

    Raises:
        ValueError: names the first field that is out of range, as the command line writes it.
    """
    hints = get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(number, (int, float)) for number in numbers):
            try:
                convert(value, hints[field.name])
            except ValueError as problem:
                raise ValueError(f"--{field.name.replace('_', '-')}: {problem}") from problem


def show(value: Any) -> str:
    """`value` as messages show it: short, and on one line."""
    text = repr(value[:100] if isinstance(value, (str, list, tuple)) else value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _number(value: Any, kind: type) -> Any:
    """Refuse what Python reads as another number than it looks, or as none."""
    if isinstance(value, str):
        value = value.strip()
        if re.fullmatch(r"[-+]?0\d+|.*_.*", value, re.DOTALL) or len(value) > 400:
            raise ValueError(f"{show(value)} is not {describe(kind)}")
    try:
        finite = math.isfinite(float(value))
    except OverflowError:
        finite = False
    except (TypeError, ValueError):
        return value  # what it is said to be instead is for the validation
    if not finite:
        raise ValueError(f"{show(value)} is not a finite number")
    return value


def _validate(value: Any, kind: Any) -> Any:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]
        limits = {
            "greater_than_equal": ("ge", "at least"),
            "greater_than": ("gt", "more than"),
            "less_than_equal": ("le", "at most"),
            "less_than": ("lt", "less than"),
        }
        if problem["type"] in limits:
            key, words = limits[problem["type"]]
            limit = problem["ctx"][key]
            raise ValueError(
                f"{show(value)} must be {words} {limit if isinstance(limit, int) else f'{limit:g}'}"
            ) from None
        if problem["type"] == "literal_error":
            base = get_args(kind)[0] if get_origin(kind) is Annotated else kind
            for choice in get_args(base):  # Literal[1, 2] given "1"
                if str(choice) == str(value):
                    return choice
            raise ValueError(nearest(str(value)[:100], map(str, get_args(base)), "choice")) from None
        base = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        raise ValueError(f"{show(value)} is not {describe(base)}") from None


def describe(kind: Any) -> str:
    """A type in words, for messages and listings: ``a whole number``."""
    if get_origin(kind) is Annotated:
        return describe(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(describe(arm) for arm in get_args(kind) if arm is not type(None))
    if get_origin(kind) in (list, tuple):
        return f"{describe((get_args(kind) or (str,))[0])}, ..."
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    return words.get(kind, "a path" if getattr(kind, "__name__", "") == "Path" else str(kind))


class Setting(NamedTuple):
    """One setting of a dataclass in words, for listings."""

    name: str
    type: str
    default: str
    help: str


def settings_of(kind: type) -> tuple[Setting, ...]:
    """Describe the fields of a dataclass of settings.

    The help is a field's ``metadata["help"]``, or the description that pydantic's `Field` gives.
    """
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for field in dataclasses.fields(kind):
        value = int(field.default) if isinstance(field.default, bool) else field.default  # as a spec writes it
        default = "required" if value is dataclasses.MISSING else "none" if value in ("", None) else str(value)
        texts = [getattr(extra, "description", None) for extra in getattr(hints[field.name], "__metadata__", ())]
        text = field.metadata.get("help") or " ".join(filter(None, texts))
        found.append(Setting(field.name, describe(hints[field.name]), default, text))
    return tuple(found)
