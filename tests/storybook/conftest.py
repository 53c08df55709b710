from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def storybook_tokenizer() -> Any:
    """The tokenizer of the storybook captioner, made once."""
    from captune.storybook.captioner_model import build_tokenizer

    return build_tokenizer()
