"""What commands print, at any width and with anything in it; and how failures are told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from x2l_cluster.cli import run, show, show_demo
from x2l_cluster.cli.demo import Demo, Told
from x2l_cluster.cli.options import Scorer
from x2l_cluster.errors import X2LError
from x2l_cluster.select.scorers import SCORERS
from x2l_cluster.state.base import VideoRecord
from x2l_cluster.types import (
    Answer,
    Detail,
    Evidence,
    IndexStatus,
    Level,
    PlannedChunk,
    Recipe,
    ReloadPlan,
    SourceRef,
    Span,
    Tier,
    Usage,
    VideoInfo,
)

SPAN = Span(start_s=32, end_s=48)
EVIDENCE = Evidence(chunk=2, span=SPAN, level=Level.L, score=1.5, tier=Tier.REMOTE, size_bytes=61_000)
ANSWER = Answer(
    text="KDRX",
    video="clip",
    plan=ReloadPlan(
        chunks=(PlannedChunk(chunk=2, span=SPAN, level=Level.L, score=1.5, reason="score", size_bytes=61_000),),
        scorer="calibrated",
        detail=Detail(),
    ),
    evidence=(EVIDENCE,),
    usage=Usage(
        prompt_tokens=20, answer_tokens=4, kv_entries=150, full_entries=1000, reload_bytes=61_000, full_bytes=2_440_000
    ),
    timings={"score_s": 0.01, "decode_s": 0.2},
    covered=SPAN,
)
RECORD = VideoRecord(
    tenant="local",
    video="clip-" + "x" * 60,
    recipe=Recipe(family="qwen3_vl", weights="w"),
    epoch=1,
    revision=0,
    status=IndexStatus.READY,
    info=VideoInfo(duration_s=192.0, width=64, height=64, fps=4.0),
    source=SourceRef(id="c", name="[red]a long name.mp4\x1b[2J", size_bytes=1),
    made_s=1.0,
    chunks=12,
    covered=Span(start_s=0, end_s=192),
    stored_bytes=1,
    fine_bytes=0,
)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Console:
    """Standard output as a terminal of 40 columns has it."""
    console = Console(markup=False, highlight=False, emoji=False, width=40, record=True)
    monkeypatch.setattr(show, "out", console)
    return console


def test_an_answer_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    show.answers(["What code?"], [ANSWER], as_json=False)
    first, evidence, cost = capsys.readouterr().out.splitlines()
    assert first == "KDRX"
    assert evidence == "  00:32–00:48  score +1.50  fine from remote, 61.0 kB"
    assert "61.0 kB loaded, a full cache is 2.4 MB (2.5%); 150 of 1000 KV entries (15%); 0.21 s" in cost


def test_missing_detail_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    late = replace(ANSWER, evidence=(replace(EVIDENCE, level=Level.H, degraded="missing"),))
    show.answers(["What code?"], [late], as_json=False)
    assert "answered from its coarse gist: fine detail is missing" in capsys.readouterr().out
    show.answers(["What code?"], [late], as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["degraded"] is True
    assert (told["evidence"][0]["level"], told["evidence"][0]["degraded"]) == ("coarse", "missing")


def test_a_table_in_a_pipe_is_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    show.videos([RECORD], as_json=False)
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["video", "status", "chunks", "covered", "file", "recipe"]
    assert RECORD.video in row and RECORD.recipe.digest in row
    assert "[red]a long name.mp4" in row, "names are shown, not interpreted"
    assert "\x1b" not in row


def test_a_table_on_a_narrow_terminal_folds_and_loses_nothing(narrow: Console) -> None:
    show.videos([RECORD], as_json=False)
    text = narrow.export_text()
    assert all(len(line) <= 40 for line in text.splitlines())
    assert text.count("x") >= 60 and "…" not in text


def test_an_explanation_on_a_narrow_terminal(narrow: Console) -> None:
    show.explained("What code?", ANSWER, as_json=False)
    assert "▲" in narrow.export_text()


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    show.emit({"a": float("nan"), "b": [float("inf"), 1.5], "c": (1, None)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": [1, None]}


def test_the_scorers_offered_are_the_scorers_there_are() -> None:
    assert {*Scorer} | {"oracle"} == set(SCORERS)


def _kinds(kind: type[X2LError] = X2LError) -> list[type[X2LError]]:
    return [kind, *(other for child in kind.__subclasses__() for other in _kinds(child))]


def test_every_error_has_a_documented_exit_code() -> None:
    by_code = {kind.code: run.exit_code(kind("")) for kind in _kinds() if kind.__module__ == "x2l_cluster.errors"}
    assert set(by_code.values()) == {1, 3, 4, 5, 130}
    assert {code: by_code[code] for code in ("internal", "invalid_question", "not_a_video", "unknown_video")} == {
        "internal": 1,
        "invalid_question": 3,
        "not_a_video": 3,
        "unknown_video": 4,
    }
    assert {by_code[code] for code in ("model_not_available", "video_file_not_found", "source_missing")} == {4}
    assert {by_code[code] for code in ("kv_missing", "store_unavailable", "store_full", "stale_epoch")} == {5}
    assert by_code["cancelled"] == 130


def _played(right: int, wrong: int) -> Demo:
    played = Demo(Path("films"), None, show.err)
    for number in range(right + wrong):
        played.told.append(
            Told(
                video="footage",
                kind="retrieval",
                question="What code?",
                expected="KDRX",
                right=number < right,
                answer=ANSWER,
            )
        )
    return played


def test_a_line_of_the_demo_tells_what_moved_and_what_was_there(capsys: pytest.CaptureFixture[str]) -> None:
    (item,) = _played(1, 0).told
    show_demo.told(item, as_json=False)
    told = capsys.readouterr().out
    assert "✓ What code?" in told and "footage 00:32–00:48" in told
    assert "61.0 kB loaded; a full cache is 2.4 MB" in told
    hot = replace(ANSWER, evidence=(replace(EVIDENCE, tier=Tier.DEVICE),))
    show_demo.told(replace(item, answer=hot, right=False), as_json=False)
    assert "✗ What code?" in (told := capsys.readouterr().out) and "61.0 kB were still there" in told


@pytest.mark.parametrize(("right", "wrong", "good"), [(8, 2, True), (7, 3, False), (0, 0, False), (14, 0, True)])
def test_a_demo_that_gets_too_little_right_has_failed(right: int, wrong: int, good: bool) -> None:
    assert _played(right, wrong).good is good


def test_a_failed_demo_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    show_demo.ended(_played(1, 2), as_json=False)
    out, err = capsys.readouterr()
    assert "1 of 3 right" in out and "x2l up --data films/up" in out
    assert "the demo failed: 1 of 3 answers are right" in err
    show_demo.ended(_played(1, 2), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["right"], told["asked"], len(told["questions"])) == (1, 3, 3)


def test_a_note_on_the_ranking_is_told_once_and_not_among_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    noted = replace(ANSWER, plan=replace(ANSWER.plan, note="scored over coarse keys: run `x2l calibrate`"))
    show.answers(["a?", "b?"], [noted, noted], as_json=True)
    out, err = capsys.readouterr()
    assert err.count("x2l calibrate") == 1
    assert [told["plan"]["note"] for told in json.loads(out)] == [noted.plan.note] * 2
