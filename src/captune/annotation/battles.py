"""The file of battles and votes: SQLite in WAL mode, each vote on the disk before the rater sees the next battle.

    battles     two captions of an image, as one rater is shown them; asked for again, an open one is shown again
    votes       what was said of a battle; one that was undone stays, with the time, and the battle is open again
    judgements  a view: the votes that count, in the columns that `captune correlate` reads, and whether a model's

A vote brings an id of its own: sent twice, it counts once. A battle has one vote that counts, whatever comes from two
tabs or a double click. Battles hold their captions, so that a file can be read when the caption files are gone, and a
caption that was judged and has changed since is refused.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from captune.data.judgements import MODEL
from captune.errors import AnnotationError
from captune.utils.files import write_csv
from captune.utils.wording import counted

VERDICTS = ("left", "right", "tie", "bad", "skip")
"""What the name of a model that rates begins with; a person's may not."""

VERSION = 1
BUSY = 30.0  # seconds to wait for another process that writes
_APPLICATION = 0x63617074  # "capt", in the header of the file
_SCHEMA = """
CREATE TABLE battles (
    id TEXT PRIMARY KEY, rater TEXT NOT NULL, image_id TEXT NOT NULL,
    left_system TEXT NOT NULL, right_system TEXT NOT NULL, left_caption TEXT NOT NULL, right_caption TEXT NOT NULL,
    issued_at TEXT NOT NULL
);
CREATE INDEX battles_of_rater ON battles (rater);
CREATE TABLE votes (
    id TEXT PRIMARY KEY, battle TEXT NOT NULL REFERENCES battles (id),
    verdict TEXT NOT NULL CHECK (verdict IN ('left', 'right', 'tie', 'bad', 'skip')),
    cast_at TEXT NOT NULL, undone_at TEXT
);
CREATE UNIQUE INDEX one_vote ON votes (battle) WHERE undone_at IS NULL;
CREATE VIEW judgements AS
    SELECT battles.rowid AS battle, rater, image_id,
        CASE WHEN left_system < right_system THEN left_system ELSE right_system END AS system_a,
        CASE WHEN left_system < right_system THEN right_system ELSE left_system END AS system_b,
        CASE WHEN left_system < right_system THEN left_caption ELSE right_caption END AS caption_a,
        CASE WHEN left_system < right_system THEN right_caption ELSE left_caption END AS caption_b,
        CASE WHEN verdict IN ('left', 'right')
            THEN CASE WHEN (verdict = 'left') = (left_system < right_system) THEN 'a' ELSE 'b' END
            ELSE verdict END AS winner,
        verdict, cast_at
    FROM votes JOIN battles ON battles.id = votes.battle WHERE undone_at IS NULL;
"""


class Battle(NamedTuple):
    """A battle as a rater is shown it.

    Attributes:
        id: of the battle.
        rater: whose it is.
        image_id: the image.
        left_system: whose caption stands on the left; not shown.
        right_system: likewise.
        left_caption: the text.
        right_caption: the text.
    """

    id: str
    rater: str
    image_id: str
    left_system: str
    right_system: str
    left_caption: str
    right_caption: str


class Judgement(NamedTuple):
    """A vote that counts; system a is the first of the two by name.

    Attributes:
        rater: who said so.
        image_id: the image.
        system_a: whose caption_a is.
        system_b: likewise.
        caption_a: the text.
        caption_b: the text.
        winner: a, b, tie, bad (both are) or skip.
        verdict: as it was said: left, right, tie, bad or skip.
        cast_at: when, UTC.
    """

    rater: str
    image_id: str
    system_a: str
    system_b: str
    caption_a: str
    caption_b: str
    winner: str
    verdict: str
    cast_at: str


class Battles:
    """The file of an arena; several processes may have it open, and several threads may use one of these.

    Args:
        path: the file; made where it is not there.
        new: False: it must be there.

    Raises:
        AnnotationError: it is no file of an arena, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, new: bool = True) -> None:
        self.path = Path(path)
        if not new and not self.path.is_file():
            raise AnnotationError(f"{self.path} is not there; `captune arena A B --images SOURCE` makes one")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY, isolation_level=None, check_same_thread=False, uri=False
            )
            self._lock = threading.RLock()
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise AnnotationError(f"{self.path} cannot be used: {error}") from error

    def _prepare(self) -> None:
        ask = self._connection.execute
        ask("PRAGMA busy_timeout = 30000")
        if ask("PRAGMA application_id").fetchone()[0] != _APPLICATION:
            if ask("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise AnnotationError(f"{self.path} is a database of something else; name another --output")
            ask("PRAGMA journal_mode = WAL")
            with self._writing():
                if not ask("SELECT count(*) FROM sqlite_master").fetchone()[0]:  # nobody was faster
                    for statement in filter(str.strip, _SCHEMA.split(";\n")):
                        ask(statement)
                    ask(f"PRAGMA application_id = {_APPLICATION}")
                    ask(f"PRAGMA user_version = {VERSION}")
        version = ask("PRAGMA user_version").fetchone()[0]
        if version != VERSION:
            raise AnnotationError(f"{self.path} is of version {version}, this captune reads version {VERSION}")
        ask("PRAGMA synchronous = FULL")  # a commit waits for the disk
        ask("PRAGMA foreign_keys = ON")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Inside, one transaction that no other process writes beside; committed at the end, or nothing of it."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _rows(self, question: str, *values: object) -> list[tuple]:
        with self._lock:
            return self._connection.execute(question, values).fetchall()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    # ---------------------------------------------------------------- battles

    def check_unchanged(self, systems: Mapping[str, Mapping[str, str]]) -> None:
        """Refuse captions that are others than those that raters have been shown.

        Args:
            systems: {system: {image_id: caption}}.

        Raises:
            AnnotationError: names the first and counts them.
        """
        changed = []
        for side in ("left", "right"):
            rows = self._rows(f"SELECT DISTINCT {side}_system, image_id, {side}_caption FROM battles")
            for system, image_id, caption in rows:
                now = systems.get(system, {}).get(image_id, caption)
                changed += [f"{image_id!r} of {system}"] if now != caption else []
        if changed:
            raise AnnotationError(
                f"{counted(len(set(changed)), 'caption has', 'captions have')} changed since "
                f"{self.path} was begun, the first of image "
                f"{sorted(set(changed))[0]}: name another --output, or give the changed file another name"
            )

    def open(self, rater: str) -> list[Battle]:
        """Return the battles that the rater was shown and has not judged; those that were undone come first."""
        rows = self._rows(
            "SELECT battles.id, rater, image_id, left_system, right_system, left_caption, right_caption FROM battles "
            "LEFT JOIN votes ON votes.battle = battles.id WHERE rater = ? GROUP BY battles.id "
            "HAVING count(votes.id) = count(votes.undone_at) ORDER BY max(votes.undone_at) DESC, battles.rowid",
            rater,
        )
        return [Battle(*row) for row in rows]

    def issue(
        self, rater: str, image_id: str, left: tuple[str, str], right: tuple[str, str], *, number: str | None = None
    ) -> Battle:
        """Keep a new battle and return it.

        Args:
            rater: who is shown it.
            image_id: the image.
            left: (system, caption).
            right: likewise.
            number: its id; None: a random one.
        """
        battle = Battle(number or secrets.token_hex(8), rater, image_id, left[0], right[0], left[1], right[1])
        with self._writing() as database:
            database.execute("INSERT INTO battles VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*battle, _now()))
        return battle

    # ---------------------------------------------------------------- votes

    def vote(self, number: str, battle: str, rater: str, verdict: str) -> bool:
        """Keep a vote; when this returns it is on the disk.

        Args:
            number: the vote's own id: sent again, nothing changes.
            battle: the battle's id.
            rater: who votes.
            verdict: one of `VERDICTS`.

        Returns:
            False where the battle has a vote already, which stays: another tab, a double click.

        Raises:
            AnnotationError: there is no such battle of this rater, or no such verdict.
        """
        if verdict not in VERDICTS:
            raise AnnotationError(f"a verdict is {', '.join(VERDICTS)}; got {verdict!r}")
        if not isinstance(number, str) or not 8 <= len(number) <= 64 or not number.isascii():
            raise AnnotationError("a vote has an id of 8 to 64 ASCII characters")
        with self._writing() as database:
            if not database.execute("SELECT 1 FROM battles WHERE id = ? AND rater = ?", (battle, rater)).fetchone():
                raise AnnotationError(f"there is no battle {battle!r} of rater {rater!r}")
            known = database.execute("SELECT battle FROM votes WHERE id = ?", (number,)).fetchone()
            if known is not None:
                return bool(known[0] == battle)
            done = database.execute(
                "INSERT OR IGNORE INTO votes VALUES (?, ?, ?, ?, NULL)", (number, battle, verdict, _now())
            )
            return done.rowcount == 1

    def votes(self, rater: str) -> list[tuple[str, str, str, str]]:
        """Return (id, image_id, system a, system b) of the rater's votes that count, the last one last; skips too."""
        return self._rows(
            "SELECT votes.id, image_id, min(left_system, right_system), max(left_system, right_system) "
            "FROM votes JOIN battles ON battles.id = battle WHERE rater = ? AND undone_at IS NULL ORDER BY votes.rowid",
            rater,
        )

    def undo(self, number: str, rater: str) -> bool:
        """Take a vote back, which stays in the history; its battle is open again.

        Returns:
            False where it is the rater's no more, or was taken back already.
        """
        with self._writing() as database:
            done = database.execute(
                "UPDATE votes SET undone_at = ? WHERE id = ? AND undone_at IS NULL "
                "AND battle IN (SELECT id FROM battles WHERE rater = ?)",
                (_now(), number, rater),
            )
            return done.rowcount == 1

    # ---------------------------------------------------------------- what was said

    def shown(self, rater: str | None = None) -> list[tuple[str, str, str, str]]:
        """Return (rater, image_id, system a, system b) of every battle, judged or open; of one rater or of all."""
        where, values = ("WHERE rater = ?", (rater,)) if rater is not None else ("", ())
        return self._rows(
            "SELECT rater, image_id, min(left_system, right_system), max(left_system, right_system) "
            f"FROM battles {where} ORDER BY rowid",
            *values,
        )

    def waiting(self) -> Counter[tuple[str, str]]:
        """Return {(system a, system b): how many of their battles are open}."""
        rows = self._rows(
            "SELECT min(left_system, right_system) AS a, max(left_system, right_system) AS b, count(*) FROM battles "
            "WHERE NOT EXISTS (SELECT 1 FROM votes WHERE battle = battles.id AND undone_at IS NULL) GROUP BY a, b"
        )
        return Counter({(a, b): count for a, b, count in rows})

    def raters(self) -> dict[str, int]:
        """Return {rater: votes that count}, skips too; who only looked at the page is no rater."""
        return dict(
            self._rows(
                "SELECT rater, count(*) FROM battles JOIN votes ON battle = battles.id "
                "WHERE undone_at IS NULL GROUP BY rater ORDER BY min(battles.rowid)"
            )
        )

    def undone(self) -> int:
        """Return how many votes were taken back."""
        return int(self._rows("SELECT count(*) FROM votes WHERE undone_at IS NOT NULL")[0][0])

    def judgements(self) -> list[Judgement]:
        """Return the votes that count, in the order of the battles."""
        return [
            Judgement(*row)
            for row in self._rows(f"SELECT {', '.join(Judgement._fields)} FROM judgements ORDER BY battle")
        ]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def counting(judgements: list[Judgement]) -> list[Judgement]:
    """Return the votes that strengths are made of: no skips, and no model's where a person has voted."""
    said = [own for own in judgements if own.winner != "skip"]
    return [own for own in said if not own.rater.startswith(MODEL)] or said


def as_csv(judgements: list[Judgement]) -> str:
    """Return the votes as a table, which `captune correlate` reads too once skips are left out."""
    text = io.StringIO()
    write_csv(text, [Judgement._fields, *judgements])
    return text.getvalue()
