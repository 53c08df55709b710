"""SC-Captioner: the reward by hand, the second turn of every kind of prompt, the gradient, runs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_prefix
import torch
from safetensors.torch import load_file

from captune.data import load_images, open_image, read_jsonl
from captune.decoding.self_correct import REQUEST, SelfCorrection, correct, second_turn
from captune.errors import MissingColumn
from captune.models.captioner import Captioner
from captune.scene_graphs import SceneGraph
from captune.storybook.facts import FactElements
from captune.storybook.world import Scene, Thing
from captune.training import trainer as training
from captune.training.sc_captioner import train as sc_captioner
from captune.training.sc_captioner.train import (
    Corrections,
    GraphFacts,
    SCConfig,
    SCTrainer,
    changes,
    corrections,
    reward_of,
    run,
)
from captune.training.trainer import training_arguments


@dataclass
class Table:
    """Elements with a table of similarities; 1 for equal ones, 0 for others."""

    similar: dict[tuple[Any, Any], float] = field(default_factory=dict)

    def support(self, element: Any, truth: Any) -> float:
        return max(self.similar.get((element, true), float(element == true)) for true in truth)


def reward(first: SceneGraph, second: SceneGraph, truth: SceneGraph, similar: Any = None, **more: Any) -> float:
    return reward_of(changes(Table(similar or {}), first, second, truth), **({"punished": ()} | more))


def logit(r: float) -> float:
    """2 soft + hard of a reward."""
    return math.log((r + 0.5) / (0.5 - r))


# -- equations 2 to 4

DOG = SceneGraph(("dog", "car"), (("dog", "brown"), ("car", "red")), (("dog", "in", "car"),))
CAT = SceneGraph(("cat", "car"), (("cat", "grey"), ("car", "blue")), (("cat", "on", "car"),))
TRUE = SceneGraph(("cat", "car", "tree"), (("car", "blue"),), (("cat", "on", "car"), ("car", "near", "tree")))
ALL = ("object", "attribute", "relation")


def test_the_reward_by_hand() -> None:
    """The dog goes, the cat comes: soft = (1 - .6) + (.6 - 0), hard = 2 (.25); the car turns from red to blue: 2 (.15),
    the dog's brown and the cat's grey are not known; one relation goes, wrong, and one comes, right: 2 (.15)."""
    assert logit(reward(DOG, CAT, TRUE)) == pytest.approx(2 * 1.0 + 0.5 + 0.3 + 0.3)
    # the other way round everything is wrong; nothing of (3) where nothing is punished
    assert logit(reward(CAT, DOG, TRUE)) == pytest.approx(-2 * 1.0)
    assert logit(reward(CAT, DOG, TRUE, punished=ALL[:2])) == pytest.approx(-2 * 1.0 - 0.5 - 0.3)


def test_an_undone_correction_undoes_its_reward() -> None:
    generator = np.random.default_rng(0)
    names = ["a", "b", "c", "d"]
    for _ in range(50):
        graphs = []
        for _ in range(3):
            objects = tuple(name for name in names if generator.random() < 0.5)
            attributes = tuple((o, name) for o in objects for name in names if generator.random() < 0.4)
            triples = tuple((o, "by", name) for o in objects for name in names if generator.random() < 0.3)
            graphs.append(SceneGraph(objects, attributes, triples))
        first, second, truth = graphs
        there, back = (reward(*pair, truth, punished=ALL) for pair in ((first, second), (second, first)))
        assert there == pytest.approx(-back) and -0.5 < there < 0.5
        assert reward(first, first, truth, punished=ALL) == 0


@pytest.mark.parametrize(("s", "hard"), [(0.71, 0.25), (0.65, 0.0), (0.59, -0.25)])
def test_what_is_similar_counts_in_part(s: float, hard: float) -> None:
    """A puppy where the references have a dog; between the two thresholds the hard part is silent."""
    none, puppy, dog = SceneGraph(), SceneGraph(("puppy",)), SceneGraph(("dog",))
    added = reward(none, puppy, dog, {("puppy", "dog"): s}, punished=ALL)
    assert logit(added) == pytest.approx(2 * (s - 0.6) + hard)
    assert reward(puppy, none, dog, {("puppy", "dog"): s}, punished=ALL) == pytest.approx(-added)


def test_nothing_is_known_of_what_the_references_leave_out() -> None:
    bare = SceneGraph(("car",))
    assert reward(bare, SceneGraph(("car",), (("car", "red"),), (("car", "in", "car"),)), bare, punished=ALL) == 0
    assert reward(bare, CAT, SceneGraph(), punished=ALL) == 0


def test_a_caption_that_is_not_changed() -> None:
    for unchanged, expected in ((0.0, 0.0), (-1.0, 1 / (1 + math.e) - 0.5)):
        own = Corrections(FactElements(), unchanged)
        found = own(["a red fish", "a fish"], first=["a red fish", "a red fish"], scene=[SCENE.to_json()] * 2)
        assert found[0] == pytest.approx(expected) and found[1] < 0


# -- what captions state

SCENE = Scene(
    "desert", 0, (Thing("fish", "striped", "red", "big", 0.2, 0.5), Thing("cat", None, "blue", "small", 0.8, 0.55))
)


def test_exact_facts() -> None:
    """Sizes and sub-kinds are attributes, the background is an object, a relation has one form."""
    own = FactElements()
    stated, turned = own.graphs(["a big red fish left of a cat in the desert", "a cat to the right of a fish"])
    assert stated == SceneGraph(
        ("fish", "cat", "desert"), (("fish", "big"), ("fish", "red")), (("fish", "left of", "cat"),)
    )
    assert turned.relations == stated.relations
    (truth,) = own.truth(scene=[SCENE.to_json()])
    assert set(truth.objects) == {"desert", "fish", "cat"} and truth.relations == (("fish", "left of", "cat"),)
    assert truth.attributes_of() == {"fish": ["red", "big", "striped"], "cat": ["blue", "small"]}


def test_exact_facts_reward_corrections() -> None:
    """A colour, .15 each; a colour that becomes right, .3; a right object for a wrong one, 2 (.4 + .6) + .5."""
    first = "a red fish right of a green cat"
    pairs = {"a red fish left of a green cat": 0.3, "a red fish right of a blue cat": 0.3,
             "a red fish right of a cat": 0.15, "a fish right of a green cat": -0.15, first: 0.0}  # fmt: skip
    own, scene = Corrections(FactElements()), SCENE.to_json()
    found = own(list(pairs), first=[first] * len(pairs), scene=[scene] * len(pairs))
    assert [logit(r) for r in found] == pytest.approx(list(pairs.values()))
    (swapped,) = own(["a fish"], first=["a house"], scene=[scene])
    assert logit(swapped) == pytest.approx(2.5)


class Axes:
    """A sentence encoder whose every text has a direction of its own, but for one pair."""

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        vectors = torch.zeros(len(texts), 64)
        for row, text in zip(vectors, texts, strict=True):
            row[sum(map(ord, text)) % 64] = 1.0
            if text == "puppy":
                row.zero_()[sum(map(ord, "dog")) % 64], row[63] = 0.8, 0.6
        return vectors


def test_scene_graphs_of_references_reward_corrections() -> None:
    """Both references count, as one text; a puppy is a dog to 0.8; relations earn and cost nothing."""
    own = Corrections(GraphFacts(encoder=Axes()))
    references = [["a brown dog", "a dog beside a tree"]] * 3
    found = own(
        ["a brown dog", "a dog and a puppy", "a dog on a tree"],
        first=["a white dog", "a dog", "a dog"],
        references=references,
    )
    assert [logit(r) for r in found] == pytest.approx([0.3, 2 * 0.2 + 0.25, 2 * 0.4 + 0.25], abs=1e-6)


# -- the second turn


@pytest.mark.parametrize("name", ["smolvlm", "qwen2_vl", "llava"])
def test_a_second_turn_with_turns(tiny_folder: Any, images: list, name: str) -> None:
    """What the first turn's prompt begins with and its caption, then the request; special tokens stay words out."""
    captioner = Captioner.load(tiny_folder(name), device="cpu")
    image_token = captioner.tokenizer.convert_ids_to_tokens([captioner.core.config.image_token_id])[0]
    batch = second_turn(captioner, images[:2], ["a red ball", f"a {image_token} fish and a small yellow bird"])
    texts = captioner.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert texts[0].index(captioner.prompt) < texts[0].index("a red ball") < texts[0].index(REQUEST)
    assert "fish and a small yellow bird" in texts[1]
    first = captioner.prepare(images[:2])
    for row, own in zip(batch["input_ids"], first["input_ids"], strict=True):
        assert (row == captioner.core.config.image_token_id).sum() == (
            own == captioner.core.config.image_token_id
        ).sum()
    assert batch["attention_mask"][:, -1].all() and (batch["attention_mask"].sum(-1)[0] < batch["input_ids"].shape[1])
    alone = correct(captioner, images[:1], ["a red ball"], max_new_tokens=4)
    assert (
        correct(captioner, images[:2], ["a red ball", "a fish and a small yellow bird"], max_new_tokens=4)[:1] == alone
    )


def test_a_second_turn_without_turns(captioner: Captioner, images: list, tmp_path: Path) -> None:
    """The caption, then the image, whose caption comes next."""
    batch = second_turn(captioner, images[:1], [" a red <image> ball"])
    (text,) = captioner.tokenizer.batch_decode(batch["input_ids"])
    assert text.startswith("a red ball\n<") and REQUEST not in text
    assert text.endswith(captioner.tokenizer.decode(captioner.prepare(images[:1])["input_ids"][0][-4:]))


def test_the_decoder_makes_both_turns(captioner: Captioner, images: list) -> None:
    first = captioner.generate(images, max_new_tokens=6)
    second = SelfCorrection()(captioner, images, max_new_tokens=6)
    assert second == correct(captioner, images, first, max_new_tokens=6) and second != first
    assert (
        captioner.vision_cache is not None
        and captioner.vision_cache.depth == 0
        and REQUEST in SelfCorrection().signature
    )


# -- equation 1


def settings(output: Path, **more: Any) -> SCConfig:
    small = {"max_steps": 2, "batch_size": 2, "lora_r": 4, "lora_alpha": 8, "warmup_steps": 0, "save_steps": 2,
             "num_generations": 3, "max_new_tokens": 5, "learning_rate": 0.01, "model": "", "images": "-"}  # fmt: skip
    return SCConfig(output=output, device="cpu", **(small | more))


class Length:
    """Rewards a correction for its length over the first caption's, in letters."""

    name = "length"

    def __init__(self) -> None:
        self.parts, self.seen = [(self, 1.0)], list[tuple[str, str]]()

    def __call__(self, captions: list[str], *, first: list[str], **columns: Any) -> list[float]:
        self.seen += zip(first, captions, strict=True)
        return [(len(two) - len(one)) / 10 for one, two in zip(first, captions, strict=True)]


@pytest.mark.parametrize("baseline", ["mean", "none"])
def test_the_step_has_the_gradient_of_equation_1(
    captioner: Captioner, images: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, baseline: str
) -> None:
    """Against the logits of each caption read by itself, after its own first caption; KL by hand."""
    tiny.taught(captioner)
    config, reward, drawn = settings(tmp_path, baseline=baseline, beta=0.3), Length(), []
    trainer = SCTrainer(captioner, [0], training_arguments(config), reward=reward, rl_config=config)  # type: ignore[arg-type]
    trainer._memo = captioner.share_vision()

    def spy(*args: Any, **kwargs: Any) -> Any:
        drawn.append(original(*args, **kwargs))
        return drawn[-1]

    original = sc_captioner.sample
    monkeypatch.setattr(sc_captioner, "sample", spy)
    trainer.caption_loss(images[:2], [{}, {}]).backward()
    found = {name: p.grad.clone() for name, p in captioner.model.named_parameters() if p.grad is not None}
    captioner.model.zero_grad()
    (heads, _), (tails, _) = drawn
    first = captioner.decode(heads)
    assert [one for one, _ in reward.seen] == [first[0]] * 3 + [first[1]] * 3

    def steps(prompt: Any, ids: list[int]) -> torch.Tensor:
        inputs = dict(prompt, input_ids=torch.cat([prompt["input_ids"], torch.tensor([ids])], dim=1))
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return captioner.model(**inputs).logits[0, prompt["input_ids"].shape[1] - 1 : -1].log_softmax(-1)

    loss = torch.tensor(0.0)
    for i, image in enumerate(images[:2]):
        prompt = captioner.prepare([image])
        mine = steps(prompt, heads[i])
        with torch.no_grad(), captioner.disable_adapter():
            base = steps(prompt, heads[i])
        loss = loss + 0.3 * (mine.exp() * (mine - base)).sum() / 2
        gains = [(len(two) - len(one)) / 10 for one, two in reward.seen[3 * i : 3 * i + 3]]
        for k, ids in enumerate(tails[3 * i : 3 * i + 3]):
            b = (sum(gains) - gains[k]) / 2 if baseline == "mean" else 0
            logprobs = steps(second_turn(captioner, [image], first[i : i + 1]), ids)[range(len(ids)), ids]
            loss = loss - (gains[k] - b) * logprobs.sum() / 6
    loss.backward()
    assert found and max(grad.abs().max() for grad in found.values()) > 1e-3
    for name, parameter in captioner.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, atol=5e-5, rtol=5e-3, msg=name)


# -- runs


@pytest.fixture
def no_evaluation(monkeypatch: pytest.MonkeyPatch, no_report: None) -> None:
    monkeypatch.setattr(sc_captioner, "caption_and_score", lambda *args, **_: None)
    monkeypatch.setattr(sc_captioner, "GraphFacts", partial(GraphFacts, encoder=Axes()))


@pytest.mark.parametrize("name", ["idefics3", "smolvlm", "qwen2_vl"])
@pytest.mark.usefixtures("no_evaluation")
def test_every_captioner_takes_a_step(tiny_folder: Any, source: str, tmp_path: Path, name: str) -> None:
    """From an adapter, that the KL is measured from and that does not stay behind; the tower sees an image once."""
    model = str(tiny_folder(name))
    tiny.taught(captioner := Captioner.load(model, device="cpu")).save_adapter(tmp_path / "sft")
    del captioner
    run_dir = run(settings(tmp_path / "run", model=model, images=source, adapter=tmp_path / "sft"))
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "sft", run_dir.adapter))
    assert any(not torch.equal(before[weights], after[weights]) for weights in before)
    assert [path.name for path in run_dir.adapter.iterdir() if path.is_dir()] == []
    rows = [row for row in run_dir.metrics() if "reward" in row]
    assert [row["step"] for row in rows] == [1, 2] and abs(rows[0]["kl"]) < 1e-5 < rows[1]["kl"]
    assert {"rewards/corrections/mean", "advantage_std", "unchanged", "length", "cut"} <= rows[0].keys()


@pytest.mark.usefixtures("no_evaluation")
def test_a_prefix_captioner_takes_a_step(source: str, tmp_path: Path) -> None:
    tiny_prefix.prefix_captioner(tmp_path / "model")
    run_dir = run(settings(tmp_path / "run", model=str(tmp_path / "model"), images=source, max_steps=1))
    assert run_dir.finished and len([row for row in run_dir.metrics() if "reward" in row]) == 1


class Cut(RuntimeError):
    """What stops a run in the middle."""


@pytest.mark.usefixtures("no_evaluation")
def test_a_cut_run_ends_like_an_uncut_one(
    tiny_folder: Any, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"model": str(tiny_folder("idefics3")), "images": source, "max_steps": 4}
    whole = run(settings(tmp_path / "whole", **more))
    with monkeypatch.context() as patch:

        def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if state.global_step == 3:
                raise Cut

        patch.setattr(training.MetricsCallback, "on_step_end", on_step_end)
        with pytest.raises(Cut):
            run(settings(tmp_path / "cut", **more))
    resumed = run(settings(tmp_path / "cut", **more))
    first, second = (load_file(r.adapter / "adapter_model.safetensors") for r in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_whole_run_measures_both_turns(tiny_folder: Any, source: str, tmp_path: Path) -> None:
    run_dir = run(settings(tmp_path / "run", model=str(tiny_folder("idefics3")), images=source, max_steps=1))
    assert run_dir.finished and (run_dir.path / "report.html").is_file()
    names = ["SC-Captioner", "base", "SC-Captioner, first turn"]
    assert [row["name"] for row in run_dir.scores()["rows"]] == names
    captions = [run_dir.captions(name).read_text() for name in names]
    captioner = Captioner.load(tiny_folder("idefics3"), device="cpu")
    first = read_jsonl(run_dir.captions("watch-0"))
    asked = {"max_new_tokens": settings(tmp_path).max_new_tokens}
    opened = [open_image(image) for image in load_images(source)["image"]][:2]
    assert [row["caption"] for row in first][:2] == corrections(captioner, opened, **asked)
    assert [len(row["samples"]) for row in first][:2] == [4, 4]
    assert len(set(captions)) == 3 and all(text.count("\n") == 4 for text in captions)


def test_settings_are_checked(tmp_path: Path, source: str, tiny_folder: Any) -> None:
    assert settings(tmp_path).fact_source == "grammar"
    assert settings(tmp_path, images="storybook:train").fact_source == "storybook"
    assert settings(tmp_path, baseline="none", num_generations=1).num_generations == 1
    for more in ({"num_generations": 1}, {"temperature": 0.0}, {"beta": -0.1}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match=f"--{next(iter(more)).replace('_', '-')}"):
            settings(tmp_path, **more)
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({"image": "0.png", "image_id": "0", "references": ["a ball"]}))
    model = str(tiny_folder("idefics3"))
    with pytest.raises(MissingColumn, match="'corrections' needs scene"):
        run(settings(tmp_path / "facts", model=model, images=str(bare), fact_source="storybook"))
    with pytest.raises(ValueError, match="parser"):
        run(settings(tmp_path / "other", model=model, images=source, fact_source="guess"))
