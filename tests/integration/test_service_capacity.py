"""The figures of `x2l capacity` are those of the estimate that the service gives for a whole video."""

from __future__ import annotations

import pytest

from tests.engines import engine
from x2l_cluster.service.capacity import capacity
from x2l_cluster.service.engine_worker import EngineWorker
from x2l_cluster.service.requests import EstimateRequest


@pytest.mark.parametrize("hours", [0.5, 3, 24])
def test_so_many_hours_take_what_a_video_of_so_many_hours_takes(hours):
    with engine() as opened:
        worker = EngineWorker(opened)
        one, whole = (
            worker.estimate(EstimateRequest(duration_s=3600 * length, width=64, height=64), chunk_s=2.0)
            for length in (1, hours)
        )
    found = capacity(one, hours=hours, fine_hours=hours, hot_hours=0, daily_hours=hours, fine_chunks=3)
    assert found.kv_bytes == pytest.approx(whole.fine_bytes, rel=0.001)
    assert found.disk_bytes == pytest.approx(whole.coarse_bytes + whole.score_bytes, rel=0.001)
    assert found.question_bytes == pytest.approx(3 * whole.fine_bytes / whole.chunks, rel=0.01), "the last is short"
    assert whole.index_s is not None and found.index_gpus == -(-whole.index_s // 86_400)
