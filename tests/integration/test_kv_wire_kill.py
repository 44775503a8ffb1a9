"""kill -9, stalls and cut connections under load: no byte is wrong, and all goes on when the server is back."""

from __future__ import annotations

import os
import random
import signal
from threading import Event, Thread
from time import monotonic

import pytest
import redis

from x2l_cluster.errors import BlockMissing, StoreUnavailable
from x2l_cluster.kv.embedded import EmbeddedValkey
from x2l_cluster.kv.remote import RemoteKV
from x2l_cluster.types import BlockKey

BLOBS = 12
TIMEOUT_S = 0.5


def key_of(n: int) -> BlockKey:
    return BlockKey(tenant="ada", video=f"v{n % 3}", recipe="r1", epoch=1, kind="lhx"[n % 3], chunk=n)


def content(n: int) -> bytes:
    return random.Random(n).randbytes(1000 + 150_000 * n)


class Load(Thread):
    """Puts and gets until told to stop; notes whatever is not a right answer or an honest error."""

    def __init__(self, store: RemoteKV, seed: int, blobs: list[bytes]) -> None:
        super().__init__(daemon=True)
        self._store, self._random, self._blobs = store, random.Random(seed), blobs
        self._mine = memoryview(bytearray(max(map(len, blobs))))
        self.stop = Event()
        self.wrong: list[object] = []
        self.right = self.failed = 0
        self.slowest_s = 0.0

    def run(self) -> None:
        while not self.stop.is_set():
            n = self._random.randrange(BLOBS)
            started = monotonic()
            try:
                if self._random.random() < 0.4:
                    self._store.put(key_of(n), self._blobs[n])
                else:
                    got = self._store.get(key_of(n), self._mine if self._random.random() < 0.5 else None)
                    if got != self._blobs[n]:
                        self.wrong.append((n, len(got)))
                self.right += 1
            except BlockMissing:
                self.right += 1
            except StoreUnavailable:
                self.failed += 1
                self.stop.wait(0.002)
            except Exception as error:  # noqa: BLE001
                self.wrong.append(error)
            self.slowest_s = max(self.slowest_s, monotonic() - started)


def trouble(seed: int, blows: int) -> None:
    chance = random.Random(seed)
    blobs = [content(n) for n in range(BLOBS)]
    server = EmbeddedValkey(port=0).__enter__()
    port = int(server.url.rpartition(":")[2])
    with RemoteKV(server.url, timeout_s=TIMEOUT_S, per_mib_s=0.1, connections=3, cap_bytes=4 << 20) as store:
        loads = [Load(store, 100 * seed + n, blobs) for n in range(4)]
        try:
            for load in loads:
                load.start()
            for _ in range(blows):
                Event().wait(chance.uniform(0.05, 0.4))
                blow = chance.choice(["kill", "stall", "cut"])
                if blow == "kill":
                    server.close()
                    Event().wait(chance.uniform(0, 0.2))
                    server = EmbeddedValkey(port=port).__enter__()
                elif blow == "stall":
                    os.kill(server.pid, signal.SIGSTOP)
                    Event().wait(chance.uniform(0, 2 * TIMEOUT_S))
                    os.kill(server.pid, signal.SIGCONT)
                else:
                    with redis.Redis.from_url(server.url) as raw:
                        raw.execute_command("CLIENT KILL TYPE normal SKIPME yes")
            before = [load.right for load in loads]
            until = monotonic() + 30
            while any(load.right < seen + 10 for load, seen in zip(loads, before, strict=True)):
                assert monotonic() < until, "the client does not come back by itself"
                Event().wait(0.01)
        finally:
            for load in loads:
                load.stop.set()
            for load in loads:
                load.join(20)
            server_url = server.url
        assert [load.wrong for load in loads] == [[], [], [], []]
        assert max(load.slowest_s for load in loads) < 2 * TIMEOUT_S + 2  # the machine may be busy, too
        stats = store.wire.stats
        assert (stats.in_flight_bytes, stats.waiting) == (0, 0)
        with redis.Redis.from_url(server_url) as raw:
            indexed = {f"x2l:kv:{{ada/v{n}}}/{f.decode()}" for n in range(3) for f in raw.hkeys(f"x2l:kv:{{ada/v{n}}}")}
            there = {name.decode() for name in raw.keys() if raw.type(name) == b"string"}  # noqa: SIM118
        assert there == indexed  # no blob leaks, none is promised
    server.close()


def test_under_blows_no_byte_is_wrong_and_all_goes_on() -> None:
    trouble(seed=1, blows=8)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 52))
def test_under_many_blows_no_byte_is_wrong_and_all_goes_on(seed: int) -> None:
    trouble(seed, blows=15)
