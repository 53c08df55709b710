"""Flags and YAML keys from the fields of a config dataclass: each setting is written once, in the dataclass.

The names are the same everywhere: field ``learning_rate``, flag ``--learning-rate``, YAML key ``learning_rate``.
Later values win: the field's default, then the preset, then the YAML file, then the flags.

A field's metadata:
    help: one line for ``--help``.
    group: the heading it stands under in ``--help``.
    metavar: what stands for the value in ``--help``, such as SOURCE; default: by the type.
    aliases: former names of the field; as flags and YAML keys they work and warn.
    empty: whether an empty text is a value.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from captune.errors import SettingError, UsageError
from captune.utils.files import LARGEST_CONFIG, parse_yaml, read_file
from captune.utils.registry import nearest
from captune.utils.spec import convert

METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def add_fields(parser: argparse.ArgumentParser, config: type, hide: Iterable[str] = ()) -> list[str]:
    """Add one flag per field of a dataclass; a flag that is not given leaves no trace in the namespace.

    Args:
        parser: receives the flags, in one argument group per ``metadata["group"]``: "required" and "settings" hold the
            fields without.
        config: the dataclass.
        hide: the fields that get no flag.

    Returns:
        The required flags with what stands for their values, such as ``--model MODEL``.
    """
    hints = get_type_hints(config)
    groups: dict[str, argparse._ArgumentGroup] = {}
    required: list[str] = []
    for field in sorted(_fields(config), key=lambda field: not _required(field)):  # required ones first
        if field.name in hide:
            continue
        name = "required" if _required(field) else field.metadata.get("group", "settings")
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        action = _add_flag(groups[name], field, hints[field.name])
        if _required(field):
            required.append(f"{action.option_strings[0]} {action.metavar}")
    return required


def _add_flag(group: argparse._ArgumentGroup, field: dataclasses.Field, kind: Any) -> argparse.Action:
    text = field.metadata.get("help", "")
    text = (text if "default:" in text or _required(field) else text + _default(field)).replace("%", "%%")
    options: dict[str, Any] = {}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif get_origin(kind) in (list, tuple):
        options |= {"nargs": "+", "metavar": _metavar(get_args(kind)[0])}
    else:
        options["metavar"] = field.metadata.get("metavar") or _metavar(kind)
    action = group.add_argument(
        _flag(field.name), dest=field.name, default=argparse.SUPPRESS, help=text.strip(), **options
    )
    options.pop("metavar", None)
    for old in field.metadata.get("aliases", ()):  # read under their own name, so that `build` can warn
        group.add_argument(_flag(old), dest=old, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **options)
    return action


def build(
    config: type,
    flags: Mapping[str, Any],
    file: str | Path | None = None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Build a config from defaults, the preset that flags or file name, the YAML file, and the flags.

    Args:
        config: the dataclass.
        flags: values by field name; other names are ignored.
        file: a YAML file of ``name: value`` lines.
        presets: ``{preset: {field: value}}``; the config's field `preset` chooses one.

    Returns:
        An instance of `config`.

    Raises:
        UsageError: an unknown key or preset, a value of the wrong kind, or a missing required field.
        SettingError: what the config's ``__post_init__`` refuses.
    """
    fields = _fields(config)
    values = _read(config, read_yaml(file) if file is not None else {}, file) | _read(config, flags)
    if presets:
        default = next((field.default for field in fields if field.name == "preset"), None)
        name = values.get("preset", default)
        if name is not None:
            if name not in presets:
                raise UsageError(f"--preset: {nearest(str(name), presets, 'preset')}")
            values = {**presets[name], **values}
    missing = [_flag(field.name) for field in fields if field.name not in values and _required(field)]
    if missing:
        raise UsageError(f"missing required option{'s' * (len(missing) > 1)}: {', '.join(missing)}")
    try:
        return config(**values)
    except UsageError:
        raise
    except ValueError as error:
        raise SettingError(str(error)) from error


def check_sources(config: Any) -> None:
    """Raise UsageError for a source of a config, wherever it was written, that is not there."""
    from captune.data.naming import check_there

    for field in _fields(type(config)):
        if field.metadata.get("metavar") == "SOURCE" and (source := getattr(config, field.name)) is not None:
            check_there(source)


def _read(config: type, given: Mapping[str, Any], file: str | Path | None = None) -> dict[str, Any]:
    """The given values under the names of today, converted; an unknown name in a file is an error."""
    hints, fields = get_type_hints(config, include_extras=True), _fields(config)
    names = [field.name for field in fields]
    empty = {field.name: field.metadata.get("empty", False) for field in fields}
    renamed = {old: field.name for field in fields for old in field.metadata.get("aliases", ())}

    def shown(name: str) -> str:
        return f"{file}: {name}" if file is not None else _flag(name)

    values: dict[str, Any] = {}
    for key, value in given.items():
        name = renamed.get(str(key), str(key))
        if name != key and name in names:
            new = name if file is not None else _flag(name)
            warnings.warn(f"{shown(key)} is now called {new}", FutureWarning, stacklevel=3)
            if name in given:
                raise UsageError(f"{shown(key)} is the former name of {new}, and both are given; keep {new}")
        if name in names:
            if value == "" and not empty[name]:
                raise UsageError(f"{shown(key)} is empty: give it a value, or leave it out")
            try:
                values[name] = convert(value, hints[name])
            except ValueError as error:
                raise UsageError(f"{shown(key)}: {error}") from error
        elif file is not None:
            raise UsageError(f"{file}: {nearest(name, names, 'setting')}")
    return values


def read_yaml(path: str | Path) -> dict[Any, Any]:
    """Read the mapping in a YAML file.

    Raises:
        UsageError: the file is absent, no YAML, or no mapping.
    """
    content = parse_yaml(read_file(path, error=UsageError, largest=LARGEST_CONFIG), str(path), error=UsageError)
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold 'name: value' lines, one per setting; it holds {type(content).__name__}")
    for key, value in content.items():
        nested = value if isinstance(value, list) else [value]
        if any(isinstance(entry, dict | list | set) for entry in nested):
            raise UsageError(f"{path}: {key}: a value, or a list of values, is wanted, not something nested")
    return content


def _fields(config: type) -> Sequence[dataclasses.Field]:
    return [field for field in dataclasses.fields(config) if field.init and not field.name.startswith("_")]


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _default(field: dataclasses.Field) -> str:
    value = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[operator]
    if isinstance(value, bool):
        value = "on" if value else "off"
    return "" if value in ("", []) else f" (default: {'none' if value is None else value})"


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    arms = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    arms = tuple(arm for arm in arms if arm is not type(None))
    if len(arms) == 1 and get_origin(arms[0]) is Literal:
        return "{" + ",".join(map(str, get_args(arms[0]))) + "}"
    return "|".join(METAVARS.get(arm, "VALUE") for arm in arms)
