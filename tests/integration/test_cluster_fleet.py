"""Who looks after prefill workers, on a real Ray cluster: as many as there is work, whoever dies."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.engines import SMALL, mosaic
from tests.ray_cluster import ray_cluster
from tests.services import all_of, pieces, run
from x2l_cluster.errors import InvalidInput, SourceRefused
from x2l_cluster.messages import JobState
from x2l_cluster.service import IndexRequest
from x2l_cluster.service.local import LocalOptions, LocalService

ME = "me"
WITHIN_S = 100.0
RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
CHOSEN = {"device": "cpu", "lease_s": 10.0}


def until(what: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    """What the first call returns that is true."""
    end_s = time.monotonic() + within_s
    while not (found := what()):
        assert time.monotonic() < end_s, f"{what} is not so after {within_s:g} s"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster(workers=2, cpus=8, prefill=3, gateway=1) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return f"disk:{tmp_path_factory.mktemp('store')}"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder that jobs may read from."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def service(cluster, store, root):
    """Takes jobs and does none."""
    from x2l_cluster.cluster import Place

    options = LocalOptions(indexers=0, drain_s=1.0, roots=(root,))
    with LocalService.over(
        Place(store=store, device="cpu").engine(), store=store, model="reference", options=options
    ) as service:
        yield service


@pytest.fixture(scope="module")
def fleet(service, store, root):
    """One for all tests: a worker takes seconds to start, and does not mind who looks after it."""
    from x2l_cluster.cluster import Fleet

    chosen = CHOSEN | {"store": store, "roots": [str(root)], "fetch_allow": ["127.0.0.1"]}
    return Fleet(store, chosen, num_cpus=1, resources={"prefill": 1})


@contextmanager
def looked_after(service, fleet, *, least=0, most=4, idle_s=0.0, silent_s=60.0):
    """A supervisor that at the end is gone as if it had been killed: nobody is told."""
    from x2l_cluster.cluster import Supervisor

    supervisor = Supervisor(fleet, service.state.jobs, least=least, most=most, idle_s=idle_s, silent_s=silent_s)
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()


def present(supervisor, count):
    """How the fleet stands as soon as so many answer and all others have gone."""
    return until(lambda: (s := supervisor.standing).answering == s.present == count and s)


def pids(fleet):
    import ray

    names, _ = fleet.names()
    return {name: ray.get(fleet.worker(name).look.remote()).pid for name in names}


async def submitted(service, film: Path, **request):
    source = await service.keep(ME, pieces(film.read_bytes()), name=film.name)
    return await service.submit(ME, IndexRequest(source=source, recipe=SMALL, **request))


def films(folder: Path, count: int, seconds: int) -> list[Path]:
    return [mosaic(folder / f"film{n}.mp4", seconds, seed=n) for n in range(count)]


def test_there_are_as_many_workers_as_jobs_and_then_as_few_as_may_be(service, fleet, tmp_path):
    async def work(supervisor):
        jobs = [await submitted(service, film) for film in films(tmp_path, 5, 24)]
        most = await asyncio.to_thread(until, lambda: supervisor.standing.present == 3 and supervisor.standing)
        return most, [await service.job(ME, job.id, wait_s=WITHIN_S) for job in jobs]

    with looked_after(service, fleet, least=1, most=3) as supervisor:
        most, done = run(work(supervisor))
        assert most.wanted == 3
        assert [(job.state, job.attempts) for job in done] == [(JobState.READY, 1)] * 5
        assert present(supervisor, 1).wanted == 1  # two at once were too many, and those without work left
        until(lambda: len(fleet.names()[0]) == 1)


def test_whoever_looks_after_them_next_finds_the_workers_that_are_there(service, fleet):
    with looked_after(service, fleet, least=1, most=1) as first:
        present(first, 1)
        before = pids(fleet)
    with looked_after(service, fleet, least=2, most=2) as second:
        present(second, 2)
        after = pids(fleet)
    assert len(after) == 2 and before.items() <= after.items()


def test_workers_read_and_fetch_from_where_their_settings_allow_it(service, fleet, root):
    film = mosaic(root / "film.mp4", 8, seed=30)
    other = mosaic(root / "other.mp4", 8, seed=31)
    handler = partial(SimpleHTTPRequestHandler, directory=str(root))

    async def work(port):
        requests = [
            IndexRequest(path=str(film), video="read", recipe=SMALL),
            IndexRequest(url=f"http://127.0.0.1:{port}/{other.name}", video="fetched", recipe=SMALL),
            IndexRequest(url=f"http://127.0.0.2:{port}/{other.name}", video="refused", recipe=SMALL),
        ]
        jobs = [await service.submit(ME, request) for request in requests]
        return [await service.job(ME, job.id, wait_s=WITHIN_S) for job in jobs]

    with looked_after(service, fleet, least=1, most=1), ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            read, fetched, refused = run(work(server.server_port))
        finally:
            server.shutdown()
            serving.join()
    assert (read.state, fetched.state) == (JobState.READY, JobState.READY)
    assert refused.state is JobState.FAILED and refused.problem.code == SourceRefused.code


def test_a_job_begins_at_once_when_a_worker_is_free_and_stops_within_a_chunk(
    service, fleet, tmp_path, record_testsuite_property
):
    shorts, long = films(tmp_path, 5, 4), mosaic(tmp_path / "long.mp4", 400, seed=20)

    async def begins(film):
        """Seconds from the return of submit to the first of a job's events that says it runs, by the queue's clock."""
        job = await submitted(service, film)
        await service.job(ME, job.id, wait_s=WITHIN_S)
        events = await all_of(service.job_events(ME, job.id))
        times = {event.name: event.job.updated_s for event in reversed(events)}
        return times["job.running"] - times["job.queued"]

    async def stops():
        job = await submitted(service, long)
        while (await service.job(ME, job.id)).chunks_done < 3:
            await asyncio.sleep(0.02)
        asked = await service.cancel(ME, job.id)
        return asked, await service.job(ME, job.id, wait_s=WITHIN_S)

    with looked_after(service, fleet, least=1, most=1) as supervisor:
        present(supervisor, 1)
        waits = [run(begins(film)) for film in shorts]
        asked, ended = run(stops())
    record_testsuite_property("begins_s", max(waits))
    assert max(waits) < 5.0  # 1 s is promised; a loaded machine gets more
    assert ended.state is JobState.CANCELLED
    record_testsuite_property("chunks_after_cancel", ended.chunks_done - asked.chunks_done)
    assert ended.chunks_done - asked.chunks_done <= 2
    assert ended.updated_s - asked.updated_s < 5.0


def test_a_worker_that_is_gone_for_good_is_replaced_and_its_job_goes_on(service, fleet, tmp_path):
    import ray

    film = mosaic(tmp_path / "long.mp4", 60, seed=7)

    async def work():
        job = await submitted(service, film, video="gone")
        while (await service.job(ME, job.id)).chunks_done < 2:
            await asyncio.sleep(0.05)
        (name,) = (await asyncio.to_thread(fleet.names))[0]
        ray.kill(fleet.worker(name), no_restart=True)
        return await service.job(ME, job.id, wait_s=WITHIN_S)

    with looked_after(service, fleet, least=1, most=1) as supervisor:
        present(supervisor, 1)
        before = pids(fleet)
        done = run(work())
        assert (done.state, done.attempts) == (JobState.READY, 2)
        present(supervisor, 1)
        assert set(pids(fleet).values()).isdisjoint(before.values())


def test_a_worker_that_hangs_is_replaced_and_its_job_goes_on(service, fleet, tmp_path):
    film = mosaic(tmp_path / "long.mp4", 60, seed=9)

    async def work():
        job = await submitted(service, film, video="hangs")
        while (await service.job(ME, job.id)).chunks_done < 2:
            await asyncio.sleep(0.05)
        (pid,) = (await asyncio.to_thread(pids, fleet)).values()
        os.kill(pid, signal.SIGSTOP)
        return pid, await service.job(ME, job.id, wait_s=WITHIN_S)

    with looked_after(service, fleet, least=1, most=1, silent_s=5.0) as supervisor:
        present(supervisor, 1)
        hung, done = run(work())
        assert (done.state, done.attempts) == (JobState.READY, 2)
        present(supervisor, 1)
        assert hung not in pids(fleet).values()
        until(lambda: not psutil.pid_exists(hung))


def test_workers_that_work_are_sent_home_at_their_next_chunk_and_others_take_their_place(
    service, store, fleet, tmp_path
):
    """The settings have changed: what was begun under the old ones goes on under the new ones."""
    from x2l_cluster.cluster import Fleet

    film = mosaic(tmp_path / "long.mp4", 200, seed=8)
    new = Fleet(store, CHOSEN | {"store": store, "decode_deadline_s": 29.0}, num_cpus=1, resources={"prefill": 1})

    async def work(old):
        job = await submitted(service, film, video="moves")
        while (await service.job(ME, job.id)).chunks_done < 2:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(old.stop)
        with looked_after(service, new, least=1, most=1) as supervisor:
            done = await service.job(ME, job.id, wait_s=WITHIN_S)
            await asyncio.to_thread(present, supervisor, 1)
        return done

    with looked_after(service, fleet, least=1, most=1) as old:
        present(old, 1)
        before = pids(fleet)
        done = run(work(old))
    assert (done.state, done.attempts) == (JobState.READY, 1)  # it was put back, which is no failed attempt
    rows = service.engine.manifest("moves", tenant=ME).chunks
    assert len({row.blocks["h"].epoch for row in rows}) == 2 and len(rows) == 50
    until(lambda: not fleet.names()[0])
    assert not set(pids(new)) & set(before)


def test_all_are_sent_home_when_there_is_to_be_no_service_any_more(service, store, fleet):
    from x2l_cluster.cluster import Fleet

    with looked_after(service, fleet, least=2, most=2) as supervisor:
        until(lambda: len(fleet.names()[0]) == 2)
        assert Fleet("disk:/another/service", {}).names() == ([], [])  # whose workers these are not
        supervisor.disband()
    until(lambda: fleet.names() == ([], []))


def test_a_worker_that_cannot_be_started_is_tried_again_a_while_later(service, store, caplog):
    from x2l_cluster.cluster import Fleet

    broken = Fleet(store, CHOSEN | {"store": store, "model": "/no/such/model"}, num_cpus=1)
    with looked_after(service, broken, least=1, most=1) as supervisor:
        failures = until(
            lambda: len(found := [r for r in caplog.records if "not be started" in r.message]) > 1 and found
        )
        assert supervisor.healthy and supervisor.standing.answering == 0
    assert "/no/such/model" in failures[0].message
    assert failures[1].created - failures[0].created > 2.0


def test_workers_nobody_asks_for_leave_once_there_is_no_work(service, store):
    from x2l_cluster.cluster import Fleet

    fleet = Fleet(store, CHOSEN | {"store": store}, alone_s=0.5, num_cpus=1)
    fleet.start(1)
    until(lambda: fleet.names()[0])
    until(lambda: not fleet.names()[0])


def test_the_application_looks_after_workers_and_sends_them_home_when_it_is_deleted(service, store, tmp_path):
    from ray import serve

    from services.indexer.main import app
    from x2l_cluster.cluster import Fleet

    chosen = CHOSEN | {"store": store, "prefill_min": 1, "prefill_max": 2}
    handle = serve.run(app(chosen), name="indexer", route_prefix=None)
    until(lambda: handle.standing.remote().result()["answering"] == 1)
    fleet = Fleet(store, {})
    (name,) = fleet.names()[1]
    film = mosaic(tmp_path / "film.mp4", 12, seed=3)

    async def indexed():
        job = await submitted(service, film)
        return await service.job(ME, job.id, wait_s=WITHIN_S)

    assert run(indexed()).state is JobState.READY
    pid = handle.pid.remote().result()
    before = pids_of(fleet, name)
    os.kill(pid, signal.SIGKILL)
    until(lambda: _other_pid(handle, pid))
    until(lambda: handle.standing.remote().result()["answering"] >= 1)
    assert pids_of(fleet, name) == before
    serve.delete("indexer")
    until(lambda: fleet.names() == ([], []))


def _said(caplog, words):
    return [record for record in caplog.records if words in record.message]


def pids_of(fleet, name):
    import ray

    return ray.get(fleet.worker(name).look.remote()).pid


def _other_pid(handle, pid):
    from ray.exceptions import RayError

    try:
        return handle.pid.remote().result() != pid
    except RayError:
        return False


def test_settings_that_are_none_are_named(cluster):
    from services.indexer.main import app

    with pytest.raises(InvalidInput, match="prefil_max"):
        app({"prefil_max": 3})
    with pytest.raises(InvalidInput, match="prefill_max"):
        app({"prefill_max": 0})


def test_a_worker_on_a_node_that_is_drained_ends_its_chunk_and_another_node_goes_on(cluster, service, fleet, tmp_path):
    """The last test: there is a node less afterwards."""
    import ray
    from ray.exceptions import RayError

    film = mosaic(tmp_path / "long.mp4", 200, seed=10)

    async def work():
        job = await submitted(service, film, video="drained")
        while (await service.job(ME, job.id)).chunks_done < 2:
            await asyncio.sleep(0.05)
        (name,) = (await asyncio.to_thread(fleet.names))[0]
        before = await asyncio.to_thread(ray.get, fleet.worker(name).look.remote())
        options = ["--address", cluster.address, "--node-id", before.node, "--deadline-remaining-seconds", "300"]
        options += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the pod goes"]
        drain = await asyncio.create_subprocess_exec(*RAY, "drain-node", *options)
        assert await drain.wait() == 0
        return before, await service.job(ME, job.id, wait_s=WITHIN_S)

    def elsewhere() -> bool:
        names, _ = fleet.names()
        with suppress(ValueError, RayError):  # it has just gone
            return bool(names) and ray.get(fleet.worker(names[0]).look.remote()).node != before.node
        return False

    with looked_after(service, fleet, least=1, most=1) as supervisor:
        present(supervisor, 1)
        before, done = run(work())
        until(elsewhere)
        supervisor.disband()
    assert (done.state, done.attempts) == (JobState.READY, 1)  # put back into line, which is no failed attempt
