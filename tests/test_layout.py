"""The rooms of the package stand in layers, and imports point down; imports inside functions count like all others."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1] / "src"
LAYERS = (
    "errors",
    "utils",
    "data",
    "models",
    "corpus scene_graphs runs",
    "scorers",
    "evaluation decoding storybook",
    "inference report verl",
    "training annotation curation",
    "cli",
    "__main__",
)
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms.split()}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
    if "__pycache__" not in path.parts
}


def imports() -> dict[str, set[str]]:
    """The modules of the package that each imports, lazily or not; `captune` itself only re-exports."""
    graph: dict[str, set[str]] = {}
    for module, path in FILES.items():
        named = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module} imports relatively"
                named |= {f"{node.module}.{alias.name}" for alias in node.names}
        found = {name if name in FILES else name.rpartition(".")[0] for name in named if name.startswith("captune.")}
        graph[module] = (found & FILES.keys()) - {module, "captune"}
    del graph["captune"]
    return graph


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_a_layer() -> None:
    assert {room(module) for module in FILES if module != "captune"} == LAYER.keys()


def test_imports_point_down() -> None:
    pairs = [(a, b) for a, targets in imports().items() for b in targets if room(a) != room(b)]
    assert [f"{a} -> {b}" for a, b in pairs if LAYER[room(a)] <= LAYER[room(b)]] == []


def test_commands_reach_methods_by_name_only() -> None:
    assert [
        (a, b) for a, targets in imports().items() for b in targets if (room(a), room(b)) == ("cli", "training")
    ] == []


def test_no_two_modules_import_each_other() -> None:
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        raise AssertionError(" <- ".join(error.args[1])) from None


def test_no_module_takes_a_private_name_of_another() -> None:
    takes = re.compile(r"^\s*from captune[.\w]* import .*\b_[a-z]", re.MULTILINE)
    assert [m for m, path in FILES.items() if takes.search(path.read_text(encoding="utf-8"))] == []


def test_nothing_asks_whether_a_source_is_storybook() -> None:
    asks = re.compile(r"""startswith\(\W*storybook|== ["']storybook["':]""")
    reaches = re.compile(r"captune\.storybook|captune import storybook")
    texts = {module: path.read_text(encoding="utf-8") for module, path in FILES.items() if module != "captune"}
    assert [m for m, text in texts.items() if room(m) not in ("data", "storybook") and asks.search(text)] == []
    library = [m for m in texts if room(m) not in ("data", "storybook") and LAYER[room(m)] < LAYER["cli"]]
    assert [m for m in library if reaches.search(texts[m])] == []
