"""Recordings that grow, as jobs: asked about meanwhile, cancelled, refused, from a path that goes on growing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines import SMALL, engine, files, mosaic
from tests.growing import cut, recording
from tests.integration.test_service_jobs import Held, held
from tests.services import END_S, all_of, ends, indexed, local_service, pieces, run
from x2l_cluster.errors import IdempotencyConflict, InvalidInput, UnknownVideo
from x2l_cluster.messages import AnswerCompleted, AnswerPlan, Job, JobState
from x2l_cluster.service import Ask, IndexRequest, Service
from x2l_cluster.service.local import LocalService
from x2l_cluster.types import IndexStatus, Manifest

QUESTION = "What is it?"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return recording(tmp_path_factory.mktemp("recording"), 20)


@pytest.fixture(scope="module")
def at_once(whole) -> Manifest:
    with engine(lm=held()) as x2l:
        return x2l.index(whole, **SMALL)


@pytest.fixture
def lm() -> Held:
    return held()


@pytest.fixture
def service(lm, whole, tmp_path) -> Iterator[LocalService]:
    with local_service(f"disk:{tmp_path}/store", lm=lm, roots=(tmp_path, whole.parent)) as made:
        yield made
        if hasattr(lm, "go"):
            lm.go.set()


def same_payloads(one: Manifest, other: Manifest) -> bool:
    def sums(manifest: Manifest) -> list[tuple]:
        return [(row.span, {kind: ref.checksum for kind, ref in row.blocks.items()}) for row in manifest.chunks]

    return sums(one) == sums(other)


async def appended(service: Service, video: str, **request) -> Job:
    return await service.submit("me", IndexRequest(video=video, append=True, **request))


async def uploaded(service: Service, film: Path):
    return await service.keep("me", pieces(film.read_bytes()), name=film.name)


def test_a_recording_is_asked_about_while_it_grows_and_says_how_far_it_reaches(service, lm, whole, at_once):
    async def body() -> None:
        job = await indexed(service, "me", cut(whole, 0.5), video="cam")
        before = await service.video("me", "cam")
        text = await asked(before)
        lm.hold(1)  # the chunk after the one that is made again
        growing = await appended(service, "cam", source=await uploaded(service, whole))
        assert await asyncio.to_thread(lm.reached.wait, END_S)
        async for event in service.job_events("me", growing.id):
            if event.job.chunks_done >= before.chunks:
                break
        video = await service.video("me", "cam")
        assert (video.status, video.chunks) == (IndexStatus.GROWING, before.chunks)
        assert before.covered.end_s < video.covered.end_s < video.duration_s
        await asked(video)
        assert await service.video("me", "cam") != before
        lm.go.set()
        ended = await service.job("me", growing.id, wait_s=END_S)
        assert (ended.state, ended.video, ended.chunks) == (JobState.READY, "cam", len(at_once.chunks))
        assert job.id != growing.id
        now = await service.video("me", "cam")
        assert (now.status, now.covered, now.source_bytes) == (
            IndexStatus.READY,
            at_once.span,
            whole.stat().st_size,
        )
        assert same_payloads(service.engine.manifest("cam", tenant="me"), at_once)
        assert text is not None

    async def asked(video) -> str:
        events = await all_of(service.answers("me", Ask(question=QUESTION, videos=("cam",), max_tokens=4)))
        plan = next(event for event in events if isinstance(event, AnswerPlan))
        (end,) = ends(events).values()
        assert isinstance(end, AnswerCompleted) and end.answer and not end.degraded
        assert plan.covered == end.answer.covered == video.covered
        return end.text

    run(body())


def test_a_cancelled_append_stays_as_far_as_it_came_and_is_gone_on_with(service, lm, whole, at_once):
    async def body() -> None:
        await indexed(service, "me", cut(whole, 0.5), video="cam")
        lm.hold(2)
        job = await appended(service, "cam", source=await uploaded(service, whole))
        assert await asyncio.to_thread(lm.reached.wait, END_S)
        assert (await service.cancel("me", job.id)).cancelling
        lm.go.set()
        assert (await service.job("me", job.id, wait_s=END_S)).state is JobState.CANCELLED
        assert (await service.video("me", "cam")).status is IndexStatus.GROWING
        await service.retry("me", job.id)
        assert (await service.job("me", job.id, wait_s=END_S)).state is JobState.READY
        assert same_payloads(service.engine.manifest("cam", tenant="me"), at_once)

    run(body())


def test_the_same_path_is_appended_again_and_again_while_it_grows(service, whole, at_once, tmp_path):
    """Each time under a key of its own; the same key is the same job, and for another video a conflict."""
    path = tmp_path / "recording.ts"
    data = whole.read_bytes()

    async def body() -> None:
        path.write_bytes(data[: len(data) // 3])
        first = await service.submit("me", IndexRequest(path=str(path), video="cam", recipe=SMALL))
        assert (await service.job("me", first.id, wait_s=END_S)).state is JobState.READY
        for part in (2, 3):
            path.write_bytes(data[: len(data) * part // 3])
            job = await appended(service, "cam", path=str(path), idempotency_key=f"part {part}")
            again = await appended(service, "cam", path=str(path), idempotency_key=f"part {part}")
            assert again.id == job.id
            assert (await service.job("me", job.id, wait_s=END_S)).state is JobState.READY
        assert same_payloads(service.engine.manifest("cam", tenant="me"), at_once)
        again = await appended(service, "cam", path=str(path))
        assert (await service.job("me", again.id, wait_s=END_S)).chunks_done == 0, "nothing new is no work"
        with pytest.raises(IdempotencyConflict):
            await service.submit("me", IndexRequest(path=str(path), recipe=SMALL, idempotency_key="part 3"))

    run(body())
    (source,) = files(tmp_path / "store" / "sources")
    assert source == f"me/{at_once.source.id}"


def test_a_file_that_is_no_continuation_fails_its_job_and_is_not_kept(service, whole, tmp_path):
    async def body() -> None:
        await indexed(service, "me", cut(whole, 0.5), video="cam")
        before = await service.video("me", "cam")
        other = recording(tmp_path, 12, seed=5)
        job = await appended(service, "cam", source=await uploaded(service, other))
        ended = await service.job("me", job.id, wait_s=END_S)
        assert (ended.state, ended.problem.code, ended.attempts) == (JobState.FAILED, "not_a_continuation", 1)
        assert await service.video("me", "cam") == before

    run(body())
    service.close()  # a file is let go of a moment after its job has failed
    assert len(files(tmp_path / "store" / "sources")) == 1


def test_what_cannot_be_appended_to_is_refused_at_once_and_leaves_nothing(service, whole, tmp_path):
    async def body() -> None:
        with pytest.raises(UnknownVideo):
            await appended(service, "nobody", source=await uploaded(service, whole))
        spread = SMALL | {"sampling": {"count": 5}}
        job = await service.submit("me", IndexRequest(path=str(whole), video="spread", recipe=spread))
        assert (await service.job("me", job.id, wait_s=END_S)).state is JobState.READY
        with pytest.raises(InvalidInput, match="instead of a count"):
            await appended(service, "spread", source=await uploaded(service, mosaic(tmp_path / "m.mp4", 3)))

    run(body())
    with pytest.raises(InvalidInput, match="under the recipe it has"):
        IndexRequest(path="/x", append=True)
    with pytest.raises(InvalidInput, match="under the recipe it has"):
        IndexRequest(path="/x", video="v", append=True, recipe={"chunk_frames": 2})
    assert len(files(tmp_path / "store" / "sources")) == 1
