"""Stage 1 of `captune har` on a split of the photos, by the command's own functions."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from datasets import Image
from transformers import set_seed

from captune.data import load_images
from captune.models.captioner import Captioner
from captune.models.prefix_captioner import assemble
from captune.training.har.config import HARConfig
from captune.training.sft import train as sft
from captune.utils.files import replace_file, replacing_folder
from studies._lib.train import clean, once

SPLITS = json.loads(Path(__file__).with_name("splits.json").read_text(encoding="utf-8"))


def split(data: Path, name: str, work: Path, most: int | None = None) -> str:
    """Write the captions of a split's images, of at most so many, and return them as a source of captune.

    Raises:
        SystemExit: an image of the split is not in the data, or the images are not in one folder.
    """
    rows = load_images(str(data))
    index = {image_id: i for i, image_id in enumerate(rows["image_id"])}
    names = {image_id.rsplit(".", 1)[0]: image_id for image_id in index}
    lines, lacking, folders = [], [], set()
    paths = rows.cast_column("image", Image(decode=False))
    for image_id in SPLITS[name][:most]:
        found = image_id if image_id in index else names.get(image_id.rsplit(".", 1)[0])
        if found is None:
            lacking.append(image_id)
            continue
        row = paths[index[found]]
        image = Path(row["image"]["path"])
        folders.add(str(image.parent))
        lines.append({"image": image.name, "image_id": image_id, "references": row["references"]})
    if lacking:
        raise SystemExit(f"{data} lacks {len(lacking)} images of the split {name}, the first is {lacking[0]}")
    file = work / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, "".join(json.dumps(line) + "\n" for line in lines))
    if len(folders) > 1:
        raise SystemExit(f"the photos of {data} lie in {len(folders)} folders; put them into one")
    return f"{file}?images={folders.pop()}"


def train(
    parts: dict[str, Any], settings: dict[str, Any], images: str, shown: str, seed: int, run: Path
) -> tuple[Captioner, float]:
    """The captioner after stage 1 and the processor seconds that it took; a run that was cut is resumed."""
    config = HARConfig(output=run, images=images, eval_images=shown, seed=seed, **{**parts, **settings})
    stage = config.stage_1()
    parts_folder = Path(stage.model)
    if not (parts_folder / "processor_config.json").is_file():
        set_seed(seed)
        names = ("image_encoder", "language_model", "num_prefix_tokens", "image_feature", "whole_image", "begin_token")
        model, processor = assemble(**{name: getattr(config, name) for name in names})
        with replacing_folder(parts_folder) as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)

    def align() -> float:
        started = time.process_time()
        sft.run(stage)
        clean(run)
        return round(time.process_time() - started, 1)

    seconds = once(run / "seconds.json", align)
    return Captioner.load(parts_folder, adapter=stage.output / "adapter"), seconds
