"""The field's words: docs, help texts, messages and docstrings say what the field says, not what only we would say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: What not to write, and what to write instead.
GLOSSARY = {
    r"\bclimb(s|ed|ing)?\b": "optimise",
    r"\bwitness(es)?\b": "held-out scorer",
    r"\bvital signs?\b": "health metric",
    r"\b(drawn )?by lot\b": "sampled",
    r"\bpictures?\b": "image",
    r"\bafresh\b|\banew\b": "again",
    r"\bgoes on\b|\bwent on\b": "resumes, continues",
    r"\bis none\b|\bare none\b": "is invalid, is missing",
    r"\bsick(ness)?\b|\bill captioner": "degenerate",
}
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("studies/*/README.md")])
#: Their strings list words of captions.
LEXICONS = {"phrases.py", "tagger.py", "bias.py", "vocabulary.py", "openchair.py"}
MODULES = [file for file in sorted((ROOT / "src" / "captune").rglob("*.py")) if file.name not in LEXICONS]


#: Parts of signatures that stored results hold.
STORED = {"|without the picture:blank image"}


def offences(text: str) -> Iterator[str]:
    for pattern, instead in GLOSSARY.items():
        for match in re.finditer(pattern, text, re.IGNORECASE):
            line = text[: match.start()].count("\n") + 1
            yield f"line {line}: {match.group()!r}; write: {instead}"


def texts(module: Path) -> Iterator[tuple[int, str]]:
    """Every string constant of a module with its line: docstrings, messages, help texts."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in STORED:
            yield node.lineno, node.value


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages(page: Path) -> None:
    assert not list(offences(page.read_text(encoding="utf-8")))


def test_messages_help_and_docstrings() -> None:
    wrong = [
        f"{module.relative_to(ROOT)}:{line}: {offence}"
        for module in MODULES
        for line, text in texts(module)
        for offence in offences(text)
    ]
    assert not wrong, "\n".join(wrong)
