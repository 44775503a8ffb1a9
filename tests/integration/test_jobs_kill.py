"""kill -9 of those who submit and those who work, in the middle of any step: no accepted job is lost or done twice."""

from __future__ import annotations

import random
import select
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import pytest

from tests.wire import free_port, valkey_cluster
from x2l_cluster.errors import StoreUnavailable
from x2l_cluster.kv.embedded import EmbeddedValkey
from x2l_cluster.messages import JobState
from x2l_cluster.state.moves import Policy
from x2l_cluster.state.open import State

TTL_S = 600.0
SUBMITTER = """
import sys
from x2l_cluster.state.open import State

with State.open(sys.argv[1]) as state:
    n = 0
    while True:
        print(state.jobs.submit(f"t{n % 3}", {"n": n}, key=f"{sys.argv[2]}-{n}").id, flush=True)
        n += 1
"""
WORKER = """
import sys
from x2l_cluster.state.open import State

with State.open(sys.argv[1]) as state:
    while True:
        held = state.jobs.lease(sys.argv[2], ttl_s=600.0, wait_s=60.0)
        print("leased", flush=True)
        for chunk in range(held.job.chunks_done, 3):
            state.jobs.progress(held, chunks_done=chunk + 1, covered_s=chunk + 1.0, chunks=3)
            print("progress", flush=True)
        state.jobs.finish(held)
        print(held.job.id, flush=True)
"""


def start(script: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *args], stdout=-1, text=True)


def said_until_killed(process: subprocess.Popen[str], lines: int, delay_s: float) -> list[str]:
    """What a process said, which is killed some time after it has said so much."""
    with process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        assert said[-1], "it ended by itself"
        select.select([], [], [], delay_s)  # where in its work the blow falls
        process.kill()
        said += process.stdout.readlines()
    return [line.strip() for line in said if line.endswith("\n") and line.startswith("job-")]


@pytest.mark.parametrize("kind", ["disk", "remote"])
def test_no_accepted_job_is_lost_or_done_twice(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    url = f"disk:{tmp_path}" if kind == "disk" else request.getfixturevalue("empty_valkey")
    dice = random.Random(4)
    accepted: list[str] = []
    finished: list[str] = []
    for round_ in range(3):
        submitter, worker = start(SUBMITTER, url, str(round_)), start(WORKER, url, str(round_))
        accepted += said_until_killed(submitter, 5, dice.random() / 20)
        finished += said_until_killed(worker, 8, dice.random() / 20)
    later = time.time() + TTL_S + 1
    with State.open(url, clock=lambda: later, policy=Policy(most_strikes=10)) as state:
        # what a worker had in its hands is in line again, and all that is left can be done
        while held := state.jobs.lease("last", ttl_s=TTL_S):
            state.jobs.finish(held)
        jobs = {job.id: (tenant, job) for tenant in ("t0", "t1", "t2") for job in state.jobs.jobs(tenant)}
        assert set(accepted) <= set(jobs)
        assert set(finished) <= set(jobs)
        assert len(set(finished)) == len(finished)
        for tenant, job in jobs.values():
            events = state.jobs.events(tenant, job.id)
            assert [e.number for e in events] == list(range(1, len(events) + 1))
            assert [e.name for e in events].count("job.ready") == 1
            assert (events[-1].job, job.state) == (job, JobState.READY)
            done = [e.job.chunks_done for e in events]
            assert done == sorted(done)


def test_a_server_that_syncs_every_write_keeps_what_it_accepted_and_is_heard_again_when_it_is_back(
    tmp_path: Path,
) -> None:
    aof = {"dir": str(tmp_path), "appendonly": "yes", "appendfsync": "always"}
    port, told = free_port(), Event()
    with State.open(f"redis://127.0.0.1:{port}?durable=true") as state, ExitStack() as watching:
        with EmbeddedValkey(port=port, flags=aof) as server:
            assert state.durable
            job = state.jobs.submit("ada", {"n": 1})
            watching.enter_context(state.jobs.watching("ada", job.id, told.set))
            held = state.jobs.lease("w", ttl_s=TTL_S)
            assert held is not None
            state.jobs.progress(held, chunks_done=2, covered_s=2.0)
            assert told.wait(10)
            server.close()  # kill -9
        with pytest.raises(StoreUnavailable):
            state.jobs.heartbeat(held)
        told.clear()
        with EmbeddedValkey(port=port, flags=aof):
            assert told.wait(10), "whoever watches looks again once the server is back"
            state.jobs.progress(held, chunks_done=3, covered_s=3.0)
            events = state.jobs.events("ada", job.id)
            assert [e.job.chunks_done for e in events] == [0, 0, 2, 3]
            state.jobs.finish(held)
            second = state.jobs.submit("ada", {"n": 2})
            assert state.jobs.jobs("ada")[0] == second


def test_a_cluster_keeps_all_of_it() -> None:
    with valkey_cluster() as servers, State.open(f"{servers[0].url}?cluster=true") as state:
        told = Event()
        job = state.jobs.submit("ada", {"n": 1}, key="k")
        assert state.jobs.submit("ada", {"n": 1}, key="k") == job
        with state.jobs.watching("ada", job.id, told.set):
            held = state.jobs.lease("w", ttl_s=TTL_S, wait_s=1.0)
            assert held is not None
            state.jobs.finish(held)
            assert [e.name for e in state.jobs.events("ada", job.id)] == ["job.queued", "job.running", "job.ready"]
        assert state.jobs.jobs("ada") == [state.jobs.job("ada", job.id)]
        state.tenants.create("ada")
        assert state.tenants.authenticate(state.tenants.create_key("ada").secret).name == "ada"
        session = state.sessions.open("ada", ["v1"])
        assert state.sessions.session("ada", session.id) == session
        assert state.jobs.counts()[JobState.READY] == 1
        assert told.wait(10)
