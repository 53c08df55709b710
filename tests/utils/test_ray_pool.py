"""Work shared by Ray: what is refused before Ray is imported."""

from __future__ import annotations

import importlib.util
import socket
import sys
import time

import pytest

from captune.errors import SettingError
from captune.utils.ray_pool import check_ray, cluster

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


def test_a_cluster_that_does_not_answer_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check_ray(f"127.0.0.1:{port}")
        check_ray(f"ray://127.0.0.1:{port}")
    before, loaded = time.perf_counter(), "ray" in sys.modules
    with pytest.raises(SettingError, match=rf"Ray cannot be reached at 127.0.0.1:{port}: Connection refused; `ray st"):
        check_ray(f"127.0.0.1:{port}")
    assert time.perf_counter() - before < 5 and ("ray" in sys.modules) == loaded
    for address in ("nonsense", ":6379", "host:", "host:port", "host:99999"):
        with pytest.raises(SettingError, match="a cluster's address is auto or host:port"):
            check_ray(address)
    check_ray("auto")
    check_ray()


def test_ray_is_started_again_where_a_busy_machine_was_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    tries: list[str] = []

    def init(**settings: object) -> None:
        tries.append(str(settings["address"]))
        if len(tries) < 3:
            raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with cluster(None, 1):
        assert tries == ["local"] * 3
    monkeypatch.setattr("captune.utils.ray_pool.STARTS", 1)
    tries.clear()
    with pytest.raises(SettingError, match="Ray cannot be started on this machine: The current node timed out"):
        cluster(None, 1).__enter__()
