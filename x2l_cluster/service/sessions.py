"""Conversations: what was asked before, so that "and then?" has a meaning."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final
from uuid import uuid4

from x2l_cluster.errors import StoreUnavailable, UnknownSession, X2LError
from x2l_cluster.messages import Session, Turn
from x2l_cluster.state.ledger import Entry, Ledger
from x2l_cluster.state.records import RecordCodec
from x2l_cluster.types import check_name

_SESSIONS: Final = RecordCodec(Session, "session")
_ATTEMPTS: Final = 100
_DUE: Final = 16


class Sessions:
    """Sessions in a ledger. A session ends ``keep_s`` after its last turn.

    Args:
        most_turns: older ones are forgotten.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        keep_s: float = 86400.0,
        most_turns: int = 32,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger, self._keep_s, self._most_turns, self._clock = ledger, keep_s, most_turns, clock

    def open(self, tenant: str, videos: Sequence[str]) -> Session:
        self._forget_old()
        session = Session(
            id=f"session-{uuid4().hex[:24]}", videos=tuple(videos), expires_s=self._clock() + self._keep_s
        )
        self._put(tenant, None, session)
        return session

    def get(self, tenant: str, session: str) -> Session:
        """Raises UnknownSession."""
        return self._read(tenant, session)[1]

    def add(self, tenant: str, session: str, question: str, answers: Mapping[str, str]) -> Session:
        """Notes a turn. Raises UnknownSession."""
        for _ in range(_ATTEMPTS):
            raw, old = self._read(tenant, session)
            turns = (*old.turns, Turn(question=question, answers=dict(answers)))[-self._most_turns :]
            new = replace(old, turns=turns, expires_s=self._clock() + self._keep_s)
            if self._put(tenant, raw, new):
                return new
        raise StoreUnavailable(f"session {session} changes faster than it can be written to; ask again")

    def close(self, tenant: str, session: str) -> None:
        """Raises UnknownSession."""
        raw, _ = self._read(tenant, session)
        self._ledger.put(_name(tenant, session), raw, None)

    def _read(self, tenant: str, session: str) -> tuple[bytes, Session]:
        unknown = UnknownSession(f"no session {session} is here, or its time is over; open a new one")
        try:
            raw = self._ledger.get(_name(tenant, session))
        except StoreUnavailable:
            raise
        except X2LError:
            raise unknown from None
        if raw is None:
            raise unknown
        found = _SESSIONS.decode(raw)
        if found.expires_s <= self._clock():
            raise unknown
        return raw, found

    def _put(self, tenant: str, expected: bytes | None, session: Session) -> bool:
        entry = Entry(data=_SESSIONS.encode(session), marks={("session-ends", "all"): session.expires_s})
        return self._ledger.put(_name(tenant, session.id), expected, entry)

    def _forget_old(self) -> None:
        for name in self._ledger.names("session-ends", "all", upto=self._clock(), limit=_DUE):
            raw = self._ledger.get(name)
            if raw is not None and _SESSIONS.decode(raw).expires_s <= self._clock():
                self._ledger.put(name, raw, None)


def _name(tenant: str, session: str) -> str:
    return f"sessions/{check_name('tenant', tenant)}/{check_name('session', session)}"
