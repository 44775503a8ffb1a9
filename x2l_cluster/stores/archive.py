"""An exported index as one file: what it is, its rows, each followed by its blobs, and an end.

::

    x2l-index 1 ⏎
    [0, "index", head of the manifest, sum]
    [1, "row",   row 0, sum]  [2, "blob", …, sum]  [3, "blob", …, sum]  …
    [k, "row",   row 1, sum]  …
    [n, "end",   "", sum]

Frames are msgpack; every sum (xxh3-64) covers the frame and the sum before it, so that what was cut off, left out,
swapped or said twice is found. Head and rows are what the state keeps (:mod:`~x2l_cluster.state.codec`), with every
blob lying by itself; a blob says whose it is (:mod:`~x2l_cluster.kv.blob`). Nothing is unpickled.

Reading is a walk: a frame is taken when it is asked for, no length in the file is believed before so many bytes are
there, and of the file never more than a blob is in memory. Sums find damage, not forgery: whoever reads checks what the
frames hold as if anybody had made them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isfinite
from typing import BinaryIO, Final

import msgpack
import xxhash

from x2l_cluster.errors import BadArchive, InvalidInput, ManifestCorrupt
from x2l_cluster.kv.store import Buffer
from x2l_cluster.state.codec import MAX_RECORD_BYTES, Head, decode_head, decode_row, encode_head, encode_row
from x2l_cluster.types import ChunkRow, IndexStatus, Manifest

MAGIC: Final = b"x2l-index 1\n"
MAX_BLOB_BYTES: Final = 64 << 20
"""Stored blobs are stripes of less than a mebibyte, unless somebody chose larger ones."""
_SOURCE: Final = re.compile(r"[0-9a-f]{64}")
_READ: Final = 256 << 10
_AROUND: Final = 64
"""Bytes of a frame beside its payload, at most."""


class ArchiveWriter:
    """Writes frames in the order they are read in. For one thread."""

    def __init__(self, file: BinaryIO, manifest: Manifest) -> None:
        """``manifest`` without its rows; they come one by one. Raises what writing to the file does."""
        self._file, self._number, self._sum = file, 0, b""
        file.write(MAGIC)
        self._frame("index", encode_head(replace(manifest, chunks=()), born=0))

    def row(self, row: ChunkRow, blobs: Sequence[Buffer]) -> None:
        """A row whose blobs lie by themselves, and these: kinds in the order of their names, stripes in theirs."""
        self._frame("row", encode_row(row))
        for blob in blobs:
            if memoryview(blob).nbytes > MAX_BLOB_BYTES:
                raise InvalidInput(f"a blob of chunk {row.index} is too large for a file: reindex it into smaller ones")
            self._frame("blob", blob)

    def end(self) -> None:
        self._frame("end", b"")

    def _frame(self, name: str, payload: Buffer) -> None:
        self._sum = _sum(self._sum, self._number, name, payload)
        self._file.write(msgpack.packb([self._number, name, bytes(payload), self._sum]))
        self._number += 1


class ArchiveReader:
    """Walks through a file: :meth:`rows`, and of each row its blobs by :meth:`blob` before the next is asked for.

    Attributes:
        manifest: what the file says of the index, without rows.

    Raises (everywhere): BadArchive, whatever the file holds.
    """

    def __init__(self, file: BinaryIO) -> None:
        if file.read(len(MAGIC)) != MAGIC:
            raise BadArchive("this is no exported index of a version that this program reads: `x2l export` makes one")
        self._frames = msgpack.Unpacker(
            file,
            read_size=_READ,
            max_buffer_size=MAX_BLOB_BYTES + _READ + _AROUND,
            max_bin_len=MAX_BLOB_BYTES,
            max_str_len=_AROUND,
            max_array_len=4,
            max_map_len=0,
            max_ext_len=0,
            raw=False,
        )
        self._number, self._sum = 0, b""
        name, payload = self._next()
        if name != "index":
            raise BadArchive(f"an exported index begins with what it is, this one with {name!r}")
        self.manifest = self._head(payload).manifest

    def rows(self) -> Iterator[ChunkRow]:
        """The rows in order, each after all blobs of the one before were taken; then the file has to end."""
        expected = 0
        while True:
            name, payload = self._next()
            if name == "end":
                break
            if name != "row":
                raise BadArchive(f"after row {expected - 1} comes {name!r}, where a row or the end should: damaged")
            yield self._row(payload, expected)
            expected += 1
        if expected == 0:
            raise BadArchive("the exported index has no rows: export it again")
        if self._frames.read_bytes(1):
            raise BadArchive("something comes behind the end of the exported index: damaged")

    def blob(self) -> bytes:
        """The next blob of the row."""
        name, payload = self._next()
        if name != "blob":
            raise BadArchive(f"a blob should come, and {name!r} does: damaged, or blobs are missing")
        return payload

    def _next(self) -> tuple[str, bytes]:
        try:
            frame = self._frames.unpack()
        except msgpack.OutOfData:
            raise BadArchive("the exported index is cut off: copy or export it again") from None
        except (ValueError, msgpack.UnpackException, RecursionError) as error:
            raise BadArchive(f"the exported index is damaged: {error!r}") from None
        if not isinstance(frame, list) or [type(part) for part in frame] != [int, str, bytes, bytes]:
            raise BadArchive("the exported index is damaged: this is no frame")
        number, name, payload, told = frame
        if number != self._number or told != _sum(self._sum, number, name, payload):
            raise BadArchive(f"frame {self._number} of the exported index does not match its checksum: damaged")
        self._sum, self._number = told, number + 1
        return name, payload

    def _head(self, payload: bytes) -> Head:
        try:
            head = decode_head(payload)
        except ManifestCorrupt as error:
            raise BadArchive(f"the exported index says of itself what makes no sense: {error}") from None
        info, source = head.manifest.info, head.manifest.source
        if head.chunks or head.manifest.tail or head.manifest.status is not IndexStatus.READY:
            raise BadArchive("the exported index says that it is not whole: export it again")
        if not (isfinite(info.duration_s) and isfinite(info.fps)) or min(info.duration_s, info.width, info.height) < 0:
            raise BadArchive(f"no video is like that: {info}")
        if source is not None and not _SOURCE.fullmatch(source.id):
            raise BadArchive(f"{source.id!r} is no digest of a file: damaged")
        return head

    def _row(self, payload: bytes, expected: int) -> ChunkRow:
        if len(payload) > MAX_RECORD_BYTES:
            raise BadArchive(f"row {expected} of the exported index is too large")
        try:
            row = decode_row(payload)
        except ManifestCorrupt as error:
            raise BadArchive(f"row {expected} of the exported index makes no sense: {error}") from None
        if row.index != expected or not 0 <= row.position_start <= row.position_end < 1e12:
            raise BadArchive(f"row {expected} of the exported index is another one, or out of place")
        if not row.blocks or any(ref.packed for ref in row.blocks.values()):
            raise BadArchive(f"row {expected} of the exported index names no blobs, or some that lie elsewhere")
        return row


def _sum(before: bytes, number: int, name: str, payload: Buffer) -> bytes:
    digest = xxhash.xxh3_64(before)
    digest.update(f"{number}/{name}/".encode(errors="replace"))
    digest.update(memoryview(payload).cast("B"))
    return digest.digest()
