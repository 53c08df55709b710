"""The page: reads the runs, builds its parts, fills the template and writes one file."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from captune.errors import ReportError
from captune.report import curves, gallery, table
from captune.report.monitor import monitor_report
from captune.report.reading import Row, Run, group_rows, read_run, split_controls, whole
from captune.report.truth import Truth, health_of_references, load_truth
from captune.utils.files import replace_file
from captune.utils.wording import counted, span

log = logging.getLogger(__name__)

FOREMOST = 4  # gains, and regressions, that are not folded away


def render(run_dirs: list[Path], output: Path, *, title: str | None = None, images: int = 60) -> Path:
    """Write a self-contained HTML page about the runs and return its path. The same runs give the same bytes.

    Args:
        run_dirs: run directories; the page names what is missing or broken in them.
        output: the HTML file to write (its folder is made when missing).
        title: the page's title; by default made from the runs' names.
        images: the largest number of images in the gallery, 10 to 25 kB each.

    Raises:
        ReportError: no run directory was named, or one of them is not a folder.
    """
    if not run_dirs:
        raise ReportError("No run directory was named: there is nothing to report. Name at least one folder of runs/.")
    return render_runs([read_run(Path(path)) for path in run_dirs], output, title=title, images=images)


def render_files(
    files: Sequence[str | Path],
    output: Path,
    *,
    source: str | None = None,
    title: str | None = None,
    images: int = 60,
    bootstrap: int = 1000,
) -> Path:
    """Write the same page about caption files; the first is what the others are compared with.

    Args:
        files: caption files of any format.
        output: the HTML file to write.
        source: the images, and references where it has some.
        title: the page's title; by default made from the files' names.
        images: the largest number of images in the gallery.
        bootstrap: resamples per interval.

    Raises:
        CaptuneError: a file or the source that cannot be read, or captions that belong to none of its images.
    """
    from captune.report.files import read_files

    runs = read_files(files, source, bootstrap=bootstrap)
    return render_runs(runs, output, title=title, images=images, noun="file")


def render_runs(
    runs: list[Run], output: Path, *, title: str | None = None, images: int = 60, noun: str = "run"
) -> Path:
    """Write the page about runs that have been read; `noun` is what they are. See `render`."""
    runs = _distinct(runs)
    groups, controls = split_controls(group_rows(runs))
    source, rows = next(iter(groups.items()), ("", []))
    truth = load_truth(source)
    shown = gallery.build(rows, truth, limit=images)
    columns = table.columns_of(rows)
    sentence, figures = table.headline(rows, columns, shown.images)
    if noun == "file" and not figures:
        sentence = f"Captions of {counted(shown.images, 'image')}; without references only their health is measured."
    script = asset("page.js")
    plots = curves.plots(runs)
    html = (
        environment()
        .from_string(asset("page.html.j2"))
        .render(
            title=title or _title(runs),
            sentence=sentence,
            figures=figures,
            runs=runs,
            noun=noun,
            sources=[_source(name, group, truth if name == source else Truth()) for name, group in groups.items()],
            plots=[plot for plot in plots if plot.main],
            more_plots=[plot for plot in plots if not plot.main],
            gallery=shown,
            gallery_source=source,
            first=FOREMOST,
            controls=_controls(controls),
            monitors=[report for run in runs if (report := monitor_report(run, source, truth)) is not None],
            notes=truth.notes,
            bad_images=sorted({line for run in runs for line in run.bad_images}),
            signatures=_signatures([*rows, *controls]),
            style=Markup(asset("page.css")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
    return write(Path(output), html)


def environment() -> Environment:
    """Return what fills a page's template; a name that is missing is an error."""
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)


def asset(name: str) -> str:
    """Return the text of a file that stands beside this one."""
    return (resources.files("captune.report") / name).read_text(encoding="utf-8")


def _distinct(runs: list[Run]) -> list[Run]:
    """Runs of the same folder name get the name of the folder above in theirs."""
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = f"{run.path.resolve().parent.name}/{run.name}"
            run.rows = [Row(**{**vars(row), "run": run.name}) for row in run.rows]
    return runs


def _title(runs: list[Run]) -> str:
    names = [run.name for run in runs]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _source(name: str, rows: list[Row], truth: Truth) -> dict[str, object]:
    main, every = table.columns_of(rows), table.columns_of(rows, every=True)
    health = table.columns_of(rows, health=True)
    captioned = sorted({image_id for row in rows for image_id in row.captions})
    of_references = health_of_references(truth, captioned) if health else {}
    examined = rows
    if of_references:
        scores = {column.scorer: {"values": of_references} for column in health if column.scorer == "health"}
        examined = [Row("references", "other", "", name, scores, {}), *rows]
    return {
        "name": name,
        "images": span(table.judged(rows) or {len(row.captions) for row in rows if row.captions}),
        "table": table.build_table(rows, main),
        "every": table.build_table(rows, every, gaps=False, speed=False) if len(every) > len(main) else None,
        "health": table.build_table(examined, health, gaps=False, rank=False, speed=False) if health else None,
        "gap_note": _gap_note(rows) if all(row.note is None for row in rows) else "",
        "intervals": any(result.get("interval") for row in rows for result in row.scores.values()),
    }


def _controls(rows: list[Row]) -> dict[str, object] | None:
    if not rows:
        return None
    figures = [table.without_interval(row) for row in rows]
    columns = table.columns_of(figures)
    return {
        "sources": list(dict.fromkeys(row.source for row in rows)),
        "table": table.build_table(figures, columns, gaps=False, rank=False, speed=False),
    }


def _gap_note(rows: list[Row]) -> str:
    lacking = [role for role in ("base", "supervised") if table.first_with_role(rows, role) is None]
    if not lacking or len(rows) < 3:
        return ""
    return f"“Gap closed” is not shown: it needs a {' and a '.join(lacking)} row."


def _signatures(rows: list[Row]) -> list[str]:
    signatures = (result.get("signature") for row in rows for result in row.scores.values())
    return list(dict.fromkeys(str(signature) for signature in signatures if signature))


def write(output: Path, html: str) -> Path:
    """Write a page in one step, its folder too; return its path."""
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(output, whole(html))
    log.info("wrote %s (%.1f MB)", output, output.stat().st_size / 1e6)
    return output
