"""The galleries that captions search: corpora made in code as `captune corpus build` makes them, with any encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from captune.corpus import Corpus as Index
from captune.data import load_images
from captune.models.captioner import Captioner
from captune.storybook.changes import fact_vector, scene_vector
from captune.storybook.world import Scene
from captune.utils.hashing import fingerprint, pixels_digest, weights_digest

from .experiments import TFIDF, TOWER, Corpus

ALIKE = 1e-3  # a last component that all vectors share, so that a text without a known word has a direction too


class TfIdf:
    """Words by their rarity in the gallery's own texts: a text encoder without any training."""

    name = TFIDF

    def __init__(self, texts: Sequence[str]) -> None:
        self.vectorizer = TfidfVectorizer(token_pattern=r"[a-z]+").fit(texts)
        self.digest = fingerprint(repr(sorted(self.vectorizer.vocabulary_)) + repr(self.vectorizer.idf_.tolist()))

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        known = self.vectorizer.transform(texts).toarray()
        return np.hstack([known, np.full((len(texts), 1), ALIKE)])


class Facts:
    """The exact facts of texts, and of the images whose scenes are known: retrieval without an encoder's mistakes."""

    name, digest = "facts", "exact"

    def __init__(self, sources: Sequence[Any] = ()) -> None:
        self.known = {
            pixels_digest(row["image"]): scene_vector(Scene.from_json(row["scene"]))
            for source in sources
            for row in source
        }

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([fact_vector(text) for text in texts])

    def encode_images(self, images: Sequence[Any]) -> np.ndarray:
        return np.stack([self.known[pixels_digest(image)] for image in images])


class Tower:
    """The base captioner's own vision tower, averaged over its tokens: no contrastive training."""

    name = TOWER

    def __init__(self, base: str) -> None:
        self.captioner = Captioner.load(base)

    @cached_property
    def digest(self) -> str:
        return weights_digest(self.captioner.core.state_dict())

    def encode_images(self, images: Sequence[Any]) -> Any:
        return self.captioner.image_features(list(images), where="tower").cpu()


def gallery(corpus: Corpus, work: Path, *, base: str, judged: Sequence[Any] = ()) -> Index:
    """The corpus of a spec, made once; the encoder "facts" has to know the images whose captions are judged."""
    text: Any = corpus.text
    image: Any = corpus.image
    if text == TFIDF:
        text = TfIdf([caption for own in load_images(corpus.source)["references"] for caption in own])
    if "facts" in (text, image):
        facts = Facts([load_images(corpus.source), *judged] if image == "facts" else ())
        text, image = (facts if slot == "facts" else slot for slot in (text, image))
    if image == TOWER:
        image = Tower(base)
    folder = work / "corpora" / fingerprint(repr(asdict(corpus)) + base * (corpus.image == TOWER))
    return Index.build(corpus.source, folder, text_encoder=text, image_encoder=image, progress=False)
