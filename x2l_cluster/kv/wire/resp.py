"""RESP2 as this client speaks it: commands to buffers, replies from a socket.

A value travels from the socket into its destination without a stop in between. Nothing a server says is believed
unchecked: lengths are compared with a limit before anything is allocated, lines, nesting and counts are bounded, and
whatever is not RESP2 ends the connection. The protocol: https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from x2l_cluster.kv.store import Buffer
from x2l_cluster.kv.wire.errors import Closed, Garbled, Refusal

MAX_VALUE_BYTES: Final = 512 << 20
"""The largest value a server takes by default (``proto-max-bulk-len``), so no honest reply holds a larger one."""

Word = str | int | Buffer
Reply = bytes | int | None | Refusal | list["Reply"]
Receive = Callable[[list[memoryview], bool], int]
"""Fills buffers in order with what has come and returns how many bytes: at least one, or 0 at the end. If the flag is
set all of it is wanted, so returning early is of no use (and still allowed)."""

_HEAD: Final = 4096
"""Bytes read beyond what is needed, and the longest line."""
_GATHERED: Final = 4096
"""Longer words are sent from where they are instead of being copied beside the others."""
_MAX_DEPTH: Final = 8
_MAX_ITEMS: Final = 1 << 17
_MAX_SMALL_BYTES: Final = 8 << 20
"""Of all strings in a reply that is not a value (the slots of a cluster of a thousand nodes take half a megabyte)."""
_DIGITS: Final = 19


def encode(*words: Word) -> list[bytes | memoryview]:
    """One command, as buffers to be sent one after the other; long words are views of the caller's memory."""
    parts: list[bytes | memoryview] = []
    small = bytearray(b"*%d\r\n" % len(words))
    for word in words:
        data = word.encode() if isinstance(word, str) else b"%d" % word if isinstance(word, int) else word
        view = memoryview(data).cast("B")
        small += b"$%d\r\n" % len(view)
        if len(view) > _GATHERED:
            parts += (bytes(small), view)
            small = bytearray()
        else:
            small += view
        small += b"\r\n"
    parts.append(bytes(small))
    return parts


def encode_get(key: bytes) -> bytes:
    """``GET key``, the one command that is in a hurry."""
    return b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key)


class Reader:
    """Replies out of a stream of bytes.

    Args:
        receive: where bytes come from.
        where: the server, for messages.
    """

    def __init__(self, receive: Receive, where: str) -> None:
        self._receive = receive
        self._where = where
        self._buffer = bytearray(_HEAD)
        self._head = memoryview(self._buffer)
        self._at = self._end = 0

    @property
    def is_drained(self) -> bool:
        """Whether nothing has come that no reply has taken."""
        return self._at == self._end

    def value(self, place: Callable[[int], memoryview], limit: int = MAX_VALUE_BYTES) -> memoryview | None:
        """One string, received straight into ``place(its length)``; None when the server has none.

        ``place`` is called once, with a length up to ``limit``, and returns a writable view of exactly that length;
        what it raises passes through.

        Raises:
            Refusal: the server answered with an error.
            Garbled: with something else, or with a longer string.
            Closed: with nothing.
        """
        line = self._line()
        if line.startswith(b"-"):
            raise self._refusal(line)
        if not line.startswith(b"$"):
            raise self._garbled(f"a string was due, not {line[:40]!r}")
        if line == b"$-1":
            return None
        target = place(self._count(line, limit))
        self._fill(target)
        return target

    def reply(self) -> Reply:
        """One reply of any kind, errors as values. Raises Garbled or Closed."""
        return _Small(self).read(_MAX_DEPTH)

    def _line(self) -> bytes:
        if self._at == self._end:
            self._at, self._end = 0, self._some([self._head])
        seen = self._at
        while (stop := self._buffer.find(b"\r\n", seen, self._end)) < 0:
            back = max(self._end - 1, self._at) - self._at  # its end may be cut in two
            self._more()
            seen = self._at + back
        line = bytes(self._head[self._at : stop])
        self._at = stop + 2
        return line

    def _more(self) -> None:
        held = self._end - self._at
        if held == _HEAD:
            raise self._garbled(f"a line of more than {_HEAD} bytes")
        if held:
            self._head[:held] = self._head[self._at : self._end]
        self._at, self._end = 0, held
        self._end += self._some([self._head[held:] if held else self._head])

    def _fill(self, target: memoryview) -> None:
        """Receives a string and the line end behind it."""
        held = min(len(target), self._end - self._at)
        target[:held] = self._head[self._at : self._at + held]
        self._at += held
        rest = target[held:]
        while rest:  # the head is empty here, and takes the line end
            got = self._some([rest, self._head[:2]], whole=True)
            self._at, self._end = 0, max(0, got - len(rest))
            rest = rest[got:]
        while self._end - self._at < 2:
            self._more()
        if not self._buffer.startswith(b"\r\n", self._at):
            raise self._garbled("a string that does not end where it said")
        self._at += 2

    def _some(self, buffers: list[memoryview], *, whole: bool = False) -> int:
        got = self._receive(buffers, whole)
        if not got:
            raise Closed(f"the server at {self._where} closed the connection before its reply was complete")
        return got

    def _count(self, line: bytes, limit: int) -> int:
        digits = line[1:]
        if not digits.isdigit() or len(digits) > _DIGITS or int(digits) > limit:
            raise self._garbled(f"a length of {digits[:40]!r}, at most {limit} can be")
        return int(digits)

    def _refusal(self, line: bytes) -> Refusal:
        return Refusal(self._where, line[1:].decode(errors="replace"))

    def _garbled(self, what: str) -> Garbled:
        return Garbled(f"the server at {self._where} does not speak RESP2: {what}")


class _Small:
    """A reply that is kept in small pieces; what it may cost is counted down."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._items = _MAX_ITEMS
        self._bytes = _MAX_SMALL_BYTES

    def read(self, depth: int) -> Reply:
        reader = self._reader
        line = reader._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            return reader._refusal(line)
        if kind == b":":
            digits = rest.removeprefix(b"-")
            if not digits.isdigit() or len(digits) > _DIGITS:
                raise reader._garbled(f"a number {rest[:40]!r}")
            return int(rest)
        if kind in (b"$", b"*") and rest == b"-1":
            return None
        if kind == b"$":
            size = reader._count(line, self._bytes)
            self._bytes -= size
            string = bytearray(size)
            reader._fill(memoryview(string))
            return bytes(string)
        if kind == b"*":
            count = reader._count(line, self._items)
            self._items -= count
            if not depth:
                raise reader._garbled(f"arrays in arrays, more than {_MAX_DEPTH} deep")
            return [self.read(depth - 1) for _ in range(count)]
        raise reader._garbled(f"a reply of kind {kind!r}")


def first_refusal(replies: Sequence[Reply]) -> Refusal | None:
    """The first error among replies."""
    return next((reply for reply in replies if isinstance(reply, Refusal)), None)
