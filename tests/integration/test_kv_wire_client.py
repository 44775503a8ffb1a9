"""The wire client against a real server: values, permissions, stalls, restarts, threads."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import pytest
import redis

from x2l_cluster.errors import BlockCorrupt, StoreFull, StoreUnavailable
from x2l_cluster.kv.embedded import EmbeddedValkey
from x2l_cluster.kv.wire import WireClient
from x2l_cluster.kv.wire.breaker import BreakerState
from x2l_cluster.kv.wire.errors import Closed, Late, Refusal


class Clock:
    """Real time, and whatever a test adds."""

    ahead = 0.0

    def __call__(self) -> float:
        return monotonic() + self.ahead


@pytest.fixture(params=["unix", "tcp"])
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(port=0 if request.param == "tcp" else None, maxmemory_bytes=64 << 20) as started:
        yield started


@pytest.fixture
def unix_server() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(maxmemory_bytes=64 << 20) as started:
        yield started


@pytest.mark.parametrize("size", [0, 1, 4080, 4096, 65536, 700_001, 5 << 20])
def test_values_of_every_size_travel_both_ways(server: EmbeddedValkey, size: int) -> None:
    value = os.urandom(size)
    with WireClient(server.url) as client:
        assert client.write("k", ("SET", "k", value)) == [b"OK"]
        assert client.get("k") == value
        mine = memoryview(bytearray(size + 100))
        got = client.get("k", into=mine, size=size)
        assert got == value == mine[:size]
        assert mine[size:] == bytes(100)
        assert client.get("no such key") is None
        assert client.get("k") == value
        events = client.stats.events
        assert (events["gets"], events["misses"], events["read_bytes"]) == (4, 1, 3 * size)
        assert client.stats.dialled == 1


def test_a_value_larger_than_its_place_is_no_value(unix_server: EmbeddedValkey) -> None:
    with WireClient(unix_server.url) as client:
        client.write("k", ("SET", "k", bytes(100_000)))
        with pytest.raises(BlockCorrupt, match="k has 100000 bytes, but only 99999 were expected"):
            client.get("k", into=memoryview(bytearray(99_999)))
        assert client.get("k") == bytes(100_000)
        assert client.stats.breakers == {unix_server.url.removeprefix("unix://"): BreakerState.CLOSED}


def test_what_is_written_together_is_there_together_or_not_at_all(unix_server: EmbeddedValkey) -> None:
    with WireClient(unix_server.url) as client, redis.Redis.from_url(unix_server.url) as raw:
        assert client.write("a", ("SET", "a", b"1"), ("HSET", "h", "a", 1)) == [b"OK", 1]
        raw.set("wrong", "type")
        with pytest.raises(Refusal, match="WRONGTYPE"):
            client.write("a", ("SET", "a", b"2"), ("HSET", "wrong", "a", 1))
        with pytest.raises(Refusal, match="NOSUCH"):
            client.write("b", ("SET", "b", b"2"), ("NOSUCH", "b"))
        assert client.get("b") is None
        raw.config_set("maxmemory", 1)
        with pytest.raises(StoreFull, match="delete videos or raise its maxmemory"):
            client.write("c", ("SET", "c", b"3"), ("HSET", "h", "c", 1))
        with pytest.raises(StoreFull):
            client.write("c", ("SET", "c", b"3"))
        raw.config_set("maxmemory", 0)
        assert (client.get("c"), raw.hget("h", "c")) == (None, None)
        assert client.write("c", ("SET", "c", b"3")) == [b"OK"]
        assert set(client.stats.breakers.values()) == {BreakerState.CLOSED}


def test_users_get_what_their_rights_allow(server: EmbeddedValkey) -> None:
    with redis.Redis.from_url(server.url) as raw:
        raw.execute_command("ACL SETUSER reader on >p@ss:w/rd ~x2l:* +get")
        raw.execute_command("ACL SETUSER default on >other ~* +@all")
    secret = "p%40ss%3Aw%2Frd"
    where = server.url.replace("redis://", f"redis://reader:{secret}@").replace("unix://", f"unix://reader:{secret}@")
    with WireClient(where) as client:
        assert client.get("x2l:k") is None
        with pytest.raises(Refusal, match="NOPERM"):
            client.get("y:k")
        with pytest.raises(Refusal, match="NOPERM"):
            client.write("x2l:k", ("SET", "x2l:k", b"1"))
        assert client.get("x2l:k") is None
        assert client.stats.dialled == 1
    with WireClient(where.replace(secret, "guess")) as client, pytest.raises(Refusal, match="WRONGPASS") as refused:
        client.get("x2l:k")
    assert "guess" not in str(refused.value)
    with WireClient(server.url) as client, pytest.raises(Refusal, match="NOAUTH"):
        client.get("x2l:k")
    with WireClient(server.url.replace("redis://", "redis://:other@").replace("unix://", "unix://:other@")) as client:
        assert client.get("y:k") is None


def test_databases_are_apart(unix_server: EmbeddedValkey) -> None:
    with WireClient(f"{unix_server.url}?db=3") as three, WireClient(unix_server.url) as zero:
        three.write("k", ("SET", "k", b"3"))
        assert (three.get("k"), zero.get("k")) == (b"3", None)


def test_threads_share_a_few_connections_and_never_each_others_values(server: EmbeddedValkey) -> None:
    values = {f"k{n}": os.urandom(1000 + 40_000 * n) for n in range(8)}
    with WireClient(server.url, connections=3, cap_bytes=400_000) as client:
        for key, value in values.items():
            client.write(key, ("SET", key, value))

        def work(n: int) -> None:
            mine = memoryview(bytearray(400_000))
            for turn in range(60):
                key = f"k{(n + turn) % 8}"
                if turn % 7 == n % 7:
                    client.write(key, ("SET", key, values[key]), ("HSET", "h" + key, "x", 1))
                assert client.get(key, into=mine if turn % 2 else None, size=len(values[key])) == values[key]

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        stats = client.stats
        assert 1 <= stats.dialled <= 3
        assert (stats.in_flight_bytes, stats.waiting) == (0, 0)


def test_a_stalled_server_costs_at_most_the_deadline_then_nothing_then_is_back(server: EmbeddedValkey) -> None:
    clock = Clock()
    with WireClient(server.url, base_s=0.3, per_mib_s=0.1, clock=clock) as client:
        client.write("k", ("SET", "k", bytes(1 << 20)))
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for attempt in range(3):
                started = monotonic()
                with pytest.raises(Late):
                    client.get("k", size=1 << 20) if attempt else client.write("k", ("SET", "k", bytes(3 << 20)))
                assert 0.3 < monotonic() - started < 1.5
            started = monotonic()
            for _ in range(100):
                with pytest.raises(Closed, match="failed 3 times in a row"):
                    client.get("k")
            assert monotonic() - started < 0.3
            assert set(client.stats.breakers.values()) == {BreakerState.OPEN}
            clock.ahead += 0.6
            with pytest.raises(Late):  # the probe
                client.get("k")
            with pytest.raises(Closed):
                client.get("k")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        clock.ahead += 10
        assert client.get("k") in (bytes(1 << 20), bytes(3 << 20))  # what was late may have arrived
        assert set(client.stats.breakers.values()) == {BreakerState.CLOSED}
        assert client.stats.events["late"] == 4


def test_a_reply_that_comes_too_late_is_never_taken_for_another(server: EmbeddedValkey) -> None:
    with WireClient(server.url, base_s=0.1, per_mib_s=0) as client:
        for key in ("a", "b"):
            client.write(key, ("SET", key, key.encode() * 100))
        os.kill(server.pid, signal.SIGSTOP)
        with pytest.raises(Late):
            client.get("a")
        os.kill(server.pid, signal.SIGCONT)
        for _ in range(20):
            assert client.get("b", base_s=5) == b"b" * 100
            assert client.get("a", base_s=5) == b"a" * 100


def test_a_server_that_comes_back_is_used_again_by_itself() -> None:
    clock = Clock()
    with EmbeddedValkey(port=0) as server:
        client = WireClient(server.url, connections=4, base_s=2, clock=clock)
        port = int(server.url.rpartition(":")[2])
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: client.write(f"k{n}", ("SET", f"k{n}", bytes(1 << 20))), range(8)))
    with client:
        with EmbeddedValkey(port=port):  # restarted behind idle connections: nobody notices
            assert client.get("k1") is None
            client.write("k", ("SET", "k", b"new"))
            assert client.get("k") == b"new"
            assert client.stats.events.get("closed", 0) == 0
        for _ in range(3):
            with pytest.raises(Closed, match=f"127.0.0.1:{port} cannot be reached"):
                client.get("k")
        with pytest.raises(Closed, match="left alone"):
            client.get("k")
        with EmbeddedValkey(port=port):
            clock.ahead += 1
            assert client.get("k") is None
            assert client.stats.breakers == {f"127.0.0.1:{port}": BreakerState.CLOSED}


def test_connections_cut_by_the_server_are_replaced_unnoticed(server: EmbeddedValkey) -> None:
    with WireClient(server.url) as client, redis.Redis.from_url(server.url) as raw:
        for _ in range(5):
            client.write("k", ("SET", "k", b"v"))
            raw.execute_command("CLIENT KILL TYPE normal SKIPME yes")
            assert client.get("k") == b"v"
        assert client.stats.events.get("closed", 0) == 0
        assert client.stats.dialled > 3


def test_nothing_can_be_had_after_closing_and_closing_twice_is_fine(unix_server: EmbeddedValkey) -> None:
    client = WireClient(unix_server.url)
    client.get("k")
    client.close()
    client.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        client.get("k")


def test_a_forked_child_does_not_speak_on_its_parents_connections(unix_server: EmbeddedValkey) -> None:
    with WireClient(unix_server.url) as client:
        client.write("k", ("SET", "k", b"v"))
        child = os.fork()
        if not child:
            os._exit(0 if all(client.get("k") == b"v" for _ in range(200)) and client.stats.dialled == 2 else 1)
        assert all(client.get("k") == b"v" for _ in range(200))
        assert os.waitpid(child, 0)[1] == 0
        assert client.stats.dialled == 1


def test_a_socket_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with WireClient(f"unix://{tmp_path}/none.sock") as client, pytest.raises(Closed, match=r"none\.sock"):
        client.get("k")
