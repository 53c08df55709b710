"""The scorer `reward_model:FOLDER`: wherever a scorer works, with its accuracy in the signature."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_encoders
import tiny_reward

from captune.cli.main import main
from captune.errors import ScorerError, SpecError
from captune.scorers import load_scorer
from captune.scorers.registry import direction, load_reward
from captune.training.reward_model.train import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_reward.prepare(tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    return run(tiny_reward.config(folder, folder / "trained")).path


def test_scores_and_says_how_well(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    scorer = load_scorer(f"reward_model:{trained}", device="cpu")
    scorer.check()
    captions, image = ["a red ball on the house", "a red dog on the house", "", " "], tiny.picture(3, (48, 64))
    rows = scorer.rows(captions, image=[image] * 4)
    assert rows.shape == (4, 1) and rows[0] > rows[1]
    assert rows[2] == rows[3] == pytest.approx(scorer.model.head.least.item())  # type: ignore[attr-defined]
    assert "2 of 4 captions have no words and get the least reward" in caplog.text
    np.testing.assert_allclose(scorer.rows(captions[:1], image=[image]), rows[:1], atol=1e-6)
    stated = json.loads((trained / "config.json").read_text())["accuracy"]
    assert f"{stated['value']:.1%}" in scorer.signature and "pairs of 4 unseen images" in scorer.signature
    assert any(record.levelno == logging.WARNING and "is a reward model" in record.message for record in caplog.records)
    assert direction("reward_model") is True and direction(f"-reward_model:{trained}") is False


def test_filters_evaluates_and_rewards(folder: Path, trained: Path, tmp_path: Path) -> None:
    spec, captions = f"reward_model:{trained}", tmp_path / "captions.jsonl"
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()[::2]]
    lines = [
        {"image": f"{folder}/images/{p['image_id']}.png", "image_id": p["image_id"],
         "references": [p["rejected"], p["chosen"]]} for p in pairs
    ]  # fmt: skip
    captions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    argv = ["curate", "filter", str(captions), "--by", spec, "--best", "1", "--output", str(tmp_path / "out")]
    assert main([*argv, "--allow-outside"]) == 0
    kept = [json.loads(line)["references"] for line in (tmp_path / "out/captions.jsonl").read_text().splitlines()]
    right = sum(own == [pair["chosen"]] for own, pair in zip(kept, pairs, strict=True))
    assert right >= 38
    reward = load_reward(f"{spec} - 0.1*length", device="cpu")
    image = tiny.picture(3, (48, 64))
    a, b = reward(["a red ball on the house", "a red dog on the house"], image=[image, image])
    assert a > b


def test_refuses_what_is_no_reward_model(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="needs the folder of a model: reward_model:runs/reward"):
        load_scorer("reward_model")
    with pytest.raises(ScorerError, match="does not exist"):
        load_scorer(f"reward_model:{tmp_path}/none").check()
    with pytest.raises(ScorerError, match="train one with captune reward-model train"):
        load_scorer(f"reward_model:{tiny_encoders.clip(tmp_path / 'clip')}").check()
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "model.safetensors"):
        (other / name).write_bytes((trained / name).read_bytes())
    config = json.loads((other / "config.json").read_text())
    config["encoder"]["digest"] = "00000000"
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ScorerError, match=r"was trained on the encoder .*@00000000, not on"):
        load_scorer(f"reward_model:{other}", device="cpu").signature  # noqa: B018
    (other / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ScorerError, match="cannot be read"):
        load_scorer(f"reward_model:{other}", device="cpu").signature  # noqa: B018
