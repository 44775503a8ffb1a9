"""Calibration over the real path: rendered probes, a real architecture, the scorer it makes."""

from __future__ import annotations

from tests.tiny import qwen3_vl
from x2l_cluster.calibrate import calibrate
from x2l_cluster.select import Calibration, get_scorer


def test_a_calibration_comes_out_that_the_scorer_takes(tmp_path):
    lm = qwen3_vl(0)
    seen = []
    found = calibrate(
        lm,
        videos=2,
        lengths=(3, 5),
        questions=4,
        recipe=lm.recipe(height=32, width=32),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [chunks for chunks, _ in found.margins] == [3, 5]
    assert 1 <= len(found.heads) <= 6
    assert get_scorer("calibrated", lm.spec, found).kind == f"x-{found.digest}"
    found.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == found
