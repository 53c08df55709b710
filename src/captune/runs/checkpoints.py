"""Checkpoints that are complete or ignored.

A checkpoint is complete when it has `complete.json`, written last, which lists its files with sizes and digests. An
incomplete one (its process was killed, the disk was full, a file was cut or removed since) is never resumed from.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from captune.utils.files import discard, replace_file, sync, sync_folder

logger = logging.getLogger(__name__)

MARKER = "complete.json"
STATE = "trainer_state.json"
ASIDE = "incomplete-"  # a name that neither `checkpoints` nor transformers takes for a checkpoint


def checkpoints(output: Path) -> list[Path]:
    """Return the folders checkpoint-<step> of a run, whole or not, by step."""
    found = [(int(p.name[11:]), p) for p in output.glob("checkpoint-*") if p.is_dir() and p.name[11:].isdecimal()]
    return [path for _, path in sorted(found)]


def step_of(checkpoint: Path) -> int:
    """Return a checkpoint's step."""
    return int(checkpoint.name.rpartition("-")[2])


def complete(checkpoint: Path, **facts: Any) -> None:
    """Put a checkpoint on the disk and mark it as complete.

    Args:
        checkpoint: the folder, all of whose files are written.
        facts: further entries of the marker.
    """
    sync_folder(checkpoint)
    files = {
        path.relative_to(checkpoint).as_posix(): [path.stat().st_size, _digest(path)]
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }
    replace_file(checkpoint / MARKER, json.dumps({"files": files, **facts}) + "\n")
    sync(checkpoint)
    sync(checkpoint.parent)


def facts(checkpoint: Path) -> dict[str, Any]:
    """Return what the marker holds; nothing without a valid one."""
    try:
        marker = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) and isinstance(marker.get("files"), dict) else {}


def flaw(checkpoint: Path, *, digests: bool = True) -> str | None:
    """Return why a checkpoint is not complete; None where it is.

    Args:
        checkpoint: the folder.
        digests: read the files as well, not only their sizes.
    """
    marker = facts(checkpoint)
    if not marker:
        return f"it has no valid {MARKER}, which is written last"
    for name, (size, digest) in marker["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes of {size}"
        if digests and _digest(path) != digest:
            return f"{name} has changed since it was written"
    return None


def trainer_state(checkpoint: Path) -> dict[str, Any]:
    """Return what transformers' trainer wrote about itself."""
    return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))


def best_of(checkpoint: Path) -> Path | None:
    """Return the checkpoint that a complete one names as the best so far; None where it names none."""
    state = trainer_state(checkpoint)
    step = state.get("best_global_step")
    return checkpoint.with_name(f"checkpoint-{step}") if step and state.get("best_model_checkpoint") else None


def newest(output: Path, *, digests: bool = False) -> Path | None:
    """Return the newest checkpoint that can be resumed from: complete, and so is the best one that it names."""
    return next((path for path in reversed(checkpoints(output)) if problem(path, digests=digests) is None), None)


def problem(checkpoint: Path, *, digests: bool = True) -> str | None:
    """Return why a checkpoint cannot be resumed from; None where it can."""
    why = flaw(checkpoint, digests=digests)
    if why is None and (best := best_of(checkpoint)) not in (None, checkpoint):
        assert best is not None
        lacking = flaw(best, digests=digests) if best.is_dir() else "it is missing"
        why = f"its best checkpoint {best.name} is not complete: {lacking}" if lacking else None
    return why


def set_aside(output: Path) -> None:
    """Rename checkpoints newer than the newest usable one, each named in the log; remove what was set aside before."""
    earlier = list(output.glob(f"{ASIDE}checkpoint-*"))
    broken = []
    for path in reversed(checkpoints(output)):
        why = problem(path)
        if why is None:
            break
        broken.append((path, why))
    for path in earlier if broken else []:
        discard(path)
    for path, why in broken:
        logger.warning("%s is incomplete and set aside as %s: %s", path, f"{ASIDE}{path.name}", why)
        path.rename(path.with_name(f"{ASIDE}{path.name}"))


def rotate(output: Path, limit: int, best: str | None) -> None:
    """Remove the oldest checkpoints but `limit`; never the newest, and not the best."""
    kept = checkpoints(output)
    spare = [path for path in kept[:-1] if best is None or path.name != Path(best).name]
    for path in spare[: max(0, len(kept) - limit)]:
        discard(path)


def adopt(output: Path) -> None:
    """Mark the checkpoints of a version that wrote no marker, where all of a checkpoint's files can be read."""
    import torch
    from safetensors import safe_open

    for path in checkpoints(output):
        if (path / MARKER).exists():
            continue
        try:
            trainer_state(path)
            for file in (path / "optimizer.pt", path / "scheduler.pt"):
                torch.load(file, map_location="cpu", weights_only=True)
            if not any(path.glob("rng_state*.pth")):
                continue
            weights = list(path.glob("*.safetensors"))
            for file in weights:
                with safe_open(file, framework="pt"):
                    pass
        except Exception as error:  # whatever a cut file makes its reader say
            logger.debug("%s: %s", path, error)
            continue
        if weights:
            complete(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
