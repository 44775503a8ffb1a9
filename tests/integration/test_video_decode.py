"""Reading videos through the decoder process: the same frames however it is read, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.videos import cfr, copied, corrupt, everything, faststart, number_of, picture, pictures, vfr
from x2l_cluster.errors import DecoderCrashed, DecodeTimeout, InvalidInput, ResolutionChanged, VideoError
from x2l_cluster.types import Sampling
from x2l_cluster.video import chunked, encode_image, frame_at, frames_at, open_video, write_video
from x2l_cluster.video.decode import VideoStream

FAULTY = "tests.integration.faulty_readers"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("videos")
    cfr(place / "cfr.mp4", 150)
    vfr(place / "vfr.mp4")
    copied(cfr(place / "cfr.ts"), place / "cfr.mkv")
    faststart(place / "faststart.mp4")
    return place


def read(path: Path, sampling: Sampling | None = None, **more: object) -> tuple[list[int], list[float], VideoStream]:
    with open_video(path, sampling, **more) as stream:  # type: ignore[arg-type]
        batches = list(stream)
    numbers = [number_of(frame) for batch in batches for frame in batch.frames]
    return numbers, [float(time) for batch in batches for time in batch.times_s], stream


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


def wait_gone(pid: int) -> bool:
    """True when the process ends within some seconds (its own watch beats once a second)."""
    try:
        psutil.Process(pid).wait(timeout=15)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        return False
    return True


def test_frames_come_with_their_times(folder: Path) -> None:
    numbers, times, stream = read(folder / "cfr.mp4", Sampling(fps=5.0))
    assert numbers == list(range(0, 150, 6))
    np.testing.assert_allclose(times, np.arange(25) / 5, atol=1e-9)
    assert (stream.reader, stream.info.partial, len(stream)) == ("pyav", None, 25)
    assert (stream.info.width, stream.info.height, stream.info.frames) == (128, 96, 150)
    assert stream.info.duration_s == pytest.approx(5.0)


def test_variable_frame_rates_keep_their_own_times(folder: Path) -> None:
    path = folder / "vfr.mp4"
    truth, _ = everything(path)
    numbers, times, _ = read(path, Sampling(fps=200.0))
    assert numbers == list(range(90))
    np.testing.assert_allclose(times, truth, atol=1e-9)


@pytest.mark.parametrize("name", ["cfr.mp4", "vfr.mp4", "cfr.ts", "cfr.mkv"])
@pytest.mark.parametrize("chunk_frames", [8, 16])
def test_resuming_at_any_chunk_gives_the_same_chunks(name: str, chunk_frames: int, folder: Path) -> None:
    sampling = Sampling(fps=12.0)
    with open_video(folder / name, sampling) as stream:
        whole = list(chunked(stream, chunk_frames=chunk_frames))
    for index in {1, len(whole) // 2, len(whole) - 1}:
        with open_video(folder / name, sampling, start=index * chunk_frames) as stream:
            rest = list(chunked(stream, chunk_frames=chunk_frames))
        assert [chunk.index for chunk in rest] == list(range(index, len(whole)))
        for one, other in zip(whole[index:], rest, strict=True):
            np.testing.assert_array_equal(one.frames, other.frames)
            np.testing.assert_array_equal(one.times_s, other.times_s)
            assert (one.span, one.is_last) == (other.span, other.is_last)


def test_large_frames_can_be_scaled_while_decoding(tmp_path: Path) -> None:
    path = tmp_path / "uhd.mp4"
    write_video(path, pictures(4, 3840, 2160), options={"preset": "ultrafast"})
    with open_video(path, Sampling(fps=30.0), max_side=320) as stream:
        (batch,) = stream
    assert batch.frames.shape == (4, 180, 320, 3)
    assert [number_of(frame) for frame in batch.frames] == [0, 1, 2, 3]
    assert (stream.info.width, stream.info.height) == (3840, 2160)


def test_a_hanging_decoder_is_killed_at_the_deadline(folder: Path) -> None:
    stream = open_video(folder / "cfr.mp4", Sampling(fps=30.0), reader=f"{FAULTY}:Hangs")
    stream.deadline_s = 1.0
    batches = iter(stream)
    assert number_of(next(batches).frames[0]) == 0
    with pytest.raises(DecodeTimeout, match=r"no progress for 1 s .* re-encode"):
        list(batches)
    assert gone(stream.pid)
    with open_video(folder / "cfr.mp4", reader=f"{FAULTY}:HangsAtOnce") as stream:
        stream.deadline_s = 0.5
        with pytest.raises(DecodeTimeout):
            list(stream)


def test_a_slow_decoder_that_shows_progress_is_left_alone(folder: Path) -> None:
    numbers, _, _ = read(folder / "cfr.mp4", reader=f"{FAULTY}:Slow", deadline_s=3.0)
    assert numbers == [0, 30, 60, 90, 120]


def test_a_stopped_decoder_counts_as_hanging(folder: Path) -> None:
    with open_video(folder / "cfr.ts", Sampling(fps=30.0)) as stream:
        stream.deadline_s = 0.5
        os.kill(stream.pid, signal.SIGSTOP)
        with pytest.raises(DecodeTimeout):
            for _ in stream:
                pass
    assert gone(stream.pid)


@pytest.mark.parametrize(
    ("kind", "how"),
    [("Segfaults", "SIGSEGV"), ("Exits", "exit code 7: out of cheese"), ("Raises", "this cannot happen")],
)
def test_a_crash_of_the_decoder_is_an_error_that_says_how(kind: str, how: str, folder: Path) -> None:
    with pytest.raises(DecoderCrashed, match=how):  # here, or before its first words are read
        read(folder / "cfr.mp4", reader=f"{FAULTY}:{kind}")
    assert not [child for child in psutil.Process().children() if "x2l_cluster.video.child" in child.cmdline()]


def test_where_decord_dies_pyav_goes_on_at_the_next_sample(folder: Path) -> None:
    with open_video(folder / "cfr.mp4", moments_s=[number / 30 for number in range(150)]) as stream:
        assert stream.reader == "decord"
        os.kill(stream.pid, signal.SIGKILL)
        numbers = [number_of(frame) for batch in stream for frame in batch.frames]
    assert stream.reader == "pyav"
    assert numbers == list(range(150))


def test_a_reader_that_was_asked_for_by_name_is_not_replaced(folder: Path) -> None:
    with pytest.raises(VideoError, match="choose another reader"):
        read(corrupt(folder / "cfr.mp4", folder / "noise.mp4"), Sampling(fps=30.0), reader="decord")
    with pytest.raises(InvalidInput, match="unknown frame reader"):
        read(folder / "cfr.mp4", reader="vlc")


def test_closing_early_ends_the_decoder(folder: Path) -> None:
    with open_video(folder / "cfr.mp4", Sampling(fps=30.0)) as stream:
        next(iter(stream))
    assert gone(stream.pid)
    stream.close()
    assert list(stream) == []


def test_the_decoder_dies_with_its_parent(folder: Path) -> None:
    code = (
        "import os, signal, sys; from x2l_cluster.video import open_video; from x2l_cluster.types import Sampling\n"
        f"stream = open_video({str(folder / 'cfr.mp4')!r}, Sampling(fps=30.0), reader='{FAULTY}:Hangs')\n"
        "next(iter(stream)); print(stream.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert wait_gone(int(done.stdout))


def test_damage_in_the_middle_is_flagged_and_always_read_the_same(folder: Path) -> None:
    path = corrupt(folder / "cfr.mp4", folder / "noise.mp4")
    runs = []
    for _ in range(2):
        with open_video(path, Sampling(fps=30.0)) as stream:
            runs.append(np.concatenate([batch.frames for batch in stream]))
        assert "could not be decoded" in (stream.info.partial or "")
        assert stream.reader == "pyav"
    assert len(runs[0]) == 150
    np.testing.assert_array_equal(runs[0], runs[1])
    assert [number_of(frame) for frame in runs[0]][:30] == list(range(30))


def test_a_truncated_upload_is_read_up_to_its_end(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes((folder / "faststart.mp4").read_bytes())
    os.truncate(path, path.stat().st_size * 2 // 3)
    numbers, times, stream = read(path, Sampling(fps=30.0))
    assert numbers[:-3] == list(range(len(numbers) - 3))  # the last ones may be half a picture
    assert 20 < len(numbers) < 89
    assert "the file ends after" in (stream.info.partial or "")
    assert stream.info.duration_s == pytest.approx(times[-1], abs=0.2)


def test_a_joined_recording_whose_clock_starts_again_plays_through(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "joined.ts"
    path.write_bytes((folder / "cfr.ts").read_bytes() * 2)
    numbers, times, stream = read(path, Sampling(fps=30.0))
    assert numbers == [*range(90), *range(90)]
    assert (np.diff(times) > 0).all()
    assert stream.info.duration_s == pytest.approx(6.0, abs=0.1)


def test_a_change_of_size_is_scaled_and_flagged_a_change_of_shape_is_refused(tmp_path: Path) -> None:
    parts = {}
    for name, (width, height) in {"wide": (128, 96), "half": (64, 48), "tall": (48, 64)}.items():
        write_video(tmp_path / f"{name}.ts", pictures(30, width, height))
        parts[name] = (tmp_path / f"{name}.ts").read_bytes()
    (tmp_path / "same.ts").write_bytes(parts["wide"] + parts["half"])
    numbers, _, stream = read(tmp_path / "same.ts", Sampling(fps=30.0))
    assert numbers == [*range(30), *range(30)]
    assert "changes from 128x96 to 64x48" in (stream.info.partial or "")
    (tmp_path / "other.ts").write_bytes(parts["wide"] + parts["tall"])
    with pytest.raises(ResolutionChanged, match="re-encode"):
        read(tmp_path / "other.ts", Sampling(fps=30.0))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 5), (4096, 2), (2, 4096)])
def test_odd_sizes_are_delivered_as_they_are(width: int, height: int, tmp_path: Path) -> None:
    path = tmp_path / "odd.mkv"
    write_video(path, [picture(5, width, height)] * 3, codec="ffv1", pixel_format="bgr0", crf=None)
    with open_video(path, Sampling(fps=30.0)) as stream:
        (batch,) = stream
    np.testing.assert_array_equal(batch.frames[2], picture(5, width, height))


def test_evidence_is_the_frame_on_screen(folder: Path) -> None:
    frame, time_s = frame_at(folder / "cfr.mp4", 2.51)
    assert (number_of(frame), time_s) == (75, pytest.approx(2.5))
    shown = frames_at(folder / "vfr.mp4", [3.0, 0.0, 99.0], max_side=64)
    assert [number_of(frame) for frame, _ in shown] == [45, 0, 89]
    assert shown[0][0].shape == (48, 64, 3)
    assert encode_image(frame)[:2] == b"\xff\xd8"
    assert encode_image(frame, "png")[:4] == b"\x89PNG"
    with pytest.raises(InvalidInput, match="bmp"):
        encode_image(frame, "bmp")


def test_arguments_that_make_no_sense_are_refused(folder: Path) -> None:
    for wrong in (
        {"start": -1},
        {"deadline_s": 0.0},
        {"max_side": 0},
        {"moments_s": [-1.0]},
        {"deadline_s": float("nan")},
    ):
        with pytest.raises(InvalidInput):
            open_video(folder / "cfr.mp4", **wrong)  # type: ignore[arg-type]


def test_memory_stays_flat_whatever_the_length(tmp_path: Path) -> None:
    peaks = {}
    for seconds in (20, 600):
        path = tmp_path / f"{seconds}.mp4"
        write_video(path, pictures(seconds * 10), fps=10, options={"preset": "ultrafast", "g": "50"})
        parent, peak = psutil.Process(), 0
        with open_video(path, Sampling(fps=10.0)) as stream:
            child = psutil.Process(stream.pid)
            for batch in stream:
                if batch.index % 160 == 0:
                    peak = max(peak, pss(child) + pss(parent))
        peaks[seconds] = peak
    assert peaks[600] < 1.3 * peaks[20]


def pss(process: psutil.Process) -> int:
    return int(process.memory_full_info().pss)
