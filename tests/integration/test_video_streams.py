"""Transport streams entered in the middle: the frames of an uninterrupted read, what is before them not decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.videos import picture
from x2l_cluster.types import Sampling
from x2l_cluster.video import open_video, write_video
from x2l_cluster.video.container import decoded, open_container
from x2l_cluster.video.timeline import scan

FRAMES = 300
STREAMS = {
    "closed groups": ("libx264", {"x264-params": "keyint=30:bframes=3:scenecut=0"}),
    "open groups": ("libx264", {"x264-params": "open-gop=1:keyint=30:bframes=3:scenecut=0"}),
    "intra refresh": ("libx264", {"x264-params": "intra-refresh=1:keyint=30:bframes=0"}),
    "one keyframe": ("libx264", {"x264-params": "keyint=1000:scenecut=0:bframes=2"}),
    "H.265": ("libx265", {"x265-params": "keyint=30:bframes=3:open-gop=0:log-level=none", "preset": "ultrafast"}),
    "MPEG-2": ("mpeg2video", {"g": "15", "bf": "2"}),
}
FRESH = {"closed groups": 10, "open groups": 1, "intra refresh": 1, "one keyframe": 1, "H.265": 10, "MPEG-2": 0}
"""Frames at which decoding can begin afresh."""


@pytest.fixture(scope="module", params=STREAMS)
def stream(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    codec, options = STREAMS[request.param]
    path = tmp_path_factory.mktemp("stream") / "stream.ts"
    crf = None if codec == "mpeg2video" else 23
    frames = (picture(number) for number in range(FRAMES))
    write_video(path, frames, codec=codec, crf=crf, options=options)
    return request.param, path


def test_only_where_nothing_refers_back_is_it_entered(stream: tuple[str, Path]) -> None:
    name, path = stream
    line = scan(path)
    assert len(line.times_s) == FRAMES
    assert len(line.fresh) == FRESH[name]
    assert set(line.fresh) <= set(line.keyframes)


def test_entered_anywhere_it_has_the_frames_of_an_uninterrupted_read(stream: tuple[str, Path]) -> None:
    sampling = Sampling(fps=200.0)
    with open_video(stream[1], sampling) as whole:
        frames = np.concatenate([batch.frames for batch in whole])
    for start in (100, 211, 240, 299):
        with open_video(stream[1], sampling, start=start) as rest:
            np.testing.assert_array_equal(np.concatenate([batch.frames for batch in rest]), frames[start:])


def test_what_is_before_is_passed_over_and_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "stream.ts"
    write_video(path, (picture(number) for number in range(90)), options={"g": "30"})
    line = scan(path)
    assert line.pts is not None
    passed: list[None] = []
    with open_container(path) as (container, opened):
        since = int(line.pts[60])
        frames = decoded(container, opened, print, since_pts=since, passing=lambda: passed.append(None))
        assert [frame.pts for frame in frames] == line.pts[60:].tolist()
    assert len(passed) == 60
