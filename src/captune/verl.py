"""captune's scorers as verl's custom reward function, and captune's image sources as verl's parquet.

verl takes a file, a function's name and keyword arguments; `reward` is any scorer or weighted sum of scorers:

    custom_reward_function.path=$(python -c "import captune.verl as v; print(v.__file__)")
    custom_reward_function.name=compute_score
    '+custom_reward_function.reward_kwargs.reward="grc:/data/corpus + qir:/data/corpus"'

References come from the row's ground_truth; `image`, `image_id` and `scene` from its extra_info (verl takes the column
`images` away before it calls the reward). `python -m captune.verl SOURCE OUT.parquet` writes such rows. The answer's
"score" is the reward; verl logs the other entries, each scorer's own value.

Both signatures of verl 0.4.0 to 0.9.0 are served, per caption (`compute_score`, called from many threads by the reward
loop) and per batch (`compute_score_batch`, for ``reward_manager=batch``); see docs/rewards.md.
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

from captune.data.readers import is_said, references_at
from captune.errors import EvaluationError, MissingColumn, SettingError
from captune.scorers import load_scorer, weighted_sum
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
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Any = None,
    *,
    reward: str = "",
    unscorable: float | None = None,
    **ignored: Any,
) -> dict[str, float]:
    """Score one caption.

    Args:
        data_source: not used.
        solution_str: the caption.
        ground_truth: the references: a list of captions, such a list as JSON, or one caption.
        extra_info: holds `image`, `image_id` and `scene`, as far as the reward needs them.
        reward: a scorer or a weighted sum of scorers, as `captune grpo --reward` takes it.
        unscorable: the score of a caption that no scorer can judge, such as `attributes` where the references mention
            no attribute. NaN would spread over verl's whole batch, so without this number it is an error. 0 is right
            where it concerns all captions of an image alike: their group then teaches nothing.
        **ignored: what else verl passes.

    Returns:
        "score", and each scorer's own value, unweighted.

    Raises:
        MissingColumn: the row lacks what a scorer needs; the message says where it is expected.
        SourceError: ground_truth holds something else than captions.
        EvaluationError: no scorer can judge the caption, and `unscorable` is not given.
    """
    from captune import verl  # by name: verl executes this file by its path, Ray then pickles what it finds by value

    return verl.scoring(reward).one(solution_str, ground_truth, extra_info, unscorable)


def compute_score_batch(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Any],
    *,
    reward: str = "",
    unscorable: float | None = None,
    **ignored: Any,
) -> list[dict[str, float]]:
    """Score a whole batch as `compute_score` scores one caption, for ``reward_manager=batch``."""
    from captune import verl

    return verl.scoring(reward).many(solution_strs, ground_truths, extra_infos, unscorable)


class Scoring:
    """A reward in this process: its scorers are built once and used by one thread at a time.

    A batch costs far less per caption than a caption alone. Of the threads that wait for a reward, the first to get the
    scorers therefore scores the captions of all.

    Args:
        reward: a scorer or a weighted sum of scorers.

    Raises:
        ScorerError: what a scorer runs on is missing.
    """

    def __init__(self, reward: str) -> None:
        scorer = load_scorer(reward)
        scorer.check()
        self.parts = scorer.parts if isinstance(scorer, Expression) else [(scorer, 1.0)]
        self.required_columns, self.optional_columns = scorer.required_columns, scorer.optional_columns
        self._lock = threading.Lock()
        self._waiting: SimpleQueue[tuple[str, dict[str, Any], Future[dict[str, float]]]] = SimpleQueue()

    def one(self, caption: str, truth: Any, info: Any, unscorable: float | None) -> dict[str, float]:
        """Score one caption, together with those that other threads wait for; see `compute_score`."""
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
        """Score a batch; see `compute_score_batch`."""
        rows = [self.columns(truth, info) for truth, info in zip(truths, infos, strict=True)]
        with self._lock:
            answers = self._score(captions, rows)
        return [scored(answer, caption, unscorable) for answer, caption in zip(answers, captions, strict=True)]

    def columns(self, truth: Any, info: Any) -> dict[str, Any]:
        """Return what the scorers read of verl's row, by column.

        Raises:
            MissingColumn: the row lacks a column.
            SourceError: ground_truth holds something else than captions.
        """
        given = dict(info or {}) | {"references": read_references(truth)}
        for need in self.required_columns:
            if given.get(need) is None:
                have = ", ".join(key for key, value in given.items() if value is not None) or "nothing"
                raise MissingColumn(
                    f"the reward needs {need} in {PLACES.get(need, f'extra_info[{need!r}]')}; the row has {have}"
                )
        names = (*self.required_columns, *self.optional_columns)
        return {name: given[name] for name in names if given.get(name) is not None}

    def _score(self, captions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
        answers: list[dict[str, float]] = [{} for _ in captions]
        by_columns: dict[tuple[str, ...], list[int]] = {}  # a scorer takes whole columns: rows with others go apart
        for i, row in enumerate(rows):
            by_columns.setdefault(tuple(row), []).append(i)
        for names, indices in by_columns.items():
            texts = [captions[i] for i in indices]
            columns = {name: [rows[i][name] for i in indices] for name in names}
            values: dict[str, Any] = {part.name: part(texts, **columns) for part, _ in self.parts}
            values["score"] = weighted_sum([values[part.name] for part, _ in self.parts], [w for _, w in self.parts])
            for k, i in enumerate(indices):
                answers[i] = {name: float(scores[k]) for name, scores in values.items()}
        return answers


def scored(answer: dict[str, float], caption: str, unscorable: float | None) -> dict[str, float]:
    """Return the answer with a number for a score.

    Raises:
        EvaluationError: the score is NaN, without `unscorable`.
    """
    if not math.isnan(answer["score"]):
        return answer
    if unscorable is None:
        raise EvaluationError(
            f"no scorer can judge the caption {caption!r} of this image, and verl would spread NaN over the batch: "
            "remove such images, or set +custom_reward_function.reward_kwargs.unscorable=0.0"
        )
    return answer | {"score": unscorable}


def read_references(truth: Any) -> list[str] | None:
    """Return ground_truth as a list of captions, None without any; they are read as those of an image source.

    Raises:
        SourceError: it holds something else.
    """
    if isinstance(truth, str) and truth.lstrip().startswith("["):
        with contextlib.suppress(ValueError):  # a caption may open with a bracket
            truth = json.loads(truth)
    return [text for text in references_at(truth, "ground_truth") if is_said(text)] or None


_BUILDING = threading.Lock()
_built = functools.cache(Scoring)


def scoring(reward: str) -> Scoring:
    """Return the reward of this process, built at the first call.

    Raises:
        SettingError: `reward` is empty.
    """
    if not reward:
        raise SettingError(
            "missing reward: set +custom_reward_function.reward_kwargs.reward='\"clip - 0.1*repetition\"'"
        )
    with _BUILDING:  # functools.cache alone would let two threads build two
        return _built(reward)


def _bytes(image: Any, upright: Any) -> bytes:
    """The image's file as it is, or as PNG: without a file, with EXIF rotation or transparency.

    verl's reader ignores both: it would show the model a photo on its side, and black below a transparent one.
    """
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
            logger.warning("skipped: %s", error)
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
    """Write an image source as verl's training file; bad images are skipped with a warning.

    The column `images` holds the files' bytes. For the reward, extra_info names the file (a path that all machines must
    see), or holds the bytes of an image without a file.

    Args:
        source: a folder, a captions file, a dataset or storybook:train.
        output: the parquet file.
        prompt: the text beside the image.
        limit: only the first images.

    Returns:
        How many rows were written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features, Image, List, Value

    from captune.data import load_images

    text = Value("string")
    schema = Features(
        {
            "data_source": text,
            "prompt": [{"role": text, "content": text}],
            "images": List(Image()),
            "ability": text,
            "reward_model": {"style": text, "ground_truth": text},
            "extra_info": {
                "index": Value("int64"),
                "image_id": text,
                "scene": text,
                "image": {"bytes": Value("binary"), "path": text},
            },
        }
    ).arrow_schema
    rows = _rows(load_images(source, limit=limit, decode=False), source, prompt)
    count = 0
    with pq.ParquetWriter(output, schema) as writer:
        while piece := list(itertools.islice(rows, 100)):
            writer.write_table(pa.Table.from_pylist(piece, schema=schema))
            count += len(piece)
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``python -m captune.verl SOURCE OUT.parquet [--prompt TEXT] [--limit N]``."""
    parser = argparse.ArgumentParser(
        prog="python -m captune.verl", description="Write an image source as verl's parquet."
    )
    parser.add_argument("source", help="a folder, a captions file, a dataset or storybook:train")
    parser.add_argument("output", help="the parquet file to write")
    parser.add_argument("--prompt", default=PROMPT, help=f"the text beside the image (default: {PROMPT})")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    given = parser.parse_args(arguments)
    print(write_parquet(given.source, given.output, prompt=given.prompt, limit=given.limit), "rows:", given.output)


if __name__ == "__main__":
    main()
