"""Letting go of fine detail, and making again what a store has lost, from the kept source."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engines import SMALL, calibration, engine, mosaic
from tests.tiny import qwen3_vl
from x2l_cluster.engine import Generation, VideoEngine
from x2l_cluster.errors import Cancelled, KVMissing, ManifestConflict, ModelMismatch, SourceMissing, UnknownVideo
from x2l_cluster.kv.evict import Limits
from x2l_cluster.kv.evictor import Evictor
from x2l_cluster.kv.memory import MemoryKV
from x2l_cluster.stores.upkeep import orphaned
from x2l_cluster.types import Kind, Manifest

QUESTION = "What code is shown with the red star?"
WRITE = Generation(max_tokens=8, ignore_stop_ids=True)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mosaic(tmp_path_factory.mktemp("film") / "film.mp4", 15)


@pytest.fixture
def x2l() -> Iterator[VideoEngine]:
    with engine() as made:
        yield made


def ask(x2l: VideoEngine, video: str | Manifest, detail: str = "k=2", **options: object):  # type: ignore[no-untyped-def]
    return x2l.ask(video, QUESTION, detail=detail, generation=WRITE, **options)


def stored(x2l: VideoEngine, manifest: Manifest, kind: Kind) -> list[object]:
    return [key for key in x2l.stores.kv.keys("local", manifest.video) if key.kind.partition("-")[0] == kind]


def lose(x2l: VideoEngine, manifest: Manifest, kind: Kind) -> None:
    x2l.stores.kv.delete(stored(x2l, manifest, kind))  # type: ignore[arg-type]
    x2l.answerer.forget("local", manifest.video)


def test_a_decayed_video_is_answered_coarse_and_says_so_and_is_not_degraded(x2l: VideoEngine, film: Path) -> None:
    before = x2l.index(film, **SMALL)
    coarse = ask(x2l, before.video, "coarse")
    ask(x2l, before.video)  # something fine is hot
    after = x2l.decay(before.video)
    assert stored(x2l, before, Kind.L) == []
    assert set(x2l.stores.kv.keys("local", before.video)) == after.named
    for detail in ("k=2", "fine", "auto"):
        answer = ask(x2l, before.video, detail, on_missing="fail")
        assert (answer.text, answer.degraded, answer.plan.fine, answer.evidence) == (coarse.text, False, (), ())
        assert "fine detail of this video is not kept" in (answer.plan.note or "")
    assert x2l.decay(before.video) == after


def test_refreshed_from_its_source_it_is_what_it_was(x2l: VideoEngine, film: Path) -> None:
    before = x2l.index(film, **SMALL)
    expected = ask(x2l, before.video)
    x2l.decay(before.video)
    events: list[int] = []
    after = x2l.refresh(before.video, progress=lambda event: events.append(event.chunk))
    assert events == [0, 1, 2, 3]
    for old, new in zip(before.chunks, after.chunks, strict=True):
        assert {k: r.checksum for k, r in new.blocks.items()} == {k: r.checksum for k, r in old.blocks.items()}
    answer = ask(x2l, before.video)
    assert (answer.text, answer.degraded, answer.plan.note) == (expected.text, False, expected.plan.note)
    assert set(x2l.stores.kv.keys("local", before.video)) == after.named


def test_who_still_holds_the_older_manifest_is_told_what_is_missing(x2l: VideoEngine, film: Path) -> None:
    before = x2l.index(film, **SMALL)
    coarse = ask(x2l, before, "coarse")
    x2l.decay(before.video)
    answer = ask(x2l, before)
    assert (answer.text, answer.degraded) == (coarse.text, True)
    assert {item.degraded for item in answer.evidence} == {"missing"}


def test_without_coarse_blocks_a_video_is_made_again_if_asked_and_only_then(x2l: VideoEngine, film: Path) -> None:
    manifest = x2l.index(film, **SMALL)
    other = x2l.index(film, video="other", **(SMALL | {"chunk_frames": 8}))
    expected = ask(x2l, manifest)
    lose(x2l, manifest, Kind.H)
    with pytest.raises(KVMissing) as caught:
        ask(x2l, manifest.video)
    assert caught.value.retryable
    asked = [(manifest.video, QUESTION), (other, QUESTION)]
    answers = x2l.ask_many(asked, detail="k=2", generation=WRITE, refresh=True)
    assert (answers[0].text, answers[0].degraded) == (expected.text, False)
    assert x2l.manifest("other").epoch == other.epoch, "what was whole is left alone"
    assert ask(x2l, manifest.video).text == expected.text


def test_what_cannot_be_refreshed_says_why(x2l: VideoEngine, film: Path) -> None:
    manifest = x2l.index(film, **SMALL)
    assert manifest.source is not None
    with pytest.raises(UnknownVideo):
        x2l.refresh("nobody")
    with pytest.raises(SourceMissing, match="not kept"):
        x2l.refresh(replace(manifest, source=None))
    lm = qwen3_vl(1)
    with pytest.raises(ModelMismatch):
        VideoEngine(lm, x2l.stores, calibration=calibration(lm)).refresh(manifest)
    x2l.stores.sources.delete("local", manifest.source)
    lose(x2l, manifest, Kind.H)
    with pytest.raises(SourceMissing):
        ask(x2l, manifest.video, refresh=True)


def test_a_video_being_indexed_does_not_decay(x2l: VideoEngine, film: Path) -> None:
    cancel = threading.Event()
    with pytest.raises(Cancelled):
        x2l.index(film, cancel=cancel, progress=lambda event: cancel.set() if event.chunk == 1 else None, **SMALL)
    with pytest.raises(ManifestConflict):
        x2l.decay(x2l.videos()[0].video)


def test_a_repair_that_a_decay_overtook_publishes_nothing_and_can_be_made_again(x2l: VideoEngine, film: Path) -> None:
    from x2l_cluster.errors import StaleEpoch

    manifest = x2l.index(film, **SMALL)
    lose(x2l, manifest, Kind.L)
    with pytest.raises(StaleEpoch):
        x2l.refresh(manifest.video, progress=lambda event: x2l.decay(manifest.video) if event.chunk == 1 else None)
    left = x2l.manifest(manifest.video)
    assert not any(Kind.L in row.blocks for row in left.chunks)
    after = x2l.refresh(manifest.video)
    assert all(Kind.L in row.blocks for row in after.chunks)
    assert set(x2l.stores.kv.keys("local", manifest.video)) == after.named


def test_what_a_deletion_did_not_reach_goes_first(x2l: VideoEngine, film: Path) -> None:
    kept = x2l.index(film, **SMALL)
    gone = x2l.index(film, video="gone", **(SMALL | {"chunk_frames": 8}))
    x2l.stores.state.delete("local", "gone")
    store = MemoryKV()
    for video in (kept.video, gone.video):
        for key in x2l.stores.kv.keys("local", video):
            store.put(key, x2l.stores.kv.get(key))
    limits = Limits(budget_bytes=store.held_bytes(), high=0.99, low=0.98)
    assert Evictor(store, limits, orphaned=orphaned(x2l.stores.state)).run()
    assert len(list(store.keys("local", kept.video))) == len(kept.named)
    assert len(list(store.keys("local", "gone"))) < len(gone.named)
