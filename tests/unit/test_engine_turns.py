"""Turns: who waits longest goes first, and who leaves holds nobody up."""

from __future__ import annotations

import threading

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


def _take(turns: Turns, order: list[str], who: str) -> None:
    with turns:
        order.append(who)


def _interrupted(*args: object) -> None:
    raise KeyboardInterrupt
