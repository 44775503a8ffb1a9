"""Values as the bytes of a record: msgpack with a checksum and a version, read back as the same type or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from x2l_cluster.errors import InvalidInput, RecordCorrupt, StoreUnavailable
from x2l_cluster.state.codec import MAX_RECORD_BYTES, open_record, seal_record
from x2l_cluster.state.ledger import Entry, Ledger, Marks, Room

_VERSION: Final = 1
_ATTEMPTS: Final = 100
_T = TypeVar("_T")


class RecordForeign(RecordCorrupt):
    """Another version of the program wrote the record; it is in order, and is left alone."""


class RecordCodec(Generic[_T]):
    """Bytes of a frozen dataclass of plain data, and back.

    No two encodings are the same: of two writers who made equal changes at once, a ledger must tell one that it was
    too late.
    """

    def __init__(self, kind: type[_T], what: str) -> None:
        self._adapter: TypeAdapter[_T] = TypeAdapter(kind)
        self._what = what

    def encode(self, value: _T) -> bytes:
        """Raises InvalidInput when that makes more than a record may be, or has text that is none."""
        try:
            data = seal_record({"v": _VERSION, "n": os.urandom(8), "is": self._adapter.dump_python(value, mode="json")})
        except ValueError as error:
            raise InvalidInput(f"a {self._what} cannot be kept: {error}") from error
        if len(data) > MAX_RECORD_BYTES:
            raise InvalidInput(f"a {self._what} of {len(data)} bytes is too large to be kept")
        return data

    def decode(self, data: bytes) -> _T:
        """Raises RecordCorrupt."""
        try:
            record: Any = open_record(data)
            if record["v"] != _VERSION:
                raise RecordForeign(f"a {self._what} of format version {record['v']}, this program reads {_VERSION}")
            return self._adapter.validate_python(record["is"])
        except (LookupError, TypeError, ValueError, ValidationError) as error:
            raise RecordCorrupt(f"the record of a {self._what} is damaged: {error!r}") from error


class Records(Generic[_T]):
    """Records of one type in a ledger.

    Args:
        kind, what: their type, and what to call one in an error.
        marks: where a record stands.
    """

    def __init__(self, ledger: Ledger, kind: type[_T], what: str, marks: Callable[[_T], Marks]) -> None:
        self._ledger, self._marks, self._what = ledger, marks, what
        self._codec = RecordCodec(kind, what)

    def get(self, name: str) -> _T | None:
        """Raises RecordCorrupt."""
        raw = self._ledger.get(name)
        return None if raw is None else self._codec.decode(raw)

    def in_group(self, index: str, group: str, *, limit: int = 10_000) -> list[_T]:
        """All that stand in a group, in order. Raises RecordCorrupt."""
        found = self._ledger.get_many(self._ledger.names(index, group, limit=limit))
        return [self._codec.decode(raw) for raw in found if raw is not None]

    def change(self, name: str, step: Callable[[_T | None], _T | None], *, room: Room | None = None) -> _T | None:
        """Reads, steps and swaps until it holds; returns the outcome. None is no record, before and after.

        Raises GroupFull, RecordCorrupt, StoreUnavailable, and what ``step`` raises.
        """
        for _ in range(_ATTEMPTS):
            raw = self._ledger.get(name)
            old = None if raw is None else self._codec.decode(raw)
            new = step(old)
            if new is old:
                return new
            entry = None if new is None else Entry(self._codec.encode(new), self._marks(new))
            if self._ledger.put(name, raw, entry, room=room):
                return new
        raise StoreUnavailable(f"a {self._what} changes faster than it can be written to: try again")
