"""Every way to fail has an exit code, a line on stderr and, with ``--json``, one object on stdout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import pytest

from x2l_cluster.cli import app, opened
from x2l_cluster.cli.run import run


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X2L_STORE", f"disk:{tmp_path}")
    monkeypatch.setenv("X2L_MODEL", "no-such-model")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").touch()


@pytest.mark.parametrize(
    ("words", "code", "told", "says"),
    [
        (["videso"], 2, "usage", "No such command 'videso'"),
        (["ask", "clip"], 2, "usage", "QUESTION"),
        (["ask", "clip", "What?", "--detail", "much"], 2, "usage", "detail is auto"),
        (["ask", "clip", "What?", "--detail", "k=few"], 2, "usage", "'few' is not a whole number"),
        (["ask", "clip", "What?", "--scorer", "guess"], 2, "usage", "guess"),
        (["ask", "clip", "What?", "--max-tokens", "0"], 2, "usage", "--max-tokens"),
        (["index", "missing.mp4"], 4, "video_file_not_found", "there is no file missing.mp4"),
        (["index", "a.mp4", "--fps", "0"], 3, "invalid_input", "fps must be above 0"),
        (["index", "a.mp4"], 4, "model_not_available", "no-such-model"),
        (["ask", "never-indexed", "What?"], 4, "unknown_video", "never-indexed"),
        (["explain", "never-indexed", "What?"], 4, "unknown_video", "never-indexed"),
        (["delete", "never-indexed"], 4, "unknown_video", "never-indexed"),
        (["videos", "--store", "somewhere"], 3, "invalid_input", "somewhere"),
        (["videos", "--store", "redis://127.0.0.1:1"], 5, "store_unavailable", "redis://127.0.0.1:1"),
    ],
)
def test_failures(words: list[str], code: int, told: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert run([*words, "--json"]) == code
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert error["code"] == told and error["retryable"] is (code == 5)
    assert says in error["message"] and error["message"] in err


def test_a_setting_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("X2L_CACHE_BYTES", "lots")
    assert run(["index", "a.mp4", "--json"]) == 2
    assert "X2L_CACHE_BYTES" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_ctrl_c_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(store: str | None) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(opened, "state", interrupt)
    assert run(["videos", "--json"]) == 130
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["code"] == "cancelled"
    assert err == "cancelled: interrupted\n"


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(store: str | None) -> NoReturn:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(opened, "state", fail)
    with pytest.raises(ZeroDivisionError):
        run(["videos", "--json"])
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "internal"


def test_doctor_fails_for_what_is_needed_and_only_mentions_what_is_good_to_have(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["doctor"]) == 1
    told = capsys.readouterr().out
    assert "✗ model: there is no folder no-such-model" in told
    assert "– calibration:" in told
    assert "✓ decoder: 4 frames of H.264" in told


def test_help_lists_every_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    told = capsys.readouterr().out
    for name in ("index", "ask", "videos", "explain", "delete", "calibrate", "bench", "doctor", "demo", "version"):
        assert f" {name} " in told
    for code in ("0 done", "2 wrong usage", "3 the input", "4 there is no such", "5 try again", "130 interrupted"):
        assert code in told
    assert app.EXIT_CODES.count("**") == 14
