"""The gate: who may move bytes, in which order, and until when."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x2l_cluster.errors import InvalidInput
from x2l_cluster.kv.store import Priority
from x2l_cluster.kv.wire.deadline import Deadline
from x2l_cluster.kv.wire.errors import Late
from x2l_cluster.kv.wire.gate import PATIENCE, Gate


def long() -> Deadline:
    """Longer than any test; made when it is wanted, since a test may run long after its module was imported."""
    return Deadline(60)


class Queue:
    """Waits at a gate in threads and notes who got through, and when."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.order = gate, []
        self._pool = ThreadPoolExecutor(100)

    def join(self, name: str, nbytes: int, priority: Priority) -> Future[None]:
        before = self.gate.waiting

        def wait() -> None:
            self.gate.enter(nbytes, priority, long())
            self.order.append(name)

        future = self._pool.submit(wait)
        while not future.done() and self.gate.waiting == before:
            pass
        return future

    def close(self) -> None:
        self._pool.shutdown()


def test_the_more_important_go_first_and_equals_in_their_order() -> None:
    gate = Gate(transfers=1, cap_bytes=100)
    queue = Queue(gate)
    gate.enter(10, Priority.WRITE, long())
    waiting = [
        queue.join(name, 10, priority)
        for name, priority in [
            ("write", Priority.WRITE),
            ("prefetch", Priority.PREFETCH),
            ("fine 1", Priority.FINE),
            ("coarse", Priority.COARSE),
            ("fine 2", Priority.FINE),
            ("manifest", Priority.MANIFEST),
        ]
    ]
    assert gate.waiting == 6
    for done in range(1, 7):
        gate.leave(10)
        while len(queue.order) < done:
            pass
        assert gate.in_flight_bytes == 10
    gate.leave(10)
    queue.close()
    assert all(future.result() is None for future in waiting)
    assert queue.order == ["manifest", "coarse", "fine 1", "fine 2", "prefetch", "write"]
    assert (gate.in_flight_bytes, gate.waiting) == (0, 0)


def test_bytes_are_capped_and_nobody_slips_past_who_needs_more_room() -> None:
    gate = Gate(transfers=10, cap_bytes=100)
    queue = Queue(gate)
    gate.enter(60, Priority.FINE, long())
    large = queue.join("large", 50, Priority.FINE)
    small = queue.join("small", 10, Priority.FINE)
    assert (gate.waiting, large.done(), small.done()) == (2, False, False)
    first = queue.join("first", 40, Priority.COARSE)
    first.result()
    gate.leave(60)
    large.result()
    small.result()
    queue.close()
    assert queue.order[0] == "first"
    assert set(queue.order[1:]) == {"large", "small"}
    assert gate.in_flight_bytes == 100


def test_what_is_larger_than_the_cap_goes_alone() -> None:
    gate = Gate(transfers=10, cap_bytes=100)
    queue = Queue(gate)
    gate.enter(500, Priority.FINE, long())
    other = queue.join("other", 1, Priority.MANIFEST)
    assert not other.done()
    gate.leave(500)
    other.result()
    huge = queue.join("huge", 500, Priority.MANIFEST)
    assert not huge.done()
    gate.leave(1)
    huge.result()
    queue.close()


def test_nobody_is_overtaken_for_ever() -> None:
    gate = Gate(transfers=1, cap_bytes=100)
    queue = Queue(gate)
    gate.enter(1, Priority.FINE, long())
    queue.join("write", 1, Priority.WRITE)
    for n in range(PATIENCE + 5):
        queue.join(f"fine {n}", 1, Priority.FINE)
    for done in range(1, PATIENCE + 7):
        gate.leave(1)
        while len(queue.order) < done:
            pass
    queue.close()
    assert queue.order.index("write") == PATIENCE


def test_who_waits_too_long_is_late_and_holds_nobody_up() -> None:
    gate = Gate(transfers=4, cap_bytes=100)
    queue = Queue(gate)
    gate.enter(60, Priority.FINE, long())
    started = monotonic()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(gate.enter, 90, Priority.MANIFEST, Deadline(0.05))
        while not gate.waiting:
            pass
        behind = queue.join("behind", 10, Priority.WRITE)
        with pytest.raises(Late, match="90 bytes \\(manifest\\) had no turn"):
            late.result()
    assert monotonic() - started < 5
    behind.result()
    queue.close()
    assert (gate.in_flight_bytes, gate.waiting) == (70, 0)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 300),
    st.lists(st.tuples(st.integers(0, 400), st.sampled_from(Priority)), min_size=1, max_size=40),
)
def test_the_caps_hold_and_all_get_through(transfers: int, cap: int, wishes: list[tuple[int, Priority]]) -> None:
    gate, lock, inside = Gate(transfers=transfers, cap_bytes=cap), Lock(), []

    def go(wish: tuple[int, Priority]) -> None:
        gate.enter(*wish, long())
        with lock:
            inside.append(wish[0])
            assert len(inside) <= transfers
            assert len(inside) == 1 or sum(inside) <= cap
        with lock:
            inside.remove(wish[0])
        gate.leave(wish[0])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(go, wishes))
    assert (gate.in_flight_bytes, gate.waiting) == (0, 0)


def test_a_gate_that_lets_nobody_through_is_refused() -> None:
    with pytest.raises(InvalidInput):
        Gate(transfers=0, cap_bytes=1)
    with pytest.raises(InvalidInput):
        Gate(transfers=1, cap_bytes=0)


def test_a_deadline_grows_with_the_bytes() -> None:
    now = 10.0
    deadline = Deadline(2.0, 0.5, clock=lambda: now)
    assert deadline.left_s() == 2.0
    deadline.covers(4 << 20)
    assert deadline.left_s() == 4.0
    assert deadline.is_half_left
    now = 12.5
    assert deadline.left_s() == 1.5
    assert not deadline.is_half_left
    now = 14.0
    with pytest.raises(Late, match="not done 4 s"):
        deadline.left_s()
