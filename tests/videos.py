"""Small real video files for tests. Every frame carries its own number as a pattern, so that tests can tell frames."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from x2l_cluster.video import write_video

WIDTH, HEIGHT = 128, 96
Frame = npt.NDArray[np.uint8]


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> Frame:
    """Ten bits of ``number`` as black and white columns in the upper half, something moving in the lower one."""
    frame = np.zeros((height, width, 3), np.uint8)
    for bit in range(10):
        frame[: height // 2, bit * width // 10 : (bit + 1) * width // 10] = 220 if number >> bit & 1 else 30
    x = (number * 5) % max(1, width - 16)
    frame[height // 2 :, :, 2] = 90
    frame[height * 5 // 8 : height * 7 // 8, x : x + 16] = (240, 160, 40)
    return frame


def number_of(frame: Frame) -> int:
    """The number a (decoded, perhaps scaled) picture carries."""
    height, width = frame.shape[:2]
    row = frame[height // 4].mean(axis=-1)
    return sum(int(row[int((bit + 0.5) * width / 10)] > 125) << bit for bit in range(10))


def pictures(count: int, width: int = WIDTH, height: int = HEIGHT) -> Iterator[Frame]:
    return (picture(number, width, height) for number in range(count))


def vfr_times(count: int) -> list[float]:
    """A jittery clock with one long pause."""
    times = [number / 25 + 0.007 * math.sin(number * 1.7) + 0.007 for number in range(count)]
    return [time + (1.5 if number > count // 2 else 0.0) for number, time in enumerate(times)]


def cfr(path: Path, count: int = 90, fps: float = 30.0, **more: object) -> Path:
    """Constant frame rate, H.264 with B-frames, a keyframe every 30 frames."""
    write_video(path, pictures(count), fps=fps, options={"g": "30", "bf": "3", "preset": "veryfast"}, **more)  # type: ignore[arg-type]
    return path


def vfr(path: Path, count: int = 90) -> Path:
    return cfr(path, count, times_s=vfr_times(count))


def copied(source: Path, path: Path, shift: int = 0) -> Path:
    """The same packets in another container, ``shift`` ticks later (or earlier)."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        template = old.streams.video[0]
        stream = new.add_stream_from_template(template)
        for packet in old.demux(template):
            if packet.dts is not None and packet.pts is not None:
                packet.pts += shift
                packet.dts += shift
                packet.stream = stream
                new.mux(packet)
    return path


def everything(path: Path) -> tuple[list[float], list[Frame]]:
    """Plain full decode, times from the first frame: what readers are compared with."""
    times, frames = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            times.append(float(frame.pts * frame.time_base))
            frames.append(frame.to_ndarray(format="rgb24"))
    return [time - times[0] for time in times], frames


def corrupt(path: Path, target: Path, start: float = 0.4, end: float = 0.6, every: int = 60) -> Path:
    """Noise over a part of the file (given as shares of its length)."""
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for place in range(int(len(data) * start), int(len(data) * end), every):
        data[place] = int(rng.integers(256))
    target.write_bytes(data)
    return target


def faststart(path: Path, count: int = 90) -> Path:
    """An MP4 with its index in front, as files for the web have it."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=30, options={"g": "30", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(stream.encode())
    return path
