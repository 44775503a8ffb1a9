"""Conversations: what was asked about some videos and answered, for the next question; forgotten when not gone on with.

Over any :class:`~x2l_cluster.state.ledger.Ledger`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, Self
from uuid import uuid4

from x2l_cluster.errors import InvalidInput, QuotaExceeded, UnknownSession
from x2l_cluster.messages import Session, Turn
from x2l_cluster.state.ledger import GroupFull, Ledger, Marks, Room
from x2l_cluster.state.records import Records
from x2l_cluster.types import check_name

_MOST_TEXT: Final = 131_072
"""Characters of a session that are kept; the oldest turns go first."""
_MOST_OF_TURN: Final = 32_768
"""Characters of all answers of a turn that are kept; longer ones are cut to equal shares."""
_MOST_TURNS: Final = 64
_MOST_VIDEOS: Final = 64
_SWEPT: Final = 16


class SessionStore(Protocol):
    """Keeps sessions. The tenant is part of every key. Any method may raise StoreUnavailable, StoreFull, RecordCorrupt.

    Safe to use from several threads, and by several processes where the place is shared.
    """

    def open(self, tenant: str, videos: Sequence[str], *, ttl_s: float = 3600.0) -> Session:
        """A new session, without turns. Raises InvalidInput, QuotaExceeded."""
        ...

    def session(self, tenant: str, session: str) -> Session:
        """Raises UnknownSession, also when its time is over."""
        ...

    def append(self, tenant: str, session: str, turn: Turn) -> Session:
        """Adds a turn and gives the session its whole time again. Of many turns the newest are kept, of long answers
        the beginning. Raises UnknownSession."""
        ...

    def forget(self, tenant: str, session: str) -> None:
        """Raises UnknownSession."""
        ...

    def sweep(self) -> int:
        """Forgets what is over; returns how many. Opening does a little of it."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    tenant: str
    ttl_s: float
    session: Session


class Sessions:
    """Sessions in a ledger. ``most`` is how many a tenant may have at a time."""

    def __init__(self, ledger: Ledger, *, most: int = 10_000, clock: Callable[[], float] = time.time) -> None:
        self._ledger, self._clock, self._most = ledger, clock, most
        self._kept = Records(ledger, _Kept, "session", _marks)

    def open(self, tenant: str, videos: Sequence[str], *, ttl_s: float = 3600.0) -> Session:
        if not 1 <= len(videos) <= _MOST_VIDEOS or len(set(videos)) != len(videos):
            raise InvalidInput(f"a session is about 1 to {_MOST_VIDEOS} videos, each named once; got {len(videos)}")
        for video in videos:
            check_name("video id", video)
        self._sweep(_SWEPT)
        session = Session(id=f"session-{uuid4().hex[:24]}", videos=tuple(videos), expires_s=self._clock() + ttl_s)
        new = _Kept(tenant=tenant, ttl_s=ttl_s, session=session)
        try:
            self._kept.change(_name(tenant, session.id), lambda _: new, room=Room(("open", tenant), self._most))
        except GroupFull:
            raise QuotaExceeded(
                f"tenant {tenant} has {self._most} sessions: close some, or wait until they are over"
            ) from None
        return session

    def session(self, tenant: str, session: str) -> Session:
        return self._living(self._kept.get(_name(tenant, session)), session).session

    def append(self, tenant: str, session: str, turn: Turn) -> Session:
        def step(old: _Kept | None) -> _Kept:
            kept = self._living(old, session)
            turns = _newest((*kept.session.turns, _cut(turn)))
            return replace(kept, session=replace(kept.session, turns=turns, expires_s=self._clock() + kept.ttl_s))

        changed = self._kept.change(_name(tenant, session), step)
        return self._living(changed, session).session

    def forget(self, tenant: str, session: str) -> None:
        def step(old: _Kept | None) -> None:
            self._living(old, session)

        self._kept.change(_name(tenant, session), step)

    def sweep(self) -> int:
        done = 0
        while swept := self._sweep(1000):
            done += swept
        return done

    def close(self) -> None:
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _sweep(self, most: int) -> int:
        """Forgets so many at most. What was gone on with meanwhile stays; what cannot be read goes too."""
        now_s, swept = self._clock(), 0
        names = self._ledger.names("timer", "all", upto=now_s, limit=most)
        for name, raw in zip(names, self._ledger.get_many(names), strict=True):
            swept += raw is not None and self._ledger.put(name, raw, None)
        return swept

    def _living(self, kept: _Kept | None, session: str) -> _Kept:
        if kept is None or kept.session.expires_s <= self._clock():
            raise UnknownSession(f"there is no session {session}, or its time is over: open another")
        return kept


def _marks(kept: _Kept) -> Marks:
    return {("open", kept.tenant): kept.session.expires_s, ("timer", "all"): kept.session.expires_s}


def _cut(turn: Turn) -> Turn:
    share = _MOST_OF_TURN // max(len(turn.answers), 1)
    answers = {video: text[:share] for video, text in turn.answers.items()}
    return Turn(question=turn.question[:_MOST_OF_TURN], answers=answers)


def _newest(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    first, left = len(turns), _MOST_TEXT
    while first > max(0, len(turns) - _MOST_TURNS):
        left -= len(turns[first - 1].question) + sum(map(len, turns[first - 1].answers.values()))
        if left < 0:
            break
        first -= 1
    return turns[first:]


def _name(tenant: str, session: str) -> str:
    return f"{check_name('tenant', tenant)}/{check_name('session', session)}"
