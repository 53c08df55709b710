"""The Java programs of pycocoevalcap: where they are, and a running one that is always ended.

METEOR and SPICE exist as Java programs only, and pycocoevalcap (`pip install 'captune[scorers]'`) brings them. Its own
Python wrappers are not used: they write into site-packages, and wait for ever for a program that does not answer.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import queue
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from captune.errors import ScorerError, SpecError

INSTALL_JAVA = "apt install default-jre-headless, brew install openjdk, or conda install -c conda-forge openjdk"
_LAST_WORDS = 2000  # characters of a failed program's error output that are searched for the reason


def check_memory(memory: str) -> None:
    """Raise SpecError for what is no limit of a heap."""
    if not re.fullmatch(r"[1-9]\d*[kmgKMG]", memory):
        raise SpecError(f"memory is a number and a unit, as in 2G or 500M, not {memory!r}")


def find_java() -> str:
    """The `java` of JAVA_HOME, or else of the PATH."""
    home = os.environ.get("JAVA_HOME")
    found = (shutil.which("java", path=str(Path(home, "bin"))) if home else None) or shutil.which("java")
    if found is None:
        raise ScorerError(f"there is no Java, neither in JAVA_HOME nor on the PATH: {INSTALL_JAVA}")
    return found


def java_version(java: str) -> int:
    """The feature release: 8, 11, 17 ... Starts it for a moment, since a `java` may be there and not run."""
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, timeout=30, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise ScorerError(f"{java} -version does not answer ({e}): {INSTALL_JAVA}") from e
    said = (answer.stderr + answer.stdout).decode("utf-8", errors="replace")
    match = re.search(r'version "(?:1\.)?(\d+)', said)
    if answer.returncode or not match:
        raise ScorerError(f"{java} is no working Java ({_reason(said) or 'it says nothing'}): {INSTALL_JAVA}")
    return int(match.group(1))


def package_folder() -> Path:
    """Return the folder of pycocoevalcap, found without importing it."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise ScorerError("pycocoevalcap, which brings the Java programs, is not there: pip install 'captune[scorers]'")
    return Path(next(iter(spec.submodule_search_locations)))


def package_file(*parts: str) -> Path:
    """A file of pycocoevalcap."""
    file = package_folder().joinpath(*parts)
    if not file.is_file():
        raise ScorerError(f"{file} is not there: pip install --force-reinstall --no-deps pycocoevalcap==1.2")
    return file


def package_version() -> str:
    """Return pycocoevalcap's version, "none" where it is not installed."""
    try:
        return importlib.metadata.version("pycocoevalcap")
    except importlib.metadata.PackageNotFoundError:
        return "none"


class JavaProgram:
    """A running Java program.

    It works in a temporary folder of its own, and both end with `close`, with the `with` block, with the object, and
    with Python.

    Args:
        name: what messages call it.
        arguments: everything after `java` but the memory, such as ["-jar", "x.jar"].
        memory: the heap's limit, as in "2G".
        timeout: seconds; `ask` waits that long for each line, `wait` for the end of the program.
        files: texts to lay into the folder first, by file name.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        memory: str,
        timeout: float,
        files: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.timeout = name, timeout
        java = find_java()
        folder = tempfile.TemporaryDirectory(prefix="captune-", ignore_cleanup_errors=True)
        self.folder = Path(folder.name)
        for file, text in (files or {}).items():
            (self.folder / file).write_text(text, encoding="utf-8")
        # The JVM's own habits are turned off: a file of performance data in /tmp, a temporary folder that stays, the
        # machine's language and encoding.
        options = [f"-Xmx{memory}", "-XX:-UsePerfData", f"-Djava.io.tmpdir={self.folder}", "-Dfile.encoding=UTF-8",
                   "-Duser.language=en", "-Duser.country=US", "-Djava.awt.headless=true"]  # fmt: skip
        try:
            with (self.folder / "stderr").open("wb") as errors:
                self._process = subprocess.Popen(
                    [java, *options, *arguments],
                    cwd=self.folder,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    start_new_session=True,  # so that a wrapper script and the Java it started end together
                )
        except OSError as e:
            folder.cleanup()
            raise ScorerError(f"{name} could not start {java}: {e.strerror or e}") from e
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        reader = threading.Thread(target=_read, args=(self._process, self._lines), daemon=True)
        reader.start()
        self.close = weakref.finalize(self, _end, self._process, reader, folder, os.getpid())

    def __enter__(self) -> JavaProgram:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether the program still runs."""
        return self.close.alive and self._process.poll() is None

    def ask(self, lines: Sequence[str]) -> list[str]:
        """One line of answer to each line. After a failure the program is ended: its next line would be another's."""
        text = "".join(f"{line}\n" for line in lines).encode("utf-8", errors="replace")
        # Written beside the reading: a program blocked on its output would never read the rest of its input.
        writer = threading.Thread(target=_write, args=(self._process, text), daemon=True)
        writer.start()
        try:
            answers = [self._next() for _ in lines]
        except BaseException:
            self.close()
            raise
        writer.join()
        return answers

    def wait(self) -> None:
        """Until the program has ended by itself, and well."""
        try:
            with contextlib.suppress(OSError):
                self._process.stdin.close()  # type: ignore[union-attr]
            self._process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            self.close()
            raise ScorerError(f"{self.name} did not end within {self.timeout:g} s and was ended") from None
        except BaseException:
            self.close()
            raise
        if self._process.returncode:
            raise ScorerError(self._obituary())

    def _next(self) -> str:
        try:
            line = self._lines.get(timeout=self.timeout)
        except queue.Empty:
            raise ScorerError(f"{self.name} gave no answer for {self.timeout:g} s and was ended") from None
        if line is None:
            raise ScorerError(self._obituary())
        return line.decode("utf-8", errors="replace").strip()

    def _obituary(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # the output may close a moment before the program is gone
        code = self._process.returncode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit status {code}"
        with contextlib.suppress(ValueError):
            how = how.replace(f"signal {-(code or 0)}", signal.Signals(-(code or 0)).name)
        said = (self.folder / "stderr").read_text(encoding="utf-8", errors="replace")
        reason = _reason(said[:_LAST_WORDS] + "\n" + said[-_LAST_WORDS:])
        if "OutOfMemoryError" in said:
            reason += "; give it more, as in 'memory=4G'"
        return f"{self.name} {how}" + (f": {reason}" if reason else "")


def _reason(said: str) -> str:
    """The line of a program's last words that names an exception, or the last two lines."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    named = [line for line in lines if re.search(r"\w(Exception|Error)\b", line) and not line.startswith("at ")]
    return (named[0] if named else "; ".join(lines[-2:]))[:300]


def _read(process: subprocess.Popen[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    try:
        for line in process.stdout:  # type: ignore[union-attr]
            lines.put(line)
    except (OSError, ValueError):  # closed under the reader
        pass
    finally:
        lines.put(None)


def _write(process: subprocess.Popen[bytes], text: bytes) -> None:
    with contextlib.suppress(OSError, ValueError):  # it is gone: the reader sees that too, and says so
        process.stdin.write(text)  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]


def _end(
    process: subprocess.Popen[bytes], reader: threading.Thread, folder: tempfile.TemporaryDirectory[str], owner: int
) -> None:
    if os.getpid() != owner:  # a forked child has a copy of the object; the program is the parent's
        return
    if process.poll() is None:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
    reader.join(1)
    with contextlib.suppress(OSError):
        process.stdin.close()  # type: ignore[union-attr]
    if not reader.is_alive():
        process.stdout.close()  # type: ignore[union-attr]
    folder.cleanup()
