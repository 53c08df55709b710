"""`fuse`: what several say of an image, into one caption, by a writer (CapsFusion, FuseCap, MLBCAP).

CapsFusion (Yu et al., CVPR 2024) merges a raw alt text, which has names and knowledge and bad language, with a model's
caption, which is clean and may be false. FuseCap (Rotstein et al., WACV 2024) adds what experts saw: objects, tags,
text in the image. MLBCAP (Kim et al., 2025) lets several writers write, and a judge choose. Here `captions` are caption
files, `facts` files of experts (`captune detect` writes one), `model` one writer or several, `judge` a scorer. A writer
is a language model, or the program of a source that reads and writes its captions exactly (storybook: slots filled by
vote or union, printed by the grammar), which is given the same texts, each expert's finding as one.

No writer sees the image, and one that is given two captions of different things merges them into a sentence that is
true of nothing. So `check` compares what was written with all that it was written from, or with the image: what scores
below `least` is refused, and the caption stays as it was. Every answer that is not used is counted with its reason.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from captune.curation.base import Captions, Verdicts, Work, setting
from captune.curation.criteria import check_direction
from captune.data.readers import nfc
from captune.data.schemes import SOURCES
from captune.errors import CurationError, UsageError, redact
from captune.models.plain_text import without_thought
from captune.utils.files import LARGEST_CONFIG, read_file, read_jsonl, replace_file
from captune.utils.progress import Bar
from captune.utils.spec import parse

_Write = Callable[[list[int]], list[str | None]]  # captions -> what is written of each; None: an answer that was cut
_PART = 64  # captions
_EXAMPLE = "storybook?keep=vote"
_FIELDS = ("{raw}", "{captions}", "{facts}")
PROMPT = """\
Several texts describe the same image. Write one caption of it.

Raw caption: {raw}
(It may name people, places or things that only its author knows. Its grammar may be poor.)
Captions by programs, which did not read the raw caption and may be wrong: {captions}
What programs found in the image: {facts}

Keep what the raw caption knows and what the others add. Say nothing that none of them says. Where they contradict one
another, leave it out. Write one well-formed sentence or two, do not list the texts one after another, and answer with
the caption alone."""


@dataclass(frozen=True, kw_only=True)
class Fuse:
    """Fuse each caption with those of models and with what experts found, by a writer (CapsFusion)."""

    example = (
        "captune curate fuse web.jsonl --captions model.jsonl --model http://localhost:8000/v1#qwen --output runs/fused"
    )

    model: tuple[str, ...] = setting(
        "what writes, or several: a language model's folder or hub name, a server http://host:port/v1#name, or the "
        "grammar of a drawn world: storybook (what any text says), storybook?keep=vote (what more than half say)"
    )
    captions: tuple[str, ...] = setting("caption files of the same images, such as captune caption writes", ())
    facts: tuple[str, ...] = setting(
        "files of lines with an image_id and what was found: objects of captune detect, tags, ocr; no numbers",
        (),
    )
    check: str | None = setting(
        "the scorer that refuses what contradicts; its references are the texts that were fused and "
        "what was found: nli:MODEL",
        None,
    )
    least: float = setting("the least score of the check", 0.0)
    judge: str | None = setting("the scorer, or sum, that chooses among several writers", None)
    prompt: str | None = setting("a text file with {raw}, {captions} and {facts}", None, metavar="FILE")
    max_new_tokens: Annotated[int, Field(ge=1)] = setting("the longest answer", 120)
    temperature: Annotated[float, Field(ge=0)] = setting("of writing; 0 is greedy", 0.0)
    seed: int = setting("of sampling", 0)

    def __post_init__(self) -> None:
        from captune.scorers.registry import known

        if not self.model or not (self.captions or self.facts):
            raise UsageError("fuse needs a writer (model), and something to fuse: captions or facts")
        if (len(self.model) > 1) != (self.judge is not None):
            raise UsageError("a judge chooses among several writers: name several models and a judge, or one model")
        for spec, what in ((self.check, "check"), (self.judge, "judge")):
            if spec is not None:
                known(spec)
                check_direction(spec, what)
        for name in self.model:
            _program(name)
        self._template()

    def _template(self) -> str:
        if self.prompt is None:
            return PROMPT
        text = read_file(self.prompt, error=UsageError, largest=LARGEST_CONFIG).decode("utf-8", "replace")
        if lacking := [name for name, given in zip(_FIELDS, (True, self.captions, self.facts), strict=True)
                       if given and name not in text]:  # fmt: skip
            raise UsageError(f"{self.prompt} has no {' and no '.join(lacking)}, so that the writer would not read it")
        return text

    def decide(self, captions: Captions, work: Work) -> Verdicts:
        """Return the verdicts."""
        from captune.models.answerers import Cut, Prompt, load_answerer

        verdicts = Verdicts(len(captions))
        ids = captions.image_ids.take(captions.rows).to_pylist()
        sources = self._sources(captions, set(ids), verdicts.notes)
        todo = []
        for index, image_id in enumerate(ids):
            if sources.get(image_id):
                todo.append(index)
            else:
                verdicts.keep(index, "nothing to fuse it with: as it was")
        if not todo:
            raise CurationError(f"{' and '.join((*self.captions, *self.facts))}: nothing is said there of any image")
        texts = captions.texts()
        said = {i: [*sources[ids[i]].texts, *sources[ids[i]].facts] for i in todo}
        template = self._template()

        settings = {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature, "seed": self.seed}

        def by_model(writer: Any) -> _Write:
            def write(part: list[int]) -> list[str | None]:
                prompts = [Prompt(_fill(template, texts[i], sources[ids[i]]), about=f"caption {i}") for i in part]
                return [None if isinstance(reply, Cut) else reply for reply in writer.complete(prompts, **settings)]

            return write

        def by_program(program: Callable[[Sequence[str]], str]) -> _Write:
            return lambda part: [program([texts[i], *said[i]]) for i in part]

        written = []
        for number, name in enumerate(self.model):
            if program := _program(name):
                write = by_program(program)
            else:
                writer = load_answerer(name, **({"device": work.device} if work.device and "://" not in name else {}))
                writer.check()
                write = by_model(writer)
            verdicts.notes.setdefault("writers", []).append(redact(name))
            written.append(self._write(write, number, todo, work))
        self._choose(captions, verdicts, texts, written, said, work)
        return verdicts

    def _sources(self, captions: Captions, ids: set[str], notes: dict[str, Any]) -> dict[str, _Source]:
        """{image_id: what is said of it besides}; how many images a file does not know is noted."""
        from captune.data.captions import read_captions

        found: dict[str, _Source] = {}

        def note(path: str, named: set[str]) -> None:
            if not (here := len(ids & named)):
                raise CurationError(
                    f"{path}: no image of {captions.source} is among its {len(named)}; ids must be the same"
                )
            if here < len(ids):
                notes.setdefault("images that a file does not know", {})[redact(path)] = len(ids) - here

        for path in self.captions:
            texts = read_captions(path)
            note(path, set(texts))
            for image_id, text in texts.items():
                if text.strip():
                    found.setdefault(image_id, _Source([], [])).texts.append(text)
        for path in self.facts:
            named = set()
            for number, line in enumerate(read_jsonl(Path(path)), start=1):
                if "image_id" not in line:
                    raise CurationError(f"{path}, line {number}: expected an object with an image_id")
                said = [_said(key, value, f"{path}, line {number}") for key, value in line.items()]
                facts = [one for one in said if one]
                named.add(image_id := nfc(str(line["image_id"])))
                if facts:
                    found.setdefault(image_id, _Source([], [])).facts.extend(facts)
            note(path, named)
        return found

    def _write(self, write: _Write, number: int, todo: list[int], work: Work) -> dict[int, str | None]:
        """{caption: what a writer says; None where its answer was cut}, part by part."""
        written: dict[int, str | None] = {}
        starts = range(0, len(todo), _PART)
        bar = Bar(starts, desc="writing", unit="part", show=work.progress, delay=2)
        for start in bar:
            path, part = work.path(f"written-{number}-{start:09d}.json"), todo[start : start + _PART]
            if not path.is_file():
                replace_file(path, json.dumps(write(part)))
            replies = json.loads(path.read_text(encoding="utf-8"))
            written.update(zip(part, replies, strict=True))
        return written

    def _choose(
        self, captions: Captions, verdicts: Verdicts, texts: list[str], written: list[dict[int, str | None]],
        sources: dict[int, list[str]], work: Work,
    ) -> None:  # fmt: skip
        """Say of each caption what is made of it: the best of what was written, where that is one that can be used."""
        usable: list[tuple[int, int, str]] = []  # caption, writer, text
        why: dict[int, str] = {}
        for number, own in enumerate(written):
            for index, reply in own.items():
                text, problem = read_reply(reply)
                if problem:
                    why[index] = f"{problem}: as it was"
                else:
                    usable.append((index, number, text))
        if self.check is not None and usable:
            scores = self._score(self.check, captions, usable, texts, sources, work, verdicts.notes, "check")
            good = np.nan_to_num(scores, nan=-np.inf) >= self.least
            for (index, _, _), passes in zip(usable, good.tolist(), strict=True):
                if not passes:
                    why[index] = f"what was written is below {self.least:g} by {self.check}: as it was"
            usable = [one for one, passes in zip(usable, good.tolist(), strict=True) if passes]
            of_check = dict(zip([(i, n) for (i, n, _) in usable], scores[good].tolist(), strict=True))
        else:
            of_check = {}
        value = [0.0] * len(usable)
        if self.judge is not None and usable:
            value = self._score(self.judge, captions, usable, texts, sources, work, verdicts.notes, "judge").tolist()
        best: dict[int, tuple[float, int, str]] = {}
        for (index, number, text), score in zip(usable, value, strict=True):
            if np.isnan(score):
                why[index] = f"no score by {self.judge}: as it was"
                continue
            if index not in best or score > best[index][0]:
                best[index] = (score, number, text)
        chosen = Counter(number for _, number, _ in best.values())
        for index in sorted({*best, *why}):
            if index not in best:
                verdicts.keep(index, why[index])
                continue
            score, number, text = best[index]
            verdicts.score[index] = score if self.judge is not None else of_check.get((index, number), np.nan)
            if text == texts[index]:
                verdicts.keep(index, "the writer says the same")
            else:
                verdicts.change(index, text, "fused" if len(written) == 1 else f"fused by writer {number + 1}")
        if len(written) > 1:
            verdicts.notes["chosen of each writer"] = [chosen[number] for number in range(len(written))]

    def _score(
        self, by: str, captions: Captions, usable: Sequence[tuple[int, int, str]], texts: list[str],
        sources: dict[int, list[str]], work: Work, notes: dict[str, Any], what: str,
    ) -> np.ndarray:  # fmt: skip
        """(n,) scores of what was written; references are what it was written from."""
        from captune.curation.scoring import fit
        from captune.data.columns import LazyImages
        from captune.scorers import load_scorer, scorers_in

        scorer = load_scorer(by, device=work.device) if work.device else load_scorer(by)
        scorer.check()
        references = {index: [texts[index], *sources[index]] for index, _, _ in usable}
        fit(scorer, references.values)
        notes[what] = scorer.signature
        size = len(usable) if any(one.together for one in scorers_in(scorer)) else _PART
        made = []
        for start in range(0, len(usable), size):
            part = usable[start : start + size]
            rows = captions.rows[[index for index, _, _ in part]].tolist()
            columns: dict[str, Any] = {
                "references": [references[index] for index, _, _ in part],
                "image_id": captions.image_ids.take(rows).to_pylist(),
            }
            for name in set(scorer.required_columns) - columns.keys():
                if name not in captions.images.column_names:
                    raise CurationError(f"{what}: {by} needs {name}, which {captions.source} does not have")
                chosen = captions.images.select(rows)
                columns[name] = LazyImages(chosen) if name == "image" else list(chosen.with_format(None)[name])
            made.append(scorer.per_caption(scorer.measure([text for _, _, text in part], columns)))
        return np.concatenate(made)


@dataclass(frozen=True)
class _Program:
    """What is written behind the name of a source's own program."""

    keep: Literal["union", "vote"] = "union"


def _program(name: str) -> Callable[[Sequence[str]], str] | None:
    """The exact program that a writer's name stands for, such as storybook?keep=vote; None for a model.

    Raises:
        SpecError: for another setting.
    """
    source, mark, _ = name.partition("?")
    if source not in SOURCES:
        return None
    settings = parse(name[len(source) :] if mark else None, _Program, what=f"writer {source!r}", example=_EXAMPLE)
    program: Callable[[Sequence[str]], str] | None = SOURCES[source].fuser(settings.keep)
    return program


@dataclass
class _Source:
    """What is said of an image besides the caption: by models, and by experts."""

    texts: list[str]
    facts: list[str]


def read_reply(reply: str | None) -> tuple[str, str]:
    """Return the caption that an answer holds (None: one that was cut), and why it holds none; one of them is empty."""
    if reply is None:
        return "", "the answer was cut off"
    try:
        said = without_thought(reply)
    except ValueError as error:
        return "", str(error)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if not lines:
        return "", "the writer says nothing"
    if len(lines) > 1:
        return "", "the writer says more than a caption"
    text = lines[0]
    if len(text) > 1 and text[0] + text[-1] in ('""', "\u201c\u201d"):
        text = text[1:-1].strip()
    return (text, "") if text else ("", "the writer says nothing")


def _fill(template: str, raw: str, source: _Source) -> str:
    """The prompt; captions are put in last and once, so that braces in one are no field."""
    from captune.models.answerers import one_line

    said = {
        "{raw}": f'"{one_line(raw)}"',
        "{captions}": "; ".join(f'"{one_line(text)}"' for text in source.texts) or "none",
        "{facts}": "; ".join(one_line(fact) for fact in source.facts) or "nothing",
    }
    made, rest = "", template
    while rest:
        places = {rest.find(name): name for name in said if name in rest}
        if not places:
            return made + rest
        at = min(places)
        made, rest = made + rest[:at] + said[places[at]], rest[at + len(places[at]) :]
    return made


def _said(key: str, value: Any, where: str) -> str:
    """A column of an expert as words; "" for an empty one and for what is no finding."""
    if key in ("image_id", "image", "file_name", "caption_id", "size") or value is None or value == []:
        return ""
    if all(isinstance(one, int | float) for one in (value if isinstance(value, list) else [value])):
        return ""  # scores, vectors
    if isinstance(value, str):
        return f"{key}: {value}" if value.strip() else ""
    labels = [one.get("label") if isinstance(one, dict) else one for one in value] if isinstance(value, list) else []
    words = Counter(label for label in labels if isinstance(label, str))
    if not labels or words.total() < len(labels):
        raise CurationError(f"{where}: {key} holds no text, list of texts, or list of objects with a label")
    return f"{key}: " + ", ".join(f"{n} x {label}" if n > 1 else label for label, n in words.items())
