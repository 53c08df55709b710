"""Command-line flags and YAML keys from the fields of a method's config dataclass: written once, there.

The same names everywhere: field ``learning_rate``, flag ``--learning-rate``, YAML key ``learning_rate``.
What is said later wins: the field's default, then the preset, then the YAML file, then the flags.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from captune.errors import UsageError

TRUE, FALSE, NONE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}, {"none", "null", ""}


def unknown(name: str, known: Iterable[str], what: str) -> str:
    """A sentence for an unknown name, with the nearest known one and the whole list."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return (
        f"unknown {what} {name!r}" + (f"; did you mean {near[0]!r}?" if near else "") + f" (known: {', '.join(known)})"
    )


def convert(value: Any, kind: Any) -> Any:
    """`value`, a string from the command line or whatever YAML gave, as `kind`; ValueError says what was expected."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        if type(None) in args and (value is None or (isinstance(value, str) and value.lower() in NONE)):
            return None
        problems = []
        # str last: everything is a string
        for arm in sorted((a for a in args if a is not type(None)), key=lambda a: a is str):
            try:
                return convert(value, arm)
            except ValueError as e:
                problems.append(str(e))
        raise ValueError(" and ".join(problems))
    if origin is Literal:
        for choice in args:
            if value == choice or str(value) == str(choice):
                return choice
        raise ValueError(unknown(str(value), map(str, args), "choice"))
    if origin in (list, tuple):
        items = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        inner = args[0] if args else str
        return origin(convert(i.strip() if isinstance(i, str) else i, inner) for i in items)
    if kind is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in TRUE | FALSE:
            return str(value).lower() in TRUE
        raise ValueError(f"{value!r} is neither true nor false")
    if value is None or isinstance(value, (bool, list, tuple, dict)):
        raise ValueError(f"{value!r} is not {_name(kind)}")
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{value!r} is not a whole number")
    if kind in (int, float, str, Path):
        try:
            return kind(value)
        except ValueError:
            raise ValueError(f"{value!r} is not {_name(kind)}") from None
    raise TypeError(
        f"captune.cli.config cannot read a value of type {kind}; use int, float, bool, str, Path, "
        "Literal, Optional, list or tuple in the config"
    )


def _name(kind: Any) -> str:
    return {int: "a whole number", float: "a number", str: "a text", Path: "a path"}.get(kind, str(kind))


def add_fields(parser: argparse._ActionsContainer, config: type, hide: Iterable[str] = ()) -> None:
    """One flag per field of the dataclass `config`; a flag that is not given leaves no trace in the namespace.

    The help text is the field's ``metadata["help"]`` with the default behind it.
    """
    hints = get_type_hints(config)
    for field in _fields(config):
        if field.name in hide:
            continue
        kind, flag = hints[field.name], "--" + field.name.replace("_", "-")
        text = field.metadata.get("help", "")
        text = (text if "default" in text else text + _default(field)).replace("%", "%%")
        common: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": text.strip()}
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        elif get_origin(kind) in (list, tuple):
            parser.add_argument(flag, nargs="+", metavar=_metavar(get_args(kind)[0]), **common)
        elif get_origin(kind) is Literal:
            parser.add_argument(flag, choices=[str(c) for c in get_args(kind)], **common)
        else:
            parser.add_argument(flag, metavar=_metavar(kind), **common)


def _fields(config: type) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(config) if f.init and not f.name.startswith("_")]


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return "" if field.default == "" else f" (default: {'none' if field.default is None else field.default})"
    if field.default_factory is not dataclasses.MISSING:
        return f" (default: {field.default_factory()})"
    return " (required)"


def _metavar(kind: Any) -> str:
    arms = (
        [a for a in get_args(kind) if a is not type(None)] if get_origin(kind) in (Union, types.UnionType) else [kind]
    )
    if len(arms) == 1 and get_origin(arms[0]) is Literal:
        return "{" + ",".join(map(str, get_args(arms[0]))) + "}"
    return "|".join({int: "N", float: "X", str: "TEXT", Path: "PATH"}.get(a, "VALUE") for a in arms)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; UsageError when it is absent, no YAML, or no mapping."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise UsageError(f"cannot read the config {path}: {e.strerror}") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(e).split())}") from e
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold 'name: value' lines, one per setting; it holds {type(content).__name__}")
    return content


def build(
    config: type,
    flags: Mapping[str, Any],
    file: str | Path | None = None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """An instance of `config`: defaults, then the preset that flags or file name, then the YAML file, then the flags.

    Raises UsageError for an unknown key or preset, a value of the wrong kind, a missing required field, and for
    what the config's own validation (``__post_init__`` raising ValueError) refuses.
    """
    hints, fields = get_type_hints(config), _fields(config)
    names = [f.name for f in fields]
    read = {str(k): v for k, v in read_yaml(file).items()} if file is not None else {}
    for key in read:
        if key not in names:
            raise UsageError(f"{file}: {unknown(key, names, 'setting')}")

    values: dict[str, Any] = {}
    for source, where in ((read, lambda key: f"{file}: {key}"), (flags, lambda key: "--" + key.replace("_", "-"))):
        for key, value in source.items():
            if key in names:
                try:
                    values[key] = convert(value, hints[key])
                except ValueError as e:
                    raise UsageError(f"{where(key)}: {e}") from e
    if presets:
        default = next((f.default for f in fields if f.name == "preset"), None)
        name = values.get("preset", default)
        if name is not None:
            if name not in presets:
                raise UsageError(f"--preset: {unknown(str(name), presets, 'preset')}")
            values = {**presets[name], **values}
    missing = [
        "--" + f.name.replace("_", "-")
        for f in fields
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(f"still needed: {', '.join(missing)}")
    try:
        return config(**values)
    except ValueError as e:
        raise UsageError(str(e)) from e
