"""DCScore: the smallest statements of a caption, verified and matched with those of a reference (DeCapBench)."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from captune.errors import ScorerError, SpecError
from captune.models.answerers import (
    Answerer,
    Prompt,
    ask_json,
    is_server,
    load_answerer,
    load_vision_answerer,
    one_line,
)
from captune.models.hub import DEFAULT_ANSWERER
from captune.scorers import Scorer
from captune.scorers._support.units import (
    EXACT,
    EXACT_OR_MODEL,
    UNITS,
    Unit,
    asked_units,
    exact_program,
    exact_units,
    named,
    the_reference,
    unit_of,
)
from captune.utils.files import parse_json
from captune.utils.hashing import fingerprint
from captune.utils.memory import remembers

_log = logging.getLogger(__name__)
VERIFY = """\
Look at the image. A person has described it like this:
{reference}
Say of each statement whether it is true, by the image or by its description.
{units}
Answer with JSON alone: a list of {n} values, true or false, one for each statement in order: [true, false, ...]."""
MATCH = """\
Here are two lists of statements about one image. First find out which things of the two lists are the same thing. Then
give for each statement of list A the number of the statement of list B that is about the same thing and the same
property of it, even where the two disagree in a detail; null where no statement is.
List A:
{units}
List B:
{known}
Answer with JSON alone: a list of {n} numbers or nulls, one for each statement of list A in order: [2, null, ...]."""
FIGURES = ("f1", "precision", "recall")


class DCScore(Scorer):
    """DCScore: F1 of a caption's smallest statements (units), verified by the image and matched with the reference's.

    P: the caption's units, O: the reference's, n(o): units of P matched with o, U: verified units without a match.

        precision = #verified / #P
        recall    = (sum over verified matched p of 1 / n(match(p)) + U) / (#O + U)
        F1        = 2 precision recall / (precision + recall)
        dcscore   = (F1 of all units + F1 of the descriptive units) / 2

    from 0 to 1 (published figures are times 100), each the mean over images. A unit is descriptive if it says what can
    be seen; mood, praise and guesses are not. A true unit that O lacks raises numerator and denominator of the recall,
    so that many trivial truths raise it towards 1 where O is incomplete: look at `units` per caption.

        dcscore, dcscore:storybook       units and verification are the source's own program's, O all the scene's facts
                                         (U is 0, and F1 of descriptive units the plain F1 of facts); a sentence in
                                         which the program reads nothing is one unit, not descriptive and not verified
        dcscore:?reference=0             O is what one reference states: an incomplete O and its U
        dcscore:MODEL?verifier=VLM       a language model splits captions and references and matches, a vision-language
                                         model verifies; a server may be both: dcscore:http://host:port/v1#model-name
        dcscore:MODEL?facts=oracle.jsonl DeCapBench's file of human units: image_name, oracle_caption, oracle_facts
        dcscore:?answers=FOLDER          what DeCapBench's script has saved for each caption, FOLDER/0.json ...; nobody
                                         is asked

    As published, verifications=3&matchings=3 averages F over 9 combinations, sampled at temperatures .3 and 1; by
    default one of each, greedy. Differences to the published program: units are known by their place in the list and
    not by their text (there, of equal units all get the last match, and all are descriptive if one is); n(o) of the
    descriptive F1 counts descriptive units alone; an F1 without truth is 0, with no 1e-8 in it; the judge answers by
    position, so that a reworded unit is no failure; captions that the judge failed on are an error, not left out. With
    compat=published the arithmetic is the program's, also of its saved answers that are not valid: they are left out,
    counted in a warning, and their captions have no score of their own (nan).

    Args:
        argument: who judges, or what they answered.
        answerer: splits and matches, in place of the model that the argument names.
        verifier: verifies, in place of the one that the argument names.
        device: where local models run.
    """

    name = "dcscore"
    primary = "dcscore"
    higher_is_better: ClassVar = {
        "dcscore": True,
        **dict.fromkeys(FIGURES, True),
        **{f"{name}_descriptive": True for name in FIGURES},
    }
    labels: ClassVar = {"dcscore": "DCScore", "f1": "unit F1", "f1_descriptive": "unit F1 (descriptive)"}
    source = "Ye et al., ICLR 2025 (DeCapBench)"
    cost = "4 texts of language models, one of them with the image (storybook: 0.2 ms)"
    required_columns: tuple[str, ...] = ("scene",)  # with models: image and references; with answers: image_id
    cached = True
    kept_every = 16  # captions take seconds each
    positional = ("model",)
    usage = "dcscore:Qwen/Qwen3-8B?verifier=Qwen/Qwen2.5-VL-7B-Instruct"

    @dataclass(frozen=True)
    class Settings:
        """What a spec sets."""

        model: Annotated[
            str, Field(description=f"{EXACT_OR_MODEL}; default: {EXACT}, with a verifier {DEFAULT_ANSWERER}")
        ] = ""
        verifier: Annotated[
            str, Field(description="the vision-language model that verifies; default: the model, if it is a server")
        ] = ""
        facts: Annotated[str, Field(description="units of references, JSON lines as DeCapBench's")] = ""
        answers: Annotated[str, Field(description="a folder of answers saved by DeCapBench's script")] = ""
        reference: Annotated[
            int | None,
            Field(ge=0, description="the number of the only reference that counts; default: the scene, or all"),
        ] = None
        verifications: Annotated[int, Field(ge=1, le=100, description="of each caption; more than 1 are sampled")] = 1
        matchings: Annotated[int, Field(ge=1, le=100, description="of each caption; more than 1 are sampled")] = 1
        compat: Annotated[
            Literal["none", "published"], Field(description="published: with the quirks of the authors' program")
        ] = "none"

    def __init__(
        self,
        argument: str | None = None,
        *,
        answerer: Answerer | None = None,
        verifier: Answerer | None = None,
        device: str | None = None,
    ) -> None:
        s = self.settings = self.read(argument)
        self.published = s.compat == "published"
        model = s.model or (DEFAULT_ANSWERER if s.verifier or verifier is not None else EXACT)
        self.scheme = exact_program(model) if answerer is None and not s.answers else None
        self._split: dict[str, list[Unit]] = {}
        remembers(self)
        if s.answers:
            if s != self.read(f"?answers={s.answers}&compat={s.compat}"):
                raise SpecError("scorer 'dcscore': with answers=FOLDER nobody is asked: leave all but compat out")
            self.cached = False
            self.required_columns = ("image_id",)
        elif self.scheme is not None:
            if s.verifier or s.facts or s.verifications > 1 or s.matchings > 1:
                raise SpecError(f"scorer 'dcscore': {model!r} judges by a program and has no verifier, facts, "
                                f"verifications or matchings; name a model, {self.usage!r}")  # fmt: skip
            self.cached = False
            self.required_columns = (self.scheme.truth_column, *(() if s.reference is None else ("references",)))
        else:
            if not (s.verifier or verifier or is_server(model)):
                raise SpecError(f"scorer 'dcscore' needs a vision-language model to verify: write {self.usage!r}, "
                                "a folder, hub name, or server, verifier=http://host:port/v1#model-name")  # fmt: skip
            if s.facts and s.reference is not None:
                raise SpecError("scorer 'dcscore': the units are those of facts=FILE or of a reference: leave one out")
            self.answerer = answerer or load_answerer(model, device=device)
            self.verifier = verifier or self._load_verifier(device)
            self.required_columns = ("image", "image_id" if s.facts else "references")

    def _load_verifier(self, device: str | None) -> Answerer:
        name = self.settings.verifier
        if not name:
            return self.answerer
        return load_vision_answerer(name, device=device, what="verifier")

    def clear(self) -> None:
        """Forget the statements of references."""
        self._split.clear()

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        if self.settings.answers:
            self._recorded  # noqa: B018
        elif self.scheme is None:
            self.answerer.check()
            self.verifier.check()
            if self.settings.facts:
                self._known  # noqa: B018

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        """Return (N, 9): dcscore, F1, precision, recall, the three of descriptive units, units, and 1 if judged."""
        if self.settings.answers:
            return np.array(
                [self._from_record(c, str(i)) for c, i in zip(captions, columns["image_id"], strict=True)]
            ).reshape(-1, 9)
        made = self._exact(captions, columns) if self.scheme else self._asked(captions, columns)
        return np.array(made, dtype=np.float64).reshape(-1, 9)

    def _exact(self, captions: Sequence[str], columns: Mapping[str, Any]) -> list[list[float]]:
        scheme = self.scheme
        assert scheme is not None
        rows = []
        for i, (caption, truth) in enumerate(zip(captions, columns[scheme.truth_column], strict=True)):
            units = exact_units(scheme, caption, truth)
            if self.settings.reference is None:
                known = {fact.key for fact in scheme.facts(truth)}
            else:
                text = the_reference(self.name, columns["references"][i], self.settings.reference, named(caption))
                known = {unit_of(s).key for s in scheme.statements(text, truth)}
            # what is false states nothing that the reference states, also where a second fish is called a fish
            matches = [unit.key if unit.true and unit.key in known else None for unit in units]
            rows.append(self._row([Trial(units, [unit.true for unit in units], matches)], len(known), caption))
        return rows

    def _asked(self, captions: Sequence[str], columns: Mapping[str, Any]) -> list[list[float]]:
        from captune.data.images import open_image

        about = [named(caption) for caption in captions]
        if self.settings.facts:
            pairs = [self._of_image(str(image_id)) for image_id in columns["image_id"]]
            texts, known = [text for text, _ in pairs], [units for _, units in pairs]
        else:
            texts = [
                the_reference(self.name, own, self.settings.reference, what)
                for own, what in zip(columns["references"], about, strict=True)
            ]
            known = asked_units(self.answerer, texts, [f"reference {t[:60]!r}" for t in texts], self._split)
        units = asked_units(self.answerer, captions, about)
        spoken = [i for i, own in enumerate(units) if own]
        verify, match = [], []
        for i in spoken:
            listed, n = _numbered(units[i]), len(units[i])
            image = open_image(columns["image"][i])
            verify.append(Prompt(VERIFY.format(reference=texts[i], units=listed, n=n), image, about[i]))
            match.append(Prompt(MATCH.format(units=listed, known=_numbered(known[i]), n=n), about=about[i]))
        s = self.settings
        booleans = [_reader_of(len(units[i]), None) for i in spoken]
        numbers = [_reader_of(len(units[i]), len(known[i])) for i in spoken]
        verified = [
            ask_json(self.verifier, verify, booleans, max_new_tokens=2000, **_sampling(0.3, s.verifications, seed))
            for seed in range(s.verifications)
        ]
        matched = [
            ask_json(self.answerer, match, numbers, max_new_tokens=2000, **_sampling(1.0, s.matchings, seed))
            for seed in range(s.matchings)
        ]
        place = {i: j for j, i in enumerate(spoken)}
        rows = []
        for i, own in enumerate(units):
            trials = [Trial(own, v[place[i]], m[place[i]]) for v in verified for m in matched if own]
            rows.append(self._row(trials or [Trial((), (), ())], len(known[i]), captions[i]))
        return rows

    def _row(self, trials: Sequence[Trial], size: int, caption: str) -> list[float]:
        """The row of one caption, the mean over its trials."""
        if self.published:
            trials = [trial.collapsed() for trial in trials]
        try:
            figures = [trial.figures(size, published=self.published) for trial in trials]
        except ZeroDivisionError:
            return self._left_out(f"{named(caption)} has no unit, or none that is descriptive")
        both = np.mean(figures, axis=0)
        return [both[:, 0].mean(), *both.reshape(-1), float(len(trials[0].units)), 1.0]

    def _left_out(self, why: str) -> list[float]:
        """The row of what the published program leaves out."""
        _log.warning("%s: %s and is left out, as published", self.name, why)
        return [0.0] * 9

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return the corpus figures, the primary one first, from the sums over n rows."""
        names = [*self.higher_is_better, "units"]
        return {name: totals[..., i] / np.maximum(totals[..., -1], 1) for i, name in enumerate(names)}

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """Return (N,): the score of each caption by itself; nan for one that was left out."""
        return np.where(rows[:, -1] > 0, rows[:, 0], np.nan)

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        s = self.settings
        if s.answers:
            return f"dcscore|answers:{Path(s.answers).name}@{self._recorded[1]}|compat:{s.compat}"
        if self.scheme is not None:
            against = "scene" if s.reference is None else f"reference:{s.reference}"
            return f"dcscore|facts:{self.scheme.name}|against:{against}|unread:not-descriptive|compat:{s.compat}"
        against = "references" if s.reference is None else f"reference:{s.reference}"
        if s.facts:
            against = f"{Path(s.facts).name}@{fingerprint(Path(s.facts).expanduser().read_bytes())}"
        verifier = self.verifier.label + getattr(self.verifier, "shown", "")
        return (
            f"dcscore|model:{self.answerer.label}|verifier:{verifier}|against:{against}"
            f"|prompts:{fingerprint(UNITS + VERIFY + MATCH)}|verifications:{s.verifications}|matchings:{s.matchings}"
            f"|compat:{s.compat}"
        )

    # -- DeCapBench's files --------------------------------------------------------------------------------------------

    @cached_property
    def _known(self) -> dict[str, tuple[str, list[Unit]]]:
        """{image: (its caption, the units of its reference)}."""
        file = Path(self.settings.facts).expanduser()
        found = {}
        try:
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                if not line.strip():
                    continue
                entry = parse_json(line, f"{file}, line {number},", error=ScorerError)
                text, facts = entry["oracle_caption"], entry["oracle_facts"]
                if not facts or not all(isinstance(fact, str) and fact.strip() for fact in [text, *facts]):
                    raise ValueError("a text is empty")
                found[str(entry["image_name"])] = one_line(text), [Unit(one_line(fact)) for fact in facts]
        except OSError as error:
            raise ScorerError(f"the facts {str(file)!r} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, LookupError) as error:
            raise ScorerError(
                f'{file}, line {number}, is not of the form {{"image_name": "...", "oracle_caption": "...", '
                f'"oracle_facts": ["..."]}}: {error!r}'
            ) from error
        return found

    def _of_image(self, image_id: str) -> tuple[str, list[Unit]]:
        if image_id not in self._known:
            raise ScorerError(f"{self.settings.facts} has no facts of image {image_id!r}; its images are called like "
                              f"{next(iter(self._known), None)!r}")  # fmt: skip
        return self._known[image_id]

    @cached_property
    def _recorded(self) -> tuple[dict[str, Any], str]:
        """{image: what was saved about its caption}, and a digest of the files."""
        folder = Path(self.settings.answers).expanduser()
        files = sorted(folder.glob("*.json"))
        if not files:
            raise ScorerError(f"there is no saved answer *.json in {str(folder)!r}: name the script's --save_folder")
        data = [file.read_bytes() for file in files]
        found: dict[str, Any] = {}
        for file, text in zip(files, data, strict=True):
            record = parse_json(text, str(file), error=ScorerError)
            if not isinstance(record, dict) or not isinstance(record.get("image_name"), str):
                raise ScorerError(f"{file} is no saved answer of DeCapBench's script: it has no image_name")
            if record["image_name"] in found:
                raise ScorerError(f"{folder} has two captions of image {record['image_name']!r}; keep one")
            found[record["image_name"]] = record
        return found, fingerprint(json.dumps([fingerprint(text) for text in data]).encode())

    def _from_record(self, caption: str, image_id: str) -> list[float]:
        """The row of a caption from what was saved about it."""
        record = self._recorded[0].get(image_id)
        folder, what = self.settings.answers, f"{named(caption)} of image {image_id!r}"
        if record is None:
            raise ScorerError(f"{folder} has no answers about {what}; its images are called like "
                              f"{next(iter(self._recorded[0]))!r}")  # fmt: skip
        if one_line(str(record.get("caption"))) != one_line(caption):
            raise ScorerError(f"{folder} has no answers about {what}, but about another caption of it, "
                              f"{str(record.get('caption'))[:60]!r}")  # fmt: skip
        if record.get("valid") is not True:
            if not self.published:
                raise ScorerError(f"{folder}: the judge failed on {what}; judge it again, or leave it out as the "
                                  "published program does, compat=published")  # fmt: skip
            return self._left_out(f"the judge failed on {what}, which is not valid")
        try:
            return self._row(*read_record(record), caption)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ScorerError(f"{folder}: the answers about {what} are not of the script's form: {error!r}") from error


@dataclass(frozen=True)
class Trial:
    """One verification and one matching of a caption's units.

    Attributes:
        units: of the caption.
        verified: whether each is true.
        matches: the reference's unit that each is matched with, or None.
    """

    units: Sequence[Unit]
    verified: Sequence[bool]
    matches: Sequence[Hashable]

    def collapsed(self) -> Trial:
        """Return what the published program makes of units of equal text: all have the last match and any relevance."""
        last = {unit.text: match for unit, match in zip(self.units, self.matches, strict=True)}
        relevant = {unit.text for unit in self.units if unit.descriptive}
        units = [replace(unit, descriptive=unit.text in relevant) for unit in self.units]
        return Trial(units, self.verified, [last[unit.text] for unit in units])

    def figures(self, size: int, *, published: bool) -> list[list[float]]:
        """Return F1, precision and recall of all units, and of the descriptive ones.

        Args:
            size: units of the reference.
            published: count matches of all units for the descriptive ones, too, and add 1e-8 to the F1's denominator.

        Raises:
            ZeroDivisionError: as published, where there is no unit.
        """
        whole = range(len(self.units))
        figures = []
        for chosen in (whole, [i for i in whole if self.units[i].descriptive]):
            shared = Counter(self.matches[i] for i in (whole if published else chosen))
            true = [i for i in chosen if self.verified[i]]
            extra = sum(self.matches[i] is None for i in true)
            credit = sum(1 / shared[self.matches[i]] for i in true if self.matches[i] is not None)
            if not published and not true:
                figures.append([0.0, 0.0, 0.0])
                continue
            precision, recall = len(true) / len(chosen), (credit + extra) / (size + extra)
            figures.append([2 * precision * recall / (precision + recall + 1e-8 * published), precision, recall])
        return figures


def read_record(record: Mapping[str, Any]) -> tuple[list[Trial], int]:
    """Return the trials and the number of the reference's units from a file of the published program.

    It knows units by their text alone.

    Raises:
        ValueError: the judge verified other units than it matched.
    """
    details = record["eval_details"]
    relevant = {unit["fact"] for unit in details["pred_atomic_facts"] if unit["relevance"] == 1}
    trials = []
    for said in details["verified_results"]:
        units = [Unit(entry["fact"], entry["fact"] in relevant) for entry in said]
        for mapping in details["mappings_with_human"]:
            if set(mapping) != {unit.text for unit in units}:
                raise ValueError("the units of a verification and a matching differ")
            matches = [None if mapping[unit.text] in (None, "None") else mapping[unit.text] for unit in units]
            trials.append(Trial(units, [entry["verification"] == 1 for entry in said], matches))
    return trials, len(record["human_annotated_oracle_atomic_facts"])


def _numbered(units: Sequence[Unit]) -> str:
    return "\n".join(f"{number}. {unit.text}" for number, unit in enumerate(units, 1))


def _sampling(temperature: float, trials: int, seed: int) -> dict[str, Any]:
    return {"temperature": temperature, "seed": seed} if trials > 1 else {}


def _reader_of(n: int, size: int | None) -> Any:
    """Read a list of n truth values, or of n numbers up to `size` or nulls."""

    def read(value: Any) -> list[Any]:
        if not isinstance(value, list) or len(value) != n:
            raise ValueError(f"it is not a list of {n} entries")
        for entry in value:
            number = type(entry) is int and size is not None and 1 <= entry <= size
            if not (number or (isinstance(entry, bool) if size is None else entry is None)):
                raise ValueError(f"{entry!r} is {'not true or false' if size is None else f'no number up to {size}'}")
        return value

    return read
