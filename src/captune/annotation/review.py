"""The page on which people look through the captions of a file, correct them, and accept or reject them.

    GET  /                     the page; its script asks for the rest
    GET  /captions?q=&…        a list of captions: what is searched, filtered and sorted, one page of it; see `Query`
    GET  /caption?id=          one caption with its history
    GET  /news?since=          what has changed since so many edits
    POST /correct, /judge      an edit, which names the version that its author saw; /undo takes one back

A list is what the query found when it was asked for, and keeps its order and its members while people work through it:
a caption that is accepted on page 1 of the open ones does not move those of page 2. Edits: `captune.annotation.edits`.

Flags need no model: empty, very short and very long (a third of the file's median number of words or less, three times
or more), bad ending (the last word cannot end a sentence, as in the health metric), repeated (the caption of another
image, too), odd characters (half a character, U+FFFD, control characters), no image. Boolean columns and columns of
names in the captions file or a file of scores are flags too, its numbers are scores. A score is of the caption that was
scored: once that is corrected the page says so.
"""

from __future__ import annotations

import logging
import math
import re
import secrets
import statistics
import threading
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captune.annotation.edits import STATES, Edits, Reviewed, Stale
from captune.annotation.web import (
    Answer,
    ImagesById,
    Request,
    Response,
    Route,
    Starlette,
    application,
    image_url,
    page,
    post,
)
from captune.data.readers import nfc
from captune.errors import AnnotationError
from captune.evaluation.table import read_rows
from captune.scorers.text.health import UNFINISHED
from captune.utils.skipped import skip

log = logging.getLogger(__name__)

PAGE = 50  # captions on a page
KEPT = 64  # lists in memory; one of 100,000 captions takes 400 kB
SORTS = {
    "file": "order of the file",
    "id": "image",
    "short": "shortest first",
    "long": "longest first",
    "changed": "last changed first",
}
_NOT_SCORES = ("image_id", "caption", "file", "references")
_ODD = re.compile("[\ufffd\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f]")
_WORDS = re.compile(r'"([^"]+)"?|(\S+)')


# ------------------------------------------------------------------ scores and flags of a file


class Columns:
    """The columns of a table about captions: numbers are scores, truths and names are flags.

    Attributes:
        scores: {column: {image_id: (score, the caption that was scored)}}.
        flags: {image_id: its flags}.
    """

    def __init__(self) -> None:
        self.scores: dict[str, dict[str, tuple[float, str]]] = {}
        self.flags: dict[str, set[str]] = {}

    def add(self, image_id: str, caption: str, row: Mapping[str, Any]) -> None:
        """Take the columns of one caption's row."""
        for name, value in row.items():
            if name in _NOT_SCORES or value is None:
                continue
            if isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false")):
                if value is True or str(value).lower() == "true":
                    self.flags.setdefault(image_id, set()).add(name)
            elif name == "flags":
                named = value if isinstance(value, list) else str(value).split(",")
                self.flags.setdefault(image_id, set()).update(text.strip() for text in map(str, named) if text.strip())
            elif (number := _number(value)) is not None:
                self.scores.setdefault(name, {})[image_id] = number, caption


def _number(value: Any) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def add_scores(columns: Columns, rows: Sequence[Mapping[str, Any]], reviewed: Reviewed, name: str) -> None:
    """Take the scores of a table whose rows have image_id, and caption where it holds those of several files.

    A row of a caption that the image never had, as that of another file, is left out and counted.

    Raises:
        AnnotationError: not one row belongs to a caption, or none has a score.
    """
    taken = 0
    for row in rows:
        image_id = nfc(str(row.get("image_id")))
        if image_id not in reviewed.captions:
            skip(f"scores of images without a caption in {reviewed.path.name}", image_id)
            continue
        caption = row.get("caption", reviewed.captions[image_id]) or ""
        had = {reviewed.captions[image_id], *(edit.before for edit in reviewed.history(image_id))}
        if caption not in had:
            skip(f"scores of other captions than those of {reviewed.path.name}", image_id)
            continue
        columns.add(image_id, caption, row)
        taken += 1
    if not taken:
        raise AnnotationError(
            f"none of the {len(rows)} rows of {name} is about a caption of {reviewed.path}: it needs image_id, and the "
            "same caption, as captune evaluate --per-image writes them"
        )
    if not columns.scores and not columns.flags:
        raise AnnotationError(f"{name} has no column of numbers or flags")


# ------------------------------------------------------------------ what is asked for


@dataclass(frozen=True)
class Query:
    """Which captions a list holds, and in which order.

    Attributes:
        q: words, each in the caption or the image's id; a phrase in quotation marks; case does not matter.
        state: one of `captune.annotation.edits.STATES`; "": any.
        flag: a flag; "": any.
        by: a rater who edited the caption; "": anybody or nobody.
        score: a column of scores, of which `low` and `high` are the ends.
        low: at least so much.
        high: at most so much.
        sort: one of `SORTS`, or a column of scores, the lowest first, or with "-" before it the highest.
    """

    q: str = ""
    state: str = ""
    flag: str = ""
    by: str = ""
    score: str = ""
    low: str = ""
    high: str = ""
    sort: str = "file"


class Review:
    """The captions of a file as the page shows them.

    Args:
        edits: the file and its journal.
        images: the images; captions of others are flagged.
        columns: scores and flags beside those that are found here.

    Raises:
        AnnotationError: none of the captions is of an image of the source.
    """

    def __init__(self, edits: Edits, images: ImagesById, columns: Columns | None = None) -> None:
        self.edits, self.images = edits, images
        self.columns = Columns() if columns is None else columns
        known = [image_id for image_id in edits.captions if image_id in images.rows]
        if not known:
            some, other = next(iter(edits.captions), ""), next(iter(images.rows), "")
            raise AnnotationError(
                f"none of the {len(edits.captions):,} captions of {edits.path} is of an image of {images.source}: "
                f"captions have ids like {some!r}, its images like {other!r}; name the source that was captioned"
            )
        self.without_caption = len(images.rows) - len(known)
        self._lock = threading.RLock()
        self._lists: OrderedDict[str, array[int]] = OrderedDict()
        self._build()

    # -------------------------------------------------------------- what is searched

    def _build(self) -> None:
        """Make the index of all captions."""
        self._lists.clear()
        self._read, self._done = self.edits.reads, len(self.edits.edits)
        self.ids = list(self.edits.captions)
        self._places = {image_id: place for place, image_id in enumerate(self.ids)}
        self._folded = [_folded(image_id) for image_id in self.ids]
        texts = list(self.edits.captions.values())
        self._texts = [_folded(text) for text in texts]
        self._words = [len(text.split()) for text in texts]
        self._same = Counter(self._texts)
        middle = statistics.median(self._words)
        self.shortest, self.longest = math.floor(middle / 3), math.ceil(middle * 3)
        self._own = [self._flags(place, text) for place, text in enumerate(texts)]

    def _flags(self, place: int, text: str) -> tuple[str, ...]:
        """The flags of one caption that do not depend on others."""
        words, found = self._words[place], []
        if not words:
            found.append("empty")
        elif words <= self.shortest:
            found.append("very short")
        if words and words >= self.longest:
            found.append("very long")
        if words and re.sub(r"\W", "", text.rsplit(None, 1)[-1].lower()) in UNFINISHED:
            found.append("bad ending")
        if _ODD.search(text):
            found.append("odd characters")
        if self.ids[place] not in self.images.rows:
            found.append("no image")
        return tuple(found)

    def refresh(self) -> None:
        """Follow the edits since the last time."""
        with self._lock:
            if self._read != self.edits.reads:
                self._build()
                return
            done, self._done = self._done, len(self.edits.edits)
            for edit in self.edits.edits[done : self._done]:
                place = self._places.get(edit.image_id)
                if place is None:
                    continue
                text = self.edits.captions[edit.image_id]
                self._same[self._texts[place]] -= 1
                self._texts[place] = _folded(text)
                self._same[self._texts[place]] += 1
                self._words[place] = len(text.split())
                self._own[place] = self._flags(place, text)

    def flags(self, place: int) -> list[str]:
        """Return all flags of a caption."""
        repeated = ["repeated"] if self._same[self._texts[place]] > 1 and self._words[place] else []
        return [*self._own[place], *repeated, *sorted(self.columns.flags.get(self.ids[place], ()))]

    def choices(self) -> dict[str, Any]:
        """Return what can be filtered by: flags with their numbers, raters, columns of scores with their ends."""
        self.refresh()
        with self._lock:
            flags = Counter(flag for place in range(len(self.ids)) for flag in self.flags(place))
            scores = {
                name: (min(v for v, _ in values.values()), max(v for v, _ in values.values()))
                for name, values in self.columns.scores.items()
            }
            return {"flags": flags.most_common(), "raters": self.edits.raters(), "scores": scores, "sorts": SORTS}

    # -------------------------------------------------------------- lists

    def find(self, query: Query) -> array[int]:
        """Return the places of the captions that a query asks for, in its order.

        Raises:
            AnnotationError: a score or an order that is not there, or an end that is no number.
        """
        self.refresh()
        with self._lock:
            found: Sequence[int] = range(len(self.ids))
            for test in self._tests(query):
                found = [place for place in found if test(place)]
            return array("I", self._sorted(found, query.sort))

    def _tests(self, query: Query) -> list[Callable[[int], Any]]:
        """One test of a place for each thing that a query asks."""
        tests: list[Callable[[int], Any]] = []
        for phrase, word in _WORDS.findall(query.q):
            tests.append(self._holds(_folded(phrase or word)))
        if query.state:
            if query.state not in STATES:
                raise AnnotationError(f"there is no state {query.state!r}")
            tests.append(lambda place: self.edits.state(self.ids[place]) == query.state)
        if query.flag:
            tests.append(lambda place: query.flag in self.flags(place))
        if query.by:
            theirs = {edit.image_id for edit in self.edits.edits if edit.by == query.by}
            tests.append(lambda place: self.ids[place] in theirs)
        if query.score and (query.low or query.high):
            values = self._scores(query.score)
            low, high = _end(query.low, -math.inf), _end(query.high, math.inf)
            tests.append(lambda place: self.ids[place] in values and low <= values[self.ids[place]][0] <= high)
        return tests

    def _holds(self, text: str) -> Callable[[int], bool]:
        return lambda place: text in self._texts[place] or text in self._folded[place]

    def _scores(self, column: str) -> dict[str, tuple[float, str]]:
        if column not in self.columns.scores:
            raise AnnotationError(f"there are no scores {column!r}")
        return self.columns.scores[column]

    def _sorted(self, found: Sequence[int], sort: str) -> Sequence[int]:
        if sort in ("", "file"):
            return found
        if sort == "id":
            return sorted(found, key=self.ids.__getitem__)
        if sort in ("short", "long"):
            return sorted(found, key=self._words.__getitem__, reverse=sort == "long")
        if sort == "changed":
            last = {edit.image_id: number for number, edit in enumerate(self.edits.edits)}
            return sorted(found, key=lambda place: -last.get(self.ids[place], -1))
        values, sign = self._scores(sort.removeprefix("-")), -1 if sort.startswith("-") else 1
        return sorted(found, key=lambda place: sign * values.get(self.ids[place], (sign * math.inf,))[0])

    def listing(self, query: Query, number: int = 1, name: str = "") -> dict[str, Any]:
        """Return one page of a list.

        Args:
            query: what the list holds.
            number: the page, from 1; one that is not there is the last.
            name: of a list that was returned before; one that is no longer known is made again.
        """
        self.refresh()
        with self._lock:
            found = self._lists.get(name)
            if found is None:
                name, found = secrets.token_urlsafe(9), self.find(query)
                self._lists[name] = found
                if len(self._lists) > KEPT:
                    self._lists.popitem(last=False)
            self._lists.move_to_end(name)
            pages = max(1, math.ceil(len(found) / PAGE))
            number = min(max(1, number), pages)
            shown = [self.ids[place] for place in found[(number - 1) * PAGE : number * PAGE] if place < len(self.ids)]
            return {
                "list": name,
                "total": len(found),
                "page": number,
                "pages": pages,
                "first": (number - 1) * PAGE + 1 if found else 0,
                "items": [self.item(image_id) for image_id in shown],
                **self.news(),
            }

    # -------------------------------------------------------------- one caption

    def item(self, image_id: str) -> dict[str, Any]:
        """Return a caption as the page shows it."""
        self.refresh()
        edits, place = self.edits, self._places[image_id]
        last = edits.history(image_id)[-1:]
        text = edits.captions[image_id]
        return {
            "id": image_id,
            "caption": text,
            "version": edits.version(image_id),
            "state": edits.state(image_id),
            "by": last[0].by if last else "",
            "edits": len(edits.history(image_id)),
            "words": self._words[place],
            "flags": self.flags(place),
            "scores": [
                {"name": name, "value": values[image_id][0], "of_former": values[image_id][1] != text}
                for name, values in self.columns.scores.items()
                if image_id in values
            ],
            "image": image_url(image_id) if image_id in self.images.rows else None,
            "large": image_url(image_id, 1280) if image_id in self.images.rows else None,
        }

    def whole(self, image_id: str) -> dict[str, Any]:
        """Return a caption with its history, the newest edit first.

        Raises:
            AnnotationError: the file has no such caption.
        """
        if image_id not in self.edits.captions:
            raise AnnotationError(f"{self.edits.path.name} has no caption of {image_id!r}")
        self.refresh()
        history = [vars(edit) for edit in reversed(self.edits.history(image_id))]
        return {"item": self.item(image_id), "history": history, "former": self.edits.former(image_id)}

    def news(self, since: int | None = None) -> dict[str, Any]:
        """Return counts, what went wrong, and which captions have changed since so many edits."""
        edits = self.edits
        changed = [] if since is None else sorted({edit.image_id for edit in edits.edits[max(0, since) :]})
        return {
            "edits": len(edits.edits),
            "reads": edits.reads,
            "counts": edits.counts(),
            "notices": [*edits.notices, *([edits.trouble] if edits.trouble else [])],
            "changed": changed[:1000],
        }


def _folded(text: str) -> str:
    return " ".join(nfc(text).casefold().split())


def _end(text: str, default: float) -> float:
    try:
        return float(text) if text.strip() else default
    except ValueError:
        raise AnnotationError(f"{text!r} is no number") from None


# ------------------------------------------------------------------ the application


def site(review: Review) -> Starlette:
    """Return the application that serves the page."""
    edits = review.edits

    def home(_: Request) -> Response:
        return page(
            "review.html.j2",
            file=edits.path.name,
            source=review.images.source,
            captions=len(edits.captions),
            without_caption=review.without_caption,
            shortest=review.shortest,
            longest=review.longest,
            **review.choices(),
        )

    def captions(request: Request) -> Response:
        asked = request.query_params
        query = Query(**{name: asked[name] for name in Query.__dataclass_fields__ if name in asked})
        number = asked.get("page", "1")
        return Answer(review.listing(query, int(number) if number.isdecimal() else 1, asked.get("list", "")))

    def caption(request: Request) -> Response:
        return Answer(review.whole(request.query_params.get("id", "")))

    def news(request: Request) -> Response:
        edits.check()
        since = request.query_params.get("since", "0")
        return Answer(review.news(int(since) if since.isdecimal() else 0))

    def changed(image_id: str, act: Callable[[], Any]) -> dict[str, Any]:
        try:
            act()
        except Stale as error:
            return {"conflict": str(error), "item": review.item(image_id), **review.news()}
        return {"item": review.item(image_id), **review.news()}

    def correct(body: dict[str, Any]) -> dict[str, Any]:
        image_id, text, by, version = _texts(body, "image_id", "caption", "by", "version")
        return changed(image_id, lambda: edits.correct(image_id, text, by=by, version=version))

    def judge(body: dict[str, Any]) -> dict[str, Any]:
        image_id, state, by, version = _texts(body, "image_id", "state", "by", "version")
        return changed(image_id, lambda: edits.judge(image_id, state, by=by, version=version))

    def undo(body: dict[str, Any]) -> dict[str, Any]:
        (by,) = _texts(body, "by")
        return {"item": review.item(edits.undo(by)), **review.news()}

    routes = [Route("/", home), Route("/captions", captions), Route("/caption", caption), Route("/news", news)]
    return application([*routes, post("/correct", correct), post("/judge", judge), post("/undo", undo)], review.images)


def _texts(body: Mapping[str, Any], *names: str) -> list[str]:
    if missing := [name for name in names if not isinstance(body.get(name), str)]:
        raise AnnotationError(f"the request needs {', '.join(missing)}, each a text")
    return [body[name] for name in names]


def columns_of(reviewed: Reviewed, files: Sequence[str | Path] = ()) -> Columns:
    """Return the scores and flags that stand in the caption file and in files of scores.

    Raises:
        AnnotationError: a file of scores has none for these captions.
    """
    columns = Columns()
    for image_id, row in reviewed.rows.items():
        columns.add(image_id, reviewed.former(image_id), row)
    for file in files:
        add_scores(columns, read_rows(file), reviewed, str(file))
    return columns
