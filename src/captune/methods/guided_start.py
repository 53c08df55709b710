"""A zero-label start: a captioner learns to say at once what guidance makes it say (self-training).

Classifier-free guidance (`captune.decoding.cfg`) asks a captioner what is peculiar to an image. A base that sees more
than its habits say gives much better captions under it, without any training; but each word takes two passes, and there
it ends. So some unlabelled images are captioned under guidance once, and the captioner learns those captions by maximum
likelihood (`captune.methods.sft`). Whatever is trained next, a mapper on its samples or a reward, starts from a
captioner whose samples are about their images.

No label is used at any time. False captions are learned with the true ones: what comes out is about as good as what
guidance says, and no better.

    captune vizer --preset guided ...        the preset `captune`, begun so
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from captune.caption_job import caption_source
from captune.captioner import Captioner
from captune.data import read_jsonl
from captune.decoding import load_decoder
from captune.methods.sft import SFTConfig, SFTTrainer
from captune.methods.training import TrainingConfig
from captune.runs import RunDir


def learn_guided(captioner: Captioner, config: Any, run_dir: RunDir, images: Any) -> None:
    """Trains the captioner's adapter on its own guided captions; a finished start is kept in `guided/adapter`.

    :param config: a `ViZerConfig`: `guidance`, `guided_images`, `guided_steps`.
    :param images: the training images; the first `guided_images` of them are captioned.
    :raises ValueError: where guidance leaves no caption.
    """
    output = run_dir.path / "guided"
    if (output / "adapter" / "adapter_model.safetensors").is_file():
        captioner.load_adapter_weights(output / "adapter")
        return
    own = RunDir(output).start({"guidance": config.guidance}, resume=True, overwrite=True)
    common = {field.name: getattr(config, field.name) for field in fields(TrainingConfig)}
    stage = SFTConfig(**{**common, "output": output, "max_steps": config.guided_steps, "learning_rate": 1e-3,
                         "gradient_accumulation_steps": 2 * config.gradient_accumulation_steps})  # fmt: skip
    file = output / "captions.jsonl"
    with captioner.disable_adapter():
        caption_source(
            captioner, config.images, file, limit=min(config.guided_images, len(images)),
            decoder=load_decoder(f"cfg:{config.guidance:g}"), max_new_tokens=config.max_new_tokens,
        )  # fmt: skip
    said = {row["image_id"]: row["caption"] for row in read_jsonl(file)}
    kept = [i for i, image_id in enumerate(images["image_id"]) if said.get(image_id, "").strip()]
    if not kept:
        raise ValueError(f"under guidance {config.guidance:g} the captioner said nothing of {len(said)} images; try "
                         "another --guidance, or 0 to begin without it")  # fmt: skip
    pairs = images.select(kept)
    columns = [name for name in ("references",) if name in pairs.column_names]
    captions = [[said[image_id]] for image_id in pairs["image_id"]]
    pairs = pairs.remove_columns(columns).add_column("references", captions)
    with captioner.share_vision():
        SFTTrainer.fit(captioner, pairs, stage, own)
    captioner.model.eval()
    captioner.save_adapter(output / "adapter")
