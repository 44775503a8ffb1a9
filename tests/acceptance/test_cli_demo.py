"""``x2l demo`` with the bundled model: what the project promises, end to end."""

from __future__ import annotations

import os
from pathlib import Path

from tests.acceptance.conftest import X2L
from x2l_cluster.cli.ground import standing
from x2l_cluster.kv.files import held
from x2l_cluster.needles import KINDS


def test_the_demo_answers_every_kind_of_question_right_and_loads_little(x2l: X2L, tmp_path: Path) -> None:
    told = x2l.json("demo", "--folder", str(tmp_path / "demo"), X2L_MODEL="reference")
    assert told["right"] >= 0.8 * told["asked"] and told["asked"] >= 6
    assert {question["kind"] for question in told["questions"]} == set(KINDS)
    assert {question["video"] for question in told["questions"]} == {"textures", "footage"}
    for question in told["questions"]:
        assert not question["degraded"]
        assert question["evidence"] and question["covered"]["end_s"] >= 60
        assert {evidence["tier"] for evidence in question["evidence"]} <= {"remote", "device"}
        assert question["usage"]["moved_share"] < 0.2 and question["usage"]["kv_share"] < 0.5
    assert any(evidence["tier"] == "remote" for question in told["questions"] for evidence in question["evidence"])
    assert (tmp_path / "demo" / "textures.mp4").exists() and (tmp_path / "demo" / "footage.mp4").exists()
    assert not list((tmp_path / "demo").glob("*.part"))
    assert len(told["found"]["moments"]) == 3
    assert "stopping" in (tmp_path / "demo" / "up" / "service.log").read_text()
    with held(tmp_path / "demo" / "up" / "lock") as lock:
        assert lock.mine, "its service has ended with it"


def test_a_demo_whose_service_cannot_start_says_why(x2l: X2L, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    with standing(tmp_path / "demo" / "up", fine_bytes=16 << 20, host_bytes=0):
        error = x2l.json("demo", "--folder", str(tmp_path / "demo"), X2L_MODEL="reference", code=3)["error"]
    assert str(os.getpid()) in error["message"] and "serves" in error["message"]
