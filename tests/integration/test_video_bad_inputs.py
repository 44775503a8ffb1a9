"""Bad files and bad requests: each gets its typed error, in time, in words for users, and leaves nothing behind."""

from __future__ import annotations

import io
import math
import os
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from PIL import Image

from tests.videos import cfr, corrupt, faststart, picture
from x2l_cluster.errors import (
    CorruptVideo,
    EmptyVideo,
    InvalidInput,
    NotAVideo,
    NoVideoStream,
    SpanOutsideVideo,
    VideoFileNotFound,
    X2LError,
)
from x2l_cluster.types import Sampling
from x2l_cluster.video import open_video, write_video

Maker = Callable[[Path, Path], Path]
"""Makes the bad input in a folder, given a good file."""


def content(name: str, data: bytes) -> Maker:
    def make(folder: Path, good: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def image(kind: str) -> Maker:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, kind)
    return content(f"picture.{kind}", buffer.getvalue())


def folder_itself(folder: Path, good: Path) -> Path:
    return folder


def missing(folder: Path, good: Path) -> Path:
    return folder / "nowhere.mp4"


def fifo(folder: Path, good: Path) -> Path:
    os.mkfifo(folder / "fifo.mp4")
    return folder / "fifo.mp4"


def archive(folder: Path, good: Path) -> Path:
    with zipfile.ZipFile(folder / "video.mp4", "w") as file:
        file.write(good, "inside.mp4")
    return folder / "video.mp4"


def sound(folder: Path, good: Path) -> Path:
    with wave.open(str(folder / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    return folder / "sound.wav"


def sound_in_mp4(folder: Path, good: Path) -> Path:
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return folder / "sound.mp4"


def no_frames(name: str) -> Maker:
    def make(folder: Path, good: Path) -> Path:
        with av.open(str(good)) as old, av.open(str(folder / name), "w") as new:
            new.add_stream_from_template(old.streams.video[0])
            new.start_encoding()
        return folder / name

    return make


def cut(share: float, make: Callable[[Path], Path] = cfr) -> Maker:
    def build(folder: Path, good: Path) -> Path:
        path = make(folder / "cut.mp4")
        os.truncate(path, int(path.stat().st_size * share))
        return path

    return build


def all_noise(folder: Path, good: Path) -> Path:
    """A sound container around packets of noise."""
    with av.open(str(good)) as old, av.open(str(folder / "noise.mkv"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        rng = np.random.default_rng(0)
        for packet in old.demux(video=0):
            if packet.dts is not None:
                noise = av.Packet(rng.bytes(packet.size))
                noise.pts, noise.dts, noise.time_base, noise.stream = packet.pts, packet.dts, packet.time_base, stream
                new.mux(noise)
    return folder / "noise.mkv"


def huge(folder: Path, good: Path) -> Path:
    """A file that claims frames of 65535x65535 (12 GB each), in the container, which this codec believes."""
    path = folder / "huge.mkv"
    write_video(path, [picture(1, 320, 256)], codec="ffv1", pixel_format="bgr0", crf=None)
    data = path.read_bytes()
    for claim in (b"\xb0\x82\x01\x40", b"\xba\x82\x01\x00"):
        assert claim in data
        data = data.replace(claim, claim[:2] + b"\xff\xff")
    path.write_bytes(data)
    return path


def noisy_header(folder: Path, good: Path) -> Path:
    return corrupt(faststart(folder / "whole.mp4"), folder / "header.mp4", start=0.0, end=0.35, every=3)


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n/etc/passwd\n#EXT-X-ENDLIST\n"
CONCAT = b"ffconcat version 1.0\nfile /etc/passwd\n"

BAD_FILES: dict[str, tuple[Maker, type[X2LError]]] = {
    "missing": (missing, VideoFileNotFound),
    "a directory": (folder_itself, VideoFileNotFound),
    "a FIFO nobody writes to": (fifo, VideoFileNotFound),
    "zero bytes": (content("empty.mp4", b""), EmptyVideo),
    "one byte": (content("one.mp4", b"\0"), NotAVideo),
    "text": (content("notes.txt", b"this is not a video\n" * 100), NotAVideo),
    "text by another name": (content("notes.mp4", b"this is not a video\n" * 100), NotAVideo),
    "a PNG": (image("png"), NotAVideo),
    "a JPEG": (image("jpeg"), NotAVideo),
    "an archive": (archive, NotAVideo),
    "noise": (content("noise.mp4", np.random.default_rng(0).bytes(50_000)), NotAVideo),
    "zeros": (content("zeros.mp4", bytes(50_000)), NotAVideo),
    "a playlist that points elsewhere": (content("list.m3u8", PLAYLIST), NotAVideo),
    "a concat script that points elsewhere": (content("list.ffconcat", CONCAT), NotAVideo),
    "sound only": (sound, NoVideoStream),
    "sound only, in an MP4": (sound_in_mp4, NoVideoStream),
    "a Matroska file without frames": (no_frames("none.mkv"), EmptyVideo),
    "an MP4 without frames": (no_frames("none.mp4"), NoVideoStream),
    "frames of twelve gigabytes": (huge, CorruptVideo),
    "nothing but broken packets": (all_noise, EmptyVideo),
    "an MP4 cut off before its index": (cut(0.6), CorruptVideo),
    "an MP4 of which only the first bytes came": (content("stub.mp4", b"\0\0\0\x20ftypisom\0\0\2\0isom"), CorruptVideo),
    "a web MP4 cut off inside its index": (cut(0.05, faststart), CorruptVideo),
    "a web MP4 whose index is noise": (noisy_header, X2LError),
}

BAD_REQUESTS: dict[str, tuple[dict[str, object], type[X2LError]]] = {
    "a span after the end": ({"start_s": 3.0}, SpanOutsideVideo),
    "a span far away": ({"start_s": 1e300, "count": 3}, SpanOutsideVideo),
    "infinitely late": ({"start_s": math.inf}, SpanOutsideVideo),
    "a span that runs backward": ({"start_s": 2.0, "end_s": 1.0}, InvalidInput),
    "no frames a second": ({"fps": 0.0}, InvalidInput),
    "not a number of frames a second": ({"fps": math.nan}, InvalidInput),
    "a million frames a second": ({"fps": 1e6}, InvalidInput),
    "no frames at all": ({"count": 0}, InvalidInput),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cfr(tmp_path_factory.mktemp("good") / "good.mp4")


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> object:
    def footprint() -> tuple[list[psutil.Process], list[str], int]:
        me = psutil.Process()
        return me.children(recursive=True), sorted(os.listdir("/dev/shm")), me.num_fds()

    before = footprint()
    yield
    assert footprint() == before


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", BAD_FILES)
def test_a_bad_file_gets_its_error(what: str, good: Path, tmp_path: Path) -> None:
    make, kind = BAD_FILES[what]
    path = make(tmp_path, good)
    with pytest.raises(kind, match=r"; |check|give") as caught, open_video(path, deadline_s=10.0) as stream:
        list(stream)
    assert type(caught.value) is kind or kind is X2LError
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("what", BAD_REQUESTS)
def test_a_bad_request_gets_its_error(what: str, good: Path) -> None:
    wrong, kind = BAD_REQUESTS[what]
    with pytest.raises(kind), open_video(good, Sampling(**wrong), deadline_s=10.0) as stream:  # type: ignore[arg-type]
        list(stream)


def test_an_absurd_number_of_samples_costs_nothing(good: Path) -> None:
    with open_video(good, Sampling(count=10**15)) as stream:
        assert len(stream) == 90
