"""Files of any store that fsspec knows: ``s3://``, ``gs://``, ``hf://``, ``memory://`` and local paths."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from captune.errors import SettingError, redact

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
#: where what is written under a name is seen whole or not at all
_WHOLE = frozenset(("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "r2", "memory"))


def is_address(path: str | os.PathLike[str]) -> bool:
    """Return whether it is written ``scheme://…``."""
    return bool(_ADDRESS.match(str(path)))


def filesystem(where: str) -> tuple[Any, str]:
    """Return the fsspec file system of a path or an address, and the path in it.

    Raises:
        SettingError: for a scheme that fsspec does not know, or whose package is not installed.
    """
    import fsspec

    if is_address(where):
        check_address(where)
    try:
        return fsspec.core.url_to_fs(where if is_address(where) else os.path.abspath(where))
    except (ImportError, ValueError, OSError) as error:
        raise SettingError(f"{redact(where)} cannot be opened: {redact(str(error))}") from error


def check_address(where: str) -> None:
    """Raise SettingError where fsspec cannot read and write such an address; nothing is asked of it."""
    import fsspec

    scheme = where.partition("://")[0]
    if scheme in ("http", "https"):
        raise SettingError(f"{redact(where)}: captune fetches no web addresses; name a folder, a bucket or a share")
    try:
        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:
        package = _PACKAGES.get(scheme)
        remedy = f"pip install {package}" if package else "see fsspec's list of file systems"
        raise SettingError(f"{redact(where)}: {scheme}:// cannot be opened ({redact(str(error))}): {remedy}") from error


def file_mark(name: str, info: dict[str, Any] | None = None) -> str:
    """Return what shows that a file was replaced: its size, with the store's digest of it or its time.

    Args:
        name: the path or address.
        info: what the store said of it in a listing; None: it is asked.
    """
    if info is None:
        system, path = filesystem(name)
        info = system.info(path)
    keys = ("ETag", "etag", "md5Hash", "checksum", "LastModified", "mtime", "updated", "created")
    return f"{info.get('size')} {next((info[key] for key in keys if info.get(key) is not None), '')}"


class Store:
    """A folder, or a prefix of an object store, whose files are whole or not there.

    Args:
        where: a path or an address.

    Raises:
        SettingError: see `filesystem`.
    """

    def __init__(self, where: str) -> None:
        self.where = where.rstrip("/") or where
        self.system, self.root = filesystem(self.where)
        self.root = self.root.rstrip("/")
        protocol = self.system.protocol
        self.whole = bool(_WHOLE & set([protocol] if isinstance(protocol, str) else protocol))

    def path(self, name: str) -> str:
        """Return the path of a file in the file system."""
        return posixpath.join(self.root, name)

    def read(self, name: str) -> bytes | None:
        """Return a file's content; None where it is not there."""
        try:
            content: bytes = self.system.cat_file(self.path(name))
        except FileNotFoundError:
            return None
        return content

    def read_all(self, names: list[str]) -> dict[str, bytes]:
        """Return the contents of several files, asked for together; those that are gone are left out."""
        found: dict[str, bytes] = {}
        for start in range(0, len(names), 256):
            paths = {self.path(name): name for name in names[start : start + 256]}
            contents = self.system.cat(list(paths), on_error="return")
            contents = {next(iter(paths)): contents} if isinstance(contents, bytes) else contents
            for path, name in paths.items():
                content = contents.get(path, contents.get(path.lstrip("/")))
                if isinstance(content, bytes):
                    found[name] = content
                elif isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
        return found

    def sizes(self, folder: str) -> dict[str, int]:
        """Return {name: bytes} of the files directly in a folder; empty where it is not there."""
        self.system.invalidate_cache()
        try:
            listed = self.system.ls(self.path(folder), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return {posixpath.basename(one["name"]): int(one["size"] or 0) for one in listed if one["type"] == "file"}

    def write(self, name: str, content: bytes) -> None:
        """Write a file in one step: a single put, or under another name that is then changed."""
        self._in_one_step(name, lambda path: self.system.pipe_file(path, content))

    def put(self, local: Path, name: str) -> None:
        """Copy a local file there in one step, likewise."""
        self._in_one_step(name, lambda path: self.system.put_file(str(local), path))

    def _in_one_step(self, name: str, fill: Callable[[str], Any]) -> None:
        target = self.path(name)
        if self.whole:
            fill(target)
            return
        temporary = self._temporary(target)
        try:
            fill(temporary)
            self._place(temporary, target)
        except BaseException:
            self._discard(temporary)
            raise

    def remove(self, name: str) -> None:
        """Remove a file, where it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.system.rm_file(self.path(name))

    def _temporary(self, target: str) -> str:
        folder, name = posixpath.split(target)
        self.system.makedirs(folder, exist_ok=True)
        return posixpath.join(folder, f".{name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")

    def _place(self, temporary: str, target: str) -> None:
        if "file" in self.system.protocol:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
        else:
            self.system.mv(temporary, target)

    def _discard(self, temporary: str) -> None:
        with contextlib.suppress(Exception):  # of the store: what went wrong before is what is told
            self.system.rm_file(temporary)

    def remove_leftovers(self, folder: str) -> None:
        """Remove the temporary files of killed processes."""
        for name in self.sizes(folder):
            if name.startswith(".") and name.endswith(".tmp"):
                self.remove(f"{folder}/{name}")
