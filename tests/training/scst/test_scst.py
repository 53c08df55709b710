"""Self-critical training: the gradient by hand, the reward by pycocoevalcap, one decoding, runs that are cut."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny
import torch
from pycocoevalcap.cider.cider_scorer import CiderScorer
from safetensors.torch import load_file

from captune.errors import UnknownScorer
from captune.models.captioner import Captioner
from captune.runs.run_dir import RunDir
from captune.scorers import load_reward
from captune.scorers._support import ptb
from captune.scorers.reference.cider import END, Cider
from captune.training import trainer as training
from captune.training.scst import train as scst
from captune.training.scst.train import SCSTConfig, SCSTTrainer, leave_one_out, run, scst_loss
from captune.training.trainer import training_arguments
from captune.utils.files import read_jsonl


def settings(output: Path, **more: Any) -> SCSTConfig:
    small = {"max_steps": 4, "batch_size": 2, "lora_r": 4, "lora_alpha": 8, "warmup_steps": 0, "save_steps": 2,
             "num_generations": 3, "max_new_tokens": 5}  # fmt: skip
    return SCSTConfig(output=output, device="cpu", **({"model": "", "images": "-"} | small | more))


def build(captioner: Captioner, dataset: Any, config: SCSTConfig, **more: Any) -> SCSTTrainer:
    reward = load_reward(config.reward)
    for part, _ in reward.parts:
        if isinstance(part, Cider):
            part.set_eos(config.end_token)
            part.fit(dataset["references"])
    trainer = SCSTTrainer(captioner, dataset, training_arguments(config), reward=reward, rl_config=config, **more)
    trainer._memo = captioner.share_vision()
    return trainer


# -- equation 2


def test_the_gradient_by_hand() -> None:
    """Three words, two captions, every step's logits (ln 1, ln 2, ln 5), so p = (1, 2, 5)/8.

    Caption 1 is the words 2, 0 with R = 3 and b = 1, caption 2 the word 1 alone with R = 0 and b = 1; B = 2.
    L = -1/2 [2 (ln 5/8 + ln 1/8) - 1 ln 2/8]. With dlog p_w/dz = onehot_w - p, the gradient of caption i's step is
    -A_i/B (onehot - p):
        caption 1, word 2:  -1 (onehot_2 - p)   = ( 1/8,  2/8, -3/8)
                   word 0:  -1 (onehot_0 - p)   = (-7/8,  2/8,  5/8)
        caption 2, word 1:  1/2 (onehot_1 - p)  = (-1/16, 6/16, -5/16)
                   padding: 0
    """
    logits = torch.tensor([1.0, 2.0, 5.0]).log().expand(2, 2, 3).clone().requires_grad_()
    ids = torch.tensor([[2, 0], [1, 0]])
    mask = torch.tensor([[1, 1], [1, 0]])
    logprobs = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    loss, advantages = scst_loss(logprobs, mask, torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0]))
    loss.backward()
    assert loss.item() == pytest.approx(-0.5 * (2 * (math.log(5 / 8) + math.log(1 / 8)) - math.log(2 / 8)), rel=1e-6)
    assert advantages.tolist() == [2.0, -1.0]
    expected = [[[1 / 8, 2 / 8, -3 / 8], [-7 / 8, 2 / 8, 5 / 8]], [[-1 / 16, 6 / 16, -5 / 16], [0, 0, 0]]]
    torch.testing.assert_close(logits.grad, torch.tensor(expected))


def test_the_mean_of_the_others() -> None:
    nan = float("nan")
    rewards = torch.tensor([[1.0, 2.0, 6.0], [nan, 2.0, 4.0], [nan, nan, 4.0]])
    expected = torch.tensor([[4.0, 3.5, 1.5], [3.0, 4.0, 2.0], [4.0, 4.0, nan]])
    torch.testing.assert_close(leave_one_out(rewards), expected, equal_nan=True)


def test_what_cannot_be_judged_teaches_nothing() -> None:
    logprobs = torch.zeros(3, 1, requires_grad=True)
    rewards, baseline = torch.tensor([float("nan"), 1.0, 1.0]), torch.tensor([0.0, float("nan"), 0.0])
    loss, advantages = scst_loss(logprobs, torch.ones(3, 1), rewards, baseline)
    loss.backward()
    assert advantages.tolist() == [0.0, 0.0, 1.0]
    assert logprobs.grad.flatten().tolist() == pytest.approx([0, 0, -1 / 3])


def test_a_part_that_cannot_judge_leaves_the_others_and_a_batch_without_any_no_figure(
    captioner: Captioner, dataset: Any, tmp_path: Path
) -> None:
    trainer = build(captioner, dataset, settings(tmp_path))
    none = math.nan
    parts = {"one": [1.0, 2.0, none, 4.0], "other": [10.0, none, none, 40.0]}
    judges = [lambda captions, values=values, **_: values for values in parts.values()]
    for judge, name in zip(judges, parts, strict=True):
        judge.name = name  # type: ignore[attr-defined]
    trainer.reward.parts = [(judge, weight) for judge, weight in zip(judges, (1.0, 0.5), strict=True)]  # type: ignore[misc]
    found = trainer._rewards(list("abcd"), [True] * 4, list(dataset.select(range(2))), 2)
    torch.testing.assert_close(found, torch.tensor([[6.0, 2.0], [none, 24.0]]), equal_nan=True)
    trainer._note("reward", torch.tensor([none, none]).nanmean())
    trainer._note("reward", found[0].nanmean())
    assert trainer._rewards_seen == [4.0] == trainer._seen["reward"]


@pytest.mark.parametrize("baseline", ["greedy", "mean"])
def test_the_step_has_the_gradient_of_equation_2(
    captioner: Captioner, dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, baseline: str
) -> None:
    """Against log p of each caption read by itself, after its own prompt, with the rewards of the scorer."""
    tiny.taught(captioner)
    trainer = build(captioner, dataset, settings(tmp_path, baseline=baseline, reward="length + 0.5*rouge"))
    drawn: list[Any] = []

    def spy(*args: Any, **kwargs: Any) -> Any:
        drawn.append(scst_sample(*args, **kwargs))
        return drawn[-1]

    scst_sample = scst.sample
    monkeypatch.setattr(scst, "sample", spy)
    examples = [dataset[i] for i in (0, 1)]
    trainer.caption_loss([e["image"] for e in examples], examples).backward()
    found = {n: p.grad.clone() for n, p in captioner.model.named_parameters() if p.grad is not None}
    captioner.model.zero_grad()
    tails, _ = drawn[0]
    each = len(tails) // 2
    captions = captioner.decode(tails)
    rewards = trainer.reward(captions, references=[e["references"] for e in examples for _ in range(each)])
    loss = torch.tensor(0.0)
    for i, example in enumerate(examples):
        own = range(i * each, (i + 1) * each)
        samples = own[1:] if baseline == "greedy" else own
        for k in samples:
            others = [rewards[j] for j in samples if j != k]
            b = rewards[own[0]] if baseline == "greedy" else sum(others) / len(others)
            prompt = captioner.prepare([example["image"]])
            start = prompt["input_ids"].shape[1]
            ids = torch.cat([prompt["input_ids"], torch.tensor([tails[k]])], dim=1)
            pixels = {name: prompt[name] for name in prompt if name.startswith("pixel")}
            logits = captioner.model(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels).logits
            steps = logits[0, start - 1 : -1].log_softmax(-1)
            loss = loss - (rewards[k] - b) * steps[range(len(tails[k])), tails[k]].sum() / (2 * len(samples))
    loss.backward()
    assert found and max(grad.abs().max() for grad in found.values()) > 1e-3
    for name, parameter in captioner.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, atol=2e-5, rtol=2e-3, msg=name)


def test_dropout_does_not_come_between_sample_and_gradient(captioner: Captioner, dataset: Any, tmp_path: Path) -> None:
    captioner.add_lora(4, 8, dropout=0.5)
    with torch.no_grad():
        for name, parameter in captioner.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    trainer = build(captioner, dataset, settings(tmp_path))
    losses = []
    for _ in range(2):
        captioner.model.train()
        torch.manual_seed(0)
        losses.append(trainer.caption_loss([dataset[0]["image"]], [dataset[0]]).item())
    assert losses[0] == losses[1]


# -- the reward


def of_pycocoevalcap(captions: list[str], references: list[list[str]], train: list[list[str]]) -> list[float]:
    """Its CIDEr-D of tokenized texts, with the document frequencies of `train`."""
    frozen = CiderScorer()
    for own in train:
        frozen += ("", own)
    frozen.compute_doc_freq()
    scorer = CiderScorer()
    for caption, own in zip(captions, references, strict=True):
        scorer += (caption, own)
    scorer.document_frequency = frozen.document_frequency
    scorer.crefs += [{}] * (len(train) - len(captions))  # its N is the number of these
    return [float(score) for score in scorer.compute_cider()]


@pytest.mark.parametrize("end_token", [True, False])
def test_the_reward_is_pycocoevalcaps(
    captioner: Captioner, tmp_path: Path, images: list, golden: dict, end_token: bool
) -> None:
    items = golden["flickr8k"]["items"][:80]
    rows = [{"image": images[0], "image_id": str(i), "references": item["references"]} for i, item in enumerate(items)]
    data = datasets.Dataset.from_list(rows)
    captioner.add_lora(4)
    trainer = build(captioner, data, settings(tmp_path, end_token=end_token))
    captions = [text for item in items[:16] for text in (item["caption"], f"{item['caption']} and a")]
    ended = [place % 2 == 0 for place in range(32)]
    found = trainer._rewards(captions, ended, [data[i] for i in range(16)], 2)

    def words(text: str, end: bool = True) -> str:
        return f"{ptb.tokenize(text)} {END}" if end_token and end else ptb.tokenize(text)

    tokenized = [[words(text) for text in item["references"]] for item in items]
    expected = of_pycocoevalcap(
        [words(caption, end) for caption, end in zip(captions, ended, strict=True)],
        [own for own in tokenized[:16] for _ in range(2)],
        tokenized,
    )
    assert max(expected) > 1
    torch.testing.assert_close(found.flatten(), torch.tensor(expected), atol=1e-6, rtol=1e-6)


@pytest.fixture(scope="module")
def golden() -> dict:
    file = Path(__file__).parents[2] / "golden" / "pycocoevalcap.json"
    return json.loads(file.read_text(encoding="utf-8"))


# -- the step


@pytest.mark.parametrize("baseline", ["greedy", "mean"])
def test_an_image_is_seen_once_per_step(captioner: Captioner, dataset: Any, tmp_path: Path, baseline: str) -> None:
    """One evaluation of the tower, none backward; one prompt for all captions, and once more for their gradient."""
    forward: list[int] = []
    backward: list[int] = []

    def seen(module: Any, args: Any, output: Any) -> None:
        forward.append(len(output.last_hidden_state))
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(lambda grad: backward.append(1))

    captioner.core.model.vision_model.register_forward_hook(seen)
    passes: list[int] = []
    captioner.core.model.text_model.register_forward_hook(lambda m, a, output: passes.append(len(output[0])))
    captioner.add_lora(4, 8)
    config = settings(tmp_path, baseline=baseline, max_steps=2, num_generations=4)
    build(captioner, dataset, config)._memo.remove()
    SCSTTrainer.fit(captioner, dataset, config, RunDir(tmp_path / "run").start({}),
                    reward=load_reward("length"), rl_config=config)  # fmt: skip
    assert forward == [2, 2] and not backward
    assert passes[0] == 2 and passes[1] == 2 * (5 if baseline == "greedy" else 4)
    assert passes[-2:] == [2, 8]


def test_a_liked_word_becomes_likelier(captioner: Captioner, dataset: Any, tmp_path: Path) -> None:
    batch = captioner.prepare(list(dataset["image"]))

    def first_words() -> torch.Tensor:
        captioner.model.eval()
        with torch.no_grad():
            return captioner.model(**batch).logits[:, -1].softmax(-1).mean(0)

    before = first_words()
    special = captioner.tokenizer.all_special_ids
    liked = next(i for i in before.argsort(descending=True).tolist() if i not in special and 0.005 < before[i] < 0.2
                 and captioner.tokenizer.decode([i]).strip().isalnum())  # fmt: skip
    word = captioner.tokenizer.decode([liked]).strip()
    torch.manual_seed(0)
    captioner.add_lora(4, 8, 0.0)
    config = settings(tmp_path, max_steps=12, batch_size=4, num_generations=12, learning_rate=0.02, max_new_tokens=1,
                      reward="length", save_steps=50)  # fmt: skip
    reward = load_reward("length")
    reward.parts = [(lambda captions, **_: [float(c.strip() == word) for c in captions], 1.0)]  # type: ignore[list-item]
    reward.parts[0][0].name = "liked"  # type: ignore[attr-defined]
    run_dir = RunDir(tmp_path / "run").start({})
    torch.manual_seed(0)
    SCSTTrainer.fit(captioner, dataset, config, run_dir, reward=reward, rl_config=config)
    assert first_words()[liked] > 2 * before[liked]
    rows = [row for row in run_dir.metrics() if "reward" in row]
    assert len(rows) == 12 and rows[-1]["reward"] > rows[0]["reward"]
    figures = {"reward", "baseline", "advantage", "advantage_std", "length", "bad_endings", "cut", "rewards/liked/mean"}
    assert figures <= rows[0].keys()


# -- KL


@pytest.mark.usefixtures("no_report")
def test_kl_is_to_the_captioner_that_training_starts_from(
    tiny_folder: Any, dataset: Any, tmp_path: Path, source: str
) -> None:
    """0 at the first step, whether that is the base or an adapter; and the adapter as it was is not left behind."""
    model = tiny_folder("idefics3")
    tiny.taught(captioner := Captioner.load(model, device="cpu")).save_adapter(tmp_path / "sft")
    firsts = {}
    for name, adapter in (("base", None), ("adapter", tmp_path / "sft")):
        config = settings(tmp_path / name, model=str(model), images=source, adapter=adapter, beta=0.5, max_steps=3,
                          reward="length", accept_reward=True)  # fmt: skip
        run_dir = run(config)
        firsts[name] = [row["kl"] for row in run_dir.metrics() if "kl" in row]
        assert [path.name for path in run_dir.adapter.iterdir() if path.is_dir()] == []
    for kl in firsts.values():
        assert kl[0] == pytest.approx(0, abs=1e-6) and kl[-1] > 1e-6
    del captioner


# -- runs


class Cut(RuntimeError):
    """What stops a run in the middle."""


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(("more", "step"), [({}, 3), ({"baseline": "mean", "gradient_accumulation_steps": 2}, 5)])
def test_a_cut_run_ends_like_an_uncut_one(
    tiny_folder: Any, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], step: int
) -> None:
    """To the bit, with the samples that it would have drawn; cut in the first and in a later pass over the images."""
    more = {"model": str(tiny_folder("idefics3")), "images": source, "max_steps": 6, "learning_rate": 0.01} | more
    whole = run(settings(tmp_path / "whole", **more))
    with monkeypatch.context() as patch:

        def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if state.global_step == step:
                raise Cut

        patch.setattr(training.MetricsCallback, "on_step_end", on_step_end)
        with pytest.raises(Cut):
            run(settings(tmp_path / "cut", **more))
    resumed = run(settings(tmp_path / "cut", **more))
    first, second = (load_file(r.adapter / "adapter_model.safetensors") for r in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(bool(first[name].any()) for name in first if "lora_B" in name)
    rewards = [[(row["step"], row["reward"]) for row in r.metrics() if "reward" in row] for r in (whole, resumed)]
    assert rewards[0] == rewards[1] and len(rewards[0]) == 6
    watched = [(r.path / "watch.jsonl").read_text() for r in (whole, resumed)]
    assert watched[0] == watched[1]


@pytest.mark.parametrize("watch", ["repetition", "none"])
def test_what_watches_is_chosen(tiny_folder: Any, source: str, tmp_path: Path, watch: str) -> None:
    model = str(tiny_folder("idefics3"))
    run_dir = run(settings(tmp_path / "run", model=model, images=source, max_steps=1, watch=watch))
    watched = run_dir.path / "watch.jsonl"
    assert watched.exists() == (watch != "none")
    if watch != "none":
        assert [set(row["greedy"]) for row in read_jsonl(watched)] == [{"repetition"}] * 2


def test_a_whole_run(tiny_folder: Any, source: str, tmp_path: Path) -> None:
    """From a fully fine-tuned adapter with a connector of its own, which this stage leaves as it is."""
    model = str(tiny_folder("idefics3"))
    captioner = Captioner.load(model, device="cpu")
    captioner.make_trainable(full=True, connector=True)
    captioner.save_adapter(tmp_path / "sft")
    run_dir = run(settings(tmp_path / "run", model=model, images=source, adapter=tmp_path / "sft", max_steps=2))
    assert run_dir.finished and (run_dir.path / "report.html").is_file()
    assert [row["name"] for row in run_dir.scores()["rows"]] == ["base", "SCST: cider"]
    assert [row.get("rewarded") for row in run_dir.scores()["rows"]] == [None, ["cider"]]
    assert "| cider (rewarded) |" in (run_dir.path / "README.md").read_text()
    assert Cider.load(run_dir.path / "cider-df.json").eos
    watched = read_jsonl(run_dir.path / "watch.jsonl")
    rewards = [row["reward"] for row in run_dir.metrics() if "reward" in row]
    assert [(row["step"], row["reward"]) for row in watched] == [(0, None), *enumerate(rewards, 1)]
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "sft", run_dir.adapter))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any("connector" in name for name in changed)
    assert any("connector" in name for name in after)


@pytest.mark.usefixtures("no_report")
def test_the_end_token_can_be_had_or_not(tiny_folder: Any, source: str, tmp_path: Path) -> None:
    common = {"model": str(tiny_folder("idefics3")), "images": source, "max_steps": 1}
    for name, more, eos in (
        ("default", {}, True),
        ("off", {"end_token": False}, False),
        ("said", {"reward": "0.1*cider:?eos=0 + length", "accept_reward": True}, False),
    ):
        run_dir = run(settings(tmp_path / name, **common, **more))
        assert Cider.load(run_dir.path / "cider-df.json").eos is eos, name
    frozen = tmp_path / "off" / "cider-df.json"
    with pytest.raises(ValueError, match="without it"):
        run(settings(tmp_path / "wrong", **common, reward=f"cider:{frozen}"))


@pytest.mark.parametrize(("more", "why"), [
    ({"num_generations": 0}, "at least 1"),
    ({"num_generations": 1, "baseline": "mean"}, "at least 2 with --baseline mean"),
    ({"temperature": 0.0}, "--temperature"),
    ({"beta": -0.1}, "--beta"),
    ({"max_new_tokens": 0}, "--max-new-tokens"),
    ({"reward": "cider +"}, "missing"),
    ({"images": ""}, "--images"),
])  # fmt: skip
def test_settings_are_checked(tmp_path: Path, more: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        settings(tmp_path, **more)
    assert settings(tmp_path, num_generations=1).num_generations == 1
    with pytest.raises(UnknownScorer, match="cider"):
        settings(tmp_path, reward="cidre")
