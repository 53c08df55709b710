"""The result of an evaluation as text: for a terminal, a page of Markdown or LaTeX, or another program."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from captune.errors import EvaluationError
from captune.utils.files import jsonl_line, read_file, read_jsonl, replacing, write_csv
from captune.utils.tables import header_of, refuse_repeated, rows_of
from captune.utils.wording import counted

COLUMNS = ("file", "scorer", "figure", "value", "low", "high", "n", "signature")
TESTS = ("difference", "difference_low", "difference_high", "p", "p_holm")  # to the first file, where files were tested


def table(result: Mapping[str, Any]) -> str:
    """The result of `captune.evaluation.run.evaluate_files` as aligned text.

    Args:
        result: the report; it has a line per figure, a column per caption file and intervals in brackets.
    """
    lines = _grid(result)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    text += ["", *_below(result), "", *(f"{spec}: {score['signature']}" for spec, score in result["scores"].items())]
    text += ["", *(f"not scored, {spec}: {why}" for spec, why in result["skipped"].items())] * bool(result["skipped"])
    return "\n".join(text)


def records(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the figures of `captune.evaluation.run.evaluate_files` as rows: file, scorer, figure, value, low, high.

    Where files were tested against the first, a row has `TESTS` too, empty for the first file and untested figures.
    """
    rows = []
    for system in (result, *result["others"]):
        for spec, score in system["scores"].items():
            for key, value in score["values"].items():
                low, high = score["interval"].get(key, (None, None))
                values = (system["captions"], spec, key, value, low, high, score["n"], score["signature"])
                row = dict(zip(COLUMNS, values, strict=True))
                if _tested(result):
                    row |= dict(zip(TESTS, _test_values(system.get("paired", {}).get(spec, {}).get(key)), strict=True))
                rows.append(row)
    return rows


def as_csv(result: Mapping[str, Any]) -> str:
    """Return the figures as CSV, a row per file and figure; see `records`."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, (*COLUMNS, *(TESTS if _tested(result) else ())), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records(result))
    return file.getvalue().rstrip("\n")


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return the figures as a Markdown table, a row per figure and a column per file."""
    head, *rows = _grid(result)
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join([*(f"| {' | '.join(row)} |" for row in lines), *(f"\n{line}" for line in _below(result))])


def as_latex(result: Mapping[str, Any]) -> str:
    """Return the figures as a LaTeX tabular, for booktabs, a row per figure and a column per file."""
    head, *rows = [[_LATEX.sub(_escaped, cell) for cell in row] for row in _grid(result)]
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", "\\toprule", f"{' & '.join(head)} \\\\", "\\midrule"]
    lines += [f"{' & '.join(row)} \\\\" for row in rows]
    below = (f"\n{_LATEX.sub(_escaped, line)}" for line in _below(result))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", *below])


_LATEX = re.compile(r"[\\&%$#_{}~^]")


def _escaped(match: re.Match[str]) -> str:
    names = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    return names.get(match[0], f"\\{match[0]}")


def _tested(result: Mapping[str, Any]) -> bool:
    return any("paired" in system for system in result["others"])


def _test_values(test: Mapping[str, Any] | None) -> tuple[float | None, ...]:
    if test is None:
        return (None,) * len(TESTS)
    low, high = test["interval"] or (None, None)
    return test["difference"], low, high, test["p_value"], test.get("p_holm")


def _grid(result: Mapping[str, Any]) -> list[list[str]]:
    """A row per figure and a column per file; of tested files the difference to the first below each figure."""
    systems = [result, *result["others"]]
    rows = [["", *(str(system["captions"]) for system in systems)]]
    for spec, score in result["scores"].items():
        for key in score["values"]:
            name = key if key.startswith(spec) else f"{spec} {key}"
            rows.append([name, *(_cell(system["scores"][spec], key) for system in systems)])
            if _tested(result):
                differences = (_difference(system["paired"][spec][key]) for system in systems[1:])
                rows.append(["  difference to system 1", "", *differences])
    return rows


def _below(result: Mapping[str, Any]) -> list[str]:
    """How many images the figures are of, and what else a table of figures alone does not say."""
    scores = result["scores"].items()
    fewer = [f"{spec} (of {counted(one['n'], 'image')})" for spec, one in scores if one["n"] < result["matched"]]
    return [f"{counted(result['matched'], 'image')}; 95% intervals in brackets", *_corrected(result), *fewer]


def _corrected(result: Mapping[str, Any]) -> list[str]:
    if not _tested(result):
        return []
    return [
        "p: paired permutation test of the difference to system 1; p_holm: corrected (Holm) for all the tests shown"
    ]


def _cell(score: Mapping[str, Any], key: str) -> str:
    interval = score["interval"].get(key)
    return f"{score['values'][key]:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")


def _difference(test: Mapping[str, Any]) -> str:
    interval, p = test["interval"], test["p_value"]
    if interval is None:
        return f"{test['difference']:+.4f}"
    tested = f"p = {p:.4f}, p_holm = {test['p_holm']:.4f}"
    return f"{test['difference']:+.4f} [{interval[0]:+.4f}, {interval[1]:+.4f}] {tested}"


def write_rows(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write rows of equal keys as .csv, .jsonl or .parquet, by the path, in one step."""
    suffix = os.path.splitext(path)[1].lower()
    with replacing(path) as temporary:
        if suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet as parquet

            parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), temporary)
        elif suffix == ".csv":
            with temporary.open("w", encoding="utf-8", newline="") as file:
                header = list(rows[0])
                write_csv(file, [header, *([row[name] for name in header] for row in rows)])
        else:
            temporary.write_text("".join(map(jsonl_line, rows)), encoding="utf-8", newline="\n")


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read rows as `write_rows` writes them, by the path; in .csv a cell is text, or None where it is empty.

    Raises:
        EvaluationError: another kind of file, or one that cannot be read.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in (".jsonl", ".ndjson"):
        return read_jsonl(path)
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet as parquet

        try:
            return list(parquet.read_table(path).to_pylist())
        except (pyarrow.ArrowException, OSError) as error:
            raise EvaluationError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error
    if suffix != ".csv":
        raise EvaluationError(
            f"{path} is no table of scores: captune evaluate --per-image writes .csv, .jsonl, .parquet"
        )
    try:
        text = read_file(path, error=EvaluationError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not UTF-8 text: {error}") from error
    header = header_of(text, lower=False)
    refuse_repeated(path, header, header, EvaluationError)
    rows = rows_of(path, text, EvaluationError)
    return [{key: value or None for key, value in zip(header, row, strict=True)} for _, _, row in rows]


FORMATS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "table": table,
    "markdown": as_markdown,
    "latex": as_latex,
    "csv": as_csv,
}
