"""Questions over tiers: where their blocks come from, and what is brought near before it is asked for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines import SMALL, engine, mosaic
from tests.tiers import soon
from x2l_cluster.engine import AnswerLoop, Asked, Generation, Limits, VideoEngine
from x2l_cluster.engine.hints import Hints
from x2l_cluster.kv.embedded import EmbeddedValkey
from x2l_cluster.kv.memory import MemoryKV
from x2l_cluster.kv.tiered import TieredKV
from x2l_cluster.types import BlockKey, Kind, Manifest, Tier

QUESTION = "What is shown?"
WRITE = Generation(max_tokens=2)


@pytest.fixture
def x2l(tmp_path: Path) -> Iterator[VideoEngine]:
    with engine(f"tiers:memory:|disk:{tmp_path / 'store'}", cache_bytes=0) as made:
        yield made


@pytest.fixture
def manifest(x2l: VideoEngine, tmp_path: Path) -> Manifest:
    return x2l.index(mosaic(tmp_path / "film.mp4", seconds=24), **SMALL)


def kv_of(x2l: VideoEngine) -> TieredKV:
    assert isinstance(x2l.stores.kv, TieredKV)
    return x2l.stores.kv


def near(x2l: VideoEngine, manifest: Manifest, kind: str) -> set[int]:
    """Chunks with a blob of this kind in host memory, or in a segment that is."""
    kv_of(x2l).flush()
    there = set(kv_of(x2l)._rungs[0].store.keys(manifest.tenant, manifest.video))
    return {
        row.index
        for row in manifest.chunks
        for ref in row.blocks.values()
        if ref.kind[0] == kind and there.issuperset(manifest.keys(ref, row.index))
    }


def ask(x2l: VideoEngine, manifest: Manifest, *chunks: int) -> dict[int, Tier]:
    """Where the blocks of these chunks came from."""
    options: dict[str, Any] = {"scorer": "oracle", "chunks": chunks, "detail": f"k={len(chunks)}"}
    answer = x2l.ask(manifest, QUESTION, generation=WRITE, **options)
    return {evidence.chunk: evidence.tier for evidence in answer.evidence}


def test_evidence_names_the_tier_a_block_came_from(x2l: VideoEngine, manifest: Manifest) -> None:
    assert ask(x2l, manifest, 0) == {0: Tier.DISK}
    assert ask(x2l, manifest, 0) == {0: Tier.HOST}
    assert 0 in near(x2l, manifest, "l")


def test_what_lies_beside_a_planned_chunk_is_near_for_the_next_question(x2l: VideoEngine, manifest: Manifest) -> None:
    ask(x2l, manifest, 5)
    assert near(x2l, manifest, "l") >= {4, 5}
    assert ask(x2l, manifest, 4) == {4: Tier.HOST}


def test_all_that_is_coarse_of_a_video_is_near_before_a_question_that_waits_is_looked_at(
    x2l: VideoEngine, manifest: Manifest
) -> None:
    kv_of(x2l).flush()
    kv_of(x2l)._rungs[0].store.delete_video(manifest.tenant, manifest.video)
    every = {row.index for row in manifest.chunks}
    with AnswerLoop(x2l.answerer, Limits(planners=0)) as loop:
        loop.submit(Asked(manifest=manifest, question=QUESTION))
        assert [near(x2l, manifest, kind) for kind in "lhx"] == [set(), every, every]
        loop.close(drain_s=0)


def test_a_stalled_server_costs_a_question_its_detail_and_the_next_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is coarse is in host memory; what was asked for comes in when the server goes on, and is there then."""
    monkeypatch.setattr("x2l_cluster.engine.read.BASE_S", 0.5)
    with (
        EmbeddedValkey() as server,
        engine(f"tiers:memory:|{server.url}|disk:{tmp_path / 'store'}", cache_bytes=0) as x2l,
    ):
        manifest = x2l.index(mosaic(tmp_path / "film.mp4", seconds=12), **SMALL)
        kv_of(x2l).flush()
        os.kill(server.pid, signal.SIGSTOP)
        try:
            answer = x2l.ask(manifest, QUESTION, generation=WRITE, detail="fine")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert len(answer.evidence) == 3
        assert {evidence.degraded for evidence in answer.evidence} == {"late"}
        soon(lambda: 0 in near(x2l, manifest, "l"))
        again = x2l.ask(manifest, QUESTION, generation=WRITE, detail="fine")
        assert not again.degraded
        assert {evidence.chunk: evidence.tier for evidence in again.evidence}[0] is Tier.HOST


class Told(MemoryKV):
    """Remembers hints."""

    def __init__(self) -> None:
        super().__init__()
        self.hints: list[BlockKey] = []

    def prefetch(self, keys: Iterable[BlockKey]) -> None:
        self.hints += keys


def test_a_video_is_opened_once_a_minute_and_after_it_changed(x2l: VideoEngine, manifest: Manifest) -> None:
    now, told = 0.0, Told()
    hints = Hints(told, clock=lambda: now)
    every = {key for key in manifest.named if key.kind[0] in "hx"}
    for _ in range(3):
        hints.opened(manifest)
    assert (set(told.hints), len(told.hints)) == (every, len(every))
    hints.forget(manifest.tenant, manifest.video)
    hints.opened(manifest)
    now = 61.0
    hints.opened(manifest)
    assert len(told.hints) == 3 * len(every)


def test_hints_after_a_plan_are_few_and_not_what_it_had(x2l: VideoEngine, manifest: Manifest) -> None:
    for detail, few in (("coarse", 0), ("k=1", 4), ("k=3", 4), ("fine", 0)):
        plan, told = x2l.explain(manifest, QUESTION, detail=detail), Told()
        Hints(told).planned(manifest, plan)
        hinted = {key.chunk for key in told.hints if key.kind == Kind.L}
        assert len(hinted) <= few
        assert bool(told.hints) == bool(few)
        assert not hinted & set(plan.fine)
