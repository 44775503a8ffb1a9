"""Locks on bytes of a file that the kernel ends with their holder, however that dies.

*Open file description* locks (``F_OFD_SETLK``): they belong to one ``open()`` of the file. The classical
``fcntl`` locks belong to a process, which loses all of them as soon as it closes *any* descriptor of the file, and
they exclude neither threads nor a second store in the same process. The price: a forked child shares its parent's
description, and would keep a dead parent's locks. So stores close theirs in every forked child
(:mod:`x2l_cluster.kv.host.store`), and descriptors are never inherited over ``exec``.

The bytes locked lie far behind the end of the file; only the kernel's table knows them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from x2l_cluster.errors import StoreUnavailable

_FLOCK: Final = struct.Struct("@hhqqi4x")
"""``struct flock`` of Linux on 64 bits: type, whence, start, length, pid (0 for these locks)."""
_BASE: Final = 1 << 62
MUTEX: Final = _BASE
"""Whoever changes the tables holds this byte alone."""
USERS: Final = _BASE + 1
"""Everybody who has the arena open holds this byte together."""
_SLOTS: Final = _BASE + (1 << 20)
_VIDEOS: Final = 1 << 60
_TURNS: Final = _BASE + (1 << 61)
_FIRST_NAP_S: Final = 2e-5
_LONGEST_NAP_S: Final = 1e-3


def slot_byte(slot: int) -> int:
    """The byte of one slot: shared by its readers, or held alone by its writer or by who takes it away."""
    return _SLOTS + slot


def video_slot(hash: int) -> int:
    """As if a video were a slot: its byte is shared by all who may bring blobs of it, held alone by who clears it."""
    return _VIDEOS + (hash >> 4)


def turn_byte(hash: int) -> int:
    """The byte of one key, held alone by who fetches its blob for the node."""
    return _TURNS + (hash >> 4)


class Locks:
    """One open file description of the arena: the locks taken through it live exactly as long as it is open."""

    def __init__(self, path: Path) -> None:
        if sys.platform != "linux":
            raise StoreUnavailable("the host tier needs Linux, for locks that end with their holder: use memory:")
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def share(self, byte: int) -> bool:
        """Takes the byte together with others; False when somebody holds it alone."""
        return self._set(byte, fcntl.F_RDLCK)

    def claim(self, byte: int) -> bool:
        """Takes the byte alone; False when anybody holds it through another description."""
        return self._set(byte, fcntl.F_WRLCK)

    def end(self, byte: int) -> None:
        """Lets go of the byte; harmless when it was not held, or when these locks are closed and so all gone."""
        if self._fd >= 0:
            self._set(byte, fcntl.F_UNLCK)

    def end_slots(self) -> None:
        """Lets go of every slot's byte."""
        self._set(_SLOTS, fcntl.F_UNLCK, length=0)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def fd(self) -> int:
        return self._fd

    def _set(self, byte: int, kind: int, *, length: int = 1) -> bool:
        if self._fd < 0:
            raise OSError(errno.EBADF, "closed")
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, length, 0))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True


def claim_within(locks: Locks, byte: int, patience_s: float, *, longest_nap_s: float = _LONGEST_NAP_S) -> bool:
    """Claims a byte as soon as nobody else holds it; False after waiting in vain.

    Polled, since a blocking lock cannot be given up.
    """
    until, nap = time.monotonic() + patience_s, _FIRST_NAP_S
    while not locks.claim(byte):
        if time.monotonic() > until:
            return False
        time.sleep(nap)
        nap = min(2 * nap, longest_nap_s)
    return True


class Mutex:
    """Excludes threads of this process, then everybody else, from the tables of the arena.

    Waits at most ``patience_s``: a process that was stopped inside (SIGSTOP, a debugger) must not stop a whole node.
    Those who hold it do so for some ten microseconds.
    """

    def __init__(self, path: Path, *, patience_s: float) -> None:
        self._path = path
        self._patience_s = patience_s
        self._locks = Locks(path)
        self._thread = threading.Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Raises StoreUnavailable after waiting in vain."""
        if not self._thread.acquire(timeout=self._patience_s):
            raise self._stuck()
        try:
            if not claim_within(self._locks, MUTEX, self._patience_s):
                raise self._stuck()
            yield
        finally:
            self._locks.end(MUTEX)
            self._thread.release()

    def close(self) -> None:
        self._locks.close()

    @property
    def fd(self) -> int:
        return self._locks.fd

    def _stuck(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"the arena {self._path} was held by another process for {self._patience_s} s, which may be stopped: "
            "end or continue that process; other tiers serve meanwhile"
        )
