from __future__ import annotations

import corpora
import pytest

from captune.corpus import Corpus


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return corpora.source(tmp_path_factory.mktemp("source"), corpora.captions_of(30))


@pytest.fixture(scope="session")
def corpus(source: str, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpora.build(source, tmp_path_factory.mktemp("corpus"))
