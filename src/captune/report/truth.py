"""What is known about the images of a source: references, exact truth, pixels, and which words of a caption hold."""

from __future__ import annotations

import base64
import io
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from captune.data.schemes import Scheme, scheme_of
from captune.errors import first_line

log = logging.getLogger(__name__)

DRAWN_SIZE = 224  # pixels, of images that their source draws again
LONGEST_READ = 2_000  # characters of a caption whose statements are read
THUMBNAIL = 256  # pixels, the longest side of a photo's thumbnail
_STOP = frozenset(  # function words, which state nothing
    re.findall(
        r"\w+",
        """a an the and or but of in on at to by for with from as is are was were be being been it its this that these
        those there here his her their my our your i he she they we you him them me us who which what while into onto
        near next some""",
    )
)


@dataclass
class Truth:
    """What is known about a source.

    Attributes:
        references: {image_id: reference captions}.
        facts: {image_id: the exact truth, as the source's scheme writes it}.
        scheme: what the source offers; it reads the facts.
        open_image: gives the image of an id.
        notes: sentences for the reader of the page.
    """

    references: dict[str, list[str]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    scheme: Scheme = field(default_factory=Scheme)
    open_image: Callable[[str], Image.Image] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def scorer(self) -> str:
        """The scorer that compares captions one by one: with the exact truth, else with references; "" for neither."""
        return self.scheme.truth_scorer if self.facts else "cider" if self.references else ""


@dataclass(frozen=True)
class Segment:
    """A part of a caption; `mark` is "added", "wrong" or ""; `title` says what it states."""

    text: str
    mark: str = ""
    title: str = ""


def load_truth(source: str) -> Truth:
    """Everything known about a source; what cannot be loaded becomes a note."""
    truth = Truth()
    if not source:
        return truth
    try:
        _load(source, truth)
    except Exception as error:  # whatever a library makes of an odd source; the page shows what can be shown
        truth.notes.append(
            f"The source {source} could not be read, so images or references are missing: {first_line(error)}"
        )
        log.warning("%s", truth.notes[-1])
    return truth


def _load(source: str, truth: Truth) -> None:
    from datasets import Dataset

    from captune.data import load_images

    dataset = load_images(source)
    plain = dataset.with_format(None) if isinstance(dataset, Dataset) else dataset  # no image is drawn or decoded
    names = plain.column_names or []
    truth.scheme = scheme_of(source, names)
    column = truth.scheme.truth_column
    columns = [name for name in ("references", column) if name and name in names]
    positions: dict[str, int] = {}
    for position, record in enumerate(plain.select_columns(["image_id", *columns])):
        image_id = str(record["image_id"])
        positions[image_id] = position
        if record.get("references"):
            truth.references[image_id] = [str(text) for text in record["references"]]
        if record.get(column):
            truth.facts[image_id] = record[column]
    if isinstance(dataset, Dataset):
        truth.open_image = lambda image_id: dataset[positions[image_id]]["image"]
    else:
        truth.notes.append(f"The source {source} is a stream, so single images cannot be fetched from it.")


def image_uri(truth: Truth, image_id: str) -> str:
    """The image as a data URI: drawn again by its source, or a thumbnail.

    Raises:
        LookupError, OSError, ValueError: the image cannot be shown; the message says why.
    """
    facts = truth.facts.get(image_id)
    if facts is not None and (drawn := truth.scheme.draw(facts, DRAWN_SIZE)) is not None:
        return _uri(drawn, drawn=True)
    if truth.open_image is None:
        raise LookupError("the image source is not known")
    try:
        image = truth.open_image(image_id)
    except KeyError as error:
        raise LookupError("the source has no image of this id") from error
    return _uri(image, drawn=False)


def try_image_uri(truth: Truth, image_id: str) -> tuple[str, str]:
    """(data URI, ""), or ("", why the image cannot be shown)."""
    try:
        return image_uri(truth, image_id), ""
    except (LookupError, OSError, ValueError, ImportError) as error:
        return "", str(error) or type(error).__name__


def _uri(image: Image.Image, *, drawn: bool) -> str:
    buffer = io.BytesIO()
    image = image.convert("RGB")
    if drawn:
        image.quantize(colors=64, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    else:
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=78, optimize=True, progressive=True)
    kind = "png" if drawn else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def per_caption(truth: Truth, captions: dict[str, str]) -> dict[str, float]:
    """{image_id: score} by the truth's scorer, of the captions whose image has facts or references."""
    from captune.scorers import load_scorer

    given: dict[str, Any] = truth.facts or truth.references
    scorer, column = truth.scorer, truth.scheme.truth_column if truth.facts else "references"
    ids = [i for i in captions if i in given]
    columns = {column: [given[i] for i in ids]}
    if not ids:
        return {}
    scorer_object: Any = load_scorer(scorer)
    if scorer == "cider":  # the same document frequencies for every row, whatever images it has captions for
        scorer_object.fit(list(truth.references.values()))
    values = scorer_object.per_caption(scorer_object.rows([captions[i] for i in ids], **columns))
    return {i: float(value) for i, value in zip(ids, values, strict=True)}


def health_of_references(truth: Truth, image_ids: Iterable[str]) -> dict[str, float]:
    """The health figures of the first reference of each image: what people's own captions look like."""
    from captune.scorers import load_scorer

    texts = [truth.references[i][0] for i in image_ids if i in truth.references]
    judge = load_scorer("health")
    return judge.corpus(judge.rows(texts)) if texts else {}


def change(delta: float, scorer: str) -> str:
    """What a change of a caption's score amounts to: improved, worsened or unchanged."""
    limit = tolerance(scorer)
    return "improved" if delta > limit else "worsened" if delta < -limit else "unchanged"


def tolerance(scorer: str) -> float:
    """The change of a caption's score up to which it counts as unchanged; CIDEr-D goes to 10, other scores to 1."""
    return 0.1 if scorer == "cider" else 0.005


def highlight(truth: Truth, image_id: str, caption: str, base: str | None) -> list[Segment]:
    """The caption cut into segments, some of them highlighted.

    Where the source knows the facts, "wrong" is a statement that they contradict, and "added" a true one that the base
    caption does not make. Elsewhere "wrong" is a content word in none of the references, and "added" a word of theirs
    that the base caption lacks.

    Args:
        truth: what is known about the source.
        image_id: the image.
        caption: its caption.
        base: the base caption of the same image; None for the base row itself, which can add nothing.
    """
    if (facts := truth.facts.get(image_id)) is not None and len(caption) <= LONGEST_READ:
        return _cut(caption, _facts(truth.scheme, facts, caption, base))
    if image_id in truth.references:
        return _cut(caption, _words(truth.references[image_id], caption, base))
    return [Segment(caption)] if caption else []


def _facts(scheme: Scheme, facts: str, caption: str, base: str | None) -> Iterable[tuple[int, int, str, str]]:
    in_base = {statement.key for statement in scheme.statements(base or "", facts) if statement.true}
    for statement in scheme.statements(caption, facts):
        if not statement.true:
            yield statement.start, statement.end, "wrong", f"{statement.text}: false"
        elif base is not None and statement.key not in in_base:
            yield statement.start, statement.end, "added", f"{statement.text}: true, and not in the base caption"


def _words(references: list[str], caption: str, base: str | None) -> Iterable[tuple[int, int, str, str]]:
    supported = {_stem(word) for text in references for word in re.findall(r"\w+", text)}
    in_base = {_stem(word) for word in re.findall(r"\w+", base or "")}
    for match in re.finditer(r"\w+", caption):
        stem = _stem(match.group())
        if match.group().lower() in _STOP:
            continue
        if stem not in supported:
            yield match.start(), match.end(), "wrong", "in no reference caption"
        elif base is not None and stem not in in_base:
            yield match.start(), match.end(), "added", "in a reference caption, and not in the base caption"


def _stem(word: str) -> str:
    word = word.lower()
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _cut(text: str, spans: Iterable[tuple[int, int, str, str]]) -> list[Segment]:
    """Cuts `text` at the spans; where they overlap, "wrong" wins, then the later and shorter statement."""
    owner: list[tuple[str, str]] = [("", "")] * len(text)
    for start, end, kind, title in sorted(spans, key=lambda s: (s[2] == "wrong", s[0] - s[1])):
        start, end = max(0, start), min(end, len(text))
        owner[start:end] = [(kind, title)] * (end - start)
    segments: list[Segment] = []
    begin = 0
    for end in range(1, len(text) + 1):
        if end == len(text) or owner[end] != owner[begin]:
            segments.append(Segment(text[begin:end], *owner[begin]))
            begin = end
    return _join(segments)


def _join(segments: list[Segment]) -> list[Segment]:
    """Neighbouring marks of one kind, with nothing but a space between them, become one mark."""
    joined: list[Segment] = []
    for segment in segments:
        if len(joined) > 1 and segment.mark and joined[-1].text.isspace() and joined[-2].mark == segment.mark:
            space, before = joined.pop(), joined.pop()
            title = before.title if segment.title in before.title else f"{before.title}; {segment.title}"
            segment = Segment(before.text + space.text + segment.text, segment.mark, title)
        joined.append(segment)
    return joined
