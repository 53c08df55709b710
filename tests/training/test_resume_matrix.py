"""A few of the kills of `make resume-matrix`, in a process that may fork: each resumes to the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "behaviour" / "resume_matrix.py"


def test_killed_runs_of_several_methods_end_like_whole_ones(tmp_path: Path) -> None:
    methods = ["sft", "vizer-latent", "grpo-reused", "scst-encoders"]
    command = [sys.executable, SCRIPT, "--methods", *methods, "--states", "2", "--checked", "1", "--seconds", "240"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
