"""What the CIM study runs: the rows of `experiments.yaml`. Nothing is run here.

A training row is GRPO on the reward of equation (3), GRC + beta QIR with beta = 1 (the weight in the reward; the weight
of the KL is `kl` here), with the paper's K = 5, G = 5 and lambda(r) = 1/2^(r-1).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from studies._lib import rows

LABELLED, UNLABELLED = "storybook:train", "storybook:unlabelled"
BASE, SUPERVISED, REFERENCES = "base", "supervised", "references"
GRC, QIR, BOTH = "GRC", "QIR", "GRC + QIR"
REWARDS = {GRC: ("grc",), QIR: ("qir",), BOTH: ("grc", "qir")}
LENGTH, WRONG_IMAGE = "length reward", "GRC + QIR of another image"
LIKELIHOODS = ("best of 8 by mean log-likelihood", "best of 8 by total log-likelihood")

MINILM, CLIP, TFIDF, TOWER = "all-MiniLM-L6-v2", "storybook-clip", "tf-idf", "the base's tower, mean"
SIZES = (250, 1000, 2000, 8000)


@dataclass(frozen=True)
class Corpus:
    """A gallery: the first n images of storybook:train with their five captions each, and its two encoders."""

    n: int = 2000
    text: str = MINILM
    image: str = CLIP

    @property
    def source(self) -> str:
        return f"{LABELLED}?n={self.n}"


@dataclass(frozen=True)
class Training:
    """Settings of a GRPO run. Those of the optimiser were chosen on val, with an earlier GRPO (see the README).

    Args:
        reward: a name of `REWARDS`, or "length".
        wrong_image: every image is judged as another one, always the same.
        learn_from: the images that captions are sampled for. Those of storybook:train are in the gallery themselves.
        own: an image's own entries may be retrieved.
        distinct: K different images are retrieved, rather than K entries, of which an image has five.
        start: "base", or "sft": from the adapter of the supervised row with the same seed.
        kl: weight of KL to what training starts from.
    """

    reward: str = BOTH
    corpus: Corpus = field(default_factory=Corpus)
    wrong_image: bool = False
    learn_from: str = UNLABELLED
    own: bool = False
    distinct: bool = True
    start: str = "base"
    steps: int = 60
    images: int = 16
    generations: int = 5
    learning_rate: float = 1e-3
    kl: float = 0.05
    temperature: float = 1.0

    @property
    def argument(self) -> str:
        """What `grc` and `qir` are told about retrieval."""
        return f"?own={int(self.own)}&distinct={int(self.distinct)}"

    def config(self) -> dict[str, Any]:
        """As `captune grpo --config` takes it; the gallery is expected in runs/corpus."""
        parts = [f"{name}:runs/corpus{self.argument}" for name in REWARDS.get(self.reward, ())]
        return {
            "images": self.learn_from, "reward": " + ".join(parts) or self.reward, "max_steps": self.steps,
            "batch_size": self.images, "learning_rate": self.learning_rate, "beta": self.kl,
            "num_generations": self.generations, "temperature": self.temperature, "max_new_tokens": 40,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Spec(rows.Spec):
    """One row of the study.

    Args:
        kind: greedy, sft, grpo, opening, best_of, references; or detail, verify, which judge captions.
        settings: of the kind; for grpo those of `Training`.
    """

    @property
    def corpus(self) -> Corpus:
        return Corpus(**self.settings.get("corpus", {}))

    @property
    def training(self) -> Training:
        return Training(**{**self.settings, "corpus": self.corpus})

    def depends(self) -> dict[str, Any]:
        """The settings, defaults filled in."""
        if self.kind == "grpo":
            return asdict(self.training)
        return {**self.settings, **({"corpus": asdict(self.corpus)} if "corpus" in self.settings else {})}

    def runs(self) -> dict[str, dict[str, Any]]:
        if self.kind == "sft":
            return {"sft": {"images": LABELLED}}
        training = self.training if self.kind == "grpo" else Training(wrong_image=True)
        return {} if training.wrong_image or training.start == "sft" else {"grpo": training.config()}


ROWS = rows.read(Path(__file__).with_suffix(".yaml"), Spec)
