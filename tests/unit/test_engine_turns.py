"""Turns: who waits longest goes first, and who leaves holds nobody up."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from x2l_cluster.engine.turns import Turns


def test_one_who_comes_back_at_once_lets_a_waiting_one_go_first():
    turns, order = Turns(), []
    other = threading.Thread(target=lambda: _take(turns, order, "newcomer"))
    with turns:
        other.start()
        while len(turns._line) < 2:
            pass
        order.append("step")
    with turns:
        order.append("step")
    other.join()
    assert order == ["step", "newcomer", "step"]


def test_one_who_is_interrupted_while_waiting_leaves_the_line(monkeypatch):
    turns = Turns()
    with turns:
        monkeypatch.setattr(turns._moved, "wait_for", _interrupted)
        with pytest.raises(KeyboardInterrupt), turns:
            pass
        monkeypatch.undo()
    with turns:
        assert len(turns._line) == 1


def test_an_error_inside_gives_the_turn_back():
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns:
        1 / 0
    with turns:
        pass


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_between_two_long_turns_those_who_stay_get_as_much_time():
    clock, order = Clock(), []
    turns = Turns(clock)
    turns.stay()
    with turns.long():
        clock.now += 1.0
    other = threading.Thread(target=lambda: _take(turns.long(), order, "chunk"))
    other.start()
    for _ in range(4):
        with turns:
            clock.now += 0.25
            order.append("step")
    other.join()
    assert order == ["step"] * 4 + ["chunk"]


def test_when_nobody_stays_long_turns_follow_each_other():
    clock, order = Clock(), []
    turns = Turns(clock)
    turns.stay()
    with turns.long():
        clock.now += 1.0
    other = threading.Thread(target=lambda: _take(turns.long(), order, "chunk"))
    other.start()
    turns.go()
    other.join()
    with turns.long():
        order.append("chunk")
    assert order == ["chunk", "chunk"]


def test_who_stays_and_never_comes_does_not_stop_long_turns(monkeypatch):
    monkeypatch.setattr("x2l_cluster.engine.turns.PATIENCE_S", 0.01)
    clock = Clock()
    turns = Turns(clock)
    turns.stay()
    for _ in range(2):
        with turns.long():
            clock.now += 1.0


def _take(turns: Any, order: list[str], who: str) -> None:
    with turns:
        order.append(who)


def _interrupted(*args: object) -> None:
    raise KeyboardInterrupt
