"""The narrow seam under jobs, tenants and sessions: records that are swapped if nobody changed them meanwhile.

A ledger has no rules. It keeps bytes by name, lets a record *stand* in sorted groups (an index is a set of groups: the
index ``line`` has a group a tenant), appends events to a record's log, counts, and tells watchers that something
happened. What is swapped is visible whole, to everyone at once, or not at all; the rules live above, as pure functions
(:mod:`~x2l_cluster.state.moves`). Implementations: :mod:`~x2l_cluster.state.ledger_sqlite` (memory, disk),
:mod:`~x2l_cluster.state.ledger_remote`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

Marks = Mapping[tuple[str, str], float]
"""Where a record stands: (index, group) → its place there."""


class Entry(NamedTuple):
    """A record and where it stands from now on."""

    data: bytes
    marks: Marks


class Event(NamedTuple):
    """An addition to a record's log, of which only the newest ``keep`` stay."""

    number: int
    data: bytes
    keep: int


class Room(NamedTuple):
    """The condition that so many at most stand in a group afterwards."""

    where: tuple[str, str]
    most: int


class Group(NamedTuple):
    """How many stand in a group, and the places of the first and the last."""

    size: int
    first: float
    last: float


class GroupFull(Exception):
    """A :class:`Room` had no room; nothing has changed."""


class Ledger(Protocol):
    """Keeps records. Safe to use from several threads, and by several processes where the place is shared.

    Names, groups and topics are made of checked names and ``/``. Any method may raise StoreUnavailable, StoreFull or
    RecordCorrupt.
    """

    @property
    def durable(self) -> bool: ...

    def count(self, counter: str) -> int:
        """A number above all that this counter gave before; the first is 1."""
        ...

    def get(self, name: str) -> bytes | None: ...

    def get_many(self, names: Sequence[str]) -> list[bytes | None]: ...

    def put(
        self,
        name: str,
        expected: bytes | None,
        entry: Entry | None,
        *,
        event: Event | None = None,
        room: Room | None = None,
        topics: Sequence[str] = (),
    ) -> bool:
        """Atomically: if the record is ``expected`` (None: absent), replaces it (None: removes it and its log).

        False when it is another one; nothing has changed then. Putting what is there already is a success, so that a
        put whose reply was lost may be sent again; whoever puts makes its bytes unlike all others. Tells those who
        watch one of ``topics``.

        Raises GroupFull.
        """
        ...

    def groups(self, *indexes: str) -> list[dict[str, Group]]:
        """The groups of each index in which something stands."""
        ...

    def names(
        self, index: str, group: str, *, limit: int, upto: float | None = None, newest: bool = False
    ) -> list[str]:
        """Who stands in a group, in order of place (at most ``upto``), or the other way round."""
        ...

    def log(self, name: str, after: int) -> list[bytes]:
        """Events of a record with numbers above ``after``, in order."""
        ...

    def watching(self, topic: str, notify: Callable[[], None]) -> AbstractContextManager[None]:
        """While entered, calls ``notify`` after a put under that topic; also for no reason, and from any thread.

        It must not block. Whoever enters first and looks afterwards misses nothing for longer than a connection to a
        server may be silent; so look now and then all the same.
        """
        ...

    def close(self) -> None:
        """Lets go of connections and files, and tells all watchers. May be called twice."""
        ...
