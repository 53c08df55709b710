"""Tiny language models, with random weights or one answer to everything, and a server of the OpenAI kind."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import tiny
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

CHAT = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}"
    "{%- endif -%}"
)
WORDS = ["Yes", " Yes", "No", " No", "Unknown", "A", " A", "<think>", "</think>"]


def _tokenizer(chat: bool) -> Any:
    tokenizer = tiny.tokenizer(["<|im_start|>"], bos=None, eos="<|im_end|>", pad="<pad>")
    tokenizer.add_tokens(WORDS)
    tokenizer.chat_template = CHAT if chat else None
    return tokenizer


def llama(folder: Path, *, chat: bool = True) -> Path:
    """Random weights; relative positions."""
    tokenizer = _tokenizer(chat)
    return tiny.save(LlamaForCausalLM, LlamaConfig(**tiny.text_config(tokenizer)), tokenizer, folder)


def gpt2(folder: Path, says: dict[str, float] | None = None) -> Path:
    """Absolute positions, no chat template; random weights, or the same next token to everything: {token: logit}."""
    tokenizer = _tokenizer(chat=False)
    ids = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=2, n_head=4,
                        tie_word_embeddings=False, **ids)  # fmt: skip
    tiny.save(GPT2LMHeadModel, config, tokenizer, folder)
    if says is not None:
        model = GPT2LMHeadModel.from_pretrained(folder)
        with torch.no_grad():
            model.transformer.ln_f.weight.zero_()
            model.transformer.ln_f.bias.fill_(1.0)
            model.lm_head.weight.zero_()
            for token, logit in says.items():
                (i,) = tokenizer(token)["input_ids"]
                model.lm_head.weight[i] = logit / 32
        model.save_pretrained(folder)
    return folder


def completion(top: dict[str, float] | None) -> dict:
    """A chat completion whose first token has these probabilities; None: without logprobs."""
    listed = [{"token": token, "logprob": math.log(p)} for token, p in (top or {}).items()]
    logprobs = None if top is None else {"content": [{"token": next(iter(top)), "top_logprobs": listed}]}
    message = {"role": "assistant", "content": "" if top is None else next(iter(top))}
    return {"choices": [{"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "length"}]}


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # which is a client that waits no longer
            super().handle_error(request, client_address)


@contextmanager
def server(reply: Callable[[dict, int], Any]) -> Iterator[tuple[str, list[dict]]]:
    """(url, requests): `reply(payload, number)` gives a dict, raw bytes, (status, text), or seconds to wait in vain."""
    seen: list[dict] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.append({"path": self.path, "key": self.headers.get("Authorization"), **payload})
                answer = reply(payload, len(seen))
            if isinstance(answer, float):
                time.sleep(answer)
                return
            status, body = answer if isinstance(answer, tuple) else (200, answer)
            data = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if status in (301, 302, 307):
                self.send_header("Location", body)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            pass

    http = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1", seen
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
