"""ZeroCap (Tewel et al., CVPR 2022): CLIP steers a frozen language model by its memory.

Nothing is trained; the price is paid for every token of every caption.

A causal LM says x_{i+1} = LM(x_i, C_i), where the context cache C_i holds keys and values of the tokens before x_i in
every layer. Before each token the cache is moved to the minimum of

    L_CLIP(LM(x_i, C_i), I) + lambda L_CE(LM(x_i, C_i), p_hat)

by a few steps C_i <- C_i - alpha grad / ||grad||^r, where the norm is that of one row, one layer, its keys or values.

    p_hat    what the LM says with the cache as it was; lambda keeps the words a language
    L_CLIP   - sum_k p_k log LM(x_i, C_i)_k over the top candidates, cross-entropy with CLIP's distribution p_k
    p_k      proportional to exp(cos(E_text(x_1 .. x_i k), E_image(I)) / tau_c)

The token comes from LM(x_i, C_i)^f p_hat^(1 - f), normalised; then the cache is what it was for the next token.

It is a `LogitsProcessor`: `generate` runs the LM, which gives p_hat, and the processor reads C_i off the cache that
`generate` fills, so that greedy search, sampling and beams (the paper's decoding has 5) are those of transformers.
The rows of a batch go through the LM's forward and backward together, and all their candidates through CLIP together;
texts that rows have in common are read once, rows whose caption has ended cost nothing.

*Left open by the paper, or different here.* The paper writes cross-entropy for L_CE, its published code the divergence
KL(LM(x_i, C_i) || p_hat), taken here. The paper's norm is squared, the code's exponent r = 0.9. The candidates are the
best of p_hat, once for each token, where the code picks 512 again in every step, which costs a pass of CLIP each: the
few that differ have next to no probability. The code lowers a list of forbidden tokens and raises the full stop's
logit by 1.01 (captions end at ".", as here, or at the LM's own end); neither is done. Where the context is <bos> alone
there is no cache to move, and the first token is the LM's. lambda = 0.2, alpha = 0.3, 5 steps, tau_c = 0.01, f = 0.99
are the paper's and its code's; `top_k` is 512 there. The paper prompts GPT-2 with "Image of a".
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LogitsProcessor
from transformers.cache_utils import DynamicLayer

from captune.errors import CaptionerError
from captune.models import hub
from captune.models.captioner import NEUTRAL, check_length, check_room, neutral, positions_of
from captune.models.encoders import EncodesBoth, load_encoder
from captune.utils.device import pick_device
from captune.utils.loads import check_model

MAX_NEW_TOKENS = 15  # the paper's, for language models that name no number


class ZeroCapModel:
    """A causal language model and an encoder of images and texts, neither trained for the other, neither trained here.

    What a captioner is to other decoders; `generate` is the language model alone, which sees no image. `prompt` is the
    text that it continues, "Image of a" in the paper; it is no part of the caption.
    """

    def __init__(
        self, language_model: Any, tokenizer: Any, encoder: EncodesBoth, *, name: str, prompt: str = ""
    ) -> None:
        self.language_model = language_model.eval().requires_grad_(False)
        language_model.generation_config = neutral(language_model.generation_config)
        self.tokenizer, self.encoder, self.name, self.prompt = tokenizer, encoder, name, prompt
        self.model = nn.ModuleDict({"language model": language_model, "encoder": encoder.model})
        if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
            raise CaptionerError(f"{name}: the tokenizer needs a token to begin a text with and one to end it")

    @classmethod
    def load(
        cls,
        language_model: str | Path,
        image_encoder: str | Path,
        *,
        prompt: str | None = None,
        device: str | torch.device | None = None,
    ) -> ZeroCapModel:
        """Load both in float32, since gradients are taken.

        Args:
            language_model: a folder, a hub name, or the name of a shipped model such as "storybook-lm".
            image_encoder: a CLIP or SigLIP, as above.
            prompt: what the caption continues.
            device: default: the GPU where there is one.

        Raises:
            CaptionerError, EncoderError: say what is missing.
        """
        name = str(language_model)
        source = hub.resolve(name, what="language model", example="openai-community/gpt2")
        with hub.loading("language model", name, source, CaptionerError):
            tokenizer = AutoTokenizer.from_pretrained(source)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
        model, info = loaded
        check_model(model, info, what=f"language model {name!r}", error=CaptionerError)
        device = pick_device(device)
        encoder = load_encoder(image_encoder, device)
        return cls(
            cast(nn.Module, model).to(device), tokenizer, encoder, name=f"{name} + {image_encoder}", prompt=prompt or ""
        )

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.language_model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the language model."""
        return self.language_model.dtype

    @cached_property
    def eos_ids(self) -> list[int]:
        """What ends a caption: the LM's end of text, or a full stop."""
        stop = self.tokenizer(".", add_special_tokens=False)["input_ids"]
        stops = {*(stop if len(stop) == 1 else []), *(i for i, text in enumerate(self.token_texts) if text == ".")}
        return [self.tokenizer.eos_token_id, *sorted(stops)]

    @cached_property
    def token_texts(self) -> list[str]:
        """What each token adds to a text that has begun; a special one nothing."""
        begun = self.tokenizer("a", add_special_tokens=False)["input_ids"]  # some decoders cut a text's first space
        pairs = [[*begun, i] for i in range(len(self.tokenizer))]
        length = len(self.tokenizer.decode(begun, skip_special_tokens=True))
        return [text[length:] for text in self.tokenizer.batch_decode(pairs, skip_special_tokens=True)]

    @cached_property
    def prompt_ids(self) -> list[int]:
        """<bos> and the prompt."""
        return [self.tokenizer.bos_token_id, *self.tokenizer(self.prompt, add_special_tokens=False)["input_ids"]]

    @torch.no_grad()
    def generate(
        self,
        images: Sequence[Any],
        *,
        max_new_tokens: int | None = None,
        do_sample: bool = False,
        num_beams: int = 1,
        **settings: Any,
    ) -> list[str]:
        """A text per image: further settings are those of transformers."""
        check_length(max_new_tokens)
        positions = positions_of(self.language_model.config)
        check_room(len(self.prompt_ids), max_new_tokens or 1, positions)
        ids = torch.tensor([self.prompt_ids] * len(images), device=self.device)
        pad = self.tokenizer.pad_token_id
        sequences = self.language_model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens or self.language_model.generation_config.max_new_tokens or MAX_NEW_TOKENS,
            eos_token_id=self.eos_ids,
            pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
            **{**(NEUTRAL if do_sample else {}), **settings, "do_sample": do_sample, "num_beams": num_beams},
        )
        texts = self.tokenizer.batch_decode(sequences[:, ids.shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]


@dataclass(frozen=True)
class ZeroCap:
    """ZeroCap, "zerocap:?top_k=512&steps=5": CLIP-guided decoding of a frozen language model."""

    steps: Annotated[int, Field(ge=0, le=1000, description="gradient steps for each token")] = 5
    clip_scale: Annotated[float, Field(ge=-1000, le=1000, description="weight of L_CLIP")] = 1.0
    fluency: Annotated[float, Field(ge=-1000, le=1000, description="lambda, the weight of L_CE")] = 0.2
    step_size: Annotated[float, Field(ge=-1000, le=1000, description="alpha")] = 0.3
    norm_exponent: Annotated[float, Field(ge=-10, le=10, description="r")] = 0.9
    temperature: Annotated[float, Field(gt=0, le=1000, description="tau_c, of CLIP's distribution")] = 0.01
    top_k: Annotated[int, Field(ge=1, description="candidates that CLIP is asked about")] = 512
    min_p: Annotated[
        float, Field(ge=0, le=1, description="a candidate's least share of the likeliest one's probability")
    ] = 0.01
    fusion: Annotated[float, Field(ge=0, le=1, description="f, how much of the moved distribution is taken")] = 0.99

    positional: ClassVar = ()
    example: ClassVar = "zerocap:?top_k=512&steps=5"
    samples: ClassVar = False
    required_columns: ClassVar = ()

    @property
    def signature(self) -> str:
        """Everything that decides the figure: settings, model, version."""
        return repr(self)

    def __call__(self, captioner: ZeroCapModel, images: Sequence[Any], **settings: Any) -> list[str]:
        """Return one caption per image."""
        if not isinstance(captioner, ZeroCapModel):
            raise CaptionerError(
                "zerocap guides a language model with an image encoder and takes no captioner: name the two "
                "(--language-model storybook-lm --image-encoder storybook-clip, in Python ZeroCapModel.load)"
            )
        cache = DynamicCache(config=captioner.language_model.config)
        if not all(type(layer) is DynamicLayer for layer in cache.layers):
            raise CaptionerError(f"zerocap moves a plain key/value cache; {captioner.name} has another kind")
        guidance = ContextGuidance(self, captioner, images, cache)
        return captioner.generate(images, past_key_values=cache, logits_processor=[guidance], **settings)


class ContextGuidance(LogitsProcessor):
    """The processor: scores (N, vocabulary) that the LM gave become those after the cache was moved.

    N may be a multiple of the images (beams, samples); `cache` is the one that `generate` fills, and is left as it is.
    """

    def __init__(self, config: ZeroCap, pair: ZeroCapModel, images: Sequence[Any], cache: DynamicCache) -> None:
        self.config, self.pair, self.cache = config, pair, cache
        self.images = pair.encoder.encode_images(images).to(pair.device)  # (B, D)
        self.eos_ids = torch.tensor(pair.eos_ids, device=pair.device)
        self.start = len(pair.prompt_ids)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return the next token's scores, (N, vocabulary), after the cache was moved."""
        if input_ids.shape[1] < 2 or self.config.steps == 0:
            return scores
        ended = torch.isin(input_ids[:, self.start :], self.eos_ids).any(1)
        live = (~ended).nonzero().squeeze(1)
        if len(live) == 0:
            return scores
        p_hat = scores[live].float().log_softmax(-1)
        candidates, p_clip = self.clip_distribution(input_ids, live, p_hat)
        moved = self.update_cache(input_ids[live, -1:], live, p_hat, candidates, p_clip)
        fused = self.config.fusion * moved + (1 - self.config.fusion) * p_hat.clamp(min=torch.finfo(p_hat.dtype).min)
        fused = fused.masked_fill(p_hat.isneginf(), -torch.inf).log_softmax(-1)  # what was ruled out stays so
        result = scores.clone()
        result[live] = fused.to(scores.dtype)
        return result  # type: ignore[return-value]

    def clip_distribution(self, input_ids: Tensor, live: Tensor, p_hat: Tensor) -> tuple[Tensor, Tensor]:
        """The candidates (L, K) of the live rows and CLIP's distribution over them, p_k (L, K)."""
        best = p_hat.topk(min(self.config.top_k, len(self.pair.token_texts)))
        asked = best.values.exp() >= self.config.min_p * best.values[:, :1].exp()  # (L, K), the rest has p_k = 0
        begun = self.pair.tokenizer.batch_decode(input_ids[live], skip_special_tokens=True)
        added = self.pair.token_texts
        row, place = asked.nonzero(as_tuple=True)
        pairs = zip(row.tolist(), best.indices[asked].tolist(), strict=True)
        texts = [(begun[i] + added[token]).strip() for i, token in pairs]
        features = self.pair.encoder.encode_texts(texts, batch_size=256).to(p_hat.device)
        images = self.images[live // (len(input_ids) // len(self.images))]  # (L, D)
        similarity = torch.full_like(p_hat[:, : asked.shape[1]], -torch.inf)
        similarity[row, place] = (features * images[row]).sum(-1)
        return best.indices, (similarity / self.config.temperature).softmax(-1)

    def update_cache(self, last: Tensor, live: Tensor, p_hat: Tensor, candidates: Tensor, p_clip: Tensor) -> Tensor:
        """Return log LM(x_i, C_i) after the steps, (L, vocabulary)."""
        config = self.config
        context = [  # keys and values (L, heads, i, width) of each layer, without those of x_i
            state[live, :, :-1] for layer in cast(Any, self.cache.layers) for state in (layer.keys, layer.values)
        ]
        allowed = p_hat.isfinite()  # what `generate` forbids has no part in the divergence
        for _ in range(config.steps):
            with torch.enable_grad():
                context = [state.detach().requires_grad_() for state in context]
                log_p = self.next_token_logprobs(last, context)
                clip = -(p_clip * log_p.gather(1, candidates)).sum()
                fluency = (log_p.exp() * (log_p - p_hat.masked_fill(~allowed, 0)))[allowed].sum()
                gradients = torch.autograd.grad(config.clip_scale * clip + config.fluency * fluency, context)
            context = [
                state - config.step_size * gradient / (norm(gradient) + 1e-15) ** config.norm_exponent
                for state, gradient in zip(context, gradients, strict=True)
            ]
        return self.next_token_logprobs(last, context).detach()

    def next_token_logprobs(self, last: Tensor, context: Sequence[Tensor]) -> Tensor:
        """Return log LM(x_i, C_i), (L, vocabulary)."""
        layers = zip(context[::2], context[1::2], strict=True)
        output = self.pair.language_model(input_ids=last, past_key_values=DynamicCache(layers), use_cache=True)
        return output.logits[:, -1].float().log_softmax(-1)


def norm(gradient: Tensor) -> Tensor:
    """Of each row by itself, (L, 1, 1, 1)."""
    return gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def __getattr__(name: str) -> Any:
    if name == "FrozenPair":
        warnings.warn("captune.decoding.zerocap.FrozenPair is now called ZeroCapModel", FutureWarning, stacklevel=2)
        return ZeroCapModel
    raise AttributeError(name)
