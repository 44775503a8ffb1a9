"""Single frames out of a video, to show what an answer rests on."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

from PIL import Image

from x2l_cluster.errors import EmptyVideo, InvalidInput
from x2l_cluster.video.decode import DEADLINE_S, open_video
from x2l_cluster.video.reader import Pixels

FORMATS = {"jpeg": {"quality": 88}, "png": {}}


def frames_at(
    path: str | os.PathLike[str],
    moments_s: Sequence[float],
    *,
    max_side: int | None = None,
    deadline_s: float = DEADLINE_S,
) -> list[tuple[Pixels, float]]:
    """The frames on screen at some moments: (height, width, 3) uint8, and when each began to be shown.

    In the order asked for, by one decoder run; a moment past the end gives the last frame.

    Raises:
        EmptyVideo: the file is damaged there.
    """
    shown: list[tuple[Pixels, float]] = []
    with open_video(path, moments_s=moments_s, max_side=max_side, deadline_s=deadline_s) as stream:
        for batch in stream:
            shown.extend((frame, float(time_s)) for frame, time_s in zip(batch.frames, batch.times_s, strict=True))
    if len(shown) < len(moments_s):
        raise EmptyVideo(f"{path}: no frame can be decoded at {max(moments_s):.1f} s; ask for an earlier moment")
    rank = {number: place for place, number in enumerate(sorted(range(len(moments_s)), key=moments_s.__getitem__))}
    return [shown[rank[number]] for number in range(len(moments_s))]


def frame_at(
    path: str | os.PathLike[str], time_s: float, *, max_side: int | None = None, deadline_s: float = DEADLINE_S
) -> tuple[Pixels, float]:
    """The frame on screen at a moment, and when it began to be shown; see :func:`frames_at`."""
    return frames_at(path, [time_s], max_side=max_side, deadline_s=deadline_s)[0]


def encode_image(frame: Pixels, format: str = "jpeg") -> bytes:
    """A frame as the bytes of a ``jpeg`` or ``png`` file."""
    if format not in FORMATS:
        raise InvalidInput(f"image format {format!r} is not one of {', '.join(FORMATS)}")
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format=format, **FORMATS[format])
    return buffer.getvalue()
