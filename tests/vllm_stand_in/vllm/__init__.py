"""A stand-in with the signatures of vLLM 0.11 that captune uses; it records calls, and captions with transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vllm.lora.request import LoRARequest

MADE: list[LLM] = []


@dataclass
class SamplingParams:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    skip_special_tokens: bool = True
    logit_bias: dict[int, float] | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: Any
    finish_reason: str | None = None


@dataclass
class RequestOutput:
    outputs: list[CompletionOutput] = field(default_factory=list)


class LLM:
    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        seed: int | None = None,
        gpu_memory_utilization: float = 0.9,
        **engine_arguments: Any,
    ) -> None:
        known = {"limit_mm_per_prompt", "generation_config", "enable_lora", "max_loras", "max_lora_rank"}
        assert engine_arguments.keys() <= known
        self.model, self.arguments = model, {**engine_arguments, "dtype": dtype, "seed": seed}
        self.calls: list[tuple[list[dict[str, Any]], list[SamplingParams]]] = []
        MADE.append(self)

    def generate(
        self,
        prompts: list[dict[str, Any]],
        sampling_params: list[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[RequestOutput]:
        from captune.models.captioner import Captioner

        assert sampling_params is not None and len(prompts) == len(sampling_params)
        assert (lora_request is not None) == bool(self.arguments.get("enable_lora"))
        self.calls.append((prompts, sampling_params))
        adapter = None if lora_request is None else lora_request.lora_path
        captioner = Captioner.load(self.model, adapter=adapter, device="cpu")
        outputs = []
        for prompt, sampling in zip(prompts, sampling_params, strict=True):
            text = captioner.tokenizer.decode(prompt["prompt_token_ids"])
            batch = captioner.encode([text], [prompt["multi_modal_data"]["image"]])
            settings = {"do_sample": True, "temperature": sampling.temperature} if sampling.temperature else {}
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            captions, _, total = captioner.generate(
                batch, max_new_tokens=sampling.max_tokens, return_logprob=True, **settings
            )
            ids = captioner.caption_ids(captions[0])
            given = None if sampling.logprobs is None else float(total)
            outputs.append(RequestOutput([CompletionOutput(0, captions[0], ids, given, None, "stop")]))
        return outputs
