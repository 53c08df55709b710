"""Every family through the same path: built tiny, saved, loaded with Captioner.load, used."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import tiny_prefix
import torch

from captune.errors import CaptionerError
from captune.models.captioner import Captioner
from captune.models.families import FAMILIES, attribute
from captune.models.requests import PROMPT

NAMES = [*FAMILIES, "vipllava"]  # vipllava has no row: the generic one
CAPTIONS = ["a red ball", "two green fish and a small yellow bird", "a house in 2011, with <PERSON>"]


@pytest.fixture(scope="module")
def prefix_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prefix.prefix_captioner(tmp_path_factory.mktemp("prefix"))


@pytest.fixture(params=NAMES)
def captioner(request: pytest.FixtureRequest, tiny_folder) -> Captioner:
    own = request.param == "prefix_captioner"
    folder = request.getfixturevalue("prefix_folder") if own else tiny_folder(request.param)
    return Captioner.load(folder, device="cpu")


@pytest.fixture(scope="module")
def images() -> list:
    """Three sizes, so that families with tiles or flat patches get different numbers of image tokens."""
    return [tiny.picture(0), tiny.picture(1, (130, 64)), tiny.picture(2, (64, 150))]


def vision_parts(captioner: Captioner) -> list[torch.nn.Module]:
    parts = [attribute(captioner.core, path) for path in (captioner.family.vision, *captioner.family.connector)]
    return [part for part in parts if isinstance(part, torch.nn.Module)]


def loss_of(captioner: Captioner, batch) -> torch.Tensor:
    return captioner.model(**{k: v for k, v in batch.items() if k != "caption_mask"}).loss


def test_prompt(captioner: Captioner) -> None:
    image = {"idefics3": "<image>", "smolvlm": "<image>", "internvl": "<IMG_CONTEXT>"}.get(captioner.family.name)
    image = image or ("<|image_pad|>" if "qwen" in captioner.family.name else "<image>")
    text = captioner.prompt_text()
    assert text.count(image) == 1
    assert image not in captioner.prompt_text(image=False)
    if captioner.family.name in (
        "idefics3",
        "prefix_captioner",
    ):  # a base model without turns: nothing but the image, as the paper has it
        assert text.rstrip() == "<image>" and captioner.prompt == ""
    else:
        assert PROMPT in text and text.rstrip().lower().endswith(("assistant:", "assistant"))


def test_a_family_without_a_row_gets_the_generic_one(tiny_folder) -> None:
    family = Captioner.load(tiny_folder("vipllava")).family
    assert family.name == "vipllava"
    assert (family.language_model, family.vision) == ("model.language_model", "model.vision_tower")
    assert family.connector == ("model.multi_modal_projector",)


def test_an_unsupported_family_is_refused_with_its_name_and_the_reason(tiny_folder) -> None:
    with pytest.raises(CaptionerError, match=r"'blip' \(BlipForConditionalGeneration\) is not supported.*families\.py"):
        Captioner.load(tiny_folder("blip"))


def test_no_row_and_no_template_is_refused(tiny_folder, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("vipllava"), folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CaptionerError, match="'vipllava'.*no row.*no chat template"):
        Captioner.load(folder)


def test_lora_reaches_the_language_model_only(captioner: Captioner) -> None:
    captioner.add_lora(r=4, alpha=8)
    trainable = [name for name, p in captioner.model.named_parameters() if p.requires_grad]
    prefix = f"base_model.model.{captioner.family.language_model}."
    assert trainable and all(name.startswith(prefix) and ".lora_" in name for name in trainable)
    adapted = {name.split(".lora_")[0] for name in trainable}
    layers = captioner.core.config.get_text_config().num_hidden_layers
    assert len(adapted) == 7 * layers  # q k v o gate up down
    for part in vision_parts(captioner):
        assert not any("lora" in name for name, _ in part.named_modules())


def test_shared_vision_changes_no_logit_and_no_gradient(captioner: Captioner, images: list) -> None:
    torch.manual_seed(0)
    captioner.add_lora(r=4, alpha=8, dropout=0.0)
    with torch.no_grad():  # B is zero at first, and A's gradient with it
        for name, parameter in captioner.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    twice = [0, 1, 2, 1]
    batch = captioner.prepare([images[i] for i in twice], [CAPTIONS[i] for i in twice])

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        captioner.model.zero_grad()
        inputs = {k: v for k, v in batch.items() if k != "caption_mask"}
        output = captioner.model(**inputs)
        output.loss.backward()
        return output.logits.detach(), [p.grad.clone() for p in captioner.model.parameters() if p.requires_grad]

    logits, gradients = run()
    with captioner.share_vision() as memo:
        for _ in range(2):
            shared_logits, shared_gradients = run()
            real = batch["attention_mask"].bool()
            assert (logits - shared_logits)[real].abs().max() <= 1e-5 * logits.abs().max()
            for plain, shared in zip(gradients, shared_gradients, strict=True):
                assert (plain - shared).abs().max() <= 1e-6 * max(1.0, float(plain.abs().max()))
        assert memo.evaluations == 1
    assert max(float(g.abs().max()) for g in gradients) > 1e-4


def test_one_evaluation_for_generation_training_and_features(captioner: Captioner, images: list) -> None:
    captioner.add_lora(r=4, alpha=8)
    calls: list[int] = []
    attribute(captioner.core, captioner.family.vision).register_forward_hook(lambda *_: calls.append(1))
    with captioner.share_vision() as memo:
        captioner.generate(images, max_new_tokens=3, do_sample=True, num_return_sequences=2)
        batch = captioner.prepare([images[2], images[0], images[1], images[0]], [CAPTIONS[0]] * 4)
        loss_of(captioner, batch).backward()
        captioner.image_features(images)
        captioner.caption_hidden_states(batch)
        with captioner.disable_adapter():
            captioner.model(**captioner.prepare(images))
        assert memo.evaluations == 1 and len(calls) == 1
    captioner.model(**captioner.prepare(images))
    assert len(calls) == 2  # removed: the plain path again


@pytest.mark.filterwarnings("ignore:For backward hooks", "ignore::FutureWarning")
def test_the_tower_never_runs_backward(captioner: Captioner, images: list) -> None:
    """Gradient checkpointing asks for gradients at every embedding, the tower's too; the memo keeps them out."""
    captioner.add_lora(r=4, alpha=8)
    captioner.model.enable_input_require_grads()
    captioner.model.gradient_checkpointing_enable()
    captioner.model.train()
    backward: list[str] = []
    for part in vision_parts(captioner):
        for name, module in part.named_modules():
            module.register_full_backward_hook(lambda *_, name=name: backward.append(name))
    batch = captioner.prepare(images, CAPTIONS)
    loss_of(captioner, batch).backward()
    frozen = captioner.family.name == "prefix_captioner"  # whose tower runs under no_grad, always in eval mode
    if captioner.family.name != "qwen3_vl" and not frozen:  # qwen3_vl's embeddings get no such hook
        assert backward, "without the memo a frozen tower does run backward, and this test can see it"
    backward.clear()
    captioner.model.zero_grad()
    with captioner.share_vision():
        loss_of(captioner, batch).backward()
        assert captioner.model.training
        assert attribute(captioner.core, captioner.family.vision).training is not frozen
    assert backward == []
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in captioner.model.parameters())


def test_generation_does_not_depend_on_the_batch(captioner: Captioner, images: list) -> None:
    together = captioner.generate(images, max_new_tokens=6)
    assert together == [captioner.generate([image], max_new_tokens=6)[0] for image in images]
    assert len(set(together)) > 1, "the model looks at its images"


def test_captions_that_were_taught_come_out_as_they_went_in(captioner: Captioner, images: list) -> None:
    """Where the caption starts and ends is right if, and only if, generation continues as training taught it."""
    model = captioner.core
    attribute(model, captioner.family.language_model).requires_grad_(True)
    model.lm_head.requires_grad_(True)
    batch = captioner.prepare(images, CAPTIONS)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    with captioner.share_vision():
        for _ in range(100):
            loss = loss_of(captioner, batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if loss < 0.01:
                break
        assert captioner.generate(images) == CAPTIONS
        opened = captioner.generate(images, forced_opening="two green")
    assert opened[1] == CAPTIONS[1] and all(text.startswith("two green") for text in opened)


def test_prepare_marks_the_caption_and_its_end(captioner: Captioner, images: list) -> None:
    prompt, batch = captioner.prepare(images), captioner.prepare(images, CAPTIONS)
    for i, caption in enumerate(CAPTIONS):
        ids, mask = batch["input_ids"][i], batch["caption_mask"][i].bool()
        own = ids[mask]
        assert own[-1] == captioner.eos_ids[0]
        assert captioner.decode([own.tolist()]) == [caption]
        assert torch.equal(batch["labels"][i], torch.where(mask, ids, -100))
        start = int(mask.int().argmax())
        assert torch.equal(ids[:start], prompt["input_ids"][i][prompt["attention_mask"][i].bool()])
        assert batch["attention_mask"][i].sum() == start + mask.sum() and batch["attention_mask"][i, 0] == 1


def test_image_features(captioner: Captioner, images: list) -> None:
    """The same alone and in a batch, with and without the memo, and averaged over what the language model gets."""
    batch = captioner.prepare(images)
    for where in ("connector", "tower"):
        together = captioner.image_features(images, where=where)
        assert together.dtype == torch.float32 and together.shape[0] == 3 and not together.requires_grad
        alone = torch.cat([captioner.image_features([image], where=where) for image in images])
        assert torch.allclose(together, alone, atol=1e-5)
        with captioner.share_vision(tower=True) as memo:
            assert torch.allclose(captioner.image_features(batch, where=where), together, atol=1e-6)
            assert torch.allclose(captioner.image_features(images[:1], where=where), together[:1], atol=1e-6)
            assert memo.evaluations == 1
    hidden = captioner.core.config.get_text_config().hidden_size
    assert captioner.image_features(images).shape == (3, hidden)
    assert (captioner.image_features(images)[0] - captioner.image_features(images)[1]).abs().max() > 1e-3


def test_caption_hidden_states(captioner: Captioner, images: list) -> None:
    batch = captioner.prepare(images, CAPTIONS)
    other = captioner.prepare([images[1], images[2], images[0]], CAPTIONS)
    with torch.no_grad():
        states, mask = captioner.caption_hidden_states(batch)
        before, _ = captioner.caption_hidden_states(batch, shift=True)
        blind, blind_mask = captioner.caption_hidden_states(batch, blind=True)
        blind_other, _ = captioner.caption_hidden_states(other, blind=True)
        seen_other, _ = captioner.caption_hidden_states(other)
        logits = captioner.model(**{k: v for k, v in batch.items() if k not in ("caption_mask", "labels")}).logits
    assert mask.sum(-1).tolist() == batch["caption_mask"].sum(-1).tolist() == blind_mask.sum(-1).tolist()
    assert torch.allclose(before[:, 1:][mask[:, 1:]], states[:, :-1][mask[:, 1:]], atol=1e-6)
    assert torch.allclose(blind[mask], blind_other[mask], atol=1e-6)  # no image gets through
    assert (states - seen_other)[mask].abs().max() > 1e-3
    # the shifted states predict the caption: they are what lm_head turns into the logits before each token
    places = batch["caption_mask"].bool().roll(-1, 1)
    assert torch.allclose(captioner.core.lm_head(before[mask]), logits[places], atol=1e-4)
