"""A writer that dies at any byte of a put leaves the blob and its entry in the index, or neither."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
import redis

from x2l_cluster.errors import BlockMissing, StoreFull
from x2l_cluster.kv.remote import RemoteKV
from x2l_cluster.kv.wire.connection import Connection
from x2l_cluster.types import BlockKey

KEY = BlockKey(tenant="ada", video="v1", recipe="r1", epoch=1, kind="l", chunk=0)


def sent_by_a_put(url: str, key: BlockKey, blob: bytes, monkeypatch: pytest.MonkeyPatch) -> bytes:
    seen: list[bytes] = []
    send = Connection.send

    def record(self: Connection, parts: list[bytes], deadline: object) -> None:
        seen.extend(map(bytes, parts))
        send(self, parts, deadline)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, RemoteKV(url) as store:
        patch.setattr(Connection, "send", record)
        store.put(key, blob)
        store.delete([key])
    return b"".join(seen[1:] if seen[0].startswith(b"*2\r\n$6\r\nSELECT") else seen)


def test_a_put_cut_at_any_byte_leaves_both_or_neither(empty_valkey: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _, query = empty_valkey.removeprefix("unix://").partition("?")
    blob = bytes(range(256)) * 40
    whole = sent_by_a_put(empty_valkey, KEY, blob, monkeypatch)
    assert whole.startswith(b"*1\r\n$5\r\nMULTI")
    assert whole.endswith(b"EXEC\r\n")
    cuts = [*range(0, 140, 7), *range(200, len(whole) - 140, 1500), *range(len(whole) - 140, len(whole) + 1, 5)]
    with RemoteKV(empty_valkey) as store, redis.Redis.from_url(empty_valkey) as raw:
        for cut in [*cuts, len(whole)]:
            with socket.socket(socket.AF_UNIX) as line:
                line.connect(path)
                line.sendall(b"CLIENT SETNAME torn\r\nSELECT %d\r\n" % int(query.removeprefix("db=")) + whole[:cut])
            while any(client["name"] == "torn" for client in raw.client_list()):
                pass
            there = [*store.keys("ada", "v1")]
            if cut < len(whole):
                assert (there, store.held_bytes(), raw.dbsize()) == ([], 0, 0)
                with pytest.raises(BlockMissing):
                    store.get(KEY)
            else:
                assert (there, store.get(KEY)) == ([KEY], blob)


def test_a_put_into_a_full_server_leaves_neither(empty_valkey: str) -> None:
    with RemoteKV(empty_valkey) as store, redis.Redis.from_url(empty_valkey) as raw:
        store.put(KEY, b"here")
        before = raw.config_get("maxmemory")["maxmemory"]
        raw.config_set("maxmemory", 1)
        try:
            with pytest.raises(StoreFull):
                store.put(replace(KEY, chunk=1), b"not here")
            with pytest.raises(StoreFull):
                store.put(KEY, b"not this")
        finally:
            raw.config_set("maxmemory", before)
        assert (list(store.keys("ada", "v1")), store.get(KEY), store.held_bytes()) == ([KEY], b"here", 4)
