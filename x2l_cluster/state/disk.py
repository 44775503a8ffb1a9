"""Manifests as files, for one machine (or a shared filesystem with working locks)::

    tenant/.lock  .epoch  .content         one writer at a time per tenant, a counter, content digest → video
    tenant/video/recipe/head               which log, how much of it counts, and the head; replaced at once
    tenant/video/recipe/rows-…             records, appended; bytes beyond what the head counts never happened

The head is the commit point: records are synced into the log first. Readers take no lock. A video is deleted by one
rename; a leftover of that, or of a crash, is swept by the next writer.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

import msgpack

from x2l_cluster.errors import ManifestCorrupt
from x2l_cluster.kv.files import errors_as_store, locked, replace_file, sync_folders
from x2l_cluster.state.manifests import Manifests
from x2l_cluster.state.shelf import Slot, Snapshot
from x2l_cluster.types import check_name

_ENVELOPE: Final = struct.Struct("<16sQ")
"""Name of the log, and how many of its bytes count; then the head."""
_LENGTH: Final = struct.Struct("<I")
_ATTEMPTS: Final = 100


class DiskState(Manifests):
    """Manifests in a folder; made when missing. Several processes may share it."""

    def __init__(self, root: Path | str) -> None:
        super().__init__(DiskShelf(Path(root).expanduser().absolute()))


class DiskShelf:
    """Heads and logs in a folder."""

    durable = True

    def __init__(self, root: Path) -> None:
        self._root = root
        with errors_as_store(root):
            root.mkdir(parents=True, exist_ok=True)

    def next_epoch(self, tenant: str) -> int:
        with self._writing(tenant) as folder:
            path = folder / ".epoch"
            epoch = _epoch(path) + 1
            replace_file(path, str(epoch).encode(), folder / ".new")
            return epoch

    def epoch(self, tenant: str) -> int:
        with errors_as_store(self._root):
            return _epoch(self._root / tenant / ".epoch")

    def tenants(self) -> list[str]:
        with errors_as_store(self._root):
            return [path.parent.name for path in self._root.glob("*/.epoch")]

    def read(self, slot: Slot, after: int = 0) -> Snapshot | None:
        with errors_as_store(self._root):
            for _ in range(_ATTEMPTS):
                try:
                    envelope = self._head(slot).read_bytes()
                except FileNotFoundError:
                    return None
                log, length, head = _open(envelope, slot)
                if after >= length:
                    return Snapshot(head, [], length)
                with suppress(FileNotFoundError):  # deleted and begun anew between the two reads
                    with open(self._folder(slot) / log, "rb") as file:
                        held = os.fstat(file.fileno()).st_size
                        file.seek(after)
                        data = file.read(min(held, length) - after) if held > after else b""
                    return Snapshot(head, _split(data, length - after, slot), length)
        raise ManifestCorrupt(f"the log {log} of video {slot.video} is gone: delete the video and index it again")

    def swap(self, slot: Slot, expected: bytes | None, head: bytes, records: Sequence[bytes]) -> int | None:
        with self._writing(slot.tenant):
            folder, path = self._folder(slot), self._head(slot)
            try:
                log, length, current = _open(path.read_bytes(), slot)
            except FileNotFoundError:
                log, length, current = f"rows-{uuid4().hex}", 0, None
            if current != expected:
                return None
            if current is None:
                folder.mkdir(parents=True, exist_ok=True)
                sync_folders(folder.parent, self._root)
            if records:
                length = _append(folder / log, length, b"".join(_LENGTH.pack(len(r)) + r for r in records))
            envelope = _ENVELOPE.pack(bytes.fromhex(log.removeprefix("rows-")), length) + head
            replace_file(path, envelope, folder / "head.new")
            return length

    def heads(self, tenant: str, video: str | None = None) -> list[bytes]:
        heads = []
        with errors_as_store(self._root):
            folder = self._root / tenant
            for name in _names(folder) if video is None else [video]:
                for recipe in _names(folder / name):
                    with suppress(FileNotFoundError):
                        slot = Slot(tenant, name, recipe)
                        heads.append(_open(self._head(slot).read_bytes(), slot)[2])
        return heads

    def drop(self, tenant: str, video: str, recipe: str | None = None) -> bool:
        with self._writing(tenant) as folder:
            if recipe is not None:
                head = self._head(Slot(tenant, video, recipe))
                if not head.exists():
                    return False
                if any(other != head for other in (folder / video).glob("*/head")):
                    self._trash(folder, head.parent)
                    return True
            bindings = self._bindings(tenant)
            kept = {content: bound for content, bound in bindings.items() if bound != video}
            gone = len(kept) < len(bindings)
            with suppress(FileNotFoundError):
                self._trash(folder, folder / video)
                gone = True
            if len(kept) < len(bindings):
                self._keep_bindings(folder, kept)
            return gone

    def bind(self, tenant: str, content: str, video: str) -> str:
        with self._writing(tenant) as folder:
            bindings = self._bindings(tenant)
            if content not in bindings:
                bindings[content] = video
                self._keep_bindings(folder, bindings)
            return bindings[content]

    def find(self, tenant: str, content: str) -> str | None:
        with errors_as_store(self._root):
            return self._bindings(tenant).get(content)

    def close(self) -> None:
        """No file stays open."""

    @contextmanager
    def _writing(self, tenant: str) -> Iterator[Path]:
        """The tenant's folder, for one writer at a time among all processes, after a dead one's leftovers are gone."""
        folder = self._root / tenant
        with errors_as_store(self._root):
            folder.mkdir(exist_ok=True)
            with locked(folder / ".lock"):
                for trash in folder.glob(".trash-*"):
                    shutil.rmtree(trash)
                yield folder

    def _trash(self, folder: Path, gone: Path) -> None:
        """Away at once; then freed, by the next writer if this one dies."""
        trash = folder / f".trash-{uuid4().hex}"
        os.rename(gone, trash)
        sync_folders(gone.parent, folder)
        shutil.rmtree(trash)

    def _folder(self, slot: Slot) -> Path:
        return self._root.joinpath(*slot)

    def _head(self, slot: Slot) -> Path:
        return self._folder(slot) / "head"

    def _bindings(self, tenant: str) -> dict[str, str]:
        path = self._root / tenant / ".content"
        try:
            found = msgpack.unpackb(path.read_bytes())
            return {check_name("digest", digest): check_name("video", video) for digest, video in found.items()}
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise ManifestCorrupt(f"{path} is damaged ({error!r}): delete it, uploads will be seen as new") from error

    def _keep_bindings(self, folder: Path, bindings: dict[str, str]) -> None:
        if bindings:
            replace_file(folder / ".content", msgpack.packb(bindings), folder / ".new")
        else:
            (folder / ".content").unlink()
            sync_folders(folder, folder)


def _epoch(path: Path) -> int:
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return 0
    except ValueError as error:
        raise ManifestCorrupt(f"{path} holds no number: put one there that is above every epoch used") from error


def _open(envelope: bytes, slot: Slot) -> tuple[str, int, bytes]:
    if len(envelope) < _ENVELOPE.size:
        raise ManifestCorrupt(f"the head of video {slot.video} is cut short: delete the video and index it again")
    name, length = _ENVELOPE.unpack_from(envelope)
    return f"rows-{name.hex()}", length, envelope[_ENVELOPE.size :]


def _append(path: Path, at: int, data: bytes) -> int:
    """Writes at ``at``, over what a dead writer may have left there, and syncs; returns the new end."""
    fresh = not path.exists()
    with open(path, "wb" if fresh else "r+b") as file:
        file.truncate(at)
        file.seek(at)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if fresh:
        sync_folders(path.parent, path.parent)
    return at + len(data)


def _split(data: bytes, expected: int, slot: Slot) -> list[bytes]:
    records, at = [], 0
    while at + _LENGTH.size <= len(data):
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        records.append(data[at : at + size])
        at += size
    if at != len(data) or len(data) != expected:
        raise ManifestCorrupt(f"the rows of video {slot.video} are cut short: delete the video and index it again")
    return records


def _names(folder: Path) -> list[str]:
    """Of what is in a folder, none if it has just gone; not what begins with a dot."""
    with suppress(FileNotFoundError):
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    return []
