"""The file all processes of a node map: made once, checked by all, changed under one lock, healed after a death."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import numpy as np

from x2l_cluster.errors import StoreFull, StoreUnavailable, X2LError
from x2l_cluster.kv.files import errors_as_store
from x2l_cluster.kv.host.layout import HEADER_BYTES, STATIC_BYTES, Layout, Word
from x2l_cluster.kv.host.locks import USERS, Locks, Mutex
from x2l_cluster.kv.host.tables import Tables

_ATTEMPTS: Final = 100
"""The file may be removed between opening and locking it; each attempt opens it anew."""
_MADV_POPULATE_READ: Final = 22
_MADV_POPULATE_WRITE: Final = 23
"""Linux 5.14; Python does not name them yet."""


class Arena:
    """One mapped arena.

    Args:
        path: a file on tmpfs. Made when missing; only its owner may use it.
        wanted: sizes for a new one. One that exists with other sizes is made anew if nobody uses it, and used as it is
            otherwise: the processes of a node must agree more than any of them must get its wish.

    Raises:
        StoreFull: the filesystem is too small.
        StoreUnavailable: the file is damaged, or of another version, and in use; or belongs to somebody else.
    """

    def __init__(self, path: Path, wanted: Layout, *, patience_s: float) -> None:
        self.path = path
        with errors_as_store(path), ExitStack() as opened:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            for _ in range(_ATTEMPTS):
                _make(path)
                attempt = opened.enter_context(ExitStack())
                with suppress(FileNotFoundError):
                    self._open(path, attempt, patience_s)
                    with self.mutex.held():
                        if self._is_current() and self._attach(wanted):
                            opened.pop_all()
                            break
                attempt.close()
            else:
                raise StoreUnavailable(f"the arena {path} vanishes as often as it is made: who deletes it?")

    @contextmanager
    def reading(self) -> Iterator[Tables]:
        """The tables, with everybody else kept out."""
        with self.mutex.held():
            if self._words[Word.BUSY]:
                self.tables.rebuild()
                self._words[Word.REBUILT] += 1
                self._words[Word.BUSY] = 0
            yield self.tables

    @contextmanager
    def changing(self) -> Iterator[Tables]:
        """The tables, to be changed. Should this process die inside, whoever comes next makes them anew.

        So does an interruption (Ctrl-C); only errors of this package leave the tables in order.
        """
        with self.reading() as tables:
            self._words[Word.BUSY] = 1
            try:
                yield tables
            except X2LError:
                self._words[Word.BUSY] = 0
                raise
            except BaseException:
                self.probe.end_slots()
                raise
            self._words[Word.BUSY] = 0

    def back(self, first: int, pages: int) -> None:
        """Gives pages memory before they are touched: writing to a full tmpfs would kill the process (SIGBUS).

        Raises StoreFull.
        """
        backed = self._backed[first : first + pages]
        if 0 not in bytes(backed):
            return
        size = self.layout.page_bytes
        with errors_as_store(self.path):
            os.posix_fallocate(self._file.fd, self.layout.pages_at + first * size, pages * size)
        backed[:] = b"\1" * pages

    def prefault(self) -> None:
        """Gives every page memory and maps it, so that nothing is touched for the first time later."""
        self.back(0, self.layout.pages)
        with suppress(OSError):  # an older kernel: the first touch of each page is slow, nothing else
            self.map.madvise(_MADV_POPULATE_WRITE)

    def close(self) -> None:
        """The mapping ends with the last view of it."""
        self.mutex.close()
        self.probe.close()
        self._file.close()

    def _is_current(self) -> bool:
        ours = os.fstat(self._file.fd)
        if not stat.S_ISREG(ours.st_mode) or ours.st_uid != os.geteuid() or ours.st_mode & 0o077:
            raise StoreUnavailable(
                f"{self.path} is no file that only this user may touch: remove it or choose another place"
            )
        there = os.stat(self.path)
        files = (self.mutex, self.read_locks, self.write_locks, self.probe, self._file)
        return all(os.fstat(file.fd).st_ino == there.st_ino for file in files)

    def _open(self, path: Path, opened: ExitStack, patience_s: float) -> None:
        """The file five times: locks of one open file exclude those of another, and end when it is closed."""
        self.mutex = opened.enter_context(closing(Mutex(path, patience_s=patience_s)))
        self.read_locks = opened.enter_context(closing(Locks(path)))
        self.write_locks = opened.enter_context(closing(Locks(path)))
        self.probe = opened.enter_context(closing(Locks(path)))
        self._file = opened.enter_context(closing(Locks(path)))

    def _attach(self, wanted: Layout) -> bool:
        """Maps the file; False when it had to be thrown away and another one is to be made.

        Blobs are copies of what other tiers keep, so they may go with it. It is removed, not emptied: whoever still
        looks at a mapping of it is not hurt. Who is alone makes the tables anew, so that damage to them does not last.
        """
        fd = self._file.fd
        size = os.fstat(fd).st_size
        found = Layout.unpack(os.pread(fd, STATIC_BYTES, 0), size)
        alone = self.probe.claim(USERS)
        try:
            if alone and not size:
                self._create(wanted)
            elif alone and found != wanted:
                self.path.unlink()
                return False
            elif isinstance(found, Layout):
                self._map(found)
                if alone:
                    self.tables.rebuild()
                    self._words[Word.BUSY] = 0
            else:
                raise StoreUnavailable(
                    f"the arena {self.path} cannot be used: {found}, and other processes have it open; end them, "
                    "and it is made anew"
                )
        finally:
            self.probe.end(USERS)
        return self.read_locks.share(USERS) and self.write_locks.share(USERS)

    def _create(self, layout: Layout) -> None:
        """Makes an empty file an arena. Its front is written last; what died before that is thrown away."""
        fd = self._file.fd
        place = os.statvfs(self.path)
        if layout.total_bytes > place.f_blocks * place.f_frsize:
            raise StoreFull(
                f"an arena of {layout.total_bytes} bytes does not fit into {self.path.parent}, which has "
                f"{place.f_blocks * place.f_frsize}: lower the budget or give it more space"
            )
        try:
            os.ftruncate(fd, layout.total_bytes)
            os.posix_fallocate(fd, 0, layout.pages_at)
        except OSError:
            os.ftruncate(fd, 0)
            raise
        self._map(layout)
        self.tables.rebuild()
        os.pwrite(fd, layout.pack(), 0)

    def _map(self, layout: Layout) -> None:
        self.layout = layout
        self.map = mmap.mmap(self._file.fd, layout.total_bytes)
        with suppress(OSError):
            self.map.madvise(mmap.MADV_HUGEPAGE)
        view = memoryview(self.map)
        self._words: memoryview[int] = view[:HEADER_BYTES].cast("Q")
        self._backed = view[layout.backed_at : layout.backed_at + layout.pages]
        self.pages = np.frombuffer(self.map, dtype=np.uint8, offset=layout.pages_at)
        self.tables = Tables(view, layout, self.probe)


def remove(path: Path) -> None:
    """Gives the memory back once the last user is gone; the next one to open the path makes a new arena."""
    with errors_as_store(path):
        path.unlink(missing_ok=True)


def _make(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
