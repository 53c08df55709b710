"""Controls that train nothing: the best forced opening, the likeliest sample, the best guidance, by CIDEr-D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from .evalset import Exam, best

Kind = Literal["opening", "best_of", "guidance"]


def likeliest(exam: Exam, captioner: Any, seed: int, n: int = 8, *, batch_size: int = 64) -> dict[str, list[str]]:
    """One of n samples per image: that of the highest mean, or total, log-likelihood under the captioner."""
    made = exam.samples(captioner, n, seed, batch_size=batch_size)
    return {name: best(made["captions"], made[name], n) for name in ("mean", "total")}


def captions(kind: Kind, chosen: str, captioner: Any, exam: Exam, seed: int, **settings: Any) -> list[str]:
    """The captions of a control: with this opening, likelihood, or decoder."""
    if kind == "opening":
        return exam.captions(captioner, forced_opening=chosen, **settings)
    if kind == "guidance":
        return exam.captions(captioner, decoder=chosen, **settings)
    return likeliest(exam, captioner, seed, **settings)[chosen]


def choose(
    kind: Kind,
    captioner: Any,
    exam: Exam,
    seed: int,
    *,
    openings: Sequence[str],
    scales: Sequence[float],
    **settings: Any,
) -> str:
    """The opening, the likelihood, or the decoder of a scale, whose captions have the highest CIDEr-D on the exam."""
    if kind == "best_of":
        written = likeliest(exam, captioner, seed, **settings)
    else:
        tried = openings if kind == "opening" else [f"cfg:{scale:g}" for scale in scales]
        written = {name: captions(kind, name, captioner, exam, seed, **settings) for name in tried}
    return max(written, key=lambda name: exam.figures(written[name])["cider"])
