"""What is known about a file before it is decoded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.videos import cfr, copied, faststart
from x2l_cluster.errors import EmptyVideo, VideoFileNotFound
from x2l_cluster.video.bitstream import ParameterSets
from x2l_cluster.video.files import check_file, damage


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.avi"])
def test_a_whole_file_shows_no_damage_and_a_cut_one_does(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "a.avi":
        cfr(path, 30, codec="mpeg4", crf=None)
    elif name == "a.mkv":
        copied(cfr(tmp_path / "b.mp4", 30), path)
    else:
        faststart(path, 30)
    assert damage(path) is None
    os.truncate(path, path.stat().st_size * 3 // 4)
    assert "of" in (damage(path) or "")


def test_a_recording_without_index_is_told_apart(tmp_path: Path) -> None:
    path = cfr(tmp_path / "a.mp4", 30)
    os.truncate(path, path.stat().st_size // 2)
    assert "moov" in (damage(path) or "")


def test_other_bytes_are_not_judged(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for content in (b"hello", b"\x1a\x45\xdf\xa3", b"\x1a\x45\xdf\xa3\x00\x00", b"\x00\x00\x00\x00ftyp"):
        path.write_bytes(content)
        damage(path)  # whatever it says, it says it


def test_only_regular_files_are_let_in(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "missing", Path("/dev/zero"), "a\0b"):
        with pytest.raises(VideoFileNotFound):
            check_file(path)
    (tmp_path / "empty").touch()
    with pytest.raises(EmptyVideo):
        check_file(tmp_path / "empty")


def test_a_parameter_set_that_was_not_announced_means_the_size_may_change() -> None:
    first, second = b"\x67\x42\x00\x1e", b"\x67\x64\x00\x0a"
    for announced, packets, constant in (
        (first, [first, first], True),
        (b"", [first, first], True),
        (first, [b"\x65\x01", second], False),
        (b"", [first, second], False),
    ):
        watch = ParameterSets("h264", announced)
        for unit in packets:
            watch.see(b"\0\0\0\1" + unit + b"\0\0\1\x65\xff")
        assert watch.constant is constant


def test_parameter_sets_are_found_in_length_prefixed_units_too() -> None:
    header = b"\x01\x64\x00\x1e\xff\xe1\x00\x04\x67\x42\x00\x1e"
    watch = ParameterSets("h264", header)
    watch.see(b"\0\0\0\4\x67\x42\x00\x1e" + b"\0\0\0\2\x65\xff")
    assert watch.constant
    watch.see(b"\0\0\0\2\x65\xff" + b"\0\0\0\4\x67\x64\x00\x0a")
    assert not watch.constant


def test_codecs_that_are_not_understood_are_not_vouched_for() -> None:
    assert not ParameterSets("vp9", b"").constant
