"""The commands on a real file, as processes: what they print, where, and how they end."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.conftest import COMMAND, X2L
from tests.engines import files


def test_index_ask_explain_list_delete(x2l: X2L, clip: Path, tmp_path: Path) -> None:
    out, err = x2l("index", str(clip), "--id", "clip")
    assert out.startswith("clip  8 chunks, 00:30, fine ") and out.count("\n") == 1
    assert [line for line in err.splitlines() if "of 8" in line][-1] == "clip.mp4: 8 of 8, up to 00:30"

    out, err = x2l("index", str(clip), "--json")
    assert json.loads(out)["video"] == "clip" and err == "", "the same content is no new work"

    answers = x2l.json("ask", "clip", "What is shown at 0:12?", "Is it red?", "--detail", "k=2", "--max-tokens", "8")
    assert [answer["question"] for answer in answers] == ["What is shown at 0:12?", "Is it red?"]
    for answer in answers:
        assert answer["video"] == "clip" and not answer["degraded"]
        assert len(answer["plan"]["chunks"]) == 8
        assert sorted(e["chunk"] for e in answer["evidence"]) == answer["plan"]["fine"]
        assert {e["level"] for e in answer["evidence"]} == {"fine"}
        assert answer["usage"]["reload_bytes"] <= answer["plan"]["reload_bytes"] < answer["usage"]["full_bytes"]
    assert 3 in answers[0]["plan"]["fine"], "a named time pins its chunk"

    explained, err = x2l("explain", "clip", "Is it red?", "--detail", "k=2")
    assert err == ""
    strip, marks = next(
        pair for pair in zip(explained.splitlines(), explained.splitlines()[1:], strict=False) if "▲" in pair[1]
    )
    assert strip.startswith("00:00 ") and len(strip) == len("00:00 ") + 8
    assert marks.count("▲") == 2 and marks.count("·") == 6
    assert "scorer calibrated" in explained and "decode" in explained

    listed, err = x2l("videos")
    assert err == "" and len(listed.splitlines()) == 2
    assert listed.splitlines()[1].split()[:5] == ["clip", "ready", "8", "00:30", "clip.mp4"]

    deleted = x2l.json("delete", "clip")
    assert deleted["video"] == "clip" and deleted["freed_bytes"] > 0
    assert x2l.json("videos") == []
    assert files(tmp_path / "store") == []


def test_state_and_originals_are_where_the_environment_says(x2l: X2L, clip: Path, tmp_path: Path) -> None:
    store, state, sources = tmp_path / "store", tmp_path / "state", tmp_path / "originals"
    there = {"X2L_STATE": f"disk:{state}", "X2L_SOURCES": str(sources)}
    x2l("index", str(clip), "--id", "clip", **there)
    assert all(name.startswith("kv/") for name in files(store))
    assert any(name.startswith("state/local/clip/") for name in files(state)) and len(files(sources)) == 1
    assert x2l.json("videos") == [] and [video["video"] for video in x2l.json("videos", **there)] == ["clip"]
    words = ("ask", "clip", "Is it red?", "--max-tokens", "4")
    assert x2l.json(*words, code=4)["error"]["code"] == "unknown_video"
    assert x2l.json(*words, **there)["video"] == "clip"
    x2l("decay", "clip", **there)
    assert x2l("refresh", "clip", **there)[0].startswith("clip  8 chunks")
    x2l("capacity", "--hours", "1", **there)
    assert x2l.json("delete", "clip", **there)["freed_bytes"] > 0
    assert files(store) == files(sources) == []


def test_a_video_decays_and_is_refreshed(x2l: X2L, clip: Path, tmp_path: Path) -> None:
    x2l("index", str(clip), "--id", "clip")
    fine = x2l.json("ask", "clip", "Is it red?", "--detail", "k=2", "--max-tokens", "8")
    stored = len(files(tmp_path / "store"))
    decayed = x2l.json("decay", "clip")
    assert decayed["video"] == "clip" and decayed["freed_bytes"] > 0
    assert len(files(tmp_path / "store")) == stored - 8
    answer = x2l.json("ask", "clip", "Is it red?", "--detail", "k=2", "--max-tokens", "8")
    assert answer["evidence"] == [] and not answer["degraded"] and "not kept" in answer["plan"]["note"]
    out, _ = x2l("refresh", "clip")
    assert out.startswith("clip  8 chunks, 00:30, fine ")
    again = x2l.json("ask", "clip", "Is it red?", "--detail", "k=2", "--max-tokens", "8")
    assert again["text"] == fine["text"] and again["plan"] == fine["plan"]


def test_videos_are_indexed_anew_one_or_all_of_them(x2l: X2L, clip: Path, tmp_path: Path) -> None:
    before = x2l.json("index", str(clip), "--id", "clip")
    out, _ = x2l("reindex", "clip", "--recipe", '{"chunk_frames": 6}')
    assert out.startswith("clip  5 chunks, 00:30, fine ")
    (video,) = x2l.json("videos")
    assert video["recipe"] != before["recipe"] and len(files(tmp_path / "store" / "kv")) < 20
    (again,) = x2l.json("reindex", "--all")
    assert again == before
    (original,) = (tmp_path / "store" / "sources" / "local").iterdir()
    original.unlink()
    (failed,) = x2l.json("reindex", "--all", "--recipe", '{"chunk_frames": 6}', code=3)
    assert failed["error"]["code"] == "source_missing"
    assert x2l.json("reindex", "clip", "--recipe", '{"chunk_frames": 6}', code=4)["error"]["code"] == "source_missing"
    assert x2l.json("videos")[0]["recipe"] == before["recipe"]
    for words in ((), ("clip", "--all"), ("clip", "--recipe", "8")):
        assert x2l.json("reindex", *words, code=2)["error"]["code"] == "usage"


def test_an_index_travels_in_a_file(x2l: X2L, clip: Path, tmp_path: Path) -> None:
    indexed = x2l.json("index", str(clip), "--id", "clip")
    words = ("ask", "{}", "Is it red?", "--detail", "k=2", "--max-tokens", "8")
    before = x2l.json(*(word.format("clip") for word in words))
    out, err = x2l("export", "clip", str(tmp_path / "clip.x2l"))
    assert out.startswith(f"clip in {tmp_path / 'clip.x2l'}, ") and err.splitlines()[-1] == "clip: 8 of 8"
    elsewhere = {"X2L_STORE": f"disk:{tmp_path / 'elsewhere'}"}
    taken = x2l.json("import", str(tmp_path / "clip.x2l"), "--id", "copy", **elsewhere)
    assert taken == indexed | {"video": "copy", "new": True}
    assert not x2l.json("import", str(tmp_path / "clip.x2l"), **elsewhere)["new"]
    after = x2l.json(*(word.format("copy") for word in words), **elsewhere)
    assert (after["text"], after["plan"]) == (before["text"], before["plan"])
    (tmp_path / "clip.x2l").write_bytes((tmp_path / "clip.x2l").read_bytes()[:-1])
    error = x2l.json("import", str(tmp_path / "clip.x2l"), code=3)["error"]
    assert error["code"] == "bad_archive" and "cut off" in error["message"]
    assert x2l.json("export", "nobody", str(tmp_path / "none.x2l"), code=4)["error"]["code"] == "unknown_video"


def test_faults_come_by_url_and_are_told(x2l: X2L, clip: Path, tmp_path: Path) -> None:
    x2l("index", str(clip), "--id", "clip")
    broken = f"faulty:flip=1,kinds=l@disk:{tmp_path / 'store'}"
    answer = x2l.json("ask", "clip", "Is it red?", "--detail", "k=2", "--max-tokens", "8", "--store", broken)
    assert answer["degraded"] and {e["degraded"] for e in answer["evidence"]} == {"corrupt"}
    assert not x2l.json("ask", "clip", "Is it red?", "--detail", "k=2", "--max-tokens", "8")["degraded"]


def test_a_file_that_is_no_video(x2l: X2L, tmp_path: Path) -> None:
    out, err = x2l("index", "pyproject.toml", "--json", code=3)
    assert json.loads(out)["error"]["code"] == "not_a_video"
    assert json.loads(out)["error"]["message"] in err
    assert files(tmp_path / "store") == []


def test_without_json_a_failure_leaves_stdout_empty(x2l: X2L) -> None:
    out, err = x2l("index", "there-is-no-such.mp4", code=4)
    assert out == "" and err.startswith("video_file_not_found: there is no file there-is-no-such.mp4")


def test_a_missing_model_says_what_is_missing(x2l: X2L, clip: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    error = x2l.json("index", str(clip), "--model", str(tmp_path / "half"), code=4)["error"]
    assert "holds no weights" in error["message"] and str(tmp_path / "half") in error["message"]
    error = x2l.json("index", str(clip), "--model", "some-owner/some-model", code=4)["error"]
    assert "some-owner/some-model" in error["message"] and "download" in error["message"]


def test_doctor_passes(x2l: X2L) -> None:
    findings = {finding["what"]: finding for finding in x2l.json("doctor")}
    assert all(finding["ok"] for finding in findings.values()), findings
    assert {"torch", "decoder", "store", "model", "calibration"} <= set(findings)


def test_a_reader_that_leaves_early_leaves_no_traceback(x2l: X2L) -> None:
    process = x2l.start("version")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 1


@pytest.mark.parametrize(
    "words", [["--help"], ["ask", "--help"], ["version"], ["videos"], ["index", "there-is-no-such.mp4"]]
)
def test_what_needs_no_model_does_not_wait_for_torch(x2l: X2L, words: list[str]) -> None:
    code = f"import sys; from x2l_cluster.cli.run import run; run({words!r}); sys.exit('torch' in sys.modules)"
    subprocess.run([COMMAND[0], "-c", code], env=x2l.env, check=True, capture_output=True)


def test_capacity_grows_with_the_hours(x2l: X2L) -> None:
    ten = x2l.json("capacity", "--hours", "10", "--frame", "64", "64", "--chunk-s", "1")
    twenty = x2l.json("capacity", "--hours", "20", "--fine-hours", "10", "--frame", "64", "64", "--chunk-s", "1")
    assert twenty["disk_bytes"] == 2 * ten["disk_bytes"] > 0
    assert twenty["kv_bytes"] == ten["kv_bytes"] > 0
    assert ten["index_gpus"] == 1
