"""Multiple-choice questions about images: what one is, who reads captions exactly, and the files that hold them.

`read_questions` reads three forms, as JSON or JSON lines, strictly; whatever is wrong is a `SourceError` with file and
place:

    CaptionQA   {image: [question, ...]}, or [{"id": image, "questions": [question, ...]}, ...], where a question is
                {"question": text, "choices": [text, ...], "answer": the text of a choice, "category": [text, ...]}
    CapRL       the same with {"question", "choices", "answer": a letter}, or a pair [text, letter] whose text has the
                question in its first line and below it an option a line: "   - A) red"; the refusal is left out
    plain       [{"image_id": image, "question": text, "options": [text, ...], "answer": a text or a letter}, ...]

Only the first category of a question is used, as CaptionQA does.
"""

from __future__ import annotations

import logging
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from captune.errors import SourceError
from captune.utils.files import parse_json, read_file
from captune.utils.hashing import fingerprint

_log = logging.getLogger(__name__)
MOST_OPTIONS = 19  # and one to refuse: 20 letters, as many as a server shows the probabilities of
_ID_KEYS = ("image_id", "id", "image")
_OPTION_KEYS = ("choices", "options")
_REFUSAL_LINE = re.compile(r"\s*-?\s*[EF]\)\s*Can ?not answer based on the caption\s*")
_OPTION_LINE = re.compile(r"\s*-?\s*\(?([A-Z])[).:]\s*(.*\S)\s*")


@dataclass(frozen=True)
class MultipleChoice:
    """A question about an image with its possible answers.

    Attributes:
        text: the question.
        options: the possible answers, all different.
        answer: the index of the key, the right one.
        category: what it asks about, such as "colour"; "" where nobody says.
        slot: what an exact reader has to know about it; no model sees this.
    """

    text: str
    options: tuple[str, ...]
    answer: int
    category: str = ""
    slot: Any = None


class ExactReader(Protocol):
    """A program that answers a source's own questions from a caption alone."""

    signature: str

    def read(self, caption: str, question: MultipleChoice) -> int | None:
        """Return the index of the option that the caption states, None where it states none.

        A caption that states two values where one can be true, or one that is no option, is wrong: the answer is then
        an index other than the key's.
        """

    def can_answer(self, question: MultipleChoice) -> bool:
        """Whether some caption could state the right answer; silence does not state that something is absent."""


class QuestionFile:
    """The questions of a file, by image.

    Args:
        path: the file's name, for messages.
        questions: {image_id: its questions}; every image has some.
        digest: of the file's bytes.
    """

    def __init__(self, path: str, questions: Mapping[str, tuple[MultipleChoice, ...]], digest: str) -> None:
        self.path, self.questions, self.digest = path, dict(questions), digest

    def __len__(self) -> int:
        return sum(map(len, self.questions.values()))

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories, in alphabetical order."""
        return tuple(sorted({q.category for own in self.questions.values() for q in own if q.category}))

    def of(self, image_ids: Sequence[str]) -> list[tuple[MultipleChoice, ...]]:
        """Return the questions of each image.

        Raises:
            SourceError: for images that the file asks nothing about.
        """
        unasked = [image_id for image_id in image_ids if str(image_id) not in self.questions]
        if unasked:
            raise SourceError(
                f"{len(unasked)} of {len(image_ids)} captions have no question in {self.path}, for example that of "
                f"image {unasked[0]!r}; its ids look like {next(iter(self.questions))!r}: score the captions of its "
                "images alone"
            )
        return [self.questions[str(image_id)] for image_id in image_ids]

    def unused(self, image_ids: Iterable[str]) -> int:
        """Return how many images of the file are not among these."""
        return len(self.questions.keys() - {str(image_id) for image_id in image_ids})


def read_questions(path: str | Path) -> QuestionFile:
    """Read a file of questions.

    Raises:
        SourceError: it cannot be read, or something in it is in none of the forms; with the place.
    """
    path = Path(path).expanduser()
    data = read_file(path, error=SourceError)
    found: dict[str, list[MultipleChoice]] = {}
    repeated = 0
    for image_id, question in _questions(_content(data, path), str(path)):
        own = found.setdefault(image_id, [])
        repeated += question in own
        own.append(question)
    if not found:
        raise SourceError(f"{path} holds no question")
    if repeated:
        _log.warning("%s: %d questions stand there twice about the same image, and count twice", path, repeated)
    return QuestionFile(str(path), {image_id: tuple(own) for image_id, own in found.items()}, fingerprint(data))


def _content(data: bytes, path: Path) -> Any:
    """The JSON, or the list of the JSON lines."""
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        lines = enumerate(data.split(b"\n"), 1)
        return [parse_json(line, f"{path}, line {n}", error=SourceError) for n, line in lines if line.strip()]
    return parse_json(data, str(path), error=SourceError)


def _questions(content: Any, path: str) -> Iterator[tuple[str, MultipleChoice]]:
    """Every question with its image's id."""
    if isinstance(content, Mapping):
        for image_id, own in content.items():
            for place, question in _listed(own, f"{path}, image {image_id!r}"):
                yield str(image_id), read_question(question, place)
        return
    if not isinstance(content, list):
        raise SourceError(f"{path} is neither a list of entries nor an object of images, but {_shown(content)}")
    for n, entry in enumerate(content, 1):
        place = f"{path}, entry {n}"
        if not isinstance(entry, Mapping):
            raise SourceError(f"{place} is no object with an image's id and its questions, but {_shown(entry)}")
        key = next((key for key in _ID_KEYS if key in entry), None)
        if key is None or not isinstance(entry[key], str | int) or isinstance(entry[key], bool):
            raise SourceError(f"{place} does not say which image it asks about: it needs {' or '.join(_ID_KEYS)}")
        image_id = str(entry[key])
        if "questions" not in entry:
            yield image_id, read_question(entry, place)
            continue
        for inner, question in _listed(entry["questions"], f"{place} (image {image_id!r})"):
            yield image_id, read_question(question, inner)


def _listed(questions: Any, place: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(questions, list) or not questions:
        raise SourceError(f"{place}: its questions are no list, or an empty one: {_shown(questions)}")
    for n, question in enumerate(questions, 1):
        yield f"{place}, question {n}", question


def read_question(entry: Any, place: str) -> MultipleChoice:
    """Read one question, an object or a pair.

    Args:
        entry: as the file has it.
        place: where it stands, for messages.

    Raises:
        SourceError: it is no question, its options are not two to 19 different texts, or its answer is not one of them.
    """
    category: Any = ""
    if isinstance(entry, Mapping):
        key = next((key for key in _OPTION_KEYS if key in entry), None)
        if key is None or "question" not in entry or "answer" not in entry:
            raise SourceError(f"{place} needs question, {' or '.join(_OPTION_KEYS)}, and answer; has {sorted(entry)}")
        text, options, answer = entry["question"], entry[key], entry["answer"]
        category = entry.get("category") or ""
    elif isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry):
        text, *lines = (line for line in entry[0].split("\n") if line.strip()) if entry[0].strip() else ("",)
        lines = [line for line in lines if not _REFUSAL_LINE.fullmatch(line)]  # the scorer adds its own
        options, answer = _lettered(lines, place), entry[1]
    else:
        raise SourceError(f"{place} is neither an object nor a pair of a question and a letter: {_shown(entry)}")
    if isinstance(category, list):
        category = category[0] if category else ""
    if not isinstance(text, str) or not text.strip() or not isinstance(category, str):
        raise SourceError(f"{place}: question and category must be texts, not {_shown(text)} and {_shown(category)}")
    if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
        raise SourceError(f"{place}: the options must be a list of texts, not {_shown(options)}")
    options = [option.strip() for option in options]
    if not 2 <= len(options) <= MOST_OPTIONS:
        raise SourceError(f"{place} has {len(options)} options; between 2 and {MOST_OPTIONS} can be told apart")
    if len(set(options)) < len(options):
        twice = next(option for i, option in enumerate(options) if option in options[:i])
        raise SourceError(f"{place}: the option {twice!r} stands there twice, so that the right one is not clear")
    return MultipleChoice(text.strip(), tuple(options), _key(answer, options, place), category.strip())


def _key(answer: Any, options: Sequence[str], place: str) -> int:
    """The index of the right option, given by its text or by its letter."""
    said = answer.strip() if isinstance(answer, str) else ""
    letters = dict(zip(string.ascii_uppercase, range(len(options)), strict=False))
    ways = {
        index for index in (options.index(said) if said in options else None, letters.get(said)) if index is not None
    }
    if len(ways) > 1:
        raise SourceError(f"{place}: the answer {said!r} is both an option's text and another's letter; write the text "
                          "of another wording, or put the options in the order of their letters")  # fmt: skip
    if not ways:
        raise SourceError(
            f"{place}: the answer {_shown(answer)} is neither the text nor the letter of one of its "
            f"{len(options)} options: {', '.join(options)[:200]}"
        )
    return ways.pop()


def _lettered(lines: Sequence[str], place: str) -> list[str]:
    """The options of lines such as "   - B) blue", whose letters must be A, B, C and so on."""
    options = []
    for letter, line in zip(string.ascii_uppercase, lines, strict=False):
        match = _OPTION_LINE.fullmatch(line)
        if match is None or match[1] != letter:
            raise SourceError(f"{place}: the line {line.strip()!r} is no option {letter}, as in '- {letter}) red'")
        options.append(match[2])
    return options


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
