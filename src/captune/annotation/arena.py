"""The arena: which battle a rater sees, what becomes of a vote, and the pages that show both.

What a page is sent never says whose caption is whose: a battle is an id, an image, and a text for the left and one for
the right. `Arena` does the work, for people and for a model that rates; `site` puts it on a page.
"""

from __future__ import annotations

import math
import random
import secrets
import threading
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from captune.annotation.battles import Battle, Battles, as_csv, counting
from captune.annotation.pairing import Pairing
from captune.annotation.results import fought, results
from captune.annotation.web import SIDES, ImagesById, Route, application, image_url, page, post
from captune.data import read_captions
from captune.data.judgements import MODEL
from captune.data.readers import nfc
from captune.errors import AnnotationError, BadImage, CaptionFileError, UsageError, redact
from captune.evaluation.bradley_terry import fit
from captune.utils.files import read_file, short_names
from captune.utils.wording import counted

LONGEST_NAME = 60


def read_systems(files: list[Path], images: ImagesById) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Read the caption files.

    Args:
        files: two or more; a system is called as its file without the ending, with as much of its folder as tells
            it from the others.
        images: whose images are shown; captions of others are left out.

    Returns:
        ({system: {image_id: caption}}, a sentence for each thing that was left out).

    Raises:
        CaptionFileError: one file named twice, a file whose images are not there, or text that is no Unicode.
    """
    names = short_names(files)
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise CaptionFileError(f"two caption files are called {twice!r}: results would name both by it")
    systems, said = {}, []
    for name, file in zip(names, files, strict=True):
        captions = read_captions(file, images=images.source)
        systems[name] = {image_id: text for image_id, text in captions.items() if image_id in images.rows}
        if not systems[name]:
            example, known = next(iter(captions), None), next(iter(images.rows), None)
            raise CaptionFileError(
                f"{file}: none of its images, such as {example!r}, is in {images.source}, whose ids are like {known!r}"
            )
        if gone := len(captions) - len(systems[name]):
            said.append(f"{file}: left out {counted(gone, 'caption')} of images that are not in {images.source}")
        for image_id, text in systems[name].items():
            try:
                (image_id + text).encode()
            except UnicodeEncodeError as error:
                raise CaptionFileError(f"{file}, image {image_id!r}: half a character in its caption") from error
    return systems, said


class Arena:
    """Battles between captions, for raters by name.

    Args:
        file: where votes are kept.
        systems: {system: {image_id: caption}}.
        images: shows the images.
        repeat: show an image to a rater again, with other captions.
        most: battles for each rater; None: as many as there are images.
        overlap: see `Pairing`.
        seed: of sides and choices; None: others each time.

    Raises:
        AnnotationError: captions that were judged have changed, or no image has two different ones.
    """

    def __init__(
        self,
        file: Battles,
        systems: Mapping[str, Mapping[str, str]],
        images: ImagesById,
        *,
        repeat: bool = False,
        most: int | None = None,
        overlap: float = 0.2,
        seed: int | None = None,
    ) -> None:
        file.check_unchanged(systems)
        self.file, self.systems, self.images = file, systems, images
        self.pairing = Pairing(systems, repeat=repeat, overlap=overlap, seed=seed)
        if not self.pairing.most:
            names = ", ".join(self.pairing.systems)
            raise AnnotationError(f"there is nothing to judge: no image has different captions by two of {names}")
        self.most = min(most or self.pairing.most, self.pairing.most)
        self.unusable: dict[str, str] = {}
        self._sides = random.Random(seed)
        self._lock = threading.Lock()

    def notes(self) -> list[str]:
        """Return a sentence for each thing that is never shown, and one of what will be."""
        said = []
        if self.pairing.equal:
            said.append(f"not shown, and of no count: {counted(self.pairing.equal, 'pair')} of equal captions")
        owners = Counter(image_id for captions in self.systems.values() for image_id in captions)
        if alone := sum(count == 1 for count in owners.values()):
            said.append(f"not shown: {counted(alone, 'image')} with a caption by one system alone")
        names = ", ".join(self.pairing.systems)
        return [*said, f"{names}: each rater judges up to {counted(self.most, 'battle')}"]

    def next(self, rater: str) -> Battle | None:
        """Return the rater's open battle, or a new one; None where the rater has judged all."""
        with self._lock:
            for known in self.file.open(rater):
                if self.pairing.has(known.image_id, *sorted((known.left_system, known.right_system))):
                    return known
            if self.done(rater) >= self.most:
                return None
            shown = self.file.shown()
            names = self.pairing.systems
            used = [own for own in counting(self.file.judgements()) if own.system_a in names and own.system_b in names]
            found = fit(fought(used, names), len(names)) if used else None
            waiting = self.file.waiting()
            while choice := self.pairing.choose(rater, shown, found, waiting, set(self.unusable)):
                try:
                    self.images.jpeg(choice.image_id, max(SIDES))
                    break
                except BadImage as error:
                    self.unusable[choice.image_id] = error.why
            if choice is None:
                return None
            sides = [(system, self.systems[system][choice.image_id]) for system in (choice.a, choice.b)]
            self._sides.shuffle(sides)
            return self.file.issue(rater, choice.image_id, *sides)

    def done(self, rater: str) -> int:
        """Return how many battles of this arena the rater has judged; skips count."""
        return len(self._votes(rater))

    def _votes(self, rater: str) -> list[str]:
        """The ids of the rater's votes here; the file may hold others, of images or systems that are not."""
        return [number for number, *battle in self.file.votes(rater) if self.pairing.has(*battle)]

    def state(self, rater: str) -> dict[str, Any]:
        """Return what the page shows: the battle without names, how many are done and of how many, the last vote."""
        battle, votes = self.next(rater), self._votes(rater)
        return {
            "battle": None
            if battle is None
            else {
                "id": battle.id,
                "image": image_url(battle.image_id, max(SIDES)),
                "left": battle.left_caption,
                "right": battle.right_caption,
            },
            "done": len(votes),
            "of": self.most,
            "last": votes[-1] if votes else None,
        }

    def vote(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a vote {id, battle, rater, verdict} and return the new state; `kept` is false where it did not count."""
        rater = name_of(body.get("rater"))
        kept = self.file.vote(body.get("id", ""), str(body.get("battle", "")), rater, str(body.get("verdict", "")))
        return {"kept": kept} | self.state(rater)

    def undo(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Take the vote {id, rater} back and return the new state."""
        rater = name_of(body.get("rater"))
        return {"kept": self.file.undo(str(body.get("id", "")), rater)} | self.state(rater)


def name_of(given: Any) -> str:
    """Return a person's name as it is kept.

    Raises:
        AnnotationError: it is empty, long, no text, or a model's.
    """
    name = " ".join(nfc(given).split()) if isinstance(given, str) else ""
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise AnnotationError(f"a rater's name has 1 to {LONGEST_NAME} letters")
    if name.casefold().startswith(MODEL.strip()):
        raise AnnotationError(f"names that begin with {MODEL.strip()!r} are those of models")
    return name


def guidelines_of(file: Path | None) -> str:
    """Return the guidelines, Markdown: of a file, or ours.

    Raises:
        AnnotationError: the file cannot be read, or is no UTF-8 text.
    """
    if file is None:
        return (resources.files("captune.annotation") / "guidelines.md").read_text(encoding="utf-8")
    try:
        return read_file(file, error=AnnotationError, largest=2**20).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{file} is not UTF-8 text; save the guidelines as UTF-8") from error


def rendered(markdown: str) -> Markup:
    """Return Markdown as HTML: tags in it are shown as text, and images are left out."""
    return Markup(MarkdownIt("commonmark", {"html": False}).disable("image").render(markdown))


def site(arena: Arena, guidelines: str) -> Starlette:
    """Return the application.

    Args:
        arena: the arena.
        guidelines: Markdown, shown to raters.
    """
    told = rendered(guidelines)

    def entrance(request: Request) -> Response:
        raters = {name: arena.done(name) for name in arena.file.raters() if not name.startswith(MODEL)}
        return page("arena_entrance.html.j2", guidelines=told, raters=raters, most=arena.most, problem="")

    def judge(request: Request) -> Response:
        try:
            rater = name_of(request.query_params.get("rater"))
        except AnnotationError as error:
            return page("arena_entrance.html.j2", 400, guidelines=told, raters={}, most=arena.most, problem=str(error))
        return page("arena.html.j2", guidelines=told, rater=rater, most=arena.most)

    def state(request: Request) -> Response:
        return JSONResponse(arena.state(name_of(request.query_params.get("rater"))))

    def outcome(request: Request) -> Response:
        found = results(arena.file)
        return page("arena_results.html.j2", found=found, unusable=arena.unusable, axis=axis(found))

    def table(request: Request) -> Response:
        text = as_csv(arena.file.judgements())
        return Response(
            text.encode(), media_type="text/csv", headers={"Content-Disposition": 'attachment; filename="votes.csv"'}
        )

    return application(
        [
            Route("/", entrance),
            Route("/judge", judge),
            Route("/state", state),
            post("/vote", arena.vote),
            post("/undo", arena.undo),
            Route("/results", outcome),
            Route("/results.json", lambda _: JSONResponse(results(arena.file))),
            Route("/votes.csv", table),
        ],
        arena.images,
    )


def axis(found: Mapping[str, Any]) -> dict[str, float]:
    """Return {low, high}: the strengths that the plot of the results spans, 0 inside."""
    ends = [0.0]
    for row in found["systems"]:
        for key in ("strength", "equal_length"):
            ends += [row[key]] if row[key] is not None else []
            ends += row[f"{key}_interval" if key != "strength" else "interval"] or []
    low, high = min(ends), max(ends)
    room = max(0.1, high - low) * 0.06
    return {"low": low - room, "high": high + room}


def rate(arena: Arena, spec: str, *, report: Any = None) -> int:
    """Let a model judge until it has judged all; every verdict is kept at once, and a second run resumes.

    Args:
        arena: the arena.
        spec: what follows ``preference:`` in a scorer's spec: a model, a server, or a source that knows the truth.
        report: called with the number of votes after each.

    Returns:
        How many votes were cast.
    """
    from captune.scorers import load_scorer

    judge = load_scorer(f"preference:{spec}")
    if judge.settings.against:  # type: ignore[attr-defined]
        raise UsageError("--rater-model judges the arena's captions: leave out against=")
    judge.check()
    rater, cast = MODEL + redact(spec), 0
    while (battle := arena.next(rater)) is not None:
        row = arena.images.row(battle.image_id)
        columns: dict[str, Any] = {"image_id": [battle.image_id], "references": [[battle.right_caption]]}
        for need in judge.required_columns:
            if need not in columns:
                if need not in row:
                    raise AnnotationError(f"{spec} judges by {need}, which {arena.images.source} does not have")
                columns[need] = [row[need]]
        win, tie = judge.rows([battle.left_caption], **columns)[0][:2]
        loss = 1 - win - tie
        verdict = ("left", "tie", "right")[max(range(3), key=(win, tie, loss).__getitem__)]
        if math.isclose(win, loss, abs_tol=1e-9):  # by the place that a caption is read in, say
            verdict = "tie"
        arena.file.vote(secrets.token_hex(8), battle.id, rater, verdict)
        cast += 1
        if report is not None:
            report(cast)
    return cast
