"""What a run leaves behind: a folder that says what was done, with what, and what came of it.

    config.yaml  versions.json  gate.json  metrics.jsonl  captions/<name>.jsonl  scores.json  adapter/  mapper/
    checkpoint-*/  report.html  README.md (the model card)  finished.json (written last: a run that has it is finished)

Files are replaced in one step, so a crash leaves the old one or the new one. None holds a time of day: the same seed
on the same machine gives the same bytes, but for the command and the path of the adapter in the card. One process at a
time writes: it holds a lock that ends with it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from captune.errors import RunError, redact
from captune.runs import checkpoints
from captune.utils import processes
from captune.utils.files import (
    cut_torn_line,
    discard,
    lock_folder,
    locks,
    naming,
    read_jsonl,
    refuse_pipes,
    remove_leftovers,
    replace_file,
)
from captune.utils.hashing import fingerprint
from captune.utils.versions import command_line, versions

logger = logging.getLogger(__name__)

CARD = "README.md"
FINISHED = "finished.json"
CLEARING = ".clearing"  # there while an earlier run is being removed
GATE = "gate.json"  # what a reward was worth on four kinds of captions before training on it
MILESTONES = ".milestones.json"  # {what is done: lines that metrics.jsonl had then}
LONGEST_NAME = 120  # bytes of a caption file's name, to which endings are added
FORMAT = 2  # of a run folder, in versions.json: since 2, checkpoints and finished runs are marked
# What a run writes besides its card and its checkpoints.
FILES = (
    "config.yaml",
    "versions.json",
    GATE,
    "metrics.jsonl",
    "watch.jsonl",
    "captions",
    "scores.json",
    "adapter",
    "model",
    "mapper",
    "report.html",
    FINISHED,
    MILESTONES,
)
# Where what was trained so far lies: a run with none of it has nothing to lose.
RESULTS = (FINISHED, CARD, "adapter", "model", "mapper", "captions", "scores.json", "metrics.jsonl")
NOT_SETTINGS = frozenset(("output", "resume", "overwrite", "accept_reward"))  # they decide no figure
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


_locks: dict[Path, int] = {}  # the open run folders that this process writes, until it ends


class RunDir:
    """A run folder. Making the object touches nothing; `start` writes, everything else needs a started run.

    `start` is `claim`, which checks and locks, and `begin`, which writes: what may still refuse stands between them.

    ::

        run = RunDir("runs/g").start(config, resume=config.resume, overwrite=config.overwrite)
        run.log(step=10, loss=0.3)
        model.save_pretrained(run.adapter)
        run.finish(run.card(method="ViZer", base="storybook", data="storybook:unlabelled"))

    Args:
        path: the folder.
        parts: folders that this kind of run has besides `FILES`.
    """

    def __init__(self, path: str | os.PathLike[str], parts: Sequence[str] = ()) -> None:
        self.path, self.parts = Path(path), parts
        self.resumes = False  # whether what is there is kept; `claim` decides
        self.done = False  # whether it is finished with the settings of `claim`: nothing is left to do
        self._settings: dict[str, Any] | None = None  # claimed and not begun
        self._command: str | None = None
        self._deferred: list[Callable[[], object]] = []

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
        """captions/<name>.jsonl; characters other than letters, digits and "._-" become "-".

        A long name, such as a reward with paths in it, is cut and ends with a digest: a file's has 255 bytes at most.
        """
        safe = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "captions"
        if len(safe.encode()) > LONGEST_NAME:
            safe = f"{safe.encode()[:LONGEST_NAME].decode(errors='ignore')}-{fingerprint(name)}"
        (self.path / "captions").mkdir(parents=True, exist_ok=True)
        return self.path / "captions" / f"{safe}.jsonl"

    def checkpoints(self) -> list[Path]:
        """checkpoint-<step> folders by step, the last one last; `captune.runs.checkpoints` tells which are complete."""
        return checkpoints.checkpoints(self.path)

    def steps_done(self, max_steps: int) -> int:
        """Return the last step that need not be done again, where each round of a run has `max_steps`."""
        rounds = sorted(self.path.glob("round-*"), key=lambda path: int(path.name[6:]))
        finished = sum((path / "adapter").is_dir() for path in rounds)
        last = checkpoints.newest(rounds[finished] if finished < len(rounds) else self.path)
        return finished * max_steps + (checkpoints.step_of(last) if last else 0)

    @property
    def finished(self) -> bool:
        """Whether the run has its last file; in a run of an earlier version that is its model card."""
        if (self.path / FINISHED).is_file():
            return True
        card = self.path / CARD
        return self._former() and card.is_file() and "- image-captioning" in card.read_text("utf-8", errors="replace")

    def _former(self) -> bool:
        """Whether a version wrote this that marked neither checkpoints nor finished runs."""
        try:
            return "format" not in self.versions
        except RunError:
            return False

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
            overwrite: replace a run with other settings.
            may_change: the settings that may differ when a run is resumed.
            command: the command to record; default: the one that is running.

        Raises:
            RunError: the folder may not be taken.
        """
        self.claim(config, resume=resume, overwrite=overwrite, may_change=may_change, command=command)
        return self.begin()

    def claim(
        self,
        config: Any,
        *,
        resume: bool = False,
        overwrite: bool = False,
        may_change: Collection[str] = (),
        command: str | None = None,
        former: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> RunDir:
        """Lock the folder for this process and check that it may be taken; nothing in it changes before `begin`.

        Args:
            config: as for `start`.
            resume: as for `start`.
            overwrite: as for `start`.
            may_change: as for `start`.
            command: as for `start`.
            former: turns the settings of an earlier version into those of today.

        Raises:
            RunError: the folder may not be taken, or another process writes it.
        """
        settings = plain(config)
        if not isinstance(settings, dict):
            raise RunError(f"settings must be a dataclass or a mapping, not {type(config).__name__}")
        self.resumes, self.done = processes.on_first(self._take, settings, resume, overwrite, may_change, former)
        self._settings, self._command = settings, command
        return self

    def _take(
        self,
        settings: dict[str, Any],
        resume: bool,
        overwrite: bool,
        may_change: Collection[str],
        former: Callable[[dict[str, Any]], dict[str, Any]] | None,
    ) -> tuple[bool, bool]:
        """Lock and check for `claim`; return whether the run resumes, and whether it is done."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file, not a folder for a run")
        refuse_pipes(self.path, error=RunError)
        self._lock()
        changed: dict[str, str] = {}
        if (self.path / CLEARING).exists():
            resume = False
        elif (self.path / "config.yaml").is_file():
            old = self.config
            changed = differences(former(old) if former else old, settings)
            if changed and not self._results() and not overwrite:
                resume = False  # nothing was done with the other settings
            elif changed and resume and changed.keys() <= set(may_change):
                logger.warning("%s is resumed with other settings: %s", self.path, "; ".join(changed.values()))
            elif changed and not overwrite:
                what = "a finished run" if self.finished else "a run"
                raise RunError(
                    f"{self.path} holds {what} with other settings ({'; '.join(changed.values())}); "
                    "name another --output, or pass --overwrite"
                )
        elif (taken := self._present()) not in ([], ["versions.json"]):
            raise RunError(f"{self.path} is not a run folder but holds {', '.join(taken)}; name another --output")
        return resume, resume and self.finished and not changed

    @property
    def begun(self) -> bool:
        """Whether there is nothing left for `begin` to do."""
        return self._settings is None

    def begin(self) -> RunDir:
        """Write the settings of a claimed run; remove an earlier run's files, or prepare its own to be resumed from."""
        if self._settings is not None:
            settings, self._settings = self._settings, None
            processes.on_first(self._prepare, settings)
        return self

    def _prepare(self, settings: dict[str, Any]) -> None:
        if not self.resumes:
            self._clear()
        elif self._former():
            for folder in (self.path, *self.path.glob("round-*")):
                checkpoints.adopt(folder)
        config = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        replace_file(self.path / "config.yaml", config)  # first: a folder with it is a run
        facts = versions() | {"processes": processes.number()}
        facts |= {"command": self._command or command_line(), "format": FORMAT}
        replace_file(self.path / "versions.json", _json(facts | self._earlier(facts)))
        (self.path / CLEARING).unlink(missing_ok=True)
        remove_leftovers(self.path)
        (self.path / FINISHED).unlink(missing_ok=True)
        for call in self._deferred:
            call()
        self._deferred.clear()

    def _earlier(self, facts: dict[str, Any]) -> dict[str, str]:
        """What the steps before a resume were made with, where it was something else; it is said."""
        try:
            old = self.versions if self.resumes else {}
        except RunError:
            return {}
        other = [
            name for name in old if name in facts and name not in ("command", "format") and old[name] != facts[name]
        ]
        then, now = (", ".join(f"{name} {made[name]}" for name in other) for made in (old, facts))
        if other:
            logger.warning("%s was begun with %s, and is resumed with %s", self.path, then, now)
        said = "; ".join(filter(None, (old.get("earlier"), then)))
        return {"earlier": said} if said else {}

    def recover(self) -> None:
        """Set incomplete checkpoints aside, and cut metrics.jsonl to what it held at the last thing done."""
        for folder in (self.path, *self.path.glob("round-*")):
            checkpoints.set_aside(folder)
        self._rewind()

    def when_begun(self, call: Callable[[], object]) -> None:
        """Call something that writes or reads the folder when `begin` has prepared it; at once where it has."""
        if processes.rank():
            return  # the first process writes
        if self._settings is None:
            call()
        else:
            self._deferred.append(call)

    def _lock(self) -> None:
        """Hold the folder's lock until this process ends, however it ends."""
        key = Path(os.path.abspath(self.path))
        if key in _locks:
            if locks(_locks[key], self.path):
                return
            os.close(_locks.pop(key))  # of a folder that was removed or moved since
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = lock_folder(self.path)
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror}; name another --output") from error
        if file is None:
            raise RunError(f"{self.path} is being written by another process; wait for it, or name another --output")
        _locks[key] = file

    def _present(self) -> list[str]:
        return [name for name in (*FILES, CARD, *self.parts) if (self.path / name).exists()]

    def _results(self) -> bool:
        return any((self.path / name).exists() for name in RESULTS) or any(
            any(self.path.glob(name)) for name in ("checkpoint-*", "round-*", "*/checkpoint-*", "*/adapter")
        )

    def _clear(self) -> None:
        """Remove an earlier run. If killed in between, the next start of any settings removes the rest."""
        parts = [
            *self.checkpoints(),
            *self.path.glob("round-*"),
            *self.path.glob(f"{checkpoints.ASIDE}checkpoint-*"),
        ]
        names = [FINISHED, CARD, *(p.name for p in parts), *self.parts, *reversed(FILES)]
        there = [path for path in (self.path / name for name in names) if path.exists() or path.is_symlink()]
        if there:
            replace_file(self.path / CLEARING, "")
        for path in there:
            if path.is_dir() and not path.is_symlink():
                discard(path)
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
    def gate(self) -> dict[str, Any]:
        """The content of gate.json; empty for a run without it.

        Raises:
            RunError: the file is broken.
        """
        return self._read(GATE, json.loads) if (self.path / GATE).is_file() else {}

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
        if processes.rank():
            return
        path = self.path / "metrics.jsonl"
        if path.exists():
            cut_torn_line(path)
        with naming(path), path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(plain({"step": step, **numbers}), ensure_ascii=False, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        return read_jsonl(path) if path.exists() else []

    def lines(self) -> int:
        """The number of lines of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def milestone(self, artefact: Path) -> None:
        """Note what metrics.jsonl holds now that a file or folder of the run is about to be put in its place."""
        if processes.rank():
            return
        name = os.path.relpath(artefact, self.path)
        replace_file(self.path / MILESTONES, _json(self._milestones() | {name: self.lines()}))

    def _milestones(self) -> dict[str, int]:
        path = self.path / MILESTONES
        return self._read(MILESTONES, json.loads) if path.exists() else {}

    def _rewind(self) -> None:
        known = [n for name, n in self._milestones().items() if (self.path / name).exists()]
        found = [path for folder in (self.path, *self.path.glob("round-*")) for path in checkpoints.checkpoints(folder)]
        marked: list[Any] = [checkpoints.facts(path).get("lines") for path in found]
        if None in marked:  # of an earlier version: by steps
            self.rewind(self.steps_done(self.config.get("max_steps", 0)), keep="mapper_loss")
            return
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)[: max([0, *known, *marked])]
            replace_file(path, b"".join(lines).decode("utf-8"))

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
        """Write the model card (see `card`), beside the adapter too, and mark the run as finished."""
        for folder in (self.path, self.adapter):
            if folder.is_dir():
                replace_file(folder / CARD, redact(card))
        replace_file(self.path / FINISHED, _json({"format": FORMAT}))
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
        scores = [(row.get("rewarded", ()), *score) for row in rows for score in row["scores"].items()]
        return model_card(
            name=self.path.resolve().name,
            adapter=str(self.adapter),
            method=method,
            base=base,
            data=data,
            description=description,
            figures=plain(figures),
            trained=trained[-1] if trained else None,
            source=self.scores().get("source"),
            images={score["n"] for _, _, score in scores if score.get("n")},
            trained_on=any(row.get("trained_on") for row in rows),
            rewarded={key for names, name, score in scores if name in names for key in score.get("values") or ()},
            gate=self.gate.get("sentence", ""),
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
    if type(value) is str:
        return redact(value)
    if value is None or isinstance(value, bool | int):
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
