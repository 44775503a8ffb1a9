"""Indexing anew while the old index serves: by the engine, and as a job of a service."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines import SMALL, calibration, engine, mosaic
from tests.services import END_S, all_of, ends, indexed, local_service, run
from tests.tiny import qwen3_vl
from x2l_cluster.engine import Generation, VideoEngine
from x2l_cluster.errors import Cancelled, InvalidInput, ManifestConflict, SourceMissing, UnknownVideo
from x2l_cluster.messages import AnswerCompleted, JobState
from x2l_cluster.service import Ask, IndexRequest
from x2l_cluster.service.intake import repair
from x2l_cluster.service.local import LocalService
from x2l_cluster.state.tenants import Quotas
from x2l_cluster.types import LAYOUT_VERSION, IndexStatus, Manifest, Sampling

QUESTION = "What code is shown with the red star?"
WRITE = Generation(max_tokens=6, ignore_stop_ids=True)
ANEW = SMALL | {"chunk_frames": 6}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mosaic(tmp_path_factory.mktemp("film") / "film.mp4", 24)


@pytest.fixture(params=["memory", "disk", "server"])
def x2l(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VideoEngine]:
    server = request.getfixturevalue("empty_valkey") if request.param == "server" else ""
    places = {"memory": "memory:", "disk": f"disk:{tmp_path}", "server": f"tiers:memory:|{server}|disk:{tmp_path}"}
    with engine(places[request.param]) as made:
        yield made


def only(x2l: VideoEngine, manifest: Manifest, tenant: str = "local") -> bool:
    """Whether nothing of the video is left but this index."""
    kept = [record.recipe.digest for record in x2l.videos(tenant=tenant) if record.video == manifest.video]
    held = set(x2l.stores.kv.keys(tenant, manifest.video))
    now = x2l.manifest(manifest.video, tenant=tenant)
    return kept == [manifest.recipe.digest] and held == now.named and now.recipe == manifest.recipe


def test_the_old_index_answers_until_the_new_one_is_ready_and_then_is_gone(x2l: VideoEngine, film: Path) -> None:
    old = x2l.index(film, video="film", **SMALL)
    before = x2l.ask("film", QUESTION, detail="k=2", generation=WRITE)
    seen: list[tuple[str, str]] = []

    def ask(event: object) -> None:
        answer = x2l.ask("film", QUESTION, detail="k=2", generation=WRITE)
        seen.append((x2l.manifest("film").recipe.digest, answer.text))

    new = x2l.reindex("film", progress=ask, **ANEW)
    assert new.status is IndexStatus.READY and new.recipe.chunk_frames == 6
    assert seen == [(old.recipe.digest, before.text)] * len(new.chunks)
    assert only(x2l, new)
    assert not x2l.ask("film", QUESTION, detail="k=2", generation=WRITE).degraded
    assert new.source is not None and x2l.stores.sources.exists("local", new.source)
    with engine() as fresh:
        other = fresh.index(film, video="film", **ANEW)
        assert x2l.ask("film", QUESTION, detail="k=2", generation=WRITE).text == (
            fresh.ask(other, QUESTION, detail="k=2", generation=WRITE).text
        )


def test_what_was_chosen_for_the_video_stays_and_the_rest_is_as_it_is_made_now(x2l: VideoEngine, film: Path) -> None:
    old = x2l.index(film, sampling=Sampling(fps=0.5), layout=LAYOUT_VERSION - 1, **SMALL)
    new = x2l.reindex(old.video, height=32, width=32)
    assert new.recipe == x2l.lm.recipe(sampling=Sampling(fps=0.5), height=32, width=32)
    assert new.recipe.layout == LAYOUT_VERSION
    assert only(x2l, new)


def test_interrupted_the_old_one_goes_on_and_the_next_run_too(x2l: VideoEngine, film: Path) -> None:
    old = x2l.index(film, video="film", **SMALL)
    cancel = threading.Event()
    with pytest.raises(Cancelled):
        x2l.reindex("film", progress=lambda e: cancel.set() if e.chunk == 1 else None, cancel=cancel, **ANEW)
    assert x2l.manifest("film").recipe == old.recipe
    assert not x2l.ask("film", QUESTION, detail="fine", generation=WRITE).degraded
    resumed: list[bool] = []
    new = x2l.reindex("film", progress=lambda e: resumed.append(e.resumed), **ANEW)
    assert resumed[:2] == [True, True] and not resumed[-1]
    assert only(x2l, new)


def test_an_index_that_is_as_it_should_be_is_no_new_work(x2l: VideoEngine, film: Path) -> None:
    old = x2l.index(film, video="film", **SMALL)
    seen: list[object] = []
    assert x2l.reindex("film", progress=seen.append, **SMALL) == old
    assert seen == [] and only(x2l, old)


def test_what_cannot_be_indexed_anew_says_why_and_stays(x2l: VideoEngine, film: Path) -> None:
    old = x2l.index(film, video="film", **SMALL)
    with pytest.raises(UnknownVideo):
        x2l.reindex("nobody")
    running = x2l.stores.state.begin("local", "film", x2l.lm.recipe(**ANEW), old.info, old.source)
    with pytest.raises(ManifestConflict):
        x2l.stores.supersede(running)
    x2l.stores.state.delete("local", "film", running.recipe.digest)
    assert old.source is not None
    x2l.stores.sources.delete("local", old.source)
    with pytest.raises(SourceMissing):
        x2l.reindex("film", **ANEW)
    assert only(x2l, old)


def test_another_model_takes_over(film: Path, tmp_path: Path) -> None:
    with engine(f"disk:{tmp_path}") as x2l:
        old = x2l.index(film, video="film", **SMALL)
    lm = qwen3_vl(1)
    with engine(f"disk:{tmp_path}", lm=lm, calibration=calibration(lm)) as x2l:
        new = x2l.reindex("film", **SMALL)
        assert new.recipe.weights == "tiny1" != old.recipe.weights
        assert only(x2l, new)


# --- as a job -------------------------------------------------------------------------------------------------------


@pytest.fixture
def service() -> Iterator[LocalService]:
    with local_service(grace_s=0.0) as made:
        yield made


def test_a_job_does_it_and_a_question_meanwhile_is_answered(service: LocalService, film: Path) -> None:
    async def body() -> None:
        await indexed(service, "me", film, video="film")
        job = await service.submit("me", IndexRequest(reindex="film", recipe=ANEW))
        asked = Ask(question=QUESTION, videos=("film",), max_tokens=4)
        while not (now := await service.job("me", job.id)).state.final:
            (end,) = ends(await all_of(service.answers("me", asked))).values()
            assert isinstance(end, AnswerCompleted), end
        assert now.state is JobState.READY and now.video == "film"
        (video,) = await service.videos("me")
        new = service.engine.manifest("film", tenant="me")
        assert (video.recipe, new.recipe.chunk_frames) == (new.recipe.digest, 6)
        assert only(service.engine, new, "me")
        again = await service.submit("me", IndexRequest(reindex="film", recipe=ANEW))
        assert (await service.job("me", again.id, wait_s=END_S)).state is JobState.READY

    run(body())


def test_a_job_that_died_before_the_old_blobs_were_gone_is_done_again(service: LocalService, film: Path) -> None:
    async def body() -> None:
        await indexed(service, "me", film, video="film")
        source = service.engine.manifest("film", tenant="me").source
        assert source is not None
        new = service.engine.index_source(source, video="film", tenant="me", **ANEW)
        service.engine.replaced(new)  # and then it died
        assert not only(service.engine, new, "me")
        job = await service.submit("me", IndexRequest(reindex="film", recipe=ANEW))
        assert (await service.job("me", job.id, wait_s=END_S)).state is JobState.READY
        assert only(service.engine, new, "me")

    run(body())


def test_what_cannot_be_is_refused_before_it_is_queued(service: LocalService, film: Path) -> None:
    async def body() -> None:
        await indexed(service, "me", film, video="film")
        for tenant, video in (("me", "nobody"), ("you", "film"), ("me", "../film")):
            with pytest.raises(UnknownVideo):
                await service.submit(tenant, IndexRequest(reindex=video))
        source = service.engine.manifest("film", tenant="me").source
        assert source is not None
        service.engine.stores.sources.delete("me", source)
        with pytest.raises(SourceMissing):
            await service.submit("me", IndexRequest(reindex="film"))
        assert len(await service.jobs("me")) == 1

    run(body())
    for wrong in ({"path": "/film.mp4"}, {"repair": True}, {"video": "other"}):
        with pytest.raises(InvalidInput):
            IndexRequest(reindex="film", **wrong)  # type: ignore[arg-type]


def test_what_is_replaced_does_not_count_against_the_quota(service: LocalService, film: Path) -> None:
    async def body() -> None:
        await indexed(service, "me", film, video="film")
        held = service.engine.manifest("film", tenant="me").stored_bytes
        service.state.tenants.create("me", Quotas(kv_bytes=held * 3 // 2))
        job = await service.submit("me", IndexRequest(reindex="film", recipe=ANEW))
        assert (await service.job("me", job.id, wait_s=END_S)).state is JobState.READY

    run(body())


def test_an_index_that_was_replaced_is_not_repaired_back_into_being(service: LocalService, film: Path) -> None:
    async def body() -> None:
        await indexed(service, "me", film, video="film")
        old = service.engine.manifest("film", tenant="me")
        job = await service.submit("me", IndexRequest(reindex="film", recipe=ANEW))
        await service.job("me", job.id, wait_s=END_S)
        jobs = await service.jobs("me")
        repair(service.stores, service.state.jobs, old)  # whoever still held it found its blobs gone
        assert await service.jobs("me") == jobs

    run(body())
