"""A `java` of a few lines of Python, for tests of what runs Java programs."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path

import pytest

from captune.scorers._support import java


def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, *, version: str = "11.0.2") -> Path:
    """Puts it first on the PATH and a pycocoevalcap with empty jars in its place. Returns the package's folder.

    `body` runs with `args` (the command line) and `SEEN`, a file that is read by `seen`.
    """
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable} -SE\n"
        "import json, os, sys, time\n"
        "args = sys.argv[1:]\n"
        "if args == ['-version']:\n"
        f"    sys.stderr.write('openjdk version \"{version}\" 2020-01-01\\n')\n"
        "    sys.exit(0)\n"
        f"SEEN = {str(tmp_path / 'seen')!r}\n"
        "with open(SEEN, 'a') as file:\n"
        "    file.write(json.dumps({'pid': os.getpid(), 'args': args, 'cwd': os.getcwd()}) + '\\n')\n"
        + textwrap.dedent(body),
        encoding="utf-8",
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    package = tmp_path / "pycocoevalcap"
    for file in ("meteor/meteor-1.5.jar", "meteor/data/paraphrase-en.gz", "spice/spice-1.0.jar"):
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).touch()
    monkeypatch.setattr(java, "package_folder", lambda: package)
    return package


def seen(tmp_path: Path) -> list[dict]:
    """{"pid", "args", "cwd"} of every start."""
    import json

    file = tmp_path / "seen"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def is_running(pid: int) -> bool:
    """Running, or a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
