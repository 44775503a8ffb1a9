"""``x2l append`` as a process: once, over a service, and while the recorder still writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.acceptance.conftest import X2L
from tests.acceptance.test_cli_up import Up, up
from tests.growing import cut, recording

__all__ = ["up"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recording(tmp_path_factory.mktemp("recording"), 24, seed=4)


@pytest.fixture(scope="module")
def part(whole: Path) -> Path:
    return cut(whole, 0.4)


def test_a_recording_is_gone_on_with_and_other_files_are_refused(x2l: X2L, whole: Path, part: Path, clip: Path) -> None:
    short = x2l.json("index", str(part), "--id", "cam")
    out, err = x2l("append", "cam", str(whole))
    assert out.startswith("cam  6 chunks, 00:24, fine ") and out.count("\n") == 1
    assert "(kept from before)" in err and err.splitlines()[-1] == f"{whole.name}: 6 of 6, up to 00:24"
    assert short["covered"]["end_s"] < 12
    listed = x2l.json("videos")
    assert [(video["video"], video["status"], video["covered"]["end_s"]) for video in listed] == [("cam", "ready", 24)]
    error = x2l.json("append", "cam", str(clip), code=3)["error"]
    assert error["code"] == "not_a_continuation" and "cam" in error["message"]
    assert x2l.json("append", "nobody", str(clip), code=4)["error"]["code"] == "unknown_video"
    assert x2l.json("append", "cam", "no-such-file.ts", code=4)["error"]["code"] == "video_file_not_found"
    assert x2l.json("videos") == listed


def test_a_file_is_followed_while_it_grows_and_no_longer(x2l: X2L, whole: Path, part: Path, tmp_path: Path) -> None:
    growing, data = tmp_path / "growing.ts", whole.read_bytes()
    growing.write_bytes(part.read_bytes())
    x2l("index", str(growing), "--id", "cam")
    words = ("append", "cam", str(growing), "--follow", "--every", "0", "--quiet", "4", "--json")
    following = x2l.start(*words)
    assert following.stderr is not None
    with growing.open("ab") as file:
        file.write(data[file.tell() : len(data) * 7 // 10])
        file.flush()
        until = next(line for line in following.stderr if "of 5" in line)
        assert until
        file.write(data[file.tell() :])
    out, err = following.communicate(timeout=120)
    assert following.returncode == 0, err
    facts = json.loads(out)
    assert (facts["status"], facts["chunks"], facts["covered"]["end_s"]) == ("ready", 6, 24)


def test_a_recording_is_gone_on_with_over_a_service(x2l: X2L, up: Up, whole: Path, part: Path) -> None:
    url = up().url
    x2l("index", str(part), "--id", "cam", "--url", url)
    out, err = x2l("append", "cam", str(whole), "--url", url)
    assert out.startswith("cam  6 chunks, 00:24, fine ")
    assert err.splitlines()[0].startswith(f"{whole.name}: sent ")
    assert len(x2l.json("jobs", "list", X2L_URL=url)) == 2
    error = x2l.json("append", "nobody", str(whole), "--url", url, code=4)["error"]
    assert error["code"] == "unknown_video"
