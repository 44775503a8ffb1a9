"""Indexing through the whole path: real files, the real decoder process, real stores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engines import SMALL, engine, files, mosaic
from tests.integration.test_video_bad_inputs import BAD_FILES
from tests.tiny import two_pass
from tests.videos import cfr
from x2l_cluster.errors import (
    BlockMissing,
    Cancelled,
    CorruptVideo,
    DecodeTimeout,
    InvalidInput,
    InvalidRecipe,
    ManifestCorrupt,
    StaleEpoch,
    StoreFull,
    StoreUnavailable,
    UnknownVideo,
    X2LError,
)
from x2l_cluster.kv.embedded import EmbeddedValkey
from x2l_cluster.kv.stripes import STRIPE_BYTES
from x2l_cluster.types import IndexStatus, Sampling


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return mosaic(tmp_path_factory.mktemp("film") / "film.mp4", 22)


def payloads(manifest) -> list[dict[str, str]]:
    return [{kind: ref.checksum for kind, ref in row.blocks.items()} for row in manifest.chunks]


def test_a_video_becomes_sealed_chunks_that_tile_it(film):
    with engine() as x2l:
        events = []
        manifest = x2l.index(film, progress=events.append, **SMALL)
    assert manifest.status is IndexStatus.READY
    assert [row.index for row in manifest.chunks] == list(range(6))
    assert [(row.span.start_s, row.span.end_s) for row in manifest.chunks[:2]] == [(0, 4), (4, 8)]
    assert manifest.chunks[-1].frames == 2
    assert all(a.position_end == b.position_start for a, b in zip(manifest.chunks, manifest.chunks[1:], strict=False))
    assert [event.chunk for event in events] == list(range(6))
    assert {event.chunks for event in events} == {6}


def test_the_same_content_under_the_same_recipe_is_no_new_work(film, tmp_path):
    with engine() as x2l:
        first = x2l.index(film, **SMALL)
        copy = tmp_path / "another-name.mp4"
        copy.write_bytes(film.read_bytes())
        events = []
        again = x2l.index(copy, progress=events.append, **SMALL)
    assert (again.video, again.epoch, again.revision) == (first.video, first.epoch, first.revision)
    assert events == []


def test_another_recipe_is_another_index_of_the_same_video(film):
    with engine() as x2l:
        first = x2l.index(film, **SMALL)
        other = x2l.index(film, **(SMALL | {"chunk_frames": 8}))
        assert other.video == first.video
        assert len(other.chunks) < len(first.chunks)
        assert {record.recipe.digest for record in x2l.videos()} == {first.recipe.digest, other.recipe.digest}


def test_an_id_belongs_to_one_content(film, tmp_path):
    with engine() as x2l:
        x2l.index(film, video="lecture", **SMALL)
        with pytest.raises(InvalidInput, match="taken by another file"):
            x2l.index(mosaic(tmp_path / "b.mp4", 5, seed=1), video="lecture", **SMALL)
        assert x2l.index(film, video="lecture", **SMALL).video == "lecture"
        assert x2l.index(film, **SMALL).video == "lecture", "the content is known by that id now"


def test_a_failed_index_under_another_recipe_leaves_the_finished_one(film):
    with engine() as x2l:
        first = x2l.index(film, **SMALL)

        def fail(event) -> None:
            raise CorruptVideo("damaged from here on")

        with pytest.raises(CorruptVideo):
            x2l.index(film, progress=fail, **(SMALL | {"chunk_frames": 8}))
        assert x2l.manifest(first.video) == first


def test_cancelled_at_a_chunk_boundary_it_goes_on_behind_what_is_sealed(film):
    cancel = threading.Event()
    with engine() as x2l, engine() as whole:
        with pytest.raises(Cancelled):
            x2l.index(film, cancel=cancel, progress=lambda event: cancel.set() if event.chunk == 1 else None, **SMALL)
        (record,) = x2l.videos()
        assert (record.chunks, record.status) == (2, IndexStatus.INDEXING)
        events = []
        manifest = x2l.index(film, progress=events.append, **SMALL)
        assert [event.chunk for event in events if event.resumed] == [0, 1]
        assert payloads(manifest) == payloads(whole.index(film, **SMALL))


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.engines import SMALL, engine
chunk = int(sys.argv[3])
def die(event):
    if event.chunk == chunk:
        os.kill(os.getpid(), signal.SIGKILL)
with engine(f"disk:{sys.argv[1]}") as x2l:
    x2l.index(sys.argv[2], progress=die, **SMALL)
"""


@pytest.mark.parametrize("chunk", [0, 3, 5])
def test_killed_at_any_chunk_a_resumed_run_yields_the_payloads_of_an_uninterrupted_one(film, tmp_path, chunk):
    store = tmp_path / "store"
    command = [sys.executable, "-c", KILLED, str(store), str(film), str(chunk)]
    killed = subprocess.run(command, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    events = []
    with engine(f"disk:{store}") as x2l, engine() as whole:
        manifest = x2l.index(film, progress=events.append, **SMALL)
        assert [event.chunk for event in events if event.resumed] == list(range(chunk + 1))
        assert manifest.status is IndexStatus.READY
        assert payloads(manifest) == payloads(whole.index(film, **SMALL))
        assert {row.blocks["l"].epoch for row in manifest.chunks[: chunk + 1]} == {1}


def test_two_passes_resume_from_the_memory_of_each_level(film):
    cancel = threading.Event()
    lm = two_pass()
    with engine(lm=lm) as x2l, engine(lm=lm) as whole:
        with pytest.raises(Cancelled):
            x2l.index(film, cancel=cancel, progress=lambda event: cancel.set() if event.chunk == 2 else None, **SMALL)
        assert payloads(x2l.index(film, **SMALL)) == payloads(whole.index(film, **SMALL))


def test_a_worker_that_was_overtaken_publishes_nothing(film):
    """Somebody begins in the middle of the run; the run stops, and what it sealed before stays."""
    with engine() as x2l:
        recipe = x2l.lm.recipe(**SMALL)

        def overtake(event) -> None:
            if event.chunk == 2 and not event.resumed:
                seen = x2l.manifest(event.video)
                x2l.stores.state.begin("local", event.video, recipe, seen.info, seen.source)

        with pytest.raises(StaleEpoch):
            x2l.index(film, progress=overtake, **SMALL)
        (record,) = x2l.videos()
        assert record.chunks == 3


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_gets_its_error_and_leaves_nothing_in_the_stores(name, tmp_path):
    make, expected = BAD_FILES[name]
    good = cfr(tmp_path / "good.mp4", 30)
    folder = tmp_path / "bad"
    folder.mkdir()
    path = make(folder, good)
    store = tmp_path / "store"
    with engine(f"disk:{store}", decode_deadline_s=5) as x2l:
        with pytest.raises(expected) as caught:
            x2l.index(path, **SMALL)
        assert isinstance(caught.value, X2LError)
        assert x2l.videos() == []
        assert x2l.stores.kv.held_bytes() == 0
    assert files(store) == []


@pytest.mark.parametrize(
    "recipe",
    [
        {"chunk_frames": 3},
        {"chunk_frames": 0},
        {"height": 33, "width": 32},
        {"height": 32},
        {"heigth": 32},
        {"positions": "left"},
    ],
)
def test_an_impossible_recipe_is_refused_before_anything_happens(film, recipe, tmp_path):
    with engine(f"disk:{tmp_path}") as x2l, pytest.raises(InvalidRecipe):
        x2l.index(film, **recipe)
    assert files(tmp_path) == []


def test_only_a_span_is_indexed_and_times_stay_those_of_the_video(film):
    with engine() as x2l:
        manifest = x2l.index(film, sampling=Sampling(fps=1, start_s=6, end_s=14), **SMALL)
    assert (manifest.span.start_s, len(manifest.chunks)) == (6, 2)


def test_deleting_a_video_leaves_nothing(film, tmp_path, empty_valkey):
    import redis

    with engine(f"disk:{tmp_path}", fine=empty_valkey) as x2l:
        manifest = x2l.index(film, **SMALL)
        x2l.index(film, **(SMALL | {"chunk_frames": 8}))
        assert files(tmp_path)
        with redis.Redis.from_url(empty_valkey) as client:
            assert client.dbsize()
            assert x2l.delete(manifest.video) > 0
            assert client.dbsize() == 0
        assert files(tmp_path) == []
        assert x2l.videos() == []


def test_no_decoder_process_is_left_behind(film):
    import psutil

    with engine() as x2l:
        x2l.index(film, **SMALL)
    mine = psutil.Process(os.getpid())
    assert not [child for child in mine.children(recursive=True) if "x2l_cluster.video" in " ".join(child.cmdline())]


@pytest.mark.parametrize("stripe_bytes", [STRIPE_BYTES, 8 << 10])
@pytest.mark.parametrize("kind", ["h", "l", "x"])
def test_repair_makes_again_what_is_gone_and_only_that(film, kind, stripe_bytes):
    """Segments of several chunks are gone as a whole; of a block in stripes one is enough."""
    with engine(stripe_bytes=stripe_bytes) as x2l:
        first = x2l.index(film, **SMALL)
        before = x2l.ask(first, "What is it?", detail="k=2").text
        row = first.chunks[2]
        gone = {first.keys(ref, 2)[-1] for name, ref in row.blocks.items() if name.startswith(kind)}
        x2l.stores.kv.delete(gone)
        lost = [
            row.index for row in first.chunks for ref in row.blocks.values() if gone & set(first.keys(ref, row.index))
        ]
        events = []
        again = x2l.index(film, repair=True, progress=events.append, **SMALL)
        assert [event.chunk for event in events if not event.resumed] == sorted(set(lost))
        assert payloads(again) == payloads(first)
        assert again.status is IndexStatus.READY
        assert x2l.ask(again, "What is it?", detail="k=2").text == before
        assert set(x2l.stores.kv.keys("local", first.video)) == again.named


def test_a_half_index_that_lost_its_past_makes_it_again(film):
    cancel = threading.Event()
    with engine() as x2l, engine() as whole:
        with pytest.raises(Cancelled):
            x2l.index(film, cancel=cancel, progress=lambda event: cancel.set() if event.chunk == 3 else None, **SMALL)
        half = x2l.manifest(x2l.videos()[0].video)
        x2l.stores.kv.delete([half.key(half.chunks[1].blocks["h"], 1)])
        assert payloads(x2l.index(film, **SMALL)) == payloads(whole.index(film, **SMALL))


def test_two_threads_that_index_one_file_make_one_index(film):
    with engine() as x2l:
        manifests, gate = [], threading.Barrier(2)

        def go() -> None:
            gate.wait()
            manifests.append(x2l.index(film, **SMALL))

        threads = [threading.Thread(target=go) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert manifests[0] == manifests[1]
        assert manifests[0].status is IndexStatus.READY


def test_chunks_sealed_by_another_while_the_file_is_opened_are_taken_as_done(film, tmp_path):
    """A slow worker seals two more chunks between our look at the manifest and our taking over."""
    with engine(f"disk:{tmp_path}") as slow, engine() as whole:
        cancel = threading.Event()
        with pytest.raises(Cancelled):
            slow.index(film, cancel=cancel, progress=lambda event: cancel.set() if event.chunk == 1 else None, **SMALL)
        with engine(f"disk:{tmp_path}") as ours:
            begin = ours.stores.state.begin

            def later(*args):
                ours.stores.state.begin = begin
                more = threading.Event()
                with pytest.raises(Cancelled):
                    slow.index(film, cancel=more, progress=lambda e: more.set() if e.chunk == 3 else None, **SMALL)
                return begin(*args)

            ours.stores.state.begin = later
            manifest = ours.index(film, **SMALL)
        assert payloads(manifest) == payloads(whole.index(film, **SMALL))


def test_a_run_that_was_overtaken_takes_nothing_back_when_its_file_fails(film):
    with engine() as x2l:
        recipe = x2l.lm.recipe(**SMALL)

        def overtaken_and_damaged(event) -> None:
            seen = x2l.manifest(event.video)
            x2l.stores.state.begin("local", event.video, recipe, seen.info, seen.source)
            raise CorruptVideo("damaged from here on")

        with pytest.raises(CorruptVideo):
            x2l.index(film, progress=overtaken_and_damaged, **SMALL)
        assert [record.chunks for record in x2l.videos()] == [1]


def test_a_decoder_that_timed_out_leaves_what_is_sealed(film):
    with engine() as x2l:

        def late(event) -> None:
            if event.chunk == 2 and not event.resumed:
                raise DecodeTimeout("no progress")

        with pytest.raises(DecodeTimeout):
            x2l.index(film, progress=late, **SMALL)
        assert [record.chunks for record in x2l.videos()] == [3]
        assert x2l.index(film, **SMALL).status is IndexStatus.READY


def test_deleted_in_the_middle_of_a_run_nothing_is_left(film, tmp_path):
    with engine(f"disk:{tmp_path}") as x2l:
        with pytest.raises(UnknownVideo):
            x2l.index(film, progress=lambda event: x2l.delete(event.video) if event.chunk == 2 else None, **SMALL)
        assert files(tmp_path) == []


def test_blobs_of_a_run_that_died_before_publishing_are_swept_by_the_next(film, tmp_path):
    with engine(f"disk:{tmp_path}") as x2l:
        cancel = threading.Event()
        with pytest.raises(Cancelled):
            x2l.index(film, cancel=cancel, progress=lambda event: cancel.set() if event.chunk == 1 else None, **SMALL)
        half = x2l.manifest(x2l.videos()[0].video)
        orphan = replace(half.key(half.chunks[0].blocks["l"], 0), chunk=2)
        x2l.stores.kv.put(orphan, b"left behind")
        x2l.index(film, **SMALL)
        with pytest.raises(BlockMissing):
            x2l.stores.kv.get(orphan)


def test_a_full_store_stops_the_run_with_a_clear_error_and_leaves_no_orphans(film):
    from x2l_cluster.engine import Stores, VideoEngine
    from x2l_cluster.kv.memory import MemoryKV

    with engine() as whole:
        needed = sum(whole.index(film, **SMALL).size_bytes(kind) for kind in ("l", "h"))
    stores = Stores.open("memory:")
    small = replace(stores, kv=MemoryKV(budget_bytes=needed // 2))
    with VideoEngine(whole.lm, small) as x2l:
        with pytest.raises(StoreFull) as caught:
            x2l.index(film, **SMALL)
        assert caught.value.retryable
        manifest = x2l.manifest(x2l.videos()[0].video)
        assert set(x2l.stores.kv.keys("local", manifest.video)) == manifest.named
        assert x2l.ask(manifest, "What is it?").covered.end_s < 22


def test_a_delete_whose_store_was_away_can_be_made_again(film, tmp_path):
    with EmbeddedValkey() as server, engine(f"disk:{tmp_path}", fine=server.url) as x2l:
        manifest = x2l.index(film, **SMALL)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable):
                x2l.delete(manifest.video)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert files(tmp_path) == []
        assert x2l.delete(manifest.video) > 0
        with pytest.raises(UnknownVideo):
            x2l.delete(manifest.video)


def test_a_video_whose_manifest_is_damaged_can_be_deleted_and_indexed_again(film, tmp_path):
    with engine(f"disk:{tmp_path}") as x2l:
        video = x2l.index(film, **SMALL).video
    (head,) = (tmp_path / "state").rglob("head")
    head.write_bytes(head.read_bytes()[:-7] + b"garbage")
    with engine(f"disk:{tmp_path}") as x2l:
        with pytest.raises(ManifestCorrupt, match="delete"):
            x2l.ask(video, "What is it?")
        assert x2l.delete(video) > 0
        assert x2l.index(film, **SMALL).status is IndexStatus.READY


def test_state_that_survives_wants_coarse_blocks_that_survive(tmp_path):
    from x2l_cluster.engine import Stores, VideoEngine
    from x2l_cluster.kv.memory import MemoryKV

    stores = Stores.open(f"disk:{tmp_path}")
    with pytest.raises(InvalidInput, match="durable"):
        VideoEngine(two_pass(), replace(stores, kv=MemoryKV()))
    stores.close()


def test_tenants_do_not_meet(film):
    with engine() as x2l:
        mine = x2l.index(film, tenant="mine", **SMALL)
        assert x2l.videos(tenant="yours") == []
        with pytest.raises(UnknownVideo):
            x2l.ask(mine.video, "What is it?", tenant="yours")
        with pytest.raises(UnknownVideo):
            x2l.delete(mine.video, tenant="yours")
        yours = x2l.index(film, tenant="yours", **SMALL)
        assert x2l.delete(yours.video, tenant="yours") > 0
        assert x2l.ask(mine.video, "What is it?", tenant="mine").text is not None
