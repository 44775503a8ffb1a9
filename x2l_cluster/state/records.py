"""Values as the bytes of a record: msgpack with a checksum and a version, read back as the same type or not at all."""

from __future__ import annotations

from typing import Any, Final, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from x2l_cluster.errors import RecordCorrupt
from x2l_cluster.state.codec import open_record, seal_record

_VERSION: Final = 1
_T = TypeVar("_T")


class RecordCodec(Generic[_T]):
    """Bytes of a frozen dataclass of plain data, and back. Equal values are equal bytes."""

    def __init__(self, kind: type[_T], what: str) -> None:
        self._adapter: TypeAdapter[_T] = TypeAdapter(kind)
        self._what = what

    def encode(self, value: _T) -> bytes:
        return seal_record({"v": _VERSION, "is": self._adapter.dump_python(value, mode="json")})

    def decode(self, data: bytes) -> _T:
        """Raises RecordCorrupt."""
        try:
            record: Any = open_record(data)
            if record["v"] != _VERSION:
                raise RecordCorrupt(f"a {self._what} of format version {record['v']}, this program reads {_VERSION}")
            return self._adapter.validate_python(record["is"])
        except (LookupError, TypeError, ValueError, ValidationError) as error:
            raise RecordCorrupt(f"the record of a {self._what} is damaged: {error!r}") from error
