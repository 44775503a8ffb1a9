"""The breaker: opens, rests, probes, closes by itself; time is injected."""

from __future__ import annotations

import pytest

from x2l_cluster.errors import StoreUnavailable
from x2l_cluster.kv.wire.breaker import Breaker, BreakerState


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def broken(clock: Clock) -> Breaker:
    breaker = Breaker("there", failures=3, rest_s=1.0, longest_rest_s=4.0, clock=clock)
    for _ in range(3):
        breaker.check()
        breaker.failed()
    return breaker


def is_open(breaker: Breaker) -> bool:
    try:
        breaker.check()
    except StoreUnavailable:
        return True
    return False


def test_failures_in_a_row_open_it_and_others_do_not() -> None:
    breaker = Breaker("there", failures=3, clock=Clock())
    for _ in range(5):
        breaker.failed()
        breaker.failed()
        breaker.worked()
    assert breaker.state is BreakerState.CLOSED
    breaker = broken(Clock())
    assert breaker.state is BreakerState.OPEN
    with pytest.raises(StoreUnavailable, match=r"there failed 3 times .* 1 s more"):
        breaker.check()


def test_after_the_rest_one_probe_goes_through_and_closes_it() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now += 0.9
    assert is_open(breaker)
    clock.now += 0.2
    assert not is_open(breaker)
    assert breaker.state is BreakerState.HALF_OPEN
    assert is_open(breaker)  # one probe at a time
    breaker.worked()
    assert breaker.state is BreakerState.CLOSED
    assert not is_open(breaker)


def test_a_failed_probe_doubles_the_rest_up_to_the_longest() -> None:
    clock = Clock()
    breaker = broken(clock)
    for rest in (1, 2, 4, 4, 4):
        clock.now += rest - 0.1
        assert is_open(breaker)
        clock.now += 0.2
        assert not is_open(breaker)
        breaker.failed()
        assert breaker.state is BreakerState.OPEN
    clock.now += 4.1
    breaker.check()
    breaker.worked()
    for _ in range(3):
        breaker.failed()
    clock.now += 1.1  # the first rest again
    assert not is_open(breaker)


def test_a_probe_that_never_reports_is_given_up() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now += 1.1
    breaker.check()
    assert is_open(breaker)
    clock.now += 1.1
    assert not is_open(breaker)


def test_stragglers_change_nothing_and_a_late_success_closes() -> None:
    clock = Clock()
    breaker = broken(clock)
    for _ in range(10):
        breaker.failed()
    clock.now += 1.1
    assert not is_open(breaker)
    breaker = broken(clock)
    breaker.worked()
    assert not is_open(breaker)
