"""What every JobQueue promises, run over all of them; the remote one against a real server."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from tests.ledgers import Clock, LedgerMaker
from x2l_cluster.errors import (
    IdempotencyConflict,
    InvalidInput,
    JobConflict,
    LeaseLost,
    QuotaExceeded,
    UnknownJob,
)
from x2l_cluster.messages import Job, JobState, Problem
from x2l_cluster.state.jobs import JobQueue, Lease
from x2l_cluster.state.moves import Policy
from x2l_cluster.state.queue import Jobs

Maker = Callable[..., JobQueue]
TTL_S = 30.0
PROBLEM = Problem(code="store_unavailable", title="t", detail="d", status=503, retryable=True)


@pytest.fixture
def maker(ledgers: LedgerMaker, clock: Clock) -> Maker:
    """Makes queues of the same place, as several processes would have them."""
    return lambda policy=None: Jobs(ledgers("jobs"), policy=policy, clock=clock)


@pytest.fixture
def queue(maker: Maker) -> JobQueue:
    return maker()


def submit(queue: JobQueue, name: str = "a", *, tenant: str = "ada", **options: object) -> Job:
    return queue.submit(tenant, {"path": name}, **options)  # type: ignore[arg-type]


def lease(queue: JobQueue, worker: str = "w1") -> Lease:
    found = queue.lease(worker, ttl_s=TTL_S)
    assert found is not None
    return found


# --- submission -----------------------------------------------------------------------------------------------------


def test_a_job_goes_from_submission_to_ready(maker: Maker, clock: Clock) -> None:
    client, worker = maker(), maker()
    job = client.submit("ada", {"path": "a.mp4", "recipe": {"edges_fine": True}, "video": None}, video="v1")
    assert (job.state, job.created_s, job.video, job.attempts) == (JobState.QUEUED, 1000.0, "v1", 0)
    clock.now_s = 1001.0
    held = lease(worker)
    assert held.work == {"path": "a.mp4", "recipe": {"edges_fine": True}, "video": None}
    assert (held.tenant, held.expires_s) == ("ada", 1001.0 + TTL_S)
    assert client.job("ada", job.id) == held.job
    assert (held.job.state, held.job.attempts) == (JobState.RUNNING, 1)
    worker.progress(held, chunks_done=1, covered_s=8.0, chunks=3)
    assert client.job("ada", job.id).chunks_done == 1
    clock.now_s = 1002.0
    done = worker.finish(held)
    assert client.job("ada", job.id) == done
    assert (done.state, done.updated_s, done.created_s) == (JobState.READY, 1002.0, 1000.0)
    assert worker.lease("w1", ttl_s=TTL_S) is None


def test_the_same_key_is_the_same_job_and_another_request_under_it_is_refused(maker: Maker) -> None:
    first, second = maker(), maker()
    job = submit(first, key="k" * 255)
    assert submit(second, key="k" * 255) == job
    held = lease(second)
    assert submit(first, key="k" * 255) == held.job
    with pytest.raises(IdempotencyConflict):
        submit(second, "b", key="k" * 255)
    with pytest.raises(IdempotencyConflict):
        submit(second, key="k" * 255, priority=1)
    assert submit(second, tenant="bob", key="k" * 255).id != job.id
    assert submit(second).id != submit(second).id


def test_of_many_who_submit_under_one_key_all_get_one_job(maker: Maker) -> None:
    with ThreadPoolExecutor(6) as pool:
        ids = set(pool.map(lambda _: submit(maker(), key="k").id, range(6)))
    assert len(ids) == 1
    assert maker().counts()[JobState.QUEUED] == 1


def test_work_is_plain_data_of_a_bounded_size(queue: JobQueue) -> None:
    with pytest.raises(InvalidInput, match="plain"):
        queue.submit("ada", {"path": object()})
    with pytest.raises(InvalidInput, match="plain"):
        queue.submit("ada", {"path": "\udcff"})
    with pytest.raises(InvalidInput, match="bytes"):
        queue.submit("ada", {"path": "x" * 100_000})
    assert queue.jobs("ada") == []


def test_a_tenant_has_so_many_unended_jobs_and_no_more(maker: Maker) -> None:
    queue = maker()
    jobs = [submit(queue, most_active=3) for _ in range(3)]
    with pytest.raises(QuotaExceeded, match="3"):
        submit(queue, most_active=3)
    submit(queue, tenant="bob", most_active=3)
    submit(queue, key="k", most_active=4)
    assert submit(queue, key="k", most_active=4).state is JobState.QUEUED, "a repetition takes no room"
    queue.cancel("ada", jobs[0].id)
    queue.cancel("ada", jobs[1].id)
    submit(queue, most_active=3)
    with pytest.raises(QuotaExceeded):
        queue.retry("ada", jobs[0].id, most_active=3)
    assert queue.job("ada", jobs[0].id).state is JobState.CANCELLED


def test_a_crowd_does_not_get_past_the_quota(maker: Maker) -> None:
    def work(_: int) -> bool:
        try:
            submit(maker(), most_active=4)
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(work, range(12))) == 4


# --- leases ---------------------------------------------------------------------------------------------------------


def test_of_many_workers_one_gets_the_job(maker: Maker) -> None:
    ids = {submit(maker()).id for _ in range(5)}
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda n: maker().lease(f"w{n}", ttl_s=TTL_S), range(8)))
    leased = [held for held in found if held]
    assert {held.job.id for held in leased} == ids
    assert len(leased) == 5
    assert len({held.number for held in leased}) == 5


def test_a_lease_that_is_renewed_stays_and_one_that_is_not_goes_to_another(maker: Maker, clock: Clock) -> None:
    first, second = maker(), maker()
    submit(first)
    held = lease(first)
    for _ in range(4):
        clock.now_s += TTL_S * 0.9
        first.heartbeat(held)
        assert second.lease("w2", ttl_s=TTL_S) is None
    clock.now_s += TTL_S * 0.9
    first.progress(held, chunks_done=1, covered_s=8.0)
    clock.now_s += TTL_S * 0.9
    assert second.lease("w2", ttl_s=TTL_S) is None
    clock.now_s += TTL_S
    taken = lease(second, "w2")
    assert taken.job.id == held.job.id
    assert taken.number > held.number
    assert (taken.job.attempts, taken.job.chunks_done) == (2, 1)


LATE: dict[str, Callable[[JobQueue, Lease], object]] = {
    "heartbeat": lambda q, held: q.heartbeat(held),
    "progress": lambda q, held: q.progress(held, chunks_done=9, covered_s=9.0),
    "finish": lambda q, held: q.finish(held),
    "fail": lambda q, held: q.fail(held, PROBLEM),
    "stop": lambda q, held: q.stop(held),
    "release": lambda q, held: q.release(held),
}


@pytest.mark.parametrize("move", LATE)
@pytest.mark.parametrize("since", ["queued", "taken", "ready", "forgotten"])
def test_a_worker_that_lost_its_lease_changes_nothing(maker: Maker, clock: Clock, move: str, since: str) -> None:
    first, second = maker(), maker(Policy(keep_s=1.0))
    job = submit(first)
    held = lease(first)
    clock.now_s += TTL_S + 1
    second.sweep()
    if since != "queued":
        taken = lease(second, "w2")
        if since != "taken":
            second.finish(taken)
    if since == "forgotten":
        clock.now_s += 2.0
        second.sweep()
        assert second.jobs("ada") == []
        with pytest.raises(LeaseLost):
            LATE[move](first, held)
        assert second.jobs("ada") == []
        return
    before = second.job("ada", job.id)
    for queue in (first, second):
        with pytest.raises(LeaseLost):
            LATE[move](queue, held)
    assert second.job("ada", job.id) == before
    assert len(first.events("ada", job.id)) == len(second.events("ada", job.id))


def test_saying_the_end_twice_is_saying_it_once(queue: JobQueue) -> None:
    job = submit(queue)
    held = lease(queue)
    done = queue.finish(held)
    assert queue.finish(held) == done
    assert [e.name for e in queue.events("ada", job.id)] == ["job.queued", "job.running", "job.ready"]


def test_a_job_is_cancelled_at_once_or_where_its_worker_looks_next(maker: Maker) -> None:
    client, worker = maker(), maker()
    queued, running = submit(client), submit(client, "b")
    assert client.cancel("ada", queued.id).state is JobState.CANCELLED
    assert client.cancel("ada", queued.id).state is JobState.CANCELLED
    held = lease(worker)
    assert held.job.id == running.id
    assert not worker.heartbeat(held).cancelling
    asked = client.cancel("ada", running.id)
    assert (asked.state, asked.cancelling) == (JobState.RUNNING, True)
    assert worker.heartbeat(held).cancelling
    assert worker.progress(held, chunks_done=1, covered_s=8.0).cancelling
    assert worker.stop(held).state is JobState.CANCELLED
    with pytest.raises(UnknownJob):
        client.cancel("ada", "job-9")


def test_a_failed_job_can_be_retried_and_says_why_it_failed(maker: Maker, clock: Clock) -> None:
    client, worker = maker(Policy(backoff_s=4.0)), maker(Policy(backoff_s=4.0))
    job = submit(client)
    with pytest.raises(JobConflict):
        client.retry("ada", job.id)
    waiting = worker.fail(lease(worker), PROBLEM)
    assert (waiting.state, waiting.problem) == (JobState.QUEUED, PROBLEM)
    clock.now_s += 3.9
    assert worker.lease("w1", ttl_s=TTL_S) is None
    clock.now_s += 0.1
    bad = Problem(code="not_a_video", title="t", detail="ü", status=422)
    failed = worker.fail(lease(worker), bad)
    assert (failed.state, failed.problem, failed.attempts) == (JobState.FAILED, bad, 2)
    again = client.retry("ada", job.id)
    assert (again.state, again.problem) == (JobState.QUEUED, None)
    assert lease(worker).job.id == job.id


def test_a_job_fails_whatever_its_problem_says(queue: JobQueue) -> None:
    job = submit(queue, key="\ud800")
    detail = "/videos/\udcff.mp4 ü " + "x" * 3_000_000
    queue.fail(lease(queue), Problem(code="not_a_video", title="t", detail=detail, status=422))
    problem = queue.job("ada", job.id).problem
    assert problem is not None
    assert problem.detail.startswith("/videos/?.mp4 ü xxx")


def test_a_released_job_is_the_next_ones_at_once(maker: Maker) -> None:
    first, second = maker(), maker()
    submit(first)
    submit(first, "b")
    held = lease(first)
    first.release(held)
    again = lease(second)
    assert (again.job.id, again.job.attempts) == (held.job.id, 1)


# --- order ----------------------------------------------------------------------------------------------------------


def test_higher_priorities_go_first_then_older_jobs(queue: JobQueue) -> None:
    for name, priority in [("a", 0), ("b", 5), ("c", -100), ("d", 100), ("e", 5), ("f", 0)]:
        submit(queue, name, priority=priority)
    assert "".join(lease(queue).work["path"] for _ in range(6)) == "dbeafc"


def test_a_tenant_with_hundreds_of_jobs_does_not_hold_up_one_with_a_single_job(queue: JobQueue) -> None:
    for number in range(200):
        submit(queue, str(number), priority=100)
    first = lease(queue)
    queue.finish(first)
    submit(queue, tenant="bob", priority=-100)
    assert lease(queue).tenant == "bob"


def test_a_tenant_whose_jobs_take_long_does_not_keep_all_workers(queue: JobQueue) -> None:
    for _ in range(20):
        submit(queue)
    held = [lease(queue) for _ in range(4)]
    for _ in range(3):
        submit(queue, tenant="bob")
    queue.finish(held[0])
    assert [lease(queue).tenant for _ in range(4)] == ["bob", "bob", "bob", "ada"]


def test_tenants_with_much_to_do_take_turns(queue: JobQueue) -> None:
    for number in range(12):
        submit(queue, tenant=["ada", "bob", "cy"][number // 4])
    turns = []
    for _ in range(12):
        held = lease(queue)
        turns.append(held.tenant)
        queue.finish(held)
    assert turns == ["ada", "bob", "cy"] * 4


# --- looking --------------------------------------------------------------------------------------------------------


def test_jobs_are_listed_newest_first_and_of_one_tenant_only(queue: JobQueue) -> None:
    ids = [submit(queue, str(n), priority=n % 3).id for n in range(5)]
    submit(queue, tenant="bob")
    assert [job.id for job in queue.jobs("ada")] == ids[::-1]
    assert [job.id for job in queue.jobs("ada", limit=2)] == ids[:2:-1]
    assert queue.jobs("cy") == []


def test_another_tenants_job_is_unknown(queue: JobQueue) -> None:
    job = submit(queue)
    for look in (
        lambda: queue.job("bob", job.id),
        lambda: queue.cancel("bob", job.id),
        lambda: queue.retry("bob", job.id),
        lambda: queue.events("bob", job.id),
    ):
        with pytest.raises(UnknownJob):
            look()
    assert queue.job("ada", job.id) == job


@pytest.mark.parametrize("name", ["", "..", "a/b", "a:b", "{a}", "a\0", "x" * 129])
def test_names_that_could_leave_their_place_are_refused(queue: JobQueue, name: str) -> None:
    for step in (
        lambda: submit(queue, tenant=name),
        lambda: submit(queue, video=name),
        lambda: queue.jobs(name),
        lambda: queue.job("ada", name),
        lambda: queue.job(name, "j"),
        lambda: queue.cancel("ada", name),
    ):
        with pytest.raises(InvalidInput):
            step()


def test_counts_say_how_deep_the_queue_is(queue: JobQueue) -> None:
    assert set(queue.counts().values()) == {0}
    for number in range(4):
        submit(queue, tenant=f"t{number}")
    queue.finish(lease(queue))
    queue.fail(lease(queue), PROBLEM)
    lease(queue)
    counts = queue.counts()
    assert (counts[JobState.QUEUED], counts[JobState.RUNNING], counts[JobState.READY]) == (2, 1, 1)


# --- events ---------------------------------------------------------------------------------------------------------


def test_events_are_numbered_without_gaps_and_a_reader_goes_on_behind_the_last_it_saw(maker: Maker) -> None:
    worker, reader = maker(), maker()
    job = submit(worker)
    held = lease(worker)
    for chunk in range(1, 6):
        worker.progress(held, chunks_done=chunk, covered_s=chunk * 8.0, chunks=5)
        worker.heartbeat(held)
    worker.finish(held)
    events = reader.events("ada", job.id)
    assert [e.number for e in events] == list(range(1, 9))
    assert [e.name for e in events] == ["job.queued", "job.running", *["job.progress"] * 5, "job.ready"]
    assert [e.job.chunks_done for e in events] == [0, 0, 1, 2, 3, 4, 5, 5]
    assert events[-1].job == reader.job("ada", job.id)
    for after in range(10):
        assert reader.events("ada", job.id, after=after) == events[after:]


def test_of_a_long_history_the_newest_part_is_kept_and_the_end_always(maker: Maker) -> None:
    queue = maker(Policy(history=4))
    job = submit(queue)
    held = lease(queue)
    for chunk in range(1, 20):
        queue.progress(held, chunks_done=chunk, covered_s=chunk * 8.0)
    queue.finish(held)
    events = queue.events("ada", job.id, after=3)
    assert [e.number for e in events] == [19, 20, 21, 22]
    assert events[-1].name == "job.ready"


def test_threads_that_move_one_job_leave_one_history(maker: Maker) -> None:
    job = submit(maker())
    held = lease(maker())

    def work(n: int) -> None:
        queue = maker()
        for chunk in range(1, 11):
            queue.progress(held, chunks_done=chunk, covered_s=chunk * 8.0)
            queue.heartbeat(held)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    events = maker().events("ada", job.id)
    assert [e.number for e in events] == list(range(1, 13))
    assert [e.job.chunks_done for e in events[2:]] == list(range(1, 11))


# --- waiting --------------------------------------------------------------------------------------------------------


def test_a_worker_that_waits_gets_a_job_as_soon_as_there_is_one(maker: Maker) -> None:
    client, worker = maker(), maker()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(worker.lease, "w1", ttl_s=TTL_S, wait_s=60.0)
        job = submit(client)
        held = waiting.result(timeout=5)
    assert held is not None and held.job.id == job.id


def test_who_watches_a_job_is_told_of_every_change_until_they_stop(maker: Maker) -> None:
    client, worker = maker(), maker()
    job = submit(client)
    told = Event()
    with client.watching("ada", job.id, told.set):
        for move in (lambda: lease(worker), lambda: client.cancel("ada", job.id)):
            told.clear()
            move()
            assert told.wait(5)
    told.clear()
    worker.sweep()
    client.cancel("ada", job.id)
    assert not told.is_set()


def test_closing_a_queue_ends_the_waiting_of_its_workers(maker: Maker) -> None:
    queue = maker()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(queue.lease, "w1", ttl_s=TTL_S, wait_s=60.0)
        queue.close()
        queue.close()
        assert waiting.result(timeout=5) is None


# --- retention ------------------------------------------------------------------------------------------------------


def test_ended_jobs_are_forgotten_with_age_and_running_ones_never(maker: Maker, clock: Clock) -> None:
    queue = maker(Policy(keep_s=60.0))
    done, stays = submit(queue, key="k"), submit(queue)
    queue.finish(lease(queue))
    clock.now_s += 59.9
    queue.sweep()
    assert queue.job("ada", done.id).state is JobState.READY
    clock.now_s += 0.1
    assert queue.sweep() == 1
    with pytest.raises(UnknownJob):
        queue.job("ada", done.id)
    with pytest.raises(UnknownJob):
        queue.events("ada", done.id)
    assert [job.id for job in queue.jobs("ada")] == [stays.id]
    assert submit(queue, "other", key="k").state is JobState.QUEUED


def test_of_each_tenant_so_many_ended_jobs_are_kept(maker: Maker) -> None:
    queue = maker(Policy(keep=3))
    other = submit(queue, tenant="bob")
    queue.cancel("bob", other.id)
    ids = [submit(queue, str(n)).id for n in range(6)]
    for id in ids:
        queue.cancel("ada", id)
    newest = submit(queue)
    assert [job.id for job in queue.jobs("ada")] == [newest.id, *ids[:2:-1]]
    assert queue.job("bob", other.id).state is JobState.CANCELLED
