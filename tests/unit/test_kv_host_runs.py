"""Free pages, against the plainest model; and the index, against a dictionary."""

from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x2l_cluster.kv.host.index import Index
from x2l_cluster.kv.host.runs import BINS, Runs, size_class


def runs_of(pages: int) -> Runs:
    views = [memoryview(array("I", [0] * pages)) for _ in range(3)]
    runs = Runs(*views, memoryview(array("I", [0] * BINS)))
    assert runs.lay(iter(())) == pages
    return runs


def free_runs(used: dict[int, int], pages: int) -> list[tuple[int, int]]:
    """The model: what lies between the used runs."""
    found, at = [], 0
    for start, length in [*sorted(used.items()), (pages, 0)]:
        if start > at:
            found.append((at, start - at))
        at = start + length
    return found


def play(pages: int, steps: list[tuple[bool, int]]) -> None:
    runs = runs_of(pages)
    used: dict[int, int] = {}
    for take, number in steps:
        if take:
            wanted = number % pages + 1
            start = runs.take(wanted)
            fits = any(length >= wanted for _, length in free_runs(used, pages))
            assert (start is not None) == fits, "taken exactly when some free run is long enough"
            if start is not None:
                used[start] = wanted
        elif used:
            start = sorted(used)[number % len(used)]
            runs.give(start, used.pop(start))
        assert sorted(runs) == free_runs(used, pages)
    again = runs_of(pages)
    assert again.lay(iter(sorted(used.items()))) == pages - sum(used.values())
    assert sorted(again) == free_runs(used, pages)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.lists(st.tuples(st.booleans(), st.integers(0, 1000)), max_size=60))
def test_runs_are_what_lies_between_used_pages(pages: int, steps: list[tuple[bool, int]]) -> None:
    play(pages, steps)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(50))
def test_runs_are_right_for_long(seed: int) -> None:
    dice = random.Random(seed)
    largest = dice.choice([1, 4, 40, 400])
    play(500, [(dice.random() < 0.55, dice.randrange(largest)) for _ in range(3000)])


def test_a_larger_class_never_holds_a_shorter_run() -> None:
    classes = [size_class(pages) for pages in range(1, 5000)]
    assert classes == sorted(classes)
    assert classes[:8] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert size_class((1 << 32) - 1) < BINS


def test_blobs_of_about_one_size_fill_an_arena_again_and_again() -> None:
    """Stripes differ in size by little; whoever frees the oldest until the next fits wastes few pages."""
    dice = random.Random(3)
    runs, used, shares = runs_of(4000), [], []
    for turn in range(5000):
        wanted = dice.randint(36, 48)
        while (start := runs.take(wanted)) is None:
            runs.give(*used.pop(0))
        used.append((start, wanted))
        if turn > 1000:
            shares.append(sum(pages for _, pages in used) / 4000)
    assert min(shares) > 0.8
    assert sum(shares) / len(shares) > 0.9


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("arx"), st.integers(0, 15)), max_size=80), st.integers(1, 20))
def test_the_index_finds_what_was_added_and_nothing_else(steps: list[tuple[str, int]], spread: int) -> None:
    hashes = [slot * 7919 % spread for slot in range(32)]
    index = Index(memoryview(array("I", [0] * 64)), hashes.__getitem__)
    there: dict[int, int] = {}  # key (any of two slots, n and n + 16, may stand for it) → slot
    for what, key in steps:
        hashes[key + 16] = hashes[key]
        if what == "a" and key not in there:
            index.add(key)
            there[key] = key
        elif what == "r" and key in there:
            other = key + 16 if there[key] == key else key
            index.replace(there[key], other)
            there[key] = other
        elif what == "x" and key in there:
            index.remove(there.pop(key))
        for wanted in range(16):
            found = index.find(hashes[wanted], lambda slot, wanted=wanted: slot % 16 == wanted)
            assert found == there.get(wanted)
