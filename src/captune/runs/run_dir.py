"""What a run leaves behind: a folder that says what was done, with what, and what came of it.

    config.yaml  versions.json  metrics.jsonl  captions/<name>.jsonl  scores.json  adapter/  mapper/  checkpoint-*/
    report.html  README.md (the model card, written last: a run that has one is finished)

Files are replaced in one step, so a crash leaves the old one or the new one. None holds a time of day: the same seed
on the same machine gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from captune.errors import RunError
from captune.utils.files import cut_torn_line, read_jsonl, replace_file
from captune.utils.versions import command_line, versions

logger = logging.getLogger(__name__)

CARD = "README.md"
# What a run writes besides its card and its checkpoints.
FILES = (
    "config.yaml",
    "versions.json",
    "metrics.jsonl",
    "watch.jsonl",
    "captions",
    "scores.json",
    "adapter",
    "model",
    "mapper",
    "report.html",
)
NOT_SETTINGS = frozenset(("output", "resume", "overwrite"))
# The part that a row of scores.json plays in a comparison. Whoever writes the row knows it.
ROLES = {
    "base": "the captioner before training",
    "zero": "trained without labels",
    "gt": "trained without labels, with a mapper that has seen some",
    "trained": "trained on a reward",
    "supervised": "trained on labels: the ceiling",
    "other": "anything else",
    "control": "what a gain has to be compared with",
}


class RunDir:
    """A run folder. Making the object touches nothing; `start` writes, everything else needs a started run.

    ::

        run = RunDir("runs/g").start(config, resume=config.resume, overwrite=config.overwrite)
        run.log(step=10, loss=0.3)
        model.save_pretrained(run.adapter)
        run.finish(run.card(method="ViZer", base="storybook", data="storybook:unlabelled"))

    Args:
        path: the folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    # -------------------------------------------------------------- paths

    @property
    def adapter(self) -> Path:
        """The folder of the LoRA adapter."""
        return self.path / "adapter"

    @property
    def mapper(self) -> Path:
        """The folder of ViZer's mapper."""
        return self.path / "mapper"

    def captions(self, name: str) -> Path:
        """captions/<name>.jsonl; characters other than letters, digits and "._-" become "-"."""
        safe = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "captions"
        (self.path / "captions").mkdir(parents=True, exist_ok=True)
        return self.path / "captions" / f"{safe}.jsonl"

    def checkpoints(self) -> list[Path]:
        """checkpoint-<step> folders by step, the last one last."""
        steps = [
            (int(p.name[11:]), p) for p in self.path.glob("checkpoint-*") if p.is_dir() and p.name[11:].isdecimal()
        ]
        return [path for _, path in sorted(steps)]

    @property
    def finished(self) -> bool:
        """Whether the run has its model card, which is written last."""
        return (self.path / CARD).is_file()

    # --------------------------------------------------------------- start

    def start(
        self,
        config: Any,
        *,
        resume: bool = False,
        overwrite: bool = False,
        may_change: Collection[str] = (),
        command: str | None = None,
    ) -> RunDir:
        """Start or resume a run: write config.yaml and versions.json.

        Args:
            config: the settings, a dataclass or a mapping.
            resume: keep what an earlier run left here; otherwise it is removed by the names that a run uses, and other
                files stay.
            overwrite: take a folder that holds a run with other settings, or no run but such names.
            may_change: the settings that may differ when a run is resumed.
            command: the command to record; default: the one that is running.

        Raises:
            RunError: the folder may not be taken.
        """
        settings = plain(config)
        if not isinstance(settings, dict):
            raise RunError(f"settings must be a dataclass or a mapping, not {type(config).__name__}")
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file, not a folder for a run")
        if (self.path / "config.yaml").is_file():
            changed = differences(self.config, settings)
            if changed and resume and changed.keys() <= set(may_change):
                logger.warning("%s is resumed with other settings: %s", self.path, "; ".join(changed.values()))
            elif changed and not overwrite:
                what = "a finished run" if self.finished else "a run"
                raise RunError(
                    f"{self.path} holds {what} with other settings ({'; '.join(changed.values())}); "
                    "name another --output, or pass --overwrite"
                )
        elif not overwrite and (taken := self._present()):
            raise RunError(f"{self.path} is not a run folder but holds {', '.join(taken)}; name another --output")
        if not resume:
            self._clear()
        self.path.mkdir(parents=True, exist_ok=True)
        replace_file(self.path / "versions.json", _json(versions() | {"command": command or command_line()}))
        replace_file(self.path / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        return self

    def _present(self) -> list[str]:
        return [name for name in (*FILES, CARD) if (self.path / name).exists()]

    def _clear(self) -> None:
        # the card first and config.yaml last: a run that is killed in between is unfinished, and still a run
        parts = [*self.checkpoints(), *self.path.glob("round-*")]
        names = [CARD, *(p.name for p in parts), *reversed(FILES)]
        for path in (self.path / name for name in names):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    @property
    def config(self) -> dict[str, Any]:
        """The settings in config.yaml.

        Raises:
            RunError: the file is missing or broken.
        """
        return self._read("config.yaml", yaml.safe_load)

    @property
    def versions(self) -> dict[str, Any]:
        """The library versions and the command in versions.json.

        Raises:
            RunError: the file is missing or broken.
        """
        return self._read("versions.json", json.loads)

    def _read(self, name: str, parse: Any) -> dict[str, Any]:
        path = self.path / name
        try:
            content = parse(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunError(f"{self.path} is not a run folder: it has no {name}") from error
        except (yaml.YAMLError, ValueError) as error:
            raise RunError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise RunError(f"{path} must hold names and values, it holds {type(content).__name__}")
        return content

    # ------------------------------------------------------------- metrics

    def log(self, step: float, **numbers: Any) -> None:
        """Append {"step", name: number…} to metrics.jsonl; one-element tensors become numbers, NaN becomes null."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            cut_torn_line(path)
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(plain({"step": step, **numbers}), ensure_ascii=False, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        return read_jsonl(path) if path.exists() else []

    def rewind(self, step: int, keep: str | None = None) -> None:
        """Drop what was logged after `step`, except rows with the number `keep`: a run that resumes logs it again."""
        kept = [row for row in self.metrics() if row.get("step", 0) <= step or keep in row]
        replace_file(self.path / "metrics.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))

    # -------------------------------------------------------------- scores

    def scores(self) -> dict[str, Any]:
        """The content of scores.json: {"rows": [...], "source", "bad_images"}."""
        path = self.path / "scores.json"
        return self._read("scores.json", json.loads) if path.exists() else {"rows": []}

    def add_scores(
        self,
        name: str,
        scores: Mapping[str, Any],
        *,
        role: str | None = None,
        source: str | None = None,
        captions: Path | None = None,
        images_per_second: float | None = None,
        bad_images: Sequence[tuple[str, str]] = (),
        **extra: Any,
    ) -> None:
        """Write a row to scores.json; a row of the same name is replaced.

        Args:
            name: the row's name in tables.
            scores: {scorer: result}; a result has values, interval and signature as attributes or as keys.
            role: the part that the row plays in a comparison, one of `ROLES`.
            source: what was captioned.
            captions: the caption file; relative to the run where it lies inside.
            images_per_second: how fast the captions were made.
            bad_images: (image_id, why) of the images left out.
            extra: further entries of the row.

        Raises:
            RunError: an unknown role, or a result without values.
        """
        if role is not None and role not in ROLES:
            raise RunError(f"unknown role {role!r} of the row {name!r} (known: {', '.join(ROLES)})")
        row: dict[str, Any] = {"name": name, "scores": {key: _score(value) for key, value in scores.items()}}
        if captions is not None:
            inside = captions.resolve().is_relative_to(self.path.resolve())
            row["captions"] = os.path.relpath(captions, self.path) if inside else os.path.abspath(captions)
        if images_per_second is not None:
            row["images_per_second"] = plain(images_per_second)
        if role is not None:
            row["role"] = role
        row.update(plain(extra))
        content = self.scores()
        rows = content.setdefault("rows", [])
        names = [old.get("name") for old in rows]
        if name in names:
            rows[names.index(name)] = row
        else:
            rows.append(row)
        if source is not None and content.setdefault("source", source) != source:
            row["source"] = source
        if bad_images:
            listed = {bad["item"] for bad in content.setdefault("bad_images", [])}
            content["bad_images"] += [{"item": item, "why": why} for item, why in bad_images if item not in listed]
        replace_file(self.path / "scores.json", _json(content))

    # --------------------------------------------------------------- finish

    def finish(self, card: str) -> RunDir:
        """Write the model card (see `card`), which marks the run as finished."""
        replace_file(self.path / CARD, card)
        return self

    def card(
        self,
        *,
        method: str,
        base: str,
        data: str,
        figures: Mapping[str, Any] | None = None,
        command: str | None = None,
        description: str = "",
    ) -> str:
        """A model card in Markdown.

        Args:
            method: how the model was trained.
            base: the captioner that it was trained from.
            data: the training data.
            figures: {row: {name: number}}; default: the values in scores.json.
            command: the command that made it; default: the recorded one.
            description: the first paragraph.
        """
        from captune.runs.card import model_card

        rows = self.scores()["rows"]
        if figures is None:
            figures = {
                row["name"]: {k: v for score in row["scores"].values() for k, v in (score.get("values") or {}).items()}
                for row in rows
            }
        trained = [row["name"] for row in rows if row.get("role") not in ("base", "control")]
        return model_card(
            name=self.path.resolve().name,
            method=method,
            base=base,
            data=data,
            description=description,
            figures=plain(figures),
            trained=trained[-1] if trained else None,
            source=self.scores().get("source"),
            command=command or self.versions.get("command") or command_line(),
            versions=self.versions,
        )


# -------------------------------------------------------------------- helpers


def plain(value: Any) -> Any:
    """Dataclasses, paths, tuples, sets, numpy and torch values as YAML and JSON hold them; NaN and infinity as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, bool | int) or type(value) is str:
        return value
    if isinstance(value, str):  # an enum or numpy string
        return str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return plain(value.tolist())
    return str(value)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """{name: "name: old then, new now"} of the settings that differ; the output folder is not a setting."""
    keys = sorted((old.keys() | new.keys()) - NOT_SETTINGS)
    return {key: f"{key}: {old.get(key)!r} then, {new.get(key)!r} now" for key in keys if old.get(key) != new.get(key)}


def _score(result: Any) -> dict[str, Any]:
    get = result.get if isinstance(result, Mapping) else lambda key, default=None: getattr(result, key, default)
    row = {key: plain(get(key)) for key in ("values", "interval", "signature", "n") if get(key) is not None}
    if "values" not in row:
        raise RunError(f"a score needs values, interval and signature; got {result!r}")
    return row


def _json(content: Any) -> str:
    return json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
