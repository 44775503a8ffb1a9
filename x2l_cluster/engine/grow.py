"""A recording that has grown: how much of its index stays, judged by the frames of the new file.

A chunk stays if the new file yields its very frames, at the same times, and as many of them. What a recorder had not
written whole when it was indexed may differ: the frames that a decoder holds back for reordering, at the very end. All
others must be the same, or the file is another recording.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from x2l_cluster.errors import InvalidInput, NotAContinuation
from x2l_cluster.types import ChunkRow, Manifest, SourceRef
from x2l_cluster.video import VideoStream, open_video
from x2l_cluster.video.chunks import frame_prints, span_of

HELD_BACK: Final = 16
"""Frames that a decoder of H.264 or H.265 holds back for reordering, at most."""
_PRINT: Final = 8
_PIECE: Final = 1 << 20


def check_can_grow(manifest: Manifest) -> None:
    """Raises InvalidInput for a recipe under which more video would move the frames that were sampled."""
    count = manifest.recipe.sampling.count
    if count is not None:
        raise InvalidInput(
            f"video {manifest.video} was sampled as {count} frames spread over its length, so nothing of its index "
            "would stay when it grows; index the longer file under another id, with frames a second instead of a count"
        )


def chunks_kept(
    manifest: Manifest, path: Path, *, deadline_s: float, go_on: Callable[[], None] = lambda: None
) -> int | None:
    """How many chunks, from the first on, the file yields as they are indexed; None when it ends before the index does.

    When the file begins with the very bytes of the indexed one, only the last frames need to be compared. ``go_on`` is
    called now and then, and may raise.

    Raises:
        NotAContinuation: it begins with other frames than those that were indexed.
        InvalidInput: see :func:`check_can_grow`.
        VideoError: the file is at fault.
    """
    check_can_grow(manifest)
    rows, size = manifest.chunks, manifest.recipe.chunk_frames
    if not rows:
        return 0
    end_s = rows[-1].span.end_s
    held_back_s = HELD_BACK / max(manifest.info.fps, 1e-3)
    first, proven = 0, manifest.source is not None and begins_with(path, manifest.source, go_on)
    if proven:
        first = next(row.index for row in rows if row.index == rows[-1].index or row.span.end_s > end_s - held_back_s)
    with open_video(path, manifest.recipe.sampling, start=first * size, deadline_s=deadline_s) as stream:
        same = first * size + _equal(stream, rows[first:], go_on)
        if same == len(stream) and stream.end_s < end_s:
            return None
        kept = next((row.index for row in rows if not _stays(row, stream, same, size)), len(rows))
        firm_s = min(end_s, stream.end_s) - held_back_s
        if not proven:
            _check_tail(manifest, stream, same, firm_s)
        return min(kept, len(manifest.settled))


def begins_with(path: Path, source: SourceRef, go_on: Callable[[], None] = lambda: None) -> bool:
    """Whether the file begins with the bytes of a source, or is it."""
    left, digest = source.size_bytes, hashlib.sha256()
    with path.open("rb") as file:
        while left and (piece := file.read(min(left, _PIECE))):
            go_on()
            digest.update(piece)
            left -= len(piece)
    return not left and digest.hexdigest() == source.id


def _equal(stream: VideoStream, rows: tuple[ChunkRow, ...], go_on: Callable[[], None]) -> int:
    """How many samples of the stream, from its start on, are those of the rows."""
    prints = b"".join(row.prints for row in rows)
    known = [prints[at : at + _PRINT] for at in range(0, len(prints), _PRINT)]
    equal = 0
    for found in _prints(stream, go_on):
        if equal == len(known) or found != known[equal]:
            break
        equal += 1
    return equal


def _prints(stream: VideoStream, go_on: Callable[[], None]) -> Iterator[bytes]:
    for batch in stream:
        go_on()
        prints = frame_prints(batch.frames, batch.times_s)
        yield from (prints[at : at + _PRINT] for at in range(0, len(prints), _PRINT))


def _stays(row: ChunkRow, stream: VideoStream, same: int, size: int) -> bool:
    start = row.index * size
    return (
        start + row.frames <= same
        and row.frames == min(size, len(stream) - start)
        and row.span == span_of(stream, start, row.frames)
    )


def _check_tail(manifest: Manifest, stream: VideoStream, same: int, firm_s: float) -> None:
    """Raises NotAContinuation unless the first sample that is not the same is one that was not written whole."""
    sampled = sum(row.frames for row in manifest.chunks)
    if same == sampled or (0 < same < len(stream) and stream.times_s[same] >= firm_s):
        return
    where = f"at {stream.times_s[same]:.2f} s" if same < len(stream) else f"behind {stream.end_s:.2f} s"
    raise NotAContinuation(
        f"the file is not video {manifest.video} gone on: {where} it has another frame than was indexed; append a file "
        "that begins with all of the recording, or index this one by itself"
    )
