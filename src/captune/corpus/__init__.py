"""A retrieval corpus: captioned images as vectors on disk, searched by text; exact, or approximate by setting.

corpus = Corpus.build("storybook:train", "runs/corpus")     # or Corpus.open("runs/corpus")
scores, rows = corpus.search(["a red ball on the beach"], k=5, exclude=["train-91-000007"])
corpus.image_vectors[corpus.owners[rows]]                   # (1, 5, D): the retrieved entries' images
"""

from __future__ import annotations

from captune.corpus.corpus import Corpus
from captune.errors import CorpusError

__all__ = ["Corpus", "CorpusError"]
