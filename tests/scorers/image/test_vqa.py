"""VQAScore: the probability of Yes; exactly from a source that knows the truth, or from a model that looks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_families
import tiny_llm
import torch

from captune import storybook
from captune.data.schemes import SOURCES
from captune.errors import MissingColumn, ScorerError, SpecError
from captune.evaluation.cache import Cache
from captune.models.answerers import Question
from captune.models.captioner import Captioner
from captune.scorers import load_scorer
from captune.scorers.image.vqa import VQAScore

CAPTIONS = ["a red ball", "two green fish on the beach", "", "一只狗 😀\u2028(a house)", "a red ball"]
IMAGES = [tiny.picture(0), tiny.picture(1, (80, 50)), tiny.picture(2), tiny.picture(0), tiny.picture(1, (80, 50))]


@pytest.fixture
def random_weights_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights have no reason to say yes or no."""
    monkeypatch.setattr("captune.models.answerers.base.MIN_MASS", 1e-6)


class Answers:
    label = "answers@1"

    def __init__(self) -> None:
        self.asked: list[Question] = []

    def check(self) -> None:
        pass

    def answer_probabilities(self, questions: Sequence[Question]) -> list[np.ndarray]:
        self.asked += questions
        return [np.array([0.8, 0.2]) if "red" in q.text else np.array([0.3, 0.7]) for q in questions]


def test_the_question_is_the_papers() -> None:
    answers = Answers()
    scorer = VQAScore("some/model", answerer=answers, batch_size=2)
    rows = scorer.rows([*CAPTIONS, "a red ball", " \n"], image=[*IMAGES, IMAGES[0], IMAGES[0]])
    assert rows[:, 0].tolist() == [0.8, 0.3, 0.0, 0.3, 0.8, 0.8, 0.0]
    asked = [question.text for question in answers.asked]
    assert asked == [  # those of one image together, equal pairs once, empty captions never
        'Does this figure show "a red ball"? Please answer yes or no.',
        'Does this figure show "一只狗 😀 (a house)"? Please answer yes or no.',
        'Does this figure show "two green fish on the beach"? Please answer yes or no.',
        'Does this figure show "a red ball"? Please answer yes or no.',
    ]
    assert all(q.answers == ("Yes", "No") and q.image.mode == "RGB" and q.normalise for q in answers.asked)
    assert scorer.corpus(rows) == pytest.approx({"vqa": rows.mean()}) and scorer.cached
    assert re.fullmatch(r"vqa\|model:answers@1\|prompt:\w{8}\|normalise:answers\|empty:0", scorer.signature)
    assert scorer.rows([], image=[]).shape == (0, 1)


def naive(captioner: Captioner, caption: str, image: Any, *, normalise: bool) -> float:
    """The definition: one caption, one plain forward pass, without padding or sharing."""
    if not caption:
        return 0.0
    processor, tokenizer = captioner.processor, captioner.tokenizer
    question = f'Does this figure show "{" ".join(caption.split())}"? Please answer yes or no.'
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    text += "" if text.endswith(("\n", " ")) else "\n"
    bos = bool(tokenizer.bos_token and text.startswith(tokenizer.bos_token))
    inputs = processor(text=[text], images=[[image]], return_tensors="pt", add_special_tokens=not bos)
    with torch.no_grad():
        p = captioner.core(**inputs).logits[0, -1].double().softmax(-1)
    words = {
        i: tokenizer.decode([i]).strip(" .,:;()[]\"'`*_\n\t\r").casefold()
        for i in range(len(tokenizer))
        if i not in tokenizer.all_special_ids
    }
    yes, no = (
        sum(float(p[i]) for i, word in words.items() if word and answer.startswith(word)) for answer in ("yes", "no")
    )
    return yes / (yes + no) if normalise else yes


@pytest.mark.parametrize("family", tiny_families.BUILDERS)
def test_any_captioner_answers(family: str, tiny_folder, random_weights_answer: None) -> None:
    folder = tiny_folder(family)
    scorer = load_scorer(f"vqa:{folder}", device="cpu")
    scorer.check()
    captioner = scorer.answerer.captioner
    rows = scorer.rows(CAPTIONS, image=IMAGES)[:, 0]
    expected = [naive(captioner, c, i, normalise=True) for c, i in zip(CAPTIONS, IMAGES, strict=True)]
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert len(set(np.round(expected, 4))) > 2
    single = VQAScore(captioner=captioner, batch_size=1).rows(CAPTIONS, image=IMAGES)[:, 0]
    np.testing.assert_allclose(single, expected, atol=1e-5)
    published = load_scorer(f"vqa:{folder}?normalise=none", captioner=captioner)
    assert "normalise:none" in published.signature
    expected = [naive(captioner, c, i, normalise=False) for c, i in zip(CAPTIONS, IMAGES, strict=True)]
    np.testing.assert_allclose(published.rows(CAPTIONS, image=IMAGES)[:, 0], expected, atol=1e-5)


def test_each_image_is_encoded_once_and_each_question_asked_once(captioner, random_weights_answer: None) -> None:
    encoded: list[int] = []
    read: list[int] = []
    tower: Any = captioner.core.base_model.vision_model
    tower.register_forward_hook(lambda *call: encoded.append(len(call[-1].last_hidden_state)))
    captioner.core.register_forward_hook(lambda *call: read.append(call[-1].logits.shape[:2].numel()))
    captions = [f"{c}{i}" for i in range(3) for c in ("a", "b", "c", "d")]
    images = [tiny.picture(i % 4) for i in range(12)]  # the captions of an image lie apart, and fall into two batches
    scorer = VQAScore(captioner=captioner, batch_size=5)
    rows = scorer.rows([*captions, captions[0], ""], image=[*images, images[0].copy(), images[0]])
    assert sum(encoded) == 4 and read == [5, 5, 2]  # with the logits of each question's last token
    assert rows[12] == rows[0] and rows[13] == 0


def test_no_answer_is_an_error_not_a_zero(captioner: Captioner) -> None:
    with torch.no_grad():
        captioner.core.get_output_embeddings().weight.zero_()  # every token is as probable as any other
    for spec in ("x", "x?normalise=none"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("captune.models.answerers.base.MIN_MASS", 0.2)
            with pytest.raises(ScorerError, match=r"gave no answer about caption 'a red ball': Yes, No hold \d"):
                VQAScore(spec, captioner=captioner).rows(CAPTIONS, image=IMAGES)


def test_a_server_answers() -> None:
    def reply(payload: dict, number: int) -> Any:
        text = payload["messages"][0]["content"][1]["text"]
        return (
            (500, "broken") if "fish" in text else tiny_llm.completion({"Yes": 0.6, " yes": 0.1, "No": 0.2, "It": 0.1})
        )

    with tiny_llm.server(reply) as (url, _):
        scorer = load_scorer(f"vqa:{url}#eyes")
        scorer.check()
        scorer.answerer.delay = 0.0
        np.testing.assert_allclose(scorer.rows(CAPTIONS[:1], image=IMAGES[:1]), 0.7 / 0.9)
        published = load_scorer(f"vqa:{url}#eyes?normalise=none")
        np.testing.assert_allclose(published.rows(CAPTIONS[:1], image=IMAGES[:1]), 0.7)
        assert f"|model:eyes@{url}|" in scorer.signature
        with pytest.raises(ScorerError, match="gave no answer in 4 attempts; .*500.* about caption 'two green fish"):
            scorer.rows(CAPTIONS[:2], image=IMAGES[:2])


def test_a_source_answers_exactly() -> None:
    test = storybook.load("test", 40, seed=1)
    scenes, first = list(test["scene"]), [texts[0] for texts in test.with_format(None)["references"]]
    scorer = load_scorer("vqa")
    scorer.check()
    assert scorer.required_columns == ("scene",) and scorer.signature == "vqa|source:storybook|facts:share|empty:0"
    own = scorer.measure(first, {"scene": scenes})[:, 0]
    other = scorer.measure(first[1:] + first[:1], {"scene": scenes})[:, 0]
    assert (own == 1).all() and np.mean(own[:, None] > other[None]) >= 0.95
    stated = [[s.true for s in SOURCES["storybook"].statements(c, t)] for c, t in zip(first[1:], scenes, strict=False)]
    assert other[:-1].tolist() == [sum(true) / len(true) for true in stated] and 0 < other.mean() < 0.5
    whole = load_scorer("vqa:storybook?facts=all")
    assert whole.measure(first[1:], {"scene": scenes[:-1]})[:, 0].tolist() == [float(all(true)) for true in stated]
    assert whole.signature != scorer.signature
    assert not scorer.measure(["", "  ", "good morning"], {"scene": scenes[:3]}).any()
    with pytest.raises(MissingColumn, match="needs scene"):
        scorer.measure(first, {"image": test["image"]})
    assert scorer(first[:2], scene=scenes[:2], image=[None, None], references=[[], []]) == [1.0, 1.0]


def test_known_rows_are_not_asked_again(tmp_path: Path) -> None:
    answers = Answers()
    for _ in range(2):
        scorer = VQAScore("some/model", answerer=answers)
        scorer.cache = Cache(tmp_path)
        rows = scorer.measure(CAPTIONS, {"image": IMAGES})
        assert rows[0] == 0.8 and len(answers.asked) == 4


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match="'storybook' answers exactly, and has nothing to normalise"):
        load_scorer("vqa:storybook?normalise=none")
    with pytest.raises(SpecError, match="'some/model' is asked about the whole caption"):
        load_scorer("vqa:some/model?facts=all")
    with pytest.raises(SpecError, match="facts"):
        load_scorer("vqa:storybook?facts=some")
    monkeypatch.setattr(type(SOURCES["storybook"]), "truth_column", "")
    with pytest.raises(SpecError, match="'storybook' knows no truth about its images; name a model"):
        load_scorer("vqa")
    with pytest.raises(ScorerError, match="model of scorer 'vqa' folder .* does not exist"):
        load_scorer(f"vqa:{tmp_path / 'none'}").check()
    with pytest.raises(ScorerError, match="the model of scorer 'vqa' cannot be loaded: .*no config.json"):
        load_scorer(f"vqa:{tmp_path}").rows(CAPTIONS[:1], image=IMAGES[:1])
