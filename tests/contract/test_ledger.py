"""What every Ledger promises, run over all of them; the remote one against a real server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event as Signal

import pytest

from tests.ledgers import LedgerMaker
from x2l_cluster.state.ledger import Entry, Event, Group, GroupFull, Ledger, Room

ODD = b"\x00\xff{}:\n"


@pytest.fixture
def ledger(ledgers: LedgerMaker) -> Ledger:
    return ledgers("s")


def put(ledger: Ledger, name: str, expected: bytes | None, data: bytes | None, **marks: float) -> bool:
    entry = None if data is None else Entry(data, {("line", group): place for group, place in marks.items()})
    return ledger.put(name, expected, entry)


def test_a_record_is_swapped_only_for_the_expected_one(ledger: Ledger) -> None:
    assert ledger.get("a/1") is None
    assert put(ledger, "a/1", None, ODD)
    assert ledger.get("a/1") == ODD
    assert not put(ledger, "a/1", None, b"new")
    assert not put(ledger, "a/1", b"", b"new")
    assert put(ledger, "a/1", ODD, b"")
    assert ledger.get("a/1") == b""
    assert not put(ledger, "a/1", None, b"new"), "empty is not absent"
    assert put(ledger, "a/1", b"", None)
    assert ledger.get("a/1") is None
    assert not put(ledger, "a/1", b"", b"new")


def test_a_put_that_arrives_twice_is_done_once(ledger: Ledger) -> None:
    entry = Entry(b"x", {("line", "g"): 1.0})
    for _ in range(2):
        assert ledger.put("a", None, entry, event=Event(1, b"e", 9))
    assert ledger.log("a", 0) == [b"e"]
    for _ in range(2):
        assert ledger.put("a", b"x", None)
    assert (ledger.get("a"), ledger.log("a", 0), ledger.groups("line")) == (None, [], [{}])


def test_of_many_who_swap_at_once_one_does(ledgers: LedgerMaker) -> None:
    def work(n: int) -> bool:
        return put(ledgers("s"), "a", None, str(n).encode(), g=n)

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(work, range(6))) == 1
    (groups,) = ledgers("s").groups("line")
    assert groups["g"].size == 1


def test_records_stand_in_groups_in_order_of_their_places(ledger: Ledger) -> None:
    for name, place in [("c", 3.0), ("a", -1e15), ("b", 2.5), ("d", 3.0)]:
        put(ledger, name, None, b"x", g=place)
    put(ledger, "e", None, b"x", other=0.1)
    assert ledger.groups("line", "none") == [{"g": Group(4, -1e15, 3.0), "other": Group(1, 0.1, 0.1)}, {}]
    assert ledger.names("line", "g", limit=9) == ["a", "b", "c", "d"]
    assert ledger.names("line", "g", limit=2, newest=True) == ["d", "c"]
    assert ledger.names("line", "g", limit=9, upto=2.5) == ["a", "b"]
    assert ledger.names("line", "g", limit=0) == []
    assert ledger.names("line", "h", limit=9) == []


def test_a_swap_moves_a_record_from_its_groups_to_the_new_ones(ledger: Ledger) -> None:
    put(ledger, "a", None, b"x", g=1.0, h=2.0)
    put(ledger, "a", b"x", b"y", h=5.0, i=6.0)
    assert ledger.groups("line") == [{"h": Group(1, 5.0, 5.0), "i": Group(1, 6.0, 6.0)}]
    put(ledger, "a", b"y", b"z")
    assert ledger.groups("line") == [{}]


def test_a_group_without_room_refuses_and_nothing_has_changed(ledger: Ledger) -> None:
    entry = Entry(b"x", {("line", "g"): 1.0})
    for name in "ab":
        assert ledger.put(name, None, entry, room=Room(("line", "g"), 2))
    with pytest.raises(GroupFull):
        ledger.put("c", None, entry, event=Event(1, b"e", 9), room=Room(("line", "g"), 2))
    assert (ledger.get("c"), ledger.log("c", 0), ledger.groups("line")) == (None, [], [{"g": Group(2, 1.0, 1.0)}])
    assert ledger.put("a", b"x", Entry(b"y", entry.marks), room=Room(("line", "g"), 2)), "it stands there already"
    assert ledger.put("c", None, Entry(b"x", {("line", "h"): 1.0}), room=Room(("line", "g"), 2))


def test_a_log_goes_with_its_record_and_keeps_the_newest(ledger: Ledger) -> None:
    last = None
    for number in range(1, 8):
        data = str(number).encode()
        assert ledger.put("a", last, Entry(data, {}), event=Event(number, data * 3, 4))
        last = data
    assert ledger.log("a", 0) == [b"444", b"555", b"666", b"777"]
    assert ledger.log("a", 5) == [b"666", b"777"]
    assert ledger.log("a", 7) == []
    ledger.put("a", last, None)
    ledger.put("a", None, Entry(b"new", {}), event=Event(1, b"one", 4))
    assert ledger.log("a", 0) == [b"one"]


def test_counters_never_give_a_number_twice(ledgers: LedgerMaker) -> None:
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda _: ledgers("s").count("n"), range(20)))
    assert sorted(numbers) == list(range(1, 21))
    assert ledgers("s").count("m") == 1


def test_spaces_are_apart(ledgers: LedgerMaker) -> None:
    put(ledgers("s"), "a", None, b"x", g=1.0)
    other = ledgers("t")
    assert (other.get("a"), other.groups("line"), other.count("n")) == (None, [{}], 1)


def test_several_records_are_read_in_one_go(ledger: Ledger) -> None:
    put(ledger, "a", None, b"x")
    put(ledger, "b", None, ODD)
    assert ledger.get_many(["b", "none", "a"]) == [ODD, None, b"x"]
    assert ledger.get_many([]) == []


def test_watchers_of_a_topic_are_told_whoever_puts(ledgers: LedgerMaker) -> None:
    here, there = ledgers("s"), ledgers("s")
    for number, ledger in enumerate((here, there)):
        told = Signal()
        with here.watching("t", told.set):
            told.clear()
            ledger.put(str(number), None, Entry(b"x", {}), topics=["u", "t"])
            assert told.wait(5)
