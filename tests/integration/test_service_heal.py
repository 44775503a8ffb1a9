"""Fine detail that was in a memory which is gone is made again, and only that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import pytest

from tests.engines import SMALL, engine, mosaic
from tests.services import END_S, all_of, ends, indexed, pieces, run
from tests.tiny import qwen3_vl
from x2l_cluster.messages import AnswerCompleted, JobState
from x2l_cluster.models import VideoLM
from x2l_cluster.service import Ask, IndexRequest
from x2l_cluster.service.local import LocalOptions, LocalService
from x2l_cluster.types import Detail

ASK = Ask(question="Is it red?", videos=("clip",), max_tokens=6, detail=Detail.parse("k=2"))


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return mosaic(tmp_path / "film.mp4", 20)


@contextmanager
def serving(folder: Path, *, lm: VideoLM | None = None, indexers: int = 1) -> Iterator[LocalService]:
    """Each time over the same disk, with a new memory for fine blocks."""
    store = f"disk:{folder / 'store'}"
    made = engine(store, fine="memory:", lm=lm)
    options = LocalOptions(drain_s=1.0, indexers=indexers)
    with LocalService.over(made, store=store, model="tiny", options=options) as service:
        yield service


def asked(service: LocalService, tenant: str) -> AnswerCompleted:
    (end,) = ends(run(all_of(service.answers(tenant, ASK)))).values()
    assert isinstance(end, AnswerCompleted), end
    return end


def test_what_went_with_its_memory_is_made_again(tmp_path: Path, film: Path) -> None:
    with serving(tmp_path) as service:
        service.state.tenants.create("anna")
        for tenant in ("local", "anna"):
            run(indexed(service, tenant, film, video="clip"))
        before = asked(service, "anna")
        assert not before.degraded
        assert service.heal() == 0, "nothing is lost"
    with serving(tmp_path) as service:
        assert asked(service, "anna").degraded
        assert service.heal() == 2
        for tenant in ("local", "anna"):
            job = run(service.jobs(tenant))[0]
            assert run(service.job(tenant, job.id, wait_s=END_S)).state is JobState.READY
        after = asked(service, "anna")
        assert (after.text, after.degraded) == (before.text, False)
        assert service.heal() == 0


def test_it_is_queued_once_and_behind_what_people_ask_for(tmp_path: Path, film: Path) -> None:
    with serving(tmp_path) as service:
        run(indexed(service, "local", film, video="clip"))
    with serving(tmp_path, indexers=0) as service:
        assert service.heal() == 1 and service.heal() == 1
        (repair, _) = run(service.jobs("local"))
        assert repair.state is JobState.QUEUED
        other = mosaic(tmp_path / "other.mp4", 8, seed=1)
        new = run(indexed_later(service, other))
        lease = service.state.jobs.lease("w", ttl_s=10)
        assert lease is not None and lease.job.id == new


async def indexed_later(service: LocalService, film: Path) -> str:
    source = await service.keep("local", pieces(film.read_bytes()), name=film.name)
    return (await service.submit("local", IndexRequest(source=source, video="other"))).id


def test_what_was_let_go_of_or_is_another_models_is_not_made_again(tmp_path: Path, film: Path) -> None:
    with serving(tmp_path) as service:
        run(indexed(service, "local", film, video="clip"))
        service.engine.stores.decay(service.engine.stores.state.manifest("local", "clip"))
    with serving(tmp_path) as service:
        assert service.heal() == 0, "it was decayed on purpose"
        run(indexed(service, "local", mosaic(tmp_path / "b.mp4", 8, seed=1), video="b"))
    with serving(tmp_path, lm=qwen3_vl(1)) as service:
        assert service.heal() == 0, "another model would make other blocks"


def test_half_an_index_is_made_whole_only_with_the_job_that_goes_on_with_it(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        run(begun(service, mosaic(tmp_path / "long.mp4", 2000)))
    with serving(tmp_path, indexers=0) as service:
        assert service.heal() == 1
        repair, job = run(service.jobs("local"))
        assert (repair.state, job.state) == (JobState.QUEUED, JobState.QUEUED) and 0 < job.chunks_done < job.chunks
        for one in (repair, job):
            assert run(service.cancel("local", one.id)).state is JobState.CANCELLED
        assert service.heal() == 0, "somebody gave it up"


async def begun(service: LocalService, film: Path) -> None:
    """Returns when there is something of the index, and the job goes on."""
    source = await service.keep("local", pieces(film.read_bytes()), name=film.name)
    job = await service.submit("local", IndexRequest(source=source, video="long", recipe=SMALL))
    async with aclosing(service.job_events("local", job.id)) as events:
        async for event in events:
            if event.job.chunks_done:
                return
