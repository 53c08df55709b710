"""The package's door: what `import captune` offers, what it costs, where things were, and what a wheel holds."""

from __future__ import annotations

import ast
import importlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import captune
from captune.utils.moved import MOVED, RENAMED

ROOT = Path(__file__).parents[2]
SOURCE = Path(captune.__file__).parent


def test_every_export_is_there_and_typed():
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert typed == captune._EXPORTS
    for name in captune.__all__:
        assert getattr(captune, name) is not None
    assert (SOURCE / "py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'captoiner'"):
        captune.captoiner  # noqa: B018


def test_what_took_the_place_of_a_former_path_is_there():
    for old, new in MOVED.items():
        place = SOURCE / new.replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__init__.py").is_file(), new
        former = SOURCE / old.replace(".", "/")
        assert not former.with_suffix(".py").exists() and not former.exists(), old


def test_a_former_path_gives_what_took_its_place():
    code = (
        "import captune.methods.sft as old, captune.training.sft.train as new, captune.scorers.bleu, importlib\n"
        "from captune.captioner import Captioner\n"
        "from captune import prefix\n"
        "assert old.SFTConfig is new.SFTConfig and not hasattr(old, 'nothing')\n"
        "assert captune.scorers.bleu.Bleu is importlib.import_module('captune.scorers.reference.bleu').Bleu\n"
        "from captune.training import grpo; import captune.methods.grpo; assert captune.training.grpo is grpo\n"
        "assert Captioner is captune.Captioner and prefix.PrefixForConditionalGeneration\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_env())
    assert done.returncode == 0, done.stderr
    assert "<string>:2: FutureWarning: captune.captioner is now called captune.models.captioner" in done.stderr


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_former_name_is_found_where_it_is_now():
    for old, names in RENAMED.items():
        module = importlib.import_module(f"captune.{old}")
        for name, place in names.items():
            assert getattr(module, name).__name__ == place.partition(":")[2]


def test_no_module_of_the_package_uses_a_former_path():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.removeprefix("captune.") not in MOVED, path


# ------------------------------------------------------------------- time


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCE.parent)}


def _cpu_seconds(*words: str) -> float:
    """Median of the CPU time of three runs."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], check=True, capture_output=True, env=_env())
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(seconds)


def test_help_and_import_are_quick():
    """The bars are 0.25 and 0.15 s on an idle machine; they take 0.09 and 0.03 s, and a busy one gets as much again."""
    assert _cpu_seconds("-c", "import captune") < 0.3
    assert _cpu_seconds("-m", "captune", "--help") < 0.5


def test_help_imports_no_method_and_nothing_heavy():
    code = (
        "import sys; from captune.cli.main import main; main(['--help']); "
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'pydantic', 'rich', 'yaml', 'captune.training'}; "
        "print(sorted(heavy & sys.modules.keys()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_env()).stdout
    assert out.splitlines()[-1] == "[]"


# ------------------------------------------------------------------- wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A folder with what `pip install` of a wheel would put into site-packages."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(SOURCE, folder / "src" / "captune", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    words = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *words], check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("captune-*.whl"))) as file:
        file.extractall(folder / "site")
    return folder / "site"


def test_a_wheel_holds_every_file_of_the_package(wheel):
    listed = subprocess.run(["git", "ls-files", "src/captune"], cwd=ROOT, capture_output=True, text=True).stdout
    if not listed:
        pytest.skip("not a git checkout")
    tracked = [Path(line).relative_to("src") for line in listed.splitlines() if (ROOT / line).is_file()]
    assert [str(path) for path in tracked if not (wheel / path).is_file()] == []


def test_an_installed_wheel_works_outside_the_repository(wheel, tmp_path):
    code = (
        "import captune; from captune.cli import demo; from captune.cli.main import main\n"
        "from captune.storybook.shipped import CAPTIONER\n"
        "assert len(demo.controls()) == 4 and (CAPTIONER / 'model.safetensors').is_file()\n"
        "main(['--help']); print(captune.__file__)\n"
    )
    env = _env() | {"PYTHONPATH": str(wheel)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(wheel / "captune" / "__init__.py")


def test_the_package_reads_nothing_outside_itself():
    """`parents[2]` and the like of a module leave the package where it is installed as a wheel."""
    for path in SOURCE.rglob("*.py"):
        for number in range(len(path.relative_to(SOURCE).parts), 6):
            assert f"parents[{number}]" not in path.read_text(encoding="utf-8"), f"{path} looks outside the package"
