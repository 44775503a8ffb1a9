"""Write-behind: in order, bounded, and an error stops it."""

from __future__ import annotations

import threading

import pytest

from x2l_cluster.engine.behind import PENDING, WriteBehind
from x2l_cluster.errors import Cancelled, CorruptVideo, StoreFull

WAIT_S = 30.0


class Gated:
    """Work that waits to be let on."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.begun = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def __call__(self, thing: int) -> None:
        self.begun.release()
        assert self.gate.acquire(timeout=WAIT_S)
        self.done.append(thing)


def test_things_are_done_in_order_and_all_of_them() -> None:
    done: list[int] = []
    with WriteBehind(done.append) as behind:
        for thing in range(20):
            behind.put(thing)
    assert done == list(range(20))


def test_the_caller_goes_on_while_a_thing_is_done_and_waits_when_too_many_are_pending() -> None:
    work = Gated()
    with WriteBehind(work) as behind:
        for thing in range(PENDING):
            behind.put(thing)
        assert work.begun.acquire(timeout=WAIT_S)
        assert work.done == []
        late = threading.Thread(target=behind.put, args=(PENDING,))
        late.start()
        assert not work.begun.acquire(blocking=False), "one at a time"
        assert late.is_alive()
        work.gate.release()
        late.join(WAIT_S)
        assert not late.is_alive()
        assert work.done == [0]
        for _ in range(PENDING):
            work.gate.release()
    assert work.done == list(range(PENDING + 1))


def test_an_error_surfaces_at_the_next_thing_and_nothing_after_it_is_done() -> None:
    done: list[int] = []

    def work(thing: int) -> None:
        if thing == 1:
            raise StoreFull("no room")
        done.append(thing)

    def go() -> None:
        with WriteBehind(work) as behind:
            for thing in range(10):
                behind.put(thing)

    with pytest.raises(StoreFull):
        go()
    assert done == [0]


def test_an_error_of_the_last_thing_is_not_lost() -> None:
    def work(thing: int) -> None:
        raise StoreFull("no room")

    def go() -> None:
        with WriteBehind(work) as behind:
            behind.put(0)

    with pytest.raises(StoreFull):
        go()


@pytest.mark.parametrize(
    ("error", "kept"), [(CorruptVideo("cut"), [0, 1]), (Cancelled("stop"), [0]), (KeyboardInterrupt(), [0])]
)
def test_what_is_pending_when_it_ends_early(error: BaseException, kept: list[int]) -> None:
    """The file's fault: what was prefilled before it is good. Otherwise only what is under way is finished."""
    work = Gated()

    def go() -> None:
        with WriteBehind(work) as behind:
            behind.put(0)
            behind.put(1)
            assert work.begun.acquire(timeout=WAIT_S)
            letting_on = threading.Thread(target=lambda: [work.gate.release() for _ in range(2)])
            if not isinstance(error, CorruptVideo):
                behind._stopped = True  # as the end of the ``with`` will say, but surely before the thread goes on
            letting_on.start()
            raise error

    with pytest.raises(type(error)):
        go()
    assert work.done == kept
