"""One resolver of names: shipped models, folders, packaged models and hub names, for every kind of model."""

from __future__ import annotations

from pathlib import Path

import pytest

from captune import storybook
from captune.errors import CaptionerError, CaptuneError, EncoderError, ScorerError
from captune.models import hub
from captune.utils.registry import Registry


def test_shipped_models_are_registered_by_entry_points() -> None:
    assert {"storybook", "storybook-clip", "storybook-lm"} <= set(hub.MODELS)
    for name in ("storybook", "storybook-clip", "storybook-lm"):
        assert hub.resolve(name) == hub.resolve_encoder(name) == str(storybook.model_path(name))


def test_anyone_can_register_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "theirs.py").write_text("from pathlib import Path\nFOLDER = Path(__file__).parent\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(hub, "MODELS", Registry("captune.models", "model", {"theirs": "theirs:FOLDER"}))
    assert hub.resolve("theirs") == str(tmp_path)


def test_folders_and_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    (tmp_path / "owner" / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("owner/model") == "owner/model"  # a folder
    assert hub.resolve("someone/model") == "someone/model" and hub.resolve("gpt2") == "gpt2"  # the hub's
    for name in ("owner/other", "./model", "~/no/such", "a/b/c", str(tmp_path / "none")):
        with pytest.raises(CaptionerError, match="does not exist"):
            hub.resolve(name)
    with pytest.raises(CaptionerError, match="'storybok' does not exist. Did you mean 'storybook'"):
        hub.resolve("storybok", bare=False)
    with pytest.raises(CaptionerError, match="encoder folder 'gpt2' does not exist.*storybook"):
        hub.resolve("gpt2", what="encoder", bare=False)
    (tmp_path / "model.csv").write_text("image,caption\n")
    for name in ("model.csv", "./model.csv"):
        with pytest.raises(CaptionerError, match=r"model.csv is a file and no detector: .* or an .onnx file"):
            hub.resolve(name, what="detector", instead="an .onnx file", bare=False)


@pytest.mark.parametrize(
    ("resolve", "error", "says"),
    [
        (hub.resolve, CaptionerError, "no config.json"),
        (hub.resolve_encoder, EncoderError, "no config.json"),
        (hub.resolve_text_encoder, EncoderError, "neither modules.json nor config.json"),
    ],
)
def test_an_empty_folder_is_refused(resolve, error: type[CaptuneError], says: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=says):
        resolve(tmp_path)


def test_what_an_offline_machine_lacks_is_said(tmp_path: Path) -> None:
    with pytest.raises(ScorerError, match="answering model 'some/model' is not on this machine, which is offline"):
        hub.check("some/model", what="answering model", example="a/b", error=ScorerError)
    hub.check("storybook", what="judge", example="a/b")
    assert hub.how_to_get("a/b", str(tmp_path)) == "" and "hf download a/b" in hub.how_to_get("a/b", "a/b")


def test_a_name_that_is_nearly_one_of_ours_is_said() -> None:
    assert hub.how_to_get("efficient-lite2", "efficient-lite2") == "; did you mean 'efficientnet-lite2'?"
    assert "hf download facebook/dinov2-base" in hub.how_to_get("facebook/dinov2-base", "facebook/dinov2-base")


@pytest.mark.parametrize(
    "problem", [ImportError("needs `protobuf`"), KeyError("llama4"), OSError("no config.json.\nmore")]
)
def test_what_cannot_be_loaded_is_one_sentence(problem: Exception) -> None:
    with pytest.raises(EncoderError) as said, hub.loading("encoder", "a/b", "a/b", EncoderError, instead="; or none"):
        raise problem
    assert str(said.value).startswith("encoder 'a/b' cannot be loaded: ") and said.value.__cause__ is problem
    assert str(said.value).endswith("; where the hub can be reached, run: hf download a/b; or none")
    assert "more" not in str(said.value)
