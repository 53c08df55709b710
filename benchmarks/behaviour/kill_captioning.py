"""Kills a captioning job at random moments until all is captioned: nothing may be missing, twice, or another caption.

    python -m benchmarks.behaviour.kill_captioning --engine process --output benchmarks/behaviour/kill_process
    python -m benchmarks.behaviour.kill_captioning --engine server --output benchmarks/behaviour/kill_server
    python -m benchmarks.behaviour.kill_captioning --engine server --server transformers --kills 20
    python -m benchmarks.behaviour.kill_captioning --engine ray --output benchmarks/behaviour/kill_ray
    python -m benchmarks.behaviour.kill_captioning --engine ray-local --kills 20

A driver captions 2,000 images into caps.jsonl and gets SIGKILL, then the same command again, and so on. A third of the
kills come at a random time of its first second (while it loads, reads what is there, opens images), the others once it
has made a random number of captions, and a little later. Where the engine has processes of its own, a third of the
kills are the server's, two thirds those of Ray's workers. When all images have a caption, another round begins with a
new file, until the kills are done.

After every kill the whole lines of the file are compared with those of a run that nobody disturbed: each is one of
these, and none is there twice. At the end of a round the file has to be the same to the byte.

A driver is a child forked of a process that has imported everything, so that most of its life is work. The server is
`benchmarks.caption_server`, or `transformers serve` with storybook. `ray` is a cluster that stays and is named by its
address; with `ray-local` each driver starts its own, which takes most of a driver's life. To add an engine: a class
with `Engine`'s methods.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

from benchmarks import _lib, caption_server
from captune import storybook
from captune.data import load_images, open_image
from captune.inference.job import caption_to_file
from captune.inference.ray_engine import caption_to_parts

PATIENCE = 300.0  # seconds without a new caption after which a driver counts as hanging


class Engine:
    """What is tried: how its driver starts, what else of it can be killed, and what it has made so far.

    Args:
        images: a folder.
        work: a folder for what it needs.
    """

    others = 1 / 3  # of the kills, where there are processes beside the driver

    def __init__(self, images: Path, work: Path) -> None:
        self.images, self.work = images, work

    def model(self) -> str:
        return "storybook"

    def settings(self) -> dict[str, Any]:
        return {"device": "cpu"}

    def start_driver(self, output: Path) -> int:
        """The number of a process that captions all images into `output`, resuming what is there."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            os.dup2(os.open(self.work / "driver.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            code = 1 if self.caption(output).bad else 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def caption(self, output: Path) -> Any:
        """What the driver does."""
        return caption_to_file(self.model(), str(self.images), output, progress=False, **self.settings())

    def captions(self, output: Path) -> list[tuple[str, str]]:
        """(image_id, caption) of what is whole on disk."""
        data = output.read_bytes() if output.exists() else b""
        rows = (json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines())
        return [(row["image_id"], row["caption"]) for row in rows]

    def count(self, output: Path) -> int:
        """How many captions there are, quickly."""
        return output.read_bytes().count(b"\n") if output.exists() else 0

    def whole(self, output: Path) -> bytes:
        """What has to be the same after every round."""
        return output.read_bytes()

    def victims(self) -> dict[str, int]:
        """{name: process number} of what can be killed beside the driver."""
        return {}

    def killed(self, name: str) -> None:
        """Start what was killed again, if nothing else does."""

    def stop(self) -> None:
        """End what was started."""


class Process(Engine):
    """The model is in the driver."""


class Server(Engine):
    """The stand-in, which takes about 10 ms for a caption."""

    def __init__(self, images: Path, work: Path) -> None:
        super().__init__(images, work)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = (work / "server.log").open("a")
        self.killed("server")

    def command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.caption_server", "--port", str(self.port), "--seconds", "0.01"]

    def model(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1#{caption_server.MODEL}"

    def settings(self) -> dict[str, Any]:
        return {"do_sample": True, "temperature": 1.0}

    def victims(self) -> dict[str, int]:
        return {"server": self.process.pid}

    def killed(self, name: str) -> None:
        if hasattr(self, "process"):
            self.process.wait()
        self.process = subprocess.Popen(self.command(), stdout=self.log, stderr=self.log)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise SystemExit(f"the server does not start: see {self.log.name}")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


class TransformersServe(Server):
    """transformers' own server, with storybook's captioner."""

    def command(self) -> list[str]:
        entry = "from transformers.cli.transformers import main; main()"
        flags = ["serve", str(storybook.model_path("storybook")), "--host", "127.0.0.1", "--port", str(self.port)]
        return [sys.executable, "-c", entry, *flags, "--device", "cpu"]

    def model(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1#{storybook.model_path('storybook')}"

    def settings(self) -> dict[str, Any]:
        return {"prompt": "", "max_new_tokens": 40}


class RayLocal(Engine):
    """Two workers of a local cluster, which the driver starts and which ends with it; parts of 32 images."""

    MARK = "CAPTUNE_KILL_MARK"
    others = 2 / 3  # a worker starts in a third of the time that a driver takes
    address: str | None = None

    def caption(self, output: Path) -> Any:
        os.environ.setdefault(self.MARK, str(os.getpid()))  # its workers inherit it
        return caption_to_parts(
            "storybook", str(self.images), output, workers=2, batch_size=2, device="cpu", progress=False,
            address=self.address,
        )  # fmt: skip

    def _parts(self, output: Path) -> list[Path]:
        return sorted((output / "parts").glob("*.jsonl"))

    def captions(self, output: Path) -> list[tuple[str, str]]:
        rows = (json.loads(line) for part in self._parts(output) for line in part.read_bytes().splitlines())
        return [(row["image_id"], row["caption"]) for row in rows]

    def count(self, output: Path) -> int:
        return 32 * len(self._parts(output))

    def whole(self, output: Path) -> bytes:
        return b"".join(part.read_bytes() for part in self._parts(output))

    def marked(self) -> dict[int, bytes]:
        """{process number: command line} of Ray's processes whose driver, or cluster, is there."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                line, surroundings = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            except OSError:
                continue
            _, mark, rest = surroundings.partition(f"{self.MARK}=".encode())
            if mark and line and Path(f"/proc/{int(rest.partition(bytes(1))[0])}").exists():
                found[int(folder.name)] = line
        return found

    def victims(self) -> dict[str, int]:
        """One of the workers, where any has started."""
        workers = [number for number, line in self.marked().items() if b"MapWorker" in line]
        return {"worker": random.choice(workers) if workers else 0}


class Ray(RayLocal):
    """The same on a cluster that is there before the drivers, and outlives them."""

    def __init__(self, images: Path, work: Path) -> None:
        super().__init__(images, work)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        ray = str(Path(sys.executable).with_name("ray"))
        command = [ray, "start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--port", str(port)]
        settings = ["--num-cpus", "8", "--object-store-memory", str(2**28), "--include-dashboard", "false"]
        mark = {self.MARK: str(os.getpid()), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
        with (work / "cluster.log").open("a") as log:
            subprocess.Popen([*command, *settings], stdout=log, stderr=log, env=os.environ | mark)
        end = time.monotonic() + PATIENCE
        while b"Ray runtime started" not in (work / "cluster.log").read_bytes():
            if time.monotonic() > end:
                raise SystemExit(f"Ray does not start: see {work / 'cluster.log'}")
            time.sleep(0.2)

    def stop(self) -> None:
        for number in self.marked():
            if number != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)


ENGINES: dict[str, type[Engine]] = {"process": Process, "server": Server, "ray": Ray, "ray-local": RayLocal}


class Trial:
    """One engine under fire."""

    def __init__(self, engine: Engine, kills: int, images: int, random_: random.Random) -> None:
        self.engine, self.kills, self.images, self.random = engine, kills, images, random_
        self.done: Counter[str] = Counter()
        self.drivers, self.failed, self.rounds = 0, 0, 0
        self.wrong: list[str] = []

    def run(self, work: Path) -> None:
        undisturbed = work / "undisturbed.jsonl"
        if self.wait(self.engine.start_driver(undisturbed), undisturbed):
            raise SystemExit("the undisturbed run failed: " + (work / "driver.log").read_text(errors="replace")[-2000:])
        self.expected, self.whole = dict(self.engine.captions(undisturbed)), self.engine.whole(undisturbed)
        assert len(self.expected) == self.images
        while self.done.total() < self.kills and not self.wrong:
            self.rounds += 1
            self.round(work / f"round{self.rounds}.jsonl")

    def round(self, output: Path) -> None:
        failed = 0
        while True:
            pid = self.engine.start_driver(output)
            self.drivers += 1
            code = self.disturb(pid, output)
            self.compare(output)
            failed = failed + 1 if code > 0 else 0
            if failed == 10:
                said = (output.parent / "driver.log").read_text(errors="replace").strip().splitlines()
                self.wrong.append(f"{output.name}: 10 drivers one after the other ended with an error: {said[-1]}")
            if code == 0 or self.wrong:
                break
        if not self.wrong and self.engine.whole(output) != self.whole:
            self.wrong.append(f"{output.name}: other bytes than those of the undisturbed run")

    def disturb(self, pid: int, output: Path) -> int:
        """The driver's exit code; negative where it was killed."""
        if self.done.total() >= self.kills:
            return self.wait(pid, output)
        others = self.engine.victims()
        victim = self.random.choice(list(others)) if others and self.random.random() < self.engine.others else "driver"
        if self.random.random() < 1 / 3:
            end, growth = self.random.uniform(0, 1), None
        else:
            end, growth = PATIENCE, self.random.uniform(0, 4 * self.images / self.kills)
        before, started = self.engine.count(output), time.monotonic()
        while time.monotonic() - started < end:
            if (code := self.ended(pid)) is not None:
                return code
            if growth is not None and self.engine.count(output) - before >= growth:
                time.sleep(self.random.uniform(0, 0.05))
                break
            time.sleep(0.002)
        if (code := self.ended(pid)) is not None:
            return code
        number = pid if victim == "driver" else self.engine.victims()[victim]
        if not number:  # nothing of that kind runs yet
            return self.wait(pid, output)
        os.kill(number, signal.SIGKILL)
        self.done[victim] += 1
        print(f"{self.done.total()} of {self.kills} kills, round {self.rounds}", file=sys.stderr, flush=True)
        if victim == "driver":
            return self.wait(pid, output)
        self.engine.killed(victim)
        return self.disturb(pid, output)

    def ended(self, pid: int) -> int | None:
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found:
            return None
        code = os.waitstatus_to_exitcode(status)
        self.failed += code > 0
        return code

    def wait(self, pid: int, output: Path) -> int:
        last, changed = -1, time.monotonic()
        while (code := self.ended(pid)) is None:
            if (count := self.engine.count(output)) != last:
                last, changed = count, time.monotonic()
            if time.monotonic() - changed > PATIENCE:
                os.kill(pid, signal.SIGKILL)
                self.wrong.append(f"{output.name}: the driver hung at {last} captions")
            time.sleep(0.01)
        return code

    def compare(self, output: Path) -> None:
        rows = self.engine.captions(output)
        twice = [image for image, number in Counter(image for image, _ in rows).items() if number > 1]
        other = [image for image, caption in rows if self.expected.get(image) != caption]
        for what, found in (("twice", twice), ("another caption", other)):
            if found:
                self.wrong.append(f"{output.name}: {len(found)} {what}, such as {found[0]}")

    def result(self) -> dict[str, Any]:
        return {
            "images": self.images, "rounds": self.rounds, "drivers": self.drivers, "kills": dict(self.done),
            "drivers that ended with an error": self.failed, "wrong": self.wrong,
        }  # fmt: skip


def draw(folder: Path, number: int) -> None:
    folder.mkdir()
    for index, row in enumerate(load_images(f"storybook:test?n={number}&seed=77", decode=False, stream=True)):
        open_image(row["image"]).save(folder / f"{index:05d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=tuple(ENGINES), required=True)
    parser.add_argument("--server", choices=("stand-in", "transformers"), default="stand-in")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    kind = TransformersServe if args.engine == "server" and args.server == "transformers" else ENGINES[args.engine]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        draw(work / "images", args.images)
        engine = kind(work / "images", work)
        try:
            trial = Trial(engine, args.kills, args.images, random.Random(args.seed))
            trial.run(work)
        finally:
            engine.stop()
    result = {"engine": args.engine, **({"server": args.server} if args.engine == "server" else {}), **trial.result()}
    _lib.write({**result, "seconds": round(time.monotonic() - started), "machine": _lib.machine()}, None, args.output)
    raise SystemExit(1 if trial.wrong else 0)


if __name__ == "__main__":
    main()
