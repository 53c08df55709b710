"""Training a reward model: what is learned, who is held out, that it resumes exactly, what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny_reward
import torch

from captune.annotation.pairs import write_pairs
from captune.cli.main import main
from captune.errors import AnnotationError, RunError, SettingError, SourceError
from captune.evaluation.preferences import read_pairs, read_preferences
from captune.models.heads import read_config
from captune.models.reward_model import Accuracy, RewardConfig, RewardModel
from captune.scorers import load_scorer
from captune.training import heads
from captune.training.reward_model.data import judged, three_parts
from captune.training.reward_model.train import Training, bradley_terry, run
from captune.utils.skipped import counting

RESULT = ("config.json", "model.safetensors", "metrics.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_reward.prepare(tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    return run(tiny_reward.config(folder, folder / "trained")).path


def result(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in RESULT}


def accuracy(path: Path) -> Accuracy:
    found = read_config(path, RewardConfig).accuracy
    assert found is not None
    return found


def test_the_loss_is_bradley_terrys_and_a_tie_is_half_a_win_of_each() -> None:
    d = torch.tensor([0.0, 1.5, 1.5], dtype=torch.float64)
    won = [bradley_terry(d[i : i + 1], torch.tensor([w])).item() for i, w in ((0, 1), (1, 1), (2, -1))]
    assert won == pytest.approx([math.log(2), math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(1.5))])
    tie = [bradley_terry(torch.tensor([x]), torch.tensor([0])).item() for x in (-1.0, -0.1, 0.0, 0.1, 1.0)]
    assert tie == pytest.approx(tie[::-1]) and min(tie) == tie[2]
    wins = (bradley_terry(torch.tensor([0.7]), torch.tensor([w])).item() for w in (1, -1))
    assert bradley_terry(torch.tensor([0.7]), torch.tensor([0])).item() == pytest.approx(sum(wins) / 2)


def test_learns_what_is_preferred_and_states_what_its_scorer_does(folder: Path, trained: Path) -> None:
    found = accuracy(trained)
    assert found.value > 0.9 > 0.75 > found.encoder
    assert found.interval is not None and found.interval[0] <= found.value <= found.interval[1] <= 1
    whole = judged(str(folder / "pairs.jsonl"), str(folder / "images/images.jsonl"))
    unseen = three_parts(whole, None)[2]
    assert (found.images, found.pairs) == (4, 8) == (len(unseen), len(unseen.preferences))
    images = dict(zip(unseen.data.ids, unseen.data.rows["image"], strict=True))
    scorer = load_scorer(f"reward_model:{trained}", device="cpu")
    right = 0.0
    for one in unseen.preferences:
        a, b = scorer([one.first, one.second], image=[images[one.image_id]] * 2)
        right += (a > b) + (a == b) / 2
    assert right / found.pairs == pytest.approx(found.value, abs=1e-4)
    readme = (trained / "README.md").read_text()
    assert f"{found.value:.1%}" in readme and "64 pairs (0 of them ties) of 32 images" in readme
    assert not [path for path in trained.iterdir() if path.name.startswith(("checkpoint", "features"))]


def test_begins_as_the_encoder_and_never_ends_below_it_on_what_chooses(folder: Path, tmp_path: Path) -> None:
    """One step at a rate that does harm: the encoder's own order is kept."""
    config = tiny_reward.config(folder, tmp_path / "run", max_steps=1, warmup_steps=0, learning_rate=10.0, eval_steps=1,
                                pairs=str(folder / "as-encoder.jsonl"))  # fmt: skip
    found = accuracy(run(config).path)
    assert found.value == found.encoder
    assert "step 0: no step was better" in (tmp_path / "run/README.md").read_text()


def test_rewards_are_normalised_on_the_training_captions(folder: Path, trained: Path) -> None:
    model = RewardModel.load(trained, "cpu")
    whole = judged(str(folder / "pairs.jsonl"), str(folder / "images/images.jsonl"))
    part = three_parts(whole, None)[0].data
    images = model.encoder.encode_images([part.rows[i]["image"] for i, own in enumerate(part.captions) for _ in own])
    rewards = model.rewards(images, [text for own in part.captions for text in own])
    assert float(rewards.mean()) == pytest.approx(0, abs=1e-4)
    assert float(rewards.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert model.rewards(images[:1], [" "]).item() == pytest.approx(float(rewards.min()), abs=1e-4)


def test_same_seed_same_bytes_other_seed_others(folder: Path, trained: Path) -> None:
    assert result(run(tiny_reward.config(folder, folder / "again")).path) == result(trained)
    other = result(run(tiny_reward.config(folder, folder / "other", seed=1)).path)
    assert other["model.safetensors"] != result(trained)["model.safetensors"]


@pytest.mark.parametrize("when", ["training", "saving"])
def test_killed_and_resumed_gives_the_same_bytes(
    folder: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    class Killed(BaseException):
        pass

    true = Training.advance

    def advance(self: Training, *batch: Any) -> float:
        if self.step == 14:
            raise Killed
        return true(self, *batch)

    def stop(*args: Any) -> None:
        raise Killed

    config = tiny_reward.config(folder, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(*((Training, "advance", advance) if when == "training" else (heads, "save_head", stop)))
        with pytest.raises(Killed):
            run(config)
    assert list(config.output.glob("checkpoint-*")) and not (config.output / "config.json").exists()
    assert result(run(config).path) == result(trained)


def test_a_checkpoint_of_other_pairs_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = tmp_path / "pairs.jsonl"
    lines = (folder / "pairs.jsonl").read_text().splitlines(keepends=True)
    pairs.write_text("".join(lines))
    config = tiny_reward.config(folder, tmp_path / "run", pairs=str(pairs))
    with monkeypatch.context() as patch:
        patch.setattr(heads, "save_head", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config)
    row = json.loads(lines[0])
    pairs.write_text(
        json.dumps(row | {"chosen": row["rejected"], "rejected": row["chosen"]}) + "\n" + "".join(lines[1:])
    )
    with pytest.raises(RunError, match="other images, captions or encoders"):
        run(config)


def test_no_image_is_on_two_sides(folder: Path, tmp_path: Path) -> None:
    whole = judged(str(folder / "pairs.jsonl"), str(folder / "images/images.jsonl"))
    parts = three_parts(whole, None)
    ids = [part.data.ids for part in parts]
    assert [len(own) for own in ids] == [32, 4, 4] and len({*ids[0], *ids[1], *ids[2]}) == 40
    assert [{one.image_id for one in part.preferences} for part in parts] == [set(own) for own in ids]

    tiny_reward.source(tmp_path / "images", {f"x{n}": int(image_id[1:]) for n, image_id in enumerate(ids[2])})
    pairs = tmp_path / "pairs.jsonl"
    more = [json.dumps(tiny_reward.pair(f"x{n}", n)) + "\n" for n in range(4)]
    pairs.write_text((folder / "pairs.jsonl").read_text() + "".join(more))
    eval_pairs = tmp_path / "eval.jsonl"
    eval_pairs.write_text("".join(json.dumps(tiny_reward.pair(i, 1)) + "\n" for i in ids[2]))
    images = str(tmp_path / "images/images.jsonl")
    config = tiny_reward.config(folder, tmp_path / "run", pairs=str(pairs), images=images, eval_pairs=str(eval_pairs))
    with counting() as skipped:
        assert accuracy(run(config).path).images == 4
    left = {item for items in skipped.values() for item in items}
    assert left == {*ids[2], "x0", "x1", "x2", "x3"}


def test_two_images_under_one_id_are_refused(tmp_path: Path) -> None:
    def table(*seeds: int) -> Path:
        rows = [
            {"image_id": "0", "chosen": f"a {seed} wall", "rejected": "a cat", "images": [{"bytes": bytes([seed])}]}
            for seed in seeds
        ]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "pairs.parquet")
        return tmp_path / "pairs.parquet"

    assert len(read_preferences(table(1, 1)).images) == 1
    with pytest.raises(AnnotationError, match="row 2 has another image under the id '0'"):
        read_preferences(table(1, 2))


def test_ties_of_a_table_of_battles_train_and_are_not_counted(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "battles.csv"
    rows = ["image_id,caption_a,caption_b,winner"]
    for pair in read_pairs(folder / "pairs.jsonl"):
        rows.append(f"{pair.image_id},{pair.rejected},{pair.chosen},b")
        rows.append(f"{pair.image_id},{pair.chosen},{pair.chosen} again,tie")
    table.write_text("\n".join(rows) + "\n")
    assert {one.winner for one in read_preferences(table).preferences} == {-1, 0}
    path = run(tiny_reward.config(folder, tmp_path / "run", pairs=str(table))).path
    assert "128 pairs (64 of them ties) of 32 images" in (path / "README.md").read_text()
    assert accuracy(path).pairs == 8
    assert accuracy(path).value > 0.9


def test_images_of_a_file_of_captune_pairs_serve(folder: Path, trained: Path, tmp_path: Path) -> None:
    pairs = read_pairs(folder / "pairs.jsonl")
    for name in ("own.parquet", "own.jsonl"):
        write_pairs(pairs, tmp_path / name, images=str(folder / "images/images.jsonl"))
        made = run(tiny_reward.config(folder, tmp_path / name[4:], pairs=str(tmp_path / name), images=None)).path
        assert result(made)["model.safetensors"] == result(trained)["model.safetensors"]


def test_what_cannot_be_used_is_counted(folder: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    odd = [("i0", " ", "a cat"), ("i1", "a cat", "a cat "), ("elsewhere", "a", "b")]
    lines = [json.dumps({"image_id": i, "chosen": a, "rejected": b}) + "\n" for i, a, b in odd]
    pairs.write_text((folder / "pairs.jsonl").read_text() + "".join(lines))
    with counting() as skipped:
        assert len(judged(str(pairs), str(folder / "images/images.jsonl")).preferences) == 80
    assert [set(items) for items in skipped.values()] == [{"i0"}, {"i1"}, {"elsewhere"}]


def test_refusals(folder: Path, tmp_path: Path) -> None:
    def refused(error: type[Exception], match: str, **changes: Any) -> None:
        with pytest.raises(error, match=match):
            run(tiny_reward.config(folder, tmp_path / "run", **changes))
        assert not (tmp_path / "run" / "config.yaml").exists()

    refused(SourceError, "say where they are with --images", images=None)
    few = tmp_path / "few.jsonl"
    few.write_text("".join((folder / "pairs.jsonl").read_text().splitlines(keepends=True)[:18]))
    refused(SourceError, "10 are the least", pairs=str(few))
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"image_id": "x", "chosen": "a", "rejected": "b"}) + "\n")
    refused(SourceError, "no pair can be used; its images have ids like 'x'", pairs=str(other))
    ratings = tmp_path / "ratings.csv"
    ratings.write_text("image_id,caption,rating\ni0,a cat,3\n")
    refused(AnnotationError, "not which of two is better", pairs=str(ratings))
    with pytest.raises(SettingError, match="missing required option: --pairs"):
        tiny_reward.config(folder, tmp_path / "run", pairs=" ")


def test_the_command_says_how_well_it_prefers(folder: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_reward.config(folder, trained)
    flags = [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in
             ("pairs", "images", "encoder", "output", "device", *tiny_reward.SMALL)]  # fmt: skip
    assert main(["reward-model", "train", *flags]) == 0
    said = capsys.readouterr()
    assert "of 8 pairs of 4 unseen images, its encoder's cosine in" in said.err
    assert said.out == f"reward model: {trained}\n"
