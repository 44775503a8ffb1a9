"""What can be said about a file before any decoder is let near it: is it there, is it a file, is it whole.

The last point is exact for the containers people upload: MP4 boxes, Matroska's segment and RIFF all declare how long
they are, so a file that is shorter than it declares was cut off.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from x2l_cluster.errors import EmptyVideo, VideoFileNotFound

_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = 0x18538067


def check_file(path: str | os.PathLike[str]) -> Path:
    """The absolute path of a readable regular file with at least one byte.

    Raises:
        VideoFileNotFound: nothing there, not readable, or not a regular file (a directory; a FIFO would block forever).
        EmptyVideo: zero bytes.
    """
    place = Path(os.path.abspath(path))
    try:
        status = place.stat()
    except (OSError, ValueError) as error:
        raise VideoFileNotFound(f"{place}: no such file, or not readable ({error}); check the path") from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoFileNotFound(f"{place} is not a regular file; give the path of a video file")
    if not os.access(place, os.R_OK):
        raise VideoFileNotFound(f"{place} cannot be read; check its permissions")
    if status.st_size == 0:
        raise EmptyVideo(f"{place} is empty (0 bytes); upload it again")
    return place


def damage(path: Path) -> str | None:
    """Why the file cannot be whole, judged by its outermost structure; None when nothing speaks against it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _mp4_damage(file, size)
        if head[:4] == _EBML:
            return _matroska_damage(file, size)
        if head[:4] == b"RIFF":
            return _shortfall(8 + int.from_bytes(head[4:8], "little"), size)
    return None


def _shortfall(declared: int, size: int) -> str | None:
    return f"the file ends after {size} of {declared} bytes" if declared > size else None


def _mp4_damage(file: BinaryIO, size: int) -> str | None:
    """Walk the top-level boxes: a 32-bit length and a name; length 1 means a 64-bit one follows, 0 up to the end."""
    position, seen, short = 0, set(), None
    while position + 8 <= size and short is None:
        file.seek(position)
        head = file.read(16)
        length, name = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:
            length = size - position
        if length < 8:
            break
        seen.add(name)
        short = _shortfall(position + length, size)
        position += length
    if b"moov" not in seen:
        return "its index (the moov box) is missing: the recording or upload was cut off before it was written"
    return short


def _matroska_damage(file: BinaryIO, size: int) -> str | None:
    """An EBML header element, then one segment element whose size is known unless it was streamed live."""
    file.seek(4)
    header, _ = _ebml_size(file)
    file.seek(header, os.SEEK_CUR)
    if int.from_bytes(file.read(4), "big") != _SEGMENT:
        return None
    length, unknown = _ebml_size(file)
    return None if unknown else _shortfall(file.tell() + length, size)


def _ebml_size(file: BinaryIO) -> tuple[int, bool]:
    """An EBML variable-length number: leading zero bits tell its length. Also whether it says "unknown" (all ones)."""
    first = int.from_bytes(file.read(1), "big")
    width = 9 - first.bit_length()
    if first == 0:
        return 0, True
    value = int.from_bytes(bytes([first & (0xFF >> width)]) + file.read(width - 1), "big")
    return value, value == (1 << 7 * width) - 1
