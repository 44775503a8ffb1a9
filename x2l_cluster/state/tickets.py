"""Tickets of jobs in a ledger: read, set aside when damaged, and swapped together with their events and places."""

from __future__ import annotations

from typing import Final, NamedTuple

from x2l_cluster.errors import QuotaExceeded, RecordCorrupt, UnknownJob
from x2l_cluster.messages import JobEvent
from x2l_cluster.state import moves
from x2l_cluster.state.ledger import Entry, Event, GroupFull, Ledger, Room
from x2l_cluster.state.moves import Ticket
from x2l_cluster.state.records import RecordCodec, RecordForeign
from x2l_cluster.types import check_name

_TICKETS: Final = RecordCodec(Ticket, "job")
_EVENTS: Final = RecordCodec(JobEvent, "job's event")


class Held(NamedTuple):
    """A ticket, and the bytes it was read from."""

    raw: bytes
    ticket: Ticket


class Tickets:
    """Names are ``tenant/job``. ``history`` is how many events are kept of a job."""

    def __init__(self, ledger: Ledger, *, history: int) -> None:
        self._ledger, self._history = ledger, history

    def find(self, name: str) -> Held | None:
        """Raises RecordCorrupt."""
        raw = self._ledger.get(name)
        return None if raw is None else Held(raw, _TICKETS.decode(raw))

    def read(self, name: str) -> Held:
        """Raises UnknownJob, RecordCorrupt."""
        if found := self.find(name):
            return found
        raise UnknownJob(
            f"there is no job {name.partition('/')[2]}: list the jobs; those that ended long ago are forgotten"
        )

    def usable(self, names: list[str]) -> list[tuple[str, Held]]:
        """Those of them that are there. A damaged one is set aside, so that it holds nobody up."""
        found = []
        for name, raw in zip(names, self._ledger.get_many(names), strict=True):
            if raw is None:
                continue
            try:
                found.append((name, Held(raw, _TICKETS.decode(raw))))
            except RecordForeign:
                raise
            except RecordCorrupt:
                damaged = Entry(raw + b"!", {("damaged", name.partition("/")[0]): 0.0})
                self._ledger.put(name, raw, damaged)
        return found

    def swap(self, name: str, old: Held | None, new: Ticket | None, *, most_active: int | None = None) -> bool:
        """Whether nobody was faster. What can be seen of the move becomes an event. Raises QuotaExceeded."""
        raw = old.raw if old else None
        if new is None:
            return self._ledger.put(name, raw, None, topics=[name])
        event = None
        if old is None or new.events != old.ticket.events:
            said = JobEvent(number=new.events, name=moves.event_name(old.ticket if old else None, new), job=new.job)
            event = Event(new.events, _EVENTS.encode(said), self._history)
        try:
            return self._ledger.put(
                name,
                raw,
                Entry(_TICKETS.encode(new), dict(moves.marks(new))),
                event=event,
                room=None if most_active is None else Room(("active", new.tenant), most_active),
                topics=[*([name] if event else []), *(["line"] if new.in_line else [])],
            )
        except GroupFull:
            raise QuotaExceeded(
                f"tenant {new.tenant} has {most_active} jobs that have not ended, and may have no more: "
                "wait for one to end, or cancel one"
            ) from None

    def events(self, name: str, after: int) -> list[JobEvent]:
        return [_EVENTS.decode(data) for data in self._ledger.log(name, after)]


def name_of(tenant: str, job: str) -> str:
    return f"{check_name('tenant', tenant)}/{check_name('job', job)}"
