"""Holds on slots: counted in the process, known to the kernel, ended from anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from x2l_cluster.errors import StoreUnavailable
from x2l_cluster.kv.host.leases import Claims, Leases
from x2l_cluster.kv.host.locks import Locks, Mutex, slot_byte


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "locks"
    made.touch()
    return made


@pytest.fixture
def evictor(path: Path) -> Iterator[Locks]:
    locks = Locks(path)
    yield locks
    locks.close()


def free(evictor: Locks, slot: int) -> bool:
    got = evictor.claim(slot_byte(slot))
    evictor.end(slot_byte(slot))
    return got


def test_the_kernel_knows_a_slot_as_held_until_its_last_hold_ends(path: Path, evictor: Locks) -> None:
    leases = Leases(Locks(path))
    assert leases.take(3) and leases.take(3) and leases.take(4)
    leases.end(3)
    assert (free(evictor, 3), free(evictor, 4), free(evictor, 5)) == (False, False, True)
    leases.end(3)
    leases.end(4)
    assert free(evictor, 3) and free(evictor, 4)
    assert len(leases) == 0
    leases.close()


def test_readers_share_and_writers_exclude(path: Path, evictor: Locks) -> None:
    one, two, writer = Leases(Locks(path)), Leases(Locks(path)), Claims(Locks(path))
    assert one.take(1) and two.take(1)
    assert not writer.take(1)
    one.end(1)
    two.end(1)
    assert writer.take(1)
    assert not one.take(1)
    assert not evictor.claim(slot_byte(1))
    writer.end(1)
    assert one.take(1)
    for each in (one, two, writer):
        each.close()


def test_a_hold_may_end_while_its_own_thread_is_inside(path: Path, evictor: Locks) -> None:
    """As a finalizer does that the garbage collector runs in the middle of another call."""
    leases = Leases(Locks(path))
    leases.take(1)
    with leases._lock:
        leases.end(1)
        assert not free(evictor, 1)
    leases.take(2)  # whoever is inside settles on leaving
    assert free(evictor, 1)
    leases.end(2)
    leases.close()


def test_closing_waits_for_holds_and_takes_no_more(path: Path, evictor: Locks) -> None:
    for holds in (Leases(Locks(path)), Claims(Locks(path))):
        assert holds.take(1)
        holds.close()
        assert not holds.take(2)
        assert not free(evictor, 1)
        holds.end(1)
        assert free(evictor, 1)
        assert holds._locks.fd == -1
        holds.close()


def test_what_a_forked_child_forgets_stays_the_parents(path: Path, evictor: Locks) -> None:
    leases = Leases(Locks(path))
    leases.take(1)
    leases.forget()
    leases.end(1)  # a view that the child inherited
    assert leases._locks.fd == -1


def test_the_oldest_hold_is_told(path: Path) -> None:
    now = [100.0]
    leases = Leases(Locks(path), clock=lambda: now[0])
    assert leases.oldest_s() == 0
    leases.take(1)
    now[0] = 110
    leases.take(1)
    leases.take(2)
    now[0] = 111
    assert leases.oldest_s() == 11
    leases.end(1)
    leases.end(1)
    assert leases.oldest_s() == 1
    leases.end(2)
    leases.close()


def test_a_mutex_excludes_and_is_given_up_on(path: Path) -> None:
    one, two = Mutex(path, patience_s=0.05), Mutex(path, patience_s=0.05)
    with one.held(), pytest.raises(StoreUnavailable, match="held by another process"), two.held():
        raise AssertionError
    with two.held():
        pass
    with pytest.raises(RuntimeError), one.held():
        raise RuntimeError
    with one.held():
        pass
    one.close()
    two.close()


def test_a_mutex_excludes_threads_of_its_own(path: Path) -> None:
    mutex = Mutex(path, patience_s=0.05)
    with mutex.held(), pytest.raises(StoreUnavailable), mutex.held():
        raise AssertionError
    mutex.close()
