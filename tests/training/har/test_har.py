"""HAR from two folders to an adapter: both stages, a kill between and within them, and what is refused before."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file

from captune.errors import (
    EvaluationError,
    MissingColumn,
    RunError,
    ScorerError,
    SettingError,
    SourceError,
    UnknownScorer,
)
from captune.models.captioner import Captioner
from captune.models.hub import resolve
from captune.training import trainer as training
from captune.training.har import train as har
from captune.training.har.train import HARConfig, run

SMALL: dict[str, Any] = {
    "image_encoder": "storybook-clip", "language_model": "storybook-lm", "images": "storybook:train?n=6&seed=3",
    "eval_images": "storybook:val?n=3&seed=3", "num_prefix_tokens": 2, "mle_steps": 2, "mle_batch_size": 2,
    "scst_steps": 2, "scst_batch_size": 2, "num_generations": 2, "max_new_tokens": 5, "lora_r": 2, "lora_alpha": 4,
    "save_steps": 1, "device": "cpu",
}  # fmt: skip


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_both_stages_and_what_is_left_behind(tmp_path: Path) -> None:
    found = run(HARConfig(output=tmp_path / "run", **SMALL))
    names = [row["name"] for row in found.scores()["rows"]]
    assert names[:2] == ["fresh projector", "maximum likelihood"] and len(names) == 3
    assert {"config.yaml", "report.html", "README.md", "adapter"} <= {path.name for path in found.path.iterdir()}
    assert (found.adapter / "README.md").read_text() == (found.path / "README.md").read_text(), "not PEFT's template"
    fresh, learned = (Captioner.load(found.path / name, device="cpu").core for name in ("parts", "captioner"))
    before, after = (core.model.projector.mlp[1].weight for core in (fresh, learned))
    assert not torch.equal(before, after), "stage 1 trains the projector"
    assert all("lora_" in name for name in tensors(found.adapter)), "stage 2 does not"
    captioner = Captioner.load(found.path / "captioner", adapter=found.adapter, device="cpu")
    assert len(captioner.generate([captioner_image()], max_new_tokens=3)) == 1


def test_a_gain_of_stage_2_is_one_over_stage_1(tmp_path: Path) -> None:
    found = run(HARConfig(output=tmp_path / "run", **SMALL))
    rows = {row["name"]: row for row in found.scores()["rows"]}
    assert [row["role"] for row in rows.values()] == ["other", "base", "trained"]
    assert all((found.path / row["captions"]).is_file() for row in rows.values())
    page = (found.path / "report.html").read_text()
    (found.path / "report.html").unlink()
    run(HARConfig(output=tmp_path / "run", **SMALL))  # finished: the page is written again
    assert (found.path / "report.html").read_text() == page
    text = " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S).split())
    before, after = (rows[name]["scores"]["cider"]["values"]["cider"] for name in ("maximum likelihood", "SCST: cider"))
    assert f"which it was rewarded for, from {before:.3f} to {after:.3f} on 3 images" in text
    assert "of the way to" not in text and "Gap closed" not in text and "Not in this folder" not in text
    for words in ("before stage 1", "after stage 1", "after stage 2", "3 runs"):
        assert words in text


@pytest.mark.parametrize(
    ("watch", "refused", "why"),
    [
        ("repetition,nonsense", UnknownScorer, "'nonsense'"),
        ("cider", EvaluationError, "'cider' cannot monitor the run: it is part of the reward"),
        ("detected", MissingColumn, "objects"),
        ("bertscore:nowhere", ScorerError, "nowhere"),
    ],
)
def test_what_watches_stage_2_is_checked_before_stage_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: str, refused: type[Exception], why: str
) -> None:
    monkeypatch.setattr(har, "assemble", stop)
    with pytest.raises(refused, match=why):
        run(HARConfig(output=tmp_path / "run", **SMALL, watch=watch))
    with pytest.raises(KeyboardInterrupt):
        run(HARConfig(output=tmp_path / "run", **SMALL, watch="rouge"))


def test_held_out_images_that_stream_are_refused_before_stage_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner_image().save(tmp_path / "a.png")
    rows = {"image": [str(tmp_path / "a.png")], "image_id": ["a"], "references": [["a ball"]]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr(har, "assemble", stop)
    with pytest.raises(EvaluationError, match="streams"):
        run(HARConfig(output=tmp_path / "run", **SMALL | {"eval_images": f"{tmp_path}/a.parquet?streaming=1"}))


def test_settings_of_stage_2_may_change_until_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training.MetricsCallback, "on_step_end", stop_in_stage_2)
        with pytest.raises(KeyboardInterrupt):
            run(HARConfig(output=tmp_path / "run", **SMALL))
    assert (tmp_path / "run/scst/config.yaml").is_file() and not [*(tmp_path / "run/scst").glob("checkpoint-*")]
    with monkeypatch.context() as patch:
        patch.setattr(har, "align", lambda config: pytest.fail("stage 1 was done again"))
        with pytest.raises(RunError, match="mle_steps"):
            run(HARConfig(output=tmp_path / "run", **SMALL | {"mle_steps": 3}))
        changed = SMALL | {"watch": "rouge", "reward": "bleu", "scst_steps": 1}
        assert run(HARConfig(output=tmp_path / "run", **changed)).finished
        with pytest.raises(RunError, match="reward"):  # stage 2 has begun
            run(HARConfig(output=tmp_path / "run", **changed | {"reward": "cider"}))


def test_both_stages_are_judged_on_captions_of_one_length(tmp_path: Path) -> None:
    longer = SMALL | {"max_new_tokens": 12, "scst_steps": 1, "scst_learning_rate": 1e-9}
    parts = tmp_path / "lm"  # whose own captions are short
    shutil.copytree(resolve("storybook-lm"), parts)
    config = parts / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_new_tokens": 3}))
    rows = run(HARConfig(output=tmp_path / "run", **longer | {"language_model": str(parts)})).scores()["rows"]
    learned, refined = (row["scores"]["health"]["values"]["length"] for row in rows[1:])
    assert learned == refined > 3


def captioner_image() -> Any:
    import tiny

    return tiny.picture(0)


@pytest.mark.parametrize("stage", ["mle", "scst"])
def test_a_killed_pipeline_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    class Cut(RuntimeError):
        pass

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2 and Path(args.output_dir).name == stage:
            raise Cut

    whole = run(HARConfig(output=tmp_path / "whole", **SMALL))
    with monkeypatch.context() as patch:
        patch.setattr(training.MetricsCallback, "on_step_end", on_step_end)
        with pytest.raises(Cut):
            run(HARConfig(output=tmp_path / "cut", **SMALL))
    torch.manual_seed(99)
    resumed = run(HARConfig(output=tmp_path / "cut", **SMALL))
    a, b = tensors(whole.adapter), tensors(resumed.adapter)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_pipeline_killed_between_its_stages_is_not_resumed_on_other_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        captioner_image().save(tmp_path / f"{number}.png")
    table = tmp_path / "captions.csv"
    first = "image,caption\n" + "".join(f"{number}.png,a red ball\n" for number in range(6))
    table.write_text(first)
    settings = SMALL | {"images": str(table), "accept_reward": True}

    def killed(config: Any) -> Any:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(har, "refine", killed)
        with pytest.raises(InterruptedError):
            run(HARConfig(output=tmp_path / "run", **settings))
    table.write_text(first.replace("red", "blue", 1))
    with pytest.raises(RunError, match="checkpoint-2 was trained with other images, references or columns"):
        run(HARConfig(output=tmp_path / "run", **settings))
    table.write_text(first)
    assert run(HARConfig(output=tmp_path / "run", **settings)).finished


@pytest.mark.parametrize("part", ["image_encoder", "language_model"])
def test_a_pipeline_is_not_resumed_with_another_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """The weights of a folder changed under their name while the pipeline stood still."""
    folder = shutil.copytree(resolve(SMALL[part]), tmp_path / part)
    settings = {**SMALL, part: str(folder)}
    monkeypatch.setattr(har, "align", stop)
    with pytest.raises(KeyboardInterrupt):
        run(HARConfig(output=tmp_path / "run", **settings))
    with pytest.raises(KeyboardInterrupt):  # as it was
        run(HARConfig(output=tmp_path / "run", **settings))
    weights = load_file(folder / "model.safetensors")
    weights = {name: 1.5 * tensor if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=f"was made of another {part.replace('_', ' ')} "):
        run(HARConfig(output=tmp_path / "run", **settings))
    shutil.rmtree(folder)  # the run has a copy
    with pytest.raises(KeyboardInterrupt):
        run(HARConfig(output=tmp_path / "run", **settings))


def stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def stop_in_stage_2(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
    if Path(args.output_dir).name == "scst":
        self.run_dir.log(step=1, loss=1.0)
        stop()


def test_a_finished_stage_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(HARConfig(output=tmp_path / "run", **SMALL))
    monkeypatch.setattr(har, "align", lambda config: pytest.fail("stage 1 was done again"))
    monkeypatch.setattr(har, "refine", lambda config: pytest.fail("stage 2 was done again"))
    run(HARConfig(output=tmp_path / "run", **SMALL))


def test_what_stage_2_refuses_is_said_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num-generations must be at least 2 with --baseline mean"):
        HARConfig(output=tmp_path / "run", **(SMALL | {"baseline": "mean", "num_generations": 1}))
    with pytest.raises(ValueError, match="did you mean|Did you mean"):
        HARConfig(output=tmp_path / "run", **(SMALL | {"reward": "cidre"}))
    assert not (tmp_path / "run").exists()


def test_what_stage_1_refuses_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--text-steps 2 leaves none of 2 steps for images"):
        HARConfig(output=tmp_path / "run", **SMALL, texts="captions.csv", text_steps=2)
    with pytest.raises(SourceError, match="captions.csv"):
        run(HARConfig(output=tmp_path / "run", **SMALL, texts=str(tmp_path / "captions.csv"), text_steps=1))
    assert not (tmp_path / "run" / "parts").exists()
