"""The janitor over memory, disk and a real server: what goes, what stays, what is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kept import BLOB, OTHER, RECIPE, Kept, kept
from x2l_cluster.errors import StaleEpoch, StoreFull, UnknownVideo
from x2l_cluster.kv.embedded import EmbeddedValkey
from x2l_cluster.messages import JobState
from x2l_cluster.state.tenants import Quotas
from x2l_cluster.stores.janitor import describe
from x2l_cluster.types import Kind

DAY = 86400.0


@pytest.fixture(params=["memory", "disk", "server"])
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kept]:
    server = request.getfixturevalue("empty_valkey") if request.param == "server" else None
    with kept(request.param, tmp_path, server) as made:
        yield made


def test_where_nothing_is_amiss_nothing_is_done(here: Kept) -> None:
    for tenant in ("ada", "bob"):
        here.index("v1", tenant)
    report = here.janitor(1000 * DAY).once()
    assert report.ok and report.swept
    assert (report.due, report.expired, report.decayed, report.orphans, report.freed_bytes) == (0, 0, 0, 0, 0)
    for tenant in ("ada", "bob"):
        assert here.held("v1", tenant) == here.named("v1", tenant)


def test_what_overtaken_and_dead_runs_have_left_goes_and_nothing_else(here: Kept) -> None:
    first = here.begin("v1")
    here.seal(first, 0)
    here.put(first, 1)  # stored, and dead before it was published
    second = here.begin("v1")
    here.seal(second, 1)
    unpublished = here.put(second, 2, (Kind.H,))  # of the run that goes on
    overtaken = here.put(first, 2)  # it does not know yet
    with pytest.raises(StaleEpoch):
        here.seal(first, 3)
    kept_recipe = here.index("v1", recipe=OTHER)
    report = here.janitor().once()
    assert report.ok and report.orphans == 3 + len(overtaken) + 3
    assert report.freed_bytes == report.orphans * len(BLOB)
    now = here.stores.state.manifest("ada", "v1", RECIPE.digest)
    assert here.held("v1") == {*now.named, *kept_recipe.named, *unpublished}
    assert here.janitor().once().orphans == 0


def test_what_a_deletion_did_not_reach_and_what_was_written_after_it_goes(here: Kept) -> None:
    here.index("v1")
    running = here.begin("v2")
    here.seal(running, 0)
    here.stores.delete_video("ada", "v2")
    here.put(running, 1)  # the worker has not noticed
    with pytest.raises(UnknownVideo):
        here.seal(running, 1)
    here.index("v3")
    here.stores.state.delete("ada", "v3")  # and then the process died
    report = here.janitor().once()
    assert report.ok and report.orphans == 3 + 9
    assert here.held("v2") == here.held("v3") == set()
    assert here.held("v1") == here.named("v1")


def test_of_an_index_that_was_replaced_all_goes(here: Kept) -> None:
    here.index("v1")
    here.index("v1", recipe=OTHER)
    here.stores.state.delete("ada", "v1", RECIPE.digest)
    assert here.janitor().once().orphans == 9
    assert here.held("v1") == here.named("v1")


def test_blobs_of_runs_that_the_state_does_not_know_stay_and_are_told_of(here: Kept, tmp_path: Path) -> None:
    """A state that was lost, or restored from an older backup, must not take the blobs with it."""
    here.index("v1")
    held = here.held("v1")
    with kept("memory", tmp_path) as empty:
        lost = replace(here, state=empty.state, stores=replace(here.stores, state=empty.stores.state))
        report = lost.janitor().once()
        assert (report.orphans, report.unknown) == (0, len(held))
        assert not report.ok and not report.retryable and "does not know" in describe(report.to_dict())
        assert here.held("v1") == held


def test_videos_go_when_their_time_is_over_originals_included(here: Kept) -> None:
    source = here.index("v1").source
    here.state.tenants.create("bob", Quotas(keep_s=int(DAY)))
    here.state.tenants.create("eve", Quotas(keep_s=int(100 * DAY)))
    for tenant in ("bob", "eve"):
        here.index("v1", tenant)
    assert here.janitor(0.5 * DAY, keep_s=10 * DAY).once().expired == 0
    assert here.janitor(2 * DAY, keep_s=10 * DAY).once().expired == 1, "a tenant's own goes before the service's"
    assert here.stores.state.videos("bob") == []
    assert here.janitor(2 * DAY).once().expired == 0
    report = here.janitor(11 * DAY, keep_s=10 * DAY).once()
    assert (report.expired, report.freed_bytes) == (1, 9 * len(BLOB))
    assert here.stores.state.videos("ada") == [] and here.held("v1") == set()
    assert source is not None and not here.stores.sources.exists("ada", source)
    assert here.held("v1", "eve") == here.named("v1", "eve") != frozenset()


def test_a_video_that_is_indexed_again_is_new_again(here: Kept) -> None:
    here.index("v1")
    janitor = here.janitor(keep_s=0.5 * DAY)
    here.index("v1", recipe=OTHER)
    assert janitor.once().expired == 0
    assert {record.recipe.digest for record in here.stores.state.videos("ada")} == {RECIPE.digest, OTHER.digest}


def test_fine_detail_goes_when_its_time_is_over_and_does_not_make_the_video_new(here: Kept) -> None:
    before = here.index("v1")
    running = here.begin("v2")
    here.seal(running, 0)
    report = here.janitor(2 * DAY, fine_s=DAY).once()
    assert (report.decayed, report.freed_bytes) == (1, 3 * len(BLOB))
    after = here.stores.state.manifest("ada", "v1")
    assert after.size_bytes(Kind.L) == 0 and after.made_s == before.made_s
    assert here.held("v1") == after.named
    assert here.held("v2") == here.named("v2"), "what is being indexed is left alone"
    assert here.janitor(2 * DAY, fine_s=DAY).once().decayed == 0
    assert here.janitor(3 * DAY, keep_s=2 * DAY, fine_s=DAY).once().expired == 2


def test_leases_that_ran_out_put_their_jobs_back_into_line(here: Kept) -> None:
    job = here.state.jobs.submit("ada", {"what": "index"})
    assert here.state.jobs.lease("worker", ttl_s=1e-6) is not None
    assert here.state.jobs.job("ada", job.id).state is JobState.RUNNING
    assert here.janitor().once().due == 1
    assert here.state.jobs.job("ada", job.id).state is JobState.QUEUED


def test_orphans_are_looked_for_only_so_often_whoever_looks(here: Kept) -> None:
    assert here.janitor(sweep_every_s=100).once().swept
    assert not here.janitor(90, sweep_every_s=100).once().swept
    assert here.janitor(101, sweep_every_s=100).once().swept
    assert here.janitor(sweep_every_s=100).once().swept, "a clock that was set back does not put it off for ever"


def test_places_with_a_bound_are_kept_within_it_orphans_first(tmp_path: Path) -> None:
    with kept("disk", tmp_path) as here:
        here.index("v1", chunks=5)
        here.index("v2", chunks=5)
        here.stores.state.delete("ada", "v2")
    bounded = f"bounded:budget={20 * len(BLOB)}@disk:{tmp_path / 'store'}"
    from x2l_cluster.stores import Stores

    with kept("disk", tmp_path) as here:
        stores = Stores.open(bounded)
        report = replace(here, stores=stores).janitor(sweep_every_s=1e9).once()
        assert report.evicted_bytes == 0 and report.orphans == 15, "the first pass looks for orphans anyway"
        here.index("v3", chunks=5)
        here.stores.state.delete("ada", "v3")
        report = replace(here, stores=stores).janitor(sweep_every_s=1e9).once()
        assert not report.swept and report.evicted_bytes == 14 * len(BLOB)
        assert here.held("v1") == here.named("v1")
        stores.close()


def test_a_server_is_kept_within_its_own_bound(tmp_path: Path) -> None:
    mib = 1 << 20
    with EmbeddedValkey(maxmemory_bytes=24 * mib) as server, kept("server", tmp_path, f"{server.url}?db=0") as here:
        manifest = here.begin("v1")
        keys = here.put(manifest, 0, (Kind.L,))
        with pytest.raises(StoreFull):  # noqa: PT012
            for chunk in range(40):
                here.stores.kv.put(replace(keys[0], chunk=chunk), bytes(mib))
        report = here.janitor().once()
        assert report.ok and report.evicted_bytes >= 2 * mib
        assert here.stores.kv.held_bytes() >= 12 * mib, "no more goes than must"
        assert here.janitor().once().evicted_bytes == 0


def test_a_store_that_does_not_answer_keeps_no_other_step_from_being_done(tmp_path: Path) -> None:
    from x2l_cluster.stores import Stores

    with EmbeddedValkey() as server:
        url = f"tiers:{server.url}|disk:{tmp_path / 'store'}"
        stores = Stores.open(url)
    with kept("disk", tmp_path) as here:
        here.index("v1")
        job = here.state.jobs.submit("ada", {"what": "index"})
        assert here.state.jobs.lease("worker", ttl_s=1e-6) is not None
        report = replace(here, stores=replace(stores, state=here.stores.state)).janitor().once()
        assert report.due == 1 and here.state.jobs.job("ada", job.id).state is JobState.QUEUED
        assert {error.code for error in report.problems.values()} == {"store_unavailable"}
        assert set(report.problems) == {"orphans", "room in remote"} and report.retryable and not report.ok
        assert here.held("v1") == here.named("v1")
    stores.close()
