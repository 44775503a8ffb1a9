"""Blobs as files: one a block, ``tenant/video/recipe/epoch/kind/chunk.stripe``, on any POSIX filesystem.

A blob is written beside its place, synced, and renamed into it, so a reader sees all of it or nothing. Files are never
changed in place, so a mapped blob stays valid when its file is replaced or deleted. A video is deleted by one rename,
then freed. What a dead process left unfinished is swept when the next one opens the folder.
"""

from __future__ import annotations

import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from x2l_cluster.errors import BlockMissing, InvalidInput, StoreUnavailable
from x2l_cluster.kv.evict import Entry
from x2l_cluster.kv.files import Scratch, errors_as_store, locked_within, sync_folders, write_new
from x2l_cluster.kv.store import ANY, Buffer, SingleStore, Want, is_for_a_question, missing_message, room_for
from x2l_cluster.types import BlockKey, Tier, check_name

_ATTEMPTS = 1000
"""A folder may be deleted between being made and being used; each attempt makes it anew."""
_MAPPED = 1 << 20
"""Smaller blobs are read: a mapping holds a file descriptor for as long as it lives, and small blobs are many."""
_WARM_S = 60.0
"""How often at most a read is noted in the file's time of change, by which the coldest are found. Not in its access
time: what the system makes of that differs by mount, and a backup would warm everything."""
_TURN_S = 10.0
"""How long another process's eviction is waited for."""


class DiskKV(SingleStore):
    """A folder of blobs.

    Args:
        root: the folder; made when missing. Several processes may share it.
        sync: whether :meth:`put` returns only once the blob would outlive a power cut. Without it the store is fast,
            and not durable: after a crash a blob may be empty or cut, which its checksums tell.
    """

    tier = Tier.DISK

    def __init__(self, root: Path | str, *, sync: bool = True) -> None:
        self._root = Path(root).expanduser().absolute()
        self.durable = sync
        with errors_as_store(self._root):
            self._scratch = Scratch(self._root / ".tmp")

    def put(self, key: BlockKey, blob: Buffer) -> None:
        path, temporary = self._path(key), self._scratch.path()
        with errors_as_store(self._root):
            try:
                write_new(temporary, blob, sync=self.durable)
                self._move(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            if self.durable:
                with suppress(FileNotFoundError):  # the video was deleted in this very moment
                    sync_folders(path.parent, self._root)

    def get(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> memoryview:
        with errors_as_store(self._root):
            try:
                with open(self._path(key), "rb", buffering=0) as file:
                    status = os.fstat(file.fileno())
                    size = status.st_size
                    if is_for_a_question(want) and time.time() - status.st_mtime > _WARM_S:
                        with suppress(OSError):  # read-only, or another's
                            os.utime(file.fileno())
                    if into is not None:
                        return _read(file, room_for(key, size, into))
                    if size < _MAPPED:
                        return memoryview(file.readall())
                    return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
            except FileNotFoundError:
                raise BlockMissing(missing_message(key, str(self._root))) from None

    def delete(self, keys: Iterable[BlockKey]) -> int:
        freed = 0
        with errors_as_store(self._root):
            for key in keys:
                path = self._path(key)
                with suppress(FileNotFoundError):
                    size = path.stat().st_size
                    path.unlink()
                    freed += size
                self._prune(path.parent)
        return freed

    def delete_video(self, tenant: str, video: str) -> int:
        folder = self._video(tenant, video)
        trash = self._scratch.path()
        with errors_as_store(self._root):
            try:
                os.rename(folder, trash)
            except FileNotFoundError:
                if not trash.parent.exists():
                    raise
                return 0
            freed = _bytes_under(trash)
            shutil.rmtree(trash, ignore_errors=True)  # a writer may still be on its way in; closing takes the rest
            self._prune(folder.parent)
        return freed

    def keys(self, tenant: str, video: str) -> Iterator[BlockKey]:
        folder = self._video(tenant, video)
        for path in _files(folder):
            with suppress(ValueError, InvalidInput):  # somebody else's file
                yield self._key(path)

    def videos(self) -> Iterator[tuple[str, str]]:
        with errors_as_store(self._root):
            for owner in _folders(self._root):
                for video in _folders(owner):
                    with suppress(InvalidInput):  # somebody else's folder
                        yield check_name("tenant", owner.name), check_name("video", video.name)

    def held_bytes(self, tenant: str | None = None) -> int:
        if tenant is not None:
            return _bytes_under(self._root / check_name("tenant", tenant))
        return sum(_bytes_under(folder) for folder in self._root.iterdir() if not folder.name.startswith("."))

    def close(self) -> None:
        self._scratch.close()

    # --- for an evictor ---------------------------------------------------------------------------------------------

    def usage_bytes(self) -> int:
        with errors_as_store(self._root):
            return self.held_bytes()

    def capacity_bytes(self) -> int | None:
        """It shares its disk with others."""
        return None

    def entries(self) -> Iterable[Entry]:
        for path in _files(self._root):
            with suppress(ValueError, InvalidInput, FileNotFoundError):  # unfinished, somebody else's, or gone
                key, status = self._key(path), path.stat()
                yield Entry(key=key, size_bytes=status.st_size, heat=status.st_mtime)

    @contextmanager
    def turn(self) -> Iterator[Callable[[], bool] | None]:
        folder = self._root / ".evict"
        with errors_as_store(self._root):
            folder.mkdir(exist_ok=True)
            with locked_within(folder / "lock", _TURN_S) as mine:
                yield (lambda: True) if mine else None

    # --- places -----------------------------------------------------------------------------------------------------

    def _video(self, tenant: str, video: str) -> Path:
        return self._root / check_name("tenant", tenant) / check_name("video", video)

    def _path(self, key: BlockKey) -> Path:
        return self._video(key.tenant, key.video) / key.recipe / str(key.epoch) / key.kind / f"{key.chunk}.{key.stripe}"

    def _key(self, path: Path) -> BlockKey:
        tenant, video, recipe, epoch, kind, name = path.relative_to(self._root).parts
        chunk, stripe = map(int, name.split("."))
        return BlockKey(
            tenant=tenant, video=video, recipe=recipe, epoch=int(epoch), kind=kind, chunk=chunk, stripe=stripe
        )

    def _move(self, temporary: Path, path: Path) -> None:
        for _ in range(_ATTEMPTS):
            with suppress(FileNotFoundError, FileExistsError):  # mkdir says "exists" when it stops existing
                path.parent.mkdir(parents=True, exist_ok=True)
                os.rename(temporary, path)
                return
        raise StoreUnavailable(f"the folder {path.parent} vanishes as often as it is made: who deletes it?")

    def _prune(self, folder: Path) -> None:
        """Removes folders from ``folder`` up to the root for as long as they are empty."""
        with suppress(OSError):
            while folder != self._root:
                folder.rmdir()
                folder = folder.parent


def _read(file: FileIO, room: memoryview) -> memoryview:
    """Fills ``room`` with what the file begins with; files are never shortened, so there is enough."""
    rest = room
    while rest and (got := file.readinto(rest)):
        rest = rest[got:]
    return room[: len(room) - len(rest)].toreadonly()


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in _files(folder):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _folders(folder: Path) -> list[Path]:
    """Those in a folder, for as long as it is there; none of our own, whose names begin with a dot."""
    with suppress(FileNotFoundError):
        return [place for place in folder.iterdir() if place.is_dir() and not place.name.startswith(".")]
    return []


def _files(folder: Path) -> Iterator[Path]:
    """Every file below, for as long as it is there: others make and delete meanwhile."""
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names)
