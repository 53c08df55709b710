"""Names and what they stand for."""

from __future__ import annotations

import importlib.metadata

import pytest

from captune.errors import RegistryError, UnknownScorer
from captune.utils.registry import Registry, nearest


def registry(**settings) -> Registry:
    return Registry("captune.nothing", "tool", {"path": "pathlib:Path", "gone": "no_such_module:x"}, **settings)


def test_a_name_is_imported_when_it_is_asked_for() -> None:
    from pathlib import Path

    tools = registry()
    assert list(tools) == ["path", "gone"] and len(tools) == 2 and "path" in tools and "x" not in tools
    assert tools["path"] is Path
    with pytest.raises(ImportError):  # a bug of ours is shown as it is
        tools["gone"]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(RegistryError, match=r"unknown tool 'paht'; did you mean 'path'\? \(known: path, gone\)"):
        registry()["paht"]
    with pytest.raises(UnknownScorer):
        registry(error=UnknownScorer)["x"]
    assert nearest("zzz", ["a"], "tool") == "unknown tool 'zzz' (known: a)"


def test_an_alias_works_and_warns() -> None:
    tools = registry(aliases={"road": "path"})
    with pytest.warns(FutureWarning, match="the tool 'road' is now called 'path'"):
        assert tools["road"] is tools["path"]
    assert "road" in tools and "road" not in list(tools)


def test_entry_points_add_names_and_never_take_one(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        importlib.metadata.EntryPoint("own", "collections:OrderedDict", "g"),
        importlib.metadata.EntryPoint("path", "os:path", "g"),
        importlib.metadata.EntryPoint("broken", "os:nothing", "g"),
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    tools = registry()
    with pytest.warns(UserWarning, match="a name that is taken by pathlib:Path"):
        assert list(tools) == ["path", "gone", "broken", "own"]
    assert tools["own"].__name__ == "OrderedDict" and tools["path"].__name__ == "Path"
    with pytest.raises(RegistryError, match="'broken' .* cannot be imported"):
        tools["broken"]


def test_an_object_may_stand_for_a_name() -> None:
    tools = registry()
    tools.targets["here"] = registry
    assert tools["here"] is registry
