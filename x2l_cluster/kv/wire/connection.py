"""One connection to one server. Every step runs under the deadline of the fetch it belongs to."""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from contextlib import suppress

from x2l_cluster.kv.store import Buffer
from x2l_cluster.kv.wire.address import Access, Address
from x2l_cluster.kv.wire.deadline import Deadline
from x2l_cluster.kv.wire.errors import Closed, Late
from x2l_cluster.kv.wire.line import dial
from x2l_cluster.kv.wire.resp import Reader, Reply, encode, first_refusal


class Connection:
    """Connected and logged in.

    Raises (all methods):
        Late: the deadline passed.
        Closed: the server cannot be reached, or went away.
        Garbled: it does not speak RESP2.
        Refusal: it does not let us in, or (from :meth:`get`) answers with an error.

    After anything but a Refusal the connection is out of step: close it.
    """

    def __init__(self, address: Address, access: Access, deadline: Deadline) -> None:
        self._where = str(address)
        try:
            self._line = dial(address, access, deadline)
        except OSError as error:
            raise self._trouble(error) from error
        self._reader = Reader(self._line.receive, str(address))
        self._poll = select.poll()
        self._poll.register(self._line, select.POLLIN)
        self.used = False
        """Whether it has served before, so that its end may be an old story."""
        try:
            self._log_in(access, deadline)
        except BaseException:
            self.close()
            raise

    def send(self, parts: Sequence[bytes | memoryview], deadline: Deadline) -> None:
        """Sends buffers one after the other."""
        self._line.deadline = deadline
        try:
            self._push(parts)
        except OSError as error:
            raise self._trouble(error) from error

    def get(self, request: bytes, place: Callable[[int], memoryview], deadline: Deadline) -> memoryview | None:
        """Sends a command and receives one string, straight into its place; see :meth:`Reader.value`."""
        self._line.deadline = deadline
        try:
            self._push((request,))
            return self._reader.value(place)
        except OSError as error:
            raise self._trouble(error) from error

    def replies(self, count: int, deadline: Deadline) -> list[Reply]:
        """So many replies, errors as values."""
        self._line.deadline = deadline
        try:
            return [self._reader.reply() for _ in range(count)]
        except OSError as error:
            raise self._trouble(error) from error

    def call(self, *commands: Sequence[str | int | Buffer], deadline: Deadline) -> list[Reply]:
        """Sends commands at once and returns their replies, errors as values."""
        self.send([part for command in commands for part in encode(*command)], deadline)
        return self.replies(len(commands), deadline)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has come unasked: not an end, not a byte. For connections that wait to be used."""
        return self._reader.is_drained and not self._poll.poll(0)

    @property
    def is_drained(self) -> bool:
        """Whether nothing was received that no reply has taken."""
        return self._reader.is_drained

    def close(self) -> None:
        with suppress(OSError):
            self._line.close()

    def _push(self, parts: Sequence[bytes | memoryview]) -> None:
        sent = self._line.send(parts)
        if sent == sum(map(len, parts)):
            return
        rest = [memoryview(part) for part in parts]
        while True:
            while rest and sent >= len(rest[0]):
                sent -= len(rest.pop(0))
            if not rest:
                return
            rest[0] = rest[0][sent:]
            sent = self._line.send(rest)

    def _log_in(self, access: Access, deadline: Deadline) -> None:
        steps: list[tuple[str | int, ...]] = []
        if access.password or access.username:
            steps.append(("AUTH", *((access.username,) if access.username else ()), access.password))
        if access.db:
            steps.append(("SELECT", access.db))
        if steps and (refusal := first_refusal(self.call(*steps, deadline=deadline))):
            raise refusal

    def _trouble(self, error: OSError) -> Late | Closed:
        if isinstance(error, TimeoutError):
            return Late(f"the server at {self._where} did not answer in time: it is stalled or far away")
        return Closed(f"the server at {self._where} cannot be reached: {error}")
