"""A quota of stored bytes is kept to while a video is indexed, whoever let the job in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines import SMALL, engine, mosaic
from tests.services import END_S, indexed, local_service, run
from x2l_cluster.errors import UnknownVideo
from x2l_cluster.messages import Job, JobState
from x2l_cluster.service.local import LocalService
from x2l_cluster.service.quota import held_by
from x2l_cluster.state.tenants import Quotas
from x2l_cluster.types import IndexStatus, Kind, Manifest


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mosaic(tmp_path_factory.mktemp("film") / "film.mp4", 20)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mosaic(tmp_path_factory.mktemp("film") / "other.mp4", 20, seed=1)


@pytest.fixture(scope="module")
def whole(film: Path) -> Iterator[Manifest]:
    with engine() as x2l:
        yield x2l.index(film, tenant="me", **SMALL)  # names are part of what is stored


@pytest.fixture(params=["memory", "disk", "server"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalService]:
    if request.param == "server":
        server = request.getfixturevalue("empty_valkey")
        store = f"tiers:memory:|{server}|disk:{tmp_path}"
    else:
        store = "memory:" if request.param == "memory" else f"disk:{tmp_path}"
    with local_service(store) as made:
        yield made


def refused(job: Job) -> str:
    assert job.state is JobState.FAILED and job.problem is not None, job
    assert (job.problem.code, job.problem.status, job.problem.retryable) == ("quota_exceeded", 429, False)
    assert job.attempts == 1
    return job.problem.detail


def held(service: LocalService, tenant: str) -> int:
    return held_by(service.engine.videos(tenant=tenant)).kv_bytes


def test_what_cannot_fit_is_refused_after_its_first_chunk_and_goes_on_once_it_can(
    service: LocalService, film: Path, whole: Manifest
) -> None:
    async def body() -> None:
        quota = whole.stored_bytes // 2
        service.state.tenants.create("me", Quotas(kv_bytes=quota))
        job = await indexed(service, "me", film)
        detail = refused(job)
        assert "may hold" in detail and "more" in detail and "retry the job" in detail
        assert job.chunks_done in (1, 2), "one may be on its way"
        assert held(service, "me") <= quota
        service.state.tenants.change("me", Quotas(kv_bytes=2 * whole.stored_bytes))
        await service.retry("me", job.id)
        done = await service.job("me", job.id, wait_s=END_S)
        assert done.state is JobState.READY and done.chunks_done == len(whole.chunks)
        assert held(service, "me") == whole.stored_bytes
        assert held(service, "you") == 0
        assert (await indexed(service, "you", film)).state is JobState.READY

    run(body())


def test_it_is_never_exceeded_by_more_than_a_chunk(film: Path, whole: Manifest) -> None:
    async def body() -> None:
        with local_service() as service:
            quota = whole.stored_bytes - 1
            service.state.tenants.create("me", Quotas(kv_bytes=quota))
            refused(await indexed(service, "me", film))
            assert quota - whole.stored_bytes // len(whole.chunks) < held(service, "me") <= whole.stored_bytes
            (record,) = service.engine.videos(tenant="me")
            assert record.status is IndexStatus.INDEXING

    run(body())


def test_who_is_full_gets_nothing_in_but_what_is_no_more(film: Path, other: Path, whole: Manifest) -> None:
    async def body() -> None:
        with local_service() as service:
            service.state.tenants.create("me", Quotas(kv_bytes=whole.stored_bytes))
            assert (await indexed(service, "me", film)).state is JobState.READY
            refused(await indexed(service, "me", other, video="other"))
            with pytest.raises(UnknownVideo):
                service.engine.manifest("other", tenant="me")
            assert (await indexed(service, "me", film)).state is JobState.READY, "no new work"
            service.state.tenants.change("me", Quotas(kv_bytes=1))
            fine = [key for key in service.engine.stores.kv.keys("me", whole.video) if key.kind == Kind.L]
            service.engine.stores.kv.delete(fine)
            repaired = await indexed(service, "me", film, repair=True)
            assert repaired.state is JobState.READY, "what is counted already may be made again"
            service.state.tenants.change("me", Quotas(kv_bytes=whole.stored_bytes))
            await service.delete("me", whole.video)
            assert (await indexed(service, "me", other)).state is JobState.READY

    run(body())
