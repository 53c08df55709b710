"""What a run was made with: library versions, the commit, the command."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from captune.errors import redact

PACKAGES = (
    "captune",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "pillow",
)


def command_line() -> str:
    """Return the command that is running, as it could be typed, without secrets."""
    program = Path(sys.argv[0]).name
    if program in ("__main__.py", ""):
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        program = f"python -m {spec.parent if spec and spec.parent else 'captune'}"
    return " ".join([program, *(shlex.quote(redact(part)) for part in sys.argv[1:])])


def versions() -> dict[str, Any]:
    """Return the versions of Python, the platform and the libraries that decide results, and captune's git commit."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
    }
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    if found["captune"] is None:
        from captune import __version__

        found["captune"] = __version__
    return found | {"git_commit": git_commit()}


def processor() -> str:
    """Return the processor's name and its widest vectors: with others sums round otherwise, and a training diverges."""
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        return platform.processor() or platform.machine()
    name = re.search(r"^model name\s*:\s*(.+)$", about, re.MULTILINE)
    flags = re.search(r"^flags\s*:(.*)$", about, re.MULTILINE)
    own = flags[1].split() if flags else []
    widest = [flag for flag in ("avx512f", "avx2", "avx") if flag in own][:1]
    return " ".join([name[1] if name else platform.machine(), *widest])


def git_commit() -> str | None:
    """Return the commit of captune's checkout, with "+changes" if tracked files differ; None outside one."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not git("ls-files", "--error-unmatch", Path(__file__).name):  # installed inside somebody else's repository
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain", "--untracked-files=no") else commit
