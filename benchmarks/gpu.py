"""SmolVLM-2.25B and Qwen2-VL-2B at full size on a GPU: images a second and peak memory of the steps that cost most.

    python -m benchmarks.gpu [--models smolvlm qwen2-vl] [--batch 8] [--repeats 4] [--output benchmarks/gpu]
    python -m benchmarks.gpu --tiny --device cpu        # the same on models of a million parameters, to try the script

The models are the published configs with random weights in bfloat16, of the real classes, built here: what a step costs
depends on no weight. Their tokenizers have as many words as the published ones, so that a caption of n tokens is n
tokens again when it is read. Images are noise of 640 x 480. No EOS comes in practice, so every caption has all tokens.
Each line is a process of its own, so that its peak is its own; the first step of each is not counted.

- vizer: a whole step of `captune vizer` (objective latent): greedy captions of new images, L_zero, backward, AdamW.
- grpo: a step of `captune grpo` with G = 5, and of stock trl's GRPOTrainer with the same settings, reward `length`.
- caption: `Captioner.caption`, and a plain batched `generate` on the same images.

The bar: a ViZer step of 8 images or more within 24 GB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from PIL import Image
from transformers import (
    PreTrainedTokenizerFast,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from benchmarks import _lib
from benchmarks.speed.photos import grpo_steps
from captune.models.captioner import Captioner
from captune.models.vizer_mapper import Mapper, MapperConfig
from captune.storybook import captioner_model as builder
from captune.training.trainer import training_arguments
from captune.training.vizer.config import ViZerConfig
from captune.training.vizer.objectives import ViZerTrainer

G, TOKENS, RANK, ALPHA = 5, 24, 16, 32
LINES = [("vizer", "captune"), ("grpo", "captune"), ("grpo", "trl"), ("caption", "captune"), ("caption", "generate")]
FITS = 24.0  # GB, the bar of a ViZer step


def tokenizer(size: int, more: list[str]) -> PreTrainedTokenizerFast:
    """The embedded one with more special tokens and with made-up words, so many that it has `size` tokens."""
    found = builder.build_tokenizer()
    found.add_special_tokens({"additional_special_tokens": more})
    state = json.loads(found.backend_tokenizer.to_str())
    state["model"]["ignore_merges"] = True  # a word of the vocabulary is a token as it stands
    taken = set(state["model"]["vocab"].values()) | {token["id"] for token in state["added_tokens"]}
    for number in sorted(set(range(size)) - taken):
        state["model"]["vocab"]["Ġz" + "".join(chr(97 + int(digit)) for digit in str(number))] = number
    found._tokenizer = found.backend_tokenizer.from_str(json.dumps(state))
    return found


def smolvlm() -> Captioner:
    """SmolVLM-Instruct: SigLIP so400m of 384 px, one tile, and SmolLM2-1.7B."""
    vision = {"hidden_size": 1152, "patch_size": 14, "num_hidden_layers": 27, "num_attention_heads": 16,
              "intermediate_size": 4304}  # fmt: skip
    text = {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 32,
            "intermediate_size": 8192}  # fmt: skip
    return _lib.idefics3(tokenizer(49_155, []), 384, vision, text)


def qwen2_vl() -> Captioner:
    """Qwen2-VL-2B-Instruct."""
    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0}
    text = {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
            "intermediate_size": 8960, "rope_parameters": rope}  # fmt: skip
    vision = {"depth": 32, "embed_dim": 1280, "num_heads": 16}
    words = tokenizer(151_936, _lib.QWEN_MARKS)
    return _lib.qwen(words, Qwen2VLImageProcessorPil(), text, vision, tie_word_embeddings=True)


MODELS = {"smolvlm": smolvlm, "qwen2-vl": qwen2_vl}
TINY = dict(zip(MODELS, _lib.MODELS.values(), strict=True))


def build(name: str, device: str, *, tiny: bool) -> Captioner:
    """The captioner with random weights, made on its device in bfloat16."""
    torch.set_default_dtype(torch.float32 if tiny else torch.bfloat16)
    with torch.device(device):
        captioner = (TINY if tiny else MODELS)[name]()
    torch.set_default_dtype(torch.float32)
    captioner.core.to(device)
    return captioner


def noise(count: int) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (480, 640, 3), dtype=np.uint8)) for _ in range(count)]


def settled(device: str) -> float:
    """The clock, when the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def repeated(work: Callable[[int], object], repeats: int, device: str) -> list[float]:
    """Seconds of each turn but the first."""
    seconds = []
    for turn in range(repeats + 1):
        started = settled(device)
        work(turn)
        seconds.append(settled(device) - started)
    return seconds[1:]


# -- what is measured: each returns the seconds of a step


def vizer(captioner: Captioner, side: str, args: argparse.Namespace, scratch: str) -> list[float]:
    captioner.add_lora(RANK, ALPHA, 0.0)
    captioner.model.train()
    config = ViZerConfig(
        model="-", output=Path(scratch), images="given", preset="paper", device=args.device, max_new_tokens=TOKENS
    )
    width = captioner.core.config.get_text_config().hidden_size
    seen = captioner.image_features(noise(1)).shape[-1]
    mapper = Mapper(MapperConfig(), seen, width).to(captioner.device).requires_grad_(False)
    settings = config.trainer_settings()
    trainer = ViZerTrainer(captioner, [0], training_arguments(config), mapper=mapper, **settings)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    memo, images = captioner.share_vision(), noise(args.batch)

    def step(turn: int) -> None:
        memo.clear()
        trainer.training_step(trainer.model, [{"image": image, "image_id": str(i)} for i, image in enumerate(images)])
        torch.nn.utils.clip_grad_norm_([p for p in captioner.model.parameters() if p.requires_grad], 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return repeated(step, args.repeats, args.device)


def grpo(captioner: Captioner, side: str, args: argparse.Namespace, scratch: str) -> list[float]:
    rows = [{"image": image, "image_id": str(i)} for i, image in enumerate(noise(args.batch * (args.repeats + 1)))]
    more = {"use_cpu": args.device == "cpu", "bf16": False}
    settings = {"per_device_train_batch_size": args.batch * G, "num_generations": G, "max_steps": args.repeats + 1,
                "max_completion_length": TOKENS}  # fmt: skip
    captioner.add_lora(RANK, ALPHA, 0.0)
    steps = grpo_steps(captioner, side, datasets.Dataset.from_list(rows), scratch, **settings, **more)
    return [wall for wall, _ in steps]


def caption(captioner: Captioner, side: str, args: argparse.Namespace, scratch: str) -> list[float]:
    images, model = noise(args.batch), captioner.core
    settings = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": captioner.tokenizer.pad_token_id}

    def ours(turn: int) -> None:
        pairs = [(str(i), image) for i, image in enumerate(images)]
        dict(captioner.caption(pairs, batch_size=args.batch, progress=False, max_new_tokens=TOKENS))

    def plain(turn: int) -> None:
        processor: Any = captioner.processor
        processor.tokenizer.padding_side = "left"
        texts = [captioner.prompt_text()] * len(images)
        batch = processor(text=texts, images=[[image] for image in images], return_tensors="pt", padding=True)
        with torch.no_grad():
            ids = model.generate(**batch.to(model.device, dtype=model.dtype), **settings)
        processor.batch_decode(ids, skip_special_tokens=True)

    return repeated(ours if side == "captune" else plain, args.repeats, args.device)


PARTS = {"vizer": vizer, "grpo": grpo, "caption": caption}


def one(name: str, part: str, side: str, args: argparse.Namespace) -> dict[str, Any]:
    """A line, measured in this process."""
    if args.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    captioner = build(name, args.device, tiny=args.tiny)
    with tempfile.TemporaryDirectory() as scratch:
        seconds = PARTS[part](captioner, side, args, scratch)
    step = statistics.median(seconds)
    peak = None if args.device == "cpu" else round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return {"parameters": captioner.core.num_parameters(), "seconds_a_step": [round(value, 4) for value in seconds],
            "images_per_second": round(args.batch / step, 3), "peak_gb": peak}  # fmt: skip


def measured(name: str, part: str, side: str, args: argparse.Namespace) -> dict[str, Any]:
    """A line, measured in a process of its own; what it died of, where it did."""
    flags = ["--batch", str(args.batch), "--repeats", str(args.repeats), "--device", args.device]
    command = [sys.executable, "-m", "benchmarks.gpu", *flags, *(["--tiny"] if args.tiny else [])]
    done = subprocess.run([*command, "--one", name, part, side], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"rc {done.returncode}"}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def page(result: dict[str, Any]) -> str:
    lines = [
        "# On a GPU", "",
        f"`{result['command']}` on {result['device']}: batches of {result['batch']} images, {TOKENS} tokens a caption, "
        f"G = {G}, LoRA r = {RANK}, bfloat16, random weights; medians of {result['repeats']} steps; "
        f"torch {result['torch']}, transformers {result['transformers']}, trl {result['trl']}.", "",
        "| model | parameters | work | by | seconds a step | images a second | peak GB |",
        "|---|---:|---|---|---:|---:|---:|",
    ]  # fmt: skip
    for line in result["lines"]:
        head = f"| {line['model']} | "
        if "error" in line:
            lines.append(f"{head}| {line['work']} | {line['by']} | failed: {line['error']} | | |")
            continue
        step = statistics.median(line["seconds_a_step"])
        peak = "" if line["peak_gb"] is None else line["peak_gb"]
        lines.append(f"{head}{line['parameters'] / 1e9:.2f} G | {line['work']} | {line['by']} | {step:.3f} | "
                     f"{line['images_per_second']} | {peak} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the proportions of these models, a million parameters")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.json and OUTPUT.md")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    if args.device != "cpu" and not torch.cuda.is_available():
        print(f"there is no {args.device} here; --tiny --device cpu tries the script", file=sys.stderr)
        return 2
    if args.one:
        print(json.dumps(one(*args.one, args)))
        return 0
    lines = []
    for name in args.models:
        for part, side in LINES:
            print(f"{name}: {part}, {side}", file=sys.stderr)
            lines.append({"model": name, "work": part, "by": side, **measured(name, part, side, args)})
    device = "cpu" if args.device == "cpu" else torch.cuda.get_device_name()
    command = " ".join(["python -m benchmarks.gpu", *(argv if argv is not None else sys.argv[1:])])
    result = {"command": command, "device": device, "batch": args.batch, "repeats": args.repeats, "tiny": args.tiny,
              "lines": lines, **_lib.machine()}  # fmt: skip
    _lib.write(result, page(result), args.output)
    failed = [line for line in lines if "error" in line]
    over = [line for line in lines if line["work"] == "vizer" and (line.get("peak_gb") or 0) > FITS]
    return int(bool(failed or over))


if __name__ == "__main__":
    sys.exit(main())
