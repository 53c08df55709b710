"""What comes from outside is data: the lines of SECURITY.md that have no test in the room of what they protect."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from captune.errors import CaptionerError, UsageError
from captune.models.captioner import Captioner
from captune.utils.files import parse_yaml

ROOT = Path(__file__).parents[1]


class Evil:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_every_line_of_the_threat_model_names_a_test_that_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text("utf-8")]
    assert missing == []


def test_a_pickled_adapter_is_not_opened(tiny_folder: Any, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": "x"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    torch.save(Evil(tmp_path / "ran"), adapter / "adapter_model.bin")
    with pytest.raises(CaptionerError, match=r"adapter_model\.safetensors"):
        Captioner.load(tiny_folder("idefics3"), adapter=adapter)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [touch ran]", "!!python/name:os.system ''", "!x 1"])
def test_yaml_tags_make_no_objects(tag: str) -> None:
    with pytest.raises(UsageError, match="not valid YAML"):
        parse_yaml(f"images: {tag}\n", "config.yaml")


def test_a_chat_template_reaches_no_python(tiny_folder: Any, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(tiny_folder("idefics3"), tmp_path / "model")
    ran = tmp_path / "ran"
    template = f"{{{{ cycler.__init__.__globals__.os.mkdir('{ran}') }}}}"
    for file in folder.glob("*chat_template*"):
        file.unlink()
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(Exception, match="is unsafe"):
        captioner = Captioner.load(folder, prompt="Describe.")
        captioner.generate([Image.new("RGB", (8, 8))], max_new_tokens=2)
    assert not ran.exists()
