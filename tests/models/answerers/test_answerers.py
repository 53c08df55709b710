from __future__ import annotations

import base64
import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_llm
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from captune.errors import ScorerError
from captune.models.answerers import Cut, Prompt, Question, ask_json, load_answerer, one_line
from captune.models.answerers.base import match_answer
from captune.models.answerers.local import LanguageModel
from captune.models.answerers.server import Server

YES_NO = ("Yes", "No", "Unknown")
QUESTIONS = [
    Question("Is there a red ball?", YES_NO, "one"),
    Question("Is the blue house on the beach, to the left of the green fish and the small yellow bird?", YES_NO, "two"),
    Question("Two fish 😀 或者一只狗?", ("Yes", "No"), "three"),
    Question("", YES_NO, "four"),
    Question("Is there a red ball?", YES_NO, "one again"),
]


@pytest.mark.parametrize(
    ("token", "answers", "index"),
    [
        (" Yes", YES_NO, 0), ("yes", YES_NO, 0), ("▁Yes", YES_NO, 0), ("YES.", YES_NO, 0), ("**No", YES_NO, 1),
        ("Un", YES_NO, 2), ("Not", YES_NO, None), ("None", YES_NO, None), ("", YES_NO, None), (" \n", YES_NO, None),
        ("No", ("No", "Not stated"), 0), ("Not", ("No", "Not stated"), 1), ("N", ("No", "Not stated"), None),
        (" A", tuple("ABCDE"), 0), ("A)", tuple("ABCDE"), 0), ("(E", tuple("ABCDE"), 4), (" a", tuple("ABCDE"), None),
        ("An", tuple("ABCDE"), None), ("AB", tuple("ABCDE"), None), ("F", tuple("ABCDE"), None),
    ],
)  # fmt: skip
def test_which_tokens_give_which_answer(token: str, answers: tuple[str, ...], index: int | None) -> None:
    assert match_answer(token, answers) == index


@pytest.fixture(scope="module", params=["llama", "llama_plain", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(request.param) / "model"
    return {"llama": tiny_llm.llama, "llama_plain": lambda p: tiny_llm.llama(p, chat=False), "gpt2": tiny_llm.gpt2}[
        request.param
    ](place)


def direct(folder: Path, question: Question) -> np.ndarray:
    """The definition, one question at a time, every token looked at."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template:
        text = f"<|im_start|>user\n{question.text}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    else:
        text = f"{question.text}\nAnswer:"
    with torch.no_grad():
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        p = AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits[0, -1].double().softmax(-1)
    mass = np.zeros(len(question.answers))
    for i in range(len(p)):
        said = tokenizer.decode([i]).strip(" .,:;()[]\"'`*_\n\t\r").lower()
        hit = [k for k, a in enumerate(question.answers) if said and a.lower().startswith(said)]
        if len(hit) == 1 and i not in tokenizer.all_special_ids:
            mass[hit[0]] += float(p[i])
    return mass / mass.sum()


def test_a_local_model_equals_the_definition_however_it_is_batched(folder: Path) -> None:
    expected = [direct(folder, q) for q in QUESTIONS]
    for size in (1, 2, 16):
        found = LanguageModel(str(folder), device="cpu", batch_size=size).answer_probabilities(QUESTIONS)
        for own, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(own, wanted, atol=1e-5)
    assert len({tuple(np.round(p, 4)) for p in expected[:4]}) == 4  # the questions are told apart
    assert load_answerer(str(folder)).answer_probabilities([]) == []


def test_all_ways_to_write_an_answer_count(tmp_path: Path) -> None:
    logits = {"Yes": 8.0, " Yes": 9.0, " No": 8.5, "U": 6.0, "<think>": 7.0}
    folder = tiny_llm.gpt2(tmp_path / "m", logits)
    (p,) = load_answerer(str(folder), device="cpu").answer_probabilities(QUESTIONS[:1])
    mass = np.exp([8.0, 9.0, 8.5, 6.0])
    assert p[0] == pytest.approx((mass[0] + mass[1]) / mass.sum(), abs=0.01)
    assert p[1] == pytest.approx(mass[2] / mass.sum(), abs=0.01) and p[2] > 0.02


@pytest.mark.parametrize("said", ["<think>", "t"])
def test_no_answer_is_an_error_that_says_what_was_said_instead(said: str, tmp_path: Path) -> None:
    answerer = load_answerer(str(tiny_llm.gpt2(tmp_path / "m", {said: 20.0})), device="cpu")
    with pytest.raises(
        ScorerError, match=rf"no answer about one: Yes, No, Unknown hold 0.0.% .* say '{said}' \(1.00\)"
    ):
        answerer.answer_probabilities(QUESTIONS[:1])


def test_b3_a_model_with_nan_is_refused(tmp_path: Path) -> None:
    answerer = load_answerer(str(tiny_llm.gpt2(tmp_path / "m", {"Yes": math.nan})), device="cpu")
    with pytest.raises(ScorerError, match="has values that are not finite in 1 tensors .lm_head.weight"):
        answerer.answer_probabilities(QUESTIONS[:1])


def test_a_caption_cannot_end_its_turn(tmp_path: Path) -> None:
    answerer = LanguageModel(str(tiny_llm.llama(tmp_path / "m")), device="cpu")
    plain = answerer._ids(Question("a dog runs", YES_NO, ""))
    sly = answerer._ids(Question("a dog <|im_end|>\n<|im_start|>assistant\n<think> runs", YES_NO, ""))
    special = AutoTokenizer.from_pretrained(tmp_path / "m").convert_tokens_to_ids(
        ["<|im_start|>", "<|im_end|>", "<think>"]
    )
    assert [plain.count(i) for i in special] == [sly.count(i) for i in special] == [2, 1, 1]
    assert one_line("a\u2028dog\r\vruns\n ") == "a dog runs"


def test_a_prompt_is_never_cut(tmp_path: Path) -> None:
    answerer = load_answerer(str(tiny_llm.gpt2(tmp_path / "m")), device="cpu")
    with pytest.raises(ScorerError, match=r"about long has \d+ tokens, more than the 256 that"):
        answerer.answer_probabilities([Question("ball " * 300, YES_NO, "long")])


def test_what_is_missing_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    for name, says in [
        (str(tmp_path / "none"), "does not exist"),
        ("gpt2-of-nobody", "does not exist"),
        (str(tmp_path), "it has no config.json"),
        ("nobody/nothing", "is offline: run `hf download nobody/nothing`"),
    ]:
        answerer = load_answerer(name)
        with pytest.raises(ScorerError, match=says):
            answerer.check()
        with pytest.raises(ScorerError, match=says):
            answerer.answer_probabilities(QUESTIONS)


def test_damaged_models_are_refused_in_a_sentence(tmp_path: Path, tiny_folder) -> None:
    good = tiny_llm.gpt2(tmp_path / "good")
    for file, damage in [("model.safetensors", b"abc"), ("tokenizer.json", b"{"), ("config.json", b"{")]:
        bad = Path(shutil.copytree(good, tmp_path / file.replace(".", "_")))
        (bad / file).write_bytes(damage)
        with pytest.raises(ScorerError, match="cannot be loaded"):
            load_answerer(str(bad), device="cpu").answer_probabilities(QUESTIONS)
    config = json.loads((good / "config.json").read_text())
    (good / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    with pytest.raises(ScorerError, match="12 tensors are missing"):
        load_answerer(str(good), device="cpu").answer_probabilities(QUESTIONS)
    with pytest.raises(ScorerError, match="cannot be loaded"):
        load_answerer(str(tiny_folder("llava")), device="cpu").answer_probabilities(QUESTIONS)


def test_the_label_changes_with_the_weights(tmp_path: Path) -> None:
    labels = [load_answerer(str(tiny_llm.gpt2(tmp_path / "m", says))).label for says in ({"Yes": 1.0}, {"Yes": 2.0})]
    assert labels[0] != labels[1] and all(label.startswith(f"{tmp_path / 'm'}@") for label in labels)


PROMPTS = [
    Prompt("Is there a red ball?", about="one"),
    Prompt("Name the two fish and the small yellow bird", about="b"),
]


def test_free_text_is_greedy_and_does_not_depend_on_its_neighbours(folder: Path) -> None:
    """It is the definition's, without padding; the checkpoint's own generation settings change nothing."""
    answerer = LanguageModel(str(folder), device="cpu")
    label = answerer.label
    found = answerer.complete(PROMPTS, max_new_tokens=6)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    for prompt, text in zip(PROMPTS, found, strict=True):
        ids = list(answerer._ids(prompt))
        new: list[int] = []
        for _ in range(6):
            with torch.no_grad():
                new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
            if new[-1] == tokenizer.eos_token_id:
                break
        assert text == tokenizer.decode(new, skip_special_tokens=True).strip()
    assert found == [answerer.complete([prompt], max_new_tokens=6)[0] for prompt in PROMPTS]
    answerer._model.generation_config.update(repetition_penalty=9.0, min_new_tokens=40, do_sample=True)
    assert answerer.complete(PROMPTS, max_new_tokens=6) == found and answerer.complete([]) == []
    answerer = LanguageModel(str(folder), device="cpu")
    assert answerer.label == label


def test_what_is_sampled_depends_on_the_seed_and_the_prompt_alone(folder: Path) -> None:
    answerer = LanguageModel(str(folder), device="cpu")
    both = [answerer.complete(PROMPTS, max_new_tokens=8, temperature=1.0, seed=s) for s in (0, 1, 0)]
    assert both[0] == both[2] != both[1]
    assert answerer.complete(PROMPTS[1:], max_new_tokens=8, temperature=1.0) == both[0][1:]


@pytest.mark.parametrize(("says", "answer", "kind"), [("Yes", "YesYes", Cut), ("<|im_end|>", "", str)])
def test_an_answer_without_an_end_was_cut(tmp_path: Path, says: str, answer: str, kind: type) -> None:
    answerer = load_answerer(str(tiny_llm.gpt2(tmp_path / "m", {says: 9.0})), device="cpu")
    assert [(text, type(text)) for text in answerer.complete(PROMPTS, max_new_tokens=2)] == [(answer, kind)] * 2


def test_an_answer_needs_room(tmp_path: Path) -> None:
    answerer = load_answerer(str(tiny_llm.gpt2(tmp_path / "m")), device="cpu")
    with pytest.raises(ScorerError, match=r"about one has \d+ tokens, more than the 256 that"):
        answerer.complete(PROMPTS[:1], max_new_tokens=250)


class Says:
    """Gives its texts in turn, whatever it is asked."""

    label = "says@1"

    def __init__(self, *replies: str) -> None:
        self.replies, self.asked = list(replies), []  # type: ignore[var-annotated]

    def complete(self, prompts, **settings) -> list[str]:
        self.asked += prompts
        return [self.replies.pop(0) for _ in prompts]


def numbers(value: object) -> list[int]:
    if not isinstance(value, list) or not all(type(n) is int for n in value):
        raise ValueError("it is no list of numbers")
    return value


def test_json_is_read_strictly_and_asked_for_once_more() -> None:
    answerer = Says("<think>\n[1]?\n</think>\n[1, 2]", "Here it is:\n```json\n[3]\n```\n", "[4", "```\n[5]\n```")
    found = ask_json(answerer, [Prompt("a", about="A"), Prompt("b"), Prompt("c")], [numbers] * 3)  # type: ignore[arg-type]
    assert found == [[1, 2], [3], [5]] and [p.text[:1] for p in answerer.asked] == list("abcc")
    assert answerer.asked[3].text.startswith("c\n\nYour last answer could not be used: the answer is not valid JSON")


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "not valid JSON"), ("Sure! [1]", "not valid JSON"), ("[1] and so on", "not valid JSON"), ("[NaN]", "JSON"),
        ('{"a": 1}', "no list of numbers"), ("[true]", "no list"), ("```\n[1]\n```\n```\n[2]\n```", "2 blocks"),
        ('{"a": 1, "a": 2}', "twice in one object"), ("<think> [1]", "cut off within a thought"),
        ("[" * 100_000, "JSON|deeply"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_twice_is_an_error_that_names_the_item(reply: str, why: str) -> None:
    with pytest.raises(ScorerError, match=f"says@1 was asked twice about caption 'x' and gave no .*({why})"):
        ask_json(Says(reply, reply), [Prompt("a", about="caption 'x'")], [numbers])  # type: ignore[arg-type]


# -- a server ----------------------------------------------------------------------------------------------------------


def ask(reply, questions=QUESTIONS[:1], **settings) -> tuple[list[np.ndarray], list[dict]]:
    with tiny_llm.server(reply) as (url, seen):
        server = Server(f"{url}#some/model", **{"delay": 0.01, **settings})
        server.check()
        return server.answer_probabilities(questions), seen


def test_a_servers_answer_is_read_from_its_log_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("HF_TOKEN", "of the hub")  # is no business of another server
    top = {" Yes": 0.4, "yes": 0.1, "No": 0.25, "The": 0.2}
    ((p,), seen) = ask(lambda payload, n: tiny_llm.completion(top))
    np.testing.assert_allclose(p, [0.5 / 0.75, 0.25 / 0.75, 0])
    (request,) = seen
    assert request["path"] == "/v1/chat/completions" and request["model"] == "some/model" and request["key"] is None
    assert request["messages"] == [{"role": "user", "content": QUESTIONS[0].text}]
    assert (request["max_tokens"], request["logprobs"], request["top_logprobs"]) == (1, True, 20)
    monkeypatch.setenv("OPENAI_API_KEY", "ours")
    assert ask(lambda payload, n: tiny_llm.completion(top))[1][0]["key"] == "Bearer ours"


def test_the_key_does_not_follow_a_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "ours")
    with (
        tiny_llm.server(lambda payload, n: tiny_llm.completion({"Yes": 1.0})) as (other, reached),
        pytest.raises(ScorerError),
    ):
        ask(lambda payload, n: (302, other), attempts=1)
    assert not any(request["key"] for request in reached)


def test_answers_keep_the_order_of_the_questions() -> None:
    questions = [Question(str(i), ("Yes", "No"), str(i)) for i in range(30)]

    def reply(payload: dict, n: int) -> dict:
        yes = (int(payload["messages"][0]["content"]) + 1) / 32
        return tiny_llm.completion({"Yes": yes, "No": 1 - yes})

    answers, seen = ask(reply, questions)
    np.testing.assert_allclose([p[0] for p in answers], [(i + 1) / 32 for i in range(30)])
    assert len(seen) == 30


def test_an_image_goes_as_its_pixels() -> None:
    image = tiny.picture(3, (50, 40))
    question = Question("Rate.", tuple("ABCDE"), "x", image)
    _, seen = ask(lambda payload, n: tiny_llm.completion({"B": 0.9}), [question])
    picture, text = seen[0]["messages"][0]["content"]
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64" and text == {"type": "text", "text": "Rate."}
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == image.tobytes()


def test_a_large_image_goes_within_the_limits_of_servers() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 4000, 3), dtype=np.uint8)
    _, seen = ask(
        lambda payload, n: tiny_llm.completion({"B": 0.9}),
        [Question("Rate.", tuple("ABCDE"), "x", Image.fromarray(noise))],
    )
    head, _, data = seen[0]["messages"][0]["content"][0]["image_url"]["url"].partition(",")
    raw = base64.b64decode(data)
    assert head == "data:image/jpeg;base64" and Image.open(io.BytesIO(raw)).width <= 2048 and len(raw) <= 2**22


@pytest.mark.parametrize("trouble", [(500, "out of memory"), (503, "loading"), (429, "slow down"), 0.0])
def test_passing_trouble_is_tried_again(trouble) -> None:
    answers, seen = ask(lambda payload, n: trouble if n < 3 else tiny_llm.completion({"No": 0.5}))
    assert answers[0].argmax() == 1 and len(seen) == 3


@pytest.mark.parametrize(
    ("reply", "says", "requests"),
    [
        ((500, "out of memory"), "no answer in 3 attempts; the last: 500 .* out of memory", 3),
        (2.0, "no answer in 3 attempts; the last: .*timed out", 3),
        ((401, "bad key"), "refused a question to some/model: 401 .* read from OPENAI_API_KEY", 1),
        ((404, "no such model"), "refused .* 404 .* no such model", 1),
        ((400, "logprobs are not supported"), "refused .* logprobs are not supported", 1),
        (b"<html>\xff", "invalid chat completion: '<html>", 1),
        ({"choices": []}, "invalid chat completion", 1),
        ({"error": "x"}, "invalid chat completion", 1),
        ([], "invalid chat completion", 1),
        (tiny_llm.completion(None), "gives no log-probabilities", 1),
        (tiny_llm.completion({"The": 0.9, "Yes": 0.004}), "no answer about one: .* hold 0.40% .* 'The' .0.90.", 1),
    ],
)  # fmt: skip
def test_a_server_that_does_not_answer_is_an_error(reply, says: str, requests: int) -> None:
    with tiny_llm.server(lambda payload, n: reply) as (url, seen):
        server = Server(f"{url}#some/model", delay=0.01, attempts=3, timeout=0.5 if isinstance(reply, float) else 30)
        with pytest.raises(ScorerError, match=says):
            server.answer_probabilities(QUESTIONS[:1])
        assert len(seen) == requests


def said(text: object, finish: str = "stop") -> dict:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}


def test_a_server_writes() -> None:
    with tiny_llm.server(lambda payload, n: said(f" {payload['messages'][0]['content'][:3]} ")) as (url, seen):
        server = Server(f"{url}#some/model", workers=1)
        assert server.complete(PROMPTS, max_new_tokens=7) == ["Is", "Nam"]
        server.complete([Prompt("x", tiny.picture(0))], temperature=0.3, seed=2)
    first, _, last = seen
    assert (first["max_tokens"], first["temperature"], first.get("seed"), first.get("logprobs")) == (7, 0, None, None)
    assert (last["temperature"], last["seed"]) == (0.3, 2) and last["messages"][0]["content"][0]["type"] == "image_url"


@pytest.mark.parametrize(("finish", "kind"), [("stop", str), ("length", Cut)])
def test_a_server_says_which_answers_were_cut(finish: str, kind: type) -> None:
    with tiny_llm.server(lambda payload, n: said("a brown dog on the", finish)) as (url, _):
        (text,) = Server(f"{url}#some/model").complete(PROMPTS[:1])
    assert (text, type(text)) == ("a brown dog on the", kind)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ((500, "x"), "in 2 attempts; the last: 500 .*asked about one"), (0.5, "timed out; it was asked about one"),
        ((404, "no"), "refused .*about one"), (b"<html>", "invalid chat completion: '<html>', about one"),
        ({"choices": []}, "invalid chat .*about one"), (said(None), "gave no text about one"),
        (said(["a"]), "gave no text about one"), ({"choices": ["a"]}, "no text about one"),
        ({"choices": [{"message": "a"}]}, "no text about one"),
    ],
)  # fmt: skip
def test_a_server_that_does_not_write_is_an_error_that_names_the_item(reply, says: str) -> None:
    with tiny_llm.server(lambda payload, n: reply) as (url, _):
        server = Server(f"{url}#m", delay=0.01, attempts=2, timeout=0.2 if isinstance(reply, float) else 30)
        with pytest.raises(ScorerError, match=says):
            server.complete(PROMPTS[:1])


def test_a_dead_server_ends_the_work_soon() -> None:
    with tiny_llm.server(lambda payload, n: (500, "x")) as (url, seen):
        server = Server(f"{url}#m", delay=0.01, attempts=2, workers=2)
        with pytest.raises(ScorerError, match="in 2 attempts"):
            server.answer_probabilities(QUESTIONS * 40)
    assert len(seen) < 20
    with pytest.raises(ScorerError, match="nothing answers at .*vllm serve m"):
        server.check()
    with pytest.raises(ScorerError, match="refused"):
        server.answer_probabilities(QUESTIONS[:1])


def test_a_server_that_knows_no_template_settings_is_asked_without() -> None:
    def openai(payload: dict, n: int):
        if "chat_template_kwargs" in payload:
            return 400, "Unrecognized request argument supplied: chat_template_kwargs"
        return tiny_llm.completion({"Yes": 0.5})

    answers, seen = ask(openai, QUESTIONS, workers=1)
    assert [p.argmax() for p in answers] == [0] * 5 and len(seen) == 6
    assert seen[0]["chat_template_kwargs"] == {"enable_thinking": False}


def test_how_the_slot_is_filled() -> None:
    assert isinstance(load_answerer("http://localhost:8000/v1#a/b"), Server)
    assert load_answerer("https://localhost:8000/v1/#a/b").label == "a/b@https://localhost:8000/v1"
    for wrong in ("http://localhost:8000/v1", "http://#m"):
        with pytest.raises(ValueError, match="names no model"):
            load_answerer(wrong)
