"""The reload benchmark on a small scale: what it prints, and that it notices wrong bytes."""

from __future__ import annotations

import json

import pytest

from x2l_cluster.bench.reload import STRIPE_BYTES, _verify, run_reload
from x2l_cluster.errors import X2LError
from x2l_cluster.kv.embedded import MALLOC_ENV
from x2l_cluster.kv.wire import WireClient

PATHS = {"memcpy", "bare_socket", "client_get", "client_get_lent", "redis_py_get", "client_set", "redis_py_set"}


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_every_path_is_measured_at_every_size(transport: str) -> None:
    report = run_reload(value_bytes=[64 << 10], connections=[2], repeats=2, burst_bytes=1 << 20, transport=transport)
    assert json.loads(json.dumps(report)) == report
    assert (report["suite"], report["transport"], report["setup"]["hiredis"]) == ("reload", transport, True)
    assert report["setup"]["malloc"] == MALLOC_ENV
    seen = {(row["path"], row["value_bytes"], row["connections"]) for row in report["rows"]}
    assert seen == {(path, size, count) for path in PATHS for size in (64 << 10, STRIPE_BYTES) for count in (1, 2)}
    for row in report["rows"]:
        assert 0 < row["low_gbps"] <= row["gbps"] <= row["high_gbps"]
    assert set(report["ratios"]) == {"client_vs_redis_py", "client_vs_bare_socket"}
    assert min(report["ratios"].values()) > 0


def test_wrong_bytes_void_it(empty_valkey: str) -> None:
    values = {f"bench:{n}": bytes([n]) * 1000 for n in range(4)}
    with WireClient(empty_valkey) as wire:
        for key, value in values.items():
            wire.write(key, ("SET", key, value))
        _verify("fine", lambda n: wire.get(f"bench:{n}"), wire, values)
        with pytest.raises(X2LError, match="stale moved other bytes than those of bench:1"):
            _verify("stale", lambda n: bytes(1000), wire, values)
        wire.write("bench:2", ("SET", "bench:2", b"short"))
        with pytest.raises(X2LError, match="writer moved other bytes than those of bench:2"):
            _verify("writer", lambda n: None, wire, values)


def test_what_goes_wrong_in_the_measuring_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X2L_VALKEY_SERVER", "/no/such/server")
    with pytest.raises(X2LError, match=r"benchmark failed: .*StoreUnavailable: the embedded server did not"):
        run_reload(value_bytes=[1000])
