"""Workers on a real Ray cluster of three nodes: jobs become videos, questions become answers, whoever dies."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter

import pytest

from tests.engines import SMALL, mosaic
from tests.ray_cluster import ray_cluster
from tests.services import all_of, ends, indexed, run
from x2l_cluster.cluster.routing import ranked
from x2l_cluster.engine import VideoEngine, find_calibration
from x2l_cluster.errors import AnswerLost, Overloaded
from x2l_cluster.messages import AnswerCompleted, AnswerFailed, JobState
from x2l_cluster.models import load_model
from x2l_cluster.service import Ask, IndexRequest
from x2l_cluster.types import IndexStatus

ME = "me"
QUESTION = "What code is shown with the red star?"
LEASE_S = 4.0


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    return [mosaic(folder / f"film{n}.mp4", 12 + 4 * n, seed=n) for n in range(3)]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """A cluster with two workers that index and two that answer, and a service in front that does neither."""
    from ray import serve

    from x2l_cluster.cluster import Fleet, Place, answerer, front

    place = Place(store=f"disk:{tmp_path_factory.mktemp('store')}", device="cpu")
    with ray_cluster(workers=2) as cluster:
        prefill = Fleet(place.store, {"store": place.store, "device": "cpu", "lease_s": LEASE_S}, num_cpus=1)
        prefill.start(2)
        chosen = {"store": place.store, "device": "cpu"}
        app = answerer(chosen, num_replicas=2, ray_actor_options={"num_cpus": 1})
        serve.run(app, name="answerer", route_prefix=None)
        with front(place) as service:
            yield cluster, prefill, service


def test_jobs_are_done_by_actors_and_answered_by_replicas_as_by_one_engine(fleet, films):
    _, _, service = fleet
    engine = alone_on(service)

    async def work():
        jobs = await asyncio.gather(*[indexed(service, ME, film, video=f"v{n}") for n, film in enumerate(films)])
        asks = [Ask(question=QUESTION, videos=(f"v{n % 3}",), max_tokens=8, detail="k=2") for n in range(24)]
        return jobs, await asyncio.gather(*[all_of(service.answers(ME, ask)) for ask in asks])

    jobs, streams = run(work())
    assert [job.state for job in jobs] == [JobState.READY] * 3
    texts = [[end.text for end in ends(events).values()] for events in streams]
    alone = [engine.ask(f"v{n}", QUESTION, tenant=ME, detail="k=2").text for n in range(3)]
    assert texts == [[alone[n % 3]] for n in range(24)]


def test_a_killed_prefill_worker_loses_no_job_and_no_sealed_chunk(fleet, tmp_path):
    import ray

    _, prefill, service = fleet
    film = mosaic(tmp_path / "long.mp4", 80, seed=9)

    async def work():
        source = await service.keep(ME, _pieces(film), name="long.mp4")
        job = await service.submit(ME, IndexRequest(source=source, video="long", recipe=SMALL))
        while (await service.job(ME, job.id)).chunks_done < 3:
            await asyncio.sleep(0.05)
        names, _ = prefill.names()
        told = await asyncio.to_thread(ray.get, [prefill.worker(name).look.remote() for name in names])
        (busy,) = (worker for worker in told if worker.busy)
        os.kill(busy.pid, signal.SIGKILL)
        sealed = (await service.chunks(ME, "long"))[:3]
        done = await service.job(ME, job.id, wait_s=90.0)
        return job.id, done, sealed, await service.chunks(ME, "long"), await all_of(_events(service, job.id))

    _, done, sealed, chunks, events = run(work())
    assert done.state is JobState.READY and done.attempts == 2
    assert list(chunks[:3]) == list(sealed) and len(chunks) == 20
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    manifest = service.stores.manifest(ME, "long")
    epochs = [row.blocks["l"].epoch for row in manifest.chunks]
    assert epochs[0] < epochs[-1] and epochs == sorted(epochs)
    assert manifest.status is IndexStatus.READY


def test_a_killed_replica_fails_its_answers_with_a_problem_to_try_again_on_and_is_replaced(fleet, films):
    _, _, service = fleet

    async def work():
        await indexed(service, ME, films[0], video="v0")
        running = [asyncio.create_task(all_of(service.answers(ME, _long("v0")))) for _ in range(6)]
        for pid in await asyncio.to_thread(_replica_pids):
            os.kill(pid, signal.SIGKILL)
        told = Counter()
        for events in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(events, Overloaded):  # nobody was left to take it on
                told[events.code] += 1
                continue
            for end in ends(events).values():
                told["whole" if isinstance(end, AnswerCompleted) else end.problem.code] += 1
        for _ in range(60):
            try:
                again = next(iter(ends(await all_of(service.answers(ME, _long("v0")))).values()))
            except Overloaded:  # nobody has started yet
                continue
            if isinstance(again, AnswerCompleted):
                return told, again
            assert again.problem.retryable
            await asyncio.sleep(0.5)
        return told, again

    told, again = run(work())
    assert set(told) <= {"whole", AnswerLost.code, Overloaded.code} and sum(told.values()) == 6
    assert isinstance(again, AnswerCompleted) and not isinstance(again, AnswerFailed)


def test_each_video_has_its_own_order_of_replicas_and_a_lost_one_moves_only_its_own():
    names = [f"replica-{n}" for n in range(5)]
    videos = [f"me/v{n}" for n in range(400)]
    first = {video: ranked(video, names)[0] for video in videos}
    assert min(Counter(first.values()).values()) > 40
    left = [name for name in names if name != "replica-2"]
    moved = [video for video in videos if ranked(video, left)[0] != first[video]]
    assert moved == [video for video in videos if first[video] == "replica-2"]


def alone_on(service):
    """An engine of this process over the same stores."""
    lm = load_model("reference", device="cpu")
    return VideoEngine(lm, service.stores, calibration=find_calibration("reference", lm))


def _long(video):
    return Ask(question=QUESTION, videos=(video,), max_tokens=64, detail="fine")


async def _pieces(film):
    yield film.read_bytes()


async def _events(service, job):
    async for event in service.job_events(ME, job):
        yield event


def _replica_pids():
    """Of both replicas."""
    from ray import serve

    handle = serve.get_app_handle("answerer")
    return {handle.pid.remote(affinity=f"v{n}").result() for n in range(16)}
