"""Builds storybook-clip, the contrastive image/text encoder: an ordinary `CLIPModel` with its `CLIPProcessor`.

Only pictures of storybook:clip are seen, a split that no captioner is trained on or tested on. Two stages on one CPU:

1. *Look*: the image side learns from the scenes what stands in each quarter, as stage 1 of `captune.storybook.train`,
   and which facts hold of the whole picture.
2. *Contrast*: symmetric InfoNCE (Radford et al. 2021, learnt temperature) between pictures and true captions, whole or
   partial. Every caption brings *hard negatives*: itself with one fact changed (`captune.storybook.changes`) or
   something that the web would say. A caption that is true of another picture of the batch is no negative for it.
"""

from __future__ import annotations

import json
import logging
import random
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from captune.storybook import draw as drawing
from captune.storybook.changes import CHANGES, changed, fact_vector, scene_vector, true_of
from captune.storybook.grammar import reference, references
from captune.storybook.noise import alt_text, descriptive
from captune.storybook.train import (
    IMAGE_SIZE,
    PATCH_SIZE,
    SUBKIND_NAMES,
    cell_labels,
    optimise,
    per_cell,
    relation_only,
    schedule,
    to_pixel_values,
)
from captune.storybook.world import BACKGROUNDS, COLOURS, KIND_NAMES, SIZES, Scene, random_for, sample_scene

logger = logging.getLogger(__name__)

SPLIT = "clip"
VOCABULARY = 512
MAX_TOKENS = 96
SPECIAL_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",  # must not get id 2, which `CLIPTextModel` takes for a legacy configuration
    "pad_token": "<|pad|>",
    "unk_token": "<|unk|>",
}
PREFIXES = ("a photo depicts ", "a photo of ", "")  # CLIPScore's, CLIP's, none
LABELS = (*(1 + len(names) for names in (KIND_NAMES, COLOURS, SIZES, SUBKIND_NAMES, KIND_NAMES, KIND_NAMES)), len(BACKGROUNDS))


@dataclass
class ClipConfig:
    """Every setting of the build; the defaults made the shipped model."""

    seed: int = field(default=0, metadata={"help": "seed of the weights and of the pictures drawn for training"})
    num_images: int = field(default=20_000, metadata={"help": "pictures drawn from storybook:clip"})
    look_steps: int = field(default=700, metadata={"help": "steps of stage 1"})
    steps: int = field(default=1800, metadata={"help": "steps of stage 2"})
    batch_size: int = field(default=128, metadata={"help": "pictures per step"})
    negatives: int = field(default=2, metadata={"help": "hard negatives per caption"})
    look_weight: float = field(default=0.1, metadata={"help": "weight of the stage 1 loss in stage 2"})
    look_lr: float = field(default=1.5e-3, metadata={"help": "peak learning rate of stage 1"})
    lr: float = field(default=1.5e-3, metadata={"help": "peak learning rate of stage 2"})
    width: int = field(default=128, metadata={"help": "width of both transformers and of the shared space"})
    vision_layers: int = field(default=4, metadata={"help": "layers of the image side"})
    text_layers: int = field(default=3, metadata={"help": "layers of the text side"})
    bf16: bool = field(default=True, metadata={"help": "matrix products in bfloat16: faster where the CPU has it"})
    validation: int = field(default=500, metadata={"help": "pictures of storybook:val to measure on"})


def build_tokenizer(seed: int = 0) -> Any:
    """A lower-casing byte-level BPE tokenizer with CLIP's conventions: <bos> text <eos>, padded on the right."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(f"{seed}/tokenizer")
    scenes = [sample_scene(SPLIT, seed, index) for index in range(2000)]
    texts = [PREFIXES[i % 3] + say(scene, rng) for i, scene in enumerate(scenes)]
    tokenizer.train_from_iterator([*texts, *(alt_text(scene, rng, scene) for scene in scenes)], trainer)
    bos, eos = SPECIAL_TOKENS["bos_token"], SPECIAL_TOKENS["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(t, tokenizer.token_to_id(t)) for t in (bos, eos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **SPECIAL_TOKENS, padding_side="right", model_max_length=MAX_TOKENS
    )


def build_processor(tokenizer: Any) -> Any:
    from transformers import CLIPImageProcessorPil, CLIPProcessor

    half = [0.5, 0.5, 0.5]
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size=side, image_mean=half, image_std=half
    )
    return CLIPProcessor(image_processor, tokenizer)


def build_model(tokenizer: Any, config: ClipConfig) -> Any:
    """An untrained CLIPModel."""
    from transformers import CLIPConfig, CLIPModel

    shared = {
        "hidden_size": config.width,
        "num_attention_heads": config.width // 32,
        "intermediate_size": 3 * config.width,
        "hidden_act": "gelu",
        "projection_dim": config.width,
    }
    vision = {"num_hidden_layers": config.vision_layers, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
    text = {
        "num_hidden_layers": config.text_layers,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    clip = CLIPConfig(vision_config=shared | vision, text_config=shared | text, projection_dim=config.width)
    model = CLIPModel._from_config(clip, attn_implementation="eager")  # sdpa's backward is slow on a CPU
    for table, std in (  # positions and words: the usual std of 0.02 is too small at this width
        (model.vision_model.embeddings.position_embedding, 0.1),
        (model.text_model.embeddings.position_embedding, 0.1),
        (model.text_model.embeddings.token_embedding, 0.3),
    ):
        nn.init.normal_(table.weight, std=std)
    return model


def draw_pictures(config: ClipConfig) -> tuple[list[Scene], np.ndarray]:
    """The training scenes, all of storybook:clip, and their pictures, (N, 64, 64, 3) uint8."""
    scenes = [sample_scene(SPLIT, config.seed, index) for index in range(config.num_images)]
    pictures = np.empty((len(scenes), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    for row, scene in enumerate(tqdm(scenes, desc="drawing", disable=None)):
        pictures[row] = np.asarray(drawing.draw(scene, IMAGE_SIZE))
    return scenes, pictures


def say(scene: Scene, rng: random.Random) -> str:
    """A true caption: a reference, a shorter or vaguer sentence, or one that leaves some of the things out."""
    style = rng.random()
    if style < 0.5:
        return reference(scene, rng)
    if style < 0.65 and len(scene.things) > 1:
        return relation_only(scene, rng)
    kept = rng.sample(scene.things, rng.randint(1, len(scene.things)))
    part = replace(scene, things=tuple(kept))
    return reference(part, rng) if style < 0.85 else descriptive(part, rng, clean=True)


def mislead(caption: str, scene: Scene, other: Scene, rng: random.Random) -> str:
    """A hard negative: the caption with one fact changed, or now and then what the web says under such pictures."""
    if rng.random() < 0.9:
        for what in rng.sample(CHANGES, len(CHANGES)):
            text = changed(caption, what, rng)
            if text is not None:
                return text
    return alt_text(scene, rng, other)


class Trainer:
    """The pictures, their facts, and the two losses."""

    def __init__(self, model: Any, tokenizer: Any, config: ClipConfig) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.scenes, self.pictures = draw_pictures(config)
        self.facts = np.stack([scene_vector(scene) for scene in self.scenes])
        self.cells = torch.from_numpy(np.stack([cell_labels(scene) for scene in self.scenes]))  # (N, 4, 6)
        self.places = torch.tensor([BACKGROUNDS.index(scene.background) for scene in self.scenes])
        self.heads = nn.ModuleList([nn.Linear(config.width, size) for size in LABELS])
        self.known = nn.Linear(config.width, self.facts.shape[1])  # from an embedding of either side to the facts in it
        self.rng = random.Random(f"{config.seed}/contrast")

    def see(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Image embeddings (B, D), not normalised, and the loss of stage 1 on the same pictures."""
        seen = self.model.vision_model(pixel_values=to_pixel_values(self.pictures[rows]))
        patches = seen.last_hidden_state[:, 1:]  # (B, 64, H), without the class token
        quarters = per_cell(patches)
        losses = [
            F.cross_entropy(head(quarters).flatten(0, 1), self.cells[rows, :, i].flatten())
            for i, head in enumerate(self.heads[:-1])
        ]
        losses.append(F.cross_entropy(self.heads[-1](patches.mean(dim=1)), self.places[rows]))
        embedding = self.model.visual_projection(seen.pooler_output)
        return embedding, torch.stack(losses).sum() + self.fact_loss(embedding, self.facts[rows])

    def fact_loss(self, embeddings: Tensor, facts: np.ndarray) -> Tensor:
        """Binary cross-entropy summed over the facts that a picture shows or a text states."""
        losses = F.binary_cross_entropy_with_logits(self.known(embeddings).float(), torch.from_numpy(facts), reduction="sum")
        return losses / len(facts)

    def read(self, texts: list[str]) -> Tensor:
        """(N, D) text embeddings, not normalised; texts of like length go together, so little is padding."""
        ids = self.tokenizer(texts).input_ids
        order = sorted(range(len(texts)), key=lambda i: len(ids[i]))
        parts = []
        for some in np.array_split(order, 4):
            tokens = self.tokenizer.pad({"input_ids": [ids[i] for i in some]}, return_tensors="pt")
            parts.append(self.model.text_projection(self.model.text_model(**tokens).pooler_output))
        return torch.cat(parts)[torch.tensor(order).argsort()]

    def draw_lots(self) -> list[int]:
        return [self.rng.randrange(len(self.scenes)) for _ in range(self.config.batch_size)]

    def look(self, step: int) -> Tensor:
        return self.see(self.draw_lots())[1]

    def contrast(self, step: int) -> Tensor:
        """Stage 2: captions first, then their hard negatives, B (1 + k) texts for B pictures."""
        rng, rows = self.rng, self.draw_lots()
        captions = [say(self.scenes[row], rng) for row in rows]
        for _ in range(self.config.negatives):
            captions += [
                mislead(caption, self.scenes[row], self.scenes[rng.randrange(len(self.scenes))], rng)
                for caption, row in zip(captions, rows, strict=False)
            ]
        stated = np.stack([fact_vector(caption) for caption in captions])
        truth = torch.from_numpy(true_of(stated, self.facts[rows]))
        texts = [rng.choice(PREFIXES) + caption + rng.choice(("", "", "", ".")) for caption in captions]
        said = self.read(texts)
        seen, look = self.see(rows)
        extra = look + self.fact_loss(said, stated)
        scale = self.model.logit_scale.clamp(max=4.6).exp()
        return info_nce(seen.float(), said.float(), scale, truth) + self.config.look_weight * extra


def info_nce(seen: Tensor, said: Tensor, scale: Tensor, truth: Tensor) -> Tensor:
    """Symmetric InfoNCE. Caption i < B belongs to picture i; captions from B on are negatives for the pictures.

    Args:
        seen: (B, D) image embeddings.
        said: (B + M, D) text embeddings.
        scale: the inverse temperature.
        truth: (B + M, B), whether a text is true of a picture: such pairs are no negatives.
    """
    n = len(seen)
    logits = scale * F.normalize(seen, dim=-1) @ F.normalize(said, dim=-1).T  # (B, B + M)
    target = torch.arange(n)
    excused = truth.T & ~F.pad(torch.eye(n, dtype=torch.bool), (0, len(said) - n))
    logits = logits.masked_fill(excused, -1e4)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, :n].T, target)) / 2


@torch.no_grad()
def embed(model: Any, processor: Any, *, images: list[Any] | None = None, texts: list[str] | None = None) -> Tensor:
    """(N, D) normalised float32 embeddings of images or of texts, through the processor as any user would."""
    items: list[Any] = (images if images is not None else texts) or []
    parts = []
    for start in range(0, len(items), 250):
        some = items[start : start + 250]
        if images is not None:
            pixels = processor.image_processor(some, return_tensors="pt").pixel_values
            parts.append(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output))
        else:
            tokens = processor.tokenizer(some, padding=True, truncation=True, return_tensors="pt")
            parts.append(model.text_projection(model.text_model(**tokens).pooler_output))
    return F.normalize(torch.cat(parts), dim=-1)


def measure(model: Any, processor: Any, n: int = 500, split: str = "val", seed: int = 91) -> dict[str, float]:
    """Retrieval, right against wrong picture, and the share of one-fact changes that lower the similarity."""
    scenes = [sample_scene(split, seed, index) for index in range(n)]
    said = [references(s, random_for(split, seed, i, "references")) for i, s in enumerate(scenes)]
    seen = embed(model, processor, images=[drawing.draw(scene, IMAGE_SIZE) for scene in scenes])
    texts = embed(model, processor, texts=[text for five in said for text in five])
    similarity = seen @ texts.T  # (n, 5 n)
    right = similarity[torch.arange(n).repeat_interleave(5), torch.arange(5 * n)]
    wrong = similarity[torch.arange(1, n + 1).remainder(n).repeat_interleave(5), torch.arange(5 * n)]
    figures = {
        "image to text R@1": float((similarity.argmax(1) // 5 == torch.arange(n)).float().mean()),
        "text to image R@1": float((similarity.argmax(0) == torch.arange(n).repeat_interleave(5)).float().mean()),
        "right against wrong picture AUC": float((right[:, None] > wrong[None]).float().mean()),
    }
    for what in CHANGES:
        rng = random.Random(f"{split}/{seed}/{what}")
        pairs = [(5 * i, changed(five[0], what, rng)) for i, five in enumerate(said)]
        kept = [(row, text) for row, text in pairs if text is not None]
        false = embed(model, processor, texts=[text for _, text in kept])
        rows = torch.tensor([row for row, _ in kept])
        figures[f"changed {what}"] = float((right[rows] > (seen[rows // 5] * false).sum(1)).float().mean())
    return {name: round(value, 4) for name, value in figures.items()}


def build(config: ClipConfig, output: Path) -> dict[str, Any]:
    """Trains the encoder and saves it, its processor and `build.json` (settings, seconds, figures) in `output`."""
    torch.set_flush_denormal(True)
    torch.manual_seed(config.seed)
    started = time.perf_counter()
    log: dict[str, Any] = {"config": vars(config), "seconds": {}}

    def lap(name: str) -> None:
        log["seconds"][name] = round(time.perf_counter() - started - sum(log["seconds"].values()), 1)

    tokenizer = build_tokenizer(config.seed)
    model = build_model(tokenizer, config)
    log["parameters"] = sum(p.numel() for p in model.parameters())
    trainer = Trainer(model, tokenizer, config)
    lap("drawing")
    parameters = [*model.parameters(), *trainer.heads.parameters()]
    stages = (("look", trainer.look, config.look_steps, config.look_lr), ("contrast", trainer.contrast, config.steps, config.lr))
    model.train()
    for name, loss_of, steps, lr in stages:
        losses = optimise(
            parameters,
            loss_of,
            steps=steps,
            lr=lr,
            factor=partial(schedule, steps=steps),
            name=name,
            bf16=config.bf16,
        )
        log[f"{name} loss"] = round(float(np.mean(losses[-50:])), 4)
        lap(name)
    model.eval()
    processor = build_processor(tokenizer)
    log["figures"] = measure(model, processor, config.validation)
    lap("measuring")
    model.save_pretrained(output)
    processor.save_pretrained(output)
    (output / "build.json").write_text(json.dumps(log, indent=1) + "\n")
    return log
