"""A captioner behind a server: each caption depends on its image and the settings alone, whatever the server does."""

from __future__ import annotations

import base64
import io
import itertools
import json
import logging
from typing import Any

import pytest
import tiny
import torch
from PIL import Image

from benchmarks.caption_server import MODEL, Reply, caption_of, completion, image_of, serving
from captune.decoding import load_decoder
from captune.errors import CaptionerError, ServerError, SettingError
from captune.models.server_captioner import ServerCaptioner, request_settings

CANARY = "sk-canary-5e2b8f7a9d"
IMAGES = [tiny.picture(seed, (30 + seed, 20)) for seed in range(12)]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def captioner(server: Any, **settings: Any) -> ServerCaptioner:
    return ServerCaptioner(f"{server.url}#{MODEL}", **{"delay": 0.01, "timeout": 5, **settings})


def test_an_image_goes_upright_with_the_prompt_and_the_captions_keep_their_order() -> None:
    turned = Image.new("RGB", (40, 20), (200, 30, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    turned.save(file, "PNG", exif=exif)
    with serving(seconds=0.01) as server:
        texts = captioner(server, prompt="Say it.").generate([*IMAGES, Image.open(file)], max_new_tokens=9)
    by_image = {(r["messages"][0]["content"][0]["image_url"]["url"]): r for r in server.requests}
    assert texts[-1].startswith("an image of 20 by 40")
    assert [text.split()[3] for text in texts[:-1]] == [str(image.width) for image in IMAGES]
    assert len(by_image) == len(IMAGES) + 1
    request = server.requests[0]
    assert request["path"] == "/v1/chat/completions" and request["model"] == MODEL and request["key"] is None
    assert request["messages"][0]["content"][1] == {"type": "text", "text": "Say it."}
    assert (request["max_tokens"], request["temperature"], request.get("seed")) == (9, 0, None)
    assert (request["top_p"], request["top_k"], request["repetition_penalty"]) == (1.0, -1, 1.0)


def test_a_base_model_gets_the_image_alone() -> None:
    with serving() as server:
        captioner(server, prompt="").generate(IMAGES[:1])
    assert [part["type"] for part in server.requests[0]["messages"][0]["content"]] == ["image_url"]


def test_captions_depend_neither_on_the_batch_nor_on_how_many_are_asked_at_once() -> None:
    settings = {"do_sample": True, "temperature": 0.7, "num_return_sequences": 3, "seed": 5}
    with serving(seconds=0.005) as server:
        together = captioner(server, workers=8).generate(IMAGES, **settings)
        alone = captioner(server, workers=1)
        assert together == [text for image in IMAGES for text in alone.generate([image], **settings)]
        assert len(set(together)) == len(together)  # each sample has a seed of its own
        assert together != alone.generate(IMAGES, **{**settings, "seed": 6})
    assert {request["temperature"] for request in server.requests} == {0.7}
    assert all(0 <= request["seed"] < 2**31 for request in server.requests)


def test_a_full_server_gets_fewer_requests_and_its_wish_is_followed() -> None:
    with serving(slots=2, seconds=0.02, retry_after="0.2") as server:
        texts = captioner(server, workers=8, attempts=4).generate(IMAGES * 2)
        assert len(texts) == 24
    times = sorted(request["time"] for request in server.requests)
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert max(pauses) > 0.1  # nobody asks while the server wants to be left alone
    refused = len(times) - 24
    assert 1 <= refused < 48, refused


@pytest.mark.parametrize(
    "trouble",
    [
        Reply(503, b"loading"), Reply(500, b"out of memory"), Reply(None), Reply(429, b"", {"Retry-After": "0"}),
        Reply(200, completion("a caption that never ends"), seconds_per_byte=0.05),
        Reply(200, completion("cut")[:9], {"Content-Length": "500"}),
    ],
)  # fmt: skip
def test_passing_trouble_is_tried_again(trouble: Reply) -> None:
    with serving(fault=lambda payload, number: trouble if number < 3 else None) as server:
        assert captioner(server, timeout=2, workers=1).generate(IMAGES[:2])
        assert server.count == 4


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Reply(400, b"too many pixels"), "refused a request to stand-in: 400 .*too many pixels"),
        (Reply(422, b"no such image"), "422"),
        (Reply(413, b"too large"), "413"),
        (Reply(500, b"index out of range"), "no answer in 2 attempts; the last: 500 .*index out of range"),
        (Reply(200, b"<html>hello"), "invalid chat completion: '<html>hello'"),
        (Reply(200, b'{"choices": []}'), "invalid chat completion"),
        (Reply(200, completion("  ")), "gave an empty caption .finish_reason 'stop'"),
        (Reply(200, completion("<think>\nA dog, or")), "gave no caption: the answer was cut off within a thought"),
        (Reply(200, completion("<think>\nA dog.\n</think>\n")), "gave an empty caption"),
        (Reply(200, completion(None)), "gave no text but null"),
        (Reply(200, completion([{"type": "text"}])), "gave no text but"),
        (
            Reply(200, b'{"choices": [{"message": {"content": null, "refusal": "I cannot."}}]}'),
            "will not say: I cannot",
        ),
    ],
)
def test_an_image_without_a_caption_is_an_error_of_this_image(reply: Reply, why: str) -> None:
    def fault(payload: dict[str, Any], number: int) -> Reply | None:
        return reply if image_of(payload).width == IMAGES[3].width else None

    with serving(fault=fault) as server:
        asked = captioner(server, attempts=2)
        with pytest.raises(CaptionerError, match=f"image 4 of 12: .*{why}"):
            asked.generate(IMAGES)
        outcomes = asked.attempt(IMAGES)
    assert [isinstance(outcome, str) for outcome in outcomes] == [index != 3 for index in range(12)]


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Reply(401, b"Incorrect API key provided: " + CANARY.encode()), r"401 .*\*\*\*.*read from OPENAI_API_KEY"),
        (Reply(404, b"no such model"), "404 .*no such model; it serves stand-in"),
        (Reply(503, b"full"), "no answer in 2 attempts; the last: 503"),
        (Reply(None), "no answer in 2 attempts"),
    ],
)
def test_a_server_that_does_not_answer_is_its_own_error_soon(
    reply: Reply, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    with serving(fault=lambda payload, number: reply) as server:
        with pytest.raises(ServerError, match=why) as caught:
            captioner(server, attempts=2, workers=2).generate(IMAGES * 4)
        assert server.count < 12  # the rest is not asked of a dead server
    assert CANARY not in f"{caught.value} {caught.value!r}"
    assert all(request["key"] == f"Bearer {CANARY}" for request in server.requests)


def test_a_redirect_gets_neither_key_nor_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    with serving() as other:
        moved = Reply(302, b"", {"Location": f"{other.url}/chat/completions"})
        with (
            serving(fault=lambda payload, number: moved) as server,
            pytest.raises(ServerError, match="it redirects to"),
        ):
            captioner(server).generate(IMAGES[:1])
        assert not other.count


def test_https_where_there_is_none_is_said_at_once() -> None:
    with serving() as server, pytest.raises(ServerError, match="cannot be reached by https .*is it http"):
        ServerCaptioner(f"{server.url.replace('http', 'https')}#m", attempts=9, delay=60).generate(IMAGES[:1])


def test_a_server_that_comes_back_is_asked_again() -> None:
    with serving() as server:
        asked, port = captioner(server, attempts=2), server.server_port
        first = asked.generate(IMAGES[:2])
    with pytest.raises(ServerError, match="no answer in 2 attempts; the last: .*refused"):
        asked.generate(IMAGES[:2])
    with pytest.raises(ServerError, match="nothing answers at"):
        asked.check()
    with serving(port) as server:
        asked.check()
        assert asked.generate(IMAGES[:2]) == first


def test_a_server_without_a_field_is_asked_without_it(caplog: pytest.LogCaptureFixture) -> None:
    def strict(payload: dict[str, Any], number: int) -> Reply | None:
        unknown = {"top_k", "repetition_penalty", "chat_template_kwargs"} & payload.keys()
        if unknown:
            return Reply(422, f"Unexpected fields in the request: {unknown}".encode())
        return Reply(400, b"Use 'max_completion_tokens' instead") if "max_tokens" in payload else None

    with serving(fault=strict) as server, caplog.at_level(logging.WARNING):
        asked = captioner(server, workers=1)
        assert len(asked.generate(IMAGES[:3], max_new_tokens=7)) == 3
        assert server.count == 5 and server.requests[-1]["max_completion_tokens"] == 7
        with pytest.raises(CaptionerError, match="top_k"):  # the caller's own setting is not left out
            asked.generate(IMAGES[:1], top_k=5)
    assert "takes no top_k and no repetition_penalty" in caplog.text


def test_a_refusal_that_repeats_the_request_costs_no_field(caplog: pytest.LogCaptureFixture) -> None:
    def echo(payload: dict[str, Any], number: int) -> Reply | None:
        if image_of(payload).width != IMAGES[1].width:
            return None
        sent = {name: value for name, value in payload.items() if name != "messages"}
        return Reply(422, json.dumps({"detail": [{"msg": "cannot identify image file", "input": sent}]}).encode())

    with serving(fault=echo) as server, caplog.at_level(logging.WARNING):
        outcomes = captioner(server, workers=1).attempt(IMAGES[:4])
    assert [isinstance(outcome, str) for outcome in outcomes] == [True, False, True, True]
    assert "cannot identify image file" in str(outcomes[1])
    assert all((request["top_k"], request["repetition_penalty"]) == (-1, 1.0) for request in server.requests[-2:])
    assert "takes no" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"num_beams": 4}, "no beam search"), ({"forced_opening": "A"}, "takes no forced_opening"),
        ({"no_repeat_ngram_size": 2}, "takes no no_repeat_ngram_size"), ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"do_sample": True, "temperature": 0.0}, "temperature over 0"), ({"num_return_sequences": 0}, "at least 1"),
    ],
)  # fmt: skip
def test_what_a_server_cannot_do_is_refused_before_it_is_asked(settings: dict[str, Any], why: str) -> None:
    with serving() as server:
        with pytest.raises(SettingError, match=why):
            captioner(server).generate(IMAGES[:1], **settings)
        assert not server.count
    assert request_settings("x", top_p=0.9)["top_p"] == 0.9


def test_log_probabilities_are_summed_and_missing_ones_are_an_error() -> None:
    with serving() as server:
        texts, mean, total = captioner(server).generate(IMAGES[:2], return_logprob=True)
    counts = torch.tensor([len(text.split()) for text in texts])
    torch.testing.assert_close(total, -0.5 * counts)
    torch.testing.assert_close(mean, torch.tensor([-0.5, -0.5]))
    with (
        serving(fault=lambda payload, number: Reply(200, completion("a cat"))) as server,
        pytest.raises(CaptionerError, match="gives no log-probabilities: use a server that does"),
    ):
        captioner(server).generate(IMAGES[:1], return_logprob=True)


@pytest.mark.parametrize("thought", ["<think>\nA dog?\n</think>\n\n", "It is </think> a dog.</think>"])
def test_a_thought_is_no_part_of_the_caption(thought: str) -> None:
    logprobs = {"content": [{"token": "A", "logprob": -0.5}]}
    reply = Reply(200, completion(f"{thought}A cat.", logprobs=logprobs))
    with serving(fault=lambda payload, number: reply) as server:
        assert captioner(server).generate(IMAGES[:2]) == ["A cat."] * 2
        with pytest.raises(CaptionerError, match="thinks first, so that its log-prob"):
            captioner(server).generate(IMAGES[:1], return_logprob=True)


def test_a_caption_is_corrected_in_a_second_turn() -> None:
    with serving() as server:
        asked = captioner(server, prompt="Say it.", workers=1)
        first = asked.generate(IMAGES[:1])
        last = load_decoder("self-correct")(asked, IMAGES[:1])
    turns = server.requests[-1]["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[1]["content"] == first[0] and "corrected caption" in turns[2]["content"]
    assert last == [caption_of(server.requests[-1])] != first


def test_best_of_takes_the_best_sample_of_each_image(caplog: pytest.LogCaptureFixture) -> None:
    decoder = load_decoder("best-of:4:length")
    lengths = {0: 3, 1: 9, 2: 5, 3: 1}

    def fault(payload: dict[str, Any], number: int) -> Reply:
        return Reply(200, completion(" ".join(["a"] * lengths[payload["seed"] % 4])))

    with serving(fault=fault) as server:
        asked = captioner(server)
        best = decoder(asked, IMAGES, seed=1)
        samples = asked.generate(IMAGES, do_sample=True, num_return_sequences=4, seed=1)
    for row, text in enumerate(best):
        assert len(text) == max(len(sample) for sample in samples[4 * row : 4 * row + 4])
    always = Reply(200, completion("always this"))
    with serving(fault=lambda payload, number: always) as server, caplog.at_level(logging.WARNING):
        decoder(captioner(server), IMAGES)
    assert "same caption 4 times for each of 12 images: does it sample at all?" in caplog.text


@pytest.mark.parametrize("url", ["http://localhost:8000/v1", "http://#m", "http://localhost:wrong/v1#m"])
def test_an_address_without_a_model_is_refused(url: str) -> None:
    with pytest.raises(SettingError, match=r"names no model|is no address"):
        ServerCaptioner(url)


def test_a_data_url_holds_the_pixels() -> None:
    with serving() as server:
        captioner(server).generate(IMAGES[:1])
    url = server.requests[0]["messages"][0]["content"][0]["image_url"]["url"]
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == IMAGES[0].tobytes()
    assert json.dumps(server.requests[0]["model"]) == json.dumps(MODEL)
