"""Sources written ``scheme:name?settings``, and what the library may ask of one that knows more than its images.

A scheme is an object that a package registers, as captune's embedded world does::

    [project.entry-points."captune.sources"]
    storybook = "captune.storybook.source:SOURCE"

Nothing in the library asks whether a source is this or that one. It calls `scheme_of(source)` and reads what the answer
offers; a folder, a file or a dataset gets `Scheme()`, which offers nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from captune.errors import SourceError
from captune.utils.registry import Registry

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

    from captune.data.questions import ExactReader, MultipleChoice

logger = logging.getLogger(__name__)

_MODEL = r"\b(?:model|encoder|text|image|captioner|judge|verifier):(?:own:)?([^@|\]\s]+)"  # in a scorer's signature

SOURCES = Registry("captune.sources", "source", error=SourceError)


class Statement(NamedTuple):
    """Something that a caption states.

    Attributes:
        start: its first character in the caption.
        end: one past its last character.
        text: what is stated, in words.
        true: whether the truth agrees.
        key: equal for equal statements, such as "a left of b" and "b right of a".
        kind: what it is about, such as "object", "attribute" or "relation"; "object": that a thing is there.
    """

    start: int
    end: int
    text: str
    true: bool
    key: Any
    kind: str = ""


class Drawer(Protocol):
    """Draws an image from a caption alone."""

    signature: str

    def __call__(self, caption: str) -> Image:
        """Return the image of a caption; equal captions give equal images."""


class Scheme:
    """What a source offers beyond images, ids and references; override what yours has.

    Attributes:
        name: the scheme.
        truth_column: the column of its datasets that holds the exact truth about each image, such as ``scene``; "" for
            none. The methods below that take a `truth` take a value of this column.
        held_out: the source to evaluate on by default; "": the training images.
        scorers: the scorers that are reported for its images besides those that every source gets.
        monitor_scorers: those among them that may monitor a training run: they use no references and no truth.
        truth_scorer: the scorer that compares captions with the truth, which `truth_column` must give.
        hallucination: its figure for the share of false statements.
        captioners: shipped captioners that have seen its images alone.
        encoders: shipped encoders that have seen its images alone.
        image_encoder: the default image encoder for its images; "": the library's own default.
        text_encoder: the default text encoder for its captions.
        question_categories: the categories of its `questions`.
    """

    name: str = ""
    truth_column: str = ""
    held_out: str = ""
    scorers: tuple[str, ...] = ()
    monitor_scorers: tuple[str, ...] = ()
    truth_scorer: str = ""
    hallucination: str = ""
    captioners: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
    image_encoder: str = ""
    text_encoder: str = ""
    question_categories: tuple[str, ...] = ()

    def load(self, name: str, *, n: int | None = None, seed: int | None = None) -> Dataset:
        """Return the dataset ``scheme:name?n=…&seed=…``: columns image, image_id, references, and its own.

        Raises:
            SourceError: for an unknown name, or settings that do not fit.
        """
        raise SourceError(f"{self.name or 'this source'} cannot be loaded by name")

    def source_of(self, image_ids: Sequence[str]) -> str | None:
        """Return the source that all these ids come from; None if they do not show it."""
        return None

    def draw(self, truth: str, size: int) -> Image | None:
        """Draw the image of a truth again, `size` x `size` pixels; None where it cannot."""
        return None

    def statements(self, caption: str, truth: str) -> list[Statement]:
        """Return what a caption states, each true or false."""
        return []

    def facts(self, truth: str) -> list[Statement]:
        """Return all that is true of an image, each once; of no caption, so that start and end are 0."""
        return []

    def questions(self, truth: str, *, hard: bool = True, seed: int = 0) -> list[MultipleChoice]:
        """Return multiple-choice questions about an image; a function of its truth and the seed.

        Args:
            truth: of the image.
            hard: whether wrong options come from the same image first.
            seed: of the choice and the order of the options.
        """
        return []

    def reader(self) -> ExactReader | None:
        """Return a program that answers `questions` from a caption alone, or None."""
        return None

    def fact_reader(self) -> Any:
        """Return a reader of exact facts, with `graphs`, `truth` and `support` as SC-Captioner uses them, or None."""
        return None

    def fuser(self, keep: str) -> Callable[[Sequence[str]], str] | None:
        """Return a program that writes one caption of what several texts about an image say, or None.

        Args:
            keep: "union", what any of them says, or "vote", what more than half say.
        """
        return None

    def drawer(self, seed: int = 0) -> Drawer | None:
        """Return a program that draws the image that a caption describes, or None."""
        return None


def scheme_of(source: Any, columns: Iterable[str] | None = ()) -> Scheme:
    """Return what a source offers: its scheme, or `Scheme()` for folders, files and datasets.

    Args:
        source: as written; a dataset object has no scheme.
        columns: the columns of its dataset: one with a scheme's `truth_column` is a saved copy of that scheme's.
    """
    name, colon, _ = source.partition(":") if isinstance(source, str) else ("", "", "")
    if colon and name in SOURCES:
        return SOURCES[name]
    columns = set(columns or ())
    if not columns:
        return Scheme()
    return next((scheme for scheme in SOURCES.values() if scheme.truth_column in columns), Scheme())


def warn_of_strangers(captioner: str, source: str, columns: Iterable[str] | None = ()) -> None:
    """Log it where a shipped captioner is given other images than those that it has seen.

    Args:
        captioner: its name.
        source: of the images, as written.
        columns: of the source's dataset; see `scheme_of`.
    """
    offered = scheme_of(source, columns)
    for scheme in SOURCES.values():
        if captioner in scheme.captioners and scheme is not offered:
            logger.warning(
                "the captioner %r has seen the images of %s: alone; what it says of those of %s means nothing. Name a "
                "model of photographs, such as HuggingFaceTB/SmolVLM-Base",
                captioner,
                scheme.name,
                source,
            )


def blind(scorer: str, signature: str, source: str, columns: Iterable[str] | None = ()) -> str:
    """Say where a scorer looks through a shipped model that has seen other images alone; "" where it does not.

    Args:
        scorer: its name, or what else looks.
        signature: what names its models, as in ``model:storybook-clip@37714201``; one with an adapter may know others.
        source: of the images, as written.
        columns: of the source's dataset; see `scheme_of`.
    """
    offered = scheme_of(source, columns)
    at_home = {offered.image_encoder, *offered.encoders, *offered.captioners}
    named = set(re.findall(_MODEL, signature)) - at_home
    for scheme in SOURCES.values():
        adapted = scheme.captioners if "|adapter:" in signature else ()
        for model in (*scheme.encoders, *scheme.captioners):
            if model in named.difference(adapted):
                other = "HuggingFaceTB/SmolVLM-Base" if model in scheme.captioners else "openai/clip-vit-base-patch32"
                return (
                    f"{scorer} looks through {model}, which has seen the images of {scheme.name}: alone: what it says "
                    f"of those of {source} means nothing; name a model of photographs, such as {other}"
                )
    return ""


def warn_if_blind(scorer: str, signature: str, source: str, columns: Iterable[str] | None = ()) -> None:
    """Log what `blind` says, if anything."""
    if said := blind(scorer, signature, source, columns):
        logger.warning(said)


def source_of(image_ids: Sequence[str]) -> str | None:
    """Return the source that ids come from, asked of every scheme."""
    return next((found for scheme in SOURCES.values() if (found := scheme.source_of(image_ids))), None)
