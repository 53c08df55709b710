"""`python -m studies NAME ...`: run what a study misses, then write its tables and plots."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

NAMES = sorted(folder.parent.name for folder in Path(__file__).parent.glob("*/evaluate.py"))


def main(argv: list[str]) -> int:
    name = argv[0].replace("-", "_") if argv else ""
    if name not in NAMES:
        print(f"usage: python -m studies NAME [--help]\nNAME is one of: {', '.join(NAMES)}", file=sys.stderr)
        return 0 if name in ("__help", "_h") else 2
    return importlib.import_module(f"studies.{name}.evaluate").main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
