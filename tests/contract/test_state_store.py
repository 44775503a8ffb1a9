"""What every StateStore promises, run over all of them; the remote one against a real server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from x2l_cluster.errors import InvalidInput, ManifestConflict, StaleEpoch, UnknownVideo
from x2l_cluster.state.base import StateStore
from x2l_cluster.state.disk import DiskState
from x2l_cluster.state.manifests import Manifests
from x2l_cluster.state.memory import MemoryShelf, MemoryState
from x2l_cluster.state.remote import RemoteState
from x2l_cluster.types import (
    BlockRef,
    ChunkRow,
    IndexStatus,
    Manifest,
    Packed,
    Recipe,
    SourceRef,
    Span,
    VideoInfo,
)

RECIPE = Recipe(family="tiny", weights="w1")
OTHER = Recipe(family="tiny", weights="w2")
INFO = VideoInfo(duration_s=60.0, width=128, height=128, fps=25.0, container="mp4")
SOURCE = SourceRef(id="s1", name="a.mp4", size_bytes=10)
LONGER = SourceRef(id="s2", name="a.mp4", size_bytes=20)

Maker = Callable[[], StateStore]


@pytest.fixture(params=["memory", "disk", "remote"])
def maker(request: pytest.FixtureRequest, tmp_path: Path) -> Maker:
    """Makes stores of the same place, as several processes would have them."""
    if request.param == "memory":
        shelf = MemoryShelf()
        return lambda: Manifests(shelf)
    if request.param == "disk":
        return lambda: DiskState(tmp_path)
    url = request.getfixturevalue("empty_valkey")
    return lambda: RemoteState(url)


@pytest.fixture
def store(maker: Maker) -> Iterator[StateStore]:
    with maker() as made:
        yield made


def row(index: int, epoch: int, *, size: int = 100, kinds: tuple[str, ...] = ("l", "h", "x-1f")) -> ChunkRow:
    ref = BlockRef(kind="l", epoch=epoch, size_bytes=size, checksum=f"{index:016x}", entries=5)
    return ChunkRow(
        index=index,
        span=Span(start_s=index * 8.0, end_s=index * 8.0 + 8),
        frames=16,
        position_start=index * 40.0,
        position_end=index * 40.0 + 40,
        raw_entries=200,
        blocks={kind: replace(ref, kind=kind) for kind in kinds},
    )


def begin(store: StateStore, video: str = "v1", *, tenant: str = "ada", recipe: Recipe = RECIPE) -> Manifest:
    return store.begin(tenant, video, recipe, INFO, SOURCE)


def seal(store: StateStore, manifest: Manifest, *indexes: int) -> Manifest:
    for index in indexes:
        sealed = row(index, manifest.epoch)
        manifest = store.seal(manifest.tenant, manifest.video, manifest.recipe.digest, manifest.epoch, sealed)
    return manifest


def finish(store: StateStore, manifest: Manifest, info: VideoInfo | None = None) -> Manifest:
    return store.finish(manifest.tenant, manifest.video, manifest.recipe.digest, manifest.epoch, info)


# --- publication ----------------------------------------------------------------------------------------------------


def test_a_video_becomes_visible_chunk_by_chunk(maker: Maker) -> None:
    with maker() as writer, maker() as reader:
        started = begin(writer)
        assert (started.status, started.chunks, started.source) == (IndexStatus.INDEXING, (), SOURCE)
        for index in range(3):
            sealed = seal(writer, started, index)
            assert [r.index for r in sealed.chunks] == list(range(index + 1))
            assert reader.manifest("ada", "v1") == sealed
        done = finish(writer, started, replace(INFO, duration_s=24.0))
        assert (done.status, done.info.duration_s) == (IndexStatus.READY, 24.0)
        assert reader.manifest("ada", "v1") == done
        assert reader.manifest("ada", "v1", RECIPE.digest) == done


def test_everything_of_a_manifest_comes_back(maker: Maker) -> None:
    recipe = replace(
        RECIPE, memory_entries=None, sampling=replace(RECIPE.sampling, count=7, end_s=3.5), edges_fine=True
    )
    info = VideoInfo(duration_s=1.5, width=1, height=2, fps=0.1, frames=None, codec="h264", partial="cut at 0:01 – ü")
    with maker() as writer, maker() as reader:
        started = writer.begin("ada", "v1", recipe, info, None)
        sealed = seal(writer, started, 0)
        assert reader.manifest("ada", "v1") == sealed
        assert sealed.recipe == recipe
        assert sealed.info == info
        assert sealed.source is None
        assert sealed.chunks == (row(0, started.epoch),)


def test_the_revision_rises_with_every_visible_change_and_only_then(store: StateStore) -> None:
    started = begin(store)
    one = seal(store, started, 0)
    again = seal(store, started, 0)
    two = seal(store, started, 1)
    done = finish(store, started)
    revisions = [m.revision for m in (started, one, two, done)]
    assert revisions == sorted(set(revisions))
    assert again == one
    assert finish(store, started) == done


def test_every_step_may_be_repeated_without_visible_change(store: StateStore) -> None:
    started = begin(store)
    seal(store, started, 0, 1, 2)
    for index in (0, 2, 1):
        seal(store, started, index)
    done = finish(store, started)
    assert seal(store, started, 1) == done
    assert finish(store, started) == done
    assert finish(store, started, INFO) == done
    assert store.manifest("ada", "v1") == done


@pytest.mark.parametrize(
    "wrong",
    [
        lambda epoch: row(3, epoch),
        lambda epoch: row(1, epoch, size=99),
        lambda epoch: replace(row(2, epoch), blocks={}),
        lambda epoch: replace(row(2, epoch), blocks={"h": row(2, epoch).blocks["l"]}),
        lambda epoch: row(2, epoch - 1),
        lambda epoch: row(2, epoch + 1),
    ],
    ids=["gap", "other blocks", "no blocks", "kinds mixed up", "older epoch", "future epoch"],
)
def test_a_row_that_does_not_fit_is_refused(store: StateStore, wrong: Callable[[int], ChunkRow]) -> None:
    started = begin(store)
    before = seal(store, started, 0, 1)
    with pytest.raises(ManifestConflict):
        store.seal("ada", "v1", RECIPE.digest, started.epoch, wrong(started.epoch))
    assert store.manifest("ada", "v1") == before


def test_nothing_is_added_to_a_finished_index_and_nothing_finished_without_chunks(store: StateStore) -> None:
    started = begin(store)
    with pytest.raises(ManifestConflict, match="nothing"):
        finish(store, started)
    seal(store, started, 0)
    done = finish(store, started)
    with pytest.raises(ManifestConflict, match="finished"):
        seal(store, started, 1)
    assert store.manifest("ada", "v1") == done


# --- epochs ---------------------------------------------------------------------------------------------------------


def test_whoever_begins_later_goes_on_where_the_first_stopped(maker: Maker) -> None:
    with maker() as first, maker() as second:
        old = begin(first)
        seal(first, old, 0, 1)
        new = begin(second)
        assert new.epoch > old.epoch
        assert [r.index for r in new.chunks] == [0, 1]
        assert {ref.epoch for r in new.chunks for ref in r.blocks.values()} == {old.epoch}
        done = seal(second, new, 2)
        assert [r.blocks["l"].epoch for r in done.chunks] == [old.epoch, old.epoch, new.epoch]


LATE: dict[str, Callable[[StateStore, Manifest], object]] = {
    "seal the next": lambda store, old: seal(store, old, 1),
    "seal an equal one": lambda store, old: seal(store, old, 0),
    "revise": lambda store, old: store.revise("ada", "v1", RECIPE.digest, old.epoch, [row(0, old.epoch, size=5)]),
    "revise with the same": lambda store, old: store.revise("ada", "v1", RECIPE.digest, old.epoch, [row(0, old.epoch)]),
    "finish": finish,
}


@pytest.mark.parametrize("step", LATE)
def test_a_worker_that_lost_its_epoch_publishes_nothing(maker: Maker, step: str) -> None:
    with maker() as first, maker() as second:
        old = begin(first)
        seal(first, old, 0)
        new = begin(second)
        for late in (first, second):
            with pytest.raises(StaleEpoch):
                LATE[step](late, old)
        assert second.manifest("ada", "v1") == new
        assert first.manifest("ada", "v1") == new
        seal(first, new, 1)  # the epoch is what counts, not the process


def test_an_epoch_nobody_took_is_refused(store: StateStore) -> None:
    started = begin(store)
    with pytest.raises(StaleEpoch):
        store.seal("ada", "v1", RECIPE.digest, started.epoch + 1, row(0, started.epoch + 1))


def test_epochs_grow_through_deletion_and_reopening(maker: Maker) -> None:
    epochs = []
    for _ in range(4):
        with maker() as store:
            epochs.append(begin(store).epoch)
            store.delete("ada", "v1")
    assert epochs == sorted(set(epochs))


def test_of_many_who_begin_at_once_one_goes_on(maker: Maker) -> None:
    with maker() as reader:
        seal(reader, begin(reader), 0)

        def work(_: int) -> tuple[int, bool]:
            with maker() as store:
                mine = begin(store)
                try:
                    for index in range(1, 6):
                        seal(store, mine, index)
                except StaleEpoch:
                    return mine.epoch, False
                except ManifestConflict:
                    return mine.epoch, False
                return mine.epoch, True

        with ThreadPoolExecutor(6) as pool:
            results = list(pool.map(work, range(6)))
        assert len({epoch for epoch, _ in results}) == 6
        final = reader.manifest("ada", "v1")
        assert final.epoch == max(epoch for epoch, _ in results)
        assert [r.index for r in final.chunks] == list(range(len(final.chunks)))
        written = [r.blocks["l"].epoch for r in final.chunks]
        assert written == sorted(written)


def test_threads_sealing_the_same_rows_agree(store: StateStore) -> None:
    started = begin(store)

    def work(_: int) -> None:
        for index in range(10):
            seal(store, started, index)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    final = store.manifest("ada", "v1")
    assert [r.index for r in final.chunks] == list(range(10))
    assert final.revision == started.revision + 10


# --- updates --------------------------------------------------------------------------------------------------------


def grow(store: StateStore, before: Manifest, kept: int, *, revision: int | None = None) -> Manifest:
    return store.grow(
        before.tenant,
        before.video,
        before.recipe.digest,
        revision=before.revision if revision is None else revision,
        kept=kept,
        info=replace(INFO, duration_s=99.0),
        source=LONGER,
    )


def longer(before: ChunkRow, epoch: int) -> ChunkRow:
    """A chunk as it is once more of it came."""
    return replace(
        row(before.index, epoch, size=300), span=replace(before.span, end_s=before.span.end_s + 1), frames=17
    )


def test_what_grows_keeps_its_rows_and_replaces_those_of_the_tail(maker: Maker) -> None:
    with maker() as writer, maker() as reader:
        before = seal(writer, begin(writer), 0, 1, 2)
        before = finish(writer, before)
        assert reader.manifest("ada", "v1") == before
        grown = grow(writer, before, 1)
        assert (grown.status, grown.tail, grown.source) == (IndexStatus.GROWING, 2, LONGER)
        assert (grown.chunks, grown.settled) == (before.chunks, before.chunks[:1])
        assert grown.epoch > before.epoch and grown.revision == before.revision + 1
        assert reader.manifest("ada", "v1") == grown
        new = [longer(old, grown.epoch) for old in before.chunks[1:]]
        one = writer.seal("ada", "v1", RECIPE.digest, grown.epoch, new[0])
        assert (one.chunks, one.tail) == ((before.chunks[0], new[0], before.chunks[2]), 1)
        assert writer.seal("ada", "v1", RECIPE.digest, grown.epoch, new[0]) == one
        two = writer.seal("ada", "v1", RECIPE.digest, grown.epoch, new[1])
        assert (two.chunks, two.tail) == ((before.chunks[0], *new), 0)
        more = seal(writer, replace(two), 3)
        assert reader.manifest("ada", "v1") == more
        done = finish(writer, more)
        assert (done.status, done.info.duration_s) == (IndexStatus.READY, 99.0)
        assert reader.manifest("ada", "v1") == done
    with maker() as fresh:
        assert fresh.manifest("ada", "v1") == done
        (record,) = fresh.videos("ada")
        assert (record.chunks, record.source, record.covered) == (4, LONGER, done.span)


def test_whoever_works_on_what_grows_is_overtaken(maker: Maker) -> None:
    with maker() as slow, maker() as other:
        started = begin(slow)
        before = seal(slow, started, 0, 1)
        grown = grow(other, before, 2)
        assert grown.status is IndexStatus.INDEXING, "it never was ready"
        with pytest.raises(StaleEpoch):
            slow.seal("ada", "v1", RECIPE.digest, started.epoch, row(2, started.epoch))
        with pytest.raises(StaleEpoch, match="look again"):
            grow(slow, before, 2)
        assert begin_longer(slow, grown).tail == 0


def begin_longer(store: StateStore, grown: Manifest) -> Manifest:
    return store.begin(grown.tenant, grown.video, grown.recipe, grown.info, LONGER)


def test_a_row_of_the_tail_may_stay_with_its_blocks_and_another_span(store: StateStore) -> None:
    before = finish(store, seal(store, begin(store), 0, 1))
    grown = grow(store, before, 1)
    kept = replace(before.chunks[1], span=Span(start_s=8.0, end_s=16.5))
    assert store.seal("ada", "v1", RECIPE.digest, grown.epoch, kept).chunks[1] == kept


def test_what_does_not_fit_what_grew_is_refused(store: StateStore) -> None:
    before = finish(store, seal(store, begin(store), 0, 1))
    for kept in (-1, 3):
        with pytest.raises(ManifestConflict, match="cannot stay"):
            grow(store, before, kept)
    grown = grow(store, before, 1)
    for wrong in (row(0, grown.epoch, size=5), row(2, grown.epoch), replace(row(1, before.epoch), frames=3)):
        with pytest.raises(ManifestConflict):
            store.seal("ada", "v1", RECIPE.digest, grown.epoch, wrong)
    with pytest.raises(ManifestConflict, match="wait until it is ready"):
        store.decay("ada", "v1", RECIPE.digest)
    assert store.manifest("ada", "v1") == grown
    done = finish(store, grown)
    assert (done.tail, done.chunks) == (0, before.chunks), "what was not replaced stays"


def test_a_growing_index_is_still_the_one_meant(store: StateStore) -> None:
    before = finish(store, seal(store, begin(store), 0))
    begin(store, recipe=OTHER)
    grown = grow(store, before, 0)
    assert store.manifest("ada", "v1") == grown


def test_an_update_replaces_the_blocks_of_a_row(maker: Maker) -> None:
    with maker() as writer, maker() as reader:
        started = begin(writer)
        seal(writer, started, 0, 1, 2)
        finish(writer, started)
        assert len(reader.manifest("ada", "v1").chunks) == 3
        again = begin(writer)
        assert again.status is IndexStatus.READY
        old = again.chunks[1]
        added = BlockRef(kind="x-2", epoch=again.epoch, size_bytes=3, checksum="f" * 16, entries=1)
        new = replace(old, blocks={**old.blocks, "x-2": added})
        changed = writer.revise("ada", "v1", RECIPE.digest, again.epoch, [new])
        assert changed.chunks == (again.chunks[0], new, again.chunks[2])
        assert changed.revision == again.revision + 1
        assert writer.revise("ada", "v1", RECIPE.digest, again.epoch, [new]) == changed
        assert reader.manifest("ada", "v1") == changed
    with maker() as fresh:
        assert fresh.manifest("ada", "v1") == changed


def test_an_update_changes_blocks_only(store: StateStore) -> None:
    started = begin(store)
    before = seal(store, started, 0)
    for wrong in (replace(row(0, started.epoch), frames=3), row(1, started.epoch), row(0, started.epoch + 1)):
        with pytest.raises(ManifestConflict):
            store.revise("ada", "v1", RECIPE.digest, started.epoch, [wrong])
    assert store.manifest("ada", "v1") == before


def packed(manifest: Manifest) -> list[ChunkRow]:
    """Every row with its coarse block in a segment, as packing has it."""
    rows = []
    for old in manifest.chunks:
        place = Packed(epoch=manifest.epoch, chunk=0, offset=64 * old.index)
        rows.append(replace(old, blocks={**old.blocks, "h": replace(old.blocks["h"], packed=place)}))
    return rows


def test_many_rows_are_revised_in_one_step(maker: Maker) -> None:
    with maker() as writer, maker() as reader:
        started = begin(writer)
        before = seal(writer, started, *range(40))
        assert len(reader.manifest("ada", "v1").chunks) == 40
        rows = packed(before)
        after = writer.revise("ada", "v1", RECIPE.digest, started.epoch, rows)
        assert after.chunks == tuple(rows)
        assert after.revision == before.revision + 1, "it was never half-way"
        assert reader.manifest("ada", "v1") == after
        assert writer.revise("ada", "v1", RECIPE.digest, started.epoch, rows) == after
        assert writer.revise("ada", "v1", RECIPE.digest, started.epoch, []) == after
        assert seal(writer, started, 40).chunks[:40] == tuple(rows)
    with maker() as fresh:
        assert fresh.manifest("ada", "v1").chunks[:40] == tuple(rows)


def test_of_many_rows_one_that_does_not_fit_keeps_all_from_being_revised(store: StateStore) -> None:
    started = begin(store)
    before = seal(store, started, 0, 1, 2)
    good = packed(before)
    later = replace(good[2].blocks["h"], packed=Packed(epoch=started.epoch + 1, chunk=0, offset=0))
    for wrong in (row(3, started.epoch), replace(good[2], frames=1), replace(good[2], blocks={"h": later})):
        with pytest.raises(ManifestConflict):
            store.revise("ada", "v1", RECIPE.digest, started.epoch, [*good[:2], wrong])
        assert store.manifest("ada", "v1") == before


def test_whoever_packs_under_a_lost_epoch_changes_nothing(maker: Maker) -> None:
    with maker() as first, maker() as second:
        before = seal(first, begin(first), 0, 1)
        new = begin(second)
        with pytest.raises(StaleEpoch):
            first.revise("ada", "v1", RECIPE.digest, before.epoch, packed(before))
        assert second.manifest("ada", "v1") == new


def test_decay_takes_the_fine_block_out_of_every_row_at_once(maker: Maker) -> None:
    with maker() as writer, maker() as reader:
        started = begin(writer)
        seal(writer, started, 0, 1, 2)
        before = finish(writer, started)
        assert all("l" in r.blocks for r in reader.manifest("ada", "v1").chunks)
        after = writer.decay("ada", "v1", RECIPE.digest)
        assert [set(r.blocks) for r in after.chunks] == [set(r.blocks) - {"l"} for r in before.chunks]
        assert (after.revision, after.status) == (before.revision + 1, IndexStatus.READY), "it was never half-way"
        assert reader.manifest("ada", "v1") == after
        assert writer.decay("ada", "v1", RECIPE.digest) == after
        with pytest.raises(StaleEpoch):  # a repair that runs beside it publishes nothing any more
            reader.revise("ada", "v1", RECIPE.digest, before.epoch, before.chunks[:1])
        again = begin(writer)
        assert writer.revise("ada", "v1", RECIPE.digest, again.epoch, before.chunks).chunks == before.chunks
    with maker() as fresh:
        assert fresh.manifest("ada", "v1").chunks == before.chunks


def test_what_is_not_ready_does_not_decay(store: StateStore) -> None:
    with pytest.raises(UnknownVideo):
        store.decay("ada", "v1", RECIPE.digest)
    before = seal(store, begin(store), 0)
    with pytest.raises(ManifestConflict):
        store.decay("ada", "v1", RECIPE.digest)
    assert store.manifest("ada", "v1") == before


# --- recipes and sources --------------------------------------------------------------------------------------------


def test_the_newest_ready_recipe_is_the_one_meant(store: StateStore) -> None:
    first, second = begin(store), begin(store, recipe=OTHER)
    assert store.manifest("ada", "v1").recipe == OTHER
    seal(store, first, 0)
    finish(store, first)
    assert store.manifest("ada", "v1").recipe == RECIPE
    seal(store, second, 0)
    assert store.manifest("ada", "v1").recipe == RECIPE
    finish(store, second)
    assert store.manifest("ada", "v1").recipe == OTHER
    assert store.manifest("ada", "v1", RECIPE.digest).recipe == RECIPE


def test_chunks_of_different_sources_are_not_mixed(store: StateStore) -> None:
    begin(store)
    other = replace(SOURCE, id="s2")
    assert store.begin("ada", "v1", RECIPE, INFO, other).source == other  # nothing sealed yet
    seal(store, store.begin("ada", "v1", RECIPE, INFO, other), 0)
    with pytest.raises(ManifestConflict, match="s2"):
        begin(store)
    assert store.begin("ada", "v1", RECIPE, INFO, None).source == other


# --- lists, content, tenants, deletion ------------------------------------------------------------------------------


def test_videos_are_listed_without_their_rows(store: StateStore) -> None:
    assert store.videos("ada") == []
    seal(store, begin(store, "v2"), 0, 1)
    started = begin(store, "v1")
    begin(store, "v1", recipe=OTHER)
    begin(store, "v3", tenant="bob")
    records = store.videos("ada")
    assert [(r.video, r.recipe) for r in records] == [("v1", RECIPE), ("v1", OTHER), ("v2", RECIPE)]
    assert (records[2].chunks, records[2].covered) == (2, Span(start_s=0.0, end_s=16.0))
    assert records[0].epoch == started.epoch


def test_content_is_bound_to_the_first_video(store: StateStore) -> None:
    assert store.find("ada", "c1") is None
    assert store.bind("ada", "c1", "v1") == "v1"
    assert store.bind("ada", "c1", "v2") == "v1"
    assert store.bind("ada", "c2", "v2") == "v2"
    assert (store.find("ada", "c1"), store.find("ada", "c2"), store.find("bob", "c1")) == ("v1", "v2", None)


def test_of_many_who_bind_at_once_one_wins(maker: Maker) -> None:
    def work(n: int) -> str:
        with maker() as store:
            return store.bind("ada", "c1", f"v{n}")

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(work, range(6)))) == 1


def test_deleting_forgets_everything_of_the_video_and_nothing_else(maker: Maker) -> None:
    with maker() as store, maker() as other:
        begin(store)
        seal(store, begin(store, recipe=OTHER), 0)
        kept = seal(store, begin(store, "v10"), 0)
        theirs = begin(store, tenant="bob")
        for content, video in (("c1", "v1"), ("c2", "v1"), ("c3", "v10")):
            store.bind("ada", content, video)
        assert len(other.manifest("ada", "v1", OTHER.digest).chunks) == 1
        assert store.delete("ada", "v1")
        for look in (store, other):
            for digest in (None, RECIPE.digest, OTHER.digest):
                with pytest.raises(UnknownVideo):
                    look.manifest("ada", "v1", digest)
            assert [look.find("ada", c) for c in ("c1", "c2", "c3")] == [None, None, "v10"]
            assert [r.video for r in look.videos("ada")] == ["v10"]
            assert look.manifest("ada", "v10") == kept
            assert look.manifest("bob", "v1") == theirs
        assert not store.delete("ada", "v1")


def test_one_recipe_is_forgotten_while_another_stays(maker: Maker) -> None:
    with maker() as store, maker() as other:
        finish(store, seal(store, begin(store), 0))
        kept = finish(store, seal(store, begin(store, recipe=OTHER), 0, 1))
        store.bind("ada", "c1", "v1")
        assert other.manifest("ada", "v1", RECIPE.digest).chunks
        assert store.delete("ada", "v1", RECIPE.digest)
        assert not store.delete("ada", "v1", RECIPE.digest)
        for look in (store, other):
            with pytest.raises(UnknownVideo):
                look.manifest("ada", "v1", RECIPE.digest)
            assert look.manifest("ada", "v1") == look.manifest("ada", "v1", OTHER.digest) == kept
            assert look.find("ada", "c1") == "v1"
        with pytest.raises(UnknownVideo):  # who still worked on it
            store.seal("ada", "v1", RECIPE.digest, kept.epoch - 1, row(1, kept.epoch - 1))
        assert store.delete("ada", "v1", OTHER.digest), "the last one takes all with it"
        for look in (store, other):
            assert (look.videos("ada"), look.find("ada", "c1")) == ([], None)
        assert not store.delete("ada", "v1")


def test_a_list_tells_how_much_is_kept_how_old_it_is_and_whether_it_is_fine(maker: Maker) -> None:
    with maker() as store, maker() as other:
        earliest = time.time()
        before = finish(store, seal(store, begin(store), 0, 1))
        (record,) = other.videos("ada")
        assert (record.stored_bytes, record.fine_bytes) == (600, 200)
        assert earliest <= record.made_s == before.made_s <= time.time()
        after = store.decay("ada", "v1", RECIPE.digest)
        (record,) = other.videos("ada")
        assert (record.stored_bytes, record.fine_bytes) == (400, 0)
        assert record.made_s == after.made_s == before.made_s, "what lets go makes nothing new"
        assert begin(store).made_s > before.made_s


def test_who_was_ever_here_and_how_far_epochs_have_come_is_known(maker: Maker) -> None:
    with maker() as store, maker() as other:
        assert (other.tenants(), other.epoch("ada")) == ([], 0)
        first = begin(store)
        begin(store, tenant="bob")
        assert (other.tenants(), other.epoch("ada")) == (["ada", "bob"], first.epoch)
        store.delete("ada", "v1")
        assert (other.tenants(), other.epoch("ada")) == (["ada", "bob"], first.epoch)


def test_a_binding_alone_can_be_deleted(store: StateStore) -> None:
    store.bind("ada", "c1", "v1")
    assert store.delete("ada", "v1")
    assert store.find("ada", "c1") is None


@pytest.mark.parametrize("step", LATE)
def test_a_deleted_video_is_not_brought_back(maker: Maker, step: str) -> None:
    with maker() as worker, maker() as owner:
        started = begin(worker)
        seal(worker, started, 0)
        owner.delete("ada", "v1")
        with pytest.raises(UnknownVideo):
            LATE[step](worker, started)
        assert owner.videos("ada") == []
        again = begin(owner)
        assert again.chunks == ()
        with pytest.raises(StaleEpoch):
            LATE[step](worker, started)
        seal(owner, again, 0, 1, 2)
        assert len(worker.manifest("ada", "v1").chunks) == 3


def test_a_reader_that_knew_the_deleted_video_sees_the_new_one(maker: Maker) -> None:
    with maker() as writer, maker() as reader:
        seal(writer, begin(writer), 0, 1, 2, 3)
        assert len(reader.manifest("ada", "v1").chunks) == 4
        writer.delete("ada", "v1")
        started = begin(writer)
        for count in (1, 2):
            sealed = writer.seal("ada", "v1", RECIPE.digest, started.epoch, row(count - 1, started.epoch, size=7))
            assert reader.manifest("ada", "v1") == sealed


@pytest.mark.parametrize("chunks", [1, 2, 3, 5])
def test_what_a_reader_remembers_of_a_deleted_video_is_not_mixed_with_the_new_one(maker: Maker, chunks: int) -> None:
    with maker() as writer, maker() as reader:
        seal(writer, begin(writer), 0, 1)
        assert len(reader.manifest("ada", "v1").chunks) == 2
        writer.delete("ada", "v1")
        started = begin(writer)
        for index in range(chunks):
            sealed = writer.seal("ada", "v1", RECIPE.digest, started.epoch, row(index, started.epoch, size=7))
        assert reader.manifest("ada", "v1") == sealed


def test_another_tenants_video_is_unknown(store: StateStore) -> None:
    started = begin(store)
    with pytest.raises(UnknownVideo):
        store.manifest("bob", "v1")
    with pytest.raises(UnknownVideo):
        store.seal("bob", "v1", RECIPE.digest, started.epoch, row(0, started.epoch))
    assert not store.delete("bob", "v1")
    assert store.videos("bob") == []
    assert store.manifest("ada", "v1") == started


def test_what_was_never_begun_is_unknown(store: StateStore) -> None:
    with pytest.raises(UnknownVideo, match="v9"):
        store.manifest("ada", "v9")
    with pytest.raises(UnknownVideo):
        store.finish("ada", "v9", RECIPE.digest, 1)


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a:b", "a*", "{a}", ".lock", "a\0", "v1\n", "x" * 129])
def test_names_that_could_leave_their_place_are_refused(store: StateStore, name: str) -> None:
    for step in (
        lambda: begin(store, tenant=name),
        lambda: begin(store, name),
        lambda: store.manifest("ada", name),
        lambda: store.manifest(name, "v1"),
        lambda: store.manifest("ada", "v1", name),
        lambda: store.videos(name),
        lambda: store.delete(name, "v1"),
        lambda: store.delete("ada", name),
        lambda: store.bind("ada", name, "v1"),
        lambda: store.bind("ada", "c", name),
        lambda: store.find("ada", name),
    ):
        with pytest.raises(InvalidInput):
            step()


def test_stores_say_whether_they_are_durable() -> None:
    assert not MemoryState().durable


def test_closing_twice_is_fine(store: StateStore) -> None:
    store.close()
    store.close()
