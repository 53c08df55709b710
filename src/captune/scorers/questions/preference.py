"""A judge prefers one of two captions of an image: win rate against references or a baseline's captions.

    both       s(c) = P(c wins) + P(tie) / 2,   P(c wins) = (p(A | c, o) + p(B | o, c)) / 2,   P(tie) likewise
    caparena   v(c) in {+1, 0, -1}: the likeliest of A, tie and B in one order, which a coin decides
               CapArena-Auto = mean over baselines of  sum_images v / 2        (Cheng et al., 2025)

p(A | x, y) is the probability of the letter A as the next token where x is shown as A and y as B, normalised over A, B
and C (a tie). The guidelines of the prompt are CapArena's in our words: precision first, then what is told, whatever
the length and the style. With both orders a judge that always likes the first one gives every caption one half; how
much it does is the figure `position_bias`, mean p(A) - p(B).

The judge `storybook` (the default), or another source that knows the truth, asks nobody: the caption with the higher
F1 of exact facts wins, a difference of `band` or less is a tie, and order plays no part.

Where the published program (`protocol=caparena`) and this one differ: its coin has no seed, ours is a digest of `seed`
and image; its verdict is read from two lines of text, and what cannot be read is left out, so that the number of
battles varies, while ours is the likeliest letter and every battle counts; it asks for temperature 0.5 and sends 0.1,
ours has none. Its sum is divided by 2 whatever the number of images, which gives -100 to 100 at its 200 images for each
baseline alone; another number is warned of. A baseline that is judged itself has 0 against itself there, in the mean.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from captune.data import read_captions
from captune.data.images import IMAGE_SUFFIXES
from captune.data.schemes import SOURCES
from captune.errors import CaptionFileError, ScorerError, SpecError
from captune.models.answerers import Answerer, Question, load_vision_answerer, one_line
from captune.scorers import Scorer, load_scorer, safe_ratio
from captune.utils.files import read_json
from captune.utils.hashing import fingerprint

if TYPE_CHECKING:
    from captune.models.captioner import Captioner

_log = logging.getLogger(__name__)

ANSWERS = ("A", "B", "C")
PROMPT = """\
Here are an image and two captions of it, A and B. Which one gives somebody who cannot see the image the better idea \
of it?
- What a caption says must be so: objects, their number, colours, places and relations. An invented or wrong statement \
counts heavily against it.
- Of two captions without errors, the one that tells more of what matters in the image is better.
- Neither length nor style counts: no caption is better for being longer, and where two say the same, one that is \
noticeably longer is worse.
{reference}Caption A: {first}
Caption B: {second}
Answer with one letter: A, B, or C where neither is better."""
REFERENCE = "A caption by a person, correct but not complete, to check against: {text}\n"
OPENING = "Answer:"
PER_BASELINE = 200  # images of a baseline in CapArena-Auto
_WIN, _TIE, _WORDS, _OTHERS, _BIAS, _FIXED = range(6)  # columns of the rows; then one for each baseline


@dataclass(frozen=True)
class Opponent:
    """What a caption is compared with.

    Attributes:
        baseline: whose it is.
        caption: the text.
        reference: a person's caption that the judge may see; "" for none.
    """

    baseline: str
    caption: str
    reference: str = ""


class Preference(Scorer):
    """How often a judge prefers the caption to another caption of the same image; a tie is half a win.

    The opponents are the image's references, averaged (`references=first`: one alone), or what a file says: captions
    of a baseline (JSONL, JSON), or CapArena-Auto's file (`caparena_auto_600.json`: {image: {captions: {name: text},
    ref_model: name}}), where each image has its one baseline and `human` is what the judge may check against.

    Equal captions are a tie, and an empty caption loses, unasked. A reward of 1 means that the caption is always
    preferred: with references as opponents that takes a caption better than a person's, and one half is a good value.

    One opponent is a win, a tie or a loss, and says little: right and wrong captions of storybook's images were told
    apart with an AUC of 0.823 by the first reference alone and of 1.000 by all of them, at 3.7 and 15.8 ms a caption.
    A model is asked twice for each reference; `references=first` spares four fifths of that
    where there are five.

    Figures: win_rate, tie_rate, length_ratio (words of the captions over words of the opponents: judges like length, so
    a win rate is read beside it), position_bias and, with `protocol=caparena`, caparena.

    Args:
        argument: the judge, any model that `Captioner` loads, a server, or a source that knows the truth:
            "preference:storybook?band=0.05", "preference:Qwen/Qwen2.5-VL-7B-Instruct?against=baseline.jsonl".
    """

    name = "preference"
    primary = "win_rate"
    higher_is_better: ClassVar = {"win_rate": True, "caparena": True}
    labels: ClassVar = {
        "win_rate": "win rate",
        "tie_rate": "ties",
        "length_ratio": "length ratio",
        "position_bias": "position bias",
        "caparena": "CapArena-Auto",
    }
    source = "Cheng et al., CapArena, 2025"
    cost = "two questions to a vision-language model for each reference; 16 ms with exact facts"
    required_columns: tuple[str, ...] = ("references", "scene")
    optional_columns: tuple[str, ...] = ("image_id",)
    is_additive = True
    positional = ("model",)
    usage = "preference:Qwen/Qwen2.5-VL-7B-Instruct?against=baseline.jsonl"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        model: Annotated[
            str,
            Field(
                description="a vision-language model's folder or hub name, a server, http://host:port/v1#model-name, "
                "or a source that knows the truth"
            ),
        ] = "storybook"
        against: Annotated[
            str, Field(description="a file of captions, or CapArena-Auto's; default: the image's references")
        ] = ""
        references: Annotated[
            Literal["first", "all"], Field(description="which references are opponents, without a file")
        ] = "all"
        protocol: Annotated[
            Literal["both", "caparena"], Field(description="both orders and probabilities, or one order and a verdict")
        ] = "both"
        reference: Annotated[
            bool, Field(description="whether the judge sees a person's caption: CapArena's human, else the first one")
        ] = False
        band: Annotated[float, Field(ge=0, le=1, description="difference of exact facts' F1 that is a tie")] = 0.02
        seed: Annotated[int, Field(ge=0, description="of the coin that decides the order (caparena)")] = 0

    def __init__(
        self,
        argument: str | None = None,
        *,
        answerer: Answerer | None = None,
        captioner: Captioner | None = None,
        device: str | None = None,
        batch_size: int = 8,
    ) -> None:
        settings = self.read(argument)
        if settings.reference and not settings.against:
            raise SpecError(
                "scorer 'preference': reference=1 would show the judge one of the two captions again; name opponents, "
                "against=FILE, or leave it out"
            )
        self.settings, self.batch_size = settings, batch_size
        self.answerer = answerer
        self.scheme = SOURCES[settings.model] if answerer is None and settings.model in SOURCES else None
        if self.scheme is not None and not (self.scheme.truth_scorer and self.scheme.truth_column):
            raise SpecError(f"scorer 'preference': the source {settings.model!r} knows no truth to judge by")
        if self.scheme is None and answerer is None:
            self.answerer = load_vision_answerer(settings.model, captioner=captioner, device=device, opening=OPENING)
        needs = ["image_id"] if settings.against or settings.protocol == "caparena" else []
        if not settings.against or settings.reference:
            needs.append("references")
        needs.append(self.scheme.truth_column if self.scheme is not None else "image")
        self.required_columns = tuple(needs)
        self.cached = self.scheme is None

    def check(self) -> None:
        """Raise ScorerError where the file or the judge is missing or invalid."""
        if self.settings.against:
            self._opponents  # noqa: B018
        if self.answerer is not None:
            self.answerer.check()

    @cached_property
    def _opponents(self) -> Mapping[str, Opponent]:
        """The opponent of each image, from the file."""
        try:
            return read_opponents(Path(self.settings.against).expanduser())
        except (CaptionFileError, OSError) as error:
            raise ScorerError(f"scorer {self.name!r}: {error}") from error

    @cached_property
    def baselines(self) -> tuple[str, ...]:
        """The names of those that the captions are compared with."""
        if not self.settings.against:
            return ("references",)
        return tuple(sorted({opponent.baseline for opponent in self._opponents.values()}))

    def _against(self, i: int, columns: Mapping[str, Any]) -> list[Opponent]:
        """Return the opponents of caption i."""
        if not self.settings.against:
            references = [text for text in columns["references"][i] if text.strip()]
            if not references:
                raise ScorerError(f"scorer {self.name!r}: {_which(i, columns)} has no reference to be compared with")
            chosen = references if self.settings.references == "all" else references[:1]
            return [Opponent("references", text) for text in chosen]
        image_id = str(columns["image_id"][i])
        found = self._opponents.get(image_id) or self._opponents.get(_unsuffixed(image_id))
        if found is None:
            raise ScorerError(
                f"scorer {self.name!r}: {self.settings.against} has no caption of {image_id!r}; leave such images out"
            )
        if self.settings.reference and not found.reference:
            return [Opponent(found.baseline, found.caption, next(iter(columns["references"][i]), ""))]
        return [found]

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        """Return (N, 5 + baselines): win, tie, words, the opponent's words, p(A) - p(B), and v of each baseline."""
        rows = np.zeros((len(captions), _FIXED + len(self.baselines)))
        battles: list[tuple[int, Opponent, float]] = []
        for i in range(len(captions)):
            opponents = self._against(i, columns)
            battles += [(i, opponent, 1 / len(opponents)) for opponent in opponents]
        outcomes = self._exact(captions, battles, columns) if self.scheme else self._ask(captions, battles, columns)
        place = {name: _FIXED + n for n, name in enumerate(self.baselines)}
        for (i, opponent, share), (win, tie, bias) in zip(battles, outcomes, strict=True):
            words = len(captions[i].split()), len(opponent.caption.split())
            rows[i, :_FIXED] += share * np.array([win, tie, *words, bias])
            rows[i, place[opponent.baseline]] += share * (2 * win + tie - 1)
        return rows

    def _exact(
        self, captions: Sequence[str], battles: Sequence[tuple[int, Opponent, float]], columns: Mapping[str, Any]
    ) -> list[tuple[float, float, float]]:
        """Return (win, tie, 0) of each battle, by the exact facts."""
        assert self.scheme is not None
        judge = load_scorer(self.scheme.truth_scorer)
        truths = columns[self.scheme.truth_column]

        def worth(texts: Sequence[str], of: Sequence[int]) -> np.ndarray:
            return judge.per_caption(judge.rows(texts, **{judge.required_columns[0]: [truths[i] for i in of]}))

        images = [i for i, *_ in battles]
        mine = worth(captions, range(len(captions)))  # once, however many opponents
        gaps = mine[images] - worth([opponent.caption for _, opponent, _ in battles], images)
        ties = np.abs(gaps) <= self.settings.band + 1e-12
        return [(float(gap > 0 and not tie), float(tie), 0.0) for gap, tie in zip(gaps, ties, strict=True)]

    def _ask(
        self, captions: Sequence[str], battles: Sequence[tuple[int, Opponent, float]], columns: Mapping[str, Any]
    ) -> list[tuple[float, float, float]]:
        """Return (win, tie, p(A) - p(B)) of each battle, by the judge's letters."""
        from captune.data.images import open_image

        orders: list[list[bool]] = []  # of each battle: whether the caption is A
        for i, opponent, _ in battles:
            mine, theirs = captions[i].strip(), opponent.caption.strip()
            if mine == theirs or not mine or not theirs:
                orders.append([])
            elif self.settings.protocol == "caparena":
                orders.append([self._coin(str(columns["image_id"][i]))])
            else:
                orders.append([True, False])
        asked = [(battle, first) for battle, own in enumerate(orders) for first in own]
        answers: list[np.ndarray] = []
        assert self.answerer is not None
        for start in range(0, len(asked), self.batch_size):
            questions = []
            for battle, first in asked[start : start + self.batch_size]:
                i, opponent, _ = battles[battle]
                pair = (captions[i], opponent.caption) if first else (opponent.caption, captions[i])
                text = prompt(*pair, opponent.reference if self.settings.reference else "")
                about = f"{_which(i, columns)}, {captions[i][:60]!r}"
                questions.append(Question(text, ANSWERS, about, open_image(columns["image"][i])))
            answers += self.answerer.answer_probabilities(questions)
        given = iter(answers)
        outcomes = []
        for (i, opponent, _), own in zip(battles, orders, strict=True):
            if not own:
                mine, theirs = captions[i].strip(), opponent.caption.strip()
                outcomes.append((float(bool(mine) and not theirs), float(mine == theirs), 0.0))
                continue
            said = [(next(given), first) for first in own]
            if self.settings.protocol == "caparena":
                said = [(np.eye(3)[int(np.argmax(p))], first) for p, first in said]
            win, tie, bias = np.mean([(p[0 if first else 1], p[2], p[0] - p[1]) for p, first in said], axis=0)
            outcomes.append((float(win), float(tie), float(bias)))
        return outcomes

    def _coin(self, image_id: str) -> bool:
        """Return whether the caption of an image is shown first."""
        return bool(hashlib.blake2b(f"{self.settings.seed}/{image_id}".encode(), digest_size=1).digest()[0] & 1)

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """Return (N,): P(win) + P(tie) / 2."""
        return rows[:, _WIN] + 0.5 * rows[:, _TIE]

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        figures = {
            "win_rate": (totals[..., _WIN] + 0.5 * totals[..., _TIE]) / n,
            "tie_rate": totals[..., _TIE] / n,
            "length_ratio": safe_ratio(totals[..., _WORDS], totals[..., _OTHERS]),
        }
        if self.scheme is None:
            figures["position_bias"] = totals[..., _BIAS] / n
        if self.settings.protocol == "caparena":
            figures["caparena"] = (totals[..., _FIXED:] / 2).mean(axis=-1)
        return figures

    def corpus(self, rows: np.ndarray) -> dict[str, float]:
        """Return the corpus figures; CapArena-Auto of another number of images than its own is warned of."""
        expected = PER_BASELINE * len(self.baselines)
        if self.settings.protocol == "caparena" and len(rows) != expected:
            _log.warning(
                "scorer %r: CapArena-Auto's sums run from -100 to 100 with %d images for each of %d baselines, and "
                "here are %d images: do not put this figure beside published ones",
                self.name,
                PER_BASELINE,
                len(self.baselines),
                len(rows),
            )
        return super().corpus(rows)

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        s = self.settings
        against = f"references:{s.references}"
        if s.against:
            told = {key: vars(opponent) for key, opponent in sorted(self._opponents.items())}
            against = f"against:{fingerprint(repr(told))}"
        order = f"coin:{s.seed}" if s.protocol == "caparena" else "orders:both"
        if self.scheme is not None:
            judge = f"judge:{s.model}|by:{load_scorer(self.scheme.truth_scorer).signature}|band:{s.band:g}"
        else:
            assert self.answerer is not None
            shown = "yes" if s.reference else "no"
            asked = fingerprint(PROMPT + REFERENCE + OPENING)
            model = self.answerer.label + getattr(self.answerer, "shown", "")
            judge = f"judge:{model}|prompt:{asked}|reference:{shown}|{order}"
        return f"preference|{judge}|{against}|protocol:{s.protocol}|equal:tie|empty:loses"


def _unsuffixed(image_id: str) -> str:
    """An image's id without the ending of an image file."""
    stem, suffix = os.path.splitext(image_id)
    return stem if suffix.lower() in IMAGE_SUFFIXES else image_id


def prompt(first: str, second: str, reference: str = "") -> str:
    """Return what the judge reads."""
    shown = REFERENCE.format(text=one_line(reference)) if reference else ""
    return PROMPT.format(reference=shown, first=one_line(first), second=one_line(second))


def read_opponents(path: Path) -> dict[str, Opponent]:
    """Read captions of a baseline, or CapArena-Auto's file of images that have one baseline each.

    Args:
        path: what `read_captions` reads, or JSON {image: {captions: {name: text}, ref_model: name}}.

    Raises:
        CaptionFileError: neither; names the image.
    """
    if path.suffix.lower() == ".json":
        content = read_json(path)
        if isinstance(content, dict) and content and all(isinstance(entry, dict) for entry in content.values()):
            return {str(image): _caparena(path, image, entry) for image, entry in content.items()}
    return {image_id: Opponent(path.stem, caption) for image_id, caption in read_captions(path).items()}


def _caparena(path: Path, image: str, entry: Mapping[str, Any]) -> Opponent:
    captions, baseline = entry.get("captions"), entry.get("ref_model")
    if not isinstance(captions, dict) or not isinstance(baseline, str) or not isinstance(captions.get(baseline), str):
        raise CaptionFileError(
            f"{path}, image {image!r}: needs captions, {{name: text}}, and ref_model, the name of one of them"
        )
    human = captions.get("human", "")
    return Opponent(baseline, captions[baseline], human if isinstance(human, str) else "")


def _which(i: int, columns: Mapping[str, Any]) -> str:
    return f"image {columns['image_id'][i]!r}" if "image_id" in columns else f"caption {i}"
