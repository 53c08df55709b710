"""The table of scores, the gap-closed figures, the health figures and the sentence at the top of the page."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from captune.data.schemes import SOURCES
from captune.report.reading import ROLE_LABELS, Row, is_number
from captune.scorers import registry
from captune.utils.wording import counted

HALLUCINATION = ("hallucinated_per_fact", "hallucinated_per_caption")  # the first that a row has is shown
HEALTH = ("health", "length")


@dataclass(frozen=True)
class Column:
    """One figure of one scorer."""

    scorer: str
    key: str
    label: str
    better: int  # 1 higher is better, -1 lower is better, 0 neither
    digits: int
    detail: str = ""  # a few small words under the label


@dataclass(frozen=True)
class Cell:
    """One figure of one row, as text, and where it lies on the column's little bar."""

    text: str = "–"
    interval: str = ""
    rank: str = ""  # "best" | "second" | ""
    # the interval and the value as percentages of the column's span, for the little bar; None where unknown
    low: float | None = None
    high: float | None = None
    at: float | None = None


@dataclass(frozen=True)
class Line:
    """One row of a table."""

    name: str
    role: str
    note: str
    cells: list[Cell]
    gaps: list[str] = field(default_factory=list)
    speed: str = ""
    focus: bool = False  # the row that the page is about


@dataclass(frozen=True)
class Table:
    """A table as the template prints it."""

    columns: list[Column]
    lines: list[Line]
    gap_labels: list[str] = field(default_factory=list)
    speed: bool = False


def label(scorer: str, key: str) -> str:
    """The heading of a figure, as its scorer declares it: "CIDEr-D", "Hallucination rate"."""
    text = registry.label(scorer, key)
    return text[:1].upper() + text[1:]


def primary_label(rows: list[Row], scorer: str) -> str:
    """The name of a scorer's primary figure, which is the first that it gives."""
    values = next((row.scores[scorer].get("values") for row in rows if scorer in row.scores), None)
    return registry.label(scorer, next(iter(values or {}), scorer))


def value_of(row: Row, column: Column) -> float | None:
    """The figure of a row; None where it was not measured."""
    value = (row.scores.get(column.scorer, {}).get("values") or {}).get(column.key)
    return float(value) if is_number(value) else None


def interval_of(row: Row, column: Column) -> tuple[float, float] | None:
    """The confidence interval of a figure; None where it has none."""
    pair = (row.scores.get(column.scorer, {}).get("interval") or {}).get(column.key)
    if isinstance(pair, list | tuple) and len(pair) == 2 and all(is_number(end) for end in pair):
        return float(pair[0]), float(pair[1])
    return None


def judged(rows: list[Row], scorer: str = "") -> set[int]:
    """How many images the figures of the rows are of, where that is known.

    Args:
        rows: the table's rows.
        scorer: of this scorer alone.
    """
    results = [result for row in rows for name, result in row.scores.items() if scorer in ("", name)]
    return {result["n"] for result in results if result.get("n")}


def columns_of(rows: list[Row], *, health: bool = False, every: bool = False) -> list[Column]:
    """The figures to show.

    Args:
        rows: the table's rows.
        health: the health metrics instead of the scores.
        every: every figure, not only each scorer's primary one, which comes first, and its hallucination rate.
    """
    figures: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        for scorer, result in row.scores.items():
            if (scorer.split(":")[0] in HEALTH) != health:
                continue
            values = {k: v for k, v in (result.get("values") or {}).items() if is_number(v)}
            keys = list(values)
            if not (every or health):
                primary = next(iter(keys), "")
                hallucination = next((key for key in HALLUCINATION if key in values), "")
                keys = [key for key in keys if key in (primary, hallucination)]
            for key in keys:
                figures.setdefault((scorer, key), []).append(float(values[key]))
    columns = []
    for (scorer, key), numbers in figures.items():
        size = max(abs(number) for number in numbers)
        digits = 0 if size >= 20 and all(n == round(n) for n in numbers) else 1 if size >= 20 else 2 if size >= 2 else 3
        better = {True: 1, False: -1, None: 0}[registry.direction(scorer, key)]
        detail = scorer.partition(":")[0] if every else ""
        columns.append(Column(scorer, key, label(scorer, key), better, digits, detail))
    order = {scorer: position for position, scorer in enumerate(dict.fromkeys(column.scorer for column in columns))}
    return sorted(columns, key=lambda column: order[column.scorer])


def without_interval(row: Row) -> Row:
    """The row with its figures alone."""
    return replace(row, scores={name: {**score, "interval": {}} for name, score in row.scores.items()})


def gap_closed(row: Row, base: Row | None, ceiling: Row | None, column: Column) -> float | None:
    """(row - base) / (supervised - base); None where a figure is missing or the ceiling is not above the base."""
    if base is None or ceiling is None:
        return None
    value, low, high = value_of(row, column), value_of(base, column), value_of(ceiling, column)
    if value is None or low is None or high is None or (high - low) * (column.better or 1) <= 0:
        return None
    return (value - low) / (high - low)


def gap_columns(columns: list[Column]) -> list[Column]:
    """The figures whose gap is shown: CIDEr-D and facts compared with a source's truth, else the first one."""
    directed = [column for column in columns if column.better == 1]
    names = {"cider", *(scheme.truth_scorer for scheme in SOURCES.values())}
    chosen = [c for c in directed if c.scorer.partition(":")[0] in names]
    return chosen[:2] or directed[:1]


def build_table(
    rows: list[Row], columns: list[Column], *, gaps: bool = True, rank: bool = True, speed: bool = True
) -> Table:
    """Rows x columns with intervals and ranks. Ties share a rank; a column without a direction has none.

    Args:
        rows: the table's rows.
        columns: the figures to show.
        gaps: show how much of the gap between base and supervised each row closes.
        rank: mark the best and the second-best row of each column, and draw the little bars.
        speed: show images per second.
    """
    base, ceiling, focus = first_with_role(rows, "base"), first_with_role(rows, "supervised"), focus_of(rows)
    between = [row for row in rows if row not in (base, ceiling)]
    wanted = gap_columns(columns) if gaps and base and ceiling and between else []
    wanted = [column for column in wanted if gap_closed(base, base, ceiling, column) is not None] if base else []
    cells = {column: _cells(rows, column, rank=rank) for column in columns}
    speed = speed and any(row.images_per_second for row in rows)
    lines = [
        Line(
            name=row.name,
            role=row.role,
            note=ROLE_LABELS[row.role] if row.note is None else row.note,
            cells=[cells[column][position] for column in columns],
            gaps=["" if row in (base, ceiling) else percent(gap_closed(row, base, ceiling, c)) for c in wanted],
            speed=f"{row.images_per_second:.3g}" if row.images_per_second else "–",
            focus=row is focus and row.role != "control" and len(rows) > 1,
        )
        for position, row in enumerate(rows)
    ]
    return Table(columns, lines, [column.label for column in wanted], speed)


def _cells(rows: list[Row], column: Column, *, rank: bool) -> list[Cell]:
    values = [value_of(row, column) for row in rows]
    intervals = [interval_of(row, column) for row in rows]
    measured = [v for v in values if v is not None]
    ends = measured + [end for pair in intervals if pair for end in pair]
    floor, roof = (min([0.0, *ends]), max(ends)) if ends else (0.0, 1.0)
    span = (roof - floor) or 1.0
    ranked = column.better and rank and len(set(measured)) > 1
    order = sorted(set(measured), key=lambda v: -v * column.better) if ranked else []
    ranks = dict(zip(order[: 2 if len(measured) > 2 else 1], ("best", "second"), strict=False))
    cells = []
    for value, pair in zip(values, intervals, strict=True):
        if value is None:
            cells.append(Cell())
            continue
        low, high = pair or (value, value)
        cells.append(
            Cell(
                text=f"{value:.{column.digits}f}".replace("-", "−"),
                interval=f"{low:.{column.digits}f} – {high:.{column.digits}f}".replace("-", "−") if pair else "",
                rank=ranks.get(value, ""),
                low=round(100 * (low - floor) / span, 1) if rank else None,
                high=round(100 * (high - floor) / span, 1) if rank else None,
                at=round(100 * (value - floor) / span, 1) if rank else None,
            )
        )
    return cells


def first_with_role(rows: list[Row], role: str) -> Row | None:
    """The first row of a role, if there is one."""
    return next((row for row in rows if row.role == role), None)


def focus_of(rows: list[Row]) -> Row | None:
    """The row that the page is about: the first that was trained without labels, else the first trained one."""
    for role in ("zero", "gt", "trained", "supervised", "other", "control"):
        if (row := first_with_role(rows, role)) is not None:
            return row
    return None


def percent(fraction: float | None) -> str:
    """A fraction as a whole percentage; a dash for None."""
    return "–" if fraction is None else f"{100 * fraction:.0f} %".replace("-0 %", "0 %").replace("-", "−")


def headline(rows: list[Row], columns: list[Column], images: int) -> tuple[str, list[dict[str, Any]]]:
    """The sentence at the top and its two or three key figures (label, value, detail)."""
    base, ceiling, focus = first_with_role(rows, "base"), first_with_role(rows, "supervised"), focus_of(rows)
    main = next((c for c in columns if c.better == 1), None)
    images = max(judged([row for row in (focus, base) if row], main.scorer if main else ""), default=images)
    on = f"on {counted(images, 'image')}" if images else "on these images"
    if any(row.trained_on for row in rows):
        on += " (measured on its training images)"
    if main is None:
        return "No scores were recorded, so there is nothing to compare yet.", []
    if focus is None:
        return f"Only the base captioner was scored, {on}.", _figures(rows[0], columns[:3])
    if base is None:
        scored = "One captioner was" if len(rows) == 1 else f"{len(rows)} captioners were"
        return f"{scored} scored {on}; a gain needs a base row to compare with.", _figures(rows[0], columns[:3])
    before, after = value_of(base, main), value_of(focus, main)
    if before is None or after is None:
        return f"“{focus.name}” and “{base.name}” have no score in common, so their difference is unknown.", []
    how = {"zero": "Without a single label, ", "gt": "With labels for the mapper only, "}.get(focus.role, "")
    verb = "moved" if after == before else "raised" if after > before else "lowered"
    d = main.digits
    known = ", which it was rewarded for," if main.scorer in focus.rewarded else ""
    sentence = f"{how}“{focus.name}” {verb} {main.label}{known} from {before:.{d}f} to {after:.{d}f} {on}"
    pair = interval_of(focus, main)
    detail = f"95 % interval {pair[0]:.{d}f} – {pair[1]:.{d}f}" if pair else "base → trained"
    figures = [_figure(main.label, before, after, d, detail)]
    gap = gap_closed(focus, base, ceiling, main)
    if gap is not None and focus is not ceiling:
        way = f"{percent(gap)} of the way to" if gap > 0 else "away from"
        sentence += f", {way} supervised training"
        detail = f"of the {main.label} gap between base and supervised"
        figures.append({"label": "Gap closed", "before": "", "after": percent(gap), "detail": detail})
    wrong = next((c for c in columns if c.key in HALLUCINATION), None)
    if wrong is not None and (x := value_of(base, wrong)) is not None and (y := value_of(focus, wrong)) is not None:
        d = wrong.digits
        turn = "fell" if y < x else "rose" if y > x else "stayed"
        join = "and" if (y < x) == (after > before) else "but"
        sentence += f", {join} its {wrong.label[0].lower()}{wrong.label[1:]} {turn} from {x:.{d}f} to {y:.{d}f}"
        figures.append(_figure(wrong.label, x, y, d, "lower is better"))
    return sentence.replace(" %", "\u202f%") + ".", figures


def _figure(name: str, before: float, after: float, digits: int, detail: str) -> dict[str, Any]:
    return {"label": name, "before": f"{before:.{digits}f}", "after": f"{after:.{digits}f}", "detail": detail}


def _figures(row: Row, columns: list[Column]) -> list[dict[str, Any]]:
    return [
        {"label": c.label, "before": "", "after": f"{value_of(row, c):.{c.digits}f}", "detail": f"“{row.name}”"}
        for c in columns
        if value_of(row, c) is not None
    ]
