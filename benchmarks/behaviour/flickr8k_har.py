"""HAR on real photographs: Flickr8k, the shipped image encoder and a small language model that has read its captions.

    python -m benchmarks.behaviour.flickr8k_har FLICKR8K --work WORK [--output benchmarks/behaviour/flickr8k_har]

FLICKR8K holds `captions.txt` with its images, and `captions_text_only.csv`, captions of other images. A GPT-2 of two
million parameters is trained on those texts; then `captune har` puts it behind storybook-clip, which has seen drawings
of 64 x 64 pixels only, trains both stages on 400 photographs, and captions 300 others. It shows that every part works
on real files, not that so small a model is good.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from captune.cli.main import main as captune
from captune.storybook.language_model import LanguageModelConfig, build_model, encode, perplexity
from captune.storybook.tower import optimise, schedule
from captune.utils.files import read_jsonl

VOCABULARY, SHOWN = 3000, 10


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the texts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        clean_up_tokenization_spaces=False, model_max_length=128,
    )  # fmt: skip


def language_model(texts: list[str], folder: Path, steps: int) -> dict[str, Any]:
    """Trains and saves it, unless it is there; its figures on texts that it has not read."""
    random.Random(0).shuffle(texts)
    unseen, texts = texts[:500], texts[500:]
    if not (folder / "model.safetensors").is_file():
        torch.manual_seed(0)
        tokenizer = tokenizer_of(texts)
        config = LanguageModelConfig(width=192, steps=steps, batch_size=64)
        model = build_model(tokenizer, config)
        rng = random.Random(1)
        optimise(
            list(model.parameters()),
            lambda step: model.train()(**encode(tokenizer, rng.sample(texts, config.batch_size))).loss,
            steps=steps, lr=config.lr, factor=partial(schedule, steps=steps), name="language model", bf16=config.bf16,
        )  # fmt: skip
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "captions read": len(texts),
        "steps of 64": steps,
        "perplexity of a token, unseen captions": round(
            perplexity(model, AutoTokenizer.from_pretrained(folder), unseen), 2
        ),
    }


ROWS = {"base": "untrained projector", "supervised": "after stage 1 (MLE)", "SCST: cider": "after stage 2 (SCST)"}


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The rows of both stages' tables, with their captions."""
    found = []
    for stage, names in (("mle", ("base", "supervised")), ("scst", ("SCST: cider",))):
        known = {row["name"]: row for row in json.loads((run / stage / "scores.json").read_text())["rows"]}
        for name in names:
            captions = {r["image_id"]: r["caption"] for r in read_jsonl(run / stage / known[name]["captions"])}
            found.append({"row": ROWS[name], "scores": known[name]["scores"], "captions": captions})
    return found


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "# HAR on real photographs: Flickr8k", "",
        "Made by `python -m benchmarks.behaviour.flickr8k_har`; its head says what is trained on what. Stage 1 "
        f"{result['mle_steps']} steps, stage 2 {result['scst_steps']}, seed 7; 400 photographs to learn from, 300 "
        "others below. "
        "The language model: " + ", ".join(f"{name} {value}" for name, value in result["language model"].items()) + ".",
        "", "| | CIDEr-D | BLEU-4 | ROUGE-L | words | bad endings |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["rows"]:
        scores = row["scores"]
        cider, ci = scores["cider"]["values"]["cider"], scores["cider"]["interval"]["cider"]
        health = scores["health"]["values"]
        lines.append(
            f"| {row['row']} | {cider:.3f} [{ci[0]:.3f}, {ci[1]:.3f}] | {scores['bleu']['values']['bleu_4']:.3f} | "
            f"{scores['rouge']['values']['rouge']:.3f} | {health['length']:.1f} | {health['bad_endings']:.3f} |"
        )
    lines += ["", "The first photographs of the held-out part:", ""]
    for image in list(result["rows"][0]["captions"])[:SHOWN]:
        lines += [f"`{image}`", "", *(f"- {row['row']}: {row['captions'][image]}" for row in result["rows"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="keeps the language model and the run")
    parser.add_argument("--steps", type=int, default=1500, help="of the language model")
    parser.add_argument("--mle-steps", type=int, default=600)
    parser.add_argument("--scst-steps", type=int, default=60)
    parser.add_argument("--output", type=Path, help="writes this name with .json and .md")
    args = parser.parse_args()
    with (args.flickr8k / "captions_text_only.csv").open(newline="", encoding="utf-8") as file:
        texts = [row["caption"] for row in csv.DictReader(file)]
    figures = language_model(texts, args.work / "lm", args.steps)
    photographs, run = args.flickr8k / "captions.txt", args.work / "har"
    settings = {
        "images": f"{photographs}?n=400", "evaluation": f"{photographs}?skip=400&n=300",
        "language-model": args.work / "lm", "image-encoder": "storybook-clip", "mle-steps": args.mle_steps,
        "scst-steps": args.scst_steps, "seed": 7, "output": run,
    }  # fmt: skip
    flags = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    if not (run / "scst" / "scores.json").is_file() and (code := captune(["har", *flags])):
        raise SystemExit(code)
    result = {
        "language model": figures,
        "mle_steps": args.mle_steps,
        "scst_steps": args.scst_steps,
        "rows": rows_of(run),
    }
    if args.output:
        shown = [{**row, "captions": dict(list(row["captions"].items())[:SHOWN])} for row in result["rows"]]
        text = json.dumps({**result, "rows": shown}, indent=1, ensure_ascii=False)
        args.output.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
        args.output.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    print(markdown(result))


if __name__ == "__main__":
    main()
