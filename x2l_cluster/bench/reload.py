"""How fast blobs come back, side by side: the remote tier's client, redis-py, a bare socket, plain memory.

All paths run in one process against one server, with the same malloc settings, in short bursts that take turns, so that
whatever else the machine does hits all of them alike. Ratios are medians over turns of what two paths did in the same
turn. Bytes are verified after every burst.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from time import perf_counter, process_time
from typing import Any

import numpy as np

from x2l_cluster.errors import X2LError
from x2l_cluster.kv.embedded import MALLOC_ENV, EmbeddedValkey
from x2l_cluster.kv.wire import WireClient

STRIPE_BYTES = 768 << 10
"""Size of a stripe of the fine level; the ratios are those at this size, over one connection."""
VALUE_BYTES = (64 << 10, 256 << 10, STRIPE_BYTES, 1 << 20, 4 << 20)
CONNECTIONS = (1, 2, 4)
_KEYS = 4
"""Values that take turns, so that a buffer nobody wrote into is noticed."""

Op = Callable[[int], Any]
"""Moves the value of that number; returns it if it can be seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One path at one size: the median of its turns, their quartiles, and the CPU time on this side of the wire."""

    path: str
    value_bytes: int
    connections: int
    gbps: float
    low_gbps: float
    high_gbps: float
    cpu_s_per_gb: float


def run_reload(
    *,
    value_bytes: Sequence[int] = VALUE_BYTES,
    connections: Sequence[int] = CONNECTIONS,
    repeats: int = 40,
    burst_bytes: int = 16 << 20,
    transport: str = "unix",
) -> dict[str, Any]:
    """Measures in a process of its own, started with the malloc settings the embedded server has.

    Args:
        value_bytes: sizes of values; the stripe's is always among them.
        connections: how many at once, one thread each; one is always among them.
        repeats: turns.
        burst_bytes: moved by a path in its turn.
        transport: ``unix`` or ``tcp`` (loopback).

    Returns:
        ``{"suite": "reload", "transport", "rows": [Row …], "ratios": {"client_vs_redis_py", "client_vs_bare_socket"},
        "setup"}``.

    Raises:
        X2LError: the measuring process failed; its own words are in the message.
    """
    task = {
        "value_bytes": sorted({*value_bytes, STRIPE_BYTES}),
        "connections": sorted({*connections, 1}),
        "repeats": repeats,
        "burst_bytes": burst_bytes,
        "transport": transport,
    }
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(task)],
        env={**os.environ, **MALLOC_ENV, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise X2LError(f"the reload benchmark failed: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def measure(
    *, value_bytes: Sequence[int], connections: Sequence[int], repeats: int, burst_bytes: int, transport: str
) -> dict[str, Any]:
    """The same, in this process."""
    rows: list[Row] = []
    ratios: dict[str, float] = {}
    with EmbeddedValkey(port=None if transport == "unix" else 0) as server:
        for size in value_bytes:
            for count in connections:
                turns = _measure_one(server.url, size, count, repeats, max(count * _KEYS, burst_bytes // size))
                rows += [_row(path, size, count, burst) for path, burst in turns.items()]
                if (size, count) == (STRIPE_BYTES, 1):
                    ratios = {
                        "client_vs_redis_py": _ratio(turns, "client_get", "redis_py_get"),
                        "client_vs_bare_socket": _ratio(turns, "client_get", "bare_socket"),
                    }
    return {
        "suite": "reload",
        "transport": transport,
        "rows": [asdict(row) for row in rows],
        "ratios": ratios,
        "setup": _setup(repeats),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Burst:
    nbytes: int
    wall_s: float
    cpu_s: float


def _measure_one(url: str, size: int, connections: int, repeats: int, ops: int) -> dict[str, list[_Burst]]:
    """Bursts of every path; the order changes from turn to turn."""
    values = {f"bench:{n}": np.random.default_rng(n).bytes(size) for n in range(_KEYS)}
    turns: dict[str, list[_Burst]] = {}
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(connections))
        wire = stack.enter_context(WireClient(url, connections=connections, cap_bytes=1 << 30))
        for key, value in values.items():
            wire.write(key, ("SET", key, value))
        paths = {
            "memcpy": [_memcpy(values) for _ in range(connections)],
            "bare_socket": [_bare_socket(stack, url, values) for _ in range(connections)],
            "client_get": [_client_get(wire, values) for _ in range(connections)],
            "client_get_lent": [_client_get_lent(wire, values) for _ in range(connections)],
            "redis_py_get": [_redis_py_get(stack, url, values) for _ in range(connections)],
            "client_set": [_client_set(wire, values) for _ in range(connections)],
            "redis_py_set": [_redis_py_set(stack, url, values) for _ in range(connections)],
        }
        order = list(paths)
        for turn in range(-1, repeats):  # the first warms up
            order = order[1:] + order[:1]
            for name in order:
                burst = _burst(pool, paths[name], ops // connections, size)
                if turn >= 0:
                    turns.setdefault(name, []).append(burst)
                for op in paths[name]:
                    _verify(name, op, wire, values)
    return {name: turns[name] for name in paths}


def _burst(pool: ThreadPoolExecutor, workers: Sequence[Op], ops: int, size: int) -> _Burst:
    def work(op: Op) -> None:
        for n in range(ops):
            op(n)

    wall, cpu = perf_counter(), process_time()
    if len(workers) == 1:
        work(workers[0])
    else:
        list(pool.map(work, workers))
    return _Burst(nbytes=ops * len(workers) * size, wall_s=perf_counter() - wall, cpu_s=process_time() - cpu)


def _verify(name: str, op: Op, wire: WireClient, values: Mapping[str, bytes]) -> None:
    for n, (key, value) in enumerate(values.items()):
        seen = op(n)
        if bytes(wire.get(key) or b"" if seen is None else seen) != value:
            raise X2LError(f"{name} moved other bytes than those of {key}: the benchmark is void")


def _memcpy(values: Mapping[str, bytes]) -> Op:
    sources = [np.frombuffer(value, np.uint8) for value in values.values()]
    target = np.zeros_like(sources[0])

    def op(n: int) -> memoryview:
        np.copyto(target, sources[n % _KEYS])
        return target.data

    return op


def _bare_socket(stack: ExitStack, url: str, values: Mapping[str, bytes]) -> Op:
    """The least a reader can do: it knows the length of the reply and looks at nothing."""
    if url.startswith("unix://"):
        line = stack.enter_context(socket.socket(socket.AF_UNIX))
        line.connect(url.removeprefix("unix://"))
    else:
        host, _, port = url.removeprefix("redis://").rpartition(":")
        line = stack.enter_context(socket.create_connection((host, int(port))))
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    requests = [b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key.encode()) for key in values]
    size = len(next(iter(values.values())))
    start = len(b"$%d\r\n" % size)
    target = memoryview(bytearray(start + size + 2))

    def op(n: int) -> memoryview:
        line.sendall(requests[n % _KEYS])
        rest = target
        while rest:
            got = line.recv_into(rest)
            if not got:
                raise X2LError("the server closed the bare socket")
            rest = rest[got:]
        return target[start:-2]

    return op


def _client_get(wire: WireClient, values: Mapping[str, bytes]) -> Op:
    keys = list(values)
    target = memoryview(bytearray(len(values[keys[0]])))
    return lambda n: wire.get(keys[n % _KEYS], into=target)


def _client_get_lent(wire: WireClient, values: Mapping[str, bytes]) -> Op:
    keys = list(values)
    return lambda n: wire.get(keys[n % _KEYS])


def _client_set(wire: WireClient, values: Mapping[str, bytes]) -> Op:
    items = list(values.items())

    def op(n: int) -> None:
        key, value = items[n % _KEYS]
        wire.write(key, ("SET", key, value))

    return op


def _redis_py_get(stack: ExitStack, url: str, values: Mapping[str, bytes]) -> Op:
    client = _redis_py(stack, url)
    keys = list(values)
    return lambda n: client.get(keys[n % _KEYS])


def _redis_py_set(stack: ExitStack, url: str, values: Mapping[str, bytes]) -> Op:
    client = _redis_py(stack, url)
    items = list(values.items())

    def op(n: int) -> None:
        client.set(*items[n % _KEYS])

    return op


def _redis_py(stack: ExitStack, url: str) -> Any:
    import redis

    return stack.enter_context(redis.Redis.from_url(url))


def _row(path: str, size: int, connections: int, bursts: Sequence[_Burst]) -> Row:
    speeds = [burst.nbytes / burst.wall_s / 1e9 for burst in bursts]
    low, _, high = quantiles(speeds, n=4, method="inclusive") if len(speeds) > 1 else speeds * 3
    return Row(
        path=path,
        value_bytes=size,
        connections=connections,
        gbps=round(median(speeds), 3),
        low_gbps=round(low, 3),
        high_gbps=round(high, 3),
        cpu_s_per_gb=round(median(burst.cpu_s / burst.nbytes * 1e9 for burst in bursts), 3),
    )


def _ratio(turns: Mapping[str, Sequence[_Burst]], path: str, other: str) -> float:
    pairs = zip(turns[path], turns[other], strict=True)
    return round(median(theirs.wall_s / ours.wall_s for ours, theirs in pairs), 3)


def _setup(repeats: int) -> dict[str, Any]:
    import redis
    from redis.utils import HIREDIS_AVAILABLE

    return {
        "repeats": repeats,
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "redis_py": redis.__version__,
        "hiredis": HIREDIS_AVAILABLE,
        "malloc": {name: os.environ.get(name) for name in MALLOC_ENV},
    }


if __name__ == "__main__":
    json.dump(measure(**json.loads(sys.argv[1])), sys.stdout)
