"""Files that a killed process cannot leave half written: JSON lines, and replacement in one step.

Only a line feed ends a line: a caption may hold U+2028 or a vertical tab, where `str.splitlines` would cut it in two.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import gc
import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from captune.errors import CaptionFileError, CaptuneError, UsageError

try:
    import fcntl
except ImportError:  # Windows has no advisory locks: `lock` always succeeds there
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # of an address; a Path has lost its second slash
_TEMPORARY = re.compile(r"\.(.+)\.([0-9]+)\.tmp", re.DOTALL)  # of `replacing`
STDOUT = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
DEEPEST = 100  # brackets of YAML inside one another
LARGEST_CONFIG = 2**20  # bytes of a file of settings


def output_path(path: str | os.PathLike[str], *suffixes: str, what: str, folder: bool = False) -> Path:
    """Return where something is to be written, refused here and not after hours of work.

    Args:
        path: as the user named it.
        suffixes: what a file's name may end with, the first one for messages; none: whatever it ends with.
        what: the subject of messages, such as "captions".
        folder: whether a folder is written, not a file.

    Raises:
        UsageError: an address instead of a path, an ending that is not served, or a path that cannot be written there.
    """
    text = os.fspath(path)
    if not text or (text == "." and not folder):
        raise UsageError(f"{what}: the output has no name")
    if _SCHEME.match(text):
        raise UsageError(f"{what} are written to local paths, not to {text}: name a path and copy the result there")
    if "\0" in text:
        raise UsageError(f"{what}: {text!r} is no path")
    path = Path(text)
    if os.path.abspath(path).startswith(
        ("/dev/", "/proc/", "/sys/")
    ):  # replaced by its temporary file, a device is lost
        raise UsageError(f"{what} are not written to {path}: name a file of a disk")
    ending = path.suffix.lower()
    if suffixes and ending not in suffixes:
        raise UsageError(
            f"{what} are written as {' or '.join(suffixes)}, not as {path.suffix or path.name}: name the output "
            f"{path.with_suffix(suffixes[0])}"
        )
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        blocked = next((p for p in path.parents if p.exists() or p.is_symlink()), None)
        if blocked is not None and not blocked.is_dir():
            raise UsageError(f"{path} cannot be written: {blocked} is not a folder") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    else:
        if folder and not stat.S_ISDIR(mode):
            raise UsageError(f"{path} is a file; {what} are written into a folder")
        if not folder and stat.S_ISDIR(mode):
            raise UsageError(f"{path} is a folder; {what} are written into a file")
        if not folder and not stat.S_ISREG(mode):
            raise UsageError(f"{path} is no regular file; {what} are not written there")
    return path


def refuse_missing(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse files that are to be read and are not there.

    Raises:
        UsageError: some are not; it names them.
    """
    if missing := [os.fspath(path) for path in paths if not os.path.exists(path)]:
        raise UsageError(f"{', '.join(missing)} cannot be read: No such file or directory")


def refuse_address(path: str | os.PathLike[str]) -> None:
    """Refuse an address, such as ``s3://bucket/caps.jsonl``, where files are read from local paths.

    Raises:
        UsageError: it is one.
    """
    if found := _SCHEME.match(text := os.fspath(path)):
        text = f"{found[0]}/{text[found.end() :].lstrip('/')}"
        raise UsageError(f"{text} is an address, and local files are read: copy it here, and name the copy")


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is standard output (``-``), a FIFO or a terminal: written, never read or replaced."""
    if str(path) in ("-", *STDOUT):
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def read_file(path: str | os.PathLike[str], *, error: type[CaptuneError], largest: int | None = None) -> bytes:
    """Read a regular file; a pipe or a device could be waited for, or read, for ever.

    Args:
        path: the file.
        error: what is raised, with the file's name, where it cannot be read.
        largest: how many bytes it may have.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path} is {'a folder' if stat.S_ISDIR(status.st_mode) else 'no regular file'}; name a file")
        if largest is not None and status.st_size > largest:
            raise error(f"{path} has {status.st_size:,} bytes; it may have {largest:,} at most")
        return Path(path).read_bytes()
    except (OSError, ValueError) as problem:
        if isinstance(problem, CaptuneError):
            raise
        raise error(f"{path} cannot be read: {getattr(problem, 'strerror', None) or problem}") from problem


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Hold back the garbage collector: of a hundred thousand rows in the making it looks at each many times over."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def parse_json(
    text: str | bytes, where: str, *, error: type[CaptuneError] = CaptionFileError, nan: bool = False
) -> Any:
    """Parse JSON from outside; whatever is wrong with it is an `error` that names `where` and the line.

    Refused besides what is no JSON: NaN and infinities unless `nan`, text that is not UTF-8, nesting that the parser
    cannot follow, and a key that stands twice in one object (the parser would keep the last).
    """
    try:
        text = _text(text)
        return (_ROWS if nan else _JSON).decode(text)
    except json.JSONDecodeError as problem:
        place = f"line {problem.lineno}, column {problem.colno}"
        raise error(f"{where} is not valid JSON: {problem.msg} ({place})") from problem
    except RecursionError as problem:
        raise error(f"{where} is nested too deeply to be read") from problem
    except _RepeatedKey as problem:
        raise error(f"{where}{_lines_of(problem.key, text)}: {problem}") from problem
    except ValueError as problem:  # an encoding, a number of thousands of digits, NaN
        raise error(f"{where} is not valid JSON: {problem}") from problem


def _text(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode(json.detect_encoding(text))


class _RepeatedKey(ValueError):
    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} stands twice in one object; keep one")
        self.key = key


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKey(next(key for key in made if keys.count(key) > 1))
    return made


def _lines_of(key: str, text: str | bytes) -> str:
    """Return ", lines 3 and 7" where a key that stands twice stands nowhere else, and not on one line."""
    text = _text(text)
    found = re.finditer(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:", text)
    lines = [text.count("\n", 0, place.start()) + 1 for place in found]
    return f", lines {lines[0]} and {lines[1]}" if len(lines) == 2 and lines[0] < lines[1] else ""


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


_JSON = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number)
_ROWS = json.JSONDecoder(object_pairs_hook=_once)


def read_json(path: str | os.PathLike[str], *, error: type[CaptuneError] = CaptionFileError) -> Any:
    """Read a JSON file; see `parse_json`."""
    return parse_json(read_file(path, error=error), str(path), error=error)


def parse_yaml(text: str | bytes, where: str, *, error: type[CaptuneError] = UsageError) -> Any:
    """Parse YAML as plain values; whatever is wrong with it is an `error` that names `where` and the line.

    Refused besides what is no YAML: a key that stands twice (YAML keeps the last), whole numbers that YAML 1.1 reads
    in another base (010 is 8, 1:30 is 90), nesting that the parser cannot follow.
    """
    import yaml

    depth = deepest = 0  # before it is parsed, which takes the square of it in time
    for bracket in re.findall(r"[\[\]{}]", text if isinstance(text, str) else text.decode("latin-1")):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise error(f"{where} is nested too deeply to be read")

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            line = key.start_mark.line + 1
            if name is not None and name in seen:
                raise error(f"{where}: {name!r} stands twice, in lines {seen[name]} and {line}; keep one")
            seen[name] = line
        return loader.construct_mapping(node)

    def number(loader: Any, node: Any) -> Any:
        if re.fullmatch(r"[-+]?0[0-9_]+|.*:.*", node.value):
            raise error(
                f"{where}, line {node.start_mark.line + 1}: {node.value} is not read as it looks (YAML takes it for "
                "another base); write a number without leading zeros and colons, or put a text in quotes"
            )
        short = node.tag.rpartition(":")[2]
        return getattr(loader, f"construct_yaml_{short}")(node)

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    Loader.add_constructor("tag:yaml.org,2002:int", number)
    Loader.add_constructor("tag:yaml.org,2002:float", number)
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as problem:
        raise error(f"{where} is not valid YAML: {' '.join(str(problem).split())[:300]}") from problem
    except RecursionError as problem:
        raise error(f"{where} is nested too deeply to be read") from problem
    except CaptuneError:
        raise
    except (ValueError, TypeError, OverflowError) as problem:  # an encoding, a date that does not exist, an odd key
        raise error(f"{where} is not valid YAML: {problem}") from problem


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, an error of the disk that names no file (one of `write`, `fsync`, torch) gets the name of this one."""
    try:
        yield
    except Exception as error:
        if not disk_failed(error):
            raise
        if not isinstance(error, OSError):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path)) from error
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def disk_failed(error: BaseException) -> bool:
    """Whether an error is the disk's: full, over its quota, or a file too large for it."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
    text = str(error)
    return any(sign in text for sign in ("inline_container", "PytorchStreamWriter", "No space left", "os error 28"))


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, name: str | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on leaving, what was written there replaces `path` in one step.

    A reader, or a crash, sees the old file or the new one and nothing between. After an error `path` is unchanged.

    Args:
        path: the file to write.
        name: the temporary file's name; None: one with the process's number. A fixed name is for work under a lock: a
            killed process leaves one file, which the next one overwrites.
    """
    path = Path(path)
    temporary = path.with_name(name or f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file in one step; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder beside `path`; on leaving, what was written there, on the disk, becomes `path`.

    A folder of that name is whole or not there. After an error `path` is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    discard(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync_folder(temporary)
        if path.exists():
            discard(path)
        os.rename(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove a folder, first its name: a crash leaves none half removed under it, but one for `remove_leftovers`."""
    if folder.exists():
        gone = folder.with_name(f".{folder.name.strip('.')}.{os.getpid()}.discarded.tmp")
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(folder, gone)
        shutil.rmtree(gone)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of `replacing`, `replacing_folder` and `discard`; for use under a lock."""
    for path in [found for depth in ("", "*/", "*/*/") for found in folder.glob(f"{depth}.*.tmp")]:
        remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_stale(folder: Path, names: Collection[str]) -> int:
    """Remove what killed processes of this machine left of `replacing` files of these names; returns how many.

    Args:
        folder: theirs; it need not be there.
        names: of the files that the caller alone writes. One that a running process writes is left to it.
    """
    removed = 0
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if found and found[1] in names and not _runs(int(found[2])):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)
                    removed += 1
    return removed


def _runs(process: int) -> bool:
    """Whether another process of this number is running; where that cannot be asked (Windows): yes."""
    if process == os.getpid():  # of an earlier container, where the number is always the same
        return False
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def sync(path: Path) -> None:
    """Put a file or a folder's list of files on the disk, where the file system can."""
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        with naming(path):
            os.fsync(number)
    except OSError as error:
        if disk_failed(error):
            raise
    finally:
        os.close(number)


def sync_folder(folder: Path) -> None:
    """Put all files of a folder on the disk."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def lock(file: IO[Any]) -> bool:
    """Lock an open file against other processes until it is closed.

    Returns:
        False where another process holds it.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_stream(path: str, *, patience: float = 10) -> IO[str]:
    """Open a named pipe or a device to write text into; a pipe that nobody reads is refused after some seconds.

    Raises:
        UsageError: nobody reads, or it cannot be opened.
    """
    until = time.monotonic() + patience
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise UsageError(f"{path} cannot be written: {error.strerror}") from error
            if time.monotonic() > until:
                raise UsageError(f"{path} is a pipe that nobody reads: start its reader first") from error
        time.sleep(0.1)
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "w", encoding="utf-8")


def refuse_pipes(folder: Path, *, error: type[CaptuneError]) -> None:
    """Refuse a folder with a named pipe or a device in it, which would be waited for when it is read or written."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                mode = entry.stat().st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    raise error(f"{entry.path} is no regular file: remove it, or name another folder")


def lock_folder(folder: Path) -> int | None:
    """Lock a folder against other processes until this one ends, by itself where the file system locks folders.

    Returns:
        What is open; None where another process holds it.
    """
    number = os.open(folder, os.O_RDONLY) if fcntl is not None else -1
    if fcntl is None:
        return number
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        return None
    except OSError:  # NFS locks only what can be written
        os.close(number)
        file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        return file
    return number


def locks(number: int, folder: Path) -> bool:
    """Whether what `lock_folder` opened locks the folder that is there now, not one that was removed or moved since."""
    if fcntl is None:
        return True
    held = os.fstat(number)
    return any(path.exists() and os.path.samestat(held, path.stat()) for path in (folder, folder / ".lock"))


def write_csv(file: IO[str], rows: Iterable[Iterable[Any]], delimiter: str = ",") -> None:
    """Write rows of a table to an open file; every cell is quoted of a row with a lone carriage return.

    `csv` leaves that unquoted before Python 3.13, and reads it as the end of the row.
    """
    plain = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    quoting = csv.writer(file, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in map(list, rows):
        (quoting if any("\r" in cell for cell in row if isinstance(cell, str)) else plain).writerow(row)


def jsonl_line(row: Mapping[str, Any]) -> str:
    """Return a row as a line of JSON with its line end; a lone surrogate is escaped, since UTF-8 cannot hold it."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        line = json.dumps(row, allow_nan=False)
    return line + "\n"


def read_jsonl(path: str | os.PathLike[str], *, problems: list[str] | None = None) -> list[dict[str, Any]]:
    """Read a file of JSON objects, one per line, in file order.

    A torn last line (no line end, no valid JSON) is left out and logged.

    Args:
        path: the file.
        problems: given a list, every invalid line is left out and a sentence about it is appended here.

    Raises:
        CaptionFileError: for an invalid line, if no `problems` are given.
    """
    return [row for _, row in jsonl_rows(path, problems=problems)]


def jsonl_rows(
    path: str | os.PathLike[str], *, problems: list[str] | None = None, whole: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, row) as `read_jsonl` reads them; `whole`: a torn last line and NaN are errors too."""
    path, decode = Path(path), (_JSON if whole else _ROWS).decode
    lines = read_file(path, error=CaptionFileError).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _object(line.decode("utf-8", "strict" if problems is None else "replace"), decode)
        except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            if problems is not None:
                why = f"JSON ({error.msg})" if isinstance(error, json.JSONDecodeError) else "a JSON object"
                problems.append(f"{path.name} line {number} is not {why}; it was left out.")
                continue
            if number == len(lines) and not whole and not isinstance(error, _RepeatedKey):
                logger.warning("%s: the last line (%d) is cut off and left out", path, number)
                break
            why = "nested too deeply to be read" if isinstance(error, RecursionError) else str(error)
            cut = " (the file may be cut off)" if number == len(lines) else ""
            raise CaptionFileError(f"{path}, line {number}: {why}{cut}") from error
        yield number, row


def _object(line: str, decode: Any) -> dict[str, Any]:
    row = decode(line)
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    return row


def decode_row(line: str | bytes) -> dict[str, Any]:
    """Decode a line of JSON lines; a ValueError or a RecursionError says what is wrong with it."""
    return _object(line if isinstance(line, str) else line.decode("utf-8"), _ROWS.decode)


def torn_line(path: Path) -> tuple[int, bytes]:
    """Return where the last line begins that lacks its line end, and that line; empty where the file ends well."""
    with path.open("rb") as file:
        end = start = file.seek(0, os.SEEK_END)
        content = b""
        while start > 0 and b"\n" not in content:
            start = max(0, start - 2**16)
            file.seek(start)
            content = file.read(end - start)
        line = content.rpartition(b"\n")[2]
        return end - len(line), line


def cut_torn_line(path: Path) -> None:
    """Remove a last line without its line end, which a killed process may have left; logged."""
    start, line = torn_line(path)
    if line:
        os.truncate(path, start)
        logger.warning("%s: the last line was cut off and is removed", path)


def short_names(files: Sequence[Path]) -> list[str]:
    """Return the files' names without suffixes, with as much of their folders as tells them apart."""
    for depth in range(1, max(len(file.absolute().parts) for file in files) + 1):
        names = ["/".join((*file.absolute().parts[-depth:-1], file.stem)) for file in files]
        if len(set(names)) == len(names):
            return names
    return [str(file) for file in files]
