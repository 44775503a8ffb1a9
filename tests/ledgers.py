"""Ledgers of every kind for tests, and a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from x2l_cluster.state.ledger import Ledger
from x2l_cluster.state.ledger_remote import RemoteLedger
from x2l_cluster.state.ledger_sqlite import SqliteLedger

LedgerMaker = Callable[[str], Ledger]


class Clock:
    """Time that a test moves on."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "disk", "remote"])
def ledgers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LedgerMaker]:
    """Makes ledgers of the same place by space, as several processes would have them; closes them all in the end."""
    opened: list[Ledger] = []
    in_memory: dict[str, Ledger] = {}
    url = request.getfixturevalue("empty_valkey") if request.param == "remote" else ""

    def make(space: str) -> Ledger:
        if request.param == "memory":
            made = in_memory.setdefault(space, SqliteLedger())
        elif request.param == "disk":
            made = SqliteLedger(tmp_path / f"{space}.db")
        else:
            made = RemoteLedger(url, space)
        opened.append(made)
        return made

    yield make
    for ledger in opened:
        ledger.close()
