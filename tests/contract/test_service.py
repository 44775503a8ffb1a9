"""What every :class:`~x2l_cluster.service.base.Service` does, wherever the work is done."""

from __future__ import annotations

from contextlib import AbstractContextManager, aclosing
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.engines import SMALL, calibration, mosaic
from tests.services import END_S, all_of, ends, indexed, local_service, pieces, run
from tests.tiny import checkpoint, qwen3_vl
from x2l_cluster.errors import (
    EmptyVideo,
    IdempotencyConflict,
    InvalidInput,
    InvalidRecipe,
    JobConflict,
    PathRefused,
    SourceMissing,
    SourceRefused,
    UnknownJob,
    UnknownSession,
    UnknownVideo,
)
from x2l_cluster.messages import (
    AnswerCompleted,
    AnswerCreated,
    AnswerDelta,
    AnswerEvidence,
    AnswerFailed,
    AnswerPlan,
    JobState,
)
from x2l_cluster.models import load_model
from x2l_cluster.service import Ask, EstimateRequest, IndexRequest, SearchRequest, Service
from x2l_cluster.types import Detail, IndexStatus, SourceRef

QUESTION = "What code is shown with the red star?"
ME, OTHER = "me", "other"


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    return [mosaic(folder / f"film{n}.mp4", 12 + 4 * n, seed=n) for n in range(2)]


@pytest.fixture(scope="module", params=["local", "ray"])
def service(request, films, tmp_path_factory) -> Service:
    """With ``v0`` and ``v1`` of ``me`` ready, and the folder of the films allowed."""
    of_kind = {"local": in_this_process, "ray": on_a_cluster}[request.param]
    with of_kind(films[0].parent, tmp_path_factory.mktemp(request.param)) as made:

        async def fill() -> None:
            for number, film in enumerate(films):
                job = await indexed(made, ME, film, video=f"v{number}")
                assert job.state is JobState.READY, job.problem

        run(fill())
        yield made


def in_this_process(films: Path, _: Path) -> AbstractContextManager[Service]:
    return local_service(lm=qwen3_vl(0), roots=(films,))


def on_a_cluster(films: Path, folder: Path) -> AbstractContextManager[Service]:
    from x2l_cluster.cluster.whole import on_ray

    model = checkpoint(folder / "tiny")
    calibration(load_model(model, device="cpu")).save(folder / "tiny" / "calibration.json")
    chosen = {"model": model, "store": f"disk:{folder / 'store'}", "roots": [str(films)], "device": "cpu"}
    return on_ray(chosen | {"prefill_min": 1, "prefill_max": 1})


# --- jobs -----------------------------------------------------------------------------------------------------------


def test_an_upload_becomes_a_video_and_its_job_tells_how_far_it_is(service, films):
    async def body() -> None:
        job = await indexed(service, "uploads", films[0])
        assert (job.state, job.chunks_done, job.chunks, job.attempts) == (JobState.READY, 3, 3, 1)
        assert job.covered_s == pytest.approx(12.0, abs=0.6)
        video = await service.video("uploads", job.video)
        assert (video.status, video.name, video.chunks) == (IndexStatus.READY, films[0].name, 3)
        assert video.source_bytes == films[0].stat().st_size
        assert video in await service.videos("uploads")

    run(body())


def test_events_of_a_job_come_once_each_and_end_with_a_final_state_also_when_resumed(service, films):
    async def body() -> None:
        job = await indexed(service, "events", films[0])
        events = [event async for event in service.job_events("events", job.id)]
        numbers = [event.number for event in events]
        assert numbers == list(range(1, len(events) + 1))
        names = [event.name for event in events]
        assert names[0] == "job.queued" and "job.progress" in names and names[-1] == "job.ready"
        for seen in (1, len(events) - 1):
            rest = [event async for event in service.job_events("events", job.id, after=seen)]
            assert rest == events[seen:]
        assert [event async for event in service.job_events("events", job.id, after=len(events))] == []

    run(body())


def test_a_path_under_an_allowed_root_is_read_and_no_other(service, films, tmp_path):
    async def body() -> None:
        job = await service.submit("paths", IndexRequest(path=str(films[0]), recipe=SMALL))
        assert (await service.job("paths", job.id, wait_s=END_S)).state is JobState.READY
        outside = [tmp_path / "no.mp4", films[0].parent / ".." / "no.mp4", "/etc/passwd", "~root/x", "a\0b"]
        for path in outside:
            with pytest.raises(PathRefused):
                await service.submit("paths", IndexRequest(path=str(path)))

    run(body())


def test_the_same_content_and_recipe_is_no_new_work(service, films):
    async def body() -> None:
        again = await indexed(service, ME, films[0])
        assert (again.state, again.video, again.chunks_done) == (JobState.READY, "v0", 0)

    run(body())


def test_the_same_idempotency_key_is_the_same_job_and_for_other_work_a_conflict(service, films):
    async def body() -> None:
        first, second = [
            await service.submit("keys", IndexRequest(path=str(films[0]), recipe=SMALL, idempotency_key="k"))
            for _ in range(2)
        ]
        assert first.id == second.id
        with pytest.raises(IdempotencyConflict):
            await service.submit("keys", IndexRequest(path=str(films[1]), recipe=SMALL, idempotency_key="k"))
        assert (await service.job("keys", first.id, wait_s=END_S)).state is JobState.READY

    run(body())


def test_a_bad_video_fails_its_job_says_why_and_nothing_else_is_hurt(service, films):
    async def body() -> None:
        for junk in (b"this is no video at all" * 50, b"\0" * 4096):
            source = await service.keep("junk", pieces(junk), name="junk.mp4")
            job = await service.submit("junk", IndexRequest(source=source, recipe=SMALL))
            job = await service.job("junk", job.id, wait_s=END_S)
            assert job.state is JobState.FAILED and job.problem.status == 422
        assert await service.videos("junk") == []
        assert (await indexed(service, "junk", films[0])).state is JobState.READY

    run(body())


def test_what_can_be_no_job_is_refused(service, films):
    async def body() -> None:
        source = await service.keep("refused", pieces(films[0].read_bytes()))
        with pytest.raises(InvalidRecipe):
            await service.submit("refused", IndexRequest(source=source, recipe={"no_such_field": 1}))
        with pytest.raises(SourceMissing):  # refused work leaves no source behind
            await service.submit("refused", IndexRequest(source=source))
        with pytest.raises(SourceMissing):
            await service.submit("refused", IndexRequest(source=SourceRef(id="0" * 64, name="x", size_bytes=1)))
        for url in ("file:///etc/passwd", "ftp://host/x.mp4", "http://", "http://u:p@host/x.mp4", "nonsense"):
            with pytest.raises(SourceRefused):
                await service.submit("refused", IndexRequest(url=url))
        with pytest.raises(EmptyVideo):
            await service.keep("refused", pieces(b""))
        assert await service.jobs("refused") == []

    run(body())


def test_a_url_to_a_private_place_fails_its_job(service):
    async def body() -> None:
        job = await service.submit("urls", IndexRequest(url="http://127.0.0.1:1/x.mp4", recipe=SMALL))
        job = await service.job("urls", job.id, wait_s=END_S)
        assert job.state is JobState.FAILED and job.problem.code == "source_refused"

    run(body())


def test_an_upload_that_breaks_off_leaves_nothing(service):
    class BrokenOff(Exception):
        pass

    async def broken():
        yield b"some bytes"
        raise BrokenOff

    async def body() -> None:
        with pytest.raises(BrokenOff):
            await service.keep("broken", broken())

    run(body())


def test_unknown_jobs_are_unknown_and_those_of_others_too(service):
    async def body() -> None:
        job = (await service.jobs(ME))[0]
        assert job.state is JobState.READY
        for tenant, id in ((ME, "job-none"), (OTHER, job.id)):
            with pytest.raises(UnknownJob):
                await service.job(tenant, id)
            with pytest.raises(UnknownJob):
                await service.cancel(tenant, id)
            with pytest.raises(UnknownJob):
                await service.retry(tenant, id)
            with pytest.raises(UnknownJob):
                await anext(aiter(service.job_events(tenant, id)))
        assert (await service.cancel(ME, job.id)).state is JobState.READY
        with pytest.raises(JobConflict):
            await service.retry(ME, job.id)

    run(body())


def test_a_video_is_indexed_anew_and_answers_all_the_while(service, films):
    async def body() -> None:
        before = await indexed(service, "anew", films[0], video="v")
        old = await service.video("anew", "v")
        job = await service.submit("anew", IndexRequest(reindex="v", recipe=SMALL | {"chunk_frames": 6}))
        assert job.id != before.id and job.video == "v"
        (end,) = ends(
            await all_of(service.answers("anew", Ask(question=QUESTION, videos=("v",), max_tokens=4)))
        ).values()
        assert isinstance(end, AnswerCompleted), end
        done = await service.job("anew", job.id, wait_s=END_S)
        assert done.state is JobState.READY, done
        (video,) = await service.videos("anew")
        assert video.recipe != old.recipe and video.chunks < old.chunks and video.status is IndexStatus.READY
        for tenant, name in (("anew", "none"), (ME, "v")):
            with pytest.raises(UnknownVideo):
                await service.submit(tenant, IndexRequest(reindex=name))

    run(body())


# --- videos ---------------------------------------------------------------------------------------------------------


def test_chunks_and_frames_of_a_video(service):
    async def body() -> None:
        video = await service.video(ME, "v0")
        chunks = await service.chunks(ME, "v0")
        assert [chunk.index for chunk in chunks] == list(range(video.chunks))
        assert chunks[-1].span.end_s == video.covered.end_s
        assert all(chunk.fine_bytes > chunk.coarse_bytes > 0 < chunk.score_bytes for chunk in chunks)
        for format in ("jpeg", "png"):
            picture, shown_s = await service.frame(ME, "v0", 3.2, format=format)
            image = Image.open(BytesIO(picture))
            assert (image.format, image.size) == (format.upper(), (video.width, video.height))
            assert shown_s == pytest.approx(3.0, abs=0.26)
        with pytest.raises(InvalidInput):
            await service.frame(ME, "v0", 3.2, format="bmp")

    run(body())


def test_deleting_frees_bytes_and_leaves_nothing(service, films):
    async def body() -> None:
        job = await indexed(service, "deleting", films[0])
        assert (await service.delete("deleting", job.video)).freed_bytes > 1000
        assert await service.videos("deleting") == []
        for call in (service.video, service.chunks, service.delete):
            with pytest.raises(UnknownVideo):
                await call("deleting", job.video)

    run(body())


@pytest.mark.parametrize("video", ["nothing", "v0", "../v0", "", "x" * 500])
def test_what_is_not_there_or_belongs_to_another_is_unknown(service, video):
    async def body() -> None:
        calls = [service.video, service.chunks, service.delete]
        for call in calls:
            with pytest.raises(UnknownVideo):
                await call(OTHER, video)
        with pytest.raises(UnknownVideo):
            await service.frame(OTHER, video, 1.0)
        with pytest.raises(UnknownVideo):
            await service.open_session(OTHER, [video])
        with pytest.raises(UnknownVideo):
            await service.search(OTHER, SearchRequest(question=QUESTION, videos=(video,)))
        assert await service.videos(OTHER) == []

    run(body())


def test_an_estimate_comes_close_to_what_an_index_takes(service):
    async def body() -> None:
        video, chunks = await service.video(ME, "v1"), await service.chunks(ME, "v1")
        request = EstimateRequest(duration_s=video.duration_s, width=video.width, height=video.height, recipe=SMALL)
        estimate = await service.estimate(ME, request)
        assert estimate.chunks == len(chunks)
        assert estimate.fine_bytes == pytest.approx(sum(chunk.fine_bytes for chunk in chunks), rel=0.1)
        assert estimate.coarse_bytes == pytest.approx(sum(chunk.coarse_bytes for chunk in chunks), rel=0.1)
        assert estimate.score_bytes == pytest.approx(sum(chunk.score_bytes for chunk in chunks), rel=0.1)
        assert estimate.tokens == pytest.approx(sum(chunk.full_entries for chunk in chunks), rel=0.1)
        assert sum(estimate.tiers.values()) == pytest.approx(
            estimate.fine_bytes + estimate.coarse_bytes + estimate.score_bytes, rel=0.01
        )
        assert estimate.device_bytes > 0
        with pytest.raises(InvalidRecipe):
            await service.estimate(ME, EstimateRequest(duration_s=1.0, recipe={"sampling": {"no": 1}}))

    run(body())


# --- questions ------------------------------------------------------------------------------------------------------


def test_an_answer_streams_plan_text_and_evidence(service):
    async def body() -> None:
        ask = Ask(question=QUESTION, videos=("v0",), detail=Detail(mode="k", k=1), max_tokens=12)
        events = await all_of(service.answers(ME, ask))
        created, plan, *deltas, evidence, completed = events
        assert isinstance(created, AnswerCreated) and [part.video for part in created.parts] == ["v0"]
        assert isinstance(plan, AnswerPlan) and len(plan.plan.fine) == 1
        assert plan.covered == (await service.video(ME, "v0")).covered
        assert all(isinstance(delta, AnswerDelta) for delta in deltas)
        assert isinstance(evidence, AnswerEvidence) and len(evidence.evidence) == 1
        assert isinstance(completed, AnswerCompleted) and not completed.degraded
        assert "".join(delta.text for delta in deltas) == completed.text == completed.answer.text
        assert {event.part for event in events[1:]} == {created.parts[0].id}

    run(body())


def test_one_question_over_many_videos_is_a_part_each_and_each_fails_alone(service):
    async def body() -> None:
        ask = Ask(question=QUESTION, videos=("v0", "gone", "v1"), max_tokens=8, synthesis=True)
        events = await all_of(service.answers(ME, ask))
        parts = events[0].parts
        assert [part.video for part in parts] == ["v0", "gone", "v1", None]
        ended = ends(events)
        assert [type(ended[part.id]) for part in parts] == [
            AnswerCompleted, AnswerFailed, AnswerCompleted, AnswerCompleted,
        ]  # fmt: skip
        assert ended[parts[1].id].problem.code == "unknown_video"
        closing = ended[parts[3].id]
        assert closing.answer is None
        deltas = "".join(e.text for e in events if isinstance(e, AnswerDelta) and e.part == parts[3].id)
        assert deltas == closing.text
        first_closing = next(n for n, e in enumerate(events) if getattr(e, "part", None) == parts[3].id)
        assert all(events.index(ended[part.id]) < first_closing for part in parts[:3])

    run(body())


def test_a_closing_answer_of_nothing_fails(service):
    async def body() -> None:
        events = await all_of(service.answers(ME, Ask(question=QUESTION, videos=("gone",), synthesis=True)))
        assert [type(end) for end in ends(events).values()] == [AnswerFailed, AnswerFailed]

    run(body())


def test_the_answers_of_two_askers_at_once_are_those_of_one(service):
    async def answered(question: str) -> str:
        events = await all_of(service.answers(ME, Ask(question=question, videos=("v0",), max_tokens=8)))
        return next(iter(ends(events).values())).text

    async def body() -> None:
        import asyncio

        questions = [f"What is shown at second {n}?" for n in range(6)]
        together = await asyncio.gather(*(answered(question) for question in questions))
        assert together == [await answered(question) for question in questions]

    run(body())


def test_what_cannot_be_asked_is_refused_before_anything_begins(service):
    async def body() -> None:
        for ask, error in (
            (Ask(question=QUESTION, session="session-none"), UnknownSession),
            (Ask(question=QUESTION, videos=("v0",), scorer="none"), InvalidInput),
        ):
            with pytest.raises(error):
                await anext(aiter(service.answers(ME, ask)))

    run(body())


def test_closing_an_answer_early_stops_it(service):
    async def body() -> None:
        ask = Ask(question=QUESTION, videos=("v0", "v1"), max_tokens=2000)
        async with aclosing(service.answers(ME, ask)) as events:
            async for event in events:
                if isinstance(event, AnswerDelta):
                    break
        again = await all_of(service.answers(ME, Ask(question=QUESTION, videos=("v0",), max_tokens=2)))
        assert isinstance(again[-1], AnswerCompleted)

    run(body())


def test_a_session_remembers_its_turns_and_answers_in_their_light(service):
    async def body() -> None:
        session = await service.open_session(ME, ["v0", "v1"])
        assert session.turns == () and session.videos == ("v0", "v1")
        texts = []
        for _ in range(2):
            events = await all_of(service.answers(ME, Ask(question=QUESTION, session=session.id, max_tokens=8)))
            assert [part.video for part in events[0].parts] == ["v0", "v1"]
            texts.append([end.text for end in ends(events).values()])
        turns = (await service.session(ME, session.id)).turns
        assert [turn.question for turn in turns] == [QUESTION, QUESTION]
        assert [sorted(turn.answers.values()) for turn in turns] == [sorted(text) for text in texts]
        alone = Ask(question=QUESTION, videos=("v0",), max_tokens=8, history=((QUESTION, turns[0].answers["v0"]),))
        (with_history,) = ends(await all_of(service.answers(ME, alone))).values()
        assert with_history.text == turns[1].answers["v0"]
        for tenant, id in ((OTHER, session.id), (ME, "session-none"), (ME, "../x")):
            with pytest.raises(UnknownSession):
                await service.session(tenant, id)
        await service.close_session(ME, session.id)
        with pytest.raises(UnknownSession):
            await service.close_session(ME, session.id)

    run(body())


def test_search_ranks_the_moments_of_all_videos_together(service):
    async def body() -> None:
        found = await service.search(ME, SearchRequest(question=QUESTION, limit=100))
        chunks = {(v, c.index): c.span for v in ("v0", "v1") for c in await service.chunks(ME, v)}
        assert {(m.video, m.chunk): m.span for m in found.moments} == chunks
        scores = [moment.score for moment in found.moments]
        assert scores == sorted(scores, reverse=True)
        assert (found.searched, found.skipped) == (2, {})
        best = await service.search(ME, SearchRequest(question=QUESTION, limit=2))
        assert best.moments == found.moments[:2]
        one = await service.search(ME, SearchRequest(question=QUESTION, videos=("v1",), limit=100))
        assert {moment.video for moment in one.moments} == {"v1"}
        assert (await service.search(OTHER, SearchRequest(question=QUESTION))).moments == ()

    run(body())


# --- the service itself ---------------------------------------------------------------------------------------------


def test_it_says_what_it_is_and_that_it_works(service):
    async def body() -> None:
        ready = await service.ready()
        assert (ready.model_loaded, ready.answering, ready.indexing, ready.degraded) == (True, True, True, ())
        (card,) = await service.models()
        assert Path(card.id).name == "tiny" and card.weights

    run(body())
