"""What the CIM study runs: its sections, each a list of `Spec`. Nothing is run here.

A training row is GRPO on the reward of equation (3), GRC + beta QIR with beta = 1 (the weight in the reward; the weight
of the KL is `kl` here), with the paper's K = 5, G = 5 and lambda(r) = 1/2^(r-1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SECTIONS = ("detail", "choices", "ablation", "sft", "verification", "scaling", "robustness", "readings")

LABELLED, UNLABELLED = "storybook:train", "storybook:unlabelled"
BASE, SUPERVISED, REFERENCES = "base", "supervised", "references"
GRC, QIR, BOTH = "GRC", "QIR", "GRC + QIR"
REWARDS = {GRC: ("grc",), QIR: ("qir",), BOTH: ("grc", "qir")}
LENGTH, WRONG_IMAGE = "length reward", "GRC + QIR of another image"
ON_SFT = "supervised, then GRC + QIR"
LIKELIHOODS = {"mean": "best of 8 by mean log-likelihood", "total": "best of 8 by total log-likelihood"}
# A prompt-less captioner, as SmolVLM-Base is: text beside the image *is* the opening.
OPENINGS = ("a", "there is a", "a big", "a small", "in the", "a photo of a", "this picture shows a")

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
    """Settings of a GRPO run.

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
    learning_rate: float = 5e-4
    kl: float = 0.05
    temperature: float = 1.0


@dataclass(frozen=True)
class Spec:
    """One row of the study.

    Args:
        kind: greedy, sft, grpo, opening, best_of, references; or detail, verify, which judge captions.
        settings: of the kind; for grpo those of `Training`.
    """

    section: str
    name: str
    kind: str
    seed: int = 7
    settings: Mapping[str, Any] = field(default_factory=dict)
    role: str = ""

    @property
    def training(self) -> Training:
        corpus = Corpus(**self.settings.get("corpus", {}))
        return Training(**{**self.settings, "corpus": corpus})


def grpo(section: str, name: str, seed: int, role: str = "cim", **settings: Any) -> Spec:
    corpus = settings.pop("corpus", Corpus())
    return Spec(section, name, "grpo", seed, {**CHOSEN, **settings, "corpus": asdict(corpus)}, role)


# Chosen on val, with an earlier GRPO; the README says what `choices` finds today.
CHOSEN: dict[str, Any] = {"learning_rate": 1e-3, "kl": 0.05, "temperature": 1.0}
CHOICES: tuple[dict[str, Any], ...] = (
    {"learning_rate": 5e-4, "kl": 0.05, "temperature": 1.0},
    {"learning_rate": 1e-3, "kl": 0.05, "temperature": 1.0},
    {"learning_rate": 2e-3, "kl": 0.05, "temperature": 1.0},
    {"learning_rate": 1e-3, "kl": 0.0, "temperature": 1.0},
    {"learning_rate": 1e-3, "kl": 0.05, "temperature": 1.2},
)


def choices() -> Iterator[Spec]:
    """Few, and judged on val alone."""
    for settings in CHOICES:
        name = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in settings.items())
        yield grpo("choices", name, 7, **settings)


def ablation(seeds: tuple[int, ...]) -> Iterator[Spec]:
    """The paper's Figure 4 with the four controls. The claim's rows come first."""
    first, *others = seeds
    yield Spec("ablation", BASE, "greedy", first, role="base")
    yield Spec("ablation", SUPERVISED, "sft", first, role="supervised")
    yield grpo("ablation", BOTH, first, reward=BOTH)
    for reward in (QIR, GRC):
        yield grpo("ablation", reward, first, reward=reward)
    yield Spec("ablation", REFERENCES, "references", first, role="other")
    for text in OPENINGS:
        yield Spec("ablation", f'forced opening "{text}"', "opening", first, {"text": text}, "control")
    for pick, name in LIKELIHOODS.items():
        yield Spec("ablation", name, "best_of", first, {"n": 8, "pick": pick}, "control")
    yield grpo("ablation", WRONG_IMAGE, first, "control", reward=BOTH, wrong_image=True)
    yield grpo("ablation", LENGTH, first, "control", reward="length")
    for seed in others:
        yield Spec("ablation", SUPERVISED, "sft", seed, role="supervised")
        for reward in (BOTH, QIR, GRC):
            yield grpo("ablation", reward, seed, reward=reward)


def sft(seeds: tuple[int, ...]) -> Iterator[Spec]:
    """RL on the base against RL on the supervised captioner: Tables 2 and 3."""
    for seed in seeds:
        yield grpo("sft", ON_SFT, seed, start="sft")
    yield grpo("sft", "supervised, then QIR", seeds[0], start="sft", reward=QIR)


def scaling(seeds: tuple[int, ...]) -> Iterator[Spec]:
    """Figure 5."""
    for n in SIZES:
        yield grpo("scaling", f"{n} images", seeds[0], corpus=Corpus(n))


def robustness(seeds: tuple[int, ...]) -> Iterator[Spec]:
    """Table 4: one slot changed at a time."""
    for seed in seeds:
        for text in (MINILM, CLIP):
            yield grpo("robustness", f"text: {text}", seed, corpus=Corpus(text=text))
    yield grpo("robustness", f"text: {TFIDF}", seeds[0], corpus=Corpus(text=TFIDF))
    yield grpo("robustness", f"image: {TOWER}", seeds[0], corpus=Corpus(image=TOWER))


def readings(seeds: tuple[int, ...]) -> Iterator[Spec]:
    """What the paper leaves open about its retrieval; in the paper the training images are in the gallery."""
    yield grpo("readings", "images of the gallery, own entries left out", seeds[0], learn_from=LABELLED)
    yield grpo("readings", "images of the gallery, own entries retrieved", seeds[0], learn_from=LABELLED, own=True)
    for reward in (BOTH, GRC):
        yield grpo("readings", f"{reward}: K entries, not K images", seeds[0], reward=reward, distinct=False)


def detail() -> Iterator[Spec]:
    """How GRC and QIR go with the detail of a true caption, by gallery; the retrieval read in several ways."""
    galleries = {
        **{f"{n} images": Corpus(n) for n in SIZES},
        **{f"text: {text}": Corpus(text=text) for text in (CLIP, TFIDF, "facts")},
        f"image: {TOWER}": Corpus(image=TOWER),
        "exact facts": Corpus(text="facts", image="facts"),
        "exact facts, 8000 images": Corpus(8000, text="facts", image="facts"),
    }
    for name, corpus in galleries.items():
        yield Spec("detail", name, "detail", settings={"corpus": asdict(corpus), "distinct": True})
    yield Spec("detail", "entries, not images", "detail", settings={"corpus": asdict(Corpus()), "distinct": False})
    for n in (2000, 16_000, 128_000):
        yield Spec("detail", f"exact facts, {n} scenes", "detail", settings={"scenes": n})


def verification(seeds: tuple[int, ...]) -> Iterator[Spec]:
    """Figure 2 and Table 1: one row per writer."""
    for name, corpus in (("MiniLM", Corpus()), ("CLIP's text", Corpus(text=CLIP))):
        for writer in (BASE, "changed references", SUPERVISED, BOTH):
            settings = {"writer": writer, "corpus": asdict(corpus)}
            yield Spec("verification", f"{writer}, {name}", "verify", seeds[0], settings)


def specs(section: str, seeds: tuple[int, ...]) -> list[Spec]:
    if section in ("detail", "choices"):
        return list({"detail": detail, "choices": choices}[section]())
    makers = {"ablation": ablation, "sft": sft, "verification": verification, "scaling": scaling,
              "robustness": robustness, "readings": readings}  # fmt: skip
    return list(makers[section](seeds))
