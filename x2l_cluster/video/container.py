"""Opening an untrusted container with PyAV, and saying in our words what is wrong with it.

Only containers on a list are opened, and only from the local disk: a playlist (HLS, concat) that is uploaded as a
"video" must not make the decoder read other files or addresses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import av.error
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from x2l_cluster.errors import CorruptVideo, EmptyVideo, NotAVideo, NoVideoStream, VideoError
from x2l_cluster.video.files import damage

VIDEO_FORMATS = (
    "mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "m4v", "flv", "asf", "ogg", "rm", "gif",
    "h264", "hevc", "ivf", "obu", "mxf", "nut", "dv", "swf", "wtv",
)  # fmt: skip
AUDIO_FORMATS = ("wav", "mp3", "flac", "aac", "aiff", "au", "amr", "w64", "caf", "ac3", "eac3")
"""Opened only to be able to say "there is no picture in this"."""

_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(VIDEO_FORMATS + AUDIO_FORMATS)}

MAX_PIXELS = 1 << 26
"""A frame larger than 67 megapixels (8K has 33) is a mistake or an attack: it would take 200 MB each."""


READ_ERRORS = (av.error.FFmpegError, IndexError)
"""What demuxing raises; PyAV has an IndexError for a stream that appears only in the middle of the file."""

_THREADS = 4
"""Decoding threads each hold frames of their own: with one a core, a large machine would hold gigabytes."""


@contextmanager
def open_container(path: Path, *, frame_threads: bool = True) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its main video stream.

    Raises:
        NotAVideo: no listed container.
        NoVideoStream: a container without pictures (cover art does not count).
        CorruptVideo: a known container whose index is missing or unreadable.
    """
    try:
        container = av.open(f"file:{path}", options=_OPTIONS, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        raise _refusal(path, error) from error
    with container:
        pictures = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not pictures:
            raise NoVideoStream(f"{path} ({container.format.name}) has no video stream; give a file with pictures")
        if not set(container.format.name.split(",")) & set(VIDEO_FORMATS):
            raise NotAVideo(f"{path} is {container.format.name}, which is not a video container; convert it to MP4")
        best = container.streams.best("video")
        stream = best if isinstance(best, VideoStream) and best in pictures else pictures[0]
        if stream.codec_context is None:
            why = damage(path) or "its codec is unknown"
            raise CorruptVideo(f"{path} cannot be decoded: {why}; upload it again, or re-encode it as H.264")
        if not 0 < stream.width * stream.height <= MAX_PIXELS:
            raise CorruptVideo(
                f"{path} declares frames of {stream.width}x{stream.height}, not between 1 and {MAX_PIXELS} pixels; "
                "re-encode it"
            )
        stream.thread_type = "AUTO" if frame_threads else "SLICE"
        stream.codec_context.thread_count = min(_THREADS, os.cpu_count() or 1)
        yield container, stream


def _refusal(path: Path, error: Exception) -> VideoError:
    why = damage(path)
    if why is not None:
        return CorruptVideo(f"{path} cannot be opened: {why}; upload it again, or repair it")
    if isinstance(error, av.error.EOFError):
        return EmptyVideo(f"{path} ends before its first frame; upload it again")
    return NotAVideo(f"{path} is no video container this service reads ({words(error)}); convert it to MP4")


def words(error: Exception) -> str:
    """What FFmpeg says, without its numbers."""
    if isinstance(error, IndexError):
        return "a further stream appears in the middle"
    return str(getattr(error, "strerror", None) or error)


def decoded(
    container: InputContainer,
    stream: VideoStream,
    on_error: Callable[[str], None],
    *,
    since_pts: int | None = None,
    passing: Callable[[], None] = lambda: None,
) -> Iterator[VideoFrame]:
    """Every frame that can be decoded from here on, in presentation order. What cannot be is told, and skipped.

    With ``since_pts`` decoding begins at the packet with that timestamp; ``passing`` is called for each before it.
    """
    packets = container.demux(stream)
    ended = False
    while not ended:
        try:
            packet = next(packets, None)
            ended = packet is None
            if packet is None:
                yield from stream.codec_context.decode(None)  # what the decoder still holds, after a read error
            elif since_pts is not None and packet.pts != since_pts:
                passing()
            elif packet.size or packet.dts is None:
                since_pts = None
                # An empty one means "repeat the last frame" (Theora); the decoder would take it for the end.
                yield from packet.decode()
        except av.error.EOFError:
            return
        except READ_ERRORS as error:
            on_error(words(error))
