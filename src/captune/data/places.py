"""Where the images of a source are, for caption files that name an image by its place and not by its id.

| in | an image is |
|---|---|
| sidecars in a tree of their own | its path below the tree, without the suffix |
| metadata | the path from the metadata's folder to its file |
| webdataset shards | its id without the suffix and without dots in its name (`webdataset_key`) |
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from datasets import Dataset

from captune.data.columns import column, image_paths, undecoded
from captune.data.readers import nfc
from captune.data.sources import folder_of, load_images, load_references, whole_of
from captune.data.webdataset import stem_of, webdataset_key
from captune.errors import CaptionFileError, SourceError


class Places:
    """The ids of a source's images, by where these are; the source is loaded when the first is asked for.

    Images that the source's settings leave out, as in ``photos?n=5``, are found too.

    Args:
        source: as written. Of one whose images are elsewhere, such as a file of references, the ids alone are known.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    @property
    def folder(self) -> Path | None:
        """The folder that the images are named in, where there is one."""
        return folder_of(self.source)

    @cached_property
    def files(self) -> dict[str, str | None]:
        """{image_id: its file, None where it has none of its own}, in the order of the source."""
        whole = whole_of(self.source) or self.source
        try:
            dataset = undecoded(load_images(whole, decode=False, references=False))
        except SourceError:
            return dict.fromkeys(load_references(whole))
        ids = [nfc(str(one)) for one in column(dataset, "image_id")]
        found = image_paths(dataset) if isinstance(dataset, Dataset) else []
        return dict(zip(ids, found, strict=True)) if found else dict.fromkeys(ids)  # drawn, held, or a stream

    @cached_property
    def chosen(self) -> list[str]:
        """The ids of the images that the source's settings take."""
        return list(self.files) if whole_of(self.source) is None else list(load_references(self.source))

    def of_place(self, place: str) -> str | None:
        """Return the id of the image at a path below the images' folder, without its suffix.

        Raises:
            CaptionFileError: two images are there, which differ in their suffixes.
        """
        return self._one(self._places.get(nfc(place), ()), place)

    def of_key(self, key: str) -> str | None:
        """Return the id that is the key, or that has this key; raises as `of_place`."""
        return key if key in self.files else self._one(self._keys.get(webdataset_key(key), ()), key)

    def of_file(self, path: str, name: str) -> str | None:
        """Return the id of the image that a path leads to, else the name where it is an id.

        Raises:
            CaptionFileError: the path leads to what are several images of the source.
        """
        ids = self._paths.get(os.path.abspath(path)) or self._targets.get(os.path.realpath(path)) or ()
        return self._one(ids, name) or (name if name in self.files else None)

    def _one(self, ids: Iterable[str], name: str) -> str | None:
        found = list(ids)
        if len(found) > 1:
            raise CaptionFileError(
                f"{name!r} may be {' or '.join(map(repr, found))} of {self.source}: rename one of the images"
            )
        return found[0] if found else None

    @cached_property
    def _keys(self) -> dict[str, list[str]]:
        return _grouped((webdataset_key(image_id), image_id) for image_id in self.files)

    @cached_property
    def _places(self) -> dict[str, list[str]]:
        below = tree_of({key: path for key, path in self.files.items() if path}, self.folder)
        return _grouped(
            (nfc(os.path.splitext(below[key].as_posix())[0]) if key in below else stem_of(key), key)
            for key in self.files
        )

    @cached_property
    def _paths(self) -> dict[str, list[str]]:
        return _grouped((os.path.abspath(path), key) for key, path in self.files.items() if path)

    @cached_property
    def _targets(self) -> dict[str, list[str]]:
        return _grouped((os.path.realpath(path), key) for key, path in self.files.items() if path)


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for key, value in pairs:
        found[key].append(value)
    return dict(found)


def tree_of(files: Mapping[str, str], root: Path | None = None) -> dict[str, Path]:
    """Return {image_id: its file's path below the folder of all}.

    Args:
        files: {image_id: its file}.
        root: that folder; None, or one that does not hold them all: the deepest that does.
    """
    whole = {image_id: Path(file).absolute() for image_id, file in files.items()}
    root = root.absolute() if root else None
    if whole and not (root and all(file.is_relative_to(root) for file in whole.values())):
        root = Path(os.path.commonpath([file.parent for file in whole.values()]))
    return {image_id: file.relative_to(root) for image_id, file in whole.items()} if root else {}
