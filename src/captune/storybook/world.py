"""The storybook world: what a scene may hold, and how a scene is sampled.

A `Scene` is a background and one to four `Thing`s in the cells of a 2 x 2 grid. Everything that a caption may say about
a scene follows from the scene alone, so the truth of a caption is countable (`captune.storybook.parser`).

Two scenes with the same facts (background; kind, sub-kind, colour, size and cell of each thing) fall into the same
bucket of a hash, and each split owns its buckets: no fact set occurs in two splits, whatever `n` and `seed` are asked
for. The split `ood` holds the scenes with a held-out kind x colour or kind x background pair; no other split has them.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict, dataclass

from captune.errors import SourceError
from captune.utils.registry import nearest

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SIZES = ("big", "small")
BACKGROUNDS = ("beach", "meadow", "desert", "city", "snow", "lake", "mountains")
# kind -> its sub-kinds ("breeds"); an empty tuple where there are none
KINDS: dict[str, tuple[str, ...]] = {
    "house": ("tall", "wide"),
    "car": (),
    "tree": ("pine", "palm"),
    "boat": ("sailing", "rowing"),
    "fish": ("striped", "spotted"),
    "bird": ("crested", "longtailed"),
    "flower": ("tulip", "daisy"),
    "ball": ("striped", "starred"),
    "kite": ("diamond", "box"),
    "butterfly": (),
    "umbrella": (),
    "mushroom": (),
    "balloon": (),
    "cat": (),
    "rocket": (),
    "cup": (),
}
KIND_NAMES = tuple(KINDS)
RELATIONS = ("left of", "right of", "above", "below")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

HELD_OUT_COLOUR = {kind: COLOURS[(3 * i + 1) % len(COLOURS)] for i, kind in enumerate(KIND_NAMES)}
HELD_OUT_BACKGROUND = {kind: BACKGROUNDS[(2 * i + 3) % len(BACKGROUNDS)] for i, kind in enumerate(KIND_NAMES)}

# Buckets (of 20) owned by each split. `pretrain` feeds the vision tower and the base captioner, `clip` the
# contrastive encoder; neither shares a fact set with the splits that are trained on and tested on later.
SPLITS: dict[str, range] = {
    "pretrain": range(0, 8),
    "clip": range(8, 12),
    "train": range(12, 14),
    "unlabelled": range(14, 16),
    "val": range(16, 18),
    "test": range(18, 20),
    "ood": range(0, 20),
}
NUM_THINGS_PROBABILITY = (0.20, 0.45, 0.20, 0.15)
CELL_CENTRES = (0.27, 0.73)
JITTER = 0.02
RELATION_MARGIN = 0.2  # two centres at least this far apart along an axis are in that relation


@dataclass(frozen=True)
class Thing:
    """One object.

    Attributes:
        kind: one of `KINDS`.
        subkind: its breed; None for a kind without breeds.
        colour: one of `COLOURS`.
        size: "big" or "small".
        x: its centre, 0 to 1 from left to right.
        y: its centre, 0 to 1 from top to bottom.
    """

    kind: str
    subkind: str | None
    colour: str
    size: str
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """A background (with an integer that varies its drawing) and one to four things of different kinds."""

    background: str
    variation: int
    things: tuple[Thing, ...]

    def to_json(self) -> str:
        """Return the scene as JSON, which `from_json` reads back."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Scene:
        """Return the scene of a JSON text.

        Raises:
            SourceError: for any other text.
        """
        try:
            record = json.loads(text)
            things = tuple(Thing(**thing) for thing in record["things"])
            return cls(record["background"], record["variation"], things)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise SourceError(f"this is no scene of storybook: {str(text)[:60]!r}") from error

    def thing(self, kind: str) -> Thing | None:
        """The scene's thing of that kind (kinds never repeat within a scene)."""
        return next((thing for thing in self.things if thing.kind == kind), None)

    def key(self) -> str:
        """The scene's facts in a canonical order: what its captions can be about."""
        things = sorted((t.kind, t.subkind or "", t.colour, t.size, t.x > 0.5, t.y > 0.5) for t in self.things)
        return json.dumps([self.background, things])


def relations(a: Thing, b: Thing) -> tuple[str, ...]:
    """Every relation r such that "a r b" is true, the horizontal one first."""
    found = []
    if abs(a.x - b.x) >= RELATION_MARGIN:
        found.append("left of" if a.x < b.x else "right of")
    if abs(a.y - b.y) >= RELATION_MARGIN:
        found.append("above" if a.y < b.y else "below")
    return tuple(found)


def is_held_out(scene: Scene) -> bool:
    """Whether the scene holds a kind x colour or kind x background pair that only `ood` shows."""
    return any(
        thing.colour == HELD_OUT_COLOUR[thing.kind] or scene.background == HELD_OUT_BACKGROUND[thing.kind]
        for thing in scene.things
    )


def sample_prior(rng: random.Random) -> Scene:
    """Sample one scene from the prior, held-out pairs included."""
    n = rng.choices((1, 2, 3, 4), weights=NUM_THINGS_PROBABILITY)[0]
    things = []
    for kind, cell in zip(rng.sample(KIND_NAMES, n), rng.sample(range(4), n), strict=True):
        subkinds = KINDS[kind]
        x, y = (CELL_CENTRES[c] + rng.uniform(-JITTER, JITTER) for c in (cell % 2, cell // 2))
        things.append(
            Thing(
                kind=kind,
                subkind=rng.choice(subkinds) if subkinds else None,
                colour=rng.choice(COLOURS),
                size=rng.choice(SIZES),
                x=round(x, 4),
                y=round(y, 4),
            )
        )
    return Scene(rng.choice(BACKGROUNDS), rng.randrange(1 << 16), tuple(things))


def bucket(scene: Scene) -> int:
    """Return the bucket, 0 to 19, of the scene's facts."""
    return int.from_bytes(hashlib.blake2b(scene.key().encode(), digest_size=4).digest(), "big") % 20


def random_for(split: str, seed: int, index: int, purpose: str) -> random.Random:
    """The random numbers of one purpose (scene, references, alt text) for scene `index` of a split."""
    return random.Random(f"{split}/{seed}/{index}/{purpose}")


def sample_scene(split: str, seed: int, index: int) -> Scene:
    """Return scene number `index` of a split: a function of (split, seed, index) alone.

    Raises:
        SourceError: for an unknown split.
    """
    if split not in SPLITS:
        raise SourceError(nearest(split, SPLITS, "storybook split"))
    rng = random_for(split, seed, index, "scene")
    while True:
        scene = sample_prior(rng)
        if is_held_out(scene) == (split == "ood") and bucket(scene) in SPLITS[split]:
            return scene
