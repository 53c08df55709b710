"""The job behind ``captune caption``: a source of images into a caption file, resumable, surviving bad images.

Beside ``caps.jsonl`` stand ``caps.jsonl.settings.json`` (what made the captions: a run that would mix in those of
another model, adapter, prompt, source or generation setting is refused), ``caps.jsonl.images.jsonl`` (of which content
each caption is: `captune.inference.contents`) and, if any image was bad, ``caps.jsonl.bad.jsonl`` ({"image_id",
"why"}).

While it runs, captions are appended batch by batch (the order: `captune.inference.order`). When all is done the file
is rewritten, in one step, in source order. Batches depend on the source alone, so a run that was killed and resumed
leaves the same bytes as one that was not. Other formats, sidecars and streams: `captune.inference.outputs`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from datasets import Dataset
from PIL import Image

from captune.data import ImageSource, load_images, open_image
from captune.data.caption_formats import output_format
from captune.data.images import BATCH_PIXELS, LARGE_PIXELS, read_image
from captune.data.lines import CAPTIONS, Kind
from captune.data.schemes import warn_of_strangers
from captune.data.sources import count_images, folder_of, is_empty_shard, whole_of
from captune.decoding import Decoder, load_decoder
from captune.errors import BadImage, CaptuneError, MissingColumn, ServerError, SettingError, SourceError
from captune.inference.contents import content_of
from captune.inference.engines import check_engine, load_captioner, pick_engine
from captune.inference.order import Row, Windows, cost, decoded, select_images, split
from captune.inference.outputs import FileOutput, Output, SidecarOutput, StreamOutput
from captune.inference.settings import beside, job_settings, same_settings, write_settings
from captune.utils.files import jsonl_line, naming
from captune.utils.progress import Bar
from captune.utils.wording import counted

logger = logging.getLogger(__name__)


class CaptionReport(NamedTuple):
    """What a run did.

    Attributes:
        done: captions made now.
        skipped: captions that were there already.
        bad: (image_id, why) of the images left out.
        seconds: that captioning took.
        images_per_second: of the captions made now.
        output: where the captions are: a file, or in words.
        replaced: captions made again, since their images were replaced.
        others: captions in the file of images that the source does not name, or not any more.
        kind: what was made of each image: captions, or lists of objects.
    """

    done: int
    skipped: int
    bad: list[tuple[str, str]]
    seconds: float
    images_per_second: float
    output: Path | str
    replaced: int = 0
    others: int = 0
    kind: Kind = CAPTIONS

    def sentence(self) -> str:
        """Return the report as one line for people."""
        parts = [f"{counted(self.done, 'image')} {self.kind.done} into {self.output}"]
        if not (self.done or self.skipped or self.bad):
            parts.append("this shard has none: the source has fewer images than shards")
        if self.done:
            parts[0] += f" in {self.seconds:.1f} s ({self.images_per_second:.1f} per second)"
        if self.skipped:
            parts.append(f"{counted(self.skipped, 'was', 'were')} there already")
        if self.replaced:
            parts.append(f"{counted(self.replaced, 'image')} {self.kind.done} again, replaced since")
        if self.others:
            parts.append(f"in the file, too: {counted(self.others, self.kind.noun, self.kind.nouns)} of other images")
        if self.bad:
            listed = f" (listed in {beside(self.output, 'bad.jsonl')})" if isinstance(self.output, Path) else ""
            parts.append(f"{counted(len(self.bad), 'bad image')} left out{listed}")
        return "; ".join(parts)


def caption_to_file(
    model: str | Path | None,
    source: str,
    output: str | Path | None,
    *,
    adapter: str | Path | None = None,
    prompt: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    decoder: str | None = None,
    language_model: str | Path | None = None,
    image_encoder: str | Path | None = None,
    engine: str | None = None,
    requests: int | None = None,
    **job: Any,
) -> CaptionReport:
    """Load a captioner and run `caption_source`; source and decoder are checked first, as they fail quickly.

    Args:
        model: a folder, a hub name, a shipped model, or a server as "http://host:port/v1#name"; None for the decoder
            zerocap.
        source: the images.
        output: the caption file, ``-`` for standard output, or None where the job says `sidecar`.
        adapter: a PEFT adapter of the model.
        prompt: the text beside the image; default: that of the adapter or the weights, else the family's.
        dtype: auto, float32, bfloat16 or float16.
        device: default: the best there is.
        trust_remote_code: run the Python code that a model folder brings.
        overwrite: replace the file instead of resuming it.
        decoder: a decoder's spec; default: greedy generation.
        language_model: what zerocap writes with, instead of a model.
        image_encoder: what zerocap looks with, instead of a model.
        engine: where captions are made, see `captune.inference.engines`; default: what the model implies.
        requests: at a server at once; default: 16.
        job: further arguments of `caption_source`.

    Raises:
        SettingError: the model, or what stands for it, does not fit the decoder.
        SourceError: the source cannot be read.
        CaptionerError: the model cannot be loaded.
    """
    from captune.decoding.zerocap import ZeroCap, ZeroCapModel

    if output is not None:
        output_format(output, job.get("format"))
    engine = pick_engine(engine, model)
    loading: dict[str, Any] = {"adapter": adapter, "dtype": dtype, "device": device, "requests": requests}
    loading["trust_remote_code"] = trust_remote_code
    check_engine(engine, model, decoder=decoder, num_beams=job.get("num_beams"), **loading)
    load_images(source, limit=1, decode=False, stream=True, references=False)
    decode = None if decoder is None else load_decoder(decoder)
    if decode is not None and isinstance(decode, ZeroCap) != (model is None):
        raise SettingError("zerocap works with a language model and an image encoder, other decoders with a model")
    captioner: Any
    if model is not None and language_model is None and image_encoder is None:
        captioner = load_captioner(engine, model, prompt=prompt, **loading)
    elif model is None and language_model is not None and image_encoder is not None:
        captioner = ZeroCapModel.load(language_model, image_encoder, device=device, prompt=prompt)
    else:
        raise SettingError("name a model, or (for the decoder zerocap) both a language model and an image encoder")
    return caption_source(captioner, source, output, resume=not overwrite, decoder=decode, **job)


def caption_source(
    captioner: Any,
    source: str | ImageSource,
    output: str | Path | Output | None,
    *,
    format: str | None = None,
    sidecar: str | None = None,
    output_folder: str | Path | None = None,
    prefix: str = "",
    suffix: str = "",
    batch_size: int = 32,
    workers: int = 1,
    window: int = 16,
    resume: bool = True,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
    decoder: Decoder | None = None,
    **generation: Any,
) -> CaptionReport:
    """Caption every image of a source into a file, or into sidecars; resumes where an earlier run stopped.

    An image that cannot be opened, or that the model's processor refuses, is skipped, logged, listed in the report and
    in ``OUTPUT.bad.jsonl``; the next run tries it again. In memory are one window of undecoded images and two decoded
    batches.

    Args:
        captioner: has ``generate(images, **generation) -> list[str]`` (and the other attributes of `Captioner`, or
            those of `ServerCaptioner`); or what makes something else of images, with a ``kind`` that says what
            (`captune.inference.detect`).
        source: the images: a source as written, or a dataset.
        output: the caption file, ``-`` for standard output, what is written to by itself
            (`captune.inference.outputs.KeptOutput`), or None where `sidecar` is given.
        format: the file's format, see `captune.data.caption_formats`; default: by its name.
        sidecar: write NAME.txt (or .caption) beside each image instead; those that are there are kept if `resume`.
        output_folder: write the sidecars there, in the images' tree.
        prefix: put before each caption.
        suffix: put behind each caption.
        batch_size: images per batch.
        workers: threads that read and decode the next batch; the captions do not depend on it.
        window: batches whose images are sorted by size together.
        resume: continue the file, or keep the sidecars that are there; False replaces them.
        limit: use the first N images.
        seed: where captions are sampled.
        progress: show a bar.
        decoder: what makes the captions instead of ``generate``, see `captune.decoding`.
        generation: settings of ``generate`` or of the decoder.

    Raises:
        SettingError: a setting is out of range.
        SourceError: the source cannot be read.
        CaptionFileError: the file was made with other settings.
        MissingColumn: the decoder needs more than images.
    """
    if batch_size < 1 or window < 1 or workers < 1:
        raise SettingError("batch_size, window and workers must be at least 1")
    generation = {key: value for key, value in generation.items() if value is not None}
    if generation.get("max_new_tokens", 1) < 1:
        raise SettingError("max_new_tokens must be at least 1; leave it out for the model's default")
    if generation.get("num_return_sequences", 1) != 1 or generation.get("return_logprob"):
        raise SettingError(
            "a caption file holds one caption per image: leave num_return_sequences and return_logprob out"
        )
    if decoder is not None and (lacking := [need for need in decoder.required_columns if need != "image"]):
        raise MissingColumn(
            f"the decoder {decoder} needs {' and '.join(lacking)}, which captioning cannot provide: it has images only"
        )
    if decoder is not None and getattr(captioner, "seeded", False) and getattr(decoder, "needs_model", True):
        raise SettingError(f"the decoder {decoder} works inside the model, which is not in this process: load it here")
    if (output is None) == (sidecar is None):
        raise SettingError("say where the captions go: an output file, or sidecars (.txt)")
    if output_folder is not None and sidecar is None:
        raise SettingError("an output folder is for sidecars (.txt); name an output file otherwise")
    kind: Kind = getattr(captioner, "kind", CAPTIONS)
    chosen = output_format(output, format) if isinstance(output, str | Path) else None
    dataset = select_images(source, limit)
    if isinstance(source, str | Path) and not hasattr(getattr(captioner, "model", None), "peft_config"):
        warn_of_strangers(getattr(captioner, "name", ""), str(source), dataset.column_names)
    if chosen is not None and chosen.name in ("webdataset",) and not isinstance(dataset, Dataset):
        raise SettingError(
            f"{output}: images of a stream cannot be looked up again; write .jsonl, then captune convert"
        )
    batch_size = max(batch_size, getattr(captioner, "least_batch", 1))  # a server's captions do not depend on it
    at_once = getattr(captioner, "batches_at_once", 1)
    window = 1 if at_once > 1 else window  # nothing is padded at a server, which need not wait for a window's sizes
    sampled = generation.get("do_sample", False) or (decoder is not None and decoder.samples)
    own = {"seed": seed} if sampled and getattr(captioner, "seeded", False) else {}
    generate = partial(captioner.generate if decoder is None else partial(decoder, captioner), **generation, **own)
    attempt = getattr(captioner, "attempt", None) if decoder is None else None
    added = {key: text for key, text in (("prefix", prefix), ("suffix", suffix)) if text}
    bad: Path | None = None
    writer: Output
    name: Path | str
    if output is None:
        folder = None if output_folder is None else Path(output_folder)
        root = folder_of(source) if isinstance(source, str | Path) else None
        whole = whole_of(str(source)) if isinstance(source, str | Path) else None
        among = None if whole is None else select_images(whole, None)
        writer = SidecarOutput(dataset, str(sidecar), folder, root=root, overwrite=not resume, among=among)
        name = f"{sidecar} files"
    elif not isinstance(output, str | Path):
        writer, name = output, "memory"
    elif chosen is None:
        stream = StreamOutput(output, format)
        writer, name = stream, stream.name
    else:
        path = Path(output)
        for companion in (beside(path, end) for end in ("settings.json", "images.jsonl", "bad.jsonl")):
            if companion.exists() and not companion.is_file():
                raise SettingError(f"{companion} is no regular file: remove it, or name another output")
        settings = job_settings(captioner, source, seed if sampled else None, generation | added, decoder)
        if resume:
            same_settings(path, settings, kind)
        file = FileOutput(path, chosen, resume=resume, kind=kind)
        writer, name = file, path
        write_settings(path, settings | file.made)
        bad = beside(path, "bad.jsonl")
        bad.unlink(missing_ok=True)
    with contextlib.closing(writer):
        windows = Windows(dataset, window * batch_size, writer)
        job = _Job(generate, writer, windows, bad, seed if sampled and not own else None, progress, kind)
        if kind is CAPTIONS:
            job.columns = lambda caption: {"caption": f"{prefix}{caption}{suffix}"}
        job.at_once, job.workers = at_once, workers
        job.attempt = None if attempt is None else partial(attempt, **generation, **own)
        job.cancel = getattr(captioner, "cancel", lambda: None)
        started = time.perf_counter()
        streamed = isinstance(source, str | Path) and not isinstance(dataset, Dataset)
        job.run(batch_size, count_images(str(source), limit=limit) if streamed and progress else None)
        seconds = time.perf_counter() - started
        if not windows.total and not (
            writer is not output and isinstance(source, str | Path) and is_empty_shard(str(source))
        ):
            if isinstance(writer, FileOutput) and not len(writer.writer.done):
                companions = (beside(writer.path, end) for end in ("settings.json", "images.jsonl"))
                for path in (writer.path, writer.journal, *companions):
                    path.unlink(missing_ok=True)
            raise SourceError(f"{source if isinstance(source, str) else 'the dataset'} holds no images")
        writer.finish(windows.places, dataset)
    speed = job.done / seconds if job.done else 0.0
    replaced = others = 0
    if isinstance(writer, FileOutput):
        replaced, others = writer.contents.say(kind), len(writer.writer.done) - windows.skipped - job.done
    return CaptionReport(job.done, windows.skipped, job.bad, seconds, speed, name, replaced, others, kind)


_Opened = tuple[Row, Image.Image | BadImage]


class _Made(NamedTuple):
    """A batch that was captioned: its rows that could be opened, and what was made of each, or the error."""

    batch: list[Row]
    rows: list[Row]
    outcomes: Sequence[Any]
    bad: list[tuple[str, str]]


class _Job:
    """The state of one run."""

    def __init__(
        self,
        generate: Callable[[list[Image.Image]], list[Any]],
        writer: Output,
        windows: Windows,
        bad_file: Path | None,
        seed: int | None,
        show: bool,
        kind: Kind = CAPTIONS,
    ) -> None:
        self.generate, self.writer, self.windows, self.seed, self.show = generate, writer, windows, seed, show
        self.bad_file, self.kind = bad_file, kind
        self.columns: Callable[[Any], dict[str, Any]] = lambda made: made  # of a line, beside the id
        self.workers = 1  # threads that open images: Pillow decodes without Python's lock, so that they have cores each
        self.large = threading.Lock()  # what takes much memory until it is reduced is opened one at a time
        self.at_once = 1  # batches; where there are several, an image's caption does not depend on its batch
        self.attempt: Callable[[list[Image.Image]], list[Any]] | None = None  # gives a caption or an error for each
        self.cancel: Callable[[], None] = lambda: None  # gives up what is being captioned
        self.done, self.bad = 0, list[tuple[str, str]]()

    def run(self, batch_size: int, total: int | None = None) -> None:
        dataset = self.windows.dataset
        total = len(dataset) if isinstance(dataset, Dataset) else total
        with (
            Bar(total=total, desc=self.kind.nouns, unit="image", show=self.show) as bar,
            ThreadPoolExecutor(self.workers) as openers,  # of the next batch, while the model is busy with this one
            ThreadPoolExecutor(max_workers=self.at_once) as makers,
        ):
            making = deque[tuple[Callable[[], _Made], int]]()  # batches that are captioned, and their pixels

            def finish() -> None:
                made = making.popleft()[0]()
                self._keep(*made)
                bar.update(sum(not row.done for row in made.batch))

            try:
                ahead: list[Future[_Opened]] | None = None
                before = 0
                for batch in itertools.chain(self._batches(batch_size, bar), [None]):
                    pixels = decoded(batch or [])
                    now, ahead = ahead, None
                    while making and sum(held for _, held in making) + before + pixels > BATCH_PIXELS:
                        finish()
                    if batch is not None and before + pixels <= BATCH_PIXELS:
                        ahead = [openers.submit(self._open, row) for row in batch]
                    if now is not None:
                        opened = [one.result() for one in now]
                        del now  # a future keeps its result
                        if self.at_once > 1:
                            making.append((makers.submit(copy_context().run, self._make, opened).result, before))
                        else:
                            making.append((partial(self._make, opened), before))
                        del opened
                        while len(making) >= self.at_once:
                            finish()
                    if batch is not None and ahead is None:
                        ahead = [openers.submit(self._open, row) for row in batch]
                    before = pixels
                while making:
                    finish()
            except ServerError as error:
                while making:  # what came before it failed is kept
                    with contextlib.suppress(CaptuneError):
                        finish()
                if not self.done:
                    raise
                resumes = "" if isinstance(self.writer, StreamOutput) else ", and the same command resumes"
                raise ServerError(f"{error}; {self.done} {self.kind.nouns} are kept{resumes}") from error
            except BaseException:
                self.cancel()
                raise

    def _batches(self, batch_size: int, bar: Any) -> Iterator[list[Row]]:
        """Yield the batches with something left to do."""
        for there, rows in self.windows:
            if self.show:
                bar.initial += there  # not made now, so that they say nothing about the speed
                bar.update(there)
            rows = [row._replace(pixels=cost(row)) for row in rows]
            rows.sort(key=lambda row: (-row.pixels, row.place))
            for batch in split(rows, batch_size, BATCH_PIXELS):
                left = [row for row in batch if not row.done]
                if left and self.at_once == 1 and self.writer.cut_off({row.image_id for row in batch}):
                    left = batch  # the same batch again, so that sampled and padded captions come out the same
                if left:
                    yield left

    def _open(self, row: Row) -> _Opened:
        try:
            if isinstance(row.image, Image.Image):
                return row, open_image(row.image, row.image_id)
            data = read_image(row.image, row.image_id)
            row = row._replace(content=content_of(row.image, data))
            with self.large if row.pixels > LARGE_PIXELS else contextlib.nullcontext():
                return row, open_image(data, row.image_id)
        except BadImage as error:
            return row, error

    def _make(self, opened: list[_Opened]) -> _Made:
        """Caption the images of a batch."""
        batch = [row for row, _ in opened]
        rows = [row for row, image in opened if not isinstance(image, BadImage)]
        images = [image for _, image in opened if not isinstance(image, BadImage)]
        bad = [(image.item, image.why) for _, image in opened if isinstance(image, BadImage)]
        if all(row.done for row in rows):
            return _Made(batch, [], [], bad)
        if self.attempt is not None:
            return _Made(batch, rows, self.attempt(images), bad)
        try:
            return _Made(batch, rows, list(self._generate(rows, images)), bad)
        except ValueError as error:
            return _Made(batch, rows, self._one_by_one(rows, images, error), bad)

    def _keep(self, batch: list[Row], rows: list[Row], outcomes: Sequence[Any], bad: list[tuple[str, str]]) -> None:
        """Write the captions of a batch, and note its bad images.

        When all are refused it is the settings that are wrong, not the images, and the error stands.
        """
        for item, why in bad:
            self._note(item, why)
        failed = next((outcome for outcome in outcomes if isinstance(outcome, ServerError)), None)
        refused = [(row.image_id, problem) for row, problem in zip(rows, outcomes, strict=True) if _is_bad(problem)]
        if refused and len(refused) == len(rows) and (len(rows) > 1 or not (self.done or self.windows.skipped)):
            raise refused[0][1]
        made = [(row, one) for row, one in zip(rows, outcomes, strict=True) if not isinstance(one, Exception)]
        new = [{"image_id": row.image_id, **self.columns(one)} for row, one in made if not row.done]
        self.writer.write(new, {row.image_id: row.content for row, _ in made if row.content is not None})
        self.done += len(new)
        for item, problem in refused:
            self._note(item, f"the model refuses it: {problem}")
        if failed is not None:
            raise failed

    def _generate(self, rows: list[Row], images: list[Image.Image]) -> list[Any]:
        torch = sys.modules.get("torch")  # a captioner that is elsewhere needs none
        if self.seed is not None and torch is not None:
            mark = hashlib.sha256(f"{self.seed} {rows[0].image_id}".encode("utf-8", "backslashreplace")).digest()
            torch.manual_seed(
                int.from_bytes(mark[:7], "big")
            )  # of its own for every batch, so that a resume repeats it
        try:
            return self.generate(images)
        except Exception as error:
            if torch is not None and isinstance(error, torch.OutOfMemoryError):
                error.add_note("Try a smaller batch size; the captions so far are kept.")
            raise

    def _one_by_one(self, rows: list[Row], images: list[Image.Image], error: ValueError) -> Sequence[Any]:
        """Caption the images of a batch that failed each by itself.

        A processor may refuse one image (Qwen2-VL: an aspect ratio over 200); the others are captioned all the same.
        """
        if len(rows) == 1:
            return [error]
        outcomes: list[Any] = []
        for row, image in zip(rows, images, strict=True):
            try:
                outcomes.extend(self._generate([row], [image]))
            except ValueError as problem:
                outcomes.append(problem)
        return outcomes if not all(isinstance(outcome, Exception) for outcome in outcomes) else [error] * len(rows)

    def _note(self, item: str, why: str) -> None:
        logger.info("bad image %s: %s", item, why)
        self.bad.append((item, why))
        if self.bad_file is not None:
            with naming(self.bad_file), self.bad_file.open("a", encoding="utf-8", newline="\n") as file:
                file.write(jsonl_line({"image_id": item, "why": why}))


def _is_bad(outcome: str | Exception) -> TypeGuard[Exception]:
    """Whether it is the image that has no caption, and not the server that failed."""
    return isinstance(outcome, Exception) and not isinstance(outcome, ServerError)
