"""`rewrite`: images captioned again by a captioner, all of them or a share, the others as they were (RECAP).

RECAP (Segalis et al., 2023) fine-tunes a captioner on a few captions that people wrote, captions a noisy set with it,
and trains on the result: less difference between training texts and prompts, and more said in each. `model` with its
`adapter` is that captioner, `prompt` the style (short, long), `share` the mix of new and old, which the paper does not
publish. Captions are made as by `captune caption`, with the same engines and decoders.

The new caption stands in place of the image's first; its others leave, or stay with ``rest: keep``. Every caption that
is changed is recorded before and after, and the mean length of both is in the record: longer captions say more, right
and wrong, so that a comparison of training sets has to account for it.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from captune.curation.base import MOST_NAMED, Captions, Verdicts, Work, setting
from captune.errors import UsageError, redact
from captune.utils.files import replace_file

_SAID = ("model", "weights", "prompt", "generation", "decoder", "seed")  # of what a caption file depends on


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """Caption images again with a captioner, all of them or a share of them (RECAP)."""

    example = "captune curate rewrite storybook:train?caption=alt_text --model storybook --share 0.5 --output runs/new"
    model: str = setting("the captioner: a folder, a name on the hub, storybook, or a server: http://host:port/v1#name")
    adapter: str | None = setting("a PEFT adapter of it, such as runs/g/adapter", None, metavar="FOLDER")
    prompt: str | None = setting(
        "the text beside the image, which sets the style (default: the adapter's, else the family's)", None
    )
    decoder: str | None = setting("how captions are made, such as cfg:2.0 or best-of:8:clip", None, metavar="SPEC")
    engine: str | None = setting(
        "process, server or vllm (default: what the model implies); on the command line of this verb also ray, or "
        "ray:vllm",
        None,
        metavar="NAME",
    )
    requests: Annotated[int, Field(ge=1)] | None = setting("requests at a server at once (default: 16)", None)
    batch_size: Annotated[int, Field(ge=1)] = setting("images at a time", 32)
    max_new_tokens: Annotated[int, Field(ge=1)] | None = setting(
        "the longest caption (default: the model family's)", None
    )
    temperature: Annotated[float, Field(gt=0)] | None = setting(
        "sample at this temperature (default: do not sample)", None
    )
    share: Annotated[float, Field(gt=0, le=1)] = setting("the share of images that are captioned again", 1.0)
    rest: Literal["drop", "keep"] = setting("what becomes of the other captions of such an image", "drop")
    seed: int = setting("of the images that are chosen, and of sampling", 0)

    def __post_init__(self) -> None:
        from captune.decoding import DECODERS
        from captune.inference.engines import check_engine, pick_engine, ray_engine

        if ray_engine(self.engine)[0]:
            raise UsageError(
                "the engine of this step is what each worker holds; Ray shares the work of all steps: captune curate "
                "--engine ray"
            )
        if self.decoder is not None:
            DECODERS.canonical(self.decoder.strip().partition(":")[0])
        check_engine(
            pick_engine(self.engine, self.model),
            self.model,
            decoder=self.decoder,
            adapter=self.adapter,
            requests=self.requests,
        )

    def decide(self, captions: Captions, work: Work) -> Verdicts:
        """Return the verdicts."""
        verdicts = Verdicts(len(captions))
        first = captions.starts[:-1]
        rows = captions.rows[first]
        ids = captions.image_ids.take(rows).to_pylist()
        number = math.ceil(self.share * len(ids) - 1e-9)
        chosen = np.sort(sorted(range(len(ids)), key=lambda i: _draw(self.seed, ids[i]))[:number])
        made = self._caption(captions, rows[chosen], work, verdicts.notes)
        words: tuple[list[int], list[int]] = [], []
        dropped: list[int] = []
        for place in chosen.tolist():
            index = int(first[place])
            old, new = captions.texts(index, index + 1)[0], made.get(ids[place])
            if new is None:
                verdicts.keep(index, "the image could not be captioned: as it was")
                continue
            if not new.strip():
                verdicts.keep(index, "the captioner says nothing: as it was")
                continue
            if new == old:
                verdicts.keep(index, "the captioner says the same")
            else:
                verdicts.change(index, new, "captioned again")
            for side, text in zip(words, (old, new), strict=True):
                side.append(len(text.split()))
            if self.rest == "drop":
                dropped.extend(range(index + 1, int(captions.starts[place + 1])))
        verdicts.drop(np.array(dropped, dtype=np.int64), "its image is captioned again")
        if words[0]:
            verdicts.notes["mean words"] = {"before": float(np.mean(words[0])), "after": float(np.mean(words[1]))}
        return verdicts

    def _caption(self, captions: Captions, rows: np.ndarray, work: Work, notes: dict[str, Any]) -> dict[str, str]:
        """{image_id: its new caption}, and what made them in the notes."""
        from captune.data.parts import WINDOW
        from captune.inference.engines import pick_engine

        batches = pick_engine(self.engine, self.model) != "server"
        # of workers whole windows, so that images meet in the same batches as in one process
        size = WINDOW * self.batch_size if work.pool.shared and batches else len(rows)
        spans = [(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
        parts = [(f"recaptions-{a:09d}-{b:09d}.json", rows[a:b], b - a) for a, b in spans]
        make = _Recaption(self, captions, work.device)
        if work.pool.shared:
            work.share(make, parts, f"captioning by {redact(self.model)}")
        elif not (path := work.path(parts[0][0])).is_file():
            make.caption(path, rows, path.with_suffix(".jsonl"), work.progress)
        made: dict[str, str] = {}
        bad: list[Any] = []
        for name, *_ in parts:
            part = json.loads(work.path(name).read_text(encoding="utf-8"))
            made |= part["captions"]
            bad += part["bad"]
            notes["captioner"] = part["captioner"]
        if bad:
            notes["images that could not be captioned"] = bad[:MOST_NAMED]
            notes |= {"and not named": len(bad) - MOST_NAMED} if len(bad) > MOST_NAMED else {}
        return made


class _Recaption:
    """Captions parts of a set's images, in whatever process; each loads the captioner once."""

    def __init__(self, settings: Rewrite, captions: Captions, device: str | None) -> None:
        self.settings, self.captions, self.device = settings, captions, device

    def __reduce__(self) -> tuple[Any, ...]:
        return _Recaption, (self.settings, self.captions, self.device)

    @cached_property
    def captioner(self) -> Any:
        from captune.inference import engines

        settings = self.settings
        return engines.load_captioner(
            engines.pick_engine(settings.engine, settings.model),
            settings.model,
            adapter=settings.adapter,
            device=self.device,
            prompt=settings.prompt,
            requests=settings.requests,
        )

    def __call__(self, path: Path, rows: np.ndarray) -> None:
        """Write a part."""
        with tempfile.TemporaryDirectory(prefix="captune-") as folder:
            self.caption(path, rows, Path(folder) / "captions.jsonl", progress=False)

    def caption(self, path: Path, rows: np.ndarray, captions: Path, progress: bool) -> None:
        """Write a part; a caption file that is there is resumed."""
        from captune.data.captions import read_captions
        from captune.decoding import load_decoder
        from captune.inference.job import caption_source
        from captune.inference.settings import beside

        how = self.settings
        sampling: dict[str, Any] = (
            {} if how.temperature is None else {"do_sample": True, "temperature": how.temperature}
        )
        done = caption_source(
            self.captioner,
            self.captions.images.select(rows.tolist()),
            captions,
            batch_size=how.batch_size,
            seed=how.seed,
            progress=progress,
            decoder=None if how.decoder is None else load_decoder(how.decoder),
            max_new_tokens=how.max_new_tokens,
            **sampling,
        )
        settings = json.loads(beside(captions, "settings.json").read_text(encoding="utf-8"))
        part = {
            "captions": read_captions(captions) if done.done + done.skipped else {},
            "bad": done.bad,
            "captioner": {key: settings[key] for key in _SAID},
        }
        replace_file(path, json.dumps(part))


def _draw(seed: int, image_id: str) -> bytes:
    """What images are ordered by: random, and the same for an image whatever others there are."""
    return hashlib.sha256(f"{seed} {image_id}".encode("utf-8", "backslashreplace")).digest()
