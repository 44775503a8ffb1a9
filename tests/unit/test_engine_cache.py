"""The byte cache: bounded, single-flight."""

from __future__ import annotations

import threading

import pytest

from x2l_cluster.engine.cache import ByteCache


def test_the_least_recently_used_goes_when_the_bytes_are_full():
    cache: ByteCache[str, bytes] = ByteCache(10, len)
    for key in "abc":
        cache.get(key, lambda: b"1234")
    assert [key in cache for key in "abc"] == [False, True, True]
    cache.get("b", lambda: b"never made")
    cache.get("d", lambda: b"1234")
    assert [key in cache for key in "bcd"] == [True, False, True]


def test_what_is_larger_than_the_cache_is_handed_out_and_not_kept():
    cache: ByteCache[str, bytes] = ByteCache(3, len)
    assert cache.get("a", lambda: b"12345") == (b"12345", False)
    assert "a" not in cache


def test_many_who_ask_at_once_make_it_once():
    cache: ByteCache[str, bytes] = ByteCache(100, len)
    made, gate, results = [], threading.Event(), []

    def make() -> bytes:
        made.append(1)
        gate.wait(5)
        return b"x"

    threads = [threading.Thread(target=lambda: results.append(cache.get("a", make))) for _ in range(8)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert sorted(hot for _, hot in results) == [False] + [True] * 7


def test_an_error_reaches_all_who_wait_and_is_not_remembered():
    cache: ByteCache[str, bytes] = ByteCache(100, len)

    def fail() -> bytes:
        raise KeyError("gone")

    for _ in range(2):
        with pytest.raises(KeyError):
            cache.get("a", fail)
    assert cache.get("a", lambda: b"x") == (b"x", False)


def test_dropping_forgets_what_matches():
    cache: ByteCache[str, bytes] = ByteCache(100, len)
    for key in ("a1", "a2", "b1"):
        cache.get(key, lambda: b"x")
    cache.drop(lambda key: key.startswith("a"))
    assert ["a1" in cache, "a2" in cache, "b1" in cache] == [False, False, True]
