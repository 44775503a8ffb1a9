"""A real cluster: keys are found wherever they are, while slots move and after a server died."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from threading import Event, Thread

import pytest
import redis

from tests.wire import valkey_cluster
from x2l_cluster.errors import StoreUnavailable
from x2l_cluster.kv.embedded import EmbeddedValkey
from x2l_cluster.kv.wire import WireClient
from x2l_cluster.kv.wire.cluster import slot_of

Nodes = list[tuple[EmbeddedValkey, redis.Redis, str]]
KEYS = [f"{{v{n}}}/blob" for n in range(40)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with valkey_cluster() as servers, ExitStack() as stack:
        nodes = []
        for server in servers:
            client = stack.enter_context(redis.Redis.from_url(server.url))
            nodes.append((server, client, client.execute_command("CLUSTER MYID").decode()))
        yield nodes


@pytest.fixture
def client(cluster: Nodes) -> Iterator[WireClient]:
    with WireClient(cluster[0][0].url) as made:
        yield made


def put(client: WireClient, key: str, value: bytes) -> None:
    assert client.write(key, ("SET", key, value), ("HSET", key[: key.index("/")], "blob", len(value)))[0] == b"OK"


def test_values_are_found_on_whatever_server_they_are(cluster: Nodes, client: WireClient) -> None:
    for n, key in enumerate(KEYS):
        put(client, key, bytes([n]) * 70_000)
    assert [client.get(key) == bytes([n]) * 70_000 for n, key in enumerate(KEYS)] == [True] * len(KEYS)
    assert client.get("{v1}/other") is None
    assert client.stats.redirected == 1  # the map came with the first
    assert len(client.stats.breakers) == 3
    assert sum(raw.dbsize() for _, raw, _ in cluster) == 2 * len(KEYS)
    assert all(raw.dbsize() for _, raw, _ in cluster)


def test_values_are_found_and_written_while_their_slot_moves(cluster: Nodes, client: WireClient) -> None:
    key, new = "{moving}/blob", "{moving}/new"
    put(client, key, b"old")
    slot = slot_of(key.encode())
    source = next(n for n, (_, raw, _) in enumerate(cluster) if raw.execute_command("CLUSTER COUNTKEYSINSLOT", slot))
    target = (source + 1) % 3
    (_, from_raw, from_id), (to_server, to_raw, to_id) = cluster[source], cluster[target]
    to_raw.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", from_id)
    from_raw.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", to_id)
    assert client.get(key) == b"old"
    port = to_server.url.rpartition(":")[2]
    from_raw.execute_command("MIGRATE", "127.0.0.1", port, key, 0, 5000)
    redirected = client.stats.redirected
    assert client.get(key) == b"old"  # by ASK
    assert client.get(key) == b"old"
    assert client.stats.redirected == redirected + 2
    with pytest.raises(StoreUnavailable):  # half of the video's keys are here, half there: whole or not at all
        client.write(new, ("SET", new, b"1"), ("HSET", "{moving}", "new", 1), base_s=0.3)

    written = Event()

    def write() -> None:
        put(client, new, b"new")
        written.set()

    writer = Thread(target=write)
    writer.start()
    from_raw.execute_command("MIGRATE", "127.0.0.1", port, "{moving}", 0, 5000)
    for raw in (to_raw, from_raw):
        raw.execute_command("CLUSTER SETSLOT", slot, "NODE", to_id)
    writer.join(20)
    assert written.is_set()
    assert (client.get(new), client.get(key)) == (b"new", b"old")


def test_the_seed_may_die_once_the_map_is_known() -> None:
    with valkey_cluster() as servers, WireClient(servers[1].url, base_s=2) as client, ExitStack() as stack:
        for key in KEYS:
            put(client, key, b"v")
        raws = [stack.enter_context(redis.Redis.from_url(server.url)) for server in servers]
        for raw in raws:
            raw.config_set("cluster-require-full-coverage", "no")
        found = {key: n for key in KEYS for n, raw in enumerate(raws) if raw_has(raw, key)}
        servers[1].close()
        for key, n in found.items():
            if n == 1:
                with pytest.raises(StoreUnavailable):
                    client.get(key)
            else:
                assert client.get(key) == b"v"
        assert set(found.values()) == {0, 1, 2}


def raw_has(raw: redis.Redis, key: str) -> bool:
    return bool(raw.execute_command("CLUSTER COUNTKEYSINSLOT", slot_of(key.encode())))
