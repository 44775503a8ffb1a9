"""Recordings that grow: a transport stream as a recorder writes it, cut anywhere."""

from __future__ import annotations

from pathlib import Path

import av

from tests.engines import mosaic
from tests.videos import copied


def recording(folder: Path, seconds: int, *, seed: int = 0, fps: float = 2.0, suffix: str = ".ts") -> Path:
    """H.264 with B-frames, in a transport stream."""
    return copied(mosaic(folder / f"made-{seed}.mp4", seconds, seed=seed, fps=fps), folder / f"whole-{seed}{suffix}")


def cut(whole: Path, share: float, name: str = "cut") -> Path:
    """The first part of a recording, as it was at some moment: whatever packet was being written is torn."""
    data = whole.read_bytes()
    part = whole.with_name(f"{name}-{share}{whole.suffix}")
    part.write_bytes(data[: int(len(data) * share)])
    return part


def remuxed(whole: Path, path: Path, until_s: float) -> Path:
    """The packets up to a moment, in a file that is whole."""
    with av.open(str(whole)) as old, av.open(str(path), "w") as new:
        template = old.streams.video[0]
        stream = new.add_stream_from_template(template)
        first = None
        for packet in old.demux(template):
            if packet.dts is None or packet.pts is None:
                continue
            first = packet.pts if first is None else first
            if (packet.pts - first) * packet.time_base >= until_s:
                break
            packet.stream = stream
            new.mux(packet)
    return path
