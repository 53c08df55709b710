"""Before anything is imported: no network, no tokenizer threads, and torchvision beside a CPU build of torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

sys.path.insert(0, str(Path(__file__).parent))  # so that tests can import tiny.py and torchvision_shim.py

import torchvision_shim

torchvision_shim.install()
