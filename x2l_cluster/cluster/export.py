"""Our metrics among Ray's: every node has one port that Prometheus scrapes, whatever processes Ray runs there.

A process of a worker is Ray's, on a port nobody knows, so what it counts (prometheus-client's registry) is told to Ray
every few seconds. There each series stands under its name behind ``ray_``, with labels of its process beside its own;
the PodMonitor takes the prefix off again.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

from prometheus_client import REGISTRY
from prometheus_client.registry import CollectorRegistry
from ray.util.metrics import Gauge

LOG: Final = logging.getLogger(__name__)
PREFIX: Final = "x2l_"
EVERY_S: Final = 5.0
_begun = threading.Lock()
"""Taken by the first who asks, for the life of the process."""


def export_metrics() -> None:
    """From now on, for as long as this process lives. Call it in whatever Ray starts; a second call does nothing."""
    if _begun.acquire(blocking=False):
        threading.Thread(target=_go_on, args=(Exporter(),), name="x2l-metrics", daemon=True).start()


class Exporter:
    """Copies series to Ray as they are: each sample of a counter or a histogram is a gauge of the sample's name."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry
        self._gauges: dict[str, Any] = {}

    def look(self) -> None:
        """Tells Ray of everything that was counted so far."""
        for family in self._registry.collect():
            if family.name.startswith(PREFIX):
                for sample in family.samples:
                    if not sample.name.endswith("_created"):
                        self._gauge(sample.name, family.documentation, sample.labels).set(
                            sample.value, tags=dict(sample.labels)
                        )

    def _gauge(self, name: str, text: str, labels: dict[str, str]) -> Any:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description=text, tag_keys=tuple(labels))
        return self._gauges[name]


def _go_on(exporter: Exporter) -> None:
    pause = threading.Event()
    while not pause.wait(EVERY_S):
        try:
            exporter.look()
        except Exception:
            LOG.exception("metrics could not be told to Ray; they will be")
