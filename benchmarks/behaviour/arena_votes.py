"""1,000 votes by three raters in a real browser: the planted ranking comes back, with the figures of other fits.

    python -m benchmarks.behaviour.arena_votes --output benchmarks/behaviour/arena_votes.json

Five systems with planted strengths and Davidson's ties write captions that name them, three raters press keys in a
headless Chromium as the planted model says, and the server is killed (SIGKILL) after every `--kill` votes and started
again. Checked: every vote that a page counted is in the file, once; the order of the strengths is the planted one; each
planted strength is in its interval or is counted as a miss; strengths and nu equal those of a general optimiser
(scipy's BFGS on the likelihood written as a product of odds) within 1e-6, and, without the ties, a logistic
regression's.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.optimize import minimize

from captune.annotation.battles import Battles, Judgement
from captune.annotation.results import fought, results
from captune.evaluation.bradley_terry import Fought, fit
from tests.annotation.raters import enter, planted_key, press
from tests.browser import chromium, opened, serving

PLANTED = {"one": 1.4, "two": 0.7, "three": 0.1, "four": -0.7, "five": -1.5}
TIE = 0.5
IMAGES = 400
RATERS = ("Ada", "Bob", "Cleo")


def independent(battles: Fought, systems: int, ties: bool) -> tuple[np.ndarray, float]:
    """(strengths with mean 0, nu) by BFGS; without `ties`, logistic regression on the battles that were decided."""
    kept = np.flatnonzero((battles.outcome != 0) | ties)
    first, second, outcome = battles.first[kept], battles.second[kept], battles.outcome[kept]

    def loss(values: np.ndarray) -> float:
        odds = np.exp(np.concatenate([[0.0], values[: systems - 1]]))
        a, b = odds[first], odds[second]
        middle = np.exp(values[-1]) * np.sqrt(a * b) if ties else 0.0
        return float(-np.log(np.choose(outcome + 1, [b, middle, a]) / (a + b + middle)).sum())

    found = minimize(loss, np.zeros(systems - 1 + ties), method="BFGS", options={"gtol": 1e-6}).x
    polished = minimize(
        loss, found, method="Nelder-Mead", options={"xatol": 1e-11, "fatol": 1e-13, "maxiter": 20_000}
    ).x
    theta = np.concatenate([[0.0], polished[: systems - 1]])
    return theta - theta.mean(), math.exp(polished[-1]) if ties else 0.0


def write(folder: Path) -> None:
    """Images of one colour, and captions that say whose they are."""
    (folder / "photos").mkdir()
    colours = np.random.default_rng(0).integers(0, 255, (IMAGES, 3))
    for number, colour in enumerate(colours):
        Image.new("RGB", (96, 64), tuple(colour.tolist())).save(folder / "photos" / f"{number:03}.png")
    for name in PLANTED:
        rows = [{"image_id": f"{n:03}.png", "caption": f"{name} about {n}"} for n in range(IMAGES)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def vote(folder: Path, votes: int, every: int) -> int:
    """Cast the votes, each rater in a session of a browser; returns how often the server was killed."""
    arguments = ["arena", *(f"{name}.jsonl" for name in PLANTED), "--images", "photos", "--seed", "0"]
    chance, killed, port = random.Random(0), 0, "0"
    with chromium() as browser:
        pages: list[Any] = []
        done = 0
        while done < votes:
            with serving(*arguments, "--port", port, folder=folder) as served:
                port = re.search(r":(\d+)/", served.link).group(1)  # type: ignore[union-attr]
                if not pages:
                    pages = [opened(browser, served.link) for _ in RATERS]
                    for page, rater in zip(pages, RATERS, strict=True):
                        enter(page, rater)
                for _ in range(min(every, votes - done)):
                    page = pages[done % len(pages)]
                    press(page, planted_key(page, PLANTED, TIE, chance))
                    done += 1
                if done < votes:
                    served.kill()
                    killed += 1
        counted = sum(int(page.inner_text("#count").split()[0]) for page in pages)
    assert counted == votes, f"the pages count {counted} votes of {votes}"
    return killed


def check(found: list[Judgement], told: dict[str, Any]) -> dict[str, Any]:
    """Compare what the votes say with what was planted and with the independent fits."""
    names = sorted(PLANTED)
    table = fought(found, names)
    planted = np.array([PLANTED[name] for name in names])
    planted -= planted.mean()
    own = fit(table, len(names))
    assert own is not None
    strengths, tie = independent(table, len(names), ties=True)
    decided = Fought(*(entries[table.outcome != 0] for entries in table))
    plain, logit = fit(decided, len(names)), independent(decided, len(names), ties=False)[0]
    assert plain is not None
    inside = [low <= at <= high for at, (low, high) in zip(planted, map(own.interval, range(len(names))), strict=True)]
    return {
        "ranking": [row["system"] for row in told["systems"]],
        "planted_ranking": sorted(PLANTED, key=lambda name: -PLANTED[name]),
        "strengths": {row["system"]: round(row["strength"], 4) for row in told["systems"]},
        "planted": {name: round(float(at), 4) for name, at in zip(names, planted, strict=True)},
        "planted_in_interval": f"{sum(inside)} of {len(names)}",
        "nu": round(own.tie, 4),
        "planted_nu": TIE,
        "difference_from_bfgs": float(max(np.abs(own.strengths - strengths).max(), abs(own.tie - tie))),
        "difference_from_logit": float(np.abs(plain.strengths - logit).max()),
        "battles_by_pair": sorted(row["battles"] for row in told["pairs"]),
        "raters": {row["rater"]: row["votes"] for row in told["raters"]},
        "judged_by_several": told["agreement"]["battles"],
        "fleiss_kappa": told["agreement"]["kappa"],
    }


def main() -> int:
    """Run it and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--votes", type=int, default=1000)
    parser.add_argument("--kill", type=int, default=250, metavar="N", help="kill the server after every N votes")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write(folder)
        start = time.perf_counter()
        killed = vote(folder, args.votes, args.kill)
        seconds = time.perf_counter() - start
        battles = Battles(folder / "arena.sqlite")
        found, told = battles.judgements(), results(battles)
    assert len(found) == args.votes, f"{len(found)} votes are kept of {args.votes}"
    report = {"votes": args.votes, "kills": killed, "seconds": round(seconds, 1), **check(found, told)}
    text = json.dumps(report, indent=1)
    print(text)
    if args.output is not None:
        args.output.write_text(text + "\n")
    right = report["ranking"] == report["planted_ranking"]
    return 0 if right and max(report["difference_from_bfgs"], report["difference_from_logit"]) < 1e-6 else 1


if __name__ == "__main__":
    raise SystemExit(main())
