"""What the disk stores need of a filesystem: folders and files that are there after a crash, or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from x2l_cluster.errors import StoreFull, StoreUnavailable

_AGAIN_S = 0.02
"""How often a lock is looked at that another holds."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def errors_as_store(place: Path) -> Iterator[None]:
    """Errors of the filesystem become StoreFull or StoreUnavailable."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFull(
                f"no room left at {place} ({error.strerror}): delete videos or give it more space"
            ) from error
        raise StoreUnavailable(f"the folder {place} cannot be used: {error}") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Excludes every other holder, in this process and in others, until left or until this process dies."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Held:
    """A lock file: its descriptor, which a child may inherit and the lock with it, and whether the lock is ours."""

    fd: int
    mine: bool


@contextmanager
def held(path: Path, *, patience_s: float = 0.0) -> Iterator[Held]:
    """As :func:`locked`, but waits only so long. Another's lock is not touched by leaving."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + patience_s
        while not (mine := _try_lock(fd)) and time.monotonic() < until:
            time.sleep(_AGAIN_S)
        yield Held(fd, mine)
    finally:
        os.close(fd)


@contextmanager
def locked_within(path: Path, patience_s: float) -> Iterator[bool]:
    """As :func:`locked`, but waits only so long; whether it is ours then."""
    with held(path, patience_s=patience_s) as lock:
        yield lock.mine


def private_folder(path: Path) -> Path:
    """A folder that only this user can look into, made if missing. Raises StoreUnavailable for another's."""
    with errors_as_store(path):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StoreUnavailable(f"{path} is there already and not this user's alone; remove it, or give another place")
    return path


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sync_folders(folder: Path, root: Path) -> None:
    """Makes the names in every folder from ``folder`` up to ``root`` outlive a crash; syncing a file does not.

    All of them every time: a folder that is there already may have been made by a process that died before syncing it.
    """
    for place in (folder, *folder.parents):
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if place == root:
            return


def write_new(path: Path, data: bytes | bytearray | memoryview, *, sync: bool = True) -> None:
    """A file with these bytes; if that fails, none."""
    try:
        with open(path, "wb", buffering=0) as file:
            rest = memoryview(data).cast("B")
            while rest:
                rest = rest[file.write(rest) :]
            if sync:
                os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def replace_file(path: Path, data: bytes, temporary: Path) -> None:
    """Puts a file in its place at once, for good, through ``temporary`` on the same filesystem."""
    write_new(temporary, data)
    os.rename(temporary, path)
    sync_folders(path.parent, path.parent)


class Scratch:
    """A folder for unfinished files that belongs to one process, and is swept by the next one if that dies.

    Ownership is a kernel lock on a file inside, never a process id, so a reused id cannot keep rubbish alive and a
    living owner cannot lose its files.
    """

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        parent.mkdir(parents=True, exist_ok=True)
        with locked(parent / "lock"):  # so that nobody sweeps a folder between its making and its locking
            for folder in parent.iterdir():
                if folder.is_dir() and _abandoned(folder):
                    shutil.rmtree(folder, ignore_errors=True)
            self.folder = parent / uuid4().hex
            self.folder.mkdir(mode=0o700)
            self._fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)

    @property
    def lock(self) -> int:
        """The descriptor of the lock. A child that inherits it keeps the folder from being swept, too."""
        return self._fd

    def path(self) -> Path:
        """A name nobody else uses."""
        return self.folder / uuid4().hex

    def close(self) -> None:
        if self._fd >= 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self._fd)
            self._fd = -1


def _abandoned(folder: Path) -> bool:
    try:
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        return _try_lock(fd)
    finally:
        os.close(fd)
