"""10,000 random texts through every text scorer, with the models and programs that are installed.

    python -m benchmarks.parity.fuzz_scorers [--number 10000] \
        [--output benchmarks/parity/fuzz_scorers.json] [SCORER ...]

What is tried and checked is in tests/scorers/test_fuzz.py: no crash, no NaN, the same rows for any split and order. A
scorer whose model or program is not there is reported as such, a failure with its message.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

from captune.errors import ScorerError
from captune.scorers import load_scorer

TESTS = Path(__file__).parents[2] / "tests" / "scorers" / "test_fuzz.py"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one(test_fuzz: ModuleType, name: str, captions: list[str]) -> dict[str, Any]:
    scorer = load_scorer(name)
    try:
        scorer.check()
    except ScorerError as error:
        return {"passed": None, "not_there": str(error)}
    try:
        found = test_fuzz.fuzz(scorer, captions, seed=11)
    except Exception as error:  # whatever a scorer raises is what is looked for
        return {"passed": False, "error": f"{type(error).__name__}: {error}"[:2000]}
    return {"passed": True, "texts": len(captions), **found, "signature": scorer.signature}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scorers", nargs="*", metavar="SCORER")
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--output", type=Path, help="what it holds about other scorers is kept")
    args = parser.parse_args()
    test_fuzz = load(TESTS)
    captions = test_fuzz.texts(args.number, seed=10)
    result: dict[str, Any] = {}
    if args.output and args.output.is_file():
        result = json.loads(args.output.read_text(encoding="utf-8"))["scorers"]
    for name in args.scorers or test_fuzz.TEXT_SCORERS:
        result[name] = one(test_fuzz, name, captions)
        print(name, json.dumps(result[name]), flush=True)
        if args.output:
            content = {"python": platform.python_version(), "not_tried": test_fuzz.SKIPPED, "scorers": result}
            args.output.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
