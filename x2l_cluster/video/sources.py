"""Keeping what was uploaded, so that evidence can be shown and a video can be indexed again.

Content-addressed: the id of a source is the SHA-256 of its bytes, so the same file is kept once however often it comes,
and nobody can make one file pass for another. Each tenant has a folder of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from x2l_cluster.errors import EmptyVideo, InvalidInput, SourceMissing, StoreUnavailable
from x2l_cluster.types import SourceRef, check_name
from x2l_cluster.video.files import check_file

_TRIES = 20
_PIECE = 1 << 20
_ID = re.compile(r"[0-9a-f]{64}")


class SourceStore(Protocol):
    """Keeps original files. ``tenant`` is an argument of every call; one tenant never sees another's sources."""

    def put(self, tenant: str, source: str | os.PathLike[str] | BinaryIO, *, name: str | None = None) -> SourceRef:
        """Keep a local file, or what a binary stream yields. Seen by others only once it is whole.

        Raises:
            VideoFileNotFound, EmptyVideo: there is nothing to keep.
            StoreUnavailable: it could not be stored; nothing is left behind.
        """
        ...

    def open_local(self, tenant: str, ref: SourceRef) -> AbstractContextManager[Path]:
        """A local path to the bytes, for as long as the context lasts.

        Raises:
            SourceMissing: not kept (any more).
        """
        ...

    def exists(self, tenant: str, ref: SourceRef) -> bool: ...

    def delete(self, tenant: str, ref: SourceRef) -> None:
        """Forget a source; nothing happens if it is not there."""
        ...


class FsspecSourceStore:
    """A :class:`SourceStore` in a directory, or wherever fsspec reaches (``s3://bucket/sources``, ``memory://…``)."""

    def __init__(self, url: str | os.PathLike[str], **options: Any) -> None:
        self._fs, root = fsspec.core.url_to_fs(os.fspath(url), **options)
        self._root = root.rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)

    def put(self, tenant: str, source: str | os.PathLike[str] | BinaryIO, *, name: str | None = None) -> SourceRef:
        folder = self._folder(tenant)
        part = f"{folder}/{uuid.uuid4().hex}.part"
        with contextlib.ExitStack() as stack:
            if isinstance(source, str | os.PathLike):
                name = name or Path(source).name
                source = stack.enter_context(check_file(source).open("rb"))
            try:
                digest, size = self._write(part, source)
                if size == 0:
                    raise EmptyVideo(f"{name or 'the upload'} is empty (0 bytes); upload it again")
                self._publish(part, f"{folder}/{digest}")
            except OSError as error:
                raise StoreUnavailable(f"the source {name or ''} could not be kept in {self._root}: {error}") from error
            finally:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(part)
        return SourceRef(id=digest, name=name or digest[:12], size_bytes=size)

    @contextmanager
    def open_local(self, tenant: str, ref: SourceRef) -> Iterator[Path]:
        place = self._place(tenant, ref)
        if not self._fs.exists(place):
            raise SourceMissing(f"source {ref.id} ({ref.name}) is not kept any more; upload the video again")
        if self._local:
            yield Path(place)
            return
        with tempfile.TemporaryDirectory(prefix="x2l-source-") as folder:
            path = Path(folder) / ref.id
            try:
                self._fs.get_file(place, str(path))
            except FileNotFoundError as error:
                raise SourceMissing(f"source {ref.id} ({ref.name}) was deleted meanwhile; upload it again") from error
            yield path

    def exists(self, tenant: str, ref: SourceRef) -> bool:
        return bool(self._fs.exists(self._place(tenant, ref)))

    def delete(self, tenant: str, ref: SourceRef) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._place(tenant, ref))
        with contextlib.suppress(OSError):  # other sources are still in it
            self._fs.rmdir(self._folder(tenant))

    def _write(self, part: str, source: BinaryIO) -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        with self._opened(part) as file:
            while piece := source.read(_PIECE):
                digest.update(piece)
                size += len(piece)
                file.write(piece)
            if self._local:
                file.flush()
                os.fsync(file.fileno())
        return digest.hexdigest(), size

    def _opened(self, part: str) -> Any:
        """The part, in its folder, which goes with the last other source whenever somebody deletes that."""
        for _ in range(_TRIES):
            self._fs.makedirs(os.path.dirname(part), exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                return self._fs.open(part, "wb")
        return self._fs.open(part, "wb")

    def _publish(self, part: str, place: str) -> None:
        """Give the finished file its name; on a local disk one rename, elsewhere the object appears when complete."""
        if self._local:
            os.replace(part, place)
        elif not self._fs.exists(place):
            self._fs.mv(part, place)

    def _folder(self, tenant: str) -> str:
        return f"{self._root}/{check_name('tenant', tenant)}"

    def _place(self, tenant: str, ref: SourceRef) -> str:
        if not _ID.fullmatch(ref.id):
            raise InvalidInput(f"{ref.id!r} is no source id (64 hex digits)")
        return f"{self._folder(tenant)}/{ref.id}"
