"""Writing small videos, for tests and demonstrations."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from fractions import Fraction

import av
import numpy as np

from x2l_cluster.errors import InvalidInput
from x2l_cluster.video.reader import Pixels

_CLOCK = Fraction(1, 90_000)


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[Pixels],
    *,
    fps: float = 30.0,
    times_s: Iterable[float] | None = None,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    crf: int | None = 23,
    rotation: int = 0,
    options: Mapping[str, str] | None = None,
) -> int:
    """Encode (height, width, 3) uint8 RGB frames; the container follows from the name. Streams, so any length will do.

    Args:
        fps: frames a second, unless ``times_s`` says when each frame is shown (a variable frame rate).
        crf: quality of those codecs that have it; None leaves the codec's own default.
        rotation: counter-clockwise degrees a player shall turn the picture by, as phones write it.
        options: of the codec, for example ``{"g": "30", "bf": "2"}``.

    Returns:
        The number of frames written.
    """
    rate = Fraction(fps).limit_denominator(1001)
    clock = 1 / rate if times_s is None else _CLOCK
    moments = None if times_s is None else iter(times_s)
    written = 0
    with av.open(os.fspath(path), "w") as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream(codec, rate=rate, options=_quality(crf) | dict(options or {}))
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = pixel_format
                stream.codec_context.time_base = clock
                if rotation:
                    stream.set_display_rotation(rotation)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts = written if moments is None else round(next(moments) / _CLOCK)
            picture.time_base = clock
            container.mux(stream.encode(picture))
            written += 1
        if stream is None:
            raise InvalidInput(f"{path}: no frames were given to encode")
        container.mux(stream.encode())
    return written


def _quality(crf: int | None) -> dict[str, str]:
    return {} if crf is None else {"crf": str(crf)}
