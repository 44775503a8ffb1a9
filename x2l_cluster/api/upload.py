"""Uploads as they come: a piece at a time, from a raw body or out of a form, never whole in memory or on our disk."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import python_multipart as multipart
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from x2l_cluster.errors import InvalidInput, UploadBroken

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FILE_FIELD: Final = "file"
_MAX_FIELDS_BYTES: Final = 64 << 10
_GONE: Final = "the connection ended before the upload did; nothing of it is kept, send it again"


async def body(request: Request) -> AsyncIterator[bytes]:
    """The pieces of a raw body. Raises UploadBroken when it ends early."""
    try:
        async for piece in request.stream():
            if piece:
                yield piece
    except ClientDisconnect:
        raise UploadBroken(_GONE) from None


class Form:
    """A ``multipart/form-data`` body with one file, in ``file``, and small fields before or behind it."""

    def __init__(self, request: Request) -> None:
        """Raises UploadBroken when it is no form."""
        _, options = parse_options_header(request.headers["content-type"])
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._part_begins,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._part_ends,
            "on_end": self._end,
        }
        try:
            self._parser = multipart.MultipartParser(options.get(b"boundary", b""), callbacks)
        except FormParserError as error:
            raise UploadBroken(f"this is no form: {error}") from None
        self.fields: dict[str, str] = {}
        self.name: str | None = None
        self._body = body(request)
        self._pieces: deque[bytes] = deque()
        self._files = self._held_bytes = 0
        self._ended = False

    async def until_file(self) -> None:
        """Reads up to where the file begins. Raises UploadBroken, InvalidInput when there is none."""
        while not self._files and not self._ended:
            await self._more()
        if not self._files:
            raise InvalidInput(f"the form has no file; put it into the field {FILE_FIELD!r}")

    async def pieces(self) -> AsyncIterator[bytes]:
        """The file, then reads on to the end of the form, so that a form that breaks off is no upload.

        Raises UploadBroken, InvalidInput.
        """
        while True:
            while self._pieces:
                yield self._pieces.popleft()
            if self._ended:
                return
            await self._more()

    async def _more(self) -> None:
        piece = await anext(self._body, None)
        if piece is None:
            raise UploadBroken("the form ends before its closing boundary; send it again")
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise UploadBroken(f"this is no form: {error}") from None

    # --- what the parser says -----------------------------------------------------------------------------------------

    def _part_begins(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._header, self._value, self._text = b"", b"", bytearray()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._field = options.get(b"name", b"").decode(errors="replace")
        self._is_file = self._field == FILE_FIELD
        if self._is_file:
            self._files += 1
            self.name = options.get(b"filename", b"").decode(errors="replace") or None
            if self._files > 1:
                raise InvalidInput("one request uploads one file; send the others by themselves")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._pieces.append(data[start:end])
            return
        self._held_bytes += end - start
        if self._held_bytes > _MAX_FIELDS_BYTES:
            raise InvalidInput(f"the fields beside the file have more than {_MAX_FIELDS_BYTES} bytes")
        self._text += data[start:end]

    def _part_ends(self) -> None:
        if not self._is_file:
            self.fields[self._field] = self._text.decode(errors="replace")

    def _end(self) -> None:
        self._ended = True
