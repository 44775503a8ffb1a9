"""The table of metrics: names, units, labels that stay few, states that are asked for."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import REGISTRY, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from x2l_cluster import metrics
from x2l_cluster.errors import StoreUnavailable
from x2l_cluster.metrics import (
    KV_BREAKER,
    KV_HELD_BYTES,
    KV_LEASES,
    KV_OLDEST_LEASE_S,
    LIVE,
    LiveGauge,
    Reading,
    kind_of,
)


class Arena:
    def __init__(self, held: float, oldest_s: float) -> None:
        self.held, self.oldest_s = held, oldest_s

    def gauges(self) -> Iterable[Reading]:
        yield KV_HELD_BYTES, ("test",), self.held
        yield KV_OLDEST_LEASE_S, ("test",), self.oldest_s


class Gone:
    def gauges(self) -> Iterable[Reading]:
        yield KV_LEASES, ("gone",), 1.0
        raise StoreUnavailable("closed")


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_every_metric_carries_the_prefix_and_its_unit() -> None:
    ours = [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase | LiveGauge)]
    names = {metric.name if isinstance(metric, LiveGauge) else metric._name for metric in ours}
    assert len(names) > 35
    assert all(name.startswith("x2l_") for name in names)
    for constant, metric in vars(metrics).items():
        name = getattr(metric, "_name", None)
        if name and constant.endswith("_S"):
            assert name.endswith("_seconds"), name
        if name and constant.endswith("_BYTES"):
            assert name.endswith("_bytes"), name
    text = generate_latest().decode()
    for name in names:
        assert f"# HELP {name}" in text


def test_digests_of_calibrations_do_not_become_labels() -> None:
    assert [kind_of(kind) for kind in ("l", "h", "x-1f", "x-embedding")] == ["l", "h", "x", "x"]


def test_states_are_asked_for_and_merged_for_as_long_as_somebody_has_them() -> None:
    first, second = Arena(10, 0.5), Arena(5, 2.0)
    for arena in (first, second):
        LIVE.add(arena)
    assert value("x2l_kv_held_bytes", tier="test") == 15
    assert value("x2l_kv_oldest_lease_seconds", tier="test") == 2.0
    first.held = 11
    assert value("x2l_kv_held_bytes", tier="test") == 16
    del second, arena
    gc.collect()
    assert value("x2l_kv_held_bytes", tier="test") == 11


def test_a_state_that_cannot_be_had_leaves_the_others() -> None:
    gone, arena = Gone(), Arena(3, 0.0)
    LIVE.add(gone)
    LIVE.add(arena)
    assert value("x2l_kv_leases", tier="gone") is None
    assert value("x2l_kv_held_bytes", tier="test") == 3
    assert value("x2l_kv_breaker_state", server="nobody") is None
    assert KV_BREAKER.labels == ("server",)


def test_every_metric_of_the_tiers_is_told_by_somebody() -> None:
    sources = [path for path in Path(metrics.__file__).parent.rglob("*.py") if path.name != "metrics.py"]
    told = {word for path in sources for word in re.findall(r"\bKV_[A-Z_]+", path.read_text())}
    assert {name for name in vars(metrics) if name.startswith("KV_")} - told == set()
