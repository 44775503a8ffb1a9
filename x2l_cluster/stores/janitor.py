"""What has to be done though nobody asks for it, in one pass: lifetimes, leases, orphans, room.

Every step can be done again, by several at once, and can be cut off anywhere: the next pass does the rest. A step that
fails is told of and does not keep the others from being done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, Final

from x2l_cluster.errors import InvalidInput, StateError, UnknownTenant, UnknownVideo, X2LError
from x2l_cluster.kv.bounded import evictor_of
from x2l_cluster.metrics import JANITOR_FREED_BYTES, JANITOR_PASSED_AT_S, JANITOR_REMOVED
from x2l_cluster.state.base import VideoRecord
from x2l_cluster.state.ledger import Ledger, Marks
from x2l_cluster.state.open import State, open_ledger
from x2l_cluster.state.records import Records
from x2l_cluster.stores.stores import Stores
from x2l_cluster.stores.upkeep import orphaned, orphans
from x2l_cluster.types import IndexStatus

LOG: Final = logging.getLogger(__name__)
_SWEPT: Final = "swept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How long things are kept.

    Attributes:
        keep_s: a video is deleted so long after it was indexed; None: never. A tenant's own ``keep_s`` goes before it.
        fine_s: its fine detail goes so long after it was indexed; None: never.
        sweep_every_s: how often orphans are looked for, which walks all of the stores.
    """

    keep_s: float | None = None
    fine_s: float | None = None
    sweep_every_s: float = 3600.0

    def __post_init__(self) -> None:
        for name, least in (("keep_s", 1.0), ("fine_s", 1.0), ("sweep_every_s", 0.0)):
            value = getattr(self, name)
            if value is not None and not least <= value < 1e10:
                raise InvalidInput(f"{name} is a number of seconds from {least:g}, got {value}")


@dataclass(slots=True, kw_only=True)
class Report:
    """What a pass has done.

    Attributes:
        due: leases that had run out, waits that were over, jobs and sessions to forget.
        expired, decayed: videos.
        orphans, evicted_bytes: blobs nothing named; what was evicted to keep places within their bounds.
        swept: whether orphans were looked for this time.
        unknown: blobs of runs that the state knows nothing of: it was lost, or is an older copy. They are left alone.
        problems: what went wrong, by what was being done.
    """

    due: int = 0
    expired: int = 0
    decayed: int = 0
    orphans: int = 0
    freed_bytes: int = 0
    evicted_bytes: int = 0
    swept: bool = False
    unknown: int = 0
    problems: dict[str, X2LError] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problems and not self.unknown

    @property
    def retryable(self) -> bool:
        """Whether all that is wrong may be right at the next pass."""
        return not self.unknown and all(error.retryable for error in self.problems.values())

    def to_dict(self) -> dict[str, Any]:
        problems = {what: {"code": error.code, "message": str(error)} for what, error in self.problems.items()}
        return {name: value for name, value in asdict(self).items() if name != "problems"} | {"problems": problems}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Swept:
    at_s: float


class Janitor:
    """Looks after all that a service keeps.

    Args:
        ledger: where it notes when orphans were last looked for; a space of its own.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        stores: Stores,
        state: State,
        ledger: Ledger,
        *,
        rules: Rules | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._stores, self._state = stores, state
        self._rules = rules or Rules()
        self._clock = clock
        self._notes = Records(ledger, _Swept, "note of the janitor", _nowhere)

    def once(self) -> Report:
        """One pass. Raises nothing of ours: what went wrong is in the report."""
        report = Report()
        with _telling(report, "leases"):
            report.due = self._state.sweep()
        with _telling(report, "lifetimes"):
            for tenant in self._state.manifests.tenants():
                with _telling(report, f"lifetimes of {tenant}"):
                    self._lifetimes(tenant, report)
        with _telling(report, "orphans"):
            self._sweep(report)
        with _telling(report, "room"):
            self._make_room(report)
        if report.ok:
            JANITOR_PASSED_AT_S.set(self._clock())
        return report

    # --- lifetimes --------------------------------------------------------------------------------------------------

    def _lifetimes(self, tenant: str, report: Report) -> None:
        keep_s = self._keep_s(tenant)
        if keep_s is None and self._rules.fine_s is None:
            return
        now_s = self._clock()
        for video, several in groupby(self._state.manifests.videos(tenant), key=lambda record: record.video):
            records = list(several)
            with _telling(report, f"video {tenant}/{video}"):
                if keep_s is not None and now_s - max(record.made_s for record in records) > keep_s:
                    self._expire(tenant, video, report)
                    continue
                for record in records:
                    if self._rules.fine_s is not None and now_s - record.made_s > self._rules.fine_s:
                        self._decay(record, report)

    def _keep_s(self, tenant: str) -> float | None:
        try:
            own = self._state.tenants.tenant(tenant).quotas.keep_s
        except UnknownTenant:  # deleted, and its videos are still here
            own = None
        return self._rules.keep_s if own is None else float(own)

    def _expire(self, tenant: str, video: str, report: Report) -> None:
        try:
            freed = self._stores.delete_video(tenant, video)
        except UnknownVideo:  # its owner was faster
            return
        LOG.info("video %s of tenant %s was kept long enough: deleted, %d bytes freed", video, tenant, freed)
        report.expired += 1
        report.freed_bytes += freed
        _count("video", 1, freed)

    def _decay(self, record: VideoRecord, report: Report) -> None:
        if record.status is not IndexStatus.READY or not record.fine_bytes:
            return
        try:
            known = self._state.manifests.manifest(record.tenant, record.video, record.recipe.digest)
            self._stores.decay(known)
        except (UnknownVideo, StateError):  # deleted, or being worked on again
            return
        LOG.info("fine detail of video %s of tenant %s was kept long enough: let go", record.video, record.tenant)
        report.decayed += 1
        report.freed_bytes += record.fine_bytes
        _count("fine", 1, record.fine_bytes)

    # --- orphans ----------------------------------------------------------------------------------------------------

    def _sweep(self, report: Report) -> None:
        now_s, last = self._clock(), self._notes.get(_SWEPT)
        if last is not None and 0 <= now_s - last.at_s < self._rules.sweep_every_s:
            return
        for found in orphans(self._stores.kv, self._state.manifests):
            freed = self._stores.kv.delete(found.keys)
            where = f"video {found.video} of tenant {found.tenant}"
            LOG.info("%s: %d blobs that nothing names deleted", where, len(found.keys))
            if found.unknown:
                LOG.error(
                    "%s: %d blobs of runs that the state does not know of, left alone; was the state lost, or restored "
                    "from a backup that is older than the blobs?",
                    where,
                    found.unknown,
                )
            report.orphans += len(found.keys)
            report.freed_bytes += freed
            report.unknown += found.unknown
            _count("orphan", len(found.keys), freed)
        report.swept = True
        self._notes.change(_SWEPT, lambda _: _Swept(at_s=now_s))

    # --- room -------------------------------------------------------------------------------------------------------

    def _make_room(self, report: Report) -> None:
        for place in self._stores.kv.places():
            with _telling(report, f"room in {place.tier}"):
                evictor = evictor_of(place, orphaned=orphaned(self._state.manifests))
                report.evicted_bytes += (evictor.run() or 0) if evictor else 0


@contextmanager
def janitor_of(
    store: str, *, fine: str | None = None, state: str | None = None, sources: str | None = None, rules: Rules
) -> Iterator[Janitor]:
    """One over stores that are opened for it; arguments as of :meth:`Stores.open`. Between passes nothing need be held:
    what was away may be back. Raises InvalidInput and StoreUnavailable."""
    with ExitStack() as opened:
        stores = Stores.open(store, fine=fine, state=state, sources=sources)
        opened.callback(stores.close)
        kept = opened.enter_context(State.open(state or store, manifests=stores.state))
        ledger = open_ledger(state or store, "janitor")
        opened.callback(ledger.close)
        yield Janitor(stores, kept, ledger, rules=rules)


@contextmanager
def _telling(report: Report, what: str) -> Iterator[None]:
    try:
        yield
    except X2LError as error:
        LOG.warning("%s: %s (%s)", what, error, error.code)
        report.problems[what] = error


def _count(what: str, removed: int, freed: int) -> None:
    JANITOR_REMOVED.labels(what).inc(removed)
    JANITOR_FREED_BYTES.labels(what).inc(freed)


def _nowhere(_: object) -> Marks:
    return {}


def describe(report: Mapping[str, Any]) -> str:
    """A report in a line, as people read it."""
    parts = [f"{report['due']} due"]
    parts += [f"{report[name]} {name}" for name in ("expired", "decayed", "orphans")]
    parts.append(f"{report['freed_bytes']} bytes freed, {report['evicted_bytes']} evicted")
    if not report["swept"]:
        parts.append("orphans not looked for this time")
    if report["unknown"]:
        parts.append(f"{report['unknown']} blobs the state does not know of")
    parts += [f"{what}: {problem['message']}" for what, problem in report["problems"].items()]
    return "; ".join(parts)
