"""The serve benchmark on a small scale: in this process, over HTTP, and that it notices answers that differ."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.engines import SMALL, engine, mosaic
from tests.http import serving
from tests.services import local_service
from x2l_cluster.bench import batching
from x2l_cluster.bench.batching import measure_batching
from x2l_cluster.bench.serve import Load, run_serve
from x2l_cluster.errors import InvalidInput, X2LError

SMALL_LOAD = Load(videos=2, chunks=2, questions=4, people=2, rounds=1, max_tokens=8)


def test_a_service_of_its_own_is_measured_from_all_sides() -> None:
    threads = torch.get_num_threads()
    report = run_serve(SMALL_LOAD)
    assert torch.get_num_threads() == threads
    assert json.loads(json.dumps(report)) == report and report["suite"] == "serve"
    for row in report["load"].values():
        assert (row["questions"], row["answered"], row["degraded_share"]) == (4, 4, 0.0)
        assert row["questions_per_s"] > 0 and row["ttft_s"]["p99"] >= row["ttft_s"]["p50"] > 0
        assert row["decode_batch"] >= 1 and sum(row["fine_bytes_by_tier"].values()) > 0
    ratios = report["ratios"]
    assert set(ratios) == {
        "batch16_vs_serial",
        "batch16_vs_serial_whole_questions",
        "batch16_vs_serial_whole_questions_cpu",
    }
    assert ratios["batch16_vs_serial"] > 1.5  # a machine with other things to do still shows that it is a batch
    (row,) = report["batching"]["rounds"]
    assert row["batch_tokens_per_s"] > row["serial_tokens_per_s"] > 0


def test_a_service_at_a_url_is_asked_about_the_videos_it_has(tmp_path: Path) -> None:
    with local_service() as service, serving(service=service) as server:
        with pytest.raises(InvalidInput, match="index some first"):
            run_serve(SMALL_LOAD, url=server.url)
        service.engine.index(mosaic(tmp_path / "film.mp4", 12), video="clip", **SMALL)
        report = run_serve(replace(SMALL_LOAD, rate=50.0), url=server.url)
    assert report["ratios"] == {} and report["setup"]["url"] == server.url
    assert report["load"]["open"]["rate_per_s"] == 50.0
    for row in report["load"].values():
        assert row["answered"] == 4 and row["decode_batch"] >= 1


def test_an_answer_that_is_another_one_in_a_batch_voids_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine() as x2l:
        x2l.index(mosaic(tmp_path / "film.mp4", 8), video="clip", **SMALL)
        asked = [("clip", f"What is number {n}?") for n in range(4)]
        good = measure_batching(x2l, asked, rounds=1, together=4, tokens=6)
        assert set(good["ratios"]) >= {"batch4_vs_serial"}
        check = batching._check

        def swapped(alone, batch, tokens):
            check(alone, replace(batch, answers=[replace(batch.answers[0], text="?"), *batch.answers[1:]]), tokens)

        monkeypatch.setattr(batching, "_check", swapped)
        with pytest.raises(X2LError, match="void"):
            measure_batching(x2l, asked, rounds=1, together=4, tokens=6)
