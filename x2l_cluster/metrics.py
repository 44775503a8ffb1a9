"""Every metric of the system, in one place: prefix ``x2l_``, seconds and bytes, no ids and no text in labels.

Counters and histograms are counted where things happen. What is a state rather than an event (a breaker, a lease) is
asked for when somebody looks: whoever has it adds itself to :data:`LIVE`. All of it is in prometheus-client's default
registry, so its exposition (``generate_latest``, ``make_asgi_app``) needs nothing from here.

Labels: ``tier`` is a :class:`~x2l_cluster.types.Tier`; ``kind`` is ``l``, ``h`` or ``x`` (see :func:`kind_of`);
``reason`` of a miss is ``missing``, ``corrupt``, ``stale``, ``late`` or ``unavailable``; ``code`` is that of an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Final, Protocol
from weakref import WeakSet

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from x2l_cluster.errors import X2LError

_FETCH_S: Final = (2e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_WORK_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_SMALL: Final = (0, 1, 2, 4, 8, 16, 32, 64, 128)

# --- the tiers ------------------------------------------------------------------------------------------------------

KV_READS: Final = Counter(
    "x2l_kv_reads", "Blobs asked of a tier; result is hit or the reason.", ["tier", "kind", "result"]
)
KV_READ_BYTES: Final = Counter("x2l_kv_read_bytes", "Bytes of blobs a tier delivered.", ["tier", "kind"])
KV_READ_S: Final = Histogram(
    "x2l_kv_read_seconds", "How long a blob took, found or not.", ["tier", "kind"], buckets=_FETCH_S
)
KV_WRITES: Final = Counter(
    "x2l_kv_writes", "Blobs given to a tier; result is ok, full, unavailable or dropped.", ["tier", "kind", "result"]
)
KV_WRITTEN_BYTES: Final = Counter("x2l_kv_written_bytes", "Bytes of blobs a tier took.", ["tier", "kind"])
KV_WRITE_S: Final = Histogram(
    "x2l_kv_write_seconds", "How long keeping a blob took.", ["tier", "kind"], buckets=_FETCH_S
)
KV_EVICTIONS: Final = Counter(
    "x2l_kv_evictions", "Blobs evicted; reason is watermark, quota, ttl, decay or room.", ["tier", "kind", "reason"]
)
KV_EVICTED_BYTES: Final = Counter("x2l_kv_evicted_bytes", "Bytes of blobs evicted.", ["tier", "kind", "reason"])
KV_PROMOTIONS: Final = Counter("x2l_kv_promotions", "Blobs copied into a faster tier.", ["tier", "kind"])
KV_MISSES: Final = Counter(
    "x2l_kv_misses", "Blobs a reader could not use, whichever tier had them: every mismatch is one.", ["kind", "reason"]
)
KV_FAN_IN: Final = Histogram("x2l_kv_fan_in", "Readers served by one fetch of a blob.", ["kind"], buckets=_SMALL[1:])
KV_STRAGGLERS: Final = Counter(
    "x2l_kv_stragglers", "Fetches that came in after their question had gone on without them.", ["kind"]
)

# --- questions ------------------------------------------------------------------------------------------------------

QUESTIONS: Final = Counter("x2l_questions", "Questions; outcome is ok, degraded or the code of an error.", ["outcome"])
QUESTION_S: Final = Histogram("x2l_question_seconds", "From a question to the end of its answer.", buckets=_WORK_S)
PHASE_S: Final = Histogram(
    "x2l_phase_seconds", "Seconds of a question: coarse, score, reload, assemble, decode.", ["phase"], buckets=_WORK_S
)
TTFT_S: Final = Histogram("x2l_ttft_seconds", "From a question to the first token of its answer.", buckets=_WORK_S)
INTER_TOKEN_S: Final = Histogram(
    "x2l_inter_token_seconds", "Between two tokens of an answer that is being written.", buckets=_FETCH_S[3:]
)
TOKENS: Final = Counter("x2l_tokens", "Tokens of prompts (without video) and answers.", ["side"])
PLANNED_CHUNKS: Final = Histogram("x2l_planned_chunks", "Fine chunks in the plan of a question.", buckets=_SMALL)
DEGRADED_CHUNKS: Final = Counter("x2l_degraded_chunks", "Planned chunks answered coarse.", ["reason"])
RELOAD_BYTES: Final = Counter(
    "x2l_reload_bytes",
    "Stored bytes of fine blocks that travelled for questions, by where they came from.",
    ["tier"],
)
DECODE_BATCH: Final = Histogram("x2l_decode_batch", "Questions in a decode step.", buckets=_SMALL[1:])

# --- indexing -------------------------------------------------------------------------------------------------------

JOBS_ENDED: Final = Counter("x2l_jobs_ended", "Jobs that ended; outcome is done or the code of an error.", ["outcome"])
JOB_S: Final = Histogram(
    "x2l_job_seconds", "From taking a job to its end.", buckets=(1, 5, 15, 60, 300, 900, 3600, 14400)
)
CHUNK_PREFILL_S: Final = Histogram(
    "x2l_chunk_prefill_seconds", "Prefilling one chunk, all its passes.", buckets=_WORK_S
)
CHUNKS_SEALED: Final = Counter("x2l_chunks_sealed", "Chunks published.")
VIDEO_S: Final = Counter("x2l_video_seconds", "Seconds of video sealed.")
REPAIRS: Final = Counter("x2l_repairs", "Indexes made again since a store had lost part of them.", ["outcome"])

# --- looking after the stores ---------------------------------------------------------------------------------------

JANITOR_REMOVED: Final = Counter(
    "x2l_janitor_removed", "Videos whose time was over, fine detail whose time was, blobs that nothing named.", ["what"]
)
JANITOR_FREED_BYTES: Final = Counter("x2l_janitor_freed_bytes", "Bytes freed by that.", ["what"])
JANITOR_PASSED_AT_S: Final = Gauge(
    "x2l_janitor_passed_timestamp_seconds", "When a pass of the janitor last had nothing to complain of."
)

# --- the service ----------------------------------------------------------------------------------------------------

REQUESTS: Final = Counter("x2l_requests", "Requests answered.", ["route", "status"])
REQUEST_S: Final = Histogram(
    "x2l_request_seconds", "From a request to the end of its response.", ["route"], buckets=_WORK_S
)
REFUSED: Final = Counter("x2l_refused", "Requests turned away at the door: rate, quota, queue, auth.", ["reason"])
QUEUED: Final = Gauge("x2l_queued", "What waits for its turn.", ["queue"])
STREAMS: Final = Gauge("x2l_streams", "Answers being streamed.")


def kind_of(kind: str) -> str:
    """``l``, ``h`` or ``x`` of a block's kind: digests of calibrations would be labels without end."""
    return kind.partition("-")[0]


# --- states ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveGauge:
    """A state that is asked for. ``merge`` makes one value of what several places of a process report."""

    name: str
    help: str
    labels: tuple[str, ...]
    merge: Callable[[Iterable[float]], float]


KV_HELD_BYTES: Final = LiveGauge(name="x2l_kv_held_bytes", help="Bytes of blobs held.", labels=("tier",), merge=sum)
KV_BUDGET_BYTES: Final = LiveGauge(
    name="x2l_kv_budget_bytes", help="Bytes a tier may hold.", labels=("tier",), merge=sum
)
KV_LEASES: Final = LiveGauge(name="x2l_kv_leases", help="Blobs being read in place.", labels=("tier",), merge=sum)
KV_OLDEST_LEASE_S: Final = LiveGauge(
    name="x2l_kv_oldest_lease_seconds", help="Age of the oldest lease of this process.", labels=("tier",), merge=max
)
KV_IN_FLIGHT_BYTES: Final = LiveGauge(name="x2l_kv_in_flight_bytes", help="Bytes on the wire.", labels=(), merge=sum)
KV_WAITING: Final = LiveGauge(name="x2l_kv_waiting", help="Transfers waiting for their turn.", labels=(), merge=sum)
KV_BREAKER: Final = LiveGauge(
    name="x2l_kv_breaker_state", help="Of a server: 0 closed, 1 half open, 2 open.", labels=("server",), merge=max
)
KV_PENDING_WRITES: Final = LiveGauge(
    name="x2l_kv_pending_write_bytes", help="Bytes of blobs not yet in the tier behind.", labels=("tier",), merge=sum
)
JOBS: Final = LiveGauge(
    name="x2l_jobs",
    help="Jobs by state, of the whole queue: one process of a service tells.",
    labels=("state",),
    merge=max,
)
_GAUGES: Final = (
    KV_HELD_BYTES,
    KV_BUDGET_BYTES,
    KV_LEASES,
    KV_OLDEST_LEASE_S,
    KV_IN_FLIGHT_BYTES,
    KV_WAITING,
    KV_BREAKER,
    KV_PENDING_WRITES,
    JOBS,
)

Reading = tuple[LiveGauge, Sequence[str], float]
"""A gauge, the values of its labels, its value."""


class Source(Protocol):
    """Something with a state worth a gauge."""

    def gauges(self) -> Iterable[Reading]:
        """Its state now. May raise X2LError: then it is left out."""
        ...


class Live(Collector):
    """Asks every source that still lives, each time somebody looks."""

    def __init__(self) -> None:
        self._sources: WeakSet[Source] = WeakSet()
        self._lock = Lock()

    def add(self, source: Source) -> None:
        """From now on ``source`` is asked, for as long as somebody else holds on to it."""
        with self._lock:
            self._sources.add(source)

    def describe(self) -> Iterator[Metric]:
        for gauge in _GAUGES:
            yield GaugeMetricFamily(gauge.name, gauge.help, labels=gauge.labels)

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            sources = list(self._sources)
        seen: dict[LiveGauge, dict[tuple[str, ...], list[float]]] = {gauge: {} for gauge in _GAUGES}
        for source in sources:
            try:
                readings = list(source.gauges())
            except X2LError:
                continue
            for gauge, labels, value in readings:
                seen[gauge].setdefault(tuple(labels), []).append(value)
        for gauge, found in seen.items():
            family = GaugeMetricFamily(gauge.name, gauge.help, labels=gauge.labels)
            for labels, values in found.items():
                family.add_metric(labels, gauge.merge(values))
            yield family


LIVE: Final = Live()
REGISTRY.register(LIVE)
