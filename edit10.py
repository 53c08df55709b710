from pathlib import Path
exec(open("/tmp/w/me/edit4.py").read().split("S=")[0])
S="src/captune/"
p=Path(S+"data/images.py"); s=p.read_text()
s=s.replace("_path(image)","image_path(image)").replace("def _path(image: Any) -> Path | None:\n",'def image_path(image: Any) -> Path | None:\n    """Return the file that an image is in; None for bytes and PIL images."""\n')
s=s.replace("def _read(image: Any, item: str) -> bytes:\n",'''def read_image(image: Any, item: str) -> bytes:
    """Return an image's bytes, undecoded.

    Raises:
        BadImage: if there are none.
    """
''').replace("_read(image, item)","read_image(image, item)")
p.write_text(s)
sub(S+"data/captions.py",('''    def _flush(self) -> None:''','''    def leave_out(self, image_ids: Collection[str]) -> None:
        """Take rows out of the file, in one step, so that their images can get other captions."""
        kept = [row for row in read_jsonl(self.path) if row["image_id"] not in image_ids]
        replace_file(self.path, "".join(jsonl_line(row) for row in kept))
        new = self.path.open("ab")  # the lock was on the file that is gone
        self._file.close()
        self._file = new
        if not lock(self._file):
            raise CaptionFileError(f"{self.path}: another process is writing to it; wait for it to end")
        self.done -= set(image_ids)
        self.last = kept[-1]["image_id"] if kept else None

    def _flush(self) -> None:'''))
sub(S+"inference/job.py",
('''        images_per_second: of the captions made now.
        output: the caption file.
    """
''','''        images_per_second: of the captions made now.
        output: the caption file.
        replaced: captions made again, since their images were replaced.
    """
'''),
('''    output: Path

    def sentence''','''    output: Path
    replaced: int = 0

    def sentence'''),
('''            parts.append(f"{self.skipped} were there already")
''','''            parts.append(f"{self.skipped} were there already")
        if self.replaced:
            parts.append(f"{self.replaced} of them anew, since their images were replaced")
'''),
('''        job = _Job(generate, writer, seed if sampled else None, progress)
        started = time.perf_counter()
        job.run(dataset, batch_size, window)
        seconds = time.perf_counter() - started
        in_source_order(output, job.places)
    return CaptionReport(job.done, job.skipped, job.bad, seconds, job.done / seconds if job.done else 0.0, output)
''','''        contents = Contents(beside(output, "images.jsonl"), resume=resume)
        if replaced := contents.replaced(dataset, writer.done):
            writer.leave_out(replaced)
        job = _Job(generate, writer, contents, seed if sampled else None, progress)
        started = time.perf_counter()
        job.run(dataset, batch_size, window)
        seconds = time.perf_counter() - started
        contents.close(in_source_order(output, job.places))
    speed = job.done / seconds if job.done else 0.0
    return CaptionReport(job.done, job.skipped, job.bad, seconds, speed, output, len(replaced))
'''),
('''    def __init__(
        self, generate: Callable[[list[Image.Image]], list[str]], writer: CaptionWriter, seed: int | None, show: bool
    ) -> None:
        self.generate, self.writer, self.seed, self.show = generate, writer, seed, show
''','''    def __init__(
        self,
        generate: Callable[[list[Image.Image]], list[str]],
        writer: CaptionWriter,
        contents: Contents,
        seed: int | None,
        show: bool,
    ) -> None:
        self.generate, self.writer, self.contents, self.seed, self.show = generate, writer, contents, seed, show
'''),
('''                images.append(open_image(row.image, row.image_id))
                good.append(row)
''','''                if isinstance(row.image, Image.Image):
                    images.append(open_image(row.image, row.image_id))
                else:
                    data = read_image(row.image, row.image_id)
                    row = row._replace(content=content_of(row.image, data))
                    images.append(open_image(data, row.image_id))
                good.append(row)
'''),
('''        self.writer.write(
            {"image_id"''','''        made = [row for row, caption in zip(rows, captions, strict=True) if caption is not None]
        self.contents.add({row.image_id: row.content for row in made if row.content is not None})
        self.writer.write(
            {"image_id"'''),
("from captune.data import CaptionWriter, ImageSource, load_images, open_image\n","from captune.data import CaptionWriter, ImageSource, load_images, open_image\nfrom captune.data.images import read_image\n"),
("from captune.inference.order import","from captune.inference.contents import Contents, content_of\nfrom captune.inference.order import"),
('''    generation = {key: value for key, value in generation.items() if value is not None}
''','''    generation = {key: value for key, value in generation.items() if value is not None}
    if generation.get("max_new_tokens", 1) < 1:
        raise SettingError("max_new_tokens must be at least 1; leave it out for the model's default")
'''),
('''another model, adapter, prompt, source or generation setting is refused) and, if any image was bad,
``caps.jsonl.bad.jsonl`` ({"image_id", "why"}).
''','''another model, adapter, prompt, source or generation setting is refused), ``caps.jsonl.images.jsonl`` (of which content
each caption is: `captune.inference.contents`) and, if any image was bad, ``caps.jsonl.bad.jsonl`` ({"image_id", "why"}).
'''),
)
sub(S+"inference/order.py",
('''    """One image that is not opened yet; ``place`` is its number in the source."""

    place: int
    image_id: str
    image: Any
''','''    """One image; ``place`` is its number in the source, ``content`` what was read when it was opened."""

    place: int
    image_id: str
    image: Any
    content: Content | None = None
'''),
('''def in_source_order(output: Path, places: dict[str, int]) -> None:
    """Rewrite the finished file in source order; captions of images that the source no longer has come last."""
''','''def in_source_order(output: Path, places: dict[str, int]) -> list[str]:
    """Rewrite the finished file in source order; captions of images that the source no longer has come last.

    Returns:
        The ids in this order.
    """
'''),
('''        replace_file(output, "".join(jsonl_line(row) for row in ordered))
''','''        replace_file(output, "".join(jsonl_line(row) for row in ordered))
    return [row["image_id"] for row in ordered]
'''),
("from captune.errors import BadImage, CaptionFileError\n","from captune.errors import BadImage, CaptionFileError\nfrom captune.inference.contents import Content\n"),
)
sub(S+"inference/settings.py",('''        "prompt": prompt()''','''        "image encoder": getattr(getattr(captioner, "encoder", None), "digest", None),  # zerocap's
        "prompt": prompt()'''),
('''    old = {"tokenizer": new.get("tokenizer"), **old}  # files''','''    old = {**{key: new.get(key) for key in ("tokenizer", "image encoder")}, **old}  # files'''))
