"""Human judgements of captions, in the formats in which they are distributed.

    Flickr8k-Expert      ExpertAnnotations.txt       image <tab> name.jpg#k <tab> three grades, 1 to 4
    Flickr8k-CrowdFlower CrowdFlowerAnnotations.txt  image <tab> name.jpg#k <tab> share of yes <tab> yes <tab> no
    CLIPScore's JSON     flickr8k.json, composite.json  {id: {"ground_truth": [...], "human_judgement": [{"caption",
                                                     "rating"}]}}, as its download script writes them
    CapArena             caparena_annots_eval.json   [{"img", "caption1", "caption2", "source1", "source2", "winner",
                                                     "ref", "cluster"}]
    FOIL                 foilv1.0_test_2017.json     COCO's layout, each annotation with "foil" and the pair's "id"
    Pascal-50S           a folder with pair_pascal.mat and consensus_pascal.mat (needs scipy)
    plain                CSV, TSV, JSON or JSONL     image_id, caption, rating; or image_id, caption_a, caption_b,
                                                     winner
    arena                .sqlite                     the votes of `captune arena`

The rules of each are in its reader below. What the bytes of a line cannot be read as is left out and named by its line;
a judgement whose caption or image is not in the captions file is left out and counted; anything else that does not fit
the format is an error with its line.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from captune.data.readers import ID_KEYS, IMAGE_KEYS, MISSING, TEXT_SUFFIXES, TOKEN, as_id, nfc, text_entries
from captune.data.sources import load_references
from captune.errors import SourceError
from captune.utils.files import decode_row, parse_json, read_file, uncollected
from captune.utils.tables import header_of, refuse_repeated, rows_of

OWN = "captions that are one of their image's references"
NO_CAPTION = "captions that are not in the captions file"
NO_REFERENCES = "captions of images without references"
NO_RATING = "ratings that are not a number (NaN)"
SKIPPED = "battles that were skipped"
OF_MODELS = "votes of models"
MODEL = "model: "  # begins the names of raters that are models
HUMAN = "battles of the human caption, which is the reference"
ODD = "lines with bytes that are not UTF-8 text"
_SHOWN = 80


class Candidate(NamedTuple):
    """A caption that was judged.

    Attributes:
        image_id: its image.
        caption: the text.
        references: what scorers may compare it with; () without any.
    """

    image_id: str
    caption: str
    references: tuple[str, ...] = ()


class Battle(NamedTuple):
    """Which of two captions of an image people preferred.

    Attributes:
        first: the number of the first caption among the candidates.
        second: that of the second.
        winner: 1 the first, -1 the second, 0 a tie.
        category: a part of the data that is reported by itself; "" for none.
    """

    first: int
    second: int
    winner: int
    category: str = ""


@dataclass
class Judgements:
    """Human judgements of one file.

    Attributes:
        path: the file.
        format: its format, such as "flickr8k-expert".
        primary: the figure that papers print for it.
        protocol: how it was read, a sentence each.
        candidates: the captions that were judged, each once.
        ratings: (number of the candidate, rating), one for each judgement; or
        battles: pairs with a winner.
        read: how many judgements the file holds.
        left_out: {reason: how many judgements}.
        problems: a sentence for each line that could not be read.
        file_names: {image_id: its image's file name}, where the format has both.
    """

    path: str
    format: str
    primary: str
    protocol: list[str] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    ratings: list[tuple[int, float]] = field(default_factory=list)
    battles: list[Battle] = field(default_factory=list)
    read: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    file_names: dict[str, str] = field(default_factory=dict)
    _known: dict[Candidate, int] = field(default_factory=dict, repr=False)

    def candidate(self, image_id: str, caption: str, references: Iterable[str] = ()) -> int:
        """Return the number of a candidate, a new one where it is not there yet."""
        own = Candidate(image_id, caption, tuple(references))
        number = self._known.setdefault(own, len(self.candidates))
        if number == len(self.candidates):
            self.candidates.append(own)
        return number

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Count judgements that are not used."""
        self.left_out[reason] += count

    @property
    def used(self) -> int:
        """How many judgements are used."""
        return len(self.ratings) + len(self.battles)

    def without_references(self) -> Judgements:
        """The same without the captions that have no reference, which are counted."""
        kept = [bool(own.references) for own in self.candidates]
        if all(kept):
            return self
        made = Judgements(**{name: getattr(self, name) for name in ("path", "format", "primary", "read", "file_names")})
        made.protocol, made.problems, made.left_out = self.protocol, self.problems, Counter(self.left_out)
        made.ratings = [(made.candidate(*self.candidates[c]), r) for c, r in self.ratings if kept[c]]
        made.battles = [
            battle._replace(
                first=made.candidate(*self.candidates[battle.first]),
                second=made.candidate(*self.candidates[battle.second]),
            )
            for battle in self.battles
            if kept[battle.first] and kept[battle.second]
        ]
        made.leave_out(NO_REFERENCES, self.used - made.used)
        return made


class Captions(NamedTuple):
    """The captions of images, by the number that judgements name them with.

    Attributes:
        by_image: {image_id: {number: caption}}; a number may be missing.
        problems: a sentence for each line that could not be read.
        by_order: the files that do not say a caption's number, which is its place among its image's captions then.
    """

    by_image: dict[str, dict[int, str]]
    problems: list[str]
    by_order: list[str]

    @property
    def numbering(self) -> list[str]:
        """What the numbers of captions were taken from, if it is not written there."""
        return [f"a caption's number is its place in {' and '.join(self.by_order)}"] if self.by_order else []

    def of(self, image_id: str) -> tuple[str, ...]:
        """The captions of an image in order; () for an unknown image."""
        own = self.by_image.get(image_id, {})
        return tuple(own[number] for number in sorted(own))


def load_captions(sources: Sequence[str | Path]) -> Captions:
    """Read one or several captions files, each of other images.

    Args:
        sources: Flickr8k.token.txt, where "name.jpg#2" says which caption it is; a table with the columns image and
            caption, whose order says it; or any other source with references.

    Raises:
        SourceError: for a file that cannot be read, or an image with different captions in two files.
    """
    merged: dict[str, dict[int, str]] = {}
    problems: list[str] = []
    by_order: list[str] = []
    for source in sources:
        path = Path(source).expanduser()
        if path.is_file() and path.suffix.lower() in TEXT_SUFFIXES:
            own, written = _numbered(path, problems)
            by_order += [] if written else [path.name]
        else:
            by_order.append(path.name)
            own = {image_id: dict(enumerate(texts)) for image_id, texts in load_references(str(source)).items()}
        for image_id, texts in own.items():
            if merged.setdefault(image_id, texts) != texts:
                raise SourceError(f"{source} has other captions of image {image_id!r} than a file named before it")
    return Captions(merged, problems, by_order)


def _numbered(path: Path, problems: list[str]) -> tuple[dict[str, dict[int, str]], bool]:
    """({image: {number: caption}}, whether the table says the numbers); a blank caption is left out, not its number."""
    text = _text(path)
    found: dict[str, dict[int, str]] = {}
    written = TOKEN.match(text.split("\n", 1)[0]) is not None
    if written:
        rows: Iterable[tuple[int, str, int, str]] = _token_rows(path, text)
    else:
        places: Counter[str] = Counter()
        rows = _placed(text_entries(path, text), places)
    for line, image_id, number, caption in rows:
        if _is_odd(image_id + caption):
            problems.append(_odd_line(path, line, image_id + caption))
            continue
        own = found.setdefault(nfc(image_id), {})
        if number in own:
            raise SourceError(f"{path}, line {line}: a second caption {image_id}#{number}; keep one")
        if caption and caption.lower() not in MISSING:
            own[number] = caption
    return found, written


def _placed(entries: Iterable[Any], places: Counter[str]) -> Iterator[tuple[int, str, int, str]]:
    for entry in entries:
        yield entry.number, entry.image_id, places[entry.image_id], entry.references[0]
        places[entry.image_id] += 1


def _token_rows(path: Path, text: str) -> Iterator[tuple[int, str, int, str]]:
    """Flickr8k.token.txt; it calls one image "2258277193_586949ec62.jpg.1", whose file ends at .jpg."""
    for line, row in enumerate(text.split("\n"), start=1):
        if not row.strip():
            continue
        match = re.fullmatch(r"(.+?)(?:(?<=\.jpg)\.\d+)?#(\d+)\t(.*)", row.rstrip("\r"))
        if match is None:
            raise SourceError(f"{path}, line {line}: expected 'name.jpg#0<tab>caption', found {row[:_SHOWN]!r}")
        yield line, match[1], int(match[2]), match[3].strip()


# --------------------------------------------------------------------- reading


def read_judgements(
    path: str | Path,
    *,
    captions: Sequence[str | Path] = (),
    max_references: int | None = None,
    seed: int = 0,
) -> Judgements:
    """Read human judgements; the format is found by the content.

    Args:
        path: a file, or Pascal-50S's folder.
        captions: captions files or sources, for formats that name captions and references by image.
        max_references: sample so many of a caption's references; None: all, but 5 of Pascal-50S's 48, as is usual.
        seed: of that sampling.

    Raises:
        SourceError: for an unknown format, or a file that does not keep to its own.
    """
    path = Path(path).expanduser()
    if max_references is not None and max_references < 1:
        raise SourceError(f"max_references must be at least 1, not {max_references}")
    known = load_captions(captions) if captions else None
    with uncollected():
        found = _read(path, known)
    if known is not None:
        found.problems += known.problems
    if not found.used:
        counts = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items())
        raise SourceError(f"{path}: no judgement can be used ({counts or 'it holds none'}){_advice(found, known)}")
    limit = 5 if max_references is None and found.format == "pascal50s" else max_references
    return found if limit is None else _sampled(found, limit, seed)


def _advice(found: Judgements, known: Captions | None) -> str:
    if found.left_out[NO_CAPTION] and known is not None:
        ids = list(known.by_image)[:1]
        return f"; the captions file has ids like {ids[0]!r}" if ids else "; the captions file is empty"
    return ""


def _sampled(found: Judgements, limit: int, seed: int) -> Judgements:
    """Every caption with at most so many of its references; captions that share theirs share the sample."""
    chosen: dict[tuple[str, ...], tuple[str, ...]] = {}
    for own in found.candidates:
        if own.references not in chosen:
            kept = own.references
            if len(kept) > limit:
                rng = np.random.default_rng([seed, len(chosen)])
                kept = tuple(kept[i] for i in sorted(rng.permutation(len(kept))[:limit]))
            chosen[own.references] = kept
    found.candidates = [own._replace(references=chosen[own.references]) for own in found.candidates]
    found.protocol.append(f"at most {limit} references of each caption, sampled (seed {seed})")
    return found


def _read(path: Path, captions: Captions | None) -> Judgements:
    if path.is_dir():
        return _pascal50s(path)
    if is_database(path):
        return _arena(path, captions)
    suffix = path.suffix.lower()
    if suffix == ".mat":
        raise SourceError(f"{path}: name the folder that holds pair_pascal.mat and consensus_pascal.mat")
    text = _text(path)
    if suffix == ".json" or (suffix not in (".jsonl", ".ndjson") and text.lstrip()[:1] in ("{", "[")):
        return _json(path, text, captions)
    if suffix in (".jsonl", ".ndjson"):
        return _plain(path, _jsonl_rows(path, text), captions)
    first = next((line for line in text.split("\n") if line.strip() and not _is_odd(line)), "").rstrip("\r")
    cells = first.split("\t")
    if len(cells) == 5 and "#" in cells[1]:
        grades = all(re.fullmatch(r"[1-4]", cell) for cell in cells[2:])
        return (_expert if grades else _crowdflower)(path, text, captions)
    header = _header(first)
    if header is not None:
        return _plain(path, _table_rows(path, text, *header), captions)
    raise SourceError(
        f"{path} holds no known human judgements: expected Flickr8k's annotations (image<tab>name.jpg#2<tab>...), "
        "JSON, or a table with the columns image_id, caption and rating, or image_id, caption_a, caption_b and winner; "
        f"it begins {first[:_SHOWN]!r}"
    )


def _text(path: Path) -> str:
    """The file's text; a byte that is not UTF-8 becomes half a character, which `_is_odd` finds."""
    return read_file(path, error=SourceError).removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


_ODD = re.compile("[\ud800-\udfff\x00]")


def _is_odd(text: str) -> bool:
    return _ODD.search(text) is not None


def _odd_line(path: Path, line: int | str, text: str) -> str:
    place = f"line {line}" if isinstance(line, int) else line
    code = next(ord(character) for character in _ODD.findall(text))
    if 0xDC80 <= code <= 0xDCFF:
        what = f"a byte that is not UTF-8 text (0x{code & 0xFF:02x})"
    else:
        what = "a NUL" if code == 0 else f"half a character (U+{code:04X})"
    return f"{path.name}, {place}: {what}; it is left out"


def _lines(found: Judgements, path: Path, text: str, judgements: int) -> Iterator[tuple[int, list[str]]]:
    """The cells of each line of Flickr8k's annotations; lines with odd bytes are named, and count as judgements."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        found.read += judgements
        if _is_odd(line):
            found.problems.append(_odd_line(path, number, line))
            found.leave_out(ODD, judgements)
            continue
        cells = line.rstrip("\r").split("\t")
        if len(cells) != 5 or not re.fullmatch(r".+#\d+", cells[1]) or not cells[0].strip():
            raise SourceError(
                f"{path}, line {number}: expected image, name.jpg#k and three numbers, separated by tabs, found "
                f"{line[:_SHOWN]!r}"
            )
        yield number, cells


def _needs_captions(path: Path, captions: Captions | None) -> Captions:
    if captions is None:
        raise SourceError(
            f"{path} names captions by number; say where they are: --captions Flickr8k.token.txt (or captions.txt)"
        )
    return captions


def _words(text: str) -> str:
    return " ".join(text.split())


def _looked_up(captions: Captions, key: str) -> str | None:
    image_id, _, number = key.rpartition("#")
    return captions.by_image.get(nfc(image_id), {}).get(int(number))


def _expert(path: Path, text: str, captions: Captions | None) -> Judgements:
    """Flickr8k-Expert by the protocol of the CLIPScore paper (Hessel et al., EMNLP 2021, appendix A).

    The references are the image's own captions, pairs whose candidate is one of them are left out, and each of the
    three grades is a judgement of its own.
    """
    captions = _needs_captions(path, captions)
    found = Judgements(str(path), "flickr8k-expert", "tau_c")
    found.protocol = [
        "each of the three experts' grades is a judgement of its own",
        "references: the image's own captions; pairs whose caption is one of them are left out",
        *captions.numbering,
    ]
    for line, (image, key, *grades) in _lines(found, path, text, 3):
        if not all(re.fullmatch(r"[1-4]", grade) for grade in grades):
            raise SourceError(f"{path}, line {line}: expected three grades from 1 to 4, found {' '.join(grades)}")
        image_id = nfc(image)
        caption, references = _looked_up(captions, key), captions.of(image_id)
        if caption is None or not references:
            found.leave_out(NO_CAPTION if caption is None else NO_REFERENCES, 3)
        elif _words(caption) in map(_words, references):
            found.leave_out(OWN, 3)
        else:
            number = found.candidate(image_id, caption, references)
            found.ratings += [(number, float(grade)) for grade in grades]
    return found


def _crowdflower(path: Path, text: str, captions: Captions | None) -> Judgements:
    """Flickr8k-CrowdFlower as in CLIPScore's script.

    A judgement is the share of yes answers of a pair. An image's own caption may be judged too; every own caption that
    was judged is taken out of the image's references, for all of its judgements.
    """
    captions = _needs_captions(path, captions)
    found = Judgements(str(path), "flickr8k-crowdflower", "tau_b")
    found.protocol = [
        "a judgement is the share of people who said yes",
        "references: the image's own captions without those that were judged themselves",
        *captions.numbering,
    ]
    rows: list[tuple[str, str, float]] = []
    judged: dict[str, set[str]] = {}
    for line, (image, key, *numbers) in _lines(found, path, text, 1):
        try:
            share, yes, no = float(numbers[0]), int(numbers[1]), int(numbers[2])
        except ValueError:
            share, yes, no = math.nan, 0, 0
        if yes < 0 or no < 0 or not yes + no or not abs(share - yes / (yes + no)) < 1e-5:
            raise SourceError(
                f"{path}, line {line}: expected the share of yes answers and the numbers of yes and no, found "
                f"{' '.join(numbers)}"
            )
        image_id, caption = nfc(image), _looked_up(captions, key)
        if caption is None:
            found.leave_out(NO_CAPTION)
            continue
        judged.setdefault(image_id, set()).add(_words(caption))
        rows.append((image_id, caption, share))
    references = {
        image_id: tuple(text for text in captions.of(image_id) if _words(text) not in own)
        for image_id, own in judged.items()
    }
    for image_id, caption, share in rows:
        if not references[image_id]:
            found.leave_out(NO_REFERENCES)
        else:
            found.ratings.append((found.candidate(image_id, caption, references[image_id]), share))
    return found


# ----------------------------------------------------------------------- JSON


def _json(path: Path, text: str, captions: Captions | None) -> Judgements:
    content = parse_json(text, str(path), error=SourceError, nan=True)
    if isinstance(content, dict):
        annotations = content.get("annotations")
        if (
            isinstance(annotations, list)
            and annotations
            and isinstance(annotations[0], dict)
            and "foil" in annotations[0]
        ):
            return _foil(path, content, captions)
        first = next(iter(content.values()), None)
        if isinstance(first, dict) and "human_judgement" in first:
            return _clipscore(path, content)
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        if {"caption1", "caption2", "winner"} <= content[0].keys():
            return _caparena(path, content, captions)
        return _plain(path, ((f"entry {n}", row) for n, row in enumerate(content, start=1)), captions)
    raise SourceError(
        f"{path} holds no known human judgements: expected CapArena's battles, FOIL's annotations, CLIPScore's "
        '{id: {"ground_truth": ..., "human_judgement": ...}}, or a list of objects with image_id, caption and rating'
    )


def _is_odd_row(row: Any) -> str | None:
    """What is odd in the texts of an entry, if anything is."""
    if isinstance(row, str):
        return row if _is_odd(row) else None
    values: Iterable[Any] = row.values() if isinstance(row, dict) else row if isinstance(row, list) else ()
    return next((odd for value in values if (odd := _is_odd_row(value)) is not None), None)


def _left_out_as_odd(found: Judgements, path: Path, place: str, row: Any) -> bool:
    """Whether an entry has odd bytes; it is named then, and counted."""
    odd = _is_odd_row(row)
    if odd is not None:
        found.problems.append(_odd_line(path, place, odd))
        found.leave_out(ODD)
    return odd is not None


def _given(row: Mapping[str, Any], key: str, kind: type | tuple[type, ...], place: str, *, blank: bool = False) -> Any:
    """A value of an entry; an error that names the place where it is missing, of another kind, or blank and may not."""
    value = row.get(key)
    empty = isinstance(value, str) and not value.strip() and not blank
    if not isinstance(value, kind) or isinstance(value, bool) or empty:
        what = "is missing" if key not in row else f"is {str(value)[:_SHOWN]!r}"
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = {str: "a text", list: "a list", int: "a number", float: "a number", dict: "an object"}
        expected = " or ".join(dict.fromkeys(names[own] for own in kinds))
        raise SourceError(f"{place}: {key!r} {what}; expected {expected}")
    return value


def _clipscore(path: Path, content: Mapping[str, Any]) -> Judgements:
    """What CLIPScore's download script makes, and others after it: ratings with the references in the file.

    A rating that is NaN is left out, as in the script. The references are taken as they are.
    """
    found = Judgements(str(path), "clipscore-json", "tau_c")
    found.protocol = ["references: those of the file"]
    for key, entry in content.items():
        place = f"{path}, {key!r}"
        if not isinstance(entry, dict):
            raise SourceError(f"{place}: expected an object with 'ground_truth' and 'human_judgement'")
        image = _given(entry, "image_path", str, place) if "image_path" in entry else key
        image_id = nfc(Path(image).name or key)
        references = tuple(map(_words, _texts(_given(entry, "ground_truth", list, place), f"{place}, 'ground_truth'")))
        for number, row in enumerate(_given(entry, "human_judgement", list, place), start=1):
            found.read += 1
            here = f"{place}, judgement {number}"
            if not isinstance(row, dict):
                raise SourceError(f"{here}: expected an object with 'caption' and 'rating'")
            if _left_out_as_odd(found, path, f"{key!r}, judgement {number}", [row, list(references)]):
                continue
            rating = _given(row, "rating", (int, float), here)
            caption = _words(_given(row, "caption", str, here))
            if math.isnan(rating):
                found.leave_out(NO_RATING)
            else:
                found.ratings.append((found.candidate(image_id, caption, references), _finite(rating, here)))
    return found


def _texts(values: Any, place: str) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(text, str) and text.strip() for text in values):
        raise SourceError(f"{place}: expected a list of texts")
    return values


def _finite(value: float, place: str) -> float:
    if not math.isfinite(value):
        raise SourceError(f"{place}: the rating is {value}")
    return float(value)


def _caparena(path: Path, content: Sequence[Mapping[str, Any]], captions: Captions | None) -> Judgements:
    """CapArena's human battles; the winner is the name of a source, or "equal", "skip" or "bad", which are ties.

    Battles in which a person's caption took part are left out, as in the published agreement: that caption is the
    reference.
    """
    found = Judgements(str(path), "caparena", "agreement")
    found.protocol = [
        "reference: the human caption; battles of the human caption are left out",
        'winners "equal", "skip" and "bad" are ties',
        "agreement: as many battles count as ties of a scorer as people called (those of the smallest differences)",
    ]
    for number, row in enumerate(content, start=1):
        found.read += 1
        place = f"{path}, entry {number}"
        if _left_out_as_odd(found, path, f"entry {number}", dict(row)):
            continue
        sources = [_given(row, key, str, place) for key in ("source1", "source2")]
        winner = _given(row, "winner", str, place)
        results = {sources[0]: 1, sources[1]: -1} | dict.fromkeys(("equal", "skip", "bad", "tie", "tie (bothbad)"), 0)
        if winner not in results:
            raise SourceError(f"{place}: the winner is {winner!r}, neither {sources[0]!r} nor {sources[1]!r} nor a tie")
        if "human" in sources:
            found.leave_out(HUMAN)
            continue
        image_id = nfc(_given(row, "img", str, place))
        references = (_given(row, "ref", str, place),) if "ref" in row else captions.of(image_id) if captions else ()
        first, second = (
            found.candidate(image_id, _given(row, key, str, place), references) for key in ("caption1", "caption2")
        )
        found.battles.append(Battle(first, second, results[winner], str(row.get("cluster") or "")))
    return found


def _foil(path: Path, content: Mapping[str, Any], captions: Captions | None) -> Judgements:
    """FOIL: each caption of COCO against the same with one wrong noun; the original wins.

    The references are the image's other captions, from the captions file; without one, the originals of the image's
    other pairs.
    """
    found = Judgements(str(path), "foil", "pairwise_accuracy")
    found.protocol = ["the caption without the wrong noun wins", "references: the image's captions but the original"]
    images = content.get("images")
    for image in images if isinstance(images, list) else ():
        if isinstance(image, dict) and isinstance(image.get("file_name"), str) and "id" in image:
            found.file_names[str(image["id"])] = image["file_name"]
    pairs: dict[Any, tuple[list[Any], list[Any]]] = {}
    originals: dict[str, list[str]] = {}
    for number, row in enumerate(content["annotations"], start=1):
        place = f"{path}, entry {number} of 'annotations'"
        if not isinstance(row, dict) or not isinstance(row.get("foil"), bool):
            raise SourceError(f"{place}: expected an object with 'foil': true or false")
        found.read += row["foil"]
        if odd := _is_odd_row(row):
            found.problems.append(_odd_line(path, f"entry {number} of 'annotations'", odd))
            found.left_out[ODD] += row["foil"]
            continue
        image_id = as_id(row.get("image_id"), place)
        caption, pair = _given(row, "caption", str, place), (image_id, row.get("id"))
        pairs.setdefault(pair, ([], []))[row["foil"]].append(caption)
        if not row["foil"]:
            originals.setdefault(image_id, []).append(caption)
    for (image_id, pair), (true, false) in pairs.items():
        if len(true) != 1:
            if len(true) > 1:
                raise SourceError(f"{path}: the pair {pair!r} of image {image_id} has {len(true)} originals")
            found.leave_out("foils without their original", len(false))
            continue
        every = captions.of(image_id) if captions is not None else tuple(dict.fromkeys(originals[image_id]))
        references = tuple(text for text in every if _words(text) != _words(true[0]))
        for caption in false:
            first = found.candidate(image_id, true[0], references)
            found.battles.append(Battle(first, found.candidate(image_id, caption, references), 1))
    return found


# ---------------------------------------------------------------------- plain

_WINNERS = {"a": 1, "caption_a": 1, "b": -1, "caption_b": -1, "tie": 0, "equal": 0, "bad": 0}


def _plain(path: Path, rows: Iterable[tuple[str, Mapping[str, Any]]], captions: Captions | None) -> Judgements:
    """A table of ratings or of battles, one row each.

    Columns: image_id (or image), caption and rating (a number, or a list of them), or caption_a, caption_b and winner
    (a, b or tie; bad, which both are, is a tie, and skip is left out); references (a list; in a table a JSON list or
    one text), else those of the captions file; category. A caption of a battle may be empty, as a captioner's can be.
    A caption that is one of its references is left out. Battles that `captune arena` exports name their `rater`: models
    do not count where a person has voted.
    """
    found, every = Judgements(str(path), "plain", ""), list(rows)
    kept = [one for one in every if not ("winner" in one[1] and str(one[1].get("rater", "")).startswith(MODEL))]
    if 0 < len(kept) < len(every):
        found.read += len(every) - len(kept)
        found.leave_out(OF_MODELS, len(every) - len(kept))
    for place, row in kept or every:
        here = f"{path}, {place}"
        battle = "winner" in row
        ratings = row.get("rating", row.get("ratings"))
        each = len(ratings) if isinstance(ratings, list) and not battle else 1
        found.read += each
        if odd := _is_odd_row(dict(row)):
            found.problems.append(_odd_line(path, place, odd))
            found.leave_out(ODD, each)
            continue
        image_id = next(
            (row[key] for key in ("image_id", *IMAGE_KEYS, *ID_KEYS) if row.get(key) not in (None, "")), None
        )
        image_id = nfc(as_id(image_id, here))
        given = row.get("references", row.get("reference"))
        if given in (None, "", []):
            references = captions.of(image_id) if captions is not None else ()
        else:
            references = tuple(_texts([given] if isinstance(given, str) else given, f"{here}, 'references'"))
        if battle:
            winner = str(row["winner"]).strip().lower()
            if winner == "skip":
                found.leave_out(SKIPPED)
                continue
            if winner not in _WINNERS:
                raise SourceError(f"{here}: the winner is {row['winner']!r}; write a, b or tie")
            texts = [_given(row, key, str, here, blank=True) for key in ("caption_a", "caption_b")]
        else:
            texts = [_given(row, "caption", str, here)]
            numbers = [_number(value, here) for value in (ratings if isinstance(ratings, list) else [ratings])]
        if any(_words(text) in map(_words, references) for text in texts):
            found.leave_out(OWN, each)
            continue
        numbered = [found.candidate(image_id, text, references) for text in texts]
        if battle:
            found.battles.append(Battle(numbered[0], numbered[1], _WINNERS[winner], str(row.get("category") or "")))
        else:
            usable = [number for number in numbers if not math.isnan(number)]
            found.leave_out(NO_RATING, len(numbers) - len(usable))
            found.ratings += [(numbered[0], number) for number in usable]
    found.left_out += Counter()  # without zeros
    if found.ratings and found.battles:
        raise SourceError(f"{path} mixes ratings and battles; put them into two files")
    found.primary = "pairwise_accuracy" if found.battles else "tau_b"
    found.protocol = ["captions that are one of their image's references are left out"]
    return found


def _arena(path: Path, captions: Captions | None) -> Judgements:
    """The votes of `captune arena` that count: its view `judgements` has the columns of a table of battles."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            cursor = database.execute(
                "SELECT rater, image_id, caption_a, caption_b, winner FROM judgements ORDER BY battle"
            )
            votes = cursor.fetchall()
    except sqlite3.Error as error:
        raise SourceError(f"{path} holds no votes of `captune arena`: {error}") from error
    names = ("rater", "image_id", "caption_a", "caption_b", "winner")
    rows = [(f"vote {number}", dict(zip(names, vote, strict=True))) for number, vote in enumerate(votes, start=1)]
    found = _plain(path, rows, captions)
    found.format, found.primary = "arena", "pairwise_accuracy"
    found.protocol.append("votes of `captune arena`; both bad is a tie, skips and votes taken back do not count")
    return found


def is_database(path: Path) -> bool:
    """Return whether a file is one of SQLite's, by its first bytes."""
    try:
        with path.open("rb") as file:
            return path.is_file() and file.read(16) == b"SQLite format 3\0"
    except OSError:
        return False


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or value is None:
        raise SourceError(f"{place}: 'rating' is {value!r}; expected a number")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise SourceError(f"{place}: 'rating' is {str(value)[:_SHOWN]!r}; expected a number") from None
    if math.isinf(number):
        raise SourceError(f"{place}: the rating is {value}")
    return number


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        if _is_odd(line):
            yield f"line {number}", {"line": line}  # which is named and left out
            continue
        try:
            row = decode_row(line)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{path}, line {number}: {error}") from error
        yield f"line {number}", row


def _header(first: str) -> tuple[str, list[str]] | None:
    """(delimiter, names of the columns) of a table of judgements."""
    for delimiter in ",\t;|":
        names = header_of(first, delimiter=delimiter)
        if {"caption", "rating"} <= set(names) or {"caption_a", "caption_b", "winner"} <= set(names):
            return delimiter, names
    return None


def _table_rows(path: Path, text: str, delimiter: str, names: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    refuse_repeated(path, names, names, SourceError)
    for number, _, row in rows_of(path, text, SourceError, delimiter=delimiter):
        cells: dict[str, Any] = {name: cell.strip() for name, cell in zip(names, row, strict=True)}
        for name in ("references", "reference"):
            if cells.get(name, "").startswith("["):
                try:
                    cells[name] = json.loads(cells[name])
                except ValueError as error:
                    raise SourceError(f"{path}, line {number}: {name!r} is no JSON list: {error}") from error
        yield f"line {number}", cells


# ----------------------------------------------------------------- Pascal-50S

_PASCAL = {1: "HC", 2: "HI", 3: "HM", 4: "MM"}


def _pascal50s(folder: Path) -> Judgements:
    """Pascal-50S (Vedantam et al., CVPR 2015): pairs of captions, each judged against 48 references by one person.

    The winner is the caption that more of the 48 chose; equal votes are a tie, which CLIPScore's authors broke at
    random. The categories are two correct human captions (HC), one of them of another image (HI), human and machine
    (HM), two machines (MM).
    """
    pairs_file, votes_file = folder / "pair_pascal.mat", folder / "consensus_pascal.mat"
    if not (pairs_file.is_file() and votes_file.is_file()):
        raise SourceError(f"{folder} has no pair_pascal.mat and consensus_pascal.mat; name a file of judgements")
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise SourceError("reading Pascal-50S needs scipy: pip install 'captune[scorers]'") from error
    try:
        pairs_mat, votes_mat = loadmat(str(pairs_file)), loadmat(str(votes_file))
        pairs = [tuple(str(cell[0]).strip() for cell in row) for row in pairs_mat["new_input"][0]]
        categories = [int(number) for number in np.ravel(pairs_mat["category"])]
        votes = [tuple(cell[0][0] for cell in row) for row in votes_mat["triplets"][0]]
        texts = [[str(cell[0]).strip() for cell in row[:3]] for row in votes]
        winners = [int(row[3]) for row in votes]
    except Exception as error:  # scipy raises many kinds for a file of another layout
        raise SourceError(f"{folder} does not hold Pascal-50S's files as they are distributed: {error!r}") from error
    if not pairs or len(votes) % len(pairs) or len(categories) != len(pairs):
        raise SourceError(f"{folder}: {len(votes)} votes and {len(categories)} categories for {len(pairs)} pairs")
    found = Judgements(str(folder), "pascal50s", "pairwise_accuracy")
    found.protocol = ["the caption that most of the 48 chose wins; equal votes are ties and count for no accuracy"]
    each = len(votes) // len(pairs)
    for number, (image, first, second) in enumerate(pairs):
        found.read += 1
        own = slice(number * each, (number + 1) * each)
        chosen = Counter(
            _words(b if winner == 1 else c) for (_, b, c), winner in zip(texts[own], winners[own], strict=True)
        )
        if set(chosen) - {_words(first), _words(second)}:
            raise SourceError(f"{folder}: the votes of pair {number + 1} are about other captions than the pair's")
        references = [reference for reference, _, _ in texts[own]]
        balance = chosen[_words(first)] - chosen[_words(second)]
        category = _PASCAL.get(categories[number], str(categories[number]))
        a, b = (found.candidate(nfc(image), text, references) for text in (first, second))
        found.battles.append(Battle(a, b, (balance > 0) - (balance < 0), category))
    return found
