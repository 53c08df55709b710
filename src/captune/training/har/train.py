"""HAR, the hybrid alignment and refinement pipeline: a captioner out of two frozen parts, in two stages.

    stage 1, alignment     maximum likelihood, equation 1: the projector W_proj, and the language model by LoRA or whole
    stage 2, refinement    self-critical training on a reward, equation 2 (`captune.training.scst`)

The captioner (`captune.models.prefix_captioner`): an image encoder, an MLP projector to a soft prefix, a causal
language model. Each stage is a run of its own, so that a killed pipeline resumes where it was: OUTPUT/parts, the
captioner as assembled; OUTPUT/mle, stage 1; OUTPUT/captioner, its result merged, the model of stage 2 and what KL is
to; OUTPUT/scst, stage 2; OUTPUT/adapter, its adapter for OUTPUT/captioner.

The paper does not say whether the projector learns in stage 2; here it is frozen, so that images are encoded once. It
does not state k, the projector's depth or width, learning rates or steps; the defaults are ours (docs/methods/har.md).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from transformers import set_seed

from captune.data import load_images
from captune.data.columns import content_digest
from captune.errors import RunError
from captune.models.captioner import Captioner
from captune.models.prefix_captioner import assemble
from captune.runs.checkpoints import newest
from captune.runs.run_dir import RunDir
from captune.scorers import check_needs, load_reward
from captune.training.har.config import HARConfig
from captune.training.lifecycle import claim_run, load_training_images, write_report
from captune.training.monitor.setup import check_watch
from captune.training.resume import IMAGES, read_accumulated
from captune.training.scst.train import run as refine
from captune.training.sft.train import read_texts
from captune.training.sft.train import run as align
from captune.utils import processes
from captune.utils.files import replacing_folder

PARTS = ("parts", "mle", "captioner", "scst")
OF_STAGE_2 = {field.name for field in fields(HARConfig) if field.metadata.get("group") == "stage 2"}
MADE_OF = "made_of.json"  # in parts


def run(config: HARConfig) -> RunDir:
    """Run both stages; what is finished is not done again, unless `overwrite` is set."""
    refined = RunDir(config.output / "scst")
    begun = refined.finished or newest(refined.path) is not None
    may_change = () if begun else OF_STAGE_2
    run_dir = claim_run(config, "har", extended_by=("scst_steps",), may_change=may_change, parts=PARTS)
    if run_dir.done:
        return run_dir
    if not (run_dir.resumes and begun):
        (reward := load_reward(config.reward)).check()  # of stage 2, before stage 1 begins
        images = load_images(config.images, limit=config.limit, decode=False)
        check_needs([reward], dict.fromkeys(images.column_names or (), ()), 0)  # whether the columns are there
        check_watch(config, reward)
    if not run_dir.resumes:
        read_texts(config.texts)  # of stage 1, before the parts are loaded
    parts, merged = run_dir.path / "parts", run_dir.path / "captioner"
    mle = RunDir(run_dir.path / "mle")
    model = processor = None
    if run_dir.resumes and _saved(parts):
        processes.on_first(_check_parts, config, parts, mle)
    else:
        set_seed(config.seed)
        model, processor = assemble(
            config.image_encoder,
            config.language_model,
            num_prefix_tokens=config.num_prefix_tokens,
            image_feature=config.image_feature,
            whole_image=config.whole_image,
            begin_token=config.begin_token,
        )
    run_dir.begin()
    if model is not None:
        processes.on_first(_save, model, processor, parts, config)
    if not mle.finished:
        align(config.stage_1())
    elif (last := newest(mle.path)) and newest(refined.path) is None:  # killed between the stages
        read_accumulated(last, {IMAGES: content_digest(load_training_images(config.stage_1(), references=True))})
    processes.on_first(_merge, config, parts, mle, merged)
    if not refined.finished or refined.config["max_steps"] != config.scst_steps:
        stage_2 = config.stage_2()
        refine(stage_2 if begun else replace(stage_2, overwrite=True))  # what has no checkpoint is not kept
    processes.on_first(_finish, config, run_dir, mle, refined, merged)
    return run_dir


def _merge(config: HARConfig, parts: Path, mle: RunDir, merged: Path) -> None:
    if not _saved(merged):
        captioner = Captioner.load(parts, adapter=mle.adapter, dtype=config.dtype, device="cpu")
        captioner.merge_adapter()
        _save(captioner.core, captioner.processor, merged)


def _finish(config: HARConfig, run_dir: RunDir, mle: RunDir, refined: RunDir, merged: Path) -> None:
    with replacing_folder(run_dir.adapter) as folder:
        shutil.copytree(refined.adapter, folder, dirs_exist_ok=True)
    # stage 1 is judged as what stage 2 begins with, by captions as long: a gain of stage 2 is a gain over stage 1
    rows = [(mle, mle.scores()["rows"][0], "fresh projector", "other", "before stage 1")]
    begun, *ended = refined.scores()["rows"]
    rows.append((refined, begun, "maximum likelihood", "base", "after stage 1"))
    rows += [(refined, row, row["name"], row["role"], "after stage 2") for row in ended]
    for stage, row, name, role, note in rows:
        run_dir.add_scores(
            name,
            row["scores"],
            role=role,
            source=stage.scores().get("source"),
            captions=stage.path / row["captions"],
            note=note,
            **{key: row[key] for key in ("images_per_second", "trained_on", "rewarded") if key in row},
        )
    method = f"HAR, {config.image_encoder} + {config.language_model}: maximum likelihood, then SCST on {config.reward}"
    run_dir.finish(run_dir.card(method=method, base=str(merged), data=config.images))
    write_report(run_dir)


def _saved(folder: Path) -> bool:
    return (folder / "processor_config.json").is_file() or (folder / "preprocessor_config.json").is_file()


def _save(model: Any, processor: Any, folder: Path, config: HARConfig | None = None) -> None:
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        if config is not None:
            (temporary / MADE_OF).write_text(json.dumps(_made_of(config)), encoding="utf-8")


def _made_of(config: HARConfig) -> dict[str, str]:
    """Digests of the files of those parts that are folders, which may change; of the others nothing."""
    found = {}
    for what, name in (("image encoder", config.image_encoder), ("language model", config.language_model)):
        folder = Path(name).expanduser()
        digest = hashlib.sha256()
        for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        if any(folder.glob("*.safetensors")):
            found[what] = f"{name}@{digest.hexdigest()[:16]}"
    return found


def _check_parts(config: HARConfig, parts: Path, mle: RunDir) -> None:
    """Refuse folders that are other models now; one that is gone is not needed, nor any after stage 1."""
    file = parts / MADE_OF
    if mle.finished or not file.is_file():
        return
    then = json.loads(file.read_text(encoding="utf-8"))
    for what, now in _made_of(config).items():
        if then.get(what, now) != now:
            raise RunError(
                f"{parts} was made of another {what} ({then[what]} then, {now} now): put that back, pass --overwrite, "
                "or name another --output"
            )
