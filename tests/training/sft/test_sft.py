"""Supervised fine-tuning: the loss by hand, the same bytes for the same seed, and runs that are cut and go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny
import torch

from captune.decoding.cfg import blank
from captune.errors import SettingError, SourceError
from captune.models.captioner import Captioner
from captune.runs.run_dir import RunDir
from captune.training import trainer as training
from captune.training.lifecycle import make_trainable
from captune.training.sft import train as sft
from captune.training.sft.train import ByLength, Pairs, SFTConfig, SFTTrainer, run, supervised_loss

CAPTIONS = ["a red ball", "two green fish and a small yellow bird", "a", "my house in 2011"]


@pytest.fixture
def dataset(images: list) -> datasets.Dataset:
    rows = zip(images, CAPTIONS, strict=True)
    return datasets.Dataset.from_list(
        [{"image": image, "image_id": str(i), "references": [text]} for i, (image, text) in enumerate(rows)]
    )


@pytest.fixture
def source(images: list, tmp_path: Path) -> str:
    """The images with two references each, as a JSONL file."""
    lines = []
    for i, (image, text) in enumerate(zip(images, CAPTIONS, strict=True)):
        image.save(tmp_path / f"{i}.png")
        lines.append({"image": f"{i}.png", "image_id": str(i), "references": [text, f"{text} on the beach"]})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(tmp_path / "captions.jsonl")


def config(output: Path, **settings: Any) -> SFTConfig:
    small = {"max_steps": 6, "batch_size": 2, "lora_r": 4, "lora_alpha": 8, "warmup_steps": 0, "save_steps": 3}
    return SFTConfig(output=output, device="cpu", **({"model": "", "images": "-"} | small | settings))


def train(captioner: Captioner, dataset: Any, settings: SFTConfig) -> RunDir:
    run_dir = RunDir(settings.output).start({})
    torch.manual_seed(settings.seed)
    captioner.add_lora(settings.lora_r, settings.lora_alpha, settings.lora_dropout)
    with captioner.share_vision():
        SFTTrainer.fit(captioner, dataset, settings, run_dir)
    return run_dir


# -- the loss


def test_the_loss_by_hand(captioner: Captioner, images: list) -> None:
    """-log p of every caption token and of the end, averaged over the tokens of the batch; nothing on the prompt."""
    tiny.taught(captioner)
    found = supervised_loss(captioner, images, CAPTIONS)
    surprise = []
    for image, text in zip(images, CAPTIONS, strict=True):
        prompt = captioner.prepare([image])
        start = prompt["input_ids"].shape[1]
        tail = [*captioner.caption_ids(text), captioner.eos_ids[0]]
        ids = torch.cat([prompt["input_ids"], torch.tensor([tail])], dim=1)
        images_of = {name: prompt[name] for name in ("pixel_values", "pixel_attention_mask") if name in prompt}
        with torch.no_grad():
            logits = captioner.model(input_ids=ids, attention_mask=torch.ones_like(ids), **images_of).logits
        steps = logits[0, start - 1 : -1].log_softmax(-1)
        surprise += [-float(steps[t, token]) for t, token in enumerate(tail)]
    assert found.shape == () and found.requires_grad
    assert found.item() == pytest.approx(sum(surprise) / len(surprise), rel=1e-4)


def test_the_gradient_reaches_lora_only(captioner: Captioner, images: list) -> None:
    tiny.taught(captioner)
    with captioner.share_vision():
        supervised_loss(captioner, images, CAPTIONS).backward()
    names = {name for name, p in captioner.model.named_parameters() if p.grad is not None}
    assert names and all("lora_" in name and ".text_model." in name for name in names)


# -- training


def test_steps_lower_the_loss(captioner: Captioner, images: list, dataset: datasets.Dataset, tmp_path: Path) -> None:
    before = supervised_loss(captioner, images, CAPTIONS).item()
    settings = config(tmp_path / "run", max_steps=25, batch_size=4, learning_rate=0.01)
    run_dir = train(captioner, dataset, settings)
    captioner.model.eval()
    assert supervised_loss(captioner, images, CAPTIONS).item() < 0.6 * before
    losses = [row["loss"] for row in run_dir.metrics() if "loss" in row]
    assert losses[-1] < losses[0]


def test_the_tower_runs_once_per_step_and_image(
    captioner: Captioner, dataset: datasets.Dataset, tmp_path: Path
) -> None:
    calls: list[int] = []
    captioner.core.model.vision_model.register_forward_hook(lambda *_: calls.append(1))
    train(captioner, dataset, config(tmp_path / "run", max_steps=2))
    assert len(calls) == 2


def test_accumulated_batches_weigh_as_one(tiny_folder: Any, images: list, tmp_path: Path) -> None:
    """Two batches of two make the step of one batch of four."""
    rows = [{"image": image, "image_id": "x", "references": ["a red ball"]} for image in images]
    results = []
    for batch_size, accumulation in ((4, 1), (2, 2)):
        captioner = Captioner.load(tiny_folder("idefics3"), device="cpu")
        settings = config(
            tmp_path / str(batch_size), batch_size=batch_size, gradient_accumulation_steps=accumulation, max_steps=1,
            lora_dropout=0.0,
        )  # fmt: skip
        run_dir = train(captioner, datasets.Dataset.from_list(rows), settings)
        numbers = next(row for row in run_dir.metrics() if "loss" in row)
        results.append((numbers["loss"], numbers["grad_norm"]))
    assert results[0] == pytest.approx(results[1], rel=1e-3)


def test_the_batches_of_a_step_draw_lots_of_their_own(
    captioner: Captioner, images: list, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else a step of several batches would see nothing but blank images, now and then."""
    seen: list[tuple[bool, str]] = []
    grey = blank().tobytes()

    def spy(captioner: Any, images: list, captions: list[str], **_: Any) -> torch.Tensor:
        seen.extend((image.tobytes() == grey, text) for image, text in zip(images, captions, strict=True))
        return supervised_loss(captioner, images[:1], captions[:1])

    monkeypatch.setattr("captune.training.sft.train.supervised_loss", spy)
    captioner.add_lora(4, 8, 0.0)
    rows = [{"image": image, "image_id": str(i), "references": ["one", "two"]} for i, image in enumerate(images)]
    settings = config(
        tmp_path, batch_size=1, gradient_accumulation_steps=4, max_steps=6, save_steps=50, image_dropout=0.5
    )
    SFTTrainer.fit(captioner, datasets.Dataset.from_list(rows), settings, RunDir(tmp_path), image_dropout=0.5)
    steps = [seen[start : start + 4] for start in range(0, len(seen), 4)]
    assert len(steps) == 6
    assert sum(len({dropped for dropped, _ in step}) == 2 for step in steps) >= 4
    assert sum(len({text for _, text in step}) == 2 for step in steps) >= 4


def test_every_reference_has_its_turn(
    captioner: Captioner, images: list, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An image's captions are drawn by lot, also when every step holds the same images."""
    seen: list[tuple[str, ...]] = []

    def spy(captioner: Captioner, images: list, captions: list[str], **_: Any) -> torch.Tensor:
        seen.append(tuple(captions))
        return supervised_loss(captioner, images, captions)

    monkeypatch.setattr("captune.training.sft.train.supervised_loss", spy)
    rows = [{"image": image, "image_id": "x", "references": ["one", "two", "three"]} for image in images]
    train(captioner, datasets.Dataset.from_list(rows), config(tmp_path / "run", max_steps=8, save_steps=50))
    said = [text for captions in seen for text in captions]
    assert set(said) == {"one", "two", "three"}
    assert any(len(set(captions)) > 1 for captions in seen)


def test_image_dropout_shows_nothing_now_and_then(
    captioner: Captioner, images: list, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As often as asked for, and the captions are the same ones as without it."""
    seen: dict[float, list[tuple[bool, str]]] = {0.0: [], 0.5: []}
    grey = blank().tobytes()
    captioner.add_lora(4, 8, 0.0)
    for share, shown in seen.items():

        def spy(captioner: Any, images: list, captions: list[str], shown: list = shown, **_: Any) -> torch.Tensor:
            shown += [(image.tobytes() == grey, text) for image, text in zip(images, captions, strict=True)]
            return supervised_loss(captioner, images[:1], captions[:1])

        monkeypatch.setattr("captune.training.sft.train.supervised_loss", spy)
        rows = [{"image": image, "references": ["one", "two", "three"]} for image in images]
        output = tmp_path / str(share)
        settings = config(output, max_steps=25, save_steps=50, image_dropout=share)
        SFTTrainer.fit(captioner, datasets.Dataset.from_list(rows), settings, RunDir(output), image_dropout=share)
    assert not any(dropped for dropped, _ in seen[0.0])
    dropped = [dropped for dropped, _ in seen[0.5]]
    assert 0.3 < sum(dropped) / len(dropped) < 0.7
    with pytest.raises(ValueError, match="--image-dropout: 1.0 must be less than 1"):
        config(tmp_path, image_dropout=1.0)


# -- few images: texts alone, views, features that are kept


def test_the_first_steps_read_texts_without_images(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caption table is read whole, and its captions come before any image."""
    (tmp_path / "texts.csv").write_text("image,caption\na.jpg,two green fish\nb.jpg,my small house\nb.jpg,a red ball\n")
    seen: list[tuple[str, tuple[str, ...]]] = []
    for name in ("text_loss", "supervised_loss"):
        original = getattr(sft, name)

        def spy(captioner: Any, *parts: Any, name: str = name, original: Any = original, **how: Any) -> torch.Tensor:
            seen.append((name, tuple(parts[-1])))
            return original(captioner, *parts, **how)

        monkeypatch.setattr(sft, name, spy)
    texts = {"texts": str(tmp_path / "texts.csv"), "text_steps": 4}
    settings = config(tmp_path / "run", model="storybook", images=source, eval_images=source, **texts)
    run(settings)
    assert [name for name, _ in seen] == ["text_loss"] * 4 + ["supervised_loss"] * 2
    said = [caption for _, captions in seen[:4] for caption in captions]
    assert len(said) == 8 and {*said} <= {"two green fish", "my small house", "a red ball"} and len({*said}) > 1
    with pytest.raises(SettingError, match="--text-steps needs --texts"):
        config(tmp_path, text_steps=4)
    with pytest.raises(SettingError, match="--text-steps 6 leaves none of 6 steps for images"):
        config(tmp_path, **{**texts, "text_steps": 6})
    assert sft.read_texts(settings.texts, {"b.jpg": []}) == ["two green fish"]  # not of images that a run is judged on
    with pytest.raises(SourceError, match=r"texts.csv holds no caption of an image that is not judged"):
        sft.read_texts(settings.texts, {"a.jpg": [], "b.jpg": []})
    other = {"elsewhere/b.jpg": ["My small  house", "a red ball", "a ball"]}  # the same photo by another name
    assert sft.read_texts(settings.texts, other) == ["two green fish"]
    assert len(sft.read_texts(settings.texts, {"c.jpg": ["a red ball"]})) == 3  # one caption in common is chance
    (tmp_path / "none.csv").write_text("image,caption\n")
    with pytest.raises(SourceError, match=r"none.csv holds no caption"):
        sft.read_texts(str(tmp_path / "none.csv"))


def test_the_loss_of_a_text_by_hand(captioner: Captioner) -> None:
    tiny.taught(captioner)
    tokenizer, image = captioner.tokenizer, captioner.core.config.image_token_id
    captioner.prompt = "what is it"
    head = [token for token in tokenizer(captioner.prompt_text())["input_ids"] if token != image]
    surprise = []
    for text in CAPTIONS:
        tail = [*captioner.caption_ids(text), captioner.eos_ids[0]]
        with torch.no_grad():
            logits = captioner.model(input_ids=torch.tensor([[*head, *tail]])).logits
        steps = logits[0, len(head) - 1 : -1].log_softmax(-1)
        surprise += [-float(steps[t, token]) for t, token in enumerate(tail)]
    found = sft.text_loss(captioner, CAPTIONS).item()
    assert found == pytest.approx(sum(surprise) / len(surprise), rel=1e-4)


def test_cached_features_are_of_each_view_once_and_a_resumed_run_ends_with_the_same_bits(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(RuntimeError):
        pass

    memos: list[Any] = []
    share = Captioner.share_vision

    def kept(self: Captioner, **settings: Any) -> Any:
        memos.append(share(self, **settings))
        return memos[-1]

    monkeypatch.setattr(Captioner, "share_vision", kept)
    more = {"model": "storybook", "images": source, "eval_images": source, "cache_features": True, "max_steps": 12}
    whole = run(config(tmp_path / "whole", **more))
    assert (memos[0].alone, memos[0].images, memos[0].evaluations) == (True, 4, 4)

    def cut(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 8:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(training.MetricsCallback, "on_step_end", cut)
        with pytest.raises(Cut):
            run(config(tmp_path / "cut", **more))
    resumed = run(config(tmp_path / "cut", **more))
    first, second = ((found.adapter / "adapter_model.safetensors").read_bytes() for found in (whole, resumed))
    assert first == second
    del memos[:]
    run(config(tmp_path / "views", **more, image_views=3))
    assert 4 < memos[0].images <= 12


# -- what learns


@pytest.mark.parametrize("family", ["idefics3", "llava_next", "qwen2_vl"])
@pytest.mark.parametrize(("full", "connector"), [(True, False), (False, True), (True, True)])
def test_whole_modules_learn_and_are_kept(
    tiny_folder: Any, images: list, tmp_path: Path, family: str, full: bool, connector: bool
) -> None:
    """The language model, the connector, or both; the tower never. The base is still there, and the adapter loads."""
    captioner = Captioner.load(tiny_folder(family), device="cpu")
    base = captioner.model(**captioner.prepare(images[:2])).logits
    settings = config(tmp_path, train_all_weights=full, train_connector=connector, lora_dropout=0.0)
    make_trainable(captioner, settings, connector=connector)
    torch.testing.assert_close(captioner.model(**captioner.prepare(images[:2])).logits, base)
    supervised_loss(captioner, images[:2], CAPTIONS[:2]).backward()
    names = [name for name, p in captioner.model.named_parameters() if p.grad is not None]
    towards = {"merger", "connector", "multi_modal_projector"}
    of_connector = [name for name in names if towards & set(name.split("."))]
    assert bool(of_connector) is connector and not any("vision_tower" in name for name in names)
    assert any("lora_" in name for name in names) is not full
    assert any("lm_head" in name for name in names) is full and any("embed_tokens" in name for name in names) is full
    torch.optim.SGD([p for p in captioner.model.parameters() if p.requires_grad], lr=0.5).step()
    captioner.model.eval()
    changed = captioner.model(**captioner.prepare(images[:2])).logits
    assert (changed - base).abs().max() > 1e-3
    with captioner.disable_adapter():
        torch.testing.assert_close(captioner.model(**captioner.prepare(images[:2])).logits, base)
    captioner.save_adapter(tmp_path / "adapter")
    again = Captioner.load(tiny_folder(family), adapter=tmp_path / "adapter", device="cpu")
    torch.testing.assert_close(again.model(**again.prepare(images[:2])).logits, changed)


# -- batches by length


def test_captions_of_similar_length_share_a_batch(captioner: Captioner) -> None:
    lengths = torch.randint(1, 60, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"image_id": str(i), "references": [" ".join(["fish"] * n) for n in lengths[2 * i : 2 * i + 2]]}
            for i in range(200)]  # fmt: skip
    pairs = Pairs(datasets.Dataset.from_list(rows), captioner)
    assert len(pairs) == 400 and [pairs[i]["image_id"] for i in (0, 1, 399)] == ["0", "0", "199"]
    sizes = [len(captioner.caption_ids(text)) for i in range(400) for text in pairs[i]["references"]]
    assert sizes == pairs.lengths

    def padding(order: list[int]) -> int:
        batches = [[sizes[i] for i in order[at : at + 8]] for at in range(0, 400, 8)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    sampler = ByLength(8, pairs.lengths, seed=3)
    first, again = list(sampler), list(ByLength(8, pairs.lengths, seed=3))
    assert sorted(first) == list(range(400)) and first == again
    assert padding(first) < 0.3 * padding(list(range(400)))
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(1)
    assert second != first and list(sampler) == second


# -- runs


class Cut(RuntimeError):
    """What stops a run in the middle."""


def adapter_bytes(run_dir: RunDir) -> bytes:
    return (run_dir.adapter / "adapter_model.safetensors").read_bytes()


def cut_run(settings: SFTConfig, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies after `step` steps."""
    with monkeypatch.context() as patch:
        plain = training.MetricsCallback.on_step_end

        def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if state.global_step == step:
                raise Cut
            return plain(self, args, state, control, **kwargs)

        patch.setattr(training.MetricsCallback, "on_step_end", on_step_end)
        with pytest.raises(Cut):
            run(settings)


@pytest.mark.usefixtures("no_report")
def test_the_same_seed_gives_the_same_bytes(tiny_folder: Any, source: str, tmp_path: Path) -> None:
    model = str(tiny_folder("idefics3"))
    runs = [
        run(config(tmp_path / name, model=model, images=source, seed=seed))
        for name, seed in (("a", 7), ("b", 7), ("c", 8))
    ]
    same, again, other = (adapter_bytes(run_dir) for run_dir in runs)
    assert same == again != other
    assert runs[0].metrics()[-1]["step"] == 6


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(("save_steps", "step", "more"), [
    (3, 4, {}), (3, 3, {}), (2, 3, {}),
    (3, 4, {"train_all_weights": True, "train_connector": True, "group_by_length": True}),
    (5, 6, {"group_by_length": True}),
])  # fmt: skip
def test_a_cut_run_ends_like_an_uncut_one(
    tiny_folder: Any, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_steps: int, step: int,
    more: dict[str, Any],
) -> None:  # fmt: skip
    """Cut after a checkpoint, before the first, or after one at the end of a pass over the images (two steps; four by
    length, so that step 6 is in the second): the same settings go on to the same bytes."""
    settings = {"model": str(tiny_folder("idefics3")), "images": source, "save_steps": save_steps, **more}
    whole = run(config(tmp_path / "whole", **settings))
    cut_run(config(tmp_path / "cut", **settings), step, monkeypatch)
    interrupted = RunDir(tmp_path / "cut")
    assert not interrupted.finished and len(interrupted.checkpoints()) == (step - 1) // save_steps
    resumed = run(config(tmp_path / "cut", **settings))
    assert adapter_bytes(resumed) == adapter_bytes(whole)
    losses = [[(row["step"], row["loss"]) for row in r.metrics() if "loss" in row] for r in (whole, resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 6


@pytest.mark.usefixtures("no_report")
def test_a_cut_run_is_not_continued_with_other_settings(
    tiny_folder: Any, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(tiny_folder("idefics3"))
    cut_run(config(tmp_path / "run", model=model, images=source), 4, monkeypatch)
    with pytest.raises(ValueError, match="learning_rate"):
        run(config(tmp_path / "run", model=model, images=source, learning_rate=0.5))
    fresh = run(config(tmp_path / "run", model=model, images=source, learning_rate=0.5, overwrite=True))
    assert fresh.finished and fresh.config["learning_rate"] == 0.5


def test_a_whole_run(tiny_folder: Any, source: str, tmp_path: Path) -> None:
    """Everything that a run leaves behind, on a captioner and a caption file."""
    model = str(tiny_folder("idefics3"))
    run_dir = run(config(tmp_path / "run", model=model, images=source, max_steps=2))
    assert run_dir.finished and (run_dir.path / "report.html").is_file()
    assert run_dir.config["learning_rate"] == 1e-3 and run_dir.config["method"] == "sft"
    rows = run_dir.scores()["rows"]
    assert [row["name"] for row in rows] == ["base", "supervised"]
    assert all({"cider", "health"} <= set(row["scores"]) for row in rows)
    for row in rows:
        captions = [json.loads(line) for line in (run_dir.path / row["captions"]).read_text().splitlines()]
        assert [caption["image_id"] for caption in captions] == ["0", "1", "2", "3"]
    assert Captioner.load(model, adapter=run_dir.adapter, device="cpu")


def test_images_without_captions_are_refused(tiny_folder: Any, images: list, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    images[0].save(tmp_path / "photos" / "lonely.png")
    with pytest.raises(ValueError, match="no caption to learn from for 1 image, the first is 'lonely"):
        run(config(tmp_path / "run", model=str(tiny_folder("idefics3")), images=str(tmp_path / "photos")))
    with pytest.raises(ValueError, match="--images"):
        SFTConfig(model="storybook", output=tmp_path)
    (tmp_path / "photos" / "captions.csv").write_text("image,caption\nlonely.png,a red ball\n")
    with pytest.raises(ValueError, match="lonely.*; their captions may stand in .*photos/captions.csv, which"):
        run(config(tmp_path / "run", model=str(tiny_folder("idefics3")), images=str(tmp_path / "photos")))
