"""How the decoder process and its parent talk over pipes: a msgpack header, then raw bytes. Nothing is unpickled.

    length of header (u32) · length of payload (u64) · header · payload

Requests are ``{path, reader, max_side, start, ...}``; answers have a ``type``: ``beat`` (still alive), ``opened``,
``batch``, ``end``, ``error``.
"""

from __future__ import annotations

import os
import selectors
import struct
import time
from collections.abc import Mapping
from typing import Any

import msgpack

_LENGTHS = struct.Struct("<IQ")
_MAX_HEADER = 1 << 20
_MAX_PAYLOAD = 1 << 34


class Ended(Exception):
    """The other side closed the pipe."""


class Stalled(Exception):
    """The other side sent nothing for too long."""


def send(fd: int, header: Mapping[str, Any], payload: memoryview | bytes = b"") -> None:
    """Write a message; blocks while the pipe is full, which is what bounds the decoder's lead."""
    packed = msgpack.packb(dict(header))
    body = memoryview(payload).cast("B")
    for part in (_LENGTHS.pack(len(packed), len(body)) + packed, body):
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(fd, rest) :]


def receive(fd: int, patience_s: float | None = None) -> tuple[dict[str, Any], bytearray]:
    """Read a message.

    Raises:
        Ended: the pipe was closed (at whatever point).
        Stalled: not a byte came for ``patience_s`` seconds.
    """
    header_bytes, payload_bytes = _LENGTHS.unpack(_exactly(fd, _LENGTHS.size, patience_s))
    if header_bytes > _MAX_HEADER or payload_bytes > _MAX_PAYLOAD:
        raise Ended("the message makes no sense")
    header = msgpack.unpackb(_exactly(fd, header_bytes, patience_s))
    return header, _exactly(fd, payload_bytes, patience_s)


def _exactly(fd: int, size: int, patience_s: float | None) -> bytearray:
    buffer = bytearray(size)
    rest = memoryview(buffer)
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while rest:
            if patience_s is not None and not _readable(selector, patience_s):
                raise Stalled
            count = os.readv(fd, [rest])
            if count == 0:
                raise Ended
            rest = rest[count:]
    return buffer


def _readable(selector: selectors.BaseSelector, patience_s: float) -> bool:
    until = time.monotonic() + patience_s
    while (left := until - time.monotonic()) > 0:
        if selector.select(left):
            return True
    return False
