"""A training command that is told to end."""

from __future__ import annotations

import os
import signal

import pytest

from captune.cli.train import ending_at_sigterm


def test_a8_sigterm_outside_the_loop_ends_with_143_and_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, ending_at_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert end.value.code == 143 and "stopped by SIGTERM" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
