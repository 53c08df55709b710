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
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from captune.curation.base import Captions, Verdicts, Work, setting
from captune.errors import UsageError

_SAID = ("model", "weights", "prompt", "generation", "decoder", "seed")  # of what a caption file depends on


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """Caption images again with a captioner, all of them or a share of them (RECAP)."""

    example = "captune curate rewrite storybook:train?caption=alt_text --model storybook --share 0.5 --output runs/new"
    model: str = setting("the captioner: a folder, a name on the hub, storybook, or a server: http://host:port/v1#name")
    adapter: str | None = setting("a PEFT adapter of it, such as runs/g/adapter", None, metavar="FOLDER")
    prompt: str | None = setting("the text beside the image, which sets the style (default: the model family's)", None)
    decoder: str | None = setting("how captions are made, such as cfg:2.0 or best-of:8:clip", None, metavar="SPEC")
    engine: str | None = setting("process, server or vllm (default: what the model implies)", None, metavar="NAME")
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
                "rewrite captions in this process or at a server: for Ray, caption the images with captune caption "
                "--engine ray and curate the captions"
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
        from captune.data.captions import read_captions
        from captune.decoding import load_decoder
        from captune.inference.engines import load_captioner, pick_engine
        from captune.inference.job import caption_source
        from captune.inference.settings import beside

        path, report = work.path("recaptions.jsonl"), work.path("bad.json")
        if not report.is_file():
            captioner = load_captioner(
                pick_engine(self.engine, self.model),
                self.model,
                adapter=self.adapter,
                device=work.device,
                prompt=self.prompt,
                requests=self.requests,
            )
            sampling: dict[str, Any] = (
                {} if self.temperature is None else {"do_sample": True, "temperature": self.temperature}
            )
            done = caption_source(
                captioner,
                captions.images.select(rows.tolist()),
                path,
                batch_size=self.batch_size,
                workers=work.workers,
                seed=self.seed,
                progress=work.progress,
                decoder=None if self.decoder is None else load_decoder(self.decoder),
                max_new_tokens=self.max_new_tokens,
                **sampling,
            )
            report.write_text(json.dumps(done.bad))
        settings = json.loads(beside(path, "settings.json").read_text(encoding="utf-8"))
        notes["captioner"] = {key: settings[key] for key in _SAID}
        if bad := json.loads(report.read_text(encoding="utf-8")):
            notes["images that could not be captioned"] = bad[:1000]
        return read_captions(path)


def _draw(seed: int, image_id: str) -> bytes:
    """What images are ordered by: random, and the same for an image whatever others there are."""
    return hashlib.sha256(f"{seed} {image_id}".encode("utf-8", "backslashreplace")).digest()
