"""captune's scorers as verl's custom reward function, and captune's image sources as verl's parquet.

verl is told a file, a function's name and keyword arguments; `reward` is any scorer or weighted sum of scorers:

    custom_reward_function.path=$(python -c "import captune.verl as v; print(v.__file__)")
    custom_reward_function.name=compute_score
    '+custom_reward_function.reward_kwargs.reward="grc:/data/corpus + qir:/data/corpus"'

What verl calls (verl 0.9.0, https://verl.readthedocs.io/en/latest/preparation/reward_function.html and
.../advance/reward_loop.html; the same since 0.4.0):

- `compute_score(data_source, solution_str, ground_truth, extra_info, **reward_kwargs)` once per caption: the reward
  managers naive and dapo before 0.7.0, and all managers of the reward loop, the default since. The loop calls it from
  many threads, and adds `reward_router_address` and `reward_model_tokenizer` where it runs a model. Since 0.7.1 the
  setting is `reward.custom_reward_function`; the older name is still read.
- `compute_score(data_sources, solution_strs, ground_truths, extra_infos, **reward_kwargs)` once per batch: the reward
  manager batch, before 0.7.0 (0.7.0: with `use_reward_loop=False`); here `compute_score_batch`.

The answer is a dict: verl takes its "score" as the reward and logs the other entries, here each scorer's raw value.

What a scorer reads comes from verl's row: the references from ground_truth (a list of captions, such a list as JSON, or
one caption), `image`, `image_id` and `scene` from extra_info. verl takes the column `images` out of the row before the
reward is called, so the image must be in extra_info too: a path, a file's bytes, {"bytes", "path"} or a PIL image.
`python -m captune.verl SOURCE OUT.parquet` writes such rows.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import json
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from captune.errors import MissingColumn
from captune.scorers import load_scorer
from captune.scorers.expression import Expression

logger = logging.getLogger(__name__)

PROMPT = "Describe this image in detail."
PLACES = {
    "references": "ground_truth (a list of captions, such a list as JSON, or one caption)",
    "image": "extra_info['image'] (a path, a file's bytes, {'bytes', 'path'} or a PIL image)",
    "image_id": "extra_info['image_id']",
    "scene": "extra_info['scene'] (a storybook scene's JSON)",
}


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, *,
    reward: str = "", unscorable: float | None = None, **ignored: Any,
) -> dict[str, float]:  # fmt: skip
    """One caption's reward.

    Args:
        solution_str: the caption.
        reward: a scorer or a weighted sum of scorers, as `captune grpo --reward` takes it.
        unscorable: the score of a caption that no scorer can judge (`attributes` where the references name none). verl
            knows no such caption and NaN would spoil its whole batch, so without this number it is an error. 0 is right
            where all captions of an image share the lot: their group then teaches nothing.

    Returns:
        "score", and each scorer's own value, unweighted.

    Raises:
        MissingColumn: the row lacks what a scorer needs; the message says where it is looked for.
    """
    from captune import verl  # by name: verl executes this file by its path, Ray then pickles what it finds by value

    return verl.scoring(reward).one(solution_str, ground_truth, extra_info, unscorable)


def compute_score_batch(
    data_sources: Sequence[str], solution_strs: Sequence[str], ground_truths: Sequence[Any],
    extra_infos: Sequence[Any], *, reward: str = "", unscorable: float | None = None, **ignored: Any,
) -> list[dict[str, float]]:  # fmt: skip
    """`compute_score` of a whole batch, for `reward_manager=batch`."""
    from captune import verl

    return verl.scoring(reward).many(solution_strs, ground_truths, extra_infos, unscorable)


class Scoring:
    """A reward in this process: its scorers are built once and used by one thread at a time.

    A caption costs far less among others than alone, so of the threads that wait for their caption's reward the first
    to get the scorers judges the captions of all.
    """

    def __init__(self, reward: str) -> None:
        scorer = load_scorer(reward)
        scorer.check()
        self.parts = scorer.parts if isinstance(scorer, Expression) else [(scorer, 1.0)]
        self.required_columns, self.optional_columns = scorer.required_columns, scorer.optional_columns
        self._lock = threading.Lock()
        self._waiting: SimpleQueue[tuple[str, dict[str, Any], Future[dict[str, float]]]] = SimpleQueue()

    def one(self, caption: str, truth: Any, info: Any, unscorable: float | None) -> dict[str, float]:
        mine: Future[dict[str, float]] = Future()
        self._waiting.put((caption, self.columns(truth, info), mine))
        with self._lock:
            if not mine.done():
                captions, rows, futures = zip(*(self._waiting.get() for _ in range(self._waiting.qsize())), strict=True)
                try:
                    for future, answer in zip(futures, self._score(captions, rows), strict=True):
                        future.set_result(answer)
                except BaseException as error:  # whatever it is, the others must not wait for ever
                    for future in futures:
                        future.set_exception(error)
        return scored(mine.result(), caption, unscorable)

    def many(
        self, captions: Sequence[str], truths: Sequence[Any], infos: Sequence[Any], unscorable: float | None
    ) -> list[dict[str, float]]:
        rows = [self.columns(truth, info) for truth, info in zip(truths, infos, strict=True)]
        with self._lock:
            answers = self._score(captions, rows)
        return [scored(answer, caption, unscorable) for answer, caption in zip(answers, captions, strict=True)]

    def columns(self, truth: Any, info: Any) -> dict[str, Any]:
        """What the scorers read of verl's row; raises MissingColumn."""
        found = dict(info or {}) | {"references": read_references(truth)}
        for need in self.required_columns:
            if found.get(need) is None:
                have = ", ".join(key for key, value in found.items() if value is not None) or "nothing"
                raise MissingColumn(
                    f"the reward needs {need} in {PLACES.get(need, f'extra_info[{need!r}]')}; the row has {have}"
                )
        return {
            name: found[name]
            for name in (*self.required_columns, *self.optional_columns)
            if found.get(name) is not None
        }

    def _score(self, captions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
        answers: list[dict[str, float]] = [{} for _ in captions]
        alike: dict[tuple[str, ...], list[int]] = {}  # a scorer's columns are whole: rows with other columns go apart
        for i, row in enumerate(rows):
            alike.setdefault(tuple(row), []).append(i)
        for names, places in alike.items():
            texts = [captions[i] for i in places]
            columns = {name: [rows[i][name] for i in places] for name in names}
            values = {part.name: part(texts, **columns) for part, _ in self.parts}
            for at, i in enumerate(places):
                answers[i] = {name: own[at] for name, own in values.items()}
                known = [w * answers[i][part.name] for part, w in self.parts if not math.isnan(answers[i][part.name])]
                answers[i]["score"] = sum(known) if known else math.nan  # as TRL adds up rewards, nansum
        return answers


def scored(answer: dict[str, float], caption: str, unscorable: float | None) -> dict[str, float]:
    """The answer with a number for a score; raises ValueError where there is none."""
    if not math.isnan(answer["score"]):
        return answer
    if unscorable is None:
        raise ValueError(
            f"no scorer can judge the caption {caption!r} of this image, and verl would spread NaN over the batch: "
            "leave such images out, or set +custom_reward_function.reward_kwargs.unscorable=0.0"
        )
    return answer | {"score": unscorable}


def read_references(truth: Any) -> list[str] | None:
    """ground_truth as captions; None where it holds none."""
    if isinstance(truth, str) and truth.lstrip().startswith("["):
        with contextlib.suppress(ValueError):  # a caption may open with a bracket
            truth = json.loads(truth)
    texts = [truth] if isinstance(truth, str) else [str(text) for text in (truth if truth is not None else ())]
    return [text for text in texts if text.strip()] or None


_BUILDING = threading.Lock()
_built = functools.cache(Scoring)


def scoring(reward: str) -> Scoring:
    """The reward of this process, built at the first call. Raises ValueError where `reward` is empty."""
    if not reward:
        raise ValueError("say which reward: +custom_reward_function.reward_kwargs.reward='\"clip - 0.1*repetition\"'")
    with _BUILDING:  # functools.cache alone would let two threads build two
        return _built(reward)


def _bytes(image: Any, upright: Any) -> bytes:
    """The image's file as it is, or as PNG where there is none or where it is not what it seems: verl's reader would
    show the model a photo that EXIF turns sideways, and the black below a transparent one."""
    from PIL import ExifTags, Image

    file = image if isinstance(image, dict) else {}
    data = Path(file["path"]).read_bytes() if file.get("bytes") is None and file.get("path") else file.get("bytes")
    if data is not None:
        with Image.open(io.BytesIO(data)) as raw:
            if raw.mode == "RGB" and raw.getexif().get(ExifTags.Base.Orientation, 1) == 1:
                return data
    upright.save(buffer := io.BytesIO(), format="PNG")
    return buffer.getvalue()


def _rows(images: Any, source: str, prompt: str) -> Iterator[dict[str, Any]]:
    from captune.data import open_image
    from captune.errors import BadImage

    for index, row in enumerate(images):
        image = row["image"]
        try:
            data = _bytes(image, open_image(image, row["image_id"]))
        except BadImage as error:
            logger.warning("left out: %s", error)
            continue
        path = image.get("path") if isinstance(image, dict) and image.get("bytes") is None else None
        kept = {"bytes": None, "path": str(Path(path).resolve())} if path else {"bytes": data, "path": None}
        yield {
            "data_source": source,
            "prompt": [{"role": "user", "content": f"<image>{prompt}"}],
            "images": [{"bytes": data, "path": None}],
            "ability": "captioning",
            "reward_model": {"style": "rule", "ground_truth": json.dumps(row["references"], ensure_ascii=False)},
            "extra_info": {"index": index, "image_id": row["image_id"], "scene": row.get("scene"), "image": kept},
        }


def write_parquet(source: str, output: str | Path, *, prompt: str = PROMPT, limit: int | None = None) -> int:
    """Writes an image source as verl's training file; returns how many rows. Bad images are left out, with a warning.

    The column `images` holds the files' bytes; extra_info names the file for the reward (a path that all machines must
    see), or holds the bytes where there is no file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features, Image, List, Value

    from captune.data import load_images

    text = Value("string")
    schema = Features({
        "data_source": text, "prompt": [{"role": text, "content": text}], "images": List(Image()), "ability": text,
        "reward_model": {"style": text, "ground_truth": text},
        "extra_info": {
            "index": Value("int64"), "image_id": text, "scene": text, "image": {"bytes": Value("binary"), "path": text}
        },
    }).arrow_schema  # fmt: skip
    rows = _rows(load_images(source, limit=limit, decode=False), source, prompt)
    count = 0
    with pq.ParquetWriter(output, schema) as writer:
        while piece := list(itertools.islice(rows, 100)):
            writer.write_table(pa.Table.from_pylist(piece, schema=schema))
            count += len(piece)
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m captune.verl SOURCE OUT.parquet [--prompt TEXT] [--limit N]`"""
    parser = argparse.ArgumentParser(prog="python -m captune.verl", description="An image source as verl's parquet.")
    parser.add_argument("source", help="a folder, a captions file, a dataset, storybook:train")
    parser.add_argument("output", help="the parquet file to write")
    parser.add_argument("--prompt", default=PROMPT, help="what the model is asked beside the image")
    parser.add_argument("--limit", type=int, help="only the first N images")
    given = parser.parse_args(arguments)
    print(write_parquet(given.source, given.output, prompt=given.prompt, limit=given.limit), "rows:", given.output)


if __name__ == "__main__":
    main()
