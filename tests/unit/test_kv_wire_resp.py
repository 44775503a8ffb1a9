"""Commands to bytes and bytes to replies, however they are cut, and whatever a hostile server sends."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x2l_cluster.errors import StoreUnavailable
from x2l_cluster.kv.wire.errors import Closed, Garbled, Refusal
from x2l_cluster.kv.wire.resp import Reader, Reply, encode, encode_get


def feed(data: bytes, cuts: list[int] | None = None) -> Callable[[list[memoryview], bool], int]:
    """A stream that delivers ``data`` in pieces of these lengths, over and over, as receive does, then ends."""
    at, turn = 0, 0

    def receive(buffers: list[memoryview], whole: bool) -> int:
        nonlocal at, turn
        room = sum(map(len, buffers))
        assert room, "nothing was asked for"
        size = min(room, cuts[turn % len(cuts)] if cuts else room)
        turn += 1
        piece = data[at : at + size]
        at += len(piece)
        left = piece
        for buffer in buffers:
            part = left[: len(buffer)]
            buffer[: len(part)] = part
            left = left[len(part) :]
        return len(piece)

    return receive


def reader(data: bytes, cuts: list[int] | None = None) -> Reader:
    return Reader(feed(data, cuts), "here")


def fresh(size: int) -> memoryview:
    return memoryview(bytearray(size))


def written(reply: Reply) -> bytes:
    match reply:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % reply
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)
        case list():
            return b"*%d\r\n" % len(reply) + b"".join(map(written, reply))
        case _:
            raise AssertionError(reply)


CUTS = st.lists(st.integers(1, 5000), min_size=1, max_size=8)
PLAIN = st.none() | st.integers(-(10**18), 10**18) | st.binary(max_size=300)
REPLIES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=5), max_leaves=20).filter(
    lambda reply: depth(reply) <= 8
)


def depth(reply: object) -> int:
    return 1 + max(map(depth, reply), default=0) if isinstance(reply, list) else 0


@given(st.lists(REPLIES, min_size=1, max_size=4), CUTS)
def test_replies_are_read_however_they_are_cut(replies: list[Reply], cuts: list[int]) -> None:
    stream = reader(b"".join(map(written, replies)), cuts)
    assert [stream.reply() for _ in replies] == replies
    assert stream.is_drained


@given(st.lists(st.none() | st.binary(max_size=20_000), min_size=1, max_size=4), CUTS)
def test_values_go_straight_to_their_place_however_they_are_cut(values: list[bytes | None], cuts: list[int]) -> None:
    stream = reader(b"".join(map(written, values)), cuts)
    for value in values:
        places: list[memoryview] = []

        def place(size: int, places: list[memoryview] = places) -> memoryview:
            places.append(fresh(size))
            return places[-1]

        got = stream.value(place)
        assert got == value
        assert [got] == (places or [None])
    assert stream.is_drained


NOISE = st.binary(max_size=300) | st.text("$*:+-0123456789\r\n", max_size=80).map(str.encode)


@settings(max_examples=300)
@given(NOISE, CUTS, st.booleans())
def test_no_bytes_crash_the_reader_or_make_it_allocate(data: bytes, cuts: list[int], as_value: bool) -> None:
    check_noise(data, cuts, as_value)


@pytest.mark.soak
@settings(max_examples=50_000, deadline=None)
@given(NOISE, CUTS, st.booleans())
def test_no_bytes_crash_the_reader_in_a_long_time(data: bytes, cuts: list[int], as_value: bool) -> None:
    check_noise(data, cuts, as_value)


def check_noise(data: bytes, cuts: list[int], as_value: bool) -> None:
    stream, asked = reader(data, cuts), []

    def place(size: int) -> memoryview:
        asked.append(size)
        assert size <= 1000
        return fresh(size)

    try:
        for _ in range(100):
            stream.value(place, 1000) if as_value else stream.reply()
    except StoreUnavailable:
        pass
    else:
        raise AssertionError(f"a hundred replies in {len(data)} bytes")


HOSTILE = [
    b"$9999999999\r\n",
    b"$536870913\r\n",
    b"$" + b"9" * 4000 + b"\r\n",
    b"$1_0\r\n0123456789\r\n",
    b"$ 10\r\n0123456789\r\n",
    b"$+3\r\nabc\r\n",
    b"$-2\r\n",
    b"$\r\n",
    b"$3\r\nabcd\r\n",
    b"$3\r\nabc\n\n",
    b"!3\r\nabc\r\n",
    b"\r\n",
    b"x" * 5000,
    b"+" + b"x" * 5000 + b"\r\n",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
]


@pytest.mark.parametrize("data", HOSTILE)
def test_what_is_no_string_is_garbled_before_anything_is_allocated(data: bytes) -> None:
    def place(size: int) -> memoryview:
        assert size <= 10
        return fresh(size)

    with pytest.raises(Garbled, match="the server at here"):
        reader(data).value(place)


@pytest.mark.parametrize(
    "data",
    [
        b"*9999999999\r\n",
        b"*131073\r\n",
        b"*100000\r\n" + b"*100000\r\n" * 8,
        b"*1\r\n" * 10_000,
        b"*2\r\n$8000000\r\n" + bytes(8_000_000) + b"\r\n$8000000\r\n",
        b"$9000000\r\n",
        b":12x\r\n",
        b":\r\n",
        b":1" + b"0" * 30 + b"\r\n",
        b"%1\r\n+a\r\n+b\r\n",
        b"*-2\r\n",
    ],
)
def test_a_reply_that_would_cost_too_much_is_garbled(data: bytes) -> None:
    stream = reader(data)
    tracemalloc.start()
    try:
        with pytest.raises(Garbled):
            stream.reply()
        assert tracemalloc.get_traced_memory()[1] < (32 << 20)  # the test's own slices included
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("data", [b"", b"$", b"$5\r\n", b"$5\r\nabc", b"$5\r\nabcde", b"$5\r\nabcde\r"])
def test_an_end_in_the_middle_is_told_from_nonsense(data: bytes) -> None:
    with pytest.raises(Closed):
        reader(data, [1]).value(fresh)


def test_an_error_is_raised_for_a_value_and_returned_among_replies() -> None:
    with pytest.raises(Refusal, match="WRONGTYPE Operation") as refused:
        reader(b"-WRONGTYPE Operation against a key\r\n").value(fresh)
    assert refused.value.word == "WRONGTYPE"
    reply = reader(b"*2\r\n-ERR no\r\n:1\r\n").reply()
    assert isinstance(reply, list)
    assert isinstance(reply[0], Refusal)
    assert (reply[0].text, reply[1]) == ("ERR no", 1)


def test_the_place_may_refuse() -> None:
    def place(size: int) -> memoryview:
        raise ValueError(size)

    with pytest.raises(ValueError, match="7"):
        reader(b"$7\r\nabcdefg\r\n").value(place)


@given(st.lists(st.binary(max_size=6000) | st.integers(0, 10**9) | st.text(max_size=20), min_size=1, max_size=5))
def test_commands_are_arrays_of_strings(words: list[bytes | int | str]) -> None:
    sent = b"".join(bytes(part) for part in encode(*words))
    plain = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    assert reader(sent).reply() == plain


def test_long_words_are_sent_from_where_they_are() -> None:
    blob = bytearray(1 << 20)
    views = [part for part in encode("SET", "k", blob) if isinstance(part, memoryview)]
    assert [view.obj for view in views] == [blob]


def test_the_command_in_a_hurry_is_the_same_command() -> None:
    assert [encode_get(b"some key")] == encode("GET", "some key")
