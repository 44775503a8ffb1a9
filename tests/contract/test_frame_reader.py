"""What every frame reader promises, over both libraries and the same real files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from tests.videos import Frame, cfr, copied, everything, number_of, pictures, vfr
from x2l_cluster.types import Sampling
from x2l_cluster.video import write_video
from x2l_cluster.video.reader import Fit, reader_factory, route
from x2l_cluster.video.sampling import pick, slack_s
from x2l_cluster.video.timeline import Timeline, scan

FILES = [
    "cfr.mp4", "vfr.mp4", "late.mp4", "open_gop.mp4", "hevc.mp4", "cfr.mkv", "vfr.mkv", "cfr.mov", "vp9.webm",
    "cfr.ts", "cfr.avi", "raw.h264",
]  # fmt: skip
PYAV_ONLY = {"open_gop.mp4", "hevc.mp4", "cfr.ts", "cfr.avi", "raw.h264"}
"""Never given to decord: after a seek in open groups of pictures it is some frames off, transport streams hang it, and
the others have no clock it could read."""

SAMPLINGS = {
    "one a second": Sampling(fps=1.0),
    "integer ratio": Sampling(fps=10.0),
    "odd ratio": Sampling(fps=7.3),
    "faster than the video": Sampling(fps=200.0),
    "count": Sampling(count=7),
    "count above the frames": Sampling(count=500),
    "span": Sampling(fps=5.0, start_s=0.71, end_s=2.2),
    "count in a span": Sampling(count=4, start_s=1.0, end_s=2.0),
}


@dataclass(frozen=True)
class Sample:
    path: Path
    timeline: Timeline
    times_s: list[float]
    frames: list[Frame]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sample]:
    folder = tmp_path_factory.mktemp("videos")
    main = cfr(folder / "cfr.mp4")
    copied(main, folder / "late.mp4", shift=4000)
    copied(main, folder / "cfr.mkv")
    copied(main, folder / "cfr.mov")
    copied(vfr(folder / "vfr.mp4"), folder / "vfr.mkv")
    cfr(folder / "cfr.ts")
    cfr(folder / "cfr.avi", codec="mpeg4", crf=None)
    cfr(folder / "raw.h264")
    x264 = {"x264-params": "open-gop=1:keyint=30:bframes=3:scenecut=0"}
    write_video(folder / "open_gop.mp4", pictures(90), options=x264)
    x265 = {"x265-params": "keyint=30:bframes=3:log-level=none", "preset": "ultrafast"}
    write_video(folder / "hevc.mp4", pictures(90), codec="libx265", options=x265)
    speed = {"deadline": "realtime", "cpu-used": "8", "g": "30"}
    write_video(folder / "vp9.webm", pictures(90), codec="libvpx-vp9", crf=None, options=speed | {"b": "400k"})
    return {name: Sample(folder / name, scan(folder / name), *everything_of(folder / name)) for name in FILES}


def everything_of(path: Path) -> tuple[list[float], list[Frame]]:
    if path.suffix == ".h264":  # no clock of its own: frame by frame at its declared rate
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            rate = float(container.streams.video[0].average_rate)
        return [number / rate for number in range(len(frames))], frames
    return everything(path)


def read(reader: str, sample: Sample, frames: npt.NDArray[np.int64]) -> Frame:
    opened = reader_factory(reader)(sample.path, sample.timeline, Fit())
    got = np.concatenate(list(opened.read(frames)))
    assert opened.damage is None
    opened.close()
    return got


def cases() -> Iterator[tuple[str, str]]:
    for name in FILES:
        for reader in ("decord", "pyav"):
            if reader == "pyav" or name not in PYAV_ONLY:
                yield reader, name


def expected(times_s: list[float], sampling: Sampling, duration_s: float, slack: float) -> list[int]:
    """The rule, spelt out: for each target, the last frame that is not late; none twice."""
    end = min(sampling.end_s or duration_s, duration_s)
    step = (end - sampling.start_s) / sampling.count if sampling.count else 1 / sampling.fps
    chosen: list[int] = []
    k = 0
    while (target := sampling.start_s + k * step) < end - 1e-9:
        frame = max(number for number, time in enumerate(times_s) if time <= target + slack)
        if not chosen or chosen[-1] != frame:
            chosen.append(frame)
        k += 1
    return chosen


@pytest.mark.parametrize(("reader", "name"), list(cases()))
def test_frames_and_times_are_those_of_a_plain_decode(reader: str, name: str, samples: dict[str, Sample]) -> None:
    sample = samples[name]
    line = sample.timeline
    assert line.info.frames == len(sample.times_s) == 90
    np.testing.assert_allclose(line.times_s, sample.times_s, atol=1e-9)
    for what, sampling in SAMPLINGS.items():
        picks = pick(line.times_s, sampling, duration_s=line.info.duration_s, slack=line.slack_s)
        wanted = expected(sample.times_s, sampling, line.info.duration_s, line.slack_s)
        assert picks.frames.tolist() == wanted, what
        got = read(reader, sample, picks.frames)
        difference = np.abs(got.astype(np.int16) - np.stack([sample.frames[i] for i in wanted]))
        assert difference.mean() < 0.5, what
        assert [number_of(frame) for frame in got] == wanted, what


@pytest.mark.parametrize("reader", ["decord", "pyav"])
@pytest.mark.parametrize("rate", [30.0, 10.0, 6.0, 5.0, 3.0, 2.0, 1.0])
@pytest.mark.parametrize("name", ["cfr.mp4", "cfr.mkv", "vp9.webm"])
def test_integer_ratios_are_exact(reader: str, rate: float, name: str, samples: dict[str, Sample]) -> None:
    sample = samples[name]
    line = sample.timeline
    picks = pick(line.times_s, Sampling(fps=rate), duration_s=line.info.duration_s, slack=line.slack_s)
    opened = reader_factory(reader)(sample.path, line, Fit())
    numbers = [number_of(frame) for batch in opened.read(picks.frames) for frame in batch]
    opened.close()
    assert numbers == list(range(0, 90, round(30 / rate)))


@pytest.mark.parametrize(("reader", "name"), list(cases()))
def test_starting_late_reads_the_same(reader: str, name: str, samples: dict[str, Sample]) -> None:
    sample = samples[name]
    frames = np.arange(90)
    whole = read(reader, sample, frames)
    for start in (1, 28, 29, 30, 31, 75, 89):
        rest = read(reader, sample, frames[start:])
        np.testing.assert_array_equal(rest, whole[start:])


@pytest.mark.parametrize("reader", ["decord", "pyav"])
def test_sparse_reading_over_a_long_file_seeks_to_the_right_frames(reader: str, tmp_path: Path) -> None:
    path = cfr(tmp_path / "long.mp4", count=900)
    line = scan(path)
    wanted = np.array([3, 299, 300, 301, 640, 899])
    opened = reader_factory(reader)(path, line, Fit())
    assert [number_of(frame) for batch in opened.read(wanted) for frame in batch] == wanted.tolist()
    opened.close()


@pytest.mark.parametrize("reader", ["decord", "pyav"])
def test_frames_are_scaled_to_the_longest_side_and_batches_stay_small(reader: str, samples: dict[str, Sample]) -> None:
    sample = samples["cfr.mp4"]
    opened = reader_factory(reader)(sample.path, sample.timeline, Fit(max_side=64, batch_bytes=5 * 64 * 48 * 3))
    batches = list(opened.read(np.arange(12)))
    opened.close()
    assert [batch.shape for batch in batches] == [(5, 48, 64, 3), (5, 48, 64, 3), (2, 48, 64, 3)]
    assert [number_of(frame) for batch in batches for frame in batch] == list(range(12))


@pytest.mark.parametrize("turn", [90, -90, 180])
def test_pictures_are_delivered_upright(turn: int, tmp_path: Path) -> None:
    path = tmp_path / "phone.mp4"
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:32, :48] = 230  # upper left
    write_video(path, [frame] * 3, rotation=turn)
    line = scan(path)
    upright = np.rot90(frame, turn // 90)
    assert (line.info.height, line.info.width) == upright.shape[:2]
    opened = reader_factory("pyav")(path, line, Fit())
    (batch,) = opened.read(np.array([0, 2]))
    opened.close()
    assert np.abs(batch[1].astype(int) - upright).mean() < 6


def test_the_clock_of_a_slow_container_does_not_cost_a_frame() -> None:
    milliseconds = np.round(np.arange(90) / 30, 3)
    picks = pick(milliseconds, Sampling(fps=3.0), duration_s=3.0, slack=slack_s(milliseconds, 0.001))
    assert picks.frames.tolist() == list(range(0, 90, 10))


def test_each_file_goes_to_the_library_that_reads_it_right(samples: dict[str, Sample]) -> None:
    assert {route(sample.timeline, moments=False) for sample in samples.values()} == {"pyav"}
    routed = {name: route(sample.timeline, moments=True) for name, sample in samples.items()}
    by_decord = {"cfr.mp4", "vfr.mp4", "late.mp4", "cfr.mkv", "vfr.mkv", "cfr.mov"}
    assert {name for name, reader in routed.items() if reader == "decord"} == by_decord
