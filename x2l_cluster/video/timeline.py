"""When each frame of a file is shown: the table that sampling, seeking and resuming work on.

Made by one pass over the packets (no decoding: an hour takes about a second), plus the decoding of the very first
frame, which tells the true size, rotation and origin of time. Files whose packets carry no usable timestamps (raw
streams, some AVI, joined-up transport streams whose clock jumps back) are decoded once from end to end instead.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame

from x2l_cluster.errors import EmptyVideo
from x2l_cluster.types import VideoInfo
from x2l_cluster.video.bitstream import ParameterSets
from x2l_cluster.video.container import READ_ERRORS, decoded, open_container, words
from x2l_cluster.video.files import check_file, damage
from x2l_cluster.video.sampling import Indices, Times, slack_s

Progress = Callable[[], None]
"""Called every so often during long work, so that whoever watches can tell slow from stuck."""


def no_progress() -> None:
    """Nobody watches."""


_PACKETS_A_BEAT = 1024
_FRAMES_A_BEAT = 16
_USUAL_INTERVAL_S = 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The frames of a video in presentation order.

    Attributes:
        info: what users see; width and height are those of the upright picture.
        times_s: (frames,) seconds from the first frame, ascending.
        pts: (frames,) the same in the stream's own ticks, as decoded frames carry them. None if they carry none that
            can be used: then the *n*-th decoded frame is frame *n*.
        keyframes: (k,) frames from which decoding can start.
        fresh: (f,) those of them behind which nothing refers to what was before, as the bitstream itself shows.
        tick_s: seconds per tick.
        rotation: degrees, counter-clockwise, that bring a decoded frame upright.
        pixel_format: of the decoded frames, for example ``yuv420p``.
        one_size: as far as the bitstream shows without decoding, all frames have the same size.
        closed: nothing stored after a keyframe is shown before it, so entering at a keyframe loses nothing.
    """

    info: VideoInfo
    times_s: Times
    pts: Indices | None
    keyframes: Indices
    fresh: Indices
    tick_s: float
    rotation: int
    pixel_format: str
    one_size: bool
    closed: bool

    @property
    def slack_s(self) -> float:
        return slack_s(self.times_s, self.tick_s)


def scan(path: str | Path, progress: Progress = no_progress) -> Timeline:
    """Read the timeline of a file.

    Raises:
        VideoFileNotFound, EmptyVideo, NotAVideo, NoVideoStream, CorruptVideo: see :mod:`x2l_cluster.errors`.
    """
    place = check_file(path)
    start = _start(place, progress)
    first = start.frame
    packets = _packets(place, progress)
    pts: Indices | None = None
    if packets.usable and first.pts is not None:
        pts, keyframes, fresh = packets.since(first.pts)
        times_s = np.asarray((pts - first.pts) * start.tick_s, np.float64)
    else:
        times_s, keyframes, fresh = _walk(place, start, progress), np.zeros(1, np.int64), np.zeros(0, np.int64)
    interval = float(np.median(np.diff(times_s))) if len(times_s) > 1 else start.interval_s
    last_s = packets.last_duration * start.tick_s if pts is not None else 0.0
    why = damage(place) or packets.broken
    sideways = first.rotation % 180 != 0
    info = VideoInfo(
        duration_s=float(times_s[-1]) + (last_s if last_s > 0 else interval),
        width=first.height if sideways else first.width,
        height=first.width if sideways else first.height,
        fps=(len(times_s) - 1) / float(times_s[-1]) if len(times_s) > 1 else 1.0 / interval,
        frames=len(times_s),
        container=start.container,
        codec=start.codec,
        partial=f"{why}; there are frames up to {times_s[-1]:.1f} s" if why else None,
    )
    return Timeline(
        info=info,
        times_s=times_s,
        pts=pts,
        keyframes=keyframes,
        fresh=fresh,
        tick_s=start.tick_s,
        rotation=round(first.rotation),
        pixel_format=first.format.name,
        one_size=packets.one_size,
        closed=packets.closed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    frame: VideoFrame
    tick_s: float
    interval_s: float
    codec: str
    container: str


def _start(path: Path, progress: Progress) -> _Start:
    """Decode the first frame there is."""
    errors: list[str] = []

    def note(error: str) -> None:
        progress()
        errors.append(error)

    with open_container(path) as (container, stream):
        for frame in decoded(container, stream, note):
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            return _Start(
                frame=frame,
                tick_s=float(stream.time_base or 0),
                interval_s=1.0 / rate if rate > 0 else _USUAL_INTERVAL_S,
                codec=stream.codec_context.name,
                container=container.format.name,
            )
    why = damage(path) or (f"{len(errors)} packets failed, the first: {errors[0]}" if errors else "it has no packets")
    raise EmptyVideo(f"{path}: not a single frame can be decoded ({why}); upload it again, or re-encode it")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packets:
    pts: Indices
    key: np.ndarray[tuple[int], np.dtype[np.bool_]]
    idr: np.ndarray[tuple[int], np.dtype[np.bool_]]
    usable: bool
    last_duration: int
    broken: str | None
    one_size: bool
    closed: bool

    def since(self, first_pts: int) -> tuple[Indices, Indices, Indices]:
        """Timestamps in presentation order from the first decodable frame on, and which are keyframes, and IDR ones."""
        order = np.argsort(self.pts)
        pts, key, idr = self.pts[order], self.key[order], self.idr[order]
        keep = pts >= first_pts
        return pts[keep], np.flatnonzero(key[keep]), np.flatnonzero(idr[keep])


def _packets(path: Path, progress: Progress) -> _Packets:
    """One pass over the packets, in the order they are stored."""
    pts, key, idr = array("q"), bytearray(), bytearray()
    usable, closed, broken, last_duration = True, True, None, 0
    last_dts, last_pts, key_pts = None, None, None
    with open_container(path) as (container, stream):
        sizes = ParameterSets(stream.codec_context.name, bytes(stream.codec_context.extradata or b""))
        try:
            for count, packet in enumerate(container.demux(stream)):
                if count % _PACKETS_A_BEAT == 0:
                    progress()
                if packet.size == 0 or packet.is_discard:
                    continue
                is_idr = packet.is_keyframe and sizes.see(bytes(packet))
                if packet.dts is not None:
                    usable = usable and (last_dts is None or packet.dts > last_dts)
                    last_dts = packet.dts
                if packet.pts is None:
                    usable = False
                    continue
                if last_pts is None or packet.pts > last_pts:
                    last_pts, last_duration = packet.pts, packet.duration or 0
                if packet.is_keyframe:
                    key_pts = packet.pts
                closed = closed and (key_pts is None or packet.pts >= key_pts)
                pts.append(packet.pts)
                key.append(packet.is_keyframe)
                idr.append(is_idr)
        except READ_ERRORS as error:
            broken = f"reading it stops early ({words(error)})"
    table = np.frombuffer(pts, np.int64) if pts else np.zeros(0, np.int64)
    return _Packets(
        pts=table,
        key=np.frombuffer(bytes(key), np.bool_),
        idr=np.frombuffer(bytes(idr), np.bool_),
        usable=usable and len(table) > 0 and len(np.unique(table)) == len(table),
        last_duration=last_duration,
        broken=broken,
        one_size=sizes.constant,
        closed=closed,
    )


def _walk(path: Path, start: _Start, progress: Progress) -> Times:
    """Decode everything for the times alone. A missing or backward step of the clock counts as one frame interval."""
    times, shift = array("d"), 0.0
    with open_container(path) as (container, stream):
        for frame in decoded(container, stream, lambda _: progress()):
            if len(times) % _FRAMES_A_BEAT == 0:
                progress()
            expected = times[-1] + start.interval_s if times else 0.0
            shown = frame.pts * start.tick_s + shift if frame.pts is not None else expected
            if not times or shown <= times[-1]:
                shift += expected - shown
                shown = expected
            times.append(shown)
    return np.frombuffer(times, np.float64)
