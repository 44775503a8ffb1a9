"""Sockets with a deadline: plain ones, where every system call counts, and TLS."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Sequence
from typing import Protocol

from x2l_cluster.kv.wire.address import Access, Address
from x2l_cluster.kv.wire.deadline import Deadline

_SLICE_S = 0.5
"""The kernel's own timeout of a socket; whoever has less time left sets it shorter, whoever has more waits again."""
_IOVECS = 64
_SHORTEST_S = 0.001


class Line(Protocol):
    """Both ways may raise OSError, and Late when ``deadline`` passes; whoever uses the line sets that first."""

    deadline: Deadline

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Sends some of the buffers, in order; at least one byte. Returns how many."""
        ...

    def receive(self, buffers: list[memoryview], whole: bool) -> int:
        """Fills buffers in order with what has come: at least one byte, or 0 at the end.

        ``whole``: all of it is wanted, so returning early is of no use (and still allowed).
        """
        ...

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class PlainLine:
    """A blocking socket whose timeouts are the kernel's.

    Python's own timeouts cost a ``poll`` before every call, and setting them a call more; the kernel's cost nothing
    until they strike, and with them one call can wait for a whole value (``MSG_WAITALL``).
    """

    def __init__(self, raw: socket.socket, deadline: Deadline) -> None:
        self.deadline = deadline
        self._socket = raw
        self._timeout_s = 0.0
        raw.settimeout(None)

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        while True:
            self._limit(self.deadline.left_s())
            try:
                return self._socket.send(buffers[0]) if len(buffers) == 1 else self._socket.sendmsg(buffers[:_IOVECS])
            except BlockingIOError:  # the kernel's timeout struck
                continue

    def receive(self, buffers: list[memoryview], whole: bool) -> int:
        flags = socket.MSG_WAITALL if whole else 0
        while True:
            self._limit(self.deadline.left_s())
            try:
                if len(buffers) == 1:
                    return self._socket.recv_into(buffers[0], 0, flags)
                return self._socket.recvmsg_into(buffers, 0, flags)[0]
            except BlockingIOError:
                continue

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def _limit(self, left_s: float) -> None:
        timeout_s = _SLICE_S if left_s >= _SLICE_S else max(left_s, _SHORTEST_S)
        if timeout_s != self._timeout_s:
            value = struct.pack("@ll", int(timeout_s), int(timeout_s % 1 * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
            self._timeout_s = timeout_s


class TlsLine:
    """A TLS socket with Python's timeouts."""

    def __init__(self, raw: ssl.SSLSocket, deadline: Deadline) -> None:
        self.deadline = deadline
        self._socket = raw

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        self._socket.settimeout(self.deadline.left_s())
        return self._socket.send(buffers[0])

    def receive(self, buffers: list[memoryview], whole: bool) -> int:
        self._socket.settimeout(self.deadline.left_s())
        return self._socket.recv_into(buffers[0])

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


def dial(address: Address, access: Access, deadline: Deadline) -> Line:
    """Connects, and for TLS proves who is there. Raises OSError, and Late.

    Looking a host name up is the system's business and under the system's timeouts.
    """
    if address.path:
        return PlainLine(_opened(socket.AF_UNIX, address.path, deadline), deadline)
    failure = OSError("the name has no address")
    for family, _, _, _, place in socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM):
        try:
            raw = _opened(family, place, deadline)
        except OSError as error:
            failure = error
            continue
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if access.tls is None:
                return PlainLine(raw, deadline)
            raw.settimeout(deadline.left_s())
            return TlsLine(access.tls.wrap_socket(raw, server_hostname=address.host), deadline)
        except BaseException:
            raw.close()
            raise
    raise failure


def _opened(family: int, place: object, deadline: Deadline) -> socket.socket:
    raw = socket.socket(family, socket.SOCK_STREAM)
    try:
        raw.settimeout(deadline.left_s())
        raw.connect(place)  # type: ignore[arg-type]
    except BaseException:
        raw.close()
        raise
    return raw
