"""The rules of the queue as a table: every move in every state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from x2l_cluster.errors import JobConflict, LeaseLost, X2LError
from x2l_cluster.messages import JobState, Problem
from x2l_cluster.state import moves
from x2l_cluster.state.ledger import Group
from x2l_cluster.state.moves import Policy, Ticket

POLICY = Policy(most_strikes=3, backoff_s=2.0, backoff_cap_s=60.0, outage_cap_s=20.0, keep_s=100.0)
NOW = 50.0
RETRYABLE = Problem(code="decoder_crashed", title="t", detail="d", status=503, retryable=True)
LATE = Problem(code="store_late", title="t", detail="d", status=503, retryable=True)
FULL = replace(LATE, code="store_full")
FINAL = Problem(code="corrupt_video", title="t", detail="d", status=422)


def queued() -> Ticket:
    return moves.submit(tenant="ada", id="j", work={}, priority=0, order=1, video=None, now_s=0.0)


def running() -> Ticket:
    return moves.lease(queued(), 10.0, number=7, worker="w", ttl_s=30.0)


def asked() -> Ticket:
    return moves.cancel(running(), POLICY, 11.0)


STATES: dict[str, Callable[[], Ticket]] = {
    "queued": queued,
    "waiting": lambda: moves.fail(running(), 7, POLICY, 12.0, RETRYABLE),
    "running": running,
    "asked": asked,
    "ready": lambda: moves.finish(running(), 7, POLICY, 12.0),
    "failed": lambda: moves.fail(running(), 7, POLICY, 12.0, FINAL),
    "cancelled": lambda: moves.stop(asked(), 7, POLICY, 12.0),
}
MOVES: dict[str, Callable[[Ticket], Ticket | None]] = {
    "cancel": lambda t: moves.cancel(t, POLICY, NOW),
    "retry": lambda t: moves.retry(t, NOW),
    "lease": lambda t: moves.lease(t, NOW, number=8, worker="w2", ttl_s=30.0),
    "heartbeat": lambda t: moves.heartbeat(t, 7, NOW),
    "progress": lambda t: moves.progress(t, 7, NOW, chunks_done=1, covered_s=8.0, chunks=4, video="v"),
    "finish": lambda t: moves.finish(t, 7, POLICY, NOW),
    "stop": lambda t: moves.stop(t, 7, POLICY, NOW),
    "fail": lambda t: moves.fail(t, 7, POLICY, NOW, FINAL),
    "fail for now": lambda t: moves.fail(t, 7, POLICY, NOW, RETRYABLE),
    "release": lambda t: moves.release(t, 7, POLICY, NOW),
    "time": lambda t: moves.wake(t, POLICY, NOW),
}
SAME, GONE = "the very same", "forgotten"
#                queued       waiting      running      asked        ready        failed       cancelled
TABLE = {
    "cancel": ("cancelled", "cancelled", "asked", SAME, SAME, SAME, SAME),
    "retry": (JobConflict, JobConflict, JobConflict, JobConflict, JobConflict, "queued", "queued"),
    "lease": ("running", JobConflict, JobConflict, JobConflict, JobConflict, JobConflict, JobConflict),
    "heartbeat": (LeaseLost, LeaseLost, "running", "asked", LeaseLost, LeaseLost, LeaseLost),
    "progress": (LeaseLost, LeaseLost, "running", "asked", LeaseLost, LeaseLost, LeaseLost),
    "finish": (LeaseLost, LeaseLost, "ready", "ready", SAME, LeaseLost, LeaseLost),
    "stop": (LeaseLost, LeaseLost, JobConflict, "cancelled", LeaseLost, LeaseLost, SAME),
    "fail": (LeaseLost, LeaseLost, "failed", "failed", LeaseLost, SAME, LeaseLost),
    "fail for now": (LeaseLost, LeaseLost, "waiting", "cancelled", LeaseLost, SAME, LeaseLost),
    "release": (LeaseLost, LeaseLost, "queued", "cancelled", LeaseLost, LeaseLost, LeaseLost),
    "time": (SAME, "queued", "queued", "cancelled", SAME, SAME, SAME),
}
CASES = [(move, state, row[i]) for move, row in TABLE.items() for i, state in enumerate(STATES)]


def label(ticket: Ticket) -> str:
    if ticket.job.state is JobState.QUEUED:
        return "queued" if ticket.in_line else "waiting"
    return "asked" if ticket.job.cancelling else str(ticket.job.state)


@pytest.mark.parametrize("state", STATES)
def test_states_are_what_they_are_called(state: str) -> None:
    assert label(STATES[state]()) == state


@pytest.mark.parametrize(("move", "state", "result"), CASES, ids=[f"{m}-{s}" for m, s, _ in CASES])
def test_every_move_in_every_state(move: str, state: str, result: str | type[X2LError]) -> None:
    old = STATES[state]()
    if isinstance(result, type):
        with pytest.raises(result, match="job j"):
            MOVES[move](old)
        return
    new = MOVES[move](old)
    assert new is not None
    if result == SAME:
        assert new is old
        return
    assert label(new) == result
    assert new.events - old.events == (new.job != old.job), "what can be seen has a number, and nothing else has"
    assert new.job.updated_s == (NOW if new.job != old.job else old.job.updated_s)
    assert (new.lease >= old.lease) and (new.job.created_s == 0.0)


@pytest.mark.parametrize("move", ["heartbeat", "progress", "finish", "stop", "fail", "fail for now", "release"])
@pytest.mark.parametrize("state", ["running", "asked", "ready", "failed", "cancelled"])
def test_with_an_older_lease_nothing_can_be_changed(move: str, state: str) -> None:
    taken_over = replace(STATES[state](), lease=8)
    with pytest.raises(LeaseLost):
        MOVES[move](taken_over)


def test_ended_jobs_are_forgotten_in_time() -> None:
    ended = STATES["ready"]()
    assert moves.wake(ended, POLICY, 12.0 + POLICY.keep_s) is None


def test_progress_is_never_taken_back_and_the_video_never_changes() -> None:
    far = moves.progress(running(), 7, 12.0, chunks_done=3, covered_s=24.0, chunks=5, video="v")
    assert (far.job.chunks_done, far.job.chunks, far.job.covered_s, far.job.video) == (3, 5, 24.0, "v")
    again = moves.progress(far, 7, 13.0, chunks_done=1, covered_s=8.0, chunks=None, video=None)
    assert again.job == far.job
    assert again.events == far.events
    assert again.wake_s == 43.0
    with pytest.raises(JobConflict, match="video v"):
        moves.progress(far, 7, 13.0, chunks_done=4, covered_s=32.0, chunks=None, video="other")


def begun(ticket: Ticket, number: int) -> Ticket:
    woken = moves.wake(ticket, POLICY, 1e6)
    assert woken is not None
    return moves.lease(woken, 1e6, number=number, worker="w", ttl_s=30.0)


def test_retryable_problems_wait_ever_longer_and_have_an_end() -> None:
    ticket, pauses = queued(), []
    for number in range(1, POLICY.most_strikes):
        ticket = moves.fail(begun(ticket, number), number, POLICY, NOW, RETRYABLE)
        assert ticket.wake_s is not None
        pauses.append(ticket.wake_s - NOW)
        assert ticket.job.problem == RETRYABLE
    assert pauses == [2.0, 4.0]
    last = moves.fail(begun(ticket, 9), 9, POLICY, NOW, RETRYABLE)
    assert (last.job.state, last.job.problem, last.job.attempts) == (JobState.FAILED, RETRYABLE, 3)
    assert POLICY.backoff(10_000) == POLICY.backoff_cap_s


@pytest.mark.parametrize("outage", [LATE, FULL])
def test_a_store_that_does_not_do_its_work_is_waited_for_however_long_that_takes(outage: Problem) -> None:
    ticket, pauses = moves.fail(running(), 7, POLICY, NOW, RETRYABLE), []
    for number in range(1, 20):
        ticket = moves.fail(begun(ticket, number), number, POLICY, NOW, outage)
        assert ticket.wake_s is not None and ticket.job.state is JobState.QUEUED
        pauses.append(ticket.wake_s - NOW)
    assert ticket.strikes == 1 and ticket.job.problem == outage
    assert pauses[:3] == [2.0, 4.0, 8.0] and pauses[-1] == POLICY.outage_cap_s
    got_on = moves.progress(begun(ticket, 20), 20, NOW, chunks_done=1, covered_s=1.0, chunks=None, video=None)
    again = moves.fail(got_on, 20, POLICY, NOW, outage)
    assert again.wake_s == NOW + POLICY.backoff_s


def test_a_problem_that_says_how_long_is_waited_for_so_long() -> None:
    waiting = moves.fail(running(), 7, POLICY, NOW, replace(RETRYABLE, retry_after_s=90.0))
    assert waiting.wake_s == NOW + 90.0


def test_a_job_that_ends_its_workers_is_given_up() -> None:
    ticket: Ticket | None = queued()
    for number in range(1, POLICY.most_strikes + 1):
        assert ticket is not None and ticket.job.state is JobState.QUEUED
        ticket = moves.wake(begun(ticket, number), POLICY, 2e6)
    assert ticket is not None and ticket.job.problem is not None
    assert (ticket.job.state, ticket.job.problem.code) == (JobState.FAILED, "job_abandoned")


def test_a_job_that_gets_on_is_not_given_up_however_often_it_is_interrupted() -> None:
    ticket: Ticket | None = queued()
    for number in range(1, 20):
        assert ticket is not None
        got_on = moves.progress(
            begun(ticket, number), number, 1e6, chunks_done=number, covered_s=0.0, chunks=None, video=None
        )
        ticket = moves.wake(got_on, POLICY, 2e6)
    assert ticket is not None and ticket.job.state is JobState.QUEUED
    assert ticket.job.attempts == 19


def test_a_released_attempt_does_not_count() -> None:
    ticket = queued()
    for number in range(1, 10):
        ticket = moves.release(begun(ticket, number), number, POLICY, NOW)
    assert (ticket.job.attempts, ticket.strikes, ticket.in_line) == (0, 0, True)


def test_a_retry_starts_counting_anew_and_keeps_its_place() -> None:
    failed = replace(STATES["failed"](), strikes=3)
    again = moves.retry(failed, NOW)
    assert (again.strikes, again.order, again.job.problem) == (0, failed.order, None)


def test_the_turn_is_of_who_has_least_running_then_of_who_began_longest_ago() -> None:
    line = dict.fromkeys("abcd", Group(5, 0.0, 9.0))
    running_now = {"a": Group(2, 1.0, 4.0), "b": Group(1, 2.0, 2.0), "c": Group(1, 3.0, 3.0), "d": Group(1, 5.0, 5.0)}
    assert moves.next_tenant(line, running_now, running_now) == "b"
    assert (
        moves.next_tenant(line, {}, {"a": Group(1, 1.0, 9.0), "b": Group(1, 8.0, 8.0), "c": Group(1, 1.0, 1.0)}) == "d"
    )
    assert moves.next_tenant({"a": Group(1, 0.0, 0.0)}, running_now, running_now) == "a"
