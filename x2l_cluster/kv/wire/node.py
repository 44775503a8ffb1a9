"""The connections to one server."""

from __future__ import annotations

import os
from collections import deque
from time import monotonic

from x2l_cluster.kv.wire.address import Access, Address
from x2l_cluster.kv.wire.breaker import Breaker
from x2l_cluster.kv.wire.connection import Connection
from x2l_cluster.kv.wire.deadline import Deadline
from x2l_cluster.kv.wire.errors import Closed

_TRUSTED_S = 0.05
"""A connection idle for longer is asked whether it still stands; that is a system call."""

_forks = 0
"""How many forks lie between the first process and this one."""


def _forked() -> None:
    global _forks  # noqa: PLW0603
    _forks += 1


os.register_at_fork(after_in_child=_forked)


class Node:
    """Keeps what is idle and dials what is missing; how many at once is the gate's business.

    A connection is taken by one thread, and given back only in step; whoever finds it out of step closes it instead.
    """

    def __init__(self, address: Address, access: Access, breaker: Breaker) -> None:
        self.address = address
        self.breaker = breaker
        self._access = access
        self._idle: deque[tuple[Connection, float]] = deque()  # its single steps need no lock
        self._forks = _forks
        self._is_closed = False
        self.dialled = 0

    def take(self, deadline: Deadline, *, fresh: bool = False) -> Connection:
        """An idle connection that is in step, or (always, if ``fresh``) a new one. Raises what dialling raises."""
        if self._is_closed:
            raise Closed(f"the client of {self.address} was closed: open the store again")
        if self._forks != _forks:  # a forked child must not speak on its parent's connections
            self._forks = _forks
            self.drop()
        while self._idle and not fresh:
            try:
                connection, since = self._idle.pop()  # the one used last
            except IndexError:
                break
            if connection.is_drained and (monotonic() - since < _TRUSTED_S or connection.is_quiet):
                return connection
            connection.close()
        connection = Connection(self.address, self._access, deadline)
        self.dialled += 1
        return connection

    def give(self, connection: Connection) -> None:
        """Takes a connection back that is in step."""
        connection.used = True
        self._idle.append((connection, monotonic()))
        if self._is_closed:
            self.drop()

    def drop(self) -> None:
        """Closes what is idle: when one connection was cut, the others were too."""
        while self._idle:
            try:
                self._idle.pop()[0].close()
            except IndexError:
                return

    def close(self) -> None:
        """Closes what is idle now, and the rest as it comes back."""
        self._is_closed = True
        self.drop()
