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


def test_of_many_only_what_nobody_has_is_made_and_an_error_is_that_of_its_key():
    cache: ByteCache[str, bytes] = ByteCache(100, len)
    cache.get("b", lambda: b"kept")
    asked = []

    def make(keys):
        asked.extend(keys)
        for key in keys:
            yield KeyError("gone") if key == "c" else key.encode()

    a, b, c, d = cache.get_all(list("abcd"), make)
    assert (a, b, d) == ((b"a", False), (b"kept", True), (b"d", False))
    assert isinstance(c, KeyError)
    assert asked == list("acd")
    assert cache.get_all(list("abd"), make) == [(b"a", True), (b"kept", True), (b"d", True)]


def test_what_breaks_the_making_of_many_breaks_what_was_not_made_yet():
    cache: ByteCache[str, bytes] = ByteCache(100, len)

    def make(keys):
        yield b"1"
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        cache.get_all(list("abc"), make)
    assert ["a" in cache, "b" in cache] == [True, False]
    assert cache.get("b", lambda: b"2") == (b"2", False), "nobody waits for it for ever"


def test_two_who_want_the_same_many_in_another_order_share_the_work():
    """Each makes what it was first to ask for, and only then waits for the other's."""
    cache: ByteCache[str, bytes] = ByteCache(100, len)
    made, both, results = [], threading.Barrier(2), {}

    def ask(keys: str) -> None:
        def make(mine):
            both.wait(30)  # both have claimed theirs before either makes one
            for key in mine:
                made.append(key)
                yield key.encode()

        results[keys] = cache.get_all(list(keys), make)

    first = threading.Thread(target=ask, args=("ab",))
    gate = threading.Event()

    def claims_more(mine):
        gate.set()
        both.wait(30)
        for key in mine:
            made.append(key)
            yield key.encode()

    second = threading.Thread(target=lambda: results.update(cb=cache.get_all(["c", "b"], claims_more)))
    second.start()
    assert gate.wait(30)
    first.start()
    for thread in (first, second):
        thread.join(30)
        assert not thread.is_alive()
    assert sorted(made) == ["a", "b", "c"]
    assert [value for value, _ in results["ab"]] == [b"a", b"b"]
    assert [value for value, _ in results["cb"]] == [b"c", b"b"]
