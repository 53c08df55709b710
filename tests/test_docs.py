"""README and docs: commands parse, Python runs, links lead somewhere, the reference is current."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = ROOT / "docs" / "reference"
NOT_RUN = {"rewards.md"}  # needs a data set of the hub; tests/test_rewards_in_trl.py runs it with stand-ins
NOT_PARSED = ("captune METHOD", "captune VERB")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line of a page's shell blocks that calls captune."""
    found = []
    for page in PAGES:
        if GENERATED in page.parents:
            continue
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip().startswith("captune ") and not line.strip().startswith(NOT_PARSED):
                    found.append((str(page.relative_to(ROOT)), line.strip()))
    return found


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the docs' commands name: recipes, and Python that a page tells to save."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    for page in PAGES:
        for block in blocks(page, "python"):
            if match := re.match(r"# (\w+\.py)\n", block):
                (folder / match[1]).write_text(block, encoding="utf-8")
    return folder


@pytest.mark.parametrize(("page", "command"), commands(), ids=lambda text: text[:60])
def test_commands_parse(page: str, command: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of the docs is one that captune understands today, without a former name."""
    from captune.cli.config import build
    from captune.cli.main import joined, parser
    from captune.cli.train import METHODS

    monkeypatch.chdir(desk)
    verb, *rest = joined(shlex.split(command, comments=True)[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        args = parser(verb).parse_args([verb, *rest])
        if verb in METHODS:
            build(METHODS[verb].config, vars(args), args.config, METHODS[verb].presets)


PYTHON = [page for page in PAGES if blocks(page, "python") and page.name not in NOT_RUN]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the runs that the docs mention have an (untrained) adapter."""
    from captune import Captioner

    folder = tmp_path_factory.mktemp("docs")
    for run in ("g", "sc"):
        captioner = Captioner.load("storybook")
        captioner.add_lora()
        captioner.save_adapter(folder / "runs" / run / "adapter")
    return folder


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.name)
def test_python_runs(page: Path, adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(adapters)
    names: dict[str, object] = {"__name__": "docs"}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec", dont_inherit=True), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "#", "mailto:")):
            file = (page.parent / target.partition("#")[0]).resolve()
            assert file.exists(), f"{page.name}: {target}"
            # mkdocs, which is strict, knows the pages of docs/ alone
            assert page.parent == ROOT or file.is_relative_to(ROOT / "docs"), f"{page.name}: {target} is no page"


def test_the_reference_is_current() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert not [str(file) for file, _ in generate.stale()], "run: python docs/generate.py"


@pytest.mark.parametrize("example", ["caption_folder.py", "score_captions.py", "custom_reward.py"])
def test_examples(example: str, tmp_path: Path, photos: str) -> None:
    arguments = {
        "caption_folder.py": [photos, str(tmp_path / "caps.jsonl")],
        "score_captions.py": [],
        "custom_reward.py": [str(tmp_path / "run")],
    }[example]
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example), *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
