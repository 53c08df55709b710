"""A captioner of photographs (EfficientNet-Lite2, SmolLM2-135M) beside plain loops, and where a step's time goes.

    python -m benchmarks.speed.photos [--images captions.csv] [--threads 2] [--parts har grpo caption profile] \
        [--repeats 8] [--output benchmarks/speed/photos]

Three ratios of the same work on the same weights in the same process; the sides take turns, who goes first alternates,
and the first turn is not counted. `cpu` is the processor's time, which other work disturbs less than the clock's.

- har: a step of HAR's stage 1 (16 images, 9 prefix tokens, LoRA r 16 and the projector) beside a loop of processor,
  PEFT, clipping and AdamW without captune; both losses must agree. "new images": the encoder runs in both. "cached":
  ours with --cache-features after the first pass, the loop as before.
- grpo: captune's GRPO beside trl's, 5 captions of each of 4 images, up to 16 and 24 tokens, images per second.
- caption: `Captioner.caption`, 16 at once, beside the model's `generate` image by image, 24 tokens; images per second.

- profile: where the processor's time of a step of GRPO (5 captions of 16 tokens of each of 8 images) and of 16 captions
  goes, and what it costs to open a photo and to prepare it, as it lies there and with 12 megapixels.

The captioner is fresh, so that its captions run to the limit on both sides. Images are any source with references;
the default, storybook's, is drawn, which changes no figure here: every image is resized to 260 pixels.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks import _lib
from benchmarks.speed.grpo_vs_trl import Probe
from captune.data import load_images, open_image
from captune.data.columns import undecoded
from captune.data.images import read_image
from captune.models.captioner import Captioner
from captune.models.families import lora_targets
from captune.models.prefix_captioner import assemble
from captune.scorers import load_scorer
from captune.training.grpo.trainer import CaptionGRPOTrainer
from captune.training.sft.config import SFTConfig
from captune.training.sft.train import SFTTrainer
from captune.training.trainer import training_arguments

RANK, ALPHA, TOKENS, G = 16, 32, 24, 5
PARTS = ("har", "grpo", "caption", "profile")
BARS = {"har": 1.1, "grpo": 0.5, "caption": 0.2}  # captune's seconds by the other's, at most
LENGTHS = (16, 24)  # tokens of a caption in GRPO
Timed = tuple[float, float]  # seconds: wall, cpu


def fresh() -> Captioner:
    torch.manual_seed(0)
    model, processor = assemble("efficientnet-lite2", "smollm2-135m", num_prefix_tokens=9, image_feature="patches")
    return Captioner(model, processor, name="photos")


def timed(step: Callable[[], Any]) -> tuple[Timed, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = step()
    return (time.perf_counter() - wall, time.process_time() - cpu), found


def turns(sides: dict[str, Callable[[int], Any]], repeats: int) -> tuple[dict[str, list[Timed]], dict[str, list[Any]]]:
    times: dict[str, list[Timed]] = {side: [] for side in sides}
    results: dict[str, list[Any]] = {side: [] for side in sides}
    for turn in range(repeats + 1):
        for side in list(sides) if turn % 2 else reversed(list(sides)):
            seconds, found = timed(lambda side=side, turn=turn: sides[side](turn))
            if turn:
                times[side].append(seconds)
                results[side].append(found)
    return times, results


def ratio(times: dict[str, list[Timed]], first: str, second: str) -> dict[str, Any]:
    """Seconds of the first by those of the second: medians, and the median and quartiles over the pairs of a turn."""
    found: dict[str, Any] = {}
    for index, kind in enumerate(("wall", "cpu")):
        medians = {side: statistics.median(step[index] for step in times[side]) for side in (first, second)}
        pairs = [a[index] / b[index] for a, b in zip(times[first], times[second], strict=True)]
        quartiles = statistics.quantiles(pairs, n=4) if len(pairs) > 1 else pairs * 3
        found[kind] = {
            "seconds": {side: round(value, 4) for side, value in medians.items()},
            "ratio": round(quartiles[1], 3),
            "quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
        }
    return found


# -- a step of HAR's stage 1


class Ours:
    def __init__(self, scratch: Path, learning_rate: float, *, cached: bool) -> None:
        self.captioner = captioner = fresh()
        torch.manual_seed(1)
        captioner.make_trainable(connector=True, r=RANK, alpha=ALPHA, dropout=0.0)
        config = SFTConfig(model="-", output=scratch, images="given", device="cpu", learning_rate=learning_rate)
        self.trainer = SFTTrainer(captioner, [0], training_arguments(config))
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = 1
        self.cached, self.memo = cached, captioner.share_vision(alone=cached)

    def step(self, rows: list[dict[str, Any]]) -> float:
        if not self.cached:
            self.memo.clear()
        loss = self.trainer.training_step(self.trainer.model, rows)
        torch.nn.utils.clip_grad_norm_([p for p in self.captioner.model.parameters() if p.requires_grad], 1.0)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()
        return loss.item()


class Plain:
    """A loop as anyone writes it."""

    def __init__(self, learning_rate: float) -> None:
        built = fresh()
        self.processor, self.tokenizer = built.processor, built.tokenizer
        torch.manual_seed(1)
        targets = lora_targets(built.core, built.family)
        settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": targets, "modules_to_save": ["model.projector"]}
        self.model = get_peft_model(built.core, LoraConfig(**settings)).train()
        self.learned = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learned, lr=learning_rate, weight_decay=0.01)

    def step(self, rows: list[dict[str, Any]]) -> float:
        prompt, end = self.processor.image_token + "\n", self.tokenizer.eos_token
        texts = [prompt + row["references"][0].strip() + end for row in rows]
        images = [[row["image"].convert("RGB")] for row in rows]
        batch = self.processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, : self.processor.num_prefix_tokens + 1] = -100
        loss = self.model(**batch, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learned, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def har(rows: list[dict[str, Any]], repeats: int, scratch: Path, size: int = 16) -> dict[str, Any]:
    batches = [rows[at : at + size] for at in range(0, len(rows), size)]
    found: dict[str, Any] = {"images": size}
    for name, cached in (("new images", False), ("cached", True)):
        ours, plain = Ours(scratch, 1e-4, cached=cached), Plain(1e-4)
        if cached:
            for batch in batches:
                ours.captioner.image_features([row["image"] for row in batch])
        sides = {
            "captune": lambda turn, ours=ours: ours.step(batches[turn % len(batches)]),
            "plain": lambda turn, plain=plain: plain.step(batches[turn % len(batches)]),
        }
        times, losses = turns(sides, repeats)
        apart = max(abs(a - b) for a, b in zip(losses["captune"], losses["plain"], strict=True))
        found[name] = {**ratio(times, "captune", "plain"), "losses_apart": round(apart, 6)}
        if not cached:
            found["parts"] = parts(ours, batches[0])
            if apart > 1e-3:
                raise SystemExit(f"the two sides do not compute the same: their losses differ by {apart}")
    return found


def parts(ours: Ours, batch: list[dict[str, Any]]) -> dict[str, float]:
    """Processor seconds of a step's parts."""
    captioner, images = ours.captioner, [row["image"] for row in batch]
    texts = [row["references"][0] for row in batch]
    found: dict[str, float] = {}
    (_, found["images and tokens"]), prepared = timed(lambda: captioner.prepare(images, texts))
    tower: Any = captioner.core.model
    (_, found["image encoder"]), _ = timed(lambda: tower.vision_tower(pixel_values=prepared["pixel_values"]))
    prepared.pop("caption_mask")
    captioner.image_features(images)
    (_, found["forward"]), output = timed(lambda: captioner.model(**prepared, use_cache=False))
    (_, found["backward"]), _ = timed(lambda: output.loss.backward())
    (_, found["AdamW"]), _ = timed(ours.trainer.optimizer.step)
    ours.trainer.optimizer.zero_grad()
    return {name: round(seconds, 3) for name, seconds in found.items()}


# -- a step of GRPO


def grpo_steps(captioner: Captioner, side: str, data: datasets.Dataset, scratch: str, **settings: Any) -> list[Timed]:
    """The steps of a captioner with LoRA on images, by captune or by trl, but for the first."""
    args = GRPOConfig(
        output_dir=scratch, beta=0.0, loss_type="dapo", learning_rate=1e-5, report_to=[], gradient_checkpointing=False,
        save_strategy="no", remove_unused_columns=False, seed=0, disable_tqdm=True, logging_steps=100, **settings,
    )  # fmt: skip
    reward: Any = load_scorer("length")
    if side == "captune":
        trainer: Any = CaptionGRPOTrainer(captioner, data, [(reward, 1.0)], args)
    else:
        asked = data.add_column("prompt", [[{"role": "user", "content": captioner.prompt}]] * len(data))
        trainer = GRPOTrainer(
            captioner.model, [reward], args, train_dataset=asked, processing_class=captioner.processor
        )
    probe = Probe()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(probe)
    trainer.train()
    return probe.steps[1:]


def grpo(rows: list[dict[str, Any]], repeats: int, scratch: Path, size: int = 4) -> dict[str, Any]:
    """Both sides at two lengths; the captions of photographs have about 13 tokens. FLOPs are those of a first step."""
    columns = [{"image": row["image"], "image_id": row["image_id"]} for row in rows[: size * (repeats + 1)]]
    data = datasets.Dataset.from_list(columns)
    found: dict[str, Any] = {"images": size, "captions_per_image": G}
    for tokens in LENGTHS:
        settings = {"per_device_train_batch_size": size * G, "num_generations": G, "max_completion_length": tokens,
                    "use_cpu": True, "bf16": False}  # fmt: skip
        times: dict[str, list[Timed]] = {}
        flops: dict[str, int] = {}
        for side in ("captune", "trl"):
            captioner = fresh()
            captioner.add_lora(RANK, ALPHA, 0.0)
            steps = partial(grpo_steps, captioner, side, data, str(scratch), **settings)
            flops[side] = _lib.counted(lambda steps=steps: steps(max_steps=1))
            times[side] = steps(max_steps=repeats + 1)
        found[f"{tokens} tokens"] = {**ratio(times, "captune", "trl"), "flops": flops,
                                     "flops_ratio": round(flops["captune"] / flops["trl"], 3)}  # fmt: skip
    return found


# -- captioning


def caption(rows: list[dict[str, Any]], repeats: int, size: int = 16) -> dict[str, Any]:
    captioner = fresh()
    images = [(row["image_id"], row["image"]) for row in rows[:size]]
    model: Any = captioner.core
    prompt, processor = captioner.prompt_text(), captioner.processor
    settings = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": captioner.tokenizer.pad_token_id}

    def one_by_one(turn: int) -> dict[str, str]:
        found = {}
        for image_id, image in images:
            batch = processor(text=[prompt], images=[[image.convert("RGB")]], return_tensors="pt")
            with torch.no_grad():
                ids = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
            found[image_id] = captioner.decode(ids)[0]
        return found

    def batched(turn: int) -> dict[str, str]:
        return dict(captioner.caption(images, batch_size=size, progress=False, max_new_tokens=TOKENS))

    times, captions = turns({"captune": batched, "one by one": one_by_one}, repeats)
    both = zip(captions["captune"], captions["one by one"], strict=True)
    same = statistics.mean(a[name] == b[name] for a, b in both for name in a)
    return {
        "images": len(images),
        **ratio(times, "captune", "one by one"),
        "equal_captions": round(same, 3),
    }


# -- where the time goes


class Spent:
    """Processor seconds of functions, without those of others of them that they call."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    def watch(self, owner: Any, function: str, part: str) -> None:
        original = getattr(owner, function)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            try:
                (_, spent), found = timed(lambda: original(*args, **kwargs))
            finally:
                inner = self._inner.pop()
            self.seconds[part] += spent - inner
            if self._inner:
                self._inner[-1] += spent
            return found

        setattr(owner, function, watched)

    def shares(self) -> dict[str, float]:
        total = sum(self.seconds.values())
        return {name: round(seconds / total, 3) for name, seconds in self.seconds.items()}


def profile(source: str, rows: list[dict[str, Any]], repeats: int, scratch: Path) -> dict[str, Any]:
    return {
        "grpo": profile_grpo(rows, repeats, scratch),
        "caption": profile_caption(rows, repeats),
        "photo": profile_photo(source),
        "load": _lib.machine()["load"],
    }


def profile_grpo(rows: list[dict[str, Any]], repeats: int, scratch: Path, size: int = 8) -> dict[str, float]:
    captioner = fresh()
    captioner.add_lora(RANK, ALPHA, 0.0)
    columns = [{"image": row["image"], "image_id": row["image_id"]} for row in rows]
    args = GRPOConfig(
        output_dir=str(scratch), beta=0.0, report_to=[], gradient_checkpointing=False, save_strategy="no", seed=0,
        remove_unused_columns=False, disable_tqdm=True, use_cpu=True, bf16=False, max_steps=repeats,
        per_device_train_batch_size=size * G, num_generations=G, max_completion_length=LENGTHS[0],
    )  # fmt: skip
    reward: Any = load_scorer("length")
    trainer: Any = CaptionGRPOTrainer(captioner, datasets.Dataset.from_list(columns), [(reward, 1.0)], args)
    trainer.remove_callback(PrinterCallback)
    spent = Spent()
    tower: Any = captioner.core.model
    spent.watch(trainer, "training_step", "reward, advantages and all else")
    spent.watch(trainer, "compute_loss", "forward with gradient")
    spent.watch(trainer.accelerator, "backward", "backward")
    spent.watch(captioner.core, "generate", "sampling")
    spent.watch(tower.vision_tower, "forward", "image encoder")
    trainer.train()
    return spent.shares()


def profile_caption(rows: list[dict[str, Any]], repeats: int, size: int = 16) -> dict[str, float]:
    captioner = fresh()
    spent = Spent()
    core: Any = captioner.core
    spent.watch(captioner, "prepare", "images and tokens")
    spent.watch(core, "generate", "language model but for its head")
    spent.watch(core.lm_head, "forward", "head of 49,153 words")
    spent.watch(core.model.vision_tower, "forward", "image encoder")
    for _ in range(repeats):
        captioner.generate([row["image"] for row in rows[:size]], max_new_tokens=TOKENS)
    return spent.shares()


def profile_photo(source: str, number: int = 16) -> dict[str, Any]:
    """Processor milliseconds a photo: of those of the source, where they are files, and of 12 megapixels of them."""
    images = undecoded(load_images(source, limit=number))
    if not isinstance(images.features["image"], datasets.Image):
        return {}
    files = [read_image(row["image"], row["image_id"]) for row in images]
    large = io.BytesIO()
    tiles, sheet = [open_image(file) for file in files], Image.new("RGB", (4000, 3000))
    for place in range(20 * 15):  # as fine as a photo, where an enlarged one would be smooth
        sheet.paste(tiles[place % len(tiles)].resize((200, 200)), (place % 20 * 200, place // 20 * 200))
    sheet.save(large, "JPEG", quality=90)
    processor = fresh().processor.image_processor
    found: dict[str, Any] = {"pixels": statistics.median(open_image(file).width for file in files)}
    for name, given in (("as given", files), ("12 megapixels", [large.getvalue()] * 4)):
        (_, opening), opened = timed(lambda given=given: [open_image(file) for file in given])
        (_, preparing), _ = timed(lambda opened=opened: [processor(images=[[image]]) for image in opened])
        found[name] = {what: round(1000 * seconds / len(given), 1) for what, seconds in
                       (("opening", opening), ("preparing", preparing))}  # fmt: skip
    return found


def table(result: dict[str, Any]) -> str:
    lines = [
        "# A captioner of photographs beside plain loops",
        "",
        f"EfficientNet-Lite2 and SmolLM2-135M, {result['threads']} threads of {result['cores']} cores, load "
        f"{result['load']}, {result['repeats']} turns; torch {result['torch']}, trl {result['trl']}. Made by "
        f"`python -m benchmarks.speed.photos --threads {result['threads']} --repeats {result['repeats']}`; its head "
        "says what is measured.",
        "",
        "| work | captune, s | beside it, s | ratio (quartiles) | ratio, processor | at most | reached |",
        "|---|---:|---:|---|---:|---:|---|",
    ]
    kinds = [
        ("har", "new images", "a plain loop"),
        ("har", "cached", "a plain loop"),
        *(("grpo", f"{tokens} tokens", "trl") for tokens in LENGTHS),
        ("caption", "", "one at a time"),
    ]
    for part, kind, other in kinds:
        if part in result:
            found = result[part][kind] if kind else result[part]
            wall = found["wall"]
            ours, theirs = wall["seconds"].values()
            name = f"{part}, {kind}" if kind else part
            lines.append(
                f"| {name}, {result[part]['images']} images, beside {other} | {ours:.2f} | "
                f"{theirs:.2f} | {wall['ratio']} ({wall['quartiles'][0]} to {wall['quartiles'][1]}) | "
                f"{found['cpu']['ratio']} | {BARS[part]} | {'yes' if wall['ratio'] <= BARS[part] else 'no'} |"
            )
    if "grpo" in result:
        ratios = [f"{result['grpo'][f'{tokens} tokens']['flops_ratio']} ({tokens} tokens)" for tokens in LENGTHS]
        lines += ["", f"FLOPs of a GRPO step, captune's by trl's: {', '.join(ratios)}. The prompt has "
                  "a dozen tokens and the encoder is small, so that there is little to share."]  # fmt: skip
    if "har" in result:
        seconds = ", ".join(f"{name} {value:.2f}" for name, value in result["har"]["parts"].items())
        lines += ["", f"Where the processor seconds of a HAR step go: {seconds}."]
    if "profile" in result:
        found = result["profile"]
        for what, name in (("a step of GRPO with 8 images", "grpo"), ("16 captions of 24 tokens", "caption")):
            shares = ", ".join(f"{part} {share:.0%}" for part, share in found[name].items())
            lines += ["", f"Of the processor seconds of {what} (load {found['load']}): {shares}."]
        for name in ("as given", "12 megapixels") if found["photo"] else ():
            own = found["photo"][name]
            wide = f" ({found['photo']['pixels']:.0f} pixels wide)" if name == "as given" else ""
            lines += ["", f"A photo, {name}{wide}: {own['opening']} ms to open, {own['preparing']} ms to prepare."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="storybook:val")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, help="writes OUTPUT.json and OUTPUT.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    rows = [{**row, "references": row["references"][:1]} for row in load_images(args.images, limit=64)]
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if "har" in args.parts:
            measured["har"] = har(rows, args.repeats, Path(scratch))
        if "grpo" in args.parts:
            measured["grpo"] = grpo(rows, args.repeats, Path(scratch))
        if "caption" in args.parts:
            measured["caption"] = caption(rows, args.repeats)
        if "profile" in args.parts:
            measured["profile"] = profile(args.images, rows, min(args.repeats, 3), Path(scratch))
    stamp = {"repeats": args.repeats, **_lib.machine()}
    if args.output and (file := args.output.with_suffix(".json")).is_file():  # parts that were not measured now
        known = json.loads(file.read_text())
        measured = {part: known[part] for part in PARTS if part in known} | measured
        if args.parts == ["profile"]:  # which says its own load
            stamp = {name: value for name, value in known.items() if name not in PARTS}
    result = {**measured, **stamp}
    _lib.write(result, table(result), args.output)


if __name__ == "__main__":
    main()
