"""Opening containers from strangers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.videos import cfr
from x2l_cluster.errors import CorruptVideo
from x2l_cluster.video import container
from x2l_cluster.video.reader import Fit
from x2l_cluster.video.timeline import scan


def test_frames_of_absurd_size_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cfr(tmp_path / "a.mp4", 5)
    monkeypatch.setattr(container, "MAX_PIXELS", 128 * 96 - 1)
    with pytest.raises(CorruptVideo, match="frames of 128x96"):
        scan(path)
    monkeypatch.setattr(container, "MAX_PIXELS", 128 * 96)
    assert scan(path).info.frames == 5


def test_long_files_show_progress_while_they_are_scanned(tmp_path: Path) -> None:
    beats: list[int] = []
    scan(cfr(tmp_path / "a.mp4", 5), lambda: beats.append(1))
    assert beats


def test_frames_fit_their_box_and_batches_their_bytes(tmp_path: Path) -> None:
    info = scan(cfr(tmp_path / "a.mp4", 2)).info
    assert Fit().size(info) == (96, 128)
    assert Fit(max_side=64).size(info) == (48, 64)
    assert Fit(max_side=1).size(info) == (1, 1)
    assert Fit(max_side=4000).size(info) == (96, 128)
    assert Fit(batch_bytes=1).frames(info) == 1
    assert Fit(batch_bytes=1 << 40).frames(info) == 16
