"""Bytes → timed frames → chunks, and the place where the bytes are kept.

Everything is imported on use: the decoder process imports this package too and must stay light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from x2l_cluster.video.chunks import FrameChunk, chunked
    from x2l_cluster.video.decode import DEADLINE_S, FrameBatch, VideoStream, open_video
    from x2l_cluster.video.encode import write_video
    from x2l_cluster.video.evidence import encode_image, frame_at, frames_at
    from x2l_cluster.video.reader import FrameReader
    from x2l_cluster.video.sources import FsspecSourceStore, SourceStore

_HOMES = {
    "FrameChunk": "chunks",
    "chunked": "chunks",
    "DEADLINE_S": "decode",
    "FrameBatch": "decode",
    "VideoStream": "decode",
    "open_video": "decode",
    "write_video": "encode",
    "encode_image": "evidence",
    "frame_at": "evidence",
    "frames_at": "evidence",
    "FrameReader": "reader",
    "FsspecSourceStore": "sources",
    "SourceStore": "sources",
}

__all__ = [
    "DEADLINE_S", "FrameBatch", "FrameChunk", "FrameReader", "FsspecSourceStore", "SourceStore", "VideoStream",
    "chunked", "encode_image", "frame_at", "frames_at", "open_video", "write_video",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
