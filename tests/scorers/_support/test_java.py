from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import fake_java
import pytest

from captune.cli import doctor
from captune.errors import ScorerError
from captune.scorers import load_scorer
from captune.scorers._support import java

ECHO = "for line in sys.stdin.buffer:\n    sys.stdout.buffer.write(line.upper()); sys.stdout.flush()\n"


def start(**options: object) -> java.JavaProgram:
    return java.JavaProgram("TEST", ["-jar", "x.jar"], **{"memory": "1G", "timeout": 10, **options})


def test_java_home_comes_before_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java.install(tmp_path, monkeypatch, "")
    assert java.find_java() == str(tmp_path / "bin" / "java")
    other = tmp_path / "home" / "bin" / "java"
    other.parent.mkdir(parents=True)
    other.symlink_to(tmp_path / "bin" / "java")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert java.find_java() == str(other)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    assert java.find_java() == str(tmp_path / "bin" / "java")


@pytest.mark.parametrize(("said", "release"), [("1.8.0_292", 8), ("11.0.2", 11), ("17", 17), ("24-ea", 24)])
def test_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, release: int) -> None:
    fake_java.install(tmp_path, monkeypatch, "", version=said)
    assert java.java_version(java.find_java()) == release


def test_no_java_is_one_sentence_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(ScorerError, match="there is no Java.*apt install"):
        java.find_java()
    lines = list(doctor._java())
    assert [(name, state) for name, state, _, _ in lines] == [(n, "optional") for n in ("java", "meteor", "spice")]
    assert all("there is no Java" in advice for *_, advice in lines)


def test_a_java_that_does_not_run_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Mac without Java, whose /usr/bin/java says only that there is none."""
    program = tmp_path / "java"
    program.write_text("#!/bin/sh\necho Unable to locate a Java Runtime. >&2; exit 1\n")
    program.chmod(0o755)
    with pytest.raises(ScorerError, match="Unable to locate a Java Runtime.*apt install"):
        java.java_version(str(program))


def test_no_pycocoevalcap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ScorerError, match=r"pip install 'captune\[scorers\]'"):
        java.package_folder()


def test_a_broken_pycocoevalcap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = fake_java.install(tmp_path, monkeypatch, "")
    assert java.package_file("meteor", "meteor-1.5.jar") == package / "meteor" / "meteor-1.5.jar"
    with pytest.raises(ScorerError, match="x.jar is not there: pip install"):
        java.package_file("meteor", "x.jar")


def test_settings() -> None:
    meteor, spice = load_scorer("meteor"), load_scorer("spice:/a b/c?timeout=.5&memory=500m")
    assert (meteor.timeout, meteor.memory) == (300, "2G")
    assert (spice._folder, spice.timeout, spice.memory) == (Path("/a b/c"), 0.5, "500m")
    wrong = {"?speed=1": "unknown setting 'speed'", "?timeout=0": "more than 0", "?memory=x": "2G or"}
    for argument, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            load_scorer(f"meteor:{argument}")


def test_every_line_has_its_answer_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java.install(tmp_path, monkeypatch, ECHO)
    with start() as program:
        assert program.ask(["a", "ü 🐕", ""]) == ["A", "ü 🐕", ""]
        assert program.ask(["\ud800"]) == ["?"]  # half a character cannot be written as UTF-8
        assert program.ask([]) == []
        assert program.running
    (run,) = fake_java.seen(tmp_path)
    assert not program.running
    assert not fake_java.is_running(run["pid"])
    assert not program.folder.exists()
    assert run["cwd"] == str(program.folder.resolve())  # not site-packages: a crash leaves its log there
    assert run["args"][0] == "-Xmx1G"
    assert {"-Dfile.encoding=UTF-8", "-XX:-UsePerfData", f"-Djava.io.tmpdir={program.folder}"} < set(run["args"])
    assert run["args"][-2:] == ["-jar", "x.jar"]


def test_more_than_the_pipes_hold_does_not_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Megabytes of input while the program waits for its output to be read."""
    fake_java.install(tmp_path, monkeypatch, ECHO)
    lines = ["x" * 500_000] * 4 + ["y"] * 20_000
    with start() as program:
        assert program.ask(lines) == [line.upper() for line in lines]


def test_silence_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java.install(tmp_path, monkeypatch, "print('one', flush=True); time.sleep(600)")
    program = start(timeout=1)
    with pytest.raises(ScorerError, match="TEST gave no answer for 1 s and was ended"):
        program.ask(["a", "b" * 1_000_000])
    assert not fake_java.is_running(fake_java.seen(tmp_path)[0]["pid"])
    assert not program.folder.exists()


def test_its_last_words_are_in_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
        sys.stderr.write('loading\\nException in thread "main" java.lang.OutOfMemoryError: heap\\n')
        sys.stderr.write('\\tat x.y.Error.z()\\n')
        sys.exit(3)
    """
    fake_java.install(tmp_path, monkeypatch, body)
    with start() as program, pytest.raises(ScorerError) as e:
        program.ask(["a"])
    assert str(e.value) == (
        'TEST ended with exit status 3: Exception in thread "main" java.lang.OutOfMemoryError: heap; give it more, '
        "as in 'memory=4G'"
    )


def test_killed_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java.install(tmp_path, monkeypatch, ECHO + "time.sleep(600)")
    with start() as program:
        program.ask(["a"])
        os.kill(fake_java.seen(tmp_path)[0]["pid"], signal.SIGKILL)
        with pytest.raises(ScorerError, match="TEST was killed by SIGKILL"):
            program.ask(["b"])


def test_a_wrapper_script_ends_with_the_java_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
        import subprocess
        child = subprocess.Popen([sys.executable, '-SEc', 'import time; time.sleep(600)'])
        print(child.pid, flush=True)
        child.wait()
    """
    fake_java.install(tmp_path, monkeypatch, body)
    with start() as program:
        child = int(program.ask(["a"])[0])
        assert fake_java.is_running(child)
    deadline = time.monotonic() + 5  # the orphan's zombie is taken by init
    while fake_java.is_running(child) and time.monotonic() < deadline:
        stat = Path(f"/proc/{child}/stat")
        if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        assert not fake_java.is_running(child)


def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    fake_java.install(tmp_path, monkeypatch, "time.sleep(600)")
    program = start(timeout=60)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins by ignoring it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    begun = time.monotonic()
    threading.Timer(0.5, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        program.ask(["a"])
    assert time.monotonic() - begun < 10
    assert not fake_java.is_running(fake_java.seen(tmp_path)[0]["pid"])


def test_ends_with_the_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java.install(tmp_path, monkeypatch, ECHO)
    program = start()
    program.ask(["a"])
    folder = program.folder
    del program
    gc.collect()
    assert not fake_java.is_running(fake_java.seen(tmp_path)[0]["pid"])
    assert not folder.exists()


def test_ends_with_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java.install(tmp_path, monkeypatch, ECHO)
    code = """
        from captune.scorers._support.java import JavaProgram
        program = JavaProgram("TEST", [], memory="1G", timeout=10)
        program.ask(["a"])
        print(program.folder)
        raise SystemExit("unhappy")
    """
    answer = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True,
                            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert answer.stderr.strip() == "unhappy"
    assert not fake_java.is_running(fake_java.seen(tmp_path)[0]["pid"])
    assert not Path(answer.stdout.strip()).exists()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_child_leaves_it_to_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java.install(tmp_path, monkeypatch, ECHO)
    with start() as program:
        program.ask(["a"])
        child = os.fork()
        if child == 0:
            program.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert program.ask(["b"]) == ["B"]


def test_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files come and go by its folder; output that nobody reads does not lock it."""
    body = "open('out', 'w').write(open('in').read() * 2); sys.stdin.read(); print('x' * 1_000_000)"
    fake_java.install(tmp_path, monkeypatch, body)
    with start(files={"in": "ü"}) as program:
        program.wait()
        assert (program.folder / "out").read_text(encoding="utf-8") == "üü"
    assert not program.folder.exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("time.sleep(600)", "TEST did not end within 1 s and was ended"),
        ("os.kill(os.getpid(), 9)", "TEST was killed by SIGKILL"),
        ("sys.stderr.write('Error: could not\\njava.io.IOException: disk\\n'); sys.exit(1)",
         "TEST ended with exit status 1: java.io.IOException: disk"),
        ("sys.stderr.write('Invalid heap: -Xmx0\\nNo virtual machine.\\n'); sys.exit(1)",
         "TEST ended with exit status 1: Invalid heap: -Xmx0; No virtual machine."),
    ],
)  # fmt: skip
def test_wait_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str) -> None:
    fake_java.install(tmp_path, monkeypatch, body)
    with start(timeout=1 if "sleep" in body else 30) as program, pytest.raises(ScorerError) as e:
        program.wait()
    assert str(e.value) == message
    assert not fake_java.is_running(fake_java.seen(tmp_path)[0]["pid"])
    assert not program.folder.exists()


def test_a_java_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "java"
    program.write_bytes(b"\x7fELF nonsense")
    program.chmod(0o755)
    monkeypatch.setattr(java, "find_java", lambda: str(program))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ScorerError, match="TEST could not start"):
        start()
    assert not list(tmp_path.glob("captune-*"))


def test_examine_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = fake_java.install(tmp_path, monkeypatch, "")
    monkeypatch.delenv("CORENLP_HOME", raising=False)
    (_, state, found, _), meteor, spice = list(doctor._java())
    assert (state, found) == ("ok", f"11 at {tmp_path / 'bin' / 'java'}")
    assert meteor[:2] == ("meteor", "ok")
    assert spice[:2] == ("spice", "optional")
    assert "CORENLP_HOME" in spice[3]
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (package / "spice" / "lib").mkdir(exist_ok=True)
        (package / "spice" / "lib" / name).touch()
    assert list(doctor._java())[2][1] == "ok"
