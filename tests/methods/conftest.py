"""What the tests of the methods share."""

from __future__ import annotations

from typing import Any

import pytest

from captune.captioner import Captioner
from captune.runs import RunDir


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end with the adapter: captions and scores are tested elsewhere."""

    def conclude(config: Any, run_dir: RunDir, captioner: Captioner, **_: Any) -> RunDir:
        captioner.save_adapter(run_dir.adapter)
        return run_dir.finish("done")

    monkeypatch.setattr("captune.methods.sft.conclude", conclude)
    monkeypatch.setattr("captune.methods.vizer.conclude", conclude)
