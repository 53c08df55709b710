"""What is known about the images of a source: references, scenes, pictures, and which words of a caption are true."""

from __future__ import annotations

import base64
import io
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

log = logging.getLogger(__name__)

DRAWN_SIZE = 224  # storybook scenes are drawn afresh at this size
THUMBNAIL = 256  # longest side of a photo's thumbnail
_TOLERANCE = {"storybook": 0.005, "cider": 0.1}  # a change of at most this counts as unchanged
FIGURES = {"storybook": "fact F1", "cider": "CIDEr-D"}  # what they give each caption
_STOP = frozenset(  # function words state nothing; as one text, because a list of them would be a page long
    re.findall(
        r"\w+",
        """a an the and or but of in on at to by for with from as is are was were be being been it its this that these
        those there here his her their my our your i he she they we you him them me us who which what while into onto
        near next some""",
    )
)


@dataclass
class Truth:
    """References (image_id -> list), storybook scenes (image_id -> Scene), and how to get at an image."""

    references: dict[str, list[str]] = field(default_factory=dict)
    scenes: dict[str, Any] = field(default_factory=dict)
    open_image: Callable[[str], Image.Image] | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Segment:
    """A stretch of a caption; `mark` is "added", "wrong" or ""; `title` says what the stretch states."""

    text: str
    mark: str = ""
    title: str = ""


def load_truth(source: str) -> Truth:
    """Everything known about a source. What cannot be loaded is a note: the page is still worth having without it."""
    truth = Truth()
    if not source:
        return truth
    try:
        _load(source, truth)
    except (OSError, ValueError, ImportError, KeyError) as error:
        truth.notes.append(f"The source {source} could not be read, so images or references are missing: {error}")
        log.warning("%s", truth.notes[-1])
    return truth


def _load(source: str, truth: Truth) -> None:
    from datasets import Dataset

    from captune.data import load_images

    dataset = load_images(source)
    plain = dataset.with_format(None) if isinstance(dataset, Dataset) else dataset  # no picture is drawn or decoded
    columns = [name for name in ("references", "scene") if name in (plain.column_names or [])]
    positions: dict[str, int] = {}
    for position, record in enumerate(plain.select_columns(["image_id", *columns])):
        image_id = str(record["image_id"])
        positions[image_id] = position
        if record.get("references"):
            truth.references[image_id] = [str(text) for text in record["references"]]
        if record.get("scene"):
            truth.scenes[image_id] = _scene(record["scene"])
    if isinstance(dataset, Dataset):
        truth.open_image = lambda image_id: dataset[positions[image_id]]["image"]
    else:
        truth.notes.append(f"The source {source} is a stream, so single images cannot be fetched from it.")


def _scene(text: str) -> Any:
    from captune.storybook.world import Scene

    return Scene.from_json(text)


def image_uri(truth: Truth, image_id: str) -> str:
    """The image as a data URI: a storybook scene drawn again, or a thumbnail.

    Raises:
        LookupError, OSError, ValueError: the image cannot be shown; the message says why.
    """
    if (scene := truth.scenes.get(image_id)) is not None:
        from captune.storybook.draw import draw

        return _uri(draw(scene, size=DRAWN_SIZE), drawn=True)
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


def per_caption(truth: Truth, captions: dict[str, str], scorer: str) -> dict[str, float]:
    """A score for each caption whose image has what the scorer needs ("storybook": a scene; "cider": references)."""
    from captune.scorers import load_scorer

    if scorer == "storybook":
        ids = [i for i in captions if i in truth.scenes]
        columns: dict[str, Any] = {"scene": [truth.scenes[i].to_json() for i in ids]}
    else:
        ids = [i for i in captions if i in truth.references]
        columns = {"references": [truth.references[i] for i in ids]}
    if not ids:
        return {}
    judge: Any = load_scorer(scorer)
    if scorer == "cider":  # the same document frequencies for every row, whatever images it has captions for
        judge.fit(list(truth.references.values()))
    values = judge.per_caption(judge.rows([captions[i] for i in ids], **columns))
    return {i: float(value) for i, value in zip(ids, values, strict=True)}


def health_of_references(truth: Truth, image_ids: Iterable[str]) -> dict[str, float]:
    """The health figures of the first reference of each image: what people's own captions look like."""
    from captune.scorers import load_scorer

    texts = [truth.references[i][0] for i in image_ids if i in truth.references]
    judge = load_scorer("health")
    return judge.corpus(judge.rows(texts)) if texts else {}


def change(delta: float, scorer: str) -> str:
    """ "improved", "worsened" or "unchanged"."""
    tolerance = _TOLERANCE[scorer]
    return "improved" if delta > tolerance else "worsened" if delta < -tolerance else "unchanged"


def tolerance(scorer: str) -> float:
    return _TOLERANCE[scorer]


def highlight(truth: Truth, image_id: str, caption: str, base: str | None) -> list[Segment]:
    """The caption cut into segments, some of them highlighted.

    Storybook: "wrong" is a statement that the scene contradicts, "added" a true one that `base` did not make.
    Photos: "wrong" is a content word in none of the references, "added" a word of theirs that `base` lacks.
    `base` is None for the base row itself, which can add nothing.
    """
    if (scene := truth.scenes.get(image_id)) is not None:
        return _cut(caption, _facts(scene, caption, base))
    if image_id in truth.references:
        return _cut(caption, _words(truth.references[image_id], caption, base))
    return [Segment(caption)] if caption else []


def _facts(scene: Any, caption: str, base: str | None) -> Iterable[tuple[int, int, str, str]]:
    from captune.storybook.parser import canonical, judged

    known = Counter((fact.type, canonical(fact.value)) for fact, true in judged(base or "", scene) if true)
    for fact, true in judged(caption, scene):
        stated = f"{fact.type} ({' '.join(word for word in fact.value if word)})"
        if not true:
            yield fact.start, fact.end, "wrong", f"{stated}: not so"
        elif base is not None and not known[fact.type, canonical(fact.value)]:
            yield fact.start, fact.end, "added", f"{stated}: true, and new"


def _words(references: list[str], caption: str, base: str | None) -> Iterable[tuple[int, int, str, str]]:
    supported = {_stem(word) for text in references for word in re.findall(r"\w+", text)}
    known = {_stem(word) for word in re.findall(r"\w+", base or "")}
    for match in re.finditer(r"\w+", caption):
        stem = _stem(match.group())
        if match.group().lower() in _STOP:
            continue
        if stem not in supported:
            yield match.start(), match.end(), "wrong", "in no reference caption"
        elif base is not None and stem not in known:
            yield match.start(), match.end(), "added", "in a reference caption, and not in the base caption"


def _stem(word: str) -> str:
    word = word.lower()
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _cut(text: str, spans: Iterable[tuple[int, int, str, str]]) -> list[Segment]:
    """Cuts `text` at the spans; where they overlap, "wrong" wins, then the later and shorter statement."""
    owner: list[tuple[str, str]] = [("", "")] * len(text)
    for start, end, kind, title in sorted(spans, key=lambda s: (s[2] == "wrong", s[0] - s[1])):
        for position in range(max(0, start), min(end, len(text))):
            owner[position] = (kind, title)
    segments: list[Segment] = []
    for character, (kind, title) in zip(text, owner, strict=True):
        if segments and (segments[-1].mark, segments[-1].title) == (kind, title):
            segments[-1] = Segment(segments[-1].text + character, kind, title)
        else:
            segments.append(Segment(character, kind, title))
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
