"""How weak is the answering model that needs no hub and no server? Storybook's questions, beside the exact reader.

    python -m benchmarks.behaviour.answerer [--model smollm2-135m] [--per-category 8]

Questions about scenes of storybook:test (captune.storybook.questions) which the exact reader answers right from a
reference caption, as many of each category, put as the scorers qa and caption_qa put them. The answer is the letter's
probability as the model's next token:

- with the true caption: how often its likeliest letter is the key, one order of the options at a time and averaged over
  all rotations of them; beside it what guessing gives;
- the same with an option that the caption does not say: how often it refuses though the caption says it;
- with that option and an empty caption: how often it refuses, which is then the only right answer;
- position bias: how often the first, second ... letter is the likeliest over all rotations, where every letter is the
  key equally often.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._lib import machine, write
from captune import storybook
from captune.data.questions import MultipleChoice
from captune.data.schemes import SOURCES
from captune.models.answerers import Question, load_answerer
from captune.models.hub import DEFAULT_ANSWERER
from captune.scorers._support.choices import PROMPT, REFUSAL, Asked

LETTERS = "ABCDEFGH"
Pair = tuple[str, MultipleChoice]  # a caption and a question


def chosen(per_category: int, seed: int) -> list[Pair]:
    """Pairs that the exact reader answers right, each of another scene where there are enough."""
    scheme = SOURCES["storybook"]
    reader = scheme.reader()
    rows = storybook.load("test", 20 * per_category, seed=seed).with_format(None)
    found: dict[str, list[Pair]] = {}
    for scene, references in zip(rows["scene"], rows["references"], strict=True):
        used: set[str] = set()
        for question in scheme.questions(scene, seed=seed):
            own = found.setdefault(question.category, [])
            right = reader.read(references[0], question) == question.answer
            if right and len(own) < per_category and not used:
                own.append((references[0], question))
                used.add(question.category)
    short = {category: len(own) for category, own in found.items() if len(own) < per_category}
    if short:
        raise SystemExit(f"not enough questions: {short}")
    return [pair for own in found.values() for pair in own]


def asked(answerer: Any, pairs: Sequence[Pair], *, refusal: bool, empty: bool = False) -> list[np.ndarray]:
    """For each pair (K, K or K + 1): row r the probabilities of the options, in the question's order, in rotation r.

    A refusal is the last option and stays there, as in qa.
    """
    questions = []
    for caption, question in pairs:
        k = len(question.options)
        letters = tuple(LETTERS[: k + refusal])
        for r in range(k):
            order = (*((i + r) % k for i in range(k)), *([k] if refusal else []))
            item = Asked("" if empty else caption, question, order, "")
            questions.append(Question(item.prompt(PROMPT, letters, REFUSAL), letters, item.about))
    answers = iter(answerer.answer_probabilities(questions))
    result = []
    for _, question in pairs:
        k = len(question.options)
        rows = [next(answers) for _ in range(k)]
        result.append(np.stack([np.concatenate([np.roll(p[:k], r), p[k:]]) for r, p in enumerate(rows)]))
    return result


def share(values: Any) -> float:
    return round(float(np.mean(list(values))), 3)


def figures(pairs: Sequence[Pair], found: Sequence[np.ndarray], refusal: bool) -> dict[str, Any]:
    """What one run of `asked` shows."""
    keys = [question.answer for _, question in pairs]
    each = [p.argmax(1) == key for p, key in zip(found, keys, strict=True)]
    whole = [p.mean(0).argmax() == key for p, key in zip(found, keys, strict=True)]
    shown: dict[str, Any] = {
        "right in one order": share(share(own) for own in each),
        "right over all rotations": share(whole),
        "by chance": share(1 / p.shape[1] for p in found),
        "probability of the key": share(p[:, key].mean() for p, key in zip(found, keys, strict=True)),
    }
    if refusal:
        shown["refused in one order"] = share(share(p.argmax(1) == p.shape[1] - 1) for p in found)
        shown["refused over all rotations"] = share(p.mean(0).argmax() == p.shape[1] - 1 for p in found)
    return shown


def letters(found: Sequence[np.ndarray], k: int) -> list[float]:
    """How often each of k letters is the likeliest, over all rotations."""
    rows = [(p.argmax(1) - np.arange(k)) % k for p in found if p.shape[1] == k]
    return [round(float(x), 3) for x in np.bincount(np.concatenate(rows), minlength=k) / sum(map(len, rows))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_ANSWERER, help="a folder, a hub name or a server")
    parser.add_argument("--per-category", type=int, default=8)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(""))
    args = parser.parse_args()
    pairs = chosen(args.per_category, args.seed)
    answerer = load_answerer(args.model)
    started = time.process_time()
    plain = asked(answerer, pairs, refusal=False)
    seconds = (time.process_time() - started) / sum(len(p) for p in plain)
    refusing = asked(answerer, pairs, refusal=True)
    empty = asked(answerer, pairs, refusal=True, empty=True)
    categories = sorted({question.category for _, question in pairs})
    by_category = {}
    for category in categories:
        rows = [i for i, (_, question) in enumerate(pairs) if question.category == category]
        own, answers = [pairs[i] for i in rows], [plain[i] for i in rows]
        by_category[category] = figures(own, answers, False)
    result = {
        "model": answerer.label, "questions": len(pairs), "seed": args.seed, "machine": machine(),
        "seconds per answer": round(seconds, 2),
        "true caption": figures(pairs, plain, False),
        "true caption, may refuse": figures(pairs, refusing, True),
        "empty caption, may refuse": figures(pairs, empty, True),
        "letters of 4 options": letters(plain, 4), "letters of 2 options": letters(plain, 2),
        "by category": by_category,
    }  # fmt: skip
    write(result, page(result), args.output)


def page(result: dict[str, Any]) -> str:
    full, may, none = (result[k] for k in ("true caption", "true caption, may refuse", "empty caption, may refuse"))
    rows = [
        ("right, one order of the options", full["right in one order"], may["right in one order"], ""),
        ("right, averaged over all rotations", full["right over all rotations"], may["right over all rotations"], ""),
        ("guessing", full["by chance"], may["by chance"], none["by chance"]),
        ("refused, one order", "", may["refused in one order"], none["refused in one order"]),
        ("refused, all rotations", "", may["refused over all rotations"], none["refused over all rotations"]),
    ]
    table = "\n".join(f"| {name} | 1.000 | {a} | {b} | {c} |" if "right" in name else f"| {name} | | {a} | {b} | {c} |"
                      for name, a, b, c in rows)  # fmt: skip
    kinds = "\n".join(
        f"| {category} | {own['right in one order']} | {own['right over all rotations']} | {own['by chance']} |"
        for category, own in result["by category"].items()
    )
    four, two = (", ".join(map(str, result[f"letters of {k} options"])) for k in (4, 2))
    return f"""# How weak is the default answerer?

`{result["model"]}` on {result["questions"]} of storybook's questions, as many of each category, all of which the exact
reader answers right from the same caption. Made by `python -m benchmarks.behaviour.answerer`, which says how;
an answer takes {result["seconds per answer"]} s of one core.

| | exact reader | true caption | true caption, may refuse | empty caption, may refuse |
|---|---|---|---|---|
{table}

Position: of four options the likeliest letter is A, B, C, D in {four} of the cases (0.25 each without
a bias), of two A, B in {two}. A letter that is chosen whatever it stands for is right as often as guessing.

| category | right, one order | right, all rotations | guessing |
|---|---|---|---|
{kinds}
"""


if __name__ == "__main__":
    main()
