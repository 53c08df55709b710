"""What people change in a caption file: kept in a journal beside it, and merged into it.

    captions.jsonl              the captions as they stand now; `captune evaluate` and every other reader take this file
    captions.jsonl.edits.jsonl  every edit: who, when, which image, the caption and its state before and after

An edit is a line that is appended to the journal and on the disk before it is acknowledged: whatever was acknowledged
survives a kill, and costs a line, however long the caption file is. The caption file is rewritten from the journal in
the background, at most once in `MERGE_AFTER` seconds, in one step (a temporary file takes its place), and when the
page ends; only the ``caption`` of corrected rows changes in it, every other byte stays. What a killed process had not
merged is merged by the next one; until then `read_captions` warns that the file is behind its journal.

Verdicts (accepted, rejected) stand in the journal alone. One process at a time edits a file: both files are locked, so
that `captune caption` does not append to it meanwhile. A program that takes no lock is noticed by the file's size and
time: the file is read again, its captions win where it changed them, such captions are open again, and it is said.

An edit names the version that its author saw. Where the caption has changed since, `Stale` is raised and nothing is
written.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self
from zlib import crc32

from captune.data import read_captions
from captune.data.captions import EDITS, is_jsonl
from captune.data.readers import nfc
from captune.errors import AnnotationError, CaptionFileError, CaptuneError
from captune.utils.files import cut_torn_line, jsonl_line, jsonl_rows, lock, sync

log = logging.getLogger(__name__)

MERGE_AFTER = 1.0
"""Seconds from an edit to the merge that takes it into the caption file."""

SETTLED = 0.1
"""Seconds for which a file that another program changed has to stay as it is before it is read."""

STATES = ("open", "accepted", "corrected", "rejected")
HALF = re.compile("[\ud800-\udfff]")
LONGEST = 20_000  # characters of a corrected caption
LONGEST_NAME = 60  # characters of a rater's name
_VERBS = {"open": "reopen", "accepted": "accept", "rejected": "reject"}
_BUSY = "another process is writing to it; wait for it to end"


@dataclass(frozen=True)
class Edit:
    """One line of the journal.

    Attributes:
        time: when, UTC, ISO 8601.
        by: the rater; "" for a change that the file itself brought.
        image_id: whose caption.
        action: correct, accept, reject, reopen, undo, or file (another program changed the caption).
        before: the caption before.
        after: the caption after.
        was: the state before.
        state: the state after.
        undoes: of an undo, the number of the edit that it takes back.
    """

    time: str
    by: str
    image_id: str
    action: str
    before: str
    after: str
    was: str
    state: str
    undoes: int | None = None


class Stale(AnnotationError):
    """An edit of a caption that has changed since its author saw it."""


class Reviewed:
    """The captions of a file with their states and their history, replayed from the journal; nothing is written.

    Args:
        path: a caption file of JSON lines.

    Attributes:
        path: the caption file.
        journal: the file of the edits.
        captions: {image_id: caption}, in file order, edits that are not merged yet included.
        rows: {image_id: its row as the file has it}.
        states: {image_id: state}; what is not there is open.
        edits: all edits, in order.
        notices: sentences about what another program did.
        trouble: why the file cannot be read or written now; "" where it can.
        reads: how often the file was read.

    Raises:
        CaptionFileError: the file is not one of JSON lines, or its journal cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.journal = self.path.with_name(self.path.name + EDITS)
        self.captions: dict[str, str] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.states: dict[str, str] = {}
        self.edits: list[Edit] = []
        self.notices: list[str] = []
        self.trouble = ""
        self.reads = 0
        self._of: defaultdict[str, list[int]] = defaultdict(list)  # {image_id: numbers of its edits}
        self._standing: defaultdict[str, list[int]] = defaultdict(list)  # of these, those that were not undone
        self._by: defaultdict[str, list[int]] = defaultdict(list)  # {rater: numbers of what can be undone}
        self._lines: list[bytes] = []
        self._places: dict[str, list[int]] = {}
        self._on_disk: dict[str, str] = {}
        self._merged = 0  # so many edits are in the file
        self._unmerged: set[str] = set()
        self._signature: tuple[int, ...] = ()
        self._replay()
        self._read()
        self._reconcile(None)

    # ---------------------------------------------------------------- reading

    def _replay(self) -> None:
        if not self.journal.exists():
            return
        for number, row in jsonl_rows(self.journal):
            if row.get("action") == "merged":
                self._merged = int(row.get("edits", 0))
                continue
            try:
                edit = Edit(**row)
                self._take(edit)
            except (TypeError, KeyError, IndexError, ValueError):
                raise CaptionFileError(f"{self.journal}, line {number} is no edit of a caption; restore the file, or "
                                       "move it away to begin without its history") from None  # fmt: skip

    def _take(self, edit: Edit) -> None:
        """Follow one edit."""
        if edit.state not in STATES or not isinstance(edit.after, str):
            raise ValueError(edit.state)
        number = len(self.edits)
        if edit.action == "undo":
            undone = -1 if edit.undoes is None else edit.undoes
            self._standing[edit.image_id].remove(undone)
            self._by[self.edits[undone].by].remove(undone)
        else:
            self._standing[edit.image_id].append(number)
            if edit.action != "file":
                self._by[edit.by].append(number)
        self.edits.append(edit)
        self._of[edit.image_id].append(number)
        self.states[edit.image_id] = edit.state
        self.captions[edit.image_id] = edit.after

    def _read(self) -> None:
        """Read the caption file as it is on the disk."""
        if not is_jsonl(self.path):
            raise CaptionFileError(
                f"{self.path} is edited line by line, and is no file of JSON lines: "
                f"captune convert {self.path} {self.path.with_suffix('.jsonl')}"
            )
        while True:
            signature = _signature(self.path)
            on_disk = read_captions(self.path, format="jsonl", behind=False)
            lines = self.path.read_bytes().split(b"\n")
            rows = list(jsonl_rows(self.path))
            if signature == _signature(self.path):
                break
        self._lines, self._signature, self._on_disk = lines, signature, on_disk
        self.reads += 1
        self.rows, self._places = {}, {}
        for number, row in rows:
            image_id = nfc(str(row["image_id"]))
            self.rows.setdefault(image_id, row)
            self._places.setdefault(image_id, []).append(number - 1)

    def _reconcile(self, known: Mapping[str, str] | None) -> None:
        """Bring file and journal together: what is not merged yet is to be merged; what another program wrote wins.

        Args:
            known: {image_id: caption} as the file was read before, to tell what changed since; None: at the start.
        """
        changed: list[str] = []
        gone = [image_id for image_id in (self._of if known is None else known) if image_id not in self._on_disk]
        captions: dict[str, str] = {}
        self._unmerged = set()
        for image_id, text in self._on_disk.items():
            numbers = self._of.get(image_id)
            if not numbers:
                captions[image_id] = text
                if known is not None and known.get(image_id, text) != text:
                    changed.append(image_id)
                continue
            captions[image_id] = self.edits[numbers[-1]].after
            if text == captions[image_id]:
                continue
            merged = [self.edits[n].after for n in numbers if n < self._merged][-1:] or [self.edits[numbers[0]].before]
            if text in merged or text in [self.edits[n].after for n in numbers if n >= self._merged]:
                self._unmerged.add(image_id)
                continue
            changed.append(image_id)
            captions[image_id] = text
            was = self.states.get(image_id, "open")
            self._foreign(Edit(_now(), "", image_id, "file", self.edits[numbers[-1]].after, text, was, "open"))
        new = [image_id for image_id in captions if known is not None and image_id not in known]
        self.captions = captions
        for what, ids in (("changed", changed), ("removed", gone), ("added", new)):
            if ids:
                more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
                state = "; what was reviewed of them is open again" if what == "changed" else ""
                kept = "; their history is kept" if what == "removed" else ""
                self.notices.append(f"another program {what} captions of {self.path.name}: {ids[0]}{more}{state}{kept}")

    def _foreign(self, edit: Edit) -> None:
        self._take(edit)

    # ---------------------------------------------------------------- what is known of a caption

    def state(self, image_id: str) -> str:
        """Return open, accepted, corrected or rejected."""
        return self.states.get(image_id, "open")

    def history(self, image_id: str) -> list[Edit]:
        """Return the edits of a caption, the oldest first."""
        return [self.edits[number] for number in self._of.get(image_id, ())]

    def version(self, image_id: str) -> str:
        """Return what an edit of the caption has to name: it changes whenever the caption or its state does."""
        text = self.captions[image_id].encode("utf-8", "surrogatepass")
        return f"{len(self._of.get(image_id, ()))}-{crc32(text):08x}"

    def former(self, image_id: str) -> str:
        """Return the caption before people changed it: as a captioner, or whatever wrote the file last, had it."""
        former = None
        for edit in self.history(image_id):
            former = edit.after if edit.action == "file" else edit.before if former is None else former
        return self.captions[image_id] if former is None else former

    def raters(self) -> list[str]:
        """Return who has edited captions."""
        return sorted({edit.by for edit in self.edits if edit.by})

    def counts(self) -> dict[str, int]:
        """Return how many captions are in each state."""
        counts = Counter(self.states.get(image_id, "open") for image_id in self._of if image_id in self.captions)
        counts["open"] += len(self.captions) - counts.total()
        return {state: counts[state] for state in STATES}

    def references(self) -> dict[str, str]:
        """Return {image_id: caption} of what was accepted or corrected."""
        good = ("accepted", "corrected")
        return {image_id: text for image_id, text in self.captions.items() if self.state(image_id) in good}

    def corrections(self) -> dict[str, tuple[str, str]]:
        """Return {image_id: (the corrected caption, the former one)} of what was corrected and not rejected since."""
        return {
            image_id: (text, former)
            for image_id, text in self.references().items()
            if (former := self.former(image_id)) != text
        }


class Edits(Reviewed):
    """A caption file that people edit; its methods may be called from many threads.

        with Edits("captions.jsonl") as edits:
            edits.correct("a.jpg", "a brown dog", by="anna", version=edits.version("a.jpg"))

    Args:
        path: a caption file of JSON lines.

    Raises:
        CaptionFileError: it is no such file, or another process writes to it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        self._merging = threading.Lock()
        self._wake, self._ended = threading.Event(), threading.Event()
        self._held = self._hold()
        journal = self.path.with_name(self.path.name + EDITS)
        try:
            self._file = journal.open("ab")
        except OSError:
            self._held.close()
            raise
        try:
            if not lock(self._file):
                raise CaptionFileError(f"{path}: another `captune review` has it open; several people share one page")
            cut_torn_line(journal)
            sync(journal.parent)
            super().__init__(path)
        except BaseException:
            self._close()
            raise
        self._thread = threading.Thread(target=self._merge_in_time, name="merge", daemon=True)
        self._thread.start()
        if self._unmerged:
            self._wake.set()

    def _hold(self) -> IO[bytes]:
        """Lock the caption file against other writers of captune."""
        try:
            held = self.path.open("rb")
        except OSError as error:
            raise CaptionFileError(f"{self.path} cannot be read: {error.strerror}") from error
        if not lock(held):
            held.close()
            raise CaptionFileError(f"{self.path}: {_BUSY}")
        return held

    # ---------------------------------------------------------------- editing

    def correct(self, image_id: str, caption: str, *, by: str, version: str) -> None:
        """Replace a caption; the same caption as before changes nothing.

        Raises:
            Stale: the caption has changed since that version.
            AnnotationError: a caption or a name that cannot be taken, or the disk takes no more.
        """
        caption = caption.strip()
        if not caption:
            raise AnnotationError("a caption needs a word; reject the caption instead")
        if len(caption) > LONGEST:
            raise AnnotationError(f"a caption may have {LONGEST:,} characters; this one has {len(caption):,}")
        with self._lock:
            self._see(image_id, version)
            if caption != self.captions[image_id]:
                self._edit(by, image_id, "correct", caption, "corrected")

    def judge(self, image_id: str, state: str, *, by: str, version: str) -> None:
        """Accept or reject a caption, or open it again; the state that it has changes nothing.

        Raises:
            Stale: the caption has changed since that version.
            AnnotationError: a name or a state that cannot be taken, or the disk takes no more.
        """
        if state not in _VERBS:
            raise AnnotationError(f"a caption is made {', '.join(_VERBS)}; not {state!r}")
        with self._lock:
            self._see(image_id, version)
            if state != self.state(image_id):
                self._edit(by, image_id, _VERBS[state], self.captions[image_id], state)

    def undo(self, by: str) -> str:
        """Take back the last edit of a rater that still stands; return its image.

        Raises:
            AnnotationError: nothing is left to undo, or the caption has changed since.
        """
        with self._lock:
            self.check()
            by = _name(by)
            mine = self._by.get(by, [])
            if not mine:
                raise AnnotationError(f"there is nothing to undo for {by}")
            number = mine[-1]
            edit = self.edits[number]
            if edit.image_id not in self.captions:
                raise AnnotationError(f"the caption of {edit.image_id} is no longer in {self.path.name}")
            if self._standing[edit.image_id][-1] != number:
                who = self.edits[self._standing[edit.image_id][-1]].by or "another program"
                raise AnnotationError(f"{who} has changed the caption of {edit.image_id} since; its history has yours")
            self._edit(by, edit.image_id, "undo", edit.before, edit.was, undoes=number)
            return edit.image_id

    def _see(self, image_id: str, version: str) -> None:
        self.check()
        if image_id not in self.captions:
            raise AnnotationError(f"{self.path.name} has no caption of {image_id!r}")
        if version != self.version(image_id):
            last = self.history(image_id)[-1:]
            who = last[0].by if last and last[0].by else "another program"
            raise Stale(f"{who} has changed this caption since you saw it; nothing of yours was saved")

    def _edit(self, by: str, image_id: str, action: str, after: str, state: str, undoes: int | None = None) -> None:
        before, was = self.captions[image_id], self.state(image_id)
        edit = Edit(_now(), _name(by), image_id, action, before, after, was, state, undoes)
        self._write(edit)
        self._take(edit)
        if before != after:
            self._unmerged.add(image_id)
            self._wake.set()

    def _foreign(self, edit: Edit) -> None:
        self._write(edit)
        self._take(edit)

    def _write(self, edit: Edit) -> None:
        row = asdict(edit)
        if edit.undoes is None:
            del row["undoes"]
        self._append(row)

    def _append(self, row: Mapping[str, Any]) -> None:
        """Append a line and wait until it is on the disk; a line that the disk cannot take leaves nothing behind."""
        end = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(jsonl_line(row).encode("utf-8"))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self._reopen(end)
            raise AnnotationError(f"{self.journal} takes no more: {error.strerror}; nothing was changed") from error

    def _reopen(self, size: int) -> None:
        """What a failed write left in the buffer goes with it."""
        raw = self._file.detach()
        os.ftruncate(raw.fileno(), size)
        self._file = os.fdopen(os.dup(raw.fileno()), "ab")
        raw.close()

    # ---------------------------------------------------------------- the caption file

    def check(self) -> bool:
        """Read the caption file again if another program changed it; return whether it did.

        A file that cannot be read is left as it is, and said in `trouble`; edits stay in the journal.
        """
        with self._lock:
            if _signature(self.path) == self._signature:
                return False
            known = self._on_disk
            try:
                if not os.path.samestat(os.fstat(self._held.fileno()), self.path.stat()):
                    held = self._hold()
                    self._held.close()
                    self._held = held
                _settle(self.path)
                self._read()
            except (CaptionFileError, OSError) as error:
                self.trouble = f"another program changed {self.path.name}, and it cannot be read now: {error}"
                return True
            self.trouble = ""
            self._reconcile(known)
            for notice in self.notices[-3:]:
                log.warning("%s", notice)
            if self._unmerged:
                self._wake.set()
            return True

    def merge(self) -> None:
        """Write what was corrected into the caption file, in one step.

        Raises:
            OSError: it cannot be written; the edits stay in the journal, and the next merge takes them.
        """
        with self._merging:
            with self._lock:
                if self.check() or not self._unmerged:
                    return
                new = {image_id: self.captions[image_id] for image_id in self._unmerged}
                lines, places, count = list(self._lines), self._places, len(self.edits)
                signature = self._signature
            for image_id, text in new.items():
                for place in places[image_id]:
                    row = {**json.loads(lines[place].removeprefix(b"\xef\xbb\xbf")), "caption": text}
                    lines[place] = jsonl_line(row).encode("utf-8").removesuffix(b"\n")
            target = Path(os.path.realpath(self.path))  # a link stays one
            temporary = target.with_name(f".{target.name}.merge.tmp")
            try:
                with temporary.open("wb") as file:
                    file.write(b"\n".join(lines))
                    file.flush()
                    os.fsync(file.fileno())
                temporary.chmod(self.path.stat().st_mode & 0o7777)
                held = temporary.open("rb")
                lock(held)
                with self._lock:
                    if _signature(self.path) != signature or self._signature != signature:
                        held.close()
                        return  # another program was faster: the next merge reads its file first
                    os.replace(temporary, target)
                    self._held.close()
                    self._held = held
                    self._lines, self._signature, self._merged = lines, _signature(self.path), count
                    self._on_disk.update(new)
                    self._unmerged = {i for i in self._unmerged if self.captions[i] != self._on_disk[i]}
                    self._append({"time": _now(), "action": "merged", "edits": count})
                sync(target.parent)
            finally:
                temporary.unlink(missing_ok=True)

    def _merge_in_time(self) -> None:
        pause = MERGE_AFTER
        while not self._ended.is_set():
            self._wake.wait(2)  # and look for other programs' changes
            if self._wake.is_set():
                self._ended.wait(pause)
            self._wake.clear()
            began = time.monotonic()
            try:
                self.check()
                if not self._ended.is_set():
                    self.merge()
                    self.trouble = self.trouble if self._signature != _signature(self.path) else ""
            except (OSError, CaptuneError) as error:
                self.trouble = f"{self.path.name} cannot be written: {error}; the edits are safe in {self.journal.name}"
                self._wake.set()
            pause = max(MERGE_AFTER, 10 * (time.monotonic() - began))

    def close(self) -> None:
        """Merge what is left and let go of both files.

        Raises:
            AnnotationError: the caption file could not be written; the edits are in the journal.
        """
        self._ended.set()
        self._wake.set()
        self._thread.join()
        try:
            self.merge()
            if self._unmerged:
                raise AnnotationError(
                    f"{len(self._unmerged)} corrections are in {self.journal} and not yet in {self.path}: "
                    f"{self.trouble or 'another program changed it'}; the next `captune review` takes them there"
                )
        finally:
            self._close()

    def _close(self) -> None:
        empty = self._file.seek(0, os.SEEK_END) == 0
        self._file.close()
        self._held.close()
        if empty:
            self.journal.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _name(by: str) -> str:
    """A rater's name as it is kept."""
    name = " ".join(str(by).split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise AnnotationError(f"a rater's name is a text of 1 to {LONGEST_NAME} characters: say who you are")
    return name


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _settle(path: Path) -> None:
    """Wait until a file is not being written."""
    before = None
    while before != (before := _signature(path)):
        time.sleep(SETTLED)


def _signature(path: Path) -> tuple[int, ...]:
    """What changes when a file is written; () where it is not there."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns
