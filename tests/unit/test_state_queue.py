"""What only shows beneath a queue: records that cannot be read, and moves that meet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgpack
import pytest
import xxhash
from prometheus_client import REGISTRY

from tests.ledgers import Clock
from x2l_cluster.errors import RecordCorrupt, StoreUnavailable
from x2l_cluster.messages import JobState
from x2l_cluster.metrics import LIVE
from x2l_cluster.state.ledger import Entry, Event, Group, Room
from x2l_cluster.state.ledger_sqlite import SqliteLedger
from x2l_cluster.state.moves import Policy
from x2l_cluster.state.queue import Jobs


class Meddled(SqliteLedger):
    """Runs ``meanwhile`` once, between somebody's reading and their next put."""

    meanwhile = staticmethod(lambda: None)
    lost_reply = False
    lists = True

    def groups(self, *indexes: str) -> list[dict[str, Group]]:
        if not self.lists:
            raise StoreUnavailable("away")
        return super().groups(*indexes)

    def put(
        self,
        name: str,
        expected: bytes | None,
        entry: Entry | None,
        *,
        event: Event | None = None,
        room: Room | None = None,
        topics: Sequence[str] = (),
    ) -> bool:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None  # type: ignore[method-assign]
        meanwhile()
        done = super().put(name, expected, entry, event=event, room=room, topics=topics)
        if self.lost_reply:  # as a client does that sends again
            done = super().put(name, expected, entry, event=event, room=room, topics=topics)
        return done


@pytest.fixture
def ledger() -> Iterator[Meddled]:
    made = Meddled()
    yield made
    made.close()


def damage(ledger: SqliteLedger, name: str, data: bytes) -> None:
    with ledger._writing() as db:
        db.execute("UPDATE records SET data = ? WHERE name = ?", (data, name))


@pytest.mark.parametrize("where", ["in line", "running", "ended"])
def test_a_damaged_job_holds_nobody_up(ledger: Meddled, clock: Clock, where: str) -> None:
    queue = Jobs(ledger, policy=Policy(keep_s=5.0), clock=clock)
    bad = queue.submit("ada", {"n": 0})
    if where != "in line":
        held = queue.lease("w", ttl_s=5.0)
        assert held is not None
        if where == "ended":
            queue.finish(held)
    damage(ledger, f"ada/{bad.id}", b"rubbish")
    good = queue.submit("ada", {"n": 1})
    clock.now_s += 6.0
    held = queue.lease("w", ttl_s=60.0)
    assert held is not None and held.job.id == good.id
    assert [job.id for job in queue.jobs("ada")] == [good.id]
    queue.sweep()
    with pytest.raises(RecordCorrupt):
        queue.job("ada", bad.id)


def test_a_job_of_a_newer_program_is_left_alone(ledger: Meddled, clock: Clock) -> None:
    queue = Jobs(ledger, clock=clock)
    job = queue.submit("ada", {})
    body = msgpack.packb({"v": 2, "is": {}})
    newer = xxhash.xxh3_64_digest(body) + body
    damage(ledger, f"ada/{job.id}", newer)
    for look in (lambda: queue.lease("w", ttl_s=5.0), lambda: queue.jobs("ada"), lambda: queue.job("ada", job.id)):
        with pytest.raises(RecordCorrupt, match="version 2"):
            look()
    assert ledger.get(f"ada/{job.id}") == newer
    assert ledger.groups("line")[0]["ada"].size == 1


def test_a_cancel_that_meets_a_lease_is_not_lost(ledger: Meddled, clock: Clock) -> None:
    queue, other = Jobs(ledger, clock=clock), Jobs(ledger, clock=clock)
    job = queue.submit("ada", {})
    ledger.meanwhile = lambda: other.cancel("ada", job.id)  # type: ignore[method-assign]
    assert queue.lease("w", ttl_s=5.0) is None
    assert queue.job("ada", job.id).state is JobState.CANCELLED


def test_a_job_that_is_retried_while_it_is_forgotten_stays(ledger: Meddled, clock: Clock) -> None:
    queue, other = Jobs(ledger, policy=Policy(keep=0), clock=clock), Jobs(ledger, clock=clock)
    job = queue.submit("ada", {})
    queue.cancel("ada", job.id)
    clock.now_s += Policy().keep_s
    ledger.meanwhile = lambda: other.retry("ada", job.id)  # type: ignore[method-assign]
    assert queue.sweep() == 0
    assert queue.job("ada", job.id).state is JobState.QUEUED


def test_moves_whose_reply_is_lost_happen_once(ledger: Meddled, clock: Clock) -> None:
    ledger.lost_reply = True
    queue = Jobs(ledger, clock=clock)
    job = queue.submit("ada", {})
    held = queue.lease("w", ttl_s=5.0)
    assert held is not None
    queue.progress(held, chunks_done=1, covered_s=1.0)
    queue.finish(held)
    assert [e.name for e in queue.events("ada", job.id)] == ["job.queued", "job.running", "job.progress", "job.ready"]
    assert queue.job("ada", job.id).attempts == 1


def test_a_job_is_accepted_though_old_ones_cannot_be_forgotten(ledger: Meddled, clock: Clock) -> None:
    queue = Jobs(ledger, clock=clock)
    ledger.lists = False
    job = queue.submit("ada", {})
    assert queue.job("ada", job.id) == job


def test_the_next_job_is_taken_when_another_worker_was_faster(ledger: Meddled, clock: Clock) -> None:
    queue, other = Jobs(ledger, clock=clock), Jobs(ledger, clock=clock)
    first, second = queue.submit("ada", {"n": 0}), queue.submit("ada", {"n": 1})
    taken = []
    ledger.meanwhile = lambda: taken.append(other.lease("w2", ttl_s=5.0))  # type: ignore[method-assign]
    held = queue.lease("w1", ttl_s=5.0)
    assert held is not None
    assert (taken[0].job.id, held.job.id) == (first.id, second.id)


def test_the_depth_of_a_queue_is_a_metric_for_as_long_as_it_is_open(ledger: Meddled, clock: Clock) -> None:
    queue = Jobs(ledger, clock=clock)
    LIVE.add(queue)
    queue.submit("ada", {})
    queue.submit("ada", {})
    queue.lease("w", ttl_s=5.0)
    assert REGISTRY.get_sample_value("x2l_jobs", {"state": "queued"}) == 1.0
    assert REGISTRY.get_sample_value("x2l_jobs", {"state": "ready"}) == 0.0
    queue.close()
    assert REGISTRY.get_sample_value("x2l_jobs", {"state": "queued"}) is None


def test_a_file_that_is_no_ledger_is_said_to_be_damaged(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(RecordCorrupt, match=r"jobs\.db"):
        SqliteLedger(tmp_path / "jobs.db")
    with pytest.raises(StoreUnavailable):
        SqliteLedger(tmp_path)
