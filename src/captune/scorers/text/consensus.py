"""Consensus: how much a caption agrees with the other captions of its image. A reward without labels, and a bland one.

    consensus(c_i) = 1 / (G - 1)  sum_{j != i} s(c_i, {c_j})         G captions of one image

s is any scorer that compares a caption with references; each of the others is in turn the only reference. It is what
minimum Bayes risk decoding maximises over samples (Kumar and Byrne, 2004; Eikema and Aziz, 2020), so that
`best-of:8:consensus` is MBR decoding, and as a reward it makes a captioner say what its samples have in common.

**It rewards blandness.** What no other sample says costs, whether it is true or not, and what all samples say pays,
whether it is false or not: the safest way up is one caption for every image. It can only sharpen a captioner that is
right more often than wrong. Storybook's base captioner is not: in 20 steps of `grpo` the reward rises from 0.26 to
0.69, the vocabulary falls from 35 words to 23, the samples' CLIPScore from 0.66 to 0.36, and the samples are its
boilerplate; the monitor flags it at step 10. Add what looks at the image (`clip`).

Document frequencies, where s has such (`cider`), are those of the captions judged together, an image's captions as its
references: they depend on the batch, and with one image all are 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from captune.errors import ScorerError, SpecError
from captune.scorers.base import Scorer

DEFAULT = "rouge"  # needs no model


class Consensus(Scorer):
    """Consensus: the mean similarity of a caption to the other captions of the same image, by any text scorer.

    For rewards and for `best-of`, where an image has several captions at once: the samples of a batch (in SCST, the
    greedy caption of its baseline too). A caption file has one per image: refused. An empty caption agrees with none.

    Args:
        argument: a scorer that compares captions with references, with its own settings: "consensus:cider",
            "consensus:sbert:all-MiniLM-L6-v2"; default: "rouge".
    """

    name = "consensus"
    primary = "consensus"
    higher_is_better: ClassVar = {"consensus": True}
    source = "Kumar and Byrne, NAACL 2004; Eikema and Aziz, COLING 2020"
    cost = "G - 1 times that of its scorer"
    optional_columns: tuple[str, ...] = ("image_id", "image")
    grouped = True
    usage = "consensus:sbert"

    def __init__(self, argument: str | None = None, *, device: str | None = None) -> None:
        from captune.scorers.registry import load_scorer

        self.similarity = load_scorer(argument or DEFAULT, device=device)
        others = [need for need in self.similarity.required_columns if need != "references"]
        if "references" not in self.similarity.required_columns or others:
            what = f"needs {' and '.join(others)}" if others else "compares with no references"
            raise SpecError(
                f"scorer 'consensus' compares captions by a scorer of captions and references, and "
                f"{self.similarity.name!r} {what}: write 'consensus:rouge', 'consensus:cider' or 'consensus:sbert'"
            )
        self.together, self._fitted = self.similarity.needs_fit, False  # until it is fitted

    def check(self) -> None:
        """Raise ScorerError where what it runs on is missing."""
        self.similarity.check()

    def forget(self) -> None:
        """Warn again of what was warned of once."""
        self.similarity.forget()

    def fit(self, references: Iterable[Sequence[str]]) -> Consensus:
        """Freeze the document frequencies of the scorer that compares, which else are of the captions judged together.

        Args:
            references: the captions of each image.
        """
        self.similarity.fit(references)
        self.together, self._fitted = False, self.together
        return self

    def rows(self, captions: Sequence[str], **columns: Any) -> np.ndarray:
        """Return (N, 1): the score of each caption.

        Raises:
            ScorerError: an image has one caption only.
        """
        groups = self._groups(captions, columns)
        pairs: dict[tuple[str, str], int] = {}  # samples repeat
        for members in groups:
            texts = [captions[i] for i in members]
            for i, one in enumerate(texts):
                for j, two in enumerate(texts):
                    if i != j and one.strip() and two.strip():
                        pairs.setdefault((one, two), len(pairs))
        alike = np.zeros(0)
        if pairs:
            if self.together:
                spoken = [[captions[i] for i in members if captions[i].strip()] for members in groups]
                self.similarity.fit([texts for texts in spoken if texts])
            made = self.similarity.rows([one for one, _ in pairs], references=[[two] for _, two in pairs])
            alike = np.nan_to_num(self.similarity.per_caption(made))  # nothing to compare is no agreement
        scores = np.zeros((len(captions), 1))
        for members in groups:
            for i in members:
                own = [pairs.get((captions[i], captions[j])) for j in members if j != i]
                scores[i] = sum(0.0 if pair is None else alike[pair] for pair in own) / len(own)
        return scores

    def _groups(self, captions: Sequence[str], columns: dict[str, Any]) -> list[list[int]]:
        """Return the places of each image's captions."""
        keys: Sequence[Hashable]
        if "image_id" in columns:
            keys = list(columns["image_id"])
        elif "image" in columns:  # trl and best-of repeat the object
            keys = [id(image) for image in list(columns["image"])]
        else:
            raise ScorerError(
                "scorer 'consensus' needs image_id, or the images, to tell which captions belong together"
            )
        groups: dict[Hashable, list[int]] = {}
        for i, key in enumerate(keys):
            groups.setdefault(key, []).append(i)
        lone = [members[0] for members in groups.values() if len(members) < 2]
        if lone:
            which = f"image {keys[lone[0]]!r}" if "image_id" in columns else f"that of caption {lone[0]}"
            raise ScorerError(
                f"scorer 'consensus' compares the captions of one image with each other, and {len(lone)} of "
                f"{len(groups)} images have only one, the first {which}: it is for several samples of an image, as a "
                "reward (grpo, scst) or in --decoder best-of:8:consensus, not for a file of captions"
            )
        return list(groups.values())

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        own = "|df:judged-captions" if self.together else "|df:fitted" if self._fitted else ""
        return f"consensus|pairs:mean|empty:0{own}|by:[{self.similarity.signature}]"
